//! What administrators ask and see.

use crate::group::{KeyRange, ScrubResult};
use crate::map::ClusterMap;
use bytes::Bytes;
use holdfast_types::{
    ChunkKey, ClusterId, DiskId, Generation, GroupId, Incarnation, InodeId, InstanceGeneration, LogIndex, MapVersion,
    MemberId, NodeId, OpNumber, ServerId, SessionId, ShardId, Term, Timestamp, VolumeId,
};
use serde::{Deserialize, Serialize};

/// Asked of one server about itself; needs no leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminRequest {
    /// A metadata server's own state. Answer: `Server`.
    ServerStatus,
    /// A metadata server checks its own tables, as of now, in the background. Answer: `Check`. One at a time.
    CheckBegin,
    /// How far that check is; who does not ask for 30 s has it dropped. Answer: `Check`.
    CheckPoll {
        /// Which check, as `CheckBegin` answered.
        check: u64,
    },
    /// Chunks of a group as one member, a disk of the storage node that is asked, holds them. Answer: `Chunks`.
    ListChunks {
        /// The member, in the life that is meant.
        member: MemberId,
        /// Which group.
        group: GroupId,
        /// Which keys.
        range: KeyRange,
        /// Chunks wanted at the most (1 to 1,000).
        limit: u32,
        /// Read every block and compare it with its sum.
        verify: bool,
    },
    /// A storage node's scrubs. Answer: `Scrubs`.
    ScrubStatus,
    /// A storage node scrubs every group that it is primary of, one after the other, from now on. Answer: `Scrubs`.
    ScrubNow,
    /// A metadata server holds on to its volumes' table as it is, for a backup, once it has applied `at_least`. Answer: `Held`, or
    /// `Behind`. One backup at a time; who does not ask for 30 s has it dropped.
    BackupBegin {
        /// What a confirmed leader had applied.
        at_least: LogIndex,
    },
    /// It holds on to the cluster's table as well. Asked after the volumes' were held and a leader of shard 0 was confirmed after that,
    /// so that the cluster knows everything that the volumes rest on. Answer: `Held`, or `Behind`.
    BackupJoin {
        /// Which backup, as `BackupBegin` answered.
        backup: u64,
        /// What a confirmed leader had applied.
        at_least: LogIndex,
    },
    /// The next rows of a table that is held. Answer: `Rows`.
    BackupRows {
        /// Which backup.
        backup: u64,
        /// Which table.
        shard: ShardId,
        /// The last key of the rows before; empty: from the start.
        after: Bytes,
    },
    /// The tables are not needed any more. Answer: `Held`, of what was.
    BackupEnd {
        /// Which backup.
        backup: u64,
    },
    /// A metadata server names files that have no holes, from its own table as it is. Answer: `Files`.
    ListFiles {
        /// Those after this one, in the order of volumes and inodes.
        after: (VolumeId, InodeId),
        /// Inodes looked at, at the most (1 to 10,000).
        limit: u32,
    },
    /// A storage node says which map it has, and how far its disks are with each group. Answer: `Node`.
    HeldMap,
}

/// Answers to [`AdminRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminAnswer {
    /// A server's own state.
    Server(ServerStatus),
    /// Not understood or not allowed.
    Refused(String),
    /// A check of tables.
    Check(TableCheck),
    /// Chunks, in key order; fewer than wanted only if the range holds no more.
    Chunks(Vec<ChunkFacts>),
    /// The groups that the storage node is primary of.
    Scrubs(Vec<GroupScrub>),
    /// A table is held as it is, for a backup.
    Held(HeldTable),
    /// The server has not applied yet what was asked for.
    Behind {
        /// What it has applied.
        applied: LogIndex,
    },
    /// Rows of a table, in key order.
    Rows {
        /// Keys and values.
        rows: Vec<(Bytes, Bytes)>,
        /// There are no more.
        last: bool,
    },
    /// Files.
    Files {
        /// Some of them.
        files: Vec<WholeFile>,
        /// Where to go on; `None`: there are no more.
        next: Option<(VolumeId, InodeId)>,
    },
    /// What a storage node knows and holds.
    Node(Box<HeldByNode>),
}

/// How it stands with the scrub of a group, at its primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupScrub {
    /// Which.
    pub group: GroupId,
    /// The last one that ended: seconds since then, and what it found.
    pub last: Option<(u64, ScrubResult)>,
    /// The one under way, and what it has found so far.
    pub running: Option<ScrubResult>,
    /// Seconds until the next one is due; 0: it waits for its turn.
    pub due: u64,
}

/// A file of which every byte was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeFile {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which.
    pub inode: InodeId,
    /// Its present content.
    pub generation: Generation,
    /// Bytes; more than 0.
    pub size: u64,
}

/// A table that a metadata server holds on to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldTable {
    /// Names the backup.
    pub backup: u64,
    /// The last entry whose changes it holds.
    pub index: LogIndex,
    /// Term of that entry.
    pub term: Term,
    /// About how many bytes it takes.
    pub bytes: u64,
}

