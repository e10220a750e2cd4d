//! Shard 0 as nodes see it, without Raft: one process, one lock, whole maps.

use holdfast_rpc::{
    Address, Handler, Identity, Incoming, PeerIdentity, Refusal, Responder, Server, ServerOptions, Transport,
};
use holdfast_types::{Epoch, GroupId, LogIndex, MapVersion, MemberId, NodeId, SessionId, Term, Timestamp, VolumeId};
use holdfast_wire::codec;
use holdfast_wire::map::{ClusterMap, DiskRecord, MapUpdate, NodeRecord, SessionGrant, View};
use holdfast_wire::metadata::{Answer, Envelope, Heartbeat, MetadataError, Request, Response};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub(super) struct FakeMetadata {
    pub(super) address: String,
    state: Arc<Mutex<State>>,
    _server: Server,
}

struct State {
    map: ClusterMap,
    nodes: usize,
    groups: u32,
}

struct Service(Arc<Mutex<State>>);

impl FakeMetadata {
    pub(super) async fn start(identity: Identity, nodes: usize, groups: u32) -> Self {
        let map = ClusterMap {
            version: MapVersion(1),
            replicas: nodes as u32,
            min_in_sync: nodes as u32 / 2 + 1,
            sessions: [(SessionId(1), SessionGrant { volume: VolumeId(1), read_only: false })].into(),
            session_newest: SessionId(1),
            ..ClusterMap::default()
        };
        let state = Arc::new(Mutex::new(State { map, nodes, groups }));
        let service = Arc::new(Service(Arc::clone(&state)));
        let any: Address = "127.0.0.1:0".parse().expect("an address");
        let server = Server::bind(Transport::Quic, &any, identity, service, ServerOptions::default());
        let server = server.await.expect("a free port");
        Self { address: server.local_address().to_string(), state, _server: server }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// The map's version, the view of a group, and where its primary is.
    pub(super) fn primary(&self, group: GroupId) -> (MapVersion, View, String) {
        let state = self.state();
        let view = state.map.view(group).expect("the pool is formed").clone();
        let address = state.map.nodes[&view.primary.node].address.clone();
        (state.map.version, view, address)
    }

    /// Waits until every group has so many members in sync.
    pub(super) async fn until_in_sync(&self, members: usize, patience: Duration) {
        let end = Instant::now() + patience;
        while self.state().map.views.iter().any(|view| view.in_sync.len() < members) {
            assert!(Instant::now() < end, "views: {:#?}", self.state().map.views);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl State {
    fn heartbeat(&mut self, beat: &Heartbeat) {
        let disks: Vec<DiskRecord> = beat
            .disks
            .iter()
            .map(|disk| DiskRecord { id: disk.id, incarnation: disk.incarnation, capacity: disk.capacity })
            .collect();
        let known = self.map.nodes.get(&beat.node).map(|node| (&node.disks, &node.address));
        if known.is_none_or(|(old, address)| {
            *address != beat.address || old.iter().zip(&disks).any(|(a, b)| a.incarnation != b.incarnation)
        }) {
            let record = NodeRecord {
                id: beat.node,
                address: beat.address.clone(),
                labels: Vec::new(),
                disks: disks.clone(),
                alive: true,
            };
            self.map.nodes.insert(beat.node, record);
            self.map.version = self.map.version.next();
        }
        if self.map.views.is_empty() {
            return self.form();
        }
        if beat.leaving {
            return;
        }
        // Another life is another member: it comes back through `syncing`.
        let now = MemberId { node: beat.node, disk: disks[0].id, incarnation: disks[0].incarnation };
        for group in 0..self.map.views.len() {
            if !self.map.views[group].has(now) {
                self.change(group, |view| {
                    remove(view, beat.node);
                    if view.in_sync.is_empty() {
                        // Nobody else held it: the last member stays the last member, in its new life.
                        view.in_sync.push(now);
                        view.primary = now;
                    } else {
                        view.syncing.push(now);
                    }
                });
            }
        }
    }

    fn form(&mut self) {
        if self.map.nodes.len() < self.nodes {
            return;
        }
        let member = |node: &NodeRecord| MemberId {
            node: node.id,
            disk: node.disks[0].id,
            incarnation: node.disks[0].incarnation,
        };
        let members: Vec<MemberId> = self.map.nodes.values().map(member).collect();
        self.map.views = (0..self.groups)
            .map(|group| View {
                epoch: Epoch(1),
                primary: members[group as usize % members.len()],
                in_sync: members.clone(),
                syncing: Vec::new(),
            })
            .collect();
        self.map.version = self.map.version.next();
    }

    fn change(&mut self, group: usize, how: impl FnOnce(&mut View)) {
        let view = &mut self.map.views[group];
        how(view);
        view.epoch = view.epoch.next();
        self.map.version = self.map.version.next();
    }

    fn view(&self, group: GroupId) -> Response {
        let view = self.map.views[group.0 as usize].clone();
        Response::View { group, view, version: self.map.version }
    }

    fn answer(&mut self, request: Request) -> Result<Response, MetadataError> {
        Ok(match request {
            Request::Heartbeat(beat) => {
                self.heartbeat(&beat);
                Response::Heard { version: self.map.version, now: Timestamp::default() }
            }
            Request::GetMap { have, .. } if have >= self.map.version => Response::Map(MapUpdate::Unchanged),
            Request::GetMap { .. } => Response::Map(MapUpdate::Full(Box::new(self.map.clone()))),
            Request::Promote { group, epoch, member } => {
                let view = &self.map.views[group.0 as usize];
                if view.epoch == epoch && view.syncing.contains(&member) {
                    self.change(group.0 as usize, |view| {
                        view.syncing.retain(|other| *other != member);
                        view.in_sync.push(member);
                        view.in_sync.sort_unstable();
                    });
                }
                self.view(group)
            }
            Request::Evict { group, epoch, member, .. } => {
                let view = &self.map.views[group.0 as usize];
                let others = view.in_sync.iter().filter(|other| **other != member).count();
                if view.epoch == epoch && others >= self.map.min_in_sync as usize {
                    self.change(group.0 as usize, |view| remove(view, member.node));
                }
                self.view(group)
            }
            // Silence tells here.
            Request::ReportGone { .. } => Response::Done,
            Request::LeaveViews { node } => {
                for group in 0..self.map.views.len() {
                    let view = &self.map.views[group];
                    if view.members().any(|m| m.node == node) && view.in_sync.iter().any(|m| m.node != node) {
                        self.change(group, |view| remove(view, node));
                    }
                }
                Response::Done
            }
            other => panic!("a storage node does not ask {other:?}"),
        })
    }
}

fn remove(view: &mut View, node: NodeId) {
    view.in_sync.retain(|member| member.node != node);
    view.syncing.retain(|member| member.node != node);
    if let (true, Some(first)) = (view.primary.node == node, view.in_sync.first()) {
        view.primary = *first;
    }
}

impl Handler for Service {
    fn handle(&self, _: &PeerIdentity, incoming: Incoming, respond: Responder) {
        let Ok(envelope) = codec::decode::<Envelope>(&incoming.message) else {
            return respond.refuse(Refusal::Unhandled);
        };
        let result = self.0.lock().expect("no panic under this lock").answer(envelope.request);
        let answer = Answer { term: Term(1), applied: LogIndex(1), result };
        respond.send(codec::encode(&answer), bytes::Bytes::new());
    }
}
