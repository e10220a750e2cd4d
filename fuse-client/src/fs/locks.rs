//! Advisory locks: `fcntl(2)`, open file descriptions, `flock(2)`; cluster-wide, kept by the service.
//!
//! The kernel names an owner by a number (a process's table of files, or an open file) and tells when locks end only in part: closing any
//! descriptor ends a process's byte ranges (FLUSH names the owner), but what an open file itself owns ends silently with its last
//! descriptor (RELEASE). So it is remembered through which handle an owner has locked.
//!
//! Invariants:
//! * A close is answered when its locks are given back, but does not wait for long for a cluster that is out of reach: the caller may be
//!   a process that was killed. They are given back as soon as the cluster can be reached.
//! * A wait for a lock ends with any signal, as on a local file system.

use super::waiting::Patience;
use super::{FileSystem, Volume, unexpected};
use crate::device::{Answer, Reply};
use crate::sync::lock as locked;
use holdfast_client::{Call, Reply as Answered};
use holdfast_types::InodeId;
use holdfast_wire::lock::{HeldLock, Lock, LockSpace};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

/// The whole of a file.
const ALL: (u64, u64) = (0, i64::MAX as u64);

/// File, space, owner, and the handle that it was asked for through.
type Locker = (InodeId, LockSpace, u64, u64);

/// Who may hold locks.
#[derive(Debug, Default)]
pub(super) struct Lockers(Mutex<BTreeSet<Locker>>);

impl Lockers {
    fn asked(&self, inode: InodeId, lock: &Lock, handle: u64) {
        locked(&self.0).insert((inode, lock.space, lock.owner, handle));
    }

    /// A process closes a descriptor of a file: what gives its byte ranges back, if it may have any.
    pub(super) fn closed(&self, inode: InodeId, owner: u64) -> Option<Lock> {
        let found = take(&mut locked(&self.0), of_owner(inode, LockSpace::Range, owner), |_| true);
        (!found.is_empty()).then(|| unlock(LockSpace::Range, owner))
    }

    /// The last descriptor of an open file is closed: what gives back all that was locked through it.
    fn released(&self, inode: InodeId, handle: u64) -> Vec<Lock> {
        let mut lockers = locked(&self.0);
        let range = (inode, LockSpace::Range, 0, 0)..=(inode, LockSpace::Whole, u64::MAX, u64::MAX);
        let found = take(&mut lockers, range, |(.., through)| *through == handle);
        // The kernel may have given the number of an open file that is gone to the next one, and tells of the end of the first late.
        let goes = |space, owner| lockers.range(of_owner(inode, space, owner)).next().is_none();
        let gone = found.into_iter().filter(|(_, space, owner, _)| goes(*space, *owner));
        gone.map(|(_, space, owner, _)| unlock(space, owner)).collect()
    }
}

/// An owner's, through whichever handle.
fn of_owner(inode: InodeId, space: LockSpace, owner: u64) -> RangeInclusive<Locker> {
    (inode, space, owner, 0)..=(inode, space, owner, u64::MAX)
}

fn take(
    lockers: &mut BTreeSet<Locker>,
    range: RangeInclusive<Locker>,
    wanted: impl Fn(&&Locker) -> bool,
) -> Vec<Locker> {
    let found: Vec<Locker> = lockers.range(range).filter(wanted).copied().collect();
    for locker in &found {
        lockers.remove(locker);
    }
    found
}

fn unlock(space: LockSpace, owner: u64) -> Lock {
    Lock { space, owner, pid: 0, start: ALL.0, end: ALL.1, kind: None }
}

