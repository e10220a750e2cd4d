//! Promises of the namespace, on one server.

use super::{World, create, name};
use holdfast_types::prng::Prng;
use holdfast_types::size::MIB;
use holdfast_types::{Generation, InodeId, SessionId, ShardId, Timestamp};
use holdfast_wire::chunk::ChunkOp;
use holdfast_wire::metadata::MetadataError;
use holdfast_wire::namespace::{
    ACCESS_TIMES_MAX, AccessTime, Attributes, FileKind, Mutation, NamespaceError, NewNode, Outcome, Query, RenameMode,
    SetAttributes, XattrMode,
};

const ROOT: InodeId = InodeId::ROOT;

fn refused<T: std::fmt::Debug>(result: Result<T, MetadataError>) -> NamespaceError {
    match result {
        Err(MetadataError::Namespace(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

fn rename(from: (InodeId, &str), to: (InodeId, &str), mode: RenameMode) -> Mutation {
    Mutation::Rename {
        from_parent: from.0,
        from_name: name(from.1),
        to_parent: to.0,
        to_name: name(to.1),
        mode,
        open: None,
    }
}

fn unlink(parent: InodeId, text: &str, open: Option<InodeId>) -> Mutation {
    Mutation::Unlink { parent, name: name(text), open }
}

fn truncate(inode: InodeId, size: u64) -> Mutation {
    Mutation::SetAttributes { inode, set: SetAttributes { size: Some(size), ..SetAttributes::default() } }
}

fn publish(inode: InodeId, generation: u64, size: u64, release: bool) -> Mutation {
    let mtime = Timestamp { seconds: 9, nanos: 9 };
    Mutation::Publish {
        inode,
        generation: Generation(generation),
        size,
        mtime,
        release,
        clear_set_ids: false,
        sparse: false,
    }
}

#[test]
fn one_server_keeps_a_tree_across_a_restart() {
    let mut world = World::formed(1, 3);
    let (session, caching) = world.attach();
    assert!(caching, "it is alone");
    let d = world.create(session, ROOT, "d", NewNode::Directory);
    let f = world.create(session, d.inode, "f", NewNode::File);
    assert_eq!((d.links, f.links, f.kind), (2, 1, FileKind::File));
    assert_eq!(world.attributes(session, ROOT).links, 3);
    let link = Mutation::Link { inode: f.inode, parent: ROOT, name: name("g") };
    world.mutate(session, link).unwrap();
    world.crash(1, 5);
    world.start(1);
    world.until("it leads again", |world| world.leader(ShardId::VOLUMES).is_some());
    assert_eq!(world.attributes(session, f.inode).links, 2);
    let listed = world.query(session, Query::ReadDirectory { inode: ROOT, after: 0, limit: 10, plus: true }).unwrap();
    let Outcome::Directory { entries, end, parent, .. } = listed else { panic!() };
    let names: Vec<_> = entries.iter().map(|entry| (entry.name.clone(), entry.cookie)).collect();
    assert_eq!((names, end, parent), (vec![(name("d"), 3), (name("g"), 4)], true, ROOT));
    world.check();
}

#[test]
fn renaming_follows_posix() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let a = world.create(s, ROOT, "a", NewNode::Directory).inode;
    let b = world.create(s, a, "b", NewNode::Directory).inode;
    let f = world.create(s, ROOT, "f", NewNode::File).inode;
    let replace = RenameMode::Replace;
    assert_eq!(refused(world.mutate(s, rename((ROOT, "a"), (b, "x"), replace))), NamespaceError::Invalid);
    assert_eq!(refused(world.mutate(s, rename((ROOT, "a"), (a, "x"), replace))), NamespaceError::Invalid);
    assert_eq!(refused(world.mutate(s, rename((ROOT, "f"), (ROOT, "a"), replace))), NamespaceError::IsDirectory);
    assert_eq!(refused(world.mutate(s, rename((ROOT, "a"), (ROOT, "f"), replace))), NamespaceError::NotDirectory);
    assert_eq!(refused(world.mutate(s, rename((ROOT, "f"), (a, "b"), RenameMode::NoReplace))), NamespaceError::Exists);
    assert_eq!(refused(world.mutate(s, rename((ROOT, "f"), (a, "c"), RenameMode::Exchange))), NamespaceError::NotFound);
    let c = world.create(s, ROOT, "c", NewNode::Directory).inode;
    assert_eq!(refused(world.mutate(s, rename((ROOT, "c"), (ROOT, "a"), replace))), NamespaceError::NotEmpty);
    // A directory over an empty one in another directory.
    world.mutate(s, rename((ROOT, "c"), (a, "b"), replace)).unwrap();
    assert_eq!(
        (world.attributes(s, ROOT).links, world.attributes(s, a).links, world.attributes(s, c).parent),
        (3, 3, a)
    );
    assert_eq!(refused(world.query(s, Query::GetAttributes { inode: b })), NamespaceError::Stale);
    // Exchange across directories, of a file and a directory.
    world.mutate(s, rename((ROOT, "f"), (a, "b"), RenameMode::Exchange)).unwrap();
    assert_eq!(
        (world.attributes(s, ROOT).links, world.attributes(s, a).links, world.attributes(s, c).parent),
        (4, 2, ROOT)
    );
    // Two names of one file: nothing happens.
    world.mutate(s, Mutation::Link { inode: f, parent: ROOT, name: name("g") }).unwrap();
    world.mutate(s, rename((ROOT, "g"), (a, "b"), replace)).unwrap();
    assert_eq!(world.attributes(s, f).links, 2);
    world.check();
}

#[test]
fn a_file_unlinked_while_open_stays_until_its_last_close() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let f = world.create(s, ROOT, "f", NewNode::File).inode;
    world
        .mutate(s, Mutation::Reserve { inode: f, generation: Generation(1), bound: 10 * MIB, least: 10 * MIB })
        .unwrap();
    world.mutate(s, publish(f, 1, 9 * MIB, true)).unwrap();
    let removed = world.mutate(s, unlink(ROOT, "f", Some(f))).unwrap();
    assert!(matches!(removed, Outcome::Removed { orphan: true, .. }));
    assert_eq!((world.attributes(s, f).links, world.attributes(s, f).size), (0, 9 * MIB));
    world.check();
    assert!(world.chunks.is_empty());
    world.mutate(s, Mutation::Close { inode: f, keep_reading: false }).unwrap();
    assert_eq!(refused(world.query(s, Query::GetAttributes { inode: f })), NamespaceError::Stale);
    world.until("three chunks' groups are purged", |world| world.chunks.len() == 3);
    world.run(5);
    assert_eq!(world.chunks.len(), 3, "once each");
    assert!(world.chunks.iter().all(|request| matches!(request.op, ChunkOp::Delete { generation: Generation(1), .. })));
    world.check();
}

#[test]
fn a_shorter_file_is_cut_before_anybody_writes_there() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let f = world.create(s, ROOT, "f", NewNode::File).inode;
    world
        .mutate(s, Mutation::Reserve { inode: f, generation: Generation(1), bound: 10 * MIB, least: 10 * MIB })
        .unwrap();
    assert_eq!(refused(world.mutate(s, publish(f, 1, 11 * MIB, false))), NamespaceError::Stale, "beyond the bound");
    world.mutate(s, publish(f, 1, 10 * MIB, true)).unwrap();
    world.chunks_stuck = true;
    let Ok(Outcome::Attributes { attributes, .. }) = world.mutate(s, truncate(f, 5 * MIB)) else { panic!() };
    assert_eq!((attributes.size, attributes.trim_from, attributes.generation), (5 * MIB, Some(5 * MIB), Generation(1)));
    assert_eq!(attributes.cuts, 1);
    let leader = world.leader(ShardId::VOLUMES).unwrap();
    let reserve =
        world.mutation(s, Mutation::Reserve { inode: f, generation: Generation(1), bound: 6 * MIB, least: 6 * MIB });
    let request = world.ask_as(leader, crate::Caller::Client, reserve.clone());
    world.run(20);
    assert!(world.answer(request).is_none(), "it waits for the cut");
    world.check();
    // The requests got lost; a new leader's are answered.
    world.crash(1, 1);
    world.chunks_stuck = false;
    world.start(1);
    world.until("it leads", |world| world.leader(ShardId::VOLUMES).is_some());
    let answer = world.call_as(crate::Caller::Client, reserve);
    let Ok(Outcome::Attributes { attributes, .. }) = super::outcome(answer) else { panic!() };
    assert_eq!((attributes.trim_from, attributes.size_bound), (None, 6 * MIB));
    assert!(
        world
            .chunks
            .iter()
            .any(|request| matches!(request.op, ChunkOp::Cut { length, .. } if u64::from(length) == MIB))
    );
    assert!(
        world.chunks.iter().all(|request| request.session == SessionId::SERVICE && request.floor == request.sequence)
    );
    world.check();
}

#[test]
fn a_cut_that_comes_while_the_last_is_reported_is_made_too() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let f = world.create(s, ROOT, "f", NewNode::File).inode;
    // Writes of the log take a random while, so that the second cut meets the first's report at every moment.
    let mut prng = Prng::new(7);
    world.chaos = Some(Prng::new(8));
    for _ in 0..100 {
        world.mutate(s, truncate(f, 10 * MIB)).unwrap();
        let leader = world.leader(ShardId::VOLUMES).unwrap();
        let asked: Vec<u64> = [8 * MIB, 6 * MIB]
            .into_iter()
            .map(|size| {
                let request = world.mutation(s, truncate(f, size));
                let request = world.ask_as(leader, crate::Caller::Client, request);
                world.run(prng.below(4));
                request
            })
            .collect();
        world.until("both are answered", |world| asked.iter().all(|request| world.answer(*request).is_some()));
        world.until("nothing is left to be cut", |world| world.attributes(s, f).trim_from.is_none());
    }
    world.check();
}

