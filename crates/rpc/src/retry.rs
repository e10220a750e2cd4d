//! When to try again: a budget, so that retries never add more than a tenth to a peer's load, and a backoff with jitter, so that
//! those who failed together do not come back together. Pure: time and seeds are arguments.

use holdfast_types::prng::Prng;
use std::time::Duration;

/// Retries allowed per peer: every request earns a tenth of one, every retry costs one.
///
/// Heartbeats, fences, view changes and recalls are exempt: they do not ask.
#[derive(Clone, Debug)]
pub struct Budget {
    /// In tenths of a retry.
    tenths: u32,
    tenths_max: u32,
}

/// What a retry costs, in tenths.
const RETRY: u32 = 10;

impl Budget {
    /// A full budget that holds at most `burst` retries.
    ///
    /// # Panics
    /// When `burst` is 0: nothing could ever be retried.
    pub fn new(burst: u32) -> Self {
        assert!(burst > 0, "a budget without retries");
        let tenths_max = burst.saturating_mul(RETRY);
        Self { tenths: tenths_max, tenths_max }
    }

    /// A request was sent for the first time.
    pub fn earn(&mut self) {
        self.tenths = (self.tenths + 1).min(self.tenths_max);
    }

    /// Takes one retry; false when there is none.
    #[must_use]
    pub fn spend(&mut self) -> bool {
        let left = self.tenths.checked_sub(RETRY);
        self.tenths = left.unwrap_or(self.tenths);
        left.is_some()
    }
}

impl Default for Budget {
    /// A burst of ten: one failure of a server that had ten requests under way is retried at once.
    fn default() -> Self {
        Self::new(10)
    }
}

/// Pauses that double from `least` to `most`, each drawn between half of that and all of it.
#[derive(Clone, Debug)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
    prng: Prng,
}

impl Backoff {
    /// A backoff that has seen no failure.
    ///
    /// # Panics
    /// When `least` is zero or above `most`.
    pub fn new(least: Duration, most: Duration, seed: u64) -> Self {
        assert!(!least.is_zero() && least <= most, "backoff from {least:?} to {most:?}");
        Self { least, most, failures: 0, prng: Prng::new(seed) }
    }

    /// Something failed: how long to wait now.
    pub fn failed(&mut self) -> Duration {
        // Thirty doublings of a microsecond are a quarter of an hour: enough, and no overflow.
        let full = self.least.saturating_mul(1 << self.failures.min(30)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        let nanos = u64::try_from(full.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.prng.between(nanos / 2, nanos))
    }

    /// Something succeeded.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_add_at_most_a_tenth() {
        let mut budget = Budget::new(10);
        let mut retries = 0;
        for _ in 0..10_000 {
            budget.earn();
            while budget.spend() {
                retries += 1;
            }
        }
        assert!((1_000..=1_010).contains(&retries), "{retries}");
    }

    #[test]
    fn pauses_double_up_to_the_most_with_jitter_from_the_seed() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1), seed);
            (0..40).map(|_| backoff.failed()).collect::<Vec<_>>()
        };
        for (i, pause) in pauses(1).into_iter().enumerate() {
            let full = Duration::from_millis(10 << i.min(7)).min(Duration::from_secs(1));
            assert!(pause >= full / 2 && pause <= full, "{i}: {pause:?}");
        }
        assert_eq!(pauses(1), pauses(1));
        assert_ne!(pauses(1), pauses(2));
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1), 3);
        let (_, _) = (backoff.failed(), backoff.failed());
        backoff.reset();
        assert!(backoff.failed() <= Duration::from_millis(10));
    }
}
