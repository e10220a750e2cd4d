//! The files of a journal: which one holds which stretch of positions, which are free, and the superblock.
//!
//! * Live segments have consecutive sequences; all but the newest are complete and synced.
//! * A free file's header is older than the durable head, torn, or zero: recovery never takes it for a live one.

use super::format::{BLOCK_BYTES, RECORD_HEADER_BYTES, SegmentHeader, SuperFacts, Superblock, decode_record};
use super::{JournalError, Usage, read_at};
use crate::disk::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

/// A segment's file.
pub(super) struct Slot<F> {
    pub(super) name: String,
    pub(super) file: F,
}

/// All files of a journal.
pub(super) struct Segments<D: Disk> {
    pub(super) disk: D,
    pub(super) name: String,
    pub(super) segments_max: u32,
    /// As last written, durably.
    pub(super) facts: SuperFacts,
    pub(super) super_file: D::File,
    /// By sequence.
    pub(super) live: BTreeMap<u64, Slot<D::File>>,
    pub(super) free: Vec<Slot<D::File>>,
    /// Number in the name of the next file.
    pub(super) next_file: u32,
    /// Sequence of the next segment when none is live.
    pub(super) next_sequence: u64,
}

pub(super) fn super_name(journal: &str) -> String {
    format!("{journal}.super")
}

pub(super) fn slot_name(journal: &str, number: u32) -> String {
    format!("{journal}.{number:06}")
}

impl<D: Disk> Segments<D> {
    pub(super) fn body_bytes(&self) -> u64 {
        self.facts.segment_bytes - BLOCK_BYTES
    }

    /// Sequence of the segment that a position lies in.
    pub(super) fn sequence_of(&self, position: u64) -> u64 {
        position / self.body_bytes()
    }

    pub(super) fn offset_of(&self, position: u64) -> u64 {
        BLOCK_BYTES + position % self.body_bytes()
    }

    /// File and offset of a position, for messages.
    pub(super) fn place_of(&self, position: u64) -> (String, u64) {
        let slot = self.live.get(&self.sequence_of(position));
        (slot.map_or_else(|| format!("{}.?", self.name), |slot| slot.name.clone()), self.offset_of(position))
    }

    fn newest(&self) -> Option<(u64, &Slot<D::File>)> {
        self.live.last_key_value().map(|(sequence, slot)| (*sequence, slot))
    }

    /// First position after the newest segment; none when there is no segment.
    pub(super) fn end_of_newest(&self) -> Option<u64> {
        self.newest().map(|(sequence, _)| (sequence + 1) * self.body_bytes())
    }

    fn sequence_of_next(&self) -> u64 {
        self.newest().map_or(self.next_sequence, |(sequence, _)| sequence + 1)
    }

    /// First position of the segment that would be begun now.
    pub(super) fn start_of_next(&self) -> u64 {
        self.sequence_of_next() * self.body_bytes()
    }

    pub(super) fn usage(&self, head: u64) -> Usage {
        let first = self.sequence_of(head);
        let used = self.live.range(first..).count() as u64;
        let capacity_bytes = u64::from(self.segments_max) * self.facts.segment_bytes;
        Usage { used_bytes: used * self.facts.segment_bytes, capacity_bytes }
    }

    /// Whether one more segment may be begun, with everything below `head` given up.
    pub(super) fn has_room(&self, head: u64) -> bool {
        self.sequence_of_next() - self.sequence_of(head) < u64::from(self.segments_max)
    }

    /// Whether segments lie below `head` that the durable head still calls live.
    pub(super) fn any_released(&self, head: u64) -> bool {
        self.live.first_key_value().is_some_and(|(sequence, _)| *sequence < self.sequence_of(head))
    }

    /// Writes the superblock, changed, in place of the older copy. Durable on return.
    pub(super) fn write_super(&mut self, change: impl FnOnce(&mut SuperFacts)) -> Result<(), JournalError> {
        let mut facts = self.facts;
        change(&mut facts);
        facts.generation += 1;
        assert!(facts.head >= self.facts.head, "the head went back from {} to {}", self.facts.head, facts.head);
        let name = super_name(&self.name);
        let offset = facts.generation % 2 * BLOCK_BYTES;
        let bytes = Superblock::encode(&facts);
        self.super_file.write_at(&bytes, offset).map_err(|error| JournalError::io("write", &name, error))?;
        self.super_file.sync_data().map_err(|error| JournalError::io("sync", &name, error))?;
        self.facts = facts;
        self.free_released();
        Ok(())
    }

    /// Moves segments below the durable head to the free ones.
    fn free_released(&mut self) {
        let kept = self.live.split_off(&self.sequence_of(self.facts.head));
        let released = std::mem::replace(&mut self.live, kept);
        if let Some((last, _)) = released.last_key_value() {
            self.next_sequence = self.next_sequence.max(last + 1);
        }
        self.free.extend(released.into_values());
    }

