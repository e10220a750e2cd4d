//! A shard's Raft log on a journal. Generic over the disk, so that the simulator crashes this very code.
//!
//! Records, little-endian, one journal record each:
//!
//! ```text
//!  0        1                9                17
//! +--------+----------------+----------------+
//! | 1 base | index u64      | term u64       |        the log begins behind this place (cut from below)
//! +--------+----------------+----------------+
//! | 2 anew | index u64      | term u64       |        the same, and every entry above is forgotten too (snapshot)
//! +--------+----------------+----------------+------------------+
//! | 3 hard | term u64       | vote u64       | commit u64       |
//! +--------+------+---------+----------------+------------------+
//! | 4 log  | count u32 | then for each: index u64, term u64, kind u8, length u32, bytes
//! +--------+-----------+-----------+-----------------------------
//! | 5 born | life u64  | count u32 | then for each founder of the cluster: its id u64
//! +--------+-----------+-----------+-----------------------------
//! ```
//!
//! Invariants:
//! * Replayed in order, the records give the log's birth, the newest hard state, the base, and consecutive entries after it.
//! * Space is released only after the birth, the base and the hard state were written again above it and synced.

use bytes::Bytes;
use holdfast_journal::disk::Disk;
use holdfast_journal::{Journal, JournalConfig, JournalError, Position};
use holdfast_metadata_core::{HardState, LogEntry, LogPosition, LogRecord};
use holdfast_types::{LogIndex, ServerId, Term};
use std::collections::VecDeque;

const TAG_BASE: u8 = 1;
const TAG_RESTART: u8 = 2;
const TAG_HARD_STATE: u8 = 3;
const TAG_ENTRIES: u8 = 4;
const TAG_BIRTH: u8 = 5;

/// Bytes of entries in one record, unless one entry alone is longer. Well below a segment.
const RECORD_BYTES: usize = 1 << 20;

/// How a log came into being: its first record, and for ever the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Birth {
    /// Drawn then: a server is known by it. A log that was lost and made anew has another.
    pub life: u64,
    /// Servers that the cluster was made with. Empty for a log of one that joined later.
    pub founders: Vec<ServerId>,
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredLog {
    /// Its birth; none in a log that was made just now.
    pub birth: Option<Birth>,
    /// The newest hard state.
    pub hard_state: HardState,
    /// The log begins behind this.
    pub base: LogPosition,
    /// Entries after `base`, consecutive.
    pub entries: Vec<LogEntry>,
}

/// Why a log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The journal refuses.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Where entries lie in the journal.
#[derive(Clone, Copy, Debug)]
struct Extent {
    first: LogIndex,
    last: LogIndex,
    position: Position,
}

/// One shard's log.
pub struct LogStore<D: Disk> {
    journal: Journal<D>,
    extents: VecDeque<Extent>,
    birth: Option<Birth>,
    hard_state: HardState,
    base: LogPosition,
    /// Space below this is released after the next sync.
    release: Option<Position>,
}

impl<D: Disk> LogStore<D> {
    /// Opens the log of a shard, or makes an empty one.
    ///
    /// # Errors
    /// [`LogError`], in particular for a damaged journal: then this server must be replaced, not repaired by guessing.
    pub fn open(disk: D, config: &JournalConfig) -> Result<(Self, RecoveredLog), LogError> {
        let mut found = RecoveredLog::default();
        let mut extents = VecDeque::new();
        let journal = Journal::open(disk, config, |position, record| {
            replay(&mut found, &mut extents, position, record).map_err(|what| what.to_owned().into())
        })?;
        let birth = found.birth.clone();
        let store = Self { journal, extents, birth, hard_state: found.hard_state, base: found.base, release: None };
        Ok((store, found))
    }

    /// Whether the opening cut off a torn record; see [`Journal::found_torn`].
    pub fn found_torn(&self) -> bool {
        self.journal.found_torn()
    }

    /// Writes a new log's first record, durably.
    ///
    /// # Errors
    /// [`LogError`]
    pub fn begin(&mut self, birth: Birth) -> Result<(), LogError> {
        self.birth = Some(birth);
        self.append_birth()?;
        self.sync()
    }

    /// Adds records; **not durable** before [`LogStore::sync`].
    ///
    /// # Errors
    /// [`LogError`]
    pub fn append(&mut self, records: &[LogRecord]) -> Result<(), LogError> {
        for record in records {
            match record {
                LogRecord::Restart { base } => {
                    self.base = *base;
                    self.extents.clear();
                    let position = self.journal.append(&[&place(TAG_RESTART, *base)])?;
                    self.append_birth()?;
                    self.append_hard_state()?;
                    self.release = Some(position);
                }
                LogRecord::Entries(entries) => self.append_entries(entries)?,
                LogRecord::HardState(state) => {
                    self.hard_state = *state;
                    self.append_hard_state()?;
                }
            }
        }
        Ok(())
    }

    /// Entries up to `base` are not needed any more; their space is free after the next [`LogStore::sync`].
    ///
    /// # Errors
    /// [`LogError`]
    pub fn cut(&mut self, base: LogPosition) -> Result<(), LogError> {
        if base.index <= self.base.index {
            return Ok(());
        }
        self.base = base;
        while self.extents.front().is_some_and(|extent| extent.last <= base.index) {
            self.extents.pop_front();
        }
        let written = self.journal.append(&[&place(TAG_BASE, base)])?;
        self.append_birth()?;
        self.append_hard_state()?;
        self.release = Some(self.extents.front().map_or(written, |extent| extent.position.min(written)));
        Ok(())
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// [`LogError`]; nothing may be concluded about what was appended, and the log takes nothing more.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.journal.sync()?;
        if let Some(position) = self.release.take() {
            self.journal.release_below(position);
        }
        Ok(())
    }

