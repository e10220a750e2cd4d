//! What administrators ask and see.

use holdfast_types::{
    ClusterId, DiskId, GroupId, Incarnation, LogIndex, MapVersion, NodeId, ServerId, SessionId, Term, VolumeId,
};
use serde::{Deserialize, Serialize};

/// Asked of one server about itself; needs no leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// A metadata server's own state. Answer: `Server`.
    ServerStatus,
}

/// Answers to [`AdminRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminAnswer {
    /// A server's own state.
    Server(ServerStatus),
    /// Not understood or not allowed.
    Refused(String),
}

/// A metadata server about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Which.
    pub id: ServerId,
    /// Its process id.
    pub pid: u32,
    /// Per shard: whether it leads, its term, applied and last index.
    pub shards: Vec<ShardStatus>,
    /// It has stopped applying, and why.
    pub halted: Option<String>,
}

/// One shard on one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// Who this server believes leads.
    pub leader: Option<ServerId>,
    /// Its term.
    pub term: Term,
    /// Applied so far.
    pub applied: LogIndex,
    /// Last entry of its log.
    pub last: LogIndex,
}

/// The cluster as shard 0's leader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Map version.
    pub version: MapVersion,
    /// Copies that a group should have.
    pub replicas: u32,
    /// Groups in all; 0 until the pool is formed.
    pub groups_total: u32,
    /// Groups with fewer members in sync than `replicas`.
    pub groups_degraded: u32,
    /// Groups with fewer than `min_in_sync`: their writes wait.
    pub groups_waiting: u32,
    /// Some of the degraded groups, for the details.
    pub degraded: Vec<GroupId>,
    /// Metadata servers on record, those that are gone included.
    pub metadata: Vec<ServerRecord>,
    /// Storage nodes.
    pub storage: Vec<StorageStatus>,
    /// Live sessions.
    pub sessions: Vec<SessionStatus>,
}

/// Where a metadata server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerPlace {
    /// It votes, in both shards or on its way to it since the cluster was made.
    Voter,
    /// It is being caught up, and votes when it is; then the one that it replaces leaves.
    Joining {
        /// Who leaves in the same step.
        replaces: Option<ServerId>,
    },
    /// It is being taken out.
    Leaving,
    /// It is out. Its id is not given again.
    Gone,
}

/// A metadata server as shard 0 has it on record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Which.
    pub id: ServerId,
    /// `HOST:PORT`.
    pub address: String,
    /// Where it stands.
    pub place: ServerPlace,
}

/// A storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    /// Which.
    pub id: NodeId,
    /// `HOST:PORT`.
    pub address: String,
    /// Its process id.
    pub pid: u32,
    /// It is heard.
    pub alive: bool,
    /// Groups whose primary it is.
    pub primary_of: u32,
    /// Groups it is in sync for.
    pub in_sync_of: u32,
    /// Groups it is catching up.
    pub syncing_of: u32,
    /// Its disks.
    pub disks: Vec<DiskStatus>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Which.
    pub id: DiskId,
    /// Its present life.
    pub incarnation: Incarnation,
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes free.
    pub free: u64,
    /// It failed.
    pub failed: bool,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Which.
    pub id: SessionId,
    /// Of which volume.
    pub volume: VolumeId,
    /// On which host.
    pub host: String,
    /// Process id of the mount.
    pub pid: u32,
    /// Where it is mounted.
    pub mount_point: String,
}
