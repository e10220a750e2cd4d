//! Data: what is read is what was written, what is acknowledged is durable.

use super::fake::Service;
use super::world::{World, config, name};
use crate::{Call, ClientError, HandleId, Input, OpenMode, Reply, ZeroMode};
use bytes::Bytes;
use holdfast_types::prng::Prng;
use holdfast_types::size::{KIB, MIB};
use holdfast_types::{ChunkIndex, GroupId, InodeId, Timestamp, VolumeId};
use holdfast_wire::namespace::{SetAttributes, SetTime};
use std::time::Duration;

fn truncate(inode: InodeId, size: u64) -> Call {
    Call::SetAttributes { inode, set: SetAttributes { size: Some(size), ..SetAttributes::default() } }
}

fn random_bytes(prng: &mut Prng, length: u64) -> Bytes {
    let mut bytes = vec![0; length as usize];
    prng.fill(&mut bytes);
    bytes.into()
}

#[test]
fn a_group_that_is_stuck_does_not_hold_back_the_floor_of_others() {
    let mut world = World::new(5);
    world.mount();
    let group = |inode| GroupId::of(VolumeId(3), inode, ChunkIndex(0), super::fake::GROUPS);
    let (a, first) = world.create("a");
    let (b, second) =
        (0..).map(|n| world.create(&format!("b{n}"))).find(|(inode, _)| group(*inode) != group(a)).unwrap();
    world.service.stuck = Some(group(a));
    world.write(first, 0, vec![1; 4096]).expect("buffered");
    world.run_until("the group is asked", |w| w.service.floors.contains_key(&group(a)));
    for n in 0..20 {
        world.write(second, 0, vec![n; 4096]).expect("buffered");
        world.ask(Call::Fsync { inode: b, data_only: true }).expect("durable");
    }
    let (stuck, other) = (world.service.floors[&group(a)], world.service.floors[&group(b)]);
    assert!(other.0 >= stuck.0 + 15, "{stuck} and {other}: it would be refused after some thousand more");
    world.service.stuck = None;
    world.ask(Call::Fsync { inode: a, data_only: true }).expect("durable");
}

#[test]
fn fsync_returns_when_storage_has_the_bytes_and_the_size_is_published() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.loss = if seed % 2 == 0 { 0 } else { 15 };
        world.mount();
        let (inode, handle) = world.create("a");
        let data = random_bytes(&mut Prng::new(seed), 3 * MIB + 1234);
        world.write(handle, 0, data.clone()).expect("buffered");
        assert_ne!(world.service.content(inode), data, "not flushed yet, or the test shows nothing");
        world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
        assert_eq!(world.service.content(inode), data);
        let shown = world.stat(inode).mtime;
        assert_eq!(world.service.inodes[&inode].attributes.mtime, shown);
        let (metadata, chunks) = (world.sent_metadata, world.sent_chunks);
        world.at_once(Call::Fsync { inode, data_only: false }).expect("nothing to do");
        assert_eq!((world.sent_metadata, world.sent_chunks), (metadata, chunks), "a clean fsync is free");
    }
}

#[test]
fn fsync_of_bytes_that_are_overwritten_before_they_are_sent_waits_for_those_in_their_place() {
    let mut config = config();
    config.flush_requests_in_flight = 1;
    let mut world = World::with(9, config, Service::new());
    world.mount();
    let (other, other_handle) = world.create("b");
    let (inode, handle) = world.create("a");
    world.write(other_handle, 0, &b"takes the only place under way"[..]).expect("buffered");
    let first = world.start(Call::Fsync { inode: other, data_only: false });
    world.write(handle, 0, &b"old"[..]).expect("buffered");
    let second = world.start(Call::Fsync { inode, data_only: false });
    world.write(handle, 0, &b"new"[..]).expect("buffered");
    assert!(!world.completed.contains_key(&second), "nothing was sent");
    world.wait(second).expect("durable");
    assert_eq!(world.service.content(inode), b"new");
    world.wait(first).expect("durable");
}

