//! Reading: from memory what is there, from storage what is missing, ahead of a stream.
//!
//! The bytes of a read are those of the moment it was made, or later ones: what is dirty, under way or kept is collected at once,
//! the rest is filled in as it arrives. Bytes that were asked for before a write are never kept over those of the write.
//!
//! A read that waits while this client writes some of its bytes shows the write as a whole: half of it, as far as a block was here
//! already and the rest came later, was never the content of the file.
//!
//! While other hosts may change the file, its size and its bytes come from two places. Storage is asked for the bytes of a size that is
//! known, and the service afterwards whether the file was cut meanwhile. If not, those bytes and that size were the file's at one moment.
//! If it was, bytes may have been found above the cut that another host wrote there again and has not published: the read begins anew.

use crate::call::{Call, CallId, Data, Reply};
use crate::control::Purpose;
use crate::core::ClientCore;
use crate::data::DataPurpose;
use crate::error::ClientError;
use crate::file::{Seen, Sync, Waiter};
use bytes::Bytes;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES};
use holdfast_types::size::KIB;
use holdfast_types::{ChunkIndex, Generation, InodeId};
use holdfast_wire::chunk::ChunkOp;
use holdfast_wire::namespace::Outcome;
use std::collections::{BTreeMap, BTreeSet};

/// Files up to this size are read as a whole.
const WHOLE_BYTES: u64 = 256 * KIB;
/// First window of a stream; doubled with each read that goes on where the last ended.
const WINDOW_BYTES_MIN: u64 = 256 * KIB;
/// A kernel's parallel reads of one stream arrive this far out of order.
const DISORDER_BYTES: u64 = 1024 * KIB;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// How a handle has been read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stream {
    /// Where the next read of a stream would begin.
    next: u64,
    /// How far to read ahead; 0: not a stream.
    window: u64,
    /// Up to here it was asked for ahead.
    ahead: u64,
}

/// Bytes on their way from storage.
struct Fetch {
    inode: InodeId,
    generation: Generation,
    start: u64,
    end: u64,
    /// Written since it was asked for, or dirty then: not to be kept.
    stale: Vec<(u64, u64)>,
    /// Reads, each with the part that it may take from here.
    waiting: Vec<(u64, u64, u64)>,
    /// Nobody waited for it when it was asked for.
    ahead: bool,
    keep: bool,
    span: u64,
}

/// A read that waits for bytes.
struct Pending {
    call: CallId,
    /// What was asked, to begin anew.
    asked: (crate::HandleId, u64, u32),
    inode: InodeId,
    parts: Assembly,
    own: Option<Own>,
    /// Unless this host is alone for sure: what the file was like when storage was asked.
    seen: Option<Seen>,
}

/// From when a size is that a read goes by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// From before it began, while others may have changed it.
    Before,
    /// From since it began, or nobody else can have changed it.
    Since,
}

/// Without a cache: a read has met writes of this client that are not answered yet. It is answered after them, or another host might
/// read older bytes later.
#[derive(Clone, Copy)]
struct Own {
    inode: InodeId,
    newest: u64,
}

/// What a range has become.
pub(crate) enum Content {
    Zeros,
    /// From this offset on.
    Bytes(u64, Bytes),
}

/// A range that is being put together.
struct Assembly {
    start: u64,
    end: u64,
    parts: BTreeMap<u64, Bytes>,
}

