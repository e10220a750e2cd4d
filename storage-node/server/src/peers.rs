//! Connections to other storage nodes: one ordered, one-way stream to each that we speak to.
//!
//! * A connection is opened by the first message to a node, and again whenever it is lost.
//! * What does not fit into a stream's queue ends the connection: the other end must not see a gap that nobody knows of.

use crate::owner::Owner;
use holdfast_rpc::{Address, CastError, Handler, Identity, Link, Peer, PeerIdentity, PeerOptions, Role, Transport};
use holdfast_storage_core::Input;
use holdfast_types::NodeId;
use holdfast_wire::codec;
use holdfast_wire::group::GroupMessage;
use holdfast_wire::kind::Kind;
use holdfast_wire::map::ClusterMap;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Bytes queued for one node at the most. Groups bound what they send; this bounds their sum.
const QUEUE_BYTES_MAX: u64 = 256 << 20;
/// Longest pause between attempts: a node that comes back should be found soon.
const PAUSE_MOST: Duration = Duration::from_millis(250);

/// Streams to other nodes.
pub(crate) struct Peers {
    identity: Identity,
    transport: Transport,
    addresses: BTreeMap<NodeId, String>,
    streams: BTreeMap<NodeId, Stream>,
    owner: Weak<Owner>,
    runtime: tokio::runtime::Handle,
}

struct Stream {
    address: String,
    peer: Peer,
    /// Set when it is given up: its last words are not believed.
    retired: Arc<AtomicBool>,
}

/// Tells the owner of connections made and lost.
struct Watcher {
    node: NodeId,
    retired: Arc<AtomicBool>,
    owner: Weak<Owner>,
}

impl Watcher {
    fn tell(&self, input: Input) {
        if !self.retired.load(Ordering::Acquire)
            && let Some(owner) = self.owner.upgrade()
        {
            owner.submit([input]);
        }
    }
}

impl Handler for Watcher {
    fn connected(&self, _: &PeerIdentity, _: &Link) {
        self.tell(Input::PeerConnected { node: self.node });
    }

    fn refused(&self) {
        self.tell(Input::PeerRefused { node: self.node });
    }

    fn disconnected(&self, _: &PeerIdentity, _: &Link) {
        self.tell(Input::PeerLost { node: self.node });
    }
}

impl Peers {
    /// Streams that end when the owner does. Must be called within a tokio runtime.
    pub fn new(identity: Identity, transport: Transport, owner: Weak<Owner>) -> Self {
        let runtime = tokio::runtime::Handle::current();
        Self { identity, transport, addresses: BTreeMap::new(), streams: BTreeMap::new(), owner, runtime }
    }

    /// Learns where nodes are; a stream to an address that is no longer a node's is given up.
    pub fn learn(&mut self, map: &ClusterMap) {
        self.addresses = map.nodes.values().map(|node| (node.id, node.address.clone())).collect();
        let moved = |node: &NodeId, stream: &Stream| self.addresses.get(node) != Some(&stream.address);
        let gone: Vec<NodeId> = self.streams.iter().filter(|(n, s)| moved(n, s)).map(|(n, _)| *n).collect();
        for node in gone {
            if let Some(stream) = self.streams.remove(&node) {
                stream.retired.store(true, Ordering::Release);
                // The core learns it here, because the stream itself is not believed any more.
                if let Some(owner) = self.owner.upgrade() {
                    owner.submit([Input::PeerLost { node }]);
                }
            }
        }
    }

    /// Queues a message for a node. Without a connection it is dropped, and one is opened.
    pub fn send(&mut self, to: NodeId, message: &GroupMessage, payload: bytes::Bytes) {
        if !self.streams.contains_key(&to) && !self.open(to) {
            return;
        }
        let Some(stream) = self.streams.get(&to) else { return };
        if stream.peer.link().is_none() {
            return;
        }
        match stream.peer.cast(Kind::Group as u16, codec::encode(message), payload) {
            Ok(()) | Err(CastError::NotConnected) => {}
            Err(error) => {
                tracing::warn!(%to, %error, "a message does not fit; the connection is made anew");
                if let Some(link) = stream.peer.link() {
                    link.close();
                }
            }
        }
    }

    fn open(&mut self, to: NodeId) -> bool {
        let Some(address) = self.addresses.get(&to) else { return false };
        let parsed: Address = match address.parse() {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!(%to, %error, "the map has an address that is none");
                return false;
            }
        };
        let retired = Arc::new(AtomicBool::new(false));
        let watcher = Watcher { node: to, retired: Arc::clone(&retired), owner: Weak::clone(&self.owner) };
        let options = PeerOptions {
            local: true,
            keep_connected: true,
            pause_most: PAUSE_MOST,
            bytes_max: QUEUE_BYTES_MAX,
            handler: Some(Arc::new(watcher)),
            ..PeerOptions::default()
        };
        let expected = Some(PeerIdentity { role: Role::Storage, id: to.0 });
        let _runtime = self.runtime.enter();
        let peer = Peer::new(self.identity.clone(), self.transport, vec![parsed], expected, options);
        self.streams.insert(to, Stream { address: address.clone(), peer, retired });
        true
    }

    /// Ends all streams.
    pub fn close(&mut self) {
        for stream in std::mem::take(&mut self.streams).into_values() {
            stream.retired.store(true, Ordering::Release);
        }
    }
}
