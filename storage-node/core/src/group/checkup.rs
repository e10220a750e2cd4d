//! A chunk of this disk is read whole, and its damaged blocks are put right with what another member has.
//!
//! ```text
//! Reading ──all sound──────────────────────────────────────────────────────────▶ examined
//!    ▲ └──blocks are bad──▶ Asking a member ──it has some──▶ Placing ──more are wanted──▶ Asking it again
//!    │                         │ it has none, or is silent     │
//!    │                         └──▶ the next one; nobody is left: examined, with blocks left
//!    └─────all are placed──────────────────────────────────────┘
//! ```
//! * Whatever the role. Nobody leaves the view for it, and nothing is held: the store knows what each block should be (its sum), and takes
//!   only that ([`Change::Mend`]). So it does not matter which member the bytes come from, nor how old its word is, nor what is numbered
//!   meanwhile: bytes that are not those that were written there last do not land.
//! * Members in sync are asked first. A syncing one may have the block as well, and be the only one that has.

use crate::book::Ctx;
use crate::group::base::{Base, Tag};
use crate::local::{Change, Checked, LocalCommand, LocalError, LocalOp, LocalOutcome, Origin};
use bytes::{Bytes, BytesMut};
use holdfast_types::checksum::crc32;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, Instant, MemberId};
use holdfast_wire::group::{FETCH_BLOCKS_MAX, GroupBody};
use std::collections::BTreeMap;

/// A chunk is read so often at the most before it is given up for now.
const LOOKS_MAX: u32 = 4;

/// Chunks that are read.
#[derive(Debug, Default)]
pub(crate) struct Checkups {
    open: BTreeMap<ChunkKey, Checkup>,
    next_id: u64,
    /// Chunks with blocks that nobody had, and when that was found.
    failed: BTreeMap<ChunkKey, Instant>,
}

#[derive(Debug)]
struct Checkup {
    stage: Stage,
    looks: u32,
    /// Blocks found bad at the first look.
    bad: u32,
    /// Blocks that are still wanted, and their sums.
    wanted: Vec<(u32, u32)>,
    /// Who was not asked yet; the next one last.
    sources: Vec<MemberId>,
    /// One of those that were asked said nothing.
    silent: bool,
    /// What was found, of the last look.
    found: Option<Checked>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Reading,
    Asking { source: MemberId, id: u64, asked_at: Instant, since: Instant },
    Placing { source: MemberId },
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) chunk: ChunkKey,
    /// Blocks that were bad, and those that still are.
    pub(crate) bad: u32,
    pub(crate) left: Vec<u32>,
    /// A member that may have them did not answer.
    pub(crate) unsure: bool,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// The chunk, if it is there.
    pub(crate) found: Option<Checked>,
}

impl Checkups {
    pub(crate) fn is_open(&self, chunk: ChunkKey) -> bool {
        self.open.contains_key(&chunk)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Names the next question for blocks.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Blocks of it were found to be nowhere, and not long ago.
    pub(crate) fn failed_lately(&self, chunk: ChunkKey, ctx: &Ctx<'_>) -> bool {
        self.failed.get(&chunk).is_some_and(|at| ctx.now.since(*at) < ctx.config.limits.ask_again)
    }

    /// Blocks were found to be nowhere.
    pub(crate) fn some_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The era ends, and with it what was asked.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.failed.clear();
    }
}

impl Base {
    /// Reads a chunk, unless that is being done.
    pub(crate) fn check(&mut self, ctx: &mut Ctx<'_>, chunk: ChunkKey) {
        if self.checkups.is_open(chunk) {
            return;
        }
        let others = |members: &[MemberId]| members.iter().copied().filter(|member| *member != self.me).collect();
        let (mut sources, in_sync): (Vec<MemberId>, Vec<MemberId>) =
            (others(&self.view.syncing), others(&self.view.in_sync));
        sources.extend(in_sync);
        let (stage, wanted, found) = (Stage::Reading, Vec::new(), None);
        let checkup = Checkup { stage, looks: 0, bad: 0, wanted, sources, silent: false, found, bytes: 0 };
        self.checkups.open.insert(chunk, checkup);
        self.look(ctx, chunk);
    }

