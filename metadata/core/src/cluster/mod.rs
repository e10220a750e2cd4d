//! Shard 0: nodes, views, the map, sessions' ids, volumes.
//!
//! All of it is small (a row per group, session and volume) and is held in memory, like its table.
//!
//! Invariants:
//! * The map's version is the index of the command that last changed it, and rises with every change.
//! * A session id is given once; one that is not live and not above the newest is over, for ever.
//! * Every view is valid (`views::is_valid`), and follows from the one before by a step that `views` allows.

pub(crate) mod gone;
pub(crate) mod homes;
pub(crate) mod lead;
pub(crate) mod map;
pub(crate) mod nodes;
pub(crate) mod placement;
pub(crate) mod rebuild;
pub(crate) mod servers;
pub(crate) mod slow;
pub(crate) mod space;
pub(crate) mod views;
mod volumes;

use crate::command::{ClusterCommand, Command, NodeChange, ViewChange, ViewStep, home};
use crate::error::{Applied, Fail, ensure};
use crate::machine::{Context, Machine, Output};
use crate::tables::cluster::{self as rows, GroupRow, LiveRow, NodeRow, ServerRow, SettingsRow, VolumeEntryRow};
use crate::tables::number_at;
use crate::txn::{Txn, decode};
use crate::volumes::sessions::superseding;
use holdfast_store::{Batch, KeyRange, View as TableView};
use holdfast_types::{GroupId, MapVersion, MemberId, NodeId, ServerId, SessionId, VolumeId};
use holdfast_wire::admin::StoragePlace;
use holdfast_wire::map::{NodeRecord, SessionGrant, View};
use holdfast_wire::metadata::{ClientRecord, MetadataError, Response};
use holdfast_wire::namespace::{Labels, Limits};
use map::{Change, Deltas};
use std::collections::BTreeMap;

/// The machine.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) settings: SettingsRow,
    pub(crate) nodes: BTreeMap<NodeId, NodeRow>,
    pub(crate) groups: Vec<GroupRow>,
    pub(crate) live: BTreeMap<SessionId, LiveRow>,
    pub(crate) volumes: BTreeMap<VolumeId, VolumeEntryRow>,
    pub(crate) servers: BTreeMap<ServerId, ServerRow>,
    deltas: Deltas,
}

impl Machine for Cluster {
    fn load(view: &dyn TableView) -> Applied<Self> {
        let mut machine = Self::default();
        let pairs = |table: u8| view.range(KeyRange::prefix(vec![table]));
        if let Some(bytes) = view.get(&rows::settings())? {
            machine.settings = decode(&rows::settings(), &bytes)?;
        }
        for pair in pairs(rows::NODE) {
            let (key, value) = pair?;
            machine.nodes.insert(NodeId(number_at(&key, 0)), decode(&key, &value)?);
        }
        for pair in pairs(rows::GROUP) {
            let (key, value) = pair?;
            machine.groups.push(decode(&key, &value)?);
        }
        for pair in pairs(rows::LIVE) {
            let (key, value) = pair?;
            machine.live.insert(SessionId(number_at(&key, 0)), decode(&key, &value)?);
        }
        for pair in pairs(rows::VOLUME) {
            let (key, value) = pair?;
            machine.volumes.insert(VolumeId(number_at(&key, 0)), decode(&key, &value)?);
        }
        for pair in pairs(rows::SERVER) {
            let (key, value) = pair?;
            machine.servers.insert(ServerId(number_at(&key, 0)), decode(&key, &value)?);
        }
        ensure!(machine.groups.len() == machine.settings.groups as usize, "groups are missing");
        Ok(machine)
    }

    fn apply(&mut self, txn: &mut Txn<'_>, context: &mut Context<'_>, command: &Command) -> Applied<Output> {
        let Command::Cluster(command) = command else {
            return Err(Fail::Broken("a command of shard 1 in the log of shard 0".into()));
        };
        let response = match command {
            ClusterCommand::OpenSession { volume, client, read_only, nonce } => {
                self.open_session(txn, context, volume, client, (*read_only, *nonce))?
            }
            ClusterCommand::Fence { sessions } => self.fence(txn, context, sessions),
            ClusterCommand::Update { nodes, views } => self.update(txn, context, nodes, views)?,
            ClusterCommand::Rehome { moves } => self.rehome(txn, context, moves),
            ClusterCommand::PlaceStorage { node, place } => self.place_storage(txn, *node, *place)?,
            ClusterCommand::Form { replicas, feature_level, views, volume } => {
                self.form(txn, context, (*replicas, *feature_level), views, volume)?
            }
            ClusterCommand::Found { servers } => {
                self.found(txn, context, servers);
                Response::Done
            }
            ClusterCommand::Lives { lives } => {
                self.learn_lives(txn, lives);
                Response::Done
            }
            ClusterCommand::AddServer { server, address, replaces } => {
                self.add_server(txn, context, (*server, address), *replaces)?
            }
            ClusterCommand::RemoveServer { server } => self.remove_server(txn, context, *server)?,
            ClusterCommand::ServerSettled { server } => {
                self.server_settled(txn, context, *server);
                Response::Done
            }
            ClusterCommand::ServiceLeads { term } => {
                if *term > self.settings.service_term {
                    self.settings.service_term = *term;
                    self.publish(txn, context, Change { service_term: *term, ..Change::default() });
                }
                Response::Done
            }
            ClusterCommand::CreateVolume { name, limits, labels } => self.create_volume(txn, name, *limits, labels)?,
            ClusterCommand::LabelVolume { name, version, labels } => self.label_volume(txn, name, *version, labels)?,
            ClusterCommand::LimitVolume { name, limits } => self.limit_volume(txn, name, *limits)?,
            ClusterCommand::DeleteVolume { name } => self.delete_volume(txn, name)?,
            ClusterCommand::VolumeGone { volume } => {
                self.volumes.remove(volume);
                txn.remove(rows::volume(*volume));
                Response::Done
            }
        };
        Ok(Output::done(context.index, response))
    }

