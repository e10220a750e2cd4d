//! One server: its two shards, and what they need of each other.
//!
//! Every request that was taken is answered once, by one of: the command it became, the read it waited for, the event it was
//! parked for, its deadline, or the loss of leadership.

use crate::api::{Caller, Config, Counters, Effect, Input, Recovered, StartError, ticks};
use crate::cluster::Cluster;
use crate::cluster::lead::ClusterLead;
use crate::cluster::space::Space;
use crate::machine::Machine;
use crate::replica::{Event, Replica, Token};
use crate::requests::{is_allowed, shard_of};
use crate::room::Room;
use crate::volumes::Volumes;
use crate::volumes::lead::VolumesLead;
use holdfast_types::limits::{GROUPS_MAX, REPLICAS_MAX};
use holdfast_types::{Instant, LogIndex, MapVersion, ServerId, SessionId, ShardId, Term, Timestamp};
use holdfast_wire::admin::{ServerPlace, ShardStatus};
use holdfast_wire::metadata::{Answer, Envelope, MetadataError, Request, Response};
use holdfast_wire::peer::PeerMessage;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long before its deadline a waiting request is answered, so that the answer arrives in time.
const ANSWER_AHEAD: Duration = Duration::from_millis(250);
/// How long a request of another server is worked on; it asks again.
const FORWARD_PATIENCE: Duration = Duration::from_secs(10);
/// How long a server that can not lead one shard waits before it tries again to let go of the other: at first, and at the most.
const HAND_OVER_TICKS: u64 = ticks(Duration::from_secs(2));
const HAND_OVER_TICKS_MAX: u64 = ticks(Duration::from_secs(600));
/// Ticks after which an unanswered request to the other shard is sent again.
const FORWARD_AGAIN_TICKS: u64 = ticks(Duration::from_millis(500));

/// Who is to get an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asker {
    /// Whoever sent the request to this server.
    Shell(u64),
    /// Another server's shard.
    Peer { server: ServerId, id: u64 },
    /// This server's other shard.
    Own(u64),
}

/// Somebody who waits, and until when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    pub(crate) asker: Asker,
    pub(crate) deadline: Instant,
}

impl Waiter {
    /// Whether it must be answered now or never.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now + ANSWER_AHEAD >= self.deadline
    }
}

/// What shard 1's leader wants of shard 0's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// A session is to be over everywhere.
    Fence(SessionId),
    /// Storage nodes are to know that it leads in this term.
    Lead(Term),
    /// This shard's members are as this server's place wants them.
    Arrived(ServerId),
}

/// A request of shard 1's leader to shard 0's.
struct Forward {
    wish: Wish,
    envelope: Envelope,
    sent: Option<u64>,
}

/// The metadata service on one server. Owns both shards' raft nodes and state machines.
pub struct MetadataCore {
    pub(crate) config: Config,
    pub(crate) counters: Counters,
    pub(crate) cluster: Replica<Cluster>,
    pub(crate) volumes: Replica<Volumes>,
    pub(crate) cluster_lead: ClusterLead,
    pub(crate) volumes_lead: VolumesLead,
    pub(crate) now: Instant,
    pub(crate) ticks: u64,
    wall: (Instant, Timestamp),
    pub(crate) out: Vec<Effect>,
    tokens: Token,
    /// Requests not answered yet.
    open: BTreeMap<u64, Instant>,
    forwards: BTreeMap<u64, Forward>,
    forward_next: u64,
    /// When leadership of one shard may be handed over next because the other has halted here, and the pause after that, in ticks.
    hand_over: (u64, u64),
    /// It is about to stop, and leads nothing for longer than it must.
    leaving: bool,
    pub(crate) room: Room,
    pub(crate) space: Space,
    /// It was said that this server must end.
    pub(crate) stopped: bool,
    /// The map version whose servers were last told, and those servers.
    pub(crate) servers_told: (MapVersion, BTreeMap<ServerId, String>),
}

