//! What the driver is told at its start.

use holdfast_client::{ClusterFile, ClusterFileError};
use std::path::{Path, PathBuf};

/// What the driver calls itself, unless it is told otherwise.
pub const DRIVER_NAME: &str = "csi.holdfast.io";

/// Which services it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Makes volumes and attaches them. One or several for a cluster.
    Controller,
    /// Mounts. One on each node.
    Node,
    /// Both.
    All,
}

impl Role {
    pub(crate) fn controls(self) -> bool {
        matches!(self, Self::Controller | Self::All)
    }

    pub(crate) fn mounts(self) -> bool {
        matches!(self, Self::Node | Self::All)
    }
}

/// Settings of a driver.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which services.
    pub role: Role,
    /// The socket it serves on.
    pub socket: PathBuf,
    /// Where the cluster is, and an administrator's certificate for it: the driver decides who may mount.
    pub cluster: ClusterFile,
    /// The file that says so, for mounts, which have a certificate of their own there.
    pub cluster_file: PathBuf,
    /// `holdfast`, for mounts.
    pub program: PathBuf,
    /// What the orchestrator calls this node.
    pub node_id: String,
    /// What the driver calls itself.
    pub name: String,
    /// `HOST:PORT` of `/healthz`, `/readyz` and `/metrics`, or `off`.
    pub telemetry: String,
}

/// Why a driver cannot be run so.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The endpoint.
    #[error("endpoint {given:?} is no Unix socket; give one as unix:///PATH")]
    Endpoint {
        /// What was given.
        given: String,
    },
    /// The cluster file.
    #[error(transparent)]
    Cluster(#[from] ClusterFileError),
    /// A path.
    #[error("cannot find {path}: {source}")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The path of an endpoint: `unix:///PATH`, `unix:PATH`, or an absolute path alone.
///
/// # Errors
/// [`ConfigError::Endpoint`]
pub fn socket_of(endpoint: &str) -> Result<PathBuf, ConfigError> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    let is_path = !path.is_empty() && (path.starts_with('/') || endpoint.starts_with("unix:"));
    if is_path { Ok(path.into()) } else { Err(ConfigError::Endpoint { given: endpoint.into() }) }
}

impl Config {
    /// A driver. `cluster` is the path of a cluster file, `node_id` this host's name if none is given.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn new(role: Role, endpoint: &str, cluster: &Path, node_id: Option<String>) -> Result<Self, ConfigError> {
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(|source| ConfigError::Path { path: path.into(), source });
        let program =
            std::env::current_exe().map_err(|source| ConfigError::Path { path: "holdfast".into(), source })?;
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        Ok(Self {
            role,
            socket: absolute(&socket_of(endpoint)?)?,
            cluster: ClusterFile::load(cluster)?,
            cluster_file: absolute(cluster)?,
            program,
            node_id: node_id.unwrap_or_else(host),
            name: DRIVER_NAME.into(),
            telemetry: holdfast_telemetry::http::ADDRESS_DEFAULT.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_unix_socket() {
        for (given, path) in
            [("unix:///a/b.sock", "/a/b.sock"), ("unix:/a/b", "/a/b"), ("/a/b", "/a/b"), ("unix:b.sock", "b.sock")]
        {
            assert_eq!(socket_of(given).expect("a socket"), Path::new(path));
        }
        for given in ["", "unix://", "tcp://127.0.0.1:1", "a.sock"] {
            assert!(socket_of(given).is_err(), "{given}");
        }
    }
}
