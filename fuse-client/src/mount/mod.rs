//! Mounting and unmounting, and repairing what a killed process left behind.
//!
//! As root the file system is mounted with `mount(2)`, open to all users, the kernel checking permissions; anybody else goes through
//! `fusermount3`, with the same check and, unless asked and allowed by `/etc/fuse.conf`, for oneself only. Programs' set-id bits
//! and device files are not honoured unless asked for (`suid`, `dev`): whoever may write to the cluster must not become root here.
//!
//! Invariants:
//! * Nothing here touches a live mount that it did not make: [`repair`] takes away only mounts of ours whose server is gone.
//! * Nothing here asks a mounted file system anything it would have to answer, except [`repair`], in a thread that may be left behind.

mod helper;

use crate::device::Channel;
use crate::options::{OptionError, Options};
use holdfast_mounts::{TYPE, is_dead};
use rustix::fd::AsRawFd;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Dead mounts taken away from one mount point at the most (each `kill -9` and restart may have left one on top of another).
const REPAIRS_MAX: usize = 16;
/// How long a remount waits for files that were closed already.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);
/// Read-ahead of the kernel, in KiB: as much as one request may carry. (Its default of 128 makes eight requests of one.)
const READ_AHEAD_KIB: u32 = 1024;

/// Why a file system cannot be mounted, or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point is of no use.
    #[error("cannot mount on {point}: {source}")]
    Point {
        /// Which.
        point: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A volume is mounted there, and it answers.
    #[error("{point} is mounted already ({kind})")]
    Busy {
        /// Where.
        point: PathBuf,
        /// Type of what is there.
        kind: String,
    },
    /// The device cannot be opened.
    #[error(
        "cannot open /dev/fuse: {0}. On a host: modprobe fuse. In a container: give it the device and the right to mount \
         (docker run --device /dev/fuse --cap-add SYS_ADMIN)"
    )]
    Device(Errno),
    /// The kernel refuses.
    #[error("mount of {point} failed: {errno}")]
    Refused {
        /// Where.
        point: PathBuf,
        /// Why.
        errno: Errno,
    },
    /// `fusermount3` failed.
    #[error("fusermount3: {0}")]
    Helper(String),
    /// `fusermount3` cannot be run.
    #[error("cannot run fusermount3 (Debian package fuse3): {0}")]
    NoHelper(#[source] std::io::Error),
    /// It is in use.
    #[error("{point} is in use")]
    InUse {
        /// Which mount.
        point: PathBuf,
    },
}

/// Why a mount cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum RemountError {
    /// There is nothing to change.
    #[error("no Holdfast volume is mounted on {point}; mount it first")]
    NotMounted {
        /// Where.
        point: PathBuf,
    },
    /// An option is not one.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The kernel refuses.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// A mount of ours.
#[derive(Clone, Debug)]
pub struct Mount {
    point: PathBuf,
    by_helper: bool,
}

impl Mount {
    /// Mounts a volume. Nothing is served yet: whoever looks at the mount point waits. Blocks for a moment.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn new(point: &Path, volume: &str, options: &Options) -> Result<(Self, Channel), MountError> {
        let point = point.canonicalize().map_err(|source| MountError::Point { point: point.into(), source })?;
        if !point.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::NotADirectory);
            return Err(MountError::Point { point, source });
        }
        match direct(&point, volume, options) {
            Ok(channel) => {
                raise_read_ahead(&point);
                Ok((Self { point, by_helper: false }, channel))
            }
            // Not root, or root without the privilege.
            Err(MountError::Refused { errno: Errno::PERM, .. } | MountError::Device(Errno::ACCESS | Errno::PERM)) => {
                let channel = helper::mount(&point, volume, options)?;
                Ok((Self { point, by_helper: true }, channel))
            }
            Err(error) => Err(error),
        }
    }

    /// Where.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Unmounts, if nobody uses it. Returns when the kernel has let go of it.
    ///
    /// # Errors
    /// [`MountError::InUse`] while files are open there, or processes have it as working directory.
    pub fn unmount(&self) -> Result<(), MountError> {
        if self.by_helper {
            return helper::unmount(&self.point, false).map_err(|_| MountError::InUse { point: self.point.clone() });
        }
        match rustix::mount::unmount(&self.point, UnmountFlags::NOFOLLOW) {
            // Not mounted: somebody was faster.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(Errno::BUSY) => Err(MountError::InUse { point: self.point.clone() }),
            Err(errno) => Err(MountError::Refused { point: self.point.clone(), errno }),
        }
    }

    /// Unmounts although it is in use: requests under way fail, open files answer `ENOTCONN` from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unmount_by_force(&self) -> Result<(), MountError> {
        if self.by_helper {
            return helper::unmount(&self.point, true);
        }
        // The first ends the connection, whether or not it can unmount; the second takes the mount out of sight.
        if rustix::mount::unmount(&self.point, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW).is_ok() {
            return Ok(());
        }
        match rustix::mount::unmount(&self.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(MountError::Refused { point: self.point.clone(), errno }),
        }
    }
}

