//! One server: its two shards, and what they need of each other.

use crate::api::{Config, Counters, Effect, Input, Recovered, StartError};
use holdfast_types::{Instant, MapVersion, ServerId, ShardId};
use holdfast_wire::admin::ShardStatus;

/// The metadata service on one server. Owns both shards' raft nodes and state machines.
pub struct MetadataCore {
    config: Config,
    counters: Counters,
}

impl MetadataCore {
    /// Starts from what log and tables hold; `now` is the moment of the start.
    ///
    /// # Errors
    /// [`StartError`]: a configuration that makes no sense, or a log and a table that do not fit together.
    pub fn new(config: Config, _recovered: Recovered, _now: Instant) -> Result<Self, StartError> {
        Ok(Self { config, counters: Counters::default() })
    }

    /// Takes one input and appends the effects it calls for, in the order they must start.
    pub fn step(&mut self, _now: Instant, _input: Input, _effects: &mut Vec<Effect>) {}

    /// This server.
    pub fn id(&self) -> ServerId {
        self.config.id
    }

    /// Each shard's leader, term and progress, for status and tests.
    pub fn shards(&self) -> Vec<ShardStatus> {
        Vec::new()
    }

    /// Whether this server leads a shard, as far as it knows.
    pub fn leads(&self, _shard: ShardId) -> bool {
        false
    }

    /// Why a shard has stopped applying, if one has.
    pub fn halted(&self) -> Option<String> {
        None
    }

    /// Newest map version applied here, for metrics.
    pub fn map_version(&self) -> MapVersion {
        MapVersion::default()
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
