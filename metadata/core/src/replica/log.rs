//! The tail of a shard's log, in memory: what raft reads. The disk's copy follows it through `Persist` effects.
//!
//! * Holds every entry after `base`, consecutive. Nothing below an applied index that a persisted table covers is needed.

use crate::api::{HardState, LogEntry, LogPosition};
use bytes::Bytes;
use holdfast_types::{LogIndex, Term};
use raft::eraftpb::{ConfState, Entry, EntryType, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// Bytes that an entry takes beside its data, by eye.
const ENTRY_OVERHEAD: u64 = 32;

/// The log's tail.
pub(crate) struct LogStore {
    base: LogPosition,
    entries: VecDeque<Entry>,
    bytes: u64,
    hard_state: HardState,
    members: ConfState,
    /// What the table holds: a snapshot taken now would be of this place.
    applied: LogPosition,
}

impl LogStore {
    /// `members`: raft's configuration as of what the table holds.
    pub(crate) fn new(base: LogPosition, hard_state: HardState, members: ConfState) -> Self {
        Self { base, entries: VecDeque::new(), bytes: 0, hard_state, members, applied: base }
    }

    /// Place of the last entry, or the base.
    pub(crate) fn last(&self) -> LogPosition {
        self.entries.back().map_or(self.base, position)
    }

    pub(crate) fn base(&self) -> LogPosition {
        self.base
    }

    pub(crate) fn set_applied(&mut self, applied: LogPosition) {
        self.applied = applied;
    }

    pub(crate) fn set_members(&mut self, members: ConfState) {
        self.members = members;
    }

    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(crate) fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// Appends; what was there from the first one's place on is replaced. Returns whether there was any.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> bool {
        let Some(first) = entries.first() else { return false };
        assert!(first.index > self.base.index.0 && first.index <= self.last().index.0 + 1, "the log has no gap");
        let keep = (first.index - self.base.index.0 - 1) as usize;
        let cut = self.entries.len() > keep;
        while self.entries.len() > keep {
            self.bytes -= self.entries.pop_back().map_or(0, |entry| size(&entry));
        }
        self.bytes += entries.iter().map(size).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
        cut
    }

    /// Everything is forgotten: the table now holds `base`.
    pub(crate) fn restart(&mut self, base: LogPosition) {
        self.entries.clear();
        self.bytes = 0;
        self.base = base;
        self.applied = base;
    }

    /// Forgets entries up to an index; returns the new base.
    pub(crate) fn cut(&mut self, through: LogIndex) -> LogPosition {
        while self.entries.front().is_some_and(|entry| entry.index <= through.0) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= size(&entry);
                self.base = position(&entry);
            }
        }
        self.base
    }

    /// The lowest index to keep so that at most `count` entries and `bytes` bytes stay up to `through`.
    pub(crate) fn keep_from(&self, through: LogIndex, count: u64, bytes: u64) -> LogIndex {
        let mut taken = 0;
        let mut at = through.0;
        while at > self.base.index.0 && through.0 - at < count {
            taken += size(&self.entries[(at - self.base.index.0 - 1) as usize]);
            if taken > bytes {
                break;
            }
            at -= 1;
        }
        LogIndex(at)
    }

    pub(crate) fn members(&self) -> &ConfState {
        &self.members
    }

    pub(crate) fn conf_state(&self) -> ConfState {
        self.members.clone()
    }
}

fn size(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD
}

/// An entry's place.
pub(crate) fn position(entry: &Entry) -> LogPosition {
    LogPosition { index: LogIndex(entry.index), term: Term(entry.term) }
}

/// As it is kept on disk.
pub(crate) fn to_record(entry: &Entry) -> LogEntry {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    };
    LogEntry { at: position(entry), kind, data: entry.data.clone() }
}

/// From the disk; `None` for a kind that this build does not know.
pub(crate) fn from_record(record: &LogEntry) -> Option<Entry> {
    let kind = match record.kind {
        0 => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return None,
    };
    let mut entry = Entry { index: record.at.index.0, term: record.at.term.0, ..Entry::default() };
    entry.set_entry_type(kind);
    entry.data = Bytes::clone(&record.data);
    Some(entry)
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = raft::eraftpb::HardState {
            term: self.hard_state.term.0,
            vote: self.hard_state.vote.0,
            commit: self.hard_state.commit.0,
            ..raft::eraftpb::HardState::default()
        };
        Ok(RaftState::new(hard_state, self.conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last().index.0 + 1, "raft asks for entries that it never gave");
        let from = (low - self.base.index.0 - 1) as usize;
        let to = (high - self.base.index.0 - 1) as usize;
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut taken = 0u64;
        let mut found = Vec::new();
        for entry in self.entries.range(from..to) {
            taken = taken.saturating_add(size(entry));
            if !found.is_empty() && taken > max {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.index.0 {
            return Ok(self.base.term.0);
        }
        if index < self.base.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.get((index - self.base.index.0 - 1) as usize);
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.index.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().index.0)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.applied.index.0 < request_index || self.applied.index.0 == 0 {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.applied.index.0;
        metadata.term = self.applied.term.0;
        metadata.set_conf_state(self.conf_state());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 68].into(), ..Entry::default() }
    }

    #[test]
    fn a_leaders_entries_replace_a_suffix_and_a_cut_leaves_the_base() {
        let mut log = LogStore::new(LogPosition::default(), HardState::default(), ConfState::default());
        assert!(!log.append(&[entry(1, 1), entry(2, 1), entry(3, 1)]));
        assert!(log.append(&[entry(2, 2)]));
        assert_eq!((log.last(), log.bytes), (LogPosition { index: LogIndex(2), term: Term(2) }, 200));
        assert_eq!(log.cut(LogIndex(1)), LogPosition { index: LogIndex(1), term: Term(1) });
        assert_eq!(log.bytes, 100);
        assert_eq!((log.term(1).unwrap(), log.term(2).unwrap()), (1, 2));
        assert!(log.entries(1, 2, None, GetEntriesContext::empty(false)).is_err());
        assert_eq!(log.entries(2, 3, None, GetEntriesContext::empty(false)).unwrap().len(), 1);
        log.append(&[entry(3, 2), entry(4, 2)]);
        assert_eq!(log.keep_from(LogIndex(4), 2, u64::MAX), LogIndex(2));
        assert_eq!(log.keep_from(LogIndex(4), 100, 150), LogIndex(3));
    }
}
