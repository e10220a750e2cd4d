//! `holdfast admin sessions` and `holdfast admin fence`: who has what mounted, and how somebody is made to stop.

use crate::admin::{ask_status, odd, volumes};
use crate::cli::Which;
use anyhow::{Result, bail};
use holdfast_client::Cluster;
use holdfast_types::{SessionId, ShardId, Timestamp, VolumeId};
use holdfast_wire::admin::{SessionState, SessionStatus};
use holdfast_wire::metadata::{Request, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use tokio::task::JoinSet;

/// How long storage nodes may take to acknowledge a fence. Longer than it takes to take one out that does not answer.
const FENCE_PATIENCE: Duration = Duration::from_secs(60);

/// `sessions --json`; the shape is in docs/operations.md and only grows.
#[derive(Serialize)]
struct SessionReport<'a> {
    id: u64,
    volume: &'a str,
    host: &'a str,
    pid: u32,
    mount_point: &'a str,
    instance: &'a str,
    generation: u64,
    /// attaching, alone, shared, silent or ending
    state: &'static str,
    silent_seconds: Option<u64>,
    /// Why it ends.
    reason: Option<&'a str>,
}

impl<'a> SessionReport<'a> {
    fn new(status: &'a SessionStatus, names: &'a BTreeMap<VolumeId, String>) -> Self {
        let (state, silent_seconds, reason) = match &status.state {
            SessionState::Attaching => ("attaching", None, None),
            SessionState::Attached { caching: true } => ("alone", None, None),
            SessionState::Attached { caching: false } => ("shared", None, None),
            SessionState::Silent { since } => ("silent", Some(seconds_since(*since)), None),
            SessionState::Ending { reason } => ("ending", None, Some(reason.as_str())),
        };
        Self {
            id: status.id.0,
            volume: names.get(&status.volume).map_or("(deleted)", String::as_str),
            host: &status.host,
            pid: status.pid,
            mount_point: &status.mount_point,
            instance: &status.instance,
            generation: status.instance_generation.0,
            state,
            silent_seconds,
            reason,
        }
    }

    fn instance(&self) -> String {
        if self.instance.is_empty() { "-".into() } else { format!("{} generation {}", self.instance, self.generation) }
    }

    fn state(&self) -> String {
        match (self.silent_seconds, self.reason) {
            (Some(seconds), _) => format!("{} for {seconds} s", self.state),
            (None, Some(reason)) => format!("{}: {reason}", self.state),
            (None, None) => self.state.into(),
        }
    }
}

/// By this host's clock, which may differ from the leader's.
fn seconds_since(then: Timestamp) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from((now.as_nanos() as i128 - then.as_nanos()) / 1_000_000_000).unwrap_or(0)
}

/// Those that are meant, and the names of volumes.
async fn find(cluster: &Cluster, which: &Which) -> Result<(Vec<SessionStatus>, BTreeMap<VolumeId, String>)> {
    let names: BTreeMap<_, _> =
        volumes(cluster).await?.into_iter().map(|volume| (volume.id, volume.name.to_string())).collect();
    if let Some(name) = &which.volume
        && !names.values().any(|known| known == name)
    {
        bail!("there is no volume {name:?}; `admin volume list` shows them");
    }
    let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
    let meant = |status: &SessionStatus| {
        is(&which.volume, names.get(&status.volume).map_or("", String::as_str))
            && is(&which.host, &status.host)
            && is(&which.instance, &status.instance)
    };
    let sessions = ask_status(cluster).await?.sessions.into_iter().filter(meant).collect();
    Ok((sessions, names))
}

/// Shows sessions.
pub async fn list(cluster: &Cluster, which: &Which, json: bool) -> Result<ExitCode> {
    let (sessions, names) = find(cluster, which).await?;
    let reports: Vec<SessionReport<'_>> = sessions.iter().map(|status| SessionReport::new(status, &names)).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["SESSION", "VOLUME", "HOST", "PID", "MOUNTED ON", "INSTANCE", "STATE"].map(str::to_owned);
    let row = |report: &SessionReport<'_>| {
        let (id, pid) = (report.id.to_string(), report.pid.to_string());
        let (volume, host, at) = (report.volume.into(), report.host.into(), report.mount_point.into());
        [id, volume, host, pid, at, report.instance(), report.state()]
    };
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(reports.iter().map(row)).collect();
    let widths: [usize; 7] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// Fences sessions, all at once.
pub async fn fence(cluster: &Cluster, ids: &[u64], which: &Which) -> Result<ExitCode> {
    let chosen = which.volume.is_some() || which.host.is_some() || which.instance.is_some();
    if ids.is_empty() && !chosen {
        bail!("say whom: ids of sessions (`admin sessions` shows them), or --volume, --host, --instance");
    }
    let (found, names) = find(cluster, which).await?;
    // One that is over has left the list before all storage nodes have heard of it: whoever names it wants to know that they have.
    let of = |id: u64| found.iter().find(|status| status.id.0 == id).cloned();
    let meant: Vec<(SessionId, Option<SessionStatus>)> = if ids.is_empty() {
        found.iter().map(|status| (status.id, Some(status.clone()))).collect()
    } else {
        ids.iter().map(|id| (SessionId(*id), of(*id))).filter(|(_, known)| !chosen || known.is_some()).collect()
    };
    if meant.is_empty() {
        eprintln!("nobody to fence: no such session is open (one that is over stays over)");
        return Ok(ExitCode::from(1));
    }
    let begun = Instant::now();
    let mut fences = JoinSet::new();
    for (session, status) in meant {
        let cluster = cluster.clone();
        fences.spawn(async move { (session, status, fence_one(&cluster, session).await) });
    }
    let mut code = ExitCode::SUCCESS;
    while let Some(done) = fences.join_next().await {
        let (session, status, fenced) = done?;
        let who = status.as_ref().map_or_else(
            || format!("session {session}, which was over already"),
            |status| {
                let SessionReport { volume, host, mount_point, .. } = SessionReport::new(status, &names);
                format!("session {session} of volume {volume} on {host} ({mount_point})")
            },
        );
        match fenced {
            Ok(()) => println!(
                "fenced {who}: nothing is taken from it any more, neither bytes nor names, after {} ms",
                begun.elapsed().as_millis()
            ),
            Err(error) => {
                let error = error.context(format!("session {session} may not be fenced yet; ask again"));
                eprintln!("holdfast: {}", crate::in_one_line(&error));
                code = ExitCode::from(2);
            }
        }
    }
    Ok(code)
}

/// Bytes first, which need every storage node, then names.
async fn fence_one(cluster: &Cluster, session: SessionId) -> Result<()> {
    match cluster.request(ShardId::CLUSTER, Request::FenceSession { session }, FENCE_PATIENCE).await? {
        Response::Fenced { .. } => {}
        other => return odd(&other),
    }
    match cluster.request(ShardId::VOLUMES, Request::EndSession { session }, FENCE_PATIENCE).await? {
        Response::Done => Ok(()),
        other => odd(&other),
    }
}
