//! Locks: waits that hold nothing up, callers who give up, and what is granted without asking anybody.

use super::fake::Service;
use super::world::{World, config};
use crate::{Call, CallId, ClientError, Input, Notice, Reply};
use holdfast_types::InodeId;
use holdfast_wire::lock::{Lock, LockKind, LockSpace};
use holdfast_wire::metadata::Event;
use holdfast_wire::namespace::{FileKind, NamespaceError};
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
    let mut service = Service::new();
    service.caching = false;
    let mut world = World::with(1, config, service);
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

// ---- alone on the volume ----

/// A mounted world that caches, with a file that is open.
fn alone() -> (World, InodeId) {
    let mut world = World::with(2, config(), Service::new());
    world.mount();
    let (inode, _) = world.create("f");
    (world, inode)
}

fn ask(inode: InodeId, owner: u64, (start, end): (u64, u64), kind: Option<LockKind>, wait: bool) -> Call {
    Call::SetLock { inode, lock: Lock { space: LockSpace::Range, owner, pid: 6, start, end, kind }, wait }
}

const EXCLUSIVE: Option<LockKind> = Some(LockKind::Exclusive);
const SHARED: Option<LockKind> = Some(LockKind::Shared);
const ALL: (u64, u64) = (0, i64::MAX as u64);

#[test]
fn alone_locks_are_granted_and_waited_for_without_a_message() {
    let (mut world, inode) = alone();
    let sent = world.sent_metadata;
    let yes = Ok(Reply::Locked { granted: true });
    assert_eq!(world.at_once(ask(inode, 1, (0, 9), EXCLUSIVE, false)), yes);
    assert_eq!(world.at_once(ask(inode, 2, (5, 5), SHARED, false)), Ok(Reply::Locked { granted: false }));
    assert_eq!(world.at_once(ask(inode, 2, (10, 19), EXCLUSIVE, false)), yes);
    let Call::SetLock { lock, .. } = ask(inode, 2, (0, 99), SHARED, false) else { unreachable!() };
    let Ok(Reply::Conflict(Some(held))) = world.at_once(Call::TestLock { inode, lock }) else { panic!("in the way") };
    assert_eq!((held.owner, held.pid, held.start, held.end), (1, 6, 0, 9));
    // Whoever waits has it when it is given back, in the order of asking; whoever gave up does not.
    let gone = world.start(ask(inode, 4, (0, 0), EXCLUSIVE, true));
    let first = world.start(ask(inode, 3, (0, 5), EXCLUSIVE, true));
    let second = world.start(ask(inode, 5, (5, 9), EXCLUSIVE, true));
    assert!(!cancel(&mut world, gone));
    assert_eq!(world.at_once(ask(inode, 1, (0, 5), None, false)), yes);
    assert_eq!(world.completed.remove(&first), Some(yes.clone()));
    assert!(!world.completed.contains_key(&second));
    // A circle is refused, also over two files.
    let (other, _) = world.create("g");
    let sent = world.sent_metadata - sent;
    assert_eq!(sent, 1, "the file was made, and nothing else said");
    assert_eq!(world.at_once(ask(other, 5, ALL, EXCLUSIVE, false)), yes);
    assert_eq!(
        world.at_once(ask(other, 1, (7, 7), EXCLUSIVE, true)),
        Err(ClientError::Namespace(NamespaceError::Deadlock))
    );
    // One who makes less of what it has lets others in, too.
    let reader = world.start(ask(inode, 6, (12, 12), SHARED, true));
    assert_eq!(world.at_once(ask(inode, 2, (10, 19), SHARED, false)), yes);
    assert_eq!(world.completed.remove(&reader), Some(yes.clone()));
    assert_eq!(world.at_once(ask(inode, 1, ALL, None, false)), yes);
    assert_eq!(world.at_once(ask(inode, 3, ALL, None, false)), yes);
    assert_eq!(world.completed.remove(&second), Some(yes));
    world.run_for(Duration::from_millis(50));
    assert!(world.service.locks.is_empty());
    // What is not open here is asked about first, and no directory is locked.
    let root = ask(InodeId::ROOT, 1, ALL, EXCLUSIVE, false);
    assert_eq!(world.ask(root), Err(ClientError::Namespace(NamespaceError::Invalid)));
    let nothing = ask(InodeId(999), 1, ALL, EXCLUSIVE, false);
    assert!(world.ask(nothing).is_err());
}

