//! The command line, exactly as the README and scripts rely on it.

use clap::{Args, Parser, Subcommand};
use holdfast_config::{Size, Span};
use holdfast_wire::open::{OpenPolicy, OpenRule};
use std::path::PathBuf;
use std::str::FromStr;

/// A fault-tolerant distributed POSIX file system for containers.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Fail as FILE says, which is read again when it changes. For tests.
    #[cfg(feature = "faults")]
    #[arg(long, value_name = "FILE", global = true)]
    pub fault_plan: Option<PathBuf>,
}

/// One subcommand per role.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a replicated cluster in this one process and mount its volume `main`: for a laptop, a demo or a test.
    Up(Up),
    /// Write the configuration and certificates of a new cluster into a directory.
    Init(Init),
    /// Run a metadata server in the foreground.
    Metadata(Server),
    /// Run a storage node in the foreground.
    Storage(Server),
    /// Mount a volume.
    Mount(Mount),
    /// Serve volumes to this host's Docker engine, in the foreground.
    DockerPlugin(DockerPlugin),
    /// Serve Kubernetes, and whoever else speaks the Container Storage Interface.
    Csi(Csi),
    /// Look at and change a running cluster.
    Admin(Admin),
}

/// Sizes of a cluster.
#[derive(Clone, Debug, Args)]
pub struct Sizes {
    /// Metadata servers (an odd number: 1, 3 or 5).
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub metadata: u32,
    /// Storage nodes.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub storage: u32,
    /// Copies of each chunk.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub replicas: u32,
}

/// `holdfast up`
#[derive(Debug, Args)]
pub struct Up {
    /// Where everything is kept; started again on it, everything is there.
    #[arg(long, default_value = "./holdfast-data", value_name = "DIR")]
    pub data: PathBuf,
    /// Where to mount; DATA/mnt if not given.
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Sizes, used when DIR is new.
    #[command(flatten)]
    pub sizes: Sizes,
}

/// `holdfast init`
#[derive(Debug, Args)]
pub struct Init {
    /// New or empty directory to write to.
    pub directory: PathBuf,
    /// Sizes.
    #[command(flatten)]
    pub sizes: Sizes,
    /// Groups of the pool: a power of two, about 100 for each disk.
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub groups: u32,
    /// A storage disk that is away for longer is given up, and what it held is copied to others.
    #[arg(long, default_value = "10 min", value_name = "TIME")]
    pub out_after: Span,
    /// Host of the servers; repeated: the servers of each kind are spread over the hosts in turn.
    #[arg(long = "address", value_name = "HOST")]
    pub addresses: Vec<String>,
}

/// `holdfast metadata`, `holdfast storage`
#[derive(Debug, Args)]
pub struct Server {
    /// Its config.toml, as `holdfast init` writes it.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// `holdfast mount`
#[derive(Debug, Args)]
pub struct Mount {
    /// The cluster's cluster.toml.
    #[arg(long, env = "HOLDFAST_CLUSTER", value_name = "FILE")]
    pub cluster: PathBuf,
    /// Name of the volume.
    pub volume: String,
    /// Directory to mount on.
    pub directory: PathBuf,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Return when the mount is usable, and go on in the background.
    #[arg(long)]
    pub background: bool,
}

/// `holdfast docker-plugin`
#[derive(Debug, Args)]
pub struct DockerPlugin {
    /// The cluster's cluster.toml.
    #[arg(long, env = "HOLDFAST_CLUSTER", value_name = "FILE")]
    pub cluster: PathBuf,
    /// Where the engine connects to; the driver is called as the file is, without `.sock`.
    #[arg(long, default_value = "/run/docker/plugins/holdfast.sock", value_name = "FILE")]
    pub socket: PathBuf,
    /// Where it keeps which containers use what.
    #[arg(long, default_value = "/var/lib/holdfast/docker", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Mount volumes below this directory; `mounts` in the state's if not given.
    #[arg(long, value_name = "DIR")]
    pub mount_dir: Option<PathBuf>,
    /// What this host is called on the cluster's record, unlike every other one; its name if not given.
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
    /// `/healthz`, `/readyz` and `/metrics` over HTTP, in the clear; `off`: nowhere.
    #[arg(long, default_value = holdfast_docker_plugin::config::TELEMETRY_DEFAULT, value_name = "HOST:PORT")]
    pub telemetry: String,
}

/// `holdfast csi`
#[derive(Debug, Args)]
pub struct Csi {
    /// The cluster's cluster.toml.
    #[arg(long, env = "HOLDFAST_CLUSTER", value_name = "FILE")]
    pub cluster: PathBuf,
    /// Which services: `controller` makes volumes and attaches them, `node` mounts on this host.
    #[arg(long, value_enum, default_value_t = CsiRole::All, value_name = "ROLE")]
    pub role: CsiRole,
    /// The socket to serve on, as unix:///PATH.
    #[arg(long, env = "CSI_ENDPOINT", value_name = "URL")]
    pub endpoint: String,
    /// What the orchestrator calls this node; the host's name if not given.
    #[arg(long, env = "NODE_ID", value_name = "ID")]
    pub node_id: Option<String>,
    /// What the driver calls itself: the `provisioner` of storage classes.
    #[arg(long, default_value = holdfast_csi_driver::DRIVER_NAME, value_name = "NAME")]
    pub driver_name: String,
    /// Where to listen for /healthz, /readyz and /metrics; `off`: nowhere.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    pub telemetry: String,
}

/// Services of `holdfast csi`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum CsiRole {
    /// Makes volumes and attaches them: one or several for a cluster.
    Controller,
    /// Mounts: one on each node.
    Node,
    /// Both.
    All,
}

