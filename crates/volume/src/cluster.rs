//! What is needed of the cluster.

use crate::error::VolumeError;
use holdfast_types::VolumeId;
use holdfast_wire::admin::ClusterStatus;
use holdfast_wire::namespace::{Labels, Limits, VolumeFacts};
use std::future::Future;

/// Volumes at the most in one answer of [`Cluster::describe_after`].
pub const PAGE: u32 = 1000;

/// Why the cluster did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such volume.
    #[error("no such volume")]
    NoVolume,
    /// There is one already.
    #[error("there is one already")]
    Exists,
    /// Somebody has it mounted.
    #[error("mounted by {sessions} session(s)")]
    Busy {
        /// How many have.
        sessions: u32,
    },
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Nobody answers. It may or may not be done.
    #[error("{0}")]
    Unavailable(String),
    /// The answer is to another question, or we may not ask.
    #[error("{0}")]
    Odd(String),
}

impl Refusal {
    /// In words of this crate, about a volume.
    pub(crate) fn about(self, name: &str) -> VolumeError {
        let name = name.to_owned();
        match self {
            Self::NoVolume => VolumeError::NoVolume { name },
            Self::Exists => VolumeError::Different { name, difference: "somebody else made it at this moment".into() },
            Self::Busy { sessions } => VolumeError::InUse {
                name,
                by: format!("{sessions} mount(s) of it, which `holdfast admin sessions` shows; unmount first"),
            },
            Self::Invalid(reason) => VolumeError::Invalid { reason },
            Self::Unavailable(reason) => VolumeError::Unavailable { reason },
            Self::Odd(reason) => VolumeError::Broken { reason },
        }
    }
}

/// A cluster, as orchestrators need it. Everything may be asked again when it is not known whether it was done.
pub trait Cluster: Clone + Send + Sync + 'static {
    /// Makes a volume.
    fn create(&self, name: &str, limits: Limits, labels: Labels) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// A volume, if there is one.
    fn describe(&self, name: &str) -> impl Future<Output = Result<Option<VolumeFacts>, Refusal>> + Send;

    /// Volumes in the order of their names, after one; at the most [`PAGE`]. None: there are no more.
    fn describe_after(&self, after: &str, limit: u32)
    -> impl Future<Output = Result<Vec<VolumeFacts>, Refusal>> + Send;

    /// Gives a volume other labels if they are still those of `version`; whether they were.
    fn label(&self, name: &str, version: u64, labels: Labels) -> impl Future<Output = Result<bool, Refusal>> + Send;

    /// Sets what a volume may hold.
    fn limit(&self, name: &str, limits: Limits) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Deletes a volume that nobody has mounted.
    fn delete(&self, name: &str) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Fences all sessions of an instance with a lesser generation. When this returns nothing is taken from them any more, and none such
    /// comes in again.
    fn raise_generation(
        &self,
        volume: VolumeId,
        instance: &str,
        generation: u64,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Nodes, disks, sessions.
    fn status(&self) -> impl Future<Output = Result<ClusterStatus, Refusal>> + Send;
}
