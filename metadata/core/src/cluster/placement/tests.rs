//! What placement promises: balance, failure domains, least movement, and speed at a thousand nodes.

use super::first::first_homes;
use super::moves::{Pace, Placed, Plan, plan};
use super::{Disk, Place, Stand, Topology};
use holdfast_types::prng::Prng;
use holdfast_types::{DiskId, Epoch, Incarnation, MemberId, NodeId};
use holdfast_wire::map::{ClusterMap, DiskRecord, NodeRecord, View};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// For figures that people read.
#[expect(clippy::disallowed_methods, reason = "placement knows no time; what it takes is printed")]
fn now() -> Instant {
    Instant::now()
}

const GIB: u64 = 1 << 30;
const PACE: Pace = Pace { per_node: 8, at_once: 256 };

fn disk(node: u64, disk: u32, capacity: u64, labels: &[(&str, String)]) -> Disk {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Disk { place: (NodeId(node), DiskId(disk)), capacity, stand: Stand::In, labels }
}

/// Nodes of one disk each, in racks of a number of nodes and zones of a number of racks.
fn racks(nodes: std::ops::RangeInclusive<u64>, per_rack: u64, per_zone: u64) -> Vec<Disk> {
    let in_rack = |node: u64| {
        let rack = (node - 1) / per_rack;
        disk(node, 1, GIB, &[("rack", format!("r{rack}")), ("zone", format!("z{}", rack / per_zone))])
    };
    nodes.map(in_rack).collect()
}

/// Groups and where they are; moves happen at once.
struct Pool {
    disks: Vec<Disk>,
    homes: Vec<Vec<Place>>,
    moves: usize,
    rounds: usize,
    longest: std::time::Duration,
}

impl Pool {
    fn new(disks: Vec<Disk>, groups: usize, replicas: u32) -> Self {
        let homes = first_homes(disks.clone(), groups, replicas);
        Self { disks, homes, moves: 0, rounds: 0, longest: Default::default() }
    }

    fn topology(&self) -> Topology {
        Topology::new(self.disks.clone(), self.homes.len(), self.homes[0].len() as u32)
    }

    fn plan(&self) -> Plan {
        let member = |place: &Place| MemberId { node: place.0, disk: place.1, incarnation: Incarnation(1) };
        let view = |homes: &Vec<Place>| {
            let in_sync: Vec<MemberId> = homes.iter().map(member).collect();
            View { epoch: Epoch(1), primary: in_sync[0], in_sync, syncing: Vec::new() }
        };
        let views: Vec<View> = self.homes.iter().map(view).collect();
        let placed: Vec<Placed<'_>> =
            self.homes.iter().zip(&views).map(|(homes, view)| Placed { homes, leaving: &[], view }).collect();
        plan(&self.topology(), &placed, PACE, true)
    }

    /// Until nothing is left to do. Returns how many homes have moved.
    fn settle(&mut self) -> usize {
        let before = self.moves;
        loop {
            let begun = now();
            let plan = self.plan();
            self.longest = self.longest.max(begun.elapsed());
            assert!(plan.moves.len() <= PACE.at_once);
            if plan.moves.is_empty() {
                return self.moves - before;
            }
            let mut taking: BTreeMap<NodeId, u32> = BTreeMap::new();
            for step in &plan.moves {
                let homes = &mut self.homes[step.group.0 as usize];
                let at = homes.iter().position(|place| *place == step.from).expect("a home");
                homes[at] = step.to;
                *taking.entry(step.to.0).or_default() += 1;
            }
            assert!(taking.values().all(|groups| *groups <= PACE.per_node), "paced");
            self.moves += plan.moves.len();
            self.rounds += 1;
            assert!(self.rounds < 100_000, "it comes to rest");
        }
    }

    fn stand(&mut self, stand: Stand, is: impl Fn(&Disk) -> bool) -> usize {
        let mut places = BTreeSet::new();
        for disk in self.disks.iter_mut().filter(|disk| is(disk)) {
            disk.stand = stand;
            places.insert(disk.place);
        }
        self.homes.iter().flatten().filter(|place| places.contains(place)).count()
    }

