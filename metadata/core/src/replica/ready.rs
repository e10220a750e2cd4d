//! One turn of raft: what it wants persisted, sent and applied.

use super::log::to_record;
use super::{Event, InFlight, Replica};
use crate::api::{Counters, Effect, HardState, LogRecord};
use crate::machine::Machine;
use bytes::Bytes;
use holdfast_types::{LogIndex, ServerId, Term, Timestamp};
use holdfast_wire::peer::PeerMessage;
use raft::eraftpb::{Message, MessageType};
use raft::{Ready, SnapshotStatus, StateRole};

impl<M: Machine> Replica<M> {
    /// Works until there is nothing left to do without the shell.
    pub(crate) fn pump(
        &mut self,
        wall: Timestamp,
        effects: &mut Vec<Effect>,
        events: &mut Vec<Event>,
        counters: &mut Counters,
    ) {
        loop {
            if self.halted.is_some() {
                return self.tell_halt(effects, events, counters);
            }
            self.follow_leadership(events, counters);
            self.flush_queue(wall, counters, events);
            self.ask_reads(events, counters);
            if !self.node.has_ready() {
                break;
            }
            let ready = self.node.ready();
            self.handle(ready, effects, events, counters);
            self.settle_persisted(effects);
            self.draw_election();
        }
        self.announce(events);
        self.persist_tables(effects);
    }

    fn follow_leadership(&mut self, events: &mut Vec<Event>, counters: &mut Counters) {
        let leading = (self.node.raft.state == StateRole::Leader).then_some(self.node.raft.term);
        if leading == self.leading {
            return;
        }
        if self.leading.is_some() {
            self.lose_leadership(events, counters);
        }
        if leading.is_some() {
            counters.elections_won += 1;
        }
        self.leading = leading;
    }

    /// From now on decisions may rest on what is applied.
    fn announce(&mut self, events: &mut Vec<Event>) {
        if !self.announced && self.leading.is_some() && self.node.raft.apply_to_current_term() {
            self.announced = true;
            events.push(Event::Leading);
        }
    }

    fn handle(
        &mut self,
        mut ready: Ready,
        effects: &mut Vec<Effect>,
        events: &mut Vec<Event>,
        counters: &mut Counters,
    ) {
        let mut records = std::mem::take(&mut self.first_records);
        let mut must_sync = ready.must_sync() || !records.is_empty();
        self.send_all(ready.take_messages(), effects);
        self.reads_confirmed(ready.take_read_states());
        let snapshot = ready.snapshot().get_metadata();
        let restarted = (snapshot.index > 0).then_some(LogIndex(snapshot.index));
        if restarted.is_some() {
            // The rows are in the table already, durably.
            let base = self.applied.at();
            assert_eq!(Some(base.index), restarted, "raft restores what was installed");
            self.node.mut_store().restart(base);
            records.push(LogRecord::Restart { base });
            self.state_written = HardState::default();
        }
        let entries = ready.take_entries();
        if !entries.is_empty() {
            counters.suffixes_cut += u64::from(self.node.mut_store().append(&entries));
            records.push(LogRecord::Entries(entries.iter().map(to_record).collect()));
        }
        if let Some(state) = ready.hs() {
            let state =
                HardState { term: Term(state.term), vote: ServerId(state.vote), commit: LogIndex(state.commit) };
            self.node.mut_store().set_hard_state(state);
        }
        // A commit index that rose needs no write of its own, but goes with the next one: a change of members counts once it is
        // committed, and the entry that follows it must not be found without that.
        let state = self.node.store().hard_state();
        if must_sync && state != self.state_written && !self.config.mutations.vote_not_persisted {
            self.state_written = state;
            records.push(LogRecord::HardState(state));
        }
        must_sync &= !records.is_empty();
        self.ticket += 1;
        let done = records.is_empty();
        if !done {
            effects.push(Effect::Persist { shard: self.shard, ticket: self.ticket, records, must_sync });
        }
        let messages = ready.take_persisted_messages();
        self.in_flight.push_back(InFlight { ticket: self.ticket, number: ready.number(), messages, done, restarted });
        let committed = ready.take_committed_entries();
        self.node.advance_append_async(ready);
        if let Some(last) = committed.last() {
            let last = last.index;
            self.apply_all(&committed, events, counters);
            if self.halted.is_none() {
                self.node.advance_apply_to(last);
            }
        }
        self.serve_reads(events, counters);
    }