impl Assembly {
    /// Ranges still missing, in order.
    fn gaps(&self) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = self.start;
        for (start, bytes) in &self.parts {
            if at < *start {
                gaps.push((at, *start));
            }
            at = start + bytes.len() as u64;
        }
        if at < self.end {
            gaps.push((at, self.end));
        }
        gaps
    }

    fn put(&mut self, at: u64, bytes: Bytes) {
        self.parts.insert(at, bytes);
    }

    /// A part of the range, or what of it lies here, is now this.
    fn replace(&mut self, start: u64, end: u64, content: &Content) {
        let (start, end) = (start.max(self.start), end.min(self.end));
        if start >= end {
            return;
        }
        let first = self.parts.range(..=start).next_back().map_or(start, |(at, _)| *at);
        let met: Vec<u64> = self.parts.range(first..end).map(|(at, _)| *at).collect();
        for at in met {
            let Some(bytes) = self.parts.remove(&at) else { continue };
            let to = at + bytes.len() as u64;
            if at < start {
                self.put(at, bytes.slice(..(start.min(to) - at) as usize));
            }
            if to > end {
                self.put(end.max(at), bytes.slice((end.max(at) - at) as usize..));
            }
        }
        match content {
            Content::Zeros => self.put_zeros(start, end),
            Content::Bytes(at, bytes) => self.put(start, bytes.slice((start - at) as usize..(end - at) as usize)),
        }
    }

    fn put_zeros(&mut self, start: u64, end: u64) {
        let mut at = start;
        while at < end {
            let take = (end - at).min(ZEROS.len() as u64);
            self.put(at, Bytes::from_static(&ZEROS[..take as usize]));
            at += take;
        }
    }

    fn reply(self) -> Reply {
        Reply::Data(Data { pieces: self.parts.into_values().collect() })
    }
}

/// What is being read.
pub(crate) struct Reads {
    fetches: BTreeMap<u64, Fetch>,
    by_inode: BTreeMap<InodeId, BTreeSet<u64>>,
    pending: BTreeMap<u64, Pending>,
    next: u64,
    /// Bytes that were asked for ahead and have not arrived.
    ahead_bytes: u64,
}

impl Reads {
    pub fn new() -> Self {
        Self { fetches: BTreeMap::new(), by_inode: BTreeMap::new(), pending: BTreeMap::new(), next: 1, ahead_bytes: 0 }
    }

    pub fn clear(&mut self) {
        *self = Self { next: self.next, ..Self::new() };
    }

    /// A range has new content: what is on its way for it is old.
    pub fn overwritten(&mut self, inode: InodeId, start: u64, end: u64) {
        for number in self.by_inode.get(&inode).into_iter().flatten() {
            let fetch = self.fetches.get_mut(number).expect("indexed");
            if fetch.start < end && start < fetch.end {
                fetch.stale.push((start.max(fetch.start), end.min(fetch.end)));
            }
        }
    }

    /// As [`Self::overwritten`], by a change of this client's own: reads that wait show it. `newest`: it is not to be shown to anybody
    /// before the change of this number is answered.
    pub fn replaced(&mut self, inode: InodeId, start: u64, end: u64, content: &Content, newest: Option<u64>) {
        self.overwritten(inode, start, end);
        for pending in self.pending.values_mut().filter(|pending| pending.inode == inode) {
            if pending.parts.start < end && start < pending.parts.end {
                pending.parts.replace(start, end, content);
                pending.own = newest.map(|newest| Own { inode, newest }).or(pending.own);
            }
        }
    }

    /// Whether somebody waits for bytes of a file.
    pub fn any_of(&self, inode: InodeId) -> bool {
        self.pending.values().any(|pending| pending.inode == inode)
    }

    /// A fetch that will bring the byte at `at` as it is now, and how far it goes on so.
    fn under_way(&self, inode: InodeId, generation: Generation, at: u64) -> Option<(u64, u64)> {
        self.by_inode.get(&inode)?.iter().find_map(|number| {
            let fetch = &self.fetches[number];
            let fits = fetch.generation == generation && (fetch.start..fetch.end).contains(&at);
            let clean = fetch.stale.iter().all(|(start, end)| !(*start..*end).contains(&at));
            let until = fetch.stale.iter().map(|(start, _)| *start).filter(|s| *s > at).fold(fetch.end, u64::min);
            (fits && clean).then_some((*number, until))
        })
    }
}

