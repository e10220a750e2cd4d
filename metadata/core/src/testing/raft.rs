//! Promises of the replicated log, on three servers.

use super::{World, create, envelope, outcome};
use crate::api::{Caller, Input, Limits};
use holdfast_types::{InodeId, ShardId};
use holdfast_wire::metadata::{MetadataError, Request};
use holdfast_wire::namespace::{NewNode, Outcome, Query};

const ROOT: InodeId = InodeId::ROOT;

fn small_logs() -> Limits {
    Limits {
        persist_tables_after: 8,
        log_kept: 4,
        snapshot_part_bytes: 512,
        snapshot_parts_in_flight: 2,
        ..Limits::default()
    }
}

#[test]
fn a_minority_of_servers_may_stop_at_any_time() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    for round in 0..6u64 {
        let leader = world.leader(ShardId::VOLUMES).unwrap();
        let dir = world.create(s, ROOT, &format!("d{round}"), NewNode::Directory);
        world.crash(leader, round);
        let file = world.create(s, dir.inode, "f", NewNode::File);
        assert_ne!(world.leader(ShardId::VOLUMES), Some(leader));
        assert_eq!(world.attributes(s, file.inode).links, 1);
        world.start(leader);
        world.run(40);
        world.check();
    }
    assert_eq!(world.attributes(s, ROOT).links, 8);
}

#[test]
fn a_server_that_leaves_hands_over_and_nobody_waits_for_an_election() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    for round in 0..6 {
        let shards = [ShardId::CLUSTER, ShardId::VOLUMES];
        let leader = world.leader(shards[round % 2]).unwrap();
        let mutation = world.mutation(s, create(ROOT, &format!("d{round}"), NewNode::Directory, false));
        let asked = world.leader(ShardId::VOLUMES).unwrap();
        let under_way = world.ask_as(asked, Caller::Client, mutation);
        world.step(leader, Input::Leave);
        world.deliver();
        // Others lead before the shortest wait for an election is over, and before anybody's time has passed.
        world.run(2);
        let leaders = shards.map(|shard| world.leader(shard));
        assert!(leaders.iter().all(|now| now.is_some_and(|now| now != leader)), "{leaders:?}");
        let told = world.answer(under_way).expect("told what came of it").result.clone();
        assert!(!matches!(told, Err(MetadataError::Namespace(_))), "{told:?}");
        world.crash(leader, round as u64);
        world.start(leader);
        world.run(40);
        world.check();
    }
}

#[test]
fn everything_may_stop_at_once() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let made = world.create(s, ROOT, "d", NewNode::Directory);
    for seed in 0..5 {
        (1..=3).for_each(|id| world.crash(id, seed * 10 + id));
        (1..=3).for_each(|id| world.start(id));
        assert_eq!(world.attributes(s, made.inode).links, 2);
        world.check();
    }
}

#[test]
fn a_leader_that_was_cut_off_serves_no_reads_and_commits_nothing() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let old = world.leader(ShardId::VOLUMES).unwrap();
    world.isolated.insert(old);
    let read = envelope(ShardId::VOLUMES, s, Request::Query(Query::GetAttributes { inode: ROOT }));
    let reading = world.ask_as(old, Caller::Client, read);
    let lost = world.mutation(s, create(ROOT, "lost", NewNode::File, false));
    let writing = world.ask_as(old, Caller::Client, lost);
    world.until("the others elect", |world| world.leader(ShardId::VOLUMES).is_some());
    world.create(s, ROOT, "kept", NewNode::File);
    world.run(40);
    assert!(!world.core(old).leads(ShardId::VOLUMES), "without a quorum it steps down");
    assert!(matches!(world.answer(reading).unwrap().result, Err(MetadataError::NotLeader { .. })));
    assert!(matches!(world.answer(writing).unwrap().result, Err(MetadataError::Unavailable { .. })));
    world.isolated.clear();
    world.run(40);
    let counters = world.core(old).counters();
    assert!(counters.leaderships_lost_in_flight > 0 && counters.suffixes_cut > 0, "{counters:?}");
    let listed = world.query(s, Query::ReadDirectory { inode: ROOT, after: 0, limit: 9, plus: false }).unwrap();
    assert!(matches!(listed, Outcome::Directory { entries, .. } if entries.len() == 1));
    world.check();
}

