//! Mounts on this host.
//!
//! A mount is a process of its own (`holdfast mount --background`), and nobody's child once it is usable: whoever started it may be
//! stopped, killed and replaced. What is there is learned from the kernel's table of mounts and from the cluster's list of sessions;
//! nothing is remembered here.
//!
//! Invariants:
//! * Where two try to mount at one place, also two lives of one plugin, one is after the other: whoever mounts has the directory beneath
//!   locked until the mount is usable or has failed, also if whoever asked for it is killed.
//! * [`Mounts::unmount`] returns only when what was written is durable and the session is closed: a fence after it cuts nothing off.
//! * A mount that does not answer stops nobody but the call that asks about it, and that for a bounded time.

use crate::attach::Attachment;
use crate::book::digest;
use crate::cluster::Cluster;
use crate::error::VolumeError;
use crate::lifecycle::Volumes;
use crate::turns::{Turn, Turns};
use holdfast_mounts::{Mounted, TYPE, source_of};
use holdfast_wire::admin::{SessionState, SessionStatus};
use holdfast_wire::namespace::VolumeFacts;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;

/// How long a mount may take to become usable before the caller is told to ask again; it goes on meanwhile. Longer than a silent
/// predecessor is waited for.
const MOUNT_PATIENCE: Duration = Duration::from_secs(50);
/// How long what was written may take to reach the cluster after an unmount, before the caller is told to ask again.
const FLUSH_PATIENCE: Duration = Duration::from_secs(50);
/// How long a mount may take to answer a question about itself.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Mounts taken from one place at the most: each killed mount and each restart may have left one on top of another.
const LAYERS_MAX: usize = 16;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Mount options that say who mounts: they are ours to give.
const OURS: [&str; 3] = ["instance", "generation", "quarantine"];

/// How something is to be mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountHow {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Mount options, as after `-o`; each may hold several, separated by commas.
    pub options: Vec<String>,
}

/// How full what is mounted somewhere is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathUsage {
    /// Bytes: available, in all, used.
    pub bytes: (u64, u64, u64),
    /// Inodes: available, in all, used.
    pub inodes: (u64, u64, u64),
}

/// Mounts volumes of a cluster on this host.
#[derive(Clone, Debug)]
pub struct Mounts<C> {
    volumes: Volumes<C>,
    turns: Turns,
    program: PathBuf,
    cluster_file: PathBuf,
    host: String,
}

