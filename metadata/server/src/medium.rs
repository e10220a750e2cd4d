//! What a log is written on: its directory; in builds for tests, one that fails as a plan says.

use holdfast_journal::{DirectoryDisk, Syncing};
use std::io;
use std::path::Path;

#[cfg(not(feature = "faults"))]
pub use holdfast_journal::DirectoryDisk as Medium;

/// Opens the medium of a directory.
///
/// # Errors
/// As [`DirectoryDisk::open`].
#[cfg(not(feature = "faults"))]
pub fn open(path: &Path, syncing: Syncing) -> io::Result<Medium> {
    DirectoryDisk::open(path, syncing)
}

/// A directory that fails as a plan says.
#[cfg(feature = "faults")]
pub type Medium = holdfast_faults::FaultyDisk<DirectoryDisk>;

/// Opens the medium of a directory.
///
/// # Errors
/// As [`DirectoryDisk::open`].
#[cfg(feature = "faults")]
pub fn open(path: &Path, syncing: Syncing) -> io::Result<Medium> {
    DirectoryDisk::open(path, syncing).map(|directory| holdfast_faults::FaultyDisk::new(directory, None))
}
