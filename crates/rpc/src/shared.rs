//! One connection, or one attempt at it: what its task shares with callers and responders.
//!
//! ```text
//! Waiting ──hello──▶ Up ──▶ Closed        Waiting: calls queue up, deadlines run
//!    └─────────────────────────▲          Closed: every call was completed, nothing is queued
//! ```
//!
//! Invariants:
//! * A call is completed exactly once, outside of the lock.
//! * Whoever adds work wakes the writer, or sends it himself; whoever frees room wakes the reader.
//! * Bytes go out in the order of the queue: past the writer goes only what comes while it has nothing.

use crate::error::{CastError, Refusal, RpcError};
use crate::handler::Response;
use crate::identity::{Identity, PeerIdentity};
use crate::local::Direct;
use crate::table::{Completion, DEADLINE_MAX, Draft, End, Out, Phase, Returned, Table, UNIT_BYTES, units};
use bytes::Bytes;
use holdfast_types::limits;
use holdfast_wire::frame::{FrameError, FrameKind, Header, TraceContext};
use std::fmt;
use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Bounds of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of requests sent and unanswered, and of one-way messages queued. Reading stops at twice as many unanswered ones.
    pub bytes_max: u64,
    /// Silence after which we say that we live.
    pub heartbeat: Duration,
    /// Silence after which the other end counts as gone.
    pub idle_timeout: Duration,
}

/// Largest frame that is sent on the thread of whoever sends it: copying it takes about as long as waking another thread.
const DIRECT_BYTES_MAX: u64 = 32 << 10;

/// Largest frame, in bytes.
const FRAME_BYTES_MAX: u64 = limits::FRAME_HEADER_BYTES + limits::MESSAGE_BYTES_MAX + limits::PAYLOAD_BYTES_MAX;

pub(crate) struct Shared {
    id: u64,
    identity: Identity,
    name: OnceLock<Arc<str>>,
    target: Arc<str>,
    peer: OnceLock<PeerIdentity>,
    bounds: Bounds,
    units: Arc<Semaphore>,
    table: Mutex<Table>,
    /// The way past the writer, and whether the transport covers payloads; where there is one.
    direct: OnceLock<(Direct, bool)>,
    /// Work for the writer, or for whoever connects.
    pub work: Notify,
    timers: Notify,
    resume: Notify,
    stop: Notify,
    stopped: AtomicBool,
    paused: AtomicBool,
    held: AtomicU64,
    dropped_casts: Arc<AtomicU64>,
    born: Instant,
    read_ms: AtomicU64,
    write_ms: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({} {})", self.id, self.name())
    }
}

impl Shared {
    /// `target` names the other end until it has said who it is.
    pub fn new(
        identity: Identity,
        target: Arc<str>,
        bounds: Bounds,
        units: Arc<Semaphore>,
        dropped_casts: Arc<AtomicU64>,
    ) -> Self {
        static ID_LAST: AtomicU64 = AtomicU64::new(0);
        Self {
            id: ID_LAST.fetch_add(1, Ordering::Relaxed) + 1,
            identity,
            name: OnceLock::new(),
            target,
            peer: OnceLock::new(),
            bounds,
            units,
            table: Mutex::new(Table::new()),
            direct: OnceLock::new(),
            work: Notify::new(),
            timers: Notify::new(),
            resume: Notify::new(),
            stop: Notify::new(),
            stopped: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            held: AtomicU64::new(0),
            dropped_casts,
            born: Instant::now(),
            read_ms: AtomicU64::new(0),
            write_ms: AtomicU64::new(0),
        }
    }

    /// The bound of a connection as a semaphore of units.
    pub fn semaphore(bounds: &Bounds) -> Arc<Semaphore> {
        // Every frame that is allowed must fit, or it would wait for ever.
        let least = units(FRAME_BYTES_MAX);
        Arc::new(Semaphore::new((bounds.bytes_max / UNIT_BYTES).max(least) as usize))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code of others runs under this lock")
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn peer(&self) -> Option<PeerIdentity> {
        self.peer.get().copied()
    }

    /// Whom we talk to, for errors and logs.
    pub fn name(&self) -> Arc<str> {
        self.name.get().unwrap_or(&self.target).clone()
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.lock().phase, Phase::Closed(_))
    }

