//! `holdfast admin metadata backup | restore | verify`.
//!
//! ```text
//! backup:   leader of shard 1 says how far it is ──▶ a server that is as far holds its table
//!           leader of shard 0 says how far it is ──▶ the same server holds that table, too ──▶ rows ──▶ FILE.….new ──synced──▶ FILE
//! restore:  nobody of the metadata servers answers ──▶ the whole file is verified ──▶ storage nodes say what they know ──▶ data directory
//! ```

use crate::admin::PATIENCE;
use crate::cli::MetadataCommand;
use crate::fsck::Progress;
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use holdfast_client::{Cluster, ClusterFile};
use holdfast_metadata_server::backup::{Head, Totals, Writer};
use holdfast_metadata_server::config::Config;
use holdfast_metadata_server::restore::Before;
use holdfast_metadata_server::{disk, restore};
use holdfast_types::{LogIndex, MapVersion, NodeId, ServerId, ShardId, Term, Timestamp};
use holdfast_wire::admin::{AdminAnswer, AdminRequest, HeldByNode, HeldTable};
use holdfast_wire::map::ClusterMap;
use holdfast_wire::metadata::Request;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How long one server may take for an answer.
const SERVER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a server may take to be as far as the leader was. One that is further behind is being caught up, or is cut off.
const BEHIND_MAX: Duration = Duration::from_secs(15);
/// Pause between two questions whether it is.
const BEHIND_PAUSE: Duration = Duration::from_millis(20);
/// Within this time a metadata server that runs answers.
const RUNS_WITHIN: Duration = Duration::from_secs(2);
/// How often rows that did not come are asked for again.
const TRIES: u32 = 5;

/// Carries out a command that needs no leader to begin with; `None` if it is not one of these.
pub async fn run(file: &ClusterFile, cluster: &Cluster, command: &MetadataCommand) -> Option<Result<ExitCode>> {
    Some(match command {
        MetadataCommand::Backup { file: to, unconfirmed } => backup(file, cluster, to, unconfirmed.map(ServerId)).await,
        MetadataCommand::Restore { file: from, config, without_storage, accept_unknown } => {
            let lost = without_storage.iter().copied().map(NodeId).collect();
            restored(file, cluster, (from, config), &lost, *accept_unknown).await
        }
        MetadataCommand::Add { .. }
        | MetadataCommand::Remove { .. }
        | MetadataCommand::Replace { .. }
        | MetadataCommand::Verify { .. } => return None,
    })
}

