//! What every [`Disk`] keeps to, as one suite that each implementation runs: the disk in memory, a directory by plain calls, a directory by
//! io_uring. `disk.rs` says it in words.

use crate::disk::{Disk, DiskFile, Read, Write};
use crate::{DirectoryDisk, IoBackend, MemoryDisk, Syncing};
use std::io::{self, ErrorKind};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const BLOCK: usize = 4 * KIB;

/// Bytes that differ at every place, and by seed.
fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at / 251 + at) as u8 ^ seed).collect()
}

/// Bytes that begin `shift` behind a whole block in memory.
struct Placed {
    memory: Vec<u8>,
    start: usize,
}

impl Placed {
    fn new(bytes: &[u8], shift: usize) -> Self {
        let mut memory = vec![0; bytes.len() + 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK) + shift;
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        Self { memory, start }
    }

    fn bytes(&self, length: usize) -> &[u8] {
        &self.memory[self.start..self.start + length]
    }
}

fn content(file: &impl DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; file.bytes_len().expect("measured") as usize];
    file.read_at(&mut bytes, 0).expect("read");
    bytes
}

fn read_many<D: Disk>(disk: &D, file: &D::File, ranges: &[(usize, usize)]) -> Vec<io::Result<Vec<u8>>> {
    let read = |&(offset, length): &(usize, usize)| Read { file, offset: offset as u64, buffer: vec![0xee; length] };
    let mut found: Vec<Option<io::Result<Vec<u8>>>> = ranges.iter().map(|_| None).collect();
    disk.read_many(ranges.iter().map(read).collect(), &mut |index, result| {
        assert!(found[index].replace(result).is_none(), "read {index} ended twice");
    });
    found.into_iter().map(|result| result.expect("every read ends")).collect()
}

/// All ways of writing, one of which leaves nothing to sync.
fn write_in_every_way<D: Disk>(disk: &D, file: &D::File, way: usize, bytes: &[u8], offset: u64) -> io::Result<()> {
    match way % 4 {
        0 => file.write_at(bytes, offset),
        1 => file.write_past_cache_at(bytes, offset),
        2 => file.write_durable_at(bytes, offset),
        _ => {
            // In pieces of whole blocks, all at once.
            let piece = |(at, bytes)| Write { file, offset: offset + (at * 16 * BLOCK) as u64, bytes };
            disk.write_many_past_cache(&bytes.chunks(16 * BLOCK).enumerate().map(piece).collect::<Vec<_>>())
        }
    }
}

fn a_read_beyond_the_end_is_an_error_and_says_so<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    file.write_at(&pattern(10_000, 1), 0).expect("written");
    let mut buffer = vec![0; 100];
    for offset in [9_901, 10_000, 1 << 40] {
        let error = file.read_at(&mut buffer, offset).expect_err("beyond the end");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert!(!file.read_cached_at(&mut buffer, offset).expect("left to the read proper"));
    }
    let found = read_many(disk, &file, &[(0, 10_000), (9_901, 100), (10_000, 1), (9_900, 100)]);
    assert!(found[0].as_ref().expect("within") == &pattern(10_000, 1));
    assert_eq!(found[1].as_ref().expect_err("beyond").kind(), ErrorKind::UnexpectedEof);
    assert_eq!(found[2].as_ref().expect_err("beyond").kind(), ErrorKind::UnexpectedEof);
    assert!(found[3].as_ref().expect("up to the end") == &pattern(10_000, 1)[9_900..]);
    assert!(read_many(disk, &file, &[]).is_empty());
    assert!(read_many(disk, &file, &[(5, 0), (7, 0)]).iter().all(|read| read.as_ref().is_ok_and(Vec::is_empty)));
}

