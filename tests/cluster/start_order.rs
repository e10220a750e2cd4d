//! Components start in any order and wait for each other (promise P8). The simulator tries all orders of all processes
//! (`tests/simulation/orders.rs`); here are the kinds of real processes, and some orders at random.

use holdfast_tests::report::long;
use holdfast_tests::{Cluster, Options, can_mount};
use holdfast_types::prng::Prng;
use std::time::Duration;

/// Between two starts.
const GAP: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(60);

/// Starts processes in an order with pauses, then writes and reads.
fn start_in(order: &[Vec<String>], gap: Duration) {
    let mut cluster = Cluster::prepare(&Options::default()).expect("made");
    let mount = cluster.prepare_mount().expect("made");
    for (at, names) in order.iter().enumerate() {
        if at > 0 {
            std::thread::sleep(gap);
        }
        for name in names {
            let process =
                if name == "mount" { cluster.mounted(mount).process() } else { cluster.server(name).expect("there") };
            process.start().expect("started");
        }
    }
    cluster.mounted(mount).wait_ready().unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
    for server in cluster.servers() {
        server.wait_ready(LIMIT).unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
    }
    cluster.wait_healthy(LIMIT).unwrap_or_else(|error| panic!("{order:?}: {error:#}"));
    let path = cluster.mounted(mount).path().join("file");
    std::fs::write(&path, b"in any order").expect("written");
    assert_eq!(std::fs::read(&path).expect("read"), b"in any order");
    cluster.mounted(mount).unmount().expect("unmounts");
}

fn kind(kind: &str) -> Vec<String> {
    if kind == "mount" { vec![kind.into()] } else { (1..=3).map(|n| format!("{kind}-{n}")).collect() }
}

#[test]
fn kinds_of_processes_start_in_any_order() {
    if !can_mount("kinds_of_processes_start_in_any_order", &[]) {
        return;
    }
    let (m, s, c) = (kind("metadata"), kind("storage"), kind("mount"));
    let orders = [[&c, &s, &m], [&s, &c, &m], [&m, &s, &c], [&m, &c, &s], [&s, &m, &c], [&c, &m, &s]];
    // The first two, where whoever is needed comes last, say most.
    for order in orders.iter().take(if long() { 6 } else { 2 }) {
        start_in(&order.map(Clone::clone), GAP);
    }
}

#[test]
fn single_processes_start_in_random_orders() {
    if !can_mount("single_processes_start_in_random_orders", &[]) {
        return;
    }
    let seed = std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_secs())
    });
    println!("HOLDFAST_SEED={seed}");
    let mut prng = Prng::new(seed);
    for _ in 0..if long() { 6 } else { 1 } {
        let mut names = [kind("metadata"), kind("storage"), kind("mount")].concat();
        for at in (1..names.len()).rev() {
            names.swap(at, prng.below(at as u64 + 1) as usize);
        }
        let order: Vec<Vec<String>> = names.into_iter().map(|name| vec![name]).collect();
        start_in(&order, Duration::from_millis(prng.between(0, 2000)));
    }
}
