//! What a primary refuses, and what it costs to do nothing.

use super::authority::{DISK, VOLUME};
use crate::api::{Config, Effect, Input, Limits, Mutations};
use crate::local::{LocalCommand, LocalError, LocalOutcome};
use crate::node::StorageCore;
use bytes::Bytes;
use holdfast_types::checksum::piece_sums;
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::{
    ChunkIndex, ChunkKey, Epoch, Generation, GroupId, Incarnation, InodeId, Instant, MapVersion, MemberId, NodeId,
    Sequence, SessionId, SnapshotNumber, Term, VolumeId,
};
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp, ChunkRequest, Refusal};
use holdfast_wire::map::{ClusterMap, MapDelta, MapUpdate, SessionGrant, View};
use std::time::Duration;

const NOW: Instant = Instant(1_000_000_000);

fn map(groups: u32) -> ClusterMap {
    let me = MemberId { node: NodeId(1), disk: DISK, incarnation: Incarnation(4) };
    let view = View { epoch: Epoch(2), primary: me, in_sync: vec![me], syncing: vec![] };
    let mut map = ClusterMap {
        version: MapVersion(9),
        replicas: 1,
        min_in_sync: 1,
        views: vec![view; groups as usize],
        session_newest: SessionId(5),
        ..ClusterMap::default()
    };
    map.sessions.insert(SessionId(3), SessionGrant { volume: VOLUME, read_only: false });
    map.sessions.insert(SessionId(4), SessionGrant { volume: VOLUME, read_only: true });
    map
}

fn core(limits: Limits) -> StorageCore {
    let disks = vec![(DISK, Incarnation(4))];
    let (mutations, scrubbed) = (Mutations::default(), Vec::new());
    let config = Config { node: NodeId(1), disks, seed: 0, mutations, limits, scrubbed };
    StorageCore::new(config, Vec::new(), NOW)
}

/// A core that serves one group alone.
fn serving(limits: Limits) -> StorageCore {
    let mut core = core(limits);
    step(&mut core, Input::LeaderHeard { sent_at: NOW });
    let effects = step(&mut core, Input::Map(MapUpdate::Full(Box::new(map(1)))));
    finish(&mut core, effects);
    assert_eq!(core.primary_of().collect::<Vec<_>>(), [(GroupId(0), true)]);
    core
}

fn step(core: &mut StorageCore, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    core.step(NOW, input, &mut effects);
    crate::invariants::check(core);
    effects
}

/// Finishes what the disk was given, as an empty disk would.
fn finish(core: &mut StorageCore, effects: Vec<Effect>) -> Vec<Effect> {
    let mut rest = Vec::new();
    for effect in effects {
        let Effect::Local { ticket, command, .. } = effect else {
            rest.push(effect);
            continue;
        };
        let outcome = match command {
            LocalCommand::Apply(_) => LocalOutcome::Applied,
            LocalCommand::ChangesAbove { .. } => LocalOutcome::Changes { changed: vec![] },
            LocalCommand::Read { .. } => LocalOutcome::Data { bytes: Bytes::new(), sums: vec![] },
            other => panic!("{other:?} was not expected"),
        };
        rest.extend(step(core, Input::LocalDone { ticket, result: Ok(outcome) }));
    }
    rest
}

fn chunk() -> ChunkKey {
    ChunkKey {
        volume: VOLUME,
        inode: InodeId(2),
        generation: Generation(0),
        index: ChunkIndex(0),
        born: SnapshotNumber(0),
    }
}

fn request(op: ChunkOp) -> ChunkRequest {
    ChunkRequest {
        session: SessionId(3),
        sequence: Sequence(1),
        floor: Sequence(0),
        map_min: MapVersion(0),
        term: Term(0),
        snapshot: SnapshotNumber(0),
        group: GroupId(0),
        epoch: Epoch(2),
        contended: false,
        repeated: false,
        op,
    }
}