/// Takes a backup from the first server that can give one, followers first: they have less to do.
async fn backup(file: &ClusterFile, cluster: &Cluster, to: &Path, unconfirmed: Option<ServerId>) -> Result<ExitCode> {
    ensure!(
        to.as_os_str() == "-" || !to.exists(),
        "{} exists; a backup does not take the place of another file: name a new one",
        to.display()
    );
    let created = now();
    let servers = match unconfirmed {
        Some(server) => vec![server],
        None => sources(cluster).await?,
    };
    let mut refusals = Vec::new();
    for server in servers {
        match take(cluster, server, unconfirmed.is_none()).await {
            Ok(held) => {
                let head = Head {
                    cluster: file.cluster,
                    created,
                    release: env!("CARGO_PKG_VERSION").into(),
                    rows_format: disk::FORMAT,
                    server,
                    confirmed: unconfirmed.is_none(),
                    at: held.map(|table| (table.index, table.term)),
                };
                let copied = copy(cluster, &head, held, to).await;
                let_go(cluster, server, held[1].backup).await;
                let totals = copied?;
                eprintln!("{}", said(&head, totals, to));
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => refusals.push(format!("metadata server {}: {}", server.0, crate::in_one_line(&error))),
        }
    }
    bail!("no backup was taken: {}", refusals.join("; "))
}

/// Servers that may be asked, those that lead last.
async fn sources(cluster: &Cluster) -> Result<Vec<ServerId>> {
    // Whoever is on record counts; the file may be older.
    let status = crate::admin::ask_status(cluster).await.context("a backup needs a leader, or --unconfirmed ID")?;
    let known = status.metadata.iter().filter(|server| server.place == holdfast_wire::admin::ServerPlace::Voter);
    let known: BTreeMap<ServerId, String> = known.map(|server| (server.id, server.address.clone())).collect();
    cluster.learn(&known);
    let mut sources = Vec::new();
    for id in known.into_keys() {
        if let Some(AdminAnswer::Server(server)) = cluster.ask_server(id, AdminRequest::ServerStatus, RUNS_WITHIN).await
            && server.halted.is_none()
        {
            let led = server.shards.iter().filter(|shard| shard.leader == Some(id)).count();
            sources.push((led, id));
        }
    }
    sources.sort_unstable();
    Ok(sources.into_iter().map(|(_, id)| id).collect())
}

/// Has a server hold both tables, each as far as its leader was when it was asked.
async fn take(cluster: &Cluster, server: ServerId, confirmed: bool) -> Result<[HeldTable; 2]> {
    let volumes = Request::InspectInodes { inodes: Vec::new() };
    let at_least = confirm(cluster, ShardId::VOLUMES, volumes, confirmed).await?;
    let volumes = hold(cluster, server, AdminRequest::BackupBegin { at_least }).await?;
    let backup = volumes.backup;
    match joined(cluster, server, backup, confirmed).await {
        Ok(cluster_table) => Ok([cluster_table, volumes]),
        Err(error) => {
            let_go(cluster, server, backup).await;
            Err(error)
        }
    }
}

/// Has the server hold the other table, too.
async fn joined(cluster: &Cluster, server: ServerId, backup: u64, confirmed: bool) -> Result<HeldTable> {
    // What the volumes rest on was committed in shard 0 before they did: a leader confirmed from now on has it.
    let at_least = confirm(cluster, ShardId::CLUSTER, Request::ListVolumes, confirmed).await?;
    hold(cluster, server, AdminRequest::BackupJoin { backup, at_least }).await
}

/// The server need not hold the tables any more. If it does not hear that, it lets them go after a while.
async fn let_go(cluster: &Cluster, server: ServerId, backup: u64) {
    let _ = cluster.ask_server(server, AdminRequest::BackupEnd { backup }, SERVER_PATIENCE).await;
}

/// How far a shard's confirmed leader is.
async fn confirm(cluster: &Cluster, shard: ShardId, read: Request, confirmed: bool) -> Result<LogIndex> {
    if !confirmed {
        return Ok(LogIndex(0));
    }
    Ok(cluster.request_at(shard, read, PATIENCE).await?.1)
}

async fn hold(cluster: &Cluster, server: ServerId, request: AdminRequest) -> Result<HeldTable> {
    let begun = Instant::now();
    loop {
        match cluster.ask_server(server, request.clone(), SERVER_PATIENCE).await {
            Some(AdminAnswer::Held(held)) => return Ok(held),
            Some(AdminAnswer::Behind { .. }) if begun.elapsed() < BEHIND_MAX => {
                tokio::time::sleep(BEHIND_PAUSE).await;
            }
            Some(AdminAnswer::Behind { applied }) => bail!("it is behind, at {applied}, and does not catch up"),
            Some(AdminAnswer::Refused(reason)) => bail!("{reason}"),
            Some(other) => bail!("it answered something else: {other:?}"),
            None => bail!("it does not answer"),
        }
    }
}

/// Copies what a server holds into a file that takes its name when it is whole and durable.
async fn copy(cluster: &Cluster, head: &Head, held: [HeldTable; 2], to: &Path) -> Result<Totals> {
    if to.as_os_str() == "-" {
        let (_, totals) = rows(cluster, head, held, BufWriter::new(std::io::stdout())).await?;
        return Ok(totals);
    }
    let (file, partial) = create_partial(to)?;
    let result = async {
        let (file, totals) = rows(cluster, head, held, BufWriter::with_capacity(1 << 20, file)).await?;
        let file = file.into_inner().map_err(|error| anyhow!("{error}"))?;
        file.sync_all()?;
        publish(&partial, to)?;
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(totals)
    };
    let result: Result<Totals> = result.await;
    if result.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    result.with_context(|| format!("cannot write {}", to.display()))
}

/// A file of this backup alone, to be given its name when it is whole: another that is written to the same name has its own.
fn create_partial(to: &Path) -> Result<(File, PathBuf)> {
    let moment = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut partial = to.as_os_str().to_owned();
    partial.push(format!(".{}-{moment:x}.new", std::process::id()));
    let partial = PathBuf::from(partial);
    // Names and attributes of everything: its owner's alone.
    let created = File::options().write(true).create_new(true).mode(0o600).open(&partial);
    let file = created.with_context(|| format!("cannot write {}", partial.display()))?;
    Ok((file, partial))
}

/// Gives a file its name, unless another has it by now.
fn publish(partial: &Path, to: &Path) -> std::io::Result<()> {
    match renameat_with(CWD, partial, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can; those that cannot have links.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            std::fs::hard_link(partial, to)?;
            std::fs::remove_file(partial)
        }
        renamed => Ok(renamed?),
    }
}

