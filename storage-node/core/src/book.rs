//! What all groups of a node share while a step is taken: time, map, effects, tickets, bounds.

use crate::api::{Config, Counters, Effect};
use crate::local::{LocalCommand, Ticket};
use crate::scrub::Scrubs;
use bytes::Bytes;
use holdfast_types::{DiskId, GroupId, Instant, MapVersion, NodeId};
use holdfast_wire::chunk::{ChunkAnswer, Refusal};
use holdfast_wire::map::ClusterMap;
use holdfast_wire::metadata::Request;
use std::collections::{BTreeMap, BTreeSet};

/// The node's own books.
#[derive(Debug, Default)]
pub(crate) struct Book {
    next_ticket: u64,
    next_token: u64,
    /// Whose command it is, and on which disk.
    pub(crate) owners: BTreeMap<Ticket, (GroupId, DiskId)>,
    /// Requests that have no answer yet.
    pub(crate) requests: BTreeMap<u64, GroupId>,
    /// Bytes of changes that wait or are unsettled.
    pub(crate) bytes: usize,
    /// Groups that want ticks.
    pub(crate) active: BTreeSet<GroupId>,
    /// Groups that hold a resync slot.
    pub(crate) resyncs: BTreeSet<GroupId>,
    pub(crate) counters: Counters,
    /// Bytes of chunks put on streams so that members have what the primary has.
    pub(crate) copied_bytes: u64,
    /// Groups whose copies here are being removed.
    pub(crate) discarding: BTreeSet<GroupId>,
    /// Chunks removed so.
    pub(crate) discarded: u64,
    /// When groups are scrubbed, and how fast.
    pub(crate) scrubs: Scrubs,
    /// Disks that are nearly full.
    pub(crate) low: BTreeSet<DiskId>,
    /// Nodes whose stream is gone, and since when.
    pub(crate) lost: BTreeMap<NodeId, Instant>,
    /// Nodes where nobody listened, and when that was last told.
    pub(crate) refused: BTreeMap<NodeId, Instant>,
    /// When the last heartbeat that was answered was sent.
    pub(crate) leader_heard: Option<Instant>,
    /// Versions with operations of ended sessions that are not settled yet, and in how many groups.
    pub(crate) fences: BTreeMap<MapVersion, usize>,
    /// A map known to exist, and when it was last asked for.
    map_wanted: MapVersion,
    map_asked: Option<Instant>,
}

impl Book {
    pub(crate) fn new(scrubs: Scrubs) -> Self {
        Self { scrubs, ..Self::default() }
    }
}

/// One step's surroundings.
pub(crate) struct Ctx<'a> {
    pub(crate) now: Instant,
    pub(crate) config: &'a Config,
    pub(crate) map: &'a ClusterMap,
    pub(crate) book: &'a mut Book,
    pub(crate) effects: &'a mut Vec<Effect>,
}

impl Ctx<'_> {
    /// Gives a command to a disk.
    pub(crate) fn local(&mut self, group: GroupId, disk: DiskId, command: LocalCommand) -> Ticket {
        self.book.next_ticket += 1;
        let ticket = Ticket(self.book.next_ticket);
        self.book.owners.insert(ticket, (group, disk));
        self.effects.push(Effect::Local { disk, ticket, command });
        ticket
    }

    /// Answers a request, once; a request that was cancelled or answered before gets nothing.
    pub(crate) fn answer(&mut self, id: u64, answer: ChunkAnswer, payload: Bytes) {
        if self.book.requests.remove(&id).is_some() {
            self.effects.push(Effect::Answer { id, answer, payload });
        }
    }

    /// Refuses a request.
    pub(crate) fn refuse(&mut self, id: u64, refusal: Refusal) {
        self.answer(id, ChunkAnswer::Refused(refusal), Bytes::new());
    }

    /// Asks the metadata service to change a view.
    pub(crate) fn ask_view(&mut self, request: Request) {
        self.book.next_token += 1;
        self.effects.push(Effect::AskView { token: self.book.next_token, request });
    }

    /// There is a map of this version: get it, but do not ask for the same one over and over.
    pub(crate) fn want_map(&mut self, version: MapVersion) {
        if version <= self.map.version {
            return;
        }
        let recently = self.book.map_asked.is_some_and(|asked| self.now.since(asked) < self.config.limits.resend);
        if version > self.book.map_wanted || !recently {
            self.book.map_wanted = self.book.map_wanted.max(version);
            self.book.map_asked = Some(self.now);
            self.effects.push(Effect::FetchMap { at_least: version });
        }
    }

    /// Asks again for a map that did not come.
    pub(crate) fn want_map_again(&mut self) {
        let wanted = self.book.map_wanted.max(MapVersion(1));
        let asked = self.book.map_asked;
        if asked.is_none_or(|asked| self.now.since(asked) >= self.config.limits.ask_again) {
            self.want_map(wanted);
        }
    }

    /// The metadata leader was heard recently enough for a primary without peers to go on.
    pub(crate) fn leader_near(&self) -> bool {
        self.book.leader_heard.is_some_and(|sent| self.now.since(sent) < self.config.limits.leader_ttl)
    }

    /// One group has no more operations that the fence of this version waits for.
    pub(crate) fn fence_passed(&mut self, version: MapVersion) {
        if let Some(groups) = self.book.fences.get_mut(&version) {
            *groups -= 1;
            if *groups == 0 {
                self.book.fences.remove(&version);
            }
        }
    }
}
