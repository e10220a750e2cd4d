//! What a mount is told at its start.

use crate::options::Options;
use holdfast_client::{ClusterFile, ClusterFileError};
use holdfast_wire::metadata::ClientRecord;
use std::path::{Path, PathBuf};

/// Settings of one mount.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the cluster is.
    pub cluster: ClusterFile,
    /// Name of the volume.
    pub volume: String,
    /// Where to mount it: an existing directory. A dead mount of ours there is taken away.
    pub mount_point: PathBuf,
    /// How.
    pub options: Options,
}

impl Config {
    /// A mount. `cluster` is the path of a cluster file.
    ///
    /// # Errors
    /// When the cluster file cannot be used.
    pub fn new(
        cluster: &Path,
        volume: &str,
        mount_point: impl Into<PathBuf>,
        options: Options,
    ) -> Result<Self, ClusterFileError> {
        let cluster = ClusterFile::load(cluster)?;
        Ok(Self { cluster, volume: volume.into(), mount_point: mount_point.into(), options })
    }

    /// How the cluster is told who mounts.
    pub(crate) fn client_record(&self) -> ClientRecord {
        ClientRecord {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            mount_point: self.mount_point.to_string_lossy().into_owned(),
            instance: self.options.instance.clone().unwrap_or_default(),
            instance_generation: self.options.generation,
        }
    }
}
