//! Slow disks, bad networks, servers that stop: what was acknowledged stays, and once only. By seed.

use super::{World, create, envelope};
use crate::api::{Caller, Limits};
use crate::tables::cluster::ServerRow;
use holdfast_types::prng::Prng;
use holdfast_types::{InodeId, ServerId, SessionId, ShardId};
use holdfast_wire::admin::ServerPlace;
use holdfast_wire::metadata::{Envelope, MetadataError, Request, Response};
use holdfast_wire::namespace::{NewNode, Outcome, Query};
use std::collections::BTreeMap;
use std::time::Duration;

const VOLUMES: ShardId = ShardId::VOLUMES;

/// A directory that somebody makes, until the answer is there.
struct Making {
    envelope: Envelope,
    text: String,
    asked: Option<u64>,
}

fn disturb(world: &mut World, prng: &mut Prng) {
    let ids: Vec<u64> = world.servers.keys().copied().collect();
    match prng.below(40) {
        0 => {
            let id = *prng.pick(&ids);
            if world.servers.values().filter(|server| server.core.is_none()).count() < 1 {
                world.crash(id, prng.next_u64());
            }
        }
        1 => {
            world.isolated.insert(*prng.pick(&ids));
        }
        2 | 3 => world.isolated.clear(),
        4..=6 => {
            let down = |(_, server): &(&u64, &super::Server)| server.core.is_none() && server.stopped.is_none();
            let down: Vec<u64> = world.servers.iter().filter(down).map(|(id, _)| *id).collect();
            down.into_iter().for_each(|id| world.start(id));
        }
        _ => {}
    }
}

/// Whoever has just won an election is cut off, and those who voted for it lose what they have not synced: a vote that they forget is
/// given twice.
fn ambush(world: &mut World, prng: &mut Prng, led: &mut Vec<u64>) {
    let leading = leaders(world);
    let won = leading.iter().copied().find(|id| !led.contains(id));
    *led = leading;
    let Some(won) = won.filter(|_| prng.chance(1, 3)) else { return };
    world.isolated.insert(won);
    let voted = |(id, server): &(&u64, &super::Server)| **id != won && server.core.is_some();
    let voters: Vec<u64> = world.servers.iter().filter(voted).map(|(id, _)| *id).collect();
    for id in voters {
        world.crash(id, prng.next_u64());
        world.start(id);
    }
}

/// Servers that came or went in all worlds.
static MOVES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn leaders(world: &World) -> Vec<u64> {
    let leads = |server: &super::Server| server.core.as_ref().is_some_and(|core| core.leads(VOLUMES));
    world.servers.iter().filter(|(_, server)| leads(server)).map(|(id, _)| *id).collect()
}

/// Who is to join or leave, one after the other, while all goes on.
#[derive(Default)]
struct Staff {
    asked: Option<u64>,
    /// The newcomer, or who leaves.
    moving: Option<(u64, bool)>,
    moves: u64,
}

impl Staff {
    /// Whether whoever is on the way has arrived.
    fn look(&mut self, world: &mut World, prng: &mut Prng) {
        if let Some((id, joins)) = self.moving {
            let done = if joins { ServerPlace::Voter } else { ServerPlace::Gone };
            if world.place(id) == Some(done) {
                self.moving = None;
                self.moves += 1;
                let gone: Vec<u64> =
                    world.servers.keys().copied().filter(|id| world.place(*id) == Some(ServerPlace::Gone)).collect();
                // Some of those who are out go on running.
                gone.iter().filter(|_| prng.chance(1, 2)).for_each(|id| drop(world.servers.remove(id)));
            }
        }
    }

