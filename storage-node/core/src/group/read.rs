//! Reads at the primary.
//!
//! An answer tells what every later reader will see as well, so before it goes out
//! * each other counted member has said, after the read arrived, that it is still in this epoch (one round serves many reads): nobody
//!   else can have acknowledged a newer write; a primary without peers must be near the metadata leader instead;
//! * every operation that touches the bytes and was numbered before the disk had read them is committed.
//!
//! The disk reads at once, in parallel with both.

use crate::book::Ctx;
use crate::group::admit::{Waiting, Wanted};
use crate::group::base::{Base, Tag};
use crate::group::checkup::Examined;
use crate::group::primary::{Primary, refusal};
use crate::local::{KeyRange, LocalCommand, LocalError, LocalOutcome, Made};
use crate::span::Span;
use bytes::Bytes;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{ChunkKey, Instant, MemberId, OpCount, SessionId};
use holdfast_wire::chunk::{ChunkAnswer, ChunkOp, Refusal};
use holdfast_wire::group::GroupBody;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A read that finds a damaged block again after it was put right so often is refused.
const MENDS_MAX: u32 = 3;
/// So long a read waits for a member that is away and may have what is damaged here. By eye: a host that starts again is back by then.
const AWAY_MAX: Duration = Duration::from_secs(600);
/// Who waits asks again much sooner than this.
const AWAY_FORGOTTEN: Duration = Duration::from_secs(60);
/// Most chunks of which it is remembered how long that has gone on; reads of others wait. By eye.
const AWAY_CHUNKS_MAX: usize = 4096;

/// A read under way.
#[derive(Debug)]
pub(crate) struct ReadOp {
    pub(crate) id: u64,
    pub(crate) session: SessionId,
    span: Span,
    /// The round that must be confirmed.
    round: u64,
    /// What the disk is asked.
    command: LocalCommand,
    /// The chunk that is put right first, and how often that was so.
    damaged: Option<ChunkKey>,
    tries: u32,
    /// What the disk said, and the operation that must be committed.
    outcome: Option<(ChunkAnswer, Bytes, OpCount)>,
    pub(crate) expires: Instant,
}

/// Reads and the rounds that confirm them.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    pub(crate) open: BTreeMap<u64, ReadOp>,
    next: u64,
    started: u64,
    confirmed: u64,
    wanted: u64,
    /// Who has not confirmed the round that is under way.
    pub(crate) missing: BTreeSet<MemberId>,
    /// When that round began, and when it was last asked.
    pub(crate) since: Instant,
    asked_at: Instant,
    /// Chunks with blocks that only members that are away can have: since when that is known, and when it was last seen.
    away: BTreeMap<ChunkKey, (Instant, Instant)>,
}

impl Primary {
    /// Starts a read.
    pub(crate) fn start_read(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, waiting: Waiting) {
        let Wanted::Read(op) = waiting.wanted else { return };
        let group = base.group;
        let (command, span) = match op {
            ChunkOp::Read { chunk, offset, length } => (
                LocalCommand::Read { group, chunk, offset, length },
                Span::Bytes { chunk, from: offset, to: offset.saturating_add(length) },
            ),
            ChunkOp::Made { chunk, sequence } => (
                LocalCommand::Contended { group, chunk, session: waiting.origin.session, sequence },
                Span::Keys(KeyRange::chunk(chunk)),
            ),
            ChunkOp::Highest { volume, inode, generation, from } => (
                LocalCommand::Highest { group, volume, inode, generation, from },
                Span::Keys(KeyRange::tail(volume, inode, generation, from)),
            ),
            ChunkOp::Allocated { volume, inode, generation, from, upto } => {
                let tail = KeyRange::tail(volume, inode, generation, from);
                let last = ChunkKey { index: upto, ..tail.last };
                (
                    LocalCommand::Allocated { group, volume, inode, generation, from, upto },
                    Span::Keys(KeyRange { last, ..tail }),
                )
            }
            ChunkOp::Write { .. }
            | ChunkOp::Zero { .. }
            | ChunkOp::Cut { .. }
            | ChunkOp::Delete { .. }
            | ChunkOp::DeleteVolume { .. } => return,
        };
        self.reads.next += 1;
        let key = self.reads.next;
        let round = self.reads.started + 1;
        self.reads.wanted = round;
        let (id, session, expires) = (waiting.id, waiting.origin.session, waiting.expires);
        let asked = command.clone();
        let read = ReadOp { id, session, span, round, command: asked, damaged: None, tries: 0, outcome: None, expires };
        self.reads.open.insert(key, read);
        base.local(ctx, command, Tag::Read(key));
        if self.reads.started == self.reads.confirmed {
            self.start_round(base, ctx);
        }
    }

