//! Messages between metadata servers: one way, possibly lost, repeated or out of order; whoever needs an answer asks again.

use crate::metadata::{Answer, Envelope};
use bytes::Bytes;
use holdfast_types::{LogIndex, ShardId, Term};
use serde::{Deserialize, Serialize};

/// Most bytes of rows in one [`SnapshotPart`], unless a single row is larger.
pub const SNAPSHOT_PART_BYTES_MAX: usize = 1 << 20;
/// Longest encoded raft message that is decoded; checked before the protobuf decoder sees a byte.
pub const RAFT_MESSAGE_BYTES_MAX: usize = 8 << 20;

/// A message from one metadata server to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// A message of the raft crate, in its protobuf encoding, at most [`RAFT_MESSAGE_BYTES_MAX`] bytes.
    ///
    /// A log's life is a number drawn when it was made. A server that has lost its log, and with it what it voted and acknowledged,
    /// has another life: it is not taken for the one it was. 0: not known (in `to`), not said (in `from`).
    Raft {
        /// Which log.
        shard: ShardId,
        /// Life of the sender's log.
        from_life: u64,
        /// Life of the receiver's log, as the sender knows it.
        to_life: u64,
        /// The message.
        bytes: Bytes,
    },
    /// To one who speaks with a log that is not the one its id is known by, or who has left the cluster: nobody listens to it any more.
    Stranger {
        /// The life that is meant; 0 if the server has left.
        life: u64,
    },
    /// A request of the service itself to the leader of another shard. Asked again until it is answered.
    Forward {
        /// Chosen by the asker; repeated in the answer.
        id: u64,
        /// The request; its session is `NONE`.
        envelope: Envelope,
    },
    /// Answer to [`PeerMessage::Forward`].
    Forwarded {
        /// As in the question.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// A part of a snapshot for a server whose log is too far behind.
    Snapshot(SnapshotPart),
    /// Answer to [`PeerMessage::Snapshot`].
    SnapshotSeen {
        /// Which log.
        shard: ShardId,
        /// Which transfer.
        transfer: u64,
        /// Parts below this have arrived.
        next: u32,
        /// The receiver has, or needs, no such snapshot any more: the transfer ends.
        done: bool,
    },
    /// The sender's disk is nearly full. Said again every second while it is so.
    LittleRoom,
    /// From the leader of shard 0 to that of the volumes, every second: how much room the pool has.
    Space(PoolSpace),
}

/// Room in a pool, in bytes of files: what its disks have, divided by the copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpace {
    /// What all disks hold.
    pub total: u64,
    /// What is free on those that serve.
    pub free: u64,
    /// What can be written before a disk is full and refuses: less than `free` where disks are not equally full.
    pub available: u64,
}

/// Some rows of a snapshot. Parts are taken in order only; what was not confirmed is sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotPart {
    /// Which log.
    pub shard: ShardId,
    /// Number of the transfer, unique for its sender's term.
    pub transfer: u64,
    /// Raft term of the sender, who leads in it.
    pub term: Term,
    /// The rows are the state after this entry was applied.
    pub index: LogIndex,
    /// Term of that entry.
    pub index_term: Term,
    /// Position of this part, from 0.
    pub part: u32,
    /// Keys and values in order.
    pub rows: Vec<(Bytes, Bytes)>,
    /// Nothing comes after this.
    pub last: bool,
}
