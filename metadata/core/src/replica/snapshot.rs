//! Snapshots: a far-behind follower gets the leader's rows in parts, and then raft's own message about them.
//!
//! ```text
//! leader:   (idle) ──raft wants one──▶ Sending ──receiver done, or silent──▶ (idle, raft is told)
//! follower: (idle) ──part 0──▶ Receiving ──last part──▶ table replaced ──▶ raft restores ──▶ log restarted
//! ```
//! * The table's new content is unseen until it is whole and durable; a crash before leaves the old one, a crash after it,
//!   before the log is told, is seen at the next start (`Replica::new`).
//! * Parts are taken in order. At most a few are in flight.

use super::{Event, Replica, describe, members_of};
use crate::api::{Counters, Effect, LogPosition};
use crate::error::Fail;
use crate::machine::Machine;
use crate::tables::Row;
use crate::tables::applied::{self, AppliedRow};
use crate::txn::Hot;
use bytes::Bytes;
use holdfast_store::{Batch, KeyRange, Replacement, StoreError, View};
use holdfast_types::{LogIndex, ServerId, Term};
use holdfast_wire::peer::{PeerMessage, SnapshotPart};
use raft::eraftpb::{Message, MessageType, Snapshot};
use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

/// Ticks without word after which the parts in flight are sent again.
const RESEND_TICKS: u64 = 6;
/// Ticks without word after which a transfer is given up.
const GIVE_UP_TICKS: u64 = 100;

/// A transfer to a follower.
pub(super) struct Sending {
    transfer: u64,
    at: LogPosition,
    view: Arc<dyn View>,
    /// Parts sent and not confirmed, the first is number `confirmed`.
    in_flight: VecDeque<SnapshotPart>,
    confirmed: u32,
    next: u32,
    /// The last key sent.
    after: Option<Bytes>,
    finished: bool,
    heard: u64,
    sent: u64,
}

/// A transfer from the leader.
pub(super) struct Receiving {
    from: ServerId,
    transfer: u64,
    at: LogPosition,
    next: u32,
    replacement: Box<dyn Replacement>,
}

impl<M: Machine> Replica<M> {
    /// Raft wants a follower to get a snapshot.
    pub(super) fn start_snapshot(&mut self, to: ServerId, effects: &mut Vec<Effect>) {
        if self.sending.contains_key(&to) {
            return;
        }
        let transfer = self.transfer_next;
        self.transfer_next += 1;
        let sending = Sending {
            transfer,
            at: self.applied.at(),
            view: self.table.snapshot(),
            in_flight: VecDeque::new(),
            confirmed: 0,
            next: 0,
            after: None,
            finished: false,
            heard: self.ticks,
            sent: self.ticks,
        };
        self.sending.insert(to, sending);
        self.send_parts(to, effects);
    }

    /// Sends as many parts as may be in flight.
    fn send_parts(&mut self, to: ServerId, effects: &mut Vec<Effect>) {
        let (shard, term, limits) = (self.shard, self.term(), self.config.limits.clone());
        let Some(sending) = self.sending.get_mut(&to) else { return };
        while !sending.finished && (sending.in_flight.len() as u32) < limits.snapshot_parts_in_flight {
            let part = match sending.cut_part(shard, term, limits.snapshot_part_bytes) {
                Ok(part) => part,
                Err(error) => {
                    let reason = describe(&Fail::from(error));
                    return self.halt(self.applied.index, reason);
                }
            };
            sending.sent = self.ticks;
            effects.push(Effect::Send { to, message: PeerMessage::Snapshot(part.clone()) });
            sending.in_flight.push_back(part);
        }
    }

    /// The follower says how far it is.
    pub(crate) fn snapshot_seen(
        &mut self,
        from: ServerId,
        (transfer, next, done): (u64, u32, bool),
        effects: &mut Vec<Effect>,
        counters: &mut Counters,
    ) {
        let now = self.ticks;
        let Some(sending) = self.sending.get_mut(&from).filter(|sending| sending.transfer == transfer) else { return };
        sending.heard = now;
        if done {
            counters.snapshots_sent += u64::from(sending.finished);
            self.sending.remove(&from);
            return self.report_snapshot(from, true);
        }
        if next < sending.confirmed {
            if next == 0 {
                // The follower has started anew: so do we, with what is applied now.
                self.sending.remove(&from);
                return self.start_snapshot(from, effects);
            }
            return;
        }
        while sending.confirmed < next && sending.in_flight.pop_front().is_some() {
            sending.confirmed += 1;
        }
        self.send_parts(from, effects);
    }

    /// Sends again what may be lost, and gives up on the silent.
    pub(super) fn tick_snapshots(&mut self, effects: &mut Vec<Effect>) {
        let now = self.ticks;
        let silent = |sending: &Sending| now >= sending.heard + GIVE_UP_TICKS;
        let given_up: Vec<ServerId> = self.sending.iter().filter(|(_, s)| silent(s)).map(|(to, _)| *to).collect();
        for to in given_up {
            self.sending.remove(&to);
            self.report_snapshot(to, false);
        }
        for (to, sending) in &mut self.sending {
            if now >= sending.sent.max(sending.heard) + RESEND_TICKS {
                sending.sent = now;
                let parts = sending.in_flight.iter().cloned().map(PeerMessage::Snapshot);
                effects.extend(parts.map(|message| Effect::Send { to: *to, message }));
            }
        }
    }