impl MetadataCore {
    /// Starts from what log and tables hold; `now` is the moment of the start.
    ///
    /// # Errors
    /// [`StartError`]: a configuration that makes no sense, or a log and a table that do not fit together.
    pub fn new(config: Config, recovered: Recovered, now: Instant) -> Result<Self, StartError> {
        validate(&config)?;
        let cluster = Replica::new(ShardId::CLUSTER, &config, recovered.cluster)?;
        let volumes = Replica::new(ShardId::VOLUMES, &config, recovered.volumes)?;
        let wall = (now, cluster.stamp().max(volumes.stamp()));
        // Not from 1 at each start: an answer to an earlier life of this server would count for another session's fence.
        let forward_next = holdfast_types::prng::mix(config.seed) >> 1;
        Ok(Self {
            config,
            counters: Counters::default(),
            cluster,
            volumes,
            cluster_lead: ClusterLead::default(),
            volumes_lead: VolumesLead::default(),
            now,
            ticks: 0,
            wall,
            out: Vec::new(),
            tokens: 0,
            open: BTreeMap::new(),
            forwards: BTreeMap::new(),
            forward_next,
            hand_over: (0, HAND_OVER_TICKS),
            leaving: false,
            room: Room::default(),
            space: Space::default(),
            stopped: false,
            servers_told: Default::default(),
        })
    }

