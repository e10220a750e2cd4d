//! Signs of life to shard 0's leader, and its map.

use crate::clock::now;
use crate::control::Control;
use crate::metrics::Metrics;
use crate::owner::Owner;
use crate::shell::{Standing, fetch_map, take_map};
use holdfast_storage_core::Input;
use holdfast_storage_core::latency::{Gauge, micros};
use holdfast_types::limits::{NODE_HEARTBEAT, NODE_TTL};
use holdfast_types::{MapVersion, NodeId};
use holdfast_wire::metadata::{DiskState, Heartbeat, Request, Response};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// How long one metadata server may take to answer a heartbeat before another is asked.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Heartbeats under way at the most: a leader that hangs must not gather them.
const UNDER_WAY_MAX: usize = 4;
/// How long the leader may hold a question for a newer map.
const MAP_WAIT: Duration = Duration::from_secs(5);
/// Pause after a question for the map that brought nothing.
const MAP_PAUSE: Duration = Duration::from_millis(100);

/// Everything that heartbeats are made of.
pub(crate) struct Beat {
    pub node: NodeId,
    pub address: String,
    pub labels: Vec<(String, String)>,
    pub control: Arc<Control>,
    pub standing: Arc<Standing>,
    pub owner: Weak<Owner>,
    pub fetching: Arc<AtomicBool>,
    pub metrics: Arc<Metrics>,
    /// How long answers to heartbeats take of late.
    pub round_trip: Mutex<Gauge>,
    /// Becomes true with the first answer.
    pub heard: watch::Sender<bool>,
}

impl Beat {
    fn round_trip(&self) -> MutexGuard<'_, Gauge> {
        self.round_trip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn message(&self) -> Heartbeat {
        let state = |(id, incarnation, vitals): &(_, _, Arc<crate::disk::Vitals>)| {
            let (read_us, write_us) = vitals.speed();
            DiskState {
                id: *id,
                incarnation: *incarnation,
                capacity: vitals.capacity.load(Ordering::Relaxed),
                free: vitals.free.load(Ordering::Relaxed),
                reserve: vitals.reserve.load(Ordering::Relaxed),
                oldest_operation_ms: vitals.oldest().as_millis() as u64,
                failed: vitals.failed.load(Ordering::Relaxed),
                read_us,
                write_us,
            }
        };
        Heartbeat {
            node: self.node,
            address: self.address.clone(),
            labels: self.labels.clone(),
            pid: std::process::id(),
            disks: self.standing.disks.iter().map(state).collect(),
            acknowledged: MapVersion(self.standing.acknowledged.load(Ordering::Relaxed)),
            leaving: self.standing.leaving.load(Ordering::Relaxed),
            round_trip_us: self.round_trip().reading(now(), Duration::ZERO).map(micros),
        }
    }

    /// Says that the node lives, for ever.
    pub async fn run(self: Arc<Self>) {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let mut ticks = tokio::time::interval(NODE_HEARTBEAT);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.standing.news.notified() => {}
            }
            if let Ok(permit) = Arc::clone(&under_way).try_acquire_owned() {
                let beat = Arc::clone(&self);
                tokio::spawn(async move {
                    beat.once().await;
                    drop(permit);
                });
            }
        }
    }

    async fn once(&self) {
        let sent_at = now();
        match self.control.ask(Request::Heartbeat(self.message()), NODE_TTL, PATIENCE).await {
            Ok(Response::Heard { version, .. }) => {
                self.metrics.leader_heard();
                let now = now();
                self.round_trip().add(now, now.since(sent_at));
                self.heard.send_if_modified(|heard| !std::mem::replace(heard, true));
                if let Some(owner) = self.owner.upgrade() {
                    owner.submit([Input::LeaderHeard { sent_at }]);
                }
                if version.0 > self.standing.map_version.load(Ordering::Relaxed) {
                    let runtime = tokio::runtime::Handle::current();
                    fetch_map(&self.control, &self.standing, &self.owner, &self.fetching, &runtime);
                }
            }
            Ok(other) => tracing::warn!(?other, "the leader answered a heartbeat with something else"),
            Err(error) => tracing::debug!(%error, "heartbeat not answered"),
        }
    }

    /// Keeps asking for newer maps, for ever.
    pub async fn follow_map(self: Arc<Self>) {
        loop {
            let have = MapVersion(self.standing.map_version.load(Ordering::Relaxed));
            let asked = Instant::now();
            let result = self.control.ask(Request::GetMap { have, wait: true }, MAP_WAIT, MAP_WAIT).await;
            let took = take_map(&self.control, &self.owner, result);
            let newer = self.standing.map_version.load(Ordering::Relaxed) > have.0;
            if !(took && newer) && asked.elapsed() < MAP_PAUSE {
                tokio::time::sleep(MAP_PAUSE).await;
            }
        }
    }
}
