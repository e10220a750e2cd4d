//! A cluster begins anew from a backup: what its tables hold, made fit for one server that goes on from there alone.
//!
//! ```text
//! backup ──row by row──▶ Survey ──what storage nodes know──▶ Restoration ──row by row──▶ tables of the only voter
//! ```
//! * Between the backup and now numbers were given out that nobody here knows of, and storage nodes, clients and chunks bear them. So
//!   every number that is given once *leaps*: by a margin, and by what could have been given out at most in the time that has passed
//!   ([`leap`]). A backup that is restored twice leaps further the second time.
//! * Every session of before is over: shard 0 lists none, and shard 1 takes those that it knew apart as it always does.
//! * Where the storage nodes know of newer views, those count ([`groups`]): the members of an old view may have missed writes since, and a
//!   disk that the old view does not know may hold the only copy.
//! * All other metadata servers of before are gone, for good; what they say is not listened to. Those that joined after the backup are known
//!   from the maps of storage nodes.
//!
//! Pure, like all of this crate: bytes of rows go in and come out.

mod groups;
pub mod leap;
#[cfg(test)]
mod tests;

use crate::api::LogPosition;
use crate::cluster::Cluster;
use crate::machine::Machine;
use crate::replica::describe;
use crate::tables::applied::{self, AppliedRow};
use crate::tables::cluster::{self as rows, NodeRow, ServerRow, VolumeEntryRow};
use crate::tables::members::{self, MembersRow};
use crate::tables::session::{self, EndedFloorRow, Phase, SessionRow};
use crate::tables::volume::{self, VolumeRow};
use crate::tables::{Row, number_at};
use bytes::Bytes;
use groups::Known;
use holdfast_store::{Batch, KeyRange, MemoryTable, StoreError, Table, View};
use holdfast_types::{
    GroupId, InodeId, LogIndex, MapVersion, NodeId, ServerId, SessionId, ShardId, Term, Timestamp, VolumeId,
};
use holdfast_wire::admin::{HeldByNode, ServerPlace, StoragePlace};
use holdfast_wire::map::ClusterMap;
use holdfast_wire::namespace::VolumeRecord;
use leap::Leap;
use std::collections::BTreeMap;

/// Why a session of before is over, for its user.
const ENDED: &str = "the metadata service was restored from a backup";

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Its rows are not what a backup has.
    #[error("the backup's rows are not what they should be: {0}")]
    Rows(String),
    /// It is from the future.
    #[error(
        "the backup is of a later time ({created} s) than this host's clock says ({now} s): set the clock right, since how many numbers were \
         given out since the backup is judged by it"
    )]
    Clock {
        /// When the backup was made, in seconds since 1970.
        created: i64,
        /// Now.
        now: i64,
    },
    /// The server cannot be the first.
    #[error(
        "metadata server {id} had left the cluster when the backup was made: restore with the configuration of another one"
    )]
    Gone {
        /// Which.
        id: ServerId,
    },
    /// The server was taken out since, as far as anybody knows.
    #[error(
        "metadata server {id} is not among those that storage nodes have heard of since the backup ({listed}): it was removed, and an id is used \
         once. Restore with the configuration of one of those, or, if {id} never was a metadata server of this cluster, say --accept-unknown"
    )]
    Removed {
        /// Which.
        id: ServerId,
        /// Who is.
        listed: String,
    },
    /// Nobody knows who holds some groups.
    #[error(
        "views of {} groups have changed since the backup, and no storage node that was asked knows to whom ({}). Start the storage nodes that \
         do not run and try again. If they are lost, --accept-unknown takes for each of these groups the copy that was written last, \
         which may lack data", .0.len(), few(.0)
    )]
    Unknown(Vec<GroupId>),
    /// After too many restorations.
    #[error("a number does not leap any further: {0}")]
    Exhausted(&'static str),
}

impl From<StoreError> for RestoreError {
    fn from(error: StoreError) -> Self {
        Self::Rows(error.to_string())
    }
}

