//! Components start in any order and wait for each other (promise P8). The simulator tries all orders of all processes
//! (`tests/simulation/orders.rs`); here are the kinds of real processes, and some orders at random.

use holdfast_tests::{Cluster, Options, can_mount, note};
use holdfast_types::prng::Prng;
use std::time::{Duration, Instant};

/// Between two starts.
const GAP: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(60);

/// Names of processes that start together, and the pause after each such lot.
type Order = (Vec<Vec<String>>, Duration);

/// Starts clusters side by side, since they mostly wait; each on hosts of its own, so that none takes another one's ports.
fn start_each(orders: &[Order]) {
    let begun = Instant::now();
    std::thread::scope(|scope| orders.iter().for_each(|(order, gap)| drop(scope.spawn(|| start_in(order, *gap)))));
    note(&format!("{} orders in {:.0} s", orders.len(), begun.elapsed().as_secs_f64()));
}

/// Starts processes in an order with pauses, then writes and reads.
fn start_in(order: &[Vec<String>], gap: Duration) {
    let mut cluster = Cluster::prepare(&Options { namespaces: true, ..Options::default() }).expect("made");
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
    if !can_mount("kinds_of_processes_start_in_any_order", &["ip", "nsenter"]) {
        return;
    }
    let (m, s, c) = (kind("metadata"), kind("storage"), kind("mount"));
    let orders = [[&c, &s, &m], [&s, &c, &m], [&m, &s, &c], [&m, &c, &s], [&s, &m, &c], [&c, &m, &s]];
    start_each(&orders.map(|order| (order.map(Clone::clone).into(), GAP)));
}

#[test]
fn single_processes_start_in_random_orders() {
    if !can_mount("single_processes_start_in_random_orders", &["ip", "nsenter"]) {
        return;
    }
    let seed = std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_secs())
    });
    println!("HOLDFAST_SEED={seed}");
    let mut prng = Prng::new(seed);
    let orders = [(); 6].map(|()| {
        let mut names = [kind("metadata"), kind("storage"), kind("mount")].concat();
        prng.shuffle(&mut names);
        let order = names.into_iter().map(|name| vec![name]).collect();
        (order, Duration::from_millis(prng.between(0, 2000)))
    });
    start_each(&orders);
}
