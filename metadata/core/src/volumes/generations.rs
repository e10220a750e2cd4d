//! Generations of instances: the same container or pod, in its next life.
//!
//! ```text
//! orchestrator: publish on B ──RaiseGeneration(g)──▶ row = g, sessions below g ending ──fenced──▶ Done: nobody of before changes a byte
//! mount on B:   Attach(g) is let in; Attach(below g), of a host that wakes up late, is Superseded, whoever is attached then
//! ```

use super::{rows, sessions};
use crate::error::{Applied, Fail};
use crate::machine::Context;
use crate::tables::session::{self, GenerationRow, Phase};
use crate::tables::volume;
use crate::txn::Txn;
use holdfast_types::{InstanceGeneration, SessionId, VolumeId};
use holdfast_wire::metadata::{ClientRecord, MetadataError, Response};

/// Instances of a volume that are remembered. Beyond that the one that was raised longest ago, and is not attached, is forgotten: who
/// names every life of a container anew needs no memory of the old names, for nobody comes with one again.
const KEPT: usize = 4096;

/// The least generation of an instance that is let in.
fn least(txn: &Txn<'_>, volume: VolumeId, instance: &str) -> Applied<InstanceGeneration> {
    let row: Option<GenerationRow> = txn.get(&session::generation(volume, instance))?;
    Ok(row.map_or(InstanceGeneration(0), |row| row.least))
}

/// Refuses a client whose instance lives on in a greater generation, or has.
pub(super) fn admits(txn: &Txn<'_>, volume: VolumeId, client: &ClientRecord) -> Applied<()> {
    if client.instance.is_empty() {
        return Ok(());
    }
    let by = least(txn, volume, &client.instance)?;
    if by > client.instance_generation { Err(Fail::Unkept(MetadataError::Superseded { by })) } else { Ok(()) }
}

/// None below this generation is let in from now on.
pub(super) fn raise(
    txn: &mut Txn<'_>,
    context: &Context<'_>,
    id: VolumeId,
    instance: &str,
    generation: InstanceGeneration,
) -> Applied<()> {
    let key = session::generation(id, instance);
    let known: Option<GenerationRow> = txn.get(&key)?;
    // What is noted down of a volume goes with it, and is not noted down after that.
    let gone = txn.get_raw(&volume::dropped(id))?.is_some();
    if gone || known.is_some_and(|row| row.least >= generation) || generation == InstanceGeneration(0) {
        return Ok(());
    }
    if known.is_none() {
        forget_one(txn, id)?;
    }
    txn.put(key, &GenerationRow { least: generation, raised: context.stamp });
    Ok(())
}

/// Whether a client is an earlier life of an instance.
pub(super) fn is_lesser(client: &ClientRecord, instance: &str, generation: InstanceGeneration) -> bool {
    client.instance == instance && client.instance_generation < generation
}

/// As asked for by an orchestrator: those that are attached are over as well.
pub(super) fn raise_and_end(
    txn: &mut Txn<'_>,
    context: &Context<'_>,
    volume: VolumeId,
    instance: &str,
    generation: InstanceGeneration,
) -> Applied<Response> {
    raise(txn, context, volume, instance, generation)?;
    for (id, mut row) in sessions::others(txn, volume, SessionId::NONE)? {
        if is_lesser(&row.client, instance, generation) && row.phase == Phase::Attached {
            row.phase = Phase::Ending { reason: format!("superseded by generation {generation}") };
            txn.put(session::key(id), &row);
        }
    }
    Ok(Response::Done)
}

/// Makes room for one more instance of a volume.
fn forget_one(txn: &mut Txn<'_>, volume: VolumeId) -> Applied<()> {
    let prefix = session::generations(volume);
    let known = rows::<GenerationRow>(txn, prefix.clone(), KEPT)?;
    if known.len() < KEPT {
        return Ok(());
    }
    let attached = sessions::others(txn, volume, SessionId::NONE)?;
    let is_attached =
        |key: &[u8]| attached.iter().any(|(_, row)| row.client.instance.as_bytes() == &key[prefix.len()..]);
    let oldest = known.into_iter().filter(|(key, _)| !is_attached(key)).min_by_key(|(_, row)| row.raised);
    if let Some((key, _)) = oldest {
        txn.remove(key);
    }
    Ok(())
}
