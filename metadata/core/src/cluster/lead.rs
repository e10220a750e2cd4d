//! What shard 0's leader does beside applying: requests, fences that wait for storage nodes, subscribers of the map.
//!
//! Everything here is in memory and begins afresh with every leader; what must survive is in the log.

use super::gone::Gone;
use super::members;
use super::nodes::Heard;
use super::rebuild::Rebuild;
use super::slow::Slow;
use crate::api::{Caller, ticks};
use crate::command::{ClusterCommand, Command, ViewChange, ViewStep};
use crate::core::{Asker, MetadataCore, Waiter};
use crate::replica::{Event, Outcome, Token};
use holdfast_types::limits::{DRIFT_MARGIN, NAME_BYTES_MAX, NODE_TTL};
use holdfast_types::{GroupId, MapVersion, MemberId, NodeId, ServerId, SessionId, ShardId};
use holdfast_wire::admin::ServerPlace;
use holdfast_wire::map::{MapUpdate, View};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use std::collections::{BTreeMap, BTreeSet};

const SHARD: ShardId = ShardId::CLUSTER;

/// What a proposed command is for.
#[derive(Debug)]
enum Purpose {
    /// Its answer goes to somebody.
    Answer(Asker),
    /// When it is applied, somebody is told the view as it then is.
    ShowView(Asker, GroupId),
    /// Of the leader's own making.
    Own(Work),
}

/// Commands of the leader's own, of which one of a kind is in flight at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    Fence,
    Update,
    Form,
    VolumeGone,
    Servers,
}

/// What a read is for.
#[derive(Debug)]
enum ReadFor {
    Map { waiter: Waiter, have: MapVersion, wait: bool },
    Heard(Asker),
    View(Asker, GroupId),
    Volumes(Asker),
    Volume(Asker, String),
    VolumesAfter(Asker, String, u32),
    Status(Asker),
}

/// Somebody waits for a session to be over everywhere.
#[derive(Debug)]
struct FenceWaiter {
    waiter: Waiter,
    session: SessionId,
    /// From which version on it is; not known before the fence is committed.
    version: Option<MapVersion>,
}

/// The leader's memory.
#[derive(Debug, Default)]
pub(crate) struct ClusterLead {
    purposes: BTreeMap<Token, Purpose>,
    reads: BTreeMap<Token, ReadFor>,
    fences: Vec<FenceWaiter>,
    subscribers: Vec<(Waiter, MapVersion)>,
    told: MapVersion,
    in_flight: BTreeSet<Work>,
    /// Since when this server leads, in ticks; `None` while it does not.
    pub(super) since: Option<u64>,
    pub(super) heard: BTreeMap<NodeId, Heard>,
    pub(super) reports: BTreeMap<(GroupId, MemberId), BTreeSet<MemberId>>,
    pub(super) gone: Gone,
    /// Members taken out on a report, and when: they do not return at once.
    pub(super) evicted: BTreeMap<(GroupId, MemberId), u64>,
    /// Groups none of whose members in sync has kept its life, and since when.
    pub(super) reforming: BTreeMap<GroupId, u64>,
    /// Lives of logs as they were heard.
    pub(super) lives: BTreeMap<ServerId, u64>,
    /// What the leader of the volumes has said of its shard's members: for these places they are as they should be.
    pub(super) arrived: BTreeMap<ServerId, ServerPlace>,
    /// When primaries were last moved for balance.
    pub(super) balanced: u64,
    /// What is known about disks that are away, and about the moves of groups.
    pub(super) rebuild: Rebuild,
    /// Who is slower than the others.
    pub(super) slow: Slow,
    /// Something has happened that views may depend on.
    pub(super) dirty: bool,
    /// Some views wait for a sign of life.
    pub(super) unsure: bool,
}

impl ClusterLead {
    /// Whether a command of a kind is on its way.
    pub(super) fn is_busy(&self, work: Work) -> bool {
        self.in_flight.contains(&work)
    }

    /// Who waits for fences.
    pub(crate) fn fences_waiting(&self) -> usize {
        self.fences.len()
    }
}

