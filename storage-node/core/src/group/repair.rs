//! Making one member's chunks equal to the primary's: after a view change for a few chunks, in a resync for all.
//!
//! ```text
//! list a batch here ──▶ Compare ──▶ Differences ──▶ for each chunk: hold it, wait for this disk's changes of it,
//!       ▲                                           sum it, read the blocks that differ, put them on the stream, let it go
//!       └───────────────── batch done ◀─────────────────────────────────────────────────────────┘
//! ```
//! * A copy is read and gets its place in the stream while no operation on its chunk can be numbered: an old block never lands on a
//!   newer one.
//! * Digests and sums of the member may be older or newer than the primary's. That is sound because the operations between are on the
//!   stream as well, and changes are positional: applying them again to blocks that already show them changes nothing.
//! * What is on its way is bounded by `Limits::copies` and `Limits::copy_bytes`.

use crate::book::Ctx;
use crate::group::admit::{Waiting, Wanted};
use crate::group::base::{Base, Tag};
use crate::group::primary::{PendingOp, Phase, Primary};
use crate::local::{
    self, Change, ChunkSummary, ChunkSums, Contenders, KeyRange, LocalCommand, LocalError, LocalOutcome, Origin,
};
use bytes::Bytes;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, Instant, MemberId, OpCount};
use holdfast_wire::group::{COMPARE_CHUNKS_MAX, ChunkDigest, Difference, GroupBody};
use std::collections::{BTreeMap, VecDeque};

/// Most bytes of one read and one item of a copy. By eye.
const RUN_BYTES_MAX: u32 = 1 << 20;

/// A repair under way.
#[derive(Debug)]
pub(crate) struct Repair {
    /// Keys not compared yet, in order.
    ranges: VecDeque<KeyRange>,
    step: Step,
    /// Chunks that differ and are not being copied yet.
    todo: VecDeque<Difference>,
    copying: BTreeMap<ChunkKey, Copying>,
    next_id: u64,
}

#[derive(Debug)]
enum Step {
    /// The next batch is to be listed.
    Idle,
    /// This disk lists.
    Listing,
    /// The member compares.
    Asked { question: GroupBody, asked_at: Instant, since: Instant },
}

#[derive(Debug)]
struct Copying {
    theirs: Difference,
    stage: Stage,
}

/// Bytes to be read, and what was read: the bytes and their sums.
type Run = (u32, Option<(Bytes, Vec<u32>)>);

#[derive(Debug)]
enum Stage {
    /// This disk still has changes of the chunk under way.
    Held,
    /// This disk sums.
    Summing,
    /// This disk reads: where each run starts, its length and what was read.
    Reading { length: u32, runs: BTreeMap<u32, Run>, contenders: Contenders },
}

impl Repair {
    /// A repair of these keys: sorted and apart.
    pub(crate) fn new(ranges: Vec<KeyRange>) -> Self {
        let (step, todo, copying) = (Step::Idle, VecDeque::new(), BTreeMap::new());
        Self { ranges: ranges.into(), step, todo, copying, next_id: 1 }
    }

    /// A chunk is copied as a whole: its sums are equal, and its bytes are not.
    pub(crate) fn whole(chunk: ChunkKey, length: u32) -> Self {
        let mut repair = Self::new(Vec::new());
        repair.todo.push_back(Difference { chunk, length, sums: Vec::new(), contenders: Vec::new() });
        repair
    }

    /// What the member has of a chunk that is to be copied.
    pub(crate) fn wanted(&self, chunk: ChunkKey) -> Option<&Difference> {
        self.todo.iter().find(|difference| difference.chunk == chunk)
    }

    /// Everything was compared, and copies were put on the stream.
    pub(crate) fn is_done(&self) -> bool {
        self.ranges.is_empty() && self.todo.is_empty() && self.copying.is_empty()
    }

    /// Since when the member owes an answer.
    pub(crate) fn waits_since(&self) -> Option<Instant> {
        match self.step {
            Step::Asked { since, .. } => Some(since),
            Step::Idle | Step::Listing => None,
        }
    }

    /// The member's time starts again (we were the ones asleep).
    pub(crate) fn excuse(&mut self, now: Instant) {
        if let Step::Asked { since, .. } = &mut self.step {
            *since = now;
        }
    }
}

