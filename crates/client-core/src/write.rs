//! Writing: the buffer, when its bytes are sent, who waits for them.
//!
//! While caching, a write is answered when its bytes lie in the buffer. Otherwise it is written through: the same path, but the call
//! waits until its bytes are durable and published.

use crate::call::{Call, CallId, Durability, Reply};
use crate::core::{ClientCore, Timer};
use crate::data::DataPurpose;
use crate::effect::Notice;
use crate::error::ClientError;
use crate::file::{Lane, Sending, Sync, Waiter, has_set_ids};
use crate::read::Content;
use crate::session::State;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES, FILE_BYTES_MAX};
use holdfast_types::{ChunkIndex, InodeId};
use holdfast_wire::chunk::ChunkOp;
use holdfast_wire::namespace::NamespaceError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Dirty segments looked at in one go when the oldest cannot be sent yet.
const LOOK_MAX: usize = 256;

/// The write buffer of a mount, as a whole.
pub(crate) struct Buffer {
    /// Dirty bytes and bytes under way, with what keeping them costs.
    pub bytes: u64,
    pub in_flight_bytes: u64,
    pub in_flight_requests: usize,
    /// Files with something to send for which there was no room under way.
    waiting: BTreeSet<InodeId>,
    /// Of `waiting`, who went last.
    cursor: InodeId,
    /// Writes that wait for room in the buffer.
    queue: VecDeque<(CallId, Call)>,
    /// `SyncAll` calls: files to go, first error.
    all: BTreeMap<CallId, (usize, Option<ClientError>)>,
    /// Files with dirty bytes.
    dirty: BTreeSet<InodeId>,
    /// More than half full: every file has been told to send what it has.
    pressed: bool,
}

impl Buffer {
    pub fn new() -> Self {
        Self {
            bytes: 0,
            in_flight_bytes: 0,
            in_flight_requests: 0,
            waiting: BTreeSet::new(),
            cursor: InodeId(0),
            queue: VecDeque::new(),
            all: BTreeMap::new(),
            dirty: BTreeSet::new(),
            pressed: false,
        }
    }

    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// A file is not in use any more.
    pub fn forget(&mut self, inode: InodeId) {
        self.waiting.remove(&inode);
        self.dirty.remove(&inode);
    }
}

/// Writes that hear of bytes that were lost, until somebody synchronizes or closes the file and hears it, too. One is not enough: the
/// kernel makes of one write(2) several, and of an error in their middle a short write, so that nobody learns of it. And not all: who
/// neither synchronizes nor closes must be able to go on.
const WRITES_REFUSED: u8 = 2;

