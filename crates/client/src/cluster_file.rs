//! `cluster.toml`: all that a client or administrator must know to find a cluster and be let in.
//!
//! ```toml
//! cluster = "000000000000000000000000000000ff"   # 128-bit id, hexadecimal
//!
//! [tls]                                          # paths relative to this file
//! authority = "client/ca.pem"
//! certificate = "client/cert.pem"
//! key = "client/key.pem"
//!
//! [[metadata]]
//! id = 1
//! address = "127.0.0.1:4101"
//! ```

use holdfast_types::{ClusterId, ServerId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The contents of `cluster.toml`, its paths made absolute or relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterFile {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Certificate and key of whoever uses the file, and the cluster's authority.
    pub tls: TlsFiles,
    /// Metadata servers; at least one.
    pub metadata: Vec<MetadataAddress>,
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate of the cluster's authority.
    pub authority: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Where a metadata server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetadataAddress {
    /// Its id.
    pub id: u64,
    /// `HOST:PORT` of its control transport.
    pub address: String,
}

impl MetadataAddress {
    /// The id as a type.
    pub fn server(&self) -> ServerId {
        ServerId(self.id)
    }
}

/// Why a cluster file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClusterFileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error(transparent)]
    Parse(#[from] holdfast_config::ConfigError),
    /// It contradicts itself.
    #[error("{path}: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// As it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    cluster: String,
    tls: TlsFiles,
    metadata: Vec<MetadataAddress>,
}

impl ClusterFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ClusterFileError`], naming the file and what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, ClusterFileError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ClusterFileError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Takes the text of a file that lies at `path`: paths within it are relative to its directory.
    ///
    /// # Errors
    /// [`ClusterFileError`]; unknown keys are errors.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ClusterFileError> {
        let written: Written = holdfast_config::parse_unchecked(text, path)?;
        let invalid = |reason: String| ClusterFileError::Invalid { path: path.into(), reason };
        let cluster = u128::from_str_radix(&written.cluster, 16).map_err(|_| {
            invalid(format!("cluster id {:?} is not a hexadecimal number of 128 bits", written.cluster))
        })?;
        if written.metadata.is_empty() {
            return Err(invalid("no metadata server is named".into()));
        }
        let ids: std::collections::BTreeSet<u64> = written.metadata.iter().map(|m| m.id).collect();
        if ids.len() != written.metadata.len() || ids.contains(&0) {
            return Err(invalid("metadata ids must be distinct and not 0".into()));
        }
        let base = path.parent().unwrap_or_else(|| Path::new(""));
        Ok(Self {
            cluster: ClusterId(cluster),
            tls: TlsFiles {
                authority: base.join(&written.tls.authority),
                certificate: base.join(&written.tls.certificate),
                key: base.join(&written.tls.key),
            },
            metadata: written.metadata,
        })
    }

    /// The text of the file, paths as they are in `self`.
    ///
    /// # Panics
    /// When a path is not UTF-8.
    pub fn to_toml(&self) -> String {
        let written =
            Written { cluster: self.cluster.to_string(), tls: self.tls.clone(), metadata: self.metadata.clone() };
        toml::to_string(&written).expect("plain tables of strings and numbers, paths UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_file_reads_as_it_was_written_and_unknown_keys_are_errors() {
        let file = ClusterFile {
            cluster: ClusterId(255),
            tls: TlsFiles { authority: "ca.pem".into(), certificate: "c/cert.pem".into(), key: "/k.pem".into() },
            metadata: vec![MetadataAddress { id: 1, address: "127.0.0.1:4101".into() }],
        };
        let text = file.to_toml();
        let read = ClusterFile::parse(&text, Path::new("/etc/holdfast/cluster.toml")).expect("parses");
        assert_eq!(read.cluster, file.cluster);
        assert_eq!(read.metadata, file.metadata);
        assert_eq!(read.tls.authority, Path::new("/etc/holdfast/ca.pem"));
        assert_eq!(read.tls.key, Path::new("/k.pem"));
        let odd = format!("unknown = 1\n{text}");
        let error = ClusterFile::parse(&odd.replace("unknown", "matadata"), Path::new("x")).expect_err("unknown key");
        assert_eq!(error.to_string(), "x:1: unknown key \"matadata\"; did you mean \"metadata\"?");
        let twice = text.clone() + "\n[[metadata]]\nid = 1\naddress = \"b:1\"\n";
        assert!(matches!(ClusterFile::parse(&twice, Path::new("x")), Err(ClusterFileError::Invalid { .. })));
    }
}
