//! True time, which only the world knows, and the clocks of actors, which run a little fast or slow.

use holdfast_types::{Instant, Timestamp};
use std::fmt;
use std::time::Duration;

/// Nanoseconds since the world began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorldTime(pub u64);

impl WorldTime {
    /// The moment `elapsed` after the beginning.
    pub fn after_start(elapsed: Duration) -> Self {
        Self::default() + elapsed
    }

    /// Time since `earlier`; zero when that is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for WorldTime {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for WorldTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000_000, self.0 / 1000 % 1_000_000)
    }
}

/// One actor's clock: it never goes back, and its rate may change.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// At this true time …
    world: WorldTime,
    /// … it showed this, in nanoseconds.
    local: u64,
    /// How much faster than true time it runs, in parts per million.
    rate_ppm: i32,
    /// Civil time at the beginning of the world by this clock, in nanoseconds since 1970.
    civil_nanos: i128,
}

impl Clock {
    /// A clock that shows true time.
    pub fn exact() -> Self {
        Self::new(0, Duration::ZERO)
    }

    /// A clock that runs `rate_ppm` parts per million fast (negative: slow) and began at `offset`.
    ///
    /// # Panics
    /// When the clock would run backwards, or more than twice too fast.
    pub fn new(rate_ppm: i32, offset: Duration) -> Self {
        check_rate(rate_ppm);
        let local = u64::try_from(offset.as_nanos()).expect("an offset of less than five centuries");
        // Some day in 2026, so that stamps look like stamps.
        Self { world: WorldTime::default(), local, rate_ppm, civil_nanos: 1_790_000_000_000_000_000 }
    }

    /// The same clock with civil time off by this many nanoseconds.
    #[must_use]
    pub fn with_civil_error(mut self, nanos: i64) -> Self {
        self.civil_nanos += i128::from(nanos);
        self
    }

    /// What it shows.
    pub fn read(&self, now: WorldTime) -> Instant {
        let elapsed = u128::from(now.0.saturating_sub(self.world.0));
        Instant(self.local.saturating_add(u64::try_from(elapsed * self.rate() / 1_000_000).unwrap_or(u64::MAX)))
    }

    /// What it says of civil time.
    pub fn read_civil(&self, now: WorldTime) -> Timestamp {
        Timestamp::from_nanos(self.civil_nanos + i128::from(self.read(now).0))
    }

    /// The first true moment at which it shows at least `local`; never before `now`.
    pub fn when(&self, local: Instant, now: WorldTime) -> WorldTime {
        let wanted = u128::from(local.0.saturating_sub(self.local));
        let elapsed = (wanted * 1_000_000).div_ceil(self.rate());
        now.max(WorldTime(self.world.0.saturating_add(u64::try_from(elapsed).unwrap_or(u64::MAX))))
    }

    /// Changes the rate from now on.
    ///
    /// # Panics
    /// As [`Clock::new`].
    pub fn set_rate(&mut self, now: WorldTime, rate_ppm: i32) {
        check_rate(rate_ppm);
        (self.local, self.world, self.rate_ppm) = (self.read(now).0, now, rate_ppm);
    }

    fn rate(&self) -> u128 {
        (1_000_000 + i64::from(self.rate_ppm)) as u128
    }
}

fn check_rate(rate_ppm: i32) {
    assert!((-999_999..=1_000_000).contains(&rate_ppm), "a clock that is {rate_ppm} ppm fast");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_fires_at_the_first_moment_that_its_clock_shows_it() {
        for rate in [-500_000, -300, -1, 0, 1, 777, 1_000_000] {
            let clock = Clock::new(rate, Duration::from_secs(3));
            for local in [3_000_000_001, 3_000_000_007, 4_123_456_789, 90_000_000_000] {
                let when = clock.when(Instant(local), WorldTime(0));
                assert!(clock.read(when) >= Instant(local), "rate {rate}");
                assert!(clock.read(WorldTime(when.0 - 1)) < Instant(local), "rate {rate}");
            }
        }
        assert_eq!(Clock::exact().when(Instant(5), WorldTime(9)), WorldTime(9), "never in the past");
    }

    #[test]
    fn a_change_of_rate_makes_no_jump() {
        let mut clock = Clock::new(500_000, Duration::ZERO);
        let now = WorldTime(1_000_000);
        let before = clock.read(now);
        clock.set_rate(now, -500_000);
        assert_eq!(clock.read(now), before);
        assert_eq!(clock.read(WorldTime(2_000_000)).0, before.0 + 500_000);
    }
}
