//! Worlds from seeds: the pieces of a deterministic simulation, generic over what its nodes are.
//!
//! * [`world`]: one queue of events in virtual time; actors that crash, restart, stop and go on; a trace to compare.
//! * [`clock`]: clocks that drift apart. [`network`]: links that delay, lose, repeat, reorder and part.
//! * [`faults`]: a nemesis that does all this at random, within a budget, and then heals.
//! * [`history`]: what clients asked and were told, when. [`check`]: whether that was allowed.
//!
//! The simulated disk is `holdfast_journal::MemoryDisk`, the simulated table `holdfast_store::MemoryTable`.
//!
//! Pure, and a function of the seed: no clock, no thread, no map whose order could reach an event. A harness is a loop:
//!
//! ```
//! use holdfast_sim::{Clock, Event, World, WorldTime};
//! use std::time::Duration;
//!
//! let mut world: World<&str, ()> = World::new(7);
//! let (a, b) = (world.add_actor(Clock::exact()), world.add_actor(Clock::exact()));
//! world.after(a, Duration::from_millis(1), ());
//! let mut heard = Vec::new();
//! while let Some(event) = world.next(WorldTime::after_start(Duration::from_secs(1))) {
//!     match event {
//!         Event::Local { actor, payload: () } => world.send(actor, b, "ping"),
//!         Event::Message { to, message, .. } => heard.push((to, message)),
//!         Event::Broken { .. } | Event::Fault(_) => {}
//!     }
//! }
//! assert_eq!(heard, [(b, "ping")]);
//! ```

pub mod check;
pub mod clock;
pub mod faults;
pub mod history;
pub mod latency;
pub mod network;
pub mod trace;
pub mod world;

pub use clock::{Clock, WorldTime};
pub use faults::{Fault, FaultBudget, Nemesis};
pub use history::{CallId, History};
pub use latency::Latency;
pub use network::{LinkConfig, Network};
pub use trace::Trace;
pub use world::{Actor, Event, World};
