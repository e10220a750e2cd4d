//! Disks of metadata servers that are nearly full.

use super::{World, create, name};
use crate::api::{Input, ticks};
use bytes::Bytes;
use holdfast_types::{InodeId, SessionId, ShardId};
use holdfast_wire::metadata::MetadataError;
use holdfast_wire::namespace::{Mutation, NamespaceError, NewNode, SetAttributes, XattrMode};
use std::time::Duration;

const ROOT: InodeId = InodeId::ROOT;

/// Long enough that it is known, or known to be over.
fn a_while(world: &mut World) {
    world.run(ticks(Duration::from_secs(6)));
}

fn refused(world: &mut World, session: SessionId, mutation: Mutation) -> bool {
    match world.mutate(session, mutation) {
        Ok(_) => false,
        Err(MetadataError::Namespace(NamespaceError::NoSpace)) => true,
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn nothing_that_grows_is_made_while_a_majority_has_little_room_and_all_else_goes_on() {
    let mut world = World::formed(3, 3);
    let (s, _) = world.attach();
    let file = |name: &str| create(ROOT, name, NewNode::File, false);
    let a = world.create(s, ROOT, "a", NewNode::File).inode;
    let leader = world.leader(ShardId::VOLUMES).expect("one leads");
    let follower = (1..=3).find(|id| *id != leader).expect("two follow");
    world.step(follower, Input::Room { low: true });
    a_while(&mut world);
    assert!(!refused(&mut world, s, file("b")), "a minority is left behind");
    world.step(leader, Input::Room { low: true });
    a_while(&mut world);
    let xattr = |value: &'static [u8]| Mutation::SetXattr {
        inode: a,
        name: Bytes::from_static(b"user.x"),
        value: Bytes::from_static(value),
        mode: XattrMode::Set,
    };
    assert!(refused(&mut world, s, file("c")) && refused(&mut world, s, xattr(b"1")));
    let link = Mutation::Link { inode: a, parent: ROOT, name: name("l") };
    assert!(refused(&mut world, s, link.clone()));
    // What is there may be opened as before, changed, and go.
    let Mutation::Create { parent, name: a_name, node, mode, umask, uid, gid, open, .. } = file("a") else {
        unreachable!()
    };
    let again = Mutation::Create { parent, name: a_name, node, mode, umask, uid, gid, exclusive: false, open };
    assert!(!refused(&mut world, s, again));
    let shorter = SetAttributes { size: Some(0), ..SetAttributes::default() };
    assert!(!refused(&mut world, s, Mutation::SetAttributes { inode: a, set: shorter }));
    assert!(!refused(&mut world, s, Mutation::Unlink { parent: ROOT, name: name("b"), open: None }));
    world.check();
    // Another leader goes by the log, and by what it hears itself.
    world.crash(leader, 1);
    world.until("another one leads", |world| world.leader(ShardId::VOLUMES).is_some_and(|other| other != leader));
    assert!(refused(&mut world, s, file("c")));
    world.step(follower, Input::Room { low: false });
    a_while(&mut world);
    assert!(!refused(&mut world, s, file("c")) && !refused(&mut world, s, link));
    world.check();
}
