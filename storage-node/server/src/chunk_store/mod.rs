//! The chunk store of one disk: a journal, extent files and an index. No threads, no clock, no runtime.
//!
//! ```text
//!            apply(batch)
//!                 │ stage: whole blocks, space, rows                         reads
//!   large writes ─┤                                                            │
//!        ▼        ▼                                                            ▼
//!   fresh extents ── sync ─▶ journal ── one sync ─▶ blocks in place ─▶ index (no sync) ─▶ extents, verified
//!                                                        │                 │
//!                            checkpoint:  sync extents ──┴─▶ position row ─┴─▶ persist ─▶ journal released, space free
//! ```
//!
//! Invariants:
//! * *Write-ahead*: bytes that the index may refer to are not overwritten before the record with the new bytes is
//!   durable. A write above [`StoreOptions::inline_bytes_max`] goes to space that nothing refers to, is synced there,
//!   and its record switches the index.
//! * *Whole blocks*: a record carries blocks of 4 KiB, merged with what they held (verified) where a change covers them
//!   in part. So a redo never believes what a crash may have torn, and reads nothing at all.
//! * *Redo is physical*: a record names rows as they are to be and places as they were chosen. Replaying from the last
//!   checkpoint over a state that already holds some or all of it gives the same state, because space freed after a
//!   checkpoint is not given out before the next one, so a place belongs to one chunk in between.
//! * *The index never runs ahead of the journal*: rows are committed after the sync of their records. The index says how
//!   far it goes (`applied`): a journal that ends before that has lost acknowledged records, and the disk is out.
//! * *A checkpoint is a row of the index*: the journal may deliver released records again, so the position from which to
//!   replay is committed to the index after the extents were synced, and persisted with it. Only then is space reused.
//!   Opening ends with a checkpoint, before anything else is written.
//! * *Replay begins when the journal is open*, because only then is what it delivers durable: records that a killed
//!   process left in the page cache would otherwise be put in place before they are safe.
//! * *A failure is final*: after a failed write, sync or commit every call fails until the store is opened again.

mod check;
mod checkpoint;
mod damage;
mod error;
mod extents;
mod identity;
mod keys;
mod layout;
mod options;
mod probe;
mod read;
mod record;
mod recovery;
mod rows;
mod space;
mod stage;
#[cfg(test)]
pub(crate) mod tests;

pub use checkpoint::CheckpointJob;
pub use damage::DamageTotals;
pub use error::OpenError;
pub use identity::DiskIdentity;
pub use options::{Mutations, StoreOptions};
pub use read::{Attempt, Later, Reader};

use damage::Damage;
use extents::Files;
use holdfast_journal::{Disk, Journal};
use holdfast_storage_core::local::{GroupState, LocalError, LocalOp};
use holdfast_store::Table;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, GroupId, Incarnation};
use probe::is_of_device;
use stage::{StageError, Staged, Writer};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// So many different blocks refused, and none read in between, are a bad spot or a disk that is gone: another place of it tells.
const REFUSED_MAX: usize = 8;

/// What writer, readers and checkpoints share.
pub(crate) struct Shared<D: Disk> {
    disk: D,
    table: Arc<dyn Table>,
    files: Arc<Files<D::File>>,
    /// Held by the writer while bytes and their sums differ: between the first block put in place and the commit.
    placing: RwLock<()>,
    /// Blocks found damaged and not overwritten since.
    damage: Mutex<Damage>,
    /// Position of the last checkpoint; held while one runs, so that two never overtake each other.
    checkpoint: Mutex<u64>,
    /// Blocks that the disk refused to read, since it last read something; and whether there are any.
    refused: Mutex<BTreeSet<(GroupId, ChunkKey, u32)>>,
    refuses: AtomicBool,
    /// A block that is nobody's.
    probe: OnceLock<D::File>,
    failed: AtomicBool,
    fault: Mutex<Option<String>>,
}

impl<D: Disk> Shared<D> {
    /// Ends the store's life. The first reason is kept.
    fn fail(&self, reason: String) -> LocalError {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.failed.store(true, Ordering::Release);
        LocalError::Failed
    }

