//! What waits on one connection: frames for the writer, calls for their answers, requests for ours. Plain data under
//! [`crate::shared::Shared`]'s lock.
//!
//! Invariants:
//! * A call is marked as sent before its first byte is handed to the transport.
//! * `deadlines` holds exactly the calls of `calls`.

use crate::error::{ConnectError, RpcError};
use crate::handler::Response;
use bytes::Bytes;
use holdfast_wire::frame::{HEADER_BYTES, Header, TraceContext};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// One unit of `Bounds::bytes_max`, in bytes. A frame costs one unit more than its bodies, so empty ones are bounded as well.
pub(crate) const UNIT_BYTES: u64 = 1024;
/// No call waits longer.
pub(crate) const DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// Most bytes and frames that the writer takes at once: enough to fill a socket, few enough that a cancelled call is not sent.
const BATCH_BYTES: u64 = 1 << 20;
const BATCH_FRAMES: usize = 256;

/// A call about to be made.
pub(crate) struct Draft {
    pub kind: u16,
    pub message: Bytes,
    pub payload: Bytes,
    pub deadline: Instant,
    pub waited: Duration,
    pub trace: TraceContext,
}

impl Draft {
    pub fn new(kind: u16, message: Bytes, payload: Bytes, deadline: Duration) -> Self {
        let waited = deadline.min(DEADLINE_MAX);
        Self { kind, message, payload, deadline: Instant::now() + waited, waited, trace: TraceContext::default() }
    }

    pub fn units(&self) -> u32 {
        // A frame's bodies fit into 32 bits; larger ones are refused before they get here.
        units(self.message.len() as u64 + self.payload.len() as u64) as u32
    }
}

pub(crate) fn units(bytes: u64) -> u64 {
    1 + bytes / UNIT_BYTES
}

/// Whom an answer goes to.
pub(crate) enum Completion {
    Channel(oneshot::Sender<Result<Response, RpcError>>),
    Callback(Box<dyn FnOnce(Result<Response, RpcError>) + Send>),
}

impl Completion {
    pub fn run(self, result: Result<Response, RpcError>) {
        match self {
            // A receiver that is gone has cancelled.
            Self::Channel(sender) => drop(sender.send(result)),
            Self::Callback(then) => then(result),
        }
    }
}

/// A frame that waits for the writer, which completes its header.
pub(crate) struct Out {
    pub header: Header,
    pub deadline: Option<Instant>,
    pub message: Bytes,
    pub payload: Bytes,
}

impl Out {
    pub fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.message.len() + self.payload.len()) as u64
    }
}

/// A call that could not be queued, and why.
pub(crate) type Returned = Box<(RpcError, Draft, Completion, OwnedSemaphorePermit)>;

/// A call that waits for its answer.
pub(crate) struct Call {
    pub completion: Completion,
    deadline: Instant,
    pub waited: Duration,
    pub sent: bool,
    /// Room in the bound; given back when the call is over.
    _permit: OwnedSemaphorePermit,
}

/// Why a connection is over.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Unreachable(Arc<ConnectError>),
    Closed(Arc<str>),
}

/// See the picture in [`crate::shared`].
pub(crate) enum Phase {
    Waiting,
    Up,
    Closed(End),
}

/// All that waits.
pub(crate) struct Table {
    pub phase: Phase,
    pub queue: VecDeque<Out>,
    pub queued_bytes: u64,
    /// The writer has taken something and not yet handed all of it to the transport.
    pub writing: bool,
    /// What a socket did not take at once of a frame that was sent past the writer; goes before everything queued.
    pub rest: Bytes,
    request_last: u64,
    calls: HashMap<u64, Call>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// When the timers wake next.
    armed: Option<Instant>,
    /// Requests of the other end that we owe an answer.
    pub serving: BTreeSet<u64>,
    pub draining: bool,
}

impl Out {
    pub fn bare(header: Header) -> Self {
        Self { header, deadline: None, message: Bytes::new(), payload: Bytes::new() }
    }
}

impl Table {
    pub fn new() -> Self {
        Self {
            phase: Phase::Waiting,
            queue: VecDeque::new(),
            queued_bytes: 0,
            writing: false,
            rest: Bytes::new(),
            request_last: 0,
            calls: HashMap::new(),
            deadlines: BTreeSet::new(),
            armed: None,
            serving: BTreeSet::new(),
            draining: false,
        }
    }

    /// Registers a call; returns its request id, and whether its time is over before the timers wake.
    pub fn register(
        &mut self,
        completion: Completion,
        deadline: Instant,
        waited: Duration,
        permit: OwnedSemaphorePermit,
    ) -> (u64, bool) {
        self.request_last += 1;
        let request = self.request_last;
        self.calls.insert(request, Call { completion, deadline, waited, sent: false, _permit: permit });
        self.deadlines.insert((deadline, request));
        (request, self.armed.is_none_or(|armed| deadline < armed))
    }

    /// Empties the table for good: what has to be completed, and what is dropped.
    pub fn close(&mut self, end: &End) -> (Vec<Call>, VecDeque<Out>) {
        self.phase = Phase::Closed(end.clone());
        self.deadlines.clear();
        self.serving.clear();
        self.queued_bytes = 0;
        // In the order in which they were made.
        let mut calls: Vec<_> = std::mem::take(&mut self.calls).into_iter().collect();
        calls.sort_unstable_by_key(|(request, _)| *request);
        (calls.into_iter().map(|(_, call)| call).collect(), std::mem::take(&mut self.queue))
    }

    /// Queues a frame; true when the writer may be asleep.
    pub fn push(&mut self, out: Out) -> bool {
        if matches!(self.phase, Phase::Closed(_)) {
            return false;
        }
        let idle = self.queue.is_empty();
        self.queued_bytes += out.bytes();
        self.queue.push_back(out);
        idle
    }

    /// Nobody is sending and nothing waits to be sent: the next frame may go past the writer.
    pub fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Up) && !self.writing && self.queue.is_empty() && self.rest.is_empty()
    }

    pub fn remove(&mut self, request: u64) -> Option<Call> {
        let call = self.calls.remove(&request)?;
        let listed = self.deadlines.remove(&(call.deadline, request));
        assert!(listed, "call {request} has no deadline");
        Some(call)
    }

    pub fn take(&mut self, now: Instant, batch: &mut Vec<Out>) {
        let mut bytes = 0;
        while bytes < BATCH_BYTES && batch.len() < BATCH_FRAMES {
            let Some(mut out) = self.queue.pop_front() else { break };
            self.queued_bytes -= out.bytes();
            if let Some(deadline) = out.deadline {
                let left = deadline.saturating_duration_since(now);
                // Cancelled, or about to expire: the timers complete it as never sent.
                let Some(call) = self.calls.get_mut(&out.header.request).filter(|_| !left.is_zero()) else { continue };
                call.sent = true;
                out.header.deadline_us = left.as_micros().max(1) as u64;
            }
            bytes += out.bytes();
            batch.push(out);
        }
    }

    /// Takes out the calls whose time is over and tells the other end; returns when the next one's is.
    pub fn expire(&mut self, now: Instant, cancel: impl Fn(u64) -> Header) -> (Vec<Call>, Option<Instant>) {
        let mut expired = Vec::new();
        self.armed = loop {
            let Some(&(deadline, request)) = self.deadlines.first() else { break None };
            if deadline > now {
                break Some(deadline);
            }
            let call = self.remove(request).expect("every deadline has its call");
            if call.sent {
                self.push(Out::bare(cancel(request)));
            }
            expired.push(call);
        };
        (expired, self.armed)
    }
}
