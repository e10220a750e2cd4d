//! Full disks, failed syncs, rotten blocks, lost files, strangers.

use super::super::Mutations;
use super::*;
use holdfast_storage_core::local::Checked;
use std::time::Duration;

fn fill(store: &mut Store, from: u64) -> u64 {
    let mut count = from;
    loop {
        count += 1;
        let bytes = vec![count as u8; if count.is_multiple_of(2) { 20_000 } else { 100_000 }];
        match store.apply(&[op(0, count, write(chunk(count, 0), 0, bytes))])[0] {
            Ok(()) => {}
            Err(LocalError::NoSpace) => return count - 1,
            Err(error) => panic!("{error}: {:?}", store.fault()),
        }
    }
}

#[test]
fn a_full_disk_refuses_and_deletes_make_room_again() {
    let (disk, table, mut store) = fresh(1);
    disk.set_capacity(Some(12 << 20));
    let last = fill(&mut store, 0);
    assert!(last > 50, "{last}");
    assert_eq!(read(&store, 0, chunk(last, 0), 0, 10).unwrap().len(), 10);
    // A change within space that is there already is no growth.
    assert_eq!(store.apply(&[op(0, last + 1, write(chunk(2, 0), 10, vec![1; 100]))]), [Ok(())]);
    assert_eq!(store.apply(&[op(0, last + 2, Change::Cut { chunk: chunk(4, 0), length: 5_000 })]), [Ok(())]);
    assert_eq!(store.apply(&[op(0, last + 3, Change::DeleteChunk { chunk: chunk(5, 0) })]), [Ok(())]);
    assert_eq!(store.apply(&[op(0, last + 4, write(chunk(last + 4, 0), 0, vec![1; 100_000]))]), [Ok(())]);
    let again = fill(&mut store, last + 4);
    assert!(again <= last + 5);
    drop(store);
    let store = open(&disk, &table).expect("a full disk opens");
    assert_eq!(read(&store, 0, chunk(last + 4, 0), 0, 1 << 20).unwrap(), vec![1; 100_000]);
}

#[test]
fn a_failed_sync_ends_the_life_of_the_store() {
    let (disk, table, mut store) = fresh(1);
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![1; 100]))]);
    disk.fail_sync(1);
    let batch = [op(0, 2, write(chunk(2, 0), 0, vec![2; 100])), op(0, 3, Change::Mark)];
    assert_eq!(store.apply(&batch), [Err(LocalError::Failed), Err(LocalError::Failed)]);
    assert_eq!(store.apply(&[op(0, 4, Change::Mark)]), [Err(LocalError::Failed)]);
    assert_eq!(read(&store, 0, chunk(2, 0), 0, 1), Err(LocalError::Failed));
    assert!(store.fault().expect("a reason").contains("journal"));
    drop(store);
    let store = open(&disk, &table).expect("the next life begins anew");
    assert!(matches!(read(&store, 0, chunk(2, 0), 0, 1).unwrap()[0], 1 | 2));
}

fn extent_of(disk: &MemoryDisk, needle: &[u8]) -> u64 {
    let (_, bytes) = disk.contents().into_iter().find(|(name, _)| name == "extent-00000000").expect("one extent file");
    bytes.windows(needle.len()).position(|window| window == needle).expect("bytes are in place") as u64
}

#[test]
fn a_rotten_block_is_never_served_merged_or_hidden_and_is_healed_by_a_whole_one() {
    let (disk, _table, mut store) = fresh(1);
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, [vec![1; 4096], vec![0xab; 4096], vec![3; 4096]].concat()))]);
    let sound = list(&store, 0)[0].digest;
    disk.flip_bit("extent-00000000", extent_of(&disk, &[0xab; 4096])).unwrap();
    assert_eq!(read(&store, 0, chunk(2, 0), 0, 4096).unwrap(), vec![1; 4096]);
    assert_eq!(read(&store, 0, chunk(2, 0), 5_000, 1), Err(LocalError::BadBlock));
    assert_ne!(list(&store, 0)[0].digest, sound, "a comparison with another member must show it");
    // A part of the block cannot be merged with what is not known; operations around it go on.
    let batch = [op(0, 2, write(chunk(2, 0), 5_000, vec![9; 10])), op(0, 3, write(chunk(2, 0), 0, vec![1; 10]))];
    assert_eq!(store.apply(&batch), [Err(LocalError::BadBlock), Ok(())]);
    assert_eq!(store.apply(&[op(0, 4, write(chunk(2, 0), 4096, vec![0xab; 4096]))]), [Ok(())]);
    assert_eq!(list(&store, 0)[0].digest, sound);
    assert_eq!(read(&store, 0, chunk(2, 0), 5_000, 2).unwrap(), vec![0xab; 2]);
}

