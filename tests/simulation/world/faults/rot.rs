//! Bits that go bad on a disk at rest.

use crate::world::{Sim, replicas};
use holdfast_storage_core::local::ChunkSummary;
use holdfast_types::GroupId;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_wire::map::View;

impl Sim {
    /// Some blocks of one node's disk lose a bit: of a group that is whole, and always the same node's, so that others have them.
    pub(super) fn rot(&mut self) {
        let at = (self.seed % self.nodes.len() as u64) as usize;
        let whole = |view: &View| view.in_sync.len() == 3 && view.in_sync.iter().any(|m| m.node == self.nodes[at].id);
        let Some(map) = self.leaders_map() else { return };
        let groups =
            map.views.iter().enumerate().filter(|(_, view)| whole(view)).map(|(group, _)| GroupId(group as u32));
        let groups: Vec<GroupId> = groups.collect();
        let Some(life) = self.nodes[at].life.as_ref().filter(|_| !groups.is_empty()) else { return };
        let group = *self.prng.pick(&groups);
        let mut chunks = replicas::list(&life.store, group).unwrap_or_default();
        // Those changed last are likely to be changed again.
        chunks.sort_by_key(|chunk| std::cmp::Reverse(chunk.number));
        let placed = |found: ChunkSummary| (found.chunk, life.store.places(group, &found.chunk));
        for (chunk, places) in chunks.into_iter().take(3).map(placed).collect::<Vec<_>>() {
            if places.is_empty() {
                continue;
            }
            let (block, file, offset) = self.prng.pick(&places);
            let offset = offset + self.prng.below(BLOCK_BYTES);
            if self.nodes[at].disk.flip_bit(file, offset).is_ok() {
                self.stats.damaged += 1;
                self.nodes[at].rotten.insert((group, chunk));
                let text = || format!("block {block} of {chunk} in {group} is damaged on node {}", at + 1);
                self.world.trace().note(&[u64::from(*block)], text);
            }
        }
    }
}
