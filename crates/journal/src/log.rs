//! The log: records appended, synced together, replayed in order after any crash, released when no longer needed.
//!
//! What holds at every moment:
//!
//! * Once [`Journal::sync`] has returned, every record appended before is replayed by every later opening until it is
//!   released, whatever loses power when.
//! * A replay delivers records whole, in order, without a gap: everything durable, then perhaps some of what was
//!   appended but never synced. Records released shortly before a crash may be delivered again.
//! * Damage below what is known to be durable is an error that names the place, never a shorter log. Damage to the very
//!   last records cannot be told from a torn write while nothing later bears witness.
//! * After a write or a sync that failed nothing is written any more: the file is left to whoever opens it next.
//! * Space is taken in whole segments, written with zeros beforehand and used again: a durable append changes no
//!   file-system metadata. It is written in whole blocks, the begun one once more with the same bytes, so that disks that
//!   can take it in one request past the page cache do ([`DiskFile::write_durable_at`]).
//!
//! The bytes are drawn in [`format`]. A segment is begun only when the one before is complete and synced; a segment is
//! used again only when a superblock that puts the head behind it is durable.

mod error;
pub mod format;
mod recovery;
mod segments;
mod tail;
#[cfg(test)]
mod tests;

use crate::disk::{Disk, DiskFile};
pub use error::{JournalError, ReplayError};
use format::{BLOCK_BYTES, RECORD_HEADER_BYTES, Stamp, SuperFacts, decode_record, encode_record, record_bytes};
use holdfast_types::size::MIB;
use segments::Segments;
use std::fmt;
use tail::Tail;

/// Buffered bytes above which [`Journal::append`] hands them to the kernel without a sync, to bound memory and to
/// let the disk begin. By eye.
const WRITE_BEHIND_BYTES: u64 = 4 << 20;

/// A place in the endless run of records, in bytes since the journal was made. Rises with every record, across
/// restarts; may jump ahead at the end of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "j{}", self.0)
    }
}

/// Shape of a journal.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Files are called `NAME.super`, `NAME.000000` and so on, so that several journals can share a disk.
    pub name: String,
    /// Whose journal this is: random, or the identity of its owner. One with another id is refused.
    pub id: u128,
    /// Bytes of a segment, a multiple of 4096, at least 8192. An existing journal keeps the size it was made with.
    pub segment_bytes: u64,
    /// Segments made (and so space taken) when the journal is created.
    pub segments_min: u32,
    /// Segments at the most, at least 2; then [`JournalError::Full`] until something is released.
    pub segments_max: u32,
}

impl JournalConfig {
    /// A journal of 16 MiB segments, 1 GiB at the most.
    pub fn new(name: &str, id: u128) -> Self {
        Self { name: name.to_owned(), id, segment_bytes: 16 * MIB, segments_min: 2, segments_max: 64 }
    }

    /// Checks what the documentation of the fields demands.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn validate(&self) -> Result<(), String> {
        if self.segment_bytes < 2 * BLOCK_BYTES || !self.segment_bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(format!("segment_bytes is {}, not a multiple of 4096 from 8192 on", self.segment_bytes));
        }
        if self.segment_bytes > u64::from(u32::MAX) {
            return Err(format!("segment_bytes is {}, more than a record's length can say", self.segment_bytes));
        }
        if self.segments_max < 2 || self.segments_min > self.segments_max {
            return Err(format!("segments_max is {}, below 2 or below segments_min", self.segments_max));
        }
        crate::disk::check_name(&self.name).map_err(|error| error.to_string())
    }
}

/// How full a journal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the segments from the head to the end.
    pub used_bytes: u64,
    /// Bytes of all segments there may be. Release, by a checkpoint or a snapshot, well before they are used.
    pub capacity_bytes: u64,
}

/// An open journal. One thread at a time; nothing runs behind the caller's back.
pub struct Journal<D: Disk> {
    segments: Segments<D>,
    /// Records before this were released.
    head: u64,
    /// Everything before this is durable.
    durable: u64,
    /// Where the next record goes, if it fits there.
    end: u64,
    /// Everything before this is written, though perhaps not durable.
    written: u64,
    /// What is not written yet, and the beginning of its first block; all in the newest segment.
    tail: Tail,
    life: u32,
    poisoned: bool,
    torn: bool,
}