fn write(offset: u32, bytes: &[u8]) -> (ChunkOp, Bytes) {
    (ChunkOp::Write { chunk: chunk(), offset, sums: piece_sums(offset, bytes) }, Bytes::copy_from_slice(bytes))
}

fn ask(core: &mut StorageCore, id: u64, request: ChunkRequest, payload: Bytes) -> Vec<Effect> {
    step(core, Input::Request { id, request, payload, deadline: NOW + Duration::from_secs(30) })
}

fn refusal(effects: &[Effect]) -> Refusal {
    let answers = effects.iter().filter_map(|effect| match effect {
        Effect::Answer { answer: ChunkAnswer::Refused(refusal), .. } => Some(refusal.clone()),
        _ => None,
    });
    let answers: Vec<Refusal> = answers.collect();
    assert_eq!(answers.len(), 1, "one refusal in {effects:?}");
    answers[0].clone()
}

#[test]
fn nothing_is_served_before_the_first_map() {
    let mut core = core(Limits::default());
    let (op, payload) = write(0, b"x");
    let effects = ask(&mut core, 1, request(op), payload);
    assert!(matches!(refusal(&effects), Refusal::NotServing { .. }));
    assert!(step(&mut core, Input::Tick).iter().any(|effect| matches!(effect, Effect::FetchMap { .. })));
}

#[test]
fn another_life_of_the_disk_serves_nothing() {
    let disks = vec![(DISK, Incarnation(5))];
    let (mutations, limits, scrubbed) = (Mutations::default(), Limits::default(), Vec::new());
    let config = Config { node: NodeId(1), disks, seed: 0, mutations, limits, scrubbed };
    let mut core = StorageCore::new(config, Vec::new(), NOW);
    step(&mut core, Input::Map(MapUpdate::Full(Box::new(map(1)))));
    let (op, payload) = write(0, b"x");
    let effects = ask(&mut core, 1, request(op), payload);
    assert!(matches!(refusal(&effects), Refusal::WrongEpoch { current: Epoch(0), .. }));
}

#[test]
fn requests_are_checked_before_they_touch_anything() {
    type Edit = fn(&mut ChunkRequest);
    let end = CHUNK_BYTES as u32;
    let (op, payload) = write(0, b"some bytes");
    let cases: Vec<(&str, Edit, ChunkOp, Bytes, Refusal)> = vec![
        (
            "older map",
            |r| r.map_min = MapVersion(10),
            op.clone(),
            payload.clone(),
            Refusal::OldMap { have: MapVersion(9) },
        ),
        (
            "newer session",
            |r| r.session = SessionId(6),
            op.clone(),
            payload.clone(),
            Refusal::OldMap { have: MapVersion(9) },
        ),
        ("ended session", |r| r.session = SessionId(2), op.clone(), payload.clone(), Refusal::SessionEnded),
        ("no session", |r| r.session = SessionId::NONE, op.clone(), payload.clone(), Refusal::Forbidden),
        ("read-only session", |r| r.session = SessionId(4), op.clone(), payload.clone(), Refusal::Forbidden),
        (
            "another volume",
            |_| {},
            ChunkOp::Cut { chunk: ChunkKey { volume: VolumeId(8), ..chunk() }, length: 1 },
            Bytes::new(),
            Refusal::Forbidden,
        ),
        ("a whole volume", |_| {}, ChunkOp::DeleteVolume { volume: VOLUME }, Bytes::new(), Refusal::Forbidden),
        ("another group", |r| r.group = GroupId(1), op.clone(), payload.clone(), Refusal::Malformed),
        ("no number", |r| r.sequence = Sequence(0), op.clone(), payload.clone(), Refusal::Malformed),
        ("below its own floor", |r| r.floor = Sequence(2), op.clone(), payload.clone(), Refusal::StaleSequence),
        ("other bytes", |_| {}, op.clone(), Bytes::from_static(b"some bytez"), Refusal::Damaged),
        ("beyond the chunk", |_| {}, write(end - 3, b"four").0, Bytes::from_static(b"four"), Refusal::Malformed),
        ("nothing to write", |_| {}, write(0, b"").0, Bytes::new(), Refusal::Malformed),
        (
            "cut beyond the chunk",
            |_| {},
            ChunkOp::Cut { chunk: chunk(), length: end + 1 },
            Bytes::new(),
            Refusal::Malformed,
        ),
        (
            "zero nothing",
            |_| {},
            ChunkOp::Zero { chunk: chunk(), offset: 0, length: 0 },
            Bytes::new(),
            Refusal::Malformed,
        ),
        (
            "read beyond",
            |_| {},
            ChunkOp::Read { chunk: chunk(), offset: end, length: 1 },
            Bytes::new(),
            Refusal::Malformed,
        ),
    ];
    for (name, edit, op, payload, want) in cases {
        let mut core = serving(Limits::default());
        let mut asked = request(op);
        edit(&mut asked);
        let effects = ask(&mut core, 1, asked, payload);
        assert_eq!(refusal(&effects), want, "{name}");
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Local { .. })), "{name} touched the disk");
        let fetches = effects.iter().any(|effect| matches!(effect, Effect::FetchMap { .. }));
        assert_eq!(fetches, matches!(want, Refusal::OldMap { .. }), "{name}");
    }
}

