//! Every role tells how it is: `/healthz`, `/readyz`, `/metrics`, on the address that the line `ready` or the configuration names.

use holdfast_tests::process::field;
use holdfast_tests::{Cluster, Options, can_mount, until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

pub(super) fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The value of a metric, its labels as they are written.
pub(super) fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
}

/// What a server's configuration says of where it is watched.
pub(super) fn configured(folder: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(folder.join("cluster").join(name).join("config.toml")).expect("read");
    let table: toml::Table = text.parse().expect("TOML");
    table["telemetry-address"].as_str().expect("written by init").to_owned()
}

#[test]
fn every_role_says_how_it_is_and_counts_what_it_does() {
    if !can_mount("every_role_says_how_it_is_and_counts_what_it_does", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let seen_by_mount = field(cluster.mounted(mount).ready_line(), "telemetry").expect("named").to_owned();
    for n in 0..20 {
        let path = at.join(format!("f{n}"));
        std::fs::write(&path, vec![7; 10_000]).expect("written");
        std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("synced");
    }
    let (metadata, storage) = (configured(cluster.folder(), "metadata-1"), configured(cluster.folder(), "storage-1"));
    for address in [&metadata, &storage, &seen_by_mount] {
        assert!(address.starts_with("127.0.0.1:"), "{address} is not loopback");
        for path in ["/healthz", "/readyz"] {
            let answer = get(address, path).expect("answers");
            assert!(answer.starts_with("HTTP/1.1 200"), "{address}{path}: {answer}");
        }
    }
    let metrics = |address: &str| get(address, "/metrics").expect("answers");
    let of_mount = metrics(&seen_by_mount);
    assert!(value(&of_mount, "holdfast_client_operation_seconds_count{operation=\"create\"}") >= 20.0);
    assert!(value(&of_mount, "holdfast_client_message_seconds_count{peer=\"storage\"}") >= 20.0);
    let of_storage = metrics(&storage);
    assert!(value(&of_storage, "holdfast_storage_changes_total") >= 20.0);
    assert!(value(&of_storage, "holdfast_storage_stage_seconds_count{stage=\"batch\"}") >= 1.0);
    let leader = cluster.leader_of(1).expect("somebody leads");
    let of_leader = metrics(&configured(cluster.folder(), &leader));
    assert!(value(&of_leader, "holdfast_metadata_request_seconds_count{operation=\"create\"}") >= 20.0);
    assert!(value(&of_leader, "holdfast_metadata_stage_seconds_count{stage=\"log\"}") >= 20.0);
    assert!((value(&of_leader, "holdfast_metadata_leads{shard=\"1\"}") - 1.0).abs() < 0.1);

    // Alone, a server is alive, and says why it is not ready.
    for name in ["metadata-2", "metadata-3"] {
        cluster.server(name).expect("there").kill().expect("killed");
    }
    until("a reason", Duration::from_secs(20), || {
        let answer = get(&metadata, "/readyz")?;
        anyhow::ensure!(answer.starts_with("HTTP/1.1 503") && answer.contains("has no leader"), "{answer}");
        Ok(())
    })
    .expect("it says so");
    assert!(get(&metadata, "/healthz").expect("answers").starts_with("HTTP/1.1 200"));
    cluster.start_all().expect("whole again");
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn a_slow_call_is_logged() {
    if !can_mount("a_slow_call_is_logged", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    std::fs::write(at.join("first"), b"x").expect("written");
    // Both followers stand still: what is created waits for them, after it is on the leader's own disk.
    let leader = cluster.leader_of(1).expect("somebody leads");
    let followers: Vec<String> = (1..=3).map(|n| format!("metadata-{n}")).filter(|name| *name != leader).collect();
    for name in &followers {
        cluster.server(name).expect("there").suspend().expect("stands still");
    }
    let writer = std::thread::spawn(move || std::fs::create_dir(at.join("slow")));
    std::thread::sleep(Duration::from_millis(1300));
    for name in &followers {
        cluster.server(name).expect("there").signal(rustix::process::Signal::CONT).expect("goes on");
    }
    writer.join().expect("no panic").expect("made in the end");
    until("a line in a log", Duration::from_secs(20), || {
        let log = cluster.log_tails();
        let line = log.lines().find(|line| line.contains("slow call") && line.contains("total_ms=")).map(str::to_owned);
        anyhow::Context::with_context(line, || format!("no line about it in\n{log}"))
    })
    .expect("it is logged");
    cluster.mounted(mount).unmount().expect("unmounts");
}

/// With nothing too fast to be slow, each kind of server says of its requests where the time went.
#[test]
fn a_slow_request_is_logged_with_where_its_time_went() {
    let name = "telemetry::a_slow_request_is_logged_with_where_its_time_went";
    if !can_mount(name, &[]) {
        return;
    }
    let mut cluster = Cluster::prepare(&Options::default()).expect("prepared");
    let names: Vec<String> = cluster.servers().iter().map(|server| server.name().to_owned()).collect();
    for name in &names {
        let path = cluster.folder().join("cluster").join(name).join("config.toml");
        let mut table: toml::Table = std::fs::read_to_string(&path).expect("read").parse().expect("TOML");
        table.insert("slow-operation".into(), "0 ms".into());
        std::fs::write(&path, toml::to_string(&table).expect("encodes")).expect("written");
    }
    cluster.start_all().expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let folder = cluster.folder().to_path_buf();
    // Lines of one kind of server about one operation.
    let lines = |kind: &str, operation: &str| {
        let logs = names.iter().filter(|name| name.starts_with(kind));
        let texts = logs.filter_map(|name| std::fs::read_to_string(folder.join(format!("{name}.log"))).ok());
        let wanted = format!(" operation=\"{operation}\"");
        let about = |line: &&str| line.contains("slow request") && line.contains(&wanted);
        texts.flat_map(|text| text.lines().filter(about).map(str::to_owned).collect::<Vec<_>>()).collect::<Vec<_>>()
    };
    // Only so many lines a second are written, and everything is slow: again until these are among them.
    let mut made = 0;
    for (kind, operation, fields) in [
        ("metadata", "create", ["total_ms=", "queue_ms=", "log_ms=", "commit_ms="]),
        ("storage", "write", ["turn_ms=", "queue_ms=", "disk_ms=", "members_ms="]),
    ] {
        // A request that was repeated, and found done, went to no disk: its line tells less.
        let tells = |line: &String, field: &str| {
            let value = line.split(' ').find_map(|word| word.strip_prefix(field));
            value.is_some_and(|value| value.parse::<u64>().is_ok())
        };
        until(&format!("a line about {operation} with {fields:?}"), Duration::from_secs(60), || {
            made += 1;
            let file = std::fs::File::create(at.join(format!("f{made}")))?;
            std::os::unix::fs::FileExt::write_all_at(&file, &[7; 10_000], 0)?;
            file.sync_all()?;
            let logged = lines(kind, operation);
            let whole = logged.iter().any(|line| fields.iter().all(|field| tells(line, field)));
            if whole { Ok(()) } else { anyhow::bail!("not among {logged:?}") }
        })
        .expect("it is logged");
    }
    cluster.mounted(mount).unmount().expect("unmounts");
}
