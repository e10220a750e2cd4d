//! A small world: real cores, stores in memory, an authority, a network that loses connections. Same seed, same trace.

mod verdict;

use super::authority::{Authority, DISK};
use super::client::{Client, Outgoing};
use super::store::FakeStore;
use crate::api::{Config, Effect, Input, Limits, Mutations, Scrubbed};
use crate::local::Ticket;
use crate::node::StorageCore;
use bytes::Bytes;
use holdfast_types::prng::Prng;
use holdfast_types::{GroupId, Incarnation, Instant, NodeId};
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest};
use holdfast_wire::group::GroupMessage;
use holdfast_wire::map::MapUpdate;
use holdfast_wire::metadata::{MetadataError, Request, Response};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) fn at(ms: u64) -> Instant {
    Instant(ms * 1_000_000)
}

#[derive(Debug)]
pub(crate) enum Event {
    Tick(usize),
    Beat(usize),
    BeatArrives { node: usize, incarnation: u64, acknowledged: u64, sent: u64 },
    LeaderHeard { node: usize, sent: u64 },
    Map { node: usize },
    Deliver { link: (usize, usize), connection: u64, message: GroupMessage, payload: Bytes },
    Connect { link: (usize, usize) },
    Local { node: usize, ticket: Ticket },
    Ask { node: usize, token: u64, request: Request },
    Asked { node: usize, token: u64 },
    Authority,
    Client(usize),
    Request { client: usize, node: usize, attempt: u64, request: ChunkRequest, payload: Bytes },
    Answer { client: usize, attempt: u64, answer: ChunkAnswer, payload: Bytes },
}

