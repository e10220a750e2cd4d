//! Reading: from any thread, without waiting for the writer or its syncs.
//!
//! A read takes rows and bytes without a lock and checks the sums. Where they differ the writer may just be putting new
//! bytes in place (or the space was given to another chunk since): it reads once more while the writer is held off, and
//! only what differs then is damage.

use super::rows::{BadRow, CHUNK_ROWS, ChunkRow, ROW_BLOCKS, SumsRow, ZERO_SUM};
use super::{Shared, cause, keys, rows};
use crate::chunk_store::layout::BLOCK;
use bytes::Bytes;
use holdfast_journal::Disk;
use holdfast_storage_core::local::{ChunkSummary, ChunkSums, KeyRange, LocalCommand, LocalError, LocalOutcome};
use holdfast_store::{StoreError, View};
use holdfast_types::checksum::crc32;
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::{ChunkIndex, ChunkKey, GroupId, OpNumber, Sequence, SessionId};
use holdfast_wire::chunk::{ALLOCATED_RANGES_MAX, ByteRange};
use std::ops::Bound;
use std::sync::{Arc, PoisonError};

/// Reads a store from any thread. Cheap to clone.
pub struct Reader<D: Disk> {
    shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for Reader<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// Why one attempt did not give an answer.
enum Miss {
    /// A block does not have its sum, or cannot be read.
    Block(u32),
    /// The index failed or lies.
    Index(String),
}

impl From<StoreError> for Miss {
    fn from(error: StoreError) -> Self {
        Self::Index(format!("index: {error}{}", cause(&error)))
    }
}

impl From<BadRow> for Miss {
    fn from(error: BadRow) -> Self {
        Self::Index(error.to_string())
    }
}

impl<D: Disk> Reader<D> {
    pub(super) fn new(shared: Arc<Shared<D>>) -> Self {
        Self { shared }
    }

    /// Executes a command that changes nothing. It sees every operation that [`super::ChunkStore::apply`] has returned.
    ///
    /// # Errors
    /// [`LocalError::BadBlock`]: a block of the range is damaged here. [`LocalError::Failed`].
    ///
    /// # Panics
    /// When given `Apply`.
    pub fn serve(&self, command: &LocalCommand) -> Result<LocalOutcome, LocalError> {
        self.shared.check()?;
        match *command {
            LocalCommand::Apply(_) => panic!("changes go to the writer"),
            LocalCommand::Read { group, chunk, offset, length } => self.read(group, chunk, offset, length),
            LocalCommand::List { group, range, limit } => self.or_fail(self.list(group, range, limit as usize)),
            LocalCommand::BlockSums { group, chunk } => self.or_fail(self.block_sums(group, chunk)),
            LocalCommand::Contended { group, chunk, session, sequence } => {
                self.or_fail(self.contended(group, chunk, session, sequence))
            }
            LocalCommand::Highest { group, volume, inode, generation, from } => {
                let range = keys::of_content(b'c', group, (volume, inode, generation), from);
                self.or_fail(self.highest(range))
            }
            LocalCommand::Allocated { group, volume, inode, generation, from, upto } => {
                let range = keys::of_content(b'c', group, (volume, inode, generation), from);
                self.or_fail(self.allocated(group, range, upto))
            }
            LocalCommand::ChangesAbove { group, number } => self.or_fail(self.changes_above(group, number)),
        }
    }

    /// How many blocks are known to be damaged.
    pub fn blocks_damaged(&self) -> usize {
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).count()
    }

    fn or_fail<T>(&self, result: Result<T, Miss>) -> Result<T, LocalError> {
        result.map_err(|miss| match miss {
            Miss::Index(reason) => self.shared.fail(reason),
            Miss::Block(_) => LocalError::BadBlock,
        })
    }

