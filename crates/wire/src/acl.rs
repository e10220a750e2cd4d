//! POSIX access control lists: the bytes of Linux's `system.posix_acl_*` attributes, and what they do to modes.
//!
//! The kernel checks permissions by them; what is left to a file system is to keep a list and the mode of its file in step, and to
//! let a directory's default list become the lists of what is made in it. Service and client share this, so that a client that
//! caches knows what a change did.

use bytes::{BufMut, Bytes, BytesMut};

/// Attribute that holds the access list.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute that holds a directory's default list.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Attribute that holds one of the two.
pub fn attribute(default: bool) -> &'static [u8] {
    if default { DEFAULT } else { ACCESS }
}

/// First field of the attribute.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
/// Entries at the most: what fits the largest attribute.
const ENTRIES_MAX: usize = (holdfast_types::limits::XATTR_VALUE_BYTES_MAX - HEADER_BYTES) / ENTRY_BYTES;

/// Whom an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    UserObj,
    User,
    GroupObj,
    Group,
    Mask,
    Other,
}

impl Tag {
    const ALL: [(u16, Self); 6] = [
        (0x01, Self::UserObj),
        (0x02, Self::User),
        (0x04, Self::GroupObj),
        (0x08, Self::Group),
        (0x10, Self::Mask),
        (0x20, Self::Other),
    ];

