//! Arithmetic on a chunk's blocks and extents. No disk, no index.

use super::record::Placed;
use super::rows::Extent;
use super::space::Run;
use bytes::Bytes;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BLOCKS};
use std::ops::Range;

/// Bytes of a block, as lengths of slices are counted.
pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks of a chunk.
pub(crate) const BLOCKS: u32 = CHUNK_BLOCKS as u32;
/// Most blocks that a growing chunk takes ahead of need: 1 MiB.
const AHEAD_BLOCKS_MAX: u32 = 256;

/// Consecutive whole blocks of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First block within the chunk.
    pub at: u32,
    pub bytes: Bytes,
}

/// Parts of `wanted` that no extent covers.
pub(crate) fn uncovered(extents: &[Extent], wanted: Range<u32>) -> Vec<Range<u32>> {
    let (mut gaps, mut at) = (Vec::new(), wanted.start);
    for extent in extents.iter().filter(|extent| extent.at < wanted.end && extent.end() > wanted.start) {
        if extent.at > at {
            gaps.push(at..extent.at);
        }
        at = at.max(extent.end());
    }
    if at < wanted.end {
        gaps.push(at..wanted.end);
    }
    gaps
}

/// How far space for a gap is taken ahead of need: so that a chunk written in small steps doubles its space each time,
/// has about a dozen extents when it is full, and a small file takes no more than it holds.
pub(crate) fn reach(extents: &[Extent], allocated: u32, gap: &Range<u32>) -> u32 {
    let grain = match allocated {
        0 => 1,
        some => some.next_power_of_two().min(AHEAD_BLOCKS_MAX),
    };
    let next = extents.iter().map(|extent| extent.at).find(|at| *at >= gap.end).unwrap_or(BLOCKS);
    gap.end.next_multiple_of(grain).min(next)
}

/// Adds extents for blocks from `at` on, joining those that are neighbours in the chunk and on the disk.
///
/// # Panics
/// When some of these blocks have an extent already.
pub(crate) fn insert(extents: &mut Vec<Extent>, mut at: u32, runs: &[Run]) {
    for run in runs {
        let new = Extent { at, blocks: run.blocks, file: run.file, start: run.start };
        at = new.end();
        let place = extents.partition_point(|extent| extent.at < new.at);
        let joined = |a: &Extent, b: &Extent| a.file == b.file && a.end() == b.at && a.start + a.blocks == b.start;
        assert!(place == 0 || extents[place - 1].end() <= new.at, "{new:?} has space already");
        assert!(extents.get(place).is_none_or(|next| new.end() <= next.at), "{new:?} has space already");
        if place > 0 && joined(&extents[place - 1], &new) {
            extents[place - 1].blocks += new.blocks;
        } else {
            extents.insert(place, new);
        }
    }
}

/// Takes a range of blocks out of the extents; returns the space that this sets free.
pub(crate) fn carve(extents: &mut Vec<Extent>, range: Range<u32>) -> Vec<Run> {
    let (mut kept, mut freed) = (Vec::with_capacity(extents.len() + 1), Vec::new());
    for extent in extents.drain(..) {
        let (from, to) = (range.start.max(extent.at), range.end.min(extent.end()));
        if from >= to {
            kept.push(extent);
            continue;
        }
        let part = |from: u32, to: u32| Extent {
            at: from,
            blocks: to - from,
            file: extent.file,
            start: extent.start + (from - extent.at),
        };
        if extent.at < from {
            kept.push(part(extent.at, from));
        }
        let cut = part(from, to);
        freed.push(Run { file: cut.file, start: cut.start, blocks: cut.blocks });
        if to < extent.end() {
            kept.push(part(to, extent.end()));
        }
    }
    *extents = kept;
    freed
}

/// Says where whole blocks go.
///
/// # Panics
/// When some have no extent.
pub(crate) fn place(extents: &[Extent], pieces: &[Piece]) -> Vec<Placed> {
    let mut places = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let end = piece.at + (piece.bytes.len() / BLOCK) as u32;
        let mut at = piece.at;
        while at < end {
            let found = extents.partition_point(|extent| extent.at <= at);
            let extent = found.checked_sub(1).map(|found| extents[found]).filter(|extent| at < extent.end());
            let extent = extent.expect("space was taken for every block that is written");
            let to = end.min(extent.end());
            let bytes = piece.bytes.slice((at - piece.at) as usize * BLOCK..(to - piece.at) as usize * BLOCK);
            places.push(Placed { file: extent.file, start: extent.start + (at - extent.at), bytes });
            at = to;
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(at: u32, blocks: u32, start: u32) -> Extent {
        Extent { at, blocks, file: 0, start }
    }

    #[test]
    fn gaps_are_what_no_extent_covers() {
        let extents = [extent(2, 2, 0), extent(6, 1, 9)];
        assert_eq!(uncovered(&extents, 0..10), [0..2, 4..6, 7..10]);
        assert_eq!(uncovered(&extents, 3..7), std::slice::from_ref(&(4..6)));
        assert!(uncovered(&extents, 2..4).is_empty());
    }

    #[test]
    fn a_chunk_written_in_single_blocks_needs_few_extents_and_a_tiny_one_a_single_block() {
        let (mut extents, mut next, mut takes) = (Vec::new(), 0, 0);
        for block in 0..BLOCKS {
            for gap in uncovered(&extents, block..block + 1) {
                let allocated = extents.iter().map(|e: &Extent| e.blocks).sum();
                let blocks = reach(&extents, allocated, &gap) - gap.start;
                // Never next to each other, so that nothing is joined.
                insert(&mut extents, gap.start, &[Run { file: 0, start: next, blocks }]);
                next += blocks + 1;
                takes += 1;
            }
            if block == 0 {
                assert_eq!(extents[0].blocks, 1);
            }
        }
        assert!(takes <= 12, "{takes} extents");
    }

    #[test]
    fn carving_frees_exactly_the_range() {
        let mut extents = vec![extent(0, 10, 100), extent(20, 5, 200)];
        let freed = carve(&mut extents, 4..22);
        assert_eq!(extents, [extent(0, 4, 100), extent(22, 3, 202)]);
        assert_eq!(freed, [Run { file: 0, start: 104, blocks: 6 }, Run { file: 0, start: 200, blocks: 2 }]);
        let mut extents = vec![extent(0, 10, 100)];
        carve(&mut extents, 3..5);
        assert_eq!(extents, [extent(0, 3, 100), extent(5, 5, 105)]);
        insert(&mut extents, 3, &[Run { file: 0, start: 103, blocks: 2 }]);
        assert_eq!(extents, [extent(0, 5, 100), extent(5, 5, 105)]);
    }

    #[test]
    fn pieces_are_cut_at_the_ends_of_extents() {
        let bytes = Bytes::from((0..3 * BLOCK).map(|i| (i / BLOCK) as u8).collect::<Vec<u8>>());
        let places = place(&[extent(0, 2, 7), extent(2, 9, 50)], &[Piece { at: 1, bytes: bytes.clone() }]);
        assert_eq!(places.len(), 2);
        assert_eq!((places[0].start, &places[0].bytes), (8, &bytes.slice(..BLOCK)));
        assert_eq!((places[1].start, &places[1].bytes), (50, &bytes.slice(BLOCK..)));
    }
}
