//! A world whose processes start one after the other, in a given order, and where nothing else goes wrong (promise P8).

use super::{Failure, Outcome, Sim, judged};
use crate::world::Local;
use crate::world::setup::Setup;
use holdfast_sim::WorldTime;
use std::time::Duration;

/// Calls that the client makes: enough to see names and data served.
const CALLS: u32 = 60;

/// What starts next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Start {
    /// A metadata server.
    Metadata,
    /// A storage node; with the last one of an order the world's fourth starts as well.
    Storage,
    /// A client mounts.
    Mount,
}

/// All distinct orders of 3 metadata servers, 3 storage nodes and a mount.
pub fn all_orders() -> Vec<Vec<Start>> {
    let mut orders = Vec::new();
    extend(&mut Vec::new(), [3, 3, 1], &mut orders);
    orders
}

fn extend(so_far: &mut Vec<Start>, left: [u32; 3], orders: &mut Vec<Vec<Start>>) {
    if left == [0; 3] {
        return orders.push(so_far.clone());
    }
    for (at, what) in [Start::Metadata, Start::Storage, Start::Mount].into_iter().enumerate() {
        if left[at] > 0 {
            let mut left = left;
            left[at] -= 1;
            so_far.push(what);
            extend(so_far, left, orders);
            so_far.pop();
        }
    }
}

/// Starts processes in an order, `gap` apart; the client's calls, an audit by another client and all checks follow.
///
/// # Errors
/// [`Failure`]: somebody waits for ever, or something that must not be was so.
pub fn run_in_order(seed: u64, order: &[Start], gap: Duration) -> Result<Outcome, Failure> {
    let setup = Setup {
        calls: CALLS,
        hostile: gap * order.len() as u32,
        leave_one_in: u64::from(u32::MAX),
        think_ms: 20,
        nodes: 4,
        ..Setup::of(seed, None)
    };
    judged(Sim::new(seed, setup, 0), |sim| {
        let (mut servers, mut nodes) = (0..sim.servers.len(), 0..sim.nodes.len());
        let mut storage_left = order.iter().filter(|what| **what == Start::Storage).count();
        for what in order {
            match what {
                Start::Metadata => servers.by_ref().take(1).for_each(|at| sim.start_server(at)),
                Start::Storage => {
                    storage_left -= 1;
                    let count = if storage_left == 0 { usize::MAX } else { 1 };
                    nodes.by_ref().take(count).for_each(|at| sim.start_node(at));
                }
                Start::Mount => sim.world.after(sim.clients[0].actor, Duration::ZERO, Local::MountNow),
            }
            sim.advance(gap)?;
        }
        let until = WorldTime::after_start(sim.setup.hostile);
        sim.world.after(sim.director, until.since(sim.world.now()), Local::Heal);
        sim.run_to_the_end()
    })
}
