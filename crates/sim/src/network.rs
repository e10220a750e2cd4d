//! Links between actors: delay, loss, repetition, disorder, and partitions that may go one way only.
//!
//! * A *stream* link keeps order and repeats nothing, as a connection does. A message that is lost breaks the
//!   connection: everything still under way is lost with it, and both ends are told, later.
//! * A *datagram* link loses, repeats and reorders each message by itself; nobody is told.
//! * A blocked direction loses what is sent and what is under way.

use crate::clock::WorldTime;
use crate::latency::Latency;
use crate::world::Actor;
use holdfast_types::prng::Prng;
use std::time::Duration;

/// How one direction of a link behaves. Chances are parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// How long a message takes.
    pub latency: Latency,
    /// Chance that a message is lost.
    pub loss_ppm: u32,
    /// Chance that a message arrives twice. Datagrams only.
    pub repeat_ppm: u32,
    /// Datagrams instead of a stream.
    pub datagram: bool,
    /// When the ends of a broken stream learn of it. Streams only.
    pub broken_after: Latency,
}

impl Default for LinkConfig {
    /// A good local network: a stream of 50 to 500 microseconds that loses nothing.
    fn default() -> Self {
        Self {
            latency: Latency::between(Duration::from_micros(50), Duration::from_micros(500)),
            loss_ppm: 0,
            repeat_ppm: 0,
            datagram: false,
            broken_after: Latency::between(Duration::from_millis(1), Duration::from_millis(300)),
        }
    }
}

/// A message under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    /// When it arrives, if nothing happens to the link until then.
    pub at: WorldTime,
    /// Which connection it travels on.
    pub connection: u64,
}

/// What becomes of a message that is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives, on datagram links perhaps twice.
    Arrives(Flight, Option<Flight>),
    /// It is lost and nobody is told.
    Lost,
    /// It is lost and its stream with it; the ends learn of it at these moments: sender, receiver.
    Broken(WorldTime, WorldTime),
}

/// One direction between two actors.
#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// Set by itself.
    config: Option<LinkConfig>,
    blocked: bool,
    connection: u64,
    last_arrival: WorldTime,
}

/// All links of a world.
#[derive(Clone, Debug)]
pub struct Network {
    default: LinkConfig,
    /// By sender, then by receiver; what is missing is as good as new.
    links: Vec<Vec<Link>>,
    prng: Prng,
}

impl Network {
    /// Links that all behave alike, until told otherwise.
    pub fn new(default: LinkConfig, prng: Prng) -> Self {
        Self { default, links: Vec::new(), prng }
    }

    fn get(&self, from: Actor, to: Actor) -> Link {
        self.links.get(from.0 as usize).and_then(|of| of.get(to.0 as usize)).copied().unwrap_or_default()
    }

    fn get_mut(&mut self, from: Actor, to: Actor) -> &mut Link {
        let (from, to) = (from.0 as usize, to.0 as usize);
        if self.links.len() <= from {
            self.links.resize(from + 1, Vec::new());
        }
        let of = &mut self.links[from];
        if of.len() <= to {
            of.resize(to + 1, Link::default());
        }
        &mut of[to]
    }

    /// Changes all links that were not set by themselves.
    pub fn set_default(&mut self, config: LinkConfig) {
        self.default = config;
    }

    /// Sets one direction of one link; `None` is the default again.
    pub fn set_link(&mut self, from: Actor, to: Actor, config: Option<LinkConfig>) {
        self.get_mut(from, to).config = config;
    }

    /// How a direction behaves now.
    pub fn link(&self, from: Actor, to: Actor) -> LinkConfig {
        self.get(from, to).config.unwrap_or(self.default)
    }

    /// Cuts one direction; what is under way is lost.
    pub fn block(&mut self, from: Actor, to: Actor) {
        self.get_mut(from, to).blocked = true;
        self.break_stream(from, to);
    }

    /// Cuts both directions between everyone in `one` and everyone in `other`.
    pub fn part(&mut self, one: &[Actor], other: &[Actor]) {
        for a in one {
            for b in other.iter().filter(|b| *b != a) {
                self.block(*a, *b);
                self.block(*b, *a);
            }
        }
    }

    /// Restores one direction.
    pub fn unblock(&mut self, from: Actor, to: Actor) {
        self.get_mut(from, to).blocked = false;
    }

    /// Restores all directions; links stay as slow and lossy as they are set.
    pub fn unblock_all(&mut self) {
        self.links.iter_mut().flatten().for_each(|link| link.blocked = false);
    }

    /// Whether a direction is cut.
    pub fn is_blocked(&self, from: Actor, to: Actor) -> bool {
        self.get(from, to).blocked
    }

    /// Loses what is under way in one direction.
    pub fn break_stream(&mut self, from: Actor, to: Actor) {
        let link = self.get_mut(from, to);
        link.connection += 1;
        link.last_arrival = WorldTime::default();
    }

    /// Whether a message under way arrives after all.
    pub fn arrives(&self, from: Actor, to: Actor, connection: u64) -> bool {
        let link = self.get(from, to);
        !link.blocked && link.connection == connection
    }

    /// Decides what becomes of a message that is sent now.
    pub fn send(&mut self, now: WorldTime, from: Actor, to: Actor) -> Fate {
        let Link { config, blocked, connection, last_arrival } = self.get(from, to);
        let link = config.unwrap_or(self.default);
        let lost = blocked || self.prng.chance(u64::from(link.loss_ppm), 1_000_000);
        if lost && link.datagram {
            return Fate::Lost;
        }
        if lost {
            self.break_stream(from, to);
            return self.broken(now, from, to);
        }
        let mut at = now + link.latency.sample(&mut self.prng);
        if !link.datagram {
            // Equal times keep the order of sending: the world's queue is first in, first out.
            at = at.max(last_arrival);
            self.get_mut(from, to).last_arrival = at;
        }
        let repeated = link.datagram && self.prng.chance(u64::from(link.repeat_ppm), 1_000_000);
        let again = repeated.then(|| Flight { at: now + link.latency.sample(&mut self.prng), connection });
        Fate::Arrives(Flight { at, connection }, again)
    }

    /// When the two ends of a broken stream learn of it.
    pub fn broken(&mut self, now: WorldTime, from: Actor, to: Actor) -> Fate {
        let delay = self.link(from, to).broken_after;
        let mut when = || now + delay.sample(&mut self.prng);
        Fate::Broken(when(), when())
    }
}
