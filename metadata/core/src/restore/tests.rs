//! Who holds a group when a backup is restored.

use super::groups::{Known, Regrouped, holders};
use super::leap::Leap;
use crate::cluster::views::is_valid;
use crate::tables::cluster::GroupRow;
use holdfast_types::{DiskId, Epoch, GroupId, Incarnation, MapVersion, MemberId, NodeId, OpCount, OpNumber, Timestamp};
use holdfast_wire::admin::{HeldByNode, HeldGroup};
use holdfast_wire::map::{ClusterMap, View};
use std::collections::BTreeMap;

const DISK: DiskId = DiskId(1);

fn member(node: u64, life: u64) -> MemberId {
    MemberId { node: NodeId(node), disk: DISK, incarnation: Incarnation(life) }
}

fn view(epoch: u64, in_sync: &[u64], syncing: &[u64]) -> View {
    let members = |nodes: &[u64]| {
        let mut members: Vec<_> = nodes.iter().map(|node| member(*node, 1)).collect();
        members.sort_unstable();
        members
    };
    View { epoch: Epoch(epoch), primary: member(in_sync[0], 1), in_sync: members(in_sync), syncing: members(syncing) }
}

/// The group of a backup: at home on 1, 2 and 3, its view of epoch 6.
fn before() -> GroupRow {
    let homes = [1, 2, 3].map(|node| (NodeId(node), DISK)).to_vec();
    GroupRow { view: view(6, &[1, 2, 3], &[]), changed: MapVersion(9), homes, leaving: Vec::new() }
}

/// Nodes that say how far they are with the group, and the life of their disk.
fn said(nodes: &[(u64, u64, (u64, u64))]) -> BTreeMap<NodeId, HeldByNode> {
    let said = nodes.iter().map(|(node, life, (epoch, count))| {
        let last = OpNumber { epoch: Epoch(*epoch), count: OpCount(*count) };
        let group = HeldGroup { group: GroupId(0), member: member(*node, *life), last };
        (NodeId(*node), HeldByNode { groups: vec![group], ..HeldByNode::default() })
    });
    said.collect()
}

fn regroup(newest: Option<(View, &[u64])>, held: &BTreeMap<NodeId, HeldByNode>) -> Regrouped {
    let map = newest.map(|(view, kept)| ClusterMap {
        version: MapVersion(100),
        views: vec![view],
        homes: vec![kept.iter().map(|node| (NodeId(*node), DISK)).collect()],
        ..ClusterMap::default()
    });
    let leap = Leap::between(Timestamp::default(), Timestamp::default()).expect("the same moment");
    let known = Known { newest: map.as_ref(), holders: holders(held), leap, replicas: 3 };
    let regrouped = known.regroup(GroupId(0), &before()).expect("it leaps");
    let row = &regrouped.row;
    assert!(is_valid(&row.view), "{:?}", row.view);
    assert!(row.view.epoch.0 > 1 << 16, "it leaps: {}", row.view.epoch);
    let kept = row.kept();
    assert!(row.view.members().all(|member| kept.contains(&(member.node, member.disk))), "{row:?}");
    assert!(row.homes.iter().all(|place| !row.leaving.contains(place)), "{row:?}");
    regrouped
}

fn nodes(members: &[MemberId]) -> Vec<u64> {
    members.iter().map(|member| member.node.0).collect()
}

fn places(places: &[(NodeId, DiskId)]) -> Vec<u64> {
    places.iter().map(|place| place.0.0).collect()
}

#[test]
fn where_nothing_has_changed_the_view_of_the_backup_goes_on() {
    for held in [said(&[]), said(&[(1, 1, (6, 40)), (2, 1, (6, 41)), (3, 4, (5, 2))])] {
        let regrouped = regroup(None, &held);
        assert_eq!(nodes(&regrouped.row.view.in_sync), [1, 2, 3]);
        assert_eq!((regrouped.compared, regrouped.unknown), (false, false));
        assert_eq!((places(&regrouped.row.homes), regrouped.row.leaving), (vec![1, 2, 3], vec![]));
    }
}

