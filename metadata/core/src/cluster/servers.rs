//! Which metadata servers there are: on record in shard 0, brought about in both shards by their leaders.
//!
//! ```text
//! (none) ──the first leader writes them down──▶ Voter ──remove, or replaced──▶ Leaving ──out of both shards──▶ Gone
//! (none) ──add──▶ Joining ──votes in both shards (and whom it replaces is out of both)──▶ Voter
//! ```
//! * An id is used once: a row stays for ever.
//! * One change at a time; none that would leave a shard's majority to servers that are not heard.
//! * A server is known by the life of its log. Whoever lost the log has lost what it voted and acknowledged, and is a stranger.

use super::Cluster;
use super::lead::Work;
use super::map::Change;
use crate::api::{Effect, ticks};
use crate::command::ClusterCommand;
use crate::core::{Asker, MetadataCore};
use crate::error::{Applied, Fail};
use crate::machine::Context;
use crate::replica::members::Wanted;
use crate::tables::cluster::{self as rows, ServerRow};
use crate::txn::Txn;
use bytes::Bytes;
use holdfast_types::{ServerId, ShardId};
use holdfast_wire::admin::{ServerPlace, ServerRecord};
use holdfast_wire::metadata::{MetadataError, Response};
use holdfast_wire::peer::PeerMessage;
use std::collections::BTreeMap;
use std::time::Duration;

/// Servers of a cluster at the most, those that come or go included.
const SERVERS_MAX: usize = 9;
/// How often leaders look whether the members are as they should be.
const LOOK_TICKS: u64 = ticks(Duration::from_millis(200));

impl Cluster {
    /// Writes down who was there from the first; once.
    pub(super) fn found(&mut self, txn: &mut Txn<'_>, context: &Context<'_>, founders: &[(ServerId, String)]) {
        if self.servers.is_empty() {
            for (id, address) in founders {
                self.put_server(txn, *id, ServerRow { address: address.clone(), life: 0, place: ServerPlace::Voter });
            }
            self.publish_servers(txn, context);
        }
    }

    /// Servers were heard for the first time: from now on they are known by the lives of their logs.
    pub(super) fn learn_lives(&mut self, txn: &mut Txn<'_>, lives: &[(ServerId, u64)]) {
        for (id, life) in lives {
            if let Some(row) = self.servers.get(id).filter(|row| row.life == 0) {
                self.put_server(txn, *id, ServerRow { life: *life, ..row.clone() });
            }
        }
    }

    /// A server is to join.
    pub(super) fn add_server(
        &mut self,
        txn: &mut Txn<'_>,
        context: &Context<'_>,
        (server, address): (ServerId, &str),
        replaces: Option<ServerId>,
    ) -> Applied<Response> {
        let place = ServerPlace::Joining { replaces };
        if self.servers.get(&server).is_some_and(|row| row.place == place && row.address == address) {
            return Ok(Response::Done);
        }
        if self.servers.contains_key(&server) || server.0 == 0 {
            return Err(invalid(format!("metadata server {server} is, or was, one of this cluster; take a new id")));
        }
        // Whoever takes another's place may take its address as well: they do not run at the same time there.
        let others = || self.servers.iter().filter(|(id, row)| !is_gone(row) && replaces != Some(**id));
        if let Some((id, row)) = others().find(|(_, row)| row.address == address) {
            return Err(invalid(format!("{address} is the address of metadata server {id} ({:?})", row.place)));
        }
        self.is_quiet()?;
        if replaces.is_some_and(|old| self.servers.get(&old).is_none_or(|row| row.place != ServerPlace::Voter)) {
            return Err(invalid("the one to be replaced is no metadata server of this cluster".into()));
        }
        if self.servers.values().filter(|row| !is_gone(row)).count() >= SERVERS_MAX {
            return Err(invalid(format!("more than {SERVERS_MAX} metadata servers are of no use")));
        }
        self.put_server(txn, server, ServerRow { address: address.into(), life: 0, place });
        self.publish_servers(txn, context);
        Ok(Response::Done)
    }

