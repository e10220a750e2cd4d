//! Another host comes: caching stops, and starts again when it has gone.

use super::fake::Service;
use super::world::{World, config, name};
use crate::{Call, ClientError, Config, Input, Notice, OpenMode, Reply};
use holdfast_types::InodeId;
use holdfast_wire::metadata::Event;
use holdfast_wire::namespace::SetAttributes;
use holdfast_wire::open::Access;
use std::time::Duration;

pub(super) fn uncached(seed: u64) -> World {
    let mut service = Service::new();
    service.caching = false;
    let mut world = World::with(seed, config(), service);
    world.mount();
    world
}

#[test]
fn before_it_says_that_it_stopped_everything_is_flushed_and_dropped() {
    for seed in 0..30 {
        let mut world = World::new(seed);
        world.mount();
        world.loss = if seed % 2 == 0 { 0 } else { 10 };
        let (inode, handle) = world.create("a");
        let (other, closed) = world.create("b");
        world.write(handle, 10, vec![5; 200_000]).expect("write");
        world.write(closed, 0, vec![6; 10]).expect("write");
        world.ask(Call::Release { handle: closed }).expect("close");
        world.service.events.push((1, Event::StopCaching));
        world.run_until("the notice", |w| w.notices.contains(&Notice::StopCaching { event: 1 }));
        assert!(world.core.cache_ttl(world.now).is_zero());
        // A page that the kernel writes back while it invalidates.
        world.write(handle, 0, vec![4; 10]).expect("written through");
        assert_eq!(world.service.content(inode)[..10], [4; 10]);
        world.run_for(Duration::from_secs(3));
        assert_eq!(world.service.stopped, None, "the kernel has not confirmed");
        world.step(Input::Invalidated { event: 1 });
        world.run_until("the answer", |w| w.service.stopped.is_some());
        assert_eq!(world.service.stopped, Some(vec![(inode, Access::Write)]), "what is open is named");
        assert_eq!(world.service.content(inode), [vec![4; 10], vec![5; 200_000]].concat());
        assert_eq!(world.service.content(other), [6; 10]);
        assert!(world.service.inodes.values().all(|row| row.bound == 0), "no bound is held by anybody");
        // The other host removes the name: the file stays, since it is open here.
        world.loss = 0;
        world.run_for(Duration::from_secs(1));
        world.service.inodes.get_mut(&inode).expect("there").orphan = true;
        assert_eq!(world.read(handle, 0, 10).expect("read"), [4; 10]);
        world.ask(Call::Release { handle }).expect("close");
        world.run_until("the orphan is let go", |w| !w.service.inodes.contains_key(&inode));
    }
}

#[test]
fn uncached_everything_is_asked_and_written_through() {
    let mut world = uncached(1);
    let (inode, handle) = world.create("a");
    world.write(handle, 0, &b"hello"[..]).expect("write");
    assert_eq!(world.service.content(inode), b"hello", "durable and published before the reply");
    // Somebody else appends and renames.
    let key = *world.service.chunks.keys().next().expect("stored");
    world.service.chunks.get_mut(&key).expect("stored").extend_from_slice(b" you");
    world.service.inodes.get_mut(&inode).expect("there").attributes.size = 9;
    assert_eq!(world.stat(inode).size, 9);
    assert_eq!(world.read(handle, 0, 100).expect("read"), b"hello you");
    let entry = world.service.entries.remove(&(InodeId::ROOT, name("a"))).expect("named");
    world.service.entries.insert((InodeId::ROOT, name("b")), entry);
    assert!(world.ask(Call::Lookup { parent: InodeId::ROOT, name: name("a") }).is_err());
    assert!(world.ask(Call::Lookup { parent: InodeId::ROOT, name: name("b") }).is_ok());
    assert!(world.service.inodes[&inode].opener);
    world.ask(Call::Release { handle }).expect("close");
    world.run_until("the opener is forgotten", |w| !w.service.inodes[&inode].opener);
}

