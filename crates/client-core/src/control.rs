//! Requests to the metadata service: numbers, leaders, retries.
//!
//! A request is sent until it is answered for good. A mutation keeps its sequence; `answered_below` is the lowest sequence without an
//! answer, so that the service may forget the answers below.

use crate::call::{Call, CallId};
use crate::core::{ClientCore, Timer};
use crate::effect::{Effect, Failure, Ticket};
use crate::error::ClientError;
use crate::lock::Asked;
use holdfast_types::{InodeId, Instant, LogIndex, Sequence, ServerId, SessionId, ShardId, Term, Timestamp};
use holdfast_wire::metadata::{Answer, Envelope, MetadataError, Request, Response};
use holdfast_wire::namespace::AccessTime;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long an attempt may take.
const ATTEMPT: Duration = Duration::from_secs(3);
/// The same for the first one: a leader that died is noticed by then, and another one is elected meanwhile.
const ATTEMPT_FIRST: Duration = Duration::from_secs(1);
/// Attempts after which the cluster is said to be out of reach.
const ATTEMPTS_UNTIL_SAID: u32 = 8;

/// What an answer is for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    OpenSession,
    Attach,
    Renew,
    Detach,
    StoppedCaching {
        event: u64,
    },
    Map {
        subscription: bool,
    },
    /// A namespace operation: its outcome is the call's reply.
    Call(CallId),
    /// A namespace operation whose call is told only that it is done.
    Quiet(CallId),
    /// A query that a call needed before it could begin; it begins anew.
    Resume(CallId, Box<Call>),
    /// `Call::Create` with `open`.
    Create(CallId, Call),
    /// `Call::Open`.
    Open(CallId, InodeId, crate::OpenMode),
    /// A call that opens a file waits until it is not open elsewhere.
    AwaitOpen(CallId, Box<Call>),
    /// `Call::Unlink`, `Call::RemoveDirectory`, `Call::Rename`: what the name was believed to be.
    Remove(CallId, Option<InodeId>),
    /// The size, for a read or a search for holes that may not use a cached one.
    Size(CallId, Box<Call>),
    /// Whether a file was cut while a read of it was under way: its number.
    ReadCheck(u64),
    /// The same for a search.
    SeekCheck(u64),
    /// `Call::SetAttributes` through the file's lane.
    Set {
        id: CallId,
        inode: InodeId,
        quiet: bool,
    },
    Publish(InodeId, Published),
    AccessTimes(Vec<AccessTime>),
    Reserve(InodeId),
    /// Room for appends, beyond a size that the answer says.
    ReserveEnd(InodeId),
    Trim(InodeId),
    /// The file's attributes, after the service said that ours are stale.
    Refresh(InodeId),
    Close(InodeId),
    /// `Call::SetLock`.
    Lock(Asked),
    /// A lock that was granted here while this session was alone, or given back.
    HandOver(InodeId, holdfast_wire::lock::Lock),
    /// `Call::SetLock` that waits.
    AwaitLock(Asked),
}

/// What a `Publish` covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// Every write up to this number.
    pub covers: u64,
    pub size: u64,
    pub mtime: Timestamp,
    pub clear_set_ids: bool,
    pub sparse: bool,
}

pub(crate) struct Operation {
    shard: ShardId,
    pub request: Request,
    pub purpose: Purpose,
    sequence: Option<Sequence>,
    attempts: u32,
    sent: Option<(Ticket, ServerId)>,
    /// When it was last sent.
    pub sent_at: Instant,
    /// Number of the span of caching in which it was first sent.
    pub span: u64,
    hold: Option<Duration>,
}

/// Requests to the metadata service that are under way or wait for their turn.
pub(crate) struct Control {
    operations: BTreeMap<u64, Operation>,
    by_ticket: BTreeMap<Ticket, u64>,
    operation_next: u64,
    sequence_next: Sequence,
    unanswered: BTreeSet<Sequence>,
    /// Mutations that wait because too many are under way.
    queue: VecDeque<u64>,
    pub unreachable_said: bool,
    /// Index at which the answer that is being taken up is right.
    pub answered_at: LogIndex,
}

impl Control {
    pub fn new() -> Self {
        Self {
            operations: BTreeMap::new(),
            by_ticket: BTreeMap::new(),
            operation_next: 1,
            sequence_next: Sequence(1),
            unanswered: BTreeSet::new(),
            queue: VecDeque::new(),
            unreachable_said: false,
            answered_at: LogIndex(0),
        }
    }

    /// Forgets everything that is under way: nothing can come of it any more.
    pub fn clear(&mut self) {
        self.operations.clear();
        self.by_ticket.clear();
        self.queue.clear();
        self.unanswered.clear();
    }

