//! The protocol as the engine speaks it, over a socket, before a cluster in memory.

use super::*;
use crate::metrics::Metrics;
use crate::options::Access;
use crate::requests::Requests;
use crate::volumes::memory::Memory;
use crate::volumes::{User, Volume};
use holdfast_telemetry::metrics::Registry;
use holdfast_wire::open::OpenRule;
use serde_json::{Value, json};
use std::time::Instant;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// A plugin that serves a socket.
struct Served {
    folder: TempDir,
    memory: Memory,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
}

impl Served {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::with(folder, Memory::new()).await
    }

    async fn with(folder: TempDir, memory: Memory) -> Self {
        let requests = Requests::open(&folder.path().join("state")).expect("opens");
        let plugin = Arc::new(Plugin::new(memory.clone(), requests, Metrics::register(&mut Registry::default())));
        plugin.reconcile().await;
        let listener = listen(&folder.path().join("plugins/holdfast.sock")).await.expect("listens");
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, plugin, stopped));
        Self { folder, memory, stop, server }
    }

    /// Ends, and begins again with the same state and the same mounts.
    async fn restarted(self) -> Self {
        self.stop.send_replace(true);
        self.server.await.expect("ends");
        Self::with(self.folder, self.memory).await
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("plugins/holdfast.sock")).await.expect("connected")
    }

    /// Status and body of what answers a request.
    async fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        (status, body.to_owned())
    }

    async fn post(&self, path: &str, body: &str) -> (u16, Value) {
        let request = request(path, body);
        let (status, body) = self.raw(&request).await;
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    /// What answers a call that is of the protocol.
    async fn call(&self, call: &str, body: Value) -> Value {
        let (status, answer) = self.post(&format!("/VolumeDriver.{call}"), &body.to_string()).await;
        assert_eq!(status, 200, "{call}: {answer}");
        answer
    }

    /// What a call that must work answers.
    async fn must(&self, call: &str, body: Value) -> Value {
        let answer = self.call(call, body).await;
        assert_eq!(answer["Err"], "", "{call}");
        answer
    }

    /// Why a call does not work.
    async fn refused(&self, call: &str, body: Value) -> String {
        let answer = self.call(call, body).await;
        let reason = answer["Err"].as_str().expect("a text").to_owned();
        assert!(!reason.is_empty(), "{call} worked: {answer}");
        reason
    }
}

