//! What a check says: findings, what could not be checked, and how far it is.

use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often progress is said.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// The report; the JSON shape is in docs/operations.md and only grows.
#[derive(Default, Serialize)]
pub(super) struct Report {
    clean: bool,
    findings: Vec<Finding>,
    /// What could not be looked at, and why.
    not_checked: Vec<String>,
    /// Chunks that looked odd and were overwritten at every look.
    pub unsettled: usize,
    /// Metadata servers whose tables were read.
    pub metadata_servers: u32,
    pub inodes: u64,
    pub entries: u64,
    pub groups: u32,
    pub chunks: u64,
    /// Of all copies.
    pub bytes: u64,
}

#[derive(Serialize)]
struct Finding {
    /// namespace, lost, orphan-chunk, length, checksum, replicas or placement.
    kind: &'static str,
    place: String,
    what: String,
}

impl Report {
    pub fn found(&mut self, kind: &'static str, place: String, what: String) {
        self.findings.push(Finding { kind, place, what });
    }

    pub fn not_checked(&mut self, what: String) {
        self.not_checked.push(what);
    }

    /// Prints it.
    pub fn end(mut self, json: bool) -> Result<ExitCode> {
        self.clean = self.findings.is_empty() && self.not_checked.is_empty();
        if json {
            println!("{}", serde_json::to_string_pretty(&self)?);
        } else {
            self.picture();
        }
        Ok(ExitCode::from(if !self.findings.is_empty() {
            1
        } else if self.not_checked.is_empty() {
            0
        } else {
            2
        }))
    }

    fn picture(&self) {
        for finding in &self.findings {
            println!("{}: {}: {}", finding.kind, finding.place, finding.what);
        }
        for what in &self.not_checked {
            println!("not checked: {what}");
        }
        if self.unsettled > 0 {
            println!("{} chunks were overwritten at every look; check again when they rest", self.unsettled);
        }
        println!(
            "{}: tables of {} metadata servers, {} inodes, {} entries; {} groups, {} chunks, {} MiB of copies; {} findings",
            if self.clean { "clean" } else { "NOT CLEAN" },
            self.metadata_servers,
            self.inodes,
            self.entries,
            self.groups,
            self.chunks,
            self.bytes >> 20,
            self.findings.len(),
        );
    }
}

/// Says on standard error how far a part of the check is, and when it will end.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<State>>);

struct State {
    what: &'static str,
    begun: Instant,
    said: Instant,
    /// Done and to be done, by whoever does it.
    parts: BTreeMap<u64, (u64, u64)>,
}

impl Progress {
    pub fn new(what: &'static str) -> Self {
        let now = Instant::now();
        Self(Arc::new(Mutex::new(State { what, begun: now, said: now, parts: BTreeMap::new() })))
    }

    /// One of those who work has come so far.
    pub fn at(&self, who: u64, done: u64, of: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.parts.insert(who, (done.min(of), of));
        if state.said.elapsed() >= SAY_EVERY {
            state.said = Instant::now();
            eprintln!("{}", state.line());
        }
    }

    pub fn end(&self) {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.begun.elapsed() >= SAY_EVERY {
            eprintln!("{}: done in {:.1} s", state.what, state.begun.elapsed().as_secs_f64());
        }
    }
}

impl State {
    fn line(&self) -> String {
        let (done, of) = self.parts.values().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        left(self.what, self.begun.elapsed(), done, of)
    }
}

/// One line of progress.
fn left(what: &str, elapsed: Duration, done: u64, of: u64) -> String {
    if done == 0 || of == 0 {
        return format!("{what}: begun");
    }
    let left = elapsed.mul_f64((of - done) as f64 / done as f64);
    format!("{what}: {} of {} ({} %), about {} s left", done, of, done * 100 / of, left.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_when_it_ends() {
        assert_eq!(left("data", Duration::from_secs(10), 25, 100), "data: 25 of 100 (25 %), about 30 s left");
        assert_eq!(left("data", Duration::from_secs(10), 0, 100), "data: begun");
    }

    #[test]
    fn the_exit_status_says_what_was_found() {
        let code = |report: Report| format!("{:?}", report.end(true).expect("printed"));
        let of = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(Report::default()), of(0));
        let mut partly = Report::default();
        partly.not_checked("group 3".into());
        assert_eq!(code(partly), of(2));
        let mut wrong = Report::default();
        wrong.found("replicas", "v1".into(), "differ".into());
        wrong.not_checked("group 3".into());
        assert_eq!(code(wrong), of(1));
    }
}
