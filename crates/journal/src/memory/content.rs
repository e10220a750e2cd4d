//! The bytes of one simulated file, seen and durable.
//!
//! * A page that is not dirty may still differ from its durable copy: its sync failed. It survives a power loss as the
//!   durable copy says.
//! * Bytes of a page beyond the file's length are zero in what is seen, so that an extension reads as zeros.

use holdfast_types::prng::Prng;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

/// Grain of caching, in bytes.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Grain of tearing, in bytes.
const SECTOR_BYTES: usize = 512;

type Page = [u8; PAGE_BYTES as usize];

/// One page of zeros, shared by all reserved ranges.
static ZERO_PAGE: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES as usize]));

/// One file.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    seen: BTreeMap<u64, Arc<Page>>,
    seen_len: u64,
    durable: BTreeMap<u64, Arc<Page>>,
    durable_len: u64,
    dirty: BTreeSet<u64>,
    dirty_len: bool,
    /// Pages whose medium cannot be read.
    unreadable: BTreeSet<u64>,
}

/// What a power loss does to everything that is not durable.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    /// All of it is lost.
    Lost,
    /// All of it is kept.
    Kept,
    /// Each sector by itself is lost, kept or torn.
    Each,
}

fn pages_of(offset: u64, length: u64) -> std::ops::Range<u64> {
    if length == 0 { 0..0 } else { offset / PAGE_BYTES..(offset + length - 1) / PAGE_BYTES + 1 }
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.seen_len
    }

    /// Pages that take space.
    pub(super) fn pages(&self) -> u64 {
        self.seen.len() as u64
    }

    /// Pages that a write to this range would add.
    pub(super) fn pages_missing(&self, offset: u64, length: u64) -> u64 {
        let pages = pages_of(offset, length);
        (pages.end - pages.start) - self.seen.range(pages).count() as u64
    }

    pub(super) fn readable(&self, offset: u64, length: u64) -> bool {
        self.unreadable.range(pages_of(offset, length)).next().is_none()
    }

    pub(super) fn make_unreadable(&mut self, offset: u64) {
        self.unreadable.insert(offset / PAGE_BYTES);
    }

    /// Copies bytes out; the caller has checked the length.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) {
        assert!(offset + buffer.len() as u64 <= self.seen_len, "read beyond the end");
        let mut at = 0;
        while at < buffer.len() {
            let position = offset + at as u64;
            let within = (position % PAGE_BYTES) as usize;
            let take = (PAGE_BYTES as usize - within).min(buffer.len() - at);
            let into = &mut buffer[at..at + take];
            match self.seen.get(&(position / PAGE_BYTES)) {
                Some(page) => into.copy_from_slice(&page[within..within + take]),
                None => into.fill(0),
            }
            at += take;
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at as u64;
            let within = (position % PAGE_BYTES) as usize;
            let take = (PAGE_BYTES as usize - within).min(bytes.len() - at);
            let number = position / PAGE_BYTES;
            let page = self.seen.entry(number).or_insert_with(|| Arc::clone(&ZERO_PAGE));
            Arc::make_mut(page)[within..within + take].copy_from_slice(&bytes[at..at + take]);
            self.dirty.insert(number);
            self.unreadable.remove(&number);
            at += take;
        }
        self.extend(offset + bytes.len() as u64);
    }

    /// Lengthens; never cuts.
    fn extend(&mut self, bytes: u64) {
        if bytes > self.seen_len {
            self.seen_len = bytes;
            self.dirty_len = true;
        }
    }

    pub(super) fn set_len(&mut self, bytes: u64) {
        if bytes < self.seen_len {
            self.zero(bytes, self.seen_len - bytes);
        }
        self.dirty_len |= bytes != self.seen_len;
        self.seen_len = bytes;
    }

    pub(super) fn allocate(&mut self, bytes: u64) {
        for number in pages_of(0, bytes) {
            self.seen.entry(number).or_insert_with(|| {
                self.dirty.insert(number);
                Arc::clone(&ZERO_PAGE)
            });
        }
        self.extend(bytes);
    }

    /// Makes a range read as zeros; whole pages give their space back.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let touched: Vec<u64> = self.seen.range(pages_of(offset, length)).map(|(number, _)| *number).collect();
        for number in touched {
            let start = number * PAGE_BYTES;
            let from = offset.max(start) - start;
            let to = end.min(start + PAGE_BYTES) - start;
            if (from, to) == (0, PAGE_BYTES) {
                self.seen.remove(&number);
            } else if let Some(page) = self.seen.get_mut(&number) {
                Arc::make_mut(page)[from as usize..to as usize].fill(0);
            }
            self.dirty.insert(number);
        }
    }

    /// All that is seen becomes durable, but for pages whose earlier sync failed.
    pub(super) fn sync(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            self.write_back(number);
        }
        self.sync_len();
    }

    fn sync_len(&mut self) {
        if std::mem::take(&mut self.dirty_len) {
            self.durable_len = self.seen_len;
        }
    }

    /// The sync failed: dirty pages are forgotten as dirty and stay what they were on the medium.
    pub(super) fn fail_sync(&mut self) {
        self.dirty.clear();
        self.dirty_len = false;
    }

    /// One dirty page, chosen by the seed, reaches the medium without being asked for.
    pub(super) fn write_back_one(&mut self, prng: &mut Prng) {
        if self.dirty.is_empty() {
            return;
        }
        // Near the end of the dirty pages, so that the choice is cheap however many there are.
        let nth = prng.below(self.dirty.len().min(8) as u64) as usize;
        if let Some(number) = self.dirty.iter().rev().nth(nth).copied() {
            self.dirty.remove(&number);
            self.write_back(number);
        }
    }

    fn write_back(&mut self, number: u64) {
        match self.seen.get(&number) {
            Some(page) => self.durable.insert(number, Arc::clone(page)),
            None => self.durable.remove(&number),
        };
    }

    /// Flips the lowest bit of a byte in both copies.
    pub(super) fn flip_bit(&mut self, offset: u64) {
        let (number, within) = (offset / PAGE_BYTES, (offset % PAGE_BYTES) as usize);
        for pages in [&mut self.seen, &mut self.durable] {
            Arc::make_mut(pages.entry(number).or_insert_with(|| Arc::clone(&ZERO_PAGE)))[within] ^= 1;
        }
    }

    /// The power failed: what is left becomes what is seen.
    pub(super) fn lose_power(&mut self, fate: Fate, prng: &mut Prng) {
        for number in std::mem::take(&mut self.dirty) {
            match fate {
                Fate::Lost => {}
                Fate::Kept => self.write_back(number),
                Fate::Each => self.settle_page(number, prng),
            }
        }
        let keep_len = match fate {
            Fate::Lost => false,
            Fate::Kept => true,
            Fate::Each => prng.chance(1, 2),
        };
        if self.dirty_len && keep_len {
            self.durable_len = self.seen_len;
        }
        self.dirty_len = false;
        // A length that was lost hides what was written beyond it, for ever.
        let len = self.durable_len;
        self.durable.split_off(&len.div_ceil(PAGE_BYTES));
        if let Some(page) = self.durable.get_mut(&(len / PAGE_BYTES)) {
            Arc::make_mut(page)[(len % PAGE_BYTES) as usize..].fill(0);
        }
        self.seen = self.durable.clone();
        self.seen_len = len;
    }

    fn settle_page(&mut self, number: u64, prng: &mut Prng) {
        if prng.chance(1, 3) {
            return; // The whole page is lost.
        }
        if prng.chance(1, 2) {
            return self.write_back(number);
        }
        let new = self.seen.get(&number).map_or([0; PAGE_BYTES as usize], |page| **page);
        let old = self.durable.entry(number).or_insert_with(|| Arc::clone(&ZERO_PAGE));
        for (old, new) in Arc::make_mut(old).chunks_mut(SECTOR_BYTES).zip(new.chunks(SECTOR_BYTES)) {
            let kept = match prng.below(3) {
                0 => 0,
                1 => SECTOR_BYTES,
                _ => prng.below(SECTOR_BYTES as u64) as usize,
            };
            old[..kept].copy_from_slice(&new[..kept]);
        }
    }

    /// All bytes as seen.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.seen_len as usize];
        self.read(&mut out, 0);
        out
    }
}
