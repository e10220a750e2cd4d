//! The one owner of the core: takes arrivals in their order, steps, starts the effects. It decides nothing.
//!
//! Whoever brings an arrival while nobody is at work becomes the worker until the inbox is empty; everybody else just queues and
//! leaves. So there is one loop, as if it had a thread of its own, without the two hand-overs that such a thread would cost each
//! message: a command is several messages and log writes on each server, and waking threads is most of its price.
//!
//! * A worker that has done its share hands the rest to a task: a log's thread must get back to its disk, and a connection's task to
//!   its socket.
//! * Nothing here waits but for the tables. Effects are queued for threads, sockets and tasks, so an effect may bring the next arrival
//!   at once without a lock being held twice.
//! * A panic while at work leaves the core in doubt: the node is dead from then on, and the server stops.

use crate::log_writer::Job;
use crate::metrics::{Journeys, Metrics};
use crate::peers::Peers;
use holdfast_metadata_core::{Effect, Input, MetadataCore};
use holdfast_rpc::Responder;
use holdfast_types::{LogIndex, ShardId, Timestamp};
use holdfast_wire::admin::{AdminAnswer, ServerStatus};
use holdfast_wire::codec;
use holdfast_wire::metadata::Envelope;
use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// Arrivals that one caller works through at the most, approximately. By eye: less than a sync takes.
const SHARE: usize = 64;

/// What arrives at the loop.
#[allow(clippy::large_enum_variant, reason = "moved once, from a worker to the loop; a box for each would cost more")]
pub enum Arrival {
    /// A request from a client, node or administrator, and where its answer goes.
    Request {
        /// Who asks.
        from: holdfast_metadata_core::Caller,
        /// What.
        envelope: Box<Envelope>,
        /// When it arrived.
        arrived: std::time::Instant,
        /// When the caller stops waiting.
        deadline: std::time::Instant,
        /// Where the answer goes.
        respond: Responder,
    },
    /// Anything that is an input as it is.
    Input(Input),
    /// An administrator asks for this server's own state.
    Status(Responder),
    /// A moment has passed.
    Tick,
}

#[cfg(feature = "faults")]
pub use holdfast_faults::clock::now;

/// Clock of this process: nanoseconds since a point of its own, counting suspended time.
#[cfg(not(feature = "faults"))]
pub fn now() -> holdfast_types::Instant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    holdfast_types::Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Civil time.
pub fn wall() -> Timestamp {
    let nanos = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    };
    Timestamp::from_nanos(nanos)
}

/// Workers the loop hands effects to.
pub struct Workers {
    /// Log writers by shard.
    pub logs: [Sender<Job>; 2],
    /// Table persisters by shard.
    pub tables: [Sender<LogIndex>; 2],
    /// Connections to other servers and to storage nodes.
    pub peers: Peers,
}

/// Where arrivals are brought. Made before the node, for those whom the node needs.
#[derive(Clone, Default)]
pub struct Inlet(Arc<OnceLock<Weak<Node>>>);

impl Inlet {
    /// Brings an arrival. Once the node has ended it is dropped, and with it a responder, which tells the caller.
    pub fn send(&self, arrival: Arrival) {
        if let Some(node) = self.0.get().and_then(Weak::upgrade) {
            node.submit(arrival);
        }
    }
}

/// The core, its effects' ways out, and what waits for it.
pub struct Node {
    inbox: Mutex<Inbox>,
    machine: Mutex<Machine>,
    dead: watch::Sender<bool>,
    /// Whether this server leads a shard.
    leads: watch::Sender<bool>,
    me: Weak<Node>,
    runtime: tokio::runtime::Handle,
}

#[derive(Default)]
struct Inbox {
    arrivals: VecDeque<Arrival>,
    /// Somebody is at work, and will take what is queued.
    busy: bool,
    closed: bool,
}

struct Machine {
    core: MetadataCore,
    /// `None` once it is closed: threads and connections may end.
    workers: Option<Workers>,
    waiting: BTreeMap<u64, Responder>,
    next_request: u64,
    effects: Vec<Effect>,
    metrics: Arc<Metrics>,
    journeys: Journeys,
    /// Why the cluster wants no more of this server, if so.
    expelled: Option<String>,
}

/// Declares the node dead unless the work ended as it should: by a panic, or because the cluster wants no more of it.
struct Work<'a> {
    node: &'a Node,
    done: bool,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.node.inbox().closed = true;
            self.node.dead.send_replace(true);
        }
    }
}