async fn rows<W: Write>(cluster: &Cluster, head: &Head, held: [HeldTable; 2], out: W) -> Result<(W, Totals)> {
    let progress = Progress::new("rows, in KiB of the tables");
    let mut writer = Writer::begin(out, head)?;
    for (shard, table) in [ShardId::CLUSTER, ShardId::VOLUMES].into_iter().zip(held) {
        let (mut after, mut bytes) = (Bytes::new(), 0);
        loop {
            let request = AdminRequest::BackupRows { backup: table.backup, shard, after: after.clone() };
            let (rows, last) = page(cluster, head.server, request).await?;
            writer.rows(shard, &rows)?;
            bytes += rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>();
            progress.at(shard.0.into(), bytes >> 10, (table.bytes >> 10).max(bytes >> 10));
            match rows.last() {
                Some((key, _)) if !last => after = key.clone(),
                Some(_) | None => break,
            }
        }
    }
    progress.end();
    Ok(writer.finish()?)
}

/// Some rows, and whether they are the last. Asking again does no harm.
async fn page(cluster: &Cluster, server: ServerId, request: AdminRequest) -> Result<(Vec<(Bytes, Bytes)>, bool)> {
    for _ in 0..TRIES {
        match cluster.ask_server(server, request.clone(), SERVER_PATIENCE).await {
            Some(AdminAnswer::Rows { rows, last }) => return Ok((rows, last)),
            Some(AdminAnswer::Refused(reason)) => bail!("metadata server {}: {reason}", server.0),
            Some(other) => bail!("metadata server {} answered something else: {other:?}", server.0),
            None => {}
        }
    }
    bail!("metadata server {} does not answer any more; take the backup again", server.0)
}

