//! Calling a peer: a few connections ([`crate::lane`]) that are made when needed and made again when lost.

use crate::error::{CastError, RpcError};
use crate::handler::{Handler, Link, Response};
use crate::identity::{Expect, Identity, PeerIdentity};
use crate::lane::{Lane, Target};
use crate::shared::Bounds;
use crate::stream::{Address, Transport};
use crate::table::{Completion, Draft};
use bytes::Bytes;
use holdfast_wire::frame::TraceContext;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;

/// How a peer is kept in touch with.
#[derive(Clone)]
pub struct PeerOptions {
    /// Connections. Frames of one lane stay in order; lanes know nothing of each other. Default: 1.
    pub lanes: usize,
    /// Connect without being asked, and again whenever the connection is lost. Default: false.
    pub keep_connected: bool,
    /// Use the socket that a server on this host has beside its port, if the transport is not plain and one certain peer is
    /// expected. Default: false.
    pub local: bool,
    /// Time for one attempt, hello included. Default: 2 s.
    pub connect_timeout: Duration,
    /// First pause after a failed attempt; doubles. Default: 20 ms.
    pub pause_least: Duration,
    /// Longest pause. Default: 1 s.
    pub pause_most: Duration,
    /// Bytes of calls under way per lane, and of one-way messages queued. Default: 64 MiB.
    pub bytes_max: u64,
    /// Silence after which we say that we live. Default: 1 s.
    pub heartbeat: Duration,
    /// Silence after which the peer counts as gone. Default: 5 s.
    pub idle_timeout: Duration,
    /// Receives what the peer sends on its own account, and learns of connections made and lost. Default: none.
    pub handler: Option<Arc<dyn Handler>>,
    /// Seed of the pauses' jitter. Default: from the peer's name and ours.
    pub seed: Option<u64>,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            lanes: 1,
            keep_connected: false,
            local: false,
            connect_timeout: Duration::from_secs(2),
            pause_least: Duration::from_millis(20),
            pause_most: Duration::from_secs(1),
            bytes_max: 64 << 20,
            heartbeat: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(5),
            handler: None,
            seed: None,
        }
    }
}

impl fmt::Debug for PeerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerOptions({} lanes, {} bytes)", self.lanes, self.bytes_max)
    }
}

/// A call with everything that can be said about it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which message it is.
    pub kind: u16,
    /// The message.
    pub message: Bytes,
    /// The payload, never copied before it reaches the socket (or TLS).
    pub payload: Bytes,
    /// How long the caller waits, at most an hour.
    pub deadline: Duration,
    /// Trace it belongs to.
    pub trace: TraceContext,
    /// Which connection; `None` takes the one with the least under way.
    pub lane: Option<usize>,
}

/// A process that we call. Cheap to clone; its connections end with the last clone.
#[derive(Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

struct Inner {
    lanes: Vec<Arc<Lane>>,
    next: AtomicUsize,
    dropped_casts: Arc<AtomicU64>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.stop("the peer was dropped"));
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.inner.lanes[0].target.name)
    }
}

impl Peer {
    /// Prepares to call the process at one of `addresses`; connects when there is something to send.
    ///
    /// # Panics
    /// Outside of a tokio runtime, and when `addresses` is empty or `options.lanes` is 0.
    pub fn new(
        identity: Identity,
        transport: Transport,
        addresses: Vec<Address>,
        expected: impl Into<Expect>,
        options: PeerOptions,
    ) -> Self {
        assert!(!addresses.is_empty(), "a peer without an address");
        assert!(options.lanes > 0, "a peer without lanes");
        let expected = expected.into();
        let name = match expected {
            Expect::Exactly(peer) => peer.to_string(),
            Expect::Role(_) | Expect::Anyone => format!("{expected} at {}", addresses[0]),
        };
        let seed = options.seed.unwrap_or_else(|| {
            let text = format!("{} {name}", identity.me());
            u64::from(holdfast_types::checksum::crc32(text.as_bytes()))
        });
        let bounds =
            Bounds { bytes_max: options.bytes_max, heartbeat: options.heartbeat, idle_timeout: options.idle_timeout };
        let lanes = options.lanes;
        let dropped_casts = Arc::new(AtomicU64::new(0));
        let target = Arc::new(Target { identity, transport, addresses, expected, name: name.into(), options, bounds });
        let lanes = (0..lanes).map(|n| Lane::start(target.clone(), seed + n as u64, dropped_casts.clone())).collect();
        Self { inner: Arc::new(Inner { lanes, next: AtomicUsize::new(0), dropped_casts }) }
    }

