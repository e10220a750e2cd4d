//! Messages between the members of a group: one way, on one ordered stream per pair of nodes.
//!
//! ```text
//! member ── Here ───────────────────────────────────────────▶ primary      I entered this epoch; send what I lack
//! member ◀─ Query ─── primary      member ── Report ────────▶ primary      view change: what may differ
//! member ◀─ Compare ─ primary      member ── Differences ───▶ primary      reconciling and resync
//! member ◀─ Operation, Idle ─ …    member ── Persisted ─────▶ primary      the stream of operations
//! member ◀─ Confirm ─ primary      member ── Confirmed ─────▶ primary      a read is about to be answered
//! member ◀─ Check, Scrubbed ─ …    member ── Checked ───────▶ primary      a scrub: read all of it, and say what it is
//! anybody ── Fetch ──▶ anybody     anybody ── Fetched ──────▶ anybody      blocks in the place of damaged ones
//! anybody ── Stale ──▶ whoever speaks in an older epoch                    read the map
//! ```
//!
//! A stream belongs to one (epoch, primary, member, `stream`); its positions start at 1 and have no gap. Besides the numbered
//! operations of the group it carries copies for this member alone (repairs), which bear the number of the last operation before
//! them: that is what "in the primary's number order" means. Messages may be lost with a connection; nothing else is assumed.

use holdfast_types::{
    ChunkIndex, ChunkKey, Epoch, Generation, GroupId, InodeId, MapVersion, MemberId, OpNumber, Sequence, SessionId,
    SnapshotNumber, VolumeId,
};
use serde::{Deserialize, Serialize};

/// A message from one member of a group to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMessage {
    /// Which group.
    pub group: GroupId,
    /// Epoch of the sender's view. A receiver in another one takes nothing from the message but `map`.
    pub epoch: Epoch,
    /// Who speaks, in which life.
    pub from: MemberId,
    /// Who is meant, in which life.
    pub to: MemberId,
    /// Version of the sender's map.
    pub map: MapVersion,
    /// The greatest number that the sender knows to be held durably by every member in sync, with all before it.
    pub settled: OpNumber,
    /// What it says.
    pub body: GroupBody,
}

/// Where a change comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Whose it is; `SessionId::NONE` for what members do among themselves.
    pub session: SessionId,
    /// Its number within the session.
    pub sequence: Sequence,
    /// The chunk is to remember it; see [`crate::chunk::ChunkRequest::contended`].
    pub contended: bool,
}

impl Origin {
    /// What members do among themselves.
    pub const MEMBERS: Self = Self { session: SessionId::NONE, sequence: Sequence(0), contended: false };

