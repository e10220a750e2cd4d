//! One directory of files, as a trait: everything that Holdfast's logs, chunk files and stamps ask of a disk.
//!
//! What implementations keep to, and callers rely on:
//!
//! * Nothing is durable before the sync that covers it returned `Ok`: [`DiskFile::sync_data`] for bytes and length (or
//!   [`DiskFile::write_durable_at`], for its own bytes), [`Disk::sync_directory`] for names. Until then a power loss keeps, loses or tears each sector as it likes.
//! * A sync that failed is never retried: the kernel may have dropped the dirty pages, and a second call would claim
//!   durability for bytes that are gone. Whoever sees the error gives the file up.
//! * Names are flat: no `/`, not empty, not starting with a dot.
//! * Handles of a file may be used from several threads; overlapping writes at the same time are the caller's mistake.

use std::io;

/// A directory of files that belongs to one process.
pub trait Disk: Send + Sync + 'static {
    /// An open file of this disk.
    type File: DiskFile;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when no such name exists; what the disk reports.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Creates an empty file. Its *name* is durable after [`Disk::sync_directory`], its bytes after `sync_data`.
    ///
    /// # Errors
    /// `AlreadyExists`; `StorageFull`; what the disk reports.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Whether a name exists now.
    ///
    /// # Errors
    /// What the disk reports.
    fn exists(&self, name: &str) -> io::Result<bool>;

    /// All names, sorted.
    ///
    /// # Errors
    /// What the disk reports.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Removes a name; open handles keep working. Durable after [`Disk::sync_directory`].
    ///
    /// # Errors
    /// `NotFound`; what the disk reports.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames, replacing what had the new name, in one step. Durable after [`Disk::sync_directory`].
    ///
    /// Sync the file first: a name may become durable before the bytes behind it.
    ///
    /// # Errors
    /// `NotFound`; what the disk reports.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes all names durable as they are now.
    ///
    /// # Errors
    /// What the disk reports; not to be retried.
    fn sync_directory(&self) -> io::Result<()>;

    /// How much fits on the file system that holds this directory.
    ///
    /// # Errors
    /// `NotFound` when the directory is not where it was any more; what the disk reports.
    fn space(&self) -> io::Result<Space>;

    /// How many reads are worth collecting for one call of [`Disk::read_many`]: 1 where they would be made one after another.
    fn reads_at_once(&self) -> usize {
        1
    }

    /// Reads many places at once. `done` is given each as it ends, in any order: its place among the reads, and its buffer, full, or what
    /// [`DiskFile::read_at`] would have reported. Returns when all have ended.
    fn read_many(&self, reads: Vec<Read<'_, Self::File>>, done: &mut dyn FnMut(usize, io::Result<Vec<u8>>)) {
        for (index, Read { file, offset, mut buffer }) in reads.into_iter().enumerate() {
            let result = file.read_at(&mut buffer, offset);
            done(index, result.map(|()| buffer));
        }
    }

    /// As [`DiskFile::write_past_cache_at`] for many places, which do not overlap, in any order.
    ///
    /// # Errors
    /// The first that a write met; any of the others may have been made.
    fn write_many_past_cache(&self, writes: &[Write<'_, Self::File>]) -> io::Result<()> {
        writes.iter().try_for_each(|write| write.file.write_past_cache_at(write.bytes, write.offset))
    }

    /// As [`DiskFile::sync_data`] for many files.
    ///
    /// # Errors
    /// The first that a sync met; nothing may be concluded about any of the files. Never retry.
    fn sync_many(&self, files: &[&Self::File]) -> io::Result<()> {
        files.iter().try_for_each(|file| file.sync_data())
    }
}

/// One of many reads.
#[derive(Debug)]
pub struct Read<'a, F> {
    /// Of which file.
    pub file: &'a F,
    /// From where.
    pub offset: u64,
    /// To be filled as a whole.
    pub buffer: Vec<u8>,
}

/// One of many writes.
#[derive(Debug)]
pub struct Write<'a, F> {
    /// To which file.
    pub file: &'a F,
    /// Where to.
    pub offset: u64,
    /// All of them.
    pub bytes: &'a [u8],
}

/// Space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that we may still take.
    pub available: u64,
}

/// An open file. Positions and lengths are bytes.
pub trait DiskFile: Send + Sync + 'static {
    /// Fills the whole buffer from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before; what the disk reports.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// As [`DiskFile::read_at`], if that needs no wait for the disk. False: not all of it is in memory, or nobody can tell; what the buffer
    /// holds then is nothing.
    ///
    /// # Errors
    /// What the disk reports. A file that ends before is `Ok(false)`, left to [`DiskFile::read_at`] to report.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        let _ = (buffer, offset);
        Ok(false)
    }

    /// As [`DiskFile::read_at`], from the disk itself and not from memory where that can be done, and leaving what memory holds as it is: for
    /// whoever wants to know what is on the disk. Sees what was written before. Whole blocks that begin at a whole block in memory, too, have
    /// a chance.
    ///
    /// # Errors
    /// As [`DiskFile::read_at`].
    fn read_past_cache_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_at(buffer, offset)
    }

    /// Writes all bytes at `offset`, extending the file when needed. Seen by later reads; not durable.
    ///
    /// # Errors
    /// `StorageFull`, after which a part may have been written; what the disk reports.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// As [`DiskFile::write_at`], and past the page cache where that can be done: for large writes that nobody is about to read, which
    /// it would cost a copy and as much memory. Whole blocks that begin at a whole block in memory, too, have a chance.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn write_past_cache_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)
    }

    /// Writes all bytes at `offset`; **they are durable on return**. Nothing is said of what was written before by other calls, which takes a
    /// [`DiskFile::sync_data`]. Whole blocks that begin at a whole block in memory, too, cost the least: one request to the disk.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`] and [`DiskFile::sync_data`]. Never retry.
    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)?;
        self.sync_data()
    }

    /// Makes all that was written to this file, and its length, durable (`fdatasync`).
    ///
    /// # Errors
    /// What the disk reports. Never retry: see the module's rules.
    fn sync_data(&self) -> io::Result<()>;

    /// Length of the file.
    ///
    /// # Errors
    /// What the disk reports.
    fn bytes_len(&self) -> io::Result<u64>;

    /// Cuts the file, or extends it with a hole that reads as zeros and has no space reserved.
    ///
    /// # Errors
    /// What the disk reports.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Reserves space so that the first `bytes` can be written without `StorageFull`, and extends the file to at least
    /// that length; new parts read as zeros.
    ///
    /// Where a log is to be synced often, follow with [`DiskFile::fill_zeros`] and a sync: file systems keep reserved
    /// but unwritten space apart, and every first write to it costs a commit of their own journal (twice the latency).
    ///
    /// # Errors
    /// `StorageFull`; what the disk reports.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Gives the space of a range back; it then reads as zeros. The length stays.
    ///
    /// # Errors
    /// What the disk reports.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Really writes zeros over a range.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn fill_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        /// Bytes per write: large enough that the calls do not count.
        const PART_BYTES: usize = 1 << 20;
        let zeros = vec![0u8; PART_BYTES.min(usize::try_from(length).unwrap_or(PART_BYTES))];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let part = (end - at).min(zeros.len() as u64);
            self.write_at(&zeros[..part as usize], at)?;
            at += part;
        }
        Ok(())
    }
}

/// Checks a file name by the rule of [`Disk`]: flat, not empty, no leading dot, only letters, digits, `.`, `-`, `_`.
///
/// # Errors
/// `InvalidInput`, naming it.
pub fn check_name(name: &str) -> io::Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a name for a file of ours")));
    }
    Ok(())
}