#[test]
fn a_server_far_behind_gets_a_snapshot() {
    let mut world = World::new(3, 3, |config| config.limits = small_logs());
    let (s, _) = world.attach();
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let behind = (1..=3).find(|id| *id != leader && world.leader(ShardId::CLUSTER) != Some(*id)).unwrap();
    for round in 0..3 {
        world.isolated.insert(behind);
        for n in 0..40 {
            world.create(s, ROOT, &format!("r{round}n{n}"), NewNode::File);
        }
        let before = world.core(behind).counters().snapshots_installed;
        if round == 1 {
            // It stops in the middle of the transfer: it goes on with what it had.
            world.isolated.clear();
            world.run(1);
            world.crash(behind, 3);
            world.start(behind);
        }
        world.isolated.clear();
        let last = world.core(leader).shards()[1].applied;
        world.until("it catches up", |world| world.core(behind).shards()[1].applied >= last);
        let counters = world.core(behind).counters();
        assert!(round == 1 || counters.snapshots_installed > before, "{counters:?}");
        world.crash(behind, round);
        world.start(behind);
        world.run(20);
        world.check();
    }
    assert!(world.core(leader).counters().logs_cut > 0);
}

#[test]
fn a_crash_between_installing_a_snapshot_and_the_log_is_found_at_the_start() {
    let mut world = World::new(3, 3, |config| config.limits = small_logs());
    let (s, _) = world.attach();
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let behind = (1..=3).find(|id| *id != leader && world.leader(ShardId::CLUSTER) != Some(*id)).unwrap();
    world.isolated.insert(behind);
    for n in 0..40 {
        world.create(s, ROOT, &format!("n{n}"), NewNode::File);
    }
    let disks = world.servers[&behind].disks.clone();
    world.isolated.clear();
    world.until("it has it", |world| world.core(behind).counters().snapshots_installed > 0);
    world.run(5);
    // The table as it is now, the log as it was before.
    let server = world.servers.get_mut(&behind).unwrap();
    server.core = None;
    (server.disks[1].entries, server.disks[1].base) = (disks[1].entries.clone(), disks[1].base);
    server.disks[1].hard_state = disks[1].hard_state;
    world.start(behind);
    world.create(s, ROOT, "more", NewNode::File);
    world.run(40);
    world.check();
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = || {
        let mut world = World::formed(3, 3);
        let (s, _) = world.attach();
        let leader = world.leader(ShardId::VOLUMES).unwrap();
        world.create(s, ROOT, "a", NewNode::File);
        world.crash(leader, 1);
        world.create(s, ROOT, "b", NewNode::File);
        world.start(leader);
        world.run(30);
        (world.ticks, world.requests, (1..=3).map(|id| world.core(id).counters()).collect::<Vec<_>>())
    };
    assert_eq!(trace(), trace());
}

#[test]
fn every_read_of_a_moment_shares_one_round() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let before = world.core(leader).counters();
    let read = || envelope(ShardId::VOLUMES, s, Request::Query(Query::GetAttributes { inode: ROOT }));
    let asked: Vec<u64> = (0..100).map(|_| world.ask_as(leader, Caller::Client, read())).collect();
    world.deliver();
    for request in asked {
        assert!(outcome(world.take(request).unwrap()).is_ok());
    }
    let after = world.core(leader).counters();
    assert_eq!(after.reads - before.reads, 100);
    assert!(after.read_rounds - before.read_rounds <= 3, "{}", after.read_rounds - before.read_rounds);
}