    /// A part arrived.
    pub(crate) fn snapshot_part(
        &mut self,
        from: ServerId,
        part: SnapshotPart,
        effects: &mut Vec<Effect>,
        counters: &mut Counters,
        events: &mut Vec<Event>,
    ) {
        if self.halted.is_some() || part.term < self.term() {
            return;
        }
        let (shard, transfer, number) = (self.shard, part.transfer, part.part);
        let mut answer = |next, done| {
            let message = PeerMessage::SnapshotSeen { shard, transfer, next, done };
            effects.push(Effect::Send { to: from, message });
        };
        if self.has_snapshot(&part) {
            self.receiving = None;
            return answer(number, true);
        }
        let at = LogPosition { index: part.index, term: part.index_term };
        let known = self.receiving.as_ref().is_some_and(|r| (r.from, r.transfer, r.at) == (from, transfer, at));
        if !known {
            if number != 0 {
                return answer(0, false);
            }
            self.receiving = None;
            match self.table.replace() {
                Ok(replacement) => {
                    self.receiving = Some(Receiving { from, transfer, at, next: 0, replacement });
                }
                Err(error) => return self.halt(self.applied.index, describe(&Fail::from(error))),
            }
        }
        let Some(receiving) = self.receiving.as_mut() else { return };
        if number != receiving.next {
            return answer(receiving.next, false);
        }
        let mut batch = Batch::new();
        for (key, value) in part.rows.iter().filter(|(key, _)| !key.is_empty()) {
            batch.put(key.clone(), value.clone());
        }
        if let Err(error) = receiving.replacement.commit(batch) {
            return self.halt(self.applied.index, describe(&Fail::from(error)));
        }
        receiving.next += 1;
        if !part.last {
            return answer(receiving.next, false);
        }
        answer(number + 1, true);
        self.install(part.term, counters, events);
    }

    /// Whether this log holds a snapshot's place already.
    fn has_snapshot(&self, part: &SnapshotPart) -> bool {
        let log = &self.node.raft.raft_log;
        part.index.0 <= log.committed || log.match_term(part.index.0, part.index_term.0)
    }

    /// All parts are there: the table changes its content, and raft is told.
    fn install(&mut self, term: Term, counters: &mut Counters, events: &mut Vec<Event>) {
        let Some(Receiving { from, at, replacement, .. }) = self.receiving.take() else { return };
        if let Err(reason) = self.replace_table(at, replacement) {
            return self.halt(at.index, reason);
        }
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = at.index.0;
        snapshot.mut_metadata().term = at.term.0;
        let conf_state = match members_of(&*self.table, &self.config) {
            Ok(members) => members,
            Err(error) => return self.halt(at.index, error.to_string()),
        };
        // Raft tells its own progress of it, but not its store, which later snapshots and restarts are made from.
        self.node.mut_store().set_members(conf_state.clone());
        snapshot.mut_metadata().set_conf_state(conf_state);
        let mut message = Message { from: from.0, to: self.config.id.0, term: term.0, ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.set_snapshot(snapshot);
        let stepped = self.node.step(message);
        self.draw_election();
        if stepped.is_err() || self.node.snap().map(|snapshot| snapshot.get_metadata().index) != Some(at.index.0) {
            return self.halt(at.index, "raft does not take the snapshot that the table holds".into());
        }
        counters.snapshots_installed += 1;
        events.push(Event::Changed);
    }

    fn replace_table(&mut self, at: LogPosition, replacement: Box<dyn Replacement>) -> Result<(), String> {
        replacement.finish().map_err(|error| describe(&Fail::from(error)))?;
        let bytes = self.table.get(&applied::key()).map_err(|error| describe(&Fail::from(error)))?;
        let row = bytes.as_deref().map(AppliedRow::decode).transpose().map_err(|error| error.to_string())?;
        let row = row.filter(|row| row.at() == at).ok_or("the snapshot's rows are of another place than it says")?;
        self.applied = row;
        self.tables_persisted = at.index;
        self.applied_bytes = 0;
        self.hot = Hot::load(&*self.table).map_err(|error| describe(&Fail::from(error)))?;
        self.machine = M::load(&*self.table).map_err(|fail| describe(&fail))?;
        self.node.mut_store().set_applied(at);
        Ok(())
    }
}

impl Sending {
    /// The next part.
    fn cut_part(
        &mut self,
        shard: holdfast_types::ShardId,
        term: Term,
        bytes_max: usize,
    ) -> Result<SnapshotPart, StoreError> {
        let start = self.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = Vec::new();
        let mut bytes = 0;
        let mut last = true;
        for pair in self.view.range(KeyRange { start, end: Bound::Unbounded }) {
            let (key, value) = pair?;
            bytes += key.len() + value.len();
            if bytes > bytes_max && !rows.is_empty() {
                last = false;
                break;
            }
            rows.push((key, value));
        }
        self.after = rows.last().map(|(key, _): &(Bytes, Bytes)| key.clone()).or(self.after.take());
        self.finished = last;
        let part = self.next;
        self.next += 1;
        let (index, index_term): (LogIndex, Term) = (self.at.index, self.at.term);
        Ok(SnapshotPart { shard, transfer: self.transfer, term, index, index_term, part, rows, last })
    }
}
