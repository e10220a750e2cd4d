//! The node: one map, many groups.
//!
//! * Nothing is served before the first map.
//! * Only groups with something open cost anything when time passes.
//! * A map is acknowledged when no operation of a session that it, or an older one, ended is still open here.

use crate::api::{Config, Counters, Effect, Input, Scrubbed};
use crate::book::{Book, Ctx};
use crate::group::{Group, Role};
use crate::local::{GroupState, LocalError, LocalOutcome, Ticket};
use crate::request;
use crate::scrub::Scrubs;
use bytes::Bytes;
use holdfast_types::{DiskId, GroupId, Incarnation, Instant, MapVersion, MemberId, NodeId, OpNumber};
use holdfast_wire::admin::{GroupScrub, HeldByNode, HeldGroup};
use holdfast_wire::chunk::{ChunkRequest, Refusal};
use holdfast_wire::group::{GroupBody, GroupMessage};
use holdfast_wire::map::{ClusterMap, MapUpdate, View};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// With more time than this between ticks, this node itself was not running. By eye: twenty times the tick that is wanted.
const SLEPT: Duration = Duration::from_secs(1);

/// All groups of one storage node.
#[derive(Debug)]
pub struct StorageCore {
    pub(crate) config: Config,
    pub(crate) map: ClusterMap,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) book: Book,
    /// What the stores told at the start, for groups that are in no view yet.
    stored: BTreeMap<(DiskId, GroupId), GroupState>,
    failed: BTreeSet<DiskId>,
    acknowledged: MapVersion,
    ticked: Instant,
}

impl StorageCore {
    /// A core that has no map yet and serves nothing. `groups`: what each disk's store knows, as told at its start.
    pub fn new(config: Config, groups: Vec<(DiskId, GroupState)>, now: Instant) -> Self {
        let scrubs = Scrubs::new(&config.scrubbed, config.limits.scrub_every, now);
        Self {
            config,
            map: ClusterMap::default(),
            groups: BTreeMap::new(),
            book: Book::new(scrubs),
            stored: groups.into_iter().map(|(disk, state)| ((disk, state.group), state)).collect(),
            failed: BTreeSet::new(),
            acknowledged: MapVersion(0),
            ticked: now,
        }
    }

    /// The version of the map it has; 0: none.
    pub fn map_version(&self) -> MapVersion {
        self.map.version
    }

    /// The map it has.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// The greatest version told by [`Effect::Acknowledged`].
    pub fn acknowledged(&self) -> MapVersion {
        self.acknowledged
    }

    /// The map it has, and how far its disks are with each group that they hold something of.
    pub fn held(&self) -> HeldByNode {
        let none = OpNumber::default();
        let mut last: BTreeMap<(GroupId, DiskId), OpNumber> =
            self.stored.iter().map(|((disk, group), state)| ((*group, *disk), state.last)).collect();
        for (id, group) in &self.groups {
            let known = last.entry((*id, group.base.me.disk)).or_default();
            *known = group.base.last.max(*known);
        }
        let held = last.into_iter().filter(|(_, last)| *last != none);
        let groups = held.filter_map(|((group, disk), last)| {
            let incarnation = self.config.disks.iter().find(|(id, _)| *id == disk).map(|(_, life)| *life)?;
            Some(HeldGroup { group, member: MemberId { node: self.config.node, disk, incarnation }, last })
        });
        HeldByNode { groups: groups.collect(), map: self.map.clone() }
    }

    /// Chunks removed so far of groups that live elsewhere now.
    pub fn discarded(&self) -> u64 {
        self.book.discarded
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.book.counters
    }

    /// Bytes of chunks sent so far to members that lacked them, and groups in which this node, their primary, is catching one up.
    pub fn copied(&self) -> (u64, usize) {
        (self.book.copied_bytes, self.book.resyncs.len())
    }

