//! The map as it is published: whole, or as the changes since a version.

use super::Cluster;
use super::placement::Place;
use crate::tables::cluster::GroupRow;
use holdfast_types::{GroupId, MapVersion, NodeId, SessionId, Term};
use holdfast_wire::map::{ClusterMap, MapDelta, MapUpdate, NodeRecord, SessionGrant, View};
use std::collections::{BTreeMap, VecDeque};

/// Deltas kept beyond what a configuration says would be no use: a whole map is then cheaper.
const DELTAS_MAX: usize = 1024;

/// What one command changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Change {
    pub(crate) nodes: Vec<NodeRecord>,
    pub(crate) nodes_removed: Vec<NodeId>,
    pub(crate) views: Vec<(GroupId, View)>,
    pub(crate) homes: Vec<(GroupId, Vec<Place>)>,
    pub(crate) opened: Vec<(SessionId, SessionGrant)>,
    pub(crate) ended: Vec<SessionId>,
    pub(crate) service_term: Term,
}

/// The latest changes, each beginning where the one before ends. In memory only: a server that starts has none.
#[derive(Debug, Default)]
pub(crate) struct Deltas {
    list: VecDeque<MapDelta>,
}

impl Deltas {
    pub(super) fn push(&mut self, from: MapVersion, to: MapVersion, change: Change, session_newest: SessionId) {
        let Change { nodes, nodes_removed, views, homes, opened, ended, service_term } = change;
        self.list.push_back(MapDelta {
            from,
            to,
            nodes,
            nodes_removed,
            views,
            homes,
            sessions_opened: opened,
            sessions_ended: ended,
            session_newest,
            service_term,
        });
        if self.list.len() > DELTAS_MAX {
            self.list.pop_front();
        }
    }

    pub(super) fn forget(&mut self) {
        self.list.clear();
    }

    /// All changes after a version, as one; `None` if they are not all here.
    fn since(&self, have: MapVersion, kept: usize) -> Option<MapDelta> {
        let skip = self.list.len().saturating_sub(kept);
        let mut newer = self.list.iter().skip(skip).skip_while(|delta| delta.to <= have).peekable();
        if newer.peek()?.from > have {
            return None;
        }
        let mut nodes: BTreeMap<NodeId, NodeRecord> = BTreeMap::new();
        let mut gone = Vec::new();
        let mut views: BTreeMap<GroupId, View> = BTreeMap::new();
        let mut homes: BTreeMap<GroupId, Vec<Place>> = BTreeMap::new();
        let mut opened: BTreeMap<SessionId, SessionGrant> = BTreeMap::new();
        let mut ended = Vec::new();
        let mut merged = MapDelta { from: have, ..MapDelta::default() };
        for delta in newer {
            nodes.extend(delta.nodes.iter().map(|node| (node.id, node.clone())));
            for node in &delta.nodes_removed {
                nodes.remove(node);
                gone.push(*node);
            }
            views.extend(delta.views.iter().cloned());
            homes.extend(delta.homes.iter().cloned());
            opened.extend(delta.sessions_opened.iter().copied());
            for session in &delta.sessions_ended {
                opened.remove(session);
                ended.push(*session);
            }
            (merged.to, merged.session_newest) = (delta.to, delta.session_newest);
            merged.service_term = merged.service_term.max(delta.service_term);
        }
        merged.nodes = nodes.into_values().collect();
        merged.nodes_removed = gone;
        merged.views = views.into_iter().collect();
        merged.homes = homes.into_iter().collect();
        merged.sessions_opened = opened.into_iter().collect();
        merged.sessions_ended = ended;
        Some(merged)
    }
}

impl Cluster {
    /// All of the map.
    pub(crate) fn whole_map(&self) -> ClusterMap {
        ClusterMap {
            version: self.settings.version,
            feature_level: self.settings.feature_level,
            replicas: self.settings.replicas,
            min_in_sync: self.settings.min_in_sync,
            nodes: self.present().map(|(id, row)| (*id, row.record.clone())).collect(),
            views: self.groups.iter().map(|row| row.view.clone()).collect(),
            homes: self.groups.iter().map(GroupRow::kept).collect(),
            sessions: self.live.iter().map(|(id, row)| (*id, row.grant)).collect(),
            session_newest: self.settings.session_newest,
            service_term: self.settings.service_term,
            servers: self.addresses(),
        }
    }

    /// What somebody with a version needs to have the newest.
    pub(crate) fn map_since(&self, have: MapVersion, kept: usize) -> MapUpdate {
        if have == self.settings.version {
            return MapUpdate::Unchanged;
        }
        let delta = if have.0 == 0 || have > self.settings.version { None } else { self.deltas.since(have, kept) };
        match delta {
            Some(delta) => MapUpdate::Delta(Box::new(delta)),
            None => MapUpdate::Full(Box::new(self.whole_map())),
        }
    }
}
