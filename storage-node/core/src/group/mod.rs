//! One group on one disk: takes part in at most one view at a time, in the role that the map gives it.
//!
//! ```text
//! Outside ──listed──▶ Member ──made primary──▶ Primary        any ──disk failed──▶ Failed
//!    ▲                  │  ▲───another primary───┘  │
//!    └──not listed──────┴───────────────────────────┘
//! ```
//! * It acts only as the incarnation listed in the view of its map, and takes nothing from another epoch or incarnation.
//! * An epoch is entered once, and never one below.

pub(crate) mod admit;
pub(crate) mod adopt;
pub(crate) mod base;
pub(crate) mod checkup;
pub(crate) mod compare;
pub(crate) mod discard;
pub(crate) mod member;
pub(crate) mod primary;
pub(crate) mod read;
pub(crate) mod reconcile;
pub(crate) mod repair;
pub(crate) mod scrub;
pub(crate) mod stream;
pub(crate) mod watch;

use crate::book::Ctx;
use crate::local::{LocalError, LocalOutcome, Ticket};
use base::{Base, Tag};
use bytes::Bytes;
use checkup::Examined;
use holdfast_types::{DiskId, Epoch, GroupId, Instant, MemberId, NodeId, OpNumber};
use holdfast_wire::chunk::{ChunkRequest, Refusal};
use holdfast_wire::group::{GroupBody, GroupMessage, ScrubResult};
use holdfast_wire::map::View;
use member::Member;
use primary::{Phase, Primary};
use reconcile::Report;
use stream::Ack;

/// What the map makes of it.
#[derive(Debug)]
pub(crate) enum Role {
    /// Not in the view.
    Outside,
    /// In the view, under another primary.
    Member(Box<Member>),
    /// The primary.
    Primary(Box<Primary>),
    /// The disk failed: nothing is said any more.
    Failed,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) base: Base,
    pub(crate) role: Role,
    /// Disks seen in sync (for one of the mutations only).
    known: Vec<MemberId>,
    /// Outside: nothing is left to remove here.
    discarded: bool,
}

impl Group {
    /// A group that is in no view yet.
    pub(crate) fn new(group: GroupId, me: MemberId, last: OpNumber, settled: OpNumber) -> Self {
        Self { base: Base::new(group, me, last, settled), role: Role::Outside, known: Vec::new(), discarded: false }
    }

    /// Enters the epoch of the map's view, if that is a newer one. `me`: the life in which this disk is listed, if it is.
    pub(crate) fn adopt(&mut self, ctx: &mut Ctx<'_>, view: &View, me: Option<MemberId>) {
        if view.epoch <= self.base.view.epoch || matches!(self.role, Role::Failed) {
            return;
        }
        let before = std::mem::replace(&mut self.base.view, view.clone());
        let primary_before = self.base.me;
        if let Some(me) = me {
            self.base.me = me;
        }
        self.base.end_era();
        self.discarded = false;
        ctx.book.discarding.remove(&self.base.group);
        self.known.extend(&before.in_sync);
        ctx.book.active.insert(self.base.group);
        let leads = me.is_some_and(|me| view.primary == me && view.in_sync.contains(&me));
        let refusal = Refusal::WrongEpoch { asked: before.epoch, current: view.epoch, version: ctx.map.version };
        let role = std::mem::replace(&mut self.role, Role::Outside);
        self.role = match role {
            Role::Primary(mut primary) if leads => {
                let next = before.epoch.next() == view.epoch && before.primary == primary_before;
                if next && primary.is_serving() {
                    primary.known_before.clone_from(&self.known);
                    primary.carry_on(&mut self.base, ctx);
                    Role::Primary(primary)
                } else {
                    primary.resign(&self.base, ctx, &refusal);
                    let mut fresh = self.fresh(ctx);
                    fresh.sessions = primary.sessions;
                    Role::Primary(fresh)
                }
            }
            Role::Primary(mut primary) => {
                primary.resign(&self.base, ctx, &refusal);
                self.follower(ctx, me)
            }
            Role::Member(_) | Role::Outside if leads => Role::Primary(self.fresh(ctx)),
            Role::Member(_) | Role::Outside | Role::Failed => self.follower(ctx, me),
        };
    }

    fn fresh(&mut self, ctx: &mut Ctx<'_>) -> Box<Primary> {
        let mut primary = Box::new(Primary::new(&self.base));
        primary.known_before.clone_from(&self.known);
        primary.reconcile(&mut self.base, ctx);
        primary
    }

    fn follower(&mut self, ctx: &mut Ctx<'_>, me: Option<MemberId>) -> Role {
        if me.is_none() {
            return Role::Outside;
        }
        let mut member = Box::new(Member::new(ctx.now));
        member.say_here(&self.base, ctx);
        Role::Member(member)
    }

