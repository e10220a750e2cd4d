//! How long operations of a disk, or answers of the leader, take of late: what a heartbeat says of it, so that the leader can tell who is
//! slower than its peers.
//!
//! * Every window of time counts the same, however many operations it had: an idle disk's rare ones, or a spike, weigh as little as
//!   they should, and a slow disk is found out although it gets little done.
//! * What has not ended for long has taken at least so long as it is under way.
//! * Whoever is out of use is asked again ([`Gauge::wants_probe`]) as long as its last word was not good. A disk that was fast when it was
//!   last used is left alone.

use holdfast_types::Instant;
use std::time::Duration;

/// Operations of so long are one window: two in a heartbeat.
const WINDOW: Duration = Duration::from_millis(250);
/// A disk whose last word was above this is asked again. By eye: below what any leader calls slow, above what a sound disk takes.
const PROBE_ABOVE: Duration = Duration::from_millis(10);
/// How long nothing was measured before it is.
const PROBE_AFTER: Duration = Duration::from_millis(400);
/// An operation that is under way for longer is no large one, whose bytes explain it.
const HANGS: Duration = Duration::from_millis(500);
/// Longer ones count as this: as slow as can be, and perhaps this process was stopped meanwhile, which is to be forgotten soon.
const TAKES_MAX: Duration = Duration::from_secs(1);
/// Bytes that a sound disk moves in a second, at the least: time that they explain says nothing about the disk. By eye: a rotating one.
const BYTES_PER_SECOND: u64 = 100 << 20;

/// One kind of operation of one disk.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    smoothed: Option<Duration>,
    /// When the window under way began, the sum and the number of what it has.
    window: Option<(Instant, Duration, u32)>,
    measured: Option<Instant>,
}

impl Gauge {
    /// An operation took so long.
    pub fn add(&mut self, now: Instant, took: Duration) {
        self.close(now);
        let (_, sum, count) = self.window.get_or_insert((now, Duration::ZERO, 0));
        *sum += took.min(TAKES_MAX);
        *count += 1;
        self.measured = Some(now);
    }

    /// The same for one that moved so many bytes.
    pub fn add_sized(&mut self, now: Instant, took: Duration, bytes: usize) {
        let explained = Duration::from_micros(bytes as u64 * 1_000_000 / BYTES_PER_SECOND);
        self.add(now, took.saturating_sub(explained));
    }

    /// How long they take; `None` before the first window is over. `oldest`: how long the oldest one that has not ended is under way.
    pub fn reading(&mut self, now: Instant, oldest: Duration) -> Option<Duration> {
        self.close(now);
        let hangs = (oldest >= HANGS).then_some(oldest);
        self.smoothed.max(hangs)
    }

    /// Whether to find out how the disk is, because nobody uses it, and it was not good when it was last used, or never was.
    pub fn wants_probe(&self, now: Instant) -> bool {
        let idle = self.measured.is_none_or(|at| now.since(at) >= PROBE_AFTER);
        idle && self.smoothed.is_none_or(|last| last > PROBE_ABOVE)
    }

    fn close(&mut self, now: Instant) {
        if let Some((_, sum, count)) = self.window.take_if(|window| now.since(window.0) >= WINDOW) {
            let mean = sum / count;
            self.smoothed = Some(self.smoothed.map_or(mean, |before| (before + mean * 2) / 3));
        }
    }
}

/// As a heartbeat carries it.
pub fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Instant {
        Instant(1_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn a_slow_disk_is_found_out_however_little_it_gets_done_and_a_spike_is_forgotten() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.reading(at(0), Duration::ZERO), None);
        // A thousand operations of a millisecond, and one of half a second.
        (0..1000).for_each(|n| gauge.add(at(n), MS));
        gauge.add(at(1000), 500 * MS);
        let spike = gauge.reading(at(1300), Duration::ZERO).unwrap();
        assert!(spike > 200 * MS, "{spike:?}");
        (1300..2600).for_each(|n| gauge.add(at(n), MS));
        let after = gauge.reading(at(2600), Duration::ZERO).unwrap();
        assert!(after < 20 * MS, "{after:?}");
        // Three slow ones are enough.
        [2900, 3200, 3500].into_iter().for_each(|n| gauge.add(at(n), 300 * MS));
        let slow = gauge.reading(at(3800), Duration::ZERO).unwrap();
        assert!(slow > 200 * MS, "{slow:?}");
    }

    #[test]
    fn what_has_not_ended_counts_as_long_as_it_is_under_way() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.reading(at(0), 700 * MS), Some(700 * MS));
        gauge.add(at(0), MS);
        assert_eq!(gauge.reading(at(300), 150 * MS), Some(MS), "perhaps a large one");
        assert_eq!(gauge.reading(at(300), 4000 * MS), Some(4000 * MS));
    }

    #[test]
    fn time_that_bytes_explain_says_nothing_about_the_disk() {
        let mut gauge = Gauge::default();
        gauge.add_sized(at(0), 90 * MS, 16 << 20);
        assert_eq!(gauge.reading(at(300), Duration::ZERO), Some(Duration::ZERO));
        gauge.add_sized(at(300), 360 * MS, 16 << 20);
        assert!(gauge.reading(at(600), Duration::ZERO).unwrap() > 100 * MS);
    }

    #[test]
    fn a_disk_out_of_use_is_asked_until_it_is_fast_and_then_left_alone() {
        let mut gauge = Gauge::default();
        assert!(gauge.wants_probe(at(0)), "nothing is known of it");
        gauge.add(at(0), 100 * MS);
        assert!(!gauge.wants_probe(at(100)));
        let mut probes = 0;
        for n in 1..100 {
            let now = at(n * 500);
            gauge.reading(now, Duration::ZERO);
            if gauge.wants_probe(now) {
                probes += 1;
                gauge.add(now, MS);
            }
        }
        assert!((3..8).contains(&probes), "{probes}");
        assert!(gauge.reading(at(50_000), Duration::ZERO).unwrap() < PROBE_ABOVE);
    }
}
