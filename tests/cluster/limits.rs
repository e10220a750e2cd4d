//! What a volume may hold at the most: a writer beyond that learns it, and what it was told is durable stays.

use holdfast_tests::command::must;
use holdfast_tests::{Cluster, Options, can_mount, until};
use std::io::{Error, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const PART: usize = 64 << 10;

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 512) as u8).collect()
}

/// Writes a file part by part, durably every sixteen, until that fails. Returns how much was told to be durable, and why no more is.
fn fill(path: &Path, most: usize) -> (usize, Option<Error>) {
    let data = content(most);
    let mut file = std::fs::File::create(path).expect("made");
    let mut durable = 0;
    for (number, part) in data.chunks(PART).enumerate() {
        let last = (number + 1).is_multiple_of(16) || (number + 1) * PART >= most;
        let done = file.write_all(part).and_then(|()| if last { file.sync_all() } else { Ok(()) });
        match done {
            Ok(()) if last => durable = (number + 1) * PART,
            Ok(()) => {}
            Err(error) => {
                // Whatever else was buffered and has no room: or whoever opens the file next is told of it.
                let _ = file.sync_all();
                return (durable, Some(error));
            }
        }
    }
    (durable, None)
}

fn is_over(error: Option<Error>) -> bool {
    error.and_then(|error| error.raw_os_error()) == Some(rustix::io::Errno::DQUOT.raw_os_error())
}

/// A file holds what was told to be durable, and beyond that nothing but what was written there.
fn check(path: &Path, durable: usize) {
    let found = std::fs::read(path).expect("read");
    assert!(found.len() >= durable, "{} of {durable} bytes", found.len());
    assert!(found == content(found.len()), "{}: torn", path.display());
}

fn set(cluster: &Cluster, at: &Path, bytes: &str, inodes: &str) {
    let said = cluster.admin(&["volume", "limit", "main", "--bytes", bytes, "--inodes", inodes]).expect("set");
    assert!(said.starts_with("main bytes="), "{said}");
    let wanted: Option<u64> = said.split("bytes=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    until("the mount to show it", LIMIT, || {
        let shown = rustix::fs::statvfs(at)?;
        let total = shown.f_blocks * shown.f_frsize;
        let there = wanted.is_none_or(|wanted| total == wanted) && (wanted.is_some() || total > (1 << 30));
        if there { Ok(()) } else { anyhow::bail!("{total} bytes instead of {wanted:?}") }
    })
    .expect("in time");
}