    fn number(self) -> u16 {
        Self::ALL.iter().find(|(_, tag)| *tag == self).map_or(0, |(number, _)| *number)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    permissions: u16,
    id: u32,
}

/// A list that is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    /// From an attribute's bytes; `None` if they are no list, or one that contradicts itself.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, entries) = bytes.split_at_checked(HEADER_BYTES)?;
        if header != VERSION.to_le_bytes() || !entries.len().is_multiple_of(ENTRY_BYTES) {
            return None;
        }
        let entries: Vec<Entry> = entries
            .chunks_exact(ENTRY_BYTES)
            .map(|entry| {
                let (tag, permissions) =
                    (u16::from_le_bytes([entry[0], entry[1]]), u16::from_le_bytes([entry[2], entry[3]]));
                let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
                let (_, tag) = Tag::ALL.into_iter().find(|(number, _)| *number == tag)?;
                (permissions <= 7).then_some(Entry { tag, permissions, id })
            })
            .collect::<Option<_>>()?;
        let acl = Self(entries);
        acl.is_valid().then_some(acl)
    }

    /// In order of tags, one owner, one owning group, one other, and a mask where somebody is named.
    fn is_valid(&self) -> bool {
        let count = |tag: Tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(Tag::User) + count(Tag::Group) > 0;
        self.0.len() <= ENTRIES_MAX
            && self.0.is_sorted_by_key(|entry| entry.tag)
            && [Tag::UserObj, Tag::GroupObj, Tag::Other].into_iter().all(|tag| count(tag) == 1)
            && count(Tag::Mask) <= 1
            && (!named || count(Tag::Mask) == 1)
    }

    /// The attribute's bytes.
    pub fn bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.0.len() * ENTRY_BYTES);
        bytes.put_u32_le(VERSION);
        for entry in &self.0 {
            bytes.put_u16_le(entry.tag.number());
            bytes.put_u16_le(entry.permissions);
            bytes.put_u32_le(entry.id);
        }
        bytes.freeze()
    }

    /// Whether it says no more than a mode does.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The entry that the group bits of a mode stand for.
    fn group_class(&self) -> Tag {
        if self.0.iter().any(|entry| entry.tag == Tag::Mask) { Tag::Mask } else { Tag::GroupObj }
    }

    /// The nine permission bits of the mode that goes with it.
    pub fn mode(&self) -> u16 {
        let group = self.group_class();
        self.0.iter().fold(0, |mode, entry| match entry.tag {
            Tag::UserObj => mode | entry.permissions << 6,
            Tag::Other => mode | entry.permissions,
            tag if tag == group => mode | entry.permissions << 3,
            _ => mode,
        })
    }

    /// After `chmod(2)`.
    #[must_use]
    pub fn with_mode(mut self, mode: u16) -> Self {
        let group = self.group_class();
        for entry in &mut self.0 {
            match entry.tag {
                Tag::UserObj => entry.permissions = mode >> 6 & 7,
                Tag::Other => entry.permissions = mode & 7,
                tag if tag == group => entry.permissions = mode >> 3 & 7,
                _ => {}
            }
        }
        self
    }

    /// As the default list of a directory in which something is made with `mode`: the access list of what is made, and its mode.
    pub fn inherited(self, mode: u16) -> (Self, u16) {
        // Neither the list nor the mode grants what the other does not.
        let both = self.mode() & mode;
        let acl = self.with_mode(both);
        (acl, mode & !0o777 | both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(Tag, u16, u32)]) -> Acl {
        Acl(entries
            .iter()
            .map(|(tag, permissions, id)| Entry { tag: *tag, permissions: *permissions, id: *id })
            .collect())
    }

    fn named() -> Acl {
        acl(&[(Tag::UserObj, 7, 0), (Tag::User, 6, 1000), (Tag::GroupObj, 5, 0), (Tag::Mask, 7, 0), (Tag::Other, 4, 0)])
    }

    #[test]
    fn bytes_are_those_of_linux() {
        // setfacl -m u:1000:rw- on a file of mode 0754, as getfattr shows it.
        let bytes = b"\x02\0\0\0\x01\0\x07\0\0\0\0\0\x02\0\x06\0\xe8\x03\0\0\x04\0\x05\0\0\0\0\0\x10\0\x07\0\0\0\0\0\x20\0\x04\0\0\0\0\0";
        assert_eq!(named().bytes(), &bytes[..]);
        assert_eq!(Acl::parse(bytes), Some(named()));
    }

    #[test]
    fn what_contradicts_itself_is_no_list() {
        let bad = [
            acl(&[]),
            acl(&[(Tag::UserObj, 7, 0), (Tag::GroupObj, 7, 0)]),
            acl(&[(Tag::UserObj, 7, 0), (Tag::User, 7, 5), (Tag::GroupObj, 7, 0), (Tag::Other, 7, 0)]),
            acl(&[(Tag::GroupObj, 7, 0), (Tag::UserObj, 7, 0), (Tag::Other, 7, 0)]),
            acl(&[(Tag::UserObj, 8, 0), (Tag::GroupObj, 7, 0), (Tag::Other, 7, 0)]),
            acl(&[(Tag::UserObj, 7, 0), (Tag::UserObj, 7, 0), (Tag::GroupObj, 7, 0), (Tag::Other, 7, 0)]),
        ];
        for list in bad {
            assert_eq!(Acl::parse(&list.bytes()), None, "{list:?}");
        }
        let good = named().bytes();
        assert_eq!(Acl::parse(&good[..good.len() - 1]), None);
        assert_eq!(Acl::parse(b"\x01\0\0\0"), None, "another version");
        assert_eq!(Acl::parse(b""), None);
    }

    #[test]
    fn the_mask_stands_for_the_group_where_there_is_one() {
        assert_eq!(named().mode(), 0o774);
        let changed = named().with_mode(0o4640);
        assert_eq!(changed.mode(), 0o640);
        let permissions = |acl: &Acl| acl.0.iter().map(|entry| entry.permissions).collect::<Vec<_>>();
        assert_eq!(permissions(&changed), [6, 6, 5, 4, 0], "the owning group's own entry stays");
        let minimal = acl(&[(Tag::UserObj, 7, 0), (Tag::GroupObj, 5, 0), (Tag::Other, 4, 0)]);
        assert!(minimal.is_minimal() && !named().is_minimal());
        assert_eq!(minimal.with_mode(0o123).mode(), 0o123);
    }

    #[test]
    fn what_is_made_gets_no_more_than_list_and_mode_both_grant() {
        let (list, mode) = named().inherited(0o2660);
        assert_eq!((mode, list.mode()), (0o2660, 0o660));
        let (list, mode) = acl(&[(Tag::UserObj, 7, 0), (Tag::GroupObj, 0, 0), (Tag::Other, 5, 0)]).inherited(0o666);
        assert_eq!((mode, list.is_minimal()), (0o604, true));
    }
}
