//! A file's lane: publishing sizes and times, asking for room, truncating, zeroing; one at a time and in this order of need.

use crate::call::{Call, CallId};
use crate::control::{Published, Purpose};
use crate::core::ClientCore;
use crate::data::{DataPurpose, chunk_key};
use crate::error::ClientError;
use crate::file::{Change, File, Lane, Sending};
use crate::read::Content;
use crate::session::Caching;
use holdfast_types::limits::{CHUNK_BYTES, FILE_BYTES_MAX};
use holdfast_types::size::MIB;
use holdfast_types::{ChunkIndex, ChunkKey, InodeId, Sequence, ShardId};
use holdfast_wire::chunk::ChunkOp;
use holdfast_wire::metadata::Request;
use holdfast_wire::namespace::{FileKind, Mutation, NamespaceError, Outcome, Query, SetAttributes};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a growing file asks for beyond its end at the most; asked again when a quarter of it is left, or half of what there is.
const RESERVE_BYTES: u64 = 64 * MIB;
/// A stream publishes its size in between, so that its bound stays near the size.
const PUBLISH_BYTES: u64 = 512 * MIB;
/// How long an answer may be held while old bytes are being removed.
pub(crate) const TRIM_HOLD: Duration = Duration::from_secs(10);

impl ClientCore {
    pub(crate) fn mutate(&mut self, mutation: Mutation, purpose: Purpose) {
        self.control_start(ShardId::VOLUMES, Request::Mutate(mutation), purpose, None);
    }

    /// Asks for attributes.
    pub(crate) fn query(&mut self, inode: Option<InodeId>, purpose: Purpose) {
        let inode = inode.unwrap_or(InodeId::ROOT);
        self.control_start(ShardId::VOLUMES, Request::Query(Query::GetAttributes { inode }), purpose, None);
    }

    /// Starts the next change of a file's metadata, if one is due and may go.
    pub(crate) fn run_lane(&mut self, inode: InodeId) {
        let Some(file) = self.files.get_mut(&inode).filter(|f| f.lane.is_none()) else { return };
        if file.refresh {
            return self.ask_again(inode);
        }
        let stale = !file.gone && !file.is_fresh(file.wants_fresh);
        // The service hears first of bytes that may stand beyond the size, or it would not remove those that go.
        let touches_data = file.changes.front().is_some_and(Change::touches_data);
        let in_doubt = touches_data && !file.gone && (file.standing > 0 || !file.doubtful.is_empty());
        if !file.changes.is_empty() && (stale || !in_doubt) {
            return if stale { self.ask_again(inode) } else { self.run_change(inode) };
        }
        if file.gone {
            return self.fail_appends(inode, &ClientError::Stale);
        }
        if file.standing > file.limit() {
            let standing = file.standing;
            return self.reserve(inode, standing);
        }
        if file.standing > 0 {
            file.unpublished_end = file.unpublished_end.max(std::mem::take(&mut file.standing));
        }
        if !file.doubtful.is_empty() {
            return self.check_doubtful(inode);
        }
        if touches_data {
            return self.run_change(inode);
        }
        let (end, limit) = (file.dirty.end(), file.limit());
        if self.publish_due(inode) {
            self.publish(inode);
        } else if end > limit || self.reserve_ahead(inode) {
            self.reserve(inode, end);
        } else if stale {
            self.ask_again(inode);
        } else if self.files.get(&inode).is_some_and(|f| !f.appends.is_empty() && (self.caching() || !f.bound_held)) {
            self.begin_appends(inode);
        }
    }

