//! The suites of `cargo xtask test`, in the order they run: what can fail fast comes first.

use std::path::Path;

use anyhow::Result;

use crate::needs;
use crate::step::Step;

/// The version of cargo-deny that `deny.toml` is written for.
const CARGO_DENY_VERSION: &str = "0.20.2";
/// The version of the POSIX suite whose failures `docs/posix.md` lists.
const PJDFSTEST_VERSION: &str = "0.2.2";
/// The file system exerciser.
const FSX_VERSION: &str = "0.3.2";
/// Seeds the simulator runs each time; fresh ones are for the night.
const SIM_SEEDS: &str = "200";
/// And in a long run.
const SIM_SEEDS_LONG: &str = "5000";

/// How much more time a long run has: its longest test makes three million files, and its fsx runs have an hour each.
pub const LONGER: u64 = 12;

/// A suite: a name and what it runs.
pub struct Suite {
    /// The name in the table and behind `--only`.
    pub name: &'static str,
    /// Seconds on 2 cores when nothing is known from an earlier run.
    pub seconds_expected: u64,
    /// Seconds after which what is still running is ended and counted as failed. A long run has [`LONGER`] times as many.
    pub seconds_max: u64,
    /// Makes the steps; called when the suite's turn has come, so that it may install what it needs.
    pub steps: fn(&Context<'_>) -> Result<Vec<Step>>,
}

/// What steps may depend on.
pub struct Context<'a> {
    /// Cargo's target folder.
    pub target: &'a Path,
    /// Long variants: 60 s of pgbench, 20 power cuts, more seeds.
    pub long: bool,
}

/// All suites.
pub const SUITES: &[Suite] = &[
    Suite { name: "check", seconds_expected: 300, seconds_max: 1_800, steps: check },
    Suite { name: "build", seconds_expected: 420, seconds_max: 2_400, steps: build },
    Suite { name: "unit", seconds_expected: 60, seconds_max: 900, steps: unit },
    Suite { name: "simulation", seconds_expected: 240, seconds_max: 1_200, steps: simulation },
    Suite { name: "cluster", seconds_expected: 1_300, seconds_max: 2_700, steps: cluster },
    Suite { name: "plugins", seconds_expected: 90, seconds_max: 600, steps: plugins },
    Suite { name: "applications", seconds_expected: 240, seconds_max: 900, steps: applications },
    Suite { name: "docker", seconds_expected: 90, seconds_max: 600, steps: docker },
    Suite { name: "posix", seconds_expected: 300, seconds_max: 900, steps: posix },
];

/// The steps of `cargo xtask check`.
///
/// Clippy uses the release profile, so that build scripts (one compiles a C library) run once for it and the build.
///
/// # Errors
/// Never today; a missing cargo-deny becomes a skip.
pub fn check(context: &Context<'_>) -> Result<Vec<Step>> {
    let deny = match needs::cargo_tool(context.target, "cargo-deny", CARGO_DENY_VERSION) {
        Ok(program) => {
            Step::exits("deny", &[&program.to_string_lossy(), "--offline", "check", "bans", "licenses", "sources"])
        }
        Err(error) => Step::unavailable(
            "deny",
            &format!("cargo-deny could not be installed ({error}); the tidy test checks licences and sources"),
        ),
    };
    Ok(vec![
        // The offline checks look at the crates of every platform.
        Step::exits("fetch", &["cargo", "fetch", "--locked", "--quiet"]),
        Step::exits("fmt", &["cargo", "fmt", "--all", "--check"]),
        Step::exits(
            "clippy",
            &[
                "cargo",
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--keep-going",
                "--",
                "-D",
                "warnings",
            ],
        ),
        Step::exits("clippy, with faults", &CLIPPY_FAULTS),
        Step::tests(
            "tidy",
            &["cargo", "test", "--release", "--quiet", "--package", "holdfast-tests", "--test", "tidy"],
        ),
        deny,
        Step::tests("doc tests", &["cargo", "test", "--release", "--workspace", "--doc", "--no-fail-fast"]),
    ])
}

/// A second binary beside the first; only our own crates that touch disks, clocks and connections are compiled again for it.
const FAULTS: [&str; 8] =
    ["cargo", "build", "--release", "--package", "holdfast", "--features=faults", "--bin", "holdfast-faults"];

/// What only that one has in it.
const CLIPPY_FAULTS: [&str; 11] = [
    "cargo",
    "clippy",
    "--release",
    "--quiet",
    "--package",
    "holdfast",
    "--features=faults",
    "--all-targets",
    "--",
    "-D",
    "warnings",
];

