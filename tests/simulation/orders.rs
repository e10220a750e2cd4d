//! Every distinct order of starting 3 metadata servers, 3 storage nodes and a mount leads to a cluster that serves.

#[allow(dead_code, unused_imports, reason = "the simulator's program uses the rest")]
#[path = "world/mod.rs"]
mod world;

use std::time::Duration;
use world::{Start, all_orders, run_in_order};

#[test]
fn all_orders_of_starting_lead_to_a_cluster_that_serves() {
    let orders = all_orders();
    assert_eq!(orders.len(), 140);
    let mut failed = Vec::new();
    for (at, order) in orders.iter().enumerate() {
        // Within one election, and longer than any.
        let gap = Duration::from_millis(if at % 2 == 0 { 300 } else { 2000 });
        match run_in_order(at as u64 + 1, order, gap) {
            Ok(outcome) => assert!(outcome.totals.stats.calls > 20, "{order:?}: {} calls", outcome.totals.stats.calls),
            Err(failure) => failed.push(format!("seed {} {order:?}: {}", at + 1, failure.reason)),
        }
    }
    assert!(failed.is_empty(), "{} of 140 orders:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn a_cluster_without_metadata_serves_nobody() {
    // What the test above would say if somebody waited for ever.
    let order = [Start::Storage, Start::Storage, Start::Storage, Start::Mount];
    assert!(run_in_order(1, &order, Duration::from_millis(300)).is_err());
}
