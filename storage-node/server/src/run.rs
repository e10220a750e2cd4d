//! A storage node from its start to its stop.
//!
//! ```text
//! open disks ──▶ listen ──▶ heartbeats ──heard──▶ ready … serving … ──stop──▶ leave views ──▶ last answers ──▶ checkpoints
//! ```

#[cfg(test)]
mod tests;

use crate::chunk_store::{DiskIdentity, OpenError, StoreOptions};
use crate::clock::now;
use crate::config::{Config, DiskConfig};
use crate::control::Control;
use crate::disk::{self, Report, Store, Threads};
use crate::heartbeat::Beat;
use crate::inspect::Inspector;
use crate::map_file::MapFile;
use crate::medium;
use crate::metrics::{Journeys, Metrics};
use crate::owner::Owner;
use crate::peers::Peers;
use crate::scrub_file::ScrubFile;
use crate::servers_file::ServersFile;
use crate::service::{Requests, Service};
use crate::shell::{Shell, Standing};
use holdfast_journal::io_backend::{self, Chosen};
use holdfast_journal::{DirectoryDisk, Disk as _, IoBackend, IoUnavailable, Syncing};
use holdfast_rpc::{Address, ConnectError, Identity, IdentityError, Role, Server, ServerOptions, Transport};
use holdfast_storage_core::local::GroupState;
use holdfast_storage_core::{Config as CoreConfig, Input, Limits, Mutations, StorageCore};
use holdfast_store::{FjallConfig, FjallTable};
use holdfast_telemetry::http::{self, ListenError};
use holdfast_telemetry::metrics::Registry;
use holdfast_types::limits::NODE_HEARTBEAT;
use holdfast_types::{DiskId, prng};
use holdfast_wire::metadata::Request;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How often the core is told that time passes.
const TICK: Duration = Duration::from_millis(50);
/// How often requests whose callers left are looked for, in ticks.
const CANCELLED_TICKS: u64 = 10;
/// How often the times of scrubs are written down, if there are new ones.
const SCRUBS_KEPT: Duration = Duration::from_secs(2);
/// How long opening is tried by a node that starts anew, and the pause between.
const OPEN_AGAIN: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_secs(1);
/// How long a disk must have room again before its node starts anew.
const ROOM_LASTS: Duration = Duration::from_secs(10);
/// How long answers under way may take at a stop.
const GRACE: Duration = Duration::from_millis(500);
/// How long a planned stop waits for the leader to hear of it, and then to take the node out of its views.
const LEAVE_HEARD: Duration = Duration::from_secs(1);
const LEAVE_DONE: Duration = Duration::from_secs(3);
/// Directory of a disk's index, below the disk's own.
const INDEX: &str = "index";

