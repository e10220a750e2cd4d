//! `holdfast admin fsck`: is what the cluster holds what it should be? While clients go on.
//!
//! ```text
//! each metadata server: its own tables, from a snapshot           (begun, then asked how far it is)
//! each group: chunks of all members in sync, side by side  ──┐
//!             the inodes they belong to, from the leader   ──┴▶ suspects ──looked at again, several times──▶ findings
//! ```
//!
//! Members are looked at one after the other while they change, so a difference is only a suspicion. A finding is what stays exactly the
//! same over [`LOOKS`] looks, [`PAUSE`] apart: longer than a member may stay behind without leaving its view. What is overwritten all
//! the time is counted as unsettled.

mod chunks;
mod ends;
mod report;

use anyhow::{Result, bail};
use chunks::{Chunks, Suspect};
use ends::Ends;
use holdfast_client::{Cluster, ClusterFile, MetadataAddress, RequestError};
use holdfast_types::{GroupId, MapVersion, NodeId, ServerId, ShardId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest, TableCheck};
use holdfast_wire::map::{ClusterMap, MapUpdate};
use holdfast_wire::metadata::{Request, Response};
pub(crate) use report::Progress;
use report::Report;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long the cluster's leader may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// How long one server may take for an answer.
pub(super) const SERVER_PATIENCE: Duration = Duration::from_secs(5);
/// How often a server is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// A server that was silent for so long is given up.
const SILENT_MAX: Duration = Duration::from_secs(20);
/// Groups looked at side by side: enough to keep every node busy.
const GROUPS_AT_A_TIME: usize = 4;
/// Looks at a suspect that must all see the same.
const LOOKS: u32 = 4;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks after which a suspect that never stands still is left alone.
const LOOKS_MAX: u32 = 20;
/// Suspects looked at again; more are as many findings.
const SUSPECTS_MAX: usize = 1000;

/// What is asked for.
pub(super) struct Options {
    /// The report as JSON.
    pub json: bool,
    /// Do not read the data.
    pub quick: bool,
}

/// Checks everything, prints the report. Exit status 0: clean; 1: findings; 2: something could not be checked, and no findings.
pub(super) async fn run(file: &ClusterFile, cluster: &Cluster, options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    // Whoever answers nothing at all, or must not ask, is told so at once.
    let map = match map(cluster).await {
        Ok(map) => map,
        Err(error) => {
            report.not_checked(format!("the cluster map: {error}"));
            return report.end(options.json);
        }
    };
    // The map counts; the file may be older.
    let servers: Vec<ServerId> = if map.servers.is_empty() {
        file.metadata.iter().map(MetadataAddress::server).collect()
    } else {
        map.servers.keys().copied().collect()
    };
    cluster.learn(&map.servers);
    tables(servers.clone(), cluster, &mut report).await;
    data(cluster, &map, servers, options, &mut report).await;
    report.end(options.json)
}

/// The cluster map as it is now.
pub(super) async fn map(cluster: &Cluster) -> Result<ClusterMap> {
    match cluster.request(ShardId::CLUSTER, Request::GetMap { have: MapVersion(0), wait: false }, PATIENCE).await {
        Ok(Response::Map(MapUpdate::Full(map))) => Ok(*map),
        Ok(Response::Map(MapUpdate::Unchanged | MapUpdate::Delta(_))) => Ok(ClusterMap::default()),
        Ok(other) => bail!("the leader answered something else: {other:?}"),
        Err(error @ RequestError::Unavailable { .. }) => {
            bail!("{error}; is the cluster up? see `holdfast admin status`")
        }
        Err(error) => Err(error.into()),
    }
}

/// Every metadata server's tables, side by side.
async fn tables(ids: Vec<ServerId>, cluster: &Cluster, report: &mut Report) {
    let progress = Progress::new("names and attributes");
    let mut servers = JoinSet::new();
    for id in ids {
        let (cluster, progress) = (cluster.clone(), progress.clone());
        servers.spawn(async move { (id, table(&cluster, id, &progress).await) });
    }
    while let Some(joined) = servers.join_next().await {
        let Ok((id, result)) = joined else { continue };
        match result {
            Ok(check) => {
                report.inodes = report.inodes.max(check.inodes.0);
                report.entries = report.entries.max(check.entries);
                report.metadata_servers += 1;
                let more = check.findings_total - check.findings.len() as u64;
                for what in check.findings {
                    report.found("namespace", format!("metadata server {}", id.0), what);
                }
                if more > 0 {
                    report.found("namespace", format!("metadata server {}", id.0), format!("and {more} more"));
                }
                if let Some(reason) = check.failed {
                    report.not_checked(format!("tables of metadata server {}: {reason}", id.0));
                }
            }
            Err(reason) => report.not_checked(format!("tables of metadata server {}: {reason}", id.0)),
        }
    }
    progress.end();
}