/// `holdfast admin`
#[derive(Debug, Args)]
pub struct Admin {
    /// The cluster's cluster.toml.
    #[arg(long, env = "HOLDFAST_CLUSTER", value_name = "FILE", global = true)]
    pub cluster: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: AdminCommand,
}

/// What administrators do.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// The cluster on one screen; exit status 0 if healthy, 1 if not, 2 if it cannot be asked.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check names, links, totals, chunks and replicas while the cluster serves; exit status 0 if clean, 1 with findings, 2 if it cannot
    /// be checked.
    Fsck {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Do not read the data: lengths and digests are compared, blocks not verified.
        #[arg(long)]
        quick: bool,
    },
    /// When each group was last read whole and what was found; exit status 0 if all is well, 1 if something found is not repaired, 2 if
    /// somebody cannot be asked.
    Scrub {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Have everything scrubbed now, and wait for the end.
        #[arg(long)]
        now: bool,
    },
    /// Mounts of volumes: who has what mounted where, since when it is silent, and what becomes of it.
    Sessions {
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        which: Which,
    },
    /// End sessions at once, whatever they are doing: when this returns, no storage node takes a byte from them any more, and what they held
    /// is free for others. Exit status 0 if it is so, 1 if there was nobody to fence, 2 if it may not be so.
    Fence {
        /// Sessions by their ids, as `admin sessions` shows them.
        ids: Vec<u64>,
        #[command(flatten)]
        which: Which,
    },
    /// Volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Metadata servers.
    #[command(subcommand)]
    Metadata(MetadataCommand),
    /// Storage nodes.
    #[command(subcommand)]
    Storage(StorageCommand),
}

/// Which sessions: those to which all that is given applies.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// Of this volume.
    #[arg(long, value_name = "NAME")]
    pub volume: Option<String>,
    /// Of mounts on this host, by the name that it calls itself.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// Of this instance, as `-o instance=NAME` named it.
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
}

/// What is done with storage nodes. All of it goes on in the cluster, whoever asked for it may leave; the data stays whole and in use.
#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// The storage nodes: what each holds, what is still to leave it, and how long all that moves takes.
    List,
    /// Take in a new storage node: writes its directory beside cluster.toml and says how to start it. It gets its share of the groups.
    Add {
        /// Its id: a number that no storage node of this cluster ever had.
        id: u64,
        /// HOST:PORT that it will listen on (TCP).
        address: String,
    },
    /// Move everything off a node, which stays in the cluster: it may be stopped then, without a copy missing.
    Drain {
        /// Its id.
        id: u64,
        /// Use it again.
        #[arg(long)]
        undo: bool,
        /// Return when nothing is left on it.
        #[arg(long)]
        wait: bool,
    },
    /// Move everything off a node and take it out, for good. One that is dead is given up at once.
    Remove {
        /// Its id.
        id: u64,
        /// Return when it is out.
        #[arg(long)]
        wait: bool,
    },
    /// Put a new node in the place of one that is lost, or is to go: as `add` and then, when the new one has come, `remove`.
    Replace {
        /// Id of the node that goes.
        old: u64,
        /// Id of the new one: a number that no storage node of this cluster ever had.
        new: u64,
        /// HOST:PORT that the new one will listen on (TCP).
        address: String,
    },
}

