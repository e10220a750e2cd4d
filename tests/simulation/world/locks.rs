//! Locks that scripts ask for: each slot of a client is an owner, as a process is.
//!
//! Whoever holds locks gives them back before long, and nobody waits in a circle that the service does not see: it knows of byte
//! ranges only, so a slot that waits for a whole file holds nothing.

use holdfast_client_core::{Call, Reply};
use holdfast_types::InodeId;
use holdfast_types::prng::Prng;
use holdfast_wire::lock::{Lock, LockKind, LockSpace};
use std::collections::BTreeMap;

/// The last byte of any file.
const END: u64 = i64::MAX as u64;
/// Bytes that ranges begin and end at.
const BYTES: u64 = 8;

/// What slots hold and want.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// Files that they may hold locks on.
    held: BTreeMap<usize, Vec<(InodeId, LockSpace)>>,
    /// Locks that they gave up asking for, and ask for once more at once.
    again: BTreeMap<usize, (InodeId, Lock)>,
}

impl Holds {
    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.again.clear();
    }

    /// Whether a slot holds any.
    pub(super) fn any(&self, slot: usize) -> bool {
        self.held.get(&slot).is_some_and(|held| !held.is_empty())
    }

    /// What gives back the oldest lock of a slot.
    pub(super) fn release(&self, slot: usize) -> Option<Call> {
        let (inode, space) = *self.held.get(&slot)?.first()?;
        let lock = Lock { space, owner: slot as u64, pid: 0, start: 0, end: END, kind: None };
        Some(Call::SetLock { inode, lock, wait: false })
    }

    /// A lock that a slot asks for.
    pub(super) fn draw(&self, prng: &mut Prng, slot: usize, inode: InodeId) -> Call {
        let free = !self.any(slot);
        let space = *prng.pick(&[LockSpace::Range, LockSpace::Range, LockSpace::Whole]);
        let (start, end) = if space == LockSpace::Whole || prng.chance(1, 4) {
            (0, END)
        } else {
            let start = prng.below(BYTES);
            (start, prng.between(start, BYTES))
        };
        let kind = match prng.below(if free { 5 } else { 6 }) {
            0 | 1 => Some(LockKind::Shared),
            2..5 => Some(LockKind::Exclusive),
            _ => None,
        };
        let lock = Lock { space, owner: slot as u64, pid: 0, start, end, kind };
        if prng.chance(1, 10) {
            let kind = kind.or(Some(LockKind::Exclusive));
            return Call::TestLock { inode, lock: Lock { kind, ..lock } };
        }
        let wait = kind.is_some() && prng.chance(1, 2) && (free || space == LockSpace::Range);
        Call::SetLock { inode, lock, wait }
    }

    /// A slot was told something about locks.
    pub(super) fn learn(&mut self, slot: usize, call: &Call, reply: &Reply) {
        let (Call::SetLock { inode, lock, .. }, Reply::Locked { granted: true }) = (call, reply) else { return };
        let held = self.held.entry(slot).or_default();
        if lock.kind.is_some() && !held.contains(&(*inode, lock.space)) {
            held.push((*inode, lock.space));
        } else if lock.kind.is_none() && (lock.start, lock.end) == (0, END) {
            held.retain(|there| *there != (*inode, lock.space));
        }
    }

    /// A slot gave up a call.
    pub(super) fn gave_up(&mut self, slot: usize, call: &Call) {
        if let Call::SetLock { inode, lock: lock @ Lock { kind: Some(_), .. }, .. } = call {
            self.again.insert(slot, (*inode, *lock));
        }
    }

    /// What a slot gave up and asks for once more: what comes late of the first call must not undo the second.
    pub(super) fn again(&mut self, slot: usize) -> Option<Call> {
        let (inode, lock) = self.again.remove(&slot)?;
        Some(Call::SetLock { inode, lock, wait: false })
    }

    /// A file is gone, and all locks on it.
    pub(super) fn forget(&mut self, inode: InodeId) {
        self.held.values_mut().for_each(|held| held.retain(|(there, _)| *there != inode));
    }
}
