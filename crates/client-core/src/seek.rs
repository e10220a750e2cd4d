//! Where a file has data and where it has holes (`SEEK_DATA`, `SEEK_HOLE` of lseek(2)).
//!
//! What is never said: that there is a hole where an acknowledged write has put bytes. What was dirty or under way when the call was
//! made counts as data; of the rest storage says which blocks were written. Holes begin and end with blocks of 4 KiB, and a hole is at the
//! end of the file.
//!
//! The chunk of the position is asked first: most questions end within it. Then every group is asked for its chunks beyond, at the same
//! time, and again where an answer was cut short, until nothing that is not known could change the answer.
//!
//! Where other hosts may change the file the service is asked afterwards whether it was cut, as for reads.

use crate::HandleId;
use crate::call::{Call, CallId, Reply, Seek};
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::data::DataPurpose;
use crate::error::ClientError;
use crate::file::Seen;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES};
use holdfast_types::{ChunkIndex, Generation, InodeId};
use holdfast_wire::chunk::{ByteRange, ChunkOp};
use holdfast_wire::namespace::Outcome;
use std::collections::BTreeMap;

/// Chunks of each group that the first round asks for, and how many times as many each next one. By eye.
const REACH_GROUPS: u64 = 4;
const REACH_GROWTH: u64 = 16;

/// Calls that wait for storage, by number.
#[derive(Default)]
pub(crate) struct Seeks {
    open: BTreeMap<u64, Seeking>,
    next: u64,
}

impl Seeks {
    /// Forgets everything that is under way: nothing can come of it any more.
    pub fn clear(&mut self) {
        self.open.clear();
    }
}

/// What one group has not been asked about, or not answered.
struct Share {
    /// A chunk of the group: names it.
    name: ChunkIndex,
    /// The first index not known. Chunks below are.
    from: u64,
}

struct Seeking {
    call: CallId,
    asked: (HandleId, u64, Seek),
    inode: InodeId,
    generation: Generation,
    /// Where the file ends, and where storage may hold bytes, at the most.
    size: u64,
    stored: u64,
    /// Data that is known, in order and apart.
    data: Vec<ByteRange>,
    shares: Vec<Share>,
    /// The shares are those of all groups.
    all: bool,
    under_way: usize,
    /// Chunks asked for in the next round at the most: more with each, so that an answer near by costs little and a far one few rounds.
    reach: u64,
    failed: Option<ClientError>,
    seen: Option<Seen>,
}

/// What is known of the answer.
enum Found {
    /// The answer; none: no data up to the end.
    At(Option<u64>),
    /// It depends on chunks up to and including this one.
    Needs(u64),
}

impl Seeking {
    /// The first byte of which nothing is known.
    fn known(&self) -> u64 {
        let first = self.shares.iter().map(|share| share.from).min().unwrap_or(u64::MAX);
        first.saturating_mul(CHUNK_BYTES).min(self.stored)
    }

    fn found(&self) -> Found {
        let (_, offset, seek) = self.asked;
        let known = self.known();
        let needs = |upto: u64| Found::Needs(upto.min(self.stored - 1) / CHUNK_BYTES);
        let mut later = self.data.iter().filter(|range| range.end > offset);
        match seek {
            Seek::Data => {
                let first = later.next().map(|range| range.start.max(offset)).filter(|at| *at < self.size);
                match first {
                    Some(at) if at <= known || known == self.stored => Found::At(Some(at)),
                    None if known == self.stored => Found::At(None),
                    Some(at) => needs(at),
                    None => needs(u64::MAX),
                }
            }
            Seek::Hole => {
                let mut at = offset;
                for range in later {
                    if range.start > at {
                        break;
                    }
                    at = range.end;
                }
                if at < known || known == self.stored || at >= self.stored {
                    Found::At(Some(at.min(self.size)))
                } else {
                    needs(u64::MAX)
                }
            }
        }
    }

