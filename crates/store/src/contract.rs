//! What every table promises, run by each implementation.

use crate::{Batch, FjallConfig, FjallTable, KeyRange, MemoryTable, Pair, Table, View};
use bytes::Bytes;
use holdfast_types::prng::Prng;
use std::collections::BTreeMap;
use std::ops::Bound;

/// One implementation, with a way to close and open it again after a clean stop.
trait Fixture {
    fn table(&self) -> &dyn Table;
    fn reopen(&mut self);
    /// Moves what is in memory to where reads come from disk, where there is such a thing.
    fn flush(&self) {}
}

struct Memory(MemoryTable);

impl Fixture for Memory {
    fn table(&self) -> &dyn Table {
        &self.0
    }
    fn reopen(&mut self) {
        self.0 = self.0.clone();
    }
}

struct Fjall {
    table: Option<FjallTable>,
    directory: tempfile::TempDir,
}

impl Fjall {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut fixture = Self { table: None, directory };
        fixture.reopen();
        fixture
    }
}

impl Fixture for Fjall {
    fn table(&self) -> &dyn Table {
        self.table.as_ref().expect("open")
    }
    fn reopen(&mut self) {
        self.table = None;
        self.table = Some(FjallTable::open(self.directory.path(), FjallConfig::default()).expect("opens"));
    }
    fn flush(&self) {
        self.table.as_ref().expect("open").flush_for_test().expect("flushes");
    }
}

fn pairs(view: &(impl View + ?Sized), range: KeyRange) -> Vec<Pair> {
    view.range(range).map(|pair| pair.expect("reads")).collect()
}

fn put(table: &dyn Table, key: &[u8], value: &[u8]) {
    let mut batch = Batch::new();
    batch.put(key.to_vec(), value.to_vec());
    table.commit(batch).expect("commits");
}

