//! What goes wrong: a nemesis for each kind of actor, and a director that aims at whoever leads or serves just now.
// tidy: long because each fault is a few lines, and the director draws from all of them

use super::rebuild::Change;
use super::setup::Flavour;
use super::slow::Slow;
use super::{Local, Phase, Sim};
use holdfast_journal::memory::Loss;
use holdfast_sim::{Actor, Fault, FaultBudget, Latency, LinkConfig, Nemesis, WorldTime};
use holdfast_storage_core::local::ChunkSummary;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{GroupId, MemberId};
use holdfast_wire::chunk::{ChunkOp, ChunkRequest};
use holdfast_wire::map::View;
use std::time::Duration;

/// Bytes of a write that others are likely to meet.
const LARGE_WRITE_BYTES: usize = 8 << 10;

/// Links between metadata servers: they lose, repeat and reorder.
pub(super) fn datagram_link() -> LinkConfig {
    LinkConfig {
        latency: Latency::between(Duration::from_micros(50), Duration::from_millis(1)),
        loss_ppm: 5_000,
        repeat_ppm: 10_000,
        datagram: true,
        ..LinkConfig::default()
    }
}

/// All other links: connections that break now and then.
pub(super) fn stream_link() -> LinkConfig {
    LinkConfig { loss_ppm: 100, ..LinkConfig::default() }
}

/// Something aimed at somebody.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// All servers and nodes lose power.
    PowerCut,
    /// All storage nodes do.
    StoragePowerCut,
    CrashLeader,
    StopLeader,
    /// The leader hears and is heard by nobody, or by clients only.
    IsolateLeader,
    /// A new leader is isolated while all others lose power.
    CycleFollowers,
    RebootNode,
    CrashNode,
    CrashTwoNodes,
    StopNode,
    /// A node hears and is heard by no metadata server, but by all others.
    OrphanNode,
    /// A node and another one do not hear each other.
    CutNodes,
    /// A node answers nobody, and hears everybody.
    MuteNode,
    /// A server's, or node's, answers to a client are lost.
    MuteToClient,
    /// A client is cut off from everybody.
    CutClient,
    StopClient,
    /// One node after the other loses power, each before the last one is back for long.
    Rolling,
    /// The pool is changed on purpose, or a node is given up.
    Pool(Change),
    /// A disk or a node takes its time.
    SlowDown(Slow),
}

/// A fault that waits for its moment.
#[derive(Clone, Debug)]
pub(super) enum Ambush {
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
}

/// What nobody should do, and what follows if somebody does.
#[derive(Clone, Debug)]
pub(super) struct Lure {
    /// It is over then.
    until: WorldTime,
    /// A change of this group acknowledged by this node springs the ambush.
    group: GroupId,
    primary: Actor,
    ambush: Ambush,
}

impl Flavour {
    fn acts(self) -> &'static [Act] {
        use Act::*;
        match self {
            Self::Mixed => &[
                PowerCut,
                CrashLeader,
                StopLeader,
                IsolateLeader,
                RebootNode,
                CrashNode,
                CrashTwoNodes,
                StopNode,
                OrphanNode,
                CutNodes,
                MuteNode,
                MuteToClient,
                CutClient,
                StopClient,
                Rolling,
            ],
            Self::Leaders => {
                &[CrashLeader, StopLeader, IsolateLeader, IsolateLeader, IsolateLeader, StopLeader, CutClient]
            }
            Self::Votes => &[CycleFollowers, CycleFollowers, CycleFollowers, CrashLeader, IsolateLeader],
            Self::Members => &[CrashNode, CrashTwoNodes, Rolling, Rolling, MuteNode, RebootNode, OrphanNode],
            Self::Reboots => &[RebootNode, RebootNode, RebootNode, CutNodes, CrashTwoNodes],
            Self::PowerCuts => &[PowerCut, PowerCut, StoragePowerCut, StoragePowerCut, CrashLeader, RebootNode],
            Self::LostAnswers => &[MuteToClient, MuteToClient, MuteToClient, MuteToClient, CrashLeader, CutClient],
            Self::Rebuild => &[
                Pool(Change::Join),
                Pool(Change::Drain),
                Pool(Change::Drain),
                Pool(Change::Undo),
                Pool(Change::Remove),
                Pool(Change::LongAway),
                Pool(Change::LongAway),
                CrashNode,
                RebootNode,
                Rolling,
                CrashTwoNodes,
                CutNodes,
                CrashLeader,
                PowerCut,
            ],
            Self::Slow => &[
                SlowDown(Slow::Disk),
                SlowDown(Slow::Disk),
                SlowDown(Slow::Reads),
                SlowDown(Slow::Node),
                CrashNode,
                CutNodes,
                CrashLeader,
                PowerCut,
            ],
            Self::Zombies => &[OrphanNode, OrphanNode, StopNode, StopNode, CutClient, StopClient, MuteNode, CutNodes],
        }
    }
}

