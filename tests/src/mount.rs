//! A mount made by `holdfast mount` as a process of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{quote, run, shell};
use crate::janitor::Janitor;
use crate::process::{Process, field};

const LIMIT: Duration = Duration::from_secs(60);

/// One mount of one volume.
#[derive(Debug)]
pub struct Mount {
    process: Process,
    path: PathBuf,
    ready_line: String,
}

impl Mount {
    /// Mounts `volume` on the folder `at`, which is created, and waits until it is usable. `before` are words put before
    /// the command (to run it on another host).
    ///
    /// # Errors
    /// When the binary is missing or the mount does not become ready; the end of its log is in the error.
    pub fn start(
        before: Vec<String>,
        cluster_file: &Path,
        volume: &str,
        at: &Path,
        log: &Path,
        janitor: &Janitor,
    ) -> Result<Self> {
        let mut mount = Self::prepare(before, cluster_file, volume, at, log, janitor)?;
        mount.restart()?;
        Ok(mount)
    }

    /// The same without starting it.
    ///
    /// # Errors
    /// When the binary is missing or the folder cannot be made.
    pub fn prepare(
        before: Vec<String>,
        cluster_file: &Path,
        volume: &str,
        at: &Path,
        log: &Path,
        janitor: &Janitor,
    ) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let mut command = before;
        command.push(crate::command::holdfast()?.to_string_lossy().into_owned());
        command.extend(["mount", "--cluster"].map(str::to_string));
        command.extend([cluster_file, Path::new(volume), at].map(|word| word.to_string_lossy().into_owned()));
        janitor.promise(&format!("umount -l {}", quote(at)))?;
        let name = log.file_stem().map_or("mount".into(), |stem| stem.to_string_lossy().into_owned());
        let process = Process::new(&name, command, log, janitor);
        Ok(Self { process, path: at.to_path_buf(), ready_line: String::new() })
    }

    /// Mounts again after [`Mount::kill`] or [`Mount::unmount`].
    ///
    /// # Errors
    /// As [`Mount::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.process.start()?;
        self.wait_ready()
    }

    /// Waits until it is usable, after its process was started.
    ///
    /// # Errors
    /// As [`Mount::start`].
    pub fn wait_ready(&mut self) -> Result<()> {
        let line = self.process.wait_ready(LIMIT)?;
        let said = field(&line, "mount").with_context(|| format!("no mount= in {line:?}"))?;
        assert_eq!(Path::new(said), self.path, "it names another folder");
        self.ready_line = line;
        Ok(())
    }

    /// What it said when it became ready.
    pub fn ready_line(&self) -> &str {
        &self.ready_line
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process behind it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `umount`, then waits until the process has ended by itself.
    ///
    /// # Errors
    /// When the folder is busy, or the process does not end.
    pub fn unmount(&mut self) -> Result<()> {
        shell(&format!("umount {}", quote(&self.path)), LIMIT)?;
        let status = self.process.wait_ended(LIMIT)?;
        assert!(status.success(), "the mount ended with {status} after umount");
        Ok(())
    }

    /// `kill -9`, and takes the dead mount off the folder, as a host's reboot would.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        // Not mounted any more is what we want.
        run(std::process::Command::new("umount").arg("-l").arg(&self.path), LIMIT)?;
        Ok(())
    }
}
