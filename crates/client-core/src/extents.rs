//! Bytes of a file that were written and not yet sent: segments that never overlap, found by position and by age.
//!
//! Invariants:
//! * Segments do not overlap, are not empty and do not cross a request boundary.
//! * `order` names each segment once, by the number of the oldest write in it; ages rise with numbers.
//! * Bytes put on top of others that were not sent yet take over their number and age: who waits for the older write waits for the
//!   newer one in its place, and bytes that are overwritten again and again are due when the first of them were. Each segment knows its
//!   newest write as well.
//! * `blocks` counts the dirty bytes of each request-sized block; `full` names the blocks that have no gap.

use bytes::Bytes;
use holdfast_types::Instant;
use std::collections::{BTreeMap, BTreeSet};

/// Writes shorter than this are copied into a growing segment, so that a stream of tiny appends stays cheap.
const SMALL_BYTES: usize = 16 * 1024;
/// A growing segment ends here.
const GROWING_BYTES_MAX: usize = 64 * 1024;
/// What a segment costs beside its bytes, by eye: map nodes and reference counts.
pub(crate) const SEGMENT_OVERHEAD: u64 = 192;

enum Content {
    Shared(Bytes),
    Growing(Vec<u8>),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.len(),
            Self::Growing(bytes) => bytes.len(),
        }
    }

    /// The bytes, shareable from now on.
    fn share(&mut self) -> &Bytes {
        if let Self::Growing(bytes) = self {
            *self = Self::Shared(Bytes::from(std::mem::take(bytes)));
        }
        match self {
            Self::Shared(bytes) => bytes,
            Self::Growing(_) => unreachable!("just converted"),
        }
    }
}

struct Segment {
    content: Content,
    /// Oldest write in it, and when that was made.
    number: u64,
    since: Instant,
    /// Newest write that has bytes in it, or had.
    newest: u64,
}

/// Bytes taken out, with their places, and number and age of the oldest write among them.
type Removed = (Vec<(u64, Bytes)>, Option<(u64, Instant)>);

/// The dirty bytes of one file.
pub(crate) struct Extents {
    segments: BTreeMap<u64, Segment>,
    order: BTreeSet<(u64, u64)>,
    blocks: BTreeMap<u64, u64>,
    full: BTreeSet<u64>,
    bytes: u64,
    block_bytes: u64,
}

/// A run of bytes taken out to be sent.
pub(crate) struct Taken {
    pub end: u64,
    pub pieces: Vec<Bytes>,
    /// Oldest write in it, and when that was made.
    pub number: u64,
    pub since: Instant,
}

impl Extents {
    pub fn new(block_bytes: u64) -> Self {
        Self {
            segments: BTreeMap::new(),
            order: BTreeSet::new(),
            blocks: BTreeMap::new(),
            full: BTreeSet::new(),
            bytes: 0,
            block_bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes and what their segments cost beside.
    pub fn cost(&self) -> u64 {
        self.bytes + self.segments.len() as u64 * SEGMENT_OVERHEAD
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// End of the last dirty byte; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(start, s)| start + s.content.len() as u64)
    }

    /// Start of the first segment that reaches beyond `at`.
    pub fn start_above(&self, at: u64) -> Option<u64> {
        let across = self.segments.range(..at).next_back().filter(|(start, s)| *start + s.content.len() as u64 > at);
        across.or_else(|| self.segments.range(at..).next()).map(|(start, _)| *start)
    }

    /// Number of the oldest write that is still here, when it was made, and where.
    pub fn oldest(&self) -> Option<(u64, Instant, u64)> {
        let (number, start) = self.order.first()?;
        Some((*number, self.segments[start].since, *start))
    }

    /// Segments from the oldest on: number, age, start.
    pub fn by_age(&self) -> impl Iterator<Item = (u64, Instant, u64)> + '_ {
        self.order.iter().map(|(number, start)| (*number, self.segments[start].since, *start))
    }

    /// Starts of the blocks without a gap.
    pub fn full_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.full.iter().map(|block| block * self.block_bytes)
    }

    /// Puts bytes on top of what is there.
    pub fn insert(&mut self, mut offset: u64, mut data: Bytes, newest: u64, since: Instant) {
        let replaced = self.cut(offset, offset + data.len() as u64);
        let (number, since) = replaced.map_or((newest, since), |older| older.min((newest, since)));
        while !data.is_empty() {
            let room = self.block_bytes - offset % self.block_bytes;
            let part = data.split_to(data.len().min(room as usize));
            let length = part.len() as u64;
            self.account(offset, length, true);
            if !self.grow(offset, &part, number, newest) {
                let content = if part.len() < SMALL_BYTES {
                    let mut owned = Vec::with_capacity((part.len() * 2).max(4096));
                    owned.extend_from_slice(&part);
                    Content::Growing(owned)
                } else {
                    Content::Shared(part)
                };
                self.segments.insert(offset, Segment { content, number, since, newest });
                self.order.insert((number, offset));
            }
            offset += length;
        }
    }

