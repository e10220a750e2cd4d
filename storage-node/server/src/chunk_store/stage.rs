//! Turns operations into records: what the index will say, which whole blocks go where. Promises nothing yet.
//!
//! * An operation that cannot be done leaves no trace: space it took is given back, and nothing was added to the batch.
//! * Later operations of a batch see the earlier ones, through the batch's rows and blocks, before any of it is durable.
//! * Nothing is written here. Bytes for *fresh* space, which no record knows yet, are set apart: they go first, all at once.

use super::extents::Extents;
use super::keys::{self, Keys};
use super::layout::{self, BLOCK, BLOCKS, Piece};
use super::record::{Placed, Record};
use super::rows::{self, BadRow, CHUNK_ROWS, ChunkRow, Extent, GroupRow, ROW_BLOCKS, SumsRow};
use super::space::{FreeSpace, Run};
use bytes::Bytes;
use holdfast_journal::Disk;
use holdfast_storage_core::local::{Change, Contenders, KeyRange, LocalOp, Run as CopyRun};
use holdfast_store::{Batch, StoreError, Table};
use holdfast_types::checksum::crc32;
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::{ChunkKey, GroupId, OpNumber};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Entries of a group's unsettled list above which they are merged into one that covers everything.
const UNSETTLED_MAX: usize = holdfast_types::limits::GROUP_CHANGES_MAX;

/// Ranges of one number above which the same is done: copies for one member alone bear one number and may be many, and
/// each rewrites the row.
const RANGES_PER_NUMBER_MAX: usize = 64;

/// Why an operation was not staged.
#[derive(Debug)]
pub(crate) enum StageError {
    /// No space; a checkpoint may make some.
    NoSpace,
    /// A block that was to be changed in part is not what was written: which one.
    BadBlock((ChunkKey, u32)),
    /// The index or the disk failed, or lies; the store is done for.
    Fatal(String),
}

impl From<StoreError> for StageError {
    fn from(error: StoreError) -> Self {
        Self::Fatal(format!("index: {error}: {}", super::cause(&error)))
    }
}

impl From<BadRow> for StageError {
    fn from(error: BadRow) -> Self {
        Self::Fatal(error.to_string())
    }
}

/// What is staged and not durable yet.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    /// Rows as the records leave them.
    pub rows: Batch,
    pub records: Vec<Record>,
    /// Bytes of the records, approximately.
    pub bytes: usize,
    /// What goes to fresh extents, to be written and synced before the records.
    pub fresh: Vec<Placed>,
    /// Space that the records set free: it is still referred to until they are durable.
    pub freed: Vec<Run>,
}

/// One operation's part, thrown away as a whole when it fails.
#[derive(Default)]
struct Draft {
    rows: Vec<(Bytes, Option<Bytes>)>,
    ranges: Vec<Keys>,
    places: Vec<Placed>,
    /// Rows that the ranges remove, one by one, for the table.
    removed: Vec<Bytes>,
    taken: Vec<Run>,
    freed: Vec<Run>,
    fresh: Vec<Placed>,
}

/// The writer's knowledge: all that decides where things go.
pub(crate) struct Writer<D: Disk> {
    pub table: Arc<dyn Table>,
    pub extents: Extents<D>,
    pub free: FreeSpace,
    pub groups: BTreeMap<GroupId, GroupRow>,
    /// The unsettled list: keys that operations above each group's settled number touched.
    pub touched: BTreeMap<GroupId, BTreeMap<OpNumber, Vec<KeyRange>>>,
    pub staged: Staged,
    pub inline_bytes_max: usize,
    /// One of the mutations.
    pub mend_unchecked: bool,
}

/// Sums rows of one chunk, read when needed.
struct Sums<'a, D: Disk> {
    writer: &'a Writer<D>,
    group: GroupId,
    chunk: ChunkKey,
    rows: BTreeMap<u32, SumsRow>,
}

