//! Numbers that only rise: terms, indexes, epochs, versions.

use crate::id::number;
use serde::{Deserialize, Serialize};
use std::fmt;

number!(
    /// Raft term.
    Term(u64), "t"
);
number!(
    /// Raft log index, from 1.
    LogIndex(u64), "@"
);
number!(
    /// Version of the cluster map: the index of shard 0 that last changed it.
    MapVersion(u64), "map"
);
number!(
    /// Epoch of a group's view, from 1; rises with every change of the view.
    Epoch(u64), "e"
);
number!(
    /// Count of an operation within its group. Rises by one; never reused within an epoch.
    OpCount(u64), "n"
);
number!(
    /// Content generation of an inode: rises when the file is truncated to zero.
    Generation(u64), "gen"
);
number!(
    /// Snapshot number of a volume. 0 until snapshots exist.
    SnapshotNumber(u64), "snap"
);
number!(
    /// Generation that an orchestrator gives to an instance (a container): a greater one fences the lesser.
    InstanceGeneration(u64), "inst"
);

/// Number of an operation of a group: the epoch it was numbered in and its count.
///
/// Ordered by epoch first: the same count in two epochs names two different operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpNumber {
    /// Epoch of the view whose primary gave the number.
    pub epoch: Epoch,
    /// Position in the group's run of operations.
    pub count: OpCount,
}

impl fmt::Display for OpNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.count)
    }
}
