//! A client that knows what every byte may be: one change of a chunk at a time, repeated until it is answered.

use super::authority::VOLUME;
use super::store::apply;
use crate::change;
use crate::local::Change;
use bytes::Bytes;
use holdfast_types::checksum::piece_sums;
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::prng::Prng;
use holdfast_types::{
    ChunkIndex, ChunkKey, Generation, GroupId, InodeId, MapVersion, NodeId, Sequence, SessionId, SnapshotNumber, Term,
};
use holdfast_wire::chunk::{ByteRange, ChunkAnswer, ChunkOp, ChunkRequest, Refusal};
use holdfast_wire::map::ClusterMap;
use std::collections::{BTreeMap, BTreeSet};

const CHUNK_MAX: u64 = 20_000;
const RETRY_MS: u64 = 700;

pub(crate) struct Outgoing {
    pub(crate) node: NodeId,
    pub(crate) attempt: u64,
    pub(crate) request: ChunkRequest,
    pub(crate) payload: Bytes,
}

struct Open {
    group: GroupId,
    op: ChunkOp,
    payload: Bytes,
    sequence: Sequence,
    sent_at: u64,
    attempts: Vec<u64>,
}

pub(crate) struct Client {
    inode: InodeId,
    pub(crate) session: SessionId,
    session_from: MapVersion,
    map: ClusterMap,
    prng: Prng,
    chunks: u64,
    /// What was acknowledged.
    content: BTreeMap<ChunkKey, Vec<u8>>,
    open: BTreeMap<u64, Open>,
    next_op: u64,
    next_attempt: u64,
    sequence: Sequence,
    pub(crate) stopping: bool,
    /// Only what tests ask for.
    pub(crate) manual: bool,
    /// It does not look at newer maps.
    pub(crate) keeps_map: bool,
    /// Its session was ended by this version of the map: it waits for the fence, then mounts again.
    pub(crate) fencing: Option<MapVersion>,
    /// Chunks whose last change may or may not have happened when the session ended, and what they hold if it has.
    doubts: BTreeMap<ChunkKey, Vec<u8>>,
    /// Chunks whose length cannot be told from what was read.
    vague: BTreeSet<ChunkKey>,
    pub(crate) refused: u64,
    last: Option<Refusal>,
}

