//! What an unmount, a sync of everything and the death of a mount's process leave behind, and what they do not wait for.

use crate::fsck::fsck;
use holdfast_tests::{Cluster, Options, can_mount, until};
use rustix::process::Signal;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Lets every storage node stand still, or go on.
fn storage(cluster: &mut Cluster, goes_on: bool) {
    for server in cluster.servers().iter().filter(|server| server.name().starts_with("storage")) {
        if goes_on { server.signal(Signal::CONT) } else { server.suspend() }.expect("told");
    }
}

/// Bytes in use of the volume, which has a limit, so that they are its own and not the disks'.
fn used(at: &Path) -> anyhow::Result<u64> {
    let shown = rustix::fs::statvfs(at)?;
    Ok((shown.f_blocks - shown.f_bfree) * shown.f_frsize)
}

#[test]
fn umount_returns_before_all_is_flushed_and_the_end_of_the_process_says_that_it_is() {
    let name = "mount_ends::umount_returns_before_all_is_flushed_and_the_end_of_the_process_says_that_it_is";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    std::fs::write(at.join("f"), vec![5; 3 * MIB]).expect("written");
    let file = File::options().write(true).open(at.join("f")).expect("opened");
    file.sync_all().expect("synced");
    // Nothing can be flushed from here on.
    storage(&mut cluster, false);
    file.write_all_at(&vec![6; MIB], 0).expect("buffered");
    drop(file);
    holdfast_tests::command::shell(&format!("umount '{}'", at.display()), LIMIT).expect("returns");
    assert!(cluster.mounted(mount).process().is_running(), "it has something to flush, and nowhere to");
    storage(&mut cluster, true);
    let status = cluster.mounted(mount).process().wait_ended(LIMIT).expect("ends by itself");
    assert!(status.success(), "{status}");
    // Its end was the promise.
    for server in cluster.servers() {
        server.kill().expect("killed");
    }
    cluster.start_all().expect("starts again");
    cluster.mounted(mount).restart().expect("mounted again");
    let found = std::fs::read(at.join("f")).expect("read");
    assert!(found[..MIB].iter().all(|byte| *byte == 6) && found[MIB..].iter().all(|byte| *byte == 5));
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn syncfs_does_not_wait_for_the_write_buffer_and_fsync_does() {
    if !can_mount("mount_ends::syncfs_does_not_wait_for_the_write_buffer_and_fsync_does", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let file = File::create(cluster.mounted(mount).path().join("f")).expect("made");
    file.sync_all().expect("synced");
    storage(&mut cluster, false);
    file.write_all_at(&vec![7; MIB], 0).expect("buffered");
    // Linux does not pass it on to a FUSE mount (device/mod.rs); if it returned only now because it did, this would hang.
    rustix::fs::syncfs(&file).expect("returns at once");
    let (sender, synced) = std::sync::mpsc::channel();
    let waiting = file.try_clone().expect("cloned");
    let waits = std::thread::spawn(move || sender.send(waiting.sync_all()).expect("received"));
    // It cannot have returned, however long one looks; a moment is given to one that would not wait.
    assert!(synced.recv_timeout(Duration::from_millis(300)).is_err(), "fsync returned before any byte was durable");
    storage(&mut cluster, true);
    synced.recv_timeout(LIMIT).expect("returns").expect("durable");
    waits.join().expect("no panic");
    drop(file);
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn an_open_file_without_a_name_outlives_a_leader_and_its_room_comes_back_after_its_host() {
    let name = "mount_ends::an_open_file_without_a_name_outlives_a_leader_and_its_room_comes_back_after_its_host";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    cluster.admin(&["volume", "limit", "main", "--bytes", "1 GiB"]).expect("set");
    until("the limit to hold", LIMIT, || {
        anyhow::ensure!(rustix::fs::statvfs(&at)?.f_blocks * rustix::fs::statvfs(&at)?.f_frsize == 1 << 30, "not yet");
        Ok(())
    })
    .expect("in time");
    std::fs::write(at.join("stays"), vec![1; MIB]).expect("written");
    File::open(at.join("stays")).and_then(|file| file.sync_all()).expect("synced");
    let before = used(&at).expect("asked");
    let (report, clean) = fsck(&cluster);
    assert!(clean, "{report}");
    let chunks = report["chunks"].as_u64().expect("a number");

    // More than the client keeps for reading, so that what is read comes from where it is stored.
    let content = |part: usize| vec![part as u8 + 1; MIB];
    const PARTS: usize = 80;
    let mut file = File::options().read(true).write(true).create_new(true).open(at.join("f")).expect("made");
    (0..PARTS).for_each(|part| file.write_all(&content(part)).expect("written"));
    file.sync_all().expect("synced");
    std::fs::remove_file(at.join("f")).expect("removed");
    assert!(used(&at).expect("asked") >= before + (PARTS * MIB) as u64, "it takes room as long as it is open");

    let leader = cluster.leader_of(1).expect("somebody leads");
    cluster.server(&leader).expect("ours").kill().expect("killed");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("the kernel's pages go");
    let mut read = vec![0; MIB];
    for part in 0..PARTS {
        file.read_exact_at(&mut read, (part * MIB) as u64).expect("still there");
        assert!(read == content(part), "part {part}");
    }
    // It can still be changed, under the new leader.
    file.write_all_at(b"more", (PARTS * MIB) as u64).and_then(|()| file.sync_all()).expect("grows");
    let found = file.metadata().expect("stat");
    assert_eq!((found.nlink(), found.len()), (0, (PARTS * MIB) as u64 + 4));
    cluster.restart(&leader).expect("comes back");
    cluster.wait_healthy(LIMIT).expect("whole again");

    // The host dies with the file open. Who mounts next waits until that one's session is over, and all that it held with it.
    cluster.mounted(mount).kill().expect("killed");
    assert!(file.read_at(&mut read, 0).is_err() || file.sync_all().is_err(), "its process is gone");
    drop(file);
    cluster.mounted(mount).restart().expect("mounted again");
    assert!(!at.join("f").exists());
    until("its room to come back", LIMIT, || {
        let now = used(&at)?;
        anyhow::ensure!(now <= before, "{now} bytes are in use, {before} were before");
        Ok(())
    })
    .expect("purged");
    until("its chunks to go", LIMIT, || {
        let (report, clean) = fsck(&cluster);
        anyhow::ensure!(clean && report["chunks"] == chunks, "{report}");
        Ok(())
    })
    .expect("clean, and nothing is left of it");
    assert_eq!(std::fs::read(at.join("stays")).expect("read"), vec![1; MIB]);
    cluster.mounted(mount).unmount().expect("unmounts");
}
