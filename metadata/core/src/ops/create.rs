//! A new inode and its entry.

use super::{Op, link_possible};
use crate::error::Applied;
use crate::tables::entry::COOKIE_FIRST;
use crate::tables::inode::{Charges, InodeRow};
use crate::tables::{mark, volume};
use bytes::Bytes;
use holdfast_types::limits::{CHUNK_BYTES, PATH_BYTES_MAX};
use holdfast_types::{FileName, Generation, InodeId};
use holdfast_wire::namespace::{FileKind, NamespaceError, NewNode, Outcome};
use holdfast_wire::open::Access;

/// How far a session may write into a file that it has just created, in bytes. One chunk: when the file goes before the bound was given
/// back, every group that may hold a part of it is told to delete, and most files are small.
pub(super) const BOUND_FIRST: u64 = CHUNK_BYTES;
const SET_GROUP_ID: u16 = 0o2000;

/// What is created.
pub(super) struct New<'m> {
    pub(super) node: &'m NewNode,
    pub(super) mode: u16,
    pub(super) umask: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) open: Option<Access>,
}

impl Op<'_, '_> {
    pub(super) fn create(
        &mut self,
        parent: InodeId,
        name: &FileName,
        new: &New<'_>,
        exclusive: bool,
    ) -> Applied<Outcome> {
        let mut directory = self.directory(parent)?;
        if let Some(entry) = self.entry(parent, name)? {
            if exclusive {
                return Err(NamespaceError::Exists.into());
            }
            let row = self.inode_of(parent, &entry)?;
            if let Some(access) = new.open.filter(|_| row.kind == FileKind::File && !self.caching) {
                if let Some(refused) = self.opened_elsewhere(entry.inode, access)? {
                    return Ok(refused);
                }
                self.add_opener(entry.inode, access)?;
            }
            let attributes = self.attributes(entry.inode, &row);
            return Ok(Outcome::Created { attributes, new: false, inherited: false, lease: None });
        }
        let mut row = self.new_row(parent, &directory, new)?;
        let lists = self.inherit(parent, &mut row, new.umask)?;
        if row.kind == FileKind::Directory {
            link_possible(&directory)?;
        }
        self.needs_room()?;
        self.charge(Charges::default(), Charges::default(), 1)?;
        let inode = self.take_number()?;
        let inherited = self.put_lists(inode, lists);
        if let NewNode::Symlink(target) = new.node {
            self.txn.put_raw(mark::symlink(self.volume, inode), target.clone());
        }
        if let Some(access) = new.open.filter(|_| row.kind == FileKind::File) {
            self.bind_first(inode, &mut row)?;
            if !self.caching {
                self.add_opener(inode, access)?;
            }
        }
        if row.kind == FileKind::Directory {
            directory.links += 1;
        }
        self.add_entry(parent, &mut directory, name, (inode, row.kind));
        self.put_inode(parent, &directory);
        self.put_inode(inode, &row);
        Ok(Outcome::Created { attributes: self.attributes(inode, &row), new: true, inherited, lease: None })
    }

    /// An orphan from the beginning: only its opener keeps it, until it is given a name.
    pub(super) fn create_unnamed(&mut self, parent: InodeId, new: &New<'_>) -> Applied<Outcome> {
        let directory = self.directory(parent)?;
        let mut row = self.new_row(parent, &directory, new)?;
        let lists = self.inherit(parent, &mut row, new.umask)?;
        self.needs_room()?;
        self.charge(Charges::default(), Charges::default(), 1)?;
        let inode = self.take_number()?;
        let inherited = self.put_lists(inode, lists);
        row.links = 0;
        self.bind_first(inode, &mut row)?;
        self.add_opener(inode, Access::Write)?;
        self.txn.put_raw(mark::orphan(self.volume, inode), Bytes::from_static(mark::MAY_BE_NAMED));
        self.put_inode(inode, &row);
        Ok(Outcome::Created { attributes: self.attributes(inode, &row), new: true, inherited, lease: None })
    }

    /// Room for the first writes of a new file, as far as the volume's limit allows.
    fn bind_first(&mut self, inode: InodeId, row: &mut InodeRow) -> Applied<()> {
        let bound = self.affordable(row, BOUND_FIRST, 0)?;
        if bound > 0 {
            self.bind(inode, row, bound);
            self.charge(Charges::default(), row.charges(), 0)?;
        }
        Ok(())
    }

    /// Stores what was inherited; whether there was anything.
    fn put_lists(&mut self, inode: InodeId, lists: Vec<(&'static [u8], Bytes)>) -> bool {
        let inherited = !lists.is_empty();
        for (name, value) in lists {
            self.txn.put_raw(mark::xattr(self.volume, inode, name), value);
        }
        inherited
    }

    fn new_row(&self, parent: InodeId, directory: &InodeRow, new: &New<'_>) -> Applied<InodeRow> {
        let (kind, rdev, size) = match new.node {
            NewNode::File => (FileKind::File, 0, 0),
            NewNode::Directory => (FileKind::Directory, 0, 0),
            NewNode::Symlink(target) => (FileKind::Symlink, 0, symlink_length(target)?),
            NewNode::Fifo => (FileKind::Fifo, 0, 0),
            NewNode::Socket => (FileKind::Socket, 0, 0),
            NewNode::CharDevice(rdev) => (FileKind::CharDevice, *rdev, 0),
            NewNode::BlockDevice(rdev) => (FileKind::BlockDevice, *rdev, 0),
        };
        let is_directory = kind == FileKind::Directory;
        let inherits = directory.mode & SET_GROUP_ID != 0;
        let mode = if kind == FileKind::Symlink { 0o777 } else { new.mode & 0o7777 };
        Ok(InodeRow {
            kind,
            mode: if inherits && is_directory { mode | SET_GROUP_ID } else { mode },
            links: if is_directory { 2 } else { 1 },
            uid: new.uid,
            gid: if inherits { directory.gid } else { new.gid },
            rdev,
            size,
            atime: self.stamp,
            mtime: self.stamp,
            ctime: self.stamp,
            btime: self.stamp,
            generation: Generation(1),
            parent: if is_directory { parent } else { InodeId(0) },
            cookie_next: COOKIE_FIRST,
            trim: None,
            bounds: Vec::new(),
            late: Vec::new(),
            stale_bound: 0,
            cuts: 0,
            sparse: false,
            open: directory.open,
        })
    }

    fn take_number(&mut self) -> Applied<InodeId> {
        let mut row = self.volume_row()?;
        let inode = row.inode_next;
        row.inode_next = inode.next();
        self.txn.put(volume::key(self.volume), &row);
        Ok(inode)
    }
}

fn symlink_length(target: &Bytes) -> Applied<u64> {
    if target.len() >= PATH_BYTES_MAX {
        return Err(NamespaceError::NameTooLong.into());
    }
    if target.is_empty() || target.contains(&0) {
        return Err(NamespaceError::Invalid.into());
    }
    Ok(target.len() as u64)
}
