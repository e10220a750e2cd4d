//! Metadata servers come and go under load: nobody's call fails, nothing acknowledged is lost.

use holdfast_tests::load::Load;
use holdfast_tests::{Cluster, Options, can_mount, until};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

pub fn free_address() -> String {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("bound").to_string()
}

/// Ids of the metadata servers that vote, as `admin status` has them.
fn voters(cluster: &Cluster) -> Vec<u64> {
    let status = cluster.status().expect("a status");
    let servers = status["metadata"].as_array().expect("a list");
    let votes = servers.iter().filter(|server| server["place"] == "voter");
    votes.filter_map(|server| server["id"].as_u64()).collect()
}

#[test]
fn a_lost_metadata_server_is_replaced_while_everybody_works() {
    let name = "a_lost_metadata_server_is_replaced_while_everybody_works";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let load = Load::start(&at, "load").expect("starts");
    load.wait_for(100).expect("acknowledged");
    // It is gone for good, with its disk.
    let lost = cluster.leader_of(1).expect("somebody leads");
    let old = lost.rsplit('-').next().expect("a number").to_string();
    cluster.server(&lost).expect("ours").kill().expect("killed");
    let folder = cluster.folder().join("cluster");
    std::fs::remove_dir_all(folder.join(&lost).join("data")).expect("wiped");
    let said = cluster.admin(&["metadata", "replace", &old, "4", &free_address()]).expect("on record");
    assert!(said.contains("metadata-4"), "{said}");
    cluster.forget(&lost);
    cluster.start_more("metadata-4", "config.toml").expect("joins");
    cluster.wait_healthy(LIMIT).expect("whole again");
    let now = voters(&cluster);
    assert!(now.len() == 3 && now.contains(&4) && !now.contains(&old.parse().expect("a number")), "{now:?}");
    load.wait_for(50).expect("goes on");
    // What is left of it here goes out of use, and a storage node whose configuration names nobody else finds the others.
    assert!(cluster.admin(&["metadata", "remove", &old]).expect("tidied up").contains("is out"));
    assert!(!folder.join(&lost).join("config.toml").exists());
    let file = std::fs::read_to_string(folder.join("cluster.toml")).expect("readable");
    assert!(!file.contains(&format!("id = {old}\n")) && file.contains("id = 4\n"), "{file}");
    let config = folder.join("storage-1/config.toml");
    let mut table: toml::Table = std::fs::read_to_string(&config).expect("readable").parse().expect("TOML");
    let servers = table["metadata"].as_array_mut().expect("a list");
    servers.retain(|server| server["id"].as_integer() == old.parse().ok());
    assert_eq!(servers.len(), 1);
    std::fs::write(&config, table.to_string()).expect("written");
    cluster.server("storage-1").expect("ours").kill().expect("killed");
    cluster.restart("storage-1").expect("finds the leader");
    cluster.wait_healthy(LIMIT).expect("whole again");
    // Another of the first goes, too: there is no majority without the new one.
    let other = (1..=3).map(|n| format!("metadata-{n}")).find(|name| *name != lost).expect("two are left");
    cluster.server(&other).expect("ours").kill().expect("killed");
    load.wait_for(100).expect("the new one counts");
    cluster.restart(&other).expect("comes back");
    // A mount that starts now finds everybody by the file that `replace` has written.
    let second = cluster.mount().expect("mounted again");
    cluster.mounted(second).unmount().expect("unmounts");
    let report = load.stop();
    assert_eq!(report.errors(), Vec::<String>::new());
    assert_eq!(report.missing(), Vec::<String>::new());
    // A third server on the leader's own host takes its leave in order.
    let leader = cluster.leader().expect("somebody leads");
    let id = leader.rsplit('-').next().expect("a number").to_string();
    cluster.admin(&["metadata", "remove", &id]).expect("out");
    until("it ends by itself", LIMIT, || {
        let server = cluster.server(&leader)?;
        anyhow::ensure!(!server.is_running(), "it still runs");
        Ok(())
    })
    .expect("it is told");
    assert!(cluster.server(&leader).expect("ours").log_tail().contains("removed from the cluster"));
    cluster.forget(&leader);
    assert_eq!(voters(&cluster).len(), 2);
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn a_metadata_server_that_lost_its_data_does_not_start_as_if_it_were_new() {
    let name = "a_metadata_server_that_lost_its_data_does_not_start_as_if_it_were_new";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let data = cluster.folder().join("cluster/metadata-2/data");
    for (lost, left) in [("shard-1/log", "log of shard1"), ("", "no START")] {
        cluster.server("metadata-2").expect("ours").kill().expect("killed");
        std::fs::remove_dir_all(data.join(lost)).expect("lost");
        assert!(cluster.restart("metadata-2").is_err(), "it votes again under its old id");
        let said = cluster.server("metadata-2").expect("ours").log_tail();
        assert!(said.contains("admin metadata replace 2") && said.contains(left), "{said}");
    }
    // Somebody tries to be clever. The others know its log by another life, and tell it.
    std::fs::create_dir_all(&data).expect("made");
    std::fs::write(data.join("START"), "form\n").expect("written");
    let server = cluster.server("metadata-2").expect("ours");
    server.kill().expect("killed");
    server.start().expect("starts");
    assert!(!server.wait_ended(LIMIT).expect("ends").success());
    assert!(server.log_tail().contains("the log that it had is lost"), "{}", server.log_tail());
    cluster.forget("metadata-2");
    cluster.admin(&["metadata", "replace", "2", "5", &free_address()]).expect("on record");
    cluster.start_more("metadata-5", "config.toml").expect("joins");
    cluster.wait_healthy(LIMIT).expect("whole again");
}

#[test]
fn a_status_that_cannot_ask_ends_with_2_and_other_commands_with_1() {
    for (words, code) in [(&["status"][..], 2), (&["status", "--json"][..], 2), (&["volume", "list"][..], 1)] {
        let mut command = std::process::Command::new(holdfast_tests::command::holdfast().expect("built"));
        command.args(["admin", "--cluster", "/nowhere/cluster.toml"]).args(words);
        let said = command.output().expect("runs");
        assert_eq!(said.status.code(), Some(code), "{words:?}");
        assert!(String::from_utf8_lossy(&said.stderr).contains("/nowhere/cluster.toml"), "{said:?}");
    }
}

#[test]
fn three_metadata_servers_become_five_and_two_of_the_first_may_go() {
    let name = "membership::three_metadata_servers_become_five_and_two_of_the_first_may_go";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let load = Load::start(&at, "load").expect("starts");
    load.wait_for(50).expect("acknowledged");
    for id in ["4", "5"] {
        let (server, address) = (format!("metadata-{id}"), free_address());
        let said = cluster.admin(&["metadata", "add", id, &address]).expect("on record");
        let folder = cluster.folder().join("cluster").join(&server);
        assert!(said.contains(&format!("{server}/config.toml")), "{said}");
        // What it is told, and what it proves itself with.
        let text = std::fs::read_to_string(folder.join("config.toml")).expect("written");
        let config: toml::Table = text.parse().expect("TOML");
        assert_eq!(config["id"].as_integer().map(|id| id.to_string()).as_deref(), Some(id), "{text}");
        assert_eq!(config["address"].as_str(), Some(&*address), "{text}");
        let read = |key: &str| {
            let path = folder.join(config[key].as_str().expect("a path"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert!(folder.join("cert.pem").is_file() && config["certificate"].as_str() == Some("cert.pem"), "{text}");
        assert!(read("certificate").contains("BEGIN CERTIFICATE") && read("key").contains("PRIVATE KEY"));
        let authority = std::fs::read_to_string(cluster.folder().join("cluster/metadata-1/ca.pem")).expect("read");
        assert_eq!(read("authority"), authority, "of the cluster's own authority");
        cluster.start_more(&server, "config.toml").expect("joins");
        cluster.wait_healthy(LIMIT).expect("caught up");
    }
    assert_eq!(voters(&cluster), [1, 2, 3, 4, 5]);
    // Two of the first are lost for good, one of them a leader: without the new ones there is no majority.
    let leader = cluster.leader_of(1).expect("somebody leads");
    let first = |name: &&String| ["metadata-1", "metadata-2", "metadata-3"].contains(&name.as_str());
    let mut lost: Vec<String> = Some(leader).iter().filter(first).cloned().collect();
    lost.extend(
        (1..=3)
            .map(|n| format!("metadata-{n}"))
            .filter(|name| !lost.contains(name))
            .take(2 - lost.len())
            .collect::<Vec<_>>(),
    );
    for server in &lost {
        cluster.server(server).expect("ours").kill().expect("killed");
        std::fs::remove_dir_all(cluster.folder().join("cluster").join(server).join("data")).expect("wiped");
    }
    load.wait_for(100).expect("goes on");
    for server in &lost {
        let id = server.rsplit('-').next().expect("a number");
        cluster.admin(&["metadata", "remove", id]).expect("out");
        cluster.forget(server);
    }
    cluster.wait_healthy(LIMIT).expect("three are whole");
    let now = voters(&cluster);
    assert!(now.len() == 3 && now.contains(&4) && now.contains(&5), "{now:?}");
    load.wait_for(50).expect("goes on");
    let report = load.stop();
    assert_eq!((report.errors(), report.missing()), (Vec::<String>::new(), Vec::<String>::new()));
    cluster.mounted(mount).unmount().expect("unmounts");
}
