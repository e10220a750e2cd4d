//! The same on a real directory and a real index.

use super::model::{Model, Workload};
use super::*;
use crate::chunk_store::{Attempt, Reader};
use holdfast_journal::disk::DiskFile;
use holdfast_journal::{DirectoryDisk, IoBackend, Syncing};
use holdfast_store::{FjallConfig, FjallTable};
use std::io::Write as _;
use std::path::Path;

fn open_real(path: &Path, backend: IoBackend) -> ChunkStore<DirectoryDisk> {
    let disk = DirectoryDisk::open_with(path, Syncing::Real, backend).expect("nobody else has it");
    let table = FjallTable::open(&path.join("index"), FjallConfig::default()).expect("an index");
    ChunkStore::open(disk, Arc::new(table), OWNER, StoreOptions::for_simulation()).expect("opens")
}

#[test]
fn a_real_disk_holds_what_the_model_says_however_often_it_is_opened() {
    for backend in IoBackend::ALL {
        holds_what_the_model_says(backend);
    }
}

fn holds_what_the_model_says(backend: IoBackend) {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (mut workload, mut model) = (Workload::new(5), Model::default());
    let mut store = open_real(directory.path(), backend);
    for round in 0..40 {
        let ops: Vec<LocalOp> = (0..workload.prng.between(1, 8)).map(|_| workload.next()).collect();
        assert!(store.apply(&ops).iter().all(Result::is_ok), "{:?}", store.fault());
        ops.iter().for_each(|op| model.apply(op));
        if round % 10 == 9 {
            // Without a last checkpoint: the journal has the rest.
            let life = store.incarnation();
            drop(store);
            store = open_real(directory.path(), backend);
            assert!(store.incarnation() > life);
        }
        model.check(&store, 2, &format!("round {round}"));
    }
}

