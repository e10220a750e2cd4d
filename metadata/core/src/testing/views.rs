//! Nodes come and go; views follow.

use super::{World, envelope};
use crate::api::{Caller, ticks};
use holdfast_types::limits::{NODE_TTL, REFORM_PATIENCE};
use holdfast_types::{DiskId, Epoch, GroupId, Incarnation, MapVersion, MemberId, NodeId, SessionId, ShardId};
use holdfast_wire::map::{MapUpdate, View};
use holdfast_wire::metadata::{Request, Response};
use std::time::Duration;

const CLUSTER: ShardId = ShardId::CLUSTER;

fn member(node: u64, incarnation: u64) -> MemberId {
    MemberId { node: NodeId(node), disk: DiskId(0), incarnation: Incarnation(incarnation) }
}

fn ask(world: &mut World, node: u64, request: Request) -> Response {
    world.call_as(Caller::Storage(NodeId(node)), envelope(CLUSTER, SessionId::NONE, request)).result.unwrap()
}

fn all(world: &World, is_so: impl Fn(&View) -> bool) -> bool {
    world.map().views.iter().all(is_so)
}

/// Every primary promotes whoever is caught up.
fn promote_all(world: &mut World) {
    for (number, view) in world.map().views.iter().enumerate() {
        for syncing in &view.syncing {
            let request = Request::Promote { group: GroupId(number as u32), epoch: view.epoch, member: *syncing };
            ask(world, view.primary.node.0, request);
        }
    }
}

#[test]
fn the_pool_forms_when_enough_nodes_are_there() {
    let mut world = World::new(3, 3, |config| config.groups = 16);
    world.storage.get_mut(&3).unwrap().alive = false;
    world.until("they lead", |world| world.leader(CLUSTER).is_some());
    world.run(60);
    assert!(world.map().views.is_empty());
    world.storage.get_mut(&3).unwrap().alive = true;
    world.until("formed", |world| world.map().views.len() == 16);
    let now = world.map();
    assert_eq!((now.replicas, now.min_in_sync, now.feature_level), (3, 2, 1));
    assert!(now.views.iter().all(|view| view.epoch == Epoch(1) && view.in_sync.len() == 3));
    for node in 1..=3 {
        let primaries = now.views.iter().filter(|view| view.primary.node == NodeId(node)).count();
        assert!((5..=6).contains(&primaries), "{primaries}");
    }
    let volumes = world.call(CLUSTER, SessionId::NONE, Request::ListVolumes).unwrap();
    assert!(matches!(volumes, Response::Volumes(volumes) if volumes.len() == 1 && volumes[0].name == "main"));
    world.check();
}

#[test]
fn a_silent_node_leaves_its_views_and_returns_through_syncing() {
    let mut world = World::formed(3, 3);
    world.storage.get_mut(&2).unwrap().alive = false;
    world.run(ticks(NODE_TTL) - 15);
    assert!(all(&world, |view| view.in_sync.len() == 3), "not yet");
    world.run(40);
    assert!(all(&world, |view| view.in_sync == [member(1, 1), member(3, 1)] && view.epoch == Epoch(2)));
    assert!(!world.map().nodes[&NodeId(2)].alive);
    // It was only away for a while: its life is the same, and yet it must be caught up.
    world.storage.get_mut(&2).unwrap().alive = true;
    world.run(15);
    assert!(all(&world, |view| view.syncing == [member(2, 1)] && view.epoch == Epoch(3)));
    promote_all(&mut world);
    assert!(all(&world, |view| view.in_sync.len() == 3 && view.syncing.is_empty() && view.epoch == Epoch(4)));
    let counted = world.core(world.leader(CLUSTER).unwrap()).counters().view_changes;
    assert!(counted >= 24);
    world.check();
}