impl Client {
    pub(crate) fn new(index: u64, session: SessionId, map: &ClusterMap, chunks: u64, seed: u64) -> Self {
        Self {
            inode: InodeId(100 + index),
            session,
            session_from: map.version,
            map: map.clone(),
            prng: Prng::new(seed),
            chunks,
            content: BTreeMap::new(),
            open: BTreeMap::new(),
            next_op: 0,
            next_attempt: 0,
            sequence: Sequence(1),
            stopping: false,
            manual: false,
            keeps_map: false,
            fencing: None,
            doubts: BTreeMap::new(),
            vague: BTreeSet::new(),
            refused: 0,
            last: None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty() && self.doubts.is_empty() && self.fencing.is_none()
    }

    pub(crate) fn chunk(&self, index: u64) -> ChunkKey {
        ChunkKey {
            volume: VOLUME,
            inode: self.inode,
            generation: Generation(1),
            index: ChunkIndex(index),
            born: SnapshotNumber(0),
        }
    }

    pub(crate) fn group(&self, chunk: ChunkKey) -> GroupId {
        GroupId::of(chunk.volume, chunk.inode, chunk.index, self.map.views.len() as u32)
    }

    /// What a chunk holds for certain: none while a change of it is open.
    pub(crate) fn settled_content(&self, chunk: ChunkKey) -> Option<&[u8]> {
        let busy = self.open.values().any(|open| open.op.is_change() && touches(&open.op, open.group, chunk, self));
        (!busy && !self.doubts.contains_key(&chunk) && !self.vague.contains(&chunk))
            .then(|| self.content.get(&chunk).map_or(&[][..], Vec::as_slice))
    }

    pub(crate) fn contents(&self, group: GroupId) -> Vec<(ChunkKey, Vec<u8>)> {
        let mine = self.mine().into_iter().filter(|c| self.group(*c) == group && !self.vague.contains(c));
        mine.map(|chunk| (chunk, self.content.get(&chunk).cloned().unwrap_or_default())).collect()
    }

    fn mine(&self) -> Vec<ChunkKey> {
        (0..self.chunks).map(|index| self.chunk(index)).collect()
    }

    pub(crate) fn tick(&mut self, now: u64, map: &ClusterMap, out: &mut Vec<Outgoing>) {
        if self.fencing.is_some() {
            return;
        }
        if self.open.is_empty()
            && let Some(chunk) = self.doubts.keys().next().copied()
        {
            let length = CHUNK_MAX as u32;
            self.open(now, self.group(chunk), ChunkOp::Read { chunk, offset: 0, length }, Bytes::new(), out);
        }
        let keys: Vec<u64> = self.open.keys().copied().collect();
        for key in keys {
            if self.open.get(&key).is_some_and(|open| now - open.sent_at >= RETRY_MS) {
                if self.prng.chance(2, 3) && !self.keeps_map {
                    self.map = map.clone();
                }
                self.send(key, now, out);
            }
        }
        if !self.stopping && !self.manual && self.doubts.is_empty() && self.open.len() < 4 && self.prng.chance(1, 2) {
            self.begin_random(now, out);
        }
    }

    fn begin_random(&mut self, now: u64, out: &mut Vec<Outgoing>) {
        let index = self.prng.below(self.chunks);
        let chunk = self.chunk(index);
        let offset = self.prng.below(CHUNK_MAX - 1);
        let length = 1 + self.prng.below((CHUNK_MAX - offset).min(9000));
        let (offset, length) = (offset as u32, length as u32);
        let group = self.group(chunk);
        let op = match self.prng.below(12) {
            0..=5 => return self.write(now, chunk, offset, length, out),
            6 => ChunkOp::Zero { chunk, offset, length },
            7 => ChunkOp::Cut { chunk, length: offset },
            8 if self.prng.chance(1, 3) => ChunkOp::Delete {
                volume: VOLUME,
                inode: self.inode,
                generation: Generation(1),
                from: ChunkIndex(self.prng.below(self.chunks)),
            },
            9 if self.prng.chance(1, 2) => {
                let from = self.prng.below(self.chunks);
                ChunkOp::Allocated {
                    volume: VOLUME,
                    inode: self.inode,
                    generation: Generation(1),
                    from: ChunkIndex(from),
                    upto: ChunkIndex(from + self.prng.below(self.chunks - from)),
                }
            }
            9 => ChunkOp::Highest {
                volume: VOLUME,
                inode: self.inode,
                generation: Generation(1),
                from: ChunkIndex(self.prng.below(self.chunks)),
            },
            _ => ChunkOp::Read { chunk, offset, length },
        };
        self.begin(now, group, op, Bytes::new(), out);
    }

    pub(crate) fn write(&mut self, now: u64, chunk: ChunkKey, offset: u32, length: u32, out: &mut Vec<Outgoing>) {
        let mut bytes = vec![0; length as usize];
        self.prng.fill(&mut bytes);
        // No zeros, so that what was written can be told from what was not.
        bytes.iter_mut().for_each(|byte| *byte |= 1);
        let sums = piece_sums(offset, &bytes);
        let group = self.group(chunk);
        self.begin(now, group, ChunkOp::Write { chunk, offset, sums }, bytes.into(), out);
    }

    pub(crate) fn begin(&mut self, now: u64, group: GroupId, op: ChunkOp, payload: Bytes, out: &mut Vec<Outgoing>) {
        let mine = self.mine();
        let touched = |chunk: &&ChunkKey| touches(&op, group, **chunk, self);
        let busy = mine.iter().filter(touched).any(|chunk| {
            self.doubts.contains_key(chunk)
                || self.open.values().any(|open| touches(&open.op, open.group, *chunk, self))
        });
        let range =
            |op: &ChunkOp| matches!(op, ChunkOp::Delete { .. } | ChunkOp::Highest { .. } | ChunkOp::Allocated { .. });
        let ranges = range(&op) && self.open.values().any(|open| open.group == group && range(&open.op));
        if !busy && !ranges {
            self.open(now, group, op, payload, out);
        }
    }

    fn open(&mut self, now: u64, group: GroupId, op: ChunkOp, payload: Bytes, out: &mut Vec<Outgoing>) {
        let sequence = if op.is_change() { self.sequence } else { Sequence(0) };
        if op.is_change() {
            self.sequence = self.sequence.next();
        }
        self.next_op += 1;
        let key = self.next_op;
        self.open.insert(key, Open { group, op, payload, sequence, sent_at: now, attempts: Vec::new() });
        self.send(key, now, out);
    }

    fn send(&mut self, key: u64, now: u64, out: &mut Vec<Outgoing>) {
        let Some(group) = self.open.get(&key).map(|open| open.group) else { return };
        let to_group = self.open.values().filter(|open| open.op.is_change() && open.group == group);
        let floor = to_group.map(|open| open.sequence).min().unwrap_or(self.sequence);
        let Some(open) = self.open.get_mut(&key) else { return };
        let Some(view) = self.map.view(open.group) else { return };
        open.sent_at = now;
        self.next_attempt += 1;
        open.attempts.push(self.next_attempt);
        let request = ChunkRequest {
            session: self.session,
            sequence: open.sequence,
            floor,
            map_min: self.session_from,
            term: Term(0),
            snapshot: SnapshotNumber(0),
            group: open.group,
            epoch: view.epoch,
            contended: false,
            repeated: false,
            op: open.op.clone(),
        };
        let (node, attempt, payload) = (view.primary.node, self.next_attempt, open.payload.clone());
        out.push(Outgoing { node, attempt, request, payload });
    }

    /// Takes an answer; returns what a change that is now acknowledged touched.
    pub(crate) fn answer(
        &mut self,
        attempt: u64,
        answer: ChunkAnswer,
        payload: &Bytes,
        map: &ClusterMap,
        _out: &mut [Outgoing],
    ) -> Option<(GroupId, Vec<ChunkKey>)> {
        let key = *self.open.iter().find(|(_, open)| open.attempts.contains(&attempt))?.0;
        match answer {
            ChunkAnswer::Done { .. } => {
                let open = self.open.remove(&key)?;
                let chunks = self.mine().into_iter().filter(|c| touches(&open.op, open.group, *c, self)).collect();
                let change = change::from_client(&open.op, &open.payload).expect("our own change");
                self.acknowledged(&change, open.group);
                Some((open.group, chunks))
            }
            ChunkAnswer::Data { sums } => {
                let open = self.open.remove(&key)?;
                let ChunkOp::Read { chunk, offset, length } = open.op else { panic!("data for {:?}", open.op) };
                assert_eq!(sums, piece_sums(offset, payload), "sums of a read");
                if self.doubts.contains_key(&chunk) {
                    self.resolve(chunk, payload);
                } else {
                    self.check_read(chunk, offset, length, payload);
                }
                None
            }
            ChunkAnswer::Made { .. } => unreachable!("nobody asked"),
            ChunkAnswer::Highest { found } => {
                let open = self.open.remove(&key)?;
                let ChunkOp::Highest { from, .. } = open.op else { panic!("highest for {:?}", open.op) };
                let held = self.contents(open.group).into_iter().rev();
                let want = held
                    .filter(|(c, held)| c.index >= from && !held.is_empty())
                    .map(|(c, held)| (c.index, held.len() as u32));
                if self.vague.is_empty() {
                    assert_eq!(found, want.max(), "highest from {from}");
                }
                None
            }
            ChunkAnswer::Allocated { ranges, through } => {
                let open = self.open.remove(&key)?;
                let ChunkOp::Allocated { from, upto, .. } = open.op else { panic!("allocated for {:?}", open.op) };
                let held = self.contents(open.group).into_iter();
                let want: Vec<ByteRange> = held
                    .filter(|(c, held)| (from..=upto).contains(&c.index) && !held.is_empty())
                    .map(|(c, held)| (c.index.0 * CHUNK_BYTES, held.len() as u64))
                    .map(|(start, length)| ByteRange { start, end: start + length })
                    .collect();
                if self.vague.is_empty() {
                    assert_eq!((ranges, through), (want, ChunkIndex(u64::MAX)), "allocated {from}..={upto}");
                }
                None
            }
            ChunkAnswer::Refused(refusal) => {
                self.refused += 1;
                self.last = Some(refusal.clone());
                match refusal {
                    Refusal::SessionEnded => panic!("a live session was refused"),
                    // Final for that message only: of an operation that was sent twice the other copy may still be on its way.
                    Refusal::NoSpace if self.open.get(&key).is_some_and(|open| open.attempts.len() == 1) => {
                        self.open.remove(&key);
                    }
                    Refusal::Malformed | Refusal::Forbidden | Refusal::Damaged => panic!("refused: {refusal}"),
                    // Only a copy that came late can be stale: the operation was answered, or this is not its newest try.
                    Refusal::StaleSequence => {}
                    _ if self.keeps_map => {}
                    _ => self.map = map.clone(),
                }
                None
            }
        }
    }

    fn acknowledged(&mut self, change: &Change, group: GroupId) {
        if let Change::Delete { .. } = change {
            // This group's chunks only.
            let keys = change.keys().expect("keys");
            let groups = self.map.views.len() as u32;
            let of = |c: &ChunkKey| GroupId::of(c.volume, c.inode, c.index, groups);
            self.content.retain(|chunk, _| !keys.contains(*chunk) || of(chunk) != group);
        } else {
            apply(&mut self.content, change);
        }
    }

    /// No change of the chunk was open when the read began, and none has begun since.
    fn check_read(&self, chunk: ChunkKey, offset: u32, length: u32, payload: &Bytes) {
        let want = self.content.get(&chunk).map_or(&[][..], Vec::as_slice);
        for at in 0..length as usize {
            let want = want.get(offset as usize + at).copied().unwrap_or(0);
            let have = payload.get(at).copied().unwrap_or(0);
            assert_eq!(have, want, "byte {} of {chunk}", offset as usize + at);
        }
    }

    /// What was read says whether the last change of the ended session has happened.
    fn resolve(&mut self, chunk: ChunkKey, payload: &Bytes) {
        let Some(after) = self.doubts.remove(&chunk) else { return };
        let before = self.content.get(&chunk).cloned().unwrap_or_default();
        let padded = |content: &[u8]| {
            let mut content = content.to_vec();
            content.resize(CHUNK_MAX as usize, 0);
            content
        };
        let (read, was, is) = (padded(payload), padded(&before), padded(&after));
        assert!(read == was || read == is, "{chunk} is neither as before the last change nor as after it");
        if was == is && before.len() != after.len() {
            self.vague.insert(chunk);
        } else if read == is {
            self.content.insert(chunk, after);
        }
    }

    /// The session is ended by others: what is open may happen until the fence is complete, and not after.
    pub(crate) fn fence(&mut self, version: MapVersion) {
        self.fencing = Some(version);
        for (_, open) in std::mem::take(&mut self.open) {
            let Ok(change) = change::from_client(&open.op, &open.payload) else { continue };
            let mut after = self.content.clone();
            apply(&mut after, &change);
            let mut touched = self.mine();
            touched.retain(|chunk| open.op.is_change() && touches(&open.op, open.group, *chunk, self));
            for chunk in touched {
                self.doubts.insert(chunk, after.get(&chunk).cloned().unwrap_or_default());
            }
        }
    }

    /// The fence is complete: a new mount of the same files.
    pub(crate) fn mount_again(&mut self, session: SessionId, map: &ClusterMap) {
        self.session = session;
        self.session_from = map.version;
        self.map = map.clone();
        self.sequence = Sequence(1);
        self.fencing = None;
    }

    /// Takes a newer map.
    pub(crate) fn look(&mut self, map: &ClusterMap) {
        self.map = map.clone();
    }

    /// What a person would look at first.
    pub(crate) fn picture(&self) -> String {
        let open: Vec<_> =
            self.open.values().map(|o| (o.group, &o.op, o.sequence, o.sent_at, o.attempts.len())).collect();
        let (session, doubts) = (self.session, self.doubts.len());
        format!(
            "{session} fencing {:?}, {doubts} doubts, map {}, last {:?}, open {open:?}",
            self.fencing, self.map.version, self.last
        )
    }
}

fn touches(op: &ChunkOp, group: GroupId, chunk: ChunkKey, client: &Client) -> bool {
    match op {
        ChunkOp::Write { chunk: own, .. }
        | ChunkOp::Zero { chunk: own, .. }
        | ChunkOp::Cut { chunk: own, .. }
        | ChunkOp::Made { chunk: own, .. }
        | ChunkOp::Read { chunk: own, .. } => *own == chunk,
        ChunkOp::Delete { from, .. } | ChunkOp::Highest { from, .. } | ChunkOp::Allocated { from, .. } => {
            chunk.inode == client.inode && chunk.index >= *from && client.group(chunk) == group
        }
        ChunkOp::DeleteVolume { .. } => true,
    }
}
