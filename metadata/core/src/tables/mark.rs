//! Rows that say all by being there, and rows of raw bytes: extended attributes, symlinks, openers, orphans, holders of bounds.

use super::{Key, number_at};
use holdfast_types::{InodeId, SessionId, VolumeId};
use holdfast_wire::open::Access;

/// Extended attributes.
pub(crate) const XATTR: u8 = 0x04;
/// Targets of symlinks.
pub(crate) const SYMLINK: u8 = 0x05;
/// Sessions that have an inode open, by inode; the value says for what.
pub(crate) const OPENER: u8 = 0x06;
/// An opener's row says so: it has the inode open for writing. Else it is empty.
pub(crate) const WRITES: &[u8] = b"w";
/// The same by session.
pub(crate) const OPENER_BY_SESSION: u8 = 0x07;
/// Inodes without a name that are open.
pub(crate) const ORPHAN: u8 = 0x08;
/// An orphan's row says so: it never had a name, and may be given one.
pub(crate) const MAY_BE_NAMED: &[u8] = b"n";
/// Inodes a session holds a bound of.
pub(crate) const BOUND: u8 = 0x09;
/// There while too few servers have room on their disks for what grows.
pub(crate) const SHORT_OF_ROOM: u8 = 0x14;

/// Key of an extended attribute.
pub(crate) fn xattr(volume: VolumeId, inode: InodeId, name: &[u8]) -> Vec<u8> {
    Key::of(XATTR).number(volume.0).number(inode.0).name(name).number(0).done()
}

/// All extended attributes of an inode.
pub(crate) fn xattrs(volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(XATTR).number(volume.0).number(inode.0).done()
}

/// The attribute's name within its key.
pub(crate) fn xattr_name(key: &[u8]) -> &[u8] {
    &key[17..key.len() - 8]
}

/// Key of a symlink's target.
pub(crate) fn symlink(volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(SYMLINK).number(volume.0).number(inode.0).number(0).done()
}

/// Key of an opener.
pub(crate) fn opener(volume: VolumeId, inode: InodeId, session: SessionId) -> Vec<u8> {
    Key::of(OPENER).number(volume.0).number(inode.0).number(session.0).done()
}

/// All openers of an inode.
pub(crate) fn openers(volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(OPENER).number(volume.0).number(inode.0).done()
}

/// An opener's session, and what for, from its row.
pub(crate) fn held(key: &[u8], value: &[u8]) -> (SessionId, Access) {
    (SessionId(number_at(key, 2)), if value == WRITES { Access::Write } else { Access::Read })
}

/// Key of an opener, by session.
pub(crate) fn opened(session: SessionId, volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(OPENER_BY_SESSION).number(session.0).number(volume.0).number(inode.0).done()
}

/// All that a session has open.
pub(crate) fn opened_by(session: SessionId) -> Vec<u8> {
    Key::of(OPENER_BY_SESSION).number(session.0).done()
}

/// Key of an orphan.
pub(crate) fn orphan(volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(ORPHAN).number(volume.0).number(inode.0).done()
}

/// Key of a bound's holder.
pub(crate) fn bound(session: SessionId, volume: VolumeId, inode: InodeId) -> Vec<u8> {
    Key::of(BOUND).number(session.0).number(volume.0).number(inode.0).done()
}

/// All bounds of a session.
pub(crate) fn bounds_of(session: SessionId) -> Vec<u8> {
    Key::of(BOUND).number(session.0).done()
}

/// Volume and inode in a key of `opened` or `bound`.
pub(crate) fn volume_and_inode(key: &[u8]) -> (VolumeId, InodeId) {
    (VolumeId(number_at(key, 1)), InodeId(number_at(key, 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_give_back_what_they_are_made_of() {
        assert_eq!(xattr_name(&xattr(VolumeId(1), InodeId(2), b"user.x")), b"user.x");
        assert_eq!(volume_and_inode(&bound(SessionId(9), VolumeId(1), InodeId(2))), (VolumeId(1), InodeId(2)));
        let key = opener(VolumeId(1), InodeId(2), SessionId(9));
        assert_eq!(held(&key, WRITES), (SessionId(9), Access::Write));
        assert_eq!(held(&key, b""), (SessionId(9), Access::Read));
        assert!(opened(SessionId(9), VolumeId(1), InodeId(2)).starts_with(&opened_by(SessionId(9))));
    }
}