#[test]
fn closing_and_opening_again_leaves_the_opener_on_record() {
    for seed in 0..30 {
        let mut world = uncached(seed);
        world.loss = 20;
        let (inode, mut handle) = world.create("a");
        for _ in 0..10 {
            world.start(Call::Release { handle });
            match world.ask(Call::Open { inode, mode: OpenMode::default() }) {
                Ok(Reply::Opened { handle: again, .. }) => handle = again,
                other => panic!("open: {other:?}"),
            }
            assert!(world.service.inodes[&inode].opener, "seed {seed}");
        }
    }
}

#[test]
fn alone_again_it_caches_again_and_believes_nothing_older() {
    let mut world = uncached(3);
    let (inode, handle) = world.create("a");
    world.write(handle, 0, &b"one"[..]).expect("write");
    // A question from before is under way when caching starts.
    let early = world.start(Call::GetAttributes { inode });
    world.service.caching = true;
    world.service.events.push((1, Event::StartCaching));
    world.run_until("caching", |w| w.notices.contains(&Notice::StartCaching));
    world.wait(early).expect("answered");
    world.stat(inode);
    world.at_once(Call::GetAttributes { inode }).expect("cached now");
    world.at_once(Call::Write { handle, offset: 3, data: b"two"[..].into(), clear_set_ids: false }).expect("buffered");
    // Unlinked while open, although the service forgot the opener when caching began.
    world.service.inodes.get_mut(&inode).expect("there").opener = false;
    world.ask(Call::Unlink { parent: InodeId::ROOT, name: name("a") }).expect("unlink");
    assert!(world.service.inodes.contains_key(&inode), "kept for the handle");
    assert_eq!(world.read(handle, 0, 10).expect("read"), b"onetwo");
}

#[test]
fn an_ended_session_fails_what_waits_and_says_what_is_lost() {
    let mut world = World::new(4);
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, vec![1; 5000]).expect("buffered");
    world.service.events.push((1, Event::Ended { reason: "fenced".into() }));
    world.run_until("the end", |w| {
        w.notices
            .iter()
            .any(|n| matches!(n, Notice::SessionOver { lost_bytes: 5000, reason, .. } if reason == "fenced"))
    });
    let Some(Notice::SessionOver { lost, .. }) = world.notices.last() else { panic!("{:?}", world.notices) };
    let [file] = lost.as_slice() else { panic!("{lost:?}") };
    assert_eq!((file.inode, file.path.as_deref(), file.size, file.published), (inode, Some(&b"a"[..]), 5000, 0));
    assert_eq!(file.pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), 5000);
    assert!(world.ask(Call::Fsync { inode, data_only: false }).is_err());
    assert!(world.write(handle, 0, vec![1; 5]).is_err());
    assert_eq!(world.ask(Call::Release { handle }), Ok(Reply::Done));
}

#[test]
fn calls_of_an_ended_session_wait_for_their_cancellation_where_that_is_asked_for() {
    let mut world = World::with(6, Config { block_when_over: true, ..config() }, Service::new());
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, vec![1; 5000]).expect("buffered");
    let early = world.start(Call::Fsync { inode, data_only: false });
    world.core.session_over("fenced".into());
    world.step(Input::Tick);
    let late = world.start(Call::GetAttributes { inode });
    world.run_for(Duration::from_secs(5));
    for id in [early, late] {
        assert!(!world.completed.contains_key(&id), "{:?}", world.completed);
        world.step(Input::Cancel { id });
        assert_eq!(world.wait(id), Err(ClientError::Interrupted));
    }
    // Closing does not wait, nor does the unmount.
    assert!(matches!(world.ask(Call::Flush { handle }), Err(ClientError::SessionOver { .. })));
    assert_eq!(world.ask(Call::Release { handle }), Ok(Reply::Done));
    assert_eq!(world.ask(Call::Unmount), Ok(Reply::Done));
}

#[test]
fn a_session_that_ends_before_sizes_are_published_has_not_unmounted_well() {
    let mut world = World::new(5);
    world.mount();
    let (_, handle) = world.create("a");
    world.write(handle, 0, vec![1; 5000]).expect("buffered");
    let leaving = world.start(Call::Unmount);
    world.run_until("the bytes are stored", |w| w.core.buffered_bytes() == 0);
    assert!(!world.completed.contains_key(&leaving));
    world.core.session_over("fenced".into());
    world.step(Input::Tick);
    assert!(world.wait(leaving).is_err(), "nobody will ever see these bytes");
    assert!(matches!(world.notices.last(), Some(Notice::SessionOver { lost_bytes: 5000, .. })), "{:?}", world.notices);
}

