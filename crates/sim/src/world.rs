//! The queue of events in virtual time, and the actors it happens to.
//!
//! * Events happen in the order of their time, and of their making where times are equal.
//! * Every actor has a *life*, raised by a crash: what was meant for an earlier life (timers, disk work, messages under
//!   way) never happens. Of what the crashed one had sent, each connection's rest arrives or is lost as a whole.
//! * A stopped actor (SIGSTOP: a zombie) misses nothing: its events wait, in order, until it goes on. Its clock runs.
//! * Whatever happens is mixed into the trace.

mod queue;
#[cfg(test)]
mod tests;

use crate::clock::{Clock, WorldTime};
use crate::faults::Fault;
use crate::network::{Fate, LinkConfig, Network};
use crate::trace::Trace;
use holdfast_types::prng::Prng;
use holdfast_types::{Instant, Timestamp};
use queue::Queue;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

/// Anything that takes part: a server, a storage node, a client. Numbered from 0 as they are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(pub u32);

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a{}", self.0)
    }
}

/// Something that happens now. `M` is what actors send each other, `L` what happens within one: timers, finished disk
/// work, steps of a client's script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<M, L> {
    /// A message arrives.
    Message {
        /// Who sent it.
        from: Actor,
        /// Who gets it.
        to: Actor,
        /// What it says.
        message: M,
    },
    /// Something of the actor's own is due.
    Local {
        /// Whose.
        actor: Actor,
        /// What.
        payload: L,
    },
    /// The actor learns that its stream to or from a peer broke: messages since some moment were lost.
    Broken {
        /// Who learns it.
        actor: Actor,
        /// The other end.
        peer: Actor,
    },
    /// A fault that was scheduled is due. The harness calls [`World::apply`] and does its own part: forget the node's
    /// memory, `restart` its disk.
    Fault(Fault),
}

#[derive(Clone, Debug)]
enum Pending<M, L> {
    /// Without a connection it has arrived already, and no fault of a link takes it back.
    Message {
        from: Actor,
        to: Actor,
        connection: Option<u64>,
        message: M,
    },
    Local {
        actor: Actor,
        payload: L,
    },
    Broken {
        actor: Actor,
        peer: Actor,
    },
    Fault(Fault),
}

#[derive(Clone, Debug)]
struct Scheduled<M, L> {
    /// Of the actor it happens to; 0 for faults.
    life: u64,
    pending: Pending<M, L>,
}

#[derive(Clone, Debug)]
struct ActorState<M, L> {
    clock: Clock,
    life: u64,
    up: bool,
    stopped: bool,
    waiting: VecDeque<Scheduled<M, L>>,
}

/// A simulated world.
#[derive(Clone, Debug)]
pub struct World<M, L> {
    seed: u64,
    now: WorldTime,
    queue: Queue<Scheduled<M, L>>,
    actors: Vec<ActorState<M, L>>,
    /// Ends that will learn of a broken stream, so that they learn it once.
    telling: BTreeSet<(Actor, Actor)>,
    network: Network,
    trace: Trace,
    prng: Prng,
}

impl<M: Clone, L> World<M, L> {
    /// An empty world at time 0 with good links.
    pub fn new(seed: u64) -> Self {
        let prng = Prng::new(seed);
        Self {
            seed,
            now: WorldTime::default(),
            queue: Queue::default(),
            actors: Vec::new(),
            telling: BTreeSet::new(),
            network: Network::new(LinkConfig::default(), prng.fork(1)),
            trace: Trace::default(),
            prng: prng.fork(2),
        }
    }

    /// The seed, for messages.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// A generator for some part of the harness, independent of all others with another label and of what happens.
    pub fn prng(&self, label: u64) -> Prng {
        Prng::new(self.seed).fork(label.wrapping_add(1 << 32))
    }

    /// Adds an actor that is up.
    pub fn add_actor(&mut self, clock: Clock) -> Actor {
        let actor = Actor(u32::try_from(self.actors.len()).expect("fewer than 2^32 actors"));
        self.actors.push(ActorState { clock, life: 0, up: true, stopped: false, waiting: VecDeque::new() });
        actor
    }

    /// True time.
    pub fn now(&self) -> WorldTime {
        self.now
    }

    /// What an actor's clock shows: the only time that it may see.
    pub fn local_now(&self, actor: Actor) -> Instant {
        self.state(actor).clock.read(self.now)
    }

