//! A table on disk, through fjall 3 (an LSM tree with its own journal).
//!
//! * **One keyspace per table.** A crash must leave a prefix of the commits. Within one keyspace fjall gives that: a
//!   memtable is flushed only after the journal that holds its commits was synced and sealed, and recovery stops at the
//!   first batch that is not whole. Across keyspaces each tree is flushed by itself, so one tree could show commits
//!   that the other lost with the journal's tail; nothing documented forbids it, and we do not depend on details.
//! * Commits reach the kernel before they return (the death of the process loses nothing) and the disk at
//!   [`Table::persist`] (a power loss may lose what came after).
//! * Content lives in `content-N` below the table's directory; the file `CURRENT` names the one in force. A replacement
//!   is built in a directory of its own, persisted, and put in force by renaming `CURRENT`.
//! * Memory is bounded by [`FjallConfig`]: the cache, the memtables, the open files.
//!
//! What fjall does not tell: bit rot in the unsealed part of its journal is cut like a torn tail. The table is then an
//! older prefix than was persisted; whoever keeps a log above it finds its applied index below the log's beginning and
//! must refuse to go on.

use crate::table::{Batch, KeyRange, Pair, Pairs, Replacement, StoreError, Table, View};
use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Names the content in force.
const CURRENT: &str = "CURRENT";
/// Where the next `CURRENT` is written before it takes the name.
const CURRENT_NEW: &str = "CURRENT.new";
/// Directories of contents begin with this, then a number.
const CONTENT_PREFIX: &str = "content-";
/// The only keyspace.
const KEYSPACE: &str = "table";
/// Shorter keys and values are copied out of the cached block they lie in, so that keeping one does not pin 4 KiB.
const COPY_BELOW_BYTES: usize = 1024;

/// Bounds of a [`FjallTable`].
#[derive(Clone, Copy, Debug)]
pub struct FjallConfig {
    /// Cache of blocks read from disk, in bytes.
    pub cache_bytes: u64,
    /// A memtable of this many bytes is flushed; two or three exist at a time.
    pub memtable_bytes: u64,
    /// Open files at the most, at least 10.
    pub files_open_max: usize,
    /// Threads that flush and compact, at least 1.
    pub worker_threads: usize,
}

impl Default for FjallConfig {
    /// Small enough for a whole cluster in one process; by eye.
    fn default() -> Self {
        Self { cache_bytes: 32 << 20, memtable_bytes: 8 << 20, files_open_max: 64, worker_threads: 1 }
    }
}

/// A table in a directory of its own.
pub struct FjallTable {
    shared: Arc<Shared>,
}

/// What a table and its replacements in the making have in common.
struct Shared {
    path: PathBuf,
    config: FjallConfig,
    live: RwLock<Arc<Content>>,
    next_number: AtomicU64,
    /// Putting a new content in force failed halfway: nobody knows which one a restart will find, so no commit may be
    /// acknowledged by either.
    undecided: AtomicBool,
}

/// One open content. It lives while the table, a snapshot or a range uses it.
struct Content {
    /// `None` only while dropping.
    open: Option<Open>,
    path: PathBuf,
    number: u64,
    /// Not in force (any more): the last user removes the files.
    retired: AtomicBool,
}

struct Open {
    keyspace: Keyspace,
    database: Database,
}

