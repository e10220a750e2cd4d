//! Which blocks of the extent files are free.
//!
//! * Rebuilt from the index at every start; never stored.
//! * A block is *used*, *pending* (freed, but the checkpoint that lets it be used again is not complete) or *free*.
//! * Freed blocks become free only when a checkpoint that began after they were freed has ended: until then a restart
//!   may replay records that write to them.
//!
//! Best fit by size, lowest address among equals: large runs stay whole for large writes, and the same calls give the
//! same answers, which the simulator needs.

use std::collections::{BTreeMap, BTreeSet};

/// Consecutive blocks of one extent file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    pub file: u32,
    pub start: u32,
    pub blocks: u32,
}

impl Run {
    pub fn end(&self) -> u32 {
        self.start + self.blocks
    }
}

/// The free blocks, by place and by size.
#[derive(Debug, Default)]
pub(crate) struct FreeSpace {
    by_place: BTreeMap<(u32, u32), u32>,
    by_size: BTreeSet<(u32, u32, u32)>,
    blocks: u64,
    /// Freed since the last checkpoint began.
    pending: Vec<Run>,
    /// Freed before it began; free when it ends.
    checkpointing: Vec<Run>,
}

impl FreeSpace {
    /// Free blocks now.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks that checkpoints will make free.
    pub fn blocks_pending(&self) -> u64 {
        self.pending.iter().chain(&self.checkpointing).map(|run| u64::from(run.blocks)).sum()
    }

    fn remove(&mut self, run: Run) {
        let known = self.by_place.remove(&(run.file, run.start));
        assert_eq!(known, Some(run.blocks), "the two orders of free space differ at {run:?}");
        self.by_size.remove(&(run.blocks, run.file, run.start));
        self.blocks -= u64::from(run.blocks);
    }

    fn insert(&mut self, run: Run) {
        self.by_place.insert((run.file, run.start), run.blocks);
        self.by_size.insert((run.blocks, run.file, run.start));
        self.blocks += u64::from(run.blocks);
    }

    /// Makes blocks free that are used by nothing: a file that grew, or space given back.
    ///
    /// # Panics
    /// When some of them are free already.
    pub fn add(&mut self, mut run: Run) {
        if run.blocks == 0 {
            return;
        }
        if let Some((&(file, start), &blocks)) = self.by_place.range(..=(run.file, run.start)).next_back()
            && file == run.file
        {
            assert!(start + blocks <= run.start, "{run:?} was free already");
            if start + blocks == run.start {
                self.remove(Run { file, start, blocks });
                run = Run { file, start, blocks: blocks + run.blocks };
            }
        }
        if let Some((&(file, start), &blocks)) = self.by_place.range((run.file, run.start)..).next()
            && file == run.file
        {
            assert!(run.end() <= start, "{run:?} was free already");
            if run.end() == start {
                self.remove(Run { file, start, blocks });
                run.blocks += blocks;
            }
        }
        self.insert(run);
    }

    /// Takes a run of exactly `blocks`, if there is one.
    pub fn take(&mut self, blocks: u32) -> Option<Run> {
        let &(size, file, start) = self.by_size.range((blocks, 0, 0)..).next()?;
        self.remove(Run { file, start, blocks: size });
        if size > blocks {
            self.insert(Run { file, start: start + blocks, blocks: size - blocks });
        }
        Some(Run { file, start, blocks })
    }

    /// Takes `blocks` in as few runs as there are, or nothing at all.
    pub fn take_pieces(&mut self, blocks: u32) -> Option<Vec<Run>> {
        if u64::from(blocks) > self.blocks {
            return None;
        }
        let (mut runs, mut left) = (Vec::new(), blocks);
        while left > 0 {
            let run = self.take(left).or_else(|| {
                let &(size, ..) = self.by_size.last()?;
                self.take(size)
            });
            let run = run.expect("as many blocks are free as were counted");
            left -= run.blocks;
            runs.push(run);
        }
        Some(runs)
    }

    /// Takes back what an operation took that then failed: nothing was written or promised there.
    pub fn give_back(&mut self, runs: impl IntoIterator<Item = Run>) {
        for run in runs {
            self.add(run);
        }
    }

    /// Space that the index no longer refers to.
    pub fn free_later(&mut self, run: Run) {
        self.pending.push(run);
    }