impl ClientCore {
    pub(crate) fn read(&mut self, id: CallId, call: Call) {
        let Call::Read { handle, offset, length } = call else { return };
        let Some(open) = self.handles.get(&handle) else { return self.complete(id, Err(ClientError::BadHandle)) };
        let inode = open.inode;
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        if file.is_changing() {
            return file.parked.push((id, call));
        }
        // What is cut must not show up, nor what is beyond a size that may have grown.
        let (ends, whole) = (offset < file.base.size, file.base.trim_from.is_none());
        if self.may_serve_cache() {
            return self.read_now(id, handle, offset, length, Known::Since);
        }
        if self.shares() && ends && whole {
            return self.read_now(id, handle, offset, length, Known::Before);
        }
        self.query(Some(inode), Purpose::Size(id, Box::new(call)));
    }

    /// The size is known: a read, or a search for holes, that may not use a cached one goes on.
    pub(crate) fn sized(&mut self, id: CallId, call: Call, result: Result<Outcome, ClientError>) {
        match result {
            Ok(_) if self.waits(id) => self.go_on_sized(id, call),
            Ok(_) => {}
            Err(error) => self.complete(id, Err(error)),
        }
    }

    /// The size is known as it was a moment ago: what of the file is being changed since comes first.
    fn go_on_sized(&mut self, id: CallId, call: Call) {
        let (Call::Read { handle, .. } | Call::Seek { handle, .. }) = call else { return };
        let file = self.handles.get(&handle).and_then(|open| self.files.get_mut(&open.inode));
        match (file.filter(|file| file.is_changing()), call) {
            (Some(file), call) => file.parked.push((id, call)),
            (None, Call::Read { offset, length, .. }) => self.read_now(id, handle, offset, length, Known::Since),
            (None, call) => self.seek_now(id, call),
        }
    }

    fn read_now(&mut self, id: CallId, handle: crate::HandleId, offset: u64, length: u32, known: Known) {
        let Some(inode) = self.handles.get(&handle).map(|h| h.inode) else {
            return self.complete(id, Err(ClientError::BadHandle));
        };
        let (keep, shares) = (self.may_serve_cache(), self.shares());
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        // While other hosts may write, too, only the service and storage know what is there: a write of our own that is not answered yet
        // may come before or after what others do.
        let (size, stored) = if shares { (file.base.size, file.base.size) } else { (file.size(), file.stored_end()) };
        let end = offset.saturating_add(u64::from(length)).min(size);
        if offset >= end {
            return self.complete(id, Ok(Reply::Data(Data::default())));
        }
        self.accessed(inode);
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        let mut parts = Assembly { start: offset, end, parts: BTreeMap::new() };
        let asked = (handle, offset, length);
        let short = known == Known::Before && end - offset < u64::from(length);
        let seen = (!keep).then(|| Seen { end: short.then_some(end), ..Seen::now(&file.base) });
        let own = (!keep && !shares && file.is_own(offset, end)).then(|| Own { inode, newest: file.number_next - 1 });
        if !shares {
            file.dirty.overlay(offset, end, |at, bytes| drop(parts.parts.insert(at, bytes)));
        }
        if !shares && !file.sending.is_empty() {
            for (start, end) in parts.gaps() {
                overlay_sending(&file.sending, start, end, |at, bytes| drop(parts.parts.insert(at, bytes)));
            }
        }
        if keep {
            for (start, end) in parts.gaps() {
                self.pages.overlay(inode, start, end, |at, bytes| drop(parts.parts.insert(at, bytes)));
            }
        }
        // Beyond what storage may hold, and above a cut that is not finished, there are only zeros.
        let zeros_from = stored.min(file.base.trim_from.unwrap_or(u64::MAX));
        let mut missing = Vec::new();
        for (start, end) in parts.gaps() {
            if start < zeros_from {
                missing.push((start, end.min(zeros_from)));
            }
            parts.put_zeros(start.max(zeros_from), end);
        }
        if missing.is_empty() {
            // Nothing was asked of storage: what the service said is the file's.
            self.finish_read(Pending { call: id, asked, inode, parts, own, seen: None });
        } else {
            let number = self.reads.next;
            self.reads.next += 1;
            self.reads.pending.insert(number, Pending { call: id, asked, inode, parts, own, seen });
            for (start, end) in missing {
                self.fetch_gap(inode, start, end, zeros_from, keep, number);
            }
        }
        if keep {
            self.read_ahead(inode, handle, offset, end, zeros_from);
        }
    }

