//! Attributes and truncation.

use super::{InodeRow, Op};
use crate::error::Applied;
use crate::tables::inode::{self, blocks};
use crate::tables::{mark, purge};
use holdfast_types::limits::FILE_BYTES_MAX;
use holdfast_types::{InodeId, Timestamp};
use holdfast_wire::namespace::{
    ACCESS_TIMES_MAX, AccessTime, FileKind, NamespaceError, Outcome, SetAttributes, SetTime, without_set_ids,
};

impl Op<'_, '_> {
    pub(super) fn set_attributes(&mut self, inode: InodeId, set: &SetAttributes) -> Applied<Outcome> {
        let mut row = self.inode(inode)?;
        let before = row.charges();
        if let Some(size) = set.size {
            self.may_truncate(inode)?;
            self.truncate(inode, &mut row, size)?;
            row.mtime = self.stamp;
        }
        if set.clear_set_ids && row.kind != FileKind::Directory {
            row.mode = without_set_ids(row.mode);
        }
        if let Some(mode) = set.mode {
            row.mode = mode & 0o7777;
            self.follow_mode(inode, mode)?;
        }
        row.uid = set.uid.unwrap_or(row.uid);
        row.gid = set.gid.unwrap_or(row.gid);
        if let Some(time) = set.atime {
            row.atime = self.time(time);
        }
        if let Some(time) = set.mtime {
            row.mtime = self.time(time);
        }
        row.changed(self.stamp);
        self.charge(before, row.charges(), 0)?;
        self.put_inode(inode, &row);
        Ok(Outcome::Attributes { attributes: self.attributes(inode, &row), lease: None })
    }

    pub(super) fn set_access_times(&mut self, times: &[AccessTime]) -> Applied<Outcome> {
        if times.len() > ACCESS_TIMES_MAX {
            return Err(NamespaceError::Invalid.into());
        }
        for time in times {
            let row: Option<InodeRow> = self.txn.get(&inode::key(self.volume, time.inode))?;
            // Gone, or changed by somebody who may have set the time: what was read before is nobody's business any more.
            if let Some(mut row) = row.filter(|row| row.ctime == time.ctime && row.atime < time.atime) {
                row.atime = time.atime;
                self.put_inode(time.inode, &row);
            }
        }
        Ok(Outcome::Done)
    }

    fn time(&self, time: SetTime) -> Timestamp {
        match time {
            SetTime::Now => self.stamp,
            SetTime::At(time) => time,
        }
    }

    /// A new size. Whatever may have been written at or above it goes: by a new generation, or by a trim.
    fn truncate(&mut self, inode: InodeId, row: &mut InodeRow, size: u64) -> Applied<()> {
        match row.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(NamespaceError::IsDirectory.into()),
            FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                return Err(NamespaceError::Invalid.into());
            }
        }
        if size > FILE_BYTES_MAX {
            return Err(NamespaceError::TooLarge.into());
        }
        let end = row.end();
        if size == 0 && end > 0 {
            self.purge(inode, row);
            row.generation = row.generation.max(self.volume_row()?.generation_floor).next();
            row.trim = None;
            row.stale_bound = 0;
            // Whoever truncates goes on to write: its bound now is one of the new generation.
            let own = row.bound_of(self.session);
            for holder in row.bound_sessions() {
                row.unbind(holder);
                self.txn.remove(mark::bound(holder, self.volume, inode));
            }
            if own > 0 {
                self.bind(inode, row, own);
            }
        } else if size < end && !(size >= row.size && row.bounds.is_empty() && row.late.is_empty()) {
            // With no bound held, all above `size` is either nothing or being trimmed already. A growing file keeps what a session
            // that lives has written up to the new size; what one that is over may have left begins at the old size. Whoever
            // truncates has nothing under way itself.
            let live = row.bounds.iter().any(|(_, bound)| *bound > row.size);
            let from = if row.stale_bound > row.size && !live { row.size.min(size) } else { size };
            self.release(inode, row);
            self.start_trim(inode, row, from, end);
        }
        row.cuts += u64::from(size < row.size);
        row.sparse = size > 0 && (row.sparse || blocks(size) > blocks(row.size));
        row.size = size;
        Ok(())
    }

    /// Bytes in `[from, to)` are to go; nobody may write there until they have.
    pub(super) fn start_trim(&mut self, inode: InodeId, row: &mut InodeRow, from: u64, to: u64) {
        let from = row.trim.map_or(from, |(earlier, _)| earlier.min(from));
        row.trim = Some((from, to));
        row.stale_bound = 0;
        row.take_bounds_back();
        self.txn.put(purge::trim(self.volume, inode), &purge::TrimRow { generation: row.generation, from, to });
    }
}
