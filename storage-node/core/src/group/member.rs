//! A member that is not primary: takes the stream in order, makes it durable, says so.
//!
//! * Items are given to the disk in the order of their positions, without a gap; what comes after a gap is held back, bounded.
//! * `durable` in what it says covers only what the disk reported durable.
//! * It reports to a new primary only when its disk has finished all that older eras gave it.

use crate::book::Ctx;
use crate::change;
use crate::group::base::{Base, Tag};
use crate::group::checkup::Examined;
use crate::group::compare::Comparison;
use crate::local::{Change, KeyRange, LocalCommand, LocalError, LocalOp, LocalOutcome};
use bytes::Bytes;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, Instant, MemberId, OpNumber, SessionId};
use holdfast_wire::group::{CHANGED_RANGES_MAX, GroupBody, Origin};
use holdfast_wire::metadata::Request;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug)]
struct Held {
    number: OpNumber,
    origin: Origin,
    change: Change,
}

/// An item as it arrives.
pub(crate) struct Arrived {
    pub(crate) stream: u64,
    pub(crate) position: u64,
    pub(crate) number: OpNumber,
    pub(crate) origin: Origin,
    pub(crate) change: Option<Change>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Member {
    /// When the primary of this epoch last spoke of this member's business, and when it was last told that the member is here.
    heard: Option<Instant>,
    here_at: Option<Instant>,
    /// The primary knows that this member is here, and has no stream for it yet.
    told_to_wait: bool,
    /// When it entered the epoch.
    entered: Instant,
    /// When it last asked for the primary to be taken out.
    reported_at: Option<Instant>,
    /// The stream that is taken. 0: none yet.
    stream: u64,
    /// Every position up to here was given to the disk.
    received: u64,
    /// Every position up to here is durable.
    durable: u64,
    /// Given and not counted in `durable`: position, whether it is durable, and the chunk that it changes if it is one.
    given: VecDeque<(u64, bool, Option<ChunkKey>)>,
    held: BTreeMap<u64, Held>,
    /// The disk refused a change: this member cannot go on in this epoch.
    stuck: bool,
    /// A query that is to be answered.
    query: Option<u64>,
    pub(crate) comparison: Option<Comparison>,
    /// Damaged blocks that nobody has as they should be here.
    hopeless: BTreeSet<(ChunkKey, u32)>,
}

/// Most of them that are remembered. By eye: the others are found again.
const HOPELESS_MAX: usize = 1024;

impl Member {
    /// A member that enters an epoch now.
    pub(crate) fn new(now: Instant) -> Self {
        Self { entered: now, ..Self::default() }
    }

    /// Tells the primary that this member is in the epoch, until it is heard. Returns whether to go on.
    pub(crate) fn tick(&mut self, base: &Base, ctx: &mut Ctx<'_>) -> bool {
        let limits = &ctx.config.limits;
        let syncing = base.view.syncing.contains(&base.me);
        let lost = match self.heard {
            None => true,
            // A syncing member that was dropped is not spoken to: it says again that it is here.
            Some(heard) => syncing && ctx.now.since(heard) >= limits.ask_again,
        };
        let pause = if self.told_to_wait { limits.ask_again } else { limits.resend };
        if lost && self.here_at.is_none_or(|at| ctx.now.since(at) >= pause) {
            self.say_here(base, ctx);
        }
        let cut_off = self.report_primary(base, ctx);
        lost || syncing || cut_off
    }

    /// Says that the primary is out of reach: its stream is gone for long, or it never spoke in this epoch. Sooner than a primary loses
    /// its patience: of the two sides of a cut, the one with more members should go on. Returns whether there is something to watch.
    fn report_primary(&mut self, base: &Base, ctx: &mut Ctx<'_>) -> bool {
        let silent = (self.heard.is_none() && !self.told_to_wait).then_some(self.entered);
        let lost = ctx.book.lost.get(&base.view.primary.node).copied();
        let Some(since) = lost.into_iter().chain(silent).min() else { return false };
        let limits = &ctx.config.limits;
        let due = self.reported_at.is_none_or(|at| ctx.now.since(at) >= limits.ask_again);
        let patience = limits.member_patience * 3 / 4;
        if due && base.view.in_sync.contains(&base.me) && ctx.now.since(since) >= patience {
            self.reported_at = Some(ctx.now);
            let (group, epoch, member, reporter) = (base.group, base.view.epoch, base.view.primary, base.me);
            ctx.ask_view(Request::Evict { group, epoch, member, reporter, silent: Vec::new() });
        }
        true
    }

