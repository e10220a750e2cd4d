//! The write buffer's memory: one anonymous file, mapped, from which the data of writes are handed out.
//!
//! It is a file so that a supervisor can hold it over a restart of this process (a later issue gives each block its record); it has a
//! size, so the memory of un-flushed writes is bounded by the kernel and not by hope. Blocks are powers of two from 4 KiB to
//! 1 MiB, halved and joined again (a buddy allocator): data stay in one run, and low addresses are used first, so that pages
//! touched once are touched again rather than new ones.
//!
//! Invariants:
//! * A block belongs to the one [`Block`] that was made of it, until that is dropped.
//! * The bytes of a block are written before the first reference to them is given out, and never again while one exists.
//! * The file never shrinks (sealed), so no access to the mapping can fault.
//! * When there is no room, or the data are too small to be worth a block, the heap serves: the client bounds the sum.

#![allow(unsafe_code)]

use crate::sync::lock;
use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Mutex};

/// Smallest block, in bytes: a page.
const BLOCK_BYTES_MIN: usize = 4096;
/// Largest block, as a power of two of the smallest: 1 MiB, the largest write.
const ORDER_MAX: usize = 8;
/// Data shorter than this go to the heap: a block would be mostly empty.
const DATA_BYTES_MIN: usize = BLOCK_BYTES_MIN / 2;

/// The memory.
pub struct Arena {
    map: MmapRaw,
    /// Kept open for the supervisor to come; the mapping alone would do.
    _file: File,
    free: Mutex<Free>,
}

/// Free blocks by order, each named by its first page.
#[derive(Debug)]
struct Free([BTreeSet<usize>; ORDER_MAX + 1]);

/// Some pages of the arena, in use.
struct Block {
    arena: Arc<Arena>,
    page: usize,
    order: usize,
    length: usize,
}

impl Arena {
    /// Memory of at most `bytes` (rounded down to whole MiB, at least one). It is taken from the system as it is touched.
    ///
    /// # Errors
    /// When the system has no anonymous files, or no address space.
    pub fn new(bytes: u64) -> std::io::Result<Arc<Self>> {
        let largest = BLOCK_BYTES_MIN << ORDER_MAX;
        let blocks = usize::try_from(bytes).unwrap_or(usize::MAX).checked_div(largest).unwrap_or(0).max(1);
        let length = blocks.checked_mul(largest).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("holdfast-write-buffer", flags)?);
        file.set_len(length as u64)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let map = MmapOptions::new().len(length).map_raw(&file)?;
        let mut free = Free(Default::default());
        free.0[ORDER_MAX].extend((0..blocks).map(|block| block << ORDER_MAX));
        Ok(Arc::new(Self { map, _file: file, free: Mutex::new(free) }))
    }

    /// A copy of `data` that lives as long as it is referred to.
    pub fn keep(self: &Arc<Self>, data: &[u8]) -> Bytes {
        let Some(order) = order_of(data.len()) else { return Bytes::copy_from_slice(data) };
        let Some(page) = lock(&self.free).take(order) else { return Bytes::copy_from_slice(data) };
        let block = Block { arena: self.clone(), page, order, length: data.len() };
        // SAFETY: the block's pages lie within the mapping (`take` gives out only what `new` put in or what was given back), it is
        // at least `data.len()` long (`order_of`), and no reference to it exists: it was free, and `block` has not been shared yet.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), block.start(), data.len()) };
        Bytes::from_owner(block)
    }
}

