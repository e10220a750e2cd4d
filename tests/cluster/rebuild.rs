//! Storage nodes stay away, are emptied, go for good and come new, under load: redundancy returns by itself, and no byte is lost.

use anyhow::{Context, Result, ensure};
use holdfast_tests::load::Load;
use holdfast_tests::{Cluster, Options, can_mount, until};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const GROUPS: u64 = 256;

fn free_address() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("bound").to_string()
}

/// A storage node in a status; `None` once it is gone.
fn node(status: &Value, id: u64) -> Option<&Value> {
    status["storage"].as_array()?.iter().find(|node| node["id"].as_u64() == Some(id))
}

fn count(status: &Value, id: u64, key: &str) -> Result<u64> {
    node(status, id).and_then(|node| node[key].as_u64()).with_context(|| format!("no {key} of {id}: {status}"))
}

/// Nothing moves, and every copy is there.
fn is_at_rest(status: &Value) -> Result<()> {
    let rebuild = &status["rebuild"];
    let left = ["lost", "draining", "moving", "under_way"].map(|key| rebuild[key].as_u64());
    ensure!(left == [Some(0); 4] && status["groups"]["degraded"] == 0, "still moving: {status}");
    Ok(())
}

fn fsck(cluster: &Cluster) {
    let said = cluster.admin(&["fsck", "--json"]).expect("clean");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(report["clean"], Value::Bool(true), "{report}");
}

fn content(number: u32) -> Vec<u8> {
    (0..150_000u32).map(|byte| (byte.wrapping_mul(number + 7) >> 5) as u8).collect()
}

/// Files of known content, as many chunks as there are groups.
fn write_files(at: &Path) {
    std::fs::create_dir(at.join("files")).expect("made");
    for number in 0..64u32 {
        std::fs::write(at.join(format!("files/{number}")), content(number)).expect("written");
    }
}

fn check_files(at: &Path) {
    for number in 0..64u32 {
        let read = std::fs::read(at.join(format!("files/{number}"))).expect("readable");
        assert!(read == content(number), "file {number}");
    }
}

#[test]
fn a_storage_node_that_stays_away_is_replaced_by_the_others() {
    let name = "a_storage_node_that_stays_away_is_replaced_by_the_others";
    if !can_mount(name, &[]) {
        return;
    }
    let options = Options { storage: 4, out_after: Some("6 s"), ..Options::default() };
    let mut cluster = Cluster::start(&options).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    write_files(&at);
    let load = Load::start(&at, "load").expect("starts");
    load.wait_for(50).expect("acknowledged");
    let before = count(&cluster.status().expect("a status"), 2, "home_of").expect("there");
    assert!((170..=215).contains(&before), "a fair share of {GROUPS} groups in three copies: {before}");
    cluster.server("storage-2").expect("ours").kill().expect("killed");
    // Nobody does anything. What it held is on the others, and the cluster says that it is well without it.
    until("whole again, without it", LIMIT, || {
        let status = cluster.status()?;
        let state = node(&status, 2).map(|node| node["state"].clone());
        ensure!(state == Some("away".into()) && count(&status, 2, "home_of")? == 0, "not yet: {status}");
        is_at_rest(&status)?;
        ensure!(status["healthy"] == Value::Bool(true), "not healthy: {status}");
        Ok(())
    })
    .expect("whole again, without it");
    let status = cluster.status().expect("a status");
    assert!(status["notes"].to_string().contains("storage node 2"), "{status}");
    load.wait_for(50).expect("goes on");
    fsck(&cluster);
    // Another one may die now, and everything is there.
    cluster.server("storage-3").expect("ours").kill().expect("killed");
    load.wait_for(50).expect("goes on");
    std::process::Command::new("sh").args(["-c", "sync; echo 1 > /proc/sys/vm/drop_caches"]).status().expect("runs");
    check_files(&at);
    cluster.restart("storage-3").expect("comes back");
    // So does the first one: what it had is of no use, and goes; then it gets its share again.
    cluster.restart("storage-2").expect("comes back");
    until("it has its share again", LIMIT, || {
        let status = cluster.status()?;
        is_at_rest(&status)?;
        let (homes, leads) = (count(&status, 2, "home_of")?, count(&status, 2, "in_sync_of")?);
        ensure!((170..=215).contains(&homes) && leads == homes, "{homes} homes, in sync {leads}");
        Ok(())
    })
    .expect("balanced");
    let report = load.stop();
    assert_eq!((report.errors(), report.missing()), (Vec::new(), Vec::new()));
    check_files(&at);
    cluster.wait_healthy(LIMIT).expect("whole");
    fsck(&cluster);
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn storage_nodes_come_and_go_on_request() {
    let name = "storage_nodes_come_and_go_on_request";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options { storage: 4, ..Options::default() }).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    write_files(&at);
    let load = Load::start(&at, "load").expect("starts");
    load.wait_for(50).expect("acknowledged");
    // A new one gets its share.
    let said = cluster.admin(&["storage", "add", "5", &free_address()]).expect("prepared");
    assert!(said.contains("storage-5"), "{said}");
    cluster.start_more("storage-5", "config.toml").expect("joins");
    until("it has its share", LIMIT, || {
        let status = cluster.status()?;
        is_at_rest(&status)?;
        let homes = count(&status, 5, "home_of")?;
        ensure!((138..=170).contains(&homes), "{homes} homes");
        Ok(())
    })
    .expect("balanced");
    // One is emptied while everybody works, and nothing is left on it.
    cluster.admin(&["storage", "drain", "2", "--wait"]).expect("drained");
    let status = cluster.status().expect("a status");
    assert_eq!((count(&status, 2, "home_of").ok(), count(&status, 2, "in_sync_of").ok()), (Some(0), Some(0)));
    assert!(status["notes"].to_string().contains("storage node 2 is drained"), "{status}");
    assert!(cluster.admin(&["storage", "list"]).expect("a list").contains("up, draining"));
    assert!(cluster.admin(&["storage", "add", "2", &free_address()]).is_err(), "an id is used once");
    // Then it goes for good.
    let said = cluster.admin(&["storage", "remove", "2", "--wait"]).expect("removed");
    assert!(said.contains("is out, for good"), "{said}");
    assert!(node(&cluster.status().expect("a status"), 2).is_none());
    cluster.server("storage-2").expect("ours").kill().expect("killed");
    cluster.forget("storage-2");
    // A dead one is replaced by a new one.
    cluster.server("storage-3").expect("ours").kill().expect("killed");
    cluster.admin(&["storage", "replace", "3", "6", &free_address()]).expect("on record");
    cluster.start_more("storage-6", "config.toml").expect("joins");
    until("the old one is gone", LIMIT, || {
        let status = cluster.status()?;
        ensure!(node(&status, 3).is_none(), "{status}");
        is_at_rest(&status)
    })
    .expect("replaced");
    assert!(cluster.admin(&["storage", "remove", "3"]).expect("tidied up").contains("is out"));
    cluster.forget("storage-3");
    cluster.wait_healthy(LIMIT).expect("whole");
    assert!(cluster.admin(&["storage", "drain", "1"]).is_ok());
    let refused = cluster.admin(&["storage", "drain", "4"]).expect_err("three are needed").to_string();
    assert!(refused.contains("add one first"), "{refused}");
    cluster.admin(&["storage", "drain", "1", "--undo"]).expect("called off");
    let report = load.stop();
    assert_eq!((report.errors(), report.missing()), (Vec::new(), Vec::new()));
    check_files(&at);
    fsck(&cluster);
    cluster.mounted(mount).unmount().expect("unmounts");
}
