//! A copy that nobody needs: the group lives on other disks, and what this one holds of it is removed, some chunks at a time.
//!
//! * Only while the map names this disk neither as a member, in whatever life, nor among those where the group is kept, and names as many
//!   members in sync as there should be copies. Whoever takes part in a newer view has its map: an older one removes nothing that counts.
//! * What is removed is removed by changes of an era that is over ([`Tag::Old`]): should the disk become a member again, nothing is
//!   compared or reported before they are done.

use super::{Group, Role};
use crate::book::Ctx;
use crate::group::base::Tag;
use crate::local::{Change, KeyRange, LocalCommand, LocalError, LocalOp, LocalOutcome, Origin};

/// Chunks removed between two ticks. By eye: some hundreds a second, in one batch of the disk.
const CHUNKS_AT_ONCE: u32 = 16;
/// Groups of a node that are removed at the same time.
const GROUPS_AT_ONCE: usize = 2;

impl Group {
    /// Whether the map allows that this disk's copy is removed.
    fn may_discard(&self, ctx: &Ctx<'_>) -> bool {
        let place = (self.base.me.node, self.base.me.disk);
        let number = self.base.group.0 as usize;
        let (Some(view), Some(homes)) = (ctx.map.views.get(number), ctx.map.homes.get(number)) else { return false };
        matches!(self.role, Role::Outside)
            && !homes.is_empty()
            && !homes.contains(&place)
            && !view.members().any(|member| (member.node, member.disk) == place)
            && view.in_sync.len() >= ctx.map.replicas as usize
    }

    /// Time passed outside of the view. Returns whether the group wants the next tick as well.
    pub(super) fn discard(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let group = self.base.group;
        if self.discarded || !self.may_discard(ctx) {
            ctx.book.discarding.remove(&group);
            return !self.discarded;
        }
        if self.base.applying > 0 || self.base.has(Tag::DiscardList) {
            return true;
        }
        if ctx.book.discarding.contains(&group) || ctx.book.discarding.len() < GROUPS_AT_ONCE {
            ctx.book.discarding.insert(group);
            let command = LocalCommand::List { group, range: KeyRange::ALL, limit: CHUNKS_AT_ONCE };
            self.base.local(ctx, command, Tag::DiscardList);
        }
        true
    }

    /// The disk named some chunks of it: they go, if that is still right.
    pub(super) fn discard_listed(&mut self, ctx: &mut Ctx<'_>, result: Result<LocalOutcome, LocalError>) {
        if !self.may_discard(ctx) {
            return;
        }
        // What cannot be listed is left until the next life.
        let chunks = if let Ok(LocalOutcome::Chunks { chunks }) = result { chunks } else { Vec::new() };
        if chunks.is_empty() {
            self.discarded = true;
            ctx.book.discarding.remove(&self.base.group);
        }
        ctx.book.discarded += chunks.len() as u64;
        for found in chunks {
            let change = Change::DeleteChunk { chunk: found.chunk };
            let (group, number, settled) = (self.base.group, self.base.last, self.base.settled);
            let op = LocalOp { group, number, settled, origin: Origin::MEMBERS, change };
            self.base.apply(ctx, op, Tag::Old);
        }
    }
}
