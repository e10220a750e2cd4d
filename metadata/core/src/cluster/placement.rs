//! Groups to disks: where each group lives when the pool is formed.
//!
//! * The members of a group are on different nodes.
//! * Every node is primary, and member, of as many groups as any other, give or take one in each round of nodes.

use holdfast_types::{Epoch, MemberId};
use holdfast_wire::map::View;

/// First views of `groups` groups over disks; one inner list per node, in a fixed order, none empty.
pub(crate) fn first_views(nodes: &[Vec<MemberId>], groups: u32, replicas: u32) -> Vec<View> {
    let count = nodes.len();
    let replicas = (replicas as usize).min(count);
    (0..groups as usize)
        .map(|group| {
            let round = group / count;
            // Rounds differ in stride, so that the groups of a node that dies fall on all others alike.
            let stride = if count > 1 { 1 + round % (count - 1) } else { 1 };
            let mut taken = Vec::with_capacity(replicas);
            let mut at = group % count;
            while taken.len() < replicas {
                while taken.contains(&at) {
                    at = (at + 1) % count;
                }
                taken.push(at);
                at = (at + stride) % count;
            }
            let member = |node: &usize| nodes[*node][round % nodes[*node].len()];
            let primary = member(&taken[0]);
            let mut in_sync: Vec<MemberId> = taken.iter().map(member).collect();
            in_sync.sort_unstable();
            View { epoch: Epoch(1), primary, in_sync, syncing: Vec::new() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{DiskId, Incarnation, NodeId};
    use std::collections::BTreeMap;

    #[test]
    fn groups_are_spread_evenly_over_nodes_and_disks() {
        for (nodes, disks, replicas) in [(1u64, 1u32, 3u32), (3, 1, 3), (4, 2, 3), (5, 3, 2), (7, 1, 5)] {
            let all: Vec<Vec<MemberId>> = (1..=nodes)
                .map(|node| {
                    let disk = |disk| MemberId { node: NodeId(node), disk: DiskId(disk), incarnation: Incarnation(1) };
                    (0..disks).map(disk).collect()
                })
                .collect();
            let views = first_views(&all, 256, replicas);
            let mut primaries = BTreeMap::new();
            let mut members = BTreeMap::new();
            for view in &views {
                assert!(view.in_sync.contains(&view.primary));
                let mut on: Vec<NodeId> = view.in_sync.iter().map(|member| member.node).collect();
                on.dedup();
                assert_eq!(on.len(), replicas.min(nodes as u32) as usize, "different nodes");
                *primaries.entry(view.primary.node).or_insert(0u64) += 1;
                view.in_sync.iter().for_each(|member| *members.entry((member.node, member.disk)).or_insert(0u64) += 1);
            }
            let even = 256 / nodes;
            assert!(primaries.values().all(|count| (even..=even + 1).contains(count)), "{primaries:?}");
            let each = 256 * u64::from(replicas.min(nodes as u32)) / (nodes * u64::from(disks));
            assert!(members.values().all(|count| count.abs_diff(each) <= each / 4 + 2), "{nodes} {disks}: {members:?}");
        }
    }
}
