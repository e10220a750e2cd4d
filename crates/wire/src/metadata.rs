//! Requests to the metadata service and their answers. Every request names its shard.
//!
//! | shard | requests |
//! | --- | --- |
//! | 0, the cluster | sessions' ids, fences, nodes, views, the map, volumes |
//! | 1, the volumes | attaching, renewals, events, names and attributes |
//!
//! A request is sent to the server believed to lead the shard; another one answers [`MetadataError::NotLeader`] with a hint.

use crate::admin::{ServerPlace, StoragePlace};
use crate::map::MapUpdate;
use crate::namespace::{
    Attributes, Labels, Limits, Mutation, NamespaceError, Outcome, Query, VolumeFacts, VolumeRecord,
};
use holdfast_types::{
    DiskId, Epoch, GroupId, Incarnation, InodeId, InstanceGeneration, LogIndex, MapVersion, MemberId, NodeId, Sequence,
    ServerId, SessionId, ShardId, Term, Timestamp, VolumeId,
};
use serde::{Deserialize, Serialize};

/// A request, with what is needed to answer it exactly once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Who is to answer.
    pub shard: ShardId,
    /// On whose behalf; `NONE` outside a session.
    pub session: SessionId,
    /// Number of a mutation within its session, from 1; 0 for anything else.
    pub sequence: Sequence,
    /// The session has every answer below this sequence: they need not be kept, and a request below it is stale.
    pub answered_below: Sequence,
    /// Term in which the leases that this request relies on were granted; 0: none.
    pub term: Term,
    /// What is asked.
    pub request: Request,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Request {
    // ---- shard 0 ----
    /// Opens a session. `nonce` makes a repetition find the first one. Answer: `SessionOpened`.
    OpenSession {
        /// Name of the volume.
        volume: String,
        /// Who asks.
        client: ClientRecord,
        /// Nothing will be changed.
        read_only: bool,
        /// Drawn by the client for this session.
        nonce: u128,
    },
    /// Ends a session and waits until every storage node refuses it. Answer: `Fenced`. Asked by shard 1's leader and by administrators.
    FenceSession {
        /// Which.
        session: SessionId,
    },
    /// The map, if newer than what the asker has; waits for a change if `wait`. Answer: `Map`.
    GetMap {
        /// What the asker has.
        have: MapVersion,
        /// Hold the answer until there is a newer one (or the deadline is near: then `Unchanged`).
        wait: bool,
    },
    /// A storage node says that it lives, which disks in which incarnations it serves, and which map it has. Answer: `Heard`.
    Heartbeat(Heartbeat),
    /// A primary asks that a syncing member, which now holds every settled operation durably, counts as in sync. Answer: `View`.
    Promote {
        /// Of which group.
        group: GroupId,
        /// Epoch of the primary's view.
        epoch: Epoch,
        /// The member.
        member: MemberId,
    },
    /// A member asks that another, which does not answer, is taken out of the view. Answer: `View`.
    Evict {
        /// Of which group.
        group: GroupId,
        /// Epoch of the asker's view.
        epoch: Epoch,
        /// Who is to go.
        member: MemberId,
        /// Who asks.
        reporter: MemberId,
        /// Other members in sync that owe a primary an answer for a while: if too few are left, it is the primary that is out of reach.
        silent: Vec<MemberId>,
    },
    /// A storage node finds nobody listening where another was: that process has ended. Two of them are believed at once, one if the node
    /// has missed a heartbeat as well. Answer: `Done`.
    ReportGone {
        /// Which node.
        node: NodeId,
        /// Its disks in the lives that are over.
        lives: Vec<(DiskId, Incarnation)>,
        /// Who says so.
        reporter: NodeId,
    },
    /// A planned stop: takes a node out of its views first, as far as that leaves somebody in sync. Answer: `Done`.
    LeaveViews {
        /// Which node.
        node: NodeId,
    },
    /// The leader of the volumes in a term is about to remove chunks: nobody of an earlier term may, from the map on that says so.
    /// Asked by metadata servers. Answer: `Done`.
    LeadVolumes {
        /// Its term.
        term: Term,
    },
    /// The members of the volumes' log are as a server's place on record wants them: its leader says so, who alone knows it for certain.
    /// Asked by metadata servers. Answer: `Done`.
    ServerArrived {
        /// Which server.
        server: ServerId,
        /// Its place as it was read from the record.
        place: ServerPlace,
    },
    /// A new metadata server, which has an empty log, is to be caught up and to vote; in the step in which it begins to vote, another
    /// one may leave. One change at a time. Answer: `Done` when that is on record; `Status` tells how far it is. Asked by administrators.
    AddServer {
        /// Its id, never used before.
        server: ServerId,
        /// `HOST:PORT` of its control transport.
        address: String,
        /// Who leaves.
        replaces: Option<ServerId>,
    },
    /// A metadata server is to leave for good. Answer and progress as for `AddServer`. Asked by administrators.
    RemoveServer {
        /// Which.
        server: ServerId,
    },
    /// A storage node is to be used, or emptied, or to leave for good (`Gone` is not asked for: it comes of itself). Answer: `Done` when
    /// that is on record; `Status` tells how far it is. Asked by administrators.
    PlaceStorage {
        /// Which.
        node: NodeId,
        /// What is to become of it.
        place: StoragePlace,
    },
    /// Creates a volume. Answer: `Volume`.
    CreateVolume {
        /// Its name.
        name: String,
        /// What it may hold at the most.
        limits: Limits,
        /// Its first labels.
        labels: Labels,
    },
    /// Gives a volume other labels, all of them, if they are still those of `version`; else nothing is changed. Answer: `VolumeFacts` of
    /// what holds then: the version says whether it was changed. Asked by administrators and orchestrators.
    LabelVolume {
        /// Its name.
        name: String,
        /// The labels that the asker has seen.
        version: u64,
        /// The new ones.
        labels: Labels,
    },
    /// A volume and its labels. Answer: `VolumeFacts` of one, or `NoVolume`.
    DescribeVolume {
        /// Its name.
        name: String,
    },
    /// Volumes and their labels, in the order of names. Answer: `VolumeFacts`, at least one unless there are no more.
    DescribeVolumes {
        /// Those after this name; empty: from the first.
        after: String,
        /// Volumes wanted at the most (1 to 1,000).
        limit: u32,
    },
    /// Sets what a volume may hold at the most; what it holds already stays. It takes effect within a second. Answer: `Volume`.
    /// Asked by administrators.
    LimitVolume {
        /// Its name.
        name: String,
        /// Both of them: what is not given is no limit any more.
        limits: Limits,
    },
    /// Deletes a volume and, in the background, all it holds. Answer: `Done`.
    DeleteVolume {
        /// Its name.
        name: String,
    },
    /// Lists volumes. Answer: `Volumes`.
    ListVolumes,
    /// The cluster's state in one answer. Answer: `Status`.
    Status,

    // ---- shard 1 ----
    /// A session that shard 0 has fenced changes nothing in its volume from now on. Answer: `Done`, when that is committed.
    EndSession {
        /// Which one.
        session: SessionId,
    },
    /// Sessions of an instance with a lesser generation are over, and none is let in again. Answer: `Done`, when every storage node
    /// refuses them. The same again is done at once. Asked by administrators and orchestrators.
    RaiseGeneration {
        /// On which volume.
        volume: VolumeId,
        /// Whose (1 to 255 bytes).
        instance: String,
        /// The least that is let in.
        generation: InstanceGeneration,
    },
    /// Attaches a session to its volume's namespace; waits until another session has stopped caching, or has ended. Answer: `Attached`.
    Attach {
        /// The volume (as `OpenSession` answered it).
        volume: VolumeRecord,
        /// Who attaches.
        client: ClientRecord,
        /// Nothing will be changed.
        read_only: bool,
    },
    /// Clean end: the session has flushed everything. Ends and fences it. Answer: `Done`.
    Detach,
    /// The session lives. Answer: `Renewed`.
    Renew {
        /// Highest event already seen.
        seen: u64,
        /// Hold the answer until there is an event above `seen`, or the deadline is near.
        wait: bool,
    },
    /// Answer to `Event::StopCaching`: everything is flushed, nothing is cached from now on. Answer: `Done`.
    StoppedCaching {
        /// The event that is answered.
        event: u64,
        /// Inodes open on the session: recorded as if by `Open`.
        open: Vec<InodeId>,
    },
    /// Reads.
    Query(Query),
    /// Changes.
    Mutate(Mutation),
    /// What a check of chunks needs to know of some inodes (up to 1,000), outside of any session. Answer: `Inodes`, in their order.
    InspectInodes {
        /// Which.
        inodes: Vec<(VolumeId, InodeId)>,
    },
}

