//! Advisory locks, replicated like everything else in a volume: a new leader has them all.
//!
//! Invariants (checked by `invariants`):
//! * Two owners hold no locks that exclude each other; one owner's locks do not overlap.
//! * Only sessions that are not over hold locks, on files that exist.
//! * `SetLock` never waits: whoever wants to wait asks the leader to be told when nothing is in the way, and asks again.

use super::{Op, find_inode};
use crate::error::{Applied, ensure};
use crate::tables::lock::{self, LockRow, LocksRow, Place};
use crate::tables::number_at;
use crate::txn::{Txn, decode};
use holdfast_store::KeyRange;
use holdfast_types::limits::LOCKS_PER_FILE_MAX;
use holdfast_types::{InodeId, SessionId, VolumeId};
use holdfast_wire::lock::{HeldLock, Lock, LockKind, LockSpace, replaced};
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome};

/// Rows looked at together: most files have fewer locks.
const ROWS_AT_ONCE: usize = 16;

/// Who owns a lock, cluster-wide.
pub(crate) type Owner = (SessionId, u64);

impl Op<'_, '_> {
    pub(super) fn set_lock(&mut self, inode: InodeId, lock: &Lock) -> Applied<Outcome> {
        if self.inode(inode)?.kind != FileKind::File || lock.start > lock.end || lock.end > i64::MAX as u64 {
            return Err(NamespaceError::Invalid.into());
        }
        let place = (self.volume, inode, lock.space);
        let mine = (self.session, lock.owner);
        let mut own = touching(self.txn, place, mine, lock)?;
        let overlapping = own.iter().any(|held| held.overlaps(lock));
        let conflict = first_conflict(self.txn, place, mine, lock)?;
        if let Some(held) = conflict {
            // Linux changes a whole-file lock by giving the old one back first, and so loses it here.
            if lock.space == LockSpace::Whole {
                self.write_locks(place, &own, &[])?;
            }
            return Ok(Outcome::Locked { in_the_way: Some(held.session), replaced: overlapping });
        }
        let after = replaced(&own, self.session, lock);
        own.retain(|held| !after.contains(held));
        self.write_locks(place, &own, &after)?;
        Ok(Outcome::Locked { in_the_way: None, replaced: overlapping })
    }

    /// Removes some rows of the session and puts others, and keeps their count.
    fn write_locks(&mut self, place: Place, gone: &[HeldLock], there: &[HeldLock]) -> Applied<()> {
        let counted = lock::by_session(self.session, place.0, place.1);
        let mut count = self.txn.get::<LocksRow>(&counted)?.unwrap_or_default().count;
        for held in gone {
            self.txn.remove(lock::key(place, held.session, held.owner, held.end));
            ensure!(count > 0, "{}: {} holds more locks on {} than it counts", place.0, self.session, place.1);
            count -= 1;
        }
        for held in there {
            let key = lock::key(place, held.session, held.owner, held.end);
            count += u32::from(self.txn.get_raw(&key)?.is_none());
            let exclusive = held.kind == LockKind::Exclusive;
            self.txn.put(key, &LockRow { start: held.start, exclusive, pid: held.pid });
        }
        if count > LOCKS_PER_FILE_MAX {
            return Err(NamespaceError::TooManyLocks.into());
        }
        if count > 0 {
            self.txn.put(counted, &LocksRow { count });
        } else {
            self.txn.remove(counted);
        }
        Ok(())
    }

    /// Gives back some of the locks that a session holds on an inode, at most `limit`; returns how many that were.
    pub(crate) fn drop_locks(&mut self, inode: InodeId, limit: usize) -> Applied<usize> {
        let mut dropped = 0;
        for space in [LockSpace::Range, LockSpace::Whole] {
            let place = (self.volume, inode, space);
            let rows = self.txn.prefix(lock::of_session(place, self.session), limit - dropped)?;
            let gone: Vec<HeldLock> =
                rows.iter().map(|(key, row)| Ok(lock::held(key, &decode(key, row)?))).collect::<Applied<_>>()?;
            dropped += gone.len();
            self.write_locks(place, &gone, &[])?;
        }
        Ok(dropped)
    }