    /// Begins the next segment, in a free file or a new one. Durable on return, as an empty segment.
    pub(super) fn begin(&mut self, previous_end: u64) -> Result<(), JournalError> {
        let sequence = self.sequence_of_next();
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => self.make_slot()?,
        };
        self.write_header(&slot, sequence, previous_end)?;
        slot.file.sync_data().map_err(|error| JournalError::io("sync", &slot.name, error))?;
        self.live.insert(sequence, slot);
        Ok(())
    }

    /// Says in a file which segment it holds. Not durable.
    pub(super) fn write_header(
        &self,
        slot: &Slot<D::File>,
        sequence: u64,
        previous_end: u64,
    ) -> Result<(), JournalError> {
        let header = SegmentHeader::encode(self.facts.id, sequence, previous_end);
        slot.file.write_at(&header, 0).map_err(|error| JournalError::io("write", &slot.name, error))
    }

    /// Makes a file of zeros, durable in name and bytes. On failure no trace is left, as far as the disk allows.
    pub(super) fn make_slot(&mut self) -> Result<Slot<D::File>, JournalError> {
        let name = slot_name(&self.name, self.next_file);
        let make = || -> io::Result<D::File> {
            let file = self.disk.create(&name)?;
            file.allocate(self.facts.segment_bytes)?;
            file.fill_zeros(0, self.facts.segment_bytes)?;
            file.sync_data()?;
            self.disk.sync_directory()?;
            Ok(file)
        };
        match make() {
            Ok(file) => {
                self.next_file += 1;
                Ok(Slot { name, file })
            }
            Err(error) => {
                // If this fails too, the next opening removes the file.
                let _ = self.disk.remove(&name);
                Err(match error.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => JournalError::NoSpace(error),
                    _ => JournalError::io("create", &name, error),
                })
            }
        }
    }

    /// Writes record bytes at a position of the newest segment.
    pub(super) fn write_newest(&self, bytes: &[u8], position: u64) -> Result<(), JournalError> {
        let (sequence, slot) = self.newest().expect("records are appended to a segment");
        assert_eq!(sequence, self.sequence_of(position), "a write outside the newest segment");
        slot.file
            .write_at(bytes, self.offset_of(position))
            .map_err(|error| JournalError::io("write", &slot.name, error))
    }

    /// As [`Segments::write_newest`], durable on return: whole blocks, for one request to the disk.
    pub(super) fn write_newest_durable(&self, blocks: &[u8], position: u64) -> Result<(), JournalError> {
        let (sequence, slot) = self.newest().expect("records are appended to a segment");
        let last = position + blocks.len() as u64 - 1;
        assert!(
            sequence == self.sequence_of(position) && sequence == self.sequence_of(last),
            "a write outside the newest segment"
        );
        slot.file
            .write_durable_at(blocks, self.offset_of(position))
            .map_err(|error| JournalError::io("write", &slot.name, error))
    }

    /// What the newest segment holds of the block that `end` lies in, before `end`.
    pub(super) fn read_begun_block(&self, end: u64) -> Result<Vec<u8>, JournalError> {
        let begun = end % BLOCK_BYTES;
        match self.newest() {
            Some((sequence, slot)) if sequence == self.sequence_of(end) => {
                read_at(&slot.file, &slot.name, begun, self.offset_of(end - begun))
            }
            // Nothing is live, or the newest is full: the next record begins a segment.
            _ => Ok(Vec::new()),
        }
    }

    pub(super) fn sync_newest(&self) -> Result<(), JournalError> {
        let Some((_, slot)) = self.newest() else { return Ok(()) };
        slot.file.sync_data().map_err(|error| JournalError::io("sync", &slot.name, error))
    }

    /// The payload of the record at a position; `None` when there is no whole record.
    pub(super) fn read(&self, position: u64) -> Result<Option<Vec<u8>>, JournalError> {
        let Some(slot) = self.live.get(&self.sequence_of(position)) else { return Ok(None) };
        let offset = self.offset_of(position);
        let left = self.facts.segment_bytes - offset;
        let header = read_at(&slot.file, &slot.name, RECORD_HEADER_BYTES.min(left), offset)?;
        let length = match header.get(4..8) {
            Some(bytes) => u64::from(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
            None => return Ok(None),
        };
        if RECORD_HEADER_BYTES + length > left {
            return Ok(None);
        }
        let bytes = read_at(&slot.file, &slot.name, RECORD_HEADER_BYTES + length, offset)?;
        Ok(decode_record(&bytes, self.facts.id, position).map(|record| record.payload.to_vec()))
    }
}
