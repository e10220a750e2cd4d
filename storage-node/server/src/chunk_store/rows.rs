//! Rows of the index: keys and values, drawn.
//!
//! ```text
//! key                                                        value
//! 'a'                                                        applied: format u8 | journal position u64
//! 'k'                                                        checkpoint: format u8 | journal position u64
//! 'c' group volume inode generation index born               chunk:   format u8 | length u32 | epoch u64 | count u64
//!                                                                     | contenders u16 | extents u16
//!                                                                     | { session u64 | last u64 | cut u64 }
//!                                                                     | { at u16 | blocks u16 | file u32 | start u32 }
//! 'g' group                                                  group:   format u8 | last 16 | settled 16 | 0 u8
//! 'h' group epoch count                                      touched: codec version u8 | ranges of chunk keys
//! 's' group volume inode generation index born row           sums:    format u8 | written u64 | { crc32 u32 per bit }
//! ```
//!
//! * Keys are big-endian, so that their order is (group, volume, inode, generation, index, born); values little-endian.
//! * Sums have rows of their own, 64 blocks each: a small write rewrites one small row, and the scan that rebuilds the
//!   map of free space at every start reads chunks alone.
//! * A sum covers all 4,096 bytes of its block, zeros beyond the chunk's length included; so a chunk that grows past a
//!   short last block leaves that block's sum as it was. A block that was never written has no bit and reads as zeros,
//!   whether or not space is allocated for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_storage_core::local::{Contenders, KeyRange};
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BLOCKS};
use holdfast_types::{Epoch, OpCount, OpNumber, Sequence, SessionId};
use holdfast_wire::codec;
use holdfast_wire::group::Contender;

/// Format of every row's value.
const FORMAT: u8 = 1;
/// Blocks of one sums row.
pub(crate) const ROW_BLOCKS: u32 = 64;
/// Sums rows of a chunk.
pub(crate) const CHUNK_ROWS: u32 = CHUNK_BLOCKS as u32 / ROW_BLOCKS;
/// Key of the row that says how far the journal is applied: a journal that ends before has lost records.
pub(crate) const APPLIED_KEY: &[u8] = b"a";
/// Key of the row that says from where the journal is to be replayed: everything before is in the extents and the index.
pub(crate) const CHECKPOINT_KEY: &[u8] = b"k";
/// CRC-32 of a block of zeros.
pub(crate) const ZERO_SUM: u32 = 0xc71c_0011;

const _: () = assert!(ROW_BLOCKS == u64::BITS && CHUNK_BLOCKS <= u16::MAX as u64);
const _: () = assert!(BLOCK_BYTES == 4096, "ZERO_SUM is that of 4,096 zeros");

/// A row that does not decode. The index is damaged, and with it every statement of absence.
#[derive(Debug, thiserror::Error)]
#[error("index row {key:02x?} is malformed")]
pub(crate) struct BadRow {
    key: Vec<u8>,
}

/// Some blocks of a chunk and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First block within the chunk.
    pub at: u32,
    /// How many.
    pub blocks: u32,
    /// Which extent file.
    pub file: u32,
    /// First block within the file.
    pub start: u32,
}

impl Extent {
    pub fn end(&self) -> u32 {
        self.at + self.blocks
    }
}

/// What the index says of a chunk. Extents are sorted and do not overlap; what none covers reads as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChunkRow {
    pub length: u32,
    pub number: OpNumber,
    pub extents: Vec<Extent>,
    pub contenders: Contenders,
}

impl ChunkRow {
    /// The extent that holds a block, if any does.
    pub fn extent_of(&self, block: u32) -> Option<&Extent> {
        let after = self.extents.partition_point(|extent| extent.at <= block);
        self.extents[..after].last().filter(|extent| block < extent.end())
    }

    /// As good as absent.
    pub fn is_empty(&self) -> bool {
        self.length == 0 && self.contenders.is_empty()
    }

    /// Blocks that have space.
    pub fn allocated(&self) -> u32 {
        self.extents.iter().map(|extent| extent.blocks).sum()
    }

    /// Blocks up to the chunk's length.
    pub fn blocks(&self) -> u32 {
        self.length.div_ceil(BLOCK_BYTES as u32)
    }

    pub fn encode(&self) -> Bytes {
        let contenders = self.contenders.list();
        let mut out = BytesMut::with_capacity(25 + 12 * self.extents.len() + 24 * contenders.len());
        out.put_u8(FORMAT);
        out.put_u32_le(self.length);
        put_number(&mut out, self.number);
        out.put_u16_le(contenders.len() as u16);
        out.put_u16_le(self.extents.len() as u16);
        for contender in contenders {
            out.put_u64_le(contender.session.0);
            out.put_u64_le(contender.last.0);
            out.put_u64_le(contender.cut.0);
        }
        for extent in &self.extents {
            out.put_u16_le(extent.at as u16);
            out.put_u16_le(extent.blocks as u16);
            out.put_u32_le(extent.file);
            out.put_u32_le(extent.start);
        }
        out.freeze()
    }

