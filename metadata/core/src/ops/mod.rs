//! What happens to a namespace, a file per operation.
//!
//! Every operation checks everything before it changes anything. Permissions are the kernel's affair; link counts, kinds,
//! cycles and times are ours.
//!
//! Invariants (checked by `invariants`):
//! * Every entry's inode exists; a directory has one entry, and 2 links and one more for each sub-directory.
//! * An inode with no links is an orphan with openers, or does not exist.
//! * A position in a directory names one entry for ever.
//! * ctime never goes back.

mod acl;
mod create;
mod length;
mod link;
pub(crate) mod lock;
mod open;
mod query;
mod rename;
mod set_attributes;
mod unlink;
mod xattr;

pub(crate) use length::{in_the_way, reserve_waits, settle_bounds};
pub(crate) use open::{in_the_way_of_opening, policy};
pub(crate) use query::answer as query;

use crate::error::{Applied, Fail, ensure};
use crate::tables::entry::{self, CookieRow, EntryRow};
use crate::tables::inode::{self, Charges, InodeRow, blocks};
use crate::tables::volume::{self, VolumeRow};
use crate::tables::{mark, purge};
use crate::txn::Txn;
use holdfast_types::limits::{BLOCK_BYTES, LINKS_MAX};
use holdfast_types::{FileName, InodeId, SessionId, Timestamp, VolumeId};
use holdfast_wire::namespace::{Attributes, FileKind, Mutation, NamespaceError, NewNode, Outcome};
use holdfast_wire::open::Access;

/// What a file may be granted beyond what it needs: this part of what a volume's limit leaves. By eye.
const ROOM_SHARE: u64 = 8;

/// One operation on one volume on behalf of one session.
pub(crate) struct Op<'t, 'a> {
    pub(crate) txn: &'t mut Txn<'a>,
    pub(crate) volume: VolumeId,
    pub(crate) session: SessionId,
    /// The session keeps track of what it has open by itself.
    pub(crate) caching: bool,
    pub(crate) stamp: Timestamp,
}

impl Op<'_, '_> {
    /// Does what a mutation says.
    pub(crate) fn mutate(&mut self, mutation: &Mutation) -> Applied<Outcome> {
        match mutation {
            Mutation::Create { parent, name, node, mode, umask, uid, gid, exclusive, open } => {
                let new = create::New { node, mode: *mode, umask: *umask, uid: *uid, gid: *gid, open: *open };
                self.create(*parent, name, &new, *exclusive)
            }
            Mutation::CreateUnnamed { parent, mode, umask, uid, gid } => {
                let node = &NewNode::File;
                let new =
                    create::New { node, mode: *mode, umask: *umask, uid: *uid, gid: *gid, open: Some(Access::Write) };
                self.create_unnamed(*parent, &new)
            }
            Mutation::Link { inode, parent, name } => self.link(*inode, *parent, name),
            Mutation::Unlink { parent, name, open } => self.unlink(*parent, name, *open),
            Mutation::RemoveDirectory { parent, name } => self.remove_directory(*parent, name),
            Mutation::Rename { from_parent, from_name, to_parent, to_name, mode, open } => {
                self.rename((*from_parent, from_name), (*to_parent, to_name), *mode, *open)
            }
            Mutation::SetAttributes { inode, set } => self.set_attributes(*inode, set),
            Mutation::Reserve { inode, generation, bound, least } => {
                self.reserve(*inode, *generation, (*bound, *least))
            }
            Mutation::Publish { inode, generation, size, mtime, release, clear_set_ids, sparse } => {
                let done = length::Published {
                    generation: *generation,
                    size: *size,
                    mtime: *mtime,
                    release: *release,
                    clear_set_ids: *clear_set_ids,
                    sparse: *sparse,
                };
                self.publish(*inode, &done)
            }
            Mutation::SetAccessTimes { times } => self.set_access_times(times),
            Mutation::Open { inode, access } => self.open(*inode, *access),
            Mutation::Close { inode, keep_reading } => self.close(*inode, *keep_reading),
            Mutation::SetXattr { inode, name, value, mode } => self.set_xattr(*inode, name, value, *mode),
            Mutation::RemoveXattr { inode, name } => self.remove_xattr(*inode, name),
            Mutation::SetAcl { inode, default, value, clear_set_group_id } => {
                self.set_acl(*inode, *default, value.as_ref(), *clear_set_group_id)
            }
            Mutation::SetLock { inode, lock } => self.set_lock(*inode, lock),
        }
    }