/// A client as administrators know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// Its host's name.
    pub host: String,
    /// Process id of the mount.
    pub pid: u32,
    /// Where it is mounted.
    pub mount_point: String,
    /// Name that an orchestrator gave to what uses the mount. Empty: none.
    pub instance: String,
    /// Generation of that instance.
    pub instance_generation: InstanceGeneration,
}

/// A storage node's sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub node: NodeId,
    /// `HOST:PORT` of its data transport.
    pub address: String,
    /// Failure domains.
    pub labels: Vec<(String, String)>,
    /// Its process id, for administrators.
    pub pid: u32,
    /// Its disks.
    pub disks: Vec<DiskState>,
    /// The node holds this map, and every operation of sessions ended by it is settled or handed to a newer view.
    pub acknowledged: MapVersion,
    /// It is stopping on purpose.
    pub leaving: bool,
    /// How long the leader's answers to its heartbeats take of late, in microseconds; `None`: not known yet.
    pub round_trip_us: Option<u32>,
}

/// A disk's state within a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Which disk.
    pub id: DiskId,
    /// Its present life.
    pub incarnation: Incarnation,
    /// Bytes in all.
    pub capacity: u64,
    /// Bytes free.
    pub free: u64,
    /// Bytes that are to stay free: with less, what grows is refused.
    pub reserve: u64,
    /// Age of the oldest unfinished operation, in milliseconds.
    pub oldest_operation_ms: u64,
    /// It failed: it is to leave its views.
    pub failed: bool,
    /// How long a read that waits for the disk takes of late, in microseconds; `None`: not known yet.
    pub read_us: Option<u32>,
    /// How long changes take of late to become durable, without what their bytes explain; `None`: not known yet.
    pub write_us: Option<u32>,
}

