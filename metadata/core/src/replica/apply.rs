//! Committed entries meet the state machine.

use super::log::position;
use super::members::is_member;
use super::{Event, Outcome, Replica, describe};
use crate::api::Counters;
use crate::command::{Command, Proposal};
use crate::error::{Applied, Fail, ensure};
use crate::machine::{Context, Machine, Output};
use crate::tables::members::{self, MembersRow};
use crate::tables::{Row, applied};
use crate::txn::Txn;
use holdfast_store::Batch;
use holdfast_types::{LogIndex, Term};
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType};

/// Bytes of changes after which a run is committed to the table, so that a long catch-up stays small in memory.
const RUN_BYTES_MAX: usize = 4 << 20;
/// Commands likewise.
const RUN_COMMANDS_MAX: usize = 1024;

impl<M: Machine> Replica<M> {
    /// Applies committed entries in order; halts at the first that our own state does not allow.
    pub(super) fn apply_all(&mut self, entries: &[Entry], events: &mut Vec<Event>, counters: &mut Counters) {
        let mut run = Batch::new();
        let mut run_commands = 0;
        let mut outcomes = Vec::new();
        for entry in entries {
            assert_eq!(entry.index, self.applied.index.0 + 1, "entries are applied in order");
            match self.apply_one(entry, &run, counters) {
                Ok((outcome, changes)) => {
                    run.merge(changes);
                    outcomes.push((entry.index, entry.term, outcome));
                }
                Err(fail) => {
                    self.halt(LogIndex(entry.index), describe(&fail));
                    break;
                }
            }
            let at = position(entry);
            (self.applied.index, self.applied.term) = (at.index, at.term);
            self.applied_bytes += entry.data.len() as u64;
            counters.applied += 1;
            run_commands += 1;
            if run_commands >= RUN_COMMANDS_MAX || run.bytes() >= RUN_BYTES_MAX {
                self.commit_run(std::mem::take(&mut run));
                run_commands = 0;
                if self.halted.is_some() {
                    // A later run that the table does take would carry an applied index beyond the one that is missing.
                    break;
                }
            }
        }
        if run_commands > 0 {
            self.commit_run(run);
        }
        if self.halted.is_some() {
            return;
        }
        self.node.mut_store().set_applied(self.applied.at());
        events.push(Event::Changed);
        for (index, term, outcome) in outcomes {
            if let Some((proposed, token)) = self.pending.remove(&index) {
                let outcome = if proposed == term { outcome } else { Some(Outcome::Lost) };
                events.push(Event::Proposed(token, outcome.unwrap_or(Outcome::Lost)));
            }
        }
    }

    fn apply_one(&mut self, entry: &Entry, run: &Batch, counters: &mut Counters) -> Applied<(Option<Outcome>, Batch)> {
        if entry.get_entry_type() != EntryType::EntryNormal {
            return Ok((None, self.apply_members(entry)?));
        }
        if entry.data.is_empty() {
            return Ok((None, Batch::new()));
        }
        let proposal: Proposal =
            holdfast_wire::codec::decode(&entry.data).map_err(|error| Fail::Broken(format!("command: {error}")))?;
        self.applied.stamp = self.applied.stamp.max(proposal.stamp);
        let mut txn = Txn::new(&*self.table, &self.hot, run);
        let mutations = self.config.mutations;
        let index = LogIndex(entry.index);
        let term = Term(entry.term);
        let mut context = Context { index, term, stamp: proposal.stamp, mutations, counters };
        let outcome = match self.machine.apply(&mut txn, &mut context, &proposal.command) {
            Ok(output) => return Ok((Some(Outcome::Applied(Box::new(output))), txn.into_batch())),
            Err(Fail::Refused(error) | Fail::Unkept(error)) => {
                Outcome::Applied(Box::new(Output { at: index, result: Err(error) }))
            }
            Err(Fail::Wait) => Outcome::Wait,
            Err(broken @ Fail::Broken(_)) => return Err(broken),
        };
        Ok((Some(outcome), Batch::new()))
    }

    /// Raft's configuration changes from this entry on; the row that says so is committed with the applied index.
    fn apply_members(&mut self, entry: &Entry) -> Applied<Batch> {
        let change = change_of(entry)?;
        let broken = |error: raft::Error| Fail::Broken(format!("change of membership: {error}"));
        let state = self.node.apply_conf_change(&change).map_err(broken)?;
        self.sending.retain(|to, _| is_member(&state, *to));
        if self.node.raft.state == StateRole::Leader && !is_member(&state, self.config.id) {
            // The crate leaves it a leader without a place in its own configuration, which its next durable entry would ask for.
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
        let mut changes = Batch::new();
        changes.put(members::key(), MembersRow::of(&state).encode());
        self.node.mut_store().set_members(state);
        Ok(changes)
    }

    /// Commits a run with the applied index; a table that cannot take it halts the replica.
    fn commit_run(&mut self, mut run: Batch) {
        run.put(applied::key(), self.applied.encode());
        self.hot.follow(&run);
        if let Err(fail) = self.machine.follow(&run) {
            return self.halt(self.applied.index, describe(&fail));
        }
        if let Err(error) = self.table.commit(run) {
            self.halt(self.applied.index, describe(&Fail::from(error)));
        }
    }

    /// What a command would answer if it were applied now; nothing changes. For the deliberate bug "answer before commit".
    pub(crate) fn foresee(&mut self, command: &Command, counters: &mut Counters) -> Option<Output> {
        let run = Batch::new();
        let mut txn = Txn::new(&*self.table, &self.hot, &run);
        let index = LogIndex(self.applied.index.0 + 1);
        let mutations = self.config.mutations;
        let mut context = Context { index, term: self.term(), stamp: self.applied.stamp, mutations, counters };
        self.machine.apply(&mut txn, &mut context, command).ok()
    }
}

fn change_of(entry: &Entry) -> Applied<ConfChangeV2> {
    let broken = |error: protobuf::ProtobufError| Fail::Broken(format!("change of membership: {error}"));
    // Nobody here proposes the older kind.
    ensure!(entry.get_entry_type() == EntryType::EntryConfChangeV2, "a change of membership of the older kind");
    let mut change = ConfChangeV2::default();
    protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(broken)?;
    Ok(change)
}
