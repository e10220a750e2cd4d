//! Who has what open, while sessions do not cache.

use super::Op;
use crate::error::Applied;
use crate::tables::mark;
use holdfast_types::InodeId;
use holdfast_wire::namespace::Outcome;

impl Op<'_, '_> {
    pub(super) fn open(&mut self, inode: InodeId) -> Applied<Outcome> {
        let row = self.inode(inode)?;
        self.add_opener(inode);
        Ok(Outcome::Attributes { attributes: self.attributes(inode, &row), lease: None })
    }

    /// Forgets the session as an opener; an orphan nobody has open goes.
    pub(crate) fn close(&mut self, inode: InodeId) -> Applied<Outcome> {
        self.txn.remove(mark::opener(self.volume, inode, self.session));
        self.txn.remove(mark::opened(self.session, self.volume, inode));
        let is_orphan = self.txn.get_raw(&mark::orphan(self.volume, inode))?.is_some();
        if is_orphan && self.txn.prefix(mark::openers(self.volume, inode), 1)?.is_empty() {
            let row = self.inode(inode)?;
            self.txn.remove(mark::orphan(self.volume, inode));
            self.delete_inode(inode, &row)?;
        }
        Ok(Outcome::Done)
    }
}
