//! What a store should hold, in the plainest form, and operations drawn from a seed.

use super::*;
use holdfast_storage_core::local::{Contenders, Run};
use holdfast_types::prng::Prng;
use holdfast_types::{Sequence, SessionId};
use holdfast_wire::group::Contender;
use std::collections::{BTreeMap, BTreeSet};

/// Content of every chunk. Cheap to clone, so that a test can keep the state after each operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    chunks: BTreeMap<(u32, ChunkKey), Arc<Vec<u8>>>,
    contenders: BTreeMap<(u32, ChunkKey), Contenders>,
}

impl Model {
    pub(super) fn apply(&mut self, op: &LocalOp) {
        let group = op.group.0;
        match &op.change {
            Change::Write { chunk, offset, bytes, .. } => {
                let content = Arc::make_mut(self.chunks.entry((group, *chunk)).or_default());
                let end = *offset as usize + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*offset as usize..end].copy_from_slice(bytes);
            }
            Change::Zero { chunk, offset, length } => {
                if let Some(content) = self.chunks.get_mut(&(group, *chunk)) {
                    let content = Arc::make_mut(content);
                    let end = content.len().min((*offset + *length) as usize);
                    if (*offset as usize) < end {
                        content[*offset as usize..end].fill(0);
                    }
                }
            }
            Change::Cut { chunk, length } => {
                if let Some(content) = self.chunks.get_mut(&(group, *chunk)) {
                    Arc::make_mut(content).truncate(*length as usize);
                }
            }
            change @ (Change::Delete { .. } | Change::DeleteChunk { .. } | Change::DeleteVolume { .. }) => {
                let keys = change.keys().expect("deletes name keys");
                self.chunks.retain(|(of, chunk), _| *of != group || !keys.contains(*chunk));
            }
            Change::Copy { chunk, length, runs, .. } => {
                let content = Arc::make_mut(self.chunks.entry((group, *chunk)).or_default());
                content.truncate(*length as usize);
                for run in runs {
                    let end = run.offset as usize + run.bytes.len();
                    content.resize(content.len().max(end), 0);
                    content[run.offset as usize..end].copy_from_slice(&run.bytes);
                }
                content.resize(*length as usize, 0);
            }
            // Blocks that are what they should be stay what they are.
            Change::Mend { .. } | Change::Mark => {}
        }
        self.chunks.retain(|_, content| !content.is_empty());
        self.note(op);
    }

    /// What chunks remember of contended changes.
    fn note(&mut self, op: &LocalOp) {
        let group = op.group.0;
        match &op.change {
            Change::Write { chunk, .. } | Change::Zero { chunk, .. } => {
                self.contenders.entry((group, *chunk)).or_default().note(op.origin);
            }
            Change::Cut { chunk, .. } => {
                let contenders = self.contenders.entry((group, *chunk)).or_default();
                contenders.note(op.origin);
                contenders.cut();
            }
            change @ (Change::Delete { .. } | Change::DeleteChunk { .. } | Change::DeleteVolume { .. }) => {
                let keys = change.keys().expect("deletes name keys");
                let goes_on = matches!(change, Change::Delete { from, .. } if from.0 > 0);
                self.contenders.retain(|(of, chunk), _| goes_on || *of != group || !keys.contains(*chunk));
                let met = self.contenders.iter_mut().filter(|((of, chunk), _)| *of == group && keys.contains(*chunk));
                met.for_each(|(_, contenders)| contenders.cut());
            }
            Change::Copy { chunk, contenders, .. } => {
                self.contenders.insert((group, *chunk), contenders.clone());
            }
            // Blocks that are what they should be stay what they are.
            Change::Mend { .. } | Change::Mark => {}
        }
        self.contenders.retain(|_, contenders| !contenders.is_empty());
    }

    /// Compares everything that can be read.
    pub(super) fn check<D: Disk>(&self, store: &ChunkStore<D>, groups: u32, context: &str) {
        for group in 0..groups {
            let listed = list(store, group);
            let all = (group, KeyRange::ALL.first)..=(group, KeyRange::ALL.last);
            let (empty, nobody) = (Arc::default(), Contenders::default());
            let keys: BTreeSet<(u32, ChunkKey)> = self
                .chunks
                .range(all.clone())
                .map(|(key, _)| *key)
                .chain(self.contenders.range(all).map(|(key, _)| *key))
                .collect();
            let wanted: Vec<(ChunkKey, &Arc<Vec<u8>>)> =
                keys.iter().map(|key| (key.1, self.chunks.get(key).unwrap_or(&empty))).collect();
            let have: Vec<ChunkKey> = listed.iter().map(|summary| summary.chunk).collect();
            assert_eq!(have, wanted.iter().map(|(chunk, _)| *chunk).collect::<Vec<_>>(), "{context}");
            for ((chunk, content), summary) in wanted.into_iter().zip(&listed) {
                assert_eq!(summary.length as usize, content.len(), "{context}: length of {chunk}");
                let got = read(store, group, chunk, 0, 4 << 20);
                let got = got.unwrap_or_else(|error| panic!("{context}: {chunk}: {error}"));
                assert!(got == content.as_slice(), "{context}: {chunk} differs");
                let padded = content.len().next_multiple_of(4096);
                let mut whole = content.to_vec();
                whole.resize(padded, 0);
                let contenders = self.contenders.get(&(group, chunk)).unwrap_or(&nobody);
                let sums = piece_sums(0, &whole);
                let sums: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).chain(contenders.summed()).collect();
                assert_eq!(summary.digest, holdfast_types::checksum::crc32(&sums), "{context}: digest of {chunk}");
            }
        }
    }
}

