//! Configuration of a metadata server: typed, checked, unknown keys refused.
//!
//! Relative paths are relative to the directory of the file, so that the directory can be copied to its host as it is.

use holdfast_config::{Checked, Nonsense, Size, Span, nonsense, port};
use holdfast_telemetry::http::OFF;
use holdfast_types::{ClusterId, ServerId, limits};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use holdfast_config::ConfigError;

/// `config.toml` of a metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Cluster it belongs to, 32 hexadecimal digits.
    pub cluster: String,
    /// Its id; one of `servers`.
    pub id: u64,
    /// `HOST:PORT` it listens on (UDP).
    pub address: String,
    /// Directory of its log and tables.
    pub data: PathBuf,
    /// Certificate of the cluster's authority (PEM).
    pub authority: PathBuf,
    /// Its own certificate (PEM).
    pub certificate: PathBuf,
    /// The key of its certificate (PEM).
    pub key: PathBuf,
    /// Copies of each chunk.
    pub replicas: u32,
    /// Groups of the pool: a power of two.
    pub groups: u32,
    /// The pool forms, once, when so many storage nodes have come.
    pub storage_expected: u32,
    /// A storage disk that is away for longer is given up: what it held is copied to others. Default "10 min", at least "1 s".
    #[serde(default = "default_out_after")]
    pub out_after: Span,
    /// Memory for cached blocks of the tables; the server needs about 100 MiB beside it. Default "64 MiB", at least "1 MiB".
    #[serde(default = "default_cache")]
    pub cache: Size,
    /// `HOST:PORT` of `/healthz`, `/readyz` and `/metrics` (HTTP, in the clear), or "off". Default "127.0.0.1:0": a free port, which the
    /// line `ready` names; `holdfast init` chooses one that stays.
    #[serde(default = "default_telemetry_address")]
    pub telemetry_address: String,
    /// Requests that take so long are logged with where the time went. Default "1 s".
    #[serde(default = "default_slow_operation")]
    pub slow_operation: Span,
    /// For tests of the tests only: acknowledge without syncing. Loses data at a power cut.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_skip_sync: bool,
    /// All metadata servers, itself included.
    pub servers: Vec<Server>,
}

/// One metadata server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Server {
    /// Its id.
    pub id: u64,
    /// `HOST:PORT`.
    pub address: String,
}

fn default_out_after() -> Span {
    Span(limits::OUT_AFTER)
}

fn default_cache() -> Size {
    Size(64 << 20)
}

fn default_telemetry_address() -> String {
    holdfast_telemetry::http::ADDRESS_DEFAULT.into()
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
        for entry in [&mut config.data, &mut config.authority, &mut config.certificate, &mut config.key] {
            *entry = base.join(&*entry);
        }
        Ok(config)
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId(u128::from_str_radix(&self.cluster, 16).expect("checked by validate"))
    }

    /// This server's id.
    pub fn server_id(&self) -> ServerId {
        ServerId(self.id)
    }
}

impl Checked for Config {
    fn validate(&self) -> Result<(), Nonsense> {
        if self.cluster.len() != 32 || !self.cluster.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return nonsense("cluster", format!("{:?} is not 32 hexadecimal digits", self.cluster));
        }
        if !self.servers.iter().any(|server| server.id == self.id) {
            return nonsense("id", format!("{} is not in the list of servers", self.id));
        }
        let mut ids: Vec<u64> = self.servers.iter().map(|server| server.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != self.servers.len() || ids.contains(&0) {
            return nonsense("servers", "ids are unique and above 0");
        }
        let addresses = self.servers.iter().map(|server| &server.address).chain([&self.address]);
        for address in addresses {
            if port(address).is_none_or(|port| port == 0) {
                return nonsense("address", format!("{address:?} is not HOST:PORT with a port above 0"));
            }
        }
        let telemetry = &self.telemetry_address;
        if telemetry != OFF && port(telemetry).is_none() {
            return nonsense("telemetry-address", format!("{telemetry:?} is neither HOST:PORT nor \"off\""));
        }
        if !self.groups.is_power_of_two() || self.groups > limits::GROUPS_MAX {
            return nonsense("groups", format!("{} is not a power of two up to {}", self.groups, limits::GROUPS_MAX));
        }
        if self.replicas == 0 || self.replicas as usize > limits::REPLICAS_MAX {
            return nonsense("replicas", format!("{} is not in 1..={}", self.replicas, limits::REPLICAS_MAX));
        }
        if self.storage_expected < self.replicas {
            let (nodes, replicas) = (self.storage_expected, self.replicas);
            return nonsense("storage-expected", format!("{nodes} nodes cannot hold {replicas} replicas"));
        }
        if self.out_after.0 < Duration::from_secs(1) {
            return nonsense("out-after", format!("{} is less than 1 s", self.out_after));
        }
        if self.cache < Size(1 << 20) {
            return nonsense("cache", format!("{} is less than 1 MiB", self.cache));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Config {
        Config {
            cluster: format!("{:032x}", 7),
            id: 1,
            address: "127.0.0.1:4000".into(),
            data: "data".into(),
            authority: "ca.pem".into(),
            certificate: "cert.pem".into(),
            key: "key.pem".into(),
            replicas: 3,
            groups: 256,
            storage_expected: 3,
            out_after: default_out_after(),
            cache: default_cache(),
            telemetry_address: default_telemetry_address(),
            slow_operation: default_slow_operation(),
            test_skip_sync: false,
            servers: vec![Server { id: 1, address: "127.0.0.1:4000".into() }],
        }
    }

    #[test]
    fn what_is_written_is_read_and_an_unknown_key_is_named() {
        let text = toml::to_string(&sample()).expect("encodes");
        let path = Path::new("m/config.toml");
        assert_eq!(holdfast_config::parse::<Config>(&text, path).expect("decodes"), sample());
        let error = holdfast_config::parse::<Config>(&format!("relicas = 1\n{text}"), path).expect_err("unknown key");
        assert_eq!(error.to_string(), "m/config.toml:1: unknown key \"relicas\"; did you mean \"replicas\"?");
    }

    #[test]
    fn nonsense_is_refused_by_its_key() {
        let key = |config: Config| config.validate().expect_err("nonsense").key;
        assert_eq!(key(Config { cluster: "xyz".into(), ..sample() }), "cluster");
        assert_eq!(key(Config { id: 2, ..sample() }), "id");
        assert_eq!(key(Config { servers: [sample().servers, sample().servers].concat(), ..sample() }), "servers");
        assert_eq!(key(Config { address: "host".into(), ..sample() }), "address");
        assert_eq!(key(Config { groups: 3, ..sample() }), "groups");
        assert_eq!(key(Config { replicas: 0, ..sample() }), "replicas");
        assert_eq!(key(Config { storage_expected: 2, ..sample() }), "storage-expected");
        assert_eq!(key(Config { out_after: Span(Duration::ZERO), ..sample() }), "out-after");
        assert_eq!(key(Config { cache: Size(1), ..sample() }), "cache");
        assert_eq!(key(Config { telemetry_address: "9100".into(), ..sample() }), "telemetry-address");
        assert_eq!(sample().validate(), Ok(()));
    }
}
