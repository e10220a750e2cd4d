//! How messages travel: a trait, so that a client can be tested without sockets; and the real thing, over `holdfast-rpc`.

use crate::cluster_file::ClusterFile;
use bytes::{Bytes, BytesMut};
use holdfast_client_core::{ChunkCall, ChunkReply, Failure};
use holdfast_rpc::{Address, Expect, Identity, Peer, PeerIdentity, PeerOptions, Response, Role, RpcError};
use holdfast_types::{NodeId, ServerId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest};
use holdfast_wire::chunk::ChunkRequest;
use holdfast_wire::codec;
use holdfast_wire::kind::Kind;
use holdfast_wire::metadata::{Answer, Envelope};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Connections to one storage node: enough that a large write does not hold up a small read.
const STORAGE_LANES: usize = 3;
/// Bytes under way on one of them.
const STORAGE_LANE_BYTES: u64 = 32 << 20;
/// How long a request that failed on the spot waits before it says so: nobody is to try again in a tight loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(5);

/// Payloads from this size on are looked at in a task of their own: the connection's task reads the next one meanwhile.
const APART_BYTES: usize = 64 << 10;

/// A boxed future.
pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Takes the answer: on any thread, once, without blocking.
pub(crate) type Then<T> = Box<dyn FnOnce(Result<T, Failure>) + Send>;

/// Sends requests and waits for their answers, at most for `timeout`.
pub(crate) trait Transport: Send + Sync + 'static {
    /// To a metadata server.
    fn metadata(&self, server: ServerId, envelope: Envelope, timeout: Duration) -> Boxed<Result<Answer, Failure>>;
    /// To a metadata server, about itself.
    fn admin(&self, server: ServerId, request: AdminRequest, timeout: Duration) -> Boxed<Result<AdminAnswer, Failure>>;
    /// To a storage node, about what it holds.
    fn admin_storage(
        &self,
        node: NodeId,
        address: &str,
        request: AdminRequest,
        timeout: Duration,
    ) -> Boxed<Result<AdminAnswer, Failure>>;
    /// There are these metadata servers as well. Of those known already the cluster file's address counts: it may be another one
    /// from here than from the servers' own network.
    fn learn(&self, servers: &BTreeMap<ServerId, String>);
    /// To a storage node; seals and checks.
    fn chunk(&self, call: ChunkCall, timeout: Duration) -> Boxed<Result<ChunkReply, Failure>>;

    /// As [`Transport::metadata`], without a task of its own where that can be avoided: waking one costs as much as the request.
    fn metadata_then(
        &self,
        runtime: &Handle,
        server: ServerId,
        envelope: Envelope,
        timeout: Duration,
        then: Then<Answer>,
    ) {
        let answer = self.metadata(server, envelope, timeout);
        runtime.spawn(async move { then(answer.await) });
    }

    /// As [`Transport::chunk`], likewise.
    fn chunk_then(&self, runtime: &Handle, call: ChunkCall, timeout: Duration, then: Then<ChunkReply>) {
        let answer = self.chunk(call, timeout);
        runtime.spawn(async move { then(answer.await) });
    }
}

/// Pieces as one run; copies only when there are several.
fn join(mut pieces: Vec<Bytes>) -> Bytes {
    match pieces.len() {
        0 => Bytes::new(),
        1 => pieces.remove(0),
        _ => {
            let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
            for piece in &pieces {
                whole.extend_from_slice(piece);
            }
            whole.freeze()
        }
    }
}

/// Prepares connections to a cluster; none is made yet. Must be called within a tokio runtime.
///
/// # Errors
/// What is wrong with the certificate, key or addresses.
pub(crate) fn connect(cluster: &ClusterFile) -> Result<Box<dyn Transport>, String> {
    let tls = &cluster.tls;
    let identity = Identity::load(&tls.certificate, &tls.key, &tls.authority).map_err(|e| e.to_string())?;
    if identity.cluster() != cluster.cluster {
        return Err(format!("the certificate is of cluster {}, the file of {}", identity.cluster(), cluster.cluster));
    }
    let runtime = Handle::current();
    let sockets = Sockets { identity, metadata: Mutex::default(), storage: Mutex::default(), runtime };
    cluster.metadata.iter().try_for_each(|server| sockets.add(server.server(), &server.address))?;
    Ok(Box::new(sockets))
}

