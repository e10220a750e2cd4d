//! What is needed of the cluster.

use crate::error::VolumeError;
use holdfast_client::RequestError;
use holdfast_types::{InstanceGeneration, ShardId, VolumeId};
use holdfast_wire::admin::ClusterStatus;
use holdfast_wire::metadata::{MetadataError, Request, Response};
use holdfast_wire::namespace::{Labels, Limits, VolumeFacts};
use holdfast_wire::open::OpenPolicy;
use std::future::Future;
use std::time::Duration;

/// Volumes at the most in one answer of [`Cluster::describe_after`].
pub const PAGE: u32 = 1000;

/// How long a leader is looked for. Shorter than an orchestrator's patience with one call, so that it hears why.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long storage nodes may take to acknowledge a fence. Longer than it takes to take one out that does not answer.
const FENCE_PATIENCE: Duration = Duration::from_secs(60);

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
    fn create(
        &self,
        name: &str,
        limits: Limits,
        open: OpenPolicy,
        labels: Labels,
    ) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// A volume, if there is one.
    fn describe(&self, name: &str) -> impl Future<Output = Result<Option<VolumeFacts>, Refusal>> + Send;

    /// Volumes in the order of their names, after one; at the most [`PAGE`]. None: there are no more.
    fn describe_after(&self, after: &str, limit: u32)
    -> impl Future<Output = Result<Vec<VolumeFacts>, Refusal>> + Send;

    /// Gives a volume other labels if they are still those of `version`; whether they were.
    fn label(&self, name: &str, version: u64, labels: Labels) -> impl Future<Output = Result<bool, Refusal>> + Send;

    /// Sets what a volume may hold.
    fn limit(&self, name: &str, limits: Limits) -> impl Future<Output = Result<(), Refusal>> + Send;

    /// Sets how a volume's files are opened.
    fn set_open(&self, name: &str, open: OpenPolicy) -> impl Future<Output = Result<(), Refusal>> + Send;

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

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Unavailable { .. } | RequestError::Refused(MetadataError::Unavailable { .. }) => {
                Self::Unavailable(error.to_string())
            }
            RequestError::Refused(MetadataError::NoVolume { .. }) => Self::NoVolume,
            RequestError::Refused(MetadataError::VolumeExists { .. }) => Self::Exists,
            RequestError::Refused(MetadataError::Busy { sessions, .. }) => Self::Busy { sessions },
            RequestError::Refused(MetadataError::Invalid { reason }) => Self::Invalid(reason),
            RequestError::Identity(_) | RequestError::Refused(_) => Self::Odd(error.to_string()),
        }
    }
}

fn odd<T>(answer: &Response) -> Result<T, Refusal> {
    Err(Refusal::Odd(format!("the leader answered something else: {answer:?}")))
}

async fn facts(cluster: &holdfast_client::Cluster, request: Request) -> Result<Vec<VolumeFacts>, Refusal> {
    match cluster.request(ShardId::CLUSTER, request, PATIENCE).await? {
        Response::VolumeFacts(facts) => Ok(facts),
        other => odd(&other),
    }
}

async fn volume(cluster: &holdfast_client::Cluster, request: Request) -> Result<(), Refusal> {
    match cluster.request(ShardId::CLUSTER, request, PATIENCE).await? {
        Response::Volume(_) | Response::Done => Ok(()),
        other => odd(&other),
    }
}

impl Cluster for holdfast_client::Cluster {
    async fn create(&self, name: &str, limits: Limits, open: OpenPolicy, labels: Labels) -> Result<(), Refusal> {
        volume(self, Request::CreateVolume { name: name.into(), limits, open, labels }).await
    }

    async fn describe(&self, name: &str) -> Result<Option<VolumeFacts>, Refusal> {
        match facts(self, Request::DescribeVolume { name: name.into() }).await {
            Ok(mut one) => Ok(one.pop()),
            Err(Refusal::NoVolume) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    async fn describe_after(&self, after: &str, limit: u32) -> Result<Vec<VolumeFacts>, Refusal> {
        facts(self, Request::DescribeVolumes { after: after.into(), limit }).await
    }

    async fn label(&self, name: &str, version: u64, labels: Labels) -> Result<bool, Refusal> {
        let wanted = labels.clone();
        let after = facts(self, Request::LabelVolume { name: name.into(), version, labels }).await?;
        // Asked again after a lost answer, the version is not the one that was seen, and the labels are those that were wanted.
        Ok(after.first().is_some_and(|facts| facts.labels == wanted))
    }

    async fn set_open(&self, name: &str, open: OpenPolicy) -> Result<(), Refusal> {
        volume(self, Request::SetOpenPolicy { name: name.into(), open }).await
    }

    async fn limit(&self, name: &str, limits: Limits) -> Result<(), Refusal> {
        volume(self, Request::LimitVolume { name: name.into(), limits }).await
    }

    async fn delete(&self, name: &str) -> Result<(), Refusal> {
        volume(self, Request::DeleteVolume { name: name.into() }).await
    }

    async fn raise_generation(&self, of: VolumeId, instance: &str, generation: u64) -> Result<(), Refusal> {
        let (instance, generation) = (instance.to_owned(), InstanceGeneration(generation));
        let request = Request::RaiseGeneration { volume: of, instance, generation };
        match self.request(ShardId::VOLUMES, request, FENCE_PATIENCE).await? {
            Response::Done => Ok(()),
            other => odd(&other),
        }
    }

    async fn status(&self) -> Result<ClusterStatus, Refusal> {
        match self.request(ShardId::CLUSTER, Request::Status, PATIENCE).await? {
            Response::Status(status) => Ok(*status),
            other => odd(&other),
        }
    }
}
