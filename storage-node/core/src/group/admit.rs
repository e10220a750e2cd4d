//! Requests on their way to a number: who waits, for what, and for how long.
//!
//! * A change waits while fewer than `min_in_sync` members are in sync, while the window is full, while a copy of its chunk is being
//!   taken, and while a primary without peers has not heard from the metadata leader.
//! * What waits is bounded, and is told after a while why.

use crate::book::Ctx;
use crate::change;
use crate::group::base::{Base, Tag};
use crate::group::primary::{self, Phase, Primary};
use crate::local::{Change, LocalCommand, LocalError, LocalOutcome, Made, Origin};
use crate::span::Span;
use bytes::Bytes;
use holdfast_types::{Instant, MemberId, Sequence, SessionId};
use holdfast_wire::chunk::{ChunkOp, ChunkRequest, Refusal};
use std::collections::BTreeMap;

/// A request without a number.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: u64,
    pub(crate) origin: Origin,
    pub(crate) wanted: Wanted,
    pub(crate) lookup: Lookup,
    /// When it is told that it waited in vain.
    pub(crate) expires: Instant,
}

/// Whether the disk must first say if a repeated change was made under an earlier primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// No, or it has said.
    Done,
    /// It is to be asked.
    Due,
    /// It is being asked.
    Asked,
}

/// Most changes of a session at or above its floor here that a group remembers. As many as the metadata service keeps answers.
const RECENT_MAX: usize = holdfast_types::limits::ANSWERS_PER_SESSION_MAX;

/// What a group remembers of a session in an epoch.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The highest floor it named to this group.
    pub(crate) floor: Sequence,
    /// Its changes at or above the floor.
    recent: BTreeMap<Sequence, Recent>,
}

/// A change that came to this primary.
#[derive(Debug)]
struct Recent {
    span: Span,
    /// It was answered: made, and held by all who count.
    committed: bool,
}

impl Known {
    /// A change was acknowledged.
    pub(crate) fn committed(&mut self, sequence: Sequence) {
        if let Some(recent) = self.recent.get_mut(&sequence) {
            recent.committed = true;
        }
    }

    fn raise_floor(&mut self, floor: Sequence) {
        if floor > self.floor {
            self.floor = floor;
            self.recent = self.recent.split_off(&floor);
        }
    }
}

/// What it wants.
#[derive(Debug)]
pub(crate) enum Wanted {
    Change(Change, Span),
    /// What changes nothing.
    Read(ChunkOp),
}

impl Primary {
    /// Takes a request whose session, epoch and group are right.
    pub(crate) fn request(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        id: u64,
        request: ChunkRequest,
        payload: &Bytes,
        deadline: Instant,
    ) {
        let origin = Origin { session: request.session, sequence: request.sequence, contended: request.contended };
        let known = self.sessions.entry(request.session).or_default();
        known.raise_floor(request.floor);
        let expires = deadline.min(ctx.now + ctx.config.limits.request_wait);
        if !request.op.is_change() {
            let waiting = Waiting { id, origin, wanted: Wanted::Read(request.op), lookup: Lookup::Done, expires };
            return self.enqueue(base, ctx, waiting);
        }
        if request.session != SessionId::SERVICE && request.sequence == Sequence(0) {
            return ctx.refuse(id, Refusal::Malformed);
        }
        // The service's own as well: a late copy of a cut would remove what was written since.
        if request.sequence < known.floor {
            return ctx.refuse(id, Refusal::StaleSequence);
        }
        let mut change = match change::from_client(&request.op, payload) {
            Ok(change) => change,
            Err(refusal) => return ctx.refuse(id, refusal),
        };
        if self.joins(ctx, id, origin, &change) {
            return;
        }
        let mut span = Span::of(&change);
        let recent = self.sessions.get(&origin.session).and_then(|known| known.recent.get(&origin.sequence));
        let (seen, committed) = (recent.is_some(), recent.is_some_and(|recent| recent.committed));
        if request.session != SessionId::SERVICE
            && let Err(refusal) = self.in_session_order(ctx, origin, span)
        {
            return ctx.refuse(id, refusal);
        }
        let mut lookup = Lookup::Done;
        if committed {
            // A repetition whose first answer was lost, or a late copy of it: others may have changed the bytes since.
            (change, span) = (Change::Mark, Span::Nothing);
        } else if origin.contended && (request.repeated || seen) {
            lookup = Lookup::Due;
        }
        self.enqueue(base, ctx, Waiting { id, origin, wanted: Wanted::Change(change, span), lookup, expires });
    }

