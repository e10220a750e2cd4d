//! The store against a model of it: alone, across crashes at every call, on full and on damaged disks.

mod crash;
mod faults;
mod golden;
mod model;
pub(crate) mod real;

use super::{ChunkStore, DiskIdentity, OpenError, StoreOptions};
use bytes::Bytes;
use holdfast_journal::{Disk, MemoryDisk};
use holdfast_storage_core::local::{
    Change, ChunkSummary, KeyRange, LocalCommand, LocalError, LocalOp, LocalOutcome, Origin,
};
use holdfast_store::MemoryTable;
use holdfast_types::checksum::piece_sums;
use holdfast_types::{
    ChunkIndex, ChunkKey, ClusterId, DiskId, Epoch, Generation, GroupId, InodeId, NodeId, OpCount, OpNumber, Sequence,
    SessionId, SnapshotNumber, VolumeId,
};
use holdfast_wire::chunk::ByteRange;
use std::sync::Arc;

type Store = ChunkStore<MemoryDisk>;

const OWNER: DiskIdentity = DiskIdentity { cluster: ClusterId(77), node: NodeId(1), disk: DiskId(0) };

fn open(disk: &MemoryDisk, table: &MemoryTable) -> Result<Store, OpenError> {
    ChunkStore::open(disk.clone(), Arc::new(table.clone()), OWNER, StoreOptions::for_simulation())
}

fn fresh(seed: u64) -> (MemoryDisk, MemoryTable, Store) {
    let (disk, table) = (MemoryDisk::new(seed), MemoryTable::new());
    let store = open(&disk, &table).expect("an empty disk opens");
    (disk, table, store)
}

fn chunk(inode: u64, index: u64) -> ChunkKey {
    ChunkKey {
        volume: VolumeId(1),
        inode: InodeId(inode),
        generation: Generation(1),
        index: ChunkIndex(index),
        born: SnapshotNumber(0),
    }
}

fn number(count: u64) -> OpNumber {
    OpNumber { epoch: Epoch(1), count: OpCount(count) }
}

fn op(group: u32, count: u64, change: Change) -> LocalOp {
    LocalOp {
        group: GroupId(group),
        number: number(count),
        settled: number(count.saturating_sub(3)),
        origin: Origin { session: SessionId(1), sequence: Sequence(count), contended: false },
        change,
    }
}

fn write(chunk: ChunkKey, offset: u32, bytes: impl Into<Bytes>) -> Change {
    let bytes = bytes.into();
    Change::Write { chunk, offset, sums: piece_sums(offset, &bytes), bytes }
}

fn read<D: Disk>(
    store: &ChunkStore<D>,
    group: u32,
    chunk: ChunkKey,
    offset: u32,
    length: u32,
) -> Result<Bytes, LocalError> {
    let command = LocalCommand::Read { group: GroupId(group), chunk, offset, length };
    match store.reader().serve(&command)? {
        LocalOutcome::Data { bytes, sums } => {
            assert_eq!(sums, piece_sums(offset, &bytes), "the sums are those of the bytes");
            Ok(bytes)
        }
        other => panic!("{other:?}"),
    }
}

fn list<D: Disk>(store: &ChunkStore<D>, group: u32) -> Vec<ChunkSummary> {
    let command = LocalCommand::List { group: GroupId(group), range: KeyRange::ALL, limit: u32::MAX };
    match store.reader().serve(&command) {
        Ok(LocalOutcome::Chunks { chunks }) => chunks,
        other => panic!("{other:?}"),
    }
}

