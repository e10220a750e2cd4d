//! The check of live tables against the one of small tables: what that one finds in a damaged table, this one finds, too.

use super::{Watch, check_volumes, files, inodes};
use crate::tables::{entry, inode, mark, purge, session, volume};
use crate::testing::{World, name};
use holdfast_store::{Batch, KeyRange, MemoryTable, Pair, Table, View};
use holdfast_types::prng::Prng;
use holdfast_types::{InodeId, SessionId, ShardId, VolumeId};
use holdfast_wire::namespace::{Mutation, NewNode, RenameMode, SetAttributes, XattrMode};
use holdfast_wire::open::Access;

/// Keeps what is found.
#[derive(Default)]
pub(crate) struct Kept {
    found: Vec<String>,
    inodes: u64,
    stop: bool,
}

impl Watch for Kept {
    fn looked_at(&mut self, inodes: u64, _: u64) -> bool {
        self.inodes += inodes;
        !self.stop
    }

    fn found(&mut self, what: String) {
        self.found.push(what);
    }
}

/// All that is wrong with a table.
pub(crate) fn found_in(view: &dyn View) -> Vec<String> {
    let mut kept = Kept::default();
    match check_volumes(view, &mut kept) {
        Ok(done) => assert!(done, "nobody stopped it"),
        Err(error) => kept.found.push(error),
    }
    kept.found
}

/// A small volume with one of everything.
fn world() -> (World, SessionId) {
    let mut world = World::new(1, 3, |_| {});
    let (s, _) = world.attach();
    let root = InodeId::ROOT;
    let mut parent = root;
    for depth in 0..4 {
        parent = world.create(s, parent, &format!("d{depth}"), NewNode::Directory).inode;
        for n in 0..6 {
            world.create(s, parent, &format!("f{n}"), NewNode::File);
        }
    }
    let file = world.create(s, root, "linked", NewNode::File).inode;
    world.mutate(s, Mutation::Link { inode: file, parent, name: name("again") }).unwrap();
    let xattr = Mutation::SetXattr { inode: file, name: "user.a".into(), value: "b".into(), mode: XattrMode::Set };
    world.mutate(s, xattr).unwrap();
    world.create(s, root, "symlink", NewNode::Symlink("linked".into()));
    // One that is open without a name, and one that is written.
    let orphan = world.create(s, root, "orphan", NewNode::File).inode;
    world.mutate(s, Mutation::Open { inode: orphan, access: Access::Write }).unwrap();
    world.mutate(s, Mutation::Unlink { parent: root, name: name("orphan"), open: Some(orphan) }).unwrap();
    let written = world.create(s, root, "written", NewNode::File);
    let (inode, generation) = (written.inode, written.generation);
    world.mutate(s, Mutation::Reserve { inode, generation, bound: 1 << 20, least: 1 << 20 }).unwrap();
    let rename = Mutation::Rename {
        from_parent: root,
        from_name: name("d0"),
        to_parent: root,
        to_name: name("moved"),
        mode: RenameMode::Replace,
        open: None,
    };
    world.mutate(s, rename).unwrap();
    (world, s)
}

fn rows(table: &dyn View) -> Vec<Pair> {
    table.range(KeyRange::all()).map(Result::unwrap).collect()
}

fn with(rows: &[Pair], change: impl FnOnce(&mut Batch)) -> MemoryTable {
    let table = MemoryTable::new();
    let mut batch = Batch::new();
    rows.iter().for_each(|(key, value)| batch.put(key.clone(), value.clone()));
    change(&mut batch);
    table.commit(batch).unwrap();
    table
}

#[test]
fn a_sound_table_is_sound_and_a_check_can_be_ended() {
    let (world, _) = world();
    let table = world.table(1, ShardId::VOLUMES);
    assert_eq!(found_in(&table), Vec::<String>::new());
    assert_eq!(super::inodes_expected(&table), Ok(33));
    let mut kept = Kept { stop: true, ..Kept::default() };
    // Too small to be asked about: it comes to its end.
    assert_eq!(check_volumes(&table, &mut kept), Ok(true));
}

