//! A metadata server: the real core, the real logs on simulated disks, and what `metadata/server` does around them.

use super::net::Body;
use super::node::fail_soon;
use super::setup::Mutation;
use super::{Local, Sim, VOLUME};
use holdfast_journal::JournalConfig;
use holdfast_journal::MemoryDisk;
use holdfast_journal::memory::Loss;
use holdfast_metadata_core::api::{TICK, ticks};
use holdfast_metadata_core::inspect::declared_silent;
use holdfast_metadata_core::{
    Caller, ChunkFailure, Config, Counters, Effect, Input, LogEntry, LogPosition, LogRecord, MetadataCore, Recovered,
    RecoveredShard,
};
use holdfast_metadata_server::log_store::LogStore;
use holdfast_sim::{Actor, Latency};
use holdfast_store::{MemoryTable, Table};
use holdfast_types::limits::NODE_TTL;
use holdfast_types::prng::mix;
use holdfast_types::{ClusterId, Instant, LogIndex, NodeId, ServerId, ShardId};
use holdfast_wire::chunk::ChunkAnswer;
use holdfast_wire::metadata::{Request, Response};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// The two shards.
const SHARDS: [ShardId; 2] = [ShardId::CLUSTER, ShardId::VOLUMES];
/// How long the service waits for a storage node.
const CHUNK_PATIENCE: Duration = Duration::from_secs(10);
/// For so many ticks a node's process may be taken for ended because its peers said so. By eye.
const REPORT_TICKS: u64 = 100;

/// A server's disks, and its present life if it has one.
pub(super) struct Server {
    pub(super) id: ServerId,
    pub(super) actor: Actor,
    pub(super) disks: [MemoryDisk; 2],
    pub(super) tables: [MemoryTable; 2],
    pub(super) life: Option<Life>,
    starts: u64,
}

/// What a process holds.
pub(super) struct Life {
    pub(super) core: MetadataCore,
    logs: [Log; 2],
    /// Persists of tables under way, with what they cover.
    persisting: [Vec<LogIndex>; 2],
    /// Unanswered requests: who asked, and under which name.
    requests: BTreeMap<u64, (Actor, u64)>,
    request_next: u64,
    /// Questions to storage nodes by name of the call.
    jobs: BTreeMap<u64, (u64, Actor)>,
    applied: [u64; 2],
    /// The log as it is, or will be, on the disk: where committed entries are read from.
    mirror: [BTreeMap<u64, LogEntry>; 2],
    /// Ticks that it has lived through. It does not tick while it is stopped.
    ticks: u64,
    /// When storage nodes' heartbeats came, in ticks, and when their peers said that nobody listens there.
    heard: BTreeMap<NodeId, u64>,
    reported: BTreeMap<NodeId, u64>,
}

impl Life {
    /// A node that this leader declares silent, and that it has heard while it should have been listening. Its own pause is nobody's silence.
    fn declared_wrongly(&self, records: &[LogRecord]) -> Option<NodeId> {
        let term = self.core.shards()[0].term;
        let entries = records.iter().flat_map(|record| match record {
            LogRecord::Entries(entries) => entries.as_slice(),
            LogRecord::Restart { .. } | LogRecord::HardState(_) => &[],
        });
        let mut declared = entries.filter(|entry| entry.at.term == term).flat_map(|entry| declared_silent(&entry.data));
        let since = |moments: &BTreeMap<NodeId, u64>, node: &NodeId| moments.get(node).map(|tick| self.ticks - tick);
        declared.find(|node| {
            since(&self.heard, node).is_some_and(|silent| silent < ticks(NODE_TTL))
                && since(&self.reported, node).is_none_or(|since| since > REPORT_TICKS)
        })
    }
}

/// The thread of one log.
struct Log {
    store: LogStore<MemoryDisk>,
    queue: VecDeque<Job>,
    writing: Vec<Job>,
}

enum Job {
    Append { ticket: u64, records: Vec<LogRecord>, must_sync: bool },
    Cut(LogPosition),
}