    /// Asks what the file is like now.
    fn ask_again(&mut self, inode: InodeId) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.refresh = false;
        file.lane = Some(Lane::Refresh);
        file.freshening = file.wants_fresh;
        self.query(Some(inode), Purpose::Refresh(inode));
    }

    /// Asks storage what became of bytes that were written through while others cut the file.
    fn check_doubtful(&mut self, inode: InodeId) {
        let volume = self.session.volume().clone();
        let Some(file) = self.files.get_mut(&inode) else { return };
        if file.base.trim_from.is_some() {
            // Not before the cut is made everywhere.
            return self.await_trim(inode);
        }
        let chunk = |start: u64| chunk_key(&volume, &file.base, ChunkIndex(start / CHUNK_BYTES));
        let asked: BTreeMap<Sequence, ChunkKey> =
            file.doubtful.iter().filter_map(|(start, sent)| Some((sent.sequence?, chunk(*start)))).collect();
        file.lane = Some(Lane::Check { left: asked.len() });
        for (sequence, chunk) in asked {
            let purpose = DataPurpose::Check { inode, sequence };
            self.data_start(chunk.index, inode, ChunkOp::Made { chunk, sequence }, Vec::new(), purpose);
        }
    }

    /// Storage has said whether bytes in doubt stand. If so the file was cut before they were made, and they make it longer again; if not
    /// they went with the cut.
    pub(crate) fn checked(&mut self, inode: InodeId, sequence: Sequence, result: Result<bool, ClientError>) {
        self.touched.insert(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        if let Some(Lane::Check { left }) = &mut file.lane {
            *left -= 1;
            if *left == 0 {
                file.lane = None;
            }
        }
        let about = |(_, sent): &(u64, Sending)| sent.sequence == Some(sequence);
        let (known, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut file.doubtful).into_iter().partition(about);
        file.doubtful = rest;
        match result {
            Ok(true) => {
                for (start, sent) in known {
                    if sent.generation == file.base.generation {
                        file.standing = file.standing.max(sent.end);
                        file.unconfirmed.push((start, sent));
                    }
                }
            }
            Ok(false) => {}
            Err(error) => {
                if let Some(number) = known.iter().map(|(_, sent)| sent.number).min() {
                    self.lost(inode, number, error);
                }
            }
        }
    }

    // ---- publishing ----

    fn publish_due(&self, inode: InodeId) -> bool {
        let file = &self.files[&inode];
        let oldest = file.oldest_unsafe();
        let asked = file.syncs.iter().any(|s| {
            s.target < oldest && file.needs_publish(s.data_only) && (file.published_to < s.target || s.target == 0)
        });
        if asked {
            return true;
        }
        let delay = self.config.writeback_delay;
        if file.size_due(delay).is_some_and(|at| at <= self.now) && self.unbroken_end(inode) > file.base.size {
            return true;
        }
        if !file.is_clean() {
            let ahead = file.unpublished_end > file.base.size + PUBLISH_BYTES;
            return ahead && self.unbroken_end(inode) > file.base.size + PUBLISH_BYTES / 2;
        }
        if !self.caching() {
            return file.needs_publish(false) || file.bound_held;
        }
        let release = file.bound_held && !file.is_open() && file.closed_at + delay <= self.now;
        release || (file.needs_publish(false) && file.written_at + delay <= self.now)
    }

    /// End of the durable bytes before the first above the published size that are not. When that has waited for long, because the same
    /// bytes are written over and over: end of all durable bytes.
    fn unbroken_end(&self, inode: InodeId) -> u64 {
        let file = &self.files[&inode];
        if file.size_due(2 * self.config.writeback_delay).is_some_and(|at| at <= self.now) {
            return file.unpublished_end;
        }
        let size = file.base.size;
        let sending = file.sending.iter().find(|(_, sending)| sending.end > size).map(|(start, _)| *start);
        let dirty = file.dirty.start_above(size);
        sending.into_iter().chain(dirty).fold(file.unpublished_end, u64::min)
    }

    fn publish(&mut self, inode: InodeId) {
        let keep = self.caching();
        let Some(file) = self.files.get(&inode) else { return };
        let release = file.bound_held && (!keep || !file.is_open()) && self.may_release(file);
        self.publish_with(inode, release);
    }

    /// Whether all that stands beyond the size once the file is published is nothing of this host's.
    fn may_release(&self, file: &File) -> bool {
        let published = if self.caching() { file.stored_end() } else { file.unpublished_end };
        file.is_clean() && !file.reaches_beyond(published)
    }

    fn publish_with(&mut self, inode: InodeId, release: bool) {
        let keep = self.caching();
        let oldest = self.files[&inode].oldest_unsafe();
        let asked = self.files[&inode].syncs.iter().any(|s| s.target < oldest);
        let unbroken = if asked { u64::MAX } else { self.unbroken_end(inode) };
        let Some(file) = self.files.get_mut(&inode) else { return };
        // What others have made of the size meanwhile is theirs to say.
        let known = if keep { file.base.size } else { 0 };
        let published = Published {
            covers: oldest - 1,
            size: file.unpublished_end.min(unbroken).max(known),
            mtime: file.mtime.unwrap_or(file.base.mtime),
            clear_set_ids: file.clear_set_ids,
            sparse: file.sparse,
        };
        file.lane = Some(Lane::Publish { release });
        file.freshening = file.wants_fresh;
        file.confirming = file.unconfirmed.len();
        file.confirm_to = if unbroken < file.unpublished_end { unbroken } else { u64::MAX };
        let mutation = Mutation::Publish {
            inode,
            generation: file.base.generation,
            size: published.size,
            mtime: published.mtime,
            release,
            clear_set_ids: published.clear_set_ids,
            sparse: published.sparse,
        };
        self.mutate(mutation, Purpose::Publish(inode, published));
    }

    pub(crate) fn published(&mut self, inode: InodeId, published: Published, result: Result<Outcome, ClientError>) {
        self.touched.insert(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        let released = matches!(file.lane.take(), Some(Lane::Publish { release: true }));
        if released && !matches!(result, Err(ClientError::Namespace(NamespaceError::Stale))) {
            // What the service found stale it did not do, and that goes for the release.
            file.bound_held = false;
        }
        match result {
            Ok(outcome) => {
                file.fresh_to = file.freshening;
                let again = match &outcome {
                    Outcome::Attributes { attributes, .. } => file.confirm(attributes),
                    _ => None,
                };
                let covers = again.map_or(published.covers, |number| published.covers.min(number - 1));
                file.published_to = file.published_to.max(covers);
                file.clear_set_ids &= !published.clear_set_ids;
                file.sparse &= !published.sparse;
                if file.mtime == Some(published.mtime) {
                    file.mtime = None;
                }
                if file.unpublished_end <= published.size {
                    file.unpublished_end = 0;
                }
                file.unpublished_since = self.now;
                if again.is_some() {
                    file.unpublished_end = 0;
                }
            }
            Err(ClientError::Namespace(NamespaceError::Stale)) if !file.unconfirmed.is_empty() => {
                // Another host has cut the file at the same time, and our bytes perhaps with it: what it is like now tells which.
                file.unpublished_end = 0;
                file.refresh = true;
            }
            Err(ClientError::Namespace(NamespaceError::NotFound | NamespaceError::Stale)) => {
                // The inode is gone, or another host has cut the file at the same time, and our bytes with it.
                let alone = file.unpublished_end > file.base.size && self.session.caching == Caching::On;
                let Some(file) = self.files.get_mut(&inode) else { return };
                file.drop_unpublished();
                file.refresh = true;
                if alone && file.is_open() {
                    self.lost(inode, 0, ClientError::Stale);
                }
            }
            Err(error) => {
                file.drop_unpublished();
                self.lost(inode, 0, error);
            }
        }
    }

    /// The inode is not there any more.
    pub(crate) fn vanished(&mut self, inode: InodeId) {
        self.names.remove(inode);
        self.pages.remove_file(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.gone = true;
        file.unverified = false;
        file.bound_held = false;
        file.dirty.cut(0, u64::MAX);
        file.unconfirmed.clear();
        file.doubtful.clear();
        file.standing = 0;
        file.drop_unpublished();
        self.recount(inode);
        self.touched.insert(inode);
        self.room_made();
    }

    // ---- room to write ----

    /// Whether a growing file nears the end of what it was promised.
    fn reserve_ahead(&self, inode: InodeId) -> bool {
        let file = &self.files[&inode];
        let (end, known) = (file.dirty.end(), file.limit().max(file.asked_bound));
        self.caching()
            && file.bound_held
            && end > file.base.size
            && end + (RESERVE_BYTES / 4).min(known / 2) > known
            && file.limit() < FILE_BYTES_MAX
    }

    fn reserve(&mut self, inode: InodeId, end: u64) {
        // As much again: what is reserved has to be cleaned up with a file that goes, and most files stay small.
        let ahead = if self.caching() { end.clamp(CHUNK_BYTES, RESERVE_BYTES) } else { 0 };
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.lane = Some(Lane::Reserve);
        file.freshening = file.wants_fresh;
        let bound = (end + ahead).min(FILE_BYTES_MAX);
        (file.asked_bound, file.asked_least) = (bound, end);
        let mutation = Mutation::Reserve { inode, generation: file.base.generation, bound, least: end };
        let purpose = Purpose::Reserve(inode);
        self.control_start(ShardId::VOLUMES, Request::Mutate(mutation), purpose, Some(TRIM_HOLD));
    }

    pub(crate) fn reserved(&mut self, inode: InodeId, result: Result<Outcome, ClientError>) {
        self.touched.insert(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.lane = None;
        let short = file.base.size_bound < file.asked_least;
        match result {
            Ok(_) if !short => {
                file.hold_bound();
                file.fresh_to = file.freshening;
            }
            Ok(_) if self.session.caching == Caching::Off => {
                // Another host has cut the file since, and our room with it.
                file.bound_held = false;
                file.refresh = true;
            }
            Ok(_) => {
                file.hold_bound();
                self.no_room(inode, ClientError::Protocol { detail: "less room was given than asked for" });
            }
            Err(ClientError::Namespace(NamespaceError::NotFound)) => self.vanished(inode),
            Err(ClientError::Namespace(NamespaceError::Stale)) => {
                file.refresh = true;
                file.standing = 0;
            }
            Err(error) => {
                file.standing = 0;
                self.no_room(inode, error);
            }
        }
    }

    /// What was written beyond the bound can never be stored.
    fn no_room(&mut self, inode: InodeId, error: ClientError) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        let (limit, number) = (file.limit(), file.oldest_unsafe());
        if file.dirty.end() > limit {
            file.dirty.cut(limit, u64::MAX);
            self.recount(inode);
            self.lost(inode, number, error);
            self.room_made();
        }
    }

    pub(crate) fn refreshed(&mut self, inode: InodeId, result: Result<Outcome, ClientError>) {
        self.touched.insert(inode);
        if let Some(file) = self.files.get_mut(&inode) {
            file.lane = None;
        }
        match result {
            Ok(_) => {
                if let Some(file) = self.files.get_mut(&inode) {
                    file.fresh_to = file.freshening;
                    // Unless this was asked before caching began: then it is asked again.
                    file.unverified &= file.refresh;
                    (file.confirming, file.confirm_to) = (file.unconfirmed.len(), u64::MAX);
                    let now = file.base.clone();
                    file.confirm(&now);
                }
            }
            Err(ClientError::Namespace(_)) => self.vanished(inode),
            Err(error) => {
                if let Some(file) = self.files.get_mut(&inode) {
                    file.refresh |= file.unverified;
                }
                self.lost(inode, 0, error);
            }
        }
    }

    /// Waits until bytes of a truncation are removed, before anything is written there.
    pub(crate) fn await_trim(&mut self, inode: InodeId) {
        let Some(file) = self.files.get_mut(&inode).filter(|f| !f.awaiting_trim) else { return };
        file.awaiting_trim = true;
        let request = Request::Query(Query::AwaitTrim { inode });
        self.control_start(ShardId::VOLUMES, request, Purpose::Trim(inode), Some(TRIM_HOLD));
    }

    pub(crate) fn trimmed(&mut self, inode: InodeId, result: Result<Outcome, ClientError>) {
        self.touched.insert(inode);
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.awaiting_trim = false;
        match result {
            Ok(_) => {}
            Err(ClientError::Namespace(NamespaceError::NotFound | NamespaceError::Stale)) => self.vanished(inode),
            Err(error) => {
                let (number, trim) = (file.oldest_unsafe(), file.base.trim_from.unwrap_or(u64::MAX));
                file.dirty.cut(trim, u64::MAX);
                self.recount(inode);
                self.lost(inode, number, error);
            }
        }
    }

    // ---- truncating, zeroing, setting ----

    pub(crate) fn set_attributes(&mut self, id: CallId, inode: InodeId, set: SetAttributes) {
        if !self.files.contains_key(&inode) && set.size.is_some() {
            // A size meets buffered bytes: it needs a file, even if nobody has it open.
            match self.names.attributes_at(inode) {
                Some((attributes, at)) if self.caching() => {
                    if attributes.kind == FileKind::File {
                        self.ensure_file(&attributes, at);
                    }
                }
                _ => {
                    let call = Call::SetAttributes { inode, set };
                    return self.query(Some(inode), Purpose::Resume(id, Box::new(call)));
                }
            }
        }
        self.set_attributes_known(id, inode, set);
    }

    /// As above, once the inode is known if it must be.
    pub(crate) fn set_attributes_known(&mut self, id: CallId, inode: InodeId, set: SetAttributes) {
        match self.files.get_mut(&inode) {
            Some(file) => {
                file.changes.push_back(Change::Set { id, set, quiet: false });
                self.touched.insert(inode);
            }
            None => self.mutate(Mutation::SetAttributes { inode, set }, Purpose::Call(id)),
        }
    }

    fn run_change(&mut self, inode: InodeId) {
        let Some(file) = self.files.get(&inode) else { return };
        let touches_data = file.changes.front().is_some_and(Change::touches_data);
        if touches_data && !file.sending.is_empty() {
            return;
        }
        let grows = match file.changes.front() {
            Some(Change::Set { set: SetAttributes { size: Some(size), .. }, .. }) => *size >= file.size(),
            _ => false,
        };
        if grows && file.bound_held && self.may_release(file) {
            // With no bound held, nothing above the size has to be removed; otherwise the service removes what may be there.
            return self.publish_with(inode, true);
        }
        match self.files.get_mut(&inode).and_then(|file| file.changes.pop_front()) {
            Some(Change::Set { id, set, quiet }) => self.run_set(id, inode, set, quiet),
            Some(Change::Zero { id, offset, length, extend }) => self.run_zero(id, inode, offset, length, extend),
            None => {}
        }
    }

    fn run_set(&mut self, id: CallId, inode: InodeId, set: SetAttributes, quiet: bool) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.lane =
            Some(if set.size.is_some() { Lane::Change { left: 1 } } else { Lane::Set { mode: set.mode.is_some() } });
        if set.size.is_some() || set.mtime.is_some() {
            // What is set now is later than what was written before.
            file.mtime = None;
        }
        if let Some(size) = set.size {
            file.sparse &= size > 0;
            file.dirty.cut(size, u64::MAX);
            file.cut_unconfirmed(size, u64::MAX);
            file.standing = file.standing.min(size);
            self.pages.remove(inode, size, u64::MAX);
            if self.caching() {
                self.reads.replaced(inode, size, u64::MAX, &Content::Zeros, None);
            } else {
                self.reads.overwritten(inode, size, u64::MAX);
            }
            self.recount(inode);
            self.room_made();
        }
        self.mutate(Mutation::SetAttributes { inode, set }, Purpose::Set { id, inode, quiet });
    }

    /// `quiet`: the attributes are nobody's reply.
    pub(crate) fn set_answered(
        &mut self,
        id: CallId,
        inode: InodeId,
        quiet: bool,
        result: Result<Outcome, ClientError>,
    ) {
        self.touched.insert(inode);
        if let Some(file) = self.files.get_mut(&inode) {
            let lane = file.lane.take();
            if result.is_ok() && matches!(lane, Some(Lane::Set { mode: true })) {
                // The mode is what it was set to. Bytes that were written before took the set-id bits of the old one.
                file.clear_set_ids = false;
            }
            if result.is_ok() && matches!(lane, Some(Lane::Change { .. })) {
                // The size is the service's now, whatever was stored before: above it all goes, below it is covered.
                file.unpublished_end = 0;
                if file.base.size_bound > 0 {
                    file.hold_bound();
                }
            }
        }
        self.call_answered(id, if quiet { result.map(|_| Outcome::Done) } else { result });
    }
}
