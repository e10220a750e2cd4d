//! The check of a live shard's namespace, for `holdfast admin fsck`: from one snapshot, in memory that does not grow with the files.
//!
//! [`crate::invariants`] says the same of small tables with everything in memory, and shares no code with this; a test lets both
//! judge the same damaged tables.
//!
//! ```text
//! tables ordered by (volume, inode)                        what travels between inodes
//! inodes ─┐
//! entries ┼─ one merged pass, inode by inode ──▶ findings   names of each inode ──▶ 65,536 sums, which must all be 0
//! …       ┘                                                 a sum that is not 0 ──▶ its inodes are looked at one by one
//! ```
//!
//! * What is wrong is named; what is right is not taken for wrong: everything is read from one snapshot, at one applied index.
//! * Equal sums of two sets of names are taken for equal sets: the sums have 64 bits of a mixing function.
//! * A row that cannot be decoded is a finding. A table that cannot be read ends the check with an error.

mod merge;
mod names;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::found_in;

use crate::error::{Applied, Fail};
use crate::replica::describe;
use crate::tables::inode::{self, InodeRow};
use crate::tables::purge;
use crate::tables::volume::{self, DroppedRow};
use crate::tables::{Key, Row, number_at};
use crate::txn::decode;
use bytes::Bytes;
use holdfast_store::{KeyRange, Pair, Pairs, View};
use holdfast_types::{InodeId, VolumeId};
use holdfast_wire::admin::{InodeFacts, WholeFile};
use holdfast_wire::namespace::FileKind;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Rows between two looks at whether the check goes on.
const ROWS_BETWEEN: u64 = 1024;

/// Who follows a check.
pub trait Watch {
    /// Inodes, and entries, looked at since the last call. False ends the check.
    fn looked_at(&mut self, inodes: u64, entries: u64) -> bool;
    /// Something is wrong.
    fn found(&mut self, what: String);
}

/// How many inodes the volumes' totals say there are, for those who show progress.
///
/// # Errors
/// A text, if the table cannot be read.
pub fn inodes_expected(view: &dyn View) -> Result<u64, String> {
    let sum = || -> Applied<u64> {
        let mut total = 0;
        for pair in view.range(KeyRange::prefix(vec![volume::VOLUME])) {
            let (key, value) = pair?;
            total += decode::<volume::VolumeRow>(&key, &value).map_or(0, |row| row.inodes_used);
        }
        Ok(total)
    };
    sum().map_err(|fail| describe(&fail))
}

/// Checks the table of shard 1, or a snapshot of it. Returns whether it came to its end.
///
/// # Errors
/// A text, if the table cannot be read; what was found by then was told.
pub fn check_volumes(view: &dyn View, watch: &mut dyn Watch) -> Result<bool, String> {
    let mut run = || -> Applied<bool> {
        let mut check = Check::new(view, watch)?;
        let names = match merge::run(&mut check)? {
            Some(names) => names,
            None => return Ok(false),
        };
        names::find(&mut check, &names)?;
        merge::by_session(&mut check)?;
        let (inodes, entries) = check.looked_at;
        check.watch.looked_at(inodes, entries);
        Ok(!check.stopped)
    };
    run().map_err(|fail| describe(&fail))
}

/// What a check of chunks needs to know of some inodes.
///
/// # Errors
/// A text, if the table cannot be read.
pub fn inodes(view: &dyn View, wanted: &[(VolumeId, InodeId)]) -> Result<Vec<InodeFacts>, String> {
    let one = |&(volume, number): &(VolumeId, InodeId)| -> Applied<InodeFacts> {
        let row: Option<InodeRow> = get(view, &inode::key(volume, number))?;
        let dropped: Option<DroppedRow> = get(view, &volume::dropped(volume))?;
        let mut purging = Vec::new();
        for pair in view.range(KeyRange::prefix(Key::of(purge::PURGE).number(volume.0).number(number.0).done())) {
            purging.push(purge::purge_of(&pair?.0).2);
        }
        let whole = row.as_ref().map_or(0, whole);
        let content = row.map(|row| (row.generation, row.end()));
        Ok(InodeFacts { content, purging, volume_gone: dropped.is_some_and(|row| row != DroppedRow::Done), whole })
    };
    wanted.iter().map(one).collect::<Applied<_>>().map_err(|fail| describe(&fail))
}

/// Bytes of a file, if all of them were written; 0 for anything else.
fn whole(row: &InodeRow) -> u64 {
    if row.kind == FileKind::File && !row.sparse { row.size } else { 0 }
}

