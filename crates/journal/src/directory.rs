//! A real directory as a [`Disk`], through the page cache but for what asks to go past it.
//!
//! * One process at a time: a lock on the file `.lock`, held while any clone of the disk or any of its files is alive.
//! * Syncs are real unless the test switch [`Syncing::SkippedForTest`] was asked for by name.

use crate::disk::{Disk, DiskFile, Space, check_name};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Name of the lock file; the dot keeps it out of [`Disk::list`].
const LOCK_NAME: &str = ".lock";

/// What offsets, lengths and places in memory of direct writes are multiples of: enough for every disk with blocks of up to 4 KiB.
const DIRECT_BYTES: u64 = 4096;

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
    /// The same file, opened past the page cache when that was first wanted; `None` where it cannot be.
    direct: OnceLock<Option<File>>,
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
        DirectoryFile { file, direct: OnceLock::new(), disk: Arc::clone(&self.inner) }
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

    /// The file past the page cache. By its descriptor, not by its name: that may have changed.
    fn direct(&self) -> Option<&File> {
        let open = || {
            let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
            OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }
}

impl DiskFile for DirectoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_past_cache_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let whole = |number: u64| number.is_multiple_of(DIRECT_BYTES);
        // Without syncs everything is to be lost with the power: what went past the cache might not be.
        let real = self.disk.syncing == Syncing::Real;
        let fits = real && whole(offset) && whole(bytes.len() as u64) && whole(bytes.as_ptr() as u64);
        match self.direct().filter(|_| fits).map(|file| file.write_all_at(bytes, offset)) {
            // This disk wants larger blocks than most, or its file system cannot do it at all.
            None => self.write_at(bytes, offset),
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => self.write_at(bytes, offset),
            Some(done) => done,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that begin at `shift` behind a whole block in memory.
    fn placed(shift: usize, length: usize, fill: u8, memory: &mut Vec<u8>) -> std::ops::Range<usize> {
        memory.resize(length + 2 * DIRECT_BYTES as usize, fill);
        let start = memory.as_ptr().align_offset(DIRECT_BYTES as usize) + shift;
        memory[start..start + length].fill(fill);
        start..start + length
    }

    #[test]
    fn writes_past_the_cache_and_through_it_see_each_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = DirectoryDisk::open(directory.path(), Syncing::Real).expect("opened");
        let file = disk.create("file").expect("created");
        let block = DIRECT_BYTES as usize;
        let mut expected = vec![1; 16 * block];
        file.write_at(&expected, 0).expect("written");
        // Whole blocks, then what cannot go past the cache: by its offset, by its length, by its place in memory.
        for (round, (offset, length, shift)) in
            [(block, 4 * block, 0), (block + 7, block, 0), (6 * block, block + 1, 0), (9 * block, 2 * block, 512)]
                .into_iter()
                .enumerate()
        {
            let (fill, mut memory) = (round as u8 + 2, Vec::new());
            let range = placed(shift, length, fill, &mut memory);
            file.write_past_cache_at(&memory[range], offset as u64).expect("written");
            expected[offset..offset + length].fill(fill);
            file.write_at(&[fill + 100], (15 * block + round) as u64).expect("written");
            expected[15 * block + round] = fill + 100;
            let mut found = vec![0; expected.len()];
            file.read_at(&mut found, 0).expect("read");
            assert!(found == expected, "round {round}");
        }
        file.sync_data().expect("synced");
        drop(file);
        let mut found = vec![0; expected.len()];
        disk.open("file").expect("still there").read_at(&mut found, 0).expect("read");
        assert!(found == expected);
    }
}