#[test]
fn primaries_go_back_to_a_node_that_has_returned_gently() {
    let mut world = World::new(3, 3, |config| config.groups = 16);
    world.until("formed", |world| world.leader(CLUSTER).is_some() && world.map().views.len() == 16);
    let leads = |world: &World, node| world.map().views.iter().filter(|view| view.primary.node == NodeId(node)).count();
    let first = leads(&world, 2);
    world.storage.get_mut(&2).unwrap().alive = false;
    world.run(ticks(NODE_TTL) + 40);
    assert_eq!(leads(&world, 2), 0);
    world.storage.get_mut(&2).unwrap().alive = true;
    world.run(15);
    // Nobody leads before he is in sync.
    world.run(ticks(Duration::from_secs(20)));
    assert_eq!(leads(&world, 2), 0);
    promote_all(&mut world);
    let mut before = world.map();
    let mut most = 0;
    for _ in 0..ticks(Duration::from_secs(10)) {
        world.tick();
        let now = world.map();
        let moved = now.views.iter().zip(&before.views).filter(|(new, old)| new.primary != old.primary).count();
        most = most.max(moved);
        assert!(now.views.iter().all(|view| view.in_sync.len() == 3 && view.in_sync.contains(&view.primary)));
        before = now;
    }
    assert_eq!((leads(&world, 2), most), (first, 2));
    let epochs: Vec<Epoch> = world.map().views.iter().map(|view| view.epoch).collect();
    world.run(ticks(Duration::from_secs(10)));
    assert!(world.map().views.iter().map(|view| view.epoch).eq(epochs), "and then it rests");
    world.check();
}

#[test]
fn a_reboot_within_one_heartbeat_is_noticed() {
    let mut world = World::formed(3, 3);
    world.storage.get_mut(&1).unwrap().incarnation = 2;
    world.run(11);
    assert!(all(&world, |view| view.epoch == Epoch(1)), "the others may have lost their lives, too");
    world.run(10);
    assert!(all(&world, |view| view.in_sync == [member(2, 1), member(3, 1)] && view.syncing == [member(1, 2)]));
    world.check();
}

#[test]
fn the_last_member_stays_listed() {
    let mut world = World::formed(3, 3);
    for node in [1, 2] {
        world.storage.get_mut(&node).unwrap().alive = false;
        world.run(ticks(NODE_TTL) + 30);
    }
    world.storage.get_mut(&3).unwrap().alive = false;
    world.run(ticks(NODE_TTL) + 30);
    assert!(all(&world, |view| view.in_sync == [member(3, 1)] && view.primary == member(3, 1)));
    // The others come back: they wait for the one that has everything.
    world.storage.get_mut(&1).unwrap().alive = true;
    world.storage.get_mut(&2).unwrap().incarnation = 2;
    world.storage.get_mut(&2).unwrap().alive = true;
    world.run(ticks(REFORM_PATIENCE) + 30);
    assert!(all(&world, |view| view.in_sync == [member(3, 1)] && view.syncing.is_empty()));
    world.storage.get_mut(&3).unwrap().incarnation = 2;
    world.storage.get_mut(&3).unwrap().alive = true;
    world.run(20);
    assert!(all(&world, |view| view.in_sync == [member(3, 2)] && view.syncing == [member(1, 1), member(2, 2)]));
    world.check();
}

#[test]
fn after_a_power_loss_a_group_waits_for_the_others_but_not_for_ever() {
    let mut world = World::formed(3, 3);
    (1..=3).for_each(|id| world.crash(id, id));
    for id in 1..=3 {
        world.storage.get_mut(&id).unwrap().incarnation = 2;
    }
    world.storage.get_mut(&3).unwrap().alive = false;
    (1..=3).for_each(|id| world.start(id));
    world.until("somebody leads", |world| world.leader(CLUSTER).is_some());
    world.run(12);
    assert!(all(&world, |view| view.epoch == Epoch(1)), "patience");
    world.run(ticks(NODE_TTL) + ticks(REFORM_PATIENCE) + 20);
    assert!(all(&world, |view| view.in_sync == [member(1, 2), member(2, 2)]));
    world.storage.get_mut(&3).unwrap().alive = true;
    world.run(12);
    assert!(all(&world, |view| view.syncing == [member(3, 2)]));
    // Again, and all are back at once: no time is lost.
    promote_all(&mut world);
    for id in 1..=3 {
        world.storage.get_mut(&id).unwrap().incarnation = 3;
    }
    world.run(11);
    assert!(all(&world, |view| view.in_sync.len() == 3 && view.in_sync[0].incarnation == Incarnation(3)));
    world.check();
}

