//! Who takes part in a shard's log: how its leader gets from the configuration it has to the one that is wanted.
//!
//! ```text
//! (out) ──add──▶ learner ──snapshot, then entries; caught up──▶ voter          in one joint step, another voter may leave
//! ```
//! * One change at a time; a change begins when the one before is applied here, and when this leader has applied all of earlier terms.
//! * A server with an empty log begins with a snapshot, never with the log's first entry: only a snapshot brings the configuration.
//! * A leader that is to leave hands over first.

use super::Replica;
use crate::machine::Machine;
use crate::tables::members::MembersRow;
use holdfast_types::ServerId;
use raft::ProgressState;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Message, MessageType};
use std::collections::BTreeSet;

/// A server that said something within so many ticks (a second) is heard.
const HEARD_TICKS: u64 = 20;
/// A learner that lacks at most so many entries is caught up.
const CAUGHT_UP: u64 = 64;

/// What a shard's configuration should come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// This server votes; in the same step the other one leaves.
    In(ServerId, Option<ServerId>),
    /// This server does not take part.
    Out(ServerId),
}

impl Wanted {
    /// Whose place it is about.
    pub(crate) fn server(self) -> ServerId {
        match self {
            Self::In(server, _) | Self::Out(server) => server,
        }
    }
}

/// Whether a server takes part in any way.
pub(crate) fn is_member(state: &ConfState, server: ServerId) -> bool {
    [&state.voters, &state.learners, &state.voters_outgoing, &state.learners_next]
        .iter()
        .any(|list| list.contains(&server.0))
}

impl<M: Machine> Replica<M> {
    /// The configuration as applied here.
    pub(crate) fn members(&self) -> MembersRow {
        MembersRow::of(self.node.store().members())
    }

    /// The configuration as raft goes by it, as its store says it, and as the table holds it: three copies of one thing.
    #[cfg(test)]
    pub(crate) fn members_everywhere(&self) -> [MembersRow; 3] {
        let raft = self.node.raft.prs().conf().to_conf_state();
        let table = super::members_of(&*self.table, &self.config).expect("it was written here");
        [MembersRow::of(&raft), self.members(), MembersRow::of(&table)]
    }

    /// Whether a wish has come true, as far as this server has applied.
    pub(crate) fn is_as_wanted(&self, wanted: Wanted) -> bool {
        let state = self.node.store().members();
        if !state.voters_outgoing.is_empty() {
            return false;
        }
        match wanted {
            Wanted::In(server, other) => {
                state.voters.contains(&server.0) && other.is_none_or(|other| !is_member(state, other))
            }
            Wanted::Out(server) => !is_member(state, server),
        }
    }

    /// Whether this server leads, has applied all of earlier terms, and nothing is on its way that changes the configuration.
    pub(crate) fn knows_its_members(&self) -> bool {
        self.is_ready_to_lead() && !self.node.raft.has_pending_conf()
    }

    /// Whether a server takes part, as far as this server has applied.
    pub(crate) fn has_member(&self, server: ServerId) -> bool {
        is_member(self.node.store().members(), server)
    }

    /// Voters that this leader has heard of late, itself included.
    pub(crate) fn voters_heard(&self) -> Vec<ServerId> {
        self.node.store().conf_state().voters.into_iter().filter(|id| self.hears(*id)).map(ServerId).collect()
    }

    pub(crate) fn hears(&self, id: u64) -> bool {
        id == self.config.id.0 || self.heard.get(&id).is_some_and(|tick| self.ticks < tick + HEARD_TICKS)
    }

