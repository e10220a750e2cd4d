//! A mounted volume: the core behind a lock, and the tasks that carry out its effects.
//!
//! Invariant: a panic costs the call that it belongs to, and no other. A step may complete many calls, so each part of one is contained by
//! itself. A core that panicked is used further: its tables are valid at every step as far as types can say, and what it could get wrong
//! is bounded by what the servers check; to end the mount would cost every call for one.

use crate::cluster_file::ClusterFile;
use crate::metered::Metered;
use crate::metrics::Metrics;
use crate::transport::Transport;
use holdfast_client_core::{
    Call, CallId, ClientCore, ClientError, Config, Effect, Failure, Input, Notice, Reply, Ticket,
};
use holdfast_types::{Instant, SessionId};
use holdfast_wire::map::MapUpdate;
use holdfast_wire::metadata::{Answer, ClientRecord, Envelope, Request, Response};
use holdfast_wire::namespace::{Attributes, Query, VolumeRecord};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;

/// What to mount, and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Name of the volume.
    pub volume: String,
    /// Who mounts.
    pub client: ClientRecord,
    /// Nothing will be changed.
    pub read_only: bool,
    /// `None`: calls wait for the cluster for ever. Else they fail with `TimedOut` after so long.
    pub soft: Option<Duration>,
    /// Bytes of un-flushed writes at the most. `None`: 256 MiB.
    pub write_buffer_bytes: Option<u64>,
    /// Bytes of file data kept for reading. `None`: 64 MiB.
    pub read_cache_bytes: Option<u64>,
    /// How long a written byte may wait before it is sent. `None`: 1 s.
    pub writeback_delay: Option<Duration>,
    /// When the session is over calls wait until they are cancelled, and do not fail.
    pub block_when_over: bool,
    /// Reading a file sets its access time as `relatime` has it.
    pub relatime: bool,
    /// Where calls and messages are counted.
    pub metrics: Arc<Metrics>,
}

impl MountOptions {
    /// A hard, writable mount with the usual limits.
    pub fn new(volume: impl Into<String>, client: ClientRecord) -> Self {
        Self {
            volume: volume.into(),
            client,
            read_only: false,
            soft: None,
            write_buffer_bytes: None,
            read_cache_bytes: None,
            writeback_delay: None,
            block_when_over: false,
            relatime: true,
            metrics: Arc::new(Metrics::unseen()),
        }
    }
}

/// Why a volume cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Our certificate or key is of no use.
    #[error("cannot use the certificate: {0}")]
    Identity(String),
    /// The cluster refuses.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// What concerns the mount as a whole, in order. Somebody must read it: `StopCaching` waits for an answer.
pub type Notices = mpsc::UnboundedReceiver<Notice>;

type Done = Box<dyn FnOnce(Result<Reply, ClientError>) + Send>;

/// A mounted volume. Cheap to clone; the session ends with [`Client::unmount`], not when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    transport: Box<dyn Transport>,
    metrics: Arc<Metrics>,
    runtime: tokio::runtime::Handle,
    /// Woken when `State::timer` changed.
    timer_changed: Notify,
    volume: Mutex<Option<(VolumeRecord, SessionId, Attributes)>>,
}

struct State {
    core: ClientCore,
    waiting: HashMap<CallId, Done>,
    call_next: u64,
    timer: Option<Instant>,
    notices: mpsc::UnboundedSender<Notice>,
    effects: Vec<Effect>,
    /// Requests that may be held for long, to be dropped when nobody waits any more.
    held: HashMap<Ticket, AbortHandle>,
}

#[cfg(feature = "faults")]
pub(crate) use holdfast_faults::clock::now;

/// Time since boot, suspended time included.
#[cfg(not(feature = "faults"))]
pub(crate) fn now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Instant(t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64)
}

