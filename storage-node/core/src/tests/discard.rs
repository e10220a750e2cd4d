//! What a node does with the copy of a group that lives elsewhere: nothing before it may, and then nothing is left of it.

use super::authority::DISK;
use super::client::Outgoing;
use super::world::World;
use crate::api::Mutations;
use holdfast_types::{GroupId, NodeId};

const G: GroupId = GroupId(0);

impl World {
    /// Chunks on nodes that are not to keep them.
    pub(crate) fn leftovers(&self) -> usize {
        let mut count = 0;
        for (node, number) in self.nodes.iter().zip(1..) {
            for (group, homes) in self.authority.map.homes.iter().enumerate() {
                let kept = homes.iter().any(|place| place.0 == NodeId(number));
                count += if kept { 0 } else { node.store.chunks(GroupId(group as u32)).len() };
            }
        }
        count
    }
}

/// Four nodes, one group of three, some chunks; then one member dies and the fourth node takes its place. Returns who died.
fn replaced(seed: u64) -> (World, usize) {
    let mut world = World::new(seed, 4, 1, 3, Mutations::default());
    let client = world.client(40);
    world.clients[client].manual = true;
    world.run(600);
    for index in 0..40 {
        let mut out: Vec<Outgoing> = Vec::new();
        let (chunk, now) = (world.clients[0].chunk(index), world.now);
        world.clients[0].write(now, chunk, 0, 5_000, &mut out);
        world.send(0, out);
        world.until("the write is acknowledged", 20_000, |w| w.clients[0].is_idle());
    }
    let view = &world.authority.map.views[0];
    let dies = view.in_sync.iter().find(|member| **member != view.primary).expect("a backup").node.0 as usize - 1;
    world.crash(dies);
    world.until("the fourth takes its place", 60_000, |w| is_whole_without(w, dies));
    (world, dies)
}

fn is_whole_without(world: &World, node: usize) -> bool {
    let view = &world.authority.map.views[0];
    view.in_sync.len() == 3 && view.members().all(|member| member.node.0 as usize - 1 != node)
}

fn held(world: &World, node: usize) -> usize {
    world.nodes[node].store.chunks(G).len()
}

#[test]
fn a_node_that_was_replaced_removes_its_copy_when_it_returns() {
    let (mut world, back) = replaced(3);
    let before = held(&world, back);
    assert!(before > 0);
    world.start(back);
    world.until("its copy is gone", 10_000, |w| held(w, back) == 0);
    world.run(2_000);
    world.check_replicas();
    // It is of use again: as a member like any other.
    let view = &world.authority.map.views[0];
    let dies = view.in_sync.iter().find(|member| **member != view.primary).expect("a backup").node.0 as usize - 1;
    world.crash(dies);
    world.until("whole again", 60_000, |w| is_whole_without(w, dies));
    assert!(world.authority.map.views[0].in_sync.iter().any(|member| member.node.0 as usize - 1 == back));
    world.settle();
}

#[test]
fn nothing_is_removed_while_the_disk_is_a_home_or_the_group_is_not_whole() {
    for seed in 1..6 {
        let (mut world, back) = replaced(seed);
        let before = held(&world, back);
        // The map keeps it as a home.
        let others = world.authority.map.homes[0].clone();
        world.authority.map.homes[0].push((NodeId(back as u64 + 1), DISK));
        world.authority.map.version = world.authority.map.version.next();
        world.start(back);
        world.run(5_000);
        assert_eq!(held(&world, back), before, "a home keeps its copy");
        // It is none any more; but one of the others is away.
        world.authority.readmit = false;
        let view = &world.authority.map.views[0];
        let away = view.in_sync.iter().find(|member| **member != view.primary).expect("a backup").node.0 as usize - 1;
        world.crash(away);
        world.until("it is taken out", 10_000, |w| w.authority.map.views[0].in_sync.len() == 2);
        world.authority.map.homes[0].clone_from(&others);
        world.authority.map.version = world.authority.map.version.next();
        world.spread();
        world.run(5_000);
        assert_eq!(held(&world, back), before, "as long as a copy is missing");
        world.authority.map.homes[0].clear();
        world.authority.map.version = world.authority.map.version.next();
        world.spread();
        world.run(5_000);
        assert_eq!(held(&world, back), before, "no word about homes is no permission");
        world.authority.map.homes[0] = others;
        world.settle();
    }
}

#[test]
fn a_disk_that_becomes_a_member_while_it_removes_its_copy_gets_all_of_it_again() {
    for seed in 0..30 {
        let (mut world, back) = replaced(100 + seed);
        world.start(back);
        let before = held(&world, back);
        world.until("it removes", 10_000, |w| held(w, back) < before);
        // In the middle of it a place is free, and it is the only one to take it.
        let view = &world.authority.map.views[0];
        let dies = view.in_sync.iter().find(|member| **member != view.primary).expect("a backup").node.0 as usize - 1;
        world.authority.dismiss(world.now, G, NodeId(dies as u64 + 1));
        world.crash(dies);
        world.spread();
        world.until("whole again", 60_000, |w| is_whole_without(w, dies));
        world.check_replicas();
        world.settle();
    }
}

#[test]
fn a_node_says_which_map_it_has_and_how_far_it_is_with_each_group() {
    let (mut world, dead) = replaced(4);
    let newest = world.authority.map.version;
    world.until("everybody has the map", 10_000, |w| {
        w.nodes.iter().filter_map(|node| node.core.as_ref()).all(|core| core.map_version() >= newest)
    });
    for (node, held) in world.nodes.iter().enumerate().filter_map(|(node, at)| Some((node, at.core.as_ref()?.held()))) {
        assert_ne!(node, dead);
        assert_eq!(held.map.version, world.authority.map.version);
        let [group] = held.groups.as_slice() else { panic!("{:?}", held.groups) };
        assert_eq!((group.group, group.member.node, group.member.disk), (G, NodeId(node as u64 + 1), DISK));
        assert!(world.authority.map.views[0].in_sync.contains(&group.member), "in its present life");
        assert!(group.last.epoch.0 > 0 && group.last.count.0 >= 40, "{:?}", group.last);
    }
}
