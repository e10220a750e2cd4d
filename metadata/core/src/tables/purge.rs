//! Chunks that are to go: whole generations of inodes, and ends of files that were cut.

use super::{Key, Row, number_at};
use holdfast_types::{Generation, InodeId, VolumeId};
use serde::{Deserialize, Serialize};

/// Generations to be purged.
pub(crate) const PURGE: u8 = 0x0a;
/// Files whose end is to be cut.
pub(crate) const TRIM: u8 = 0x0b;

/// A generation of an inode that nobody uses any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PurgeRow {
    /// No byte was written at or above it.
    pub(crate) end: u64,
}

impl Row for PurgeRow {}

/// A range of a file that is to go; as in its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TrimRow {
    pub(crate) generation: Generation,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Row for TrimRow {}

/// Key of a generation to be purged.
pub(crate) fn purge(volume: VolumeId, inode: InodeId, generation: Generation) -> Vec<u8> {
    Key::of(PURGE).number(volume.0).number(inode.0).number(generation.0).done()
}

/// What such a key names.
pub(crate) fn purge_of(key: &[u8]) -> (VolumeId, InodeId, Generation) {
    (VolumeId(number_at(key, 0)), InodeId(number_at(key, 1)), Generation(number_at(key, 2)))
}

/// Key of a file to be cut.
pub(crate) fn trim(volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(TRIM).number(volume.0).number(inode.0).done()
}

/// What such a key names.
pub(crate) fn trim_of(key: &[u8]) -> (VolumeId, InodeId) {
    (VolumeId(number_at(key, 0)), InodeId(number_at(key, 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        super::super::assert_round_trip(PurgeRow { end: 77 });
        super::super::assert_round_trip(TrimRow { generation: Generation(2), from: 1, to: 9 });
        let named = (VolumeId(1), InodeId(2), Generation(3));
        assert_eq!(purge_of(&purge(named.0, named.1, named.2)), named);
        assert_eq!(trim_of(&trim(named.0, named.1)), (named.0, named.1));
    }
}
