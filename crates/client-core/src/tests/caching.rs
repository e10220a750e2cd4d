//! The session alone on its volume: what costs no message, what ends with the lease, what retries mean.

use super::fake::Service;
use super::world::{World, config, name};
use crate::{Call, ClientError, Notice, OpenMode, Reply};
use holdfast_types::limits::SESSION_TTL;
use holdfast_types::{FileName, InodeId, ServerId};
use holdfast_wire::metadata::Event;
use holdfast_wire::namespace::{NamespaceError, NewNode, RenameMode};
use std::time::Duration;

fn lookup(text: &str) -> Call {
    Call::Lookup { parent: InodeId::ROOT, name: name(text) }
}

fn make_directory(parent: InodeId, name: FileName) -> Call {
    let node = NewNode::Directory;
    Call::Create { parent, name, node, mode: 0o755, umask: 0, uid: 0, gid: 0, exclusive: true, open: None }
}

#[test]
fn repeated_names_attributes_opens_and_closes_cost_no_message() {
    let mut world = World::new(1);
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, &b"x"[..]).expect("write");
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    world.ask(Call::ReadDirectory { inode: InodeId::ROOT, after: 0, limit: 10, plus: true }).expect("list");
    let sent = (world.sent_metadata, world.sent_chunks);
    for _ in 0..10 {
        assert!(matches!(world.at_once(lookup("a")), Ok(Reply::Attributes(a)) if a.inode == inode && a.size == 1));
        assert!(matches!(world.at_once(Call::GetAttributes { inode }), Ok(Reply::Attributes(_))));
        assert_eq!(world.at_once(lookup("b")), Err(NamespaceError::NotFound.into()));
        let Ok(Reply::Opened { handle, keep_cache: true, .. }) =
            world.at_once(Call::Open { inode, mode: OpenMode::default() })
        else {
            panic!("open");
        };
        assert!(
            matches!(world.at_once(Call::Read { handle, offset: 0, length: 10 }), Ok(Reply::Data(d)) if d.len() == 1)
        );
        world.at_once(Call::Release { handle }).expect("close");
        let list = Call::ReadDirectory { inode: InodeId::ROOT, after: 0, limit: 10, plus: true };
        assert!(matches!(world.at_once(list), Ok(Reply::Directory { entries, end: true, .. }) if entries.len() == 1));
    }
    assert_eq!((world.sent_metadata, world.sent_chunks), sent);
}

#[test]
fn own_changes_are_seen_at_once_and_without_asking() {
    let mut world = World::new(2);
    world.mount();
    let Ok(Reply::Created { attributes, .. }) = world.ask(make_directory(InodeId::ROOT, name("d"))) else { panic!() };
    let directory = attributes.inode;
    assert_eq!(
        world.at_once(Call::Lookup { parent: directory, name: name("x") }),
        Err(NamespaceError::NotFound.into()),
        "a new directory is known to be empty"
    );
    let (inode, _) = world.create("a");
    let rename = |from: (InodeId, &str), to: (InodeId, &str)| Call::Rename {
        from_parent: from.0,
        from_name: name(from.1),
        to_parent: to.0,
        to_name: name(to.1),
        mode: RenameMode::Replace,
    };
    world.ask(rename((InodeId::ROOT, "a"), (directory, "b"))).expect("rename");
    assert_eq!(world.at_once(lookup("a")), Err(NamespaceError::NotFound.into()));
    let found = world.at_once(Call::Lookup { parent: directory, name: name("b") });
    assert!(matches!(found, Ok(Reply::Attributes(a)) if a.inode == inode));
    assert!(matches!(world.at_once(Call::GetAttributes { inode: directory }), Ok(Reply::Attributes(a)) if a.size == 1));
    let service = world.service.attributes(directory).expect("there");
    assert_eq!(world.stat(directory).mtime, service.mtime, "times of a directory follow its entries");
    world.ask(Call::Unlink { parent: directory, name: name("b") }).expect("unlink");
    assert_eq!(
        world.at_once(Call::Lookup { parent: directory, name: name("b") }),
        Err(NamespaceError::NotFound.into())
    );
}

#[test]
fn a_retried_mutation_is_executed_once() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.loss = 25;
        world.mount();
        let ids: Vec<_> = (0..30).map(|i| world.start(make_directory(InodeId::ROOT, name(&format!("d{i}"))))).collect();
        for id in ids {
            assert!(matches!(world.wait(id), Ok(Reply::Created { new: true, .. })), "seed {seed}");
        }
        assert_eq!(world.service.mutations, 30);
        for i in 0..30 {
            let id = world.start(make_directory(InodeId::ROOT, name(&format!("d{i}"))));
            assert_eq!(world.wait(id), Err(NamespaceError::Exists.into()), "seed {seed}");
        }
    }
}

#[test]
fn a_new_leader_is_found_by_its_hint_or_in_turn() {
    let mut world = World::new(4);
    world.service.leader = ServerId(3);
    world.mount();
    let started = world.now;
    world.service.leader = ServerId(2);
    world.ask(make_directory(InodeId::ROOT, name("d"))).expect("made");
    assert!(world.now.since(started) < Duration::from_millis(200), "a hint is followed at once");
}

