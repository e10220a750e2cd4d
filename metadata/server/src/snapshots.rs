//! Tables that are held as they are while an administrator copies them, for `holdfast admin metadata backup`. Beside the loop: the tables go
//! on changing meanwhile, and nobody waits.
//!
//! ```text
//! (none) ──begin: shard 1──▶ held ──join: shard 0──▶ both held ──rows…──▶ end
//!                              └──────nobody has asked for a while──────▶ (none)
//! ```
//! * Each shard's table is one applied state. The administrator has leaders confirm how far each must be, so that a server that is cut
//!   off or halted is not taken for one that knows everything.
//! * Shard 1 is held first, and shard 0 at a place confirmed after that: what the volumes rest on (sessions that were opened, volumes that
//!   were made) is in the cluster's table.
//! * One at a time: a table that is held keeps its old versions on the disk.

use bytes::Bytes;
use holdfast_metadata_core::inspect;
use holdfast_store::{KeyRange, Table, View};
use holdfast_types::{LogIndex, ShardId};
use holdfast_wire::admin::{AdminAnswer, HeldTable};
use holdfast_wire::peer::SNAPSHOT_PART_BYTES_MAX;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Tables are let go when nobody has asked for so long.
const ASKED_WITHIN: Duration = Duration::from_secs(30);

/// What is held for one backup.
struct Held {
    number: u64,
    asked: Instant,
    views: [Option<Arc<dyn View>>; 2],
}

/// Tables held for backups, of one server.
#[derive(Clone)]
pub struct Snapshots {
    tables: [Arc<dyn Table>; 2],
    held: Arc<Mutex<(u64, Option<Held>)>>,
    asked_within: Duration,
}

impl Snapshots {
    /// Of these tables.
    pub fn new(tables: [Arc<dyn Table>; 2]) -> Self {
        Self { tables, held: Arc::default(), asked_within: ASKED_WITHIN }
    }

    fn held(&self) -> MutexGuard<'_, (u64, Option<Held>)> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds on to shard 1's table. Must be called within a tokio runtime: the table is let go when nobody asks any more.
    pub fn begin(&self, at_least: LogIndex) -> AdminAnswer {
        let (answer, view) = self.look(ShardId::VOLUMES, at_least);
        let Some(view) = view else { return answer };
        let mut held = self.held();
        if held.1.as_ref().is_some_and(|held| held.asked.elapsed() < self.asked_within) {
            return AdminAnswer::Refused("another backup is being taken here; wait for its end".into());
        }
        held.0 += 1;
        let number = held.0;
        held.1 = Some(Held { number, asked: Instant::now(), views: [None, Some(view)] });
        drop(held);
        tokio::spawn(self.clone().let_go_in_time(number));
        numbered(answer, number)
    }

    /// Holds on to shard 0's table as well.
    pub fn join(&self, number: u64, at_least: LogIndex) -> AdminAnswer {
        let (answer, view) = self.look(ShardId::CLUSTER, at_least);
        let mut held = self.held();
        let Some(held) = held.1.as_mut().filter(|held| held.number == number) else { return unknown() };
        held.asked = Instant::now();
        // Asked again, it is the newer one: no row was told before both are held.
        held.views[0] = view.or(held.views[0].take());
        numbered(answer, number)
    }

    /// Rows after a key. Reads the disk.
    pub fn rows(&self, number: u64, shard: ShardId, after: Bytes) -> AdminAnswer {
        let view = {
            let mut held = self.held();
            let Some(held) = held.1.as_mut().filter(|held| held.number == number) else { return unknown() };
            held.asked = Instant::now();
            if held.views.iter().any(Option::is_none) {
                return AdminAnswer::Refused("the tables are not both held yet".into());
            }
            held.views.get(shard.0 as usize).and_then(Clone::clone)
        };
        let Some(view) = view else { return AdminAnswer::Refused(format!("there is no {shard}")) };
        let start = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for pair in view.range(KeyRange { start, end: Bound::Unbounded }) {
            let (key, value) = match pair {
                Ok(pair) => pair,
                Err(error) => return AdminAnswer::Refused(format!("table of {shard}: {error}")),
            };
            bytes += key.len() + value.len();
            if bytes > SNAPSHOT_PART_BYTES_MAX && !rows.is_empty() {
                return AdminAnswer::Rows { rows, last: false };
            }
            rows.push((key, value));
        }
        AdminAnswer::Rows { rows, last: true }
    }

    /// Lets the tables go.
    pub fn end(&self, number: u64) -> AdminAnswer {
        let mut held = self.held();
        if held.1.as_ref().is_some_and(|held| held.number == number) {
            held.1 = None;
        }
        AdminAnswer::Held(HeldTable { backup: number, ..HeldTable::default() })
    }

