//! Advisory locks: what they exclude, who waits for them, and when they end.

use super::sessions::two_sessions;
use super::{World, envelope};
use crate::api::Caller;
use holdfast_types::limits::LOCKS_PER_FILE_MAX;
use holdfast_types::{InodeId, SessionId, ShardId};
use holdfast_wire::lock::LockKind::{Exclusive, Shared};
use holdfast_wire::lock::{HeldLock, Lock, LockKind, LockSpace};
use holdfast_wire::metadata::{Answer, MetadataError, Request, Response};
use holdfast_wire::namespace::{Mutation, NamespaceError, NewNode, Outcome, Query};
use std::time::Duration;

const ROOT: InodeId = InodeId::ROOT;
const VOLUMES: ShardId = ShardId::VOLUMES;
const END: u64 = i64::MAX as u64;

fn range(owner: u64, start: u64, end: u64, kind: impl Into<Option<LockKind>>) -> Lock {
    Lock { space: LockSpace::Range, owner, pid: owner as u32, start, end, kind: kind.into() }
}

fn whole(owner: u64, kind: impl Into<Option<LockKind>>) -> Lock {
    Lock { space: LockSpace::Whole, ..range(owner, 0, END, kind) }
}

fn set(world: &mut World, session: SessionId, inode: InodeId, lock: Lock) -> bool {
    match world.mutate(session, Mutation::SetLock { inode, lock }) {
        Ok(Outcome::Locked { in_the_way, .. }) => in_the_way.is_none(),
        other => panic!("{other:?}"),
    }
}

fn in_the_way(world: &mut World, session: SessionId, inode: InodeId, lock: Lock) -> Option<HeldLock> {
    match world.call(VOLUMES, session, Request::Query(Query::TestLock { inode, lock })) {
        Ok(Response::Outcome(Outcome::Conflict(conflict))) => conflict,
        other => panic!("{other:?}"),
    }
}

/// Begins to wait; returns the request's number.
fn wait(world: &mut World, session: SessionId, inode: InodeId, lock: Lock) -> u64 {
    let leader = world.leader(VOLUMES).unwrap();
    let request = envelope(VOLUMES, session, Request::Query(Query::AwaitLock { inode, lock }));
    let number = world.ask_until(leader, Caller::Client, request, Duration::from_secs(60));
    world.run(4);
    number
}

/// A world with two sessions and a file.
fn two() -> (World, SessionId, SessionId, InodeId) {
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    let f = world.create(first, ROOT, "f", NewNode::File).inode;
    (world, first, second, f)
}

#[test]
fn ranges_exclude_other_owners_on_every_host_and_never_ones_own() {
    let (mut world, a, b, f) = two();
    assert!(set(&mut world, a, f, range(1, 10, 19, Exclusive)));
    assert!(set(&mut world, a, f, range(1, 15, 30, Shared)), "one's own is changed");
    assert!(!set(&mut world, a, f, range(2, 14, 14, Shared)), "another process of the same host");
    assert!(!set(&mut world, b, f, range(1, 0, END, Shared)), "the same number on another host is another owner");
    assert!(set(&mut world, b, f, range(1, 15, END, Shared)));
    assert!(!set(&mut world, a, f, range(1, 20, 20, Exclusive)), "shared with another");
    let held = in_the_way(&mut world, b, f, range(1, 0, END, Exclusive)).unwrap();
    assert_eq!((held.session, held.owner, held.pid, held.start, held.end, held.kind), (a, 1, 1, 10, 14, Exclusive));
    assert_eq!(in_the_way(&mut world, b, f, range(1, 20, 25, Shared)), None);
    world.check();
    assert!(set(&mut world, a, f, range(1, 0, END, None)));
    assert_eq!(in_the_way(&mut world, b, f, range(1, 0, END, Exclusive)), None);
    let directory = world.create(a, ROOT, "d", NewNode::Directory).inode;
    let refused = world.mutate(a, Mutation::SetLock { inode: directory, lock: whole(1, Shared) });
    assert_eq!(refused, Err(MetadataError::Namespace(NamespaceError::Invalid)));
    world.check();
}

#[test]
fn whole_file_locks_are_another_world_and_a_change_that_fails_loses_the_lock() {
    let (mut world, a, b, f) = two();
    assert!(set(&mut world, a, f, range(1, 0, END, Exclusive)));
    assert!(set(&mut world, b, f, whole(1, Shared)), "flock does not see fcntl");
    assert!(set(&mut world, a, f, whole(2, Shared)));
    assert!(!set(&mut world, a, f, whole(2, Exclusive)));
    assert!(set(&mut world, b, f, whole(1, Exclusive)), "the change that failed has given up the shared lock");
    world.check();
}

