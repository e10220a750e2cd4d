//! A nemesis: faults at random, within a budget, each taken back again, all healed at the end.
//!
//! It plans ahead: the plan is a list that can be printed, cut down and replayed. One nemesis per kind of actor (one for
//! metadata servers, one for storage nodes, one for clients) keeps each kind within what the design claims to survive.

use crate::clock::WorldTime;
use crate::latency::Latency;
use crate::network::LinkConfig;
use crate::world::{Actor, World};
use holdfast_types::prng::Prng;
use std::time::Duration;

/// Something that goes wrong, or right again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An actor loses its memory; power or process is the harness's choice.
    Crash(Actor),
    /// It starts again.
    Restart(Actor),
    /// An actor stops without knowing.
    Stop(Actor),
    /// It goes on.
    GoOn(Actor),
    /// One direction is cut.
    Block {
        /// Sender.
        from: Actor,
        /// Receiver.
        to: Actor,
    },
    /// One direction is whole again.
    Unblock {
        /// Sender.
        from: Actor,
        /// Receiver.
        to: Actor,
    },
    /// A clock changes its rate. Not taken back: clocks drift.
    Drift {
        /// Whose clock.
        actor: Actor,
        /// Parts per million fast.
        rate_ppm: i32,
    },
    /// One direction behaves differently; `None`: as all others again.
    Link {
        /// Sender.
        from: Actor,
        /// Receiver.
        to: Actor,
        /// How.
        config: Option<LinkConfig>,
    },
}

/// How much may go wrong.
#[derive(Clone, Copy, Debug)]
pub struct FaultBudget {
    /// Victims that are crashed, stopped, cut off or slow at the same time.
    pub at_once_max: usize,
    /// Crashes in all.
    pub crashes_max: u32,
    /// Stops in all.
    pub stops_max: u32,
    /// Cuts in all: of one direction or both, from one peer, some or all.
    pub cuts_max: u32,
    /// Slow and lossy links in all.
    pub slow_max: u32,
    /// Changes of a clock's rate in all.
    pub drifts_max: u32,
    /// Clocks are at the most so much fast or slow, in parts per million.
    pub drift_ppm_max: u32,
    /// Quiet time between two faults.
    pub gap: Latency,
    /// How long a fault lasts.
    pub length: Latency,
}

