//! The member's half of a comparison: lists the same keys, names what differs, with block sums.

use crate::book::Ctx;
use crate::group::base::{Base, Tag};
use crate::group::member::Member;
use crate::local::{ChunkSummary, ChunkSums, KeyRange, LocalCommand, LocalError, LocalOutcome};
use bytes::Bytes;
use holdfast_types::ChunkKey;
use holdfast_wire::group::{COMPARE_CHUNKS_MAX, ChunkDigest, Difference, GroupBody};
use std::collections::{BTreeMap, BTreeSet};

/// Own chunks looked at in one comparison; with more, only the keys up to the last are answered.
const LISTED_MAX: usize = 2 * COMPARE_CHUNKS_MAX;

/// A comparison under way.
#[derive(Debug)]
pub(crate) struct Comparison {
    stream: u64,
    id: u64,
    theirs: BTreeMap<ChunkKey, ChunkDigest>,
    through: ChunkKey,
    /// Chunks whose sums the disk still looks up.
    summing: BTreeSet<ChunkKey>,
    found: Vec<Difference>,
}

impl Member {
    /// The primary asks which chunks differ. A newer question takes the place of an older one.
    ///
    /// While the disk still works on what older eras gave it, the question is dropped: it comes again.
    pub(crate) fn compare(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        (stream, id): (u64, u64),
        range: KeyRange,
        chunks: &[ChunkDigest],
    ) {
        self.join(base, ctx, stream);
        if !self.takes(stream) || base.has(Tag::Old) || self.is_answering(id) {
            return;
        }
        base.forget(|tag| matches!(tag, Tag::CompareList | Tag::CompareSums(_)));
        let theirs = chunks.iter().map(|c| (c.chunk, *c)).collect();
        let (summing, found) = (BTreeSet::new(), Vec::new());
        self.comparison = Some(Comparison { stream, id, theirs, through: range.last, summing, found });
        let command = LocalCommand::List { group: base.group, range, limit: LISTED_MAX as u32 };
        base.local(ctx, command, Tag::CompareList);
    }

    fn is_answering(&self, id: u64) -> bool {
        self.comparison.as_ref().is_some_and(|comparison| comparison.id == id)
    }

    /// The disk listed the range.
    pub(crate) fn compare_listed(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        result: Result<LocalOutcome, LocalError>,
    ) {
        let Some(comparison) = &mut self.comparison else { return };
        let Ok(LocalOutcome::Chunks { chunks: mine }) = result else {
            self.comparison = None;
            return;
        };
        if let (Some(last), true) = (mine.last(), mine.len() >= LISTED_MAX) {
            comparison.through = last.chunk;
        }
        let through = comparison.through;
        for chunk in &mine {
            let theirs = comparison.theirs.remove(&chunk.chunk);
            if theirs.is_none_or(|theirs| differs(chunk, &theirs)) {
                comparison.summing.insert(chunk.chunk);
            }
        }
        // What is left of theirs is absent here.
        let absent = comparison.theirs.keys().filter(|chunk| **chunk <= through);
        let absent =
            absent.map(|chunk| Difference { chunk: *chunk, length: 0, sums: Vec::new(), contenders: Vec::new() });
        comparison.found.extend(absent);
        for chunk in comparison.summing.clone() {
            let command = LocalCommand::BlockSums { group: base.group, chunk };
            base.local(ctx, command, Tag::CompareSums(chunk));
        }
        self.compared(base, ctx);
    }

    /// The disk looked up a chunk's sums.
    pub(crate) fn compare_summed(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        chunk: ChunkKey,
        result: Result<LocalOutcome, LocalError>,
    ) {
        let Some(comparison) = &mut self.comparison else { return };
        if !comparison.summing.remove(&chunk) {
            return;
        }
        let ChunkSums { length, sums, contenders } = match result {
            Ok(LocalOutcome::Sums { found }) => found.unwrap_or_default(),
            // Unknown: all of it is to be copied.
            Ok(_) | Err(_) => ChunkSums { length: u32::MAX, ..ChunkSums::default() },
        };
        let contenders = contenders.list().to_vec();
        comparison.found.push(Difference { chunk, length, sums, contenders });
        self.compared(base, ctx);
    }

    /// Answers when nothing is left to look up.
    fn compared(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        let Some(Comparison { stream, id, through, found: chunks, .. }) =
            self.comparison.take_if(|comparison| comparison.summing.is_empty())
        else {
            return;
        };
        let body = GroupBody::Differences { stream, id, through, chunks };
        base.send(ctx, base.view.primary, body, Bytes::new());
    }
}

fn differs(mine: &ChunkSummary, theirs: &ChunkDigest) -> bool {
    (mine.length, mine.digest) != (theirs.length, theirs.digest)
}
