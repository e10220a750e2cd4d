//! Lives of instances, as orchestrators count them, and what they note down on volumes.

use super::sessions::{attach_request, renew};
use super::{World, envelope};
use crate::api::Caller;
use holdfast_types::{InstanceGeneration, SessionId, ShardId};
use holdfast_wire::metadata::{ClientRecord, MetadataError, Request, Response};
use holdfast_wire::namespace::{LABEL_VALUE_BYTES_MAX, Labels, Limits, VolumeFacts};
use std::time::Duration;

const CLUSTER: ShardId = ShardId::CLUSTER;
const VOLUMES: ShardId = ShardId::VOLUMES;

fn as_admin(world: &mut World, shard: ShardId, request: Request) -> Result<Response, MetadataError> {
    world.call_as(Caller::Admin, envelope(shard, SessionId::NONE, request)).result
}

#[test]
fn a_later_generation_of_an_instance_takes_its_place_at_once() {
    let mut world = World::formed(3, 3);
    let client = |generation| instance("db-0", generation);
    let (first, volume) = world.open(client(4));
    world.call(VOLUMES, first, attach_request(&volume, client(4))).unwrap();
    let begin = world.now;
    let (second, volume) = world.open(client(5));
    let attached = world.call(VOLUMES, second, attach_request(&volume, client(5)));
    assert!(matches!(attached, Ok(Response::Attached { caching: true, .. })));
    assert!(world.now.since(begin) < Duration::from_secs(3), "no timeout to wait for");
    assert!(matches!(renew(&mut world, first, 0), Err(MetadataError::SessionEnded { .. })));
    let late = Request::OpenSession { volume: "main".into(), client: client(4), read_only: false, nonce: 99 };
    let refused = world.call(ShardId::CLUSTER, SessionId::NONE, late);
    assert_eq!(refused, Err(MetadataError::Superseded { by: InstanceGeneration(5) }));
}

#[test]
fn a_lesser_generation_is_not_let_in_when_the_greater_one_has_gone() {
    let mut world = World::formed(3, 3);
    let (fifth, volume) = world.open(instance("db-0", 5));
    world.call(VOLUMES, fifth, attach_request(&volume, instance("db-0", 5))).unwrap();
    world.call(VOLUMES, fifth, Request::Detach).unwrap();
    let (fourth, volume) = world.open(instance("db-0", 4));
    let refused = world.call(VOLUMES, fourth, attach_request(&volume, instance("db-0", 4)));
    assert_eq!(refused, Err(MetadataError::Superseded { by: InstanceGeneration(5) }));
    for (name, generation) in [("db-0", 5), ("db-1", 1)] {
        let (session, volume) = world.open(instance(name, generation));
        world.call(VOLUMES, session, attach_request(&volume, instance(name, generation))).unwrap();
        world.call(VOLUMES, session, Request::Detach).unwrap();
    }
}

#[test]
fn a_raised_generation_fences_whoever_is_left_and_lets_nobody_back_in() {
    let mut world = World::formed(3, 3);
    let (first, volume) = world.open(instance("db-0", 4));
    world.call(VOLUMES, first, attach_request(&volume, instance("db-0", 4))).unwrap();
    let (other, volume) = world.open(instance("db-1", 1));
    let leader = world.leader(VOLUMES).unwrap();
    let request = envelope(VOLUMES, other, attach_request(&volume, instance("db-1", 1)));
    let waiting = world.ask_until(leader, Caller::Client, request, Duration::from_secs(60));
    world.run(4);
    world.call(VOLUMES, first, Request::StoppedCaching { event: 1, open: vec![] }).unwrap();
    world.until("attached", |world| world.answer(waiting).is_some());
    let raise = |generation| Request::RaiseGeneration {
        volume: volume.id,
        instance: "db-0".into(),
        generation: InstanceGeneration(generation),
    };
    for generation in [5, 5, 3] {
        assert_eq!(as_admin(&mut world, VOLUMES, raise(generation)), Ok(Response::Done));
        let leader = world.leader(ShardId::CLUSTER).unwrap();
        assert!(!world.core(leader).map().sessions.contains_key(&first), "it is fenced when that is answered");
    }
    assert!(matches!(renew(&mut world, first, 0), Err(MetadataError::SessionEnded { .. })));
    assert!(renew(&mut world, other, 0).is_ok(), "another instance is left alone");
    let (late, volume) = world.open(instance("db-0", 4));
    let refused = world.call(VOLUMES, late, attach_request(&volume, instance("db-0", 4)));
    assert_eq!(refused, Err(MetadataError::Superseded { by: InstanceGeneration(5) }));
}

#[test]
fn labels_are_changed_by_whoever_has_seen_the_last_ones() {
    let mut world = World::formed(3, 3);
    let labels = |value: &str| Labels::from([("owner".to_owned(), value.to_owned())]);
    let create =
        |name: &str| Request::CreateVolume { name: name.into(), limits: Limits::default(), labels: labels("a") };
    for name in ["v2", "v1"] {
        as_admin(&mut world, CLUSTER, create(name)).unwrap();
    }
    let label = |version, value: &str| Request::LabelVolume { name: "v1".into(), version, labels: labels(value) };
    let facts = |answer| match answer {
        Ok(Response::VolumeFacts(facts)) => facts,
        other => panic!("{other:?}"),
    };
    let told = facts(as_admin(&mut world, CLUSTER, label(0, "b")));
    assert_eq!((told[0].labels_version, &told[0].labels), (1, &labels("b")));
    let told = facts(as_admin(&mut world, CLUSTER, label(0, "c")));
    assert_eq!((told[0].labels_version, &told[0].labels), (1, &labels("b")), "somebody else was first");
    let after = |after: &str, limit| Request::DescribeVolumes { after: after.into(), limit };
    let names = |facts: Vec<VolumeFacts>| facts.into_iter().map(|facts| facts.record.name).collect::<Vec<_>>();
    assert_eq!(names(facts(as_admin(&mut world, CLUSTER, after("", 2)))), ["main", "v1"]);
    assert_eq!(names(facts(as_admin(&mut world, CLUSTER, after("v1", 2)))), ["v2"]);
    assert!(facts(as_admin(&mut world, CLUSTER, after("v2", 2))).is_empty());
    let none = as_admin(&mut world, CLUSTER, Request::DescribeVolume { name: "v3".into() });
    assert_eq!(none, Err(MetadataError::NoVolume { name: "v3".into() }));
    let large = Labels::from([("owner".to_owned(), "x".repeat(LABEL_VALUE_BYTES_MAX + 1))]);
    let refused = Request::LabelVolume { name: "v1".into(), version: 1, labels: large };
    assert!(matches!(as_admin(&mut world, CLUSTER, refused), Err(MetadataError::Invalid { .. })));
}

fn instance(name: &str, generation: u64) -> ClientRecord {
    ClientRecord {
        instance: name.into(),
        instance_generation: InstanceGeneration(generation),
        ..ClientRecord::default()
    }
}
