//! A storage node: the real core, the real chunk store on a simulated disk, and what `storage-node/server` does around them.

use super::control::Control;
use super::net::Body;
use super::setup::Mutation;
use super::slow::Gauges;
use super::{Local, Sim};
use holdfast_journal::MemoryDisk;
use holdfast_journal::memory::Loss;
use holdfast_sim::{Actor, Latency};
use holdfast_storage_core::local::{LocalCommand, LocalError, LocalOp, LocalOutcome, Ticket};
use holdfast_storage_core::{Config, Effect, Input, Scrubbed, StorageCore};
use holdfast_storage_server::chunk_store::{CheckpointJob, ChunkStore, DiskIdentity, StoreOptions};
use holdfast_store::MemoryTable;
use holdfast_types::prng::{Prng, mix};
use holdfast_types::{ChunkKey, ClusterId, DiskId, GroupId, Incarnation, MapVersion, NodeId, SessionId};
use holdfast_wire::chunk::ChunkAnswer;
use holdfast_wire::group::GroupBody;
use holdfast_wire::metadata::Request;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(super) const DISK: DiskId = DiskId(1);
/// Time between ticks of a core.
const TICK: Duration = Duration::from_millis(50);
/// How often a disk looks whether a checkpoint is due.
const CHORES: Duration = Duration::from_millis(500);

/// A node's disk, and its present life if it has one.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) actor: Actor,
    pub(super) disk: MemoryDisk,
    pub(super) table: MemoryTable,
    pub(super) life: Option<Life>,
    starts: u64,
    /// What its lives have noted of scrubs.
    noted: BTreeMap<GroupId, Scrubbed>,
    /// Chunks of which blocks were damaged here.
    pub(super) rotten: BTreeSet<(GroupId, ChunkKey)>,
}

/// What a process holds.
pub(super) struct Life {
    pub(super) core: StorageCore,
    pub(super) store: ChunkStore<MemoryDisk>,
    pub(super) incarnation: Incarnation,
    queue: VecDeque<(Ticket, LocalOp)>,
    pub(super) writing: Vec<(Ticket, LocalOp)>,
    checkpoint: Option<CheckpointJob<MemoryDisk>>,
    checkpoint_every: u32,
    /// A checkpoint has ended, and what was changed since it began.
    pub(super) checkpointed: bool,
    pub(super) touched: BTreeSet<(GroupId, ChunkKey)>,
    chores: u32,
    /// Unanswered requests: who asked, under which name, for which session, of which group.
    requests: BTreeMap<u64, (Actor, u64, SessionId, GroupId)>,
    request_next: u64,
    /// Streams to other nodes: whether they are open, or being opened.
    peers: BTreeMap<usize, Peer>,
    pub(super) control: Control,
    pub(super) map_told: MapVersion,
    pub(super) acknowledged: MapVersion,
    pub(super) failed: bool,
    pub(super) gauges: Gauges,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Opening,
    Open,
}

impl Node {
    pub(super) fn new(id: u64, actor: Actor, seed: u64) -> Self {
        let disk = MemoryDisk::new(mix(seed ^ mix(id + 100)));
        Self {
            id: NodeId(id),
            actor,
            disk,
            table: MemoryTable::new(),
            life: None,
            starts: 0,
            noted: BTreeMap::new(),
            rotten: BTreeSet::new(),
        }
    }
}

/// Power fails within one of the disk's next calls. Often within the sync that should make a record durable: then the record is torn.
pub(super) fn fail_soon(disk: &MemoryDisk, prng: &mut Prng) {
    let call = prng.between(1, 10);
    if prng.chance(1, 2) { disk.crash_at_sync(1) } else { disk.crash_at_operation(call) }
}

impl Node {
    /// Its disk is making something durable.
    pub(super) fn is_writing(&self) -> bool {
        self.life.as_ref().is_some_and(|life| !life.writing.is_empty())
    }
}

