//! The volume-grain rule of caching, and the life of sessions.

use super::{World, create, envelope, name};
use crate::api::{Caller, TICK, ticks};
use holdfast_types::limits::{DRIFT_MARGIN, SESSION_TTL};
use holdfast_types::size::MIB;
use holdfast_types::{Generation, InodeId, SessionId, ShardId};
use holdfast_wire::metadata::{ClientRecord, Event, MetadataError, Request, Response};
use holdfast_wire::namespace::{Labels, Limits, Mutation, NewNode, Outcome, VolumeRecord};
use std::time::Duration;

const ROOT: InodeId = InodeId::ROOT;
const VOLUMES: ShardId = ShardId::VOLUMES;

pub(super) fn attach_request(volume: &VolumeRecord, client: ClientRecord) -> Request {
    Request::Attach { volume: volume.clone(), client, read_only: false }
}

pub(super) fn renew(
    world: &mut World,
    session: SessionId,
    seen: u64,
) -> Result<(Vec<(u64, Event)>, bool), MetadataError> {
    match world.call(VOLUMES, session, Request::Renew { seen, wait: false })? {
        Response::Renewed { events, caching, .. } => Ok((events, caching)),
        other => panic!("{other:?}"),
    }
}

/// Begins to attach a second session at the leader; returns it and the request's number.
fn begin_attach(world: &mut World, patience: Duration) -> (SessionId, u64) {
    let (session, volume) = world.open(ClientRecord::default());
    let leader = world.leader(VOLUMES).unwrap();
    let request = envelope(VOLUMES, session, attach_request(&volume, ClientRecord::default()));
    (session, world.ask_until(leader, Caller::Client, request, patience))
}

#[test]
fn a_second_session_waits_until_the_first_has_stopped_caching() {
    let mut world = World::formed(3, 3);
    let (first, caching) = world.attach();
    assert!(caching);
    let f = world.create(first, ROOT, "f", NewNode::File).inode;
    // A renewal waits for news.
    let leader = world.leader(VOLUMES).unwrap();
    let waiting = envelope(VOLUMES, first, Request::Renew { seen: 0, wait: true });
    let waiting = world.ask_until(leader, Caller::Client, waiting, Duration::from_secs(60));
    let (second, request) = begin_attach(&mut world, Duration::from_secs(120));
    world.run(4);
    let news = world.take(waiting).expect("told at once").result;
    let Ok(Response::Renewed { events, caching: false, .. }) = news else { panic!("{news:?}") };
    assert_eq!(events, [(1, Event::StopCaching)]);
    // It takes its time, but it lives.
    for _ in 0..10 {
        world.run(ticks(SESSION_TTL) / 3);
        assert_eq!(renew(&mut world, first, 1).unwrap(), (vec![], false));
        assert!(world.answer(request).is_none());
    }
    assert!(renew(&mut world, first, 0).unwrap().0 == [(1, Event::StopCaching)], "told again if it was not heard");
    world.call(VOLUMES, first, Request::StoppedCaching { event: 1, open: vec![f] }).unwrap();
    world.run(4);
    let Ok(Response::Attached { caching, .. }) = world.take(request).expect("attached").result else { panic!() };
    assert!(!caching);
    // What the first has open is known now.
    let unlink = Mutation::Unlink { parent: ROOT, name: name("f"), open: None };
    assert!(matches!(world.mutate(second, unlink), Ok(Outcome::Removed { orphan: true, .. })));
    world.check();
    // One is left: it may cache again, and what it has open is its own affair but for the orphan.
    world.call(VOLUMES, second, Request::Detach).unwrap();
    world.run(10);
    assert_eq!(renew(&mut world, first, 1).unwrap(), (vec![(2, Event::StartCaching)], true));
    world.mutate(first, Mutation::Close { inode: f }).unwrap();
    world.check();
}

/// Two sessions of a volume, neither of which caches.
pub(super) fn two_sessions(world: &mut World) -> (SessionId, SessionId) {
    let (first, _) = world.attach();
    let (second, request) = begin_attach(world, Duration::from_secs(120));
    world.run(4);
    world.call(VOLUMES, first, Request::StoppedCaching { event: 1, open: vec![] }).unwrap();
    world.until("attached", |world| world.answer(request).is_some());
    (first, second)
}

