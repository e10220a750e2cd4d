//! The loop that owns the core: waits for an input, steps, starts the effects. It decides nothing.

use crate::log_writer::Job;
use crate::peers::Peers;
use holdfast_metadata_core::api::TICK;
use holdfast_metadata_core::{Effect, Input, MetadataCore};
use holdfast_rpc::Responder;
use holdfast_types::{Instant, LogIndex, ShardId, Timestamp};
use holdfast_wire::admin::{AdminAnswer, ServerStatus};
use holdfast_wire::codec;
use holdfast_wire::metadata::Envelope;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, SystemTime};

/// Inputs taken before their effects are started: bounds how long an answer waits for its neighbours.
const BATCH: usize = 64;

/// What arrives at the loop.
#[allow(clippy::large_enum_variant, reason = "moved once, from a worker to the loop; a box for each would cost more")]
pub enum Arrival {
    /// A request from a client, node or administrator, and where its answer goes.
    Request {
        /// Who asks.
        from: holdfast_metadata_core::Caller,
        /// What.
        envelope: Box<Envelope>,
        /// When the caller stops waiting.
        deadline: std::time::Instant,
        /// Where the answer goes.
        respond: Responder,
    },
    /// Anything that is an input as it is.
    Input(Input),
    /// An administrator asks for this server's own state.
    Status(Responder),
    /// Stop.
    Stop,
}

/// Clock of this process: nanoseconds since a point of its own, counting suspended time.
pub fn now() -> Instant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
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

/// The loop's state.
pub struct Node {
    core: MetadataCore,
    inbox: Receiver<Arrival>,
    workers: Workers,
    waiting: BTreeMap<u64, Responder>,
    next_request: u64,
    effects: Vec<Effect>,
}

impl Node {
    /// Puts the parts together.
    pub fn new(core: MetadataCore, inbox: Receiver<Arrival>, workers: Workers) -> Self {
        Self { core, inbox, workers, waiting: BTreeMap::new(), next_request: 1, effects: Vec::new() }
    }

    /// Runs until it is told to stop, or everybody who could send is gone.
    pub fn run(mut self) {
        let mut next_tick = now() + TICK;
        loop {
            let wait = next_tick.since(now());
            match self.inbox.recv_timeout(wait) {
                Ok(arrival) => {
                    if !self.take(arrival) || !self.take_more(BATCH) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if now() >= next_tick {
                // Whoever wrote in time must not be counted as silent because we were late: the inbox first.
                if !self.take_more(usize::MAX) {
                    return;
                }
                self.drop_cancelled();
                self.core.step(now(), Input::Tick { wall: wall() }, &mut self.effects);
                next_tick = now() + TICK;
            }
            self.start_effects();
        }
    }

    /// Takes up to `most` arrivals that are there already. False: stop.
    fn take_more(&mut self, most: usize) -> bool {
        for _ in 0..most {
            match self.inbox.try_recv() {
                Ok(arrival) => {
                    if !self.take(arrival) {
                        return false;
                    }
                }
                Err(_) => break,
            }
        }
        true
    }

    fn take(&mut self, arrival: Arrival) -> bool {
        let input = match arrival {
            Arrival::Input(input) => input,
            Arrival::Request { from, envelope, deadline, respond } => {
                let request = self.next_request;
                self.next_request += 1;
                self.waiting.insert(request, respond);
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                Input::Request { request, from, envelope: *envelope, deadline: now() + left }
            }
            Arrival::Status(respond) => {
                respond.send(codec::encode(&AdminAnswer::Server(self.status())), bytes::Bytes::new());
                return true;
            }
            Arrival::Stop => return false,
        };
        self.core.step(now(), input, &mut self.effects);
        true
    }

    fn status(&self) -> ServerStatus {
        ServerStatus {
            id: self.core.id(),
            pid: std::process::id(),
            shards: self.core.shards(),
            halted: self.core.halted(),
        }
    }

    fn drop_cancelled(&mut self) {
        let gone: Vec<u64> =
            self.waiting.iter().filter(|(_, respond)| respond.cancelled()).map(|(id, _)| *id).collect();
        for request in gone {
            self.waiting.remove(&request);
            self.core.step(now(), Input::Cancelled { request }, &mut self.effects);
        }
    }

    fn start_effects(&mut self) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Persist { shard, ticket, records, must_sync } => {
                    // A writer that is gone has reported its failure already.
                    let _ = log_of(&self.workers.logs, shard).send(Job::Append { ticket, records, must_sync });
                }
                Effect::CutLog { shard, base } => {
                    let _ = log_of(&self.workers.logs, shard).send(Job::Cut(base));
                }
                Effect::PersistTables { shard, applied } => {
                    let _ = log_of(&self.workers.tables, shard).send(applied);
                }
                Effect::Send { to, message } => self.workers.peers.send(to, &message),
                Effect::Answer { request, answer } => {
                    if let Some(respond) = self.waiting.remove(&request) {
                        respond.send(codec::encode(&answer), bytes::Bytes::new());
                    }
                }
                Effect::Chunk { job, member, address, request, .. } => {
                    self.workers.peers.chunk(job, member.node, &address, &request);
                }
                Effect::Halt { shard, index, reason } => {
                    tracing::error!(%shard, %index, reason, "shard halted on this server: it is wrong or its disk is; replace it");
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
