//! The trait of an ordered table, and the words it uses.
//!
//! * Keys and values are bytes; keys are ordered as bytes are. A key has 1 to 65,535 bytes, a value less than 4 GiB.
//! * Commits are applied one after the other, each whole or not at all, also across a crash.
//! * After a crash the table holds a prefix of its commits that includes all before the last finished `persist`.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// A key and its value.
pub type Pair = (Bytes, Bytes);

/// A lazy run of pairs in key order; `next_back` (or `rev`) walks it from its end. Holds a consistent view until dropped.
pub type Pairs = Box<dyn DoubleEndedIterator<Item = Result<Pair, StoreError>> + Send>;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 65_535;

/// Why a table could not answer.
///
/// Nothing of a failed commit is seen until the table is opened again; then it is there whole or not at all, as with a
/// crash.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. The table takes no more commits until it is opened again with room: watch the space
    /// (`Disk::space`) and refuse growth long before.
    #[error("the table's disk is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Stored bytes are not what was written. The table must not be used any more: absence may be a lie.
    #[error("the table is damaged")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Reading or writing failed, or an earlier write did. The table accepts no more commits until it is opened again.
    #[error("the table's disk failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another process has the table open.
    #[error("the table is in use by another process")]
    InUse,
}

/// Reading: the table as it is now, or a snapshot of it.
pub trait View: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// [`StoreError`]
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// All pairs of a range in order, as of this call: later commits do not show.
    fn range(&self, range: KeyRange) -> Pairs;
}

/// An ordered table that one process owns. Object-safe; shared as `Arc<dyn Table>`.
pub trait Table: View {
    /// Applies a batch as one step, seen by every later read. **Not durable** before [`Table::persist`]; a crash keeps
    /// a prefix of all commits.
    ///
    /// # Errors
    /// [`StoreError`], which says what is left of the batch.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// A consistent view of now; cheap. Hold it for seconds, not hours: it pins old versions.
    fn snapshot(&self) -> Arc<dyn View>;

    /// Everything committed before this call is durable on return.
    ///
    /// # Errors
    /// [`StoreError`]; nothing may be concluded about commits since the last success, and no later call succeeds.
    fn persist(&self) -> Result<(), StoreError>;

    /// Starts to build a whole new content beside the present one, for a snapshot that streams in.
    ///
    /// Dropped, or cut short by a crash, it leaves the present content alone. One at a time.
    ///
    /// # Errors
    /// [`StoreError`]
    fn replace(&self) -> Result<Box<dyn Replacement>, StoreError>;

    /// Space taken, in bytes, approximately.
    ///
    /// # Errors
    /// [`StoreError`]
    fn bytes_on_disk(&self) -> Result<u64, StoreError>;
}

/// New content for a [`Table`], unseen until [`Replacement::finish`].
pub trait Replacement: Send {
    /// Adds to the new content.
    ///
    /// # Errors
    /// [`StoreError`]
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError>;

    /// Puts the new content in place of the old, in one step, durable on return. Commits made to the table in between
    /// are gone with the old content; snapshots taken before keep showing it.
    ///
    /// # Errors
    /// [`StoreError`]; the old content may then still be there after a restart, or the new one, never a mixture.
    fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// Changes that are applied as one. For one key the last change counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    changes: BTreeMap<Bytes, Option<Bytes>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    ///
    /// # Panics
    /// When the key is empty or longer than [`KEY_BYTES_MAX`]: keys are made by our own code.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.change(key.into(), Some(value.into()));
    }

    /// Removes a key, present or not.
    ///
    /// # Panics
    /// As [`Batch::put`].
    pub fn remove(&mut self, key: impl Into<Bytes>) {
        self.change(key.into(), None);
    }

    fn change(&mut self, key: Bytes, value: Option<Bytes>) {
        assert!((1..=KEY_BYTES_MAX).contains(&key.len()), "a key of {} bytes", key.len());
        self.changes.insert(key, value);
    }

    /// What the batch says of a key: `None` nothing, `Some(None)` removed, `Some(Some(value))` set. Lets a core read its
    /// own uncommitted changes.
    pub fn get(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.changes.get(key).map(Option::as_ref)
    }

    /// All changes in key order; `None` removes.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Bytes, Option<&Bytes>)> {
        self.changes.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// The changes of a range in key order.
    pub fn range(&self, range: &KeyRange) -> impl DoubleEndedIterator<Item = (&Bytes, Option<&Bytes>)> {
        let bounds = if range.is_empty() { KeyRange::nothing() } else { range.clone() };
        self.changes.range(bounds.into_bounds()).map(|(key, value)| (key, value.as_ref()))
    }

    /// All changes in key order, taken out.
    pub fn into_changes(self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> {
        self.changes.into_iter()
    }

    /// Changed keys.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of keys and values, for those who bound a batch.
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len)).sum()
    }

    /// Adds the changes of `later`, which win.
    pub fn merge(&mut self, later: Batch) {
        self.changes.extend(later.changes);
    }
}

