//! Where a file system ends: the largest file, the longest name and path, the deepest tree, the most links. Each edge from both sides:
//! what is just allowed works and is still there after a new start, what is just beyond is refused with Linux's own error.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_tests::{Up, can_mount, note};
use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, SeekFrom, fallocate, mkdirat, openat, seek, unlinkat};
use rustix::io::Errno;

const LIMIT: Duration = Duration::from_secs(300);
/// The last byte that a file may have is just before this.
const END: u64 = i64::MAX as u64;
/// Hard links of one file: more than ext4 allows, and than 16 bits count. They are made one after the other, so most runs make fewer.
const LINKS: u64 = 66_000;
const LINKS_SHORT: u64 = 3_000;
/// Bytes of a path, with the zero at its end.
const PATH_MAX: usize = 4096;
/// Levels of a tree that no single path can name.
const LEVELS: usize = 3000;

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).expect("opens")
}

fn bytes_at(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; length];
    let got = file.read_at(&mut bytes, offset).expect("reads");
    bytes.truncate(got);
    bytes
}

/// Asks a running mount something, starts everything anew, and asks again.
fn before_and_after(up: &mut Up, ask: impl Fn(&Path)) {
    ask(up.mount());
    up.process().terminate(LIMIT).expect("ends");
    up.restart().expect("starts again");
    ask(up.mount());
}

#[test]
fn a_file_may_be_as_long_as_an_offset_can_say_and_not_a_byte_longer() {
    if !can_mount("a_file_may_be_as_long_as_an_offset_can_say_and_not_a_byte_longer", &[]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    let file = open(&up.mount().join("f"));
    file.write_all_at(b"first", 0).expect("writes");
    file.write_all_at(b"1234", END - 4).expect("writes up to the end");
    // An offset that no number holds is refused before any file system is asked.
    assert_eq!(errno(file.write_at(b"12", END - 1)), Some(Errno::INVAL));
    assert_eq!(errno(file.write_at(b"9", END)), Some(Errno::INVAL));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), END - 10, 11), Err(Errno::FBIG));
    file.sync_all().expect("syncs");
    drop(file);
    before_and_after(&mut up, |mount| {
        let file = open(&mount.join("f"));
        assert_eq!(file.metadata().expect("stat").len(), END);
        assert_eq!(bytes_at(&file, 0, 8), b"first\0\0\0");
        assert_eq!(bytes_at(&file, END / 2, 4096), [0; 4096], "a hole is larger than any cluster");
        assert_eq!(bytes_at(&file, END - 8, 8), b"\0\0\0\x001234");
    });
    // Two of them are more bytes than the volume's total could count in 64 bits.
    open(&up.mount().join("g")).set_len(END).expect("one more");
    std::fs::remove_file(up.mount().join("g")).expect("removed");
    let file = open(&up.mount().join("f"));
    file.set_len(END - 2).expect("truncates");
    file.set_len(END).expect("is extended");
    assert_eq!(bytes_at(&file, END - 8, 8), b"\0\0\0\x0012\0\0", "what was cut off does not come back");
    file.set_len(3).expect("truncates");
    assert_eq!(bytes_at(&file, 0, 16), b"fir");
    drop(file);
    fs::remove_file(up.mount().join("f")).expect("removed");
}

#[test]
fn an_allocation_that_changes_no_byte_changes_the_time() {
    if !can_mount("an_allocation_that_changes_no_byte_changes_the_time", &[]) {
        return;
    }
    const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
    let up = Up::start(&[]).expect("up is ready");
    let file = open(&up.mount().join("f"));
    file.write_all_at(&[7; 10_000], 0).expect("writes");
    let hole = KEEP | FallocateFlags::PUNCH_HOLE;
    let zero = KEEP | FallocateFlags::ZERO_RANGE;
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1);
    for (flags, offset) in [(FallocateFlags::empty(), 0), (KEEP, 0), (KEEP, 20_000), (hole, 20_000), (zero, 20_000)] {
        file.set_modified(long_ago).expect("sets a time");
        fallocate(&file, flags, offset, 5000).expect("allocates");
        let now = file.metadata().expect("stat");
        assert!(now.modified().expect("has a time") > long_ago, "{flags:?} at {offset}");
        assert_eq!(now.len(), 10_000, "{flags:?} at {offset}");
    }
    assert_eq!(bytes_at(&file, 0, 10_000), [7; 10_000]);
}

