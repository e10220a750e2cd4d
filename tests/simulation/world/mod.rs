//! A whole cluster in one thread, from a seed: three metadata servers, four or five storage nodes, three clients and an auditor, with the
//! real cores, the real log and chunk store on simulated disks, a simulated network, drifting clocks.
//!
//! ```text
//! Hostile: calls and faults ──▶ Healed: calls end ──▶ Leaving: all unmount ──▶ Audit: a fresh client reads all ──▶ Settling ──▶ checks
//! ```
//!
//! The same seed gives the same run. Checks are in `check_*`; what they compare with is in `truth` and `names`.

mod blocks;
mod check_calls;
mod check_data;
mod check_locks;
mod check_names;
mod client;
mod control;
mod faults;
mod locks;
mod metadata;
mod names;
mod net;
mod node;
mod rebuild;
mod record;
mod replicas;
mod run;
mod script;
mod setup;
mod slow;
mod stats;
mod story;
mod truth;

#[allow(unused_imports, reason = "of tests/simulation/main.rs")]
pub use run::crossing::run_crossing;
#[allow(unused_imports, reason = "of tests/simulation/orders.rs")]
pub use run::orders::{Start, all_orders, run_in_order};
#[allow(unused_imports, reason = "of tests/simulation/main.rs")]
pub use run::slow::{SlowIn, run_with_one_slow};
pub use run::{Failure, Outcome, run};
pub use setup::Mutation;
pub use stats::{Stats, Totals};

use client::Client;
use faults::Ambush;
use holdfast_client_core::{CallId, Failure as NoAnswer, Input as ClientInput};
use holdfast_sim::{Actor, Clock, Event, Latency, World, WorldTime};
use holdfast_storage_core::local::{LocalCommand, LocalError, LocalOutcome, Ticket};
use holdfast_types::prng::Prng;
use holdfast_types::{Instant, ShardId};
use metadata::Server;
use net::{Arrival, Body, Message, Streams};
use node::Node;
use record::Record;
use script::{Script, State};
use setup::Setup;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;
use truth::Truth;

/// The volume.
const VOLUME: &str = "main";
/// The client that comes last.
const AUDITOR: usize = 3;

/// A read of a node's disk, and what came of it if the reader looked at once.
type ReadDone = (Ticket, LocalCommand, Option<Result<LocalOutcome, LocalError>>);

/// What happens within one actor.
#[derive(Debug)]
enum Local {
    ServerTick {
        due: Instant,
    },
    LogDone {
        shard: usize,
    },
    TableDone {
        shard: usize,
    },
    NodeTick,
    Beat,
    FollowMap,
    Chores,
    DiskDone,
    ReadDone(Box<ReadDone>),
    CheckpointDone,
    Connect {
        peer: usize,
    },
    AskAgain {
        id: u64,
    },
    AskPatience {
        id: u64,
        attempt: u64,
    },
    CallTimeout {
        call: u64,
    },
    ClientTimer {
        due: Instant,
    },
    Invalidated {
        event: u64,
    },
    MountNow,
    MountOver {
        number: usize,
    },
    Begin {
        slot: usize,
        number: usize,
    },
    GiveUp {
        id: CallId,
        number: usize,
    },
    /// The other end found a gap in a connection.
    Reset {
        peer: Actor,
        connection: u64,
    },
    Act,
    Heal,
    /// Somebody has just done what a fault was waiting for.
    Ambush(Ambush),
}

/// See the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Hostile,
    Healed,
    Leaving,
    Audit,
    Settling,
}

/// Room for effects, used again by every step.
#[derive(Default)]
struct Room {
    server: Vec<holdfast_metadata_core::Effect>,
    node: Vec<holdfast_storage_core::Effect>,
    client: Vec<holdfast_client_core::Effect>,
}

/// A run.
struct Sim {
    seed: u64,
    setup: Setup,
    world: World<Message, Local>,
    streams: Streams,
    prng: Prng,
    servers: Vec<Server>,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    director: Actor,
    phase: Phase,
    calls_left: u32,
    calls_next: u64,
    truth: [Truth; 2],
    record: Record,
    stats: Stats,
    totals: Totals,
    failure: Option<String>,
    /// No other ambush before this.
    ambush_after: WorldTime,
    /// Until then nobody but one actor is told of a new map.
    maps_held: Option<(WorldTime, Actor)>,
    /// Until then these nodes' disks take longer.
    disks_slow: Option<(WorldTime, Vec<usize>)>,
    slow: slow::SlowNodes,
    lure: Option<faults::Lure>,
    /// An ambush wants them away until then.
    kept_away: BTreeMap<Actor, WorldTime>,
    settling_since: rebuild::Since,
    room: Room,
    /// Text of events is kept, and cores check themselves at every step.
    careful: bool,
}

