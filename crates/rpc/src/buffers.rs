//! Large bodies are read into recycled memory: fresh memory costs a page fault per 4 KiB, a third of what a byte costs over TCP.
//!
//! Invariants:
//! * At most [`FREE_BYTES_MAX`] lie unused, in the whole process.
//! * A buffer is lent to one body at a time, and comes back when the last `Bytes` of it is dropped.

use bytes::Bytes;
use std::sync::Mutex;

/// Memory kept for later, in bytes: enough for what the connections of a busy process read at once.
const FREE_BYTES_MAX: usize = 32 << 20;
/// Smallest buffer, as a power of two. Smaller bodies share a reader's buffer.
const LEAST: u32 = 14;
/// Largest, as a power of two: a chunk. Larger messages are rare.
const MOST: u32 = 22;

static FREE: Mutex<Free> = Mutex::new(Free { bytes: 0, by_size: [const { Vec::new() }; (MOST - LEAST + 1) as usize] });

struct Free {
    bytes: usize,
    by_size: [Vec<Vec<u8>>; (MOST - LEAST + 1) as usize],
}

/// Memory for one body while it is filled.
pub(crate) struct Buffer {
    /// Empty at first, with room for the body.
    pub bytes: Vec<u8>,
    class: Option<usize>,
}

impl Buffer {
    /// Empty, with room for `length` bytes.
    pub fn new(length: usize) -> Self {
        let power = length.next_power_of_two().ilog2().max(LEAST);
        if power > MOST {
            return Self { bytes: Vec::with_capacity(length), class: None };
        }
        let class = (power - LEAST) as usize;
        let mut free = FREE.lock().expect("nothing panics under this lock");
        let found = free.by_size[class].pop();
        free.bytes -= found.as_ref().map_or(0, Vec::capacity);
        drop(free);
        let bytes = found.unwrap_or_else(|| Vec::with_capacity(1 << power));
        Self { bytes, class: Some(class) }
    }

    /// The body, once it is complete.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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
            assert!(buffer.bytes.is_empty() && buffer.bytes.capacity() >= length, "{length}");
        }
        let many: Vec<Bytes> = (0..30u8)
            .map(|n| {
                let mut buffer = Buffer::new(3 << 20);
                buffer.bytes.resize(3 << 20, n);
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
