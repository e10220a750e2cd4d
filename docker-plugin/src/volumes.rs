//! What the plugin needs of the cluster and of this host's mounts: a trait, so that the protocol can be tested without either.

use crate::options::{Access, Wanted};
use holdfast_wire::open::OpenRule;
use std::error::Error;
use std::future::Future;
use std::path::PathBuf;

/// A volume, as the cluster has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Bytes it may hold at the most; `None`: as the pool allows.
    pub size_bytes: Option<u64>,
    /// Who may have it mounted.
    pub access: Access,
    /// Containers only read it.
    pub read_only: bool,
    /// Who may have a file open at the same time, where files do not say so themselves.
    pub open: OpenRule,
}

/// Somebody who has a volume mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The host, by the name it calls itself.
    pub host: String,
    /// Where it is mounted there.
    pub mount_point: String,
    /// The generation of its attachment; 0 without one.
    pub generation: u64,
    /// It is heard of.
    pub alive: bool,
}

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Bytes in its files.
    pub bytes: u64,
    /// Files, directories, links.
    pub inodes: u64,
}

/// How full a volume is, and who uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Known where it is mounted on this host and answers.
    pub used: Option<Used>,
    /// Who has it mounted, all over the cluster.
    pub users: Vec<User>,
}

/// Why the cluster, or this host, cannot do it.
pub type Failure = Box<dyn Error + Send + Sync>;

/// What came of creating a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It is new.
    New,
    /// Somebody else made one of that name meanwhile.
    Exists,
}

/// The cluster's volumes, and this host's mounts of them. Calls for one volume are made one at a time.
pub trait Volumes: Send + Sync + 'static {
    /// Copies that the cluster keeps of each chunk.
    fn replicas(&self) -> impl Future<Output = Result<u32, Failure>> + Send;

    /// A volume by its name.
    fn find(&self, name: &str) -> impl Future<Output = Result<Option<Volume>, Failure>> + Send;

    /// All volumes.
    fn list(&self) -> impl Future<Output = Result<Vec<Volume>, Failure>> + Send;

    /// Makes a volume.
    fn create(&self, name: &str, wanted: &Wanted) -> impl Future<Output = Result<Created, Failure>> + Send;

    /// Deletes a volume and all that is in it. Done if there is none.
    fn delete(&self, name: &str) -> impl Future<Output = Result<(), Failure>> + Send;

    /// How full it is and who uses it.
    fn usage(&self, name: &str) -> impl Future<Output = Result<Usage, Failure>> + Send;

    /// Has it mounted on this host, and says where. What is mounted and works stays; what is dead, or was ended by others, is replaced. A
    /// volume for a single writer is this host's alone when this returns: nobody who had it before can change a byte of it.
    fn mount(&self, volume: &Volume) -> impl Future<Output = Result<PathBuf, Failure>> + Send;

    /// Takes its mount away. Done if there is none.
    fn unmount(&self, name: &str) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whether anything but this host's own place of the mount is left of it: a container that runs.
    fn is_in_use(&self, name: &str) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// Where it is mounted on this host, dead or alive. Asks nobody.
    fn mounted_at(&self, name: &str) -> Option<PathBuf>;

    /// Names of the volumes that are mounted on this host by this plugin, or by one before it.
    fn mounted(&self) -> Vec<String>;
}

#[cfg(test)]
pub(crate) mod memory;
