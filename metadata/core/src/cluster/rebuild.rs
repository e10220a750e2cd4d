//! When disks are given up and groups move: what the leader knows and counts beside the log.
//!
//! * A disk that is away is counted in the leader's own ticks, from when its node is silent; a new leader begins anew.
//! * While more than a quarter of the pool is silent without a reason nothing is counted: that is a cut, or a loss of power, and what is
//!   cut off has everything.
//! * What a group has lost is made again on another disk when its disk has been away for `out_after`, or is removed.

use super::lead::Work;
use super::nodes::Standing;
use super::placement::moves::{Pace, Placed, Plan, plan};
use super::placement::{Disk, Place, Stand, Topology};
use crate::api::ticks;
use crate::command::{ClusterCommand, ViewStep, home};
use crate::core::MetadataCore;
use crate::tables::cluster::{GroupRow, NodeRow};
use holdfast_types::{DiskId, Incarnation, MemberId, NodeId};
use holdfast_wire::admin::{RebuildStatus, StoragePlace};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How often moves are looked for.
const PLAN_TICKS: u64 = ticks(Duration::from_secs(1));
/// A node must have lived for so long before groups move to it: one that comes and goes gets none.
const STEADY_TICKS: u64 = ticks(Duration::from_secs(10));
/// Moves of one command, at the most.
const MOVES_AT_ONCE: usize = 256;
/// A disk with less than this part of it free takes nothing new: well before its own mark (a twentieth), since what is under way to it
/// comes on top.
const FREE_PART: u64 = 8;
/// Looks back for the speed of what is under way.
const SPEED_TICKS: u64 = ticks(Duration::from_secs(60));

/// The leader's memory of it.
#[derive(Debug, Default)]
pub(super) struct Rebuild {
    /// For how many ticks each disk has been away.
    away: BTreeMap<Place, u64>,
    /// When moves were last looked for.
    planned: u64,
    /// What was found then, without the moves.
    plan: Plan,
    /// How much was left to do, and when; since it was last nothing, or more than before.
    left: VecDeque<(u64, u64)>,
}

impl MetadataCore {
    /// Counts for how long disks have been away; called every `passed` ticks.
    pub(super) fn count_away(&mut self, passed: u64) {
        let pool: Vec<NodeId> = self.cluster.machine.present().map(|(id, _)| *id).collect();
        let in_use = |node: &&NodeId| self.cluster.machine.nodes[*node].place == StoragePlace::In;
        let expected = pool.iter().filter(in_use).count();
        let leaving = |node: NodeId| self.cluster_lead.heard.get(&node).is_some_and(|heard| heard.leaving);
        let given_up = |node: NodeId| {
            let out = self.out_ticks();
            self.cluster_lead
                .rebuild
                .away
                .range((node, DiskId(0))..)
                .take_while(|(at, _)| at.0 == node)
                .any(|(_, away)| *away >= out)
        };
        let silent = pool
            .iter()
            .filter(in_use)
            .filter(|node| self.is_silent(**node) && !leaving(**node) && !given_up(**node))
            .count();
        let believed = silent * 4 <= expected;
        let mut away = BTreeMap::new();
        for place in self.places().into_keys() {
            let before = self.cluster_lead.rebuild.away.get(&place).copied();
            match self.disk_standing(place) {
                Standing::Serves | Standing::OtherLife(_) if !self.is_out_for_slowness(place) => {}
                Standing::Unknown => drop(before.map(|ticks| away.insert(place, ticks))),
                // A disk that stays slow is replaced as one that stays away.
                Standing::Serves | Standing::OtherLife(_) | Standing::Hangs | Standing::Gone => {
                    let count = before.unwrap_or(0) + if believed { passed } else { 0 };
                    away.insert(place, count);
                }
            }
        }
        self.cluster_lead.rebuild.away = away;
    }

    /// Disks and their capacities: those that nodes name, and those that groups live on and their node does not name because it could not
    /// open them (a mount that is late, perhaps), which have none.
    fn places(&self) -> BTreeMap<Place, u64> {
        let machine = &self.cluster.machine;
        let named = machine
            .present()
            .flat_map(|(node, row)| row.record.disks.iter().map(move |disk| ((*node, disk.id), disk.capacity)));
        let mut places: BTreeMap<Place, u64> = named.collect();
        for place in machine.groups.iter().flat_map(|row| row.homes.iter().chain(&row.leaving)) {
            if !machine.is_gone(place.0) {
                places.entry(*place).or_insert(0);
            }
        }
        places
    }

    fn out_ticks(&self) -> u64 {
        ticks(self.config.out_after).max(1)
    }

    /// How a disk stands, in whatever life.
    fn disk_standing(&self, (node, disk): Place) -> Standing {
        self.standing(MemberId { node, disk, incarnation: Incarnation(0) })
    }

    /// Whether a disk has been away for so long that its groups live elsewhere from now on.
    fn is_given_up(&self, place: Place) -> bool {
        self.cluster_lead.rebuild.away.get(&place).is_some_and(|away| *away >= self.out_ticks())
    }

    /// Whether all of a node's disks are given up.
    pub(super) fn is_node_given_up(&self, row: &NodeRow) -> bool {
        let disks = &row.record.disks;
        !disks.is_empty() && disks.iter().all(|disk| self.is_given_up((row.record.id, disk.id)))
    }