#[test]
fn before_another_host_comes_the_service_has_every_lock_on_record() {
    for seed in 0..20 {
        let mut world = World::with(seed, config(), Service::new());
        world.mount();
        world.loss = if seed % 2 == 0 { 0 } else { 20 };
        let (inode, _) = world.create("f");
        let yes = Ok(Reply::Locked { granted: true });
        assert_eq!(world.ask(ask(inode, 1, (0, 9), EXCLUSIVE, false)), yes);
        assert_eq!(world.ask(ask(inode, 1, (3, 4), None, false)), yes);
        assert_eq!(world.ask(ask(inode, 2, (20, 29), SHARED, false)), yes);
        assert_eq!(world.ask(ask(inode, 7, ALL, None, false)), yes);
        let waiting = world.start(ask(inode, 3, (25, 25), EXCLUSIVE, true));
        world.service.events.push((1, Event::StopCaching));
        world.run_until("the notice", |w| w.notices.contains(&Notice::StopCaching { event: 1 }));
        // Nobody decides now.
        let late = world.start(ask(inode, 4, (30, 30), EXCLUSIVE, false));
        world.step(Input::Invalidated { event: 1 });
        world.run_until("the answer", |w| {
            let told = w.service.stopped.is_some();
            assert!(!told || w.service.locks.len() >= 3, "it said that it stopped before the locks were on record");
            told
        });
        assert_eq!(world.wait(late), yes);
        world.run_until("it waits", |w| w.service.lock_waits > 0 || w.completed.contains_key(&waiting));
        let mut known: Vec<_> = world.service.locks.iter().map(|l| (l.owner, l.start, l.end, l.kind)).collect();
        known.retain(|(owner, ..)| *owner != 3);
        known.sort_unstable_by_key(|(owner, start, ..)| (*owner, *start));
        assert_eq!(
            known,
            [(1, 0, 2, EXCLUSIVE), (1, 5, 9, EXCLUSIVE), (2, 20, 29, SHARED), (4, 30, 30, EXCLUSIVE)],
            "seed {seed}"
        );
        // Alone again: what was given back here goes first when somebody comes once more.
        world.loss = 0;
        world.service.caching = true;
        world.service.events.push((2, Event::StartCaching));
        world.run_until("caching", |w| w.notices.contains(&Notice::StartCaching));
        world.wait(waiting).expect("nobody of another host is in the way");
        let sent = world.service.locks.len();
        assert_eq!(world.at_once(ask(inode, 1, ALL, None, false)), yes);
        assert_eq!(world.at_once(ask(inode, 5, (0, 9), EXCLUSIVE, false)), yes);
        world.service.stopped = None;
        world.loss = if seed % 2 == 0 { 0 } else { 40 };
        world.service.events.push((3, Event::StopCaching));
        world.run_until("the notice", |w| w.notices.contains(&Notice::StopCaching { event: 3 }));
        world.step(Input::Invalidated { event: 3 });
        world.run_until("the answer", |w| w.service.stopped.is_some());
        let said: Vec<_> = world.service.locks[sent..].iter().map(|l| (l.owner, l.kind)).collect();
        let back = said.iter().position(|said| *said == (1, None)).expect("given back");
        let set = said.iter().position(|said| *said == (5, EXCLUSIVE)).expect("held");
        assert!(back < set, "{said:?}");
    }
}

#[test]
fn nothing_is_granted_without_a_lease_and_everything_may_be_given_back() {
    let (mut world, inode) = alone();
    let yes = Ok(Reply::Locked { granted: true });
    assert_eq!(world.at_once(ask(inode, 1, ALL, EXCLUSIVE, false)), yes);
    let waiting = world.start(ask(inode, 2, ALL, EXCLUSIVE, true));
    world.loss = 100;
    world.run_until("the lease is over", |w| w.core.cache_ttl(w.now).is_zero());
    let back = world.start(ask(inode, 1, ALL, None, false));
    let other = world.start(ask(inode, 3, (0, 0), SHARED, false));
    world.run_for(Duration::from_secs(5));
    assert!(![back, waiting, other].iter().any(|id| world.completed.contains_key(id)), "another host may be there");
    world.loss = 0;
    assert_eq!(world.wait(waiting), yes);
    assert_eq!(world.wait(back), yes);
    assert_eq!(world.wait(other), Ok(Reply::Locked { granted: false }), "it asked last");
}

#[test]
fn a_circle_that_closes_while_one_waits_is_found_when_something_is_given_back() {
    let (mut world, inode) = alone();
    let (other, _) = world.create("g");
    let yes = Ok(Reply::Locked { granted: true });
    assert_eq!(world.at_once(ask(inode, 1, (0, 0), EXCLUSIVE, false)), yes);
    assert_eq!(world.at_once(ask(other, 2, ALL, EXCLUSIVE, false)), yes);
    // The second owner waits for the first; the third, by one of its threads, for the second; then it takes some of what the second wants.
    let second = world.start(ask(inode, 2, (0, 9), EXCLUSIVE, true));
    let third = world.start(ask(other, 3, ALL, EXCLUSIVE, true));
    assert_eq!(world.at_once(ask(inode, 3, (5, 5), EXCLUSIVE, false)), yes);
    assert!(!world.completed.contains_key(&second));
    assert_eq!(world.at_once(ask(inode, 1, ALL, None, false)), yes);
    assert_eq!(world.completed.remove(&second), Some(Err(ClientError::Namespace(NamespaceError::Deadlock))));
    assert_eq!(world.at_once(ask(other, 2, ALL, None, false)), yes);
    assert_eq!(world.completed.remove(&third), Some(yes));
}