/// Simulator's seed 925: they were left where they were, and showed when the file grew.
#[test]
fn what_stands_beyond_a_cut_by_others_goes_with_a_cut_of_our_own() {
    let mut world = uncached(1);
    let (inode, handle) = world.create("a");
    world.write(handle, 0, vec![1; 100_000]).expect("written");
    let cut = |size| Call::SetAttributes { inode, set: SetAttributes { size: Some(size), ..SetAttributes::default() } };
    // Another host has cut the file to 10 bytes; one of our writes arrived after that, and storage has just said so.
    let row = world.service.inodes.get_mut(&inode).expect("there");
    (row.attributes.size, row.attributes.cuts, row.bound) = (10, 1, 0);
    world.ask(Call::GetAttributes { inode }).expect("asked");
    world.core.files.get_mut(&inode).expect("open").standing = 100_000;
    world.ask(cut(50_000)).expect("longer than 10");
    let held: usize = world.service.chunks.values().map(Vec::len).max().unwrap_or(0);
    assert!(held <= 50_000, "{held} bytes are left");
    world.ask(cut(100_000)).expect("longer");
    assert_eq!(world.read(handle, 50_000, 50_000).expect("read"), vec![0; 50_000]);
}

#[test]
fn appends_go_where_the_end_is_when_their_turn_comes() {
    for seed in 0..30 {
        let mut world = uncached(seed);
        world.loss = if seed % 2 == 0 { 0 } else { 20 };
        let (inode, _) = world.create("a");
        let mode = OpenMode { append: true, ..OpenMode::default() };
        let Ok(Reply::Opened { handle, .. }) = world.ask(Call::Open { inode, mode }) else { panic!("open") };
        let mut want = Vec::new();
        for round in 0..10_u8 {
            world.run_until("nothing is held beyond the end", |w| w.service.inodes[&inode].bound == 0);
            // Another host has appended since we last heard of the file.
            let other = vec![200 + round; 5 + usize::from(round)];
            world.service.append(inode, &other);
            want.extend_from_slice(&other);
            // Two at once of ours, in the order of their calls.
            for part in 0..2 {
                let data = vec![2 * round + part; 10];
                want.extend_from_slice(&data);
                world.start(Call::Write { handle, offset: 0, data: data.into(), clear_set_ids: false });
            }
            world.run_until("both are published", |w| w.service.inodes[&inode].attributes.size == want.len() as u64);
            assert_eq!(world.service.content(inode), want);
        }
    }
}

#[test]
fn a_write_on_top_of_one_that_waits_goes_to_what_others_left_before_it() {
    for seed in 0..30 {
        let mut world = uncached(seed);
        let (inode, handle) = world.create("a");
        world.write(handle, 0, &b"hello"[..]).expect("write");
        world.run_until("nothing is held beyond the end", |w| w.service.inodes[&inode].bound == 0);
        // The answer that gives room for this one is still on its way when another host cuts the file to nothing.
        let first = world.start(Call::Write { handle, offset: 0, data: vec![1; 1000].into(), clear_set_ids: false });
        world.run_until("room is given", |w| w.service.inodes[&inode].bound > 0);
        world.service.index += 1;
        let row = world.service.inodes.get_mut(&inode).expect("there");
        (row.attributes.generation, row.attributes.size, row.bound) = (row.attributes.generation.next(), 0, 0);
        let over = Call::Write { handle, offset: 300, data: vec![2; 100].into(), clear_set_ids: false };
        let over = world.start(over);
        world.wait(over).expect("written");
        assert_eq!(
            world.service.content(inode).get(300..400),
            Some(&[2; 100][..]),
            "seed {seed}: acknowledged, and gone"
        );
        world.wait(first).expect("written");
    }
}

