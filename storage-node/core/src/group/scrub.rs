//! The scrub of a group: its primary has every member in sync read what it holds, a few chunks at a time, and compares what they say.
//!
//! ```text
//! primary ──Check(range)──▶ all in sync, itself too      each reads, puts bad blocks right (checkup), says what its chunks are
//!         ◀──Checked──────                               what differs is a suspect
//! primary ──Check(suspect)─▶ all, a second later         what differs exactly as before stands still, and is a finding:
//!                                                        it is copied as in a resync (repair), and looked at once more
//! ```
//! * Members read at their own pace; a chunk that is being changed is seen by them at different moments, so one look proves nothing. Before
//!   the second one is asked for, every operation on the chunk is committed, that is on every member's disk: whoever lacks one shows another
//!   face then.
//! * The primary's copy counts, unless more members agree on another, or it has nothing where another has something. Outvoted, it goes: the
//!   next primary is one of the others, and it is made like them.
//! * A run that its era ends is over. The group is still due, so the next primary begins anew.

use crate::book::Ctx;
use crate::group::base::{Base, Tag};
use crate::group::checkup::Examined;
use crate::group::primary::Primary;
use crate::group::repair::Repair;
use crate::local::{KeyRange, LocalCommand, LocalError, LocalOutcome};
use crate::{Effect, Scrubbed};
use bytes::Bytes;
use holdfast_types::{ChunkKey, Instant, MemberId};
use holdfast_wire::group::{CHECK_CHUNKS_MAX, CheckedChunk, GroupBody, ScrubResult};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Pause before a second look. By eye: longer than a change takes to reach all members.
const PAUSE: Duration = Duration::from_secs(1);
/// Looks at a chunk that is another at each, before it is left to the next scrub.
const LOOKS_MAX: u32 = 20;
/// A run that has learned nothing for so long gives way to other groups'. By eye: a hundred times what reading 64 MiB takes.
const SILENT_MAX: Duration = Duration::from_secs(600);

/// Chunks that this member reads for a scrub.
#[derive(Debug)]
pub(crate) struct Exam {
    id: u64,
    through: ChunkKey,
    listed: bool,
    todo: VecDeque<ChunkKey>,
    current: Option<ChunkKey>,
    done: Vec<CheckedChunk>,
}

/// What a member says of a chunk, as far as members should say the same.
type Facts = Option<(u32, u32, [u8; 32])>;

/// A scrub under way, at the primary.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Keys not looked at yet.
    rest: Option<KeyRange>,
    question: Option<Question>,
    suspects: VecDeque<Suspect>,
    /// Nothing is asked before.
    not_before: Instant,
    /// When it began, or last learned something.
    learned: Instant,
    next_id: u64,
    pub(crate) result: ScrubResult,
}

#[derive(Debug)]
struct Question {
    id: u64,
    range: KeyRange,
    asked_at: Instant,
    missing: BTreeSet<MemberId>,
    answers: BTreeMap<MemberId, (ChunkKey, Vec<CheckedChunk>)>,
}

#[derive(Debug)]
struct Suspect {
    chunk: ChunkKey,
    seen: BTreeMap<MemberId, Facts>,
    looks: u32,
    /// It stood still as different, and was copied.
    copied: bool,
}

impl Base {
    /// Reads the first chunks of a range. `id`: asked again, it goes on.
    pub(crate) fn examine(&mut self, ctx: &mut Ctx<'_>, id: u64, range: KeyRange) {
        if self.exam.as_ref().is_some_and(|exam| exam.id == id) {
            return;
        }
        self.forget(|tag| tag == Tag::ExamList);
        let (todo, done) = (VecDeque::new(), Vec::new());
        self.exam = Some(Exam { id, through: range.last, listed: false, todo, current: None, done });
        let command = LocalCommand::List { group: self.group, range, limit: CHECK_CHUNKS_MAX as u32 };
        self.local(ctx, command, Tag::ExamList);
    }

    /// The disk has listed them.
    pub(crate) fn exam_listed(&mut self, result: Result<LocalOutcome, LocalError>) {
        let Some(exam) = &mut self.exam else { return };
        let Ok(LocalOutcome::Chunks { chunks }) = result else {
            self.exam = None;
            return;
        };
        if let Some(last) = chunks.last().filter(|_| chunks.len() >= CHECK_CHUNKS_MAX) {
            exam.through = last.chunk;
        }
        exam.todo = chunks.iter().map(|chunk| chunk.chunk).collect();
        exam.listed = true;
    }

    /// A chunk was read.
    pub(crate) fn exam_goes_on(&mut self, examined: &Examined) {
        let Some(exam) = self.exam.as_mut().filter(|exam| exam.current == Some(examined.chunk)) else { return };
        exam.current = None;
        let Examined { chunk, bad, bytes, .. } = *examined;
        let left = examined.left.len() as u32;
        if let Some(found) = &examined.found {
            let (length, digest, hash) = (found.length, found.digest, found.hash);
            exam.done.push(CheckedChunk { chunk, length, digest, hash, bad, left, bytes });
        }
    }

