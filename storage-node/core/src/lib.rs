//! The storage node's decisions: views, sequencing, acknowledgement, reconciliation, resync. Pure.
//!
//! One [`StorageCore`] per node. Inputs and time are arguments, effects are return values ([`api`]); what is asked of the disk is in
//! [`local`]. Inside, one state machine per group ([`StorageCore`] → `group` → `primary` or `member`).

pub mod api;
mod book;
mod change;
pub mod contenders;
mod group;
pub mod invariants;
pub mod latency;
pub mod local;
mod node;
mod request;
mod scrub;
mod span;
#[cfg(test)]
mod tests;

pub use api::{Config, Counters, Effect, Input, Limits, Mutations, Scrubbed};
pub use node::StorageCore;