    /// The disk says whether a repeated change was made under an earlier primary.
    pub(crate) fn looked_up(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        origin: (SessionId, Sequence),
        result: Result<LocalOutcome, LocalError>,
    ) {
        let asked = |waiting: &Waiting| waiting.origin.key() == origin && waiting.lookup == Lookup::Asked;
        let Some(at) = self.waiting.iter().position(asked) else { return };
        let waiting = &mut self.waiting[at];
        let refusal = match result {
            Ok(LocalOutcome::Contended { made: Made::No }) => {
                waiting.lookup = Lookup::Done;
                return self.pump(base, ctx);
            }
            Ok(LocalOutcome::Contended { made: Made::Stands | Made::Cut }) => {
                // It takes a number all the same: answered when all who count now hold what this disk holds.
                ctx.book.bytes -= waiting.bytes();
                waiting.wanted = Wanted::Change(Change::Mark, Span::Nothing);
                waiting.lookup = Lookup::Done;
                return self.pump(base, ctx);
            }
            Ok(LocalOutcome::Contended { made: Made::Unknown }) => Refusal::Unknown,
            Ok(other) => unreachable!("{other:?} does not say whether a change was made"),
            Err(error) => primary::refusal(error),
        };
        if let Some(waiting) = self.waiting.remove(at) {
            ctx.book.bytes -= waiting.bytes();
            ctx.refuse(waiting.id, refusal);
        }
    }

