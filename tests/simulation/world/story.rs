//! For people: everything that concerns one slot of a file, in order of time.

use super::Sim;
use super::blocks::slots_of;
use holdfast_client_core::{Call, Reply};
use holdfast_metadata_core::inspect::{VolumesEntry, volumes_entry};
use holdfast_types::InodeId;
use holdfast_wire::namespace::Mutation;

/// Lines at the most.
const LINES_MAX: usize = 160;

impl Sim {
    /// What clients did with a slot of an inode, and what was committed of it.
    pub(super) fn story_of(&self, inode: InodeId, slot: u64) -> String {
        let mut lines: Vec<(u64, String)> = Vec::new();
        for (number, record) in self.record.calls.iter().enumerate() {
            let of = |handle| self.record.handles.get(&(record.mount, handle)) == Some(&inode);
            let what = match &record.call {
                Call::Write { handle, offset, data, .. }
                    if of(*handle) && slots_of(*offset, data.len() as u64).contains(&slot) =>
                {
                    format!("write {} to slots {:?}", number + 1, slots_of(*offset, data.len() as u64))
                }
                Call::Read { handle, offset, length }
                    if of(*handle) && slots_of(*offset, u64::from(*length)).contains(&slot) =>
                {
                    format!("read slots {:?}", slots_of(*offset, u64::from(*length)))
                }
                Call::Zero { handle, offset, length, .. }
                    if of(*handle) && slots_of(*offset, *length).contains(&slot) =>
                {
                    format!("zero slots {:?}", slots_of(*offset, *length))
                }
                Call::Seek { handle, offset, seek } if of(*handle) => format!("seek {seek:?} from {offset}"),
                Call::Release { handle } if of(*handle) => "release".into(),
                Call::SetAttributes { inode: of, set } if *of == inode => format!("set {set:?}"),
                Call::Fsync { inode: of, .. } if *of == inode => "fsync".into(),
                Call::SyncAll => "sync all".into(),
                Call::Open { inode: of, .. } if *of == inode => "open".into(),
                Call::Create { .. }
                    if record.returned.as_ref().is_some_and(
                        |r| matches!(&r.result, Ok(Reply::Created { attributes, .. }) if attributes.inode == inode),
                    ) =>
                {
                    "create".into()
                }
                _ => continue,
            };
            let answer = record.returned.as_ref().map_or("never".into(), |returned| match &returned.result {
                Ok(Reply::Data(data)) => {
                    let bytes = data.clone().into_bytes();
                    let values: Vec<u64> = bytes
                        .chunks(super::blocks::SLOT_BYTES as usize)
                        .map(|slot| {
                            slot.get(..8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap_or_default()) >> 8)
                        })
                        .collect();
                    format!("{} {values:?}", returned.at)
                }
                Ok(_) => format!("{} ok", returned.at),
                Err(error) => format!("{} {error}", returned.at),
            });
            let mount = &self.record.mounts[record.mount];
            let end = if mount.clean {
                ""
            } else if mount.over {
                " (lost)"
            } else {
                ""
            };
            let session = mount.session.map_or("-".into(), |session| session.to_string());
            lines.push((
                record.invoked_at.0,
                format!("{} client {} {session}{end} {what} -> {answer}", record.invoked_at, record.client),
            ));
        }
        for (index, committed) in &self.truth[1].entries {
            let text = match volumes_entry(&committed.entry.data) {
                Some(VolumesEntry::Mutate { session, sequence, mutation, .. }) if concerns(&mutation, inode) => {
                    format!("{session} {sequence} {mutation:?}")
                }
                Some(VolumesEntry::Trimmed(ranges)) if ranges.iter().any(|range| range.0 == inode) => {
                    format!("trimmed {ranges:?}")
                }
                Some(
                    other @ (VolumesEntry::Attach { .. }
                    | VolumesEntry::Recall { .. }
                    | VolumesEntry::StoppedCaching { .. }
                    | VolumesEntry::StartCaching { .. }
                    | VolumesEntry::End { .. }
                    | VolumesEntry::EndStep { .. }),
                ) => format!("{other:?}"),
                _ => continue,
            };
            lines.push((committed.at.0, format!("{}     @{index} {text}", committed.at)));
        }
        lines.sort();
        let skipped = lines.len().saturating_sub(LINES_MAX);
        lines.into_iter().skip(skipped).map(|(_, line)| line).collect::<Vec<_>>().join("\n  ")
    }
}

fn concerns(mutation: &Mutation, inode: InodeId) -> bool {
    match mutation {
        Mutation::SetAttributes { inode: of, .. }
        | Mutation::Reserve { inode: of, .. }
        | Mutation::Publish { inode: of, .. }
        | Mutation::Open { inode: of, .. }
        | Mutation::Close { inode: of, .. } => *of == inode,
        Mutation::Unlink { open, .. } | Mutation::Rename { open, .. } => *open == Some(inode),
        _ => false,
    }
}
