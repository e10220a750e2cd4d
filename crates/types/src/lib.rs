//! Words that every part of Holdfast shares: identifiers, sizes, times, names, checksums, limits.
//!
//! Pure: nothing here waits, reads a clock or opens a file.

pub mod checksum;
pub mod id;
pub mod limits;
pub mod name;
pub mod prng;
pub mod size;
pub mod time;
pub mod version;

pub use id::{
    ChunkIndex, ChunkKey, ClusterId, DiskId, GroupId, Incarnation, InodeId, MemberId, NodeId, Sequence, ServerId,
    SessionId, ShardId, VolumeId,
};
pub use name::FileName;
pub use time::{Instant, Timestamp};
pub use version::{
    Epoch, Generation, InstanceGeneration, LogIndex, MapVersion, OpCount, OpNumber, SnapshotNumber, Term,
};
