//! What is done when the session was ended by others: where the bytes go that nobody takes any more, and what becomes of those who still
//! have files open here.
//!
//! * The bytes go to a folder of their own in the quarantine: a file for each file, sparse, with the bytes at their offsets, and a text that
//!   says what they are of. Whoever wants them compares and copies by hand; nothing of it reaches the cluster by itself.
//! * What is in the folder is on the disk before it has its name: a folder whose name ends in `.partial` was not finished.

use holdfast_client::LostFile;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What callers see of a mount whose session others have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLost {
    /// Every call fails with `EIO`.
    #[default]
    Error,
    /// Every call waits until the mount is taken away or the caller is killed.
    Block,
    /// As `Error`, and processes that have files open in the mount are killed.
    Kill,
}

/// Space that is left on the disk of the quarantine, in bytes.
const KEPT_FREE: u64 = 64 << 20;
/// Bytes of a file's own path in the name of its copy.
const NAME_BYTES_MAX: usize = 120;
/// Ranges of a file that the text names.
const RANGES_NAMED: usize = 1_000;
/// Processes are looked for again until none is found, so often, so far apart: one may just pass a file on.
const KILL_ROUNDS: u32 = 20;
const KILL_PAUSE: Duration = Duration::from_millis(50);

/// Whose bytes they are, and why.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Volume.
    pub volume: &'a str,
    /// The session that is over.
    pub session: u64,
    /// Where it was mounted.
    pub mount_point: &'a Path,
    /// Why it is over.
    pub reason: &'a str,
}

/// The usual place: root's is the system's, others have one of their own.
pub fn quarantine() -> PathBuf {
    let own = || {
        let state = std::env::var_os("XDG_STATE_HOME").filter(|state| !state.is_empty()).map(PathBuf::from);
        state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))
    };
    let base = if rustix::process::geteuid().is_root() { None } else { own() };
    base.unwrap_or_else(|| "/var/lib".into()).join("holdfast/quarantine")
}

/// Keeps what was lost; returns the folder. On return it is durable.
///
/// # Errors
/// Of the disk; [`io::ErrorKind::StorageFull`] when there is too little room, before anything is written.
pub fn keep(quarantine: &Path, ended: &Ended<'_>, lost: &[LostFile]) -> io::Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(quarantine)?;
    let bytes: u64 = lost.iter().flat_map(|file| &file.pieces).map(|(_, piece)| piece.len() as u64).sum();
    let room = rustix::fs::statvfs(quarantine)?;
    if room.f_bavail.saturating_mul(room.f_frsize) < bytes + KEPT_FREE {
        return Err(io::Error::new(io::ErrorKind::StorageFull, format!("{bytes} bytes do not fit")));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("{}-{}-{now}", harmless(ended.volume.as_bytes()), ended.session);
    let (made, folder) = (quarantine.join(format!("{name}.partial")), quarantine.join(name));
    std::fs::DirBuilder::new().mode(0o700).create(&made)?;
    let mut text = format!(
        "Bytes that were written to volume {} (session {}, mounted at {}) and had not reached the cluster when the session ended:\n{}\n\n\
         Each file here has the bytes at their offsets; between them are holes. Others may have changed the files since.\n",
        ended.volume,
        ended.session,
        ended.mount_point.display(),
        ended.reason
    );
    for file in lost {
        describe(&mut text, file, &copy(&made, file)?);
    }
    let mut about = File::create_new(made.join("ABOUT.txt"))?;
    about.write_all(text.as_bytes())?;
    about.sync_all()?;
    File::open(&made)?.sync_all()?;
    std::fs::rename(&made, &folder)?;
    File::open(quarantine)?.sync_all()?;
    Ok(folder)
}

/// Writes what a file has lost; returns the copy's name.
fn copy(folder: &Path, file: &LostFile) -> io::Result<String> {
    let known = file.path.as_deref().map(harmless).unwrap_or_default();
    let name = if known.is_empty() { file.inode.to_string() } else { format!("{}-{known}", file.inode) };
    let made = File::create_new(folder.join(&name))?;
    for (at, piece) in &file.pieces {
        made.write_all_at(piece, *at)?;
    }
    made.sync_all()?;
    Ok(name)
}

fn describe(text: &mut String, file: &LostFile, name: &str) {
    let path = file.path.as_deref().map_or("a path that is not known here".into(), String::from_utf8_lossy);
    // Writing to a string does not fail.
    let _ = write!(
        text,
        "\n{name}\n    {path} ({}); {} bytes long here, {} for all others\n",
        file.inode, file.size, file.published
    );
    let mut ranges: Vec<(u64, u64)> = file.pieces.iter().map(|(at, piece)| (*at, at + piece.len() as u64)).collect();
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let joins = next.0 <= before.1;
        if joins {
            before.1 = before.1.max(next.1);
        }
        joins
    });
    for (from, to) in ranges.iter().take(RANGES_NAMED) {
        let _ = writeln!(text, "    bytes {from} to {to}");
    }
    if ranges.len() > RANGES_NAMED {
        let _ = writeln!(text, "    and {} ranges more", ranges.len() - RANGES_NAMED);
    }
}

/// A name that is a name in any directory, and can be read: its end, since that tells most.
fn harmless(path: &[u8]) -> String {
    let path = &path[path.len().saturating_sub(NAME_BYTES_MAX)..];
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    path.iter().map(|byte| if plain(byte) { char::from(*byte) } else { '_' }).collect()
}