    fn read(&self, group: GroupId, chunk: ChunkKey, offset: u32, length: u32) -> Result<LocalOutcome, LocalError> {
        let result = match self.try_read(group, chunk, offset, length) {
            Err(Miss::Block(_)) => {
                let _held_off = self.shared.placing.read().unwrap_or_else(PoisonError::into_inner);
                let again = self.try_read(group, chunk, offset, length);
                if let Err(Miss::Block(block)) = again {
                    self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).add(group, chunk, block);
                }
                again
            }
            other => other,
        };
        self.or_fail(result)
    }

    fn try_read(&self, group: GroupId, chunk: ChunkKey, offset: u32, length: u32) -> Result<LocalOutcome, Miss> {
        let view = self.shared.table.as_ref();
        let row = chunk_row(view, group, &chunk)?.unwrap_or_default();
        let end = offset.saturating_add(length).min(row.length);
        if offset >= end {
            return Ok(LocalOutcome::Data { bytes: Bytes::new(), sums: Vec::new() });
        }
        let blocks = offset / BLOCK as u32..end.div_ceil(BLOCK as u32);
        let stored = stored_sums(view, group, &chunk, blocks.clone())?;
        let mut buffer = vec![0; blocks.len() * BLOCK];
        for extent in row.extents.iter().filter(|e| e.at < blocks.end && e.end() > blocks.start) {
            let (from, to) = (extent.at.max(blocks.start), extent.end().min(blocks.end));
            let within = (from - blocks.start) as usize * BLOCK..(to - blocks.start) as usize * BLOCK;
            let start = extent.start + (from - extent.at);
            self.shared.files.read(extent.file, start, &mut buffer[within]).map_err(|_| Miss::Block(from))?;
        }
        let mut sums = Vec::with_capacity(blocks.len());
        for ((at, sum), block) in blocks.clone().zip(stored).zip(buffer.chunks_mut(BLOCK)) {
            match sum {
                Some(sum) if crc32(block) != sum => return Err(Miss::Block(at)),
                Some(_) => {}
                // Space taken ahead: what lies there is nobody's.
                None => block.fill(0),
            }
            let (from, to) = (offset.max(at * BLOCK as u32), end.min((at + 1) * BLOCK as u32));
            let piece = &block[from as usize % BLOCK..][..(to - from) as usize];
            sums.push(if piece.len() == BLOCK { sum.unwrap_or(ZERO_SUM) } else { crc32(piece) });
        }
        let first = offset as usize % BLOCK;
        let bytes = Bytes::from(buffer).slice(first..first + (end - offset) as usize);
        Ok(LocalOutcome::Data { bytes, sums })
    }

    fn list(&self, group: GroupId, range: KeyRange, limit: usize) -> Result<LocalOutcome, Miss> {
        let view = self.shared.table.snapshot();
        let wanted = holdfast_store::KeyRange {
            start: Bound::Included(keys::chunk(group, &range.first)),
            end: Bound::Included(keys::chunk(group, &range.last)),
        };
        let mut chunks = Vec::new();
        for pair in view.range(wanted) {
            if chunks.len() == limit {
                break;
            }
            let (key, value) = pair?;
            let row = ChunkRow::decode(&key, &value)?;
            if row.is_empty() {
                continue;
            }
            let (_, chunk) = keys::parse_chunk(&key).ok_or_else(|| Miss::Index(format!("index key {key:02x?}")))?;
            let sums = self.reported_sums(view.as_ref(), group, chunk, &row)?;
            let bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).chain(row.contenders.summed()).collect();
            chunks.push(ChunkSummary { chunk, length: row.length, number: row.number, digest: crc32(&bytes) });
        }
        Ok(LocalOutcome::Chunks { chunks })
    }

    fn block_sums(&self, group: GroupId, chunk: ChunkKey) -> Result<LocalOutcome, Miss> {
        let view = self.shared.table.snapshot();
        let row = chunk_row(view.as_ref(), group, &chunk)?.filter(|row| !row.is_empty());
        let Some(row) = row else { return Ok(LocalOutcome::Sums { found: None }) };
        let sums = self.reported_sums(view.as_ref(), group, chunk, &row)?;
        Ok(LocalOutcome::Sums { found: Some(ChunkSums { length: row.length, sums, contenders: row.contenders }) })
    }

    fn contended(
        &self,
        group: GroupId,
        chunk: ChunkKey,
        session: SessionId,
        sequence: Sequence,
    ) -> Result<LocalOutcome, Miss> {
        let row = chunk_row(self.shared.table.as_ref(), group, &chunk)?.unwrap_or_default();
        Ok(LocalOutcome::Contended { made: row.contenders.made(session, sequence) })
    }

    /// Sums as other members are told: those of damaged blocks differ from everybody's.
    fn reported_sums(
        &self,
        view: &dyn View,
        group: GroupId,
        chunk: ChunkKey,
        row: &ChunkRow,
    ) -> Result<Vec<u32>, Miss> {
        let stored = stored_sums(view, group, &chunk, 0..row.blocks())?;
        let mut sums: Vec<u32> = stored.into_iter().map(|sum| sum.unwrap_or(ZERO_SUM)).collect();
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).report(group, chunk, &mut sums);
        Ok(sums)
    }

    fn highest(&self, range: keys::Keys) -> Result<LocalOutcome, Miss> {
        let mut found: Option<(ChunkIndex, u32)> = None;
        for pair in self.shared.table.range(holdfast_store::KeyRange::between(range.start, range.end)).rev() {
            let (key, value) = pair?;
            let row = ChunkRow::decode(&key, &value)?;
            let (_, chunk) = keys::parse_chunk(&key).ok_or_else(|| Miss::Index(format!("index key {key:02x?}")))?;
            if found.is_some_and(|(index, _)| index != chunk.index) {
                break;
            }
            // Of one index written under several snapshots the longest counts.
            if row.length > 0 {
                found = Some((chunk.index, found.map_or(0, |(_, length)| length).max(row.length)));
            }
        }
        Ok(LocalOutcome::Highest { found })
    }

    fn allocated(&self, group: GroupId, range: keys::Keys, upto: ChunkIndex) -> Result<LocalOutcome, Miss> {
        let view = self.shared.table.snapshot();
        let (mut ranges, mut through): (Vec<ByteRange>, _) = (Vec::new(), ChunkIndex(u64::MAX));
        for pair in view.range(holdfast_store::KeyRange::between(range.start, range.end)) {
            let (key, value) = pair?;
            let (_, chunk) = keys::parse_chunk(&key).ok_or_else(|| Miss::Index(format!("index key {key:02x?}")))?;
            if chunk.index > upto {
                break;
            }
            if ranges.len() >= ALLOCATED_RANGES_MAX {
                through = ChunkIndex(chunk.index.0 - 1);
                break;
            }
            let row = ChunkRow::decode(&key, &value)?;
            let written = stored_sums(view.as_ref(), group, &chunk, 0..row.blocks())?;
            let (first, length) = (chunk.index.0.saturating_mul(CHUNK_BYTES), u64::from(row.length));
            for (block, _) in (0..).zip(written).filter(|(_, sum)| sum.is_some()) {
                let start = first + block * BLOCK as u64;
                let end = first + length.min((block + 1) * BLOCK as u64);
                match ranges.last_mut().filter(|last| last.end == start) {
                    Some(last) => last.end = end,
                    None => ranges.push(ByteRange { start, end }),
                }
            }
        }
        Ok(LocalOutcome::Allocated { ranges, through })
    }

    fn changes_above(&self, group: GroupId, number: OpNumber) -> Result<LocalOutcome, Miss> {
        let range = keys::touched_above(group, number);
        let mut changed: Vec<KeyRange> = Vec::new();
        for pair in self.shared.table.range(holdfast_store::KeyRange::between(range.start, range.end)) {
            let (key, value) = pair?;
            changed.extend(rows::decode_touched(&key, &value)?);
        }
        changed.sort_unstable();
        changed.dedup();
        Ok(LocalOutcome::Changes { changed })
    }
}

