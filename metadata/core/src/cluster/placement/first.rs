//! Where all groups live when the pool is formed.

use super::{Disk, Place, Topology, noise};
use std::collections::BTreeSet;

/// Disks in the order in which they should get the next home.
struct Queue {
    order: BTreeSet<(u64, usize)>,
    keys: Vec<u64>,
    loads: Vec<u64>,
}

impl Queue {
    fn new(topology: &Topology, seed: u64) -> Self {
        let mut queue =
            Self { order: BTreeSet::new(), keys: vec![0; topology.disks.len()], loads: vec![0; topology.disks.len()] };
        for disk in (0..topology.disks.len()).filter(|disk| topology.shares[*disk] > 0.0) {
            queue.put(topology, disk, seed);
        }
        queue
    }

    /// Who is least full for its share comes first; the noise, up to one home, makes every disk the partner of every other.
    fn put(&mut self, topology: &Topology, disk: usize, seed: u64) {
        let place = topology.disks[disk].place;
        let load = self.loads[disk];
        let drawn = noise(seed ^ place.0.0 << 20 ^ u64::from(place.1.0), load);
        let full = (load as f64 + drawn) / topology.shares[disk];
        self.keys[disk] = (full * (1u64 << 40) as f64) as u64;
        self.order.insert((self.keys[disk], disk));
    }

    fn take(&mut self, topology: &Topology, disk: usize, seed: u64) {
        self.order.remove(&(self.keys[disk], disk));
        self.loads[disk] += 1;
        self.put(topology, disk, seed);
    }

    /// The first disk that leaves the group as widely spread as can be.
    fn best(&self, topology: &Topology, others: &[usize]) -> Option<usize> {
        let mut best: Option<(u32, usize)> = None;
        for (_, disk) in &self.order {
            let node = topology.disks[*disk].place.0;
            if others.iter().any(|other| topology.disks[*other].place.0 == node) {
                continue;
            }
            let crowding = topology.crowding(others, *disk);
            if best.is_none_or(|(least, _)| crowding < least) {
                best = Some((crowding, *disk));
            }
            if crowding == 0 {
                break;
            }
        }
        best.map(|(_, disk)| disk)
    }
}

/// Homes of `groups` groups; the first of each is the preferred primary.
pub(crate) fn first_homes(disks: Vec<Disk>, groups: usize, replicas: u32) -> Vec<Vec<Place>> {
    let topology = Topology::new(disks, groups, replicas);
    let (mut members, mut primaries) = (Queue::new(&topology, 1), Queue::new(&topology, 2));
    let mut all = Vec::with_capacity(groups);
    for _ in 0..groups {
        let mut taken: Vec<usize> = Vec::with_capacity(replicas as usize);
        while taken.len() < replicas as usize {
            let Some(disk) = members.best(&topology, &taken) else { break };
            members.take(&topology, disk, 1);
            taken.push(disk);
        }
        if let Some(first) = (0..taken.len()).min_by_key(|at| primaries.keys[taken[*at]]) {
            taken.swap(0, first);
            primaries.take(&topology, taken[0], 2);
        }
        all.push(taken.into_iter().map(|disk| topology.disks[disk].place).collect());
    }
    all
}
