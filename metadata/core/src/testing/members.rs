//! Servers come and go; and one that has lost its log is not the one it was.

use super::{World, address_of, create, envelope};
use crate::api::{Caller, Limits};
use holdfast_types::{InodeId, ServerId, SessionId, ShardId};
use holdfast_wire::admin::ServerPlace;
use holdfast_wire::metadata::{MetadataError, Request, Response};
use holdfast_wire::namespace::NewNode;

const ROOT: InodeId = InodeId::ROOT;
const CLUSTER: ShardId = ShardId::CLUSTER;

impl World {
    pub(super) fn admin(&mut self, request: Request) -> Result<Response, MetadataError> {
        self.call_as(Caller::Admin, envelope(CLUSTER, SessionId::NONE, request)).result
    }

    pub(super) fn join(&mut self, server: u64, replaces: Option<u64>) -> Result<Response, MetadataError> {
        let replaces = replaces.map(ServerId);
        self.admin(Request::AddServer { server: ServerId(server), address: address_of(server), replaces })
    }

    pub(super) fn place(&self, server: u64) -> Option<ServerPlace> {
        let leader = self.leader(CLUSTER)?;
        Some(self.core(leader).cluster.machine.servers.get(&ServerId(server))?.place)
    }

    /// Voters of both shards, as their leaders have applied them.
    fn voters(&self) -> [Vec<u64>; 2] {
        let of = |shard| match self.leader(shard) {
            Some(leader) if shard == CLUSTER => self.core(leader).cluster.members().voters,
            Some(leader) => self.core(leader).volumes.members().voters,
            None => Vec::new(),
        };
        [of(CLUSTER), of(ShardId::VOLUMES)]
    }

    fn until_place(&mut self, server: u64, place: ServerPlace) {
        self.until(&format!("{server} is {place:?}"), |world| world.place(server) == Some(place));
    }
}

#[test]
fn a_lost_server_is_replaced_and_the_new_one_counts() {
    let limits = Limits { persist_tables_after: 8, log_kept: 4, snapshot_part_bytes: 512, ..Limits::default() };
    for small in [false, true] {
        let mut world = World::new(3, 3, |config| {
            if small {
                config.limits = limits.clone();
            }
        });
        let (s, _) = world.attach();
        for n in 0..30 {
            world.create(s, ROOT, &format!("f{n}"), NewNode::File);
        }
        let lost = world.leader(ShardId::VOLUMES).unwrap();
        world.crash(lost, 1);
        world.join(4, Some(lost)).unwrap();
        assert!(matches!(world.join(5, None), Err(MetadataError::Invalid { .. })), "one at a time");
        // Nothing has come of it yet: the old majority goes on without the new server.
        world.create(s, ROOT, "meanwhile", NewNode::File);
        world.make_server(4, true);
        world.until_place(4, ServerPlace::Voter);
        let left: Vec<u64> = (1..=4).filter(|id| *id != lost).collect();
        world.run(20);
        assert_eq!(world.voters(), [left.clone(), left.clone()]);
        assert_eq!(world.place(lost), Some(ServerPlace::Gone));
        assert!(world.core(4).counters().snapshots_installed >= 2, "it began with a snapshot of each shard");
        // One of the first goes, too: the new one is needed for every majority, and has everything.
        world.crash(left[0], 2);
        let late = world.create(s, ROOT, "late", NewNode::File);
        assert_eq!(world.attributes(s, late.inode).links, 1);
        world.crash(4, 3);
        world.start(4);
        world.create(s, ROOT, "later", NewNode::File);
        // The one that was lost comes back: nobody listens to it, and it learns why.
        world.start(left[0]);
        world.start(lost);
        world.until("it is told", |world| world.servers[&lost].stopped.is_some());
        assert!(world.servers[&lost].stopped.as_ref().unwrap().contains("removed"));
        assert!(world.join(lost, None).is_err(), "an id is used once");
        world.run(20);
        world.check();
    }
}

#[test]
fn servers_are_added_and_taken_out_the_leader_too() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    for id in [4, 5] {
        world.join(id, None).unwrap();
        world.make_server(id, true);
        world.until_place(id, ServerPlace::Voter);
        world.create(s, ROOT, &format!("with{id}"), NewNode::File);
    }
    assert_eq!(world.voters(), [vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5]]);
    // Two of five may stop now.
    (1..=2).for_each(|id| world.crash(id, id));
    world.create(s, ROOT, "three of five", NewNode::File);
    (1..=2).for_each(|id| world.start(id));
    world.run(60);
    for _ in 0..3 {
        let leader = world.leader(CLUSTER).unwrap();
        world.admin(Request::RemoveServer { server: ServerId(leader) }).unwrap();
        world.until_place(leader, ServerPlace::Gone);
        world.create(s, ROOT, &format!("without{leader}"), NewNode::File);
        world.until("it is told", |world| world.servers[&leader].stopped.is_some());
        assert!(world.servers[&leader].stopped.as_ref().unwrap().contains("removed"));
        world.servers.remove(&leader);
    }
    assert_eq!(world.voters()[0].len(), 2);
    assert_eq!(world.voters()[0], world.voters()[1]);
    world.check();
}

#[test]
fn nobody_leaves_when_no_majority_would_be_heard() {
    let mut world = World::formed(3, 3);
    let leader = world.leader(CLUSTER).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    world.crash(others[0], 1);
    world.run(60);
    let refused = world.admin(Request::RemoveServer { server: ServerId(others[1]) });
    assert!(matches!(refused, Err(MetadataError::Invalid { reason }) if reason.contains("majority")));
    let refused = world.join(4, Some(leader));
    assert!(refused.is_ok(), "a new one in its place makes two of three");
    let client = world.call(CLUSTER, SessionId::NONE, Request::RemoveServer { server: ServerId(1) });
    assert_eq!(client, Err(MetadataError::Forbidden));
}

#[test]
fn a_server_whose_log_is_lost_is_not_the_one_it_was() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    world.create(s, ROOT, "kept", NewNode::File);
    world.run(40);
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    // All it has is wiped, and it is set up anew under its old id. The one that is left with it lacks what was acknowledged.
    world.crash(others[0], 1);
    world.create(s, ROOT, "acknowledged by two", NewNode::File);
    world.crash(leader, 2);
    world.make_server(leader, false);
    world.start(others[0]);
    world.isolated.insert(others[1]);
    world.until("it is told", |world| world.servers[&leader].stopped.is_some());
    assert!(world.servers[&leader].stopped.as_ref().unwrap().contains("lost"));
    world.run(100);
    assert_eq!(world.leader(ShardId::VOLUMES), None, "no majority of those who remember");
    world.isolated.clear();
    // Those two are a majority, and they have it.
    let again = world.mutation(s, create(ROOT, "acknowledged by two", NewNode::File, false));
    let answer = world.call_as(Caller::Client, again).result;
    assert!(matches!(answer, Err(MetadataError::Namespace(_))), "{answer:?}: it exists");
    world.check();
}
