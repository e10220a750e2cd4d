//! The plugin as a process.

use crate::cluster::ClusterVolumes;
use crate::config::Config;
use crate::handlers::Plugin;
use crate::metrics::Metrics;
use crate::requests::{Requests, RequestsError};
use crate::server::{self, ListenError};
use holdfast_client::{Cluster, RequestError};
use holdfast_telemetry::http::{self, Health};
use holdfast_telemetry::metrics::Registry;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// Why the plugin cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Cluster(#[from] RequestError),
    /// A directory of its own cannot be made.
    #[error("cannot create {path}: {source}; run docker-plugin as root, or choose --state-dir and --mount-dir")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// What containers use cannot be read.
    #[error(transparent)]
    Requests(#[from] RequestsError),
    /// It cannot listen to the engine.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// It cannot listen for whoever watches.
    #[error(transparent)]
    Telemetry(#[from] http::ListenError),
}

/// As long as it runs it serves; what it serves from may be away, and each call says so.
struct Runs;

impl Health for Runs {
    fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Serves the engine until `stop` becomes true. Mounts stay.
///
/// `ready` is called once, with the socket and where telemetry is read, when the engine can connect. The cluster need not be there yet:
/// it is asked when the engine asks.
///
/// # Errors
/// [`RunError`], before it serves.
pub async fn run(
    config: Config,
    stop: watch::Receiver<bool>,
    ready: impl FnOnce(&Path, Option<SocketAddr>) + Send,
) -> Result<(), RunError> {
    let cluster = Cluster::connect(&config.cluster)?;
    let mount_dir = config.mount_dir.unwrap_or_else(|| config.state_dir.join("mounts"));
    for path in [&config.state_dir, &mount_dir] {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| RunError::Directory { path: path.clone(), source })?;
    }
    let requests = Requests::open(&config.state_dir)?;
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let node = config.node_id.unwrap_or_else(host);
    let volumes = ClusterVolumes::new(cluster, config.program, config.cluster_file, node, mount_dir);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let plugin = Arc::new(Plugin::new(volumes, requests, metrics));
    let listener = server::listen(&config.socket).await?;
    let telemetry = http::serve(&config.telemetry, registry, Arc::new(Runs)).await?;
    ready(&config.socket, telemetry.as_ref().map(http::Endpoint::address));
    // Beside serving: a mount that does not go at once keeps only its own volume waiting.
    let reconciled = tokio::spawn({
        let plugin = Arc::clone(&plugin);
        async move { plugin.reconcile().await }
    });
    server::serve(listener, plugin, stop).await;
    reconciled.abort();
    Ok(())
}
