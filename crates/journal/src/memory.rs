//! A simulated [`Disk`]: what programs see and what a power loss leaves are kept apart.
//!
//! * Bytes: a page that was written is *seen* at once and becomes *durable* with the file's next sync. From time to
//!   time a dirty page is written back by itself, as kernels do, so that versions in between can survive as well.
//! * Names: creations, renames and removals are seen at once and durable with the next directory sync.
//! * A power loss keeps, loses or tears every 512-byte sector that was not durable, each by itself, and keeps some of
//!   the pending changes of names: a prefix, or any subset.
//! * A sync that fails leaves its pages clean and *not* durable, so that whoever retries it is found out.
//! * Everything is a function of the seed and the calls; nothing of the world is read.
//!
//! Clones share one disk. After a crash every handle is dead until [`MemoryDisk::restart`] gives a new one.

mod content;
mod state;
#[cfg(test)]
mod tests;

use crate::disk::{Disk, DiskFile, Space, check_name};
use holdfast_types::prng::Prng;
use state::State;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What ended the life of the process that used the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The process died; the kernel and its page cache live on, nothing seen is lost.
    Process,
    /// The power failed: what was not synced may be lost, kept or torn.
    Power,
}

/// How many calls a disk has taken since it was made. They count through restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls that change anything, syncs included.
    pub operations: u64,
    /// Syncs of files and of the directory.
    pub syncs: u64,
    /// Bytes given to `write_at`.
    pub bytes_written: u64,
}

/// A disk in memory.
#[derive(Clone, Debug)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

/// An open file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile {
    state: Arc<Mutex<State>>,
    life: u64,
    key: u64,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic elsewhere (a failed assertion of a test) says nothing about the state: every change is made in one piece.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryDisk {
    /// An empty disk without a capacity limit. The seed decides what power losses leave.
    pub fn new(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(Prng::new(seed)))), life: 0 }
    }

    /// Calls taken so far.
    pub fn counters(&self) -> Counters {
        lock(&self.state).counters()
    }

    /// Makes the power fail within the `nth` changing call from now (1 is the next): that call and all later ones
    /// return errors, and a sync that is hit has not happened.
    pub fn crash_at_operation(&self, nth: u64) {
        lock(&self.state).crash_at_operation(nth);
    }

    /// As [`MemoryDisk::crash_at_operation`], counting syncs only.
    pub fn crash_at_sync(&self, nth: u64) {
        lock(&self.state).crash_at_sync(nth);
    }

    /// Whether the disk is down: crashed and not restarted.
    pub fn crashed(&self) -> bool {
        lock(&self.state).is_down()
    }

    /// Ends the life of all handles and gives a disk with what is left. Pending crash points are forgotten.
    ///
    /// After a crash by a crash point the loss is one of power, whatever is asked for.
    #[must_use]
    pub fn restart(&self, loss: Loss) -> Self {
        let life = lock(&self.state).restart(loss);
        Self { state: Arc::clone(&self.state), life }
    }

    /// Limits the sum of all files, in bytes rounded up to pages of 4 KiB. `None` is no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        lock(&self.state).set_capacity(bytes);
    }

    /// From now on syncs return `Ok` and do nothing: for proving that a test notices.
    pub fn set_lying(&self, lying: bool) {
        lock(&self.state).set_lying(lying);
    }

    /// The `nth` sync of a file from now (1 is the next) fails once; what it should have made durable never will be,
    /// unless written again.
    pub fn fail_sync(&self, nth: u64) {
        lock(&self.state).fail_sync(nth);
    }

    /// Flips the lowest bit of a byte, in what is seen and in what is durable, as a rotten medium does.
    ///
    /// # Errors
    /// `NotFound`; `UnexpectedEof` beyond the end.
    pub fn flip_bit(&self, name: &str, offset: u64) -> io::Result<()> {
        lock(&self.state).flip_bit(name, offset)
    }

    /// Reads that touch this page (4 KiB) of a file fail from now on, until it is written again.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn fail_reads(&self, name: &str, offset: u64) -> io::Result<()> {
        lock(&self.state).fail_reads(name, offset)
    }

    /// All files as seen now, for golden tests and comparisons.
    pub fn contents(&self) -> Vec<(String, Vec<u8>)> {
        lock(&self.state).contents()
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        check_name(name)?;
        let key = lock(&self.state).open(self.life, name)?;
        Ok(MemoryFile { state: Arc::clone(&self.state), life: self.life, key })
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        check_name(name)?;
        let key = lock(&self.state).create(self.life, name)?;
        Ok(MemoryFile { state: Arc::clone(&self.state), life: self.life, key })
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        check_name(name)?;
        lock(&self.state).exists(self.life, name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        lock(&self.state).list(self.life)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        check_name(name)?;
        lock(&self.state).remove(self.life, name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(from)?;
        check_name(to)?;
        lock(&self.state).rename(self.life, from, to)
    }

    fn sync_directory(&self) -> io::Result<()> {
        lock(&self.state).sync_directory(self.life)
    }

    fn space(&self) -> io::Result<Space> {
        lock(&self.state).space(self.life)
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        lock(&self.state).read(self.life, self.key, buffer, offset)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        // Everything is in memory; what fails is left to the read proper.
        Ok(self.read_at(buffer, offset).is_ok())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        lock(&self.state).write(self.life, self.key, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        lock(&self.state).sync_file(self.life, self.key)
    }

    fn bytes_len(&self) -> io::Result<u64> {
        lock(&self.state).bytes_len(self.life, self.key)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        lock(&self.state).set_len(self.life, self.key, bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        lock(&self.state).allocate(self.life, self.key, bytes)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        lock(&self.state).punch_hole(self.life, self.key, offset, length)
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        lock(&self.state).close(self.life, self.key);
    }
}
