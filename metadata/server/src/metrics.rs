//! What a metadata server counts: every name with its unit and meaning, and where the time of a slow request went.
//!
//! ```text
//! arrives ──queue──▶ taken by the loop ──log──▶ on this disk ──commit──▶ applied, answered      a change
//!                                      ──────────────commit──────────▶ read, answered           a read: one round to the others
//! ```

use holdfast_metadata_core::Counters;
use holdfast_telemetry::metrics::{self, Counter, Gauge, Registry, Times};
use holdfast_telemetry::slow::SlowLog;
use holdfast_types::ShardId;
use holdfast_wire::admin::{RebuildStatus, ServerStatus};
use holdfast_wire::metadata::{MetadataError, Request};
use holdfast_wire::namespace::{Mutation, Query};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use strum::VariantNames;

/// The name of a request: of a query or mutation, its own.
pub fn name(request: &Request) -> &'static str {
    match request {
        Request::Query(query) => query.into(),
        Request::Mutate(mutation) => mutation.into(),
        other => other.into(),
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    [Request::VARIANTS, Query::VARIANTS, Mutation::VARIANTS].into_iter().flatten().copied()
}

/// Stages of a request, and work of the server's threads.
const STAGES: &[&str] = &["queue", "log", "commit", "log_append", "log_sync", "table_persist", "step"];

macro_rules! totals {
    ($($field:ident, $help:literal;)+) => {
        /// Totals of the core, by field of [`Counters`].
        struct Totals {
            $($field: Counter,)+
        }

        impl Totals {
            fn register(registry: &mut Registry) -> Self {
                let totals = Self { $($field: Counter::default(),)+ };
                $(registry.register(
                    concat!("holdfast_metadata_", stringify!($field)), $help, totals.$field.clone()
                );)+
                totals
            }

            fn set(&self, counters: &Counters) {
                $(let known = self.$field.get();
                self.$field.inc_by(counters.$field.saturating_sub(known));)+
            }
        }
    };
}

totals! {
    elections_won, "Times this server became leader of a shard";
    leaderships_lost, "Times this server stopped leading a shard";
    proposals, "Commands proposed here";
    applied, "Log entries applied here";
    answers_repeated, "Mutations answered again from the table of answers";
    requests_joined, "Requests that joined the same one already under way";
    reads, "Reads answered after a round to the other servers";
    read_rounds, "Such rounds, each shared by the reads that waited";
    snapshots_sent, "Snapshots sent to the end";
    snapshots_installed, "Snapshots installed here";
    suffixes_cut, "Times entries of our own log were replaced by a leader's";
    logs_cut, "Times a log was cut from below";
    view_changes, "Changes of groups' views applied here";
    fences, "Sessions fenced, as applied here";
    chunk_requests, "Requests to storage nodes to remove chunks";
    disks_slow, "Disks found slower than their peers while this server led";
    disks_slow_out, "Times one of them was taken out of its views";
}

/// Everything a metadata server counts.
pub struct Metrics {
    requests: Times,
    stages: Times,
    totals: Totals,
    waiting: Gauge,
    leads: [Gauge; 2],
    term: [Gauge; 2],
    applied_index: [Gauge; 2],
    log_index: [Gauge; 2],
    halted: Gauge,
    rebuild: [Gauge; 3],
    slow: SlowLog,
    /// When the loop last said how it is, in milliseconds since the start, and what it said.
    heard_ms: AtomicU64,
    started: Instant,
    status: Mutex<Option<ServerStatus>>,
}

/// A gauge for each shard.
fn by_shard(registry: &mut Registry, name: &'static str, help: &'static str) -> [Gauge; 2] {
    let family = holdfast_telemetry::metrics::Family::<[(&'static str, &'static str); 1], Gauge>::default();
    registry.register(name, help, family.clone());
    ["0", "1"].map(|shard| family.get_or_create(&[("shard", shard)]).clone())
}

impl Metrics {
    /// Registers everything; requests that take `slow` or longer are logged.
    pub fn register(registry: &mut Registry, slow: Duration) -> Self {
        let mut gauge = |name: &'static str, help: &'static str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let waiting = gauge("holdfast_metadata_requests_waiting", "Requests taken and not answered yet");
        let halted =
            gauge("holdfast_metadata_halted", "1 when a shard has stopped applying on this server: replace it");
        let rebuild = [
            (
                "holdfast_metadata_rebuild_groups_left",
                "Homes of groups that are still to move, as this server leads the cluster's shard; else 0",
            ),
            (
                "holdfast_metadata_rebuild_groups_under_way",
                "Homes of groups that are moving just now, as this server leads; else 0",
            ),
            (
                "holdfast_metadata_rebuild_bytes_left",
                "About how many bytes are to be copied for that, as this server leads; else 0",
            ),
        ]
        .map(|(name, help)| gauge(name, help));
        metrics::start_time(registry, "holdfast_metadata_start_time", "When this server was started, since 1970");
        Self {
            requests: Times::register(
                registry,
                "holdfast_metadata_request",
                "From a request's arrival to its answer",
                "operation",
                names(),
            ),
            stages: Times::register(
                registry,
                "holdfast_metadata_stage",
                "Where requests spend their time, and how long the server's threads take",
                "stage",
                STAGES.iter().copied(),
            ),
            totals: Totals::register(registry),
            waiting,
            leads: by_shard(registry, "holdfast_metadata_leads", "1 when this server leads the shard"),
            term: by_shard(registry, "holdfast_metadata_term", "Raft term of the shard"),
            applied_index: by_shard(registry, "holdfast_metadata_applied_index", "Last log entry applied"),
            log_index: by_shard(registry, "holdfast_metadata_log_index", "Last entry of the log"),
            halted,
            rebuild,
            slow: SlowLog::new(slow),
            heard_ms: AtomicU64::new(0),
            started: Instant::now(),
            status: Mutex::new(None),
        }
    }

