//! A stand-in for shard 0: decides views as section 6 of the design says, in one place and without failing.

use holdfast_types::{Epoch, GroupId, Incarnation, MapVersion, MemberId, NodeId, SessionId, VolumeId};
use holdfast_wire::map::{ClusterMap, SessionGrant, View};
use holdfast_wire::metadata::Request;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const DISK: holdfast_types::DiskId = holdfast_types::DiskId(1);
pub(crate) const VOLUME: VolumeId = VolumeId(7);
const NODE_TTL_MS: u64 = 3000;
const REFORM_MS: u64 = 3000;

#[derive(Debug, Clone, Copy)]
struct Heard {
    incarnation: Incarnation,
    at: u64,
    acknowledged: MapVersion,
}

#[derive(Debug)]
pub(crate) struct Authority {
    pub(crate) map: ClusterMap,
    heard: BTreeMap<NodeId, Heard>,
    /// Since when no member of a view lives.
    lost_since: BTreeMap<GroupId, u64>,
    /// A member comes back only some time after the view changed last.
    changed_at: BTreeMap<GroupId, u64>,
    /// Who wants the primary out.
    reports: BTreeMap<(GroupId, Epoch), BTreeSet<MemberId>>,
    /// Let removed nodes come back.
    pub(crate) readmit: bool,
    /// Take silent nodes out.
    pub(crate) expire: bool,
    pub(crate) view_changes: u64,
}

impl Authority {
    pub(crate) fn new(nodes: u64, groups: u32, replicas: u32) -> Self {
        let member = |node: u64| MemberId { node: NodeId(node), disk: DISK, incarnation: Incarnation(1) };
        let mut map = ClusterMap {
            version: MapVersion(1),
            replicas,
            min_in_sync: replicas / 2 + 1,
            session_newest: SessionId(0),
            ..ClusterMap::default()
        };
        for group in 0..groups {
            let mut in_sync: Vec<MemberId> =
                (0..replicas).map(|i| member(1 + (u64::from(group) + u64::from(i)) % nodes)).collect();
            let primary = in_sync[0];
            in_sync.sort_unstable();
            map.homes.push(in_sync.iter().map(|member| (member.node, member.disk)).collect());
            map.views.push(View { epoch: Epoch(1), primary, in_sync, syncing: Vec::new() });
        }
        let heard = (1..=nodes)
            .map(|node| (NodeId(node), Heard { incarnation: Incarnation(1), at: 0, acknowledged: MapVersion(0) }))
            .collect();
        Self {
            map,
            heard,
            lost_since: BTreeMap::new(),
            changed_at: BTreeMap::new(),
            reports: BTreeMap::new(),
            readmit: true,
            expire: true,
            view_changes: 0,
        }
    }

    fn change(&mut self, now: u64, group: GroupId, alter: impl FnOnce(&mut View)) {
        let view = &mut self.map.views[group.0 as usize];
        alter(view);
        view.epoch = view.epoch.next();
        view.in_sync.sort_unstable();
        view.syncing.sort_unstable();
        assert!(view.in_sync.contains(&view.primary), "a primary is in sync");
        // Whoever was a member is kept until there are as many copies as there should be without it.
        let mut homes: Vec<_> = view.members().map(|member| (member.node, member.disk)).collect();
        if view.in_sync.len() < self.map.replicas as usize {
            homes.extend(self.map.homes[group.0 as usize].iter().copied());
            homes.sort_unstable();
            homes.dedup();
        }
        self.map.homes[group.0 as usize] = homes;
        self.map.version = self.map.version.next();
        self.view_changes += 1;
        self.changed_at.insert(group, now);
    }

    /// Takes a node out of a view at once.
    pub(crate) fn dismiss(&mut self, now: u64, group: GroupId, node: NodeId) {
        self.change(now, group, |view| view.in_sync.retain(|member| member.node != node));
    }

    pub(crate) fn heartbeat(&mut self, now: u64, node: NodeId, incarnation: Incarnation, acknowledged: MapVersion) {
        let heard = self.heard.entry(node).or_insert(Heard { incarnation, at: now, acknowledged });
        if incarnation >= heard.incarnation {
            *heard = Heard { incarnation, at: now, acknowledged };
        }
    }

    fn lives(&self, now: u64, member: MemberId) -> bool {
        self.heard.get(&member.node).is_some_and(|heard| {
            heard.incarnation == member.incarnation && (!self.expire || now - heard.at < NODE_TTL_MS)
        })
    }

