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

fn compare(mount: &Path, seed: u64) -> String {
    let local = tempfile::tempdir().expect("a folder on the local file system");
    let operations = if holdfast_tests::report::long() { OPERATIONS * 10 } else { OPERATIONS };
    let mut command = Command::new("python3");
    command.arg("-I").arg(repository().join("tests/posix/oracle.py")).arg(mount).arg(local.path());
    command.args([seed.to_string(), operations.to_string()]);
    let said = run(&mut command, LIMIT).expect("ends");
    assert!(said.success, "{}{}", said.stdout, said.stderr);
    said.stdout
}

#[test]
fn a_mount_that_caches_does_what_a_local_file_system_does() {
    if !can_mount("a_mount_that_caches_does_what_a_local_file_system_does", &["python3"]) {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    note(&format!("oracle, caching: {}", compare(up.mount(), 1)));
}

#[test]
fn one_of_two_mounts_does_what_a_local_file_system_does() {
    if !can_mount("one_of_two_mounts_does_what_a_local_file_system_does", &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("cluster");
    let (first, _second) = (cluster.mount().expect("mount"), cluster.mount().expect("mount"));
    let path = cluster.mounted(first).path().to_path_buf();
    note(&format!("oracle, not caching: {}", compare(&path, 2)));
}
