//! Damaged blocks: nobody who reads learns of them, nobody leaves a view for them where that can be spared, and a scrub finds all of them.

use super::scenarios::{G, backups, in_sync, primary, quiet, read, written};
use super::world::World;
use crate::api::{Input, Mutations};
use holdfast_types::{ChunkKey, Epoch};
use holdfast_wire::group::ScrubResult;

fn epoch(world: &World) -> Epoch {
    world.authority.map.views[0].epoch
}

fn chunk(world: &World, index: u64) -> ChunkKey {
    world.clients[0].chunk(index)
}

/// One node's block of a chunk loses its bytes.
fn damage(world: &mut World, node: usize, index: u64, block: u32) {
    let chunk = chunk(world, index);
    assert!(world.nodes[node].store.content(G, chunk).len() > block as usize * 4096, "there is such a block");
    world.nodes[node].store.damaged.insert((G, chunk, block));
}

fn damaged(world: &World) -> usize {
    world.nodes.iter().map(|node| node.store.damaged.len()).sum()
}

/// A scrub of the group from now on, to its end.
fn scrub(world: &mut World) -> ScrubResult {
    let from = world.now;
    for node in 0..world.nodes.len() {
        world.step(node, Input::ScrubNow);
    }
    let last = |w: &World| {
        let core = w.nodes[primary(w)].core.as_ref()?;
        let status = core.scrubs(super::world::at(w.now)).into_iter().find(|status| status.group == G)?;
        let ended = |seconds: u64| w.now >= from + 2_000 && seconds * 1000 < w.now - from;
        status.last.filter(|(seconds, _)| status.running.is_none() && status.due > 0 && ended(*seconds))
    };
    world.until("the scrub has ended", 60_000, |w| last(w).is_some());
    last(world).expect("just seen").1
}

#[test]
fn a_damaged_block_at_the_primary_is_read_from_another_member_and_put_right() {
    let mut world = quiet(1, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 20_000);
    let (node, before) = (primary(&world), epoch(&world));
    damage(&mut world, node, 0, 1);
    damage(&mut world, node, 0, 4);
    read(&mut world, 0);
    assert_eq!((damaged(&world), world.nodes[node].store.mended), (0, 2));
    assert_eq!(epoch(&world), before, "nobody left the view");
}

#[test]
fn a_block_that_two_members_have_lost_comes_from_the_third() {
    let mut world = quiet(2, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 20_000);
    let (node, other) = (primary(&world), backups(&world)[0]);
    damage(&mut world, node, 0, 2);
    damage(&mut world, other, 0, 2);
    read(&mut world, 0);
    assert_eq!(damaged(&world), 1, "the one that was asked does not know of its own yet");
    let result = scrub(&mut world);
    assert_eq!((result.bad, result.repaired, damaged(&world)), (1, 1, 0));
}

#[test]
fn a_scrub_finds_every_damaged_block_of_every_member_and_says_so() {
    let mut world = quiet(3, 3, 3, Mutations::default());
    let mut want = 0;
    for index in 0..8 {
        written(&mut world, index, 0, 20_000);
        // The group's chunks among those of the client.
        if world.nodes[0].store.content(G, chunk(&world, index)).len() == 20_000 {
            let node = (index as usize) % 3;
            damage(&mut world, node, index, 0);
            damage(&mut world, node, index, 3);
            damage(&mut world, (node + 1) % 3, index, 3);
            want += 3;
        }
    }
    let before = epoch(&world);
    let result = scrub(&mut world);
    assert_eq!((result.bad, result.repaired, result.different), (want, want, 0), "{result:?}");
    assert_eq!((damaged(&world), epoch(&world)), (0, before));
    assert!(result.is_clean() && result.chunks * 60_000 <= result.bytes, "{result:?}");
    let again = scrub(&mut world);
    assert_eq!((again.bad, again.chunks), (0, result.chunks));
    for node in world.nodes.iter().filter(|node| node.core.is_some()) {
        assert_eq!(node.noted[&G].result, Some(again), "every member keeps it");
    }
}

