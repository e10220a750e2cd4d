//! The shell around the core, over a transport without sockets.

use super::{Client, MountError};
use crate::transport::{Boxed, Transport};
use crate::{Call, ClientError, Config, Notice};
use holdfast_client_core::{ChunkCall, ChunkReply, Failure, Input};
use holdfast_types::{
    FileName, Generation, InodeId, LogIndex, MapVersion, NodeId, ServerId, SessionId, ShardId, SnapshotNumber,
};
use holdfast_types::{Term, Timestamp, VolumeId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest};
use holdfast_wire::map::MapUpdate;
use holdfast_wire::metadata::{Answer, ClientRecord, Envelope, Event, MetadataError, Request, Response};
use holdfast_wire::namespace::{Attributes, FileKind, NamespaceError, Outcome, Query, VolumeRecord};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// What the service of a test does.
#[derive(Default)]
struct Stub {
    /// Event to be given to the session.
    recall: AtomicBool,
    stopped: AtomicBool,
    lookups: AtomicU64,
    /// Lookups are not answered.
    silent: AtomicBool,
}

struct StubTransport(Arc<Stub>);

fn root() -> Attributes {
    let t = Timestamp::default();
    Attributes {
        inode: InodeId::ROOT,
        kind: FileKind::Directory,
        mode: 0o755,
        links: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        atime: t,
        mtime: t,
        ctime: t,
        btime: t,
        generation: Generation(1),
        cuts: 0,
        sparse: false,
        trim_from: None,
        size_bound: 0,
        parent: InodeId::ROOT,
    }
}

async fn respond(stub: Arc<Stub>, request: Request, timeout: Duration) -> Result<Response, MetadataError> {
    let volume = VolumeRecord {
        id: VolumeId(1),
        name: "main".into(),
        groups: 1,
        placement_version: 1,
        snapshot: SnapshotNumber(0),
        origin: None,
        bytes_max: None,
        inodes_max: None,
        open: Default::default(),
        limits_version: 0,
        shard: ShardId::VOLUMES,
    };
    match request {
        Request::OpenSession { volume: name, .. } if name == "main" => {
            Ok(Response::SessionOpened { session: SessionId(5), volume, map_min: MapVersion(1) })
        }
        Request::OpenSession { volume: name, .. } => Err(MetadataError::NoVolume { name }),
        Request::Attach { .. } => {
            Ok(Response::Attached { root: root(), caching: true, now: Timestamp::default(), event: 0 })
        }
        Request::Renew { seen, wait } => {
            let recalled = || seen == 0 && stub.recall.load(Ordering::SeqCst);
            let mut waited = Duration::ZERO;
            while wait && !recalled() && waited < timeout / 2 {
                tokio::time::sleep(Duration::from_millis(2)).await;
                waited += Duration::from_millis(2);
            }
            let events = if recalled() { vec![(1, Event::StopCaching)] } else { Vec::new() };
            Ok(Response::Renewed { events, caching: !stub.stopped.load(Ordering::SeqCst), now: Timestamp::default() })
        }
        Request::GetMap { .. } => {
            tokio::time::sleep(timeout / 2).await;
            Ok(Response::Map(MapUpdate::Unchanged))
        }
        Request::StoppedCaching { event: 1, .. } => {
            stub.stopped.store(true, Ordering::SeqCst);
            Ok(Response::Done)
        }
        Request::Query(Query::Lookup { .. }) => {
            stub.lookups.fetch_add(1, Ordering::SeqCst);
            while stub.silent.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(NamespaceError::NotFound.into())
        }
        Request::Query(Query::GetAttributes { .. }) => {
            Ok(Response::Outcome(Outcome::Attributes { attributes: root(), lease: None }))
        }
        Request::Detach => Ok(Response::Done),
        other => panic!("not asked in these tests: {other:?}"),
    }
}

impl Transport for StubTransport {
    fn learn(&self, _servers: &std::collections::BTreeMap<ServerId, String>) {}

    fn metadata(&self, _: ServerId, envelope: Envelope, timeout: Duration) -> Boxed<Result<Answer, Failure>> {
        let stub = Arc::clone(&self.0);
        Box::pin(async move {
            let result = tokio::time::timeout(timeout, respond(stub, envelope.request, timeout)).await;
            let result = result.map_err(|_| Failure::TimedOut)?;
            Ok(Answer { term: Term(1), applied: LogIndex(1), result })
        })
    }

    fn admin(&self, _: ServerId, _: AdminRequest, _: Duration) -> Boxed<Result<AdminAnswer, Failure>> {
        Box::pin(async { Err(Failure::Unreachable) })
    }

    fn admin_storage(&self, _: NodeId, _: &str, _: AdminRequest, _: Duration) -> Boxed<Result<AdminAnswer, Failure>> {
        Box::pin(async { Err(Failure::Unreachable) })
    }

