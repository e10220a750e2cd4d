//! Why a store could not be opened. What a running store answers is `storage_core::local::LocalError`.

use holdfast_store::StoreError;
use std::io;

/// Why a disk's store could not be opened. In no case was anything on it changed that was not ours.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It belongs to another cluster, node or disk, or holds something else.
    #[error("this is not our disk: {0}")]
    Foreign(String),
    /// A newer release made it.
    #[error("the disk has format {found}; this release knows formats up to {known}")]
    Format {
        /// What it has.
        found: u16,
        /// What we know.
        known: u16,
    },
    /// The clock is wrong, which a disk that is made must not be told by: it could pass for a later life of the one in whose place it is.
    #[error(
        "nothing is on this disk, and none is made as long as the clock says that it is before 2026: set the clock (date, NTP) and start again"
    )]
    Clock,
    /// Something that was durable is not there. The disk must be replaced, or wiped and filled again from other members.
    #[error("the disk is damaged: {0}")]
    Damaged(String),
    /// The index could not be read or written.
    #[error("the index failed")]
    Index(#[from] StoreError),
    /// The disk could not be read or written.
    #[error("the disk failed")]
    Disk(#[from] io::Error),
    /// The journal could not be opened.
    #[error("the journal failed")]
    Journal(#[from] holdfast_journal::JournalError),
}
