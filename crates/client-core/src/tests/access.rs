//! When files were read.

use super::world::World;
use crate::{Call, HandleId, Input, OpenMode, Reply};
use holdfast_types::{InodeId, Timestamp};
use holdfast_wire::metadata::Event;
use holdfast_wire::namespace::{SetAttributes, SetTime};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn world() -> World {
    let mut world = World::new(1);
    world.mount();
    world
}

/// A file that was written some time ago, published, and open.
fn written(world: &mut World, text: &str) -> (InodeId, HandleId) {
    let (inode, handle) = world.create(text);
    world.write(handle, 0, vec![1; 100]).unwrap();
    world.ask(Call::Fsync { inode, data_only: false }).unwrap();
    world.run_for(Duration::from_secs(1));
    world.service.now = world.core.stamp();
    (inode, handle)
}

#[test]
fn the_first_read_after_a_change_sets_the_time_and_the_service_hears_of_it_later() {
    let mut world = world();
    let (inode, handle) = written(&mut world, "f");
    let before = world.stat(inode);
    assert!(before.atime <= before.mtime);
    world.read(handle, 0, 10).unwrap();
    let read = world.stat(inode);
    assert!(read.atime > read.mtime && read.ctime == before.ctime, "{read:?}");
    assert_eq!(world.service.inodes[&inode].attributes.atime, before.atime, "nobody waits for that");
    for _ in 0..10 {
        world.run_for(Duration::from_secs(1));
        world.read(handle, 0, 10).unwrap();
        assert_eq!(world.stat(inode).atime, read.atime, "set once");
    }
    assert_eq!(world.service.inodes[&inode].attributes.atime, read.atime);
    assert_eq!(world.service.access_times, 1);
    // A change, and then a read, sets it again. So does a read a day later.
    world.write(handle, 0, vec![2; 100]).unwrap();
    world.ask(Call::Fsync { inode, data_only: false }).unwrap();
    world.run_for(Duration::from_secs(1));
    world.read(handle, 0, 10).unwrap();
    let again = world.stat(inode).atime;
    assert!(again > read.atime);
    world.service.now = Timestamp::from_nanos(again.as_nanos() + DAY.as_nanos() as i128);
    world.run_for(Duration::from_secs(60));
    world.read(handle, 0, 10).unwrap();
    assert!(world.stat(inode).atime > again);
}

#[test]
fn many_reads_are_told_at_once() {
    let mut world = world();
    for n in 0..600 {
        let (inode, handle) = world.create(&format!("f{n}"));
        world.write(handle, 0, vec![1; 10]).unwrap();
        world.ask(Call::Fsync { inode, data_only: false }).unwrap();
        world.ask(Call::Release { handle }).unwrap();
    }
    world.run_for(Duration::from_secs(5));
    world.service.now = world.core.stamp();
    let inodes: Vec<InodeId> = world.service.inodes.keys().copied().filter(|inode| *inode != InodeId::ROOT).collect();
    for inode in inodes {
        let Ok(Reply::Opened { handle, .. }) = world.ask(Call::Open { inode, mode: OpenMode::default() }) else {
            panic!("opens")
        };
        world.read(handle, 0, 10).unwrap();
        world.ask(Call::Release { handle }).unwrap();
    }
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.service.access_times, 3, "256, 256 and the rest");
    let set = world.service.inodes.values().filter(|row| row.attributes.atime > row.attributes.mtime).count();
    assert_eq!(set, 600);
}

#[test]
fn before_it_stops_caching_and_before_it_leaves_the_service_is_told() {
    let mut world = world();
    let (inode, handle) = written(&mut world, "f");
    world.read(handle, 0, 10).unwrap();
    world.service.events.push((1, Event::StopCaching));
    world.run_until("it asks to forget", |w| !w.notices.is_empty());
    world.step(Input::Invalidated { event: 1 });
    world.run_until("it has stopped", |w| w.service.stopped.is_some());
    let row = &world.service.inodes[&inode].attributes;
    assert!(row.atime > row.mtime);

    let mut world = self::world();
    let (inode, handle) = written(&mut world, "f");
    world.read(handle, 0, 10).unwrap();
    world.ask(Call::Unmount).unwrap();
    let row = &world.service.inodes[&inode].attributes;
    assert!(row.atime > row.mtime);
}

#[test]
fn reads_that_go_on_do_not_keep_another_host_waiting() {
    let mut world = world();
    let mut files: Vec<(InodeId, HandleId)> = (0..200).map(|n| written(&mut world, &format!("f{n}"))).collect();
    world.service.events.push((1, Event::StopCaching));
    world.run_until("it asks to forget", |w| !w.notices.is_empty());
    world.step(Input::Invalidated { event: 1 });
    let mut reading = Vec::new();
    while world.service.stopped.is_none() {
        let (_, handle) = files.pop().expect("it stops before all were read");
        reading.push(world.start(Call::Read { handle, offset: 0, length: 10 }));
        (0..5).for_each(|_| world.happen());
    }
    for call in reading {
        world.wait(call).expect("read");
    }
}

#[test]
fn a_time_that_was_set_by_hand_is_not_overruled_by_a_read_from_before() {
    let mut world = world();
    let (inode, handle) = written(&mut world, "f");
    world.read(handle, 0, 10).unwrap();
    world.service.now = world.core.stamp();
    let future = Timestamp { seconds: 4_000_000_000, nanos: 0 };
    let set = SetAttributes { atime: Some(SetTime::At(future)), ..SetAttributes::default() };
    world.ask(Call::SetAttributes { inode, set }).unwrap();
    assert_eq!(world.stat(inode).atime, future);
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.stat(inode).atime, future);
    let past = Timestamp { seconds: 1_000, nanos: 0 };
    world.service.now = world.core.stamp();
    let set = SetAttributes { atime: Some(SetTime::At(past)), ..SetAttributes::default() };
    world.ask(Call::SetAttributes { inode, set }).unwrap();
    assert_eq!(world.stat(inode).atime, past);
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.stat(inode).atime, past);
}

#[test]
fn without_relatime_and_without_write_access_no_time_is_set() {
    for read_only in [false, true] {
        let mut world = world();
        let (inode, handle) = written(&mut world, "f");
        (world.core.config.relatime, world.core.config.read_only) = (read_only, read_only);
        let before = world.service.inodes[&inode].attributes.atime;
        world.read(handle, 0, 4).unwrap();
        world.run_for(Duration::from_secs(20));
        assert_eq!(world.stat(inode).atime, before);
        assert_eq!(world.service.access_times, 0);
    }
}
