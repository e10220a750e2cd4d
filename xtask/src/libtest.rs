//! Reads what Rust's test runner prints.
//!
//! Counts come from the closing `test result:` lines only, because with `--nocapture` a test's own output lands in the
//! middle of its `test name ... ok` line. A test that cannot run prints `SKIP name: reason` and returns; it is then
//! counted by the runner as passed, so the caller moves it from `passed` to `skipped`.

use std::time::Duration;

/// What one run of one or more test programs came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Tests that ran and held.
    pub passed: u64,
    /// Tests that ran and did not hold.
    pub failed: u64,
    /// Names of tests that did not run, in the order seen; ignored ones included.
    pub skipped: Vec<Skip>,
    /// Names of the failed tests, as far as they were printed.
    pub failures: Vec<String>,
}

/// One test that did not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// The name that `tests/skips.toml` must list.
    pub name: String,
    /// Why, in the test's own words.
    pub reason: String,
}

impl Counts {
    /// Adds what another run came to.
    pub fn add(&mut self, other: &Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped.iter().cloned());
        self.failures.extend(other.failures.iter().cloned());
    }
}

/// Takes the lines of `cargo test` one at a time.
#[derive(Debug, Default)]
pub struct Reader {
    counts: Counts,
    /// Ignored tests announced by name since the last closing line.
    ignored_names: Vec<String>,
    /// `SKIP` lines since the last closing line.
    skips: Vec<Skip>,
    in_failures: bool,
    programs: u64,
}

impl Reader {
    /// Takes one line, without its line feed. Returns whether it closed a test program, and if so whether all was well.
    pub fn line(&mut self, line: &str) -> Option<bool> {
        if let Some(at) = line.find("SKIP ") {
            // With --nocapture the text may follow `test name ... ` on the same line.
            let before = &line[..at];
            if (before.is_empty() || before.ends_with("... "))
                && let Some((name, reason)) = line[at + 5..].split_once(": ")
            {
                self.skips.push(Skip { name: name.to_string(), reason: reason.to_string() });
            }
        }
        if let Some(rest) = line.strip_prefix("test result: ") {
            return Some(self.close(rest));
        }
        if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, outcome)) = rest.split_once(" ... ")
            && outcome.starts_with("ignored")
        {
            self.ignored_names.push(name.to_string());
        }
        if line == "failures:" {
            self.in_failures = true;
        } else if self.in_failures
            && let Some(name) = line.strip_prefix("    ")
            && !name.is_empty()
            && !name.contains(' ')
            && !self.counts.failures.iter().any(|known| known == name)
        {
            self.counts.failures.push(name.to_string());
        }
        None
    }

    fn close(&mut self, rest: &str) -> bool {
        let number = |word: &str| -> u64 {
            rest.split([';', '.'])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|n| n.trim().parse().ok())
                .unwrap_or(0)
        };
        let (passed, failed, ignored) = (number(" passed"), number(" failed"), number(" ignored"));
        let skips = std::mem::take(&mut self.skips);
        self.counts.passed += passed.saturating_sub(skips.len() as u64);
        self.counts.failed += failed;
        self.counts.skipped.extend(skips);
        let mut names = std::mem::take(&mut self.ignored_names);
        names.resize(ignored as usize, "an unnamed ignored test".to_string());
        self.counts.skipped.extend(names.into_iter().map(|name| Skip { name, reason: "marked #[ignore]".to_string() }));
        self.in_failures = false;
        self.programs += 1;
        failed == 0 && rest.starts_with("ok")
    }

    /// How many test programs have closed.
    pub fn programs(&self) -> u64 {
        self.programs
    }

    /// Everything counted so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// How long each test took, by when its last line came: tests that run one after the other begin when the one before has ended.
#[derive(Debug, Default)]
pub struct Pace {
    name: String,
    ended: Duration,
    took: Vec<(Duration, String)>,
}

impl Pace {
    /// Tests shown, and how long one takes at the least to be shown.
    const SHOWN: (usize, Duration) = (12, Duration::from_secs(10));

    /// Takes a line that came so long after the beginning.
    pub fn line(&mut self, line: &str, at: Duration) {
        let rest = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
        if let Some((name, _)) = rest {
            self.name = name.to_string();
        }
        if line.starts_with("running ") {
            self.ended = at;
        }
        let outcome = rest.map_or(line, |(_, outcome)| outcome);
        if matches!(outcome, "ok" | "FAILED") && !self.name.is_empty() {
            self.took.push((at.saturating_sub(self.ended), std::mem::take(&mut self.name)));
            self.ended = at;
        }
    }

    /// Those that took longest; nothing if none took long.
    pub fn slowest(&self) -> Option<String> {
        let mut took: Vec<_> = self.took.iter().filter(|(time, _)| *time >= Self::SHOWN.1).collect();
        took.sort_by(|a, b| b.cmp(a));
        let shown = took.iter().take(Self::SHOWN.0).map(|(time, name)| format!("{} {name}", time.as_secs()));
        let shown: Vec<String> = shown.collect();
        (!shown.is_empty()).then(|| shown.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_takes_from_the_end_of_the_one_before_to_its_own() {
        let mut pace = Pace::default();
        let lines = [
            (100, "running 3 tests"),
            (130, "test a::b ... NOTE it takes long"),
            (145, "ok"),
            (150, "test c ... ok"),
            (170, "test d ... FAILED"),
            (171, "ok"),
        ];
        lines.iter().for_each(|(at, line)| pace.line(line, Duration::from_secs(*at)));
        assert_eq!(pace.slowest().as_deref(), Some("45 a::b, 20 d"));
        assert_eq!(Pace::default().slowest(), None);
    }

    fn read(text: &str) -> Counts {
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.line(line);
        }
        reader.counts().clone()
    }

    #[test]
    fn passes_failures_and_ignored_tests_are_counted_over_several_programs() {
        let counts = read(
            "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ignored, needs a moon\n\nfailures:\n\n---- b stdout ----\nboom\n\nfailures:\n    b\n\n\
             test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.25s\n",
        );
        assert_eq!((counts.passed, counts.failed), (3, 1));
        assert_eq!(counts.failures, ["b"]);
        assert_eq!(counts.skipped, [Skip { name: "c".into(), reason: "marked #[ignore]".into() }]);
    }

    #[test]
    fn a_test_that_says_it_cannot_run_is_a_skip_and_not_a_pass() {
        let counts = read(
            "running 2 tests\ntest a ... SKIP posix::a: no FUSE here\nok\nSKIP b: also: not\ntest b ... ok\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(counts.passed, 0);
        assert_eq!(counts.skipped[0], Skip { name: "posix::a".into(), reason: "no FUSE here".into() });
        assert_eq!(counts.skipped[1], Skip { name: "b".into(), reason: "also: not".into() });
    }

    #[test]
    fn the_word_skip_inside_other_output_counts_for_nothing() {
        let counts =
            read("I SKIP this: yes\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n");
        assert_eq!((counts.passed, counts.skipped.len()), (1, 0));
    }
}
