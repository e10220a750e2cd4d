//! `holdfast init`: the directory of a new cluster.
//!
//! ```text
//! DIR/cluster.toml            what mounts and administrators need to know; its certificate is in DIR/client
//! DIR/ca/{ca.pem,ca.key}      the cluster's authority; the key (0600) signs new members and never leaves this directory
//! DIR/client/                 cert.pem, key.pem, ca.pem of mounts
//! DIR/admin/                  the same of administrators
//! DIR/metadata-1/ ...         config.toml, certificate, key and data of a server: copy the directory to its host
//! DIR/storage-1/ ...
//! ```
//!
//! Ports are free ones of this machine, chosen once and kept. The last thing written is `cluster.toml`, under another name first: a directory
//! without it is not a cluster, and `init` that was cut short can be repeated.

use crate::cli::Sizes;
use anyhow::{Context, Result, bail, ensure};
use holdfast_client::{ClusterFile, MetadataAddress, TlsFiles};
use holdfast_config::{Checked as _, Size, Span};
use holdfast_metadata_server::disk;
use holdfast_rpc::ca::Authority;
use holdfast_rpc::{PeerIdentity, Role};
use holdfast_storage_server::config as storage;
use holdfast_types::ClusterId;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the file that makes a directory a cluster.
pub const CLUSTER_FILE: &str = "cluster.toml";

/// From when on a request is logged as slow.
const SLOW_OPERATION: Span = Span(Duration::from_secs(1));

/// What a new cluster is to look like.
pub struct Plan<'a> {
    /// Servers and copies.
    pub sizes: &'a Sizes,
    /// Groups of the pool.
    pub groups: u32,
    /// A disk away for longer is given up.
    pub out_after: Span,
    /// Hosts, used in turn. Empty: this machine's loopback.
    pub hosts: &'a [String],
}

impl Plan<'_> {
    fn check(&self) -> Result<()> {
        let Sizes { metadata, storage, replicas } = *self.sizes;
        ensure!(
            metadata % 2 == 1 && metadata <= 7,
            "--metadata {metadata}: use 1, 3, 5 or 7, so that a majority is clear"
        );
        ensure!((1..=7).contains(&replicas), "--replicas {replicas}: use 1 to 7");
        ensure!(storage >= replicas, "--storage {storage}: {replicas} replicas need at least {replicas} storage nodes");
        ensure!(
            self.groups.is_power_of_two() && self.groups <= 65_536,
            "--groups {}: use a power of two up to 65536",
            self.groups
        );
        Ok(())
    }

    fn host(&self, number: u32) -> &str {
        if self.hosts.is_empty() { "127.0.0.1" } else { &self.hosts[(number as usize - 1) % self.hosts.len()] }
    }

    /// What a user should know about the redundancy asked for.
    pub fn warning(&self) -> Option<String> {
        let Sizes { metadata, replicas, .. } = *self.sizes;
        match (metadata, replicas) {
            (_, 1) => Some("one replica: NOT redundant, the loss of a disk loses data".into()),
            (1, _) => Some("one metadata server: NOT redundant, its loss stops the cluster".into()),
            (_, 2) => Some("two replicas: writes wait while one of them is away".into()),
            _ => None,
        }
    }
}

/// Whether a directory holds a cluster.
pub fn exists(directory: &Path) -> bool {
    directory.join(CLUSTER_FILE).is_file()
}

