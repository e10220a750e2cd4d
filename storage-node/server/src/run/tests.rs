//! Real nodes with real disks and sockets, under a small metadata service that lives in the test.

mod authority;

use super::*;
use crate::config::{IoChoice, MetadataServer};
use authority::FakeMetadata;
use bytes::Bytes;
use holdfast_rpc::ca::Authority;
use holdfast_rpc::{Peer, PeerIdentity, PeerOptions};
use holdfast_types::checksum::piece_sums;
use holdfast_types::{
    ChunkIndex, ChunkKey, ClusterId, Generation, GroupId, InodeId, Sequence, SessionId, SnapshotNumber, Term, VolumeId,
};
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp, ChunkRequest, Refusal};
use holdfast_wire::codec;
use holdfast_wire::kind::Kind;
use std::path::Path;
use std::time::Instant;

const CLUSTER: ClusterId = ClusterId(0xabc);
const SESSION: SessionId = SessionId(1);
/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster of one test.
struct Cluster {
    directory: tempfile::TempDir,
    authority: Authority,
    metadata: FakeMetadata,
    nodes: Vec<Option<RunningNode>>,
    client: Identity,
    sequence: u64,
}

struct RunningNode {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Cluster {
    async fn start(nodes: u64, groups: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let authority = Authority::create(CLUSTER).expect("certificates can be made");
        let metadata =
            FakeMetadata::start(identity_of(&authority, me(Role::Metadata, 1)), nodes as usize, groups).await;
        let client = identity_of(&authority, me(Role::Client, 1));
        let mut cluster = Self { directory, authority, metadata, nodes: Vec::new(), client, sequence: 0 };
        for node in 1..=nodes {
            cluster.nodes.push(None);
            cluster.start_node(node).await;
        }
        cluster
    }

    fn home(&self, node: u64) -> PathBuf {
        self.directory.path().join(format!("storage-{node}"))
    }

    async fn start_node(&mut self, node: u64) {
        let home = self.home(node);
        std::fs::create_dir_all(&home).expect("a directory for the node");
        self.authority.issue(me(Role::Storage, node)).and_then(|issued| issued.write(&home)).expect("its certificate");
        let config = config(&home, node, &self.metadata.address);
        let (stop, stopped) = watch::channel(false);
        let (said, ready) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(run(config, stopped, |address| drop(said.send(address))));
        tokio::time::timeout(PATIENCE, ready).await.expect("in time").expect("it starts");
        self.nodes[node as usize - 1] = Some(RunningNode { stop, task });
    }

    async fn stop_node(&mut self, node: u64) {
        let running = self.nodes[node as usize - 1].take().expect("it runs");
        running.stop.send_replace(true);
        running.task.await.expect("no panic").expect("a clean end");
    }