#[test]
fn a_writer_over_the_limit_is_told_and_loses_nothing_that_was_durable() {
    if !can_mount("a_writer_over_the_limit_is_told_and_loses_nothing_that_was_durable", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("healthy");
    let first = cluster.mount().expect("mounted");
    let at = cluster.mounted(first).path().to_path_buf();
    set(&cluster, &at, "24 MiB", "12");
    for shared in [false, true] {
        // Alone, writes are buffered; beside another mount, written through.
        let second = shared.then(|| cluster.mount().expect("mounted again"));
        let (durable, error) = fill(&at.join("a"), 64 * MIB);
        assert!(is_over(error) && (20 * MIB..=24 * MIB).contains(&durable), "shared {shared}: {durable} bytes");
        check(&at.join("a"), durable);
        let (more, error) = fill(&at.join("b"), 8 * MIB);
        assert!(is_over(error), "{more} bytes more");
        // What is there can be changed in place.
        let file = std::fs::File::options().write(true).open(at.join("a")).expect("opened");
        file.write_all_at(&content(PART), 0).and_then(|()| file.sync_all()).expect("takes no more room");
        drop(file);
        std::fs::remove_file(at.join("a")).expect("removed");
        let (durable, error) = fill(&at.join("b"), 8 * MIB);
        assert!(error.is_none(), "room was made: {error:?}");
        check(&at.join("b"), durable);
        std::fs::remove_file(at.join("b")).expect("removed");
        if let Some(second) = second {
            cluster.mounted(second).unmount().expect("unmounts");
        }
    }
    let made = (0..20).map_while(|n| std::fs::create_dir(at.join(format!("d{n}"))).ok()).count();
    assert_eq!(made, 11, "the root is one, too");
    assert!(is_over(std::fs::create_dir(at.join("more")).err()));
    set(&cluster, &at, "none", "none");
    let (durable, error) = fill(&at.join("a"), 40 * MIB);
    assert!(error.is_none() && durable == 40 * MIB, "{error:?}");
    let words = ["--cluster".into(), cluster.file().to_string_lossy().into_owned(), "fsck".into()];
    let mut fsck = std::process::Command::new(holdfast_tests::command::holdfast().expect("built"));
    must(fsck.arg("admin").args(words), LIMIT).expect("the totals are right");
}

/// Bytes that files take as `df` shows them, and inodes; of what in all; and what is said to be left.
fn shown(at: &Path) -> ((u64, u64), (u64, u64), u64) {
    let shown = rustix::fs::statvfs(at).expect("shown");
    let bytes = |blocks: u64| blocks * shown.f_frsize;
    let used = (bytes(shown.f_blocks - shown.f_bfree), shown.f_files - shown.f_ffree);
    (used, (bytes(shown.f_blocks), shown.f_files), bytes(shown.f_bavail))
}

#[test]
fn df_is_exact_with_a_limit_and_shows_the_pool_without() {
    if !can_mount("df_is_exact_with_a_limit_and_shows_the_pool_without", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("healthy");
    let mounts = [cluster.mount().expect("mounted"), cluster.mount().expect("mounted again")];
    let [here, there] = mounts.map(|mount| cluster.mounted(mount).path().to_path_buf());
    set(&cluster, &here, "64 MiB", "50");
    let (limit, kib, mib) = ((64 << 20, 50), 1 << 10, 1 << 20);
    let expect = |used: u64, inodes: u64, after: &str| {
        for at in [&here, &there] {
            assert_eq!(shown(at), ((used, inodes), limit, limit.0 - used), "{after}, {}", at.display());
        }
    };
    expect(0, 1, "nothing is there but the root");
    let write = |name: &str, length: usize| {
        let file =
            std::fs::File::options().create(true).truncate(false).write(true).open(here.join(name)).expect("made");
        file.write_all_at(&content(length), 0).and_then(|()| file.sync_all()).expect("written");
        file
    };
    write("byte", 1);
    expect(4 * kib, 2, "one byte");
    write("byte", 4097);
    expect(8 * kib, 2, "a byte more than a block");
    let large = write("large", 10 * MIB);
    expect(8 * kib + 10 * mib, 3, "ten MiB");
    large.write_all_at(&content(PART), 9 << 20).and_then(|()| large.sync_all()).expect("in place");
    expect(8 * kib + 10 * mib, 3, "a part was overwritten");
    large.set_len(5 << 20).expect("cut");
    expect(8 * kib + 5 * mib, 3, "it was cut");
    std::fs::hard_link(there.join("large"), there.join("link")).expect("linked");
    std::fs::create_dir(there.join("directory")).expect("made");
    expect(8 * kib + 5 * mib, 4, "a link and a directory");
    std::fs::remove_file(there.join("large")).expect("removed");
    expect(8 * kib + 5 * mib, 4, "one of two names is gone");
    std::fs::remove_file(there.join("link")).expect("removed");
    expect(8 * kib + 5 * mib, 4, "it is open");
    drop(large);
    until("the open file to be gone", LIMIT, || {
        if shown(&there).0 == (8 << 10, 3) { Ok(()) } else { anyhow::bail!("{:?}", shown(&there)) }
    })
    .expect("in time");
    let hole = write("hole", 0);
    hole.set_len(20 << 20).expect("longer");
    expect(8 * kib + 20 * mib, 4, "with a limit holes count");

    // Without one they do not: three nodes on one disk, each with a copy, have what that disk has.
    set(&cluster, &here, "none", "none");
    hole.set_len(1 << 60).expect("longer");
    let disk = rustix::fs::statvfs(cluster.folder()).expect("shown");
    let [total, free] = [disk.f_blocks, disk.f_bavail].map(|blocks| blocks * disk.f_frsize);
    until("the pool to be shown", LIMIT, || {
        let ((used, _), (whole, _), left) = shown(&there);
        // Others work on that disk as well, and a part of it is root's.
        let near = |a: u64, b: u64| a.abs_diff(b) < total / 8;
        if near(whole, total) && near(left, free) && near(used, total - free) {
            Ok(())
        } else {
            anyhow::bail!("{used} {whole} {left}")
        }
    })
    .expect("what the disk has");
    // A limit beyond what is there promises nothing.
    hole.set_len(0).expect("cut");
    set(&cluster, &here, "1000000 GiB", "none");
    assert!(shown(&there).2 < total, "{:?}", shown(&there));
    drop(hole);
    mounts.into_iter().for_each(|mount| cluster.mounted(mount).unmount().expect("unmounts"));
}
