//! Undoes what a test did, even when the test is killed.
//!
//! * A command is promised before the thing it undoes is done; undoing what was never done must be harmless.
//! * Commands run in reverse order of promising, once, when the last [`Janitor`] handle is dropped or the process ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

/// A handle on the process that cleans up after us. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Janitor(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    child: Child,
    stdin: Option<ChildStdin>,
    next_key: u64,
}

/// A promise that can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duty(u64);

impl Janitor {
    /// Starts the process.
    ///
    /// # Errors
    /// When bash cannot be started.
    pub fn start() -> Result<Self> {
        let mut child = Command::new("bash")
            .args(["-c", include_str!("janitor.sh"), "janitor"])
            .arg(std::process::id().to_string())
            .env("PATH", crate::command::system_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start bash, which cleans up after tests")?;
        let stdin = child.stdin.take();
        Ok(Self(Arc::new(Mutex::new(Inner { child, stdin, next_key: 0 }))))
    }

    /// Promises that `command`, one line of bash, will be run at the end.
    ///
    /// # Errors
    /// When the janitor is gone.
    pub fn promise(&self, command: &str) -> Result<Duty> {
        assert!(!command.contains('\n') && !command.is_empty(), "a duty is one line: {command:?}");
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = inner.next_key;
        inner.next_key += 1;
        inner.say(&format!("add\t{key}\t{command}\n"))?;
        Ok(Duty(key))
    }

    /// Takes a promise back, because the thing was undone already.
    ///
    /// # Errors
    /// When the janitor is gone.
    pub fn forget(&self, duty: Duty) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).say(&format!("drop\t{}\t-\n", duty.0))
    }
}

impl Inner {
    fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the janitor was dismissed")?;
        stdin.write_all(line.as_bytes()).context("the janitor is gone")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // So that a test's loop devices and namespaces are gone when the next one begins.
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_line_that_arrives_in_pieces_is_one_promise() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        let janitor = Janitor::start().expect("bash starts");
        let line = format!("add\t0\techo whole >> {}\n", crate::command::quote(&log));
        let (first, rest) = line.split_at(12);
        janitor.0.lock().expect("not poisoned").say(first).expect("said");
        // Longer than it waits at a time.
        std::thread::sleep(Duration::from_millis(2500));
        janitor.0.lock().expect("not poisoned").say(rest).expect("said");
        drop(janitor);
        assert_eq!(std::fs::read_to_string(&log).expect("it was run"), "whole\n");
    }

    #[test]
    fn promises_are_kept_in_reverse_order_and_forgotten_ones_are_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        let janitor = Janitor::start().expect("bash starts");
        let shown = crate::command::quote(&log);
        janitor.promise(&format!("echo first >> {shown}")).expect("promised");
        let second = janitor.promise(&format!("echo second >> {shown}")).expect("promised");
        janitor.promise(&format!("false; echo third >> {shown}")).expect("promised");
        janitor.forget(second).expect("forgotten");
        assert!(!log.exists(), "nothing is undone while we are here");
        drop(janitor);
        assert_eq!(std::fs::read_to_string(&log).expect("the janitor wrote it"), "third\nfirst\n");
    }

    #[test]
    fn a_killed_program_is_cleaned_up_after() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mark = folder.path().join("cleaned");
        // The same script under a parent that dies with kill -9 while holding the pipe.
        let script = folder.path().join("janitor.sh");
        std::fs::write(&script, include_str!("janitor.sh")).expect("written");
        let line = format!(
            "exec 3> >(exec bash {} $$); printf 'add\\t1\\ttouch %s\\n' {} >&3; kill -9 $$",
            crate::command::quote(&script),
            crate::command::quote(&mark)
        );
        let said =
            crate::command::run(Command::new("bash").args(["-c", &line]), Duration::from_secs(10)).expect("it ran");
        assert!(!said.success, "it killed itself");
        crate::until("the mark", Duration::from_secs(10), || {
            if mark.exists() { Ok(()) } else { anyhow::bail!("not yet") }
        })
        .expect("the janitor did its duty");
    }
}
