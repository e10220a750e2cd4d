//! The histories that section 12 of the design names, as far as storage nodes alone can tell them, and a few more.

use super::client::Outgoing;
use super::world::World;
use crate::api::{Input, Mutations};
use crate::local::KeyRange;
use holdfast_types::{ChunkIndex, ChunkKey, Epoch, Generation, GroupId, MapVersion, Sequence, SnapshotNumber, Term};
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp, ChunkRequest, Refusal};

pub(super) const G: GroupId = GroupId(0);

/// A world of one group, with one client that does only what it is told.
pub(super) fn quiet(seed: u64, nodes: usize, replicas: u32, mutations: Mutations) -> World {
    let mut world = World::new(seed, nodes, 1, replicas, mutations);
    let client = world.client(8);
    world.clients[client].manual = true;
    world.run(600);
    world
}

fn write(world: &mut World, index: u64, offset: u32, length: u32) {
    let mut out: Vec<Outgoing> = Vec::new();
    let chunk = world.clients[0].chunk(index);
    let now = world.now;
    world.clients[0].write(now, chunk, offset, length, &mut out);
    assert_eq!(out.len(), 1, "the client is free to write");
    world.send(0, out);
}

pub(super) fn written(world: &mut World, index: u64, offset: u32, length: u32) {
    write(world, index, offset, length);
    world.until("the write is acknowledged", 20_000, |w| w.clients[0].is_idle());
}

pub(super) fn read(world: &mut World, index: u64) {
    let mut out: Vec<Outgoing> = Vec::new();
    let chunk = world.clients[0].chunk(index);
    let now = world.now;
    let op = ChunkOp::Read { chunk, offset: 0, length: 20_000 };
    world.clients[0].begin(now, G, op, bytes::Bytes::new(), &mut out);
    world.send(0, out);
    world.until("the read is answered", 20_000, |w| w.clients[0].is_idle());
}

pub(super) fn primary(world: &World) -> usize {
    world.authority.map.views[0].primary.node.0 as usize - 1
}

pub(super) fn backups(world: &World) -> Vec<usize> {
    let view = &world.authority.map.views[0];
    view.in_sync.iter().filter(|m| **m != view.primary).map(|m| m.node.0 as usize - 1).collect()
}

pub(super) fn in_sync(world: &World) -> usize {
    world.authority.map.views[0].in_sync.len()
}

fn raw(world: &World, epoch: Epoch, op: ChunkOp) -> ChunkRequest {
    ChunkRequest {
        session: world.clients[0].session,
        sequence: Sequence(1_000_000),
        floor: Sequence(0),
        map_min: MapVersion(0),
        term: Term(0),
        snapshot: SnapshotNumber(0),
        group: G,
        epoch,
        contended: false,
        repeated: false,
        op,
    }
}

/// One member comes back and is promoted, nobody learns of it, and all others die: it holds what was acknowledged meanwhile.
fn promote_lose_the_reply_kill_the_rest(mutations: Mutations) {
    let mut world = quiet(3, 3, 3, mutations);
    written(&mut world, 0, 0, 5000);
    let (p, returning) = (primary(&world), backups(&world)[0]);
    world.crash(returning);
    world.until("it is taken out", 10_000, |w| in_sync(w) == 2);
    written(&mut world, 1, 0, 5000);
    world.run(300);
    world.start(returning);
    world.until("it is being caught up", 10_000, |w| !w.authority.map.views[0].syncing.is_empty());
    world.run(60);
    world.mapless.extend(0..3);
    world.clients[0].look(&world.authority.map);
    world.clients[0].keeps_map = true;
    world.lose_view_answers = true;
    world.until("it is promoted", 10_000, |w| in_sync(w) == 3);
    let epoch = world.nodes[p].core.as_ref().map(|core| core.map().views[0].epoch);
    assert!(epoch < Some(world.authority.map.views[0].epoch), "the primary has not learned it");
    world.nodes[returning].disk_hangs = true;
    let before = world.acknowledged;
    write(&mut world, 2, 100, 3000);
    world.run(1500);
    assert_eq!(world.acknowledged, before, "nothing is acknowledged without the member whose promotion was asked for");
    world.nodes[returning].disk_hangs = false;
    world.until("the write is acknowledged", 10_000, |w| w.clients[0].is_idle());
    for node in (0..3).filter(|n| *n != returning) {
        world.crash(node);
    }
    world.mapless.clear();
    world.clients[0].keeps_map = false;
    world.until("it is alone", 10_000, |w| in_sync(w) == 1 && primary(w) == returning);
    for index in 0..3 {
        read(&mut world, index);
    }
    world.settle();
}