    fn step(&mut self, world: &mut World, prng: &mut Prng) {
        if self.moving.is_some() {
            return self.look(world, prng);
        }
        let Some(leader) = world.leader(ShardId::CLUSTER).filter(|_| prng.chance(1, 6)) else { return };
        if let Some(request) = self.asked.take() {
            // Whatever became of it: what is on record counts.
            world.take(request);
            let moving = |row: &ServerRow| matches!(row.place, ServerPlace::Joining { .. } | ServerPlace::Leaving);
            let rows = &world.core(leader).cluster.machine.servers;
            let found =
                rows.iter().find(|(_, row)| moving(row)).map(|(id, row)| (id.0, row.place != ServerPlace::Leaving));
            if let Some((id, joins)) = found {
                self.moving = Some((id, joins));
                if joins && !world.servers.contains_key(&id) {
                    world.make_server(id, true);
                }
                return;
            }
        }
        let rows = &world.core(leader).cluster.machine.servers;
        let voters: Vec<u64> =
            rows.iter().filter(|(_, row)| row.place == ServerPlace::Voter).map(|(id, _)| id.0).collect();
        let Some(newest) = rows.keys().map(|id| id.0).max() else { return };
        let old = *prng.pick(&voters);
        let request = if voters.len() > 3 && prng.chance(1, 2) {
            Request::RemoveServer { server: ServerId(old) }
        } else {
            let replaces = (voters.len() > 4 || prng.chance(2, 3)).then_some(ServerId(old));
            Request::AddServer { server: ServerId(newest + 1), address: super::address_of(newest + 1), replaces }
        };
        let request = envelope(ShardId::CLUSTER, SessionId::NONE, request);
        self.asked = Some(world.ask_until(leader, Caller::Admin, request, Duration::from_secs(1)));
    }
}

/// Whoever believes to lead is asked; an old leader, too.
fn ask_somebody(world: &mut World, prng: &mut Prng, making: &mut Making) {
    let leaders = leaders(world);
    if !leaders.is_empty() {
        let id = *prng.pick(&leaders);
        making.asked = Some(world.ask_until(id, Caller::Client, making.envelope.clone(), Duration::from_secs(3)));
    }
}

// tidy: long because it is one story
fn run(seed: u64, mutations: crate::Mutations, mut staff: Option<Staff>) -> crate::Counters {
    let mut prng = Prng::new(seed);
    let mut world = World::new(3, 3, |config| {
        config.mutations = mutations;
        config.limits =
            Limits { persist_tables_after: 20, log_kept: 10, snapshot_part_bytes: 700, ..Limits::default() };
    });
    let (s, _) = world.attach();
    world.chaos = Some(Prng::new(seed ^ 77));
    let mut made: BTreeMap<String, InodeId> = BTreeMap::new();
    let mut newest: Option<(String, InodeId)> = None;
    let mut busy: Vec<Making> = Vec::new();
    let mut counters = crate::Counters::default();
    let mut led = Vec::new();
    for step in 0..1500u64 {
        disturb(&mut world, &mut prng);
        ambush(&mut world, &mut prng, &mut led);
        if let Some(staff) = &mut staff {
            staff.step(&mut world, &mut prng);
        }
        if busy.len() < 4 {
            let text = format!("d{step}");
            let lowest = busy.iter().map(|making| making.envelope.sequence).min();
            let mutation = create(InodeId::ROOT, &text, NewNode::Directory, false);
            let mut envelope = world.mutation(s, mutation);
            envelope.answered_below = lowest.unwrap_or(envelope.sequence);
            busy.push(Making { envelope, text, asked: None });
        }
        world.tick();
        for mut making in std::mem::take(&mut busy) {
            let answer = making.asked.and_then(|request| world.take(request));
            match answer.map(|answer| answer.result) {
                Some(Ok(Response::Outcome(Outcome::Created { attributes, new: true, .. }))) => {
                    newest = Some((making.text.clone(), attributes.inode));
                    made.insert(making.text, attributes.inode);
                    continue;
                }
                Some(Err(MetadataError::NotLeader { .. } | MetadataError::Unavailable { .. })) => making.asked = None,
                // The server that was asked is gone, or lost the question.
                None if prng.chance(1, 30) => making.asked = None,
                None => {}
                other => panic!("seed {seed}: {other:?} for {}", making.text),
            }
            if making.asked.is_none() {
                ask_somebody(&mut world, &mut prng, &mut making);
            }
            busy.push(making);
        }
        if step % 7 == 0 {
            read_back(&mut world, s, newest.as_ref());
        }
    }
    world.chaos = None;
    world.isolated.clear();
    let down = |(_, server): &(&u64, &super::Server)| server.core.is_none() && server.stopped.is_none();
    let down: Vec<u64> = world.servers.iter().filter(down).map(|(id, _)| *id).collect();
    down.into_iter().for_each(|id| world.start(id));
    let ids: Vec<u64> = world.servers.keys().copied().collect();
    ids.iter().for_each(|id| flush(&mut world, *id));
    world.run(60);
    if let Some(staff) = &mut staff {
        // Whoever was on the way arrives.
        world.until("the last server is in, or out", |world| {
            staff.look(world, &mut Prng::new(1));
            staff.moving.is_none()
        });
    }
    for (text, inode) in &made {
        let found = world.query(s, Query::Lookup { parent: InodeId::ROOT, name: super::name(text) });
        assert!(
            matches!(&found, Ok(Outcome::Entry { attributes, .. }) if attributes.inode == *inode),
            "seed {seed}: {text}"
        );
    }
    assert!(made.len() > 100, "seed {seed}: progress, {}", made.len());
    world.check();
    if let Some(staff) = &staff {
        MOVES.fetch_add(staff.moves, std::sync::atomic::Ordering::Relaxed);
    }
    for core in world.servers.values().filter_map(|server| server.core.as_ref()) {
        let one = core.counters();
        counters.elections_won += one.elections_won;
        counters.snapshots_installed += one.snapshots_installed;
        counters.suffixes_cut += one.suffixes_cut;
        counters.answers_repeated += one.answers_repeated;
        counters.leaderships_lost_in_flight += one.leaderships_lost_in_flight;
    }
    counters
}

