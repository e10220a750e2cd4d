//! Storage nodes come, are emptied, stay away and go for good, while others fail: the acts of one flavour, and what must be so at the end.

use super::node::DISK;
use super::{Phase, Sim};
use holdfast_journal::memory::Loss;
use holdfast_metadata_core::{Caller, Input};
use holdfast_sim::{Actor, WorldTime};
use holdfast_storage_core::local::{KeyRange, LocalCommand, LocalOutcome};
use holdfast_types::{GroupId, NodeId, Sequence, SessionId, ShardId, Term};
use holdfast_wire::admin::StoragePlace;
use holdfast_wire::metadata::{Envelope, Request};
use std::time::Duration;

/// Names of administrators' requests: nobody waits for their answers.
const ADMIN: u64 = 1 << 60;
/// Everything is at home so soon after all was healed and clients have left.
const AT_HOME_WITHIN: Duration = Duration::from_secs(180);

/// What is done with the pool.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// The node that was not there at first comes.
    Join,
    /// A node is to be emptied.
    Drain,
    /// All nodes that were to be emptied are used again.
    Undo,
    /// A node is to go for good.
    Remove,
    /// A node stays away for longer than it may.
    LongAway,
}

impl Sim {
    /// The node that comes later is not there yet.
    pub(super) fn hold_back(&mut self, at: usize) {
        let actor = self.nodes[at].actor;
        self.world.crash(actor);
    }

    pub(super) fn change_pool(&mut self, change: Change) {
        let nodes: Vec<Actor> = self.nodes.iter().map(|node| node.actor).collect();
        let any = NodeId(self.prng.between(1, nodes.len() as u64));
        match change {
            Change::Join => nodes.into_iter().for_each(|actor| self.restart_if_free(actor)),
            Change::Drain => self.place_storage(any, StoragePlace::Draining),
            Change::Undo => {
                for node in 1..=nodes.len() as u64 {
                    self.place_storage(NodeId(node), StoragePlace::In);
                }
            }
            Change::Remove if self.stats.removals_asked == 0 => {
                self.stats.removals_asked += 1;
                self.place_storage(any, StoragePlace::Leaving { successor: None });
            }
            Change::Remove => {}
            Change::LongAway => {
                let actor = nodes[any.0 as usize - 1];
                let over = self.prng.between(1_000, 15_000);
                let length = self.setup.out_after + Duration::from_millis(3_000 + over);
                self.leave_for_long(actor, Loss::Power, length);
            }
        }
    }

    /// An administrator asks whoever leads.
    fn place_storage(&mut self, node: NodeId, place: StoragePlace) {
        let Some(leader) = self.leader_of(0) else { return };
        let request = ADMIN + self.next_call();
        let envelope = Envelope {
            shard: ShardId::CLUSTER,
            session: SessionId::NONE,
            sequence: Sequence(0),
            answered_below: Sequence(0),
            term: Term(0),
            request: Request::PlaceStorage { node, place },
        };
        let deadline = self.world.local_now(self.servers[leader].actor) + Duration::from_secs(5);
        self.server_input(leader, Input::Request { request, from: Caller::Admin, envelope, deadline });
    }

    /// What is not as it should be when nothing goes wrong any more: groups on their way, or copies that nobody needs.
    pub(super) fn away_from_home(&self) -> Option<String> {
        let map = self.leaders_map()?;
        for (number, (view, homes)) in map.views.iter().zip(&map.homes).enumerate() {
            let group = GroupId(number as u32);
            if homes.len() != map.replicas as usize || !view.syncing.is_empty() {
                return Some(format!("{group} is on its way: {homes:?} {view:?}"));
            }
            for node in self.nodes.iter().filter(|node| !homes.contains(&(node.id, DISK))) {
                let Some(life) = &node.life else { continue };
                let list = LocalCommand::List { group, range: KeyRange::ALL, limit: 1 };
                match life.store.reader().serve(&list) {
                    Ok(LocalOutcome::Chunks { chunks }) if chunks.is_empty() => {}
                    other => return Some(format!("{} still has of {group}: {other:?}", node.id)),
                }
            }
        }
        None
    }

    /// Whether everything is at home, or may still take its time.
    pub(super) fn is_at_home(&mut self) -> Result<bool, String> {
        assert_eq!(self.phase, Phase::Settling, "asked at the end");
        let since = *self.settling_since.get_or_insert(self.world.now());
        match self.away_from_home() {
            None => Ok(true),
            Some(reason) if self.world.now().since(since) > AT_HOME_WITHIN => Err(reason),
            Some(_) => Ok(false),
        }
    }
}

/// When settling began, if it has.
pub(super) type Since = Option<WorldTime>;
