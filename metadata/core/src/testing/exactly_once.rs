//! A retry gets the first answer.

use super::{World, create, name, outcome};
use crate::api::Caller;
use holdfast_types::limits::ANSWERS_PER_SESSION_MAX;
use holdfast_types::{InodeId, Sequence, ShardId};
use holdfast_wire::metadata::{Envelope, MetadataError};
use holdfast_wire::namespace::{Mutation, NamespaceError, NewNode, Outcome};

const ROOT: InodeId = InodeId::ROOT;

#[test]
fn a_retried_mkdir_does_not_find_itself() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let mkdir = world.mutation(s, create(ROOT, "d", NewNode::Directory, false));
    let first = world.call_as(Caller::Client, mkdir.clone());
    assert!(matches!(outcome(first.clone()), Ok(Outcome::Created { new: true, .. })));
    let again = world.call_as(Caller::Client, mkdir.clone());
    assert_eq!((&again.result, again.applied), (&first.result, first.applied), "the answer and its place");
    // Also by another leader, and after a restart of everything.
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    world.crash(leader, 1);
    assert_eq!(world.call_as(Caller::Client, mkdir.clone()).result, first.result);
    world.start(leader);
    (1..=3).for_each(|id| world.crash(id, id));
    (1..=3).for_each(|id| world.start(id));
    assert_eq!(world.call_as(Caller::Client, mkdir.clone()).result, first.result);
    // An error is an answer like any other.
    let mut exists = world.mutation(s, create(ROOT, "d", NewNode::Directory, false));
    exists.answered_below = Sequence(1);
    let refused = Err(MetadataError::Namespace(NamespaceError::Exists));
    assert_eq!(outcome(world.call_as(Caller::Client, exists.clone())), refused);
    world.mutate(s, Mutation::RemoveDirectory { parent: ROOT, name: name("d") }).unwrap();
    // Confirmed answers are forgotten, and their requests are stale.
    assert_eq!(outcome(world.call_as(Caller::Client, exists)), Err(MetadataError::StaleSequence));
    assert_eq!(outcome(world.call_as(Caller::Client, mkdir)), Err(MetadataError::StaleSequence));
    world.check();
}

#[test]
fn a_retry_joins_the_request_in_flight() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let mkdir = world.mutation(s, create(ROOT, "d", NewNode::Directory, false));
    let asked: Vec<u64> = (0..3).map(|_| world.ask_as(leader, Caller::Client, mkdir.clone())).collect();
    world.run(5);
    let answers: Vec<_> = asked.into_iter().map(|request| world.take(request).unwrap()).collect();
    assert!(answers.iter().all(|answer| answer.result == answers[0].result && answer.result.is_ok()));
    assert_eq!(world.core(leader).counters().requests_joined, 2);
}

#[test]
fn what_relies_on_leases_of_another_term_is_not_applied() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let term = world.core(1).shards()[1].term;
    let of_term = |world: &mut World, term: u64| {
        let mkdir = world.mutation(s, create(ROOT, "d", NewNode::Directory, false));
        let request = world.ask_as(1, Caller::Client, Envelope { term: holdfast_types::Term(term), ..mkdir });
        world.run(2);
        world.take(request).unwrap().result
    };
    assert!(matches!(of_term(&mut world, term.0 + 1), Err(MetadataError::Unavailable { .. })));
    assert!(of_term(&mut world, term.0).is_ok());
}

#[test]
fn a_session_that_confirms_nothing_is_held_back() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let next = |world: &mut World, below: u64| {
        let close = world.mutation(s, Mutation::Close { inode: InodeId(999), keep_reading: false });
        Envelope { answered_below: Sequence(below), ..close }
    };
    for _ in 0..ANSWERS_PER_SESSION_MAX {
        let request = next(&mut world, 1);
        assert_eq!(outcome(world.call_as(Caller::Client, request)), Ok(Outcome::Done));
    }
    let request = next(&mut world, 1);
    assert_eq!(outcome(world.call_as(Caller::Client, request.clone())), Err(MetadataError::Backpressure));
    let confirmed = Envelope { answered_below: Sequence(100), ..request };
    assert_eq!(outcome(world.call_as(Caller::Client, confirmed)), Ok(Outcome::Done));
    world.check();
}

#[test]
fn deliberate_bugs_are_there_when_asked_for() {
    let run = |change: fn(&mut crate::Mutations)| {
        let mut world = World::new(3, 3, |config| change(&mut config.mutations));
        let (s, _) = world.attach();
        let mkdir =
            Envelope { answered_below: Sequence(1), ..world.mutation(s, create(ROOT, "d", NewNode::Directory, false)) };
        world.call_as(Caller::Client, mkdir.clone());
        let other =
            Envelope { answered_below: Sequence(1), ..world.mutation(s, create(ROOT, "e", NewNode::Directory, false)) };
        world.call_as(Caller::Client, other);
        outcome(world.call_as(Caller::Client, mkdir))
    };
    assert!(run(|_| {}).is_ok());
    let twice = Err(MetadataError::Namespace(NamespaceError::Exists));
    assert_eq!(run(|mutations| mutations.answer_forgotten = true), twice);
    assert_eq!(run(|mutations| mutations.answers_purged_early = true), twice);
    // Answered by a leader that can commit nothing any more.
    let mut world = World::new(3, 3, |config| config.mutations.answer_before_commit = true);
    let (s, _) = world.attach();
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    world.isolated.insert(leader);
    let mkdir = world.mutation(s, create(ROOT, "d", NewNode::Directory, false));
    let request = world.ask_as(leader, Caller::Client, mkdir);
    assert!(world.answer(request).unwrap().result.is_ok());
    // A read by a leader that was deposed without knowing.
    let mut world = World::new(3, 3, |config| config.mutations.read_index_skipped = true);
    let (s, _) = world.attach();
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    world.isolated.insert(leader);
    let query = holdfast_wire::metadata::Request::Query(holdfast_wire::namespace::Query::StatVolume);
    let request = world.ask_as(leader, Caller::Client, super::envelope(ShardId::VOLUMES, s, query));
    assert!(world.answer(request).unwrap().result.is_ok());
}