    /// How long a stage, or a piece of work, took.
    pub fn stage(&self, stage: &'static str, took: Duration) {
        self.stages.observe(stage, took, false);
    }

    /// The loop lives, and this is how it is.
    pub fn heard(&self, status: ServerStatus, counters: &Counters, waiting: usize) {
        self.totals.set(counters);
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        for (at, shard) in status.shards.iter().enumerate().take(2) {
            self.leads[at].set(i64::from(shard.leader == Some(status.id)));
            self.term[at].set(shard.term.0.cast_signed());
            self.applied_index[at].set(shard.applied.0.cast_signed());
            self.log_index[at].set(shard.last.0.cast_signed());
        }
        self.halted.set(i64::from(status.halted.is_some()));
        self.heard_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// How far moving groups is, if this server leads the cluster's shard.
    pub fn rebuilds(&self, status: Option<RebuildStatus>) {
        let numbers = status.map_or([0; 3], |status| {
            let left = [status.lost, status.draining, status.moving, status.under_way];
            [left.into_iter().map(u64::from).sum(), status.under_way.into(), status.bytes_left]
        });
        for (gauge, number) in self.rebuild.iter().zip(numbers) {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    /// Why a shard has halted, if one has.
    pub fn halted_for(&self) -> Option<String> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|status| status.halted.clone())
    }

    fn silent_for(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }
}

/// The loop says how it is at every tick; silent for so long, something is wrong with it.
const SILENT_MAX: Duration = Duration::from_secs(30);

impl holdfast_telemetry::http::Health for Metrics {
    fn alive(&self) -> Result<(), String> {
        let silent = self.silent_for();
        if silent > SILENT_MAX { Err(format!("the loop is silent for {} s", silent.as_secs())) } else { Ok(()) }
    }

    fn ready(&self) -> Result<(), String> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let status = status.as_ref().ok_or("starting")?;
        if let Some(reason) = &status.halted {
            return Err(format!("halted: {reason}; replace this server"));
        }
        match status.shards.iter().position(|shard| shard.leader.is_none()) {
            Some(shard) => Err(format!("shard {shard} has no leader: are the other metadata servers up?")),
            None => Ok(()),
        }
    }
}

/// A request on its way.
struct OnItsWay {
    name: &'static str,
    shard: ShardId,
    arrived: Instant,
    taken: Instant,
    /// Its command is on this server's disk.
    logged: Option<Instant>,
}

/// Follows requests through the loop.
#[derive(Default)]
pub struct Journeys {
    requests: BTreeMap<u64, OnItsWay>,
    /// Changes whose command is not in any write of the log yet.
    unwritten: Vec<(ShardId, u64)>,
    /// By shard and ticket of the write.
    writing: BTreeMap<(ShardId, u64), Vec<u64>>,
}

impl Journeys {
    /// The loop takes a request.
    pub fn taken(&mut self, request: u64, asked: &Request, shard: ShardId, arrived: Instant) {
        if matches!(asked, Request::Mutate(_)) {
            self.unwritten.push((shard, request));
        }
        let journey = OnItsWay { name: name(asked), shard, arrived, taken: Instant::now(), logged: None };
        self.requests.insert(request, journey);
    }

    /// A write of the log begins: it holds what was proposed since the last one.
    pub fn writes(&mut self, shard: ShardId, ticket: u64) {
        let requests: Vec<u64> =
            self.unwritten.extract_if(.., |(of, _)| *of == shard).map(|(_, request)| request).collect();
        if !requests.is_empty() {
            self.writing.insert((shard, ticket), requests);
        }
    }

    /// That write is durable.
    pub fn written(&mut self, shard: ShardId, ticket: u64) {
        let now = Instant::now();
        for request in self.writing.remove(&(shard, ticket)).unwrap_or_default() {
            if let Some(journey) = self.requests.get_mut(&request) {
                journey.logged = Some(now);
            }
        }
    }

    /// A request is over without an answer.
    pub fn gone(&mut self, request: u64) {
        self.requests.remove(&request);
        self.unwritten.retain(|(_, other)| *other != request);
    }