/// Restores a backup into the directory of a server that does not run.
async fn restored(
    file: &ClusterFile,
    cluster: &Cluster,
    (from, config): (&Path, &Path),
    lost: &BTreeSet<NodeId>,
    accept_unknown: bool,
) -> Result<ExitCode> {
    let at = config;
    let config = Config::read(config)?;
    ensure!(
        config.cluster_id() == file.cluster,
        "{} is of cluster {}, --cluster of {}",
        at.display(),
        config.cluster,
        file.cluster
    );
    restore::check_directory(&config)?;
    nobody_runs(cluster, cluster.servers()).await?;
    let length = std::fs::metadata(from).map(|meta| meta.len() >> 10).unwrap_or(0);
    let verified = Progress::new("verifying, in KiB");
    let (head, survey, totals) = restore::survey(from, &mut |bytes| verified.at(0, bytes >> 10, length))?;
    verified.end();
    ensure!(
        head.cluster == file.cluster,
        "{} is a backup of cluster {}, this one is {}",
        from.display(),
        head.cluster,
        file.cluster
    );
    eprintln!("{}", said(&head, totals, from));
    let before = survey.before()?;
    let held = ask_storage(cluster, &before, lost).await?;
    // Of servers that joined since the cluster file, or the backup, was written, the others know.
    let asked = cluster.servers();
    let maps = held.values().map(|held| &held.map.servers);
    std::iter::once(&before.servers).chain(maps).for_each(|servers| cluster.learn(servers));
    let more = cluster.servers().into_iter().filter(|id| !asked.contains(id)).collect();
    nobody_runs(cluster, more).await?;
    let written = Progress::new("restoring, in KiB");
    let plan = |plan: &mut holdfast_metadata_server::restore::Plan| {
        (plan.held, plan.accept_unknown) = (held, accept_unknown);
    };
    let (volumes, inodes) = survey.totals();
    let outcome =
        restore::restore(&config, (from, &head), survey, plan, &mut |bytes| written.at(0, bytes >> 10, length))?;
    written.end();
    println!("restored: {inodes} files and directories in {volumes} volumes, as of {}", date(head.created));
    match outcome.learned_from {
        Some(node) => println!("who holds which group is as storage node {} knew it last", node.0),
        None => println!("who holds which group is as in the backup: no storage node knew of anything newer"),
    }
    if !outcome.compared.is_empty() {
        println!(
            "{} of {} groups had other members since, unknown which: they go on with the copy written last, and the others are compared with it",
            outcome.compared.len(),
            outcome.groups
        );
    }
    if !outcome.unknown.is_empty() {
        println!(
            "of {} of these it is not known whether that copy is whole: check with `admin fsck`",
            outcome.unknown.len()
        );
    }
    println!("{} sessions of before are over: mount again", outcome.sessions);
    println!("metadata server {} goes on alone; start it (after copying its directory to its host):", config.id);
    println!("holdfast metadata --config {}", at.display());
    println!(
        "then, for each further server, under numbers never used before: holdfast admin metadata add ID HOST:PORT"
    );
    println!("and see what was written or removed after the backup: holdfast admin fsck");
    Ok(ExitCode::SUCCESS)
}

/// A metadata server that runs knows more than any backup.
async fn nobody_runs(cluster: &Cluster, servers: Vec<ServerId>) -> Result<()> {
    for id in servers {
        if cluster.ask_server(id, AdminRequest::ServerStatus, RUNS_WITHIN).await.is_some() {
            bail!(
                "metadata server {} runs. While a majority does, nothing is lost: `admin metadata replace` puts new ones in the place of the \
                 others. If the majority is lost, take what this one has, which is newer than any backup: \
                 `admin metadata backup FILE --unconfirmed {}`; then stop it, and restore that",
                id.0,
                id.0
            );
        }
    }
    Ok(())
}

/// What the storage nodes know and hold; those as well that only they know of.
async fn ask_storage(
    cluster: &Cluster,
    before: &Before,
    lost: &BTreeSet<NodeId>,
) -> Result<BTreeMap<NodeId, HeldByNode>> {
    let mut held: BTreeMap<NodeId, HeldByNode> = BTreeMap::new();
    let mut known = before.storage.clone();
    let mut asked = lost.clone();
    let mut silent = Vec::new();
    while let Some((node, address)) = known.iter().find(|(node, _)| !asked.contains(node)) {
        let (node, address) = (*node, address.clone());
        asked.insert(node);
        match cluster.ask_storage(node, &address, AdminRequest::HeldMap, SERVER_PATIENCE).await {
            Some(AdminAnswer::Node(said)) => {
                for (id, record) in &said.map.nodes {
                    known.entry(*id).or_insert_with(|| record.address.clone());
                }
                held.insert(node, *said);
            }
            Some(AdminAnswer::Refused(reason)) => bail!("storage node {}: {reason}", node.0),
            Some(other) => bail!("storage node {} answered something else: {other:?}", node.0),
            None => silent.push((node, address)),
        }
    }
    // One that was taken out for good since the backup is in nobody's map any more.
    let maps = held.values().map(|held| &held.map);
    silent.retain(|(node, _)| !is_taken_out(*node, before.version, maps.clone()));
    if !silent.is_empty() {
        let names: Vec<String> = silent.iter().map(|(node, address)| format!("{} ({address})", node.0)).collect();
        bail!(
            "no answer from storage nodes {}. What they know and hold decides who goes on with which group: start them (they wait for \
             metadata servers), or say --without-storage ID for each that is lost for good",
            names.join(", ")
        );
    }
    Ok(held)
}

