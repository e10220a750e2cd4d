//! A disk or node slower than its peers: others lead its groups, then they do without it, and all returns by itself.

use super::{World, envelope};
use crate::api::{Caller, ticks};
use holdfast_types::limits::NODE_TTL;
use holdfast_types::{Epoch, GroupId, NodeId, SessionId, ShardId};
use holdfast_wire::admin::{SlowIn, Slowness};
use holdfast_wire::map::View;
use holdfast_wire::metadata::Request;
use std::time::Duration;

const CLUSTER: ShardId = ShardId::CLUSTER;
const OUT_AFTER: Duration = Duration::from_secs(60);
const SECOND: u64 = ticks(Duration::from_secs(1));

fn pool(nodes: u64, replicas: u32) -> World {
    let mut world = World::new(3, nodes, |config| {
        (config.groups, config.out_after, config.replicas) = (16, OUT_AFTER, replicas);
    });
    world.until("formed", |world| world.leader(CLUSTER).is_some() && !world.map().views.is_empty());
    work(&mut world, 15);
    world
}

/// What status says of a node's disk.
fn slowness(world: &mut World, node: u64) -> Option<Slowness> {
    let status = world.status();
    let node = status.storage.iter().find(|storage| storage.id == NodeId(node))?;
    node.disks[0].slow
}

/// Lets time pass, in which primaries catch up their members.
fn work(world: &mut World, seconds: u64) {
    for tick in 0..seconds * SECOND {
        world.tick();
        if !tick.is_multiple_of(10) || world.leader(CLUSTER).is_none() {
            continue;
        }
        let leader = world.leader(CLUSTER).unwrap();
        for (number, view) in world.map().views.iter().enumerate() {
            for member in view.syncing.clone() {
                let request = Request::Promote { group: GroupId(number as u32), epoch: view.epoch, member };
                let envelope = envelope(CLUSTER, SessionId::NONE, request);
                world.ask_as(leader, Caller::Storage(view.primary.node), envelope);
            }
        }
    }
}

fn leads(world: &World, node: u64) -> usize {
    world.map().views.iter().filter(|view| view.primary.node == NodeId(node)).count()
}

fn is_member(view: &View, node: u64) -> bool {
    view.members().any(|member| member.node == NodeId(node))
}

fn member_of(world: &World, node: u64) -> usize {
    world.map().views.iter().filter(|view| is_member(view, node)).count()
}

#[test]
fn a_disk_that_is_slow_to_write_loses_its_lead_then_its_place_and_gets_both_back() {
    let mut world = pool(3, 3);
    let first = leads(&world, 2);
    world.storage.get_mut(&2).unwrap().write_us = 300_000;
    work(&mut world, 3);
    assert_eq!((leads(&world, 2), member_of(&world, 2)), (0, 16), "others lead, and it has every copy");
    assert!(!slowness(&mut world, 2).unwrap().on_probation);
    work(&mut world, 4);
    assert_eq!((leads(&world, 2), member_of(&world, 2)), (0, 0));
    let said = slowness(&mut world, 2).unwrap();
    assert_eq!((said.what, said.takes_us, said.peers_us), (SlowIn::Writes, 300_000, 2_000));
    assert!(said.out && !said.on_probation);
    let epochs: Vec<Epoch> = world.map().views.iter().map(|view| view.epoch).collect();
    work(&mut world, 20);
    assert!(world.map().views.iter().map(|view| view.epoch).eq(epochs), "and then it rests");
    world.storage.get_mut(&2).unwrap().write_us = 2_000;
    work(&mut world, 8);
    assert_eq!(member_of(&world, 2), 0, "on probation");
    assert!(slowness(&mut world, 2).unwrap().on_probation);
    work(&mut world, 30);
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    assert_eq!((leads(&world, 2), slowness(&mut world, 2)), (first, None));
    world.check();
}

#[test]
fn slow_reads_cost_the_lead_and_no_copy() {
    let mut world = pool(3, 3);
    world.storage.get_mut(&1).unwrap().read_us = 90_000;
    work(&mut world, 12);
    assert_eq!((leads(&world, 1), member_of(&world, 1)), (0, 16));
    let said = slowness(&mut world, 1).unwrap();
    assert_eq!((said.what, said.out), (SlowIn::Reads, false));
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    world.check();
}

#[test]
fn a_node_whose_answers_are_late_is_as_good_as_one_with_slow_disks() {
    let mut world = pool(4, 3);
    world.storage.get_mut(&3).unwrap().round_trip_us = 200_000;
    work(&mut world, 8);
    assert_eq!((leads(&world, 3), member_of(&world, 3)), (0, 0));
    assert_eq!(slowness(&mut world, 3).unwrap().what, SlowIn::Answers);
    world.check();
}

