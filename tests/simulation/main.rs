//! What the simulator itself promises. Its seeds and its deliberate bugs are run by the binary beside this file (`cargo xtask sim`).

#[allow(dead_code, unused_imports, reason = "the simulator's program uses the rest")]
#[path = "world/mod.rs"]
mod world;

use world::{SlowIn, Totals, run, run_crossing, run_with_one_slow};

/// A seed that fails must fail again when it is replayed.
#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| run(seed, None, 0).unwrap_or_else(|failure| panic!("seed {seed}: {}", failure.reason)).trace;
    let first = trace(4);
    assert_eq!(first, trace(4), "seed 4 went another way the second time");
    assert_ne!(first, trace(14), "seeds 4 and 14, of one flavour, went the same way");
}

/// Keeping the text of the trace, as a replay does, changes nothing of the run.
#[test]
fn watching_a_run_does_not_change_it() {
    let unwatched = run(3, None, 0).unwrap_or_else(|failure| panic!("seed 3: {}", failure.reason));
    let watched = run(3, None, 100).unwrap_or_else(|failure| panic!("seed 3: {}", failure.reason));
    assert_eq!(unwatched.trace, watched.trace);
}

/// The size of a seed: at least 2,000 client operations and 20 faults.
#[test]
fn a_seed_is_as_large_as_it_is_said_to_be() {
    for seed in 1..=10 {
        let totals = run(seed, None, 0).unwrap_or_else(|failure| panic!("seed {seed}: {}", failure.reason)).totals;
        assert!(totals.stats.calls >= 2_000, "seed {seed} has {} calls", totals.stats.calls);
        assert!(totals.stats.faults >= 20, "seed {seed} has {} faults", totals.stats.faults);
    }
}

/// What never happened in many seeds is not tested by them: such a run fails, and says what it is.
#[test]
fn what_never_happens_is_named() {
    let nothing = Totals::default();
    assert_eq!(nothing.missing().len(), nothing.coverage().len());
    let mut some = run(5, None, 0).unwrap_or_else(|failure| panic!("seed 5: {}", failure.reason)).totals;
    let before = some.missing();
    assert!(!before.contains(&"elections") && !before.contains(&"reconciliations"), "seed 5 lacks {before:?}");
    (some.elections, some.stats.storage.reconciliations) = (0, 0);
    let after = some.missing();
    assert!(after.contains(&"elections") && after.contains(&"reconciliations"), "{after:?}");
}

/// Two hosts that remove what the other makes, in one directory, never wait for each other in a circle.
#[test]
fn crossing_mkdir_and_unlink_in_one_directory_on_two_hosts_waits_for_nobody() {
    for seed in 1..=10 {
        if let Err(failure) = run_crossing(seed) {
            panic!("seed {seed}: {}", failure.reason);
        }
    }
}

/// One slow member decides nothing: it is set aside while it is slow, and back afterwards.
#[test]
fn a_slow_disk_or_node_is_set_aside_and_comes_back() {
    let mut failed = Vec::new();
    for seed in 1..=12 {
        for what in [SlowIn::Disk, SlowIn::Reads, SlowIn::Node] {
            if let Err(failure) = run_with_one_slow(seed, what) {
                failed.push(format!("seed {seed}, slow in {what:?}: {}", failure.reason));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
