//! Groups move house: what was lost is made again, nodes are emptied, new ones get their share; and never is a copy missing for it.

use super::{Storage, World, envelope};
use crate::api::{Caller, ticks};
use holdfast_types::limits::NODE_TTL;
use holdfast_types::{GroupId, NodeId, SessionId, ShardId};
use holdfast_wire::admin::StoragePlace;
use holdfast_wire::map::{ClusterMap, View};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use std::collections::BTreeMap;
use std::time::Duration;

const CLUSTER: ShardId = ShardId::CLUSTER;
const OUT_AFTER: Duration = Duration::from_secs(20);
const SECOND: u64 = ticks(Duration::from_secs(1));

/// A pool of 16 groups in three copies that has been at rest for a while.
fn pool(nodes: u64) -> World {
    labelled(nodes, |_| Vec::new())
}

fn labelled(nodes: u64, labels: impl Fn(u64) -> Vec<(String, String)>) -> World {
    let mut world = World::new(3, nodes, |config| {
        config.groups = 16;
        config.out_after = OUT_AFTER;
        config.limits.moves_per_node = 4;
    });
    world.storage.iter_mut().for_each(|(id, node)| node.labels = labels(*id));
    world.until("formed", |world| world.leader(CLUSTER).is_some() && !world.map().views.is_empty());
    world.run(15 * SECOND);
    world
}

fn place(world: &mut World, node: u64, place: StoragePlace) -> Result<Response, MetadataError> {
    world.admin(Request::PlaceStorage { node: NodeId(node), place })
}

fn rehomed(world: &World) -> u64 {
    world.core(world.leader(CLUSTER).unwrap()).counters().rehomed
}

/// Lets time pass, in which primaries catch up their members; returns the fewest members in sync that a group ever had, and the most
/// members that a node was ever catching up.
fn work(world: &mut World, seconds: u64) -> (usize, usize) {
    let (mut fewest, mut most) = (usize::MAX, 0);
    for tick in 0..seconds * SECOND {
        world.tick();
        if world.leader(CLUSTER).is_none() {
            continue;
        }
        let now = world.map();
        fewest = now.views.iter().map(|view| view.in_sync.len()).min().unwrap().min(fewest);
        let mut catching: BTreeMap<NodeId, usize> = BTreeMap::new();
        now.views.iter().flat_map(|view| &view.syncing).for_each(|m| *catching.entry(m.node).or_default() += 1);
        most = catching.values().copied().max().unwrap_or(0).max(most);
        check_nodes(&now);
        if tick % 10 == 0 {
            promote(world, &now);
        }
    }
    (fewest, most)
}

/// Every primary that lives promotes whoever lives.
fn promote(world: &mut World, now: &ClusterMap) {
    for (number, view) in now.views.iter().enumerate() {
        let lives = |world: &World, node: NodeId| world.storage.get(&node.0).is_some_and(|node| node.alive);
        let Some(member) = view.syncing.iter().copied().find(|member| lives(world, member.node)) else { continue };
        if lives(world, view.primary.node)
            && let Some(leader) = world.leader(CLUSTER)
        {
            let request = Request::Promote { group: GroupId(number as u32), epoch: view.epoch, member };
            world.ask_as(leader, Caller::Storage(view.primary.node), envelope(CLUSTER, SessionId::NONE, request));
        }
    }
}

