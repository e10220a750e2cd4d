//! What arrives over the data transport becomes inputs of the core. Runs on the connections' tasks and never blocks.

use crate::clock::from_runtime;
use crate::inspect::Inspector;
use crate::metrics::{Arrived, Metrics, add};
use crate::owner::Owner;
use bytes::Bytes;
use holdfast_rpc::{Handler, Incoming, Link, PeerIdentity, Refusal as RpcRefusal, Responder, Role};
use holdfast_storage_core::Input;
use holdfast_types::{NodeId, SessionId};
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest, Refusal};
use holdfast_wire::codec;
use holdfast_wire::group::GroupMessage;
use holdfast_wire::kind::Kind;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Requests that wait for their answer, and the connections of sessions.
#[derive(Default)]
pub(crate) struct Requests {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, (Responder, Arrived)>>,
    /// Connections that a session's requests came over.
    links: Mutex<BTreeMap<SessionId, Vec<Link>>>,
}

impl Requests {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, (Responder, Arrived)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<SessionId, Vec<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, session: SessionId, arrived: Arrived, respond: Responder) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        if session != SessionId::SERVICE {
            let link = respond.link();
            let mut links = self.links();
            let known = links.entry(session).or_default();
            if !known.contains(&link) {
                known.push(link);
            }
        }
        self.waiting().insert(id, (respond, arrived));
        id
    }

    /// Answers a request, unless its caller has left. Returns how it arrived.
    pub fn answer(&self, id: u64, answer: &ChunkAnswer, payload: Bytes) -> Option<Arrived> {
        let (respond, arrived) = self.waiting().remove(&id)?;
        respond.send(codec::encode(answer), payload);
        Some(arrived)
    }

    /// Requests whose callers have left; they are forgotten.
    pub fn take_cancelled(&self) -> Vec<u64> {
        let mut waiting = self.waiting();
        let left: Vec<u64> =
            waiting.iter().filter(|(_, (respond, _))| respond.cancelled()).map(|(id, _)| *id).collect();
        for id in &left {
            waiting.remove(id);
        }
        left
    }

    /// The session is over: its connections are dropped.
    pub fn end_session(&self, session: SessionId) {
        for link in self.links().remove(&session).unwrap_or_default() {
            link.close();
        }
    }

    fn forget_link(&self, link: &Link) {
        self.links().retain(|_, links| {
            links.retain(|known| known != link);
            !links.is_empty()
        });
    }
}

/// Gives requests and messages to the owner.
pub(crate) struct Service {
    pub owner: Arc<Owner>,
    pub requests: Arc<Requests>,
    pub metrics: Arc<Metrics>,
    pub inspector: Arc<Inspector>,
}

/// Whether a peer may speak for a session: the service's own is the metadata servers', all others are clients'.
fn may_speak_for(peer: &PeerIdentity, session: SessionId) -> bool {
    match peer.role {
        Role::Metadata => session == SessionId::SERVICE,
        Role::Client | Role::Admin => session != SessionId::SERVICE,
        Role::Storage => false,
    }
}

impl Handler for Service {
    fn handle(&self, from: &PeerIdentity, incoming: Incoming, respond: Responder) {
        match Kind::from_u16(incoming.kind) {
            Some(Kind::Chunk) => {}
            Some(Kind::Admin) => return self.inspector.handle(from, &incoming.message, respond),
            Some(Kind::Metadata | Kind::Group | Kind::Peer) | None => return respond.refuse(RpcRefusal::Unhandled),
        }
        let request = match codec::decode::<ChunkRequest>(&incoming.message) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%from, %error, "request not understood");
                return respond.send(codec::encode(&ChunkAnswer::Refused(Refusal::Malformed)), Bytes::new());
            }
        };
        if !may_speak_for(from, request.session) {
            tracing::warn!(%from, session = %request.session, "request for a session that is not the caller's");
            return respond.send(codec::encode(&ChunkAnswer::Refused(Refusal::Forbidden)), Bytes::new());
        }
        let arrived = Arrived { name: (&request.op).into(), group: request.group.0, at: Instant::now() };
        let deadline = from_runtime(incoming.deadline);
        let id = self.requests.enter(request.session, arrived, respond);
        self.owner.submit([Input::Request { id, request, payload: incoming.payload, deadline }]);
    }

    fn one_way(&self, from: &PeerIdentity, incoming: Incoming) {
        if Kind::from_u16(incoming.kind) != Some(Kind::Group) || from.role != Role::Storage {
            return tracing::warn!(%from, kind = incoming.kind, "one-way message that is none of ours");
        }
        match codec::decode::<GroupMessage>(&incoming.message) {
            Ok(message) if message.from.node == NodeId(from.id) => {
                add(&self.metrics.counters.messages, 1);
                self.owner.submit([Input::Peer { from: NodeId(from.id), message, payload: incoming.payload }]);
            }
            Ok(message) => tracing::warn!(%from, claimed = %message.from, "message in another node's name"),
            Err(error) => tracing::warn!(%from, %error, "message not understood"),
        }
    }

    fn disconnected(&self, _: &PeerIdentity, link: &Link) {
        self.requests.forget_link(link);
    }
}