#[test]
fn bytes_that_are_overwritten_all_the_time_are_flushed_within_the_delay() {
    let mut world = World::new(10);
    world.mount();
    let (inode, handle) = world.create("a");
    for round in 0..30u8 {
        world.write(handle, 0, vec![round; 10]).expect("buffered");
        world.run_for(Duration::from_millis(100));
    }
    assert!(world.service.content(inode).first().is_some_and(|round| *round > 0), "only the last second is at risk");
}

#[test]
fn a_file_is_renamed_over_another_when_its_bytes_are_durable() {
    let mut world = World::new(11);
    world.mount();
    let (_, old) = world.create("target");
    let (inode, handle) = world.create("new");
    world.write(old, 0, &b"old"[..]).expect("buffered");
    world.ask(Call::SyncAll).expect("durable");
    world.write(handle, 0, vec![7; 100_000]).expect("buffered");
    let rename = Call::Rename {
        from_parent: InodeId::ROOT,
        from_name: name("new"),
        to_parent: InodeId::ROOT,
        to_name: name("target"),
        mode: holdfast_wire::namespace::RenameMode::Replace,
    };
    let id = world.start(rename);
    world.run_until("the rename", |w| w.service.entries[&(InodeId::ROOT, name("target"))].0 == inode);
    assert_eq!(world.service.content(inode), [7; 100_000], "a crash now would leave neither");
    world.wait(id).expect("renamed");
}

#[test]
fn what_is_written_is_flushed_within_the_delay_without_being_asked() {
    let mut world = World::new(1);
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 100, &b"hello"[..]).expect("buffered");
    world.ask(Call::Release { handle }).expect("closed");
    assert!(world.service.chunks.is_empty());
    world.run_for(Duration::from_millis(1500));
    assert_eq!(world.service.content(inode), [&[0; 100][..], b"hello"].concat());
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.service.inodes[&inode].bound, 0, "the bound is given back after the last close");
    assert!(world.core.files.is_empty(), "nothing is remembered of a file that is closed and clean");
}

#[test]
fn a_stream_is_sent_while_it_is_written() {
    let mut world = World::new(2);
    world.mount();
    let (_, handle) = world.create("a");
    for i in 0..64 {
        world.write(handle, i * 128 * KIB, vec![i as u8; 128 * KIB as usize]).expect("buffered");
    }
    world.run_for(Duration::from_millis(100));
    assert_eq!(world.service.chunks.values().map(Vec::len).sum::<usize>() as u64, 8 * MIB);
}

#[test]
fn writers_wait_when_the_buffer_is_full_and_memory_stays_bounded() {
    let mut config = config();
    config.write_buffer_bytes = 4 * MIB;
    config.flush_bytes_in_flight = MIB;
    let mut world = World::with(3, config, Service::new());
    world.mount();
    let (inode, handle) = world.create("a");
    let data = random_bytes(&mut Prng::new(3), 40 * MIB);
    let calls: Vec<_> = (0..320)
        .map(|i| {
            let part = data.slice(i * 128 * KIB as usize..(i + 1) * 128 * KIB as usize);
            let offset = i as u64 * 128 * KIB;
            let id = world.start(Call::Write { handle, offset, data: part, clear_set_ids: false });
            assert!(world.core.buffered_bytes() <= 4 * MIB + 64 * KIB);
            id
        })
        .collect();
    assert!(calls.iter().any(|id| !world.completed.contains_key(id)), "somebody waits");
    for id in calls {
        world.wait(id).expect("written in the end");
    }
    world.ask(Call::Fsync { inode, data_only: true }).expect("durable");
    assert!(world.service.content(inode) == data);
    assert!(world.in_flight_max <= 2 * MIB, "{} bytes under way", world.in_flight_max);
    assert_eq!(world.core.buffered_bytes(), 0);
}