impl Primary {
    /// Goes on with a member's repair as far as it can.
    pub(crate) fn step_repair(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, member: MemberId) {
        self.start_copies(base, ctx, member);
        let Some(repair) = self.repairs.get_mut(&member) else { return };
        let at_rest = repair.todo.is_empty() && repair.copying.is_empty() && matches!(repair.step, Step::Idle);
        if let Some(range) = repair.ranges.front().filter(|_| at_rest) {
            repair.step = Step::Listing;
            let limit = COMPARE_CHUNKS_MAX as u32;
            let command = LocalCommand::List { group: base.group, range: *range, limit };
            base.local(ctx, command, Tag::RepairList(member));
            return;
        }
        if repair.is_done() {
            self.repaired(base, ctx);
            self.maybe_promote(base, ctx, member);
            if self.is_serving() && base.view.in_sync.contains(&member) {
                self.repairs.remove(&member);
            }
        }
    }

    /// This disk listed a batch: the member compares.
    pub(crate) fn listed(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        member: MemberId,
        result: Result<LocalOutcome, LocalError>,
    ) {
        let (Some(repair), Some(stream)) = (self.repairs.get_mut(&member), self.streams.get(&member)) else { return };
        let Some(range) = repair.ranges.front() else { return };
        let Ok(LocalOutcome::Chunks { chunks }) = result else {
            self.aside = true;
            repair.step = Step::Idle;
            return;
        };
        let last = match chunks.last() {
            Some(chunk) if chunks.len() >= COMPARE_CHUNKS_MAX => chunk.chunk,
            _ => range.last,
        };
        let digest = |c: &ChunkSummary| ChunkDigest { chunk: c.chunk, length: c.length, digest: c.digest };
        repair.next_id += 1;
        let question = GroupBody::Compare {
            stream: stream.id,
            id: repair.next_id,
            range: KeyRange { first: range.first, last },
            chunks: chunks.iter().map(digest).collect(),
        };
        base.send(ctx, member, question.clone(), Bytes::new());
        repair.step = Step::Asked { question, asked_at: ctx.now, since: ctx.now };
    }

    /// Asks members that owe a comparison again, and starts what had to wait.
    pub(crate) fn tick_repairs(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        for (member, repair) in &mut self.repairs {
            if let Step::Asked { question, asked_at, .. } = &mut repair.step
                && ctx.now.since(*asked_at) >= ctx.config.limits.resend
            {
                *asked_at = ctx.now;
                base.send(ctx, *member, question.clone(), Bytes::new());
            }
        }
        for member in self.repairs.keys().copied().collect::<Vec<_>>() {
            self.step_repair(base, ctx, member);
        }
    }

    /// A member compared.
    pub(crate) fn differences(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        from: MemberId,
        (stream, id): (u64, u64),
        through: ChunkKey,
        chunks: Vec<Difference>,
    ) {
        let known = self.streams.get(&from).is_some_and(|out| out.id == stream);
        let Some(repair) = self.repairs.get_mut(&from).filter(|_| known) else { return };
        let asked = match &repair.step {
            Step::Asked { question: GroupBody::Compare { id: asked, range, .. }, .. } if *asked == id => *range,
            Step::Asked { .. } | Step::Idle | Step::Listing => return,
        };
        if !asked.contains(through) || !chunks.iter().all(|c| asked.contains(c.chunk) && c.chunk <= through) {
            return; // Not an answer to what was asked: a peer of another mind. Asked again in time.
        }
        repair.step = Step::Idle;
        repair.todo.extend(chunks);
        if let Some(front) = repair.ranges.pop_front()
            && let Some(rest) = front.after(through)
        {
            repair.ranges.push_front(rest);
        }
        self.step_repair(base, ctx, from);
    }