fn check(store: &Store, chunk: ChunkKey) -> Checked {
    match store.reader().serve(&LocalCommand::Check { group: GroupId(0), chunk }) {
        Ok(LocalOutcome::Checked { found: Some(found) }) => found,
        other => panic!("{other:?}"),
    }
}

fn mend(count: u64, chunk: ChunkKey, blocks: &[(u32, Vec<u8>)]) -> LocalOp {
    let blocks = blocks.iter().map(|(block, bytes)| (*block, Bytes::from(bytes.clone()))).collect();
    LocalOp { origin: Origin::MEMBERS, ..op(0, count, Change::Mend { chunk, blocks }) }
}

#[test]
fn a_check_finds_every_bad_block_and_a_mend_puts_back_what_was_there_and_nothing_else() {
    let (disk, table, mut store) = fresh(1);
    let bytes = [vec![1; 4096], vec![0xab; 4096], vec![3; 4096], vec![0xcd; 4096], vec![5; 100]].concat();
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, bytes.clone()))]);
    let sound = check(&store, chunk(2, 0));
    assert_eq!((sound.length, sound.bad.len(), sound.bytes), (16_484, 0, 20_480));
    assert_eq!(sound.digest, list(&store, 0)[0].digest);
    for rotten in [vec![0xab; 4096], vec![0xcd; 4096]] {
        disk.flip_bit("extent-00000000", extent_of(&disk, &rotten)).unwrap();
    }
    let found = check(&store, chunk(2, 0));
    let sum = |bytes: &[u8]| holdfast_types::checksum::crc32(bytes);
    assert_eq!(found.bad, [(1, sum(&bytes[4096..8192])), (3, sum(&bytes[12_288..16_384]))]);
    assert_ne!(found.digest, sound.digest, "a comparison with another member must show it");
    let command = LocalCommand::Blocks { group: GroupId(0), chunk: chunk(2, 0), blocks: vec![1, 2, 4, 9] };
    let Ok(LocalOutcome::Blocks { blocks }) = store.reader().serve(&command) else { panic!("blocks") };
    let whole = [vec![5; 100], vec![0; 3996]].concat();
    assert_eq!(blocks, [(2, vec![3; 4096].into()), (4, whole.into())], "what is bad is not given away");

    // Not what was there, beyond the end, of an absent chunk: nothing comes of it.
    let wrong =
        [mend(1, chunk(2, 0), &[(1, vec![7; 4096]), (9, vec![7; 4096])]), mend(1, chunk(5, 0), &[(0, vec![0; 4096])])];
    assert_eq!(store.apply(&wrong), [Ok(()), Ok(())]);
    assert_eq!(check(&store, chunk(2, 0)).bad.len(), 2);
    assert_eq!(store.apply(&[mend(1, chunk(2, 0), &[(1, vec![0xab; 4096]), (3, vec![0xcd; 4096])])]), [Ok(())]);
    assert_eq!(check(&store, chunk(2, 0)), sound);
    assert_eq!(read(&store, 0, chunk(2, 0), 0, 1 << 20).unwrap(), bytes);
    // The first attempt healed nothing, but what it named was no longer remembered as bad: it was found once more.
    let totals = store.reader().damage_totals();
    assert!(totals.found >= 2 && totals.repaired >= 2, "{totals:?}");
    drop(store);
    let store = open(&disk, &table).expect("opens");
    assert_eq!(check(&store, chunk(2, 0)), sound, "the same after a replay");
}

#[test]
fn an_old_block_never_lands_on_a_newer_write() {
    let (_disk, _table, mut store) = fresh(1);
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![1; 12_288]))]);
    let old = mend(2, chunk(2, 0), &[(1, vec![1; 4096])]);
    // In one batch, in two, and after the block was cut away or became a hole.
    let done = store.apply(&[op(0, 2, write(chunk(2, 0), 4096, vec![2; 4096])), old.clone()]);
    assert_eq!(done, [Ok(()), Ok(())]);
    assert_eq!(read(&store, 0, chunk(2, 0), 4096, 4096).unwrap(), vec![2; 4096]);
    assert_eq!(store.apply(std::slice::from_ref(&old)), [Ok(())]);
    assert_eq!(read(&store, 0, chunk(2, 0), 4096, 4096).unwrap(), vec![2; 4096]);
    store.apply(&[
        op(0, 3, Change::Zero { chunk: chunk(2, 0), offset: 4096, length: 4096 }),
        LocalOp { number: number(3), ..old.clone() },
    ]);
    assert_eq!(read(&store, 0, chunk(2, 0), 4096, 4096).unwrap(), vec![0; 4096]);
    store.apply(&[op(0, 4, Change::Cut { chunk: chunk(2, 0), length: 100 }), LocalOp { number: number(4), ..old }]);
    assert_eq!(read(&store, 0, chunk(2, 0), 0, 1 << 20).unwrap(), vec![1; 100]);
    assert!(check(&store, chunk(2, 0)).bad.is_empty());
}