fn index_of(shard: ShardId) -> usize {
    usize::from(shard == ShardId::VOLUMES)
}

impl Server {
    pub(super) fn new(id: u64, actor: Actor, seed: u64, planted: Option<Mutation>) -> Self {
        let disks = [MemoryDisk::new(mix(seed ^ id)), MemoryDisk::new(mix(seed ^ id ^ 77))];
        if planted == Some(Mutation::SkipLogFsync) {
            disks.iter().for_each(|disk| disk.set_lying(true));
        }
        Self { id: ServerId(id), actor, disks, tables: Default::default(), life: None, starts: 0 }
    }

    fn open(&self, shard: usize) -> Result<(LogStore<MemoryDisk>, RecoveredShard), String> {
        let id = u128::from(mix(self.id.0 * 2 + shard as u64));
        let config = JournalConfig { segment_bytes: 256 << 10, ..JournalConfig::new("raft", id) };
        let (log, found) = LogStore::open(self.disks[shard].clone(), &config)
            .map_err(|error| format!("{} cannot open its log of {}: {error}", self.id, SHARDS[shard]))?;
        let table: Arc<dyn Table> = Arc::new(self.tables[shard].clone());
        let (hard_state, base, entries) = (found.hard_state, found.base, found.entries);
        Ok((log, RecoveredShard { hard_state, base, entries, table }))
    }
}

impl Sim {
    /// Begins a server's next life.
    pub(super) fn start_server(&mut self, at: usize) {
        let now = self.world.local_now(self.servers[at].actor);
        let server = &mut self.servers[at];
        server.starts += 1;
        let opened = server.open(0).and_then(|first| Ok((first, server.open(1)?)));
        let ((log_0, cluster), (log_1, volumes)) = match opened {
            Ok(opened) => opened,
            Err(reason) => return self.fail(reason),
        };
        self.stats.torn += u64::from(log_0.found_torn()) + u64::from(log_1.found_torn());
        let mirror =
            [&cluster, &volumes].map(|shard| shard.entries.iter().map(|e| (e.at.index.0, e.clone())).collect());
        let config = Config {
            replicas: 3,
            groups: self.setup.groups,
            storage_expected: 4,
            out_after: self.setup.out_after,
            first_volume: VOLUME.into(),
            limits: self.setup.metadata_limits.clone(),
            mutations: Mutation::metadata(self.setup.planted),
            ..Config::new(
                server.id,
                ClusterId(1),
                (1..=3).map(ServerId).collect(),
                mix(self.seed ^ mix(server.id.0 ^ (server.starts << 8))),
            )
        };
        let core = match MetadataCore::new(config, Recovered { cluster, volumes }, now) {
            Ok(core) => core,
            Err(error) => {
                let reason = format!("{} does not start: {error}", server.id);
                return self.fail(reason);
            }
        };
        let log = |store| Log { store, queue: VecDeque::new(), writing: Vec::new() };
        let applied = [0, 1].map(|shard| core.shards()[shard].applied.0);
        server.life = Some(Life {
            core,
            logs: [log(log_0), log(log_1)],
            persisting: Default::default(),
            requests: BTreeMap::new(),
            request_next: 1,
            jobs: BTreeMap::new(),
            applied,
            mirror,
            ticks: 0,
            heard: BTreeMap::new(),
            reported: BTreeMap::new(),
        });
        let actor = server.actor;
        self.world.at_local(actor, now + TICK, Local::ServerTick { due: now + TICK });
    }