/// The first of many, for a message.
fn few(groups: &[GroupId]) -> String {
    let shown: Vec<String> = groups.iter().take(8).map(ToString::to_string).collect();
    let more = if groups.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// What must be known of a backup before it can be restored: all of shard 0, and a few things of shard 1.
pub struct Survey {
    cluster: MemoryTable,
    applied: [AppliedRow; 2],
    /// The greatest session that shard 1 knows.
    session_newest: SessionId,
    /// Sessions that are attached.
    attached: u64,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    inodes: u64,
}

impl Default for Survey {
    fn default() -> Self {
        Self {
            cluster: MemoryTable::new(),
            applied: Default::default(),
            session_newest: SessionId(0),
            attached: 0,
            volumes: BTreeMap::new(),
            inodes: 0,
        }
    }
}

/// Who was there when the backup was made: to be asked before it is restored.
#[derive(Clone, Debug, Default)]
pub struct Before {
    /// The map's version.
    pub version: MapVersion,
    /// Storage nodes, and where each listens.
    pub storage: BTreeMap<NodeId, String>,
    /// Metadata servers that had not left, and where each listens.
    pub servers: BTreeMap<ServerId, String>,
}

/// How a server is to go on from a backup.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who goes on, as the only voter.
    pub server: ServerId,
    /// Where it listens.
    pub address: String,
    /// The life of its new log.
    pub life: u64,
    /// When the backup was made.
    pub created: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// What each storage node that was asked knows and holds.
    pub held: BTreeMap<NodeId, HeldByNode>,
    /// Take for a group whose members nobody knows the copy that was written last, and a server that nobody knows.
    pub accept_unknown: bool,
}

