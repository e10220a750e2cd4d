//! What a disk of this node is written on: its directory; in builds for tests, one that fails as a plan says.

use holdfast_journal::DirectoryDisk;
use holdfast_types::DiskId;

#[cfg(not(feature = "faults"))]
mod chosen {
    use super::{DirectoryDisk, DiskId};

    /// A disk as the store sees it.
    pub(crate) type Medium = DirectoryDisk;

    /// The medium of a directory.
    pub(crate) fn of(directory: DirectoryDisk, _: DiskId) -> Medium {
        directory
    }
}

#[cfg(feature = "faults")]
mod chosen {
    use super::{DirectoryDisk, DiskId};
    use holdfast_faults::FaultyDisk;

    /// A disk as the store sees it.
    pub(crate) type Medium = FaultyDisk<DirectoryDisk>;

    /// The medium of a directory.
    pub(crate) fn of(directory: DirectoryDisk, disk: DiskId) -> Medium {
        FaultyDisk::new(directory, Some(disk.0))
    }
}

pub(crate) use chosen::{Medium, of};
