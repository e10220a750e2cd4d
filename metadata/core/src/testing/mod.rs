//! A few servers in one thread, for this crate's own tests: messages, disks and storage nodes as simple as can be.

mod acls;
mod chaos;
mod exactly_once;
mod fences;
mod generations;
mod gone;
mod limits;
mod locks;
mod members;
mod model;
mod namespace;
mod raft;
mod rebuild;
mod restore;
mod room;
mod sessions;
mod slow;
mod views;

use crate::api::{
    Caller, Config, Effect, HardState, Input, LogEntry, LogPosition, LogRecord, Recovered, RecoveredShard, TICK,
};
use crate::core::MetadataCore;
use holdfast_store::{MemoryTable, Table};
use holdfast_types::{
    ClusterId, DiskId, FileName, Incarnation, InodeId, Instant, MapVersion, NodeId, Sequence, ServerId, SessionId,
    ShardId, Term, Timestamp,
};
use holdfast_wire::admin::ClusterStatus;
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest};
use holdfast_wire::map::ClusterMap;
use holdfast_wire::metadata::{Answer, ClientRecord, DiskState, Envelope, Heartbeat, MetadataError, Request, Response};
use holdfast_wire::namespace::{Attributes, Mutation, NewNode, Outcome, Query, VolumeRecord};
use holdfast_wire::peer::PeerMessage;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of every disk that are to stay free.
const RESERVE: u64 = 1 << 30;

/// A shard's disk: what was made durable.
#[derive(Clone, Default)]
struct ShardDisk {
    hard_state: HardState,
    base: LogPosition,
    entries: Vec<LogEntry>,
    table: MemoryTable,
}

impl ShardDisk {
    fn write(&mut self, records: Vec<LogRecord>) {
        for record in records {
            match record {
                LogRecord::Restart { base } => {
                    self.base = base;
                    self.entries.clear();
                }
                LogRecord::Entries(entries) => {
                    self.entries.retain(|entry| entry.at.index < entries[0].at.index);
                    self.entries.extend(entries);
                }
                LogRecord::HardState(state) => self.hard_state = state,
            }
        }
    }

    fn recover(&self) -> RecoveredShard {
        RecoveredShard {
            hard_state: self.hard_state,
            base: self.base,
            entries: self.entries.clone(),
            table: Arc::new(self.table.clone()),
        }
    }
}

struct Server {
    core: Option<MetadataCore>,
    disks: [ShardDisk; 2],
    halted: Option<String>,
    /// Why it had to end.
    stopped: Option<String>,
    /// Drawn when its log was made.
    life: u64,
    /// It was not there when the cluster was made.
    joins: bool,
    /// Written and not durable yet, in order.
    writes: VecDeque<(ShardId, u64, Vec<LogRecord>)>,
}

/// A storage node that does nothing but live.
#[derive(Clone)]
pub(crate) struct Storage {
    pub(crate) alive: bool,
    pub(crate) incarnation: u64,
    /// It does not take in newer maps.
    pub(crate) deaf: bool,
    pub(crate) acknowledged: MapVersion,
    pub(crate) leaving: bool,
    pub(crate) failed: bool,
    /// It could not open its disk, and does not name it.
    pub(crate) diskless: bool,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) free: u64,
    /// What it says of its speed.
    pub(crate) read_us: u32,
    pub(crate) write_us: u32,
    pub(crate) round_trip_us: u32,
    pub(crate) oldest_operation_ms: u64,
}

impl Storage {
    pub(crate) fn new() -> Self {
        Self {
            alive: true,
            incarnation: 1,
            deaf: false,
            acknowledged: MapVersion(0),
            leaving: false,
            failed: false,
            diskless: false,
            labels: Vec::new(),
            free: 1 << 39,
            read_us: 200,
            write_us: 2_000,
            round_trip_us: 900,
            oldest_operation_ms: 0,
        }
    }
}

/// Servers, storage nodes, and what is on its way between them.
pub(crate) struct World {
    servers: BTreeMap<u64, Server>,
    pub(crate) storage: BTreeMap<u64, Storage>,
    messages: VecDeque<(u64, u64, PeerMessage)>,
    /// Servers cut off from the others.
    pub(crate) isolated: BTreeSet<u64>,
    pub(crate) now: Instant,
    ticks: u64,
    requests: u64,
    answers: BTreeMap<u64, Answer>,
    pub(crate) chunks: Vec<ChunkRequest>,
    /// Storage nodes leave chunk requests unanswered.
    pub(crate) chunks_stuck: bool,
    config: Config,
    sequences: BTreeMap<SessionId, u64>,
    /// Disks take their time, and messages are lost, repeated and reordered, as these numbers say.
    pub(crate) chaos: Option<holdfast_types::prng::Prng>,
}

