//! `holdfast admin`: what an administrator sees and does.

use crate::cli::{Admin, AdminCommand, Limit, LimitArguments, MetadataCommand, VolumeCommand};
use crate::{backup, fsck, layout, scrub, sessions, storage};
use anyhow::{Context, Result, bail};
use holdfast_client::{Cluster, ClusterFile, MetadataAddress, RequestError};
use holdfast_config::Size;
use holdfast_types::{ServerId, ShardId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest, ClusterStatus, ServerPlace, ServerRecord, ServerStatus};
use holdfast_wire::metadata::{Request, Response};
use holdfast_wire::namespace::{Labels, Limits, VolumeRecord};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How long the cluster's leader may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How long a server may take to leave.
const LEAVE_PATIENCE: Duration = Duration::from_secs(60);
/// How long one server may take to say how it is.
const SERVER_PATIENCE: Duration = Duration::from_secs(2);

/// Runs an administrator's command. For `status` and `fence`, 1 means something of its own: whatever keeps them from asking is 2.
pub async fn run(admin: Admin) -> Result<ExitCode> {
    let asks = matches!(admin.command, AdminCommand::Status { .. } | AdminCommand::Fence { .. });
    match carry_out(admin).await {
        Err(error) if asks => {
            eprintln!("holdfast: {}", crate::in_one_line(&error));
            Ok(ExitCode::from(2))
        }
        result => result,
    }
}

async fn carry_out(admin: Admin) -> Result<ExitCode> {
    if let AdminCommand::Metadata(MetadataCommand::Verify { file }) = &admin.command {
        // Of a file alone.
        return backup::verify(file);
    }
    let path =
        admin.cluster.context("say which cluster: --cluster FILE, or HOLDFAST_CLUSTER=FILE in the environment")?;
    let mut file = ClusterFile::load(&path)?;
    prefer_admin_certificate(&mut file);
    let cluster = Cluster::connect(&file)?;
    match admin.command {
        AdminCommand::Status { json } => status(&file, &cluster, json).await,
        AdminCommand::Fsck { json, quick } => fsck::run(&file, &cluster, &fsck::Options { json, quick }).await,
        AdminCommand::Scrub { json, now } => scrub::run(&cluster, json, now).await,
        AdminCommand::Sessions { json, which } => sessions::list(&cluster, &which, json).await,
        AdminCommand::Fence { ids, which } => sessions::fence(&cluster, &ids, &which).await,
        AdminCommand::Volume(command) => volume(&cluster, command).await,
        AdminCommand::Metadata(command) => metadata(&path, &file, &cluster, command).await,
        AdminCommand::Storage(command) => storage::run(&path, &file, &cluster, command).await,
    }
}

/// `init` writes the administrator's certificate beside the clients'. Where it is not there (a host that only mounts), the file's own is used.
pub fn prefer_admin_certificate(file: &mut ClusterFile) {
    let Some(base) = file.tls.certificate.parent().and_then(|p| p.parent()) else { return };
    let (certificate, key) = (base.join("admin/cert.pem"), base.join("admin/key.pem"));
    if certificate.is_file() && key.is_file() {
        file.tls.certificate = certificate;
        file.tls.key = key;
    }
}

/// How the cluster stands, as its leader says.
pub async fn ask_status(cluster: &Cluster) -> Result<ClusterStatus> {
    match cluster.request(ShardId::CLUSTER, Request::Status, PATIENCE).await? {
        Response::Status(status) => Ok(*status),
        other => bail!("the leader answered something else: {other:?}"),
    }
}

/// The servers on record.
async fn records(cluster: &Cluster) -> Result<Vec<ServerRecord>> {
    let status = ask_status(cluster).await?;
    let known = status.metadata.iter().filter(|server| server.place != ServerPlace::Gone);
    cluster.learn(&known.map(|server| (server.id, server.address.clone())).collect());
    Ok(status.metadata)
}

