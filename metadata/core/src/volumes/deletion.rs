//! A deleted volume's rows go in bounded steps, then its chunks, and then shard 0 forgets it.
//!
//! ```text
//! (in use) ──DropVolume──▶ Rows ──DropStep…──▶ Chunks ──Dropped──▶ Done
//! ```

use super::rows;
use crate::error::{Applied, Fail};
use crate::tables::session::{self, SessionRow};
use crate::tables::volume::{self, DroppedRow};
use crate::tables::{Key, entry, inode, lock, mark, purge};
use crate::txn::Txn;
use holdfast_types::VolumeId;
use holdfast_wire::metadata::Response;

/// Tables whose keys begin with the volume.
const TABLES: [u8; 11] = [
    inode::INODE,
    entry::ENTRY,
    entry::COOKIE,
    mark::XATTR,
    mark::SYMLINK,
    mark::OPENER,
    mark::ORPHAN,
    lock::LOCK,
    purge::PURGE,
    purge::TRIM,
    session::GENERATION,
];

pub(super) fn drop_volume(txn: &mut Txn<'_>, volume: VolumeId) -> Applied<Response> {
    let in_use = rows::<SessionRow>(txn, Key::of(session::SESSION).done(), usize::MAX)?;
    if in_use.iter().any(|(_, row)| row.volume == volume) {
        return Err(Fail::Wait);
    }
    let key = volume::dropped(volume);
    if txn.get_raw(&key)?.is_none() {
        txn.put(key, &DroppedRow::Rows);
    }
    Ok(Response::Done)
}

pub(super) fn drop_step(txn: &mut Txn<'_>, volume: VolumeId, limit: usize) -> Applied<Response> {
    if txn.get(&volume::dropped(volume))? != Some(DroppedRow::Rows) {
        return Ok(Response::Done);
    }
    let mut left = limit.max(1);
    for table in TABLES {
        for (key, _) in txn.prefix(Key::of(table).number(volume.0).done(), left)? {
            txn.remove(key.to_vec());
            left -= 1;
        }
    }
    if left > 0 {
        txn.remove(volume::key(volume));
        txn.put(volume::dropped(volume), &DroppedRow::Chunks);
    }
    Ok(Response::Done)
}

pub(super) fn dropped(txn: &mut Txn<'_>, volume: VolumeId) -> Applied<Response> {
    if txn.get(&volume::dropped(volume))? == Some(DroppedRow::Chunks) {
        txn.put(volume::dropped(volume), &DroppedRow::Done);
    }
    Ok(Response::Done)
}
