//! All metadata servers are lost: the cluster goes on from a backup, with the storage nodes that it had. And one of them is damaged.

use crate::membership::free_address;
use holdfast_tests::command::{holdfast, run, shell};
use holdfast_tests::load::Load;
use holdfast_tests::{Cluster, Options, can_mount};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK_BYTES: usize = 4096;

/// Writes a file, durably.
fn write(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("created");
    file.write_all(bytes).expect("written");
    file.sync_all().expect("synced");
}

fn content(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 13) as u8 ^ (at >> 11) as u8 ^ seed).collect()
}

/// A file that grows by a block at a time, each synced, until it is told to stop or cannot.
struct Writer {
    stop: Arc<AtomicBool>,
    synced: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let file = File::create(path).expect("created");
        file.sync_all().expect("synced");
        File::open(path.parent().expect("in a folder")).and_then(|folder| folder.sync_all()).expect("synced");
        let (stop, synced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stops, counts) = (Arc::clone(&stop), Arc::clone(&synced));
        let thread = std::thread::spawn(move || {
            while !stops.load(Ordering::Relaxed) {
                let number = counts.load(Ordering::Relaxed);
                let written = file.write_all_at(&block(number), number * BLOCK_BYTES as u64);
                if written.and_then(|()| file.sync_all()).is_err() {
                    return;
                }
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, synced, thread }
    }

    fn synced(&self) -> u64 {
        self.synced.load(Ordering::Relaxed)
    }

    fn wait_for(&self, more: u64) {
        let goal = self.synced() + more;
        holdfast_tests::until("more synced blocks", LIMIT, || {
            anyhow::ensure!(self.synced() >= goal, "{} of {goal}", self.synced());
            Ok(())
        })
        .expect("it goes on");
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("ends");
    }
}

fn block(number: u64) -> Vec<u8> {
    let mut bytes = content(number as u8, BLOCK_BYTES);
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// What `admin fsck` finds.
fn fsck(cluster: &Cluster) -> Value {
    cluster.admin_json(&["fsck", "--json"], Duration::from_secs(240)).expect("it ends and answers").0
}

/// What `admin` says on standard error when it refuses.
fn refusal(cluster: &Cluster, words: &[&str]) -> String {
    let mut command = Command::new(holdfast().expect("built"));
    command.args(["admin", "--cluster"]).arg(cluster.file()).args(words);
    let said = run(&mut command, Duration::from_secs(90)).expect("it ends");
    assert!(!said.success, "{words:?}: {}", said.stdout);
    said.stderr
}

/// The metadata servers' processes and directories are gone.
fn lose_all_metadata(cluster: &mut Cluster) {
    let folder = cluster.folder().join("cluster");
    for name in ["metadata-1", "metadata-2", "metadata-3"] {
        cluster.server(name).expect("ours").kill().expect("killed");
        std::fs::remove_dir_all(folder.join(name).join("data")).expect("destroyed");
    }
}

/// Files of before a backup.
struct Before {
    whole: Vec<(PathBuf, Vec<u8>)>,
    link: PathBuf,
}

impl Before {
    fn write(at: &Path) -> Self {
        std::fs::create_dir_all(at.join("folder/inner")).expect("made");
        let mut whole = Vec::new();
        for n in 0..40 {
            whole.push((at.join(format!("folder/f{n}")), content(n, 30_000 + usize::from(n))));
        }
        // More than one chunk, so more than one group.
        whole.push((at.join("folder/inner/large"), content(77, (9 << 20) + 5)));
        whole.push((at.join("empty"), Vec::new()));
        for (path, bytes) in &whole {
            write(path, bytes);
        }
        let link = at.join("folder/link");
        std::os::unix::fs::symlink("inner/large", &link).expect("linked");
        shell("sync", LIMIT).expect("synced");
        Self { whole, link }
    }

    fn check(&self) {
        for (path, bytes) in &self.whole {
            let found = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(found == *bytes, "{} is not as it was", path.display());
        }
        assert_eq!(std::fs::read_link(&self.link).expect("read"), Path::new("inner/large"));
    }
}

/// What comes after the backup: views that change, and files that do. The third storage node is down when this returns.
fn go_on_after_the_backup(cluster: &mut Cluster, at: &Path, writer: Writer) {
    cluster.server("storage-3").expect("ours").kill().expect("killed");
    writer.wait_for(20);
    writer.stop();
    // In place: a file that is truncated first gets a new content.
    let changed = OpenOptions::new().write(true).open(at.join("changed")).expect("opened");
    changed.write_all_at(&content(11, 100_000), 0).and_then(|()| changed.sync_all()).expect("changed");
    // Further than a session that was there at the backup may have been granted: that would be cut when the session is taken apart.
    let grown = OpenOptions::new().append(true).open(at.join("grown"));
    grown.and_then(|mut file| file.write_all(&content(3, 9 << 20)).and_then(|()| file.sync_all())).expect("grown");
    let chunks = |report: &Value| report["chunks"].as_u64().expect("a number");
    let all = chunks(&fsck(cluster));
    std::fs::remove_file(at.join("removed")).expect("removed");
    holdfast_tests::until("the two chunks of the file are gone", LIMIT, || {
        let report = fsck(cluster);
        anyhow::ensure!(chunks(&report) + 2 == all, "{all} before, now {report}");
        Ok(())
    })
    .expect("gone");
    write(&at.join("late"), &content(5, 6 << 20));
}

/// Writes the backup into the first server's directory and starts it, while the storage nodes wait; the others are gone.
fn restore(cluster: &mut Cluster, file: &str) {
    // The one that has missed what came last is back.
    cluster.server("storage-3").expect("ours").start().expect("started");
    let words = ["metadata", "restore", file, "--config", &config(cluster, 1)];
    let said = holdfast_tests::until("storage nodes listen", LIMIT, || cluster.admin(&words)).expect("restored");
    assert!(said.contains("goes on alone") && said.contains("knew it last"), "{said}");
    for name in ["metadata-2", "metadata-3"] {
        cluster.forget(name);
    }
    cluster.restart("metadata-1").expect("it leads alone");
    cluster.server("storage-3").expect("ours").wait_ready(LIMIT).expect("it is heard");
    cluster.wait_healthy(Duration::from_secs(120)).expect("whole again");
}

/// Contents changed in place are the newest; what was removed has its name and size again, and reads as zeros; what came later is not there.
fn check_what_came_after(cluster: &Cluster, now: &Path) {
    assert!(!now.join("late").exists());
    let removed = std::fs::read(now.join("removed")).expect("read");
    assert!(removed.len() == 5 << 20 && removed.iter().all(|byte| *byte == 0), "it is gone");
    assert_eq!(std::fs::read(now.join("grown")).expect("read"), content(3, 5000));
    let report = fsck(cluster);
    let findings = report["findings"].as_array().expect("a list").iter();
    let kinds: BTreeSet<&str> = findings.filter_map(|found| found["kind"].as_str()).collect();
    assert_eq!(kinds, BTreeSet::from(["length", "lost", "orphan-chunk"]), "{report}");
    assert_eq!(report["not_checked"], Value::Array(Vec::new()), "{report}");
}

/// It is a cluster like any other: new files, new servers, under load.
fn check_that_it_goes_on(cluster: &mut Cluster, now: &Path) {
    let load = Load::start(now, "load").expect("starts");
    load.wait_for(100).expect("acknowledged");
    for id in ["4", "5"] {
        cluster.admin(&["metadata", "add", id, &free_address()]).expect("on record");
        cluster.start_more(&format!("metadata-{id}"), "config.toml").expect("joins");
        cluster.wait_healthy(LIMIT).expect("whole again");
    }
    load.wait_for(100).expect("goes on");
    cluster.server("metadata-1").expect("ours").kill().expect("killed");
    load.wait_for(100).expect("the others go on");
    cluster.restart("metadata-1").expect("back");
    let report = load.stop();
    assert_eq!((report.errors(), report.missing()), (Vec::<String>::new(), Vec::<String>::new()));
    cluster.wait_healthy(LIMIT).expect("healthy");
}

#[test]
fn a_cluster_that_lost_its_metadata_servers_goes_on_from_a_backup() {
    if !can_mount("a_cluster_that_lost_its_metadata_servers_goes_on_from_a_backup", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let before = Before::write(&at);
    let more = [("changed", content(1, 100_000)), ("removed", content(2, 5 << 20)), ("grown", content(3, 5000))];
    more.iter().for_each(|(name, bytes)| write(&at.join(name), bytes));
    let writer = Writer::start(&at.join("written"));
    writer.wait_for(20);
    let (file, promised) = (cluster.folder().join("backup"), writer.synced());
    let file = file.to_string_lossy().into_owned();
    cluster.admin(&["metadata", "backup", &file]).expect("backed up");
    let verified = cluster.admin(&["metadata", "verify", &file]).expect("whole");
    assert!(verified.contains("whole:"), "{verified}");
    assert!(refusal(&cluster, &["metadata", "backup", &file]).contains("exists"));
    writer.wait_for(20);
    go_on_after_the_backup(&mut cluster, &at, writer);
    let said = refusal(&cluster, &["metadata", "restore", &file, "--config", &config(&cluster, 1)]);
    assert!(said.contains("not empty"), "{said}");
    lose_all_metadata(&mut cluster);
    cluster.mounted(mount).kill().expect("killed");
    restore(&mut cluster, &file);

    let second = cluster.mount().expect("mounted again");
    let now = cluster.mounted(second).path().to_path_buf();
    let moved = |path: &Path| now.join(path.strip_prefix(&at).expect("below"));
    let before = Before {
        whole: before.whole.into_iter().map(|(path, bytes)| (moved(&path), bytes)).collect(),
        link: moved(&before.link),
    };
    before.check();
    assert_eq!(std::fs::read(now.join("changed")).expect("read"), content(11, 100_000));
    let written = std::fs::read(now.join("written")).expect("read");
    assert!(written.len() >= promised as usize * BLOCK_BYTES, "{} bytes, {promised} blocks", written.len());
    for (number, found) in written.chunks(BLOCK_BYTES).enumerate().take(promised as usize) {
        assert!(found == block(number as u64), "block {number}");
    }
    check_what_came_after(&cluster, &now);
    check_that_it_goes_on(&mut cluster, &now);
    before.check();
    cluster.mounted(second).unmount().expect("unmounts");
}

fn config(cluster: &Cluster, id: u64) -> String {
    cluster.folder().join(format!("cluster/metadata-{id}/config.toml")).to_string_lossy().into_owned()
}

#[test]
fn a_backup_that_is_damaged_or_another_clusters_is_not_restored_and_a_live_cluster_is_not_overwritten() {
    let mut cluster = Cluster::start(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("healthy");
    let file = cluster.folder().join("backup");
    let word = file.to_string_lossy().into_owned();
    cluster.admin(&["metadata", "backup", &word]).expect("backed up");
    let bytes = std::fs::read(&file).expect("read");
    let binary = holdfast().expect("built");
    let line = format!("{} admin --cluster {} metadata", binary.display(), cluster.file().display());
    let piped = shell(&format!("{line} backup - 2>/dev/null | cat > {word}-piped; {line} verify {word}-piped"), LIMIT);
    assert!(piped.as_ref().is_ok_and(|said| said.contains("whole:")), "{piped:?}");
    // A majority is lost: what the last one has is taken on request alone, and called what it is.
    for name in ["metadata-2", "metadata-3"] {
        cluster.server(name).expect("ours").kill().expect("killed");
    }
    let survivor = format!("{word}-of-1");
    let said = refusal(&cluster, &["metadata", "backup", &survivor]);
    assert!(said.contains("--unconfirmed ID") && !Path::new(&survivor).exists(), "{said}");
    cluster.admin(&["metadata", "backup", &survivor, "--unconfirmed", "1"]).expect("taken");
    let said = shell(&format!("{line} verify {survivor}"), LIMIT).expect("whole");
    assert!(said.contains("not confirmed") && said.contains("whole:"), "{said}");
    // Prepared for a server that would take its place, while it runs.
    let other = cluster.folder().join("cluster/other.toml");
    let text = std::fs::read_to_string(config(&cluster, 1)).expect("read");
    std::fs::write(&other, text.replace("\"data\"", "\"other-data\"")).expect("written");
    let other_word = other.to_string_lossy().into_owned();
    let restore = ["metadata", "restore", &word, "--config", &other_word];
    let said = refusal(&cluster, &restore);
    assert!(said.contains("metadata server 1 runs") && said.contains("--unconfirmed 1"), "{said}");
    cluster.server("metadata-1").expect("ours").terminate(LIMIT).expect("stopped");
    for (change, wanted) in [
        (bytes[..bytes.len() / 2].to_vec(), "cut off"),
        (
            bytes.iter().enumerate().map(|(at, byte)| if at == bytes.len() / 2 { byte ^ 4 } else { *byte }).collect(),
            "damaged",
        ),
    ] {
        std::fs::write(&file, change).expect("written");
        let said = refusal(&cluster, &restore);
        assert!(said.contains(wanted) && !cluster.folder().join("cluster/other-data").exists(), "{said}");
    }
    std::fs::write(&file, &bytes).expect("written");
    cluster.server("storage-1").expect("ours").kill().expect("killed");
    let said = refusal(&cluster, &restore);
    assert!(said.contains("no answer from storage nodes 1") && said.contains("--without-storage"), "{said}");
}

/// Flips bytes all over the files below a directory that hold something; how many were.
fn flip(folder: &Path) -> usize {
    let mut flipped = 0;
    for entry in std::fs::read_dir(folder).expect("listed").flatten() {
        let path = entry.path();
        if path.is_dir() {
            flipped += flip(&path);
            continue;
        }
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
        let mut bytes = std::fs::read(&path).expect("read");
        for piece in bytes.chunks_mut(512).filter(|piece| piece.iter().any(|byte| *byte != 0)) {
            let at = piece.iter().position(|byte| *byte != 0).expect("there is one");
            piece[at] ^= 0x40;
            flipped += 1;
        }
        file.write_all_at(&bytes, 0).expect("damaged");
    }
    flipped
}

#[test]
fn a_metadata_server_with_a_damaged_log_or_table_says_what_to_do_and_that_brings_it_back() {
    let name = "a_metadata_server_with_a_damaged_log_or_table_says_what_to_do_and_that_brings_it_back";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let before = Before::write(&at);
    let load = Load::start(&at, "load").expect("starts");
    load.wait_for(100).expect("acknowledged");
    for (id, new, part, what) in
        [(2, "4", "shard-1/log", "log of shard1"), (3, "5", "shard-1/table", "table of shard1")]
    {
        let (lost, old) = (format!("metadata-{id}"), id.to_string());
        cluster.server(&lost).expect("ours").kill().expect("killed");
        let folder = cluster.folder().join("cluster").join(&lost);
        assert!(flip(&folder.join("data").join(part)) > 10, "there is something to damage");
        let server = cluster.server(&lost).expect("ours");
        server.start().expect("starts");
        assert!(!server.wait_ended(LIMIT).expect("it does not go on").success());
        let said = server.log_tail();
        let line = said.lines().rfind(|line| line.contains("holdfast: ")).unwrap_or_default();
        assert!(line.contains(what) && line.contains("damaged"), "{said}");
        assert!(line.contains(&format!("holdfast admin metadata replace {id} ")), "{said}");
        load.wait_for(30).expect("the others go on");
        // The remedy, with the address that is free again.
        let table: toml::Table =
            std::fs::read_to_string(folder.join("config.toml")).expect("read").parse().expect("TOML");
        let address = table["address"].as_str().expect("an address");
        cluster.admin(&["metadata", "replace", &old, new, address]).expect("on record");
        cluster.forget(&lost);
        cluster.start_more(&format!("metadata-{new}"), "config.toml").expect("joins");
        cluster.wait_healthy(LIMIT).expect("whole again");
        load.wait_for(30).expect("goes on");
    }
    // The two new ones are a majority: they have everything.
    cluster.server("metadata-1").expect("ours").kill().expect("killed");
    load.wait_for(50).expect("the new ones go on");
    before.check();
    cluster.restart("metadata-1").expect("back");
    let report = load.stop();
    assert_eq!((report.errors(), report.missing()), (Vec::<String>::new(), Vec::<String>::new()));
    cluster.wait_healthy(LIMIT).expect("healthy");
    let report = fsck(&cluster);
    assert_eq!(report["clean"], true, "{report}");
    cluster.mounted(mount).unmount().expect("unmounts");
}