    /// Other hosts may write from now on: what waits for bytes and has found some of them here begins anew.
    pub(crate) fn read_anew(&mut self) {
        for pending in std::mem::take(&mut self.reads.pending).into_values() {
            let (handle, offset, length) = pending.asked;
            self.touched.insert(pending.inode);
            self.start(pending.call, Call::Read { handle, offset, length });
        }
    }

    /// A read has all its bytes.
    fn finish_read(&mut self, pending: Pending) {
        self.touched.insert(pending.inode);
        let reply = pending.parts.reply();
        let file = pending.own.and_then(|own| Some((own, self.files.get_mut(&own.inode)?)));
        match file {
            Some((own, file)) if !file.gone => {
                let waiter = Waiter::Call(pending.call, reply);
                file.syncs.push(Sync { target: own.newest, data_only: false, waiter });
                self.touched.insert(own.inode);
            }
            _ => self.complete(pending.call, Ok(reply)),
        }
    }

    /// A read has all its bytes; without a cache the service has to say yet whether they go with the size.
    fn filled(&mut self, number: u64) {
        let Some(pending) = self.reads.pending.get(&number) else { return };
        if pending.seen.is_some() {
            return self.query(Some(pending.inode), Purpose::ReadCheck(number));
        }
        if let Some(pending) = self.reads.pending.remove(&number) {
            self.finish_read(pending);
        }
    }

    /// The service has said what the file is like after its bytes were read.
    pub(crate) fn read_checked(&mut self, number: u64, result: Result<Outcome, ClientError>) {
        let Some(pending) = self.reads.pending.remove(&number) else { return };
        self.touched.insert(pending.inode);
        let base = self.files.get(&pending.inode).map(|file| &file.base);
        let same = base.zip(pending.seen).is_some_and(|(base, seen)| seen.still(base));
        match result {
            Ok(_) if same => self.finish_read(pending),
            Ok(_) if self.waits(pending.call) => {
                let (handle, offset, length) = pending.asked;
                self.go_on_sized(pending.call, Call::Read { handle, offset, length });
            }
            Ok(_) => {}
            Err(error) => self.complete(pending.call, Err(error)),
        }
    }

    /// Asks for a gap of a pending read, or waits for whoever has asked already. Without a cache everyone asks for himself: what was
    /// asked for earlier may be older.
    fn fetch_gap(&mut self, inode: InodeId, start: u64, end: u64, stored: u64, keep: bool, number: u64) {
        let generation = self.files[&inode].base.generation;
        let mut at = start;
        while at < end {
            if let Some((fetch, until)) = self.reads.under_way(inode, generation, at).filter(|_| keep) {
                let until = until.min(end);
                self.reads.fetches.get_mut(&fetch).expect("indexed").waiting.push((number, at, until));
                at = until;
                continue;
            }
            let limit = end.min(at - at % self.config.request_bytes + self.config.request_bytes);
            let mut until = if keep { self.next_fetch_start(inode, at).min(limit) } else { limit };
            while until < limit && self.reads.under_way(inode, generation, until).is_none() {
                until = self.next_fetch_start(inode, until).min(limit);
            }
            let (from, to) = if keep { self.widen(inode, at, until, stored) } else { (at, until) };
            let fetch = self.fetch(inode, from, to, keep, false);
            // Storage that is asked for a range without a primary answers later, never at once.
            self.reads.fetches.get_mut(&fetch).expect("just made").waiting.push((number, at, until));
            at = until;
        }
    }

