//! The extent files: many chunks share one, in blocks of 4 KiB.
//!
//! * A file grows in steps whose space is reserved and made durable before the first block of a step is given out, so
//!   that bytes whose record is durable always find their place.
//! * A file's name is durable before any record refers to it.
//! * Files are never cut or removed; freed blocks are used again.

use super::error::OpenError;
use super::record::Placed;
use super::space::Run;
use holdfast_journal::disk::{Disk, DiskFile, Write};
use holdfast_types::limits::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, PoisonError, RwLock};

/// Open extent files, shared by the writer and all readers.
pub(crate) struct Files<F> {
    by_id: RwLock<BTreeMap<u32, Arc<F>>>,
}

impl<F: DiskFile> Files<F> {
    /// The file, if it exists.
    pub fn get(&self, id: u32) -> Option<Arc<F>> {
        self.by_id.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The file, which should exist.
    pub fn open(&self, id: u32) -> io::Result<Arc<F>> {
        self.get(id).ok_or_else(|| io::Error::new(ErrorKind::NotFound, name(id)))
    }

    /// Fills a buffer from a file's blocks.
    pub fn read(&self, id: u32, start: u32, buffer: &mut [u8]) -> io::Result<()> {
        self.open(id)?.read_at(buffer, u64::from(start) * BLOCK_BYTES)
    }
}

/// The writer's side: sizes, and what no checkpoint has synced yet.
pub(crate) struct Extents<D: Disk> {
    disk: D,
    files: Arc<Files<D::File>>,
    /// Size of every file, in blocks.
    sizes: BTreeMap<u32, u32>,
    /// Written since the last checkpoint began.
    dirty: BTreeSet<u32>,
    limits: GrowthLimits,
}

/// How files grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GrowthLimits {
    pub file_bytes: u64,
    pub step_bytes: u64,
    pub reserve_bytes: u64,
}

pub(crate) fn name(id: u32) -> String {
    format!("extent-{id:08x}")
}

fn parse_name(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("extent-").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

impl<D: Disk> Extents<D> {
    /// Opens all files and reserves their space again: a reservation may not have survived a crash.
    pub fn open(disk: D, limits: GrowthLimits) -> Result<Self, OpenError> {
        let (mut by_id, mut sizes) = (BTreeMap::new(), BTreeMap::new());
        for id in disk.list()?.iter().filter_map(|name| parse_name(name)) {
            let file = disk.open(&name(id))?;
            let blocks = u32::try_from(file.bytes_len()? / BLOCK_BYTES)
                .map_err(|_| OpenError::Damaged(format!("{} is too long", name(id))))?;
            match file.allocate(u64::from(blocks) * BLOCK_BYTES) {
                Err(error) if error.kind() != ErrorKind::StorageFull => return Err(error.into()),
                _ => {}
            }
            sizes.insert(id, blocks);
            by_id.insert(id, Arc::new(file));
        }
        Ok(Self { disk, files: Arc::new(Files { by_id: RwLock::new(by_id) }), sizes, dirty: BTreeSet::new(), limits })
    }

    /// Removes all files: only of a store that was never completely made.
    pub fn remove_all(disk: &D) -> io::Result<()> {
        for name in disk.list()?.iter().filter(|name| parse_name(name).is_some()) {
            disk.remove(name)?;
        }
        Ok(())
    }

    pub fn files(&self) -> &Arc<Files<D::File>> {
        &self.files
    }

    pub fn sizes(&self) -> &BTreeMap<u32, u32> {
        &self.sizes
    }

    /// Writes blocks through the page cache; a checkpoint makes them durable.
    pub fn write(&mut self, id: u32, start: u32, bytes: &[u8]) -> io::Result<()> {
        let file = self.files.open(id)?;
        self.dirty.insert(id);
        file.write_at(bytes, u64::from(start) * BLOCK_BYTES)?;
        let end = start + (bytes.len() as u64).div_ceil(BLOCK_BYTES) as u32;
        let size = self.sizes.get_mut(&id).expect("an open file has a size");
        // Only a replay writes beyond the end: the file's growth was lost with the power.
        *size = (*size).max(end);
        Ok(())
    }

    /// Writes to space that nobody reads yet, past the page cache where the disk can and all at once; durable on return.
    pub fn write_fresh(&self, places: &[Placed]) -> io::Result<()> {
        let ids: BTreeSet<u32> = places.iter().map(|place| place.file).collect();
        let files = ids.into_iter().map(|id| Ok((id, self.files.open(id)?))).collect::<io::Result<BTreeMap<_, _>>>()?;
        let writes: Vec<Write<'_, D::File>> = places
            .iter()
            .map(|place| {
                let (file, offset) = (files[&place.file].as_ref(), u64::from(place.start) * BLOCK_BYTES);
                Write { file, offset, bytes: &place.bytes }
            })
            .collect();
        self.disk.write_many_past_cache(&writes)?;
        let files: Vec<&D::File> = files.values().map(Arc::as_ref).collect();
        self.disk.sync_many(&files)
    }

    /// Files written since the last call, for a checkpoint to sync.
    pub fn take_dirty(&mut self) -> Vec<Arc<D::File>> {
        std::mem::take(&mut self.dirty).into_iter().filter_map(|id| self.files.get(id)).collect()
    }

    /// One more step of space, durable on return; none when the disk is full but for its reserve.
    pub fn grow(&mut self) -> io::Result<Option<Run>> {
        let GrowthLimits { file_bytes, step_bytes, reserve_bytes } = self.limits;
        if self.disk.space()?.available < step_bytes.saturating_add(reserve_bytes) {
            return Ok(None);
        }
        let last = self.sizes.last_key_value().map(|(&id, &blocks)| (id, blocks));
        let (id, start) = match last {
            Some((id, blocks)) if u64::from(blocks) * BLOCK_BYTES + step_bytes <= file_bytes => (id, blocks),
            Some((id, _)) => (id + 1, 0),
            None => (0, 0),
        };
        let file = match self.files.get(id) {
            Some(file) => file,
            None => {
                let file = Arc::new(self.disk.create(&name(id))?);
                self.files.by_id.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&file));
                self.sizes.insert(id, 0);
                file
            }
        };
        let step = (step_bytes / BLOCK_BYTES) as u32;
        match file.allocate(u64::from(start + step) * BLOCK_BYTES) {
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(None),
            other => other?,
        }
        file.sync_data()?;
        if start == 0 {
            self.disk.sync_directory()?;
        }
        self.sizes.insert(id, start + step);
        Ok(Some(Run { file: id, start, blocks: step }))
    }
}