    /// Says: I am here.
    pub(crate) fn say_here(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        self.here_at = Some(ctx.now);
        base.send(ctx, base.view.primary, GroupBody::Here, Bytes::new());
    }

    /// The primary of this epoch spoke.
    pub(crate) fn heard(&mut self, base: &mut Base, now: Instant, settled: OpNumber, body: &GroupBody) {
        if matches!(body, GroupBody::Idle { stream: 0, .. }) {
            self.told_to_wait = true;
        } else {
            self.heard = Some(now);
        }
        base.settled = base.settled.max(settled);
    }

    /// Whether this is the stream that is taken.
    pub(crate) fn takes(&self, stream: u64) -> bool {
        self.stream == stream
    }

    /// Turns to a newer stream; what older ones gave to the disk is only waited for.
    pub(crate) fn turn_to(&mut self, base: &mut Base, stream: u64) {
        if stream > self.stream {
            self.stream = stream;
            (self.received, self.durable) = (0, 0);
            self.given.clear();
            self.held.clear();
            self.stuck = false;
            self.comparison = None;
            base.end_era();
        }
    }

    /// Turns to a stream that does not begin with a query. A member that was in one before was dropped, and everything it has will be compared:
    /// what it has lost for good it gives up first, as zeros. As long as such a block is bad, each change of a part of it ends the catching
    /// up before the copy that would replace it has come.
    ///
    /// Sound, because a member whose promotion was asked for is never dropped, so that this one is not made in sync before it was compared.
    pub(crate) fn join(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, stream: u64) {
        if stream <= self.stream {
            return;
        }
        self.turn_to(base, stream);
        for (chunk, block) in std::mem::take(&mut self.hopeless) {
            let length = BLOCK_BYTES as u32;
            let change = Change::Zero { chunk, offset: block * length, length };
            let (group, number, settled) = (base.group, base.last, base.settled);
            let op = LocalOp { group, number, settled, origin: Origin::MEMBERS, change };
            base.apply(ctx, op, Tag::Old);
        }
    }

    /// An item of the stream.
    pub(crate) fn operation(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, item: Arrived) {
        self.join(base, ctx, item.stream);
        if item.stream < self.stream {
            return;
        }
        // A first item seen in the middle of a stream: a restarted member that thinks it is the one that was there before.
        if ctx.config.mutations.other_incarnation_accepted && self.received == 0 {
            (self.received, self.durable) = (item.position - 1, item.position - 1);
        }
        let Some(change) = item.change else {
            // Damaged on the way: as if it had not come.
            return self.say_persisted(base, ctx, true);
        };
        let next = self.received + 1;
        if item.position < next {
            return self.say_persisted(base, ctx, false);
        }
        if item.position > next {
            let first_of_gap = self.held.is_empty();
            if self.held.len() < ctx.config.limits.held_items {
                let Arrived { number, origin, .. } = item;
                self.held.insert(item.position, Held { number, origin, change });
            }
            if first_of_gap {
                self.say_persisted(base, ctx, true);
            }
            return;
        }
        self.take(base, ctx, Held { number: item.number, origin: item.origin, change });
        while let Some(held) = self.held.remove(&(self.received + 1)) {
            self.take(base, ctx, held);
        }
        if ctx.config.mutations.acknowledge_before_durable {
            self.say_persisted(base, ctx, false);
        }
    }

    /// Gives the next item to the disk.
    fn take(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, item: Held) {
        self.received += 1;
        let position = self.received;
        let Held { number, origin, change } = item;
        let mutations = ctx.config.mutations;
        if mutations.counts_reused && origin.session != SessionId::NONE && number.count <= base.last.count {
            // "Seen before": but it was another epoch's operation of that count.
            self.given.push_back((position, true, None));
            return self.count_durable(base, ctx);
        }
        let chunk = change.keys().map(|keys| keys.first);
        self.given.push_back((position, false, chunk));
        let op = LocalOp { group: base.group, number, settled: base.settled, origin, change };
        base.apply(ctx, op, Tag::Item(position));
    }

    /// The disk finished an item.
    pub(crate) fn item_done(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        position: u64,
        result: Result<(), LocalError>,
    ) {
        if let Err(error) = result {
            self.stuck = true;
            let item = self.given.iter().find(|item| item.0 == position);
            if let (LocalError::BadBlock, Some(chunk)) = (error, item.and_then(|item| item.2)) {
                base.check(ctx, chunk);
            }
            return self.say_persisted(base, ctx, false);
        }
        if let Some(item) = self.given.iter_mut().find(|item| item.0 == position) {
            item.1 = true;
        }
        self.count_durable(base, ctx);
    }

