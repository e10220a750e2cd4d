//! `holdfast mount`: in the foreground, or in the background once it is usable.

use crate::cli::Mount;
use crate::{role, signals};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Mounts and serves until umount(8), SIGINT or SIGTERM.
pub async fn foreground(mount: Mount) -> Result<ExitCode> {
    let options = holdfast_fuse_client::Options::parse(&mount.options)?;
    let config = holdfast_fuse_client::Config::new(&mount.cluster, &mount.volume, &mount.directory, options)?;
    let (_stop, stopped) = signals::shutdown()?;
    let volume = mount.volume.clone();
    let ready = move |at: &Path, telemetry: Option<SocketAddr>| {
        println!("ready mount={} volume={volume}{}", at.display(), role::telemetry_field(telemetry));
        // Nobody reading it any more is no reason to stop.
        let _ = std::io::stdout().flush();
    };
    holdfast_fuse_client::run(config, stopped, ready).await?;
    Ok(ExitCode::SUCCESS)
}

/// Starts this program again without a terminal, waits until the mount is usable, says so if `verbose`, and returns.
pub fn background(mount: &Mount, verbose: bool) -> Result<ExitCode> {
    let log = log_file(&mount.directory)?;
    let errors = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("mount").arg("--cluster").arg(std::path::absolute(&mount.cluster)?);
    for options in &mount.options {
        command.arg("-o").arg(options);
    }
    command.arg(&mount.volume).arg(std::path::absolute(&mount.directory)?);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
    // A group of its own: Ctrl-C at the terminal that started it is not meant for it.
    command.process_group(0);
    let mut child = command.spawn().context("cannot start the mount's process")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the child has no output")?).read_line(&mut line)?;
    if line.is_empty() {
        let status = child.wait()?;
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("the mount did not start ({status}): {}", said.lines().last().unwrap_or("it said nothing").trim());
    }
    if verbose {
        print!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a background mount writes its log: begun anew at each mount, so that it does not only grow.
fn log_file(directory: &Path) -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_STATE_HOME") {
        Some(state) => PathBuf::from(state).join("holdfast"),
        None if rustix::process::geteuid().is_root() => PathBuf::from("/var/log/holdfast"),
        None => PathBuf::from(std::env::var_os("HOME").context("neither HOME nor XDG_STATE_HOME is set")?)
            .join(".local/state/holdfast"),
    };
    std::fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    let at = std::path::absolute(directory)?;
    let name = at.to_string_lossy().trim_matches('/').replace('/', "-");
    Ok(base.join(format!("mount-{name}.log")))
}