impl Sim {
    /// Begins a node's next life.
    pub(super) fn start_node(&mut self, at: usize) {
        let (id, actor) = (self.nodes[at].id, self.nodes[at].actor);
        let now = self.world.local_now(actor);
        let node = &mut self.nodes[at];
        node.starts += 1;
        let owner = DiskIdentity { cluster: ClusterId(1), node: id, disk: DISK };
        let mutations = Mutation::store(self.setup.planted);
        let options = StoreOptions { mutations, ..StoreOptions::for_simulation() };
        let store = match ChunkStore::open(node.disk.clone(), Arc::new(node.table.clone()), owner, options) {
            Ok(store) => store,
            Err(error) => return self.fail(format!("{id} cannot open its disk: {error}")),
        };
        self.stats.torn += u64::from(store.found_torn());
        if let Err(reason) = super::replicas::scrub(&store, &node.rotten) {
            return self.fail(format!("{id}, just started: {reason}"));
        }
        let incarnation = store.incarnation();
        let config = Config {
            node: id,
            disks: vec![(DISK, incarnation)],
            seed: mix(self.seed ^ mix(id.0 ^ (node.starts << 8))),
            mutations: Mutation::storage(self.setup.planted),
            limits: self.setup.storage_limits.clone(),
            scrubbed: node.noted.values().copied().collect(),
        };
        let groups = store.groups().into_iter().map(|group| (DISK, group)).collect();
        node.life = Some(Life {
            core: StorageCore::new(config, groups, now),
            store,
            incarnation,
            queue: VecDeque::new(),
            writing: Vec::new(),
            checkpoint: None,
            checkpoint_every: self.prng.between(1, 20) as u32,
            checkpointed: false,
            touched: BTreeSet::new(),
            chores: 0,
            requests: BTreeMap::new(),
            request_next: 1,
            peers: BTreeMap::new(),
            control: Control::new(self.prng.below(3) as usize),
            map_told: MapVersion(0),
            acknowledged: MapVersion(0),
            failed: false,
            gauges: Gauges::default(),
        });
        for (delay, what) in [(TICK, Local::NodeTick), (Duration::ZERO, Local::Beat), (CHORES, Local::Chores)] {
            self.after_local(actor, delay, what);
        }
        self.after_local(actor, Duration::from_millis(1), Local::FollowMap);
    }

    /// Ends a node's life. Work on its disk stops in the middle.
    pub(super) fn crash_node(&mut self, at: usize, loss: Loss) {
        let Some(mut life) = self.nodes[at].life.take() else { return };
        self.stats.discarded += life.core.discarded();
        self.stats.storage += life.core.counters();
        self.stats.repairs += life.store.reader().damage_totals().repaired;
        if loss == Loss::Power {
            fail_soon(&self.nodes[at].disk, &mut self.prng);
        }
        if !life.writing.is_empty() && (loss == Loss::Power || self.prng.chance(1, 2)) {
            let ops: Vec<LocalOp> = life.writing.drain(..).map(|(_, op)| op).collect();
            // Errors are what the power loss looks like from within.
            let _ = life.store.apply(&ops);
        }
        if let Some(job) = life.checkpoint.take()
            && self.prng.chance(1, 2)
        {
            let _ = job.run();
        }
        drop(life);
        let node = &mut self.nodes[at];
        node.disk = node.disk.restart(loss);
        if loss == Loss::Power {
            node.table.crash(&mut self.prng);
        }
    }

    /// Gives an input to a node's core, and starts what it asks for.
    pub(super) fn node_input(&mut self, at: usize, input: Input) {
        let actor = self.nodes[at].actor;
        self.note(actor, &input);
        let now = self.world.local_now(actor);
        let Some(life) = &mut self.nodes[at].life else { return };
        let mut effects = std::mem::take(&mut self.room.node);
        life.core.step(now, input, &mut effects);
        if cfg!(debug_assertions) || self.careful {
            holdfast_storage_core::invariants::check(&life.core);
        }
        for effect in effects.drain(..) {
            self.note_effect(actor, &effect);
            self.node_effect(at, effect);
        }
        self.room.node = effects;
        let Some(life) = &mut self.nodes[at].life else { return };
        if life.map_told != life.core.map_version() {
            life.map_told = life.core.map_version();
            self.stats.maps += 1;
        }
    }

