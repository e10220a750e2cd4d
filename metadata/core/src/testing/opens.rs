//! Implicit locks: who may have a file open at the same time.

use super::sessions::{renew, two_sessions};
use super::{World, create, envelope, name};
use crate::api::{Caller, ticks};
use bytes::Bytes;
use holdfast_types::limits::{DRIFT_MARGIN, SESSION_TTL};
use holdfast_types::{InodeId, SessionId, ShardId};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use holdfast_wire::namespace::{Mutation, NamespaceError, NewNode, Outcome, Query, SetAttributes, XattrMode};
use holdfast_wire::open::{Access, OPEN_WAIT_XATTR, OPEN_XATTR, OpenPolicy, OpenRule};
use std::time::Duration;

const ROOT: InodeId = InodeId::ROOT;
const VOLUMES: ShardId = ShardId::VOLUMES;
const PATIENCE: Duration = Duration::from_secs(60);

fn set(inode: InodeId, attribute: &'static [u8], value: &'static str) -> Mutation {
    let (name, value) = (Bytes::from_static(attribute), Bytes::from_static(value.as_bytes()));
    Mutation::SetXattr { inode, name, value, mode: XattrMode::Set }
}

fn open(inode: InodeId, access: Access) -> Mutation {
    Mutation::Open { inode, access }
}

fn close(inode: InodeId) -> Mutation {
    Mutation::Close { inode, keep_reading: false }
}

/// A file of a rule, and two sessions that do not cache.
fn world_with(rule: &'static str) -> (World, SessionId, SessionId, InodeId) {
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    let f = world.create(first, ROOT, "f", NewNode::File).inode;
    world.mutate(first, set(f, OPEN_XATTR, rule)).unwrap();
    (world, first, second, f)
}

fn is_open(outcome: Result<Outcome, MetadataError>) -> bool {
    match outcome {
        Ok(Outcome::Attributes { .. } | Outcome::Created { .. }) => true,
        Ok(Outcome::OpenElsewhere { .. }) => false,
        other => panic!("{other:?}"),
    }
}

/// Begins to wait at the leader.
fn wait(world: &mut World, session: SessionId, inode: InodeId, access: Access) -> u64 {
    let leader = world.leader(VOLUMES).unwrap();
    let query = Request::Query(Query::AwaitOpen { inode, access, waited_ms: 0 });
    world.ask_until(leader, Caller::Client, envelope(VOLUMES, session, query), PATIENCE)
}

#[test]
fn a_rule_says_who_may_have_a_file_open_with_whom() {
    use Access::{Read, Write};
    let cases = [
        ("shared", [true, true, true, true]),
        ("single-writer", [true, true, true, false]),
        ("exclusive", [false, false, false, false]),
    ];
    for (rule, expected) in cases {
        let (mut world, first, second, f) = world_with(rule);
        for ((held, wanted), expected) in
            [(Read, Read), (Read, Write), (Write, Read), (Write, Write)].into_iter().zip(expected)
        {
            assert!(is_open(world.mutate(first, open(f, held))), "nobody else has it open");
            assert!(is_open(world.mutate(first, open(f, Write))), "a session is not in its own way");
            world.mutate(first, close(f)).unwrap();
            assert!(is_open(world.mutate(first, open(f, held))));
            assert_eq!(is_open(world.mutate(second, open(f, wanted))), expected, "{rule}: {held:?}, then {wanted:?}");
            world.mutate(first, close(f)).unwrap();
            world.mutate(second, close(f)).unwrap();
        }
        world.check();
    }
}

#[test]
fn who_stops_writing_makes_room_for_another_writer() {
    let (mut world, first, second, f) = world_with("single-writer");
    assert!(is_open(world.mutate(first, open(f, Access::Write))));
    assert!(is_open(world.mutate(first, open(f, Access::Read))), "one more handle");
    assert!(!is_open(world.mutate(second, open(f, Access::Write))));
    world.mutate(first, Mutation::Close { inode: f, keep_reading: true }).unwrap();
    assert!(is_open(world.mutate(second, open(f, Access::Write))));
    assert!(!is_open(world.mutate(first, open(f, Access::Write))), "it reads, and may not write as well now");
    world.check();
}

