//! How many homes each disk should have: in proportion to its capacity, as far as failure domains allow.
//!
//! A zone that may hold one member of each group cannot hold more homes than there are groups, whatever its disks could take; what it
//! cannot have is for the others. The same goes for racks within a zone, hosts within a rack and nodes within a host.

use super::{Disk, LEVELS, counts};
use std::collections::BTreeMap;

/// A domain with those within it.
struct Tree {
    /// Disk, at the leaves.
    disk: Option<usize>,
    weight: f64,
    /// What it can hold.
    room: f64,
    within: Vec<Tree>,
}

/// A share for each disk; 0 for one that is to be empty.
pub(super) fn shares(
    disks: &[Disk],
    domains: &[[u32; LEVELS]],
    caps: [u32; LEVELS],
    groups: usize,
    replicas: u32,
) -> Vec<f64> {
    let all: Vec<usize> = (0..disks.len()).filter(|at| counts(&disks[*at])).collect();
    let mut shares = vec![0.0; disks.len()];
    let tree = grow(disks, domains, &all, LEVELS, caps, groups as f64);
    pour(&tree, groups as f64 * f64::from(replicas), &mut shares);
    shares
}

/// The tree of some disks from a kind of domain on; below `host` are nodes, and below these disks.
fn grow(
    disks: &[Disk],
    domains: &[[u32; LEVELS]],
    some: &[usize],
    level: usize,
    caps: [u32; LEVELS],
    groups: f64,
) -> Tree {
    let mut parts: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for disk in some {
        let key = if level > 0 { u64::from(domains[*disk][level - 1]) } else { disks[*disk].place.0.0 };
        parts.entry(key).or_default().push(*disk);
    }
    let mut within = Vec::with_capacity(parts.len());
    for part in parts.into_values() {
        let mut tree = if level > 0 {
            grow(disks, domains, &part, level - 1, caps, groups)
        } else {
            let leaf = |disk: &usize| Tree {
                disk: Some(*disk),
                weight: disks[*disk].capacity as f64,
                room: groups,
                within: Vec::new(),
            };
            summed(part.iter().map(leaf).collect())
        };
        let cap = if level > 0 { f64::from(caps[level - 1]) } else { 1.0 };
        tree.room = tree.room.min(cap * groups);
        within.push(tree);
    }
    summed(within)
}

fn summed(within: Vec<Tree>) -> Tree {
    let weight = within.iter().map(|part| part.weight).sum();
    let room = within.iter().map(|part| part.room).sum();
    Tree { disk: None, weight, room, within }
}

/// Hands an amount out within a domain.
fn pour(tree: &Tree, amount: f64, shares: &mut [f64]) {
    if let Some(disk) = tree.disk {
        shares[disk] = amount;
        return;
    }
    let mut given = vec![None; tree.within.len()];
    let mut left = amount;
    // Whoever is full has what it can hold; the others share the rest, which may fill more of them.
    loop {
        let open = || tree.within.iter().zip(&given).filter(|(_, given)| given.is_none());
        let weight: f64 = open().map(|(part, _)| part.weight).sum();
        let full: Vec<usize> = (0..given.len())
            .filter(|at| given[*at].is_none())
            .filter(|at| left * tree.within[*at].weight / weight > tree.within[*at].room)
            .collect();
        if full.is_empty() || weight == 0.0 {
            let each = |part: &Tree| if weight > 0.0 { left * part.weight / weight } else { 0.0 };
            for (at, part) in tree.within.iter().enumerate() {
                pour(part, given[at].unwrap_or_else(|| each(part)), shares);
            }
            return;
        }
        for at in full {
            given[at] = Some(tree.within[at].room);
            left -= tree.within[at].room;
        }
    }
}
