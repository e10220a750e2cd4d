//! How long something takes: evenly spread, with rare spikes. For links and for disks.

use holdfast_types::prng::Prng;
use std::time::Duration;

/// A distribution of delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Shortest.
    pub min: Duration,
    /// Longest, spikes apart.
    pub max: Duration,
    /// One in so many takes `spike` longer; `None`: there are no spikes.
    pub spike_one_in: Option<u32>,
    /// How much longer.
    pub spike: Duration,
}

impl Latency {
    /// Evenly between two bounds.
    ///
    /// # Panics
    /// When `min` is above `max`.
    pub fn between(min: Duration, max: Duration) -> Self {
        assert!(min <= max, "no delay is above {min:?} and below {max:?}");
        Self { min, max, spike_one_in: None, spike: Duration::ZERO }
    }

    /// Always the same.
    pub fn exactly(delay: Duration) -> Self {
        Self::between(delay, delay)
    }

    /// The same with spikes.
    #[must_use]
    pub fn with_spikes(self, one_in: u32, spike: Duration) -> Self {
        Self { spike_one_in: Some(one_in), spike, ..self }
    }

    /// Draws a delay.
    pub fn sample(&self, prng: &mut Prng) -> Duration {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX >> 1);
        let plain = Duration::from_nanos(prng.between(nanos(self.min), nanos(self.max)));
        match self.spike_one_in {
            Some(one_in) if prng.chance(1, u64::from(one_in.max(1))) => plain + self.spike,
            _ => plain,
        }
    }
}
