//! The metadata server: what surrounds `metadata/core` with a log, tables, sockets and clocks.
//!
//! The core has one owner ([`node`]), and whoever brings it an input does its work; everything slow is a worker that brings inputs: a
//! thread per log, a thread per table, the connections of `crates/rpc`.
//!
//! * An effect is started in the order in which the core asked for it.
//! * A log that cannot be written stops its shard on this server, and nothing else; the others go on.

pub mod backup;
mod check;
pub mod config;
pub mod disk;
pub mod log_store;
mod log_writer;
pub mod medium;
mod metrics;
mod node;
mod peers;
pub mod restore;
mod room;
mod run;
mod service;
mod snapshots;

pub use run::{Error, Listening, run};
