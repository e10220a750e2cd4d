//! Locks while this session is alone on its volume: granted and waited for here.
//!
//! ```text
//!            caching began, nothing is under way to the service
//!   Service ───────────────────────────────────────────────────▶ Here
//!      ▲                                                          │ caching ends
//!      └──── the service has all of it on record ── HandingOver ◀─┘
//! ```
//! Invariants:
//! * Here nobody else has a lock: a session becomes the only one when the locks of all others are gone, and nobody else is admitted
//!   before it has said that it stopped caching, which it says after `HandingOver`.
//! * Nothing is granted here without a lease: somebody else may have been admitted without our knowing. Calls wait until it is renewed.
//! * What changed here is handed over in two steps, first what was given back, then what is held: what one owner gave back another may
//!   hold now.

use super::table::{Asking, Owner};
use super::{Asked, Locks};
use crate::call::{Call, CallId, Reply};
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::error::ClientError;
use holdfast_types::InodeId;
use holdfast_wire::lock::{HeldLock, Lock, LockKind, LockSpace, closes_circle};
use holdfast_wire::namespace::{FileKind, Mutation, NamespaceError, Outcome};
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;

/// Locks that are handed over at the same time.
const HANDED_AT_ONCE: usize = 64;

/// Who grants locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Decides {
    #[default]
    Service,
    Here,
    HandingOver,
}

/// See above.
#[derive(Default)]
pub(super) struct Alone {
    decides: Decides,
    /// Owners whose locks are not what the service has on record of them.
    changed: BTreeSet<Owner>,
    /// Who waits for a lock here, in the order of asking.
    waiting: Vec<Asked>,
    /// Something was given back, and those who wait have not looked yet.
    given_back: bool,
    /// Calls that came while nobody could decide.
    parked: Vec<(CallId, Call)>,
    /// What is still to be said to the service: first to be given back, then to be set.
    to_give_back: VecDeque<(InodeId, Lock)>,
    to_set: VecDeque<(InodeId, Lock)>,
    under_way: usize,
    /// What is under way was given back.
    giving_back: bool,
}

impl Alone {
    pub fn park(&mut self, id: CallId, call: Call) {
        self.parked.push((id, call));
    }

    pub fn forget_wait(&mut self, id: CallId) {
        self.waiting.retain(|asked| asked.id != id);
    }
}

impl Locks {
    /// Whether the service knows of every lock that was granted.
    pub fn all_recorded(&self) -> bool {
        self.alone.decides == Decides::Service
    }

    /// An owner's locks were changed here.
    fn changed_here(&mut self, owner: Owner) {
        if self.table.of(owner).is_empty() && !self.recorded.contains(&owner) {
            self.alone.changed.remove(&owner);
        } else {
            self.alone.changed.insert(owner);
        }
    }
}

impl ClientCore {
    /// Who answers a call for a lock now; nobody, while that is changing or not known.
    pub(super) fn who_decides(&self) -> Option<Decides> {
        match self.locks.alone.decides {
            Decides::Service if !self.caching() => Some(Decides::Service),
            Decides::Here if self.may_serve_cache() => Some(Decides::Here),
            Decides::Service | Decides::Here | Decides::HandingOver => None,
        }
    }

    /// Lets this session decide, or the service, when that has changed; then goes on with what waited for it.
    pub(crate) fn settle_locks(&mut self) {
        match self.locks.alone.decides {
            Decides::Service if self.caching() && self.locks.busy.is_empty() => {
                self.locks.alone.decides = Decides::Here;
                for (number, asked) in std::mem::take(&mut self.locks.waits).into_values() {
                    self.control_drop(number);
                    self.locks.alone.waiting.push(asked);
                }
                self.locks.alone.given_back = true;
            }
            Decides::Here if !self.caching() => {
                self.locks.alone.decides = Decides::HandingOver;
                self.list_changed();
            }
            Decides::Service | Decides::Here | Decides::HandingOver => {}
        }
        if self.locks.alone.decides == Decides::HandingOver {
            self.hand_over();
        }
        if self.who_decides().is_some() {
            for (id, call) in std::mem::take(&mut self.locks.alone.parked) {
                self.look_again();
                self.start_lock_call(id, call);
            }
        }
        self.look_again();
    }

