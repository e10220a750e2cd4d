//! Removing chunks: of inodes that are gone, of ends of files that were cut, of volumes that were deleted.
//!
//! The queue is replicated; who leads works it off, and a later leader does again what was not committed as done.
//! * Deleting a generation that nobody uses can be repeated at any time.
//! * Cutting a file that lives can not: a copy of the request that comes late would remove new bytes. So a group has at most
//!   one request of ours in flight, each carries a floor that refuses every earlier one, sequences rise from leader to
//!   leader, and a request that changes nothing comes last: after its answer no earlier copy is taken any more.
//! * A leader that was deposed and does not know it must not cut either what its successor has cut and others have written anew. So
//!   the map says who leads (`service_term`), and a leader sends nothing before a map says it of him: every request names that map
//!   or a newer one, so whoever serves the group from then on refuses the others.
//! * Nobody waits for a purge: purges are sent and reported in bursts, once a tick, so that disks sync once for many of them and are
//!   left to those who wait. Trims are waited for, and go at once.

use super::lead::{Held, Work};
use crate::api::{ChunkFailure, Effect, ticks};
use crate::command::{Trimmed, VolumesCommand};
use crate::core::MetadataCore;
use crate::ops::{in_the_way, reserve_waits};
use crate::tables::Key;
use crate::tables::inode::{self, InodeRow};
use crate::tables::purge::{self, PurgeRow, TrimRow};
use crate::tables::volume::DroppedRow;
use crate::txn::{Txn, decode};
use holdfast_store::Batch;
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::{
    ChunkIndex, ChunkKey, Generation, GroupId, InodeId, Sequence, SessionId, SnapshotNumber, VolumeId,
};
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp, ChunkRequest};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How long a group is left alone after it did not do what was asked.
const RETRY_TICKS: u64 = ticks(Duration::from_millis(250));
/// Ticks after which a request without any answer from the shell counts as failed.
const LOST_TICKS: u64 = ticks(Duration::from_secs(30));
/// Jobs worked on at a time.
const JOBS_MAX: usize = 64;
/// A generation that no file ever has: deleting it changes nothing.
const NO_GENERATION: Generation = Generation(u64::MAX);

/// What is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Trim(VolumeId, InodeId),
    Purge(VolumeId, InodeId, Generation),
    Volume(VolumeId),
}

impl Target {
    /// Whether somebody may be waiting until it is done.
    fn is_waited_for(self) -> bool {
        matches!(self, Self::Trim(..))
    }
}

/// Work on one target: requests by group, in order.
#[derive(Debug)]
struct Job {
    left: BTreeMap<GroupId, VecDeque<ChunkOp>>,
    trim: Option<TrimRow>,
}

#[derive(Debug)]
struct InFlight {
    target: Target,
    group: GroupId,
    sent: u64,
}

/// The leader's memory of what is being removed.
#[derive(Debug, Default)]
pub(crate) struct Cleaner {
    jobs: BTreeMap<Target, Job>,
    in_flight: BTreeMap<u64, InFlight>,
    busy: BTreeSet<GroupId>,
    rest_until: BTreeMap<GroupId, u64>,
    done: BTreeMap<Target, Option<TrimRow>>,
    /// Of the command on its way.
    reported: BTreeSet<Target>,
    sequence: u32,
    /// The tick has come at which purges go on.
    pub(super) ticked: bool,
    /// There may be something to do.
    pub(super) look: bool,
    /// There may be rows of the queues that are not known here.
    pub(super) found_new: bool,
}

impl Cleaner {
    /// A leadership begins: what is in the queues is taken up.
    pub(super) fn begin(&mut self) {
        (self.look, self.found_new) = (true, true);
    }
}

impl MetadataCore {
    /// Starts what can be started, and commits what is done.
    pub(super) fn drive_cleaning(&mut self) {
        if !std::mem::take(&mut self.volumes_lead.cleaner.look) {
            return;
        }
        let ticked = std::mem::take(&mut self.volumes_lead.cleaner.ticked);
        self.drive_dropping();
        self.forget_lost();
        if !self.volumes_lead.is_busy(Work::Cleaned) {
            // Before the queues are looked at: a target that came back while it was reported is new work.
            self.volumes_lead.cleaner.reported.clear();
        }
        if self.cluster.machine.settings.groups > 0 {
            self.find_jobs();
            let term = self.volumes.term();
            let said = self.cluster.machine.settings.service_term;
            if said == term {
                self.send_chunk_requests(ticked);
            } else if said < term && !self.volumes_lead.cleaner.jobs.is_empty() {
                self.forward_lead(term);
            }
        }
        self.report_done(ticked);
    }