fn reserve(inode: InodeId, bound: u64) -> Mutation {
    Mutation::Reserve { inode, generation: Generation(1), bound, least: bound }
}

fn publish(inode: InodeId, size: u64, release: bool) -> Mutation {
    let mtime = holdfast_types::Timestamp::default();
    Mutation::Publish { inode, generation: Generation(1), size, mtime, release, clear_set_ids: false, sparse: false }
}

#[test]
fn one_session_at_a_time_writes_at_the_end_of_a_shared_file() {
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    let f = world.create(first, ROOT, "f", NewNode::File).inode;
    world.mutate(first, reserve(f, 10)).unwrap();
    // The first is in the middle of its turn: the second's answer comes when that is over, and says where the end is then.
    let leader = world.leader(VOLUMES).unwrap();
    let request = world.mutation(second, reserve(f, 5));
    let waiting = world.ask_until(leader, Caller::Client, request, Duration::from_secs(60));
    world.run(10);
    assert!(world.answer(waiting).is_none(), "two write at the same place");
    world.mutate(first, publish(f, 10, false)).unwrap();
    world.until("the second's turn", |world| world.answer(waiting).is_some());
    let Ok(Response::Outcome(Outcome::Attributes { attributes, .. })) = world.take(waiting).unwrap().result else {
        panic!()
    };
    assert_eq!((attributes.size, attributes.size_bound), (10, 5), "it knows the end, and asks for more");
    world.mutate(second, reserve(f, 15)).unwrap();
    // It falls silent in the middle of its turn: whoever waits for the end of the file does not wait for a day.
    let request = world.mutation(first, reserve(f, 30));
    let waiting = world.ask_until(leader, Caller::Client, request, Duration::from_secs(60));
    for _ in 0..40 {
        world.run(ticks(SESSION_TTL) / 10);
        let _ = renew(&mut world, first, 1);
        if world.answer(waiting).is_some() {
            break;
        }
    }
    let Ok(Response::Outcome(Outcome::Attributes { attributes, .. })) = world.take(waiting).expect("its turn").result
    else {
        panic!()
    };
    assert_eq!((attributes.size, attributes.size_bound), (10, 30));
    assert!(matches!(renew(&mut world, second, 0), Err(MetadataError::SessionEnded { .. })));
    world.check();
}

#[test]
fn a_silent_holder_is_fenced_and_a_new_leader_starts_every_timer_afresh() {
    let mut world = World::formed(3, 3);
    let (first, _) = world.attach();
    let f = world.create(first, ROOT, "f", NewNode::File).inode;
    world.mutate(first, Mutation::Open { inode: f }).unwrap();
    let begin = world.now;
    let (_, request) = begin_attach(&mut world, Duration::from_secs(120));
    let patience = ticks(SESSION_TTL) + ticks(DRIFT_MARGIN);
    world.run(patience - 20);
    assert!(world.answer(request).is_none());
    // The leader goes: the next one gives the holder all its time again.
    let leader = world.leader(VOLUMES).unwrap();
    world.crash(leader, 1);
    world.until("another leads", |world| world.leader(VOLUMES).is_some_and(|other| other != leader));
    world.start(leader);
    let (second, request) = begin_attach(&mut world, Duration::from_secs(120));
    let again = world.now;
    world.until("attached", |world| world.answer(request).is_some());
    let waited = world.now.since(again);
    assert!(
        waited + TICK * 4 >= SESSION_TTL + DRIFT_MARGIN - TICK * 30 && waited < Duration::from_secs(13),
        "{waited:?}"
    );
    assert!(world.now.since(begin) > SESSION_TTL + SESSION_TTL / 2);
    // The first is over, everywhere.
    let over = world.mutate(first, create(ROOT, "g", NewNode::File, false));
    assert!(matches!(over, Err(MetadataError::SessionEnded { .. })));
    assert!(matches!(renew(&mut world, first, 0), Err(MetadataError::SessionEnded { .. })));
    let cluster = world.leader(ShardId::CLUSTER).unwrap();
    let live = world.core(cluster).map().sessions;
    assert!(live.contains_key(&second) && !live.contains_key(&first));
    // What it had open is not any more.
    let unlink = Mutation::Unlink { parent: ROOT, name: name("f"), open: None };
    assert!(matches!(world.mutate(second, unlink), Ok(Outcome::Removed { orphan: false, .. })));
    world.check();
}

