//! Requests to storage nodes: which node, numbers, retries.
//!
//! A change keeps its sequence until it is answered; `floor` is the lowest sequence to its group without an answer, so that a late
//! copy of an answered change is refused there, and a group that is stuck holds back nobody else's. When a group's view changes, what is
//! under way to it is sent anew to the new primary.
//!
//! While other sessions may change the same bytes, a session has one change of a chunk under way at a time: the chunk remembers the last
//! one of each session, so that what is sent anew is not made twice. Which of two changes was made can be told only so.

use crate::core::{ClientCore, Timer};
use crate::effect::{Effect, Failure, Ticket};
use crate::error::ClientError;
use crate::payload::{ChunkCall, ChunkReply};
use bytes::Bytes;
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::{ChunkIndex, ChunkKey, Epoch, GroupId, InodeId, NodeId, Sequence, Term};
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp, ChunkRequest, Refusal};
use holdfast_wire::namespace::{Attributes, VolumeRecord};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long one attempt may take: a primary may wait two seconds for a member and then for a new view.
const ATTEMPT: Duration = Duration::from_secs(8);
/// Damaged answers to a read before it fails.
const DAMAGE_MAX: u32 = 6;
/// Copies damaged on their way before a change is given up.
const RESEND_MAX: u32 = 20;

/// What an answer is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DataPurpose {
    /// Buffered bytes of a file.
    Flush { inode: InodeId, start: u64 },
    /// A part of a range that is to read as zeros.
    Zero { inode: InodeId },
    /// Bytes for readers.
    Fetch(u64),
    /// Where one of the groups has bytes, for `Call::Seek`: its number, the share, and how far was asked.
    Seek { number: u64, share: usize, upto: u64 },
    /// Whether bytes that were written through are still there after others have cut the file.
    Check { inode: InodeId, sequence: Sequence },
}

struct Operation {
    group: GroupId,
    op: ChunkOp,
    payload: Vec<Bytes>,
    purpose: DataPurpose,
    sequence: Option<Sequence>,
    contended: bool,
    /// It left at least once.
    left: bool,
    attempts: u32,
    damaged: u32,
    /// Ask another member in sync than the primary.
    elsewhere: bool,
    sent: Option<(Ticket, Epoch)>,
}

/// Requests to storage that are under way or wait.
pub(crate) struct DataEngine {
    operations: BTreeMap<u64, Operation>,
    by_ticket: BTreeMap<Ticket, u64>,
    operation_next: u64,
    sequence_next: Sequence,
    /// Changes without an answer, by group: no other group ever sees them.
    unanswered: BTreeMap<GroupId, BTreeSet<Sequence>>,
    /// Operations that wait for a map in which their group has a primary.
    homeless: BTreeSet<u64>,
    /// Contended changes of each chunk: the first is under way, the others wait for it.
    turns: BTreeMap<ChunkKey, VecDeque<u64>>,
}

impl DataEngine {
    pub fn new() -> Self {
        Self {
            operations: BTreeMap::new(),
            by_ticket: BTreeMap::new(),
            operation_next: 1,
            sequence_next: Sequence(1),
            unanswered: BTreeMap::new(),
            homeless: BTreeSet::new(),
            turns: BTreeMap::new(),
        }
    }

    /// Forgets everything that is under way: nothing can come of it any more.
    pub fn clear(&mut self) {
        self.operations.clear();
        self.by_ticket.clear();
        self.unanswered.clear();
        self.homeless.clear();
        self.turns.clear();
    }
}

/// The key of a chunk of a file as it is now.
pub(crate) fn chunk_key(volume: &VolumeRecord, base: &Attributes, index: ChunkIndex) -> ChunkKey {
    ChunkKey { volume: volume.id, inode: base.inode, generation: base.generation, index, born: volume.snapshot }
}

impl ClientCore {
    /// Begins a request about one chunk of a file. Returns the sequence of a contended change.
    pub(crate) fn data_start(
        &mut self,
        index: ChunkIndex,
        inode: InodeId,
        op: ChunkOp,
        payload: Vec<Bytes>,
        purpose: DataPurpose,
    ) -> Option<Sequence> {
        let volume = self.session.volume();
        let group = GroupId::of(volume.id, inode, index, volume.groups);
        let number = self.data.operation_next;
        self.data.operation_next += 1;
        let sequence = op.is_change().then(|| {
            let sequence = self.data.sequence_next;
            self.data.sequence_next = sequence.next();
            self.data.unanswered.entry(group).or_default().insert(sequence);
            sequence
        });
        let contended = op.is_change() && !self.caching();
        let turn = op.chunk().filter(|_| contended).map(|chunk| self.data.turns.entry(chunk).or_default());
        let first = turn.is_none_or(|turn| {
            turn.push_back(number);
            turn.len() == 1
        });
        let operation = Operation {
            group,
            op,
            payload,
            purpose,
            sequence,
            contended,
            left: false,
            attempts: 0,
            damaged: 0,
            elsewhere: false,
            sent: None,
        };
        self.data.operations.insert(number, operation);
        if first {
            self.data_send(number);
        }
        sequence.filter(|_| contended)
    }

