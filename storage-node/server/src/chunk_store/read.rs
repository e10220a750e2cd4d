//! Reading: from any thread, without waiting for the writer or its syncs.
//!
//! A read takes rows and bytes without a lock and checks the sums. Where they differ the writer may just be putting new
//! bytes in place (or the space was given to another chunk since): it reads once more while the writer is held off, and
//! only what differs then is damage.
//!
//! ```text
//! command ── rows ──▶ bytes in memory? ── yes ──────────────────────▶ verified ──▶ outcome
//!                          └── no: Later ── many of them at once ──┘
//! ```

use super::rows::{BadRow, CHUNK_ROWS, ChunkRow, ROW_BLOCKS, SumsRow, ZERO_SUM};
use super::{Shared, cause, keys, rows};
use crate::chunk_store::layout::BLOCK;
use bytes::Bytes;
use holdfast_journal::disk::{Disk, DiskFile, Read};
use holdfast_storage_core::local::{ChunkSummary, ChunkSums, KeyRange, LocalCommand, LocalError, LocalOutcome};
use holdfast_store::{StoreError, View};
use holdfast_types::checksum::crc32;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES};
use holdfast_types::{ChunkIndex, ChunkKey, GroupId, OpNumber, Sequence, SessionId};
use holdfast_wire::chunk::{ALLOCATED_RANGES_MAX, ByteRange};
use std::ops::Bound;
use std::sync::{Arc, PoisonError};

/// Chunks that one answer about allocated ranges looks at: ranges of neighbours join, and punched chunks have none. By eye: some
/// milliseconds.
const ALLOCATED_CHUNKS_MAX: usize = 512;

/// Reads a store from any thread. Cheap to clone.
pub struct Reader<D: Disk> {
    pub(super) shared: Arc<Shared<D>>,
}

impl<D: Disk> Clone for Reader<D> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// How far a command came without waiting for the disk.
pub enum Attempt<D: Disk> {
    /// It is done.
    Done(Result<LocalOutcome, LocalError>),
    /// The disk must be waited for. Carry it out with [`Reader::serve_later`], alone or with others.
    Later(Later<D>),
}

/// A read whose rows are known and whose bytes are not in memory.
pub struct Later<D: Disk> {
    reader: Reader<D>,
    plan: Plan,
    buffer: Vec<u8>,
    pieces: Vec<Piece<D>>,
}

/// Blocks that lie together on the disk.
struct Piece<D: Disk> {
    file: Arc<D::File>,
    /// Where in the file, in bytes.
    offset: u64,
    /// Where in the read's blocks, in bytes.
    within: std::ops::Range<usize>,
}

/// What a read needs to know to make an outcome of blocks.
struct Plan {
    group: GroupId,
    chunk: ChunkKey,
    offset: u32,
    length: u32,
    /// The read's end, within the chunk.
    end: u32,
    blocks: std::ops::Range<u32>,
    /// Sums of the blocks as stored.
    stored: Vec<Option<u32>>,
}

impl Plan {
    /// Verifies blocks as read and blanks those never written. The sums of the read's pieces, as a client is to find them.
    fn verify(&self, buffer: &mut [u8]) -> Result<Vec<u32>, Miss> {
        let mut sums = Vec::with_capacity(self.blocks.len());
        for ((at, &sum), block) in self.blocks.clone().zip(&self.stored).zip(buffer.chunks_mut(BLOCK)) {
            match sum {
                Some(sum) if crc32(block) != sum => return Err(Miss::Block(at)),
                Some(_) => {}
                // Space taken ahead: what lies there is nobody's.
                None => block.fill(0),
            }
            let (from, to) = (self.offset.max(at * BLOCK as u32), self.end.min((at + 1) * BLOCK as u32));
            let piece = &block[from as usize % BLOCK..][..(to - from) as usize];
            sums.push(if piece.len() == BLOCK { sum.unwrap_or(ZERO_SUM) } else { crc32(piece) });
        }
        Ok(sums)
    }

    fn data(&self, buffer: Vec<u8>, sums: Vec<u32>) -> LocalOutcome {
        if buffer.is_empty() {
            return LocalOutcome::Data { bytes: Bytes::new(), sums };
        }
        let first = self.offset as usize % BLOCK;
        let bytes = Bytes::from(buffer).slice(first..first + (self.end - self.offset) as usize);
        LocalOutcome::Data { bytes, sums }
    }
}

/// A read some of whose pieces are on their way.
struct UnderWay<D: Disk> {
    reader: Reader<D>,
    plan: Plan,
    buffer: Vec<u8>,
    /// Pieces that have not ended.
    left: usize,
    /// All that ended could be read.
    whole: bool,
}

