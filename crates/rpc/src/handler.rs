//! What a process does with what arrives, and how it answers.

use crate::error::{CastError, Refusal, RpcError};
use crate::identity::PeerIdentity;
use crate::shared::Shared;
use crate::table::{Completion, Draft};
use bytes::Bytes;
use holdfast_wire::frame::TraceContext;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Receives what peers send. All methods run on the connection's own task, one at a time and in the order of arrival, so they
/// must hand work on and never block: while one runs, nothing else of that connection moves.
pub trait Handler: Send + Sync + 'static {
    /// A peer is connected and has proved who it is. Comes before everything else of that connection.
    fn connected(&self, from: &PeerIdentity, link: &Link) {
        let _ = (from, link);
    }

    /// A request. `respond` may be completed later, from any thread, in any order.
    fn handle(&self, from: &PeerIdentity, request: Incoming, respond: Responder) {
        let _ = (from, request);
        respond.refuse(Refusal::Unhandled);
    }

    /// A message that wants no answer.
    ///
    /// As long as `message` lives its bytes count against the connection's bound, so a handler that queues it whole gets
    /// back-pressure for nothing.
    fn one_way(&self, from: &PeerIdentity, message: Incoming) {
        let _ = (from, message);
    }

    /// Nobody listens where the peer should be: its process has ended, or was never there. Said after each attempt that finds it so.
    fn refused(&self) {}

    /// The connection is gone. Comes last, once per [`Self::connected`].
    fn disconnected(&self, from: &PeerIdentity, link: &Link) {
        let _ = (from, link);
    }
}

/// What arrived.
#[derive(Debug)]
pub struct Incoming {
    /// Which message it is, see [`holdfast_wire::kind::Kind`].
    pub kind: u16,
    /// The message. A small one shares the buffer it was read into (64 KiB): copy what is kept for long.
    pub message: Bytes,
    /// The payload, likewise.
    pub payload: Bytes,
    /// When the caller stops waiting. For one-way messages: meaningless.
    pub deadline: Instant,
    /// Trace it belongs to.
    pub trace: TraceContext,
    /// The connection it came over.
    pub link: Link,
    pub(crate) _hold: Hold,
}

/// Counts bytes against the connection's bound as long as it lives.
#[derive(Debug)]
pub(crate) struct Hold {
    shared: Arc<Shared>,
    units: u64,
}

impl Hold {
    pub fn new(shared: Arc<Shared>, units: u64) -> Self {
        shared.hold(units);
        Self { shared, units }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.release(self.units);
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The message.
    pub message: Bytes,
    /// The payload.
    pub payload: Bytes,
}

/// The duty to answer one request. Dropped without an answer, the caller learns that it was abandoned.
#[derive(Debug)]
pub struct Responder {
    hold: Hold,
    request: u64,
    kind: u16,
    answered: bool,
}

impl Responder {
    pub(crate) fn new(shared: Arc<Shared>, request: u64, kind: u16, units: u64) -> Self {
        Self { hold: Hold::new(shared, units), request, kind, answered: false }
    }

    /// Answers. Never blocks: the answer is queued, or dropped when nobody waits for it any more.
    pub fn send(mut self, message: impl Into<Bytes>, payload: Bytes) {
        self.answered = true;
        self.hold.shared.answer(self.request, self.kind, message.into(), payload);
    }

    /// Says no on the transport's level, before anything was done.
    pub fn refuse(mut self, refusal: Refusal) {
        self.answered = true;
        self.hold.shared.refuse(self.request, refusal);
    }

    /// Whether nobody waits for the answer: the caller gave up, or the connection is gone.
    pub fn cancelled(&self) -> bool {
        !self.hold.shared.is_serving(self.request)
    }

    /// The connection that the request came over.
    pub fn link(&self) -> Link {
        Link { shared: self.hold.shared.clone() }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            self.hold.shared.refuse(self.request, Refusal::Abandoned);
        }
    }
}

/// One connection, from either end: the way to call back a peer that cannot be dialled. Ends with the connection.
#[derive(Clone)]
pub struct Link {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} {})", self.id(), self.shared.name())
    }
}

impl PartialEq for Link {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Link {}

impl Link {
    /// Names the connection within this process; never reused.
    pub fn id(&self) -> u64 {
        self.shared.id()
    }

    /// Who is at the other end.
    pub fn peer(&self) -> PeerIdentity {
        self.shared.peer().expect("a link is handed out after the hello")
    }

    /// Whether the connection still stands, as far as is known.
    pub fn is_open(&self) -> bool {
        !self.shared.is_closed()
    }

    /// Ends the connection; what is queued is dropped.
    pub fn close(&self) {
        self.shared.stop();
    }

    /// Queues a one-way message.
    ///
    /// # Errors
    /// [`CastError`]: it was dropped.
    pub fn cast(&self, kind: u16, message: Bytes, payload: Bytes) -> Result<(), CastError> {
        self.shared.cast(kind, message, payload, TraceContext::default())
    }

    /// Calls the other end; `then` runs once, on the connection's task or, when the call fails at once, on this thread.
    pub fn call_then(
        &self,
        kind: u16,
        message: Bytes,
        payload: Bytes,
        deadline: Duration,
        then: impl FnOnce(Result<Response, RpcError>) + Send + 'static,
    ) {
        let draft = Draft::new(kind, message, payload, deadline);
        let completion = Completion::Callback(Box::new(then));
        match self.shared.try_units(&draft) {
            Err(error) => completion.run(Err(error)),
            Ok(permit) => {
                if let Err(returned) = self.shared.submit(draft, completion, permit) {
                    let (error, _, completion, _) = *returned;
                    completion.run(Err(error));
                }
            }
        }
    }
}
