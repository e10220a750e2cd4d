//! The data directory: identity, logs, tables.
//!
//! ```text
//! data/START            `form` or `join`: this server has never started and may do so once; written by who prepares the directory
//! data/RESTORING        a backup is being written here, or was when that was cut short: nobody starts from it
//! data/IDENTITY         cluster, server, format and the life of its logs, written when the directory is made
//! data/shard-0/log/     journal of shard 0        data/shard-0/table/   its table
//! data/shard-1/log/     the same of shard 1       data/shard-1/table/
//! ```
//!
//! ```text
//! START ──logs born, synced──▶ IDENTITY ──START removed──▶ every later start
//! ```
//! * A first start needs START. So a directory that was wiped is no new one: what this server voted and acknowledged is lost with it, and
//!   only a new server, under a new id, may take its place.
//! * Each log holds the life that IDENTITY names: one that is gone, or another's, is noticed. A table that lacks what its log begins
//!   after is noticed by the core; one that is gone while its log is whole is made again from that.

use crate::config::Config;
use crate::log_store::{Birth, LogError, LogStore, RecoveredLog};
use crate::medium::{self, Medium};
use holdfast_journal::{JournalConfig, JournalError, Syncing};
use holdfast_store::{FjallConfig, FjallTable, KeyRange, StoreError, Table};
use holdfast_types::size::MIB;
use holdfast_types::{ServerId, ShardId};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Format of the directory: rises when rows of the tables change.
pub const FORMAT: u32 = 7;
/// Name of the file that allows a first start.
pub const START: &str = "START";
/// Name of the file that stands there while a backup is written into the directory.
pub const RESTORING: &str = "RESTORING";
/// What a server does at its first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It makes the cluster, with the others that its configuration names.
    Form,
    /// It waits for the cluster to catch it up.
    Join,
}

impl Start {
    /// Content of the file.
    pub fn text(self) -> &'static str {
        match self {
            Self::Form => "form\n",
            Self::Join => "join\n",
        }
    }
}

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
    /// An older build made it, and nothing translates it.
    #[error(
        "{path} has format {found}, which a build before the first release wrote; this one reads format {FORMAT} alone: \
         copy the data out with the old build, and start anew with an empty `data` on every server"
    )]
    OldFormat {
        /// Which directory.
        path: PathBuf,
        /// What it has.
        found: u32,
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
    /// There is nothing, and nobody has allowed a first start.
    #[error(
        "{path} holds no data of metadata server {id}, and no {START}, which `holdfast init` leaves for its first start: the data is lost, or \
         `data` names another directory. If it is lost, this server must not start again under its id; put a new one in its place: \
         holdfast admin metadata replace {id} NEW-ID HOST:PORT"
    )]
    Lost {
        /// Where.
        path: PathBuf,
        /// Who.
        id: u64,
    },
    /// One log is gone, or is not the one that belongs here.
    #[error(
        "the log of {shard} in {path} is not the one that metadata server {id} began with: it was lost or exchanged. What this server \
         promised is lost with it; it must not start again under its id. Put a new one in its place: \
         holdfast admin metadata replace {id} NEW-ID HOST:PORT"
    )]
    LogLost {
        /// Which shard.
        shard: ShardId,
        /// Where.
        path: PathBuf,
        /// Who.
        id: u64,
    },
    /// A first start is allowed, but there is a log already.
    #[error(
        "{path} holds a log but no IDENTITY: it is not new, and not whole. Restore IDENTITY, or replace this server"
    )]
    Halfway {
        /// Where.
        path: PathBuf,
    },
    /// A backup was being written here.
    #[error(
        "{path} holds half of a backup: restoring it was cut short. Restore again: \
         holdfast admin metadata restore FILE --config …/config.toml"
    )]
    HalfRestored {
        /// Where.
        path: PathBuf,
    },
    /// Bytes of a log or table are not what was written.
    #[error(
        "the {what} of {shard} in {path} is damaged: {reason}. Metadata server {id} must not go on by guessing; the others have everything \
         and serve meanwhile. Put a new one in its place (it may have the same address, and starts from what they have): \
         holdfast admin metadata replace {id} NEW-ID HOST:PORT"
    )]
    Damaged {
        /// Log or table.
        what: &'static str,
        /// Which shard.
        shard: ShardId,
        /// Where.
        path: PathBuf,
        /// What is wrong, with its causes.
        reason: String,
        /// Who.
        id: u64,
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
    pub log: LogStore<Medium>,
    /// What it held.
    pub recovered: RecoveredLog,
    /// The table.
    pub table: Arc<dyn Table>,
}

