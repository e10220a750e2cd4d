//! Rows and their keys, a file per record type.
//!
//! A key is the table's byte, then numbers big-endian (so that order of keys is order of numbers), then names; rows of the
//! namespace end in a snapshot number, 0 today. A value is one version byte and postcard.
//!
//! | byte | shard | key after it | row |
//! | --- | --- | --- | --- |
//! | 0x00 | both | – | [`applied::AppliedRow`]: how far the table is |
//! | 0x01 | 1 | volume, inode, snapshot | [`inode::InodeRow`] |
//! | 0x02 | 1 | volume, parent, name, snapshot | [`entry::EntryRow`] |
//! | 0x03 | 1 | volume, parent, cookie, snapshot | [`entry::CookieRow`] |
//! | 0x04 | 1 | volume, inode, name, snapshot | extended attribute: raw bytes |
//! | 0x05 | 1 | volume, inode, snapshot | symlink target: raw bytes |
//! | 0x06 | 1 | volume, inode, session | opener: empty |
//! | 0x07 | 1 | session, volume, inode | the same, by session |
//! | 0x08 | 1 | volume, inode | orphan: empty, or `n` if it may be given a name |
//! | 0x09 | 1 | session, volume, inode | the session holds a bound on the inode: empty |
//! | 0x0a | 1 | volume, inode, generation | [`purge::PurgeRow`] |
//! | 0x0b | 1 | volume, inode | [`purge::TrimRow`] |
//! | 0x0c | 1 | volume | [`volume::VolumeRow`] (hot) |
//! | 0x0d | 1 | session | [`session::SessionRow`] (hot) |
//! | 0x0e | 1 | session, sequence | [`answer::AnswerRow`] |
//! | 0x0f | 1 | session | [`answer::AnswersRow`] (hot) |
//! | 0x10 | 1 | session | [`session::EndedRow`] (hot) |
//! | 0x11 | 1 | – | [`session::EndedFloorRow`] (hot) |
//! | 0x12 | 1 | volume | [`volume::DroppedRow`] (hot) |
//! | 0x13 | both | – | [`members::MembersRow`]: the shard's raft configuration |
//! | 0x14 | 1 | – | too few servers have room: empty (hot) |
//! | 0x15 | 1 | volume, instance | [`session::GenerationRow`] |
//! | 0x18 | 1 | volume, inode, space, session, owner, last byte | [`lock::LockRow`] |
//! | 0x19 | 1 | session, volume, inode | [`lock::LocksRow`] |
//! | 0x20 | 0 | – | [`cluster::SettingsRow`] |
//! | 0x21 | 0 | node | [`cluster::NodeRow`] |
//! | 0x22 | 0 | group | [`cluster::GroupRow`] |
//! | 0x23 | 0 | session | [`cluster::LiveRow`] |
//! | 0x24 | 0 | volume | [`cluster::VolumeEntryRow`] |
//! | 0x25 | 0 | server | [`cluster::ServerRow`] |

pub(crate) mod answer;
pub(crate) mod applied;
pub(crate) mod cluster;
pub(crate) mod entry;
pub(crate) mod inode;
pub(crate) mod lock;
pub(crate) mod mark;
pub(crate) mod members;
pub(crate) mod purge;
pub(crate) mod session;
pub(crate) mod volume;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

/// Tables whose rows are held in memory.
pub(crate) const HOT: &[u8] = &[
    volume::VOLUME,
    volume::DROPPED,
    session::SESSION,
    session::ENDED,
    session::ENDED_FLOOR,
    answer::ANSWERS,
    mark::SHORT_OF_ROOM,
];

/// Whether a key is of a hot table.
pub(crate) fn is_hot(key: &[u8]) -> bool {
    key.first().is_some_and(|first| HOT.contains(first))
}

/// Why bytes are not the row that was expected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    /// Written by a newer release.
    #[error("version {0} is not known here")]
    Version(u8),
    /// Not decodable.
    #[error(transparent)]
    Malformed(#[from] postcard::Error),
}

/// A record type.
pub(crate) trait Row: Serialize + DeserializeOwned {
    /// Version written by this build; older ones are converted in `decode` when there are any.
    const VERSION: u8 = 1;

    /// Its bytes.
    fn encode(&self) -> Bytes {
        let mut buffer = Vec::with_capacity(64);
        buffer.push(Self::VERSION);
        // Rows are plain values of known length, which always encode.
        postcard::to_extend(self, buffer).expect("rows always encode").into()
    }

    /// From its bytes.
    fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        match bytes.split_first() {
            Some((&version, rest)) if version == Self::VERSION => Ok(postcard::from_bytes(rest)?),
            Some((&version, _)) => Err(RowError::Version(version)),
            None => Err(RowError::Malformed(postcard::Error::DeserializeUnexpectedEnd)),
        }
    }
}

/// Builds a key.
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// Of a table.
    pub(crate) fn of(table: u8) -> Self {
        let mut bytes = Vec::with_capacity(33);
        bytes.push(table);
        Self(bytes)
    }

    /// One more number.
    pub(crate) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// A name.
    pub(crate) fn name(mut self, name: &[u8]) -> Self {
        self.0.extend_from_slice(name);
        self
    }

    /// The bytes.
    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// The number at a position of a key, counted in numbers after the table's byte.
pub(crate) fn number_at(key: &[u8], position: usize) -> u64 {
    let from = 1 + 8 * position;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&key[from..from + 8]);
    u64::from_be_bytes(bytes)
}

/// Asserts that a row comes back as it was, and that another version is refused.
#[cfg(test)]
pub(crate) fn assert_round_trip<R: Row + PartialEq + std::fmt::Debug>(row: R) {
    let bytes = row.encode();
    assert_eq!(R::decode(&bytes).unwrap(), row);
    let mut other = bytes.to_vec();
    other[0] = 250;
    assert!(matches!(R::decode(&other), Err(RowError::Version(250))));
    assert!(R::decode(&[]).is_err());
}