impl<D: Disk> Journal<D> {
    /// Opens a journal, or makes one where there is none, and hands all live records to `replay` in order.
    ///
    /// On return everything replayed is durable (it may not have been before: a killed process leaves records that only
    /// the page cache holds), and a torn tail is cut off.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when something durable is gone; [`JournalError::Replay`] with the error of `replay`,
    /// after which nothing was changed; others as their documentation says.
    ///
    /// # Panics
    /// When the configuration is not valid; see [`JournalConfig::validate`].
    pub fn open(
        disk: D,
        config: &JournalConfig,
        replay: impl FnMut(Position, &[u8]) -> Result<(), ReplayError>,
    ) -> Result<Self, JournalError> {
        if let Err(reason) = config.validate() {
            panic!("journal {}: {reason}", config.name);
        }
        let found = recovery::recover(disk, config, replay)?;
        let begun = found.segments.read_begun_block(found.end)?;
        Ok(Self {
            segments: found.segments,
            head: found.head,
            durable: found.end,
            written: found.end,
            end: found.end,
            tail: Tail::new(found.end - begun.len() as u64, &begun),
            life: found.life,
            poisoned: false,
            torn: found.torn,
        })
    }

    /// Whether the opening found, and cut off, a record that a power loss had torn. For tests that count them.
    pub fn found_torn(&self) -> bool {
        self.torn
    }

    /// Adds one record, made of several slices so that nobody has to join them first. Returns its position.
    ///
    /// **Not durable**, and not even written, before [`Journal::sync`]. May sync earlier records when a segment is full.
    ///
    /// # Errors
    /// [`JournalError::TooLong`], [`JournalError::Full`], [`JournalError::NoSpace`]: nothing was added, the journal goes
    /// on. Any other: the journal is poisoned.
    pub fn append(&mut self, parts: &[&[u8]]) -> Result<Position, JournalError> {
        self.check()?;
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let bytes_max = self.record_bytes_max();
        if bytes > bytes_max {
            return Err(JournalError::TooLong { bytes, bytes_max });
        }
        let room = self.segments.end_of_newest().map_or(0, |limit| limit - self.end);
        if record_bytes(bytes) > room {
            self.begin_segment()?;
        }
        let position = self.end;
        let stamp = Stamp { id: self.segments.facts.id, durable: self.durable, life: self.life };
        self.tail.append(record_bytes(bytes), |into| encode_record(into, parts, position, stamp));
        self.end += record_bytes(bytes);
        assert_eq!(self.tail.end(), self.end, "the tail ends where the log does");
        if self.end - self.written >= WRITE_BEHIND_BYTES {
            self.write_behind()?;
        }
        Ok(Position(position))
    }

    /// Makes everything appended durable, with one write and one sync for all of it. Returns [`Journal::durable`].
    ///
    /// # Errors
    /// The journal is poisoned: nothing may be concluded about records since the last success.
    pub fn sync(&mut self) -> Result<Position, JournalError> {
        self.check()?;
        if self.durable == self.end {
            return Ok(Position(self.durable));
        }
        if self.written == self.durable {
            let result = self.tail.as_blocks(|blocks, from| self.segments.write_newest_durable(blocks, from));
            self.guard(result)?;
            self.written = self.end;
            self.tail.written();
        } else {
            // A part was written behind, and no write makes another one durable.
            self.write_behind()?;
            let result = self.segments.sync_newest();
            self.guard(result)?;
        }
        self.durable = self.end;
        Ok(Position(self.durable))
    }

    /// Records before `position` are no longer needed. Costs nothing: the space is used again when a segment is begun,
    /// and until then a crash may deliver them again. See [`Journal::sync_head`].
    ///
    /// A position above the end counts as the end.
    pub fn release_below(&mut self, position: Position) {
        self.head = self.head.max(position.0.min(self.end));
    }

    /// Makes the releases so far durable: records before [`Journal::head`] are never delivered again. For those who use
    /// what these records spoke of for something else; space of the journal itself needs no such call.
    ///
    /// # Errors
    /// The journal is poisoned.
    pub fn sync_head(&mut self) -> Result<(), JournalError> {
        self.check()?;
        // Only what is durable can be released for ever: the head must not overtake the log.
        self.sync()?;
        if self.segments.facts.head < self.head {
            let result = self.write_super(self.head);
            self.guard(result)?;
        }
        Ok(())
    }

