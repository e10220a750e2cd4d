//! Disks and nodes that are slow, or fail in their own ways, on demand: one member of a pool must not decide how fast the others are.

use anyhow::{Context, Result, bail, ensure};
use holdfast_tests::load::Load;
use holdfast_tests::{Cluster, Options, can_inject_faults, note, until};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
const FILES: usize = 64;
const FILE_BYTES: usize = 64 << 10;
const BLOCK: usize = 4096;
/// Acknowledged writes, and reads, over which a rate is taken.
const WRITES: u64 = 150;
const READS: u64 = 300;

fn options() -> Options {
    Options { faults: true, ..Options::default() }
}

fn content(number: usize) -> Vec<u8> {
    (0..FILE_BYTES).map(|at| (at / 512 * 7 + number) as u8).collect()
}

fn write_files(at: &Path) {
    std::fs::create_dir(at.join("files")).expect("made");
    for number in 0..FILES {
        let path = at.join(format!("files/{number}"));
        std::fs::write(&path, content(number)).expect("written");
        File::open(&path).and_then(|file| file.sync_all()).expect("synced");
    }
}

/// What is in the kernel's memory of this host, and of all who share it, is read from the servers again.
fn forget_pages() {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "1").expect("root may");
}

fn check_files(at: &Path) {
    forget_pages();
    for number in 0..FILES {
        let read = std::fs::read(at.join(format!("files/{number}"))).expect("readable");
        assert!(read == content(number), "file {number}");
    }
}

