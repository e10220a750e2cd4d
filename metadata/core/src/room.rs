//! Room on the metadata servers' disks: while too few of them have it, nothing is made that takes more for good.
//!
//! * A server whose disk is nearly full says so to all others, again and again; one that is silent about it has room.
//! * The volumes' leader counts: without those that have little room, is there still a majority? A minority may run full, and is left
//!   behind; it catches up when it has room. When there is no majority, the leader has the shard refuse what grows, with `NoSpace`, by a command:
//!   every replica takes it at the same place in the log, and a mutation that was made before and is asked for again keeps its answer.
//! * What makes room, or only changes what is there, goes on: removing, truncating, writing, ending.

use crate::command::VolumesCommand;
use crate::core::MetadataCore;
use crate::tables::mark;
use crate::volumes::lead::Work;
use holdfast_types::ServerId;
use holdfast_wire::peer::PeerMessage;
use std::collections::{BTreeMap, BTreeSet};

/// A server with little room says so that often, in ticks.
const SAY_TICKS: u64 = crate::api::ticks(std::time::Duration::from_secs(1));
/// It has room again when it has not said so for that long.
const SILENT_TICKS: u64 = 4 * SAY_TICKS;

/// Who has little.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// This server.
    low_here: bool,
    said: Option<u64>,
    /// Others, and when they last said so.
    low_there: BTreeMap<ServerId, u64>,
}

/// Whether too few of the voters have room for a majority that has.
fn too_few(voters: &[ServerId], low: &BTreeSet<ServerId>) -> bool {
    let with_room = voters.iter().filter(|voter| !low.contains(voter)).count();
    with_room <= voters.len() / 2
}

impl MetadataCore {
    /// This server's disk crossed the mark.
    pub(crate) fn has_little_room(&mut self, low: bool) {
        self.room.low_here = low;
        self.room.said = None;
    }

    /// Another one's did.
    pub(crate) fn little_room_there(&mut self, from: ServerId) {
        self.room.low_there.insert(from, self.ticks);
    }

    pub(crate) fn tick_room(&mut self) {
        let now = self.ticks;
        self.room.low_there.retain(|_, heard| now < *heard + SILENT_TICKS);
        let due = self.room.said.is_none_or(|said| now >= said + SAY_TICKS);
        if self.room.low_here && due {
            self.room.said = Some(now);
            let others = self.cluster.machine.servers.keys().copied().filter(|id| *id != self.config.id);
            let others: Vec<ServerId> = others.collect();
            self.out.extend(others.into_iter().map(|to| crate::Effect::Send { to, message: PeerMessage::LittleRoom }));
        }
        self.tell_room();
    }

    /// The volumes' leader has its shard know.
    fn tell_room(&mut self) {
        if !self.volumes.is_ready_to_lead() || self.volumes.halted().is_some() {
            return;
        }
        let here = self.room.low_here.then_some(self.config.id);
        let low = self.room.low_there.keys().copied().chain(here).collect();
        let voters: Vec<ServerId> = self.volumes.members().voters.into_iter().map(ServerId).collect();
        let short = too_few(&voters, &low);
        if short != self.volumes.machine.is_short_of_room() {
            self.propose_own(Work::Room, VolumesCommand::Room { short });
        }
    }
}

/// The key of the row that is there while room is short.
pub(crate) fn key() -> Vec<u8> {
    vec![mark::SHORT_OF_ROOM]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minority_may_run_full_and_a_majority_may_not() {
        let few = |voters: u64, low: &[u64]| {
            let voters: Vec<ServerId> = (1..=voters).map(ServerId).collect();
            too_few(&voters, &low.iter().copied().map(ServerId).collect())
        };
        assert!(!few(3, &[]) && !few(3, &[2]) && few(3, &[1, 2]) && few(3, &[1, 2, 3]));
        assert!(few(1, &[1]) && !few(1, &[7]), "who does not vote does not count");
        assert!(!few(5, &[1, 4]) && few(5, &[1, 2, 4]) && few(2, &[2]));
    }
}
