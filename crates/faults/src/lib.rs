//! Faults on demand, for tests of real processes: a disk, a clock and connections that behave as a plan says.
//!
//! Only builds with the feature `faults` have this crate in them (`holdfast-faults`); what is released has not, and no branch for it
//! either: the places of a disk, a clock and a connection are taken at compile time.
//!
//! * [`plan`]: what a plan may say. It is read again whenever its file changes, so that a test switches faults on and off.
//! * [`FaultyDisk`]: a disk behind the disk's trait. [`clock`]: a clock that runs fast or slow. [`late`]: a connection's bytes arrive late.

pub mod clock;
mod connection;
mod disk;
pub mod plan;

pub use connection::{Late, late};
pub use disk::{FaultyDisk, FaultyFile};
pub use plan::{Plan, follow};

use std::sync::{Arc, PoisonError, RwLock};

static PLAN: RwLock<Option<Arc<Plan>>> = RwLock::new(None);

/// The plan that is in force; nothing fails without one.
pub fn current() -> Arc<Plan> {
    let plan = PLAN.read().unwrap_or_else(PoisonError::into_inner);
    plan.as_ref().map_or_else(Arc::default, Arc::clone)
}

/// From now on this plan is in force, in all of this process.
pub fn install(plan: Plan) {
    clock::change_rate(plan.clock.rate);
    *PLAN.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(plan));
}
