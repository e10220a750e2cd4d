//! The data directory: identity, logs, tables.
//!
//! ```text
//! data/IDENTITY         cluster, server and format, written when the directory is made
//! data/shard-0/log/     journal of shard 0        data/shard-0/table/   its table
//! data/shard-1/log/     the same of shard 1       data/shard-1/table/
//! ```
//!
//! A directory without IDENTITY is made new; one with another's is refused. So is one whose log or table alone is gone: the core compares them.

use crate::config::Config;
use crate::log_store::{LogError, LogStore, RecoveredLog};
use holdfast_journal::{DirectoryDisk, JournalConfig, Syncing};
use holdfast_store::{FjallConfig, FjallTable, StoreError, Table};
use holdfast_types::ShardId;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Format of the directory.
const FORMAT: u32 = 1;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is somebody else's.
    #[error("{path} holds {found}, this server is {expected}; point `data` at this server's own directory")]
    Foreign {
        /// Which directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Who we are.
        expected: String,
    },
    /// A newer release made it.
    #[error(
        "{path} has format {found}, which a newer release wrote; this release knows formats up to {FORMAT}: run the newer one"
    )]
    Format {
        /// Which directory.
        path: PathBuf,
        /// What it has.
        found: u32,
    },
    /// A log.
    #[error("log of {shard} in {path}: {source}")]
    Log {
        /// Which shard.
        shard: ShardId,
        /// Where.
        path: PathBuf,
        /// Why.
        source: LogError,
    },
    /// A table.
    #[error("table of {shard} in {path}: {source}")]
    Table {
        /// Which shard.
        shard: ShardId,
        /// Where.
        path: PathBuf,
        /// Why.
        source: StoreError,
    },
}

/// One shard's log and table, open.
pub struct Shard {
    /// The log.
    pub log: LogStore<DirectoryDisk>,
    /// What it held.
    pub recovered: RecoveredLog,
    /// The table.
    pub table: Arc<dyn Table>,
}

/// Opens a server's directory; the two shards in order.
///
/// # Errors
/// [`DiskError`]
pub fn open(config: &Config) -> Result<[Shard; 2], DiskError> {
    check_identity(config)?;
    let syncing = if config.test_skip_sync { Syncing::SkippedForTest } else { Syncing::Real };
    Ok([open_shard(config, ShardId::CLUSTER, syncing)?, open_shard(config, ShardId::VOLUMES, syncing)?])
}

fn open_shard(config: &Config, shard: ShardId, syncing: Syncing) -> Result<Shard, DiskError> {
    let base = config.data.join(format!("shard-{}", shard.0));
    let path = base.join("log");
    let disk = DirectoryDisk::open(&path, syncing).map_err(|source| DiskError::Io { path: path.clone(), source })?;
    let id = config.cluster_id().0 ^ (u128::from(config.id) << 32) ^ u128::from(shard.0);
    let journal = JournalConfig { segment_bytes: 16 << 20, ..JournalConfig::new("raft", id) };
    let (log, recovered) =
        LogStore::open(disk, &journal).map_err(|source| DiskError::Log { shard, path: path.clone(), source })?;
    let path = base.join("table");
    // Most rows are in the volumes' table; the cluster's is small.
    let share = if shard == ShardId::VOLUMES { 7 } else { 1 };
    let fjall = FjallConfig { cache_bytes: config.cache.0 * share / 8, ..FjallConfig::default() };
    let table = FjallTable::open(&path, fjall).map_err(|source| DiskError::Table { shard, path, source })?;
    Ok(Shard { log, recovered, table: Arc::new(table) })
}

fn check_identity(config: &Config) -> Result<(), DiskError> {
    let path = &config.data;
    let io = |source| DiskError::Io { path: path.clone(), source };
    let expected = format!("format {FORMAT} cluster {} metadata {}\n", config.cluster, config.id);
    std::fs::create_dir_all(path).map_err(io)?;
    match std::fs::read_to_string(path.join("IDENTITY")) {
        Ok(found) if found == expected => Ok(()),
        Ok(found) if format_of(&found).is_some_and(|format| format > FORMAT) => {
            Err(DiskError::Format { path: path.clone(), found: format_of(&found).unwrap_or_default() })
        }
        Ok(found) => Err(DiskError::Foreign {
            path: path.clone(),
            found: found.trim().to_owned(),
            expected: expected.trim().to_owned(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => write_identity(path, &expected).map_err(io),
        Err(error) => Err(io(error)),
    }
}

/// The format that an identity begins with.
fn format_of(identity: &str) -> Option<u32> {
    identity.strip_prefix("format ")?.split(' ').next()?.parse().ok()
}

fn write_identity(path: &Path, text: &str) -> std::io::Result<()> {
    let partial = path.join("IDENTITY.new");
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(partial, path.join("IDENTITY"))?;
    std::fs::File::open(path)?.sync_all()
}