impl<V: Volume> FileSystem<V> {
    pub(super) fn set_lock(self: &Arc<Self>, reply: Reply, inode: InodeId, handle: u64, lock: Lock, wait: bool) {
        let lock = match lock.space {
            // What an open file owns as a whole is known by its handle, whose number is never given twice.
            LockSpace::Whole => Lock { start: ALL.0, end: ALL.1, owner: handle, ..lock },
            LockSpace::Range => lock,
        };
        if lock.kind.is_some() {
            // Before it is granted: a caller that is killed while it waits closes its files at once.
            self.lockers.asked(inode, &lock, handle);
        }
        let call = Call::SetLock { inode, lock, wait: wait && lock.kind.is_some() };
        let patience = if wait { Patience::None } else { Patience::Long };
        self.ask_within(reply, call, patience, move |fs, reply, answered| match answered {
            Answered::Locked { granted: true } => {
                if lock.kind.is_some() {
                    // And again: another thread may have closed another descriptor of the file while this one waited.
                    fs.lockers.asked(inode, &lock, handle);
                }
                reply.done();
            }
            Answered::Locked { granted: false } => reply.error(Errno::AGAIN),
            _ => unexpected(reply),
        });
    }

    pub(super) fn test_lock(self: &Arc<Self>, reply: Reply, inode: InodeId, lock: Lock) {
        self.ask(reply, Call::TestLock { inode, lock }, |fs, reply, answered| match answered {
            Answered::Conflict(conflict) => {
                // A process of another host has no number here.
                let here = |held: &HeldLock| Some(held.session) == fs.volume.session();
                let shown = conflict.map(|held| if here(&held) { held } else { HeldLock { pid: 0, ..held } });
                reply.finish(Ok(Answer::Lock(shown)));
            }
            _ => unexpected(reply),
        });
    }

    /// Gives locks back, then goes on.
    pub(super) fn unlock_then(self: &Arc<Self>, reply: Reply, inode: InodeId, lock: Lock, next: Call) {
        let call = Call::SetLock { inode, lock, wait: false };
        self.ask_patiently(reply, call, Patience::Short, move |fs, reply, result| {
            if let Err(error) = result {
                tracing::debug!(%inode, %error, "a close did not wait until its locks were given back");
            }
            fs.ask_done(reply, next);
        });
    }

    /// Gives back what was locked through a handle; nobody waits for it.
    pub(super) fn unlock_released(&self, inode: InodeId, handle: u64) {
        for lock in self.lockers.released(inode, handle) {
            let done = move |result: Result<Answered, _>| {
                if let Err(error) = result {
                    tracing::debug!(%inode, %error, "locks of a closed file were not given back");
                }
            };
            self.volume.call(Call::SetLock { inode, lock, wait: false }, Box::new(done));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::lock::LockKind;

    const F: InodeId = InodeId(9);

    fn lock(space: LockSpace, owner: u64) -> Lock {
        Lock { space, owner, pid: 1, start: 5, end: 6, kind: Some(LockKind::Shared) }
    }

    #[test]
    fn a_close_ends_the_ranges_of_its_process_and_a_release_what_the_file_owned() {
        let lockers = Lockers::default();
        lockers.asked(F, &lock(LockSpace::Range, 1), 10);
        lockers.asked(F, &lock(LockSpace::Range, 1), 11);
        lockers.asked(F, &lock(LockSpace::Range, 2), 10);
        lockers.asked(F, &lock(LockSpace::Whole, 3), 10);
        lockers.asked(InodeId(8), &lock(LockSpace::Range, 1), 12);
        assert_eq!(lockers.closed(F, 1), Some(unlock(LockSpace::Range, 1)));
        assert_eq!(lockers.closed(F, 1), None, "through whichever handle it had locked");
        assert_eq!(lockers.closed(F, 3), None, "whole-file locks belong to the open file");
        assert_eq!(lockers.released(F, 11), []);
        lockers.asked(F, &lock(LockSpace::Range, 4), 10);
        lockers.asked(F, &lock(LockSpace::Range, 4), 13);
        assert_eq!(lockers.released(F, 10), [unlock(LockSpace::Range, 2), unlock(LockSpace::Whole, 3)]);
        assert_eq!(lockers.closed(InodeId(8), 1), Some(unlock(LockSpace::Range, 1)));
    }
}
