//! One connection to a peer at a time, made when there is something to send and made again when it is lost.
//!
//! ```text
//! Idle ──first frame──▶ Pausing ──▶ Dialling ──▶ Up ──lost──▶ Idle
//!                                       └─failed─▶ Idle (the next attempt waits out a longer pause)
//! ```
//!
//! Invariants:
//! * Each attempt at a connection has its own [`Shared`]: what was queued for one is completed with it, so nothing is sent twice.
//! * A call made while the peer is unreachable shares the fate of the next attempt; that is at most
//!   [`PeerOptions::pause_most`] away, so callers learn soon enough to go elsewhere, and a dead peer costs one attempt per pause
//!   however many callers it has.

use crate::connection::{Connection, Side};
use crate::dial::{dial, quic_endpoint};
use crate::error::{ConnectError, RpcError};
use crate::identity::{Expect, Identity};
use crate::local;
use crate::peer::PeerOptions;
use crate::retry::Backoff;
use crate::shared::{Bounds, Shared};
use crate::stream::{Address, Transport};
use crate::table::{Completion, Draft, End};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The part of an attempt's time that the short way may take.
const LOCAL_SHARE: u32 = 2;

/// Cancels its call when dropped, unless it is done.
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    request: u64,
    pub done: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            self.shared.cancel(self.request);
        }
    }
}

/// Whom the lanes of a peer lead to.
pub(crate) struct Target {
    pub identity: Identity,
    pub transport: Transport,
    pub addresses: Vec<Address>,
    pub expected: Expect,
    pub name: Arc<str>,
    pub options: PeerOptions,
    pub bounds: Bounds,
}

/// One connection at a time.
pub(crate) struct Lane {
    pub target: Arc<Target>,
    current: Mutex<Arc<Shared>>,
    pub units: Arc<Semaphore>,
    dropped_casts: Arc<AtomicU64>,
    stopping: AtomicBool,
    stop: Notify,
    task: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Lane {
    pub fn start(target: Arc<Target>, seed: u64, dropped_casts: Arc<AtomicU64>) -> Arc<Self> {
        let units = Shared::semaphore(&target.bounds);
        let first = fresh(&target, &units, &dropped_casts);
        let lane = Arc::new(Self {
            target,
            current: Mutex::new(first),
            units,
            dropped_casts,
            stopping: AtomicBool::new(false),
            stop: Notify::new(),
            task: Mutex::new(None),
        });
        let task = tokio::spawn(Driver::new(lane.clone(), seed).run());
        *lane.task.lock().expect("nothing panics under this lock") = Some(task);
        lane
    }

    pub fn shared(&self) -> Arc<Shared> {
        self.current.lock().expect("nothing panics under this lock").clone()
    }

    /// Whether another attempt has taken the place of `shared`.
    pub fn is_renewed(&self, shared: &Arc<Shared>) -> bool {
        !Arc::ptr_eq(shared, &self.shared())
    }

    /// Ends an attempt or a connection. Calls made from now on go to the next.
    fn renew(&self, old: &Arc<Shared>, end: &End) {
        {
            let mut current = self.current.lock().expect("nothing panics under this lock");
            if !self.stopping.load(Ordering::SeqCst) {
                *current = fresh(&self.target, &self.units, &self.dropped_casts);
            }
        }
        old.close(end);
    }

    pub fn stop(&self, reason: &'static str) {
        let current = {
            let current = self.current.lock().expect("nothing panics under this lock");
            self.stopping.store(true, Ordering::SeqCst);
            current.clone()
        };
        self.stop.notify_one();
        current.close(&End::Closed(reason.into()));
    }

    pub async fn ended(&self) {
        let task = self.task.lock().expect("nothing panics under this lock").take();
        if let Some(task) = task {
            // A panic of the driver was logged where it happened.
            let _ = task.await;
        }
    }

    pub fn stopped(&self, sent: bool) -> RpcError {
        RpcError::Closed { peer: self.target.name.clone(), sent, reason: "the peer was closed".into() }
    }

    pub async fn room(&self, draft: &Draft) -> Result<OwnedSemaphorePermit, RpcError> {
        let full = match self.shared().try_units(draft) {
            Err(error @ RpcError::Full { .. }) => error,
            done => return done,
        };
        let acquire = self.units.clone().acquire_many_owned(draft.units());
        match tokio::time::timeout_at(draft.deadline.into(), acquire).await {
            Ok(permit) => permit.map_err(|_| full),
            Err(_) => Err(RpcError::Deadline { peer: self.target.name.clone(), sent: false, waited: draft.waited }),
        }
    }

    pub fn submit(
        &self,
        mut draft: Draft,
        mut completion: Completion,
        permit: OwnedSemaphorePermit,
    ) -> Result<Ticket, (RpcError, Completion)> {
        let mut permit = Some(permit);
        loop {
            let shared = self.shared();
            let taken = permit.take().expect("given back by a failed attempt");
            match shared.submit(draft, completion, taken) {
                Ok(request) => return Ok(Ticket { shared, request, done: false }),
                Err(returned) => {
                    let (error, same, back, given) = *returned;
                    let lost = matches!(error, RpcError::Closed { .. } | RpcError::Unreachable { .. });
                    if !(lost && self.is_renewed(&shared)) {
                        return Err((error, back));
                    }
                    (draft, completion, permit) = (same, back, Some(given));
                }
            }
        }
    }
}

fn fresh(target: &Target, units: &Arc<Semaphore>, dropped_casts: &Arc<AtomicU64>) -> Arc<Shared> {
    Arc::new(Shared::new(
        target.identity.clone(),
        target.name.clone(),
        target.bounds,
        units.clone(),
        dropped_casts.clone(),
    ))
}

/// The task of a lane.
struct Driver {
    lane: Arc<Lane>,
    backoff: Backoff,
    not_before: Instant,
    endpoint: Option<quinn::Endpoint>,
    /// Which address the next attempt begins with.
    turn: usize,
    /// Whether the last attempt failed, so that a dead peer fills one line of the log and not a thousand.
    failing: bool,
}

impl Drop for Driver {
    /// The end of the lane, also by a handler's panic.
    fn drop(&mut self) {
        self.lane.stop("the peer was closed");
        if let Some(endpoint) = &self.endpoint {
            endpoint.close(0u32.into(), b"");
        }
    }
}

impl Driver {
    fn new(lane: Arc<Lane>, seed: u64) -> Self {
        let options = &lane.target.options;
        let backoff = Backoff::new(options.pause_least, options.pause_most, seed);
        Self { lane, backoff, not_before: Instant::now(), endpoint: None, turn: 0, failing: false }
    }