    fn node_effect(&mut self, at: usize, effect: Effect) {
        let actor = self.nodes[at].actor;
        let Some(life) = &mut self.nodes[at].life else { return };
        match effect {
            Effect::Local { ticket, command: LocalCommand::Apply(op), .. } => {
                life.queue.push_back((ticket, op));
                self.start_disk(at);
            }
            Effect::Local { ticket, command, .. } => {
                // A reader may look at once or later; it reports later in either case.
                let early = self.prng.chance(1, 2).then(|| life.store.reader().serve(&command));
                let delay = Latency::between(Duration::from_micros(20), Duration::from_millis(1));
                let delay = delay.with_spikes(200, Duration::from_millis(30)).sample(&mut self.prng);
                let delay = delay + self.late_read(at);
                let now = self.world.local_now(actor);
                if let Some(life) = &mut self.nodes[at].life {
                    life.gauges.read(now, delay);
                }
                self.world.after(actor, delay, Local::ReadDone(Box::new((ticket, command, early))));
            }
            Effect::SendPeer { to, message, payload } => {
                let compares = matches!(message.body, GroupBody::Compare { .. });
                let to = to.0 as usize - 1;
                match life.peers.get(&to) {
                    Some(Peer::Open) => {
                        let to = self.nodes[to].actor;
                        self.send(actor, to, Body::Group { message: Box::new(message), payload });
                    }
                    Some(Peer::Opening) => {}
                    None => self.open_peer(at, to, Duration::from_millis(1)),
                }
                if compares {
                    self.catching_up(at);
                }
            }
            Effect::Answer { id, answer, payload } => {
                if let Some((asker, call, session, group)) = life.requests.remove(&id) {
                    self.check_answer(session, group, &answer);
                    if matches!(answer, ChunkAnswer::Done { .. }) && self.client_of(asker).is_some() {
                        self.acknowledging(actor, group);
                    }
                    self.send(actor, asker, Body::ChunkDone { call, answer, payload });
                }
            }
            Effect::AskView { token, request } => {
                if let Request::Promote { group, member, .. } = &request {
                    self.promoting(actor, *group, *member);
                }
                self.ask_view(at, token, request);
            }
            Effect::FetchMap { .. } => self.fetch_map(at),
            Effect::Acknowledged(version) => {
                life.acknowledged = life.acknowledged.max(version);
                self.beat_once(at);
            }
            Effect::SessionEnded(session) => {
                let gone: Vec<u64> = life.requests.iter().filter(|(_, r)| r.2 == session).map(|(id, _)| *id).collect();
                for id in gone {
                    life.requests.remove(&id);
                }
            }
            Effect::ScrubNoted(noted) => {
                self.stats.scrubs += u64::from(noted.result.is_some());
                let different = noted.result.map_or(0, |result| result.different);
                if different > 0 && !self.setup.rots {
                    self.fail(format!("{different} chunks of {} differed at rest: {:?}", noted.group, noted.result));
                }
                self.nodes[at].noted.insert(noted.group, noted);
            }
            Effect::DiskFailed { .. } => {
                life.failed = true;
                self.fail(format!("the disk of {} failed, and nobody broke it", self.nodes[at].id));
            }
        }
    }

    /// After a fence has settled no change of that session is acknowledged any more. A primary that was taken out may say so late: what
    /// all members of its view had made durable before they left it was made before the fence. Whether the bytes are there, and nothing
    /// came after, is judged by what others read.
    fn check_answer(&mut self, session: SessionId, group: GroupId, answer: &ChunkAnswer) {
        let ChunkAnswer::Done { number } = answer else { return };
        if self.truth[1].fence_settled(session).is_none() {
            return;
        }
        // Without a leader nobody can say which view is the last; a new one may not have applied it yet.
        let maps = self.servers.iter().filter_map(|server| server.life.as_ref()).map(|life| life.core.map());
        let newest = maps.filter_map(|map| map.view(group).map(|view| view.epoch)).max();
        if self.leader_of(0).is_some() && newest == Some(number.epoch) {
            self.fail(format!("a change of {session} was acknowledged after its fence had settled"));
        }
    }

    fn start_disk(&mut self, at: usize) {
        let actor = self.nodes[at].actor;
        let Some(life) = &mut self.nodes[at].life else { return };
        if !life.writing.is_empty() || life.queue.is_empty() {
            return;
        }
        life.writing = life.queue.drain(..).collect();
        life.gauges.busy_since = Some(self.world.local_now(actor));
        let delay = self.sync_latency() + self.slowness(at) + self.late_batch(at);
        self.world.after(actor, delay, Local::DiskDone);
        self.overwriting(at, delay);
    }

    pub(super) fn disk_done(&mut self, at: usize) {
        let now = self.world.local_now(self.nodes[at].actor);
        let Some(life) = &mut self.nodes[at].life else { return };
        let (tickets, ops): (Vec<Ticket>, Vec<LocalOp>) = life.writing.drain(..).unzip();
        let results = life.store.apply(&ops);
        life.touched.extend(ops.iter().filter_map(|op| op.change.keys().map(|keys| (op.group, keys.first))));
        life.gauges.wrote(now, ops.iter().map(|op| op.change.bytes()).sum());
        self.start_disk(at);
        for (ticket, result) in tickets.into_iter().zip(results) {
            let result = result.map(|()| LocalOutcome::Applied);
            self.node_input(at, Input::LocalDone { ticket, result });
        }
    }

    pub(super) fn read_done(
        &mut self,
        at: usize,
        (ticket, command, early): (Ticket, LocalCommand, Option<Result<LocalOutcome, LocalError>>),
    ) {
        let Some(life) = &mut self.nodes[at].life else { return };
        let result = early.unwrap_or_else(|| life.store.reader().serve(&command));
        let rotten = match &command {
            LocalCommand::Read { group, chunk, .. } => self.nodes[at].rotten.contains(&(*group, *chunk)),
            _ => false,
        };
        if result == Err(LocalError::BadBlock) && !rotten {
            return self.fail(format!("{}: a block is bad, and nobody damaged it: {command:?}", self.nodes[at].id));
        }
        self.node_input(at, Input::LocalDone { ticket, result });
    }