    /// Ends a server's life. Work on its disks stops in the middle.
    pub(super) fn crash_server(&mut self, at: usize, loss: Loss) {
        let Some(mut life) = self.servers[at].life.take() else { return };
        self.totals.add_server(&life.core.counters());
        for shard in [0, 1] {
            let log = &mut life.logs[shard];
            if loss == Loss::Power {
                fail_soon(&self.servers[at].disks[shard], &mut self.prng);
            }
            if !log.writing.is_empty() && (loss == Loss::Power || self.prng.chance(1, 2)) {
                // An error is what the power loss looks like from within.
                let _ = write(log);
            }
            if loss == Loss::Power && !life.persisting[shard].is_empty() && self.prng.chance(1, 2) {
                let _ = self.servers[at].tables[shard].persist();
            }
        }
        drop(life);
        let server = &mut self.servers[at];
        for shard in [0, 1] {
            server.disks[shard] = server.disks[shard].restart(loss);
            if loss == Loss::Power {
                server.tables[shard].crash(&mut self.prng);
            }
        }
    }

    /// Gives an input to a server's core, and starts what it asks for.
    pub(super) fn server_input(&mut self, at: usize, input: Input) {
        let actor = self.servers[at].actor;
        self.note(actor, &input);
        let now = self.world.local_now(actor);
        let Some(life) = &mut self.servers[at].life else { return };
        let mut effects = std::mem::take(&mut self.room.server);
        life.core.step(now, input, &mut effects);
        for effect in effects.drain(..) {
            self.note_effect(actor, &effect);
            self.server_effect(at, effect);
        }
        self.room.server = effects;
        self.observe_server(at);
    }

    fn server_effect(&mut self, at: usize, effect: Effect) {
        let actor = self.servers[at].actor;
        let Some(life) = &mut self.servers[at].life else { return };
        match effect {
            Effect::Persist { shard, ticket, records, must_sync } => {
                let shard = index_of(shard);
                if shard == 0
                    && life.core.leads(ShardId::CLUSTER)
                    && let Some(node) = life.declared_wrongly(&records)
                {
                    let id = self.servers[at].id;
                    return self.fail(format!("{id} declares {node} silent, and has heard it within its own time"));
                }
                for record in &records {
                    reflect(&mut life.mirror[shard], record);
                }
                life.logs[shard].queue.push_back(Job::Append { ticket, records, must_sync });
                self.start_log(at, shard);
            }
            Effect::CutLog { shard, base } => {
                let shard = index_of(shard);
                life.logs[shard].queue.push_back(Job::Cut(base));
                self.start_log(at, shard);
            }
            Effect::PersistTables { shard, applied } => {
                let shard = index_of(shard);
                life.persisting[shard].push(applied);
                if life.persisting[shard].len() == 1 {
                    let delay = Latency::between(Duration::from_millis(1), Duration::from_millis(30));
                    self.world.after(actor, delay.sample(&mut self.prng), Local::TableDone { shard });
                }
            }
            Effect::Send { to, message } => {
                let to = self.servers[to.0 as usize - 1].actor;
                self.send(actor, to, Body::Peer(message));
            }
            Effect::Answer { request, answer } => {
                let map = matches!(answer.result, Ok(Response::Map(_)));
                if let Some((asker, call)) = life.requests.remove(&request)
                    && !(map && self.is_map_held(asker))
                {
                    self.send(actor, asker, Body::Answer { call, answer: Box::new(answer) });
                }
            }
            Effect::Chunk { job, member, request, .. } => {
                let call = self.next_call();
                let to = self.nodes[member.node.0 as usize - 1].actor;
                if let Some(life) = &mut self.servers[at].life {
                    life.jobs.insert(call, (job, to));
                }
                let request = Box::new(request);
                self.send(
                    actor,
                    to,
                    Body::Chunk { call, request, payload: Default::default(), patience: CHUNK_PATIENCE },
                );
                self.after_local(actor, CHUNK_PATIENCE, Local::CallTimeout { call });
            }
            Effect::Servers { .. } => {}
            Effect::Stop { reason } => {
                let reason = format!("{} is told to end: {reason}", self.servers[at].id);
                self.fail(reason);
            }
            Effect::Halt { shard, index, reason } => {
                let reason = format!("{} halts {shard} at {index}: {reason}", self.servers[at].id);
                self.fail(reason);
            }
        }
    }

