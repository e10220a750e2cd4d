//! What arrives over the control transport becomes an [`Arrival`] of the node. Runs on the connections' tasks.

use crate::check::Checks;
use crate::node::{Arrival, Inlet};
use crate::snapshots::Snapshots;
use holdfast_metadata_core::{Caller, Input};
use holdfast_rpc::{Handler, Incoming, PeerIdentity, Refusal, Responder, Role};
use holdfast_types::{NodeId, ServerId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest};
use holdfast_wire::codec;
use holdfast_wire::kind::Kind;
use holdfast_wire::metadata::Envelope;

/// Gives requests and peers' messages to the node.
pub struct Service {
    /// Where they go.
    pub inlet: Inlet,
    /// Checks of this server's tables.
    pub checks: Checks,
    /// Tables held for backups.
    pub snapshots: Snapshots,
}

fn caller(peer: &PeerIdentity) -> Caller {
    match peer.role {
        Role::Metadata => Caller::Server(ServerId(peer.id)),
        Role::Storage => Caller::Storage(NodeId(peer.id)),
        Role::Client => Caller::Client,
        Role::Admin => Caller::Admin,
    }
}

impl Service {
    /// What an administrator asks of this server's tables, beside the loop.
    fn administer(&self, from: &PeerIdentity, request: AdminRequest, respond: Responder) {
        let answer = match request {
            _ if from.role != Role::Admin => {
                AdminAnswer::Refused("this needs the administrator's certificate (admin/cert.pem)".into())
            }
            AdminRequest::CheckBegin => self.checks.begin(),
            AdminRequest::CheckPoll { check } => self.checks.poll(check),
            AdminRequest::BackupBegin { at_least } => self.snapshots.begin(at_least),
            AdminRequest::BackupJoin { backup, at_least } => self.snapshots.join(backup, at_least),
            AdminRequest::BackupEnd { backup } => self.snapshots.end(backup),
            // These read the disk, and no connection waits for that.
            AdminRequest::BackupRows { backup, shard, after } => {
                let snapshots = self.snapshots.clone();
                return in_the_background(respond, move || snapshots.rows(backup, shard, after));
            }
            AdminRequest::ListFiles { after, limit } => {
                let checks = self.checks.clone();
                return in_the_background(respond, move || checks.files(after, limit));
            }
            AdminRequest::ServerStatus
            | AdminRequest::ListChunks { .. }
            | AdminRequest::HeldMap
            | AdminRequest::ScrubStatus
            | AdminRequest::ScrubNow => AdminAnswer::Refused("a storage node answers this".into()),
        };
        respond.send(codec::encode(&answer), bytes::Bytes::new());
    }
}

fn in_the_background(respond: Responder, answer: impl FnOnce() -> AdminAnswer + Send + 'static) {
    tokio::task::spawn_blocking(move || respond.send(codec::encode(&answer()), bytes::Bytes::new()));
}

impl Handler for Service {
    fn handle(&self, from: &PeerIdentity, request: Incoming, respond: Responder) {
        let arrival = match Kind::from_u16(request.kind) {
            Some(Kind::Metadata) => match codec::decode::<Envelope>(&request.message) {
                Ok(envelope) => Arrival::Request {
                    from: caller(from),
                    envelope: Box::new(envelope),
                    arrived: std::time::Instant::now(),
                    deadline: request.deadline,
                    respond,
                },
                Err(error) => {
                    tracing::warn!(%from, %error, "request not understood");
                    return respond.refuse(Refusal::Unhandled);
                }
            },
            Some(Kind::Admin) => match codec::decode::<AdminRequest>(&request.message) {
                Ok(AdminRequest::ServerStatus) => Arrival::Status(respond),
                Ok(request) => return self.administer(from, request, respond),
                Err(error) => {
                    let answer = AdminAnswer::Refused(error.to_string());
                    return respond.send(codec::encode(&answer), bytes::Bytes::new());
                }
            },
            Some(Kind::Chunk | Kind::Group | Kind::Peer) | None => return respond.refuse(Refusal::Unhandled),
        };
        self.inlet.send(arrival);
    }

    fn one_way(&self, from: &PeerIdentity, message: Incoming) {
        if message.kind != Kind::Peer as u16 || from.role != Role::Metadata {
            return tracing::warn!(%from, kind = message.kind, "one-way message that is none of ours");
        }
        match codec::decode(&message.message) {
            Ok(decoded) => {
                self.inlet.send(Arrival::Input(Input::Peer { from: ServerId(from.id), message: decoded }));
            }
            Err(error) => tracing::warn!(%from, %error, "peer's message not understood"),
        }
    }
}
