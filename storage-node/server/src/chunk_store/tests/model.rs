//! What a store should hold, in the plainest form, and operations drawn from a seed.

use super::*;
use holdfast_types::prng::Prng;
use std::collections::BTreeMap;

/// Content of every chunk. Cheap to clone, so that a test can keep the state after each operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    chunks: BTreeMap<(u32, ChunkKey), Arc<Vec<u8>>>,
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
            Change::Mark => {}
        }
        self.chunks.retain(|_, content| !content.is_empty());
    }

    /// Compares everything that can be read.
    pub(super) fn check<D: Disk>(&self, store: &ChunkStore<D>, groups: u32, context: &str) {
        for group in 0..groups {
            let listed = list(store, group);
            let wanted = self.chunks.range((group, KeyRange::ALL.first)..=(group, KeyRange::ALL.last));
            let wanted: Vec<(ChunkKey, &Arc<Vec<u8>>)> =
                wanted.map(|((_, chunk), content)| (*chunk, content)).collect();
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
                let sums: Vec<u8> = piece_sums(0, &whole).iter().flat_map(|sum| sum.to_le_bytes()).collect();
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
        let change = match prng.below(20) {
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
            _ => Change::Mark,
        };
        op(group, self.count, change)
    }
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
