//! A shard on one server: the raft node, its log's tail, its table and its state machine.
//!
//! Invariants:
//! * Entries are applied in order, each once, and only when a quorum and this server have persisted them.
//! * A message that promises something leaves after what it promises is persisted (the order of `in_flight`).
//! * The table's applied index is committed with the rows: after a crash it says where to go on.
//! * A replica that finds its own state wrong halts, names the entry, and does nothing any more.

mod apply;
mod log;
pub(crate) mod members;
mod reads;
mod ready;
mod snapshot;

use crate::api::{Config, Counters, Effect, HardState, LogRecord, RecoveredShard, StartError};
use crate::command::{Command, Proposal};
use crate::error::Fail;
use crate::machine::{Machine, Output};
use crate::tables::Row;
use crate::tables::applied::{self, AppliedRow};
use crate::tables::members::MembersRow;
use crate::txn::Hot;
use holdfast_store::Table;
use holdfast_types::prng::Prng;
use holdfast_types::{LogIndex, ServerId, ShardId, Term, Timestamp};
use holdfast_wire::admin::ShardStatus;
use log::LogStore;
use raft::eraftpb::{ConfState, Entry, Message, MessageType};
use raft::{RawNode, StateRole};
use slog::{Discard, Logger, o};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Ticks of a leader's heartbeat (100 ms) and the shortest and longest wait before an election (500 ms to 1 s).
const HEARTBEAT_TICKS: usize = 2;
const ELECTION_TICKS_MIN: usize = 10;
const ELECTION_TICKS_MAX: usize = 20;
/// Bytes of entries in one message.
const APPEND_BYTES_MAX: u64 = 1 << 20;
/// Bytes of entries not yet committed; more proposals are told to come back.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of entries handed out to be applied at once.
const COMMITTED_BYTES_MAX: u64 = 4 << 20;
/// Messages in flight to one follower.
const INFLIGHT_MESSAGES_MAX: usize = 256;
/// Log writes in flight while proposals wait for company: one on the disk, one behind it.
const PERSISTS_BEFORE_WAITING: usize = 2;

/// What a caller of the replica is waiting for.
pub(crate) type Token = u64;

/// What became of a command.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Applied.
    Applied(Box<Output>),
    /// It came to its turn, and something that will end by itself was in the way: nothing changed.
    Wait,
    /// This server lost its leadership: it may or may not be applied one day.
    Lost,
}

/// What a replica tells those above.
#[derive(Debug)]
pub(crate) enum Event {
    /// A command proposed here.
    Proposed(Token, Outcome),
    /// A read may be served from the table as it is now; false: this server does not lead.
    Read(Token, bool),
    /// This server leads, and has applied all of earlier terms.
    Leading,
    /// It does not any more.
    Deposed,
    /// Rows have changed.
    Changed,
}

struct Waiting {
    token: Token,
    command: Command,
}

/// A Ready on its way to the disk.
struct InFlight {
    ticket: u64,
    number: u64,
    /// To be sent when it is persisted.
    messages: Vec<Message>,
    /// It is.
    done: bool,
    /// It holds an installed snapshot of this place.
    restarted: Option<LogIndex>,
}

/// A shard on one server.
pub(crate) struct Replica<M> {
    pub(crate) shard: ShardId,
    pub(crate) machine: M,
    config: Config,
    node: RawNode<LogStore>,
    table: Arc<dyn Table>,
    hot: Hot,
    applied: AppliedRow,
    tables_persisted: LogIndex,
    tables_persisting: bool,
    applied_bytes: u64,
    prng: Prng,
    election_ticks: usize,
    /// (term, role) that the election wait was drawn for.
    drawn_for: (u64, StateRole),
    /// What the log holds of raft's state, as of the last record that was given to be written in this life; at first that is not known.
    state_written: HardState,
    ticket: u64,
    in_flight: VecDeque<InFlight>,
    /// To be written before anything else: the log's start was found wanting.
    first_records: Vec<LogRecord>,
    /// Not yet given to raft.
    queue: VecDeque<Waiting>,
    /// Tokens by index and term.
    pending: BTreeMap<u64, (u64, Token)>,
    leading: Option<u64>,
    announced: bool,
    reads: reads::Reads,
    sending: BTreeMap<ServerId, snapshot::Sending>,
    receiving: Option<snapshot::Receiving>,
    transfer_next: u64,
    ticks: u64,
    /// When each server was last heard, in ticks.
    heard: BTreeMap<u64, u64>,
    halted: Option<(LogIndex, String)>,
    halt_told: bool,
}

