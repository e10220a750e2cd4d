//! The life of a volume on one host: made, shared by containers, kept over restarts of the plugin and of the engine, removed.

use crate::{can_run, cluster, host};
use holdfast_tests::docker::DockerHost;
use holdfast_tests::{Cluster, until};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Goes on until it is stopped.
const WAITS: &str = "while true; do sleep 1; done";

#[test]
fn a_volume_is_shared_by_containers_and_outlives_plugin_and_engine() {
    if !can_run("docker::life::a_volume_is_shared_by_containers_and_outlives_plugin_and_engine") {
        return;
    }
    let cluster = cluster();
    let mut host = host(&cluster, "client");
    options_are_checked(&host);
    host.create_volume("db", &["size=16MiB", "access=single-writer", "replicas=2"]).expect("created");
    a_volume_is_shown_with_its_status(&host);
    containers_share(&host);
    the_plugin_is_killed(&mut host);
    volumes_in_use_are_not_removed(&host);
    a_dead_mount_is_repaired(&cluster, &host);
    the_engine_is_restarted(&mut host);
    what_others_made_is_taken_and_removed(&cluster, &host);
    what_is_only_read_is_not_written(&host);
}

fn refused(host: &DockerHost, words: &[&str]) -> String {
    let said = host.try_docker(words).expect("docker ends");
    assert!(!said.success, "docker {words:?} worked: {}", said.stdout);
    said.stderr
}

fn options_are_checked(host: &DockerHost) {
    for (option, said) in [
        ("acess=single-writer", "did you mean"),
        ("size=1G", "GiB"),
        ("open=exclusiv", "single-writer"),
        ("replicas=3", "2 copies"),
    ] {
        let error = refused(host, &["volume", "create", "--driver", "holdfast", "--opt", option, "wrong"]);
        assert!(error.contains(said), "{option}: {error}");
    }
    let listed = host.docker(&["volume", "ls", "--quiet"]).expect("listed");
    assert!(!listed.contains("wrong"), "{listed}");
}

fn a_volume_is_shown_with_its_status(host: &DockerHost) {
    let volume = host.inspect_volume("db").expect("there");
    assert_eq!((&volume["Driver"], &volume["Scope"]), (&"holdfast".into(), &"global".into()), "{volume}");
    let status = &volume["Status"];
    assert_eq!(
        (&status["size_bytes"], &status["access"]),
        (&(16u64 << 20).into(), &"single-writer".into()),
        "{volume}"
    );
    assert_eq!((&status["containers_here"], &volume["Mountpoint"]), (&0.into(), &"".into()), "{volume}");
    let listed = host.docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]).expect("listed");
    assert!(listed.lines().any(|line| line == "holdfast db"), "{listed}");
}