    pub fn decode(key: &[u8], mut value: &[u8]) -> Result<Self, BadRow> {
        let bad = || BadRow { key: key.to_vec() };
        if value.len() < 25 || value.get_u8() != FORMAT {
            return Err(bad());
        }
        let length = value.get_u32_le();
        let number = get_number(&mut value);
        let contending = value.get_u16_le() as usize;
        let count = value.get_u16_le() as usize;
        if value.len() != contending * 24 + count * 12 {
            return Err(bad());
        }
        let contender = |value: &mut &[u8]| Contender {
            session: SessionId(value.get_u64_le()),
            last: Sequence(value.get_u64_le()),
            cut: Sequence(value.get_u64_le()),
        };
        let contenders = (0..contending).map(|_| contender(&mut value)).collect();
        let contenders = Contenders::from_list(contenders).ok_or_else(bad)?;
        let extents: Vec<Extent> = (0..count)
            .map(|_| Extent {
                at: u32::from(value.get_u16_le()),
                blocks: u32::from(value.get_u16_le()),
                file: value.get_u32_le(),
                start: value.get_u32_le(),
            })
            .collect();
        let ordered = extents.windows(2).all(|pair| pair[0].end() <= pair[1].at);
        let bounded = extents.iter().all(|extent| extent.blocks > 0 && extent.end() <= CHUNK_BLOCKS as u32);
        if !ordered || !bounded { Err(bad()) } else { Ok(Self { length, number, extents, contenders }) }
    }
}

/// Sums of 64 consecutive blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SumsRow {
    /// Bit `i`: block `i` of the row was written.
    pub written: u64,
    /// Sums of written blocks; [`ZERO_SUM`] for the others.
    pub sums: [u32; ROW_BLOCKS as usize],
}

impl Default for SumsRow {
    fn default() -> Self {
        Self { written: 0, sums: [ZERO_SUM; ROW_BLOCKS as usize] }
    }
}

impl SumsRow {
    /// The sum of a block of the row that was written.
    pub fn get(&self, slot: u32) -> Option<u32> {
        (self.written >> slot & 1 == 1).then(|| self.sums[slot as usize])
    }

    pub fn set(&mut self, slot: u32, sum: u32) {
        self.written |= 1 << slot;
        self.sums[slot as usize] = sum;
    }

    pub fn clear(&mut self, slot: u32) {
        self.written &= !(1 << slot);
        self.sums[slot as usize] = ZERO_SUM;
    }

    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(9 + 4 * self.written.count_ones() as usize);
        out.put_u8(FORMAT);
        out.put_u64_le(self.written);
        for slot in 0..ROW_BLOCKS {
            if let Some(sum) = self.get(slot) {
                out.put_u32_le(sum);
            }
        }
        out.freeze()
    }

    pub fn decode(key: &[u8], mut value: &[u8]) -> Result<Self, BadRow> {
        let bad = || BadRow { key: key.to_vec() };
        if value.len() < 9 || value.get_u8() != FORMAT {
            return Err(bad());
        }
        let mut row = Self { written: value.get_u64_le(), ..Self::default() };
        if value.len() != 4 * row.written.count_ones() as usize {
            return Err(bad());
        }
        for slot in 0..ROW_BLOCKS {
            if row.written >> slot & 1 == 1 {
                row.sums[slot as usize] = value.get_u32_le();
            }
        }
        Ok(row)
    }
}

/// What the index says of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupRow {
    pub last: OpNumber,
    pub settled: OpNumber,
}

impl GroupRow {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(34);
        out.put_u8(FORMAT);
        put_number(&mut out, self.last);
        put_number(&mut out, self.settled);
        out.put_u8(0);
        out.freeze()
    }

    pub fn decode(key: &[u8], mut value: &[u8]) -> Result<Self, BadRow> {
        if value.len() != 34 || value.get_u8() != FORMAT {
            return Err(BadRow { key: key.to_vec() });
        }
        Ok(Self { last: get_number(&mut value), settled: get_number(&mut value) })
    }
}

pub(crate) fn encode_position(position: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(FORMAT);
    out.put_u64_le(position);
    out.freeze()
}

pub(crate) fn decode_position(key: &[u8], mut value: &[u8]) -> Result<u64, BadRow> {
    if value.len() != 9 || value.get_u8() != FORMAT {
        return Err(BadRow { key: key.to_vec() });
    }
    Ok(value.get_u64_le())
}

/// The keys that operations of one number touched. There are several when copies for one member bear the same number.
pub(crate) fn encode_touched(ranges: &[KeyRange]) -> Bytes {
    codec::encode(ranges)
}

pub(crate) fn decode_touched(key: &[u8], value: &[u8]) -> Result<Vec<KeyRange>, BadRow> {
    codec::decode(value).map_err(|_| BadRow { key: key.to_vec() })
}

fn put_number(out: &mut BytesMut, number: OpNumber) {
    out.put_u64_le(number.epoch.0);
    out.put_u64_le(number.count.0);
}

fn get_number(from: &mut &[u8]) -> OpNumber {
    OpNumber { epoch: Epoch(from.get_u64_le()), count: OpCount(from.get_u64_le()) }
}
