//! A real directory as a [`Disk`], through the page cache but for what asks to go past it.
//!
//! * Batches go through an io_uring where one can be had ([`IoBackend`]); single calls are plain system calls of the thread that makes them, which
//!   waits anyway: there a ring costs more than it saves (docs/decisions/0010-io-uring-disk.md).
//! * One process at a time: a lock on the file `.lock`, held while any clone of the disk or any of its files is alive.
//! * Syncs are real unless the test switch [`Syncing::SkippedForTest`] was asked for by name.

use crate::disk::{Disk, DiskFile, Read, Space, Write, check_name};
use crate::io_backend::IoBackend;
use crate::uring::{Operation, Ring, Transfer};
use rustix::io::ReadWriteFlags;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Name of the lock file; the dot keeps it out of [`Disk::list`].
const LOCK_NAME: &str = ".lock";

/// What offsets, lengths and places in memory of direct writes are multiples of: enough for every disk with blocks of up to 4 KiB.
const DIRECT_BYTES: u64 = 4096;

/// Idle rings kept by a disk: as many as there are threads that use one at a time, by eye.
const IDLE_RINGS_MAX: usize = 4;
/// Reads worth collecting for one round of a ring. By eye: what keeps a disk busy without making the first of them wait for long.
const READS_AT_ONCE: usize = 32;

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
    backend: IoBackend,
    /// Rings that nobody uses now. Each is owned by the call that takes it out.
    rings: Mutex<Vec<Ring>>,
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
    /// Opens a directory, creating it (and its parents) when absent, and locks it. Plain calls only.
    ///
    /// # Errors
    /// `ResourceBusy` when another process (or another `DirectoryDisk` of this one) holds it; what the system reports.
    pub fn open(path: &Path, syncing: Syncing) -> io::Result<Self> {
        Self::open_with(path, syncing, IoBackend::Threads)
    }

    /// As [`DirectoryDisk::open`], with the backend that [`crate::io_backend::choose`] found usable.
    ///
    /// # Errors
    /// As [`DirectoryDisk::open`].
    pub fn open_with(path: &Path, syncing: Syncing, backend: IoBackend) -> io::Result<Self> {
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
        let (path, rings) = (path.to_owned(), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { path, directory, syncing, backend, rings, _lock: lock }) })
    }

    /// How it reads and writes.
    pub fn backend(&self) -> IoBackend {
        self.inner.backend
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

    /// A ring for one call; none where plain calls are to do.
    fn ring(&self) -> Option<Ring> {
        if self.inner.backend == IoBackend::Threads {
            return None;
        }
        let idle = self.inner.rings.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // One cannot be had when descriptors or memory run out: the work is then done without.
        idle.or_else(|| Ring::new().ok())
    }

    /// Carries operations out with a ring, which is kept for the next call.
    fn run<'a>(
        &self,
        ring: Ring,
        operations: Vec<Operation<'a>>,
        done: &mut dyn FnMut(usize, Operation<'a>, io::Result<()>),
    ) {
        let Some(ring) = ring.run(operations, done) else { return };
        let mut idle = self.inner.rings.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_RINGS_MAX {
            idle.push(ring);
        }
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
        let (path, opened) = (&self.inner.path, rustix::fs::fstat(&self.inner.directory)?);
        // What was opened goes on being written to wherever it is, and the next start would not find it.
        match rustix::fs::stat(path) {
            Ok(there) if (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino) => {}
            Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                let reason = format!("{} is not there any more: it was removed, or unmounted", path.display());
                return Err(io::Error::new(io::ErrorKind::NotFound, reason));
            }
            Err(error) => return Err(error.into()),
        }
        let stat = rustix::fs::fstatvfs(&self.inner.directory)?;
        let unit = stat.f_frsize;
        Ok(Space { total: stat.f_blocks.saturating_mul(unit), available: stat.f_bavail.saturating_mul(unit) })
    }

    fn reads_at_once(&self) -> usize {
        match self.inner.backend {
            IoBackend::IoUring => READS_AT_ONCE,
            IoBackend::Threads => 1,
        }
    }

    fn read_many(&self, reads: Vec<Read<'_, DirectoryFile>>, done: &mut dyn FnMut(usize, io::Result<Vec<u8>>)) {
        // One alone is as fast without a ring.
        let ring = if reads.len() > 1 { self.ring() } else { None };
        let Some(ring) = ring else {
            for (index, Read { file, offset, mut buffer }) in reads.into_iter().enumerate() {
                let result = file.read_at(&mut buffer, offset);
                done(index, result.map(|()| buffer));
            }
            return;
        };
        let mut operations = Vec::with_capacity(reads.len());
        for Read { file, offset, buffer } in reads {
            operations.push(Operation::new(&file.file, offset, Transfer::Read(buffer)));
        }
        self.run(ring, operations, &mut |index, operation, result| {
            let Transfer::Read(buffer) = operation.transfer else { unreachable!("only reads were given") };
            done(index, result.map(|()| buffer));
        });
    }

    fn write_many_past_cache(&self, writes: &[Write<'_, DirectoryFile>]) -> io::Result<()> {
        let direct: Option<Vec<&File>> =
            writes.iter().map(|write| write.file.direct_for(write.bytes, write.offset)).collect();
        // What goes through the page cache is a copy, which a ring would only hand to a thread of the kernel.
        let ring = direct.filter(|files| files.len() > 1).and_then(|files| Some((files, self.ring()?)));
        let Some((files, ring)) = ring else {
            return writes.iter().try_for_each(|write| write.file.write_past_cache_at(write.bytes, write.offset));
        };
        let mut operations = Vec::with_capacity(writes.len());
        for (file, write) in files.into_iter().zip(writes) {
            operations.push(Operation::new(file, write.offset, Transfer::Write(write.bytes)));
        }
        let mut failed = None;
        self.run(ring, operations, &mut |index, _, result| {
            let write = &writes[index];
            let result = match result {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    write.file.write_at(write.bytes, write.offset)
                }
                other => other,
            };
            failed = failed.take().or(result.err());
        });
        failed.map_or(Ok(()), Err)
    }

    fn sync_many(&self, files: &[&DirectoryFile]) -> io::Result<()> {
        let wanted = self.inner.syncing == Syncing::Real && files.len() > 1;
        let Some(ring) = wanted.then(|| self.ring()).flatten() else {
            return files.iter().try_for_each(|file| file.sync_data());
        };
        let operations = files.iter().map(|file| Operation::new(&file.file, 0, Transfer::Sync)).collect();
        let mut failed = None;
        self.run(ring, operations, &mut |_, _, result| failed = failed.take().or(result.err()));
        failed.map_or(Ok(()), Err)
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
            OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok()
        };
        self.direct.get_or_init(open).as_ref()
    }

    /// The file past the page cache, if these bytes may go there.
    fn direct_for(&self, bytes: &[u8], offset: u64) -> Option<&File> {
        let whole = |number: u64| number.is_multiple_of(DIRECT_BYTES);
        // Without syncs everything is to be lost with the power: what went past the cache might not be.
        let real = self.disk.syncing == Syncing::Real;
        let fits = real && whole(offset) && whole(bytes.len() as u64) && whole(bytes.as_ptr() as u64);
        if fits { self.direct() } else { None }
    }
}