    /// Both sides have said hello.
    pub fn up(&self, peer: PeerIdentity, direct: Option<Direct>, covered: bool) {
        self.name.set(peer.to_string().into()).expect("one hello per connection");
        self.peer.set(peer).expect("one hello per connection");
        if let Some(direct) = direct {
            let first = self.direct.set((direct, covered));
            assert!(first.is_ok(), "one hello per connection");
        }
        self.touch_read();
        self.touch_write();
        let mut table = self.lock();
        if matches!(table.phase, Phase::Waiting) {
            table.phase = Phase::Up;
        }
    }

    /// Completes everything that waits with an error; later calls fail at once.
    pub fn close(&self, end: &End) {
        let (calls, queue) = {
            let mut table = self.lock();
            if matches!(table.phase, Phase::Closed(_)) {
                return;
            }
            table.close(end)
        };
        let casts = queue.iter().filter(|out| out.header.kind == FrameKind::OneWay).count();
        self.dropped_casts.fetch_add(casts as u64, Ordering::Relaxed);
        drop(queue);
        self.stop();
        for call in calls {
            let error = self.ended(end, call.sent);
            call.completion.run(Err(error));
        }
    }

    fn ended(&self, end: &End, sent: bool) -> RpcError {
        match end {
            End::Unreachable(source) => RpcError::Unreachable { peer: self.name(), source: source.clone() },
            End::Closed(reason) => RpcError::Closed { peer: self.name(), sent, reason: reason.clone() },
        }
    }

