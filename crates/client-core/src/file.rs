//! One file that is open, dirty or being changed: everything that is known of it here and not yet at the service.
//!
//! Invariants:
//! * `sending` holds ranges that do not overlap; nothing dirty that overlaps one is sent before it is answered.
//! * The size that callers see is the service's, or the end of what was written here and not yet published, if that is more.
//! * At most one change of the file's metadata (publish, reserve, truncate, set) is under way: its *lane*.

use crate::call::{Call, CallId, OpenMode, Reply};
use crate::error::ClientError;
use crate::extents::{Extents, SEGMENT_OVERHEAD};
use bytes::Bytes;
use holdfast_types::{Generation, InodeId, Instant, LogIndex, Sequence, Timestamp};
use holdfast_wire::namespace::{Attributes, FileKind, SetAttributes, without_set_ids};
use holdfast_wire::open::Access;
use std::collections::{BTreeMap, VecDeque};

/// An open handle.
pub(crate) struct Handle {
    pub inode: InodeId,
    pub mode: OpenMode,
    pub stream: crate::read::Stream,
}

/// Bytes under way to storage.
pub(crate) struct Sending {
    pub end: u64,
    pub pieces: Vec<Bytes>,
    pub number: u64,
    /// When the oldest write in it was made.
    pub since: Instant,
    /// Span of caching in which they were sent: only then they may be kept as clean afterwards.
    pub span: u64,
    /// Content of the file to which they were sent.
    pub generation: Generation,
    /// Of the request, if it was contended.
    pub sequence: Option<Sequence>,
}

/// Who waits for a synchronization.
#[allow(clippy::large_enum_variant, reason = "few wait at a time, and they are moved, not copied")]
#[derive(Clone, Debug)]
pub(crate) enum Waiter {
    /// A call, and its reply.
    Call(CallId, Reply),
    /// One of the files of `Call::SyncAll`.
    All(CallId),
    /// A rename of the file over another: it is made then.
    Rename(CallId, Box<Call>),
    /// A change of the access list, which says what the mode's bits mean: what was written before takes set-id bits of the mode before.
    Acl(CallId, Box<Call>),
}

/// Somebody waits until every write up to a number is durable and published.
pub(crate) struct Sync {
    pub target: u64,
    pub data_only: bool,
    pub waiter: Waiter,
}

/// A change that must not meet writes under way.
pub(crate) enum Change {
    /// `quiet`: part of another call, whose reply the attributes are not.
    Set {
        id: CallId,
        set: SetAttributes,
        quiet: bool,
    },
    Zero {
        id: CallId,
        offset: u64,
        length: u64,
        extend: bool,
    },
}

impl Change {
    /// Whether it changes what bytes the file has.
    pub fn touches_data(&self) -> bool {
        match self {
            Self::Set { set, .. } => set.size.is_some(),
            Self::Zero { .. } => true,
        }
    }
}

/// What the file's lane is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Publish {
        release: bool,
    },
    Reserve,
    Refresh,
    /// A change of attributes that leaves the bytes alone.
    Set {
        /// The mode is one of them.
        mode: bool,
    },
    /// Storage is asked what became of bytes in doubt. Counts the requests under way.
    Check {
        left: usize,
    },
    /// A change of bytes: nothing is written, read or opened meanwhile. Counts the requests under way.
    Change {
        left: usize,
    },
}

/// A content of which nothing was cut: what a read began with.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub generation: Generation,
    pub cuts: u64,
    /// The read ends here because the file did, by what was known before it began: it must still.
    pub end: Option<u64>,
}

impl Seen {
    pub fn now(base: &Attributes) -> Self {
        Self { generation: base.generation, cuts: base.cuts, end: None }
    }

    pub fn still(&self, now: &Attributes) -> bool {
        (self.generation, self.cuts) == (now.generation, now.cuts) && self.end.is_none_or(|end| end == now.size)
    }
}