impl MetadataCore {
    pub(crate) fn cluster_request(&mut self, waiter: Waiter, from: Caller, request: Request) {
        let asker = waiter.asker;
        match request {
            Request::OpenSession { client, .. } if client.instance.len() > NAME_BYTES_MAX => {
                let reason = format!("the name of an instance has up to {NAME_BYTES_MAX} bytes");
                self.refuse(asker, SHARD, MetadataError::Invalid { reason });
            }
            Request::OpenSession { volume, client, read_only, nonce } => {
                self.propose_for(asker, ClusterCommand::OpenSession { volume, client, read_only, nonce });
            }
            Request::CreateVolume { name, limits, open, labels } => {
                self.propose_for(asker, ClusterCommand::CreateVolume { name, limits, open, labels });
            }
            Request::SetOpenPolicy { name, open } => {
                self.propose_for(asker, ClusterCommand::SetOpenPolicy { name, open });
            }
            Request::LabelVolume { name, version, labels } => {
                self.propose_for(asker, ClusterCommand::LabelVolume { name, version, labels });
            }
            Request::DescribeVolume { name } => self.cluster_read(ReadFor::Volume(asker, name)),
            Request::DescribeVolumes { after, limit } => self.cluster_read(ReadFor::VolumesAfter(asker, after, limit)),
            Request::LimitVolume { name, limits } => {
                self.propose_for(asker, ClusterCommand::LimitVolume { name, limits });
            }
            Request::DeleteVolume { name } => self.propose_for(asker, ClusterCommand::DeleteVolume { name }),
            Request::FenceSession { session } => self.fence_request(waiter, session),
            Request::GetMap { have, wait } => self.cluster_read(ReadFor::Map { waiter, have, wait }),
            Request::Heartbeat(heartbeat) if self.cluster.machine.is_gone(heartbeat.node) => {
                let reason = format!("storage node {} was removed from the cluster, for good", heartbeat.node);
                self.refuse(asker, SHARD, MetadataError::Invalid { reason });
            }
            Request::Heartbeat(heartbeat) => {
                self.hear(heartbeat);
                self.cluster_read(ReadFor::Heard(asker));
            }
            Request::Promote { group, epoch, member } => {
                let view = self.view_at(group, epoch).filter(|view| from == Caller::Storage(view.primary.node));
                if view.is_some_and(|view| view.syncing.contains(&member)) {
                    self.change_view(asker, ViewChange { group, epoch, steps: vec![ViewStep::Promote { member }] });
                } else {
                    self.show_view(asker, group);
                }
            }
            Request::Evict { group, epoch, member, reporter, silent } => {
                let is_current = self.view_at(group, epoch).is_some();
                let leaves = if is_current { self.who_leaves(group, member, reporter, &silent) } else { None };
                if let Some(member) = leaves {
                    self.cluster_lead.evicted.insert((group, member), self.ticks);
                    self.change_view(asker, ViewChange { group, epoch, steps: vec![ViewStep::Remove { member }] });
                } else {
                    self.show_view(asker, group);
                }
            }
            Request::ReportGone { node, lives, reporter } => {
                self.report_gone(node, &lives, reporter);
                self.answer(asker, SHARD, None, Ok(Response::Done));
            }
            Request::LeaveViews { node } => {
                let views = self.views_without(node);
                if let Some(heard) = self.cluster_lead.heard.get_mut(&node) {
                    heard.leaving = true;
                }
                self.propose_for(asker, ClusterCommand::Update { nodes: Vec::new(), views });
            }
            Request::AddServer { server, address, replaces } => self.add_server(asker, server, address, replaces),
            Request::RemoveServer { server } => match self.may_leave(server) {
                Ok(()) => self.propose_for(asker, ClusterCommand::RemoveServer { server }),
                Err(error) => self.refuse(asker, SHARD, error),
            },
            Request::PlaceStorage { node, place } => {
                self.propose_for(asker, ClusterCommand::PlaceStorage { node, place });
            }
            Request::ServerArrived { server, place } => {
                self.cluster_lead.arrived.insert(server, place);
                self.answer(asker, SHARD, None, Ok(Response::Done));
            }
            Request::LeadVolumes { term } => self.propose_for(asker, ClusterCommand::ServiceLeads { term }),
            Request::ListVolumes => self.cluster_read(ReadFor::Volumes(asker)),
            Request::Status if !self.are_servers_on_record() => {
                let reason = "the metadata servers are just being put on record; ask again".into();
                self.refuse(asker, SHARD, MetadataError::Unavailable { reason });
            }
            Request::Status => self.cluster_read(ReadFor::Status(asker)),
            Request::Attach { .. }
            | Request::EndSession { .. }
            | Request::RaiseGeneration { .. }
            | Request::Detach
            | Request::Renew { .. }
            | Request::StoppedCaching { .. }
            | Request::Query(_)
            | Request::Mutate(_)
            | Request::InspectInodes { .. } => unreachable!("requests of shard 1 are not given to shard 0"),
        }
    }

