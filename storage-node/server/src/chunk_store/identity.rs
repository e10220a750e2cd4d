//! The small file that says whose disk this is, and counts its lives.
//!
//! ```text
//! 0        8        10     12      16            32       40      44      48            56      60
//! "holdfast" format   kind   ready   cluster       node     disk    0       incarnation   crc32
//! ```
//!
//! Little-endian. The cluster comes before what is only unique within it; the sum comes last and covers all before it.
//! The file is replaced as a whole (new file, sync, rename, directory sync), so it is one life or the next, never torn.

use super::error::OpenError;
use holdfast_journal::{Disk, DiskFile};
use holdfast_types::checksum::crc32;
use holdfast_types::{ClusterId, DiskId, Incarnation, NodeId};

const NAME: &str = "identity";
const NAME_NEW: &str = "identity.new";
const MAGIC: &[u8; 8] = b"holdfast";
/// Format of the whole directory: a future one is refused.
const FORMAT: u16 = 1;
/// This is a storage node's disk.
const KIND: u16 = 1;
const BYTES: usize = 60;

/// Whose disk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The cluster; two clusters never mix.
    pub cluster: ClusterId,
    /// The node it belongs to.
    pub node: NodeId,
    /// Its number within the node.
    pub disk: DiskId,
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdentityFile {
    pub identity: DiskIdentity,
    pub incarnation: Incarnation,
    /// The store was made completely; before that, everything beside this file may be thrown away.
    pub ready: bool,
}

impl IdentityFile {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.extend(MAGIC);
        out.extend(FORMAT.to_le_bytes());
        out.extend(KIND.to_le_bytes());
        out.extend(u32::from(self.ready).to_le_bytes());
        out.extend(self.identity.cluster.0.to_le_bytes());
        out.extend(self.identity.node.0.to_le_bytes());
        out.extend(self.identity.disk.0.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(self.incarnation.0.to_le_bytes());
        out.extend(crc32(&out).to_le_bytes());
        assert_eq!(out.len(), BYTES, "the drawing above is wrong");
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, OpenError> {
        if !bytes.starts_with(MAGIC) {
            return Err(OpenError::Damaged("the identity file is not one of ours".into()));
        }
        // The format comes first: what a future one sums, and how long it is, cannot be known here.
        let word = |at: usize| bytes.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let format = word(8).map_or(0, |both| both as u16);
        if format > FORMAT {
            return Err(OpenError::Format { found: format, known: FORMAT });
        }
        if bytes.len() != BYTES || word(56) != Some(crc32(&bytes[..56])) {
            return Err(OpenError::Damaged("the identity file fails its checksum".into()));
        }
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let kind = (word(8).expect("long enough") >> 16) as u16;
        if kind != KIND {
            return Err(OpenError::Foreign(format!("it holds data of another kind ({kind})")));
        }
        let cluster = ClusterId(u128::from(long(16)) | u128::from(long(24)) << 64);
        let identity = DiskIdentity { cluster, node: NodeId(long(32)), disk: DiskId(long(40) as u32) };
        Ok(Self { identity, incarnation: Incarnation(long(48)), ready: word(12) == Some(1) })
    }
}

/// Reads the file; none on a disk that never was ours.
pub(crate) fn read<D: Disk>(disk: &D) -> Result<Option<IdentityFile>, OpenError> {
    if !disk.exists(NAME)? {
        return Ok(None);
    }
    let file = disk.open(NAME)?;
    let mut bytes = vec![0; file.bytes_len()?.min(4096) as usize];
    file.read_at(&mut bytes, 0)?;
    IdentityFile::decode(&bytes).map(Some)
}

/// Replaces the file; durable on return.
pub(crate) fn write<D: Disk>(disk: &D, content: &IdentityFile) -> Result<(), OpenError> {
    if disk.exists(NAME_NEW)? {
        disk.remove(NAME_NEW)?;
    }
    let file = disk.create(NAME_NEW)?;
    file.write_at(&content.encode(), 0)?;
    file.sync_data()?;
    disk.rename(NAME_NEW, NAME)?;
    disk.sync_directory()?;
    Ok(())
}

/// Refuses what belongs to somebody else.
pub(crate) fn check(found: &IdentityFile, wanted: &DiskIdentity) -> Result<(), OpenError> {
    let have = &found.identity;
    if have.cluster != wanted.cluster {
        return Err(OpenError::Foreign(format!("it belongs to cluster {}, not {}", have.cluster, wanted.cluster)));
    }
    if have.node != wanted.node || have.disk != wanted.disk {
        return Err(OpenError::Foreign(format!(
            "it is disk {} of node {}, not disk {} of node {}",
            have.disk, have.node, wanted.disk, wanted.node
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_journal::MemoryDisk;

    fn sample() -> IdentityFile {
        let identity = DiskIdentity { cluster: ClusterId(u128::MAX - 5), node: NodeId(7), disk: DiskId(2) };
        IdentityFile { identity, incarnation: Incarnation(9), ready: true }
    }

    #[test]
    fn what_was_written_is_read_and_damage_is_noticed() {
        let disk = MemoryDisk::new(1);
        assert_eq!(read(&disk).unwrap(), None);
        write(&disk, &sample()).unwrap();
        assert_eq!(read(&disk).unwrap(), Some(sample()));
        disk.flip_bit(NAME, 48).unwrap();
        assert!(matches!(read(&disk), Err(OpenError::Damaged(_))));
    }

    #[test]
    fn a_future_format_is_refused_by_its_number() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        bytes.push(0);
        assert!(matches!(IdentityFile::decode(&bytes), Err(OpenError::Format { found: 2, known: 1 })));
    }

    #[test]
    fn another_cluster_node_or_disk_is_refused() {
        let wanted = sample().identity;
        check(&sample(), &wanted).unwrap();
        for foreign in [
            DiskIdentity { cluster: ClusterId(1), ..wanted },
            DiskIdentity { node: NodeId(8), ..wanted },
            DiskIdentity { disk: DiskId(3), ..wanted },
        ] {
            assert!(matches!(check(&sample(), &foreign), Err(OpenError::Foreign(_))));
        }
    }
}
