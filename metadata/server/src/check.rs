//! A check of this server's own tables, beside the loop: on a thread of its own, from snapshots, for `holdfast admin fsck`.
//!
//! One at a time. A check that nobody has asked about for a while is dropped: it pins the tables' old versions.

use holdfast_metadata_core::{fsck, invariants};
use holdfast_store::Table;
use holdfast_types::{InodeId, ShardId, VolumeId};
use holdfast_wire::admin::{AdminAnswer, TableCheck};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A check is dropped when nobody has asked for so long.
const ASKED_WITHIN: Duration = Duration::from_secs(30);
/// Findings whose text is kept.
const FINDINGS_MAX: usize = 1000;

/// Inodes looked at for one answer.
const FILES_MAX: u32 = 10_000;

/// The state that a check's thread and those who ask share.
struct Shared {
    progress: TableCheck,
    asked: Instant,
}

/// Checks of one server.
#[derive(Clone)]
pub struct Checks {
    /// By shard.
    tables: [Arc<dyn Table>; 2],
    last: Arc<Mutex<Option<Arc<Mutex<Shared>>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checks {
    /// Of these tables.
    pub fn new(tables: [Arc<dyn Table>; 2]) -> Self {
        Self { tables, last: Arc::default() }
    }

    /// Starts a check.
    pub fn begin(&self) -> AdminAnswer {
        let mut last = lock(&self.last);
        let mut number = 1;
        if let Some(shared) = &*last {
            let shared = lock(shared);
            if !shared.progress.done && shared.asked.elapsed() < ASKED_WITHIN {
                return AdminAnswer::Refused("another check is running here; wait for its end".into());
            }
            number = shared.progress.check + 1;
        }
        let progress = TableCheck { check: number, ..TableCheck::default() };
        let shared = Arc::new(Mutex::new(Shared { progress: progress.clone(), asked: Instant::now() }));
        let (tables, of_thread) = (self.tables.clone(), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("check".into()).spawn(move || run(&tables, &of_thread));
        match thread {
            Ok(_) => {
                *last = Some(shared);
                AdminAnswer::Check(progress)
            }
            Err(error) => AdminAnswer::Refused(format!("no thread for a check: {error}")),
        }
    }

    /// Files without holes, from the table as it is. Reads the disk.
    pub fn files(&self, after: (VolumeId, InodeId), limit: u32) -> AdminAnswer {
        let view = self.tables[1].snapshot();
        match fsck::files(&*view, after, limit.clamp(1, FILES_MAX)) {
            Ok((files, next)) => AdminAnswer::Files { files, next },
            Err(reason) => AdminAnswer::Refused(reason),
        }
    }

    /// How far a check is.
    pub fn poll(&self, check: u64) -> AdminAnswer {
        match &*lock(&self.last) {
            Some(shared) if lock(shared).progress.check == check => {
                let mut shared = lock(shared);
                shared.asked = Instant::now();
                AdminAnswer::Check(shared.progress.clone())
            }
            Some(_) | None => AdminAnswer::Refused("that check is not known here: the server was started again".into()),
        }
    }
}

/// Takes down what the check tells, and ends it when nobody asks any more.
struct Watcher<'a>(&'a Mutex<Shared>);

impl fsck::Watch for Watcher<'_> {
    fn looked_at(&mut self, inodes: u64, entries: u64) -> bool {
        let mut shared = lock(self.0);
        shared.progress.inodes.0 += inodes;
        shared.progress.entries += entries;
        shared.asked.elapsed() < ASKED_WITHIN
    }

    fn found(&mut self, what: String) {
        let progress = &mut lock(self.0).progress;
        progress.findings_total += 1;
        if progress.findings.len() < FINDINGS_MAX {
            progress.findings.push(what);
        }
    }
}

fn run(tables: &[Arc<dyn Table>; 2], shared: &Mutex<Shared>) {
    let [cluster, volumes] = tables.each_ref().map(|table| table.snapshot());
    let mut watcher = Watcher(shared);
    let result = invariants::check(ShardId::CLUSTER, &*cluster).and_then(|found| {
        found.into_iter().for_each(|what| fsck::Watch::found(&mut watcher, format!("cluster: {what}")));
        lock(shared).progress.inodes.1 = fsck::inodes_expected(&*volumes)?;
        fsck::check_volumes(&*volumes, &mut watcher)
    });
    let mut shared = lock(shared);
    shared.progress.failed = match result {
        Ok(true) => None,
        Ok(false) => Some("nobody asked for it any more".into()),
        Err(reason) => Some(reason),
    };
    shared.progress.done = true;
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_store::{Batch, MemoryTable};

    fn ended(checks: &Checks) -> TableCheck {
        let AdminAnswer::Check(begun) = checks.begin() else { panic!("not begun") };
        loop {
            match checks.poll(begun.check) {
                AdminAnswer::Check(progress) if progress.done => return progress,
                AdminAnswer::Check(_) => std::thread::yield_now(),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_check_tells_what_it_finds_and_can_be_repeated() {
        let (cluster, volumes) = (MemoryTable::new(), MemoryTable::new());
        let checks = Checks::new([Arc::new(cluster), Arc::new(volumes.clone())]);
        let first = ended(&checks);
        assert_eq!((first.failed, first.findings), (None, Vec::new()));
        let mut batch = Batch::new();
        // An inode's row that is none.
        batch.put([vec![1], vec![0; 24]].concat(), vec![250]);
        volumes.commit(batch).expect("committed");
        let second = ended(&checks);
        assert_eq!((second.check, second.findings_total), (first.check + 1, 1), "{second:?}");
        assert!(matches!(checks.poll(first.check), AdminAnswer::Refused(_)));
    }
}