/// Kills the processes that have files of a mount open or mapped; `device` is its number as `/proc` writes it (`MAJOR:MINOR`). Returns how
/// many. Processes of other containers are seen if this one sees them in `/proc`.
pub fn kill_users(device: &str) -> usize {
    let mut killed = BTreeSet::new();
    for _ in 0..KILL_ROUNDS {
        let users = users(device);
        if users.is_empty() {
            break;
        }
        for user in users {
            if let Some(pid) = rustix::process::Pid::from_raw(user) {
                // It may have ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                killed.insert(user);
            }
        }
        std::thread::sleep(KILL_PAUSE);
    }
    killed.len()
}

/// Processes, but for this one, that have something of a device open or mapped. Nothing of the device itself is asked: it may not answer.
fn users(device: &str) -> Vec<i32> {
    let mine = std::process::id();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| *pid as u32 != mine && uses(&PathBuf::from(format!("/proc/{pid}")), device)).collect()
}

fn uses(process: &Path, device: &str) -> bool {
    // A bind mount has the number of its file system and a mount's number of its own, in each namespace another.
    let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    let mounts: BTreeSet<&str> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let id = words.next()?;
            (words.nth(1)? == device).then_some(id)
        })
        .collect();
    if mounts.is_empty() {
        return false;
    }
    let opened = std::fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten().any(|entry| {
        let info = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let of = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        of.is_some_and(|id| mounts.contains(id.trim()))
    });
    opened || is_mapped(&std::fs::read(process.join("maps")).unwrap_or_default(), device)
}

/// Lines are `from-to access offset MAJOR:MINOR inode path`, the numbers of the device in two hexadecimal digits at the least.
fn is_mapped(maps: &[u8], device: &str) -> bool {
    let Some((major, minor)) = device.split_once(':') else { return false };
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else { return false };
    let wanted = format!("{major:02x}:{minor:02x}");
    maps.split(|byte| *byte == b'\n').any(|line| line.split(|byte| *byte == b' ').nth(3) == Some(wanted.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use holdfast_types::InodeId;
    use std::os::fd::AsRawFd;

    fn lost() -> Vec<LostFile> {
        let pieces = vec![
            (4096, Bytes::from(vec![b'a'; 8192])),
            (0, Bytes::from_static(b"new")),
            (8192, Bytes::from(vec![b'b'; 10])),
        ];
        vec![
            LostFile {
                inode: InodeId(7),
                path: Some(Bytes::from_static(b"db/../wal 1")),
                size: 12_288,
                published: 4096,
                pieces,
            },
            LostFile {
                inode: InodeId(8),
                path: None,
                size: 5,
                published: 0,
                pieces: vec![(0, Bytes::from_static(b"hello"))],
            },
        ]
    }

    #[test]
    fn what_was_lost_is_kept_where_it_was_and_described() {
        let quarantine = tempfile::tempdir().expect("a folder");
        let ended = Ended {
            volume: "ma/in",
            session: 12,
            mount_point: Path::new("/mnt"),
            reason: "fenced by an administrator",
        };
        let folder = keep(&quarantine.path().join("q"), &ended, &lost()).expect("kept");
        let names: BTreeSet<String> = std::fs::read_dir(&folder)
            .expect("listed")
            .map(|entry| entry.expect("read").file_name().into_string().expect("plain"))
            .collect();
        assert_eq!(names, BTreeSet::from(["ABOUT.txt", "ino7-db_.._wal_1", "ino8"].map(String::from)));
        let first = std::fs::read(folder.join("ino7-db_.._wal_1")).expect("read");
        // The later of two pieces at one place counts.
        let wanted = [b"new".to_vec(), vec![0; 4093], vec![b'a'; 4096], vec![b'b'; 10], vec![b'a'; 4086]].concat();
        assert!(first == wanted, "{} bytes", first.len());
        let about = std::fs::read_to_string(folder.join("ABOUT.txt")).expect("read");
        for part in [
            "volume ma/in",
            "session 12",
            "fenced by an administrator",
            "db/../wal 1 (ino7); 12288 bytes long here, 4096 for",
            "bytes 0 to 3\n",
            "bytes 4096 to 12288\n",
        ] {
            assert!(about.contains(part), "{part:?} is not in {about}");
        }
        assert!(folder.file_name().expect("named").to_string_lossy().starts_with("ma_in-12-"));
    }

    #[test]
    fn who_has_a_file_open_or_mapped_is_found_by_the_device() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = File::create(folder.path().join("f")).expect("made");
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", open.as_raw_fd())).expect("read");
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).expect("told").trim();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
        let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let device = mounts.filter(|words| words[0] == mount).map(|words| words[2].to_owned()).next().expect("mounted");
        let mut child = std::process::Command::new("sleep").arg("60").stdin(open).spawn().expect("runs");
        let found = users(&device).contains(&(child.id() as i32));
        let not_elsewhere = !uses(&PathBuf::from(format!("/proc/{}", child.id())), "0:99999");
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(found && not_elsewhere);
        assert!(is_mapped(b"55d0-55e0 r--p 00000000 fe:0a 123   /bin/x\n7f00-7f10 rw-p 00000000 00:00 0\n", "254:10"));
        assert!(!is_mapped(b"55d0-55e0 r--p 00000000 fe:0a 123   /bin/x\n", "254:11"));
    }
}