#[test]
fn whoever_waits_is_told_when_nothing_is_in_the_way() {
    let (mut world, a, b, f) = two();
    assert!(set(&mut world, a, f, range(1, 0, 9, Exclusive)));
    let first = wait(&mut world, b, f, range(1, 5, 5, Shared));
    let second = wait(&mut world, b, f, range(2, 9, 20, Exclusive));
    assert!(world.answer(first).is_none() && world.answer(second).is_none());
    assert!(set(&mut world, a, f, range(1, 4, 6, None)));
    world.run(4);
    assert!(matches!(world.take(first).unwrap().result, Ok(Response::Outcome(Outcome::Done))));
    assert!(world.answer(second).is_none(), "its range is still locked");
    // The holder is fenced: what it held is free once it is over.
    world.call(VOLUMES, a, Request::Detach).unwrap();
    world.until("the lock is free", |world| world.answer(second).is_some());
    assert!(matches!(world.take(second).unwrap().result, Ok(Response::Outcome(Outcome::Done))));
    assert!(set(&mut world, b, f, range(2, 0, END, Exclusive)));
    world.check();
}

#[test]
fn of_those_who_exclude_each_other_the_first_to_ask_is_told_and_the_next_if_it_does_not_come() {
    let (mut world, a, b, f) = two();
    assert!(set(&mut world, a, f, range(1, 0, 9, Exclusive)));
    let waits: Vec<u64> = (2..6).map(|owner| wait(&mut world, b, f, range(owner, 3, 3, Exclusive))).collect();
    let reader = wait(&mut world, b, f, range(9, 0, 1, Shared));
    let done = |answer: &Answer| matches!(answer.result, Ok(Response::Outcome(Outcome::Done)));
    let told = |world: &World| waits.iter().filter(|number| world.answer(**number).is_some_and(done)).count();
    assert!(set(&mut world, a, f, range(1, 0, 9, None)));
    world.run(1);
    assert_eq!(told(&world), 1, "all of them would ask, and all but one in vain");
    assert!(world.answer(waits[0]).is_some() && world.answer(reader).is_some());
    // It comes and goes.
    assert!(set(&mut world, b, f, range(2, 3, 3, Exclusive)));
    assert!(set(&mut world, b, f, range(2, 3, 3, None)));
    world.until("the next is told", |world| told(world) >= 2);
    // The others get their turn although nobody comes any more.
    world.until("all are told", |world| told(world) == waits.len());
    world.check();
}

#[test]
fn a_silent_holder_is_fenced_when_somebody_wants_its_lock() {
    for waits in [true, false] {
        let (mut world, a, b, f) = two();
        assert!(set(&mut world, a, f, whole(1, Exclusive)));
        let asked = waits.then(|| wait(&mut world, b, f, whole(1, Exclusive)));
        let mut granted = false;
        for _ in 0..20 {
            world.run(crate::api::ticks(Duration::from_secs(1)));
            world.call(VOLUMES, b, Request::Renew { seen: 9, wait: false }).unwrap();
            granted = match asked {
                Some(number) => world.answer(number).is_some(),
                None => set(&mut world, b, f, whole(1, Exclusive)),
            };
            if granted {
                break;
            }
        }
        assert!(granted, "waits: {waits}");
        world.check();
    }
}

/// Processes of one host that want each other's locks are no reason to end their host's session when the network is cut.
#[test]
fn a_silent_host_whose_own_processes_contend_is_parked_and_comes_back() {
    let (mut world, a, b, f) = two();
    assert!(set(&mut world, a, f, whole(1, Exclusive)));
    assert!(!set(&mut world, a, f, whole(2, Exclusive)));
    wait(&mut world, a, f, whole(3, Exclusive));
    for _ in 0..30 {
        world.run(crate::api::ticks(Duration::from_secs(1)));
        world.call(VOLUMES, b, Request::Renew { seen: 9, wait: false }).unwrap();
    }
    assert!(
        world.call(VOLUMES, a, Request::Renew { seen: 9, wait: false }).is_ok(),
        "it was ended, and nobody else wanted anything"
    );
    // Heard again, it is not taken for silent by who comes next.
    assert!(!set(&mut world, b, f, whole(1, Exclusive)));
    world.run(crate::api::ticks(Duration::from_secs(2)));
    assert!(world.call(VOLUMES, a, Request::Renew { seen: 9, wait: false }).is_ok());
    world.check();
}