/// Writes a new cluster into a directory that is new, empty, or left half-way by an earlier attempt.
pub fn create(directory: &Path, plan: &Plan<'_>) -> Result<()> {
    plan.check()?;
    if exists(directory) {
        bail!("{} holds a cluster already; choose another directory, or start that one", directory.display());
    }
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    refuse_foreign_content(directory)?;
    let cluster = ClusterId(draw()?);
    let authority = Authority::create(cluster)?;
    let ports = Ports::reserve(plan)?;
    write_authority(directory, &authority)?;
    for (name, role) in [("client", Role::Client), ("admin", Role::Admin)] {
        issue(&directory.join(name), &authority, PeerIdentity { role, id: 1 })?;
    }
    let servers: Vec<holdfast_metadata_server::config::Server> = (1..=plan.sizes.metadata)
        .map(|n| holdfast_metadata_server::config::Server {
            id: u64::from(n),
            address: format!("{}:{}", plan.host(n), ports.metadata[n as usize - 1].1),
        })
        .collect();
    for server in &servers {
        let at = directory.join(format!("metadata-{}", server.id));
        disk::prepare(&at.join("data"), disk::Start::Form)?;
        issue(&at, &authority, PeerIdentity { role: Role::Metadata, id: server.id })?;
        let telemetry = ports.telemetry[server.id as usize - 1].1;
        let config = metadata_config(cluster, server, telemetry, (&servers, plan));
        write(&at.join("config.toml"), &toml::to_string(&config)?)?;
    }
    for n in 1..=plan.sizes.storage {
        let at = directory.join(format!("storage-{n}"));
        issue(&at, &authority, PeerIdentity { role: Role::Storage, id: u64::from(n) })?;
        let address = format!("{}:{}", plan.host(n), ports.storage[n as usize - 1].1);
        let telemetry = ports.telemetry[(plan.sizes.metadata + n) as usize - 1].1;
        let config = storage_config(cluster, n, (address, telemetry), &servers);
        write(&at.join("config.toml"), &toml::to_string(&config)?)?;
    }
    let file = ClusterFile {
        cluster,
        tls: TlsFiles {
            authority: "client/ca.pem".into(),
            certificate: "client/cert.pem".into(),
            key: "client/key.pem".into(),
        },
        metadata: servers.iter().map(|s| MetadataAddress { id: s.id, address: s.address.clone() }).collect(),
    };
    let text = format!(
        "# A Holdfast cluster: `holdfast mount --cluster` and `holdfast admin --cluster` take this file.\n{}",
        file.to_toml()
    );
    let partial = directory.join("cluster.toml.new");
    write(&partial, &text)?;
    std::fs::rename(&partial, directory.join(CLUSTER_FILE))?;
    std::fs::File::open(directory)?.sync_all()?;
    Ok(())
}

