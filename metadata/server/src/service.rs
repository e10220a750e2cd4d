//! What arrives over the control transport becomes an [`Arrival`] of the node. Runs on the connections' tasks.

use crate::check::Checks;
use crate::node::{Arrival, Inlet};
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
}

fn caller(peer: &PeerIdentity) -> Caller {
    match peer.role {
        Role::Metadata => Caller::Server(ServerId(peer.id)),
        Role::Storage => Caller::Storage(NodeId(peer.id)),
        Role::Client => Caller::Client,
        Role::Admin => Caller::Admin,
    }
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
                other => {
                    let answer = match other {
                        Err(error) => AdminAnswer::Refused(error.to_string()),
                        Ok(_) if from.role != Role::Admin => {
                            AdminAnswer::Refused("this needs the administrator's certificate (admin/cert.pem)".into())
                        }
                        Ok(AdminRequest::CheckBegin) => self.checks.begin(),
                        Ok(AdminRequest::CheckPoll { check }) => self.checks.poll(check),
                        Ok(
                            AdminRequest::ServerStatus
                            | AdminRequest::ListChunks { .. }
                            | AdminRequest::ScrubStatus
                            | AdminRequest::ScrubNow,
                        ) => AdminAnswer::Refused("a storage node answers this".into()),
                    };
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
