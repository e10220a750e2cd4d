//! Requests from clients to storage nodes. Bytes travel as the frame's payload, their block sums in the message.
//!
//! Sums are CRC-32 over the pieces of the range cut at multiples of 4 KiB of the chunk (`types::checksum::piece_sums`).

use holdfast_types::{
    ChunkIndex, ChunkKey, Epoch, Generation, GroupId, InodeId, MapVersion, OpNumber, Sequence, SessionId,
    SnapshotNumber, Term, VolumeId,
};
use serde::{Deserialize, Serialize};

/// A request to a group's primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRequest {
    /// On whose behalf.
    pub session: SessionId,
    /// Number of a change within its session, from 1; 0 for reads. A retry keeps it.
    pub sequence: Sequence,
    /// Every change of the session *to this group* below this was answered, or will never be sent again: a late copy is refused.
    pub floor: Sequence,
    /// Least map version that the server must have.
    pub map_min: MapVersion,
    /// Of a session: term in which the lease was granted that allows this; 0 until leases exist. Of the service itself: the term in
    /// which the sender leads the volumes; one below the map's `service_term` is refused.
    pub term: Term,
    /// Snapshot number of the volume.
    pub snapshot: SnapshotNumber,
    /// Which group.
    pub group: GroupId,
    /// Epoch of the view that the client knows.
    pub epoch: Epoch,
    /// Other sessions may change the same chunk: the chunk remembers the sequence, so that a repetition never undoes what another session
    /// wrote meanwhile. A session has one such change of a chunk under way at a time.
    pub contended: bool,
    /// It was sent before, and may have been done.
    pub repeated: bool,
    /// What to do.
    pub op: ChunkOp,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ChunkOp {
    /// Writes the payload at `offset`. The range lies within the chunk. Answer: `Done`.
    Write {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte within the chunk.
        offset: u32,
        /// Sums of the payload's pieces.
        sums: Vec<u32>,
    },
    /// Makes a range read as zeros; bytes beyond the chunk's length stay absent. Answer: `Done`.
    Zero {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte within the chunk.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// Removes bytes at or above `length`. Answer: `Done`.
    Cut {
        /// Which chunk.
        chunk: ChunkKey,
        /// What remains at the most.
        length: u32,
    },
    /// Deletes every chunk of one generation of an inode, at or above an index, that this group holds. Answer: `Done`.
    Delete {
        /// Volume.
        volume: VolumeId,
        /// Inode.
        inode: InodeId,
        /// Generation.
        generation: Generation,
        /// First index to go.
        from: ChunkIndex,
    },
    /// Deletes every chunk of a volume that this group holds. Answer: `Done`.
    DeleteVolume {
        /// Volume.
        volume: VolumeId,
    },
    /// Reads. Answer: `Data`.
    Read {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte within the chunk.
        offset: u32,
        /// Bytes wanted.
        length: u32,
    },
    /// Whether a contended change of this session was made after the last cut of the chunk. Answer: `Made`.
    Made {
        /// Which chunk.
        chunk: ChunkKey,
        /// Which change.
        sequence: Sequence,
    },
    /// The highest chunk, at or above an index, of one generation of an inode that this group holds. Answer: `Highest`.
    Highest {
        /// Volume.
        volume: VolumeId,
        /// Inode.
        inode: InodeId,
        /// Generation.
        generation: Generation,
        /// From which index.
        from: ChunkIndex,
    },
    /// Where one generation of an inode has bytes that were ever written, in the chunks that this group holds. Answer: `Allocated`.
    Allocated {
        /// Volume.
        volume: VolumeId,
        /// Inode.
        inode: InodeId,
        /// Generation.
        generation: Generation,
        /// From which index.
        from: ChunkIndex,
        /// Up to and including which index.
        upto: ChunkIndex,
    },
}

/// An `Allocated` answer ends with the chunk that brings it to so many ranges. A chunk has at most half as many as it has blocks.
/// By eye: some milliseconds of work for a disk.
pub const ALLOCATED_RANGES_MAX: usize = 256;

/// A range of bytes of a file. Not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// After the last byte.
    pub end: u64,
}

