//! The thread that writes one shard's log: takes all that waits, writes it, syncs once, confirms all.

use crate::log_store::{LogError, LogStore};
use crate::metrics::Metrics;
use holdfast_journal::disk::Disk;
use holdfast_metadata_core::{Input, LogPosition, LogRecord};
use holdfast_types::ShardId;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// What the thread is asked to do, in order.
pub enum Job {
    /// Write records, then confirm the ticket.
    Append {
        /// To be confirmed.
        ticket: u64,
        /// What to write.
        records: Vec<LogRecord>,
        /// Only when durable.
        must_sync: bool,
    },
    /// Entries up to here may go.
    Cut(LogPosition),
}

/// Starts the thread. It ends when the sender is dropped, after a last sync.
///
/// # Errors
/// When the system has no thread to give.
pub fn start<D: Disk>(
    shard: ShardId,
    log: LogStore<D>,
    metrics: Arc<Metrics>,
    confirm: impl Fn(Input) + Send + 'static,
) -> std::io::Result<(Sender<Job>, JoinHandle<()>)> {
    let (jobs, queue) = channel();
    let thread = std::thread::Builder::new()
        .name(format!("log-{}", shard.0))
        .spawn(move || write(shard, log, &queue, &metrics, &confirm))?;
    Ok((jobs, thread))
}

fn write<D: Disk>(
    shard: ShardId,
    mut log: LogStore<D>,
    queue: &Receiver<Job>,
    metrics: &Metrics,
    confirm: &impl Fn(Input),
) {
    while let Ok(first) = queue.recv() {
        let mut tickets = Vec::new();
        let mut must_sync = false;
        let begun = Instant::now();
        let result = std::iter::once(first).chain(queue.try_iter()).try_for_each(|job| match job {
            Job::Append { ticket, records, must_sync: durable } => {
                tickets.push(ticket);
                must_sync |= durable;
                log.append(&records)
            }
            Job::Cut(base) => {
                must_sync = true;
                log.cut(base)
            }
        });
        let appended = Instant::now();
        metrics.stage("log_append", appended - begun);
        let result = result.and_then(|()| if must_sync { log.sync() } else { Ok(()) });
        if must_sync {
            metrics.stage("log_sync", appended.elapsed());
        }
        if let Err(error) = result {
            return fail(shard, &error, confirm);
        }
        for ticket in tickets {
            confirm(Input::Persisted { shard, ticket });
        }
    }
    if let Err(error) = log.sync() {
        tracing::error!(%shard, %error, "last sync of the log failed");
    }
}

fn fail(shard: ShardId, error: &LogError, confirm: &impl Fn(Input)) {
    tracing::error!(%shard, %error, "log cannot be written; this shard stops on this server");
    confirm(Input::PersistFailed { shard, reason: error.to_string() });
}