/// What a session must act upon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Somebody else wants to attach: flush, drop what is cached, cache no more, then answer `StoppedCaching`.
    StopCaching,
    /// The session is alone: it may cache from now on.
    StartCaching,
    /// The session is over.
    Ended {
        /// Why, for the user.
        reason: String,
    },
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Done,
    /// A session.
    SessionOpened {
        /// Its id.
        session: SessionId,
        /// The volume.
        volume: VolumeRecord,
        /// `map_min` of its data requests.
        map_min: MapVersion,
    },
    /// A session is over: no storage node takes anything from it any more.
    Fenced {
        /// The map version from which it is so.
        version: MapVersion,
    },
    /// The map.
    Map(MapUpdate),
    /// A heartbeat was heard.
    Heard {
        /// Newest map.
        version: MapVersion,
        /// The leader's clock, for the record.
        now: Timestamp,
    },
    /// The view as it is now, whether or not it was changed.
    View {
        /// Of which group.
        group: GroupId,
        /// The view.
        view: crate::map::View,
        /// The map version that holds it.
        version: MapVersion,
    },
    /// A volume.
    Volume(VolumeRecord),
    /// Volumes.
    Volumes(Vec<VolumeRecord>),
    /// Volumes with their labels.
    VolumeFacts(Vec<VolumeFacts>),
    /// The cluster's state.
    Status(Box<crate::admin::ClusterStatus>),
    /// Attached.
    Attached {
        /// The root.
        root: Attributes,
        /// It may cache.
        caching: bool,
        /// The leader's clock.
        now: Timestamp,
        /// Events up to this number are history.
        event: u64,
    },
    /// The session lives for another TTL, counted from when it sent the renewal.
    Renewed {
        /// Events above `seen`, in order, with their numbers.
        events: Vec<(u64, Event)>,
        /// It may cache.
        caching: bool,
        /// The leader's clock.
        now: Timestamp,
    },
    /// Answer of a namespace operation.
    Outcome(Outcome),
    /// Inodes, in the order they were asked for.
    Inodes(Vec<crate::admin::InodeFacts>),
}

/// Why there is no such answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum MetadataError {
    /// Ask somebody else. The request was not, and will not be, executed by this server on account of this message.
    #[error("not the leader of the shard")]
    NotLeader {
        /// Who probably leads.
        hint: Option<ServerId>,
    },
    /// Not now; the request may or may not take effect. Ask again, with the same sequence.
    #[error("not available: {reason}")]
    Unavailable {
        /// Why, for the log.
        reason: String,
    },
    /// The sequence is below the session's floor: it was answered long ago.
    #[error("stale sequence")]
    StaleSequence,
    /// Too many answers are unacknowledged; confirm some first.
    #[error("too many unanswered requests")]
    Backpressure,
    /// The session is over.
    #[error("session is over: {reason}")]
    SessionEnded {
        /// Why, for the user.
        reason: String,
    },
    /// A greater generation of the same instance is attached.
    #[error("superseded by generation {by}")]
    Superseded {
        /// That generation.
        by: InstanceGeneration,
    },
    /// No such volume.
    #[error("no volume {name:?}")]
    NoVolume {
        /// The name asked for.
        name: String,
    },
    /// A volume of that name exists.
    #[error("a volume {name:?} exists")]
    VolumeExists {
        /// The name.
        name: String,
    },
    /// Bad volume name or other argument.
    #[error("invalid: {reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// The volume is in use.
    #[error("volume {name:?} is mounted by {sessions} session(s)")]
    Busy {
        /// The volume.
        name: String,
        /// By how many.
        sessions: u32,
    },
    /// The namespace refuses.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The certificate does not allow this.
    #[error("not allowed for this peer")]
    Forbidden,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Term of the server that answers.
    pub term: Term,
    /// Index of the shard's log at which the answer holds: where a mutation was applied, or what a read has seen.
    pub applied: LogIndex,
    /// The answer.
    pub result: Result<Response, MetadataError>,
}
