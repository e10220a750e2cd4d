//! Whatever fails, in whatever order: nothing acknowledged is lost, replicas agree, and nobody sees an error.

use holdfast_tests::chaos::Chaos;
use holdfast_tests::report::long;
use holdfast_tests::{can_mount, note};
use std::time::Duration;

#[test]
fn chaos_loses_nothing_and_everything_goes_on() {
    let name = "chaos_loses_nothing_and_everything_goes_on";
    if !can_mount(name, &["ip", "nsenter", "nft", "mkfs.ext4", "losetup", "python3", "fallocate"]) {
        return;
    }
    // Always the same faults here; fresh ones are for `cargo xtask chaos`.
    let given = std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok());
    let chaos = Chaos { seed: given.unwrap_or(1), time: Duration::from_secs(if long() { 3600 } else { 120 }) };
    note(&format!("chaos, seed {}: HOLDFAST_SEED chooses others", chaos.seed));
    let report = chaos.run().unwrap_or_else(|error| panic!("{error:#}"));
    for line in report.to_string().lines() {
        note(&format!("chaos: {line}"));
    }
}
