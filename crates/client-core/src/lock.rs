//! Advisory locks: asked for, waited for, given back. The service decides; nothing of them is kept here.
//!
//! ```text
//! SetLock ──granted──▶ done        ──in the way──▶ AwaitLock ──free──▶ SetLock ...      (a call that waits)
//!                                  ──in the way──▶ done, not granted                     (a call that does not)
//! ```
//! * A wait is a query: it has no sequence, so that however long it takes the answers of mutations after it need not be kept.
//! * A caller who gives up stops waiting at the service, too, so that it is no edge of a circle any more. What is granted to one
//!   who gave up is given back, unless the owner had locks there before: those it believes to hold it must keep.
//! * What an owner asks for after it gave something up, or gave something back, goes out when that has come to its end. Else the late
//!   grant, or its return, would undo what the owner was told since: requests that are under way together are made in any order.

use crate::call::CallId;
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::error::ClientError;
use holdfast_types::{InodeId, ShardId};
use holdfast_wire::lock::{Lock, LockSpace};
use holdfast_wire::metadata::Request;
use holdfast_wire::namespace::{Mutation, Outcome, Query};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the service may hold a wait before it is asked again.
const WAIT_HOLD: Duration = Duration::from_secs(10);

/// A lock that a call asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub id: CallId,
    pub inode: InodeId,
    pub lock: Lock,
    pub wait: bool,
}

/// Whose it is, and on what.
type Owner = (InodeId, LockSpace, u64);

impl Asked {
    fn owner(&self) -> Owner {
        (self.inode, self.lock.space, self.lock.owner)
    }
}

/// Calls for locks that are not over.
#[derive(Default)]
pub(crate) struct Locks {
    /// Requests that wait at the service, by call.
    waits: BTreeMap<CallId, u64>,
    /// Calls whose mutation is under way.
    asked: BTreeMap<CallId, Asked>,
    /// Owners that must not be overtaken by what they ask for next.
    ending: BTreeMap<Owner, Ending>,
}

/// See the last rule above.
#[derive(Default)]
struct Ending {
    under_way: usize,
    behind: Vec<Asked>,
}

impl ClientCore {
    pub(crate) fn set_lock(&mut self, asked: Asked) {
        match self.locks.ending.get_mut(&asked.owner()) {
            Some(ending) => ending.behind.push(asked),
            None if asked.lock.kind.is_none() => self.send_unlock(asked),
            None => self.send_lock(asked),
        }
    }

    fn send_unlock(&mut self, asked: Asked) {
        self.locks.ending.entry(asked.owner()).or_default().under_way += 1;
        self.send_lock(asked);
    }

    fn send_lock(&mut self, asked: Asked) {
        self.locks.asked.insert(asked.id, asked);
        self.mutate(Mutation::SetLock { inode: asked.inode, lock: asked.lock }, Purpose::Lock(asked));
    }

    pub(crate) fn lock_answered(&mut self, asked: Asked, result: Result<Outcome, ClientError>) {
        let Asked { id, inode, lock, wait } = asked;
        self.locks.asked.remove(&id);
        if !self.waits(id) {
            return self.late_lock(asked, &result);
        }
        match result {
            Ok(Outcome::Locked { in_the_way: Some(_), .. }) if wait => {
                let request = Request::Query(Query::AwaitLock { inode, lock });
                let purpose = Purpose::AwaitLock(asked);
                let number = self.control_start(ShardId::VOLUMES, request, purpose, Some(WAIT_HOLD));
                self.locks.waits.insert(id, number);
            }
            Ok(Outcome::Locked { .. }) | Err(_) => self.call_answered(id, result),
            Ok(_) => self.complete(id, Err(ClientError::Protocol { detail: "a lock answered something else" })),
        }
        if lock.kind.is_none() {
            self.lock_ended(asked.owner());
        }
    }

    /// What came of a request whose caller has given up.
    fn late_lock(&mut self, asked: Asked, result: &Result<Outcome, ClientError>) {
        let granted = matches!(result, Ok(Outcome::Locked { in_the_way: None, replaced: false }));
        if granted && asked.lock.kind.is_some() {
            let back = Lock { kind: None, ..asked.lock };
            return self.send_lock(Asked { lock: back, wait: false, ..asked });
        }
        self.lock_ended(asked.owner());
    }

    /// Something that must not be overtaken is over: what waited for it goes on.
    fn lock_ended(&mut self, owner: Owner) {
        let Some(ending) = self.locks.ending.get_mut(&owner) else { return };
        ending.under_way -= 1;
        if ending.under_way > 0 {
            return;
        }
        let behind = self.locks.ending.remove(&owner).map(|ending| ending.behind);
        for next in behind.into_iter().flatten() {
            // Locks are given back whether or not anybody waits for it.
            if next.lock.kind.is_none() || self.waits(next.id) {
                self.set_lock(next);
            }
        }
    }

    /// Nothing was in the way a moment ago, or there is no sense in waiting.
    pub(crate) fn lock_awaited(&mut self, asked: Asked, result: Result<Outcome, ClientError>) {
        self.locks.waits.remove(&asked.id);
        match result {
            Ok(_) if self.waits(asked.id) => self.set_lock(asked),
            Ok(_) => {}
            Err(error) => self.complete(asked.id, Err(error)),
        }
    }

    /// The caller gives up.
    pub(crate) fn give_up(&mut self, id: CallId, error: ClientError) {
        if let Some(number) = self.locks.waits.remove(&id) {
            self.control_drop(number);
        }
        // What gives locks back is counted already.
        if let Some(asked) = self.locks.asked.get(&id).filter(|asked| asked.lock.kind.is_some() && self.waits(id)) {
            self.locks.ending.entry(asked.owner()).or_default().under_way += 1;
        }
        self.complete(id, Err(error));
    }
}
