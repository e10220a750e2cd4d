//! The newest map that this node had, kept beside the data: who held which group. Nobody needs it as long as the metadata service has its own
//! record. When that is lost and restored from a backup, nodes that were started again since can say what they knew.
//!
//! ```text
//! .cluster-map:  "HFMAP001" | crc32 of the rest | the map (codec)
//! ```
//! * Written when views or homes have changed, not for every session, and once a second at the most: the last moment before a crash may be
//!   missing, and whoever asks takes that into account (changes of later epochs on the disks tell).
//! * Best effort: a node that finds nonsense in it goes on without, and so does one that cannot write it, but it tries again.

use crate::kept;
use holdfast_types::checksum::crc32;
use holdfast_types::{MapVersion, prng};
use holdfast_wire::codec;
use holdfast_wire::map::ClusterMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The dot keeps it out of the disk's own list of files.
const NAME: &str = ".cluster-map";
const MAGIC: &[u8; 8] = b"HFMAP001";
/// Pause between two times that it is written.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause before it is tried again where it could not be written.
const AGAIN: Duration = Duration::from_secs(30);

/// Where it is, in each of a node's disk directories, and what is to be written.
pub(crate) struct MapFile {
    directories: Vec<PathBuf>,
    pending: Mutex<Pending>,
    /// Held while files are written: by one at a time, so that an older map never comes after a newer one.
    writing: Mutex<()>,
    news: Notify,
}

#[derive(Default)]
struct Pending {
    /// Sum of what counts of the map that was taken last.
    sum: u64,
    map: Option<Arc<ClusterMap>>,
    /// Where it could not be written, if it was tried; otherwise it is to be written everywhere.
    left: Option<Vec<PathBuf>>,
}

impl MapFile {
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories, pending: Mutex::default(), writing: Mutex::default(), news: Notify::new() }
    }

    /// The newest that is kept; version 0 if there is none.
    pub fn read(&self) -> ClusterMap {
        let kept = self.directories.iter().filter_map(|directory| read(&directory.join(NAME)));
        kept.max_by_key(|map| map.version).unwrap_or_default()
    }

    /// Takes a map to be written, if it differs in what counts.
    pub fn take(&self, map: &ClusterMap) {
        let sum = sum(map);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if map.version != MapVersion(0) && pending.sum != sum {
            *pending = Pending { sum, map: Some(Arc::new(map.clone())), left: None };
            self.news.notify_one();
        }
    }

    /// Writes what is taken, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut written = true;
        loop {
            if written {
                self.news.notified().await;
            } else {
                let _ = tokio::time::timeout(AGAIN, self.news.notified()).await;
            }
            let file = Arc::clone(&self);
            // A disk that hangs holds up nobody else.
            written = tokio::task::spawn_blocking(move || file.write_pending()).await.unwrap_or(false);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Writes what was taken and is not written yet. Returns whether nothing is left to be tried again.
    pub fn write_pending(&self) -> bool {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = || self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (map, left) = {
            let mut pending = pending();
            (pending.map.take(), pending.left.take())
        };
        let Some(map) = map else { return true };
        let encoded = codec::encode(&*map);
        let content = [&MAGIC[..], &crc32(&encoded).to_le_bytes(), &encoded].concat();
        let mut failed = Vec::new();
        for directory in left.as_ref().unwrap_or(&self.directories) {
            if let Err(error) = kept::replace(directory, NAME, &content) {
                // Said once of each map.
                if left.is_none() {
                    tracing::warn!(directory = %directory.display(), %error, "the cluster map is not kept here; it is tried again");
                }
                failed.push(directory.clone());
            }
        }
        let written = failed.is_empty();
        let mut pending = pending();
        if !written && pending.map.is_none() {
            (pending.map, pending.left) = (Some(map), Some(failed));
        }
        written
    }
}

