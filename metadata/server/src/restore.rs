//! A backup becomes a server's directory: for `holdfast admin metadata restore`, while no metadata server of the cluster runs.
//!
//! ```text
//! backup read once, all of it verified ──▶ decided ──▶ RESTORING written ──▶ tables ──▶ logs born ──▶ IDENTITY ──▶ RESTORING removed
//! ```
//! * Nothing is written before the whole backup was read and found right, and nothing is overwritten: the directory must be empty, but for
//!   what a first start or a restoration that was cut short has left.
//! * Nobody starts from a directory with RESTORING in it. One that is cut short is begun anew.
//! * The log begins where the table ends, in a life of its own, and its only founder is this server. Others join it as they join any cluster.

use crate::backup::{BackupError, Head, Reader, Totals};
use crate::config::Config;
use crate::disk::{self, DiskError, FORMAT, RESTORING, START};
use crate::log_store::Birth;
use holdfast_journal::Syncing;
use holdfast_metadata_core::restore as core;
use holdfast_metadata_core::restore::Restoration;
pub use holdfast_metadata_core::restore::{Before, Outcome, Plan, Survey};
use holdfast_metadata_core::{HardState, LogRecord};
use holdfast_store::Batch;
use holdfast_types::{ClusterId, ServerId, ShardId};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

const SHARDS: [ShardId; 2] = [ShardId::CLUSTER, ShardId::VOLUMES];

/// Why a backup was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file.
    #[error("{path}: {source}")]
    Backup {
        /// Which.
        path: PathBuf,
        /// Why.
        source: BackupError,
    },
    /// Of another cluster.
    #[error(
        "{path} is a backup of cluster {found}, the configuration is of {expected}: storage nodes, mounts and certificates are of one cluster, \
         and a backup goes back to its own"
    )]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Whose the configuration is.
        expected: ClusterId,
    },
    /// Rows of another format.
    #[error(
        "{path} has rows of format {found}, this release reads format {FORMAT} alone: restore with the release that wrote it ({release})"
    )]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it has.
        found: u32,
        /// Who wrote it.
        release: String,
    },
    /// There is something where it should go.
    #[error(
        "{path} is not empty ({entry} is there): nothing is overwritten. If no metadata server has a use for what it holds any more, move it \
         away and try again"
    )]
    NotEmpty {
        /// Which directory.
        path: PathBuf,
        /// What is there.
        entry: String,
    },
    /// It contradicts itself, or what is known.
    #[error("{path}: {source}")]
    Core {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: core::RestoreError,
    },
    /// The server's address is not in its configuration.
    #[error("the configuration does not say where metadata server {0} listens")]
    Address(u64),
    /// The directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Told how many bytes of the backup were read.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// Reads a whole backup, verifies it, and learns of it what must be known before it can be restored.
///
/// # Errors
/// [`RestoreError`]
pub fn survey(path: &Path, progress: Progress<'_>) -> Result<(Head, Survey, Totals), RestoreError> {
    let (mut reader, head) = open(path)?;
    if head.rows_format != FORMAT {
        return Err(RestoreError::Format { path: path.into(), found: head.rows_format, release: head.release });
    }
    let mut survey = Survey::default();
    while let Some((shard, rows)) = next(path, &mut reader)? {
        for (key, value) in &rows {
            let looked = survey.row(shard, key, value);
            looked.map_err(|source| RestoreError::Core { path: path.into(), source })?;
        }
        progress(reader.totals().bytes);
    }
    Ok((head, survey, reader.totals()))
}

/// Whether a backup could be written into the server's directory. Asked before anything that takes long.
///
/// # Errors
/// [`RestoreError::NotEmpty`], or what the system says.
pub fn check_directory(config: &Config) -> Result<(), RestoreError> {
    let path = &config.data;
    let io = |source| DiskError::Io { path: path.clone(), source };
    let cut_short = path.join(RESTORING).exists();
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error).into()),
    };
    for entry in entries {
        let entry = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        let may_be_there = [START, RESTORING, "lost+found"].contains(&&*entry);
        if !(may_be_there || cut_short && OURS.contains(&&*entry)) {
            return Err(RestoreError::NotEmpty { path: path.clone(), entry });
        }
    }
    Ok(())
}

/// What a restoration that was cut short may have left.
const OURS: [&str; 4] = ["shard-0", "shard-1", "IDENTITY", "IDENTITY.new"];