pub(crate) struct File {
    pub inode: InodeId,
    pub handles: u32,
    /// Of these, those that may write.
    pub writers: u32,
    /// The service may have recorded this session as an opener: the last close is to be told.
    pub opener: bool,
    /// The service has it on record that the file is open here, so an unlink elsewhere keeps it.
    pub recorded: bool,
    /// The service has it on record that the file is open for writing here, or may have.
    pub recorded_writes: bool,
    /// The inode does not exist any more: whatever is dirty is of no use.
    pub gone: bool,
    /// What the service last said, and when that was right.
    pub base: Attributes,
    pub base_at: LogIndex,
    pub dirty: Extents,
    pub sending: BTreeMap<u64, Sending>,
    sending_cost: u64,
    /// Number of the next write.
    pub number_next: u64,
    /// Every write up to this number is durable and published.
    pub published_to: u64,
    /// End of the durable bytes whose size is not yet published.
    pub unpublished_end: u64,
    /// When the first write of the durable bytes beyond the published size was made, as far as is known.
    pub unpublished_since: Instant,
    /// Time of the last write, until it is published.
    pub mtime: Option<Timestamp>,
    pub clear_set_ids: bool,
    /// A hole was made that is not published.
    pub sparse: bool,
    /// When the last write was made: its time is published a while later.
    pub written_at: Instant,
    /// The service has given us a bound and wants it back.
    pub bound_held: bool,
    /// The bound that was last asked for, and how much of it was needed.
    pub asked_bound: u64,
    pub asked_least: u64,
    pub lane: Option<Lane>,
    pub refresh: bool,
    /// Other hosts may have changed it until caching began, and the service has not yet said to what.
    pub unverified: bool,
    pub changes: VecDeque<Change>,
    pub awaiting_trim: bool,
    pub syncs: Vec<Sync>,
    /// Found since the last fsync or close.
    pub error: Option<ClientError>,
    /// Writes that have heard of it.
    pub writes_refused: u8,
    /// Appends that wait for their turn at the end of the file: while others may write there, too, the end is the service's to say.
    pub appends: Vec<(CallId, Call)>,
    /// Calls that wait for the changes to be done.
    pub parked: Vec<(CallId, Call)>,
    pub closed_at: Instant,
    pub closing: bool,
    /// A timer is set for this moment.
    pub due: Option<Instant>,
    /// What of it is counted in the buffer.
    pub counted: u64,
    /// Newest change that was made without a cache: it goes only after the service was asked what the file is like now.
    pub wants_fresh: u64,
    /// Changes up to this number were made before what `base` says was asked for.
    pub fresh_to: u64,
    /// What `fresh_to` becomes when the lane's request is answered.
    pub freshening: u64,
    /// Written through and durable. They count when a publication confirms that nobody has truncated the file meanwhile.
    pub unconfirmed: Vec<(u64, Sending)>,
    /// How many of them the publication under way is about.
    pub confirming: usize,
    /// What of them ends above has its size published later.
    pub confirm_to: u64,
    /// Durable, and others have cut the file at the same time.
    pub doubtful: Vec<(u64, Sending)>,
    /// End of what was in doubt and stands: the file is to be made so long.
    pub standing: u64,
}

impl File {
    pub fn new(base: Attributes, base_at: LogIndex, request_bytes: u64, now: Instant) -> Self {
        Self {
            inode: base.inode,
            handles: 0,
            writers: 0,
            opener: false,
            recorded: false,
            recorded_writes: false,
            gone: false,
            base,
            base_at,
            dirty: Extents::new(request_bytes),
            sending: BTreeMap::new(),
            sending_cost: 0,
            number_next: 1,
            published_to: 0,
            unpublished_end: 0,
            unpublished_since: now,
            mtime: None,
            clear_set_ids: false,
            sparse: false,
            written_at: now,
            bound_held: false,
            asked_bound: 0,
            asked_least: 0,
            lane: None,
            refresh: false,
            unverified: false,
            changes: VecDeque::new(),
            awaiting_trim: false,
            syncs: Vec::new(),
            error: None,
            writes_refused: 0,
            appends: Vec::new(),
            parked: Vec::new(),
            closed_at: now,
            closing: false,
            due: None,
            counted: 0,
            wants_fresh: 0,
            fresh_to: 0,
            freshening: 0,
            unconfirmed: Vec::new(),
            confirming: 0,
            confirm_to: u64::MAX,
            doubtful: Vec::new(),
            standing: 0,
        }
    }