    fn chunk(&self, _: ChunkCall, _: Duration) -> Boxed<Result<ChunkReply, Failure>> {
        Box::pin(async { Err(Failure::Unreachable) })
    }
}

fn config(volume: &str) -> Config {
    Config::new(volume, ClientRecord::default(), vec![ServerId(1)], 7)
}

fn lookup(name: &str) -> Call {
    Call::Lookup { parent: InodeId::ROOT, name: FileName::new(name.as_bytes()).expect("a name") }
}

fn transport(stub: &Arc<Stub>) -> Box<dyn Transport> {
    Box::new(StubTransport(Arc::clone(stub)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_memory_is_answered_before_the_call_returns() {
    let stub = Arc::new(Stub::default());
    let (client, _notices) = Client::start(config("main"), transport(&stub)).await.expect("mounts");
    assert!(client.cache_ttl() > Duration::from_secs(3));
    assert_eq!(client.ask(lookup("a")).await, Err(NamespaceError::NotFound.into()));
    let (sender, receiver) = mpsc::channel();
    let here = std::thread::current().id();
    client.call(lookup("a"), move |result| sender.send((result, std::thread::current().id())).expect("received"));
    let (result, thread) = receiver.try_recv().expect("answered already");
    assert_eq!((result, thread), (Err(NamespaceError::NotFound.into()), here));
    assert_eq!(stub.lookups.load(Ordering::SeqCst), 1, "asked once");
    client.unmount().await.expect("unmounts");
    assert!(matches!(client.ask(lookup("a")).await, Err(ClientError::SessionOver { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_waits_for_any_more_is_given_up() {
    let stub = Arc::new(Stub::default());
    stub.silent.store(true, Ordering::SeqCst);
    let (client, _notices) = Client::start(config("main"), transport(&stub)).await.expect("mounts");
    let given_up = tokio::time::timeout(Duration::from_millis(50), client.ask(lookup("a"))).await;
    assert!(given_up.is_err());
    assert!(client.shared.lock().waiting.is_empty(), "nothing is kept for it");
    let (sender, receiver) = mpsc::channel();
    let id = client.call(lookup("b"), move |result| sender.send(result).expect("received"));
    client.cancel(id);
    assert_eq!(receiver.try_recv(), Ok(Err(ClientError::Interrupted)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recall_is_announced_and_answered_when_it_was_confirmed() {
    let stub = Arc::new(Stub::default());
    let (client, mut notices) = Client::start(config("main"), transport(&stub)).await.expect("mounts");
    stub.recall.store(true, Ordering::SeqCst);
    let notice = tokio::time::timeout(Duration::from_secs(20), notices.recv()).await.expect("in time");
    assert_eq!(notice, Some(Notice::StopCaching { event: 1 }));
    assert_eq!(client.cache_ttl(), Duration::ZERO);
    assert!(!stub.stopped.load(Ordering::SeqCst));
    client.invalidated(1);
    let told = async {
        while !stub.stopped.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("the service is told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_does_not_exist_cannot_be_mounted() {
    let stub = Arc::new(Stub::default());
    let refused = Client::start(config("other"), transport(&stub)).await.err().expect("no such volume");
    assert!(matches!(refused, MountError::Client(ClientError::Refused { .. })), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_of_a_call_that_panics_costs_no_other_call_of_its_step() {
    let stub = Arc::new(Stub::default());
    stub.silent.store(true, Ordering::SeqCst);
    let (client, _notices) = Client::start(config("main"), transport(&stub)).await.expect("mounts");
    let (sender, receiver) = mpsc::channel();
    for name in ["first", "second", "third"] {
        let sender = sender.clone();
        client.call(lookup(name), move |result| {
            assert_ne!(name, "second", "a panic on purpose");
            sender.send((name, result.is_err())).expect("received");
        });
    }
    drop(sender);
    // The end of the session ends them all, in one step and in order.
    client.unmount().await.expect("unmounts");
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [("first", true), ("third", true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_panics_fails_its_call_and_the_next_goes_on() {
    let stub = Arc::new(Stub::default());
    stub.silent.store(true, Ordering::SeqCst);
    let (client, _notices) = Client::start(config("main"), transport(&stub)).await.expect("mounts");
    let (sender, receiver) = mpsc::channel();
    let id = client.call(lookup("a"), move |result| sender.send(result).expect("received"));
    // Two calls of one number are a fault that the core does not live with.
    client.shared.step(client.shared.lock(), Input::Call { id, call: lookup("b") });
    assert_eq!(receiver.try_recv(), Ok(Err(ClientError::Internal)));
    assert!(client.shared.lock().waiting.is_empty(), "nothing is kept for it");
    stub.silent.store(false, Ordering::SeqCst);
    assert_eq!(client.ask(lookup("c")).await, Err(NamespaceError::NotFound.into()));
    client.unmount().await.expect("unmounts");
}