/// Random operations on one file against a vector of bytes, the network losing one message in eight.
#[test]
fn a_file_reads_as_a_vector_of_bytes_would() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed).fork(77);
        let mut config = config();
        config.read_cache_bytes = 256 * KIB;
        config.request_bytes = 64 * KIB;
        config.read_ahead_bytes = 256 * KIB;
        let mut world = World::with(seed, config, Service::new());
        world.mount();
        world.loss = if seed % 3 == 0 { 0 } else { 12 };
        let (inode, mut handle) = world.create("a");
        let mut model: Vec<u8> = Vec::new();
        for round in 0..150 {
            random_operation(&mut world, &mut prng, inode, &mut handle, &mut model);
            let size = world.stat(inode).size;
            assert_eq!(size, model.len() as u64, "seed {seed} round {round}: size");
        }
        world.loss = 0;
        let whole = world.read(handle, 0, 8 << 20).expect("read");
        assert!(whole == model, "seed {seed}: whole file");
        world.ask(Call::SyncAll).expect("durable");
        assert!(world.service.content(inode) == model, "seed {seed}: as others would see it");
    }
}

fn random_operation(
    world: &mut World,
    prng: &mut Prng,
    inode: InodeId,
    handle: &mut crate::HandleId,
    model: &mut Vec<u8>,
) {
    let offset = prng.below(600 * KIB);
    let length = [prng.between(1, 100), prng.between(1, 9000), prng.between(1, 200 * KIB)][prng.below(3) as usize];
    match prng.below(20) {
        0..8 => {
            let data = random_bytes(prng, length);
            world.write(*handle, offset, data.clone()).expect("write");
            let end = (offset + length) as usize;
            model.resize(model.len().max(end), 0);
            model[offset as usize..end].copy_from_slice(&data);
        }
        8..14 => {
            let got = world.read(*handle, offset, length as u32).expect("read");
            let end = model.len().min((offset + length) as usize);
            assert!(got == model[(offset as usize).min(end)..end], "read {offset}+{length} of {}", model.len());
        }
        14 => {
            let size = if prng.chance(1, 3) { 0 } else { prng.below(700 * KIB) };
            world.ask(truncate(inode, size)).expect("truncate");
            model.resize(size as usize, 0);
        }
        15 => {
            let mode = if prng.chance(1, 2) { ZeroMode::Extend } else { ZeroMode::KeepSize };
            assert_eq!(world.ask(Call::Zero { handle: *handle, offset, length, mode }), Ok(Reply::Done));
            let end = (offset + length) as usize;
            if mode == ZeroMode::Extend {
                model.resize(model.len().max(end), 0);
            }
            let end = end.min(model.len());
            model[(offset as usize).min(end)..end].fill(0);
        }
        16 => {
            world.ask(Call::Fsync { inode, data_only: prng.chance(1, 2) }).expect("fsync");
            assert!(world.service.content(inode) == *model, "durable and published");
        }
        17 => world.run_for(Duration::from_millis(prng.below(3000))),
        18 => {
            world.ask(Call::Release { handle: *handle }).expect("close");
            world.run_for(Duration::from_millis(prng.below(3000)));
            match world.ask(Call::Open { inode, mode: OpenMode::default() }) {
                Ok(Reply::Opened { handle: again, .. }) => *handle = again,
                other => panic!("open: {other:?}"),
            }
        }
        _ => {
            // Two overlapping writes at once: the later one wins, whatever the network does.
            let (first, second) = (random_bytes(prng, length), random_bytes(prng, length));
            let ids = [first, second.clone()]
                .map(|data| world.start(Call::Write { handle: *handle, offset, data, clear_set_ids: false }));
            let sync = world.start(Call::Fsync { inode, data_only: false });
            for id in ids {
                world.wait(id).expect("write");
            }
            world.wait(sync).expect("fsync");
            let end = (offset + length) as usize;
            model.resize(model.len().max(end), 0);
            model[offset as usize..end].copy_from_slice(&second);
        }
    }
}