/// Of views, homes and who is there: sessions come and go all the time, and count for nothing once the metadata service is gone.
fn sum(map: &ClusterMap) -> u64 {
    let epochs = map.views.iter().fold(0, |sum: u64, view| sum.wrapping_add(view.epoch.0));
    let homes =
        map.homes.iter().flatten().fold(0, |sum: u64, (node, disk)| prng::mix(sum ^ node.0) ^ u64::from(disk.0));
    let nodes = map.nodes.keys().fold(homes, |sum, node| prng::mix(sum ^ node.0));
    let servers = map.servers.keys().fold(nodes, |sum, server| prng::mix(sum ^ server.0));
    prng::mix(epochs) ^ servers
}

fn read(path: &Path) -> Option<ClusterMap> {
    let bytes = std::fs::read(path).ok()?;
    let kept = bytes.strip_prefix(MAGIC).and_then(|rest| {
        let (sum, encoded) = rest.split_first_chunk::<4>()?;
        (crc32(encoded) == u32::from_le_bytes(*sum)).then(|| codec::decode(encoded).ok())?
    });
    if kept.is_none() {
        tracing::warn!(path = %path.display(), "not a cluster map that this release keeps: left alone");
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{DiskId, Epoch, Incarnation, MemberId, NodeId, SessionId};
    use holdfast_wire::map::View;

    fn map(version: u64, epoch: u64) -> ClusterMap {
        let member = MemberId { node: NodeId(1), disk: DiskId(1), incarnation: Incarnation(1) };
        let view = View { epoch: Epoch(epoch), primary: member, in_sync: vec![member], syncing: Vec::new() };
        let homes = vec![vec![(NodeId(1), DiskId(1))]];
        ClusterMap { version: MapVersion(version), views: vec![view], homes, ..ClusterMap::default() }
    }

    #[test]
    fn the_newest_map_with_other_views_is_kept_and_damage_is_no_map() {
        let directories = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
        let file = MapFile::new(directories.iter().map(|directory| directory.path().into()).collect());
        assert_eq!(file.read(), ClusterMap::default());
        file.take(&ClusterMap::default());
        file.take(&map(5, 1));
        file.write_pending();
        assert_eq!(file.read(), map(5, 1));
        // A session more is not worth a write.
        file.take(&ClusterMap { session_newest: SessionId(9), ..map(6, 1) });
        file.write_pending();
        assert_eq!(file.read().version, MapVersion(5));
        file.take(&map(7, 2));
        file.take(&ClusterMap { homes: vec![vec![(NodeId(2), DiskId(1))]], ..map(8, 2) });
        file.write_pending();
        assert_eq!(file.read().version, MapVersion(8));
        for directory in &directories {
            let path = directory.path().join(NAME);
            let mut bytes = std::fs::read(&path).expect("kept in both");
            *bytes.last_mut().expect("not empty") ^= 1;
            std::fs::write(&path, bytes).expect("damaged");
        }
        assert_eq!(file.read(), ClusterMap::default());
    }

    #[test]
    fn a_map_that_could_not_be_written_is_written_later_unless_there_is_a_newer_one() {
        let disks = tempfile::tempdir().expect("a directory");
        let [here, away] = ["here", "away"].map(|name| disks.path().join(name));
        std::fs::create_dir(&here).expect("made");
        let file = MapFile::new(vec![here.clone(), away.clone()]);
        file.take(&map(5, 1));
        assert!(!file.write_pending(), "one disk is away");
        assert_eq!(super::read(&here.join(NAME)), Some(map(5, 1)));
        std::fs::create_dir(&away).expect("made");
        assert!(file.write_pending());
        assert_eq!(super::read(&away.join(NAME)), Some(map(5, 1)));
        // What was not written gives way to what is newer, and that goes everywhere.
        std::fs::remove_dir_all(&away).expect("away");
        file.take(&map(6, 2));
        assert!(!file.write_pending());
        file.take(&map(7, 3));
        std::fs::create_dir(&away).expect("made");
        assert!(file.write_pending() && file.write_pending());
        assert_eq!([here, away].map(|disk| super::read(&disk.join(NAME))), [Some(map(7, 3)), Some(map(7, 3))]);
    }
}