    /// Whether anything under way opens a file in a way that the service may not have recorded: an open without record, from
    /// before this span; a creation, from whatever span.
    pub fn opening(&self, span: u64) -> bool {
        self.operations.values().any(|op| match op.purpose {
            Purpose::Create(..) => true,
            Purpose::Open(..) => op.span != span,
            _ => false,
        })
    }
}

impl ClientCore {
    /// Begins a request. `hold`: how long the server may hold the answer by design.
    /// Returns its number.
    pub(crate) fn control_start(
        &mut self,
        shard: ShardId,
        request: Request,
        purpose: Purpose,
        hold: Option<Duration>,
    ) -> u64 {
        let number = self.control.operation_next;
        self.control.operation_next += 1;
        let mutation = matches!(request, Request::Mutate(_));
        let operation = Operation {
            shard,
            request,
            purpose,
            sequence: None,
            attempts: 0,
            sent: None,
            sent_at: self.now,
            span: self.session.span,
            hold,
        };
        self.control.operations.insert(number, operation);
        if mutation && self.control.unanswered.len() >= self.config.mutations_in_flight {
            self.control.queue.push_back(number);
        } else {
            self.control_send(number);
        }
        number
    }

    /// Gives up a query: its answer is not waited for any more.
    pub(crate) fn control_drop(&mut self, number: u64) {
        let Some(operation) = self.control.operations.remove(&number) else { return };
        assert!(operation.sequence.is_none(), "what has a number goes on by itself");
        if let Some((ticket, _)) = operation.sent {
            self.control.by_ticket.remove(&ticket);
            self.out.push(Effect::Forget { ticket });
        }
    }

    /// Sends a request, or sends it again.
    pub(crate) fn control_send(&mut self, number: u64) {
        let Some(shard) = self.control.operations.get(&number).map(|op| op.shard) else { return };
        let ticket = self.ticket();
        let server = self.leader(shard);
        let Some(operation) = self.control.operations.get_mut(&number) else { return };
        if operation.sequence.is_none() && matches!(operation.request, Request::Mutate(_)) {
            let sequence = self.control.sequence_next;
            self.control.sequence_next = sequence.next();
            self.control.unanswered.insert(sequence);
            operation.sequence = Some(sequence);
        }
        if let Some((old, _)) = operation.sent.replace((ticket, server)) {
            self.control.by_ticket.remove(&old);
            self.out.push(Effect::Forget { ticket: old });
        }
        operation.sent_at = self.now;
        self.control.by_ticket.insert(ticket, number);
        let session = match operation.request {
            Request::OpenSession { .. } | Request::GetMap { .. } => SessionId::NONE,
            _ => self.session.id,
        };
        let envelope = Envelope {
            shard,
            session,
            sequence: operation.sequence.unwrap_or_default(),
            answered_below: self.control.unanswered.first().copied().unwrap_or(self.control.sequence_next),
            term: Term(0),
            request: operation.request.clone(),
        };
        let patience = if operation.attempts == 0 { ATTEMPT_FIRST } else { ATTEMPT };
        let deadline = self.now + operation.hold.unwrap_or(patience);
        self.out.push(Effect::SendMetadata { ticket, server, envelope, deadline });
    }

    pub(crate) fn metadata_answered(&mut self, ticket: Ticket, result: Result<Answer, Failure>) {
        let Some(number) = self.control.by_ticket.remove(&ticket) else { return };
        let Some(operation) = self.control.operations.get_mut(&number) else { return };
        let Some((_, server)) = operation.sent.take() else { return };
        let shard = operation.shard;
        operation.attempts += 1;
        let attempts = operation.attempts;
        match result {
            Err(failure) => {
                self.not_leader(shard, server, None);
                if attempts >= ATTEMPTS_UNTIL_SAID && !self.control.unreachable_said {
                    self.control.unreachable_said = true;
                    let detail = format!("metadata server {server}: {failure:?}");
                    self.notify(crate::Notice::Reachable { reachable: false, detail });
                }
                self.control_again(number, attempts);
                self.control_elsewhere(shard, server);
            }
            Ok(Answer { result: Err(MetadataError::NotLeader { hint }), .. }) => {
                // A named leader is asked at once, but not for ever: two servers may name each other.
                if self.not_leader(shard, server, hint) && attempts % 4 != 0 {
                    self.control_send(number);
                } else {
                    self.control_again(number, attempts);
                }
            }
            Ok(Answer { result: Err(MetadataError::Unavailable { .. } | MetadataError::Backpressure), .. }) => {
                self.control_again(number, attempts);
            }
            Ok(answer) => {
                if std::mem::take(&mut self.control.unreachable_said) {
                    self.notify(crate::Notice::Reachable {
                        reachable: true,
                        detail: format!("metadata server {server}"),
                    });
                }
                self.control_done(number, answer);
            }
        }
    }

