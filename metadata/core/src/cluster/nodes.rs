//! Which storage nodes live, and what that means for the views.
//!
//! ```text
//! member:  in_sync ──silent, failed, other life, evicted──▶ (out) ──heard, at home──▶ syncing ──primary asks──▶ in_sync
//! group:   somebody in sync kept its life ──nobody did──▶ reforming ──all are back, or patience ends──▶ in_sync again
//! ```
//! * Silence is counted in this server's own ticks, since it leads at the earliest.
//! * The last members in sync stay listed while they are silent.
//! * A disk that hangs while its node is heard may go on in a moment, and others with it may hang as well (one device, one cable): it goes
//!   only from views that have enough without it.
//! * A disk in another life is not the member that it was.

use super::lead::Work;
use super::placement::{Disk, Stand, first::first_homes};
use crate::api::ticks;
use crate::command::{ClusterCommand, NodeChange, ViewChange, ViewStep, home};
use crate::core::MetadataCore;
use crate::tables::cluster::{GroupRow, NodeRow};
use crate::tables::session::Phase;
use holdfast_types::limits::{NODE_TTL, REFORM_PATIENCE};
use holdfast_types::{Epoch, GroupId, Incarnation, Instant, MapVersion, MemberId, NodeId, SessionId};
use holdfast_wire::admin::{ClusterStatus, DiskStatus, SessionState, SessionStatus, StoragePlace, StorageStatus};
use holdfast_wire::map::{DiskRecord, NodeRecord, View};
use holdfast_wire::metadata::{DiskState, Heartbeat};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a member that was reported stays out of the view.
const EVICTED_TICKS: u64 = ticks(Duration::from_secs(5));
/// Views are looked at this often even if nothing seems to have happened.
const LOOK_TICKS: u64 = 10;
/// How often a group or two goes back to the primary it was placed with, and how many: each such change makes its writers wait for a
/// moment, so that a node's return is spread over a minute or so.
const BALANCE_TICKS: u64 = ticks(Duration::from_millis(500));
const BALANCED_AT_ONCE: usize = 2;
/// A node must have lived for so long before it leads again what it once led: one that comes and goes moves nothing.
const STEADY_TICKS: u64 = ticks(Duration::from_secs(10));
/// A disk on which an operation is under way for longer, in milliseconds, hangs.
const DISK_HANGS_MS: u64 = 5_000;
/// Groups named in a status.
const DEGRADED_SHOWN: usize = 32;

/// What a node last said.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(super) tick: u64,
    /// The same by the clock (for one of the mutations only).
    at: Instant,
    /// When its disks' present lives were first heard of.
    pub(super) lives_since: u64,
    pub(super) acknowledged: MapVersion,
    pub(super) leaving: bool,
    pid: u32,
    address: String,
    labels: Vec<(String, String)>,
    pub(super) disks: Vec<DiskState>,
    /// How long our answers to it take of late.
    pub(super) round_trip_us: Option<u32>,
}

/// What is known of a member's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It serves, in this life.
    Serves,
    /// Not heard since this server leads, and not for long enough to tell.
    Unknown,
    /// It is in this life, but an operation does not end; its node is heard.
    Hangs,
    /// Its node is silent, or the disk failed, or is gone from its node.
    Gone,
    /// It serves in a later life.
    OtherLife(Incarnation),
}

impl MetadataCore {
    /// A node says that it lives.
    pub(super) fn hear(&mut self, heartbeat: Heartbeat) {
        let Heartbeat { node, address, labels, pid, disks, acknowledged, leaving, round_trip_us } = heartbeat;
        let lives = |disks: &[DiskState]| -> Vec<_> { disks.iter().map(|d| (d.id, d.incarnation, d.failed)).collect() };
        if self.cluster_lead.gone.is_late_word(node, disks.iter().map(|d| (d.id, d.incarnation)), self.ticks) {
            return;
        }
        let same = self.cluster_lead.heard.get(&node).filter(|old| lives(&old.disks) == lives(&disks));
        let lives_since = same.map_or(self.ticks, |old| old.lives_since);
        // Whoever leaves does so until its next life; in a container that one has the same pid.
        let leaving = leaving || same.is_some_and(|old| old.leaving && old.pid == pid);
        let (tick, at) = (self.ticks, self.now);
        let heard = Heard { tick, at, lives_since, acknowledged, leaving, pid, address, labels, disks, round_trip_us };
        let before = self.cluster_lead.heard.insert(node, heard);
        let now = &self.cluster_lead.heard[&node];
        let is_new = before.is_none_or(|old| {
            (lives(&old.disks), &old.address, old.leaving) != (lives(&now.disks), &now.address, now.leaving)
        });
        let known_alive = self.cluster.machine.nodes.get(&node).is_some_and(|row| row.record.alive);
        self.cluster_lead.dirty |= is_new || !known_alive || self.cluster_lead.unsure;
    }