/// The same with a store that does not look at the sum: the test above would see it.
#[test]
fn a_repair_that_is_not_compared_with_its_sum_does_land_on_a_newer_write() {
    let mutations = Mutations { mend_unchecked: true, ..Mutations::default() };
    let options = StoreOptions { mutations, ..StoreOptions::for_simulation() };
    let table = Arc::new(MemoryTable::new());
    let mut store = ChunkStore::open(MemoryDisk::new(1), table, OWNER, options).expect("opens");
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![2; 8192]))]);
    store.apply(&[mend(1, chunk(2, 0), &[(1, vec![1; 4096])])]);
    assert_eq!(read(&store, 0, chunk(2, 0), 4096, 4096).unwrap(), vec![1; 4096]);
}

#[test]
fn the_hash_of_a_chunk_is_that_of_its_bytes_and_holes_are_zeros() {
    let (_disk, _table, mut store) = fresh(1);
    store.apply(&[
        op(0, 1, write(chunk(2, 0), 0, [vec![0; 4096], vec![1; 4096]].concat())),
        op(0, 2, write(chunk(3, 0), 4096, vec![1; 4096])),
        op(0, 3, write(chunk(4, 0), 4096, vec![2; 4096])),
    ]);
    let hash = |inode| check(&store, chunk(inode, 0)).hash;
    assert_eq!(hash(2), hash(3), "a hole and written zeros are the same");
    assert_ne!(hash(2), hash(4));
}

#[test]
fn an_unreadable_block_is_damage_and_not_the_end() {
    let (disk, _table, mut store) = fresh(1);
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, [vec![1; 4096], vec![0xab; 4096]].concat()))]);
    disk.fail_reads("extent-00000000", extent_of(&disk, &[0xab; 4096])).unwrap();
    assert_eq!(read(&store, 0, chunk(2, 0), 0, 8192), Err(LocalError::BadBlock));
    assert_eq!(store.apply(&[op(0, 2, write(chunk(2, 0), 4096, vec![7; 4096]))]), [Ok(())]);
    assert_eq!(read(&store, 0, chunk(2, 0), 4000, 4000).unwrap().len(), 4000);
}

#[test]
fn a_disk_that_refuses_to_read_anything_is_the_end_and_one_bad_block_never_is() {
    let (disk, _table, mut store) = fresh(1);
    let content = |n: u64| vec![0xa0 + n as u8; 4096];
    for n in 1..=9 {
        assert_eq!(store.apply(&[op(0, n, write(chunk(n, 0), 0, content(n)))]), [Ok(())]);
    }
    let refuse = |n: u64| disk.fail_reads("extent-00000000", extent_of(&disk, &content(n))).unwrap();
    refuse(1);
    for _ in 0..20 {
        assert_eq!(read(&store, 0, chunk(1, 0), 0, 10), Err(LocalError::BadBlock), "one bad block, asked for often");
    }
    (2..=7).for_each(refuse);
    for n in 1..=7 {
        assert_eq!(read(&store, 0, chunk(n, 0), 0, 10), Err(LocalError::BadBlock), "{n}");
    }
    assert_eq!(read(&store, 0, chunk(9, 0), 0, 10).unwrap().len(), 10, "the rest is there");
    refuse(8);
    for n in (1..=8).chain(1..=8) {
        assert_eq!(
            read(&store, 0, chunk(n, 0), 0, 10),
            Err(LocalError::BadBlock),
            "{n}: a bad spot, the rest is there"
        );
    }
    disk.fail_reads("probe", 0).unwrap();
    for n in 1..=7 {
        assert_eq!(read(&store, 0, chunk(n, 0), 0, 10), Err(LocalError::BadBlock), "{n}");
    }
    assert_eq!(store.fault(), None);
    assert_eq!(read(&store, 0, chunk(8, 0), 0, 10), Err(LocalError::Failed));
    assert!(store.fault().expect("a reason").contains("nothing can be read"));
    assert_eq!(store.apply(&[op(0, 10, Change::Mark)]), [Err(LocalError::Failed)]);
}

#[test]
fn a_disk_that_was_wiped_is_neither_the_one_that_it_was_nor_a_later_life_of_it() {
    let made = |at: u64| StoreOptions::for_simulation().made(Duration::from_secs(at));
    let (disk, table) = (MemoryDisk::new(1), MemoryTable::new());
    let mut lives = Vec::new();
    for start in 0..3 {
        let options = made(1_800_000_000 + start);
        let store = ChunkStore::open(disk.clone(), Arc::new(table.clone()), OWNER, options).expect("opens");
        lives.push(store.incarnation());
    }
    assert!(lives.is_sorted_by(|a, b| a.0 + 1 == b.0), "{lives:?}");
    let options = made(1_800_000_003);
    let wiped = ChunkStore::open(MemoryDisk::new(1), Arc::new(MemoryTable::new()), OWNER, options).expect("opens");
    assert!(wiped.incarnation() < lives[0], "{:?} {lives:?}", wiped.incarnation());
}