impl Sim {
    /// Schedules all faults of a hostile phase.
    pub(super) fn unleash(&mut self, until: WorldTime) {
        let servers: Vec<Actor> = self.servers.iter().map(|server| server.actor).collect();
        let nodes: Vec<Actor> = self.nodes.iter().map(|node| node.actor).collect();
        let clients: Vec<Actor> = self.clients[..3].iter().map(|client| client.actor).collect();
        let everyone: Vec<Actor> = servers.iter().chain(&nodes).chain(&clients).copied().collect();
        let gap = Latency::between(Duration::from_millis(200), Duration::from_secs(6));
        let length = Latency::between(Duration::from_millis(10), Duration::from_secs(6));
        let budget = FaultBudget {
            crashes_max: 2,
            stops_max: 2,
            cuts_max: 3,
            slow_max: 2,
            drifts_max: 3,
            drift_ppm_max: 300,
            gap,
            length,
            ..FaultBudget::none()
        };
        for (label, victims, crashes_max) in [(11, servers, 2), (12, nodes, 3), (13, clients, 0)] {
            let budget = FaultBudget { crashes_max, ..budget };
            let mut nemesis = Nemesis::new(self.world.prng(label), &victims, &everyone, budget);
            self.stats.faults += nemesis.unleash(&mut self.world, until).len() as u64 / 2;
        }
        self.world.after(self.director, Duration::from_secs(4), Local::Act);
        self.world.after(self.director, until.since(self.world.now()), Local::Heal);
    }

    /// A fault of the plan is due.
    pub(super) fn fault(&mut self, fault: &Fault) {
        match fault {
            Fault::Crash(actor) => {
                let loss = if self.prng.chance(2, 3) { Loss::Power } else { Loss::Process };
                self.crash_actor(*actor, loss);
            }
            Fault::Restart(actor) | Fault::GoOn(actor) if self.is_kept_away(*actor) => {}
            Fault::Restart(actor) => self.restart_actor(*actor),
            Fault::Link { from, to, config } => {
                let datagram = self.server_of(*from).is_some() && self.server_of(*to).is_some();
                let base = if datagram { datagram_link() } else { stream_link() };
                let config = match config {
                    Some(slow) => LinkConfig {
                        latency: slow.latency,
                        loss_ppm: slow.loss_ppm / if datagram { 1 } else { 10 },
                        ..base
                    },
                    None => base,
                };
                self.world.network().set_link(*from, *to, Some(config));
            }
            other => self.world.apply(other),
        }
    }

    /// Ends an actor's life.
    pub(super) fn crash_actor(&mut self, actor: Actor, loss: Loss) {
        if !self.world.is_up(actor) {
            return;
        }
        self.world.crash(actor);
        self.streams.forget(actor);
        if let Some(at) = self.server_of(actor) {
            self.crash_server(at, loss);
        } else if let Some(at) = self.node_of(actor) {
            self.crash_node(at, loss);
        } else if let Some(at) = self.client_of(actor) {
            self.crash_client(at);
        }
    }

    /// Begins its next one.
    pub(super) fn restart_actor(&mut self, actor: Actor) {
        if self.world.is_up(actor) {
            return;
        }
        self.world.restart(actor);
        if let Some(at) = self.server_of(actor) {
            self.start_server(at);
        } else if let Some(at) = self.node_of(actor) {
            self.start_node(at);
        } else if let Some(at) = self.client_of(actor) {
            self.clients[at].script.state = super::script::State::Away;
            self.mount_later(at);
        }
    }