    /// For how many ticks a node was silent.
    pub(super) fn silent_for(&self, node: NodeId) -> u64 {
        if self.config.mutations.pause_believed
            && let Some(heard) = self.cluster_lead.heard.get(&node)
        {
            return ticks(self.now.since(heard.at));
        }
        let since = self.cluster_lead.since.unwrap_or(self.ticks);
        let heard = self.cluster_lead.heard.get(&node).map_or(since, |heard| heard.tick.max(since));
        self.ticks - heard
    }

    pub(super) fn is_silent(&self, node: NodeId) -> bool {
        self.silent_for(node) > ticks(NODE_TTL) || self.cluster_lead.gone.has(node)
    }

    pub(super) fn tick_nodes(&mut self) {
        if self.cluster_lead.since.is_none() {
            return;
        }
        let silent = |(node, row): (&NodeId, &NodeRow)| row.record.alive && self.is_silent(*node);
        let look = self.ticks.is_multiple_of(LOOK_TICKS) || self.cluster_lead.unsure;
        self.cluster_lead.dirty |= look || self.cluster.machine.present().any(silent);
        let now = self.ticks;
        self.cluster_lead.evicted.retain(|_, at| now < *at + EVICTED_TICKS);
        if now.is_multiple_of(LOOK_TICKS) {
            self.judge_slowness();
            self.count_away(LOOK_TICKS);
        }
        if now.is_multiple_of(EVICTED_TICKS) {
            self.cluster_lead.reports.clear();
        }
    }

    /// Registers, buries and revives nodes, and changes the views that depend on it: one command for all.
    pub(super) fn drive_nodes(&mut self) {
        if self.cluster_lead.is_busy(Work::Update) || self.cluster_lead.is_busy(Work::Form) {
            return;
        }
        let nodes = self.node_changes();
        let views = self.view_changes();
        if !nodes.is_empty() || !views.is_empty() {
            return self.propose_work(Work::Update, ClusterCommand::Update { nodes, views });
        }
        if self.drive_homes() {
            return;
        }
        if self.ticks >= self.cluster_lead.balanced + BALANCE_TICKS {
            let views = self.balance_changes();
            if !views.is_empty() {
                self.cluster_lead.balanced = self.ticks;
                return self.propose_work(Work::Update, ClusterCommand::Update { nodes: Vec::new(), views });
            }
        }
        self.form_pool();
    }

    /// Groups whose primary is not the disk that they were placed with, though that one is in sync: they were spread evenly at first.
    /// Only where nobody is missing or being caught up, so that a group sees one change after the other.
    fn balance_changes(&self) -> Vec<ViewChange> {
        let steady = |member: &MemberId| {
            let heard = self.cluster_lead.heard.get(&member.node);
            self.standing(*member) == Standing::Serves
                && !self.is_slow(home(*member))
                && heard.is_some_and(|heard| !heard.leaving && self.ticks >= heard.lives_since + STEADY_TICKS)
        };
        let groups = self.cluster.machine.groups.iter().enumerate();
        let moves = groups.filter_map(|(number, row)| {
            let view = &row.view;
            let first = row.homes.first()?;
            let whole = view.syncing.is_empty() && row.leaving.is_empty() && view.in_sync.len() == row.homes.len();
            let member = *view.in_sync.iter().find(|member| home(**member) == *first)?;
            let better = whole && member != view.primary && view.in_sync.iter().all(steady);
            let steps = vec![ViewStep::Lead { member }];
            better.then_some(ViewChange { group: GroupId(number as u32), epoch: view.epoch, steps })
        });
        moves.take(BALANCED_AT_ONCE).collect()
    }

