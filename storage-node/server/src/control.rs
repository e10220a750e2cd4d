//! Asking shard 0: finds its leader among the metadata servers and stays with it. The map says who they are from the first map on.

use crate::config::MetadataServer;
use crate::servers_file::ServersFile;
use bytes::Bytes;
use holdfast_rpc::{ConnectError, Identity, Peer, PeerIdentity, PeerOptions, Role, Transport};
use holdfast_types::{LogIndex, Sequence, ServerId, SessionId, ShardId, Term};
use holdfast_wire::codec;
use holdfast_wire::kind::Kind;
use holdfast_wire::metadata::{Answer, Envelope, MetadataError, Request, Response};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Pause after a server that is not the leader and knows none, or cannot be reached.
const PAUSE: Duration = Duration::from_millis(50);

/// A metadata server, and the way there.
type Known = (ServerId, Peer);

/// The metadata servers, from a storage node's point of view.
pub(crate) struct Control {
    servers: RwLock<Vec<Known>>,
    identity: Identity,
    runtime: tokio::runtime::Handle,
    file: Arc<ServersFile>,
    /// Position in `servers` of the one that answered last.
    leader: AtomicUsize,
}

impl Control {
    /// Must be called within a tokio runtime.
    pub fn new(identity: &Identity, servers: &[MetadataServer], file: ServersFile) -> Result<Self, ConnectError> {
        let servers = file.with(servers);
        let known = servers.iter().map(|server| connect(identity, ServerId(server.id), &server.address));
        let known = known.collect::<Result<Vec<Known>, _>>()?;
        let (identity, runtime) = (identity.clone(), tokio::runtime::Handle::current());
        Ok(Self { servers: RwLock::new(known), identity, runtime, file: Arc::new(file), leader: AtomicUsize::new(0) })
    }

    /// The servers are these, from now on. Of those known already the configured address counts.
    pub fn learn(&self, found: &BTreeMap<ServerId, String>) {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let same = servers.len() == found.len() && servers.iter().all(|(id, _)| found.contains_key(id));
        if found.is_empty() || same {
            return;
        }
        let _guard = self.runtime.enter();
        let way = |(id, address): (&ServerId, &String)| {
            let known = servers.iter().find(|(other, _)| other == id).cloned();
            known.map_or_else(|| connect(&self.identity, *id, address), Ok)
        };
        match found.iter().map(way).collect::<Result<Vec<Known>, _>>() {
            Ok(known) => {
                *servers = known;
                let one = |(id, address): (&ServerId, &String)| MetadataServer { id: id.0, address: address.clone() };
                let (file, list) = (Arc::clone(&self.file), found.iter().map(one).collect());
                // A disk that hangs holds up nobody else.
                self.runtime.spawn_blocking(move || file.keep(list));
            }
            Err(error) => tracing::warn!(%error, "the map names a metadata server that is out of reach"),
        }
    }

    fn known(&self) -> Vec<Known> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        let servers = self.known();
        let mut at = self.leader.load(Ordering::Relaxed) % servers.len();
        let mut reason = String::from("no metadata server answered");
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(MetadataError::Unavailable { reason });
            }
            let call = servers[at].1.call(Kind::Metadata as u16, message.clone(), Bytes::new(), left.min(patience));
            let next = match call.await {
                Ok(response) => match codec::decode::<Answer>(&response.message) {
                    Ok(Answer { result: Err(MetadataError::NotLeader { hint }), .. }) => {
                        reason = format!("{} does not lead", servers[at].0);
                        servers.iter().position(|(id, _)| Some(*id) == hint).filter(|hint| *hint != at)
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
                    at = (at + 1) % servers.len();
                    tokio::time::sleep(PAUSE.min(end.saturating_duration_since(Instant::now()))).await;
                }
            }
        }
    }

    /// Ends the connections.
    pub async fn close(&self) {
        for (_, peer) in self.known() {
            peer.close().await;
        }
    }
}

fn connect(identity: &Identity, id: ServerId, address: &str) -> Result<Known, ConnectError> {
    let options = PeerOptions {
        local: true,
        connect_timeout: Duration::from_secs(1),
        pause_most: Duration::from_millis(250),
        ..PeerOptions::default()
    };
    let expected = Some(PeerIdentity { role: Role::Metadata, id: id.0 });
    let peer = Peer::new(identity.clone(), Transport::Quic, vec![address.parse()?], expected, options);
    Ok((id, peer))
}
