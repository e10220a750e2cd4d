//! Requests outside of a session: `holdfast admin`, and the first things `up` does.

use crate::cluster_file::ClusterFile;
use crate::transport::Transport;
use holdfast_client_core::Failure;
use holdfast_types::{LogIndex, NodeId, Sequence, ServerId, SessionId, ShardId, Term};
use holdfast_wire::admin::{AdminAnswer, AdminRequest};
use holdfast_wire::metadata::{Envelope, MetadataError, Request, Response};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Longest wait for one server's answer before the next is asked.
const ATTEMPT: Duration = Duration::from_secs(5);

/// A connection to the metadata service as a whole. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    transport: Arc<dyn Transport>,
    servers: Arc<RwLock<Vec<ServerId>>>,
    /// Index into `servers` of who answered last.
    favourite: Arc<AtomicUsize>,
}

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Our certificate or key is of no use.
    #[error("cannot use the certificate: {0}")]
    Identity(String),
    /// Nobody who leads answered. The request may or may not take effect.
    #[error("no metadata leader answered within {waited:?} ({detail})")]
    Unavailable {
        /// How long it was tried.
        waited: Duration,
        /// What the last attempt came to.
        detail: String,
    },
    /// A leader refused.
    #[error(transparent)]
    Refused(MetadataError),
}

impl Cluster {
    /// Prepares a connection; nothing is sent yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`RequestError::Identity`].
    pub fn connect(file: &ClusterFile) -> Result<Self, RequestError> {
        let transport = crate::transport::connect(file).map_err(RequestError::Identity)?;
        let servers = file.metadata.iter().map(|m| m.server()).collect();
        let servers = Arc::new(RwLock::new(servers));
        Ok(Self { transport: transport.into(), servers, favourite: Arc::default() })
    }

    /// Asks the leader of a shard, wherever it is, until it answers or `timeout` has passed.
    ///
    /// A request whose outcome is unknown is sent again: only for requests that may be repeated (all those outside of a session may).
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request(&self, shard: ShardId, request: Request, timeout: Duration) -> Result<Response, RequestError> {
        Ok(self.request_at(shard, request, timeout).await?.0)
    }

    /// As [`Cluster::request`]; says as well which entry of the shard's log the answer holds at. Of a read: everything that anybody was told
    /// is done before it was asked is at or below it.
    ///
    /// # Errors
    /// [`RequestError`].
    pub async fn request_at(
        &self,
        shard: ShardId,
        request: Request,
        timeout: Duration,
    ) -> Result<(Response, LogIndex), RequestError> {
        let started = tokio::time::Instant::now();
        let servers = self.servers();
        let mut at = self.favourite.load(Ordering::Relaxed) % servers.len();
        let mut pause = Duration::from_millis(20);
        loop {
            let left = timeout.saturating_sub(started.elapsed());
            let envelope = Envelope {
                shard,
                session: SessionId::NONE,
                sequence: Sequence(0),
                answered_below: Sequence(0),
                term: Term(0),
                request: request.clone(),
            };
            let answer = self.transport.metadata(servers[at], envelope, left.min(ATTEMPT)).await;
            let mut hinted = None;
            let detail = match answer {
                Ok(answer) => match answer.result {
                    Ok(response) => {
                        self.favourite.store(at, Ordering::Relaxed);
                        return Ok((response, answer.applied));
                    }
                    Err(MetadataError::NotLeader { hint }) => {
                        hinted = hint.and_then(|h| servers.iter().position(|s| *s == h)).filter(|i| *i != at);
                        format!("{} does not lead", servers[at])
                    }
                    Err(MetadataError::Unavailable { reason }) => format!("{}: {reason}", servers[at]),
                    Err(error) => return Err(RequestError::Refused(error)),
                },
                Err(Failure::Unreachable) => format!("{} is not reachable", servers[at]),
                Err(Failure::TimedOut) => format!("{} does not answer", servers[at]),
            };
            if started.elapsed() + pause >= timeout {
                return Err(RequestError::Unavailable { waited: started.elapsed(), detail });
            }
            at = hinted.unwrap_or((at + 1) % servers.len());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Asks one server about itself. `None`: it does not answer.
    pub async fn ask_server(&self, server: ServerId, request: AdminRequest, timeout: Duration) -> Option<AdminAnswer> {
        self.transport.admin(server, request, timeout).await.ok()
    }

    /// Asks one storage node about what it holds. `None`: it does not answer.
    pub async fn ask_storage(
        &self,
        node: NodeId,
        address: &str,
        request: AdminRequest,
        timeout: Duration,
    ) -> Option<AdminAnswer> {
        self.transport.admin_storage(node, address, request, timeout).await.ok()
    }

    /// The metadata servers that are known: those of the cluster file, and those learned since.
    pub fn servers(&self) -> Vec<ServerId> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There are these as well.
    pub fn learn(&self, found: &BTreeMap<ServerId, String>) {
        self.transport.learn(found);
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<ServerId> = found.keys().copied().filter(|id| !servers.contains(id)).collect();
        servers.extend(new);
    }
}
