//! The one place where this crate reads a clock.

use holdfast_types::Instant;

#[cfg(feature = "faults")]
pub(crate) use holdfast_faults::clock::now;

/// Monotonic time that counts suspended time.
#[cfg(not(feature = "faults"))]
pub(crate) fn now() -> Instant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// A deadline of the runtime's clock on ours.
pub(crate) fn from_runtime(deadline: std::time::Instant) -> Instant {
    now() + deadline.saturating_duration_since(std::time::Instant::now())
}

/// Seconds since 1970, for what must be understood after a restart.
pub(crate) fn civil_seconds() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(time.tv_sec).unwrap_or(0)
}