    /// Locks are given back whether or not anybody waits for it.
    fn start_lock_call(&mut self, id: CallId, call: Call) {
        match call {
            Call::SetLock { inode, lock, wait } if lock.kind.is_none() => {
                self.set_lock(Asked { id, inode, lock, wait });
            }
            call => self.start(id, call),
        }
    }

    // ---- deciding here ----

    pub(super) fn set_lock_here(&mut self, asked: Asked) {
        let Asked { id, inode, lock, .. } = asked;
        if lock.start > lock.end || lock.end > i64::MAX as u64 {
            return self.complete(id, Err(NamespaceError::Invalid.into()));
        }
        if lock.kind.is_none() || self.is_lockable(inode) {
            self.grant_here(asked);
        } else {
            self.query(Some(inode), Purpose::Resume(id, Box::new(asked.call())));
        }
    }

    pub(super) fn test_lock_here(&mut self, id: CallId, inode: InodeId, lock: Lock) {
        if self.is_lockable(inode) {
            self.show_conflict(id, inode, &lock);
        } else {
            self.query(Some(inode), Purpose::Resume(id, Box::new(Call::TestLock { inode, lock })));
        }
    }

    fn show_conflict(&mut self, id: CallId, inode: InodeId, lock: &Lock) {
        let first = self.locks.table.in_the_way(inode, lock).next().copied();
        self.complete(id, Ok(Reply::Conflict(first)));
    }

    /// The inode of a call for a lock is known. (It is not open here: a kernel locks only what is.)
    pub(crate) fn lock_resumed(&mut self, id: CallId, call: Call, kind: FileKind) {
        match (self.who_decides(), call) {
            (_, Call::SetLock { .. }) if kind != FileKind::File => {
                self.complete(id, Err(NamespaceError::Invalid.into()));
            }
            (Some(Decides::Here), Call::SetLock { inode, lock, wait }) => {
                self.grant_here(Asked { id, inode, lock, wait });
            }
            (Some(Decides::Here), Call::TestLock { inode, lock }) => {
                self.show_conflict(id, inode, &lock);
            }
            (_, call) => self.start(id, call),
        }
    }

    fn is_lockable(&self, inode: InodeId) -> bool {
        self.files.get(&inode).is_some_and(|file| file.is_open() && !file.gone)
    }

    fn grant_here(&mut self, asked: Asked) {
        let Asked { id, inode, lock, wait } = asked;
        if lock.kind.is_some() && !self.waits(id) {
            return;
        }
        let became = self.locks.table.ask(self.session.id, inode, &lock);
        self.locks.changed_here(asked.owner());
        match became {
            Asking::Granted => self.complete(id, Ok(Reply::Locked { granted: true })),
            Asking::TooMany => self.complete(id, Err(NamespaceError::TooManyLocks.into())),
            Asking::InTheWay if !wait => self.complete(id, Ok(Reply::Locked { granted: false })),
            Asking::InTheWay if self.would_wait_for_itself(&asked) => {
                self.complete(id, Err(NamespaceError::Deadlock.into()));
            }
            Asking::InTheWay => self.locks.alone.waiting.push(asked),
        }
        // A whole-file lock is given back by asking for another one in vain.
        let less =
            lock.kind != Some(LockKind::Exclusive) || became == Asking::InTheWay && lock.space == LockSpace::Whole;
        self.locks.alone.given_back |= less;
    }

