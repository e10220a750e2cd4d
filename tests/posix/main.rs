//! POSIX suites on a mount. All cases pass; those that are skipped are listed with their reason in `tests/skips.toml`, and the list must be
//! the truth.
//!
//! Run by `cargo xtask posix`, which installs the suites and names them in `$HOLDFAST_TEST_PJDFSTEST` and `$HOLDFAST_TEST_FSX`.

mod differences;
mod edges;
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

/// The line of the suite's configuration that lets cases remount.
const REMOUNT: &str = "allow_remount = true";

/// What a run of pjdfstest printed, sorted out.
#[derive(Debug, Default)]
struct Outcome {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    skipped: BTreeSet<String>,
    /// The line that it prints at its end; without it the run did not get there.
    summary: Option<String>,
}

impl Outcome {
    /// With another run after it: a case that was skipped here and ran there counts as it went there.
    fn then(mut self, later: Self) -> Self {
        self.passed.extend(later.passed);
        self.failed.extend(later.failed);
        self.skipped.extend(later.skipped);
        self.skipped.retain(|case| !self.passed.contains(case) && !self.failed.contains(case));
        self
    }
}

fn sort_out(output: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in output.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), Some("ok"), None) if name.contains("::") => drop(outcome.passed.insert(name.to_string())),
            (Some(name), Some("FAILED"), None) => drop(outcome.failed.insert(name.to_string())),
            (Some(name), Some("skipped"), None) => drop(outcome.skipped.insert(name.to_string())),
            (Some("Summary:"), _, _) => outcome.summary = Some(line.to_string()),
            _ => {}
        }
    }
    outcome
}

/// Cases of pjdfstest that `tests/skips.toml` lists.
fn skips_listed(file: &str) -> BTreeSet<String> {
    let file: toml::Table = file.parse().expect("TOML");
    let rows = file.get("skip").and_then(toml::Value::as_array).into_iter().flatten();
    let word = |row: &toml::Value, key: &str| row.get(key).and_then(toml::Value::as_str).unwrap_or_default().to_owned();
    rows.filter(|row| word(row, "suite") == "pjdfstest").map(|row| word(row, "name")).collect()
}

#[test]
fn pjdfstest_passes_and_skips_what_is_listed() {
    let name = "pjdfstest_passes_and_skips_what_is_listed";
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
    let folder = tempfile::tempdir().expect("a folder for links and a configuration");
    let suite = |config: &Path, cases: &[&str]| {
        // Some cases remount the volume read-only and back: mount(8) needs its helper for that.
        let mut command = with_mount_helpers(folder.path(), Path::new(&program)).expect("links");
        command.arg("-c").arg(config).arg("-p").arg(up.mount()).arg("-s").arg(second.path()).args(cases);
        let said = run(command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "0"), LIMIT).expect("runs to its end");
        let outcome = sort_out(&said.stdout);
        assert!(outcome.summary.is_some(), "no summary:\n{}{}", said.stdout, said.stderr);
        if !outcome.failed.is_empty() {
            println!("{}", said.stdout);
        }
        outcome
    };
    // Cases that remount have a process of their own: others leave files open for writing, which hinders that on a local disk, too.
    let config = repository().join("tests/posix/pjdfstest.toml");
    let others = folder.path().join("others.toml");
    let text = std::fs::read_to_string(&config).expect("readable").replace(REMOUNT, "allow_remount = false");
    std::fs::write(&others, text).expect("writable");
    let outcome = suite(&others, &[]).then(suite(&config, &["erofs"]));
    note(&format!(
        "pjdfstest: {} passed, {} failed, {} skipped",
        outcome.passed.len(),
        outcome.failed.len(),
        outcome.skipped.len()
    ));
    assert!(outcome.passed.len() > 200, "hardly anything ran: {outcome:?}");
    let text = std::fs::read_to_string(repository().join("tests/skips.toml")).expect("readable");
    assert_eq!(outcome.skipped, skips_listed(&text), "tests/skips.toml names what is skipped, and why");
    assert_eq!(outcome.failed, BTreeSet::new());
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
    assert_eq!((outcome.passed.len(), outcome.failed.len(), outcome.skipped.len()), (1, 1, 1));
    let later = sort_out("open::c   ok\nopen::d  skipped\n");
    assert_eq!(Vec::from_iter(outcome.then(later).skipped), ["open::d"], "what ran after all is not skipped");
    let outcome = sort_out("chmod::b  FAILED\n\nSummary: 1 failed\n");
    assert!(outcome.summary.is_some() && outcome.failed.contains("chmod::b"));
    let file = "[[skip]]\nsuite = \"pjdfstest\"\nname = \"chmod::b\"\n[[skip]]\nname = \"ours::c\"\nreason = \"x\"\n";
    assert_eq!(skips_listed(file), outcome.failed, "and no others");
    assert_eq!(skips_listed("# nothing\n"), BTreeSet::new());
}