    /// Takes one input and appends the effects it calls for, in the order they must start.
    pub fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        self.now = now;
        match input {
            Input::Tick { wall } => self.tick(wall),
            Input::Request { request, from, envelope, deadline } => {
                self.open.insert(request, deadline);
                self.request(Waiter { asker: Asker::Shell(request), deadline }, from, envelope);
            }
            Input::Cancelled { request } => {
                self.open.remove(&request);
            }
            Input::Peer { from, message } => self.peer(from, message),
            Input::Leave => {
                self.leaving = true;
                self.hand_all_over();
            }
            Input::Room { low } => self.has_little_room(low),
            Input::Persisted { shard, ticket } => {
                if shard == ShardId::CLUSTER {
                    self.cluster.persisted(ticket, &mut self.out);
                } else {
                    self.volumes.persisted(ticket, &mut self.out);
                }
            }
            Input::PersistFailed { shard, reason } => {
                if shard == ShardId::CLUSTER {
                    self.cluster.halt(self.cluster.applied_index(), reason);
                } else {
                    self.volumes.halt(self.volumes.applied_index(), reason);
                }
            }
            Input::TablesPersisted { shard, applied } => {
                if shard == ShardId::CLUSTER {
                    self.cluster.tables_persisted(applied, &mut self.out, &mut self.counters);
                } else {
                    self.volumes.tables_persisted(applied, &mut self.out, &mut self.counters);
                }
            }
            Input::ChunkDone { job, result } => self.chunk_done(job, result),
        }
        self.run();
        self.tell_servers();
        self.address_lives();
        effects.append(&mut self.out);
    }

    /// Raft's messages say whom they mean.
    fn address_lives(&mut self) {
        let servers = &self.cluster.machine.servers;
        for effect in &mut self.out {
            if let Effect::Send { to, message: PeerMessage::Raft { to_life, .. } } = effect {
                *to_life = servers.get(to).map_or(0, |row| row.life);
            }
        }
    }

    /// This server.
    pub fn id(&self) -> ServerId {
        self.config.id
    }

    /// Each shard's leader, term and progress, for status and tests.
    pub fn shards(&self) -> [ShardStatus; 2] {
        [self.cluster.status(), self.volumes.status()]
    }

    /// Whether this server leads a shard, as far as it knows.
    pub fn leads(&self, shard: ShardId) -> bool {
        if shard == ShardId::CLUSTER { self.cluster.is_leader() } else { self.volumes.is_leader() }
    }

    /// Why a shard has stopped applying, if one has.
    pub fn halted(&self) -> Option<String> {
        let first = self.cluster.halted().map(|halted| (ShardId::CLUSTER, halted));
        let halted = first.or_else(|| self.volumes.halted().map(|halted| (ShardId::VOLUMES, halted)));
        halted.map(|(shard, (index, reason))| format!("{shard} at {index}: {reason}"))
    }

    /// Newest map version applied here, for metrics.
    pub fn map_version(&self) -> MapVersion {
        self.cluster.machine.version()
    }

    /// The map as applied here; may be behind the leader's.
    pub fn map(&self) -> holdfast_wire::map::ClusterMap {
        self.cluster.machine.whole_map()
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Until nothing is left to do without the shell.
    fn run(&mut self) {
        loop {
            let wall = self.stamp();
            let mut cluster = Vec::new();
            self.cluster.pump(wall, &mut self.out, &mut cluster, &mut self.counters);
            let mut volumes = Vec::new();
            self.volumes.pump(wall, &mut self.out, &mut volumes, &mut self.counters);
            if cluster.is_empty() && volumes.is_empty() && !self.drive() {
                return;
            }
            self.cluster_events(cluster);
            self.volumes_events(volumes);
        }
    }

    /// Lets leaders act on what has changed. Returns whether there is something new for the replicas.
    fn drive(&mut self) -> bool {
        let before = self.progress();
        self.drive_cluster();
        self.drive_volumes();
        before != self.progress()
    }

    /// Differs whenever something was begun that the other shard or a replica must look at.
    fn progress(&self) -> (usize, usize, Token, usize) {
        let waiting = self.cluster_lead.fences_waiting();
        (self.cluster.in_progress(), self.volumes.in_progress(), self.tokens, waiting)
    }

    fn tick(&mut self, wall: Timestamp) {
        self.wall = (self.now, wall);
        self.ticks += 1;
        self.cluster.tick(&mut self.out);
        self.volumes.tick(&mut self.out);
        self.tick_cluster();
        self.tick_volumes();
        self.tick_servers();
        self.tick_room();
        self.tick_space();
        self.tick_halted();
        if self.leaving {
            self.hand_all_over();
        }
        self.send_forwards();
    }

    fn hand_all_over(&mut self) {
        self.cluster.hand_over();
        self.volumes.hand_over();
    }

    /// One shard has halted here, of which the other's leader needs to know what is so: another server leads it better. Where the
    /// shard has halted on all of them nobody does, so the pauses grow: a leader that stays is worth more.
    fn tick_halted(&mut self) {
        let (next, pause) = self.hand_over;
        if self.ticks < next {
            return;
        }
        let leads = match (self.cluster.halted().is_some(), self.volumes.halted().is_some()) {
            (true, false) => self.volumes.is_leader().then(|| self.volumes.hand_over()),
            (false, true) => self.cluster.is_leader().then(|| self.cluster.hand_over()),
            (false, false) | (true, true) => None,
        };
        if leads.is_some() {
            self.hand_over = (self.ticks + pause, (2 * pause).min(HAND_OVER_TICKS_MAX));
        }
    }

    /// Civil time now.
    pub(crate) fn stamp(&self) -> Timestamp {
        let (at, wall) = self.wall;
        Timestamp::from_nanos(wall.as_nanos() + self.now.since(at).as_nanos() as i128)
    }

    /// A name for something that is waited for.
    pub(crate) fn token(&mut self) -> Token {
        self.tokens += 1;
        self.tokens
    }

    /// Whether somebody still wants an answer.
    pub(crate) fn is_open(&self, asker: Asker) -> bool {
        match asker {
            Asker::Shell(request) => self.open.contains_key(&request),
            Asker::Peer { .. } => true,
            Asker::Own(id) => self.forwards.contains_key(&id),
        }
    }

    fn request(&mut self, waiter: Waiter, from: Caller, envelope: Envelope) {
        let shard = envelope.shard;
        if shard != shard_of(&envelope.request) {
            let reason = format!("{shard} does not answer this");
            return self.refuse(waiter.asker, shard, MetadataError::Invalid { reason });
        }
        if !is_allowed(from, &envelope.request) {
            return self.refuse(waiter.asker, shard, MetadataError::Forbidden);
        }
        if shard == ShardId::CLUSTER {
            if let Some(error) = unable(&self.cluster, self.config.limits.proposals_waiting) {
                return self.refuse(waiter.asker, shard, error);
            }
            self.cluster_request(waiter, from, envelope.request);
        } else {
            if let Some(error) = unable(&self.volumes, self.config.limits.proposals_waiting) {
                return self.refuse(waiter.asker, shard, error);
            }
            self.volumes_request(waiter, envelope);
        }
    }

    /// Answers with an error that holds as of now.
    pub(crate) fn refuse(&mut self, asker: Asker, shard: ShardId, error: MetadataError) {
        self.answer(asker, shard, None, Err(error));
    }

    /// Answers; `at` is where the answer holds, the applied index if not given.
    pub(crate) fn answer(
        &mut self,
        asker: Asker,
        shard: ShardId,
        at: Option<LogIndex>,
        result: Result<Response, MetadataError>,
    ) {
        let (term, applied) = if shard == ShardId::CLUSTER {
            (self.cluster.term(), self.cluster.applied_index())
        } else {
            (self.volumes.term(), self.volumes.applied_index())
        };
        let answer = Answer { term, applied: at.unwrap_or(applied), result };
        match asker {
            Asker::Shell(request) => {
                if self.open.remove(&request).is_some() {
                    self.out.push(Effect::Answer { request, answer });
                }
            }
            Asker::Peer { server, id } => {
                self.out.push(Effect::Send { to: server, message: PeerMessage::Forwarded { id, answer } });
            }
            Asker::Own(id) => self.forwarded(id, answer),
        }
    }

    fn peer(&mut self, from: ServerId, message: PeerMessage) {
        match message {
            PeerMessage::Raft { shard, from_life, to_life, bytes } => {
                if !self.is_known(from, shard, (from_life, to_life)) {
                    return;
                }
                if shard == ShardId::CLUSTER {
                    self.cluster.receive(from, &bytes);
                } else if shard == ShardId::VOLUMES {
                    self.volumes.receive(from, &bytes);
                }
            }
            PeerMessage::LittleRoom => self.little_room_there(from),
            PeerMessage::Space(space) => self.space_told(space),
            PeerMessage::Stranger { life } => self.is_stranger(from, life),
            PeerMessage::Forward { id, envelope } => {
                let waiter = Waiter { asker: Asker::Peer { server: from, id }, deadline: self.now + FORWARD_PATIENCE };
                self.request(waiter, Caller::Server(from), envelope);
            }
            PeerMessage::Forwarded { id, answer } => self.forwarded(id, answer),
            PeerMessage::Snapshot(part) => {
                let mut events = Vec::new();
                if part.shard == ShardId::CLUSTER {
                    self.cluster.snapshot_part(from, part, &mut self.out, &mut self.counters, &mut events);
                    self.cluster_events(events);
                } else if part.shard == ShardId::VOLUMES {
                    self.volumes.snapshot_part(from, part, &mut self.out, &mut self.counters, &mut events);
                    self.volumes_events(events);
                }
            }
            PeerMessage::SnapshotSeen { shard, transfer, next, done } => {
                let seen = (transfer, next, done);
                if shard == ShardId::CLUSTER {
                    self.cluster.snapshot_seen(from, seen, &mut self.out, &mut self.counters);
                } else if shard == ShardId::VOLUMES {
                    self.volumes.snapshot_seen(from, seen, &mut self.out, &mut self.counters);
                }
            }
        }
    }

    fn cluster_events(&mut self, events: Vec<Event>) {
        events.into_iter().for_each(|event| self.cluster_event(event));
    }

    fn volumes_events(&mut self, events: Vec<Event>) {
        events.into_iter().for_each(|event| self.volumes_event(event));
    }

    /// Has shard 0 fence a session; asks until it is answered.
    pub(crate) fn forward_fence(&mut self, session: SessionId) {
        self.forward(Wish::Fence(session), Request::FenceSession { session });
    }

    /// Has shard 0 tell storage nodes who leads the volumes; asks until it is answered.
    pub(crate) fn forward_lead(&mut self, term: Term) {
        self.forward(Wish::Lead(term), Request::LeadVolumes { term });
    }

    /// Tells shard 0 that this shard's members are as a server's place wants them; until it is answered.
    pub(crate) fn forward_arrival(&mut self, server: ServerId, place: ServerPlace) {
        self.forward(Wish::Arrived(server), Request::ServerArrived { server, place });
    }

    fn forward(&mut self, wish: Wish, request: Request) {
        if self.forwards.values().any(|forward| forward.wish == wish) {
            return;
        }
        let envelope = Envelope {
            shard: ShardId::CLUSTER,
            session: SessionId::NONE,
            sequence: Default::default(),
            answered_below: Default::default(),
            term: Default::default(),
            request,
        };
        let id = self.forward_next;
        self.forward_next += 1;
        self.forwards.insert(id, Forward { wish, envelope, sent: None });
        self.send_forwards();
    }

    /// Nobody here waits for shard 0 any more.
    pub(crate) fn forget_forwards(&mut self) {
        self.forwards.clear();
    }

    fn send_forwards(&mut self) {
        // A server whose own part of shard 0 has halted hears of no leader: it asks one after the other.
        let leader = self.cluster.leader().or_else(|| {
            let voters = self.cluster.halted().map(|_| self.cluster.members().voters)?;
            let turn = (self.ticks / FORWARD_AGAIN_TICKS) as usize % voters.len().max(1);
            voters.get(turn).copied().map(ServerId).filter(|id| *id != self.config.id)
        });
        let due = |forward: &Forward| forward.sent.is_none_or(|sent| self.ticks >= sent + FORWARD_AGAIN_TICKS);
        let due: Vec<u64> = self.forwards.iter().filter(|(_, forward)| due(forward)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(forward) = self.forwards.get_mut(&id) else { continue };
            forward.sent = Some(self.ticks);
            let envelope = forward.envelope.clone();
            match leader {
                Some(to) if to == self.config.id => {
                    let waiter = Waiter { asker: Asker::Own(id), deadline: self.now + FORWARD_PATIENCE };
                    self.request(waiter, Caller::Server(to), envelope);
                }
                Some(to) => self.out.push(Effect::Send { to, message: PeerMessage::Forward { id, envelope } }),
                None => {}
            }
        }
    }

    fn forwarded(&mut self, id: u64, answer: Answer) {
        // Anything but success is asked again when its time comes.
        let Some(wish) = self.forwards.get(&id).map(|forward| forward.wish) else { return };
        match (wish, answer.result) {
            (Wish::Fence(session), Ok(Response::Fenced { .. })) => {
                self.forwards.remove(&id);
                self.session_fenced(session);
            }
            (Wish::Lead(_) | Wish::Arrived(_), Ok(Response::Done)) => {
                // It is seen when it is applied here.
                self.forwards.remove(&id);
            }
            _ => {}
        }
    }
}