impl Node {
    /// Puts the parts together; from now on `inlet` leads here. Must be called within a tokio runtime.
    pub fn new(core: MetadataCore, workers: Workers, metrics: Arc<Metrics>, inlet: &Inlet) -> Arc<Self> {
        let machine = Machine {
            core,
            workers: Some(workers),
            waiting: BTreeMap::new(),
            next_request: 1,
            effects: Vec::new(),
            metrics,
            journeys: Journeys::default(),
            expelled: None,
        };
        let node = Arc::new_cyclic(|me| Self {
            inbox: Mutex::default(),
            machine: Mutex::new(machine),
            dead: watch::channel(false).0,
            leads: watch::channel(false).0,
            me: Weak::clone(me),
            runtime: tokio::runtime::Handle::current(),
        });
        let first = inlet.0.set(Arc::downgrade(&node));
        assert!(first.is_ok(), "an inlet leads to one node");
        node
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an arrival, and works on the queue unless somebody does already.
    fn submit(&self, arrival: Arrival) {
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return;
            }
            inbox.arrivals.push_back(arrival);
            if std::mem::replace(&mut inbox.busy, true) {
                return;
            }
        }
        self.work();
    }

    /// Works until the inbox is empty, or the share is done and a task takes over.
    fn work(&self) {
        let mut work = Work { node: self, done: false };
        let mut machine = self.machine();
        let (mut batch, mut done) = (VecDeque::new(), 0);
        loop {
            {
                let mut inbox = self.inbox();
                std::mem::swap(&mut batch, &mut inbox.arrivals);
                if batch.is_empty() {
                    inbox.busy = false;
                    break;
                }
                if done >= SHARE
                    && let Some(node) = self.me.upgrade()
                {
                    // Still busy: nobody else begins, and the order is kept.
                    inbox.arrivals = batch;
                    self.runtime.spawn(async move { node.work() });
                    break;
                }
            }
            done += batch.len();
            batch.drain(..).for_each(|arrival| machine.take(arrival));
            machine.start_effects();
            let leads = [ShardId::CLUSTER, ShardId::VOLUMES].iter().any(|shard| machine.core.leads(*shard));
            self.leads.send_if_modified(|known| std::mem::replace(known, leads) != leads);
            if machine.expelled.is_some() {
                return;
            }
        }
        work.done = true;
    }

    /// Why the cluster wants no more of this server, if so.
    pub fn expelled(&self) -> Option<String> {
        self.machine().expelled.clone()
    }

    /// Has others lead what this server leads. Returns when they do; the caller knows how long to wait.
    pub async fn leave(&self) {
        let mut leads = self.leads.subscribe();
        self.submit(Arrival::Input(Input::Leave));
        // The channel ends with the node.
        let _ = leads.wait_for(|leads| !leads).await;
    }

    /// Becomes true when the core's life has ended before it was closed.
    pub fn dead(&self) -> watch::Receiver<bool> {
        self.dead.subscribe()
    }

    /// Takes nothing more, drops what waits, and lets threads and connections end.
    pub fn close(&self) {
        {
            let mut inbox = self.inbox();
            inbox.closed = true;
            inbox.arrivals.clear();
        }
        let mut machine = self.machine();
        machine.workers = None;
        machine.waiting.clear();
    }
}

impl Machine {
    fn take(&mut self, arrival: Arrival) {
        let ticked = matches!(arrival, Arrival::Tick);
        let input = match arrival {
            Arrival::Input(input) => {
                if let Input::Persisted { shard, ticket } = &input {
                    self.journeys.written(*shard, *ticket);
                }
                input
            }
            Arrival::Request { from, envelope, arrived, deadline, respond } => {
                let request = self.next_request;
                self.next_request += 1;
                self.waiting.insert(request, respond);
                self.journeys.taken(request, &envelope.request, envelope.shard, arrived);
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                Input::Request { request, from, envelope: *envelope, deadline: now() + left }
            }
            Arrival::Status(respond) => {
                return respond.send(codec::encode(&AdminAnswer::Server(self.status())), bytes::Bytes::new());
            }
            Arrival::Tick => {
                self.drop_cancelled();
                Input::Tick { wall: wall() }
            }
        };
        let begun = std::time::Instant::now();
        self.core.step(now(), input, &mut self.effects);
        self.metrics.stage("step", begun.elapsed());
        if ticked {
            self.metrics.heard(self.status(), &self.core.counters(), self.waiting.len());
            self.metrics.rebuilds(self.core.rebuild_status());
        }
    }

    fn status(&self) -> ServerStatus {
        ServerStatus {
            id: self.core.id(),
            pid: std::process::id(),
            shards: self.core.shards().into(),
            halted: self.core.halted(),
        }
    }

    fn drop_cancelled(&mut self) {
        let gone: Vec<u64> =
            self.waiting.iter().filter(|(_, respond)| respond.cancelled()).map(|(id, _)| *id).collect();
        for request in gone {
            self.waiting.remove(&request);
            self.journeys.gone(request);
            self.core.step(now(), Input::Cancelled { request }, &mut self.effects);
        }
    }

    fn start_effects(&mut self) {
        let Some(workers) = &mut self.workers else { return self.effects.clear() };
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Persist { shard, ticket, records, must_sync } => {
                    self.journeys.writes(shard, ticket);
                    // A writer that is gone has reported its failure already.
                    let _ = log_of(&workers.logs, shard).send(Job::Append { ticket, records, must_sync });
                }
                Effect::CutLog { shard, base } => {
                    let _ = log_of(&workers.logs, shard).send(Job::Cut(base));
                }
                Effect::PersistTables { shard, applied } => {
                    let _ = log_of(&workers.tables, shard).send(applied);
                }
                Effect::Send { to, message } => workers.peers.send(to, &message),
                Effect::Answer { request, answer } => {
                    self.journeys.answered(request, answer.result.as_ref().err(), &self.metrics);
                    if let Some(respond) = self.waiting.remove(&request) {
                        respond.send(codec::encode(&answer), bytes::Bytes::new());
                    }
                }
                Effect::Chunk { job, member, address, request, .. } => {
                    workers.peers.chunk(job, member.node, &address, &request);
                }
                Effect::Servers { servers, gone } => workers.peers.update(&servers, gone),
                Effect::Stop { reason } => self.expelled = Some(reason),
                Effect::Halt { shard, index, reason } => {
                    let id = self.core.id().0;
                    let remedy = format!("holdfast admin metadata replace {id} NEW-ID HOST:PORT");
                    tracing::error!(
                        %shard, %index, reason, remedy,
                        "shard halted on this server, the others go on. A full disk: make room and start it again. Damage, or a mistake of ours: \
                         put a new one in its place"
                    );
                }
            }
        }
    }
}

fn log_of<T>(workers: &[T; 2], shard: ShardId) -> &T {
    &workers[if shard == ShardId::CLUSTER { 0 } else { 1 }]
}

/// How long requests of the service to storage nodes may take.
pub const CHUNK_DEADLINE: Duration = Duration::from_secs(10);