    /// Takes up chunks that differ while there is room.
    fn start_copies(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, member: MemberId) {
        let limits = &ctx.config.limits;
        let changes_go_on = self.is_serving() && self.may_number(base, ctx) && !self.solo_stopped(base, ctx);
        let (Some(repair), Some(stream)) = (self.repairs.get_mut(&member), self.streams.get(&member)) else { return };
        let mut postponed = VecDeque::new();
        while repair.copying.len() < limits.copies && stream.bytes < limits.copy_bytes {
            let Some(theirs) = repair.todo.pop_front() else { break };
            let chunk = theirs.chunk;
            let wanted = |waiting: &Waiting| match &waiting.wanted {
                Wanted::Change(_, span) => span.touches(chunk),
                Wanted::Read(_) => false,
            };
            if base.checkups.is_open(chunk) || base.checkups.failed_lately(chunk, ctx) {
                postponed.push_back(theirs);
                continue;
            }
            if changes_go_on && self.waiting.iter().any(wanted) {
                // A change of it waits already and can go on: it goes first, or copies could keep it waiting for ever.
                postponed.push_back(theirs);
                continue;
            }
            *self.held.entry(chunk).or_default() += 1;
            repair.copying.insert(chunk, Copying { theirs, stage: Stage::Held });
        }
        repair.todo.append(&mut postponed);
        self.poll_copies(base, ctx);
    }

    /// Starts summing the held chunks that this disk has no change of under way.
    pub(crate) fn poll_copies(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let group = base.group;
        for (member, repair) in &mut self.repairs {
            for (chunk, copying) in &mut repair.copying {
                let under_way = |op: &PendingOp| !op.local_done && op.failed.is_none() && op.span.touches(*chunk);
                let busy = || !ctx.config.mutations.copy_too_early && self.ops.values().any(under_way);
                if matches!(copying.stage, Stage::Held) && !busy() {
                    copying.stage = Stage::Summing;
                    let command = LocalCommand::BlockSums { group, chunk: *chunk };
                    base.local(ctx, command, Tag::CopySums(*member, *chunk));
                }
            }
        }
    }

    /// This disk summed a chunk: read the blocks that differ.
    pub(crate) fn summed(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        (member, chunk): (MemberId, ChunkKey),
        result: Result<LocalOutcome, LocalError>,
    ) {
        let Some(copying) = self.repairs.get_mut(&member).and_then(|repair| repair.copying.get_mut(&chunk)) else {
            return;
        };
        let Ok(LocalOutcome::Sums { found }) = result else {
            return self.cannot_copy(base, ctx, member, chunk);
        };
        let ChunkSums { length, sums, contenders } = found.unwrap_or_default();
        let mut runs = BTreeMap::new();
        for (from, run) in differing_runs(length, &sums, &copying.theirs) {
            let command = LocalCommand::Read { group: base.group, chunk, offset: from, length: run };
            base.local(ctx, command, Tag::CopyRead(member, chunk, from));
            runs.insert(from, (run, None));
        }
        copying.stage = Stage::Reading { length, runs, contenders };
        self.copy_ready(base, ctx, member, chunk);
    }

    /// This disk read a run.
    pub(crate) fn copied(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        (member, chunk, from): (MemberId, ChunkKey, u32),
        result: Result<LocalOutcome, LocalError>,
    ) {
        let Some(copying) = self.repairs.get_mut(&member).and_then(|repair| repair.copying.get_mut(&chunk)) else {
            return;
        };
        let Stage::Reading { runs, .. } = &mut copying.stage else { return };
        let Some((want, read)) = runs.get_mut(&from) else { return };
        match result {
            Ok(LocalOutcome::Data { bytes, sums }) if bytes.len() == *want as usize => *read = Some((bytes, sums)),
            Ok(_) | Err(_) => return self.cannot_copy(base, ctx, member, chunk),
        }
        self.copy_ready(base, ctx, member, chunk);
    }