#[test]
fn a_change_of_a_part_of_a_damaged_block_is_made_and_no_more_than_its_chunk_is_copied() {
    for at_the_primary in [true, false] {
        let mut world = quiet(4, 3, 3, Mutations::default());
        written(&mut world, 0, 0, 60_000);
        written(&mut world, 1, 0, 60_000);
        let node = if at_the_primary { primary(&world) } else { backups(&world)[0] };
        damage(&mut world, node, 0, 5);
        let moved = world.moved;
        written(&mut world, 0, 5 * 4096 + 100, 50);
        world.until("it is back", 20_000, |w| in_sync(w) == 3 && damaged(w) == 0);
        // A backup gets one block. A primary takes over the chunk, while it reconciles.
        assert!(
            world.moved - moved < if at_the_primary { 80_000 } else { 20_000 },
            "{} bytes moved",
            world.moved - moved
        );
        world.settle();
    }
}

#[test]
fn a_damaged_block_that_only_a_member_that_is_away_has_is_read_when_it_comes_back() {
    let mut world = quiet(5, 3, 2, Mutations::default());
    written(&mut world, 0, 0, 20_000);
    let (node, other) = (primary(&world), backups(&world)[0]);
    damage(&mut world, node, 0, 1);
    world.crash(other);
    world.until("it is taken out", 10_000, |w| in_sync(w) == 1 && primary(w) == node);
    let spare = (0..3).find(|n| *n != node && *n != other).expect("three nodes");
    world.crash(spare);
    world.run(2_000);
    world.start(other);
    read(&mut world, 0);
    assert_eq!(damaged(&world), 0);
    world.settle();
}

#[test]
fn a_member_that_differs_for_no_reason_is_made_like_the_others() {
    let mut world = quiet(6, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 20_000);
    let (other, chunk) = (backups(&world)[1], chunk(&world, 0));
    world.nodes[other].store.groups.get_mut(&G).and_then(|g| g.chunks.get_mut(&chunk)).expect("there")[9_000] ^= 1;
    let result = scrub(&mut world);
    assert_eq!((result.different, result.equalized, result.bad), (1, 1, 0), "{result:?}");
    assert_eq!(in_sync(&world), 3);
    world.check_replicas();
}

#[test]
fn a_primary_that_differs_from_all_others_is_made_like_them_and_not_they_like_it() {
    let mut world = quiet(7, 3, 3, Mutations::default());
    written(&mut world, 0, 0, 20_000);
    let (node, chunk) = (primary(&world), chunk(&world, 0));
    // Nothing at all of it, as if the chunk had never been.
    world.nodes[node].store.groups.get_mut(&G).expect("there").chunks.remove(&chunk);
    for n in 0..3 {
        world.step(n, Input::ScrubNow);
    }
    world.until("another is primary", 20_000, |w| primary(w) != node);
    world.until("it is back", 20_000, |w| in_sync(w) == 3);
    read(&mut world, 0);
    world.settle();
}

#[test]
fn what_is_written_while_a_scrub_goes_on_is_no_finding() {
    let mut world = World::new(8, 3, 2, 3, Mutations::default());
    for _ in 0..3 {
        world.client(4);
    }
    world.run(1_000);
    for round in 0..6 {
        for node in 0..3 {
            world.step(node, Input::ScrubNow);
        }
        world.run(5_000 + 300 * round);
    }
    let noted = world.nodes.iter().flat_map(|node| node.noted.values().filter_map(|noted| noted.result));
    let results: Vec<ScrubResult> = noted.collect();
    assert!(results.len() >= 2 && results.iter().any(|result| result.chunks > 0), "{results:?}");
    assert!(results.iter().all(|result| result.bad == 0 && result.different == 0), "{results:?}");
    world.settle();
}

#[test]
#[should_panic(expected = "still not")]
fn a_repair_that_is_dropped_is_noticed() {
    let mut world = quiet(9, 3, 3, Mutations { repair_dropped: true, ..Mutations::default() });
    written(&mut world, 0, 0, 20_000);
    let node = backups(&world)[0];
    damage(&mut world, node, 0, 1);
    for n in 0..3 {
        world.step(n, Input::ScrubNow);
    }
    world.until("it is put right", 20_000, |w| damaged(w) == 0);
}
