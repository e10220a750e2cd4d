//! Configuration of a metadata server: typed, checked, unknown keys refused.
//!
//! Relative paths are relative to the directory of the file, so that the directory can be copied to its host as it is.

use holdfast_types::{ClusterId, ServerId, limits};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `config.toml` of a metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Cluster it belongs to, 32 hexadecimal digits.
    pub cluster: String,
    /// Its id; one of `servers`.
    pub id: u64,
    /// `HOST:PORT` it listens on (UDP).
    pub address: String,
    /// Directory of its log and tables.
    pub data: PathBuf,
    /// Certificate of the cluster's authority (PEM).
    pub authority: PathBuf,
    /// Its own certificate (PEM).
    pub certificate: PathBuf,
    /// The key of its certificate (PEM).
    pub key: PathBuf,
    /// Copies of each chunk.
    pub replicas: u32,
    /// Groups of the pool: a power of two.
    pub groups: u32,
    /// The pool forms, once, when so many storage nodes have come.
    pub storage_expected: u32,
    /// Memory for cached table blocks, in MiB.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: u64,
    /// For tests of the tests only: acknowledge without syncing. Loses data at a power cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_skip_sync: bool,
    /// All metadata servers, itself included.
    pub servers: Vec<Server>,
}

/// One metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Server {
    /// Its id.
    pub id: u64,
    /// `HOST:PORT`.
    pub address: String,
}

fn default_cache_mib() -> u64 {
    64
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, has an unknown key, or lacks one.
    #[error("{path}: {source}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{key}: {reason}")]
    Invalid {
        /// Which key.
        key: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl Config {
    /// Reads and checks a file; relative paths become absolute.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, key and reason.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let mut config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })?;
        let base = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        for entry in [&mut config.data, &mut config.authority, &mut config.certificate, &mut config.key] {
            *entry = base.join(&*entry);
        }
        config.validate()?;
        Ok(config)
    }

    /// Checks values and their relations.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`]
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key, reason: String| Err(ConfigError::Invalid { key, reason });
        if u128::from_str_radix(&self.cluster, 16).is_err() {
            return invalid("cluster", format!("{:?} is not a hexadecimal number", self.cluster));
        }
        if !self.servers.iter().any(|server| server.id == self.id) {
            return invalid("id", format!("{} is not in the list of servers", self.id));
        }
        let mut ids: Vec<u64> = self.servers.iter().map(|server| server.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != self.servers.len() || ids.contains(&0) {
            return invalid("servers", "ids are unique and above 0".into());
        }
        if !self.groups.is_power_of_two() || self.groups > limits::GROUPS_MAX {
            return invalid("groups", format!("{} is not a power of two up to {}", self.groups, limits::GROUPS_MAX));
        }
        if self.replicas == 0 || self.replicas as usize > limits::REPLICAS_MAX {
            return invalid("replicas", format!("{} is not in 1..={}", self.replicas, limits::REPLICAS_MAX));
        }
        if self.storage_expected < self.replicas {
            return invalid(
                "storage-expected",
                format!("{} nodes cannot hold {} replicas", self.storage_expected, self.replicas),
            );
        }
        Ok(())
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(u128::from_str_radix(&self.cluster, 16).expect("checked by validate"))
    }

    /// This server's id.
    pub fn server_id(&self) -> ServerId {
        ServerId(self.id)
    }
}