    fn cluster_read(&mut self, read: ReadFor) {
        let token = self.token();
        self.cluster_lead.reads.insert(token, read);
        self.cluster.read(token);
    }

    fn propose_cluster(&mut self, purpose: Purpose, command: ClusterCommand) {
        let token = self.token();
        self.cluster_lead.purposes.insert(token, purpose);
        self.cluster.propose(token, Command::Cluster(command));
    }

    pub(super) fn propose_for(&mut self, asker: Asker, command: ClusterCommand) {
        self.propose_cluster(Purpose::Answer(asker), command);
    }

    /// Proposes something of the leader's own; the caller has checked that none of the kind is on its way.
    pub(super) fn propose_work(&mut self, work: Work, command: ClusterCommand) {
        let fresh = self.cluster_lead.in_flight.insert(work);
        assert!(fresh, "one command of a kind at a time");
        self.propose_cluster(Purpose::Own(work), command);
    }

    fn change_view(&mut self, asker: Asker, change: ViewChange) {
        let group = change.group;
        self.propose_cluster(
            Purpose::ShowView(asker, group),
            ClusterCommand::Update { nodes: Vec::new(), views: vec![change] },
        );
    }

    /// Tells the view as it is, from a confirmed leader.
    fn show_view(&mut self, asker: Asker, group: GroupId) {
        self.cluster_read(ReadFor::View(asker, group));
    }

    fn view_at(&self, group: GroupId, epoch: holdfast_types::Epoch) -> Option<&View> {
        let row = self.cluster.machine.groups.get(group.0 as usize)?;
        (row.view.epoch == epoch).then_some(&row.view)
    }

    pub(crate) fn cluster_event(&mut self, event: Event) {
        match event {
            Event::Proposed(token, outcome) => {
                if let Some(purpose) = self.cluster_lead.purposes.remove(&token) {
                    self.cluster_proposed(purpose, outcome);
                }
            }
            Event::Read(token, leads) => {
                if let Some(read) = self.cluster_lead.reads.remove(&token) {
                    self.cluster_read_ready(read, leads);
                }
            }
            Event::Leading => {
                self.cluster_lead.since = Some(self.ticks);
                self.cluster_lead.heard.clear();
                self.cluster_lead.dirty = true;
            }
            Event::Deposed => self.cluster_deposed(),
            Event::Changed => {
                self.tell_subscribers();
                self.sessions_changed();
            }
        }
    }

    fn cluster_proposed(&mut self, purpose: Purpose, outcome: Outcome) {
        match (purpose, outcome) {
            (Purpose::Answer(asker), Outcome::Applied(output)) => {
                self.answer(asker, SHARD, Some(output.at), output.result);
            }
            (Purpose::ShowView(asker, group), Outcome::Applied(_)) => self.answer_view(asker, group),
            (Purpose::Answer(asker) | Purpose::ShowView(asker, _), Outcome::Lost | Outcome::Wait) => {
                let reason = "leadership was lost before the command was applied".into();
                self.refuse(asker, SHARD, MetadataError::Unavailable { reason });
            }
            (Purpose::Own(work), _) => {
                self.cluster_lead.in_flight.remove(&work);
                self.cluster_lead.dirty = true;
            }
        }
    }

