//! Which requests for a mount are open: the engine sends a Mount with an id of its own for each container, and later an Unmount with
//! the same id. A volume stays mounted as long as one is open.
//!
//! * What is said here survives this process and the engine: one small file, written anew and renamed at each change, synced before the
//!   engine gets its answer.
//! * A request that is repeated counts once; one that is taken back twice was taken back the first time.
//! * No container survives a restart of the machine, so requests of an earlier boot are void.

use crate::engine::Engine;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILE: &str = "requests.json";
const LOCK: &str = "lock";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Of the file's form.
const VERSION: u32 = 1;

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    /// The kernel's name for the time since the machine started.
    boot: String,
    /// Open requests by the volume they are for and their id, and who made them, if that is known. No volume without one.
    volumes: BTreeMap<String, BTreeMap<String, Option<Engine>>>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RequestsError {
    /// It cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another plugin has the directory.
    #[error("{0} is in use by another docker-plugin; give each its own --state-dir")]
    Locked(PathBuf),
    /// It is not as we write it.
    #[error(
        "{path} cannot be understood: {reason}; if no container uses a volume of this plugin, remove the file and start again"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Open requests of this host's containers.
#[derive(Debug)]
pub struct Requests {
    directory: PathBuf,
    kept: Kept,
    /// Held for as long as this lives.
    _lock: File,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RequestsError {
    let path = path.to_path_buf();
    move |source| RequestsError::Io { what, path, source }
}

impl Requests {
    /// Reads what was open, and keeps others from the directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`RequestsError`]
    pub fn open(directory: &Path) -> Result<Self, RequestsError> {
        let boot = std::fs::read_to_string(BOOT_ID).map_err(failed("read", Path::new(BOOT_ID)))?;
        Self::open_in_boot(directory, boot.trim())
    }

    fn open_in_boot(directory: &Path, boot: &str) -> Result<Self, RequestsError> {
        std::fs::create_dir_all(directory).map_err(failed("create", directory))?;
        let lock_path = directory.join(LOCK);
        let lock = File::create(&lock_path).map_err(failed("create", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| RequestsError::Locked(directory.into()))?;
        let path = directory.join(FILE);
        let nothing = Kept { version: VERSION, boot: boot.to_owned(), volumes: BTreeMap::new() };
        let kept = match std::fs::read(&path) {
            Ok(bytes) => {
                let damaged = |reason| RequestsError::Damaged { path: path.clone(), reason };
                let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
                if kept.version != VERSION {
                    return Err(damaged(format!("it has version {}, this program knows {VERSION}", kept.version)));
                }
                if kept.boot == boot { kept } else { nothing }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => nothing,
            Err(source) => return Err(failed("read", &path)(source)),
        };
        Ok(Self { directory: directory.into(), kept, _lock: lock })
    }

    /// Open requests for a volume.
    pub fn count(&self, volume: &str) -> usize {
        self.kept.volumes.get(volume).map_or(0, BTreeMap::len)
    }

    /// Volumes with open requests.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.kept.volumes.keys().map(String::as_str)
    }

    /// Whether all who made the requests for a volume have ended.
    pub fn are_left_behind(&self, volume: &str) -> bool {
        let mut engines = self.kept.volumes.get(volume).into_iter().flat_map(BTreeMap::values);
        engines.all(|engine| engine.is_some_and(|engine| !engine.is_alive()))
    }

    /// Nobody will take back the requests for a volume: none is open any more, durably.
    ///
    /// # Errors
    /// [`RequestsError::Io`]; then they are still open.
    pub fn forget(&mut self, volume: &str) -> Result<(), RequestsError> {
        let mut next = self.kept.clone();
        if next.volumes.remove(volume).is_some() { self.replace(next) } else { Ok(()) }
    }

    /// A request is open: durable when this returns. Once more is as good as once.
    ///
    /// # Errors
    /// [`RequestsError::Io`]; then it is not open.
    pub fn add(&mut self, volume: &str, id: &str, by: Option<Engine>) -> Result<(), RequestsError> {
        let mut next = self.kept.clone();
        if next.volumes.entry(volume.to_owned()).or_default().insert(id.to_owned(), by) == Some(by) {
            return Ok(());
        }
        self.replace(next)
    }

    /// A request is taken back: durable when this returns. How many are open then.
    ///
    /// # Errors
    /// [`RequestsError::Io`]; then it is still open.
    pub fn remove(&mut self, volume: &str, id: &str) -> Result<usize, RequestsError> {
        let mut next = self.kept.clone();
        let Some(ids) = next.volumes.get_mut(volume) else { return Ok(0) };
        let removed = ids.remove(id).is_some();
        let left = ids.len();
        if left == 0 {
            next.volumes.remove(volume);
        }
        if removed {
            self.replace(next)?;
        }
        Ok(left)
    }

    /// In this order: a crash leaves the old file or the new one, whole.
    fn replace(&mut self, next: Kept) -> Result<(), RequestsError> {
        let (path, new) = (self.directory.join(FILE), self.directory.join("requests.new"));
        let text = serde_json::to_vec_pretty(&next).map_err(|error| failed("write", &new)(error.into()))?;
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(failed("write", &path))?;
        self.kept = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[test]
    fn a_repeated_request_counts_once_and_all_survive_a_restart() {
        let folder = folder();
        let mut requests = Requests::open(folder.path()).expect("opens");
        requests.add("db", "one", None).expect("kept");
        requests.add("db", "one", None).expect("kept");
        requests.add("db", "two", None).expect("kept");
        requests.add("logs", "one", None).expect("kept");
        drop(requests);
        let mut requests = Requests::open(folder.path()).expect("opens again");
        assert_eq!((requests.count("db"), requests.count("logs"), requests.count("none")), (2, 1, 0));
        assert_eq!(requests.remove("db", "one").expect("kept"), 1);
        assert_eq!(requests.remove("db", "one").expect("was taken back"), 1);
        assert_eq!(requests.remove("none", "one").expect("never was"), 0);
        assert_eq!(requests.remove("db", "two").expect("kept"), 0);
        drop(requests);
        let requests = Requests::open(folder.path()).expect("opens again");
        assert_eq!(requests.volumes().collect::<Vec<_>>(), ["logs"]);
    }

    #[test]
    fn requests_of_an_earlier_boot_are_void() {
        let folder = folder();
        Requests::open_in_boot(folder.path(), "first").expect("opens").add("db", "one", None).expect("kept");
        assert_eq!(Requests::open_in_boot(folder.path(), "first").expect("opens").count("db"), 1);
        assert_eq!(Requests::open_in_boot(folder.path(), "second").expect("opens").count("db"), 0);
    }

    #[test]
    fn requests_are_left_behind_when_all_who_made_them_have_ended() {
        let folder = folder();
        let itself = Engine::of(std::process::id().cast_signed());
        let mut requests = Requests::open(folder.path()).expect("opens");
        requests.add("db", "one", Some(Engine::dead())).expect("kept");
        assert!(requests.are_left_behind("db"));
        for (id, by) in [("two", itself), ("three", None)] {
            requests.add("db", id, by).expect("kept");
            assert!(!requests.are_left_behind("db"), "{by:?}");
            requests.remove("db", id).expect("taken back");
        }
        // The same request again, of an engine that was started again.
        requests.add("db", "one", itself).expect("kept");
        assert!(!requests.are_left_behind("db"));
        requests.forget("db").expect("forgotten");
        drop(requests);
        assert_eq!(Requests::open(folder.path()).expect("opens").count("db"), 0);
    }

    #[test]
    fn one_plugin_has_the_directory() {
        let folder = folder();
        let _first = Requests::open(folder.path()).expect("opens");
        let error = Requests::open(folder.path()).expect_err("locked").to_string();
        assert!(error.contains("--state-dir"), "{error}");
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_named_and_not_taken_for_empty() {
        let folder = folder();
        for text in ["", "{", "{\"version\": 1}", "{\"version\": 9, \"boot\": \"x\", \"volumes\": {}}"] {
            std::fs::write(folder.path().join(FILE), text).expect("written");
            let error = Requests::open(folder.path()).expect_err("damaged").to_string();
            assert!(error.contains(FILE), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_not_open() {
        let folder = folder();
        let mut requests = Requests::open(folder.path()).expect("opens");
        // A directory where the new file would be: not even root can write there.
        std::fs::create_dir(folder.path().join("requests.new")).expect("made");
        assert!(requests.add("db", "one", None).is_err());
        assert_eq!(requests.count("db"), 0);
    }
}
