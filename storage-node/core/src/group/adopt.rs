//! While members are made identical, a chunk that this primary cannot read is taken from another member as that one has it.
//!
//! The block was changed in part by an operation that is not settled: this disk could not make the change, another could, and so has other
//! bytes than those that this disk lost. While reconciling any member's copy of what is not settled is as good as the primary's, if it is
//! taken whole: every member in sync holds all that is settled, nothing is numbered meanwhile, and half of an operation would be none.
//!
//! Then reconciling begins anew. Copies of the chunk may have been on their way, and a member that says nothing of it has the new bytes; and
//! nobody knows which of the open operations on the chunk are in what was taken, so whoever asked for one has to ask again.

use crate::book::Ctx;
use crate::change::within_chunk;
use crate::group::base::{Base, Tag};
use crate::group::primary::{Phase, Primary};
use crate::local::{Change, Contenders, LocalError, LocalOp, Origin, Run};
use bytes::{Bytes, BytesMut};
use holdfast_types::checksum::{crc32, piece_sums};
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, Instant, MemberId, OpCount};
use holdfast_wire::chunk::Refusal;
use holdfast_wire::group::{Difference, FETCH_BLOCKS_MAX, GroupBody};
use std::collections::BTreeSet;

/// Chunks that are taken over, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Adoptions {
    open: Option<Adoption>,
    /// Whose copy of which chunk could not be had; when nobody is left, all are asked anew: they may have been silent for a while.
    refused: BTreeSet<(ChunkKey, MemberId)>,
}

/// A chunk that is being taken over.
#[derive(Debug)]
struct Adoption {
    from: MemberId,
    theirs: Difference,
    /// Blocks that have come, in order.
    blocks: Vec<Bytes>,
    id: u64,
    asked_at: Instant,
    since: Instant,
}

impl Adoptions {
    /// What is under way is over.
    pub(crate) fn end(&mut self) {
        self.open = None;
    }
}

impl Primary {
    /// Begins, if a member has told what it has. Says whether it did.
    pub(crate) fn adopt(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, chunk: ChunkKey) -> bool {
        if !matches!(self.phase, Phase::Repairing) {
            return false;
        }
        if self.adoptions.open.is_some() {
            return true; // One after the other: this one is found again.
        }
        let refused = &self.adoptions.refused;
        let may_offer = |member: &MemberId| base.view.in_sync.contains(member) && !refused.contains(&(chunk, *member));
        let offers = self.repairs.iter().filter(|(member, _)| may_offer(member));
        let mut offers = offers.filter_map(|(member, repair)| Some((*member, repair.wanted(chunk)?.clone())));
        let sound = |theirs: &Difference| {
            let blocks = u64::from(theirs.length).div_ceil(BLOCK_BYTES);
            within_chunk(0, u64::from(theirs.length)) && theirs.sums.len() as u64 == blocks
        };
        let Some((from, theirs)) = offers.find(|(_, theirs)| sound(theirs)) else {
            self.adoptions.refused.retain(|(refused, _)| *refused != chunk);
            return false;
        };
        let (id, blocks, asked_at, since) = (base.checkups.next_id(), Vec::new(), ctx.now, ctx.now);
        self.adoptions.open = Some(Adoption { from, theirs, blocks, id, asked_at, since });
        self.ask_adoption(base, ctx);
        true
    }

    /// Asks for the next blocks, or takes over what has come.
    fn ask_adoption(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let Some(Adoption { from, theirs, blocks, id, .. }) = &self.adoptions.open else { return };
        let (chunk, length) = (theirs.chunk, theirs.length as usize);
        if blocks.len() < theirs.sums.len() {
            let first = blocks.len();
            let wanted = first..theirs.sums.len().min(first + FETCH_BLOCKS_MAX);
            let blocks = wanted.map(|block| block as u32).collect();
            return base.send(ctx, *from, GroupBody::Fetch { id: *id, chunk, blocks }, Bytes::new());
        }
        let mut bytes = BytesMut::with_capacity(blocks.len() * BLOCK_BYTES as usize);
        blocks.iter().for_each(|block| bytes.extend_from_slice(block));
        bytes.truncate(length);
        let bytes = bytes.freeze();
        let run = (length > 0).then(|| Run { offset: 0, sums: piece_sums(0, &bytes), bytes });
        let Some(contenders) = Contenders::from_list(theirs.contenders.clone()) else { return self.cannot_adopt() };
        let change = if length == 0 && contenders.is_empty() {
            Change::DeleteChunk { chunk }
        } else {
            Change::Copy { chunk, length: theirs.length, runs: run.into_iter().collect(), contenders }
        };
        for op in self.ops.values_mut().filter(|op| op.span.touches(chunk)) {
            op.failed = Some(Refusal::NotServing { reason: "done or not: a block of it was damaged".into() });
        }
        // Above all that any member knows to be settled: a successor that takes over half-way looks at the chunk again.
        let number = base.number(OpCount(self.next_count.0 - 1));
        let (group, settled) = (base.group, base.settled);
        let op = LocalOp { group, number, settled, origin: Origin::MEMBERS, change };
        base.apply(ctx, op, Tag::Adopt(chunk));
    }

    /// Blocks have come.
    pub(crate) fn adopt_fetched(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        (from, id): (MemberId, u64),
        blocks: &[u32],
        mut payload: Bytes,
    ) {
        let Some(adoption) = self.adoptions.open.as_mut().filter(|a| (a.from, a.id) == (from, id)) else { return };
        if payload.len() != blocks.len() * BLOCK_BYTES as usize {
            return;
        }
        let before = adoption.blocks.len();
        for block in blocks {
            let bytes = payload.split_to(BLOCK_BYTES as usize);
            let next = adoption.blocks.len();
            if *block as usize == next && adoption.theirs.sums.get(next) == Some(&crc32(&bytes)) {
                adoption.blocks.push(bytes);
            }
        }
        if adoption.blocks.len() == before {
            return self.cannot_adopt(); // Damaged there, too.
        }
        (adoption.id, adoption.asked_at, adoption.since) = (base.checkups.next_id(), ctx.now, ctx.now);
        self.ask_adoption(base, ctx);
    }

    /// That member's copy cannot be had: the next one is asked when the chunk is found again, which it is as long as it cannot be read.
    fn cannot_adopt(&mut self) {
        if let Some(Adoption { from, theirs, .. }) = self.adoptions.open.take() {
            self.adoptions.refused.insert((theirs.chunk, from));
        }
    }

    /// This disk has taken it over.
    pub(crate) fn adopted(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        chunk: ChunkKey,
        result: Result<(), LocalError>,
    ) {
        self.aside |= result.is_err();
        let asked = self.adoptions.open.take_if(|open| open.theirs.chunk == chunk);
        if asked.is_some() && result.is_ok() {
            self.reconcile(base, ctx);
        }
    }

    /// Asks again, and gives up a member that is silent.
    pub(crate) fn tick_adoption(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let Some(adoption) = &mut self.adoptions.open else { return };
        if base.has(Tag::Adopt(adoption.theirs.chunk)) {
            return; // This disk has it: what comes of it is told.
        }
        if ctx.now.since(adoption.since) >= ctx.config.limits.member_patience {
            self.cannot_adopt();
        } else if ctx.now.since(adoption.asked_at) >= ctx.config.limits.resend {
            adoption.asked_at = ctx.now;
            self.ask_adoption(base, ctx);
        }
    }
}