    fn cluster_read_ready(&mut self, read: ReadFor, leads: bool) {
        let asker = match &read {
            ReadFor::Map { waiter, .. } => waiter.asker,
            ReadFor::Heard(asker)
            | ReadFor::View(asker, _)
            | ReadFor::Volumes(asker)
            | ReadFor::Volume(asker, _)
            | ReadFor::VolumesAfter(asker, ..)
            | ReadFor::Status(asker) => *asker,
        };
        if !leads {
            let hint = self.cluster.leader();
            return self.refuse(asker, SHARD, MetadataError::NotLeader { hint });
        }
        let machine = &self.cluster.machine;
        let response = match read {
            ReadFor::Map { waiter, have, wait } => {
                let update = machine.map_since(have, self.config.limits.map_deltas);
                if update == MapUpdate::Unchanged && wait && !waiter.is_due(self.now) {
                    return self.cluster_lead.subscribers.push((waiter, have));
                }
                Response::Map(update)
            }
            ReadFor::Heard(_) => Response::Heard { version: machine.version(), now: self.stamp() },
            ReadFor::View(_, group) => return self.answer_view(asker, group),
            ReadFor::Volumes(_) => {
                let used = machine.volumes.values().filter(|row| !row.deleting);
                Response::Volumes(used.map(|row| row.record.clone()).collect())
            }
            ReadFor::Volume(_, name) => match machine.described(&name) {
                Some(facts) => Response::VolumeFacts(vec![facts]),
                None => return self.refuse(asker, SHARD, MetadataError::NoVolume { name }),
            },
            ReadFor::VolumesAfter(_, after, limit) => Response::VolumeFacts(machine.described_after(&after, limit)),
            ReadFor::Status(_) => Response::Status(Box::new(self.cluster_status())),
        };
        self.answer(asker, SHARD, None, Ok(response));
    }

    fn answer_view(&mut self, asker: Asker, group: GroupId) {
        let machine = &self.cluster.machine;
        let result = match machine.groups.get(group.0 as usize) {
            Some(row) => Ok(Response::View { group, view: row.view.clone(), version: machine.version() }),
            None => Err(MetadataError::Invalid { reason: format!("there is no group {group}") }),
        };
        self.answer(asker, SHARD, None, result);
    }

    /// Those who wait for a newer map get it.
    fn tell_subscribers(&mut self) {
        let version = self.cluster.machine.version();
        if version == self.cluster_lead.told {
            return;
        }
        self.cluster_lead.told = version;
        self.cluster_lead.dirty = true;
        for (waiter, have) in std::mem::take(&mut self.cluster_lead.subscribers) {
            let update = self.cluster.machine.map_since(have, self.config.limits.map_deltas);
            self.answer(waiter.asker, SHARD, None, Ok(Response::Map(update)));
        }
    }

    fn cluster_deposed(&mut self) {
        let hint = self.cluster.leader();
        let lead = std::mem::take(&mut self.cluster_lead);
        let waiting =
            lead.fences.iter().map(|fence| fence.waiter).chain(lead.subscribers.iter().map(|(waiter, _)| *waiter));
        for waiter in waiting {
            self.refuse(waiter.asker, SHARD, MetadataError::NotLeader { hint });
        }
        // Commands and reads on their way are told one by one.
        self.cluster_lead.purposes = lead.purposes;
        self.cluster_lead.reads = lead.reads;
        self.cluster_lead.told = lead.told;
    }

    pub(crate) fn tick_cluster(&mut self) {
        let now = self.now;
        let (due, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.cluster_lead.subscribers).into_iter().partition(|(waiter, _)| waiter.is_due(now));
        self.cluster_lead.subscribers = kept;
        for (waiter, _) in due {
            self.answer(waiter.asker, SHARD, None, Ok(Response::Map(MapUpdate::Unchanged)));
        }
        let (due, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.cluster_lead.fences).into_iter().partition(|fence| fence.waiter.is_due(now));
        self.cluster_lead.fences = kept;
        for fence in due {
            let reason = self.unsettled(fence.version);
            self.refuse(fence.waiter.asker, SHARD, MetadataError::Unavailable { reason });
        }
        self.tick_nodes();
    }

    /// Acts on what has changed: nodes and views, fences, deleted volumes.
    pub(crate) fn drive_cluster(&mut self) {
        if self.cluster_lead.since.is_none() || !self.cluster.is_ready_to_lead() {
            return;
        }
        self.drive_fences();
        if std::mem::take(&mut self.cluster_lead.dirty) {
            self.drive_nodes();
        }
        if !self.cluster_lead.is_busy(Work::VolumeGone) {
            let dropped = self.volumes.machine.dropped();
            let done = |volume| dropped.get(volume) == Some(&crate::tables::volume::DroppedRow::Done);
            let gone = self.cluster.machine.volumes.iter().find(|(volume, row)| row.deleting && done(volume));
            if let Some(volume) = gone.map(|(volume, _)| *volume) {
                self.propose_work(Work::VolumeGone, ClusterCommand::VolumeGone { volume });
            }
        }
    }

