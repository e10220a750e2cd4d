//! Worlds from seeds: faults, then healing, then everything that was acknowledged is there, on every member.

use super::world::World;
use crate::api::{Input, Mutations};
use holdfast_types::{GroupId, NodeId};
use holdfast_wire::map::View;

/// One world with three clients and some twenty faults. Panics on a broken promise; the seed replays it.
fn world(seed: u64, mutations: Mutations) -> World {
    let mut world = World::new(seed, 4, 4, 3, mutations);
    for _ in 0..3 {
        world.client(8);
    }
    world.run(300);
    for _ in 0..20 {
        fault(&mut world);
        if rot(&mut world, (seed % 4) as usize) {
            // A damaged block is a copy less of it: that the others are lost as well, before it was found, is more than is survived.
            (0..4).for_each(|node| world.step(node, Input::ScrubNow));
            for _ in 0..100 {
                world.run(if damage(&world) > 0 { 50 } else { 0 });
            }
        }
        let pause = world.prng.between(50, 2500);
        world.run(pause);
    }
    world.settle();
    for node in 0..world.nodes.len() {
        world.step(node, Input::ScrubNow);
    }
    world.until("all damage is put right", 60_000, |w| damage(w) == 0);
    world.check_replicas();
    world
}

/// Blocks of a group that is whole go bad on one node, always the same one: others have them. Says whether any did.
fn rot(world: &mut World, node: usize) -> bool {
    let me = NodeId(node as u64 + 1);
    let whole = |view: &View| view.in_sync.len() == 3 && view.in_sync.iter().any(|member| member.node == me);
    let group = GroupId(world.prng.below(4) as u32);
    if !world.is_up(node) || !world.authority.map.view(group).is_some_and(whole) {
        return false;
    }
    let before = world.rotten;
    let chunks: Vec<_> = world.nodes[node].store.chunks(group).into_iter().collect();
    for (chunk, content) in chunks {
        if world.prng.chance(1, 3) {
            let block = world.prng.below(content.len().div_ceil(4096) as u64) as u32;
            world.nodes[node].store.damaged.insert((group, chunk, block));
            world.rotten += 1;
        }
    }
    world.rotten > before
}

/// Damaged blocks of members in sync.
fn damage(world: &World) -> usize {
    let of = |(group, view): (usize, &View)| -> usize {
        let stores = view.in_sync.iter().map(|member| &world.nodes[member.node.0 as usize - 1].store);
        stores.map(|store| store.damaged.iter().filter(|damaged| damaged.0.0 as usize == group).count()).sum()
    };
    world.authority.map.views.iter().enumerate().map(of).sum()
}

fn fault(world: &mut World) {
    let nodes = world.nodes.len();
    let node = world.prng.below(nodes as u64) as usize;
    let other = (node + 1 + world.prng.below(nodes as u64 - 1) as usize) % nodes;
    match world.prng.below(16) {
        0..=1 => world.crash(node),
        2..=4 => {
            if let Some(down) = (0..nodes).find(|n| !world.is_up(*n)) {
                world.start(down);
            }
        }
        5 => {
            // Reboot within one heartbeat.
            world.crash(node);
            let pause = world.prng.below(200);
            world.run(pause);
            if !world.is_up(node) {
                world.start(node);
            }
        }
        6 => {
            for node in 0..nodes {
                world.crash(node);
            }
            for node in 0..nodes {
                let pause = world.prng.below(1500);
                world.run(pause);
                world.start(node);
            }
        }
        7..=8 => world.cut(node, other),
        9 => world.cut.clear(),
        10 => {
            world.disconnect((node, other));
            world.disconnect((other, node));
        }
        11 => drop(world.unled.insert(node)),
        12 => {
            world.unled.clear();
            world.lose_view_answers = world.prng.chance(1, 2);
        }
        13 => {
            let client = world.prng.below(world.clients.len() as u64) as usize;
            world.fence(client);
        }
        14 => world.nodes[node].store.no_space = 3,
        _ => {
            world.nodes[node].disk_hangs = !world.nodes[node].disk_hangs;
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (a, b) = (world(1, Mutations::default()), world(1, Mutations::default()));
    assert_eq!((a.trace, a.acknowledged, a.now), (b.trace, b.acknowledged, b.now));
    assert_ne!(a.trace, world(2, Mutations::default()).trace);
}

#[expect(clippy::disallowed_methods, reason = "seeds to replay by hand")]
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn nothing_acknowledged_is_lost_and_replicas_agree_whatever_fails() {
    let (seeds, from) = (number("SEEDS", 60), number("FROM", 0));
    let (mut acknowledged, mut view_changes, mut lost, mut fenced) = (0, 0, 0, 0);
    let (mut rotten, mut mended) = (0, 0);
    for seed in from..from + seeds {
        let done = std::panic::catch_unwind(|| {
            let world = world(seed, Mutations::default());
            let mended: usize = world.nodes.iter().map(|node| node.store.mended).sum();
            (world.acknowledged, world.authority.view_changes, world.lost, world.fenced, world.rotten, mended as u64)
        });
        let Ok(done) = done else { panic!("seed {seed} fails; replay with SEEDS=1 FROM={seed}") };
        acknowledged += done.0;
        view_changes += done.1;
        lost += done.2;
        fenced += done.3;
        rotten += done.4;
        mended += done.5;
    }
    println!(
        "{seeds} seeds: {acknowledged} changes acknowledged, {view_changes} view changes, {lost} messages lost, {fenced} fences, \
         {rotten} blocks damaged, {mended} put right in place"
    );
    let lively = acknowledged > 100 * seeds
        && view_changes > 10 * seeds
        && lost > 10 * seeds
        && 2 * fenced > seeds
        && mended > seeds;
    assert!(lively, "the worlds were too quiet");
}

/// Which of the first seeds finds a bug that was put in on purpose.
fn found(mutations: Mutations) -> Option<u64> {
    (0..200).find(|seed| std::panic::catch_unwind(|| world(*seed, mutations)).is_err())
}

#[test]
fn every_deliberate_bug_is_found_within_200_seeds() {
    let none = Mutations::default();
    let bugs = [
        ("acknowledge before a backup is durable", Mutations { acknowledge_before_durable: true, ..none }),
        ("old epoch accepted", Mutations { old_epoch_accepted: true, ..none }),
        ("another incarnation accepted", Mutations { other_incarnation_accepted: true, ..none }),
        ("promotion not counted while asked for", Mutations { promotion_not_counted: true, ..none }),
        ("counts reused across epochs", Mutations { counts_reused: true, ..none }),
        ("what a scrub finds is not put right", Mutations { repair_dropped: true, ..none }),
        ("a copy is taken while its chunk changes", Mutations { copy_not_held: true, ..none }),
        ("a copy is taken before its chunk's changes are done here", Mutations { copy_too_early: true, ..none }),
        ("changes are not sent to a member that is caught up", Mutations { syncing_forgotten: true, ..none }),
        ("what was deleted meanwhile stays with a member", Mutations { deleted_kept: true, ..none }),
        ("promoted before it is caught up", Mutations { promoted_early: true, ..none }),
    ];
    for (name, mutations) in bugs {
        let seed = found(mutations);
        println!("{name}: seed {seed:?}");
        assert!(seed.is_some(), "not found: {name}");
    }
}
