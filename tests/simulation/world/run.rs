//! A run from its seed to its verdict.

#[allow(dead_code, reason = "tests/simulation/main.rs runs these")]
pub(super) mod crossing;
#[allow(dead_code, reason = "the simulator's program runs seeds; tests/simulation/orders.rs runs these")]
pub(super) mod orders;
#[allow(dead_code, reason = "tests/simulation/main.rs runs these")]
pub(super) mod slow;

use super::script::State;
use super::setup::{Mutation, Setup};
use super::{AUDITOR, Local, Phase, Sim, Totals};
use holdfast_metadata_core::invariants;
use holdfast_sim::WorldTime;
use holdfast_store::{KeyRange, View};
use holdfast_types::{GroupId, ShardId};
use std::any::Any;
use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::sync::Once;
use std::time::Duration;

/// After everything was healed no call takes longer, and every group is whole by then.
const PROGRESS_WITHIN: Duration = Duration::from_secs(90);
/// How often phases are looked at.
const SLICE: Duration = Duration::from_millis(50);

/// A run that found nothing wrong.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened.
    pub totals: Totals,
    /// Hash of everything that happened.
    pub trace: u64,
}

/// A run that did.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong.
    pub reason: String,
    /// The end of what happened; empty unless asked for.
    pub tail: String,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static WITHIN: RefCell<bool> = const { RefCell::new(false) };
}

/// What a panic says.
fn said(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic").to_owned()
}

/// Panics within a run are a verdict, not something to print.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WITHIN.with(|within| *within.borrow()) {
                let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
                let text = said(info.payload());
                PANIC.with(|panic| *panic.borrow_mut() = Some(format!("panic{place}: {text}")));
            } else {
                before(info);
            }
        }));
    });
}

/// Runs a seed, with a bug planted or without. Keeps the last `keep` entries of the trace as text.
///
/// # Errors
/// [`Failure`]: something that must not be was so.
pub fn run(seed: u64, planted: Option<Mutation>, keep: usize) -> Result<Outcome, Failure> {
    judged(Sim::new(seed, Setup::of(seed, planted), keep), |sim| {
        sim.begin_all();
        sim.run_to_the_end()
    })
}

/// Runs a world; a panic is a verdict like others.
fn judged(mut sim: Sim, run: impl FnOnce(&mut Sim) -> Result<(), String>) -> Result<Outcome, Failure> {
    catch_panics();
    WITHIN.with(|within| *within.borrow_mut() = true);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(&mut sim)));
    WITHIN.with(|within| *within.borrow_mut() = false);
    let result = result.unwrap_or_else(|_| {
        let panic = PANIC.with(|panic| panic.borrow_mut().take());
        Err(panic.unwrap_or_else(|| "a panic".into()))
    });
    let trace = sim.world.trace().hash();
    let tail = if sim.careful { sim.world.trace().to_string() } else { String::new() };
    match result {
        Ok(()) => Ok(Outcome { totals: sim.totals, trace }),
        Err(reason) => {
            let reason = format!("[{:?} at {} in {:?}] {reason}", sim.setup.flavour, sim.world.now(), sim.phase);
            Err(Failure { reason, tail })
        }
    }
}

impl Sim {
    /// From the first phase to the last check.
    fn run_to_the_end(&mut self) -> Result<(), String> {
        while !self.phase_done()? {
            if self.stats.lost_to_damage > 0 {
                self.count();
                return Ok(());
            }
            self.advance(SLICE)?;
        }
        self.quiesce()?;
        self.check_end()?;
        self.count();
        Ok(())
    }

    fn begin_all(&mut self) {
        (0..self.servers.len()).for_each(|at| self.start_server(at));
        for at in 0..self.nodes.len() {
            if at < 4 { self.start_node(at) } else { self.hold_back(at) }
        }
        for at in 0..3 {
            let latest = if at == 0 { 1_000 } else { 20_000 };
            let delay = Duration::from_millis(self.prng.between(10, latest));
            self.world.after(self.clients[at].actor, delay, Local::MountNow);
        }
        let hostile = self.setup.hostile;
        self.unleash(WorldTime::after_start(hostile));
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, time: Duration) -> Result<(), String> {
        let until = self.world.now() + time;
        while let Some(event) = self.world.next(until) {
            self.handle(event);
            if let Some(reason) = self.failure.take() {
                return Err(reason);
            }
        }
        Ok(())
    }

    /// Goes on to the next phase when the present one has done its part. Says whether all have.
    fn phase_done(&mut self) -> Result<bool, String> {
        self.check_cores()?;
        if self.phase != Phase::Hostile {
            self.check_progress()?;
        }
        match self.phase {
            Phase::Hostile => {}
            Phase::Healed if self.calls_left == 0 && self.is_quiet() => self.phase = Phase::Leaving,
            Phase::Leaving if self.is_left() => {
                self.phase = Phase::Audit;
                let actor = self.clients[AUDITOR].actor;
                self.world.after(actor, Duration::ZERO, Local::MountNow);
                self.clients[AUDITOR].script.state = State::Away;
            }
            Phase::Leaving => {
                for at in 0..AUDITOR {
                    if self.clients[at].script.state == State::Live {
                        self.unmount(at);
                    }
                }
            }
            Phase::Audit if self.clients[AUDITOR].mounts > 0 && self.is_left() => self.phase = Phase::Settling,
            Phase::Settling => return Ok(self.degraded().is_none() && self.is_at_home()? && self.is_scrubbed()),
            Phase::Healed | Phase::Audit => {}
        }
        Ok(false)
    }