    /// What the disk was asked is forgotten.
    pub(crate) fn look_up_again(&mut self) {
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.lookup == Lookup::Asked) {
            waiting.lookup = Lookup::Due;
        }
    }

    /// A repetition of what is under way takes the place of the first: one operation, answered to the newest request.
    fn joins(&mut self, ctx: &mut Ctx<'_>, id: u64, origin: Origin, change: &Change) -> bool {
        let superseded = || Refusal::NotServing { reason: "repeated by a later request".into() };
        // A mark stands for a change that was made before.
        let same = |other: &Change| other == change || *other == Change::Mark;
        if let Some(op) = self.index.get(&origin.key()).and_then(|count| self.ops.get_mut(count))
            && same(&op.change)
        {
            if let Some(older) = op.request.replace(id) {
                ctx.refuse(older, superseded());
            }
            return true;
        }
        let waits = |waiting: &&mut Waiting| match &waiting.wanted {
            Wanted::Change(other, _) => waiting.origin.key() == origin.key() && same(other),
            Wanted::Read(_) => false,
        };
        if let Some(waiting) = self.waiting.iter_mut().find(waits) {
            let older = std::mem::replace(&mut waiting.id, id);
            ctx.refuse(older, superseded());
            return true;
        }
        false
    }

    /// A session sends a change only after those that it overlaps were answered: one with a lower sequence that comes later is a late
    /// copy, whatever the floor (which a slow change to another chunk may keep low), and must not undo what came after it.
    ///
    /// Only this epoch need be remembered: what was sent before a change that names this epoch names no later one.
    fn in_session_order(&mut self, ctx: &mut Ctx<'_>, origin: Origin, span: Span) -> Result<(), Refusal> {
        let Origin { session, sequence, .. } = origin;
        let known = self.sessions.entry(session).or_default();
        let later = known.recent.range(sequence.next()..);
        if later.into_iter().any(|(_, other)| other.span.overlaps(&span)) {
            return Err(Refusal::StaleSequence);
        }
        if known.recent.len() >= RECENT_MAX && !known.recent.contains_key(&sequence) {
            return Err(Refusal::NotServing { reason: "too many changes of the session since its floor".into() });
        }
        known.recent.entry(sequence).or_insert(Recent { span, committed: false });
        let mut stale = Vec::new();
        self.waiting.retain(|waiting| {
            let other = waiting.origin;
            let late = other.session == session && other.sequence < sequence && waiting.overlaps(&span);
            if late {
                stale.push((waiting.id, waiting.bytes()));
            }
            !late
        });
        for (id, bytes) in stale {
            ctx.book.bytes -= bytes;
            ctx.refuse(id, Refusal::StaleSequence);
        }
        Ok(())
    }

    fn enqueue(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, waiting: Waiting) {
        let limits = &ctx.config.limits;
        let busy = || Refusal::NotServing { reason: "too many requests wait".into() };
        match &waiting.wanted {
            Wanted::Read(_) => {
                if self.waiting_reads.len() + self.reads.open.len() >= limits.waiting_requests {
                    return ctx.refuse(waiting.id, busy());
                }
                self.waiting_reads.push_back(waiting);
            }
            Wanted::Change(change, _) => {
                let bytes = change.bytes();
                if self.waiting.len() >= limits.waiting_requests || ctx.book.bytes + bytes > limits.node_bytes {
                    return ctx.refuse(waiting.id, busy());
                }
                ctx.book.bytes += bytes;
                self.waiting.push_back(waiting);
            }
        }
        self.pump(base, ctx);
    }

    /// Starts what need not wait any longer.
    pub(crate) fn pump(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        if !self.is_serving() || (self.waiting.is_empty() && self.waiting_reads.is_empty()) {
            return;
        }
        if self.solo_stopped(base, ctx) {
            return;
        }
        while let Some(waiting) = self.waiting_reads.pop_front() {
            self.start_read(base, ctx, waiting);
        }
        let mut at = 0;
        while at < self.waiting.len() && self.may_number(base, ctx) {
            let Wanted::Change(change, span) = &self.waiting[at].wanted else { break };
            let grows = matches!(change, Change::Write { .. });
            let held = span.keys().is_some_and(|keys| self.held.range(keys.first..=keys.last).next().is_some());
            let blocked = held && !ctx.config.mutations.copy_not_held;
            if blocked || self.waiting[at].lookup != Lookup::Done {
                self.look_up(base, ctx, at);
                at += 1;
                continue;
            }
            let Some(Waiting { id, origin, wanted: Wanted::Change(change, _), .. }) = self.waiting.remove(at) else {
                break;
            };
            if grows && self.is_low(base, ctx) {
                self.streams.values_mut().for_each(|stream| stream.ask_whether_low(base, ctx));
                ctx.book.bytes -= change.bytes();
                ctx.refuse(id, Refusal::NoSpace);
            } else {
                self.sequence(base, ctx, origin, change, Some(id));
            }
        }
    }

    /// Asks the disk whether a waiting change was made under an earlier primary, if that is to be known.
    fn look_up(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, at: usize) {
        let waiting = &mut self.waiting[at];
        let Wanted::Change(change, _) = &waiting.wanted else { return };
        let Some(keys) = change.keys().filter(|_| waiting.lookup == Lookup::Due) else { return };
        waiting.lookup = Lookup::Asked;
        let (session, sequence) = waiting.origin.key();
        let command = LocalCommand::Contended { group: base.group, chunk: keys.first, session, sequence };
        base.local(ctx, command, Tag::Contended(session, sequence));
    }

    /// Why nothing may be acknowledged to clients, if so: too few members would hold it.
    pub(crate) fn too_few(&self, base: &Base, ctx: &Ctx<'_>) -> Option<Refusal> {
        let few = base.view.in_sync.len() < ctx.map.min_in_sync as usize;
        few.then(|| Refusal::NotServing { reason: self.reason(base, ctx) })
    }

    /// The window and the view allow another number.
    pub(crate) fn may_number(&self, base: &Base, ctx: &Ctx<'_>) -> bool {
        let limits = &ctx.config.limits;
        base.view.in_sync.len() >= ctx.map.min_in_sync as usize
            && self.ops.len() < limits.window_ops
            && self.window_bytes < limits.window_bytes
    }

    fn is_low(&self, base: &Base, ctx: &Ctx<'_>) -> bool {
        let low = |member: &MemberId| self.streams.get(member).is_some_and(|stream| stream.low);
        ctx.book.low.contains(&base.me.disk) || self.counted(base, ctx.config.mutations).iter().any(low)
    }

    /// A primary that may acknowledge alone has no peer to refuse it: it goes on only near the metadata leader.
    pub(crate) fn solo_stopped(&self, base: &Base, ctx: &Ctx<'_>) -> bool {
        self.counted(base, ctx.config.mutations).is_empty() && !ctx.leader_near()
    }

    /// Tells those who waited too long.
    pub(crate) fn expire(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        let reason = self.reason(base, ctx);
        let mut late = Vec::new();
        let now = ctx.now;
        for queue in [&mut self.waiting, &mut self.waiting_reads] {
            queue.retain_mut(|waiting| {
                if waiting.expires > now {
                    return true;
                }
                late.push((waiting.id, waiting.bytes()));
                false
            });
        }
        self.reads.open.retain(|_, read| {
            if read.expires <= now {
                late.push((read.id, 0));
            }
            read.expires > now
        });
        for (id, bytes) in late {
            ctx.book.bytes -= bytes;
            ctx.refuse(id, Refusal::NotServing { reason: reason.clone() });
        }
    }

    /// Bytes of what waits.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(Waiting::bytes).sum()
    }

    /// Why something waits, for people.
    pub(crate) fn reason(&self, base: &Base, ctx: &Ctx<'_>) -> String {
        let (have, need) = (base.view.in_sync.len(), ctx.map.min_in_sync);
        match self.phase {
            Phase::Draining | Phase::Querying(_) | Phase::Repairing => "reconciling after a view change".into(),
            Phase::Serving if have < need as usize => format!("{have} members in sync, writes need {need}"),
            Phase::Serving if self.solo_stopped(base, ctx) => "no recent word from the metadata leader".into(),
            Phase::Serving => "waiting for members".into(),
        }
    }

    /// Refuses what has no number: its epoch is over.
    pub(crate) fn refuse_unnumbered(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        let asked = holdfast_types::Epoch(base.view.epoch.0.saturating_sub(1));
        let refusal = Refusal::WrongEpoch { asked, current: base.view.epoch, version: ctx.map.version };
        self.refuse_all_unnumbered(ctx, &refusal);
    }

    /// Refuses what has no number, for any reason.
    pub(crate) fn refuse_all_unnumbered(&mut self, ctx: &mut Ctx<'_>, refusal: &Refusal) {
        for waiting in std::mem::take(&mut self.waiting).into_iter().chain(std::mem::take(&mut self.waiting_reads)) {
            ctx.book.bytes -= waiting.bytes();
            ctx.refuse(waiting.id, refusal.clone());
        }
        self.refuse_reads(ctx, refusal);
    }

    /// Refuses what sessions that are over still wait for.
    pub(crate) fn refuse_ended(&mut self, ctx: &mut Ctx<'_>) {
        let map = ctx.map;
        let mut ended = Vec::new();
        let over = |session: SessionId| session != SessionId::SERVICE && map.session(session).is_none();
        for queue in [&mut self.waiting, &mut self.waiting_reads] {
            queue.retain_mut(|waiting| {
                if over(waiting.origin.session) {
                    ended.push((waiting.id, waiting.bytes()));
                }
                !over(waiting.origin.session)
            });
        }
        self.reads.open.retain(|_, read| {
            if over(read.session) {
                ended.push((read.id, 0));
            }
            !over(read.session)
        });
        for (id, bytes) in ended {
            ctx.book.bytes -= bytes;
            ctx.refuse(id, Refusal::SessionEnded);
        }
    }

    /// The client gave up: what has no number is dropped.
    pub(crate) fn cancelled(&mut self, ctx: &mut Ctx<'_>, id: u64) {
        for queue in [&mut self.waiting, &mut self.waiting_reads] {
            if let Some(at) = queue.iter().position(|waiting| waiting.id == id)
                && let Some(waiting) = queue.remove(at)
            {
                ctx.book.bytes -= waiting.bytes();
            }
        }
        self.reads.open.retain(|_, read| read.id != id);
        for op in self.ops.values_mut() {
            if op.request == Some(id) {
                op.request = None;
            }
        }
    }
}

impl Waiting {
    fn overlaps(&self, other: &Span) -> bool {
        match &self.wanted {
            Wanted::Change(_, span) => span.overlaps(other),
            Wanted::Read(_) => false,
        }
    }

    fn bytes(&self) -> usize {
        match &self.wanted {
            Wanted::Change(change, _) => change.bytes(),
            Wanted::Read(_) => 0,
        }
    }
}