/// No node is in a view twice, and every member is on a disk that is kept.
fn check_nodes(map: &ClusterMap) {
    for (view, homes) in map.views.iter().zip(&map.homes) {
        let mut nodes: Vec<NodeId> = view.members().map(|member| member.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        assert_eq!(nodes.len(), view.members().count(), "{view:?}");
        assert!(view.members().all(|member| homes.contains(&(member.node, member.disk))), "{view:?} {homes:?}");
    }
}

fn homes_on(world: &World, node: u64) -> usize {
    world.map().homes.iter().filter(|homes| homes.iter().any(|place| place.0 == NodeId(node))).count()
}

fn is_in(view: &View, node: u64) -> bool {
    view.members().any(|member| member.node == NodeId(node))
}

#[test]
fn a_node_that_stays_away_is_replaced_by_the_others() {
    let mut world = pool(5);
    let had = homes_on(&world, 2);
    world.storage.get_mut(&2).unwrap().alive = false;
    work(&mut world, 18);
    assert_eq!((homes_on(&world, 2), rehomed(&world)), (had, 0), "not yet");
    let (fewest, most) = work(&mut world, 30);
    let moved = rehomed(&world);
    assert!(homes_on(&world, 2) == 0 && (had as u64..=had as u64 + 1).contains(&moved), "{moved} for {had}");
    assert!(fewest == 2 && most <= 4, "{fewest} {most}");
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3 && view.syncing.is_empty() && !is_in(view, 2)));
    let now = world.status();
    assert_eq!((now.groups_degraded, now.rebuild.lost, now.rebuild.under_way), (0, 0, 0));
    assert!(now.storage.iter().all(|node| node.given_up == (node.id == NodeId(2))));
    // It comes back, empty for all that counts, and gets its share again.
    world.storage.get_mut(&2).unwrap().alive = true;
    let (fewest, _) = work(&mut world, 60);
    assert_eq!(fewest, 3);
    assert!((8..=11).contains(&homes_on(&world, 2)), "{}", homes_on(&world, 2));
    world.check();
}

#[test]
fn a_node_that_comes_back_in_time_keeps_its_groups() {
    let mut world = pool(4);
    let before = world.map().homes;
    for _ in 0..3 {
        world.storage.get_mut(&2).unwrap().alive = false;
        work(&mut world, 15);
        world.storage.get_mut(&2).unwrap().alive = true;
        work(&mut world, 15);
    }
    assert_eq!((world.map().homes, rehomed(&world)), (before, 0));
    world.check();
}

#[test]
fn when_more_than_a_quarter_is_silent_nobody_is_given_up() {
    let mut world = pool(5);
    let before = world.map().homes;
    for node in [2, 3] {
        world.storage.get_mut(&node).unwrap().alive = false;
    }
    work(&mut world, 60);
    assert_eq!((world.map().homes, rehomed(&world)), (before, 0));
    // One is back: the other one is a loss like any other.
    world.storage.get_mut(&3).unwrap().alive = true;
    work(&mut world, 60);
    assert_eq!(homes_on(&world, 2), 0);
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    world.check();
}

#[test]
fn a_failed_disk_and_one_that_is_gone_are_replaced_as_a_node_is() {
    let mut world = pool(5);
    world.storage.get_mut(&4).unwrap().failed = true;
    work(&mut world, 60);
    assert_eq!(homes_on(&world, 4), 0);
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    world.check();
}

#[test]
fn a_disk_that_its_node_cannot_open_for_a_while_is_waited_for() {
    let mut world = pool(5);
    let had = homes_on(&world, 4);
    world.storage.get_mut(&4).unwrap().diskless = true;
    work(&mut world, OUT_AFTER.as_secs() / 2);
    assert_eq!((homes_on(&world, 4), rehomed(&world)), (had, 0), "a mount that is late is no loss");
    world.storage.get_mut(&4).unwrap().diskless = false;
    work(&mut world, 2 * OUT_AFTER.as_secs());
    assert_eq!((homes_on(&world, 4), rehomed(&world)), (had, 0));
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    world.storage.get_mut(&4).unwrap().diskless = true;
    work(&mut world, 3 * OUT_AFTER.as_secs());
    assert_eq!(homes_on(&world, 4), 0);
    world.check();
}

