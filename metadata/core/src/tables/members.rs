//! Who votes in a shard, and who only listens: raft's configuration as of the applied index, committed with the rows.
//!
//! A table without this row is of a server that was there when the cluster was made, and nothing has changed since.

use super::Row;
use raft::eraftpb::ConfState;
use serde::{Deserialize, Serialize};

/// The only key.
pub(crate) const MEMBERS: u8 = 0x13;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MembersRow {
    pub(crate) voters: Vec<u64>,
    pub(crate) learners: Vec<u64>,
    /// While two configurations hold: the voters of the older one.
    pub(crate) voters_outgoing: Vec<u64>,
    /// Voters of the older one that only listen afterwards.
    pub(crate) learners_next: Vec<u64>,
    pub(crate) auto_leave: bool,
}

impl Row for MembersRow {}

impl MembersRow {
    /// Raft has them in no order of its own; rows are the same on every server.
    pub(crate) fn of(state: &ConfState) -> Self {
        let sorted = |list: &[u64]| {
            let mut list = list.to_vec();
            list.sort_unstable();
            list
        };
        Self {
            voters: sorted(&state.voters),
            learners: sorted(&state.learners),
            voters_outgoing: sorted(&state.voters_outgoing),
            learners_next: sorted(&state.learners_next),
            auto_leave: state.auto_leave,
        }
    }

    pub(crate) fn to_state(&self) -> ConfState {
        ConfState {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.voters_outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
            ..ConfState::default()
        }
    }
}

/// Its key.
pub(crate) fn key() -> Vec<u8> {
    vec![MEMBERS]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let row = MembersRow {
            voters: vec![1, 2, 4],
            learners: vec![5],
            voters_outgoing: vec![1, 2, 3],
            learners_next: vec![],
            auto_leave: true,
        };
        assert_eq!(MembersRow::of(&row.to_state()), row);
        super::super::assert_round_trip(row);
    }
}