fn changes<D: Disk>(store: &ChunkStore<D>, group: u32, above: u64) -> Vec<KeyRange> {
    let command = LocalCommand::ChangesAbove { group: GroupId(group), number: number(above) };
    match store.reader().serve(&command) {
        Ok(LocalOutcome::Changes { changed }) => changed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_applied_is_read_with_its_sums() {
    let (_disk, _table, mut store) = fresh(1);
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let results = store.apply(&[
        op(0, 1, write(chunk(2, 0), 100, bytes.clone())),
        op(0, 2, write(chunk(2, 0), 5_000, vec![9; 10])),
        op(0, 3, write(chunk(2, 1), 4_000_000, vec![8; 194_304])),
    ]);
    assert_eq!(results, [Ok(()), Ok(()), Ok(())]);
    let mut wanted = [vec![0; 100], bytes].concat();
    wanted[5_000..5_010].fill(9);
    assert_eq!(read(&store, 0, chunk(2, 0), 0, 4 << 20).unwrap(), wanted);
    assert_eq!(read(&store, 0, chunk(2, 0), 4_999, 12).unwrap(), wanted[4_999..5_011]);
    assert_eq!(read(&store, 0, chunk(2, 1), 3_999_990, 20).unwrap(), [vec![0; 10], vec![8; 10]].concat());
    assert!(read(&store, 1, chunk(2, 0), 0, 10).unwrap().is_empty(), "another group holds nothing");
}

#[test]
fn equal_content_has_equal_digests_however_it_came_about() {
    let (_disk, _table, mut store) = fresh(1);
    let done = store.apply(&[
        op(0, 1, write(chunk(2, 0), 0, vec![5; 20_000])),
        op(0, 2, Change::Zero { chunk: chunk(2, 0), offset: 4_000, length: 9_000 }),
        op(0, 3, Change::Cut { chunk: chunk(2, 0), length: 18_000 }),
        op(0, 4, write(chunk(2, 0), 18_500, vec![6; 10])),
        op(1, 5, write(chunk(2, 0), 13_000, vec![5; 5_000])),
        op(1, 6, write(chunk(2, 0), 18_500, vec![6; 10])),
        op(1, 7, write(chunk(2, 0), 0, vec![5; 4_000])),
        op(1, 8, write(chunk(2, 0), 4_096, vec![0; 8_000])),
    ]);
    assert!(done.iter().all(Result::is_ok));
    let (a, b) = (list(&store, 0), list(&store, 1));
    assert_eq!((a[0].length, a[0].digest), (b[0].length, b[0].digest));
    assert_eq!(read(&store, 0, chunk(2, 0), 0, 1 << 20), read(&store, 1, chunk(2, 0), 0, 1 << 20));
}

#[test]
fn an_empty_chunk_is_an_absent_one_and_the_highest_is_found_below_it() {
    let (_disk, _table, mut store) = fresh(1);
    let done = store.apply(&[
        op(0, 1, write(chunk(2, 3), 0, vec![5; 10])),
        op(0, 2, write(chunk(2, 7), 0, vec![5; 10])),
        op(0, 3, Change::Cut { chunk: chunk(2, 7), length: 0 }),
        op(0, 4, Change::Cut { chunk: chunk(2, 9), length: 5 }),
        op(0, 5, write(chunk(3, 0), 0, vec![5; 10])),
    ]);
    assert!(done.iter().all(Result::is_ok));
    assert_eq!(list(&store, 0).iter().map(|c| c.chunk).collect::<Vec<_>>(), [chunk(2, 3), chunk(3, 0)]);
    let highest = |from| {
        let (volume, inode, generation) = (VolumeId(1), InodeId(2), Generation(1));
        let command = LocalCommand::Highest { group: GroupId(0), volume, inode, generation, from: ChunkIndex(from) };
        store.reader().serve(&command).unwrap()
    };
    assert_eq!(highest(0), LocalOutcome::Highest { found: Some((ChunkIndex(3), 10)) });
    assert_eq!(highest(4), LocalOutcome::Highest { found: None });
}

#[test]
fn what_was_never_written_or_was_zeroed_whole_is_a_hole_and_long_answers_end_with_a_whole_chunk() {
    let (_disk, _table, mut store) = fresh(1);
    let done = store.apply(&[
        op(0, 1, write(chunk(2, 3), 4096 * 3 + 10, vec![5; 4096])),
        op(0, 2, write(chunk(2, 3), 4096 * 9, vec![0; 4096])),
        op(0, 3, write(chunk(2, 3), 4096 * 20, vec![5; 300_000])),
        op(0, 4, Change::Zero { chunk: chunk(2, 3), offset: 4096 * 30 - 1, length: 4096 * 2 }),
        op(0, 5, Change::Cut { chunk: chunk(2, 3), length: 4096 * 40 + 7 }),
        op(0, 6, write(chunk(2, 7), 0, vec![5; 10])),
        op(0, 7, Change::Cut { chunk: chunk(2, 7), length: 0 }),
        op(0, 8, write(chunk(2, 8), 0, vec![5; 10])),
        op(0, 9, write(chunk(3, 0), 0, vec![5; 10])),
    ]);
    assert!(done.iter().all(Result::is_ok));
    let allocated = |store: &Store, inode, from, upto| {
        let (volume, generation) = (VolumeId(1), Generation(1));
        let (group, inode, from, upto) = (GroupId(0), InodeId(inode), ChunkIndex(from), ChunkIndex(upto));
        let command = LocalCommand::Allocated { group, volume, inode, generation, from, upto };
        match store.reader().serve(&command).unwrap() {
            LocalOutcome::Allocated { ranges, through } => (ranges, through.0),
            other => panic!("{other:?}"),
        }
    };
    let third = |start: u64, end: u64| ByteRange { start: (3 << 22) + start, end: (3 << 22) + end };
    let eighth = ByteRange { start: 8 << 22, end: (8 << 22) + 10 };
    let blocks = [
        third(4096 * 3, 4096 * 5),
        third(4096 * 9, 4096 * 10),
        third(4096 * 20, 4096 * 30),
        third(4096 * 31, 4096 * 40 + 7),
    ];
    assert_eq!(allocated(&store, 2, 0, 7), (blocks.to_vec(), u64::MAX));
    assert_eq!(allocated(&store, 2, 4, 7), (vec![], u64::MAX));
    assert_eq!(allocated(&store, 2, 4, 8), (vec![eighth], u64::MAX));

    // 300 blocks with a hole after each, the answer's bound before the end of the first chunk.
    let apart: Vec<LocalOp> =
        (0..300u32).map(|n| op(0, 10 + u64::from(n), write(chunk(5, 1), n * 8192, vec![5; 4096]))).collect();
    assert!(store.apply(&apart).iter().all(Result::is_ok));
    let more = [op(0, 400, write(chunk(5, 6), 0, vec![5; 10])), op(0, 401, write(chunk(5, 9), 0, vec![5; 10]))];
    assert!(store.apply(&more).iter().all(Result::is_ok));
    let (ranges, through) = allocated(&store, 5, 0, u64::MAX);
    assert_eq!((ranges.len(), through), (300, 1));
    let (ranges, through) = allocated(&store, 5, 2, 7);
    assert_eq!((ranges.len(), through), (1, u64::MAX));
    let (ranges, through) = allocated(&store, 5, 6, u64::MAX);
    assert_eq!((ranges.len(), through), (2, u64::MAX));
}

#[test]
fn changes_are_listed_until_they_are_settled_and_deletes_are_among_them() {
    let (disk, table, mut store) = fresh(1);
    let ops = [
        op(0, 1, write(chunk(2, 0), 0, vec![5; 10])),
        op(0, 2, write(chunk(2, 1), 0, vec![5; 10])),
        op(0, 3, Change::DeleteChunk { chunk: chunk(2, 0) }),
        LocalOp { settled: number(1), ..op(0, 4, write(chunk(4, 0), 0, vec![5; 10])) },
        // Copies for this member alone bear the number before them.
        LocalOp { settled: number(1), ..op(0, 4, write(chunk(5, 0), 0, vec![5; 10])) },
    ];
    assert!(store.apply(&ops).iter().all(Result::is_ok));
    let wanted = [chunk(2, 0), chunk(2, 1), chunk(4, 0), chunk(5, 0)].map(KeyRange::chunk);
    assert_eq!(changes(&store, 0, 1), wanted);
    let store = {
        drop(store);
        open(&disk, &table).expect("reopens")
    };
    assert_eq!(changes(&store, 0, 1), wanted);
    assert_eq!(changes(&store, 0, 3), wanted[2..]);
    let mut store = store;
    store.apply(&[LocalOp { settled: number(4), ..op(0, 4, Change::Mark) }]);
    assert!(changes(&store, 0, 0).is_empty());
    let group = store.groups()[0].clone();
    assert_eq!((group.last, group.settled), (number(4), number(4)));
}

#[test]
fn a_batch_costs_one_sync() {
    let (disk, _table, mut store) = fresh(1);
    let first: Vec<LocalOp> = (1..=10).map(|n| op(0, n, write(chunk(2, 0), n as u32 * 100, vec![5; 90]))).collect();
    store.apply(&first);
    // Once more, so that growing the first extent file is not counted.
    let grown = disk.counters().syncs;
    let again: Vec<LocalOp> = (11..=20).map(|n| op(0, n, write(chunk(2, 0), n as u32 * 100, vec![5; 90]))).collect();
    store.apply(&again);
    assert_eq!(disk.counters().syncs - grown, 1);
}
