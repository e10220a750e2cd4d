//! The one owner of everything the client knows, and the door to it.

use crate::access::Accesses;
use crate::call::{Call, CallId, Reply};
use crate::cluster::Cluster;
use crate::control::Control;
use crate::data::DataEngine;
use crate::effect::{Effect, Input, Notice, Ticket};
use crate::error::ClientError;
use crate::file::{File, Handle};
use crate::lock::{Asked, Locks};
use crate::names::Names;
use crate::open::OpenWait;
use crate::pages::Pages;
use crate::read::Reads;
use crate::seek::Seeks;
use crate::session::{Caching, Session, State};
use crate::write::Buffer;
use crate::{Config, HandleId};
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::prng::Prng;
use holdfast_types::{FileName, InodeId, Instant, SessionId, Timestamp};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Send a metadata request again.
    Control(u64),
    /// Send a data request again.
    Data(u64),
    /// A soft mount's call has waited long enough.
    Call(CallId),
    /// Something of a file is due to be flushed or released.
    File(InodeId),
    /// The lease may have run out: whoever waits for a cached answer asks the service.
    Renew,
    /// The service is to hear of reads.
    Accesses,
}

/// A client of one volume.
pub struct ClientCore {
    pub(crate) config: Config,
    pub(crate) now: Instant,
    pub(crate) prng: Prng,
    pub(crate) out: Vec<Effect>,
    timers: BTreeSet<(Instant, Timer)>,
    timer_set: Option<Instant>,
    ticket_next: u64,
    pub(crate) calls: BTreeSet<CallId>,
    pub(crate) session: Session,
    pub(crate) cluster: Cluster,
    pub(crate) control: Control,
    pub(crate) data: DataEngine,
    pub(crate) names: Names,
    pub(crate) pages: Pages,
    pub(crate) files: BTreeMap<InodeId, File>,
    pub(crate) handles: BTreeMap<HandleId, Handle>,
    handle_next: u64,
    pub(crate) buffer: Buffer,
    pub(crate) reads: Reads,
    pub(crate) seeks: Seeks,
    pub(crate) accesses: Accesses,
    /// Files to look at before the step ends.
    pub(crate) touched: BTreeSet<InodeId>,
    /// Inodes that are being opened, by how many calls: their `Close` waits.
    pub(crate) opening: BTreeMap<InodeId, u32>,
    /// Names that are being changed, each by one call at a time, with the calls that wait for their turn: what a removal has to say of
    /// an open inode depends on what the name is then.
    pub(crate) changing_names: BTreeMap<(InodeId, FileName), VecDeque<(CallId, Call)>>,
    /// Names that a call is changing.
    pub(crate) names_held: BTreeMap<CallId, Vec<(InodeId, FileName)>>,
    /// Calls for locks that are not over.
    pub(crate) locks: Locks,
    /// Opens of inodes whose name is just being removed: they wait for what becomes of it.
    pub(crate) removing: BTreeMap<InodeId, Vec<(CallId, Call)>>,
    /// Calls that wait until a file is not open elsewhere.
    pub(crate) open_waits: BTreeMap<CallId, OpenWait>,
}

impl ClientCore {
    /// A client that has not said anything yet; its first `step` (a `Tick`, or any call) begins the session.
    ///
    /// # Panics
    /// When `config` names no server, or its request size is not a power of two within a chunk.
    pub fn new(config: Config, now: Instant, seed: u64) -> Self {
        assert!(!config.servers.is_empty(), "a cluster has a metadata server");
        assert!(
            config.request_bytes.is_power_of_two() && config.request_bytes <= CHUNK_BYTES,
            "requests of {} bytes do not tile a chunk",
            config.request_bytes
        );
        Self {
            now,
            prng: Prng::new(seed),
            out: Vec::new(),
            timers: BTreeSet::new(),
            timer_set: None,
            ticket_next: 1,
            calls: BTreeSet::new(),
            session: Session::new(),
            cluster: Cluster::new(),
            control: Control::new(),
            data: DataEngine::new(),
            names: Names::new(config.metadata_cache_entries),
            pages: Pages::new(config.read_cache_bytes),
            files: BTreeMap::new(),
            handles: BTreeMap::new(),
            handle_next: 1,
            buffer: Buffer::new(),
            reads: Reads::new(),
            seeks: Seeks::default(),
            accesses: Accesses::default(),
            touched: BTreeSet::new(),
            opening: BTreeMap::new(),
            changing_names: BTreeMap::new(),
            names_held: BTreeMap::new(),
            locks: Locks::default(),
            removing: BTreeMap::new(),
            open_waits: BTreeMap::new(),
            config,
        }
    }