pub(crate) fn address_of(server: u64) -> String {
    format!("m{server}:1")
}

pub(crate) fn name(text: &str) -> FileName {
    FileName::new(text.as_bytes()).unwrap()
}

impl World {
    /// Servers that have not started to talk, and storage nodes.
    pub(crate) fn new(servers: u64, storage: u64, change: impl FnOnce(&mut Config)) -> Self {
        let voters: Vec<ServerId> = (1..=servers).map(ServerId).collect();
        let mut config = Config::new(ServerId(1), ClusterId(7), voters.clone(), 1);
        config.servers = voters.into_iter().map(|id| (id, address_of(id.0))).collect();
        config.groups = 8;
        config.storage_expected = storage as u32;
        change(&mut config);
        let node = Storage::new();
        let mut world = Self {
            servers: BTreeMap::new(),
            storage: (1..=storage).map(|id| (id, node.clone())).collect(),
            messages: VecDeque::new(),
            isolated: BTreeSet::new(),
            now: Instant(1_000_000_000),
            ticks: 0,
            requests: 0,
            answers: BTreeMap::new(),
            chunks: Vec::new(),
            chunks_stuck: false,
            config,
            sequences: BTreeMap::new(),
            chaos: None,
        };
        for id in 1..=servers {
            world.make_server(id, false);
        }
        world
    }

    /// Servers with a leader of both shards, a formed pool and the volume `main`.
    pub(crate) fn formed(servers: u64, storage: u64) -> Self {
        let mut world = Self::new(servers, storage, |_| {});
        world.until("the pool is formed", |world| {
            world.leader(ShardId::VOLUMES).is_some()
                && world.leader(ShardId::CLUSTER).is_some_and(|id| !world.core(id).map().views.is_empty())
        });
        world
    }

    /// A server with an empty log; one that joins knows nobody.
    pub(crate) fn make_server(&mut self, id: u64, joins: bool) {
        let life = 1000 + id * 10 + u64::from(self.servers.contains_key(&id));
        let (disks, writes) = (Default::default(), VecDeque::new());
        self.servers.insert(id, Server { core: None, disks, halted: None, stopped: None, life, joins, writes });
        self.start(id);
    }

    pub(crate) fn start(&mut self, id: u64) {
        let server = self.servers.get_mut(&id).unwrap();
        let mut config = Config { id: ServerId(id), seed: id * 1000, life: server.life, ..self.config.clone() };
        if server.joins {
            (config.voters, config.servers) = (Vec::new(), Vec::new());
        }
        let recovered = Recovered { cluster: server.disks[0].recover(), volumes: server.disks[1].recover() };
        server.core = Some(MetadataCore::new(config, recovered, self.now).unwrap());
    }

    /// The process ends; what was durable stays, and tables go back to a prefix of their commits.
    pub(crate) fn crash(&mut self, id: u64, seed: u64) {
        let server = self.servers.get_mut(&id).unwrap();
        server.core = None;
        server.writes.clear();
        let mut prng = holdfast_types::prng::Prng::new(seed);
        server.disks.iter().for_each(|disk| {
            disk.table.crash(&mut prng);
        });
        self.messages.retain(|(from, to, _)| *from != id && *to != id);
    }

    pub(crate) fn core(&self, id: u64) -> &MetadataCore {
        self.servers[&id].core.as_ref().expect("the server runs")
    }

    pub(crate) fn table(&self, id: u64, shard: ShardId) -> MemoryTable {
        self.servers[&id].disks[shard.0 as usize].table.clone()
    }

    pub(crate) fn halted(&self, id: u64) -> Option<&String> {
        self.servers[&id].halted.as_ref()
    }