    /// A request is answered.
    pub fn answered(&mut self, request: u64, error: Option<&MetadataError>, metrics: &Metrics) {
        let Some(journey) = self.requests.remove(&request) else { return };
        self.unwritten.retain(|(_, other)| *other != request);
        let (now, OnItsWay { name, shard, arrived, taken, logged }) = (Instant::now(), journey);
        let total = now - arrived;
        // Refusals of the namespace are answers like others; what could not be answered is a failure.
        let failed = matches!(error, Some(MetadataError::Unavailable { .. } | MetadataError::Backpressure));
        metrics.requests.observe(name, total, failed);
        let (queue, log) = (taken - arrived, logged.map(|logged| logged - taken));
        let commit = now - logged.unwrap_or(taken);
        metrics.stage("queue", queue);
        metrics.stage("commit", commit);
        if let Some(log) = log {
            metrics.stage("log", log);
        }
        // These wait for something to happen, on purpose.
        if matches!(name, "renew" | "get_map" | "attach" | "await_trim" | "await_lock" | "fence_session") {
            return;
        }
        if let Some(suppressed) = metrics.slow.wants(total) {
            tracing::warn!(
                operation = name,
                %shard,
                total_ms = total.as_millis() as u64,
                queue_ms = queue.as_millis() as u64,
                log_ms = log.map(|log| log.as_millis() as u64),
                commit_ms = commit.as_millis() as u64,
                error = error.map(tracing::field::display),
                suppressed,
                "slow request"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_telemetry::http::Health;
    use holdfast_telemetry::metrics::{offences, text};
    use holdfast_types::{FileName, InodeId, LogIndex, ServerId, Term};
    use holdfast_wire::admin::ShardStatus;

    fn metrics() -> (Metrics, Registry) {
        let mut registry = Registry::default();
        (Metrics::register(&mut registry, Duration::from_secs(1)), registry)
    }

    fn status(leader: Option<u64>) -> ServerStatus {
        let shard =
            ShardStatus { leader: leader.map(ServerId), term: Term(3), applied: LogIndex(9), last: LogIndex(11) };
        ServerStatus { id: ServerId(1), pid: 1, shards: vec![shard.clone(), shard], halted: None }
    }

    #[test]
    fn names_are_unique_and_have_a_meaning() {
        let (_, registry) = metrics();
        assert_eq!(offences(&registry, "holdfast_metadata_"), Vec::<String>::new());
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), names().count(), "two requests of one name");
    }

    #[test]
    fn a_request_is_followed_through_queue_log_and_commit() {
        let (metrics, registry) = metrics();
        let mut journeys = Journeys::default();
        let name = FileName::new(b"f").expect("a name");
        let unlink = Request::Mutate(Mutation::Unlink { parent: InodeId::ROOT, name, open: None });
        journeys.taken(7, &unlink, ShardId::VOLUMES, Instant::now());
        journeys.taken(8, &Request::Status, ShardId::CLUSTER, Instant::now());
        journeys.writes(ShardId::CLUSTER, 1);
        journeys.writes(ShardId::VOLUMES, 1);
        journeys.written(ShardId::VOLUMES, 1);
        journeys.answered(7, None, &metrics);
        journeys.answered(8, Some(&MetadataError::Backpressure), &metrics);
        let text = text(&registry);
        for line in [
            "holdfast_metadata_request_seconds_count{operation=\"unlink\"} 1",
            "holdfast_metadata_request_failures_total{operation=\"status\"} 1",
            "holdfast_metadata_stage_seconds_count{stage=\"queue\"} 2",
            "holdfast_metadata_stage_seconds_count{stage=\"log\"} 1",
            "holdfast_metadata_stage_seconds_count{stage=\"commit\"} 2",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
        assert!(journeys.requests.is_empty() && journeys.unwritten.is_empty() && journeys.writing.is_empty());
    }

    #[test]
    fn readiness_names_what_is_missing() {
        let (metrics, registry) = metrics();
        assert_eq!(metrics.ready(), Err("starting".into()));
        metrics.heard(status(None), &Counters::default(), 0);
        assert!(metrics.ready().is_err_and(|reason| reason.contains("no leader")));
        metrics.heard(status(Some(1)), &Counters { applied: 5, ..Counters::default() }, 3);
        metrics.heard(status(Some(1)), &Counters { applied: 6, ..Counters::default() }, 3);
        assert_eq!((metrics.ready(), metrics.alive()), (Ok(()), Ok(())));
        let text = text(&registry);
        for line in ["holdfast_metadata_applied_total 6", "holdfast_metadata_leads{shard=\"1\"} 1"] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
        let halted = ServerStatus { halted: Some("shard1 at 9".into()), ..status(Some(1)) };
        metrics.heard(halted, &Counters::default(), 0);
        assert!(metrics.ready().is_err_and(|reason| reason.contains("shard1 at 9")));
    }
}