    /// Asks every counted member whether it is still in this epoch.
    fn start_round(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        self.reads.missing = self.counted(base, ctx.config.mutations).into_iter().collect();
        self.reads.started += 1;
        self.reads.since = ctx.now;
        if self.reads.missing.is_empty() {
            self.reads.confirmed = self.reads.started;
        } else {
            self.ask_round(base, ctx);
        }
    }

    fn ask_round(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        self.reads.asked_at = ctx.now;
        for member in &self.reads.missing {
            base.send(ctx, *member, GroupBody::Confirm { round: self.reads.started }, Bytes::new());
        }
    }

    /// Asks again.
    pub(crate) fn tick_rounds(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        if !self.reads.missing.is_empty() && ctx.now.since(self.reads.asked_at) >= ctx.config.limits.resend {
            self.ask_round(base, ctx);
        }
        self.poll_reads(base, ctx);
    }

    /// A member is still in this epoch.
    pub(crate) fn confirmed(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, from: MemberId, round: u64) {
        if round != self.reads.started || !self.reads.missing.remove(&from) || !self.reads.missing.is_empty() {
            return;
        }
        self.reads.confirmed = round;
        if self.reads.wanted > round && !self.reads.open.is_empty() {
            self.start_round(base, ctx);
        }
        self.poll_reads(base, ctx);
    }

    /// The disk has read.
    pub(crate) fn read_done(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        key: u64,
        result: Result<LocalOutcome, LocalError>,
    ) {
        let Some(read) = self.reads.open.get_mut(&key) else { return };
        if let (Err(LocalError::BadBlock), LocalCommand::Read { chunk, .. }) = (&result, &read.command)
            && read.tries < MENDS_MAX
        {
            // Another member has it. Whoever asked waits, and learns nothing of it.
            let chunk = *chunk;
            read.tries += 1;
            read.damaged = Some(chunk);
            return base.check(ctx, chunk);
        }
        let (answer, bytes) = match result {
            Err(LocalError::BadBlock) => {
                self.aside = true;
                (ChunkAnswer::Refused(Refusal::BadBlock), Bytes::new())
            }
            Ok(LocalOutcome::Data { bytes, sums }) => (ChunkAnswer::Data { sums }, bytes),
            Ok(LocalOutcome::Highest { found }) => (ChunkAnswer::Highest { found }, Bytes::new()),
            Ok(LocalOutcome::Allocated { ranges, through }) => {
                (ChunkAnswer::Allocated { ranges, through }, Bytes::new())
            }
            Ok(LocalOutcome::Contended { made: Made::Unknown }) => {
                (ChunkAnswer::Refused(Refusal::Unknown), Bytes::new())
            }
            Ok(LocalOutcome::Contended { made }) => (ChunkAnswer::Made { stands: made == Made::Stands }, Bytes::new()),
            Err(error) => (ChunkAnswer::Refused(refusal(error)), Bytes::new()),
            Ok(other) => unreachable!("a read ended in {other:?}"),
        };
        let touching = self.ops.iter().rev().find(|(_, op)| op.span.overlaps(&read.span));
        read.outcome = Some((answer, bytes, touching.map_or(OpCount(0), |(count, _)| *count)));
        self.poll_reads(base, ctx);
    }