    /// The leader of the highest term that is not cut off.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<u64> {
        let running = self.servers.iter().filter(|(id, _)| !self.isolated.contains(id));
        let leading = running.filter_map(|(id, server)| {
            let core = server.core.as_ref().filter(|core| core.leads(shard))?;
            Some((core.shards()[shard.0 as usize].term, *id))
        });
        leading.max().map(|(_, id)| id)
    }

    pub(crate) fn step(&mut self, id: u64, input: Input) {
        let Some(core) = self.servers.get_mut(&id).and_then(|server| server.core.as_mut()) else { return };
        let mut effects = Vec::new();
        core.step(self.now, input, &mut effects);
        for effect in effects {
            self.act(id, effect);
        }
    }

    fn act(&mut self, id: u64, effect: Effect) {
        match effect {
            Effect::Persist { shard, ticket, records, .. } => {
                let server = self.servers.get_mut(&id).unwrap();
                if self.chaos.is_some() {
                    return server.writes.push_back((shard, ticket, records));
                }
                server.disks[shard.0 as usize].write(records);
                self.step(id, Input::Persisted { shard, ticket });
            }
            Effect::Send { to, message } => self.messages.push_back((id, to.0, message)),
            Effect::Answer { request, answer } => {
                assert!(self.answers.insert(request, answer).is_none(), "a request is answered once");
            }
            Effect::PersistTables { shard, applied } => {
                self.servers[&id].disks[shard.0 as usize].table.persist().unwrap();
                self.step(id, Input::TablesPersisted { shard, applied });
            }
            Effect::CutLog { shard, base } => {
                let disk = &mut self.servers.get_mut(&id).unwrap().disks[shard.0 as usize];
                disk.base = base;
                disk.entries.retain(|entry| entry.at.index > base.index);
            }
            Effect::Chunk { job, request, .. } => {
                self.chunks.push(request);
                if !self.chunks_stuck {
                    let number = holdfast_types::OpNumber::default();
                    self.step(id, Input::ChunkDone { job, result: Ok(ChunkAnswer::Done { number }) });
                }
            }
            Effect::Servers { .. } => {}
            Effect::Stop { reason } => {
                let server = self.servers.get_mut(&id).unwrap();
                (server.core, server.stopped) = (None, Some(reason));
                server.writes.clear();
            }
            Effect::Halt { reason, .. } => self.servers.get_mut(&id).unwrap().halted = Some(reason),
        }
    }

    /// Delivers all that is on its way.
    pub(crate) fn deliver(&mut self) {
        if self.chaos.is_some() {
            return;
        }
        while let Some((from, to, message)) = self.messages.pop_front() {
            if !self.isolated.contains(&from) && !self.isolated.contains(&to) {
                self.step(to, Input::Peer { from: ServerId(from), message });
            }
        }
    }

    /// Time passes by one tick.
    pub(crate) fn tick(&mut self) {
        self.now = self.now + TICK;
        self.ticks += 1;
        if self.ticks.is_multiple_of(10) {
            self.heartbeats();
        }
        let wall = Timestamp::from_nanos(1_700_000_000_000_000_000 + i128::from(self.now.0));
        for id in self.servers.keys().copied().collect::<Vec<_>>() {
            self.step(id, Input::Tick { wall });
        }
        self.deliver();
        self.disturb();
    }

    /// Some messages arrive, in any order, some twice and some never; some writes become durable.
    fn disturb(&mut self) {
        let Some(mut prng) = self.chaos.clone() else { return };
        for _ in 0..prng.below(60) {
            if self.messages.is_empty() {
                break;
            }
            let near = self.messages.len().min(6) as u64;
            let Some((from, to, message)) = self.messages.remove(prng.below(near) as usize) else { break };
            if prng.chance(1, 30) {
                continue;
            }
            if prng.chance(1, 30) {
                self.messages.push_back((from, to, message.clone()));
            }
            if !self.isolated.contains(&from) && !self.isolated.contains(&to) {
                self.step(to, Input::Peer { from: ServerId(from), message });
            }
            self.sync(&mut prng);
        }
        (0..4).for_each(|_| self.sync(&mut prng));
        self.chaos = Some(prng);
    }

    /// Some server's oldest writes become durable.
    fn sync(&mut self, prng: &mut holdfast_types::prng::Prng) {
        let ids: Vec<u64> = self.servers.keys().copied().collect();
        let id = *prng.pick(&ids);
        let Some(server) = self.servers.get_mut(&id) else { return };
        let count = prng.below(4).min(server.writes.len() as u64) as usize;
        let done: Vec<_> = server.writes.drain(..count).collect();
        for (shard, ticket, records) in done {
            self.servers.get_mut(&id).unwrap().disks[shard.0 as usize].write(records);
            self.step(id, Input::Persisted { shard, ticket });
        }
    }

    pub(crate) fn run(&mut self, ticks: u64) {
        (0..ticks).for_each(|_| self.tick());
    }

    /// Until something is so; a minute of their time is enough for everything.
    pub(crate) fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        for _ in 0..1200 {
            if is_so(self) {
                return;
            }
            self.tick();
        }
        panic!("it does not come to this: {what}");
    }

    fn heartbeats(&mut self) {
        let Some(leader) = self.leader(ShardId::CLUSTER) else { return };
        let version = self.core(leader).map_version();
        for (id, node) in self.storage.clone() {
            if !node.alive {
                continue;
            }
            if !node.deaf {
                self.storage.get_mut(&id).unwrap().acknowledged = version;
            }
            let disk = DiskState {
                id: DiskId(0),
                incarnation: Incarnation(node.incarnation),
                capacity: 1 << 40,
                free: node.free,
                reserve: RESERVE,
                oldest_operation_ms: node.oldest_operation_ms,
                failed: node.failed,
                read_us: Some(node.read_us),
                write_us: Some(node.write_us),
            };
            let heartbeat = Heartbeat {
                node: NodeId(id),
                address: format!("s{id}:1"),
                labels: node.labels.clone(),
                pid: id as u32,
                disks: if node.diskless { Vec::new() } else { vec![disk] },
                acknowledged: self.storage[&id].acknowledged,
                leaving: node.leaving,
                round_trip_us: Some(node.round_trip_us),
            };
            let request = Request::Heartbeat(heartbeat);
            self.ask_as(leader, Caller::Storage(NodeId(id)), envelope(ShardId::CLUSTER, SessionId::NONE, request));
        }
    }

    /// Sends a request to a server; returns its number.
    pub(crate) fn ask_as(&mut self, id: u64, from: Caller, envelope: Envelope) -> u64 {
        self.ask_until(id, from, envelope, Duration::from_secs(5))
    }

    pub(crate) fn ask_until(&mut self, id: u64, from: Caller, envelope: Envelope, patience: Duration) -> u64 {
        self.requests += 1;
        let request = self.requests;
        self.step(id, Input::Request { request, from, envelope, deadline: self.now + patience });
        request
    }

    /// Proposes a command of shard 1 at its leader, which nobody waits for.
    pub(crate) fn command(&mut self, id: u64, command: crate::command::VolumesCommand) {
        let core = self.servers.get_mut(&id).and_then(|server| server.core.as_mut()).expect("the server runs");
        core.volumes.propose(u64::MAX, crate::command::Command::Volumes(command));
        self.tick();
    }

    pub(crate) fn answer(&self, request: u64) -> Option<&Answer> {
        self.answers.get(&request)
    }

    pub(crate) fn take(&mut self, request: u64) -> Option<Answer> {
        self.answers.remove(&request)
    }

    /// Asks the leader, whoever that is, until there is an answer that counts.
    pub(crate) fn call_as(&mut self, from: Caller, envelope: Envelope) -> Answer {
        for _ in 0..200 {
            let Some(leader) = self.leader(envelope.shard) else {
                self.tick();
                continue;
            };
            let request = self.ask_as(leader, from, envelope.clone());
            for _ in 0..120 {
                self.deliver();
                if self.answers.contains_key(&request) {
                    break;
                }
                self.tick();
            }
            let answer = self.answers.remove(&request).expect("every request is answered");
            match answer.result {
                Err(MetadataError::NotLeader { .. } | MetadataError::Unavailable { .. }) => self.tick(),
                Ok(_) | Err(_) => return answer,
            }
        }
        panic!("nobody answers {envelope:?}");
    }

    pub(crate) fn call(
        &mut self,
        shard: ShardId,
        session: SessionId,
        request: Request,
    ) -> Result<Response, MetadataError> {
        self.call_as(Caller::Client, envelope(shard, session, request)).result
    }

    pub(crate) fn open(&mut self, client: ClientRecord) -> (SessionId, VolumeRecord) {
        let nonce = u128::from(self.requests) << 64 | 1;
        let request = Request::OpenSession { volume: "main".into(), client, read_only: false, nonce };
        match self.call(ShardId::CLUSTER, SessionId::NONE, request) {
            Ok(Response::SessionOpened { session, volume, .. }) => (session, volume),
            other => panic!("no session: {other:?}"),
        }
    }

    /// Opens and attaches; returns whether it caches.
    pub(crate) fn attach(&mut self) -> (SessionId, bool) {
        let (session, volume) = self.open(ClientRecord::default());
        let request = Request::Attach { volume, client: ClientRecord::default(), read_only: false };
        match self.call(ShardId::VOLUMES, session, request) {
            Ok(Response::Attached { caching, .. }) => (session, caching),
            other => panic!("not attached: {other:?}"),
        }
    }

    /// The session's next sequence.
    pub(crate) fn sequence(&mut self, session: SessionId) -> Sequence {
        let next = self.sequences.entry(session).or_insert(0);
        *next += 1;
        Sequence(*next)
    }

    /// An envelope of a new mutation; all earlier ones are said to be answered.
    pub(crate) fn mutation(&mut self, session: SessionId, mutation: Mutation) -> Envelope {
        let sequence = self.sequence(session);
        Envelope {
            sequence,
            answered_below: sequence,
            ..envelope(ShardId::VOLUMES, session, Request::Mutate(mutation))
        }
    }

    pub(crate) fn mutate(&mut self, session: SessionId, mutation: Mutation) -> Result<Outcome, MetadataError> {
        let envelope = self.mutation(session, mutation);
        outcome(self.call_as(Caller::Client, envelope))
    }

    pub(crate) fn query(&mut self, session: SessionId, query: Query) -> Result<Outcome, MetadataError> {
        outcome(self.call_as(Caller::Client, envelope(ShardId::VOLUMES, session, Request::Query(query))))
    }

    pub(crate) fn create(&mut self, session: SessionId, parent: InodeId, text: &str, node: NewNode) -> Attributes {
        match self.mutate(session, create(parent, text, node, false)) {
            Ok(Outcome::Created { attributes, new: true, .. }) => attributes,
            other => panic!("not created: {other:?}"),
        }
    }

    pub(crate) fn attributes(&mut self, session: SessionId, inode: InodeId) -> Attributes {
        match self.query(session, Query::GetAttributes { inode }) {
            Ok(Outcome::Attributes { attributes, .. }) => attributes,
            other => panic!("no attributes: {other:?}"),
        }
    }

    /// The map, as the leader of shard 0 has it.
    pub(crate) fn map(&self) -> ClusterMap {
        self.core(self.leader(ShardId::CLUSTER).unwrap()).map()
    }

    /// How the cluster stands, as an administrator sees it.
    pub(crate) fn status(&mut self) -> ClusterStatus {
        match self.call(ShardId::CLUSTER, SessionId::NONE, Request::Status) {
            Ok(Response::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Every server's tables of both shards are what they must be, and the same where they are equally far.
    pub(crate) fn check(&mut self) {
        self.run(10);
        let mut seen: BTreeMap<(u32, u64), Vec<(bytes::Bytes, bytes::Bytes)>> = BTreeMap::new();
        for (id, server) in &self.servers {
            assert_eq!(server.halted, None, "server {id} has halted");
            if server.core.is_none() {
                continue;
            }
            for (number, disk) in server.disks.iter().enumerate() {
                let shard = ShardId(number as u32);
                let found = crate::invariants::check(shard, &disk.table);
                assert_eq!(found.unwrap(), Vec::<String>::new(), "server {id}, {shard}");
                if shard == ShardId::VOLUMES {
                    assert_eq!(crate::fsck::found_in(&disk.table), Vec::<String>::new(), "server {id}: fsck");
                }
                let core = self.core(*id);
                let members = [core.cluster.members_everywhere(), core.volumes.members_everywhere()];
                let [raft, store, table] = &members[number];
                assert!(raft == store && store == table, "server {id}, {shard}: members {:?}", members[number]);
                let applied = core.shards()[number].applied.0;
                let rows: Vec<_> = holdfast_store::View::range(&disk.table, holdfast_store::KeyRange::all())
                    .map(Result::unwrap)
                    .collect();
                let first = seen.entry((shard.0, applied)).or_insert_with(|| rows.clone());
                assert!(*first == rows, "server {id} differs in {shard} at {applied}");
            }
        }
    }
}

pub(crate) fn create(parent: InodeId, text: &str, node: NewNode, open: bool) -> Mutation {
    Mutation::Create { parent, name: name(text), node, mode: 0o755, umask: 0, uid: 1, gid: 2, exclusive: true, open }
}

pub(crate) fn envelope(shard: ShardId, session: SessionId, request: Request) -> Envelope {
    Envelope { shard, session, sequence: Sequence(0), answered_below: Sequence(0), term: Term(0), request }
}

pub(crate) fn outcome(answer: Answer) -> Result<Outcome, MetadataError> {
    match answer.result {
        Ok(Response::Outcome(outcome)) => Ok(outcome),
        Ok(other) => panic!("no outcome: {other:?}"),
        Err(error) => Err(error),
    }
}
