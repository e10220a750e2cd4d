//! When which group is scrubbed, and how fast. One group at a time of those that this node is primary of; the one that is overdue longest.
//!
//! * Every byte that is read for a scrub, here or for another node's, is paid from the budget of its disk, which time refills.
//! * A group that was never scrubbed is due at a moment of its own within the first period, so that they do not all come at once. Both that
//!   moment and the end of each scrub are told to whoever keeps them ([`crate::Effect::ScrubNoted`]): a restart changes neither.

use crate::api::Scrubbed;
use holdfast_types::prng::mix;
use holdfast_types::{DiskId, GroupId, Instant};
use holdfast_wire::group::ScrubResult;
use std::collections::BTreeMap;
use std::time::Duration;

/// Most bytes that a disk may be read ahead of its rate: what that gives in so long.
const BURST: Duration = Duration::from_secs(1);
/// A group that is not as it should be after its scrub, or could not be scrubbed, is looked at again after so long, or as often as every
/// other if that is more often. By eye: what makes it whole takes minutes, and what nobody can make whole should be said, but not all the time.
const AGAIN: Duration = Duration::from_secs(3600);

/// How long after its scrub a group is due.
fn pause_after(result: Option<ScrubResult>, every: Duration) -> Duration {
    if result.is_none_or(|result| result.is_clean()) { every } else { every.min(AGAIN) }
}

#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// When the last one ended, of this core's time, and how long before its beginning if it was then; what it found.
    last: Option<(Instant, Duration, ScrubResult)>,
    due: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scrubs {
    groups: BTreeMap<GroupId, Schedule>,
    /// The group that this node scrubs as its primary.
    running: Option<GroupId>,
    began: Instant,
    /// When somebody asked for everything to be scrubbed.
    asked: Option<Instant>,
    budgets: BTreeMap<DiskId, i64>,
    refilled: Instant,
}

impl Scrubs {
    /// With what was kept from before the start.
    pub(crate) fn new(kept: &[Scrubbed], every: Duration, now: Instant) -> Self {
        let mut scrubs = Self { refilled: now, ..Self::default() };
        for Scrubbed { group, age, result, .. } in kept {
            let due = now + pause_after(*result, every).saturating_sub(*age);
            let schedule = Schedule { last: result.map(|result| (now, *age, result)), due };
            let known = scrubs.groups.entry(*group).or_insert(schedule);
            // A group that was on two disks of this node: the newer word counts.
            if known.due < schedule.due {
                *known = schedule;
            }
        }
        scrubs
    }

    /// A group is on this node. Says how long ago its last scrub is taken to have been, if it was not known before.
    pub(crate) fn meet(&mut self, group: GroupId, every: Duration, seed: u64, now: Instant) -> Option<Duration> {
        if self.groups.contains_key(&group) {
            return None;
        }
        let part = mix(seed ^ mix(u64::from(group.0) + 1)) % 1024;
        let wait = every.mul_f64(part as f64 / 1024.0);
        self.groups.insert(group, Schedule { last: None, due: now + wait });
        Some(every.saturating_sub(wait))
    }

    /// All groups are due.
    pub(crate) fn all_due(&mut self, now: Instant) {
        self.asked = Some(now);
        self.groups.values_mut().for_each(|schedule| schedule.due = schedule.due.min(now));
    }

    /// The one that is overdue longest among those that may be begun.
    pub(crate) fn next(&self, now: Instant, may: impl Fn(GroupId) -> bool) -> Option<GroupId> {
        let due = self.groups.iter().filter(|(group, schedule)| schedule.due <= now && may(**group));
        due.min_by_key(|(group, schedule)| (schedule.due, **group)).map(|(group, _)| *group)
    }

    /// A scrub of the group ended, here or under another primary.
    pub(crate) fn ended(&mut self, group: GroupId, result: ScrubResult, every: Duration, now: Instant) {
        // One that was under way when everything was to be scrubbed is not what was asked for.
        let again = self.running == Some(group) && self.asked.is_some_and(|asked| asked >= self.began);
        let due = if again { now } else { now + pause_after(Some(result), every) };
        self.groups.insert(group, Schedule { last: Some((now, Duration::ZERO, result)), due });
    }

    /// A scrub of the group could not be brought to its end.
    pub(crate) fn put_off(&mut self, group: GroupId, every: Duration, now: Instant) {
        if let Some(schedule) = self.groups.get_mut(&group) {
            schedule.due = now + every.min(AGAIN);
        }
    }

    /// The group that this node scrubs as its primary.
    pub(crate) fn running(&self) -> Option<GroupId> {
        self.running
    }

    /// A scrub begins, or none is under way.
    pub(crate) fn begins(&mut self, group: Option<GroupId>, now: Instant) {
        self.running = group;
        self.began = now;
    }

