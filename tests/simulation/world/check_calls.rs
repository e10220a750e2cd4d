//! Calls of applications, judged: a read, from a cache or not, shows some state between the last that anybody had seen when it
//! began and the last that there was when it ended.

use super::Sim;
use super::check_names::{Look, Timeline};
use super::record::{CallRecord, Returned};
use holdfast_client_core::{Call, ClientError, Reply};
use holdfast_types::SessionId;
use holdfast_wire::namespace::{Attributes, DirectoryEntry, NamespaceError};
use std::collections::BTreeMap;

/// Versions that held at some index of a range, the first included that began before it.
fn within<T>(versions: Option<&Vec<(u64, T)>>, from: u64, to: u64) -> impl Iterator<Item = Option<&T>> {
    let all: &[(u64, T)] = versions.map_or(&[], Vec::as_slice);
    let first = all.partition_point(|(index, _)| *index <= from);
    let last = all.partition_point(|(index, _)| *index <= to);
    // Nothing is what holds before the first version.
    let before = first.checked_sub(1).map(|at| &all[at].1);
    std::iter::once(before).chain(all[first..last.max(first)].iter().map(|(_, version)| Some(version)))
}

fn look(attributes: &Attributes) -> Look {
    Look {
        kind: attributes.kind,
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        links: attributes.links,
    }
}

impl Sim {
    pub(super) fn check_calls(&self, timeline: &Timeline) -> Result<(), String> {
        let open = self.open_mutations(timeline);
        for record in &self.record.calls {
            let Some(returned) = &record.returned else { continue };
            // What a session that is over still had cached may be shown to its own host.
            let session = self.record.mounts[record.mount].session;
            let ended = session.and_then(|session| self.truth[1].ended.get(&session));
            if ended.is_some_and(|ended| *ended <= returned.at) {
                continue;
            }
            // A change of its own that is not answered yet may come after, whatever else was seen of the log.
            let unanswered = session.and_then(|session| {
                let own = open.get(&session)?;
                own.iter().find(|(_, answered)| *answered > record.invoked).map(|(index, _)| *index)
            });
            let from = unanswered.map_or(record.seen, |index| record.seen.min(index - 1));
            if !is_allowed(timeline, record, returned, from) {
                let names = match &record.call {
                    Call::Lookup { parent, name } => format!("{:?}", timeline.entries.get(&(*parent, name.clone()))),
                    Call::GetAttributes { inode } => format!("{:?}", timeline.looks.get(inode)),
                    Call::ReadDirectory { inode, .. } => format!("{:?}", timeline.listings.get(inode)),
                    _ => String::new(),
                };
                let result = match &returned.result {
                    Ok(Reply::Directory { entries, end, .. }) => {
                        let names: Vec<_> =
                            entries.iter().map(|entry| (&entry.name, entry.inode, entry.cookie)).collect();
                        format!("{names:?} end {end}")
                    }
                    other => format!("{other:?}"),
                };
                return Err(format!(
                    "call: client {} ({session:?}), from {} at {}: {:?} -> {result} at {}, but between {from} and {} there was no such state; versions: {names}",
                    record.client, record.invoked, record.invoked_at, record.call, returned.at, returned.newest
                ));
            }
        }
        Ok(())
    }
}

impl Sim {
    /// Applied mutations of each session, by index, with the order of their answers.
    fn open_mutations(&self, timeline: &Timeline) -> BTreeMap<SessionId, Vec<(u64, u64)>> {
        let mut open: BTreeMap<SessionId, Vec<(u64, u64)>> = BTreeMap::new();
        for (key, (index, _)) in &timeline.names.first {
            let answered = self.record.mutations.get(key).and_then(|record| record.returned.as_ref());
            open.entry(key.0).or_default().push((*index, answered.map_or(u64::MAX, |(order, ..)| *order)));
        }
        open.values_mut().for_each(|all| all.sort_unstable());
        open
    }
}

fn is_allowed(timeline: &Timeline, record: &CallRecord, returned: &Returned, from: u64) -> bool {
    let to = returned.newest;
    match (&record.call, &returned.result) {
        (Call::Lookup { parent, name }, Ok(Reply::Attributes(attributes))) => {
            let inode = attributes.inode;
            let named =
                within(timeline.entries.get(&(*parent, name.clone())), from, to).any(|v| v == Some(&Some(inode)));
            let looks = within(timeline.looks.get(&inode), from, to).any(|v| v == Some(&Some(look(attributes))));
            named && looks
        }
        (Call::Lookup { parent, name }, Err(ClientError::Namespace(NamespaceError::NotFound))) => {
            within(timeline.entries.get(&(*parent, name.clone())), from, to).any(|v| matches!(v, None | Some(None)))
        }
        (Call::GetAttributes { inode }, Ok(Reply::Attributes(attributes))) => {
            within(timeline.looks.get(inode), from, to).any(|v| v == Some(&Some(look(attributes))))
        }
        (Call::GetAttributes { inode }, Err(ClientError::Namespace(NamespaceError::Stale))) => {
            within(timeline.looks.get(inode), from, to).any(|v| matches!(v, None | Some(None)))
        }
        (Call::ReadDirectory { inode, after: 0, limit, .. }, Ok(Reply::Directory { entries, end, .. })) => {
            let shown = |name: &holdfast_types::FileName| entries.iter().any(|entry| entry.name == *name);
            let is_in = |entry: &DirectoryEntry, listing: &[(holdfast_types::FileName, holdfast_types::InodeId)]| {
                listing.iter().any(|(name, inode)| *name == entry.name && *inode == entry.inode)
            };
            within(timeline.listings.get(inode), from, to).any(|listing| {
                let listing: &[_] = listing.map_or(&[], Vec::as_slice);
                let enough =
                    if *end { listing.iter().all(|(name, _)| shown(name)) } else { entries.len() >= *limit as usize };
                enough && entries.len() <= listing.len() && entries.iter().all(|entry| is_in(entry, listing))
            })
        }
        _ => true,
    }
}