impl<M: Machine> Replica<M> {
    /// From what log and table hold.
    pub(crate) fn new(shard: ShardId, config: &Config, recovered: RecoveredShard) -> Result<Self, StartError> {
        let Recovery { log, applied, first_records, table } = recover(shard, config, recovered)?;
        let machine = M::load(&*table).map_err(|fail| StartError::Damaged { shard, reason: describe(&fail) })?;
        let hot = Hot::load(&*table)?;
        let node = RawNode::new(&raft_config(config, applied.index), log, &Logger::root(Discard, o!()))?;
        let label = u64::from(shard.0) + 1;
        let mut replica = Self {
            shard,
            machine,
            config: config.clone(),
            node,
            table,
            hot,
            applied,
            tables_persisted: applied.index,
            tables_persisting: false,
            applied_bytes: 0,
            prng: Prng::new(config.seed).fork(label),
            election_ticks: ELECTION_TICKS_MIN,
            drawn_for: (u64::MAX, StateRole::Follower),
            state_written: HardState::default(),
            ticket: 0,
            in_flight: VecDeque::new(),
            first_records,
            queue: VecDeque::new(),
            pending: BTreeMap::new(),
            leading: None,
            announced: false,
            reads: reads::Reads::default(),
            sending: BTreeMap::new(),
            receiving: None,
            transfer_next: 1,
            ticks: 0,
            heard: BTreeMap::new(),
            halted: None,
            halt_told: false,
        };
        replica.draw_election();
        Ok(replica)
    }

    /// Whether this server believes that it leads.
    pub(crate) fn is_leader(&self) -> bool {
        self.halted.is_none() && self.node.raft.state == StateRole::Leader
    }

    /// Whether it leads and has applied all that earlier leaders committed.
    pub(crate) fn is_ready_to_lead(&self) -> bool {
        self.is_leader() && self.node.raft.apply_to_current_term()
    }

    /// Who leads, as far as this server knows. One that has halted hears of nobody any more, and does not lead.
    pub(crate) fn leader(&self) -> Option<ServerId> {
        let leader = self.node.raft.leader_id;
        (leader != 0 && self.halted.is_none()).then_some(ServerId(leader))
    }

    pub(crate) fn term(&self) -> Term {
        Term(self.node.raft.term)
    }

    pub(crate) fn applied_index(&self) -> LogIndex {
        self.applied.index
    }

    pub(crate) fn table(&self) -> &Arc<dyn Table> {
        &self.table
    }

    pub(crate) fn hot(&self) -> &Hot {
        &self.hot
    }

    pub(crate) fn halted(&self) -> Option<&(LogIndex, String)> {
        self.halted.as_ref()
    }

    /// The latest stamp applied here.
    pub(crate) fn stamp(&self) -> Timestamp {
        self.applied.stamp
    }

    pub(crate) fn status(&self) -> ShardStatus {
        ShardStatus {
            leader: self.leader(),
            term: self.term(),
            applied: self.applied.index,
            last: LogIndex(self.node.raft.raft_log.last_index()),
        }
    }

    /// Queues a command; what becomes of it is told by an event. The caller has checked that this server leads.
    pub(crate) fn propose(&mut self, token: Token, command: Command) {
        self.queue.push_back(Waiting { token, command });
    }

    /// Commands not yet given to raft.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Commands given to raft and not applied yet.
    pub(crate) fn in_progress(&self) -> usize {
        self.pending.len() + self.queue.len()
    }

    /// A moment passes.
    pub(crate) fn tick(&mut self, effects: &mut Vec<Effect>) {
        if self.halted.is_some() {
            return;
        }
        self.ticks += 1;
        self.node.tick();
        self.draw_election();
        self.reads.ask_again(self.ticks);
        self.tick_snapshots(effects);
    }

