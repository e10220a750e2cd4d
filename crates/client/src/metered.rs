//! A transport that measures how long messages take.

use crate::metrics::Metrics;
use crate::transport::{Boxed, Transport};
use holdfast_client_core::{ChunkCall, ChunkReply, Failure};
use holdfast_types::{NodeId, ServerId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest};
use holdfast_wire::metadata::{Answer, Envelope, Request};
use holdfast_wire::namespace::Query;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Passes everything on.
pub(crate) struct Metered {
    pub inner: Box<dyn Transport>,
    pub metrics: Arc<Metrics>,
}

/// The name of a request, and whether a server answers it at once.
fn name(request: &Request) -> (&'static str, bool) {
    match request {
        Request::Query(query) => (query.into(), !matches!(query, Query::AwaitTrim { .. })),
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
}
