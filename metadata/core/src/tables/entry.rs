//! Entries of directories: by name, and by position for listings that go on where they stopped.

use super::{Key, Row};
use holdfast_types::{FileName, InodeId, VolumeId};
use holdfast_wire::namespace::FileKind;
use serde::{Deserialize, Serialize};

/// Entries by name.
pub(crate) const ENTRY: u8 = 0x02;
/// Entries by position.
pub(crate) const COOKIE: u8 = 0x03;
/// The first position: 1 and 2 are `.` and `..`.
pub(crate) const COOKIE_FIRST: u64 = 3;

/// What a name names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryRow {
    pub(crate) inode: InodeId,
    pub(crate) kind: FileKind,
    pub(crate) cookie: u64,
}

impl Row for EntryRow {}

/// The same, found by position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CookieRow {
    pub(crate) name: FileName,
    pub(crate) inode: InodeId,
    pub(crate) kind: FileKind,
}

impl Row for CookieRow {}

/// Key by name.
pub(crate) fn key(volume: VolumeId, parent: InodeId, name: &FileName) -> Vec<u8> {
    Key::of(ENTRY).number(volume.0).number(parent.0).name(name.as_bytes()).number(0).done()
}

/// Key by position.
pub(crate) fn cookie_key(volume: VolumeId, parent: InodeId, cookie: u64) -> Vec<u8> {
    Key::of(COOKIE).number(volume.0).number(parent.0).number(cookie).number(0).done()
}

/// All entries of a directory by position.
pub(crate) fn cookie_prefix(volume: VolumeId, parent: InodeId) -> Vec<u8> {
    Key::of(COOKIE).number(volume.0).number(parent.0).done()
}

/// The name within a key by name.
pub(crate) fn name_in_key(key: &[u8]) -> &[u8] {
    &key[17..key.len() - 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let name = FileName::new(b"a name").unwrap();
        super::super::assert_round_trip(EntryRow { inode: InodeId(7), kind: FileKind::Fifo, cookie: 3 });
        super::super::assert_round_trip(CookieRow { name: name.clone(), inode: InodeId(7), kind: FileKind::Fifo });
        assert_eq!(name_in_key(&key(VolumeId(1), InodeId(2), &name)), b"a name");
        assert!(cookie_key(VolumeId(1), InodeId(2), 255) < cookie_key(VolumeId(1), InodeId(2), 256));
    }
}