#[test]
fn what_an_ended_session_may_have_written_beyond_the_end_goes() {
    let mut world = World::formed(3, 3);
    let (first, _) = world.attach();
    let Ok(Outcome::Created { attributes: f, .. }) = world.mutate(first, create(ROOT, "f", NewNode::File, true)) else {
        panic!()
    };
    let publish = Mutation::Publish {
        inode: f.inode,
        generation: Generation(1),
        size: MIB,
        mtime: f.mtime,
        release: false,
        clear_set_ids: false,
        sparse: false,
    };
    world.mutate(first, publish).unwrap();
    world.call(VOLUMES, first, Request::Detach).unwrap();
    let (second, caching) = world.attach();
    assert!(caching);
    let reserve = Mutation::Reserve { inode: f.inode, generation: Generation(1), bound: 2 * MIB, least: 2 * MIB };
    world.mutate(second, reserve).unwrap();
    let now = world.attributes(second, f.inode);
    assert_eq!((now.size, now.trim_from, now.size_bound), (MIB, None, 2 * MIB));
    use holdfast_wire::chunk::ChunkOp;
    assert!(world.chunks.iter().any(|c| matches!(c.op, ChunkOp::Cut { length, .. } if u64::from(length) == MIB)));
    world.check();
}

#[test]
fn what_an_ended_session_left_beyond_the_end_never_shows_when_another_makes_the_file_longer() {
    use holdfast_wire::chunk::ChunkOp;
    use holdfast_wire::namespace::SetAttributes;
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    let f = world.create(first, ROOT, "f", NewNode::File).inode;
    // The second has had its turn, and keeps a bound that allows nothing more; the first ends in the middle of its own.
    world.mutate(second, reserve(f, 10)).unwrap();
    world.mutate(second, publish(f, 10, false)).unwrap();
    world.mutate(first, reserve(f, 500)).unwrap();
    world.chunks_stuck = true;
    world.call(VOLUMES, first, Request::Detach).unwrap();
    world.run(10);
    let set = SetAttributes { size: Some(200), ..SetAttributes::default() };
    world.mutate(second, Mutation::SetAttributes { inode: f, set }).unwrap();
    let now = world.attributes(second, f);
    assert_eq!((now.size, now.trim_from), (200, Some(10)), "from where the first may have written");
    assert!(world.chunks.iter().any(|c| matches!(c.op, ChunkOp::Cut { length: 10, .. })));
    world.check();
}

/// A bound is taken back by another session's truncation while a write under it may be under way: the trim may come first.
#[test]
fn what_is_written_late_under_a_bound_that_was_taken_back_never_shows() {
    use holdfast_wire::namespace::SetAttributes;
    let truncate = |inode, size| {
        let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
        Mutation::SetAttributes { inode, set }
    };
    let taken_back = || {
        let mut world = World::formed(3, 3);
        let (first, second) = two_sessions(&mut world);
        let f = world.create(first, ROOT, "f", NewNode::File).inode;
        world.mutate(first, reserve(f, 500)).unwrap();
        world.mutate(second, truncate(f, 5)).unwrap();
        world.until("trimmed", |world| world.attributes(second, f).trim_from.is_none());
        (world, first, second, f)
    };
    for ends in [false, true] {
        let (mut world, first, second, f) = taken_back();
        let now = world.attributes(first, f);
        assert_eq!((now.size, now.size_bound), (5, 0));
        world.check();
        world.chunks_stuck = true;
        if ends {
            world.call(VOLUMES, first, Request::Detach).unwrap();
            world.run(10);
        } else {
            // Its own truncation makes the file longer, and shorter than what it wrote.
            world.mutate(first, truncate(f, 200)).unwrap();
        }
        let now = world.attributes(second, f);
        let size = if ends { 5 } else { 200 };
        assert_eq!((now.size, now.trim_from), (size, Some(size)));
        world.check();
    }
    // Once it says that all it wrote is within the size, nothing is owed any more.
    let (mut world, first, second, f) = taken_back();
    world.mutate(first, publish(f, 0, true)).unwrap();
    world.mutate(second, truncate(f, 200)).unwrap();
    assert_eq!(world.attributes(second, f).trim_from, None);
    world.check();
}

