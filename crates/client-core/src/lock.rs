//! Advisory locks: asked for, waited for, given back. The service decides; nothing of them is kept here.
//!
//! ```text
//! SetLock ──granted──▶ done        ──in the way──▶ AwaitLock ──free──▶ SetLock ...      (a call that waits)
//!                                  ──in the way──▶ done, not granted                     (a call that does not)
//! ```
//! * A wait is a query: it has no sequence, so that however long it takes the answers of mutations after it need not be kept.
//! * A caller who gives up stops waiting at the service, too, so that it is no edge of a circle any more. What is granted to one
//!   who gave up is given back, unless the owner had locks there before: those it believes to hold it must keep.

use crate::call::{CallId, Reply};
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::error::ClientError;
use holdfast_types::{InodeId, ShardId};
use holdfast_wire::lock::Lock;
use holdfast_wire::metadata::Request;
use holdfast_wire::namespace::{Mutation, Outcome, Query};
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

impl ClientCore {
    pub(crate) fn set_lock(&mut self, asked: Asked) {
        self.mutate(Mutation::SetLock { inode: asked.inode, lock: asked.lock }, Purpose::Lock(asked));
    }

    pub(crate) fn lock_answered(&mut self, asked: Asked, result: Result<Outcome, ClientError>) {
        let Asked { id, inode, lock, wait } = asked;
        match result {
            Ok(Outcome::Locked { in_the_way: None, replaced }) if !self.waits(id) => {
                if lock.kind.is_some() && !replaced {
                    let back = Lock { kind: None, ..lock };
                    self.set_lock(Asked { lock: back, wait: false, ..asked });
                }
            }
            Ok(Outcome::Locked { in_the_way: Some(_), .. }) if wait && self.waits(id) => {
                let request = Request::Query(Query::AwaitLock { inode, lock });
                let purpose = Purpose::AwaitLock(asked);
                let number = self.control_start(ShardId::VOLUMES, request, purpose, Some(WAIT_HOLD));
                self.lock_waits.insert(id, number);
            }
            Ok(Outcome::Locked { in_the_way, .. }) => {
                self.complete(id, Ok(Reply::Locked { granted: in_the_way.is_none() }))
            }
            Ok(_) => self.complete(id, Err(ClientError::Protocol { detail: "a lock answered something else" })),
            Err(error) => self.complete(id, Err(error)),
        }
    }

    /// Nothing was in the way a moment ago, or there is no sense in waiting.
    pub(crate) fn lock_awaited(&mut self, asked: Asked, result: Result<Outcome, ClientError>) {
        self.lock_waits.remove(&asked.id);
        match result {
            Ok(_) if self.waits(asked.id) => self.set_lock(asked),
            Ok(_) => {}
            Err(error) => self.complete(asked.id, Err(error)),
        }
    }

    /// The caller gives up.
    pub(crate) fn cancel(&mut self, id: CallId) {
        if let Some(number) = self.lock_waits.remove(&id) {
            self.control_drop(number);
        }
        self.complete(id, Err(ClientError::Interrupted));
    }
}
