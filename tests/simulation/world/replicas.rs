//! What disks hold: each by itself, and members of a group compared.

use super::Sim;
use super::node::DISK;
use holdfast_journal::MemoryDisk;
use holdfast_storage_core::local::{ChunkSummary, KeyRange, LocalCommand, LocalOutcome};
use holdfast_storage_server::chunk_store::ChunkStore;
use holdfast_types::{ChunkKey, GroupId, MemberId};
use holdfast_wire::map::ClusterMap;
use std::collections::BTreeSet;

/// Chunks asked for at once.
const LIST_MAX: u32 = 10_000;
/// Bytes at either end of a chunk that scripts write to, at the most.
const ENDS_BYTES: u32 = 64 << 10;

pub(super) fn list(store: &ChunkStore<MemoryDisk>, group: GroupId) -> Result<Vec<ChunkSummary>, String> {
    match store.reader().serve(&LocalCommand::List { group, range: KeyRange::ALL, limit: LIST_MAX }) {
        Ok(LocalOutcome::Chunks { chunks }) => Ok(chunks),
        other => Err(format!("{group} cannot be listed: {other:?}")),
    }
}

/// Every block of every chunk has its sum: no crash leaves a torn block. Chunks that were damaged on purpose are left out.
pub(super) fn scrub(store: &ChunkStore<MemoryDisk>, rotten: &BTreeSet<(GroupId, ChunkKey)>) -> Result<(), String> {
    for state in store.groups() {
        for found in list(store, state.group)? {
            let (group, chunk) = (state.group, found.chunk);
            if rotten.contains(&(group, chunk)) {
                continue;
            }
            // Scripts write to both ends of a chunk; between them is nothing.
            for offset in [0, found.length.saturating_sub(ENDS_BYTES)] {
                let read = LocalCommand::Read { group, chunk, offset, length: ENDS_BYTES };
                if let Err(error) = store.reader().serve(&read) {
                    return Err(format!("{chunk} of {group} from {offset}: {error}"));
                }
            }
        }
    }
    Ok(())
}

/// A chunk that a member holds: which, its length, its digest.
type Held = (holdfast_types::ChunkKey, u32, u32);

impl Sim {
    /// The map as the leader of shard 0 has it.
    pub(super) fn leaders_map(&self) -> Option<ClusterMap> {
        let leader = self.leader_of(0)?;
        self.servers[leader].life.as_ref().map(|life| life.core.map())
    }

    /// Why not every group is whole; `None` if each is.
    pub(super) fn degraded(&self) -> Option<String> {
        let Some(map) = self.leaders_map() else { return Some("nobody leads shard 0".into()) };
        if map.views.len() != self.setup.groups as usize {
            return Some("the pool is not formed".into());
        }
        let whole = map.replicas as usize;
        let lacking = map.views.iter().enumerate().find(|(_, view)| view.in_sync.len() < whole)?;
        Some(format!("g{}: {:?}", lacking.0, lacking.1))
    }

    /// Members in sync hold the same chunks with the same sums, and no block is bad.
    pub(super) fn check_replicas(&self) -> Result<(), String> {
        let map = self.leaders_map().ok_or("nobody leads shard 0")?;
        for (number, view) in map.views.iter().enumerate() {
            let group = GroupId(number as u32);
            let mut first: Option<(MemberId, Vec<Held>)> = None;
            for member in &view.in_sync {
                let node = &self.nodes[member.node.0 as usize - 1];
                let Some(life) = node.life.as_ref().filter(|life| life.incarnation == member.incarnation) else {
                    return Err(format!("{group}: {member} is in sync and does not live"));
                };
                debug_assert_eq!(member.disk, DISK, "one disk per node");
                let held = list(&life.store, group)?.into_iter().map(|c| (c.chunk, c.length, c.digest)).collect();
                match &first {
                    None => first = Some((*member, held)),
                    Some((other, have)) if *have != held => {
                        let differs =
                            have.iter().find(|c| !held.contains(c)).or(held.iter().find(|c| !have.contains(c)));
                        return Err(format!("{group}: {other} and {member} differ at {differs:?}"));
                    }
                    Some(_) => {}
                }
            }
        }
        for node in &self.nodes {
            if let Some(life) = &node.life {
                // What a node holds of groups that it left is scrubbed by nobody.
                let member = |group: GroupId| {
                    map.view(group).is_some_and(|view| view.in_sync.iter().any(|member| member.node == node.id))
                };
                let left = node.rotten.iter().filter(|(group, _)| !member(*group)).copied().collect();
                scrub(&life.store, &left).map_err(|reason| format!("{} at the end: {reason}", node.id))?;
            }
        }
        Ok(())
    }
}