    /// An inode; `Stale` if there is none.
    pub(crate) fn inode(&self, inode: InodeId) -> Applied<InodeRow> {
        find_inode(self.txn, self.volume, inode)
    }

    pub(crate) fn put_inode(&mut self, inode: InodeId, row: &InodeRow) {
        self.txn.put(inode::key(self.volume, inode), row);
    }

    /// A directory that entries can be made in and removed from.
    fn directory(&self, inode: InodeId) -> Applied<InodeRow> {
        let row = self.inode(inode)?;
        if row.kind != FileKind::Directory {
            return Err(NamespaceError::NotDirectory.into());
        }
        if row.links == 0 {
            return Err(NamespaceError::NotFound.into());
        }
        Ok(row)
    }

    fn entry(&self, parent: InodeId, name: &FileName) -> Applied<Option<EntryRow>> {
        self.txn.get(&entry::key(self.volume, parent, name))
    }

    /// The inode that an entry names, which exists.
    fn inode_of(&self, parent: InodeId, entry: &EntryRow) -> Applied<InodeRow> {
        let row: Option<InodeRow> = self.txn.get(&inode::key(self.volume, entry.inode))?;
        row.ok_or_else(|| {
            Fail::Broken(format!("{}: an entry of {parent} names {}, which is missing", self.volume, entry.inode))
        })
    }

    fn attributes(&self, inode: InodeId, row: &InodeRow) -> Attributes {
        row.attributes(inode, self.session)
    }

    /// Adds an entry at a new position; the directory's row is the caller's to put.
    fn add_entry(&mut self, parent: InodeId, directory: &mut InodeRow, name: &FileName, target: (InodeId, FileKind)) {
        let cookie = directory.cookie_next;
        directory.cookie_next += 1;
        directory.size += 1;
        self.put_entry(parent, name, EntryRow { inode: target.0, kind: target.1, cookie });
        self.touch_directory(directory);
    }

    /// Writes an entry under its name and its position.
    fn put_entry(&mut self, parent: InodeId, name: &FileName, row: EntryRow) {
        self.txn.put(entry::key(self.volume, parent, name), &row);
        let by_cookie = CookieRow { name: name.clone(), inode: row.inode, kind: row.kind };
        self.txn.put(entry::cookie_key(self.volume, parent, row.cookie), &by_cookie);
    }

    /// Removes an entry; the directory's row is the caller's to put.
    fn drop_entry(
        &mut self,
        parent: InodeId,
        directory: &mut InodeRow,
        name: &FileName,
        row: &EntryRow,
    ) -> Applied<()> {
        ensure!(directory.size > 0, "{}: {parent} has an entry but counts none", self.volume);
        directory.size -= 1;
        self.txn.remove(entry::key(self.volume, parent, name));
        self.txn.remove(entry::cookie_key(self.volume, parent, row.cookie));
        self.touch_directory(directory);
        Ok(())
    }

    fn touch_directory(&self, directory: &mut InodeRow) {
        directory.mtime = self.stamp;
        directory.changed(self.stamp);
    }

    pub(crate) fn volume_row(&self) -> Applied<VolumeRow> {
        let row: Option<VolumeRow> = self.txn.get(&volume::key(self.volume))?;
        row.ok_or_else(|| Fail::Broken(format!("{} has no row", self.volume)))
    }

    /// Refuses what makes the tables grow while too few servers have room for it; see `room.rs`.
    pub(crate) fn needs_room(&self) -> Applied<()> {
        match self.txn.get_raw(&crate::room::key())? {
            Some(_) => Err(NamespaceError::NoSpace.into()),
            None => Ok(()),
        }
    }

    /// Changes a volume's totals: what one inode counts, and how many there are. More of either is refused beyond the volume's limits;
    /// what was granted may be used whatever they are now.
    pub(crate) fn charge(&mut self, before: Charges, after: Charges, inodes: i64) -> Applied<()> {
        if before == after && inodes == 0 {
            return Ok(());
        }
        let mut row = self.volume_row()?;
        let sum = |total: u128, before: u64, after: u64| (total + u128::from(after)).checked_sub(u128::from(before));
        let bytes = sum(row.bytes_used, before.bytes, after.bytes);
        let granted = sum(row.bytes_granted, before.granted, after.granted);
        let (Some(bytes), Some(granted), Some(used)) = (bytes, granted, row.inodes_used.checked_add_signed(inodes))
        else {
            return Err(Fail::Broken(format!("{}: totals fall below zero", self.volume)));
        };
        let grows = after.total() > before.total();
        if grows && row.record.bytes_max.is_some_and(|max| bytes + granted > u128::from(max)) {
            return Err(NamespaceError::Quota.into());
        }
        if inodes > 0 && row.record.inodes_max.is_some_and(|max| used > max) {
            return Err(NamespaceError::Quota.into());
        }
        (row.bytes_used, row.bytes_granted, row.inodes_used) = (bytes, granted, used);
        self.txn.put(volume::key(self.volume), &row);
        Ok(())
    }

