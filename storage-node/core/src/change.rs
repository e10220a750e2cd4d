//! A change in its three shapes: as a client asks for it, as it travels between members, as the store takes it.

use crate::contenders::Contenders;
use crate::local::{Change, Run};
use bytes::{Bytes, BytesMut};
use holdfast_types::checksum::piece_sums;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES};
use holdfast_wire::chunk::{ChunkOp, Refusal};
use holdfast_wire::group::{CopyRun, GroupChange};

/// Whether a range lies within a chunk.
pub(crate) fn within_chunk(offset: u32, length: u64) -> bool {
    u64::from(offset) + length <= CHUNK_BYTES
}

/// Checks a client's change and its bytes.
///
/// # Errors
/// `Malformed` when the range makes no sense, `Damaged` when the bytes do not have their sums.
pub(crate) fn from_client(op: &ChunkOp, payload: &Bytes) -> Result<Change, Refusal> {
    let change = match *op {
        ChunkOp::Write { chunk, offset, ref sums } => {
            if payload.is_empty() || !within_chunk(offset, payload.len() as u64) {
                return Err(Refusal::Malformed);
            }
            if piece_sums(offset, payload) != *sums {
                return Err(Refusal::Damaged);
            }
            return Ok(Change::Write { chunk, offset, sums: sums.clone(), bytes: payload.clone() });
        }
        ChunkOp::Zero { chunk, offset, length } => {
            if length == 0 || !within_chunk(offset, u64::from(length)) {
                return Err(Refusal::Malformed);
            }
            Change::Zero { chunk, offset, length }
        }
        ChunkOp::Cut { chunk, length } => {
            if !within_chunk(length, 0) {
                return Err(Refusal::Malformed);
            }
            Change::Cut { chunk, length }
        }
        ChunkOp::Delete { volume, inode, generation, from } => Change::Delete { volume, inode, generation, from },
        ChunkOp::DeleteVolume { volume } => Change::DeleteVolume { volume },
        ChunkOp::Read { .. } | ChunkOp::Made { .. } | ChunkOp::Highest { .. } | ChunkOp::Allocated { .. } => {
            return Err(Refusal::Malformed);
        }
    };
    if payload.is_empty() { Ok(change) } else { Err(Refusal::Malformed) }
}

/// The travelling shape and its payload.
pub(crate) fn to_wire(change: &Change) -> (GroupChange, Bytes) {
    let wire = match *change {
        Change::Write { chunk, offset, ref sums, ref bytes } => {
            return (GroupChange::Write { chunk, offset, sums: sums.clone() }, bytes.clone());
        }
        Change::Zero { chunk, offset, length } => GroupChange::Zero { chunk, offset, length },
        Change::Cut { chunk, length } => GroupChange::Cut { chunk, length },
        Change::Delete { volume, inode, generation, from } => GroupChange::Delete { volume, inode, generation, from },
        Change::DeleteChunk { chunk } => GroupChange::DeleteChunk { chunk },
        Change::DeleteVolume { volume } => GroupChange::DeleteVolume { volume },
        Change::Copy { chunk, length, ref runs, ref contenders } => {
            let mut payload = BytesMut::with_capacity(change.bytes());
            runs.iter().for_each(|run| payload.extend_from_slice(&run.bytes));
            let run =
                |run: &Run| CopyRun { offset: run.offset, length: run.bytes.len() as u32, sums: run.sums.clone() };
            let runs = runs.iter().map(run).collect();
            let contenders = contenders.list().to_vec();
            return (GroupChange::Copy { chunk, length, runs, contenders }, payload.freeze());
        }
        Change::Mark => GroupChange::Mark,
        Change::Mend { .. } => unreachable!("a disk's own blocks are put right where they are"),
    };
    (wire, Bytes::new())
}

/// The runs of a copy; none when they are out of order or bounds, or bytes and sums do not agree.
fn runs_from_wire(length: u32, runs: Vec<CopyRun>, mut payload: Bytes) -> Option<Vec<Run>> {
    if !within_chunk(0, u64::from(length)) {
        return None;
    }
    let mut out = Vec::with_capacity(runs.len());
    let mut from = 0;
    for CopyRun { offset, length: bytes, sums } in runs {
        let end = offset.checked_add(bytes).filter(|end| offset >= from && *end <= length && bytes > 0)?;
        if payload.len() < bytes as usize {
            return None;
        }
        let bytes = payload.split_to(bytes as usize);
        if piece_sums(offset, &bytes) != sums {
            return None;
        }
        out.push(Run { offset, sums, bytes });
        // The next one begins in another block.
        from = end.next_multiple_of(BLOCK_BYTES as u32);
    }
    payload.is_empty().then_some(out)
}

/// Back from the travelling shape. `None` when bytes and sums or bounds do not agree: it was damaged on the way.
pub(crate) fn from_wire(change: GroupChange, payload: Bytes) -> Option<Change> {
    Some(match change {
        GroupChange::Write { chunk, offset, sums } => {
            if !within_chunk(offset, payload.len() as u64) || piece_sums(offset, &payload) != sums {
                return None;
            }
            Change::Write { chunk, offset, sums, bytes: payload }
        }
        GroupChange::Zero { chunk, offset, length } => {
            if !within_chunk(offset, u64::from(length)) {
                return None;
            }
            Change::Zero { chunk, offset, length }
        }
        GroupChange::Cut { chunk, length } => Change::Cut { chunk, length },
        GroupChange::Delete { volume, inode, generation, from } => Change::Delete { volume, inode, generation, from },
        GroupChange::DeleteChunk { chunk } => Change::DeleteChunk { chunk },
        GroupChange::DeleteVolume { volume } => Change::DeleteVolume { volume },
        GroupChange::Copy { chunk, length, runs, contenders } => {
            let runs = runs_from_wire(length, runs, payload)?;
            Change::Copy { chunk, length, runs, contenders: Contenders::from_list(contenders)? }
        }
        GroupChange::Mark => Change::Mark,
    })
}
