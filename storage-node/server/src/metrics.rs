//! What a storage node counts: every name with its unit and meaning, and where the time of a slow request went.
//!
//! ```text
//! arrives ──queue──▶ taken by the core ──turn──▶ given to the disk ──disk──▶ durable here ──members──▶ durable everywhere, answered
//! ```

use crate::shell::Standing;
use holdfast_journal::IoBackend;
use holdfast_storage_core::Input;
use holdfast_storage_core::local::{LocalCommand, Ticket};
use holdfast_telemetry::http::Health;
use holdfast_telemetry::metrics::{self, Counter, Gauge, Registry, Times};
use holdfast_telemetry::slow::SlowLog;
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp};
use holdfast_wire::group::ScrubResult;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use strum::VariantNames;

macro_rules! counters {
    ($($name:ident, $help:literal;)+) => {
        /// Counters of one node.
        #[derive(Debug, Default)]
        pub struct Counters {
            $(#[doc = $help] pub $name: Counter,)+
        }

        impl Counters {
            fn register(registry: &mut Registry) -> Self {
                let counters = Self::default();
                $(registry.register(
                    concat!("holdfast_storage_", stringify!($name)), $help, counters.$name.clone()
                );)+
                counters
            }
        }
    };
}

counters! {
    changes, "Changes made durable";
    batches, "Batches of changes: each cost one sync of the journal";
    write_bytes, "Bytes of writes made durable";
    local_reads, "Reads of any kind that the stores served";
    reads_in_place, "Reads among them whose bytes were in memory, answered without a hand-over to another thread";
    local_failures, "Changes and reads that a disk failed or refused";
    checkpoints, "Checkpoints ended";
    blocks_damaged, "Blocks of 4 KiB found not to have their checksums, or not to be readable";
    blocks_repaired, "Damaged blocks replaced by what another member has";
    scrub_bytes, "Bytes read to be compared with their checksums";
    scrubs, "Scrubs of groups ended, those of other primaries on disks of this node included";
    scrub_differences, "Chunks that a scrub found not to be the same on all members";
    messages, "Messages from other nodes";
    reconciliations, "Reconciliations that this node, as primary, has ended after a change of view or a refused change";
    reconciled_copies, "Copies that these sent to members in sync, because what they had differed";
    resyncs_interrupted, "Members being caught up by this node that went, or were dropped, before they had everything";
    strange_messages, "Messages meant for another epoch, or another life of a disk, and not taken";
}

/// Stages of a request, and work of the disks' threads.
const STAGES: &[&str] = &["queue", "turn", "disk", "members", "batch", "local_read", "checkpoint"];

/// Everything a storage node counts.
pub struct Metrics {
    /// Plain totals.
    pub counters: Counters,
    requests: Times,
    stages: Times,
    waiting: Gauge,
    disks: BTreeMap<&'static str, Gauge>,
    bytes_copied: Counter,
    groups_copied: Gauge,
    slow: SlowLog,
    heard_ms: AtomicU64,
    started: Instant,
    /// Of the life that the node is in.
    standing: RwLock<Option<Arc<Standing>>>,
}

impl Metrics {
    /// Registers everything; requests that take `slow` or longer are logged.
    pub fn register(registry: &mut Registry, slow: Duration) -> Self {
        let waiting = Gauge::default();
        registry.register("holdfast_storage_requests_waiting", "Requests taken and not answered yet", waiting.clone());
        let by_backend = metrics::Family::<[(&'static str, &'static str); 1], Gauge>::default();
        let disks = IoBackend::ALL
            .map(|backend| (backend.name(), by_backend.get_or_create(&[("io", backend.name())]).clone()))
            .into();
        registry.register("holdfast_storage_disks", "Disks in use, by how they are read and written", by_backend);
        metrics::start_time(registry, "holdfast_storage_start_time", "When this node was started, since 1970");
        let (bytes_copied, groups_copied) = (Counter::default(), Gauge::default());
        registry.register(
            "holdfast_storage_rebuild_bytes_copied",
            "Bytes sent by this node, as primary, to members that lacked them: after a rebuild, a return or a repair",
            bytes_copied.clone(),
        );
        registry.register(
            "holdfast_storage_rebuild_groups_copying",
            "Groups in which this node, as primary, is catching up a member",
            groups_copied.clone(),
        );
        Self {
            counters: Counters::register(registry),
            requests: Times::register(
                registry,
                "holdfast_storage_request",
                "From a request's arrival to its answer",
                "operation",
                ChunkOp::VARIANTS.iter().copied(),
            ),
            stages: Times::register(
                registry,
                "holdfast_storage_stage",
                "Where requests spend their time, and how long the disks' threads take",
                "stage",
                STAGES.iter().copied(),
            ),
            waiting,
            disks,
            bytes_copied,
            groups_copied,
            slow: SlowLog::new(slow),
            heard_ms: AtomicU64::new(0),
            started: Instant::now(),
            standing: RwLock::default(),
        }
    }

    /// How long a stage, or a piece of work, took.
    pub fn stage(&self, stage: &'static str, took: Duration) {
        self.stages.observe(stage, took, false);
    }

    /// A disk was opened, and is read and written that way.
    pub(crate) fn disk_uses(&self, backend: IoBackend) {
        self.disks[backend.name()].inc();
    }

    /// The node is put together, and stands so.
    pub(crate) fn stands(&self, standing: Arc<Standing>) {
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = Some(standing);
    }

    fn standing(&self) -> Option<Arc<Standing>> {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node's disks are closed, to be opened anew.
    pub(crate) fn disks_closed(&self) {
        *self.standing.write().unwrap_or_else(PoisonError::into_inner) = None;
        for gauge in self.disks.values() {
            gauge.set(0);
        }
    }

    /// The leader answered a heartbeat.
    pub(crate) fn leader_heard(&self) {
        self.heard_ms.store(self.started.elapsed().as_millis().max(1) as u64, Ordering::Relaxed);
    }
}

/// A node that the leader has not answered for so long cannot serve for long.
const LEADER_SILENT_MAX: Duration = Duration::from_secs(5);
/// A disk that works on one batch for so long hangs.
const DISK_HANGS: Duration = Duration::from_secs(30);

impl Health for Metrics {
    fn alive(&self) -> Result<(), String> {
        let Some(standing) = self.standing() else { return Ok(()) };
        // One that was full comes back by itself when it has room: this process must live to see it.
        let has_failed = |vitals: &crate::disk::Vitals| {
            vitals.failed.load(Ordering::Relaxed) && !vitals.starved.load(Ordering::Relaxed)
        };
        if standing.disks.iter().all(|(.., vitals)| has_failed(vitals)) {
            return Err("all disks failed; replace them".into());
        }
        Ok(())
    }

    fn ready(&self) -> Result<(), String> {
        let standing = self.standing().ok_or("starting: disks are being opened")?;
        let heard = self.heard_ms.load(Ordering::Relaxed);
        let silent = self.started.elapsed().saturating_sub(Duration::from_millis(heard));
        if heard == 0 || silent > LEADER_SILENT_MAX {
            return Err(format!(
                "no metadata leader has answered for {} s: are the metadata servers up and reachable?",
                silent.as_secs()
            ));
        }
        for (disk, _, vitals) in &standing.disks {
            if vitals.failed.load(Ordering::Relaxed) {
                return Err(format!("disk {} failed; replace it", disk.0));
            }
            if vitals.oldest() > DISK_HANGS {
                return Err(format!("disk {} has not answered for {} s", disk.0, vitals.oldest().as_secs()));
            }
        }
        Ok(())
    }
}

pub(crate) fn add(counter: &Counter, amount: u64) {
    counter.inc_by(amount);
}

/// What is known of a request when it arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub name: &'static str,
    pub group: u32,
    pub at: Instant,
}

/// A request in the core.
struct OnItsWay {
    taken: Instant,
    to_disk: Option<Instant>,
    local: Option<Instant>,
}

/// Follows requests through the core. Owned by whoever steps it.
pub(crate) struct Journeys {
    metrics: Arc<Metrics>,
    requests: BTreeMap<u64, OnItsWay>,
    tickets: BTreeMap<Ticket, u64>,
    /// The request that is being stepped: what the core gives to the disk now is for it.
    stepping: Option<u64>,
    /// Bytes that this life's core had copied when it was last asked.
    copied: u64,
}

impl Journeys {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, requests: BTreeMap::new(), tickets: BTreeMap::new(), stepping: None, copied: 0 }
    }

    /// An input is about to be stepped.
    pub fn steps(&mut self, input: &Input) {
        self.stepping = None;
        match input {
            Input::Request { id, .. } => {
                self.requests.insert(*id, OnItsWay { taken: Instant::now(), to_disk: None, local: None });
                self.stepping = Some(*id);
            }
            Input::Cancelled { id } => drop(self.requests.remove(id)),
            Input::LocalDone { ticket, .. } => {
                if let Some(journey) = self.tickets.remove(ticket).and_then(|id| self.requests.get_mut(&id)) {
                    journey.local = Some(Instant::now());
                }
            }
            _ => {}
        }
    }

    /// The core gives a command to a disk.
    pub fn given(&mut self, ticket: Ticket, command: &LocalCommand) {
        let counts = matches!(
            command,
            LocalCommand::Apply(_)
                | LocalCommand::Read { .. }
                | LocalCommand::Highest { .. }
                | LocalCommand::Allocated { .. }
        );
        if let Some(id) = self.stepping.filter(|_| counts)
            && let Some(journey) = self.requests.get_mut(&id)
        {
            journey.to_disk.get_or_insert_with(Instant::now);
            self.tickets.insert(ticket, id);
        }
    }

    /// What has happened so far in the core.
    pub fn counted(&self, now: &holdfast_storage_core::Counters) {
        let counters = &self.metrics.counters;
        for (counter, now) in [
            (&counters.reconciliations, now.reconciliations),
            (&counters.reconciled_copies, now.reconciled_copies),
            (&counters.resyncs_interrupted, now.resyncs_interrupted),
            (&counters.strange_messages, now.strange_messages),
        ] {
            add(counter, now.saturating_sub(counter.get()));
        }
    }

    /// Bytes copied to other members so far, and groups in which that goes on.
    pub fn copied(&mut self, (bytes, groups): (u64, usize)) {
        let known = std::mem::replace(&mut self.copied, bytes);
        add(&self.metrics.bytes_copied, bytes.saturating_sub(known));
        self.metrics.groups_copied.set(i64::try_from(groups).unwrap_or(i64::MAX));
    }

    /// A scrub has ended.
    pub fn scrubbed(&self, result: &ScrubResult) {
        add(&self.metrics.counters.scrubs, 1);
        add(&self.metrics.counters.scrub_differences, result.different);
    }

    /// The core answers.
    pub fn answered(&mut self, id: u64, answer: &ChunkAnswer, arrived: Option<Arrived>) {
        let journey = self.requests.remove(&id);
        self.metrics.waiting.set(i64::try_from(self.requests.len()).unwrap_or(i64::MAX));
        let (Some(journey), Some(arrived)) = (journey, arrived) else { return };
        let now = Instant::now();
        let total = now - arrived.at;
        let refused = match answer {
            ChunkAnswer::Refused(refusal) => Some(refusal),
            ChunkAnswer::Done { .. }
            | ChunkAnswer::Data { .. }
            | ChunkAnswer::Highest { .. }
            | ChunkAnswer::Allocated { .. }
            | ChunkAnswer::Made { .. } => None,
        };
        let OnItsWay { taken, to_disk, local } = journey;
        let queue = taken.saturating_duration_since(arrived.at);
        let turn = to_disk.map(|to_disk| to_disk - taken);
        let disk = to_disk.zip(local).map(|(to_disk, local)| local.saturating_duration_since(to_disk));
        let members = local.map(|local| now - local);
        self.metrics.requests.observe(arrived.name, total, refused.is_some());
        self.metrics.stage("queue", queue);
        for (stage, took) in [("turn", turn), ("disk", disk), ("members", members)] {
            if let Some(took) = took {
                self.metrics.stage(stage, took);
            }
        }
        if let Some(suppressed) = self.metrics.slow.wants(total) {
            let ms = |took: Duration| took.as_millis() as u64;
            tracing::warn!(
                operation = arrived.name,
                group = arrived.group,
                total_ms = ms(total),
                queue_ms = ms(queue),
                turn_ms = turn.map(ms),
                disk_ms = disk.map(ms),
                members_ms = members.map(ms),
                error = refused.map(tracing::field::display),
                suppressed,
                "slow request"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use holdfast_storage_core::local::LocalOutcome;
    use holdfast_telemetry::metrics::{offences, text};
    use holdfast_types::limits::CHUNK_BYTES;
    use holdfast_types::{
        ChunkIndex, ChunkKey, Epoch, Generation, GroupId, InodeId, MapVersion, OpNumber, Sequence, SessionId,
        SnapshotNumber, Term, VolumeId,
    };
    use holdfast_wire::chunk::ChunkRequest;

    #[test]
    fn names_are_unique_and_have_a_meaning() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, Duration::from_secs(1));
        add(&metrics.counters.batches, 3);
        metrics.disk_uses(IoBackend::Threads);
        assert!(text(&registry).contains("holdfast_storage_disks{io=\"threads\"} 1\n"));
        assert!(text(&registry).contains("holdfast_storage_disks{io=\"io_uring\"} 0\n"));
        assert_eq!(offences(&registry, "holdfast_storage_"), Vec::<String>::new());
        assert!(text(&registry).contains("holdfast_storage_batches_total 3\n"));
        assert!(metrics.ready().is_err_and(|reason| reason.contains("starting")));
    }

    #[test]
    fn a_request_is_followed_through_queue_disk_and_members() {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::register(&mut registry, Duration::from_secs(1)));
        let mut journeys = Journeys::new(Arc::clone(&metrics));
        let chunk = ChunkKey {
            volume: VolumeId(1),
            inode: InodeId(1),
            generation: Generation(1),
            index: ChunkIndex(0),
            born: SnapshotNumber(0),
        };
        let request = ChunkRequest {
            session: SessionId(1),
            sequence: Sequence(0),
            floor: Sequence(0),
            map_min: MapVersion(0),
            term: Term(0),
            snapshot: SnapshotNumber(0),
            group: GroupId(1),
            epoch: Epoch(1),
            contended: false,
            repeated: false,
            op: ChunkOp::Read { chunk, offset: 0, length: CHUNK_BYTES as u32 },
        };
        let arrived = Arrived { name: (&request.op).into(), group: 1, at: Instant::now() };
        let deadline = holdfast_types::Instant(0);
        journeys.steps(&Input::Request { id: 5, request, payload: Bytes::new(), deadline });
        let read = LocalCommand::Read { group: GroupId(1), chunk, offset: 0, length: 1 };
        journeys.given(Ticket(9), &read);
        journeys.steps(&Input::Tick);
        // Of the core's own, while no request is stepped.
        journeys.given(Ticket(10), &read);
        journeys.steps(&Input::LocalDone { ticket: Ticket(9), result: Ok(LocalOutcome::Applied) });
        journeys.answered(5, &ChunkAnswer::Done { number: OpNumber::default() }, Some(arrived));
        let text = text(&registry);
        for line in [
            "holdfast_storage_request_seconds_count{operation=\"read\"} 1",
            "holdfast_storage_stage_seconds_count{stage=\"queue\"} 1",
            "holdfast_storage_stage_seconds_count{stage=\"disk\"} 1",
            "holdfast_storage_stage_seconds_count{stage=\"members\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
        assert!(journeys.requests.is_empty() && journeys.tickets.is_empty());
    }
}
