//! How far numbers leap that are given once: further than they can have been given out since the backup was made.
//!
//! Each leaps by a margin and by a rate for every second since. So a backup that is restored a second time leaps beyond what the first
//! restoration has given out. What is assumed: nothing was given out faster than its rate over the whole time since the backup, the margin
//! added, and the clocks of the host that made the backup and of the one that restores it are right within an hour.

use holdfast_types::Timestamp;

/// Clocks may differ by so much.
const CLOCKS_SECONDS: u64 = 3600;

/// How far one kind of number leaps. The rates are far above what a metadata service does in a second.
#[derive(Clone, Copy)]
struct Pace {
    margin: u64,
    per_second: u64,
    /// The number has so many bits.
    bits: u32,
}

const INDEX: Pace = Pace { margin: 1 << 32, per_second: 1 << 20, bits: 63 };
/// The term of the volumes' shard is the upper half of 64 bits in the sequences of its chunk requests. Elections take half a second each.
const TERM: Pace = Pace { margin: 1 << 12, per_second: 2, bits: 32 };
const EPOCH: Pace = Pace { margin: 1 << 16, per_second: 1 << 10, bits: 63 };
const SESSION: Pace = Pace { margin: 1 << 20, per_second: 1 << 16, bits: 63 };
const VOLUME: Pace = Pace { margin: 1 << 16, per_second: 1 << 10, bits: 63 };
const INODE: Pace = Pace { margin: 1 << 32, per_second: 1 << 20, bits: 63 };
const GENERATION: Pace = Pace { margin: 1 << 32, per_second: 1 << 20, bits: 63 };

/// Leaps over a span of time.
#[derive(Clone, Copy, Debug)]
pub struct Leap {
    seconds: u64,
}

impl Leap {
    /// Over the time between a backup and its restoration; `None` if the backup is of the future.
    pub fn between(created: Timestamp, now: Timestamp) -> Option<Self> {
        let passed = i128::from(now.seconds) - i128::from(created.seconds);
        let seconds = u64::try_from(passed + i128::from(CLOCKS_SECONDS)).ok()?;
        Some(Self { seconds: seconds + CLOCKS_SECONDS })
    }

    fn over(self, number: u64, pace: Pace) -> Option<u64> {
        let way = pace.per_second.checked_mul(self.seconds)?.checked_add(pace.margin)?;
        number.checked_add(way).filter(|number| *number < 1 << pace.bits)
    }

    pub(super) fn index(self, number: u64) -> Option<u64> {
        self.over(number, INDEX)
    }

    pub(super) fn term(self, number: u64) -> Option<u64> {
        self.over(number, TERM)
    }

    pub(super) fn epoch(self, number: u64) -> Option<u64> {
        self.over(number, EPOCH)
    }

    pub(super) fn session(self, number: u64) -> Option<u64> {
        self.over(number, SESSION)
    }

    pub(super) fn volume(self, number: u64) -> Option<u64> {
        self.over(number, VOLUME)
    }

    pub(super) fn inode(self, number: u64) -> Option<u64> {
        self.over(number, INODE)
    }

    pub(super) fn generation(self, number: u64) -> Option<u64> {
        self.over(number, GENERATION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    #[test]
    fn a_second_restoration_leaps_beyond_what_the_first_has_given_out() {
        let day = 24 * 3600;
        let first = Leap::between(at(1000), at(1000 + day)).expect("later");
        let second = Leap::between(at(1000), at(1000 + 2 * day)).expect("later");
        let (before, after) = (first.inode(7).expect("leaps"), second.inode(7).expect("leaps"));
        // A day of creations at the rate that is assumed.
        assert!(before + (1 << 20) * day as u64 <= after);
    }

    #[test]
    fn a_backup_of_the_future_is_refused_and_one_of_a_clock_a_little_ahead_is_not() {
        assert!(Leap::between(at(10_000), at(10_000 - 3700)).is_none());
        let leap = Leap::between(at(10_000), at(9_990)).expect("within the hour");
        assert!(leap.session(5).expect("leaps") > 5 + (1 << 20));
    }

    #[test]
    fn there_is_room_for_decades_and_then_it_says_so() {
        let leap = Leap::between(at(0), at(30 * 365 * 24 * 3600)).expect("later");
        let all = [leap.index(1 << 40), leap.term(1 << 20), leap.epoch(1 << 40), leap.inode(1 << 40)];
        assert!(all.iter().all(Option::is_some), "{all:?}");
        assert_eq!(leap.term(3 << 30), None);
        assert_eq!(leap.inode(u64::MAX), None);
    }
}