impl Client {
    /// Mounts a volume: opens a session and attaches it. Waits as long as that takes; drop the future to give up.
    ///
    /// Must be called within a tokio runtime; the client's tasks run there.
    ///
    /// # Errors
    /// [`MountError`] when the certificate is unusable or the cluster refuses (no such volume, superseded instance).
    pub async fn connect(cluster: &ClusterFile, options: MountOptions) -> Result<(Self, Notices), MountError> {
        let transport = crate::transport::connect(cluster).map_err(MountError::Identity)?;
        let mut config = Config::new(
            options.volume,
            options.client,
            cluster.metadata.iter().map(|m| m.server()).collect(),
            random_u128(),
        );
        config.read_only = options.read_only;
        config.soft = options.soft;
        config.write_buffer_bytes = options.write_buffer_bytes.unwrap_or(config.write_buffer_bytes);
        config.read_cache_bytes = options.read_cache_bytes.unwrap_or(config.read_cache_bytes);
        config.writeback_delay = options.writeback_delay.unwrap_or(config.writeback_delay);
        config.relatime = options.relatime;
        config.block_when_over = options.block_when_over;
        let metrics = Arc::clone(&options.metrics);
        let transport = Box::new(Metered { inner: transport, metrics: Arc::clone(&metrics) });
        Self::start_metered(config, transport, metrics).await
    }

    /// As [`Self::connect`], over any transport.
    #[cfg(test)]
    pub(crate) async fn start(config: Config, transport: Box<dyn Transport>) -> Result<(Self, Notices), MountError> {
        Self::start_metered(config, transport, Arc::new(Metrics::unseen())).await
    }

    async fn start_metered(
        config: Config,
        transport: Box<dyn Transport>,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Notices), MountError> {
        let (sender, notices) = mpsc::unbounded_channel();
        let core = ClientCore::new(config, now(), random_u128() as u64);
        let state = State {
            core,
            waiting: HashMap::new(),
            call_next: 1,
            timer: None,
            notices: sender,
            effects: Vec::new(),
            held: HashMap::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            transport,
            metrics,
            runtime: tokio::runtime::Handle::current(),
            timer_changed: Notify::new(),
            volume: Mutex::new(None),
        });
        tokio::spawn(tick(Arc::downgrade(&shared)));
        let client = Self { shared };
        match client.ask(Call::Mount).await? {
            Reply::Mounted { volume, session, root } => {
                *client.shared.volume.lock().unwrap_or_else(PoisonError::into_inner) = Some((volume, session, root));
                Ok((client, notices))
            }
            _ => Err(MountError::Client(ClientError::Protocol { detail: "mount answered with something else" })),
        }
    }

    /// Starts a call. `done` is called exactly once: before this returns if the answer lay in memory (on this thread), else later
    /// on a thread of the runtime. It must not block.
    pub fn call(&self, call: Call, done: impl FnOnce(Result<Reply, ClientError>) + Send + 'static) -> CallId {
        let (metrics, begun) = (Arc::clone(&self.shared.metrics), self.shared.metrics.begun(&call));
        let done = move |result: Result<Reply, ClientError>| {
            metrics.ended(begun, result.as_ref().err());
            done(result);
        };
        let mut state = self.shared.lock();
        let id = CallId(state.call_next);
        state.call_next += 1;
        state.waiting.insert(id, Box::new(done));
        self.shared.step(state, Input::Call { id, call });
        id
    }

    /// Answers a call from memory, or says that it is under way: then `done` of [`Pending::on_done`] gets the answer.
    pub fn try_now(&self, call: Call) -> Result<Result<Reply, ClientError>, Pending> {
        let (sender, mut receiver) = oneshot::channel();
        let id = self.call(call, move |result| drop(sender.send(result)));
        match receiver.try_recv() {
            Ok(result) => Ok(result),
            Err(_) => Err(Pending { id, receiver }),
        }
    }

    /// Starts a call and waits for its answer. Dropping the future gives the call up.
    ///
    /// # Errors
    /// The call's own.
    pub async fn ask(&self, call: Call) -> Result<Reply, ClientError> {
        match self.try_now(call) {
            Ok(result) => result,
            Err(pending) => {
                let mut guard = CancelOnDrop { client: self, id: Some(pending.id) };
                let result = pending.wait().await;
                guard.id = None;
                result
            }
        }
    }

    /// Gives a call up: it completes now, with `Interrupted`, unless it has completed already.
    pub fn cancel(&self, id: CallId) {
        let state = self.shared.lock();
        self.shared.step(state, Input::Cancel { id });
    }

    /// For how long an answer given now may be cached above (kernel entry and attribute timeouts). Zero: not at all.
    ///
    /// An adapter reads this and writes its reply under one lock, shared by replies and held exclusively at the moment it takes
    /// up `Notice::StopCaching`; so no reply with a timeout is written after the invalidation began.
    pub fn cache_ttl(&self) -> Duration {
        self.shared.lock().core.cache_ttl(now())
    }

    /// Says that nothing is cached above any more: the answer to `Notice::StopCaching`.
    pub fn invalidated(&self, event: u64) {
        let state = self.shared.lock();
        self.shared.step(state, Input::Invalidated { event });
    }

    /// Whether the session lives, as far as this mount knows.
    pub fn is_attached(&self) -> bool {
        self.shared.lock().core.is_attached()
    }

    /// The volume, the session and the root's attributes as they were at mounting.
    ///
    /// # Panics
    /// Never: a client exists only once it is mounted.
    pub fn mounted(&self) -> (VolumeRecord, SessionId, Attributes) {
        let volume = self.shared.volume.lock().unwrap_or_else(PoisonError::into_inner);
        volume.clone().expect("set before the client is handed out")
    }
}

