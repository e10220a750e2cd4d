//! What an opening concludes from the files it finds.
//!
//! 1. The valid superblock with the greater generation says where the log begins and how long it was at least.
//! 2. Segments from there on must follow one another without a gap. Each but the newest must hold whole records up to
//!    the end that its successor's header states: it was synced before that header was written.
//! 3. In the newest, the first place without a whole record is the end, unless something proves that more was durable:
//!    the superblock, or a later record. Then it is damage.
//! 4. The newest segment, header and records, is written and synced once more before anyone builds on it: it may be in
//!    the page cache only, and after a failed sync of an earlier process not even dirty there.
//! 5. A superblock with a new life is made durable; nothing is appended before.

use super::format::{
    ALIGNMENT, BLOCK_BYTES, Found, RECORD_HEADER_BYTES, SegmentHeader, SuperFacts, Superblock, decode_record,
    record_bytes,
};
use super::segments::{Segments, Slot, super_name};
use super::{JournalConfig, JournalError, Position, ReplayError, first_facts, read_at};
use crate::disk::{Disk, DiskFile};
use std::collections::BTreeMap;

/// What [`recover`] found and made.
pub(super) struct Recovered<D: Disk> {
    pub(super) segments: Segments<D>,
    pub(super) head: u64,
    pub(super) end: u64,
    pub(super) life: u32,
    pub(super) torn: bool,
}

/// The end of the log as far as it was walked.
struct Walk {
    end: u64,
    life: u32,
    /// Behind the end lies the beginning of a record that is not whole.
    torn: bool,
}

pub(super) fn recover<D: Disk>(
    disk: D,
    config: &JournalConfig,
    mut replay: impl FnMut(Position, &[u8]) -> Result<(), ReplayError>,
) -> Result<Recovered<D>, JournalError> {
    let name = super_name(&config.name);
    let files = segment_files(&disk, config)?;
    let (super_file, facts) = open_super(&disk, config, &name, files.is_empty())?;
    let mut segments = Segments {
        disk,
        name: config.name.clone(),
        segments_max: config.segments_max,
        facts,
        super_file,
        live: BTreeMap::new(),
        free: Vec::new(),
        next_file: files.last().map_or(0, |(number, _)| number + 1),
        next_sequence: facts.head / (facts.segment_bytes - BLOCK_BYTES),
    };
    let previous_ends = open_segments(&mut segments, files)?;
    let walk = walk(&segments, &previous_ends, &mut replay)?;
    if walk.end < facts.durable {
        let what = format!("the log ends here but was durable up to {}", facts.durable);
        return Err(damaged(&segments, walk.end, what));
    }
    let life = facts.life.max(walk.life) + 1;
    segments.write_super(|facts| (facts.life, facts.durable) = (life, walk.end))?;
    // Names first: the superblock's before any segment's, and all before anything is said to be in the log.
    segments.disk.sync_directory().map_err(|error| JournalError::io("sync directory of", &name, error))?;
    if facts.generation == 0 {
        for _ in 0..config.segments_min {
            let slot = segments.make_slot()?;
            segments.free.push(slot);
        }
    }
    Ok(Recovered { head: facts.head, end: walk.end, life, torn: walk.torn, segments })
}

fn damaged<D: Disk>(segments: &Segments<D>, position: u64, what: String) -> JournalError {
    let (file, offset) = segments.place_of(position);
    JournalError::Damaged { file, offset, position: Position(position), what }
}