    /// The disk has read.
    fn read_well(&self) {
        if self.refuses.swap(false, Ordering::Relaxed) {
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// The disk has refused to read a block. A few are bad blocks, also side by side; a disk that refuses whatever is asked, wherever it is, is
    /// none any more, and this is why.
    fn read_failed(&self, block: (GroupId, ChunkKey, u32), error: &std::io::Error) -> Option<String> {
        if !is_of_device(error) {
            return None;
        }
        {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            self.refuses.store(true, Ordering::Relaxed);
            refused.insert(block);
            if refused.len() < REFUSED_MAX {
                return None;
            }
            refused.clear();
        }
        let elsewhere = self.read_probe().err().filter(is_of_device);
        elsewhere.map(|elsewhere| format!("nothing can be read any more, the last errors are: {error}; {elsewhere}"))
    }

    fn check(&self) -> Result<(), LocalError> {
        if self.failed.load(Ordering::Acquire) { Err(LocalError::Failed) } else { Ok(()) }
    }
}

/// The store of one disk, for one writer. [`ChunkStore::reader`] gives handles that read from any thread.
pub struct ChunkStore<D: Disk> {
    shared: Arc<Shared<D>>,
    writer: Writer<D>,
    journal: Journal<D>,
    incarnation: Incarnation,
    options: StoreOptions,
    /// Files that a checkpoint under way is to sync.
    syncing: Vec<Arc<D::File>>,
    /// Names the newest checkpoint begun.
    checkpoint: u64,
    /// Its position.
    begun: u64,
}

/// Space of a store, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpace {
    /// Of the file system.
    pub total: u64,
    /// Not taken: of the file system and within extent files.
    pub free: u64,
    /// Nearly full: what grows is to be refused.
    pub low: bool,
    /// With less free it is.
    pub low_bytes: u64,
    /// Of the file system alone, in parts of what the store leaves there for its index: 100 is all of it.
    pub reserve_percent: u64,
}

impl<D: Disk> ChunkStore<D> {
    /// This life of the disk. Greater than that of every earlier opening, and durable.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What is known of each group, in their order: for the core's start.
    pub fn groups(&self) -> Vec<GroupState> {
        let state = |(group, row): (&_, &rows::GroupRow)| GroupState {
            group: *group,
            last: row.last,
            settled: row.settled,
            complete: true,
        };
        self.writer.groups.iter().map(state).collect()
    }

    /// Where the blocks of a chunk lie that were written: number within the chunk, name of the file, and position in it. For tests that damage
    /// them.
    pub fn places(&self, group: GroupId, chunk: &ChunkKey) -> Vec<(u32, String, u64)> {
        self.reader().places(group, chunk)
    }

    /// A handle for reading; any number, from any thread.
    pub fn reader(&self) -> Reader<D> {
        Reader::new(Arc::clone(&self.shared))
    }

    /// Whether the opening cut off a torn record; see [`Journal::found_torn`].
    pub fn found_torn(&self) -> bool {
        self.journal.found_torn()
    }

    /// Why the store failed, if it did.
    pub fn fault(&self) -> Option<String> {
        self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The disk is not there any more.
    pub fn give_up(&self, reason: String) {
        self.shared.fail(reason);
    }

    /// How much room is left.
    ///
    /// # Errors
    /// `NotFound` when the disk is gone; what it reports.
    pub fn space(&self) -> std::io::Result<StoreSpace> {
        let space = self.shared.disk.space()?;
        let within = (self.writer.free.blocks() + self.writer.free.blocks_pending()) * BLOCK_BYTES;
        let free = within + space.available.saturating_sub(self.options.reserve_bytes);
        let reserve_percent = space.available.saturating_mul(100) / self.options.reserve_bytes.max(1);
        let low_bytes = self.options.low_bytes;
        Ok(StoreSpace { total: space.total, free, low: free < low_bytes, low_bytes, reserve_percent })
    }

    /// Makes operations durable, with one sync of the journal for all of them (and one per file that took large writes).
    ///
    /// Operations of a group take effect in the order given; each happens entirely or not at all, also across a crash,
    /// and of those that were not acknowledged a crash leaves a prefix. On return each `Ok` is durable and seen by reads.
    ///
    /// The results, one for each operation:
    /// * [`LocalError::NoSpace`], [`LocalError::BadBlock`]: nothing of this one was changed; later ones may have been.
    /// * [`LocalError::Failed`]: nothing may be concluded. The store is done for.
    ///
    /// # Panics
    /// When a write reaches beyond its chunk or does not have one sum for each block: the core checks both.
    pub fn apply(&mut self, ops: &[LocalOp]) -> Vec<Result<(), LocalError>> {
        let mut results = Vec::with_capacity(ops.len());
        let mut durable = 0;
        for op in ops {
            let result = self.stage(op, ops, &mut results, &mut durable);
            results.push(result);
            if self.writer.staged.bytes >= self.options.batch_bytes_max {
                self.flush(ops, &mut results, &mut durable);
            }
        }
        self.flush(ops, &mut results, &mut durable);
        results
    }

    fn stage(
        &mut self,
        op: &LocalOp,
        ops: &[LocalOp],
        results: &mut [Result<(), LocalError>],
        durable: &mut usize,
    ) -> Result<(), LocalError> {
        self.shared.check()?;
        let mut staged = self.writer.stage(op);
        if matches!(staged, Err(StageError::NoSpace)) && self.freed() {
            // Space was freed that only a checkpoint can make free.
            self.flush(ops, results, durable);
            self.checkpoint()?;
            staged = self.writer.stage(op);
        }
        match staged {
            Ok(()) => Ok(()),
            Err(StageError::NoSpace) => Err(LocalError::NoSpace),
            Err(StageError::BadBlock(found)) => {
                self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner).add(op.group, found.0, found.1);
                Err(LocalError::BadBlock)
            }
            Err(StageError::Fatal(reason)) => Err(self.shared.fail(reason)),
        }
    }