    /// Takes one input and appends the effects it calls for, in the order they must start. `now` never goes back.
    pub fn step(&mut self, now: Instant, input: Input, effects: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        if matches!(self.session.state, State::Fresh) {
            self.open_session();
        }
        match input {
            Input::Call { id, call } => self.accept(id, call),
            Input::Cancel { id } => self.give_up(id, ClientError::Interrupted),
            Input::MetadataAnswer { ticket, result } => self.metadata_answered(ticket, result),
            Input::ChunkAnswer { ticket, result } => self.chunk_answered(ticket, result),
            Input::Invalidated { event } => self.invalidated(event),
            Input::Tick => {}
        }
        self.run_timers();
        self.settle();
        effects.append(&mut self.out);
        let next = self.timers.first().map(|(at, _)| *at);
        if next != self.timer_set {
            self.timer_set = next;
            effects.extend(next.map(|at| Effect::SetTimer { at }));
        }
    }

    /// For how long answers given now may be cached above (kernel entries, attributes): until the lease runs out. Zero: not at all.
    pub fn cache_ttl(&self, now: Instant) -> Duration {
        match (&self.session.state, &self.session.caching) {
            (State::Live, Caching::On) => self.session.lease_until.since(now),
            _ => Duration::ZERO,
        }
    }

    /// The session, once it is opened.
    pub fn session(&self) -> Option<SessionId> {
        Some(self.session.id).filter(|id| *id != SessionId::NONE)
    }

    /// Whether the session is attached to its volume, as far as is known here.
    pub fn is_attached(&self) -> bool {
        matches!(self.session.state, State::Live)
    }

    /// Bytes that were written and are not known to be durable yet, with what keeping them costs.
    pub fn buffered_bytes(&self) -> u64 {
        self.buffer.bytes
    }

    /// Looks at every file that something happened to, until nothing more follows from it.
    fn settle(&mut self) {
        loop {
            while let Some(inode) = self.touched.pop_first() {
                self.pump(inode);
            }
            if let Some(inode) = self.next_waiting() {
                self.touched.insert(inode);
                continue;
            }
            self.settle_locks();
            self.check_stopping();
            if self.touched.is_empty() {
                return;
            }
        }
    }

    fn run_timers(&mut self) {
        while let Some(&(at, timer)) = self.timers.first() {
            if at > self.now {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Control(op) => self.control_send(op),
                Timer::Data(op) => self.data_send(op),
                Timer::Call(id) => self.call_due(id),
                Timer::File(inode) => self.file_due(inode),
                Timer::Renew => self.renew(),
                Timer::Accesses => self.accesses_due(),
            }
        }
    }

    /// A call has taken as long as one may while the cluster is out of reach (`soft`).
    fn call_due(&mut self, id: CallId) {
        let waits = self.open_waits.contains_key(&id) && !self.control.unreachable_said;
        match self.config.soft.filter(|_| waits) {
            // It is in reach, and says that the file is open elsewhere.
            Some(soft) => self.timer(self.now + soft, Timer::Call(id)),
            None => self.give_up(id, ClientError::TimedOut),
        }
    }

    // ---- helpers of all modules ----

    pub(crate) fn timer(&mut self, at: Instant, timer: Timer) {
        self.timers.insert((at, timer));
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.ticket_next += 1;
        Ticket(self.ticket_next - 1)
    }

    pub(crate) fn handle(&mut self) -> HandleId {
        self.handle_next += 1;
        HandleId(self.handle_next - 1)
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        self.out.push(Effect::Notify(notice));
    }