fn request(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn the_plugin_is_a_volume_driver_of_global_scope() {
    let served = Served::new().await;
    // The engine sends no body with these.
    assert_eq!(served.post("/Plugin.Activate", "").await, (200, json!({ "Implements": ["VolumeDriver"] })));
    let (status, answer) = served.post("/VolumeDriver.Capabilities", "").await;
    assert_eq!((status, &answer["Capabilities"]["Scope"]), (200, &json!("global")));
}

#[tokio::test]
async fn the_life_of_a_volume() {
    let served = Served::new().await;
    let options = json!({ "size": "1GiB", "replicas": "3", "access": "single-writer" });
    served.must("Create", json!({ "Name": "db", "Opts": options })).await;
    let listed = served.must("List", json!({})).await;
    assert_eq!(listed["Volumes"], json!([{ "Name": "db", "Mountpoint": "" }]));
    assert_eq!(served.must("Path", json!({ "Name": "db" })).await["Mountpoint"], "");

    let mounted = served.must("Mount", json!({ "Name": "db", "ID": "one" })).await;
    assert_eq!(mounted["Mountpoint"], "/memory/db");
    assert_eq!(served.must("Path", json!({ "Name": "db" })).await["Mountpoint"], "/memory/db");
    let got = served.must("Get", json!({ "Name": "db" })).await;
    assert_eq!((&got["Volume"]["Name"], &got["Volume"]["Mountpoint"]), (&json!("db"), &json!("/memory/db")));
    let status = &got["Volume"]["Status"];
    assert_eq!((&status["size_bytes"], &status["used_bytes"]), (&json!(1 << 30), &json!(4096)));
    assert_eq!((&status["access"], &status["containers_here"]), (&json!("single-writer"), &json!(1)));
    assert_eq!(status["mounted_by"][0]["host"], "here");

    let reason = served.refused("Remove", json!({ "Name": "db" })).await;
    assert!(reason.contains("in use by 1 containers"), "{reason}");
    served.must("Unmount", json!({ "Name": "db", "ID": "one" })).await;
    assert_eq!(served.must("Path", json!({ "Name": "db" })).await["Mountpoint"], "");
    served.must("Remove", json!({ "Name": "db" })).await;
    let reason = served.refused("Get", json!({ "Name": "db" })).await;
    assert!(reason.contains("no volume \"db\""), "{reason}");
    // The engine did not hear the first answer.
    served.must("Remove", json!({ "Name": "db" })).await;
}

#[tokio::test]
async fn a_volume_that_exists_is_taken_as_it_is_or_refused_if_other_is_wanted() {
    let served = Served::new().await;
    served.must("Create", json!({ "Name": "db", "Opts": { "size": "1GiB" } })).await;
    served.must("Create", json!({ "Name": "db", "Opts": { "size": "1024MiB" } })).await;
    served.must("Create", json!({ "Name": "db", "Opts": null })).await;
    served.must("Create", json!({ "Name": "db" })).await;
    for (option, value, is) in [
        ("size", "2GiB", "size=1 GiB"),
        ("access", "single-writer", "access=shared"),
        ("read-only", "true", "read-only=false"),
    ] {
        let reason = served.refused("Create", json!({ "Name": "db", "Opts": { option: value } })).await;
        assert!(reason.contains(is) && reason.contains("\"db\""), "{reason}");
    }
    // One that the plugin did not make.
    let made = Volume {
        name: "made".into(),
        size_bytes: None,
        access: Access::Shared,
        read_only: false,
        open: OpenRule::Shared,
    };
    served.memory.state().volumes.insert("made".into(), made);
    served.must("Create", json!({ "Name": "made" })).await;
    let reason = served.refused("Create", json!({ "Name": "made", "Opts": { "size": "1GiB" } })).await;
    assert!(reason.contains("size=no limit"), "{reason}");
    assert_eq!(served.memory.state().done.iter().filter(|deed| deed.starts_with("create")).count(), 1);
}

#[tokio::test]
async fn options_that_cannot_be_kept_are_refused_and_nothing_is_made() {
    let served = Served::new().await;
    for (option, value, said) in [
        ("siez", "1GiB", "did you mean \"size\""),
        ("size", "1", "GiB"),
        ("replicas", "2", "keeps 3 copies"),
        ("open", "alone", "single-writer"),
        ("access", "", "single-writer"),
    ] {
        let reason = served.refused("Create", json!({ "Name": "db", "Opts": { option: value } })).await;
        assert!(reason.contains(said), "{reason}");
    }
    assert!(served.memory.state().volumes.is_empty());
}

#[tokio::test]
async fn containers_share_a_mount_until_the_last_has_gone_also_over_a_restart() {
    let served = Served::new().await;
    served.must("Create", json!({ "Name": "db" })).await;
    served.must("Mount", json!({ "Name": "db", "ID": "one" })).await;
    served.must("Mount", json!({ "Name": "db", "ID": "two" })).await;
    served.must("Mount", json!({ "Name": "db", "ID": "two" })).await;
    let served = served.restarted().await;
    assert_eq!(served.must("Path", json!({ "Name": "db" })).await["Mountpoint"], "/memory/db");
    served.must("Unmount", json!({ "Name": "db", "ID": "two" })).await;
    // An engine that was restarted says it again, and says things it never asked for.
    served.must("Unmount", json!({ "Name": "db", "ID": "two" })).await;
    served.must("Unmount", json!({ "Name": "db", "ID": "three" })).await;
    assert_eq!(served.must("Path", json!({ "Name": "db" })).await["Mountpoint"], "/memory/db");
    let served = served.restarted().await;
    served.must("Unmount", json!({ "Name": "db", "ID": "one" })).await;
    assert_eq!(served.must("Path", json!({ "Name": "db" })).await["Mountpoint"], "");
    assert_eq!(served.memory.state().done.iter().filter(|deed| *deed == "unmount db").count(), 1);
}

#[tokio::test]
async fn a_mount_that_nobody_counts_is_taken_away_at_the_next_start_and_a_counted_one_stays() {
    let served = Served::new().await;
    for name in ["counted", "left"] {
        served.must("Create", json!({ "Name": name })).await;
    }
    served.must("Mount", json!({ "Name": "counted", "ID": "one" })).await;
    // As a plugin leaves it that is killed after it mounted and before it counted.
    served.memory.state().mounted.insert("left".into());
    let served = served.restarted().await;
    assert_eq!(served.must("Path", json!({ "Name": "counted" })).await["Mountpoint"], "/memory/counted");
    assert_eq!(served.must("Path", json!({ "Name": "left" })).await["Mountpoint"], "");
}

#[tokio::test]
async fn what_a_killed_engine_forgot_counts_no_more_once_no_container_has_it() {
    let served = Served::new().await;
    for name in ["db", "logs"] {
        served.must("Create", json!({ "Name": name })).await;
        served.memory.state().mounted.insert(name.into());
        served.memory.state().in_use.insert(name.into());
    }
    served.stop.send_replace(true);
    served.server.await.expect("ends");
    let mut requests = Requests::open(&served.folder.path().join("state")).expect("opens");
    for name in ["db", "logs"] {
        requests.add(name, "forgotten", Some(Engine::dead())).expect("kept");
    }
    drop(requests);
    let served = Served::with(served.folder, served.memory).await;
    // A container may have outlived its engine.
    let reason = served.refused("Remove", json!({ "Name": "db" })).await;
    assert!(reason.contains("in use by 1"), "{reason}");
    served.memory.state().in_use.clear();
    served.must("Mount", json!({ "Name": "logs", "ID": "one" })).await;
    let reason = served.refused("Remove", json!({ "Name": "logs" })).await;
    assert!(reason.contains("in use by 2"), "the engine that runs may be starting a container: {reason}");
    served.must("Unmount", json!({ "Name": "logs", "ID": "one" })).await;
    assert_eq!(served.must("Path", json!({ "Name": "logs" })).await["Mountpoint"], "");
    served.must("Remove", json!({ "Name": "db" })).await;
}

#[tokio::test]
async fn a_mount_that_fails_is_not_counted_and_one_whose_caller_has_gone_is_undone() {
    let served = Served::new().await;
    served.must("Create", json!({ "Name": "db" })).await;
    served.memory.state().failing.insert("mount", "no route to the cluster");
    let reason = served.refused("Mount", json!({ "Name": "db", "ID": "one" })).await;
    assert!(reason.contains("cannot mount volume \"db\"") && reason.contains("no route"), "{reason}");
    served.memory.state().failing.clear();
    served.must("Remove", json!({ "Name": "db" })).await;

    served.must("Create", json!({ "Name": "db" })).await;
    let gate = served.memory.mounts_let_through.clone();
    gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut impatient = served.connect().await;
    let asked = request("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": "two" }).to_string());
    impatient.write_all(asked.as_bytes()).await.expect("sent");
    wait_until(|| served.memory.state().waiting == 1).await;
    drop(impatient);
    // One thread serves all: it has seen the end of that connection when it has answered on a later one.
    served.must("List", json!({})).await;
    gate.add_permits(1);
    wait_until(|| served.memory.state().done.iter().any(|deed| deed == "unmount db")).await;
    served.must("Remove", json!({ "Name": "db" })).await;
    assert!(served.memory.state().mounted.is_empty());
}

