//! The bytes of a journal on disk. All numbers are little-endian; every structure begins with what identifies it.
//!
//! ```text
//! NAME.super                two copies, 4 KiB apart, written in turn: a torn write spoils one of them only
//!   0  magic "HFJSUPER"     40  life u32          64  segment_bytes u64
//!   8  crc32 of 12..72      44  zero u32
//!  12  format u16, zero u16 48  head u64          first live position; what lies below may be gone
//!  16  journal id u128      56  durable u64       a position that was durable when this was written
//!  32  generation u64                             the valid copy with the greater one counts
//!
//! NAME.000000 …             segments of `segment_bytes`: written once as zeros, then used again and again
//!   0  magic "HFJSEGMT"     16  journal id u128
//!   8  crc32 of 12..48      32  sequence u64      which stretch of positions the file holds now
//!  12  format u16, zero u16 40  previous_end u64  where the records of the segment before end: it was complete and
//!                                                 synced before this header was written
//! 4096 records, each beginning at a multiple of 8:
//!   0  crc32 of the journal id, 4..32 and the payload
//!   4  length u32           of the payload
//!   8  position u64         of this record; never used twice for different places, so what an earlier use of the
//!                           file left cannot be taken for a record of now
//!  16  durable u64          a position that was durable before this was written: a hole below it is damage, not a tear
//!  24  life u32             which opening of the journal wrote it; never falls along the log, so what an earlier life
//!                           wrote beyond the cut of its torn tail cannot follow a record of this life
//!  28  zero u32
//!  32  payload, then zeros up to a multiple of 8
//! ```
//!
//! A position `p` lies in segment `p / body` at `4096 + p % body`, where `body = segment_bytes - 4096`.

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Versions of the format, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Format {
    /// First release.
    V1 = 1,
}

/// Distance of the two superblocks, and the room before the first record of a segment, in bytes. No disk of today has
/// larger sectors, so a torn write of one thing never reaches another.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Records begin at multiples of this, in bytes.
pub(super) const ALIGNMENT: u64 = 8;
pub(super) const RECORD_HEADER_BYTES: u64 = size_of::<RecordHeader>() as u64;

