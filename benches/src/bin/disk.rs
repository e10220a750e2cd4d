//! Ways of reading and writing a disk, in pairs: each row's ways take turns in one run, so that a machine that changes its speed does so for all.
//!
//! `cargo run --release -p holdfast-benches --bin disk -- DIRECTORY [ROUNDS]`; of each way the median round, and the processor's time of the
//! whole process per operation. docs/decisions/0010-io-uring-disk.md quotes it.

use holdfast_journal::disk::{Disk, DiskFile, Read, Write};
use holdfast_journal::{DirectoryDisk, IoBackend, Syncing};
use rustix::fs::{Advice, fadvise};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
const FILE_BYTES: usize = 256 * MIB;

/// Processor's time of this process so far, those of its threads that the kernel runs for a ring included.
fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Bytes that begin at a whole block in memory.
struct Blocks {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Blocks {
    fn new(length: usize, fill: u8) -> Self {
        let memory = vec![fill; length + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start, length }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

/// A way of doing something: its name and one round of it, which returns how many operations that was.
type Way<'a> = (String, Box<dyn FnMut() -> usize + 'a>);

/// Runs the ways of a row in turns and says what each took.
fn row(what: &str, rounds: usize, mut ways: Vec<Way<'_>>) {
    let mut found: Vec<Vec<(f64, f64)>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        for (way, found) in ways.iter_mut().zip(&mut found) {
            let (begun, used) = (Instant::now(), cpu());
            let operations = (way.1)() as f64;
            let micros = |took: Duration| took.as_secs_f64() * 1e6 / operations;
            let figures = (micros(begun.elapsed()), micros(cpu() - used));
            // The first round warms up.
            if round > 0 {
                found.push(figures);
            }
        }
    }
    let median = |mut figures: Vec<f64>| {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    for ((name, _), found) in ways.iter().zip(found) {
        let (took, used) = found.into_iter().unzip();
        println!("| {what} | {name} | {:.1} | {:.1} |", median(took), median(used));
    }
}

/// Places of blocks, in no order.
fn places(seed: &mut u64, count: usize) -> Vec<u64> {
    let mut next = || {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed % (FILE_BYTES / BLOCK) as u64 * BLOCK as u64
    };
    (0..count).map(|_| next()).collect()
}

/// What a storage node's threads for reads do: one takes what waits, answers what is in memory, reads the rest together.
fn reader(
    disk: &DirectoryDisk,
    file: &<DirectoryDisk as Disk>::File,
    queue: &Mutex<Receiver<u64>>,
    ended: &Sender<()>,
) {
    loop {
        let Ok(first) = queue.lock().expect("no panic").recv() else { return };
        let (mut next, mut later) = (Some(first), Vec::new());
        while let Some(offset) = next {
            let mut buffer = vec![0; BLOCK];
            if file.read_cached_at(&mut buffer, offset).expect("read") {
                ended.send(()).expect("waited for");
            } else {
                later.push(Read { file, offset, buffer });
            }
            let more = !later.is_empty() && later.len() < disk.reads_at_once();
            next = if more { queue.try_lock().ok().and_then(|queue| queue.try_recv().ok()) } else { None };
        }
        disk.read_many(later, &mut |_, result| {
            result.expect("read");
            ended.send(()).expect("waited for");
        });
    }
}

/// Reads with so many asked for at any time, by three threads; those in memory perhaps by who asks.
fn read_queue(disk: &DirectoryDisk, file: &Arc<<DirectoryDisk as Disk>::File>, depth: usize, places: &[u64]) {
    let (asks, queue) = channel();
    let (ended, ends) = channel();
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (queue, ended) = (&queue, ended.clone());
            scope.spawn(move || reader(disk, file, queue, &ended));
        }
        let mut under_way = 0;
        for &offset in places {
            if under_way == depth {
                ends.recv().expect("one ends");
                under_way -= 1;
            }
            asks.send(offset).expect("taken");
            under_way += 1;
        }
        drop(asks);
        for _ in 0..under_way {
            ends.recv().expect("one ends");
        }
    });
}

fn forget(path: &Path) {
    let file = std::fs::File::open(path).expect("opened");
    fadvise(&file, 0, None, Advice::DontNeed).expect("dropped from memory");
}

fn durable_writes(disk: &DirectoryDisk, rounds: usize) {
    let file = disk.create("journal").expect("created");
    file.allocate(64 * MIB as u64).expect("reserved");
    file.fill_zeros(0, 64 * MIB as u64).expect("filled");
    file.sync_data().expect("synced");
    let mut at = 0;
    let mut next = |length: usize| {
        at = if at + length > 64 * MIB { 0 } else { at };
        at += length;
        (at - length) as u64
    };
    let offsets = std::cell::RefCell::new(&mut next);
    for (what, length, count) in
        [("4 KiB durable", BLOCK, 500), ("16 x 4 KiB, one sync", 16 * BLOCK, 300), ("1 MiB", MIB, 60)]
    {
        let blocks = Blocks::new(length, 1);
        let through = || {
            for _ in 0..count {
                file.write_at(blocks.bytes(), (offsets.borrow_mut())(length)).expect("written");
                file.sync_data().expect("synced");
            }
            count
        };
        let past = || {
            for _ in 0..count {
                file.write_durable_at(blocks.bytes(), (offsets.borrow_mut())(length)).expect("written");
            }
            count
        };
        let ways: Vec<Way<'_>> =
            vec![("write, fdatasync".into(), Box::new(through)), ("O_DIRECT, RWF_DSYNC".into(), Box::new(past))];
        row(&format!("journal: {what}"), rounds, ways);
    }
    disk.remove("journal").expect("removed");
}