#[test]
fn a_group_that_needs_a_slow_member_keeps_it_and_takes_it_back() {
    // Two copies: both are needed for writes. Only the lead moves.
    let mut world = pool(2, 2);
    world.storage.get_mut(&1).unwrap().write_us = 300_000;
    work(&mut world, 12);
    assert_eq!((leads(&world, 1), member_of(&world, 1)), (0, 16));
    world.check();
    // Three, and then another one dies: the slow one is caught up, for two are needed.
    let mut world = pool(3, 3);
    world.storage.get_mut(&1).unwrap().write_us = 300_000;
    work(&mut world, 8);
    assert_eq!(member_of(&world, 1), 0);
    world.storage.get_mut(&2).unwrap().alive = false;
    world.run(ticks(NODE_TTL));
    work(&mut world, 4);
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 2 && view.primary.node == NodeId(3)));
    assert_eq!(member_of(&world, 1), 16);
    // When there are enough again, it goes again.
    world.storage.get_mut(&2).unwrap().alive = true;
    work(&mut world, 6);
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 2 && !is_member(view, 1)));
    world.check();
}

#[test]
fn a_pool_that_is_slow_as_a_whole_is_left_alone() {
    let mut world = pool(3, 3);
    let epochs: Vec<Epoch> = world.map().views.iter().map(|view| view.epoch).collect();
    world.storage.values_mut().for_each(|node| node.write_us = 400_000);
    work(&mut world, 15);
    assert!(world.map().views.iter().map(|view| view.epoch).eq(epochs));
    assert!((1..=3).all(|node| slowness(&mut world, node).is_none()));
    world.check();
}

#[test]
fn a_new_leader_does_not_take_a_slow_disk_back() {
    let mut world = pool(3, 3);
    world.storage.get_mut(&2).unwrap().write_us = 300_000;
    work(&mut world, 8);
    assert_eq!(member_of(&world, 2), 0);
    let leader = world.leader(CLUSTER).unwrap();
    world.isolated.insert(leader);
    world.until("another leads", |world| world.leader(CLUSTER).is_some_and(|now| now != leader));
    for _ in 0..12 * SECOND {
        world.tick();
        assert!(world.leader(CLUSTER).is_none() || member_of(&world, 2) == 0, "it came back");
    }
    assert!(slowness(&mut world, 2).unwrap().out);
    world.isolated.clear();
    world.check();
}

#[test]
fn a_disk_that_stays_slow_is_replaced_where_there_is_another() {
    let mut world = pool(4, 3);
    let homes = |world: &World, node| world.map().homes.iter().flatten().filter(|home| home.0 == NodeId(node)).count();
    world.storage.get_mut(&2).unwrap().write_us = 300_000;
    work(&mut world, 30);
    assert!(homes(&world, 2) > 0, "not yet");
    work(&mut world, 60);
    assert_eq!((homes(&world, 2), member_of(&world, 2)), (0, 0));
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    world.storage.get_mut(&2).unwrap().write_us = 2_000;
    work(&mut world, 60);
    assert!(homes(&world, 2) > 8 && world.map().views.iter().all(|view| view.in_sync.len() == 3));
    assert_eq!(slowness(&mut world, 2), None);
    world.check();
}

#[test]
fn a_disk_that_hangs_is_out_where_enough_are_left() {
    let mut world = pool(3, 3);
    world.storage.get_mut(&2).unwrap().oldest_operation_ms = 5_500;
    world.run(2 * SECOND);
    assert_eq!(member_of(&world, 2), 0);
    world.storage.get_mut(&2).unwrap().oldest_operation_ms = 0;
    work(&mut world, 3);
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3));
    world.check();
}

#[test]
fn disks_that_hang_together_cost_no_copy_and_the_first_to_go_on_leads() {
    let mut world = pool(3, 3);
    world.storage.values_mut().for_each(|node| node.oldest_operation_ms = 7_000);
    world.run(2 * SECOND);
    world.storage.get_mut(&3).unwrap().oldest_operation_ms = 0;
    world.run(2 * SECOND);
    assert!(world.map().views.iter().all(|view| view.in_sync.len() == 3 && view.primary.node == NodeId(3)));
    // With two that go on, the third can be spared.
    world.storage.get_mut(&1).unwrap().oldest_operation_ms = 0;
    world.run(2 * SECOND);
    assert_eq!((member_of(&world, 1), member_of(&world, 2)), (16, 0));
    // A silent one goes without regard to how many are left.
    world.storage.get_mut(&1).unwrap().alive = false;
    world.run(ticks(NODE_TTL) + 2 * SECOND);
    assert_eq!(member_of(&world, 1), 0);
    world.check();
}