    /// Looks whether a checkpoint is due, as the disk's thread does.
    pub(super) fn chores(&mut self, at: usize) {
        self.probe(at);
        let actor = self.nodes[at].actor;
        let Some(life) = &mut self.nodes[at].life else { return };
        life.chores += 1;
        let due = life.chores.is_multiple_of(life.checkpoint_every) && life.store.is_dirty();
        if life.checkpoint.is_none() && (due || life.store.wants_checkpoint()) {
            life.checkpoint = Some(life.store.begin_checkpoint());
            life.checkpointed = false;
            life.touched.clear();
            let delay = Latency::between(Duration::from_millis(1), Duration::from_millis(200));
            self.world.after(actor, delay.sample(&mut self.prng), Local::CheckpointDone);
        }
        self.after_local(actor, CHORES, Local::Chores);
    }

    pub(super) fn checkpoint_done(&mut self, at: usize) {
        let Some(life) = &mut self.nodes[at].life else { return };
        let Some(job) = life.checkpoint.take() else { return };
        if job.run().and_then(|()| life.store.end_checkpoint(&job)).is_err() {
            let reason = life.store.fault().unwrap_or_default();
            return self.fail(format!("{}: checkpoint: {reason}", self.nodes[at].id));
        }
        life.checkpointed = true;
    }

    pub(super) fn node_tick(&mut self, at: usize) {
        self.node_input(at, Input::Tick);
        self.after_local(self.nodes[at].actor, TICK, Local::NodeTick);
    }

    pub(super) fn node_message(&mut self, at: usize, from: Actor, body: Body) {
        let actor = self.nodes[at].actor;
        let now = self.world.local_now(actor);
        match body {
            Body::Chunk { call, request, payload, patience } => {
                let Some(life) = &mut self.nodes[at].life else { return };
                let id = life.request_next;
                life.request_next += 1;
                life.requests.insert(id, (from, call, request.session, request.group));
                self.node_input(at, Input::Request { id, request: *request, payload, deadline: now + patience });
            }
            Body::Cancel { call } => {
                let Some(life) = &mut self.nodes[at].life else { return };
                let id = life.requests.iter().find(|(_, r)| (r.0, r.1) == (from, call)).map(|(id, _)| *id);
                if let Some(id) = id {
                    life.requests.remove(&id);
                    self.node_input(at, Input::Cancelled { id });
                }
            }
            Body::Group { message, payload } => {
                let from = message.from.node;
                self.node_input(at, Input::Peer { from, message: *message, payload });
            }
            Body::Answer { call, answer } => self.control_answered(at, call, *answer),
            Body::Peer(_) | Body::Ask { .. } | Body::ChunkDone { .. } => unreachable!("nobody says that to a node"),
        }
    }

    fn open_peer(&mut self, at: usize, peer: usize, delay: Duration) {
        let Some(life) = &mut self.nodes[at].life else { return };
        life.peers.insert(peer, Peer::Opening);
        self.world.after(self.nodes[at].actor, delay, Local::Connect { peer });
    }

    /// A connection is being made to another node: it is there now, or will be tried again.
    pub(super) fn connect(&mut self, at: usize, peer: usize) {
        let (me, other) = (self.nodes[at].actor, self.nodes[peer].actor);
        let cut = self.world.network().is_blocked(me, other) || self.world.network().is_blocked(other, me);
        if cut || !self.world.is_running(other) {
            let pause = Duration::from_millis(self.prng.between(20, 250));
            // A process that has ended is found out so; a host that is lost, or a process that hangs, refuses nobody.
            if !cut && self.nodes[peer].life.is_none() && self.prng.chance(1, 2) {
                self.node_input(at, Input::PeerRefused { node: NodeId(peer as u64 + 1) });
            }
            return self.open_peer(at, peer, pause);
        }
        let Some(life) = &mut self.nodes[at].life else { return };
        life.peers.insert(peer, Peer::Open);
        self.streams.close(me, other);
        self.node_input(at, Input::PeerConnected { node: NodeId(peer as u64 + 1) });
    }

    pub(super) fn node_broken(&mut self, at: usize, peer: Actor) {
        self.control_broken(at, peer);
        let Some(life) = &mut self.nodes[at].life else { return };
        let gone: Vec<u64> = life.requests.iter().filter(|(_, r)| r.0 == peer).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some(life) = &mut self.nodes[at].life {
                life.requests.remove(&id);
            }
            self.node_input(at, Input::Cancelled { id });
        }
        let Some(other) = self.node_of(peer) else { return };
        let Some(life) = &mut self.nodes[at].life else { return };
        if life.peers.get(&other) == Some(&Peer::Open) {
            let pause = Duration::from_millis(self.prng.between(1, 100));
            self.open_peer(at, other, pause);
            self.node_input(at, Input::PeerLost { node: NodeId(other as u64 + 1) });
        }
    }
}
