//! The client's decisions, without sockets or clocks: session, routing, retries, caches, the write buffer.
//!
//! [`ClientCore`] is driven by a shell: it hands in [`Input`]s with the time and carries out the [`Effect`]s. The same core runs in
//! `holdfast-client` (real sockets) and in the simulator.
//!
//! Invariants:
//! * A call that was accepted is completed exactly once.
//! * A numbered operation (metadata mutation or data change) keeps its number until it is answered, however often it is sent.
//! * Two data changes of one file that overlap are never in flight at the same time.
//! * Nothing cached is served unless the session may cache and its lease, counted from when the renewal was sent, has not run out.
//! * A size is never published beyond bytes that storage acknowledged as durable.
//! * The same seed and the same inputs at the same times give the same effects.

pub mod call;
pub mod config;
pub mod effect;
pub mod error;
pub mod payload;

pub use call::{Call, CallId, Data, Durability, HandleId, OpenMode, Reply, Seek, ZeroMode};
pub use config::Config;
pub use effect::{Effect, Failure, Input, Notice, Ticket};
pub use error::ClientError;
pub use lost::LostFile;
pub use payload::{ChunkCall, ChunkReply};

mod access;
mod append;
mod cluster;
mod control;
mod core;
mod data;
mod extents;
mod file;
mod lane;
mod lock;
mod lost;
mod names;
mod namespace;
mod open;
mod pages;
mod read;
mod seek;
mod session;
mod write;
mod zero;

#[cfg(test)]
mod tests;

pub use crate::core::ClientCore;