#[test]
fn a_read_shows_nothing_that_was_written_above_a_cut_and_is_not_published() {
    for length in [5, 100] {
        let mut world = uncached(9);
        let (inode, handle) = world.create("a");
        world.write(handle, 0, &b"hello"[..]).expect("write");
        world.stat(inode);
        let read = world.start(Call::Read { handle, offset: 0, length });
        // Before storage is asked another host cuts the file, and a third one's write beyond the new end is made and not yet published.
        let cut = |world: &mut World| {
            world.service.index += 1;
            let row = world.service.inodes.get_mut(&inode).expect("there");
            (row.attributes.size, row.attributes.cuts) = (2, row.attributes.cuts + 1);
        };
        cut(&mut world);
        world.service.chunks.values_mut().next().expect("stored").splice(2.., *b"XYZ");
        let Ok(Reply::Data(data)) = world.wait(read) else { panic!("read") };
        assert_eq!(data.into_bytes(), b"he"[..]);
        // What others have added since the size was heard of is shown.
        world.service.index += 1;
        world.service.inodes.get_mut(&inode).expect("there").attributes.size = 4;
        assert_eq!(world.read(handle, 0, length).expect("read"), b"heXY"[..length.min(4) as usize]);
        assert_eq!(world.read(handle, 0, 2).expect("read"), b"he");
    }
}

#[test]
fn what_was_asked_before_caching_began_is_not_kept() {
    let mut world = uncached(5);
    let (inode, handle) = world.create("a");
    world.write(handle, 0, &b"hello"[..]).expect("write");
    world.ask(Call::Release { handle }).expect("close");
    world.run_until("the opener is forgotten", |w| !w.service.inodes[&inode].opener);
    world.run_for(Duration::from_secs(1));
    world.hold_reads = true;
    let early = world.start(Call::GetAttributes { inode });
    world.run_for(Duration::from_millis(5));
    // Another host writes and leaves; then this one is alone.
    world.service.index += 1;
    world.service.inodes.get_mut(&inode).expect("there").attributes.size = 9;
    world.service.caching = true;
    world.service.events.push((1, Event::StartCaching));
    world.run_until("caching", |w| w.notices.contains(&Notice::StartCaching));
    world.release_reads();
    assert!(matches!(world.wait(early), Ok(Reply::Attributes(a)) if a.size == 5));
    assert_eq!(world.stat(inode).size, 9, "the older answer was kept");
}

#[test]
fn what_is_written_before_it_is_known_what_others_left_goes_to_what_they_left() {
    for read_first in [false, true] {
        let mut world = uncached(6);
        let (inode, handle) = world.create("a");
        world.write(handle, 0, &b"hello"[..]).expect("write");
        world.run_for(Duration::from_secs(1));
        // Another host cuts the file to nothing, writes anew and leaves. What is asked about it now is answered late.
        world.service.index += 1;
        let row = world.service.inodes.get_mut(&inode).expect("there");
        (row.attributes.generation, row.attributes.size) = (row.attributes.generation.next(), 0);
        world.service.append(inode, b"abcdefgh");
        let old: Vec<_> = world.service.chunks.keys().filter(|key| key.generation.0 == 1).copied().collect();
        assert_eq!(old.len(), 1);
        world.service.chunks.retain(|key, _| key.generation.0 != 1);
        world.hold_reads = true;
        world.service.caching = true;
        world.service.events.push((1, Event::StartCaching));
        world.run_until("caching", |w| w.notices.contains(&Notice::StartCaching));
        let read = read_first.then(|| world.start(Call::Read { handle, offset: 0, length: 100 }));
        let write = world.start(Call::Write { handle, offset: 2, data: b"XY"[..].into(), clear_set_ids: false });
        world.service.caching = false;
        world.service.events.push((2, Event::StopCaching));
        world.run_until("the notice", |w| w.notices.contains(&Notice::StopCaching { event: 2 }));
        world.step(Input::Invalidated { event: 2 });
        world.run_for(Duration::from_millis(50));
        assert!(!world.service.chunks.keys().any(|key| old.contains(key)), "written to a content that is no more");
        world.release_reads();
        world.wait(write).expect("written");
        world.run_until("the answer", |w| w.service.stopped.is_some());
        assert_eq!(world.service.content(inode), b"abXYefgh");
        if let Some(read) = read {
            let Ok(Reply::Data(data)) = world.wait(read) else { panic!("read") };
            let bytes = data.pieces.concat();
            assert!(bytes == b"abXYefgh" || bytes == b"abcdefgh", "{bytes:?}");
        }
    }
}
