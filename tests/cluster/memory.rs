//! What servers and clients keep in memory has bounds: more files, or larger ones, do not take more of it.

use crate::membership::free_address;
use holdfast_tests::{Cluster, Options, Up, can_mount, note};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(600);
/// How often memory is looked at while something goes on.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) const MIB: u64 = 1 << 20;
/// Files of one directory.
const PER_DIRECTORY: u64 = 500;
/// Who makes files at the same time.
const WRITERS: u64 = 4;

/// A line of `/proc/PID/status`, in bytes.
pub(crate) fn status(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("a field of the kernel's");
    let kib: u64 = line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").trim().parse().expect("a number");
    kib * 1024
}

fn make_files(at: &Path, range: std::ops::Range<u64>) {
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let directories = range.start / PER_DIRECTORY..range.end / PER_DIRECTORY;
            scope.spawn(move || {
                for directory in directories.filter(|directory| directory % WRITERS == writer) {
                    let path = at.join(format!("d{directory}"));
                    std::fs::create_dir(&path).expect("made");
                    for file in 0..PER_DIRECTORY {
                        OpenOptions::new()
                            .write(true)
                            .create_new(true)
                            .open(path.join(format!("f{file}")))
                            .expect("made");
                    }
                }
            });
        }
    });
}

/// The metadata servers that run.
pub(crate) fn metadata_pids(cluster: &mut Cluster) -> Vec<i32> {
    let servers = cluster.servers().iter();
    servers.filter(|server| server.name().starts_with("metadata-")).filter_map(|server| server.pid()).collect()
}

/// What each metadata server has of its own.
fn taken(cluster: &mut Cluster, what: &str) -> Vec<u64> {
    let bytes: Vec<u64> = metadata_pids(cluster).into_iter().map(|pid| status(pid, "RssAnon")).collect();
    tell(&bytes, what);
    bytes
}

fn tell(bytes: &[u64], what: &str) {
    let mib: Vec<u64> = bytes.iter().map(|bytes| bytes / MIB).collect();
    note(&format!("{what}: RssAnon of the metadata servers {mib:?} MiB"));
}

/// The most that each metadata server has of its own while something goes on.
fn most_during(cluster: &mut Cluster, what: &str, work: impl FnOnce(&mut Cluster)) -> Vec<u64> {
    let pids = metadata_pids(cluster);
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = vec![0; pids.len()];
            while !done.load(Ordering::Relaxed) {
                for (most, pid) in most.iter_mut().zip(&pids) {
                    *most = status(*pid, "RssAnon").max(*most);
                }
                std::thread::sleep(LOOK);
            }
            most
        });
        work(cluster);
        done.store(true, Ordering::Relaxed);
        watcher.join().expect("looks")
    });
    tell(&most, what);
    most
}

/// Runs a program in a directory.
fn run(program: &str, arguments: &[String], at: &Path) {
    let status = Command::new(program).args(arguments).current_dir(at).stdout(Stdio::null()).status();
    assert!(status.expect("it runs").success(), "{program}");
}

/// Fails where a server takes a fifth more than `before`, or 300 MiB. In a short run caches and logs have not filled yet, and what is
/// asked of it is that nothing is kept of each file: 100 MiB with a small cache, of which it takes about half.
fn check(before: &[u64], after: &[u64], what: &str) {
    let most = before.iter().copied().max().unwrap_or(0);
    let bound = if holdfast_tests::report::long() { (most + most / 5).min(300 * MIB) } else { 100 * MIB };
    for bytes in after {
        assert!(*bytes <= bound, "{what}: {} MiB, {} before", bytes / MIB, most / MIB);
    }
}

