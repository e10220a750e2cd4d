//! Which message a frame holds.

/// Kinds of request and one-way messages, as they travel. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// [`crate::metadata::Envelope`], answered by [`crate::metadata::Answer`]. Control transport.
    Metadata = 1,
    /// [`crate::chunk::ChunkRequest`] with payload, answered by [`crate::chunk::ChunkAnswer`] with payload. Data transport.
    Chunk = 2,
    /// [`crate::group::GroupMessage`] with payload, one way, ordered. Data transport, storage node to storage node.
    Group = 3,
    /// [`crate::peer::PeerMessage`], one way. Control transport, metadata server to metadata server.
    Peer = 4,
    /// [`crate::admin::AdminRequest`], answered by [`crate::admin::AdminAnswer`]: asked of one server about itself.
    Admin = 5,
}

impl Kind {
    /// The kind with this number, if this build knows it.
    pub const fn from_u16(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Metadata),
            2 => Some(Self::Chunk),
            3 => Some(Self::Group),
            4 => Some(Self::Peer),
            5 => Some(Self::Admin),
            _ => None,
        }
    }
}