/// A range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// Where it begins.
    pub start: Bound<Bytes>,
    /// Where it ends.
    pub end: Bound<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self { start: Bound::Unbounded, end: Bound::Unbounded }
    }

    /// No key.
    pub fn nothing() -> Self {
        Self { start: Bound::Included(Bytes::new()), end: Bound::Excluded(Bytes::new()) }
    }

    /// Keys from `start` (included) to `end` (excluded).
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: Bound::Included(start.into()), end: Bound::Excluded(end.into()) }
    }

    /// Keys that begin with `prefix`; an empty prefix is every key.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix = prefix.into();
        let end = match prefix_end(&prefix) {
            Some(end) => Bound::Excluded(end),
            None => Bound::Unbounded,
        };
        Self { start: Bound::Included(prefix), end }
    }

    /// Keys that begin with `prefix` and come strictly after `key`: how a listing goes on where it stopped.
    pub fn prefix_after(prefix: impl Into<Bytes>, key: impl Into<Bytes>) -> Self {
        Self { start: Bound::Excluded(key.into()), end: Self::prefix(prefix).end }
    }

    /// Whether the bounds alone leave no key. (A `BTreeMap` would panic on some of these.)
    pub fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Included(start) | Bound::Excluded(start), Bound::Excluded(end) | Bound::Included(end)) => {
                start >= end
            }
        }
    }

    /// Whether a key lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        (match &self.start {
            Bound::Unbounded => true,
            Bound::Included(start) => key >= start.as_ref(),
            Bound::Excluded(start) => key > start.as_ref(),
        }) && (match &self.end {
            Bound::Unbounded => true,
            Bound::Included(end) => key <= end.as_ref(),
            Bound::Excluded(end) => key < end.as_ref(),
        })
    }

    /// The two bounds, as `BTreeMap::range` takes them.
    pub(crate) fn into_bounds(self) -> (Bound<Bytes>, Bound<Bytes>) {
        (self.start, self.end)
    }
}

/// The least key above all keys with this prefix; none when the prefix is only 0xff.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let keep = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(prefix_end(b"ab").as_deref(), Some(&b"ac"[..]));
        assert_eq!(prefix_end(b"a\xff\xff").as_deref(), Some(&b"b"[..]));
        assert_eq!(prefix_end(b"\xff"), None);
        assert!(KeyRange::prefix(&b"\xff"[..]).contains(b"\xff\xff"));
        assert!(!KeyRange::prefix(&b"ab"[..]).contains(b"ac"));
    }

    #[test]
    fn ranges_know_when_they_are_empty() {
        assert!(KeyRange::nothing().is_empty());
        assert!(KeyRange::between(&b"b"[..], &b"a"[..]).is_empty());
        assert!(!KeyRange::between(&b"a"[..], &b"b"[..]).is_empty());
        let one = KeyRange { start: Bound::Included(Bytes::from_static(b"a")), end: Bound::Included("a".into()) };
        assert!(!one.is_empty() && one.contains(b"a"));
        let none = KeyRange { start: Bound::Excluded(Bytes::from_static(b"a")), end: Bound::Included("a".into()) };
        assert!(none.is_empty() && !none.contains(b"a"));
    }

    #[test]
    fn the_last_change_of_a_key_counts() {
        let mut batch = Batch::new();
        batch.put(&b"k"[..], &b"1"[..]);
        batch.remove(&b"k"[..]);
        assert_eq!(batch.get(b"k"), Some(None));
        batch.put(&b"k"[..], &b"2"[..]);
        assert_eq!((batch.len(), batch.bytes()), (1, 2));
        assert_eq!(batch.range(&KeyRange::nothing()).count(), 0);
    }
}
