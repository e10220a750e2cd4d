//! What an operation or a read touches, so that overlaps can be found.

use crate::local::{Change, KeyRange};
use holdfast_types::ChunkKey;

/// Some bytes of one chunk, or all bytes of a range of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// Bytes `from .. to` of a chunk.
    Bytes {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte.
        from: u32,
        /// Byte after the last.
        to: u32,
    },
    /// Everything about these chunks.
    Keys(KeyRange),
    /// Nothing.
    Nothing,
}

impl Span {
    /// What a change touches.
    pub(crate) fn of(change: &Change) -> Self {
        match *change {
            Change::Write { chunk, offset, ref bytes, .. } => {
                Self::Bytes { chunk, from: offset, to: offset.saturating_add(bytes.len() as u32) }
            }
            Change::Zero { chunk, offset, length } => {
                Self::Bytes { chunk, from: offset, to: offset.saturating_add(length) }
            }
            Change::Cut { chunk, length } => Self::Bytes { chunk, from: length, to: u32::MAX },
            Change::Delete { .. }
            | Change::DeleteChunk { .. }
            | Change::DeleteVolume { .. }
            | Change::Copy { .. }
            | Change::Mend { .. } => change.keys().map_or(Self::Nothing, Self::Keys),
            Change::Mark => Self::Nothing,
        }
    }

    /// The chunks it touches.
    pub(crate) fn keys(&self) -> Option<KeyRange> {
        match *self {
            Self::Bytes { chunk, .. } => Some(KeyRange::chunk(chunk)),
            Self::Keys(range) => Some(range),
            Self::Nothing => None,
        }
    }

    /// Whether it touches a chunk at all.
    pub(crate) fn touches(&self, chunk: ChunkKey) -> bool {
        self.keys().is_some_and(|keys| keys.contains(chunk))
    }

    /// Whether some byte belongs to both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bytes { chunk: a, from: f, to: t }, Self::Bytes { chunk: b, from: g, to: u }) => {
                a == b && f < u && g < t
            }
            _ => match (self.keys(), other.keys()) {
                (Some(a), Some(b)) => a.overlaps(&b),
                _ => false,
            },
        }
    }
}