fn containers_share(host: &DockerHost) {
    host.start_container("first", "db", &format!("echo one >> /data/file && sync /data/file && echo done; {WAITS}"))
        .expect("runs");
    wait_for_word(host, "first", "done");
    host.start_container("second", "db", &format!("cat /data/file; {WAITS}")).expect("runs");
    wait_for_word(host, "second", "one");
    host.docker(&["exec", "second", "/bin/sh", "-c", "echo two >> /data/file"]).expect("written");
    assert_eq!(host.docker(&["exec", "first", "/bin/cat", "/data/file"]).expect("read"), "one\ntwo");
    let status = host.inspect_volume("db").expect("there")["Status"].clone();
    assert_eq!(status["containers_here"], 2, "{status}");
    assert_eq!(
        (&status["mounted_by"][0]["host"], status["mounted_by"].as_array().map(Vec::len)),
        (&"client".into(), Some(1))
    );
    assert!(status["used_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{status}");
    assert_eq!(host.mounted().expect("a host"), ["db"], "one mount for both");
    let full =
        "busybox dd if=/dev/zero of=/data/big bs=1M count=24 conv=fsync; status=$?; busybox rm /data/big; exit $status";
    let error = refused(host, &["exec", "first", "/bin/sh", "-c", full]);
    assert!(error.to_lowercase().contains("quota"), "the volume's size is its limit: {error}");
}

fn the_plugin_is_killed(host: &mut DockerHost) {
    host.kill_plugin().expect("killed");
    // Containers do not notice.
    host.docker(&["exec", "first", "/bin/sh", "-c", "echo three >> /data/file && sync /data/file"]).expect("written");
    host.start_plugin().expect("starts again");
    assert_eq!(host.docker(&["exec", "second", "/bin/cat", "/data/file"]).expect("read"), "one\ntwo\nthree");
    assert_eq!(host.inspect_volume("db").expect("there")["Status"]["containers_here"], 2, "it counts from its file");
    // The one that is stopped after the restart takes back what it asked for before.
    host.docker(&["rm", "--force", "second"]).expect("removed");
    assert_eq!(host.inspect_volume("db").expect("there")["Status"]["containers_here"], 1);
    assert_eq!(host.mounted().expect("a host"), ["db"]);
}

fn volumes_in_use_are_not_removed(host: &DockerHost) {
    // The engine itself knows of its containers; a volume that is mounted elsewhere only the plugin does.
    let error = refused(host, &["volume", "rm", "db"]);
    assert!(error.contains("in use"), "{error}");
}

fn a_dead_mount_is_repaired(cluster: &Cluster, host: &DockerHost) {
    let (sessions, _) = cluster.admin_json(&["sessions", "--json", "--volume", "db"], LIMIT).expect("listed");
    host.kill_process(sessions[0]["pid"].as_i64().expect("a process")).expect("killed");
    refused(host, &["exec", "first", "/bin/cat", "/data/file"]);
    // Who comes anew gets a mount that works; the engine's restart, later, gives one to `first`.
    assert_eq!(host.run_container("db", "cat /data/file").expect("read"), "one\ntwo\nthree");
    assert_eq!(host.inspect_volume("db").expect("there")["Status"]["containers_here"], 1);
    assert_eq!(host.mounted().expect("a host"), ["db"], "the dead one is gone");
}

fn the_engine_is_restarted(host: &mut DockerHost) {
    host.docker(&["update", "--restart", "always", "first"]).expect("updated");
    host.stop_engine().expect("stops");
    host.start_engine().expect("starts again");
    until("the container to run again", LIMIT, || {
        let said = host.docker(&["exec", "first", "/bin/cat", "/data/file"])?;
        anyhow::ensure!(said == "one\ntwo\nthree\none", "{said}");
        Ok(())
    })
    .expect("it runs again with its data");
    assert_eq!(host.inspect_volume("db").expect("there")["Status"]["containers_here"], 1);
    // Once more, and nobody takes anything back: an engine that is killed forgets what it asked for.
    host.docker(&["update", "--restart", "no", "first"]).expect("updated");
    host.kill_engine().expect("killed");
    host.start_engine().expect("starts again");
    host.docker(&["rm", "--force", "first"]).expect("removed");
    assert_eq!(host.run_container("db", "cat /data/file").expect("read"), "one\ntwo\nthree\none");
    until("the last container's end to unmount", LIMIT, || {
        let mounted = host.mounted()?;
        anyhow::ensure!(mounted.is_empty(), "{mounted:?}");
        Ok(())
    })
    .expect("unmounted");
    assert_eq!(host.inspect_volume("db").expect("there")["Status"]["containers_here"], 0);
    host.docker(&["volume", "rm", "db"]).expect("removed");
    assert!(refused(host, &["volume", "inspect", "db"]).to_lowercase().contains("no such volume"));
}

fn what_others_made_is_taken_and_removed(cluster: &Cluster, host: &DockerHost) {
    cluster.admin(&["volume", "create", "made"]).expect("created");
    assert_eq!(host.run_container("made", "echo x > /data/file; cat /data/file").expect("used"), "x");
    // With no plugin to ask, nothing is there for a container; with it, the same again.
    host.docker(&["volume", "rm", "made"]).expect("removed");
    let left = cluster.admin(&["volume", "list"]).expect("listed");
    assert!(!left.contains("made") && !left.contains("db"), "{left}");
}

fn wait_for_word(host: &DockerHost, container: &str, word: &str) {
    until(word, LIMIT, || {
        let said = host.docker(&["logs", container])?;
        anyhow::ensure!(said.lines().any(|line| line == word), "it said {said:?}");
        Ok(())
    })
    .expect("the container says so");
}

fn what_is_only_read_is_not_written(host: &DockerHost) {
    host.create_volume("read", &["read-only=true"]).expect("created");
    let written = host.run_container("read", "touch /data/file").expect_err("read only").to_string();
    assert!(written.contains("Read-only"), "{written}");
    host.docker(&["volume", "rm", "read"]).expect("removed");
}
