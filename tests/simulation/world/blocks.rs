//! Bytes that tell where they come from.
//!
//! A file is looked at in slots of 1,536 bytes, of which 32 lie at its beginning and 32 across the first chunk's end. A slot holds
//! one value: the number of the write that it comes from, or 0. Slots do not tile blocks, so most writes cover some in part.

use holdfast_client_core::Seek;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES};

/// Bytes of a slot.
pub(super) const SLOT_BYTES: u64 = 1536;
/// Slots of a file.
pub(super) const SLOTS: u64 = 64;
/// Slots of one region.
pub(super) const REGION: u64 = SLOTS / 2;

/// Where a slot begins.
pub(super) fn offset_of(slot: u64) -> u64 {
    if slot < REGION { slot * SLOT_BYTES } else { CHUNK_BYTES - REGION / 2 * SLOT_BYTES + (slot - REGION) * SLOT_BYTES }
}

/// The slots that a range covers, which begins at a slot's beginning.
pub(super) fn slots_of(offset: u64, bytes: u64) -> std::ops::Range<u64> {
    let first = first_slot_from(offset);
    debug_assert_eq!(offset_of(first), offset, "scripts touch whole slots");
    first..first + bytes / SLOT_BYTES
}

/// The slots that have a byte in what an answer of lseek(2) calls a hole.
pub(super) fn slots_of_hole(offset: u64, seek: Seek, at: Option<u64>) -> impl Iterator<Item = u64> {
    let (start, end) = match (seek, at) {
        (Seek::Data, Some(at)) => (offset, at),
        (Seek::Hole, Some(at)) => (at, (at + 1).next_multiple_of(BLOCK_BYTES)),
        (_, None) => (offset, u64::MAX),
    };
    (0..SLOTS).filter(move |slot| {
        let first = offset_of(*slot);
        start < end && first < end && first + SLOT_BYTES > start
    })
}

/// The first slot at or after an offset.
pub(super) fn first_slot_from(offset: u64) -> u64 {
    (0..SLOTS).find(|slot| offset_of(*slot) >= offset).unwrap_or(SLOTS)
}

/// The bytes of a value in some slots.
pub(super) fn fill(value: u64, slots: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(((slots.end - slots.start) * SLOT_BYTES) as usize);
    for slot in slots {
        let word = (value << 8 | slot).to_le_bytes();
        (0..SLOT_BYTES / 8).for_each(|_| bytes.extend(word));
    }
    bytes
}

/// The value that a slot's bytes hold.
pub(super) fn value_in(slot: u64, bytes: &[u8]) -> Result<u64, String> {
    // A file that ends before reads as if zeros followed.
    let mut words = bytes.chunks(8).map(|word| {
        let mut whole = [0; 8];
        whole[..word.len()].copy_from_slice(word);
        u64::from_le_bytes(whole)
    });
    let first = words.next().unwrap_or(0);
    if bytes.len() as u64 != SLOT_BYTES && bytes.iter().any(|byte| *byte != 0) {
        return Err(format!("slot {slot} ends after {} bytes that are not zero", bytes.len()));
    }
    if let Some(other) = words.find(|word| *word != first) {
        return Err(format!("slot {slot} is torn: {first:x} and {other:x}"));
    }
    if first != 0 && first & 0xff != slot {
        return Err(format!("slot {slot} holds what was written to slot {}", first & 0xff));
    }
    Ok(first >> 8)
}