    /// A raft message arrived.
    pub(crate) fn receive(&mut self, from: ServerId, bytes: &[u8]) {
        if self.halted.is_some() || bytes.len() > holdfast_wire::peer::RAFT_MESSAGE_BYTES_MAX {
            return;
        }
        let mut message = Message::default();
        // Malformed bytes can only come from an authenticated peer of another build: dropped like a lost message.
        if protobuf::Message::merge_from_bytes(&mut message, bytes).is_err()
            || message.from != from.0
            || message.to != self.config.id.0
            // Proposals and reads are not forwarded between servers, and snapshots' rows come apart.
            || matches!(
                message.get_msg_type(),
                MessageType::MsgPropose | MessageType::MsgReadIndex | MessageType::MsgSnapshot
            )
        {
            return;
        }
        self.heard.insert(from.0, self.ticks);
        // An error means that raft ignores the message.
        let _ = self.node.step(message);
        self.draw_election();
    }

    /// Raft draws waits before an election from a generator of its own; ours is seeded, so that a run can be repeated.
    fn draw_election(&mut self) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.drawn_for {
            self.drawn_for = now;
            self.election_ticks = self.prng.between(ELECTION_TICKS_MIN as u64, ELECTION_TICKS_MAX as u64 - 1) as usize;
        }
        self.node.raft.set_randomized_election_timeout(self.election_ticks);
    }

    /// Stops for good.
    pub(crate) fn halt(&mut self, index: LogIndex, reason: String) {
        if self.halted.is_none() {
            self.halted = Some((index, reason));
        }
    }

    /// Tells the shell, and all who wait, once.
    fn tell_halt(&mut self, effects: &mut Vec<Effect>, events: &mut Vec<Event>, counters: &mut Counters) {
        let Some((index, reason)) = self.halted.clone() else { return };
        if !self.halt_told {
            self.halt_told = true;
            effects.push(Effect::Halt { shard: self.shard, index, reason });
        }
        self.lose_leadership(events, counters);
    }

    fn lose_leadership(&mut self, events: &mut Vec<Event>, counters: &mut Counters) {
        let lost: Vec<Token> = self.queue.drain(..).map(|waiting| waiting.token).collect();
        let pending = std::mem::take(&mut self.pending);
        let in_flight = !pending.is_empty();
        events.extend(
            pending
                .into_values()
                .map(|(_, token)| token)
                .chain(lost)
                .map(|token| Event::Proposed(token, Outcome::Lost)),
        );
        self.reads.lose(events);
        self.sending.clear();
        if self.leading.take().is_some() {
            counters.leaderships_lost += 1;
            counters.leaderships_lost_in_flight += u64::from(in_flight);
            self.announced = false;
            events.push(Event::Deposed);
        }
    }

    /// Gives queued commands to raft, as one message, unless the disk is busy: then more may come to share the next write.
    fn flush_queue(&mut self, wall: Timestamp, counters: &mut Counters, events: &mut Vec<Event>) {
        if !self.is_leader() {
            events.extend(self.queue.drain(..).map(|waiting| Event::Proposed(waiting.token, Outcome::Lost)));
        }
        if self.queue.is_empty() || self.in_flight.len() >= PERSISTS_BEFORE_WAITING {
            return;
        }
        let stamp = self.stamp_now(wall);
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.config.id.0;
        let mut tokens = Vec::new();
        let mut bytes = 0;
        while let Some(waiting) = self.queue.pop_front() {
            let data = holdfast_wire::codec::encode(&Proposal { stamp, command: waiting.command });
            bytes += data.len() as u64;
            message.entries.push(Entry { data, ..Entry::default() });
            tokens.push(waiting.token);
            if bytes > APPEND_BYTES_MAX {
                break;
            }
        }
        let (term, mut index) = (self.node.raft.term, self.node.raft.raft_log.last_index());
        match self.node.raft.step(message) {
            Ok(()) => {
                counters.proposals += tokens.len() as u64;
                for token in tokens {
                    index += 1;
                    self.pending.insert(index, (term, token));
                }
            }
            // Too much is uncommitted, or a leadership is being handed over: the callers come back.
            Err(_) => events.extend(tokens.into_iter().map(|token| Event::Proposed(token, Outcome::Lost))),
        }
    }

    /// A clock a little behind the last leader's does not make stamps go back; one far behind is believed.
    fn stamp_now(&self, wall: Timestamp) -> Timestamp {
        const BEHIND_MAX: i128 = 1_000_000_000;
        let behind = self.applied.stamp.as_nanos() - wall.as_nanos();
        if (1..BEHIND_MAX).contains(&behind) { self.applied.stamp } else { wall }
    }
}

