//! How much room the pool has, for `statfs(2)`.
//!
//! * Shard 0's leader knows, from heartbeats. It tells all other servers once a second: the volumes' leader answers `statfs(2)`, and whoever
//!   leads next should not have to guess until it has heard of every node.
//! * A byte of a file is on `replicas` disks, and which ones the file's groups say. Every disk takes its share of what is written: the groups at
//!   home there, of all groups. The disk that is full first is the first to refuse, so the pool has room for no more than brings it there.
//! * A node that is dead has nothing free, and takes no share: what is written meanwhile is on the others.

use super::Cluster;
use super::nodes::Heard;
use crate::api::{Effect, ticks};
use crate::core::MetadataCore;
use holdfast_types::NodeId;
use holdfast_wire::metadata::DiskState;
use holdfast_wire::peer::{PeerMessage, PoolSpace};
use std::collections::BTreeMap;
use std::time::Duration;

/// How often other servers are told, in ticks.
const SAY_TICKS: u64 = ticks(Duration::from_secs(1));

/// What this server knows of it.
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// The last that was found out, or told.
    known: Option<PoolSpace>,
    said: u64,
}

impl MetadataCore {
    /// Room in the pool as far as this server knows.
    pub(crate) fn pool_space(&self) -> PoolSpace {
        self.look_for_space().or(self.space.known).unwrap_or_else(|| {
            // Nobody has said anything yet: the leader is new.
            let total = self.cluster.machine.pool_bytes();
            PoolSpace { total, free: total, available: total }
        })
    }

    /// The leader of shard 0 says how much room there is.
    pub(crate) fn space_told(&mut self, space: PoolSpace) {
        self.space.known = Some(space);
    }

    pub(crate) fn tick_space(&mut self) {
        if self.ticks < self.space.said + SAY_TICKS || self.cluster_lead.since.is_none() {
            return;
        }
        self.space.said = self.ticks;
        let Some(space) = self.look_for_space() else { return };
        self.space.known = Some(space);
        let others = self.cluster.machine.servers.keys().copied().filter(|to| *to != self.config.id);
        self.out.extend(others.map(|to| Effect::Send { to, message: PeerMessage::Space(space) }));
    }

    /// `None`: this server does not lead shard 0, or has not heard of all nodes yet.
    fn look_for_space(&self) -> Option<PoolSpace> {
        self.cluster_lead.since?;
        space(&self.cluster.machine, &self.cluster_lead.heard)
    }
}

fn space(machine: &Cluster, heard: &BTreeMap<NodeId, Heard>) -> Option<PoolSpace> {
    let mut homes = BTreeMap::<_, u64>::new();
    for place in machine.groups.iter().flat_map(|row| &row.homes) {
        *homes.entry(*place).or_default() += 1;
    }
    let groups = machine.groups.len() as u64;
    let (mut free, mut available) = (0_u64, u64::MAX);
    for (node, row) in machine.present() {
        if !row.record.alive {
            continue;
        }
        for disk in heard.get(node)?.disks.iter().filter(|disk| !disk.failed) {
            free = free.saturating_add(disk.free);
            if let Some(here) = homes.get(&(*node, disk.id)) {
                available = available.min(times(disk, groups, *here));
            }
        }
    }
    let total = machine.pool_bytes();
    let free = (free / u64::from(machine.settings.replicas.max(1))).min(total);
    Some(PoolSpace { total, free, available: available.min(free) })
}

/// What is written until this disk refuses, if it takes `here` of `groups`.
fn times(disk: &DiskState, groups: u64, here: u64) -> u64 {
    let room = disk.free.saturating_sub(disk.reserve);
    let bytes = u128::from(room) * u128::from(groups) / u128::from(here.max(1));
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
