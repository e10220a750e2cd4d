//! A disk's threads: one for changes, which commits what waits as one batch, and a few for reads of all disks.
//!
//! * Changes are applied in the order given. What arrives while a batch is being synced becomes the next batch.
//! * Reads never wait for a sync, and see every change that was reported done. A small one whose bytes are in memory is answered where it is
//!   asked for; of those that wait for a disk, a thread keeps many in flight where the disk can ([`ReadRound`]).
//! * A checkpoint's slow part runs on a thread of its own; the thread of changes begins and ends it.

use crate::chunk_store::{Attempt, CheckpointJob, ChunkStore, DamageTotals, Later, Reader};
use crate::clock::now;
use crate::medium::Medium;
use crate::metrics::{Metrics, add};
use holdfast_storage_core::Input;
use holdfast_storage_core::latency::{Gauge, micros};
use holdfast_storage_core::local::{LocalCommand, LocalError, LocalOp, LocalOutcome, Ticket};
use holdfast_types::limits::NODE_HEARTBEAT;
use holdfast_types::{DiskId, Incarnation, Instant};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The store of a real disk.
pub(crate) type Store = ChunkStore<Medium>;
/// Where outcomes go: the owner's queue.
pub(crate) type Report = Arc<dyn Fn(Vec<Input>) + Send + Sync>;

/// Changes in one batch at the most, and their bytes. By eye: a batch of that size takes a few milliseconds.
const BATCH_OPS_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 16 << 20;
/// How often an idle disk looks at its space and whether a checkpoint is due.
const CHORES: Duration = NODE_HEARTBEAT;
/// A checkpoint is made so long after the last one if anything was written: bounds what a restart replays and how long
/// freed space stays unused.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(30);
/// A disk that fails while so little of the reserve is left failed for want of room, and when there is so much it is worth another try. By eye.
const STARVED_PERCENT: u64 = 25;
const ROOM_PERCENT: u64 = 50;
/// Threads for reads. By eye: enough to keep a disk and two cores busy.
const READERS: usize = 3;

/// What others may know of a disk at any moment.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    /// When the batch under way began, in nanoseconds of our clock; 0: none is.
    busy_since: AtomicU64,
    pub capacity: AtomicU64,
    pub free: AtomicU64,
    /// What is to stay free.
    pub reserve: AtomicU64,
    pub failed: AtomicBool,
    /// It failed for want of room.
    pub starved: AtomicBool,
    /// It failed for want of room, and there is some: opened anew it serves, after what a crash would have cost.
    pub room_again: AtomicBool,
    /// How long reads that wait for the disk, and batches of changes, take of late.
    reads: Mutex<Reads>,
    writes: Mutex<Gauge>,
}

/// Reads that wait for a disk.
#[derive(Debug, Default)]
struct Reads {
    gauge: Gauge,
    /// When those under way began, and how many began then.
    under_way: BTreeMap<Instant, usize>,
}

impl Reads {
    fn begin(&mut self, at: Instant) {
        *self.under_way.entry(at).or_default() += 1;
    }

    /// One that began then has ended.
    fn end(&mut self, at: Instant) {
        if let Some(count) = self.under_way.get_mut(&at) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&at);
            }
        }
    }

    fn reading(&mut self, now: Instant) -> Option<Duration> {
        let oldest = self.under_way.keys().next().map_or(Duration::ZERO, |since| now.since(*since));
        self.gauge.reading(now, oldest)
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vitals {
    /// How long reads and changes take of late, in microseconds, as heartbeats say it.
    pub fn speed(&self) -> (Option<u32>, Option<u32>) {
        let (now, oldest) = (now(), self.oldest());
        let reads = lock(&self.reads).reading(now);
        (reads.map(micros), lock(&self.writes).reading(now, oldest).map(micros))
    }

    /// How long the oldest unfinished change has been under way. Reads are not among them: one that hangs costs the lead, and no copy.
    pub fn oldest(&self) -> Duration {
        match self.busy_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now().since(Instant(since)),
        }
    }
}

enum Job {
    Apply(Ticket, LocalOp),
    CheckpointRan(CheckpointJob<Medium>, Result<(), LocalError>),
    Stop,
}

struct ReadJob {
    reader: Reader<Medium>,
    vitals: Arc<Vitals>,
    ticket: Ticket,
    command: LocalCommand,
    given: std::time::Instant,
    /// It was tried in place, and its bytes are not in memory.
    later: Option<Later<Medium>>,
}

