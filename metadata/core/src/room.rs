//! Room on the metadata servers' disks: while too few of them have it, nothing is made that takes more for good.
//!
//! * A server whose disk is nearly full says so to all others, again and again; one that is heard, and silent about it, has room. The last word of
//!   one that is not heard stands, and after half a minute nobody counts on it: who is left must not run full.
//! * The volumes' leader counts: without those that have little room, is there still a majority? A minority may run full, and is left
//!   behind; it catches up when it has room. When there is no majority, the leader has the shard refuse what grows, with `NoSpace`, by a command:
//!   every replica takes it at the same place in the log, and a mutation that was made before and is asked for again keeps its answer.
//! * What makes room, or only changes what is there, goes on: removing, truncating, writing, ending.

use crate::api::Effect;
use crate::command::VolumesCommand;
use crate::core::MetadataCore;
use crate::tables::mark;
use crate::volumes::lead::Work;
use holdfast_types::ServerId;
use holdfast_wire::peer::PeerMessage;
use std::collections::BTreeMap;
use std::time::Duration;

/// A server with little room says so that often, in ticks.
const SAY_TICKS: u64 = crate::api::ticks(Duration::from_secs(1));
/// One that is heard, and has not said so for that long, has room.
const SILENT_TICKS: u64 = 4 * SAY_TICKS;
/// One that is not heard at all for that long is nobody to count on. Longer than a restart takes.
const AWAY_TICKS: u64 = 30 * SAY_TICKS;

/// Who has little.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// This server.
    low_here: bool,
    said: Option<u64>,
    /// Others: when they last said so, and since when nothing is heard of them.
    low_there: BTreeMap<ServerId, u64>,
    unheard: BTreeMap<ServerId, u64>,
    /// Since when this server leads the volumes.
    leads_since: Option<u64>,
}

impl Room {
    /// What is known of the other voters now.
    fn look(&mut self, now: u64, others: &[(ServerId, bool)]) {
        for (id, heard) in others {
            if *heard {
                self.unheard.remove(id);
                // The last word of one that is not heard stands.
                if self.low_there.get(id).is_some_and(|said| now >= *said + SILENT_TICKS) {
                    self.low_there.remove(id);
                }
            } else {
                self.unheard.entry(*id).or_insert(now);
            }
        }
        let known = |id: &ServerId| others.iter().any(|(other, _)| other == id);
        self.low_there.retain(|id, _| known(id));
        self.unheard.retain(|id, _| known(id));
    }

    fn has_room(&self, now: u64, id: ServerId) -> bool {
        !self.low_there.contains_key(&id) && self.unheard.get(&id).is_none_or(|since| now < *since + AWAY_TICKS)
    }

    /// Whether too few of the voters, this one and the others, have room for a majority that has.
    fn is_short(&self, now: u64, others: &[(ServerId, bool)]) -> bool {
        let with_room = others.iter().filter(|(id, _)| self.has_room(now, *id)).count() + usize::from(!self.low_here);
        with_room <= others.len().div_ceil(2)
    }
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
        let due = self.room.said.is_none_or(|said| now >= said + SAY_TICKS);
        if self.room.low_here && due {
            self.room.said = Some(now);
            let others = self.cluster.machine.servers.keys().copied().filter(|id| *id != self.config.id);
            let others: Vec<ServerId> = others.collect();
            self.out.extend(others.into_iter().map(|to| Effect::Send { to, message: PeerMessage::LittleRoom }));
        }
        self.tell_room();
    }

    /// The volumes' leader has its shard know.
    fn tell_room(&mut self) {
        let now = self.ticks;
        if !self.volumes.is_ready_to_lead() || self.volumes.halted().is_some() {
            self.room.leads_since = None;
            return;
        }
        let since = *self.room.leads_since.get_or_insert(now);
        let voters = self.volumes.members().voters.into_iter().map(ServerId);
        let others: Vec<(ServerId, bool)> =
            voters.filter(|id| *id != self.config.id).map(|id| (id, self.volumes.hears(id.0))).collect();
        self.room.look(now, &others);
        let short = self.room.is_short(now, &others);
        // Who leads since a moment ago has not heard everybody yet, and lifts nothing.
        let may = short || now >= since + SILENT_TICKS;
        if may && short != self.volumes.machine.is_short_of_room() {
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
        let few = |here: bool, low: &[u64], others: u64| {
            let low_there = low.iter().map(|id| (ServerId(*id), 0)).collect();
            let room = Room { low_here: here, low_there, ..Room::default() };
            room.is_short(1, &(2..2 + others).map(|id| (ServerId(id), true)).collect::<Vec<_>>())
        };
        assert!(!few(false, &[], 2) && !few(false, &[2], 2) && few(false, &[2, 3], 2) && few(true, &[2], 2));
        assert!(few(true, &[], 0) && !few(false, &[7], 0), "who does not vote does not count");
        assert!(!few(true, &[4], 4) && few(true, &[2, 4], 4) && few(false, &[2], 1) && !few(false, &[], 1));
    }

    #[test]
    fn who_is_not_heard_keeps_his_last_word_and_is_not_counted_on_for_long() {
        let mut room = Room::default();
        let (b, c) = (ServerId(2), ServerId(3));
        room.low_there.extend([(b, 0), (c, 0)]);
        room.look(1, &[(b, true), (c, false)]);
        assert!(room.is_short(1, &[(b, true), (c, false)]));
        let later = SILENT_TICKS + 1;
        room.low_there.insert(b, later);
        room.look(later, &[(b, true), (c, false)]);
        assert!(room.is_short(later, &[(b, true), (c, false)]), "c died with a full disk");
        room.look(2 * later, &[(b, true), (c, true)]);
        assert!(!room.is_short(2 * later, &[(b, true), (c, true)]), "both are heard, and say nothing");
        // One that was away before another one's disk filled.
        let mut room = Room::default();
        room.look(0, &[(b, true), (c, false)]);
        room.low_there.insert(b, AWAY_TICKS);
        assert!(!room.is_short(AWAY_TICKS - 1, &[(b, true), (c, false)]), "it may be starting again");
        assert!(room.is_short(AWAY_TICKS, &[(b, true), (c, false)]));
    }
}