/// One metadata server's check, from its begin to its end.
async fn table(cluster: &Cluster, id: ServerId, progress: &Progress) -> Result<TableCheck, String> {
    let ask = |request| cluster.ask_server(id, request, SERVER_PATIENCE);
    let begun = match ask(AdminRequest::CheckBegin).await {
        Some(AdminAnswer::Check(begun)) => begun,
        Some(AdminAnswer::Refused(reason)) => return Err(reason),
        Some(other) => return Err(format!("it answered something else: {other:?}")),
        None => return Err("it does not answer".into()),
    };
    let (mut seen, mut heard) = (begun.clone(), tokio::time::Instant::now());
    loop {
        progress.at(id.0, seen.inodes.0, seen.inodes.1);
        if seen.done {
            return Ok(seen);
        }
        tokio::time::sleep(ASK_EVERY).await;
        match ask(AdminRequest::CheckPoll { check: begun.check }).await {
            Some(AdminAnswer::Check(now)) => (seen, heard) = (now, tokio::time::Instant::now()),
            Some(AdminAnswer::Refused(reason)) => return Err(reason),
            Some(other) => return Err(format!("it answered something else: {other:?}")),
            None if heard.elapsed() > SILENT_MAX => return Err("it does not answer any more".into()),
            None => {}
        }
    }
}

/// Every group's chunks.
async fn data(cluster: &Cluster, map: &ClusterMap, servers: Vec<ServerId>, options: &Options, report: &mut Report) {
    if map.views.is_empty() {
        return report.not_checked("data: the pool is not formed yet, not all storage nodes have come".into());
    }
    let progress = Progress::new("data");
    let mut waiting = (0..map.views.len() as u32).map(GroupId);
    let mut running = JoinSet::new();
    let (mut suspects, mut ends) = (Vec::new(), Ends::default());
    let mut done = 0;
    loop {
        while running.len() < GROUPS_AT_A_TIME
            && let Some(group) = waiting.next()
        {
            let chunks = Chunks { cluster: cluster.clone(), group, groups: map.views.len() as u32 };
            let verify = !options.quick;
            running.spawn(async move { (group, chunks.suspects(verify).await) });
        }
        let Some(joined) = running.join_next().await else { break };
        let Ok((group, result)) = joined else { continue };
        done += 1;
        progress.at(0, done, map.views.len() as u64);
        match result {
            Ok(mut looked) => {
                report.groups += 1;
                report.chunks += looked.chunks;
                report.bytes += looked.bytes;
                suspects.append(&mut looked.suspects);
                ends.merge(&looked.ends);
            }
            Err(reason) => report.not_checked(format!("group {}: {reason}", group.0)),
        }
    }
    progress.end();
    // Where a group was not looked at, the ends of files there were not seen either.
    if report.groups as usize == map.views.len() {
        match ends::missing(cluster, &servers, map.views.len() as u32, ends).await {
            Ok((missing, more)) => {
                if more > 0 {
                    report.not_checked(format!(
                        "whether the ends of {more} more files are there: too many to look at one by one"
                    ));
                }
                let known: BTreeSet<String> = suspects.iter().map(Suspect::place).collect();
                suspects.extend(missing.into_iter().filter(|suspect| !known.contains(&suspect.place())));
            }
            Err(reason) => report.not_checked(format!("whether the ends of files are there: {reason}")),
        }
    }
    settle(suspects, report).await;
}

/// Looks again until each suspect is cleared, or has stood still for long enough.
async fn settle(mut suspects: Vec<Suspect>, report: &mut Report) {
    let more = suspects.len().saturating_sub(SUSPECTS_MAX);
    suspects.truncate(SUSPECTS_MAX);
    if more > 0 {
        report.not_checked(format!("{more} more chunks that look wrong: too many to look at again"));
    }
    let progress = Progress::new("second looks");
    for look in 1..=LOOKS_MAX {
        if suspects.is_empty() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        let mut kept = Vec::new();
        for mut suspect in suspects {
            match suspect.look_again().await {
                Ok(false) => {}
                Ok(true) if suspect.stood_still >= LOOKS => {
                    for (what, text) in suspect.findings() {
                        report.found(what, suspect.place(), text);
                    }
                }
                Ok(true) => kept.push(suspect),
                Err(reason) if look == LOOKS_MAX => report.not_checked(format!("{}: {reason}", suspect.place())),
                Err(_) => kept.push(suspect),
            }
        }
        suspects = kept;
        progress.at(0, u64::from(look), u64::from(LOOKS_MAX));
    }
    progress.end();
    report.unsettled = suspects.len();
}

/// The address of a node.
pub(super) fn address(map: &ClusterMap, node: NodeId) -> Option<&str> {
    map.nodes.get(&node).map(|record| record.address.as_str())
}
