//! Extended attributes.

use super::{InodeRow, Op};
use crate::error::Applied;
use crate::tables::mark;
use bytes::Bytes;
use holdfast_types::InodeId;
use holdfast_types::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use holdfast_wire::acl;
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome, XattrMode};
use holdfast_wire::open::XATTR_PREFIX;

/// Refuses what is no attribute's name, or is an access list: those have a request of their own, which keeps them and the mode in step.
fn check_plain(name: &Bytes) -> Applied<()> {
    check_name(name)?;
    if [acl::ACCESS, acl::DEFAULT].contains(&&name[..]) {
        return Err(NamespaceError::Invalid.into());
    }
    Ok(())
}

/// Refuses what is no attribute's name.
pub(super) fn check_name(name: &Bytes) -> Applied<()> {
    if name.len() > XATTR_NAME_BYTES_MAX {
        return Err(NamespaceError::NameTooLong.into());
    }
    if name.is_empty() || name.contains(&0) {
        return Err(NamespaceError::Invalid.into());
    }
    Ok(())
}

impl Op<'_, '_> {
    pub(super) fn set_xattr(
        &mut self,
        inode: InodeId,
        name: &Bytes,
        value: &Bytes,
        mode: XattrMode,
    ) -> Applied<Outcome> {
        check_plain(name)?;
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(NamespaceError::TooLarge.into());
        }
        let mut row = self.inode(inode)?;
        if name.starts_with(XATTR_PREFIX) {
            return self.set_policy(inode, row, name, Some((value, mode)));
        }
        let key = mark::xattr(self.volume, inode, name);
        match (mode, self.txn.get_raw(&key)?.is_some()) {
            (XattrMode::Create, true) => return Err(NamespaceError::Exists.into()),
            (XattrMode::Replace, false) => return Err(NamespaceError::NoAttribute.into()),
            (XattrMode::Set, _) | (XattrMode::Create, false) | (XattrMode::Replace, true) => {}
        }
        self.needs_room()?;
        self.txn.put_raw(key, value.clone());
        row.changed(self.stamp);
        self.put_inode(inode, &row);
        Ok(Outcome::Done)
    }

    pub(super) fn remove_xattr(&mut self, inode: InodeId, name: &Bytes) -> Applied<Outcome> {
        check_plain(name)?;
        let mut row = self.inode(inode)?;
        if name.starts_with(XATTR_PREFIX) {
            return self.set_policy(inode, row, name, None);
        }
        let key = mark::xattr(self.volume, inode, name);
        if self.txn.get_raw(&key)?.is_none() {
            return Err(NamespaceError::NoAttribute.into());
        }
        self.txn.remove(key);
        row.changed(self.stamp);
        self.put_inode(inode, &row);
        Ok(Outcome::Done)
    }

    /// How a file is opened, or what is made in a directory. Without a value all of it is as the volume says again.
    fn set_policy(
        &mut self,
        inode: InodeId,
        mut row: InodeRow,
        name: &Bytes,
        value: Option<(&Bytes, XattrMode)>,
    ) -> Applied<Outcome> {
        if !matches!(row.kind, FileKind::File | FileKind::Directory) {
            return Err(NamespaceError::NotPermitted.into());
        }
        let mut policy = super::policy(self.txn, self.volume, &row)?;
        if policy.attribute(name).is_none() {
            return Err(NamespaceError::Invalid.into());
        }
        row.open = match (value, row.open.is_some()) {
            (Some((_, XattrMode::Create)), true) => return Err(NamespaceError::Exists.into()),
            (Some((_, XattrMode::Replace)) | None, false) => return Err(NamespaceError::NoAttribute.into()),
            (Some((value, _)), _) => {
                policy.set_attribute(name, value).map_err(|_| NamespaceError::Invalid)?;
                Some(policy)
            }
            (None, true) => None,
        };
        row.changed(self.stamp);
        self.put_inode(inode, &row);
        Ok(Outcome::Done)
    }
}