/// Writes all bytes past the page cache; each part is durable when its call returns.
fn write_all_durable(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwritev2(file, &[IoSlice::new(bytes)], offset, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl DiskFile for DirectoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        // A short read: the rest is not there, or the file ends. A refusal: not there, or a file system that cannot tell.
        let read = rustix::io::preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT);
        match read {
            Ok(bytes) => Ok(bytes == buffer.len()),
            Err(
                rustix::io::Errno::AGAIN
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::INTR,
            ) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn read_past_cache_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.direct_for(buffer, offset).map(|file| file.read_exact_at(buffer, offset)) {
            None => self.read_at(buffer, offset),
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => self.read_at(buffer, offset),
            Some(done) => done,
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn write_past_cache_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.direct_for(bytes, offset).map(|file| file.write_all_at(bytes, offset)) {
            // This disk wants larger blocks than most, or its file system cannot do it at all.
            None => self.write_at(bytes, offset),
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => self.write_at(bytes, offset),
            Some(done) => done,
        }
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let plain = || {
            self.write_at(bytes, offset)?;
            self.sync_data()
        };
        match self.direct_for(bytes, offset).map(|file| write_all_durable(file, bytes, offset)) {
            None => plain(),
            // This disk wants larger blocks than most, or this kernel does not know the flag.
            Some(Err(error)) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                plain()
            }
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

    #[test]
    fn a_sync_that_fails_among_many_is_reported() {
        let directory = tempfile::tempdir().expect("a directory");
        for backend in IoBackend::ALL {
            let disk = DirectoryDisk::open_with(directory.path(), Syncing::Real, backend).expect("opened");
            let good = disk.create("good").expect("created");
            // A pipe cannot be synced.
            let (bad, _other) = std::io::pipe().expect("a pipe");
            let bad = disk.handle(File::from(std::os::fd::OwnedFd::from(bad)));
            for files in [[&good, &bad], [&bad, &good]] {
                let error = disk.sync_many(&files).expect_err("one failed");
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{backend:?}");
            }
            disk.sync_many(&[&good, &good]).expect("the others are well");
            disk.remove("good").expect("removed");
        }
    }

    #[test]
    fn skipped_syncs_stay_skipped_in_every_way_of_syncing() {
        let directory = tempfile::tempdir().expect("a directory");
        for backend in IoBackend::ALL {
            let disk = DirectoryDisk::open_with(directory.path(), Syncing::SkippedForTest, backend).expect("opened");
            let (bad, _other) = std::io::pipe().expect("a pipe");
            let bad = disk.handle(File::from(std::os::fd::OwnedFd::from(bad)));
            disk.sync_many(&[&bad, &bad]).expect("not even tried");
            bad.sync_data().expect("not even tried");
            let file = disk.create("file").expect("created");
            let mut memory = Vec::new();
            let range = placed(0, DIRECT_BYTES as usize, 1, &mut memory);
            file.write_durable_at(&memory[range], 0).expect("written");
            assert!(file.direct.get().is_none(), "what goes past the cache might survive the power");
            disk.remove("file").expect("removed");
        }
    }

    #[test]
    fn a_directory_that_is_gone_or_another_is_not_found() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("disk");
        let disk = DirectoryDisk::open(&path, Syncing::Real).expect("opened");
        disk.space().expect("there");
        std::fs::rename(&path, folder.path().join("moved")).expect("moved");
        assert_eq!(disk.space().expect_err("gone").kind(), io::ErrorKind::NotFound);
        std::fs::create_dir(&path).expect("another");
        let error = disk.space().expect_err("another one");
        assert!(
            error.kind() == io::ErrorKind::NotFound && error.to_string().contains("removed, or unmounted"),
            "{error}"
        );
    }

    #[test]
    fn rings_are_kept_for_the_next_call_and_only_a_few_of_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = DirectoryDisk::open_with(directory.path(), Syncing::Real, IoBackend::IoUring).expect("opened");
        let file = disk.create("file").expect("created");
        if disk.ring().is_none() {
            return; // The contract's suite says so.
        }
        let idle = || disk.inner.rings.lock().expect("no panic").len();
        disk.sync_many(&[&file, &file]).expect("synced");
        assert_eq!(idle(), 1);
        disk.sync_many(&[&file, &file]).expect("synced");
        assert_eq!(idle(), 1, "the same one");
        let rings: Vec<Ring> = (0..10).filter_map(|_| disk.ring()).collect();
        for ring in rings {
            disk.run(ring, Vec::new(), &mut |_, _, _| {});
        }
        assert_eq!(idle(), IDLE_RINGS_MAX);
    }
}
