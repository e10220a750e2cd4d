//! The same on a real directory and a real index.

use super::model::{Model, Workload};
use super::*;
use holdfast_journal::{DirectoryDisk, Syncing};
use holdfast_store::{FjallConfig, FjallTable};
use std::path::Path;

fn open_real(path: &Path) -> ChunkStore<DirectoryDisk> {
    let disk = DirectoryDisk::open(path, Syncing::Real).expect("nobody else has it");
    let table = FjallTable::open(&path.join("index"), FjallConfig::default()).expect("an index");
    ChunkStore::open(disk, Arc::new(table), OWNER, StoreOptions::for_simulation()).expect("opens")
}

#[test]
fn a_real_disk_holds_what_the_model_says_however_often_it_is_opened() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (mut workload, mut model) = (Workload::new(5), Model::default());
    let mut store = open_real(directory.path());
    for round in 0..40 {
        let ops: Vec<LocalOp> = (0..workload.prng.between(1, 8)).map(|_| workload.next()).collect();
        assert!(store.apply(&ops).iter().all(Result::is_ok), "{:?}", store.fault());
        ops.iter().for_each(|op| model.apply(op));
        if round % 10 == 9 {
            // Without a last checkpoint: the journal has the rest.
            let life = store.incarnation();
            drop(store);
            store = open_real(directory.path());
            assert!(store.incarnation() > life);
        }
        model.check(&store, 2, &format!("round {round}"));
    }
}

#[test]
fn readers_never_see_a_mixture_of_two_writes_of_a_block() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let mut store = open_real(directory.path());
    store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![0; 40_000]))]);
    let reader = store.reader();
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, done) = (reader.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                let command = LocalCommand::Read { group: GroupId(0), chunk: chunk(2, 0), offset: 0, length: 40_000 };
                let mut reads = 0u64;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    match reader.serve(&command) {
                        Ok(LocalOutcome::Data { bytes, .. }) => {
                            for block in bytes.chunks(4096) {
                                assert!(block.iter().all(|byte| *byte == block[0]), "two writes in one block");
                            }
                        }
                        other => panic!("{other:?}"),
                    }
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    for count in 2..300u64 {
        // Large ones switch extents, small ones overwrite in place; both while it is being read.
        let size = if count % 3 == 0 { 40_000 } else { 20_480 };
        assert_eq!(store.apply(&[op(0, count, write(chunk(2, 0), 0, vec![count as u8; size]))]), [Ok(())]);
        if count % 50 == 0 {
            store.checkpoint().expect("no fault was asked for");
        }
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().expect("no reader saw anything wrong") > 0);
    }
    assert_eq!(store.reader().blocks_damaged(), 0);
}