/// Writes a backup into the directory of a server, which goes on from there as the only voter when it is started.
///
/// # Errors
/// [`RestoreError`]; a directory in which something was written then has RESTORING in it, and no server starts from it.
pub fn restore(
    config: &Config,
    (path, head): (&Path, &Head),
    survey: Survey,
    plan: impl FnOnce(&mut Plan),
    progress: Progress<'_>,
) -> Result<Outcome, RestoreError> {
    if head.cluster != config.cluster_id() {
        let (found, expected) = (head.cluster, config.cluster_id());
        return Err(RestoreError::Foreign { path: path.into(), found, expected });
    }
    check_directory(config)?;
    let data = &config.data;
    let io = |source| DiskError::Io { path: data.clone(), source };
    let own = config.servers.iter().find(|server| server.id == config.id).ok_or(RestoreError::Address(config.id))?;
    let mut decided = Plan {
        server: config.server_id(),
        address: own.address.clone(),
        life: disk::draw().map_err(io)?,
        created: head.created,
        now: crate::node::wall(),
        held: Default::default(),
        accept_unknown: false,
    };
    plan(&mut decided);
    let restoration = survey.plan(&decided).map_err(|source| RestoreError::Core { path: path.into(), source })?;
    begin(data).map_err(io)?;
    write(config, path, &restoration, decided.life, progress)?;
    let identity = format!("{}{:016x}\n", disk::expected(config), decided.life);
    disk::write_identity(data, &identity).map_err(io)?;
    std::fs::remove_file(data.join(RESTORING)).map_err(io)?;
    File::open(data).and_then(|directory| directory.sync_all()).map_err(io)?;
    Ok(restoration.outcome().clone())
}

/// Marks the directory, and removes what an attempt that was cut short has left, and what would let a server start as a new one.
fn begin(data: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(data)?;
    File::create(data.join(RESTORING))?.sync_all()?;
    File::open(data)?.sync_all()?;
    for name in OURS.into_iter().chain([START]) {
        let path = data.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    File::open(data)?.sync_all()
}

/// Tables first, durably; then the logs that begin where they end.
fn write(
    config: &Config,
    path: &Path,
    restoration: &Restoration,
    life: u64,
    progress: Progress<'_>,
) -> Result<(), RestoreError> {
    let syncing = if config.test_skip_sync { Syncing::SkippedForTest } else { Syncing::Real };
    let mut shards = Vec::new();
    for shard in SHARDS {
        shards.push(disk::open_shard(config, shard, syncing)?);
    }
    let table = |shard: ShardId, source| {
        let path = config.data.join(format!("shard-{}", shard.0)).join("table");
        RestoreError::Disk(DiskError::Table { shard, path, source })
    };
    let commit =
        |shard: ShardId, batch| shards[shard.0 as usize].table.commit(batch).map_err(|source| table(shard, source));
    let (mut reader, _) = open(path)?;
    while let Some((shard, rows)) = next(path, &mut reader)? {
        if shard == ShardId::VOLUMES {
            let mut batch = Batch::new();
            for (key, value) in &rows {
                let row = restoration.volumes_row(key, value, &mut batch);
                row.map_err(|source| RestoreError::Core { path: path.into(), source })?;
            }
            commit(shard, batch)?;
        }
        progress(reader.totals().bytes);
    }
    commit(ShardId::VOLUMES, restoration.volumes_end())?;
    commit(ShardId::CLUSTER, restoration.cluster_rows())?;
    let birth = Birth { life, founders: vec![ServerId(config.id)] };
    for ((shard, opened), base) in SHARDS.into_iter().zip(&mut shards).zip(restoration.at) {
        opened.table.persist().map_err(|source| table(shard, source))?;
        let hard_state = HardState { term: base.term, vote: ServerId(0), commit: base.index };
        let records = [LogRecord::Restart { base }, LogRecord::HardState(hard_state)];
        let log = &mut opened.log;
        let written = log.begin(birth.clone()).and_then(|()| log.append(&records)).and_then(|()| log.sync());
        written.map_err(|source| {
            let path = config.data.join(format!("shard-{}", shard.0)).join("log");
            DiskError::Log { shard, path, source }
        })?;
    }
    Ok(())
}

fn open(path: &Path) -> Result<(Reader<BufReader<File>>, Head), RestoreError> {
    let wrong = |source| RestoreError::Backup { path: path.into(), source };
    let file = File::open(path).map_err(|error| wrong(error.into()))?;
    Reader::open(BufReader::with_capacity(1 << 20, file)).map_err(wrong)
}

fn next(
    path: &Path,
    reader: &mut Reader<BufReader<File>>,
) -> Result<Option<(ShardId, Vec<crate::backup::Row>)>, RestoreError> {
    reader.next_rows().map_err(|source| RestoreError::Backup { path: path.into(), source })
}

#[cfg(test)]
mod tests;