#[test]
fn a_leader_removes_chunks_only_when_the_map_says_that_it_leads() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    for round in 0..2 {
        world.chunks.clear();
        let text = format!("f{round}");
        let Ok(Outcome::Created { attributes: f, .. }) = world.mutate(s, create(ROOT, &text, NewNode::File, true))
        else {
            panic!()
        };
        world.mutate(s, publish(f.inode, MIB, true)).unwrap();
        world.mutate(s, Mutation::Unlink { parent: ROOT, name: name(&text), open: None }).unwrap();
        world.until("its chunks go", |world| !world.chunks.is_empty());
        let leader = world.leader(VOLUMES).unwrap();
        let term = world.core(leader).shards()[1].term;
        let map = world.core(world.leader(ShardId::CLUSTER).unwrap()).map();
        assert_eq!(map.service_term, term);
        assert!(world.chunks.iter().all(|chunk| chunk.term == term && chunk.map_min <= map.version));
        // Whoever serves it has a map that refuses every earlier leader.
        let said = world.core(leader).counters().chunk_requests;
        assert!(said > 0 && world.chunks.iter().all(|chunk| chunk.map_min.0 > 0));
        world.crash(leader, round);
        world.until("another leads", |world| world.leader(VOLUMES).is_some_and(|other| other != leader));
        world.start(leader);
    }
    world.check();
}

#[test]
fn a_mount_that_was_killed_does_not_keep_the_other_from_caching() {
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    let alone = |world: &mut World, seconds: u64| {
        for _ in 0..seconds / 2 {
            world.run(ticks(Duration::from_secs(2)));
            renew(world, first, 1).unwrap();
        }
    };
    // A cut network keeps the second silent for minutes. Nobody has replaced it: it goes on as if nothing had been.
    alone(&mut world, 240);
    assert!(!renew(&mut world, first, 1).unwrap().1);
    assert!(matches!(renew(&mut world, second, 0), Ok((_, false))));
    world.create(second, ROOT, "f", NewNode::File);
    // And then it is never heard again; nobody mounts anew.
    alone(&mut world, 240);
    assert!(!renew(&mut world, first, 1).unwrap().1, "its minutes are counted afresh");
    alone(&mut world, 120);
    assert!(renew(&mut world, first, 1).unwrap().1, "it is alone, and caches");
    assert!(matches!(renew(&mut world, second, 0), Err(MetadataError::SessionEnded { .. })));
    world.check();
}

#[test]
fn two_that_are_silent_together_lose_nothing() {
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    world.run(ticks(SESSION_TTL) * 5);
    // Both come back, one a little later than the other.
    for session in [first, second] {
        let leader = world.leader(VOLUMES).unwrap();
        let request = envelope(VOLUMES, session, Request::Renew { seen: 1, wait: false });
        world.ask_as(leader, Caller::Client, request);
        world.run(ticks(SESSION_TTL) / 2);
    }
    assert_eq!(renew(&mut world, first, 1).unwrap(), (vec![], false));
    assert_eq!(renew(&mut world, second, 1).unwrap(), (vec![], false));
    world.check();
}