/// Readers at work, past all memory of this host.
struct Readers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Readers {
    fn start(at: &Path) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let read = |thread: usize| {
            let (stop, done, at): (_, _, PathBuf) = (Arc::clone(&stop), Arc::clone(&done), at.join("files"));
            std::thread::spawn(move || {
                for round in thread.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let number = round * 5 % FILES;
                    let file = OpenOptions::new()
                        .read(true)
                        .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
                        .open(at.join(number.to_string()))?;
                    let offset = round * 3 % (FILE_BYTES / BLOCK) * BLOCK;
                    let mut block = vec![0; BLOCK];
                    file.read_exact_at(&mut block, offset as u64)?;
                    ensure!(block == content(number)[offset..offset + BLOCK], "file {number} at {offset}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        let threads = (0..2).map(read).collect();
        Self { stop, done, threads }
    }

    fn wait_for(&self, count: u64) -> Result<()> {
        let goal = self.done.load(Ordering::Relaxed) + count;
        until(&format!("{count} more reads"), LIMIT, || {
            ensure!(!self.threads.iter().any(JoinHandle::is_finished), "a reader has ended");
            let now = self.done.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { bail!("{now} of {goal}") }
        })
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no panic").expect("reads never fail");
        }
    }
}

/// Writes and reads per second.
fn rates(label: &str, load: &Load, readers: &Readers) {
    let begun = Instant::now();
    load.wait_for(WRITES).expect("acknowledged");
    let writes = WRITES as f64 / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    readers.wait_for(READS).expect("read");
    let reads = READS as f64 / begun.elapsed().as_secs_f64();
    note(&format!("{label}: {writes:.0} durable writes/s, {reads:.0} reads/s"));
}

fn node(status: &Value, id: u64) -> Result<&Value> {
    let nodes = status["storage"].as_array().context("storage nodes")?;
    nodes.iter().find(|node| node["id"] == id).with_context(|| format!("no storage node {id}: {status}"))
}

fn count(status: &Value, id: u64, key: &str) -> Result<u64> {
    node(status, id)?[key].as_u64().with_context(|| format!("no {key} of {id}: {status}"))
}

/// The state of a node's disk.
fn disk(status: &Value, id: u64, disk: u64) -> Result<&Value> {
    let disks = node(status, id)?["disks"].as_array().context("disks")?;
    disks.iter().find(|found| found["id"] == disk).with_context(|| format!("no disk {disk}: {status}"))
}

fn names(status: &Value, words: &[&str]) -> Result<()> {
    let reasons = status["reasons"].as_array().context("reasons")?;
    let says = |reason: &&Value| words.iter().all(|word| reason.as_str().is_some_and(|text| text.contains(word)));
    ensure!(reasons.iter().any(|reason| says(&reason)), "nothing says {words:?}: {status}");
    Ok(())
}

/// All that is there is as it should be, and every node leads its part.
fn wait_whole(cluster: &Cluster, nodes: u64) {
    until("all as it was", LIMIT, || {
        let status = cluster.status()?;
        ensure!(status["healthy"] == true, "not healthy: {status}");
        for id in 1..=nodes {
            ensure!(count(&status, id, "primary_of")? > 0, "{id} leads nothing: {status}");
        }
        Ok(())
    })
    .expect("all as it was");
}

fn end(mut cluster: Cluster, mounts: usize, load: Load) {
    let report = load.stop();
    assert_eq!((report.errors(), report.missing()), (Vec::new(), Vec::new()));
    let fsck = cluster.admin(&["fsck", "--json"]).expect("clean");
    assert!(fsck.contains("\"clean\": true"), "{fsck}");
    assert!(!cluster.log_tails().contains("panicked"), "{}", cluster.log_tails());
    (0..mounts).for_each(|mount| cluster.mounted(mount).unmount().expect("unmounts"));
}

/// A cluster on two mounts: nobody keeps anything in memory for long while others are there, so that what readers read comes from the servers.
fn two_mounts(options: &Options) -> (Cluster, PathBuf, PathBuf) {
    let mut cluster = Cluster::start(options).expect("a healthy cluster");
    let mounts = [0, 1].map(|_| cluster.mount().expect("mounted"));
    let [writes, reads] = mounts.map(|mount| cluster.mounted(mount).path().to_path_buf());
    write_files(&writes);
    (cluster, writes, reads)
}

/// One of three is slow in a way that holds up writers: it is named, leads nothing, and is done without; then all returns by itself.
fn one_of_three_is_slow(label: &str, plan: &str, said: &str) {
    let (cluster, at, read_at) = two_mounts(&options());
    let (load, readers) = (Load::start(&at, "load").expect("starts"), Readers::start(&read_at));
    wait_whole(&cluster, 3);
    rates(&format!("{label}, before"), &load, &readers);
    cluster.fail("storage-2", plan).expect("planned");
    let mut seen = Vec::new();
    let mut see = |what: &'static str, is_so: bool| {
        if is_so && !seen.contains(&what) {
            seen.push(what);
        }
    };
    until("the slow one is done without", LIMIT, || {
        let status = cluster.status()?;
        let (leads, in_sync) = (count(&status, 2, "primary_of")?, count(&status, 2, "in_sync_of")?);
        let named = names(&status, &["disk 1 of storage node 2", "is slow", said]);
        see("named", named.is_ok());
        see("leads nothing", leads == 0);
        see("holds nobody up", in_sync == 0);
        named?;
        ensure!(leads == 0 && in_sync == 0, "it leads {leads} and is in sync for {in_sync}: {status}");
        for id in [1, 3] {
            ensure!(disk(&status, id, 1)?["state"] == "up", "{id} is well: {status}");
        }
        Ok(())
    })
    .expect("the slow one is done without");
    assert_eq!(seen, ["named", "leads nothing", "holds nobody up"], "in this order");
    assert_eq!(cluster.status().expect("a status")["groups"]["waiting"], 0, "two are enough");
    rates(&format!("{label}, while storage-2 is slow"), &load, &readers);
    cluster.fail("storage-2", "").expect("lifted");
    wait_whole(&cluster, 3);
    assert_eq!(count(&cluster.status().expect("a status"), 2, "syncing_of").ok(), Some(0));
    rates(&format!("{label}, afterwards"), &load, &readers);
    readers.stop();
    check_files(&read_at);
    end(cluster, 2, load);
}

#[test]
fn a_slow_disk_leads_nothing_and_holds_nobody_up() {
    if can_inject_faults("a_slow_disk_leads_nothing_and_holds_nobody_up", &[]) {
        let plan = "[disk]\nread-delay = \"100 ms\"\nwrite-delay = \"100 ms\"\nsync-delay = \"100 ms\"\n";
        one_of_three_is_slow("a slow disk", plan, "takes");
    }
}

#[test]
fn a_slow_node_leads_nothing_and_holds_nobody_up() {
    if can_inject_faults("a_slow_node_leads_nothing_and_holds_nobody_up", &[]) {
        one_of_three_is_slow("a slow node", "[connection]\ndelay = \"100 ms\"\n", "its node's answers take");
    }
}

#[test]
fn a_disk_with_slow_reads_alone_keeps_its_copies_and_others_read() {
    if !can_inject_faults("a_disk_with_slow_reads_alone_keeps_its_copies_and_others_read", &[]) {
        return;
    }
    let (cluster, at, read_at) = two_mounts(&options());
    let (load, readers) = (Load::start(&at, "load").expect("starts"), Readers::start(&read_at));
    wait_whole(&cluster, 3);
    cluster.fail("storage-3", "[disk]\nread-delay = \"100 ms\"\n").expect("planned");
    until("others lead its groups", LIMIT, || {
        let status = cluster.status()?;
        names(&status, &["disk 1 of storage node 3", "a read takes"])?;
        ensure!(count(&status, 3, "primary_of")? == 0, "it still leads: {status}");
        Ok(())
    })
    .expect("others lead its groups");
    rates("slow reads, of others by now", &load, &readers);
    let status = cluster.status().expect("a status");
    assert_eq!(status["groups"]["degraded"], 0, "no copy is given up for slow reads: {status}");
    cluster.fail("storage-3", "").expect("lifted");
    wait_whole(&cluster, 3);
    readers.stop();
    check_files(&read_at);
    end(cluster, 2, load);
}

/// A disk fails in some way: it is named, its node goes on with the other one, nothing is lost, and a new start brings it back.
fn one_disk_fails(plan: &str, provoke: impl Fn(&Path)) {
    let (mut cluster, at, read_at) = two_mounts(&Options { disks: 2, ..options() });
    let load = Load::start(&at, "load").expect("starts");
    wait_whole(&cluster, 3);
    cluster.fail("storage-1", plan).expect("planned");
    until("the disk is out, and its node is not", LIMIT, || {
        provoke(&read_at);
        let status = cluster.status()?;
        ensure!(disk(&status, 1, 2)?["state"] == "failed", "not failed: {status}");
        ensure!(disk(&status, 1, 1)?["state"] == "up" && node(&status, 1)?["state"] == "up", "the node: {status}");
        ensure!(count(&status, 1, "primary_of")? > 0, "it leads with the other disk: {status}");
        let notes = status["notes"].to_string();
        ensure!(notes.contains("disk 2 of storage node 1") && notes.contains("has failed"), "not named: {status}");
        Ok(())
    })
    .expect("the disk is out, and its node is not");
    load.wait_for(WRITES).expect("goes on");
    check_files(&read_at);
    cluster.fail("storage-1", "").expect("lifted");
    cluster.server("storage-1").expect("ours").terminate(LIMIT).expect("stops");
    cluster.restart("storage-1").expect("starts again");
    wait_whole(&cluster, 3);
    check_files(&read_at);
    end(cluster, 2, load);
}

#[test]
fn a_sync_that_fails_takes_out_its_disk_and_not_its_node() {
    if can_inject_faults("a_sync_that_fails_takes_out_its_disk_and_not_its_node", &[]) {
        one_disk_fails("[disk]\nids = [2]\nsync-error = 1.0\n", |_| {});
    }
}

#[test]
fn a_write_that_fails_takes_out_its_disk_and_not_its_node() {
    if can_inject_faults("a_write_that_fails_takes_out_its_disk_and_not_its_node", &[]) {
        one_disk_fails("[disk]\nids = [2]\nwrite-error = 1.0\n", |_| {});
    }
}

#[test]
fn a_disk_that_refuses_every_read_is_out_and_readers_notice_nothing() {
    if can_inject_faults("a_disk_that_refuses_every_read_is_out_and_readers_notice_nothing", &[]) {
        one_disk_fails("[disk]\nids = [2]\nread-error = 1.0\n", check_files);
    }
}

#[test]
fn reads_that_fail_now_and_then_are_answered_by_others() {
    if !can_inject_faults("reads_that_fail_now_and_then_are_answered_by_others", &[]) {
        return;
    }
    let (cluster, at, read_at) = two_mounts(&options());
    let load = Load::start(&at, "load").expect("starts");
    cluster.fail("storage-1", "seed = 3\n[disk]\nread-error = 0.2\n").expect("planned");
    (0..5).for_each(|_| check_files(&read_at));
    let log = std::fs::read_to_string(cluster.folder().join("storage-1.log")).expect("a log");
    assert!(log.contains("local read failed"), "no read failed, so nothing was tried");
    assert_eq!(disk(&cluster.status().expect("a status"), 1, 1).expect("there")["state"], "up");
    cluster.fail("storage-1", "").expect("lifted");
    wait_whole(&cluster, 3);
    end(cluster, 2, load);
}

#[test]
fn a_disk_whose_directory_vanishes_is_out_and_comes_back_empty_without_harm() {
    if !can_inject_faults("a_disk_whose_directory_vanishes_is_out_and_comes_back_empty_without_harm", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&options()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    write_files(&at);
    let load = Load::start(&at, "load").expect("starts");
    wait_whole(&cluster, 3);
    std::fs::remove_dir_all(cluster.folder().join("cluster/storage-2/data")).expect("removed");
    until("the disk is out", LIMIT, || {
        let status = cluster.status()?;
        ensure!(disk(&status, 2, 1)?["state"] == "failed", "not failed: {status}");
        ensure!(count(&status, 2, "in_sync_of")? == 0, "still a member: {status}");
        Ok(())
    })
    .expect("the disk is out");
    load.wait_for(WRITES).expect("goes on");
    // All of it loses power: whoever comes back empty must not count as one who was there, though it is in its first life again.
    for name in ["storage-1", "storage-2", "storage-3"] {
        cluster.server(name).expect("ours").kill().expect("killed");
    }
    cluster.restart("storage-2").expect("starts with an empty disk");
    cluster.restart("storage-1").expect("starts");
    cluster.restart("storage-3").expect("starts");
    wait_whole(&cluster, 3);
    check_files(&at);
    end(cluster, 1, load);
}

#[test]
fn a_disk_that_was_wiped_while_its_node_was_down_is_caught_up() {
    if !can_inject_faults("a_disk_that_was_wiped_while_its_node_was_down_is_caught_up", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&options()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    write_files(&at);
    let load = Load::start(&at, "load").expect("starts");
    // In its first life, as the views list it, and before anybody takes it out of them.
    cluster.server("storage-1").expect("ours").kill().expect("killed");
    std::fs::remove_dir_all(cluster.folder().join("cluster/storage-1/data")).expect("wiped");
    cluster.restart("storage-1").expect("starts with an empty disk");
    wait_whole(&cluster, 3);
    check_files(&at);
    end(cluster, 1, load);
}

#[test]
fn a_file_system_that_turns_read_only_takes_out_its_disk() {
    let name = "a_file_system_that_turns_read_only_takes_out_its_disk";
    if !can_inject_faults(name, &["losetup", "mkfs.ext4"]) {
        return;
    }
    let small_disks = Some((vec!["storage-3".to_owned()], 512 << 20));
    let mut cluster = Cluster::start(&Options { small_disks, ..options() }).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    write_files(&at);
    let load = Load::start(&at, "load").expect("starts");
    wait_whole(&cluster, 3);
    // What ext4 does when it meets an error that it cannot go on from.
    let disk_at = cluster.folder().join("cluster/storage-3");
    let line = format!("mount -o remount,abort {}", holdfast_tests::command::quote(&disk_at));
    holdfast_tests::command::shell(&line, LIMIT).expect("aborted");
    until("the disk is out, and its process lives", LIMIT, || {
        let status = cluster.status()?;
        ensure!(disk(&status, 3, 1)?["state"] == "failed", "not failed: {status}");
        ensure!(node(&status, 3)?["state"] == "up" && count(&status, 3, "in_sync_of")? == 0, "{status}");
        Ok(())
    })
    .expect("the disk is out, and its process lives");
    load.wait_for(WRITES).expect("goes on");
    check_files(&at);
    let report = load.stop();
    assert_eq!((report.errors(), report.missing()), (Vec::new(), Vec::new()));
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn what_is_released_knows_no_faults() {
    if !can_inject_faults("what_is_released_knows_no_faults", &[]) {
        return;
    }
    let run = |binary: PathBuf, plan: &str| {
        let folder = tempfile::tempdir().expect("a folder");
        let (config, file) = (folder.path().join("config.toml"), folder.path().join("plan.toml"));
        std::fs::write(&file, plan).expect("written");
        let mut command = std::process::Command::new(binary);
        command.args(["storage", "--config"]).arg(config).arg("--fault-plan").arg(file);
        holdfast_tests::command::run(&mut command, LIMIT).expect("ends")
    };
    let released = run(holdfast_tests::command::holdfast().expect("built"), "");
    assert!(!released.success && released.stderr.contains("unexpected argument '--fault-plan'"), "{}", released.stderr);
    let faulty = holdfast_tests::command::holdfast_with_faults().expect("built");
    let refused = run(faulty, "[disk]\nraed-delay = \"1 ms\"\n");
    assert!(
        !refused.success
            && refused.stderr.contains("plan.toml:2: unknown key \"raed-delay\"; did you mean \"read-delay\"?"),
        "{}",
        refused.stderr
    );
}