/// One disk, running.
pub(crate) struct Disk {
    pub id: DiskId,
    pub incarnation: Incarnation,
    pub vitals: Arc<Vitals>,
    changes: Sender<Job>,
    reader: Reader<Medium>,
    reads: Sender<ReadJob>,
    checks: Sender<ReadJob>,
    in_place: InPlace,
    report: Report,
    metrics: Arc<Metrics>,
}

/// Whether small reads are tried by whoever asks.
///
/// Their bytes are never waited for there, but the rows of the index may be, and nobody can tell beforehand. So a try that took long ends
/// the trying for a while: an index that does not fit into memory costs the caller one wait in a thousand pauses, and not one a read.
#[derive(Debug, Default)]
struct InPlace {
    /// No tries before, in nanoseconds of our clock.
    not_before: AtomicU64,
}

impl InPlace {
    /// Larger reads cost more to verify than to hand over. By eye.
    const BYTES_MAX: u32 = 64 << 10;
    /// A try that takes longer has waited for a disk. By eye: five times what one from memory takes.
    const TRY_MAX: Duration = Duration::from_micros(250);
    /// How long none is made then.
    const PAUSE: Duration = Duration::from_millis(100);

    fn wants(&self, command: &LocalCommand) -> bool {
        matches!(command, LocalCommand::Read { length, .. } if *length <= Self::BYTES_MAX)
            && now().0 >= self.not_before.load(Ordering::Relaxed)
    }

    fn took(&self, took: Duration) {
        if took > Self::TRY_MAX {
            self.not_before.store((now() + Self::PAUSE).0, Ordering::Relaxed);
        }
    }
}

/// The threads of all disks; joined at the end.
pub(crate) struct Threads {
    disks: Vec<(Sender<Job>, JoinHandle<()>)>,
    readers: Vec<JoinHandle<()>>,
}

impl Disk {
    /// Another reader of its store.
    pub fn reader(&self) -> Reader<Medium> {
        self.reader.clone()
    }

    /// Starts a command; its outcome is reported, perhaps before this returns.
    pub fn start(&self, ticket: Ticket, command: LocalCommand) {
        // Sending fails only when the threads have ended, and then nobody waits for the outcome.
        let command = match command {
            LocalCommand::Apply(op) => return drop(self.changes.send(Job::Apply(ticket, op))),
            command => command,
        };
        let given = std::time::Instant::now();
        let mut later = None;
        if matches!(command, LocalCommand::Check { .. }) {
            let (reader, vitals) = (self.reader.clone(), Arc::clone(&self.vitals));
            let _ = self.checks.send(ReadJob { reader, vitals, ticket, command, given, later });
            return;
        }
        if self.in_place.wants(&command) {
            let attempt = self.reader.attempt(&command);
            self.in_place.took(given.elapsed());
            match attempt {
                Attempt::Done(result) => {
                    add(&self.metrics.counters.reads_in_place, 1);
                    return ended(&self.report, &self.metrics, given, (ticket, &command), result);
                }
                Attempt::Later(read) => later = Some(read),
            }
        }
        let (reader, vitals) = (self.reader.clone(), Arc::clone(&self.vitals));
        let _ = self.reads.send(ReadJob { reader, vitals, ticket, command, given, later });
    }
}

/// Starts the threads of some disks.
pub(crate) fn start(
    stores: Vec<(DiskId, Store)>,
    report: &Report,
    metrics: &Arc<Metrics>,
) -> io::Result<(Vec<Disk>, Threads)> {
    let (reads, queue) = channel();
    let queue = Arc::new(Mutex::new(queue));
    let (mut disks, mut threads) = (Vec::new(), Threads { disks: Vec::new(), readers: Vec::new() });
    for n in 0..READERS {
        let (queue, report, metrics) = (Arc::clone(&queue), Arc::clone(report), Arc::clone(metrics));
        let thread = std::thread::Builder::new().name(format!("read-{n}"));
        threads.readers.push(thread.spawn(move || serve_reads(&queue, &report, &metrics))?);
    }
    for (id, store) in stores {
        let (checks, queue) = channel();
        {
            let (report, metrics) = (Arc::clone(report), Arc::clone(metrics));
            let thread = std::thread::Builder::new().name(format!("scrub-{}", id.0));
            threads.readers.push(thread.spawn(move || serve_checks(&queue, &report, &metrics))?);
        }
        let (changes, queue) = channel();
        let vitals = Arc::new(Vitals::default());
        if let Ok(space) = store.space() {
            // The first heartbeat should know; whether it is low is reported with the first chores.
            vitals.capacity.store(space.total, Ordering::Relaxed);
            vitals.free.store(space.free, Ordering::Relaxed);
        }
        disks.push(Disk {
            id,
            incarnation: store.incarnation(),
            vitals: Arc::clone(&vitals),
            changes: changes.clone(),
            reader: store.reader(),
            reads: reads.clone(),
            checks,
            in_place: InPlace::default(),
            report: Arc::clone(report),
            metrics: Arc::clone(metrics),
        });
        let (report, metrics, jobs) = (Arc::clone(report), Arc::clone(metrics), changes.clone());
        let writer = Writer {
            id,
            store,
            vitals,
            report,
            metrics,
            jobs,
            checkpoint: None,
            last_checkpoint: now(),
            low: false,
            damage: DamageTotals::default(),
            told: false,
            starved: false,
        };
        let thread = std::thread::Builder::new().name(format!("disk-{}", id.0)).spawn(move || writer.run(&queue))?;
        threads.disks.push((changes, thread));
    }
    Ok((disks, threads))
}