    /// Appends to the segment that ends at `offset`, if both are small, of one block, and it is not the younger one.
    fn grow(&mut self, offset: u64, part: &[u8], number: u64, newest: u64) -> bool {
        if part.len() >= SMALL_BYTES || offset.is_multiple_of(self.block_bytes) {
            return false;
        }
        let Some((start, segment)) = self.segments.range_mut(..offset).next_back() else { return false };
        match &mut segment.content {
            Content::Growing(bytes)
                if start + bytes.len() as u64 == offset
                    && bytes.len() + part.len() <= GROWING_BYTES_MAX
                    && segment.number <= number =>
            {
                bytes.extend_from_slice(part);
                segment.newest = segment.newest.max(newest);
                true
            }
            _ => false,
        }
    }

    fn account(&mut self, offset: u64, length: u64, add: bool) {
        let block = offset / self.block_bytes;
        let count = self.blocks.entry(block).or_insert(0);
        if add {
            self.bytes += length;
            *count += length;
        } else {
            self.bytes -= length;
            *count -= length;
        }
        if *count == self.block_bytes {
            self.full.insert(block);
        } else {
            self.full.remove(&block);
            if *count == 0 {
                self.blocks.remove(&block);
            }
        }
    }

    /// Forgets the bytes of a range. Returns number and age of the oldest write among them, if there were any.
    pub fn cut(&mut self, start: u64, end: u64) -> Option<(u64, Instant)> {
        self.remove(start, end).1
    }

    /// Takes out the bytes of a range, in order, with number and age of the oldest write among them.
    fn remove(&mut self, start: u64, end: u64) -> Removed {
        let mut removed = Vec::new();
        let mut oldest: Option<(u64, Instant)> = None;
        if start >= end {
            return (removed, oldest);
        }
        let first = self.segments.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let keys: Vec<u64> = self.segments.range(first..end).map(|(at, _)| *at).collect();
        for at in keys {
            let length = self.segments[&at].content.len() as u64;
            if at + length <= start {
                continue;
            }
            let mut segment = self.segments.remove(&at).expect("listed above");
            self.order.remove(&(segment.number, at));
            let bytes = segment.content.share().clone();
            let (from, to) = (start.max(at), end.min(at + length));
            self.account(from, to - from, false);
            if at < from {
                self.put_back(at, bytes.slice(..(from - at) as usize), &segment);
            }
            if to < at + length {
                self.put_back(to, bytes.slice((to - at) as usize..), &segment);
            }
            let age = (segment.number, segment.since);
            oldest = Some(oldest.map_or(age, |older| older.min(age)));
            removed.push((from, bytes.slice((from - at) as usize..(to - at) as usize)));
        }
        (removed, oldest)
    }

    fn put_back(&mut self, at: u64, bytes: Bytes, of: &Segment) {
        self.order.insert((of.number, at));
        self.segments.insert(at, Segment { content: Content::Shared(bytes), ..*of });
    }

    /// The unbroken run around `at`, within its block, of dirty bytes whose oldest and newest write pass `may_go`; none if those at `at` do
    /// not.
    ///
    /// # Panics
    /// When no segment starts at `at`.
    pub fn run_around(&self, at: u64, may_go: impl Fn(u64, u64) -> bool) -> Option<(u64, u64)> {
        let floor = at - at % self.block_bytes;
        let (mut start, mut end) = (at, at + self.segments[&at].content.len() as u64);
        let may_go = |segment: &Segment| may_go(segment.number, segment.newest);
        if !may_go(&self.segments[&at]) {
            return None;
        }
        for (from, segment) in self.segments.range(floor..at).rev() {
            if from + segment.content.len() as u64 != start || !may_go(segment) {
                break;
            }
            start = *from;
        }
        for (from, segment) in self.segments.range(end..floor + self.block_bytes) {
            if *from != end || !may_go(segment) {
                break;
            }
            end += segment.content.len() as u64;
        }
        Some((start, end))
    }

    /// Takes out a run that has no gap, to be sent.
    pub fn take(&mut self, start: u64, end: u64) -> Taken {
        let (parts, oldest) = self.remove(start, end);
        let (number, since) = oldest.expect("a run is not empty");
        debug_assert_eq!(parts.iter().map(|(_, b)| b.len() as u64).sum::<u64>(), end - start, "the run has no gap");
        Taken { end, pieces: parts.into_iter().map(|(_, bytes)| bytes).collect(), number, since }
    }

