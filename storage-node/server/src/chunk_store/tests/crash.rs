//! The power fails at any call. What was acknowledged is there; of the rest, a prefix; nothing is torn.

use super::model::{Model, Workload};
use super::*;
use crate::chunk_store::Mutations;
use holdfast_journal::memory::Loss;
use holdfast_types::prng::Prng;

/// One life after another on one disk, each ended by a crash at a random call. Says what was wrong, if anything.
fn lives(seed: u64, lives: u64, mutations: Mutations) -> Result<u64, String> {
    let (mut disk, table) = (MemoryDisk::new(seed), MemoryTable::new());
    let mut prng = Prng::new(seed ^ 0x5eed);
    let (mut workload, mut states) = (Workload::new(seed), vec![Model::default()]);
    let (mut acknowledged, mut incarnation, mut crashes) = (0, 0, 0);
    for life in 0..=lives {
        // The last life is not disturbed.
        if life < lives {
            disk.crash_at_operation(prng.between(1, 120));
        }
        let options = StoreOptions { mutations, ..StoreOptions::for_simulation() };
        match ChunkStore::open(disk.clone(), Arc::new(table.clone()), OWNER, options) {
            Ok(mut store) => {
                assert!(store.incarnation().0 > incarnation, "seed {seed}: an incarnation was used twice");
                incarnation = store.incarnation().0;
                let present = store.groups().iter().map(|group| group.last.count.0).max().unwrap_or(0);
                if present < acknowledged {
                    return Err(format!("seed {seed}, life {life}: {acknowledged} acknowledged, {present} there"));
                }
                states.truncate(present as usize + 1);
                workload.count = present;
                let model = states.last().expect("the empty state is one").clone();
                let context = format!("seed {seed}, life {life}, {present} operations");
                let checked =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.check(&store, 2, &context)));
                // A read fails when the disk went down meanwhile, which is no fault of the store.
                if let Err(panic) = checked
                    && !disk.crashed()
                {
                    return Err(panic.downcast_ref::<String>().cloned().unwrap_or_default());
                }
                acknowledged = present;
                run(&mut store, &mut workload, &mut states, &mut acknowledged);
            }
            Err(_) if disk.crashed() => {}
            Err(error) => return Err(format!("seed {seed}, life {life}: {error}")),
        }
        crashes += u64::from(disk.crashed());
        table.crash(&mut prng);
        disk = disk.restart(if prng.chance(1, 4) { Loss::Process } else { Loss::Power });
    }
    Ok(crashes)
}

/// Applies batches until the disk goes down, or for a while.
fn run(store: &mut Store, workload: &mut Workload, states: &mut Vec<Model>, acknowledged: &mut u64) {
    for _ in 0..60 {
        let ops: Vec<LocalOp> = (0..workload.prng.between(1, 5)).map(|_| workload.next()).collect();
        for op in &ops {
            let mut next = states.last().expect("never empty").clone();
            next.apply(op);
            states.push(next);
        }
        let results = store.apply(&ops);
        if results.iter().any(Result::is_err) {
            return;
        }
        *acknowledged = workload.count;
        if (store.wants_checkpoint() || workload.prng.chance(1, 12)) && store.checkpoint().is_err() {
            return;
        }
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_loss_at_any_call_and_nothing_is_torn() {
    let mut crashes = 0;
    for seed in 0..150 {
        crashes += lives(seed, 12, Mutations::default()).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    assert!(crashes > 1_000, "only {crashes} crashes: the test does not test");
}

#[test]
fn bytes_overwritten_before_their_record_is_durable_are_noticed() {
    let mutations = Mutations { overwrite_before_durable: true };
    let caught = (0..200).find_map(|seed| lives(seed, 12, mutations).err());
    assert!(caught.is_some(), "200 seeds did not notice");
}

#[test]
fn a_disk_that_lies_about_syncs_is_noticed() {
    let caught = (0..100).find(|&seed| {
        let (disk, table) = (MemoryDisk::new(seed), MemoryTable::new());
        let mut store = open(&disk, &table).expect("an empty disk opens");
        disk.set_lying(true);
        let mut workload = Workload::new(seed);
        let ops: Vec<LocalOp> = (0..20).map(|_| workload.next()).collect();
        store.apply(&ops);
        table.crash(&mut Prng::new(seed));
        let disk = disk.restart(Loss::Power);
        match open(&disk, &table) {
            Ok(store) => store.groups().iter().map(|group| group.last.count.0).max().unwrap_or(0) < 20,
            Err(_) => true,
        }
    });
    assert!(caught.is_some());
}
