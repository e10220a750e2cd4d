//! Opening: makes a store on an empty disk, or brings one back to its last acknowledged operation.
//!
//! ```text
//! no identity file ──▶ written, not ready ──▶ journal, index rows made ──▶ ready
//! ready ──▶ journal opened ──▶ positions compared ──▶ replayed from the checkpoint row ──▶ checkpoint ──▶ next incarnation
//! ```

use super::damage::Damage;
use super::error::OpenError;
use super::extents::{Extents, GrowthLimits};
use super::identity::{self, DiskIdentity, IdentityFile};
use super::keys::{self, Keys};
use super::options::LIFE_BEFORE_MAX;
use super::probe::is_of_device;
use super::record::{Record, decode_checkpoint};
use super::rows::{self, APPLIED_KEY, CHECKPOINT_KEY, ChunkRow, GroupRow};
use super::space::{self, FreeSpace, Run};
use super::stage::{Staged, Writer};
use super::{ChunkStore, Shared, StoreOptions};
use bytes::Bytes;
use holdfast_journal::{Disk, Journal, JournalConfig, Position};
use holdfast_storage_core::local::KeyRange;
use holdfast_store::{Batch, Table};
use holdfast_types::prng::mix;
use holdfast_types::{GroupId, Incarnation, OpNumber};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

const JOURNAL_NAME: &str = "journal";

impl<D: Disk + Clone> ChunkStore<D> {
    /// Opens the store of a disk, or makes one where nothing is. `table` is the disk's index and nobody else's.
    ///
    /// On return everything that was ever acknowledged is there, a greater incarnation is durable, and a checkpoint has
    /// ended.
    ///
    /// # Errors
    /// [`OpenError`]; each says what is wrong with which disk. Damage is never taken for absence.
    pub fn open(disk: D, table: Arc<dyn Table>, owner: DiskIdentity, options: StoreOptions) -> Result<Self, OpenError> {
        let life = match identity::read(&disk)? {
            Some(found) => {
                identity::check(&found, &owner)?;
                found
            }
            None => claim(&disk, table.as_ref(), owner, options.life_before)?,
        };
        if !life.ready {
            clear(&disk, table.as_ref())?;
        }
        let config = JournalConfig {
            name: JOURNAL_NAME.to_owned(),
            id: owner.cluster.0 ^ u128::from(mix(owner.node.0 ^ mix(u64::from(owner.disk.0)))),
            segment_bytes: options.segment_bytes,
            segments_min: options.segments,
            segments_max: options.segments,
        };
        let (mut positions, mut witnessed) = (Vec::new(), 0);
        let journal = Journal::open(disk.clone(), &config, |position, bytes| {
            match decode_checkpoint(bytes) {
                Some(checkpoint) => witnessed = witnessed.max(checkpoint),
                None => positions.push(position),
            }
            Ok(())
        })?;
        let from = compare(table.as_ref(), &journal, witnessed)?;
        let limits = GrowthLimits {
            file_bytes: options.file_bytes,
            step_bytes: options.step_bytes,
            reserve_bytes: options.reserve_bytes,
        };
        let mut extents = Extents::open(disk.clone(), limits)?;
        for position in positions.into_iter().filter(|position| position.0 >= from) {
            replay(&journal, position, table.as_ref(), &mut extents)?;
        }
        let free = find_free(table.as_ref(), &extents)?;
        let (groups, touched) = (load_groups(table.as_ref())?, load_touched(table.as_ref())?);
        let shared = Shared {
            disk,
            table: Arc::clone(&table),
            files: Arc::clone(extents.files()),
            placing: RwLock::new(()),
            damage: Mutex::new(Damage::default()),
            checkpoint: Mutex::new(from),
            refused: Mutex::default(),
            refuses: AtomicBool::new(false),
            probe: OnceLock::new(),
            failed: AtomicBool::new(false),
            fault: Mutex::new(None),
        };
        let staged = Staged::default();
        let inline_bytes_max = options.inline_bytes_max;
        let mend_unchecked = options.mutations.mend_unchecked;
        let writer = Writer { table, extents, free, groups, touched, staged, inline_bytes_max, mend_unchecked };
        let incarnation = life.incarnation.next();
        let (syncing, checkpoint, begun) = (Vec::new(), 0, 0);
        // Where there is no room for it, or no descriptor, it is made when it is wanted.
        if let Some(error) = shared.probe_file().err().filter(is_of_device) {
            return Err(OpenError::Disk(error));
        }
        let shared = Arc::new(shared);
        let mut store = Self { shared, writer, journal, incarnation, options, syncing, checkpoint, begun };
        store.checkpoint().map_err(|_| OpenError::Damaged(store.fault().unwrap_or_default()))?;
        identity::write(&store.shared.disk, &IdentityFile { identity: owner, incarnation, ready: true })?;
        Ok(store)
    }
}

/// Takes an empty disk for us; refuses one that has anything of a store but no identity.
fn claim<D: Disk>(
    disk: &D,
    table: &dyn Table,
    owner: DiskIdentity,
    life_before: Incarnation,
) -> Result<IdentityFile, OpenError> {
    let ours = |name: &String| name.starts_with("extent-") || name.starts_with(JOURNAL_NAME);
    if let Some(name) = disk.list()?.into_iter().find(ours) {
        return Err(OpenError::Foreign(format!("it has no identity file, but {name}")));
    }
    if table.range(holdfast_store::KeyRange::all()).next().transpose()?.is_some() {
        return Err(OpenError::Foreign("it has no identity file, but an index".into()));
    }
    if life_before > LIFE_BEFORE_MAX {
        return Err(OpenError::Clock);
    }
    let life = IdentityFile { identity: owner, incarnation: life_before, ready: false };
    identity::write(disk, &life)?;
    Ok(life)
}

