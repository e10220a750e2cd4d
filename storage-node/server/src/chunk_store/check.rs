//! A chunk is read whole, from the disk itself, and compared with its sums: for scrubs and repairs.
//!
//! * Nobody is held up: rows and bytes are taken without a lock. A block that does not have its sum is looked at once more while the writer
//!   is held off; what differs then is damage.
//! * What is in memory is neither believed nor pushed out: bytes come past the page cache where that can be.

use super::extents;
use super::layout::BLOCK;
use super::read::{Miss, Reader, chunk_row, stored_sums};
use super::rows::ChunkRow;
use bytes::Bytes;
use holdfast_journal::disk::{Disk, DiskFile};
use holdfast_storage_core::local::{Checked, LocalCommand, LocalError, LocalOutcome};
use holdfast_types::checksum::crc32;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, GroupId};
use std::sync::PoisonError;

/// Blocks read at once: 256 KiB. By eye: readers of the same disk wait for no longer than that takes.
const RUN_BLOCKS: u32 = 64;

/// Blocks that begin at a whole block in memory.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new(blocks: usize) -> Self {
        Self(vec![0; (blocks + 1) * BLOCK])
    }

    fn blocks(&mut self, blocks: usize) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(BLOCK).min(BLOCK);
        &mut self.0[start..start + blocks * BLOCK]
    }
}

impl<D: Disk> Reader<D> {
    /// See [`LocalCommand::Check`].
    pub(super) fn check(&self, group: GroupId, chunk: ChunkKey) -> Result<LocalOutcome, Miss> {
        let row = chunk_row(self.shared.table.as_ref(), group, &chunk)?.filter(|row| !row.is_empty());
        let Some(row) = row else { return Ok(LocalOutcome::Checked { found: None }) };
        let stored = stored_sums(self.shared.table.as_ref(), group, &chunk, 0..row.blocks())?;
        let mut found = Checked { length: row.length, ..Checked::default() };
        let mut hash = blake3::Hasher::new();
        let mut buffer = Buffer::new(RUN_BLOCKS as usize);
        let mut at = 0;
        while at < row.blocks() {
            if stored[at as usize].is_none() {
                at += 1;
                continue;
            }
            let run = run_of(&row, &stored, at);
            let bytes = buffer.blocks(run.max(1) as usize);
            let there = self.read_run(&row, at, run, bytes);
            found.bytes += u64::from(run) * BLOCK_BYTES;
            for (number, block) in (at..).zip(bytes.chunks(BLOCK)) {
                let sound = there && stored[number as usize].is_some_and(|sum| crc32(block) == sum);
                let again = if sound { None } else { Some(self.check_again(group, chunk, number)?) };
                let block = match &again {
                    None => block,
                    Some(Ok(block)) => block.as_slice(),
                    Some(Err(sum)) => {
                        found.bad.push((number, *sum));
                        continue;
                    }
                };
                if block.iter().any(|byte| *byte != 0) {
                    hash.update(&number.to_le_bytes()).update(block);
                }
            }
            at += run.max(1);
        }
        found.hash = *hash.finalize().as_bytes();
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).only(group, chunk, &found.bad);
        let sums = self.reported_sums(self.shared.table.as_ref(), group, chunk, &row)?;
        let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).chain(row.contenders.summed()).collect();
        found.digest = crc32(&bytes);
        Ok(LocalOutcome::Checked { found: Some(found) })
    }

    /// Reads blocks that lie together; none of them without space.
    fn read_run(&self, row: &ChunkRow, at: u32, run: u32, bytes: &mut [u8]) -> bool {
        let Some(extent) = row.extent_of(at).filter(|_| run > 0) else { return false };
        let offset = u64::from(extent.start + (at - extent.at)) * BLOCK_BYTES;
        let file = self.shared.files.open(extent.file);
        file.and_then(|file| file.read_past_cache_at(bytes, offset)).is_ok()
    }

    /// A block while the writer is held off: its bytes, or the sum that they should have.
    fn check_again(&self, group: GroupId, chunk: ChunkKey, block: u32) -> Result<Result<Vec<u8>, u32>, Miss> {
        let _held_off = self.shared.placing.read().unwrap_or_else(PoisonError::into_inner);
        let zeros = || vec![0; BLOCK];
        let Some(row) = chunk_row(self.shared.table.as_ref(), group, &chunk)? else { return Ok(Ok(zeros())) };
        let stored = stored_sums(self.shared.table.as_ref(), group, &chunk, block..block + 1)?;
        let Some(sum) = stored[0].filter(|_| block < row.blocks()) else { return Ok(Ok(zeros())) };
        let mut buffer = Buffer::new(1);
        let bytes = buffer.blocks(1);
        let there = row.extent_of(block).is_some() && self.read_run(&row, block, 1, bytes);
        if there && crc32(bytes) == sum {
            return Ok(Ok(bytes.to_vec()));
        }
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).add(group, chunk, block);
        Ok(Err(sum))
    }

    /// See [`LocalCommand::Blocks`].
    pub(super) fn blocks(&self, group: GroupId, chunk: ChunkKey, blocks: &[u32]) -> Result<LocalOutcome, LocalError> {
        let mut found = Vec::with_capacity(blocks.len());
        for block in blocks {
            let Some(offset) = block.checked_mul(BLOCK as u32) else { continue };
            match self.serve(&LocalCommand::Read { group, chunk, offset, length: BLOCK as u32 }) {
                Ok(LocalOutcome::Data { bytes, .. }) if !bytes.is_empty() => {
                    let mut whole = bytes.to_vec();
                    whole.resize(BLOCK, 0);
                    found.push((*block, Bytes::from(whole)));
                }
                Ok(_) | Err(LocalError::BadBlock | LocalError::NoSpace) => {}
                Err(error @ LocalError::Failed) => return Err(error),
            }
        }
        Ok(LocalOutcome::Blocks { blocks: found })
    }

    /// See [`super::ChunkStore::places`].
    pub(super) fn places(&self, group: GroupId, chunk: &ChunkKey) -> Vec<(u32, String, u64)> {
        let Ok(Some(row)) = chunk_row(self.shared.table.as_ref(), group, chunk) else { return Vec::new() };
        let Ok(stored) = stored_sums(self.shared.table.as_ref(), group, chunk, 0..row.blocks()) else {
            return Vec::new();
        };
        let written = (0..row.blocks()).filter(|block| stored[*block as usize].is_some());
        let place = |block: u32| {
            let extent = row.extent_of(block)?;
            Some((block, extents::name(extent.file), u64::from(extent.start + (block - extent.at)) * BLOCK_BYTES))
        };
        written.filter_map(place).collect()
    }
}

/// How many blocks from one on were written and lie together; 0: it has no space at all.
fn run_of(row: &ChunkRow, stored: &[Option<u32>], at: u32) -> u32 {
    let Some(extent) = row.extent_of(at) else { return 0 };
    let most = extent.end().min(row.blocks()).min(at + RUN_BLOCKS);
    (at..most).take_while(|block| stored[*block as usize].is_some()).count() as u32
}