    /// Takes the next step towards what is wanted, if it is due and this server leads.
    pub(crate) fn drive_members(&mut self, wanted: &[Wanted]) {
        if !self.knows_its_members() || self.node.raft.lead_transferee.is_some() {
            return;
        }
        let state = self.node.store().conf_state();
        if !state.voters_outgoing.is_empty() {
            // Raft leaves it by itself, unless the leader changed in between.
            return self.propose_members(Vec::new());
        }
        if !state.voters.contains(&self.config.id.0) {
            // Elected while it was on its way out: it can propose nothing any more.
            return self.hand_over();
        }
        for wish in wanted.iter().filter(|wish| !self.is_as_wanted(**wish)) {
            if let Some(changes) = self.next_changes(&state, *wish) {
                if changes.iter().any(|(change, id)| *change == ConfChangeType::RemoveNode && *id == self.config.id) {
                    return self.hand_over();
                }
                // It was looked at when it was asked for, but in the other shard, and a while ago.
                if self.leaves_a_majority(&state, &changes) {
                    return self.propose_members(changes);
                }
            }
        }
    }

    /// Whether a majority of the voters that these changes leave is heard.
    fn leaves_a_majority(&self, state: &ConfState, changes: &[(ConfChangeType, ServerId)]) -> bool {
        let mut voters: BTreeSet<u64> = state.voters.iter().copied().collect();
        for (kind, server) in changes {
            match kind {
                ConfChangeType::AddNode => drop(voters.insert(server.0)),
                ConfChangeType::RemoveNode => drop(voters.remove(&server.0)),
                ConfChangeType::AddLearnerNode => {}
            }
        }
        voters.iter().filter(|id| self.hears(**id)).count() * 2 > voters.len()
    }

    fn next_changes(&self, state: &ConfState, wish: Wanted) -> Option<Vec<(ConfChangeType, ServerId)>> {
        let leaves = |server| (ConfChangeType::RemoveNode, server);
        match wish {
            Wanted::Out(server) => Some(vec![leaves(server)]),
            Wanted::In(server, other) if state.voters.contains(&server.0) => other.map(|other| vec![leaves(other)]),
            Wanted::In(server, other) if state.learners.contains(&server.0) => {
                let last = self.node.raft.raft_log.committed;
                let progress = self.node.raft.prs().get(server.0)?;
                let ready = progress.state == ProgressState::Replicate
                    && progress.recent_active
                    && progress.matched + CAUGHT_UP >= last;
                let goes = other.filter(|other| is_member(state, *other));
                ready.then(|| std::iter::once((ConfChangeType::AddNode, server)).chain(goes.map(leaves)).collect())
            }
            Wanted::In(server, _) => Some(vec![(ConfChangeType::AddLearnerNode, server)]),
        }
    }

    fn propose_members(&mut self, changes: Vec<(ConfChangeType, ServerId)>) {
        let mut change = ConfChangeV2::default();
        for (kind, server) in changes {
            let mut single = ConfChangeSingle { node_id: server.0, ..ConfChangeSingle::default() };
            single.set_change_type(kind);
            change.changes.push(single);
        }
        // Refused when too much is uncommitted: it is tried again.
        let _ = self.node.propose_conf_change(Vec::new(), change);
    }

    /// The voter that holds most leads next. Nothing happens without another voter that is heard, or if this server does not lead.
    pub(crate) fn hand_over(&mut self) {
        if !self.is_leader() || self.node.raft.lead_transferee.is_some() {
            return;
        }
        let me = self.config.id.0;
        let state = self.node.store().conf_state();
        let raft = &self.node.raft;
        let others = raft
            .prs()
            .iter()
            // Not by raft's own mark, which it takes off all of them in the same moment, once every election timeout.
            .filter(|(id, _)| **id != me && state.voters.contains(id) && self.hears(**id));
        if let Some((next, _)) = others.max_by_key(|(id, progress)| (progress.matched, u64::MAX - **id)) {
            let next = *next;
            self.node.transfer_leader(next);
        }
    }

    /// Whether this message would have a learner begin at the log's first entry: it gets a snapshot in its place.
    pub(super) fn begins_a_learner(&mut self, message: &Message) -> bool {
        if message.get_msg_type() != MessageType::MsgAppend || message.index != 0 || self.applied.index.0 == 0 {
            return false;
        }
        let learners = &self.node.store().conf_state().learners;
        if !learners.contains(&message.to) {
            return false;
        }
        let applied = self.applied.index.0;
        if let Some(progress) = self.node.raft.mut_prs().get_mut(message.to) {
            progress.become_snapshot(applied);
        }
        true
    }
}