impl Threads {
    /// Lets every disk finish what it was given, makes a last checkpoint, and waits. All [`Disk`]s are to be dropped before.
    pub fn join(self) {
        for (jobs, _) in &self.disks {
            let _ = jobs.send(Job::Stop);
        }
        for thread in self.disks.into_iter().map(|(_, thread)| thread).chain(self.readers) {
            // A panic was logged where it happened.
            let _ = thread.join();
        }
    }
}

/// A read has ended.
fn ended(
    report: &Report,
    metrics: &Metrics,
    given: std::time::Instant,
    (ticket, command): (Ticket, &LocalCommand),
    result: Result<LocalOutcome, LocalError>,
) {
    metrics.stage("local_read", given.elapsed());
    add(&metrics.counters.local_reads, 1);
    if let Err(error) = &result {
        add(&metrics.counters.local_failures, 1);
        tracing::warn!(%error, ?command, "local read failed");
    }
    report(vec![Input::LocalDone { ticket, result }]);
}

/// Chunks of a disk that are read whole, one at a time and on a thread of their own: no reader waits behind one, and a disk has 256 KiB of it to do at
/// the most.
fn serve_checks(queue: &Receiver<ReadJob>, report: &Report, metrics: &Metrics) {
    for ReadJob { reader, ticket, command, given, .. } in queue {
        let result = reader.serve(&command);
        if let Ok(LocalOutcome::Checked { found: Some(found) }) = &result {
            add(&metrics.counters.scrub_bytes, found.bytes);
        }
        ended(report, metrics, given, (ticket, &command), result);
    }
}

fn serve_reads(queue: &Mutex<Receiver<ReadJob>>, report: &Report, metrics: &Metrics) {
    loop {
        let first = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(first) = first else { return };
        let mut round = ReadRound::default();
        let mut next = Some(first);
        while let Some(job) = next {
            round.take(job, report, metrics);
            next = if round.wants_more() { try_next(queue) } else { None };
        }
        round.carry_out(report, metrics);
    }
}