#[test]
fn a_member_whose_promotion_was_asked_for_counts_until_the_outcome_is_known() {
    promote_lose_the_reply_kill_the_rest(Mutations::default());
}

#[test]
#[should_panic(expected = "acknowledged but not on")]
fn a_promotion_that_is_not_counted_is_noticed() {
    promote_lose_the_reply_kill_the_rest(Mutations { promotion_not_counted: true, ..Mutations::default() });
}

#[test]
fn a_reboot_within_one_heartbeat_is_another_member() {
    let mut world = quiet(5, 4, 3, Mutations::default());
    written(&mut world, 0, 0, 9000);
    let (rebooted, epoch) = (backups(&world)[0], world.authority.map.views[0].epoch);
    world.nodes[rebooted].disk_hangs = true; // What it gets now is not on its disk when it reboots.
    write(&mut world, 0, 3000, 9000);
    world.run(20);
    world.crash(rebooted);
    world.run(100);
    world.start(rebooted);
    assert_eq!(world.authority.map.views[0].epoch, epoch, "nobody has noticed yet");
    world.until("the write is acknowledged", 10_000, |w| w.clients[0].is_idle());
    assert!(world.authority.map.views[0].epoch > epoch, "its old life was taken out first");
    world.settle();
}

#[test]
fn the_same_count_in_two_epochs_names_two_operations() {
    let mut world = quiet(7, 4, 3, Mutations::default());
    written(&mut world, 0, 0, 9000);
    world.run(200);
    let (old, others) = (primary(&world), backups(&world));
    for other in 0..4 {
        if other != old {
            world.cut(old, other);
        }
    }
    write(&mut world, 0, 500, 700); // Only the old primary gets it.
    world.run(100);
    let lone = world.nodes[old].store.groups[&G].last;
    world.unled.insert(old);
    world.until("another is primary", 20_000, |w| others.contains(&primary(w)));
    world.until("the write is acknowledged", 20_000, |w| w.clients[0].is_idle());
    let next = world.nodes[primary(&world)].store.groups[&G].last;
    assert!(next.count == lone.count && next.epoch > lone.epoch, "{lone} and {next} share a count");
    written(&mut world, 1, 0, 100);
    world.settle();
}

/// A primary hears nothing of the map while another takes over and its client's session is fenced: it can neither read for anybody nor
/// change a byte anywhere that counts.
fn isolate_a_primary_from_metadata_only_and_fence(mutations: Mutations) {
    let mut world = quiet(9, 3, 3, mutations);
    written(&mut world, 0, 0, 4000);
    written(&mut world, 1, 0, 4000);
    let (old, others) = (primary(&world), backups(&world));
    let (epoch, session) = (world.authority.map.views[0].epoch, world.clients[0].session);
    world.unled.insert(old);
    world.until("another is primary", 10_000, |w| primary(w) != old);
    written(&mut world, 0, 0, 4000);
    world.fence(0);
    world.until("the fence is complete", 10_000, |w| w.fenced == 1);
    let (chunk, quiet) = (world.clients[0].chunk(0), world.clients[0].chunk(1));
    let ops = [ChunkOp::Read { chunk: quiet, offset: 0, length: 4000 }, ChunkOp::Cut { chunk, length: 10 }];
    let probes = ops.map(|op| {
        let mut request = raw(&world, epoch, op);
        request.session = session;
        world.probe(old, request, bytes::Bytes::new())
    });
    world.run(5_000);
    for probe in probes {
        match world.probes.get(&probe) {
            None | Some(ChunkAnswer::Refused(_)) => {}
            Some(other) => panic!("the old primary answered {other:?}"),
        }
    }
    for other in others {
        assert_eq!(world.nodes[other].store.content(G, chunk).len(), 4000, "a fenced session changed something");
    }
    world.settle();
}

