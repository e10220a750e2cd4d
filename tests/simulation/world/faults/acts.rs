//! What the director does, and how often in which world.

use crate::world::rebuild::Change;
use crate::world::setup::Flavour;
use crate::world::slow::Slow;
use crate::world::{Local, Phase, Sim};
use holdfast_journal::memory::Loss;
use holdfast_sim::{Actor, Fault, Latency};
use std::time::Duration;

/// Something aimed at somebody.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// All servers and nodes lose power.
    PowerCut,
    /// All storage nodes do.
    StoragePowerCut,
    CrashLeader,
    StopLeader,
    /// All metadata servers stop together, as on a host that is suspended: when they go on, the leader still leads.
    StopServers,
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
            Self::Leaders => &[
                CrashLeader,
                StopLeader,
                IsolateLeader,
                IsolateLeader,
                IsolateLeader,
                StopLeader,
                CutClient,
                StopServers,
            ],
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
    /// The director acts, and will again.
    pub(in crate::world) fn act(&mut self) {
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
            Act::StopServers => self.stop_together(servers),
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
            Act::Rolling => self.crash_in_turn(nodes),
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

    fn crash_in_turn(&mut self, nodes: Vec<Actor>) {
        let mut at = Duration::ZERO;
        for node in nodes {
            self.undo(at, Fault::Crash(node));
            let down = self.length(20, 1_500);
            self.undo(at + down, Fault::Restart(node));
            at += self.length(200, 3_000);
        }
    }

    /// For longer than a storage node's silence is borne.
    fn stop_together(&mut self, servers: Vec<Actor>) {
        let length = self.length(2_600, 5_000);
        for server in servers {
            self.stop_for(server, length);
        }
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
