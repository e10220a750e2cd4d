//! What logs and tables say of themselves. A log's entries, for the simulator: its model of the namespace is replayed from what was
//! committed, and shares no code with `apply`. How far a table is, for backups.

use crate::api::LogPosition;
use crate::command::{ClusterCommand, Command, NodeChange, Proposal, VolumesCommand};
use crate::tables::Row;
use crate::tables::applied::{self, AppliedRow};
use holdfast_store::View;
use holdfast_types::{Generation, InodeId, NodeId, Sequence, SessionId};
use holdfast_wire::namespace::Mutation;

/// How far a table is.
///
/// # Errors
/// A text, if that cannot be read.
pub fn applied(view: &dyn View) -> Result<LogPosition, String> {
    match view.get(&applied::key()).map_err(|error| error.to_string())? {
        Some(bytes) => AppliedRow::decode(&bytes).map(|row| row.at()).map_err(|error| error.to_string()),
        None => Ok(LogPosition::default()),
    }
}

/// A command of shard 1, as far as it changes what clients can see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumesEntry {
    /// A session changes its volume.
    Mutate {
        /// On whose behalf.
        session: SessionId,
        /// Its number.
        sequence: Sequence,
        /// The session has every answer below.
        answered_below: Sequence,
        /// What.
        mutation: Mutation,
    },
    /// A session begins; it may have to wait, and then comes again.
    Attach {
        /// Which.
        session: SessionId,
        /// It changes nothing.
        read_only: bool,
    },
    /// A caching session is told to stop.
    Recall {
        /// Which.
        session: SessionId,
    },
    /// It has.
    StoppedCaching {
        /// Which.
        session: SessionId,
        /// The event that it answers.
        event: u64,
        /// What it has open.
        open: Vec<InodeId>,
    },
    /// It may again.
    StartCaching {
        /// Which.
        session: SessionId,
    },
    /// Sessions are over.
    End {
        /// Which.
        sessions: Vec<SessionId>,
    },
    /// Storage nodes refuse an ended session by now: what it held goes, so many rows at a time.
    EndStep {
        /// Which.
        session: SessionId,
        /// Rows at the most.
        rows: u32,
    },
    /// Ends of files are gone: inode, generation, and the range.
    Trimmed(Vec<(InodeId, Generation, u64, u64)>),
    /// Anything else, the empty entry of a new term included.
    Other,
}

/// Storage nodes that an entry of shard 0's log declares silent.
pub fn declared_silent(data: &[u8]) -> Vec<NodeId> {
    let proposal: Option<Proposal> = holdfast_wire::codec::decode(data).ok();
    let Some(Command::Cluster(ClusterCommand::Update { nodes, .. })) = proposal.map(|proposal| proposal.command) else {
        return Vec::new();
    };
    let silent = |change: &NodeChange| match change {
        NodeChange::Silent { node } => Some(*node),
        NodeChange::Register { .. } | NodeChange::Heard { .. } | NodeChange::Gone { .. } => None,
    };
    nodes.iter().filter_map(silent).collect()
}

/// What an entry of shard 1's log says. `None`: it is not one of ours.
pub fn volumes_entry(data: &[u8]) -> Option<VolumesEntry> {
    if data.is_empty() {
        return Some(VolumesEntry::Other);
    }
    let proposal: Proposal = holdfast_wire::codec::decode(data).ok()?;
    let Command::Volumes(command) = proposal.command else { return None };
    Some(match command {
        VolumesCommand::Mutate { session, sequence, answered_below, mutation, .. } => {
            VolumesEntry::Mutate { session, sequence, answered_below, mutation }
        }
        VolumesCommand::Attach { session, read_only, .. } => VolumesEntry::Attach { session, read_only },
        VolumesCommand::Recall { session } => VolumesEntry::Recall { session },
        VolumesCommand::StoppedCaching { session, event, open } => {
            VolumesEntry::StoppedCaching { session, event, open }
        }
        VolumesCommand::StartCaching { session } => VolumesEntry::StartCaching { session },
        VolumesCommand::End { sessions } => {
            VolumesEntry::End { sessions: sessions.into_iter().map(|(session, _)| session).collect() }
        }
        VolumesCommand::EndStep { session, rows } => VolumesEntry::EndStep { session, rows },
        VolumesCommand::Cleaned { trimmed, .. } => {
            VolumesEntry::Trimmed(trimmed.into_iter().map(|t| (t.inode, t.generation, t.from, t.to)).collect())
        }
        VolumesCommand::Park { .. }
        | VolumesCommand::Limit { .. }
        | VolumesCommand::Room { .. }
        | VolumesCommand::DropVolume { .. }
        | VolumesCommand::DropStep { .. }
        | VolumesCommand::RaiseGeneration { .. }
        | VolumesCommand::Dropped { .. } => VolumesEntry::Other,
    })
}
