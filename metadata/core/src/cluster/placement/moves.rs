//! The next moves of homes: what was lost first, then what is to be emptied, then what is not spread as it could be, then balance.
//!
//! * A group has one move at a time, unless what it moved to is lost as well.
//! * A node takes in, and gives from, a bounded number of groups at a time, so that recovery does not cause the next failure.
//! * Balance waits until nothing else is left to do.

use super::{Place, Stand, Topology, counts, noise};
use crate::command::{Move, home};
use holdfast_types::{GroupId, NodeId};
use holdfast_wire::map::View;
use std::cell::Cell;
use std::collections::BTreeMap;

/// A disk this much off its share, in parts of it, is worth moving groups for; below it all is at rest.
const TOLERANCE: f64 = 0.03;
/// Disks that a group is being moved away from, at the most: beyond, something else is wrong.
pub(crate) const LEAVING_MAX: usize = 4;
/// Times that one answer looks at all disks: it is given from the leader's loop, and what is left comes with the next.
const LOOKS_MAX: u32 = 500;
/// Groups of one disk that are looked at for a move that suits it.
const TRIED_MAX: usize = 64;

/// A group as it is placed now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<'a> {
    pub(crate) homes: &'a [Place],
    pub(crate) leaving: &'a [Place],
    pub(crate) view: &'a View,
}

impl Placed<'_> {
    fn is_in_sync(&self, place: Place) -> bool {
        self.view.in_sync.iter().any(|member| home(*member) == place)
    }

    /// Whether every home holds all.
    pub(crate) fn is_at_home(&self) -> bool {
        self.homes.iter().all(|place| self.is_in_sync(*place))
    }

    /// Whether that is so, and nobody else holds anything.
    pub(crate) fn is_settled(&self) -> bool {
        self.leaving.is_empty() && self.is_at_home()
    }

    /// Whether a home may move from one disk to another: no node holds a group twice, at no time.
    pub(crate) fn may_move(&self, from: Place, to: Place) -> bool {
        let others = self.homes.iter().filter(|place| **place != from);
        // What is left behind on a disk that is no member serves nobody, and comes back after the homes if at all.
        let member = |place: &Place| self.view.members().any(|member| home(member) == *place);
        let still = self.leaving.iter().filter(|place| **place != to);
        let kept = still.clone().count();
        let serves = self.view.members().any(|member| home(member) == from);
        self.homes.contains(&from)
            && !self.homes.contains(&to)
            && kept < LEAVING_MAX
            && others.chain(still.filter(|place| member(place))).all(|place| place.0 != to.0)
            && (!serves || from.0 != to.0)
    }
}

/// How much may be under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Groups that a node takes in at a time, and groups that it gives from.
    pub(crate) per_node: u32,
    /// Moves of one answer.
    pub(crate) at_once: usize,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be done now.
    pub(crate) moves: Vec<Move>,
    /// Homes on disks that are given up.
    pub(crate) lost: u32,
    /// Homes on disks that are to be emptied.
    pub(crate) draining: u32,
    /// Homes that are where others of their group are, though there is a better place.
    pub(crate) crowded: u32,
    /// Homes above shares, where that is worth moving them.
    pub(crate) uneven: u32,
    /// Groups that are not at home everywhere.
    pub(crate) under_way: u32,
}

/// The search for moves.
struct Search<'a> {
    topology: &'a Topology,
    groups: &'a [Placed<'a>],
    pace: Pace,
    loads: Vec<f64>,
    taking: BTreeMap<NodeId, u32>,
    giving: BTreeMap<NodeId, u32>,
    plan: Plan,
    /// Groups that have a move in this answer.
    moved: Vec<u32>,
    /// Times that all disks may still be looked at.
    looks: Cell<u32>,
}