impl Sim {
    fn new(seed: u64, setup: Setup, keep: usize) -> Self {
        let mut world: World<Message, Local> = World::new(seed);
        world.trace().keep(keep);
        let mut prng = world.prng(1);
        let mut actor = |world: &mut World<Message, Local>| {
            let rate = prng.below(401) as i32 - 200;
            let offset = Duration::from_millis(prng.below(100_000));
            let error = prng.below(4_000_000_000) as i64 - 2_000_000_000;
            world.add_actor(Clock::new(rate, offset).with_civil_error(error))
        };
        let servers = (1..=3).map(|id| Server::new(id, actor(&mut world), seed, setup.planted)).collect();
        let nodes = (1..=setup.nodes).map(|id| Node::new(id, actor(&mut world), seed)).collect();
        let clients = (0..4).map(|at| Client {
            actor: actor(&mut world),
            mount: None,
            script: Script::new(Prng::new(seed).fork(500 + at), at as usize == AUDITOR),
            mounts: 0,
        });
        let clients = clients.collect();
        let director = world.add_actor(Clock::exact());
        let prng = world.prng(2);
        let mut sim = Self {
            seed,
            calls_left: setup.calls,
            setup,
            world,
            streams: Streams::default(),
            prng,
            servers,
            nodes,
            clients,
            director,
            phase: Phase::Hostile,
            calls_next: 0,
            truth: [Truth::new(ShardId::CLUSTER), Truth::new(ShardId::VOLUMES)],
            record: Record::default(),
            stats: Stats::default(),
            totals: Totals::default(),
            failure: None,
            ambush_after: WorldTime::after_start(Duration::from_secs(4)),
            maps_held: None,
            disks_slow: None,
            slow: slow::SlowNodes::default(),
            lure: None,
            kept_away: BTreeMap::new(),
            settling_since: None,
            room: Room::default(),
            careful: keep > 0,
        };
        sim.set_links();
        sim
    }

    /// Something that must not be is so. The first reason counts.
    fn fail(&mut self, reason: String) {
        self.failure.get_or_insert(reason);
    }

    fn next_call(&mut self) -> u64 {
        self.calls_next += 1;
        self.calls_next
    }

    fn note(&mut self, actor: Actor, input: &impl Debug) {
        if self.careful {
            let now = self.world.now();
            self.world.trace().note(&[], || shorten(format!("{now} {actor} <- {input:?}")));
        }
    }

    fn note_effect(&mut self, actor: Actor, effect: &impl Debug) {
        if self.careful {
            self.world.trace().note(&[], || shorten(format!("      {actor} -> {effect:?}")));
        }
    }

    fn sync_latency(&mut self) -> Duration {
        let usual = Latency::between(Duration::from_micros(100), Duration::from_millis(2));
        // Where power fails often, disks are slow often: that is when it matters what was durable.
        let one_in = if self.setup.flavour == setup::Flavour::PowerCuts { 4 } else { 100 };
        usual.with_spikes(one_in, Duration::from_millis(60)).sample(&mut self.prng)
    }

    /// Something of an actor's own happens after a delay by its clock.
    fn after_local(&mut self, actor: Actor, delay: Duration, what: Local) {
        let at = self.world.local_now(actor) + delay;
        self.world.at_local(actor, at, what);
    }

    fn server_of(&self, actor: Actor) -> Option<usize> {
        (actor.0 < 3).then_some(actor.0 as usize)
    }

    fn node_of(&self, actor: Actor) -> Option<usize> {
        let at = (actor.0 as usize).checked_sub(3)?;
        (at < self.nodes.len()).then_some(at)
    }

    fn client_of(&self, actor: Actor) -> Option<usize> {
        let at = (actor.0 as usize).checked_sub(3 + self.nodes.len())?;
        (at < self.clients.len()).then_some(at)
    }

    fn send(&mut self, from: Actor, to: Actor, body: Body) {
        let place = if let Body::Peer(_) = body { None } else { Some(self.streams.place(from, to)) };
        self.world.send(from, to, Message { place, body });
    }

    /// One event.
    fn handle(&mut self, event: Event<Message, Local>) {
        match event {
            Event::Message { from, to, message } => self.arrived(from, to, message),
            Event::Local { actor, payload } => self.local(actor, payload),
            Event::Broken { actor, peer } => self.broken(actor, peer),
            Event::Fault(fault) => {
                if self.phase == Phase::Hostile {
                    self.fault(&fault);
                }
            }
        }
    }