fn large_and_crooked_transfers_are_whole<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    let mut expected = vec![0; 9 * MIB];
    file.set_len(expected.len() as u64).expect("extended");
    let shapes =
        [(0, 3 * MIB, 0), (777, 2 * MIB + 123, 0), (5 * MIB, 2 * MIB, 512), (6 * MIB, MIB + 1, 0), (64 * KIB, MIB, 0)];
    for way in 0..4 {
        for (round, (offset, length, shift)) in shapes.into_iter().enumerate() {
            let bytes = pattern(length, (way * 16 + round) as u8);
            let placed = Placed::new(&bytes, shift);
            write_in_every_way(disk, &file, way, placed.bytes(length), offset as u64).expect("written");
            expected[offset..offset + length].copy_from_slice(&bytes);
            assert!(content(&file) == expected, "way {way}, shape {round}");
        }
    }
    file.sync_data().expect("synced");
    let ranges: Vec<(usize, usize)> = shapes.iter().map(|&(offset, length, _)| (offset, length)).collect();
    for (found, (offset, length)) in read_many(disk, &file, &ranges).into_iter().zip(ranges) {
        assert!(found.expect("read") == expected[offset..offset + length]);
    }
    drop(file);
    assert!(content(&disk.open("file").expect("still there")) == expected);
}

fn many_more_reads_than_fit_at_once_all_end_with_their_own_bytes<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    let bytes = pattern(4 * MIB, 3);
    file.write_at(&bytes, 0).expect("written");
    let ranges: Vec<(usize, usize)> = (0..500).map(|n| ((n * 7919) % (4 * MIB - 9000), 1 + n * 17)).collect();
    let found = read_many(disk, &file, &ranges);
    assert!(found.into_iter().zip(&ranges).all(|(read, &(at, length))| read.expect("read") == bytes[at..at + length]));
}

fn what_a_later_call_wrote_is_what_is_read<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    let mut expected = vec![0; 64 * BLOCK];
    file.write_at(&expected, 0).expect("written");
    for round in 0..64 {
        // Overlaps what the rounds before wrote in other ways, in whole blocks and not.
        let (offset, length) = (round * 5 % 32 * BLOCK + round % 3 * 100, (1 + round % 9) * BLOCK + round % 2 * 33);
        let bytes = pattern(length, round as u8);
        let placed = Placed::new(&bytes, 0);
        write_in_every_way(disk, &file, round, placed.bytes(length), offset as u64).expect("written");
        expected[offset..offset + length].copy_from_slice(&bytes);
        assert!(content(&file) == expected, "round {round}");
    }
}

fn a_cached_read_gives_what_a_read_gives_or_says_that_it_cannot<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    let bytes = pattern(MIB, 9);
    file.write_at(&bytes, 0).expect("written");
    for (offset, length) in [(0, 4096), (100, 5000), (MIB - 7, 7), (MIB - 7, 8), (0, MIB)] {
        let mut buffer = vec![0; length];
        if file.read_cached_at(&mut buffer, offset as u64).expect("no error of the disk") {
            assert!(buffer == bytes[offset..offset + length]);
        }
    }
}

fn holes_lengths_and_reservations_read_as_zeros<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    file.write_at(&[7; 5 * BLOCK], 0).expect("written");
    file.punch_hole(BLOCK as u64 + 10, 2 * BLOCK as u64).expect("punched");
    file.punch_hole(5 * BLOCK as u64 - 5, 1000).expect("up to the end, and the length stays");
    let mut expected = vec![7; 5 * BLOCK];
    expected[BLOCK + 10..3 * BLOCK + 10].fill(0);
    expected[5 * BLOCK - 5..].fill(0);
    assert!(content(&file) == expected);
    file.set_len(100).expect("cut");
    file.set_len(300).expect("extended");
    expected.truncate(100);
    expected.resize(300, 0);
    assert!(content(&file) == expected, "what was cut off does not come back");
    file.allocate(2 * BLOCK as u64).expect("reserved");
    expected.resize(2 * BLOCK, 0);
    assert!(content(&file) == expected);
    file.allocate(10).expect("nothing to do");
    assert_eq!(file.bytes_len().expect("measured"), 2 * BLOCK as u64);
    file.fill_zeros(50, 20).expect("written");
    expected[50..70].fill(0);
    assert!(content(&file) == expected);
}