    /// Sessions ended: refuses what they still wait for, and notes what the fence waits for.
    pub(crate) fn sessions_ended(&mut self, ctx: &mut Ctx<'_>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.refuse_ended(ctx);
            primary.fence(ctx);
        }
    }

    /// A request whose session may ask it.
    pub(crate) fn request(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: u64,
        request: ChunkRequest,
        payload: &Bytes,
        deadline: Instant,
    ) {
        let (asked, current, version) = (request.epoch, self.base.view.epoch, ctx.map.version);
        match &mut self.role {
            Role::Failed => ctx.refuse(id, Refusal::Io),
            Role::Outside => ctx.refuse(id, Refusal::WrongEpoch { asked, current: Epoch(0), version }),
            Role::Member(_) | Role::Primary(_) if asked != current => {
                ctx.refuse(id, Refusal::WrongEpoch { asked, current, version });
            }
            Role::Member(_) => ctx.refuse(id, Refusal::NotPrimary),
            Role::Primary(primary) => {
                ctx.book.active.insert(self.base.group);
                primary.request(&mut self.base, ctx, id, request, payload, deadline);
            }
        }
    }

    /// The client gave up.
    pub(crate) fn cancelled(&mut self, ctx: &mut Ctx<'_>, id: u64) {
        if let Role::Primary(primary) = &mut self.role {
            primary.cancelled(ctx, id);
        }
    }

    /// A message in this group's name, from the node that its sender is on.
    pub(crate) fn peer(&mut self, ctx: &mut Ctx<'_>, message: GroupMessage, payload: Bytes) {
        let GroupMessage { mut from, to, epoch, settled, body, .. } = message;
        let any_life = ctx.config.mutations.other_incarnation_accepted;
        if any_life {
            let same = |listed: &MemberId| (listed.node, listed.disk) == (from.node, from.disk);
            from = self.base.view.members().find(same).unwrap_or(from);
        }
        let current = self.base.view.epoch;
        if ctx.config.mutations.old_epoch_accepted
            && epoch < current
            && let (Role::Member(member), GroupBody::Operation { .. }) = (&mut self.role, &body)
        {
            if let Some(item) = member::arrived(body, payload) {
                member.take_old(&mut self.base, ctx, item, from);
            }
            return;
        }
        let meant = to == self.base.me || any_life;
        if epoch != current || !meant || !self.base.view.has(from) {
            ctx.book.counters.strange_messages += 1;
            return;
        }
        ctx.book.active.insert(self.base.group);
        let body = match (&self.role, body) {
            (Role::Member(_) | Role::Primary(_), GroupBody::Fetch { id, chunk, blocks }) => {
                return self.base.fetch(ctx, from, id, chunk, blocks);
            }
            (Role::Member(_) | Role::Primary(_), GroupBody::Fetched { id, chunk, blocks }) => {
                if let Role::Primary(primary) = &mut self.role {
                    primary.adopt_fetched(&mut self.base, ctx, (from, id), &blocks, payload.clone());
                }
                let examined = self.base.fetched(ctx, from, (id, chunk), &blocks, payload);
                return self.examined(ctx, examined);
            }
            (_, body) => body,
        };
        match &mut self.role {
            Role::Outside | Role::Failed => {}
            Role::Member(_) if from != self.base.view.primary => {}
            Role::Member(member) => {
                member.heard(&mut self.base, ctx.now, settled, &body);
                to_member(member, &mut self.base, ctx, body, payload);
            }
            Role::Primary(primary) => to_primary(primary, &mut self.base, ctx, from, body),
        }
    }

    /// The disk finished a command.
    pub(crate) fn local_done(&mut self, ctx: &mut Ctx<'_>, ticket: Ticket, result: Result<LocalOutcome, LocalError>) {
        let Some(tag) = self.base.finished(ticket) else { return };
        ctx.book.active.insert(self.base.group);
        if let (Role::Outside, Tag::DiscardList) = (&self.role, tag) {
            return self.discard_listed(ctx, result);
        }
        let base = &mut self.base;
        match (tag, &self.role) {
            (_, Role::Outside | Role::Failed) => {}
            (Tag::Check(chunk), _) => {
                let examined = base.checked(ctx, chunk, result);
                return self.examined(ctx, examined);
            }
            (Tag::Mend(chunk), _) => {
                base.placed(ctx, chunk);
                return self.drained(ctx);
            }
            (Tag::Fetch(to, id, chunk), _) => return base.answer_fetch(ctx, (to, id, chunk), result),
            (Tag::ExamList, _) => {
                base.exam_listed(result);
                return self.step_exam(ctx);
            }
            (_, Role::Member(_) | Role::Primary(_)) => {}
        }
        match &mut self.role {
            Role::Outside | Role::Failed => {}
            Role::Member(member) => {
                match tag {
                    Tag::Item(position) => member.item_done(base, ctx, position, result.map(drop)),
                    Tag::ReportChanges => member.changes(base, ctx, result),
                    Tag::CompareList => member.compare_listed(base, ctx, result),
                    Tag::CompareSums(chunk) => member.compare_summed(base, ctx, chunk, result),
                    Tag::Old => {}
                    other => unreachable!("a member gave no {other:?}"),
                }
                member.drained(base, ctx);
            }
            Role::Primary(primary) => {
                match tag {
                    Tag::Own(count) => primary.own_done(base, ctx, count, result.map(drop)),
                    Tag::Read(key) => primary.read_done(base, ctx, key, result),
                    Tag::Contended(session, sequence) => {
                        primary.looked_up(base, ctx, (session, sequence), result);
                    }
                    Tag::OwnChanges => primary.own_changes(base, ctx, result),
                    Tag::Adopt(chunk) => primary.adopted(base, ctx, chunk, result.map(drop)),
                    Tag::RepairList(member) => primary.listed(base, ctx, member, result),
                    Tag::CopySums(member, chunk) => primary.summed(base, ctx, (member, chunk), result),
                    Tag::CopyRead(member, chunk, from) => primary.copied(base, ctx, (member, chunk, from), result),
                    Tag::Old => {}
                    other => unreachable!("a primary gave no {other:?}"),
                }
                primary.drained(base, ctx);
            }
        }
    }

    /// The disk has finished a change.
    fn drained(&mut self, ctx: &mut Ctx<'_>) {
        match &mut self.role {
            Role::Outside | Role::Failed => {}
            Role::Member(member) => member.drained(&mut self.base, ctx),
            Role::Primary(primary) => primary.drained(&mut self.base, ctx),
        }
    }

    /// Chunks were read whole, and put right as far as that could be done.
    fn examined(&mut self, ctx: &mut Ctx<'_>, examined: impl IntoIterator<Item = Examined>) {
        for examined in examined {
            self.base.exam_goes_on(&examined);
            match &mut self.role {
                Role::Outside | Role::Failed => {}
                Role::Member(member) => member.examined(&self.base, &examined),
                Role::Primary(primary) => primary.examined(&mut self.base, ctx, &examined),
            }
        }
        self.step_exam(ctx);
    }

    /// Goes on with what is read for a scrub.
    fn step_exam(&mut self, ctx: &mut Ctx<'_>) {
        let Some((id, through, chunks)) = self.base.step_exam(ctx) else { return };
        let base = &mut self.base;
        match &mut self.role {
            Role::Outside | Role::Failed => {}
            Role::Member(_) => {
                base.send(ctx, base.view.primary, GroupBody::Checked { id, through, chunks }, Bytes::new());
            }
            Role::Primary(primary) => primary.member_checked(base, ctx, base.me, (id, through), chunks),
        }
    }

    /// See [`crate::StorageCore::damaged_for_good`].
    pub(crate) fn is_damaged_for_good(&self) -> bool {
        let leads = matches!(&self.role, Role::Primary(primary) if primary.aside);
        leads && self.base.view.in_sync.len() == 1 && self.base.checkups.some_failed()
    }

    /// Begins a scrub, if this is a primary that serves.
    pub(crate) fn begin_scrub(&mut self, ctx: &mut Ctx<'_>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.begin_scrub(ctx.now);
            ctx.book.active.insert(self.base.group);
        }
    }

    /// A scrub of it could begin, or goes on.
    pub(crate) fn scrub(&self) -> (bool, Option<ScrubResult>) {
        match &self.role {
            Role::Primary(primary) => (primary.is_serving(), primary.run.as_ref().map(|run| run.result)),
            Role::Outside | Role::Member(_) | Role::Failed => (false, None),
        }
    }

    /// Time passed. Returns whether the group wants the next tick as well.
    pub(crate) fn tick(&mut self, ctx: &mut Ctx<'_>, slept: bool) -> bool {
        if matches!(self.role, Role::Member(_) | Role::Primary(_)) {
            let examined = self.base.tick_checkups(ctx);
            self.examined(ctx, examined);
        }
        let reads = !self.base.checkups.is_empty() || self.base.exam.is_some();
        match &mut self.role {
            Role::Outside => self.discard(ctx),
            Role::Failed => false,
            Role::Member(member) => member.tick(&self.base, ctx) || reads,
            Role::Primary(primary) => primary.tick(&mut self.base, ctx, slept) || reads,
        }
    }

    /// Its primary is on that node.
    pub(crate) fn follows(&self, node: NodeId) -> bool {
        matches!(self.role, Role::Member(_)) && self.base.view.primary.node == node
    }

    /// A stream to a node is open.
    pub(crate) fn peer_connected(&mut self, ctx: &mut Ctx<'_>, node: NodeId) {
        match &mut self.role {
            Role::Outside | Role::Failed => {}
            Role::Member(member) => {
                if self.base.view.primary.node == node {
                    member.say_here(&self.base, ctx);
                }
            }
            Role::Primary(primary) => primary.peer_connected(&self.base, ctx, node),
        }
    }

    /// A disk is nearly full, or no longer. The primary refuses what grows meanwhile: it hears of either at once.
    pub(crate) fn space_changed(&mut self, ctx: &mut Ctx<'_>, disk: DiskId) {
        if let Role::Member(member) = &self.role
            && self.base.me.disk == disk
        {
            member.say_space(&self.base, ctx);
        }
    }

    /// The disk failed.
    pub(crate) fn fail(&mut self, ctx: &mut Ctx<'_>) {
        if let Role::Primary(primary) = &mut self.role {
            primary.resign(&self.base, ctx, &Refusal::Io);
        }
        ctx.book.discarding.remove(&self.base.group);
        self.role = Role::Failed;
    }
}

