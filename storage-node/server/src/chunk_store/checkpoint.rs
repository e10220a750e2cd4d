//! Checkpoints: after one, the journal before its position is not needed, and space freed before it may be used again.
//!
//! The slow part runs without the store, in whatever thread: writes go on meanwhile, with records after its position.

use super::record::encode_checkpoint;
use super::rows::{CHECKPOINT_KEY, encode_position};
use super::{ChunkStore, Shared, cause};
use holdfast_journal::{Disk, Position};
use holdfast_storage_core::local::LocalError;
use holdfast_store::Batch;
use std::sync::{Arc, PoisonError};

/// The slow part of a checkpoint: [`CheckpointJob::run`] it anywhere, then give it to [`ChunkStore::end_checkpoint`].
pub struct CheckpointJob<D: Disk> {
    shared: Arc<Shared<D>>,
    files: Vec<Arc<D::File>>,
    /// Everything before is in the extents and the index.
    position: u64,
    name: u64,
}

impl<D: Disk> CheckpointJob<D> {
    /// Syncs the extents, commits the position, persists the index, in this order.
    ///
    /// # Errors
    /// [`LocalError::Failed`]: the store has failed.
    pub fn run(&self) -> Result<(), LocalError> {
        let mut last = self.shared.checkpoint.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.check()?;
        let files: Vec<&D::File> = self.files.iter().map(Arc::as_ref).collect();
        let synced = self.shared.disk.sync_many(&files);
        synced.map_err(|error| self.shared.fail(format!("sync of an extent file: {error}")))?;
        if self.position > *last {
            let mut batch = Batch::new();
            batch.put(CHECKPOINT_KEY, encode_position(self.position));
            let failed = |error: holdfast_store::StoreError| format!("index: {error}{}", cause(&error));
            self.shared.table.commit(batch).map_err(|error| self.shared.fail(failed(error)))?;
            self.shared.table.persist().map_err(|error| self.shared.fail(failed(error)))?;
            *last = self.position;
        }
        Ok(())
    }
}

impl<D: Disk> ChunkStore<D> {
    /// Whether enough was written since the last checkpoint for another: half the journal.
    pub fn wants_checkpoint(&self) -> bool {
        let usage = self.journal.usage();
        self.syncing.is_empty() && usage.used_bytes * 2 > usage.capacity_bytes
    }

    /// Whether anything was written since the last checkpoint began.
    pub fn is_dirty(&self) -> bool {
        self.journal.durable().0 > self.begun
    }

    /// Begins a checkpoint of everything applied so far.
    pub fn begin_checkpoint(&mut self) -> CheckpointJob<D> {
        self.writer.free.checkpoint_begins();
        // What an unfinished checkpoint was to sync is synced again: cheap, and nothing is forgotten.
        self.syncing.extend(self.writer.extents.take_dirty());
        self.checkpoint += 1;
        self.begun = self.journal.durable().0;
        CheckpointJob {
            shared: Arc::clone(&self.shared),
            files: self.syncing.clone(),
            position: self.begun,
            name: self.checkpoint,
        }
    }

    /// Ends a checkpoint whose [`CheckpointJob::run`] returned `Ok`. One that a newer one has overtaken changes nothing.
    ///
    /// # Errors
    /// [`LocalError::Failed`]: the store has failed.
    pub fn end_checkpoint(&mut self, job: &CheckpointJob<D>) -> Result<(), LocalError> {
        if job.name != self.checkpoint {
            return Ok(());
        }
        // Durable with the next sync, and so before any record that relies on the space set free here. It bears witness
        // against an index that comes back older, and keeps the journal from ever being empty behind its head.
        let witness = encode_checkpoint(job.position);
        self.journal.append(&[&witness]).map_err(|error| self.fail_with("journal", &error))?;
        self.journal.release_below(Position(job.position));
        self.writer.free.checkpoint_ended();
        self.syncing.clear();
        Ok(())
    }

    /// A whole checkpoint at once.
    ///
    /// # Errors
    /// [`LocalError::Failed`]: the store has failed.
    pub fn checkpoint(&mut self) -> Result<(), LocalError> {
        let job = self.begin_checkpoint();
        job.run()?;
        self.end_checkpoint(&job)
    }
}