async fn wait_until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_unmount_that_fails_says_so_and_is_tried_again_when_asked_again() {
    let served = Served::new().await;
    served.must("Create", json!({ "Name": "db" })).await;
    served.must("Mount", json!({ "Name": "db", "ID": "one" })).await;
    served.memory.state().failing.insert("unmount", "device busy");
    let reason = served.refused("Unmount", json!({ "Name": "db", "ID": "one" })).await;
    assert!(reason.contains("device busy"), "{reason}");
    served.memory.state().failing.clear();
    served.must("Unmount", json!({ "Name": "db", "ID": "one" })).await;
    assert!(served.memory.state().mounted.is_empty());
}

#[tokio::test]
async fn a_volume_in_use_elsewhere_is_not_removed_and_who_uses_it_is_named() {
    let served = Served::new().await;
    served.must("Create", json!({ "Name": "db" })).await;
    let user = User { host: "other".into(), mount_point: "/m".into(), generation: 3, alive: false };
    served.memory.state().others.insert("db".into(), vec![user]);
    let reason = served.refused("Remove", json!({ "Name": "db" })).await;
    assert!(reason.contains("host other at /m, which is silent") && reason.contains("admin fence"), "{reason}");
    assert!(served.memory.state().volumes.contains_key("db"));
}