/// Opens a server's directory; the two shards in order.
///
/// # Errors
/// [`DiskError`]
pub fn open(config: &Config) -> Result<(Birth, [Shard; 2]), DiskError> {
    let path = &config.data;
    let io = |source| DiskError::Io { path: path.clone(), source };
    if path.join(RESTORING).exists() {
        return Err(DiskError::HalfRestored { path: path.clone() });
    }
    let known = identity(config)?;
    let start = read_start(path).map_err(io)?;
    if known.is_none() && start.is_none() {
        return Err(DiskError::Lost { path: path.clone(), id: config.id });
    }
    let syncing = if config.test_skip_sync { Syncing::SkippedForTest } else { Syncing::Real };
    let mut shards = [open_shard(config, ShardId::CLUSTER, syncing)?, open_shard(config, ShardId::VOLUMES, syncing)?];
    let birth = match (known, start) {
        (Some(life), _) => same_life(config, life, &shards)?,
        (None, Some(start)) => be_born(config, start, &mut shards)?,
        (None, None) => unreachable!("refused above"),
    };
    match std::fs::remove_file(path.join(START)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(error)),
        _ => Ok((birth, shards)),
    }
}

/// Every log is of the life that IDENTITY names.
fn same_life(config: &Config, life: u64, shards: &[Shard; 2]) -> Result<Birth, DiskError> {
    for (shard, opened) in [ShardId::CLUSTER, ShardId::VOLUMES].into_iter().zip(shards) {
        if opened.recovered.birth.as_ref().is_none_or(|birth| birth.life != life) {
            let path = config.data.join(format!("shard-{}", shard.0)).join("log");
            return Err(DiskError::LogLost { shard, path, id: config.id });
        }
    }
    Ok(shards[0].recovered.birth.clone().unwrap_or_default())
}

/// A first start. One that was cut short before IDENTITY was written is made again: nothing was said or promised yet.
fn be_born(config: &Config, start: Start, shards: &mut [Shard; 2]) -> Result<Birth, DiskError> {
    let path = &config.data;
    let io = |source| DiskError::Io { path: path.clone(), source };
    let founders = match start {
        Start::Form => config.servers.iter().map(|server| ServerId(server.id)).collect(),
        Start::Join => Vec::new(),
    };
    let birth = Birth { life: draw().map_err(io)?, founders };
    for (shard, opened) in [ShardId::CLUSTER, ShardId::VOLUMES].into_iter().zip(shards) {
        let found = RecoveredLog { birth: None, ..opened.recovered.clone() };
        if found != RecoveredLog::default() || opened.table.range(KeyRange::all()).next().is_some() {
            return Err(DiskError::Halfway { path: path.clone() });
        }
        opened.log.begin(birth.clone()).map_err(|source| DiskError::Log { shard, path: path.clone(), source })?;
    }
    write_identity(path, &format!("{}{:016x}\n", expected(config), birth.life)).map_err(io)?;
    Ok(birth)
}

/// A number that nobody else has drawn; not 0.
pub(crate) fn draw() -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

