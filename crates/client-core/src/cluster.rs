//! Who leads which shard, and which map is known.

use crate::control::Purpose;
use crate::core::ClientCore;
use holdfast_types::{MapVersion, ServerId, ShardId};
use holdfast_wire::map::{ClusterMap, MapUpdate};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use std::time::Duration;

/// How long one question for a newer map may be held by the server.
const SUBSCRIPTION: Duration = Duration::from_secs(10);

/// What is known of the cluster.
pub(crate) struct Cluster {
    pub map: ClusterMap,
    /// Index of the server to ask, by shard.
    favourite: [usize; 2],
    /// A question for the map that is answered at once is under way.
    asking: bool,
}

impl Cluster {
    pub fn new() -> Self {
        Self { map: ClusterMap::default(), favourite: [0; 2], asking: false }
    }
}

fn slot(shard: ShardId) -> usize {
    usize::from(shard != ShardId::CLUSTER)
}

impl ClientCore {
    /// Who probably leads a shard.
    pub(crate) fn leader(&self, shard: ShardId) -> ServerId {
        self.config.servers[self.cluster.favourite[slot(shard)] % self.config.servers.len()]
    }

    /// `server` does not lead (or does not answer): ask the one it names, or the next in turn.
    /// Returns whether that is somebody it named.
    pub(crate) fn not_leader(&mut self, shard: ShardId, server: ServerId, hint: Option<ServerId>) -> bool {
        let named = hint.filter(|h| *h != server).and_then(|h| self.config.servers.iter().position(|s| *s == h));
        let favourite = &mut self.cluster.favourite[slot(shard)];
        if self.config.servers[*favourite % self.config.servers.len()] == server {
            *favourite = named.unwrap_or(*favourite + 1) % self.config.servers.len();
        }
        named.is_some()
    }

    /// The servers are those of the map, from now on; who was believed to lead is believed still.
    fn learn_servers(&mut self) {
        let servers: Vec<ServerId> = self.cluster.map.servers.keys().copied().collect();
        if servers.is_empty() || servers == self.config.servers {
            return;
        }
        let leaders = [ShardId::CLUSTER, ShardId::VOLUMES].map(|shard| self.leader(shard));
        self.cluster.favourite = leaders.map(|leader| servers.iter().position(|s| *s == leader).unwrap_or(0));
        self.config.servers = servers;
    }

    /// Keeps a question for every newer map open, and asks at once if somebody has seen a newer one.
    pub(crate) fn subscribe_map(&mut self) {
        let have = self.cluster.map.version;
        self.control_start(
            ShardId::CLUSTER,
            Request::GetMap { have, wait: have > MapVersion(0) },
            Purpose::Map { subscription: true },
            Some(SUBSCRIPTION),
        );
    }

    /// The map seems to be old.
    pub(crate) fn ask_map(&mut self) {
        if !self.cluster.asking {
            self.cluster.asking = true;
            let request = Request::GetMap { have: self.cluster.map.version, wait: false };
            self.control_start(ShardId::CLUSTER, request, Purpose::Map { subscription: false }, None);
        }
    }

    pub(crate) fn map_answered(&mut self, subscription: bool, result: Result<Response, MetadataError>) {
        if !subscription {
            self.cluster.asking = false;
        }
        let before = self.cluster.map.version;
        match result {
            Ok(Response::Map(MapUpdate::Full(map))) if map.version > before => {
                self.cluster.map = *map;
                self.learn_servers();
            }
            Ok(Response::Map(MapUpdate::Delta(delta))) => {
                self.cluster.map.apply(&delta);
            }
            _ => {}
        }
        if self.cluster.map.version > before {
            self.map_changed();
        }
        if subscription {
            self.subscribe_map();
        }
    }
}
