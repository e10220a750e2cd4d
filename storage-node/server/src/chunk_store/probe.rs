//! One block that is written, made durable and read again: how fast the disk is while nobody uses it. Its content is nobody's.

use super::layout::BLOCK;
use super::{ChunkStore, Shared};
use holdfast_journal::{Disk, DiskFile};
use holdfast_storage_core::local::LocalError;
use std::io;

/// Its file.
const NAME: &str = "probe";

/// The file, and memory that begins at a whole block, so that both go past the page cache where that can be done.
pub(super) struct Probe<D: Disk> {
    file: D::File,
    memory: Vec<u8>,
    start: usize,
}

impl<D: Disk> Probe<D> {
    fn open(disk: &D) -> io::Result<Self> {
        let file = if disk.exists(NAME)? { disk.open(NAME)? } else { disk.create(NAME)? };
        let memory = vec![0; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Ok(Self { file, memory, start })
    }
}

impl<D: Disk> ChunkStore<D> {
    /// Writes the block durably.
    ///
    /// # Errors
    /// [`LocalError::NoSpace`]; [`LocalError::Failed`]: the store has failed.
    pub fn probe_write(&mut self) -> Result<(), LocalError> {
        self.shared.check()?;
        if self.probe.is_none() {
            self.probe = Some(Probe::open(&self.shared.disk).map_err(|error| failed(&self.shared, &error))?);
        }
        let Some(Probe { file, memory, start }) = &self.probe else { return Ok(()) };
        let written = file.write_durable_at(&memory[*start..*start + BLOCK], 0);
        written.map_err(|error| failed(&self.shared, &error))
    }

    /// Reads it; nothing before it was written.
    ///
    /// # Errors
    /// [`LocalError::Failed`]: the store has failed.
    pub fn probe_read(&mut self) -> Result<(), LocalError> {
        let Some(Probe { file, memory, start }) = &mut self.probe else { return Ok(()) };
        let read = file.read_at(&mut memory[*start..*start + BLOCK], 0);
        read.map_err(|error| failed(&self.shared, &error))
    }
}

fn failed<D: Disk>(shared: &Shared<D>, error: &io::Error) -> LocalError {
    if error.kind() == io::ErrorKind::StorageFull {
        LocalError::NoSpace
    } else {
        shared.fail(format!("probe of the disk: {error}"))
    }
}
