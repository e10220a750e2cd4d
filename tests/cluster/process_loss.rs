//! `kill -9` of one process under load, started again later: no call fails, nothing acknowledged is lost.

use holdfast_tests::load::{Fault, fail_over};
use holdfast_tests::{Cluster, Options, can_mount};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Kills the process that `choose` names 5 s into a load, starts it again, and checks everything.
fn lose(label: &str, choose: impl FnOnce(&Cluster) -> String) {
    if !can_mount(label, &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let victim = choose(&cluster);
    fail_over(label, &mut cluster, (&victim, Fault::Kill), (15, 25), |_| Ok(())).expect("no error, no loss, no hang");
}

#[test]
fn loss_of_a_metadata_follower_is_not_noticed() {
    lose("loss_of_a_metadata_follower_is_not_noticed", |cluster| {
        let leader = cluster.leader().expect("somebody leads");
        (1..=3).map(|n| format!("metadata-{n}")).find(|name| *name != leader).expect("two follow")
    });
}

#[test]
fn loss_of_the_metadata_leader_is_a_pause() {
    lose("loss_of_the_metadata_leader_is_a_pause", |cluster| cluster.leader().expect("somebody leads"));
}

#[test]
fn loss_of_the_metadata_leader_of_the_names_is_a_pause() {
    lose("loss_of_the_metadata_leader_of_the_names_is_a_pause", |cluster| {
        cluster.leader_of(1).expect("somebody leads")
    });
}

#[test]
fn loss_of_a_storage_node_is_a_pause() {
    lose("loss_of_a_storage_node_is_a_pause", |_| "storage-2".to_string());
}

#[test]
fn a_frozen_storage_node_is_taken_out_and_does_no_harm_when_it_wakes() {
    let name = "a_frozen_storage_node_is_taken_out_and_does_no_harm_when_it_wakes";
    if !can_mount(name, &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    fail_over(name, &mut cluster, ("storage-2", Fault::Freeze), (12, 18), |cluster| {
        // It was out while it slept, and what it still has to say is of an epoch that is over.
        let status = cluster.status()?;
        let groups = &status["groups"];
        anyhow::ensure!(groups["degraded"] == groups["total"] && groups["waiting"] == 0, "{status}");
        Ok(())
    })
    .expect("no error, no loss, no hang");
    assert!(cluster.admin(&["fsck"]).expect("clean").contains("clean"));
}

/// Stops every server in turn as an operator would who installs a new release, while writers work.
#[test]
fn a_rolling_restart_of_every_server_is_not_an_error_to_anybody() {
    let name = "a_rolling_restart_of_every_server_is_not_an_error_to_anybody";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let load = holdfast_tests::load::Load::start(&at, "load").expect("starts");
    let names: Vec<String> = cluster.servers().iter().map(|server| server.name().to_string()).collect();
    for name in &names {
        load.wait_for(50).expect("acknowledged");
        let led = cluster.leader_of(1).is_ok_and(|leader| leader == *name);
        let status = cluster.server(name).expect("ours").terminate(LIMIT).expect("ends");
        assert!(status.success(), "{name} ended with {status}");
        // Whoever led has handed over before it ended: somebody leads at this very moment.
        assert!(!led || cluster.leader_of(1).expect("somebody leads") != *name);
        load.wait_for(50).expect("goes on without it");
        cluster.restart(name).expect("comes back");
        cluster.wait_healthy(LIMIT).expect("whole again");
    }
    let report = load.stop();
    assert_eq!(report.errors(), Vec::<String>::new());
    assert_eq!(report.missing(), Vec::<String>::new());
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn a_cluster_whose_servers_all_die_comes_back_with_everything() {
    let name = "a_cluster_whose_servers_all_die_comes_back_with_everything";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let load = holdfast_tests::load::Load::start(&at, "load").expect("starts");
    load.wait_for(300).expect("acknowledged");
    for server in cluster.servers() {
        server.kill().expect("killed");
    }
    // The mount stays: calls wait, and go on when the servers are back.
    cluster.start_all().expect("healthy again");
    load.wait_for(100).expect("writers go on by themselves");
    let report = load.stop();
    assert_eq!(report.errors(), Vec::<String>::new());
    assert_eq!(report.missing(), Vec::<String>::new());
}