    /// A server is to leave. One that joins can be taken back.
    pub(super) fn remove_server(
        &mut self,
        txn: &mut Txn<'_>,
        context: &Context<'_>,
        server: ServerId,
    ) -> Applied<Response> {
        let Some(row) = self.servers.get(&server).cloned() else {
            return Err(invalid(format!("there is no metadata server {server}")));
        };
        match row.place {
            ServerPlace::Leaving | ServerPlace::Gone => return Ok(Response::Done),
            ServerPlace::Joining { .. } => {}
            ServerPlace::Voter => self.is_quiet()?,
        }
        if self.servers.values().filter(|row| row.place == ServerPlace::Voter).count() <= 1
            && row.place == ServerPlace::Voter
        {
            return Err(invalid("the last metadata server cannot leave".into()));
        }
        self.put_server(txn, server, ServerRow { place: ServerPlace::Leaving, ..row });
        self.publish_servers(txn, context);
        Ok(Response::Done)
    }

    /// What was wanted has come about in both shards.
    pub(super) fn server_settled(&mut self, txn: &mut Txn<'_>, context: &Context<'_>, server: ServerId) {
        let Some(row) = self.servers.get(&server).cloned() else { return };
        match row.place {
            ServerPlace::Joining { replaces } => {
                self.put_server(txn, server, ServerRow { place: ServerPlace::Voter, ..row });
                if let Some((old, row)) = replaces.and_then(|old| Some((old, self.servers.get(&old)?.clone()))) {
                    self.put_server(txn, old, ServerRow { place: ServerPlace::Gone, ..row });
                }
            }
            ServerPlace::Leaving => self.put_server(txn, server, ServerRow { place: ServerPlace::Gone, ..row }),
            ServerPlace::Voter | ServerPlace::Gone => return,
        }
        self.publish_servers(txn, context);
    }

    fn is_quiet(&self) -> Applied<()> {
        let moving = |row: &&ServerRow| matches!(row.place, ServerPlace::Joining { .. } | ServerPlace::Leaving);
        if self.servers.values().any(|row| moving(&row)) {
            let reason = "another metadata server is joining or leaving: one at a time".into();
            return Err(Fail::Refused(MetadataError::Invalid { reason }));
        }
        Ok(())
    }

    fn put_server(&mut self, txn: &mut Txn<'_>, server: ServerId, row: ServerRow) {
        txn.put(rows::server(server), &row);
        self.servers.insert(server, row);
    }

    fn publish_servers(&mut self, txn: &mut Txn<'_>, context: &Context<'_>) {
        self.publish(txn, context, Change::default());
        // No delta carries them: they change rarely, and whoever uses the map gets all of it then.
        self.deltas.forget();
    }

    /// Servers and where they listen, those that are gone left out.
    pub(crate) fn addresses(&self) -> BTreeMap<ServerId, String> {
        let present = self.servers.iter().filter(|(_, row)| !is_gone(row));
        present.map(|(id, row)| (*id, row.address.clone())).collect()
    }

    /// A server's place on record, until it is gone.
    fn place(&self, server: ServerId) -> Option<ServerPlace> {
        self.servers.get(&server).filter(|row| !is_gone(row)).map(|row| row.place)
    }

    /// What each shard's configuration should come to.
    fn wanted(&self) -> Vec<Wanted> {
        let wanted = |(id, row): (&ServerId, &ServerRow)| match row.place {
            ServerPlace::Voter => None,
            ServerPlace::Joining { replaces } => Some(Wanted::In(*id, replaces)),
            ServerPlace::Leaving | ServerPlace::Gone => Some(Wanted::Out(*id)),
        };
        self.servers.iter().filter_map(wanted).collect()
    }

    /// For status.
    pub(super) fn server_records(&self) -> Vec<ServerRecord> {
        let record = |(id, row): (&ServerId, &ServerRow)| ServerRecord {
            id: *id,
            address: row.address.clone(),
            place: row.place,
        };
        self.servers.iter().map(record).collect()
    }
}

fn is_gone(row: &ServerRow) -> bool {
    row.place == ServerPlace::Gone
}

