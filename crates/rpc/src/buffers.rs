//! Large bodies are read into recycled memory: fresh memory costs a page fault per 4 KiB, a third of what a byte costs over TCP.
//!
//! Invariants:
//! * At most [`FREE_BYTES_MAX`] lie unused, in the whole process.
//! * A buffer is lent to one body at a time, and comes back when the last `Bytes` of it is dropped.
//! * A body begins at a multiple of [`ALIGNMENT`], so that a disk can take it from there without a copy.

use bytes::Bytes;
use std::sync::Mutex;

/// Memory kept for later, in bytes: enough for what the connections of a busy process read at once.
const FREE_BYTES_MAX: usize = 32 << 20;
/// Smallest buffer, as a power of two. Smaller bodies share a reader's buffer.
const LEAST: u32 = 14;
/// Largest, as a power of two: a chunk. Larger messages are rare.
const MOST: u32 = 22;

/// Where bodies may begin, in bytes: what direct writes to any disk ask for at the most.
const ALIGNMENT: usize = 4096;

static FREE: Mutex<Free> = Mutex::new(Free { bytes: 0, by_size: [const { Vec::new() }; (MOST - LEAST + 1) as usize] });

struct Free {
    bytes: usize,
    by_size: [Vec<Vec<u8>>; (MOST - LEAST + 1) as usize],
}

/// Memory for one body while it is filled.
pub(crate) struct Buffer {
    /// What aligns it, then the body.
    bytes: Vec<u8>,
    padding: usize,
    class: Option<usize>,
}

impl Buffer {
    /// Empty, with room for `length` bytes.
    pub fn new(length: usize) -> Self {
        let power = length.next_power_of_two().ilog2().max(LEAST);
        if power > MOST {
            return Self::aligned(Vec::with_capacity(length + ALIGNMENT), None);
        }
        let class = (power - LEAST) as usize;
        let mut free = FREE.lock().expect("nothing panics under this lock");
        let found = free.by_size[class].pop();
        free.bytes -= found.as_ref().map_or(0, Vec::capacity);
        drop(free);
        let bytes = found.unwrap_or_else(|| Vec::with_capacity((1 << power) + ALIGNMENT));
        Self::aligned(bytes, Some(class))
    }

    fn aligned(mut bytes: Vec<u8>, class: Option<usize>) -> Self {
        // It may also say that it cannot tell; alignment is a matter of speed alone.
        let padding = Some(bytes.as_ptr().align_offset(ALIGNMENT)).filter(|n| *n < ALIGNMENT).unwrap_or(0);
        bytes.resize(padding, 0);
        Self { bytes, padding, class }
    }

    /// Bytes of the body so far.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.padding
    }

    /// Where more of the body goes.
    pub fn rest(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The body, once it is complete.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.padding..]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(class) = self.class else { return };
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut free = FREE.lock().expect("nothing panics under this lock");
        if free.bytes + bytes.capacity() <= FREE_BYTES_MAX {
            free.bytes += bytes.capacity();
            free.by_size[class].push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_and_is_bounded() {
        for length in [1, 16 << 10, (16 << 10) + 1, 1 << 20, 4 << 20, (4 << 20) + 1, 16 << 20] {
            let buffer = Buffer::new(length);
            assert!(buffer.len() == 0 && buffer.bytes.capacity() - buffer.padding >= length, "{length}");
            assert_eq!((buffer.bytes.as_ptr() as usize + buffer.padding) % ALIGNMENT, 0, "{length}");
        }
        let many: Vec<Bytes> = (0..30u8)
            .map(|n| {
                let mut buffer = Buffer::new(3 << 20);
                let length = buffer.padding + (3 << 20);
                buffer.rest().resize(length, n);
                buffer.freeze()
            })
            .collect();
        for (n, bytes) in many.iter().enumerate() {
            assert!(bytes.len() == 3 << 20 && bytes.iter().all(|byte| usize::from(*byte) == n), "{n} is shared");
        }
        drop(many);
        let free = FREE.lock().expect("sane");
        assert!(free.bytes <= FREE_BYTES_MAX);
        assert!(free.bytes >= 4 << 20, "at least one came back");
        assert_eq!(free.bytes, free.by_size.iter().flatten().map(Vec::capacity).sum::<usize>());
    }
}
