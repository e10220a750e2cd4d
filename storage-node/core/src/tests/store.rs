//! A store in memory: what was given, what is durable, what a crash leaves.

use crate::local::{
    Change, Checked, ChunkSummary, ChunkSums, Contenders, GroupState, KeyRange, LocalCommand, LocalError, LocalOp,
    LocalOutcome, Ticket,
};
use bytes::Bytes;
use holdfast_types::checksum::{crc32, piece_sums};
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::prng::Prng;
use holdfast_types::{ChunkIndex, ChunkKey, GroupId, OpNumber};
use holdfast_wire::chunk::ByteRange;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) const BLOCK: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct StoredGroup {
    pub(crate) last: OpNumber,
    pub(crate) settled: OpNumber,
    unsettled: Vec<(OpNumber, KeyRange)>,
    pub(crate) chunks: BTreeMap<ChunkKey, Vec<u8>>,
    pub(crate) contenders: BTreeMap<ChunkKey, Contenders>,
}

/// Durable content, and commands that are not done.
#[derive(Debug, Default)]
pub(crate) struct FakeStore {
    pub(crate) groups: BTreeMap<GroupId, StoredGroup>,
    given: BTreeMap<GroupId, VecDeque<(Ticket, LocalCommand)>>,
    others: BTreeMap<Ticket, LocalCommand>,
    /// `Apply`s to refuse with `NoSpace` from now on.
    pub(crate) no_space: usize,
    /// Blocks that do not have their sums any more. The model goes on holding what they should be.
    pub(crate) damaged: BTreeSet<(GroupId, ChunkKey, u32)>,
    /// Those that were put right.
    pub(crate) mended: usize,
}

/// Blocks that a change of a chunk writes: whole, or as a part.
fn written(change: &Change) -> Vec<(u32, bool)> {
    // What lies beyond the end of a copy is nothing that a block keeps.
    let end = if let Change::Copy { length, .. } = change { *length as usize } else { usize::MAX };
    let blocks = |offset: u32, length: usize| {
        let (from, to, block) = (offset as usize, offset as usize + length, BLOCK);
        let whole = move |at: usize| from <= at * block && to >= end.min((at + 1) * block);
        (from / block..to.div_ceil(block)).map(move |at| (at as u32, whole(at)))
    };
    match change {
        Change::Write { offset, bytes, .. } => blocks(*offset, bytes.len()).collect(),
        Change::Zero { offset, length, .. } => blocks(*offset, *length as usize).collect(),
        Change::Copy { runs, .. } => runs.iter().flat_map(|run| blocks(run.offset, run.bytes.len())).collect(),
        _ => Vec::new(),
    }
}

pub(crate) fn sums(content: &[u8]) -> Vec<u32> {
    let sum = |block: &[u8]| {
        let mut whole = block.to_vec();
        whole.resize(BLOCK, 0);
        crc32(&whole)
    };
    content.chunks(BLOCK).map(sum).collect()
}

fn digest(sums: &[u32], contenders: &Contenders) -> u32 {
    crc32(&sums.iter().flat_map(|sum| sum.to_le_bytes()).chain(contenders.summed()).collect::<Vec<u8>>())
}

/// Applies a change to chunks, as any store must.
pub(crate) fn apply(chunks: &mut BTreeMap<ChunkKey, Vec<u8>>, change: &Change) {
    match change {
        Change::Write { chunk, offset, bytes, sums } => {
            assert_eq!(*sums, piece_sums(*offset, bytes), "sums travel with their bytes");
            let content = chunks.entry(*chunk).or_default();
            let end = *offset as usize + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset as usize..end].copy_from_slice(bytes);
        }
        Change::Zero { chunk, offset, length } => {
            if let Some(content) = chunks.get_mut(chunk) {
                let end = content.len().min((*offset + *length) as usize);
                if (*offset as usize) < end {
                    content[*offset as usize..end].fill(0);
                }
            }
        }
        Change::Cut { chunk, length } => {
            if let Some(content) = chunks.get_mut(chunk) {
                content.truncate(*length as usize);
            }
        }
        Change::Delete { .. } | Change::DeleteChunk { .. } | Change::DeleteVolume { .. } => {
            let keys = change.keys().expect("deletes name keys");
            chunks.retain(|chunk, _| !keys.contains(*chunk));
        }
        Change::Copy { chunk, length, runs, .. } => {
            let content = chunks.entry(*chunk).or_default();
            content.truncate(*length as usize);
            for run in runs {
                assert_eq!(run.sums, piece_sums(run.offset, &run.bytes), "sums travel with their bytes");
                let end = run.offset as usize + run.bytes.len();
                content.resize(content.len().max(end), 0);
                content[run.offset as usize..end].copy_from_slice(&run.bytes);
            }
            assert_eq!(content.len(), *length as usize, "a copy is as long as it says");
        }
        // What a damaged block was is what the model holds: see `FakeStore::damaged`.
        Change::Mend { .. } | Change::Mark => {}
    }
}