    fn follow(&mut self, _batch: &Batch) -> Applied<()> {
        // `apply` changes what is in memory along with the rows, after all that it checks.
        Ok(())
    }
}

impl Cluster {
    /// Version of the map.
    pub(crate) fn version(&self) -> MapVersion {
        self.settings.version
    }

    /// What the pool holds after replication, in bytes.
    pub(crate) fn pool_bytes(&self) -> u64 {
        let disks = self.present().flat_map(|(_, node)| &node.record.disks);
        disks.map(|disk| disk.capacity).sum::<u64>() / u64::from(self.settings.replicas.max(1))
    }

    /// The map has changed: a new version, and what is different for those who have the one before.
    fn publish(&mut self, txn: &mut Txn<'_>, context: &Context<'_>, change: Change) {
        let from = self.settings.version;
        self.settings.version = MapVersion(context.index.0);
        txn.put(rows::settings(), &self.settings);
        self.deltas.push(from, self.settings.version, change, self.settings.session_newest);
    }

    fn open_session(
        &mut self,
        txn: &mut Txn<'_>,
        context: &Context<'_>,
        volume: &str,
        client: &ClientRecord,
        (read_only, nonce): (bool, u128),
    ) -> Applied<Response> {
        let Some(record) = self.volume_named(volume).cloned() else {
            // Components start in any order: before the pool is formed no volume exists, and the asker is to wait and not to give up.
            return Err(Fail::Refused(if self.groups.is_empty() {
                MetadataError::Unavailable {
                    reason: "the pool is not formed yet: not all storage nodes have come".into(),
                }
            } else {
                MetadataError::NoVolume { name: volume.into() }
            }));
        };
        let opened =
            |session, row: &LiveRow| Response::SessionOpened { session, volume: record.clone(), map_min: row.opened };
        let same_volume = || self.live.iter().filter(|(_, row)| row.grant.volume == record.id);
        if let Some((session, row)) = same_volume().find(|(_, row)| row.nonce == nonce) {
            return Ok(opened(*session, row));
        }
        if let Some(by) = same_volume().filter_map(|(_, row)| superseding(&row.client, client)).max() {
            return Err(Fail::Refused(MetadataError::Superseded { by }));
        }
        let session = self.settings.session_newest.next();
        let grant = SessionGrant { volume: record.id, read_only };
        let row = LiveRow { grant, client: client.clone(), nonce, opened: MapVersion(context.index.0) };
        txn.put(rows::live(session), &row);
        let response = opened(session, &row);
        self.live.insert(session, row);
        self.settings.session_newest = session;
        self.publish(txn, context, Change { opened: vec![(session, grant)], ..Change::default() });
        Ok(response)
    }

    fn fence(&mut self, txn: &mut Txn<'_>, context: &mut Context<'_>, sessions: &[SessionId]) -> Response {
        let ended: Vec<SessionId> = sessions.iter().copied().filter(|s| self.live.remove(s).is_some()).collect();
        if !ended.is_empty() {
            context.counters.fences += ended.len() as u64;
            ended.iter().for_each(|session| txn.remove(rows::live(*session)));
            self.publish(txn, context, Change { ended, ..Change::default() });
        }
        Response::Done
    }

