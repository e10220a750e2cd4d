//! A cluster that begins anew from the tables of another: nothing of the sessions, numbers and servers of before counts any more.

use super::{Server, ShardDisk, World, name};
use crate::api::{HardState, LogPosition};
use crate::cluster::Cluster;
use crate::command::VolumesCommand;
use crate::machine::Machine;
use crate::restore::{Plan, RestoreError, Survey};
use crate::tables::Row;
use crate::tables::session::{self, EndedRow};
use crate::tables::volume::{self, VolumeRow};
use holdfast_store::{Batch, KeyRange, MemoryTable, Table, View};
use holdfast_types::{Generation, InodeId, NodeId, ServerId, SessionId, ShardId, Timestamp};
use holdfast_wire::admin::{HeldByNode, ServerPlace};
use holdfast_wire::metadata::{ClientRecord, MetadataError, Request, Response};
use holdfast_wire::namespace::{Mutation, NamespaceError, NewNode, Outcome, Query, SetAttributes, VolumeRecord};
use std::collections::{BTreeMap, VecDeque};

const ROOT: InodeId = InodeId::ROOT;
const SHARDS: [ShardId; 2] = [ShardId::CLUSTER, ShardId::VOLUMES];

/// The rows of a server's tables.
type Rows = [Vec<(bytes::Bytes, bytes::Bytes)>; 2];

fn backup(world: &World, id: u64) -> Rows {
    SHARDS.map(|shard| world.table(id, shard).range(KeyRange::all()).map(Result::unwrap).collect())
}

fn plan() -> Plan {
    Plan {
        server: ServerId(1),
        address: "m1:1".into(),
        life: 77,
        created: Timestamp { seconds: 1_700_000_000, nanos: 0 },
        now: Timestamp { seconds: 1_700_000_100, nanos: 0 },
        held: BTreeMap::new(),
        accept_unknown: false,
    }
}

fn survey(rows: &Rows) -> Survey {
    let mut survey = Survey::default();
    for (shard, rows) in SHARDS.iter().zip(rows) {
        rows.iter().for_each(|(key, value)| survey.row(*shard, key, value).unwrap());
    }
    survey
}

/// One server that goes on from the rows, with the storage nodes of before.
fn restored(rows: &Rows, plan: &Plan, before: &World) -> World {
    let restoration = survey(rows).plan(plan).unwrap();
    let [cluster, volumes] = [MemoryTable::new(), MemoryTable::new()];
    cluster.commit(restoration.cluster_rows()).unwrap();
    for (key, value) in &rows[1] {
        let mut batch = Batch::new();
        restoration.volumes_row(key, value, &mut batch).unwrap();
        volumes.commit(batch).unwrap();
    }
    volumes.commit(restoration.volumes_end()).unwrap();
    let mut tables = [cluster, volumes].into_iter();
    let disks = restoration.at.map(|base| {
        let LogPosition { index, term } = base;
        let hard_state = HardState { term, vote: ServerId(0), commit: index };
        let table = tables.next().expect("one for each");
        table.persist().unwrap();
        ShardDisk { hard_state, base, entries: Vec::new(), table }
    });
    let mut world = World::new(1, 3, |_| {});
    let writes = VecDeque::new();
    let server = Server { core: None, disks, halted: None, stopped: None, life: plan.life, joins: false, writes };
    world.servers.insert(1, server);
    world.start(1);
    world.storage = before.storage.clone();
    // What they have acknowledged is of the maps of before.
    world.until("it leads", |world| SHARDS.iter().all(|shard| world.leader(*shard) == Some(1)));
    world
}