/// As [`apply`], for what chunks know of contended changes.
fn note(all: &mut BTreeMap<ChunkKey, Contenders>, op: &LocalOp) {
    match &op.change {
        Change::Write { chunk, .. } | Change::Zero { chunk, .. } => all.entry(*chunk).or_default().note(op.origin),
        Change::Cut { chunk, .. } => {
            if let Some(contenders) = all.get_mut(chunk) {
                contenders.cut();
            }
        }
        Change::Delete { from, .. } if from.0 > 0 => {
            let keys = op.change.keys().expect("deletes name keys");
            all.range_mut(keys.first..=keys.last).for_each(|(_, contenders)| contenders.cut());
        }
        Change::Delete { .. } | Change::DeleteChunk { .. } | Change::DeleteVolume { .. } => {
            let keys = op.change.keys().expect("deletes name keys");
            all.retain(|chunk, _| !keys.contains(*chunk));
        }
        Change::Copy { chunk, contenders, .. } => drop(all.insert(*chunk, contenders.clone())),
        Change::Mend { .. } | Change::Mark => {}
    }
    all.retain(|_, contenders| !contenders.is_empty());
}

impl FakeStore {
    /// What a core is told at the start.
    pub(crate) fn states(&self) -> Vec<GroupState> {
        let state = |(group, stored): (&GroupId, &StoredGroup)| GroupState {
            group: *group,
            last: stored.last,
            settled: stored.settled,
            complete: true,
        };
        self.groups.iter().map(state).collect()
    }

    pub(crate) fn content(&self, group: GroupId, chunk: ChunkKey) -> &[u8] {
        self.groups.get(&group).and_then(|g| g.chunks.get(&chunk)).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn contenders(&self, group: GroupId, chunk: ChunkKey) -> Contenders {
        self.groups.get(&group).and_then(|g| g.contenders.get(&chunk)).cloned().unwrap_or_default()
    }

    /// Chunks that are not empty.
    pub(crate) fn chunks(&self, group: GroupId) -> BTreeMap<ChunkKey, Vec<u8>> {
        let all = self.groups.get(&group).map(|g| g.chunks.clone()).unwrap_or_default();
        all.into_iter().filter(|(_, content)| !content.is_empty()).collect()
    }

    pub(crate) fn give(&mut self, ticket: Ticket, command: LocalCommand) {
        if let LocalCommand::ChangesAbove { group, .. } = &command {
            assert!(self.given.get(group).is_none_or(VecDeque::is_empty), "asked while changes are under way");
        }
        if let LocalCommand::Apply(op) = &command {
            self.given.entry(op.group).or_default().push_back((ticket, command));
        } else {
            self.others.insert(ticket, command);
        }
    }

    /// Finishes a command; `Apply`s of its group that were given before are finished first. Returns what is reported, in order.
    pub(crate) fn finish(&mut self, ticket: Ticket) -> Vec<(Ticket, Result<LocalOutcome, LocalError>)> {
        if let Some(command) = self.others.remove(&ticket) {
            let bad = match &command {
                LocalCommand::Read { group, chunk, offset, length } if *length > 0 => {
                    let blocks = offset / BLOCK as u32..=(offset + length - 1) / BLOCK as u32;
                    self.damaged_in(*group, *chunk).any(|block| blocks.contains(&block))
                }
                _ => false,
            };
            let result = if bad { Err(LocalError::BadBlock) } else { Ok(self.answer(&command)) };
            return vec![(ticket, result)];
        }
        let mut done = Vec::new();
        let group = self.given.iter().find(|(_, queue)| queue.iter().any(|(t, _)| *t == ticket)).map(|(g, _)| *g);
        let Some(group) = group else { return done };
        while let Some((first, command)) = self.given.get_mut(&group).and_then(VecDeque::pop_front) {
            if let LocalCommand::Apply(op) = command {
                let fails = self.no_space > 0 && matches!(op.change, Change::Write { .. } | Change::Copy { .. });
                if self.meets_damage(&op) {
                    done.push((first, Err(LocalError::BadBlock)));
                } else if fails {
                    self.no_space -= 1;
                    done.push((first, Err(LocalError::NoSpace)));
                } else {
                    self.apply(op);
                    done.push((first, Ok(LocalOutcome::Applied)));
                }
            }
            if first == ticket {
                break;
            }
        }
        done
    }

    fn damaged_in(&self, group: GroupId, chunk: ChunkKey) -> impl Iterator<Item = u32> + '_ {
        self.damaged.iter().filter(move |damaged| (damaged.0, damaged.1) == (group, chunk)).map(|damaged| damaged.2)
    }

