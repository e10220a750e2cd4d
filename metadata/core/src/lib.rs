//! The metadata service's decisions: a replicated state machine per shard, and what its leaders do beside. Pure.
//!
//! [`MetadataCore`] takes one [`Input`] at a time and appends the [`Effect`]s it calls for. It waits for nothing, reads no
//! clock and opens nothing; the one thing it reads that it does not hold is each shard's table (`holdfast-store`).
//!
//! ```text
//!  requests, peers' messages, ticks, "it is persisted"          answers, messages, "persist this", work for storage nodes
//!        └────────────► MetadataCore::step ── shard 0: replica (raft + cluster machine) ──┐──────────►
//!                                         └─ shard 1: replica (raft + volumes machine) ──┘
//! ```
//!
//! Invariants:
//! * Nothing is answered, and no row changes, on account of an entry that a quorum has not persisted.
//! * A table is at the state after exactly the entries up to the applied index that is committed with its rows.
//! * `apply` is a function of the log: two servers at one applied index hold the same rows.

pub mod api;
mod cluster;
mod command;
mod core;
mod error;
pub mod fsck;
pub mod inspect;
pub mod invariants;
mod machine;
mod ops;
mod replica;
mod requests;
pub mod restore;
mod room;
mod tables;
#[cfg(test)]
mod testing;
mod txn;
mod volumes;

pub use crate::core::MetadataCore;
pub use api::{
    Caller, ChunkFailure, Config, Counters, Effect, HardState, Input, Limits, LogEntry, LogPosition, LogRecord,
    Mutations, Recovered, RecoveredShard, StartError,
};
