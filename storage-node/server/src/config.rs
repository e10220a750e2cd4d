//! Configuration of a storage node: typed, checked, unknown keys refused.
//!
//! Relative paths are relative to the directory of the file, so that the directory can be copied to its host as it is.

use holdfast_types::{ClusterId, DiskId, NodeId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `config.toml` of a storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Cluster it belongs to, 32 hexadecimal digits.
    pub cluster: String,
    /// Its id within the cluster, above 0.
    pub id: u64,
    /// `HOST:PORT` it listens on (TCP), and under which others reach it.
    pub address: String,
    /// Certificate of the cluster's authority (PEM).
    pub authority: PathBuf,
    /// Its own certificate (PEM).
    pub certificate: PathBuf,
    /// The key of its certificate (PEM).
    pub key: PathBuf,
    /// Memory for cached blocks of each disk's index, in MiB.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: u64,
    /// Leave the views at a planned stop, so that the others go on at once. False where all nodes stop together (`up`): then nobody
    /// has to be caught up at the next start.
    #[serde(default = "default_leave_on_stop")]
    pub leave_on_stop: bool,
    /// For tests of the tests only: acknowledge without syncing. Loses data at a power cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_skip_sync: bool,
    /// Failure domains from the widest to the narrowest, for instance `["rack", "r1"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
    /// Its disks, at least one.
    pub disks: Vec<DiskConfig>,
    /// The metadata servers, at least one.
    pub metadata: Vec<MetadataServer>,
}

/// A disk: a directory on a file system of its own, or one that is shared on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// Its number within the node; stays with the directory.
    pub id: u32,
    /// Its directory.
    pub path: PathBuf,
}

/// A metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetadataServer {
    /// Its id.
    pub id: u64,
    /// `HOST:PORT` (UDP).
    pub address: String,
}

fn default_leave_on_stop() -> bool {
    true
}

fn default_cache_mib() -> u64 {
    32
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
        for entry in [&mut config.authority, &mut config.certificate, &mut config.key] {
            *entry = base.join(&*entry);
        }
        for disk in &mut config.disks {
            disk.path = base.join(&disk.path);
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
        if self.id == 0 {
            return invalid("id", "0 is nobody; ids begin at 1".into());
        }
        if self.disks.is_empty() {
            return invalid("disks", "a storage node needs at least one disk".into());
        }
        for (at, disk) in self.disks.iter().enumerate() {
            if self.disks[..at].iter().any(|other| other.id == disk.id || other.path == disk.path) {
                return invalid("disks", format!("disk {} ({}) is there twice", disk.id, disk.path.display()));
            }
        }
        if self.metadata.is_empty() || self.metadata.iter().any(|server| server.id == 0) {
            return invalid("metadata", "at least one server, each with an id above 0".into());
        }
        Ok(())
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(u128::from_str_radix(&self.cluster, 16).expect("checked by validate"))
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.id)
    }
}

impl DiskConfig {
    /// Its id.
    pub fn disk_id(&self) -> DiskId {
        DiskId(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            cluster: format!("{:032x}", 7),
            id: 1,
            address: "127.0.0.1:0".into(),
            authority: "ca.pem".into(),
            certificate: "cert.pem".into(),
            key: "key.pem".into(),
            cache_mib: 32,
            leave_on_stop: true,
            test_skip_sync: false,
            labels: Vec::new(),
            disks: vec![DiskConfig { id: 0, path: "data".into() }],
            metadata: vec![MetadataServer { id: 1, address: "127.0.0.1:1".into() }],
        }
    }

    #[test]
    fn what_is_written_is_read_and_an_unknown_key_is_named() {
        let text = toml::to_string(&sample()).expect("encodes");
        assert_eq!(toml::from_str::<Config>(&text).expect("decodes"), sample());
        let error = toml::from_str::<Config>(&format!("sisk = 1\n{text}")).expect_err("unknown key").to_string();
        assert!(error.contains("sisk"), "{error}");
    }

    #[test]
    fn nonsense_is_refused_by_its_key() {
        let key = |config: Config| match config.validate() {
            Err(ConfigError::Invalid { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(key(Config { cluster: "xyz".into(), ..sample() }), "cluster");
        assert_eq!(key(Config { id: 0, ..sample() }), "id");
        assert_eq!(key(Config { disks: Vec::new(), ..sample() }), "disks");
        let twice = [sample().disks, sample().disks].concat();
        assert_eq!(key(Config { disks: twice, ..sample() }), "disks");
        assert_eq!(key(Config { metadata: Vec::new(), ..sample() }), "metadata");
        sample().validate().expect("the sample is valid");
    }
}