    fn append_birth(&mut self) -> Result<(), LogError> {
        let Some(Birth { life, founders }) = &self.birth else { return Ok(()) };
        let mut record = vec![TAG_BIRTH];
        record.extend_from_slice(&life.to_le_bytes());
        record.extend_from_slice(&(founders.len() as u32).to_le_bytes());
        for founder in founders {
            record.extend_from_slice(&founder.0.to_le_bytes());
        }
        self.journal.append(&[&record])?;
        Ok(())
    }

    fn append_hard_state(&mut self) -> Result<(), LogError> {
        let mut record = vec![TAG_HARD_STATE];
        for number in [self.hard_state.term.0, self.hard_state.vote.0, self.hard_state.commit.0] {
            record.extend_from_slice(&number.to_le_bytes());
        }
        self.journal.append(&[&record])?;
        Ok(())
    }

    fn append_entries(&mut self, entries: &[LogEntry]) -> Result<(), LogError> {
        let mut rest = entries;
        while !rest.is_empty() {
            let mut bytes = 0;
            let count = rest
                .iter()
                .take_while(|entry| {
                    let fits = bytes == 0 || bytes + entry.data.len() <= RECORD_BYTES;
                    bytes += entry.data.len() + 21;
                    fits
                })
                .count();
            let (now, later) = rest.split_at(count);
            let position = self.journal.append(&[&encode_entries(now)])?;
            remember(&mut self.extents, now, position);
            rest = later;
        }
        Ok(())
    }
}

fn place(tag: u8, at: LogPosition) -> [u8; 17] {
    let mut record = [tag; 17];
    record[1..9].copy_from_slice(&at.index.0.to_le_bytes());
    record[9..].copy_from_slice(&at.term.0.to_le_bytes());
    record
}

fn encode_entries(entries: &[LogEntry]) -> Vec<u8> {
    let bytes: usize = entries.iter().map(|entry| entry.data.len() + 21).sum();
    let mut record = Vec::with_capacity(5 + bytes);
    record.push(TAG_ENTRIES);
    record.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        record.extend_from_slice(&entry.at.index.0.to_le_bytes());
        record.extend_from_slice(&entry.at.term.0.to_le_bytes());
        record.push(entry.kind);
        record.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
        record.extend_from_slice(&entry.data);
    }
    record
}

/// Notes where entries lie; what they replace is forgotten.
fn remember(extents: &mut VecDeque<Extent>, entries: &[LogEntry], position: Position) {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
    while let Some(extent) = extents.back_mut() {
        if extent.first >= first.at.index {
            extents.pop_back();
        } else {
            extent.last = LogIndex(extent.last.0.min(first.at.index.0 - 1));
            break;
        }
    }
    extents.push_back(Extent { first: first.at.index, last: last.at.index, position });
}

fn replay(
    found: &mut RecoveredLog,
    extents: &mut VecDeque<Extent>,
    position: Position,
    record: &[u8],
) -> Result<(), &'static str> {
    let mut reader = Reader(record);
    match reader.u8()? {
        TAG_BASE => {
            found.base = reader.place()?;
            let base = found.base.index;
            found.entries.retain(|entry| entry.at.index > base);
            while extents.front().is_some_and(|extent| extent.last <= base) {
                extents.pop_front();
            }
        }
        TAG_RESTART => {
            found.base = reader.place()?;
            found.entries.clear();
            extents.clear();
        }
        TAG_HARD_STATE => {
            found.hard_state =
                HardState { term: Term(reader.u64()?), vote: ServerId(reader.u64()?), commit: LogIndex(reader.u64()?) };
        }
        TAG_BIRTH => {
            let life = reader.u64()?;
            let count = reader.u32()?;
            let founders = (0..count).map(|_| Ok(ServerId(reader.u64()?))).collect::<Result<_, &'static str>>()?;
            found.birth = Some(Birth { life, founders });
        }
        TAG_ENTRIES => {
            let entries = reader.entries()?;
            remember(extents, &entries, position);
            take_entries(found, entries)?;
        }
        _ => return Err("record of an unknown kind: written by a newer release?"),
    }
    if reader.0.is_empty() { Ok(()) } else { Err("record longer than its content") }
}

fn take_entries(found: &mut RecoveredLog, entries: Vec<LogEntry>) -> Result<(), &'static str> {
    for entry in entries {
        let index = entry.at.index;
        if index <= found.base.index {
            continue;
        }
        if let Some(first) = found.entries.first().map(|first| first.at.index) {
            if index < first {
                found.entries.clear();
            } else {
                found.entries.truncate((index.0 - first.0) as usize);
            }
        }
        // What lies between is in records that were released: a later base says so.
        if found.entries.last().is_some_and(|last| last.at.index.next() != index) {
            return Err("a gap between two entries");
        }
        found.entries.push(entry);
    }
    Ok(())
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or("record shorter than its content")?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.take::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn place(&mut self) -> Result<LogPosition, &'static str> {
        Ok(LogPosition { index: LogIndex(self.u64()?), term: Term(self.u64()?) })
    }

    fn entries(&mut self) -> Result<Vec<LogEntry>, &'static str> {
        let count = self.u32()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let at = self.place()?;
            let kind = self.u8()?;
            let length = self.u32()? as usize;
            if length > self.0.len() {
                return Err("entry longer than its record");
            }
            let (data, rest) = self.0.split_at(length);
            self.0 = rest;
            entries.push(LogEntry { at, kind, data: Bytes::copy_from_slice(data) });
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests;