    /// A checkpoint begins: what was freed until now will be free when it ends.
    pub fn checkpoint_begins(&mut self) {
        self.checkpointing.append(&mut self.pending);
    }

    /// The checkpoint ended: its journal head is durable.
    pub fn checkpoint_ended(&mut self) {
        for run in std::mem::take(&mut self.checkpointing) {
            self.add(run);
        }
    }
}

/// Finds what is free of files, given what is used. Fails with the first two uses of one block, or a use beyond an end.
pub(crate) fn rebuild(files: &BTreeMap<u32, u32>, mut used: Vec<Run>) -> Result<FreeSpace, Run> {
    used.sort_unstable();
    let mut free = FreeSpace::default();
    let mut runs = used.into_iter().peekable();
    for (&file, &blocks) in files {
        let mut at = 0;
        while let Some(run) = runs.next_if(|run| run.file <= file) {
            if run.file < file || run.start < at || run.end() > blocks {
                return Err(run);
            }
            free.add(Run { file, start: at, blocks: run.start - at });
            at = run.end();
        }
        free.add(Run { file, start: at, blocks: blocks - at });
    }
    match runs.next() {
        Some(run) => Err(run),
        None => Ok(free),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::prng::Prng;

    fn run(file: u32, start: u32, blocks: u32) -> Run {
        Run { file, start, blocks }
    }

    #[test]
    fn freed_space_is_not_given_out_before_the_checkpoint_after_it_ended() {
        let mut free = rebuild(&BTreeMap::from([(0, 10)]), vec![]).unwrap();
        let first = free.take(10).unwrap();
        free.free_later(first);
        assert_eq!(free.take(1), None);
        free.checkpoint_begins();
        assert_eq!(free.take(1), None);
        free.checkpoint_ended();
        assert_eq!(free.take(10), Some(first));
    }

    #[test]
    fn space_freed_during_a_checkpoint_waits_for_the_next() {
        let mut free = rebuild(&BTreeMap::from([(0, 10)]), vec![]).unwrap();
        let runs = [free.take(5).unwrap(), free.take(5).unwrap()];
        free.free_later(runs[0]);
        free.checkpoint_begins();
        free.free_later(runs[1]);
        free.checkpoint_ended();
        assert_eq!((free.blocks(), free.blocks_pending()), (5, 5));
    }

    #[test]
    fn a_rebuilt_map_refuses_uses_that_overlap_or_reach_beyond_a_file() {
        let files = BTreeMap::from([(0, 10), (2, 10)]);
        let free = rebuild(&files, vec![run(2, 0, 3), run(0, 4, 2)]).unwrap();
        assert_eq!(free.by_place, BTreeMap::from([((0, 0), 4), ((0, 6), 4), ((2, 3), 7)]));
        assert_eq!(rebuild(&files, vec![run(0, 4, 2), run(0, 5, 1)]).unwrap_err(), run(0, 5, 1));
        assert_eq!(rebuild(&files, vec![run(0, 9, 2)]).unwrap_err(), run(0, 9, 2));
        assert_eq!(rebuild(&files, vec![run(1, 0, 1)]).unwrap_err(), run(1, 0, 1));
        assert_eq!(rebuild(&files, vec![run(3, 0, 1)]).unwrap_err(), run(3, 0, 1));
    }

    #[test]
    fn no_block_is_ever_given_out_twice() {
        let mut prng = Prng::new(7);
        let mut free = rebuild(&BTreeMap::from([(0, 500), (1, 300)]), vec![]).unwrap();
        let mut held: Vec<Run> = Vec::new();
        for _ in 0..5_000 {
            if prng.chance(1, 2) {
                held.extend(free.take_pieces(prng.between(1, 40) as u32).unwrap_or_default());
            } else if !held.is_empty() {
                let at = prng.below(held.len() as u64) as usize;
                free.free_later(held.swap_remove(at));
            }
            if prng.chance(1, 10) {
                free.checkpoint_begins();
                free.checkpoint_ended();
            }
            let blocks: u64 = held.iter().map(|run| u64::from(run.blocks)).sum();
            assert_eq!(blocks + free.blocks() + free.blocks_pending(), 800);
            let used = held.iter().chain(&free.pending).copied().collect();
            let again = rebuild(&BTreeMap::from([(0, 500), (1, 300)]), used).expect("no overlap");
            assert_eq!(again.by_place, free.by_place);
        }
    }
}
