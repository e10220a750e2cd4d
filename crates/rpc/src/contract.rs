//! What every transport promises, run over each of them.

use crate::ca::Authority;
use crate::{
    Address, Handler, Identity, Incoming, Link, Peer, PeerIdentity, PeerOptions, Refusal, Responder, Response, Role,
    RpcError, Server, ServerOptions, Transport,
};
use bytes::Bytes;
use holdfast_types::ClusterId;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

mod faults;
mod order;
mod strangers;
mod traffic;

pub(crate) const LONG: Duration = Duration::from_secs(30);
const CLUSTER: ClusterId = ClusterId(77);
static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::create(CLUSTER).expect("keys"));

/// Answered with what came.
const ECHO: u16 = 1;
/// Kept until the test answers.
const HOLD: u16 = 2;
/// Dropped without an answer.
const ABANDON: u16 = 3;

/// Which of the ways a test runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Quic,
    Tls,
    Plain,
    Unix,
    /// The socket beside a port of TLS.
    Local,
}

impl Way {
    fn transport(self) -> Transport {
        match self {
            Self::Quic => Transport::Quic,
            Self::Tls | Self::Local => Transport::Tls,
            Self::Plain | Self::Unix => Transport::Plain,
        }
    }
}

/// Runs each test over each way.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        contract!(@way quic Quic $($name)*);
        contract!(@way tls Tls $($name)*);
        contract!(@way plain Plain $($name)*);
        contract!(@way unix Unix $($name)*);
        contract!(@way local Local $($name)*);
    };
    (@way $module:ident $way:ident $($name:ident)*) => {
        mod $module {
            $(
                #[test]
                fn $name() {
                    $crate::contract::run(super::$name($crate::contract::Way::$way));
                }
            )*
        }
    };
}
use contract;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") });
}

/// Waits until a condition holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never happens that {what}");
}

fn who(role: Role, id: u64) -> PeerIdentity {
    PeerIdentity { role, id }
}

fn identity(role: Role, id: u64) -> Identity {
    AUTHORITY.issue(who(role, id)).expect("issued").identity().expect("usable")
}

fn server_identity() -> Identity {
    static ONE: LazyLock<Identity> = LazyLock::new(|| identity(Role::Storage, 4));
    ONE.clone()
}

fn client_identity() -> Identity {
    static ONE: LazyLock<Identity> = LazyLock::new(|| identity(Role::Client, 9));
    ONE.clone()
}

/// Remembers all, answers by kind.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: Vec<(PeerIdentity, Bytes)>,
    one_ways: Vec<Bytes>,
    held: Vec<(Incoming, Responder)>,
    connected: Vec<(PeerIdentity, Link)>,
    disconnected: usize,
}

impl Recorder {
    fn see<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().expect("no test panics in here"))
    }
}

impl Handler for Recorder {
    fn connected(&self, from: &PeerIdentity, link: &Link) {
        self.see(|seen| seen.connected.push((*from, link.clone())));
    }

    fn handle(&self, from: &PeerIdentity, request: Incoming, respond: Responder) {
        self.see(|seen| {
            seen.requests.push((*from, request.message.clone()));
            match request.kind {
                ECHO => respond.send(request.message, request.payload),
                HOLD => seen.held.push((request, respond)),
                ABANDON => drop(respond),
                _ => respond.refuse(Refusal::Unhandled),
            }
        });
    }

    fn one_way(&self, _: &PeerIdentity, message: Incoming) {
        self.see(|seen| seen.one_ways.push(message.message));
    }

    fn disconnected(&self, _: &PeerIdentity, link: &Link) {
        assert!(!link.is_open(), "the connection is closed before anybody is told");
        self.see(|seen| seen.disconnected += 1);
    }
}

/// A server that records, and a place for it.
struct World {
    way: Way,
    directory: tempfile::TempDir,
    recorder: Arc<Recorder>,
    server: Option<Server>,
}

impl World {
    async fn start(way: Way) -> Self {
        Self::start_with(way, ServerOptions::default()).await
    }

    async fn start_with(way: Way, options: ServerOptions) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut world = Self { way, directory, recorder: Arc::default(), server: None };
        world.serve(&world.any_address(), server_identity(), options).await;
        world
    }

    fn any_address(&self) -> Address {
        self.any_address_of("socket")
    }

    fn any_address_of(&self, name: &str) -> Address {
        match self.way {
            Way::Unix => Address::Unix(self.directory.path().join(name)),
            Way::Quic | Way::Tls | Way::Plain | Way::Local => "127.0.0.1:0".parse().expect("an address"),
        }
    }

    async fn serve(&mut self, address: &Address, identity: Identity, options: ServerOptions) {
        let options = ServerOptions { local: self.way == Way::Local, ..options };
        let bound = Server::bind(self.way.transport(), address, identity, self.recorder.clone(), options).await;
        self.server = Some(bound.expect("bound"));
    }

    fn address(&self) -> Address {
        self.server.as_ref().expect("serving").local_address().clone()
    }

    async fn stop(&mut self) {
        self.server.take().expect("serving").shutdown(Duration::from_millis(200)).await;
    }

    fn peer(&self) -> Peer {
        self.peer_with(PeerOptions::default())
    }

    fn peer_with(&self, options: PeerOptions) -> Peer {
        let options = PeerOptions { local: self.way == Way::Local, ..options };
        let expected = Some(server_identity().me());
        Peer::new(client_identity(), self.way.transport(), vec![self.address()], expected, options)
    }
}

fn text(message: &str) -> Bytes {
    Bytes::copy_from_slice(message.as_bytes())
}

async fn echo(peer: &Peer, message: &str) -> Result<Response, RpcError> {
    peer.call(ECHO, text(message), Bytes::new(), LONG).await
}