#[test]
fn the_newest_map_of_a_storage_node_counts_more_than_the_backup() {
    // The first has missed writes, and is being caught up.
    let regrouped = regroup(Some((view(9, &[2, 3], &[1]), &[1, 2, 3])), &said(&[(2, 1, (9, 4))]));
    assert_eq!(nodes(&regrouped.row.view.in_sync), [2, 3]);
    assert_eq!((nodes(&regrouped.row.view.syncing), regrouped.compared), (vec![1], false));
    assert_eq!((places(&regrouped.row.homes), regrouped.row.leaving), (vec![1, 2, 3], vec![]));
    // The group has moved to the fourth.
    let regrouped = regroup(Some((view(9, &[4, 2, 3], &[]), &[2, 3, 4])), &said(&[]));
    assert_eq!((places(&regrouped.row.homes), regrouped.row.leaving), (vec![4, 2, 3], vec![]));
    // It is moving there. The copy that was to go is at home again, and the new one is not given up before the others are whole.
    let regrouped = regroup(Some((view(9, &[1, 2, 3], &[4]), &[2, 3, 4, 1])), &said(&[]));
    assert_eq!((places(&regrouped.row.homes), places(&regrouped.row.leaving)), (vec![1, 2, 3], vec![4]));
}

#[test]
fn where_nobody_remembers_a_change_of_the_view_the_last_written_copy_goes_on_alone() {
    // The third was taken out, and the others went on.
    let regrouped = regroup(None, &said(&[(1, 1, (7, 5)), (2, 1, (7, 7)), (3, 2, (6, 90))]));
    let only = member(2, 1);
    assert_eq!((regrouped.row.view.in_sync.as_slice(), regrouped.row.view.primary), (&[only][..], only));
    assert_eq!((regrouped.compared, regrouped.unknown), (true, false));
    assert_eq!(places(&regrouped.row.homes), [1, 2, 3]);
    // A fourth has a copy as well, no newer: it is kept until those at home are whole.
    let regrouped = regroup(None, &said(&[(1, 1, (7, 7)), (4, 1, (7, 7))]));
    assert_eq!((nodes(&regrouped.row.view.in_sync), regrouped.unknown), (vec![1], false));
    assert_eq!(places(&regrouped.row.leaving), [4]);
}

#[test]
fn a_copy_that_nobody_knows_to_be_whole_is_called_unknown() {
    // The group has moved away from all three, or is on its way to the fourth: nobody can tell.
    let regrouped = regroup(None, &said(&[(1, 2, (7, 5)), (2, 2, (6, 7)), (4, 1, (9, 1))]));
    assert_eq!((nodes(&regrouped.row.view.in_sync), regrouped.compared, regrouped.unknown), (vec![4], true, true));
    assert_eq!((places(&regrouped.row.homes), places(&regrouped.row.leaving)), (vec![1, 2, 3], vec![4]));
}

#[test]
fn a_copy_that_may_be_half_caught_up_is_called_unknown_even_if_it_has_the_last_change() {
    // One of them has left, come back, and is being caught up, which takes current changes as well: nobody can tell which.
    let regrouped = regroup(None, &said(&[(1, 1, (8, 7)), (2, 1, (8, 7)), (3, 1, (8, 7))]));
    assert_eq!((regrouped.row.view.in_sync.len(), regrouped.compared, regrouped.unknown), (1, true, true));
    // A disk in another life may have come back empty with the very change that took it out.
    let regrouped = regroup(None, &said(&[(1, 2, (7, 7))]));
    assert!(regrouped.unknown);
    // Beside one that is proven it is not taken.
    let regrouped = regroup(None, &said(&[(1, 1, (7, 7)), (2, 2, (7, 7)), (4, 1, (7, 7))]));
    assert_eq!((nodes(&regrouped.row.view.in_sync), regrouped.unknown), (vec![1], false));
}
