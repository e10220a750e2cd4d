//! What the primary does because time passes: asks again, loses patience, catches up syncing members, asks for promotions.

use crate::book::Ctx;
use crate::group::base::Base;
use crate::group::primary::{Phase, Primary};
use crate::group::repair::Repair;
use crate::group::stream::StreamOut;
use crate::local::KeyRange;
use bytes::Bytes;
use holdfast_types::{Instant, MemberId};
use holdfast_wire::group::GroupBody;
use holdfast_wire::metadata::Request;

impl Primary {
    /// Time passed. `slept`: this node itself was not running for a while, so that nobody else is to blame for silence.
    /// Returns whether the group wants the next tick as well.
    pub(crate) fn tick(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, slept: bool) -> bool {
        if slept {
            self.excuse(ctx.now);
        }
        self.expire(base, ctx);
        self.tick_query(base, ctx);
        for stream in self.streams.values_mut() {
            stream.tick(base, ctx);
        }
        self.tick_repairs(base, ctx);
        self.tick_adoption(base, ctx);
        self.tick_rounds(base, ctx);
        self.tick_scrub(base, ctx);
        self.pump(base, ctx);
        self.resyncs(base, ctx);
        for member in self.promoting.keys().copied().collect::<Vec<_>>() {
            self.ask_promotion(base, ctx, member);
        }
        self.lose_patience(base, ctx);
        !self.at_rest(base)
    }

    /// Nothing is open and everybody knows.
    fn at_rest(&self, base: &Base) -> bool {
        self.is_serving()
            && self.ops.is_empty()
            && self.waiting.is_empty()
            && self.waiting_reads.is_empty()
            && self.reads.open.is_empty()
            && self.repairs.is_empty()
            && self.run.is_none()
            && self.promoting.is_empty()
            && base.view.syncing.is_empty()
            && !self.aside
            && self.streams.values().all(|stream| stream.at_rest(base.settled))
    }

    fn excuse(&mut self, now: Instant) {
        for stream in self.streams.values_mut() {
            stream.quiet_since = now;
        }
        for repair in self.repairs.values_mut() {
            repair.excuse(now);
        }
        if let Phase::Querying(query) = &mut self.phase {
            query.since = now;
        }
        self.reads.since = now;
    }

    /// Syncing members: takes up those that are here, drops those that fell behind.
    fn resyncs(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        if !self.is_serving() {
            return;
        }
        let limits = &ctx.config.limits;
        let (bytes_max, patience, resyncs_max) = (limits.syncing_bytes, limits.member_patience, limits.resyncs);
        for member in base.view.syncing.clone() {
            if self.promoting.contains_key(&member) {
                continue;
            }
            if self.streams.contains_key(&member) {
                let behind = self.streams.get(&member).is_some_and(|s| s.bytes > bytes_max || s.stuck.is_some());
                let silent = self.silent_since(member).is_some_and(|since| ctx.now.since(since) >= patience);
                if behind || silent {
                    self.drop_member(base, ctx, member);
                } else {
                    self.maybe_promote(base, ctx, member);
                }
            } else if self.here.contains(&member) {
                let mine = ctx.book.resyncs.contains(&base.group);
                if mine || ctx.book.resyncs.len() < resyncs_max {
                    ctx.book.resyncs.insert(base.group);
                    self.join(base, ctx, member);
                }
            } else {
                self.nudge(base, ctx, member);
            }
        }
    }

    /// A listed member was not heard: perhaps it has an older map, and learns from this that there is a newer one.
    fn nudge(&mut self, base: &Base, ctx: &mut Ctx<'_>, member: MemberId) {
        let nudged = self.nudged.entry(member).or_default();
        if ctx.now.since(*nudged) >= ctx.config.limits.ask_again {
            *nudged = ctx.now;
            base.send(ctx, member, GroupBody::Idle { stream: 0, position: 0 }, Bytes::new());
        }
    }

    /// A syncing member joins the stream, from the first operation that is not committed; then everything is compared.
    fn join(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, member: MemberId) {
        let id = self.next_stream;
        self.next_stream += 1;
        let mut stream = StreamOut::new(member, id, self.committed, ctx.now);
        for op in self.ops.values() {
            stream.push(base, ctx, op.number, op.origin, &op.change, true);
        }
        self.streams.insert(member, stream);
        let same_disk = |known: &MemberId| (known.node, known.disk) == (member.node, member.disk);
        let trusted = ctx.config.mutations.other_incarnation_accepted && self.known_before.iter().any(same_disk);
        self.repairs.insert(member, Repair::new(if trusted { Vec::new() } else { vec![KeyRange::ALL] }));
        self.step_repair(base, ctx, member);
    }

