//! A transport that measures how long messages take. Each way of the one within stays what it is: what leaves on the caller's thread
//! there leaves on it here.

use crate::metrics::Metrics;
use crate::transport::{Boxed, Then, Transport};
use holdfast_client_core::{ChunkCall, ChunkReply, Failure};
use holdfast_types::{NodeId, ServerId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest};
use holdfast_wire::metadata::{Answer, Envelope, Request};
use holdfast_wire::namespace::Query;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// Passes everything on.
pub(crate) struct Metered {
    pub inner: Box<dyn Transport>,
    pub metrics: Arc<Metrics>,
}

/// The name of a request, and whether a server answers it at once.
fn name(request: &Request) -> (&'static str, bool) {
    match request {
        Request::Query(query) => (query.into(), !matches!(query, Query::AwaitTrim { .. } | Query::AwaitLock { .. })),
        Request::Mutate(mutation) => (mutation.into(), true),
        Request::Renew { wait, .. } | Request::GetMap { wait, .. } => (request.into(), !wait),
        other => (other.into(), !matches!(other, Request::Attach { .. })),
    }
}

impl Transport for Metered {
    fn metadata(&self, server: ServerId, envelope: Envelope, timeout: Duration) -> Boxed<Result<Answer, Failure>> {
        let (metrics, begun, (name, told)) = (Arc::clone(&self.metrics), Instant::now(), name(&envelope.request));
        let answer = self.inner.metadata(server, envelope, timeout);
        Box::pin(async move {
            let result = answer.await;
            metrics.message("metadata", (server.0, name), begun, result.is_err(), told);
            result
        })
    }

    fn admin(&self, server: ServerId, request: AdminRequest, timeout: Duration) -> Boxed<Result<AdminAnswer, Failure>> {
        self.inner.admin(server, request, timeout)
    }

    fn admin_storage(
        &self,
        node: NodeId,
        address: &str,
        request: AdminRequest,
        timeout: Duration,
    ) -> Boxed<Result<AdminAnswer, Failure>> {
        self.inner.admin_storage(node, address, request, timeout)
    }

    fn learn(&self, servers: &BTreeMap<ServerId, String>) {
        self.inner.learn(servers);
    }

    fn chunk(&self, call: ChunkCall, timeout: Duration) -> Boxed<Result<ChunkReply, Failure>> {
        let (metrics, begun, node) = (Arc::clone(&self.metrics), Instant::now(), call.node);
        let name = (&call.request().op).into();
        let answer = self.inner.chunk(call, timeout);
        Box::pin(async move {
            let result = answer.await;
            metrics.message("storage", (node.0, name), begun, result.is_err(), true);
            result
        })
    }

    fn metadata_then(
        &self,
        runtime: &Handle,
        server: ServerId,
        envelope: Envelope,
        timeout: Duration,
        then: Then<Answer>,
    ) {
        let (metrics, begun, (name, told)) = (Arc::clone(&self.metrics), Instant::now(), name(&envelope.request));
        let measured = move |result: Result<Answer, Failure>| {
            metrics.message("metadata", (server.0, name), begun, result.is_err(), told);
            then(result);
        };
        self.inner.metadata_then(runtime, server, envelope, timeout, Box::new(measured));
    }

    fn chunk_then(&self, runtime: &Handle, call: ChunkCall, timeout: Duration, then: Then<ChunkReply>) {
        let (metrics, begun, node) = (Arc::clone(&self.metrics), Instant::now(), call.node);
        let name = (&call.request().op).into();
        let measured = move |result: Result<ChunkReply, Failure>| {
            metrics.message("storage", (node.0, name), begun, result.is_err(), true);
            then(result);
        };
        self.inner.chunk_then(runtime, call, timeout, Box::new(measured));
    }
}