impl FjallTable {
    /// Opens a table, or makes an empty one where nothing is yet.
    ///
    /// # Errors
    /// [`StoreError`]; `InUse` when another process, or another `FjallTable` of this one, has it.
    pub fn open(path: &Path, config: FjallConfig) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(failed)?;
        let numbers = content_numbers(path)?;
        let (content, new) = match read_current(path)? {
            Some(number) if numbers.contains(&number) => (Content::open(path, number, config, false)?, false),
            Some(number) => return Err(damaged(format!("{} lacks {CONTENT_PREFIX}{number}", path.display()))),
            None => (adopt(path, &numbers, config)?, true),
        };
        if new {
            write_current(path, content.number)?;
        }
        // Only now, under the lock of the content in force, are others known to be left over from a crash.
        for number in numbers.iter().filter(|number| **number != content.number) {
            fs::remove_dir_all(content_path(path, *number)).map_err(failed)?;
        }
        let next_number = AtomicU64::new(numbers.last().copied().unwrap_or(0).max(content.number) + 1);
        let live = RwLock::new(Arc::new(content));
        let undecided = AtomicBool::new(false);
        Ok(Self { shared: Arc::new(Shared { path: path.to_owned(), config, live, next_number, undecided }) })
    }

    /// Writes the memtable to a file and waits, so that tests read from disk.
    #[cfg(test)]
    pub(crate) fn flush_for_test(&self) -> Result<(), StoreError> {
        Ok(self.shared.live().parts().keyspace.rotate_memtable_and_wait()?)
    }
}

impl Shared {
    fn live(&self) -> Arc<Content> {
        // Writers only swap the pointer, so a poisoned lock still holds a whole value.
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The content in force, for changing it.
    fn live_for_change(&self) -> Result<Arc<Content>, StoreError> {
        if self.undecided.load(Ordering::Acquire) {
            return Err(StoreError::Failed("a replacement failed while it was put in force".into()));
        }
        Ok(self.live())
    }
}

impl std::fmt::Debug for FjallTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FjallTable").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

/// No `CURRENT`: a fresh directory, or a crash during the very first opening. Anything else is damage, not emptiness.
fn adopt(path: &Path, numbers: &[u64], config: FjallConfig) -> Result<Content, StoreError> {
    if numbers.iter().any(|number| *number != 1) {
        return Err(damaged(format!("{} has contents but no {CURRENT}", path.display())));
    }
    let content = Content::open(path, 1, config, false)?;
    if !content.parts().keyspace.is_empty()? {
        return Err(damaged(format!("{} has rows but no {CURRENT}", path.display())));
    }
    Ok(content)
}

impl Content {
    /// Opens or makes a content.
    fn open(path: &Path, number: u64, config: FjallConfig, retired: bool) -> Result<Self, StoreError> {
        let path = content_path(path, number);
        let database = Database::builder(&path)
            .cache_size(config.cache_bytes)
            .max_cached_files(Some(config.files_open_max.max(10)))
            .worker_threads(config.worker_threads.max(1))
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(config.memtable_bytes);
        let keyspace = database.keyspace(KEYSPACE, options)?;
        Ok(Self { open: Some(Open { keyspace, database }), path, number, retired: AtomicBool::new(retired) })
    }

    fn parts(&self) -> &Open {
        self.open.as_ref().expect("open until dropped")
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let Open { keyspace, database } = self.parts();
        let mut write = database.batch();
        for (key, value) in batch.into_changes() {
            match value {
                Some(value) => write.insert(keyspace, key, value),
                None => write.remove(keyspace, key),
            }
        }
        Ok(write.commit()?)
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        // Threads of fjall end with the database; only then may its files go.
        if let Some(Open { keyspace, database }) = self.open.take() {
            drop(keyspace);
            drop(database);
        }
        if *self.retired.get_mut() {
            // A failure leaves a directory that the next opening removes.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

impl View for FjallTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        // Through a snapshot: fjall shows a batch key by key while it is being applied, and a commit is one step for us.
        self.snapshot().get(key)
    }

    fn range(&self, range: KeyRange) -> Pairs {
        self.snapshot().range(range)
    }
}

impl Table for FjallTable {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.shared.live_for_change()?.commit(batch)
    }

    fn snapshot(&self) -> Arc<dyn View> {
        let content = self.shared.live();
        Arc::new(FjallSnapshot { snapshot: content.parts().database.snapshot(), content })
    }

    fn persist(&self) -> Result<(), StoreError> {
        Ok(self.shared.live_for_change()?.parts().database.persist(PersistMode::SyncAll)?)
    }

