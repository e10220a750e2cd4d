//! A volume's totals, and volumes that are being dropped.

use super::{Key, Row};
use holdfast_types::{Generation, InodeId, VolumeId};
use holdfast_wire::namespace::VolumeRecord;
use serde::{Deserialize, Serialize};

/// Volumes that have a namespace here.
pub(crate) const VOLUME: u8 = 0x0c;
/// Volumes deleted, for ever: their ids are not reused.
pub(crate) const DROPPED: u8 = 0x12;

/// A volume's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRow {
    pub(crate) record: VolumeRecord,
    /// The next inode's number.
    pub(crate) inode_next: InodeId,
    /// Sum of `InodeRow::charges().bytes`. Wider than one file's: two of the longest files are more than 64 bits count.
    pub(crate) bytes_used: u128,
    /// Inodes, orphans too.
    pub(crate) inodes_used: u64,
    /// Sum of `InodeRow::charges().granted`.
    pub(crate) bytes_granted: u128,
    /// No inode gets a new generation at or below it: storage nodes may hold chunks of such, which a backup that was restored knows
    /// nothing of.
    pub(crate) generation_floor: Generation,
}

impl Row for VolumeRow {}

/// How far the deletion of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DroppedRow {
    /// Its rows go, some at a time.
    Rows,
    /// Its chunks go.
    Chunks,
    /// All is gone.
    Done,
}

impl Row for DroppedRow {}

/// Key of a volume.
pub(crate) fn key(volume: VolumeId) -> Vec<u8> {
    Key::of(VOLUME).number(volume.0).done()
}

/// Key of a dropped one.
pub(crate) fn dropped(volume: VolumeId) -> Vec<u8> {
    Key::of(DROPPED).number(volume.0).done()
}

#[cfg(test)]
pub(crate) fn example_record() -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(1),
        name: "main".into(),
        groups: 8,
        placement_version: 1,
        snapshot: holdfast_types::SnapshotNumber(0),
        origin: None,
        bytes_max: None,
        inodes_max: None,
        open: Default::default(),
        limits_version: 0,
        shard: holdfast_types::ShardId::VOLUMES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let row = VolumeRow {
            record: example_record(),
            inode_next: InodeId(2),
            bytes_used: 4096,
            inodes_used: 1,
            bytes_granted: 0,
            generation_floor: Generation(3),
        };
        super::super::assert_round_trip(row);
        super::super::assert_round_trip(DroppedRow::Chunks);
    }
}