/// Whether a storage node that does not answer was taken out since the backup. A map from before it may never have had the node.
fn is_taken_out<'a>(node: NodeId, backup: MapVersion, maps: impl Iterator<Item = &'a ClusterMap>) -> bool {
    let newest = maps.max_by_key(|map| map.version);
    newest.is_some_and(|map| map.version > backup && !map.nodes.contains_key(&node))
}

/// Reads a backup from its start to its end, and says what it is of.
pub fn verify(from: &Path) -> Result<ExitCode> {
    let length = std::fs::metadata(from).map(|meta| meta.len() >> 10).unwrap_or(0);
    let progress = Progress::new("verifying, in KiB");
    let (head, survey, totals) = restore::survey(from, &mut |bytes| progress.at(0, bytes >> 10, length))?;
    progress.end();
    let (volumes, inodes) = survey.totals();
    println!("{}", said(&head, totals, from));
    println!("whole: {inodes} files and directories in {volumes} volumes");
    Ok(ExitCode::SUCCESS)
}

/// What a backup is of, in a line.
fn said(head: &Head, totals: Totals, at: &Path) -> String {
    let places = head.at.map(|(LogIndex(index), Term(term))| format!("{index} of term {term}"));
    format!(
        "{}: cluster {} as of {}, from metadata server {}{}; {} rows, {} KiB; logs at {}",
        at.display(),
        head.cluster,
        date(head.created),
        head.server.0,
        if head.confirmed { "" } else { " (not confirmed by a leader: the last changes may be missing)" },
        totals.rows.iter().sum::<u64>(),
        totals.bytes.div_ceil(1024),
        places.join(" and "),
    )
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(since.as_nanos() as i128)
}

/// A moment in UTC, to the second, as RFC 3339 writes it.
fn date(at: Timestamp) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(at.seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (year, month, day, (hour, minute, second)) = (at.year(), u8::from(at.month()), at.day(), at.to_hms());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_backups_to_one_name_do_not_mix_and_the_first_that_is_whole_has_it() {
        let folder = tempfile::tempdir().expect("a directory");
        let to = folder.path().join("backup");
        let [one, other] = [b"one", b"two"].map(|bytes| {
            let (mut file, partial) = create_partial(&to).expect("made");
            file.write_all(bytes).expect("written");
            partial
        });
        publish(&one, &to).expect("it has the name");
        let refused = publish(&other, &to).expect_err("it is taken");
        assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&to).expect("there"), b"one");
        assert!(!one.exists() && other.exists());
    }

    #[test]
    fn only_a_map_from_after_the_backup_says_that_a_node_was_taken_out() {
        let map = |version| ClusterMap { version: MapVersion(version), ..ClusterMap::default() };
        let is_out = |maps: &[ClusterMap]| is_taken_out(NodeId(4), MapVersion(9), maps.iter());
        assert!(!is_out(&[]) && !is_out(&[map(0)]) && !is_out(&[map(8), map(9)]));
        assert!(is_out(&[map(8), map(10)]));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let said = |seconds| date(Timestamp { seconds, nanos: 9 });
        assert_eq!(said(0), "1970-01-01T00:00:00Z");
        assert_eq!(said(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(said(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(said(1_795_761_287), "2026-11-27T06:34:47Z");
        assert_eq!(said(-1), "1969-12-31T23:59:59Z");
    }
}