/// QUIC to metadata servers, TCP with TLS to storage nodes.
struct Sockets {
    identity: Identity,
    metadata: Mutex<BTreeMap<ServerId, Peer>>,
    storage: Mutex<BTreeMap<NodeId, (String, Peer)>>,
    runtime: Handle,
}

impl Sockets {
    /// A metadata server is at this place.
    fn add(&self, server: ServerId, address: &str) -> Result<(), String> {
        let mut metadata = self.metadata.lock().unwrap_or_else(PoisonError::into_inner);
        if metadata.contains_key(&server) {
            return Ok(());
        }
        let parsed: Address = address.parse().map_err(|e: holdfast_rpc::ConnectError| e.to_string())?;
        let expected = Expect::Exactly(PeerIdentity { role: Role::Metadata, id: server.0 });
        let options = PeerOptions { local: true, ..PeerOptions::default() };
        let _guard = self.runtime.enter();
        let peer = Peer::new(self.identity.clone(), holdfast_rpc::Transport::Quic, vec![parsed], expected, options);
        metadata.insert(server, peer);
        Ok(())
    }

    fn server(&self, server: ServerId) -> Option<Peer> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner).get(&server).cloned()
    }

    /// The node's connections, made anew when the map has another address for it.
    fn storage(&self, node: NodeId, address: &str) -> Result<Peer, Failure> {
        let mut storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, peer)) = storage.get(&node)
            && known == address
        {
            return Ok(peer.clone());
        }
        let parsed: Address = address.parse().map_err(|error: holdfast_rpc::ConnectError| {
            tracing::warn!(%node, %error, "storage node's address is of no use");
            Failure::Unreachable
        })?;
        let expected = Expect::Exactly(PeerIdentity { role: Role::Storage, id: node.get() });
        let options =
            PeerOptions { lanes: STORAGE_LANES, local: true, bytes_max: STORAGE_LANE_BYTES, ..PeerOptions::default() };
        let peer = Peer::new(self.identity.clone(), holdfast_rpc::Transport::Tls, vec![parsed], expected, options);
        storage.insert(node, (address.to_owned(), peer.clone()));
        Ok(peer)
    }

    fn control<A: serde::de::DeserializeOwned + 'static>(
        &self,
        server: ServerId,
        kind: Kind,
        message: Bytes,
        timeout: Duration,
    ) -> Boxed<Result<A, Failure>> {
        let peer = self.server(server);
        Box::pin(async move {
            let peer = peer.ok_or(Failure::Unreachable)?;
            let answer = match peer.call(kind as u16, message, Bytes::new(), timeout).await {
                Ok(answer) => answer,
                Err(error) => return Err(failed(&error).await),
            };
            understood(server, &answer)
        })
    }
}

/// The answer of a metadata server.
fn understood<A: serde::de::DeserializeOwned>(server: ServerId, answer: &Response) -> Result<A, Failure> {
    codec::decode(&answer.message).map_err(|error| {
        tracing::warn!(%server, %error, "answer not understood");
        Failure::Unreachable
    })
}

/// The answer of a storage node, its sums checked.
fn check(node: NodeId, request: &ChunkRequest, answer: Response) -> Result<ChunkReply, Failure> {
    match codec::decode(&answer.message) {
        Ok(message) => Ok(ChunkReply::check(request, message, answer.payload)),
        Err(error) => {
            tracing::warn!(%node, %error, "answer not understood");
            Err(Failure::Unreachable)
        }
    }
}