    /// How far a file may be written if `bound` is wanted and `least` needed. Of what the limit leaves beyond that only a part is given:
    /// others write, too.
    fn affordable(&self, file: &InodeRow, bound: u64, least: u64) -> Applied<u64> {
        let volume = self.volume_row()?;
        let own = file.charges().total();
        let Some(max) = volume.record.bytes_max.filter(|_| blocks(bound) > own) else { return Ok(bound) };
        let others = (volume.bytes_used + volume.bytes_granted).saturating_sub(u128::from(own));
        let room = u64::try_from(u128::from(max).saturating_sub(others)).unwrap_or(max);
        let need = blocks(least).max(own);
        if need > room.max(own) {
            return Err(NamespaceError::Quota.into());
        }
        let more = room.saturating_sub(need) / ROOM_SHARE;
        let most = need + more - more % BLOCK_BYTES;
        Ok(if blocks(bound) <= most { bound } else { most })
    }

    /// An inode loses its last name: it becomes an orphan if somebody has it open, else it goes. Returns whether it is kept.
    fn unname(&mut self, inode: InodeId, row: &mut InodeRow, open_here: bool) -> Applied<bool> {
        row.links = 0;
        if open_here {
            self.add_opener(inode, Access::Read)?;
        }
        let kept = !self.txn.prefix(mark::openers(self.volume, inode), 1)?.is_empty();
        if kept {
            self.txn.put_raw(mark::orphan(self.volume, inode), bytes::Bytes::new());
            self.put_inode(inode, row);
        } else {
            self.delete_inode(inode, row)?;
        }
        Ok(kept)
    }

    /// Removes an inode and all that hangs on it. Nobody has it open.
    pub(crate) fn delete_inode(&mut self, inode: InodeId, row: &InodeRow) -> Applied<()> {
        ensure!(row.kind != FileKind::Directory || row.size == 0, "{}: {inode} goes with entries in it", self.volume);
        self.txn.remove(inode::key(self.volume, inode));
        for (key, _) in self.txn.prefix(mark::xattrs(self.volume, inode), usize::MAX)? {
            self.txn.remove(key.to_vec());
        }
        if row.kind == FileKind::Symlink {
            self.txn.remove(mark::symlink(self.volume, inode));
        }
        for holder in row.bound_sessions() {
            self.txn.remove(mark::bound(holder, self.volume, inode));
        }
        if row.kind == FileKind::File {
            self.forget_locks(inode)?;
            self.purge(inode, row);
        }
        self.charge(row.charges(), Charges::default(), -1)
    }

    /// The present generation's chunks are to go.
    fn purge(&mut self, inode: InodeId, row: &InodeRow) {
        if row.trim.is_some() {
            self.txn.remove(purge::trim(self.volume, inode));
        }
        let end = row.end();
        if end > 0 {
            self.txn.put(purge::purge(self.volume, inode, row.generation), &purge::PurgeRow { end });
        }
    }
}

/// An inode; `Stale` if there is none.
pub(crate) fn find_inode(txn: &Txn<'_>, volume: VolumeId, inode: InodeId) -> Applied<InodeRow> {
    let row: Option<InodeRow> = txn.get(&inode::key(volume, inode))?;
    row.ok_or_else(|| NamespaceError::Stale.into())
}

/// Room for one more link.
fn link_possible(row: &InodeRow) -> Applied<()> {
    if row.links >= LINKS_MAX { Err(NamespaceError::TooManyLinks.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_as_many_links_as_the_limit_and_no_more() {
        let mut row = inode::example();
        row.links = LINKS_MAX - 1;
        assert!(link_possible(&row).is_ok());
        row.links += 1;
        assert!(
            matches!(link_possible(&row), Err(Fail::Refused(error)) if error == NamespaceError::TooManyLinks.into())
        );
    }
}