/// Draws operations. Counts rise through all groups, so that the last number of any group tells how far the whole came.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) prng: Prng,
    pub(super) groups: u32,
    pub(super) count: u64,
}

impl Workload {
    pub(super) fn new(seed: u64) -> Self {
        Self { prng: Prng::new(seed), groups: 2, count: 0 }
    }

    pub(super) fn next(&mut self) -> LocalOp {
        let prng = &mut self.prng;
        self.count += 1;
        let group = prng.below(u64::from(self.groups)) as u32;
        let chunk = chunk(prng.between(1, 2), prng.below(2));
        // Few places, so that operations meet.
        let offset = (prng.below(40) * 4096 + *prng.pick(&[0, 0, 1, 100, 4095])) as u32;
        let change = match prng.below(21) {
            0..=8 => {
                let mut bytes = vec![0; prng.between(1, 9_000) as usize];
                prng.fill(&mut bytes);
                write(chunk, offset, bytes)
            }
            9..=11 => {
                let mut bytes = vec![0; *prng.pick(&[4096, 8192, 16_384])];
                prng.fill(&mut bytes);
                write(chunk, offset / 4096 * 4096, bytes)
            }
            12..=14 => {
                let mut bytes = vec![0; prng.between(33_000, 120_000) as usize];
                prng.fill(&mut bytes);
                write(chunk, offset, bytes)
            }
            15 | 16 => Change::Zero { chunk, offset, length: prng.between(1, 60_000) as u32 },
            17 => Change::Cut { chunk, length: if prng.chance(1, 4) { 0 } else { offset } },
            18 if prng.chance(1, 3) => Change::DeleteVolume { volume: VolumeId(1) },
            18 => Change::Delete {
                volume: VolumeId(1),
                inode: chunk.inode,
                generation: Generation(1),
                from: ChunkIndex(prng.below(2)),
            },
            _ if prng.chance(1, 2) => Change::DeleteChunk { chunk },
            19 if prng.chance(3, 4) => copy(prng, chunk),
            _ => Change::Mark,
        };
        let mut op = op(group, self.count, change);
        op.origin.contended = self.prng.chance(1, 3);
        op
    }
}

/// A copy of a chunk: shorter or longer than what is there, a few blocks of it, and contenders or none.
fn copy(prng: &mut Prng, chunk: ChunkKey) -> Change {
    let length = prng.between(1, 200_000) as u32;
    let blocks = length.div_ceil(4096);
    let mut runs = Vec::new();
    let mut at = prng.below(3) as u32;
    while at < blocks {
        let offset = at * 4096;
        let most = *prng.pick(&[4096, 4096, 20_480, 65_536]);
        let mut bytes = vec![0; most.min(length - offset) as usize];
        prng.fill(&mut bytes);
        at = (offset + bytes.len() as u32).div_ceil(4096) + prng.below(12) as u32;
        runs.push(Run { offset, sums: piece_sums(offset, &bytes), bytes: bytes.into() });
    }
    let last = Sequence(prng.between(1, 90));
    let contender = Contender { session: SessionId(prng.between(1, 4)), last, cut: Sequence(0) };
    let list = if prng.chance(1, 3) { Vec::new() } else { vec![contender] };
    Change::Copy { chunk, length, runs, contenders: Contenders::from_list(list).expect("one at the most") }
}

/// Every other block of a chunk: more than a segment of this journal.
#[test]
fn a_copy_of_many_short_runs_is_one_operation_of_any_length() {
    let (disk, table, mut store) = fresh(1);
    let mut model = Model::default();
    let whole = op(0, 1, write(chunk(1, 0), 0, vec![1; 4 << 20]));
    let run = |block: u32| {
        let bytes = Bytes::from(vec![2; 4096]);
        Run { offset: block * 4096, sums: piece_sums(0, &bytes), bytes }
    };
    let runs = (0..512).map(|at| run(2 * at)).collect();
    let contenders = Contenders::default();
    let copy = op(0, 2, Change::Copy { chunk: chunk(1, 0), length: 4 << 20, runs, contenders });
    for op in [whole, copy] {
        assert!(store.apply(std::slice::from_ref(&op)).iter().all(Result::is_ok));
        model.apply(&op);
    }
    model.check(&store, 1, "applied");
    drop(store);
    model.check(&open(&disk, &table).expect("opens again"), 1, "and opened again");
}

#[test]
fn random_operations_leave_what_the_model_says() {
    for seed in 0..30 {
        let (disk, table, mut store) = fresh(seed);
        let (mut workload, mut model) = (Workload::new(seed), Model::default());
        for round in 0..60 {
            let ops: Vec<LocalOp> = (0..workload.prng.between(1, 8)).map(|_| workload.next()).collect();
            assert!(store.apply(&ops).iter().all(Result::is_ok), "seed {seed}");
            ops.iter().for_each(|op| model.apply(op));
            if workload.prng.chance(1, 6) {
                let job = store.begin_checkpoint();
                let more = workload.next();
                store.apply(std::slice::from_ref(&more));
                model.apply(&more);
                job.run().expect("no fault was asked for");
                store.end_checkpoint(&job).expect("no fault was asked for");
            }
            if workload.prng.chance(1, 10) {
                drop(store);
                store = open(&disk, &table).expect("reopens");
            }
            model.check(&store, 2, &format!("seed {seed}, round {round}"));
        }
    }
}
