//! How far a table is: committed with the rows of every run of commands.

use super::Row;
use crate::api::LogPosition;
use holdfast_types::{LogIndex, Term, Timestamp};
use serde::{Deserialize, Serialize};

/// The only key.
pub(crate) const APPLIED: u8 = 0x00;

/// The last entry whose changes the table holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AppliedRow {
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    /// The latest stamp of any command so far: stamps never go back.
    pub(crate) stamp: Timestamp,
}

impl Row for AppliedRow {}

impl AppliedRow {
    pub(crate) fn at(&self) -> LogPosition {
        LogPosition { index: self.index, term: self.term }
    }
}

/// Its key.
pub(crate) fn key() -> Vec<u8> {
    vec![APPLIED]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        super::super::assert_round_trip(AppliedRow {
            index: LogIndex(9),
            term: Term(2),
            stamp: Timestamp { seconds: -1, nanos: 3 },
        });
    }
}
