//! `holdfast admin storage`: storage nodes come, are emptied, and go; and what `admin status` says of them.

use crate::admin::{PATIENCE, ask_status};
use crate::cli::StorageCommand;
use crate::layout;
use anyhow::{Context, Result, bail};
use holdfast_client::{Cluster, ClusterFile};
use holdfast_types::{NodeId, ShardId};
use holdfast_wire::admin::{RebuildStatus, SlowIn, Slowness, StoragePlace, StorageStatus};
use holdfast_wire::metadata::Request;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// How often progress is looked at, and told.
const LOOK: Duration = Duration::from_millis(500);
const TELL: u32 = 10;

/// Carries out a command.
pub async fn run(path: &Path, file: &ClusterFile, cluster: &Cluster, command: StorageCommand) -> Result<ExitCode> {
    let directory = std::path::absolute(path)?.parent().context("cluster.toml has a directory")?.to_path_buf();
    match command {
        StorageCommand::List => {
            let status = ask_status(cluster).await?;
            for node in status.storage.iter().map(StorageReport::of) {
                println!("{}", node.line());
            }
            if let Some(note) = RebuildReport::of(&status.rebuild).note() {
                println!("{note}");
            }
        }
        StorageCommand::Add { id, address } => {
            prepare(&directory, (file, cluster), id, &address).await?;
        }
        StorageCommand::Drain { id, undo: true, .. } => {
            place(cluster, id, StoragePlace::In).await?;
            println!("storage node {id} is used again");
        }
        StorageCommand::Drain { id, wait, .. } => {
            place(cluster, id, StoragePlace::Draining).await?;
            if wait {
                follow(cluster, id).await?;
                println!("nothing is left on storage node {id}; `admin storage drain {id} --undo` uses it again");
            } else {
                println!("storage node {id} is being emptied; `admin storage list` says how far it is");
            }
        }
        StorageCommand::Remove { id, wait } => {
            if !ask_status(cluster).await?.storage_gone.contains(&NodeId(id)) {
                place(cluster, id, StoragePlace::Leaving { successor: None }).await?;
            }
            if wait {
                follow(cluster, id).await?;
            }
            if ask_status(cluster).await?.storage_gone.contains(&NodeId(id)) {
                layout::retire(&directory, "storage", id)?;
                println!("storage node {id} is out, for good; its process may be stopped, and its directory may go");
            } else {
                println!(
                    "storage node {id} is being emptied, and then it is out; asked again, this says whether it is"
                );
            }
        }
        StorageCommand::Replace { old, new, address } => {
            prepare(&directory, (file, cluster), new, &address).await?;
            place(cluster, old, StoragePlace::Leaving { successor: Some(NodeId(new)) }).await?;
            println!("{old} is emptied when {new} has come; `admin storage remove {old}` then tidies up after it,");
            println!("and `admin storage drain {old} --undo` before that calls it off");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn place(cluster: &Cluster, id: u64, place: StoragePlace) -> Result<()> {
    cluster.request(ShardId::CLUSTER, Request::PlaceStorage { node: NodeId(id), place }, PATIENCE).await?;
    Ok(())
}

/// Writes a new node's directory, and says how to start it.
async fn prepare(directory: &Path, (file, cluster): (&ClusterFile, &Cluster), id: u64, address: &str) -> Result<()> {
    let known = ask_status(cluster).await?;
    if known.storage.iter().any(|node| node.id.0 == id) || known.storage_gone.contains(&NodeId(id)) || id == 0 {
        bail!("storage node {id} is, or was, one of this cluster; take a number that was never used");
    }
    if let Some(other) = known.storage.iter().find(|node| node.address == address) {
        bail!("{address} is the address of storage node {}", other.id);
    }
    let config = layout::add_storage(directory, file, id, address)?;
    println!(
        "storage node {id} may join; start it (after copying its directory to its host, and naming its labels and disks):"
    );
    println!("holdfast storage --config {}", config.display());
    Ok(())
}

/// Waits until nothing is left on a node; tells how far it is.
async fn follow(cluster: &Cluster, id: u64) -> Result<()> {
    for look in 0u32.. {
        let status = ask_status(cluster).await?;
        let Some(node) = status.storage.iter().find(|node| node.id.0 == id) else { return Ok(()) };
        let leaves = matches!(node.place, StoragePlace::Leaving { .. });
        if node.place == StoragePlace::In {
            bail!("storage node {id} is used again: somebody has changed their mind");
        }
        if node.leaving_of == 0 && !leaves {
            return Ok(());
        }
        if look.is_multiple_of(TELL) {
            let rebuild = RebuildReport::of(&status.rebuild);
            eprintln!("{} groups are still on it; {}", node.leaving_of, rebuild.rest());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// A storage node in `status --json`.
#[derive(Serialize)]
pub struct StorageReport {
    id: u64,
    address: String,
    pid: u32,
    /// up, silent, or away: silent for so long that others have what it held
    state: &'static str,
    /// in, draining or leaving
    place: &'static str,
    labels: Vec<(String, String)>,
    disks: Vec<DiskReport>,
    primary_of: u32,
    in_sync_of: u32,
    syncing_of: u32,
    /// Groups placed on it, and groups still to leave it.
    home_of: u32,
    leaving_of: u32,
}

#[derive(Serialize)]
struct DiskReport {
    id: u32,
    /// up, slow: slower than its peers, or failed
    state: &'static str,
    capacity: u64,
    free: u64,
    slow: Option<SlowReport>,
}

#[derive(Serialize)]
struct SlowReport {
    /// reads, writes, or answers: those of its node
    what: &'static str,
    takes_ms: u32,
    peers_ms: u32,
    /// Groups that can spare it do without it.
    out: bool,
    /// It is fast again, and used as before when it stays so.
    on_probation: bool,
}

impl SlowReport {
    fn of(slow: &Slowness) -> Self {
        let what = match slow.what {
            SlowIn::Reads => "reads",
            SlowIn::Writes => "writes",
            SlowIn::Answers => "answers",
        };
        let Slowness { takes_us, peers_us, out, on_probation, .. } = *slow;
        Self { what, takes_ms: takes_us / 1000, peers_ms: peers_us.div_ceil(1000), out, on_probation }
    }

    /// For people.
    fn words(&self) -> String {
        let Self { takes_ms, peers_ms, .. } = self;
        let what = match self.what {
            "reads" => "a read takes",
            "writes" => "a change takes",
            _ => "its node's answers take",
        };
        let done = if self.out {
            "others lead its groups, and do without it where they can"
        } else {
            "others lead its groups"
        };
        let probation = if self.on_probation { "; it is fast again, and used as before when it stays so" } else { "" };
        format!("{what} {takes_ms} ms, {peers_ms} ms at its peers; {done}{probation}")
    }
}

impl StorageReport {
    /// Of what the leader says.
    pub fn of(node: &StorageStatus) -> Self {
        let disk = |disk: &holdfast_wire::admin::DiskStatus| DiskReport {
            id: disk.id.0,
            state: match (disk.failed, disk.slow.is_some()) {
                (true, _) => "failed",
                (false, true) => "slow",
                (false, false) => "up",
            },
            capacity: disk.capacity,
            free: disk.free,
            slow: disk.slow.as_ref().map(SlowReport::of),
        };
        Self {
            id: node.id.0,
            address: node.address.clone(),
            pid: node.pid,
            state: match (node.alive, node.given_up) {
                (true, _) => "up",
                (false, false) => "silent",
                (false, true) => "away",
            },
            place: match node.place {
                StoragePlace::In => "in",
                StoragePlace::Draining => "draining",
                StoragePlace::Leaving { .. } | StoragePlace::Gone => "leaving",
            },
            labels: node.labels.clone(),
            disks: node.disks.iter().map(disk).collect(),
            primary_of: node.primary_of,
            in_sync_of: node.in_sync_of,
            syncing_of: node.syncing_of,
            home_of: node.home_of,
            leaving_of: node.leaving_of,
        }
    }

    /// Why somebody should look at it. Not for one whose groups are all whole on others.
    pub fn complaint(&self) -> Option<String> {
        let harmless = self.state == "up" || (self.state == "away" && self.home_of == 0 && self.leaving_of == 0);
        (!harmless).then(|| format!("storage node {} ({}) is {}", self.id, self.address, self.state))
    }

    /// What is to be said of its disks.
    pub fn disk_complaints(&self) -> Vec<String> {
        let Self { id, address, .. } = self;
        let slow = |disk: &DiskReport| {
            let slow = disk.slow.as_ref().filter(|_| self.state == "up" && disk.state == "slow")?;
            Some(format!("disk {} of storage node {id} ({address}) is slow: {}", disk.id, slow.words()))
        };
        self.disks.iter().filter_map(slow).collect()
    }

    /// Disks that somebody is to replace; what they held is made again on others without anybody.
    pub fn disk_notes(&self) -> Vec<String> {
        let failed = self.disks.iter().filter(|disk| disk.state == "failed");
        failed
            .map(|disk| format!("disk {} of storage node {} ({}) has failed", disk.id, self.id, self.address))
            .collect()
    }

    /// What else there is to know.
    pub fn note(&self) -> Option<String> {
        let Self { id, address, leaving_of, .. } = self;
        match (self.state, self.place) {
            ("away", "in") => Some(format!(
                "storage node {id} ({address}) is away, and others have all that it held: start it again, or `admin storage remove {id}`"
            )),
            (_, "draining") if *leaving_of == 0 => Some(format!("storage node {id} is drained: nothing is left on it")),
            (_, "draining" | "leaving") => {
                Some(format!("storage node {id} is being emptied: {leaving_of} groups are left"))
            }
            _ => None,
        }
    }

    /// For people.
    pub fn line(&self) -> String {
        let (free, capacity) = self.disks.iter().fold((0, 0), |sum, disk| (sum.0 + disk.free, sum.1 + disk.capacity));
        let state = if self.place == "in" { self.state.to_owned() } else { format!("{}, {}", self.state, self.place) };
        let left = if self.leaving_of > 0 { format!(", {} to leave it", self.leaving_of) } else { String::new() };
        format!(
            "  {:>3}  {:<22} pid {:<8} {state:<12} primary of {:>4}, in sync {:>4}, catching up {:>4}{left}; {} of {} GiB free",
            self.id,
            self.address,
            self.pid,
            self.primary_of,
            self.in_sync_of,
            self.syncing_of,
            free >> 30,
            capacity >> 30,
        )
    }
}

/// What moves, in `status --json`.
#[derive(Default, Serialize)]
pub struct RebuildReport {
    lost: u32,
    draining: u32,
    moving: u32,
    under_way: u32,
    bytes_left: u64,
    seconds_left: Option<u64>,
}

impl RebuildReport {
    /// Of what the leader says.
    pub fn of(status: &RebuildStatus) -> Self {
        let RebuildStatus { lost, draining, moving, under_way, bytes_left, seconds_left } = *status;
        Self { lost, draining, moving, under_way, bytes_left, seconds_left }
    }

    fn rest(&self) -> String {
        let time = match self.seconds_left {
            None => "how long it takes is not known yet".to_owned(),
            Some(seconds) if seconds < 120 => format!("about {seconds} s"),
            Some(seconds) if seconds < 7200 => format!("about {} min", seconds / 60),
            Some(seconds) => format!("about {} h", seconds / 3600),
        };
        format!("about {} MiB left to copy, {time}", self.bytes_left >> 20)
    }

    /// In one line; `None` if nothing moves.
    pub fn note(&self) -> Option<String> {
        let Self { lost, draining, moving, under_way, .. } = self;
        let all = lost + draining + moving + under_way;
        (all > 0).then(|| {
            format!(
                "copies to be made: {lost} that were lost, {draining} of nodes to be emptied, {moving} for balance; \
                 {under_way} groups are under way; {}",
                self.rest()
            )
        })
    }
}