/// Why one attempt did not give an answer.
pub(super) enum Miss {
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
            LocalCommand::Check { group, chunk } => self.or_fail(self.check(group, chunk)),
            LocalCommand::Blocks { group, chunk, ref blocks } => self.blocks(group, chunk, blocks),
            LocalCommand::ChangesAbove { group, number } => self.or_fail(self.changes_above(group, number)),
        }
    }

    /// How many reads are worth collecting for one [`Reader::serve_later`].
    pub fn reads_at_once(&self) -> usize {
        self.shared.disk.reads_at_once()
    }

    /// Damage that was found and repaired since the store was opened.
    pub fn damage_totals(&self) -> super::DamageTotals {
        self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).totals()
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

    /// Executes a command as far as it goes without waiting for the *bytes* of a read. The rows of the index are looked up whether they
    /// are in memory or not.
    ///
    /// # Panics
    /// When given `Apply`.
    pub fn attempt(&self, command: &LocalCommand) -> Attempt<D> {
        let LocalCommand::Read { group, chunk, offset, length } = *command else {
            return Attempt::Done(self.serve(command));
        };
        if let Err(error) = self.shared.check() {
            return Attempt::Done(Err(error));
        }
        let Later { reader, plan, mut buffer, pieces } = match self.later(group, chunk, offset, length) {
            Ok(later) => later,
            Err(error) => return Attempt::Done(Err(error)),
        };
        // An error is reported by the read proper. Where the sums differ, to look again takes waiting for the writer.
        let cached = |piece: &Piece<D>, into: &mut [u8]| piece.file.read_cached_at(into, piece.offset).unwrap_or(false);
        if pieces.iter().all(|piece| cached(piece, &mut buffer[piece.within.clone()]))
            && let Ok(sums) = plan.verify(&mut buffer)
        {
            return Attempt::Done(Ok(plan.data(buffer, sums)));
        }
        Attempt::Later(Later { reader, plan, buffer, pieces })
    }

    /// A read up to where its bytes are needed.
    pub(super) fn later(
        &self,
        group: GroupId,
        chunk: ChunkKey,
        offset: u32,
        length: u32,
    ) -> Result<Later<D>, LocalError> {
        let (plan, pieces) = self.or_fail(self.plan(group, chunk, offset, length))?;
        let buffer = vec![0; plan.blocks.len() * BLOCK];
        Ok(Later { reader: self.clone(), plan, buffer, pieces })
    }

    /// Carries reads out, all at once where the disk can; `done` is given each as it ends, in any order, with its place among them. They may
    /// be of several stores.
    pub fn serve_later(reads: Vec<Later<D>>, done: &mut dyn FnMut(usize, Result<LocalOutcome, LocalError>)) {
        let Some(shared) = reads.first().map(|read| Arc::clone(&read.reader.shared)) else { return };
        let (mut under_way, mut pieces) = (Vec::with_capacity(reads.len()), Vec::with_capacity(reads.len()));
        for (index, Later { reader, plan, buffer, pieces: own }) in reads.into_iter().enumerate() {
            if own.is_empty() {
                done(index, reader.settle(plan, buffer, true));
                under_way.push(None);
                continue;
            }
            under_way.push(Some(UnderWay { reader, plan, buffer, left: own.len(), whole: true }));
            pieces.extend(own.into_iter().map(|piece| (index, piece)));
        }
        let read = |(index, piece): &(usize, Piece<D>)| {
            let owner = under_way[*index].as_ref().expect("has pieces");
            (piece.within.len() == owner.buffer.len(), *index)
        };
        // One that is a read's only piece fills its buffer in place.
        let alone: Vec<(bool, usize)> = pieces.iter().map(read).collect();
        let mut asked = Vec::with_capacity(pieces.len());
        for ((_, piece), &(alone, index)) in pieces.iter().zip(&alone) {
            let owner = under_way[index].as_mut().expect("has pieces");
            let buffer = if alone { std::mem::take(&mut owner.buffer) } else { vec![0; piece.within.len()] };
            asked.push(Read { file: piece.file.as_ref(), offset: piece.offset, buffer });
        }
        shared.disk.read_many(asked, &mut |at, result| {
            let (alone, index) = alone[at];
            let owner = under_way[index].as_mut().expect("ends with its last piece");
            match result {
                Ok(bytes) if alone => owner.buffer = bytes,
                Ok(bytes) => owner.buffer[pieces[at].1.within.clone()].copy_from_slice(&bytes),
                Err(_) => owner.whole = false,
            }
            owner.left -= 1;
            if owner.left == 0 {
                let UnderWay { reader, plan, buffer, whole, .. } = under_way[index].take().expect("just seen");
                done(index, reader.settle(plan, buffer, whole));
            }
        });
    }

    pub(super) fn read(
        &self,
        group: GroupId,
        chunk: ChunkKey,
        offset: u32,
        length: u32,
    ) -> Result<LocalOutcome, LocalError> {
        let Later { plan, mut buffer, pieces, .. } = self.later(group, chunk, offset, length)?;
        let read = |piece: &Piece<D>| piece.file.read_at(&mut buffer[piece.within.clone()], piece.offset).is_ok();
        let whole = pieces.iter().all(read);
        self.settle(plan, buffer, whole)
    }

    /// The outcome of a read whose blocks were read. Where they are not what was written, or not all there, it is made once more while the
    /// writer is held off: what differs then is damage.
    fn settle(&self, plan: Plan, mut buffer: Vec<u8>, whole: bool) -> Result<LocalOutcome, LocalError> {
        if whole && let Ok(sums) = plan.verify(&mut buffer) {
            self.shared.read_well();
            return Ok(plan.data(buffer, sums));
        }
        let Plan { group, chunk, offset, length, .. } = plan;
        let _held_off = self.shared.placing.read().unwrap_or_else(PoisonError::into_inner);
        let again = self.read_held_off(group, chunk, offset, length);
        if let Err(Miss::Block(block)) = again {
            self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).add(group, chunk, block);
        }
        self.or_fail(again)
    }

    fn read_held_off(&self, group: GroupId, chunk: ChunkKey, offset: u32, length: u32) -> Result<LocalOutcome, Miss> {
        let (plan, pieces) = self.plan(group, chunk, offset, length)?;
        let mut buffer = vec![0; plan.blocks.len() * BLOCK];
        for piece in &pieces {
            let block = plan.blocks.start + (piece.within.start / BLOCK) as u32;
            let read = piece.file.read_at(&mut buffer[piece.within.clone()], piece.offset);
            let failed = |error| self.shared.read_failed((group, chunk, block), &error);
            read.map_err(|error| failed(error).map_or(Miss::Block(block), Miss::Index))?;
        }
        self.shared.read_well();
        let sums = plan.verify(&mut buffer)?;
        Ok(plan.data(buffer, sums))
    }

    /// Looks up what a read needs to know, and where its bytes are.
    fn plan(&self, group: GroupId, chunk: ChunkKey, offset: u32, length: u32) -> Result<(Plan, Vec<Piece<D>>), Miss> {
        let view = self.shared.table.as_ref();
        let row = chunk_row(view, group, &chunk)?.unwrap_or_default();
        let end = offset.saturating_add(length).min(row.length);
        if offset >= end {
            let plan = Plan { group, chunk, offset, length, end: offset, blocks: 0..0, stored: Vec::new() };
            return Ok((plan, Vec::new()));
        }
        let blocks = offset / BLOCK as u32..end.div_ceil(BLOCK as u32);
        let stored = stored_sums(view, group, &chunk, blocks.clone())?;
        let mut pieces = Vec::with_capacity(1);
        for extent in row.extents.iter().filter(|e| e.at < blocks.end && e.end() > blocks.start) {
            let (from, to) = (extent.at.max(blocks.start), extent.end().min(blocks.end));
            let within = (from - blocks.start) as usize * BLOCK..(to - blocks.start) as usize * BLOCK;
            let offset = u64::from(extent.start + (from - extent.at)) * BLOCK_BYTES;
            let file = self.shared.files.open(extent.file).map_err(|_| Miss::Block(from))?;
            pieces.push(Piece { file, offset, within });
        }
        Ok((Plan { group, chunk, offset, length, end, blocks, stored }, pieces))
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
    pub(super) fn reported_sums(
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
        let (mut last, mut chunks) = (None, 0);
        for pair in view.range(holdfast_store::KeyRange::between(range.start, range.end)) {
            let (key, value) = pair?;
            let (_, chunk) = keys::parse_chunk(&key).ok_or_else(|| Miss::Index(format!("index key {key:02x?}")))?;
            if chunk.index > upto {
                break;
            }
            let full = ranges.len() >= ALLOCATED_RANGES_MAX || chunks >= ALLOCATED_CHUNKS_MAX;
            if let Some(last) = last.filter(|last| full && *last < chunk.index) {
                through = last;
                break;
            }
            (last, chunks) = (Some(chunk.index), chunks + 1);
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

pub(super) fn chunk_row(view: &dyn View, group: GroupId, chunk: &ChunkKey) -> Result<Option<ChunkRow>, Miss> {
    let key = keys::chunk(group, chunk);
    let row = view.get(&key)?.map(|value| ChunkRow::decode(&key, &value)).transpose()?;
    match row {
        Some(row) if u64::from(row.length) > CHUNK_BYTES => Err(Miss::Index(format!("{chunk} is too long"))),
        row => Ok(row),
    }
}

/// Sums of blocks as stored; none for those never written.
pub(super) fn stored_sums(
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