    /// Whether an ambush wants an actor away for longer: other faults, over sooner, do not bring it back.
    fn is_kept_away(&self, actor: Actor) -> bool {
        self.kept_away.get(&actor).is_some_and(|until| self.world.now() < *until)
    }

    /// It is away for so long, whatever else would bring it back.
    pub(super) fn leave_for_long(&mut self, actor: Actor, loss: Loss, length: Duration) {
        self.keep_away(actor, length);
        self.crash_for(actor, loss, length);
    }

    pub(super) fn restart_if_free(&mut self, actor: Actor) {
        if !self.is_kept_away(actor) {
            self.restart_actor(actor);
        }
    }

    fn keep_away(&mut self, actor: Actor, length: Duration) {
        self.kept_away.insert(actor, self.world.now() + length);
    }

    /// The hostile phase is over: all is whole again.
    pub(super) fn heal(&mut self) {
        self.phase = Phase::Healed;
        self.kept_away.clear();
        self.speed_up();
        self.world.network().unblock_all();
        self.set_links();
        for actor in (0..self.director.0).map(Actor) {
            if self.world.is_up(actor) && !self.world.is_running(actor) {
                self.world.go_on(actor);
            }
            self.restart_actor(actor);
        }
    }

    /// All links as they are when nothing is wrong.
    pub(super) fn set_links(&mut self) {
        self.world.network().set_default(stream_link());
        for from in 0..self.director.0 {
            for to in 0..self.director.0 {
                let both = self.server_of(Actor(from)).is_some() && self.server_of(Actor(to)).is_some();
                let config = if both { datagram_link() } else { stream_link() };
                self.world.network().set_link(Actor(from), Actor(to), Some(config));
            }
        }
    }

    /// The director acts, and will again.
    pub(super) fn act(&mut self) {
        if self.phase != Phase::Hostile {
            return;
        }
        let acts = self.setup.flavour.acts();
        let draw = self.prng.below(acts.len() as u64);
        let act = acts[draw as usize];
        self.stats.faults += 1;
        self.world.trace().note(&[draw], || format!("act {act:?}"));
        self.perform(act);
        if self.prng.chance(1, 2) && self.setup.rots {
            self.rot();
        }
        let gap = Latency::between(Duration::from_millis(300), Duration::from_millis(2_500)).sample(&mut self.prng);
        self.world.after(self.director, gap, Local::Act);
    }

    fn length(&mut self, ms_min: u64, ms_max: u64) -> Duration {
        Duration::from_millis(self.prng.between(ms_min, ms_max))
    }

    fn undo(&mut self, after: Duration, fault: Fault) {
        self.world.schedule_fault(self.world.now() + after, fault);
    }

    fn crash_for(&mut self, actor: Actor, loss: Loss, length: Duration) {
        self.crash_actor(actor, loss);
        self.undo(length, Fault::Restart(actor));
    }

    fn block_for(&mut self, from: Actor, to: Actor, length: Duration) {
        self.world.network().block(from, to);
        self.undo(length, Fault::Unblock { from, to });
    }

    fn part_for(&mut self, one: Actor, others: &[Actor], length: Duration) {
        for other in others.iter().filter(|other| **other != one) {
            self.block_for(one, *other, length);
            self.block_for(*other, one, length);
        }
    }

    fn stop_for(&mut self, actor: Actor, length: Duration) {
        self.world.stop(actor);
        self.undo(length, Fault::GoOn(actor));
    }

    fn any_node(&mut self) -> Actor {
        let at = self.prng.below(self.nodes.len() as u64) as usize;
        self.nodes[at].actor
    }

    fn any_client(&mut self) -> Actor {
        let at = self.prng.below(3) as usize;
        self.clients[at].actor
    }

    /// Whoever leads one of the shards.
    fn leader(&mut self) -> Option<Actor> {
        let shard = self.prng.below(4).min(1) as usize;
        self.leader_of(shard).map(|at| self.servers[at].actor)
    }