    fn fence_request(&mut self, waiter: Waiter, session: SessionId) {
        if session > self.cluster.machine.settings.session_newest {
            let reason = format!("no session {session} was ever opened");
            return self.refuse(waiter.asker, SHARD, MetadataError::Invalid { reason });
        }
        // One that is asked again takes the place of the first.
        self.cluster_lead.fences.retain(|fence| fence.waiter.asker != waiter.asker);
        self.cluster_lead.fences.push(FenceWaiter { waiter, session, version: None });
    }

    /// Commits fences that are asked for, all together, and answers those that hold everywhere.
    fn drive_fences(&mut self) {
        if self.cluster_lead.fences.is_empty() {
            return;
        }
        let machine = &self.cluster.machine;
        let version = machine.version();
        let mut wanted = BTreeSet::new();
        for fence in self.cluster_lead.fences.iter_mut().filter(|fence| fence.version.is_none()) {
            if machine.live.contains_key(&fence.session) {
                wanted.insert(fence.session);
            } else {
                // Whatever version ended it, this one knows of it.
                fence.version = Some(version);
            }
        }
        if !wanted.is_empty() && !self.cluster_lead.is_busy(Work::Fence) {
            let sessions = wanted.into_iter().collect();
            self.propose_work(Work::Fence, ClusterCommand::Fence { sessions });
        }
        let settled: BTreeMap<MapVersion, bool> = {
            let versions: BTreeSet<_> = self.cluster_lead.fences.iter().filter_map(|fence| fence.version).collect();
            versions.into_iter().map(|version| (version, self.is_settled(version))).collect()
        };
        let is_done = |fence: &FenceWaiter| fence.version.is_some_and(|version| settled[&version]);
        let (done, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.cluster_lead.fences).into_iter().partition(is_done);
        self.cluster_lead.fences = waiting;
        for fence in done {
            if let Some(version) = fence.version {
                self.answer(fence.waiter.asker, SHARD, None, Ok(Response::Fenced { version }));
            }
        }
    }

    /// Whether no storage node takes anything any more from sessions that ended at or before a version.
    ///
    /// Every member of every view has acknowledged that version, and the epoch of its view if that is newer: so whoever was
    /// removed meanwhile has no peer left that would take its word.
    fn is_settled(&self, version: MapVersion) -> bool {
        self.first_unsettled(version).is_none()
    }

    fn first_unsettled(&self, version: MapVersion) -> Option<NodeId> {
        let machine = &self.cluster.machine;
        for row in &machine.groups {
            let needed = version.max(row.changed);
            for member in row.view.members() {
                let heard = self.cluster_lead.heard.get(&member.node);
                if heard.is_some_and(|heard| heard.acknowledged >= needed) {
                    continue;
                }
                // A primary that may acknowledge alone stops by itself when it is not heard; time is all we have.
                let alone = machine.settings.min_in_sync == 1;
                if alone && self.silent_for(member.node) > ticks(NODE_TTL) + ticks(DRIFT_MARGIN) {
                    continue;
                }
                return Some(member.node);
            }
        }
        None
    }

    fn unsettled(&self, version: Option<MapVersion>) -> String {
        let node = version.and_then(|version| self.first_unsettled(version));
        match node {
            Some(node) => format!("storage node {node} has not acknowledged the fence yet"),
            None => "the fence is not committed yet".into(),
        }
    }

    /// Changes that take a node out of its views, as far as that leaves somebody in sync.
    fn views_without(&self, node: NodeId) -> Vec<ViewChange> {
        let Some(record) = self.cluster.machine.nodes.get(&node) else { return Vec::new() };
        let disks: Vec<MemberId> = members(&record.record).collect();
        let groups = self.cluster.machine.groups.iter().enumerate();
        let mut changes = Vec::new();
        for (number, row) in groups {
            let mine = disks.iter().filter(|member| row.view.has(**member));
            let steps: Vec<ViewStep> = mine.map(|member| ViewStep::Remove { member: *member }).collect();
            if !steps.is_empty() {
                changes.push(ViewChange { group: GroupId(number as u32), epoch: row.view.epoch, steps });
            }
        }
        changes
    }
}
