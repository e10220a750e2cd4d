//! Bytes on their way to and from storage, and their sums.
//!
//! Sums cost time, so they are computed by the shell, outside of whatever lock guards the core; the types here make sure that it
//! is done: a write leaves only through [`ChunkCall::seal`], bytes come in only through [`ChunkReply::check`].

use bytes::Bytes;
use holdfast_types::NodeId;
use holdfast_types::checksum::{crc32, piece_sums};
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp, ChunkRequest};

/// A request to a storage node, its sums not yet computed.
#[derive(Clone, Debug)]
pub struct ChunkCall {
    /// To whom.
    pub node: NodeId,
    /// `HOST:PORT` of its data transport, as the map has it.
    pub address: String,
    request: ChunkRequest,
    payload: Vec<Bytes>,
}

impl ChunkCall {
    pub(crate) fn new(node: NodeId, address: String, request: ChunkRequest, payload: Vec<Bytes>) -> Self {
        Self { node, address, request, payload }
    }

    /// The request, without sums.
    pub fn request(&self) -> &ChunkRequest {
        &self.request
    }

    /// The request with the sums of its payload, and the payload in consecutive pieces (none for anything but a write).
    pub fn seal(self) -> (ChunkRequest, Vec<Bytes>) {
        let Self { mut request, payload, .. } = self;
        if let ChunkOp::Write { offset, sums, .. } = &mut request.op {
            *sums = sums_of_pieces(*offset, &payload);
        }
        (request, payload)
    }
}

/// Sums of consecutive pieces as if they were one run of bytes from `offset` of a chunk.
fn sums_of_pieces(offset: u32, pieces: &[Bytes]) -> Vec<u32> {
    if let [one] = pieces {
        return piece_sums(offset, one);
    }
    let block = BLOCK_BYTES as usize;
    let mut sums = Vec::new();
    let mut hasher = crc32fast_hasher();
    let mut within = offset as usize % block;
    let mut open = false;
    for piece in pieces {
        let mut rest: &[u8] = piece;
        while !rest.is_empty() {
            let take = (block - within).min(rest.len());
            if take == block {
                sums.push(crc32(&rest[..take]));
            } else {
                hasher.update(&rest[..take]);
                open = true;
                within += take;
                if within == block {
                    sums.push(std::mem::replace(&mut hasher, crc32fast_hasher()).finalize());
                    (within, open) = (0, false);
                }
            }
            rest = &rest[take..];
        }
    }
    if open {
        sums.push(hasher.finalize());
    }
    sums
}

fn crc32fast_hasher() -> crc32fast::Hasher {
    crc32fast::Hasher::new()
}

/// An answer of a storage node whose bytes were compared with their sums.
#[derive(Clone, Debug)]
pub struct ChunkReply {
    pub(crate) answer: ChunkAnswer,
    pub(crate) data: Bytes,
    pub(crate) intact: bool,
}

impl ChunkReply {
    /// Compares an answer's payload with its sums. `request` is what was asked.
    ///
    /// Damaged or overlong bytes are remembered as such, and the core asks again.
    pub fn check(request: &ChunkRequest, answer: ChunkAnswer, payload: Bytes) -> Self {
        let intact = match (&request.op, &answer) {
            (ChunkOp::Read { offset, length, .. }, ChunkAnswer::Data { sums }) => {
                payload.len() as u64 <= u64::from(*length) && piece_sums(*offset, &payload) == *sums
            }
            _ => payload.is_empty(),
        };
        Self { answer, data: payload, intact }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::prng::Prng;

    #[test]
    fn sums_do_not_depend_on_how_the_bytes_are_cut() {
        let mut prng = Prng::new(7);
        for _ in 0..200 {
            let mut bytes = vec![0; prng.between(1, 20_000) as usize];
            prng.fill(&mut bytes);
            let bytes = Bytes::from(bytes);
            let offset = prng.below(10_000) as u32;
            let mut pieces = Vec::new();
            let mut rest = bytes.clone();
            while !rest.is_empty() {
                pieces.push(rest.split_to(prng.between(1, rest.len() as u64) as usize));
            }
            assert_eq!(sums_of_pieces(offset, &pieces), piece_sums(offset, &bytes));
        }
    }
}
