//! Whether every inode has the names it should have, without a count per inode.
//!
//! Each name adds a number that is made of what it names, each inode takes away the same number as often as it should be named.
//! Numbers are summed by buckets of inodes; only the inodes of a bucket whose sum is not 0 are counted one by one.

use super::{At, Check};
use crate::error::Applied;
use crate::tables::entry::{self, EntryRow};
use crate::tables::inode::{self, InodeRow};
use crate::tables::number_at;
use holdfast_store::KeyRange;
use holdfast_types::prng::mix;
use holdfast_types::{InodeId, VolumeId};
use holdfast_wire::namespace::FileKind;
use std::collections::BTreeMap;

/// Sums: half a MiB, and few inodes in each.
const BUCKETS: usize = 1 << 16;
/// Inodes counted one by one at a time: bounds memory to about 100 MiB however much is wrong.
const INODES_AT_A_TIME: u64 = 1 << 20;

/// Names counted against inodes.
pub(super) struct Names {
    sums: Vec<u64>,
    inodes: u64,
}

fn bucket((volume, inode): At) -> usize {
    (mix(mix(volume.0) ^ inode.0) % BUCKETS as u64) as usize
}

/// What a name of an inode counts.
fn number((volume, inode): At, kind: FileKind, parent: InodeId) -> u64 {
    // Only a directory knows where its name is.
    let parent = if kind == FileKind::Directory { parent.0 } else { 0 };
    mix(mix(mix(mix(volume.0) ^ inode.0) ^ kind as u64) ^ parent)
}

/// How often an inode should be named.
fn names_wanted(at: At, row: &InodeRow) -> u32 {
    match row.kind {
        FileKind::Directory => u32::from(row.links > 0 && at.1 != InodeId::ROOT),
        _ => row.links,
    }
}

impl Names {
    pub(super) fn new() -> Self {
        Self { sums: vec![0; BUCKETS], inodes: 0 }
    }

    /// A name was seen.
    pub(super) fn named(&mut self, volume: VolumeId, parent: InodeId, row: &EntryRow) {
        let at = (volume, row.inode);
        let sum = &mut self.sums[bucket(at)];
        *sum = sum.wrapping_add(number(at, row.kind, parent));
    }

    /// An inode was seen.
    pub(super) fn exists(&mut self, at: At, row: &InodeRow) {
        self.inodes += 1;
        let sum = &mut self.sums[bucket(at)];
        let each = number(at, row.kind, row.parent);
        *sum = sum.wrapping_sub(each.wrapping_mul(u64::from(names_wanted(at, row))));
    }
}

/// Names what does not fit, if anything does not.
pub(super) fn find(check: &mut Check<'_>, names: &Names) -> Applied<()> {
    let wrong: Vec<usize> = (0..BUCKETS).filter(|bucket| names.sums[*bucket] != 0).collect();
    let in_a_bucket = names.inodes / BUCKETS as u64 + 1;
    for some in wrong.chunks((INODES_AT_A_TIME / in_a_bucket).max(1) as usize) {
        let mut wanted = vec![false; BUCKETS];
        some.iter().for_each(|bucket| wanted[*bucket] = true);
        count(check, &wanted)?;
        if check.stopped {
            break;
        }
    }
    Ok(())
}

/// Counts the names of the inodes of some buckets.
fn count(check: &mut Check<'_>, wanted: &[bool]) -> Applied<()> {
    let view = check.view;
    let mut counted: BTreeMap<At, (FileKind, u32, InodeId, u32)> = BTreeMap::new();
    for pair in view.range(KeyRange::prefix(vec![inode::INODE])) {
        let (key, value) = pair?;
        let at = (VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1)));
        // Rows that cannot be decoded were found before.
        if wanted[bucket(at)]
            && !check.dropped.contains(&at.0)
            && let Ok(row) = crate::txn::decode::<InodeRow>(&key, &value)
        {
            counted.insert(at, (row.kind, names_wanted(at, &row), row.parent, 0));
        }
        if !check.goes_on(0, 1) {
            return Ok(());
        }
    }
    for pair in view.range(KeyRange::prefix(vec![entry::ENTRY])) {
        let (key, value) = pair?;
        let (volume, parent) = (VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1)));
        let Ok(row) = crate::txn::decode::<EntryRow>(&key, &value) else { continue };
        let at = (volume, row.inode);
        if wanted[bucket(at)] && !check.dropped.contains(&volume) {
            let name = entry::name_in_key(&key).escape_ascii();
            match counted.get_mut(&at) {
                None => check.found(format!("{volume}/{parent}: \"{name}\" names {}, which is missing", row.inode)),
                Some((kind, _, _, seen)) if *kind != row.kind => {
                    *seen += 1;
                    check.found(format!("{volume}/{parent}: \"{name}\" is another kind than {}", row.inode));
                }
                Some((FileKind::Directory, _, known, seen)) if *known != parent => {
                    *seen += 1;
                    check.found(format!("{volume}: {} does not know its parent {parent}", row.inode));
                }
                Some((.., seen)) => *seen += 1,
            }
        }
        if !check.goes_on(0, 1) {
            return Ok(());
        }
    }
    for ((volume, number), (_, wanted, _, seen)) in counted {
        if wanted != seen {
            check.found(format!("{volume}/{number}: has {seen} names and should have {wanted}"));
        }
    }
    Ok(())
}