impl<D: Disk> Sums<'_, D> {
    fn row(&mut self, block: u32) -> Result<&mut SumsRow, StageError> {
        let row = block / ROW_BLOCKS;
        if !self.rows.contains_key(&row) {
            let key = keys::sums(self.group, &self.chunk, row);
            let found = self.writer.get(&key)?.map_or(Ok(SumsRow::default()), |value| SumsRow::decode(&key, &value))?;
            self.rows.insert(row, found);
        }
        Ok(self.rows.get_mut(&row).expect("just inserted"))
    }

    fn get(&mut self, block: u32) -> Result<Option<u32>, StageError> {
        Ok(self.row(block)?.get(block % ROW_BLOCKS))
    }

    fn set(&mut self, block: u32, sum: u32) -> Result<(), StageError> {
        self.row(block)?.set(block % ROW_BLOCKS, sum);
        Ok(())
    }

    fn clear(&mut self, blocks: Range<u32>) -> Result<(), StageError> {
        for block in blocks {
            self.row(block)?.clear(block % ROW_BLOCKS);
        }
        Ok(())
    }

    fn into_rows(self) -> Vec<(Bytes, Option<Bytes>)> {
        let (group, chunk) = (self.group, self.chunk);
        let encode = |row: &SumsRow| (row.written != 0).then(|| row.encode());
        self.rows.iter().map(|(row, content)| (keys::sums(group, &chunk, *row), encode(content))).collect()
    }
}

impl<D: Disk> Writer<D> {
    /// Stages one operation. On error nothing of it is left.
    pub fn stage(&mut self, op: &LocalOp) -> Result<(), StageError> {
        let mut draft = Draft::default();
        match self.draft(op, &mut draft) {
            Ok(()) => {
                self.number(op, &mut draft);
                self.accept(draft);
                Ok(())
            }
            Err(error) => {
                self.free.give_back(draft.taken);
                Err(error)
            }
        }
    }

    /// A row as the batch leaves it.
    fn get(&self, key: &Bytes) -> Result<Option<Bytes>, StageError> {
        match self.staged.rows.get(key) {
            Some(staged) => Ok(staged.cloned()),
            None => Ok(self.table.get(key)?),
        }
    }

    fn chunk_row(&self, group: GroupId, chunk: &ChunkKey) -> Result<Option<ChunkRow>, StageError> {
        let key = keys::chunk(group, chunk);
        Ok(self.get(&key)?.map(|value| ChunkRow::decode(&key, &value)).transpose()?)
    }