impl ChunkOp {
    /// The one chunk that it is about, if it is one.
    pub fn chunk(&self) -> Option<ChunkKey> {
        match self {
            Self::Write { chunk, .. }
            | Self::Zero { chunk, .. }
            | Self::Cut { chunk, .. }
            | Self::Made { chunk, .. }
            | Self::Read { chunk, .. } => Some(*chunk),
            Self::Delete { .. } | Self::DeleteVolume { .. } | Self::Highest { .. } | Self::Allocated { .. } => None,
        }
    }

    /// Whether it changes anything, and so is numbered, replicated and exactly-once.
    pub fn is_change(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::Zero { .. }
            | Self::Cut { .. }
            | Self::Delete { .. }
            | Self::DeleteVolume { .. } => true,
            Self::Read { .. } | Self::Made { .. } | Self::Highest { .. } | Self::Allocated { .. } => false,
        }
    }

    /// The volume it touches.
    pub fn volume(&self) -> VolumeId {
        match self {
            Self::Write { chunk, .. }
            | Self::Zero { chunk, .. }
            | Self::Cut { chunk, .. }
            | Self::Made { chunk, .. }
            | Self::Read { chunk, .. } => chunk.volume,
            Self::Delete { volume, .. }
            | Self::DeleteVolume { volume }
            | Self::Highest { volume, .. }
            | Self::Allocated { volume, .. } => *volume,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkAnswer {
    /// Durable on every member in sync.
    Done {
        /// The operation's number.
        number: OpNumber,
    },
    /// Bytes, as payload: as many as were asked for, or fewer, and then the rest are zeros.
    Data {
        /// Sums of the payload's pieces.
        sums: Vec<u32>,
    },
    /// The highest chunk and its length in bytes, if there is any.
    Highest {
        /// Index and length.
        found: Option<(ChunkIndex, u32)>,
    },
    /// Where bytes are, in whole blocks cut at each chunk's length, in order and apart. All of the file between two of them in chunks of
    /// this group reads as zeros.
    Allocated {
        /// The ranges.
        ranges: Vec<ByteRange>,
        /// The answer covers the group's chunks up to this index; at least the first that was asked for.
        through: ChunkIndex,
    },
    /// Whether the change stands: it was made, and the chunk was not cut since.
    Made {
        /// See there.
        stands: bool,
    },
    /// Not done.
    Refused(Refusal),
}

/// Why not. Nothing of a refused change has been, or will be, done on account of this message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The client's view is not the server's: read the map (at least this version) and ask again.
    #[error("epoch {asked} is not the group's; the server is at {current}, map {version}")]
    WrongEpoch {
        /// What the client said.
        asked: Epoch,
        /// What the server serves; 0 if it is no member.
        current: Epoch,
        /// The server's map.
        version: MapVersion,
    },
    /// Ask the primary.
    #[error("not the group's primary")]
    NotPrimary,
    /// The server's map is older than `map_min`; it is reading it. Ask again.
    #[error("the server's map {have} is older than the request wants")]
    OldMap {
        /// What it has.
        have: MapVersion,
    },
    /// The session is over, for ever.
    #[error("the session is over")]
    SessionEnded,
    /// It may have been done or not, and nobody knows any more: too many sessions have changed the chunk since.
    #[error("whether it was done is not known any more")]
    Unknown,
    /// Below the floor: answered long ago. Or of the service itself, by a leader that was deposed.
    #[error("stale sequence")]
    StaleSequence,
    /// The session may not do this.
    #[error("not allowed for this session")]
    Forbidden,
    /// The payload does not have the sums that the message says: it was damaged on the way. Send it again.
    #[error("payload and sums differ")]
    Damaged,
    /// The range or message makes no sense.
    #[error("malformed request")]
    Malformed,
    /// The disk is full. Deletes and cuts still work.
    #[error("no space left on the group's disks")]
    NoSpace,
    /// A stored block is bad here; read another member, or wait for its repair.
    #[error("stored data is damaged")]
    BadBlock,
    /// Not now: reconciling after a view change, or too few members in sync. Ask again.
    #[error("group not serving: {reason}")]
    NotServing {
        /// Why, for status and log.
        reason: String,
    },
    /// The disk failed. It leaves its views; ask again with a newer map.
    #[error("disk failure")]
    Io,
}