    fn learn(&mut self, ranges: impl IntoIterator<Item = ByteRange>) {
        let (_, offset, _) = self.asked;
        let stored = self.stored;
        let blocks = ranges.into_iter().filter(|range| range.start < stored).map(|r| whole_blocks(r.start, r.end));
        self.data.extend(blocks.filter(|range| range.end > offset));
        merge(&mut self.data);
    }
}

/// The blocks that a range touches.
fn whole_blocks(start: u64, end: u64) -> ByteRange {
    ByteRange { start: start - start % BLOCK_BYTES, end: end.next_multiple_of(BLOCK_BYTES) }
}

/// Brings ranges in order and joins those that touch.
fn merge(ranges: &mut Vec<ByteRange>) {
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let joins = later.start <= earlier.end;
        if joins {
            earlier.end = earlier.end.max(later.end);
        }
        joins
    });
}

impl ClientCore {
    pub(crate) fn seek(&mut self, id: CallId, call: Call) {
        let Call::Seek { handle, .. } = call else { return };
        let Some(open) = self.handles.get(&handle) else { return self.complete(id, Err(ClientError::BadHandle)) };
        let inode = open.inode;
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        if file.is_changing() {
            return file.parked.push((id, call));
        }
        if self.may_serve_cache() {
            return self.seek_now(id, call);
        }
        self.query(Some(inode), Purpose::Size(id, Box::new(call)));
    }

    pub(crate) fn seek_now(&mut self, id: CallId, call: Call) {
        let Call::Seek { handle, offset, seek } = call else { return };
        let Some(inode) = self.handles.get(&handle).map(|h| h.inode) else {
            return self.complete(id, Err(ClientError::BadHandle));
        };
        let sure = self.may_serve_cache();
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        let size = file.size();
        if offset >= size {
            return self.complete(id, Ok(Reply::Position(None)));
        }
        let mut data = Vec::new();
        // From the block's beginning: the rest of it is data as well as soon as these bytes are stored.
        file.dirty.overlay(offset - offset % BLOCK_BYTES, u64::MAX, |start, bytes| {
            data.push(whole_blocks(start, start + bytes.len() as u64));
        });
        data.extend(file.sending.iter().map(|(start, sending)| whole_blocks(*start, sending.end)));
        data.retain(|range| range.end > offset);
        merge(&mut data);
        let stored = file.stored_end().min(file.base.trim_from.unwrap_or(u64::MAX));
        let seen = (!sure).then(|| Seen::now(&file.base));
        let chunk = offset / CHUNK_BYTES;
        // As if all before the position were known.
        let shares = vec![Share { name: ChunkIndex(chunk), from: chunk }];
        let seeking = Seeking {
            call: id,
            asked: (handle, offset, seek),
            inode,
            generation: file.base.generation,
            size,
            stored,
            data,
            shares,
            all: false,
            under_way: 0,
            reach: REACH_GROUPS * u64::from(self.session.volume().groups),
            failed: None,
            seen,
        };
        let number = self.seeks.next;
        self.seeks.next += 1;
        self.seeks.open.insert(number, seeking);
        self.seek_on(number);
    }

