//! Bits that one replica's disk loses: nobody reads a wrong byte, nobody is paged, a scrub repairs all of them and says how many.

use crate::telemetry::{configured, get, value};
use holdfast_tests::report::long;
use holdfast_tests::{Cluster, Options, can_mount, note};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BLOCK: usize = 4096;

/// A block that tells where it belongs: its file, its number, and bytes that follow from both.
fn block(file: u64, number: u64) -> Vec<u8> {
    let mut word = (file << 32 | number) ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        bytes.extend(word.to_le_bytes());
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    }
    bytes
}

fn content(file: u64, blocks: u64) -> Vec<u8> {
    (0..blocks).flat_map(|number| block(file, number)).collect()
}

/// Where a node's extent files hold which of our blocks.
fn places(folder: &Path, files: u64, blocks: u64) -> BTreeMap<(u64, u64), (PathBuf, u64)> {
    let ours: BTreeMap<[u8; 16], (u64, u64)> = (0..files)
        .flat_map(|file| (0..blocks).map(move |number| (file, number)))
        .map(|(file, number)| (block(file, number)[..16].try_into().expect("16 bytes"), (file, number)))
        .collect();
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("the disk's folder").flatten() {
        if !entry.file_name().to_string_lossy().starts_with("extent-") {
            continue;
        }
        let content = std::fs::read(entry.path()).expect("read");
        for (at, bytes) in content.chunks(BLOCK).enumerate() {
            let key: Option<[u8; 16]> = bytes.get(..16).and_then(|start| start.try_into().ok());
            if let Some(of) = key.and_then(|key| ours.get(&key)).filter(|of| block(of.0, of.1) == bytes) {
                found.insert(*of, (entry.path(), (at * BLOCK) as u64));
            }
        }
    }
    found
}

/// What `admin` says in JSON, and whether all is well.
fn admin(cluster: &Cluster, words: &[&str]) -> (Value, bool) {
    cluster.admin_json(words, Duration::from_secs(300)).expect("it ends and answers")
}

/// Flips a bit of each of some blocks, spread over all.
fn flip(places: &BTreeMap<(u64, u64), (PathBuf, u64)>, count: usize) -> BTreeSet<u64> {
    let step = places.len() / count;
    let mut files = BTreeSet::new();
    for (nth, (of, (path, at))) in places.iter().step_by(step).take(count).enumerate() {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
        let at = at + (nth * 977 % BLOCK) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ (1 << (nth % 8))], at).expect("damaged");
        files.insert(of.0);
    }
    files
}

fn check_all(at: &Path, files: u64, blocks: u64) {
    for file in 0..files {
        let read = std::fs::read(at.join(format!("f{file}"))).unwrap_or_else(|error| panic!("f{file}: {error}"));
        assert!(read == content(file, blocks), "f{file} is not what was written");
    }
}

#[test]
fn a_scrub_repairs_every_block_that_one_replica_has_lost_and_says_so() {
    let name = "a_scrub_repairs_every_block_that_one_replica_has_lost_and_says_so";
    if !can_mount(name, &[]) {
        return;
    }
    let (files, blocks, count) = if long() { (96, 512, 1_000) } else { (24, 256, 100) };
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    for file in 0..files {
        let path = at.join(format!("f{file}"));
        std::fs::write(&path, content(file, blocks)).expect("written");
        std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("synced");
    }
    let (before, _) = admin(&cluster, &["scrub", "--json", "--now"]);
    assert!(before["clean"] == true && before["total"]["bad"] == 0, "{before}");
    assert!(
        before["total"]["bytes"].as_u64() >= Some(3 * files * blocks * BLOCK as u64),
        "all of it was read: {before}"
    );

    let places = places(&cluster.folder().join("cluster/storage-2/data"), files, blocks);
    assert_eq!(places.len() as u64, files * blocks, "every block is on every node");
    let touched = flip(&places, count);
    note(&format!("{count} blocks damaged in {} of {files} files on storage-2", touched.len()));

    // The mount's kernel has the files in memory; another one has not.
    let fresh = cluster.mount().expect("mounted");
    let elsewhere = cluster.mounted(fresh).path().to_path_buf();
    check_all(&elsewhere, files, blocks);
    let (after, _) = admin(&cluster, &["scrub", "--json", "--now"]);
    assert!(after["clean"] == true && after["not_asked"] == serde_json::json!([]), "{after}");
    let total = |key: &str| after["total"][key].as_u64().expect("a number");
    // Some were met by a reader before, and put right at once.
    let metrics = damage(&cluster);
    assert_eq!(metrics, (count as u64, count as u64), "found and repaired; by the scrub {}", total("repaired"));
    assert!(total("bad") == total("repaired") && total("bad") > 0, "{after}");
    note(&format!(
        "scrub: {} found, {} repaired; {} met by readers",
        total("bad"),
        total("repaired"),
        count as u64 - total("bad")
    ));

    let (again, _) = admin(&cluster, &["scrub", "--json", "--now"]);
    assert!(again["clean"] == true && again["total"]["bad"] == 0, "{again}");
    let (fsck, well) = admin(&cluster, &["fsck", "--json"]);
    assert!(fsck["clean"] == true && well, "{fsck}");
    check_all(&elsewhere, files, blocks);

    // When it was is known after a restart as well.
    cluster.restart("storage-2").expect("comes back");
    cluster.wait_healthy(Duration::from_secs(60)).expect("whole");
    let (kept, _) = admin(&cluster, &["scrub", "--json"]);
    assert!(kept["clean"] == true, "a restart forgets no scrub: {kept}");
}

/// Damaged blocks found, and repaired, of all storage nodes by their own count.
fn damage(cluster: &Cluster) -> (u64, u64) {
    // Counted twice a second.
    std::thread::sleep(Duration::from_millis(1_500));
    let mut sums = (0.0, 0.0);
    for node in 1..=3 {
        let metrics = get(&configured(cluster.folder(), &format!("storage-{node}")), "/metrics").expect("answers");
        sums.0 += value(&metrics, "holdfast_storage_blocks_damaged_total");
        sums.1 += value(&metrics, "holdfast_storage_blocks_repaired_total");
    }
    (sums.0 as u64, sums.1 as u64)
}
