//! A session is over when no storage node takes anything from it any more, and not before that is said.

use super::{World, envelope};
use crate::api::{Caller, ticks};
use holdfast_types::limits::{DRIFT_MARGIN, NODE_TTL};
use holdfast_types::{SessionId, ShardId};
use holdfast_wire::admin::{SessionState, SessionStatus};
use holdfast_wire::metadata::{ClientRecord, Request, Response};
use std::time::Duration;

const CLUSTER: ShardId = ShardId::CLUSTER;

fn begin_fence(world: &mut World, session: SessionId) -> u64 {
    let leader = world.leader(CLUSTER).unwrap();
    let request = envelope(CLUSTER, SessionId::NONE, Request::FenceSession { session });
    world.ask_until(leader, Caller::Admin, request, Duration::from_secs(60))
}

#[test]
fn a_fence_waits_for_every_storage_node() {
    let mut world = World::formed(3, 3);
    let (session, _) = world.attach();
    world.storage.get_mut(&3).unwrap().deaf = true;
    let request = begin_fence(&mut world, session);
    world.run(100);
    assert!(world.answer(request).is_none(), "one node lives and has not acknowledged");
    world.storage.get_mut(&3).unwrap().deaf = false;
    world.run(12);
    let Ok(Response::Fenced { version }) = world.take(request).unwrap().result else { panic!() };
    assert!(world.storage.values().all(|node| node.acknowledged >= version));
    // Asked again it is so still.
    let again = begin_fence(&mut world, session);
    world.run(12);
    assert!(matches!(world.take(again).unwrap().result, Ok(Response::Fenced { .. })));
    // And shard 1 learns of it by itself.
    world.run(60);
    let over = world.call(ShardId::VOLUMES, session, Request::Renew { seen: 0, wait: false });
    assert!(matches!(over, Err(holdfast_wire::metadata::MetadataError::SessionEnded { .. })));
    world.check();
}

#[test]
fn whoever_waits_for_a_volume_gets_it_as_soon_as_its_holder_is_fenced() {
    let mut world = World::formed(3, 3);
    let (held, caching) = world.attach();
    assert!(caching);
    let client = ClientRecord::default();
    let (second, volume) = world.open(client.clone());
    let attach = Request::Attach { volume, client, read_only: false };
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let waits =
        world.ask_until(leader, Caller::Client, envelope(ShardId::VOLUMES, second, attach), Duration::from_secs(60));
    world.run(20);
    assert!(world.answer(waits).is_none(), "the first one has not stopped caching");
    let standing = |world: &mut World| {
        let of = |session: &SessionStatus| (session.id == held).then(|| session.state.clone());
        world.status().sessions.iter().find_map(of)
    };
    assert_eq!(standing(&mut world), Some(SessionState::Attached { caching: true }));
    begin_fence(&mut world, held);
    // Storage nodes say what they know with their heartbeats here.
    let begun = world.now;
    world.until("it is let in", |world| world.answer(waits).is_some());
    assert!(world.now.since(begun) < Duration::from_millis(800), "{:?}", world.now.since(begun));
    assert!(matches!(world.take(waits).unwrap().result, Ok(Response::Attached { caching: true, .. })));
    assert_eq!(standing(&mut world), None);
    world.check();
}

#[test]
fn a_dead_node_holds_a_fence_up_until_its_peers_know_that_it_is_out() {
    let mut world = World::formed(3, 3);
    let (session, _) = world.attach();
    world.storage.get_mut(&3).unwrap().alive = false;
    let request = begin_fence(&mut world, session);
    world.run(ticks(NODE_TTL) - 20);
    assert!(world.answer(request).is_none());
    // It is taken out, but one peer has not heard.
    world.storage.get_mut(&2).unwrap().deaf = true;
    world.run(100);
    let map = world.core(world.leader(CLUSTER).unwrap()).map();
    assert!(map.views.iter().all(|view| view.in_sync.len() == 2));
    assert!(world.answer(request).is_none());
    world.storage.get_mut(&2).unwrap().deaf = false;
    world.run(12);
    assert!(matches!(world.take(request).unwrap().result, Ok(Response::Fenced { .. })));
}

#[test]
fn a_node_that_may_acknowledge_alone_is_waited_for() {
    let mut world = World::new(3, 1, |config| config.replicas = 1);
    let (session, _) = world.attach();
    world.storage.get_mut(&1).unwrap().alive = false;
    let begin = world.now;
    let request = begin_fence(&mut world, session);
    world.until("time is enough", |world| world.answer(request).is_some());
    let waited = world.now.since(begin);
    assert!(waited + Duration::from_millis(600) >= NODE_TTL + DRIFT_MARGIN, "{waited:?}");
}

#[test]
fn a_fence_begun_is_finished_by_another_leader() {
    let mut world = World::formed(3, 3);
    let (first, _) = world.attach();
    world.storage.get_mut(&3).unwrap().deaf = true;
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let detach = envelope(ShardId::VOLUMES, first, Request::Detach);
    world.ask_until(leader, Caller::Client, detach, Duration::from_secs(60));
    world.run(20);
    for shard in [ShardId::VOLUMES, CLUSTER] {
        let leader = world.leader(shard).unwrap();
        world.crash(leader, 1);
        world.until("another leads", |world| {
            world.leader(shard).is_some() && world.leader(ShardId::VOLUMES).is_some() && world.leader(CLUSTER).is_some()
        });
        world.run(30);
        world.start(leader);
        world.run(30);
    }
    world.storage.get_mut(&3).unwrap().deaf = false;
    let (_, caching) = world.attach();
    assert!(caching);
    let map = world.core(world.leader(CLUSTER).unwrap()).map();
    assert!(!map.sessions.contains_key(&first));
    world.check();
}