    /// Takes out who is silent or has another incarnation, reforms, readmits.
    pub(crate) fn tick(&mut self, now: u64) {
        for index in 0..self.map.views.len() as u32 {
            let group = GroupId(index);
            let view = self.map.views[index as usize].clone();
            let live: Vec<MemberId> = view.in_sync.iter().copied().filter(|m| self.lives(now, *m)).collect();
            let syncing: Vec<MemberId> = view.syncing.iter().copied().filter(|m| self.lives(now, *m)).collect();
            if live.is_empty() {
                self.reform(now, group, &view);
                continue;
            }
            self.lost_since.remove(&group);
            if live.len() < view.in_sync.len() || syncing.len() < view.syncing.len() {
                self.change(now, group, |view| {
                    if !live.contains(&view.primary) {
                        view.primary = live[0];
                    }
                    (view.in_sync, view.syncing) = (live, syncing);
                });
                continue;
            }
            let settled = now - self.changed_at.get(&group).copied().unwrap_or(0) >= 300;
            let missing = view.in_sync.len() + view.syncing.len() < self.map.replicas as usize;
            if self.readmit && settled && missing {
                let back = self.heard.iter().map(|(node, heard)| MemberId {
                    node: *node,
                    disk: DISK,
                    incarnation: heard.incarnation,
                });
                let inside = |m: &MemberId| view.members().any(|other| other.node == m.node);
                let back: Vec<MemberId> = back.filter(|m| self.lives(now, *m) && !inside(m)).collect();
                if let Some(member) = back.get(now as usize % back.len().max(1)).copied() {
                    self.change(now, group, |view| view.syncing.push(member));
                }
            }
        }
    }

    /// No member in sync kept its incarnation: any of them will do, all that come back in time are taken.
    fn reform(&mut self, now: u64, group: GroupId, view: &View) {
        let since = *self.lost_since.entry(group).or_insert(now);
        let back = |m: &MemberId| {
            let heard = self.heard.get(&m.node)?;
            let member = MemberId { incarnation: heard.incarnation, ..*m };
            (self.lives(now, member) && heard.incarnation > m.incarnation).then_some(member)
        };
        let back: Vec<MemberId> = view.in_sync.iter().filter_map(back).collect();
        if !back.is_empty() && (back.len() == view.in_sync.len() || now - since >= REFORM_MS) {
            self.lost_since.remove(&group);
            self.change(now, group, |view| {
                view.primary = back[now as usize % back.len()];
                (view.in_sync, view.syncing) = (back, Vec::new());
            });
        }
    }

    /// `Promote` or `Evict`.
    pub(crate) fn ask(&mut self, now: u64, request: &Request) {
        match *request {
            Request::Promote { group, epoch, member } => {
                let view = &self.map.views[group.0 as usize];
                if view.epoch == epoch && view.syncing.contains(&member) && self.lives(now, member) {
                    self.change(now, group, |view| {
                        view.syncing.retain(|m| *m != member);
                        view.in_sync.push(member);
                    });
                }
            }
            Request::Evict { group, epoch, member, reporter, ref silent } => {
                let view = &self.map.views[group.0 as usize];
                if view.epoch != epoch || !view.has(member) || !view.in_sync.contains(&reporter) {
                    return;
                }
                // A primary that hears too few leaves itself, while it can be spared.
                let needed = self.map.min_in_sync as usize;
                let heard = view.in_sync.iter().filter(|m| **m != member && !silent.contains(m)).count();
                let alone = reporter == view.primary && heard < needed && view.in_sync.len() > needed;
                let heard_lately = |m: &MemberId| {
                    self.lives(now, *m)
                        && self.heard.get(&m.node).is_some_and(|heard| now - heard.at <= NODE_TTL_MS / 2)
                };
                let alone = alone && view.in_sync.iter().all(heard_lately);
                let member = if alone { reporter } else { member };
                let reporters = self.reports.entry((group, epoch)).or_default();
                reporters.insert(reporter);
                // A primary is taken out on the word of two others.
                if member == view.primary && reporter != member && reporters.len() < 2 {
                    return;
                }
                let left = view.in_sync.iter().filter(|m| **m != member).count();
                if view.syncing.contains(&member) || left >= self.map.min_in_sync as usize {
                    self.change(now, group, |view| {
                        view.syncing.retain(|m| *m != member);
                        view.in_sync.retain(|m| *m != member);
                        if view.primary == member {
                            view.primary = view.in_sync[0];
                        }
                    });
                }
            }
            // Who has no life any more leaves its views at its own pace here.
            Request::ReportGone { .. } => {}
            _ => unreachable!("no other request is asked"),
        }
    }

    pub(crate) fn open_session(&mut self) -> SessionId {
        self.map.session_newest = self.map.session_newest.next();
        let session = self.map.session_newest;
        self.map.sessions.insert(session, SessionGrant { volume: VOLUME, read_only: false });
        self.map.version = self.map.version.next();
        session
    }

    /// Commits a fence; returns the version to wait for.
    pub(crate) fn end_session(&mut self, session: SessionId) -> MapVersion {
        self.map.sessions.remove(&session);
        self.map.version = self.map.version.next();
        self.map.version
    }

    /// Every node in a view has acknowledged the newest map (so also the epochs that removed others), and thereby the fence.
    pub(crate) fn fenced(&self, version: MapVersion) -> bool {
        let members = self.map.views.iter().flat_map(View::members);
        let needed = version.max(self.map.version);
        members.map(|m| m.node).all(|node| self.heard.get(&node).is_some_and(|heard| heard.acknowledged >= needed))
    }
}