    /// A shard's table as it is, if it is far enough.
    fn look(&self, shard: ShardId, at_least: LogIndex) -> (AdminAnswer, Option<Arc<dyn View>>) {
        let table = &self.tables[shard.0 as usize];
        let view = table.snapshot();
        let (at, bytes) = match (inspect::applied(&*view), table.bytes_on_disk()) {
            (Ok(at), Ok(bytes)) => (at, bytes),
            (Err(error), _) => return (AdminAnswer::Refused(format!("table of {shard}: {error}")), None),
            (_, Err(error)) => return (AdminAnswer::Refused(format!("table of {shard}: {error}")), None),
        };
        if at.index < at_least {
            return (AdminAnswer::Behind { applied: at.index }, None);
        }
        let held = HeldTable { backup: 0, index: at.index, term: at.term, bytes };
        (AdminAnswer::Held(held), Some(view))
    }

    async fn let_go_in_time(self, number: u64) {
        loop {
            tokio::time::sleep(self.asked_within).await;
            let mut held = self.held();
            match &held.1 {
                Some(one) if one.number == number && one.asked.elapsed() < self.asked_within => {}
                Some(one) if one.number == number => return held.1 = None,
                Some(_) | None => return,
            }
        }
    }
}

fn numbered(answer: AdminAnswer, backup: u64) -> AdminAnswer {
    match answer {
        AdminAnswer::Held(held) => AdminAnswer::Held(HeldTable { backup, ..held }),
        other => other,
    }
}

fn unknown() -> AdminAnswer {
    AdminAnswer::Refused(
        "that backup is not known here any more: nobody asked for a while, or the server was started again".into(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_store::{Batch, MemoryTable};

    /// The row that says how far a table is: version, index, term, stamp.
    fn applied(index: u8) -> Bytes {
        vec![1, index, 1, 0, 0].into()
    }

    fn table(index: u8, rows: u32) -> MemoryTable {
        let table = MemoryTable::new();
        let mut batch = Batch::new();
        batch.put(vec![0], applied(index));
        for number in 0..rows {
            batch.put([vec![9], number.to_be_bytes().to_vec()].concat(), vec![7; 1000]);
        }
        table.commit(batch).expect("committed");
        table
    }

    fn all(snapshots: &Snapshots, number: u64, shard: ShardId) -> Vec<(Bytes, Bytes)> {
        let mut found: Vec<(Bytes, Bytes)> = Vec::new();
        loop {
            let after = found.last().map(|(key, _)| key.clone()).unwrap_or_default();
            let AdminAnswer::Rows { rows, last } = snapshots.rows(number, shard, after) else { panic!("no rows") };
            assert!(rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= SNAPSHOT_PART_BYTES_MAX);
            found.extend(rows);
            if last {
                return found;
            }
        }
    }

    #[tokio::test]
    async fn what_is_held_stays_as_it_was_and_one_that_is_behind_is_not_taken() {
        let (cluster, volumes) = (table(5, 1), table(7, 3000));
        let snapshots = Snapshots::new([Arc::new(cluster.clone()), Arc::new(volumes.clone())]);
        assert_eq!(snapshots.begin(LogIndex(8)), AdminAnswer::Behind { applied: LogIndex(7) });
        let AdminAnswer::Held(held) = snapshots.begin(LogIndex(7)) else { panic!("far enough") };
        assert!(matches!(snapshots.begin(LogIndex(7)), AdminAnswer::Refused(_)), "one at a time");
        let rows = |shard| snapshots.rows(held.backup, shard, Bytes::new());
        assert!(matches!(rows(ShardId::VOLUMES), AdminAnswer::Refused(_)), "not both yet");
        assert_eq!(snapshots.join(held.backup, LogIndex(6)), AdminAnswer::Behind { applied: LogIndex(5) });
        assert!(matches!(snapshots.join(held.backup, LogIndex(5)), AdminAnswer::Held(_)));
        let mut later = Batch::new();
        later.put(vec![0], applied(8));
        later.put(vec![200], vec![1]);
        volumes.commit(later).expect("committed");
        let found = all(&snapshots, held.backup, ShardId::VOLUMES);
        assert_eq!((found.len(), found[0].1.clone()), (3001, applied(7)));
        assert_eq!(all(&snapshots, held.backup, ShardId::CLUSTER).len(), 2);
        snapshots.end(held.backup);
        assert!(matches!(rows(ShardId::VOLUMES), AdminAnswer::Refused(_)));
        let AdminAnswer::Held(next) = snapshots.begin(LogIndex(8)) else { panic!("the first is over") };
        assert_ne!(next.backup, held.backup);
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_let_go() {
        let mut snapshots = Snapshots::new([Arc::new(table(5, 1)), Arc::new(table(7, 1))]);
        snapshots.asked_within = Duration::from_millis(1);
        let AdminAnswer::Held(held) = snapshots.begin(LogIndex(7)) else { panic!("far enough") };
        while snapshots.held().1.is_some() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(snapshots.join(held.backup, LogIndex(0)), AdminAnswer::Refused(_)));
    }
}
