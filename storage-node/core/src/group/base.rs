//! What a group's state machine knows whatever its role: who it is, in which view, and what its disk is doing.

use crate::book::Ctx;
use crate::group::checkup::Checkups;
use crate::group::scrub::Exam;
use crate::local::{LocalCommand, LocalOp, Ticket};
use bytes::Bytes;
use holdfast_types::{ChunkKey, GroupId, MemberId, OpCount, OpNumber, Sequence, SessionId};
use holdfast_wire::group::{GroupBody, GroupMessage};
use holdfast_wire::map::View;
use std::collections::BTreeMap;

/// Why a command was given to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// An operation that this primary numbered.
    Own(OpCount),
    /// An item of the stream that this member receives.
    Item(u64),
    /// An `Apply` of an era that is over: it is only waited for.
    Old,
    /// A client's read.
    Read(u64),
    /// Whether a session's change was made under an earlier primary.
    Contended(SessionId, Sequence),
    /// What changed here, for this primary's own reconciling.
    OwnChanges,
    /// What changed here, for a report.
    ReportChanges,
    /// Chunks to be compared with a member's.
    RepairList(MemberId),
    /// Block sums of a chunk to be copied to a member.
    CopySums(MemberId, ChunkKey),
    /// Bytes of a chunk to be copied to a member: the run at this offset.
    CopyRead(MemberId, ChunkKey, u32),
    /// Chunks of a copy that nobody needs.
    DiscardList,
    /// A chunk that is read whole.
    Check(ChunkKey),
    /// Blocks that are put right.
    Mend(ChunkKey),
    /// A chunk that is taken over from another member.
    Adopt(ChunkKey),
    /// Blocks for another member.
    Fetch(MemberId, u64, ChunkKey),
    /// Chunks to be read for a scrub.
    ExamList,
    /// This member's chunks, for a comparison.
    CompareList,
    /// Block sums of this member's chunk, for a comparison.
    CompareSums(ChunkKey),
}

impl Tag {
    fn is_apply(self) -> bool {
        match self {
            Self::Own(_) | Self::Item(_) | Self::Mend(_) | Self::Adopt(_) | Self::Old => true,
            Self::Read(_)
            | Self::Contended(..)
            | Self::OwnChanges
            | Self::ReportChanges
            | Self::RepairList(_)
            | Self::CopySums(..)
            | Self::CopyRead(..)
            | Self::DiscardList
            | Self::Check(_)
            | Self::Fetch(..)
            | Self::ExamList
            | Self::CompareList
            | Self::CompareSums(_) => false,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) group: GroupId,
    /// This disk in its present life.
    pub(crate) me: MemberId,
    /// The view that it is in, as of the map; `epoch` 0 before the first.
    pub(crate) view: View,
    /// The greatest number given to the store.
    pub(crate) last: OpNumber,
    /// Every number up to here is held by every member in sync, as far as is known here.
    pub(crate) settled: OpNumber,
    tickets: BTreeMap<Ticket, Tag>,
    /// `Apply`s under way, of this era and of older ones.
    pub(crate) applying: usize,
    pub(crate) checkups: Checkups,
    pub(crate) exam: Option<Exam>,
}

impl Base {
    pub(crate) fn new(group: GroupId, me: MemberId, last: OpNumber, settled: OpNumber) -> Self {
        let view = View { epoch: 0.into(), primary: me, in_sync: Vec::new(), syncing: Vec::new() };
        let (tickets, checkups) = (BTreeMap::new(), Checkups::default());
        Self { group, me, view, last, settled, tickets, applying: 0, checkups, exam: None }
    }

    /// Gives a command to the disk.
    pub(crate) fn local(&mut self, ctx: &mut Ctx<'_>, command: LocalCommand, tag: Tag) {
        let ticket = ctx.local(self.group, self.me.disk, command);
        self.tickets.insert(ticket, tag);
    }

    /// Gives a change to the disk. Numbers never go back.
    pub(crate) fn apply(&mut self, ctx: &mut Ctx<'_>, mut op: LocalOp, tag: Tag) {
        assert!(tag.is_apply(), "{tag:?} is no change");
        op.number = op.number.max(self.last);
        self.last = op.number;
        self.applying += 1;
        self.local(ctx, LocalCommand::Apply(op), tag);
    }

    /// What a finished command was for; `None` if nobody wants to know any more.
    pub(crate) fn finished(&mut self, ticket: Ticket) -> Option<Tag> {
        let tag = self.tickets.remove(&ticket)?;
        if tag.is_apply() {
            assert!(self.applying > 0, "more changes finished than were given");
            self.applying -= 1;
        }
        Some(tag)
    }

    /// An era ends: its changes are only waited for, its other commands forgotten.
    pub(crate) fn end_era(&mut self) {
        self.tickets.retain(|_, tag| {
            let keep = tag.is_apply();
            *tag = Tag::Old;
            keep
        });
        assert_eq!(self.tickets.len(), self.applying, "changes under way are counted");
        self.checkups.clear();
        self.exam = None;
    }

    /// A command of this kind is under way.
    pub(crate) fn has(&self, which: Tag) -> bool {
        self.tickets.values().any(|tag| *tag == which)
    }

    /// Forgets one kind of command.
    pub(crate) fn forget(&mut self, which: impl Fn(Tag) -> bool) {
        self.tickets.retain(|_, tag| tag.is_apply() || !which(*tag));
    }

    /// Sends a message in this epoch.
    pub(crate) fn send(&self, ctx: &mut Ctx<'_>, to: MemberId, body: GroupBody, payload: Bytes) {
        let message = GroupMessage {
            group: self.group,
            epoch: self.view.epoch,
            from: self.me,
            to,
            map: ctx.map.version,
            settled: self.settled,
            body,
        };
        ctx.effects.push(crate::Effect::SendPeer { to: to.node, message, payload });
    }

    /// The number of the count in this epoch.
    pub(crate) fn number(&self, count: OpCount) -> OpNumber {
        OpNumber { epoch: self.view.epoch, count }
    }
}
