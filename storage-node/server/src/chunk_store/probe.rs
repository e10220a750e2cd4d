//! One block that is written, made durable and read again: how fast the disk is while nobody uses it, and whether it reads anything at all.
//! Its content is nobody's.

use super::layout::BLOCK;
use super::{ChunkStore, Shared};
use holdfast_journal::{Disk, DiskFile};
use holdfast_storage_core::local::LocalError;
use rustix::io::Errno;
use std::io;

/// Its file.
const NAME: &str = "probe";

/// Memory that begins at a whole block, so that it goes past the page cache where that can be done.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
}

impl Memory {
    fn new() -> Self {
        let bytes = vec![0; 2 * BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self { bytes, start }
    }

    fn block(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK]
    }
}

/// Whether an error is one of the device: what a block layer reports. Others are of this process or host (descriptors, memory) or of its limits.
pub(super) fn is_of_device(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::IO
                | Errno::NXIO
                | Errno::NODEV
                | Errno::TIMEDOUT
                | Errno::NOLINK
                | Errno::REMOTEIO
                | Errno::NODATA
                | Errno::ILSEQ
        )
    )
}

impl<D: Disk> Shared<D> {
    /// The block's file, made if there is none: best when the store opens, so that the block is there when it is wanted.
    pub(super) fn probe_file(&self) -> io::Result<&D::File> {
        if let Some(file) = self.probe.get() {
            return Ok(file);
        }
        let file = if self.disk.exists(NAME)? { self.disk.open(NAME)? } else { self.disk.create(NAME)? };
        // A crash may have left its name and nothing in it.
        if file.bytes_len()? < BLOCK as u64 {
            file.write_durable_at(Memory::new().block(), 0)?;
        }
        Ok(self.probe.get_or_init(|| file))
    }

    /// Reads the block from the disk itself.
    pub(super) fn read_probe(&self) -> io::Result<()> {
        self.probe_file()?.read_past_cache_at(Memory::new().block(), 0)
    }
}

impl<D: Disk> ChunkStore<D> {
    /// Writes the block durably. False: it cannot be done now, and the disk is not why.
    ///
    /// # Errors
    /// [`LocalError::Failed`]: the store has failed.
    pub fn probe_write(&mut self) -> Result<bool, LocalError> {
        self.shared.check()?;
        let written = self.shared.probe_file().and_then(|file| file.write_durable_at(Memory::new().block(), 0));
        match written {
            Ok(()) => Ok(true),
            Err(error) if is_of_device(&error) || error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Err(self.shared.fail(format!("probe of the disk: {error}")))
            }
            Err(_) => Ok(false),
        }
    }

    /// Reads it. False: it could not be read, which alone is no failure: one block may be bad, and is written again some time.
    ///
    /// # Errors
    /// [`LocalError::Failed`]: the store has failed.
    pub fn probe_read(&mut self) -> Result<bool, LocalError> {
        self.shared.check()?;
        Ok(self.shared.read_probe().is_ok())
    }
}
