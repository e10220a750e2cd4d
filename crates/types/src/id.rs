//! Who and what: identifiers, each a type of its own so that they cannot be exchanged by mistake.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl $name {
            /// The number alone, for encoding.
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The one after this.
            ///
            /// # Panics
            /// On overflow, which a 32- or 64-bit counter of ours never reaches in practice.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}
pub(crate) use number;

/// A cluster, drawn at random by `init`. Every frame carries it, so that two clusters never mix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

number!(
    /// A metadata server. Never reused: a server with a new, empty log gets a new one. 0 is nobody.
    ServerId(u64), "m"
);
number!(
    /// A storage node. 0 is nobody.
    NodeId(u64), "s"
);
number!(
    /// A disk of a storage node, unique within the node.
    DiskId(u32), "d"
);
number!(
    /// One start of a disk's store: every start takes a greater one, so what a restart forgot is never assumed.
    Incarnation(u64), "i"
);
number!(
    /// One mount of one volume by one client. Ids rise and are never reused; 0 is "no session".
    SessionId(u64), "c"
);
number!(
    /// A volume: one file tree with its own root. Never reused.
    VolumeId(u64), "v"
);
number!(
    /// An inode, unique in its volume, never reused, equal to the FUSE node id. The root is 1.
    InodeId(u64), "ino"
);
number!(
    /// A group: the unit of placement and failover of chunks, from 0 to N-1 within the pool.
    GroupId(u32), "g"
);
number!(
    /// One Raft group of the metadata service: 0 is the cluster, 1 the volumes.
    ShardId(u32), "shard"
);
number!(
    /// Position of a request within its session, from 1. 0 is "not numbered" (reads).
    Sequence(u64), "#"
);
number!(
    /// Position of a chunk within a file, from 0.
    ChunkIndex(u64), "chunk"
);

impl InodeId {
    /// The root directory of every volume, as FUSE wants it.
    pub const ROOT: Self = Self(1);
}

impl ShardId {
    /// Nodes, views, map, sessions' ids, volumes.
    pub const CLUSTER: Self = Self(0);
    /// Namespaces of all volumes in the first release.
    pub const VOLUMES: Self = Self(1);
}

impl SessionId {
    /// No session: reads by administrators, and requests that open one.
    pub const NONE: Self = Self(0);
    /// The metadata service's own session, for purging. Never listed, never fenced.
    pub const SERVICE: Self = Self(u64::MAX);
}

/// A member of a view: a disk in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId {
    /// The node that holds the disk.
    pub node: NodeId,
    /// The disk within the node.
    pub disk: DiskId,
    /// Which start of the disk's store.
    pub incarnation: Incarnation,
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.node, self.disk, self.incarnation)
    }
}

/// A 4 MiB slice of an inode's data.
///
/// `generation` rises when the file is truncated to zero, so the old content is purged and never cut;
/// `born` is the snapshot number it was written under (0 today).
/// The order of the fields is the order of keys: all chunks of one generation of an inode are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChunkKey {
    /// Volume of the inode.
    pub volume: VolumeId,
    /// Inode whose data this is.
    pub inode: InodeId,
    /// Which content of the inode.
    pub generation: crate::Generation,
    /// Which slice.
    pub index: ChunkIndex,
    /// Snapshot number it was written under.
    pub born: crate::SnapshotNumber,
}

impl fmt::Display for ChunkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.volume, self.inode, self.generation, self.index)
    }
}

impl GroupId {
    /// The group of a chunk: `(hash(volume, inode) + index) mod groups`.
    ///
    /// Consecutive chunks of a file fall on consecutive groups, and different files start at different ones.
    ///
    /// # Panics
    /// When `groups` is not a power of two.
    pub fn of(volume: VolumeId, inode: InodeId, index: ChunkIndex, groups: u32) -> Self {
        assert!(groups.is_power_of_two(), "groups {groups} is not a power of two");
        let hash = crate::prng::mix(crate::prng::mix(volume.0) ^ inode.0);
        // Truncation is meant: only the low bits count.
        Self((hash.wrapping_add(index.0) & u64::from(groups - 1)) as u32)
    }
}