/// A call that was not answered from memory.
pub struct Pending {
    /// For [`Client::cancel`].
    pub id: CallId,
    receiver: oneshot::Receiver<Result<Reply, ClientError>>,
}

impl Pending {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The call's own.
    pub async fn wait(self) -> Result<Reply, ClientError> {
        self.receiver
            .await
            .unwrap_or_else(|_| Err(ClientError::SessionOver { reason: "the client was dropped".into() }))
    }
}

struct CancelOnDrop<'a> {
    client: &'a Client,
    id: Option<CallId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.client.cancel(id);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step, then its effects: those whose order matters under the lock, the rest after it.
    fn step(self: &Arc<Self>, mut state: MutexGuard<'_, State>, input: Input) {
        let state_ref = &mut *state;
        let mut effects = std::mem::take(&mut state_ref.effects);
        step_contained(state_ref, input, &mut effects);
        let mut completed = Vec::new();
        let mut sends = Vec::new();
        for effect in effects.drain(..) {
            match effect {
                Effect::Complete { id, result } => {
                    if let Some(done) = state_ref.waiting.remove(&id) {
                        completed.push((done, result));
                    }
                }
                Effect::SetTimer { at } => {
                    state_ref.timer = Some(at);
                    self.timer_changed.notify_one();
                }
                Effect::Notify(notice) => {
                    // Nobody listens any more only while the mount is being taken down.
                    let _ = state_ref.notices.send(notice);
                }
                Effect::SendMetadata { ticket, server, envelope, deadline } if may_be_held(&envelope) => {
                    // Under the lock: it cannot be given up, nor answered, before its handle is here.
                    let answer = self.transport.metadata(server, envelope, deadline.since(now()));
                    let shared = Arc::clone(self);
                    let task = self.runtime.spawn(async move {
                        let result = answer.await;
                        let mut state = shared.lock();
                        state.held.remove(&ticket);
                        shared.step(state, Input::MetadataAnswer { ticket, result });
                    });
                    state_ref.held.insert(ticket, task.abort_handle());
                }
                Effect::SendMetadata { .. } | Effect::SendChunk { .. } => sends.push(effect),
                // Deadlines bound how long an answer that nobody wants is waited for, but for one that may be held for long.
                Effect::Forget { ticket } => {
                    if let Some(held) = state_ref.held.remove(&ticket) {
                        held.abort();
                    }
                }
            }
        }
        state_ref.effects = effects;
        drop(state);
        for effect in sends {
            let unsent = unsent(&effect);
            if !contained("a message was not sent", || self.send(effect))
                && let Some(input) = unsent
            {
                self.step(self.lock(), input);
            }
        }
        for (done, result) in completed {
            // Unwinding drops what it owns, the duty to answer too; so the caller hears of it.
            contained("the end of a call", || done(result));
        }
    }

    fn send(self: &Arc<Self>, effect: Effect) {
        let shared = Arc::clone(self);
        match effect {
            Effect::SendMetadata { ticket, server, envelope, deadline } => {
                let then = move |result| {
                    if let Ok(Answer { result: Ok(Response::Map(MapUpdate::Full(map))), .. }) = &result {
                        shared.transport.learn(&map.servers);
                    }
                    shared.step(shared.lock(), Input::MetadataAnswer { ticket, result });
                };
                let timeout = deadline.since(now());
                self.transport.metadata_then(&self.runtime, server, envelope, timeout, Box::new(then));
            }
            Effect::SendChunk { ticket, call, deadline } => {
                let then = move |result| shared.step(shared.lock(), Input::ChunkAnswer { ticket, result });
                let timeout = deadline.since(now());
                // Sums are computed when the transport seals the call: here, outside of the lock.
                self.transport.chunk_then(&self.runtime, call, timeout, Box::new(then));
            }
            _ => {}
        }
    }
}

