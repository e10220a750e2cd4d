//! When each group was last scrubbed and what was found, kept beside the data it is about: a restart neither forgets nor postpones a scrub.
//!
//! Best effort: what cannot be written down is done again sooner, and nonsense is as good as nothing. A row per group that the disk has ever
//! held; a few dozen bytes each.

use crate::clock::civil_seconds;
use crate::kept;
use holdfast_storage_core::Scrubbed;
use holdfast_types::{DiskId, GroupId};
use holdfast_wire::group::ScrubResult;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The dot keeps it out of the disk's own list of files.
const NAME: &str = ".scrubs.toml";
/// Rows that are read back: far more groups than a disk is meant to have.
const ROWS_MAX: usize = 65_536;

/// The file's content.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    #[serde(default)]
    scrubs: Vec<Row>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Row {
    group: u32,
    /// Seconds since 1970 when the last scrub ended; of a group that was never scrubbed, when it would have to have been.
    at: u64,
    /// None: never scrubbed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<ScrubResult>,
}

/// One file per disk.
pub(crate) struct ScrubFile {
    directories: BTreeMap<DiskId, PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<(DiskId, GroupId), Row>,
    changed: BTreeSet<DiskId>,
}

impl ScrubFile {
    /// Reads what is there.
    pub fn open(directories: BTreeMap<DiskId, PathBuf>) -> Self {
        let mut rows = BTreeMap::new();
        for (disk, directory) in &directories {
            for row in read(&directory.join(NAME)) {
                rows.insert((*disk, GroupId(row.group)), row);
            }
        }
        Self { directories, state: Mutex::new(State { rows, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the core is to know at its start.
    pub fn kept(&self) -> Vec<Scrubbed> {
        let now = civil_seconds();
        let one = |(&(disk, group), row): (&(DiskId, GroupId), &Row)| {
            // A civil clock that was set back: as if it had just been.
            let age = Duration::from_secs(now.saturating_sub(row.at));
            Scrubbed { disk, group, age, result: row.result }
        };
        self.state().rows.iter().map(one).collect()
    }

    /// The core wants this kept.
    pub fn note(&self, scrubbed: &Scrubbed) {
        let Scrubbed { disk, group, age, result } = *scrubbed;
        let at = civil_seconds().saturating_sub(age.as_secs());
        let mut state = self.state();
        state.rows.insert((disk, group), Row { group: group.0, at, result });
        state.changed.insert(disk);
    }

    /// Writes what has changed. A file is whole or as before after a crash.
    pub fn flush(&self) {
        let changed = std::mem::take(&mut self.state().changed);
        for disk in changed {
            let Some(directory) = self.directories.get(&disk) else { continue };
            let scrubs = self.state().rows.iter().filter(|((of, _), _)| *of == disk).map(|(_, row)| *row).collect();
            let written = toml::to_string(&Kept { scrubs }).map_err(io::Error::other);
            if let Err(error) = written.and_then(|text| kept::replace(directory, NAME, text.as_bytes())) {
                tracing::warn!(directory = %directory.display(), %error, "the times of scrubs are not kept here");
            }
        }
    }
}

fn read(path: &Path) -> Vec<Row> {
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    match toml::from_str::<Kept>(&text) {
        Ok(kept) => kept.scrubs.into_iter().take(ROWS_MAX).collect(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "not a list of scrubs: begun anew");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_there_at_the_next_start_and_nonsense_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let disks = || BTreeMap::from([(DiskId(0), directory.path().to_path_buf())]);
        let file = ScrubFile::open(disks());
        assert_eq!(file.kept(), []);
        let result = Some(ScrubResult { chunks: 3, bytes: 5, bad: 2, repaired: 1, different: 1, equalized: 0 });
        let (hour, disk) = (Duration::from_secs(3600), DiskId(0));
        file.note(&Scrubbed { disk, group: GroupId(7), age: hour, result: None });
        file.note(&Scrubbed { disk, group: GroupId(9), age: Duration::ZERO, result });
        file.flush();
        let kept = ScrubFile::open(disks()).kept();
        assert_eq!((kept.len(), kept[0].group, kept[0].result), (2, GroupId(7), None));
        assert!(kept[0].age >= hour && kept[0].age < 2 * hour, "{:?}", kept[0].age);
        assert_eq!((kept[1].group, kept[1].result), (GroupId(9), result));
        std::fs::write(directory.path().join(NAME), "scrubs = 1").expect("written");
        assert_eq!(ScrubFile::open(disks()).kept(), []);
    }
}
