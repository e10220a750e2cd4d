//! A clock that runs fast or slow, as the plan in force says. It never goes back, and never jumps.

use holdfast_types::Instant;
use std::sync::{Mutex, PoisonError};

/// What it showed when its rate last changed, what the true one showed then, and its rate.
static CLOCK: Mutex<(Option<(u64, u64)>, f64)> = Mutex::new((None, 1.0));

/// Monotonic time that counts suspended time, at the rate of the plan.
pub fn now() -> Instant {
    let clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    Instant(shown(&clock, truth()))
}

pub(crate) fn change_rate(rate: f64) {
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let truth = truth();
    *clock = (Some((shown(&clock, truth), truth)), rate);
}

fn shown((changed, rate): &(Option<(u64, u64)>, f64), truth: u64) -> u64 {
    changed.map_or(truth, |(shown, at)| shown + (truth.saturating_sub(at) as f64 * rate) as u64)
}

fn truth() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_at_its_rate_from_where_it_was() {
        assert_eq!(shown(&(None, 1.0), 500), 500);
        assert_eq!(shown(&(Some((500, 1000)), 0.5), 1000), 500);
        assert_eq!(shown(&(Some((500, 1000)), 0.5), 2000), 1000);
        assert_eq!(shown(&(Some((500, 1000)), 3.0), 1100), 800);
    }
}