/// What a member is told by its primary.
fn to_member(member: &mut Member, base: &mut Base, ctx: &mut Ctx<'_>, body: GroupBody, payload: Bytes) {
    match body {
        GroupBody::Operation { .. } => {
            if let Some(item) = member::arrived(body, payload) {
                member.operation(base, ctx, item);
            }
        }
        GroupBody::Idle { stream, position } => member.idle(base, ctx, stream, position),
        GroupBody::Query { stream } => member.query(base, ctx, stream),
        GroupBody::Compare { stream, id, range, chunks } => member.compare(base, ctx, (stream, id), range, &chunks),
        GroupBody::Confirm { round } => {
            base.send(ctx, base.view.primary, GroupBody::Confirmed { round }, Bytes::new());
        }
        GroupBody::Check { id, range } => base.examine(ctx, id, range),
        GroupBody::Scrubbed(result) => base.scrubbed(ctx, result),
        GroupBody::Here
        | GroupBody::Stale
        | GroupBody::Fetch { .. }
        | GroupBody::Fetched { .. }
        | GroupBody::Checked { .. }
        | GroupBody::Persisted { .. }
        | GroupBody::Report { .. }
        | GroupBody::Differences { .. }
        | GroupBody::Confirmed { .. } => {}
    }
}

/// What a primary is told by its members.
fn to_primary(primary: &mut Primary, base: &mut Base, ctx: &mut Ctx<'_>, from: MemberId, body: GroupBody) {
    match body {
        GroupBody::Here => {
            primary.here.insert(from);
            let querying = match &primary.phase {
                Phase::Querying(query) if !query.reports.contains_key(&from) => Some(query.stream),
                Phase::Querying(_) | Phase::Draining | Phase::Repairing | Phase::Serving => None,
            };
            match (querying, primary.streams.get_mut(&from)) {
                (Some(stream), _) if base.view.in_sync.contains(&from) => {
                    base.send(ctx, from, GroupBody::Query { stream }, Bytes::new());
                }
                (_, Some(stream)) => stream.ask(base, ctx),
                (_, None) => base.send(ctx, from, GroupBody::Idle { stream: 0, position: 0 }, Bytes::new()),
            }
        }
        GroupBody::Persisted { stream, durable, received, gap, low, stuck } => {
            primary.persisted(base, ctx, from, stream, Ack { durable, received, gap, low, stuck });
        }
        GroupBody::Report { stream, last, settled, changed } => {
            primary.report(base, ctx, from, stream, Report { last, settled, changed });
        }
        GroupBody::Differences { stream, id, through, chunks } => {
            primary.differences(base, ctx, from, (stream, id), through, chunks);
        }
        GroupBody::Confirmed { round } => primary.confirmed(base, ctx, from, round),
        GroupBody::Checked { id, through, chunks } => primary.member_checked(base, ctx, from, (id, through), chunks),
        GroupBody::Stale
        | GroupBody::Operation { .. }
        | GroupBody::Idle { .. }
        | GroupBody::Query { .. }
        | GroupBody::Compare { .. }
        | GroupBody::Fetch { .. }
        | GroupBody::Fetched { .. }
        | GroupBody::Check { .. }
        | GroupBody::Scrubbed(_)
        | GroupBody::Confirm { .. } => {}
    }
}