/// Why a replica can not take a request.
fn unable<M: Machine>(replica: &Replica<M>, waiting_max: usize) -> Option<MetadataError> {
    // One that has halted says no more than that it does not lead: the others elect another, and whoever asks must find it.
    if !replica.is_leader() {
        return Some(MetadataError::NotLeader { hint: replica.leader() });
    }
    (replica.queued() >= waiting_max).then(|| MetadataError::Unavailable { reason: "too many requests wait".into() })
}

fn validate(config: &Config) -> Result<(), StartError> {
    let fault = |text: &str| Err(StartError::Config(text.into()));
    let mut voters = config.voters.clone();
    voters.sort_unstable();
    voters.dedup();
    if voters.len() != config.voters.len() || voters.len() > 7 {
        return fault("voters must be up to 7 different servers");
    }
    // None: it joins.
    if !voters.is_empty() && voters.len().is_multiple_of(2) {
        return fault("voters must be 1, 3, 5 or 7 different servers");
    }
    if config.id.0 == 0 || (!voters.is_empty() && !voters.contains(&config.id)) {
        return fault("this server must be one of the voters, and not 0");
    }
    if !config.groups.is_power_of_two() || config.groups > GROUPS_MAX {
        return fault("the number of groups must be a power of two, at most 65,536");
    }
    if config.replicas == 0 || config.replicas as usize > REPLICAS_MAX || config.storage_expected == 0 {
        return fault("replicas must be 1 to 7, storage nodes at least 1");
    }
    Ok(())
}