#[test]
fn a_primary_may_have_a_backup_taken_out_while_enough_are_left() {
    let mut world = World::formed(3, 3);
    let view = world.map().views[0].clone();
    let backups: Vec<MemberId> = view.in_sync.iter().copied().filter(|member| *member != view.primary).collect();
    let evict = |member, reporter| Request::Evict {
        group: GroupId(0),
        epoch: view.epoch,
        member,
        reporter,
        silent: Vec::new(),
    };
    // A backup may not have another backup out, nor, alone, the primary.
    let Response::View { view: same, .. } = ask(&mut world, backups[0].node.0, evict(backups[1], backups[0])) else {
        panic!()
    };
    assert_eq!(same.epoch, view.epoch);
    let Response::View { view: same, .. } = ask(&mut world, backups[0].node.0, evict(view.primary, backups[0])) else {
        panic!()
    };
    assert_eq!(same.epoch, view.epoch);
    let Response::View { view: next, .. } = ask(&mut world, view.primary.node.0, evict(backups[0], view.primary))
    else {
        panic!()
    };
    assert_eq!((next.in_sync.len(), next.epoch), (2, view.epoch.next()));
    // Not below what writes need, and nothing on account of an old epoch.
    let below = Request::Evict {
        group: GroupId(0),
        epoch: next.epoch,
        member: backups[1],
        reporter: view.primary,
        silent: Vec::new(),
    };
    let Response::View { view: same, .. } = ask(&mut world, view.primary.node.0, below) else { panic!() };
    assert_eq!(same.in_sync, next.in_sync);
    let Response::View { view: same, .. } = ask(&mut world, view.primary.node.0, evict(backups[1], view.primary))
    else {
        panic!()
    };
    assert_eq!(same.in_sync, next.in_sync);
    // It returns when it was out for a while.
    world.run(ticks(Duration::from_secs(6)));
    assert_eq!(world.map().views[0].syncing, [backups[0]]);
    // Two members may have the primary out.
    let view = world.map().views[1].clone();
    for reporter in view.in_sync.iter().copied().filter(|member| *member != view.primary) {
        let evict =
            Request::Evict { group: GroupId(1), epoch: view.epoch, member: view.primary, reporter, silent: Vec::new() };
        ask(&mut world, reporter.node.0, evict);
    }
    assert_ne!(world.map().views[1].primary, view.primary);
    // A primary whose own copy is damaged leaves at its own wish, as long as it can be spared; a backup has no wishes.
    let view = world.map().views[2].clone();
    let own =
        |member| Request::Evict { group: GroupId(2), epoch: view.epoch, member, reporter: member, silent: Vec::new() };
    let backup = *view.in_sync.iter().find(|member| **member != view.primary).unwrap();
    ask(&mut world, backup.node.0, own(backup));
    assert_eq!(world.map().views[2].epoch, view.epoch);
    ask(&mut world, view.primary.node.0, own(view.primary));
    assert!(!world.map().views[2].in_sync.contains(&view.primary));
    world.check();
}

#[test]
fn a_primary_that_hears_too_few_members_leaves_and_they_go_on_without_it() {
    let mut world = World::formed(3, 3);
    let view = world.map().views[0].clone();
    let backups: Vec<MemberId> = view.in_sync.iter().copied().filter(|member| *member != view.primary).collect();
    let evict = |group, view: &View, member, silent| {
        let (group, epoch, reporter) = (GroupId(group), view.epoch, view.primary);
        Request::Evict { group, epoch, member, reporter, silent }
    };
    // The network is cut between it and both of them, and both are heard here.
    ask(&mut world, view.primary.node.0, evict(0, &view, backups[0], vec![backups[1]]));
    let next = world.map().views[0].clone();
    assert_eq!((next.in_sync, next.epoch), (backups.clone(), view.epoch.next()));
    // Who is not in sync does not count, nor does anybody's word but the primary's.
    let view = world.map().views[1].clone();
    let backups: Vec<MemberId> = view.in_sync.iter().copied().filter(|member| *member != view.primary).collect();
    ask(&mut world, view.primary.node.0, evict(1, &view, backups[0], vec![member(9, 1), backups[0]]));
    let next = world.map().views[1].clone();
    assert!(next.primary == view.primary && !next.in_sync.contains(&backups[0]), "{next:?}");
    // With the other one it is as few as writes need: nobody can be spared.
    ask(&mut world, view.primary.node.0, evict(1, &next, backups[1], Vec::new()));
    assert_eq!(world.map().views[1].epoch, next.epoch);
    // One that is not heard here either has gone, or is about to: the primary stays.
    let view = world.map().views[2].clone();
    let backups: Vec<MemberId> = view.in_sync.iter().copied().filter(|member| *member != view.primary).collect();
    world.storage.get_mut(&backups[0].node.0).unwrap().alive = false;
    world.run(ticks(NODE_TTL) / 2 + 10);
    let view = world.map().views[2].clone();
    ask(&mut world, view.primary.node.0, evict(2, &view, backups[0], vec![backups[1]]));
    let next = world.map().views[2].clone();
    assert!(next.primary == view.primary && !next.in_sync.contains(&backups[0]), "{next:?}");
    world.check();
}