#[test]
fn what_is_removed_can_still_be_asked_by_whoever_holds_it() {
    if !can_mount("what_is_removed_can_still_be_asked_by_whoever_holds_it", &[]) {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    let at = |name: &str| up.mount().join(name);
    let hold = |name: &str, flags: OFlags| {
        openat(CWD, at(name), flags | OFlags::NONBLOCK | OFlags::NOFOLLOW, Mode::empty()).expect("opens")
    };
    let rest = |held: &OwnedFd| rustix::fs::fstat(held).map(|found| (found.st_mode, found.st_nlink, found.st_size));
    mkdirat(CWD, at("folder"), Mode::from_raw_mode(0o750)).expect("a directory");
    mkdirat(CWD, at("moved"), Mode::from_raw_mode(0o755)).expect("a directory");
    mkdirat(CWD, at("replaced"), Mode::from_raw_mode(0o711)).expect("a directory");
    rustix::fs::mknodat(CWD, at("pipe"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("a pipe");
    std::os::unix::fs::symlink("somewhere", at("link")).expect("a link");
    fs::write(at("file"), b"abc").expect("a file");
    let (folder, replaced) = (hold("folder", OFlags::RDONLY), hold("replaced", OFlags::RDONLY));
    let (pipe, link, file) = (hold("pipe", OFlags::RDONLY), hold("link", OFlags::PATH), hold("file", OFlags::PATH));
    fs::remove_dir(at("folder")).expect("removed");
    fs::rename(at("moved"), at("replaced")).expect("replaced");
    ["pipe", "link", "file"].iter().for_each(|name| fs::remove_file(at(name)).expect("removed"));
    assert_eq!(rest(&folder), Ok((0o040_750, 0, 0)));
    assert_eq!(rest(&replaced), Ok((0o040_711, 0, 0)));
    assert_eq!(rest(&pipe), Ok((0o010_640, 0, 0)));
    assert_eq!(rest(&link), Ok((0o120_777, 0, 9)));
    assert_eq!(rest(&file), Ok((0o100_644, 0, 3)));
    assert!(rustix::fs::Dir::read_from(&folder).expect("opens").read().is_none(), "nothing is in it");
    // Who is in a directory that is gone is nowhere, and no name can be made there.
    let made = openat(&folder, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
    assert_eq!(made.map(|_| ()), Err(Errno::NOENT));
}

#[test]
fn names_are_any_255_bytes_and_no_more() {
    if !can_mount("names_are_any_255_bytes_and_no_more", &[]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    // Every byte that a name may have, first, last and in between; and names that a careless program takes for one another.
    let any: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let mut names: BTreeSet<OsString> = any.chunks(128).map(|part| OsString::from_vec(part.to_vec())).collect();
    names.insert(OsString::from_vec(any.iter().rev().copied().chain([b'x']).collect()));
    for text in ["...", " ", "\n", "A", "a", "\u{e9}", "e\u{301}", "-rf", "*"] {
        names.insert(text.into());
    }
    names.extend(any.iter().filter(|byte| **byte != b'.').map(|byte| OsString::from_vec(vec![*byte])));
    names.insert(OsString::from_vec(vec![0xff; 255]));
    assert_eq!(names.iter().map(|name| name.len()).max(), Some(255));
    for name in &names {
        fs::write(up.mount().join(name), name.as_bytes()).expect("a good name");
    }
    for beyond in [vec![b'n'; 256], vec![0xff; 256], vec![b'n'; 4000]] {
        let path = up.mount().join(OsString::from_vec(beyond));
        assert_eq!(errno(File::create(&path)), Some(Errno::NAMETOOLONG));
        assert_eq!(errno(fs::symlink_metadata(&path)), Some(Errno::NAMETOOLONG));
        assert_eq!(errno(fs::rename(up.mount().join("a"), &path)), Some(Errno::NAMETOOLONG));
    }
    before_and_after(&mut up, |mount| {
        let listed = fs::read_dir(mount).expect("lists").map(|entry| entry.expect("entry").file_name());
        assert_eq!(listed.collect::<BTreeSet<_>>(), names);
        for name in &names {
            assert_eq!(fs::read(mount.join(name)).expect("found"), name.as_bytes(), "{name:?}");
        }
    });
}

/// Makes a folder within another one and opens it.
fn step_down(at: &OwnedFd, name: &OsStr) -> OwnedFd {
    mkdirat(at, name, Mode::from_raw_mode(0o755)).expect("made");
    step(at, name)
}

fn step(at: &OwnedFd, name: &OsStr) -> OwnedFd {
    openat(at, name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).expect("opens")
}

fn folder(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).expect("opens")
}

#[test]
fn paths_are_as_long_as_the_kernel_takes_them_and_trees_deeper() {
    if !can_mount("paths_are_as_long_as_the_kernel_takes_them_and_trees_deeper", &["find", "rm"]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    // A path of the greatest length there is, to a file at its end.
    let mut path = up.mount().as_os_str().as_bytes().to_vec();
    let long = vec![b'd'; 200];
    while PATH_MAX - 2 - path.len() > 255 {
        path.push(b'/');
        path.extend(&long);
        fs::create_dir(OsStr::from_bytes(&path)).expect("made");
    }
    path.push(b'/');
    let last = vec![b'f'; PATH_MAX - 1 - path.len()];
    let whole = OsString::from_vec([path.clone(), last].concat());
    assert_eq!(whole.len(), PATH_MAX - 1);
    fs::write(&whole, "at the end").expect("the longest path is good");
    let beyond = OsString::from_vec([whole.as_bytes(), b"f"].concat());
    assert_eq!(errno(File::create(&beyond)), Some(Errno::NAMETOOLONG));
    // Links hold as much as paths.
    let target = OsString::from_vec(vec![b't'; PATH_MAX - 1]);
    std::os::unix::fs::symlink(&target, up.mount().join("link")).expect("made");
    // And a tree that only steps lead down.
    let mut at = step_down(&folder(up.mount()), OsStr::new("tree"));
    for _ in 0..LEVELS {
        at = step_down(&at, OsStr::new("deep"));
    }
    drop(openat(&at, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644)).expect("made"));
    drop(at);
    before_and_after(&mut up, |mount| {
        assert_eq!(fs::read_to_string(&whole).expect("found"), "at the end");
        assert_eq!(fs::read_link(mount.join("link")).expect("read"), Path::new(&target));
        let mut at = step(&folder(mount), OsStr::new("tree"));
        for _ in 0..LEVELS {
            at = step(&at, OsStr::new("deep"));
        }
        rustix::fs::statat(&at, "bottom", AtFlags::empty()).expect("found");
    });
    // A tree into itself is a circle at any depth; somewhere else it takes everything with it.
    let (root, tree) = (folder(up.mount()), up.mount().join("tree"));
    let inner = step(&step(&root, OsStr::new("tree")), OsStr::new("deep"));
    assert_eq!(rustix::fs::renameat(&root, "tree", &inner, "x"), Err(Errno::INVAL));
    fs::rename(&tree, up.mount().join("moved")).expect("moved");
    drop(inner);
    let script = format!("cd '{0}' && find moved -name bottom | wc -l && rm -rf moved && ls", up.mount().display());
    let said = holdfast_tests::command::shell(&script, LIMIT).expect("runs");
    assert_eq!(said.lines().next(), Some("1"), "{said}");
    assert!(!said.contains("moved"), "{said}");
    assert_eq!(unlinkat(&root, "moved", AtFlags::REMOVEDIR), Err(Errno::NOENT));
}

#[test]
fn a_file_has_as_many_names_as_on_a_local_disk() {
    if !can_mount("a_file_has_as_many_names_as_on_a_local_disk", &[]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    let file = up.mount().join("f");
    fs::write(&file, "shared").expect("writes");
    let links = if holdfast_tests::report::long() { LINKS } else { LINKS_SHORT };
    let begun = Instant::now();
    let each = |work: &(dyn Fn(u64) + Sync)| {
        std::thread::scope(|scope| {
            for of in 0..8 {
                scope.spawn(move || (1..links).filter(|n| n % 8 == of).for_each(work));
            }
        });
    };
    let name = |mount: &Path, n: u64| mount.join(format!("name-{n}"));
    for part in ["a", "b"] {
        fs::create_dir(up.mount().join(part)).expect("made");
    }
    let place = |mount: &Path, n: u64| name(&mount.join(if n.is_multiple_of(3) { "a" } else { "b" }), n);
    let mount = up.mount().to_path_buf();
    each(&|n| fs::hard_link(&file, place(&mount, n)).expect("linked"));
    note(&format!("{links} links took {:.0} s", begun.elapsed().as_secs_f64()));
    before_and_after(&mut up, |mount| {
        let there = fs::metadata(mount.join("f")).expect("stat");
        assert_eq!(there.nlink(), links);
        let last = place(mount, links - 1);
        assert_eq!(fs::metadata(&last).expect("stat").ino(), there.ino());
        assert_eq!(fs::read_to_string(last).expect("reads"), "shared");
        let listed: u64 =
            ["a", "b"].iter().map(|part| fs::read_dir(mount.join(part)).expect("lists").count() as u64).sum();
        assert_eq!(listed, links - 1);
    });
    each(&|n| fs::remove_file(place(&mount, n)).expect("removed"));
    assert_eq!(fs::metadata(&file).expect("stat").nlink(), 1);
    assert_eq!(fs::read_to_string(&file).expect("reads"), "shared");
}

#[test]
fn holes_are_told_from_data_however_large_they_are() {
    if !can_mount("holes_are_told_from_data_however_large_they_are", &["cp"]) {
        return;
    }
    const TIB: u64 = 1 << 40;
    const MIB: u64 = 1 << 20;
    let mut up = Up::start(&[]).expect("up is ready");
    let file = open(&up.mount().join("f"));
    // Within a chunk, over the seam of two chunks of 4 MiB, over many, and far away.
    let written = [(8192, 100), (4 * MIB - 4096, 8192), (8 * MIB, 40 * MIB), (TIB, 4096), (5 * TIB, 5)];
    for (at, length) in written {
        file.write_all_at(&vec![b'x'; length as usize], at).expect("writes");
    }
    let blocks = |(at, length): (u64, u64)| (at, (at + length).next_multiple_of(4096).min(5 * TIB + 5));
    let expected: Vec<(u64, u64)> = written.into_iter().map(blocks).collect();
    assert_eq!(data_of(&file), expected, "nothing was synced");
    file.sync_all().expect("syncs");
    drop(file);
    before_and_after(&mut up, |mount| {
        assert_eq!(data_of(&open(&mount.join("f"))), expected);
        // Without holes this takes a day.
        let status = std::process::Command::new("cp").args(["--sparse=auto", "f", "copy"]).current_dir(mount).status();
        assert!(status.expect("cp runs").success());
        let copy = open(&mount.join("copy"));
        assert_eq!(copy.metadata().expect("stat").len(), 5 * TIB + 5);
        assert_eq!(data_of(&copy), expected);
        assert_eq!(bytes_at(&copy, 5 * TIB - 3, 9), b"\0\0\0xxxxx");
        fs::remove_file(mount.join("copy")).expect("removes");
    });
    let file = open(&up.mount().join("f"));
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 9 * MIB, 30 * MIB).expect("punches");
    let mut expected = expected;
    expected.splice(2..3, [(8 * MIB, 9 * MIB), (39 * MIB, 48 * MIB)]);
    assert_eq!(data_of(&file), expected);
}

/// Where a file has data, from beginning to end of each range.
fn data_of(file: &File) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = seek(file, SeekFrom::Hole(start)).expect("the end is a hole");
                ranges.push((start, at));
            }
            Err(Errno::NXIO) => return ranges,
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn reading_sets_the_access_time_once() {
    if !can_mount("reading_sets_the_access_time_once", &[]) {
        return;
    }
    let times = |mount: &Path| {
        let of = mount.join("f").metadata().expect("stat");
        ((of.atime(), of.atime_nsec()), (of.mtime(), of.mtime_nsec()), (of.ctime(), of.ctime_nsec()))
    };
    let mut up = Up::start(&[]).expect("up is ready");
    fs::write(up.mount().join("f"), "text").expect("writes");
    let (before, changed, ctime) = times(up.mount());
    assert!(before <= changed);
    // The kernel has the file's pages in its cache, and what it reads there nobody sees.
    up.process().terminate(LIMIT).expect("ends");
    up.restart().expect("starts again");
    assert_eq!(fs::read(up.mount().join("f")).expect("reads"), b"text");
    let (read, mtime, same) = times(up.mount());
    assert!(read > mtime && (mtime, same) == (changed, ctime), "{read:?} {mtime:?} {same:?}");
    // The kernel's pages go with the mount.
    up.process().terminate(LIMIT).expect("ends");
    up.restart().expect("starts again");
    assert_eq!(fs::read(up.mount().join("f")).expect("reads"), b"text");
    assert_eq!(times(up.mount()), (read, changed, ctime), "once");
}

/// Bytes that somebody without privilege wrote take a file's set-id bits, those that it had then and no others, although they are buffered.
#[test]
fn set_id_bits_go_and_come_in_the_order_of_the_calls() {
    use std::os::unix::fs::{PermissionsExt, chown};
    if !can_mount("edges::set_id_bits_go_and_come_in_the_order_of_the_calls", &["setpriv", "setfacl"]) {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    let file = up.mount().join("f");
    let mode = || file.metadata().expect("stat").mode() & 0o7777;
    let set = |mode: u32| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set");
    let run =
        |line: &str| holdfast_tests::command::shell(&format!("{line} '{}'", file.display()), LIMIT).expect("runs");
    let write = || run("setpriv --reuid 65534 --regid 65534 --clear-groups bash -c 'echo more >> \"$0\"'");
    for _ in 0..10 {
        fs::write(&file, "x").expect("writes");
        chown(&file, Some(1000), Some(1000)).expect("given away");
        set(0o6777);
        write();
        assert_eq!(mode(), 0o777);
        set(0o6755);
        assert_eq!(mode(), 0o6755, "set after the write");
        open(&file).sync_all().expect("synced");
        assert_eq!(mode(), 0o6755, "set after the write that is published only now");
        set(0o2777);
        write();
        // Without this right of its group, the bit would have stayed: but it was gone before.
        run("setfacl -m g::rw-");
        assert_eq!(mode(), 0o767);
        fs::remove_file(&file).expect("removed");
    }
}
