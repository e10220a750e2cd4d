//! Who waits for a lock: in the leader's memory, for a new leader is asked again.
//!
//! * A wait is a read: it holds no sequence, so a lock that is held for hours holds up nothing but its waiter.
//! * A silent session whose locks somebody wants is fenced, and they end with it; nobody waits for a day.
//! * A wait that would close a circle of owners waiting for each other is refused, whichever hosts they are on. Whole-file locks are
//!   left out, as on Linux.

use super::lead::ReadFor;
use crate::api::ticks;
use crate::core::{MetadataCore, Waiter};
use crate::error::Applied;
use crate::ops::lock::{Owner, first_conflict, owners_in_the_way};
use crate::tables::lock::Place;
use crate::txn::Txn;
use holdfast_store::Batch;
use holdfast_types::limits::{DRIFT_MARGIN, SESSION_TTL};
use holdfast_types::{InodeId, SessionId, ShardId, VolumeId};
use holdfast_wire::lock::{Lock, LockSpace, closes_circle};
use holdfast_wire::metadata::MetadataError;
use holdfast_wire::namespace::{NamespaceError, Query};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// For how long somebody who was refused a lock counts as wanting it: longer than a session may be silent.
const WANTED_TICKS: u64 = 2 * ticks(SESSION_TTL) + ticks(DRIFT_MARGIN);

/// How long somebody who was told that nothing is in the way has to ask again before the next one is told. By eye.
const COMES_TICKS: u64 = ticks(Duration::from_secs(1));

/// Somebody waits for a lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct LockWait {
    pub(super) waiter: Waiter,
    session: SessionId,
    volume: VolumeId,
    inode: InodeId,
    lock: Lock,
}

/// Who waits, by place and in the order of asking.
#[derive(Debug, Default)]
pub(super) struct LockWaits {
    waits: BTreeMap<Place, Vec<LockWait>>,
    /// Where some were not told that nothing is in the way, since others before them were; and when they are, should those not come.
    look_again: BTreeMap<Place, u64>,
}

impl LockWaits {
    pub(super) fn all(&self) -> impl Iterator<Item = &LockWait> {
        self.waits.values().flatten()
    }

    fn push(&mut self, wait: LockWait) {
        self.waits.entry(wait.place()).or_default().push(wait);
    }
}

impl LockWait {
    /// Whether it will be in the way of another one once it has what it waits for.
    fn comes_before(&self, other: &Self) -> bool {
        self.owner() != other.owner() && self.lock.held_by(self.session).is_some_and(|held| held.excludes(&other.lock))
    }

    fn owner(&self) -> Owner {
        (self.session, self.lock.owner)
    }

    fn place(&self) -> Place {
        (self.volume, self.inode, self.lock.space)
    }
}

impl MetadataCore {
    /// Something is in the way of a lock: its asker waits, unless that could never end.
    pub(super) fn await_lock(&mut self, waiter: Waiter, session: SessionId, inode: InodeId, lock: Lock) {
        let Some(volume) = self.volumes.machine.sessions().get(&session).map(|row| row.volume) else { return };
        let wait = LockWait { waiter, session, volume, inode, lock };
        self.forget_lock_waits();
        match self.would_wait_for_itself(&wait) {
            Ok(false) => self.volumes_lead.lock_waits.push(wait),
            Ok(true) => self.refuse(waiter.asker, ShardId::VOLUMES, NamespaceError::Deadlock.into()),
            Err(fail) => {
                let reason = crate::replica::describe(&fail);
                self.refuse(waiter.asker, ShardId::VOLUMES, MetadataError::Unavailable { reason });
            }
        }
    }

    /// Whether the owners it would wait for wait, directly or not, for its own.
    fn would_wait_for_itself(&self, wait: &LockWait) -> Applied<bool> {
        if wait.lock.space == LockSpace::Whole {
            return Ok(false);
        }
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        let in_the_way = |next: &LockWait| owners_in_the_way(&txn, next.place(), next.owner(), &next.lock);
        let waits = |owner| {
            let of_owner = |wait: &&LockWait| wait.owner() == owner && wait.lock.space == LockSpace::Range;
            self.volumes_lead.lock_waits.all().filter(of_owner).copied().collect()
        };
        closes_circle(*wait, wait.owner(), in_the_way, waits)
    }

