//! A name goes, and its inode with the last one unless somebody has it open.

use super::Op;
use crate::error::{Applied, ensure};
use holdfast_types::{FileName, InodeId};
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome};

impl Op<'_, '_> {
    pub(super) fn unlink(&mut self, parent: InodeId, name: &FileName, open: Option<InodeId>) -> Applied<Outcome> {
        let mut directory = self.directory(parent)?;
        let entry = self.entry(parent, name)?.ok_or(NamespaceError::NotFound)?;
        if entry.kind == FileKind::Directory {
            return Err(NamespaceError::IsDirectory.into());
        }
        let mut row = self.inode_of(parent, &entry)?;
        self.drop_entry(parent, &mut directory, name, &entry)?;
        self.put_inode(parent, &directory);
        let orphan = self.lose_link(entry.inode, &mut row, open == Some(entry.inode))?;
        Ok(Outcome::Removed { attributes: self.attributes(entry.inode, &row), orphan })
    }

    pub(super) fn remove_directory(&mut self, parent: InodeId, name: &FileName) -> Applied<Outcome> {
        let mut directory = self.directory(parent)?;
        let entry = self.entry(parent, name)?.ok_or(NamespaceError::NotFound)?;
        if entry.kind != FileKind::Directory {
            return Err(NamespaceError::NotDirectory.into());
        }
        let mut row = self.inode_of(parent, &entry)?;
        if row.size > 0 {
            return Err(NamespaceError::NotEmpty.into());
        }
        self.drop_entry(parent, &mut directory, name, &entry)?;
        ensure!(directory.links > 2, "{}: {parent} counts no sub-directory but has one", self.volume);
        directory.links -= 1;
        self.put_inode(parent, &directory);
        row.changed(self.stamp);
        let orphan = self.unname(entry.inode, &mut row, false)?;
        Ok(Outcome::Removed { attributes: self.attributes(entry.inode, &row), orphan })
    }

    /// One name less of what is not a directory. Returns whether it is kept without a name.
    pub(super) fn lose_link(&mut self, inode: InodeId, row: &mut super::InodeRow, open_here: bool) -> Applied<bool> {
        ensure!(row.links > 0, "{}: {inode} has a name but counts none", self.volume);
        row.changed(self.stamp);
        if row.links > 1 {
            row.links -= 1;
            self.put_inode(inode, row);
            return Ok(false);
        }
        self.unname(inode, row, open_here)
    }
}