/// Why a storage node does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificate, key or authority.
    #[error("certificate: {0}")]
    Identity(#[from] IdentityError),
    /// The certificate is another process's.
    #[error("the certificate is {found}'s, the configuration is storage-{expected}'s")]
    WrongCertificate {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: u64,
    },
    /// A disk, and no other is left.
    #[error("disk {id} at {path}: {reason}")]
    Disk {
        /// Which disk.
        id: u32,
        /// Where.
        path: PathBuf,
        /// Why, with all causes.
        reason: String,
    },
    /// A disk is to be used by io_uring, and cannot be.
    #[error("disk {id}: {source}")]
    Io {
        /// Which disk.
        id: u32,
        /// Why, and what would help.
        source: IoUnavailable,
    },
    /// The telemetry address.
    #[error(transparent)]
    Telemetry(#[from] ListenError),
    /// An address.
    #[error("cannot listen or connect: {0}")]
    Address(#[from] ConnectError),
    /// The system has no thread to give.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The loop ended by itself: a bug, and the log says where.
    #[error("the node's loop ended unexpectedly")]
    Died,
}

/// Where a running node is reached.
#[derive(Clone, Debug)]
pub struct Listening {
    /// By clients and other nodes.
    pub address: String,
    /// By whoever watches it; `None`: it was told not to listen.
    pub telemetry: Option<std::net::SocketAddr>,
}

/// Runs a storage node until `shutdown` becomes true. `ready` is called once, with its addresses, when the node listens and
/// the leader has heard of it. One of which a disk had no room left, to the last byte, starts anew from what it holds when there is some.
///
/// At a stop the node leaves its views first, as far as the leader answers and somebody else can go on; this is bounded.
///
/// # Errors
/// [`Error`]
pub async fn run(
    config: Config,
    shutdown: watch::Receiver<bool>,
    ready: impl FnOnce(Listening) + Send,
) -> Result<(), Error> {
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::register(&mut registry, config.slow_operation.0));
    let endpoint = http::serve(&config.telemetry_address, registry, metrics.clone()).await?;
    let telemetry = endpoint.as_ref().map(http::Endpoint::address);
    let (mut config, mut ready, mut again) = (config, Some(ready), None);
    let mut opened = BTreeSet::new();
    loop {
        if again.is_some() && *shutdown.borrow() {
            return Ok(());
        }
        // Disks that this node has just closed are there: whatever keeps one from being opened is to pass.
        let is_patient = again.is_some_and(|since: Instant| since.elapsed() < OPEN_AGAIN);
        let needed = if is_patient { opened.clone() } else { BTreeSet::new() };
        let address = Arc::new(OnceLock::new());
        let say = {
            let (address, ready) = (Arc::clone(&address), &mut ready);
            move |listening: String| {
                let _ = address.set(listening.clone());
                if let Some(ready) = ready.take() {
                    ready(Listening { address: listening, telemetry });
                }
            }
        };
        match run_once(&config, &metrics, (&needed, &mut opened), shutdown.clone(), say).await {
            Ok(Ended::Asked) => return Ok(()),
            Ok(Ended::RoomAgain) => again = Some(Instant::now()),
            // Somebody may hold on to the tables of the life before for a while.
            Err(error @ Error::Disk { .. }) if is_patient => {
                tracing::warn!(%error, "not opened yet; trying again");
                if tokio::time::timeout(PAUSE, shutdown.clone().wait_for(|stop| *stop)).await.is_ok() {
                    return Ok(());
                }
            }
            Err(error) => return Err(error),
        }
        metrics.disks_closed();
        // The port that was chosen stays.
        config.address = address.get().cloned().unwrap_or(config.address);
    }
}

/// Why one life of a node is over, if not by an error.
enum Ended {
    /// It was asked to stop.
    Asked,
    /// A disk had failed for want of room, and there is some.
    RoomAgain,
}

/// One life. Disks that are `needed` must be opened; those that are, are told.
async fn run_once(
    config: &Config,
    metrics: &Arc<Metrics>,
    (needed, opened): (&BTreeSet<DiskId>, &mut BTreeSet<DiskId>),
    shutdown: watch::Receiver<bool>,
    ready: impl FnOnce(String) + Send,
) -> Result<Ended, Error> {
    let identity = identity(config)?;
    let stores = {
        let (config, metrics, needed) = (config.clone(), Arc::clone(metrics), needed.clone());
        // Opening replays journals and may take a while: not on the runtime's threads.
        tokio::task::spawn_blocking(move || open_disks(&config, &metrics, &needed)).await.map_err(|_| Error::Died)??
    };
    *opened = stores.iter().map(|(disk, _)| *disk).collect();
    let node = Node::assemble(config, &identity, stores, Arc::clone(metrics))?;
    let address: Address = config.address.parse()?;
    let service = Service {
        owner: Arc::clone(&node.owner),
        requests: node.requests.clone(),
        metrics: node.metrics.clone(),
        inspector: Arc::clone(&node.inspector),
    };
    let options = ServerOptions { local: true, ..ServerOptions::default() };
    let server = match Server::bind(Transport::Tls, &address, identity, Arc::new(service), options).await {
        Ok(server) => server,
        Err(error) => {
            node.end().await;
            return Err(error.into());
        }
    };
    let said = said_address(&config.address, &server);
    let result = node.serve(config, said, shutdown, ready).await;
    server.shutdown(GRACE).await;
    node.end().await;
    result
}

fn identity(config: &Config) -> Result<Identity, Error> {
    let identity = Identity::load(&config.certificate, &config.key, &config.authority)?;
    let me = identity.me();
    if me.role != Role::Storage || me.id != config.id || identity.cluster() != config.cluster_id() {
        let found = format!("{me} of {}", identity.cluster());
        return Err(Error::WrongCertificate { found, expected: config.id });
    }
    Ok(identity)
}

/// The address that others are told: as configured, with the port that was chosen.
fn said_address(configured: &str, server: &Server) -> String {
    match (configured.rsplit_once(':'), server.local_port()) {
        (Some((host, "0")), Some(port)) => format!("{host}:{port}"),
        _ => configured.to_owned(),
    }
}

/// Opens all disks. One that cannot be opened and is not `needed` is left out, and said so, as long as another can.
fn open_disks(config: &Config, metrics: &Metrics, needed: &BTreeSet<DiskId>) -> Result<Vec<(DiskId, Store)>, Error> {
    let (mut stores, mut failed) = (Vec::new(), None);
    for disk in &config.disks {
        let backend = choose_backend(disk)?;
        match open_disk(config, disk, backend) {
            Ok(store) => {
                metrics.disk_uses(backend);
                stores.push((disk.disk_id(), store));
            }
            Err(error) => {
                let reason = format!("{error}{}", crate::chunk_store::cause(&error));
                tracing::error!(disk = disk.id, path = %disk.path.display(), reason, "disk is out");
                let error = Error::Disk { id: disk.id, path: disk.path.clone(), reason };
                if needed.contains(&disk.disk_id()) {
                    return Err(error);
                }
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if stores.is_empty() => Err(error),
        _ => Ok(stores),
    }
}

/// Tries what the configuration asks for, and says what came of it.
fn choose_backend(disk: &DiskConfig) -> Result<IoBackend, Error> {
    let Chosen { backend, refusal } =
        io_backend::choose(disk.io).map_err(|source| Error::Io { id: disk.id, source })?;
    let (disk, name) = (disk.id, backend.name());
    match refusal {
        None => tracing::info!(disk, io = name, "disk is read and written by {name}"),
        Some(reason) => tracing::info!(disk, io = name, %reason, "disk is read and written by {name}, not by io_uring"),
    }
    Ok(backend)
}

fn open_disk(config: &Config, disk: &DiskConfig, backend: IoBackend) -> Result<Store, OpenError> {
    let syncing = if config.test_skip_sync { Syncing::SkippedForTest } else { Syncing::Real };
    if config.test_skip_sync {
        tracing::warn!("test-skip-sync is set: NOTHING IS DURABLE, a power cut loses data");
    }
    let directory = DirectoryDisk::open_with(&disk.path, syncing, backend)?;
    let tables = FjallConfig { cache_bytes: config.cache.0, ..FjallConfig::default() };
    let table = Arc::new(FjallTable::open(&disk.path.join(INDEX), tables)?);
    let owner = DiskIdentity { cluster: config.cluster_id(), node: config.node_id(), disk: disk.disk_id() };
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let options = StoreOptions::for_disk(directory.space()?).made(since_1970);
    Store::open(medium::of(directory, disk.disk_id()), table, owner, options)
}

/// The running parts.
struct Node {
    owner: Arc<Owner>,
    requests: Arc<Requests>,
    metrics: Arc<Metrics>,
    control: Arc<Control>,
    standing: Arc<Standing>,
    fetching: Arc<AtomicBool>,
    inspector: Arc<Inspector>,
    map_file: Arc<MapFile>,
    scrubs: Arc<ScrubFile>,
    threads: Threads,
}

impl Node {
    /// Puts core, disks and connections together. Must be called within a tokio runtime.
    fn assemble(
        config: &Config,
        identity: &Identity,
        stores: Vec<(DiskId, Store)>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        let lives = stores.iter().map(|(id, store)| (*id, store.incarnation())).collect();
        let groups: Vec<(DiskId, GroupState)> =
            stores.iter().flat_map(|(id, store)| store.groups().into_iter().map(|group| (*id, group))).collect();
        // Disks report to an owner that does not exist yet; nothing is reported before the first command.
        let late: Arc<OnceLock<std::sync::Weak<Owner>>> = Arc::new(OnceLock::new());
        let report: Report = {
            let late = Arc::clone(&late);
            Arc::new(move |inputs: Vec<Input>| {
                if let Some(owner) = late.get().and_then(std::sync::Weak::upgrade) {
                    owner.submit(inputs);
                }
            })
        };
        let directories = config.disks.iter().map(|disk| (disk.disk_id(), disk.path.clone()));
        let scrubs = Arc::new(ScrubFile::open(directories.collect()));
        let (disks, threads) = disk::start(stores, &report, &metrics)?;
        let directories: Vec<PathBuf> = config.disks.iter().map(|disk| disk.path.clone()).collect();
        let map_file = Arc::new(MapFile::new(directories.clone()));
        let inspector = Inspector::new(config.node_id(), &disks, Arc::clone(&late), Arc::clone(&map_file));
        let inspector = Arc::new(inspector);
        let kept = ServersFile::new(directories);
        let control = Arc::new(Control::new(identity, &config.metadata, kept)?);
        let standing = Arc::new(Standing {
            map_version: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            disks: disks.iter().map(|disk| (disk.id, disk.incarnation, Arc::clone(&disk.vitals))).collect(),
            leaving: AtomicBool::new(false),
            news: Notify::new(),
            shared_views: watch::channel(0).0,
        });
        metrics.stands(Arc::clone(&standing));
        let requests = Arc::new(Requests::default());
        let fetching = Arc::new(AtomicBool::new(false));
        let core = StorageCore::new(
            CoreConfig {
                node: config.node_id(),
                disks: lives,
                seed: prng::mix(config.id ^ now().0 ^ u64::from(std::process::id()) << 32),
                mutations: Mutations::default(),
                limits: Limits {
                    scrub_every: config.scrub.every.0,
                    scrub_rate: config.scrub.rate.0,
                    ..Limits::default()
                },
                scrubbed: scrubs.kept(),
            },
            groups,
            now(),
        );
        let owner = Arc::new_cyclic(|owner| {
            let shell = Shell {
                node: config.node_id(),
                disks: disks.into_iter().map(|disk| (disk.id, disk)).collect(),
                peers: Peers::new(identity.clone(), Transport::Tls, owner.clone()),
                requests: Arc::clone(&requests),
                control: Arc::clone(&control),
                standing: Arc::clone(&standing),
                owner: owner.clone(),
                runtime: tokio::runtime::Handle::current(),
                fetching: Arc::clone(&fetching),
                map_file: Arc::clone(&map_file),
                journeys: Journeys::new(Arc::clone(&metrics)),
                scrubs: Arc::clone(&scrubs),
            };
            Owner::new(core, shell, owner)
        });
        late.set(Arc::downgrade(&owner)).expect("set once");
        Ok(Self { owner, requests, metrics, control, standing, fetching, inspector, map_file, scrubs, threads })
    }

    /// Beats, ticks and follows the map until told to stop; then leaves the views.
    async fn serve(
        &self,
        config: &Config,
        address: String,
        mut shutdown: watch::Receiver<bool>,
        ready: impl FnOnce(String) + Send,
    ) -> Result<Ended, Error> {
        let (heard, mut hears) = watch::channel(false);
        let beat = Arc::new(Beat {
            node: config.node_id(),
            address: address.clone(),
            labels: config.labels.clone(),
            control: Arc::clone(&self.control),
            standing: Arc::clone(&self.standing),
            owner: Arc::downgrade(&self.owner),
            fetching: Arc::clone(&self.fetching),
            metrics: Arc::clone(&self.metrics),
            round_trip: Mutex::default(),
            heard,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&beat).run());
        tasks.spawn(beat.follow_map());
        tasks.spawn(Arc::clone(&self.map_file).run());
        tasks.spawn(tick(Arc::clone(&self.owner), Arc::clone(&self.requests)));
        tasks.spawn(keep_scrubs(Arc::clone(&self.scrubs)));
        let mut dead = self.owner.dead();
        let mut ready = Some(ready);
        let ended = loop {
            tokio::select! {
                _ = hears.wait_for(|heard| *heard), if ready.is_some() => {
                    if let Some(ready) = ready.take() {
                        ready(address.clone());
                    }
                }
                _ = shutdown.wait_for(|stop| *stop) => break Ended::Asked,
                disk = room_again(&self.standing) => {
                    tracing::warn!(%disk, "there is room again on a disk that had failed for want of it: this node starts anew");
                    break Ended::RoomAgain;
                }
                _ = dead.wait_for(|dead| *dead) => return Err(Error::Died),
                // None of the tasks ends unless it panics.
                _ = tasks.join_next() => return Err(Error::Died),
            }
        };
        if config.leave_on_stop {
            self.leave(config).await;
        }
        Ok(ended)
    }

    /// A planned stop: out of the views first, as far as that is possible, so that nobody has to wait for our silence.
    async fn leave(&self, config: &Config) {
        self.standing.leaving.store(true, Ordering::Relaxed);
        self.standing.news.notify_one();
        let node = config.node_id();
        if let Err(error) = self.control.ask(Request::LeaveViews { node }, LEAVE_HEARD, LEAVE_HEARD).await {
            return tracing::info!(%error, "stopping without leaving the views");
        }
        let mut shared = self.standing.shared_views.subscribe();
        if tokio::time::timeout(LEAVE_DONE, shared.wait_for(|count| *count == 0)).await.is_err() {
            tracing::info!(views = *shared.borrow(), "stopping while still in views");
        }
    }

    /// Ends threads and connections, with a last checkpoint of each disk.
    async fn end(self) {
        let Self { owner, control, map_file, scrubs, threads, .. } = self;
        owner.close();
        control.close().await;
        let joined = tokio::task::spawn_blocking(move || {
            map_file.write_pending();
            scrubs.flush();
            threads.join();
        });
        let joined = joined.await;
        if joined.is_err() {
            tracing::error!("a disk's thread panicked");
        }
    }
}

/// Waits until a disk that had failed for want of room has had some for a while: all groups of the node pay for starting anew.
async fn room_again(standing: &Standing) -> DiskId {
    let mut ticks = tokio::time::interval(NODE_HEARTBEAT);
    let mut since: Option<(DiskId, Instant)> = None;
    loop {
        ticks.tick().await;
        let again = |vitals: &disk::Vitals| vitals.room_again.load(Ordering::Relaxed);
        // Closing waits for every disk, also for one that hangs.
        let hangs = standing.disks.iter().any(|(.., vitals)| vitals.oldest() >= ROOM_LASTS);
        let found = standing.disks.iter().find(|(.., vitals)| again(vitals)).filter(|_| !hangs);
        since = found.map(|(disk, ..)| since.filter(|(known, _)| known == disk).unwrap_or((*disk, Instant::now())));
        if let Some((disk, _)) = since.filter(|(_, since)| since.elapsed() >= ROOM_LASTS) {
            return disk;
        }
    }
}

/// Writes down what is to be kept of scrubs.
async fn keep_scrubs(scrubs: Arc<ScrubFile>) {
    let mut ticks = tokio::time::interval(SCRUBS_KEPT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let scrubs = Arc::clone(&scrubs);
        // A disk that hangs holds up nobody else, and a panic was logged.
        let _ = tokio::task::spawn_blocking(move || scrubs.flush()).await;
    }
}

async fn tick(owner: Arc<Owner>, requests: Arc<Requests>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for count in 0u64.. {
        ticks.tick().await;
        owner.submit([Input::Tick]);
        if count % CANCELLED_TICKS == 0 {
            owner.submit(requests.take_cancelled().into_iter().map(|id| Input::Cancelled { id }));
        }
    }
}
