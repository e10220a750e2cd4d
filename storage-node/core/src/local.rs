//! What the core asks of the local store, and what it is told.
//!
//! The core decides; the store (in `storage-node/server`) makes it so. A change is durable when the store says so, and not before.
//! * Changes of one group are given to the store in number order, and the store keeps that order.
//! * A change either happened entirely or not at all, also across a crash (the write-ahead rule).

use bytes::Bytes;
use holdfast_types::{ChunkIndex, ChunkKey, Generation, GroupId, InodeId, OpNumber, Sequence, SessionId, VolumeId};

/// A numbered change of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalOp {
    /// Which group.
    pub group: GroupId,
    /// Its number; the group's last number rises to it.
    pub number: OpNumber,
    /// Every number up to here is held durably by all members in sync, as far as this member has heard.
    pub settled: OpNumber,
    /// The session and sequence it came from (`SessionId::NONE` for what members do among themselves).
    pub origin: (SessionId, Sequence),
    /// What changes.
    pub change: Change,
}

/// A change of the local store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes at an offset; the chunk becomes at least that long. `sums` as `types::checksum::piece_sums`, already verified.
    Write {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte within the chunk.
        offset: u32,
        /// Sums of the pieces.
        sums: Vec<u32>,
        /// The bytes.
        bytes: Bytes,
    },
    /// A range reads as zeros; the chunk does not grow.
    Zero {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// Bytes at or above `length` are gone; length 0 leaves an empty chunk record.
    Cut {
        /// Which chunk.
        chunk: ChunkKey,
        /// What remains at the most.
        length: u32,
    },
    /// Chunks of a generation at or above an index are gone.
    Delete {
        /// Volume.
        volume: VolumeId,
        /// Inode.
        inode: InodeId,
        /// Generation.
        generation: Generation,
        /// From which index.
        from: ChunkIndex,
    },
    /// One chunk is gone (resync).
    DeleteChunk {
        /// Which.
        chunk: ChunkKey,
    },
    /// All chunks of a volume are gone.
    DeleteVolume {
        /// Which.
        volume: VolumeId,
    },
    /// Nothing but the number, and the settled number, change.
    Mark,
}

/// What the store knows of a group, told to the core at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Which group.
    pub group: GroupId,
    /// Number of the last durable change. Default: none yet.
    pub last: OpNumber,
    /// A lower bound of what was settled.
    pub settled: OpNumber,
    /// This disk is known to hold everything up to `last` (false while it was being caught up when it stopped).
    pub complete: bool,
}

/// A chunk as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSummary {
    /// Which.
    pub chunk: ChunkKey,
    /// Written bytes, counted from the start: the end of the last one.
    pub length: u32,
    /// Number of the last change.
    pub number: OpNumber,
    /// CRC-32 of the block sums: equal summaries mean equal chunks.
    pub digest: u32,
}

/// Why the store did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// Full; nothing was changed.
    #[error("disk full")]
    NoSpace,
    /// A stored block does not have its sum.
    #[error("stored block is damaged")]
    BadBlock,
    /// The disk failed: it must leave its views, and nothing may be concluded about the change.
    #[error("disk failed")]
    Failed,
}