#[test]
fn what_is_made_has_the_rule_of_its_directory_and_a_volume_has_one_for_the_rest() {
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    let d = world.create(first, ROOT, "d", NewNode::Directory).inode;
    world.mutate(first, set(d, OPEN_XATTR, "exclusive")).unwrap();
    world.mutate(first, set(d, OPEN_WAIT_XATTR, "7")).unwrap();
    let below = world.create(first, d, "below", NewNode::Directory).inode;
    let f = match world.mutate(first, create(below, "f", NewNode::File, true)).unwrap() {
        Outcome::Created { attributes, .. } => attributes.inode,
        other => panic!("{other:?}"),
    };
    let value = |world: &mut World, inode, name: &'static [u8]| {
        let name = Bytes::from_static(name);
        match world.query(second, Query::GetXattr { inode, name }) {
            Ok(Outcome::Bytes(value)) => String::from_utf8(value.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (value(&mut world, f, OPEN_XATTR), value(&mut world, f, OPEN_WAIT_XATTR)),
        ("exclusive".into(), "7".into())
    );
    assert!(!is_open(world.mutate(second, open(f, Access::Read))));
    // Found rather than made it is no different.
    let again = Mutation::Create {
        parent: below,
        name: name("f"),
        node: NewNode::File,
        mode: 0o600,
        umask: 0,
        uid: 0,
        gid: 0,
        exclusive: false,
        open: Some(Access::Read),
    };
    assert!(!is_open(world.mutate(second, again)));
    assert!(
        matches!(world.query(second, Query::ListXattrs { inode: f }), Ok(Outcome::Names(names)) if names.is_empty())
    );
    // The rest is as the volume says, from when it says so.
    let g = world.create(first, ROOT, "g", NewNode::File).inode;
    assert_eq!(value(&mut world, g, OPEN_XATTR), "shared");
    let rule = OpenPolicy { rule: OpenRule::SingleWriter, wait: 3 };
    let request = Request::SetOpenPolicy { name: "main".into(), open: rule };
    world.call_as(Caller::Admin, envelope(ShardId::CLUSTER, SessionId::NONE, request)).result.unwrap();
    world.until("it is known", |world| {
        world.run(1);
        value(world, g, OPEN_XATTR) == "single-writer"
    });
    assert_eq!(
        (value(&mut world, g, OPEN_WAIT_XATTR), value(&mut world, f, OPEN_XATTR)),
        ("3".into(), "exclusive".into())
    );
    assert!(is_open(world.mutate(first, open(g, Access::Write))));
    assert!(!is_open(world.mutate(second, open(g, Access::Write))));
    // Nothing of its own any more.
    let name = Bytes::from_static(OPEN_XATTR);
    world.mutate(first, Mutation::RemoveXattr { inode: f, name: name.clone() }).unwrap();
    assert_eq!(value(&mut world, f, OPEN_XATTR), "single-writer");
    let refused = world.mutate(first, Mutation::RemoveXattr { inode: f, name });
    assert_eq!(refused, Err(NamespaceError::NoAttribute.into()));
    for (attribute, value) in [(OPEN_XATTR, "exclusiv"), (OPEN_WAIT_XATTR, "4000"), (&b"holdfast.opne"[..], "shared")] {
        assert_eq!(world.mutate(first, set(f, attribute, value)), Err(NamespaceError::Invalid.into()));
    }
    world.check();
}

#[test]
fn a_file_that_is_open_elsewhere_is_not_truncated_by_its_name() {
    let (mut world, first, second, f) = world_with("single-writer");
    assert!(is_open(world.mutate(first, open(f, Access::Write))));
    let cut = || Mutation::SetAttributes { inode: f, set: SetAttributes { size: Some(0), ..Default::default() } };
    assert_eq!(world.mutate(second, cut()), Err(NamespaceError::Busy.into()));
    world.mutate(first, cut()).unwrap();
    let mode = SetAttributes { mode: Some(0o600), ..Default::default() };
    world.mutate(second, Mutation::SetAttributes { inode: f, set: mode }).unwrap();
    world.mutate(second, Mutation::Unlink { parent: ROOT, name: name("f"), open: None }).unwrap();
    world.mutate(first, close(f)).unwrap();
    world.check();
}

#[test]
fn a_holder_that_lives_is_asked_for_a_sign_and_the_asker_is_refused_at_once() {
    let (mut world, first, second, f) = world_with("exclusive");
    assert!(is_open(world.mutate(first, open(f, Access::Write))));
    world.run(10);
    let leader = world.leader(VOLUMES).unwrap();
    let renewal = |wait| envelope(VOLUMES, first, Request::Renew { seen: 1, wait });
    let held = world.ask_until(leader, Caller::Client, renewal(true), PATIENCE);
    world.run(2);
    assert!(world.answer(held).is_none(), "there is nothing to tell");
    let waiting = wait(&mut world, second, f, Access::Read);
    world.run(1);
    assert!(world.answer(held).is_some(), "it is asked for a sign");
    assert!(world.answer(waiting).is_none(), "what was said before is no sign");
    renew(&mut world, first, 1).unwrap();
    assert_eq!(world.take(waiting).map(|answer| answer.result), Some(Err(NamespaceError::Busy.into())));
}

#[test]
fn whoever_may_wait_is_told_as_soon_as_the_file_is_closed() {
    let (mut world, first, second, f) = world_with("exclusive");
    world.mutate(first, set(f, OPEN_WAIT_XATTR, "20")).unwrap();
    assert!(is_open(world.mutate(first, open(f, Access::Write))));
    let waiting = wait(&mut world, second, f, Access::Read);
    for _ in 0..10 {
        world.run(ticks(Duration::from_secs(1)));
        renew(&mut world, first, 1).unwrap();
        renew(&mut world, second, 1).unwrap();
        assert!(world.answer(waiting).is_none());
    }
    world.mutate(first, close(f)).unwrap();
    world.run(1);
    assert_eq!(world.take(waiting).map(|answer| answer.result), Some(Ok(Response::Outcome(Outcome::Done))));
    // Nobody closes it: in the end it is too long.
    assert!(is_open(world.mutate(first, open(f, Access::Write))));
    let waiting = wait(&mut world, second, f, Access::Read);
    let begun = world.now;
    while world.answer(waiting).is_none() {
        world.run(ticks(Duration::from_secs(1)));
        renew(&mut world, first, 1).unwrap();
        renew(&mut world, second, 1).unwrap();
        assert!(world.now.since(begun) < Duration::from_secs(25), "for ever");
    }
    assert!(world.now.since(begun) >= Duration::from_secs(19), "too early");
    assert_eq!(world.take(waiting).map(|answer| answer.result), Some(Err(NamespaceError::Busy.into())));
}

#[test]
fn a_silent_holder_is_fenced_and_then_the_file_is_free() {
    let (mut world, first, second, f) = world_with("exclusive");
    assert!(is_open(world.mutate(first, open(f, Access::Write))));
    let begun = world.now;
    let waiting = wait(&mut world, second, f, Access::Read);
    while world.answer(waiting).is_none() {
        world.run(ticks(Duration::from_secs(1)));
        renew(&mut world, second, 1).unwrap();
        assert!(world.now.since(begun) < SESSION_TTL + DRIFT_MARGIN + Duration::from_secs(3), "too late");
    }
    assert!(world.now.since(begun) >= SESSION_TTL, "it might have lived");
    assert_eq!(world.take(waiting).map(|answer| answer.result), Some(Ok(Response::Outcome(Outcome::Done))));
    let leader = world.leader(ShardId::CLUSTER).unwrap();
    assert!(!world.core(leader).map().sessions.contains_key(&first), "storage nodes refuse it");
    assert!(is_open(world.mutate(second, open(f, Access::Read))));
    assert!(matches!(world.mutate(first, open(f, Access::Read)), Err(MetadataError::SessionEnded { .. })));
    world.check();
}

#[test]
fn a_new_leader_is_asked_again() {
    let (mut world, first, second, f) = world_with("exclusive");
    assert!(is_open(world.mutate(first, open(f, Access::Write))));
    let waiting = wait(&mut world, second, f, Access::Read);
    world.run(2);
    let leader = world.leader(VOLUMES).unwrap();
    world.crash(leader, 7);
    world.until("another one leads", |world| world.leader(VOLUMES).is_some_and(|other| other != leader));
    world.start(leader);
    assert!(world.take(waiting).is_none_or(|answer| answer.result.is_err()));
    let waiting = wait(&mut world, second, f, Access::Read);
    // Whenever the new one begins to wait, a sign after that counts.
    world.until("an answer", |world| {
        world.run(1);
        renew(world, first, 1).unwrap();
        world.answer(waiting).is_some()
    });
    assert_eq!(world.take(waiting).map(|answer| answer.result), Some(Err(NamespaceError::Busy.into())));
    world.check();
}
