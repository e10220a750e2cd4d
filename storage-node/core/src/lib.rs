//! The storage node's decisions: views, sequencing, acknowledgement, reconciliation, resync. Pure.
//!
//! One [`StorageCore`] per node. Inputs and time are arguments, effects are return values ([`api`]); what is asked of the disk is in
//! [`local`].

pub mod api;
pub mod local;
mod node;

pub use api::{Config, Effect, Input, Limits, Mutations};
pub use node::StorageCore;
