//! A real disk's threads.

use super::*;
use crate::chunk_store::tests::real::{forget, memory_can_be_told};
use crate::chunk_store::{DiskIdentity, StoreOptions};
use crate::medium;
use bytes::Bytes;
use holdfast_journal::{DirectoryDisk, Disk as _, IoBackend, Syncing};
use holdfast_storage_core::local::{Change, Origin};
use holdfast_store::MemoryTable;
use holdfast_telemetry::metrics::Registry;
use holdfast_types::checksum::piece_sums;
use holdfast_types::{
    ChunkIndex, ChunkKey, ClusterId, Epoch, Generation, GroupId, InodeId, NodeId, OpCount, OpNumber, Sequence,
    SessionId, SnapshotNumber, VolumeId,
};
use std::collections::BTreeMap;
use std::path::Path;

fn chunk(inode: u64) -> ChunkKey {
    ChunkKey {
        volume: VolumeId(1),
        inode: InodeId(inode),
        generation: Generation(1),
        index: ChunkIndex(0),
        born: SnapshotNumber(0),
    }
}

fn write(count: u64, bytes: Vec<u8>) -> LocalCommand {
    let number = OpNumber { epoch: Epoch(1), count: OpCount(count) };
    let origin = Origin { session: SessionId(1), sequence: Sequence(count), contended: false };
    let (sums, bytes) = (piece_sums(0, &bytes), Bytes::from(bytes));
    let change = Change::Write { chunk: chunk(count), offset: 0, sums, bytes };
    LocalCommand::Apply(LocalOp { group: GroupId(0), number, settled: OpNumber::default(), origin, change })
}

fn read(inode: u64, length: u32) -> LocalCommand {
    LocalCommand::Read { group: GroupId(0), chunk: chunk(inode), offset: 0, length }
}

/// A disk with its threads, and what it reports.
struct Running {
    disk: Disk,
    threads: Threads,
    metrics: Arc<Metrics>,
    reports: Receiver<Input>,
}

impl Running {
    fn start(path: &Path, backend: IoBackend) -> Self {
        let directory = DirectoryDisk::open_with(path, Syncing::Real, backend).expect("opened");
        let owner = DiskIdentity { cluster: ClusterId(7), node: NodeId(1), disk: DiskId(0) };
        let options = StoreOptions::for_disk(directory.space().expect("known"));
        let store =
            Store::open(medium::of(directory, DiskId(0)), Arc::new(MemoryTable::new()), owner, options).expect("opens");
        let metrics = Arc::new(Metrics::register(&mut Registry::default(), Duration::from_secs(1)));
        let (sender, reports) = channel();
        let report: Report = Arc::new(move |inputs| inputs.into_iter().for_each(|input| drop(sender.send(input))));
        let (mut disks, threads) = start(vec![(DiskId(0), store)], &report, &metrics).expect("threads");
        Self { disk: disks.remove(0), threads, metrics, reports }
    }

    /// Starts commands all at once; what became of each, in their order.
    fn all(&self, commands: Vec<LocalCommand>) -> Vec<Result<LocalOutcome, LocalError>> {
        let count = commands.len();
        for (ticket, command) in commands.into_iter().enumerate() {
            self.disk.start(Ticket(ticket as u64), command);
        }
        let mut ended = BTreeMap::new();
        while ended.len() < count {
            match self.reports.recv().expect("the threads live") {
                Input::LocalDone { ticket, result } => {
                    assert!(ended.insert(ticket, result).is_none(), "{ticket:?} ended twice");
                }
                other => panic!("{other:?}"),
            }
        }
        ended.into_values().collect()
    }

    fn end(self) {
        drop(self.disk);
        self.threads.join();
    }
}

#[test]
fn every_read_ends_once_with_its_own_bytes_in_memory_or_not() {
    let told = memory_can_be_told("disk::tests::every_read_ends_once_with_its_own_bytes_in_memory_or_not");
    for backend in IoBackend::ALL {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let running = Running::start(directory.path(), backend);
        let bytes = |n: u64| vec![n as u8; if n.is_multiple_of(10) { 300_000 } else { 9_000 + n as usize }];
        let written = running.all((1..=200).map(|n| write(n, bytes(n))).collect());
        assert!(written.iter().all(Result::is_ok));
        for round in 0..3 {
            if round > 0 {
                forget(directory.path());
            }
            let found =
                running.all((1..=200).map(|n| read(n, 5000)).chain((1..=200).map(|n| read(n, 1 << 20))).collect());
            for (place, found) in found.into_iter().enumerate() {
                let n = place as u64 % 200 + 1;
                let expected = if place < 200 { bytes(n)[..5000].to_vec() } else { bytes(n) };
                match found {
                    Ok(LocalOutcome::Data { bytes, .. }) => assert!(bytes == expected, "{n} in round {round}"),
                    other => panic!("{other:?}"),
                }
            }
        }
        let counters = &running.metrics.counters;
        assert_eq!(counters.local_reads.get(), 3 * 400, "each is counted once");
        assert!(!told || counters.reads_in_place.get() > 0, "small ones in memory are not handed over");
        assert!(counters.reads_in_place.get() <= 3 * 200, "large ones are");
        running.end();
    }
}

#[test]
fn a_read_that_hangs_is_seen_in_what_is_said_of_reads_and_is_no_change_that_hangs() {
    let vitals = Vitals::default();
    let (first, second) = (Instant(now().0 - 3_000_000_000), Instant(now().0 - 700_000_000));
    [first, second, second].into_iter().for_each(|at| lock(&vitals.reads).begin(at));
    assert!(vitals.speed().0.expect("known") >= 3_000_000);
    lock(&vitals.reads).end(first);
    lock(&vitals.reads).end(second);
    let left = vitals.speed().0.expect("one of two is left");
    assert!((700_000..3_000_000).contains(&left), "{left}");
    assert_eq!((vitals.speed().1, vitals.oldest()), (None, Duration::ZERO));
    lock(&vitals.reads).end(second);
    assert_eq!(vitals.speed().0, None);
}

#[test]
fn a_read_in_place_that_waited_ends_the_trying_for_a_while() {
    let in_place = InPlace::default();
    assert!(in_place.wants(&read(1, 4096)));
    assert!(!in_place.wants(&read(1, InPlace::BYTES_MAX + 1)), "a large one");
    assert!(!in_place.wants(&LocalCommand::BlockSums { group: GroupId(0), chunk: chunk(1) }), "not a read of bytes");
    in_place.took(InPlace::TRY_MAX);
    assert!(in_place.wants(&read(1, 4096)), "as long as it may");
    in_place.took(InPlace::TRY_MAX + Duration::from_nanos(1));
    assert!(!in_place.wants(&read(1, 4096)), "it has waited for a disk");
    in_place.not_before.store(now().0, Ordering::Relaxed);
    assert!(in_place.wants(&read(1, 4096)), "the pause is over");
}
