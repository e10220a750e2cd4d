//! What goes wrong: a nemesis for each kind of actor, and a director that aims at whoever leads or serves just now.

mod acts;
mod ambush;
mod rot;

use super::{Local, Phase, Sim};
pub(super) use ambush::{Ambush, Lure};
use holdfast_journal::memory::Loss;
use holdfast_sim::{Actor, Fault, FaultBudget, Latency, LinkConfig, Nemesis, WorldTime};
use std::time::Duration;

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
}
