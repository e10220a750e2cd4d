//! Full disks: a clear error, nothing lost, nothing down, and it goes on when there is room again.

use anyhow::bail;
use holdfast_tests::command::shell;
use holdfast_tests::{Cluster, Options, can_mount, until};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const DISK_BYTES: u64 = 512 << 20;
const FILE_BYTES: usize = 4 << 20;

/// Writes a file whose content follows from its number, durably.
fn write(at: &Path, number: usize) -> std::io::Result<()> {
    let mut file = std::fs::File::create(at.join(format!("f{number}")))?;
    file.write_all(&content(number))?;
    file.sync_all()
}

fn content(number: usize) -> Vec<u8> {
    (0..FILE_BYTES).map(|at| (at / 512 + number) as u8).collect()
}

fn fill_storage(full: &[&str]) {
    let names = full.iter().map(ToString::to_string).collect();
    let options = Options { small_disks: Some((names, DISK_BYTES)), ..Options::default() };
    let mut cluster = Cluster::start(&options).expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let mut acknowledged = 0;
    let error = (0..3 * DISK_BYTES as usize / FILE_BYTES).find_map(|number| match write(&at, number) {
        Ok(()) => {
            acknowledged += 1;
            None
        }
        Err(error) => Some(error),
    });
    let error = error.expect("more than the disks hold was written");
    assert_eq!(error.kind(), ErrorKind::StorageFull, "after {acknowledged} files: {error}");
    assert!(acknowledged > 10, "only {acknowledged} files fit");
    for number in 0..acknowledged {
        let read = std::fs::read(at.join(format!("f{number}"))).expect("acknowledged, so it is there");
        assert!(read == content(number), "f{number} is not what was acknowledged");
    }
    assert!(cluster.servers().iter_mut().all(|server| server.is_running()), "a server is down");
    assert!(!cluster.log_tails().contains("panicked"), "{}", cluster.log_tails());
    for number in 0..acknowledged / 2 {
        std::fs::remove_file(at.join(format!("f{number}"))).expect("removing always works");
    }
    until("room again", LIMIT, || Ok(write(&at, 0)?)).expect("what was removed is room");
    let read = std::fs::read(at.join("f0")).expect("read");
    let differs = read.iter().zip(content(0)).enumerate().filter(|(_, (a, b))| **a != *b).map(|(at, _)| at);
    let differs: Vec<usize> = differs.collect();
    assert!(read == content(0), "{} bytes, different from {:?} to {:?}", read.len(), differs.first(), differs.last());
    cluster.wait_healthy(LIMIT).expect("whole");
    // What did not fit is still in no file's way.
    let _ = std::fs::remove_file(at.join(format!("f{acknowledged}")));
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn a_full_disk_of_one_storage_node_is_an_error_and_nothing_more() {
    if can_mount("a_full_disk_of_one_storage_node_is_an_error_and_nothing_more", &["losetup", "mkfs.ext4"]) {
        fill_storage(&["storage-2"]);
    }
}

#[test]
fn full_disks_of_all_storage_nodes_are_an_error_and_nothing_more() {
    if can_mount("full_disks_of_all_storage_nodes_are_an_error_and_nothing_more", &["losetup", "mkfs.ext4"]) {
        fill_storage(&["storage-1", "storage-2", "storage-3"]);
    }
}

/// Not by us, who leave something for ourselves, but by somebody else, to the last byte.
#[test]
fn a_storage_disk_that_others_filled_comes_back_by_itself() {
    if !can_mount("a_storage_disk_that_others_filled_comes_back_by_itself", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let small_disks = Some((vec!["storage-2".to_owned()], DISK_BYTES));
    let mut cluster = Cluster::start(&Options { small_disks, ..Options::default() }).expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let small =
        |number: usize| content(number)[..10_000] == std::fs::read(at.join(format!("f{number}"))).expect("read");
    let files = 1200;
    for number in 0..files {
        std::fs::write(at.join(format!("f{number}")), &content(number)[..10_000]).expect("written");
    }
    std::fs::File::open(&at).and_then(|directory| directory.sync_all()).expect("synced");
    shell(&format!("sync -f {}", at.display()), LIMIT).expect("synced");
    let filler = cluster.folder().join("cluster/storage-2/filler");
    let line = format!("dd if=/dev/zero of={} bs=64k 2>/dev/null || true; sync -f {0}", filler.display());
    shell(&line, LIMIT).expect("filled");
    // Removing goes on, and takes room in the index before it gives any.
    let mut gone = 0;
    until("the disk fails", LIMIT, || {
        for number in gone..(gone + 100).min(files / 2) {
            std::fs::remove_file(at.join(format!("f{number}")))?;
        }
        gone = (gone + 100).min(files / 2);
        let log = cluster.server("storage-2").expect("runs").log_tail();
        if log.contains("full to the last byte") { Ok(()) } else { bail!("{gone} were removed: {log}") }
    })
    .expect("nothing can be written");
    assert!((files / 2..files).all(small), "what is on the others is read");
    std::fs::remove_file(&filler).expect("removed");
    cluster.wait_healthy(LIMIT).expect("with room it comes back by itself");
    assert!(cluster.server("storage-2").expect("runs").log_tail().contains("starts anew"));
    assert!((files / 2..files).all(small));
    std::fs::write(at.join("f0"), b"more").expect("there is room");
    cluster.scrub().expect("replicas agree");
    assert!(!cluster.log_tails().contains("panicked"), "{}", cluster.log_tails());
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn a_full_disk_of_one_metadata_server_stops_nobody() {
    if !can_mount("a_full_disk_of_one_metadata_server_stops_nobody", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let small_disks = Some((vec!["metadata-2".to_owned()], DISK_BYTES));
    let mut cluster =
        Cluster::start(&Options { storage: 1, replicas: 1, small_disks, ..Options::default() }).expect("healthy");
    // The worst one: whoever is asked first.
    until("metadata-2 leads", LIMIT, || {
        let leader = cluster.leader_of(1)?;
        if leader != "metadata-2" {
            cluster.restart(&leader)?;
            cluster.wait_healthy(LIMIT)?;
            bail!("{leader} leads");
        }
        Ok(())
    })
    .expect("they take turns");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let filler = cluster.folder().join("cluster/metadata-2/filler");
    let line = format!("dd if=/dev/zero of={} bs=1M 2>/dev/null || true; sync -f {0}", filler.display());
    shell(&line, LIMIT).expect("filled");
    // More than the log has room for in what is preallocated.
    let value = vec![7u8; 60_000];
    for number in 0..1200 {
        let path = at.join(format!("f{number}"));
        std::fs::write(&path, b"").expect("created");
        rustix::fs::setxattr(&path, "user.filler", &value, rustix::fs::XattrFlags::empty()).expect("set");
    }
    assert!(cluster.servers().iter_mut().all(|server| server.is_running()), "a server is down");
    std::fs::remove_file(&filler).expect("removed");
    cluster.wait_healthy(LIMIT).expect("with room it starts anew, by itself");
    for number in 0..1200 {
        assert!(at.join(format!("f{number}")).exists(), "f{number} is gone");
    }
    assert!(!cluster.log_tails().contains("panicked"), "{}", cluster.log_tails());
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn full_disks_of_all_metadata_servers_are_an_error_and_nothing_more() {
    if !can_mount("full_disks_of_all_metadata_servers_are_an_error_and_nothing_more", &["losetup", "mkfs.ext4"]) {
        return;
    }
    let names = (1..=3).map(|n| format!("metadata-{n}")).collect();
    let small_disks = Some((names, DISK_BYTES));
    let mut cluster =
        Cluster::start(&Options { storage: 1, replicas: 1, small_disks, ..Options::default() }).expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let value = vec![7u8; 60_000];
    let make = |number: usize| -> std::io::Result<()> {
        let path = at.join(format!("f{number}"));
        std::fs::write(&path, b"")?;
        Ok(rustix::fs::setxattr(&path, "user.filler", &value, rustix::fs::XattrFlags::empty())?)
    };
    let most = 2 * DISK_BYTES as usize / value.len();
    let (made, error) =
        (0..most).find_map(|number| make(number).err().map(|error| (number, error))).expect("it is full");
    assert_eq!(error.kind(), ErrorKind::StorageFull, "after {made} files: {error}");
    // What is there may be read, written and changed.
    std::fs::write(at.join("f0"), b"more").expect("a file that is there is written");
    std::fs::rename(at.join("f1"), at.join("f2")).expect("replaced");
    assert_eq!(std::fs::metadata(at.join(format!("f{}", made - 1))).expect("stat").len(), 0);
    assert!(cluster.servers().iter_mut().all(|server| server.is_running()), "a server is down");
    cluster.wait_healthy(LIMIT).expect("nobody has halted");
    // The last one is there if its creation was let in and its attribute was not.
    let last = at.join(format!("f{made}"));
    for path in (0..made)
        .filter(|number| *number != 1)
        .map(|number| at.join(format!("f{number}")))
        .chain(last.exists().then_some(last))
    {
        std::fs::remove_file(path).expect("removing always works");
    }
    // When that is room depends on when the tables are compacted; that everybody still works does not.
    cluster.wait_healthy(LIMIT).expect("nobody has halted");
    assert_eq!(std::fs::read_dir(&at).expect("listed").count(), 0);
    assert!(!cluster.log_tails().contains("panicked"), "{}", cluster.log_tails());
    cluster.mounted(mount).unmount().expect("unmounts");
}
