//! The primary of a group in one epoch: numbers operations, and acknowledges what every counted member holds durably.
//!
//! ```text
//! Draining ──own changes finished──▶ Querying ──all reported──▶ Repairing ──members identical──▶ Serving
//!     ▲                                                                                            │ own disk refused a change
//!     └────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! * *Counted* members are those in sync, and each syncing one from the moment its promotion is asked for until a map tells.
//! * `committed`: every operation of this era up to it is durable here and on every counted member. Only then is it acknowledged.
//! * `settled` follows `committed`, but never enters a new epoch before all that was open in the older ones is durable everywhere again
//!   (`hold`): otherwise a successor would not look at what members may still differ in.
//! * A count is given once per epoch, and counts rise across epochs.

use crate::api::Mutations;
use crate::book::Ctx;
use crate::group::admit::{Known, Waiting};
use crate::group::adopt::Adoptions;
use crate::group::base::{Base, Tag};
use crate::group::read::Reads;
use crate::group::reconcile::Query;
use crate::group::repair::Repair;
use crate::group::scrub::Run;
use crate::group::stream::{Ack, StreamOut};
use crate::local::{Change, LocalError, LocalOp, Origin};
use crate::span::Span;
use bytes::Bytes;
use holdfast_types::{ChunkKey, Instant, MapVersion, MemberId, OpCount, OpNumber, Sequence, SessionId};
use holdfast_wire::chunk::{ChunkAnswer, Refusal};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where it stands; see the module.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Waits for this disk's changes of older eras.
    Draining,
    /// Asks the members in sync what may differ.
    Querying(Query),
    /// Makes them identical.
    Repairing,
    /// Serves.
    Serving,
}

/// An operation with a number that is not committed.
#[derive(Debug)]
pub(crate) struct PendingOp {
    pub(crate) number: OpNumber,
    pub(crate) origin: Origin,
    pub(crate) change: Change,
    pub(crate) span: Span,
    /// Who is told, if anybody still waits.
    pub(crate) request: Option<u64>,
    /// Durable on this disk.
    pub(crate) local_done: bool,
    /// It was numbered in an older epoch as well, so it may be on the disk already.
    again: bool,
    /// This disk refused it: nothing of it will be left when that is said.
    pub(crate) failed: Option<Refusal>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Primary {
    pub(crate) phase: Phase,
    pub(crate) next_count: OpCount,
    pub(crate) committed: OpCount,
    /// Settled does not advance before this is committed.
    pub(crate) hold: OpCount,
    pub(crate) ops: BTreeMap<OpCount, PendingOp>,
    /// Numbered operations by what a retry would repeat.
    pub(crate) index: BTreeMap<(SessionId, Sequence), OpCount>,
    /// Bytes of `ops`.
    pub(crate) window_bytes: usize,
    pub(crate) streams: BTreeMap<MemberId, StreamOut>,
    pub(crate) next_stream: u64,
    pub(crate) repairs: BTreeMap<MemberId, Repair>,
    /// Chunks that no change may touch while a copy is taken, and by how many copies.
    pub(crate) held: BTreeMap<ChunkKey, u32>,
    /// Members whose promotion was asked for, and when last.
    pub(crate) promoting: BTreeMap<MemberId, Instant>,
    /// Members whose removal was asked for, and when last.
    pub(crate) evictions: BTreeMap<MemberId, Instant>,
    /// Members that said they are in this epoch.
    pub(crate) here: BTreeSet<MemberId>,
    /// Listed members that did not say so, and when they were last told of the epoch.
    pub(crate) nudged: BTreeMap<MemberId, Instant>,
    pub(crate) reads: Reads,
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) waiting_reads: VecDeque<Waiting>,
    /// What is known of each session that asked.
    pub(crate) sessions: BTreeMap<SessionId, Known>,
    /// Fences, and the count up to which each waits for operations.
    pub(crate) fences: Vec<(MapVersion, OpCount)>,
    /// This disk's copy is damaged, and nobody had what it should be: somebody else should be primary.
    pub(crate) aside: bool,
    /// What is taken over while reconciling.
    pub(crate) adoptions: Adoptions,
    /// A scrub under way.
    pub(crate) run: Option<Run>,
    /// Disks that were in sync in the view before (for one of the mutations only).
    pub(crate) known_before: Vec<MemberId>,
}