    /// As the service sees it: byte ranges only, and an owner is the same on all files.
    fn would_wait_for_itself(&self, asked: &Asked) -> bool {
        if asked.lock.space == LockSpace::Whole {
            return false;
        }
        let in_the_way = |next: &Asked| {
            let held = self.locks.table.in_the_way(next.inode, &next.lock);
            Ok::<_, Infallible>(held.map(|held| held.owner).collect())
        };
        let waits = |owner| {
            let of_owner =
                |next: &&Asked| next.lock.owner == owner && next.lock.space == LockSpace::Range && self.waits(next.id);
            self.locks.alone.waiting.iter().filter(of_owner).copied().collect()
        };
        let Ok(circle) = closes_circle(*asked, asked.lock.owner, in_the_way, waits);
        circle
    }

    /// If something was given back: who waits for it has it now, the first to ask first.
    fn look_again(&mut self) {
        while self.who_decides() == Some(Decides::Here) && std::mem::take(&mut self.locks.alone.given_back) {
            // All of them stay on the list while each is looked at: who waits for whom is read from it.
            for asked in self.locks.alone.waiting.clone() {
                let free = self.locks.table.in_the_way(asked.inode, &asked.lock).next().is_none();
                if free {
                    self.locks.alone.forget_wait(asked.id);
                    self.grant_here(asked);
                } else if self.would_wait_for_itself(&asked) {
                    // Whom it waits for has been given more since.
                    self.locks.alone.forget_wait(asked.id);
                    self.complete(asked.id, Err(NamespaceError::Deadlock.into()));
                }
            }
        }
    }

    // ---- handing over ----

    fn list_changed(&mut self) {
        let locks = &mut self.locks;
        for owner in std::mem::take(&mut locks.alone.changed) {
            let (inode, space, number) = owner;
            if locks.recorded.contains(&owner) {
                let all = Lock { space, owner: number, pid: 0, start: 0, end: i64::MAX as u64, kind: None };
                locks.alone.to_give_back.push_back((inode, all));
            }
            let lock = |held: &HeldLock| Lock {
                space,
                owner: number,
                pid: held.pid,
                start: held.start,
                end: held.end,
                kind: Some(held.kind),
            };
            locks.alone.to_set.extend(locks.table.of(owner).iter().map(|held| (inode, lock(held))));
        }
    }

    /// Says what is still to be said; when it is all on record the service decides.
    fn hand_over(&mut self) {
        loop {
            let alone = &mut self.locks.alone;
            if alone.under_way == HANDED_AT_ONCE {
                return;
            }
            let next = match alone.to_give_back.pop_front() {
                None if alone.under_way > 0 && alone.giving_back => return,
                None => alone.to_set.pop_front(),
                next => next,
            };
            let Some((inode, lock)) = next else { break };
            alone.giving_back = lock.kind.is_none();
            alone.under_way += 1;
            self.mutate(Mutation::SetLock { inode, lock }, Purpose::HandOver(inode, lock));
        }
        if self.locks.alone.under_way == 0 {
            self.locks.alone.decides = Decides::Service;
            for asked in std::mem::take(&mut self.locks.alone.waiting) {
                self.set_lock(asked);
            }
        }
    }

    pub(crate) fn handed_over(&mut self, inode: InodeId, lock: Lock, result: Result<Outcome, ClientError>) {
        self.locks.alone.under_way -= 1;
        let owner = (inode, lock.space, lock.owner);
        match result {
            Ok(Outcome::Locked { in_the_way: None, .. }) if lock.kind.is_some() => {
                self.locks.recorded.insert(owner);
            }
            Ok(Outcome::Locked { in_the_way: None, .. }) => {
                self.locks.recorded.remove(&owner);
            }
            Err(ClientError::Namespace(NamespaceError::NotFound | NamespaceError::Invalid)) => {
                // The file is gone, and what was locked with it.
                self.locks.table.forget(inode);
                self.locks.recorded.remove(&owner);
            }
            Ok(_) | Err(_) => {
                // Whoever was granted it here believes in it. It cannot come to this: nobody else had a lock.
                self.session_over("a lock that was granted here could not be kept when another host came".into());
            }
        }
    }
}
