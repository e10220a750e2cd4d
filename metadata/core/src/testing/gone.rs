//! A process that has ended is out of the views as soon as two others find nobody listening where it was.

use super::{World, envelope};
use crate::api::{Caller, ticks};
use holdfast_types::limits::{NODE_HEARTBEAT, NODE_TTL};
use holdfast_types::{DiskId, Incarnation, NodeId, SessionId, ShardId};
use holdfast_wire::metadata::{Request, Response};

const CLUSTER: ShardId = ShardId::CLUSTER;
/// Enough for a command to be committed and applied.
const SOON: u64 = 6;

fn report(world: &mut World, node: u64, life: u64, reporter: u64) {
    let lives = vec![(DiskId(0), Incarnation(life))];
    let request = Request::ReportGone { node: NodeId(node), lives, reporter: NodeId(reporter) };
    let answer = world.call_as(Caller::Storage(NodeId(reporter)), envelope(CLUSTER, SessionId::NONE, request));
    assert_eq!(answer.result, Ok(Response::Done));
}

/// In how many views a node is, in sync or syncing.
fn views_of(world: &World, node: u64) -> usize {
    let map = world.core(world.leader(CLUSTER).unwrap()).map();
    map.views.iter().filter(|view| view.members().any(|member| member.node == NodeId(node))).count()
}

#[test]
fn two_who_find_nobody_listening_are_believed_at_once() {
    let mut world = World::formed(3, 3);
    let all = views_of(&world, 2);
    world.storage.get_mut(&2).unwrap().alive = false;
    report(&mut world, 2, 1, 1);
    world.run(SOON);
    assert_eq!(views_of(&world, 2), all, "one alone takes nobody out");
    report(&mut world, 2, 1, 1);
    world.run(SOON);
    assert_eq!(views_of(&world, 2), all, "nor when it says so twice");
    report(&mut world, 2, 1, 3);
    world.run(SOON);
    assert_eq!(views_of(&world, 2), 0);
    assert!(world.storage[&1].alive && ticks(NODE_TTL) > 4 * SOON, "silence has not told yet");
    // It comes back in another life, at once.
    let node = world.storage.get_mut(&2).unwrap();
    (node.alive, node.incarnation) = (true, 2);
    world.run(ticks(NODE_HEARTBEAT) + 2 * SOON);
    assert_eq!(views_of(&world, 2), all);
    world.check();
}

#[test]
fn one_is_believed_of_a_node_that_has_missed_a_heartbeat() {
    let mut world = World::formed(3, 3);
    world.storage.get_mut(&2).unwrap().alive = false;
    world.run(2 * ticks(NODE_HEARTBEAT));
    assert_ne!(views_of(&world, 2), 0);
    report(&mut world, 2, 1, 3);
    world.run(SOON);
    assert_eq!(views_of(&world, 2), 0);
    world.check();
}

#[test]
fn who_lives_is_not_out_for_long_on_anybodys_word() {
    let mut world = World::formed(3, 3);
    let all = views_of(&world, 2);
    // Of another life, or of a node's own doing: nothing.
    [1, 3].into_iter().for_each(|reporter| report(&mut world, 2, 7, reporter));
    [2, 2].into_iter().for_each(|reporter| report(&mut world, 2, 1, reporter));
    world.run(SOON);
    assert_eq!(views_of(&world, 2), all);
    // Both are mistaken. What it says in the next moment may be its last words; what it says later is not.
    [1, 3].into_iter().for_each(|reporter| report(&mut world, 2, 1, reporter));
    world.run(SOON);
    assert_eq!(views_of(&world, 2), 0);
    world.run(3 * ticks(NODE_HEARTBEAT));
    assert_eq!(views_of(&world, 2), all);
    // That is not done to it again and again: it lives.
    [1, 3].into_iter().for_each(|reporter| report(&mut world, 2, 1, reporter));
    world.run(SOON);
    assert_eq!(views_of(&world, 2), all);
    // Somebody who is gone himself is not asked.
    world.storage.get_mut(&3).unwrap().alive = false;
    world.run(ticks(NODE_TTL) + 4 * SOON);
    report(&mut world, 2, 1, 3);
    report(&mut world, 2, 1, 1);
    world.run(SOON);
    assert_eq!(views_of(&world, 2), all);
    world.check();
}