pub(crate) struct Node {
    pub(crate) core: Option<StorageCore>,
    pub(crate) store: FakeStore,
    pub(crate) incarnation: u64,
    /// Rises with every crash: events of an older life are dropped.
    life: u64,
    requests: BTreeMap<u64, (usize, u64)>,
    /// Last completion given to a command, so that one disk works in order.
    busy_until: u64,
    /// The disk does not finish anything.
    pub(crate) disk_hangs: bool,
    heard_map: bool,
    /// What the core says it has acknowledged.
    pub(crate) told: u64,
    /// What it says of scrubs.
    pub(crate) noted: BTreeMap<GroupId, Scrubbed>,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) prng: Prng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) authority: Authority,
    pub(crate) clients: Vec<Client>,
    queue: BTreeMap<(u64, u64), (u64, Event)>,
    next: u64,
    links: BTreeMap<(usize, usize), (u64, bool, u64)>,
    /// Pairs of nodes that cannot speak.
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// Links on which everything is lost and neither end notices.
    pub(crate) mute: BTreeSet<(usize, usize)>,
    /// Nodes that cannot speak with the authority.
    pub(crate) unled: BTreeSet<usize>,
    /// Answers to `Promote` and `Evict` are lost.
    pub(crate) lose_view_answers: bool,
    pub(crate) mutations: Mutations,
    pub(crate) trace: u64,
    next_request: u64,
    pub(crate) acknowledged: u64,
    /// Messages between nodes that were thrown away.
    pub(crate) lost: u64,
    /// Sessions fenced.
    pub(crate) fenced: u64,
    /// Nodes that get no map.
    pub(crate) mapless: BTreeSet<usize>,
    pub(crate) probes: BTreeMap<u64, ChunkAnswer>,
    next_probe: u64,
    /// Bytes of operations sent from node to node.
    pub(crate) moved: usize,
    pub(crate) rotten: u64,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: usize, groups: u32, replicas: u32, mutations: Mutations) -> Self {
        let mut world = Self {
            now: 0,
            prng: Prng::new(seed),
            nodes: Vec::new(),
            authority: Authority::new(nodes as u64, groups, replicas),
            clients: Vec::new(),
            queue: BTreeMap::new(),
            next: 0,
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            mute: BTreeSet::new(),
            unled: BTreeSet::new(),
            lose_view_answers: false,
            mutations,
            trace: seed,
            next_request: 0,
            acknowledged: 0,
            lost: 0,
            fenced: 0,
            mapless: BTreeSet::new(),
            probes: BTreeMap::new(),
            next_probe: 0,
            moved: 0,
            rotten: 0,
        };
        for index in 0..nodes {
            world.nodes.push(Node {
                core: None,
                store: FakeStore::default(),
                incarnation: 0,
                life: 0,
                requests: BTreeMap::new(),
                busy_until: 0,
                disk_hangs: false,
                heard_map: false,
                told: 0,
                noted: BTreeMap::new(),
            });
            world.start(index);
        }
        world.later(10, Event::Authority);
        world
    }

    pub(crate) fn client(&mut self, chunks: u64) -> usize {
        let index = self.clients.len();
        let session = self.authority.open_session();
        let seed = self.prng.next_u64();
        self.clients.push(Client::new(index as u64, session, &self.authority.map, chunks, seed));
        self.later(20, Event::Client(index));
        index
    }

    pub(crate) fn start(&mut self, index: usize) {
        let seed = self.prng.next_u64();
        let node = &mut self.nodes[index];
        assert!(node.core.is_none());
        node.incarnation += 1;
        let scrubbed = node.noted.values().copied().collect();
        let config = Config {
            node: NodeId(index as u64 + 1),
            disks: vec![(DISK, Incarnation(node.incarnation))],
            seed,
            mutations: self.mutations,
            limits: Limits { resyncs: 2, held_items: 8, window_ops: 16, ..Limits::default() },
            scrubbed,
        };
        let states = node.store.states().into_iter().map(|state| (DISK, state)).collect();
        node.core = Some(StorageCore::new(config, states, at(self.now)));
        node.busy_until = self.now;
        node.disk_hangs = false;
        node.heard_map = false;
        node.told = 0;
        let phase = self.prng.below(50);
        self.later(phase, Event::Tick(index));
        self.later(phase, Event::Beat(index));
        for other in 0..self.nodes.len() {
            if other != index {
                self.later(5 + phase, Event::Connect { link: (index, other) });
                self.later(5 + phase, Event::Connect { link: (other, index) });
            }
        }
    }

    pub(crate) fn crash(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.core.take().is_some() {
            node.life += 1;
            node.requests.clear();
            node.store.crash(&mut self.prng);
            for other in 0..self.nodes.len() {
                self.disconnect((index, other));
                self.disconnect((other, index));
            }
        }
    }

    pub(crate) fn is_up(&self, index: usize) -> bool {
        self.nodes[index].core.is_some()
    }

    pub(crate) fn later(&mut self, delay: u64, event: Event) {
        self.next += 1;
        let life = self.life_of(&event);
        self.queue.insert((self.now + delay, self.next), (life, event));
    }

    /// The life of the node that an event belongs to.
    fn life_of(&self, event: &Event) -> u64 {
        match event {
            Event::Tick(node)
            | Event::Beat(node)
            | Event::LeaderHeard { node, .. }
            | Event::Map { node }
            | Event::Local { node, .. }
            | Event::Asked { node, .. } => self.nodes.get(*node).map_or(0, |node| node.life),
            _ => 0,
        }
    }

    pub(crate) fn disconnect(&mut self, link: (usize, usize)) {
        let entry = self.links.entry(link).or_default();
        if entry.1 {
            entry.1 = false;
            for (node, peer) in [(link.0, link.1), (link.1, link.0)] {
                self.step(node, Input::PeerLost { node: NodeId(peer as u64 + 1) });
            }
            self.later(50, Event::Connect { link });
        }
    }

    pub(crate) fn cut(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
        self.disconnect((a, b));
        self.disconnect((b, a));
    }

    /// Runs for so many milliseconds.
    pub(crate) fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(entry) = self.queue.first_entry() {
            let (time, _) = *entry.key();
            if time > end {
                break;
            }
            let (life, event) = entry.remove();
            self.now = time;
            if life == self.life_of(&event) {
                self.handle(event);
            }
        }
        self.now = end;
    }

    /// Runs until something holds; panics if it does not come true in time.
    pub(crate) fn until(&mut self, what: &str, ms: u64, holds: impl Fn(&Self) -> bool) {
        let end = self.now + ms;
        while !holds(self) {
            assert!(self.now < end, "after {ms} ms still not: {what}\n{}", self.picture());
            self.run(5);
        }
    }

    /// What a person would look at first.
    fn picture(&self) -> String {
        let whole = self.authority.map.replicas as usize;
        let mut out = format!("map {}\n", self.authority.map.version);
        for client in &self.clients {
            out += &format!("{}\n", client.picture());
        }
        for (index, view) in self.authority.map.views.iter().enumerate().filter(|(_, v)| v.in_sync.len() < whole) {
            out += &format!("g{index}: {view:?}\n");
            for node in self.nodes.iter().filter_map(|node| node.core.as_ref()) {
                out += &format!("  {} {:?}\n", node.map_version(), node.groups.get(&GroupId(index as u32)));
            }
        }
        out
    }

    pub(crate) fn step(&mut self, index: usize, input: Input) {
        let node = &mut self.nodes[index];
        let Some(core) = &mut node.core else { return };
        let mut effects = Vec::new();
        core.step(at(self.now), input, &mut effects);
        if self.mutations == Mutations::default() {
            crate::invariants::check(core);
        }
        for effect in effects {
            self.effect(index, effect);
        }
    }

    fn note(&mut self, what: u64) {
        self.trace = holdfast_types::prng::mix(self.trace ^ what ^ (self.now << 20));
    }

    fn effect(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::Local { disk, ticket, command } => {
                assert_eq!(disk, DISK);
                let slow = if self.prng.chance(1, 40) { 60 } else { 0 };
                let delay = 1 + self.prng.below(4) + slow;
                self.nodes[index].store.give(ticket, command);
                self.later(delay, Event::Local { node: index, ticket });
            }
            Effect::SendPeer { to, message, payload } => {
                let link = (index, to.0 as usize - 1);
                self.moved += payload.len();
                let now = self.now;
                let delay = 1 + self.prng.below(5);
                let (connection, open, last) = self.links.entry(link).or_default();
                if !*open {
                    self.lost += 1;
                    return;
                }
                *last = (*last).max(now + delay);
                let (connection, delay) = (*connection, *last - now);
                self.later(delay, Event::Deliver { link, connection, message, payload });
            }
            Effect::Answer { id, answer, payload } => {
                let asked = self.nodes[index].requests.remove(&id);
                let (client, attempt) = asked.expect("an answer to a request that is open");
                self.note(id);
                let delay = 1 + self.prng.below(5);
                self.later(delay, Event::Answer { client, attempt, answer, payload });
            }
            Effect::AskView { token, request } => {
                if !self.unled.contains(&index) {
                    let delay = 1 + self.prng.below(20);
                    self.later(delay, Event::Ask { node: index, token, request });
                }
            }
            Effect::FetchMap { .. } => self.later_map(index),
            Effect::Acknowledged(version) => self.nodes[index].told = version.0,
            Effect::ScrubNoted(noted) => drop(self.nodes[index].noted.insert(noted.group, noted)),
            Effect::SessionEnded(_) => {}
            Effect::DiskFailed { .. } => panic!("no disk fails here"),
        }
    }

    fn later_map(&mut self, index: usize) {
        let delay = 1 + self.prng.below(30);
        self.later(delay, Event::Map { node: index });
    }

    // tidy: long because it is one table, a few lines for each event
    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick(node) => {
                self.step(node, Input::Tick);
                self.later(50, Event::Tick(node));
            }
            Event::Beat(node) => {
                let incarnation = self.nodes[node].incarnation;
                if let Some(core) = self.nodes[node].core.as_ref().filter(|_| !self.unled.contains(&node)) {
                    assert_eq!(core.acknowledged().0, self.nodes[node].told, "what is acknowledged is told");
                    let (acknowledged, sent) = (core.acknowledged().0, self.now);
                    let delay = 1 + self.prng.below(10);
                    self.later(delay, Event::BeatArrives { node, incarnation, acknowledged, sent });
                }
                self.later(500, Event::Beat(node));
            }
            Event::BeatArrives { node, incarnation, acknowledged, sent } => {
                self.beat_arrives(node, incarnation, acknowledged, sent);
            }
            Event::LeaderHeard { node, sent } => {
                if !self.unled.contains(&node) {
                    self.step(node, Input::LeaderHeard { sent_at: at(sent) });
                }
            }
            Event::Map { node } => {
                if !self.unled.contains(&node) && !self.mapless.contains(&node) {
                    let map = Box::new(self.authority.map.clone());
                    self.nodes[node].heard_map = true;
                    self.step(node, Input::Map(MapUpdate::Full(map)));
                }
            }
            Event::Deliver { link, connection, message, payload } => {
                let open = self.links.get(&link).is_some_and(|(now, open, _)| *open && *now == connection);
                if open && !self.mute.contains(&link) {
                    self.note(message.settled.count.0);
                    let from = NodeId(link.0 as u64 + 1);
                    self.step(link.1, Input::Peer { from, message, payload });
                } else {
                    self.lost += 1;
                }
            }
            Event::Connect { link } => self.connect(link),
            Event::Local { node, ticket } => {
                if self.nodes[node].disk_hangs {
                    return self.later(100, Event::Local { node, ticket });
                }
                for (ticket, result) in self.nodes[node].store.finish(ticket) {
                    self.step(node, Input::LocalDone { ticket, result });
                }
            }
            Event::Ask { node, token, request } => {
                self.authority.ask(self.now, &request);
                self.spread();
                if !self.lose_view_answers {
                    self.later(5, Event::Asked { node, token });
                }
            }
            Event::Asked { node, token } => self.answer_view(node, token),
            Event::Authority => {
                let before = self.authority.map.version;
                self.authority.tick(self.now);
                if self.authority.map.version != before {
                    self.spread();
                }
                self.later(25, Event::Authority);
            }
            Event::Client(client) => self.run_client(client),
            Event::Request { client, node, attempt, request, payload } => {
                self.request(client, node, attempt, request, payload);
            }
            Event::Answer { client, attempt, answer, payload } => {
                self.note(attempt);
                self.answer(client, attempt, answer, &payload);
            }
        }
    }

    fn beat_arrives(&mut self, node: usize, incarnation: u64, acknowledged: u64, sent: u64) {
        self.authority.heartbeat(
            self.now,
            NodeId(node as u64 + 1),
            Incarnation(incarnation),
            holdfast_types::MapVersion(acknowledged),
        );
        self.later(3, Event::LeaderHeard { node, sent });
        // The answer to a heartbeat names the newest map.
        if self.nodes[node].core.as_ref().is_some_and(|core| core.map_version() < self.authority.map.version) {
            self.later_map(node);
        }
    }

    fn connect(&mut self, link: (usize, usize)) {
        let blocked = self.cut.contains(&link) || !self.is_up(link.0) || !self.is_up(link.1);
        let entry = self.links.entry(link).or_default();
        if entry.1 {
            return;
        }
        if blocked {
            if self.nodes[link.0].core.is_some() {
                self.later(100, Event::Connect { link });
            }
            return;
        }
        entry.0 += 1;
        entry.1 = true;
        self.step(link.0, Input::PeerConnected { node: NodeId(link.1 as u64 + 1) });
    }

    fn answer_view(&mut self, node: usize, token: u64) {
        if self.unled.contains(&node) {
            return;
        }
        let version = self.authority.map.version;
        let result = if self.prng.chance(1, 4) {
            Err(MetadataError::Unavailable { reason: "no leader".into() })
        } else {
            Ok(Response::View { group: GroupId(0), view: self.authority.map.views[0].clone(), version })
        };
        self.step(node, Input::ViewAnswer { token, result });
    }

    /// The map changed: every node hears of it sooner or later.
    pub(crate) fn spread(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].heard_map {
                self.later_map(node);
            }
        }
    }

    fn run_client(&mut self, client: usize) {
        let mut out = Vec::new();
        if let Some(version) = self.clients[client].fencing
            && self.authority.fenced(version)
        {
            let session = self.authority.open_session();
            self.spread();
            self.fenced += 1;
            self.clients[client].mount_again(session, &self.authority.map);
        }
        self.clients[client].tick(self.now, &self.authority.map, &mut out);
        self.send(client, out);
        self.later(20, Event::Client(client));
    }

    /// Ends a client's session from outside; it mounts again once that is complete.
    pub(crate) fn fence(&mut self, client: usize) {
        if self.clients[client].fencing.is_none() {
            let version = self.authority.end_session(self.clients[client].session);
            self.clients[client].fence(version);
            self.spread();
        }
    }

    /// A request from nowhere; its answer is kept in `probes`.
    pub(crate) fn probe(&mut self, node: usize, request: ChunkRequest, payload: Bytes) -> u64 {
        self.next_probe += 1;
        let attempt = self.next_probe;
        self.request(usize::MAX, node, attempt, request, payload);
        attempt
    }

    pub(crate) fn send(&mut self, client: usize, out: Vec<Outgoing>) {
        for Outgoing { node, attempt, request, payload } in out {
            let late = match self.prng.below(60) {
                0 => 5_000,
                1..=3 => 600,
                _ => 0,
            };
            let delay = 1 + self.prng.below(5) + late;
            let node = node.0 as usize - 1;
            self.later(delay, Event::Request { client, node, attempt, request, payload });
        }
    }

    fn request(&mut self, client: usize, node: usize, attempt: u64, request: ChunkRequest, payload: Bytes) {
        if !self.is_up(node) {
            return;
        }
        self.next_request += 1;
        let id = self.next_request;
        self.nodes[node].requests.insert(id, (client, attempt));
        let deadline = at(self.now + 2000);
        self.step(node, Input::Request { id, request, payload, deadline });
    }

    fn answer(&mut self, client: usize, attempt: u64, answer: ChunkAnswer, payload: &Bytes) {
        if client == usize::MAX {
            self.probes.insert(attempt, answer);
            return;
        }
        let mut out = Vec::new();
        let done = self.clients[client].answer(attempt, answer, payload, &self.authority.map, &mut out);
        self.send(client, out);
        if let Some(group) = done {
            self.acknowledged += 1;
            self.check_acknowledged(client, group);
        }
    }
}