    /// A server has failed to answer: what it may hold for long is asked elsewhere, too.
    fn control_elsewhere(&mut self, shard: ShardId, server: ServerId) {
        let now = self.now;
        let held = |op: &&Operation| {
            op.shard == shard && op.sent.is_some_and(|(_, to)| to == server) && op.sent_at + ATTEMPT_FIRST <= now
        };
        let held: Vec<u64> =
            self.control.operations.iter().filter(|(_, op)| held(op)).map(|(number, _)| *number).collect();
        if self.leader(shard) != server {
            held.into_iter().for_each(|number| self.control_send(number));
        }
    }

    fn control_again(&mut self, number: u64, attempts: u32) {
        let pause = self.backoff(attempts);
        self.timer(self.now + pause, Timer::Control(number));
    }

    /// A request is answered for good.
    fn control_done(&mut self, number: u64, answer: Answer) {
        let operation = self.control.operations.remove(&number).expect("answered once");
        if let Some(sequence) = operation.sequence {
            self.control.unanswered.remove(&sequence);
        }
        while self.control.unanswered.len() < self.config.mutations_in_flight {
            let Some(next) = self.control.queue.pop_front() else { break };
            self.control_send(next);
        }
        if let Err(MetadataError::SessionEnded { reason }) = &answer.result
            && !matches!(operation.purpose, Purpose::Detach)
        {
            let reason = reason.clone();
            return self.session_over(reason);
        }
        let Answer { applied, result, .. } = answer;
        match operation.purpose.clone() {
            Purpose::OpenSession => self.session_opened(result),
            Purpose::Attach => self.attached(operation.sent_at, applied, result),
            Purpose::Renew => self.renewed(operation.sent_at, result),
            Purpose::Detach => self.detached(),
            Purpose::StoppedCaching { event } => self.stopped_caching(event, result),
            Purpose::Map { subscription } => self.map_answered(subscription, result),
            _ => self.namespace_done(operation, applied, result),
        }
    }

    /// A query or a mutation of the namespace is answered.
    fn namespace_done(&mut self, operation: Operation, applied: LogIndex, result: Result<Response, MetadataError>) {
        let result = match result {
            Ok(Response::Outcome(outcome)) => Ok(outcome),
            Ok(_) => Err(ClientError::Protocol { detail: "an answer of another kind than the request" }),
            Err(MetadataError::Namespace(error)) => Err(ClientError::Namespace(error)),
            Err(MetadataError::StaleSequence) => Err(ClientError::Protocol { detail: "our sequence is stale" }),
            Err(other) => Err(ClientError::Refused { reason: other.to_string() }),
        };
        self.control.answered_at = applied;
        self.learn(&operation, applied, &result);
        match operation.purpose {
            Purpose::Call(id) => self.call_answered(id, result),
            Purpose::Quiet(id) => self.complete(id, result.map(|_| crate::Reply::Done)),
            Purpose::Resume(id, call) => self.resume(id, *call, result),
            Purpose::Create(id, call) => self.created(id, call, operation.span, result),
            Purpose::Open(id, inode, mode) => self.open_answered(id, inode, mode, &operation.request, result),
            Purpose::AwaitOpen(id, call) => self.open_awaited(id, *call, result),
            Purpose::Remove(id, inode) => self.removed(id, inode, result),
            Purpose::Size(id, call) => self.sized(id, *call, result),
            Purpose::ReadCheck(number) => self.read_checked(number, result),
            Purpose::SeekCheck(number) => self.seek_checked(number, result),
            Purpose::Set { id, inode, quiet } => self.set_answered(id, inode, quiet, result),
            Purpose::AccessTimes(times) => self.accesses_told(&times, &result),
            Purpose::Publish(inode, published) => self.published(inode, published, result),
            Purpose::Reserve(inode) => self.reserved(inode, result),
            Purpose::ReserveEnd(inode) => self.end_reserved(inode, result),
            Purpose::Trim(inode) => self.trimmed(inode, result),
            Purpose::Refresh(inode) => self.refreshed(inode, result),
            Purpose::Close(inode) => self.closed(inode),
            Purpose::HandOver(inode, lock) => self.handed_over(inode, lock, result),
            Purpose::Lock(asked) => self.lock_answered(asked, result),
            Purpose::AwaitLock(asked) => self.lock_awaited(asked, result),
            Purpose::OpenSession
            | Purpose::Attach
            | Purpose::Renew
            | Purpose::Detach
            | Purpose::StoppedCaching { .. }
            | Purpose::Map { .. } => unreachable!("answered before"),
        }
    }
}
