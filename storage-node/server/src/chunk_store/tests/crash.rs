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
    let mutations = Mutations { overwrite_before_durable: true, ..Mutations::default() };
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

/// Runs a story anew for a crash at its first call, its second, and so on until it ends undisturbed; returns at how many.
/// `story` does its work and says whether all of it was acknowledged; `judge` is given that, and what a restart finds.
fn at_every_call(
    loss: Loss,
    prepare: impl Fn(&mut Store),
    story: impl Fn(&mut Store) -> bool,
    judge: impl Fn(bool, &Store),
) -> u64 {
    for nth in 1..10_000 {
        let (disk, table, mut store) = fresh(nth);
        prepare(&mut store);
        disk.crash_at_operation(nth);
        let acknowledged = story(&mut store);
        let crashed = disk.crashed();
        assert!(acknowledged || crashed, "call {nth}: refused, and nothing was wrong");
        table.crash(&mut Prng::new(nth));
        let disk = disk.restart(loss);
        judge(acknowledged, &open(&disk, &table).unwrap_or_else(|error| panic!("call {nth}: {error}")));
        if !crashed {
            return nth - 1;
        }
    }
    panic!("the story has no end");
}

#[test]
fn power_lost_between_an_acknowledgement_and_the_end_of_the_checkpoint_costs_nothing_at_any_call() {
    for loss in [Loss::Power, Loss::Process] {
        let prepare = |store: &mut Store| {
            let ops = [
                op(0, 1, write(chunk(2, 0), 0, vec![1; 300_000])),
                op(0, 2, write(chunk(2, 0), 70_000, vec![2; 100])),
                op(0, 3, write(chunk(3, 0), 10, vec![3; 50])),
            ];
            assert!(store.apply(&ops).iter().all(Result::is_ok));
        };
        let judge = |_: bool, store: &Store| {
            let mut wanted = vec![1; 300_000];
            wanted[70_000..70_100].fill(2);
            assert_eq!(read(store, 0, chunk(2, 0), 0, 1 << 20).unwrap(), wanted);
            assert_eq!(read(store, 0, chunk(3, 0), 0, 100).unwrap(), [vec![0; 10], vec![3; 50]].concat());
        };
        let calls = at_every_call(loss, prepare, |store| store.checkpoint().is_ok(), judge);
        assert!(calls >= 1, "a checkpoint that makes no call makes nothing durable");
    }
}

#[test]
fn a_large_write_over_a_small_one_is_there_or_not_and_never_the_small_one_on_top_after_a_crash_at_any_call() {
    for loss in [Loss::Power, Loss::Process] {
        // The small one goes through the journal and is put in its place late, the large one goes to space of its own at once.
        let prepare = |store: &mut Store| {
            assert_eq!(store.apply(&[op(0, 1, write(chunk(2, 0), 0, vec![1; 400_000]))]), [Ok(())]);
            store.checkpoint().expect("nothing is wrong yet");
            assert_eq!(store.apply(&[op(0, 2, write(chunk(2, 0), 5_000, vec![2; 100]))]), [Ok(())]);
        };
        let story = |store: &mut Store| -> bool {
            let done = store.apply(&[op(0, 3, write(chunk(2, 0), 0, vec![3; 300_000]))]);
            // What comes later must not bring the small one back either.
            done == [Ok(())] && store.checkpoint().is_ok()
        };
        let judge = |acknowledged: bool, store: &Store| {
            let mut before = vec![1; 400_000];
            before[5_000..5_100].fill(2);
            let mut after = before.clone();
            after[..300_000].fill(3);
            let found = read(store, 0, chunk(2, 0), 0, 1 << 20).unwrap();
            assert!(found == after || !acknowledged && found == before, "neither before nor after");
        };
        let calls = at_every_call(loss, prepare, story, judge);
        assert!(calls >= 4, "{calls} calls");
    }
}