    fn node_changes(&self) -> Vec<NodeChange> {
        let mut changes = Vec::new();
        let known = &self.cluster.machine.nodes;
        for (node, heard) in &self.cluster_lead.heard {
            let row = known.get(node);
            if row.is_some_and(|row| row.place == StoragePlace::Gone) {
                continue;
            }
            if row.is_none_or(|row| !is_same(&row.record, heard)) {
                let disk = |d: &DiskState| DiskRecord { id: d.id, incarnation: d.incarnation, capacity: d.capacity };
                changes.push(NodeChange::Register {
                    node: *node,
                    address: heard.address.clone(),
                    labels: heard.labels.clone(),
                    disks: heard.disks.iter().map(disk).collect(),
                });
            } else if row.is_some_and(|row| !row.record.alive) && !self.is_silent(*node) {
                changes.push(NodeChange::Heard { node: *node });
            }
        }
        let present = || self.cluster.machine.present();
        let silent = present().filter(|(node, row)| row.record.alive && self.is_silent(**node));
        changes.extend(silent.map(|(node, _)| NodeChange::Silent { node: *node }));
        let left = present().filter(|(_, row)| matches!(row.place, StoragePlace::Leaving { .. }));
        let left = left.filter(|(node, _)| !self.cluster.machine.is_used(**node));
        changes.extend(left.map(|(node, _)| NodeChange::Gone { node: *node }));
        changes
    }

    pub(super) fn standing(&self, member: MemberId) -> Standing {
        if self.is_silent(member.node) {
            return Standing::Gone;
        }
        let Some(heard) = self.cluster_lead.heard.get(&member.node) else { return Standing::Unknown };
        let Some(disk) = heard.disks.iter().find(|disk| disk.id == member.disk) else { return Standing::Gone };
        // The deliberate bug takes any life for the member that it was.
        let same = disk.incarnation == member.incarnation || self.config.mutations.other_incarnation_accepted;
        match (disk.oldest_operation_ms > DISK_HANGS_MS, same) {
            _ if disk.failed => Standing::Gone,
            (false, true) => Standing::Serves,
            (true, true) => Standing::Hangs,
            (false, false) => Standing::OtherLife(disk.incarnation),
            (true, false) => Standing::Gone,
        }
    }

    fn view_changes(&mut self) -> Vec<ViewChange> {
        let mut reforming = std::mem::take(&mut self.cluster_lead.reforming);
        let mut unsure = false;
        let mut changes = Vec::new();
        for (number, row) in self.cluster.machine.groups.iter().enumerate() {
            let group = GroupId(number as u32);
            let steps = self.steps(group, row, &mut reforming, &mut unsure);
            if !steps.is_empty() && super::views::next_view(&row.view, &steps, &row.homes).is_some() {
                changes.push(ViewChange { group, epoch: row.view.epoch, steps });
            }
        }
        self.cluster_lead.unsure = unsure || !reforming.is_empty();
        self.cluster_lead.reforming = reforming;
        changes
    }

    /// How the members of a view stand. Where one has come back in another life the others' last word may be older than what
    /// took that life (a power loss of all): it counts when they are heard again.
    fn standings(&self, row: &GroupRow) -> Vec<(MemberId, Standing)> {
        let mut standing: Vec<(MemberId, Standing)> = row.view.members().map(|m| (m, self.standing(m))).collect();
        let heard = |member: &MemberId| self.cluster_lead.heard.get(&member.node);
        let reborn = standing.iter().filter(|(_, standing)| matches!(standing, Standing::OtherLife(_)));
        let newest = reborn.filter_map(|(member, _)| heard(member)).map(|heard| heard.lives_since).max().unwrap_or(0);
        for (member, standing) in &mut standing {
            if *standing == Standing::Serves && heard(member).is_some_and(|heard| heard.tick <= newest) {
                *standing = Standing::Unknown;
            }
        }
        standing
    }

