//! The node: one map, many groups.

use crate::api::{Config, Effect, Input};
use crate::local::GroupState;
use bytes::Bytes;
use holdfast_types::{DiskId, Instant, MapVersion};
use holdfast_wire::chunk::{ChunkAnswer, Refusal};
use holdfast_wire::map::{ClusterMap, MapUpdate};

/// All groups of one storage node.
#[derive(Debug)]
pub struct StorageCore {
    config: Config,
    map: ClusterMap,
    groups: Vec<(DiskId, GroupState)>,
}

impl StorageCore {
    /// A core that has no map yet and serves nothing. `groups`: what each disk's store knows, as told at its start.
    pub fn new(config: Config, groups: Vec<(DiskId, GroupState)>, _now: Instant) -> Self {
        Self { config, map: ClusterMap::default(), groups }
    }

    /// The version of the map it has; 0: none.
    pub fn map_version(&self) -> MapVersion {
        self.map.version
    }

    /// The map it has.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// Takes one input and appends the effects it calls for, in the order they must start.
    pub fn step(&mut self, _now: Instant, input: Input, effects: &mut Vec<Effect>) {
        let _ = (&self.config, &self.groups);
        match input {
            Input::Map(MapUpdate::Full(map)) => self.map = *map,
            Input::Request { id, .. } => effects.push(Effect::Answer {
                id,
                answer: ChunkAnswer::Refused(Refusal::NotServing { reason: "starting".into() }),
                payload: Bytes::new(),
            }),
            _ => {}
        }
    }
}