/// There is nobody to ask: says so a little later, as [`failed`] does.
fn fail_later<T: 'static>(runtime: &Handle, then: Then<T>) {
    runtime.spawn(async move {
        tokio::time::sleep(FAILURE_PAUSE).await;
        then(Err(Failure::Unreachable));
    });
}

/// What a failed call means to the core: it asks again in either case, with the same sequence.
async fn failed(error: &RpcError) -> Failure {
    tracing::debug!(%error, "request failed");
    match error {
        RpcError::Deadline { .. } => Failure::TimedOut,
        RpcError::Unreachable { .. }
        | RpcError::Closed { .. }
        | RpcError::Full { .. }
        | RpcError::TooLarge(_)
        | RpcError::Refused { .. } => {
            tokio::time::sleep(FAILURE_PAUSE).await;
            Failure::Unreachable
        }
    }
}

impl Transport for Sockets {
    fn learn(&self, servers: &BTreeMap<ServerId, String>) {
        for (server, address) in servers {
            if let Err(error) = self.add(*server, address) {
                tracing::warn!(%server, error, "a metadata server is out of reach");
            }
        }
    }

    fn metadata(&self, server: ServerId, envelope: Envelope, timeout: Duration) -> Boxed<Result<Answer, Failure>> {
        self.control(server, Kind::Metadata, codec::encode(&envelope), timeout)
    }

    fn admin(&self, server: ServerId, request: AdminRequest, timeout: Duration) -> Boxed<Result<AdminAnswer, Failure>> {
        self.control(server, Kind::Admin, codec::encode(&request), timeout)
    }

    fn admin_storage(
        &self,
        node: NodeId,
        address: &str,
        request: AdminRequest,
        timeout: Duration,
    ) -> Boxed<Result<AdminAnswer, Failure>> {
        let peer = self.storage(node, address);
        Box::pin(async move {
            let answer = match peer?.call(Kind::Admin as u16, codec::encode(&request), Bytes::new(), timeout).await {
                Ok(answer) => answer,
                Err(error) => return Err(failed(&error).await),
            };
            codec::decode(&answer.message).map_err(|error| {
                tracing::warn!(%node, %error, "answer not understood");
                Failure::Unreachable
            })
        })
    }

    fn chunk(&self, call: ChunkCall, timeout: Duration) -> Boxed<Result<ChunkReply, Failure>> {
        let node = call.node;
        let peer = self.storage(node, &call.address);
        Box::pin(async move {
            let peer = peer?;
            let (request, pieces) = call.seal();
            let message = codec::encode(&request);
            let answer = match peer.call(Kind::Chunk as u16, message, join(pieces), timeout).await {
                Ok(answer) => answer,
                Err(error) => return Err(failed(&error).await),
            };
            check(node, &request, answer)
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
        let Some(peer) = self.server(server) else { return fail_later(runtime, then) };
        let runtime = runtime.clone();
        peer.call_then(Kind::Metadata as u16, codec::encode(&envelope), Bytes::new(), timeout, move |answer| {
            match answer {
                Ok(answer) => then(understood(server, &answer)),
                Err(error) => drop(runtime.spawn(async move { then(Err(failed(&error).await)) })),
            }
        });
    }

    fn chunk_then(&self, runtime: &Handle, call: ChunkCall, timeout: Duration, then: Then<ChunkReply>) {
        let node = call.node;
        // The caller may be a thread of the kernel's requests, and connections are tasks of the runtime.
        let entered = runtime.enter();
        let Ok(peer) = self.storage(node, &call.address) else { return fail_later(runtime, then) };
        let runtime = runtime.clone();
        drop(entered);
        let (request, pieces) = call.seal();
        let message = codec::encode(&request);
        peer.call_then(Kind::Chunk as u16, message, join(pieces), timeout, move |answer| match answer {
            Ok(answer) if answer.payload.len() < APART_BYTES => then(check(node, &request, answer)),
            Ok(answer) => drop(runtime.spawn(async move { then(check(node, &request, answer)) })),
            Err(error) => drop(runtime.spawn(async move { then(Err(failed(&error).await)) })),
        });
    }
}