impl Block {
    fn start(&self) -> *mut u8 {
        self.arena.map.as_mut_ptr().wrapping_add(self.page * BLOCK_BYTES_MIN)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the first `length` bytes were written in `keep`, nobody writes them while `self` exists, and the mapping lives as
        // long as `self.arena`. Nobody else maps the file.
        unsafe { std::slice::from_raw_parts(self.start(), self.length) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        lock(&self.arena.free).give_back(self.page, self.order);
    }
}

/// Order of the smallest block that holds `length` bytes; `None` if the heap is to serve.
fn order_of(length: usize) -> Option<usize> {
    let pages = length.div_ceil(BLOCK_BYTES_MIN).next_power_of_two();
    let order = pages.trailing_zeros() as usize;
    (length >= DATA_BYTES_MIN && order <= ORDER_MAX).then_some(order)
}

impl Free {
    /// A block of this order, cut from a larger one if need be.
    fn take(&mut self, order: usize) -> Option<usize> {
        let (found, page) = (order..=ORDER_MAX).find_map(|at| self.0[at].pop_first().map(|page| (at, page)))?;
        for half in order..found {
            self.0[half].insert(page + (1 << half));
        }
        Some(page)
    }

    /// Takes a block back and joins it with its other half as often as that is free.
    fn give_back(&mut self, mut page: usize, mut order: usize) {
        while order < ORDER_MAX && self.0[order].remove(&(page ^ (1 << order))) {
            page &= !(1 << order);
            order += 1;
        }
        assert!(self.0[order].insert(page), "block {page} of order {order} was given back twice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::prng::Prng;

    fn pattern(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Prng::new(seed).fill(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_kept_stays_as_it_was_and_all_room_comes_back() {
        let arena = Arena::new(3 << 20).expect("memory");
        let mut prng = Prng::new(1);
        let mut kept: Vec<(u64, Bytes)> = Vec::new();
        for seed in 0..3000 {
            if prng.below(5) < 3 {
                let bound = 1 << prng.between(1, 21);
                let length = prng.below(bound) as usize;
                kept.push((seed, arena.keep(&pattern(seed, length))));
            } else if !kept.is_empty() {
                let (seed, bytes) = kept.swap_remove(prng.below(kept.len() as u64) as usize);
                assert_eq!(bytes, pattern(seed, bytes.len()));
            }
        }
        assert!(kept.len() > 100);
        drop(kept);
        let free = lock(&arena.free);
        assert_eq!(free.0[ORDER_MAX].len(), 3, "every half was joined again: {free:?}");
        assert!(free.0[..ORDER_MAX].iter().all(BTreeSet::is_empty));
    }

    #[test]
    fn a_full_arena_and_odd_sizes_are_served_by_the_heap() {
        let arena = Arena::new(1).expect("one MiB at the least");
        let within = |bytes: &Bytes| {
            let start = arena.map.as_ptr() as usize;
            (start..start + (1 << 20)).contains(&(bytes.as_ptr() as usize))
        };
        assert!(!within(&arena.keep(&[1; 100])), "too small");
        assert!(!within(&arena.keep(&vec![1; (1 << 20) + 1])), "too large");
        assert!(!within(&arena.keep(&[])));
        let whole = arena.keep(&vec![7; 1 << 20]);
        let other = arena.keep(&[8; 4096]);
        assert!(within(&whole) && !within(&other));
        let part = whole.slice(5..6);
        drop(whole);
        assert!(!within(&arena.keep(&[9; 4096])), "a part keeps the whole");
        assert_eq!((&part[..], &other[..1]), (&[7][..], &[8][..]));
        drop(part);
        assert!(within(&arena.keep(&[9; 4096])));
    }

    #[test]
    fn threads_do_not_get_the_same_block() {
        let arena = Arena::new(2 << 20).expect("memory");
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let arena = &arena;
                scope.spawn(move || {
                    let mut prng = Prng::new(seed);
                    for n in 0..2000 {
                        let expected = pattern(seed * 10_000 + n, prng.between(2048, 100_000) as usize);
                        let kept = arena.keep(&expected);
                        std::thread::yield_now();
                        assert_eq!(kept, expected);
                    }
                });
            }
        });
        assert_eq!(lock(&arena.free).0[ORDER_MAX].len(), 2);
    }
}
