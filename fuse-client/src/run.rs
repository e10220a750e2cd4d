//! A mount from beginning to end.
//!
//! Invariants:
//! * The mount appears only once the volume is attached: whoever sees it can use it.
//! * However the mount ends (umount(8), SIGTERM), what was written is flushed before the session is given up, within
//!   [`FLUSH_DEADLINE`]. `umount(8)` itself returns earlier: the kernel does not wait for a FUSE server there; the end of this
//!   process, or of [`run`], says that all is durable. (Another host's mount waits for it.)
//! * Caching stops only after the kernel has forgotten what it cached.

use crate::config::Config;
use crate::device::{Keep, Notifier, Session, SessionError};
use crate::fs::{FileSystem, Server, Shared, Volume};
use crate::invalidate::Invalidator;
use crate::lost::{self, Ended, OnLost};
use crate::memfd::Arena;
use crate::mount::{self, Mount, MountError};
use crate::options::{Options, Quarantine};
use crate::sync::lock;
use bytes::Bytes;
use holdfast_client::{
    Client, ClientError, LostFile, Metrics, MountError as ConnectError, MountOptions, Notice, Notices,
};
use holdfast_telemetry::http::{self, ListenError};
use holdfast_telemetry::metrics::Registry;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long the flush at the end may take.
pub const FLUSH_DEADLINE: Duration = Duration::from_secs(60);
/// How long an unmount that we were asked for waits for open files to be closed before it uses force.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);
/// How long the serving threads may take to end once the mount is gone.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// Memory for un-flushed writes, in bytes, unless the mount's options say otherwise; the client's own default.
const WRITE_BUFFER_BYTES: u64 = 256 << 20;
/// How often interrupted calls are looked at: with the patience for a caller that is asked to end, well within a second.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);

/// Why a mount could not be made, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The volume could not be attached.
    #[error("cannot attach volume {volume:?}: {source}")]
    Attach {
        /// Which.
        volume: String,
        /// Why.
        source: ConnectError,
    },
    /// The telemetry address.
    #[error(transparent)]
    Telemetry(#[from] ListenError),
    /// There is no agreement with the kernel.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// What was written could not all be flushed.
    #[error("not everything that was written could be flushed: {0}")]
    Flush(ClientError),
    /// Nor could it be within the deadline.
    #[error("what was written could not be flushed within {FLUSH_DEADLINE:?}")]
    FlushDeadline,
    /// A thread panicked.
    #[error("a thread of the mount panicked")]
    Panicked,
}

/// Mounts a volume and serves it until it is unmounted or `stopped` becomes true (or its sender is gone); then flushes and ends the
/// session.
///
/// `ready` is called once, with the absolute mount point and where telemetry is read, when the mount can be used. Must be called within a multi-threaded tokio
/// runtime.
///
/// # Errors
/// [`Error`]; after [`Error::Flush`] or [`Error::FlushDeadline`] bytes written since the last `fsync` may be lost.
pub async fn run(
    config: Config,
    mut stopped: watch::Receiver<bool>,
    ready: impl FnOnce(&Path, Option<SocketAddr>) + Send,
) -> Result<(), Error> {
    let point = config.mount_point.clone();
    apart(move || mount::prepare(&point)).await??;
    let mut registry = Registry::default();
    let slow = config.options.slow_operation.unwrap_or(SLOW_OPERATION);
    let metrics = Arc::new(Metrics::register(&mut registry, slow));
    let health = Arc::new(MountHealth::default());
    let address = config.options.telemetry.as_deref().unwrap_or(http::ADDRESS_DEFAULT);
    let endpoint = http::serve(address, registry, health.clone()).await?;
    let telemetry = endpoint.as_ref().map(http::Endpoint::address);
    let mut options = mount_options(&config);
    options.metrics = metrics;
    let connected = tokio::select! {
        connected = Client::connect(&config.cluster, options) => connected,
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    };
    let (client, notices) = connected.map_err(|source| Error::Attach { volume: config.volume.clone(), source })?;
    health.serves(client.clone());
    let ready = |point: &Path| ready(point, telemetry);
    let served = serve(&config, client.clone(), notices, &health, stopped, ready).await;
    health.ends();
    let flushed = flush(&client).await;
    // Until now the cluster could ask for something; the task would keep the client alive for ever.
    served?.abort();
    flushed
}

/// Calls that take so long are logged unless the mount's options say otherwise.
const SLOW_OPERATION: Duration = Duration::from_secs(1);

/// How a mount is.
#[derive(Default)]
struct MountHealth {
    client: Mutex<Option<Client>>,
    /// Why the session is over, and where what was lost is kept.
    over: Mutex<Option<String>>,
}

impl MountHealth {
    fn serves(&self, client: Client) {
        *lock(&self.client) = Some(client);
    }

    fn is_over(&self, why: String) {
        *lock(&self.over) = Some(why);
    }

    /// The client must not outlive the mount.
    fn ends(&self) {
        lock(&self.client).take();
    }
}