#[test]
fn the_services_own_session_may_delete_volumes() {
    let mut core = serving(Limits::default());
    let mut asked = request(ChunkOp::DeleteVolume { volume: VOLUME });
    asked.session = SessionId::SERVICE;
    let effects = ask(&mut core, 1, asked, Bytes::new());
    let effects = finish(&mut core, effects);
    assert!(effects.iter().any(|e| matches!(e, Effect::Answer { answer: ChunkAnswer::Done { .. }, .. })));
}

#[test]
fn a_late_copy_of_the_services_own_change_is_refused() {
    let mut core = serving(Limits::default());
    let mut asked = request(ChunkOp::Cut { chunk: chunk(), length: 1 });
    (asked.session, asked.sequence, asked.floor) = (SessionId::SERVICE, Sequence(8), Sequence(8));
    let effects = ask(&mut core, 1, asked.clone(), Bytes::new());
    finish(&mut core, effects);
    (asked.sequence, asked.floor) = (Sequence(7), Sequence(7));
    let effects = ask(&mut core, 2, asked, Bytes::new());
    assert_eq!(refusal(&effects), Refusal::StaleSequence);
}

#[test]
fn a_service_that_was_deposed_cuts_nothing_any_more() {
    let mut core = serving(Limits::default());
    let cut = |term: u64, sequence: u64| {
        let mut asked = request(ChunkOp::Cut { chunk: chunk(), length: 1 });
        (asked.session, asked.sequence, asked.floor) = (SessionId::SERVICE, Sequence(sequence), Sequence(sequence));
        asked.term = Term(term);
        asked
    };
    let effects = ask(&mut core, 1, cut(5, 1), Bytes::new());
    finish(&mut core, effects);
    // Somebody else leads. It has asked this node nothing yet, but the map says so.
    let delta = MapDelta { from: MapVersion(9), to: MapVersion(10), service_term: Term(6), ..MapDelta::default() };
    step(&mut core, Input::Map(MapUpdate::Delta(Box::new(delta))));
    let effects = ask(&mut core, 2, cut(5, 2), Bytes::new());
    assert_eq!(refusal(&effects), Refusal::StaleSequence);
    let effects = ask(&mut core, 3, cut(6, 3), Bytes::new());
    let effects = finish(&mut core, effects);
    assert!(effects.iter().any(|e| matches!(e, Effect::Answer { answer: ChunkAnswer::Done { .. }, .. })));
}