    fn sums(&self, group: GroupId, chunk: ChunkKey) -> Sums<'_, D> {
        Sums { writer: self, group, chunk, rows: BTreeMap::new() }
    }

    fn draft(&mut self, op: &LocalOp, draft: &mut Draft) -> Result<(), StageError> {
        let group = op.group;
        match &op.change {
            Change::Write { chunk, offset, sums, bytes } => self.draft_write(op, *chunk, *offset, sums, bytes, draft),
            Change::Zero { chunk, offset, length } => {
                let end = u64::from(*offset) + u64::from(*length);
                self.draft_clear(op, *chunk, *offset, end.min(CHUNK_BYTES) as u32, false, draft)
            }
            Change::Cut { chunk, length } => self.draft_clear(op, *chunk, *length, CHUNK_BYTES as u32, true, draft),
            Change::Delete { volume, inode, generation, from } => {
                let run = |kind| keys::of_content(kind, group, (*volume, *inode, *generation), *from);
                let contended = (from.0 > 0).then_some(op.number);
                self.draft_delete(run(b'c'), run(b's'), contended, draft)
            }
            Change::DeleteChunk { chunk } => {
                let run = |kind| keys::of_chunk_rows(kind, group, chunk);
                self.draft_delete(run(b'c'), run(b's'), None, draft)
            }
            Change::DeleteVolume { volume } => {
                let run = |kind| keys::of_volume(kind, group, *volume);
                self.draft_delete(run(b'c'), run(b's'), None, draft)
            }
            Change::Copy { chunk, length, runs, contenders } => {
                self.draft_copy(op, *chunk, *length, (runs, contenders), draft)
            }
            Change::Mend { chunk, blocks } => self.draft_mend(op.group, *chunk, blocks, draft),
            Change::Mark => Ok(()),
        }
    }

    /// Blocks are put where they lie, if they are what should be there: bytes that were written since have another sum.
    fn draft_mend(
        &mut self,
        group: GroupId,
        chunk: ChunkKey,
        blocks: &[(u32, Bytes)],
        draft: &mut Draft,
    ) -> Result<(), StageError> {
        let Some(row) = self.chunk_row(group, &chunk)? else { return Ok(()) };
        let mut sums = self.sums(group, chunk);
        let mut pieces = Vec::with_capacity(blocks.len());
        for (at, bytes) in blocks.iter().filter(|(at, bytes)| bytes.len() == BLOCK && row.extent_of(*at).is_some()) {
            let stored = sums.get(*at)?;
            if self.mend_unchecked && stored.is_some() {
                sums.set(*at, crc32(bytes))?;
            } else if stored != Some(crc32(bytes)) {
                continue;
            }
            pieces.push(Piece { at: *at, bytes: bytes.clone() });
        }
        draft.rows = sums.into_rows();
        draft.places = layout::place(&row.extents, &pieces);
        Ok(())
    }

    fn draft_write(
        &mut self,
        op: &LocalOp,
        chunk: ChunkKey,
        offset: u32,
        piece_sums: &[u32],
        bytes: &Bytes,
        draft: &mut Draft,
    ) -> Result<(), StageError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let end = offset + bytes.len() as u32;
        assert!(u64::from(end) <= CHUNK_BYTES, "the core checks ranges");
        let blocks = offset / BLOCK as u32..end.div_ceil(BLOCK as u32);
        assert_eq!(piece_sums.len(), blocks.len(), "one sum for each block touched");
        let mut row = self.chunk_row(op.group, &chunk)?.unwrap_or_default();

        let mut sums = self.sums(op.group, chunk);
        let pieces = self.whole_blocks(&row, &mut sums, offset, (bytes, piece_sums))?;
        let sums = sums.into_rows();
        self.place(&mut row, blocks, bytes.len(), &pieces, draft)?;
        row.length = row.length.max(end);
        row.number = op.number;
        row.contenders.note(op.origin);
        draft.rows = sums;
        draft.rows.push((keys::chunk(op.group, &chunk), Some(row.encode())));
        Ok(())
    }

    /// Finds room for blocks that are written, and puts them there, or says where they go. `bytes`: of the whole operation.
    fn place(
        &mut self,
        row: &mut ChunkRow,
        blocks: Range<u32>,
        bytes: usize,
        pieces: &[Piece],
        draft: &mut Draft,
    ) -> Result<(), StageError> {
        if bytes > self.inline_bytes_max {
            let runs = self.take(blocks.len() as u32, blocks.len() as u32, draft)?;
            draft.freed.extend(layout::carve(&mut row.extents, blocks.clone()));
            layout::insert(&mut row.extents, blocks.start, &runs);
            draft.fresh.extend(layout::place(&row.extents, pieces));
            return Ok(());
        }
        for gap in layout::uncovered(&row.extents, blocks) {
            let reach = layout::reach(&row.extents, row.allocated(), &gap);
            let runs = self.take(reach - gap.start, gap.len() as u32, draft)?;
            layout::insert(&mut row.extents, gap.start, &runs);
        }
        draft.places.extend(layout::place(&row.extents, pieces));
        Ok(())
    }

    /// A chunk becomes another member's: length, some bytes, contenders.
    fn draft_copy(
        &mut self,
        op: &LocalOp,
        chunk: ChunkKey,
        length: u32,
        (runs, contenders): (&[CopyRun], &Contenders),
        draft: &mut Draft,
    ) -> Result<(), StageError> {
        assert!(u64::from(length) <= CHUNK_BYTES, "the core checks lengths");
        let block = BLOCK as u32;
        let blocks_of = |run: &CopyRun| run.offset / block..(run.offset + run.bytes.len() as u32).div_ceil(block);
        let mut row = self.chunk_row(op.group, &chunk)?.unwrap_or_default();
        let mut sums = self.sums(op.group, chunk);
        let mut ends = Vec::new();
        if length < row.length {
            // The block that is cut in two is replaced as a whole, or keeps its beginning.
            let replaced = runs.last().is_some_and(|run| blocks_of(run).end * block >= length);
            let from = if replaced { length.next_multiple_of(block) } else { length };
            ends = self.clear(&row, &mut sums, from, row.blocks() * block)?;
            draft.freed.extend(layout::carve(&mut row.extents, length.div_ceil(block)..BLOCKS));
            row.length = length;
        }
        let mut pieces = Vec::with_capacity(runs.len());
        for run in runs {
            pieces.push(self.whole_blocks(&row, &mut sums, run.offset, (&run.bytes, &run.sums))?);
        }
        let sums = sums.into_rows();
        draft.places = layout::place(&row.extents, &ends);
        // All of it is one record: many short runs are no more welcome in the journal than a long one.
        let total = runs.iter().map(|run| run.bytes.len()).sum();
        for (run, pieces) in runs.iter().zip(pieces) {
            self.place(&mut row, blocks_of(run), total, &pieces, draft)?;
        }
        row.length = length;
        row.number = op.number;
        row.contenders = contenders.clone();
        draft.rows = sums;
        draft.rows.push((keys::chunk(op.group, &chunk), Some(row.encode())));
        Ok(())
    }

    /// Cuts bytes into whole blocks; those that they cover in part are verified and merged. Sets the sums of all.
    fn whole_blocks(
        &self,
        row: &ChunkRow,
        sums: &mut Sums<'_, D>,
        offset: u32,
        (bytes, piece_sums): (&Bytes, &[u32]),
    ) -> Result<Vec<Piece>, StageError> {
        let block = BLOCK as u32;
        let end = offset + bytes.len() as u32;
        let (first, last) = (offset / block, (end - 1) / block);
        let merged = |at: u32, sums: &mut Sums<'_, D>| -> Result<Piece, StageError> {
            let start = at * block;
            let (from, to) = (offset.max(start), end.min(start + block));
            // What lies beyond the chunk's length is zeros, and need not be read.
            let covered = from == start && to >= row.length.min(start + block);
            let mut whole = if covered { vec![0; BLOCK] } else { self.old_block(row, sums, at)? };
            whole[(from - start) as usize..(to - start) as usize]
                .copy_from_slice(&bytes[(from - offset) as usize..(to - offset) as usize]);
            Ok(Piece { at, bytes: whole.into() })
        };
        let partial = |at: u32| offset > at * block || end < (at + 1) * block;
        let mut pieces = Vec::with_capacity(3);
        let (mut from, mut to) = (first, last + 1);
        if partial(first) {
            pieces.push(merged(first, sums)?);
            from += 1;
        }
        let tail = (last >= from && partial(last)).then(|| merged(last, sums)).transpose()?;
        to -= u32::from(tail.is_some());
        if from < to {
            let within = (from * block - offset) as usize..(to * block - offset) as usize;
            pieces.push(Piece { at: from, bytes: bytes.slice(within) });
        }
        pieces.extend(tail);
        for (block, sum) in (first..=last).zip(piece_sums) {
            sums.set(block, *sum)?;
        }
        // Merged blocks have sums of their own: over more bytes than were sent.
        for piece in pieces.iter().filter(|piece| piece.bytes.len() == BLOCK) {
            sums.set(piece.at, crc32(&piece.bytes))?;
        }
        Ok(pieces)
    }

    /// A block's present bytes, verified; zeros if it was never written.
    fn old_block(&self, row: &ChunkRow, sums: &mut Sums<'_, D>, at: u32) -> Result<Vec<u8>, StageError> {
        let mut buffer = vec![0; BLOCK];
        let Some(sum) = sums.get(at)? else { return Ok(buffer) };
        let Some(extent) = row.extent_of(at) else {
            return Err(StageError::Fatal(format!("{}: block {at} was written but has no extent", sums.chunk)));
        };
        let start = extent.start + (at - extent.at);
        // A fresh place is changed by later operations only: what records say of it is newer.
        let placed = self.staged.records.iter().rev().flat_map(|record| record.places.iter().rev());
        let staged = placed.chain(self.staged.fresh.iter().rev());
        let mut staged = staged.filter(|p| p.file == extent.file && (p.start..p.start + p.blocks()).contains(&start));
        match staged.next() {
            Some(place) => {
                let from = (start - place.start) as usize * BLOCK;
                buffer.copy_from_slice(&place.bytes[from..from + BLOCK]);
            }
            // A block that cannot be read is as bad as one that reads wrongly, and repaired alike.
            None => {
                self.extents
                    .files()
                    .read(extent.file, start, &mut buffer)
                    .map_err(|_| StageError::BadBlock((sums.chunk, at)))?;
            }
        }
        if crc32(&buffer) == sum { Ok(buffer) } else { Err(StageError::BadBlock((sums.chunk, at))) }
    }

    /// Takes space: `wanted` blocks in one piece if possible, else at least `needed`.
    fn take(&mut self, wanted: u32, needed: u32, draft: &mut Draft) -> Result<Vec<Run>, StageError> {
        let mut runs = self.free.take(wanted).map(|run| vec![run]);
        if runs.is_none() {
            let grown = self.extents.grow().map_err(|error| StageError::Fatal(format!("extents: {error}")))?;
            if let Some(run) = grown {
                self.free.add(run);
            }
            runs = self.free.take(wanted).map(|run| vec![run]).or_else(|| self.free.take_pieces(needed));
        }
        let runs = runs.ok_or(StageError::NoSpace)?;
        draft.taken.extend(&runs);
        Ok(runs)
    }

    /// Makes `[from, to)` of a chunk read as zeros; with `cut` the chunk ends at `from` at the latest.
    fn draft_clear(
        &mut self,
        op: &LocalOp,
        chunk: ChunkKey,
        from: u32,
        to: u32,
        cut: bool,
        draft: &mut Draft,
    ) -> Result<(), StageError> {
        let mut row = match self.chunk_row(op.group, &chunk)? {
            Some(row) => row,
            // Nothing to clear, but to be remembered.
            None if op.origin.contended => ChunkRow::default(),
            None => return Ok(()),
        };
        row.contenders.note(op.origin);
        if cut {
            row.contenders.cut();
        }
        let block = BLOCK as u32;
        let to = if to >= row.length { row.blocks() * block } else { to };
        let mut sums = self.sums(op.group, chunk);
        let mut pieces = Vec::new();
        if from < to.min(row.length) {
            pieces = self.clear(&row, &mut sums, from, to)?;
            let whole = from.div_ceil(block)..to / block;
            if whole.start < whole.end {
                draft.freed.extend(layout::carve(&mut row.extents, whole));
            }
        }
        let sums = sums.into_rows();
        draft.places = layout::place(&row.extents, &pieces);
        if cut {
            // Space taken ahead goes as well.
            draft.freed.extend(layout::carve(&mut row.extents, from.div_ceil(block)..BLOCKS));
            row.length = row.length.min(from);
        }
        row.number = op.number;
        draft.rows = sums;
        draft.rows.push((keys::chunk(op.group, &chunk), Some(row.encode())));
        Ok(())
    }

    /// A range is to read as zeros: whole blocks lose their sums, and the one or two that keep some bytes are returned as they become.
    fn clear(&self, row: &ChunkRow, sums: &mut Sums<'_, D>, from: u32, to: u32) -> Result<Vec<Piece>, StageError> {
        let block = BLOCK as u32;
        let mut pieces = Vec::new();
        let ends = [from / block, to / block];
        let partial =
            |at: u32| (from > at * block && from < (at + 1) * block) || (to > at * block && to < (at + 1) * block);
        let count = if ends[0] == ends[1] { 1 } else { 2 };
        for at in ends.into_iter().take(count).filter(|at| partial(*at)) {
            if sums.get(at)?.is_none() {
                continue;
            }
            let mut whole = self.old_block(row, sums, at)?;
            let (low, high) = (from.max(at * block), to.min((at + 1) * block));
            whole[(low - at * block) as usize..(high - at * block) as usize].fill(0);
            sums.set(at, crc32(&whole))?;
            pieces.push(Piece { at, bytes: whole.into() });
        }
        let whole = from.div_ceil(block)..to / block;
        if whole.start < whole.end {
            sums.clear(whole)?;
        }
        Ok(pieces)
    }

    /// `contended`: chunks with contenders stay as empty ones, with this number.
    fn draft_delete(
        &mut self,
        chunks: Keys,
        sums: Keys,
        contended: Option<OpNumber>,
        draft: &mut Draft,
    ) -> Result<(), StageError> {
        for (key, value) in self.merged(&chunks)? {
            let row = ChunkRow::decode(&key, &value)?;
            let Some((group, chunk)) = keys::parse_chunk(&key) else {
                return Err(StageError::Fatal(format!("index key {key:02x?} is malformed")));
            };
            draft.freed.extend(row.extents.iter().map(|e| Run { file: e.file, start: e.start, blocks: e.blocks }));
            let blocks = row.extents.last().map_or(0, Extent::end);
            draft
                .removed
                .extend((0..blocks.div_ceil(ROW_BLOCKS).min(CHUNK_ROWS)).map(|r| keys::sums(group, &chunk, r)));
            if let Some(number) = contended.filter(|_| !row.contenders.is_empty()) {
                let mut empty = ChunkRow { number, contenders: row.contenders, ..ChunkRow::default() };
                empty.contenders.cut();
                draft.rows.push((key.clone(), Some(empty.encode())));
            }
            draft.removed.push(key);
        }
        draft.ranges.extend([chunks, sums]);
        Ok(())
    }

    /// All rows of a range as the batch leaves them.
    fn merged(&self, range: &Keys) -> Result<BTreeMap<Bytes, Bytes>, StageError> {
        let range = holdfast_store::KeyRange::between(range.start.clone(), range.end.clone());
        let mut rows: BTreeMap<Bytes, Bytes> = self.table.range(range.clone()).collect::<Result<_, _>>()?;
        for (key, value) in self.staged.rows.range(&range) {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(rows)
    }

    /// The group's numbers, and what the operation touched.
    fn number(&mut self, op: &LocalOp, draft: &mut Draft) {
        let row = self.groups.entry(op.group).or_default();
        row.last = row.last.max(op.number);
        row.settled = row.settled.max(op.settled);
        let settled = row.settled;
        draft.rows.push((keys::group(op.group), Some(row.encode())));

        let touched = self.touched.entry(op.group).or_default();
        let above = touched.split_off(&OpNumber { count: settled.count.next(), ..settled });
        let settled_now = std::mem::replace(touched, above);
        if !settled_now.is_empty() {
            draft.ranges.push(keys::touched_up_to(op.group, settled));
            draft.removed.extend(settled_now.into_keys().map(|number| keys::touched(op.group, number)));
        }
        let Some(keys) = op.change.keys().filter(|_| op.number > settled) else { return };
        let ranges = touched.entry(op.number).or_default();
        if !ranges.contains(&keys) {
            ranges.push(keys);
            draft.rows.push((keys::touched(op.group, op.number), Some(rows::encode_touched(ranges))));
        }
        if touched.len() > UNSETTLED_MAX || touched[&op.number].len() > RANGES_PER_NUMBER_MAX {
            let all = std::mem::take(touched);
            draft.rows.retain(|(key, _)| keys::parse_touched(key).is_none());
            draft.ranges.push(keys::touched_up_to(op.group, op.number));
            draft.removed.extend(all.into_keys().map(|number| keys::touched(op.group, number)));
            touched.insert(op.number, vec![KeyRange::ALL]);
            draft.rows.push((keys::touched(op.group, op.number), Some(rows::encode_touched(&[KeyRange::ALL]))));
        }
    }

    fn accept(&mut self, draft: Draft) {
        let Staged { rows, records, bytes, fresh, freed } = &mut self.staged;
        for key in draft.removed {
            rows.remove(key);
        }
        for (key, value) in &draft.rows {
            match value {
                Some(value) => rows.put(key.clone(), value.clone()),
                None => rows.remove(key.clone()),
            }
        }
        fresh.extend(draft.fresh);
        freed.extend(draft.freed);
        let record = Record { rows: draft.rows, ranges: draft.ranges, places: draft.places };
        *bytes += record.bytes();
        records.push(record);
    }
}