fn build(_: &Context<'_>) -> Result<Vec<Step>> {
    Ok(vec![
        Step::exits("build the binary", &["cargo", "build", "--release", "--package", "holdfast"]),
        Step::exits("build it with faults on demand", &FAULTS),
        Step::exits(
            "build the tests",
            &["cargo", "test", "--release", "--workspace", "--lib", "--bins", "--tests", "--no-run"],
        ),
    ])
}

fn unit(context: &Context<'_>) -> Result<Vec<Step>> {
    let mut every = vec!["cargo", "test", "--release", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"];
    every.extend(["--exclude", "holdfast-tests"]);
    Ok(vec![
        Step::tests("all crates", &every),
        Step::tests(
            "test helpers",
            &["cargo", "test", "--release", "--package", "holdfast-tests", "--lib", "--no-fail-fast"],
        ),
        suite_of("compat", context),
        suite_of("fuzz", context),
        suite_of("reference", context),
    ])
}

/// The whole-cluster simulator: that its runs are determined by their seeds, fixed seeds, deliberate bugs.
fn simulation(context: &Context<'_>) -> Result<Vec<Step>> {
    let seeds = if context.long { SIM_SEEDS_LONG } else { SIM_SEEDS };
    // The program as the build step left it: `cargo run` would choose other features and compile half the tree again.
    let program = context.target.join("release/sim");
    let program = program.to_string_lossy();
    Ok(vec![
        suite_of("simulation", context),
        suite_of("orders", context),
        Step::exits("fixed seeds", &[&program, "--notes", "--seeds", seeds, "--from", "1"]),
        Step::exits("deliberate bugs are caught", &[&program, "--notes", "--mutations"]),
    ])
}

/// Half of the tests beside the other half: they mostly wait, for what is silent to be missed and for disks. In a long run figures matter,
/// and each test has the machine to itself.
fn cluster(context: &Context<'_>) -> Result<Vec<Step>> {
    if context.long {
        return Ok(vec![suite_of("cluster", context)]);
    }
    let skipped: Vec<&str> = CLUSTER_FIRST.iter().flat_map(|module| ["--skip", module]).collect();
    Ok(vec![
        suite_of("cluster", context).named("cluster, first half").and(&CLUSTER_FIRST),
        suite_of("cluster", context).named("cluster, second half").and(&skipped).beside(),
    ])
}

/// The modules of the cluster suite that are its first half: chosen so that both end at about the same time.
const CLUSTER_FIRST: [&str; 13] = [
    "backup::",
    "bad_input::",
    "chaos::",
    "fsck::",
    "full_disk::",
    "large_directory::",
    "limits::",
    "locks::",
    "membership::",
    "memory::",
    "mount_ends::",
    "network_loss::",
    "partitions::",
];

fn plugins(context: &Context<'_>) -> Result<Vec<Step>> {
    Ok(vec![suite_of("csi", context)])
}

fn applications(context: &Context<'_>) -> Result<Vec<Step>> {
    Ok(vec![suite_of("applications", context)])
}

/// Containers of the real engine, with volumes.
fn docker(context: &Context<'_>) -> Result<Vec<Step>> {
    Ok(vec![suite_of("docker", context)])
}

fn posix(context: &Context<'_>) -> Result<Vec<Step>> {
    let mut step = suite_of("posix", context);
    // The tests themselves say that they cannot run when a tool is not there.
    for (key, krate, version) in
        [("HOLDFAST_TEST_PJDFSTEST", "pjdfstest", PJDFSTEST_VERSION), ("HOLDFAST_TEST_FSX", "fsx", FSX_VERSION)]
    {
        match needs::cargo_tool(context.target, krate, version) {
            Ok(program) => step = step.with(key, &program.to_string_lossy()),
            Err(error) => println!("    {error:#}"),
        }
    }
    Ok(vec![step])
}

/// One test program of the tests package. One test at a time: each has a cluster and two cores to itself, and its output
/// (stalls, rates) goes to the log as it comes.
fn suite_of(name: &str, context: &Context<'_>) -> Step {
    let words = [
        "cargo",
        "test",
        "--release",
        "--package",
        "holdfast-tests",
        "--test",
        name,
        "--",
        "--test-threads=1",
        "--nocapture",
    ];
    let step = Step::tests(name, &words);
    if context.long { step.with("HOLDFAST_TEST_LONG", "1") } else { step }
}