#[test]
fn readers_never_see_a_mixture_of_two_writes_of_a_block() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let mut store = open_real(directory.path(), IoBackend::IoUring);
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![0; 40_000]))]);
    let reader = store.reader();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, done) = (reader.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                let command = LocalCommand::Read { group: GroupId(0), chunk: chunk(2, 0), offset: 0, length: 40_000 };
                let mut reads = 0u64;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    match reader.serve(&command) {
                        Ok(LocalOutcome::Data { bytes, .. }) => {
                            for block in bytes.chunks(4096) {
                                assert!(block.iter().all(|byte| *byte == block[0]), "two writes in one block");
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for count in 2..300u64 {
        // Large ones switch extents, small ones overwrite in place; both while it is being read.
        let size = if count % 3 == 0 { 40_000 } else { 20_480 };
        assert_eq!(store.apply(&[op(0, count, write(chunk(2, 0), 0, vec![count as u8; size]))]), [Ok(())]);
        if count % 50 == 0 {
            store.checkpoint().expect("no fault was asked for");
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().expect("no reader saw anything wrong") > 0);
    }
    assert_eq!(store.reader().blocks_damaged(), 0);
}

/// Lets the kernel forget what it keeps in memory of the files of a directory.
pub(crate) fn forget(path: &Path) {
    let files = std::fs::read_dir(path).expect("listed").map(|entry| entry.expect("an entry").path());
    for path in files.filter(|path| path.is_file()) {
        let file = std::fs::File::open(path).expect("opened");
        file.sync_data().expect("synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
    }
}

/// Whether the file system tells what is in memory. Otherwise `name` is skipped in part.
pub(crate) fn memory_can_be_told(name: &str) -> bool {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let disk = DirectoryDisk::open(directory.path(), Syncing::Real).expect("opened");
    let file = disk.create("file").expect("created");
    file.write_at(&[1; 4096], 0).expect("written");
    let can = file.read_cached_at(&mut [0; 4096], 0).expect("tried");
    if !can {
        // Not `println!`, which the test runner keeps to itself when a test passes.
        let _ = writeln!(std::io::stdout(), "SKIP {name}: {} does not tell", std::env::temp_dir().display());
    }
    can
}

fn data(result: Result<LocalOutcome, LocalError>) -> Result<Bytes, LocalError> {
    match result? {
        LocalOutcome::Data { bytes, .. } => Ok(bytes),
        other => panic!("{other:?}"),
    }
}

/// What each of some reads gives when they are carried out together, whatever of them is in memory.
fn all_together(reader: &Reader<DirectoryDisk>, commands: &[LocalCommand]) -> Vec<Result<Bytes, LocalError>> {
    let read = |command: &LocalCommand| match *command {
        LocalCommand::Read { group, chunk, offset, length } => {
            reader.later(group, chunk, offset, length).expect("rows")
        }
        _ => panic!("only reads"),
    };
    let mut found: Vec<Option<Result<Bytes, LocalError>>> = vec![None; commands.len()];
    Reader::serve_later(commands.iter().map(read).collect(), &mut |index, result| {
        assert!(found[index].replace(data(result)).is_none(), "read {index} ended twice");
    });
    found.into_iter().map(|result| result.expect("every read ends")).collect()
}

#[test]
fn reads_carried_out_together_give_what_each_gives_alone_and_name_the_damaged_one() {
    for backend in IoBackend::ALL {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let mut store = open_real(directory.path(), backend);
        let (mut ops, mut commands) = (Vec::new(), Vec::new());
        for n in 0..60u64 {
            // Small and large ones; some in several extents with a gap between; then parts written over, in the same batch.
            let at = if n % 3 == 0 { 50_000 } else { 0 };
            ops.push(op(0, 4 * n + 1, write(chunk(n, 0), at, vec![n as u8 + 1; 5_000 + 1_700 * n as usize])));
            if n % 4 == 0 {
                ops.push(op(0, 4 * n + 2, write(chunk(n, 0), 300_000, vec![n as u8 + 2; 70_000])));
            }
            ops.push(op(0, 4 * n + 3, write(chunk(n, 0), at + 1_000, vec![n as u8 + 3; 2_500])));
            let read = |offset, length| LocalCommand::Read { group: GroupId(0), chunk: chunk(n, 0), offset, length };
            commands.extend([read(0, 400_000), read(at + 900, 300), read(48_000, 4_096), read(900_000, 10)]);
        }
        assert!(store.apply(&ops).iter().all(Result::is_ok), "{:?}", store.fault());
        store.checkpoint().expect("synced");
        let reader = store.reader();
        let alone: Vec<_> = commands.iter().map(|command| data(reader.serve(command))).collect();
        assert!(alone.iter().all(Result::is_ok));
        for (command, alone) in commands.iter().zip(&alone) {
            match reader.attempt(command) {
                Attempt::Done(result) => assert!(data(result) == *alone, "from memory"),
                Attempt::Later(later) => {
                    Reader::serve_later(vec![later], &mut |_, result| {
                        assert!(data(result) == *alone, "one for itself")
                    });
                }
            }
        }
        assert!(all_together(&reader, &commands) == alone, "from memory, by {}", backend.name());
        forget(directory.path());
        assert!(all_together(&reader, &commands) == alone, "from the disk, by {}", backend.name());

        // One block rots; it is the one read that fails, whoever it is in flight with.
        let rotten = directory.path().join("extent-00000000");
        let bytes = std::fs::read(&rotten).expect("read");
        let at = bytes.windows(5_000).position(|run| run == [32; 5_000]).expect("in place") as u64;
        let file = std::fs::File::options().write(true).open(&rotten).expect("opened");
        std::os::unix::fs::FileExt::write_all_at(&file, b"rot", at + 4_096).expect("written");
        file.sync_all().expect("synced");
        forget(directory.path());
        let damaged = all_together(&reader, &commands);
        for (place, (now, before)) in damaged.iter().zip(&alone).enumerate() {
            match now {
                Err(error) => assert!(*error == LocalError::BadBlock && place / 4 == 31, "read {place}: {error}"),
                Ok(_) => assert!(now == before, "read {place}"),
            }
        }
        assert!(damaged[31 * 4].is_err() && reader.blocks_damaged() == 1);
    }
}