    /// Asks that a syncing member counts as in sync, once it durably holds all that is committed. From here on it counts.
    pub(crate) fn maybe_promote(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, member: MemberId) {
        if !self.is_serving() || !base.view.syncing.contains(&member) || self.promoting.contains_key(&member) {
            return;
        }
        let (Some(stream), Some(repair)) = (self.streams.get(&member), self.repairs.get(&member)) else { return };
        let holds_all = stream.copies == 0 && stream.acked_count >= self.committed && stream.stuck.is_none();
        if (repair.is_done() && holds_all) || ctx.config.mutations.promoted_early {
            ctx.book.counters.promotions += 1;
            self.promoting.insert(member, ctx.now - ctx.config.limits.ask_again);
            self.ask_promotion(base, ctx, member);
        }
    }

    /// Asks, or asks again: an answer that did not come, or a refusal, says nothing about an earlier question still on its way.
    fn ask_promotion(&mut self, base: &Base, ctx: &mut Ctx<'_>, member: MemberId) {
        let Some(asked) = self.promoting.get_mut(&member) else { return };
        if ctx.now.since(*asked) >= ctx.config.limits.ask_again {
            *asked = ctx.now;
            ctx.ask_view(Request::Promote { group: base.group, epoch: base.view.epoch, member });
        }
    }

    /// Since when a member owes something.
    fn silent_since(&self, member: MemberId) -> Option<Instant> {
        let stream = self.streams.get(&member).filter(|stream| !stream.is_empty()).map(|stream| stream.quiet_since);
        let repair = self.repairs.get(&member).and_then(Repair::waits_since);
        let round = self.reads.missing.contains(&member).then_some(self.reads.since);
        let query = match &self.phase {
            Phase::Querying(query) if !query.reports.contains_key(&member) => Some(query.since),
            Phase::Querying(_) | Phase::Draining | Phase::Repairing | Phase::Serving => None,
        };
        [stream, repair, round, query].into_iter().flatten().min()
    }

    /// Asks for counted members that owe something for too long, or cannot go on, to be taken out of this view; and for itself when its
    /// own copy is damaged and somebody else has one.
    fn lose_patience(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let patience = ctx.config.limits.member_patience;
        let mut gone: Vec<MemberId> = Vec::new();
        let mut doubtful: Vec<MemberId> = Vec::new();
        let mut given_up = false;
        for member in Self::others(base).chain(self.promoting.keys().copied()) {
            let since = self.silent_since(member).map(|since| ctx.now.since(since));
            let silent = since.is_some_and(|since| since >= patience);
            // Whoever is cut off from several does not hear from all of them since the same moment.
            if since.is_some_and(|since| since >= patience / 2) {
                doubtful.push(member);
            }
            let stuck = self.streams.get(&member).and_then(|stream| stream.stuck);
            if silent || stuck.is_some() {
                gone.push(member);
            }
            given_up |= stuck.is_some_and(|since| ctx.now.since(since) >= patience);
        }
        if self.aside && base.view.in_sync.len() > 1 {
            gone.push(base.me);
        }
        for member in gone {
            let asked = self.evictions.get(&member);
            if asked.is_none_or(|asked| ctx.now.since(*asked) >= ctx.config.limits.ask_again) {
                self.evictions.insert(member, ctx.now);
                let (group, epoch, reporter) = (base.group, base.view.epoch, base.me);
                let silent = doubtful.iter().copied().filter(|other| *other != member).collect();
                ctx.ask_view(Request::Evict { group, epoch, member, reporter, silent });
            }
        }
        if given_up && self.promoting.is_empty() {
            // It cannot be spared and cannot go on: perhaps there is space again. It is made like this disk, from the start.
            self.reconcile(base, ctx);
        }
    }

    /// A stream to a node is open: say where we are, at once.
    pub(crate) fn peer_connected(&mut self, base: &Base, ctx: &mut Ctx<'_>, node: holdfast_types::NodeId) {
        for stream in self.streams.values_mut().filter(|stream: &&mut StreamOut| stream.member.node == node) {
            if !stream.at_rest(base.settled) {
                stream.ask(base, ctx);
            }
        }
    }
}
