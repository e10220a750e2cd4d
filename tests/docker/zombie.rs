//! A container is started on another host while the one it replaces runs on: the old one gets errors, the new one has all that was
//! synced.

use crate::{can_run, cluster, host};
use holdfast_tests::docker::DockerHost;
use holdfast_tests::{Cluster, note, until};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// Keeps a file open, and appends a number to it, and says it once it is synced, until it is told that it cannot.
const WRITER: &str = "exec 3>>/data/numbers; n=${1:-0}
    while n=$((n+1)); echo $n >&3 && sync /data/numbers; do echo $n; done
    echo refused; while true; do sleep 1; done";
/// The same for a successor: says first what it found.
const SUCCESSOR: &str = "echo found $(cat /data/numbers | busybox wc -l); while true; do sleep 1; done";

/// What a container has said.
fn said(host: &DockerHost, container: &str) -> anyhow::Result<Vec<String>> {
    Ok(host.docker(&["logs", container])?.lines().map(str::to_owned).collect())
}

/// The last number that a writer was told is durable.
fn acknowledged(host: &DockerHost, container: &str) -> anyhow::Result<u64> {
    Ok(said(host, container)?.iter().rev().find_map(|line| line.parse().ok()).unwrap_or(0))
}

fn wait_for_numbers(host: &DockerHost, container: &str, count: u64) {
    until("it writes", LIMIT, || {
        let now = acknowledged(host, container)?;
        anyhow::ensure!(now >= count, "{now}");
        Ok(())
    })
    .expect("it writes");
}

/// The numbers in the volume's file, as a container on that host reads them.
fn numbers(host: &DockerHost, container: &str) -> Vec<u64> {
    let text = host.docker(&["exec", container, "/bin/cat", "/data/numbers"]).expect("read");
    text.lines().map(|line| line.parse().expect("a whole line")).collect()
}

fn wait_for_refusal(host: &DockerHost, container: &str) {
    until("the zombie is told", LIMIT, || {
        let said = said(host, container)?;
        anyhow::ensure!(said.iter().any(|line| line == "refused"), "{:?}", said.last());
        Ok(())
    })
    .expect("the zombie gets an error");
}

/// All that `zombie` was told is durable is what `successor` has, and it stays so.
fn nothing_is_lost_and_nothing_added(zombie: (&DockerHost, &str), successor: (&DockerHost, &str), before: &[u64]) {
    let acknowledged = acknowledged(zombie.0, zombie.1).expect("its log");
    let whole: Vec<u64> = (1..=before.len() as u64).collect();
    assert_eq!(before, whole, "what was synced is there, in order");
    assert!(before.len() as u64 >= acknowledged, "{acknowledged} were acknowledged, {} are there", before.len());
    assert_eq!(numbers(successor.0, successor.1), before, "the zombie changed the file after its successor had it");
}

fn cut_off(cluster: &Cluster, host: &str, is: bool) {
    cluster.network().expect("hosts").plug(host, !is).expect("plugged");
}

#[test]
fn a_container_started_elsewhere_has_what_was_synced_and_its_zombie_gets_errors() {
    if !can_run("docker::zombie::a_container_started_elsewhere_has_what_was_synced_and_its_zombie_gets_errors") {
        return;
    }
    let cluster = cluster();
    let (one, two) = (host(&cluster, "client"), host(&cluster, "client-2"));
    one.create_volume("db", &["access=single-writer"]).expect("created");

    // A host that nobody can reach, and that goes on.
    one.start_container("writer", "db", WRITER).expect("runs");
    wait_for_numbers(&one, "writer", 20);
    cut_off(&cluster, "client", true);
    let begun = Instant::now();
    two.start_container("successor", "db", SUCCESSOR).expect("starts though the other host is silent");
    note(&format!("a container with a single-writer volume started on another host: {:?}", begun.elapsed()));
    let found = numbers(&two, "successor");
    cut_off(&cluster, "client", false);
    wait_for_refusal(&one, "writer");
    nothing_is_lost_and_nothing_added((&one, "writer"), (&two, "successor"), &found);
    // It keeps being refused, also what it opens anew; and it was not the plugin that said so.
    let again = one.try_docker(&["exec", "writer", "/bin/sh", "-c", "echo x >> /data/numbers"]).expect("ends");
    assert!(!again.success, "{}", again.stdout);
    let who = one.inspect_volume("db").expect("there")["Status"]["mounted_by"].clone();
    assert_eq!((who[0]["host"].as_str(), who.as_array().map(Vec::len)), (Some("client-2"), Some(1)), "{who}");

    // And back, while both hosts are well and the zombie's old mount is still there.
    one.start_container("back", "db", SUCCESSOR).expect("starts where the zombie is");
    assert_eq!(numbers(&one, "back"), found);
    let refused = two.try_docker(&["exec", "successor", "/bin/sh", "-c", "echo x >> /data/numbers"]).expect("ends");
    assert!(!refused.success, "{}", refused.stdout);
    assert_eq!(numbers(&one, "back"), found);
    // What is mounted here is nobody's but the new one's, whatever the zombie does.
    for container in ["writer", "back"] {
        one.docker(&["rm", "--force", container]).expect("removed");
    }
    two.docker(&["rm", "--force", "successor"]).expect("removed");
    for host in [&one, &two] {
        until("nothing to be mounted", LIMIT, || {
            let mounted = host.mounted()?;
            anyhow::ensure!(mounted.is_empty(), "{mounted:?}");
            Ok(())
        })
        .expect("unmounted");
    }
    one.docker(&["volume", "rm", "db"]).expect("removed");
}