fn invalid(reason: String) -> Fail {
    Fail::Refused(MetadataError::Invalid { reason })
}

impl MetadataCore {
    /// A message of raft came with these lives; says whether it may be taken.
    ///
    /// What this server has applied may be old, but a life that is on record is on record for ever.
    pub(crate) fn is_known(&mut self, from: ServerId, shard: ShardId, (from_life, to_life): (u64, u64)) -> bool {
        let takes_part =
            if shard == ShardId::CLUSTER { self.cluster.has_member(from) } else { self.volumes.has_member(from) };
        // Not the word of one that is gone: it may be of the history that this cluster's backup was taken from, and know us from there.
        let is_out = self.cluster.machine.servers.get(&from).is_some_and(is_gone) && !takes_part;
        if !is_out && to_life != 0 && self.config.life != 0 && to_life != self.config.life {
            if !self.cluster.machine.servers.is_empty() && !self.cluster.machine.servers.contains_key(&from) {
                // It joined after the backup that this server goes on from, and nobody had heard of it. Whoever has really lost its log has
                // an empty table, too, and knows no server at all.
                return false;
            }
            self.stop("the cluster knows this server by another log: the log that it had is lost".into());
            return false;
        }
        let Some(row) = self.cluster.machine.servers.get(&from) else { return true };
        let stranger = if is_out {
            Some(0)
        } else {
            (from_life != 0 && row.life != 0 && from_life != row.life).then_some(row.life)
        };
        if let Some(life) = stranger {
            let message = PeerMessage::Stranger { life };
            self.out.push(Effect::Send { to: from, message });
            return false;
        }
        if from_life != 0 && row.life == 0 {
            self.cluster_lead.lives.insert(from, from_life);
        }
        true
    }

    /// Another server says that nobody listens to this one.
    pub(crate) fn is_stranger(&mut self, from: ServerId, life: u64) {
        if self.cluster.machine.servers.get(&from).is_some_and(is_gone) {
            // It is the one that has left, for all we know.
            return;
        }
        if life == 0 {
            self.stop("this server was removed from the cluster".into());
        } else if self.config.life != 0 && life != self.config.life {
            self.stop("the cluster knows this server by another log: the log that it had is lost".into());
        }
    }

    fn stop(&mut self, reason: String) {
        if !std::mem::replace(&mut self.stopped, true) {
            self.out.push(Effect::Stop { reason });
        }
    }

    /// The life that another server is known by.
    pub(crate) fn life_of(&self, server: ServerId) -> u64 {
        self.cluster.machine.servers.get(&server).map_or(0, |row| row.life)
    }

    /// Whether a change of membership is safe to begin; otherwise why not.
    pub(crate) fn may_leave(&self, server: ServerId) -> Result<(), MetadataError> {
        let voters: Vec<u64> = self.cluster.members().voters.into_iter().filter(|id| *id != server.0).collect();
        let heard = self.cluster.voters_heard().into_iter().filter(|id| *id != server).count();
        if !voters.is_empty() && heard * 2 <= voters.len() {
            let reason = format!(
                "only {heard} of the {} servers that would be left are heard: that is no majority. Start them, or replace them first",
                voters.len()
            );
            return Err(MetadataError::Invalid { reason });
        }
        Ok(())
    }

    pub(crate) fn add_server(&mut self, asker: Asker, server: ServerId, address: String, replaces: Option<ServerId>) {
        if let Some(Err(error)) = replaces.map(|old| self.may_replace(old)) {
            return self.refuse(asker, ShardId::CLUSTER, error);
        }
        self.propose_for(asker, ClusterCommand::AddServer { server, address, replaces });
    }

    /// The newcomer takes the other's place in one step: as many are left, of which it is one that is heard.
    fn may_replace(&self, old: ServerId) -> Result<(), MetadataError> {
        let voters = self.cluster.members().voters.len();
        let heard = self.cluster.voters_heard().into_iter().filter(|id| *id != old).count() + 1;
        if heard * 2 <= voters {
            let reason = format!("with the new server {heard} of {voters} would be heard: that is no majority");
            return Err(MetadataError::Invalid { reason });
        }
        Ok(())
    }

