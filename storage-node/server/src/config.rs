//! Configuration of a storage node: typed, checked, unknown keys refused.
//!
//! Relative paths are relative to the directory of the file, so that the directory can be copied to its host as it is.

use holdfast_config::{Checked, Nonsense, Size, Span, nonsense, port};
use holdfast_telemetry::http::OFF;
use holdfast_types::{ClusterId, DiskId, NodeId};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use holdfast_config::ConfigError;
pub use holdfast_journal::IoChoice;

/// `config.toml` of a storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Cluster it belongs to, 32 hexadecimal digits.
    pub cluster: String,
    /// Its id within the cluster, above 0.
    pub id: u64,
    /// `HOST:PORT` it listens on (TCP), and under which others reach it.
    pub address: String,
    /// Certificate of the cluster's authority (PEM).
    pub authority: PathBuf,
    /// Its own certificate (PEM).
    pub certificate: PathBuf,
    /// The key of its certificate (PEM).
    pub key: PathBuf,
    /// Memory for cached blocks of each disk's index. Default "32 MiB", at least "1 MiB".
    #[serde(default = "default_cache")]
    pub cache: Size,
    /// `HOST:PORT` of `/healthz`, `/readyz` and `/metrics` (HTTP, in the clear), or "off". Default "127.0.0.1:0": a free port, which the
    /// line `ready` names; `holdfast init` chooses one that stays.
    #[serde(default = "default_telemetry_address")]
    pub telemetry_address: String,
    /// Requests that take so long are logged with where the time went. Default "1 s".
    #[serde(default = "default_slow_operation")]
    pub slow_operation: Span,
    /// Leave the views at a planned stop, so that the others go on at once. False where all nodes stop together (`up`): then nobody
    /// has to be caught up at the next start. Default true.
    #[serde(default = "default_leave_on_stop")]
    pub leave_on_stop: bool,
    /// For tests of the tests only: acknowledge without syncing. Loses data at a power cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_skip_sync: bool,
    /// Failure domains from the widest to the narrowest, for instance `["rack", "r1"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<(String, String)>,
    /// How what is stored is read again, so that damage is found while another copy is sound.
    #[serde(default)]
    pub scrub: ScrubConfig,
    /// Its disks, at least one.
    pub disks: Vec<DiskConfig>,
    /// The metadata servers, at least one.
    pub metadata: Vec<MetadataServer>,
}

/// Scrubs: every block is read and compared with its checksum, every chunk with the other members' copies, and what is damaged is repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ScrubConfig {
    /// Every group that this node is primary of is scrubbed so often. Default "168 h", at least "1 min".
    #[serde(default = "default_scrub_every")]
    pub every: Span,
    /// Bytes per second that a disk is read at the most for scrubs, those of other nodes included. Default "16 MiB", at least "1 MiB".
    #[serde(default = "default_scrub_rate")]
    pub rate: Size,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self { every: default_scrub_every(), rate: default_scrub_rate() }
    }
}

/// A disk: a directory on a file system of its own, or one that is shared on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskConfig {
    /// Its number within the node; stays with the directory.
    pub id: u32,
    /// Its directory.
    pub path: PathBuf,
    /// How it is read and written: "io_uring"; "threads", that is plain system calls; or "auto": io_uring where it works, threads where the
    /// kernel or a container forbids it. Default "auto".
    #[serde(default, skip_serializing_if = "IoChoice::is_auto")]
    pub io: IoChoice,
}

/// A metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MetadataServer {
    /// Its id.
    pub id: u64,
    /// `HOST:PORT` (UDP).
    pub address: String,
}

fn default_leave_on_stop() -> bool {
    true
}

fn default_cache() -> Size {
    Size(32 << 20)
}

fn default_telemetry_address() -> String {
    holdfast_telemetry::http::ADDRESS_DEFAULT.into()
}

fn default_scrub_every() -> Span {
    Span(Duration::from_secs(168 * 3600))
}

fn default_scrub_rate() -> Size {
    Size(16 << 20)
}

fn default_slow_operation() -> Span {
    Span(Duration::from_secs(1))
}

impl Config {
    /// Reads and checks a file; relative paths become absolute.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line, key and reason.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = holdfast_config::read(path)?;
        let base = path.parent().unwrap_or(Path::new(".")).to_path_buf();
        for entry in [&mut config.authority, &mut config.certificate, &mut config.key] {
            *entry = base.join(&*entry);
        }
        for disk in &mut config.disks {
            disk.path = base.join(&disk.path);
        }
        Ok(config)
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(u128::from_str_radix(&self.cluster, 16).expect("checked by validate"))
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.id)
    }
}