async fn metadata(path: &Path, file: &ClusterFile, cluster: &Cluster, command: MetadataCommand) -> Result<ExitCode> {
    if let Some(done) = backup::run(file, cluster, &command).await {
        return done;
    }
    let directory = std::path::absolute(path)?.parent().context("cluster.toml has a directory")?.to_path_buf();
    tidy_up(&directory, (path, file), &records(cluster).await?)?;
    match command {
        MetadataCommand::Add { id, address } => join(&directory, path, (file, cluster), (id, &address), None).await,
        MetadataCommand::Replace { old, new, address } => {
            join(&directory, path, (file, cluster), (new, &address), Some(old)).await
        }
        MetadataCommand::Remove { id } => {
            let request = Request::RemoveServer { server: ServerId(id) };
            cluster.request(ShardId::CLUSTER, request, PATIENCE).await?;
            let deadline = tokio::time::Instant::now() + LEAVE_PATIENCE;
            while records(cluster).await?.iter().any(|r| r.id.0 == id && r.place != ServerPlace::Gone) {
                if tokio::time::Instant::now() > deadline {
                    bail!("metadata server {id} is still leaving; `admin status` says when it is out");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            tidy_up(&directory, (path, file), &records(cluster).await?)?;
            println!("metadata server {id} is out, for good; its process ends by itself, and its directory may go");
            Ok(ExitCode::SUCCESS)
        }
        MetadataCommand::Backup { .. } | MetadataCommand::Restore { .. } | MetadataCommand::Verify { .. } => {
            unreachable!("done above")
        }
    }
}

fn place_of(record: &ServerRecord) -> MetadataAddress {
    MetadataAddress { id: record.id.0, address: record.address.clone() }
}

/// Brings cluster.toml and the servers' directories here up to the record: who is gone is in no file, and is not started any more.
fn tidy_up(directory: &Path, (path, file): (&Path, &ClusterFile), known: &[ServerRecord]) -> Result<()> {
    let (gone, present): (Vec<_>, Vec<_>) = known.iter().partition(|record| record.place == ServerPlace::Gone);
    let present: Vec<MetadataAddress> = present.into_iter().map(place_of).collect();
    if !present.is_empty() && present != file.metadata {
        layout::rewrite(path, &present)?;
    }
    gone.into_iter().try_for_each(|record| layout::retire(directory, "metadata", record.id.0))
}

/// Prepares a new server's directory, and has the cluster take it in.
async fn join(
    directory: &Path,
    path: &Path,
    (file, cluster): (&ClusterFile, &Cluster),
    (id, address): (u64, &str),
    replaces: Option<u64>,
) -> Result<ExitCode> {
    let known = records(cluster).await?;
    if known.iter().any(|r| r.id.0 == id && !matches!(r.place, ServerPlace::Joining { .. })) {
        bail!("metadata server {id} is, or was, one of this cluster; take a number that was never used");
    }
    let here = ClusterFile {
        metadata: known.iter().filter(|r| r.place != ServerPlace::Gone).map(place_of).collect(),
        ..file.clone()
    };
    let config = layout::add_metadata(directory, &here, id, address)?;
    let request =
        Request::AddServer { server: ServerId(id), address: address.to_owned(), replaces: replaces.map(ServerId) };
    cluster.request(ShardId::CLUSTER, request, PATIENCE).await?;
    // Whom it replaces stays until it is out: it votes, and may have to be asked.
    let mut servers: Vec<MetadataAddress> = here.metadata.into_iter().filter(|s| s.id != id).collect();
    servers.push(MetadataAddress { id, address: address.to_owned() });
    layout::rewrite(path, &servers)?;
    println!("metadata server {id} may join; start it (after copying its directory to its host):");
    println!("holdfast metadata --config {}", config.display());
    if let Some(old) = replaces {
        println!(
            "{old} is out when `admin status` says that {id} votes; `admin metadata remove {old}` then tidies up after it,"
        );
        println!("and `admin metadata remove {id}` before that calls it all off");
    }
    Ok(ExitCode::SUCCESS)
}

async fn volume(cluster: &Cluster, command: VolumeCommand) -> Result<ExitCode> {
    let ask = async |request| cluster.request(ShardId::CLUSTER, request, PATIENCE).await;
    match command {
        VolumeCommand::Create { name, limits } => {
            let limits = limits_after(Limits::default(), limits);
            let answer = ask(Request::CreateVolume { name, limits, labels: Labels::new() }).await?;
            let Response::Volume(volume) = answer else { return odd(&answer) };
            println!("created volume {}", volume.name);
        }
        VolumeCommand::Limit { name, limits } => {
            let known = volumes(cluster).await?.into_iter().find(|volume| volume.name == name);
            let Some(known) = known else { bail!("there is no volume {name:?}; `admin volume list` shows them") };
            let limits = limits_after(known.limits(), limits);
            let answer = ask(Request::LimitVolume { name, limits }).await?;
            let Response::Volume(volume) = answer else { return odd(&answer) };
            println!("{}", line(&volume));
        }
        VolumeCommand::List { long } => {
            for volume in volumes(cluster).await? {
                println!("{}", if long { line(&volume) } else { volume.name });
            }
        }
        VolumeCommand::Delete { name } => {
            let answer = ask(Request::DeleteVolume { name }).await?;
            let Response::Done = answer else { return odd(&answer) };
            println!("deleted; its space is freed in the background");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// All volumes.
pub async fn volumes(cluster: &Cluster) -> Result<Vec<VolumeRecord>> {
    match cluster.request(ShardId::CLUSTER, Request::ListVolumes, PATIENCE).await? {
        Response::Volumes(volumes) => Ok(volumes),
        other => odd(&other),
    }
}

/// An answer to another question.
pub fn odd<T>(answer: &Response) -> Result<T> {
    bail!("the leader answered something else: {answer:?}")
}

/// What is given replaces what was.
fn limits_after(before: Limits, given: LimitArguments) -> Limits {
    Limits {
        bytes: given.bytes.map_or(before.bytes, |Limit(bytes)| bytes.map(|Size(bytes)| bytes)),
        inodes: given.inodes.map_or(before.inodes, |Limit(inodes)| inodes),
    }
}

/// A volume and its limits, for scripts: name, bytes, inodes.
fn line(volume: &VolumeRecord) -> String {
    let shown = |limit: Option<u64>| limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    format!("{} bytes={} inodes={}", volume.name, shown(volume.bytes_max), shown(volume.inodes_max))
}

/// `status --json`; the shape is in docs/operations.md and only grows.
#[derive(Serialize)]
struct Report {
    healthy: bool,
    reasons: Vec<String>,
    /// What goes on by itself, or may wait.
    notes: Vec<String>,
    metadata: Vec<MetadataReport>,
    storage: Vec<storage::StorageReport>,
    groups: GroupsReport,
    /// What moves between storage nodes.
    rebuild: storage::RebuildReport,
    /// How many.
    sessions: usize,
    session_list: Vec<SessionReport>,
}

#[derive(Serialize)]
struct MetadataReport {
    id: u64,
    address: String,
    /// voter, joining or leaving
    place: &'static str,
    pid: Option<u32>,
    state: &'static str,
    role: &'static str,
    /// Shards that this server leads.
    leads: Vec<usize>,
}

#[derive(Serialize)]
struct GroupsReport {
    total: u32,
    degraded: u32,
    waiting: u32,
}

#[derive(Serialize)]
struct SessionReport {
    id: u64,
    volume: u64,
    host: String,
    pid: u32,
    mount_point: String,
}

async fn status(file: &ClusterFile, cluster: &Cluster, json: bool) -> Result<ExitCode> {
    let whole = match cluster.request(ShardId::CLUSTER, Request::Status, PATIENCE).await {
        Ok(Response::Status(status)) => Ok(*status),
        Ok(other) => bail!("the leader answered something else: {other:?}"),
        Err(error @ RequestError::Unavailable { .. }) => Err(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    let asked = whole.is_ok();
    // The record counts; the file may be older, or the cluster out of reach.
    let mut known: Vec<ServerRecord> = whole.as_ref().map_or_else(|_| Vec::new(), |status| status.metadata.clone());
    if known.is_empty() {
        let record = |at: &MetadataAddress| ServerRecord {
            id: at.server(),
            address: at.address.clone(),
            place: ServerPlace::Voter,
        };
        known = file.metadata.iter().map(record).collect();
    }
    known.retain(|server| server.place != ServerPlace::Gone);
    cluster.learn(&known.iter().map(|server| (server.id, server.address.clone())).collect());
    let mut servers = Vec::new();
    for server in &known {
        let answer = cluster.ask_server(server.id, AdminRequest::ServerStatus, SERVER_PATIENCE).await;
        servers.push(match answer {
            Some(AdminAnswer::Server(status)) => Some(status),
            Some(_) | None => None,
        });
    }
    let report = report(&known, &servers, whole);
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", picture(&report));
    }
    Ok(ExitCode::from(if report.healthy {
        0
    } else if asked {
        1
    } else {
        2
    }))
}

fn report(known: &[ServerRecord], servers: &[Option<ServerStatus>], whole: Result<ClusterStatus, String>) -> Report {
    let mut reasons = Vec::new();
    let metadata: Vec<MetadataReport> =
        known.iter().zip(servers).map(|(at, status)| metadata_report(at, status.as_ref())).collect();
    reasons.extend(known.iter().filter_map(|server| match server.place {
        ServerPlace::Joining { replaces: Some(old) } => {
            Some(format!("metadata server {} is to take the place of {old} when it is caught up", server.id))
        }
        ServerPlace::Joining { replaces: None } => Some(format!("metadata server {} is being caught up", server.id)),
        ServerPlace::Leaving => Some(format!("metadata server {} is leaving", server.id)),
        ServerPlace::Voter | ServerPlace::Gone => None,
    }));
    reasons.extend(
        metadata
            .iter()
            .filter(|s| s.state != "up")
            .map(|s| format!("metadata server {} ({}) is {}", s.id, s.address, s.state)),
    );
    let mut report = Report {
        healthy: false,
        reasons,
        notes: Vec::new(),
        metadata,
        storage: Vec::new(),
        groups: GroupsReport { total: 0, degraded: 0, waiting: 0 },
        rebuild: storage::RebuildReport::default(),
        sessions: 0,
        session_list: Vec::new(),
    };
    match whole {
        Err(error) => report.reasons.push(error),
        Ok(status) => add_cluster(&mut report, &status),
    }
    report.healthy = report.reasons.is_empty();
    report
}

fn metadata_report(at: &ServerRecord, status: Option<&ServerStatus>) -> MetadataReport {
    let leads = status.map_or_else(Vec::new, |s| {
        (0..s.shards.len()).filter(|shard| s.shards[*shard].leader == Some(s.id)).collect::<Vec<_>>()
    });
    MetadataReport {
        id: at.id.0,
        address: at.address.clone(),
        place: match at.place {
            ServerPlace::Voter => "voter",
            ServerPlace::Joining { .. } => "joining",
            ServerPlace::Leaving => "leaving",
            ServerPlace::Gone => "gone",
        },
        pid: status.map(|s| s.pid),
        state: match status {
            None => "unreachable",
            Some(status) if status.halted.is_some() => "halted",
            Some(_) => "up",
        },
        // Shard 0 decides views: its leader is what people mean by "the leader".
        role: if leads.contains(&0) { "leader" } else { "follower" },
        leads,
    }
}

fn add_cluster(report: &mut Report, status: &ClusterStatus) {
    report.groups =
        GroupsReport { total: status.groups_total, degraded: status.groups_degraded, waiting: status.groups_waiting };
    report.storage = status.storage.iter().map(storage::StorageReport::of).collect();
    report.rebuild = storage::RebuildReport::of(&status.rebuild);
    report.sessions = status.sessions.len();
    report.session_list = status
        .sessions
        .iter()
        .map(|session| SessionReport {
            id: session.id.0,
            volume: session.volume.0,
            host: session.host.clone(),
            pid: session.pid,
            mount_point: session.mount_point.clone(),
        })
        .collect();
    if status.groups_total == 0 {
        report.reasons.push("the pool is not formed yet: not all storage nodes have come".into());
    }
    if status.groups_waiting > 0 {
        report
            .reasons
            .push(format!("{} groups have too few members in sync: their writes wait", status.groups_waiting));
    }
    if status.groups_degraded > 0 {
        report.reasons.push(format!(
            "{} of {} groups have fewer copies than they should",
            status.groups_degraded, status.groups_total
        ));
    }
    for node in &report.storage {
        match (node.complaint(), node.note()) {
            (Some(reason), _) => report.reasons.push(reason),
            (None, note) => report.notes.extend(note),
        }
        report.reasons.extend(node.disk_complaints());
        report.notes.extend(node.disk_notes());
    }
    report.notes.extend(report.rebuild.note());
}

fn picture(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        text.write_fmt(args).expect("a string takes everything");
        text.push('\n');
    };
    line(format_args!("{}", if report.healthy { "healthy" } else { "NOT HEALTHY" }));
    for reason in &report.reasons {
        line(format_args!("  ! {reason}"));
    }
    for note in &report.notes {
        line(format_args!("  - {note}"));
    }
    line(format_args!("metadata"));
    for server in &report.metadata {
        let pid = server.pid.map_or("-".to_owned(), |pid| pid.to_string());
        let (id, address, state, role) = (server.id, &server.address, server.state, server.role);
        line(format_args!("  {id:>3}  {address:<22} pid {pid:<8} {state:<12} {role}"));
    }
    line(format_args!("storage"));
    for node in &report.storage {
        line(format_args!("{}", node.line()));
    }
    let groups = &report.groups;
    line(format_args!("groups    {} in all, {} degraded, {} waiting", groups.total, groups.degraded, groups.waiting));
    line(format_args!("sessions  {}", report.sessions));
    for session in &report.session_list {
        line(format_args!("  {:>3}  {} on {} pid {}", session.id, session.mount_point, session.host, session.pid));
    }
    text
}