    /// What each disk is good for, and whether all that should be there is.
    fn disks(&self) -> (Vec<Disk>, bool) {
        let (mut disks, mut calm) = (Vec::new(), true);
        for (place, capacity) in self.places() {
            let (node, disk) = place;
            let Some(row) = self.cluster.machine.nodes.get(&node) else { continue };
            let heard = self.cluster_lead.heard.get(&node);
            let steady = heard.is_some_and(|heard| !heard.leaving && self.ticks >= heard.lives_since + STEADY_TICKS);
            let serves = matches!(self.disk_standing(place), Standing::Serves | Standing::OtherLife(_));
            let full = heard.and_then(|heard| heard.disks.iter().find(|state| state.id == disk));
            let full = full.is_some_and(|state| state.free < state.capacity / FREE_PART);
            let emptied = match row.place {
                StoragePlace::In => false,
                StoragePlace::Draining | StoragePlace::Leaving { successor: None } => true,
                StoragePlace::Leaving { successor: Some(successor) } => {
                    self.cluster.machine.nodes.contains_key(&successor)
                }
                StoragePlace::Gone => continue,
            };
            let removed = emptied && matches!(row.place, StoragePlace::Leaving { .. });
            let stand = match (emptied, serves) {
                _ if self.is_given_up(place) => Stand::Out,
                (true, false) if removed && self.is_silent(node) => Stand::Out,
                (true, _) => Stand::Draining,
                (false, true) if self.is_out_for_slowness(place) => {
                    calm = false;
                    Stand::Keeps
                }
                (false, true) if self.is_slow(place) => Stand::Keeps,
                (false, true) if steady && !full && row.place == StoragePlace::In => Stand::In,
                (false, true) => Stand::Keeps,
                (false, false) => {
                    calm = false;
                    Stand::Keeps
                }
            };
            disks.push(Disk { place, capacity, stand, labels: row.record.labels.clone() });
        }
        (disks, calm)
    }

    /// Finds out what is to move, and has the most urgent of it moved. Says whether it has proposed something.
    pub(super) fn drive_homes(&mut self) -> bool {
        let due = self.ticks >= self.cluster_lead.rebuild.planned + PLAN_TICKS;
        if !due || self.cluster.machine.groups.is_empty() {
            return false;
        }
        let (disks, calm) = self.disks();
        let machine = &self.cluster.machine;
        let topology = Topology::new(disks, machine.groups.len(), machine.settings.replicas);
        let groups: Vec<Placed<'_>> = machine.groups.iter().map(GroupRow::placed).collect();
        let pace = Pace { per_node: self.config.limits.moves_per_node, at_once: MOVES_AT_ONCE };
        let mut found = plan(&topology, &groups, pace, calm);
        let moves = std::mem::take(&mut found.moves);
        let now = self.ticks;
        let rebuild = &mut self.cluster_lead.rebuild;
        rebuild.planned = now;
        rebuild.remember(now, found);
        if moves.is_empty() {
            return false;
        }
        self.propose_work(Work::Update, ClusterCommand::Rehome { moves });
        true
    }

    /// Members that are not at home go when every home is in sync and serves.
    pub(super) fn departing(&self, row: &GroupRow) -> Vec<ViewStep> {
        if row.leaving.is_empty() {
            return Vec::new();
        }
        let holds = |place: &Place| {
            let member = row.view.in_sync.iter().find(|member| home(**member) == *place);
            member.is_some_and(|member| self.standing(*member) == Standing::Serves)
        };
        if !row.homes.iter().all(holds) {
            return Vec::new();
        }
        let gone = row.view.members().filter(|member| !row.homes.contains(&home(*member)));
        gone.map(|member| ViewStep::Remove { member }).collect()
    }

    /// How far moving groups is. `None`: this server does not lead shard 0. Its plan is up to a second old.
    pub fn rebuild_status(&self) -> Option<RebuildStatus> {
        self.cluster_lead.since?;
        let Rebuild { plan, left, .. } = &self.cluster_lead.rebuild;
        let homes: u64 = self.cluster.machine.groups.iter().map(|row| row.homes.len() as u64).sum();
        let heard = self.cluster_lead.heard.values().flat_map(|heard| &heard.disks);
        let bytes: u64 = heard.map(|disk| disk.capacity.saturating_sub(disk.free)).sum();
        let todo = plan.todo();
        Some(RebuildStatus {
            lost: plan.lost,
            draining: plan.draining,
            moving: plan.crowded + plan.uneven,
            under_way: plan.under_way,
            bytes_left: (u128::from(bytes) * u128::from(todo) / u128::from(homes.max(1))) as u64,
            seconds_left: seconds_left(left),
        })
    }
}

impl Plan {
    /// Homes that are still to be made.
    fn todo(&self) -> u64 {
        u64::from(self.lost)
            + u64::from(self.draining)
            + u64::from(self.crowded)
            + u64::from(self.uneven)
            + u64::from(self.under_way)
    }
}

impl Rebuild {
    fn remember(&mut self, now: u64, plan: Plan) {
        let todo = plan.todo();
        // What has become more is a new task, whose speed nobody knows yet.
        if todo == 0 || self.left.back().is_some_and(|(_, before)| todo > *before) {
            self.left.clear();
        }
        if todo > 0 {
            self.left.push_back((now, todo));
        }
        while self.left.len() > 2 && self.left.front().is_some_and(|(at, _)| at + SPEED_TICKS < now) {
            self.left.pop_front();
        }
        self.plan = plan;
    }
}

/// How long what is left takes at the speed of the last minute.
fn seconds_left(left: &VecDeque<(u64, u64)>) -> Option<u64> {
    let ((begun, first), (now, last)) = (left.front()?, left.back()?);
    let done = first.checked_sub(*last).filter(|done| *done > 0)?;
    let per_second = ticks(Duration::from_secs(1));
    Some((last * (now - begun)).div_ceil(done * per_second))
}
