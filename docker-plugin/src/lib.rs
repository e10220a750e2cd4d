//! `holdfast docker-plugin`: volumes for Docker's containers, by the engine's volume plugin protocol on a Unix socket.
//!
//! ```text
//! engine ── POST /VolumeDriver.* ──▶ server ──▶ api (JSON) ──▶ handlers ──▶ volumes (the cluster, this host's mounts)
//!                                                                 └──▶ requests (which containers use what, on disk)
//! ```
//!
//! * The plugin holds no mount: each is a process of its own, and lives on when the plugin or the engine ends or is replaced.
//! * What the cluster knows of a volume (its limit, its access) is in the cluster alone; here is only which containers of this host use
//!   it.
//! * A volume is unmounted when its last container has gone, and in no other case.

pub mod api;
pub mod cluster;
pub mod config;
pub mod engine;
pub mod handlers;
pub mod metrics;
pub mod options;
pub mod requests;
mod run;
pub mod server;
pub mod status;
pub mod volumes;

pub use config::Config;
pub use run::{RunError, run};