#[test]
fn a_drained_node_serves_until_others_have_all() {
    let mut world = pool(5);
    let had = homes_on(&world, 2) as u64;
    place(&mut world, 2, StoragePlace::Draining).unwrap();
    work(&mut world, 1);
    let begun = world.status();
    assert!(begun.storage[1].leaving_of > 0 && begun.storage[1].place == StoragePlace::Draining);
    let (fewest, most) = work(&mut world, 60);
    assert_eq!((fewest, homes_on(&world, 2)), (3, 0), "no copy was missing for it");
    assert!(most <= 4 && (had..=had + 1).contains(&rehomed(&world)), "{most} {}", rehomed(&world));
    assert!(world.map().views.iter().all(|view| !is_in(view, 2)));
    assert_eq!(world.status().storage[1].leaving_of, 0);
    // It is a part of the pool all the same, and used again when asked for.
    assert!(world.map().nodes[&NodeId(2)].alive);
    place(&mut world, 2, StoragePlace::In).unwrap();
    let (fewest, _) = work(&mut world, 60);
    assert!(fewest == 3 && homes_on(&world, 2) >= 8);
    world.check();
}

#[test]
fn what_is_under_way_goes_on_under_another_leader() {
    let mut world = pool(5);
    place(&mut world, 2, StoragePlace::Draining).unwrap();
    for round in 0..3 {
        work(&mut world, 3);
        let leader = world.leader(CLUSTER).unwrap();
        world.crash(leader, round);
        work(&mut world, 5);
        world.start(leader);
    }
    let (fewest, _) = work(&mut world, 90);
    assert_eq!((fewest, homes_on(&world, 2)), (3, 0));
    world.check();
}

#[test]
fn a_removed_node_is_gone_when_it_is_empty_and_does_not_come_back() {
    let mut world = pool(5);
    place(&mut world, 2, StoragePlace::Leaving { successor: None }).unwrap();
    let (fewest, _) = work(&mut world, 60);
    assert_eq!((fewest, homes_on(&world, 2)), (3, 0));
    assert!(!world.map().nodes.contains_key(&NodeId(2)));
    assert_eq!(world.status().storage_gone, [NodeId(2)]);
    world.storage.get_mut(&2).unwrap().incarnation = 2;
    work(&mut world, 20);
    assert!(!world.map().nodes.contains_key(&NodeId(2)) && homes_on(&world, 2) == 0);
    assert!(matches!(place(&mut world, 2, StoragePlace::In), Err(MetadataError::Invalid { .. })));
    // Four are left: one more may go, and then no more.
    place(&mut world, 3, StoragePlace::Leaving { successor: None }).unwrap();
    assert!(matches!(place(&mut world, 4, StoragePlace::Draining), Err(MetadataError::Invalid { .. })));
    let client =
        world.call(CLUSTER, SessionId::NONE, Request::PlaceStorage { node: NodeId(3), place: StoragePlace::In });
    assert_eq!(client, Err(MetadataError::Forbidden));
    world.check();
}

#[test]
fn a_dead_node_that_is_removed_is_given_up_at_once() {
    let mut world = pool(5);
    world.storage.get_mut(&2).unwrap().alive = false;
    work(&mut world, ticks(NODE_TTL) / SECOND + 1);
    place(&mut world, 2, StoragePlace::Leaving { successor: None }).unwrap();
    work(&mut world, 14);
    assert!(!world.map().nodes.contains_key(&NodeId(2)));
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    world.check();
}

#[test]
fn a_node_is_replaced_by_another_one_when_that_has_come() {
    let mut world = pool(3);
    place(&mut world, 2, StoragePlace::Leaving { successor: Some(NodeId(4)) }).unwrap();
    work(&mut world, 20);
    assert_eq!((homes_on(&world, 2), rehomed(&world)), (16, 0), "it waits");
    world.storage.insert(4, Storage::new());
    let (fewest, _) = work(&mut world, 90);
    assert_eq!((fewest, homes_on(&world, 2), homes_on(&world, 4)), (3, 0, 16));
    assert!(!world.map().nodes.contains_key(&NodeId(2)));
    world.check();
}

