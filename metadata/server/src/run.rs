//! A metadata server from its start to its stop.

use crate::check::Checks;
use crate::config::Config;
use crate::disk::{self, DiskError, Shard};
use crate::log_store::Birth;
use crate::log_writer;
use crate::metrics::Metrics;
use crate::node::{Arrival, Inlet, Node, Workers, now};
use crate::peers::Peers;
use crate::room;
use crate::service::Service;
use crate::snapshots::Snapshots;
use holdfast_metadata_core::api::TICK;
use holdfast_metadata_core::{Config as CoreConfig, Input, MetadataCore, Recovered, RecoveredShard, StartError};
use holdfast_rpc::{Address, ConnectError, Identity, IdentityError, Server, ServerOptions, Transport};
use holdfast_store::Table;
use holdfast_telemetry::http::{self, ListenError};
use holdfast_telemetry::metrics::Registry;
use holdfast_types::{LogIndex, ServerId, ShardId, prng};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a planned stop waits for others to lead.
const LEAVE: Duration = Duration::from_millis(500);
/// How long opening is tried by a server that starts anew, and the pause between.
const OPEN_AGAIN: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_secs(1);
/// How long answers under way may take at a stop.
const GRACE: Duration = Duration::from_millis(500);

/// Why a server does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificate, key or authority.
    #[error("certificate: {0}")]
    Identity(#[from] IdentityError),
    /// The certificate is another process's.
    #[error("the certificate is {found}'s, the configuration is metadata-{expected}'s")]
    WrongCertificate {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: u64,
    },
    /// The data directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Log and table do not fit together, or the table cannot be read.
    #[error(
        "{reason}. Metadata server {id} must not go on by guessing; the others have everything and serve meanwhile. Put a new one in its \
         place (it may have the same address, and starts from what they have): holdfast admin metadata replace {id} NEW-ID HOST:PORT"
    )]
    Start {
        /// What does not fit, with its causes.
        reason: String,
        /// Who.
        id: u64,
    },
    /// The core refuses its configuration.
    #[error(transparent)]
    Core(StartError),
    /// The cluster wants no more of it.
    #[error(
        "{reason}. It must not start again under its id {id}; to put another in its place: \
         holdfast admin metadata replace {id} NEW-ID HOST:PORT, or admin metadata add NEW-ID HOST:PORT"
    )]
    Expelled {
        /// Why.
        reason: String,
        /// Who.
        id: u64,
    },
    /// The address.
    #[error("cannot listen: {0}")]
    Listen(#[from] ConnectError),
    /// The telemetry address.
    #[error(transparent)]
    Telemetry(#[from] ListenError),
    /// An address in the configuration.
    #[error("configuration: {0}")]
    Address(String),
    /// The system has no thread to give.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The loop ended by itself: a bug, and the log says where.
    #[error("the server's loop ended unexpectedly")]
    Died,
}

/// Where a running server is reached.
#[derive(Clone, Debug)]
pub struct Listening {
    /// By its peers.
    pub address: String,
    /// By whoever watches it; `None`: it was told not to listen.
    pub telemetry: Option<std::net::SocketAddr>,
}

/// Runs a metadata server until `shutdown` becomes true. `ready` is called once, with its addresses, when it listens. One that halts because
/// its disk is full starts anew, from what it holds, when there is room.
///
/// # Errors
/// [`Error`]
pub async fn run(
    config: Config,
    shutdown: watch::Receiver<bool>,
    ready: impl FnOnce(Listening) + Send,
) -> Result<(), Error> {
    let mut ready = Some(ready);
    let mut again = None;
    loop {
        let say = |listening| {
            if let Some(ready) = ready.take() {
                ready(listening);
            }
        };
        match run_once(config.clone(), shutdown.clone(), say).await {
            Ok(Ended::Asked) => return Ok(()),
            Ok(Ended::RoomAgain) => again = Some(Instant::now()),
            // A backup or a check may hold on to the tables of the life before for a while.
            Err(Error::Disk(error)) if again.is_some_and(|since| since.elapsed() < OPEN_AGAIN) => {
                tracing::warn!(%error, "not opened yet; trying again");
                if tokio::time::timeout(PAUSE, shutdown.clone().wait_for(|stop| *stop)).await.is_ok() {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Why one life of a server is over, if not by an error.
enum Ended {
    /// It was asked to stop.
    Asked,
    /// It had halted for want of room, and there is some.
    RoomAgain,
}

async fn run_once(
    config: Config,
    mut shutdown: watch::Receiver<bool>,
    ready: impl FnOnce(Listening) + Send,
) -> Result<Ended, Error> {
    let identity = identity(&config)?;
    let opened = {
        let config = config.clone();
        // Opening replays logs and may take a while: not on the runtime's threads.
        tokio::task::spawn_blocking(move || disk::open(&config)).await.map_err(|_| Error::Died)??
    };
    let (birth, shards) = opened;
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::register(&mut registry, config.slow_operation.0));
    let endpoint = http::serve(&config.telemetry_address, registry, metrics.clone()).await?;
    let checks = Checks::new(shards.each_ref().map(|shard| Arc::clone(&shard.table)));
    let snapshots = Snapshots::new(shards.each_ref().map(|shard| Arc::clone(&shard.table)));
    let (node, inlet, threads) = assemble(&config, &identity, (&birth, shards), &metrics)?;
    let address: Address = config.address.parse()?;
    let handler = Arc::new(Service { inlet: inlet.clone(), checks, snapshots });
    let options = ServerOptions { local: true, ..ServerOptions::default() };
    let server = match Server::bind(Transport::Quic, &address, identity, handler, options).await {
        Ok(server) => server,
        Err(error) => {
            end(&node, threads).await;
            return Err(error.into());
        }
    };
    let telemetry = endpoint.as_ref().map(http::Endpoint::address);
    ready(Listening { address: server.local_address().to_string(), telemetry });
    let ticks = tokio::spawn(tick(inlet.clone()));
    let mut dead = node.dead();
    let (mut died, mut how) = (false, Ended::Asked);
    tokio::select! {
        _ = shutdown.wait_for(|stop| *stop) => {}
        _ = dead.wait_for(|dead| *dead) => died = true,
        () = room::watch(config.data.clone(), inlet, &metrics) => how = Ended::RoomAgain,
    }
    if !died {
        // Whoever is in the middle of something goes on with the next leader at once, in place of waiting for an election.
        let _ = tokio::time::timeout(LEAVE, node.leave()).await;
    }
    ticks.abort();
    let ended = end(&node, threads).await;
    server.shutdown(GRACE).await;
    match node.expelled() {
        Some(reason) => Err(Error::Expelled { reason, id: config.id }),
        None if died || !ended => Err(Error::Died),
        None => Ok(how),
    }
}

/// Lets the threads end, logs with a last sync, and waits for them. Whether none had panicked.
async fn end(node: &Node, threads: Vec<JoinHandle<()>>) -> bool {
    node.close();
    let join = move || threads.into_iter().filter_map(|thread| thread.join().err()).count() == 0;
    tokio::task::spawn_blocking(join).await.unwrap_or(false)
}

/// Tells the node that time passes. Ticks queue behind what arrived before them, so that nobody who wrote in time counts as silent
/// because we were late.
async fn tick(inlet: Inlet) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        inlet.send(Arrival::Tick);
    }
}

fn identity(config: &Config) -> Result<Identity, Error> {
    let identity = Identity::load(&config.certificate, &config.key, &config.authority)?;
    let me = identity.me();
    if me.role != holdfast_rpc::Role::Metadata || me.id != config.id || identity.cluster() != config.cluster_id() {
        let found = format!("{me} of {}", identity.cluster());
        return Err(Error::WrongCertificate { found, expected: config.id });
    }
    Ok(identity)
}

/// The node, the way to it, and the threads that work for it.
type Assembled = (Arc<Node>, Inlet, Vec<JoinHandle<()>>);

fn assemble(
    config: &Config,
    identity: &Identity,
    (birth, opened): (&Birth, [Shard; 2]),
    metrics: &Arc<Metrics>,
) -> Result<Assembled, Error> {
    let inlet = Inlet::default();
    let [cluster, volumes] = opened;
    let tables = [cluster.table.clone(), volumes.table.clone()];
    let recovered = |shard: &Shard| RecoveredShard {
        hard_state: shard.recovered.hard_state,
        base: shard.recovered.base,
        entries: shard.recovered.entries.clone(),
        table: shard.table.clone(),
    };
    let recovered = Recovered { cluster: recovered(&cluster), volumes: recovered(&volumes) };
    let core = MetadataCore::new(core_config(config, birth), recovered, now()).map_err(|error| match &error {
        StartError::Damaged { .. } | StartError::Store(_) => {
            Error::Start { reason: disk::with_causes(&error), id: config.id }
        }
        StartError::Config(_) | StartError::Raft(_) => Error::Core(error),
    })?;
    let servers = config.servers.iter().map(|server| (ServerId(server.id), server.address.clone()));
    let peers = Peers::new(identity.clone(), servers, inlet.clone()).map_err(Error::Address)?;
    let confirm = || {
        let inlet = inlet.clone();
        move |input: Input| inlet.send(Arrival::Input(input))
    };
    let (log_0, thread_0) = log_writer::start(ShardId::CLUSTER, cluster.log, metrics.clone(), confirm())?;
    let (log_1, thread_1) = log_writer::start(ShardId::VOLUMES, volumes.log, metrics.clone(), confirm())?;
    let [table_0, table_1] = tables;
    let (persist_0, thread_2) = table_persister(ShardId::CLUSTER, table_0, metrics.clone(), confirm())?;
    let (persist_1, thread_3) = table_persister(ShardId::VOLUMES, table_1, metrics.clone(), confirm())?;
    let workers = Workers { logs: [log_0, log_1], tables: [persist_0, persist_1], peers };
    let node = Node::new(core, workers, Arc::clone(metrics), &inlet);
    Ok((node, inlet, vec![thread_0, thread_1, thread_2, thread_3]))
}

fn core_config(config: &Config, birth: &Birth) -> CoreConfig {
    // Who was there at the first start, and not who stands in the file today: others come and go through the log.
    let voters = birth.founders.clone();
    let servers = config.servers.iter().map(|server| (ServerId(server.id), server.address.clone()));
    let servers = servers.filter(|(id, _)| voters.contains(id)).collect();
    // Different on each server and at each start, so that two never stand for election in step for long.
    let seed = prng::mix(config.id ^ now().0 ^ u64::from(std::process::id()) << 32);
    CoreConfig {
        replicas: config.replicas,
        groups: config.groups,
        storage_expected: config.storage_expected,
        out_after: config.out_after.0,
        servers,
        life: birth.life,
        ..CoreConfig::new(config.server_id(), config.cluster_id(), voters, seed)
    }
}

/// The thread that persists a table when asked; requests that wait together are served by one persist.
fn table_persister(
    shard: ShardId,
    table: Arc<dyn Table>,
    metrics: Arc<Metrics>,
    confirm: impl Fn(Input) + Send + 'static,
) -> Result<(Sender<LogIndex>, JoinHandle<()>), std::io::Error> {
    let (sender, queue) = channel::<LogIndex>();
    let thread = std::thread::Builder::new().name(format!("table-{}", shard.0)).spawn(move || {
        while let Ok(first) = queue.recv() {
            let waiting: Vec<LogIndex> = std::iter::once(first).chain(queue.try_iter()).collect();
            let begun = std::time::Instant::now();
            let result = table.persist();
            metrics.stage("table_persist", begun.elapsed());
            if let Err(error) = result {
                tracing::error!(%shard, %error, "table cannot be persisted; this shard stops on this server");
                return confirm(Input::PersistFailed { shard, reason: error.to_string() });
            }
            for applied in waiting {
                confirm(Input::TablesPersisted { shard, applied });
            }
        }
    })?;
    Ok((sender, thread))
}