    pub fn is_open(&self) -> bool {
        self.handles > 0
    }

    /// What it is open for here.
    pub fn access(&self) -> Access {
        if self.writers > 0 { Access::Write } else { Access::Read }
    }

    /// No bytes are dirty or under way.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.sending.is_empty()
    }

    /// The service knows everything; nothing is held.
    pub fn is_settled(&self) -> bool {
        self.is_clean()
            && self.lane.is_none()
            && self.changes.is_empty()
            && self.appends.is_empty()
            && !self.needs_publish(false)
            && !self.bound_held
            && !self.closing
    }

    /// The size as callers see it.
    pub fn size(&self) -> u64 {
        let sending = self.sending.values().map(|s| s.end).max().unwrap_or(0);
        self.base.size.max(self.unpublished_end).max(self.dirty.end()).max(sending)
    }

    /// Where storage may hold bytes, at the most (apart from what is under way).
    pub fn stored_end(&self) -> u64 {
        self.base.size.max(self.unpublished_end)
    }

    /// The service has given us a bound; unless the inode is gone since, and the bound with it: the answer may come late.
    pub fn hold_bound(&mut self) {
        self.bound_held = !self.gone;
    }

    /// How far bytes may be sent.
    pub fn limit(&self) -> u64 {
        match self.lane {
            // The bound is being given back: what an answer from before says of it does not count.
            Some(Lane::Publish { release: true }) => self.base.size,
            _ => self.base.size.max(self.base.size_bound),
        }
    }

    /// What was to be published cannot be any more.
    pub fn drop_unpublished(&mut self) {
        (self.unpublished_end, self.mtime, self.clear_set_ids, self.sparse) = (0, None, false, false);
    }

    /// Attributes as callers see them.
    pub fn show(&self, attributes: &mut Attributes) {
        attributes.size = attributes.size.max(self.size());
        if let Some(mtime) = self.mtime {
            attributes.mtime = mtime;
            attributes.ctime = attributes.ctime.max(mtime);
        }
        attributes.sparse |= self.sparse;
        if self.clear_set_ids {
            attributes.mode = without_set_ids(attributes.mode);
        }
    }

    pub fn needs_publish(&self, data_only: bool) -> bool {
        !self.gone
            && (self.unpublished_end > self.base.size
                || !self.unconfirmed.is_empty()
                || !self.doubtful.is_empty()
                || self.standing > 0
                || (!data_only && (self.mtime.is_some() || self.clear_set_ids || self.sparse)))
    }

    /// Whether bytes up to `end` of a content count: not if another session has truncated the file since they were sent.
    pub fn counts(&self, generation: Generation, end: u64) -> bool {
        generation == self.base.generation && end <= self.base.size.max(self.base.size_bound)
    }

    /// Whether a change may go to storage: what is known of the file was asked for after it was made.
    pub fn is_fresh(&self, number: u64) -> bool {
        self.are_fresh(number, number)
    }

    /// As above, for all changes from one to another.
    pub fn are_fresh(&self, oldest: u64, newest: u64) -> bool {
        newest <= self.fresh_to || oldest > self.wants_fresh
    }

    /// A publication says what the file is like: which bytes count. Those that others may have cut are in doubt: storage knows on which
    /// side of the cut they were made. Those of an older content went with it, as if written before. Returns the number of the oldest
    /// write in doubt.
    pub fn confirm(&mut self, now: &Attributes) -> Option<u64> {
        let end = now.size.min(now.trim_from.unwrap_or(u64::MAX));
        let confirming = std::mem::take(&mut self.confirming).min(self.unconfirmed.len());
        let mut later = Vec::new();
        for (start, sent) in self.unconfirmed.drain(..confirming) {
            if sent.end > self.confirm_to {
                later.push((start, sent));
            } else if sent.generation == now.generation && sent.end > end {
                self.doubtful.push((start, sent));
            }
        }
        later.append(&mut self.unconfirmed);
        self.unconfirmed = later;
        self.doubtful.iter().map(|(_, sent)| sent.number).min()
    }

    /// A range is changed by something newer: what was written there before is history.
    pub fn cut_unconfirmed(&mut self, start: u64, end: u64) {
        self.confirming = 0;
        for (from, sent) in std::mem::take(&mut self.unconfirmed) {
            let mut at = from;
            for piece in &sent.pieces {
                let to = at + piece.len() as u64;
                for (left, right) in [(at, to.min(start)), (at.max(end), to)] {
                    if left < right {
                        let pieces = vec![piece.slice((left - at) as usize..(right - at) as usize)];
                        self.unconfirmed.push((left, Sending { end: right, pieces, ..sent }));
                    }
                }
                at = to;
            }
        }
    }

    /// Whether bytes of a range were written here and are not known to count yet.
    pub fn is_own(&self, start: u64, end: u64) -> bool {
        let of = |(from, sent): (u64, &Sending)| from < end && sent.end > start;
        self.dirty.start_above(start).is_some_and(|from| from < end)
            || self.sending.iter().any(|(from, sent)| of((*from, sent)))
            || self.unconfirmed.iter().chain(&self.doubtful).any(|(from, sent)| of((*from, sent)))
    }

    /// Whether bytes that this host has written may stand above a size, without being known to count.
    pub fn reaches_beyond(&self, size: u64) -> bool {
        self.standing > size || self.unconfirmed.iter().chain(&self.doubtful).any(|(_, sent)| sent.end > size)
    }

    /// When the size must be published at the latest: a file that is written without a pause would never be, and would end where it
    /// did before if this client died.
    pub fn size_due(&self, delay: std::time::Duration) -> Option<Instant> {
        (!self.gone && self.unpublished_end > self.base.size).then(|| self.unpublished_since + delay)
    }

    /// Oldest write that is not durable; one above the newest if all are.
    pub fn oldest_unsafe(&self) -> u64 {
        let dirty = self.dirty.oldest().map(|(number, ..)| number);
        let sending = self.sending.values().map(|s| s.number).min();
        dirty.into_iter().chain(sending).min().unwrap_or(self.number_next)
    }

    /// Bytes that would be lost now, at the most: also those beyond the published size are, though they are durable.
    pub fn unsafe_bytes(&self) -> u64 {
        let under_way = self.sending.iter().map(|(start, s)| s.end - start).sum::<u64>();
        self.dirty.bytes() + under_way + self.unpublished_end.saturating_sub(self.base.size)
    }

    /// What keeping the dirty bytes costs.
    pub fn cost(&self) -> u64 {
        self.dirty.cost() + self.sending_cost
    }

    pub fn overlaps_sending(&self, start: u64, end: u64) -> bool {
        self.sending.range(..end).next_back().is_some_and(|(_, s)| s.end > start)
    }

    pub fn send(&mut self, start: u64, sending: Sending) {
        self.sending_cost += sending.end - start + SEGMENT_OVERHEAD;
        let old = self.sending.insert(start, sending);
        assert!(old.is_none(), "two writes of {} in flight at {start}", self.inode);
    }

    pub fn sent(&mut self, start: u64) -> Option<Sending> {
        let sending = self.sending.remove(&start)?;
        self.sending_cost -= sending.end - start + SEGMENT_OVERHEAD;
        Some(sending)
    }

    /// Whether the bytes are being changed as a whole, or are about to be, or it is not known which they are: reads, writes and opens
    /// wait.
    pub fn is_changing(&self) -> bool {
        self.unverified
            || matches!(self.lane, Some(Lane::Change { .. }))
            || self.changes.iter().any(Change::touches_data)
    }

    /// Whether dirty bytes stay here for a change, or an answer, that comes first.
    pub fn holds_back(&self) -> bool {
        self.unverified
            || matches!(self.lane, Some(Lane::Change { .. }))
            || self.changes.front().is_some_and(Change::touches_data)
    }

    /// Newest write that somebody waits for.
    pub fn sync_target(&self) -> u64 {
        self.syncs.iter().map(|s| s.target).max().unwrap_or(0)
    }
}

/// Whether a write by somebody without privilege changes the mode.
pub(crate) fn has_set_ids(attributes: &Attributes) -> bool {
    attributes.kind == FileKind::File && without_set_ids(attributes.mode) != attributes.mode
}