fn chunk_row(view: &dyn View, group: GroupId, chunk: &ChunkKey) -> Result<Option<ChunkRow>, Miss> {
    let key = keys::chunk(group, chunk);
    let row = view.get(&key)?.map(|value| ChunkRow::decode(&key, &value)).transpose()?;
    match row {
        Some(row) if u64::from(row.length) > CHUNK_BYTES => Err(Miss::Index(format!("{chunk} is too long"))),
        row => Ok(row),
    }
}

/// Sums of blocks as stored; none for those never written.
fn stored_sums(
    view: &dyn View,
    group: GroupId,
    chunk: &ChunkKey,
    blocks: std::ops::Range<u32>,
) -> Result<Vec<Option<u32>>, Miss> {
    let mut sums = Vec::with_capacity(blocks.len());
    let last = blocks.end.div_ceil(ROW_BLOCKS).min(CHUNK_ROWS);
    for row in blocks.start / ROW_BLOCKS..last {
        let key = keys::sums(group, chunk, row);
        let content = view.get(&key)?.map_or(Ok(SumsRow::default()), |value| SumsRow::decode(&key, &value))?;
        let within = (row * ROW_BLOCKS).max(blocks.start)..((row + 1) * ROW_BLOCKS).min(blocks.end);
        sums.extend(within.map(|block| content.get(block % ROW_BLOCKS)));
    }
    Ok(sums)
}
