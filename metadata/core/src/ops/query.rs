//! Reads.

use super::xattr::check_name;
use super::{find_inode, in_the_way_of_opening, policy};
use crate::error::{Applied, Fail};
use crate::tables::entry::{self, CookieRow, EntryRow};
use crate::tables::mark;
use crate::tables::volume::{self, VolumeRow};
use crate::txn::{Txn, decode};
use bytes::Bytes;
use holdfast_types::{InodeId, SessionId, VolumeId};
use holdfast_wire::namespace::{DirectoryEntry, FileKind, NamespaceError, Outcome, Query, VolumeUsage};
use holdfast_wire::open::XATTR_PREFIX;
use holdfast_wire::peer::PoolSpace;

/// Entries in one answer at the most.
const DIRECTORY_LIMIT_MAX: u32 = 10_000;
/// Inodes of a volume without a limit of its own.
const INODES_MAX: u64 = 1_000_000_000;

/// Answers a query of a session's volume.
pub(crate) fn answer(
    txn: &Txn<'_>,
    volume: VolumeId,
    session: SessionId,
    query: &Query,
    pool: PoolSpace,
) -> Applied<Outcome> {
    match query {
        Query::Lookup { parent, name } => {
            if find_inode(txn, volume, *parent)?.kind != FileKind::Directory {
                return Err(NamespaceError::NotDirectory.into());
            }
            let row: EntryRow = txn.get(&entry::key(volume, *parent, name))?.ok_or(NamespaceError::NotFound)?;
            let attributes = named(txn, volume, row.inode)?.attributes(row.inode, session);
            Ok(Outcome::Entry { attributes, lease: None })
        }
        Query::GetAttributes { inode } => {
            let attributes = find_inode(txn, volume, *inode)?.attributes(*inode, session);
            Ok(Outcome::Attributes { attributes, lease: None })
        }
        Query::AwaitTrim { inode } => {
            let row = find_inode(txn, volume, *inode)?;
            if row.trim.is_some() {
                return Err(Fail::Wait);
            }
            Ok(Outcome::Attributes { attributes: row.attributes(*inode, session), lease: None })
        }
        Query::AwaitOpen { inode, access, .. } => {
            if in_the_way_of_opening(txn, (volume, *inode), session, *access)?.is_empty() {
                Ok(Outcome::Done)
            } else {
                Err(Fail::Wait)
            }
        }
        Query::TestLock { inode, lock } => super::lock::test(txn, (volume, *inode), session, lock),
        Query::AwaitLock { inode, lock } => match super::lock::test(txn, (volume, *inode), session, lock)? {
            Outcome::Conflict(Some(_)) => Err(Fail::Wait),
            _ => Ok(Outcome::Done),
        },
        Query::ReadDirectory { inode, after, limit, plus } => {
            directory(txn, (volume, session), *inode, (*after, *limit), *plus)
        }
        Query::ReadLink { inode } => {
            if find_inode(txn, volume, *inode)?.kind != FileKind::Symlink {
                return Err(NamespaceError::Invalid.into());
            }
            let target = txn.get_raw(&mark::symlink(volume, *inode))?;
            target.map(Outcome::Bytes).ok_or_else(|| Fail::Broken(format!("{volume}: symlink {inode} has no target")))
        }
        Query::GetXattr { inode, name } => {
            check_name(name)?;
            let row = find_inode(txn, volume, *inode)?;
            if name.starts_with(XATTR_PREFIX) {
                let may = matches!(row.kind, FileKind::File | FileKind::Directory);
                let value = policy(txn, volume, &row)?.attribute(name).filter(|_| may);
                return Ok(Outcome::Bytes(value.ok_or(NamespaceError::NoAttribute)?.into()));
            }
            let value = txn.get_raw(&mark::xattr(volume, *inode, name))?.ok_or(NamespaceError::NoAttribute)?;
            Ok(Outcome::Bytes(value))
        }
        Query::ListXattrs { inode } => {
            find_inode(txn, volume, *inode)?;
            let rows = txn.prefix(mark::xattrs(volume, *inode), usize::MAX)?;
            Ok(Outcome::Names(rows.iter().map(|(key, _)| Bytes::copy_from_slice(mark::xattr_name(key))).collect()))
        }
        Query::StatVolume => {
            let row: Option<VolumeRow> = txn.get(&volume::key(volume))?;
            let row = row.ok_or_else(|| Fail::Broken(format!("{volume} has no row")))?;
            let bytes_used = u64::try_from(row.bytes_used).unwrap_or(u64::MAX);
            // Without a limit nothing is counted down: what files hold says little of what they take where they have holes.
            let limit = row.record.bytes_max.map(|limit| limit.max(bytes_used));
            let bytes_free = limit.map_or(pool.free, |limit| limit - bytes_used);
            Ok(Outcome::Usage(VolumeUsage {
                bytes_used,
                inodes_used: row.inodes_used,
                bytes_max: limit.unwrap_or(pool.total),
                bytes_free,
                bytes_available: bytes_free.min(pool.available),
                inodes_max: row.record.inodes_max.unwrap_or(INODES_MAX),
            }))
        }
    }
}

fn named(txn: &Txn<'_>, volume: VolumeId, inode: InodeId) -> Applied<super::InodeRow> {
    let row = txn.get(&super::inode::key(volume, inode))?;
    row.ok_or_else(|| Fail::Broken(format!("{volume}: an entry names {inode}, which is missing")))
}

fn directory(
    txn: &Txn<'_>,
    (volume, session): (VolumeId, SessionId),
    inode: InodeId,
    (after, limit): (u64, u32),
    plus: bool,
) -> Applied<Outcome> {
    let row = find_inode(txn, volume, inode)?;
    if row.kind != FileKind::Directory {
        return Err(NamespaceError::NotDirectory.into());
    }
    let limit = limit.clamp(1, DIRECTORY_LIMIT_MAX) as usize;
    let from = entry::cookie_key(volume, inode, after);
    // One more than asked for tells whether this is the end.
    let mut rows = txn.prefix_after(entry::cookie_prefix(volume, inode), from, limit + 1)?;
    let end = rows.len() <= limit;
    rows.truncate(limit);
    let mut entries = Vec::with_capacity(rows.len());
    for (key, value) in rows {
        let CookieRow { name, inode, kind } = decode(&key, &value)?;
        let attributes = if plus { Some(named(txn, volume, inode)?.attributes(inode, session)) } else { None };
        entries.push(DirectoryEntry { name, inode, kind, cookie: crate::tables::number_at(&key, 2), attributes });
    }
    Ok(Outcome::Directory { entries, end, parent: row.parent, lease: None })
}
