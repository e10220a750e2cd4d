//! When files were last read, as `relatime` has it (mount(8)): a read sets the time if it is not later than the last change of the file,
//! or is older than a day.
//!
//! Callers of this host see it at once. The service is told a while later, of many files in one request, and before this session stops
//! caching or leaves. It is told in good faith: the time of a read is lost with the session, and is refused for a file that was changed
//! meanwhile. What the kernel answers from its own cache is not seen here, so that it changes nothing.

use crate::control::Purpose;
use crate::core::{ClientCore, Timer};
use crate::error::ClientError;
use crate::session::State;
use holdfast_types::{InodeId, Timestamp};
use holdfast_wire::namespace::{ACCESS_TIMES_MAX, AccessTime, Attributes, Mutation, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A time older than this is set by the next read, whatever happened to the file.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// How long the service may not know of a read. By eye: a scan of many files fills many requests in less.
const DELAY: Duration = Duration::from_secs(5);
/// Files whose times wait or are under way; more reads change nothing. By eye: some requests.
const WAITING_MAX: usize = 16 * ACCESS_TIMES_MAX;

/// A read of which the service is not known to know.
#[derive(Clone, Copy)]
struct Access {
    atime: Timestamp,
    /// The file's time of change then.
    ctime: Timestamp,
}

/// Those of all files.
#[derive(Default)]
pub(crate) struct Accesses {
    reads: BTreeMap<InodeId, Access>,
    /// Those not told; about the others a request is under way.
    fresh: BTreeSet<InodeId>,
    /// A timer is set.
    due: bool,
}

impl Accesses {
    /// Forgets them all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the service knows of all.
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// Attributes as callers see them.
    pub fn show(&self, attributes: &mut Attributes) {
        if let Some(read) = self.reads.get(&attributes.inode).filter(|read| read.ctime == attributes.ctime) {
            attributes.atime = attributes.atime.max(read.atime);
        }
    }
}

/// Whether a read sets the time.
fn is_due(attributes: &Attributes, now: Timestamp) -> bool {
    let Attributes { atime, mtime, ctime, .. } = attributes;
    atime <= mtime || atime <= ctime || now.as_nanos() - atime.as_nanos() >= STALE.as_nanos() as i128
}

impl ClientCore {
    /// Bytes of a file that is open here are being read.
    pub(crate) fn accessed(&mut self, inode: InodeId) {
        if !self.config.relatime || self.config.read_only || self.accesses.reads.len() >= WAITING_MAX {
            return;
        }
        // What comes now would keep others waiting: they wait until the service knows of all.
        if self.is_making_way() {
            return;
        }
        let now = self.stamp();
        let Some(file) = self.files.get(&inode).filter(|file| !file.gone) else { return };
        // Writes of our own that are not published will change the file once more; a read after that is soon enough.
        if file.needs_publish(false) || !file.is_clean() || !is_due(&file.base, now) {
            return;
        }
        let ctime = file.base.ctime;
        let told = !self.accesses.fresh.contains(&inode);
        if self.accesses.reads.get(&inode).is_some_and(|read| told || read.ctime == ctime) {
            return;
        }
        self.accesses.reads.insert(inode, Access { atime: now, ctime });
        self.accesses.fresh.insert(inode);
        if self.accesses.fresh.len() >= ACCESS_TIMES_MAX {
            self.tell_accesses();
        } else if !std::mem::replace(&mut self.accesses.due, true) {
            self.timer(self.now + DELAY, Timer::Accesses);
        }
    }

    pub(crate) fn accesses_due(&mut self) {
        self.accesses.due = false;
        self.tell_accesses();
    }

    /// Tells the service of the reads that it was not told of.
    pub(crate) fn tell_accesses(&mut self) {
        if !matches!(self.session.state, State::Live | State::Leaving) {
            return;
        }
        let fresh: Vec<InodeId> = std::mem::take(&mut self.accesses.fresh).into_iter().collect();
        for part in fresh.chunks(ACCESS_TIMES_MAX) {
            let time = |inode: &InodeId| {
                let Access { atime, ctime } = self.accesses.reads[inode];
                AccessTime { inode: *inode, atime, ctime }
            };
            let times: Vec<AccessTime> = part.iter().map(time).collect();
            self.mutate(Mutation::SetAccessTimes { times: times.clone() }, Purpose::AccessTimes(times));
        }
    }

    /// The service knows, or will not hear of it.
    pub(crate) fn accesses_told(&mut self, times: &[AccessTime], result: &Result<Outcome, ClientError>) {
        for time in times {
            self.accesses.reads.remove(&time.inode);
            if let Some(file) = self.files.get_mut(&time.inode).filter(|file| file.base.ctime == time.ctime)
                && result.is_ok()
            {
                file.base.atime = file.base.atime.max(time.atime);
            }
        }
    }
}
