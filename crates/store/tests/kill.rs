//! The death of the process at any moment leaves a prefix of the commits, with all that was persisted.
//!
//! The test runs itself as a child that commits until it is killed, then opens what is left.

use bytes::Bytes;
use holdfast_store::{Batch, FjallConfig, FjallTable, KeyRange, Table, View};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const CHILD_DIRECTORY: &str = "HOLDFAST_STORE_TEST_CHILD_DIRECTORY";

/// Small memtables, so that flushes and compactions are under way when the kill comes.
fn open(path: &Path) -> FjallTable {
    FjallTable::open(path, FjallConfig { memtable_bytes: 64 << 10, ..FjallConfig::default() }).expect("opens")
}

/// Commit `n` writes row `n`, the counter, and removes the row ten before.
fn commit(table: &FjallTable, n: u64) {
    let mut batch = Batch::new();
    batch.put(&b"counter"[..], n.to_be_bytes().to_vec());
    batch.put([&b"row"[..], &n.to_be_bytes()].concat(), vec![n as u8; 500]);
    if let Some(old) = n.checked_sub(10) {
        batch.remove([&b"row"[..], &old.to_be_bytes()].concat());
    }
    table.commit(batch).expect("commits");
}

fn counter(table: &FjallTable) -> u64 {
    let value: Option<Bytes> = table.get(b"counter").expect("reads");
    value.map_or(0, |v| u64::from_be_bytes(v[..].try_into().expect("eight bytes")))
}

/// Not a test of its own: the body of the child. Does nothing in an ordinary run.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else { return };
    let table = open(Path::new(&directory));
    for n in counter(&table) + 1.. {
        commit(&table, n);
        if n % 100 == 0 {
            table.persist().expect("persists");
            eprintln!("persisted {n}");
        }
    }
}

#[test]
fn a_killed_process_leaves_a_prefix_with_all_that_was_persisted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for round in 1..=4 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD_DIRECTORY, directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut persisted = 0;
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        for line in stderr.lines().map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("persisted ") {
                persisted = n.parse().expect("a number");
                if persisted >= round * 3_000 {
                    child.kill().expect("kills");
                }
            }
        }
        child.wait().expect("is gone");
        let table = open(directory.path());
        let last = counter(&table);
        assert!(persisted >= round * 3_000, "the child stopped by itself after {persisted}");
        assert!(last >= persisted, "persisted {persisted}, found {last}");
        let rows: Vec<Bytes> = table.range(KeyRange::prefix(&b"row"[..])).map(|pair| pair.expect("reads").0).collect();
        let expected: Vec<Bytes> = (last - 9..=last).map(|n| [&b"row"[..], &n.to_be_bytes()].concat().into()).collect();
        assert_eq!(rows, expected, "rows are those of commit {last} and no other");
    }
}