    /// The greatest distance from a share, in parts of it.
    fn unevenness(&self) -> f64 {
        let topology = self.topology();
        let mut loads = vec![0.0; topology.disks.len()];
        self.homes.iter().flatten().for_each(|place| loads[topology.find(*place).unwrap()] += 1.0);
        let off = |(load, share): (&f64, &f64)| if *share > 0.0 { (load - share).abs() / share } else { *load };
        loads.iter().zip(&topology.shares).map(off).fold(0.0, f64::max)
    }

    /// Whether every group is spread as its topology allows.
    fn check_spread(&self) {
        let topology = self.topology();
        for (group, homes) in self.homes.iter().enumerate() {
            let places: Vec<usize> = homes.iter().map(|place| topology.find(*place).unwrap()).collect();
            let nodes: BTreeSet<NodeId> = homes.iter().map(|place| place.0).collect();
            assert_eq!(nodes.len(), homes.len(), "group {group}: different nodes");
            for at in 0..places.len() {
                let others: Vec<usize> = (0..places.len()).filter(|other| *other != at).map(|o| places[o]).collect();
                assert_eq!(topology.crowding(&others, places[at]), 0, "group {group}: {homes:?}");
            }
        }
    }
}

#[test]
fn groups_are_spread_evenly_over_nodes_and_disks() {
    for (nodes, disks, replicas) in [(1u64, 1u32, 1u32), (3, 1, 3), (4, 2, 3), (5, 3, 2), (7, 1, 5)] {
        let all = (1..=nodes).flat_map(|node| (0..disks).map(move |at| disk(node, at, GIB, &[]))).collect();
        let mut pool = Pool::new(all, 1024, replicas);
        pool.check_spread();
        assert!(pool.unevenness() < 0.05, "{nodes} {disks}: {}", pool.unevenness());
        let mut primaries = BTreeMap::new();
        pool.homes.iter().for_each(|homes| *primaries.entry(homes[0]).or_insert(0u64) += 1);
        let each = 1024 / (nodes * u64::from(disks));
        assert!(primaries.values().all(|count| count.abs_diff(each) <= each / 10 + 2), "{primaries:?}");
        assert_eq!(pool.settle(), 0, "what was just placed is at rest");
    }
}

#[test]
fn the_groups_of_a_node_have_all_others_as_partners() {
    let pool = Pool::new(racks(1..=12, 1, 1), 1024, 3);
    for node in 1..=12 {
        let with = pool.homes.iter().filter(|homes| homes.iter().any(|place| place.0 == NodeId(node)));
        let partners: BTreeSet<NodeId> = with.flatten().map(|place| place.0).collect();
        assert_eq!(partners.len(), 12);
    }
}

#[test]
fn capacity_counts() {
    let sizes = [4, 4, 2, 2, 1, 1, 8, 4];
    let all = sizes.iter().zip(1..).map(|(size, node)| disk(node, 1, size * GIB, &[])).collect();
    let mut pool = Pool::new(all, 1024, 3);
    assert!(pool.unevenness() < 0.05, "{}", pool.unevenness());
    pool.disks[0].capacity *= 2;
    assert!(pool.settle() > 0);
    assert!(pool.unevenness() < 0.1, "{}", pool.unevenness());
    // One that is greater than all others together cannot hold a group twice.
    let all = [1, 1, 100].iter().zip(1..).map(|(size, node)| disk(node, 1, size * GIB, &[])).collect();
    let pool = Pool::new(all, 128, 2);
    assert!(pool.unevenness() < 0.05, "{}", pool.unevenness());
}

#[test]
fn racks_and_zones_are_kept_apart() {
    for (nodes, per_rack, per_zone) in [(12, 4, 1), (12, 2, 2), (9, 3, 3), (8, 4, 1), (30, 5, 2)] {
        let mut pool = Pool::new(racks(1..=nodes, per_rack, per_zone), 1024, 3);
        pool.check_spread();
        assert!(pool.unevenness() < 0.1, "{nodes}: {}", pool.unevenness());
        assert_eq!(pool.settle(), 0);
        pool.stand(Stand::Out, |disk| disk.place.0 == NodeId(1));
        pool.settle();
        pool.check_spread();
        assert!(pool.unevenness() < 0.1, "{nodes}: {}", pool.unevenness());
    }
}