    /// What a repetition has in common with the first.
    pub fn key(self) -> (SessionId, Sequence) {
        (self.session, self.sequence)
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupBody {
    /// To the primary: I am in this epoch and connected.
    Here,
    /// Your epoch is older than mine: read the map, at least the version of this message.
    Stale,
    /// The next item of the stream. Bytes of a write are the payload.
    Operation {
        /// Which stream.
        stream: u64,
        /// Position in it, from 1.
        position: u64,
        /// Number of the operation; for a copy, of the last operation before it.
        number: OpNumber,
        /// Where it came from.
        origin: Origin,
        /// What changes.
        change: GroupChange,
    },
    /// Nothing new: tells `settled`, and asks for `Persisted`.
    Idle {
        /// Which stream.
        stream: u64,
        /// The last position sent.
        position: u64,
    },
    /// To the primary: how far the stream has come here.
    Persisted {
        /// Which stream.
        stream: u64,
        /// Every position up to here is durable here.
        durable: u64,
        /// Every position up to here has arrived.
        received: u64,
        /// A later position has arrived, or is known to have been sent: send again what follows `received`.
        gap: bool,
        /// This disk is nearly full: number nothing more that grows.
        low: bool,
        /// This member cannot go on in this epoch (full, or a damaged block): it must leave the view and be caught up.
        stuck: bool,
    },
    /// From a new primary: stop everything older than `stream`, finish what was given to the disk, and report.
    Query {
        /// Streams below this one are over.
        stream: u64,
    },
    /// Answer to `Query`.
    Report {
        /// As in the query.
        stream: u64,
        /// The end of this member's unbroken run.
        last: OpNumber,
        /// The greatest number it knows to be settled.
        settled: OpNumber,
        /// What was changed here above `settled`: at most [`CHANGED_RANGES_MAX`] ranges, coarser if there were more.
        changed: Vec<KeyRange>,
    },
    /// The chunks that the primary holds in a range of keys: which differ?
    Compare {
        /// The stream that copies will travel on.
        stream: u64,
        /// Names this question.
        id: u64,
        /// The range. A chunk in it that is not listed is absent at the primary.
        range: KeyRange,
        /// At most [`COMPARE_CHUNKS_MAX`].
        chunks: Vec<ChunkDigest>,
    },
    /// Answer to `Compare`.
    Differences {
        /// As asked.
        stream: u64,
        /// As asked.
        id: u64,
        /// The answer covers keys up to this one; the primary asks again for the rest of the range.
        through: ChunkKey,
        /// Chunks that differ, also those that only the member has.
        chunks: Vec<Difference>,
    },
    /// Are you still in this epoch?
    Confirm {
        /// Names this question.
        round: u64,
    },
    /// Yes.
    Confirmed {
        /// As asked.
        round: u64,
    },
    /// To any member: these blocks are damaged here; what are they there?
    Fetch {
        /// Names this question.
        id: u64,
        /// Which chunk.
        chunk: ChunkKey,
        /// At most [`FETCH_BLOCKS_MAX`].
        blocks: Vec<u32>,
    },
    /// Answer to `Fetch`: the payload is these blocks, 4096 bytes each, zeros beyond the chunk's length. Whoever asked compares them with
    /// its own sums.
    Fetched {
        /// As asked.
        id: u64,
        /// As asked.
        chunk: ChunkKey,
        /// Those of the blocks asked for that are there and have their sums.
        blocks: Vec<u32>,
    },
    /// To a member in sync: read the first [`CHECK_CHUNKS_MAX`] chunks of a range, repair what is damaged, say what they are.
    Check {
        /// Names this question. A newer one takes the place of an older one.
        id: u64,
        /// Which keys.
        range: KeyRange,
    },
    /// Answer to `Check`.
    Checked {
        /// As asked.
        id: u64,
        /// The answer covers keys up to this one.
        through: ChunkKey,
        /// In order.
        chunks: Vec<CheckedChunk>,
    },
    /// To members in sync: a scrub of the group has ended.
    Scrubbed(ScrubResult),
}

/// Most blocks asked for at once.
pub const FETCH_BLOCKS_MAX: usize = 64;
/// Most chunks read for one `Check`: 64 MiB. By eye: a few seconds at the rate of a scrub.
pub const CHECK_CHUNKS_MAX: usize = 16;

/// A chunk that was read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedChunk {
    /// Which.
    pub chunk: ChunkKey,
    /// Written bytes.
    pub length: u32,
    /// As in [`ChunkDigest`].
    pub digest: u32,
    /// BLAKE3 of its content: of each block that is not all zeros, its number and its bytes.
    pub hash: [u8; 32],
    /// Blocks that were damaged.
    pub bad: u32,
    /// Blocks among them that still are.
    pub left: u32,
    /// Bytes read.
    pub bytes: u64,
}

/// What a scrub of a group found, on all its members in sync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubResult {
    /// Chunks, each counted once.
    pub chunks: u64,
    /// Bytes read, on all members.
    pub bytes: u64,
    /// Blocks that did not have their sums.
    pub bad: u64,
    /// Those among them that were replaced by another member's.
    pub repaired: u64,
    /// Chunks that were not the same on all members, and stayed so while nobody changed them.
    pub different: u64,
    /// Those among them that were made equal.
    pub equalized: u64,
}

impl ScrubResult {
    /// Whether something is still wrong.
    pub fn is_clean(&self) -> bool {
        self.bad == self.repaired && self.different == self.equalized
    }
}

/// Most ranges in a `Report`.
pub const CHANGED_RANGES_MAX: usize = 4096;
/// Most chunks in a `Compare`; an answer holds at most twice as many. By eye: block sums of that many whole chunks are 256 KiB.
pub const COMPARE_CHUNKS_MAX: usize = 64;

/// An inclusive range of chunk keys in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key.
    pub first: ChunkKey,
    /// The last key.
    pub last: ChunkKey,
}