    /// What a group's view needs now.
    fn steps(
        &self,
        group: GroupId,
        row: &GroupRow,
        reforming: &mut BTreeMap<GroupId, u64>,
        unsure: &mut bool,
    ) -> Vec<ViewStep> {
        let view = &row.view;
        let standing = self.standings(row);
        let in_sync = || standing.iter().filter(|(member, _)| view.in_sync.contains(member));
        let stays = |standing: &Standing| matches!(standing, Standing::Serves | Standing::Unknown);
        let mut steps = Vec::new();
        if in_sync().any(|(_, standing)| *standing == Standing::Serves) {
            reforming.remove(&group);
            let gone = standing.iter().filter(|(_, standing)| !stays(standing) && *standing != Standing::Hangs);
            steps.extend(gone.map(|(member, _)| ViewStep::Remove { member: *member }));
            steps.extend(self.slow_to_leave(row, &steps));
            let departing = self.departing(row);
            steps.extend(if departing.is_empty() { self.returning(group, row, &steps) } else { departing });
            steps.extend(self.lead_elsewhere(row, &steps));
            return steps;
        }
        let members: Vec<MemberId> = in_sync()
            .filter_map(|(member, standing)| match standing {
                Standing::OtherLife(incarnation) => Some(MemberId { incarnation: *incarnation, ..*member }),
                Standing::Serves | Standing::Unknown | Standing::Hangs | Standing::Gone => None,
            })
            .collect();
        // Whoever is not heard yet may have kept its life, or may never come: those who are back must not be given up for it.
        let waits = in_sync().any(|(_, standing)| *standing == Standing::Unknown);
        *unsure |= waits;
        if members.is_empty() || waits {
            return steps;
        }
        // Any one of them holds all that was acknowledged; waiting for the others spares comparing whole disks.
        let since = *reforming.entry(group).or_insert(self.ticks);
        if members.len() == view.in_sync.len() || self.ticks >= since + ticks(REFORM_PATIENCE) {
            reforming.remove(&group);
            steps.push(ViewStep::Reform { members });
            let gone = standing.iter().filter(|(member, s)| view.syncing.contains(member) && !stays(s));
            steps.extend(gone.map(|(member, _)| ViewStep::Remove { member: *member }));
            steps.extend(self.returning(group, row, &steps));
        }
        steps
    }

    /// Disks at home in a group that serve and are to be caught up, if they are not members; and those it was at home on before, until
    /// it is whole: one that comes back may be whole sooner. A node has a group once.
    fn returning(&self, group: GroupId, row: &GroupRow, before: &[ViewStep]) -> Vec<ViewStep> {
        let mut steps = Vec::new();
        let mut nodes: Vec<NodeId> = Vec::new();
        for (node, disk) in row.homes.iter().chain(&row.leaving) {
            let Some(heard) = self.cluster_lead.heard.get(node) else { continue };
            if heard.leaving || self.is_silent(*node) {
                continue;
            }
            let usable =
                |state: &&DiskState| state.id == *disk && !state.failed && state.oldest_operation_ms <= DISK_HANGS_MS;
            let Some(state) = heard.disks.iter().find(usable) else { continue };
            if self.is_better_without(row, before, (*node, *disk)) {
                continue;
            }
            let member = MemberId { node: *node, disk: *disk, incarnation: state.incarnation };
            let is_member = row.view.members().any(|other| other == member);
            let elsewhere = row.view.members().any(|other| other.node == *node && other.disk != *disk);
            if !is_member
                && !elsewhere
                && !nodes.contains(node)
                && !self.cluster_lead.evicted.contains_key(&(group, member))
            {
                nodes.push(*node);
                steps.push(ViewStep::Add { member });
            }
        }
        steps
    }

    /// Who is taken out of a view because a member asks for another's removal; `silent` are others that owe it an answer.
    ///
    /// A primary that hears from too few members for writes to go on would keep one that it does not hear for ever, and its group would
    /// wait as long as the network is cut there. When all that it does not hear are heard here, it is the primary that is out of reach.
    pub(super) fn who_leaves(
        &mut self,
        group: GroupId,
        member: MemberId,
        reporter: MemberId,
        silent: &[MemberId],
    ) -> Option<MemberId> {
        let view = &self.cluster.machine.groups.get(group.0 as usize)?.view;
        let needed = self.cluster.machine.settings.min_in_sync as usize;
        if reporter == view.primary
            && member != reporter
            && view.in_sync.contains(&member)
            && view.in_sync.len() > needed
        {
            let unheard = |other: &&MemberId| **other == member || silent.contains(other);
            let unheard: Vec<&MemberId> = view.in_sync.iter().filter(unheard).collect();
            let alive = |other: &&MemberId| {
                self.cluster_lead.heard.contains_key(&other.node)
                    && !self.cluster_lead.gone.has(other.node)
                    && self.silent_for(other.node) <= ticks(NODE_TTL) / 2
            };
            if view.in_sync.len() - unheard.len() < needed && unheard.iter().all(alive) {
                return Some(reporter);
            }
        }
        self.may_evict(group, member, reporter).then_some(member)
    }

