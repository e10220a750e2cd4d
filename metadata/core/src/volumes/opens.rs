//! Who waits until a file is not open elsewhere: in the leader's memory, for a new leader is asked again.
//!
//! ```text
//! Open ──OpenElsewhere──▶ AwaitOpen ──closed, or its holder fenced──▶ Done: Open again
//!                             └──a holder has said something since, and the policy's time is over──▶ Busy
//! ```
//! * A holder that lives is asked for a sign of it: its pending renewal is answered at once, and it renews. So who lives costs the asker
//!   two round trips, and who does not is known to be silent when its time has run out, and is fenced then.
//! * As for locks a wait is a read: it holds no sequence, however long it takes.

use super::lead::ReadFor;
use crate::api::ticks;
use crate::core::{MetadataCore, Waiter};
use crate::error::Applied;
use crate::ops::{find_inode, in_the_way_of_opening, policy};
use crate::tables::session::Phase;
use crate::txn::Txn;
use holdfast_store::Batch;
use holdfast_types::{InodeId, SessionId, ShardId, VolumeId};
use holdfast_wire::namespace::{NamespaceError, Query};
use holdfast_wire::open::Access;
use std::collections::BTreeSet;
use std::time::Duration;

/// Somebody waits until a file can be opened.
#[derive(Clone, Debug)]
pub(super) struct OpenWait {
    pub(super) waiter: Waiter,
    session: SessionId,
    volume: VolumeId,
    inode: InodeId,
    access: Access,
    /// Until then it waits for sessions that live, in ticks.
    until: u64,
    /// Sessions that have said something since it waits.
    heard: BTreeSet<SessionId>,
}

impl MetadataCore {
    /// Others have the file open: its asker waits.
    pub(super) fn await_open(
        &mut self,
        waiter: Waiter,
        session: SessionId,
        (inode, access): (InodeId, Access),
        waited: Duration,
    ) {
        let Some(volume) = self.volumes.machine.sessions().get(&session).map(|row| row.volume) else { return };
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        // A table that cannot be read is found out by the next read of it.
        let patience = find_inode(&txn, volume, inode).and_then(|row| policy(&txn, volume, &row));
        let patience = Duration::from_secs(patience.map_or(0, |policy| u64::from(policy.wait)));
        let until = self.ticks + ticks(patience.saturating_sub(waited));
        let wait = OpenWait { waiter, session, volume, inode, access, until, heard: BTreeSet::new() };
        let holders = self.holders_of(&wait).unwrap_or_default();
        self.volumes_lead.open_waits.push(wait);
        self.ask_for_a_sign(&holders);
    }

    fn holders_of(&self, wait: &OpenWait) -> Applied<Vec<SessionId>> {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        in_the_way_of_opening(&txn, (wait.volume, wait.inode), wait.session, wait.access)
    }

    /// Sessions that have open what others wait to open.
    pub(super) fn openers_wanted(&self) -> BTreeSet<SessionId> {
        self.volumes_lead.open_waits.iter().flat_map(|wait| self.holders_of(wait).unwrap_or_default()).collect()
    }

    /// Whether somebody waits for a session to show that it lives, which it has not done since.
    pub(super) fn is_sign_wanted(&self, session: SessionId) -> bool {
        let unheard = |wait: &&OpenWait| !wait.heard.contains(&session);
        let holds = |wait: &OpenWait| self.holders_of(wait).is_ok_and(|holders| holders.contains(&session));
        self.volumes_lead.open_waits.iter().filter(unheard).any(holds)
    }

    /// A session has said something.
    pub(super) fn heard_of_opener(&mut self, session: SessionId) {
        if self.volumes_lead.open_waits.is_empty() {
            return;
        }
        let mut news = false;
        for wait in &mut self.volumes_lead.open_waits {
            news |= wait.heard.insert(session);
        }
        if news {
            self.decide_open_waits();
        }
    }

    /// Answers those for whom nobody is in the way any more, or who have waited for long enough.
    pub(super) fn decide_open_waits(&mut self) {
        let rows = self.volumes.machine.sessions();
        let lives = |wait: &OpenWait, holder: &SessionId| {
            wait.heard.contains(holder) && rows.get(holder).is_some_and(|row| row.phase == Phase::Attached)
        };
        let mut free = Vec::new();
        let mut refused = Vec::new();
        let mut kept = Vec::new();
        for wait in &self.volumes_lead.open_waits {
            match self.holders_of(wait) {
                Ok(holders) if !holders.is_empty() => {
                    let over = self.ticks >= wait.until && holders.iter().any(|holder| lives(wait, holder));
                    if over { refused.push(wait.waiter) } else { kept.push(wait.clone()) }
                }
                // What cannot be read, or is gone, is said by the read.
                _ => free.push(wait.clone()),
            }
        }
        self.volumes_lead.open_waits = kept;
        for waiter in refused {
            self.refuse(waiter.asker, ShardId::VOLUMES, NamespaceError::Busy.into());
        }
        for wait in free {
            let query = Query::AwaitOpen { inode: wait.inode, access: wait.access, waited_ms: 0 };
            self.volumes_read(ReadFor::Query(wait.waiter, wait.session, query));
        }
    }

    /// Those who must be answered are told to open again, which says anew who is in the way.
    pub(super) fn tick_open_waits(&mut self) {
        if self.volumes_lead.open_waits.is_empty() {
            return;
        }
        for wait in std::mem::take(&mut self.volumes_lead.open_waits) {
            if let Err(error) = self.session_state(wait.session) {
                self.refuse(wait.waiter.asker, ShardId::VOLUMES, error);
            } else if !self.is_open(wait.waiter.asker) {
                // Nobody waits any more.
            } else if wait.waiter.is_due(self.now) {
                self.answer_done(wait.waiter);
            } else {
                self.volumes_lead.open_waits.push(wait);
            }
        }
        self.decide_open_waits();
    }
}