/// What a storage node knows and holds: what a metadata service that is restored must not contradict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldByNode {
    /// The newest map it had. Version 0: none since it was started, and none was kept.
    pub map: ClusterMap,
    /// Groups that its disks hold something of.
    pub groups: Vec<HeldGroup>,
}

/// How far a disk is with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldGroup {
    /// Which group.
    pub group: GroupId,
    /// The disk, in its present life.
    pub member: MemberId,
    /// Number of the last change that it was given.
    pub last: OpNumber,
}

/// How far a metadata server's check of its own tables is, and what it has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableCheck {
    /// Names the check.
    pub check: u64,
    /// Inodes looked at so far, and how many there are by the volumes' totals.
    pub inodes: (u64, u64),
    /// Entries of directories looked at so far.
    pub entries: u64,
    /// What is wrong; the first thousand.
    pub findings: Vec<String>,
    /// How many findings there are in all.
    pub findings_total: u64,
    /// It has ended.
    pub done: bool,
    /// Why it could not look at everything.
    pub failed: Option<String>,
}

/// A chunk as a member holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkFacts {
    /// Which.
    pub chunk: ChunkKey,
    /// Its written bytes, counted from the start.
    pub length: u32,
    /// CRC-32 of its block sums: equal contents have equal ones.
    pub digest: u32,
    /// Asked to verify, a block did not have its sum, or could not be read.
    pub damaged: bool,
}

/// An inode as the check of chunks needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeFacts {
    /// Its generation, and the end of everything that may have been written under it. `None`: there is no such inode.
    pub content: Option<(Generation, u64)>,
    /// Generations whose chunks are being removed.
    pub purging: Vec<Generation>,
    /// The whole volume is being removed.
    pub volume_gone: bool,
    /// Bytes, from the first, all of which were written. 0: it is empty, no file, or may have holes.
    pub whole: u64,
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
    /// Ids of storage nodes that are gone: they are not given again.
    pub storage_gone: Vec<NodeId>,
    /// What moves between them.
    pub rebuild: RebuildStatus,
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

/// Whether a storage node is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoragePlace {
    /// It has its share of the groups.
    In,
    /// Its groups move to others; it serves them until they are whole there, and goes on being a part of the pool.
    Draining,
    /// As `Draining`, and when nothing is left on it, it is gone.
    Leaving {
        /// It stays as it is until this one has come.
        successor: Option<NodeId>,
    },
    /// It is out. Its id is not given again.
    Gone,
}

/// What moves between storage nodes, and how long that takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildStatus {
    /// Homes of groups on disks that are given up: they have a copy less than they should until it is made elsewhere.
    pub lost: u32,
    /// Homes on disks that are to be emptied.
    pub draining: u32,
    /// Homes that move for failure domains and for balance.
    pub moving: u32,
    /// Groups that are being copied just now.
    pub under_way: u32,
    /// About how many bytes are to be copied.
    pub bytes_left: u64,
    /// About how long it takes, in seconds; `None` while nothing is known of the speed.
    pub seconds_left: Option<u64>,
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
    /// Whether it is to be used.
    pub place: StoragePlace,
    /// Groups that are placed on it, and groups that leave it.
    pub home_of: u32,
    /// Of these, those that are still to leave it.
    pub leaving_of: u32,
    /// It has been away for so long that its groups are placed on others.
    pub given_up: bool,
    /// Its failure domains.
    pub labels: Vec<(String, String)>,
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
    /// It is slower than its peers, and somebody else leads its groups.
    pub slow: Option<Slowness>,
}

/// In what a disk is slower than its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlowIn {
    /// Reads of it.
    Reads,
    /// Making changes durable on it.
    Writes,
    /// Its node: what it is asked and answers is late.
    Answers,
}

/// A disk that is slower than its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowness {
    /// In what.
    pub what: SlowIn,
    /// How long that takes of late, in microseconds.
    pub takes_us: u32,
    /// How long it takes its peers.
    pub peers_us: u32,
    /// It is out of the views of groups that can spare it, until it is fast again.
    pub out: bool,
    /// It is fast again, and used as before when it has stayed so for a while.
    pub on_probation: bool,
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
    /// Name that an orchestrator gave to what uses the mount. Empty: none.
    pub instance: String,
    /// Generation of that instance.
    pub instance_generation: InstanceGeneration,
    /// How it stands with the volumes' leader, as the answering server has heard.
    pub state: SessionState,
}

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionState {
    /// It is opened and waits to be let in.
    Attaching,
    /// It is attached. It alone may cache what the volume holds, or works through the servers.
    Attached {
        /// It may cache.
        caching: bool,
    },
    /// It was not heard of for its time to live: whoever wants what it holds gets it.
    Silent {
        /// When that was found out.
        since: Timestamp,
    },
    /// It is over, and storage nodes are being told.
    Ending {
        /// Why.
        reason: String,
    },
}