    /// Whether a member's word is enough to take another out of the view: of a backup the primary's; of the primary that of two
    /// members, or of one if it is silent, too. Never below what writes need.
    fn may_evict(&mut self, group: GroupId, member: MemberId, reporter: MemberId) -> bool {
        let Some(row) = self.cluster.machine.groups.get(group.0 as usize) else { return false };
        let view = &row.view;
        if !view.has(member) || !view.has(reporter) {
            return false;
        }
        let needed = self.cluster.machine.settings.min_in_sync as usize;
        let spared = view.syncing.contains(&member) || view.in_sync.len() > needed;
        if member == reporter {
            // A primary whose own copy is damaged asks for this of itself.
            return spared && member == view.primary;
        }
        if member != view.primary {
            return spared && reporter == view.primary;
        }
        let reporters = self.cluster_lead.reports.entry((group, member)).or_default();
        reporters.insert(reporter);
        let word = reporters.iter().filter(|reporter| view.in_sync.contains(reporter)).count();
        let silent = self.silent_for(member.node) > ticks(NODE_TTL) / 2;
        let granted = spared && (word >= 2 || (word == 1 && silent));
        if granted {
            self.cluster_lead.reports.remove(&(group, member));
        }
        granted
    }

    /// Makes the pool when enough nodes have registered.
    fn form_pool(&mut self) {
        let machine = &self.cluster.machine;
        if machine.settings.groups > 0 {
            return;
        }
        let ready: Vec<Vec<MemberId>> = machine
            .nodes
            .values()
            .filter(|row| row.place == StoragePlace::In && row.record.alive && !self.is_silent(row.record.id))
            .map(|row| super::members(&row.record).filter(|m| self.standing(*m) == Standing::Serves).collect())
            .filter(|disks: &Vec<MemberId>| !disks.is_empty())
            .collect();
        if ready.len() < self.config.storage_expected as usize {
            return;
        }
        let replicas = self.config.replicas.min(ready.len() as u32);
        let members: Vec<MemberId> = ready.into_iter().flatten().collect();
        let views = self.first_views(&members, replicas);
        let command = ClusterCommand::Form {
            replicas,
            feature_level: self.config.feature_level,
            views,
            volume: self.config.first_volume.clone(),
        };
        self.propose_work(Work::Form, command);
    }

    /// Views of all groups over these disks.
    fn first_views(&self, members: &[MemberId], replicas: u32) -> Vec<View> {
        let machine = &self.cluster.machine;
        let disk = |member: &MemberId| {
            let record = &machine.nodes[&member.node].record;
            let capacity = record.disks.iter().find(|disk| disk.id == member.disk).map_or(0, |disk| disk.capacity);
            let labels = record.labels.clone();
            Disk { place: home(*member), capacity: capacity.max(1), stand: Stand::In, labels }
        };
        let homes = first_homes(members.iter().map(disk).collect(), self.config.groups as usize, replicas);
        let view = |homes: Vec<_>| {
            let member = |place: &_| members.iter().find(|member| home(**member) == *place).copied();
            let primary = member(&homes[0]).expect("groups are placed on these disks");
            let mut in_sync: Vec<MemberId> = homes.iter().filter_map(member).collect();
            in_sync.sort_unstable();
            View { epoch: Epoch(1), primary, in_sync, syncing: Vec::new() }
        };
        homes.into_iter().map(view).collect()
    }

