//! Faults that wait for the moment in which they hurt most.

use crate::world::setup::Flavour;
use crate::world::{Local, Phase, Sim, replicas};
use holdfast_journal::memory::Loss;
use holdfast_sim::{Actor, WorldTime};
use holdfast_storage_core::local::{Change, LocalOp};
use holdfast_types::{GroupId, MemberId};
use holdfast_wire::chunk::{ChunkOp, ChunkRequest};
use std::time::Duration;

/// Bytes of a write that others are likely to meet.
const LARGE_WRITE_BYTES: usize = 8 << 10;

/// A fault that waits for its moment.
#[derive(Clone, Debug)]
pub(in crate::world) enum Ambush {
    /// A change was acknowledged: every member of its group loses power, and the primary stays away for long. The others must have it.
    Acknowledged { primary: Actor, others: Vec<usize> },
    /// A promotion was asked for: the primary hears neither of the outcome nor of the member, and goes on. If it then acknowledges a
    /// change, the member is left alone.
    Promoting { primary: Actor, member: Actor, group: GroupId },
    /// All others lose power for long: what was acknowledged must be here.
    LeftAlone { member: Actor },
    /// A client has asked for a change: the node stops before it hears of that. When it goes on, others have taken over from it and made
    /// the change, and perhaps later ones in its place.
    Overtaken { node: Actor },
    /// A change has reached one member and not the one that leads next: the primary dies. What the two have must be made the same, and
    /// the next primary's numbers must be new to both.
    HalfSent { primary: Actor },
    /// A disk has made a checkpoint, and writes over what that covers: its power fails meanwhile. Whatever was written over without being
    /// in the journal is torn, and no journal puts it right.
    Overwriting { node: usize },
}

/// What nobody should do, and what follows if somebody does.
#[derive(Clone, Debug)]
pub(in crate::world) struct Lure {
    /// It is over then.
    until: WorldTime,
    /// A change of this group acknowledged by this node springs the ambush.
    group: GroupId,
    primary: Actor,
    ambush: Ambush,
}

impl Sim {
    /// A node is about to acknowledge a change: perhaps an ambush waits for that.
    pub(in crate::world) fn acknowledging(&mut self, primary: Actor, group: GroupId) {
        let now = self.world.now();
        let lured = |lure: &Lure| now < lure.until && (lure.primary, lure.group) == (primary, group);
        if let Some(lure) = self.lure.take_if(|lure| lured(lure)) {
            // The client gets its answer, and no disk gets any further.
            return self.lie_in_wait(Duration::from_millis(2), lure.ambush);
        }
        let waits = matches!(self.setup.flavour, Flavour::PowerCuts | Flavour::Mixed) && self.may_ambush();
        if !waits {
            return;
        }
        let others = self.other_members(primary, group);
        // The best moment is when the others' disks are at work, and the client has the answer.
        if others.is_empty() || !others.iter().all(|at| self.nodes[*at].is_writing()) {
            return;
        }
        self.lie_in_wait(Duration::from_millis(2), Ambush::Acknowledged { primary, others });
    }

    /// A node asks for a member's promotion.
    pub(in crate::world) fn promoting(&mut self, primary: Actor, group: GroupId, member: MemberId) {
        let waits = matches!(self.setup.flavour, Flavour::Members | Flavour::Reboots) && self.may_ambush();
        // Only with another member can it acknowledge anything without the one that is promoted.
        if waits && !self.other_members(primary, group).is_empty() {
            let member = self.nodes[member.node.0 as usize - 1].actor;
            self.lie_in_wait(Duration::from_micros(1), Ambush::Promoting { primary, member, group });
        }
    }

    /// Nodes other than the primary that a group has in sync.
    fn other_members(&self, primary: Actor, group: GroupId) -> Vec<usize> {
        let Some(view) = self.leaders_map().and_then(|map| map.view(group).cloned()) else { return Vec::new() };
        let members = view.in_sync.iter().map(|member| member.node.0 as usize - 1);
        members.filter(|at| self.nodes[*at].actor != primary).collect()
    }

    /// A client asks a node for a change.
    pub(in crate::world) fn changing(&mut self, node: Actor, request: &ChunkRequest, bytes: usize) {
        if matches!(self.setup.flavour, Flavour::PowerCuts | Flavour::Mixed) && self.may_ambush() && bytes > 0 {
            self.slow_down_others(node, request.group);
        }
        let halves = matches!(self.setup.flavour, Flavour::Votes | Flavour::Rebuild | Flavour::Reboots);
        if halves && self.may_ambush() && bytes > 0 && self.prng.chance(1, 8) {
            return self.send_half(node, request.group);
        }
        let waits = matches!(self.setup.flavour, Flavour::Zombies | Flavour::LostAnswers | Flavour::Leaders)
            && self.may_ambush();
        if waits && matches!(request.op, ChunkOp::Write { .. }) && bytes >= LARGE_WRITE_BYTES && self.prng.chance(1, 2)
        {
            self.lie_in_wait(Duration::from_micros(1), Ambush::Overtaken { node });
        }
    }

    /// A client's change is on its way to a primary: the member that leads after it does not get it.
    fn send_half(&mut self, primary: Actor, group: GroupId) {
        let Some(map) = self.leaders_map() else { return };
        let (Some(view), Some(homes)) = (map.view(group), map.homes.get(group.0 as usize)) else { return };
        let leads = self.nodes.iter().any(|node| node.actor == primary && node.id == view.primary.node);
        let next = homes
            .iter()
            .map(|(node, _)| *node)
            .find(|node| *node != view.primary.node && view.in_sync.iter().any(|member| member.node == *node));
        let Some(next) = next.filter(|_| leads && view.in_sync.len() == 3) else { return };
        let length = self.length(300, 600);
        self.block_for(primary, self.nodes[next.0 as usize - 1].actor, length);
        // By then the third member has it.
        self.lie_in_wait(Duration::from_millis(10), Ambush::HalfSent { primary });
    }

