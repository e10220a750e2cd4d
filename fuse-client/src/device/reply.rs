//! The answer to one request, owed by whoever holds it.
//!
//! Invariant: every request that wants an answer gets exactly one. A [`Reply`] that is dropped unanswered answers `EIO`, so that a
//! bug costs one system call and not a hung process.

use super::protocol::Answer;
use rustix::io::Errno;
use std::sync::Arc;

/// Where answers go.
pub trait Sink: Send + Sync {
    /// Sends the answer to request `unique`. Never blocks.
    fn send(&self, unique: u64, result: Result<Answer, Errno>);
}

/// The duty to answer a request.
pub struct Reply {
    unique: u64,
    pid: u32,
    sink: Option<Arc<dyn Sink>>,
}

impl Reply {
    /// Owed to request `unique`, for which thread `pid` waits, over `sink`.
    pub fn new(unique: u64, pid: u32, sink: Arc<dyn Sink>) -> Self {
        Self { unique, pid, sink: Some(sink) }
    }

    /// Number of the request.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The thread that waits; 0 if none of ours.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Answers.
    pub fn finish(mut self, result: Result<Answer, Errno>) {
        if let Some(sink) = self.sink.take() {
            sink.send(self.unique, result);
        }
    }

    /// Answers without a value.
    pub fn done(self) {
        self.finish(Ok(Answer::Done));
    }

    /// Answers with an error.
    pub fn error(self, errno: Errno) {
        self.finish(Err(errno));
    }

    /// No answer is wanted (`FORGET`, `INTERRUPT`).
    pub fn unneeded(mut self) {
        self.sink = None;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            tracing::error!(unique = self.unique, "request dropped without an answer");
            sink.send(self.unique, Err(Errno::IO));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("unique", &self.unique).finish_non_exhaustive()
    }
}
