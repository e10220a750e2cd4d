//! The CSI driver: Holdfast's volumes for Kubernetes and every other orchestrator that speaks the Container Storage Interface.
//!
//! It translates, and decides nothing: what a volume is, who may mount it and who is fenced is in [`holdfast_volume`].
//!
//! `run` serving on a socket · `config` · `identity` · `controller` · `node` · `params` what requests say · `status` errors in the
//! interface's words · `group` the group of files · `metrics` · `proto` the interface itself.
//!
//! Invariants:
//! * A call that its caller gave up goes on to its end: half of it is nothing that anybody asked for. The next call for that volume waits.
//! * There is no state here: the driver may be killed at any moment, and started again, or twice.
//!
//! Not here yet: snapshots and clones, credentials (secrets are taken and not used), a mount that outlives the *container* of the node
//! plugin (it outlives the process).

mod config;
mod controller;
mod group;
mod identity;
mod metrics;
mod node;
mod params;
pub mod proto;
mod run;
mod status;

pub use config::{Config, ConfigError, DRIVER_NAME, Role, socket_of};
pub use run::{Error, Ready, run};