impl Primary {
    /// A primary that knows nothing of the group's last operations yet.
    pub(crate) fn new(base: &Base) -> Self {
        Self {
            phase: Phase::Draining,
            next_count: base.last.count.next(),
            committed: base.last.count,
            hold: base.last.count,
            ops: BTreeMap::new(),
            index: BTreeMap::new(),
            window_bytes: 0,
            streams: BTreeMap::new(),
            next_stream: 1,
            repairs: BTreeMap::new(),
            held: BTreeMap::new(),
            promoting: BTreeMap::new(),
            evictions: BTreeMap::new(),
            here: BTreeSet::new(),
            nudged: BTreeMap::new(),
            reads: Reads::default(),
            waiting: VecDeque::new(),
            waiting_reads: VecDeque::new(),
            sessions: BTreeMap::new(),
            fences: Vec::new(),
            aside: false,
            adoptions: Adoptions::default(),
            run: None,
            known_before: Vec::new(),
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        match self.phase {
            Phase::Serving => true,
            Phase::Draining | Phase::Querying(_) | Phase::Repairing => false,
        }
    }

    /// The members in sync other than this one.
    pub(crate) fn others(base: &Base) -> impl Iterator<Item = MemberId> + '_ {
        base.view.in_sync.iter().copied().filter(|member| *member != base.me)
    }

    /// Every member without which nothing is acknowledged.
    pub(crate) fn counted(&self, base: &Base, mutations: Mutations) -> Vec<MemberId> {
        let promoted = self.promoting.keys().copied().filter(|_| !mutations.promotion_not_counted);
        Self::others(base).chain(promoted).collect()
    }

    /// The next view has the same primary, which was serving: what is open is numbered again, in order, and the group goes on.
    ///
    /// Why this makes members identical: each of them holds everything committed and some of what is open, and changes are positional.
    pub(crate) fn carry_on(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        assert!(self.is_serving(), "only a serving primary carries on");
        self.refuse_unnumbered(base, ctx);
        self.forget_members(base, ctx);
        self.adoptions = Adoptions::default();
        let open = std::mem::take(&mut self.ops);
        self.index.clear();
        self.window_bytes = 0;
        for member in Self::others(base).collect::<Vec<_>>() {
            self.open_stream(member, ctx.now);
        }
        for op in open.into_values() {
            self.sequence(base, ctx, op.origin, op.change, op.request);
        }
        self.ops.values_mut().for_each(|op| op.again = true);
        self.hold = OpCount(self.next_count.0 - 1);
        for fence in &mut self.fences {
            fence.1 = self.hold;
        }
        self.advance(base, ctx);
    }

    /// Drops all that is known of members in the era that ends.
    pub(crate) fn forget_members(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        if self.is_serving() {
            // Those in sync in the view that begins were promoted.
            let open = self.repairs.iter().filter(|(member, _)| !base.view.in_sync.contains(member));
            ctx.book.counters.resyncs_interrupted += open.count() as u64;
        }
        self.streams.clear();
        self.repairs.clear();
        self.held.clear();
        self.promoting.clear();
        self.evictions.clear();
        self.here.clear();
        self.nudged.clear();
        self.adoptions.end();
        self.run = None;
        ctx.book.resyncs.remove(&base.group);
    }

    /// A stream to a member that holds all that is committed.
    pub(crate) fn open_stream(&mut self, member: MemberId, now: Instant) {
        let id = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(member, StreamOut::new(member, id, self.committed, now));
    }

    /// Gives a change the next number, to the disk and to every stream.
    pub(crate) fn sequence(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        change: Change,
        request: Option<u64>,
    ) {
        let count = self.next_count;
        self.next_count = count.next();
        let number = base.number(count);
        assert!(
            number > base.last || ctx.config.mutations != Mutations::default(),
            "{} {number} does not follow {}",
            base.group,
            base.last
        );
        let settled = base.settled;
        let op = LocalOp { group: base.group, number, settled, origin, change: change.clone() };
        base.apply(ctx, op, Tag::Own(count));
        ctx.book.counters.changes_while_promoting += u64::from(!self.promoting.is_empty());
        for stream in self.streams.values_mut() {
            if ctx.config.mutations.syncing_forgotten && base.view.syncing.contains(&stream.member) {
                stream.acked_count = count;
                continue;
            }
            stream.push(base, ctx, number, origin, &change, true);
        }
        self.window_bytes += change.bytes();
        if origin.sequence != Sequence(0) {
            self.index.insert(origin.key(), count);
        }
        let span = Span::of(&change);
        let pending =
            PendingOp { number, origin, change, span, request, local_done: false, again: false, failed: None };
        self.ops.insert(count, pending);
    }

