//! Connections to the other metadata servers, and to storage nodes for the service's own deletes and cuts.

use crate::node::{Arrival, CHUNK_DEADLINE, Inlet};
use bytes::Bytes;
use holdfast_metadata_core::{ChunkFailure, Input};
use holdfast_rpc::{Address, Identity, Peer, PeerIdentity, PeerOptions, Role, Transport};
use holdfast_types::{NodeId, ServerId};
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest};
use holdfast_wire::codec;
use holdfast_wire::kind::Kind;
use holdfast_wire::peer::PeerMessage;
use std::collections::BTreeMap;
use std::time::Duration;

/// Whom this server calls.
pub struct Peers {
    identity: Identity,
    servers: BTreeMap<ServerId, Peer>,
    /// Servers that have left, and where they were.
    gone: Vec<(ServerId, String)>,
    storage: BTreeMap<NodeId, (String, Peer)>,
    inlet: Inlet,
    runtime: tokio::runtime::Handle,
}

impl Peers {
    /// Prepares connections to the other servers; must be called within a tokio runtime.
    ///
    /// # Errors
    /// A sentence naming the address that is none.
    pub fn new(
        identity: Identity,
        servers: impl Iterator<Item = (ServerId, String)>,
        inlet: Inlet,
    ) -> Result<Self, String> {
        let (known, runtime) = (BTreeMap::new(), tokio::runtime::Handle::current());
        let mut peers = Self { identity, servers: known, gone: Vec::new(), storage: BTreeMap::new(), inlet, runtime };
        servers.into_iter().try_for_each(|(id, address)| peers.add(id, &address, true))?;
        Ok(peers)
    }

    /// The servers are these, from now on.
    pub fn update(&mut self, servers: &[(ServerId, String)], gone: Vec<(ServerId, String)>) {
        self.servers.retain(|id, _| servers.iter().any(|(other, _)| other == id));
        self.gone = gone;
        for (id, address) in servers {
            if let Err(error) = self.add(*id, address, true) {
                tracing::warn!(error, "a metadata server is out of reach");
            }
        }
    }

    fn add(&mut self, id: ServerId, address: &str, keep_connected: bool) -> Result<(), String> {
        // Of those known already the configured address counts.
        if self.servers.contains_key(&id) || id == ServerId(self.identity.me().id) {
            return Ok(());
        }
        let parsed: Address = address.parse().map_err(|error| format!("metadata server {id}: {error}"))?;
        // Raft repeats itself; after a pause it should find the other as soon as it is back.
        let options = PeerOptions {
            keep_connected,
            local: true,
            pause_most: Duration::from_millis(250),
            ..PeerOptions::default()
        };
        let expected = Some(PeerIdentity { role: Role::Metadata, id: id.0 });
        let _guard = self.runtime.enter();
        let peer = Peer::new(self.identity.clone(), Transport::Quic, vec![parsed], expected, options);
        self.servers.insert(id, peer);
        Ok(())
    }

    /// Sends a message to another server; it may be lost, and then the core sends it, or a newer one, again.
    pub fn send(&mut self, to: ServerId, message: &PeerMessage) {
        // One that has left and does not know it yet: a connection is made to say so, and not kept.
        if !self.servers.contains_key(&to)
            && let Some((_, address)) = self.gone.iter().find(|(id, _)| *id == to).cloned()
            && let Err(error) = self.add(to, &address, false)
        {
            tracing::debug!(%to, error, "a server that has left is out of reach");
        }
        if let Some(peer) = self.servers.get(&to)
            && let Err(error) = peer.cast(Kind::Peer as u16, codec::encode(message), Bytes::new())
        {
            tracing::trace!(%to, %error, "message to peer dropped");
        }
    }

    /// Asks a storage node; the answer becomes an input.
    pub fn chunk(&mut self, job: u64, node: NodeId, address: &str, request: &ChunkRequest) {
        let inlet = self.inlet.clone();
        let done = move |result| inlet.send(Arrival::Input(Input::ChunkDone { job, result }));
        let failed = |reason: String| Err(ChunkFailure { reason });
        let peer = match self.storage_peer(node, address) {
            Ok(peer) => peer,
            Err(reason) => return done(failed(reason)),
        };
        peer.call_then(Kind::Chunk as u16, codec::encode(request), Bytes::new(), CHUNK_DEADLINE, move |result| {
            done(match result {
                Ok(response) => {
                    codec::decode::<ChunkAnswer>(&response.message).or_else(|error| failed(error.to_string()))
                }
                Err(error) => failed(error.to_string()),
            });
        });
    }

    fn storage_peer(&mut self, node: NodeId, address: &str) -> Result<Peer, String> {
        if let Some((known, peer)) = self.storage.get(&node)
            && known == address
        {
            return Ok(peer.clone());
        }
        let parsed: Address = address.parse().map_err(|error| format!("storage node {node}: {error}"))?;
        let expected = Some(PeerIdentity { role: Role::Storage, id: node.0 });
        let _guard = self.runtime.enter();
        let options = PeerOptions { local: true, ..PeerOptions::default() };
        let peer = Peer::new(self.identity.clone(), Transport::Tls, vec![parsed], expected, options);
        self.storage.insert(node, (address.to_owned(), peer.clone()));
        Ok(peer)
    }
}