    /// A primary begins to catch up a member: its own disk is slow for a moment, so that changes are under way while chunks are copied.
    pub(in crate::world) fn catching_up(&mut self, at: usize) {
        let aims = matches!(self.setup.flavour, Flavour::Members | Flavour::Reboots | Flavour::Rebuild);
        let idle = self.disks_slow.as_ref().is_none_or(|(until, _)| self.world.now() > *until);
        if aims && idle && self.phase == Phase::Hostile {
            let until = self.world.now() + self.length(20, 150);
            self.disks_slow = Some((until, vec![at]));
        }
    }

    /// A disk begins a batch, which takes so long.
    pub(in crate::world) fn overwriting(&mut self, at: usize, batch: Duration) {
        if !matches!(self.setup.flavour, Flavour::Votes | Flavour::Rebuild) || !self.may_ambush() {
            return;
        }
        let Some(life) = self.nodes[at].life.as_ref().filter(|life| life.checkpointed) else { return };
        let over = |op: &LocalOp| match op.change {
            Change::Write { chunk, offset, .. } => {
                let there = || replicas::list(&life.store, op.group).unwrap_or_default();
                op.change.bytes() < LARGE_WRITE_BYTES
                    && !life.touched.contains(&(op.group, chunk))
                    && there().iter().any(|found| found.chunk == chunk && found.length > offset)
            }
            _ => false,
        };
        if life.writing.iter().any(|(_, op)| over(op)) {
            self.lie_in_wait(batch / 2, Ambush::Overwriting { node: at });
        }
    }

    /// The disks of all members but one are slow for a moment. A change that is acknowledged meanwhile, they do not have.
    fn slow_down_others(&mut self, primary: Actor, group: GroupId) {
        let others = self.other_members(primary, group);
        if others.is_empty() || self.prng.chance(1, 2) {
            return;
        }
        let until = self.world.now() + self.length(20, 100);
        self.disks_slow = Some((until, others.clone()));
        self.lure = Some(Lure { until, group, primary, ambush: Ambush::Acknowledged { primary, others } });
        self.ambush_after = until + Duration::from_millis(500);
    }

    /// Whether an actor is not told of a new map.
    pub(in crate::world) fn is_map_held(&self, asker: Actor) -> bool {
        self.maps_held.is_some_and(|(until, but)| self.world.now() < until && asker != but)
    }

    fn may_ambush(&self) -> bool {
        self.phase == Phase::Hostile && self.world.now() > self.ambush_after
    }

    fn lie_in_wait(&mut self, delay: Duration, ambush: Ambush) {
        // What a power cut took must be missed before it comes back; then the next one may follow.
        let soon = self.setup.flavour == Flavour::PowerCuts || matches!(ambush, Ambush::Overwriting { .. });
        let pause = if soon { 3 } else { 8 };
        self.ambush_after = self.world.now() + Duration::from_secs(pause);
        self.stats.faults += 1;
        self.world.after(self.director, delay, Local::Ambush(ambush));
    }

    /// The moment has come.
    pub(in crate::world) fn spring(&mut self, ambush: &Ambush) {
        if self.phase != Phase::Hostile {
            return;
        }
        self.world.trace().note(&[], || format!("ambush {ambush:?}"));
        match ambush {
            Ambush::Acknowledged { others, .. } if !others.iter().all(|at| self.nodes[*at].is_writing()) => {
                self.ambush_after = self.world.now();
                return;
            }
            Ambush::Acknowledged { primary, others } => {
                // The others are taken back without it after six seconds, or as long again when the leader changes meanwhile.
                let long = self.length(11_000, 18_000);
                self.keep_away(*primary, long);
                self.crash_for(*primary, Loss::Power, long);
                for other in others {
                    let down = self.length(5, 300);
                    self.crash_for(self.nodes[*other].actor, Loss::Power, down);
                }
            }
            Ambush::Promoting { primary, member, group } => {
                let length = self.length(1_000, 1_900);
                self.part_for(*primary, &[*member], length);
                // As long as nobody else in the group has heard of it, either, what is written goes on being acknowledged.
                self.maps_held = Some((self.world.now() + length, *member));
                for server in 0..self.servers.len() {
                    self.block_for(self.servers[server].actor, *primary, length);
                }
                let ambush = Ambush::LeftAlone { member: *member };
                self.lure = Some(Lure { until: self.world.now() + length, group: *group, primary: *primary, ambush });
                // It is tried again soon when it comes to nothing.
                self.ambush_after = self.world.now() + length + Duration::from_secs(1);
            }
            Ambush::HalfSent { primary } => {
                let long = self.length(4_000, 7_000);
                self.keep_away(*primary, long);
                self.crash_for(*primary, Loss::Power, long);
            }
            Ambush::Overwriting { node } if !self.nodes[*node].is_writing() => {
                self.ambush_after = self.world.now();
                return;
            }
            Ambush::Overwriting { node } => {
                let down = self.length(5, 300);
                self.crash_for(self.nodes[*node].actor, Loss::Power, down);
            }
            Ambush::Overtaken { node } => {
                let length = self.length(5_000, 9_000);
                self.keep_away(*node, length);
                self.stop_for(*node, length);
            }
            Ambush::LeftAlone { member } => {
                for node in 0..self.nodes.len() {
                    let (actor, down) = (self.nodes[node].actor, self.length(9_000, 15_000));
                    if actor != *member {
                        self.keep_away(actor, down);
                        self.crash_for(actor, Loss::Power, down);
                    }
                }
            }
        }
        self.stats.ambushes += 1;
    }
}