#[test]
fn a_stream_is_read_ahead_and_the_rest_comes_from_memory() {
    let mut world = World::new(5);
    world.mount();
    let (inode, handle) = world.create("a");
    let data = random_bytes(&mut Prng::new(5), 16 * MIB);
    world.write(handle, 0, data.clone()).expect("write");
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    world.core.pages.clear();
    let mut waited = 0;
    for i in 0..128 {
        let id = world.start(Call::Read { handle, offset: i * 128 * KIB, length: 128 * 1024 });
        waited += u64::from(!world.completed.contains_key(&id));
        let at = (i * 128 * KIB) as usize;
        match world.wait(id) {
            Ok(Reply::Data(got)) => assert!(got.into_bytes() == data[at..at + 128 * 1024]),
            other => panic!("read: {other:?}"),
        }
        world.run_for(Duration::from_micros(900));
    }
    assert!(waited < 12, "{waited} of 128 reads of a stream waited");
    assert!(world.sent_chunks < 60, "{} requests for 32 MiB in and out", world.sent_chunks);
}

#[test]
fn damaged_bytes_are_never_returned() {
    let mut world = World::new(6);
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, vec![7; 5000]).expect("write");
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    world.core.pages.clear();
    world.service.damaged = 2;
    assert_eq!(world.read(handle, 0, 5000).expect("another copy is good"), [7; 5000]);
    world.core.pages.clear();
    world.service.damaged = 100;
    assert_eq!(world.read(handle, 0, 5000), Err(ClientError::Damaged));
}

/// A file whose buffered bytes found no room, and nobody has heard of it yet.
fn with_lost_bytes() -> (World, InodeId, HandleId) {
    let mut world = World::new(7);
    world.mount();
    let (inode, handle) = world.create("a");
    world.service.full = true;
    world.write(handle, 0, vec![1; 4096]).expect("buffered");
    world.run_for(Duration::from_secs(2));
    (world, inode, handle)
}

#[test]
fn what_a_write_hears_of_lost_bytes_is_told_to_whoever_synchronizes_as_well() {
    let (mut world, inode, handle) = with_lost_bytes();
    world.service.full = false;
    // The kernel makes several of one write(2); of this error it would make a short write, which is none to its caller.
    assert_eq!(world.write(handle, 4096, vec![1; 4096]), Err(ClientError::NoSpace));
    assert_eq!(world.write(handle, 4096, vec![1; 4096]), Err(ClientError::NoSpace));
    world.write(handle, 4096, vec![1; 4096]).expect("who asks no further goes on");
    assert_eq!(world.ask(Call::Fsync { inode, data_only: false }), Err(ClientError::NoSpace));
    assert_eq!(world.ask(Call::Fsync { inode, data_only: false }), Ok(Reply::Done));
}

#[test]
fn a_write_that_cannot_be_stored_is_reported_once() {
    let (mut world, inode, handle) = with_lost_bytes();
    assert_eq!(world.ask(Call::Flush { handle }), Err(ClientError::NoSpace));
    assert_eq!(world.ask(Call::Flush { handle }), Ok(Reply::Done));
    world.write(handle, 0, vec![2; 4096]).expect("buffered");
    assert_eq!(world.ask(Call::Fsync { inode, data_only: false }), Err(ClientError::NoSpace));
    // Whoever was interrupted, or synchronized all files, has not told the file's user.
    world.write(handle, 0, vec![2; 4096]).expect("buffered");
    let interrupted = world.start(Call::Fsync { inode, data_only: false });
    world.step(Input::Cancel { id: interrupted });
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.ask(Call::Flush { handle }), Err(ClientError::NoSpace));
    world.write(handle, 0, vec![2; 4096]).expect("buffered");
    assert_eq!(world.ask(Call::SyncAll), Err(ClientError::NoSpace));
    assert_eq!(world.ask(Call::Flush { handle }), Err(ClientError::NoSpace));
    world.service.full = false;
    world.write(handle, 0, vec![3; 4096]).expect("buffered");
    assert_eq!(world.ask(Call::Fsync { inode, data_only: false }), Ok(Reply::Done));
    assert_eq!(world.service.content(inode), [3; 4096]);
}