/// What a shard starts from.
struct Recovery {
    log: LogStore,
    applied: AppliedRow,
    /// To be written before anything else.
    first_records: Vec<LogRecord>,
    table: Arc<dyn Table>,
}

/// Fits log and table together.
fn recover(shard: ShardId, config: &Config, recovered: RecoveredShard) -> Result<Recovery, StartError> {
    let damaged = |reason: String| StartError::Damaged { shard, reason };
    let RecoveredShard { mut hard_state, base, entries, table } = recovered;
    let applied = match table.get(&applied::key())? {
        Some(bytes) => AppliedRow::decode(&bytes).map_err(|error| damaged(format!("applied index: {error}")))?,
        None => AppliedRow::default(),
    };
    if applied.index < base.index {
        return Err(damaged(format!("the table ends at {}, the log begins after {}", applied.index, base.index)));
    }
    let mut log = LogStore::new(base, hard_state, members_of(&*table, config)?);
    for record in &entries {
        let entry = log::from_record(record).ok_or_else(|| damaged(format!("entry kind {}", record.kind)))?;
        if record.at.index.0 != log.last().index.0 + 1 {
            return Err(damaged(format!("{} follows {}", record.at.index, log.last().index)));
        }
        log.append(&[entry]);
    }
    let mut first_records = Vec::new();
    if raft::Storage::term(&log, applied.index.0).ok() != Some(applied.term.0) {
        // A snapshot was installed into the table, and the crash came before the log was told.
        log.restart(applied.at());
        first_records.push(LogRecord::Restart { base: applied.at() });
    }
    hard_state.commit = hard_state.commit.max(applied.index);
    if hard_state.commit > log.last().index {
        return Err(damaged(format!("{} is committed, the log ends at {}", hard_state.commit, log.last().index)));
    }
    if applied.term > hard_state.term {
        hard_state = HardState { term: applied.term, vote: ServerId(0), ..hard_state };
    }
    if !first_records.is_empty() {
        first_records.push(LogRecord::HardState(hard_state));
    }
    log.set_hard_state(hard_state);
    log.set_applied(applied.at());
    Ok(Recovery { log, applied, first_records, table })
}

/// Raft's configuration as of what a table holds.
fn members_of(table: &dyn Table, config: &Config) -> Result<ConfState, StartError> {
    match table.get(&crate::tables::members::key())? {
        Some(bytes) => match MembersRow::decode(&bytes) {
            Ok(row) => Ok(row.to_state()),
            Err(error) => Err(StartError::Config(format!("the table's row of members: {error}"))),
        },
        None => {
            let voters = config.voters.iter().map(|voter| voter.0).collect();
            Ok(ConfState { voters, ..ConfState::default() })
        }
    }
}

fn raft_config(config: &Config, applied: LogIndex) -> raft::Config {
    raft::Config {
        id: config.id.0,
        election_tick: ELECTION_TICKS_MIN,
        heartbeat_tick: HEARTBEAT_TICKS,
        min_election_tick: ELECTION_TICKS_MIN,
        max_election_tick: ELECTION_TICKS_MAX,
        applied: applied.0,
        max_size_per_msg: APPEND_BYTES_MAX,
        max_inflight_msgs: INFLIGHT_MESSAGES_MAX,
        check_quorum: true,
        pre_vote: true,
        batch_append: true,
        // Followers learn with the next entries, or the next heartbeat, how far is committed: they serve nobody, and a message of its
        // own to each of them would double the price of a command that comes alone.
        skip_bcast_commit: true,
        max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
        max_committed_size_per_ready: COMMITTED_BYTES_MAX,
        ..raft::Config::default()
    }
}

/// A failure that is nobody's answer, as text.
pub(crate) fn describe(fail: &Fail) -> String {
    match fail {
        Fail::Broken(reason) => reason.clone(),
        Fail::Refused(error) | Fail::Unkept(error) => error.to_string(),
        Fail::Wait => "waits".into(),
    }
}
