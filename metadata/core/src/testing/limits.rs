//! What a volume may hold at the most.

use super::{RESERVE, World, create, name};
use crate::api::{Caller, ticks};
use holdfast_types::size::{KIB, MIB};
use holdfast_types::{Generation, InodeId, SessionId, ShardId, Timestamp};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use holdfast_wire::namespace::{Limits, Mutation, NamespaceError, NewNode, Outcome, Query, SetAttributes, VolumeUsage};
use std::time::Duration;

const ROOT: InodeId = InodeId::ROOT;

fn limit(world: &mut World, bytes: Option<u64>, inodes: Option<u64>) {
    let limits = Limits { bytes, inodes };
    let request = Request::LimitVolume { name: "main".into(), limits };
    let refused = world.call_as(Caller::Client, super::envelope(ShardId::CLUSTER, SessionId::NONE, request.clone()));
    assert!(refused.result.is_err(), "anybody may change limits");
    let answer = world.call_as(Caller::Admin, super::envelope(ShardId::CLUSTER, SessionId::NONE, request));
    let Ok(Response::Volume(record)) = answer.result else { panic!("{:?}", answer.result) };
    assert_eq!(record.limits(), limits);
    // Within a second.
    world.run(crate::api::ticks(std::time::Duration::from_secs(1)));
}

fn usage(world: &mut World, session: SessionId) -> VolumeUsage {
    match world.query(session, Query::StatVolume) {
        Ok(Outcome::Usage(usage)) => usage,
        other => panic!("{other:?}"),
    }
}

fn reserve(
    world: &mut World,
    session: SessionId,
    inode: InodeId,
    bound: u64,
    least: u64,
) -> Result<u64, NamespaceError> {
    let reserve = Mutation::Reserve { inode, generation: Generation(1), bound, least };
    match world.mutate(session, reserve) {
        Ok(Outcome::Attributes { attributes, .. }) => Ok(attributes.size_bound),
        Err(MetadataError::Namespace(error)) => Err(error),
        other => panic!("{other:?}"),
    }
}

fn publish(world: &mut World, session: SessionId, inode: InodeId, size: u64, release: bool) {
    let mtime = Timestamp { seconds: 9, nanos: 9 };
    let publish = Mutation::Publish {
        inode,
        generation: Generation(1),
        size,
        mtime,
        release,
        clear_set_ids: false,
        sparse: false,
    };
    world.mutate(session, publish).expect("what was granted may be used");
}

#[test]
fn what_may_be_written_counts_when_it_is_granted_and_what_is_given_back_does_not() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    limit(&mut world, Some(16 * MIB), None);
    let a = world.create(s, ROOT, "a", NewNode::File).inode;
    let b = world.create(s, ROOT, "b", NewNode::File).inode;
    assert_eq!(usage(&mut world, s).bytes_max, 16 * MIB);
    // What is needed is granted, and a part of what is left beyond.
    assert_eq!(reserve(&mut world, s, a, 64 * MIB, 8 * MIB), Ok(9 * MIB));
    assert_eq!(reserve(&mut world, s, b, 8 * MIB, 8 * MIB), Err(NamespaceError::Quota));
    assert_eq!(reserve(&mut world, s, b, 7 * MIB, 7 * MIB), Ok(7 * MIB));
    assert_eq!(reserve(&mut world, s, a, 9 * MIB + 1, 9 * MIB + 1), Err(NamespaceError::Quota));
    assert_eq!(usage(&mut world, s).bytes_used, 0, "nothing is written yet");
    publish(&mut world, s, a, 100, true);
    publish(&mut world, s, b, 7 * MIB, true);
    assert_eq!(usage(&mut world, s).bytes_used, 7 * MIB + 4 * KIB);
    let room = 9 * MIB - 4 * KIB;
    assert_eq!(reserve(&mut world, s, a, 16 * MIB, room + 4 * KIB), Ok(room + 4 * KIB), "to the last block");
    // A truncation that lengthens counts as well, and one that shortens makes room.
    let size = |size| SetAttributes { size: Some(size), ..SetAttributes::default() };
    let longer = world.mutate(s, Mutation::SetAttributes { inode: b, set: size(7 * MIB + 1) });
    assert!(matches!(longer, Err(MetadataError::Namespace(NamespaceError::Quota))), "{longer:?}");
    world.mutate(s, Mutation::SetAttributes { inode: b, set: size(MIB) }).expect("shorter");
    assert_eq!(reserve(&mut world, s, a, 15 * MIB, 15 * MIB), Ok(15 * MIB));
    world.mutate(s, Mutation::Unlink { parent: ROOT, name: name("a"), open: None }).expect("removed");
    assert_eq!(usage(&mut world, s).bytes_used, MIB);
    world.check();
}

#[test]
fn what_a_session_was_granted_is_free_when_it_is_over() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    limit(&mut world, Some(8 * MIB), None);
    let a = world.create(s, ROOT, "a", NewNode::File).inode;
    assert_eq!(reserve(&mut world, s, a, 8 * MIB, 8 * MIB), Ok(8 * MIB));
    world.call(ShardId::VOLUMES, s, Request::Detach).unwrap();
    let (second, _) = world.attach();
    let b = world.create(second, ROOT, "b", NewNode::File).inode;
    assert_eq!(reserve(&mut world, second, b, 8 * MIB, 8 * MIB), Ok(8 * MIB));
    world.check();
}