    fn look(&mut self, ctx: &mut Ctx<'_>, chunk: ChunkKey) {
        let Some(checkup) = self.checkups.open.get_mut(&chunk) else { return };
        checkup.stage = Stage::Reading;
        checkup.looks += 1;
        self.local(ctx, LocalCommand::Check { group: self.group, chunk }, Tag::Check(chunk));
    }

    /// The disk has read a chunk.
    pub(crate) fn checked(
        &mut self,
        ctx: &mut Ctx<'_>,
        chunk: ChunkKey,
        result: Result<LocalOutcome, LocalError>,
    ) -> Option<Examined> {
        let disk = self.me.disk;
        let checkup = self.checkups.open.get_mut(&chunk)?;
        let found = match result {
            Ok(LocalOutcome::Checked { found }) => found,
            Ok(other) => unreachable!("a check ended in {other:?}"),
            // A failed disk says nothing more at all.
            Err(_) => None,
        };
        let read = found.as_ref().map_or(0, |found| found.bytes);
        ctx.book.scrubs.spend(disk, read);
        checkup.bytes += read;
        checkup.wanted = found.as_ref().map(|found| found.bad.clone()).unwrap_or_default();
        if checkup.looks == 1 {
            checkup.bad = checkup.wanted.len() as u32;
        }
        checkup.found = found;
        if checkup.wanted.is_empty() || checkup.looks >= LOOKS_MAX {
            return self.examined(ctx, chunk);
        }
        self.ask_next(ctx, chunk)
    }

    /// Asks the next member for blocks; with nobody left that is the end.
    fn ask_next(&mut self, ctx: &mut Ctx<'_>, chunk: ChunkKey) -> Option<Examined> {
        let checkup = self.checkups.open.get_mut(&chunk)?;
        match checkup.sources.pop() {
            Some(source) => {
                self.ask(ctx, chunk, source);
                None
            }
            None => self.examined(ctx, chunk),
        }
    }

    fn ask(&mut self, ctx: &mut Ctx<'_>, chunk: ChunkKey, source: MemberId) {
        let id = self.checkups.next_id();
        let Some(checkup) = self.checkups.open.get_mut(&chunk) else { return };
        checkup.stage = Stage::Asking { source, id, asked_at: ctx.now, since: ctx.now };
        let body = checkup.question(chunk, id);
        self.send(ctx, source, body, Bytes::new());
    }

    /// A member's blocks.
    pub(crate) fn fetched(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: MemberId,
        (id, chunk): (u64, ChunkKey),
        blocks: &[u32],
        mut payload: Bytes,
    ) -> Option<Examined> {
        let checkup = self.checkups.open.get_mut(&chunk)?;
        let Stage::Asking { source, id: asked, .. } = checkup.stage else { return None };
        if (source, asked) != (from, id) || payload.len() != blocks.len() * BLOCK_BYTES as usize {
            return None;
        }
        let mut good = Vec::with_capacity(blocks.len());
        for block in blocks {
            let bytes = payload.split_to(BLOCK_BYTES as usize);
            let sum = crc32(&bytes);
            if let Some(at) = checkup.wanted.iter().position(|wanted| *wanted == (*block, sum)) {
                checkup.wanted.remove(at);
                good.push((*block, bytes));
            }
        }
        if good.is_empty() {
            return self.ask_next(ctx, chunk);
        }
        checkup.stage = Stage::Placing { source };
        if ctx.config.mutations.repair_dropped {
            checkup.wanted.clear();
            return self.examined(ctx, chunk);
        }
        let (group, number, settled) = (self.group, self.last, self.settled);
        let change = Change::Mend { chunk, blocks: good };
        let op = LocalOp { group, number, settled, origin: Origin::MEMBERS, change };
        self.apply(ctx, op, Tag::Mend(chunk));
        None
    }

