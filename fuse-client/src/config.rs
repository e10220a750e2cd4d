//! What a mount is told at its start.

use crate::options::Options;
use holdfast_client::ClusterFile;
use holdfast_types::InstanceGeneration;
use holdfast_wire::metadata::ClientRecord;
use std::path::PathBuf;

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
    /// Name and generation that an orchestrator gave to what uses the mount.
    pub instance: Option<(String, InstanceGeneration)>,
}

impl Config {
    /// A mount without an instance.
    pub fn new(cluster: ClusterFile, volume: impl Into<String>, mount_point: impl Into<PathBuf>, options: Options) -> Self {
        Self { cluster, volume: volume.into(), mount_point: mount_point.into(), options, instance: None }
    }

    /// How the cluster is told who mounts.
    pub(crate) fn client_record(&self) -> ClientRecord {
        let (instance, instance_generation) = self.instance.clone().unwrap_or_default();
        ClientRecord {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            mount_point: self.mount_point.to_string_lossy().into_owned(),
            instance,
            instance_generation,
        }
    }
}
