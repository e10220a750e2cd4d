//! A journal record: everything that is needed to make one operation so, again and again.
//!
//! ```text
//! format u8 | rows u32 | ranges u32 | places u32
//! rows:    { key length u16 | value length u32 (2^32-1: remove) | key | value }
//! ranges:  { start length u16 | end length u16 | start | end }
//! places:  { file u32 | start block u32 | blocks u32 }
//! bytes of all places, in order
//!
//! format u8 (2) | position u64                a checkpoint: the index was persisted with this position
//! ```
//!
//! * Redo is physical: rows as they are to be, whole blocks and where they go. It reads nothing and decides nothing, so
//!   it may run over a state that is older, newer or torn, any number of times.
//! * Ranges of keys are removed first, then rows are put.
//! * A place is whole blocks: what an operation changed in part was verified and merged before the record was made, so
//!   a block that a crash tore is rewritten as a whole and never has to be believed.

use bytes::{Buf, BufMut, Bytes};
use holdfast_types::limits::BLOCK_BYTES;

use super::keys::Keys;

const FORMAT: u8 = 1;
const FORMAT_CHECKPOINT: u8 = 2;
const HEADER_BYTES: usize = 13;
const REMOVED: u32 = u32::MAX;

/// Whole blocks and where they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub file: u32,
    pub start: u32,
    pub bytes: Bytes,
}

impl Placed {
    pub fn blocks(&self) -> u32 {
        (self.bytes.len() as u64 / BLOCK_BYTES) as u32
    }
}

/// What one operation does to the index and to the extents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub rows: Vec<(Bytes, Option<Bytes>)>,
    pub ranges: Vec<Keys>,
    pub places: Vec<Placed>,
}

impl Record {
    /// Its length when encoded.
    pub fn bytes(&self) -> usize {
        self.head_bytes() + self.places.iter().map(|p| p.bytes.len()).sum::<usize>()
    }

    fn head_bytes(&self) -> usize {
        let rows: usize = self.rows.iter().map(|(k, v)| 6 + k.len() + v.as_ref().map_or(0, Bytes::len)).sum();
        let ranges: usize = self.ranges.iter().map(|r| 4 + r.start.len() + r.end.len()).sum();
        HEADER_BYTES + rows + ranges + 12 * self.places.len()
    }

    /// All but the bytes of the places, which follow as they are: nobody has to copy them to join them.
    pub fn encode_head(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.head_bytes());
        out.put_u8(FORMAT);
        out.put_u32_le(self.rows.len() as u32);
        out.put_u32_le(self.ranges.len() as u32);
        out.put_u32_le(self.places.len() as u32);
        for (key, value) in &self.rows {
            out.put_u16_le(key.len() as u16);
            out.put_u32_le(value.as_ref().map_or(REMOVED, |value| value.len() as u32));
            out.put_slice(key);
            out.put_slice(value.as_deref().unwrap_or_default());
        }
        for range in &self.ranges {
            out.put_u16_le(range.start.len() as u16);
            out.put_u16_le(range.end.len() as u16);
            out.put_slice(&range.start);
            out.put_slice(&range.end);
        }
        for place in &self.places {
            assert!(!place.bytes.is_empty() && (place.bytes.len() as u64).is_multiple_of(BLOCK_BYTES));
            out.put_u32_le(place.file);
            out.put_u32_le(place.start);
            out.put_u32_le(place.blocks());
        }
        out
    }

    /// The record as slices, for the journal to write one after the other. `head` is [`Record::encode_head`].
    pub fn parts<'a>(&'a self, head: &'a [u8]) -> Vec<&'a [u8]> {
        std::iter::once(head).chain(self.places.iter().map(|place| place.bytes.as_ref())).collect()
    }

    /// Decodes; none when the bytes are not a record of this format.
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        if rest.len() < HEADER_BYTES || rest.get_u8() != FORMAT {
            return None;
        }
        let (rows, ranges, places) = (rest.get_u32_le(), rest.get_u32_le(), rest.get_u32_le());
        let mut record = Self::default();
        for _ in 0..rows {
            let key = rest.try_get_u16_le().ok()?;
            let value = rest.try_get_u32_le().ok()?;
            let key = take(&mut rest, key as usize)?;
            let value = if value == REMOVED { None } else { Some(take(&mut rest, value as usize)?) };
            record.rows.push((key, value));
        }
        for _ in 0..ranges {
            let (start, end) = (rest.try_get_u16_le().ok()?, rest.try_get_u16_le().ok()?);
            record.ranges.push(Keys { start: take(&mut rest, start as usize)?, end: take(&mut rest, end as usize)? });
        }
        let mut headers = take(&mut rest, (places as usize).checked_mul(12)?)?;
        for _ in 0..places {
            let (file, start, blocks) = (headers.get_u32_le(), headers.get_u32_le(), headers.get_u32_le());
            let bytes = take(&mut rest, usize::try_from(u64::from(blocks) * BLOCK_BYTES).ok()?)?;
            record.places.push(Placed { file, start, bytes });
        }
        rest.is_empty().then_some(record)
    }
}

/// The record of a checkpoint: an index found with a lesser position has lost what was durable in it.
pub(crate) fn encode_checkpoint(position: u64) -> [u8; 9] {
    let mut out = [FORMAT_CHECKPOINT; 9];
    out[1..].copy_from_slice(&position.to_le_bytes());
    out
}

/// The position, if it is a checkpoint's record.
pub(crate) fn decode_checkpoint(bytes: &[u8]) -> Option<u64> {
    match bytes {
        [FORMAT_CHECKPOINT, position @ ..] => Some(u64::from_le_bytes(position.try_into().ok()?)),
        _ => None,
    }
}

fn take(from: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= from.len()).then(|| from.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        Record {
            rows: vec![(Bytes::from_static(b"c1"), Some(Bytes::from_static(b"v"))), (Bytes::from_static(b"s2"), None)],
            ranges: vec![Keys { start: Bytes::from_static(b"h1"), end: Bytes::from_static(b"h2") }],
            places: vec![
                Placed { file: 3, start: 9, bytes: Bytes::from(vec![7; 8192]) },
                Placed { file: 0, start: 0, bytes: Bytes::from(vec![8; 4096]) },
            ],
        }
    }

    fn encode(record: &Record) -> Bytes {
        let bytes = record.parts(&record.encode_head()).concat();
        assert_eq!(bytes.len(), record.bytes());
        bytes.into()
    }

    #[test]
    fn a_record_decodes_to_what_was_encoded() {
        assert_eq!(Record::decode(&encode(&sample())), Some(sample()));
        assert_eq!(Record::decode(&encode(&Record::default())), Some(Record::default()));
    }

    #[test]
    fn anything_shorter_or_longer_is_refused() {
        let whole = encode(&sample());
        assert!((0..whole.len()).all(|end| Record::decode(&whole.slice(..end)).is_none()));
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(Record::decode(&longer.into()), None);
    }
}