#[test]
fn unequal_racks_hold_a_copy_of_each_group_all_the_same() {
    // Three racks of one, three and six nodes: each holds one copy of everything.
    let rack = |node| {
        if node == 1 {
            "a"
        } else if node < 5 {
            "b"
        } else {
            "c"
        }
    };
    let all = (1..=10).map(|node| disk(node, 1, GIB, &[("rack", rack(node).into())])).collect();
    let pool = Pool::new(all, 512, 3);
    pool.check_spread();
    assert!(pool.unevenness() < 0.1, "{}", pool.unevenness());
}

#[test]
fn a_group_that_lost_its_rack_goes_back_when_there_is_one_again() {
    let mut pool = Pool::new(racks(1..=6, 2, 1), 256, 3);
    pool.stand(Stand::Out, |disk| disk.place.0.0 > 4);
    pool.settle();
    pool.disks.retain(|disk| disk.stand != Stand::Out);
    pool.check_spread();
    pool.disks.extend(racks(7..=8, 2, 1));
    pool.settle();
    pool.check_spread();
    assert!(pool.unevenness() < 0.1, "{}", pool.unevenness());
}

#[test]
fn no_more_moves_than_must() {
    let mut pool = Pool::new(racks(1..=20, 1, 1), 1024, 3);
    let lost = pool.stand(Stand::Out, |disk| disk.place.0 == NodeId(7));
    let moved = pool.settle();
    assert!(moved <= lost + lost / 10, "{moved} for {lost}");
    pool.disks.retain(|disk| disk.place.0 != NodeId(7));
    pool.disks.extend(racks(21..=22, 1, 1));
    let least = 1024 * 3 * 2 / 21;
    let moved = pool.settle();
    assert!(moved <= least + least / 10, "{moved} for {least}");
    assert!(pool.unevenness() < 0.1, "{}", pool.unevenness());
    let drained = pool.stand(Stand::Draining, |disk| disk.place.0 == NodeId(3));
    let moved = pool.settle();
    assert!(moved <= drained + drained / 10, "{moved} for {drained}");
    assert!(pool.homes.iter().flatten().all(|place| place.0 != NodeId(3)), "drained");
}

#[test]
fn whatever_comes_and_goes_all_is_well_when_it_rests() {
    for seed in 0..40 {
        let mut prng = Prng::new(seed);
        let replicas = prng.between(2, 3) as u32;
        let mut next = prng.between(6, 14);
        let (per_rack, per_zone) = (prng.between(1, 3), prng.between(1, 3));
        let mut pool = Pool::new(racks(1..=next, per_rack, per_zone), 512, replicas);
        for _ in 0..8 {
            let node = pool.disks[prng.below(pool.disks.len() as u64) as usize].place.0;
            match prng.below(4) {
                0 | 1 if pool.disks.len() > 6 => {
                    let stand = if prng.chance(1, 2) { Stand::Out } else { Stand::Draining };
                    pool.stand(stand, |disk| disk.place.0 == node);
                    pool.settle();
                    assert!(pool.homes.iter().flatten().all(|place| place.0 != node), "seed {seed}: {node} is empty");
                    pool.disks.retain(|disk| disk.place.0 != node);
                }
                2 => {
                    pool.disks.iter_mut().filter(|disk| disk.place.0 == node).for_each(|disk| disk.capacity += GIB / 2)
                }
                _ => {
                    next += 1;
                    pool.disks.extend(racks(next..=next, per_rack, per_zone));
                }
            }
            pool.settle();
            let topology = pool.topology();
            let small = topology.shares.iter().any(|share| *share > 0.0 && *share < 64.0);
            assert!(small || pool.unevenness() <= 0.1, "seed {seed}: {}", pool.unevenness());
        }
        assert_eq!(pool.plan(), pool.plan(), "the same question gets the same answer");
    }
}

#[test]
fn nothing_moves_to_a_disk_that_is_away_and_finer_things_wait_for_it() {
    let mut pool = Pool::new(racks(1..=4, 1, 1), 256, 3);
    pool.stand(Stand::Keeps, |disk| disk.place.0 == NodeId(2));
    pool.stand(Stand::Out, |disk| disk.place.0 == NodeId(1));
    let to: BTreeSet<NodeId> = pool.plan().moves.iter().map(|step| step.to.0).collect();
    assert_eq!(to, [NodeId(3), NodeId(4)].into());
}

