//! What `docker volume inspect` shows under `Status`.

use crate::volumes::{Usage, User, Volume};
use serde::Serialize;

/// The status of a volume; only grows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Bytes it may hold at the most; none: as the pool allows.
    size_bytes: Option<u64>,
    /// Bytes in its files; none: it is not mounted here.
    used_bytes: Option<u64>,
    /// Files, directories, links; likewise.
    used_inodes: Option<u64>,
    access: &'static str,
    read_only: bool,
    /// Who may have a file open at the same time, where files do not say so themselves.
    open: String,
    /// Requests of this host's containers that are open.
    containers_here: usize,
    /// Who has it mounted, all over the cluster.
    mounted_by: Vec<MountedBy>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct MountedBy {
    host: String,
    mount_point: String,
    generation: u64,
    /// "alive" or "silent"
    state: &'static str,
}

impl Status {
    /// Of a volume.
    pub fn new(volume: &Volume, usage: Usage, containers_here: usize) -> Self {
        let by = |user: User| MountedBy {
            host: user.host,
            mount_point: user.mount_point,
            generation: user.generation,
            state: if user.alive { "alive" } else { "silent" },
        };
        Self {
            size_bytes: volume.size_bytes,
            used_bytes: usage.used.map(|used| used.bytes),
            used_inodes: usage.used.map(|used| used.inodes),
            access: volume.access.as_str(),
            read_only: volume.read_only,
            open: volume.open.to_string(),
            containers_here,
            mounted_by: usage.users.into_iter().map(by).collect(),
        }
    }
}
