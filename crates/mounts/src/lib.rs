//! What is mounted on this host, and whether it answers: learned without being stopped by a mount that does not.
//!
//! * [`mounted_at`], [`mounted`]: the kernel's table.
//! * [`is_dead`]: whether a mount's server is gone.

mod table;

pub use table::{Mounted, device_of, mounted, mounted_at};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Type of a mount of ours, as `mount(8)` shows it: what the kernel takes as `fuse`, with a surname.
pub const TYPE: &str = "fuse.holdfast";
/// How long a file system may take to say that it lives.
const ALIVE_PATIENCE: Duration = Duration::from_secs(5);

/// What a mount of ours calls its source.
pub fn source_of(volume: &str) -> String {
    format!("holdfast:{volume}")
}

/// The absolute path of a mount point without asking the mount point itself, which may be dead.
///
/// # Errors
/// When its parent is there and cannot be asked.
pub fn absolute(point: &Path) -> std::io::Result<PathBuf> {
    let path = std::path::absolute(point)?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => match parent.canonicalize() {
            Ok(parent) => Ok(parent.join(name)),
            // It is not there yet, so nothing is mounted on it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(path),
            Err(error) => Err(error),
        },
        _ => Ok(path),
    }
}

/// Whether a mounted file system's server is gone. One that does not answer in time lives, as far as we can tell. Blocks for
/// [`ALIVE_PATIENCE`] at the most.
pub fn is_dead(point: &Path) -> bool {
    let (sender, answer) = mpsc::channel();
    let point = point.to_path_buf();
    let asked = std::thread::Builder::new().name("is-it-dead".into()).spawn(move || {
        // Forced: for some seconds the kernel would still answer from what it has cached.
        let asked = (AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
        let result = rustix::fs::statx(CWD, &point, asked.0, asked.1);
        let _ = sender.send(matches!(result, Err(Errno::NOTCONN | Errno::CONNABORTED)));
    });
    asked.is_ok() && answer.recv_timeout(ALIVE_PATIENCE).unwrap_or(false)
}