impl FaultBudget {
    /// Nothing goes wrong. The start for a budget that names only what it allows.
    pub fn none() -> Self {
        Self {
            at_once_max: 1,
            crashes_max: 0,
            stops_max: 0,
            cuts_max: 0,
            slow_max: 0,
            drifts_max: 0,
            drift_ppm_max: 100,
            gap: Latency::between(Duration::from_millis(100), Duration::from_secs(3)),
            length: Latency::between(Duration::from_millis(10), Duration::from_secs(15)),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Crash,
    Stop,
    Cut,
    Slow,
    Drift,
}

/// Plans faults for some actors.
#[derive(Clone, Debug)]
pub struct Nemesis {
    victims: Vec<Actor>,
    everyone: Vec<Actor>,
    budget: FaultBudget,
    prng: Prng,
}

impl Nemesis {
    /// One that hurts `victims`; their links to `everyone` are its to cut.
    pub fn new(prng: Prng, victims: &[Actor], everyone: &[Actor], budget: FaultBudget) -> Self {
        Self { victims: victims.to_vec(), everyone: everyone.to_vec(), budget, prng }
    }

    /// Schedules a plan in a world and returns it. After `until` everything is whole again, except for drift.
    pub fn unleash<M: Clone, L>(&mut self, world: &mut World<M, L>, until: WorldTime) -> Vec<(WorldTime, Fault)> {
        let plan = self.plan(world.now(), until);
        for (at, fault) in &plan {
            world.schedule_fault(*at, fault.clone());
        }
        plan
    }

    /// Plans faults between two moments, in order of time. Each is taken back at the latest at `until`.
    pub fn plan(&mut self, from: WorldTime, until: WorldTime) -> Vec<(WorldTime, Fault)> {
        let mut plan: Vec<(WorldTime, Fault)> = Vec::new();
        let mut busy: Vec<(Actor, WorldTime)> = Vec::new();
        let mut now = from;
        loop {
            now = now + self.budget.gap.sample(&mut self.prng);
            if now >= until {
                break;
            }
            busy.retain(|(_, end)| *end > now);
            let free: Vec<Actor> =
                self.victims.iter().copied().filter(|v| busy.iter().all(|(actor, _)| actor != v)).collect();
            if free.is_empty() || busy.len() >= self.budget.at_once_max {
                continue;
            }
            let Some(kind) = self.draw_kind() else { break };
            let victim = *self.prng.pick(&free);
            let end = (now + self.budget.length.sample(&mut self.prng)).min(until);
            let pairs = self.draw(kind, victim);
            if !matches!(kind, Kind::Drift) {
                busy.push((victim, end));
            }
            for (fault, undo) in pairs {
                plan.push((now, fault));
                plan.extend(undo.map(|undo| (end, undo)));
            }
        }
        plan.sort_by_key(|(at, _)| *at);
        plan
    }

    /// A kind that is left in the budget, which it is then taken from.
    fn draw_kind(&mut self) -> Option<Kind> {
        let budget = &mut self.budget;
        let mut left: Vec<(Kind, &mut u32)> = vec![
            (Kind::Crash, &mut budget.crashes_max),
            (Kind::Stop, &mut budget.stops_max),
            (Kind::Cut, &mut budget.cuts_max),
            (Kind::Slow, &mut budget.slow_max),
            (Kind::Drift, &mut budget.drifts_max),
        ];
        left.retain(|(_, count)| **count > 0);
        if left.is_empty() {
            return None;
        }
        let (kind, count) = left.swap_remove(self.prng.below(left.len() as u64) as usize);
        *count -= 1;
        Some(kind)
    }

    /// Faults that make up one of a kind, each with what takes it back.
    fn draw(&mut self, kind: Kind, victim: Actor) -> Vec<(Fault, Option<Fault>)> {
        match kind {
            Kind::Crash => vec![(Fault::Crash(victim), Some(Fault::Restart(victim)))],
            Kind::Stop => vec![(Fault::Stop(victim), Some(Fault::GoOn(victim)))],
            Kind::Drift => {
                let max = i64::from(self.budget.drift_ppm_max);
                let rate = self.prng.below(2 * max as u64 + 1) as i64 - max;
                vec![(Fault::Drift { actor: victim, rate_ppm: rate as i32 }, None)]
            }
            Kind::Cut => self
                .draw_links(victim)
                .into_iter()
                .map(|(from, to)| (Fault::Block { from, to }, Some(Fault::Unblock { from, to })))
                .collect(),
            Kind::Slow => {
                let config = LinkConfig {
                    latency: Latency::between(Duration::from_millis(1), Duration::from_millis(500)),
                    loss_ppm: *self.prng.pick(&[0, 10_000, 200_000]),
                    ..LinkConfig::default()
                };
                self.draw_links(victim)
                    .into_iter()
                    .map(|(from, to)| {
                        let link = |config| Fault::Link { from, to, config };
                        (link(Some(config)), Some(link(None)))
                    })
                    .collect()
            }
        }
    }

    /// Directions between the victim and one peer, some or all: outward, inward or both.
    fn draw_links(&mut self, victim: Actor) -> Vec<(Actor, Actor)> {
        let mut peers: Vec<Actor> = self.everyone.iter().copied().filter(|actor| *actor != victim).collect();
        self.prng.shuffle(&mut peers);
        let count = match self.prng.below(3) {
            0 => 1,
            1 => peers.len(),
            _ => self.prng.between(0, peers.len() as u64) as usize,
        };
        peers.truncate(count);
        peers.sort_unstable();
        let directions = self.prng.below(3);
        let mut links = Vec::new();
        for peer in peers {
            if directions != 0 {
                links.push((victim, peer));
            }
            if directions != 1 {
                links.push((peer, victim));
            }
        }
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_plan_keeps_its_budget_and_takes_everything_back() {
        let actors: Vec<Actor> = (0..5).map(Actor).collect();
        let budget = FaultBudget {
            at_once_max: 2,
            crashes_max: 5,
            stops_max: 5,
            cuts_max: 5,
            slow_max: 5,
            drifts_max: 5,
            ..FaultBudget::none()
        };
        for seed in 0..50 {
            let until = WorldTime::after_start(Duration::from_secs(300));
            let plan = Nemesis::new(Prng::new(seed), &actors[..3], &actors, budget).plan(WorldTime(0), until);
            let mut hurt: BTreeSet<String> = BTreeSet::new();
            let mut victims: BTreeSet<Actor> = BTreeSet::new();
            let mut crashes = 0;
            for (at, fault) in &plan {
                assert!(*at <= until);
                let (name, begins) = match fault {
                    Fault::Crash(a) | Fault::Stop(a) => (format!("{a}"), victims.insert(*a)),
                    Fault::Restart(a) | Fault::GoOn(a) => (format!("{a}"), !victims.remove(a)),
                    Fault::Block { from, to } => (format!("{from}-{to}"), true),
                    Fault::Unblock { from, to } => (format!("{from}-{to}"), false),
                    Fault::Link { from, to, config } => (format!("{from}={to}"), config.is_some()),
                    Fault::Drift { rate_ppm, .. } => {
                        assert!(rate_ppm.abs() <= 100);
                        continue;
                    }
                };
                crashes += u32::from(matches!(fault, Fault::Crash(_)));
                assert!(victims.len() <= 2 && victims.iter().all(|victim| victim.0 < 3), "seed {seed}");
                let _ = if begins { hurt.insert(name) } else { hurt.remove(&name) };
            }
            assert!(crashes <= 5 && hurt.is_empty(), "seed {seed}: {hurt:?} stay");
            assert!(plan.len() > 10, "seed {seed}: only {}", plan.len());
        }
    }
}
