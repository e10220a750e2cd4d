//! File data kept for reading: clean, bounded, the least recently used goes first.
//!
//! Invariants:
//! * Segments of a file do not overlap.
//! * `weight` is what the kept buffers may hold in memory at the most; it never exceeds the limit after `insert`.

use bytes::Bytes;
use holdfast_types::InodeId;
use std::collections::BTreeMap;

/// What a segment costs beside its bytes, by eye.
const SEGMENT_OVERHEAD: u64 = 256;

struct Segment {
    bytes: Bytes,
    /// Of the buffer that the bytes are a slice of: a small rest of a large buffer keeps all of it in memory.
    weight: u64,
    used: u64,
}

/// The read cache of a mount.
pub(crate) struct Pages {
    files: BTreeMap<InodeId, BTreeMap<u64, Segment>>,
    by_use: BTreeMap<u64, (InodeId, u64)>,
    clock: u64,
    weight: u64,
    limit: u64,
}

impl Pages {
    pub fn new(limit: u64) -> Self {
        Self { files: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0, weight: 0, limit }
    }

    /// Keeps bytes, in place of what was kept there. `held` says what the buffer behind them weighs.
    pub fn insert(&mut self, inode: InodeId, start: u64, bytes: Bytes, held: u64) {
        if bytes.is_empty() {
            return;
        }
        self.remove(inode, start, start + bytes.len() as u64);
        let weight = held + SEGMENT_OVERHEAD;
        if weight > self.limit {
            return;
        }
        self.place(inode, start, bytes, weight);
        while self.weight > self.limit {
            let (_, (inode, start)) = self.by_use.pop_first().expect("weight comes from segments");
            self.forget(inode, start);
        }
    }

    fn place(&mut self, inode: InodeId, start: u64, bytes: Bytes, weight: u64) {
        self.clock += 1;
        self.weight += weight;
        self.by_use.insert(self.clock, (inode, start));
        self.files.entry(inode).or_default().insert(start, Segment { bytes, weight, used: self.clock });
    }

    /// Keeps what remains of a segment; a small rest is copied, so that it does not hold a large buffer.
    fn place_rest(&mut self, inode: InodeId, start: u64, bytes: Bytes, weight: u64) {
        let length = bytes.len() as u64;
        if length < weight / 4 {
            self.place(inode, start, Bytes::copy_from_slice(&bytes), length + SEGMENT_OVERHEAD);
        } else {
            self.place(inode, start, bytes, weight);
        }
    }

    /// Takes a segment out of everything but `by_use`.
    fn forget(&mut self, inode: InodeId, start: u64) -> Option<Segment> {
        let file = self.files.get_mut(&inode)?;
        let segment = file.remove(&start)?;
        if file.is_empty() {
            self.files.remove(&inode);
        }
        self.weight -= segment.weight;
        Some(segment)
    }

    /// Forgets a range.
    pub fn remove(&mut self, inode: InodeId, start: u64, end: u64) {
        let Some(file) = self.files.get(&inode) else { return };
        let first = file.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let hit: Vec<u64> = file
            .range(first..end)
            .filter(|(at, segment)| *at + segment.bytes.len() as u64 > start)
            .map(|(at, _)| *at)
            .collect();
        for at in hit {
            let segment = self.forget(inode, at).expect("listed above");
            self.by_use.remove(&segment.used);
            let segment_end = at + segment.bytes.len() as u64;
            if at < start {
                self.place_rest(inode, at, segment.bytes.slice(..(start - at) as usize), segment.weight);
            }
            if segment_end > end {
                self.place_rest(inode, end, segment.bytes.slice((end - at) as usize..), segment.weight);
            }
        }
    }

    /// Forgets a file.
    pub fn remove_file(&mut self, inode: InodeId) {
        for segment in self.files.remove(&inode).into_iter().flat_map(BTreeMap::into_values) {
            self.weight -= segment.weight;
            self.by_use.remove(&segment.used);
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.files.clear();
        self.by_use.clear();
        self.weight = 0;
    }

    /// Calls `found` for each kept part of a range, in order, and counts it as used.
    pub fn overlay(&mut self, inode: InodeId, start: u64, end: u64, mut found: impl FnMut(u64, Bytes)) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        let first = file.range(..=start).next_back().map_or(start, |(at, _)| *at);
        for (at, segment) in file.range_mut(first..end) {
            let (from, to) = (start.max(*at), end.min(at + segment.bytes.len() as u64));
            if from < to {
                self.clock += 1;
                self.by_use.remove(&segment.used);
                self.by_use.insert(self.clock, (inode, *at));
                segment.used = self.clock;
                found(from, segment.bytes.slice((from - at) as usize..(to - at) as usize));
            }
        }
    }

    /// Whether a whole range is kept.
    pub fn covers(&self, inode: InodeId, start: u64, end: u64) -> bool {
        let Some(file) = self.files.get(&inode) else { return start >= end };
        let first = file.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let mut reached = start;
        for (at, segment) in file.range(first..end) {
            if *at > reached {
                break;
            }
            reached = reached.max(at + segment.bytes.len() as u64);
        }
        reached >= end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_stays_within_its_limit_and_keeps_what_is_used() {
        let ino = InodeId(5);
        let mut pages = Pages::new(10 * (1000 + SEGMENT_OVERHEAD));
        for i in 0..10 {
            pages.insert(ino, i * 1000, Bytes::from(vec![i as u8; 1000]), 1000);
        }
        let mut got = Vec::new();
        pages.overlay(ino, 0, 500, |at, bytes| got.push((at, bytes.len())));
        assert_eq!(got, [(0, 500)]);
        pages.insert(ino, 50_000, Bytes::from(vec![9; 1000]), 1000);
        assert!(pages.covers(ino, 0, 1000), "used last, so kept");
        assert!(!pages.covers(ino, 1000, 1001), "least recently used, so gone");
        assert!(pages.weight <= pages.limit);
        pages.remove(ino, 100, 200);
        assert!(!pages.covers(ino, 0, 1000) && pages.covers(ino, 0, 100) && pages.covers(ino, 200, 1000));
        pages.remove_file(ino);
        assert_eq!((pages.weight, pages.by_use.len()), (0, 0));
    }
}
