//! What the core asks of the local store, and what it is told.
//!
//! The core decides; the store (in `storage-node/server`) makes it so. A change is durable when the store says so, and not before.
//! * Changes of one group are given to the store in number order, and the store keeps that order.
//! * A change either happened entirely or not at all, also across a crash (the write-ahead rule).
//!
//! ## How the core and the store talk
//! `Effect::Local { disk, ticket, command }` goes out, `Input::LocalDone { ticket, result }` comes back, exactly once for each.
//! * Many commands of a group may be under way. `Apply`s of one group take effect in the order given. Other commands may run at any
//!   time between, but each sees every `Apply` whose completion was reported before the command was given.
//! * `Apply` is reported when it is durable. Positional: applying the same change again leaves the same content.
//! * A `LocalOp` may bear the *same* number as the one before it (repairs sent to this member alone do), never a smaller one.
//! * A failed `Apply` (`NoSpace`, `BadBlock`) changed nothing; later `Apply`s of the group that were already given may still succeed.
//!   The core stops using the member or repairs it: the store need not stop.
//! * Nearly full: the shell says `Input::Space { low: true }` while enough is left for all that is under way (by eye: 5 % of the disk and
//!   at least 1 GiB, less on tiny disks); the core then numbers nothing that grows. `NoSpace` is for when even that is used up.
//!
//! ## What the store must keep
//! Durably, per group, in the same records as the changes:
//! * `last` and `settled`: of the last applied `LocalOp` (`settled` never goes back: keep the greatest).
//! * the *unsettled list*: for each applied change whose number is above `settled`, its number and the keys it touched
//!   ([`Change::keys`]). A delete leaves no chunk row, so this list is the only witness of it. An entry may go when a later
//!   `LocalOp` brings a `settled` at or above its number, not before. Entries for the same keys may be merged under the greater number;
//!   beyond 65,536 entries they may be merged into `KeyRange::ALL`. `ChangesAbove` answers from it. Usually it has fewer than 1,000 entries.
//! * Chunks as [`ChunkSummary`] and their block sums. Sums are canonical: a block's sum covers 4096 bytes, zeros beyond the length and
//!   in holes, so that equal content has equal sums whatever the way it came about. `digest` is `crc32` over the sums, little-endian, and
//!   the chunk's contenders.
//! * A block found damaged is remembered until it is overwritten whole: its sum is then *reported* (`BlockSums`, `digest`) as its
//!   complement, so that the next comparison with another member repairs it.
//!
//! An empty chunk (`Cut` to 0) and an absent chunk are the same to every reader: `List`, `BlockSums` and `Highest` leave empty ones out,
//! but for the first two when it has contenders. `Cut` and `Zero` of an absent chunk change nothing but numbers and contenders. `GroupState.complete` is not used by the core (shard 0's `in_sync`
//! decides who is complete): always say true.

pub use crate::contenders::{Contenders, Made};
use bytes::Bytes;
use holdfast_types::{ChunkIndex, ChunkKey, Generation, GroupId, InodeId, OpNumber, Sequence, SessionId, VolumeId};
use holdfast_wire::chunk::ByteRange;
pub use holdfast_wire::group::{KeyRange, Origin};

/// A numbered change of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalOp {
    /// Which group.
    pub group: GroupId,
    /// Its number; the group's last number rises to it.
    pub number: OpNumber,
    /// Every number up to here is held durably by all members in sync, as far as this member has heard.
    pub settled: OpNumber,
    /// Where it came from. The chunk remembers a contended change: see [`crate::contenders`].
    pub origin: Origin,
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
    /// Bytes at or above `length` are gone, and the contenders are told; length 0 leaves an empty chunk record.
    Cut {
        /// Which chunk.
        chunk: ChunkKey,
        /// What remains at the most.
        length: u32,
    },
    /// Chunks of a generation at or above an index are gone. From an index above 0 (the file goes on), those with contenders stay as empty
    /// ones that were cut.
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
    /// The chunk has this length, these bytes and these contended changes, all at once (copies): half of it would be a chunk that
    /// remembers a change and has not its bytes, or the other way round, and a client that repeats the change would be told wrong.
    Copy {
        /// Which chunk.
        chunk: ChunkKey,
        /// Its length: what is beyond goes, and no contender is told of a cut.
        length: u32,
        /// Bytes below the length that are to be replaced, in order and apart.
        runs: Vec<Run>,
        /// What it remembers.
        contenders: Contenders,
    },
    /// Damaged blocks of this disk are put right. Never travels. A block is written only if the sum that the store has for it *now* is that
    /// of the bytes: they are then exactly what was written there last, and no other bytes can land. Others are left alone. No length,
    /// number or sum of the chunk changes.
    Mend {
        /// Which chunk.
        chunk: ChunkKey,
        /// Which blocks, 4096 bytes each, in order.
        blocks: Vec<(u32, Bytes)>,
    },
    /// Nothing but the number, and the settled number, change.
    Mark,
}

/// Bytes of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte within the chunk.
    pub offset: u32,
    /// Sums of the pieces.
    pub sums: Vec<u32>,
    /// The bytes.
    pub bytes: Bytes,
}

impl Change {
    /// The keys of the chunks that it may change. None for [`Change::Mark`].
    pub fn keys(&self) -> Option<KeyRange> {
        match *self {
            Self::Write { chunk, .. }
            | Self::Zero { chunk, .. }
            | Self::Cut { chunk, .. }
            | Self::Copy { chunk, .. }
            | Self::Mend { chunk, .. }
            | Self::DeleteChunk { chunk } => Some(KeyRange::chunk(chunk)),
            Self::Delete { volume, inode, generation, from } => Some(KeyRange::tail(volume, inode, generation, from)),
            Self::DeleteVolume { volume } => Some(KeyRange::volume(volume)),
            Self::Mark => None,
        }
    }

