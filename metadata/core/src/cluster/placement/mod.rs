//! Groups to disks: where each group is to live, and the next steps towards it. Nothing here knows a clock, a log or a socket.
//!
//! * Members of a group are on different nodes, always; in different hosts, racks and zones as far as there are enough of them.
//! * Every disk has a *share* of all homes in proportion to its capacity, within what failure domains allow ([`shares`]).
//! * A move is proposed only because a disk is lost or is to be emptied, because a group is not spread as it could be, or because it
//!   brings a disk nearer to its share; so what comes back, or comes new, moves no more than it must.
//! * The same question gets the same answer.

pub(crate) mod first;
pub(crate) mod moves;
pub(crate) mod shares;
#[cfg(test)]
mod tests;

use holdfast_types::{DiskId, NodeId};
use std::collections::BTreeMap;

/// A disk of a node, apart from its life.
pub(crate) type Place = (NodeId, DiskId);

/// Failure domains that labels name, from the narrowest to the widest. Nodes without a label are one domain together, but that each is a
/// host of its own.
const LABELS: [&str; 3] = ["host", "rack", "zone"];
/// Kinds of failure domains.
pub(crate) const LEVELS: usize = LABELS.len();

/// What a disk is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stand {
    /// It keeps its groups, and takes more.
    In,
    /// It keeps its groups and takes none now: it is silent for a while, or nearly full.
    Keeps,
    /// It is to be emptied, and serves until then.
    Draining,
    /// It is given up.
    Out,
}

/// A disk, as placement sees it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) place: Place,
    /// Bytes in all.
    pub(crate) capacity: u64,
    pub(crate) stand: Stand,
    /// The node's labels.
    pub(crate) labels: Vec<(String, String)>,
}

/// Disks, and in which failure domains they are, by number.
#[derive(Debug)]
pub(crate) struct Topology {
    /// By place.
    pub(crate) disks: Vec<Disk>,
    /// For each disk its domain of each kind.
    domains: Vec<[u32; LEVELS]>,
    /// Members of one group that a domain of each kind may hold.
    pub(crate) caps: [u32; LEVELS],
    /// How many homes each disk should have.
    pub(crate) shares: Vec<f64>,
}

impl Topology {
    /// Works out domains and shares for a number of groups.
    pub(crate) fn new(mut disks: Vec<Disk>, groups: usize, replicas: u32) -> Self {
        disks.sort_by_key(|disk| disk.place);
        disks.dedup_by_key(|disk| disk.place);
        let mut numbers: [BTreeMap<Vec<String>, u32>; LEVELS] = Default::default();
        let mut domains = Vec::with_capacity(disks.len());
        for disk in &disks {
            let mut mine = [0; LEVELS];
            for level in 0..LEVELS {
                let next = numbers[level].len() as u32;
                mine[level] = *numbers[level].entry(domain(disk, level)).or_insert(next);
            }
            domains.push(mine);
        }
        let mut caps = [replicas; LEVELS];
        for (level, cap) in caps.iter_mut().enumerate() {
            let mut there: Vec<u32> =
                disks.iter().zip(&domains).filter(|(d, _)| counts(d)).map(|(_, of)| of[level]).collect();
            there.sort_unstable();
            there.dedup();
            *cap = replicas.div_ceil((there.len() as u32).max(1));
        }
        let shares = shares::shares(&disks, &domains, caps, groups, replicas);
        Self { disks, domains, caps, shares }
    }

    /// A disk's number.
    pub(crate) fn find(&self, place: Place) -> Option<usize> {
        self.disks.binary_search_by_key(&place, |disk| disk.place).ok()
    }

    /// How badly a group with these homes would be spread with one more: the widest kind of domain weighs most.
    pub(crate) fn crowding(&self, others: &[usize], disk: usize) -> u32 {
        let mut sum = 0;
        for level in 0..LEVELS {
            let mine = self.domains[disk][level];
            let there = others.iter().filter(|other| self.domains[**other][level] == mine).count() as u32;
            if there >= self.caps[level] {
                sum += 1 << level;
            }
        }
        sum
    }
}

/// Whether a disk has a share: it is not to be empty.
pub(crate) fn counts(disk: &Disk) -> bool {
    matches!(disk.stand, Stand::In | Stand::Keeps) && disk.capacity > 0
}

/// A disk's domain: the label with those of all wider domains, for racks of two zones may have the same name.
fn domain(disk: &Disk, level: usize) -> Vec<String> {
    let label = |key: &str| disk.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
    let own = label(LABELS[level])
        .unwrap_or_else(|| if level == 0 { format!("node {}", disk.place.0.0) } else { String::new() });
    let wider = LABELS[level + 1..].iter().map(|key| label(key).unwrap_or_default());
    std::iter::once(own).chain(wider).collect()
}

/// A number in 0..1 drawn from others: spreads what would else be equal.
pub(crate) fn noise(seed: u64, more: u64) -> f64 {
    use holdfast_types::prng::mix;
    (mix(seed ^ mix(more)) >> 11) as f64 / (1u64 << 53) as f64
}
