//! `admin fsck` on a live cluster: clean while clients write, and it names what is wrong.

use holdfast_tests::load::Load;
use holdfast_tests::{Cluster, Options, can_mount};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the command says, and its exit status.
pub fn fsck(cluster: &Cluster) -> (Value, bool) {
    cluster.admin_json(&["fsck", "--json"], Duration::from_secs(120)).expect("it ends and answers")
}

/// The extent file of a storage node that holds these bytes, and where.
fn find(folder: &Path, bytes: &[u8]) -> (PathBuf, u64) {
    for entry in std::fs::read_dir(folder).expect("the disk's folder").flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("extent-") {
            let content = std::fs::read(entry.path()).expect("read");
            if let Some(at) = content.windows(bytes.len()).position(|window| window == bytes) {
                return (entry.path(), at as u64);
            }
        }
    }
    panic!("no extent in {} holds the bytes", folder.display());
}

#[test]
fn fsck_is_clean_under_load_and_names_a_flipped_byte() {
    if !can_mount("fsck_is_clean_under_load_and_names_a_flipped_byte", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let marked = vec![0x5a; 1 << 20];
    std::fs::write(at.join("marked"), &marked).expect("written");
    std::fs::File::open(at.join("marked")).and_then(|file| file.sync_all()).expect("synced");
    let load = Load::start(&at, "load").expect("starts");
    load.wait_for(200).expect("acknowledged");
    for _ in 0..3 {
        let (report, clean) = fsck(&cluster);
        assert!(clean && report["clean"] == true, "an alarm under load: {report}");
        let count = |key: &str| report[key].as_u64().expect("a number");
        assert!(count("inodes") > 2 && count("entries") > 1 && count("chunks") > 0, "{report}");
        assert_eq!(count("metadata_servers"), 3, "{report}");
        // Each of the load's three writers changes one chunk at a time, which may be another at each look.
        assert!(count("unsettled") <= 3, "{report}");
    }
    assert_eq!(load.stop().errors(), Vec::<String>::new());

    let disk = cluster.folder().join("cluster/storage-2/data");
    let (file, place) = find(&disk, &marked[..8192]);
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("opened");
    file.write_all_at(&[0xa5], place + 4000).expect("damaged");
    let (report, clean) = fsck(&cluster);
    let findings = report["findings"].as_array().expect("a list");
    let checksum = findings.iter().find(|finding| finding["kind"] == "checksum").unwrap_or_else(|| panic!("{report}"));
    assert!(!clean && checksum["what"].as_str().is_some_and(|what| what.contains("s2.")), "{report}");
    // The file is whole all the same.
    assert_eq!(std::fs::read(at.join("marked")).expect("read"), marked);
}

#[test]
fn fsck_says_what_it_could_not_check() {
    let mut cluster = Cluster::start(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("healthy");
    let (report, clean) = fsck(&cluster);
    assert!(clean && report["clean"] == true, "{report}");
    cluster.server("metadata-2").expect("there").kill().expect("killed");
    let (report, clean) = fsck(&cluster);
    let what = report["not_checked"].to_string();
    assert!(!clean && what.contains("metadata server 2: it does not answer"), "{report}");
}
