//! Reads and writes at the same time: a read that begins after a write was answered sees it, whatever else is under way.

use super::fake::Service;
use super::world::{World, config};
use crate::{Call, CallId, Config, HandleId, Reply};
use bytes::Bytes;
use holdfast_types::InodeId;
use holdfast_types::prng::Prng;
use holdfast_types::size::KIB;
use holdfast_wire::namespace::SetAttributes;
use std::time::Duration;

const FILE_BYTES: u64 = 300 * KIB;

/// A read that was begun and not yet looked at.
struct Begun {
    id: CallId,
    offset: u64,
    expected: Vec<u8>,
    /// Written since it began: either content will do.
    changed: Vec<bool>,
}

struct Race {
    world: World,
    prng: Prng,
    inode: InodeId,
    handle: HandleId,
    model: Vec<u8>,
    reads: Vec<Begun>,
}

impl Race {
    fn new(seed: u64, config: Config, caching: bool) -> Self {
        let mut service = Service::new();
        service.caching = caching;
        let mut world = World::with(seed, config, service);
        world.mount();
        let (inode, handle) = world.create("a");
        let mut prng = Prng::new(seed).fork(3);
        let mut model = vec![0; FILE_BYTES as usize];
        prng.fill(&mut model);
        world.write(handle, 0, model.clone()).expect("write");
        world.ask(Call::Fsync { inode, data_only: false }).expect("durable");
        world.core.pages.clear();
        world.loss = 10;
        Self { world, prng, inode, handle, model, reads: Vec::new() }
    }

    fn range(&mut self) -> (u64, u64) {
        let offset = self.prng.below(FILE_BYTES - 1);
        (offset, self.prng.between(1, (FILE_BYTES - offset).min(60 * KIB)))
    }

    fn begin_read(&mut self) {
        let (offset, length) = self.range();
        let id = self.world.start(Call::Read { handle: self.handle, offset, length: length as u32 });
        let expected = self.model[offset as usize..(offset + length) as usize].to_vec();
        self.reads.push(Begun { id, offset, changed: vec![false; expected.len()], expected });
    }

    fn write(&mut self) {
        let (offset, length) = self.range();
        let mut data = vec![0; length as usize];
        self.prng.fill(&mut data);
        for read in &mut self.reads {
            let end = read.offset + read.expected.len() as u64;
            for at in offset.max(read.offset)..(offset + length).min(end) {
                read.changed[(at - read.offset) as usize] = true;
            }
        }
        self.world.write(self.handle, offset, Bytes::from(data.clone())).expect("write");
        self.model[offset as usize..(offset + length) as usize].copy_from_slice(&data);
    }

    fn finish_reads(&mut self) {
        for read in std::mem::take(&mut self.reads) {
            let Ok(Reply::Data(data)) = self.world.wait(read.id) else { panic!("read") };
            let got = data.into_bytes();
            assert_eq!(got.len(), read.expected.len());
            for (at, byte) in got.iter().enumerate() {
                assert!(read.changed[at] || *byte == read.expected[at], "byte {} is old", read.offset + at as u64);
            }
        }
    }

    fn run(mut self) {
        for _ in 0..60 {
            match self.prng.below(12) {
                0..5 => self.begin_read(),
                5..8 => self.write(),
                8 | 9 => drop(self.world.ask(Call::Fsync { inode: self.inode, data_only: true })),
                10 => {
                    let time = Duration::from_micros(self.prng.below(30_000));
                    self.world.run_for(time);
                }
                _ => self.finish_reads(),
            }
        }
        self.finish_reads();
        let whole = self.world.read(self.handle, 0, FILE_BYTES as u32).expect("read");
        assert!(whole == self.model, "the whole file");
    }
}

fn small() -> Config {
    Config { request_bytes: 64 * KIB, read_ahead_bytes: 128 * KIB, ..config() }
}

#[test]
fn with_a_cache_a_read_under_way_never_brings_back_what_was_overwritten() {
    for seed in 0..60 {
        Race::new(seed, small(), true).run();
    }
}

#[test]
fn without_room_for_a_cache_a_read_takes_no_old_bytes_from_an_earlier_one() {
    for seed in 100..160 {
        Race::new(seed, Config { read_cache_bytes: 0, ..small() }, true).run();
    }
}

#[test]
fn written_through_a_read_sees_every_write_that_was_answered() {
    for seed in 200..230 {
        Race::new(seed, small(), false).run();
    }
}

#[test]
fn an_answer_from_before_a_write_fills_no_gap_of_a_read_from_after_it() {
    let mut race = Race::new(1, Config { read_cache_bytes: 0, ..small() }, true);
    race.world.loss = 0;
    race.world.hold_reads = true;
    let (handle, inode) = (race.handle, race.inode);
    let early = race.world.start(Call::Read { handle, offset: 0, length: 60_000 });
    race.world.run_for(Duration::from_millis(5));
    race.world.write(handle, 20_000, vec![9; 10_000]).expect("write");
    race.world.ask(Call::Fsync { inode, data_only: true }).expect("durable");
    let late = race.world.start(Call::Read { handle, offset: 0, length: 60_000 });
    race.world.release_reads();
    race.world.wait(early).expect("read");
    let Ok(Reply::Data(data)) = race.world.wait(late) else { panic!("read") };
    race.model[20_000..30_000].fill(9);
    assert!(data.into_bytes() == race.model[..60_000], "old bytes were returned");
}

#[test]
fn bytes_that_were_cut_do_not_come_back_with_a_read_from_before() {
    let mut race = Race::new(2, small(), true);
    race.world.loss = 0;
    race.world.hold_reads = true;
    let (handle, inode) = (race.handle, race.inode);
    let early = race.world.start(Call::Read { handle, offset: 0, length: 60_000 });
    race.world.run_for(Duration::from_millis(5));
    for size in [10_000, 60_000] {
        let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
        race.world.ask(Call::SetAttributes { inode, set }).expect("truncate");
    }
    race.world.release_reads();
    race.world.wait(early).expect("read");
    race.model.truncate(10_000);
    race.model.resize(60_000, 0);
    assert!(race.world.read(handle, 0, 100_000).expect("read") == race.model, "what was cut is back");
}
