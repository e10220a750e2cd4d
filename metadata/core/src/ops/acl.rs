//! Access control lists, kept in step with modes. They are stored as the attributes that they are to Linux; the kernels of the mounts
//! check permissions by them.
//!
//! Invariants (checked by `invariants`):
//! * An access list says more than the mode does, and its mode is the inode's; only a directory has a default list.

use super::Op;
use crate::error::Applied;
use crate::tables::inode::InodeRow;
use crate::tables::mark;
use bytes::Bytes;
use holdfast_types::InodeId;
use holdfast_wire::acl::{self, ACCESS, Acl, DEFAULT};
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome};

const PERMISSIONS: u16 = 0o777;
const SET_GROUP_ID: u16 = 0o2000;

impl Op<'_, '_> {
    /// Sets (or, with no value, removes) a list.
    pub(super) fn set_acl(
        &mut self,
        inode: InodeId,
        default: bool,
        value: Option<&Bytes>,
        clear_set_group_id: bool,
    ) -> Applied<Outcome> {
        let mut row = self.inode(inode)?;
        if row.kind == FileKind::Symlink || (default && row.kind != FileKind::Directory) {
            return Err(NamespaceError::Invalid.into());
        }
        let acl = value.map(|value| Acl::parse(value).ok_or(NamespaceError::Invalid)).transpose()?;
        let key = mark::xattr(self.volume, inode, acl::attribute(default));
        if acl.is_none() && self.txn.get_raw(&key)?.is_none() {
            return Err(NamespaceError::NoAttribute.into());
        }
        if acl.is_some() {
            self.needs_room()?;
        }
        if let Some(acl) = acl.as_ref().filter(|_| !default) {
            row.mode = row.mode & !PERMISSIONS | acl.mode();
        }
        if clear_set_group_id && !default {
            row.mode &= !SET_GROUP_ID;
        }
        match acl {
            Some(acl) if default || !acl.is_minimal() => self.txn.put_raw(key, acl.bytes()),
            _ => self.txn.remove(key),
        }
        row.changed(self.stamp);
        self.put_inode(inode, &row);
        Ok(Outcome::Attributes { attributes: self.attributes(inode, &row), lease: None })
    }

    /// What a new inode has of its directory's default list: its own lists, and its mode; without one the mask takes its bits. Returns
    /// the lists, to be stored under the inode's number.
    pub(super) fn inherit(
        &self,
        parent: InodeId,
        row: &mut InodeRow,
        umask: u16,
    ) -> Applied<Vec<(&'static [u8], Bytes)>> {
        if row.kind == FileKind::Symlink {
            return Ok(Vec::new());
        }
        let list = self.txn.get_raw(&mark::xattr(self.volume, parent, DEFAULT))?;
        // A list that was stored is well-formed.
        let Some((bytes, acl)) = list.and_then(|bytes| Some((bytes.clone(), Acl::parse(&bytes)?))) else {
            row.mode &= !(umask & PERMISSIONS);
            return Ok(Vec::new());
        };
        let (access, mode) = acl.inherited(row.mode);
        row.mode = mode;
        let mut lists = Vec::new();
        if !access.is_minimal() {
            lists.push((ACCESS, access.bytes()));
        }
        if row.kind == FileKind::Directory {
            lists.push((DEFAULT, bytes));
        }
        Ok(lists)
    }

    /// After `chmod(2)`: the access list follows the mode.
    pub(super) fn follow_mode(&mut self, inode: InodeId, mode: u16) -> Applied<()> {
        let key = mark::xattr(self.volume, inode, ACCESS);
        if let Some(acl) = self.txn.get_raw(&key)?.and_then(|bytes| Acl::parse(&bytes)) {
            self.txn.put_raw(key, acl.with_mode(mode).bytes());
        }
        Ok(())
    }
}