const SUPER_MAGIC: [u8; 8] = *b"HFJSUPER";
const SEGMENT_MAGIC: [u8; 8] = *b"HFJSEGMT";
/// Where sums of superblocks and segment headers begin: after the magic and the sum.
const SUM_FROM: usize = 12;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Superblock {
    magic: [u8; 8],
    crc: U32,
    format: U16,
    zero: U16,
    pub(super) id: U128,
    pub(super) generation: U64,
    pub(super) life: U32,
    zero2: U32,
    pub(super) head: U64,
    pub(super) durable: U64,
    pub(super) segment_bytes: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SegmentHeader {
    magic: [u8; 8],
    crc: U32,
    format: U16,
    zero: U16,
    pub(super) id: U128,
    pub(super) sequence: U64,
    pub(super) previous_end: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RecordHeader {
    pub(super) crc: U32,
    pub(super) length: U32,
    pub(super) position: U64,
    pub(super) durable: U64,
    pub(super) life: U32,
    zero: U32,
}

const _: () = assert!(size_of::<Superblock>() == 72 && size_of::<SegmentHeader>() == 48);
const _: () = assert!(size_of::<RecordHeader>() == 32 && RECORD_HEADER_BYTES.is_multiple_of(ALIGNMENT));

/// What a block of bytes that should be a superblock or a segment header turned out to be.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// Not one, or a torn one.
    Nothing,
    /// One that a later release wrote.
    Unknown(u16),
    Valid(T),
}

/// The common checks of both kinds.
fn found<T: FromBytes + Immutable + KnownLayout>(bytes: &[u8], magic: [u8; 8]) -> Found<T> {
    let Some(bytes) = bytes.get(..size_of::<T>()) else { return Found::Nothing };
    let sum = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    if bytes[..8] != magic || sum != crc32fast::hash(&bytes[SUM_FROM..]) {
        return Found::Nothing;
    }
    let format = u16::from_le_bytes([bytes[12], bytes[13]]);
    match T::read_from_bytes(bytes) {
        Ok(value) if format == Format::V1 as u16 => Found::Valid(value),
        _ => Found::Unknown(format),
    }
}

fn sum(bytes: &[u8]) -> U32 {
    crc32fast::hash(&bytes[SUM_FROM..]).into()
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SuperFacts {
    pub(super) id: u128,
    pub(super) generation: u64,
    pub(super) life: u32,
    pub(super) head: u64,
    pub(super) durable: u64,
    pub(super) segment_bytes: u64,
}

impl Superblock {
    pub(super) fn encode(facts: &SuperFacts) -> Vec<u8> {
        let mut block = Self {
            magic: SUPER_MAGIC,
            crc: 0.into(),
            format: (Format::V1 as u16).into(),
            zero: 0.into(),
            id: facts.id.into(),
            generation: facts.generation.into(),
            life: facts.life.into(),
            zero2: 0.into(),
            head: facts.head.into(),
            durable: facts.durable.into(),
            segment_bytes: facts.segment_bytes.into(),
        };
        block.crc = sum(block.as_bytes());
        block.as_bytes().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Found<SuperFacts> {
        match found::<Self>(bytes, SUPER_MAGIC) {
            Found::Nothing => Found::Nothing,
            Found::Unknown(format) => Found::Unknown(format),
            Found::Valid(block) => Found::Valid(SuperFacts {
                id: block.id.get(),
                generation: block.generation.get(),
                life: block.life.get(),
                head: block.head.get(),
                durable: block.durable.get(),
                segment_bytes: block.segment_bytes.get(),
            }),
        }
    }
}

impl SegmentHeader {
    pub(super) fn encode(id: u128, sequence: u64, previous_end: u64) -> Vec<u8> {
        let mut header = Self {
            magic: SEGMENT_MAGIC,
            crc: 0.into(),
            format: (Format::V1 as u16).into(),
            zero: 0.into(),
            id: id.into(),
            sequence: sequence.into(),
            previous_end: previous_end.into(),
        };
        header.crc = sum(header.as_bytes());
        header.as_bytes().to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Found<Self> {
        found(bytes, SEGMENT_MAGIC)
    }
}

/// Bytes that a record with such a payload takes.
pub(super) fn record_bytes(payload_bytes: u64) -> u64 {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(ALIGNMENT)
}

/// What is the same for all records that are written between two syncs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub(super) id: u128,
    pub(super) durable: u64,
    pub(super) life: u32,
}

/// The sum of a record. The id is in it so that bytes from elsewhere, a client's data included, cannot pose as one.
fn record_sum<'a>(id: u128, header: &RecordHeader, payload: impl Iterator<Item = &'a [u8]>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(&header.as_bytes()[4..]);
    payload.for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Appends a record to a buffer.
pub(super) fn encode_record(into: &mut Vec<u8>, parts: &[&[u8]], position: u64, stamp: Stamp) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let start = into.len();
    let mut header = RecordHeader {
        crc: 0.into(),
        length: u32::try_from(length).expect("the caller bounds records").into(),
        position: position.into(),
        durable: stamp.durable.into(),
        life: stamp.life.into(),
        zero: 0.into(),
    };
    header.crc = record_sum(stamp.id, &header, parts.iter().copied()).into();
    into.reserve(record_bytes(length as u64) as usize);
    into.extend_from_slice(header.as_bytes());
    for part in parts {
        into.extend_from_slice(part);
    }
    into.resize(start + record_bytes(length as u64) as usize, 0);
}

/// A valid record found in some bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub(super) payload: &'a [u8],
    pub(super) durable: u64,
    pub(super) life: u32,
}

/// The record that begins with `bytes` and belongs at `position`; `None` when there is no such, or not a whole one.
pub(super) fn decode_record(bytes: &[u8], id: u128, position: u64) -> Option<Record<'_>> {
    let (header, rest) = RecordHeader::ref_from_prefix(bytes).ok()?;
    // The position first: it is what tells most wrong places apart, without summing.
    if header.position.get() != position {
        return None;
    }
    let payload = rest.get(..header.length.get() as usize)?;
    let whole = record_sum(id, header, std::iter::once(payload)) == header.crc.get() && header.life.get() > 0;
    whole.then(|| Record { payload, durable: header.durable.get(), life: header.life.get() })
}