    /// Asks the connection's task to end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.stop.notify_one();
    }

    pub async fn until_stopped(&self) {
        while !self.stopped.load(Ordering::Acquire) {
            self.stop.notified().await;
        }
    }

    // ---- our calls

    /// Room for a call, if there is some now.
    pub fn try_units(&self, draft: &Draft) -> Result<OwnedSemaphorePermit, RpcError> {
        check_lengths(&draft.message, &draft.payload).map_err(RpcError::TooLarge)?;
        self.units.clone().try_acquire_many_owned(draft.units()).map_err(|_| RpcError::Full { peer: self.name() })
    }

    /// Queues a call, or gives it back with the reason when the connection is closed or the queue is full.
    pub fn submit(&self, draft: Draft, completion: Completion, permit: OwnedSemaphorePermit) -> Result<u64, Returned> {
        let mut table = self.lock();
        if let Phase::Closed(end) = &table.phase {
            return Err(Box::new((self.ended(end, false), draft, completion, permit)));
        }
        // Only calls that were cancelled while queued can bring it there: live ones are bounded by their permits.
        if table.queued_bytes > 3 * self.bounds.bytes_max.max(FRAME_BYTES_MAX) {
            return Err(Box::new((RpcError::Full { peer: self.name() }, draft, completion, permit)));
        }
        let Draft { kind, message, payload, deadline, waited, trace } = draft;
        let (request, sooner) = table.register(completion, deadline, waited, permit);
        let mut header = self.header(FrameKind::Request, kind, request);
        header.trace = trace;
        self.put(table, Out { header, deadline: Some(deadline), message, payload });
        if sooner {
            self.timers.notify_one();
        }
        Ok(request)
    }

    /// The caller gave up.
    pub fn cancel(&self, request: u64) {
        let mut table = self.lock();
        let Some(call) = table.remove(request) else { return };
        if call.sent {
            self.put(table, Out::bare(self.header(FrameKind::Cancel, 0, request)));
        }
    }

    /// An answer arrived. One that nobody waits for was cancelled or came too late.
    pub fn answered(&self, request: u64, result: Result<Response, Refusal>) {
        let Some(call) = self.lock().remove(request) else { return };
        call.completion.run(result.map_err(|refusal| RpcError::Refused { peer: self.name(), refusal }));
    }

    /// Queues a one-way message.
    pub fn cast(&self, kind: u16, message: Bytes, payload: Bytes, trace: TraceContext) -> Result<(), CastError> {
        check_lengths(&message, &payload)?;
        let table = self.lock();
        if matches!(table.phase, Phase::Closed(_)) {
            return Err(CastError::NotConnected);
        }
        if table.queued_bytes > self.bounds.bytes_max {
            self.dropped_casts.fetch_add(1, Ordering::Relaxed);
            return Err(CastError::Full);
        }
        let mut header = self.header(FrameKind::OneWay, kind, 0);
        header.trace = trace;
        self.put(table, Out { header, deadline: None, message, payload });
        Ok(())
    }

    /// Queues a frame and sees to it that it is sent: here and now if it is small and nobody is sending, else by the writer.
    fn put(&self, mut table: MutexGuard<'_, Table>, out: Out) {
        let direct = self.direct.get().filter(|_| table.is_quiet() && out.bytes() <= DIRECT_BYTES_MAX);
        let mut wake = table.push(out);
        if let Some((direct, covered)) = direct {
            self.send_directly(&mut table, direct, *covered);
            wake = !table.rest.is_empty() || table.draining && table.serving.is_empty();
        }
        drop(table);
        if wake {
            self.work.notify_one();
        }
    }

    /// Sends the one frame that is queued. What the socket does not take, also because it is broken, is the writer's to deal with.
    fn send_directly(&self, table: &mut Table, direct: &Direct, covered: bool) {
        let mut one = Vec::with_capacity(1);
        table.take(Instant::now(), &mut one);
        let Some(mut out) = one.pop() else { return };
        // Lengths were checked where the frame came from.
        out.header.describe(&out.message, &out.payload, covered).expect("bodies are within their limits");
        let header = out.header.encode();
        let parts: [&[u8]; 3] = [&header, &out.message, &out.payload];
        let sent = direct.send(&parts.map(IoSlice::new)).unwrap_or(0);
        self.touch_write();
        if (sent as u64) < out.bytes() {
            table.rest = Bytes::from(parts.concat()).slice(sent..);
        }
    }

    fn header(&self, kind: FrameKind, method: u16, request: u64) -> Header {
        let mut header = Header::new(kind, self.identity.cluster(), self.identity.me().id);
        header.method = method;
        header.request = request;
        header
    }

    /// The frame that says who we are.
    pub fn hello(&self) -> Header {
        self.header(FrameKind::Hello, self.identity.me().role as u16, 0)
    }

    // ---- their requests

    /// Registers a request. False when it is refused because we are closing; an error when its id is in use.
    pub fn begin(&self, request: u64) -> Result<bool, &'static str> {
        let mut table = self.lock();
        if table.draining {
            return Ok(false);
        }
        if table.serving.insert(request) { Ok(true) } else { Err("a request id was used twice") }
    }

    pub fn is_serving(&self, request: u64) -> bool {
        self.lock().serving.contains(&request)
    }

    /// The other end gave up a request.
    pub fn cancelled(&self, request: u64) {
        self.lock().serving.remove(&request);
        self.wake_if_drained();
    }

    pub fn answer(&self, request: u64, kind: u16, message: Bytes, payload: Bytes) {
        if let Err(error) = check_lengths(&message, &payload) {
            tracing::error!(peer = %self.name(), kind, %error, "answer is too large to be sent");
            return self.refuse(request, Refusal::Other);
        }
        let header = self.header(FrameKind::Response, kind, request);
        self.finish(request, Out { header, deadline: None, message, payload });
    }

    pub fn refuse(&self, request: u64, refusal: Refusal) {
        self.finish(request, Out::bare(self.header(FrameKind::Failure, refusal as u16, request)));
    }

    /// Refuses a request that was never registered.
    pub fn refuse_unseen(&self, request: u64, refusal: Refusal) {
        self.put(self.lock(), Out::bare(self.header(FrameKind::Failure, refusal as u16, request)));
    }

    fn finish(&self, request: u64, out: Out) {
        let mut table = self.lock();
        if table.serving.remove(&request) {
            self.put(table, out);
        }
    }

    /// Refuses new requests; the writer ends once the last answer is out.
    pub fn drain(&self) {
        self.lock().draining = true;
        self.wake_if_drained();
    }

    fn wake_if_drained(&self) {
        let table = self.lock();
        if table.draining && table.serving.is_empty() {
            drop(table);
            self.work.notify_one();
        }
    }

    // ---- back-pressure on reading

    pub fn hold(&self, units: u64) {
        self.held.fetch_add(units, Ordering::SeqCst);
    }

    pub fn release(&self, units: u64) {
        self.held.fetch_sub(units, Ordering::SeqCst);
        if self.paused.load(Ordering::SeqCst) {
            self.resume.notify_one();
        }
    }

    fn overloaded(&self) -> bool {
        let units_max = 2 * units(self.bounds.bytes_max);
        self.held.load(Ordering::SeqCst) > units_max || self.lock().queued_bytes > 2 * self.bounds.bytes_max
    }

    /// Waits until what was read has been worked on, and answers have been taken by the other end.
    pub async fn until_room(&self) {
        if !self.overloaded() {
            return;
        }
        self.paused.store(true, Ordering::SeqCst);
        while self.overloaded() {
            self.resume.notified().await;
        }
        self.touch_read();
        self.paused.store(false, Ordering::SeqCst);
    }

    // ---- the writer

    /// Moves what can be sent into `rest` (first) and `batch`; false when there is nothing and will be nothing. Whatever was taken
    /// before has been handed to the transport.
    pub async fn take(&self, rest: &mut Bytes, batch: &mut Vec<Out>) -> bool {
        loop {
            {
                let mut table = self.lock();
                *rest = std::mem::take(&mut table.rest);
                table.take(Instant::now(), batch);
                table.writing = !batch.is_empty() || !rest.is_empty();
                if table.writing {
                    break;
                }
                if matches!(table.phase, Phase::Closed(_)) || table.draining && table.serving.is_empty() {
                    return false;
                }
            }
            self.work.notified().await;
        }
        if self.paused.load(Ordering::SeqCst) {
            self.resume.notify_one();
        }
        true
    }

    pub fn has_work(&self) -> bool {
        !self.lock().queue.is_empty()
    }

    // ---- time

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    pub fn touch_read(&self) {
        self.read_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    pub fn touch_write(&self) {
        self.write_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Ends calls whose time is over, says that we live; returns when the other end has been silent for too long.
    pub async fn run_timers(&self) -> Arc<str> {
        loop {
            let now = Instant::now();
            let (expired, next) = self.lock().expire(now, |request| self.header(FrameKind::Cancel, 0, request));
            if !expired.is_empty() {
                self.work.notify_one();
            }
            for call in expired {
                let error = RpcError::Deadline { peer: self.name(), sent: call.sent, waited: call.waited };
                call.completion.run(Err(error));
            }
            if let Some(reason) = self.check_silence() {
                return reason;
            }
            let next = next.unwrap_or(now + DEADLINE_MAX).min(now + self.bounds.heartbeat / 2);
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.timers.notified() => {}
            }
        }
    }

    fn check_silence(&self) -> Option<Arc<str>> {
        let mut table = self.lock();
        if !matches!(table.phase, Phase::Up) {
            return None;
        }
        let now = self.now_ms();
        let silent = |since: &AtomicU64| Duration::from_millis(now.saturating_sub(since.load(Ordering::Relaxed)));
        if silent(&self.read_ms) > self.bounds.idle_timeout && !self.paused.load(Ordering::SeqCst) {
            return Some(format!("silent for {:?}", self.bounds.idle_timeout).into());
        }
        // With something queued there is no need, and no use if the writer is stuck.
        if silent(&self.write_ms) >= self.bounds.heartbeat / 2 && table.queue.is_empty() {
            table.push(Out::bare(self.header(FrameKind::Alive, 0, 0)));
            drop(table);
            self.work.notify_one();
        }
        None
    }
}

pub(crate) fn check_lengths(message: &[u8], payload: &[u8]) -> Result<(), FrameError> {
    if message.len() as u64 > limits::MESSAGE_BYTES_MAX {
        return Err(FrameError::MessageTooLong(message.len() as u64));
    }
    if payload.len() as u64 > limits::PAYLOAD_BYTES_MAX {
        return Err(FrameError::PayloadTooLong(payload.len() as u64));
    }
    Ok(())
}
