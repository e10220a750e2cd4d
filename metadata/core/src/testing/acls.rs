//! Access control lists and modes follow each other; files without a name; what a new inode inherits.

use super::{World, create, name};
use bytes::Bytes;
use holdfast_types::{InodeId, SessionId};
use holdfast_wire::acl::{ACCESS, DEFAULT};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use holdfast_wire::namespace::{Mutation, NamespaceError, NewNode, Outcome, Query, SetAttributes};

const ROOT: InodeId = InodeId::ROOT;

/// A list of `(tag, permissions, id)`, as Linux writes it.
fn list(entries: &[(u16, u16, u32)]) -> Bytes {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes.into()
}

/// User 1000 may do `named`, the mask allows `mask`.
fn naming(named: u16, mask: u16) -> Bytes {
    list(&[(1, 7, 0), (2, named, 1000), (4, 5, 0), (0x10, mask, 0), (0x20, 4, 0)])
}

fn xattr(world: &mut World, session: SessionId, inode: InodeId, name: &'static [u8]) -> Option<Bytes> {
    let name = Bytes::from_static(name);
    match world.call(holdfast_types::ShardId::VOLUMES, session, Request::Query(Query::GetXattr { inode, name })) {
        Ok(Response::Outcome(Outcome::Bytes(bytes))) => Some(bytes),
        Err(MetadataError::Namespace(NamespaceError::NoAttribute)) => None,
        other => panic!("{other:?}"),
    }
}

fn set_acl(world: &mut World, session: SessionId, inode: InodeId, default: bool, value: Option<Bytes>) -> u16 {
    match world.mutate(session, Mutation::SetAcl { inode, default, value, clear_set_group_id: false }) {
        Ok(Outcome::Attributes { attributes, .. }) => attributes.mode,
        other => panic!("{other:?}"),
    }
}

fn chmod(world: &mut World, session: SessionId, inode: InodeId, mode: u16) {
    let set = SetAttributes { mode: Some(mode), ..SetAttributes::default() };
    world.mutate(session, Mutation::SetAttributes { inode, set }).unwrap();
}

#[test]
fn modes_and_access_lists_follow_each_other() {
    let mut world = World::formed(1, 1);
    let (s, _) = world.attach();
    let f = world.create(s, ROOT, "f", NewNode::File).inode;
    assert_eq!(set_acl(&mut world, s, f, false, Some(naming(6, 3))), 0o734);
    assert_eq!(xattr(&mut world, s, f, ACCESS), Some(naming(6, 3)));
    world.check();
    chmod(&mut world, s, f, 0o4650);
    let changed = list(&[(1, 6, 0), (2, 6, 1000), (4, 5, 0), (0x10, 5, 0), (0x20, 0, 0)]);
    assert_eq!(xattr(&mut world, s, f, ACCESS), Some(changed), "the group bits are the mask's");
    world.check();
    // A list that says no more than a mode is one.
    assert_eq!(set_acl(&mut world, s, f, false, Some(list(&[(1, 6, 0), (4, 4, 0), (0x20, 0, 0)]))), 0o4640);
    assert_eq!(xattr(&mut world, s, f, ACCESS), None);
    let again = Mutation::SetAcl { inode: f, default: false, value: None, clear_set_group_id: false };
    assert_eq!(world.mutate(s, again), Err(NamespaceError::NoAttribute.into()));
    for (default, value) in [(true, naming(7, 7)), (false, Bytes::from_static(b"odd"))] {
        let refused = Mutation::SetAcl { inode: f, default, value: Some(value), clear_set_group_id: false };
        assert_eq!(world.mutate(s, refused), Err(NamespaceError::Invalid.into()));
    }
    chmod(&mut world, s, f, 0o2770);
    let keep = Mutation::SetAcl { inode: f, default: false, value: Some(naming(7, 7)), clear_set_group_id: true };
    let Ok(Outcome::Attributes { attributes, .. }) = world.mutate(s, keep) else { panic!() };
    assert_eq!(attributes.mode, 0o774, "the set-group-id bit is gone");
    world.check();
}

#[test]
fn what_is_made_inherits_the_default_list_and_else_obeys_the_mask() {
    let mut world = World::formed(1, 1);
    let (s, _) = world.attach();
    let d = world.create(s, ROOT, "d", NewNode::Directory).inode;
    let masked = |text: &str, node: NewNode| match create(d, text, node, false) {
        Mutation::Create { parent, name, node, uid, gid, exclusive, open, .. } => {
            Mutation::Create { parent, name, node, mode: 0o666, umask: 0o077, uid, gid, exclusive, open }
        }
        other => other,
    };
    let made = |world: &mut World, mutation| match world.mutate(s, mutation) {
        Ok(Outcome::Created { attributes, inherited, .. }) => (attributes.inode, attributes.mode, inherited),
        other => panic!("{other:?}"),
    };
    assert_eq!(made(&mut world, masked("plain", NewNode::File)).1, 0o600);
    assert_eq!(set_acl(&mut world, s, d, true, Some(naming(7, 6))), 0o755, "the mode is another list's");
    let (f, mode, inherited) = made(&mut world, masked("f", NewNode::File));
    assert_eq!((mode, inherited), (0o664, true), "the mask is not asked");
    let access = list(&[(1, 6, 0), (2, 7, 1000), (4, 5, 0), (0x10, 6, 0), (0x20, 4, 0)]);
    assert_eq!(xattr(&mut world, s, f, ACCESS), Some(access));
    assert_eq!(xattr(&mut world, s, f, DEFAULT), None);
    let (sub, ..) = made(&mut world, masked("sub", NewNode::Directory));
    assert_eq!(xattr(&mut world, s, sub, DEFAULT), Some(naming(7, 6)));
    let link = made(&mut world, masked("link", NewNode::Symlink("f".into())));
    assert_eq!((link.1, link.2), (0o777, false));
    world.check();
    set_acl(&mut world, s, d, true, None);
    assert_eq!(made(&mut world, masked("after", NewNode::File)).1, 0o600);
    world.check();
}

#[test]
fn a_file_without_a_name_is_an_orphan_until_it_has_one() {
    let mut world = World::formed(1, 1);
    let (s, _) = world.attach();
    let unnamed = Mutation::CreateUnnamed { parent: ROOT, mode: 0o666, umask: 0o022, uid: 5, gid: 6 };
    let Ok(Outcome::Created { attributes: made, .. }) = world.mutate(s, unnamed.clone()) else { panic!() };
    assert_eq!((made.links, made.mode, made.uid), (0, 0o644, 5));
    world.check();
    let link = |inode| Mutation::Link { inode, parent: ROOT, name: name("f") };
    let Ok(Outcome::Attributes { attributes, .. }) = world.mutate(s, link(made.inode)) else { panic!() };
    assert_eq!(attributes.links, 1);
    world.check();
    // With its last name gone it is an orphan like any other: one that had a name gets no other.
    let unlink = Mutation::Unlink { parent: ROOT, name: name("f"), open: Some(made.inode) };
    assert!(matches!(world.mutate(s, unlink), Ok(Outcome::Removed { orphan: true, .. })));
    assert_eq!(world.mutate(s, link(made.inode)), Err(NamespaceError::NotFound.into()));
    world.mutate(s, Mutation::Close { inode: made.inode, keep_reading: false }).unwrap();
    let Ok(Outcome::Created { attributes: other, .. }) = world.mutate(s, unnamed) else { panic!() };
    world.mutate(s, Mutation::Close { inode: other.inode, keep_reading: false }).unwrap();
    assert_eq!(world.mutate(s, link(other.inode)), Err(NamespaceError::Stale.into()));
    world.check();
}