fn reads_its_writes(fixture: &mut dyn Fixture) {
    let table = fixture.table();
    let mut batch = Batch::new();
    batch.put(&b"a"[..], &b"1"[..]);
    batch.put(&b"b"[..], &b""[..]);
    batch.put(&b"c"[..], vec![7; 100_000]);
    table.commit(batch).unwrap();
    let mut batch = Batch::new();
    batch.remove(&b"a"[..]);
    batch.remove(&b"never there"[..]);
    batch.put(&b"d"[..], &b"old"[..]);
    batch.remove(&b"d"[..]);
    batch.put(&b"d"[..], &b"new"[..]);
    table.commit(batch).unwrap();
    table.commit(Batch::new()).expect("an empty batch is one too");
    for round in 0..3 {
        let table = fixture.table();
        assert_eq!(table.get(b"a").unwrap(), None);
        assert_eq!(table.get(b"b").unwrap().as_deref(), Some(&b""[..]), "an empty value is a value");
        assert_eq!(table.get(b"c").unwrap().map(|v| v.len()), Some(100_000));
        assert_eq!(table.get(b"d").unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(pairs(table, KeyRange::all()).len(), 3);
        assert!(table.bytes_on_disk().unwrap() > 0);
        match round {
            0 => fixture.flush(),
            _ => fixture.reopen(),
        }
    }
}

fn ranges_agree_with_a_model(fixture: &mut dyn Fixture) {
    let mut prng = Prng::new(7);
    let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    let key = |prng: &mut Prng| {
        let mut key = vec![0; prng.between(1, 3) as usize];
        key.fill_with(|| *prng.pick(&[0, 1, 0x7f, 0xff]));
        Bytes::from(key)
    };
    for round in 0..300u64 {
        let mut batch = Batch::new();
        for _ in 0..prng.between(0, 5) {
            let key = key(&mut prng);
            if prng.chance(1, 3) { batch.remove(key) } else { batch.put(key, round.to_be_bytes().to_vec()) }
        }
        for (key, value) in batch.iter() {
            match value {
                Some(value) => model.insert(key.clone(), value.clone()),
                None => model.remove(key),
            };
        }
        fixture.table().commit(batch).unwrap();
        if round % 100 == 50 {
            fixture.flush();
        }
        let mut bound = || match prng.below(3) {
            0 => Bound::Unbounded,
            1 => Bound::Included(key(&mut prng)),
            _ => Bound::Excluded(key(&mut prng)),
        };
        let range = KeyRange { start: bound(), end: bound() };
        let expected: Vec<Pair> =
            model.iter().filter(|(key, _)| range.contains(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(pairs(fixture.table(), range.clone()), expected, "{range:?}");
        let mut backwards: Vec<Pair> = fixture.table().range(range.clone()).rev().map(Result::unwrap).collect();
        backwards.reverse();
        assert_eq!(backwards, expected, "backwards {range:?}");
        assert_eq!(from_both_ends(fixture.table(), range, &mut prng), expected);
    }
}

/// Walks a range from both ends in a random order.
fn from_both_ends(table: &dyn Table, range: KeyRange, prng: &mut Prng) -> Vec<Pair> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let mut run = table.range(range);
    loop {
        let (next, into) = if prng.chance(1, 2) { (run.next(), &mut front) } else { (run.next_back(), &mut back) };
        match next {
            Some(pair) => into.push(pair.unwrap()),
            None => break,
        }
    }
    front.extend(back.into_iter().rev());
    front
}

fn views_do_not_move(fixture: &mut dyn Fixture) {
    let table = fixture.table();
    for n in 0..100u8 {
        put(table, &[n], b"old");
    }
    let snapshot = table.snapshot();
    let mut run = table.range(KeyRange::all());
    assert_eq!(run.next().unwrap().unwrap().1, "old");
    let mut batch = Batch::new();
    for n in 0..100u8 {
        if n % 2 == 0 { batch.remove(vec![n]) } else { batch.put(vec![n], &b"new"[..]) }
    }
    batch.put(vec![200], &b"new"[..]);
    table.commit(batch).unwrap();
    fixture.flush();
    assert_eq!(run.filter(|pair| pair.as_ref().unwrap().1 == "old").count(), 99, "a range holds its view");
    assert_eq!(pairs(&*snapshot, KeyRange::all()).len(), 100);
    assert_eq!(snapshot.get(&[1]).unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(snapshot.get(&[200]).unwrap(), None);
    assert_eq!(pairs(fixture.table(), KeyRange::all()).len(), 51);
    assert_eq!(fixture.table().snapshot().get(&[1]).unwrap().as_deref(), Some(&b"new"[..]));
}

fn replacements_are_all_or_nothing(fixture: &mut dyn Fixture) {
    put(fixture.table(), b"old", b"1");
    fixture.table().persist().unwrap();
    let mut given_up = fixture.table().replace().unwrap();
    let mut batch = Batch::new();
    batch.put(&b"lost"[..], &b"1"[..]);
    given_up.commit(batch).unwrap();
    drop(given_up);
    fixture.reopen();
    assert_eq!(pairs(fixture.table(), KeyRange::all()), [(Bytes::from("old"), Bytes::from("1"))]);

    let before = fixture.table().snapshot();
    let mut replacement = fixture.table().replace().unwrap();
    for n in 0..10u8 {
        let mut batch = Batch::new();
        batch.put(vec![n], vec![n]);
        replacement.commit(batch).unwrap();
    }
    assert_eq!(pairs(fixture.table(), KeyRange::all()).len(), 1, "unseen until finished");
    replacement.finish().unwrap();
    assert_eq!(pairs(fixture.table(), KeyRange::all()).len(), 10);
    assert_eq!(pairs(&*before, KeyRange::all()).len(), 1, "a view holds what it saw");
    drop(before);
    put(fixture.table(), b"after", b"1");
    fixture.reopen();
    assert_eq!(pairs(fixture.table(), KeyRange::all()).len(), 11);
}

fn many_readers_and_a_writer(fixture: &mut dyn Fixture) {
    let table = fixture.table();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut last = 0;
                    while last < 500 {
                        let all = pairs(table, KeyRange::all());
                        let values: std::collections::BTreeSet<Bytes> = all.iter().map(|(_, v)| v.clone()).collect();
                        assert!(values.len() <= 1, "a commit was seen in part: {values:?}");
                        let now = values.first().map_or(0, |v| u64::from_be_bytes(v[..].try_into().unwrap()));
                        assert!(now >= last, "the table went back from {last} to {now}");
                        last = now;
                        // The keys are set in order, so one read after another may find a later commit, never an earlier.
                        let singles = [4u8, 0].map(|key| table.get(&[key]).unwrap());
                        assert!(singles[0] <= singles[1], "the last key was set before the first: {singles:?}");
                    }
                })
            })
            .collect();
        for n in 1..=500u64 {
            let mut batch = Batch::new();
            for key in 0..5u8 {
                batch.put(vec![key], n.to_be_bytes().to_vec());
            }
            table.commit(batch).unwrap();
        }
        for reader in readers {
            reader.join().expect("a reader saw only whole commits");
        }
    });
}

macro_rules! contract {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $test() { super::$test(&mut super::Memory(super::MemoryTable::new())); })*
        }
        mod fjall {
            $(#[test] fn $test() { super::$test(&mut super::Fjall::new()); })*
        }
    };
}

contract!(
    reads_its_writes,
    ranges_agree_with_a_model,
    views_do_not_move,
    replacements_are_all_or_nothing,
    many_readers_and_a_writer,
);