#[test]
fn three_times_as_many_files_take_no_more_memory_of_a_metadata_server() {
    if !can_mount("three_times_as_many_files_take_no_more_memory_of_a_metadata_server", &["ls", "rm"]) {
        return;
    }
    // Caches in proportion, or a short run would see them fill.
    let (files, cache) = if holdfast_tests::report::long() { (1_000_000, "64 MiB") } else { (12_000, "2 MiB") };
    let mut cluster = Cluster::prepare(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("prepared");
    for n in 1..=3 {
        let config = cluster.folder().join(format!("cluster/metadata-{n}/config.toml"));
        let text = std::fs::read_to_string(&config).expect("read");
        let changed = text.replace("cache = \"64 MiB\"", &format!("cache = \"{cache}\""));
        assert!(changed.contains(cache), "{text}");
        std::fs::write(&config, changed).expect("written");
    }
    cluster.start_all().expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let begun = Instant::now();
    make_files(&at, 0..files);
    let before = taken(&mut cluster, &format!("{files} files"));
    make_files(&at, files..3 * files);
    note(&format!("{} files were made in {:.0} s", 3 * files, begun.elapsed().as_secs_f64()));
    let after = taken(&mut cluster, &format!("{} files", 3 * files));
    check(&before, &after, "three times as many");

    let list = |_: &mut Cluster| run("ls", &["-lR".into(), ".".into()], &at);
    check(&before, &most_during(&mut cluster, "during ls -lR", list), "ls -lR");
    for n in 1..=3 {
        cluster.restart(&format!("metadata-{n}")).expect("comes back");
    }
    let restarted = taken(&mut cluster, "after a restart");
    check(&before, &restarted, "a restart");
    // A server whose disk is gone gets all of it as a snapshot, under a new number.
    let leader = cluster.leader_of(1).expect("somebody leads");
    let lost = (1..=3).find(|n| format!("metadata-{n}") != leader).expect("two follow");
    cluster.server(&format!("metadata-{lost}")).expect("ours").kill().expect("killed");
    std::fs::remove_dir_all(cluster.folder().join(format!("cluster/metadata-{lost}/data"))).expect("wiped");
    cluster.forget(&format!("metadata-{lost}"));
    let snapshot = most_during(&mut cluster, "while a snapshot is sent", |cluster| {
        cluster.admin(&["metadata", "replace", &lost.to_string(), "4", &free_address()]).expect("on record");
        cluster.start_more("metadata-4", "config.toml").expect("joins");
        cluster.wait_healthy(LIMIT).expect("whole again");
    });
    check(&before, &snapshot, "sending a snapshot");
    let joined = taken(&mut cluster, "with the new server");
    check(&before, &joined, "taking a snapshot");
    let third: Vec<String> = (0..files / PER_DIRECTORY).map(|directory| format!("d{directory}")).collect();
    let remove = |_: &mut Cluster| run("rm", &[vec!["-rf".into()], third].concat(), &at);
    check(&before, &most_during(&mut cluster, "during rm -rf of a third", remove), "rm -rf");
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn a_large_file_takes_no_more_memory_of_the_client_than_its_buffers() {
    if !can_mount("a_large_file_takes_no_more_memory_of_the_client_than_its_buffers", &[]) {
        return;
    }
    let bytes = if holdfast_tests::report::long() { 4096 * MIB } else { 1024 * MIB };
    let mut cluster = Cluster::start(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let path = cluster.mounted(mount).path().join("f");
    let part: Vec<u8> = (0..MIB).map(|at| (at / 509) as u8).collect();
    let mut file = File::create(&path).expect("made");
    for _ in 0..bytes / MIB {
        file.write_all(&part).expect("written");
    }
    file.sync_all().expect("synced");
    // The kernel is not to answer from what it was just given.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
    drop(file);
    let mut file = File::open(&path).expect("opens");
    let mut found = vec![0; MIB as usize];
    for _ in 0..bytes / MIB {
        file.read_exact(&mut found).expect("read");
        assert!(found == part, "other bytes");
    }
    drop(file);
    let pid = cluster.mounted(mount).process().pid().expect("runs");
    let most = status(pid, "VmHWM");
    note(&format!("{} MiB written and read: VmHWM of the client {} MiB", bytes / MIB, most / MIB));
    assert!(most < 600 * MIB, "{} MiB", most / MIB);
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn a_cluster_in_one_process_that_has_nothing_to_do_is_small() {
    if !can_mount("a_cluster_in_one_process_that_has_nothing_to_do_is_small", &[]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    let pid = up.process().pid().expect("runs");
    let bytes = status(pid, "VmRSS");
    note(&format!("idle: VmRSS {} MiB", bytes / MIB));
    assert!(bytes < 200 * MIB, "{} MiB", bytes / MIB);
}