#[test]
fn no_disk_is_made_by_a_clock_that_was_never_set_and_those_that_are_there_open() {
    let (disk, table) = (MemoryDisk::new(1), MemoryTable::new());
    let open_at = |at: u64| {
        let options = StoreOptions::for_simulation().made(Duration::from_secs(at));
        ChunkStore::open(disk.clone(), Arc::new(table.clone()), OWNER, options)
    };
    for wrong in [0, 1_767_225_599] {
        let refused = open_at(wrong).err().expect("refused").to_string();
        assert!(refused.contains("set the clock"), "{refused}");
    }
    drop(open_at(1_767_225_600).expect("makes it"));
    assert!(open_at(0).is_ok());
}

#[test]
fn only_the_devices_own_errors_speak_against_it() {
    let is_of_device = |code| super::super::probe::is_of_device(&std::io::Error::from_raw_os_error(code));
    assert!([libc::EIO, libc::ENXIO, libc::ENODEV].into_iter().all(is_of_device));
    assert!(![libc::EMFILE, libc::ENOMEM, libc::EAGAIN, libc::EDQUOT, libc::ENOSPC].into_iter().any(is_of_device));
}

#[test]
fn a_probe_is_durable_and_a_failure_to_write_it_is_the_disks() {
    let (disk, table, mut store) = fresh(1);
    assert_eq!((store.probe_read(), store.probe_write()), (Ok(true), Ok(true)));
    drop(store);
    let mut store = open(&disk, &table).expect("the probe is in nobody's way");
    assert_eq!((store.probe_write(), store.probe_read()), (Ok(true), Ok(true)));
    disk.fail_reads("probe", 0).unwrap();
    assert_eq!((store.probe_read(), store.fault()), (Ok(false), None), "one bad block");
    assert_eq!((store.probe_write(), store.probe_read()), (Ok(true), Ok(true)), "that is written again");
    disk.fail_sync(1);
    assert_eq!(store.probe_write(), Err(LocalError::Failed));
    assert!(store.fault().expect("a reason").contains("probe"));
}

#[test]
fn a_lost_index_journal_or_extent_file_is_damage_and_never_absence() {
    let filled = || {
        let (disk, table, mut store) = fresh(1);
        store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![1; 100_000]))]);
        drop(store);
        (disk, table)
    };
    let (disk, _) = filled();
    assert!(matches!(open(&disk, &MemoryTable::new()), Err(OpenError::Damaged(_))));
    let remove = |prefix: &str| {
        let (disk, table) = filled();
        let names = holdfast_journal::Disk::list(&disk).unwrap();
        for name in names.iter().filter(|name| name.starts_with(prefix)) {
            holdfast_journal::Disk::remove(&disk, name).unwrap();
        }
        open(&disk, &table).err().map(|error| error.to_string())
    };
    for prefix in ["journal", "extent", "identity"] {
        assert!(remove(prefix).is_some(), "{prefix} was removed, and nobody noticed");
    }
}

/// What fjall does when its own journal rots: it cuts it, and comes back older than it was persisted.
#[test]
fn an_index_that_comes_back_older_is_damage() {
    let (disk, table, mut store) = fresh(1);
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![1; 100]))]);
    let old = MemoryTable::new();
    let mut rows = holdfast_store::Batch::new();
    for pair in holdfast_store::View::range(&table, holdfast_store::KeyRange::all()) {
        let (key, value) = pair.unwrap();
        rows.put(key, value);
    }
    holdfast_store::Table::commit(&old, rows).unwrap();
    store.apply(&[op(0, 2, write(chunk(2, 0), 0, vec![2; 100]))]);
    store.checkpoint().unwrap();
    store.apply(&[op(0, 3, Change::Mark)]);
    drop(store);
    let opened = open(&disk, &old);
    assert!(matches!(&opened, Err(OpenError::Damaged(reason)) if reason.contains("come back")), "{:?}", opened.err());
    assert!(open(&disk, &table).is_ok());
}

#[test]
fn the_disk_of_another_cluster_or_node_is_refused() {
    let (disk, table, store) = fresh(1);
    drop(store);
    for owner in [DiskIdentity { cluster: ClusterId(78), ..OWNER }, DiskIdentity { node: NodeId(2), ..OWNER }] {
        let opened = ChunkStore::open(disk.clone(), Arc::new(table.clone()), owner, StoreOptions::for_simulation());
        assert!(matches!(opened.err(), Some(OpenError::Foreign(_))));
    }
    assert!(open(&disk, &table).is_ok());
}
