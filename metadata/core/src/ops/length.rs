//! How long a file is, and how far a session may write beyond that.
//!
//! * A session writes at or above `size` only below its bound, and never at or above `trim_from`.
//! * Of sessions that do not cache, one at a time has a bound above `size`: while it has, nobody else moves the end, so an append
//!   goes where the size in the answer says.
//! * Bytes above `size` that an ended session may have written go before anybody else may write there or raise the size.

use super::{InodeRow, Op};
use crate::error::{Applied, Fail};
use crate::tables::mark;
use holdfast_types::limits::FILE_BYTES_MAX;
use holdfast_types::{Generation, InodeId, SessionId, Timestamp};
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome, without_set_ids};

/// What `Publish` says.
pub(super) struct Published {
    pub(super) generation: Generation,
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) release: bool,
    pub(super) clear_set_ids: bool,
    pub(super) sparse: bool,
}

impl Op<'_, '_> {
    fn file(&self, inode: InodeId) -> Applied<InodeRow> {
        let row = self.inode(inode)?;
        match row.kind {
            FileKind::File => Ok(row),
            FileKind::Directory => Err(NamespaceError::IsDirectory.into()),
            FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                Err(NamespaceError::Invalid.into())
            }
        }
    }

    pub(super) fn reserve(
        &mut self,
        inode: InodeId,
        generation: Generation,
        (bound, least): (u64, u64),
    ) -> Applied<Outcome> {
        let mut row = self.file(inode)?;
        if row.generation != generation {
            return Err(NamespaceError::Stale.into());
        }
        if bound > FILE_BYTES_MAX || least > bound {
            return Err(NamespaceError::TooLarge.into());
        }
        if reserve_waits(&row, self.session, self.caching) {
            return Err(Fail::Wait);
        }
        let before = row.charges();
        let bound = self.affordable(&row, bound, least)?;
        self.bind(inode, &mut row, bound);
        self.charge(before, row.charges(), 0)?;
        self.put_inode(inode, &row);
        Ok(Outcome::Attributes { attributes: self.attributes(inode, &row), lease: None })
    }

    pub(super) fn publish(&mut self, inode: InodeId, done: &Published) -> Applied<Outcome> {
        let before = self.file(inode)?;
        let mut row = before.clone();
        if row.generation == done.generation {
            if done.size > row.size {
                // A truncation in between took the bound, and may take the bytes: they must be written again.
                if row.bound_of(self.session) < done.size {
                    return Err(NamespaceError::Stale.into());
                }
                row.size = done.size;
            }
            row.mtime = done.mtime;
            row.sparse |= done.sparse;
            if done.release {
                self.release(inode, &mut row);
            }
            settle_bounds(self, inode, &mut row);
        }
        if done.clear_set_ids {
            row.mode = without_set_ids(row.mode);
        }
        if row.mode != before.mode {
            row.changed(self.stamp);
        } else if (row.size, row.mtime) != (before.size, before.mtime) {
            // When it was written, as the writer's own host shows all along while it is alone: who looks at the time twice, as tar(1) does,
            // is not to see a change that nobody made. Beside other hosts it is when they can see it: who has read the old bytes since the
            // write began finds it changed later than that.
            row.changed(if self.caching { done.mtime.min(self.stamp) } else { self.stamp });
        }
        self.charge(before.charges(), row.charges(), 0)?;
        self.put_inode(inode, &row);
        Ok(Outcome::Attributes { attributes: self.attributes(inode, &row), lease: None })
    }

    /// The session may write up to a bound.
    pub(super) fn bind(&mut self, inode: InodeId, row: &mut InodeRow, bound: u64) {
        if row.bind(self.session, bound) {
            self.txn.put_raw(mark::bound(self.session, self.volume, inode), bytes::Bytes::new());
        }
    }

    /// The session has nothing under way above `size` and gives its bound back.
    pub(super) fn release(&mut self, inode: InodeId, row: &mut InodeRow) {
        if row.unbind(self.session) > 0 {
            self.txn.remove(mark::bound(self.session, self.volume, inode));
        }
    }
}

/// Whether a reservation waits: bytes are being removed, or another session may be writing beyond the end.
pub(crate) fn reserve_waits(row: &InodeRow, session: SessionId, caching: bool) -> bool {
    row.trim.is_some() || !caching && in_the_way(row, session).next().is_some()
}

/// Other sessions that may be writing beyond the end.
pub(crate) fn in_the_way(row: &InodeRow, session: SessionId) -> impl Iterator<Item = SessionId> + '_ {
    row.bounds.iter().filter(move |(holder, bound)| *holder != session && *bound > row.size).map(|(holder, _)| *holder)
}

/// When nobody holds a bound above `size` any more, what ended sessions may have written there is trimmed.
pub(crate) fn settle_bounds(op: &mut Op<'_, '_>, inode: InodeId, row: &mut InodeRow) {
    if row.stale_bound == 0 || row.bounds.iter().any(|(_, bound)| *bound > row.size) {
        return;
    }
    let stale = std::mem::take(&mut row.stale_bound);
    if stale > row.size {
        let to = stale.max(row.end());
        op.start_trim(inode, row, row.size, to);
    }
}