    /// Calls and waits for the answer. Dropping the future cancels the call.
    ///
    /// # Errors
    /// [`RpcError`], which says whether the request may have been executed.
    pub async fn call(
        &self,
        kind: u16,
        message: Bytes,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Response, RpcError> {
        self.call_request(Request { kind, message, payload, deadline, trace: TraceContext::default(), lane: None })
            .await
    }

    /// Like [`Self::call`] on one lane: calls on the same lane arrive in the order in which they were made.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn call_on(
        &self,
        lane: usize,
        kind: u16,
        message: Bytes,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Response, RpcError> {
        let trace = TraceContext::default();
        self.call_request(Request { kind, message, payload, deadline, trace, lane: Some(lane) }).await
    }

    /// Like [`Self::call`], with everything that can be said. Waits for room when too much is under way.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn call_request(&self, request: Request) -> Result<Response, RpcError> {
        let lane = self.lane(request.lane).clone();
        let draft = request.draft();
        let permit = lane.room(&draft).await?;
        let (sender, receiver) = oneshot::channel();
        let mut ticket = match lane.submit(draft, Completion::Channel(sender), permit) {
            Ok(ticket) => ticket,
            Err((error, _)) => return Err(error),
        };
        let result = receiver.await;
        ticket.done = true;
        // The sender is dropped unused only when the runtime is going down.
        result.unwrap_or_else(|_| Err(lane.stopped(true)))
    }

    /// Calls without waiting: `then` runs once, on the connection's task or, when the call fails at once, on this thread. It must
    /// not block. Fails with [`RpcError::Full`] rather than wait for room.
    pub fn call_then(
        &self,
        kind: u16,
        message: Bytes,
        payload: Bytes,
        deadline: Duration,
        then: impl FnOnce(Result<Response, RpcError>) + Send + 'static,
    ) {
        let trace = TraceContext::default();
        self.request_then(Request { kind, message, payload, deadline, trace, lane: None }, then);
    }

    /// Like [`Self::call_then`], with everything that can be said.
    pub fn request_then(&self, request: Request, then: impl FnOnce(Result<Response, RpcError>) + Send + 'static) {
        let lane = self.lane(request.lane);
        let draft = request.draft();
        let completion = Completion::Callback(Box::new(then));
        let permit = match lane.shared().try_units(&draft) {
            Ok(permit) => permit,
            Err(error) => return completion.run(Err(error)),
        };
        match lane.submit(draft, completion, permit) {
            Ok(mut ticket) => ticket.done = true,
            Err((error, completion)) => completion.run(Err(error)),
        }
    }

    /// Queues a one-way message on lane 0, in order. It is lost with the connection, or with the attempt at one; [`Handler`]'s
    /// `connected` and `disconnected` tell when to send again, [`Self::dropped_casts`] how many went.
    ///
    /// # Errors
    /// [`CastError`]: it was dropped on the spot.
    pub fn cast(&self, kind: u16, message: Bytes, payload: Bytes) -> Result<(), CastError> {
        self.cast_traced(kind, message, payload, TraceContext::default())
    }

    /// Like [`Self::cast`], as part of a trace.
    ///
    /// # Errors
    /// [`CastError`].
    pub fn cast_traced(&self, kind: u16, message: Bytes, payload: Bytes, trace: TraceContext) -> Result<(), CastError> {
        let lane = &self.inner.lanes[0];
        loop {
            let shared = lane.shared();
            match shared.cast(kind, message.clone(), payload.clone(), trace) {
                Err(CastError::NotConnected) if lane.is_renewed(&shared) => {}
                result => return result,
            }
        }
    }

    /// One-way messages dropped since the start.
    pub fn dropped_casts(&self) -> u64 {
        self.inner.dropped_casts.load(Ordering::Relaxed)
    }

    /// Who is at the other end of lane 0, while it is connected.
    pub fn connected_to(&self) -> Option<PeerIdentity> {
        self.link().map(|link| link.peer())
    }

    /// The connection of lane 0, while it stands.
    pub fn link(&self) -> Option<Link> {
        let shared = self.inner.lanes[0].shared();
        (shared.peer().is_some() && !shared.is_closed()).then_some(Link { shared })
    }

    /// Ends all connections, also for other clones, and waits until their tasks are gone. What is under way fails.
    pub async fn close(&self) {
        for lane in &self.inner.lanes {
            lane.stop("the peer was closed");
            lane.ended().await;
        }
    }

    fn lane(&self, lane: Option<usize>) -> &Arc<Lane> {
        let lanes = &self.inner.lanes;
        match lane {
            Some(n) => &lanes[n % lanes.len()],
            None if lanes.len() == 1 => &lanes[0],
            None => {
                let first = self.inner.next.fetch_add(1, Ordering::Relaxed);
                let turn = (0..lanes.len()).map(|n| &lanes[first.wrapping_add(n) % lanes.len()]);
                turn.rev().max_by_key(|lane| lane.units.available_permits()).expect("a peer has lanes")
            }
        }
    }
}

impl Request {
    fn draft(self) -> Draft {
        let mut draft = Draft::new(self.kind, self.message, self.payload, self.deadline);
        draft.trace = self.trace;
        draft
    }
}
