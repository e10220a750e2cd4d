//! Files that another session has open, and may not share.

use super::sharing::uncached;
use super::world::World;
use crate::{Call, CallId, ClientError, HandleId, Input, Notice, OpenMode, Reply};
use holdfast_types::InodeId;
use holdfast_wire::metadata::Event;
use holdfast_wire::namespace::NamespaceError;
use holdfast_wire::open::Access;
use std::time::Duration;

/// A file on a mount that does not cache.
fn world() -> (World, InodeId) {
    let mut world = uncached(1);
    let (inode, handle) = world.create("f");
    world.ask(Call::Release { handle }).expect("closed");
    world.run_for(Duration::from_secs(1));
    world.service.opens.clear();
    (world, inode)
}

fn open(inode: InodeId, write: bool) -> Call {
    Call::Open { inode, mode: OpenMode { write, ..OpenMode::default() } }
}

fn opened(world: &mut World, inode: InodeId, write: bool) -> HandleId {
    match world.ask(open(inode, write)) {
        Ok(Reply::Opened { handle, .. }) => handle,
        other => panic!("{other:?}"),
    }
}

fn begin(world: &mut World, inode: InodeId) -> CallId {
    world.service.open_elsewhere = Some(inode);
    let waiting = world.start(open(inode, true));
    world.run_until("it waits", |world| !world.service.open_waits.is_empty());
    waiting
}

#[test]
fn a_file_that_is_open_elsewhere_is_busy_if_its_holder_lives() {
    let (mut world, inode) = world();
    world.service.open_elsewhere = Some(inode);
    world.service.holder_lives = true;
    assert_eq!(world.ask(open(inode, false)), Err(ClientError::Namespace(NamespaceError::Busy)));
    assert!(world.service.opens.is_empty());
}

#[test]
fn whoever_waits_opens_the_file_when_it_is_free_and_says_how_long_it_has_waited() {
    let (mut world, inode) = world();
    let waiting = begin(&mut world, inode);
    world.run_for(Duration::from_secs(25));
    assert!(!world.completed.contains_key(&waiting), "as long as the service says");
    world.service.open_elsewhere = None;
    assert!(matches!(world.wait(waiting), Ok(Reply::Opened { .. })));
    assert_eq!(world.service.opens, [(inode, Access::Write)]);
    // What was told to ask again begins anew, and goes on counting.
    let waits = &world.service.open_waits;
    assert!(waits[0] == 0 && waits.last().is_some_and(|last| *last > 15_000), "{waits:?}");
}

#[test]
fn a_caller_who_gives_up_waits_for_the_file_no_longer() {
    let (mut world, inode) = world();
    let waiting = begin(&mut world, inode);
    let before = world.forgotten;
    world.step(Input::Cancel { id: waiting });
    assert!(world.forgotten > before, "the service is not told that nobody waits any more");
    assert_eq!(world.completed.remove(&waiting), Some(Err(ClientError::Interrupted)));
    world.service.open_elsewhere = None;
    world.run_for(Duration::from_secs(60));
    assert!(world.service.opens.is_empty(), "nobody would close it");
}

#[test]
fn what_a_file_is_open_for_is_on_record_and_its_last_writer_is_missed() {
    let (mut world, inode) = world();
    let reader = opened(&mut world, inode, false);
    let another = opened(&mut world, inode, false);
    let writer = opened(&mut world, inode, true);
    let second = opened(&mut world, inode, true);
    assert_eq!(world.service.opens, [(inode, Access::Read), (inode, Access::Write)], "once for each");
    world.ask(Call::Release { handle: writer }).expect("closed");
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.service.opens.len(), 2, "another one writes");
    world.ask(Call::Release { handle: second }).expect("closed");
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.service.opens[2..], [(inode, Access::Read)], "others may write now");
    let again = opened(&mut world, inode, true);
    assert_eq!(world.service.opens[3..], [(inode, Access::Write)]);
    for handle in [reader, another, again] {
        world.ask(Call::Release { handle }).expect("closed");
    }
    world.run_for(Duration::from_secs(2));
    assert!(!world.service.is_opener(inode));
}

/// Ends caching: the kernel has dropped everything, and the service is being told.
fn begin_to_tell(world: &mut World, event: u64) {
    world.service.events.push((event, Event::StopCaching));
    world.run_until("the notice", |world| world.notices.contains(&Notice::StopCaching { event }));
    world.step(Input::Invalidated { event });
}

#[test]
fn what_is_created_while_the_service_is_told_what_is_open_is_on_record_as_well() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        world.mount();
        let (first, handle) = world.create("a");
        world.write(handle, 0, &b"hello"[..]).expect("written");
        world.ask(Call::Fsync { inode: first, data_only: false }).expect("synced");
        begin_to_tell(&mut world, 1);
        let (inode, _) = world.create("b");
        world.run_until("the answer", |world| world.service.stopped.is_some());
        world.run_for(Duration::from_secs(1));
        assert!(world.service.is_opener(inode), "seed {seed}: another host would purge it, or open it as well");
    }
}

#[test]
fn a_writer_that_was_closed_while_caching_is_missed_when_caching_ends() {
    let (mut world, inode) = world();
    let (_reader, writer) = (opened(&mut world, inode, false), opened(&mut world, inode, true));
    world.service.caching = true;
    world.service.events.push((1, Event::StartCaching));
    world.run_until("caching", |world| world.notices.contains(&Notice::StartCaching));
    world.ask(Call::Release { handle: writer }).expect("closed");
    world.run_for(Duration::from_secs(1));
    world.service.opens.clear();
    begin_to_tell(&mut world, 2);
    world.run_until("the answer", |world| world.service.stopped == Some(vec![(inode, Access::Read)]));
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.service.opens, [(inode, Access::Read)], "the service believes that it writes");
}