#[test]
fn truncation_to_nothing_starts_a_new_content() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let Ok(Outcome::Created { attributes: f, .. }) = world.mutate(s, create(ROOT, "f", NewNode::File, true)) else {
        panic!()
    };
    assert_eq!(f.size_bound, 4 * MIB, "the first write needs no permission");
    world.mutate(s, publish(f.inode, 1, 100, true)).unwrap();
    let Ok(Outcome::Attributes { attributes, .. }) = world.mutate(s, truncate(f.inode, 0)) else { panic!() };
    assert_eq!((attributes.size, attributes.generation, attributes.trim_from), (0, Generation(2), None));
    // Data published for the old content change nothing.
    let Ok(Outcome::Attributes { attributes, .. }) = world.mutate(s, publish(f.inode, 1, 100, false)) else { panic!() };
    assert_eq!((attributes.size, attributes.cuts), (0, 1));
    let Ok(Outcome::Attributes { attributes, .. }) = world.mutate(s, truncate(f.inode, 50)) else { panic!() };
    assert_eq!((attributes.size, attributes.cuts), (50, 1), "longer is no cut");
    assert!(attributes.sparse, "longer without being written");
    world.until("one chunk is purged", |world| world.chunks.len() == 1);
    assert!(world.attributes(s, f.inode).ctime >= f.ctime);
    world.check();
}