    /// A chunk was read whole.
    pub(crate) fn examined(&mut self, base: &Base, examined: &Examined) {
        let chunk = examined.chunk;
        self.hopeless.retain(|(of, _)| *of != chunk);
        if self.stuck && base.view.syncing.contains(&base.me) && self.hopeless.len() < HOPELESS_MAX {
            self.hopeless.extend(examined.left.iter().map(|block| (chunk, *block)));
        }
    }

    fn count_durable(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        let before = self.durable;
        while let Some((position, true, _)) = self.given.front() {
            self.durable = *position;
            self.given.pop_front();
        }
        if self.durable > before {
            self.say_persisted(base, ctx, false);
        }
    }

    /// The primary asks how far we are.
    pub(crate) fn idle(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, stream: u64, position: u64) {
        if stream == 0 {
            return;
        }
        self.join(base, ctx, stream);
        if stream == self.stream {
            self.say_persisted(base, ctx, position > self.received);
        }
    }

    /// The disk is nearly full, or no longer.
    pub(crate) fn say_space(&self, base: &Base, ctx: &mut Ctx<'_>) {
        if self.stream != 0 {
            self.say_persisted(base, ctx, false);
        }
    }

    fn say_persisted(&self, base: &Base, ctx: &mut Ctx<'_>, gap: bool) {
        let early = ctx.config.mutations.acknowledge_before_durable;
        let durable = if early { self.received } else { self.durable };
        assert!(durable <= self.received, "{} durable before {} was received", durable, self.received);
        let (stream, received, stuck) = (self.stream, self.received, self.stuck);
        let low = ctx.book.low.contains(&base.me.disk);
        let body = GroupBody::Persisted { stream, durable, received, gap, low, stuck };
        base.send(ctx, base.view.primary, body, Bytes::new());
    }

    /// A new primary asks what may differ here.
    pub(crate) fn query(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, stream: u64) {
        if stream > self.stream {
            // Not everything is compared on it.
            self.hopeless.clear();
        }
        self.turn_to(base, stream);
        if stream == self.stream && self.received == 0 {
            self.query = Some(stream);
            self.drained(base, ctx);
        }
    }

    /// Goes on with the report once the disk has finished what it was given before.
    pub(crate) fn drained(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        if self.query.is_some() && base.applying == 0 && !base.has(Tag::ReportChanges) {
            let command = LocalCommand::ChangesAbove { group: base.group, number: base.settled };
            base.local(ctx, command, Tag::ReportChanges);
        }
    }

    /// The store named what it changed.
    pub(crate) fn changes(&mut self, base: &Base, ctx: &mut Ctx<'_>, result: Result<LocalOutcome, LocalError>) {
        let Some(stream) = self.query.take() else { return };
        let changed = match result {
            Ok(LocalOutcome::Changes { changed }) if changed.len() <= CHANGED_RANGES_MAX => changed,
            Ok(_) | Err(_) => vec![KeyRange::ALL],
        };
        let body = GroupBody::Report { stream, last: base.last, settled: base.settled, changed };
        base.send(ctx, base.view.primary, body, Bytes::new());
    }

    /// What is given to the disk lies between what is durable and what was received; what is held back lies beyond a gap.
    pub(crate) fn in_order(&self) -> bool {
        let given = self.given.iter().all(|(at, ..)| *at > self.durable && *at <= self.received);
        let held = self.held.keys().all(|at| *at > self.received + 1);
        self.durable <= self.received && given && held
    }

    /// Takes an operation of an epoch that is over as if it were good (one of the mutations).
    pub(crate) fn take_old(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, item: Arrived, from: MemberId) {
        let Arrived { stream, position, number, origin, change } = item;
        let Some(change) = change else { return };
        let op = LocalOp { group: base.group, number, settled: base.settled, origin, change };
        base.apply(ctx, op, Tag::Old);
        let body = GroupBody::Persisted {
            stream,
            durable: position,
            received: position,
            gap: false,
            low: false,
            stuck: false,
        };
        let present = std::mem::replace(&mut base.view.epoch, number.epoch);
        base.send(ctx, from, body, Bytes::new());
        base.view.epoch = present;
    }
}

/// Makes an item of a message.
pub(crate) fn arrived(body: GroupBody, payload: Bytes) -> Option<Arrived> {
    match body {
        GroupBody::Operation { stream, position, number, origin, change } => {
            let change = change::from_wire(change, payload);
            (position > 0).then_some(Arrived { stream, position, number, origin, change })
        }
        _ => None,
    }
}