#[test]
fn what_was_backed_up_goes_on_and_nothing_given_out_since_is_given_out_again() {
    let mut world = World::formed(3, 3);
    let (old, _) = world.attach();
    let kept = world.create(old, ROOT, "kept", NewNode::File).inode;
    let size = |size| SetAttributes { size: Some(size), ..SetAttributes::default() };
    world.mutate(old, Mutation::SetAttributes { inode: kept, set: size(9) }).unwrap();
    world.run(20);
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let rows = backup(&world, leader);
    // Life goes on: more files, sessions and contents, and other views.
    let later = world.create(old, ROOT, "later", NewNode::File).inode;
    for _ in 0..3 {
        world.mutate(old, Mutation::SetAttributes { inode: kept, set: size(0) }).unwrap();
        world.mutate(old, Mutation::SetAttributes { inode: kept, set: size(9) }).unwrap();
    }
    let generation = world.attributes(old, kept).generation;
    let (newer, _) = world.attach();
    world.storage.get_mut(&3).unwrap().alive = false;
    world.run(100);
    let map = world.core(world.leader(ShardId::CLUSTER).unwrap()).map();
    assert!(map.views.iter().all(|view| view.in_sync.len() == 2), "the views have changed");

    // A storage node has the newest map; the third has missed what came after.
    let mut plan = plan();
    plan.held.insert(NodeId(2), HeldByNode { map: map.clone(), groups: Vec::new() });
    let mut world = restored(&rows, &plan, &world);
    let now = world.core(1).map();
    assert!(now.version > map.version && now.sessions.is_empty() && now.session_newest > map.session_newest);
    for (view, before) in now.views.iter().zip(&map.views) {
        assert!(view.epoch > before.epoch && view.in_sync == before.in_sync, "{view:?} after {before:?}");
    }
    let life = world.core(1).cluster.machine.servers[&ServerId(1)].life;
    assert_eq!((life, world.place(1), world.place(2)), (77, Some(ServerPlace::Voter), Some(ServerPlace::Gone)));
    for session in [old, newer] {
        let refused = world.query(session, Query::GetAttributes { inode: ROOT });
        assert!(matches!(refused, Err(MetadataError::SessionEnded { .. })), "{session}: {refused:?}");
    }
    let (session, caching) = world.attach();
    assert!(session > map.session_newest && caching, "nobody else is there any more");
    let look = |world: &mut World, text: &str| world.query(session, Query::Lookup { parent: ROOT, name: name(text) });
    assert!(
        matches!(look(&mut world, "kept"), Ok(Outcome::Entry { attributes, .. }) if attributes.inode == kept && attributes.size == 9)
    );
    assert_eq!(look(&mut world, "later"), Err(MetadataError::Namespace(NamespaceError::NotFound)));
    assert!(world.create(session, ROOT, "again", NewNode::File).inode > later);
    assert_eq!(world.attributes(session, kept).generation, Generation(1));
    world.mutate(session, Mutation::SetAttributes { inode: kept, set: size(0) }).unwrap();
    assert!(world.attributes(session, kept).generation > generation);
    // The third node is a member again when it is back, and is caught up first.
    world.storage.get_mut(&3).unwrap().alive = true;
    world.until("it is taken in", |world| world.core(1).map().views.iter().all(|view| view.syncing.len() == 1));
    world.run(40);
    world.check();
    // Another server joins, under a number that was never used.
    assert!(world.join(2, None).is_err(), "an id is used once");
    world.join(4, None).unwrap();
    world.make_server(4, true);
    world.until("it votes", |world| world.place(4) == Some(ServerPlace::Voter));
    assert!(matches!(look(&mut world, "again"), Ok(Outcome::Entry { .. })));
    world.check();
}

#[test]
fn a_session_that_was_opened_after_the_backup_is_over_for_ever() {
    let mut world = World::formed(1, 3);
    let mut rows = backup(&world, 1);
    let (late, _) = world.attach();
    // As many that are over as are remembered one by one.
    let ended = (10_000..11_024).map(|id| {
        let row = EndedRow { reason: "over".into() }.encode();
        (session::ended(SessionId(id)).into(), row)
    });
    rows[1].extend(ended);
    let mut world = restored(&rows, &plan(), &world);
    let newest = world.core(1).map().session_newest;
    assert!(newest.0 > 11_024);
    let volume = match world.call(ShardId::CLUSTER, SessionId::NONE, Request::ListVolumes) {
        Ok(Response::Volumes(mut volumes)) => volumes.remove(0),
        other => panic!("{other:?}"),
    };
    let attach = |world: &mut World, session| {
        let (volume, client) = (volume.clone(), ClientRecord::default());
        world.call(ShardId::VOLUMES, session, Request::Attach { volume, client, read_only: false })
    };
    let unknown = [late, SessionId(20_000), newest];
    for more in 0..2 {
        for session in unknown {
            let refused = attach(&mut world, session);
            assert!(matches!(refused, Err(MetadataError::SessionEnded { .. })), "{session}, {more}: {refused:?}");
        }
        // One more is over, so the oldest is forgotten; that does not let those in between in.
        let (session, _) = world.attach();
        world.command(1, VolumesCommand::End { sessions: vec![(session, "gone".into())] });
        world.until("it is over", |world| !world.core(1).volumes.machine.sessions().contains_key(&session));
    }
    world.check();
}