    fn replace(&self) -> Result<Box<dyn Replacement>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let number = shared.next_number.fetch_add(1, Ordering::Relaxed);
        let content = Content::open(&shared.path, number, shared.config, true)?;
        Ok(Box::new(FjallReplacement { shared, content }))
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.shared.live().parts().database.disk_space()?)
    }
}

struct FjallSnapshot {
    // Before the content, so that it is let go first.
    snapshot: fjall::Snapshot,
    content: Arc<Content>,
}

impl View for FjallSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.snapshot.get(&self.content.parts().keyspace, key)?.map(detach))
    }

    fn range(&self, range: KeyRange) -> Pairs {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let run = self.snapshot.range(&self.content.parts().keyspace, range.into_bounds());
        Box::new(Run { run, _content: Arc::clone(&self.content) })
    }
}

/// A range in progress; it keeps its content open.
struct Run {
    run: fjall::Iter,
    _content: Arc<Content>,
}

fn pair(guard: fjall::Guard) -> Result<Pair, StoreError> {
    let (key, value) = guard.into_inner()?;
    Ok((detach(key), detach(value)))
}

impl Iterator for Run {
    type Item = Result<Pair, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.run.next().map(pair)
    }
}

impl DoubleEndedIterator for Run {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.run.next_back().map(pair)
    }
}

fn detach(slice: fjall::Slice) -> Bytes {
    if slice.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(&slice) } else { slice.into() }
}

/// A content in the making; retired until it is put in force, so that giving it up removes it.
struct FjallReplacement {
    shared: Arc<Shared>,
    content: Content,
}

impl Replacement for FjallReplacement {
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.content.commit(batch)
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let Self { shared, mut content } = *self;
        content.parts().database.persist(PersistMode::SyncAll)?;
        let mut live = shared.live.write().unwrap_or_else(PoisonError::into_inner);
        // From here on both contents stay until it is certain which one is in force.
        *content.retired.get_mut() = false;
        write_current(&shared.path, content.number).inspect_err(|_| shared.undecided.store(true, Ordering::Release))?;
        let old = std::mem::replace(&mut *live, Arc::new(content));
        old.retired.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn content_path(path: &Path, number: u64) -> PathBuf {
    path.join(format!("{CONTENT_PREFIX}{number}"))
}

/// Numbers of all contents, sorted.
fn content_numbers(path: &Path) -> Result<Vec<u64>, StoreError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix(CONTENT_PREFIX)?.parse().ok()) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_current(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::read_to_string(path.join(CURRENT)) {
        Ok(text) => match text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(damaged(format!("{} says {text:?}", path.join(CURRENT).display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Puts a content in force, durably.
fn write_current(path: &Path, number: u64) -> Result<(), StoreError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path.join(CURRENT_NEW))?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        fs::rename(path.join(CURRENT_NEW), path.join(CURRENT))?;
        File::open(path)?.sync_all()
    };
    write().map_err(failed)
}

fn failed(error: io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::StorageFull {
        StoreError::Full(error.into())
    } else {
        StoreError::Failed(error.into())
    }
}

fn damaged(what: String) -> StoreError {
    StoreError::Damaged(what.into())
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        use fjall::Error;
        let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
        // The system did as it was asked, and what was there is not what was written: too short, nonsense, or gone.
        let wrong = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::NotFound)
        };
        match &error {
            Error::Locked => Self::InUse,
            Error::Io(io) if full(io) => Self::Full(error.into()),
            Error::Io(io) if wrong(io) => Self::Damaged(error.into()),
            Error::Io(_) | Error::Poisoned | Error::KeyspaceDeleted => Self::Failed(error.into()),
            Error::Storage(fjall::LsmError::Io(io)) if full(io) => Self::Full(error.into()),
            Error::Storage(fjall::LsmError::Io(io)) if wrong(io) => Self::Damaged(error.into()),
            Error::Storage(fjall::LsmError::Io(_)) => Self::Failed(error.into()),
            // Checksums, tags, versions, files that are gone: and whatever a later fjall adds is not trusted either.
            _ => Self::Damaged(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