    /// A part of a damaged block would have to be kept.
    fn meets_damage(&self, op: &LocalOp) -> bool {
        let Some(chunk) = op.change.keys().map(|keys| keys.first) else { return false };
        let length = self.content(op.group, chunk).len();
        let whole = |(at, whole): (u32, bool)| whole || at as usize * BLOCK >= length;
        let cut = match op.change {
            Change::Cut { length, .. } => Some((length / BLOCK as u32, length.is_multiple_of(BLOCK as u32))),
            _ => None,
        };
        let touched: Vec<(u32, bool)> = written(&op.change).into_iter().chain(cut).collect();
        let bad = |block: u32| touched.iter().any(|touched| touched.0 == block && !whole(*touched));
        self.damaged_in(op.group, chunk).any(bad)
    }

    fn heal(&mut self, op: &LocalOp) {
        if let Change::Mend { chunk, blocks } = &op.change {
            for (block, bytes) in blocks {
                let sums = sums(self.content(op.group, *chunk));
                let fits = sums.get(*block as usize) == Some(&crc32(bytes));
                self.mended += usize::from(fits && self.damaged.remove(&(op.group, *chunk, *block)));
            }
        }
        let Some(keys) = op.change.keys() else { return };
        let touched = written(&op.change);
        let contents = self.groups.get(&op.group).map(|stored| &stored.chunks);
        self.damaged.retain(|(group, chunk, block)| {
            let gone = || contents.and_then(|all| all.get(chunk)).is_none_or(|c| c.len() <= *block as usize * BLOCK);
            let mine = *group == op.group && keys.contains(*chunk);
            !(mine && (touched.iter().any(|touched| touched.0 == *block) || gone()))
        });
    }

    fn apply(&mut self, op: LocalOp) {
        let stored = self.groups.entry(op.group).or_default();
        assert!(op.number >= stored.last, "{} given after {}", op.number, stored.last);
        stored.last = op.number;
        stored.settled = stored.settled.max(op.settled);
        if let Some(keys) = op.change.keys() {
            stored.unsettled.push((op.number, keys));
        }
        let settled = stored.settled;
        stored.unsettled.retain(|(number, _)| *number > settled);
        apply(&mut stored.chunks, &op.change);
        note(&mut stored.contenders, &op);
        self.heal(&op);
    }

    /// Sums as other members are told.
    fn reported(&self, group: GroupId, chunk: ChunkKey) -> Vec<u32> {
        let mut sums = sums(self.content(group, chunk));
        for block in self.damaged_in(group, chunk) {
            sums[block as usize] = !sums[block as usize];
        }
        sums
    }