    /// Takes up rows of the queues that nobody works on.
    fn find_jobs(&mut self) {
        let room = JOBS_MAX.saturating_sub(self.volumes_lead.cleaner.jobs.len());
        // Half of them at a time: each look costs a scan.
        if room < JOBS_MAX / 2 || !std::mem::take(&mut self.volumes_lead.cleaner.found_new) {
            return;
        }
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        let cleaner = &self.volumes_lead.cleaner;
        let limit = JOBS_MAX + cleaner.jobs.len() + cleaner.done.len() + cleaner.reported.len();
        // A table that cannot be read halts the replica at its next command.
        let trims = txn.prefix(Key::of(purge::TRIM).done(), limit).unwrap_or_default();
        let purges = txn.prefix(Key::of(purge::PURGE).done(), limit).unwrap_or_default();
        let trims = trims.iter().filter_map(|(key, value)| {
            let (volume, inode) = purge::trim_of(key);
            Some((Target::Trim(volume, inode), trim_job((volume, inode), decode(key, value).ok()?, self.groups())))
        });
        let purges = purges.iter().filter_map(|(key, value)| {
            let (volume, inode, generation) = purge::purge_of(key);
            let row: PurgeRow = decode(key, value).ok()?;
            Some((Target::Purge(volume, inode, generation), purge_job((volume, inode, generation), row, self.groups())))
        });
        let volumes = self.volumes.machine.dropped().iter().filter(|(_, row)| **row == DroppedRow::Chunks);
        let volumes = volumes.map(|(volume, _)| (Target::Volume(*volume), volume_job(*volume, self.groups())));
        let is_new = |target: &Target| {
            !cleaner.jobs.contains_key(target)
                && !cleaner.done.contains_key(target)
                && !cleaner.reported.contains(target)
        };
        let found: Vec<_> =
            trims.chain(purges).chain(volumes).filter(|(target, _)| is_new(target)).take(room).collect();
        // There may be more than was looked at.
        self.volumes_lead.cleaner.found_new = found.len() == room;
        self.volumes_lead.cleaner.jobs.extend(found);
    }

    fn groups(&self) -> u32 {
        self.cluster.machine.settings.groups
    }

    fn send_chunk_requests(&mut self, ticked: bool) {
        let limit = self.config.limits.chunk_requests_in_flight;
        let cleaner = &self.volumes_lead.cleaner;
        let resting = |group: &GroupId| cleaner.rest_until.get(group).is_some_and(|until| self.ticks < *until);
        let mut chosen: BTreeMap<GroupId, (Target, ChunkOp)> = BTreeMap::new();
        for (target, job) in cleaner.jobs.iter().filter(|(target, _)| ticked || target.is_waited_for()) {
            if cleaner.in_flight.len() + chosen.len() >= limit {
                break;
            }
            for (group, ops) in &job.left {
                if !cleaner.busy.contains(group)
                    && !resting(group)
                    && !chosen.contains_key(group)
                    && let Some(op) = ops.front()
                    && cleaner.in_flight.len() + chosen.len() < limit
                {
                    chosen.insert(*group, (*target, op.clone()));
                }
            }
        }
        for (group, (target, op)) in chosen {
            self.send_chunk(group, target, op);
        }
    }

    fn send_chunk(&mut self, group: GroupId, target: Target, op: ChunkOp) {
        let Some(row) = self.cluster.machine.groups.get(group.0 as usize) else { return };
        let member = row.view.primary;
        // Of the map as a whole: it holds the view, and says that we lead.
        let (epoch, map_min) = (row.view.epoch, self.cluster.machine.version());
        let Some(node) = self.cluster.machine.nodes.get(&member.node) else { return };
        let address = node.record.address.clone();
        let cleaner = &mut self.volumes_lead.cleaner;
        cleaner.sequence += 1;
        // Above every sequence of every earlier leader.
        let sequence = Sequence(self.volumes.term().0 << 32 | u64::from(cleaner.sequence));
        let request = ChunkRequest {
            session: SessionId::SERVICE,
            sequence,
            floor: sequence,
            map_min,
            term: self.volumes.term(),
            snapshot: SnapshotNumber(0),
            group,
            epoch,
            contended: false,
            repeated: false,
            op,
        };
        let job = sequence.0;
        cleaner.busy.insert(group);
        cleaner.in_flight.insert(job, InFlight { target, group, sent: self.ticks });
        self.counters.chunk_requests += 1;
        self.out.push(Effect::Chunk { job, group, member, address, request });
    }