#[test]
fn a_new_node_gets_its_share_and_nothing_else_moves() {
    let mut world = pool(4);
    world.storage.insert(5, Storage::new());
    let (fewest, most) = work(&mut world, 90);
    assert!(fewest == 3 && most <= 4, "{fewest} {most}");
    let share = 16 * 3 / 5;
    assert!(homes_on(&world, 5).abs_diff(share) <= 1 && rehomed(&world) <= share as u64 + 1, "{}", rehomed(&world));
    for node in 1..=4 {
        assert!((9..=11).contains(&homes_on(&world, node)), "{node}: {}", homes_on(&world, node));
    }
    let leads = world.map().views.iter().filter(|view| view.primary.node == NodeId(5)).count();
    assert!(leads > 0, "it leads some of them");
    world.check();
}

#[test]
fn what_moved_to_a_node_that_dies_goes_elsewhere_or_back() {
    let mut world = pool(5);
    place(&mut world, 1, StoragePlace::Draining).unwrap();
    // Nobody is promoted yet.
    world.run(3 * SECOND);
    let syncing = world.map().views.iter().flat_map(|view| view.syncing.clone()).map(|member| member.node).next();
    let dies = syncing.expect("somebody is caught up").0;
    world.storage.get_mut(&dies).unwrap().alive = false;
    work(&mut world, 90);
    assert_eq!((homes_on(&world, 1), homes_on(&world, dies)), (0, 0));
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3 && view.syncing.is_empty()));
    world.check();
}

#[test]
fn racks_are_kept_apart_when_a_node_is_lost() {
    let rack = |node: u64| (node - 1) / 2;
    let mut world = labelled(6, |node| vec![("rack".into(), format!("r{}", rack(node)))]);
    let apart = |world: &World| {
        world.map().homes.iter().all(|homes| {
            let mut racks: Vec<u64> = homes.iter().map(|place| rack(place.0.0)).collect();
            racks.sort_unstable();
            racks.dedup();
            racks.len() == 3
        })
    };
    assert!(apart(&world));
    world.storage.get_mut(&2).unwrap().alive = false;
    work(&mut world, 90);
    assert!(apart(&world) && homes_on(&world, 2) == 0 && homes_on(&world, 1) == 16);
    world.check();
}

/// The leader's own time with a thousand nodes and the most groups there can be, with `HOLDFAST_TEST_LONG=1`; otherwise a tenth.
#[test]
#[expect(clippy::disallowed_methods, reason = "the leader's own time is what is printed")]
fn a_leader_of_many_nodes_gives_up_some_of_them() {
    let nodes = if std::env::var_os("HOLDFAST_TEST_LONG").is_some() { 1000 } else { 100 };
    let mut world = World::new(1, nodes, |config| {
        config.groups = if nodes == 1000 { 65_536 } else { 4096 };
        config.out_after = Duration::from_secs(5);
    });
    world.until("formed", |world| world.leader(CLUSTER).is_some() && !world.map().views.is_empty());
    world.run(15 * SECOND);
    let second = |what: &str, world: &mut World, seconds: u64| {
        let mut longest = Duration::ZERO;
        let begun = std::time::Instant::now();
        for _ in 0..seconds * SECOND {
            let tick = std::time::Instant::now();
            world.tick();
            longest = longest.max(tick.elapsed());
        }
        println!("{what}: {:?} for each second, {longest:?} the longest tick", begun.elapsed() / seconds as u32);
    };
    second("at rest", &mut world, 10);
    let silent = nodes / 50;
    (1..=silent).for_each(|node| world.storage.get_mut(&node).unwrap().alive = false);
    second(&format!("{silent} of {nodes} nodes fall silent, and are given up"), &mut world, 10);
    println!("{} homes have moved", rehomed(&world));
    assert!(rehomed(&world) > 0);
}

#[test]
fn nothing_moves_to_a_disk_that_is_nearly_full() {
    let mut world = pool(5);
    world.storage.get_mut(&3).unwrap().free = 1 << 30;
    let had = homes_on(&world, 3);
    world.storage.get_mut(&2).unwrap().alive = false;
    work(&mut world, 60);
    assert_eq!((homes_on(&world, 2), homes_on(&world, 3)), (0, had));
    world.check();
}