#[test]
fn servers_of_before_are_not_listened_to_and_the_new_one_does_not_end_for_their_sake() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    world.create(s, ROOT, "kept", NewNode::File);
    world.run(20);
    let rows = backup(&world, world.leader(ShardId::VOLUMES).unwrap());
    let mut new = restored(&rows, &plan(), &world);
    // Two of the old ones were not lost after all. They know the first by its old life.
    for id in [2, 3] {
        let old = world.servers.remove(&id).unwrap();
        new.servers.insert(id, old);
    }
    new.until("they are told", |world| [2, 3].iter().all(|id| world.servers[id].stopped.is_some()));
    new.run(100);
    assert!(new.servers[&1].stopped.is_none() && new.leader(ShardId::CLUSTER) == Some(1));
    for id in [2, 3] {
        assert!(new.servers[&id].stopped.as_ref().unwrap().contains("removed"));
    }
}

#[test]
fn what_is_no_backup_of_this_is_refused() {
    let world = World::formed(3, 3);
    let rows = backup(&world, 1);
    let early = Plan { now: Timestamp { seconds: 1_600_000_000, nanos: 0 }, ..plan() };
    assert!(matches!(survey(&rows).plan(&early), Err(RestoreError::Clock { .. })));
    assert!(matches!(Survey::default().plan(&plan()), Err(RestoreError::Rows(_))));
    let mut broken = rows;
    broken[0].retain(|(key, _)| key[0] != 0x22);
    assert!(matches!(survey(&broken).plan(&plan()), Err(RestoreError::Rows(reason)) if reason.contains("groups")));
}

#[test]
fn a_server_that_joined_after_the_backup_does_not_stop_the_one_that_was_restored() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    world.create(s, ROOT, "kept", NewNode::File);
    world.run(20);
    let rows = backup(&world, world.leader(ShardId::VOLUMES).unwrap());
    world.join(4, None).unwrap();
    world.make_server(4, true);
    world.until("it votes", |world| world.place(4) == Some(ServerPlace::Voter));
    world.run(20);
    let map = world.core(world.leader(ShardId::CLUSTER).unwrap()).map();
    let mut heard = plan();
    heard.held.insert(NodeId(2), HeldByNode { map, groups: Vec::new() });
    let late = world.servers.remove(&4).unwrap();
    // No storage node knows of it: it is not listened to.
    let mut new = restored(&rows, &plan(), &world);
    new.servers.insert(4, late);
    new.run(300);
    assert!(new.servers[&1].stopped.is_none() && new.leader(ShardId::CLUSTER) == Some(1));
    assert_eq!(new.core(1).cluster.machine.servers.get(&ServerId(4)), None);
    // One does: it is told that it was removed.
    let late = new.servers.remove(&4).unwrap();
    let mut new = restored(&rows, &heard, &world);
    new.servers.insert(4, late);
    new.until("it is told", |world| world.servers[&4].stopped.is_some());
    assert!(new.servers[&1].stopped.is_none() && new.place(4) == Some(ServerPlace::Gone));
    // One that was removed since does not go on from the backup, unless somebody says so.
    let held = heard.held.get_mut(&NodeId(2)).unwrap();
    held.map.servers.remove(&ServerId(1));
    let refused = survey(&rows).plan(&heard).map(|_| ());
    assert!(matches!(refused, Err(RestoreError::Removed { id: ServerId(1), .. })), "{refused:?}");
    assert!(survey(&rows).plan(&Plan { accept_unknown: true, ..heard }).is_ok());
}

#[test]
fn a_volume_that_the_first_shard_has_not_heard_of_yet_is_kept_and_one_that_it_forgot_goes() {
    let mut world = World::formed(1, 3);
    world.attach();
    let request =
        Request::CreateVolume { name: "forgotten".into(), limits: Default::default(), labels: Default::default() };
    let Ok(Response::Volume(forgotten)) = world.call(ShardId::CLUSTER, SessionId::NONE, request) else {
        panic!("no volume");
    };
    world.run(20);
    let mut rows = backup(&world, 1);
    rows[0].retain(|(key, _)| **key != *crate::tables::cluster::volume(forgotten.id));
    let late = VolumeRecord { id: forgotten.id.next(), name: "late".into(), ..forgotten.clone() };
    let main = rows[1].iter().find(|(key, _)| key[0] == volume::VOLUME).expect("attached").1.clone();
    for record in [&forgotten, &late] {
        let row = VolumeRow { record: record.clone(), ..VolumeRow::decode(&main).unwrap() };
        rows[1].push((volume::key(record.id).into(), row.encode()));
    }
    let cluster = MemoryTable::new();
    cluster.commit(survey(&rows).plan(&plan()).unwrap().cluster_rows()).unwrap();
    let entries = Cluster::load(&cluster).unwrap_or_else(|_| panic!("its rows are right")).volumes;
    let deleting: Vec<_> = entries.values().map(|row| (row.record.name.as_str(), row.deleting)).collect();
    assert_eq!(deleting, [("main", false), ("forgotten", true), ("late", false)]);
}