    fn perform(&mut self, act: Act) {
        let servers: Vec<Actor> = self.servers.iter().map(|server| server.actor).collect();
        let nodes: Vec<Actor> = self.nodes.iter().map(|node| node.actor).collect();
        match act {
            Act::Pool(change) => self.change_pool(change),
            Act::SlowDown(what) => self.slow_down(what),
            Act::PowerCut | Act::StoragePowerCut => {
                let servers = if matches!(act, Act::PowerCut) { servers } else { Vec::new() };
                for actor in servers.into_iter().chain(nodes) {
                    let length = self.length(5, 1_500);
                    self.crash_for(actor, Loss::Power, length);
                }
            }
            Act::CrashLeader => {
                let length = self.length(5, 3_000);
                if let Some(leader) = self.leader() {
                    self.crash_for(leader, Loss::Power, length);
                }
            }
            Act::StopLeader => self.stop_leader(&servers),
            Act::IsolateLeader => self.isolate_leader(&servers),
            Act::CycleFollowers => self.cycle_followers(&servers),
            Act::RebootNode | Act::CrashNode => {
                let longest = if matches!(act, Act::RebootNode) { 400 } else { 8_000 };
                let (node, length) = (self.any_node(), self.length(1, longest));
                self.crash_for(node, Loss::Power, length);
            }
            Act::CrashTwoNodes => {
                for _ in 0..2 {
                    let (node, length) = (self.any_node(), self.length(50, 4_000));
                    self.crash_for(node, Loss::Power, length);
                }
            }
            Act::Rolling => {
                let mut at = Duration::ZERO;
                for node in nodes {
                    self.undo(at, Fault::Crash(node));
                    let down = self.length(20, 1_500);
                    self.undo(at + down, Fault::Restart(node));
                    at += self.length(200, 3_000);
                }
            }
            Act::StopNode => {
                let (node, length) = (self.any_node(), self.length(100, 8_000));
                self.stop_for(node, length);
            }
            Act::OrphanNode => {
                let (node, length) = (self.any_node(), self.length(1_000, 8_000));
                self.part_for(node, &servers, length);
            }
            Act::CutNodes => {
                let (one, other, length) = (self.any_node(), self.any_node(), self.length(300, 6_000));
                self.part_for(one, &[other], length);
            }
            Act::MuteNode => {
                let (node, length) = (self.any_node(), self.length(300, 5_000));
                for other in nodes.into_iter().filter(|other| *other != node) {
                    self.block_for(node, other, length);
                }
            }
            Act::MuteToClient => {
                let client = self.any_client();
                let who = if self.prng.chance(2, 3) { *self.prng.pick(&servers) } else { *self.prng.pick(&nodes) };
                let length = self.length(100, 4_000);
                self.block_for(who, client, length);
            }
            Act::CutClient => {
                let (client, length) = (self.any_client(), self.length(500, 25_000));
                let others: Vec<Actor> = servers.into_iter().chain(nodes).collect();
                self.part_for(client, &others, length);
            }
            Act::StopClient => {
                let (client, length) = (self.any_client(), self.length(500, 25_000));
                self.stop_for(client, length);
            }
        }
    }

    /// Some blocks of one node's disk lose a bit: of a group that is whole, and always the same node's, so that others have them.
    fn rot(&mut self) {
        let at = (self.seed % self.nodes.len() as u64) as usize;
        let whole = |view: &View| view.in_sync.len() == 3 && view.in_sync.iter().any(|m| m.node == self.nodes[at].id);
        let Some(map) = self.leaders_map() else { return };
        let groups =
            map.views.iter().enumerate().filter(|(_, view)| whole(view)).map(|(group, _)| GroupId(group as u32));
        let groups: Vec<GroupId> = groups.collect();
        let Some(life) = self.nodes[at].life.as_ref().filter(|_| !groups.is_empty()) else { return };
        let group = *self.prng.pick(&groups);
        let mut chunks = super::replicas::list(&life.store, group).unwrap_or_default();
        // Those changed last are likely to be changed again.
        chunks.sort_by_key(|chunk| std::cmp::Reverse(chunk.number));
        let placed = |found: ChunkSummary| (found.chunk, life.store.places(group, &found.chunk));
        for (chunk, places) in chunks.into_iter().take(3).map(placed).collect::<Vec<_>>() {
            if places.is_empty() {
                continue;
            }
            let (block, file, offset) = self.prng.pick(&places);
            let offset = offset + self.prng.below(BLOCK_BYTES);
            if self.nodes[at].disk.flip_bit(file, offset).is_ok() {
                self.stats.damaged += 1;
                self.nodes[at].rotten.insert((group, chunk));
                let text = || format!("block {block} of {chunk} in {group} is damaged on node {}", at + 1);
                self.world.trace().note(&[u64::from(*block)], text);
            }
        }
    }