    /// Answers, or asks for what is missing.
    fn seek_on(&mut self, number: u64) {
        let Some(seeking) = self.seeks.open.get_mut(&number) else { return };
        let upto = match seeking.found() {
            _ if seeking.failed.is_some() || !self.calls.contains(&seeking.call) => return self.seek_found(number),
            Found::At(_) => return self.seek_found(number),
            Found::Needs(upto) => upto,
        };
        let first = seeking.shares.iter().map(|share| share.from).min().unwrap_or(0);
        let volume = self.session.volume();
        let started = seeking.shares.first().is_some_and(|share| share.from > share.name.0);
        if started && !seeking.all {
            seeking.all = true;
            let groups = u64::from(volume.groups);
            let last = (seeking.stored - 1) / CHUNK_BYTES;
            let names = (first..=last).take(usize::try_from(groups).unwrap_or(usize::MAX));
            seeking.shares = names.map(|name| Share { name: ChunkIndex(name), from: name }).collect();
        }
        // What is asked for in the first round is the chunk alone.
        let upto = if seeking.all { upto.min(first.saturating_add(seeking.reach)) } else { first };
        if seeking.all {
            seeking.reach = seeking.reach.saturating_mul(REACH_GROWTH);
        }
        let (inode, generation, id) = (seeking.inode, seeking.generation, volume.id);
        let asked: Vec<(usize, ChunkIndex, u64)> = (0..)
            .zip(&seeking.shares)
            .filter(|(_, share)| share.from <= upto)
            .map(|(n, share)| (n, share.name, share.from))
            .collect();
        seeking.under_way = asked.len();
        for (share, name, from) in asked {
            let op =
                ChunkOp::Allocated { volume: id, inode, generation, from: ChunkIndex(from), upto: ChunkIndex(upto) };
            let purpose = DataPurpose::Seek { number, share, upto };
            self.data_start(name, inode, op, Vec::new(), purpose);
        }
    }

    /// A group has answered.
    pub(crate) fn allocated(
        &mut self,
        number: u64,
        share: usize,
        upto: u64,
        result: Result<(Vec<ByteRange>, ChunkIndex), ClientError>,
    ) {
        let Some(seeking) = self.seeks.open.get_mut(&number) else { return };
        seeking.under_way -= 1;
        match result {
            Ok((_, through)) if through.0 < seeking.shares[share].from => {
                seeking.failed = Some(ClientError::Protocol { detail: "storage says nothing of the chunks asked for" });
            }
            Ok((ranges, through)) => {
                seeking.shares[share].from = through.0.min(upto).saturating_add(1);
                seeking.learn(ranges);
            }
            Err(error) => seeking.failed = Some(error),
        }
        if seeking.under_way == 0 {
            self.seek_on(number);
        }
    }

    /// Nothing more is needed of storage.
    fn seek_found(&mut self, number: u64) {
        let Some(seeking) = self.seeks.open.get(&number) else { return };
        if seeking.seen.is_some() && seeking.failed.is_none() {
            return self.query(Some(seeking.inode), Purpose::SeekCheck(number));
        }
        if let Some(seeking) = self.seeks.open.remove(&number) {
            self.seek_answer(&seeking);
        }
    }

    fn seek_answer(&mut self, seeking: &Seeking) {
        let result = match (&seeking.failed, seeking.found()) {
            (Some(error), _) => Err(error.clone()),
            (None, Found::At(at)) => Ok(Reply::Position(at)),
            // Nobody waits any more.
            (None, Found::Needs(_)) => Err(ClientError::Interrupted),
        };
        self.complete(seeking.call, result);
    }

    /// The service has said what the file is like after storage was asked.
    pub(crate) fn seek_checked(&mut self, number: u64, result: Result<Outcome, ClientError>) {
        let Some(seeking) = self.seeks.open.remove(&number) else { return };
        let base = self.files.get(&seeking.inode).map(|file| &file.base);
        let same = base.zip(seeking.seen).is_some_and(|(base, seen)| seen.still(base));
        match result {
            Ok(_) if same => self.seek_answer(&seeking),
            Ok(_) => self.seek_again(&seeking),
            Err(error) => self.complete(seeking.call, Err(error)),
        }
    }

    /// Other hosts may write from now on, or did: what is under way begins anew.
    pub(crate) fn seek_anew(&mut self) {
        for seeking in std::mem::take(&mut self.seeks.open).into_values() {
            self.seek_again(&seeking);
        }
    }

    fn seek_again(&mut self, seeking: &Seeking) {
        let (handle, offset, seek) = seeking.asked;
        self.start(seeking.call, Call::Seek { handle, offset, seek });
    }
}