    /// What an actor's clock says of civil time.
    pub fn civil_now(&self, actor: Actor) -> Timestamp {
        self.state(actor).clock.read_civil(self.now)
    }

    /// Changes the rate of an actor's clock from now on; see [`Clock::set_rate`]. Timers that were set stay where they were.
    pub fn set_clock_rate(&mut self, actor: Actor, rate_ppm: i32) {
        let now = self.now;
        self.state_mut(actor).clock.set_rate(now, rate_ppm);
    }

    /// The links.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// What happened so far; effects of the actors may be noted too.
    pub fn trace(&mut self) -> &mut Trace {
        &mut self.trace
    }

    /// Events that may still happen.
    pub fn pending(&self) -> usize {
        self.queue.len()
    }

    fn state(&self, actor: Actor) -> &ActorState<M, L> {
        &self.actors[actor.0 as usize]
    }

    fn state_mut(&mut self, actor: Actor) -> &mut ActorState<M, L> {
        &mut self.actors[actor.0 as usize]
    }

    fn push(&mut self, at: WorldTime, life: u64, pending: Pending<M, L>) {
        self.queue.push(at.max(self.now), Scheduled { life, pending });
    }

    /// Something of an actor's own happens after a true delay: finished disk work, a client's next step.
    pub fn after(&mut self, actor: Actor, delay: Duration, payload: L) {
        let life = self.state(actor).life;
        self.push(self.now + delay, life, Pending::Local { actor, payload });
    }

    /// Something of an actor's own happens when its clock shows `local`: a timer.
    pub fn at_local(&mut self, actor: Actor, local: Instant, payload: L) {
        let state = self.state(actor);
        let (at, life) = (state.clock.when(local, self.now), state.life);
        self.push(at, life, Pending::Local { actor, payload });
    }

    /// A fault happens at a true time.
    pub fn schedule_fault(&mut self, at: WorldTime, fault: Fault) {
        self.push(at, 0, Pending::Fault(fault));
    }

    /// Sends a message; the network decides what becomes of it. One to oneself arrives, after everything due now.
    ///
    /// # Panics
    /// When the sender is down: its effects belong to nobody.
    pub fn send(&mut self, from: Actor, to: Actor, message: M) {
        assert!(self.state(from).up, "{from} is down and sends to {to}");
        let life = self.state(to).life;
        if from == to {
            let pending = Pending::Message { from, to, connection: None, message };
            return self.push(self.now, life, pending);
        }
        let fate = if self.state(to).up {
            self.network.send(self.now, from, to)
        } else if self.network.link(from, to).datagram {
            Fate::Lost
        } else {
            self.network.broken(self.now, from, to)
        };
        match fate {
            Fate::Arrives(flight, again) => {
                if let Some(again) = again {
                    let (connection, message) = (Some(again.connection), message.clone());
                    self.push(again.at, life, Pending::Message { from, to, connection, message });
                }
                let pending = Pending::Message { from, to, connection: Some(flight.connection), message };
                self.push(flight.at, life, pending);
            }
            Fate::Lost => {}
            Fate::Broken(at_sender, at_receiver) => {
                self.tell_broken(at_sender, from, to);
                self.tell_broken(at_receiver, to, from);
            }
        }
    }

    fn tell_broken(&mut self, at: WorldTime, actor: Actor, peer: Actor) {
        if self.state(actor).up && self.telling.insert((actor, peer)) {
            let life = self.state(actor).life;
            self.push(at, life, Pending::Broken { actor, peer });
        }
    }

    /// The next event not after `until`, or `None`, with the time then being `until`.
    pub fn next(&mut self, until: WorldTime) -> Option<Event<M, L>> {
        while let Some((at, scheduled)) = self.queue.pop(until) {
            self.now = at;
            if let Some(event) = self.happen(scheduled) {
                return Some(event);
            }
        }
        self.now = self.now.max(until);
        None
    }

