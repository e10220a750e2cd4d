//! One server or mount as a process of its own: started, stopped, killed by its pid, started again.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::janitor::{Duty, Janitor};

/// A command that may run now or not; its output goes to one log over all its starts.
#[derive(Debug)]
pub struct Process {
    name: String,
    command: Vec<String>,
    log: PathBuf,
    janitor: Janitor,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    pid: Pid,
    duty: Duty,
    /// Lines of standard output.
    lines: Receiver<String>,
}

impl Process {
    /// Names a command and its log without starting it.
    pub fn new(name: &str, command: Vec<String>, log: &Path, janitor: &Janitor) -> Self {
        assert!(!command.is_empty(), "a command has at least its program");
        Self { name: name.to_string(), command, log: log.to_path_buf(), janitor: janitor.clone(), running: None }
    }

    /// What it is called in logs and errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The command, as words.
    pub fn command(&self) -> &[String] {
        &self.command
    }

    /// Words at the end of its command, from the next start on.
    pub fn add_words(&mut self, words: &[&str]) {
        self.command.extend(words.iter().map(ToString::to_string));
    }

    /// Its process id while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.running.as_ref().map(|running| running.pid.as_raw_nonzero().get())
    }

    /// Starts it. It is not ready yet when this returns.
    ///
    /// # Errors
    /// When the program cannot be started. Starting twice is our own mistake.
    pub fn start(&mut self) -> Result<()> {
        assert!(self.running.is_none(), "{} runs already", self.name);
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        writeln!(log, "--- {}", self.command.join(" "))?;
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            // Ctrl-C is for us; we decide what it means for them.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}: {}", self.name, self.command.join(" ")))?;
        let pid = Pid::from_child(&child);
        let duty = self.janitor.promise(&format!("kill -9 {}", pid.as_raw_nonzero()))?;
        let stdout = child.stdout.take().context("its standard output was piped")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || forward(BufReader::new(stdout), log, |line| sender.send(line).is_ok()));
        self.running = Some(Running { child, pid, duty, lines });
        Ok(())
    }

    /// Waits for its line that begins with `ready ` and returns it.
    ///
    /// # Errors
    /// When it ends first, or says nothing for `limit`; the end of its log is in the error.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let running = self.running.as_mut().with_context(|| format!("{} does not run", self.name))?;
        loop {
            match running.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("ready ") => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} was not ready after {} s\n{}", self.name, limit.as_secs(), self.log_tail());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = running.child.wait()?;
                    bail!("{} ended before it was ready ({status})\n{}", self.name, self.log_tail());
                }
            }
        }
    }

    /// `SIGSTOP`, and waits until none of its threads runs: one that is on another processor goes on for a moment, and answers.
    ///
    /// # Errors
    /// When it does not run, or does not stop.
    pub fn suspend(&self) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(30);
        self.signal(Signal::STOP)?;
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        crate::until(&format!("{} to stop", self.name), LIMIT, || {
            for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let stat = std::fs::read_to_string(task?.path().join("stat"))?;
                // After the name, which may hold anything, comes the state (proc(5)).
                let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
                ensure!(state == Some('T'), "a thread is in state {state:?}");
            }
            Ok(())
        })
    }

    /// Sends a signal: `CONT` wakes one again that was suspended.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let running = self.running.as_ref().with_context(|| format!("{} does not run", self.name))?;
        kill_process(running.pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// `kill -9`, and waits until it is gone. Nothing happens when it does not run.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        if self.running.is_some() {
            // Gone by itself is gone.
            let _ = self.signal(Signal::KILL);
            self.reap()?;
        }
        Ok(())
    }

    /// `SIGTERM`, and waits until it has ended by itself.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait_ended(limit)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it has not ended after `limit`, or does not run.
    pub fn wait_ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let running = self.running.as_mut().with_context(|| format!("{name} does not run"))?;
        let ended = crate::until(&format!("{name} to end"), limit, || {
            running.child.try_wait()?.with_context(|| format!("{name} still runs"))
        });
        match ended {
            Ok(status) => {
                self.reap()?;
                Ok(status)
            }
            Err(error) => Err(error.context(self.log_tail())),
        }
    }

    /// Whether it runs at this moment.
    pub fn is_running(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| matches!(running.child.try_wait(), Ok(None)))
    }

    fn reap(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.child.wait()?;
            self.janitor.forget(running.duty)?;
        }
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n    ");
        format!("end of the log of {}:\n    {tail}", self.name)
    }
}

/// The value of `key` in a line of `key=value` words.
pub fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn forward(mut from: impl BufRead, mut log: File, mut each: impl FnMut(String) -> bool) {
    let mut line = String::new();
    while from.read_line(&mut line).is_ok_and(|n| n > 0) {
        // A full disk under the log must not stop the server: what it prints is also handed on.
        let _ = log.write_all(line.as_bytes());
        each(line.trim_end().to_string());
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(line: &str) -> (tempfile::TempDir, Process) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let command = ["bash", "-c", line].map(str::to_string).to_vec();
        let process = Process::new("it", command, &folder.path().join("log"), &Janitor::start().expect("bash"));
        (folder, process)
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_server_is_ready_when_it_says_so_and_gone_when_killed() {
        let (_folder, mut it) = process("echo hello; echo ready role=x id=7 address=a:1; exec sleep 60");
        it.start().expect("starts");
        let line = it.wait_ready(LIMIT).expect("ready");
        assert_eq!((field(&line, "role"), field(&line, "id"), field(&line, "none")), (Some("x"), Some("7"), None));
        let pid = it.pid().expect("runs");
        it.kill().expect("killed");
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        it.start().expect("starts again");
        it.wait_ready(LIMIT).expect("ready again");
        it.terminate(LIMIT).expect("sleep ends on SIGTERM");
    }

    #[test]
    fn a_server_that_ends_too_early_takes_its_log_into_the_error() {
        let (_folder, mut it) = process("echo no disk >&2; exit 3");
        it.start().expect("starts");
        let error = it.wait_ready(LIMIT).expect_err("it ended").to_string();
        assert!(error.contains("no disk") && error.contains('3'), "{error}");
    }
}