#[test]
fn what_is_open_is_bounded() {
    let mut core = serving(Limits { window_ops: 2, waiting_requests: 3, ..Limits::default() });
    let mut given = 0;
    for id in 1..=6 {
        let (op, payload) = write(id as u32, b"x");
        let mut asked = request(op);
        asked.sequence = Sequence(id);
        let effects = ask(&mut core, id, asked, payload);
        given += effects.iter().filter(|effect| matches!(effect, Effect::Local { .. })).count();
        if id == 6 {
            assert!(matches!(refusal(&effects), Refusal::NotServing { .. }), "two numbered, three waiting, no more");
        }
    }
    assert_eq!(given, 2);
}

#[test]
fn a_cancelled_request_without_a_number_is_gone_and_one_with_a_number_goes_on() {
    let mut core = serving(Limits { window_ops: 1, ..Limits::default() });
    let mut effects = Vec::new();
    for id in 1..=2 {
        let (op, payload) = write(0, b"x");
        let mut asked = request(op);
        asked.sequence = Sequence(id);
        effects.extend(ask(&mut core, id, asked, payload));
        effects.extend(step(&mut core, Input::Cancelled { id }));
    }
    let rest = finish(&mut core, effects);
    assert!(!rest.iter().any(|effect| matches!(effect, Effect::Answer { .. })), "nobody waits: {rest:?}");
    assert!(!rest.iter().any(|effect| matches!(effect, Effect::Local { .. })), "the second was never begun");
}

#[test]
fn a_copy_that_still_waits_when_a_later_change_comes_is_never_begun() {
    let mut core = serving(Limits { window_ops: 1, ..Limits::default() });
    let mut effects = Vec::new();
    for id in 1..=3 {
        let mut asked = request(ChunkOp::Zero { chunk: chunk(), offset: 0, length: 10 });
        asked.sequence = Sequence(id);
        effects = ask(&mut core, id, asked, Bytes::new());
    }
    assert!(matches!(effects[..], [Effect::Answer { id: 2, .. }]), "{effects:?}");
    assert_eq!(refusal(&effects), Refusal::StaleSequence);
}

#[test]
fn a_nearly_full_disk_takes_no_writes_but_deletes_and_cuts() {
    let mut core = serving(Limits::default());
    step(&mut core, Input::Space { disk: DISK, low: true });
    let (op, payload) = write(0, b"x");
    let effects = ask(&mut core, 1, request(op), payload);
    assert_eq!(refusal(&effects), Refusal::NoSpace);
    let mut asked = request(ChunkOp::Cut { chunk: chunk(), length: 0 });
    asked.sequence = Sequence(2);
    let effects = ask(&mut core, 2, asked, Bytes::new());
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Local { .. })));
}

#[test]
fn a_failed_disk_serves_nothing_more() {
    let mut core = serving(Limits::default());
    let (op, payload) = write(0, b"x");
    let effects = ask(&mut core, 1, request(op.clone()), payload.clone());
    let Some(Effect::Local { ticket, .. }) = effects.first() else { panic!("no change was given: {effects:?}") };
    let effects = step(&mut core, Input::LocalDone { ticket: *ticket, result: Err(LocalError::Failed) });
    assert_eq!(refusal(&effects), Refusal::Io);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::DiskFailed { .. })));
    let effects = ask(&mut core, 2, request(op), payload);
    assert_eq!(refusal(&effects), Refusal::Io);
}

#[test]
fn many_idle_groups_cost_nothing_when_time_passes() {
    let mut core = core(Limits::default());
    step(&mut core, Input::LeaderHeard { sent_at: NOW });
    let effects = step(&mut core, Input::Map(MapUpdate::Full(Box::new(map(256)))));
    finish(&mut core, effects);
    step(&mut core, Input::Tick);
    assert_eq!(core.book.active.len(), 0, "all 256 are at rest");
    assert!(step(&mut core, Input::Tick).is_empty());
}
