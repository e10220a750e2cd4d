//! One child process of the test run: started, watched, counted, and ended when it takes too long.
//!
//! * Every line goes to the step's log file; only what a reader of the build server's page needs is echoed.
//! * A step runs in a process group of its own, so that ending it ends what it started.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::libtest::{Counts, Pace, Reader, Skip};

/// How a step's outcome becomes numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// The child prints what Rust's test runner prints.
    Libtest,
    /// The child's exit status is one test.
    ExitStatus,
}

/// One thing to run.
#[derive(Debug)]
pub struct Step {
    /// What the reader sees, and the name of the test when the exit status is counted.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Extra environment.
    pub environment: Vec<(String, String)>,
    /// How to count.
    pub counting: Counting,
    /// Set when the step cannot run at all: it is then a skip with this reason.
    pub unavailable: Option<String>,
    /// Runs at the same time as the step before it, which mostly waits, too.
    pub beside: bool,
}

impl Step {
    /// A step whose exit status is one test.
    pub fn exits(name: &str, command: &[&str]) -> Self {
        Self::new(name, command, Counting::ExitStatus)
    }

    /// A step that runs Rust tests.
    pub fn tests(name: &str, command: &[&str]) -> Self {
        Self::new(name, command, Counting::Libtest)
    }

    fn new(name: &str, command: &[&str], counting: Counting) -> Self {
        Self {
            name: name.to_string(),
            command: command.iter().map(ToString::to_string).collect(),
            environment: Vec::new(),
            counting,
            unavailable: None,
            beside: false,
        }
    }

    /// The same step, run at the same time as the one before it.
    pub fn beside(self) -> Self {
        Self { beside: true, ..self }
    }

    /// The same step with these words at the end of its command.
    pub fn and(mut self, words: &[&str]) -> Self {
        self.command.extend(words.iter().map(ToString::to_string));
        self
    }

    /// The same step under another name.
    pub fn named(self, name: &str) -> Self {
        Self { name: name.to_string(), ..self }
    }

    /// The same step with one more environment variable.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_string(), value.to_string()));
        self
    }

    /// A step that is only there to be counted as skipped.
    pub fn unavailable(name: &str, reason: &str) -> Self {
        Self { unavailable: Some(reason.to_string()), ..Self::new(name, &[], Counting::ExitStatus) }
    }

    /// Runs the step to its end, or until `time_left` is over.
    ///
    /// # Errors
    /// Only when the log file cannot be written or the child cannot be started; a failing child is a count.
    pub fn run(&self, log: &Path, time_left: Duration) -> Result<Counts> {
        if let Some(reason) = &self.unavailable {
            println!("    SKIP {}: {reason}", self.name);
            let skip = Skip { name: self.name.clone(), reason: reason.clone() };
            return Ok(Counts { skipped: vec![skip], ..Counts::default() });
        }
        let log_file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let (lines, mut child) = self.start()?;
        let mut watch = Watch::new(self, log_file);
        let deadline = Instant::now() + time_left;
        let mut ended_early = false;
        loop {
            match lines.recv_timeout(Duration::from_millis(500)) {
                Ok(line) => watch.line(&line)?,
                Err(RecvTimeoutError::Disconnected) => break,
                // A grandchild that keeps the pipe open must not keep us waiting.
                Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_some() => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Instant::now() > deadline && !ended_early {
                ended_early = true;
                println!("    {} did not end within {} s: ending it", self.name, time_left.as_secs());
                end_group(&child);
            }
            watch.progress();
        }
        let status = child.wait()?;
        let mut counts = watch.finish(self, status.success(), ended_early);
        counts.failures.sort();
        Ok(counts)
    }

    fn start(&self) -> Result<(mpsc::Receiver<String>, Child)> {
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            // A failed test names its line; forty lines of the test runner's own frames add nothing.
            .env("RUST_BACKTRACE", "0")
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.command.join(" ")))?;
        drop(command); // it holds our copies of the pipe's writing end
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
                if sender.send(String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_string()).is_err() {
                    return;
                }
                bytes.clear();
            }
        });
        Ok((lines, child))
    }
}

fn end_group(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // Gone already is as good as ended.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// What is remembered of the lines so far.
struct Watch {
    log: File,
    reader: Reader,
    counting: Counting,
    pace: Pace,
    /// Lines since the last test program began: what is shown if it fails.
    recent: Vec<String>,
    started: Instant,
    last_progress: Instant,
}

/// Lines of a failing program that are echoed, from its end.
const ECHOED_LINES_MAX: usize = 200;

impl Watch {
    fn new(step: &Step, log: File) -> Self {
        let now = Instant::now();
        Self {
            log,
            reader: Reader::default(),
            counting: step.counting,
            pace: Pace::default(),
            recent: Vec::new(),
            started: now,
            last_progress: now,
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "{line}")?;
        self.pace.line(line, self.started.elapsed());
        if let Some(at) = line.find("NOTE ")
            && (at == 0 || line[..at].ends_with("... "))
        {
            println!("    {}", &line[at + 5..]);
        }
        self.recent.push(line.to_string());
        if self.counting == Counting::Libtest
            && let Some(well) = self.reader.line(line)
        {
            if !well {
                self.echo_recent();
            }
            self.recent.clear();
        }
        if self.recent.len() > 4 * ECHOED_LINES_MAX {
            self.recent.drain(..2 * ECHOED_LINES_MAX);
        }
        Ok(())
    }

    fn echo_recent(&self) {
        for line in &self.recent[self.recent.len().saturating_sub(ECHOED_LINES_MAX)..] {
            println!("    | {line}");
        }
    }

    fn progress(&mut self) {
        if self.last_progress.elapsed() > Duration::from_secs(60) {
            self.last_progress = Instant::now();
            let last = self.recent.last().map_or("", String::as_str);
            println!(
                "    ... {} s, {} passed so far; last line: {last}",
                self.started.elapsed().as_secs(),
                self.reader.counts().passed
            );
        }
    }

    fn finish(self, step: &Step, success: bool, ended_early: bool) -> Counts {
        let mut counts = self.reader.counts().clone();
        if let Some(slowest) = self.pace.slowest() {
            println!("    {}: most seconds: {slowest}", step.name);
        }
        match step.counting {
            Counting::ExitStatus if success => counts.passed = 1,
            Counting::ExitStatus => {
                counts.failed = 1;
                counts.failures = vec![step.name.clone()];
                self.echo_recent();
            }
            // Tests that did not build, a program that died, or one that ran nothing: none of them may look like a pass.
            Counting::Libtest if counts.failed == 0 && (!success || self.reader.programs() == 0) => {
                counts.failed = 1;
                let why = if ended_early { "ran out of time" } else { "did not run to its end" };
                counts.failures.push(format!("{} {why}", step.name));
                self.echo_recent();
            }
            Counting::Libtest => {}
        }
        counts
    }
}