impl<C: Cluster> Mounts<C> {
    /// `program` is `holdfast`, `cluster_file` the cluster's `cluster.toml`.
    pub fn new(volumes: Volumes<C>, program: PathBuf, cluster_file: PathBuf) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { volumes, turns: Turns::default(), program, cluster_file, host }
    }

    /// Waits for the turn of a caller that does several things with a volume on this host, which are to be one after the other.
    ///
    /// # Errors
    /// [`VolumeError::Pending`] if those before it take long.
    pub async fn turn(&self, name: &str) -> Result<Turn, VolumeError> {
        self.turns.take(name).await
    }

    /// Mounts a volume on a directory under an attachment of it. The same again is done at once; a mount whose process is gone, or whose
    /// session is over, is replaced.
    ///
    /// # Errors
    /// [`VolumeError::Occupied`] if something else is mounted there, or the same in another way; [`VolumeError::Invalid`] for options that
    /// make no sense; [`VolumeError::Pending`] if it takes long: it goes on.
    pub async fn mount(
        &self,
        facts: &VolumeFacts,
        attachment: &Attachment,
        point: &Path,
        how: &MountHow,
    ) -> Result<(), VolumeError> {
        check(&how.options)?;
        let point = absolute(point).await?;
        let name = &facts.record.name;
        let read_only = how.read_only || attachment.read_only || asks_for_read_only(&how.options);
        let deadline = Instant::now() + MOUNT_PATIENCE;
        for _ in 0..LAYERS_MAX {
            let Some(there) = mounted_at(&point).await else {
                let lock = self.lock(&point, deadline).await?;
                // Whoever had the lock may have mounted.
                if mounted_at(&point).await.is_none() {
                    return self.start(name, attachment, &point, (read_only, &how.options), lock).await;
                }
                continue;
            };
            if there.kind != TYPE || there.source != source_of(name) {
                let what = format!("{} ({}) is mounted there", there.source, there.kind);
                return Err(VolumeError::Occupied { point, what });
            }
            if !dead(&point).await && self.is_of(facts, attachment, &point).await? {
                if there.is_read_only() != read_only {
                    let what = format!("volume {name:?} is mounted there {}", words(there.is_read_only()));
                    return Err(VolumeError::Occupied { point, what });
                }
                return Ok(());
            }
            tracing::warn!(point = %point.display(), "a mount whose process or session is gone is taken away");
            take_away(&point).await?;
        }
        Err(VolumeError::Occupied { point, what: "dead mounts, one on top of another; unmount them".into() })
    }

    /// Whether what is mounted there is of that attachment: that its session is.
    async fn is_of(&self, facts: &VolumeFacts, attachment: &Attachment, point: &Path) -> Result<bool, VolumeError> {
        let sessions = self.volumes.sessions(facts).await?;
        Ok(sessions.iter().filter(|session| self.is_here(session, point)).any(|session| {
            let same = session.instance == attachment.instance;
            same && session.instance_generation.0 == attachment.generation
                && !matches!(session.state, SessionState::Ending { .. })
        }))
    }

    fn is_here(&self, session: &SessionStatus, point: &Path) -> bool {
        session.host == self.host && Path::new(&session.mount_point) == point
    }

    /// The right to mount on a directory: a lock on it.
    async fn lock(&self, point: &Path, deadline: Instant) -> Result<File, VolumeError> {
        let failed = |source: std::io::Error| VolumeError::Mount {
            point: point.into(),
            reason: format!("cannot be mounted on: {source}"),
        };
        std::fs::create_dir_all(point).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(point, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(directory.into()),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                Err(Errno::WOULDBLOCK) => {
                    let what = format!("a mount on {} (it waits for the cluster)", point.display());
                    return Err(VolumeError::Pending { what });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// Starts the mount's process and waits until it is usable.
    async fn start(
        &self,
        name: &str,
        attachment: &Attachment,
        point: &Path,
        (read_only, options): (bool, &[String]),
        lock: File,
    ) -> Result<(), VolumeError> {
        let mut command = Command::new(&self.program);
        command.arg("mount").arg("--background").arg("--cluster").arg(&self.cluster_file);
        for options in options {
            command.arg("-o").arg(options);
        }
        let who = format!("instance={},generation={}", attachment.instance, attachment.generation);
        command.arg("-o").arg(who + if read_only { ",ro" } else { ",rw" });
        command.arg("--").arg(name).arg(point);
        // It has the lock with us: if we are killed it keeps it, until it is done.
        command.stdin(Stdio::from(lock)).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let failed = |reason: String| VolumeError::Mount { point: point.into(), reason };
        let child = command.spawn().map_err(|error| failed(format!("{} mount: {error}", self.program.display())))?;
        let Ok(ended) = tokio::time::timeout(MOUNT_PATIENCE, child.wait_with_output()).await else {
            return Err(VolumeError::Pending { what: format!("the mount of volume {name:?} on {}", point.display()) });
        };
        let ended = ended.map_err(|error| failed(error.to_string()))?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        if said.contains("mount option") {
            return Err(VolumeError::Invalid { reason: said });
        }
        Err(failed(said))
    }

    /// Unmounts a volume from a directory, and waits until what was written is durable and its session closed. Where it is not mounted it
    /// is as it should be. The directory stays.
    ///
    /// # Errors
    /// [`VolumeError::InUse`] while files are open there; [`VolumeError::Pending`] if the cluster does not take what is to be written yet.
    pub async fn unmount(&self, name: &str, point: &Path) -> Result<(), VolumeError> {
        let point = absolute(point).await?;
        let begun = Instant::now();
        if mounted_at(&point).await.is_none() && point.is_dir() {
            // A mount that is being made comes first; it would be left behind.
            drop(self.lock(&point, begun + MOUNT_PATIENCE).await?);
        }
        if let Some(bound) = self.binds(name, &point).await.first() {
            let by = format!("it is published on {}, too; unpublish it there first", bound.point.display());
            return Err(VolumeError::InUse { name: name.into(), by });
        }
        for _ in 0..LAYERS_MAX {
            if !is_on_top(name, &point).await? {
                break;
            }
            take_down(name, &point).await?;
        }
        self.wait_closed(name, &point, begun + FLUSH_PATIENCE).await
    }

    /// Waits until no process of this host has a session of that volume at that place.
    async fn wait_closed(&self, name: &str, point: &Path, deadline: Instant) -> Result<(), VolumeError> {
        loop {
            let Some(facts) = self.volumes.find(name).await? else { return Ok(()) };
            let sessions = self.volumes.sessions(&facts).await?;
            let open = sessions.iter().find(|session| {
                // One whose process is gone has nothing left to send.
                self.is_here(session, point)
                    && is_ours(session.pid)
                    && !matches!(session.state, SessionState::Ending { .. })
            });
            let Some(open) = open else { return Ok(()) };
            if Instant::now() > deadline {
                let what = format!("volume {name:?}: process {} still sends what was written", open.pid);
                return Err(VolumeError::Pending { what });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes what a volume has mounted at one place appear at another as well. The same again is done at once.
    ///
    /// # Errors
    /// [`VolumeError::NotMounted`] if it is not mounted there, [`VolumeError::Occupied`] if something else is at the other place, or the
    /// same in another way.
    pub async fn bind(&self, name: &str, from: &Path, to: &Path, read_only: bool) -> Result<(), VolumeError> {
        let (from, to) = (absolute(from).await?, absolute(to).await?);
        let source = mounted_at(&from).await.filter(|there| there.kind == TYPE && there.source == source_of(name));
        let Some(source) = source else { return Err(VolumeError::NotMounted { name: name.into(), point: from }) };
        let read_only = read_only || source.is_read_only();
        for _ in 0..LAYERS_MAX {
            let Some(there) = mounted_at(&to).await else {
                return apart("bind", move || bind(&source, &from, &to, read_only)).await?;
            };
            if there.kind != TYPE || there.source != source.source {
                return Err(VolumeError::Occupied { point: to, what: format!("{} is mounted there", there.source) });
            }
            if there.device == source.device {
                if there.is_read_only() == read_only {
                    return Ok(());
                }
                let what = format!("volume {name:?} is there {}", words(there.is_read_only()));
                return Err(VolumeError::Occupied { point: to, what });
            }
            tracing::warn!(point = %to.display(), "a bind of a mount that was replaced is taken away");
            take_away(&to).await?;
        }
        Err(VolumeError::Occupied { point: to, what: "dead mounts, one on top of another; unmount them".into() })
    }

    /// Takes a volume from a place where it was bound, whoever uses it there, and removes the directory. Where it is not it is as it
    /// should be.
    ///
    /// # Errors
    /// [`VolumeError::Occupied`] if something else is mounted over it, or the directory is not empty.
    pub async fn unbind(&self, name: &str, at: &Path) -> Result<(), VolumeError> {
        let at = absolute(at).await?;
        for _ in 0..LAYERS_MAX {
            if !is_on_top(name, &at).await? {
                break;
            }
            take_away(&at).await?;
        }
        clear(&aside(&at)).map_err(|errno| VolumeError::Mount { point: at.clone(), reason: errno.to_string() })?;
        // Another volume's place by now is none of ours.
        if mounted_at(&at).await.is_some() { Ok(()) } else { remove(&at) }
    }

    /// Where else the same mount is, and how.
    pub async fn binds(&self, name: &str, from: &Path) -> Vec<Mounted> {
        let Ok(from) = absolute(from).await else { return Vec::new() };
        let Some(source) = mounted_at(&from).await else { return Vec::new() };
        let same = |there: &Mounted| there.device == source.device && there.source == source_of(name);
        table().await.into_iter().filter(|there| same(there) && there.point != from).collect()
    }

    /// What is mounted at a place, if it is that volume.
    ///
    /// # Errors
    /// [`VolumeError::NotMounted`].
    pub async fn find(&self, name: &str, at: &Path) -> Result<Mounted, VolumeError> {
        let at = absolute(at).await?;
        let there = mounted_at(&at).await.filter(|there| there.kind == TYPE && there.source == source_of(name));
        there.ok_or_else(|| VolumeError::NotMounted { name: name.into(), point: at })
    }

    /// How full it is there.
    ///
    /// # Errors
    /// [`VolumeError::Mount`] when it does not answer, or answers with an error: nobody can use it.
    pub async fn usage(&self, at: &Path) -> Result<PathUsage, VolumeError> {
        let failed = |reason: String| VolumeError::Mount { point: at.into(), reason };
        let point = at.to_path_buf();
        let asked = apart("usage", move || {
            // What is counted may come from memory; that the session lives is seen from this.
            rustix::fs::statx(
                rustix::fs::CWD,
                &point,
                rustix::fs::AtFlags::STATX_FORCE_SYNC,
                rustix::fs::StatxFlags::BASIC_STATS,
            )?;
            rustix::fs::statvfs(&point)
        });
        let Ok(answer) = tokio::time::timeout(ANSWER_PATIENCE, asked).await else {
            return Err(failed(format!("no answer within {ANSWER_PATIENCE:?}: is the cluster up?")));
        };
        let found = answer?.map_err(|errno| match errno {
            Errno::NOTCONN | Errno::CONNABORTED => failed("the mount's process is gone".into()),
            Errno::IO => failed("the mount's session is over: the volume was given to somebody else".into()),
            errno => failed(errno.to_string()),
        })?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let used = found.f_blocks.saturating_sub(found.f_bfree);
        Ok(PathUsage {
            bytes: (bytes(found.f_bavail), bytes(found.f_blocks), bytes(used)),
            inodes: (found.f_favail, found.f_files, found.f_files.saturating_sub(found.f_ffree)),
        })
    }
}

/// Options that an orchestrator may give.
fn check(options: &[String]) -> Result<(), VolumeError> {
    for option in options.iter().flat_map(|text| text.split(',')).map(str::trim) {
        let name = option.split('=').next().unwrap_or(option);
        if OURS.contains(&name) {
            let reason = format!("mount option {name} is not for users of an orchestrator: it says who mounts");
            return Err(VolumeError::Invalid { reason });
        }
    }
    Ok(())
}

/// Whether mount options say so; of several, the last counts.
fn asks_for_read_only(options: &[String]) -> bool {
    let words = options.iter().flat_map(|text| text.split(',')).map(str::trim);
    words.fold(false, |read_only, word| match word {
        "ro" => true,
        "rw" => false,
        _ => read_only,
    })
}

fn words(read_only: bool) -> &'static str {
    if read_only { "read only" } else { "to write" }
}

/// Whether a process of that id is one of ours, as far as this host knows.
fn is_ours(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim().starts_with("holdfast"))
}

/// Does what may block elsewhere.
async fn apart<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, VolumeError> {
    let (sender, done) = tokio::sync::oneshot::channel();
    // Not in the runtime's pool: what hangs there would keep the process from ending.
    let started = std::thread::Builder::new().name(what.into()).spawn(move || drop(sender.send(work())));
    let broken = |reason: String| VolumeError::Broken { reason: format!("{what}: {reason}") };
    started.map_err(|error| broken(error.to_string()))?;
    done.await.map_err(|_| broken("a thread panicked".into()))
}

async fn absolute(point: &Path) -> Result<PathBuf, VolumeError> {
    holdfast_mounts::absolute(point)
        .map_err(|error| VolumeError::Mount { point: point.into(), reason: error.to_string() })
}

async fn table() -> Vec<Mounted> {
    tokio::task::spawn_blocking(holdfast_mounts::mounted).await.unwrap_or_default()
}

async fn mounted_at(point: &Path) -> Option<Mounted> {
    table().await.into_iter().rfind(|there| there.point == point)
}

/// Whether what is mounted there last is that volume; none of it may be beneath something else.
async fn is_on_top(name: &str, point: &Path) -> Result<bool, VolumeError> {
    let mut layers = table().await;
    layers.retain(|there| there.point == point);
    let is = |there: &Mounted| there.kind == TYPE && there.source == source_of(name);
    match layers.last() {
        Some(top) if is(top) => Ok(true),
        Some(top) if layers.iter().any(is) => {
            let what = format!("{} is mounted over it; unmount that first", top.source);
            Err(VolumeError::Occupied { point: point.into(), what })
        }
        _ => Ok(false),
    }
}

async fn dead(point: &Path) -> bool {
    let point = point.to_path_buf();
    tokio::task::spawn_blocking(move || holdfast_mounts::is_dead(&point)).await.unwrap_or(false)
}

/// Unmounts, after all that was written there is durable.
async fn take_down(name: &str, point: &Path) -> Result<(), VolumeError> {
    if dead(point).await {
        return take_away(point).await;
    }
    let at = point.to_path_buf();
    let unmounted = apart("unmount", move || rustix::mount::unmount(&at, UnmountFlags::NOFOLLOW));
    let Ok(unmounted) = tokio::time::timeout(FLUSH_PATIENCE, unmounted).await else {
        return Err(VolumeError::Pending { what: format!("the unmount of {}", point.display()) });
    };
    match unmounted? {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::BUSY) => {
            let by = format!("files are open in {}, or it is the working directory of a process", point.display());
            Err(VolumeError::InUse { name: name.into(), by })
        }
        Err(errno) => Err(VolumeError::Mount { point: point.into(), reason: errno.to_string() }),
    }
}

/// Takes a mount out of sight, whoever uses it.
async fn take_away(point: &Path) -> Result<(), VolumeError> {
    let at = point.to_path_buf();
    match apart("unmount", move || rustix::mount::unmount(&at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)).await? {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(VolumeError::Mount { point: point.into(), reason: errno.to_string() }),
    }
}

/// Where a mount is made read only before it appears where it is wanted: so it is never there in another way, not even if we are killed.
fn aside(to: &Path) -> PathBuf {
    Path::new("/run/holdfast").join(format!("read-only-{}", digest(&to.to_string_lossy())))
}

fn bind(source: &Mounted, from: &Path, to: &Path, read_only: bool) -> Result<(), VolumeError> {
    let failed = |reason: String| VolumeError::Mount { point: to.into(), reason };
    let errno = |errno: Errno| failed(errno.to_string());
    std::fs::create_dir_all(to).map_err(|error| failed(error.to_string()))?;
    if !read_only {
        return rustix::mount::mount_bind(from, to).map_err(errno);
    }
    let aside = aside(to);
    clear(&aside).map_err(errno)?;
    std::fs::create_dir_all(&aside).map_err(|error| failed(error.to_string()))?;
    rustix::mount::mount_bind(from, &aside).map_err(errno)?;
    let made = rustix::mount::mount_remount(&aside, MountFlags::BIND | MountFlags::RDONLY | flags(source), "")
        .and_then(|()| rustix::mount::mount_bind(&aside, to));
    let cleared = clear(&aside);
    made.and(cleared).map_err(errno)
}

/// Flags of a mount that a bind of it keeps.
fn flags(of: &Mounted) -> MountFlags {
    let each = of.options.split(',').map(|word| match word {
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "relatime" => MountFlags::RELATIME,
        _ => MountFlags::empty(),
    });
    each.fold(MountFlags::empty(), |all, one| all | one)
}

/// Takes away what somebody who was killed left aside.
fn clear(aside: &Path) -> Result<(), Errno> {
    while holdfast_mounts::mounted_at(aside).is_some() {
        rustix::mount::unmount(aside, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    match std::fs::remove_dir(aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(at = %aside.display(), %error, "directory left behind");
        }
        _ => {}
    }
    Ok(())
}

/// Removes an empty directory, if it is there.
fn remove(at: &Path) -> Result<(), VolumeError> {
    match std::fs::remove_dir(at) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            Err(VolumeError::Occupied { point: at.into(), what: "there are files in the directory beneath".into() })
        }
        done => done.map_err(|error| VolumeError::Mount { point: at.into(), reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Vec<String> {
        vec![text.into(), "noatime".into()]
    }

    #[test]
    fn options_that_say_who_mounts_are_refused_and_others_are_left_to_the_mount() {
        for text in ["instance=x", "ro,generation=3", "soft=3, quarantine=off"] {
            assert!(matches!(check(&options(text)), Err(VolumeError::Invalid { .. })), "{text}");
        }
        assert!(check(&options("soft=3,noexec")).is_ok() && check(&[]).is_ok());
    }

    #[test]
    fn of_ro_and_rw_the_last_counts() {
        assert!(asks_for_read_only(&options("rw,ro")) && !asks_for_read_only(&options("ro, rw")));
        assert!(!asks_for_read_only(&options("noexec")));
    }
}
