//! A table in memory for simulation: the same promises as on disk, and power losses drawn from a seed.
//!
//! * A snapshot or a range shares the whole map; the first commit while one is alive copies it once.
//! * What every commit since the last persist replaced is kept, so that a crash can take commits back, newest first.

use crate::table::{Batch, KeyRange, Pair, Pairs, Replacement, StoreError, Table, View};
use bytes::Bytes;
use holdfast_types::prng::Prng;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Map = BTreeMap<Bytes, Bytes>;
/// What a commit replaced, key by key.
type Undo = Vec<(Bytes, Option<Bytes>)>;

/// A table in memory. Clones share it, which is how a simulated restart finds its disk again.
#[derive(Clone, Debug, Default)]
pub struct MemoryTable {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    map: Arc<Map>,
    /// What each commit since the last persist replaced: applied in reverse it takes the commit back.
    undo: Vec<Undo>,
    persists: u64,
}

impl MemoryTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere says nothing about the state: every change is made in one piece.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power fails: the content goes back to the last persist plus a prefix, of random length, of the commits since.
    /// Returns how many commits were lost. What is left is durable: it was read from the medium.
    pub fn crash(&self, prng: &mut Prng) -> usize {
        let mut state = self.state();
        let lost = match prng.below(4) {
            0 => state.undo.len(),
            1 => 0,
            _ => prng.below(state.undo.len() as u64 + 1) as usize,
        };
        let kept = state.undo.len() - lost;
        let undone = state.undo.split_off(kept);
        let map = Arc::make_mut(&mut state.map);
        for undo in undone.into_iter().rev() {
            take_back(map, undo);
        }
        state.undo.clear();
        lost
    }

    /// Persists so far, for tests that count.
    pub fn persists(&self) -> u64 {
        self.state().persists
    }

    /// Commits since the last persist.
    pub fn commits_at_risk(&self) -> usize {
        self.state().undo.len()
    }
}

/// Applies a batch and returns what takes it back.
fn apply(map: &mut Map, batch: Batch) -> Undo {
    let change = |(key, value): (Bytes, Option<Bytes>)| {
        let old = match value {
            Some(value) => map.insert(key.clone(), value),
            None => map.remove(&key),
        };
        (key, old)
    };
    batch.into_changes().map(change).collect()
}

/// Takes a batch back.
fn take_back(map: &mut Map, undo: Undo) {
    for (key, old) in undo {
        match old {
            Some(old) => map.insert(key, old),
            None => map.remove(&key),
        };
    }
}

impl View for MemoryTable {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.state().map.get(key).cloned())
    }

    fn range(&self, range: KeyRange) -> Pairs {
        Box::new(Cursor::new(Arc::clone(&self.state().map), range))
    }
}

impl Table for MemoryTable {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.state();
        let undo = apply(Arc::make_mut(&mut state.map), batch);
        state.undo.push(undo);
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn View> {
        Arc::new(MemorySnapshot { map: Arc::clone(&self.state().map) })
    }

    fn persist(&self) -> Result<(), StoreError> {
        let mut state = self.state();
        state.undo.clear();
        state.persists += 1;
        Ok(())
    }

    fn replace(&self) -> Result<Box<dyn Replacement>, StoreError> {
        Ok(Box::new(MemoryReplacement { table: self.clone(), map: Map::new() }))
    }

    fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.state().map.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}

struct MemorySnapshot {
    map: Arc<Map>,
}

impl View for MemorySnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.map.get(key).cloned())
    }

    fn range(&self, range: KeyRange) -> Pairs {
        Box::new(Cursor::new(Arc::clone(&self.map), range))
    }
}

struct MemoryReplacement {
    table: MemoryTable,
    map: Map,
}

impl Replacement for MemoryReplacement {
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        apply(&mut self.map, batch);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        let mut state = self.table.state();
        state.map = Arc::new(self.map);
        state.undo.clear();
        state.persists += 1;
        Ok(())
    }
}

/// Walks a shared map from both ends: each step seeks anew, so nothing is borrowed.
struct Cursor {
    map: Arc<Map>,
    /// What is left; `None` when the ends have met.
    left: Option<KeyRange>,
}

impl Cursor {
    fn new(map: Arc<Map>, range: KeyRange) -> Self {
        Self { map, left: (!range.is_empty()).then_some(range) }
    }

    fn step(
        &mut self,
        take: impl FnOnce(&mut std::collections::btree_map::Range<'_, Bytes, Bytes>) -> Option<Pair>,
        narrow: impl FnOnce(&mut KeyRange, Bytes),
    ) -> Option<Result<Pair, StoreError>> {
        let mut left = self.left.take()?;
        let pair = take(&mut self.map.range(left.clone().into_bounds()))?;
        narrow(&mut left, pair.0.clone());
        self.left = (!left.is_empty()).then_some(left);
        Some(Ok(pair))
    }
}

fn owned((key, value): (&Bytes, &Bytes)) -> Pair {
    (key.clone(), value.clone())
}

impl Iterator for Cursor {
    type Item = Result<Pair, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(|run| run.next().map(owned), |left, key| left.start = Bound::Excluded(key))
    }
}

impl DoubleEndedIterator for Cursor {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(|run| run.next_back().map(owned), |left, key| left.end = Bound::Excluded(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_loss_leaves_a_prefix_that_holds_all_that_was_persisted() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let table = MemoryTable::new();
            for n in 1..=8u8 {
                let mut batch = Batch::new();
                batch.put(vec![1], vec![n]);
                batch.put(vec![2, n], vec![n]);
                batch.remove(vec![2, n - 1]);
                table.commit(batch).unwrap();
                if n == 3 {
                    table.persist().unwrap();
                }
            }
            table.crash(&mut Prng::new(seed));
            let last = table.get(&[1]).unwrap().expect("the first commits were persisted")[0];
            assert!(last >= 3);
            let rest: Vec<Pair> = table.range(KeyRange::prefix(vec![2])).map(Result::unwrap).collect();
            assert_eq!(rest, [(Bytes::from(vec![2, last]), Bytes::from(vec![last]))], "seed {seed}");
            assert_eq!(table.crash(&mut Prng::new(seed)), 0, "what a power loss left is durable");
            lengths.insert(last);
        }
        assert_eq!(lengths.len(), 6, "every prefix happens");
    }
}