    fn start_log(&mut self, at: usize, shard: usize) {
        let Some(life) = &mut self.servers[at].life else { return };
        let log = &mut life.logs[shard];
        if !log.writing.is_empty() || log.queue.is_empty() {
            return;
        }
        log.writing = log.queue.drain(..).collect();
        let syncs = log.writing.iter().any(|job| !matches!(job, Job::Append { must_sync: false, .. }));
        let delay = if syncs { self.sync_latency() } else { Duration::from_micros(20) };
        self.world.after(self.servers[at].actor, delay, Local::LogDone { shard });
    }

    pub(super) fn log_done(&mut self, at: usize, shard: usize) {
        let Some(life) = &mut self.servers[at].life else { return };
        let result = write(&mut life.logs[shard]);
        match result {
            Ok(tickets) => {
                self.start_log(at, shard);
                for ticket in tickets {
                    self.server_input(at, Input::Persisted { shard: SHARDS[shard], ticket });
                }
            }
            Err(reason) => self.fail(format!("{}: log cannot be written: {reason}", self.servers[at].id)),
        }
    }

    pub(super) fn table_done(&mut self, at: usize, shard: usize) {
        let Some(life) = &mut self.servers[at].life else { return };
        let covered = std::mem::take(&mut life.persisting[shard]);
        if let Err(error) = self.servers[at].tables[shard].persist() {
            return self.fail(format!("table: {error}"));
        }
        for applied in covered {
            self.server_input(at, Input::TablesPersisted { shard: SHARDS[shard], applied });
        }
    }

    pub(super) fn server_tick(&mut self, at: usize, due: Instant) {
        let actor = self.servers[at].actor;
        let now = self.world.local_now(actor);
        if now > due + TICK && self.setup.planted != Some(Mutation::PauseBelieved) {
            // The process did not run for a while: the inbox first.
            return self.world.after(actor, Duration::ZERO, Local::ServerTick { due: now });
        }
        let wall = self.world.civil_now(actor);
        if let Some(life) = &mut self.servers[at].life {
            life.ticks += 1;
        }
        self.server_input(at, Input::Tick { wall });
        self.world.at_local(actor, now + TICK, Local::ServerTick { due: now + TICK });
    }

    pub(super) fn server_message(&mut self, at: usize, from: Actor, body: Body) {
        let actor = self.servers[at].actor;
        let now = self.world.local_now(actor);
        match body {
            Body::Peer(message) => {
                let from = self.server_of(from).map(|peer| self.servers[peer].id).expect("only servers are peers");
                self.server_input(at, Input::Peer { from, message });
            }
            Body::Ask { call, envelope, patience } => {
                let caller = match self.node_of(from) {
                    Some(node) => Caller::Storage(NodeId(node as u64 + 1)),
                    None => Caller::Client,
                };
                let Some(life) = &mut self.servers[at].life else { return };
                let request = life.request_next;
                life.request_next += 1;
                match &envelope.request {
                    Request::Heartbeat(beat) => life.heard.insert(beat.node, life.ticks),
                    Request::ReportGone { node, .. } => life.reported.insert(*node, life.ticks),
                    _ => None,
                };
                life.requests.insert(request, (from, call));
                let deadline = now + patience;
                self.server_input(at, Input::Request { request, from: caller, envelope: *envelope, deadline });
            }
            Body::Cancel { call } => {
                let Some(life) = &mut self.servers[at].life else { return };
                let request = life.requests.iter().find(|(_, asker)| **asker == (from, call)).map(|(id, _)| *id);
                if let Some(request) = request {
                    life.requests.remove(&request);
                    self.server_input(at, Input::Cancelled { request });
                }
            }
            Body::ChunkDone { call, answer, .. } => self.chunk_done(at, call, Ok(answer)),
            Body::Answer { .. } | Body::Chunk { .. } | Body::Group { .. } => {
                unreachable!("nobody says that to a server")
            }
        }
    }

