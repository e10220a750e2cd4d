//! The locks of this mount, by file and owner: what the service has granted, or what is granted here.

use holdfast_types::limits::LOCKS_PER_FILE_MAX;
use holdfast_types::{InodeId, SessionId};
use holdfast_wire::lock::{HeldLock, Lock, LockSpace, replaced};
use std::collections::BTreeMap;

/// Whose a lock is, and on what.
pub(crate) type Owner = (InodeId, LockSpace, u64);

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    Granted,
    InTheWay,
    TooMany,
}

/// Invariants: an owner's locks do not overlap, are in order, and not none; two owners hold no locks that exclude each other.
#[derive(Default)]
pub(crate) struct Table {
    held: BTreeMap<(InodeId, LockSpace), BTreeMap<u64, Vec<HeldLock>>>,
}

impl Table {
    /// What an owner holds, in order.
    pub fn of(&self, (inode, space, owner): Owner) -> &[HeldLock] {
        self.held.get(&(inode, space)).and_then(|owners| owners.get(&owner)).map_or(&[], Vec::as_slice)
    }

    /// Other owners' locks that exclude one, the first of each.
    pub fn in_the_way(&self, inode: InodeId, lock: &Lock) -> impl Iterator<Item = &HeldLock> {
        let owners = self.held.get(&(inode, lock.space)).into_iter().flatten();
        let others = owners.filter(move |(owner, _)| **owner != lock.owner);
        others.filter_map(move |(_, all)| all[near(all, lock)].iter().find(move |held| held.excludes(lock)))
    }

    /// As the service does it: grants a lock if nothing is in the way. A whole-file lock that is refused is gone, as on Linux.
    pub fn ask(&mut self, session: SessionId, inode: InodeId, lock: &Lock) -> Asking {
        if self.in_the_way(inode, lock).next().is_some() {
            if lock.space == LockSpace::Whole {
                self.set(session, inode, &Lock { kind: None, ..*lock });
            }
            return Asking::InTheWay;
        }
        let own = self.of((inode, lock.space, lock.owner));
        let before = &own[near(own, lock)];
        let more = replaced(before, session, lock).len().saturating_sub(before.len());
        if more > 0 && self.count(inode) + more > LOCKS_PER_FILE_MAX as usize {
            return Asking::TooMany;
        }
        self.set(session, inode, lock);
        Asking::Granted
    }

    /// Locks on a file.
    fn count(&self, inode: InodeId) -> usize {
        let spaces = [LockSpace::Range, LockSpace::Whole].iter().filter_map(|space| self.held.get(&(inode, *space)));
        spaces.flat_map(BTreeMap::values).map(Vec::len).sum()
    }

    /// An owner holds this now, or nothing there.
    pub fn set(&mut self, session: SessionId, inode: InodeId, lock: &Lock) {
        let owners = self.held.entry((inode, lock.space)).or_default();
        let own = owners.entry(lock.owner).or_default();
        let range = near(own, lock);
        let after = replaced(&own[range.clone()], session, lock);
        own.splice(range, after);
        if own.is_empty() {
            owners.remove(&lock.owner);
        }
        if owners.is_empty() {
            self.held.remove(&(inode, lock.space));
        }
    }

    /// A file is gone, and all locks on it.
    pub fn forget(&mut self, inode: InodeId) {
        self.held.retain(|(there, _), _| *there != inode);
    }
}

/// Which of an owner's locks overlap a range, or touch it.
fn near(own: &[HeldLock], lock: &Lock) -> std::ops::Range<usize> {
    let from = own.partition_point(|held| held.end.saturating_add(1) < lock.start);
    let to = own.partition_point(|held| held.start <= lock.end.saturating_add(1));
    from..to.max(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::lock::LockKind::{self, Exclusive, Shared};

    const F: InodeId = InodeId(3);
    const S: SessionId = SessionId(1);

    fn lock(owner: u64, start: u64, end: u64, kind: Option<LockKind>) -> Lock {
        Lock { space: LockSpace::Range, owner, pid: 9, start, end, kind }
    }

    #[test]
    fn what_excludes_is_refused_and_changes_nothing() {
        let mut table = Table::default();
        assert_eq!(table.ask(S, F, &lock(1, 0, 9, Some(Shared))), Asking::Granted);
        assert_eq!(table.ask(S, F, &lock(2, 5, 14, Some(Shared))), Asking::Granted);
        assert_eq!(table.ask(S, F, &lock(2, 9, 14, Some(Exclusive))), Asking::InTheWay);
        assert_eq!(table.of((F, LockSpace::Range, 2)).len(), 1);
        assert_eq!(table.ask(S, F, &lock(2, 10, 14, Some(Exclusive))), Asking::Granted);
        assert_eq!(table.of((F, LockSpace::Range, 2)).len(), 2);
        assert_eq!(table.ask(S, F, &lock(1, 0, 99, None)), Asking::Granted);
        assert!(table.of((F, LockSpace::Range, 1)).is_empty());
        assert_eq!(table.in_the_way(F, &lock(1, 0, 99, Some(Shared))).map(|held| held.start).collect::<Vec<_>>(), [10]);
        assert_eq!(table.in_the_way(InodeId(4), &lock(1, 0, 99, Some(Exclusive))).count(), 0);
        table.forget(F);
        assert_eq!(table.in_the_way(F, &lock(1, 0, 99, Some(Exclusive))).count(), 0);
    }

    #[test]
    fn a_whole_file_lock_that_cannot_be_changed_is_lost() {
        let mut table = Table::default();
        let whole = |owner, kind| Lock { space: LockSpace::Whole, ..lock(owner, 0, i64::MAX as u64, kind) };
        assert_eq!(table.ask(S, F, &whole(1, Some(Shared))), Asking::Granted);
        assert_eq!(table.ask(S, F, &whole(2, Some(Shared))), Asking::Granted);
        assert_eq!(table.ask(S, F, &whole(1, Some(Exclusive))), Asking::InTheWay);
        assert!(table.of((F, LockSpace::Whole, 1)).is_empty());
        assert_eq!(table.ask(S, F, &whole(2, Some(Exclusive))), Asking::Granted);
        assert_eq!(table.ask(S, F, &lock(1, 0, 9, Some(Exclusive))), Asking::Granted, "another space");
    }

    #[test]
    fn a_file_has_so_many_locks_and_no_more() {
        let mut table = Table::default();
        let all: Vec<HeldLock> = (0..u64::from(LOCKS_PER_FILE_MAX))
            .map(|at| HeldLock { session: S, owner: 0, pid: 9, start: at * 2, end: at * 2, kind: Exclusive })
            .collect();
        table.held.entry((F, LockSpace::Range)).or_default().insert(0, all);
        assert_eq!(table.ask(S, F, &lock(1, 1, 1, Some(Shared))), Asking::TooMany);
        assert_eq!(table.ask(S, F, &lock(0, 4, 4, Some(Shared))), Asking::Granted, "one in the place of another");
        assert_eq!(table.ask(S, F, &lock(0, 0, 0, None)), Asking::Granted);
        assert_eq!(table.ask(S, F, &lock(1, 1, 1, Some(Shared))), Asking::Granted);
    }
}