    async fn run(mut self) {
        let lane = self.lane.clone();
        while !lane.stopping.load(Ordering::SeqCst) {
            tokio::select! {
                () = self.live() => {}
                () = lane.stop.notified() => {}
            }
        }
    }

    /// From one loss to the next.
    async fn live(&mut self) {
        let lane = self.lane.clone();
        let shared = lane.shared();
        if !lane.target.options.keep_connected {
            while !shared.has_work() {
                shared.work.notified().await;
            }
        }
        let attempt = tokio::select! {
            attempt = self.attempt(&shared) => attempt,
            _ = shared.run_timers() => unreachable!("nobody is silent before the hello"),
        };
        match attempt {
            Err(error) => {
                self.not_before = Instant::now() + self.backoff.failed();
                self.turn += 1;
                if !self.failing {
                    tracing::warn!(peer = %lane.target.name, %error, "cannot connect; trying on");
                }
                self.failing = true;
                if let (true, Some(handler)) = (error.is_refused(), &lane.target.options.handler) {
                    handler.refused();
                }
                lane.renew(&shared, &End::Unreachable(Arc::new(error)));
            }
            Ok(connection) => {
                self.failing = false;
                let began = Instant::now();
                connection.run(lane.target.options.handler.as_deref(), |end| lane.renew(&shared, &end)).await;
                if began.elapsed() > lane.target.options.pause_most {
                    self.backoff.reset();
                }
                self.not_before = Instant::now() + self.backoff.failed();
            }
        }
    }

    async fn attempt(&mut self, shared: &Arc<Shared>) -> Result<Connection, ConnectError> {
        tokio::time::sleep_until(self.not_before.into()).await;
        let lane = self.lane.clone();
        let target = &lane.target;
        if target.transport == Transport::Quic && self.endpoint.is_none() {
            let address = target.addresses[0].to_string();
            self.endpoint = Some(quic_endpoint().map_err(|source| ConnectError::Io { address, source })?);
        }
        let count = target.addresses.len();
        let mut failure = None;
        for n in 0..count {
            let address = &target.addresses[(self.turn + n) % count];
            let one = self.attempt_one(shared, address);
            let timeout = target.options.connect_timeout;
            match tokio::time::timeout(timeout, one).await.unwrap_or(Err(ConnectError::Timeout(timeout))) {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.expect("a peer has addresses"))
    }

    async fn attempt_one(&self, shared: &Arc<Shared>, address: &Address) -> Result<Connection, ConnectError> {
        let absent = match self.attempt_local(shared, address).await {
            Local::Up(connection) => return Ok(*connection),
            Local::Absent => true,
            Local::Useless => false,
        };
        let Target { identity, transport, expected, .. } = &*self.lane.target;
        let stream = dial(identity, *transport, address, *expected, self.endpoint.as_ref()).await?;
        // A server that has just started may not have been there a moment ago, and this connection may last for months.
        if absent && let Local::Up(connection) = self.attempt_local(shared, address).await {
            return Ok(*connection);
        }
        Connection::introduce(stream, shared.clone(), Side::Dialled(*expected)).await
    }

    /// The short way, if the server is on this host and lets us in there. Whatever goes wrong, the network is tried next, and its error
    /// is the one to be told.
    async fn attempt_local(&self, shared: &Arc<Shared>, address: &Address) -> Local {
        let Target { identity, transport, expected, options, .. } = &*self.lane.target;
        let (Expect::Exactly(server), Some(port)) = (*expected, address.port()) else { return Local::Useless };
        if !options.local || *transport == Transport::Plain {
            return Local::Useless;
        }
        let attempt = async {
            let stream = local::dial(identity, server, port).await?;
            Connection::introduce(stream, shared.clone(), Side::Dialled(*expected)).await
        };
        match tokio::time::timeout(options.connect_timeout / LOCAL_SHARE, attempt).await {
            Ok(Ok(connection)) => Local::Up(Box::new(connection)),
            Ok(Err(ConnectError::Io { source, .. })) if source.kind() == ErrorKind::ConnectionRefused => Local::Absent,
            Ok(Err(error)) => {
                tracing::trace!(%server, %error, "not let in on this host");
                Local::Useless
            }
            Err(_) => Local::Useless,
        }
    }
}

/// What became of an attempt at the short way.
enum Local {
    Up(Box<Connection>),
    /// Nobody has the name.
    Absent,
    /// It is not to be tried, or whoever has the name is of no use.
    Useless,
}
