//! A directory of very many entries: listed whole from another host while names come and go, looked up, removed.
//!
//! Ten thousand of them; with `HOLDFAST_TEST_LONG=1` ten million, with `HOLDFAST_TEST_ENTRIES` as many as it says.

use crate::memory::{MIB, metadata_pids, status};
use holdfast_tests::report::long;
use holdfast_tests::{Cluster, Options, can_mount, note, skip};
use holdfast_types::prng::Prng;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::collections::BTreeSet;
use std::fs::read_dir;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Who makes and removes names at the same time: two hosts, since a kernel makes one name of a directory after the other.
const WORKERS: u64 = 8;
/// Bytes of disk that an entry takes at the most, in logs and tables of three servers, before they are compacted. By eye.
const ENTRY_BYTES: u64 = 4 << 10;

/// How many entries to make.
fn entries() -> u64 {
    let said = std::env::var("HOLDFAST_TEST_ENTRIES").ok().and_then(|text| text.parse().ok());
    said.unwrap_or(if long() { 10_000_000 } else { 10_000 })
}

fn make_node(path: &Path) {
    mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0).expect("made");
}

/// Does something with each number, by several workers on two hosts. Says how long the first and the last tenth took: what gets slower with
/// the size of the directory shows.
fn by_all(what: &str, count: u64, work: impl Fn(u64, u64) + Sync) {
    let mut took = Vec::new();
    for part in 0..10 {
        let begun = Instant::now();
        let numbers = count * part / 10..count * (part + 1) / 10;
        std::thread::scope(|scope| {
            for worker in 0..WORKERS {
                let (numbers, work) = (numbers.clone(), &work);
                scope.spawn(move || numbers.filter(|n| n % WORKERS == worker).for_each(|n| work(worker, n)));
            }
        });
        took.push(begun.elapsed().as_secs_f64());
    }
    let whole: f64 = took.iter().sum();
    note(&format!("{count} {what} in {whole:.0} s; the first tenth {:.1} s, the last {:.1} s", took[0], took[9]));
}

fn tell_memory(cluster: &mut Cluster, mounts: [usize; 2], when: &str) {
    let servers: Vec<u64> = metadata_pids(cluster).into_iter().map(|pid| status(pid, "RssAnon") / MIB).collect();
    let clients = mounts.map(|mount| {
        let pid = cluster.mounted(mount).process().pid().expect("runs");
        (status(pid, "RssAnon") / MIB, status(pid, "VmHWM") / MIB)
    });
    note(&format!(
        "{when}: RssAnon of the metadata servers {servers:?} MiB; RssAnon and VmHWM of the mounts {clients:?} MiB"
    ));
}

/// Lists a directory. Returns which of the first `count` numbers were seen with which inode, and all other names.
fn list(at: &Path, count: u64) -> (Vec<u64>, BTreeSet<String>) {
    let (mut inodes, mut others) = (vec![0; count as usize], BTreeSet::new());
    for entry in read_dir(at).expect("opened") {
        let entry = entry.expect("listed");
        let name = entry.file_name().into_string().expect("text");
        match name.strip_prefix('f').map(|number| number.parse::<usize>().expect("a number")) {
            Some(number) => {
                assert_eq!(std::mem::replace(&mut inodes[number], entry.ino()), 0, "{name} is listed twice");
            }
            None => assert!(others.insert(name.clone()), "{name} is listed twice"),
        }
    }
    (inodes, others)
}

/// Says so when it goes.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_directory_of_very_many_entries_is_listed_whole_while_it_changes() {
    let name = "a_directory_of_very_many_entries_is_listed_whole_while_it_changes";
    if !can_mount(name, &[]) {
        return;
    }
    let count = entries();
    let disk = rustix::fs::statvfs(std::env::temp_dir()).expect("a file system");
    if disk.f_bavail * disk.f_frsize < count * ENTRY_BYTES {
        return skip(
            name,
            &format!("{count} entries take {} GiB of {:?}", (count * ENTRY_BYTES) >> 30, std::env::temp_dir()),
        );
    }
    let mut cluster = Cluster::start(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("healthy");
    let mounts = [cluster.mount().expect("mounted"), cluster.mount().expect("mounted again")];
    let [here, there] = mounts.map(|mount| cluster.mounted(mount).path().join("d"));
    std::fs::create_dir(&here).expect("made");
    let at = |worker: u64| if worker.is_multiple_of(2) { &here } else { &there };
    by_all("entries made", count, |worker, n| make_node(&at(worker).join(format!("f{n}"))));
    tell_memory(&mut cluster, mounts, "all made");

    // One host lists, and the other makes and removes names meanwhile, each of them once.
    let (listed, begun) = (AtomicBool::new(false), Instant::now());
    let (inodes, passing) = std::thread::scope(|scope| {
        let passing = scope.spawn(|| {
            let mut number = 0;
            while !listed.load(Ordering::Relaxed) {
                make_node(&here.join(format!("x{number}")));
                if number >= 10 {
                    std::fs::remove_file(here.join(format!("x{}", number - 10))).expect("removed");
                }
                number += 1;
            }
            number
        });
        let found = {
            // Also when it panics: the other one waits for it.
            let _ended = Ended(&listed);
            list(&there, count)
        };
        (found.0, passing.join().expect("makes names"))
    });
    note(&format!("listed in {:.1} s, while {passing} names came and went", begun.elapsed().as_secs_f64()));
    assert_eq!(inodes.iter().position(|inode| *inode == 0), None, "an entry was not listed");
    tell_memory(&mut cluster, mounts, "listed");
    let expected: BTreeSet<String> = (passing.max(10) - 10..passing).map(|n| format!("x{n}")).collect();
    let (_, others) = list(&here, count);
    assert_eq!(others, expected, "what came and went");

    let mut prng = Prng::new(count);
    let begun = Instant::now();
    for _ in 0..1000 {
        let n = prng.below(count);
        let found = std::fs::metadata(there.join(format!("f{n}"))).expect("it is there").ino();
        assert_eq!(found, inodes[n as usize], "f{n} is another file");
        std::fs::metadata(there.join(format!("g{n}"))).expect_err("it is not there");
    }
    note(&format!("2000 looked up in {:.2} s", begun.elapsed().as_secs_f64()));
    by_all("entries removed", count, |worker, n| {
        std::fs::remove_file(at(worker).join(format!("f{n}"))).expect("removed")
    });
    let begun = Instant::now();
    for name in list(&there, count).1 {
        std::fs::remove_file(there.join(name)).expect("removed");
    }
    std::fs::remove_dir(&here).expect("it is empty");
    note(&format!("what was left was listed and removed in {:.1} s", begun.elapsed().as_secs_f64()));
    tell_memory(&mut cluster, mounts, "all removed");
    cluster.admin(&["fsck"]).expect("clean");
    mounts.into_iter().for_each(|mount| cluster.mounted(mount).unmount().expect("unmounts"));
}
