//! Being called: one listening socket, its connections, and their end.

use crate::connection::{Connection, Side};
use crate::error::ConnectError;
use crate::handler::Handler;
use crate::identity::Identity;
use crate::listen::{Knock, Listener};
use crate::local;
use crate::shared::{Bounds, Shared};
use crate::stream::{Address, Transport};
use crate::table::End;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// How a server treats its connections.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Bytes of calls of ours under way per connection, and of one-way messages queued; reading stops at twice as many bytes of
    /// requests unanswered or answers not taken. Default: 64 MiB.
    pub bytes_max: u64,
    /// Listen on a Unix socket, too, for callers on this host, unless the transport is plain. Default: false.
    pub local: bool,
    /// Silence after which we say that we live. Default: 1 s.
    pub heartbeat: Duration,
    /// Silence after which a peer counts as gone. Default: 5 s.
    pub idle_timeout: Duration,
    /// Time for a stranger to prove who he is. Default: 5 s.
    pub hello_timeout: Duration,
    /// Strangers at a time; further ones wait in the socket's queue. Default: 128.
    pub strangers_max: usize,
    /// Connections at a time; further ones are closed at once. Default: 16,384.
    pub connections_max: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            bytes_max: 64 << 20,
            local: false,
            heartbeat: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            strangers_max: 128,
            connections_max: 16_384,
        }
    }
}

/// A listening server. Dropping it ends everything at once; [`Self::shutdown`] lets answers out first.
#[derive(Debug)]
pub struct Server {
    address: Address,
    stop: watch::Sender<Option<Duration>>,
    task: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` (port 0: any) and gives what arrives to `handler`.
    ///
    /// # Errors
    /// [`ConnectError`] when the address is taken or the identity proves nothing where it must.
    pub async fn bind(
        transport: Transport,
        address: &Address,
        identity: Identity,
        handler: Arc<dyn Handler>,
        options: ServerOptions,
    ) -> Result<Self, ConnectError> {
        let (listener, address) = Listener::bind(&identity, transport, address).await?;
        tracing::debug!(%address, %transport, "listening");
        let local = address.port().filter(|_| options.local && transport != Transport::Plain);
        let local = local.and_then(|port| local::listen(&identity, port));
        let (stop, stopped) = watch::channel(None);
        let host = Arc::new(Host { identity, handler, options, open: Mutex::default() });
        let task = tokio::spawn(accept(listener, local, host, stopped));
        Ok(Self { address, stop, task: Some(task) })
    }

    /// Where it listens, with the port that was chosen.
    pub fn local_address(&self) -> &Address {
        &self.address
    }

    /// The port, where there is one.
    pub fn local_port(&self) -> Option<u16> {
        self.address.port()
    }

    /// Stops listening, refuses new requests, waits up to `grace` for the answers to those under way, closes every connection,
    /// and returns when all tasks have ended.
    pub async fn shutdown(mut self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        if let Some(task) = self.task.take() {
            // A panic of the accepting task was logged where it happened.
            let _ = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            // Its set of connections goes with it.
            task.abort();
        }
    }
}

/// What all connections of a server share.
struct Host {
    identity: Identity,
    handler: Arc<dyn Handler>,
    options: ServerOptions,
    open: Mutex<Open>,
}

/// The connections there are, strangers included.
#[derive(Default)]
struct Open {
    connections: BTreeMap<u64, Arc<Shared>>,
    draining: bool,
}

/// Waits for the next who knocks at the socket for callers on this host; for ever where there is none.
async fn accept_local(listener: Option<&UnixListener>) -> io::Result<Option<Knock>> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| Some(Knock::Local(stream))),
        None => std::future::pending().await,
    }
}

async fn accept(
    listener: Listener,
    local: Option<UnixListener>,
    host: Arc<Host>,
    mut stopped: watch::Receiver<Option<Duration>>,
) {
    let mut connections = JoinSet::new();
    let strangers = Arc::new(Semaphore::new(host.options.strangers_max));
    let grace = loop {
        let knock = async {
            let permit = strangers.clone().acquire_owned().await.expect("never closed");
            let knock = tokio::select! {
                knock = listener.accept() => knock,
                knock = accept_local(local.as_ref()) => knock,
            };
            (permit, knock)
        };
        tokio::select! {
            (permit, knock) = knock => match knock {
                Ok(Some(knock)) if connections.len() < host.options.connections_max => {
                    let host = host.clone();
                    connections.spawn(async move { host.receive(knock, permit).await });
                }
                Ok(Some(knock)) => tracing::warn!(remote = knock.remote(), "too many connections; closing this one"),
                Ok(None) => break Duration::ZERO,
                Err(error) => {
                    // Out of descriptors, most likely: those who leave make room.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = stopped.changed() => break stopped.borrow().unwrap_or_default(),
        }
    };
    drop(local);
    host.drain();
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(grace, all).await.is_err() {
        connections.shutdown().await;
    }
    listener.close().await;
}

/// Takes a connection out of the list and ends it, also when its task is cancelled.
struct Entry {
    host: Arc<Host>,
    shared: Arc<Shared>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.host.open().connections.remove(&self.shared.id());
        self.shared.close(&End::Closed("the connection ended".into()));
    }
}

impl Host {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("nothing panics under this lock")
    }

    fn enter(&self, shared: &Arc<Shared>) {
        let mut open = self.open();
        open.connections.insert(shared.id(), shared.clone());
        if open.draining {
            shared.drain();
        }
    }

    fn drain(&self) {
        let mut open = self.open();
        open.draining = true;
        open.connections.values().for_each(|shared| shared.drain());
    }

    async fn receive(self: Arc<Self>, knock: Knock, permit: tokio::sync::OwnedSemaphorePermit) {
        let remote = knock.remote();
        let bounds = Bounds {
            bytes_max: self.options.bytes_max,
            heartbeat: self.options.heartbeat,
            idle_timeout: self.options.idle_timeout,
        };
        let units = Shared::semaphore(&bounds);
        let name: Arc<str> = remote.as_str().into();
        let shared = Arc::new(Shared::new(self.identity.clone(), name, bounds, units, Arc::new(AtomicU64::new(0))));
        self.enter(&shared);
        let _entry = Entry { host: self.clone(), shared: shared.clone() };
        let admit = async {
            let stream = knock.admit(&self.identity).await?;
            Connection::introduce(stream, shared.clone(), Side::Answered).await
        };
        let timeout = self.options.hello_timeout;
        let admitted = tokio::time::timeout(timeout, admit).await.unwrap_or(Err(ConnectError::Timeout(timeout)));
        drop(permit);
        match admitted {
            Err(error) => tracing::info!(remote, %error, "turned away"),
            Ok(connection) => {
                connection.run(Some(&*self.handler), |end| shared.close(&end)).await;
            }
        }
    }
}
