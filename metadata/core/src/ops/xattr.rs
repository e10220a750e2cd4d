//! Extended attributes.

use super::Op;
use crate::error::Applied;
use crate::tables::mark;
use bytes::Bytes;
use holdfast_types::InodeId;
use holdfast_types::limits::{XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX};
use holdfast_wire::acl;
use holdfast_wire::namespace::{NamespaceError, Outcome, XattrMode};

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
        let key = mark::xattr(self.volume, inode, name);
        if self.txn.get_raw(&key)?.is_none() {
            return Err(NamespaceError::NoAttribute.into());
        }
        self.txn.remove(key);
        row.changed(self.stamp);
        self.put_inode(inode, &row);
        Ok(Outcome::Done)
    }
}
