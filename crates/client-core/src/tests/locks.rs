//! Locks: waits that hold nothing up, and callers who give up.

use super::fake::Service;
use super::world::{World, config};
use crate::{Call, CallId, ClientError, Input, Reply};
use holdfast_types::InodeId;
use holdfast_wire::lock::{Lock, LockKind, LockSpace};
use holdfast_wire::namespace::FileKind;
use std::time::Duration;

fn call(inode: InodeId, wait: bool) -> Call {
    let kind = Some(LockKind::Exclusive);
    let lock = Lock { space: LockSpace::Range, owner: 5, pid: 6, start: 0, end: 9, kind };
    Call::SetLock { inode, lock, wait }
}

/// A mounted world with a file, and whether another session has it locked.
fn world(locked: bool) -> (World, InodeId) {
    let mut config = config();
    config.soft = Some(Duration::from_secs(20));
    let mut world = World::with(1, config, Service::new());
    world.mount();
    let (inode, _) = world.create("f");
    world.service.locked_elsewhere = locked;
    (world, inode)
}

fn granted(world: &World) -> Vec<bool> {
    world.service.locks.iter().map(|lock| lock.kind.is_some()).collect()
}

#[test]
fn a_lock_is_granted_refused_or_waited_for_however_long_that_takes() {
    let (mut world, inode) = world(false);
    assert_eq!(world.ask(call(inode, false)), Ok(Reply::Locked { granted: true }));
    world.service.locked_elsewhere = true;
    assert_eq!(world.ask(call(inode, false)), Ok(Reply::Locked { granted: false }));
    let waiting = world.start(call(inode, true));
    // Longer than a soft mount waits for a cluster that does not answer: this one does.
    world.run_for(Duration::from_secs(60));
    assert!(!world.completed.contains_key(&waiting));
    // Thousands of other answers need not be kept meanwhile.
    for n in 0..5000 {
        world.ask(Call::Fsync { inode, data_only: n % 2 == 0 }).expect("nothing to do");
        world.ask(call(inode, false)).expect("answered");
    }
    world.service.locked_elsewhere = false;
    assert_eq!(world.wait(waiting), Ok(Reply::Locked { granted: true }));
    assert_eq!(world.stat(inode).kind, FileKind::File);
}

#[test]
fn a_caller_who_gives_up_waits_at_the_service_no_longer() {
    let (mut world, inode) = world(true);
    let waiting = world.start(call(inode, true));
    world.run_until("it waits", |world| world.service.lock_waits > 0);
    let forgotten = cancel(&mut world, waiting);
    assert!(forgotten, "the service is not told that nobody waits any more");
    assert_eq!(world.completed.remove(&waiting), Some(Err(ClientError::Interrupted)));
    let waits = world.service.lock_waits;
    world.service.locked_elsewhere = false;
    world.run_for(Duration::from_secs(60));
    assert_eq!((world.service.lock_waits, granted(&world)), (waits, vec![]));
}

/// Gives a call up; whether a request is dropped with it.
fn cancel(world: &mut World, id: CallId) -> bool {
    let before = world.forgotten;
    world.step(Input::Cancel { id });
    world.forgotten > before
}

#[test]
fn what_is_granted_to_one_who_gave_up_is_given_back_unless_the_owner_had_more() {
    let (mut world, inode) = world(false);
    let asked = world.start(call(inode, true));
    cancel(&mut world, asked);
    assert_eq!(world.completed.remove(&asked), Some(Err(ClientError::Interrupted)));
    world.run_for(Duration::from_secs(5));
    assert_eq!(granted(&world), [true, false]);
    world.ask(call(inode, false)).expect("granted");
    let again = world.start(call(inode, true));
    cancel(&mut world, again);
    world.run_for(Duration::from_secs(5));
    assert_eq!(granted(&world), [true, false, true, true], "the one it believes to hold would go, too");
}

#[test]
fn what_an_owner_asks_for_after_it_gave_up_is_not_undone_by_what_comes_late() {
    let (mut world, inode) = world(false);
    let asked = world.start(call(inode, true));
    cancel(&mut world, asked);
    let again = world.start(call(inode, false));
    assert_eq!(world.wait(again), Ok(Reply::Locked { granted: true }));
    world.run_for(Duration::from_secs(5));
    assert_eq!(granted(&world), [true, false, true], "its caller was told that it holds the lock");
    // A process that is killed while it asks closes its file at once: nothing of it may stay.
    let asked = world.start(call(inode, true));
    cancel(&mut world, asked);
    let Call::SetLock { lock, .. } = call(inode, false) else { unreachable!() };
    let closed = world.start(Call::SetLock { inode, lock: Lock { kind: None, ..lock }, wait: false });
    cancel(&mut world, closed);
    world.run_for(Duration::from_secs(5));
    assert_eq!(granted(&world).last(), Some(&false), "a dead process holds a lock");
}

#[test]
fn what_an_owner_asks_for_does_not_overtake_what_it_gives_back() {
    let (mut world, inode) = world(false);
    world.ask(call(inode, false)).expect("granted");
    let Call::SetLock { lock, .. } = call(inode, false) else { unreachable!() };
    // A close tells of itself late, and the next open file may have the same number: its lock must stand.
    let sent = world.sent_metadata;
    let closed = world.start(Call::SetLock { inode, lock: Lock { kind: None, ..lock }, wait: false });
    let again = world.start(call(inode, false));
    let other = world.start(Call::SetLock { inode, lock: Lock { owner: 7, start: 20, end: 29, ..lock }, wait: false });
    assert_eq!(world.sent_metadata, sent + 2, "two of one owner are under way together, or another owner waits");
    for id in [other, closed, again] {
        assert_eq!(world.wait(id), Ok(Reply::Locked { granted: true }));
    }
    assert_eq!(granted(&world).last(), Some(&true));
    assert_eq!(granted(&world).iter().filter(|granted| !**granted).count(), 1);
}
