//! An inode: attributes, and what sessions may do beyond its size.

use std::collections::BTreeSet;

use super::{Key, Row};
use holdfast_types::{Generation, InodeId, SessionId, Timestamp, VolumeId};
use holdfast_wire::namespace::{Attributes, FileKind};
use holdfast_wire::open::OpenPolicy;
use serde::{Deserialize, Serialize};

/// Table of inodes.
pub(crate) const INODE: u8 = 0x01;

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InodeRow {
    pub(crate) kind: FileKind,
    pub(crate) mode: u16,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    /// Bytes of a file or symlink; entries of a directory.
    pub(crate) size: u64,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) btime: Timestamp,
    pub(crate) generation: Generation,
    /// Of a directory; itself for the root.
    pub(crate) parent: InodeId,
    /// Of a directory: the next entry's position. Never goes back, so a position is never used twice.
    pub(crate) cookie_next: u64,
    /// Bytes in this range are being removed.
    pub(crate) trim: Option<(u64, u64)>,
    /// How far sessions may write before they ask again. Sorted by session.
    pub(crate) bounds: Vec<(SessionId, u64)>,
    /// Bounds that were taken back while their sessions may have had writes under way: these may be made after the trim that was to remove
    /// them. They reserve nothing. Sorted by session.
    pub(crate) late: Vec<(SessionId, u64)>,
    /// How far sessions that are over may have written. Set only while others hold bounds above the size.
    pub(crate) stale_bound: u64,
    /// How often a file was truncated to less than its size.
    pub(crate) cuts: u64,
    /// See [`Attributes::sparse`].
    pub(crate) sparse: bool,
    /// How it is opened, and what is made in it; `None`: as its volume says.
    pub(crate) open: Option<OpenPolicy>,
}

impl Row for InodeRow {}

impl InodeRow {
    /// A session's bound; 0 without one.
    pub(crate) fn bound_of(&self, session: SessionId) -> u64 {
        self.bounds.iter().find(|(holder, _)| *holder == session).map_or(0, |(_, bound)| *bound)
    }

    /// Lets a session write up to a bound, if it may not write further already. Whether it had none before.
    pub(crate) fn bind(&mut self, session: SessionId, bound: u64) -> bool {
        raise(&mut self.bounds, session, bound)
    }

    /// Takes away what a session may write beyond the size, or might still. How far that was; 0 for nothing.
    pub(crate) fn unbind(&mut self, session: SessionId) -> u64 {
        let mut reach = 0;
        for list in [&mut self.bounds, &mut self.late] {
            for (_, bound) in list.extract_if(.., |(holder, _)| *holder == session) {
                reach = bound.max(reach);
            }
        }
        reach
    }

    /// Takes all bounds back from sessions that live on.
    pub(crate) fn take_bounds_back(&mut self) {
        for (session, bound) in std::mem::take(&mut self.bounds) {
            raise(&mut self.late, session, bound);
        }
    }

    /// Sessions that may write beyond the size, or might still; each once.
    pub(crate) fn bound_sessions(&self) -> BTreeSet<SessionId> {
        self.bounds.iter().chain(&self.late).map(|(session, _)| *session).collect()
    }

    /// The end of everything that may have been written under this generation.
    pub(crate) fn end(&self) -> u64 {
        let bounds = self.bounds.iter().chain(&self.late).map(|(_, bound)| *bound).max().unwrap_or(0);
        let trim = self.trim.map_or(0, |(_, to)| to);
        self.size.max(bounds).max(trim).max(self.stale_bound)
    }

    /// As a session sees it.
    pub(crate) fn attributes(&self, inode: InodeId, session: SessionId) -> Attributes {
        Attributes {
            inode,
            kind: self.kind,
            mode: self.mode,
            links: self.links,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            generation: self.generation,
            trim_from: self.trim.map(|(from, _)| from),
            size_bound: self.bound_of(session),
            parent: if self.kind == FileKind::Directory { self.parent } else { InodeId(0) },
            cuts: self.cuts,
            sparse: self.sparse,
        }
    }

    /// Sets ctime, which never goes back.
    pub(crate) fn changed(&mut self, stamp: Timestamp) {
        self.ctime = self.ctime.max(stamp);
    }

    /// What counts against the volume's limit.
    pub(crate) fn charges(&self) -> Charges {
        if self.kind != FileKind::File {
            return Charges::default();
        }
        let bound = self.bounds.iter().map(|(_, bound)| *bound).max().unwrap_or(0);
        let bytes = blocks(self.size);
        Charges { bytes, granted: blocks(bound).saturating_sub(bytes) }
    }
}

/// Bytes that count against a volume's limit: what a file holds, and what may be written beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Charges {
    pub(crate) bytes: u64,
    pub(crate) granted: u64,
}

impl Charges {
    pub(crate) fn total(&self) -> u64 {
        self.bytes + self.granted
    }
}

/// A length in whole blocks, in bytes.
pub(crate) fn blocks(length: u64) -> u64 {
    use holdfast_types::limits::BLOCK_BYTES;
    length.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// Raises a session's bound in a list that is sorted by session, or puts it there. Whether it is new.
fn raise(bounds: &mut Vec<(SessionId, u64)>, session: SessionId, bound: u64) -> bool {
    let found = bounds.binary_search_by_key(&session, |(holder, _)| *holder);
    match found {
        Ok(at) => bounds[at].1 = bounds[at].1.max(bound),
        Err(at) => bounds.insert(at, (session, bound)),
    }
    found.is_err()
}

/// Key of an inode.
pub(crate) fn key(volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(INODE).number(volume.0).number(inode.0).number(0).done()
}

#[cfg(test)]
pub(crate) fn example() -> InodeRow {
    let time = Timestamp { seconds: 5, nanos: 7 };
    InodeRow {
        kind: FileKind::File,
        mode: 0o644,
        links: 1,
        uid: 1,
        gid: 2,
        rdev: 0,
        size: 10_000,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        generation: Generation(1),
        parent: InodeId(0),
        cookie_next: 3,
        trim: Some((4, 9)),
        bounds: vec![(SessionId(3), 1 << 26)],
        late: vec![(SessionId(2), 1 << 20)],
        stale_bound: 0,
        cuts: 2,
        sparse: true,
        open: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        super::super::assert_round_trip(example());
        assert_eq!(
            (example().end(), example().bound_of(SessionId(3)), example().bound_of(SessionId(4))),
            (1 << 26, 1 << 26, 0)
        );
    }

    #[test]
    fn a_bound_taken_back_reserves_nothing_and_still_counts_for_the_end() {
        let mut row = example();
        row.take_bounds_back();
        row.bounds = vec![(SessionId(2), 1 << 10)];
        assert_eq!(row.late, [(SessionId(2), 1 << 20), (SessionId(3), 1 << 26)]);
        assert_eq!((row.end(), row.bound_of(SessionId(3))), (1 << 26, 0));
        assert_eq!(row.bound_sessions(), BTreeSet::from([SessionId(2), SessionId(3)]));
        assert_eq!(
            (row.unbind(SessionId(3)), row.unbind(SessionId(2)), row.unbind(SessionId(2))),
            (1 << 26, 1 << 20, 0)
        );
        assert_eq!(row.end(), 10_000);
    }
}