    /// Whether every server that is heard is known by its life. A moment after a cluster has formed, none is yet.
    pub(crate) fn are_servers_on_record(&self) -> bool {
        self.config.life == 0 || self.cluster.voters_heard().into_iter().all(|id| self.life_of(id) != 0)
    }

    /// Both shards' leaders take the next step; shard 0's writes down what has come about.
    pub(crate) fn tick_servers(&mut self) {
        let look = self.ticks.is_multiple_of(LOOK_TICKS);
        if look {
            self.ask_whether_removed();
        }
        let wanted = self.cluster.machine.wanted();
        if look && !wanted.is_empty() {
            self.cluster.drive_members(&wanted);
            self.volumes.drive_members(&wanted);
            self.tell_arrivals(&wanted);
        }
        if self.cluster_lead.since.is_none() || !self.cluster.is_ready_to_lead() {
            return;
        }
        if self.config.life != 0 && self.life_of(self.config.id) == 0 {
            self.cluster_lead.lives.insert(self.config.id, self.config.life);
        }
        if self.cluster_lead.is_busy(Work::Servers) {
            return;
        }
        let machine = &self.cluster.machine;
        let unknown = |(id, _): &(&ServerId, &u64)| machine.servers.get(id).is_some_and(|row| row.life == 0);
        let lives: Vec<(ServerId, u64)> =
            self.cluster_lead.lives.iter().filter(unknown).map(|(id, life)| (*id, *life)).collect();
        let settled = wanted.iter().find_map(|wish| {
            let server = wish.server();
            let place = machine.place(server)?;
            let arrived = self.cluster_lead.arrived.get(&server) == Some(&place);
            (arrived && self.cluster.is_as_wanted(*wish)).then_some(server)
        });
        let command = if machine.servers.is_empty() && !self.config.servers.is_empty() {
            ClusterCommand::Found { servers: self.config.servers.clone() }
        } else if !lives.is_empty() {
            ClusterCommand::Lives { lives }
        } else if let Some(server) = settled {
            ClusterCommand::ServerSettled { server }
        } else {
            return;
        };
        self.propose_work(Work::Servers, command);
    }

    /// The leader of the volumes' log says which wishes have come true there. Nobody else can: what another server has applied may be
    /// from before the server in question ever came.
    fn tell_arrivals(&mut self, wanted: &[Wanted]) {
        if !self.volumes.knows_its_members() {
            return;
        }
        for wish in wanted {
            if let Some(place) = self.cluster.machine.place(wish.server()).filter(|_| self.volumes.is_as_wanted(*wish))
            {
                self.forward_arrival(wish.server(), place);
            }
        }
    }

    /// Who has left hears nothing more from the others, not even that its leaving is on record: it asks, with a message of raft that
    /// says nothing.
    fn ask_whether_removed(&mut self) {
        let me = self.config.id;
        let members = self.cluster.members();
        if members.voters.is_empty() || self.cluster.has_member(me) || self.volumes.has_member(me) {
            return;
        }
        for to in members.voters.into_iter().map(ServerId) {
            let (shard, from_life) = (ShardId::CLUSTER, self.config.life);
            let message = PeerMessage::Raft { shard, from_life, to_life: 0, bytes: Bytes::new() };
            self.out.push(Effect::Send { to, message });
        }
    }

    /// Tells the shell where the servers are, when that has changed.
    pub(crate) fn tell_servers(&mut self) {
        let version = self.cluster.machine.version();
        if version == self.servers_told.0 {
            return;
        }
        let addresses = self.cluster.machine.addresses();
        if !addresses.is_empty() && addresses != self.servers_told.1 {
            let gone = self.cluster.machine.servers.iter().filter(|(_, row)| is_gone(row));
            let gone = gone.map(|(id, row)| (*id, row.address.clone())).collect();
            self.out.push(Effect::Servers { servers: addresses.clone().into_iter().collect(), gone });
        }
        self.servers_told = (version, addresses);
    }
}
