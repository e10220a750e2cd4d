//! Advisory locks: a row for each, and how many a session holds on an inode.
//!
//! A lock's key ends in its *last* byte: an owner's locks do not overlap, so those that overlap a range, or touch it, are the first ones
//! from its start on, and are found without reading the others.

use super::{Key, Row, number_at};
use holdfast_types::{InodeId, SessionId, VolumeId};
use holdfast_wire::lock::{HeldLock, LockKind, LockSpace};
use serde::{Deserialize, Serialize};

/// Locks.
pub(crate) const LOCK: u8 = 0x18;
/// Inodes that a session has locks on.
pub(crate) const LOCK_BY_SESSION: u8 = 0x19;

/// Where locks see each other.
pub(crate) type Place = (VolumeId, InodeId, LockSpace);

/// A lock; the rest of it is in its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockRow {
    pub(crate) start: u64,
    pub(crate) exclusive: bool,
    pub(crate) pid: u32,
}

impl Row for LockRow {}

/// How many locks a session holds on an inode; at least one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocksRow {
    pub(crate) count: u32,
}

impl Row for LocksRow {}

fn space_number(space: LockSpace) -> u64 {
    match space {
        LockSpace::Range => 0,
        LockSpace::Whole => 1,
    }
}

/// All locks of an inode.
pub(crate) fn of_inode(volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(LOCK).number(volume.0).number(inode.0).done()
}

fn in_space((volume, inode, space): Place) -> Key {
    Key::of(LOCK).number(volume.0).number(inode.0).number(space_number(space))
}

/// All locks of an inode in one space.
pub(crate) fn of_space(place: Place) -> Vec<u8> {
    in_space(place).done()
}

/// All locks of a session in one space of an inode.
pub(crate) fn of_session(place: Place, session: SessionId) -> Vec<u8> {
    in_space(place).number(session.0).done()
}

/// All locks of an owner.
pub(crate) fn of_owner(place: Place, session: SessionId, owner: u64) -> Vec<u8> {
    in_space(place).number(session.0).number(owner).done()
}

/// Key of a lock that ends at `end`.
pub(crate) fn key(place: Place, session: SessionId, owner: u64, end: u64) -> Vec<u8> {
    in_space(place).number(session.0).number(owner).number(end).done()
}

/// Where a lock is, from its key.
pub(crate) fn place(key: &[u8]) -> Place {
    let space = if number_at(key, 2) == space_number(LockSpace::Range) { LockSpace::Range } else { LockSpace::Whole };
    (VolumeId(number_at(key, 0)), InodeId(number_at(key, 1)), space)
}

/// A lock from its key and its row.
pub(crate) fn held(key: &[u8], row: &LockRow) -> HeldLock {
    HeldLock {
        session: SessionId(number_at(key, 3)),
        owner: number_at(key, 4),
        pid: row.pid,
        start: row.start,
        end: number_at(key, 5),
        kind: if row.exclusive { LockKind::Exclusive } else { LockKind::Shared },
    }
}

/// Key of a session's count on an inode.
pub(crate) fn by_session(session: SessionId, volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(LOCK_BY_SESSION).number(session.0).number(volume.0).number(inode.0).done()
}

/// All counts of a session.
pub(crate) fn all_by_session(session: SessionId) -> Vec<u8> {
    Key::of(LOCK_BY_SESSION).number(session.0).done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{assert_round_trip, mark};

    #[test]
    fn a_lock_is_in_its_key_and_its_row() {
        let place = (VolumeId(1), InodeId(2), LockSpace::Whole);
        let key = key(place, SessionId(3), 4, 5);
        let row = LockRow { start: 1, exclusive: true, pid: 9 };
        let kind = LockKind::Exclusive;
        assert_eq!(held(&key, &row), HeldLock { session: SessionId(3), owner: 4, pid: 9, start: 1, end: 5, kind });
        assert_eq!(super::place(&key), place);
        assert!(key.starts_with(&of_owner(place, SessionId(3), 4)) && key.starts_with(&of_inode(place.0, place.1)));
        let counted = by_session(SessionId(3), VolumeId(1), InodeId(2));
        assert_eq!(mark::volume_and_inode(&counted), (VolumeId(1), InodeId(2)));
        assert_round_trip(row);
        assert_round_trip(LocksRow { count: 3 });
    }
}
