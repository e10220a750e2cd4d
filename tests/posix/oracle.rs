//! What no suite covers, by an oracle: the same random operations on the mount and on a directory of the local file system, all results
//! compared. Zeroed ranges, holes, exchanges, access lists, locks of open files, copied ranges, mappings mixed with direct I/O, names of any
//! bytes, other users.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast_tests::command::{repository, run};
use holdfast_tests::{Cluster, Options, Up, can_mount, note};

const LIMIT: Duration = Duration::from_secs(1800);

/// Operations of one run; with `--long` ten times as many.
const OPERATIONS: u64 = 2_500;

/// As `HOLDFAST_SEED` says; else another one each time, for the operations of yesterday are known to agree.
fn seed() -> u64 {
    let given = std::env::var("HOLDFAST_SEED").ok().map(|text| text.parse().expect("HOLDFAST_SEED is a number"));
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_micros());
    given.unwrap_or_else(|| u64::try_from(now() % 1_000_000_007).unwrap_or(1))
}

/// Compares, and says what was compared; `name` is the test's, for whoever wants to repeat it.
fn compare(mount: &Path, name: &str) -> String {
    let seed = seed();
    let long = if holdfast_tests::report::long() { "HOLDFAST_TEST_LONG=1 " } else { "" };
    let again = format!("{long}HOLDFAST_SEED={seed} cargo test --release -p holdfast-tests --test posix -- {name}");
    println!("{again}");
    let local = tempfile::tempdir().expect("a folder on the local file system");
    let operations = if holdfast_tests::report::long() { OPERATIONS * 10 } else { OPERATIONS };
    let mut command = Command::new("python3");
    command.arg("-I").arg(repository().join("tests/posix/oracle.py")).arg(mount).arg(local.path());
    command.args([seed.to_string(), operations.to_string()]);
    let said = run(&mut command, LIMIT).expect("ends");
    assert!(said.success, "{}{}\nto repeat it: {again}", said.stdout, said.stderr);
    format!("seed {seed}, {}", said.stdout)
}

#[test]
fn a_mount_that_caches_does_what_a_local_file_system_does() {
    let name = "oracle::a_mount_that_caches_does_what_a_local_file_system_does";
    if !can_mount(name, &["python3"]) {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    note(&format!("oracle, caching: {}", compare(up.mount(), name)));
}

#[test]
fn one_of_two_mounts_does_what_a_local_file_system_does() {
    let name = "oracle::one_of_two_mounts_does_what_a_local_file_system_does";
    if !can_mount(name, &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("cluster");
    let (first, _second) = (cluster.mount().expect("mount"), cluster.mount().expect("mount"));
    let path = cluster.mounted(first).path().to_path_buf();
    note(&format!("oracle, not caching: {}", compare(&path, name)));
}
