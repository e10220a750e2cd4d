//! A world in which one node is slow for a while, and nothing else goes wrong.

use super::{Failure, Outcome, Sim, judged};
use crate::world::setup::{Flavour, Setup};
use crate::world::{Local, slow};
use holdfast_sim::{Actor, LinkConfig, WorldTime};
use std::time::Duration;

/// The pool is whole at the latest then, and one node becomes slow.
const WHOLE_BY: Duration = Duration::from_secs(30);
/// From then on it is set aside after so long, fast again after so long, and all is as it was after so long.
const SET_ASIDE_AFTER: Duration = Duration::from_secs(10);
const SLOW_FOR: Duration = Duration::from_secs(20);
const BACK_AFTER: Duration = Duration::from_secs(50);
/// Calls enough that clients are busy all the time, one after the other in each of so many slots, so far apart.
const CALLS: u32 = 6_000;
const SLOTS: usize = 4;
const THINK_MS: u64 = 160;

/// In what a node is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowIn {
    /// Its disk, in everything.
    Disk,
    /// Its disk, in reads.
    Reads,
    /// What it hears and says.
    Node,
}

impl Sim {
    /// Groups that a node leads, groups it is a member of, and groups short of a member.
    fn part_of(&self, at: usize) -> Result<(usize, usize, usize), String> {
        let map = self.leaders_map().ok_or("nobody leads shard 0")?;
        let node = self.nodes[at].id;
        let views = || map.views.iter();
        Ok((
            views().filter(|view| view.primary.node == node).count(),
            views().filter(|view| view.members().any(|member| member.node == node)).count(),
            views().filter(|view| view.in_sync.len() < map.replicas as usize).count(),
        ))
    }

    /// No link loses anything.
    pub(super) fn calm(&mut self) {
        for from in (0..self.director.0).map(Actor) {
            for to in (0..self.director.0).map(Actor) {
                let datagram = self.server_of(from).is_some() && self.server_of(to).is_some();
                self.world.network().set_link(from, to, Some(LinkConfig { datagram, ..LinkConfig::default() }));
            }
        }
    }

    /// The pool is whole and this node leads some of it.
    fn until_whole(&mut self, at: usize, by: WorldTime) -> Result<(), String> {
        loop {
            match self.part_of(at) {
                Ok((leads, _, 0)) if leads > 0 => return Ok(()),
                other if self.world.now() > by => return Err(format!("not whole: {other:?}")),
                _ => self.advance(Duration::from_millis(500))?,
            }
        }
    }
}

/// Runs it to the end, and checks that the slow one is set aside in time, stays so, and is back at last.
///
/// # Errors
/// [`Failure`]: it was not, or something that must not be was so.
pub fn run_with_one_slow(seed: u64, what: SlowIn) -> Result<Outcome, Failure> {
    let hostile = WHOLE_BY + BACK_AFTER;
    let (calls, slots, think_ms, leave_one_in) = (CALLS, SLOTS, THINK_MS, u64::from(u32::MAX));
    // No ambushes either: those are other flavours'.
    let flavour = Flavour::Slow;
    let setup = Setup { flavour, hostile, calls, slots, think_ms, leave_one_in, nodes: 4, ..Setup::of(seed, None) };
    judged(Sim::new(seed, setup, 0), |sim| {
        sim.calm();
        (0..sim.servers.len()).for_each(|at| sim.start_server(at));
        (0..sim.nodes.len()).for_each(|at| sim.start_node(at));
        for at in 0..3 {
            sim.world.after(sim.clients[at].actor, Duration::from_millis(500), Local::MountNow);
        }
        sim.world.after(sim.director, hostile, Local::Heal);
        let at = sim.prng.below(4) as usize;
        sim.advance(Duration::from_secs(5))?;
        sim.until_whole(at, WorldTime::after_start(WHOLE_BY))?;
        let begun = sim.world.now();
        let slow = match what {
            SlowIn::Disk => slow::Slow::Disk,
            SlowIn::Reads => slow::Slow::Reads,
            SlowIn::Node => slow::Slow::Node,
        };
        sim.slow_down_node(at, slow, begun + SLOW_FOR);
        sim.advance(SET_ASIDE_AFTER)?;
        while sim.world.now() < begun + SLOW_FOR {
            let (leads, member, short) = sim.part_of(at)?;
            let aside = if what == SlowIn::Reads { member > 0 && short == 0 } else { member == 0 };
            if leads > 0 || !aside {
                return Err(format!(
                    "slow in {what:?}, it leads {leads} and is a member of {member}; {short} are short"
                ));
            }
            sim.advance(Duration::from_millis(500))?;
        }
        sim.calm();
        sim.until_whole(at, begun + BACK_AFTER)?;
        sim.run_to_the_end()
    })
}