    /// Time passed.
    pub(crate) fn refill(&mut self, now: Instant, bytes_per_second: u64) {
        let share = |time: Duration| (bytes_per_second as f64 * time.as_secs_f64()) as i64;
        let (more, most) = (share(now.since(self.refilled)), share(BURST));
        self.refilled = now;
        self.budgets.values_mut().for_each(|budget| *budget = budget.saturating_add(more).min(most));
    }

    /// Whether a disk may be read now.
    pub(crate) fn may_read(&mut self, disk: DiskId) -> bool {
        *self.budgets.entry(disk).or_insert(1) > 0
    }

    /// A disk was read.
    pub(crate) fn spend(&mut self, disk: DiskId, bytes: u64) {
        let budget = self.budgets.entry(disk).or_default();
        *budget = budget.saturating_sub_unsigned(bytes);
    }

    /// How long ago the last one ended, and what it found; how long until the next one.
    pub(crate) fn of(&self, group: GroupId, now: Instant) -> (Option<(Duration, ScrubResult)>, Duration) {
        let Some(schedule) = self.groups.get(&group) else { return (None, Duration::ZERO) };
        let last = schedule.last.map(|(at, before, result)| (now.since(at) + before, result));
        (last, schedule.due.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Duration = Duration::from_secs(7 * 86_400);

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    #[test]
    fn a_restart_neither_forgets_nor_postpones_a_scrub() {
        let mut scrubs = Scrubs::new(&[], WEEK, at(0));
        let age = scrubs.meet(GroupId(3), WEEK, 7, at(0)).expect("not known before");
        let due = scrubs.of(GroupId(3), at(0)).1;
        assert!(due < WEEK && age + due == WEEK, "within the first period");
        let kept = |age, result| Scrubbed { disk: DiskId(0), group: GroupId(3), age, result };
        // An hour later, and the clock begins anew.
        let hour = Duration::from_secs(3600);
        let mut again = Scrubs::new(&[kept(age + hour, None)], WEEK, at(5));
        assert_eq!(again.meet(GroupId(3), WEEK, 9, at(5)), None);
        assert_eq!(again.of(GroupId(3), at(5)), (None, due - hour));
        let result = ScrubResult { chunks: 4, ..ScrubResult::default() };
        again.ended(GroupId(3), result, WEEK, at(6));
        assert_eq!(
            again.of(GroupId(3), at(8)),
            (Some((Duration::from_secs(2), result)), WEEK - Duration::from_secs(2))
        );
        let third = Scrubs::new(&[kept(hour, Some(result)), kept(2 * hour, None)], WEEK, at(0));
        assert_eq!(third.of(GroupId(3), at(10)).0, Some((hour + Duration::from_secs(10), result)));
        let missed = Scrubs::new(&[kept(2 * WEEK, None)], WEEK, at(0));
        assert_eq!(missed.next(at(0), |_| true), Some(GroupId(3)), "what was missed while it was away is due at once");
    }

    #[test]
    fn the_one_that_waits_longest_is_next_and_a_disk_is_read_no_faster_than_its_rate() {
        let mut scrubs = Scrubs::new(&[], WEEK, at(0));
        for group in 0..9 {
            scrubs.meet(GroupId(group), WEEK, 1, at(0));
        }
        assert_eq!(scrubs.next(at(0), |group| scrubs.of(group, at(0)).1 > Duration::ZERO), None);
        let first = (0..9).map(GroupId).min_by_key(|group| scrubs.of(*group, at(0)).1);
        assert_eq!(scrubs.next(at(604_800), |_| true), first);
        scrubs.all_due(at(1));
        assert_eq!(
            scrubs.next(at(2), |group| group.0 > 4 && scrubs.of(group, at(0)).1 > Duration::ZERO),
            Some(GroupId(5))
        );
        scrubs.begins(Some(GroupId(5)), at(3));
        scrubs.all_due(at(4));
        scrubs.ended(GroupId(5), ScrubResult::default(), WEEK, at(5));
        assert_eq!(scrubs.of(GroupId(5), at(5)).1, Duration::ZERO, "begun before everybody was to be scrubbed");
        scrubs.begins(Some(GroupId(5)), at(6));
        scrubs.ended(GroupId(5), ScrubResult::default(), WEEK, at(7));
        assert_eq!(scrubs.of(GroupId(5), at(7)).1, WEEK);

        let (disk, mut read) = (DiskId(1), 0);
        for ms in 0..10_000 {
            scrubs.refill(Instant(ms * 1_000_000), 1 << 20);
            while scrubs.may_read(disk) {
                scrubs.spend(disk, 4 << 20);
                read += 4;
            }
        }
        assert!((8..=16).contains(&read), "{read} MiB in 10 s at 1 MiB/s");
    }
}
