//! The end of the log in memory: what is not written yet, and before it the beginning of the block in which that starts.
//!
//! ```text
//! ── durable ──────────────────┬─ not written ─┐
//!         │ block             │ block         │ block
//!         └ first: a multiple of 4096           └ end; zeros up to the next block when it is written
//! ```
//! A block that is written a second time begins with the bytes it had, so whatever a power loss leaves of it, sector by sector, leaves those.
//! It begins at a whole block in memory, too: only such bytes can go past the page cache.

use super::format::BLOCK_BYTES;

/// Bytes that end where the log ends.
pub(super) struct Tail {
    /// Never grows in place: that could move it.
    memory: Vec<u8>,
    /// Where the bytes begin in it.
    start: usize,
    /// Position of the first byte.
    first: u64,
}

impl Tail {
    /// A tail that begins with these bytes; they lie within one block.
    pub(super) fn new(first: u64, begun: &[u8]) -> Self {
        let mut tail = Self { memory: Vec::new(), start: 0, first };
        tail.append(begun.len() as u64, |into| into.extend_from_slice(begun));
        tail
    }

    /// Position after the last byte.
    pub(super) fn end(&self) -> u64 {
        self.first + (self.memory.len() - self.start) as u64
    }

    /// Lets so many bytes be added.
    pub(super) fn append(&mut self, bytes: u64, add: impl FnOnce(&mut Vec<u8>)) {
        let needed = self.memory.len() + bytes as usize;
        if needed > self.memory.capacity() {
            // One block more to begin at a whole one, and one for the zeros behind the end.
            let room = needed + 2 * BLOCK_BYTES as usize;
            let mut memory: Vec<u8> = Vec::with_capacity(room.max(self.memory.capacity() * 2));
            let start = memory.as_ptr().align_offset(BLOCK_BYTES as usize);
            memory.resize(start, 0);
            memory.extend_from_slice(&self.memory[self.start..]);
            (self.memory, self.start) = (memory, start);
        }
        let place = self.memory.as_ptr();
        add(&mut self.memory);
        assert_eq!(place, self.memory.as_ptr(), "no more was added than was said");
    }

    /// The bytes from a position on.
    pub(super) fn from(&self, position: u64) -> &[u8] {
        &self.memory[self.start + (position - self.first) as usize..]
    }

    /// All of it as whole blocks, with zeros behind the end, and the position of the first.
    pub(super) fn as_blocks<T>(&mut self, write: impl FnOnce(&[u8], u64) -> T) -> T {
        assert!(self.first.is_multiple_of(BLOCK_BYTES), "whole blocks begin at one");
        let zeros = (self.end().next_multiple_of(BLOCK_BYTES) - self.end()) as usize;
        self.append(zeros as u64, |memory| memory.resize(memory.len() + zeros, 0));
        let result = write(&self.memory[self.start..], self.first);
        // The next record goes there.
        self.memory.truncate(self.memory.len() - zeros);
        result
    }

    /// Forgets the whole blocks, which were written.
    pub(super) fn written(&mut self) {
        let begun = (self.end() % BLOCK_BYTES) as usize;
        let length = self.memory.len();
        self.memory.copy_within(length - begun.., self.start);
        self.first = self.end() - begun as u64;
        self.memory.truncate(self.start + begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every length, so that the memory moves at every possible moment.
    #[test]
    fn blocks_are_whole_begin_at_one_in_memory_and_end_in_zeros() {
        for step in (1..6000).step_by(7) {
            let mut tail = Tail::new(3 * BLOCK_BYTES, b"begun");
            let mut expected = b"begun".to_vec();
            for round in 0..20u64 {
                let bytes = vec![round as u8 + 1; (step + round * 97) as usize];
                tail.append(bytes.len() as u64, |into| into.extend_from_slice(&bytes));
                expected.extend_from_slice(&bytes);
                if round % 5 == 4 {
                    continue;
                }
                tail.as_blocks(|blocks, from| {
                    assert!((blocks.as_ptr() as u64).is_multiple_of(BLOCK_BYTES), "step {step}, round {round}");
                    assert!((blocks.len() as u64).is_multiple_of(BLOCK_BYTES) && from.is_multiple_of(BLOCK_BYTES));
                    let all = &expected[(from - 3 * BLOCK_BYTES) as usize..];
                    assert!(
                        blocks.starts_with(all) && blocks[all.len()..].iter().all(|byte| *byte == 0),
                        "{step} {round}"
                    );
                });
                assert_eq!(tail.end(), 3 * BLOCK_BYTES + expected.len() as u64, "step {step}, round {round}");
                tail.written();
                assert_eq!(tail.from(tail.first).len() as u64, tail.end() % BLOCK_BYTES, "the begun block is kept");
            }
        }
    }
}
