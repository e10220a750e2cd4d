//! The outgoing stream to one member: what was sent and is not yet durable there.
//!
//! * Positions start at 1 and have no gap; an item stays here until the member says that it is durable.
//! * `acked_count` is the count up to which the member holds every operation of this era.

use crate::book::Ctx;
use crate::change;
use crate::group::base::Base;
use crate::local::Change;
use bytes::Bytes;
use holdfast_types::{Instant, MemberId, OpCount, OpNumber};
use holdfast_wire::group::{GroupBody, GroupChange, Origin};
use std::collections::VecDeque;

/// A member that was nearly full is asked again after so many times the time after which others are.
const LOW_ASKED: u32 = 4;

#[derive(Debug)]
struct Item {
    position: u64,
    number: OpNumber,
    origin: Origin,
    change: GroupChange,
    payload: Bytes,
    /// An operation of the group, rather than a copy for this member.
    operation: bool,
}

impl Item {
    fn body(&self, stream: u64) -> GroupBody {
        GroupBody::Operation {
            stream,
            position: self.position,
            number: self.number,
            origin: self.origin,
            change: self.change.clone(),
        }
    }
}

/// What a member says about a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ack {
    pub(crate) durable: u64,
    pub(crate) received: u64,
    pub(crate) gap: bool,
    pub(crate) low: bool,
    pub(crate) stuck: bool,
}

/// A stream.
#[derive(Debug)]
pub(crate) struct StreamOut {
    pub(crate) member: MemberId,
    pub(crate) id: u64,
    /// The last position given.
    position: u64,
    /// Not known to be durable there, in order.
    items: VecDeque<Item>,
    /// Their payload bytes.
    pub(crate) bytes: usize,
    /// How many of them are copies.
    pub(crate) copies: usize,
    /// Every operation up to here is durable there.
    pub(crate) acked_count: OpCount,
    /// Last progress, or when the stream stopped being empty.
    pub(crate) quiet_since: Instant,
    /// When it was last asked how far it is, or told something.
    asked_at: Instant,
    /// When, and up to which position, items were last sent again.
    resent: Option<(Instant, u64)>,
    /// The member's disk is nearly full.
    pub(crate) low: bool,
    /// Since when the member cannot go on.
    pub(crate) stuck: Option<Instant>,
    /// The settled number that it was last told.
    pub(crate) told: OpNumber,
}

impl StreamOut {
    /// A new, empty stream to a member that holds every operation up to `held`.
    pub(crate) fn new(member: MemberId, id: u64, held: OpCount, now: Instant) -> Self {
        Self {
            member,
            id,
            position: 0,
            items: VecDeque::new(),
            bytes: 0,
            copies: 0,
            acked_count: held,
            quiet_since: now,
            asked_at: now,
            resent: None,
            low: false,
            stuck: None,
            told: OpNumber::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Appends and sends.
    pub(crate) fn push(
        &mut self,
        base: &Base,
        ctx: &mut Ctx<'_>,
        number: OpNumber,
        origin: Origin,
        change: &Change,
        operation: bool,
    ) {
        if self.items.is_empty() {
            self.quiet_since = ctx.now;
            self.asked_at = ctx.now;
        }
        self.position += 1;
        let (change, payload) = change::to_wire(change);
        self.bytes += payload.len();
        self.copies += usize::from(!operation);
        ctx.book.copied_bytes += if operation { 0 } else { payload.len() as u64 };
        let item = Item { position: self.position, number, origin, change, payload, operation };
        base.send(ctx, self.member, item.body(self.id), item.payload.clone());
        self.told = base.settled;
        self.items.push_back(item);
    }

    /// Takes the member's word; sends again what it lacks.
    pub(crate) fn acknowledge(&mut self, base: &Base, ctx: &mut Ctx<'_>, ack: Ack) {
        self.low = ack.low;
        if ack.stuck && self.stuck.is_none() {
            self.stuck = Some(ctx.now);
        }
        while self.items.front().is_some_and(|item| item.position <= ack.durable) {
            let Some(item) = self.items.pop_front() else { break };
            self.bytes -= item.payload.len();
            if item.operation {
                self.acked_count = self.acked_count.max(item.number.count);
            } else {
                self.copies -= 1;
            }
            self.quiet_since = ctx.now;
        }
        if ack.gap {
            self.resend(base, ctx, ack.received);
        }
    }

    /// Sends what follows `received` again, unless that is already under way.
    fn resend(&mut self, base: &Base, ctx: &mut Ctx<'_>, received: u64) {
        if let Some((at, through)) = self.resent
            && received < through
            && ctx.now.since(at) < ctx.config.limits.resend
        {
            return;
        }
        self.resent = Some((ctx.now, self.position));
        for item in self.items.iter().filter(|item| item.position > received) {
            base.send(ctx, self.member, item.body(self.id), item.payload.clone());
        }
        self.told = base.settled;
    }

    /// Says how far the stream is and what is settled; the member answers how far it is.
    pub(crate) fn ask(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        self.asked_at = ctx.now;
        self.told = base.settled;
        base.send(ctx, self.member, GroupBody::Idle { stream: self.id, position: self.position }, Bytes::new());
    }

    /// Asks a member whose disk was nearly full when it last spoke: where nothing grows any more, nothing else would make it speak.
    pub(crate) fn ask_whether_low(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        if self.low && ctx.now.since(self.asked_at) >= ctx.config.limits.resend {
            self.ask(base, ctx);
        }
    }

    /// Asks if it is time to, or if the member does not know what is settled. A member whose disk was nearly full is asked although nothing is on
    /// its way: that it has room again may have been said to nobody.
    pub(crate) fn tick(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        let resend = ctx.config.limits.resend;
        let late = match (self.items.is_empty(), self.low) {
            (false, _) => ctx.now.since(self.asked_at) >= resend,
            (true, true) => ctx.now.since(self.asked_at) >= resend * LOW_ASKED,
            (true, false) => false,
        };
        if late || self.told < base.settled {
            self.ask(base, ctx);
        }
    }

    /// Nothing is on its way, the member knows what is settled, and its disk was not nearly full when it last spoke.
    pub(crate) fn at_rest(&self, settled: OpNumber) -> bool {
        self.items.is_empty() && self.told >= settled && !self.low
    }
}
