//! A store in memory: what was given, what is durable, what a crash leaves.

use crate::local::{
    Change, ChunkSummary, ChunkSums, Contenders, GroupState, KeyRange, LocalCommand, LocalError, LocalOp, LocalOutcome,
    Ticket,
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
}

pub(crate) fn sums(content: &[u8]) -> Vec<u32> {
    let sum = |block: &[u8]| {
        let mut whole = block.to_vec();
        whole.resize(BLOCK, 0);
        crc32(&whole)
    };
    content.chunks(BLOCK).map(sum).collect()
}

fn digest(content: &[u8], contenders: &Contenders) -> u32 {
    let sums = sums(content);
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
        Change::Mark => {}
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
        Change::Mark => {}
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
            return vec![(ticket, Ok(self.answer(&command)))];
        }
        let mut done = Vec::new();
        let group = self.given.iter().find(|(_, queue)| queue.iter().any(|(t, _)| *t == ticket)).map(|(g, _)| *g);
        let Some(group) = group else { return done };
        while let Some((first, command)) = self.given.get_mut(&group).and_then(VecDeque::pop_front) {
            if let LocalCommand::Apply(op) = command {
                let fails = self.no_space > 0 && matches!(op.change, Change::Write { .. } | Change::Copy { .. });
                if fails {
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
                    digest: digest(self.content(*group, chunk), &self.contenders(*group, chunk)),
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
                LocalOutcome::Sums { found: there.then(|| ChunkSums { length, sums: sums(content), contenders }) }
            }
            LocalCommand::Contended { group, chunk, session, sequence } => {
                LocalOutcome::Contended { made: self.contenders(*group, *chunk).made(*session, *sequence) }
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