impl KeyRange {
    /// Every key.
    pub const ALL: Self =
        Self { first: key(0, 0, 0, 0, 0), last: key(u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX) };

    /// One chunk.
    pub fn chunk(chunk: ChunkKey) -> Self {
        Self { first: chunk, last: chunk }
    }

    /// Chunks of one generation of an inode from an index on.
    pub fn tail(volume: VolumeId, inode: InodeId, generation: Generation, from: ChunkIndex) -> Self {
        Self {
            first: key(volume.0, inode.0, generation.0, from.0, 0),
            last: key(volume.0, inode.0, generation.0, u64::MAX, u64::MAX),
        }
    }

    /// All chunks of a volume.
    pub fn volume(volume: VolumeId) -> Self {
        Self { first: key(volume.0, 0, 0, 0, 0), last: key(volume.0, u64::MAX, u64::MAX, u64::MAX, u64::MAX) }
    }

    /// Whether a key lies in it.
    pub fn contains(&self, chunk: ChunkKey) -> bool {
        self.first <= chunk && chunk <= self.last
    }

    /// Whether some key lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The keys after `done`, if any are left.
    #[must_use]
    pub fn after(&self, done: ChunkKey) -> Option<Self> {
        let first = successor(done)?;
        (first <= self.last).then_some(Self { first: first.max(self.first), last: self.last })
    }
}

const fn key(volume: u64, inode: u64, generation: u64, index: u64, born: u64) -> ChunkKey {
    ChunkKey {
        volume: VolumeId(volume),
        inode: InodeId(inode),
        generation: Generation(generation),
        index: ChunkIndex(index),
        born: SnapshotNumber(born),
    }
}

/// The key just after another; none after the last.
fn successor(chunk: ChunkKey) -> Option<ChunkKey> {
    let mut parts = [chunk.volume.0, chunk.inode.0, chunk.generation.0, chunk.index.0, chunk.born.0];
    for part in parts.iter_mut().rev() {
        if let Some(more) = part.checked_add(1) {
            *part = more;
            return Some(key(parts[0], parts[1], parts[2], parts[3], parts[4]));
        }
        *part = 0;
    }
    None
}

/// A chunk as the primary holds it, in few bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkDigest {
    /// Which.
    pub chunk: ChunkKey,
    /// Written bytes.
    pub length: u32,
    /// CRC-32 of the block sums, and of the contenders if there are any.
    pub digest: u32,
}

/// A chunk that differs, as the member holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which.
    pub chunk: ChunkKey,
    /// Written bytes; 0: it is absent.
    pub length: u32,
    /// Sums of its blocks, each over 4096 bytes with zeros beyond the length.
    pub sums: Vec<u32>,
    /// Last contended change of each session, in the order in which they were made.
    pub contenders: Vec<Contender>,
}

/// The last contended change of one session on a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contender {
    /// Whose.
    pub session: SessionId,
    /// Which.
    pub last: Sequence,
    /// Its last one before the chunk was last cut.
    pub cut: Sequence,
}

/// Where bytes of a copy go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRun {
    /// First byte within the chunk.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
    /// Sums of their pieces.
    pub sums: Vec<u32>,
}

/// A change as it travels between members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupChange {
    /// The payload at an offset.
    Write {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte within the chunk.
        offset: u32,
        /// Sums of the payload's pieces.
        sums: Vec<u32>,
    },
    /// A range reads as zeros.
    Zero {
        /// Which chunk.
        chunk: ChunkKey,
        /// First byte.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// Bytes at or above `length` are gone.
    Cut {
        /// Which chunk.
        chunk: ChunkKey,
        /// What remains at the most.
        length: u32,
    },
    /// Chunks of a generation from an index on are gone.
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
    /// One chunk is gone.
    DeleteChunk {
        /// Which.
        chunk: ChunkKey,
    },
    /// All chunks of a volume are gone.
    DeleteVolume {
        /// Which.
        volume: VolumeId,
    },
    /// A chunk is made equal to the sender's, bytes and contended changes at once (copies for one member). The payload is that of the runs.
    Copy {
        /// Which chunk.
        chunk: ChunkKey,
        /// Its length.
        length: u32,
        /// What differs below the length, in order and apart.
        runs: Vec<CopyRun>,
        /// The last contended changes, in the order in which they were made.
        contenders: Vec<Contender>,
    },
    /// Nothing.
    Mark,
}
