//! Bytes and ranges.

/// 1024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1024 MiB.
pub const GIB: u64 = 1 << 30;

/// The part of a byte range that falls into one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which chunk.
    pub index: crate::ChunkIndex,
    /// First byte within the chunk.
    pub offset: u32,
    /// Bytes, at least 1.
    pub length: u32,
    /// Position of the piece's first byte within the whole range.
    pub at: u64,
}

/// Splits `[offset, offset + length)` of a file at chunk boundaries, in order.
pub fn pieces(offset: u64, length: u64) -> impl Iterator<Item = Piece> {
    use crate::limits::CHUNK_BYTES;
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= length {
            return None;
        }
        let position = offset + at;
        let within = position % CHUNK_BYTES;
        let take = (CHUNK_BYTES - within).min(length - at);
        let piece =
            Piece { index: crate::ChunkIndex(position / CHUNK_BYTES), offset: within as u32, length: take as u32, at };
        at += take;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_without_gap_or_overlap() {
        let got: Vec<Piece> = pieces(4 * MIB - 10, 4 * MIB + 20).collect();
        assert_eq!(got.len(), 3);
        assert_eq!((got[0].index.0, got[0].offset, got[0].length, got[0].at), (0, (4 * MIB - 10) as u32, 10, 0));
        assert_eq!((got[1].index.0, got[1].offset, got[1].length, got[1].at), (1, 0, (4 * MIB) as u32, 10));
        assert_eq!((got[2].index.0, got[2].offset, got[2].length, got[2].at), (2, 0, 10, 4 * MIB + 10));
        assert_eq!(pieces(7, 0).count(), 0);
    }
}
