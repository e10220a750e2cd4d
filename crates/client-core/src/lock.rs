//! Advisory locks: asked for, waited for, given back.
//!
//! Who decides depends on who else may ask. A session that caches is alone on its volume and decides itself (`alone`), without a message.
//! Otherwise the service does:
//! ```text
//! SetLock ──granted──▶ done        ──in the way──▶ AwaitLock ──free──▶ SetLock ...      (a call that waits)
//!                                  ──in the way──▶ done, not granted                     (a call that does not)
//! ```
//! * A wait is a query: it has no sequence, so that however long it takes the answers of mutations after it need not be kept.
//! * A caller who gives up stops waiting at the service, too, so that it is no edge of a circle any more. What is granted to one
//!   who gave up is given back, unless the owner had locks there before: those it believes to hold it must keep.
//! * One request of an owner is under way at a time. Requests under way together are made in any order: a late grant, or its return,
//!   would undo what the owner was told since, and nobody here would know what the service has on record.

mod alone;
mod table;

use crate::call::{Call, CallId};
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::error::ClientError;
use alone::Alone;
pub(crate) use alone::Decides;
use holdfast_types::{InodeId, ShardId};
use holdfast_wire::lock::{Lock, LockSpace};
use holdfast_wire::metadata::Request;
use holdfast_wire::namespace::{Mutation, NamespaceError, Outcome, Query};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use table::{Owner, Table};

/// How long the service may hold a wait before it is asked again.
pub(crate) const WAIT_HOLD: Duration = Duration::from_secs(10);

/// A lock that a call asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub id: CallId,
    pub inode: InodeId,
    pub lock: Lock,
    pub wait: bool,
}

impl Asked {
    fn owner(&self) -> Owner {
        (self.inode, self.lock.space, self.lock.owner)
    }

    fn call(&self) -> Call {
        Call::SetLock { inode: self.inode, lock: self.lock, wait: self.wait }
    }
}

/// Locks that are held, and calls for locks that are not over.
#[derive(Default)]
pub(crate) struct Locks {
    /// What this mount holds, whoever has granted it.
    table: Table,
    /// Requests that wait at the service, by call.
    waits: BTreeMap<CallId, (u64, Asked)>,
    /// Owners with a request under way, and what they ask for next.
    busy: BTreeMap<Owner, VecDeque<Asked>>,
    /// Owners of whom the service may have locks on record.
    recorded: BTreeSet<Owner>,
    alone: Alone,
}

impl ClientCore {
    pub(crate) fn set_lock(&mut self, asked: Asked) {
        match self.who_decides() {
            Some(Decides::Here) => self.set_lock_here(asked),
            Some(_) => self.set_lock_there(asked),
            None => self.locks.alone.park(asked.id, asked.call()),
        }
    }

    pub(crate) fn test_lock(&mut self, id: CallId, inode: InodeId, lock: Lock) {
        match self.who_decides() {
            Some(Decides::Here) => self.test_lock_here(id, inode, lock),
            Some(_) => {
                let request = Request::Query(Query::TestLock { inode, lock });
                self.control_start(ShardId::VOLUMES, request, Purpose::Call(id), None);
            }
            None => self.locks.alone.park(id, Call::TestLock { inode, lock }),
        }
    }

    fn set_lock_there(&mut self, asked: Asked) {
        match self.locks.busy.get_mut(&asked.owner()) {
            Some(behind) => behind.push_back(asked),
            None => self.send_lock(asked),
        }
    }

    fn send_lock(&mut self, asked: Asked) {
        self.locks.busy.entry(asked.owner()).or_default();
        if asked.lock.kind.is_some() {
            self.locks.recorded.insert(asked.owner());
        }
        self.mutate(Mutation::SetLock { inode: asked.inode, lock: asked.lock }, Purpose::Lock(asked));
    }

    pub(crate) fn lock_answered(&mut self, asked: Asked, result: Result<Outcome, ClientError>) {
        let Asked { id, inode, lock, wait } = asked;
        let session = self.session.id;
        let mut alone_there = false;
        match &result {
            Ok(Outcome::Locked { in_the_way: None, replaced }) => {
                alone_there = !replaced;
                self.locks.table.set(session, inode, &lock);
            }
            Ok(Outcome::Locked { in_the_way: Some(_), .. }) if lock.space == LockSpace::Whole => {
                self.locks.table.set(session, inode, &Lock { kind: None, ..lock });
            }
            Err(ClientError::Namespace(NamespaceError::NotFound)) => self.locks.table.forget(inode),
            _ => {}
        }
        if self.locks.table.of(asked.owner()).is_empty() {
            self.locks.recorded.remove(&asked.owner());
        }
        if !self.waits(id) {
            if alone_there && lock.kind.is_some() {
                // Its caller has given up and had nothing there before.
                return self.send_lock(Asked { lock: Lock { kind: None, ..lock }, wait: false, ..asked });
            }
        } else if wait && matches!(result, Ok(Outcome::Locked { in_the_way: Some(_), .. })) {
            let request = Request::Query(Query::AwaitLock { inode, lock });
            let purpose = Purpose::AwaitLock(asked);
            let number = self.control_start(ShardId::VOLUMES, request, purpose, Some(WAIT_HOLD));
            self.locks.waits.insert(id, (number, asked));
        } else if matches!(result, Ok(Outcome::Locked { .. }) | Err(_)) {
            self.call_answered(id, result);
        } else {
            self.complete(id, Err(ClientError::Protocol { detail: "a lock answered something else" }));
        }
        self.next_of_owner(asked.owner());
    }

    /// A request of an owner is over: the next one goes.
    fn next_of_owner(&mut self, owner: Owner) {
        while let Some(next) = self.locks.busy.get_mut(&owner).and_then(VecDeque::pop_front) {
            // Locks are given back whether or not anybody waits for it.
            if next.lock.kind.is_none() || self.waits(next.id) {
                return self.send_lock(next);
            }
        }
        self.locks.busy.remove(&owner);
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
        if let Some((number, _)) = self.locks.waits.remove(&id) {
            self.control_drop(number);
        }
        self.locks.alone.forget_wait(id);
        self.complete(id, Err(error));
    }
}