#[test]
fn what_a_dead_leader_holds_is_asked_elsewhere_as_soon_as_one_request_shows_its_death() {
    let mut world = World::new(6);
    world.mount();
    world.run_for(Duration::from_millis(500));
    (world.dead, world.service.leader) = (Some(ServerId(1)), ServerId(3));
    let started = world.now;
    world.ask(make_directory(InodeId::ROOT, name("d"))).expect("made");
    assert!(world.now.since(started) < Duration::from_millis(1500), "{:?}", world.now.since(started));
    // The renewal that waits for news waited at the dead one.
    world.service.events.push((1, Event::StopCaching));
    world.run_until("news", |w| w.notices.contains(&Notice::StopCaching { event: 1 }));
    assert!(world.now.since(started) < Duration::from_millis(2000), "{:?}", world.now.since(started));
}

#[test]
fn nothing_cached_is_served_after_the_lease_ran_out() {
    let mut world = World::new(5);
    world.mount();
    let (inode, _) = world.create("a");
    world.at_once(Call::GetAttributes { inode }).expect("cached");
    world.run_for(Duration::from_secs(60));
    world.at_once(Call::GetAttributes { inode }).expect("renewed all the time");
    world.cut = true;
    let cut_at = world.now;
    world.run_for(SESSION_TTL);
    assert_eq!(world.core.cache_ttl(world.now), Duration::ZERO);
    let id = world.start(Call::GetAttributes { inode });
    assert!(!world.completed.contains_key(&id), "it waits for the service");
    world.run_for(Duration::from_secs(20));
    assert!(!world.completed.contains_key(&id), "a hard mount waits");
    world.cut = false;
    world.wait(id).expect("answered when the service is back");
    assert!(world.now.since(cut_at) < Duration::from_secs(40));
    world.run_for(Duration::from_secs(5));
    world.at_once(Call::GetAttributes { inode }).expect("renewed, so cached again");
}

#[test]
fn a_soft_mount_gives_up_and_a_cancelled_call_ends() {
    let mut config = config();
    config.soft = Some(Duration::from_secs(5));
    let mut world = World::with(6, config, Service::new());
    world.mount();
    world.cut = true;
    let started = world.now;
    assert_eq!(world.ask(lookup("zzz")), Err(ClientError::TimedOut));
    assert!(world.now.since(started) >= Duration::from_secs(5));
    let id = world.start(lookup("yyy"));
    world.step(crate::Input::Cancel { id });
    assert_eq!(world.wait(id), Err(ClientError::Interrupted));
}

#[test]
fn a_volume_that_does_not_exist_is_refused() {
    let mut config = config();
    config.volume = "other".into();
    let mut world = World::with(7, config, Service::new());
    assert!(matches!(world.ask(Call::Mount), Err(ClientError::Refused { .. })));
    assert!(matches!(world.ask(lookup("a")), Err(ClientError::SessionOver { .. })));
}

#[test]
fn an_open_file_outlives_its_name() {
    let mut world = World::new(8);
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, &b"hello"[..]).expect("write");
    world.ask(Call::Unlink { parent: InodeId::ROOT, name: name("a") }).expect("unlink");
    world.write(handle, 5, &b" there"[..]).expect("write");
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    world.core.pages.clear();
    assert_eq!(world.read(handle, 0, 100).expect("read"), b"hello there");
    assert!(world.service.inodes.contains_key(&inode));
    world.ask(Call::Release { handle }).expect("close");
    world.run_until("the orphan is let go", |world| !world.service.inodes.contains_key(&inode));
    // Not open: its buffered bytes go with it.
    let (inode, handle) = world.create("b");
    world.write(handle, 0, vec![1; 100_000]).expect("write");
    world.ask(Call::Release { handle }).expect("close");
    world.ask(Call::Unlink { parent: InodeId::ROOT, name: name("b") }).expect("unlink");
    assert_eq!(world.core.buffered_bytes(), 0);
    world.run_for(Duration::from_secs(5));
    assert!(world.service.chunks.keys().all(|key| key.inode != inode), "nothing was stored for a file that is gone");
}

#[test]
fn unmounting_flushes_everything_and_ends_the_session() {
    let mut world = World::new(9);
    world.loss = 10;
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, vec![9; 100_000]).expect("write");
    world.ask(Call::Unmount).expect("unmounted");
    assert!(world.service.detached);
    assert_eq!(world.service.content(inode), [9; 100_000]);
    assert!(matches!(world.notices.last(), Some(crate::Notice::SessionOver { lost_bytes: 0, .. })));
    assert!(matches!(world.ask(Call::GetAttributes { inode }), Err(ClientError::SessionOver { .. })));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut world = World::new(seed);
        world.loss = 10;
        world.mount();
        for i in 0..10 {
            let (inode, handle) = world.create(&format!("f{i}"));
            world.write(handle, i * 1000, vec![i as u8; 30_000]).expect("write");
            world.ask(Call::Fsync { inode, data_only: i % 2 == 0 }).expect("durable");
        }
        world.trace
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