/// A lookup asked of any leader sees what was acknowledged before, or is refused.
fn read_back(world: &mut World, session: SessionId, newest: Option<&(String, InodeId)>) {
    let Some((text, inode)) = newest else { return };
    for id in leaders(world) {
        let query = Query::Lookup { parent: InodeId::ROOT, name: super::name(text) };
        let request = envelope(VOLUMES, session, Request::Query(query));
        let asked = world.ask_until(id, Caller::Client, request, Duration::from_secs(3));
        world.run(4);
        match world.take(asked).map(|answer| answer.result) {
            Some(Ok(Response::Outcome(Outcome::Entry { attributes, .. }))) => assert_eq!(attributes.inode, *inode),
            None | Some(Err(MetadataError::NotLeader { .. } | MetadataError::Unavailable { .. })) => {}
            other => panic!("{text}: {other:?}"),
        }
    }
}

fn flush(world: &mut World, id: u64) {
    let server = world.servers.get_mut(&id).unwrap();
    let writes: Vec<_> = server.writes.drain(..).collect();
    for (shard, ticket, records) in writes {
        world.servers.get_mut(&id).unwrap().disks[shard.0 as usize].write(records);
        world.step(id, crate::Input::Persisted { shard, ticket });
    }
}

#[test]
fn what_was_acknowledged_survives_everything_a_minority_can_do() {
    let mut all = crate::Counters::default();
    // Enough for each of the counters below: since followers learn the commit index with the next entries, a seed has fewer elections.
    for seed in 0..16 {
        let one = run(seed, crate::Mutations::default(), None);
        all.elections_won += one.elections_won;
        all.snapshots_installed += one.snapshots_installed;
        all.suffixes_cut += one.suffixes_cut;
        all.answers_repeated += one.answers_repeated;
        all.leaderships_lost_in_flight += one.leaderships_lost_in_flight;
    }
    let seen = [
        all.elections_won > 40,
        all.snapshots_installed > 0,
        all.suffixes_cut > 0,
        all.answers_repeated > 0,
        all.leaderships_lost_in_flight > 0,
    ];
    assert!(seen.iter().all(|seen| *seen), "nothing stays untested: {all:?}");
}

#[test]
fn servers_come_and_go_while_others_stop_and_nothing_is_lost() {
    for seed in 100..116 {
        run(seed, crate::Mutations::default(), Some(Staff::default()));
    }
    let moves = MOVES.load(std::sync::atomic::Ordering::Relaxed);
    assert!(moves > 30, "{moves} servers came or went");
}

#[test]
fn every_deliberate_bug_is_caught() {
    let caught = |change: fn(&mut crate::Mutations)| {
        let mut mutations = crate::Mutations::default();
        change(&mut mutations);
        (0..60).find(|seed| std::panic::catch_unwind(|| run(*seed, mutations, None)).is_err())
    };
    let found = [
        caught(|mutations| mutations.answer_before_commit = true),
        caught(|mutations| mutations.vote_not_persisted = true),
        caught(|mutations| mutations.read_index_skipped = true),
        caught(|mutations| mutations.answer_forgotten = true),
        caught(|mutations| mutations.answers_purged_early = true),
    ];
    assert!(found.iter().all(Option::is_some), "seeds that caught each: {found:?}");
}