/// What to do next about groups. `calm`: nothing is missing that may come back, so that finer things may be looked after.
pub(crate) fn plan(topology: &Topology, groups: &[Placed<'_>], pace: Pace, calm: bool) -> Plan {
    let mut search = Search {
        topology,
        groups,
        pace,
        loads: vec![0.0; topology.disks.len()],
        taking: BTreeMap::new(),
        giving: BTreeMap::new(),
        plan: Plan::default(),
        moved: Vec::new(),
        looks: Cell::new(LOOKS_MAX),
    };
    let wanted = search.look();
    search.replace(wanted);
    if calm && search.plan.lost == 0 && search.plan.draining == 0 {
        search.spread();
        search.balance();
    }
    search.plan
}

impl Search<'_> {
    /// Counts what there is. Returns homes that must go: how many of their group are lost, the group, the disk.
    fn look(&mut self) -> Vec<(u32, u32, Place)> {
        let mut wanted = Vec::new();
        for (number, group) in self.groups.iter().enumerate() {
            let mut lost = 0;
            let first = wanted.len();
            let mut settled = group.leaving.is_empty();
            for place in group.homes {
                let found = self.topology.find(*place);
                let stand = found.map_or(Stand::Out, |disk| self.topology.disks[disk].stand);
                if let Some(disk) = found {
                    self.loads[disk] += 1.0;
                }
                match stand {
                    Stand::Out => {
                        lost += 1;
                        self.plan.lost += 1;
                        wanted.push((0, number as u32, *place));
                    }
                    Stand::Draining => {
                        self.plan.draining += 1;
                        wanted.push((0, number as u32, *place));
                    }
                    Stand::In | Stand::Keeps => {}
                }
                let here = group.is_in_sync(*place);
                settled &= here;
                // Who is only silent for a while takes nothing from anybody: that must not hold up what is lost.
                let copied = stand == Stand::In || group.view.syncing.iter().any(|member| home(*member) == *place);
                if !here && copied && matches!(stand, Stand::In | Stand::Keeps) {
                    *self.taking.entry(place.0).or_default() += 1;
                    *self.giving.entry(group.view.primary.node).or_default() += 1;
                }
            }
            self.plan.under_way += u32::from(!settled);
            wanted[first..].iter_mut().for_each(|home| home.0 = lost);
        }
        // Whoever has lost most is served first.
        wanted.sort_by_key(|(lost, group, _)| (std::cmp::Reverse(*lost), *group));
        wanted
    }

    /// Homes of lost and draining disks go elsewhere.
    fn replace(&mut self, wanted: Vec<(u32, u32, Place)>) {
        for (_, number, from) in wanted {
            if self.plan.moves.len() >= self.pace.at_once {
                return;
            }
            let group = &self.groups[number as usize];
            let lost = self.topology.find(from).is_none_or(|disk| self.topology.disks[disk].stand == Stand::Out);
            if !lost && !group.is_settled() {
                continue;
            }
            if let Some(to) = self.target(number, from, |_, _| true) {
                self.push(number, from, to);
            }
        }
    }

    /// The best disk for a home that moves: the group as spread as can be, a disk that has it already, the least full.
    fn target(&self, number: u32, from: Place, suits: impl Fn(usize, u32) -> bool) -> Option<usize> {
        let group = &self.groups[number as usize];
        if self.moved.contains(&number) || self.is_busy(&self.giving, group.view.primary.node) {
            return None;
        }
        self.looks.set(self.looks.get().checked_sub(1)?);
        let others: Vec<usize> =
            group.homes.iter().filter(|place| **place != from).filter_map(|place| self.topology.find(*place)).collect();
        let mut best: Option<(u32, bool, f64, usize)> = None;
        let mut least = u32::MAX;
        for (disk, candidate) in self.topology.disks.iter().enumerate() {
            if self.topology.shares[disk] <= 0.0 || !group.may_move(from, candidate.place) {
                continue;
            }
            if candidate.stand != Stand::In {
                continue;
            }
            let crowding = self.topology.crowding(&others, disk);
            // Who is busy is waited for, rather than that a group is crowded for its sake.
            least = least.min(crowding);
            if self.is_busy(&self.taking, candidate.place.0) || !suits(disk, crowding) {
                continue;
            }
            let drawn = noise(u64::from(number), candidate.place.0.0 << 8 ^ u64::from(candidate.place.1.0));
            let full = (self.loads[disk] + drawn) / self.topology.shares[disk];
            let key = (crowding, !group.leaving.contains(&candidate.place), full, disk);
            if best.is_none_or(|best| (key.0, key.1, key.2) < (best.0, best.1, best.2)) {
                best = Some(key);
            }
        }
        best.filter(|best| best.0 == least).map(|best| best.3)
    }

    fn is_busy(&self, nodes: &BTreeMap<NodeId, u32>, node: NodeId) -> bool {
        nodes.get(&node).is_some_and(|groups| *groups >= self.pace.per_node)
    }

    fn push(&mut self, number: u32, from: Place, to: usize) {
        let place = self.topology.disks[to].place;
        self.plan.moves.push(Move { group: GroupId(number), from, to: place });
        self.moved.push(number);
        self.loads[to] += 1.0;
        if let Some(disk) = self.topology.find(from) {
            self.loads[disk] -= 1.0;
        }
        *self.taking.entry(place.0).or_default() += 1;
        *self.giving.entry(self.groups[number as usize].view.primary.node).or_default() += 1;
    }

    /// Homes that are in one domain with others of their group, though there are enough domains.
    fn spread(&mut self) {
        for number in 0..self.groups.len() as u32 {
            let group = &self.groups[number as usize];
            let places: Vec<usize> = group.homes.iter().filter_map(|place| self.topology.find(*place)).collect();
            let crowding = |at: usize| {
                let others: Vec<usize> = places.iter().copied().filter(|other| *other != places[at]).collect();
                self.topology.crowding(&others, places[at])
            };
            let Some((worst, at)) = (0..places.len()).map(|at| (crowding(at), at)).max() else { continue };
            if worst == 0 {
                continue;
            }
            let from = self.topology.disks[places[at]].place;
            let Some(to) = self.target(number, from, |_, crowding| crowding < worst) else { continue };
            self.plan.crowded += 1;
            if group.is_settled() && self.plan.moves.len() < self.pace.at_once {
                self.push(number, from, to);
            }
        }
    }

    /// How far a disk is above its share.
    fn excess(&self, disk: usize) -> f64 {
        self.loads[disk] - self.topology.shares[disk]
    }

    /// Homes go from disks above their share to disks below it.
    fn balance(&mut self) {
        let shares = &self.topology.shares;
        let disks: Vec<usize> = (0..shares.len()).filter(|disk| counts(&self.topology.disks[*disk])).collect();
        let off = |disk: &usize| self.excess(*disk).abs() > (shares[*disk] * TOLERANCE).max(1.0);
        if !disks.iter().any(off) {
            return;
        }
        let above: f64 = disks.iter().map(|disk| self.excess(*disk).max(0.0)).sum();
        self.plan.uneven = above.round() as u32;
        let mut givers: Vec<usize> = disks.iter().copied().filter(|disk| self.excess(*disk) > 0.0).collect();
        givers.sort_by(|a, b| self.excess(*b).total_cmp(&self.excess(*a)).then(a.cmp(b)));
        givers.truncate(4 * self.pace.at_once);
        let mut held: BTreeMap<Place, Vec<u32>> =
            givers.iter().map(|disk| (self.topology.disks[*disk].place, Vec::new())).collect();
        for (number, group) in self.groups.iter().enumerate().filter(|(_, group)| group.is_settled()) {
            for place in group.homes {
                if let Some(list) = held.get_mut(place) {
                    list.push(number as u32);
                }
            }
        }
        for disk in givers {
            if self.plan.moves.len() >= self.pace.at_once {
                return;
            }
            let list = &held[&self.topology.disks[disk].place];
            self.lighten(disk, list);
        }
    }

    /// Moves one home away from a disk, if one suits: not to where it would be more crowded, and so that both are nearer to their
    /// shares, one of them from further off than is tolerated.
    fn lighten(&mut self, disk: usize, held: &[u32]) {
        let from = self.topology.disks[disk].place;
        let shares = &self.topology.shares;
        let off = |disk: usize, excess: f64| excess > (shares[disk] * TOLERANCE).max(1.0);
        let excess = self.excess(disk);
        for step in 0..held.len().min(TRIED_MAX) {
            let start = (noise(from.0.0, held.len() as u64) * held.len() as f64) as usize;
            let number = held[(start + step) % held.len()];
            let group = &self.groups[number as usize];
            let others: Vec<usize> = group
                .homes
                .iter()
                .filter(|place| **place != from)
                .filter_map(|place| self.topology.find(*place))
                .collect();
            let now = self.topology.crowding(&others, disk);
            let suits = |to: usize, crowding: u32| {
                let lack = -self.excess(to);
                crowding <= now && lack > 0.0 && excess + lack > 1.0 && (off(disk, excess) || off(to, lack))
            };
            let to = self.target(number, from, suits);
            if let Some(to) = to {
                return self.push(number, from, to);
            }
        }
    }
}
