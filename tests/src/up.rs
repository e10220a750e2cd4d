//! `holdfast up`: the whole cluster in one process, with its mount.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::temporary_folder;
use crate::command::{holdfast, quote};
use crate::janitor::Janitor;
use crate::process::{Process, field};

const LIMIT: Duration = Duration::from_secs(60);

/// A running `holdfast up`.
#[derive(Debug)]
pub struct Up {
    process: Process,
    folder: PathBuf,
    mount: PathBuf,
    // Last: fields are dropped in order, and this one cleans up.
    _janitor: Janitor,
}

impl Up {
    /// Starts it on a new folder and waits until its mount is ready.
    ///
    /// # Errors
    /// When it does not become ready; the end of its log is in the error.
    pub fn start(extra: &[&str]) -> Result<Self> {
        Self::start_under(&std::env::temp_dir(), extra)
    }

    /// The same, with its folder made in `under`.
    ///
    /// # Errors
    /// As [`Up::start`].
    pub fn start_under(under: &Path, extra: &[&str]) -> Result<Self> {
        let janitor = Janitor::start()?;
        let folder = temporary_folder("up", Some(under), &janitor)?;
        let (data, mount) = (folder.join("data"), folder.join("mnt"));
        let mut command = vec![holdfast()?.to_string_lossy().into_owned(), "up".to_string()];
        for (key, value) in [("--data", &data), ("--mount", &mount)] {
            command.extend([key.to_string(), value.to_string_lossy().into_owned()]);
        }
        command.extend(extra.iter().map(ToString::to_string));
        janitor.promise(&format!("umount -l {}", quote(&mount)))?;
        let process = Process::new("up", command, &folder.join("up.log"), &janitor);
        let mut up = Self { process, folder, mount, _janitor: janitor };
        up.restart()?;
        Ok(up)
    }

    /// Starts it again on the same folder, after it ended or was killed.
    ///
    /// # Errors
    /// As [`Up::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process.start()?;
        let line = self.process.wait_ready(LIMIT)?;
        let said = field(&line, "mount").with_context(|| format!("no mount= in {line:?}"))?;
        assert_eq!(Path::new(said), self.mount, "it names another folder");
        let cluster = field(&line, "cluster").with_context(|| format!("no cluster= in {line:?}"))?;
        assert!(Path::new(cluster).is_file(), "{cluster} is not there");
        Ok(())
    }

    /// Where its volume is mounted.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// The folder around its data, its mount and its log, on the local disk.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.process.log_tail());
        }
        // Politely first: the janitor's way is kill -9.
        if self.process.is_running() {
            let _ = self.process.terminate(Duration::from_secs(20));
        }
    }
}