    /// Locks were set or given back in these places: those for whom nothing is in the way now look again. (Their read is repeated, as its
    /// first one is long over.) Of those who exclude each other only the first, or all of them would ask and all but one in vain.
    pub(super) fn wake_lock_waits(&mut self, places: BTreeSet<Place>) {
        let mut ready: Vec<LockWait> = Vec::new();
        for place in places {
            let Some(waits) = self.volumes_lead.lock_waits.waits.remove(&place) else { continue };
            let first = ready.len();
            for wait in waits.into_iter().filter(|wait| self.is_open(wait.waiter.asker)).collect::<Vec<_>>() {
                if !self.is_free(&wait) {
                    self.volumes_lead.lock_waits.push(wait);
                } else if ready[first..].iter().any(|before| before.comes_before(&wait)) {
                    let at = self.ticks + COMES_TICKS;
                    self.volumes_lead.lock_waits.look_again.insert(place, at);
                    self.volumes_lead.lock_waits.push(wait);
                } else {
                    ready.push(wait);
                }
            }
        }
        for wait in ready {
            let query = Query::AwaitLock { inode: wait.inode, lock: wait.lock };
            self.volumes_read(ReadFor::Query(wait.waiter, wait.session, query));
        }
    }

    fn is_free(&self, wait: &LockWait) -> bool {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        // A table that cannot be read is found out by the read.
        first_conflict(&txn, wait.place(), wait.owner(), &wait.lock).map_or(true, |conflict| conflict.is_none())
    }

    /// Sessions whose locks others want, by waiting or by having been refused not long ago.
    pub(super) fn holders_wanted(&mut self) -> BTreeSet<SessionId> {
        let now = self.ticks;
        self.volumes_lead.locks_wanted.retain(|_, at| now < *at + WANTED_TICKS);
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        // What processes of one host want of each other is no reason to end their session.
        let holders = |wait: &LockWait| {
            let owners = owners_in_the_way(&txn, wait.place(), wait.owner(), &wait.lock).unwrap_or_default();
            let asker = wait.session;
            owners.into_iter().map(|(session, _)| session).filter(move |session| *session != asker)
        };
        let waited_for = self.volumes_lead.lock_waits.all().flat_map(holders);
        waited_for.chain(self.volumes_lead.locks_wanted.keys().copied()).collect()
    }

    /// Waits that nobody waits any more.
    fn forget_lock_waits(&mut self) {
        let mut all = std::mem::take(&mut self.volumes_lead.lock_waits);
        all.waits.retain(|_, waits| {
            waits.retain(|wait| self.is_open(wait.waiter.asker));
            !waits.is_empty()
        });
        self.volumes_lead.lock_waits = all;
    }

    /// Those who must be answered are told to ask again; those of sessions that are over are told so.
    pub(super) fn tick_lock_waits(&mut self) {
        self.forget_lock_waits();
        let LockWaits { waits, look_again } = std::mem::take(&mut self.volumes_lead.lock_waits);
        for wait in waits.into_values().flatten() {
            if let Err(error) = self.session_state(wait.session) {
                self.refuse(wait.waiter.asker, ShardId::VOLUMES, error);
            } else if wait.waiter.is_due(self.now) {
                let reason = "another owner still holds the lock".into();
                self.refuse(wait.waiter.asker, ShardId::VOLUMES, MetadataError::Unavailable { reason });
            } else {
                self.volumes_lead.lock_waits.push(wait);
            }
        }
        let now = self.ticks;
        let (due, later): (BTreeMap<_, _>, _) = look_again.into_iter().partition(|(_, at)| *at <= now);
        self.volumes_lead.lock_waits.look_again = later;
        self.wake_lock_waits(due.into_keys().collect());
    }
}