    fn write_super(&mut self, head: u64) -> Result<(), JournalError> {
        let (durable, life) = (self.durable, self.life);
        self.segments.write_super(|facts| (facts.head, facts.durable, facts.life) = (head, durable, life))
    }

    /// Reads one record back, from memory or disk.
    ///
    /// # Errors
    /// [`JournalError::Damaged`] when there is no whole record there; it must not have been released.
    pub fn read(&self, position: Position) -> Result<Vec<u8>, JournalError> {
        if position.0 >= self.written && position.0 < self.end {
            let bytes = self.tail.from(position.0);
            let record = decode_record(bytes, self.segments.facts.id, position.0);
            return record.map(|record| record.payload.to_vec()).ok_or_else(|| self.no_record(position, "in memory"));
        }
        self.segments.read(position.0)?.ok_or_else(|| self.no_record(position, "on disk"))
    }

    fn no_record(&self, position: Position, place: &str) -> JournalError {
        let (file, offset) = self.segments.place_of(position.0);
        JournalError::Damaged { file, offset, position, what: format!("no record begins here, {place}") }
    }

    /// First position that was not released. A record begins here, unless the journal is empty.
    pub fn head(&self) -> Position {
        Position(self.head)
    }

    /// Records before this are durable.
    pub fn durable(&self) -> Position {
        Position(self.durable)
    }

    /// Position after the last record appended.
    pub fn end(&self) -> Position {
        Position(self.end)
    }

    /// Largest payload of a record, in bytes.
    pub fn record_bytes_max(&self) -> u64 {
        self.segments.body_bytes() - RECORD_HEADER_BYTES
    }

    /// How full the journal is.
    pub fn usage(&self) -> Usage {
        self.segments.usage(self.head)
    }

    /// Whether an earlier failure has ended this journal's life; everything but reading then fails.
    pub fn poisoned(&self) -> bool {
        self.poisoned
    }

    fn check(&self) -> Result<(), JournalError> {
        if self.poisoned { Err(JournalError::Poisoned) } else { Ok(()) }
    }

    /// Poisons the journal when something failed that leaves the disk in doubt.
    fn guard<T>(&mut self, result: Result<T, JournalError>) -> Result<T, JournalError> {
        result.inspect_err(|error| self.poisoned |= error.is_fatal())
    }

    /// Hands what is not written to the kernel, without a sync.
    fn write_behind(&mut self) -> Result<(), JournalError> {
        if self.written == self.end {
            return Ok(());
        }
        let result = self.segments.write_newest(self.tail.from(self.written), self.written);
        self.guard(result)?;
        self.written = self.end;
        self.tail.written();
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(), JournalError> {
        self.sync()?;
        let start = self.segments.start_of_next();
        // With nothing live, the end of the segment behind is nobody's either.
        let head = if self.head == self.end { start } else { self.head };
        if !self.segments.has_room(head) {
            return Err(JournalError::Full(self.segments.usage(head)));
        }
        // At every segment, so that a crash never delivers again what was released long ago.
        if self.segments.any_released(head) {
            let result = self.write_super(head);
            self.guard(result)?;
        }
        let result = self.segments.begin(self.end);
        self.guard(result)?;
        (self.head, self.end, self.written, self.durable) = (head, start, start, start);
        self.tail = Tail::new(start, &[]);
        Ok(())
    }
}

impl<D: Disk> fmt::Debug for Journal<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("head", &self.head)
            .field("durable", &self.durable)
            .field("end", &self.end)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

/// What a fresh journal's superblock says.
fn first_facts(config: &JournalConfig) -> SuperFacts {
    SuperFacts { id: config.id, generation: 0, life: 0, head: 0, durable: 0, segment_bytes: config.segment_bytes }
}

/// Fills a buffer from a file; named so that errors can say what was being done.
fn read_at<F: DiskFile>(file: &F, name: &str, bytes: u64, offset: u64) -> Result<Vec<u8>, JournalError> {
    let mut buffer = vec![0; bytes as usize];
    if buffer.is_empty() {
        return Ok(buffer); // Perhaps beyond the end, where nothing is to be read.
    }
    file.read_at(&mut buffer, offset).map_err(|error| JournalError::io("read", name, error))?;
    Ok(buffer)
}
