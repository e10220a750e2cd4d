//! Who has what open, while sessions do not cache; and who may.
//!
//! A session that caches is alone on its volume, so nobody is in its way: what it has open is recorded when that ends, whatever the
//! policies say.

use super::{InodeRow, Op, find_inode};
use crate::error::{Applied, Fail};
use crate::tables::mark;
use crate::tables::volume::{self, VolumeRow};
use crate::txn::Txn;
use bytes::Bytes;
use holdfast_types::{InodeId, SessionId, VolumeId};
use holdfast_wire::namespace::{FileKind, NamespaceError, Outcome};
use holdfast_wire::open::{Access, OpenPolicy, OpenRule};

/// How a file is opened, or what is made in a directory.
pub(crate) fn policy(txn: &Txn<'_>, volume: VolumeId, row: &InodeRow) -> Applied<OpenPolicy> {
    if let Some(policy) = row.open {
        return Ok(policy);
    }
    let volume_row: Option<VolumeRow> = txn.get(&volume::key(volume))?;
    Ok(volume_row.ok_or_else(|| Fail::Broken(format!("{volume} has no row")))?.record.open)
}

/// Sessions whose having a file open is in the way of another one's opening it.
pub(crate) fn in_the_way_of_opening(
    txn: &Txn<'_>,
    (volume, inode): (VolumeId, InodeId),
    session: SessionId,
    access: Access,
) -> Applied<Vec<SessionId>> {
    let row = find_inode(txn, volume, inode)?;
    let rule = policy(txn, volume, &row)?.rule;
    if rule == OpenRule::Shared || row.kind != FileKind::File {
        return Ok(Vec::new());
    }
    let openers = txn.prefix(mark::openers(volume, inode), usize::MAX)?;
    let held = openers.iter().map(|(key, value)| mark::held(key, value));
    Ok(held.filter(|(other, held)| *other != session && rule.excludes(*held, access)).map(|(other, _)| other).collect())
}

impl Op<'_, '_> {
    pub(super) fn open(&mut self, inode: InodeId, access: Access) -> Applied<Outcome> {
        let row = self.inode(inode)?;
        if let Some(refused) = self.opened_elsewhere(inode, access)? {
            return Ok(refused);
        }
        self.add_opener(inode, access)?;
        Ok(Outcome::Attributes { attributes: self.attributes(inode, &row), lease: None })
    }

    /// What to answer if others are in the way of opening a file.
    pub(super) fn opened_elsewhere(&self, inode: InodeId, access: Access) -> Applied<Option<Outcome>> {
        if self.caching {
            return Ok(None);
        }
        let others = in_the_way_of_opening(self.txn, (self.volume, inode), self.session, access)?;
        Ok(others.first().map(|holder| Outcome::OpenElsewhere { inode, holder: *holder }))
    }

    /// A file is truncated by somebody who need not have it open: that is a write to it.
    pub(super) fn may_truncate(&self, inode: InodeId) -> Applied<()> {
        let own = self.txn.get_raw(&mark::opener(self.volume, inode, self.session))?;
        if own.is_some_and(|value| value == mark::WRITES) || self.opened_elsewhere(inode, Access::Write)?.is_none() {
            return Ok(());
        }
        Err(NamespaceError::Busy.into())
    }

    /// Records the session as an opener; who writes already goes on to.
    pub(crate) fn add_opener(&mut self, inode: InodeId, access: Access) -> Applied<()> {
        let key = mark::opener(self.volume, inode, self.session);
        let writes = access == Access::Write || self.txn.get_raw(&key)?.is_some_and(|value| value == mark::WRITES);
        self.txn.put_raw(key, Bytes::from_static(if writes { mark::WRITES } else { b"" }));
        self.txn.put_raw(mark::opened(self.session, self.volume, inode), Bytes::new());
        Ok(())
    }

    /// Forgets the session as an opener, or that it writes; an orphan nobody has open goes.
    pub(crate) fn close(&mut self, inode: InodeId, keep_reading: bool) -> Applied<Outcome> {
        let key = mark::opener(self.volume, inode, self.session);
        if keep_reading {
            if self.txn.get_raw(&key)?.is_some() {
                self.txn.put_raw(key, Bytes::new());
            }
            return Ok(Outcome::Done);
        }
        self.txn.remove(key);
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