    /// A chunk was put right, or could not be: reads that waited for that are made again, unless it is in vain.
    pub(crate) fn examined(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, examined: &Examined) {
        let (chunk, sound) = (examined.chunk, examined.left.is_empty());
        let worth_waiting = self.worth_waiting(base, ctx, examined);
        let lost = |span: &Span| {
            let block = |block: &u32| {
                let (from, length) = (block * BLOCK_BYTES as u32, BLOCK_BYTES as u32);
                span.overlaps(&Span::Bytes { chunk, from, to: from + length })
            };
            examined.left.iter().any(block)
        };
        let waiting = self.reads.open.iter().filter(|(_, read)| read.damaged == Some(chunk)).map(|(key, _)| *key);
        for key in waiting.collect::<Vec<_>>() {
            let Some(read) = self.reads.open.get_mut(&key) else { continue };
            read.damaged = None;
            if !lost(&read.span) {
                base.local(ctx, read.command.clone(), Tag::Read(key));
            } else if worth_waiting {
                let reason = "a block is damaged here, and a member that may have its bytes is away".into();
                let answer = ChunkAnswer::Refused(Refusal::NotServing { reason });
                read.outcome = Some((answer, Bytes::new(), OpCount(0)));
                self.aside = true;
            } else {
                read.tries = MENDS_MAX;
                self.read_done(base, ctx, key, Err(LocalError::BadBlock));
            }
        }
        self.poll_reads(base, ctx);
        let copied = self.repairs.values().any(|repair| repair.wanted(chunk).is_some());
        self.aside |= !sound && copied && !self.adopt(base, ctx, chunk);
        self.tick_repairs(base, ctx);
    }

    /// Blocks are left that nobody here has. Whoever is away, or does not answer, may have them, and is waited for; not for ever, as it may
    /// never come back.
    fn worth_waiting(&mut self, base: &Base, ctx: &Ctx<'_>, examined: &Examined) -> bool {
        let some_away = examined.unsure || base.view.members().count() < ctx.map.replicas as usize;
        let away = &mut self.reads.away;
        if examined.left.is_empty() || !some_away {
            away.remove(&examined.chunk);
            return false;
        }
        // Nobody has asked for it for a while: what was found then is over.
        away.retain(|_, (_, seen)| ctx.now.since(*seen) < AWAY_FORGOTTEN);
        if away.len() >= AWAY_CHUNKS_MAX && !away.contains_key(&examined.chunk) {
            return true;
        }
        let (since, seen) = away.entry(examined.chunk).or_insert((ctx.now, ctx.now));
        *seen = ctx.now;
        ctx.now.since(*since) < AWAY_MAX
    }

    /// Answers the reads that nothing holds back any more.
    pub(crate) fn poll_reads(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        if self.reads.open.is_empty() || !self.is_serving() || self.solo_stopped(base, ctx) {
            return;
        }
        let (confirmed, committed) = (self.reads.confirmed, self.committed);
        self.reads.open.retain(|_, read| {
            if read.round > confirmed {
                return true;
            }
            match read.outcome.take() {
                Some((answer, bytes, after)) if after <= committed => {
                    ctx.answer(read.id, answer, bytes);
                    false
                }
                other => {
                    read.outcome = other;
                    true
                }
            }
        });
    }

    /// Refuses all reads that are under way.
    pub(crate) fn refuse_reads(&mut self, ctx: &mut Ctx<'_>, refusal: &Refusal) {
        for (_, read) in std::mem::take(&mut self.reads.open) {
            ctx.refuse(read.id, refusal.clone());
        }
        self.reads.missing.clear();
        self.reads.confirmed = self.reads.started;
    }
}