    /// Decides whether something that is due happens, waits or is dropped.
    fn happen(&mut self, scheduled: Scheduled<M, L>) -> Option<Event<M, L>> {
        let actor = match &scheduled.pending {
            Pending::Message { to, .. } => *to,
            Pending::Local { actor, .. } | Pending::Broken { actor, .. } => *actor,
            Pending::Fault(fault) => {
                let fault = fault.clone();
                self.trace.note(&[self.now.0, u64::MAX], || format!("fault {fault:?}"));
                return Some(Event::Fault(fault));
            }
        };
        if let Pending::Broken { actor, peer } = scheduled.pending {
            self.telling.remove(&(actor, peer));
        }
        let now = self.now;
        let state = self.state_mut(actor);
        if !state.up || scheduled.life != state.life {
            return None;
        }
        if let Pending::Message { from, to, connection: Some(connection), .. } = scheduled.pending
            && !self.network.arrives(from, to, connection)
        {
            return None;
        }
        let state = self.state_mut(actor);
        if state.stopped {
            // A message that has arrived sits in a socket.
            let mut scheduled = scheduled;
            if let Pending::Message { connection, .. } = &mut scheduled.pending {
                *connection = None;
            }
            state.waiting.push_back(scheduled);
            return None;
        }
        let (kind, other) = match &scheduled.pending {
            Pending::Message { from, .. } => (1, from.0),
            Pending::Local { .. } => (2, 0),
            Pending::Broken { peer, .. } => (3, peer.0),
            Pending::Fault(_) => (4, 0),
        };
        let text = || format!("{now} {actor} {} {other}", ["", "message from", "local", "broken to", "fault"][kind]);
        self.trace.note(&[now.0, kind as u64, u64::from(actor.0), u64::from(other)], text);
        Some(match scheduled.pending {
            Pending::Message { from, to, message, .. } => Event::Message { from, to, message },
            Pending::Local { actor, payload } => Event::Local { actor, payload },
            Pending::Broken { actor, peer } => Event::Broken { actor, peer },
            Pending::Fault(fault) => Event::Fault(fault),
        })
    }

    /// Whether an actor is up (it may be stopped).
    pub fn is_up(&self, actor: Actor) -> bool {
        self.state(actor).up
    }

    /// Whether an actor is up and not stopped.
    pub fn is_running(&self, actor: Actor) -> bool {
        self.state(actor).up && !self.state(actor).stopped
    }

    /// Which life an actor is in: how often it crashed.
    pub fn life(&self, actor: Actor) -> u64 {
        self.state(actor).life
    }

    /// Ends an actor's life. Peers with streams to it learn of it later. Nothing happens to one that is down.
    pub fn crash(&mut self, actor: Actor) {
        let state = self.state_mut(actor);
        if !state.up {
            return;
        }
        (state.up, state.stopped) = (false, false);
        state.life += 1;
        state.waiting.clear();
        self.telling.retain(|(who, _)| *who != actor);
        for peer in (0..self.actors.len() as u32).map(Actor).filter(|peer| *peer != actor) {
            if self.prng.chance(1, 2) {
                self.network.break_stream(actor, peer);
            }
            self.network.break_stream(peer, actor);
            if !self.network.link(peer, actor).datagram
                && let Fate::Broken(at, _) = self.network.broken(self.now, peer, actor)
            {
                self.tell_broken(at, peer, actor);
            }
        }
    }

    /// Begins an actor's next life, with its clock going on. Nothing happens to one that is up.
    pub fn restart(&mut self, actor: Actor) {
        self.state_mut(actor).up = true;
    }

    /// Stops an actor in the middle of whatever it does, without its knowing.
    pub fn stop(&mut self, actor: Actor) {
        let state = self.state_mut(actor);
        state.stopped = state.up;
    }

    /// Lets a stopped actor go on; what it missed happens now, in order.
    pub fn go_on(&mut self, actor: Actor) {
        let state = self.state_mut(actor);
        state.stopped = false;
        let waiting = std::mem::take(&mut state.waiting);
        for Scheduled { life, pending } in waiting {
            self.push(self.now, life, pending);
        }
    }

    /// The world's part of a fault: lives, stops, links, clocks.
    pub fn apply(&mut self, fault: &Fault) {
        match fault {
            Fault::Crash(actor) => self.crash(*actor),
            Fault::Restart(actor) => self.restart(*actor),
            Fault::Stop(actor) => self.stop(*actor),
            Fault::GoOn(actor) => self.go_on(*actor),
            Fault::Block { from, to } => self.network.block(*from, *to),
            Fault::Unblock { from, to } => self.network.unblock(*from, *to),
            Fault::Drift { actor, rate_ppm } => self.set_clock_rate(*actor, *rate_ppm),
            Fault::Link { from, to, config } => self.network.set_link(*from, *to, *config),
        }
    }
}