#[test]
fn a_node_that_is_silent_does_not_hold_up_what_another_has_lost() {
    let mut pool = Pool::new(racks(1..=6, 1, 1), 256, 3);
    pool.stand(Stand::Out, |disk| disk.place.0 == NodeId(5));
    pool.stand(Stand::Keeps, |disk| disk.place.0 == NodeId(6));
    let views: Vec<View> = pool
        .homes
        .iter()
        .map(|homes| {
            let there = homes.iter().filter(|place| place.0.0 < 5);
            let member = |place: &Place| MemberId { node: place.0, disk: place.1, incarnation: Incarnation(1) };
            let in_sync: Vec<MemberId> = there.map(member).collect();
            View { epoch: Epoch(1), primary: in_sync[0], in_sync, syncing: Vec::new() }
        })
        .collect();
    let placed = |(homes, view)| Placed { homes, leaving: &[], view };
    let homes = pool.homes.iter().map(Vec::as_slice);
    let placed: Vec<Placed<'_>> = homes.zip(&views).map(placed).collect();
    let plan = plan(&pool.topology(), &placed, PACE, false);
    assert!(plan.lost > 100 && plan.moves.len() >= 3 * PACE.per_node as usize, "{plan:?}");
}

/// What the map weighs as it travels.
fn print_map(pool: &Pool) {
    let node = |disk: &Disk| {
        let disks = vec![DiskRecord { id: disk.place.1, incarnation: Incarnation(40), capacity: disk.capacity }];
        let (id, address, labels) = (disk.place.0, "10.100.200.30:34567".to_owned(), disk.labels.clone());
        (id, NodeRecord { id, address, labels, disks, alive: true })
    };
    let member = |place: &Place| MemberId { node: place.0, disk: place.1, incarnation: Incarnation(40) };
    let view = |homes: &Vec<Place>| {
        let in_sync: Vec<MemberId> = homes.iter().map(member).collect();
        View { epoch: Epoch(300), primary: in_sync[0], in_sync, syncing: Vec::new() }
    };
    let mut map = ClusterMap {
        nodes: pool.disks.iter().map(node).collect(),
        views: pool.homes.iter().map(view).collect(),
        ..ClusterMap::default()
    };
    let without = holdfast_wire::codec::encode(&map).len();
    map.homes.clone_from(&pool.homes);
    println!("map: {} bytes, {without} of them without homes", holdfast_wire::codec::encode(&map).len());
}

/// A thousand nodes and 100,000 groups with `HOLDFAST_TEST_LONG=1`, otherwise a tenth.
#[test]
fn a_rack_of_a_large_pool_is_lost_and_a_tenth_comes_new() {
    let nodes = if std::env::var_os("HOLDFAST_TEST_LONG").is_some() { 1000 } else { 100 };
    let (groups, new) = (100 * nodes as usize, nodes / 10);
    let begun = now();
    let mut pool = Pool::new(racks(1..=nodes, 20, 10), groups, 3);
    println!("placement of all: {:?}, off by {:.2} %", begun.elapsed(), 100.0 * pool.unevenness());
    pool.check_spread();
    print_map(&pool);
    let lost = pool.stand(Stand::Out, |disk| disk.place.0.0 <= 20);
    let (begun, moved) = (now(), pool.settle());
    println!(
        "loss of a rack of 20: {moved} homes moved of {lost} lost, {} rounds, {:?} in all, {:?} the longest, off by {:.2} %",
        pool.rounds,
        begun.elapsed(),
        pool.longest,
        100.0 * pool.unevenness()
    );
    pool.check_spread();
    assert!(moved <= lost + lost / 20);
    pool.disks.retain(|disk| disk.stand == Stand::In);
    pool.disks.extend(racks(nodes + 1..=nodes + new, 20, 10));
    let least = groups * 3 * new as usize / (nodes - 20 + new) as usize;
    (pool.rounds, pool.longest) = (0, Default::default());
    let (begun, moved) = (now(), pool.settle());
    println!(
        "{new} nodes more: {moved} homes moved, {least} their share, {} rounds, {:?} in all, {:?} the longest, off by {:.2} %",
        pool.rounds,
        begun.elapsed(),
        pool.longest,
        100.0 * pool.unevenness()
    );
    pool.check_spread();
    assert!(moved <= least + least / 20 && pool.unevenness() <= 0.1);
}