impl Checked for Config {
    fn validate(&self) -> Result<(), Nonsense> {
        if self.cluster.len() != 32 || !self.cluster.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return nonsense("cluster", format!("{:?} is not 32 hexadecimal digits", self.cluster));
        }
        if self.id == 0 {
            return nonsense("id", "0 is nobody; ids begin at 1");
        }
        if port(&self.address).is_none() {
            return nonsense("address", format!("{:?} is not HOST:PORT", self.address));
        }
        if self.address.starts_with("0.0.0.0:") || self.address.starts_with("[::]:") {
            return nonsense(
                "address",
                "others are told this address, and nobody can reach that one: name this host's own",
            );
        }
        if self.telemetry_address != OFF && port(&self.telemetry_address).is_none() {
            let given = &self.telemetry_address;
            return nonsense("telemetry-address", format!("{given:?} is neither HOST:PORT nor \"off\""));
        }
        if self.cache < Size(1 << 20) {
            return nonsense("cache", format!("{} is less than 1 MiB", self.cache));
        }
        if self.scrub.every < Span(Duration::from_secs(60)) {
            return nonsense("every", format!("{} is less than a minute", self.scrub.every));
        }
        if self.scrub.rate < Size(1 << 20) {
            return nonsense("rate", format!("{} is less than 1 MiB", self.scrub.rate));
        }
        if self.disks.is_empty() {
            return nonsense("disks", "a storage node needs at least one disk");
        }
        for (at, disk) in self.disks.iter().enumerate() {
            if self.disks[..at].iter().any(|other| other.id == disk.id || other.path == disk.path) {
                return nonsense("disks", format!("disk {} ({}) is there twice", disk.id, disk.path.display()));
            }
        }
        if self.metadata.is_empty() || self.metadata.iter().any(|server| server.id == 0) {
            return nonsense("metadata", "at least one server, each with an id above 0");
        }
        if let Some(server) = self.metadata.iter().find(|server| port(&server.address).is_none()) {
            return nonsense("metadata", format!("{:?} is not HOST:PORT", server.address));
        }
        Ok(())
    }
}

impl DiskConfig {
    /// Its id.
    pub fn disk_id(&self) -> DiskId {
        DiskId(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            cluster: format!("{:032x}", 7),
            id: 1,
            address: "127.0.0.1:0".into(),
            authority: "ca.pem".into(),
            certificate: "cert.pem".into(),
            key: "key.pem".into(),
            cache: default_cache(),
            telemetry_address: default_telemetry_address(),
            slow_operation: default_slow_operation(),
            leave_on_stop: true,
            test_skip_sync: false,
            labels: Vec::new(),
            scrub: ScrubConfig::default(),
            disks: vec![DiskConfig { id: 0, path: "data".into(), io: IoChoice::Auto }],
            metadata: vec![MetadataServer { id: 1, address: "127.0.0.1:1".into() }],
        }
    }

    #[test]
    fn what_is_written_is_read_and_an_unknown_key_is_named() {
        let text = toml::to_string(&sample()).expect("encodes");
        let path = Path::new("s/config.toml");
        assert_eq!(holdfast_config::parse::<Config>(&text, path).expect("decodes"), sample());
        let error = holdfast_config::parse::<Config>(&format!("sisk = 1\n{text}"), path).expect_err("unknown key");
        assert_eq!(error.to_string(), "s/config.toml:1: unknown key \"sisk\"; did you mean \"disks\"?");
    }

    #[test]
    fn nonsense_is_refused_by_its_key() {
        let key = |config: Config| config.validate().expect_err("nonsense").key;
        assert_eq!(key(Config { cluster: "xyz".into(), ..sample() }), "cluster");
        assert_eq!(key(Config { id: 0, ..sample() }), "id");
        assert_eq!(key(Config { address: "0.0.0.0:4000".into(), ..sample() }), "address");
        assert_eq!(key(Config { telemetry_address: "x".into(), ..sample() }), "telemetry-address");
        assert_eq!(key(Config { cache: Size(9), ..sample() }), "cache");
        let scrub = |every, rate| Config { scrub: ScrubConfig { every: Span(every), rate: Size(rate) }, ..sample() };
        assert_eq!(key(scrub(Duration::from_secs(59), 1 << 20)), "every");
        assert_eq!(key(scrub(Duration::from_secs(60), 1)), "rate");
        assert_eq!(key(Config { disks: Vec::new(), ..sample() }), "disks");
        let twice = [sample().disks, sample().disks].concat();
        assert_eq!(key(Config { disks: twice, ..sample() }), "disks");
        assert_eq!(key(Config { metadata: Vec::new(), ..sample() }), "metadata");
        assert_eq!(sample().validate(), Ok(()));
    }
}