/// What is done with metadata servers: one at a time, without a pause for anybody.
#[derive(Debug, Subcommand)]
pub enum MetadataCommand {
    /// Take in a new server: writes its directory beside cluster.toml and says how to start it. It votes when it is caught up.
    Add {
        /// Its id: a number that no server of this cluster ever had.
        id: u64,
        /// HOST:PORT that it will listen on (UDP).
        address: String,
    },
    /// Take out a server, for good.
    Remove {
        /// Its id.
        id: u64,
    },
    /// Put a new server in the place of one that is lost, damaged, or is to go. The old one counts until the new one is caught up.
    Replace {
        /// Id of the server that goes.
        old: u64,
        /// Id of the new one: a number that no server of this cluster ever had.
        new: u64,
        /// HOST:PORT that the new one will listen on (UDP). That of the old one, if it does not run any more.
        address: String,
    },
    /// Write all that the metadata servers hold to a file, as it is at one moment, while clients work. Data is not in it: that is on the
    /// storage nodes.
    Backup {
        /// New file; `-` for standard output.
        file: PathBuf,
        /// Take what this server has, without a leader's word that it is the newest: when a majority of the servers is lost. What was
        /// acknowledged last may be missing.
        #[arg(long, value_name = "ID")]
        unconfirmed: Option<u64>,
    },
    /// Begin anew from a backup, when the metadata servers are lost: writes the directory of one server, which goes on alone until others
    /// are added. The storage nodes' data goes on with it, and they are asked what they know.
    Restore {
        /// The file.
        file: PathBuf,
        /// config.toml of the server that is to begin. Its data directory must be empty.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// This storage node is lost: do not ask it. Repeated for several.
        #[arg(long, value_name = "ID")]
        without_storage: Vec<u64>,
        /// Where nobody knows which copies of a group are whole, take the one that was written last; and take the server of --config even if
        /// no storage node has heard of it.
        #[arg(long)]
        accept_unknown: bool,
    },
    /// Read a backup from its start to its end, verify it, and say what it is of.
    Verify {
        /// The file.
        file: PathBuf,
    },
}

/// What a volume may hold at the most.
#[derive(Clone, Copy, Debug, Args)]
pub struct LimitArguments {
    /// Bytes, such as `20 GiB`; `none`: as the pool allows.
    #[arg(long, value_name = "SIZE", value_parser = limit::<Size>)]
    pub bytes: Option<Limit<Size>>,
    /// Inodes (files, directories, links); `none`: any number.
    #[arg(long, value_name = "N", value_parser = limit::<u64>)]
    pub inodes: Option<Limit<u64>>,
}

/// A number, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit<T>(pub Option<T>);

fn limit<T: FromStr>(text: &str) -> Result<Limit<T>, T::Err> {
    if text == "none" { Ok(Limit(None)) } else { text.parse().map(|limit| Limit(Some(limit))) }
}

/// How a volume's files are opened; what is not given stays as it is.
#[derive(Clone, Copy, Debug, Args)]
pub struct OpenArguments {
    /// Who may have a file open at the same time: `shared` (anybody), `single-writer` (one host for writing, any for reading), `exclusive`
    /// (one host). Programs of one mount share in any case.
    #[arg(long = "open", value_name = "RULE")]
    pub rule: Option<OpenRule>,
    /// Seconds that an open(2) waits for a host that lives, before it fails with EBUSY (0 to 3600).
    #[arg(long = "open-wait", value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(0..=3600))]
    pub wait: Option<u16>,
}

impl OpenArguments {
    /// What is given replaces what was.
    pub fn after(self, before: OpenPolicy) -> OpenPolicy {
        OpenPolicy { rule: self.rule.unwrap_or(before.rule), wait: self.wait.unwrap_or(before.wait) }
    }
}

/// What is done with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        limits: LimitArguments,
        #[command(flatten)]
        open: OpenArguments,
    },
    /// Change who may have a file open at the same time as others, where files and directories do not say so themselves (by their
    /// attributes holdfast.open and holdfast.open_wait). Counts for whoever opens a file from then on; takes effect within a second.
    Open {
        /// Name of the volume.
        name: String,
        #[command(flatten)]
        open: OpenArguments,
    },
    /// Change what a volume may hold at the most; what it holds already stays. Takes effect within a second.
    Limit {
        /// Its name.
        name: String,
        #[command(flatten)]
        limits: LimitArguments,
    },
    /// List volumes, one a line.
    List {
        /// Show their limits, too: name, bytes, inodes; `none` for no limit.
        #[arg(long)]
        long: bool,
    },
    /// Delete a volume and everything in it.
    Delete {
        /// Its name.
        name: String,
    },
}