#[test]
fn a_planned_stop_leaves_the_views_first() {
    let mut world = World::formed(3, 3);
    world.storage.get_mut(&2).unwrap().leaving = true;
    assert_eq!(ask(&mut world, 2, Request::LeaveViews { node: NodeId(2) }), Response::Done);
    world.run(30);
    assert!(all(&world, |view| view.in_sync == [member(1, 1), member(3, 1)] && view.syncing.is_empty()));
    world.check();
}

#[test]
fn a_map_is_read_whole_or_as_changes_and_is_told_when_it_changes() {
    let mut world = World::formed(3, 3);
    let get = |world: &mut World, have: MapVersion| match ask(world, 1, Request::GetMap { have, wait: false }) {
        Response::Map(update) => update,
        other => panic!("{other:?}"),
    };
    let MapUpdate::Full(mut mine) = get(&mut world, MapVersion(0)) else { panic!() };
    assert_eq!(get(&mut world, mine.version), MapUpdate::Unchanged);
    let leader = world.leader(CLUSTER).unwrap();
    let waiting = envelope(CLUSTER, SessionId::NONE, Request::GetMap { have: mine.version, wait: true });
    let waiting = world.ask_until(leader, Caller::Storage(NodeId(1)), waiting, Duration::from_secs(60));
    world.deliver();
    assert!(world.answer(waiting).is_none());
    world.attach();
    assert!(matches!(world.answer(waiting).unwrap().result, Ok(Response::Map(MapUpdate::Delta(_)))));
    world.storage.get_mut(&1).unwrap().incarnation = 2;
    world.run(12);
    let (s, _) = world.open(Default::default());
    world
        .call_as(Caller::Admin, envelope(CLUSTER, SessionId::NONE, Request::FenceSession { session: s }))
        .result
        .unwrap();
    let MapUpdate::Delta(delta) = get(&mut world, mine.version) else { panic!() };
    assert!(mine.apply(&delta));
    assert_eq!(*mine, world.map(), "changes lead where the whole map is");
}

#[test]
fn a_disk_in_another_life_is_taken_for_the_old_one_only_by_the_deliberate_bug() {
    let mut world = World::new(1, 3, |config| config.mutations.other_incarnation_accepted = true);
    world.until("formed", |world| world.leader(CLUSTER).is_some() && !world.map().views.is_empty());
    world.storage.get_mut(&1).unwrap().incarnation = 2;
    world.run(20);
    assert!(all(&world, |view| view.in_sync.contains(&member(1, 2)) && view.syncing.is_empty()));
}

#[test]
fn status_says_what_is_degraded() {
    let mut world = World::formed(3, 3);
    world.attach();
    world.storage.get_mut(&2).unwrap().alive = false;
    world.run(ticks(NODE_TTL) + 30);
    let Ok(Response::Status(status)) = world.call(CLUSTER, SessionId::NONE, Request::Status) else { panic!() };
    assert_eq!((status.groups_total, status.groups_degraded, status.groups_waiting), (8, 8, 0));
    assert_eq!(status.storage.iter().map(|node| node.alive).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!((status.sessions.len(), status.storage[0].in_sync_of), (1, 8));
}