    /// Calls `found` for each dirty part of a range, in order.
    pub fn overlay(&mut self, start: u64, end: u64, mut found: impl FnMut(u64, Bytes)) {
        if self.segments.is_empty() {
            return;
        }
        let first = self.segments.range(..=start).next_back().map_or(start, |(at, _)| *at);
        for (at, segment) in self.segments.range_mut(first..end) {
            let length = segment.content.len() as u64;
            let (from, to) = (start.max(*at), end.min(at + length));
            if from < to {
                let bytes = segment.content.share();
                found(from, bytes.slice((from - at) as usize..(to - at) as usize));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::prng::Prng;

    fn check(extents: &Extents, model: &[Option<u8>]) {
        let dirty = model.iter().flatten().count() as u64;
        assert_eq!(extents.bytes(), dirty);
        assert_eq!(extents.order.len(), extents.segments.len());
        for (block, content) in model.chunks(extents.block_bytes as usize).enumerate() {
            let count = content.iter().flatten().count() as u64;
            assert_eq!(extents.blocks.get(&(block as u64)).copied().unwrap_or(0), count);
            assert_eq!(extents.full.contains(&(block as u64)), count == extents.block_bytes);
        }
    }

    #[test]
    fn bytes_on_top_of_unsent_ones_are_as_old_as_those() {
        let mut extents = Extents::new(1 << 20);
        extents.insert(0, Bytes::from(vec![1; 100]), 1, Instant(10));
        extents.insert(100, Bytes::from(vec![2; 100]), 2, Instant(20));
        extents.insert(0, Bytes::from(vec![3; 200]), 3, Instant(30));
        assert_eq!(extents.oldest().map(|(number, since, _)| (number, since)), Some((1, Instant(10))));
        // Appended to a younger segment they would look younger than they are.
        extents.insert(500, Bytes::from(vec![4; 100]), 4, Instant(40));
        extents.insert(400, Bytes::from(vec![5; 100]), 5, Instant(50));
        extents.insert(500, Bytes::from(vec![6; 100]), 6, Instant(60));
        assert!(extents.by_age().any(|(number, _, at)| (number, at) == (4, 500)));
    }

    #[test]
    fn a_run_ends_where_bytes_are_newer_than_may_go() {
        let mut extents = Extents::new(1 << 20);
        let bytes = |length| Bytes::from(vec![1; length]);
        extents.insert(0, bytes(20_000), 1, Instant(10));
        extents.insert(20_000, bytes(20_000), 2, Instant(20));
        extents.insert(40_000, bytes(20_000), 3, Instant(30));
        let run = |extents: &Extents, at, newest| extents.run_around(at, |_, number| number <= newest);
        assert_eq!(run(&extents, 20_000, 3), Some((0, 60_000)));
        assert_eq!(run(&extents, 20_000, 2), Some((0, 40_000)));
        assert_eq!(run(&extents, 20_000, 1), None);
        // What lies on top of older bytes, or was appended to them, is as new as it is.
        extents.insert(5_000, bytes(100), 4, Instant(40));
        assert_eq!(extents.oldest().map(|(number, ..)| number), Some(1));
        assert_eq!(run(&extents, 0, 3), Some((0, 5_000)));
        assert_eq!(run(&extents, 5_000, 3), None);
        assert_eq!(run(&extents, 5_100, 3), Some((5_100, 60_000)));
        extents.insert(60_000, bytes(10), 5, Instant(50));
        extents.insert(60_010, bytes(10), 6, Instant(60));
        assert_eq!(run(&extents, 60_000, 5), None);
        assert_eq!(run(&extents, 40_000, 5), Some((0, 60_000)));
    }

    #[test]
    fn a_segment_may_be_old_in_part_and_new_in_part() {
        let mut extents = Extents::new(1 << 20);
        for number in 4..7 {
            extents.insert(number * 10, Bytes::from(vec![1; 10]), number, Instant(number));
        }
        // Up to 4 it was asked about, 5 wants to be, 6 need not.
        assert_eq!(extents.run_around(40, |oldest, newest| newest <= 4 || oldest > 5), None);
        assert_eq!(extents.run_around(40, |oldest, newest| newest <= 6 || oldest > 5), Some((40, 70)));
    }

    #[test]
    fn what_was_written_last_is_what_lies_on_top() {
        for seed in 0..50 {
            let mut prng = Prng::new(seed);
            let mut extents = Extents::new(256);
            let mut model = vec![None; 2048];
            for number in 1..120 {
                let start = prng.below(1800);
                let length = prng.between(1, 240);
                let end = start + length;
                match prng.below(5) {
                    0 => {
                        extents.cut(start, end);
                        model[start as usize..end as usize].fill(None);
                    }
                    1 => {
                        if let Some((number, _, at)) = extents.oldest() {
                            let (from, to) = extents.run_around(at, |_, _| true).expect("all may go");
                            let taken = extents.take(from, to);
                            assert!(taken.number <= number);
                            let whole: Vec<Option<u8>> = taken.pieces.concat().into_iter().map(Some).collect();
                            assert_eq!(whole, model[from as usize..to as usize]);
                            model[from as usize..to as usize].fill(None);
                        }
                    }
                    _ => {
                        let byte = prng.next_u64() as u8;
                        extents.insert(start, Bytes::from(vec![byte; length as usize]), number, Instant(number));
                        model[start as usize..end as usize].fill(Some(byte));
                    }
                }
                check(&extents, &model);
            }
            let mut seen = vec![None; 2048];
            extents.overlay(0, 2048, |at, bytes| {
                for (i, byte) in bytes.iter().enumerate() {
                    seen[at as usize + i] = Some(*byte);
                }
            });
            assert_eq!(seen, model, "seed {seed}");
        }
    }
}