    /// Asks the group's primary until it answers, as a client does.
    async fn ask(&mut self, group: u32, op: ChunkOp, payload: Bytes) -> (ChunkAnswer, Bytes) {
        let change = op.is_change();
        self.sequence += u64::from(change);
        let end = Instant::now() + PATIENCE;
        loop {
            let (map_min, view, address) = self.metadata.primary(GroupId(group));
            let request = ChunkRequest {
                session: SESSION,
                sequence: Sequence(if change { self.sequence } else { 0 }),
                floor: Sequence(0),
                map_min,
                term: Term(0),
                snapshot: SnapshotNumber(0),
                group: GroupId(group),
                epoch: view.epoch,
                contended: false,
                repeated: false,
                op: op.clone(),
            };
            let expected = Some(me(Role::Storage, view.primary.node.0));
            let addresses = vec![address.parse().expect("an address")];
            let peer = Peer::new(self.client.clone(), Transport::Tls, addresses, expected, PeerOptions::default());
            let message = codec::encode(&request);
            let result = peer.call(Kind::Chunk as u16, message, payload.clone(), Duration::from_secs(2)).await;
            match result {
                Ok(response) => match codec::decode(&response.message).expect("an answer") {
                    ChunkAnswer::Refused(refusal) if again(&refusal) => {}
                    answer => return (answer, response.payload),
                },
                Err(error) => tracing::debug!(%error, "no answer"),
            }
            assert!(Instant::now() < end, "group {group} does not answer {op:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn write(&mut self, group: u32, offset: u32, bytes: Vec<u8>) {
        let sums = piece_sums(offset, &bytes);
        let op = ChunkOp::Write { chunk: chunk(group), offset, sums };
        let (answer, _) = self.ask(group, op, bytes.into()).await;
        assert!(matches!(answer, ChunkAnswer::Done { .. }), "{answer:?}");
    }

    async fn read(&mut self, group: u32, offset: u32, length: u32) -> Bytes {
        let op = ChunkOp::Read { chunk: chunk(group), offset, length };
        match self.ask(group, op, Bytes::new()).await {
            (ChunkAnswer::Data { sums }, payload) => {
                assert_eq!(sums, piece_sums(offset, &payload));
                payload
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

fn again(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::WrongEpoch { .. }
            | Refusal::NotPrimary
            | Refusal::OldMap { .. }
            | Refusal::NotServing { .. }
            | Refusal::Io
    )
}

fn identity_of(authority: &Authority, who: PeerIdentity) -> Identity {
    authority.issue(who).and_then(|issued| issued.identity()).expect("certificates can be made")
}

fn me(role: Role, id: u64) -> PeerIdentity {
    PeerIdentity { role, id }
}

/// A chunk that belongs to a group of four (or of one).
fn chunk(group: u32) -> ChunkKey {
    let (volume, inode) = (VolumeId(1), InodeId(2));
    let within = |index: &u64| GroupId::of(volume, inode, ChunkIndex(*index), 4).0 == group;
    let index = (0..4).find(within).expect("consecutive chunks fall on consecutive groups");
    ChunkKey { volume, inode, generation: Generation(0), index: ChunkIndex(index), born: SnapshotNumber(0) }
}

fn config(home: &Path, node: u64, metadata: &str) -> Config {
    Config {
        cluster: CLUSTER.to_string(),
        id: node,
        address: "127.0.0.1:0".into(),
        authority: home.join("ca.pem"),
        certificate: home.join("cert.pem"),
        key: home.join("key.pem"),
        cache: holdfast_config::Size(8 << 20),
        telemetry_address: "off".into(),
        slow_operation: holdfast_config::Span(Duration::from_secs(1)),
        leave_on_stop: true,
        test_skip_sync: false,
        labels: Vec::new(),
        scrub: crate::config::ScrubConfig::default(),
        disks: vec![DiskConfig { id: 1, path: home.join("data"), io: IoChoice::Auto }],
        metadata: vec![MetadataServer { id: 1, address: metadata.into() }],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_three_nodes_acknowledged_is_there_whoever_stops_and_starts() {
    let mut cluster = Cluster::start(3, 4).await;
    let large: Vec<u8> = (0..1_000_000u32).map(|i| (i % 253) as u8).collect();
    for group in 0..4 {
        cluster.write(group, 10, vec![group as u8 + 1; 5_000]).await;
        cluster.write(group, 100_001, large.clone()).await;
    }
    assert_eq!(cluster.read(1, 0, 20).await, [vec![0; 10], vec![2; 10]].concat());
    for node in 1..=3 {
        cluster.stop_node(node).await;
        // Two go on, and what the third misses it must get before it counts again.
        for group in 0..4 {
            cluster.write(group, 20_000, vec![0xa0 + node as u8; 100]).await;
            assert_eq!(cluster.read(group, 100_001, 1_000_000).await, large);
        }
        cluster.start_node(node).await;
        cluster.metadata.until_in_sync(3, PATIENCE).await;
    }
    for node in 1..=3 {
        cluster.stop_node(node).await;
    }
    for node in 1..=3 {
        cluster.start_node(node).await;
    }
    for group in 0..4 {
        assert_eq!(cluster.read(group, 19_999, 3).await, [0, 0xa3, 0xa3].as_slice());
        assert_eq!(cluster.read(group, 100_001, 1_000_000).await, large);
    }
    cluster.metadata.until_in_sync(3, PATIENCE).await;
    for node in 1..=3 {
        cluster.stop_node(node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_refuses_strangers_and_other_peoples_sessions_and_disks() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.write(0, 0, vec![1; 100]).await;
    // A client must not speak for the service, nor another storage node for a session.
    let (map_min, view, address) = cluster.metadata.primary(GroupId(0));
    for (who, session) in [(me(Role::Client, 1), SessionId::SERVICE), (me(Role::Storage, 9), SESSION)] {
        let identity = identity_of(&cluster.authority, who);
        let expected = Some(me(Role::Storage, 1));
        let peer =
            Peer::new(identity, Transport::Tls, vec![address.parse().unwrap()], expected, PeerOptions::default());
        let request = ChunkRequest {
            session,
            sequence: Sequence(1),
            floor: Sequence(0),
            map_min,
            term: Term(0),
            snapshot: SnapshotNumber(0),
            group: GroupId(0),
            epoch: view.epoch,
            contended: false,
            repeated: false,
            op: ChunkOp::DeleteVolume { volume: VolumeId(1) },
        };
        let call = peer.call(Kind::Chunk as u16, codec::encode(&request), Bytes::new(), Duration::from_secs(5));
        let answer: ChunkAnswer = codec::decode(&call.await.expect("an answer").message).unwrap();
        assert_eq!(answer, ChunkAnswer::Refused(Refusal::Forbidden), "{who}");
    }
    assert_eq!(cluster.read(0, 0, 100).await, vec![1; 100]);
    cluster.stop_node(1).await;
    // The disk of node 1 is not node 2's.
    let home = cluster.home(1);
    cluster.authority.issue(me(Role::Storage, 2)).unwrap().write(&home).unwrap();
    let (_stop, stopped) = watch::channel(false);
    let error = run(config(&home, 2, &cluster.metadata.address), stopped, |_| {}).await.expect_err("refused");
    assert!(error.to_string().contains("not our disk"), "{error}");
}

/// A node in a thread, and threads of that, which may not use io_uring: as in a container under Docker's or containerd's own profile.
#[test]
fn where_io_uring_is_forbidden_a_node_serves_without_and_refuses_to_start_with_it_by_name() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    let rules = calls.map(|call| (call, Vec::new())).into();
    let arch = std::env::consts::ARCH.try_into().expect("a known machine");
    let forbid = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, forbid, arch).expect("a filter");
    let filter: BpfProgram = filter.try_into().expect("compiles");
    let forbidden = std::thread::spawn(move || {
        seccompiler::apply_filter(&filter).expect("a thread may forbid itself calls");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let mut cluster = Cluster::start(1, 1).await;
            cluster.write(0, 0, vec![1; 1_000_000]).await;
            cluster.write(0, 5_000, vec![2; 100]).await;
            assert_eq!(cluster.read(0, 4_999, 3).await, [1, 2, 2].as_slice());
            cluster.stop_node(1).await;
            let mut config = config(&cluster.home(1), 1, &cluster.metadata.address);
            config.disks[0].io = IoChoice::IoUring;
            let (_stop, stopped) = watch::channel(false);
            run(config, stopped, |_| {}).await.expect_err("refused").to_string()
        })
    });
    let error = forbidden.join().expect("no panic");
    assert!(error.starts_with("disk 1: io = \"io_uring\" cannot be had"), "{error}");
    assert!(error.contains("seccomp=PROFILE.json") && error.contains("io = \"auto\""), "{error}");
}
