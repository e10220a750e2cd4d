//! What was committed, entry by entry, as the servers applied it: the ground truth that answers are compared with.
//!
//! * No two servers apply different entries at one index.
//! * No two servers lead in one term.

use holdfast_metadata_core::LogEntry;
use holdfast_metadata_core::inspect::{VolumesEntry, volumes_entry};
use holdfast_sim::WorldTime;
use holdfast_types::{ServerId, SessionId, ShardId, Term};
use std::collections::BTreeMap;

/// A committed entry.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) entry: LogEntry,
    /// When a server applied it first: nobody can have seen its effect before.
    pub(super) at: WorldTime,
}

/// One shard's.
#[derive(Debug)]
pub(super) struct Truth {
    shard: ShardId,
    pub(super) entries: BTreeMap<u64, Committed>,
    leaders: BTreeMap<Term, ServerId>,
    /// Sessions whose fences had settled before this, when the first entry that says so was applied.
    fenced: BTreeMap<SessionId, WorldTime>,
    /// Sessions that are over, and when that was first applied.
    pub(super) ended: BTreeMap<SessionId, WorldTime>,
}

impl Truth {
    pub(super) fn new(shard: ShardId) -> Self {
        Self {
            shard,
            entries: BTreeMap::new(),
            leaders: BTreeMap::new(),
            fenced: BTreeMap::new(),
            ended: BTreeMap::new(),
        }
    }

    /// A server applied an entry.
    pub(super) fn applied(&mut self, server: ServerId, entry: &LogEntry, at: WorldTime) -> Result<(), String> {
        let index = entry.at.index.0;
        if let Some(first) = self.entries.get(&index) {
            if first.entry.at.term != entry.at.term || first.entry.data != entry.data {
                return Err(format!(
                    "{} at {index}: {server} applied an entry of {}, another server one of {}",
                    self.shard, entry.at.term, first.entry.at.term
                ));
            }
            return Ok(());
        }
        if self.shard == ShardId::VOLUMES {
            match volumes_entry(&entry.data) {
                Some(VolumesEntry::EndStep { session, .. }) => {
                    self.fenced.entry(session).or_insert(at);
                }
                Some(VolumesEntry::End { sessions }) => {
                    for session in sessions {
                        self.ended.entry(session).or_insert(at);
                    }
                }
                _ => {}
            }
        }
        self.entries.insert(index, Committed { entry: entry.clone(), at });
        Ok(())
    }

    /// A server leads.
    pub(super) fn leads(&mut self, server: ServerId, term: Term) -> Result<(), String> {
        match *self.leaders.entry(term).or_insert(server) {
            other if other != server => Err(format!("{other} and {server} both lead in {term}")),
            _ => Ok(()),
        }
    }

    /// When a session's fence had settled for sure.
    pub(super) fn fence_settled(&self, session: SessionId) -> Option<WorldTime> {
        self.fenced.get(&session).copied()
    }

    /// The greatest index whose effect somebody can have seen by now.
    pub(super) fn newest(&self) -> u64 {
        self.entries.last_key_value().map_or(0, |(index, _)| *index)
    }
}