fn names_are_made_exchanged_and_removed<D: Disk>(disk: &D) {
    let one = disk.create("one").expect("created");
    assert_eq!(disk.create("one").err().map(|error| error.kind()), Some(ErrorKind::AlreadyExists));
    assert_eq!(disk.open("two").err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    one.write_at(b"first", 0).expect("written");
    disk.create("two").expect("created").write_at(b"second", 0).expect("written");
    disk.rename("one", "two").expect("replaced");
    assert_eq!(disk.list().expect("listed"), ["two"]);
    assert!(!disk.exists("one").expect("looked") && disk.exists("two").expect("looked"));
    assert_eq!(content(&disk.open("two").expect("opened")), b"first");
    disk.remove("two").expect("removed");
    assert_eq!(content(&one), b"first", "an open handle keeps working");
    one.write_durable_at(b"F", 0).expect("written");
    assert_eq!(read_many(disk, &one, &[(0, 5), (1, 4)])[0].as_ref().expect("read"), b"First");
    assert_eq!(disk.remove("two").err().map(|error| error.kind()), Some(ErrorKind::NotFound));
    assert_eq!(disk.create("a/b").err().map(|error| error.kind()), Some(ErrorKind::InvalidInput));
    disk.sync_directory().expect("synced");
    assert!(disk.space().expect("known").total > 0);
}

fn many_files_are_synced_and_written_in_one_call<D: Disk>(disk: &D) {
    let files: Vec<D::File> = (0..5).map(|n| disk.create(&format!("file-{n}")).expect("created")).collect();
    let placed: Vec<Placed> = (0..5u8).map(|n| Placed::new(&pattern(64 * KIB, n), 0)).collect();
    let write = |(file, placed)| Write { file, offset: BLOCK as u64, bytes: Placed::bytes(placed, 64 * KIB) };
    disk.write_many_past_cache(&files.iter().zip(&placed).map(write).collect::<Vec<_>>()).expect("written");
    disk.sync_many(&files.iter().collect::<Vec<_>>()).expect("synced");
    disk.sync_many(&[]).expect("nothing to do");
    disk.write_many_past_cache(&[]).expect("nothing to do");
    for (n, file) in files.iter().enumerate() {
        assert!(content(file)[BLOCK..] == pattern(64 * KIB, n as u8));
    }
}

fn several_threads_use_one_file<D: Disk>(disk: &D) {
    const PART: usize = 256 * KIB;
    let file = disk.create("file").expect("created");
    file.allocate(8 * PART as u64).expect("reserved");
    std::thread::scope(|scope| {
        for n in 0..8usize {
            let file = &file;
            scope.spawn(move || {
                for round in 0..4 {
                    let bytes = pattern(PART, (n * 4 + round) as u8);
                    let placed = Placed::new(&bytes, 0);
                    let (at, ranges) = (n * PART, [(n * PART, PART), (n * PART + 5, 9), (n * PART, BLOCK)]);
                    write_in_every_way(disk, file, n + round, placed.bytes(PART), at as u64).expect("written");
                    disk.sync_many(&[file, file]).expect("synced");
                    for (found, (from, length)) in read_many(disk, file, &ranges).into_iter().zip(ranges) {
                        assert!(found.expect("read") == bytes[from - at..from - at + length]);
                    }
                }
            });
        }
    });
}

fn a_callback_that_panics_leaves_a_disk_that_works<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    let bytes = pattern(8 * MIB, 5);
    file.write_at(&bytes, 0).expect("written");
    for panics_at in 0..3 {
        let mut ended = 0;
        let reads = (0..8).map(|n| Read { file: &file, offset: (n * MIB) as u64, buffer: vec![0; MIB] }).collect();
        let read = std::panic::AssertUnwindSafe(|| {
            disk.read_many(reads, &mut |_, _| {
                assert!(ended < panics_at, "on purpose");
                ended += 1;
            });
        });
        assert!(std::panic::catch_unwind(read).is_err(), "the panic is the caller's");
        assert!(read_many(disk, &file, &[(3, MIB), (9, MIB)])[1].as_ref().expect("read")[..] == bytes[9..9 + MIB]);
    }
}

fn a_child_process_changes_nothing<D: Disk>(disk: &D) {
    let file = disk.create("file").expect("created");
    let bytes = pattern(MIB, 6);
    file.write_at(&bytes, 0).expect("written");
    let reads = (0..64).map(|n| Read { file: &file, offset: n * 4096, buffer: vec![0; 4096] }).collect();
    let mut ended = 0;
    disk.read_many(reads, &mut |index, result| {
        assert!(result.expect("read") == bytes[index * 4096..][..4096]);
        if ended == 0 {
            let child = std::process::Command::new("true").status();
            assert!(child.expect("a child runs").success());
        }
        ended += 1;
    });
    assert_eq!(ended, 64);
}

