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