    /// A storage node has answered, or not.
    pub(crate) fn chunk_done(&mut self, job: u64, result: Result<ChunkAnswer, ChunkFailure>) {
        let rest = self.ticks + RETRY_TICKS;
        let cleaner = &mut self.volumes_lead.cleaner;
        let Some(InFlight { target, group, .. }) = cleaner.in_flight.remove(&job) else { return };
        cleaner.busy.remove(&group);
        cleaner.look = true;
        if !matches!(result, Ok(ChunkAnswer::Done { .. })) {
            cleaner.rest_until.insert(group, rest);
            return;
        }
        cleaner.rest_until.remove(&group);
        let Some(work) = cleaner.jobs.get_mut(&target) else { return };
        if let Some(ops) = work.left.get_mut(&group) {
            ops.pop_front();
            if ops.is_empty() {
                work.left.remove(&group);
            }
        }
        if work.left.is_empty()
            && let Some(work) = cleaner.jobs.remove(&target)
        {
            cleaner.done.insert(target, work.trim);
        }
    }

    /// The shell answers every request; this is for the case that it does not.
    fn forget_lost(&mut self) {
        let now = self.ticks;
        let cleaner = &mut self.volumes_lead.cleaner;
        let Cleaner { in_flight, busy, .. } = cleaner;
        in_flight.retain(|_, request| {
            let keep = now < request.sent + LOST_TICKS;
            if !keep {
                busy.remove(&request.group);
            }
            keep
        });
    }

    fn report_done(&mut self, ticked: bool) {
        if self.volumes_lead.is_busy(Work::Cleaned) {
            return;
        }
        let cleaner = &mut self.volumes_lead.cleaner;
        if !cleaner.done.keys().any(|target| ticked || target.is_waited_for()) {
            return self.wake_held();
        }
        let done = std::mem::take(&mut cleaner.done);
        cleaner.reported = done.keys().copied().collect();
        let (mut purged, mut trimmed, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        for (target, trim) in done {
            match (target, trim) {
                (Target::Trim(volume, inode), Some(TrimRow { generation, from, to })) => {
                    trimmed.push(Trimmed { volume, inode, generation, from, to });
                }
                (Target::Trim(..), None) => {}
                (Target::Purge(volume, inode, generation), _) => purged.push((volume, inode, generation)),
                (Target::Volume(volume), _) => dropped.push(volume),
            }
        }
        for volume in dropped {
            self.propose_own(Work::Drop(volume), VolumesCommand::Dropped { volume });
        }
        self.propose_own(Work::Cleaned, VolumesCommand::Cleaned { purged, trimmed });
    }

    /// Those who wait for bytes to go, or for another's turn at the end of a file to be over, look again.
    fn wake_held(&mut self) {
        if self.volumes_lead.held.is_empty() && self.volumes_lead.held_reads.is_empty() {
            return;
        }
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        let sessions = self.volumes.machine.sessions();
        let trimming = |session: SessionId, inode: InodeId| {
            let volume = sessions.get(&session).map(|row| row.volume);
            volume.is_some_and(|volume| txn.get_raw(&purge::trim(volume, inode)).is_ok_and(|row| row.is_some()))
        };
        let waits = |session: SessionId, inode: InodeId| {
            let Some(row) = sessions.get(&session) else { return false };
            let file: Option<InodeRow> = txn.get(&inode::key(row.volume, inode)).unwrap_or_default();
            file.is_some_and(|file| reserve_waits(&file, session, row.caching))
        };
        let (kept, ready): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volumes_lead.held)
            .into_iter()
            .partition(|held| inode_of(&held.command).is_some_and(|inode| waits(held.session, inode)));
        let (kept_reads, reads): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volumes_lead.held_reads)
            .into_iter()
            .partition(|(_, session, inode)| trimming(*session, *inode));
        self.volumes_lead.held = kept;
        self.volumes_lead.held_reads = kept_reads;
        ready.into_iter().for_each(|held| self.propose_held(held));
        reads.into_iter().for_each(|(waiter, session, inode)| self.read_held(waiter, session, inode));
    }

    /// Sessions that others wait for at the end of a file.
    pub(super) fn at_ends_of_files(&self) -> BTreeSet<SessionId> {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        let sessions = self.volumes.machine.sessions();
        let waited_for = |held: &Held| {
            let (inode, volume) = (inode_of(&held.command)?, sessions.get(&held.session)?.volume);
            let file: Option<InodeRow> = txn.get(&inode::key(volume, inode)).unwrap_or_default();
            Some(in_the_way(&file?, held.session).collect::<Vec<_>>())
        };
        self.volumes_lead.held.iter().filter_map(waited_for).flatten().collect()
    }

    /// Volumes that shard 0 has deleted lose their rows here.
    fn drive_dropping(&mut self) {
        let rows = self.config.limits.rows_per_command as u32;
        let deleting = self.cluster.machine.volumes.iter().filter(|(_, row)| row.deleting).map(|(volume, _)| *volume);
        for volume in deleting.collect::<Vec<_>>() {
            match self.volumes.machine.dropped().get(&volume) {
                None => {
                    let in_use = self.volumes.machine.sessions().values().any(|row| row.volume == volume);
                    if !in_use {
                        self.propose_own(Work::Drop(volume), VolumesCommand::DropVolume { volume });
                    }
                }
                Some(DroppedRow::Rows) => {
                    self.propose_own(Work::Drop(volume), VolumesCommand::DropStep { volume, rows })
                }
                Some(DroppedRow::Chunks | DroppedRow::Done) => {}
            }
        }
    }
}