    fn freed(&self) -> bool {
        self.writer.free.blocks_pending() > 0 || !self.writer.staged.freed.is_empty()
    }

    /// Makes all that is staged durable; those who were told `Ok` too early learn when that fails.
    fn flush(&mut self, ops: &[LocalOp], results: &mut [Result<(), LocalError>], durable: &mut usize) {
        let committed = self.commit();
        let mut damage = self.shared.damage.lock().unwrap_or_else(PoisonError::into_inner);
        for (op, result) in ops.iter().zip(results.iter_mut()).skip(*durable).filter(|(_, result)| result.is_ok()) {
            match committed {
                Ok(()) => damage.heal(op),
                Err(error) => *result = Err(error),
            }
        }
        *durable = results.len();
    }

    /// Fresh extents, then records, then blocks in place, then the index.
    fn commit(&mut self) -> Result<(), LocalError> {
        self.shared.check()?;
        if self.writer.staged.records.is_empty() {
            return Ok(());
        }
        if self.journal_room() < self.writer.staged.bytes as u64 + 2 * self.options.segment_bytes {
            self.checkpoint()?;
        }
        let staged = std::mem::take(&mut self.writer.staged);
        let fresh = self.writer.extents.write_fresh(&staged.fresh);
        fresh.map_err(|error| self.shared.fail(format!("write of fresh extents: {error}")))?;
        if self.options.mutations.overwrite_before_durable {
            self.put_in_place(&staged)?;
        }
        for record in &staged.records {
            let head = record.encode_head();
            self.journal.append(&record.parts(&head)).map_err(|error| self.fail_with("journal", &error))?;
        }
        self.journal.sync().map_err(|error| self.fail_with("journal", &error))?;

        let shared = Arc::clone(&self.shared);
        let _placing = shared.placing.write().unwrap_or_else(PoisonError::into_inner);
        if !self.options.mutations.overwrite_before_durable {
            self.put_in_place(&staged)?;
        }
        let mut rows = staged.rows;
        rows.put(rows::APPLIED_KEY, rows::encode_position(self.journal.durable().0));
        self.writer.table.commit(rows).map_err(|error| self.fail_with("index", &error))?;
        for run in staged.freed {
            self.writer.free.free_later(run);
        }
        Ok(())
    }

    fn put_in_place(&mut self, staged: &Staged) -> Result<(), LocalError> {
        for place in staged.records.iter().flat_map(|record| &record.places) {
            let written = self.writer.extents.write(place.file, place.start, &place.bytes);
            written.map_err(|error| self.shared.fail(format!("write to extent file {}: {error}", place.file)))?;
        }
        Ok(())
    }

    fn journal_room(&self) -> u64 {
        let usage = self.journal.usage();
        usage.capacity_bytes.saturating_sub(usage.used_bytes)
    }

    fn fail_with(&self, what: &str, error: &(dyn std::error::Error + 'static)) -> LocalError {
        self.shared.fail(format!("{what}: {error}{}", cause(error)))
    }
}

/// The causes of an error, each after a colon: for the one place where an error becomes a sentence in the log.
pub(crate) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
