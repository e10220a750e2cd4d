//! What was written here and had not reached the cluster when the session ended: nobody takes it any more, and whoever wrote it may want it.

use crate::core::ClientCore;
use crate::file::File;
use crate::names::Names;
use bytes::Bytes;
use holdfast_types::InodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a file has lost.
#[derive(Clone, PartialEq, Eq)]
pub struct LostFile {
    /// Which file.
    pub inode: InodeId,
    /// Its path from the volume's root, without a leading `/`, as it was last known here. None: it has no name, or none was kept.
    pub path: Option<Bytes>,
    /// Its size in bytes as callers saw it.
    pub size: u64,
    /// The size that all others see, as far as is known here. What lies beyond is lost, even what storage had already taken.
    pub published: u64,
    /// Bytes with their offsets, in the order in which they were written: of two at one place the later one counts.
    pub pieces: Vec<(u64, Bytes)>,
}

impl fmt::Debug for LostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.pieces.iter().map(|(at, piece)| *at..*at + piece.len() as u64).collect();
        write!(f, "{} {:?}: {:?} of {} bytes, {} published", self.inode, self.path, ranges, self.size, self.published)
    }
}

impl File {
    fn lost(&mut self) -> Option<LostFile> {
        if self.gone || self.unsafe_bytes() == 0 {
            return None;
        }
        let mut pieces = Vec::new();
        for (start, sending) in &self.sending {
            let mut at = *start;
            for piece in &sending.pieces {
                pieces.push((at, piece.clone()));
                at += piece.len() as u64;
            }
        }
        self.dirty.overlay(0, u64::MAX, |at, piece| pieces.push((at, piece)));
        Some(LostFile { inode: self.inode, path: None, size: self.size(), published: self.base.size, pieces })
    }
}

impl ClientCore {
    /// Of every file what would be lost now, by inode.
    pub(crate) fn lost_files(&mut self) -> Vec<LostFile> {
        let mut lost: Vec<LostFile> = self.files.values_mut().filter_map(File::lost).collect();
        let paths = paths(&self.names, &lost.iter().map(|file| file.inode).collect());
        for file in &mut lost {
            file.path = paths.get(&file.inode).cloned();
        }
        lost
    }
}

/// Paths of those inodes of which all names up to the root are known.
fn paths(names: &Names, wanted: &BTreeSet<InodeId>) -> BTreeMap<InodeId, Bytes> {
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    let above: BTreeMap<InodeId, (InodeId, &[u8])> =
        names.entries().map(|(parent, name, inode)| (inode, (parent, name.as_bytes()))).collect();
    let path = |inode: InodeId| {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = inode;
        while at != InodeId::ROOT {
            let (parent, name) = above.get(&at)?;
            // Names of different moments may form a circle.
            if parts.len() >= above.len() {
                return None;
            }
            parts.push(*name);
            at = *parent;
        }
        parts.reverse();
        Some(Bytes::from(parts.join(&b'/')))
    };
    wanted.iter().filter_map(|inode| Some((*inode, path(*inode)?))).collect()
}
