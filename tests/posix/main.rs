//! POSIX suites on a mount. Each failing case is listed with its cause in `docs/posix.md`; the list must be the truth.
//!
//! Run by `cargo xtask posix`, which installs the suites and names them in `$HOLDFAST_TEST_PJDFSTEST` and `$HOLDFAST_TEST_FSX`.

mod mount_helper;
mod oracle;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast_tests::command::{repository, run, shell};
use holdfast_tests::helpers::with_mount_helpers;
use holdfast_tests::{Up, can_mount, note, skip};

const LIMIT: Duration = Duration::from_secs(600);
/// A long run of fsx makes half a million operations.
const FSX_LIMIT: Duration = Duration::from_secs(3600);

/// What a run of pjdfstest printed, sorted out.
#[derive(Debug, Default)]
struct Outcome {
    passed: usize,
    failed: BTreeSet<String>,
    skipped: usize,
    /// The line that it prints at its end; without it the run did not get there.
    summary: Option<String>,
}

fn sort_out(output: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), Some("ok"), None) if name.contains("::") => outcome.passed += 1,
            (Some(name), Some("FAILED"), None) => drop(outcome.failed.insert(name.to_string())),
            (Some(_), Some("skipped"), None) => outcome.skipped += 1,
            (Some("Summary:"), _, _) => outcome.summary = Some(line.to_string()),
            _ => {}
        }
    }
    outcome
}

/// Cases that `docs/posix.md` lists as failing: rows of its table that begin with a case in backticks.
fn listed(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name.to_string())
        .collect()
}

#[test]
fn pjdfstest_runs_to_its_end_and_each_failure_is_listed_with_its_cause() {
    let name = "pjdfstest_runs_to_its_end_and_each_failure_is_listed_with_its_cause";
    if !can_mount(name, &["getfacl", "useradd"]) {
        return;
    }
    let Some(program) = std::env::var_os("HOLDFAST_TEST_PJDFSTEST") else {
        skip(name, "pjdfstest is not installed (cargo xtask posix installs it)");
        return;
    };
    // The suite switches to two users; Debian has `nobody`, the other one is ours to make.
    shell(
        "id tests >/dev/null 2>&1 || useradd --system --user-group --no-create-home --shell /usr/sbin/nologin tests",
        LIMIT,
    )
    .expect("user");
    let up = Up::start(&[]).expect("up is ready");
    let second = tempfile::tempdir().expect("a folder on another file system");
    // Some cases remount the volume read-only and back: mount(8) needs its helper for that.
    let links = tempfile::tempdir().expect("a folder for the mount helper");
    let mut command = with_mount_helpers(links.path(), Path::new(&program)).expect("links");
    command.arg("-c").arg(repository().join("tests/posix/pjdfstest.toml")).arg("-p").arg(up.mount());
    command.arg("-s").arg(second.path()).env("NO_COLOR", "1").env("RUST_BACKTRACE", "0");
    let said = run(&mut command, LIMIT).expect("runs to its end");
    let outcome = sort_out(&said.stdout);
    let summary = outcome.summary.clone().unwrap_or_else(|| panic!("no summary:\n{}{}", said.stdout, said.stderr));
    note(&format!(
        "pjdfstest: {} passed, {} failed, {} skipped",
        outcome.passed,
        outcome.failed.len(),
        outcome.skipped
    ));
    assert!(outcome.passed > 200, "hardly anything ran: {summary}");
    let page = std::fs::read_to_string(repository().join("docs/posix.md")).unwrap_or_default();
    let listed = listed(&page);
    let new: Vec<&String> = outcome.failed.difference(&listed).collect();
    let gone: Vec<&String> = listed.difference(&outcome.failed).collect();
    if !new.is_empty() {
        println!("{}", said.stdout);
    }
    assert!(new.is_empty(), "not listed in docs/posix.md: {new:#?}");
    assert!(gone.is_empty(), "listed in docs/posix.md but no longer failing: {gone:#?}");
}

/// The file system exerciser: random operations on one file, each read compared with what was written.
#[test]
fn fsx_finds_no_byte_out_of_place() {
    let name = "fsx_finds_no_byte_out_of_place";
    if !can_mount(name, &[]) {
        return;
    }
    let Some(program) = std::env::var_os("HOLDFAST_TEST_FSX") else {
        skip(name, "fsx is not installed (cargo xtask posix installs it)");
        return;
    };
    let up = Up::start(&[]).expect("up is ready");
    let kept = tempfile::tempdir().expect("a folder for what fsx leaves after a failure");
    let (seeds, operations) = if holdfast_tests::report::long() { (2, "500000") } else { (4, "5000") };
    for seed in 1..=seeds {
        let mut command = Command::new(&program);
        command.arg("-f").arg(repository().join("tests/posix/fsx.toml")).args([
            "-N",
            operations,
            "-S",
            &seed.to_string(),
        ]);
        command.arg("-P").arg(kept.path()).arg(up.mount().join(format!("fsx-{seed}")));
        let said = run(&mut command, FSX_LIMIT).expect("ends");
        assert!(said.success, "seed {seed}:\n{}{}", said.stdout, said.stderr);
    }
    note(&format!("fsx: {seeds} seeds of {operations} operations agreed"));
}

#[test]
fn a_run_of_pjdfstest_is_read_as_it_was_meant() {
    let outcome = sort_out(
        "chmod::errno::a    ok\nchmod::b  FAILED\n\tassertion failed: ok\nopen::c   skipped\n\trequires features: x\n\nSummary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total\n",
    );
    assert_eq!((outcome.passed, outcome.failed.len(), outcome.skipped), (1, 1, 1));
    assert!(outcome.summary.is_some() && outcome.failed.contains("chmod::b"));
    let page = "| case | cause |\n| --- | --- |\n| `chmod::b` | not yet |\ntext with `other::case`\n";
    assert_eq!(listed(page), outcome.failed);
}