impl Plan {
    /// Whether the server may be the one that goes on: one that was removed since the backup may have a successor at its address.
    fn check_server(&self, version: MapVersion) -> Result<(), RestoreError> {
        let newest = self.held.values().map(|held| &held.map).max_by_key(|map| map.version);
        match newest {
            Some(map) if map.version > version && !map.servers.is_empty() && !self.accept_unknown => {
                let listed: Vec<String> = map.servers.keys().map(ToString::to_string).collect();
                let removed = RestoreError::Removed { id: self.server, listed: listed.join(", ") };
                if map.servers.contains_key(&self.server) { Ok(()) } else { Err(removed) }
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What came of a restoration, for the one who asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The storage node whose map was newer than the backup, and the newest of all.
    pub learned_from: Option<NodeId>,
    /// Groups in all.
    pub groups: usize,
    /// Groups whose views had changed since, without anybody knowing how: they go on with one copy, and the others are compared with it.
    pub compared: Vec<GroupId>,
    /// Of these, those of which it is not known that the copy is whole.
    pub unknown: Vec<GroupId>,
    /// Sessions that are over.
    pub sessions: u64,
}

impl Survey {
    /// Looks at a row.
    ///
    /// # Errors
    /// [`RestoreError::Rows`]
    pub fn row(&mut self, shard: ShardId, key: &Bytes, value: &Bytes) -> Result<(), RestoreError> {
        let table = *key.first().ok_or_else(|| RestoreError::Rows("a row without a key".into()))?;
        if shard == ShardId::CLUSTER {
            let mut batch = Batch::new();
            batch.put(key.clone(), value.clone());
            self.cluster.commit(batch)?;
        }
        let session = || session_of(key);
        match (shard, table) {
            (_, applied::APPLIED) if (shard.0 as usize) < 2 => self.applied[shard.0 as usize] = decode(key, value)?,
            (ShardId::VOLUMES, session::SESSION) => {
                self.session_newest = self.session_newest.max(session()?);
                self.attached += 1;
            }
            (ShardId::VOLUMES, session::ENDED) => self.session_newest = self.session_newest.max(session()?),
            (ShardId::VOLUMES, session::ENDED_FLOOR) => {
                self.session_newest = self.session_newest.max(decode::<EndedFloorRow>(key, value)?.floor);
            }
            (ShardId::VOLUMES, volume::VOLUME) => {
                let row: VolumeRow = decode(key, value)?;
                self.inodes += row.inodes_used;
                self.volumes.insert(row.record.id, row.record);
            }
            _ => {}
        }
        Ok(())
    }

    /// Who is to be asked before anything is decided.
    ///
    /// # Errors
    /// [`RestoreError::Rows`]
    pub fn before(&self) -> Result<Before, RestoreError> {
        let machine = Cluster::load(&self.cluster).map_err(|fail| RestoreError::Rows(describe(&fail)))?;
        Ok(Before {
            version: machine.version(),
            storage: machine.present().map(|(id, row)| (*id, row.record.address.clone())).collect(),
            servers: machine.addresses(),
        })
    }

    /// Volumes, and inodes in all of them.
    pub fn totals(&self) -> (usize, u64) {
        (self.volumes.len(), self.inodes)
    }

    /// Decides all that is to be decided.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing was written anywhere.
    pub fn plan(self, plan: &Plan) -> Result<Restoration, RestoreError> {
        if self.applied.iter().any(|row| row.index.0 == 0) {
            return Err(RestoreError::Rows("a shard has no applied index".into()));
        }
        let machine = Cluster::load(&self.cluster).map_err(|fail| RestoreError::Rows(describe(&fail)))?;
        if machine.servers.get(&plan.server).is_some_and(|row| row.place == ServerPlace::Gone) {
            return Err(RestoreError::Gone { id: plan.server });
        }
        plan.check_server(machine.settings.version)?;
        let leap = Leap::between(plan.created, plan.now)
            .ok_or(RestoreError::Clock { created: plan.created.seconds, now: plan.now.seconds })?;
        let groups = machine.groups.len();
        let newer = |held: &&HeldByNode| held.map.version > machine.settings.version && held.map.views.len() == groups;
        let newest = plan.held.iter().filter(|(_, held)| newer(held)).max_by_key(|(_, held)| held.map.version);
        let maps = || plan.held.values().map(|held| &held.map);
        // Numbers that storage nodes know count beside those of the backup.
        let known_version = maps().map(|map| map.version.0).max().unwrap_or(0);
        let known_session = maps().map(|map| map.session_newest).max().unwrap_or_default();
        let known_term = maps().map(|map| map.service_term).max().unwrap_or_default();
        let term = self.applied.iter().map(|row| row.term).max().unwrap_or_default();
        let term = term.max(known_term).max(machine.settings.service_term);
        let term = Term(leap.term(term.0).ok_or(RestoreError::Exhausted("term"))?);
        let index = |row: &AppliedRow| Some(LogIndex(leap.index(row.index.0.max(known_version))?));
        let exhausted = |what| RestoreError::Exhausted(what);
        let at = |row: &AppliedRow| Some(LogPosition { index: index(row)?, term });
        let [Some(cluster), Some(volumes)] = self.applied.each_ref().map(at) else { return Err(exhausted("index")) };
        let sessions = machine.settings.session_newest.max(known_session).max(self.session_newest);
        let sessions = SessionId(leap.session(sessions.0).ok_or_else(|| exhausted("session"))?);
        let mut restoration = Restoration {
            at: [cluster, volumes],
            sessions,
            leap,
            applied: self.applied,
            server: plan.server,
            cluster: Batch::new(),
            outcome: Outcome {
                learned_from: newest.map(|(node, _)| *node),
                groups,
                sessions: self.attached,
                ..Outcome::default()
            },
        };
        restoration.cluster(&self, machine, newest.map(|(_, held)| &held.map), plan)?;
        Ok(restoration)
    }
}

/// A backup made fit for the server that goes on from it.
pub struct Restoration {
    /// Where each shard's log begins.
    pub at: [LogPosition; 2],
    /// Every session up to here is over.
    sessions: SessionId,
    leap: Leap,
    applied: [AppliedRow; 2],
    server: ServerId,
    cluster: Batch,
    outcome: Outcome,
}

impl Restoration {
    /// What came of it.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// All rows of shard 0.
    pub fn cluster_rows(&self) -> Batch {
        self.cluster.clone()
    }

    /// A row of shard 1 in the backup: what it is from now on.
    ///
    /// # Errors
    /// [`RestoreError::Rows`]
    pub fn volumes_row(&self, key: &Bytes, value: &Bytes, batch: &mut Batch) -> Result<(), RestoreError> {
        match key.first() {
            None => return Err(RestoreError::Rows("a row without a key".into())),
            // Written at the end.
            Some(&(applied::APPLIED | members::MEMBERS | session::ENDED_FLOOR)) => {}
            Some(&session::SESSION) => {
                let mut row: SessionRow = decode(key, value)?;
                if row.phase == Phase::Attached {
                    row.phase = Phase::Ending { reason: ENDED.into() };
                }
                batch.put(key.clone(), row.encode());
            }
            Some(&volume::VOLUME) => {
                let mut row: VolumeRow = decode(key, value)?;
                let next = self.leap.inode(row.inode_next.0).ok_or(RestoreError::Exhausted("inode"))?;
                row.inode_next = InodeId(next);
                let floor = self.leap.generation(row.generation_floor.0);
                row.generation_floor = floor.ok_or(RestoreError::Exhausted("generation"))?.into();
                batch.put(key.clone(), row.encode());
            }
            Some(_) => batch.put(key.clone(), value.clone()),
        }
        Ok(())
    }

    /// What shard 1 has besides.
    pub fn volumes_end(&self) -> Batch {
        let mut batch = self.own_rows(ShardId::VOLUMES);
        batch.put(session::ended_floor(), EndedFloorRow { floor: self.sessions }.encode());
        batch
    }

    /// How far a shard is, and who votes in it.
    fn own_rows(&self, shard: ShardId) -> Batch {
        let (at, before) = (self.at[shard.0 as usize], self.applied[shard.0 as usize]);
        let mut batch = Batch::new();
        batch.put(applied::key(), AppliedRow { index: at.index, term: at.term, stamp: before.stamp }.encode());
        batch.put(members::key(), MembersRow { voters: vec![self.server.0], ..MembersRow::default() }.encode());
        batch
    }

    /// Rows of shard 0.
    fn cluster(
        &mut self,
        survey: &Survey,
        machine: Cluster,
        newest: Option<&ClusterMap>,
        plan: &Plan,
    ) -> Result<(), RestoreError> {
        let version = self.at[0].index.0.into();
        let mut batch = self.own_rows(ShardId::CLUSTER);
        let written = [
            applied::APPLIED,
            members::MEMBERS,
            rows::SETTINGS,
            rows::NODE,
            rows::GROUP,
            rows::LIVE,
            rows::VOLUME,
            rows::SERVER,
        ];
        for pair in survey.cluster.range(KeyRange::all()) {
            let (key, value) = pair?;
            if !key.first().is_some_and(|table| written.contains(table)) {
                batch.put(key, value);
            }
        }
        let mut settings = machine.settings;
        settings.version = version;
        settings.session_newest = self.sessions;
        let newest_volume = settings.volume_newest.max(survey.volumes.keys().max().copied().unwrap_or_default());
        settings.volume_newest = VolumeId(self.leap.volume(newest_volume.0).ok_or(RestoreError::Exhausted("volume"))?);
        batch.put(rows::settings(), settings.encode());
        for (id, row) in nodes(&machine, newest) {
            batch.put(rows::node(id), row.encode());
        }
        let known = Known {
            newest,
            holders: groups::holders(&plan.held),
            leap: self.leap,
            replicas: settings.replicas as usize,
        };
        for (number, row) in machine.groups.iter().enumerate() {
            let group = GroupId(number as u32);
            let mut regrouped = known.regroup(group, row).ok_or(RestoreError::Exhausted("epoch"))?;
            regrouped.row.changed = version;
            batch.put(rows::group(group), regrouped.row.encode());
            self.outcome.compared.extend(regrouped.compared.then_some(group));
            self.outcome.unknown.extend(regrouped.unknown.then_some(group));
        }
        if !self.outcome.unknown.is_empty() && !plan.accept_unknown {
            return Err(RestoreError::Unknown(self.outcome.unknown.clone()));
        }
        for (id, row) in volumes(&machine, survey) {
            batch.put(rows::volume(id), row.encode());
        }
        for (id, row) in servers(&machine, plan) {
            batch.put(rows::server(id), row.encode());
        }
        self.cluster = batch;
        Ok(())
    }
}

/// Storage nodes as the newest map has them: those that came since the backup, and without those that were taken out for good.
fn nodes(machine: &Cluster, newest: Option<&ClusterMap>) -> BTreeMap<NodeId, NodeRow> {
    let mut nodes = machine.nodes.clone();
    let Some(map) = newest else { return nodes };
    for (id, row) in &mut nodes {
        if !map.nodes.contains_key(id) {
            row.place = StoragePlace::Gone;
        }
    }
    for (id, record) in &map.nodes {
        let place = nodes.get(id).map_or(StoragePlace::In, |row| row.place);
        nodes.insert(*id, NodeRow { record: record.clone(), place });
    }
    nodes
}

/// Volumes, with those that shard 1 alone has rows of. Shard 0 gives the ids out in order: one up to its newest it knew and has forgotten, since
/// it was deleted while the backup was made, and its rows are still to go. One above it has not heard of yet (a backup that no leader confirmed
/// has the shards as they were, the first behind the second): that one is alive.
fn volumes(machine: &Cluster, survey: &Survey) -> BTreeMap<VolumeId, VolumeEntryRow> {
    let mut entries = machine.volumes.clone();
    for (id, record) in &survey.volumes {
        let deleting = *id <= machine.settings.volume_newest;
        entries.entry(*id).or_insert_with(|| VolumeEntryRow {
            record: record.clone(),
            deleting,
            labels_version: 0,
            labels: Default::default(),
        });
    }
    entries
}

/// The one that goes on, and all others that the backup or a storage node has ever heard of, which are gone.
fn servers(machine: &Cluster, plan: &Plan) -> BTreeMap<ServerId, ServerRow> {
    let mut servers = machine.servers.clone();
    for (id, address) in plan.held.values().flat_map(|held| &held.map.servers) {
        let unknown = || ServerRow { address: address.clone(), life: 0, place: ServerPlace::Gone };
        servers.entry(*id).or_insert_with(unknown);
    }
    servers.values_mut().for_each(|row| row.place = ServerPlace::Gone);
    let me = ServerRow { address: plan.address.clone(), life: plan.life, place: ServerPlace::Voter };
    servers.insert(plan.server, me);
    servers
}

fn session_of(key: &[u8]) -> Result<SessionId, RestoreError> {
    if key.len() != 9 {
        return Err(RestoreError::Rows(format!("{} names no session", key.escape_ascii())));
    }
    Ok(SessionId(number_at(key, 0)))
}

fn decode<R: Row>(key: &[u8], value: &[u8]) -> Result<R, RestoreError> {
    R::decode(value).map_err(|error| RestoreError::Rows(format!("row {}: {error}", key.escape_ascii())))
}