    /// Pause before attempt `attempts + 1`: doubling from 10 ms to 500 ms, half of it random.
    pub(crate) fn backoff(&mut self, attempts: u32) -> Duration {
        let full = Duration::from_millis(10 << attempts.min(6)).min(Duration::from_millis(500));
        full / 2 + full.mul_f64(self.prng.below(1000) as f64 / 2000.0)
    }

    /// Whether what is cached may be served now.
    pub(crate) fn may_serve_cache(&self) -> bool {
        !self.cache_ttl(self.now).is_zero()
    }

    /// Whether the session may buffer writes and keep what it learns.
    pub(crate) fn caching(&self) -> bool {
        matches!(self.session.state, State::Live) && matches!(self.session.caching, Caching::On)
    }

    /// Whether other sessions may change the same files at the same time.
    pub(crate) fn shares(&self) -> bool {
        matches!(self.session.caching, Caching::Off)
    }

    /// Civil time as the metadata leader has it; never goes back within a session.
    pub(crate) fn stamp(&mut self) -> Timestamp {
        let (at, leader) = self.session.clock.unwrap_or_default();
        let nanos = leader.as_nanos() + self.now.since(at).as_nanos() as i128;
        self.session.stamped = self.session.stamped.max(Timestamp::from_nanos(nanos));
        self.session.stamped
    }

    /// Whether somebody still waits for a call.
    pub(crate) fn waits(&self, id: CallId) -> bool {
        self.calls.contains(&id)
    }

    pub(crate) fn complete(&mut self, id: CallId, result: Result<Reply, ClientError>) {
        if self.calls.remove(&id) {
            self.forget_open_wait(id);
            self.out.push(Effect::Complete { id, result });
        }
    }

    pub(crate) fn complete_all(&mut self, error: &ClientError) {
        self.open_waits.clear();
        for id in std::mem::take(&mut self.calls) {
            self.out.push(Effect::Complete { id, result: Err(error.clone()) });
        }
    }

    /// Takes a new call.
    fn accept(&mut self, id: CallId, call: Call) {
        let fresh = self.calls.insert(id);
        assert!(fresh, "{id:?} is in use");
        // Another owner may hold a lock for as long as it likes, whatever the cluster does.
        let may_take_long = matches!(call, Call::SetLock { wait: true, .. });
        self.start(id, call);
        if let Some(soft) = self.config.soft.filter(|_| self.calls.contains(&id) && !may_take_long) {
            self.timer(self.now + soft, Timer::Call(id));
        }
    }

    /// Begins a call, or begins it anew after what it waited for has happened.
    pub(crate) fn start(&mut self, id: CallId, call: Call) {
        if !self.waits(id) {
            return;
        }
        match &self.session.state {
            State::Live | State::Leaving => {}
            State::Over { reason, .. } => {
                let result = match call {
                    Call::Release { .. } | Call::Unmount => Ok(Reply::Done),
                    // Nobody could end what waits in a close.
                    call if self.config.block_when_over
                        && !matches!(call, Call::Flush { .. } | Call::SetLock { .. }) =>
                    {
                        return;
                    }
                    _ => Err(ClientError::SessionOver { reason: reason.clone() }),
                };
                return self.complete(id, result);
            }
            State::Fresh | State::Opening | State::Attaching => {
                return self.session.waiting.push((id, call));
            }
        }
        match call {
            Call::Mount => {
                let reply = self.session.mounted();
                self.complete(id, Ok(reply));
            }
            Call::Unmount => self.unmount(id),
            Call::Open { inode, mode } => self.open(id, inode, mode),
            Call::Release { handle } => self.release(id, handle),
            Call::Flush { handle } => self.flush(id, handle),
            Call::Read { .. } => self.read(id, call),
            Call::Seek { .. } => self.seek(id, call),
            Call::Write { .. } => self.write(id, call),
            Call::Fsync { inode, data_only } => self.fsync(id, inode, data_only),
            Call::SyncAll => self.sync_all(id),
            Call::Zero { .. } => self.zero(id, call),
            Call::SetAttributes { inode, set } => self.set_attributes(id, inode, set),
            Call::SetLock { inode, lock, wait } => self.set_lock(Asked { id, inode, lock, wait }),
            Call::TestLock { inode, lock } => self.test_lock(id, inode, lock),
            call => self.name_call(id, call),
        }
    }
}
