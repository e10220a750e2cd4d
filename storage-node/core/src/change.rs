//! A change in its three shapes: as a client asks for it, as it travels between members, as the store takes it.

use crate::contenders::Contenders;
use crate::local::Change;
use bytes::Bytes;
use holdfast_types::checksum::piece_sums;
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_wire::chunk::{ChunkOp, Refusal};
use holdfast_wire::group::GroupChange;

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
        ChunkOp::Read { .. } | ChunkOp::Made { .. } | ChunkOp::Highest { .. } => return Err(Refusal::Malformed),
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
        Change::Contenders { chunk, ref contenders } => {
            GroupChange::Contenders { chunk, list: contenders.list().to_vec() }
        }
        Change::Mark => GroupChange::Mark,
    };
    (wire, Bytes::new())
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
        GroupChange::Contenders { chunk, list } => {
            Change::Contenders { chunk, contenders: Contenders::from_list(list)? }
        }
        GroupChange::Mark => Change::Mark,
    })
}