    /// A node is about to acknowledge a change: perhaps an ambush waits for that.
    pub(super) fn acknowledging(&mut self, primary: Actor, group: GroupId) {
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
    pub(super) fn promoting(&mut self, primary: Actor, group: GroupId, member: MemberId) {
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
    pub(super) fn changing(&mut self, node: Actor, request: &ChunkRequest, bytes: usize) {
        if matches!(self.setup.flavour, Flavour::PowerCuts | Flavour::Mixed) && self.may_ambush() && bytes > 0 {
            self.slow_down_others(node, request.group);
        }
        let waits = matches!(self.setup.flavour, Flavour::Zombies | Flavour::LostAnswers | Flavour::Leaders)
            && self.may_ambush();
        if waits && matches!(request.op, ChunkOp::Write { .. }) && bytes >= LARGE_WRITE_BYTES && self.prng.chance(1, 2)
        {
            self.lie_in_wait(Duration::from_micros(1), Ambush::Overtaken { node });
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
    pub(super) fn is_map_held(&self, asker: Actor) -> bool {
        self.maps_held.is_some_and(|(until, but)| self.world.now() < until && asker != but)
    }

    fn may_ambush(&self) -> bool {
        self.phase == Phase::Hostile && self.world.now() > self.ambush_after
    }

    fn lie_in_wait(&mut self, delay: Duration, ambush: Ambush) {
        // What a power cut took must be missed before it comes back; then the next one may follow.
        let pause = if self.setup.flavour == Flavour::PowerCuts { 3 } else { 8 };
        self.ambush_after = self.world.now() + Duration::from_secs(pause);
        self.stats.faults += 1;
        self.world.after(self.director, delay, Local::Ambush(ambush));
    }

    /// The moment has come.
    pub(super) fn spring(&mut self, ambush: &Ambush) {
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

    /// The leader stops while others go on; then it comes back, and does not hear of them at once.
    fn stop_leader(&mut self, servers: &[Actor]) {
        let length = self.length(300, 4_000);
        let Some(leader) = self.leader() else { return };
        self.stop_for(leader, length);
        if self.prng.chance(1, 2) {
            let longer = length + self.length(100, 2_000);
            self.part_for(leader, servers, longer);
        }
    }

    fn isolate_leader(&mut self, servers: &[Actor]) {
        let length = self.length(600, 4_000);
        let Some(leader) = self.leader() else { return };
        match self.prng.below(4) {
            // Clients still reach it.
            0 | 1 => self.part_for(leader, servers, length),
            // It still speaks, and hears no answer.
            2 => {
                for other in servers.iter().filter(|other| **other != leader) {
                    self.block_for(*other, leader, length);
                }
            }
            _ => {
                let everyone: Vec<Actor> = (0..self.director.0).map(Actor).collect();
                self.part_for(leader, &everyone, length);
            }
        }
    }

    /// Whoever leads is cut off, all others lose power for a moment: what they promised must survive.
    fn cycle_followers(&mut self, servers: &[Actor]) {
        let length = self.length(1_500, 4_000);
        let Some(leader) = self.leader() else { return };
        self.part_for(leader, servers, length);
        for other in servers.iter().filter(|other| **other != leader) {
            let down = self.length(1, 100);
            self.crash_for(*other, Loss::Power, down);
        }
    }
}