#[test]
fn what_the_check_of_small_tables_finds_is_found() {
    let (world, _) = world();
    let table = world.table(1, ShardId::VOLUMES);
    let all = rows(&table);
    let tables = [
        inode::INODE,
        entry::ENTRY,
        entry::COOKIE,
        mark::SYMLINK,
        mark::OPENER,
        mark::OPENER_BY_SESSION,
        mark::ORPHAN,
        mark::BOUND,
        purge::TRIM,
        volume::VOLUME,
        session::SESSION,
    ];
    let (mut both, mut only_here) = (0, 0);
    for seed in 0..3000u64 {
        let mut prng = Prng::new(seed);
        let of: Vec<&Pair> = {
            let table = *prng.pick(&tables);
            all.iter().filter(|(key, _)| key[0] == table).collect()
        };
        if of.is_empty() {
            continue;
        }
        let (one, other) = (*prng.pick(&of), *prng.pick(&of));
        let damaged = with(&all, |batch| match prng.below(4) {
            0 => batch.remove(one.0.clone()),
            1 => batch.put(one.0.clone(), other.1.clone()),
            2 => {
                let mut key = one.0.to_vec();
                // Another inode, parent, name or position; never another table.
                let at = prng.between(1, key.len() as u64 - 1) as usize;
                key[at] ^= 1 << prng.below(3);
                batch.put(key, one.1.clone());
            }
            _ => {
                let mut value = one.1.to_vec();
                if !value.is_empty() {
                    let at = prng.below(value.len() as u64) as usize;
                    value[at] ^= 1 << prng.below(8);
                }
                batch.put(one.0.clone(), value);
            }
        });
        let known = crate::invariants::check(ShardId::VOLUMES, &damaged).unwrap_or_else(|error| vec![error]);
        let found = found_in(&damaged);
        assert!(known.is_empty() || !found.is_empty(), "seed {seed}: {known:?} was not found");
        both += u32::from(!known.is_empty());
        only_here += u32::from(known.is_empty() && !found.is_empty());
    }
    assert!(both > 1000 && only_here > 10, "{both} found by both, {only_here} only by this one");
}

#[test]
fn a_finding_names_what_is_wrong() {
    let (world, _) = world();
    let table = world.table(1, ShardId::VOLUMES);
    let all = rows(&table);
    let (volume, root) = (VolumeId(1), InodeId::ROOT);
    let linked = entry::key(volume, root, &name("linked"));
    let found = found_in(&with(&all, |batch| batch.remove(linked)));
    assert!(found.iter().any(|what| what.contains("has 1 names and should have 2")), "{found:?}");
    assert!(found.iter().any(|what| what.contains("has no name")), "{found:?}");
    // A directory that hangs on itself.
    let (key, value) = all.iter().filter(|(key, _)| key[0] == inode::INODE).nth(1).expect("the first directory");
    let mut row: inode::InodeRow = crate::txn::decode(key, value).unwrap();
    row.parent = InodeId(crate::tables::number_at(key, 1));
    let found = found_in(&with(&all, |batch| batch.put(key.clone(), crate::tables::Row::encode(&row))));
    assert!(found.iter().any(|what| what.contains("does not hang on the root")), "{found:?}");
    assert!(found.iter().any(|what| what.contains("does not know its parent")), "{found:?}");
}

#[test]
fn what_a_check_of_chunks_asks_is_answered() {
    let (mut world, s) = world();
    let file = world.create(s, InodeId::ROOT, "file", NewNode::File);
    let size = Some(5000);
    world
        .mutate(
            s,
            Mutation::SetAttributes { inode: file.inode, set: SetAttributes { size, ..SetAttributes::default() } },
        )
        .unwrap();
    let ask =
        |world: &World| inodes(&world.table(1, ShardId::VOLUMES), &[(VolumeId(1), file.inode)]).unwrap().remove(0);
    let facts = ask(&world);
    assert_eq!((facts.content, facts.volume_gone), (Some((file.generation, 5000)), false));
    world.chunks_stuck = true;
    world.mutate(s, Mutation::Unlink { parent: InodeId::ROOT, name: name("file"), open: None }).unwrap();
    let facts = ask(&world);
    assert_eq!((facts.content, facts.purging), (None, vec![file.generation]));
}

#[test]
fn files_without_holes_are_named_a_page_at_a_time_and_no_others() {
    let (mut world, s) = world();
    let root = InodeId::ROOT;
    let mut whole = Vec::new();
    for (number, size) in [(0, 1), (1, 4096), (2, 5 << 20), (3, 0)] {
        let file = world.create(s, root, &format!("w{number}"), NewNode::File);
        let (inode, generation) = (file.inode, file.generation);
        world.mutate(s, Mutation::Reserve { inode, generation, bound: 8 << 20, least: size }).unwrap();
        let sparse = number == 1;
        let (mtime, clear_set_ids) = (file.mtime, false);
        let publish = Mutation::Publish { inode, generation, size, mtime, release: true, clear_set_ids, sparse };
        world.mutate(s, publish).unwrap();
        whole.extend((size > 0 && !sparse).then_some((inode, size)));
    }
    // Longer without being written.
    let set = SetAttributes { size: Some(9999), ..SetAttributes::default() };
    let file = world.create(s, root, "hole", NewNode::File).inode;
    world.mutate(s, Mutation::SetAttributes { inode: file, set }).unwrap();
    world.run(5);
    let table = world.table(1, ShardId::VOLUMES);
    for limit in [1, 2, 7, 1000] {
        let (mut found, mut at) = (Vec::new(), Some((VolumeId(0), InodeId(0))));
        while let Some(after) = at {
            let (page, next) = files(&table, after, limit).unwrap();
            assert!(page.len() <= limit as usize && next.is_none_or(|next| next > after));
            found.extend(page.into_iter().map(|file| (file.inode, file.size)));
            at = next;
        }
        assert_eq!(found, whole, "{limit} at a time");
    }
    let facts = inodes(&table, &[(VolumeId(1), whole[1].0), (VolumeId(1), file)]).unwrap();
    assert_eq!((facts[0].whole, facts[1].whole), (5 << 20, 0));
}