impl http::Health for MountHealth {
    fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        if let Some(why) = &*lock(&self.over) {
            return Err(format!("the session is over ({why}); mount again"));
        }
        match &*lock(&self.client) {
            None => Err("attaching to the volume: is the cluster up?".into()),
            Some(client) if !client.is_attached() => Err("the session is over; mount again".into()),
            Some(_) => Ok(()),
        }
    }
}

fn mount_options(config: &Config) -> MountOptions {
    let mut options = MountOptions::new(config.volume.clone(), config.client_record());
    options.read_only = config.options.read_only;
    options.soft = config.options.soft;
    options.write_buffer_bytes = config.options.write_buffer_bytes;
    options.read_cache_bytes = config.options.cache_bytes;
    options.writeback_delay = config.options.writeback_delay;
    options.relatime = config.options.relatime;
    options.block_when_over = config.options.on_lost == OnLost::Block;
    options
}

/// Serves until unmounted; returns the task that still heeds the cluster.
async fn serve(
    config: &Config,
    client: Client,
    notices: Notices,
    health: &Arc<MountHealth>,
    mut stopped: watch::Receiver<bool>,
    ready: impl FnOnce(&Path) + Send,
) -> Result<JoinHandle<()>, Error> {
    let fs = FileSystem::new(client);
    let mounting = (config.mount_point.clone(), config.volume.clone(), config.options.clone());
    let served = fs.clone();
    let mounted = apart(move || Mounted::start(&mounting.0, &mounting.1, &mounting.2, served)).await??;
    let aftermath = Aftermath {
        volume: config.volume.clone(),
        session: fs.volume().session().map_or(0, |session| session.0),
        point: mounted.mount.point().to_path_buf(),
        device: holdfast_mounts::device_of(mounted.mount.point()),
        on_lost: config.options.on_lost,
        quarantine: match &config.options.quarantine {
            Quarantine::Usual => Some(lost::quarantine()),
            Quarantine::At(folder) => Some(folder.clone()),
            Quarantine::Off => None,
        },
        health: health.clone(),
    };
    let heed = tokio::spawn(heed(fs.clone(), notices, mounted.notifier(), aftermath));
    let sweep = tokio::spawn(sweep(fs));
    ready(mounted.mount.point());
    let ended = mounted.ended.clone();
    tokio::select! {
        () = ended.notified() => tracing::info!("unmounted"),
        _ = stopped.wait_for(|stop| *stop) => {
            let mount = mounted.mount.clone();
            // Unmounting writes back dirty mapped pages, so it may wait for the cluster.
            match timeout(FLUSH_DEADLINE, apart(move || take_down(&mount))).await {
                Ok(result) => result??,
                Err(_) => tracing::error!("the unmount hangs: the cluster does not take what is still to be written"),
            }
        }
    }
    // They end when the mount is gone; one that was only taken out of sight (by an ordinary user) is gone when its last file is closed.
    if timeout(END_PATIENCE, apart(move || mounted.session.join())).await.is_err() {
        tracing::warn!("files are still open in the mount: they are cut off when this process ends");
    }
    sweep.abort();
    Ok(heed)
}

/// A file system mounted and served: the part of a mount that needs no cluster.
pub struct Mounted {
    mount: Mount,
    session: Session,
    ended: Arc<Notify>,
}

impl Mounted {
    /// Mounts and serves. Blocks for a moment.
    ///
    /// # Errors
    /// [`Error::Mount`], [`Error::Session`]; nothing stays mounted then.
    pub fn start<V: Volume>(point: &Path, volume: &str, options: &Options, fs: Shared<V>) -> Result<Self, Error> {
        let (mount, channel) = Mount::new(point, volume, options)?;
        let ended = Arc::new(Notify::new());
        let signal = ended.clone();
        let served = Session::negotiate(channel).and_then(|mut session| {
            fs.set_kernel(Notifier::new(session.channel(), session.negotiated()));
            session.serve(Arc::new(Server(fs)), keep(options), move || signal.notify_one())?;
            Ok(session)
        });
        match served {
            Ok(session) => Ok(Self { mount, session, ended }),
            Err(error) => {
                if let Err(error) = mount.unmount_by_force() {
                    tracing::warn!(%error, "mount left behind");
                }
                Err(error.into())
            }
        }
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// For telling the kernel to forget.
    pub fn notifier(&self) -> Notifier {
        Notifier::new(self.session.channel(), self.session.negotiated())
    }

    /// Waits until it is unmounted. Blocks.
    pub fn join(self) {
        self.session.join();
    }
}

/// Where the data of writes are kept until they are flushed.
fn keep(options: &Options) -> Keep {
    match Arena::new(options.write_buffer_bytes.unwrap_or(WRITE_BUFFER_BYTES)) {
        Ok(arena) => Arc::new(move |data| arena.keep(data)),
        Err(error) => {
            tracing::warn!(%error, "no memory file for the write buffer: the heap serves");
            Arc::new(Bytes::copy_from_slice)
        }
    }
}

/// Does what may block in a thread of its own. Not in the runtime's pool: what hangs there would keep the process from ending.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let (sender, done) = oneshot::channel();
    std::thread::Builder::new().name("mount".into()).spawn(move || drop(sender.send(work())))?;
    done.await.map_err(|_| Error::Panicked)
}