    /// Every group was scrubbed from its beginning to its end since nothing is damaged any more.
    fn is_scrubbed(&self) -> bool {
        let Some(map) = self.leaders_map() else { return false };
        // A scrub that ended so long after the last damage began after it, too.
        let healed = WorldTime::after_start(self.setup.hostile) + self.setup.storage_limits.scrub_every;
        map.views.iter().enumerate().all(|(number, view)| {
            let node = &self.nodes[view.primary.node.0 as usize - 1];
            let Some(life) = &node.life else { return false };
            let scrubs = life.core.scrubs(self.world.local_now(node.actor));
            let of_group = scrubs.into_iter().find(|scrub| scrub.group == GroupId(number as u32));
            let since = self.world.now().since(healed).as_secs();
            of_group.is_some_and(|scrub| scrub.last.is_some_and(|(ago, _)| ago + 1 < since))
        })
    }

    fn check_cores(&self) -> Result<(), String> {
        let cores = self.nodes.iter().filter_map(|node| node.life.as_ref()).map(|life| &life.core);
        cores.clone().for_each(holdfast_storage_core::invariants::check);
        holdfast_storage_core::invariants::one_primary(cores)
    }

    /// Everything is healed: nobody waits for long.
    fn check_progress(&mut self) -> Result<(), String> {
        let (now, healed) = (self.world.now(), WorldTime::after_start(self.setup.hostile));
        for client in &self.clients {
            for (record, _) in client.mount.iter().flat_map(|mount| mount.calls.values()) {
                let record = &self.record.calls[*record];
                if now.since(record.invoked_at.max(healed)) > PROGRESS_WITHIN {
                    let (degraded, record) = (self.degraded(), record.clone());
                    return self.stands_still(format!(
                        "client {} waits since {} for {:?}; degraded: {degraded:?}",
                        record.client, record.invoked_at, record.call
                    ));
                }
            }
        }
        if now.since(healed) > PROGRESS_WITHIN
            && let Some(degraded) = self.degraded()
        {
            return self.stands_still(format!("{} s after healing: {degraded}", now.since(healed).as_secs()));
        }
        if now.since(healed) > PROGRESS_WITHIN * 20 {
            return Err(format!("{} calls are left, and clients do nothing", self.calls_left));
        }
        Ok(())
    }

    /// Something does not go on. That is no mistake where a block went bad on a disk, was changed in part, and both other members were lost
    /// before anybody found it (decision 12): nobody knows what it was. The run ends then; [`super::Totals::missing`] has these runs be rare.
    fn stands_still(&mut self, reason: String) -> Result<(), String> {
        let mut cores = self.nodes.iter().filter_map(|node| node.life.as_ref()).map(|life| &life.core);
        if !cores.any(|core| core.damaged_for_good().next().is_some()) {
            return Err(reason);
        }
        self.stats.lost_to_damage += 1;
        Ok(())
    }

    /// Until all servers have applied all there is.
    fn quiesce(&mut self) -> Result<(), String> {
        let end = self.world.now() + PROGRESS_WITHIN;
        self.advance(Duration::from_secs(2))?;
        loop {
            let applied: Vec<_> =
                self.servers.iter().filter_map(|server| server.life.as_ref()).map(|l| l.core.shards()).collect();
            let all = applied.iter().flatten().map(|shard| (shard.applied, shard.last));
            let same = |shard: usize| applied.iter().all(|of| of[shard].applied == applied[0][shard].applied);
            if same(0) && same(1) && all.clone().all(|(applied, last)| applied == last) && self.purges() == 0 {
                return Ok(());
            }
            if self.world.now() > end {
                return Err(format!("servers do not come to rest: {applied:?}, {} purges", self.purges()));
            }
            self.advance(SLICE)?;
        }
    }

    /// Purges and trims that are not finished.
    fn purges(&self) -> usize {
        /// Tables of `metadata/core`: what is to be purged, and what is to be trimmed.
        const QUEUES: [u8; 2] = [0x0a, 0x0b];
        QUEUES.iter().map(|queue| self.servers[0].tables[1].range(KeyRange::prefix(vec![*queue])).count()).sum()
    }

    fn check_end(&mut self) -> Result<(), String> {
        for shard in [ShardId::CLUSTER, ShardId::VOLUMES] {
            let at = usize::from(shard == ShardId::VOLUMES);
            let rows = |server: usize| -> Vec<_> {
                self.servers[server].tables[at]
                    .range(KeyRange::prefix(Vec::<u8>::new()))
                    .filter_map(Result::ok)
                    .collect()
            };
            let first = rows(0);
            for other in 1..self.servers.len() {
                let second = rows(other);
                if first != second {
                    let differs = first
                        .iter()
                        .find(|row| !second.contains(row))
                        .or(second.iter().find(|row| !first.contains(row)));
                    return Err(format!("{shard}: tables of m1 and m{} differ at {differs:?}", other + 1));
                }
            }
            let wrong = invariants::check(shard, &self.servers[0].tables[at])?;
            if let Some(first) = wrong.first() {
                return Err(format!("{shard}: {first} ({} findings)", wrong.len()));
            }
        }
        self.check_replicas()?;
        let timeline = self.check_names()?;
        self.check_calls(&timeline)?;
        self.check_locks()?;
        self.check_data()
    }

    fn count(&mut self) {
        for counters in self.server_counters() {
            self.totals.add_server(&counters);
        }
        for life in self.nodes.iter().filter_map(|node| node.life.as_ref()) {
            self.stats.discarded += life.core.discarded();
            self.stats.storage += life.core.counters();
            self.stats.repairs += life.store.reader().damage_totals().repaired;
        }
        self.stats.calls = self.record.calls.iter().filter(|call| call.returned.is_some()).count() as u64;
        self.stats.entries = self.truth[1].entries.len() as u64;
        self.stats.seconds = self.world.now().0 / 1_000_000_000;
        self.totals.stats = self.stats;
        self.totals.seeds = 1;
    }
}