#[test]
fn sessions_that_never_attach_leave_no_more_than_a_bounded_trace() {
    let mut world = World::new(1, 1, |config| config.replicas = 1);
    let (s, _) = world.attach();
    let leader = world.leader(VOLUMES).unwrap();
    for from in (0..3000).step_by(500) {
        let ended = (from..from + 500).map(|n| (SessionId(1_000_000 + n), "never attached".to_owned())).collect();
        world.command(leader, crate::command::VolumesCommand::End { sessions: ended });
        world.run(2);
    }
    let table = world.table(leader, VOLUMES);
    let rows = holdfast_store::View::range(&table, holdfast_store::KeyRange::prefix(vec![0x10])).count();
    assert!((1000..1100).contains(&rows), "{rows}");
    world.create(s, ROOT, "f", NewNode::File);
    world.check();
}

#[test]
fn what_is_open_when_caching_begins_is_not_purged_by_an_unlink_sent_before() {
    let mut world = World::formed(3, 3);
    let (first, second) = two_sessions(&mut world);
    let f = world.create(first, ROOT, "f", NewNode::File).inode;
    world.mutate(first, Mutation::Open { inode: f }).unwrap();
    world.call(VOLUMES, second, Request::Detach).unwrap();
    world.run(10);
    // It does not know yet that it caches: what is open is on record, it believes, and is not named.
    let unlink = Mutation::Unlink { parent: ROOT, name: name("f"), open: None };
    assert!(matches!(world.mutate(first, unlink), Ok(Outcome::Removed { orphan: true, .. })));
    world.mutate(first, Mutation::Close { inode: f }).unwrap();
    assert!(world.query(first, holdfast_wire::namespace::Query::GetAttributes { inode: f }).is_err());
    world.check();
}

#[test]
fn silence_alone_costs_nothing() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    world.run(ticks(Duration::from_secs(60)));
    assert!(matches!(renew(&mut world, s, 0), Ok((events, true)) if events.is_empty()));
    world.create(s, ROOT, "f", NewNode::File);
    // Silent and parked again: whoever comes then does not wait.
    world.run(ticks(Duration::from_secs(60)));
    let begin = world.now;
    let (_, caching) = world.attach();
    assert!(caching && world.now.since(begin) < Duration::from_secs(2));
    world.check();
}

#[test]
fn opening_a_session_twice_finds_the_first() {
    let mut world = World::formed(3, 3);
    let open =
        Request::OpenSession { volume: "main".into(), client: ClientRecord::default(), read_only: false, nonce: 5 };
    let first = world.call(ShardId::CLUSTER, SessionId::NONE, open.clone()).unwrap();
    assert_eq!(world.call(ShardId::CLUSTER, SessionId::NONE, open).unwrap(), first);
    let Response::SessionOpened { session, .. } = first else { panic!() };
    // Opened and never attached: it does not stay for ever.
    world.until("it is forgotten", |world| {
        world.tick();
        let leader = world.leader(ShardId::CLUSTER).unwrap();
        !world.core(leader).map().sessions.contains_key(&session)
    });
}

#[test]
fn a_deleted_volume_leaves_nothing_behind() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    for n in 0..20 {
        world.create(s, ROOT, &format!("f{n}"), NewNode::File);
    }
    let delete = || Request::DeleteVolume { name: "main".into() };
    let busy = world.call(ShardId::CLUSTER, SessionId::NONE, delete());
    assert_eq!(busy, Err(MetadataError::Busy { name: "main".into(), sessions: 1 }));
    world.call(VOLUMES, s, Request::Detach).unwrap();
    world.call(ShardId::CLUSTER, SessionId::NONE, delete()).unwrap();
    let create = Request::CreateVolume { name: "main".into(), limits: Limits::default(), labels: Labels::new() };
    world.call(ShardId::CLUSTER, SessionId::NONE, create).unwrap();
    world.until("its chunks go", |world| {
        use holdfast_wire::chunk::ChunkOp;
        world.chunks.iter().filter(|c| matches!(c.op, ChunkOp::DeleteVolume { .. })).count() == 8
    });
    world.run(20);
    let table = world.table(1, VOLUMES);
    let left = |prefix: u8| holdfast_store::View::range(&table, holdfast_store::KeyRange::prefix(vec![prefix])).count();
    assert_eq!((left(1), left(2), left(3), left(0x0c)), (0, 0, 0, 0));
    let (_, caching) = world.attach();
    assert!(caching, "the new volume of that name is empty and usable");
    world.check();
}