fn metadata_config(
    cluster: ClusterId,
    server: &holdfast_metadata_server::config::Server,
    telemetry_port: u16,
    (servers, plan): (&[holdfast_metadata_server::config::Server], &Plan<'_>),
) -> holdfast_metadata_server::config::Config {
    holdfast_metadata_server::config::Config {
        cluster: cluster.to_string(),
        id: server.id,
        address: server.address.clone(),
        data: "data".into(),
        authority: "ca.pem".into(),
        certificate: "cert.pem".into(),
        key: "key.pem".into(),
        replicas: plan.sizes.replicas,
        groups: plan.groups,
        storage_expected: plan.sizes.storage,
        out_after: plan.out_after,
        cache: Size(64 << 20),
        telemetry_address: telemetry(telemetry_port),
        slow_operation: SLOW_OPERATION,
        test_skip_sync: false,
        servers: servers.to_vec(),
    }
}

fn storage_config(
    cluster: ClusterId,
    number: u32,
    (address, telemetry_port): (String, u16),
    servers: &[holdfast_metadata_server::config::Server],
) -> storage::Config {
    storage::Config {
        cluster: cluster.to_string(),
        id: u64::from(number),
        address,
        authority: "ca.pem".into(),
        certificate: "cert.pem".into(),
        key: "key.pem".into(),
        cache: Size(32 << 20),
        telemetry_address: telemetry(telemetry_port),
        slow_operation: SLOW_OPERATION,
        leave_on_stop: true,
        test_skip_sync: false,
        labels: Vec::new(),
        scrub: storage::ScrubConfig::default(),
        disks: vec![storage::DiskConfig { id: 1, path: "data".into(), io: storage::IoChoice::Auto }],
        metadata: servers.iter().map(|s| storage::MetadataServer { id: s.id, address: s.address.clone() }).collect(),
    }
}

/// Readable on the server's own host only: whoever wants more says so in its configuration.
fn telemetry(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn issue(directory: &Path, authority: &Authority, who: PeerIdentity) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    authority.issue(who)?.write(directory)?;
    Ok(())
}

fn write_authority(directory: &Path, authority: &Authority) -> Result<()> {
    let at = directory.join("ca");
    std::fs::create_dir_all(&at)?;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(at.join("ca.key"))?;
    file.write_all(authority.key().as_bytes())?;
    file.sync_all()?;
    write(&at.join("ca.pem"), authority.certificate())
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

/// A directory with anything that `init` does not write is somebody else's.
fn refuse_foreign_content(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let ours =
            ["ca", "client", "admin", "mnt", "lock", "cluster.toml.new", "generation", "generation.new", "lost+found"]
                .contains(&&*text)
                || text.starts_with("metadata-")
                || text.starts_with("storage-");
        if !ours {
            bail!(
                "{} is not empty ({text} is there) and is no Holdfast cluster; choose a new or empty directory",
                directory.display()
            );
        }
        let data = directory.join(&*text).join("data");
        let used = if text.starts_with("metadata-") { data.join("IDENTITY").exists() } else { data.exists() };
        if text.contains('-') && used {
            bail!(
                "{} has no {CLUSTER_FILE}, but {text} holds a server's data: a new cluster would overwrite the keys of the one it belongs to; \
                 put its {CLUSTER_FILE} back or choose another directory",
                directory.display()
            );
        }
    }
    Ok(())
}

/// 128 random bits from the kernel.
fn draw() -> Result<u128> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// Free ports of this machine, held until the configuration is written so that none is given twice.
struct Ports {
    metadata: Vec<(UdpSocket, u16)>,
    storage: Vec<(TcpListener, u16)>,
    telemetry: Vec<(TcpListener, u16)>,
}

impl Ports {
    fn reserve(plan: &Plan<'_>) -> Result<Self> {
        let udp = |_| {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            let port = socket.local_addr()?.port();
            Ok::<_, std::io::Error>((socket, port))
        };
        let tcp = |_| free_tcp_port();
        Ok(Self {
            metadata: (0..plan.sizes.metadata).map(udp).collect::<Result<_, _>>()?,
            storage: (0..plan.sizes.storage).map(tcp).collect::<Result<_, _>>()?,
            telemetry: (0..plan.sizes.metadata + plan.sizes.storage).map(tcp).collect::<Result<_, _>>()?,
        })
    }
}

/// A port that nobody else takes as long as the socket is kept.
fn free_tcp_port() -> std::io::Result<(TcpListener, u16)> {
    let socket = TcpListener::bind(("0.0.0.0", 0))?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

/// Writes the directory of a metadata server that joins a cluster made earlier; returns its configuration. One that was prepared
/// before and has not started yet is written again.
pub fn add_metadata(directory: &Path, file: &ClusterFile, id: u64, address: &str) -> Result<PathBuf> {
    let at = directory.join(format!("metadata-{id}"));
    let path = at.join("config.toml");
    ensure!(
        !at.join("data").join("IDENTITY").exists(),
        "{} holds a server that has started already; take another id",
        at.display()
    );
    let like = servers(directory, "metadata")?;
    let like = like.iter().find(|other| **other != path).context("no other metadata server's config.toml is here")?;
    // As it stands in the file: its paths are relative to its directory.
    let text = std::fs::read_to_string(like).with_context(|| format!("cannot read {}", like.display()))?;
    let mut config: holdfast_metadata_server::config::Config = toml::from_str(&text)?;
    (config.id, config.address, config.data) = (id, address.to_owned(), "data".into());
    (config.authority, config.certificate, config.key) = ("ca.pem".into(), "cert.pem".into(), "key.pem".into());
    if config.telemetry_address != "off" {
        // The other one's may be in use, here or where the new server goes.
        let (_held, port) = free_tcp_port().context("no free port for telemetry")?;
        config.telemetry_address = telemetry(port);
    }
    let server = |id, address: &str| holdfast_metadata_server::config::Server { id, address: address.to_owned() };
    let others = file.metadata.iter().filter(|other| other.id != id);
    config.servers = others.map(|other| server(other.id, &other.address)).collect();
    config.servers.push(server(id, address));
    if let Err(nonsense) = config.validate() {
        bail!("{}: {}: {}", like.display(), nonsense.key, nonsense.reason);
    }
    let authority = read_authority(directory, file.cluster)?;
    issue(&at, &authority, PeerIdentity { role: Role::Metadata, id })?;
    disk::prepare(&at.join("data"), disk::Start::Join)?;
    write(&path, &toml::to_string(&config)?)?;
    Ok(path)
}

/// Writes the directory of a storage node that joins a cluster made earlier; returns its configuration. One that was prepared before
/// and has not started yet is written again.
pub fn add_storage(directory: &Path, file: &ClusterFile, id: u64, address: &str) -> Result<PathBuf> {
    let at = directory.join(format!("storage-{id}"));
    let path = at.join("config.toml");
    ensure!(!at.join("data").exists(), "{} holds a server that has started already; take another id", at.display());
    let like = servers(directory, "storage")?;
    let like = like.iter().find(|other| **other != path).context("no other storage node's config.toml is here")?;
    let text = std::fs::read_to_string(like).with_context(|| format!("cannot read {}", like.display()))?;
    let mut config: storage::Config = toml::from_str(&text)?;
    (config.id, config.address) = (id, address.to_owned());
    (config.authority, config.certificate, config.key) = ("ca.pem".into(), "cert.pem".into(), "key.pem".into());
    // Where it stands, and what disks it has, nobody knows from another one's: whoever starts it says so in this file.
    config.labels = Vec::new();
    config.disks = vec![storage::DiskConfig { id: 1, path: "data".into(), io: storage::IoChoice::Auto }];
    if config.telemetry_address != "off" {
        let (_held, port) = free_tcp_port().context("no free port for telemetry")?;
        config.telemetry_address = telemetry(port);
    }
    let server = |s: &MetadataAddress| storage::MetadataServer { id: s.id, address: s.address.clone() };
    config.metadata = file.metadata.iter().map(server).collect();
    if let Err(nonsense) = config.validate() {
        bail!("{}: {}: {}", like.display(), nonsense.key, nonsense.reason);
    }
    let authority = read_authority(directory, file.cluster)?;
    issue(&at, &authority, PeerIdentity { role: Role::Storage, id })?;
    write(&path, &toml::to_string(&config)?)?;
    Ok(path)
}

/// A server has left: what is here of it is kept, but not started any more.
pub fn retire(directory: &Path, kind: &str, id: u64) -> Result<()> {
    let config = directory.join(format!("{kind}-{id}")).join("config.toml");
    if config.is_file() {
        std::fs::rename(&config, config.with_file_name("config.toml.removed"))?;
    }
    Ok(())
}

/// Writes cluster.toml anew, with these metadata servers.
pub fn rewrite(path: &Path, metadata: &[MetadataAddress]) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut table: toml::Table = text.parse().with_context(|| format!("{} is no TOML", path.display()))?;
    table.insert("metadata".into(), toml::Value::try_from(metadata)?);
    let partial = path.with_extension("toml.new");
    let first = "# A Holdfast cluster: `holdfast mount --cluster` and `holdfast admin --cluster` take this file.\n";
    write(&partial, &format!("{first}{}", toml::to_string(&table)?))?;
    std::fs::rename(&partial, path)?;
    Ok(())
}

fn read_authority(directory: &Path, cluster: ClusterId) -> Result<Authority> {
    let read = |name: &str| {
        let path = directory.join("ca").join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}: the cluster's authority signs new servers; run this where `init` was run",
                path.display()
            )
        })
    };
    Ok(Authority::open(cluster, read("ca.pem")?, &read("ca.key")?)?)
}

/// Directories of the servers of one kind, by number.
pub fn servers(directory: &Path, kind: &str) -> Result<Vec<PathBuf>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(kind)?.strip_prefix('-')?.parse::<u64>().ok());
        let config = directory.join(&name).join("config.toml");
        if let Some(number) = number.filter(|_| config.is_file()) {
            found.insert(number, config);
        }
    }
    ensure!(!found.is_empty(), "{} has no {kind}-1/config.toml", directory.display());
    Ok(found.into_values().collect())
}
