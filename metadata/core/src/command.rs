//! What may be proposed. A command holds all that its effect depends on: time, random choices and decisions that the leader
//! took from what only it knows. `apply` checks each against the state it finds, for that may have changed since.

use holdfast_types::{
    DiskId, Epoch, Generation, GroupId, InodeId, InstanceGeneration, MemberId, NodeId, Sequence, ServerId, SessionId,
    Term, Timestamp, VolumeId,
};
use holdfast_wire::admin::StoragePlace;
use holdfast_wire::map::{DiskRecord, View};
use holdfast_wire::metadata::ClientRecord;
use holdfast_wire::namespace::{Labels, Limits, Mutation, VolumeRecord};
use serde::{Deserialize, Serialize};

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// Chosen by the leader when it proposed. Replicas use it, and nothing else, as "now".
    pub(crate) stamp: Timestamp,
    pub(crate) command: Command,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Of shard 1.
    Volumes(VolumesCommand),
    /// Of shard 0.
    Cluster(ClusterCommand),
}

/// Commands of shard 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum VolumesCommand {
    /// A session changes its volume. Exactly once by session and sequence. Leases that it relies on were checked in `term`
    /// (0: none); in another term it is not applied.
    Mutate { session: SessionId, sequence: Sequence, answered_below: Sequence, term: Term, mutation: Mutation },
    /// A session begins. Waits while another one caches or is ending.
    Attach { session: SessionId, volume: VolumeRecord, client: ClientRecord, read_only: bool },
    /// A caching session is told to stop.
    Recall { session: SessionId },
    /// It has, and has these inodes open.
    StoppedCaching { session: SessionId, event: u64, open: Vec<InodeId> },
    /// A session that is alone is told that it may cache.
    StartCaching { session: SessionId },
    /// Sessions are over; what they held is given to nobody yet. One that never attached is over, too.
    End { sessions: Vec<(SessionId, String)> },
    /// A session that storage nodes refuse by now gives back what it held, some rows at a time.
    EndStep { session: SessionId, rows: u32 },
    /// Sessions were silent for long (true) or are heard again (false).
    Park { sessions: Vec<(SessionId, bool)> },
    /// Generations whose chunks are gone, and files whose end is gone.
    Cleaned { purged: Vec<(VolumeId, InodeId, Generation)>, trimmed: Vec<Trimmed> },
    /// A volume's limits were changed, for the time that the version says.
    Limit { volume: VolumeId, version: u64, limits: Limits },
    /// Too few servers have room on their disks for what grows, or enough have again.
    Room { short: bool },
    /// No session of an instance is let in with a lesser generation from now on, and those that there are are over.
    RaiseGeneration { volume: VolumeId, instance: String, generation: InstanceGeneration },
    /// A volume was deleted: nobody attaches any more.
    DropVolume { volume: VolumeId },
    /// Its rows go, some at a time.
    DropStep { volume: VolumeId, rows: u32 },
    /// Its chunks are gone.
    Dropped { volume: VolumeId },
}

/// A range of a file that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trimmed {
    pub(crate) volume: VolumeId,
    pub(crate) inode: InodeId,
    pub(crate) generation: Generation,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Commands of shard 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ClusterCommand {
    /// A new session of a volume.
    OpenSession { volume: String, client: ClientRecord, read_only: bool, nonce: u128 },
    /// Sessions are over.
    Fence { sessions: Vec<SessionId> },
    /// Nodes and views change.
    Update { nodes: Vec<NodeChange>, views: Vec<ViewChange> },
    /// The pool comes into being, with its first volume.
    Form { replicas: u32, feature_level: u32, views: Vec<View>, volume: String },
    /// A new volume.
    CreateVolume { name: String, limits: Limits, labels: Labels },
    /// A volume's labels are these, if they are still those of a version.
    LabelVolume { name: String, version: u64, labels: Labels },
    /// A volume's limits are these.
    LimitVolume { name: String, limits: Limits },
    /// A volume goes; its name is free at once.
    DeleteVolume { name: String },
    /// All that a deleted volume held is gone.
    VolumeGone { volume: VolumeId },
    /// Who was there from the first, and where.
    Found { servers: Vec<(ServerId, String)> },
    /// The lives of logs that were heard for the first time.
    Lives { lives: Vec<(ServerId, u64)> },
    /// A metadata server is to join, and perhaps another one to leave in the same step.
    AddServer { server: ServerId, address: String, replaces: Option<ServerId> },
    /// A metadata server is to leave.
    RemoveServer { server: ServerId },
    /// Both shards are as was wanted of this server.
    ServerSettled { server: ServerId },
    /// Somebody leads the volumes in this term: storage nodes take no purges and cuts of an earlier one any more.
    ServiceLeads { term: Term },
    /// Groups move house.
    Rehome { moves: Vec<Move> },
    /// A storage node is to be used, emptied, or given up.
    PlaceStorage { node: NodeId, place: StoragePlace },
}

/// A group's home on one disk becomes one on another; refused if it has none there by then, or may not have one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Move {
    pub(crate) group: GroupId,
    pub(crate) from: (NodeId, DiskId),
    pub(crate) to: (NodeId, DiskId),
}

/// A change of a storage node's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeChange {
    /// New, or with other disks, incarnations or address. Alive.
    Register { node: NodeId, address: String, labels: Vec<(String, String)>, disks: Vec<DiskRecord> },
    /// Heard again.
    Heard { node: NodeId },
    /// Silent.
    Silent { node: NodeId },
    /// It was to leave, and nothing is left on it.
    Gone { node: NodeId },
}

/// A change of one view; refused if the view has another epoch by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ViewChange {
    pub(crate) group: GroupId,
    pub(crate) epoch: Epoch,
    pub(crate) steps: Vec<ViewStep>,
}

/// What changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ViewStep {
    /// A member goes; the last one in sync stays.
    Remove { member: MemberId },
    /// A disk is caught up from now on.
    Add { member: MemberId },
    /// A member that is caught up counts as in sync: its primary says so.
    Promote { member: MemberId },
    /// A member in sync becomes the primary.
    Lead { member: MemberId },
    /// No member in sync kept its incarnation: these later lives of their disks take their places.
    Reform { members: Vec<MemberId> },
}

/// A disk of a node, apart from its life.
pub(crate) fn home(member: MemberId) -> (NodeId, DiskId) {
    (member.node, member.disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_comes_back_as_it_was() {
        let mutation = Mutation::Open { inode: InodeId(7) };
        let proposal = Proposal {
            stamp: Timestamp { seconds: 1, nanos: 2 },
            command: Command::Volumes(VolumesCommand::Mutate {
                session: SessionId(1),
                sequence: Sequence(2),
                answered_below: Sequence(1),
                term: Term(3),
                mutation,
            }),
        };
        let bytes = holdfast_wire::codec::encode(&proposal);
        assert_eq!(holdfast_wire::codec::decode::<Proposal>(&bytes).unwrap(), proposal);
    }
}