/// The inode that a held mutation is about.
fn inode_of(command: &VolumesCommand) -> Option<InodeId> {
    match command {
        VolumesCommand::Mutate { mutation: holdfast_wire::namespace::Mutation::Reserve { inode, .. }, .. } => {
            Some(*inode)
        }
        _ => None,
    }
}

/// Groups of the chunks `[first, end)` of a file.
fn groups_of(volume: VolumeId, inode: InodeId, first: u64, end: u64, groups: u32) -> BTreeSet<GroupId> {
    let end = end.min(first.saturating_add(u64::from(groups)));
    (first..end).map(|index| GroupId::of(volume, inode, ChunkIndex(index), groups)).collect()
}

fn purge_job((volume, inode, generation): (VolumeId, InodeId, Generation), row: PurgeRow, groups: u32) -> Job {
    let op = ChunkOp::Delete { volume, inode, generation, from: ChunkIndex(0) };
    let touched = groups_of(volume, inode, 0, row.end.div_ceil(CHUNK_BYTES), groups);
    Job { left: touched.into_iter().map(|group| (group, VecDeque::from([op.clone()]))).collect(), trim: None }
}

fn trim_job((volume, inode): (VolumeId, InodeId), row: TrimRow, groups: u32) -> Job {
    let generation = row.generation;
    let mut left: BTreeMap<GroupId, VecDeque<ChunkOp>> = BTreeMap::new();
    let within = row.from % CHUNK_BYTES;
    if within != 0 {
        let index = ChunkIndex(row.from / CHUNK_BYTES);
        let chunk = ChunkKey { volume, inode, generation, index, born: SnapshotNumber(0) };
        left.entry(GroupId::of(volume, inode, index, groups))
            .or_default()
            .push_back(ChunkOp::Cut { chunk, length: within as u32 });
    }
    let first = row.from.div_ceil(CHUNK_BYTES);
    for group in groups_of(volume, inode, first, row.to.div_ceil(CHUNK_BYTES), groups) {
        let op = ChunkOp::Delete { volume, inode, generation, from: ChunkIndex(first) };
        left.entry(group).or_default().push_back(op);
    }
    for ops in left.values_mut() {
        ops.push_back(ChunkOp::Delete { volume, inode, generation: NO_GENERATION, from: ChunkIndex(0) });
    }
    Job { left, trim: Some(row) }
}

fn volume_job(volume: VolumeId, groups: u32) -> Job {
    let op = ChunkOp::DeleteVolume { volume };
    Job { left: (0..groups).map(|group| (GroupId(group), VecDeque::from([op.clone()]))).collect(), trim: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trim_cuts_the_boundary_deletes_above_and_shuts_the_door() {
        let row = TrimRow { generation: Generation(3), from: CHUNK_BYTES + 10, to: 3 * CHUNK_BYTES };
        let job = trim_job((VolumeId(1), InodeId(9)), row, 64);
        let group = |index| GroupId::of(VolumeId(1), InodeId(9), ChunkIndex(index), 64);
        assert_eq!(job.left.keys().copied().collect::<BTreeSet<_>>(), BTreeSet::from([group(1), group(2)]));
        assert!(matches!(job.left[&group(1)][0], ChunkOp::Cut { length: 10, .. }));
        assert!(matches!(
            job.left[&group(2)][0],
            ChunkOp::Delete { generation: Generation(3), from: ChunkIndex(2), .. }
        ));
        for ops in job.left.values() {
            assert!(matches!(ops.back(), Some(ChunkOp::Delete { generation: NO_GENERATION, .. })));
        }
        let whole = purge_job((VolumeId(1), InodeId(9), Generation(3)), PurgeRow { end: u64::MAX >> 1 }, 64);
        assert_eq!(whole.left.len(), 64, "a sparse giant touches every group once");
    }
}
