//! Who may ask what: the checks of a client's request that need only the map.

use crate::book::Ctx;
use crate::change::within_chunk;
use bytes::Bytes;
use holdfast_types::{ChunkKey, GroupId, MapVersion, SessionId};
use holdfast_wire::chunk::{ChunkOp, ChunkRequest, Refusal};

/// Checks map, session, volume and bounds.
///
/// # Errors
/// The refusal to answer with. Where the request knows of a newer map, that map is asked for.
pub(crate) fn check(ctx: &mut Ctx<'_>, request: &ChunkRequest, payload: &Bytes) -> Result<(), Refusal> {
    let have = ctx.map.version;
    if have == MapVersion(0) {
        return Err(Refusal::NotServing { reason: "no map yet".into() });
    }
    if request.map_min > have {
        ctx.want_map(request.map_min);
        return Err(Refusal::OldMap { have });
    }
    session(ctx, request)?;
    let Some(view) = ctx.map.view(request.group) else { return Err(Refusal::Malformed) };
    if request.epoch > view.epoch {
        // The client has seen a newer map than we.
        ctx.want_map(have.next());
    }
    let groups = ctx.map.views.len() as u32;
    let here = |chunk: ChunkKey| GroupId::of(chunk.volume, chunk.inode, chunk.index, groups) == request.group;
    let sound = match &request.op {
        ChunkOp::Write { chunk, .. } => here(*chunk),
        ChunkOp::Zero { chunk, .. } | ChunkOp::Cut { chunk, .. } => here(*chunk),
        ChunkOp::Read { chunk, offset, length } => {
            here(*chunk) && within_chunk(*offset, u64::from(*length)) && payload.is_empty()
        }
        ChunkOp::Delete { .. } | ChunkOp::DeleteVolume { .. } => true,
        ChunkOp::Made { chunk, .. } => here(*chunk) && payload.is_empty(),
        ChunkOp::Highest { .. } => payload.is_empty(),
        ChunkOp::Allocated { from, upto, .. } => from <= upto && payload.is_empty(),
    };
    if sound { Ok(()) } else { Err(Refusal::Malformed) }
}

/// The session is alive and may do this to this volume.
fn session(ctx: &mut Ctx<'_>, request: &ChunkRequest) -> Result<(), Refusal> {
    if request.session == SessionId::SERVICE {
        // One who was deposed, and does not know it yet: its successor has done this, and others have written there since.
        return if request.term < ctx.map.service_term { Err(Refusal::StaleSequence) } else { Ok(()) };
    }
    if request.session == SessionId::NONE {
        return Err(Refusal::Forbidden);
    }
    if request.session > ctx.map.session_newest {
        let have = ctx.map.version;
        ctx.want_map(have.next());
        return Err(Refusal::OldMap { have });
    }
    let Some(grant) = ctx.map.session(request.session) else { return Err(Refusal::SessionEnded) };
    let foreign = grant.volume != request.op.volume();
    let whole_volume = matches!(request.op, ChunkOp::DeleteVolume { .. });
    if foreign || whole_volume || (grant.read_only && request.op.is_change()) {
        return Err(Refusal::Forbidden);
    }
    Ok(())
}