#[test]
fn a_circle_of_waiting_owners_is_refused_across_hosts() {
    let (mut world, a, b, f) = two();
    let g = world.create(a, ROOT, "g", NewNode::File).inode;
    assert!(set(&mut world, a, f, range(1, 0, 0, Exclusive)));
    assert!(set(&mut world, b, f, range(1, 1, 1, Exclusive)));
    assert!(set(&mut world, b, g, range(2, 0, 0, Exclusive)));
    let waits = wait(&mut world, a, f, range(1, 1, 1, Shared));
    let other = wait(&mut world, b, f, range(1, 7, 7, Shared));
    assert!(world.take(other).is_some(), "nothing in the way");
    let third = wait(&mut world, b, g, range(1, 0, 0, Shared));
    assert!(world.answer(third).is_none() && world.answer(waits).is_none(), "a chain is no circle");
    // a:1 waits for b:1, which waits for b:2, which asks to wait for a:1.
    let closes = wait(&mut world, b, f, range(2, 0, 0, Exclusive));
    let refused = world.take(closes).expect("at once").result;
    assert_eq!(refused, Err(MetadataError::Namespace(NamespaceError::Deadlock)));
    assert!(world.answer(third).is_none() && world.answer(waits).is_none(), "the others go on waiting");
    // Whole-file locks are left to those who use them.
    assert!(set(&mut world, a, f, whole(1, Exclusive)) && set(&mut world, b, g, whole(1, Exclusive)));
    let flocks = [wait(&mut world, a, g, whole(1, Exclusive)), wait(&mut world, b, f, whole(1, Exclusive))];
    assert!(flocks.iter().all(|waits| world.answer(*waits).is_none()));
}

#[test]
fn locks_survive_their_leader_and_are_bounded() {
    let (mut world, a, b, f) = two();
    assert!(set(&mut world, a, f, range(1, 0, 9, Exclusive)));
    let waits = wait(&mut world, b, f, range(1, 5, 5, Shared));
    let leader = world.leader(VOLUMES).unwrap();
    world.crash(leader, 1);
    world.until("another leader", |world| world.leader(VOLUMES).is_some_and(|other| other != leader));
    assert!(!set(&mut world, b, f, range(1, 5, 5, Shared)), "a new leader knows the lock");
    assert!(world.answer(waits).is_none_or(|answer| answer.result.is_err()));
    let again = wait(&mut world, b, f, range(1, 5, 5, Shared));
    assert!(set(&mut world, a, f, range(1, 0, 9, None)));
    world.until("free", |world| world.answer(again).is_some());
    world.check();
}

#[test]
fn one_lock_too_many_is_refused_and_changes_nothing() {
    use crate::ops::Op;
    use crate::txn::{Hot, Txn};
    use holdfast_store::{Batch, MemoryTable};
    let (table, hot, earlier) = (MemoryTable::default(), Hot::default(), Batch::new());
    let mut txn = Txn::new(&table, &hot, &earlier);
    let (volume, f, session) = (holdfast_types::VolumeId(1), InodeId(9), SessionId(3));
    let mut op = Op { txn: &mut txn, volume, session, caching: false, stamp: Default::default() };
    op.put_inode(f, &crate::tables::inode::example());
    // All but one of the allowed are somewhere else in the file.
    let counted = crate::tables::lock::by_session(session, volume, f);
    op.txn.put(counted, &crate::tables::lock::LocksRow { count: LOCKS_PER_FILE_MAX - 1 });
    let mut set = |lock| op.mutate(&Mutation::SetLock { inode: f, lock });
    assert!(matches!(set(range(1, 0, 2, Exclusive)), Ok(Outcome::Locked { in_the_way: None, .. })));
    let refused = set(range(1, END, END, Shared));
    assert!(matches!(
        refused,
        Err(crate::error::Fail::Refused(MetadataError::Namespace(NamespaceError::TooManyLocks)))
    ));
    let split = set(range(1, 1, 1, Shared));
    assert!(matches!(split, Err(crate::error::Fail::Refused(_))), "nor is one split into three");
    let changed = set(range(1, 0, END, Exclusive));
    assert!(matches!(changed, Ok(Outcome::Locked { in_the_way: None, replaced: true })), "one in place of another is");
}