#[tokio::test]
async fn a_volume_that_waits_keeps_no_other_waiting_and_calls_for_one_follow_each_other() {
    let served = Arc::new(Served::new().await);
    for name in ["slow", "other"] {
        served.must("Create", json!({ "Name": name })).await;
    }
    let gate = served.memory.mounts_let_through.clone();
    gate.forget_permits(Semaphore::MAX_PERMITS);
    let slow = tokio::spawn({
        let served = Arc::clone(&served);
        async move { served.must("Mount", json!({ "Name": "slow", "ID": "one" })).await }
    });
    wait_until(|| served.memory.state().waiting == 1).await;
    let removal = tokio::spawn({
        let served = Arc::clone(&served);
        async move { served.refused("Remove", json!({ "Name": "slow" })).await }
    });
    served.must("Remove", json!({ "Name": "other" })).await;
    assert!(!slow.is_finished() && !removal.is_finished());
    gate.add_permits(1);
    assert_eq!(slow.await.expect("mounted")["Mountpoint"], "/memory/slow");
    assert!(removal.await.expect("refused").contains("in use by 1"));
}

#[tokio::test]
async fn what_is_not_of_the_protocol_is_refused_with_a_reason_and_the_next_request_served() {
    let served = Served::new().await;
    let (status, answer) = served.post("/VolumeDriver.Explode", "{}").await;
    assert_eq!(status, 404);
    assert!(answer["Err"].as_str().is_some_and(|reason| reason.contains("Explode")), "{answer}");
    for body in ["{", "7", "{\"Name\": 7}", "{\"Opts\": {\"size\": 7}}", "\u{0}"] {
        let (status, answer) = served.post("/VolumeDriver.Create", body).await;
        assert_eq!(status, 400, "{body}: {answer}");
    }
    let (status, _) = served.raw("GET /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status, 405);
    for (call, body, missing) in [
        ("Create", json!({}), "Name"),
        ("Mount", json!({ "Name": "db" }), "ID"),
        ("Mount", json!({ "ID": "one" }), "Name"),
        ("Unmount", json!({}), "Name"),
        ("Get", json!({}), "Name"),
    ] {
        let reason = served.refused(call, body).await;
        assert!(reason.contains(&format!("no {missing}")), "{call}: {reason}");
    }
    let large = format!("{{\"Name\": \"{}\"}}", "x".repeat(REQUEST_BYTES_MAX));
    // The server may answer before it has all of it, and close.
    let mut stream = served.connect().await;
    let _ = stream.write_all(request("/VolumeDriver.Create", &large).as_bytes()).await;
    drop(stream);
    served.must("List", json!({})).await;
}

#[tokio::test]
async fn a_socket_is_taken_from_who_has_ended_and_not_from_who_serves() {
    let served = Served::new().await;
    let path = served.folder.path().join("plugins/holdfast.sock");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others than root may ask for volumes");
    let error = listen(&path).await.expect_err("served").to_string();
    assert!(error.contains("--socket"), "{error}");
    served.must("List", json!({})).await;
    served.stop.send_replace(true);
    served.server.await.expect("ends");
    assert!(path.exists(), "an engine that finds nothing would not try again");
    drop(listen(&path).await.expect("taken over"));
}