impl ClientCore {
    /// Counts what a file holds in the buffer.
    pub(crate) fn recount(&mut self, inode: InodeId) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        let cost = file.cost();
        self.buffer.bytes = self.buffer.bytes - file.counted + cost;
        file.counted = cost;
        if file.dirty.is_empty() {
            self.buffer.dirty.remove(&inode);
        } else {
            self.buffer.dirty.insert(inode);
        }
    }

    fn pressed(&self) -> bool {
        self.buffer.bytes > self.config.write_buffer_bytes / 2
    }

    /// Whether dirty bytes are sent without delay.
    pub(crate) fn write_through(&self) -> bool {
        !self.caching()
    }

    // ---- calls ----

    pub(crate) fn write(&mut self, id: CallId, call: Call) {
        let Call::Write { handle, ref data, .. } = call else { return };
        let Some(open) = self.handles.get(&handle) else { return self.complete(id, Err(ClientError::BadHandle)) };
        let (inode, append) = (open.inode, open.mode.append);
        let length = data.len() as u64;
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        if let Some(error) = file.error.clone()
            && file.writes_refused < WRITES_REFUSED
        {
            file.writes_refused += 1;
            return self.complete(id, Err(error));
        }
        if self.config.read_only {
            return self.complete(id, Err(NamespaceError::ReadOnly.into()));
        }
        if file.is_changing() {
            return file.parked.push((id, call));
        }
        let room = self.buffer.bytes == 0 || self.buffer.bytes + length <= self.config.write_buffer_bytes;
        if !room || !self.buffer.queue.is_empty() {
            self.buffer.queue.push_back((id, call));
            return;
        }
        if append && self.write_through() {
            self.touched.insert(inode);
            return self.files.get_mut(&inode).expect("as above").appends.push((id, call));
        }
        self.write_now(id, call);
    }

    pub(crate) fn write_now(&mut self, id: CallId, call: Call) {
        let Call::Write { handle, offset, data, clear_set_ids } = call else { return };
        let Some(open) = self.handles.get(&handle) else { return self.complete(id, Err(ClientError::BadHandle)) };
        let (inode, mode) = (open.inode, open.mode);
        let stamp = self.stamp();
        let now = self.now;
        let through = self.write_through();
        let file = self.files.get_mut(&inode).expect("a handle keeps its file");
        let offset = if mode.append { file.size() } else { offset };
        let length = data.len() as u64;
        let reply = Reply::Written { offset, length: length as u32 };
        if length == 0 {
            return self.complete(id, Ok(reply));
        }
        let end = match offset.checked_add(length).filter(|end| *end <= FILE_BYTES_MAX) {
            Some(end) => end,
            None => return self.complete(id, Err(NamespaceError::TooLarge.into())),
        };
        if file.gone {
            return self.complete(id, Err(ClientError::Stale));
        }
        let number = file.number_next;
        file.number_next += 1;
        let content = Content::Bytes(offset, data.clone());
        file.sparse |= !file.base.sparse && offset > file.size().next_multiple_of(BLOCK_BYTES);
        file.dirty.insert(offset, data, number, now);
        file.mtime = Some(stamp);
        file.written_at = now;
        file.clear_set_ids |= clear_set_ids && has_set_ids(&file.base);
        if through && !mode.append {
            // Another host may have truncated the file since we heard of it.
            file.wants_fresh = number;
        }
        match (through, mode.durable) {
            (false, Durability::Buffered) => self.complete(id, Ok(reply)),
            (false, Durability::Data) => {
                file.syncs.push(Sync { target: number, data_only: true, waiter: Waiter::Call(id, reply) });
            }
            (true, _) | (false, Durability::Full) => {
                file.syncs.push(Sync { target: number, data_only: false, waiter: Waiter::Call(id, reply) });
            }
        }
        if self.shares() {
            self.reads.overwritten(inode, offset, end);
        } else {
            self.reads.replaced(inode, offset, end, &content, through.then_some(number));
        }
        self.recount(inode);
        self.touched.insert(inode);
        if self.pressed() && !std::mem::replace(&mut self.buffer.pressed, true) {
            self.touched.extend(self.buffer.dirty.iter().copied());
        }
    }

    pub(crate) fn fsync(&mut self, id: CallId, inode: InodeId, data_only: bool) {
        let Some(file) = self.files.get_mut(&inode) else { return self.complete(id, Ok(Reply::Done)) };
        if let Some(error) = file.error.take() {
            return self.complete(id, Err(error));
        }
        let target = file.number_next - 1;
        file.syncs.push(Sync { target, data_only, waiter: Waiter::Call(id, Reply::Done) });
        self.touched.insert(inode);
    }

    pub(crate) fn sync_all(&mut self, id: CallId) {
        let mut count = 0;
        for file in self.files.values_mut().filter(|f| !f.is_clean() || f.needs_publish(false)) {
            file.syncs.push(Sync { target: file.number_next - 1, data_only: false, waiter: Waiter::All(id) });
            self.touched.insert(file.inode);
            count += 1;
        }
        if count == 0 {
            self.complete(id, Ok(Reply::Done));
        } else {
            self.buffer.all.insert(id, (count, None));
        }
    }

    // ---- sending ----

    /// Sends what of a file is due and may go.
    pub(crate) fn send_dirty(&mut self, inode: InodeId) {
        while let Some((start, end)) = self.next_run(inode) {
            if !self.may_send() {
                self.buffer.waiting.insert(inode);
                return;
            }
            self.send_run(inode, start, end);
        }
    }

    /// The next run of a file to be sent, if there is one: within one request, not overlapping what is under way.
    fn next_run(&mut self, inode: InodeId) -> Option<(u64, u64)> {
        let (all, now, delay) = (self.write_through() || self.pressed(), self.now, self.config.writeback_delay);
        let file = self.files.get(&inode)?;
        if file.holds_back() || file.gone || file.refresh {
            return None;
        }
        let (target, limit, trim) = (file.sync_target(), file.limit(), file.base.trim_from);
        let mut wait_trim = false;
        let mut found = None;
        let request_bytes = self.config.request_bytes;
        let mut may_go = |start: u64, end: u64| {
            let end = end.min(limit);
            if trim.is_some_and(|trim| end > trim) {
                wait_trim = true;
                return None;
            }
            (start < end && !file.overlaps_sending(start, end)).then_some((start, end))
        };
        let all_fresh = file.is_fresh(file.wants_fresh);
        for block in file.dirty.full_blocks().take(LOOK_MAX).filter(|_| all_fresh) {
            // Cut at the limit only where somebody waits; a whole block waits for its reservation.
            if block + request_bytes <= limit {
                found = may_go(block, block + request_bytes);
                if found.is_some() {
                    break;
                }
            }
        }
        if found.is_none() {
            let due = |number: u64, since| file.is_fresh(number) && (all || number <= target || since + delay <= now);
            for (_, _, at) in file.dirty.by_age().take(LOOK_MAX).take_while(|(number, since, _)| due(*number, *since)) {
                // What others may have cut since was asked for before the newest of these bytes were written: those wait.
                let fresh = |oldest, newest| file.are_fresh(oldest, newest);
                let Some((start, end)) = file.dirty.run_around(at, fresh) else { continue };
                found = may_go(start, end);
                if found.is_some() {
                    break;
                }
            }
        }
        if wait_trim {
            self.await_trim(inode);
        }
        found
    }

    fn send_run(&mut self, inode: InodeId, start: u64, end: u64) {
        let span = self.session.span;
        let volume = self.session.volume().clone();
        let file = self.files.get_mut(&inode).expect("just looked at");
        let taken = file.dirty.take(start, end);
        let chunk = crate::data::chunk_key(&volume, &file.base, ChunkIndex(start / CHUNK_BYTES));
        let op = ChunkOp::Write { chunk, offset: (start % CHUNK_BYTES) as u32, sums: Vec::new() };
        let pieces = taken.pieces.clone();
        let generation = file.base.generation;
        let crate::extents::Taken { end: run_end, pieces: kept, number, since } = taken;
        let sequence = None;
        file.send(start, Sending { end: run_end, pieces: kept, number, since, span, generation, sequence });
        self.buffer.in_flight_bytes += end - start;
        self.buffer.in_flight_requests += 1;
        self.recount(inode);
        let sequence = self.data_start(chunk.index, inode, op, pieces, DataPurpose::Flush { inode, start });
        if let Some(sending) = self.files.get_mut(&inode).and_then(|file| file.sending.get_mut(&start)) {
            sending.sequence = sequence;
        }
    }

    /// Bytes of a file are durable, or never will be.
    pub(crate) fn flushed(&mut self, inode: InodeId, start: u64, result: Result<(), ClientError>) {
        let keep = self.caching();
        let span = self.session.span;
        let Some(file) = self.files.get_mut(&inode) else { return };
        let Some(sending) = file.sent(start) else { return };
        self.buffer.in_flight_bytes -= sending.end - start;
        self.buffer.in_flight_requests -= 1;
        match result {
            Ok(()) if file.gone => {}
            Ok(()) if sending.sequence.is_some() => {
                if file.counts(sending.generation, sending.end) {
                    if file.unpublished_end <= file.base.size {
                        file.unpublished_since = sending.since;
                    }
                    file.unpublished_end = file.unpublished_end.max(sending.end);
                }
                self.pages.remove(inode, start, sending.end);
                file.unconfirmed.push((start, sending));
            }
            // Truncated elsewhere meanwhile, and these bytes with it. Their end must not become that of what was written since.
            Ok(()) if !file.counts(sending.generation, sending.end) => self.pages.remove(inode, start, sending.end),
            Ok(()) => {
                if file.unpublished_end <= file.base.size {
                    file.unpublished_since = sending.since;
                }
                file.unpublished_end = file.unpublished_end.max(sending.end);
                if keep && sending.span == span {
                    let mut at = start;
                    for piece in sending.pieces {
                        let length = piece.len() as u64;
                        self.pages.insert(inode, at, piece, length);
                        at += length;
                    }
                } else {
                    self.pages.remove(inode, start, sending.end);
                }
            }
            Err(error) => {
                self.pages.remove(inode, start, sending.end);
                self.lost(inode, sending.number, error);
            }
        }
        self.recount(inode);
        self.touched.insert(inode);
        self.room_made();
    }

    /// A file that has something to send and may, if there is one: each in its turn.
    pub(crate) fn next_waiting(&mut self) -> Option<InodeId> {
        if self.buffer.waiting.is_empty() || !self.may_send() {
            return None;
        }
        let after = (std::ops::Bound::Excluded(self.buffer.cursor), std::ops::Bound::Unbounded);
        let inode = *self.buffer.waiting.range(after).next().or(self.buffer.waiting.first())?;
        self.buffer.waiting.remove(&inode);
        self.buffer.cursor = inode;
        Some(inode)
    }

    fn may_send(&self) -> bool {
        self.buffer.in_flight_bytes < self.config.flush_bytes_in_flight
            && self.buffer.in_flight_requests < self.config.flush_requests_in_flight
    }

    /// There is room in the buffer for writers that wait.
    pub(crate) fn room_made(&mut self) {
        self.buffer.pressed &= self.pressed();
        while let Some((_, Call::Write { data, .. })) = self.buffer.queue.front() {
            let room =
                self.buffer.bytes == 0 || self.buffer.bytes + data.len() as u64 <= self.config.write_buffer_bytes;
            if !room {
                return;
            }
            let rest = std::mem::take(&mut self.buffer.queue);
            let mut rest = rest.into_iter();
            if let Some((id, call)) = rest.next() {
                self.start(id, call);
            }
            self.buffer.queue.extend(rest);
        }
    }

    /// Bytes of a file cannot be stored: whoever waits for them learns it, or the next write, fsync or close does.
    pub(crate) fn lost(&mut self, inode: InodeId, number: u64, error: ClientError) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        let (told, rest): (Vec<Sync>, Vec<Sync>) =
            std::mem::take(&mut file.syncs).into_iter().partition(|sync| sync.target >= number);
        file.syncs = rest;
        // A caller that was interrupted hears nothing any more, and who synchronizes all files need not be one that uses this one.
        let heard = told.iter().any(|sync| matches!(sync.waiter, Waiter::Call(id, _) if self.waits(id)));
        if !heard && let Some(file) = self.files.get_mut(&inode) {
            (file.error, file.writes_refused) = (Some(error.clone()), 0);
        }
        for sync in told {
            self.sync_done(sync.waiter, Err(error.clone()));
        }
        self.notify(Notice::WriteLost { inode, error });
    }

    /// Answers those whose writes are durable and published.
    pub(crate) fn finish_syncs(&mut self, inode: InodeId) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        if file.syncs.is_empty() || matches!(file.lane, Some(Lane::Change { .. })) {
            return;
        }
        let oldest = file.oldest_unsafe();
        let (full, data) = (file.needs_publish(false), file.needs_publish(true));
        let published = file.published_to;
        let is_done = |sync: &Sync| {
            let open = if sync.data_only { data } else { full };
            sync.target < oldest && (!open || published >= sync.target && sync.target > 0)
        };
        let (done, rest): (Vec<Sync>, Vec<Sync>) = std::mem::take(&mut file.syncs).into_iter().partition(is_done);
        file.syncs = rest;
        for sync in done {
            self.sync_done(sync.waiter, Ok(()));
        }
    }

    pub(crate) fn sync_done(&mut self, waiter: Waiter, result: Result<(), ClientError>) {
        match waiter {
            Waiter::Call(id, reply) => self.complete(id, result.map(|()| reply)),
            Waiter::Rename(id, call) => match result {
                Ok(()) if self.waits(id) => self.remove_name(id, *call),
                Ok(()) => {}
                Err(error) => self.complete(id, Err(error)),
            },
            Waiter::Acl(id, call) => match result {
                Ok(()) => self.start(id, *call),
                Err(error) => self.complete(id, Err(error)),
            },
            Waiter::All(id) => {
                let Some((left, error)) = self.buffer.all.get_mut(&id) else { return };
                *left -= 1;
                *error = error.take().or(result.err());
                if *left == 0 {
                    let (_, error) = self.buffer.all.remove(&id).expect("just seen");
                    self.complete(id, error.map_or(Ok(Reply::Done), Err));
                }
            }
        }
    }

    // ---- one look at a file ----

    /// Does what is due for a file and may be done now.
    pub(crate) fn pump(&mut self, inode: InodeId) {
        if matches!(self.session.state, State::Over { .. }) {
            return;
        }
        if let Some(file) = self.files.get_mut(&inode)
            && file.gone
            && !file.dirty.is_empty()
        {
            file.dirty.cut(0, u64::MAX);
            self.recount(inode);
        }
        self.send_dirty(inode);
        self.run_lane(inode);
        self.finish_syncs(inode);
        self.wake_parked(inode);
        self.retire(inode);
        self.schedule(inode);
    }

    /// Calls that waited for a change begin anew.
    fn wake_parked(&mut self, inode: InodeId) {
        let Some(file) = self.files.get_mut(&inode).filter(|f| !f.is_changing() && !f.closing) else { return };
        for (id, call) in std::mem::take(&mut file.parked) {
            self.start(id, call);
        }
    }

    pub(crate) fn file_due(&mut self, inode: InodeId) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.due = None;
            self.touched.insert(inode);
        }
    }

    /// Sets a timer for whatever of a file is due later.
    fn schedule(&mut self, inode: InodeId) {
        let delay = self.config.writeback_delay;
        let caching = self.caching();
        let Some(file) = self.files.get_mut(&inode) else { return };
        let flush = file.dirty.oldest().map(|(_, since, _)| since + delay);
        let publish = (file.is_clean() && file.needs_publish(false)).then(|| file.written_at + delay);
        let release = (!file.is_open() && file.bound_held).then(|| file.closed_at + delay);
        let dues = [flush, publish, release, file.size_due(delay), file.size_due(2 * delay)];
        // What is overdue waits for something else, which will look at the file again.
        let Some(at) = dues.into_iter().flatten().filter(|at| *at > self.now).min() else { return };
        if caching && file.due.is_none_or(|due| at < due) {
            file.due = Some(at);
            self.timer(at, Timer::File(inode));
        }
    }
}
