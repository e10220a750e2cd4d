//! The storage node's disks and sockets: what `storage-node/core` decides is made so here.
//!
//! * [`chunk_store`]: one disk's journal, extents and index; synchronous, so that the simulator runs it as it is.
//! * `disk`: a thread per disk for changes, a few for reads.
//! * `owner`: the one place where the core is stepped and its effects are started.
//! * `service`, `peers`: what comes from and goes to clients and other nodes. `control`, `heartbeat`: the metadata service.

pub mod chunk_store;
pub mod config;

mod clock;
mod control;
mod disk;
mod heartbeat;
mod inspect;
mod kept;
mod map_file;
mod medium;
mod metrics;
mod owner;
mod peers;
mod run;
mod scrub_file;
mod servers_file;
mod service;
mod shell;

pub use run::{Error, Listening, run};