#[test]
fn a_lower_limit_takes_nothing_away_and_a_higher_one_holds_for_a_new_leader() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let a = world.create(s, ROOT, "a", NewNode::File).inode;
    assert_eq!(reserve(&mut world, s, a, 8 * MIB, 8 * MIB), Ok(8 * MIB));
    limit(&mut world, Some(MIB), Some(3));
    publish(&mut world, s, a, 6 * MIB, false);
    assert_eq!(reserve(&mut world, s, a, 9 * MIB, 9 * MIB), Err(NamespaceError::Quota));
    // A file may be made without room for a byte; but one inode more than allowed may not.
    let b = world.create(s, ROOT, "b", NewNode::File);
    assert_eq!(reserve(&mut world, s, b.inode, 1, 1), Err(NamespaceError::Quota));
    let third = world.mutate(s, create(ROOT, "c", NewNode::Directory, false));
    assert!(matches!(third, Err(MetadataError::Namespace(NamespaceError::Quota))), "{third:?}");
    world.mutate(s, Mutation::Unlink { parent: ROOT, name: name("b"), open: None }).expect("removed");
    world.create(s, ROOT, "c", NewNode::Directory);
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    world.crash(leader, 1);
    world.until("another one leads", |world| world.leader(ShardId::VOLUMES).is_some_and(|other| other != leader));
    limit(&mut world, None, None);
    assert_eq!(reserve(&mut world, s, a, 9 * MIB, 9 * MIB), Ok(9 * MIB));
    world.check();
}

/// Together they count more than 64 bits hold.
#[test]
fn three_of_the_largest_files_come_and_go() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let size = |size: u64| SetAttributes { size: Some(size), ..SetAttributes::default() };
    let longest = i64::MAX as u64;
    for file in ["a", "b", "c"] {
        let inode = world.create(s, ROOT, file, NewNode::File).inode;
        world.mutate(s, Mutation::SetAttributes { inode, set: size(longest) }).expect("a hole");
    }
    assert_eq!(usage(&mut world, s).bytes_used, u64::MAX, "no more can be said");
    world.check();
    world.mutate(s, Mutation::Unlink { parent: ROOT, name: name("a"), open: None }).expect("removed");
    limit(&mut world, Some(MIB), None);
    let d = world.create(s, ROOT, "d", NewNode::File).inode;
    assert_eq!(reserve(&mut world, s, d, 1, 1), Err(NamespaceError::Quota));
    world.mutate(s, Mutation::Unlink { parent: ROOT, name: name("b"), open: None }).expect("removed");
    world.mutate(s, Mutation::Unlink { parent: ROOT, name: name("c"), open: None }).expect("removed");
    assert_eq!(usage(&mut world, s).bytes_used, 0);
    assert_eq!(reserve(&mut world, s, d, 1, 1), Ok(1));
    world.check();
}

/// Holes take no room, and other volumes do: only the disks know what is free.
#[test]
fn without_a_limit_the_room_is_the_pools() {
    let mut world = World::formed(3, 4);
    world.run(ticks(Duration::from_secs(15)));
    let (s, _) = world.attach();
    let a = world.create(s, ROOT, "a", NewNode::File).inode;
    let hole = SetAttributes { size: Some(1 << 50), ..SetAttributes::default() };
    world.mutate(s, Mutation::SetAttributes { inode: a, set: hole }).expect("a hole");
    let replicas = u64::from(world.map().replicas);
    let (whole, free) = (4 * (1 << 40) / replicas, 4 * (1 << 39) / replicas);
    let shown = usage(&mut world, s);
    assert_eq!((shown.bytes_max, shown.bytes_free, shown.bytes_used), (whole, free, 1 << 50));
    // Homes of 8 groups do not come out even on 4 nodes.
    assert!(shown.bytes_available <= free && shown.bytes_available >= free * 3 / 4, "{shown:?}");
    // One disk is nearly full: what is free on the others is of no use where it has a copy.
    world.storage.get_mut(&2).unwrap().free = RESERVE + MIB;
    world.run(ticks(Duration::from_secs(2)));
    let shown = usage(&mut world, s);
    assert_eq!(shown.bytes_free, (3 * (1 << 39) + RESERVE + MIB) / replicas);
    assert!((MIB..=2 * MIB).contains(&shown.bytes_available), "{shown:?}");
    // A limit is counted down, and promises nothing that the pool has not.
    limit(&mut world, Some(1 << 51), None);
    let limited = usage(&mut world, s);
    assert_eq!((limited.bytes_max, limited.bytes_free), (1 << 51, 1 << 50));
    assert_eq!(limited.bytes_available, shown.bytes_available);
    limit(&mut world, None, None);
    // Whoever leads the volumes knows, also if another server hears the storage nodes.
    let apart = |world: &World| {
        let leaders = (world.leader(ShardId::CLUSTER), world.leader(ShardId::VOLUMES));
        leaders.0.is_some() && leaders.1.is_some() && leaders.0 != leaders.1
    };
    for seed in 1..20 {
        if apart(&world) {
            break;
        }
        let leader = world.leader(ShardId::VOLUMES).unwrap();
        world.crash(leader, seed);
        world.run(ticks(Duration::from_secs(5)));
        world.start(leader);
        world.run(ticks(Duration::from_secs(5)));
    }
    assert!(apart(&world), "two servers lead");
    assert_eq!(usage(&mut world, s), shown);
    // A node that is gone has nothing free, and refuses nobody.
    world.storage.get_mut(&2).unwrap().alive = false;
    world.run(ticks(Duration::from_secs(5)));
    let shown = usage(&mut world, s);
    assert_eq!((shown.bytes_max, shown.bytes_free), (whole, 3 * (1 << 39) / replicas));
    assert!(shown.bytes_available > free / 2, "{shown:?}");
}
