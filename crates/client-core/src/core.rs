//! The one owner of everything the client knows.

use crate::{Config, Effect, Input};
use holdfast_types::Instant;
use std::time::Duration;

/// A client of one volume.
pub struct ClientCore {
    config: Config,
}

impl ClientCore {
    /// A client that has not said anything yet; its first `step` (a `Tick`, or any call) begins the session.
    ///
    /// # Panics
    /// When `config` names no server, or its request size is not a power of two within a chunk.
    pub fn new(config: Config, now: Instant, seed: u64) -> Self {
        let _ = (now, seed);
        Self { config }
    }

    /// Takes one input and appends the effects it calls for, in the order they must start. `now` never goes back.
    pub fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        let _ = (now, input, effects, &self.config);
    }

    /// For how long answers given now may be cached above (kernel entries, attributes): until the lease runs out. Zero: not at all.
    pub fn cache_ttl(&self, now: Instant) -> Duration {
        let _ = now;
        Duration::ZERO
    }
}
