//! Which operations are slow enough to be logged, and how many of them at the most.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Lines a second at the most: what is slow is slow for many at a time, and the log must not make it worse.
const LINES_PER_SECOND: u32 = 10;

/// Decides; the line itself is written by whoever knows where the time went.
#[derive(Debug)]
pub struct SlowLog {
    threshold: Duration,
    budget: Mutex<Budget>,
}

#[derive(Debug)]
struct Budget {
    second: Instant,
    left: u32,
    suppressed: u64,
}

impl SlowLog {
    /// Logs what took `threshold` or longer.
    pub fn new(threshold: Duration) -> Self {
        let budget = Budget { second: Instant::now(), left: LINES_PER_SECOND, suppressed: 0 };
        Self { threshold, budget: Mutex::new(budget) }
    }

    /// Whether something that took so long is to be logged, and how many were not since the last that was.
    pub fn wants(&self, took: Duration) -> Option<u64> {
        if took < self.threshold {
            return None;
        }
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if budget.second.elapsed() >= Duration::from_secs(1) {
            budget.second = Instant::now();
            budget.left = LINES_PER_SECOND;
        }
        if budget.left == 0 {
            budget.suppressed += 1;
            return None;
        }
        budget.left -= 1;
        Some(std::mem::take(&mut budget.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slow_is_logged_but_not_without_bound() {
        let log = SlowLog::new(Duration::from_millis(100));
        assert_eq!(log.wants(Duration::from_millis(99)), None);
        let logged = (0..1000).filter(|_| log.wants(Duration::from_millis(100)).is_some()).count();
        // The loop may run over the end of a second.
        assert!((10..=30).contains(&logged), "{logged}");
    }
}
