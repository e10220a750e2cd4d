//! Locks, judged by what callers were told, whatever the service thinks: from when an owner hears that it holds a lock until it asks
//! for something else there, or its session is over, nobody else is told that it holds what this excludes.

use super::Sim;
use super::record::CallRecord;
use holdfast_client_core::{Call, Reply};
use holdfast_sim::WorldTime;
use holdfast_types::{InodeId, SessionId};
use holdfast_wire::lock::{HeldLock, Lock, LockKind, LockSpace};
use std::collections::BTreeMap;

/// A stretch of time for which an owner believes that it holds a lock.
#[derive(Clone, Copy, Debug)]
struct Belief {
    lock: Lock,
    session: SessionId,
    from: WorldTime,
    until: WorldTime,
}

impl Belief {
    fn contradicts(&self, other: &Self) -> bool {
        let held = HeldLock {
            session: self.session,
            owner: self.lock.owner,
            pid: self.lock.pid,
            start: self.lock.start,
            end: self.lock.end,
            kind: self.lock.kind.unwrap_or(LockKind::Shared),
        };
        let same = (self.session, self.lock.owner) == (other.session, other.lock.owner);
        !same && self.from < other.until && other.from < self.until && held.excludes(&other.lock)
    }
}

/// Takes a range out of what an owner believes; what is cut off ends at `now`.
fn cut(open: &mut Vec<Belief>, lock: &Lock, now: WorldTime, ended: &mut Vec<Belief>) {
    for belief in std::mem::take(open) {
        let (start, end) = (belief.lock.start, belief.lock.end);
        if end < lock.start || start > lock.end {
            open.push(belief);
            continue;
        }
        ended.push(Belief { until: belief.until.min(now), ..belief });
        if start < lock.start {
            open.push(Belief { lock: Lock { end: lock.start - 1, ..belief.lock }, ..belief });
        }
        if end > lock.end {
            open.push(Belief { lock: Lock { start: lock.end + 1, ..belief.lock }, ..belief });
        }
    }
}

impl Sim {
    pub(super) fn check_locks(&mut self) -> Result<(), String> {
        let mut owners: BTreeMap<_, Vec<(&CallRecord, InodeId, Lock)>> = BTreeMap::new();
        for record in &self.record.calls {
            if let Call::SetLock { inode, lock, .. } = record.call {
                let owner = (inode, lock.space, record.mount, lock.owner);
                owners.entry(owner).or_default().push((record, inode, lock));
            }
        }
        let mut beliefs: BTreeMap<(InodeId, LockSpace), Vec<Belief>> = BTreeMap::new();
        for ((inode, space, mount, _), asked) in owners {
            let Some(session) = self.record.mounts[mount].session else { continue };
            let over = self.truth[1].ended.get(&session).copied().unwrap_or(WorldTime(u64::MAX));
            let ended = beliefs.entry((inode, space)).or_default();
            let mut open = Vec::new();
            for (record, _, lock) in asked {
                cut(&mut open, &lock, record.invoked_at, ended);
                if let (Some(returned), Some(_)) = (&record.returned, lock.kind)
                    && let Ok(Reply::Locked { granted: true }) = returned.result
                {
                    self.stats.locks += 1;
                    if record.invoked_at > over {
                        return Err(format!(
                            "{inode}: {session} asked at {} for {lock:?} and was granted it; it was over at {over}",
                            record.invoked_at
                        ));
                    }
                    open.push(Belief { lock, session, from: returned.at, until: over });
                }
            }
            ended.append(&mut open);
        }
        for ((inode, _), all) in &mut beliefs {
            all.sort_unstable_by_key(|belief| belief.from);
            for (at, first) in all.iter().enumerate() {
                let later = all[at + 1..].iter().take_while(|later| later.from < first.until);
                if let Some(second) = later.into_iter().find(|later| first.contradicts(later)) {
                    return Err(format!("{inode} is locked by two owners at once: {first:?} and {second:?}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belief(session: u64, kind: LockKind, (start, end): (u64, u64), (from, until): (u64, u64)) -> Belief {
        let lock = Lock { space: LockSpace::Range, owner: 1, pid: 0, start, end, kind: Some(kind) };
        Belief { lock, session: SessionId(session), from: WorldTime(from), until: WorldTime(until) }
    }

    #[test]
    fn beliefs_contradict_when_they_meet_in_time_and_place_and_exclude_each_other() {
        let held = belief(1, LockKind::Exclusive, (0, 9), (10, 20));
        assert!(held.contradicts(&belief(2, LockKind::Shared, (9, 9), (19, 30))));
        assert!(!held.contradicts(&belief(2, LockKind::Shared, (9, 9), (20, 30))), "one after the other");
        assert!(!held.contradicts(&belief(2, LockKind::Exclusive, (10, 12), (10, 20))), "elsewhere");
        assert!(!held.contradicts(&belief(1, LockKind::Exclusive, (0, 9), (10, 20))), "one's own");
        let shared = belief(1, LockKind::Shared, (0, 9), (10, 20));
        assert!(!shared.contradicts(&belief(2, LockKind::Shared, (0, 9), (10, 20))));
    }

    #[test]
    fn what_is_asked_for_again_is_cut_out_of_what_was_believed() {
        let mut open = vec![belief(1, LockKind::Exclusive, (0, 9), (10, 99))];
        let mut ended = Vec::new();
        cut(&mut open, &belief(1, LockKind::Shared, (3, 5), (0, 0)).lock, WorldTime(15), &mut ended);
        let ranges = |all: &[Belief]| all.iter().map(|b| (b.lock.start, b.lock.end, b.until.0)).collect::<Vec<_>>();
        assert_eq!((ranges(&open), ranges(&ended)), (vec![(0, 2, 99), (6, 9, 99)], vec![(0, 9, 15)]));
    }
}
