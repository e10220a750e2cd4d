//! CRC-32 (IEEE) of 4 KiB blocks: the sum that travels with every byte from the client to the disk and back.

use crate::limits::BLOCK_BYTES;

/// CRC-32 of some bytes.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Sums of consecutive pieces of `bytes`, cut at multiples of [`BLOCK_BYTES`] of the chunk.
///
/// `offset` is the position of the first byte within its chunk; the first and the last piece may be shorter than a block,
/// and their sums cover just the bytes given.
pub fn piece_sums(offset: u32, bytes: &[u8]) -> Vec<u32> {
    let block = BLOCK_BYTES as usize;
    let head = (block - offset as usize % block) % block;
    let (first, rest) = bytes.split_at(head.min(bytes.len()));
    let mut sums = Vec::with_capacity(bytes.len() / block + 2);
    if !first.is_empty() {
        sums.push(crc32(first));
    }
    sums.extend(rest.chunks(block).map(crc32));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_cut_at_block_boundaries_of_the_chunk() {
        let bytes = vec![7u8; 10_000];
        let sums = piece_sums(4_000, &bytes);
        assert_eq!(
            sums,
            [crc32(&bytes[..96]), crc32(&bytes[96..4192]), crc32(&bytes[4192..8288]), crc32(&bytes[8288..])]
        );
        assert_eq!(piece_sums(10, &bytes[..5]), [crc32(&bytes[..5])]);
        assert!(piece_sums(0, &[]).is_empty());
    }
}