    /// Puts a copy on the stream once all of it was read, and lets the chunk go.
    fn copy_ready(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, member: MemberId, chunk: ChunkKey) {
        let (Some(repair), Some(stream)) = (self.repairs.get_mut(&member), self.streams.get_mut(&member)) else {
            return;
        };
        let Some(copying) = repair.copying.get(&chunk) else { return };
        let Stage::Reading { length, runs, contenders } = &copying.stage else { return };
        if runs.values().any(|(_, read)| read.is_none()) {
            return;
        }
        // In the primary's order: after every operation that it has given to this stream.
        let number = base.number(OpCount(self.next_count.0 - 1));
        let dropped = ctx.config.mutations.repair_dropped && base.view.in_sync.contains(&member);
        let mut copies = if dropped { Vec::new() } else { copy_of(chunk, *length, runs, contenders, &copying.theirs) };
        let deletes = |change: &Change| matches!(change, Change::DeleteChunk { .. });
        if ctx.config.mutations.deleted_kept {
            copies.retain(|change| !deletes(change));
        }
        ctx.book.counters.deletions_caught_up += u64::from(copies.iter().any(deletes));
        if matches!(self.phase, Phase::Repairing) {
            ctx.book.counters.reconciled_copies += copies.len() as u64;
        }
        for change in copies {
            stream.push(base, ctx, number, Origin::MEMBERS, &change, false);
        }
        repair.copying.remove(&chunk);
        self.let_go(chunk);
        self.pump(base, ctx);
        self.step_repair(base, ctx, member);
    }

    /// This disk's copy cannot be read. It is put right first; when nobody has what it should be, somebody else has to be primary, and it is
    /// tried again until then.
    fn cannot_copy(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, member: MemberId, chunk: ChunkKey) {
        base.check(ctx, chunk);
        if let Some(repair) = self.repairs.get_mut(&member)
            && let Some(copying) = repair.copying.remove(&chunk)
        {
            repair.todo.push_back(copying.theirs);
            self.let_go(chunk);
        }
        self.pump(base, ctx);
    }

    fn let_go(&mut self, chunk: ChunkKey) {
        if let Some(holders) = self.held.get_mut(&chunk) {
            *holders -= 1;
            if *holders == 0 {
                self.held.remove(&chunk);
            }
        }
    }

    /// What should be held: a chunk for each copy of it that is being taken.
    pub(crate) fn holds(&self) -> BTreeMap<ChunkKey, u32> {
        let mut holds = BTreeMap::new();
        for chunk in self.repairs.values().flat_map(|repair| repair.copying.keys()) {
            *holds.entry(*chunk).or_default() += 1;
        }
        holds
    }

    /// Ends a member's repair and stream; what was held for it is let go.
    pub(crate) fn drop_member(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, member: MemberId) {
        assert!(!base.view.in_sync.contains(&member), "a member in sync is never dropped by the primary");
        assert!(!self.promoting.contains_key(&member), "a member whose promotion was asked for counts");
        self.streams.remove(&member);
        self.here.remove(&member);
        if let Some(repair) = self.repairs.remove(&member) {
            ctx.book.counters.resyncs_interrupted += 1;
            for chunk in repair.copying.keys() {
                self.let_go(*chunk);
            }
        }
        if self.repairs.is_empty() {
            ctx.book.resyncs.remove(&base.group);
        }
        self.pump(base, ctx);
    }
}

/// What makes a member's chunk equal to this disk's. In one change when anybody contended for it: a member that is stopped half-way may
/// be the next primary, and must remember no contended change whose bytes it has not.
fn copy_of(
    chunk: ChunkKey,
    length: u32,
    runs: &BTreeMap<u32, Run>,
    contenders: &Contenders,
    theirs: &Difference,
) -> Vec<Change> {
    let read = runs.iter().filter_map(|(offset, (_, read))| read.as_ref().map(|(bytes, sums)| (*offset, bytes, sums)));
    if length == 0 && contenders.is_empty() {
        let there = theirs.length > 0 || !theirs.contenders.is_empty();
        return there.then_some(Change::DeleteChunk { chunk }).into_iter().collect();
    }
    // The block that is cut in two may be the damaged one: then it is replaced whole, before anybody looks at what it keeps.
    let in_two = |(offset, read): (&u32, &Run)| {
        theirs.length > length && read.1.as_ref().is_some_and(|(bytes, _)| *offset + bytes.len() as u32 == length)
    };
    if !contenders.is_empty() || !theirs.contenders.is_empty() || runs.last_key_value().is_some_and(in_two) {
        let runs = read.map(|(offset, bytes, sums)| local::Run { offset, sums: sums.clone(), bytes: bytes.clone() });
        return vec![Change::Copy { chunk, length, runs: runs.collect(), contenders: contenders.clone() }];
    }
    let cut = (theirs.length > length).then_some(Change::Cut { chunk, length });
    let write = |(offset, bytes, sums): (u32, &Bytes, &Vec<u32>)| Change::Write {
        chunk,
        offset,
        sums: sums.clone(),
        bytes: bytes.clone(),
    };
    cut.into_iter().chain(read.map(write)).collect()
}