    fn update(
        &mut self,
        txn: &mut Txn<'_>,
        context: &mut Context<'_>,
        nodes: &[NodeChange],
        views: &[ViewChange],
    ) -> Applied<Response> {
        let mut change = Change::default();
        for node in nodes {
            if let NodeChange::Gone { node } = node {
                self.bury(txn, *node, &mut change);
            } else if let Some(row) = self.change_node(node) {
                txn.put(rows::node(row.record.id), &row);
                change.nodes.push(row.record);
            }
        }
        let mut changes = views.to_vec();
        if context.mutations.other_incarnation_accepted {
            changes.extend(self.take_for_granted(&change.nodes));
        }
        for wanted in &changes {
            let Some(row) = self.groups.get_mut(wanted.group.0 as usize) else { continue };
            if row.view.epoch != wanted.epoch {
                continue;
            }
            let mut steps = row.sound(&wanted.steps);
            if context.mutations.syncing_leads {
                views::lead_by_syncing(&row.view, &mut steps);
            }
            let Some(view) = views::next_view(&row.view, &steps, &row.homes) else { continue };
            ensure!(views::is_valid(&view), "{}: {view:?} is no view", wanted.group);
            row.view = view.clone();
            row.changed = MapVersion(context.index.0);
            Self::settled(row, wanted.group, &mut change);
            txn.put(rows::group(wanted.group), row);
            context.counters.view_changes += 1;
            change.views.push((wanted.group, view));
        }
        if !change.nodes.is_empty() || !change.nodes_removed.is_empty() || !change.views.is_empty() {
            self.publish(txn, context, change);
        }
        Ok(Response::Done)
    }

    /// A node's row after a change; `None` if it is the same. One that is gone stays gone.
    fn change_node(&mut self, change: &NodeChange) -> Option<NodeRow> {
        let (id, record) = match change {
            NodeChange::Register { node, address, labels, disks } => {
                let (address, labels, disks) = (address.clone(), labels.clone(), disks.clone());
                (*node, NodeRecord { id: *node, address, labels, disks, alive: true })
            }
            NodeChange::Heard { node } => (*node, NodeRecord { alive: true, ..self.nodes.get(node)?.record.clone() }),
            NodeChange::Silent { node } => (*node, NodeRecord { alive: false, ..self.nodes.get(node)?.record.clone() }),
            NodeChange::Gone { .. } => return None,
        };
        let known = self.nodes.get(&id);
        let place = known.map_or(StoragePlace::In, |known| known.place);
        if place == StoragePlace::Gone || known.is_some_and(|known| known.record == record) {
            return None;
        }
        let row = NodeRow { record, place };
        self.nodes.insert(id, row.clone());
        Some(row)
    }

    /// The deliberate bug: a disk in another life is taken for the member that it was.
    fn take_for_granted(&self, nodes: &[NodeRecord]) -> Vec<ViewChange> {
        let lives: Vec<MemberId> = nodes.iter().flat_map(members).collect();
        let mut changes = Vec::new();
        for (group, row) in self.groups.iter().enumerate() {
            let now = |old: &MemberId| lives.iter().find(|new| home(**new) == home(*old)).copied().unwrap_or(*old);
            let kept: Vec<MemberId> = row.view.in_sync.iter().map(now).collect();
            if kept != row.view.in_sync {
                let members = kept.into_iter().collect();
                let mut steps: Vec<ViewStep> = vec![ViewStep::Reform { members }];
                let same = row.view.in_sync.iter().filter(|old| now(old) == **old);
                for old in same {
                    steps.push(ViewStep::Add { member: *old });
                    steps.push(ViewStep::Promote { member: *old });
                }
                changes.push(ViewChange { group: GroupId(group as u32), epoch: row.view.epoch, steps });
            }
        }
        changes
    }

    fn form(
        &mut self,
        txn: &mut Txn<'_>,
        context: &mut Context<'_>,
        (replicas, feature_level): (u32, u32),
        views: &[View],
        volume: &str,
    ) -> Applied<Response> {
        if self.settings.groups > 0 {
            return Ok(Response::Done);
        }
        ensure!(views.len().is_power_of_two() && views.iter().all(views::is_valid), "the first views are none");
        self.settings.replicas = replicas;
        self.settings.min_in_sync = replicas / 2 + 1;
        self.settings.feature_level = feature_level;
        self.settings.groups = views.len() as u32;
        let changed = MapVersion(context.index.0);
        for (number, view) in views.iter().enumerate() {
            // The primary's disk first: it is preferred as primary from then on.
            let mut homes = vec![home(view.primary)];
            homes.extend(view.in_sync.iter().map(|member| home(*member)).filter(|place| *place != home(view.primary)));
            let row = GroupRow { view: view.clone(), changed, homes, leaving: Vec::new() };
            txn.put(rows::group(GroupId(number as u32)), &row);
            self.groups.push(row);
        }
        self.publish(txn, context, Change::default());
        // Fields that no delta carries have changed.
        self.deltas.forget();
        if self.volume_named(volume).is_none() {
            self.create_volume(txn, volume, Limits::default(), &Labels::new())?;
        }
        Ok(Response::Done)
    }
}

/// A node's disks as members.
pub(crate) fn members(node: &NodeRecord) -> impl Iterator<Item = MemberId> + '_ {
    node.disks.iter().map(|disk| MemberId { node: node.id, disk: disk.id, incarnation: disk.incarnation })
}