    /// A change is over: the next contended one of its chunk has its turn.
    fn next_turn(&mut self, op: &ChunkOp, number: u64) {
        let Some(chunk) = op.chunk() else { return };
        let Some(turn) = self.data.turns.get_mut(&chunk) else { return };
        turn.retain(|other| *other != number);
        match turn.front().copied() {
            Some(next) if self.data.operations.get(&next).is_some_and(|next| !next.left) => self.data_send(next),
            Some(_) => {}
            None => drop(self.data.turns.remove(&chunk)),
        }
    }

    /// Sends a request, or sends it again, to whom the map names.
    pub(crate) fn data_send(&mut self, number: u64) {
        let Some(operation) = self.data.operations.get(&number) else { return };
        let Some((node, address, epoch)) = self.target(operation) else {
            self.data.homeless.insert(number);
            return self.ask_map();
        };
        let open = self.data.unanswered.get(&operation.group).and_then(BTreeSet::first);
        let floor = open.copied().unwrap_or(self.data.sequence_next);
        let ticket = self.ticket();
        let volume = self.session.volume();
        let snapshot = volume.snapshot;
        let Some(operation) = self.data.operations.get_mut(&number) else { return };
        let repeated = std::mem::replace(&mut operation.left, true);
        if let Some((old, _)) = operation.sent.replace((ticket, epoch)) {
            self.data.by_ticket.remove(&old);
            self.out.push(Effect::Forget { ticket: old });
        }
        self.data.by_ticket.insert(ticket, number);
        let request = ChunkRequest {
            session: self.session.id,
            sequence: operation.sequence.unwrap_or_default(),
            floor,
            map_min: self.session.map_min,
            term: Term(0),
            snapshot,
            group: operation.group,
            epoch,
            contended: operation.contended,
            repeated,
            op: operation.op.clone(),
        };
        let call = ChunkCall::new(node, address, request, operation.payload.clone());
        self.out.push(Effect::SendChunk { ticket, call, deadline: self.now + ATTEMPT });
    }

    /// Who is to be asked: the primary; after a damaged answer the other members in sync, in turn.
    fn target(&self, operation: &Operation) -> Option<(NodeId, String, Epoch)> {
        let view = self.cluster.map.view(operation.group)?;
        let member = if operation.elsewhere {
            view.in_sync[operation.damaged as usize % view.in_sync.len()]
        } else {
            view.primary
        };
        let address = self.cluster.map.nodes.get(&member.node)?.address.clone();
        Some((member.node, address, view.epoch))
    }

    /// A newer map: what waits for one may go, what is under way to an older view goes to the newer.
    pub(crate) fn map_changed(&mut self) {
        let mut again = std::mem::take(&mut self.data.homeless);
        for (number, operation) in &self.data.operations {
            let epoch = self.cluster.map.view(operation.group).map(|v| v.epoch);
            if operation.sent.is_some_and(|(_, sent)| Some(sent) != epoch) {
                again.insert(*number);
            }
        }
        for number in again {
            self.data_send(number);
        }
    }