    /// Takes up the next chunk if the disk may be read; gives what was found when nothing is left.
    pub(crate) fn step_exam(&mut self, ctx: &mut Ctx<'_>) -> Option<(u64, ChunkKey, Vec<CheckedChunk>)> {
        let exam = self.exam.as_mut()?;
        if !exam.listed || exam.current.is_some() {
            return None;
        }
        if exam.todo.is_empty() {
            return self.exam.take().map(|exam| (exam.id, exam.through, exam.done));
        }
        if ctx.book.scrubs.may_read(self.me.disk) {
            exam.current = exam.todo.pop_front();
            if let Some(chunk) = exam.current {
                self.check(ctx, chunk);
            }
        }
        None
    }

    /// A scrub of the group has ended.
    pub(crate) fn scrubbed(&self, ctx: &mut Ctx<'_>, result: ScrubResult) {
        ctx.book.scrubs.ended(self.group, result, ctx.config.limits.scrub_every, ctx.now);
        let (disk, group, age) = (self.me.disk, self.group, Duration::ZERO);
        ctx.effects.push(Effect::ScrubNoted(Scrubbed { disk, group, age, result: Some(result) }));
    }
}

impl Primary {
    /// Begins a scrub.
    pub(crate) fn begin_scrub(&mut self, now: Instant) {
        self.run = Some(Run { rest: Some(KeyRange::ALL), next_id: 1, learned: now, ..Run::default() });
    }

    /// Asks what is to be asked next, asks again, and ends.
    pub(crate) fn tick_scrub(&mut self, base: &mut Base, ctx: &mut Ctx<'_>) {
        let serving = self.is_serving();
        let Some(run) = &mut self.run else { return };
        if ctx.now.since(run.learned) >= SILENT_MAX {
            self.run = None;
            return ctx.book.scrubs.put_off(base.group, ctx.config.limits.scrub_every, ctx.now);
        }
        if !serving {
            return;
        }
        if let Some(question) = &mut run.question {
            if ctx.now.since(question.asked_at) >= ctx.config.limits.ask_again {
                question.asked_at = ctx.now;
                let (id, range, missing) = (question.id, question.range, question.missing.clone());
                ask_all(base, ctx, &missing, (id, range));
            }
            return;
        }
        if ctx.now < run.not_before || !self.repairs.is_empty() || self.streams.values().any(|stream| stream.copies > 0)
        {
            return;
        }
        let open = |suspect: &Suspect| self.ops.values().any(|op| op.span.touches(suspect.chunk));
        if run.suspects.front().is_some_and(open) {
            // What is numbered before the question must be on every member when it is asked.
            run.postpone(ctx.now);
            return;
        }
        let range = match (run.suspects.front(), run.rest) {
            (Some(suspect), _) => KeyRange::chunk(suspect.chunk),
            (None, Some(rest)) => rest,
            (None, None) => return self.end_scrub(base, ctx),
        };
        let id = run.next_id;
        run.next_id += 1;
        let missing: BTreeSet<MemberId> = base.view.in_sync.iter().copied().collect();
        ask_all(base, ctx, &missing, (id, range));
        let answers = BTreeMap::new();
        run.question = Some(Question { id, range, asked_at: ctx.now, missing, answers });
    }

    fn end_scrub(&mut self, base: &Base, ctx: &mut Ctx<'_>) {
        let Some(run) = self.run.take() else { return };
        base.scrubbed(ctx, run.result);
        for member in Self::others(base).collect::<Vec<_>>() {
            base.send(ctx, member, GroupBody::Scrubbed(run.result), Bytes::new());
        }
    }

    /// A member, or this one, has read what was asked.
    pub(crate) fn member_checked(
        &mut self,
        base: &mut Base,
        ctx: &mut Ctx<'_>,
        from: MemberId,
        (id, through): (u64, ChunkKey),
        chunks: Vec<CheckedChunk>,
    ) {
        let Some(run) = &mut self.run else { return };
        let Some(question) = run.question.as_mut().filter(|question| question.id == id) else { return };
        let sound = question.range.contains(through)
            && chunks.len() <= CHECK_CHUNKS_MAX
            && chunks.iter().all(|c| question.range.contains(c.chunk) && c.chunk <= through);
        if !sound || !question.missing.remove(&from) {
            return;
        }
        question.answers.insert(from, (through, chunks));
        run.learned = ctx.now;
        if !question.missing.is_empty() {
            return;
        }
        let Some(Question { range, answers, .. }) = run.question.take() else { return };
        if run.suspects.is_empty() {
            run.first_look(range, &answers, ctx.now);
        } else if let Some(standing) = run.look_again(&answers, ctx.now) {
            self.settle(base, ctx, standing);
        }
        self.tick_scrub(base, ctx);
    }