#[test]
fn a_read_sets_the_access_time_unless_the_file_was_changed_or_read_since() {
    let mut world = World::formed(1, 3);
    let (session, _) = world.attach();
    let f = world.create(session, ROOT, "f", NewNode::File);
    let g = world.create(session, ROOT, "g", NewNode::File);
    let later = |seconds| Timestamp { seconds: f.ctime.seconds + seconds, nanos: 0 };
    let read = |inode, seconds, ctime| AccessTime { inode, atime: later(seconds), ctime };
    let tell = |world: &mut World, times| world.mutate(session, Mutation::SetAccessTimes { times });
    let gone = InodeId(1 << 40);
    let times = vec![read(gone, 5, f.ctime), read(f.inode, 5, f.ctime), read(g.inode, 5, later(1))];
    assert_eq!(tell(&mut world, times), Ok(Outcome::Done));
    let told = world.attributes(session, f.inode);
    assert_eq!(told, Attributes { atime: later(5), ..f.clone() }, "and nothing else");
    assert_eq!(world.attributes(session, g.inode), g, "it was changed since, as far as the reader's word goes");
    assert_eq!(tell(&mut world, vec![read(f.inode, 4, f.ctime)]), Ok(Outcome::Done));
    assert_eq!(world.attributes(session, f.inode).atime, later(5), "an older read");
    let many = vec![read(f.inode, 6, f.ctime); ACCESS_TIMES_MAX + 1];
    assert_eq!(refused(tell(&mut world, many)), NamespaceError::Invalid);
}