/// Files without holes after a place, of at most so many inodes, and where to go on.
///
/// # Errors
/// A text, if the table cannot be read.
#[allow(clippy::type_complexity, reason = "the answer to one question, taken apart at once")]
pub fn files(
    view: &dyn View,
    (volume, after): (VolumeId, InodeId),
    limit: u32,
) -> Result<(Vec<WholeFile>, Option<(VolumeId, InodeId)>), String> {
    let run = || -> Applied<_> {
        let mut files = Vec::new();
        let mut dropped = (VolumeId(0), false);
        let start = Bound::Excluded(inode::key(volume, after).into());
        let end = KeyRange::prefix(vec![inode::INODE]).end;
        for (number, pair) in view.range(KeyRange { start, end }).enumerate() {
            let (key, value) = pair?;
            let row: InodeRow = decode(&key, &value)?;
            let (volume, inode) = (VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1)));
            if volume != dropped.0 {
                dropped = (volume, get::<DroppedRow>(view, &volume::dropped(volume))?.is_some());
            }
            let size = whole(&row);
            if size > 0 && !dropped.1 {
                files.push(WholeFile { volume, inode, generation: row.generation, size });
            }
            if number + 1 >= limit as usize {
                return Ok((files, Some((volume, inode))));
            }
        }
        Ok((files, None))
    };
    run().map_err(|fail| describe(&fail))
}

fn get<R: Row>(view: &dyn View, key: &[u8]) -> Applied<Option<R>> {
    view.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
}

/// Which inode a row of the namespace belongs to.
type At = (VolumeId, InodeId);

/// A check under way.
struct Check<'a> {
    view: &'a dyn View,
    watch: &'a mut dyn Watch,
    /// Volumes that are being removed, in any order of their rows.
    dropped: BTreeSet<VolumeId>,
    volumes: BTreeMap<VolumeId, volume::VolumeRow>,
    looked_at: (u64, u64),
    stopped: bool,
}

impl<'a> Check<'a> {
    fn new(view: &'a dyn View, watch: &'a mut dyn Watch) -> Applied<Self> {
        let mut dropped = BTreeSet::new();
        for pair in view.range(KeyRange::prefix(vec![volume::DROPPED])) {
            dropped.insert(VolumeId(number_at(&pair?.0, 0)));
        }
        let mut check = Self { view, watch, dropped, volumes: BTreeMap::new(), looked_at: (0, 0), stopped: false };
        for pair in view.range(KeyRange::prefix(vec![volume::VOLUME])) {
            let (key, value) = pair?;
            let id = VolumeId(number_at(&key, 0));
            if let Some(row) = check.row(&key, &value)
                && !check.dropped.contains(&id)
            {
                check.volumes.insert(id, row);
            }
        }
        Ok(check)
    }

    fn found(&mut self, what: String) {
        self.watch.found(what);
    }

    /// A row, or a finding.
    fn row<R: Row>(&mut self, key: &[u8], value: &Bytes) -> Option<R> {
        match decode(key, value) {
            Ok(row) => Some(row),
            Err(Fail::Broken(what)) => {
                self.found(what);
                None
            }
            Err(other) => {
                self.found(describe(&other));
                None
            }
        }
    }

    /// Whether the check goes on.
    fn goes_on(&mut self, inodes: u64, entries: u64) -> bool {
        self.looked_at.0 += inodes;
        self.looked_at.1 += entries;
        if self.looked_at.0 + self.looked_at.1 >= ROWS_BETWEEN {
            let (inodes, entries) = std::mem::take(&mut self.looked_at);
            self.stopped |= !self.watch.looked_at(inodes, entries);
        }
        !self.stopped
    }
}

/// Rows of one table whose keys begin with volume and inode, taken inode by inode.
struct Cursor {
    pairs: Pairs,
    next: Option<Pair>,
}

impl Cursor {
    fn new(view: &dyn View, table: u8) -> Applied<Self> {
        let mut pairs = view.range(KeyRange::prefix(vec![table]));
        let next = pairs.next().transpose()?;
        Ok(Self { pairs, next })
    }

    /// The inode of the next row.
    fn at(&self) -> Option<At> {
        self.next.as_ref().map(|(key, _)| (VolumeId(number_at(key, 0)), InodeId(number_at(key, 1))))
    }

    /// The next row, if it is of this inode.
    fn take(&mut self, at: At) -> Applied<Option<Pair>> {
        if self.at() != Some(at) {
            return Ok(None);
        }
        let taken = self.next.take();
        self.next = self.pairs.next().transpose()?;
        Ok(taken)
    }
}
