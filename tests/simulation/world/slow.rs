//! Disks and nodes that take a tenth of a second for what takes others a millisecond, for as long as it takes to be found out; and what is
//! measured of that, as `storage-node/server` does it.

use super::Sim;
use super::faults::stream_link;
use super::node::Life;
use holdfast_sim::{Actor, Fault, Latency, LinkConfig, WorldTime};
use holdfast_storage_core::latency::{Gauge, micros};
use holdfast_types::Instant;
use std::time::Duration;

/// What each operation takes longer.
const LATE: Duration = Duration::from_millis(100);

/// What is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slow {
    /// A disk, for whatever it is asked.
    Disk,
    /// A disk, for reads.
    Reads,
    /// All that a node hears and says.
    Node,
}

/// Which nodes are slow, in what, and until when.
#[derive(Debug, Default)]
pub(super) struct SlowNodes(Vec<(usize, Slow, WorldTime)>);

/// What a node measures of its disk and of the leader's answers, and since when its disk has been at work.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    reads: Gauge,
    writes: Gauge,
    round_trip: Gauge,
    pub(super) busy_since: Option<Instant>,
}

impl Gauges {
    pub(super) fn read(&mut self, now: Instant, took: Duration) {
        self.reads.add(now, took);
    }

    /// A batch of changes is durable.
    pub(super) fn wrote(&mut self, now: Instant, bytes: usize) {
        if let Some(since) = self.busy_since.take() {
            self.writes.add_sized(now, now.since(since), bytes);
        }
    }

    pub(super) fn heard(&mut self, now: Instant, sent_at: Instant) {
        self.round_trip.add(now, now.since(sent_at));
    }

    /// Age of the oldest unfinished operation in milliseconds; how long reads, changes and answers take in microseconds.
    pub(super) fn said(&mut self, now: Instant) -> (u64, [Option<u32>; 3]) {
        let oldest = self.busy_since.map_or(Duration::ZERO, |since| now.since(since));
        let readings = [
            self.reads.reading(now, Duration::ZERO),
            self.writes.reading(now, oldest),
            self.round_trip.reading(now, Duration::ZERO),
        ];
        (oldest.as_millis() as u64, readings.map(|reading| reading.map(micros)))
    }
}

impl Sim {
    /// Something of a node is slow for a while. Seldom another one as well: a pool that is slow as a whole is another matter.
    pub(super) fn slow_down(&mut self, what: Slow) {
        let now = self.world.now();
        self.slow.0.retain(|(_, _, until)| *until > now);
        if !self.slow.0.is_empty() && !self.prng.chance(1, 4) {
            return;
        }
        let at = self.prng.below(self.nodes.len() as u64) as usize;
        let until = now + Duration::from_millis(self.prng.between(3_000, 20_000));
        self.slow_down_node(at, what, until);
    }

    /// Something of this one is.
    pub(super) fn slow_down_node(&mut self, at: usize, what: Slow, until: WorldTime) {
        self.slow.0.push((at, what, until));
        if what == Slow::Node {
            let me = self.nodes[at].actor;
            let latency = Latency::between(LATE, LATE + Duration::from_millis(20));
            let config = LinkConfig { latency, ..stream_link() };
            for other in (0..self.director.0).map(Actor).filter(|other| *other != me) {
                for (from, to) in [(me, other), (other, me)] {
                    self.world.network().set_link(from, to, Some(config));
                    self.world.schedule_fault(until, Fault::Link { from, to, config: None });
                }
            }
        }
    }

    /// All are as fast as they were.
    pub(super) fn speed_up(&mut self) {
        self.slow.0.clear();
    }

    fn is_slow(&self, at: usize, in_what: &[Slow]) -> bool {
        let now = self.world.now();
        self.slow.0.iter().any(|(node, what, until)| *node == at && *until > now && in_what.contains(what))
    }

    /// How much longer a node's disk takes than usual.
    pub(super) fn slowness(&self, at: usize) -> Duration {
        match &self.disks_slow {
            Some((until, slow)) if slow.contains(&at) => until.since(self.world.now()),
            _ => Duration::ZERO,
        }
    }

    /// How much longer than usual a batch of changes takes: its records, and perhaps what they switch to.
    pub(super) fn late_batch(&mut self, at: usize) -> Duration {
        if !self.is_slow(at, &[Slow::Disk]) {
            return Duration::ZERO;
        }
        LATE * self.prng.between(1, 3) as u32
    }

    /// How much longer a read takes.
    pub(super) fn late_read(&self, at: usize) -> Duration {
        if self.is_slow(at, &[Slow::Disk, Slow::Reads]) { LATE } else { Duration::ZERO }
    }

    /// Finds out how fast a disk is that nobody uses.
    pub(super) fn probe(&mut self, at: usize) {
        let now = self.world.local_now(self.nodes[at].actor);
        let (late, read) = (self.late_batch(at), self.late_read(at));
        let usual = self.sync_latency();
        let Some(Life { gauges, writing, .. }) = &mut self.nodes[at].life else { return };
        let Gauges { reads, writes, .. } = gauges;
        if writing.is_empty() && (reads.wants_probe(now) || writes.wants_probe(now)) {
            writes.add(now, usual + late.min(LATE));
            reads.add(now, usual + read);
        }
    }
}