    pub(super) fn chunk_done(&mut self, at: usize, call: u64, result: Result<ChunkAnswer, ChunkFailure>) {
        let Some(life) = &mut self.servers[at].life else { return };
        if let Some((job, _)) = life.jobs.remove(&call) {
            self.server_input(at, Input::ChunkDone { job, result });
        }
    }

    /// A connection broke: who asked over it does not wait any more, and what was asked over it has no answer.
    pub(super) fn server_broken(&mut self, at: usize, peer: Actor) {
        let Some(life) = &mut self.servers[at].life else { return };
        let gone: Vec<u64> = life.requests.iter().filter(|(_, asker)| asker.0 == peer).map(|(id, _)| *id).collect();
        let calls: Vec<u64> = life.jobs.iter().filter(|(_, job)| job.1 == peer).map(|(call, _)| *call).collect();
        for request in gone {
            if let Some(life) = &mut self.servers[at].life {
                life.requests.remove(&request);
            }
            self.server_input(at, Input::Cancelled { request });
        }
        for call in calls {
            self.chunk_done(at, call, Err(ChunkFailure { reason: "the connection broke".into() }));
        }
    }

    /// Looks at what a step has changed that the checks want to know: entries applied, leaders.
    fn observe_server(&mut self, at: usize) {
        let (id, now) = (self.servers[at].id, self.world.now());
        let Some(life) = &mut self.servers[at].life else { return };
        let status = life.core.shards();
        for shard in [0, 1] {
            let before = std::mem::replace(&mut life.applied[shard], status[shard].applied.0);
            for index in before + 1..=status[shard].applied.0 {
                // None: it came with a snapshot.
                if let Some(entry) = life.mirror[shard].get(&index)
                    && let Err(reason) = self.truth[shard].applied(id, entry, now)
                {
                    return self.fail(reason);
                }
            }
            if life.core.leads(SHARDS[shard])
                && let Err(reason) = self.truth[shard].leads(id, status[shard].term)
            {
                return self.fail(format!("{}: {reason}", SHARDS[shard]));
            }
        }
    }

    /// The server that leads a shard, if one that runs believes so; of several the one with the greatest term.
    pub(super) fn leader_of(&self, shard: usize) -> Option<usize> {
        let leads = |at: &usize| self.servers[*at].life.as_ref().is_some_and(|life| life.core.leads(SHARDS[shard]));
        let term = |at: &usize| self.servers[*at].life.as_ref().map(|life| life.core.shards()[shard].term);
        (0..self.servers.len()).filter(leads).max_by_key(term)
    }

    pub(super) fn server_counters(&self) -> Vec<Counters> {
        self.servers.iter().filter_map(|server| server.life.as_ref()).map(|life| life.core.counters()).collect()
    }
}

/// Follows what is written to a log.
fn reflect(mirror: &mut BTreeMap<u64, LogEntry>, record: &LogRecord) {
    match record {
        LogRecord::Restart { .. } => mirror.clear(),
        LogRecord::Entries(entries) => {
            if let Some(first) = entries.first() {
                mirror.split_off(&first.at.index.0);
            }
            mirror.extend(entries.iter().map(|entry| (entry.at.index.0, entry.clone())));
        }
        LogRecord::HardState(_) => {}
    }
}

/// Does what the thread of a log does: writes all that waited, syncs once. Returns the tickets to confirm.
fn write(log: &mut Log) -> Result<Vec<u64>, String> {
    let (mut tickets, mut sync) = (Vec::new(), false);
    for job in std::mem::take(&mut log.writing) {
        let result = match job {
            Job::Append { ticket, records, must_sync } => {
                tickets.push(ticket);
                sync |= must_sync;
                log.store.append(&records)
            }
            Job::Cut(base) => {
                sync = true;
                log.store.cut(base)
            }
        };
        result.map_err(|error| error.to_string())?;
    }
    if sync {
        log.store.sync().map_err(|error| error.to_string())?;
    }
    Ok(tickets)
}
