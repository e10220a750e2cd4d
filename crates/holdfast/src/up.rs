//! `holdfast up`: a replicated cluster in this one process, and its volume `main` mounted.
//!
//! The servers are the same as in processes of their own: they have their own directories, logs and sockets, and talk over loopback. So what
//! `up` shows is what a cluster does, and its directory can be started as separate processes too.

use crate::cli::Up;
use crate::{layout, role, signals};
use anyhow::{Context, Result, anyhow, bail};
use holdfast_types::InstanceGeneration;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// A disk away for longer is given up; all of them are here, so that it takes somebody's doing.
const OUT_AFTER: holdfast_config::Span = holdfast_config::Span(holdfast_types::limits::OUT_AFTER);
/// Groups of a cluster made by `up`: about 100 for each of its few disks.
const GROUPS: u32 = 256;

/// Runs everything until Ctrl-C or SIGTERM.
pub async fn run(up: Up) -> Result<ExitCode> {
    std::fs::create_dir_all(&up.data).with_context(|| format!("cannot create {}", up.data.display()))?;
    let data = std::path::absolute(&up.data)?;
    let _lock = lock(&data)?;
    let plan = layout::Plan { sizes: &up.sizes, groups: GROUPS, out_after: OUT_AFTER, hosts: &[] };
    if !layout::exists(&data) {
        layout::create(&data, &plan)?;
        tracing::info!(directory = %data.display(), "made a new cluster");
    }
    if let Some(warning) = plan.warning() {
        eprintln!("holdfast: {warning}");
    }
    let mount = std::path::absolute(up.mount.clone().unwrap_or_else(|| data.join("mnt")))?;
    let (stop, stopped) = signals::shutdown()?;
    let servers = Servers::start(&data)?;
    let result = serve(&data, &mount, stopped, servers).await;
    drop(stop);
    result
}

/// Mounts, serves until told to stop, unmounts, and only then stops the servers: the mount's last bytes need them.
async fn serve(
    data: &Path,
    mount: &Path,
    mut stopped: watch::Receiver<bool>,
    mut servers: Servers,
) -> Result<ExitCode> {
    tokio::select! {
        ready = servers.ready() => ready?,
        _ = stopped.wait_for(|stop| *stop) => return servers.stop().await,
    }
    let cluster = data.join(layout::CLUSTER_FILE);
    // The mount of an earlier run that was killed is over by a greater generation: no TTL has to pass first.
    let options = holdfast_fuse_client::Options {
        instance: Some("up".into()),
        generation: next_generation(data)?,
        quarantine: holdfast_fuse_client::Quarantine::At(std::path::absolute(data)?.join("quarantine")),
        ..holdfast_fuse_client::Options::default()
    };
    let config = holdfast_fuse_client::Config::new(&cluster, "main", mount, options)?;
    let ready = move |at: &Path, telemetry: Option<SocketAddr>| {
        let telemetry = role::telemetry_field(telemetry);
        println!("ready mount={} cluster={}{telemetry}", at.display(), cluster.display());
        // Nobody reading it any more is no reason to stop.
        let _ = std::io::stdout().flush();
    };
    let mounted = holdfast_fuse_client::run(config, stopped.clone(), ready);
    let outcome = tokio::select! {
        mounted = mounted => mounted.map_err(anyhow::Error::from),
        died = servers.failed() => Err(died),
    };
    let code = servers.stop().await?;
    outcome?;
    if !*stopped.borrow() {
        tracing::info!("unmounted from outside; stopped");
    }
    Ok(code)
}

/// Counts the runs on a directory, durably.
fn next_generation(data: &Path) -> Result<InstanceGeneration> {
    let path = data.join("generation");
    let last: u64 = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} does not hold a number", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let partial = data.join("generation.new");
    let mut file = File::create(&partial)?;
    writeln!(file, "{}", last + 1)?;
    file.sync_all()?;
    std::fs::rename(&partial, &path)?;
    File::open(data)?.sync_all()?;
    Ok(InstanceGeneration(last + 1))
}

/// One process at a time: the lock goes with the process, however it ends.
fn lock(data: &Path) -> Result<File> {
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "{} is in use: another `holdfast up` runs on it; stop that one or choose another --data",
                data.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// All servers of the cluster, as tasks.
struct Servers {
    tasks: JoinSet<Result<()>>,
    ready: mpsc::UnboundedReceiver<()>,
    count: usize,
    storage: usize,
    stop_storage: watch::Sender<bool>,
    stop_metadata: watch::Sender<bool>,
}

impl Servers {
    fn start(data: &Path) -> Result<Self> {
        let (said, ready) = mpsc::unbounded_channel();
        let (stop_storage, storage_stopped) = watch::channel(false);
        let (stop_metadata, metadata_stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut count = 0;
        let mut storage = 0;
        for path in layout::servers(data, "metadata")? {
            let config = holdfast_metadata_server::config::Config::read(&path)?;
            // Nobody listening any more means that `up` is stopping.
            let (stopped, said) = (metadata_stopped.clone(), said.clone());
            let ready = move |_| said.send(()).unwrap_or_default();
            tasks.spawn(async move { Ok(holdfast_metadata_server::run(config, stopped, ready).await?) });
            count += 1;
        }
        for path in layout::servers(data, "storage")? {
            let mut config = holdfast_storage_server::config::Config::read(&path)?;
            // All stop together: a node that left its views would have to be caught up at the next start.
            config.leave_on_stop = false;
            let (stopped, said) = (storage_stopped.clone(), said.clone());
            let ready = move |_| said.send(()).unwrap_or_default();
            tasks.spawn(async move { Ok(holdfast_storage_server::run(config, stopped, ready).await?) });
            count += 1;
            storage += 1;
        }
        Ok(Self { tasks, ready, count, storage, stop_storage, stop_metadata })
    }

    /// Waits until every server listens, or one has failed.
    async fn ready(&mut self) -> Result<()> {
        for _ in 0..self.count {
            tokio::select! {
                Some(()) = self.ready.recv() => {}
                ended = self.tasks.join_next() => return Err(ended_early(ended)),
            }
        }
        Ok(())
    }

    /// Returns when a server ends although nobody stopped it.
    async fn failed(&mut self) -> anyhow::Error {
        ended_early(self.tasks.join_next().await)
    }

    /// Storage nodes first, while the metadata service can still be told.
    async fn stop(mut self) -> Result<ExitCode> {
        self.stop_storage.send_replace(true);
        let mut first = Ok(());
        for _ in 0..self.storage {
            if let Some(ended) = self.tasks.join_next().await {
                first = first.and(ended.map_err(anyhow::Error::from).and_then(|result| result));
            }
        }
        self.stop_metadata.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.map_err(anyhow::Error::from).and_then(|result| result);
            first = first.and(ended);
        }
        first.map(|()| ExitCode::SUCCESS)
    }
}

fn ended_early(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.into(),
        Some(Ok(Ok(()))) | None => anyhow!("a server ended although nobody stopped it"),
    }
}