fn read_start(data: &Path) -> std::io::Result<Option<Start>> {
    match std::fs::read_to_string(data.join(START)) {
        Ok(text) if text.trim() == Start::Form.text().trim() => Ok(Some(Start::Form)),
        Ok(text) if text.trim() == Start::Join.text().trim() => Ok(Some(Start::Join)),
        Ok(_) => Err(std::io::Error::other(format!("{START} holds neither `form` nor `join`"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Prepares a data directory for a first start.
///
/// # Errors
/// What the system says.
pub fn prepare(data: &Path, start: Start) -> std::io::Result<()> {
    std::fs::create_dir_all(data)?;
    let mut file = std::fs::File::create(data.join(START))?;
    file.write_all(start.text().as_bytes())?;
    file.sync_all()?;
    std::fs::File::open(data)?.sync_all()
}

pub(crate) fn open_shard(config: &Config, shard: ShardId, syncing: Syncing) -> Result<Shard, DiskError> {
    let base = config.data.join(format!("shard-{}", shard.0));
    let path = base.join("log");
    let disk = medium::open(&path, syncing).map_err(|source| DiskError::Io { path: path.clone(), source })?;
    let id = config.cluster_id().0 ^ (u128::from(config.id) << 32) ^ u128::from(shard.0);
    let journal = JournalConfig { segment_bytes: 16 << 20, ..JournalConfig::new("raft", id) };
    let damaged = |what, path: &Path, error: &dyn std::error::Error| {
        let (path, reason) = (path.to_owned(), with_causes(error));
        DiskError::Damaged { what, shard, path, reason, id: config.id }
    };
    let (log, recovered) = LogStore::open(disk, &journal).map_err(|source| match &source {
        LogError::Journal(JournalError::Damaged { .. } | JournalError::Replay { .. }) => damaged("log", &path, &source),
        LogError::Journal(_) => DiskError::Log { shard, path: path.clone(), source },
    })?;
    let path = base.join("table");
    // Most rows are in the volumes' table; the cluster's is small.
    let share = if shard == ShardId::VOLUMES { 7 } else { 1 };
    let cache_bytes = config.cache.0 * share / 8;
    // What waits to be written to files is in proportion, so that little memory for the one is little for all.
    let memtable_bytes = FjallConfig::default().memtable_bytes.min((config.cache.0 / 8).max(MIB));
    let fjall = FjallConfig { cache_bytes, memtable_bytes, ..FjallConfig::default() };
    let table = FjallTable::open(&path, fjall).map_err(|source| match &source {
        StoreError::Damaged(_) => damaged("table", &path, &source),
        StoreError::Full(_) | StoreError::Failed(_) | StoreError::InUse => DiskError::Table { shard, path, source },
    })?;
    Ok(Shard { log, recovered, table: Arc::new(table) })
}

/// An error and all its causes, each once.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    text
}

/// Who a directory is of, but for the life.
pub(crate) fn expected(config: &Config) -> String {
    format!("format {FORMAT} cluster {} metadata {} life ", config.cluster, config.id)
}

/// The life that IDENTITY names, if there is one.
fn identity(config: &Config) -> Result<Option<u64>, DiskError> {
    let path = &config.data;
    let io = |source| DiskError::Io { path: path.clone(), source };
    std::fs::create_dir_all(path).map_err(io)?;
    let found = match std::fs::read_to_string(path.join("IDENTITY")) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if let Some(format) = format_of(&found).filter(|format| *format > FORMAT) {
        return Err(DiskError::Format { path: path.clone(), found: format });
    }
    if let Some(format) = format_of(&found).filter(|format| *format < FORMAT) {
        return Err(DiskError::OldFormat { path: path.clone(), found: format });
    }
    let expected = expected(config);
    let life = found.strip_prefix(&expected).and_then(|life| u64::from_str_radix(life.trim(), 16).ok());
    life.map(Some).ok_or_else(|| DiskError::Foreign {
        path: path.clone(),
        found: found.trim().to_owned(),
        expected: expected.trim_end_matches(" life ").to_owned(),
    })
}

/// The format that an identity begins with.
fn format_of(identity: &str) -> Option<u32> {
    identity.strip_prefix("format ")?.split(' ').next()?.parse().ok()
}

pub(crate) fn write_identity(path: &Path, text: &str) -> std::io::Result<()> {
    let partial = path.join("IDENTITY.new");
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(partial, path.join("IDENTITY"))?;
    std::fs::File::open(path)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests;