/// Throws away what an interrupted first opening left, and makes the index say that it is new.
fn clear<D: Disk>(disk: &D, table: &dyn Table) -> Result<(), OpenError> {
    Extents::remove_all(disk)?;
    for name in disk.list()?.iter().filter(|name| name.starts_with(JOURNAL_NAME)) {
        disk.remove(name)?;
    }
    disk.sync_directory()?;
    let mut batch = Batch::new();
    for pair in table.range(holdfast_store::KeyRange::all()) {
        batch.remove(pair?.0);
    }
    batch.put(APPLIED_KEY, rows::encode_position(0));
    batch.put(CHECKPOINT_KEY, rows::encode_position(0));
    table.commit(batch)?;
    table.persist()?;
    Ok(())
}

/// From where to replay, if journal and index belong together.
fn compare<D: Disk>(table: &dyn Table, journal: &Journal<D>, witnessed: u64) -> Result<u64, OpenError> {
    let position = |key: &'static [u8]| -> Result<u64, OpenError> {
        let value = table.get(key)?.ok_or_else(|| OpenError::Damaged("the index is empty".into()))?;
        rows::decode_position(key, &value).map_err(|error| OpenError::Damaged(error.to_string()))
    };
    let (applied, checkpoint) = (position(APPLIED_KEY)?, position(CHECKPOINT_KEY)?);
    let end = journal.end().0;
    if end < applied.max(checkpoint) {
        return Err(OpenError::Damaged(format!(
            "the journal ends at {end}, but the index holds what was written up to {}: records are lost",
            applied.max(checkpoint)
        )));
    }
    if checkpoint < witnessed.max(journal.head().0) {
        return Err(OpenError::Damaged(format!(
            "the index was persisted at {}, but has come back as it was at {checkpoint}",
            witnessed.max(journal.head().0)
        )));
    }
    Ok(checkpoint)
}

fn replay<D: Disk>(
    journal: &Journal<D>,
    position: Position,
    table: &dyn Table,
    extents: &mut Extents<D>,
) -> Result<(), OpenError> {
    let bytes = Bytes::from(journal.read(position)?);
    let record = Record::decode(&bytes)
        .ok_or_else(|| OpenError::Damaged(format!("the record at {position} is not one of a chunk store")))?;
    for place in &record.places {
        extents.write(place.file, place.start, &place.bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => OpenError::Damaged(format!("extent file {} is missing", place.file)),
            _ => OpenError::Disk(error),
        })?;
    }
    let mut batch = Batch::new();
    for Keys { start, end } in record.ranges {
        for pair in table.range(holdfast_store::KeyRange::between(start, end)) {
            batch.remove(pair?.0);
        }
    }
    for (key, value) in record.rows {
        match value {
            Some(value) => batch.put(key, value),
            None => batch.remove(key),
        }
    }
    table.commit(batch)?;
    Ok(())
}

/// All rows of one kind, decoded.
fn load<T>(table: &dyn Table, kind: u8, mut take: impl FnMut(&[u8], &[u8]) -> Option<T>) -> Result<Vec<T>, OpenError> {
    let Keys { start, end } = keys::all(kind);
    let mut rows = Vec::new();
    for pair in table.range(holdfast_store::KeyRange::between(start, end)) {
        let (key, value) = pair?;
        let row = take(&key, &value);
        rows.push(row.ok_or_else(|| OpenError::Damaged(format!("index row {key:02x?} is malformed")))?);
    }
    Ok(rows)
}

fn find_free<D: Disk>(table: &dyn Table, extents: &Extents<D>) -> Result<FreeSpace, OpenError> {
    let chunks = load(table, b'c', |key, value| {
        keys::parse_chunk(key)?;
        ChunkRow::decode(key, value).ok()
    })?;
    let used = chunks.iter().flat_map(|row| &row.extents);
    let used: Vec<Run> = used.map(|e| Run { file: e.file, start: e.start, blocks: e.blocks }).collect();
    space::rebuild(extents.sizes(), used).map_err(|run| {
        OpenError::Damaged(format!(
            "blocks {}..{} of extent file {} are used twice, or are not there",
            run.start,
            run.end(),
            run.file
        ))
    })
}

fn load_groups(table: &dyn Table) -> Result<BTreeMap<GroupId, GroupRow>, OpenError> {
    let rows = load(table, b'g', |key, value| Some((keys::parse_group(key)?, GroupRow::decode(key, value).ok()?)))?;
    Ok(rows.into_iter().collect())
}

type Touched = BTreeMap<GroupId, BTreeMap<OpNumber, Vec<KeyRange>>>;

fn load_touched(table: &dyn Table) -> Result<Touched, OpenError> {
    let rows =
        load(table, b'h', |key, value| Some((keys::parse_touched(key)?, rows::decode_touched(key, value).ok()?)))?;
    let mut touched = Touched::new();
    for ((group, number), ranges) in rows {
        touched.entry(group).or_default().insert(number, ranges);
    }
    Ok(touched)
}