    pub(crate) fn chunk_answered(&mut self, ticket: Ticket, result: Result<ChunkReply, Failure>) {
        let Some(number) = self.data.by_ticket.remove(&ticket) else { return };
        let Some(operation) = self.data.operations.get_mut(&number) else { return };
        operation.sent = None;
        operation.attempts += 1;
        let reply = match result {
            Ok(reply) => reply,
            Err(Failure::Unreachable | Failure::TimedOut) => {
                self.ask_map();
                return self.data_again(number);
            }
        };
        match (&operation.op, reply.answer) {
            (op, ChunkAnswer::Done { .. }) if op.is_change() => self.data_done(number, Ok(Bytes::new())),
            (ChunkOp::Read { .. }, ChunkAnswer::Data { .. }) if reply.intact => self.data_done(number, Ok(reply.data)),
            (ChunkOp::Read { .. }, ChunkAnswer::Data { .. }) => self.data_damaged(number),
            (ChunkOp::Made { .. }, ChunkAnswer::Made { stands }) => {
                if let Some(Operation { purpose: DataPurpose::Check { inode, sequence }, .. }) =
                    self.data.operations.remove(&number)
                {
                    self.checked(inode, sequence, Ok(stands));
                }
            }
            (ChunkOp::Allocated { .. }, ChunkAnswer::Allocated { ranges, through }) => {
                if let Some(Operation { purpose: DataPurpose::Seek { number, share, upto }, .. }) =
                    self.data.operations.remove(&number)
                {
                    self.allocated(number, share, upto, Ok((ranges, through)));
                }
            }
            (_, ChunkAnswer::Refused(refusal)) => self.data_refused(number, refusal),
            (
                _,
                ChunkAnswer::Done { .. }
                | ChunkAnswer::Data { .. }
                | ChunkAnswer::Made { .. }
                | ChunkAnswer::Highest { .. }
                | ChunkAnswer::Allocated { .. },
            ) => {
                self.data_done(number, Err(ClientError::Protocol { detail: "storage answered something else" }));
            }
        }
    }

    fn data_again(&mut self, number: u64) {
        let attempts = self.data.operations.get(&number).map_or(0, |op| op.attempts);
        let pause = self.backoff(attempts);
        self.timer(self.now + pause, Timer::Data(number));
    }

    /// Bytes that were read do not have their sums: another copy, or the same once more.
    fn data_damaged(&mut self, number: u64) {
        let Some(operation) = self.data.operations.get_mut(&number) else { return };
        operation.damaged += 1;
        operation.elsewhere = true;
        if operation.damaged >= DAMAGE_MAX {
            self.data_done(number, Err(ClientError::Damaged));
        } else {
            self.data_again(number);
        }
    }

    fn data_refused(&mut self, number: u64, refusal: Refusal) {
        let Some(operation) = self.data.operations.get_mut(&number) else { return };
        match refusal {
            Refusal::WrongEpoch { .. } | Refusal::NotPrimary | Refusal::Io => {
                // A damaged copy was evaded to a member that does not serve reads: back to the primary, then.
                operation.elsewhere = false;
                self.ask_map();
                self.data_again(number);
            }
            Refusal::OldMap { .. } | Refusal::NotServing { .. } => self.data_again(number),
            Refusal::BadBlock => self.data_damaged(number),
            Refusal::Damaged if operation.attempts < RESEND_MAX => self.data_again(number),
            Refusal::Damaged => self.data_done(number, Err(ClientError::Damaged)),
            Refusal::NoSpace => self.data_done(number, Err(ClientError::NoSpace)),
            Refusal::SessionEnded => self.session_over("a storage node has learned that the session is over".into()),
            Refusal::Unknown => {
                self.data_done(number, Err(ClientError::Protocol { detail: "whether it was written is not known" }));
            }
            Refusal::StaleSequence => {
                self.data_done(number, Err(ClientError::Protocol { detail: "our data sequence is stale" }));
            }
            Refusal::Forbidden => self.data_done(number, Err(ClientError::Refused { reason: refusal.to_string() })),
            Refusal::Malformed => {
                self.data_done(number, Err(ClientError::Protocol { detail: "storage does not understand us" }));
            }
        }
    }

    /// A request is answered for good.
    fn data_done(&mut self, number: u64, result: Result<Bytes, ClientError>) {
        let Some(operation) = self.data.operations.remove(&number) else { return };
        if let Some(sequence) = operation.sequence
            && let Some(open) = self.data.unanswered.get_mut(&operation.group)
        {
            open.remove(&sequence);
            if open.is_empty() {
                self.data.unanswered.remove(&operation.group);
            }
        }
        if operation.contended {
            self.next_turn(&operation.op, number);
        }
        match operation.purpose {
            DataPurpose::Flush { inode, start } => self.flushed(inode, start, result.map(drop)),
            DataPurpose::Zero { inode } => self.zeroed(inode, result.map(drop)),
            DataPurpose::Fetch(fetch) => self.fetched(fetch, result),
            DataPurpose::Check { inode, sequence } => self.checked(inode, sequence, result.map(|_| false)),
            DataPurpose::Seek { number, share, upto } => {
                let result = result.and(Err(ClientError::Protocol { detail: "storage answered something else" }));
                self.allocated(number, share, upto, result);
            }
        }
    }
}

const _: () = assert!(CHUNK_BYTES <= u32::MAX as u64, "offsets within a chunk travel as u32");
