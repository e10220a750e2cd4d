//! One command's view of a table: what it changes is seen by itself at once and by nobody else before it succeeds.
//!
//! Invariants:
//! * A command that fails leaves no trace: its changes are merged into the batch of its run only when it has succeeded.
//! * Rows of hot tables are held in memory whole, so that the few rows every mutation touches cost no read.

use crate::error::{Applied, Fail};
use crate::tables::{Row, is_hot};
use bytes::Bytes;
use holdfast_store::{Batch, KeyRange, Pair, StoreError, View};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// All rows of the hot tables.
#[derive(Debug, Default)]
pub(crate) struct Hot {
    rows: BTreeMap<Bytes, Bytes>,
}

impl Hot {
    /// Reads them from a table.
    pub(crate) fn load(view: &dyn View) -> Result<Self, StoreError> {
        let mut rows = BTreeMap::new();
        for prefix in crate::tables::HOT {
            for pair in view.range(KeyRange::prefix(vec![*prefix])) {
                let (key, value) = pair?;
                rows.insert(key, value);
            }
        }
        Ok(Self { rows })
    }

    /// Follows a batch that is about to be committed.
    pub(crate) fn follow(&mut self, batch: &Batch) {
        for (key, value) in batch.iter().filter(|(key, _)| is_hot(key)) {
            match value {
                Some(value) => self.rows.insert(key.clone(), value.clone()),
                None => self.rows.remove(key),
            };
        }
    }
}

/// A command's reads and changes.
pub(crate) struct Txn<'a> {
    view: &'a dyn View,
    hot: &'a Hot,
    earlier: &'a Batch,
    own: Batch,
}

impl<'a> Txn<'a> {
    /// Over a table, and the changes that earlier commands of the same run have made.
    pub(crate) fn new(view: &'a dyn View, hot: &'a Hot, earlier: &'a Batch) -> Self {
        Self { view, hot, earlier, own: Batch::new() }
    }

    /// What it has changed.
    pub(crate) fn into_batch(self) -> Batch {
        self.own
    }

    /// What it has changed so far, to come back to.
    pub(crate) fn mark(&self) -> Batch {
        self.own.clone()
    }

    /// Takes back all since the mark.
    pub(crate) fn rollback(&mut self, mark: Batch) {
        self.own = mark;
    }

    /// A row's bytes.
    pub(crate) fn get_raw(&self, key: &[u8]) -> Applied<Option<Bytes>> {
        if let Some(change) = self.own.get(key).or_else(|| self.earlier.get(key)) {
            return Ok(change.cloned());
        }
        if is_hot(key) {
            return Ok(self.hot.rows.get(key).cloned());
        }
        Ok(self.view.get(key)?)
    }

    /// A row.
    pub(crate) fn get<R: Row>(&self, key: &[u8]) -> Applied<Option<R>> {
        self.get_raw(key)?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Sets a row.
    pub(crate) fn put<R: Row>(&mut self, key: Vec<u8>, row: &R) {
        self.own.put(key, row.encode());
    }

    /// Sets a row's bytes.
    pub(crate) fn put_raw(&mut self, key: Vec<u8>, value: Bytes) {
        self.own.put(key, value);
    }

    /// Removes a row.
    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.own.remove(key);
    }

    /// At most `limit` rows of a range, in order.
    pub(crate) fn range(&self, range: KeyRange, limit: usize) -> Applied<Vec<Pair>> {
        if limit == 0 || range.is_empty() {
            return Ok(Vec::new());
        }
        let mut changes: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        for batch in [self.earlier, &self.own] {
            changes.extend(batch.range(&range).map(|(key, value)| (key.clone(), value.cloned())));
        }
        let mut changes: VecDeque<_> = changes.into_iter().collect();
        let mut stored = self.view.range(range);
        let mut next = stored.next().transpose()?;
        let mut found = Vec::new();
        while found.len() < limit {
            let pair = match (&next, changes.front()) {
                (None, None) => break,
                (Some((key, _)), Some((changed, _))) if changed == key => {
                    next = stored.next().transpose()?;
                    changes.pop_front()
                }
                (Some((key, _)), Some((changed, _))) if changed < key => changes.pop_front(),
                (None, Some(_)) => changes.pop_front(),
                (Some(_), _) => {
                    let pair = next.take().map(|(key, value)| (key, Some(value)));
                    next = stored.next().transpose()?;
                    pair
                }
            };
            if let Some((key, Some(value))) = pair {
                found.push((key, value));
            }
        }
        Ok(found)
    }

    /// At most `limit` rows that begin with a prefix.
    pub(crate) fn prefix(&self, prefix: Vec<u8>, limit: usize) -> Applied<Vec<Pair>> {
        self.range(KeyRange::prefix(prefix), limit)
    }

    /// At most `limit` rows that begin with a prefix and come after a key.
    pub(crate) fn prefix_after(&self, prefix: Vec<u8>, after: Vec<u8>, limit: usize) -> Applied<Vec<Pair>> {
        let end = KeyRange::prefix(prefix).end;
        self.range(KeyRange { start: Bound::Excluded(after.into()), end }, limit)
    }
}

/// Decodes a row that we wrote.
pub(crate) fn decode<R: Row>(key: &[u8], bytes: &[u8]) -> Applied<R> {
    R::decode(bytes).map_err(|error| Fail::Broken(format!("row {} is unreadable: {error}", key.escape_ascii())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_store::{MemoryTable, Table};

    fn keys(pairs: Vec<Pair>) -> Vec<u8> {
        pairs.into_iter().map(|(key, value)| key[1] * 10 + value[0]).collect()
    }

    #[test]
    fn a_range_shows_the_table_with_the_changes_laid_over_it() {
        let table = MemoryTable::new();
        let mut stored = Batch::new();
        for key in [1u8, 3, 5, 7] {
            stored.put(vec![200, key], vec![1]);
        }
        table.commit(stored).unwrap();
        let mut earlier = Batch::new();
        earlier.put(vec![200, 3], vec![2]);
        earlier.remove(vec![200, 5]);
        earlier.put(vec![200, 8], vec![2]);
        let hot = Hot::default();
        let mut txn = Txn::new(&table, &hot, &earlier);
        txn.put_raw(vec![200, 0], Bytes::from_static(&[3]));
        txn.put_raw(vec![200, 5], Bytes::from_static(&[3]));
        txn.remove(vec![200, 8]);
        assert_eq!(keys(txn.prefix(vec![200], 100).unwrap()), [3, 11, 32, 53, 71]);
        assert_eq!(keys(txn.prefix(vec![200], 2).unwrap()), [3, 11]);
        assert_eq!(keys(txn.prefix_after(vec![200], vec![200, 1], 2).unwrap()), [32, 53]);
        assert_eq!(txn.get_raw(&[200, 8]).unwrap(), None);
    }
}