/// A read that waits, if one does. Whoever holds the queue waits for one to come: then none does.
fn try_next(queue: &Mutex<Receiver<ReadJob>>) -> Option<ReadJob> {
    match queue.try_lock() {
        Ok(queue) => queue.try_recv().ok(),
        Err(TryLockError::Poisoned(queue)) => queue.into_inner().try_recv().ok(),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A read that waits for a disk.
struct Asked {
    ticket: Ticket,
    command: LocalCommand,
    given: std::time::Instant,
    vitals: Arc<Vitals>,
}

/// Reads that one thread took together: those whose bytes are in memory are answered at once, the others are in flight together.
#[derive(Default)]
struct ReadRound {
    taken: usize,
    at_once: usize,
    asked: Vec<Asked>,
    later: Vec<Later<Medium>>,
}

impl ReadRound {
    fn take(&mut self, job: ReadJob, report: &Report, metrics: &Metrics) {
        let ReadJob { reader, vitals, ticket, command, given, later } = job;
        self.taken += 1;
        let attempt = later.map_or_else(|| reader.attempt(&command), Attempt::Later);
        match attempt {
            Attempt::Done(result) => ended(report, metrics, given, (ticket, &command), result),
            Attempt::Later(later) => {
                let at_once = reader.reads_at_once();
                self.at_once = if self.later.is_empty() { at_once } else { self.at_once.min(at_once) };
                self.asked.push(Asked { ticket, command, given, vitals });
                self.later.push(later);
            }
        }
    }

    /// Whether another read would go along with those that wait for the disk.
    fn wants_more(&self) -> bool {
        !self.later.is_empty() && self.taken < self.at_once
    }

    fn carry_out(self, report: &Report, metrics: &Metrics) {
        let (since, begun) = (now(), std::time::Instant::now());
        self.asked.iter().for_each(|asked| lock(&asked.vitals.reads).begin(since));
        let mut bytes = 0;
        Reader::serve_later(self.later, &mut |index, result| {
            let Asked { ticket, command, given, vitals } = &self.asked[index];
            let mut reads = lock(&vitals.reads);
            reads.end(since);
            if let Ok(LocalOutcome::Data { bytes: read, .. }) = &result {
                bytes += read.len();
                reads.gauge.add_sized(now(), begun.elapsed(), bytes);
            }
            drop(reads);
            ended(report, metrics, *given, (*ticket, command), result);
        });
    }
}

/// The thread of changes.
struct Writer {
    id: DiskId,
    store: Store,
    vitals: Arc<Vitals>,
    report: Report,
    metrics: Arc<Metrics>,
    /// Its own queue, for the checkpoint's thread.
    jobs: Sender<Job>,
    checkpoint: Option<JoinHandle<()>>,
    last_checkpoint: Instant,
    low: bool,
    /// What was counted of the store's damage.
    damage: DamageTotals,
    /// The failure was logged.
    told: bool,
    /// It failed while the file system was full.
    starved: bool,
}

impl Writer {
    fn run(mut self, queue: &Receiver<Job>) {
        let mut chores_at = now();
        loop {
            let mut stop = false;
            let (mut tickets, mut ops, mut bytes) = (Vec::new(), Vec::new(), 0);
            let mut next = match queue.recv_timeout(CHORES) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while let Some(job) = next {
                match job {
                    Job::Apply(ticket, op) => {
                        bytes += op.change.bytes();
                        tickets.push(ticket);
                        ops.push(op);
                    }
                    Job::CheckpointRan(job, result) => self.checkpoint_ran(&job, result),
                    Job::Stop => stop = true,
                }
                let full = ops.len() >= BATCH_OPS_MAX || bytes >= BATCH_BYTES_MAX;
                next = if full || stop { None } else { queue.try_recv().ok() };
            }
            if !ops.is_empty() {
                self.apply(&tickets, &ops, bytes);
            }
            if stop {
                return self.stop();
            }
            let due = now() >= chores_at;
            if due {
                chores_at = now() + CHORES;
                self.look_at_space();
                self.count_damage();
                self.probe();
            }
            let old = due && now().since(self.last_checkpoint) > CHECKPOINT_AFTER && self.store.is_dirty();
            if self.checkpoint.is_none() && (old || self.store.wants_checkpoint()) {
                self.begin_checkpoint();
            }
        }
    }

    fn apply(&mut self, tickets: &[Ticket], ops: &[LocalOp], bytes: usize) {
        self.vitals.busy_since.store(now().0, Ordering::Relaxed);
        let begun = std::time::Instant::now();
        let results = self.store.apply(ops);
        let took = begun.elapsed();
        self.metrics.stage("batch", took);
        lock(&self.vitals.writes).add_sized(now(), took, bytes);
        self.vitals.busy_since.store(0, Ordering::Relaxed);
        let failures = results.iter().filter(|result| result.is_err()).count();
        add(&self.metrics.counters.batches, 1);
        add(&self.metrics.counters.changes, (ops.len() - failures) as u64);
        add(&self.metrics.counters.write_bytes, bytes as u64);
        add(&self.metrics.counters.local_failures, failures as u64);
        if results.contains(&Err(LocalError::Failed)) {
            self.tell_fault();
        }
        let done = tickets.iter().zip(results);
        (self.report)(
            done.map(|(&ticket, result)| Input::LocalDone { ticket, result: result.map(|()| LocalOutcome::Applied) })
                .collect(),
        );
    }

    fn tell_fault(&mut self) {
        self.vitals.failed.store(true, Ordering::Relaxed);
        if !std::mem::replace(&mut self.told, true) {
            let reason = self.store.fault().unwrap_or_default();
            // Errors of a full disk have many names: what counts is that it was full when it failed.
            self.starved = self.store.space().is_ok_and(|space| space.reserve_percent < STARVED_PERCENT);
            self.vitals.starved.store(self.starved, Ordering::Relaxed);
            if self.starved {
                tracing::error!(disk = %self.id, reason, "disk is full to the last byte and leaves its views: make room, and it comes back by itself");
            } else {
                tracing::error!(disk = %self.id, reason, "disk failed; it leaves its views");
            }
        }
    }

    fn count_damage(&mut self) {
        let now = self.store.reader().damage_totals();
        let before = std::mem::replace(&mut self.damage, now);
        if now != before {
            let (found, repaired) = (now.found - before.found, now.repaired - before.repaired);
            add(&self.metrics.counters.blocks_damaged, found);
            add(&self.metrics.counters.blocks_repaired, repaired);
            tracing::warn!(disk = %self.id, found, repaired, "damaged blocks; look at the disk if this goes on");
        }
    }

    fn look_at_space(&mut self) {
        match self.store.space() {
            Ok(space) => {
                self.vitals.capacity.store(space.total, Ordering::Relaxed);
                self.vitals.free.store(space.free, Ordering::Relaxed);
                self.vitals.reserve.store(space.low_bytes, Ordering::Relaxed);
                self.vitals.room_again.store(self.starved && space.reserve_percent >= ROOM_PERCENT, Ordering::Relaxed);
                if space.low != self.low {
                    self.low = space.low;
                    tracing::warn!(disk = %self.id, free = space.free, low = space.low, "disk space crossed the mark");
                    (self.report)(vec![Input::Space { disk: self.id, low: space.low }]);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.store.give_up(error.to_string()),
            Err(error) => tracing::warn!(disk = %self.id, %error, "cannot tell how much space is left"),
        }
        if self.store.fault().is_some() {
            self.tell_fault();
        }
    }

    /// Finds out how fast the disk is, where nobody uses it and it was slow when somebody did.
    fn probe(&mut self) {
        let write = lock(&self.vitals.writes).wants_probe(now());
        let read = {
            let reads = lock(&self.vitals.reads);
            // One that is under way tells enough, and perhaps hangs, as this thread then would.
            reads.under_way.is_empty() && reads.gauge.wants_probe(now())
        };
        if !(write || read) || self.store.fault().is_some() {
            return;
        }
        // Changes wait behind the reading, too.
        self.vitals.busy_since.store(now().0, Ordering::Relaxed);
        let begun = std::time::Instant::now();
        let wrote = if write { self.store.probe_write() } else { Ok(false) };
        if wrote == Ok(true) {
            lock(&self.vitals.writes).add(now(), begun.elapsed());
        }
        let begun = std::time::Instant::now();
        let found = wrote.and_then(|_| if read { self.store.probe_read() } else { Ok(false) });
        if found == Ok(true) {
            lock(&self.vitals.reads).gauge.add(now(), begun.elapsed());
        }
        self.vitals.busy_since.store(0, Ordering::Relaxed);
        if found.is_err() {
            self.tell_fault();
        }
    }

    fn begin_checkpoint(&mut self) {
        self.last_checkpoint = now();
        let job = self.store.begin_checkpoint();
        let jobs = self.jobs.clone();
        let thread = std::thread::Builder::new().name(format!("sync-{}", self.id.0)).spawn(move || {
            let result = job.run();
            let _ = jobs.send(Job::CheckpointRan(job, result));
        });
        match thread {
            Ok(thread) => self.checkpoint = Some(thread),
            // No thread to be had now: the next one covers what this one would have.
            Err(error) => tracing::warn!(disk = %self.id, %error, "no thread for a checkpoint"),
        }
    }

    fn checkpoint_ran(&mut self, job: &CheckpointJob<Medium>, result: Result<(), LocalError>) {
        self.checkpoint = None;
        match result.and_then(|()| self.store.end_checkpoint(job)) {
            Ok(()) => {
                add(&self.metrics.counters.checkpoints, 1);
                self.metrics.stage("checkpoint", now().since(self.last_checkpoint));
            }
            Err(_) => self.tell_fault(),
        }
    }

    fn stop(mut self) {
        if let Some(thread) = self.checkpoint.take() {
            let _ = thread.join();
        }
        // Without it the next start replays more of the journal; nothing is lost.
        if self.store.fault().is_none() && self.store.checkpoint().is_err() {
            self.tell_fault();
        }
    }
}

#[cfg(test)]
mod tests;