fn fresh_extents(disks: &[(IoBackend, DirectoryDisk)], rounds: usize) {
    for count in [1, 4, 16] {
        let blocks: Vec<Blocks> = (0..count).map(|n| Blocks::new(MIB, n as u8)).collect();
        let way = |(backend, disk): &(IoBackend, DirectoryDisk)| -> Way<'_> {
            let (blocks, disk) = (&blocks, disk.clone());
            let round = move || {
                // Into reserved space, as a store does.
                let file = disk.create("extent").expect("created");
                file.allocate(64 * MIB as u64).expect("reserved");
                file.sync_data().expect("synced");
                for batch in 0..64 / count {
                    let mut writes = Vec::with_capacity(count);
                    for (n, blocks) in blocks.iter().enumerate() {
                        let offset = ((batch * count + n) * MIB) as u64;
                        writes.push(Write { file: &file, offset, bytes: blocks.bytes() });
                    }
                    disk.write_many_past_cache(&writes).expect("written");
                    disk.sync_many(&[&file]).expect("synced");
                }
                disk.remove("extent").expect("removed");
                64
            };
            (backend.name().into(), Box::new(round))
        };
        row(&format!("fresh extents: {count} x 1 MiB, one sync"), rounds, disks.iter().map(way).collect());
    }
}

fn syncs(disks: &[(IoBackend, DirectoryDisk)], rounds: usize) {
    let way = |(backend, disk): &(IoBackend, DirectoryDisk)| -> Way<'_> {
        let disk = disk.clone();
        let files: Vec<_> =
            (0..8).map(|n| disk.create(&format!("sync-{}-{n}", backend.name())).expect("created")).collect();
        let round = move || {
            for _ in 0..5 {
                for file in &files {
                    for block in 0..64 {
                        file.write_at(&[1; BLOCK], block * 3 * BLOCK as u64).expect("written");
                    }
                }
                disk.sync_many(&files.iter().collect::<Vec<_>>()).expect("synced");
            }
            5
        };
        (backend.name().into(), Box::new(round))
    };
    row("checkpoint: 8 files of 64 dirty blocks", rounds, disks.iter().map(way).collect());
}

fn reads(disks: &[(IoBackend, DirectoryDisk)], path: &Path, rounds: usize) {
    let disk = &disks[0].1;
    let file = disk.create("reads").expect("created");
    for part in 0..FILE_BYTES / MIB {
        file.write_at(&[part as u8; MIB], (part * MIB) as u64).expect("written");
    }
    file.sync_data().expect("synced");
    let file = Arc::new(file);
    let seed = std::cell::RefCell::new(88_172_645_463_325_252u64);
    for depth in [1, 4, 16, 64] {
        let way = |(backend, disk): &(IoBackend, DirectoryDisk)| -> Way<'_> {
            let (seed, disk, file, path) = (&seed, disk.clone(), Arc::clone(&file), path.join("reads"));
            let round = move || {
                forget(&path);
                read_queue(&disk, &file, depth, &places(&mut seed.borrow_mut(), 4000));
                4000
            };
            (backend.name().into(), Box::new(round))
        };
        row(&format!("4 KiB from the disk, {depth} asked for"), rounds, disks.iter().map(way).collect());
    }
    let mut warm = vec![0; FILE_BYTES];
    file.read_at(&mut warm, 0).expect("read");
    for depth in [1, 16] {
        let queued = || {
            read_queue(disk, &file, depth, &places(&mut seed.borrow_mut(), 20_000));
            20_000
        };
        let in_place = || {
            let mut found = 0;
            for offset in places(&mut seed.borrow_mut(), 20_000) {
                found += usize::from(file.read_cached_at(&mut vec![0; BLOCK], offset).expect("read"));
            }
            assert!(found > 19_000, "in memory");
            20_000
        };
        let ways: Vec<Way<'_>> =
            vec![("handed over".into(), Box::new(queued)), ("in place".into(), Box::new(in_place))];
        row(&format!("4 KiB from memory, {depth} asked for"), rounds, ways);
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(path) = arguments.next() else {
        return eprintln!("usage: disk DIRECTORY [ROUNDS]; DIRECTORY must not exist yet and is removed");
    };
    let rounds = arguments.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(9);
    let path = Path::new(&path);
    std::fs::create_dir(path).expect("a new directory");
    let disks = IoBackend::ALL.map(|backend| {
        let path = path.join(backend.name());
        (backend, DirectoryDisk::open_with(&path, Syncing::Real, backend).expect("opened"))
    });
    println!("| what | way | us per operation | CPU us per operation |\n| --- | --- | --- | --- |");
    durable_writes(&disks[0].1, rounds);
    fresh_extents(&disks, rounds);
    syncs(&disks, rounds);
    reads(&disks, &path.join(disks[0].0.name()), rounds);
    drop(disks);
    std::fs::remove_dir_all(path).expect("removed");
}
