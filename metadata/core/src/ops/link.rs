//! One more name.

use super::{Op, link_possible};
use crate::error::Applied;
use crate::tables::mark;
use holdfast_types::{FileName, InodeId};
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome};

impl Op<'_, '_> {
    pub(super) fn link(&mut self, inode: InodeId, parent: InodeId, name: &FileName) -> Applied<Outcome> {
        let mut directory = self.directory(parent)?;
        let mut row = self.inode(inode)?;
        if row.kind == FileKind::Directory {
            return Err(NamespaceError::NotPermitted.into());
        }
        let orphan = mark::orphan(self.volume, inode);
        if row.links == 0 && self.txn.get_raw(&orphan)?.as_deref() != Some(mark::MAY_BE_NAMED) {
            return Err(NamespaceError::NotFound.into());
        }
        if self.entry(parent, name)?.is_some() {
            return Err(NamespaceError::Exists.into());
        }
        link_possible(&row)?;
        self.needs_room()?;
        if row.links == 0 {
            // A file that was made without a name gets its first.
            self.txn.remove(orphan);
        }
        row.links += 1;
        row.changed(self.stamp);
        self.add_entry(parent, &mut directory, name, (inode, row.kind));
        self.put_inode(parent, &directory);
        self.put_inode(inode, &row);
        Ok(Outcome::Attributes { attributes: self.attributes(inode, &row), lease: None })
    }
}
