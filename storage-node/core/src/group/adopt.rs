//! While members are made identical, a chunk that this primary cannot read is taken from another member as that one has it.
//!
//! The block was changed in part by an operation that is not settled: this disk could not make the change, another could, and so has other
//! bytes than those that this disk lost. While reconciling any member's copy of what is not settled is as good as the primary's, if it is
//! taken whole: every member in sync holds all that is settled, nothing is numbered meanwhile, and half of an operation would be none.

use crate::book::Ctx;
use crate::change::within_chunk;
use crate::group::base::{Base, Tag};
use crate::group::primary::{Phase, Primary};
use crate::local::{Change, Contenders, KeyRange, LocalError, LocalOp, Origin, Run};
use bytes::{Bytes, BytesMut};
use holdfast_types::checksum::{crc32, piece_sums};
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, Instant, MemberId};
use holdfast_wire::chunk::Refusal;
use holdfast_wire::group::{Difference, FETCH_BLOCKS_MAX, GroupBody};

/// A chunk that is being taken over.
#[derive(Debug)]
pub(crate) struct Adoption {
    from: MemberId,
    theirs: Difference,
    /// Blocks that have come, in order.
    blocks: Vec<Bytes>,
    id: u64,
    asked_at: Instant,
    since: Instant,
}

impl Primary {
    /// Begins, if a member has told what it has. Says whether it did.
    pub(crate) fn adopt(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, chunk: ChunkKey) -> bool {
        if !matches!(self.phase, Phase::Repairing) {
            return false;
        }
        if self.adoption.is_some() {
            return true; // One after the other: this one is found again.
        }
        let offers = self.repairs.iter().filter(|(member, _)| base.view.in_sync.contains(member));
        let mut offers = offers.filter_map(|(member, repair)| Some((*member, repair.wanted(chunk)?.clone())));
        let sound = |theirs: &Difference| {
            let blocks = u64::from(theirs.length).div_ceil(BLOCK_BYTES);
            within_chunk(0, u64::from(theirs.length)) && theirs.sums.len() as u64 == blocks
        };
        let Some((from, theirs)) = offers.find(|(_, theirs)| sound(theirs)) else { return false };
        let (id, blocks, asked_at, since) = (base.checkups.next_id(), Vec::new(), ctx.now, ctx.now);
        self.adoption = Some(Adoption { from, theirs, blocks, id, asked_at, since });
        self.ask_adoption(base, ctx);
        true
    }

    /// Asks for the next blocks, or takes over what has come.
    fn ask_adoption(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let Some(Adoption { from, theirs, blocks, id, .. }) = &self.adoption else { return };
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
        let Some(contenders) = Contenders::from_list(theirs.contenders.clone()) else { return };
        let change = if length == 0 && contenders.is_empty() {
            Change::DeleteChunk { chunk }
        } else {
            Change::Copy { chunk, length: theirs.length, runs: run.into_iter().collect(), contenders }
        };
        let (group, number, settled) = (base.group, base.last, base.settled);
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
        let Some(adoption) = self.adoption.as_mut().filter(|a| (a.from, a.id) == (from, id)) else { return };
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
            // Damaged there, too: nobody has it.
            self.adoption = None;
            self.aside = true;
            return;
        }
        (adoption.id, adoption.asked_at, adoption.since) = (base.checkups.next_id(), ctx.now, ctx.now);
        self.ask_adoption(base, ctx);
    }

    /// This disk has taken it over: all members are compared anew, and operations that were to be refused may have been made.
    pub(crate) fn adopted(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        chunk: ChunkKey,
        result: Result<(), LocalError>,
    ) {
        if self.adoption.take().is_none() {
            return;
        }
        if result.is_err() {
            self.aside = true;
            return;
        }
        for op in self.ops.values_mut().filter(|op| op.span.touches(chunk) && op.failed.is_some()) {
            op.failed = Some(Refusal::NotServing { reason: "done or not: a block of it was damaged".into() });
        }
        for repair in self.repairs.values_mut() {
            repair.compare_again(KeyRange::chunk(chunk));
        }
        self.tick_repairs(base, ctx);
    }

    /// Asks again, and gives up a member that is silent.
    pub(crate) fn tick_adoption(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let Some(adoption) = &mut self.adoption else { return };
        if ctx.now.since(adoption.since) >= ctx.config.limits.member_patience {
            self.adoption = None;
        } else if ctx.now.since(adoption.asked_at) >= ctx.config.limits.resend
            && !base.has(Tag::Adopt(adoption.theirs.chunk))
        {
            adoption.asked_at = ctx.now;
            self.ask_adoption(base, ctx);
        }
    }
}