    fn next_fetch_start(&self, inode: InodeId, at: u64) -> u64 {
        let fetches = self.reads.by_inode.get(&inode).into_iter().flatten().map(|n| &self.reads.fetches[n]);
        fetches
            .flat_map(|f| f.stale.iter().map(|(_, end)| *end).chain([f.start]))
            .filter(|s| *s > at)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Whole blocks, and small files as a whole: what lies around is likely to be wanted next. Within one request.
    fn widen(&self, inode: InodeId, start: u64, end: u64, stored: u64) -> (u64, u64) {
        let request = start - start % self.config.request_bytes;
        let whole = stored <= WHOLE_BYTES && self.reads.by_inode.get(&inode).is_none_or(BTreeSet::is_empty);
        let (from, to) = if whole {
            (0, stored)
        } else {
            (start - start % BLOCK_BYTES, end.next_multiple_of(BLOCK_BYTES).min(stored))
        };
        (from.max(request), to.min(request + self.config.request_bytes).max(end))
    }

    /// Asks storage for bytes of one request-sized block.
    fn fetch(&mut self, inode: InodeId, start: u64, end: u64, keep: bool, ahead: bool) -> u64 {
        let volume = self.session.volume().clone();
        let file = &mut self.files.get_mut(&inode).expect("read through a handle");
        let mut stale = Vec::new();
        file.dirty.overlay(start, end, |at, bytes| stale.push((at, at + bytes.len() as u64)));
        overlay_sending(&file.sending, start, end, |at, bytes| stale.push((at, at + bytes.len() as u64)));
        let number = self.reads.next;
        self.reads.next += 1;
        let (generation, span) = (file.base.generation, self.session.span);
        let chunk = crate::data::chunk_key(&volume, &file.base, ChunkIndex(start / CHUNK_BYTES));
        let fetch = Fetch { inode, generation, start, end, stale, waiting: Vec::new(), ahead, keep, span };
        self.reads.fetches.insert(number, fetch);
        self.reads.by_inode.entry(inode).or_default().insert(number);
        let op = ChunkOp::Read { chunk, offset: (start % CHUNK_BYTES) as u32, length: (end - start) as u32 };
        self.data_start(chunk.index, inode, op, Vec::new(), DataPurpose::Fetch(number));
        number
    }

    /// Bytes have arrived: for readers, and to be kept.
    pub(crate) fn fetched(&mut self, number: u64, result: Result<Bytes, ClientError>) {
        let Some(fetch) = self.reads.fetches.remove(&number) else { return };
        if let Some(fetches) = self.reads.by_inode.get_mut(&fetch.inode) {
            fetches.remove(&number);
            if fetches.is_empty() {
                self.reads.by_inode.remove(&fetch.inode);
            }
        }
        if fetch.ahead {
            self.reads.ahead_bytes = self.reads.ahead_bytes.saturating_sub(fetch.end - fetch.start);
        }
        let stored;
        let mut got = Assembly { start: fetch.start, end: fetch.end, parts: BTreeMap::new() };
        match result {
            Ok(bytes) => {
                stored = fetch.start + bytes.len() as u64;
                if !bytes.is_empty() {
                    got.put(fetch.start, bytes);
                }
                got.put_zeros(stored, fetch.end);
            }
            Err(error) => {
                self.touched.insert(fetch.inode);
                for pending in
                    fetch.waiting.iter().filter_map(|(n, ..)| self.reads.pending.remove(n)).collect::<Vec<_>>()
                {
                    self.complete(pending.call, Err(error.clone()));
                }
                return;
            }
        }
        for (number, from, to) in &fetch.waiting {
            let Some(pending) = self.reads.pending.get_mut(number) else { continue };
            for (start, end) in pending.parts.gaps() {
                for (at, bytes) in slices(&got.parts, start.max(*from), end.min(*to)) {
                    pending.parts.put(at, bytes);
                }
            }
            if pending.parts.gaps().is_empty() {
                self.filled(*number);
            }
        }
        let same = self.files.get(&fetch.inode).is_some_and(|f| f.base.generation == fetch.generation);
        if fetch.keep && fetch.span == self.session.span && self.caching() && same {
            let fresh = complement(fetch.start, fetch.end, fetch.stale);
            for (start, end) in fresh {
                for (at, bytes) in slices(&got.parts, start, end) {
                    // Zeros share one buffer that is there anyway.
                    let held = if at >= stored { 0 } else { stored - fetch.start };
                    self.pages.insert(fetch.inode, at, bytes, held);
                }
            }
        }
    }

    /// Asks for what a stream will want next.
    fn read_ahead(&mut self, inode: InodeId, handle: crate::HandleId, offset: u64, end: u64, stored: u64) {
        let Some(stream) = self.handles.get_mut(&handle).map(|h| &mut h.stream) else { return };
        let goes_on = offset <= stream.next + DISORDER_BYTES && offset + DISORDER_BYTES >= stream.next;
        if !goes_on || (stream.next == 0 && offset > 0) {
            *stream = Stream { next: end, window: 0, ahead: end };
            return;
        }
        if end > stream.next {
            stream.next = end;
            stream.window =
                (stream.window * 2).clamp(WINDOW_BYTES_MIN, self.config.read_ahead_bytes.max(WINDOW_BYTES_MIN));
        }
        let request = self.config.request_bytes;
        let upto = (stream.next + stream.window).min(stored);
        let stream_window = stream.window;
        let mut at = stream.ahead.max(end);
        let budget = self.config.read_cache_bytes / 4;
        // Not before a good part of a request is wanted, so that requests stay large.
        if upto < at + (request / 2).min(stream.window) && upto < stored {
            return;
        }
        let generation = self.files[&inode].base.generation;
        while at < upto && self.reads.ahead_bytes < budget {
            let mut until = (at - at % request + request).min(stored);
            if stream_window < request {
                until = until.min(upto);
            }
            if let Some((_, until)) = self.reads.under_way(inode, generation, at) {
                at = until;
                continue;
            }
            if !self.pages.covers(inode, at, until) {
                self.fetch(inode, at, until, true, true);
                self.reads.ahead_bytes += until - at;
            }
            at = until;
        }
        if let Some(handle) = self.handles.get_mut(&handle) {
            handle.stream.ahead = at;
        }
    }
}

/// Calls `found` for each part of a range that is under way, in order.
fn overlay_sending(
    sending: &BTreeMap<u64, crate::file::Sending>,
    start: u64,
    end: u64,
    mut found: impl FnMut(u64, Bytes),
) {
    let first = sending.range(..=start).next_back().map_or(start, |(at, _)| *at);
    for (at, sending) in sending.range(first..end) {
        let mut at = *at;
        for piece in &sending.pieces {
            let piece_end = at + piece.len() as u64;
            let (from, to) = (start.max(at), end.min(piece_end));
            if from < to {
                found(from, piece.slice((from - at) as usize..(to - at) as usize));
            }
            at = piece_end;
        }
    }
}

/// The parts of a range, cut to it.
fn slices(parts: &BTreeMap<u64, Bytes>, start: u64, end: u64) -> Vec<(u64, Bytes)> {
    if start >= end {
        return Vec::new();
    }
    let first = parts.range(..=start).next_back().map_or(start, |(at, _)| *at);
    let cut = |(at, bytes): (&u64, &Bytes)| {
        let (from, to) = (start.max(*at), end.min(at + bytes.len() as u64));
        (from < to).then(|| (from, bytes.slice((from - at) as usize..(to - at) as usize)))
    };
    parts.range(first..end).filter_map(cut).collect()
}

/// What of a range is in none of `holes`.
fn complement(start: u64, end: u64, mut holes: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    holes.sort_unstable();
    let mut rest = Vec::new();
    let mut at = start;
    for (from, to) in holes {
        if at < from {
            rest.push((at, from));
        }
        at = at.max(to);
    }
    if at < end {
        rest.push((at, end));
    }
    rest
}