/// One step of the core. After a panic the call whose step it was fails, and what had been decided before is carried out all the same.
fn step_contained(state: &mut State, input: Input, effects: &mut Vec<Effect>) {
    let call = if let Input::Call { id, .. } = &input { Some(*id) } else { None };
    if contained("a step of the client", || state.core.step(now(), input, effects)) {
        return;
    }
    effects.extend(call.map(|id| Effect::Complete { id, result: Err(ClientError::Internal) }));
    // The core hands out what it has decided at the end of a step: the next one does it now, and takes back what is left of the call.
    let next = call.map_or(Input::Tick, |id| Input::Cancel { id });
    contained("a step of the client after a panic", || state.core.step(now(), next, effects));
    // A timer that was taken and not set again.
    state.timer.get_or_insert(now() + TICK_MAX);
}

/// Does something that may panic; false if it did.
fn contained(what: &str, work: impl FnOnce()) -> bool {
    // What is shared with others lies behind locks of its own.
    let ended = catch_unwind(AssertUnwindSafe(work)).is_ok();
    if !ended {
        tracing::error!(what, "a panic was contained and costs one call; please report it");
    }
    ended
}

/// What the core is to hear if this message cannot be sent.
fn unsent(effect: &Effect) -> Option<Input> {
    match effect {
        Effect::SendMetadata { ticket, .. } => {
            Some(Input::MetadataAnswer { ticket: *ticket, result: Err(Failure::Unreachable) })
        }
        Effect::SendChunk { ticket, .. } => {
            Some(Input::ChunkAnswer { ticket: *ticket, result: Err(Failure::Unreachable) })
        }
        Effect::Complete { .. } | Effect::SetTimer { .. } | Effect::Notify(_) | Effect::Forget { .. } => None,
    }
}

/// Whether a request may be held by the service for as long as another owner likes.
fn may_be_held(envelope: &Envelope) -> bool {
    matches!(envelope.request, Request::Query(Query::AwaitLock { .. } | Query::AwaitOpen { .. }))
}

/// The core is looked at so often even if it asked for nothing.
const TICK_MAX: Duration = Duration::from_secs(1);

/// Gives the core its ticks until the client is gone.
async fn tick(shared: std::sync::Weak<Shared>) {
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let wait = strong.lock().timer.map_or(TICK_MAX, |at| at.since(now()));
        if wait.is_zero() {
            let mut state = strong.lock();
            state.timer = None;
            strong.step(state, Input::Tick);
            continue;
        }
        let changed = strong.timer_changed.notified();
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(wait.min(TICK_MAX)) => {}
        }
    }
}

/// Not for secrets, only to be different from every other mount.
fn random_u128() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    let half = || u128::from(RandomState::new().hash_one(now().0));
    half() << 64 | half()
}

#[cfg(test)]
mod tests;
