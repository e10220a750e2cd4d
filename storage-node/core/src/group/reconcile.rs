//! After a view change: members become identical before the group serves.
//!
//! Every member in sync holds every settled operation, so members can differ only in chunks that one of them changed by a number above
//! the greatest number any of them knows to be settled. Each names what it changed above its *own* settled number, which is a superset.
//! The primary's copy of all those chunks becomes everybody's, whichever it is: nothing settled is at stake, and an operation that was
//! open may happen or not. That is also why any member in sync will do as primary when all were restarted, and why the longest run need
//! not be looked for: a longer run than the primary's holds nothing that was acknowledged beyond what the primary holds.
//!
//! Settled stays where it was until all that is done. A successor that takes over half-way finds the same chunks named again.

use crate::book::Ctx;
use crate::group::base::{Base, Tag};
use crate::group::primary::{Phase, Primary};
use crate::group::repair::Repair;
use crate::group::stream::StreamOut;
use crate::local::{KeyRange, LocalCommand, LocalError, LocalOutcome};
use bytes::Bytes;
use holdfast_types::{Instant, MemberId, OpCount, OpNumber};
use holdfast_wire::chunk::Refusal;
use holdfast_wire::group::GroupBody;
use std::collections::BTreeMap;

/// What is being asked, and what was answered.
#[derive(Debug)]
pub(crate) struct Query {
    /// Streams below this one are over; the reports bear it.
    pub(crate) stream: u64,
    pub(crate) reports: BTreeMap<MemberId, Report>,
    /// What this disk changed itself.
    own: Option<Vec<KeyRange>>,
    asked_at: Instant,
    /// When it was first asked.
    pub(crate) since: Instant,
}

/// A member's answer.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) last: OpNumber,
    pub(crate) settled: OpNumber,
    pub(crate) changed: Vec<KeyRange>,
}

impl Primary {
    /// Begins, or begins again. Operations that have a number keep it and are answered at the end.
    pub(crate) fn reconcile(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        base.forget(|_| true);
        base.checkups.clear();
        base.exam = None;
        self.look_up_again();
        let reason = Refusal::NotServing { reason: "reconciling".into() };
        self.refuse_reads(ctx, &reason);
        let promoting = std::mem::take(&mut self.promoting);
        self.forget_members(base, ctx);
        if !ctx.config.mutations.promotion_not_counted {
            // The epoch goes on, so a promotion that was asked for may still be granted: those members are made identical, too.
            self.promoting = promoting;
        }
        self.phase = Phase::Draining;
        self.drained(base, ctx);
    }

    /// Goes on once this disk has finished what it was given before.
    pub(crate) fn drained(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let Phase::Draining = self.phase else { return };
        if base.applying > 0 {
            return;
        }
        let stream = self.next_stream;
        self.next_stream += 1;
        let (asked_at, since) = (ctx.now, ctx.now);
        self.phase = Phase::Querying(Query { stream, reports: BTreeMap::new(), own: None, asked_at, since });
        for member in self.counted(base, ctx.config.mutations) {
            base.send(ctx, member, GroupBody::Query { stream }, Bytes::new());
        }
        let command = LocalCommand::ChangesAbove { group: base.group, number: base.settled };
        base.local(ctx, command, Tag::OwnChanges);
    }

    /// Asks those who did not report again.
    pub(crate) fn tick_query(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        let counted = self.counted(base, ctx.config.mutations);
        let Phase::Querying(query) = &mut self.phase else { return };
        if ctx.now.since(query.asked_at) < ctx.config.limits.resend {
            return;
        }
        query.asked_at = ctx.now;
        for member in counted.into_iter().filter(|member| !query.reports.contains_key(member)) {
            base.send(ctx, member, GroupBody::Query { stream: query.stream }, Bytes::new());
        }
    }

    /// What this disk changed is known.
    pub(crate) fn own_changes(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, result: Result<LocalOutcome, LocalError>) {
        let Phase::Querying(query) = &mut self.phase else { return };
        query.own = Some(match result {
            Ok(LocalOutcome::Changes { changed }) => changed,
            // The list is no longer readable: everything may differ.
            Ok(_) | Err(_) => vec![KeyRange::ALL],
        });
        self.reported(base, ctx);
    }

    /// A member reports.
    pub(crate) fn report(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, from: MemberId, stream: u64, report: Report) {
        let counted = self.counted(base, ctx.config.mutations).contains(&from);
        let Phase::Querying(query) = &mut self.phase else { return };
        if query.stream != stream || !counted {
            return;
        }
        query.reports.insert(from, report);
        self.reported(base, ctx);
    }

    /// Starts the repairs when every member has reported.
    fn reported(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let others: Vec<MemberId> = self.counted(base, ctx.config.mutations);
        let Phase::Querying(query) = &mut self.phase else { return };
        if !others.iter().all(|member| query.reports.contains_key(member)) {
            return;
        }
        let Some(mut ranges) = query.own.take() else { return };
        let stream = query.stream;
        let mut counts = base.last.count;
        for report in query.reports.values_mut() {
            counts = counts.max(report.last.count);
            base.settled = base.settled.max(report.settled);
            ranges.append(&mut report.changed);
        }
        if ctx.config.mutations.counts_reused {
            counts = base.settled.count;
        }
        self.next_count = self.next_count.max(counts.next());
        self.committed = OpCount(self.next_count.0 - 1);
        self.phase = Phase::Repairing;
        let ranges = merged(ranges);
        for member in &others {
            self.streams.insert(*member, StreamOut::new(*member, stream, self.committed, ctx.now));
            self.repairs.insert(*member, Repair::new(ranges.clone()));
        }
        for member in others {
            self.step_repair(base, ctx, member);
        }
        self.repaired(base, ctx);
    }

    /// Serves once every member is identical and holds that durably.
    pub(crate) fn repaired(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let Phase::Repairing = self.phase else { return };
        let done = self.repairs.values().all(Repair::is_done) && self.streams.values().all(StreamOut::is_empty);
        if !done {
            return;
        }
        self.repairs.clear();
        self.phase = Phase::Serving;
        ctx.book.counters.reconciliations += 1;
        self.hold = self.committed;
        base.settled = base.settled.max(base.number(self.committed));
        let too_few = self.too_few(base, ctx);
        for (_, mut op) in std::mem::take(&mut self.ops) {
            let failed = op.failed.take().or_else(|| too_few.clone());
            self.finish_op(ctx, op, failed);
        }
        self.advance(base, ctx);
    }
}

/// The same keys in as few ranges, in order.
fn merged(mut ranges: Vec<KeyRange>) -> Vec<KeyRange> {
    ranges.sort_unstable();
    let mut out: Vec<KeyRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(before) if range.first <= before.last => before.last = before.last.max(range.last),
            _ => out.push(range),
        }
    }
    out
}
