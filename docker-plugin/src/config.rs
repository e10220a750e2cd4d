//! What the plugin is told at its start.

use holdfast_client::ClusterFile;
use std::path::PathBuf;

pub use holdfast_telemetry::http::ADDRESS_DEFAULT as TELEMETRY_DEFAULT;

/// Settings of a plugin.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the cluster is, and an administrator's certificate for it: the plugin decides who may mount.
    pub cluster: ClusterFile,
    /// The file that says so, for mounts, which have a certificate of their own there.
    pub cluster_file: PathBuf,
    /// Where the engine connects to. The name of the file without `.sock` is the name of the driver.
    pub socket: PathBuf,
    /// Where it keeps which containers use what. Must survive a restart of the plugin.
    pub state_dir: PathBuf,
    /// Below which directory it mounts; `mounts` in the state's if not given.
    pub mount_dir: Option<PathBuf>,
    /// What this host is called on the cluster's record: unlike every other host. The name it calls itself if not given.
    pub node_id: Option<String>,
    /// `HOST:PORT` of `/healthz`, `/readyz` and `/metrics`, or `off`.
    pub telemetry: String,
    /// The program `holdfast`, which mounts.
    pub program: PathBuf,
}