    fn arrived(&mut self, from: Actor, to: Actor, message: Message) {
        if let Some(place) = message.place {
            match self.streams.arrive(from, to, place) {
                Arrival::Next => {}
                Arrival::Late => return,
                Arrival::Gap(connection) => {
                    let delay = Latency::between(Duration::from_micros(100), Duration::from_millis(20));
                    let delay = delay.sample(&mut self.prng);
                    self.world.after(from, delay, Local::Reset { peer: to, connection });
                    return;
                }
            }
        }
        if let Some(at) = self.server_of(to) {
            self.server_message(at, from, message.body);
        } else if let Some(at) = self.node_of(to) {
            self.node_message(at, from, message.body);
        } else if let Some(at) = self.client_of(to) {
            self.client_message(at, message.body);
        }
    }

    fn broken(&mut self, actor: Actor, peer: Actor) {
        if self.server_of(actor).is_some() && self.server_of(peer).is_some() {
            return;
        }
        self.streams.close(actor, peer);
        self.world.network().break_stream(actor, peer);
        if let Some(at) = self.server_of(actor) {
            self.server_broken(at, peer);
        } else if let Some(at) = self.node_of(actor) {
            self.node_broken(at, peer);
        } else if let Some(at) = self.client_of(actor) {
            self.client_broken(at, peer);
        }
    }

    fn local(&mut self, actor: Actor, what: Local) {
        if let Local::Reset { peer, connection } = what {
            if self.streams.is_open(actor, peer, connection) {
                self.broken(actor, peer);
            }
        } else if let Some(at) = self.server_of(actor) {
            self.server_local(at, what);
        } else if let Some(at) = self.node_of(actor) {
            self.node_local(at, what);
        } else if let Some(at) = self.client_of(actor) {
            self.client_local(at, what);
        } else {
            match what {
                Local::Act => self.act(),
                Local::Heal => self.heal(),
                Local::Ambush(ambush) => self.spring(&ambush),
                other => unreachable!("the director has no {other:?}"),
            }
        }
    }

    fn server_local(&mut self, at: usize, what: Local) {
        match what {
            Local::ServerTick { due } => self.server_tick(at, due),
            Local::LogDone { shard } => self.log_done(at, shard),
            Local::TableDone { shard } => self.table_done(at, shard),
            Local::CallTimeout { call } => {
                let reason = "the deadline has passed".into();
                self.chunk_done(at, call, Err(holdfast_metadata_core::ChunkFailure { reason }));
            }
            other => unreachable!("a server has no {other:?}"),
        }
    }

    fn node_local(&mut self, at: usize, what: Local) {
        match what {
            Local::NodeTick => self.node_tick(at),
            Local::Beat => self.beat(at),
            Local::FollowMap => self.follow_map(at),
            Local::Chores => self.chores(at),
            Local::DiskDone => self.disk_done(at),
            Local::ReadDone(done) => self.read_done(at, *done),
            Local::CheckpointDone => self.checkpoint_done(at),
            Local::Connect { peer } => self.connect(at, peer),
            Local::AskAgain { id } => self.ask_once(at, id),
            Local::AskPatience { id, attempt } => self.ask_patience(at, id, attempt),
            other => unreachable!("a node has no {other:?}"),
        }
    }

    fn client_local(&mut self, at: usize, what: Local) {
        match what {
            Local::CallTimeout { call } => self.client_unanswered(at, call, NoAnswer::TimedOut),
            Local::ClientTimer { due } => self.client_timer(at, due),
            Local::Invalidated { event } => self.client_input(at, ClientInput::Invalidated { event }),
            Local::MountNow => self.mount_now(at),
            Local::MountOver { number } => self.mount_over(at, number),
            Local::Begin { slot, number } => self.begin(at, slot, number),
            Local::GiveUp { id, number } => self.give_up(at, id, number),
            other => unreachable!("a client has no {other:?}"),
        }
    }

    /// Whether no client has anything under way.
    fn is_quiet(&self) -> bool {
        self.clients.iter().all(|client| client.mount.as_ref().is_none_or(|mount| mount.calls.is_empty()))
    }

    /// Whether nobody is mounted.
    fn is_left(&self) -> bool {
        self.clients.iter().all(|client| client.mount.is_none() && client.script.state == State::Away)
    }
}

/// Bounds a line of the trace.
fn shorten(mut text: String) -> String {
    /// Enough to see what it is about.
    const LINE_MAX: usize = 700;
    if text.len() > LINE_MAX {
        let mut end = LINE_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