/// Unmounts, with force if it stays in use.
fn take_down(mount: &Mount) -> Result<(), MountError> {
    let begun = std::time::Instant::now();
    loop {
        match mount.unmount() {
            Err(MountError::InUse { point }) if begun.elapsed() >= BUSY_PATIENCE => {
                tracing::warn!(point = %point.display(), "still in use: unmounted by force, open files are cut off");
                return mount.unmount_by_force();
            }
            Err(MountError::InUse { .. }) => std::thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

async fn flush(client: &Client) -> Result<(), Error> {
    match timeout(FLUSH_DEADLINE, client.unmount()).await {
        Ok(result) => result.map_err(Error::Flush),
        Err(_) => Err(Error::FlushDeadline),
    }
}

/// What is done when others end the session.
struct Aftermath {
    volume: String,
    session: u64,
    point: PathBuf,
    /// Number of the mount's device.
    device: Option<String>,
    on_lost: OnLost,
    quarantine: Option<PathBuf>,
    health: Arc<MountHealth>,
}

impl Aftermath {
    /// Stops those who would go on first; then keeps what was lost. Blocks for as long as the disk takes.
    fn of(&self, reason: &str, lost_bytes: u64, files: &[LostFile]) {
        let calls = match self.on_lost {
            OnLost::Error => "every call fails until it is mounted again".to_owned(),
            OnLost::Block => "every call waits until it is unmounted or its caller killed".to_owned(),
            OnLost::Kill => {
                let killed = self.device.as_deref().map_or(0, lost::kill_users);
                format!("every call fails until it is mounted again; {killed} processes with open files were killed")
            }
        };
        self.health.is_over(reason.to_owned());
        tracing::error!(reason, lost_bytes, "session is over: {calls}");
        if lost_bytes == 0 {
            return;
        }
        let ended = Ended { volume: &self.volume, session: self.session, mount_point: &self.point, reason };
        let kept = self.quarantine.as_deref().map(|folder| (folder, lost::keep(folder, &ended, files)));
        let where_to = match kept {
            None => "they are not kept (quarantine=off)".to_owned(),
            Some((_, Ok(folder))) => format!("they are kept in {}", folder.display()),
            Some((folder, Err(error))) => format!("they could not be kept in {}: {error}", folder.display()),
        };
        self.health.is_over(format!("{reason}; {lost_bytes} bytes had not reached the cluster, {where_to}"));
        tracing::error!(lost_bytes, "bytes had not reached the cluster when the session ended; {where_to}");
    }
}

/// Does what the cluster asks of the mount as a whole.
async fn heed<V: Volume>(fs: Shared<V>, mut notices: Notices, notifier: Notifier, aftermath: Aftermath) {
    let aftermath = Arc::new(aftermath);
    let invalidator = match Invalidator::new(notifier) {
        Ok(invalidator) => Arc::new(invalidator),
        Err(error) => {
            return tracing::error!(%error, "cannot start the invalidation threads: caching cannot be stopped");
        }
    };
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::StopCaching { event } => {
                let (inodes, names) = fs.stop_caching();
                tracing::info!(
                    inodes = inodes.len(),
                    names = names.len(),
                    "another host wants the volume: caching stops"
                );
                let invalidator = invalidator.clone();
                if let Err(error) = apart(move || invalidator.run(inodes, names)).await {
                    // Not confirmed: the cluster will treat us as one that does not answer, which is safe.
                    tracing::error!(%error, "invalidation failed");
                    continue;
                }
                fs.volume().invalidated(event);
            }
            Notice::StartCaching => {
                tracing::info!("alone again: caching starts");
                fs.start_caching();
            }
            Notice::SessionOver { reason, unmounted: true, .. } => tracing::info!(reason, "session is over"),
            Notice::SessionOver { reason, lost_bytes, lost, .. } => {
                let aftermath = aftermath.clone();
                if let Err(error) = apart(move || aftermath.of(&reason, lost_bytes, &lost)).await {
                    tracing::error!(%error, "the end of the session could not be seen to");
                }
            }
            Notice::Reachable { reachable: true, detail } => tracing::info!(detail, "cluster answers again"),
            Notice::Reachable { reachable: false, detail } => {
                tracing::warn!(detail, "cluster does not answer: calls wait")
            }
            Notice::WriteLost { inode, error } => tracing::error!(%inode, %error, "bytes written could not be stored"),
        }
    }
}

/// Lets interrupted calls go.
async fn sweep<V: Volume>(fs: Shared<V>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    loop {
        interval.tick().await;
        fs.sweep_interrupted();
    }
}