/// Mounts with our own privilege.
fn direct(point: &Path, volume: &str, options: &Options) -> Result<Channel, MountError> {
    let channel = Channel::open().map_err(MountError::Device)?;
    let user = rustix::process::getuid();
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        channel.descriptor().as_raw_fd(),
        user.as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other.unwrap_or(user.is_root()) {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("numbers and words hold no zero byte");
    let source = holdfast_mounts::source_of(volume);
    rustix::mount::mount(source.as_str(), point, TYPE, flags(options), data.as_c_str())
        .map_err(|errno| MountError::Refused { point: point.into(), errno })?;
    Ok(channel)
}

fn flags(options: &Options) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NOSUID, !options.set_id);
    flags.set(MountFlags::NODEV, !options.devices);
    flags.set(MountFlags::NOEXEC, !options.execute);
    flags
}

/// Changes the flags of a mount of ours (`mount -o remount,...`): read-only or not, and whether set-id bits, device files and
/// programs are honoured. What is not named in `given` stays as it is. Options that the mount's process was started with
/// (`cache`, `soft`, ...) are checked and change nothing. Blocks until the kernel has written back what is dirty.
///
/// # Errors
/// [`RemountError`].
pub fn remount(point: &Path, given: &[String]) -> Result<(), RemountError> {
    let point = absolute(point)?;
    let mounted = holdfast_mounts::mounted_at(&point).filter(|mounted| mounted.kind == TYPE);
    let mounted = mounted.ok_or_else(|| RemountError::NotMounted { point: point.clone() })?;
    // A mount is read-only if either it or its file system is; that one `rw` ends both is what remounting is for.
    let mut words = vec!["suid,dev,exec".to_owned()];
    words.extend(mounted.options.split(',').filter(|word| is_flag(word)).map(str::to_owned));
    if mounted.options.split(',').any(|word| word == "ro") {
        words.push("ro".into());
    }
    words.extend(given.iter().cloned());
    let options = Options::parse(&words)?;
    let flags = flags(&options) | access_times(&words);
    let begun = std::time::Instant::now();
    loop {
        match rustix::mount::mount_remount(&point, flags, "") {
            Ok(()) => return Ok(()),
            // The kernel holds on to an unlinked file until it has heard that it was released, which is a moment after `close(2)` has
            // returned; as long as it does, the file system cannot become read-only.
            Err(Errno::BUSY) if begun.elapsed() < RELEASE_PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::BUSY) => return Err(MountError::InUse { point }.into()),
            Err(errno) => return Err(MountError::Refused { point, errno }.into()),
        }
    }
}

/// Options that `mountinfo` shows and that a remount keeps.
fn is_flag(word: &str) -> bool {
    matches!(word, "rw" | "nosuid" | "nodev" | "noexec" | "noatime" | "nodiratime" | "relatime")
}

/// The kernel's flags about access times. It ignores them for our files, but shows them.
fn access_times(words: &[String]) -> MountFlags {
    let mut flags = MountFlags::RELATIME;
    for word in words.iter().flat_map(|text| text.split(',')) {
        match word {
            "noatime" => flags = (flags - MountFlags::RELATIME) | MountFlags::NOATIME,
            "relatime" | "atime" => flags = (flags - MountFlags::NOATIME) | MountFlags::RELATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "diratime" => flags -= MountFlags::NODIRATIME,
            _ => {}
        }
    }
    flags
}

/// Lets the kernel read ahead a whole request. Only speed depends on it.
fn raise_read_ahead(point: &Path) {
    let Some(device) = holdfast_mounts::device_of(point) else { return };
    if let Err(error) = std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, "kernel's read-ahead stays as it is");
    }
}

/// Makes a mount point ready: takes away dead mounts of ours ([`repair`]), and makes the directory if its parent exists.
///
/// # Errors
/// As [`repair`], and when the directory cannot be made.
pub fn prepare(point: &Path) -> Result<(), MountError> {
    repair(point)?;
    match std::fs::create_dir(point) {
        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(MountError::Point { point: point.into(), source })
        }
        _ => Ok(()),
    }
}

/// Takes away dead mounts of ours at a mount point: those whose process was killed, so that every use fails with `ENOTCONN`
/// ("Transport endpoint is not connected"). Returns how many. Does nothing where nothing is mounted, or the point does not exist.
///
/// Blocks for some seconds if what is mounted there does not answer.
///
/// # Errors
/// [`MountError::Busy`] when a mount of ours that lives is there; other errors when the dead one cannot be removed.
pub fn repair(point: &Path) -> Result<usize, MountError> {
    let point = absolute(point)?;
    for repaired in 0..REPAIRS_MAX {
        let Some(mounted) = holdfast_mounts::mounted_at(&point) else { return Ok(repaired) };
        if mounted.kind != TYPE {
            // Not ours, and a place to mount on like any other.
            return Ok(repaired);
        }
        if !is_dead(&point) {
            return Err(MountError::Busy { point, kind: mounted.kind });
        }
        tracing::warn!(point = %point.display(), "a dead mount is taken away");
        match rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::PERM) => helper::unmount(&point, true)?,
            Err(errno) => return Err(MountError::Refused { point, errno }),
        }
    }
    let kind = format!("{REPAIRS_MAX} dead mounts were taken away, and there is another");
    Err(MountError::Busy { point, kind })
}

/// The mount point's absolute path without asking the mount point itself, which may be dead.
fn absolute(point: &Path) -> Result<PathBuf, MountError> {
    holdfast_mounts::absolute(point).map_err(|source| MountError::Point { point: point.into(), source })
}
