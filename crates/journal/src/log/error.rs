//! Why a journal could not do something, and whether it can go on.

use super::{Position, Usage};
use std::io;

/// What the caller's replay function may answer: its own error, handed back in [`JournalError::Replay`].
pub type ReplayError = Box<dyn std::error::Error + Send + Sync>;

/// Errors of a journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// A call to the disk failed. The journal is poisoned: a failed sync is never retried.
    #[error("cannot {doing} {file}")]
    Io {
        /// What was being done: "write", "sync" and so on.
        doing: &'static str,
        /// Which file.
        file: String,
        /// What the disk said.
        source: io::Error,
    },
    /// Bytes that were durable are not what was written. Nothing was changed.
    #[error("{file} is damaged at byte {offset} (position {position}): {what}")]
    Damaged {
        /// Which file.
        file: String,
        /// Where in the file, in bytes.
        offset: u64,
        /// Where in the log.
        position: Position,
        /// What is wrong there.
        what: String,
    },
    /// The files belong to another journal. Nothing was changed.
    #[error("{file} belongs to journal {found:032x}, not to {expected:032x}")]
    Foreign {
        /// Which file.
        file: String,
        /// Whose it is.
        found: u128,
        /// Whose it should be.
        expected: u128,
    },
    /// A later release wrote this. Nothing was changed.
    #[error("{file} has format {format}, which this release does not know")]
    UnknownFormat {
        /// Which file.
        file: String,
        /// Number of its format.
        format: u16,
    },
    /// All segments hold live records. Release some; the journal goes on.
    #[error("the journal is full: {} of {} bytes hold live records", .0.used_bytes, .0.capacity_bytes)]
    Full(Usage),
    /// The disk has no room for one more segment. Release records or make room; the journal goes on.
    #[error("no room on the disk for another segment")]
    NoSpace(#[source] io::Error),
    /// The record is too long; the journal goes on.
    #[error("a record of {bytes} bytes; the longest has {bytes_max}")]
    TooLong {
        /// Length of its payload.
        bytes: u64,
        /// Longest payload.
        bytes_max: u64,
    },
    /// An earlier call failed; open the journal anew.
    #[error("the journal failed before and takes no more records until it is opened again")]
    Poisoned,
    /// The caller's replay function refused a record. Nothing was changed.
    #[error("the record at {position} was refused")]
    Replay {
        /// Which record.
        position: Position,
        /// Why.
        source: ReplayError,
    },
}

impl JournalError {
    pub(super) fn io(doing: &'static str, file: &str, source: io::Error) -> Self {
        Self::Io { doing, file: file.to_owned(), source }
    }

    /// Whether the journal takes no more records after this.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Damaged { .. } | Self::Foreign { .. } | Self::UnknownFormat { .. } => true,
            Self::Poisoned | Self::Replay { .. } => true,
            Self::Full(_) | Self::NoSpace(_) | Self::TooLong { .. } => false,
        }
    }
}
