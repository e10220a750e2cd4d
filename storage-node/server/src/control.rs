//! Asking shard 0: finds its leader among the metadata servers and stays with it.

use bytes::Bytes;
use holdfast_rpc::{ConnectError, Identity, Peer, PeerIdentity, PeerOptions, Role, Transport};
use holdfast_types::{LogIndex, Sequence, ServerId, SessionId, ShardId, Term};
use holdfast_wire::codec;
use holdfast_wire::kind::Kind;
use holdfast_wire::metadata::{Answer, Envelope, MetadataError, Request, Response};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Pause after a server that is not the leader and knows none, or cannot be reached.
const PAUSE: Duration = Duration::from_millis(50);

/// The metadata servers, from a storage node's point of view.
pub(crate) struct Control {
    servers: Vec<(ServerId, Peer)>,
    /// Position in `servers` of the one that answered last.
    leader: AtomicUsize,
}

impl Control {
    /// Must be called within a tokio runtime.
    pub fn new(identity: &Identity, servers: &[crate::config::MetadataServer]) -> Result<Self, ConnectError> {
        let mut peers = Vec::with_capacity(servers.len());
        for server in servers {
            let options = PeerOptions {
                local: true,
                connect_timeout: Duration::from_secs(1),
                pause_most: Duration::from_millis(250),
                ..PeerOptions::default()
            };
            let expected = Some(PeerIdentity { role: Role::Metadata, id: server.id });
            let addresses = vec![server.address.parse()?];
            let peer = Peer::new(identity.clone(), Transport::Quic, addresses, expected, options);
            peers.push((ServerId(server.id), peer));
        }
        Ok(Self { servers: peers, leader: AtomicUsize::new(0) })
    }

    /// Asks until the leader has answered or `deadline` has passed; one server gets `patience` at the most. Safe for
    /// requests that may be executed twice, as all of a storage node's are.
    pub async fn ask(
        &self,
        request: Request,
        deadline: Duration,
        patience: Duration,
    ) -> Result<Response, MetadataError> {
        let message = codec::encode(&Envelope {
            shard: ShardId::CLUSTER,
            session: SessionId::NONE,
            sequence: Sequence(0),
            answered_below: Sequence(0),
            term: Term(0),
            request,
        });
        let end = Instant::now() + deadline;
        let mut at = self.leader.load(Ordering::Relaxed) % self.servers.len();
        let mut reason = String::from("no metadata server answered");
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(MetadataError::Unavailable { reason });
            }
            let call =
                self.servers[at].1.call(Kind::Metadata as u16, message.clone(), Bytes::new(), left.min(patience));
            let next = match call.await {
                Ok(response) => match codec::decode::<Answer>(&response.message) {
                    Ok(Answer { result: Err(MetadataError::NotLeader { hint }), .. }) => {
                        reason = format!("{} does not lead", self.servers[at].0);
                        self.position(hint).filter(|hint| *hint != at)
                    }
                    Ok(Answer { result, applied: LogIndex(_), .. }) => {
                        self.leader.store(at, Ordering::Relaxed);
                        return result;
                    }
                    Err(error) => return Err(MetadataError::Unavailable { reason: error.to_string() }),
                },
                Err(error) => {
                    reason = error.to_string();
                    None
                }
            };
            match next {
                Some(hint) => at = hint,
                None => {
                    at = (at + 1) % self.servers.len();
                    tokio::time::sleep(PAUSE.min(end.saturating_duration_since(Instant::now()))).await;
                }
            }
        }
    }

    fn position(&self, server: Option<ServerId>) -> Option<usize> {
        self.servers.iter().position(|(id, _)| Some(*id) == server)
    }

    /// Ends the connections.
    pub async fn close(&self) {
        for (_, peer) in &self.servers {
            peer.close().await;
        }
    }
}