    /// The disk has placed blocks.
    pub(crate) fn placed(&mut self, ctx: &mut Ctx<'_>, chunk: ChunkKey) {
        let Some(checkup) = self.checkups.open.get(&chunk) else { return };
        let Stage::Placing { source } = checkup.stage else { return };
        if checkup.wanted.is_empty() {
            self.look(ctx, chunk);
        } else {
            // It had some; it may have others.
            self.ask(ctx, chunk, source);
        }
    }

    fn examined(&mut self, ctx: &mut Ctx<'_>, chunk: ChunkKey) -> Option<Examined> {
        let Checkup { bad, wanted, silent: unsure, found, bytes, .. } = self.checkups.open.remove(&chunk)?;
        let left: Vec<u32> = wanted.iter().map(|(block, _)| *block).collect();
        if !left.is_empty() {
            self.checkups.failed.insert(chunk, ctx.now);
        } else {
            self.checkups.failed.remove(&chunk);
        }
        Some(Examined { chunk, bad: bad.max(left.len() as u32), left, unsure, bytes, found })
    }

    /// Asks again, and somebody else after a while.
    pub(crate) fn tick_checkups(&mut self, ctx: &mut Ctx<'_>) -> Vec<Examined> {
        let limits = &ctx.config.limits;
        let (resend, patience) = (limits.resend, limits.ask_again);
        self.checkups.failed.retain(|_, at| ctx.now.since(*at) < patience);
        let mut given_up = Vec::new();
        let mut again = Vec::new();
        for (chunk, checkup) in &mut self.checkups.open {
            let Stage::Asking { source, id, asked_at, since } = &mut checkup.stage else { continue };
            if ctx.now.since(*since) >= patience {
                checkup.silent = true;
                given_up.push(*chunk);
            } else if ctx.now.since(*asked_at) >= resend {
                *asked_at = ctx.now;
                again.push((*source, *id, *chunk));
            }
        }
        for (source, id, chunk) in again {
            let Some(checkup) = self.checkups.open.get(&chunk) else { continue };
            let body = checkup.question(chunk, id);
            self.send(ctx, source, body, Bytes::new());
        }
        given_up.into_iter().filter_map(|chunk| self.ask_next(ctx, chunk)).collect()
    }

    /// Another member's blocks are damaged.
    pub(crate) fn fetch(&mut self, ctx: &mut Ctx<'_>, from: MemberId, id: u64, chunk: ChunkKey, blocks: Vec<u32>) {
        if blocks.len() <= FETCH_BLOCKS_MAX && !self.has(Tag::Fetch(from, id, chunk)) {
            let command = LocalCommand::Blocks { group: self.group, chunk, blocks };
            self.local(ctx, command, Tag::Fetch(from, id, chunk));
        }
    }

    /// The disk has looked for them.
    pub(crate) fn answer_fetch(
        &self,
        ctx: &mut Ctx<'_>,
        (to, id, chunk): (MemberId, u64, ChunkKey),
        result: Result<LocalOutcome, LocalError>,
    ) {
        let Ok(LocalOutcome::Blocks { blocks: found }) = result else { return };
        let mut payload = BytesMut::with_capacity(found.len() * BLOCK_BYTES as usize);
        found.iter().for_each(|(_, bytes)| payload.extend_from_slice(bytes));
        let blocks = found.into_iter().map(|(block, _)| block).collect();
        self.send(ctx, to, GroupBody::Fetched { id, chunk, blocks }, payload.freeze());
    }
}

impl Checkup {
    fn question(&self, chunk: ChunkKey, id: u64) -> GroupBody {
        let blocks = self.wanted.iter().take(FETCH_BLOCKS_MAX).map(|(block, _)| *block).collect();
        GroupBody::Fetch { id, chunk, blocks }
    }
}