/// Numbers and names of all segment files, in order.
fn segment_files<D: Disk>(disk: &D, config: &JournalConfig) -> Result<Vec<(u32, String)>, JournalError> {
    let names = disk.list().map_err(|error| JournalError::io("list", &config.name, error))?;
    let number = |name: &str| -> Option<u32> {
        let digits = name.strip_prefix(&config.name)?.strip_prefix('.')?;
        (digits.len() == 6 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
    };
    Ok(names.into_iter().filter_map(|name| Some((number(&name)?, name))).collect())
}

/// Opens or creates the superblock's file. Generation 0 means that no journal exists yet.
fn open_super<D: Disk>(
    disk: &D,
    config: &JournalConfig,
    name: &str,
    no_segments: bool,
) -> Result<(D::File, SuperFacts), JournalError> {
    let lost = |what: &str| JournalError::Damaged {
        file: name.to_owned(),
        offset: 0,
        position: Position(0),
        what: format!("{what}, but segments exist"),
    };
    if !disk.exists(name).map_err(|error| JournalError::io("look for", name, error))? {
        if !no_segments {
            return Err(lost("the superblock is missing"));
        }
        let file = disk.create(name).map_err(|error| JournalError::io("create", name, error))?;
        return Ok((file, first_facts(config)));
    }
    let file = disk.open(name).map_err(|error| JournalError::io("open", name, error))?;
    let bytes_len = file.bytes_len().map_err(|error| JournalError::io("measure", name, error))?;
    let mut newest: Option<SuperFacts> = None;
    for copy in [0, 1] {
        let offset = copy * BLOCK_BYTES;
        let bytes = bytes_len.saturating_sub(offset).min(size_of::<Superblock>() as u64);
        match Superblock::decode(&read_at(&file, name, bytes, offset)?) {
            Found::Valid(facts) if newest.is_none_or(|newest| facts.generation > newest.generation) => {
                newest = Some(facts);
            }
            Found::Valid(_) | Found::Nothing => {}
            Found::Unknown(format) => return Err(JournalError::UnknownFormat { file: name.to_owned(), format }),
        }
    }
    match newest {
        Some(facts) if facts.id != config.id => {
            Err(JournalError::Foreign { file: name.to_owned(), found: facts.id, expected: config.id })
        }
        Some(facts) => Ok((file, facts)),
        // The power failed while the journal was being made.
        None if no_segments => Ok((file, first_facts(config))),
        None => Err(lost("no copy of the superblock is whole")),
    }
}

/// Sorts the files into live and free ones. Returns what each live header says of the end before it.
fn open_segments<D: Disk>(
    segments: &mut Segments<D>,
    files: Vec<(u32, String)>,
) -> Result<BTreeMap<u64, u64>, JournalError> {
    let mut previous_ends = BTreeMap::new();
    let head_sequence = segments.sequence_of(segments.facts.head);
    for (_, name) in files {
        let file = segments.disk.open(&name).map_err(|error| JournalError::io("open", &name, error))?;
        let bytes_len = file.bytes_len().map_err(|error| JournalError::io("measure", &name, error))?;
        let header = read_at(&file, &name, bytes_len.min(size_of::<SegmentHeader>() as u64), 0)?;
        let slot = Slot { name, file };
        match SegmentHeader::decode(&header) {
            Found::Unknown(format) => return Err(JournalError::UnknownFormat { file: slot.name, format }),
            Found::Valid(header) if header.id.get() != segments.facts.id => {
                let (found, expected) = (header.id.get(), segments.facts.id);
                return Err(JournalError::Foreign { file: slot.name, found, expected });
            }
            Found::Valid(header) if header.sequence.get() >= head_sequence => {
                let sequence = header.sequence.get();
                check_length(segments, &slot, bytes_len, sequence)?;
                previous_ends.insert(sequence, header.previous_end.get());
                if let Some(twin) = segments.live.insert(sequence, slot) {
                    let what = format!("{} claims to be the same segment", twin.name);
                    return Err(damaged(segments, sequence * segments.body_bytes(), what));
                }
            }
            Found::Nothing if bytes_len < segments.facts.segment_bytes => {
                // The power failed while the file was being made.
                let Slot { name, file } = slot;
                drop(file);
                segments.disk.remove(&name).map_err(|error| JournalError::io("remove", &name, error))?;
            }
            Found::Nothing => {
                check_no_live_record(segments, &slot)?;
                segments.free.push(slot);
            }
            Found::Valid(_) => segments.free.push(slot),
        }
    }
    Ok(previous_ends)
}

fn check_length<D: Disk>(
    segments: &Segments<D>,
    slot: &Slot<D::File>,
    bytes_len: u64,
    sequence: u64,
) -> Result<(), JournalError> {
    if bytes_len >= segments.facts.segment_bytes {
        return Ok(());
    }
    Err(JournalError::Damaged {
        file: slot.name.clone(),
        offset: bytes_len,
        position: Position(sequence * segments.body_bytes()),
        what: format!("the file has {bytes_len} of {} bytes", segments.facts.segment_bytes),
    })
}

/// A file without a whole header is free, unless live records show that it once had one: headers are synced before.
fn check_no_live_record<D: Disk>(segments: &Segments<D>, slot: &Slot<D::File>) -> Result<(), JournalError> {
    let bytes = read_at(&slot.file, &slot.name, segments.body_bytes(), BLOCK_BYTES)?;
    let position = u64::from_le_bytes(std::array::from_fn(|at| bytes[8 + at]));
    let starts_segment = position.is_multiple_of(segments.body_bytes());
    if starts_segment && position >= segments.facts.head && decode_record(&bytes, segments.facts.id, position).is_some()
    {
        let what = "the segment's header is gone but its records are live".to_owned();
        return Err(JournalError::Damaged { file: slot.name.clone(), offset: 0, position: Position(position), what });
    }
    Ok(())
}

/// Walks all live segments, hands their records out, and makes the newest durable.
fn walk<D: Disk>(
    segments: &Segments<D>,
    previous_ends: &BTreeMap<u64, u64>,
    replay: &mut impl FnMut(Position, &[u8]) -> Result<(), ReplayError>,
) -> Result<Walk, JournalError> {
    let mut walk = Walk { end: segments.facts.head, life: 0, torn: false };
    let first = segments.sequence_of(segments.facts.head);
    if let Some((missing, found)) = (first..).zip(segments.live.keys()).find(|(expected, found)| expected != *found) {
        let position = missing * segments.body_bytes();
        return Err(damaged(segments, position, format!("segment {missing} is missing, {found} exists")));
    }
    for (sequence, slot) in &segments.live {
        let start = walk.end.max(sequence * segments.body_bytes());
        let bytes = read_at(&slot.file, &slot.name, segments.body_bytes(), BLOCK_BYTES)?;
        let bytes = &bytes[(start % segments.body_bytes()) as usize..];
        let complete_up_to = previous_ends.get(&(sequence + 1)).copied();
        walk.end = start;
        walk_segment(segments, bytes, complete_up_to, &mut walk, replay)?;
        if let Some(complete) = complete_up_to {
            if walk.end != complete {
                let what = format!("no whole record, but the segment was complete up to {complete}");
                return Err(damaged(segments, walk.end, what));
            }
        } else {
            check_nothing_durable_beyond(segments, &bytes[(walk.end - start) as usize..], walk.end)?;
            walk.torn = begins_a_record(&bytes[(walk.end - start) as usize..], walk.end);
            let previous_end = previous_ends.get(sequence).copied().expect("every live segment has a header");
            segments.write_header(slot, *sequence, previous_end)?;
            segments.write_newest(&bytes[..(walk.end - start) as usize], start)?;
            segments.sync_newest()?;
        }
    }
    Ok(walk)
}

/// Hands out the whole records at the beginning of `bytes`, up to a known end or the first place without one.
fn walk_segment<D: Disk>(
    segments: &Segments<D>,
    bytes: &[u8],
    complete_up_to: Option<u64>,
    walk: &mut Walk,
    replay: &mut impl FnMut(Position, &[u8]) -> Result<(), ReplayError>,
) -> Result<(), JournalError> {
    let mut left = bytes;
    while complete_up_to.is_none_or(|complete| walk.end < complete) {
        let Some(record) = decode_record(left, segments.facts.id, walk.end) else { break };
        // What an earlier life wrote beyond its torn tail does not follow a record of a later one.
        if record.life < walk.life {
            break;
        }
        walk.life = record.life;
        let position = Position(walk.end);
        replay(position, record.payload).map_err(|source| JournalError::Replay { position, source })?;
        let taken = record_bytes(record.payload.len() as u64);
        walk.end += taken;
        left = left.get(taken as usize..).unwrap_or_default();
    }
    Ok(())
}

/// Whether the place where the log ends holds the start of a record that was on its way when the power failed.
fn begins_a_record(bytes: &[u8], end: u64) -> bool {
    bytes.get(8..16).is_some_and(|stated| stated == end.to_le_bytes()) && end > 0
}

/// Looks for a later record that says that `end` was durable when it was written.
fn check_nothing_durable_beyond<D: Disk>(segments: &Segments<D>, bytes: &[u8], end: u64) -> Result<(), JournalError> {
    let mut at = ALIGNMENT;
    while let Some(later) = bytes.get(at as usize..).filter(|later| later.len() as u64 >= RECORD_HEADER_BYTES) {
        if let Some(record) = decode_record(later, segments.facts.id, end + at)
            && record.durable > end
        {
            let what = format!("no whole record, but the one at {} says that it was durable", end + at);
            return Err(damaged(segments, end, what));
        }
        at += ALIGNMENT;
    }
    Ok(())
}