/// Writes more than fits; `disk` has room for less than 4 MiB.
fn a_full_disk_says_so<D: Disk>(disk: &D) {
    for way in 0..4 {
        let file = disk.create("file").expect("a name fits");
        let placed = Placed::new(&pattern(4 * MIB, 1), 0);
        let error = write_in_every_way(disk, &file, way, placed.bytes(4 * MIB), 0).expect_err("does not fit");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "way {way}: {error}");
        assert_eq!(file.allocate(4 * MIB as u64).map_err(|error| error.kind()), Err(ErrorKind::StorageFull));
        drop(file);
        disk.remove("file").expect("removed");
    }
}

macro_rules! contract {
    ($($promise:ident,)+) => {
        /// Everything, on a directory.
        pub(crate) fn directory(backend: IoBackend) {
            $(on_directory(backend, |disk| $promise(disk));)+
        }

        mod memory {
            $(#[test] fn $promise() { super::$promise(&super::MemoryDisk::new(1)); })+
        }

        mod threads {
            $(#[test] fn $promise() { super::on_directory(super::IoBackend::Threads, |disk| super::$promise(disk)); })+
        }

        mod io_uring {
            $(#[test] fn $promise() { super::on_directory(super::IoBackend::IoUring, |disk| super::$promise(disk)); })+
        }
    };
}

contract! {
    a_read_beyond_the_end_is_an_error_and_says_so,
    large_and_crooked_transfers_are_whole,
    many_more_reads_than_fit_at_once_all_end_with_their_own_bytes,
    what_a_later_call_wrote_is_what_is_read,
    a_cached_read_gives_what_a_read_gives_or_says_that_it_cannot,
    holes_lengths_and_reservations_read_as_zeros,
    names_are_made_exchanged_and_removed,
    many_files_are_synced_and_written_in_one_call,
    several_threads_use_one_file,
    a_callback_that_panics_leaves_a_disk_that_works,
    a_child_process_changes_nothing,
}

/// Says to the runner that a test cannot run here; it is then counted as skipped (`tests/skips.toml`).
fn skip(name: &str, reason: &str) {
    // Not `println!`, which the test runner keeps to itself when a test passes.
    let _ = io::Write::write_fmt(&mut io::stdout(), format_args!("SKIP {name}: {reason}\n"));
}

fn on_directory(backend: IoBackend, promise: impl Fn(&DirectoryDisk)) {
    for syncing in [Syncing::Real, Syncing::SkippedForTest] {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = DirectoryDisk::open_with(directory.path(), syncing, backend).expect("opened");
        promise(&disk);
    }
}

/// Without this one the suite would be the same twice where io_uring is forbidden, and nobody would know.
#[test]
fn io_uring_is_what_the_suite_of_that_name_uses() {
    match crate::io_backend::choose(crate::IoChoice::IoUring) {
        Ok(chosen) => assert_eq!(chosen.backend, IoBackend::IoUring),
        Err(error) => skip("contract::io_uring_is_what_the_suite_of_that_name_uses", &error.to_string()),
    }
}

#[test]
fn a_full_disk_in_memory_says_so() {
    let disk = MemoryDisk::new(1);
    disk.set_capacity(Some(MIB as u64));
    a_full_disk_says_so(&disk);
}

/// A file system of 1 MiB in memory, gone at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> io::Result<Self> {
        use rustix::mount::{MountFlags, mount};
        let directory = tempfile::tempdir()?;
        mount("none", directory.path(), "tmpfs", MountFlags::empty(), Some(c"size=1m"))?;
        Ok(Self(directory))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        use rustix::mount::{UnmountFlags, unmount};
        unmount(self.0.path(), UnmountFlags::DETACH).expect("unmounted");
    }
}

#[test]
fn a_full_file_system_says_so_whatever_writes_to_it() {
    let small = match Small::mount() {
        Ok(small) => small,
        Err(error) => {
            return skip(
                "contract::a_full_file_system_says_so_whatever_writes_to_it",
                &format!("cannot mount a small tmpfs: {error}"),
            );
        }
    };
    for backend in IoBackend::ALL {
        let disk = DirectoryDisk::open_with(small.0.path(), Syncing::Real, backend).expect("opened");
        a_full_disk_says_so(&disk);
    }
}
