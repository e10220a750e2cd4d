//! Slow disks, bad networks, servers that stop: what was acknowledged stays, and once only. By seed.

use super::{World, create, envelope};
use crate::api::{Caller, Limits};
use holdfast_types::prng::Prng;
use holdfast_types::{InodeId, SessionId, ShardId};
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
    match prng.below(40) {
        0 => {
            let id = prng.between(1, 3);
            if world.servers.values().filter(|server| server.core.is_none()).count() < 1 {
                world.crash(id, prng.next_u64());
            }
        }
        1 => {
            world.isolated.insert(prng.between(1, 3));
        }
        2 | 3 => world.isolated.clear(),
        4..=6 => {
            let down: Vec<u64> = world.servers.iter().filter(|(_, s)| s.core.is_none()).map(|(id, _)| *id).collect();
            down.into_iter().for_each(|id| world.start(id));
        }
        _ => {}
    }
}

/// Whoever believes to lead is asked; an old leader, too.
fn ask_somebody(world: &mut World, prng: &mut Prng, making: &mut Making) {
    let leaders: Vec<u64> =
        (1..=3).filter(|id| world.servers[id].core.as_ref().is_some_and(|core| core.leads(VOLUMES))).collect();
    if !leaders.is_empty() {
        let id = *prng.pick(&leaders);
        making.asked = Some(world.ask_until(id, Caller::Client, making.envelope.clone(), Duration::from_secs(3)));
    }
}

fn run(seed: u64, mutations: crate::Mutations) -> crate::Counters {
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
    for step in 0..1500u64 {
        disturb(&mut world, &mut prng);
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
    (1..=3)
        .filter(|id| world.servers[id].core.is_none())
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|id| world.start(id));
    (1..=3).for_each(|id| flush(&mut world, id));
    world.run(60);
    for (text, inode) in &made {
        let found = world.query(s, Query::Lookup { parent: InodeId::ROOT, name: super::name(text) });
        assert!(
            matches!(&found, Ok(Outcome::Entry { attributes, .. }) if attributes.inode == *inode),
            "seed {seed}: {text}"
        );
    }
    assert!(made.len() > 100, "seed {seed}: progress, {}", made.len());
    world.check();
    for id in 1..=3 {
        let one = world.core(id).counters();
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
    let leaders: Vec<u64> =
        (1..=3).filter(|id| world.servers[id].core.as_ref().is_some_and(|core| core.leads(VOLUMES))).collect();
    for id in leaders {
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
        let one = run(seed, crate::Mutations::default());
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
fn every_deliberate_bug_is_caught() {
    let caught = |change: fn(&mut crate::Mutations)| {
        let mut mutations = crate::Mutations::default();
        change(&mut mutations);
        (0..60).find(|seed| std::panic::catch_unwind(|| run(*seed, mutations)).is_err())
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
