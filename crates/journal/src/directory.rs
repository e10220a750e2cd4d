//! A real directory as a [`Disk`], through the page cache.
//!
//! * One process at a time: a lock on the file `.lock`, held while any clone of the disk or any of its files is alive.
//! * Syncs are real unless the test switch [`Syncing::SkippedForTest`] was asked for by name.

use crate::disk::{Disk, DiskFile, Space, check_name};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the lock file; the dot keeps it out of [`Disk::list`].
const LOCK_NAME: &str = ".lock";

/// Whether syncs reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syncing {
    /// They do. The only choice outside a test.
    Real,
    /// **DATA WILL BE LOST on a power failure.** Every sync returns `Ok` and does nothing. It exists for one test: a
    /// power-loss run with it must lose data, or else the run proves nothing.
    SkippedForTest,
}

/// A directory of the local file system.
#[derive(Clone, Debug)]
pub struct DirectoryDisk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    directory: File,
    syncing: Syncing,
    /// Holds the lock; closing it releases.
    _lock: File,
}

/// An open file of a [`DirectoryDisk`].
#[derive(Debug)]
pub struct DirectoryFile {
    file: File,
    disk: Arc<Inner>,
}

impl DirectoryDisk {
    /// Opens a directory, creating it (and its parents) when absent, and locks it.
    ///
    /// # Errors
    /// `ResourceBusy` when another process (or another `DirectoryDisk` of this one) holds it; what the system reports.
    pub fn open(path: &Path, syncing: Syncing) -> io::Result<Self> {
        let new = !path.exists();
        std::fs::create_dir_all(path)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK_NAME))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is in use by another Holdfast process", path.display()),
            ),
            TryLockError::Error(error) => error,
        })?;
        let directory = File::open(path)?;
        if new && syncing == Syncing::Real {
            directory.sync_all()?;
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), directory, syncing, _lock: lock }) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Whether its syncs are real; the server says so in its log at the start when they are not.
    pub fn syncing(&self) -> Syncing {
        self.inner.syncing
    }

    fn resolve(&self, name: &str) -> io::Result<PathBuf> {
        check_name(name)?;
        Ok(self.inner.path.join(name))
    }

    fn handle(&self, file: File) -> DirectoryFile {
        DirectoryFile { file, disk: Arc::clone(&self.inner) }
    }
}

impl Disk for DirectoryDisk {
    type File = DirectoryFile;

    fn open(&self, name: &str) -> io::Result<DirectoryFile> {
        Ok(self.handle(OpenOptions::new().read(true).write(true).open(self.resolve(name)?)?))
    }

    fn create(&self, name: &str) -> io::Result<DirectoryFile> {
        Ok(self.handle(OpenOptions::new().read(true).write(true).create_new(true).open(self.resolve(name)?)?))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.resolve(name)?.try_exists()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.inner.path)? {
            let entry = entry?;
            // What is not ours by name or kind (`lost+found`, a sub-directory, an editor's leftovers) is not listed.
            if let Ok(name) = entry.file_name().into_string()
                && check_name(&name).is_ok()
                && entry.file_type()?.is_file()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.resolve(name)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.resolve(from)?, self.resolve(to)?)
    }

    fn sync_directory(&self) -> io::Result<()> {
        match self.inner.syncing {
            Syncing::Real => self.inner.directory.sync_all(),
            Syncing::SkippedForTest => Ok(()),
        }
    }

    fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.inner.directory)?;
        let unit = stat.f_frsize;
        Ok(Space { total: stat.f_blocks.saturating_mul(unit), available: stat.f_bavail.saturating_mul(unit) })
    }
}

impl DirectoryFile {
    /// The file itself, for a backend that drives it in another way.
    pub fn as_file(&self) -> &File {
        &self.file
    }
}

impl DiskFile for DirectoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.disk.syncing {
            Syncing::Real => self.file.sync_data(),
            Syncing::SkippedForTest => Ok(()),
        }
    }

    fn bytes_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        if bytes == 0 {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            // No reservation on this file system: writes then report a full disk themselves.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                if self.bytes_len()? < bytes {
                    self.file.set_len(bytes)?;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let length = length.min(self.bytes_len()?.saturating_sub(offset));
        if length == 0 {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.fill_zeros(offset, length),
            other => Ok(other?),
        }
    }
}
