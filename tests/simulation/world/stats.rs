//! What a run came to, so that nothing stays untested without anybody's noticing.

use holdfast_metadata_core::Counters;
use std::fmt;

/// Of the harness.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Faults begun.
    pub faults: u64,
    /// Faults that waited for their moment, and found it.
    pub ambushes: u64,
    /// Openings that found a torn record.
    pub torn: u64,
    /// Maps that storage nodes took.
    pub maps: u64,
    /// Sessions told to stop caching.
    pub recalls: u64,
    /// Mounts.
    pub mounts: u64,
    /// Clients that died.
    pub clients_died: u64,
    /// Bytes that sessions which were fenced had not flushed.
    pub lost_bytes: u64,
    /// Calls answered.
    pub calls: u64,
    /// Entries committed in shard 1.
    pub entries: u64,
    /// Reads of the namespace compared with the model.
    pub queries: u64,
    /// Locks that callers were told they hold.
    pub locks: u64,
    /// Waits for a lock that ended because it was free.
    pub lock_waits: u64,
    /// Waits for a lock that would have closed a circle.
    pub lock_circles: u64,
    /// Files that were not opened, since they were open elsewhere.
    pub opens_refused: u64,
    /// Waits for a file that ended because it was not open elsewhere any more.
    pub open_waits: u64,
    /// Values of slots read and judged.
    pub values: u64,
    /// Nodes that were to go for good.
    pub removals_asked: u64,
    /// Chunks removed from nodes that their groups had left.
    pub discarded: u64,
    /// Blocks damaged.
    pub damaged: u64,
    /// Blocks put right with another member's bytes.
    pub repairs: u64,
    /// Scrubs of groups ended, as members were told.
    pub scrubs: u64,
    /// Runs that ended because a block was lost with everybody who had it.
    pub lost_to_damage: u64,
    /// Of the storage cores, all lives of all nodes.
    pub storage: holdfast_storage_core::Counters,
    /// Virtual seconds.
    pub seconds: u64,
}

/// Of the metadata cores, all lives of all servers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Harness.
    pub stats: Stats,
    /// Seeds.
    pub seeds: u64,
    /// Elections won.
    pub elections: u64,
    /// Leaderships lost with a proposal in flight.
    pub lost_in_flight: u64,
    /// Mutations answered from the table of answers.
    pub repeated: u64,
    /// Snapshots installed.
    pub snapshots: u64,
    /// Views changed.
    pub views: u64,
    /// Log suffixes cut.
    pub suffixes: u64,
    /// Logs cut from below.
    pub logs_cut: u64,
    /// Reads by ReadIndex.
    pub reads: u64,
    /// Sessions fenced.
    pub fences: u64,
    /// Purges and trims sent to storage nodes.
    pub chunk_requests: u64,
    /// Homes of groups moved.
    pub rehomed: u64,
    /// Disks found slower than their peers, and times one was taken out of its views.
    pub slow: u64,
    /// See `slow`.
    pub slow_out: u64,
}