#[test]
fn a_server_that_finds_its_own_state_wrong_stops_and_names_the_entry() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let d = world.create(s, ROOT, "d", NewNode::Directory);
    // Somebody tampers with the table: the entry stays, its inode goes.
    let mut batch = holdfast_store::Batch::new();
    batch.remove(crate::tables::inode::key(holdfast_types::VolumeId(1), d.inode));
    holdfast_store::Table::commit(&world.table(1, ShardId::VOLUMES), batch).unwrap();
    let wrong = crate::invariants::check(ShardId::VOLUMES, &world.table(1, ShardId::VOLUMES)).unwrap();
    assert!(!wrong.is_empty(), "the checker sees it");
    let again = world.mutation(s, create(ROOT, "d", NewNode::File, false));
    let mut again = again;
    if let Request::Mutate(holdfast_wire::namespace::Mutation::Create { exclusive, .. }) = &mut again.request {
        *exclusive = false;
    }
    let request = world.ask_as(1, Caller::Client, again);
    world.run(5);
    assert!(matches!(world.answer(request).unwrap().result, Err(MetadataError::Unavailable { .. })));
    assert!(world.halted(1).unwrap().contains("missing"), "{:?}", world.halted(1));
    assert!(world.core(1).halted().unwrap().contains("shard1 at @"));
    assert!(world.core(1).leads(ShardId::CLUSTER), "the other shard goes on");
}

#[test]
fn others_lead_when_the_leader_has_halted_and_it_points_nobody_to_itself() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let d = world.create(s, ROOT, "d", NewNode::Directory);
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let mut batch = holdfast_store::Batch::new();
    batch.remove(crate::tables::inode::key(holdfast_types::VolumeId(1), d.inode));
    holdfast_store::Table::commit(&world.table(leader, ShardId::VOLUMES), batch).unwrap();
    let lookup = || Request::Query(Query::Lookup { parent: ROOT, name: super::name("d") });
    let mut hit = world.mutation(s, create(ROOT, "d", NewNode::File, false));
    if let Request::Mutate(holdfast_wire::namespace::Mutation::Create { exclusive, .. }) = &mut hit.request {
        *exclusive = false;
    }
    world.ask_as(leader, Caller::Client, hit);
    world.run(5);
    assert!(world.halted(leader).is_some());
    assert!(!world.core(leader).leads(ShardId::VOLUMES));
    let asked = world.ask_as(leader, Caller::Client, envelope(ShardId::VOLUMES, s, lookup()));
    assert_eq!(world.take(asked).unwrap().result, Err(MetadataError::NotLeader { hint: None }));
    world.until("another leads", |world| world.leader(ShardId::VOLUMES).is_some_and(|other| other != leader));
    assert!(matches!(
        world.query(s, Query::Lookup { parent: ROOT, name: super::name("d") }),
        Ok(Outcome::Entry { .. })
    ));
}

#[test]
fn who_cannot_lead_one_shard_lets_go_of_the_other_and_the_cluster_does_all_its_work() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let volumes = world.leader(ShardId::VOLUMES).unwrap();
    // Shard 0 halts on the server that leads shard 1, be it a follower or the leader there.
    let core = world.servers.get_mut(&volumes).unwrap().core.as_mut().unwrap();
    core.cluster.halt(holdfast_types::LogIndex(1), "its disk is full".into());
    world.until("another leads the volumes", |world| {
        world.leader(ShardId::VOLUMES).is_some_and(|other| other != volumes)
            && world.leader(ShardId::CLUSTER).is_some_and(|other| other != volumes)
    });
    assert!(world.core(volumes).halted().is_some());
    world.create(s, ROOT, "after", NewNode::File);
    // What needs both: the end of a session is fenced in shard 0 and then forgotten in shard 1.
    world.call(ShardId::VOLUMES, s, Request::Detach).unwrap();
    assert!(world.attach().1, "alone again");
}