    /// An inode goes: nobody has it open, so nobody holds a lock on it but by a mistake of its own.
    pub(super) fn forget_locks(&mut self, inode: InodeId) -> Applied<()> {
        for (key, _) in self.txn.prefix(lock::of_inode(self.volume, inode), usize::MAX)? {
            self.txn.remove(lock::by_session(SessionId(number_at(&key, 3)), self.volume, inode));
            self.txn.remove(key.to_vec());
        }
        Ok(())
    }
}

/// An owner's locks that overlap a range or touch it.
fn touching(txn: &Txn<'_>, place: Place, owner: Owner, lock: &Lock) -> Applied<Vec<HeldLock>> {
    let mut found = Vec::new();
    let mut from = lock.start.saturating_sub(1);
    let end = KeyRange::prefix(lock::of_owner(place, owner.0, owner.1)).end;
    loop {
        let start = std::ops::Bound::Included(lock::key(place, owner.0, owner.1, from).into());
        let rows = txn.range(KeyRange { start, end: end.clone() }, ROWS_AT_ONCE)?;
        for (key, row) in &rows {
            let held = lock::held(key, &decode(key, row)?);
            if held.start > lock.end.saturating_add(1) {
                return Ok(found);
            }
            from = held.end + 1;
            found.push(held);
        }
        if rows.len() < ROWS_AT_ONCE {
            return Ok(found);
        }
    }
}

/// A lock of another owner that is in the way.
pub(crate) fn first_conflict(txn: &Txn<'_>, place: Place, asker: Owner, lock: &Lock) -> Applied<Option<HeldLock>> {
    let mut first = None;
    each_conflict(txn, place, asker, lock, |held| {
        first = Some(held);
        false
    })?;
    Ok(first)
}

/// The owners of all locks that are in the way.
pub(crate) fn owners_in_the_way(txn: &Txn<'_>, place: Place, asker: Owner, lock: &Lock) -> Applied<Vec<Owner>> {
    let mut owners = Vec::new();
    each_conflict(txn, place, asker, lock, |held| {
        owners.push((held.session, held.owner));
        true
    })?;
    Ok(owners)
}

/// Goes from owner to owner and shows one lock of each that is in the way, until `wanted` says no.
fn each_conflict(
    txn: &Txn<'_>,
    place: Place,
    asker: Owner,
    lock: &Lock,
    mut wanted: impl FnMut(HeldLock) -> bool,
) -> Applied<()> {
    let space = lock::of_space(place);
    let end = KeyRange::prefix(space.clone()).end;
    let mut from = space;
    loop {
        let start = std::ops::Bound::Included(from.into());
        let rows = txn.range(KeyRange { start, end: end.clone() }, 1)?;
        let Some((key, _)) = rows.first() else { return Ok(()) };
        let owner = (SessionId(number_at(key, 3)), number_at(key, 4));
        if owner != asker
            && let Some(held) = touching(txn, place, owner, lock)?.into_iter().find(|held| held.excludes(lock))
            && !wanted(held)
        {
            return Ok(());
        }
        let next = owner.1.checked_add(1).map(|next| (owner.0, next));
        let (session, owner) = next.unwrap_or((owner.0.next(), 0));
        from = lock::of_owner(place, session, owner);
    }
}

/// Who is in the way of a lock.
pub(super) fn test(txn: &Txn<'_>, place: (VolumeId, InodeId), session: SessionId, lock: &Lock) -> Applied<Outcome> {
    find_inode(txn, place.0, place.1)?;
    let conflict = first_conflict(txn, (place.0, place.1, lock.space), (session, lock.owner), lock)?;
    Ok(Outcome::Conflict(conflict))
}