impl Totals {
    pub(super) fn add_server(&mut self, counters: &Counters) {
        self.elections += counters.elections_won;
        self.lost_in_flight += counters.leaderships_lost_in_flight;
        self.repeated += counters.answers_repeated;
        self.snapshots += counters.snapshots_installed;
        self.views += counters.view_changes;
        self.suffixes += counters.suffixes_cut;
        self.logs_cut += counters.logs_cut;
        self.reads += counters.reads;
        self.fences += counters.fences;
        self.chunk_requests += counters.chunk_requests;
        self.rehomed += counters.rehomed;
        self.slow += counters.disks_slow;
        self.slow_out += counters.disks_slow_out;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let (mine, theirs) = (&mut self.stats, &other.stats);
        mine.storage += theirs.storage;
        for (mine, theirs) in [
            (&mut mine.faults, theirs.faults),
            (&mut mine.ambushes, theirs.ambushes),
            (&mut mine.torn, theirs.torn),
            (&mut mine.maps, theirs.maps),
            (&mut mine.recalls, theirs.recalls),
            (&mut mine.mounts, theirs.mounts),
            (&mut mine.clients_died, theirs.clients_died),
            (&mut mine.lost_bytes, theirs.lost_bytes),
            (&mut mine.calls, theirs.calls),
            (&mut mine.entries, theirs.entries),
            (&mut mine.queries, theirs.queries),
            (&mut mine.locks, theirs.locks),
            (&mut mine.lock_waits, theirs.lock_waits),
            (&mut mine.lock_circles, theirs.lock_circles),
            (&mut mine.opens_refused, theirs.opens_refused),
            (&mut mine.open_waits, theirs.open_waits),
            (&mut mine.values, theirs.values),
            (&mut mine.removals_asked, theirs.removals_asked),
            (&mut mine.discarded, theirs.discarded),
            (&mut mine.damaged, theirs.damaged),
            (&mut mine.repairs, theirs.repairs),
            (&mut mine.scrubs, theirs.scrubs),
            (&mut mine.lost_to_damage, theirs.lost_to_damage),
            (&mut mine.seconds, theirs.seconds),
            (&mut self.seeds, other.seeds),
            (&mut self.elections, other.elections),
            (&mut self.lost_in_flight, other.lost_in_flight),
            (&mut self.repeated, other.repeated),
            (&mut self.snapshots, other.snapshots),
            (&mut self.views, other.views),
            (&mut self.suffixes, other.suffixes),
            (&mut self.logs_cut, other.logs_cut),
            (&mut self.reads, other.reads),
            (&mut self.fences, other.fences),
            (&mut self.chunk_requests, other.chunk_requests),
            (&mut self.rehomed, other.rehomed),
            (&mut self.slow, other.slow),
            (&mut self.slow_out, other.slow_out),
        ] {
            *mine += theirs;
        }
    }

    /// What must have happened in enough seeds, and whether it did. In words for people.
    pub fn coverage(&self) -> [(&'static str, u64); 36] {
        let storage = &self.stats.storage;
        [
            ("elections", self.elections),
            ("leader changes with a proposal in flight", self.lost_in_flight),
            ("retries answered from the table", self.repeated),
            ("torn records found", self.stats.torn),
            ("snapshots installed", self.snapshots),
            ("view changes", self.views),
            ("log suffixes cut", self.suffixes),
            ("reads by ReadIndex", self.reads),
            ("logs cut from below", self.logs_cut),
            ("sessions fenced", self.fences),
            ("caching recalled", self.stats.recalls),
            ("clients died", self.stats.clients_died),
            ("purges and trims", self.chunk_requests),
            ("queries compared with the model", self.stats.queries),
            ("locks held", self.stats.locks),
            ("locks waited for", self.stats.lock_waits),
            ("circles of waiting owners refused", self.stats.lock_circles),
            ("opens refused", self.stats.opens_refused),
            ("opens that waited for a fence or a close", self.stats.open_waits),
            ("slots read and judged", self.stats.values),
            ("mounts", self.stats.mounts),
            ("ambushes", self.stats.ambushes),
            ("homes of groups moved", self.rehomed),
            ("disks found slow", self.slow),
            ("slow disks taken out of their views", self.slow_out),
            ("chunks removed where their group had left", self.stats.discarded),
            ("nodes to go for good", self.stats.removals_asked),
            ("blocks damaged", self.stats.damaged),
            ("repairs of damaged blocks", self.stats.repairs),
            ("scrubs of groups", self.stats.scrubs),
            ("reconciliations", storage.reconciliations),
            ("copies that reconciliations sent to members in sync", storage.reconciled_copies),
            ("resyncs interrupted", storage.resyncs_interrupted),
            ("changes numbered while a promotion was asked for", storage.changes_while_promoting),
            ("deletions that a member had missed", storage.deletions_caught_up),
            ("messages of another epoch or life refused", storage.strange_messages),
        ]
    }

    /// What never happened, and what happened too often: one run of a hundred may end for a lost block.
    pub fn missing(&self) -> Vec<&'static str> {
        let rare = self.stats.lost_to_damage * 100 > self.seeds.max(100);
        let never = self.coverage().into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name);
        never.chain(rare.then_some("runs that do not end for a lost block")).collect()
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = self.seeds.max(1);
        writeln!(
            f,
            "{} seeds; per seed {} calls, {} faults, {} entries, {} virtual seconds",
            self.seeds,
            self.stats.calls / seeds,
            self.stats.faults / seeds,
            self.stats.entries / seeds,
            self.stats.seconds / seeds
        )?;
        self.coverage().into_iter().try_for_each(|(name, count)| writeln!(f, "{count:>12}  {name}"))?;
        writeln!(f, "{:>12}  runs ended for a block that was lost for good", self.stats.lost_to_damage)
    }
}
