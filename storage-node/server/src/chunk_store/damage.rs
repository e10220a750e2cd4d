//! Blocks that were found damaged: remembered until they are overwritten whole, and reported as different meanwhile.
//!
//! Not durable: a restart finds them again, by the next read or scrub.

use holdfast_storage_core::local::Change;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, GroupId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Damage {
    blocks: BTreeMap<(GroupId, ChunkKey), BTreeSet<u32>>,
}

impl Damage {
    pub fn add(&mut self, group: GroupId, chunk: ChunkKey, block: u32) {
        self.blocks.entry((group, chunk)).or_default().insert(block);
    }

    /// Makes the sums of damaged blocks differ from everybody's.
    pub fn report(&self, group: GroupId, chunk: ChunkKey, sums: &mut [u32]) {
        for block in self.blocks.get(&(group, chunk)).into_iter().flatten() {
            if let Some(sum) = sums.get_mut(*block as usize) {
                *sum = !*sum;
            }
        }
    }

    /// A change was made: the blocks that it covers are whole again (one that it covered in part was verified).
    pub fn heal(&mut self, group: GroupId, change: &Change) {
        if self.blocks.is_empty() {
            return;
        }
        let Some(keys) = change.keys() else { return };
        self.blocks.retain(|(of, chunk), blocks| {
            if *of == group && keys.contains(*chunk) {
                blocks.retain(|block| !replaces(change, *block));
            }
            !blocks.is_empty()
        });
    }

    /// How many, for metrics.
    pub fn count(&self) -> usize {
        self.blocks.values().map(BTreeSet::len).sum()
    }
}

/// Whether a change of a chunk leaves nothing of a block, or has verified what it leaves.
fn replaces(change: &Change, at: u32) -> bool {
    let block = BLOCK_BYTES as u32;
    let touches = |offset: u32, bytes: usize| (offset / block..(offset + bytes as u32).div_ceil(block)).contains(&at);
    match change {
        Change::Write { offset, bytes, .. } => touches(*offset, bytes.len()),
        Change::Zero { offset, length, .. } => {
            (offset / block..offset.saturating_add(*length).div_ceil(block)).contains(&at)
        }
        Change::Cut { length, .. } => at >= length / block,
        Change::Copy { length, runs, .. } => {
            at >= length.div_ceil(block) || runs.iter().any(|run| touches(run.offset, run.bytes.len()))
        }
        Change::Delete { .. } | Change::DeleteChunk { .. } | Change::DeleteVolume { .. } => true,
        Change::Mark => false,
    }
}