    /// The shell has persisted everything up to a ticket.
    pub(crate) fn persisted(&mut self, ticket: u64, effects: &mut Vec<Effect>) {
        for waiting in self.in_flight.iter_mut().take_while(|waiting| waiting.ticket <= ticket) {
            waiting.done = true;
        }
        if self.halted.is_none() {
            self.settle_persisted(effects);
        }
    }

    /// Tells raft what is persisted, in order, and sends what waited for it.
    fn settle_persisted(&mut self, effects: &mut Vec<Effect>) {
        while self.in_flight.front().is_some_and(|first| first.done) {
            let Some(first) = self.in_flight.pop_front() else { return };
            self.node.on_persist_ready(first.number);
            if let Some(index) = first.restarted {
                self.node.advance_apply_to(index.0);
            }
            self.send_all(first.messages, effects);
        }
    }

    fn send_all(&mut self, messages: Vec<Message>, effects: &mut Vec<Effect>) {
        for message in messages {
            let to = ServerId(message.to);
            if message.get_msg_type() == MessageType::MsgSnapshot || self.begins_a_learner(&message) {
                self.start_snapshot(to, effects);
                continue;
            }
            // Our own messages always encode.
            let bytes = protobuf::Message::write_to_bytes(&message).expect("raft messages encode");
            effects.push(Effect::Send {
                to,
                message: PeerMessage::Raft {
                    shard: self.shard,
                    from_life: self.config.life,
                    // Filled in by who knows them.
                    to_life: 0,
                    bytes: Bytes::from(bytes),
                },
            });
        }
    }

    /// Asks for the table to be persisted when enough has been applied since the last time.
    fn persist_tables(&mut self, effects: &mut Vec<Effect>) {
        let since = self.applied.index.0 - self.tables_persisted.0;
        let limits = &self.config.limits;
        if self.tables_persisting
            || (since < limits.persist_tables_after && self.applied_bytes < limits.persist_tables_after_bytes)
            || since == 0
        {
            return;
        }
        self.tables_persisting = true;
        self.applied_bytes = 0;
        effects.push(Effect::PersistTables { shard: self.shard, applied: self.applied.index });
    }

    /// The table holds everything up to `applied` durably: the log may be cut below.
    pub(crate) fn tables_persisted(&mut self, applied: LogIndex, effects: &mut Vec<Effect>, counters: &mut Counters) {
        self.tables_persisting = false;
        self.tables_persisted = self.tables_persisted.max(applied);
        if self.halted.is_some() {
            return;
        }
        let limits = &self.config.limits;
        let store = self.node.store();
        if self.tables_persisted <= store.base().index {
            return;
        }
        let mut through = store.keep_from(self.tables_persisted, limits.log_kept, limits.log_kept_bytes);
        if self.is_leader() {
            // Nobody needs what everybody has.
            let slowest = self.node.raft.prs().iter().map(|(_, progress)| progress.matched).min().unwrap_or(0);
            through = through.max(LogIndex(slowest).min(self.tables_persisted));
        }
        let before = self.node.store().base();
        let base = self.node.mut_store().cut(through);
        if base != before {
            counters.logs_cut += 1;
            effects.push(Effect::CutLog { shard: self.shard, base });
        }
    }

    /// Tells raft how a snapshot's transfer went.
    pub(super) fn report_snapshot(&mut self, to: ServerId, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(to.0, status);
    }
}