    pub(super) fn cluster_status(&self) -> ClusterStatus {
        let machine = &self.cluster.machine;
        let short = |row: &GroupRow, needed: u32| (row.view.in_sync.len() as u32) < needed;
        let groups = || machine.groups.iter().enumerate();
        let degraded = || groups().filter(|(_, row)| short(row, machine.settings.replicas));
        ClusterStatus {
            cluster: self.config.cluster,
            version: machine.version(),
            replicas: machine.settings.replicas,
            groups_total: machine.settings.groups,
            groups_degraded: degraded().count() as u32,
            groups_waiting: groups().filter(|(_, row)| short(row, machine.settings.min_in_sync)).count() as u32,
            degraded: degraded().take(DEGRADED_SHOWN).map(|(number, _)| GroupId(number as u32)).collect(),
            metadata: machine.server_records(),
            storage: machine.present().map(|(_, row)| self.storage_status(row)).collect(),
            storage_gone: machine
                .nodes
                .iter()
                .filter(|(_, row)| row.place == StoragePlace::Gone)
                .map(|(id, _)| *id)
                .collect(),
            rebuild: self.rebuild_status().unwrap_or_default(),
            sessions: machine
                .live
                .iter()
                .map(|(id, row)| SessionStatus {
                    id: *id,
                    volume: row.grant.volume,
                    host: row.client.host.clone(),
                    pid: row.client.pid,
                    mount_point: row.client.mount_point.clone(),
                    instance: row.client.instance.clone(),
                    instance_generation: row.client.instance_generation,
                    state: self.session_standing(*id),
                })
                .collect(),
        }
    }

    /// As far as this server's copy of the volumes' shard knows.
    fn session_standing(&self, session: SessionId) -> SessionState {
        let Some(row) = self.volumes.machine.sessions().get(&session) else { return SessionState::Attaching };
        match (&row.phase, row.parked) {
            (Phase::Ending { reason }, _) => SessionState::Ending { reason: reason.clone() },
            (Phase::Attached, Some(since)) => SessionState::Silent { since },
            (Phase::Attached, None) => SessionState::Attached { caching: row.caching },
        }
    }

    fn storage_status(&self, row: &NodeRow) -> StorageStatus {
        let record = &row.record;
        let heard = self.cluster_lead.heard.get(&record.id);
        let groups = &self.cluster.machine.groups;
        let count = |has: &dyn Fn(&GroupRow) -> bool| groups.iter().filter(|row| has(row)).count() as u32;
        let here = |member: &MemberId| member.node == record.id;
        let homes = count(&|row| row.homes.iter().any(|place| place.0 == record.id));
        let emptied = row.place != StoragePlace::In || self.is_node_given_up(row);
        let left = count(&|row| row.leaving.iter().any(|place| place.0 == record.id));
        let disks = record.disks.iter().map(|disk| {
            let state = heard.and_then(|heard| heard.disks.iter().find(|state| state.id == disk.id));
            DiskStatus {
                id: disk.id,
                incarnation: disk.incarnation,
                capacity: state.map_or(disk.capacity, |state| state.capacity),
                free: state.map_or(0, |state| state.free),
                failed: state.is_some_and(|state| state.failed),
                slow: self.slowness((record.id, disk.id)),
            }
        });
        StorageStatus {
            id: record.id,
            address: record.address.clone(),
            pid: heard.map_or(0, |heard| heard.pid),
            alive: record.alive && !self.is_silent(record.id),
            primary_of: count(&|row| here(&row.view.primary)),
            in_sync_of: count(&|row| row.view.in_sync.iter().any(here)),
            syncing_of: count(&|row| row.view.syncing.iter().any(here)),
            place: row.place,
            home_of: homes,
            leaving_of: left + if emptied { homes } else { 0 },
            given_up: self.is_node_given_up(row),
            labels: record.labels.clone(),
            disks: disks.collect(),
        }
    }
}

/// Whether a node's record says what the node says. A little change of capacity is not worth a new map.
fn is_same(record: &NodeRecord, heard: &Heard) -> bool {
    let close = |a: u64, b: u64| a.abs_diff(b) <= a / 16;
    record.address == heard.address
        && record.labels == heard.labels
        && record.disks.len() == heard.disks.len()
        && record.disks.iter().zip(&heard.disks).all(|(known, now)| {
            (known.id, known.incarnation) == (now.id, now.incarnation) && close(known.capacity, now.capacity)
        })
}