#[test]
fn a_time_that_was_set_is_not_overwritten_by_an_older_write() {
    let mut world = World::new(8);
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, vec![1; 10]).expect("buffered");
    let mtime = Timestamp { seconds: 5, nanos: 6 };
    let set = SetAttributes { mtime: Some(SetTime::At(mtime)), ..SetAttributes::default() };
    world.ask(Call::SetAttributes { inode, set }).expect("utimens");
    world.ask(Call::Release { handle }).expect("close");
    assert_eq!(world.stat(inode).mtime, mtime);
    world.run_for(Duration::from_secs(4));
    assert_eq!(world.service.content(inode), [1; 10]);
    assert_eq!(world.service.inodes[&inode].attributes.mtime, mtime);
}

#[test]
fn appends_go_to_the_end_one_after_the_other() {
    for caching in [true, false] {
        let mut service = Service::new();
        service.caching = caching;
        let mut world = World::with(9, config(), service);
        world.mount();
        let (inode, first) = world.create("a");
        let mode = OpenMode { append: true, ..OpenMode::default() };
        let Ok(Reply::Opened { handle, .. }) = world.ask(Call::Open { inode, mode }) else { panic!("open") };
        world.write(first, 0, &b"start:"[..]).expect("write");
        let ids: Vec<_> = (0..50u8)
            .map(|i| world.start(Call::Write { handle, offset: 0, data: vec![i; 7].into(), clear_set_ids: false }))
            .collect();
        for id in ids {
            world.wait(id).expect("append");
        }
        world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
        let content = world.service.content(inode);
        assert_eq!(content.len(), 6 + 50 * 7);
        let mut seen: Vec<u8> = content[6..].chunks(7).map(|c| c[0]).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<u8>>(), "no append lies over another");
    }
}

#[test]
fn a_new_primary_gets_what_the_old_one_did_not_answer() {
    let mut world = World::new(10);
    world.mount();
    let (inode, handle) = world.create("a");
    world.write(handle, 0, vec![1; 100_000]).expect("write");
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    world.service.publish_map(2);
    world.write(handle, 50_000, vec![2; 100_000]).expect("write");
    let started = world.now;
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    assert!(world.now.since(started) < Duration::from_secs(1), "a refusal leads to the new map at once");
    assert_eq!(world.service.content(inode), [vec![1; 50_000], vec![2; 100_000]].concat());
    let old = world.ask(Call::Lookup { parent: InodeId::ROOT, name: name("a") }).expect("there");
    assert!(matches!(old, Reply::Attributes(a) if a.size == 150_000));
}

#[test]
fn room_that_is_given_after_a_file_is_gone_keeps_nobody_from_leaving() {
    for seed in 0..40 {
        let mut world = World::new(seed);
        world.mount();
        world.loss = 40;
        let (inode, handle) = world.create("a");
        world.write(handle, 63 << 20, vec![1; 2 << 20]).expect("buffered");
        world.start(Call::Fsync { inode, data_only: false });
        world.ask(Call::Release { handle }).expect("close");
        world.ask(Call::Unlink { parent: InodeId::ROOT, name: name("a") }).expect("unlink");
        world.ask(Call::Unmount).expect("nothing is left to be done");
    }
}

#[test]
fn set_id_bits_that_are_set_after_a_write_stay_when_it_is_published() {
    let mut world = World::new(3);
    world.mount();
    let (inode, handle) = world.create("a");
    let set = |mode| SetAttributes { mode: Some(mode), ..SetAttributes::default() };
    let write = || Call::Write { handle, offset: 0, data: b"abc"[..].into(), clear_set_ids: true };
    world.ask(Call::SetAttributes { inode, set: set(0o4755) }).expect("set");
    world.ask(write()).expect("buffered");
    assert_eq!(world.stat(inode).mode, 0o755, "a write by somebody without privilege takes them");
    world.ask(Call::SetAttributes { inode, set: set(0o4711) }).expect("set again");
    assert_eq!(world.stat(inode).mode, 0o4711);
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    assert_eq!((world.stat(inode).mode, world.service.inodes[&inode].attributes.mode), (0o4711, 0o4711));
    // And the next write takes them again.
    world.ask(write()).expect("buffered");
    world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
    assert_eq!(world.service.inodes[&inode].attributes.mode, 0o711);
}