#[test]
fn set_group_id_directories_pass_their_group_on() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let d = world.create(s, ROOT, "d", NewNode::Directory).inode;
    let set = SetAttributes { mode: Some(0o2775), gid: Some(77), ..SetAttributes::default() };
    world.mutate(s, Mutation::SetAttributes { inode: d, set }).unwrap();
    let sub = world.create(s, d, "sub", NewNode::Directory);
    let file = world.create(s, d, "file", NewNode::File);
    assert_eq!((sub.gid, sub.mode, file.gid, file.mode), (77, 0o2755, 77, 0o755));
    let set = SetAttributes { mode: Some(0o6755), ..SetAttributes::default() };
    world.mutate(s, Mutation::SetAttributes { inode: file.inode, set }).unwrap();
    let set = SetAttributes { uid: Some(5), clear_set_ids: true, ..SetAttributes::default() };
    world.mutate(s, Mutation::SetAttributes { inode: file.inode, set }).unwrap();
    assert_eq!(world.attributes(s, file.inode).mode, 0o755);
}

#[test]
fn extended_attributes_and_symlinks_come_back_as_they_were() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    let f = world.create(s, ROOT, "f", NewNode::File).inode;
    let set =
        |value: &'static str, mode| Mutation::SetXattr { inode: f, name: "user.a".into(), value: value.into(), mode };
    assert_eq!(refused(world.mutate(s, set("1", XattrMode::Replace))), NamespaceError::NoAttribute);
    world.mutate(s, set("1", XattrMode::Create)).unwrap();
    assert_eq!(refused(world.mutate(s, set("2", XattrMode::Create))), NamespaceError::Exists);
    world.mutate(s, set("2", XattrMode::Set)).unwrap();
    assert_eq!(world.query(s, Query::GetXattr { inode: f, name: "user.a".into() }), Ok(Outcome::Bytes("2".into())));
    assert_eq!(world.query(s, Query::ListXattrs { inode: f }), Ok(Outcome::Names(vec!["user.a".into()])));
    world.mutate(s, Mutation::RemoveXattr { inode: f, name: "user.a".into() }).unwrap();
    assert_eq!(world.query(s, Query::ListXattrs { inode: f }), Ok(Outcome::Names(vec![])));
    let l = world.create(s, ROOT, "l", NewNode::Symlink("a/b".into()));
    assert_eq!((l.size, l.mode), (3, 0o777));
    assert_eq!(world.query(s, Query::ReadLink { inode: l.inode }), Ok(Outcome::Bytes("a/b".into())));
    assert_eq!(refused(world.query(s, Query::ReadLink { inode: f })), NamespaceError::Invalid);
    world.check();
}

#[test]
fn a_listing_goes_on_where_it_stopped_whatever_happens_meanwhile() {
    let mut world = World::formed(1, 3);
    let (s, _) = world.attach();
    for n in 0..10 {
        world.create(s, ROOT, &format!("f{n}"), NewNode::File);
    }
    let page = |world: &mut World, after| {
        let Ok(Outcome::Directory { entries, end, .. }) =
            world.query(s, Query::ReadDirectory { inode: ROOT, after, limit: 4, plus: false })
        else {
            panic!()
        };
        (entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>(), entries.last().unwrap().cookie, end)
    };
    let (first, after, end) = page(&mut world, 0);
    assert_eq!((first.len(), end), (4, false));
    world.mutate(s, unlink(ROOT, "f3", None)).unwrap();
    world.mutate(s, unlink(ROOT, "f4", None)).unwrap();
    world.create(s, ROOT, "f4", NewNode::File);
    world.mutate(s, rename((ROOT, "f0"), (ROOT, "f9"), RenameMode::Replace)).unwrap();
    let (second, after, _) = page(&mut world, after);
    assert_eq!(second, ["f5", "f6", "f7", "f8"].map(name));
    let (third, _, end) = page(&mut world, after);
    assert_eq!((third, end), (["f9", "f4"].map(name).to_vec(), true));
    world.check();
}
