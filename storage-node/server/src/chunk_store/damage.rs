//! Blocks that were found damaged: remembered until they are overwritten whole, and reported as different meanwhile.
//!
//! Not durable: a restart finds them again, by the next read or scrub.

use holdfast_storage_core::local::Change;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, GroupId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

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
        let block = BLOCK_BYTES as u32;
        if let Change::Copy { chunk, length, runs, .. } = change {
            let cut = std::iter::once(length.div_ceil(block)..u32::MAX);
            let written = runs.iter().map(|run| blocks_of(run.offset, run.bytes.len()));
            return cut.chain(written).for_each(|healed| self.healed(group, *chunk, &healed));
        }
        let (chunk, healed) = match *change {
            Change::Write { chunk, offset, ref bytes, .. } => (chunk, blocks_of(offset, bytes.len())),
            Change::Zero { chunk, offset, length } => {
                (chunk, offset / block..offset.saturating_add(length).div_ceil(block))
            }
            Change::Cut { chunk, length } => (chunk, length / block..u32::MAX),
            Change::Copy { .. }
            | Change::Delete { .. }
            | Change::DeleteChunk { .. }
            | Change::DeleteVolume { .. }
            | Change::Mark => {
                if let Some(keys) = change.keys() {
                    self.blocks.retain(|(of, chunk), _| *of != group || !keys.contains(*chunk));
                }
                return;
            }
        };
        self.healed(group, chunk, &healed);
    }

    fn healed(&mut self, group: GroupId, chunk: ChunkKey, healed: &Range<u32>) {
        if let Some(blocks) = self.blocks.get_mut(&(group, chunk)) {
            blocks.retain(|block| !healed.contains(block));
            if blocks.is_empty() {
                self.blocks.remove(&(group, chunk));
            }
        }
    }

    /// How many, for metrics.
    pub fn count(&self) -> usize {
        self.blocks.values().map(BTreeSet::len).sum()
    }
}

/// The blocks that a range touches.
fn blocks_of(offset: u32, bytes: usize) -> Range<u32> {
    let block = BLOCK_BYTES as u32;
    offset / block..(offset + bytes as u32).div_ceil(block)
}