#[test]
fn a_primary_cut_from_metadata_only_answers_nothing_once_another_took_over() {
    isolate_a_primary_from_metadata_only_and_fence(Mutations::default());
}

#[test]
#[should_panic(expected = "a fenced session changed something")]
fn an_old_epoch_that_is_accepted_is_noticed() {
    let mutations = Mutations { old_epoch_accepted: true, ..Mutations::default() };
    isolate_a_primary_from_metadata_only_and_fence(mutations);
}

#[test]
fn members_cut_from_their_primary_alone_go_on_without_it() {
    let mut world = quiet(10, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let (old, others) = (primary(&world), backups(&world));
    for other in &others {
        world.cut(old, *other);
    }
    world.authority.readmit = false;
    written(&mut world, 0, 2000, 4000);
    assert!(others.contains(&primary(&world)) && in_sync(&world) == 2, "{:?}", world.authority.map.views[0]);
    world.settle();
}

/// Nobody notices that the links are cut: members of a group that nobody writes to do not miss their primary.
#[test]
fn a_primary_that_is_cut_from_its_members_unnoticed_leaves_and_they_go_on() {
    for seed in 0..8 {
        let mut world = quiet(100 + seed, 3, 3, Mutations::default());
        written(&mut world, 0, 0, 4000);
        let (old, others) = (primary(&world), backups(&world));
        world.authority.readmit = false;
        for other in &others {
            world.mute.extend([(old, *other), (*other, old)]);
        }
        written(&mut world, 0, 2000, 4000);
        assert!(others.contains(&primary(&world)) && in_sync(&world) == 2, "{:?}", world.authority.map.views[0]);
        world.settle();
    }
}

#[test]
fn a_primary_without_peers_stops_when_the_metadata_leader_is_silent() {
    let mut world = quiet(11, 1, 1, Mutations::default());
    written(&mut world, 0, 0, 4000);
    world.authority.expire = false;
    world.unled.insert(0);
    world.run(3_600);
    let (chunk, epoch) = (world.clients[0].chunk(0), world.authority.map.views[0].epoch);
    let reading = raw(&world, epoch, ChunkOp::Read { chunk, offset: 0, length: 4000 });
    let cutting = raw(&world, epoch, ChunkOp::Cut { chunk, length: 10 });
    let probes = [reading, cutting].map(|request| world.probe(0, request, bytes::Bytes::new()));
    world.run(4_000);
    for probe in probes {
        let Some(ChunkAnswer::Refused(Refusal::NotServing { reason })) = world.probes.get(&probe) else {
            panic!("answered {:?}", world.probes.get(&probe));
        };
        assert!(reason.contains("leader"), "{reason}");
    }
    world.unled.clear();
    read(&mut world, 0);
    world.settle();
}

#[test]
fn writes_are_refused_while_a_backup_is_nearly_full_and_taken_as_soon_as_it_is_not() {
    for lost in [false, true] {
        let mut world = quiet(14, 3, 3, Mutations::default());
        let backup = backups(&world)[0];
        let disk = world.authority.map.views[0].primary.disk;
        written(&mut world, 0, 0, 4000);
        // It says so although nothing is written there.
        world.step(backup, Input::Space { disk, low: true });
        world.run(2_000);
        write(&mut world, 0, 0, 4000);
        world.until("the write is refused", 1_000, |w| w.clients[0].is_idle());
        assert_eq!(world.clients[0].refused, 1);
        if lost {
            // Nobody hears of it.
            let core = world.nodes[backup].core.as_mut().expect("runs");
            core.step(holdfast_types::Instant(world.now), Input::Space { disk, low: false }, &mut Vec::new());
            world.run(2_000);
        } else {
            world.step(backup, Input::Space { disk, low: false });
            world.run(50);
        }
        written(&mut world, 0, 0, 4000);
        assert_eq!(world.clients[0].refused, 1, "word lost: {lost}");
        world.settle();
    }
}

#[test]
fn a_fence_is_complete_only_when_the_sessions_operations_are_settled() {
    let mut world = quiet(13, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let (p, slow) = (primary(&world), backups(&world)[0]);
    world.nodes[slow].disk_hangs = true;
    write(&mut world, 0, 1000, 2000);
    world.run(50);
    let session = world.clients[0].session;
    world.fence(0);
    let version = world.authority.map.version;
    world.run(1_500);
    assert!(world.nodes[p].core.as_ref().is_some_and(|core| core.map_version() >= version), "it has the map");
    assert!(world.nodes[p].told < version.0 && world.fenced == 0, "an operation of the session is still open");
    world.nodes[slow].disk_hangs = false;
    world.until("the fence is complete", 5_000, |w| w.fenced == 1);
    let (chunk, epoch) = (world.clients[0].chunk(0), world.authority.map.views[0].epoch);
    let mut late = raw(&world, epoch, ChunkOp::Cut { chunk, length: 1 });
    late.session = session;
    let probe = world.probe(primary(&world), late, bytes::Bytes::new());
    world.until("the late request is answered", 5_000, |w| w.probes.contains_key(&probe));
    assert_eq!(world.probes[&probe], ChunkAnswer::Refused(Refusal::SessionEnded));
    world.settle();
}

#[test]
fn with_too_few_members_in_sync_writes_wait_and_say_why_while_reads_go_on() {
    let mut world = quiet(15, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let others = backups(&world);
    for node in &others {
        world.crash(*node);
    }
    world.until("one is left", 20_000, |w| in_sync(w) == 1);
    world.run(1_000);
    let (chunk, epoch) = (world.clients[0].chunk(0), world.authority.map.views[0].epoch);
    let mut request = raw(&world, epoch, ChunkOp::Cut { chunk, length: 1 });
    request.sequence = Sequence(1);
    let probe = world.probe(primary(&world), request, bytes::Bytes::new());
    read(&mut world, 0);
    world.until("the write is refused", 10_000, |w| w.probes.contains_key(&probe));
    let ChunkAnswer::Refused(Refusal::NotServing { reason }) = &world.probes[&probe] else {
        panic!("answered {:?}", world.probes[&probe]);
    };
    assert_eq!(reason, "1 members in sync, writes need 2");
    world.start(others[0]);
    world.until("two are in sync", 20_000, |w| in_sync(w) == 2);
    written(&mut world, 0, 0, 100);
    world.settle();
}

#[test]
fn a_write_under_way_is_not_acknowledged_when_too_few_members_are_left_to_hold_it() {
    let mut world = quiet(16, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let others = backups(&world);
    for node in &others {
        world.crash(*node);
    }
    let before = world.acknowledged;
    write(&mut world, 0, 100, 300);
    world.run(50);
    assert_eq!(in_sync(&world), 3, "it was numbered in the view with three");
    world.until("one is left", 20_000, |w| in_sync(w) == 1);
    world.run(3_000);
    assert_eq!(world.acknowledged, before, "one member alone holds it");
    world.start(others[0]);
    world.until("the write is acknowledged", 20_000, |w| w.clients[0].is_idle());
    assert!(in_sync(&world) >= 2);
    world.settle();
}

/// The promotion was granted and nobody knows; then the primary's own disk refuses a change, which makes it reconcile.
#[test]
fn a_member_whose_promotion_was_asked_for_counts_while_and_after_the_primary_reconciles() {
    let mut world = quiet(4, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 5000);
    let (p, returning) = (primary(&world), backups(&world)[0]);
    world.crash(returning);
    world.until("it is taken out", 10_000, |w| in_sync(w) == 2);
    world.run(300);
    world.start(returning);
    world.until("it is being caught up", 10_000, |w| !w.authority.map.views[0].syncing.is_empty());
    world.run(60);
    world.mapless.extend(0..3);
    world.clients[0].look(&world.authority.map);
    world.clients[0].keeps_map = true;
    world.lose_view_answers = true;
    world.until("it is promoted", 10_000, |w| in_sync(w) == 3);
    world.nodes[p].store.no_space = 1;
    let refused = world.clients[0].refused;
    write(&mut world, 1, 0, 3000);
    world.until("the change is refused", 10_000, |w| w.clients[0].refused > refused);
    world.nodes[returning].disk_hangs = true;
    let before = world.acknowledged;
    write(&mut world, 2, 100, 3000);
    world.run(1_500);
    assert_eq!(world.acknowledged, before, "nothing is acknowledged without it");
    world.nodes[returning].disk_hangs = false;
    world.until("the write is acknowledged", 10_000, |w| w.clients[0].is_idle());
    for node in (0..3).filter(|n| *n != returning) {
        world.crash(node);
    }
    world.mapless.clear();
    world.clients[0].keeps_map = false;
    world.until("it is alone", 10_000, |w| in_sync(w) == 1 && primary(w) == returning);
    read(&mut world, 2);
    world.settle();
}

#[test]
fn a_member_that_comes_back_gets_only_the_blocks_that_differ() {
    let mut world = quiet(17, 3, 3, Mutations::default());
    for index in 0..8 {
        written(&mut world, index, 0, 20_000);
    }
    let gone = backups(&world)[0];
    world.crash(gone);
    world.until("it is taken out", 20_000, |w| in_sync(w) == 2);
    written(&mut world, 3, 5000, 100);
    world.start(gone);
    let moved = world.moved;
    world.until("it is back", 20_000, |w| in_sync(w) == 3);
    world.run(500);
    assert!(world.moved - moved <= 4096, "{} bytes for a change of one block", world.moved - moved);
    world.settle();
}

#[test]
fn a_delete_that_only_one_member_has_done_is_found_by_the_next_primary() {
    let mut world = quiet(19, 4, 3, Mutations::default());
    for index in 0..4 {
        written(&mut world, index, 0, 6000);
    }
    world.run(200);
    let (old, others) = (primary(&world), backups(&world));
    world.cut(old, others[1]);
    world.nodes[old].disk_hangs = true;
    let mut out: Vec<Outgoing> = Vec::new();
    let op = ChunkOp::Delete {
        volume: super::authority::VOLUME,
        inode: world.clients[0].chunk(0).inode,
        generation: Generation(1),
        from: ChunkIndex(2),
    };
    let now = world.now;
    world.clients[0].begin(now, G, op, bytes::Bytes::new(), &mut out);
    world.send(0, out);
    world.run(100);
    assert_eq!(world.nodes[others[0]].store.chunks(G).len(), 2, "one backup has done it");
    assert_eq!(world.nodes[others[1]].store.chunks(G).len(), 4, "the other has not");
    world.crash(old);
    world.cut.clear();
    world.settle();
    assert_eq!(world.nodes[primary(&world)].store.chunks(G).len(), 2);
}

#[test]
fn a_late_copy_of_an_answered_change_is_refused() {
    let mut world = quiet(21, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let (chunk, epoch) = (world.clients[0].chunk(0), world.authority.map.views[0].epoch);
    // The floor arrives with any request, also with a read.
    let mut reading = raw(&world, epoch, ChunkOp::Read { chunk, offset: 0, length: 10 });
    (reading.sequence, reading.floor) = (Sequence(0), Sequence(50));
    let first = world.probe(primary(&world), reading, bytes::Bytes::new());
    world.until("the read is answered", 5_000, |w| w.probes.contains_key(&first));
    let mut late = raw(&world, epoch, ChunkOp::Cut { chunk, length: 1 });
    (late.sequence, late.floor) = (Sequence(49), Sequence(2));
    let second = world.probe(primary(&world), late, bytes::Bytes::new());
    world.until("the late copy is answered", 5_000, |w| w.probes.contains_key(&second));
    assert_eq!(world.probes[&second], ChunkAnswer::Refused(Refusal::StaleSequence));
}

#[test]
fn a_repetition_joins_the_operation_that_is_under_way() {
    let mut world = quiet(23, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let slow = backups(&world)[0];
    world.nodes[slow].disk_hangs = true;
    let (p, chunk, epoch) = (primary(&world), world.clients[0].chunk(0), world.authority.map.views[0].epoch);
    let request = raw(&world, epoch, ChunkOp::Zero { chunk, offset: 0, length: 10 });
    let first = world.probe(p, request.clone(), bytes::Bytes::new());
    world.run(50);
    let second = world.probe(p, request, bytes::Bytes::new());
    world.run(50);
    world.nodes[slow].disk_hangs = false;
    world.until("it is answered", 5_000, |w| w.probes.contains_key(&second));
    assert!(matches!(world.probes[&first], ChunkAnswer::Refused(Refusal::NotServing { .. })));
    let ChunkAnswer::Done { number } = world.probes[&second] else { panic!("not done") };
    world.run(200);
    assert_eq!(world.nodes[p].store.groups[&G].last, number, "it was done once");
}

#[test]
fn bytes_of_an_open_operation_are_read_only_after_it_is_settled() {
    let mut world = quiet(24, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let (p, slow) = (primary(&world), backups(&world)[0]);
    world.nodes[slow].disk_hangs = true;
    write(&mut world, 0, 1000, 1000);
    world.run(100);
    let (chunk, epoch) = (world.clients[0].chunk(0), world.authority.map.views[0].epoch);
    let mut ask = |offset| {
        let mut request = raw(&world, epoch, ChunkOp::Read { chunk, offset, length: 500 });
        request.sequence = Sequence(0);
        world.probe(p, request, bytes::Bytes::new())
    };
    let (touched, untouched) = (ask(1500), ask(0));
    world.run(300);
    assert!(world.probes.contains_key(&untouched), "other bytes are answered at once");
    assert!(!world.probes.contains_key(&touched), "these may be lost yet");
    world.nodes[slow].disk_hangs = false;
    world.until("the read is answered", 5_000, |w| w.probes.contains_key(&touched));
    world.settle();
}

#[test]
fn a_full_disk_at_the_primary_refuses_the_write_and_leaves_nothing_of_it() {
    let mut world = quiet(25, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 4000);
    let p = primary(&world);
    world.nodes[p].store.no_space = 1;
    write(&mut world, 0, 2000, 4000);
    world.until("it is refused", 10_000, |w| w.clients[0].is_idle());
    assert_eq!(world.clients[0].refused, 1);
    for node in 0..3 {
        assert_eq!(world.nodes[node].store.content(G, world.clients[0].chunk(0)).len(), 4000);
    }
    written(&mut world, 0, 3000, 4000);
    world.settle();
}

#[test]
fn all_members_restarted_go_on_from_any_of_them() {
    for seed in 0..20 {
        let mut world = quiet(1000 + seed, 3, 3, Mutations::default());
        for index in 0..4 {
            written(&mut world, index, 0, 9000);
        }
        write(&mut world, 0, 4000, 9000);
        write(&mut world, 1, 4000, 9000);
        let pause = world.prng.below(12);
        world.run(pause);
        for node in 0..3 {
            world.crash(node);
        }
        for node in 0..3 {
            world.start(node);
        }
        world.settle();
    }
}

#[test]
fn key_ranges_end_where_they_should() {
    let mut world = quiet(27, 1, 1, Mutations::default());
    written(&mut world, 1, 0, 100);
    let chunk: ChunkKey = world.clients[0].chunk(1);
    let tail = KeyRange::tail(chunk.volume, chunk.inode, chunk.generation, ChunkIndex(1));
    assert!(tail.contains(chunk) && !tail.contains(world.clients[0].chunk(0)));
    assert_eq!(KeyRange::chunk(chunk).after(chunk), None);
    assert_eq!(KeyRange::ALL.after(chunk).map(|rest| rest.contains(chunk)), Some(false));
    assert_eq!(KeyRange::ALL.after(KeyRange::ALL.last), None);
}

#[test]
fn a_late_copy_never_undoes_a_later_change_even_above_the_floor() {
    let mut world = quiet(29, 3, 3, Mutations::default());
    let (p, chunk, epoch) = (primary(&world), world.clients[0].chunk(0), world.authority.map.views[0].epoch);
    for (offset, sequence, stale) in [(0, 7, false), (0, 9, false), (5, 7, true), (50, 7, false)] {
        let mut request = raw(&world, epoch, ChunkOp::Zero { chunk, offset, length: 10 });
        (request.sequence, request.floor) = (Sequence(sequence), Sequence(3));
        let probe = world.probe(p, request, bytes::Bytes::new());
        world.until("it is answered", 5_000, |w| w.probes.contains_key(&probe));
        let refused = world.probes[&probe] == ChunkAnswer::Refused(Refusal::StaleSequence);
        assert_eq!(refused, stale, "#{sequence} at {offset}");
    }
}

/// Two sessions share a chunk. The answer to one's write is lost, another node becomes primary, the other session writes the same bytes,
/// and the first sends its write again.
#[test]
fn a_contended_change_whose_answer_was_lost_is_not_made_again_over_what_others_wrote() {
    let mut world = quiet(21, 3, 3, Mutations::default());
    let second = world.client(8);
    world.clients[second].manual = true;
    world.run(100);
    let old = primary(&world);
    let chunk = ChunkKey { inode: holdfast_types::InodeId(9_000), ..world.clients[0].chunk(0) };
    let sessions = [world.clients[0].session, world.clients[second].session];
    let put = |world: &mut World, session: usize, byte: u8, repeated: bool| {
        let bytes = bytes::Bytes::from(vec![byte; 6000]);
        let op = ChunkOp::Write { chunk, offset: 100, sums: holdfast_types::checksum::piece_sums(100, &bytes) };
        let epoch = world.authority.map.views[0].epoch;
        let request = ChunkRequest { contended: true, repeated, session: sessions[session], ..raw(world, epoch, op) };
        let probe = world.probe(primary(world), request, bytes);
        world.until("the write is answered", 10_000, |w| w.probes.contains_key(&probe));
        world.probes[&probe].clone()
    };
    assert!(matches!(put(&mut world, 0, 1, false), ChunkAnswer::Done { .. }));
    world.unled.insert(old);
    world.until("another is primary", 10_000, |w| primary(w) != old && in_sync(w) >= 2);
    world.run(500);
    assert!(matches!(put(&mut world, 1, 2, false), ChunkAnswer::Done { .. }));
    assert!(matches!(put(&mut world, 0, 1, true), ChunkAnswer::Done { .. }));
    let now = primary(&world);
    let content = world.nodes[now].store.content(G, chunk);
    assert!(content[100..].iter().all(|byte| *byte == 2), "the repetition undid what another session wrote");
    world.settle();
}
