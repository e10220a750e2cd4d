//! The driver from beginning to end.

use crate::config::Config;
use crate::controller::ControllerService;
use crate::identity::IdentityService;
use crate::metrics::Metrics;
use crate::node::NodeService;
use crate::proto::controller_server::ControllerServer;
use crate::proto::identity_server::IdentityServer;
use crate::proto::node_server::NodeServer;
use holdfast_client::{Cluster, RequestError};
use holdfast_telemetry::http::{self, ListenError};
use holdfast_telemetry::metrics::Registry;
use holdfast_volume::{Mounts, VolumeError, Volumes};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::Status;
use tonic::transport::Server;

/// How long the start waits for the cluster before it says that it is ready; it goes on trying.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// How long whoever asks waits for the cluster.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// How long calls under way may take when the driver is to stop. What they started goes on, and the next life takes it up.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to write down that this node is there.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the driver cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its certificate.
    #[error(transparent)]
    Cluster(#[from] RequestError),
    /// The socket.
    #[error("cannot serve on {socket}: {source}")]
    Socket {
        /// Which.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody else serves there.
    #[error("{socket} is served already: is another driver running?")]
    Taken {
        /// Where.
        socket: PathBuf,
    },
    /// The telemetry address.
    #[error(transparent)]
    Telemetry(#[from] ListenError),
    /// The node's id.
    #[error("--node-id: {0}")]
    Node(VolumeError),
    /// The server.
    #[error("the server ended: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Where it serves.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The socket.
    pub socket: PathBuf,
    /// `/healthz`, `/readyz` and `/metrics`, if anywhere.
    pub telemetry: Option<SocketAddr>,
}

/// Whether the driver can work.
#[derive(Clone)]
pub(crate) struct Readiness {
    volumes: Volumes<Cluster>,
    /// This node is written down, or there is none to write down.
    registered: watch::Receiver<bool>,
    last: watch::Sender<Result<(), String>>,
}

impl Readiness {
    /// Asks the cluster.
    pub(crate) async fn check(&self) -> Result<(), String> {
        let state = if !*self.registered.borrow() {
            Err("this node is not written down yet: is the cluster up?".into())
        } else {
            match timeout(PROBE_PATIENCE, self.volumes.condition()).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the cluster does not answer".into()),
            }
        };
        let _before = self.last.send_replace(state.clone());
        state
    }

    /// Waits until this node is written down.
    pub(crate) async fn registered(&self) -> Result<(), Status> {
        let mut registered = self.registered.clone();
        match timeout(PROBE_PATIENCE, registered.wait_for(|done| *done)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::unavailable("the cluster does not answer: this node is not written down yet")),
        }
    }
}

impl http::Health for Readiness {
    fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        if *self.registered.borrow() { self.last.borrow().clone() } else { Err("waits for the cluster".into()) }
    }
}

/// Serves until `stopped` becomes true (or its sender is gone). `ready` is called once, when calls are answered. Mounts stay when it ends.
///
/// # Errors
/// [`Error`]
pub async fn run(
    config: Config,
    mut stopped: watch::Receiver<bool>,
    ready: impl FnOnce(&Ready) + Send,
) -> Result<(), Error> {
    let cluster = Cluster::connect(&config.cluster)?;
    let volumes = Volumes::new(cluster);
    let (written, registered) = watch::channel(!config.role.mounts());
    let last = watch::channel(Ok(())).0;
    let readiness = Readiness { volumes: volumes.clone(), registered: registered.clone(), last };
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let endpoint = http::serve(&config.telemetry, registry, std::sync::Arc::new(readiness.clone())).await?;
    let listener = listen(&config.socket).await?;
    let mut registering = tokio::spawn(register(volumes.clone(), config.node_id.clone(), written));
    if config.role.mounts() {
        // Whoever is told that we are ready may publish to this node at once, if the cluster is there.
        if let Ok(Ok(Err(error))) = timeout(START_PATIENCE, &mut registering).await {
            return Err(Error::Node(error));
        }
    } else {
        registering.abort();
    }
    let id = config.cluster.cluster.to_string();
    let identity =
        IdentityService { name: config.name.clone(), controls: config.role.controls(), readiness: readiness.clone() };
    let controller = config.role.controls().then(|| {
        ControllerServer::new(ControllerService {
            volumes: volumes.clone(),
            cluster: id.clone(),
            metrics: metrics.clone(),
        })
    });
    let node = config.role.mounts().then(|| {
        let mounts = Mounts::new(volumes.clone(), config.program.clone(), config.cluster_file.clone());
        let node = config.node_id.clone();
        NodeServer::new(NodeService {
            volumes: volumes.clone(),
            mounts,
            node,
            cluster: id.clone(),
            readiness,
            metrics: metrics.clone(),
        })
    });
    let router = Server::builder()
        .add_service(IdentityServer::new(identity))
        .add_optional_service(controller)
        .add_optional_service(node);
    let mut stop = stopped.clone();
    let served = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
        let _ = stop.wait_for(|stop| *stop).await;
    });
    tokio::pin!(served);
    ready(&Ready { socket: config.socket.clone(), telemetry: endpoint.as_ref().map(http::Endpoint::address) });
    tokio::select! {
        ended = &mut served => ended?,
        _ = stopped.wait_for(|stop| *stop) => {
            if timeout(STOP_PATIENCE, served).await.is_err() {
                tracing::warn!("calls are still under way: the next life of this driver takes them up");
            }
        }
    }
    let _ = std::fs::remove_file(&config.socket);
    Ok(())
}

/// Listens, where nobody else does. What a killed driver left there is taken away.
async fn listen(socket: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Socket { socket: socket.into(), source };
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if socket.symlink_metadata().is_ok_and(|there| there.file_type().is_socket()) {
        if UnixStream::connect(socket).await.is_ok() {
            return Err(Error::Taken { socket: socket.into() });
        }
        std::fs::remove_file(socket).map_err(failed)?;
    }
    UnixListener::bind(socket).map_err(failed)
}

/// Writes down that this node is there, however long the cluster takes to come. Ends early only with an id that cannot be one.
async fn register(volumes: Volumes<Cluster>, node: String, done: watch::Sender<bool>) -> Result<(), VolumeError> {
    loop {
        match volumes.register_node(&node).await {
            Ok(()) => {
                tracing::info!(node, "written down: volumes can be published to this node");
                done.send_replace(true);
                return Ok(());
            }
            Err(error @ VolumeError::Invalid { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(node, %error, "not written down yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