    /// A suspect stood still: the primary's copy becomes everybody's, or the primary goes.
    fn settle(&mut self, base: &mut Base, ctx: &mut Ctx<'_>, (chunk, seen): (ChunkKey, BTreeMap<MemberId, Facts>)) {
        let mine = seen.get(&base.me).copied().flatten();
        let with_me = seen.values().filter(|facts| **facts == mine).count();
        let most = seen.values().map(|facts| seen.values().filter(|other| *other == facts).count()).max();
        if most.is_some_and(|most| most > with_me) || mine.is_none() {
            // No copy is taken from the one that is most likely wrong. It is said, and the next primary looks again.
            self.aside = true;
            return self.end_scrub(base, ctx);
        }
        let me = base.me;
        for (member, facts) in seen.iter().filter(|(member, facts)| **member != me && **facts != mine) {
            let sums_differ = facts.map(|facts| (facts.0, facts.1)) != mine.map(|mine| (mine.0, mine.1));
            let repair = if sums_differ {
                Repair::new(vec![KeyRange::chunk(chunk)])
            } else {
                Repair::whole(chunk, mine.map_or(0, |mine| mine.0))
            };
            if self.streams.contains_key(member) && !self.repairs.contains_key(member) {
                self.repairs.insert(*member, repair);
                self.step_repair(base, ctx, *member);
            }
        }
    }
}

/// Asks members, and this one itself.
fn ask_all(base: &mut Base, ctx: &mut Ctx<'_>, members: &BTreeSet<MemberId>, (id, range): (u64, KeyRange)) {
    for member in members {
        if *member == base.me {
            base.examine(ctx, id, range);
        } else {
            base.send(ctx, *member, GroupBody::Check { id, range }, Bytes::new());
        }
    }
}

type Answers = BTreeMap<MemberId, (ChunkKey, Vec<CheckedChunk>)>;

impl Run {
    fn count(&mut self, answers: &Answers, through: ChunkKey) {
        let all = answers.values().flat_map(|(_, chunks)| chunks);
        for chunk in all.filter(|chunk| chunk.chunk <= through) {
            let add = |to: &mut u64, more: u64| *to = to.saturating_add(more); // A peer's word.
            add(&mut self.result.bytes, chunk.bytes);
            add(&mut self.result.bad, u64::from(chunk.bad));
            add(&mut self.result.repaired, u64::from(chunk.bad.saturating_sub(chunk.left)));
        }
    }

    /// The first suspect is looked at later, unless it is never at rest.
    fn postpone(&mut self, now: Instant) {
        self.not_before = now + PAUSE;
        if let Some(mut suspect) = self.suspects.pop_front() {
            suspect.looks += 1;
            if suspect.looks <= LOOKS_MAX {
                self.suspects.push_back(suspect);
            }
        }
    }

    /// Chunks that nobody has looked at before.
    fn first_look(&mut self, range: KeyRange, answers: &Answers, now: Instant) {
        let through = answers.values().map(|(through, _)| *through).min().unwrap_or(range.last);
        self.count(answers, through);
        let all = answers.values().flat_map(|(_, chunks)| chunks.iter().map(|chunk| chunk.chunk));
        let chunks: BTreeSet<ChunkKey> = all.filter(|chunk| *chunk <= through).collect();
        self.result.chunks += chunks.len() as u64;
        for chunk in chunks {
            let seen = seen(chunk, answers);
            if differs(&seen) {
                self.suspects.push_back(Suspect { chunk, seen, looks: 1, copied: false });
            }
        }
        self.rest = range.after(through);
        if !self.suspects.is_empty() {
            self.not_before = now + PAUSE;
        }
    }

    /// The first suspect was looked at again. If it stands still and was not copied, it is to be.
    fn look_again(&mut self, answers: &Answers, now: Instant) -> Option<(ChunkKey, BTreeMap<MemberId, Facts>)> {
        let mut suspect = self.suspects.pop_front()?;
        self.count(answers, suspect.chunk);
        let seen = seen(suspect.chunk, answers);
        suspect.looks += 1;
        let (same, stood) = (!differs(&seen), seen == suspect.seen);
        if same {
            self.result.equalized += u64::from(suspect.copied);
            return None;
        }
        if (suspect.copied && stood) || suspect.looks > LOOKS_MAX {
            return None;
        }
        let standing = (stood && !suspect.copied).then(|| (suspect.chunk, seen.clone()));
        if standing.is_some() {
            self.result.different += 1;
            suspect.copied = true;
        }
        suspect.seen = seen;
        self.suspects.push_back(suspect);
        self.not_before = now + PAUSE;
        standing
    }
}

fn seen(chunk: ChunkKey, answers: &Answers) -> BTreeMap<MemberId, Facts> {
    let facts = |chunks: &[CheckedChunk]| {
        let found = chunks.iter().find(|found| found.chunk == chunk)?;
        Some((found.length, found.digest, found.hash))
    };
    answers.iter().map(|(member, (_, chunks))| (*member, facts(chunks))).collect()
}

fn differs(seen: &BTreeMap<MemberId, Facts>) -> bool {
    let mut all = seen.values();
    let first = all.next();
    all.any(|facts| Some(facts) != first)
}