/// Runs of bytes whose blocks differ, cut at [`RUN_BYTES_MAX`]. The last block travels whenever the member's chunk is shorter, so that
/// it grows to the same length.
fn differing_runs(length: u32, sums: &[u32], theirs: &Difference) -> Vec<(u32, u32)> {
    let block = BLOCK_BYTES as u32;
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (index, sum) in sums.iter().enumerate() {
        let from = index as u32 * block;
        if from >= length {
            break;
        }
        let bytes = block.min(length - from);
        let grows = theirs.length < length && from + bytes == length;
        if theirs.sums.get(index) == Some(sum) && !grows {
            continue;
        }
        match runs.last_mut() {
            Some((start, run)) if *start + *run == from && *run + bytes <= RUN_BYTES_MAX => *run += bytes,
            _ => runs.push((from, bytes)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{Sequence, SessionId};
    use holdfast_wire::group::Contender;

    fn theirs(length: u32, sums: &[u32]) -> Difference {
        let chunk = KeyRange::ALL.first;
        Difference { chunk, length, sums: sums.to_vec(), contenders: Vec::new() }
    }

    #[test]
    fn only_differing_blocks_travel() {
        assert_eq!(differing_runs(12_288, &[1, 2, 3], &theirs(12_288, &[1, 9, 3])), [(4096, 4096)]);
        assert_eq!(differing_runs(12_288, &[1, 2, 3], &theirs(0, &[])), [(0, 12_288)]);
        assert_eq!(differing_runs(0, &[], &theirs(5, &[1])), []);
    }

    #[test]
    fn a_shorter_chunk_gets_the_last_block_even_if_it_is_equal() {
        assert_eq!(differing_runs(6000, &[1, 2], &theirs(5000, &[1, 2])), [(4096, 1904)]);
        assert_eq!(differing_runs(5000, &[1, 2], &theirs(6000, &[1, 2])), []);
    }

    #[test]
    fn what_was_contended_for_is_copied_at_once() {
        let contender = Contender { session: SessionId(1), last: Sequence(2), cut: Sequence(0) };
        let contended = Contenders::from_list(vec![contender]).expect("one");
        let run = |offset: u32, bytes: usize| {
            let bytes = Bytes::from(vec![7; bytes]);
            (offset, (bytes.len() as u32, Some((bytes.clone(), vec![1]))))
        };
        let runs = BTreeMap::from([run(0, 4096), run(8192, 100)]);
        let chunk = KeyRange::ALL.first;
        let copy = |length, runs: &BTreeMap<u32, Run>, ours: &Contenders, theirs: &Difference| {
            copy_of(chunk, length, runs, ours, theirs)
        };
        let nobody = Contenders::default();
        let (long, shown) = (theirs(9000, &[]), Difference { contenders: vec![contender], ..theirs(9000, &[]) });
        let of_lengths = |changes: Vec<Change>| changes.iter().map(Change::bytes).collect::<Vec<_>>();
        assert_eq!(of_lengths(copy(8292, &runs, &nobody, &long)), [4196], "the block that is cut in two is replaced");
        assert_eq!(of_lengths(copy(8500, &runs, &nobody, &long)), [0, 4096, 100], "cut and written one by one");
        for (ours, theirs) in [(&contended, &long), (&nobody, &shown), (&contended, &shown)] {
            assert_eq!(of_lengths(copy(8292, &runs, ours, theirs)), [4196]);
        }
        assert_eq!(copy(0, &BTreeMap::new(), &nobody, &shown), [Change::DeleteChunk { chunk }]);
        assert_eq!(copy(0, &BTreeMap::new(), &nobody, &theirs(0, &[])), []);
        let emptied = copy(0, &BTreeMap::new(), &contended, &long);
        assert_eq!(emptied, [Change::Copy { chunk, length: 0, runs: Vec::new(), contenders: contended }]);
    }
}
