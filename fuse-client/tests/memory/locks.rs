//! Locks of the volume in memory: those of one session.

use holdfast_types::{InodeId, SessionId};
use holdfast_wire::lock::{HeldLock, Lock, LockSpace, replaced};
use std::collections::BTreeMap;

pub const SESSION: SessionId = SessionId(1);

#[derive(Default)]
pub struct Locks(BTreeMap<(InodeId, LockSpace), Vec<HeldLock>>);

impl Locks {
    pub fn conflict(&self, inode: InodeId, lock: &Lock) -> Option<HeldLock> {
        let all = self.0.get(&(inode, lock.space))?;
        all.iter().find(|held| held.owner != lock.owner && held.excludes(lock)).copied()
    }

    pub fn set(&mut self, inode: InodeId, lock: &Lock) -> bool {
        let conflict = self.conflict(inode, lock).is_some();
        let all = self.0.entry((inode, lock.space)).or_default();
        let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|held| held.owner == lock.owner);
        if conflict {
            if lock.space == LockSpace::Whole {
                *all = others;
            }
            return false;
        }
        *all = others;
        all.extend(replaced(&own, SESSION, lock));
        true
    }

    pub fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}