    /// Takes one input and appends the effects it calls for, in the order they must start.
    pub fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        match input {
            Input::Tick => self.tick(now, effects),
            Input::Map(update) => self.update(now, update, effects),
            Input::Request { id, request, payload, deadline } => {
                self.request(now, id, request, &payload, deadline, effects);
            }
            Input::Cancelled { id } => {
                let (groups, mut ctx) = self.split(now, effects);
                if let Some(group) = ctx.book.requests.remove(&id).and_then(|group| groups.get_mut(&group)) {
                    group.cancelled(&mut ctx, id);
                }
            }
            Input::Peer { from, message, payload } => self.peer(now, from, message, payload, effects),
            Input::PeerConnected { node } => {
                self.book.lost.remove(&node);
                self.book.refused.remove(&node);
                let (groups, mut ctx) = self.split(now, effects);
                for group in groups.values_mut() {
                    group.peer_connected(&mut ctx, node);
                }
            }
            Input::PeerLost { node } => {
                // What was under way is asked for again in time, or when the stream is open again.
                self.book.lost.entry(node).or_insert(now);
                let follow = self.groups.iter().filter(|(_, group)| group.follows(node));
                self.book.active.extend(follow.map(|(id, _)| *id));
            }
            Input::PeerRefused { node } => self.peer_refused(now, node, effects),
            Input::LocalDone { ticket, result } => self.local_done(now, ticket, result, effects),
            Input::ViewAnswer { token: _, result } => self.view_answer(now, result, effects),
            Input::LeaderHeard { sent_at } => {
                self.book.leader_heard = self.book.leader_heard.max(Some(sent_at));
            }
            Input::ScrubNow => self.book.scrubs.all_due(now),
            Input::Space { disk, low } => {
                let news = if low { self.book.low.insert(disk) } else { self.book.low.remove(&disk) };
                let (groups, mut ctx) = self.split(now, effects);
                for group in groups.values_mut().filter(|_| news) {
                    group.space_changed(&mut ctx, disk);
                }
            }
        }
        self.acknowledge(effects);
    }

    fn split<'a>(
        &'a mut self,
        now: Instant,
        effects: &'a mut Vec<Effect>,
    ) -> (&'a mut BTreeMap<GroupId, Group>, Ctx<'a>) {
        let ctx = Ctx { now, config: &self.config, map: &self.map, book: &mut self.book, effects };
        (&mut self.groups, ctx)
    }

    fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let slept = now.since(self.ticked) > SLEPT;
        self.ticked = now;
        let (groups, mut ctx) = self.split(now, effects);
        ctx.want_map_again();
        scrub_next(groups, &mut ctx);
        for id in std::mem::take(&mut ctx.book.active) {
            let Some(group) = groups.get_mut(&id) else { continue };
            if group.tick(&mut ctx, slept) {
                ctx.book.active.insert(id);
            }
        }
    }

    fn update(&mut self, now: Instant, update: MapUpdate, effects: &mut Vec<Effect>) {
        let sessions_before = self.map.sessions.clone();
        match update {
            MapUpdate::Unchanged => return,
            MapUpdate::Full(map) if map.version <= self.map.version => return,
            MapUpdate::Full(map) => self.map = *map,
            MapUpdate::Delta(delta) if delta.to <= self.map.version => return,
            MapUpdate::Delta(delta) => {
                let fits = delta.views.iter().all(|(group, _)| self.map.view(*group).is_some());
                if !fits || !self.map.apply(&delta) {
                    let (_, mut ctx) = self.split(now, effects);
                    return ctx.want_map(delta.to);
                }
            }
        }
        let mut ended = false;
        for session in sessions_before.keys().filter(|session| !self.map.sessions.contains_key(session)) {
            effects.push(Effect::SessionEnded(*session));
            ended = true;
        }
        self.enter_views(now, effects);
        if ended {
            let (groups, mut ctx) = self.split(now, effects);
            for group in groups.values_mut() {
                group.sessions_ended(&mut ctx);
            }
        }
    }

    /// Every group enters the epoch of its view.
    fn enter_views(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        for (index, view) in self.map.views.iter().enumerate() {
            let id = GroupId(index as u32);
            let me = listed(&self.config, view).filter(|me| !self.failed.contains(&me.disk));
            let moved = |group: &Group| me.is_some_and(|me| me.disk != group.base.me.disk);
            let ctx = &mut Ctx { now, config: &self.config, map: &self.map, book: &mut self.book, effects };
            // A group may come back on another disk of this node: what the first one was doing is over.
            if self.groups.get(&id).is_some_and(moved)
                && let Some(mut old) = self.groups.remove(&id)
            {
                old.fail(ctx);
                let (last, settled) = (old.base.last, old.base.settled);
                let state = GroupState { group: id, last, settled, complete: true };
                self.stored.insert((old.base.me.disk, id), state);
            }
            // What was left here of a group that lives elsewhere now is looked at once, and removed.
            let left = || {
                let disks = self.config.disks.iter().filter(|(disk, _)| !self.failed.contains(disk));
                let mut left = disks.filter(|(disk, _)| self.stored.contains_key(&(*disk, id)));
                left.next().map(|(disk, life)| MemberId { node: self.config.node, disk: *disk, incarnation: *life })
            };
            if let (Some(me), false) = (me.or_else(left), self.groups.contains_key(&id)) {
                let stored = self.stored.get(&(me.disk, id));
                let none = OpNumber::default();
                let (last, settled) = stored.map_or((none, none), |state| (state.last, state.settled));
                self.groups.insert(id, Group::new(id, me, last.max(settled), settled));
                let (every, disk) = (ctx.config.limits.scrub_every, me.disk);
                if let Some(age) = ctx.book.scrubs.meet(id, every, ctx.config.seed, now) {
                    ctx.effects.push(Effect::ScrubNoted(Scrubbed { disk, group: id, age, result: None }));
                }
            }
            if let Some(group) = self.groups.get_mut(&id) {
                group.adopt(ctx, view, me);
            }
        }
    }

    fn request(
        &mut self,
        now: Instant,
        id: u64,
        request: ChunkRequest,
        payload: &Bytes,
        deadline: Instant,
        effects: &mut Vec<Effect>,
    ) {
        let (groups, mut ctx) = self.split(now, effects);
        ctx.book.requests.insert(id, request.group);
        if let Err(refusal) = request::check(&mut ctx, &request, payload) {
            return ctx.refuse(id, refusal);
        }
        match groups.get_mut(&request.group) {
            Some(group) => group.request(&mut ctx, id, request, payload, deadline),
            None => {
                let (asked, version) = (request.epoch, ctx.map.version);
                ctx.refuse(id, Refusal::WrongEpoch { asked, current: 0.into(), version });
            }
        }
    }

    fn peer(&mut self, now: Instant, from: NodeId, message: GroupMessage, payload: Bytes, effects: &mut Vec<Effect>) {
        let (groups, mut ctx) = self.split(now, effects);
        if message.from.node != from || message.to.node != ctx.config.node {
            return;
        }
        let current = ctx.map.view(message.group).map_or(holdfast_types::Epoch(0), |view| view.epoch);
        if message.epoch > current {
            return ctx.want_map(message.map);
        }
        if message.epoch < current && ctx.map.version > message.map && message.body != GroupBody::Stale {
            let reply = GroupMessage {
                group: message.group,
                epoch: current,
                from: message.to,
                to: message.from,
                map: ctx.map.version,
                settled: OpNumber::default(),
                body: GroupBody::Stale,
            };
            ctx.effects.push(Effect::SendPeer { to: from, message: reply, payload: Bytes::new() });
        }
        if let Some(group) = groups.get_mut(&message.group) {
            group.peer(&mut ctx, message, payload);
        }
    }

    fn local_done(
        &mut self,
        now: Instant,
        ticket: Ticket,
        result: Result<LocalOutcome, LocalError>,
        effects: &mut Vec<Effect>,
    ) {
        let Some((id, disk)) = self.book.owners.remove(&ticket) else { return };
        if self.failed.contains(&disk) {
            return;
        }
        if result == Err(LocalError::Failed) {
            return self.disk_failed(now, disk, effects);
        }
        let (groups, mut ctx) = self.split(now, effects);
        if let Some(group) = groups.get_mut(&id).filter(|group| group.base.me.disk == disk) {
            group.local_done(&mut ctx, ticket, result);
        }
    }

    /// Nothing may be concluded about what the disk was doing: its groups say nothing any more.
    fn disk_failed(&mut self, now: Instant, disk: DiskId, effects: &mut Vec<Effect>) {
        self.failed.insert(disk);
        let (groups, mut ctx) = self.split(now, effects);
        for group in groups.values_mut().filter(|group| group.base.me.disk == disk) {
            group.fail(&mut ctx);
        }
        effects.push(Effect::DiskFailed { disk });
    }

    /// Whoever shares views with a node whose process has ended says so, and nobody needs to be patient.
    fn peer_refused(&mut self, now: Instant, node: NodeId, effects: &mut Vec<Effect>) {
        let me = self.config.node;
        let has = |view: &View, node: NodeId| view.members().any(|member| member.node == node);
        let Some(record) = self.map.nodes.get(&node).filter(|record| record.alive) else { return };
        if !self.map.views.iter().any(|view| has(view, node) && has(view, me)) {
            return;
        }
        let lives = record.lives().collect();
        let told = self.book.refused.get(&node);
        if told.is_none_or(|told| now.since(*told) >= self.config.limits.resend) {
            self.book.refused.insert(node, now);
            let (_, mut ctx) = self.split(now, effects);
            ctx.ask_view(Request::ReportGone { node, lives, reporter: me });
        }
    }

    fn view_answer(&mut self, now: Instant, result: Result<Response, MetadataError>, effects: &mut Vec<Effect>) {
        let (_, mut ctx) = self.split(now, effects);
        if let Ok(Response::View { version, .. }) = result {
            ctx.want_map(version);
        }
    }

    /// Tells the greatest version whose fences are all passed.
    fn acknowledge(&mut self, effects: &mut Vec<Effect>) {
        let open = self.book.fences.first_key_value().map(|(version, _)| MapVersion(version.0 - 1));
        let passed = open.unwrap_or(self.map.version);
        if passed > self.acknowledged {
            self.acknowledged = passed;
            effects.push(Effect::Acknowledged(passed));
        }
    }

    /// How it stands with the scrubs of the groups that this node is primary of.
    pub fn scrubs(&self, now: Instant) -> Vec<GroupScrub> {
        let led = self.groups.iter().filter(|(_, group)| matches!(group.role, Role::Primary(_)));
        let one = |(id, group): (&GroupId, &Group)| {
            let (last, due) = self.book.scrubs.of(*id, now);
            let last = last.map(|(age, result)| (age.as_secs(), result));
            GroupScrub { group: *id, last, running: group.scrub().1, due: due.as_secs_f64().ceil() as u64 }
        };
        led.map(one).collect()
    }

    /// Groups of which this node has the only copy in sync, with a block of it that is damaged, and that no member has as it should be.
    pub fn damaged_for_good(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.iter().filter(|(_, group)| group.is_damaged_for_good()).map(|(id, _)| *id)
    }

    /// Groups this node is primary of, and whether each serves.
    pub fn primary_of(&self) -> impl Iterator<Item = (GroupId, bool)> + '_ {
        self.groups.iter().filter_map(|(id, group)| match &group.role {
            Role::Primary(primary) => Some((*id, primary.is_serving())),
            Role::Outside | Role::Member(_) | Role::Failed => None,
        })
    }
}

/// Begins the next scrub that is due when none is under way.
fn scrub_next(groups: &mut BTreeMap<GroupId, Group>, ctx: &mut Ctx<'_>) {
    ctx.book.scrubs.refill(ctx.now, ctx.config.limits.scrub_rate);
    let runs = |group: &GroupId| groups.get(group).is_some_and(|group| group.scrub().1.is_some());
    if ctx.book.scrubs.running().as_ref().is_some_and(runs) {
        return;
    }
    let may = |group: GroupId| groups.get(&group).is_some_and(|group| group.scrub().0);
    let next = ctx.book.scrubs.next(ctx.now, may);
    let now = ctx.now;
    ctx.book.scrubs.begins(next, now);
    if let Some(group) = next.and_then(|next| groups.get_mut(&next)) {
        group.begin_scrub(ctx);
    }
}

/// The life in which a disk of this node is listed in a view.
fn listed(config: &Config, view: &View) -> Option<MemberId> {
    let any_life = config.mutations.other_incarnation_accepted;
    let alive = |disk: DiskId, incarnation: Incarnation| {
        config.disks.iter().any(|(id, life)| *id == disk && (*life == incarnation || any_life))
    };
    view.members().find(|member| member.node == config.node && alive(member.disk, member.incarnation))
}