    /// Bytes that it carries.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Write { bytes, .. } => bytes.len(),
            Self::Copy { runs, .. } => runs.iter().map(|run| run.bytes.len()).sum(),
            Self::Mend { blocks, .. } => blocks.iter().map(|(_, bytes)| bytes.len()).sum(),
            Self::Zero { .. }
            | Self::Cut { .. }
            | Self::Delete { .. }
            | Self::DeleteChunk { .. }
            | Self::DeleteVolume { .. }
            | Self::Mark => 0,
        }
    }
}

/// Names one command until it is reported done. Rises; never reused in a life of the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What the core asks for. The outcome of the same name comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalCommand {
    /// Make it so, durably. Outcome: `Applied`.
    Apply(LocalOp),
    /// Bytes `offset .. offset + length`, cut at the chunk's length; each stored block is verified. Outcome: `Data`.
    Read {
        /// Which group.
        group: GroupId,
        /// Which chunk; an absent one reads as empty.
        chunk: ChunkKey,
        /// First byte.
        offset: u32,
        /// Bytes wanted.
        length: u32,
    },
    /// The first chunks in a range of keys, in key order. Outcome: `Chunks`.
    List {
        /// Which group.
        group: GroupId,
        /// Which keys.
        range: KeyRange,
        /// At most so many. The answer has fewer only if the range holds no more.
        limit: u32,
    },
    /// Length and block sums of one chunk, from the index. Outcome: `Sums`.
    BlockSums {
        /// Which group.
        group: GroupId,
        /// Which chunk.
        chunk: ChunkKey,
    },
    /// Whether a contended change of a chunk was made. Outcome: `Contended`.
    Contended {
        /// Which group.
        group: GroupId,
        /// Which chunk.
        chunk: ChunkKey,
        /// Whose change.
        session: SessionId,
        /// Which.
        sequence: Sequence,
    },
    /// The highest chunk of a generation at or above an index. Outcome: `Highest`.
    Highest {
        /// Which group.
        group: GroupId,
        /// Volume.
        volume: VolumeId,
        /// Inode.
        inode: InodeId,
        /// Generation.
        generation: Generation,
        /// From which index.
        from: ChunkIndex,
    },
    /// Where a generation has blocks that were written, in chunks from an index up to another. Outcome: `Allocated`.
    Allocated {
        /// Which group.
        group: GroupId,
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
    /// Every block of a chunk that was written is read, from the disk itself where that can be, and compared with its sum. Of no haste:
    /// whoever has readers waits less. Outcome: `Checked`.
    Check {
        /// Which group.
        group: GroupId,
        /// Which chunk.
        chunk: ChunkKey,
    },
    /// Whole blocks, for a member whose own are damaged. Outcome: `Blocks`.
    Blocks {
        /// Which group.
        group: GroupId,
        /// Which chunk.
        chunk: ChunkKey,
        /// Which blocks.
        blocks: Vec<u32>,
    },
    /// What was changed by numbers above this one: from the unsettled list. Given only while no `Apply` of the group is under way.
    /// Outcome: `Changes`.
    ChangesAbove {
        /// Which group.
        group: GroupId,
        /// Changes at or below are not wanted (they may be named all the same).
        number: OpNumber,
    },
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalOutcome {
    /// The change is durable.
    Applied,
    /// Bytes.
    Data {
        /// As many as were asked for, or fewer where the chunk ends.
        bytes: Bytes,
        /// Their sums (`piece_sums(offset, bytes)`), derived from verified blocks.
        sums: Vec<u32>,
    },
    /// Chunks in key order.
    Chunks {
        /// As listed.
        chunks: Vec<ChunkSummary>,
    },
    /// What a chunk is like, if it is there and neither empty nor contended.
    Sums {
        /// See there.
        found: Option<ChunkSums>,
    },
    /// Whether a contended change was made.
    Contended {
        /// See there.
        made: Made,
    },
    /// The highest chunk and its length.
    Highest {
        /// If any.
        found: Option<(ChunkIndex, u32)>,
    },
    /// As [`holdfast_wire::chunk::ChunkAnswer::Allocated`].
    Allocated {
        /// See there.
        ranges: Vec<ByteRange>,
        /// See there.
        through: ChunkIndex,
    },
    /// What a chunk was found to be; none if it is absent or empty.
    Checked {
        /// See there.
        found: Option<Checked>,
    },
    /// Those of the blocks that are there and have their sums, 4096 bytes each.
    Blocks {
        /// In the order asked for.
        blocks: Vec<(u32, Bytes)>,
    },
    /// Keys changed.
    Changes {
        /// In any order; may overlap.
        changed: Vec<KeyRange>,
    },
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

/// A chunk, to be compared with another member's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkSums {
    /// Length in bytes.
    pub length: u32,
    /// A sum for each block that has a byte below the length.
    pub sums: Vec<u32>,
    /// Last contended changes.
    pub contenders: Contenders,
}

/// A chunk that was read whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Length in bytes.
    pub length: u32,
    /// As in [`ChunkSummary`].
    pub digest: u32,
    /// BLAKE3 of each block that is not all zeros: its number, little-endian in 4 bytes, and its bytes. Of no use with `bad` blocks.
    pub hash: [u8; 32],
    /// Damaged blocks, and the sums that they should have.
    pub bad: Vec<(u32, u32)>,
    /// Bytes read.
    pub bytes: u64,
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
    /// CRC-32 of the block sums and then of the contenders ([`Contenders::summed`]): equal summaries mean equal chunks.
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