    /// This disk finished one of its own operations.
    pub(crate) fn own_done(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        count: OpCount,
        result: Result<(), LocalError>,
    ) {
        let Some(op) = self.ops.get_mut(&count) else { return };
        match result {
            Ok(()) => op.local_done = true,
            Err(error) => {
                let uncertain = || Refusal::NotServing { reason: format!("done or not: {error}") };
                op.failed = Some(if op.again { uncertain() } else { refusal(error) });
                // The others may have it, this disk has not: they are made like this one, in the same epoch. A damaged block is put right then.
                self.reconcile(base, ctx);
                return;
            }
        }
        self.poll_copies(base, ctx);
        self.advance(base, ctx);
    }

    /// A member says how far its stream is.
    pub(crate) fn persisted(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, from: MemberId, stream: u64, ack: Ack) {
        let Some(out) = self.streams.get_mut(&from).filter(|out| out.id == stream) else { return };
        out.acknowledge(base, ctx, ack);
        self.advance(base, ctx);
        self.step_repair(base, ctx, from);
    }

    /// Commits what all counted members hold, and does what waited for it.
    pub(crate) fn advance(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        if !self.is_serving() {
            return;
        }
        let counted = self.counted(base, ctx.config.mutations);
        let held_by = |member| self.streams.get(member).map_or(OpCount(0), |stream| stream.acked_count);
        let through = counted.iter().map(held_by).min().unwrap_or(OpCount(u64::MAX));
        // Operations of a view with more members stay what they are, but whoever asked has to ask again.
        let too_few = self.too_few(base, ctx);
        while let Some(first) = self.ops.first_entry() {
            if *first.key() > through || !first.get().local_done {
                break;
            }
            let (count, op) = first.remove_entry();
            assert!(count > self.committed, "{count} was committed before");
            self.committed = count;
            self.finish_op(ctx, op, too_few.clone());
        }
        if self.ops.is_empty() {
            // Counts that were never given away (nothing open): all is committed.
            self.committed = OpCount(self.next_count.0 - 1);
        }
        if self.committed >= self.hold {
            base.settled = base.settled.max(base.number(self.committed));
        }
        self.pass_fences(ctx);
        self.poll_reads(base, ctx);
        self.pump(base, ctx);
    }

    /// Takes an operation off the books and tells who waits.
    pub(crate) fn finish_op(&mut self, ctx: &mut Ctx<'_>, op: PendingOp, refusal: Option<Refusal>) {
        let bytes = op.change.bytes();
        self.window_bytes -= bytes;
        ctx.book.bytes -= bytes;
        if self.index.get(&op.origin.key()) == Some(&op.number.count) {
            self.index.remove(&op.origin.key());
        }
        if refusal.is_none()
            && let Some(known) = self.sessions.get_mut(&op.origin.session)
        {
            known.committed(op.origin.sequence);
        }
        let Some(request) = op.request else { return };
        match refusal {
            None => ctx.answer(request, ChunkAnswer::Done { number: op.number }, Bytes::new()),
            Some(refusal) => ctx.refuse(request, refusal),
        }
    }

    /// Notes that a fence waits for the open operations of sessions that the map no longer lists.
    pub(crate) fn fence(&mut self, ctx: &mut Ctx<'_>) {
        let over = |session: SessionId| {
            session != SessionId::SERVICE && session != SessionId::NONE && ctx.map.session(session).is_none()
        };
        if let Some((count, _)) = self.ops.iter().rev().find(|(_, op)| over(op.origin.session)) {
            self.fences.push((ctx.map.version, *count));
            *ctx.book.fences.entry(ctx.map.version).or_default() += 1;
        }
        self.sessions.retain(|session, _| *session == SessionId::SERVICE || !over(*session));
    }

    /// Fences whose operations are all committed.
    pub(crate) fn pass_fences(&mut self, ctx: &mut Ctx<'_>) {
        let committed = self.committed;
        self.fences.retain(|(version, count)| {
            if *count <= committed {
                ctx.fence_passed(*version);
            }
            *count > committed
        });
    }

    /// Another view with another primary: what is open is that one's to decide. Clients ask there.
    pub(crate) fn resign(&mut self, base: &Base, ctx: &mut Ctx<'_>, refusal: &Refusal) {
        for (_, op) in std::mem::take(&mut self.ops) {
            self.finish_op(ctx, op, Some(refusal.clone()));
        }
        self.refuse_all_unnumbered(ctx, refusal);
        self.forget_members(base, ctx);
        for (version, _) in std::mem::take(&mut self.fences) {
            ctx.fence_passed(version);
        }
    }
}

/// What the client is told when its group's disk did not do it.
pub(crate) fn refusal(error: LocalError) -> Refusal {
    match error {
        LocalError::NoSpace => Refusal::NoSpace,
        LocalError::BadBlock => Refusal::BadBlock,
        LocalError::Failed => Refusal::Io,
    }
}
