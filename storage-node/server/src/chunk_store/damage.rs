//! Blocks that were found damaged: remembered until they are overwritten whole, and reported as different meanwhile.
//!
//! Not durable: a restart finds them again, by the next read or scrub.

use holdfast_storage_core::local::{Change, LocalOp, Origin};
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, GroupId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(crate) struct Damage {
    blocks: BTreeMap<(GroupId, ChunkKey), BTreeSet<u32>>,
    totals: DamageTotals,
}

/// Blocks of a store, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DamageTotals {
    /// Found not to have their sums, or not to be readable.
    pub found: u64,
    /// Replaced by what another member had.
    pub repaired: u64,
}

impl Damage {
    pub fn add(&mut self, group: GroupId, chunk: ChunkKey, block: u32) {
        self.totals.found += u64::from(self.blocks.entry((group, chunk)).or_default().insert(block));
    }

    /// A chunk was read whole, and these blocks of it are damaged. One that is not any more could not be read for a while.
    pub fn only(&mut self, group: GroupId, chunk: ChunkKey, bad: &[(u32, u32)]) {
        if let Some(blocks) = self.blocks.get_mut(&(group, chunk)) {
            blocks.retain(|block| bad.iter().any(|(found, _)| found == block));
            if blocks.is_empty() {
                self.blocks.remove(&(group, chunk));
            }
        }
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
    pub fn heal(&mut self, op: &LocalOp) {
        if self.blocks.is_empty() {
            return;
        }
        let Some(keys) = op.change.keys() else { return };
        let mut healed = 0;
        self.blocks.retain(|(of, chunk), blocks| {
            if *of == op.group && keys.contains(*chunk) {
                healed += blocks.len();
                blocks.retain(|block| !replaces(&op.change, *block));
                healed -= blocks.len();
            }
            !blocks.is_empty()
        });
        // What members do among themselves are repairs; what clients do heals by chance.
        if op.origin == Origin::MEMBERS {
            self.totals.repaired += healed as u64;
        }
    }

    pub fn totals(&self) -> DamageTotals {
        self.totals
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
        Change::Mend { blocks, .. } => blocks.iter().any(|(block, _)| *block == at),
        Change::Delete { .. } | Change::DeleteChunk { .. } | Change::DeleteVolume { .. } => true,
        Change::Mark => false,
    }
}
