//! Programs that do as they are told: a process that holds files and locks of a mount must not be the test's own, which starts others.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The longest that an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A Python program that reads a line and answers with one.
pub struct Told {
    /// Its process.
    pub child: Child,
    /// What it has answered.
    pub answers: mpsc::Receiver<String>,
}

impl Told {
    /// Starts a program with a file's path as its argument.
    ///
    /// # Panics
    /// When Python does not run.
    pub fn new(program: &str, file: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-I", "-c", program])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, answers }
    }

    /// Asks; the answer comes with [`Told::answer`].
    ///
    /// # Panics
    /// When it has ended.
    pub fn begin(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{line}").expect("it reads");
    }

    /// Its next answer.
    ///
    /// # Panics
    /// When it does not answer within a minute.
    pub fn answer(&mut self) -> String {
        self.answers.recv_timeout(LIMIT).expect("it answers")
    }

    /// Asks and waits for the answer.
    ///
    /// # Panics
    /// As [`Told::begin`] and [`Told::answer`].
    pub fn ask(&mut self, line: &str) -> String {
        self.begin(line);
        self.answer()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