    fn answer(&self, command: &LocalCommand) -> LocalOutcome {
        let none = StoredGroup::default();
        let stored = |group: &GroupId| self.groups.get(group).unwrap_or(&none);
        match command {
            LocalCommand::Apply(_) => unreachable!("applied elsewhere"),
            LocalCommand::Read { group, chunk, offset, length } => {
                let content = self.content(*group, *chunk);
                let from = content.len().min(*offset as usize);
                let to = content.len().min((*offset + *length) as usize);
                let bytes = Bytes::copy_from_slice(&content[from..to]);
                LocalOutcome::Data { sums: piece_sums(*offset, &bytes), bytes }
            }
            LocalCommand::List { group, range, limit } => {
                let summary = |chunk: ChunkKey| ChunkSummary {
                    chunk,
                    length: self.content(*group, chunk).len() as u32,
                    number: OpNumber::default(),
                    digest: digest(&self.reported(*group, chunk), &self.contenders(*group, chunk)),
                };
                let stored = stored(group);
                let held = stored.chunks.range(range.first..=range.last).filter(|(_, c)| !c.is_empty());
                let contended = stored.contenders.range(range.first..=range.last).map(|(chunk, _)| *chunk);
                let keys: BTreeSet<ChunkKey> = held.map(|(chunk, _)| *chunk).chain(contended).collect();
                let chunks = keys.into_iter().map(summary).take(*limit as usize).collect();
                LocalOutcome::Chunks { chunks }
            }
            LocalCommand::BlockSums { group, chunk } => {
                let content = self.content(*group, *chunk);
                let contenders = self.contenders(*group, *chunk);
                let length = content.len() as u32;
                let there = !content.is_empty() || !contenders.is_empty();
                LocalOutcome::Sums {
                    found: there.then(|| ChunkSums { length, sums: self.reported(*group, *chunk), contenders }),
                }
            }
            LocalCommand::Contended { group, chunk, session, sequence } => {
                LocalOutcome::Contended { made: self.contenders(*group, *chunk).made(*session, *sequence) }
            }
            LocalCommand::Check { group, chunk } => LocalOutcome::Checked { found: self.check(*group, *chunk) },
            LocalCommand::Blocks { group, chunk, blocks } => {
                let content = self.content(*group, *chunk);
                let whole = |at: u32| {
                    let from = at as usize * BLOCK;
                    let part = content.get(from..content.len().min(from + BLOCK)).filter(|part| !part.is_empty())?;
                    let mut bytes = part.to_vec();
                    bytes.resize(BLOCK, 0);
                    Some((at, Bytes::from(bytes)))
                };
                let sound = |at: &u32| !self.damaged.contains(&(*group, *chunk, *at));
                let blocks = blocks.iter().copied().filter(sound).filter_map(whole).collect();
                LocalOutcome::Blocks { blocks }
            }
            LocalCommand::Highest { group, volume, inode, generation, from } => {
                let keys = KeyRange::tail(*volume, *inode, *generation, *from);
                let mut held = stored(group).chunks.range(keys.first..=keys.last).rev();
                let found = held.find(|(_, c)| !c.is_empty()).map(|(k, c)| (k.index, c.len() as u32));
                LocalOutcome::Highest { found }
            }
            LocalCommand::Allocated { group, volume, inode, generation, from, upto } => {
                let keys = KeyRange::tail(*volume, *inode, *generation, *from);
                let held = stored(group).chunks.range(keys.first..=keys.last);
                let held = held.filter(|(key, content)| key.index <= *upto && !content.is_empty());
                let range = |(key, content): (&ChunkKey, &Vec<u8>)| {
                    let start = key.index.0 * CHUNK_BYTES;
                    ByteRange { start, end: start + content.len() as u64 }
                };
                LocalOutcome::Allocated { ranges: held.map(range).collect(), through: ChunkIndex(u64::MAX) }
            }
            LocalCommand::ChangesAbove { group, number } => {
                let above = stored(group).unsettled.iter().filter(|(n, _)| n > number);
                LocalOutcome::Changes { changed: above.map(|(_, keys)| *keys).collect() }
            }
        }
    }

    fn check(&self, group: GroupId, chunk: ChunkKey) -> Option<Checked> {
        let (content, contenders) = (self.content(group, chunk), self.contenders(group, chunk));
        if content.is_empty() && contenders.is_empty() {
            return None;
        }
        let should = sums(content);
        let bad: Vec<(u32, u32)> = self.damaged_in(group, chunk).map(|at| (at, should[at as usize])).collect();
        let digest = digest(&self.reported(group, chunk), &contenders);
        // Any function of the content will do.
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&crc32(content).to_le_bytes());
        Some(Checked { length: content.len() as u32, digest, hash, bad, bytes: content.len() as u64 })
    }

    /// The power fails: of what was given, a prefix of each group happened.
    pub(crate) fn crash(&mut self, prng: &mut Prng) {
        self.others.clear();
        for (_, mut queue) in std::mem::take(&mut self.given) {
            let kept = prng.below(queue.len() as u64 + 1);
            for (_, command) in queue.drain(..kept as usize) {
                if let LocalCommand::Apply(op) = command {
                    self.apply(op);
                }
            }
        }
    }
}
