//! The cluster map: nodes, views, live sessions. Its version is an index of shard 0.
//!
//! Invariants of every map that shard 0 publishes:
//! * `primary` is one of `in_sync`; `in_sync` is never empty; no disk of a node appears twice in a view.
//! * An epoch rises by every change of its view.
//! * A session id at or below `session_newest` that is not in `sessions` is over, for ever.

use holdfast_types::{
    DiskId, Epoch, GroupId, Incarnation, MapVersion, MemberId, NodeId, ServerId, SessionId, Term, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who serves a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Rises with every change.
    pub epoch: Epoch,
    /// The member that numbers operations; one of `in_sync`.
    pub primary: MemberId,
    /// Members that hold every acknowledged operation durably. Sorted.
    pub in_sync: Vec<MemberId>,
    /// Members that receive operations and are being caught up. Sorted.
    pub syncing: Vec<MemberId>,
}

impl View {
    /// Whether this disk, in this life, is in the view at all.
    pub fn has(&self, member: MemberId) -> bool {
        self.in_sync.contains(&member) || self.syncing.contains(&member)
    }

    /// All members.
    pub fn members(&self) -> impl Iterator<Item = MemberId> + '_ {
        self.in_sync.iter().chain(&self.syncing).copied()
    }
}

/// A disk as its node last registered it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Unique within the node.
    pub id: DiskId,
    /// Its present life.
    pub incarnation: Incarnation,
    /// Bytes in all.
    pub capacity: u64,
}

/// A storage node as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Who.
    pub id: NodeId,
    /// `HOST:PORT` of the data transport.
    pub address: String,
    /// Failure domains from the widest to the narrowest, for instance `("rack", "r1")`. Empty today.
    pub labels: Vec<(String, String)>,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
    /// False while the leader counts it as silent.
    pub alive: bool,
}

impl NodeRecord {
    /// Its disks, each in the life it was last heard in.
    pub fn lives(&self) -> impl Iterator<Item = (DiskId, Incarnation)> + '_ {
        self.disks.iter().map(|disk| (disk.id, disk.incarnation))
    }
}

/// What a live session may do, as storage nodes need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGrant {
    /// The only volume whose chunks it may touch.
    pub volume: VolumeId,
    /// It may not change anything.
    pub read_only: bool,
}

/// Everything a node or client needs to route and to refuse.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Index of shard 0 that last changed it. 0: no map yet.
    pub version: MapVersion,
    /// Feature level activated in the whole cluster.
    pub feature_level: u32,
    /// Copies that a group should have.
    pub replicas: u32,
    /// Members in sync below which writes wait: half the replicas, rounded down, plus one.
    pub min_in_sync: u32,
    /// Nodes by id.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Views by group; the length is the pool's number of groups, a power of two. Empty until enough nodes registered.
    pub views: Vec<View>,
    /// Disks whose copies of a group are to be kept, by group: where it is placed, and where it was placed before until it is whole. A disk
    /// that is neither here nor in the view may remove its copy.
    pub homes: Vec<Vec<(NodeId, DiskId)>>,
    /// Live sessions.
    pub sessions: BTreeMap<SessionId, SessionGrant>,
    /// The greatest session id ever given.
    pub session_newest: SessionId,
    /// Term of the newest leader of the volumes that said it would remove chunks: whoever led before removes none any more.
    pub service_term: Term,
    /// Metadata servers, and where each listens (`HOST:PORT`). Empty before the first leader has written them down.
    pub servers: BTreeMap<ServerId, String>,
}

impl ClusterMap {
    /// The view of a group, if the pool is formed.
    pub fn view(&self, group: GroupId) -> Option<&View> {
        self.views.get(group.0 as usize)
    }

    /// What a session may do, if it is alive as far as this map knows. `None` for one that is over.
    /// A session newer than this map is not known here either: compare with `session_newest` first.
    pub fn session(&self, session: SessionId) -> Option<SessionGrant> {
        self.sessions.get(&session).copied()
    }

    /// Applies a delta that starts at this map's version or below it; one that starts above is left alone.
    ///
    /// Returns whether the map is now at the delta's end.
    pub fn apply(&mut self, delta: &MapDelta) -> bool {
        if delta.from > self.version {
            return false;
        }
        if delta.to <= self.version {
            return true;
        }
        for node in &delta.nodes {
            self.nodes.insert(node.id, node.clone());
        }
        for id in &delta.nodes_removed {
            self.nodes.remove(id);
        }
        for (group, view) in &delta.views {
            self.views[group.0 as usize] = view.clone();
        }
        for (group, homes) in &delta.homes {
            if let Some(known) = self.homes.get_mut(group.0 as usize) {
                known.clone_from(homes);
            }
        }
        for (session, grant) in &delta.sessions_opened {
            self.sessions.insert(*session, *grant);
        }
        for session in &delta.sessions_ended {
            self.sessions.remove(session);
        }
        self.session_newest = self.session_newest.max(delta.session_newest);
        self.service_term = self.service_term.max(delta.service_term);
        self.version = delta.to;
        true
    }
}

/// What changed between two versions of the map. A change of the other fields travels as a whole map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDelta {
    /// Applies to maps of this version or newer.
    pub from: MapVersion,
    /// The version it leads to.
    pub to: MapVersion,
    /// Nodes that are new or changed.
    pub nodes: Vec<NodeRecord>,
    /// Nodes that are gone.
    pub nodes_removed: Vec<NodeId>,
    /// Views that changed, each with a higher epoch.
    pub views: Vec<(GroupId, View)>,
    /// Groups that are to be kept elsewhere than before.
    pub homes: Vec<(GroupId, Vec<(NodeId, DiskId)>)>,
    /// Sessions opened and still alive at `to`.
    pub sessions_opened: Vec<(SessionId, SessionGrant)>,
    /// Sessions ended.
    pub sessions_ended: Vec<SessionId>,
    /// The greatest session id given by then.
    pub session_newest: SessionId,
    /// As in the map, by then.
    pub service_term: Term,
}

/// How a newer map travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapUpdate {
    /// The asker has the newest there is.
    Unchanged,
    /// All of it.
    Full(Box<ClusterMap>),
    /// Changes since what the asker has.
    Delta(Box<MapDelta>),
}
