//! The session: opening, attaching, renewing, the right to cache, the end.
//!
//! ```text
//! Fresh ──▶ Opening (shard 0) ──▶ Attaching (shard 1) ──▶ Live ──unmount──▶ Leaving ──detached──▶ Over
//!                └───── refused ──────┴──────────────────── ended ─────────────┴──────────────────▶ Over
//!
//! caching, while Live:   Off ◀──all flushed, all invalidated, told── Stopping ◀──StopCaching── On
//!                         └──────────────────────────StartCaching─────────────────────────────▶
//! ```
//! * The lease counts from when the renewal was *sent*. It guards cached reads only.
//! * In `Stopping` nothing cached is served, nothing new is kept, and every write is written through.

use crate::call::{Call, CallId, Reply};
use crate::control::Purpose;
use crate::core::{ClientCore, Timer};
use crate::effect::Notice;
use crate::error::ClientError;
use crate::lock::Locks;
use holdfast_types::limits::{SESSION_RENEWAL, SESSION_TTL};
use holdfast_types::{Instant, LogIndex, MapVersion, SessionId, ShardId, Timestamp};
use holdfast_wire::metadata::{Event, MetadataError, Request, Response};
use holdfast_wire::namespace::{Attributes, VolumeRecord};
use std::time::Duration;

/// How long an answer to `Attach` may be held while another session flushes.
const ATTACH_HOLD: Duration = Duration::from_secs(10);

/// See the picture above.
pub(crate) enum State {
    Fresh,
    Opening,
    Attaching,
    Live,
    Leaving,
    Over { reason: String },
}

/// See the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    Off,
    On,
    Stopping(Stop),
}

/// Where stopping has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    /// Event to answer.
    event: u64,
    /// Event that was announced above.
    notice: u64,
    /// Whoever caches above has dropped everything.
    invalidated: bool,
    /// The service has been told and has not answered yet.
    telling: bool,
    /// The service has said that we may start again: it has our answer, though we have not its answer to it.
    start: bool,
}

pub(crate) struct Session {
    pub state: State,
    pub id: SessionId,
    pub map_min: MapVersion,
    pub volume: Option<VolumeRecord>,
    root: Option<Attributes>,
    pub caching: Caching,
    /// Rises whenever caching starts or stops: what was asked for in another span is not kept.
    pub span: u64,
    pub lease_until: Instant,
    /// The leader's clock, and when we heard it.
    pub clock: Option<(Instant, Timestamp)>,
    pub stamped: Timestamp,
    event_seen: u64,
    /// When the service confirmed that we had stopped caching.
    off_since: Instant,
    /// Creations that wait until the service has been told what is open.
    pub after_telling: Vec<(CallId, Call)>,
    /// Calls that came before the session was attached.
    pub waiting: Vec<(CallId, Call)>,
    /// Who unmounts.
    leaving: Vec<CallId>,
    detaching: bool,
}

impl Session {
    pub fn new() -> Self {
        Self {
            state: State::Fresh,
            id: SessionId::NONE,
            map_min: MapVersion(0),
            volume: None,
            root: None,
            caching: Caching::Off,
            span: 1,
            lease_until: Instant(0),
            clock: None,
            stamped: Timestamp::default(),
            event_seen: 0,
            off_since: Instant(0),
            after_telling: Vec::new(),
            waiting: Vec::new(),
            leaving: Vec::new(),
            detaching: false,
        }
    }

    pub fn mounted(&self) -> Reply {
        let volume = self.volume.clone().expect("known before the session is live");
        let root = self.root.clone().expect("known before the session is live");
        Reply::Mounted { volume, session: self.id, root }
    }

    /// The volume.
    ///
    /// # Panics
    /// Before the session is opened, which no file operation is.
    pub fn volume(&self) -> &VolumeRecord {
        self.volume.as_ref().expect("files exist only in an open session")
    }

    /// Whether the service is just being told that we stopped.
    pub fn telling(&self) -> bool {
        matches!(self.caching, Caching::Stopping(Stop { telling: true, .. }))
    }
}

impl ClientCore {
    pub(crate) fn open_session(&mut self) {
        self.session.state = State::Opening;
        let request = Request::OpenSession {
            volume: self.config.volume.clone(),
            client: self.config.client.clone(),
            read_only: self.config.read_only,
            nonce: self.config.nonce,
        };
        self.control_start(ShardId::CLUSTER, request, Purpose::OpenSession, None);
    }

    pub(crate) fn session_opened(&mut self, result: Result<Response, MetadataError>) {
        match result {
            Ok(Response::SessionOpened { session, volume, map_min }) => {
                self.session.id = session;
                self.session.map_min = map_min;
                self.session.volume = Some(volume.clone());
                self.session.state = State::Attaching;
                let client = self.config.client.clone();
                let request = Request::Attach { volume, client, read_only: self.config.read_only };
                self.control_start(ShardId::VOLUMES, request, Purpose::Attach, Some(ATTACH_HOLD));
                self.subscribe_map();
            }
            Ok(_) => self.refused("an odd answer to OpenSession".into()),
            Err(error) => self.refused(error.to_string()),
        }
    }

    /// The cluster does not want us.
    fn refused(&mut self, reason: String) {
        let error = ClientError::Refused { reason: reason.clone() };
        self.complete_all(&error);
        self.session_over(reason);
    }

    pub(crate) fn attached(&mut self, sent_at: Instant, at: LogIndex, result: Result<Response, MetadataError>) {
        match result {
            Ok(Response::Attached { root, caching, now, event }) => {
                if caching {
                    self.names.put_attributes(&root, at);
                }
                self.session.root = Some(root);
                self.session.state = State::Live;
                self.session.event_seen = event;
                self.session.clock = Some((self.now, now));
                self.session.lease_until = sent_at + SESSION_TTL;
                if caching {
                    self.session.caching = Caching::On;
                    self.session.span += 1;
                }
                self.renew();
                for (id, call) in std::mem::take(&mut self.session.waiting) {
                    self.start(id, call);
                }
            }
            Ok(_) => self.refused("an odd answer to Attach".into()),
            Err(error) => self.refused(error.to_string()),
        }
    }

    /// Says that we live, and listens for events. One such request is under way at any time.
    pub(crate) fn renew(&mut self) {
        if matches!(self.session.state, State::Live | State::Leaving) {
            // Held answers arrive with a third of the lease gone; when more is gone already, an answer is wanted at once.
            let fresh = self.session.lease_until.since(self.now) > SESSION_RENEWAL + Duration::from_secs(1);
            let request = Request::Renew { seen: self.session.event_seen, wait: fresh };
            self.control_start(ShardId::VOLUMES, request, Purpose::Renew, Some(SESSION_RENEWAL));
        }
    }

    pub(crate) fn renewed(&mut self, sent_at: Instant, result: Result<Response, MetadataError>) {
        match result {
            Ok(Response::Renewed { events, caching, now }) => {
                self.session.lease_until = self.session.lease_until.max(sent_at + SESSION_TTL);
                self.session.clock = Some((self.now, now));
                for (number, event) in events {
                    if number > self.session.event_seen {
                        self.session.event_seen = number;
                        self.event(number, event);
                    }
                }
                if matches!(self.session.state, State::Over { .. }) {
                    return;
                }
                match self.session.caching {
                    // The service believes that we do not cache; so we must not, event or no event.
                    Caching::On if !caching => self.stop_caching(self.session.event_seen),
                    // Asked after it knew that we had stopped, it says that we may: whatever became of the event.
                    Caching::Off if caching && sent_at > self.session.off_since => self.start_caching(),
                    Caching::On | Caching::Off | Caching::Stopping(_) => {}
                }
                // A server that does not hold its answers must not be asked in a tight loop.
                let soon = self.now.since(sent_at) < Duration::from_millis(5);
                if soon && self.session.lease_until.since(self.now) > SESSION_RENEWAL * 2 {
                    self.timer(self.now + Duration::from_millis(20), Timer::Renew);
                } else {
                    self.renew();
                }
            }
            Ok(_) | Err(_) => {
                let pause = self.backoff(4);
                self.timer(self.now + pause, Timer::Renew);
            }
        }
    }

    fn event(&mut self, number: u64, event: Event) {
        match event {
            Event::StopCaching => self.stop_caching(number),
            Event::StartCaching => match &mut self.session.caching {
                Caching::Off => self.start_caching(),
                Caching::Stopping(stop) => stop.start = stop.telling,
                Caching::On => {}
            },
            Event::Ended { reason } => self.session_over(reason),
        }
    }

    fn start_caching(&mut self) {
        self.session.caching = Caching::On;
        self.session.span += 1;
        self.names.clear();
        self.pages.clear();
        for file in self.files.values_mut() {
            // What is on record stays there until it is closed; from now on we name what is open when a name goes away.
            // That it is on record for writing does stay: if there is a reader only when caching ends, that is to be said then.
            file.recorded = false;
            // Another host may have cut it before it left, and there may be another content in its place.
            file.refresh |= !file.gone;
            file.unverified |= !file.gone;
        }
        self.touched.extend(self.files.keys().copied());
        self.notify(Notice::StartCaching);
    }

    fn stop_caching(&mut self, event: u64) {
        let quiet = match &mut self.session.caching {
            // Nothing is cached above, and what was written was written through.
            Caching::Off => true,
            Caching::On => false,
            Caching::Stopping(stop) => {
                // Asked again under another number: the notice that was given stands, the answer names the new one.
                *stop = Stop { event, telling: false, start: false, ..*stop };
                return self.told();
            }
        };
        self.session.caching =
            Caching::Stopping(Stop { event, notice: event, invalidated: quiet, telling: false, start: false });
        self.session.span += 1;
        self.names.clear();
        self.pages.clear();
        if !quiet {
            self.notify(Notice::StopCaching { event });
            self.read_anew();
            self.seek_anew();
        }
        self.touched.extend(self.files.keys().copied());
    }

    pub(crate) fn invalidated(&mut self, event: u64) {
        if let Caching::Stopping(stop) = &mut self.session.caching {
            stop.invalidated |= stop.notice == event;
        }
    }

    /// Whether somebody waits for this session to have flushed everything.
    pub(crate) fn is_making_way(&self) -> bool {
        matches!(self.session.caching, Caching::Stopping(_)) || matches!(self.session.state, State::Leaving)
    }

    /// When everything is flushed and dropped: tell the service, or leave.
    pub(crate) fn check_stopping(&mut self) {
        let stopping = match self.session.caching {
            Caching::Stopping(stop) if stop.invalidated && !stop.telling => Some(stop),
            Caching::On | Caching::Off | Caching::Stopping(_) => None,
        };
        let leaving = matches!(self.session.state, State::Leaving) && !self.session.detaching;
        if (stopping.is_none() && !leaving)
            || (stopping.is_some() && !self.locks.all_recorded())
            || self.control.opening(self.session.span)
            || !self.files.values().all(|f| f.is_settled())
        {
            return;
        }
        if !self.accesses.is_empty() {
            return self.tell_accesses();
        }
        if leaving {
            self.session.detaching = true;
            self.control_start(ShardId::VOLUMES, Request::Detach, Purpose::Detach, None);
        } else if let Some(stop) = stopping {
            let event = stop.event;
            self.session.caching = Caching::Stopping(Stop { telling: true, ..stop });
            let open = self.files.values().filter(|f| f.is_open()).map(|f| (f.inode, f.access())).collect();
            for file in self.files.values_mut().filter(|f| f.is_open()) {
                // Recorded from whenever the service hears it, so the last close is to be told even if that comes first.
                file.opener = true;
                file.recorded_writes |= file.writers > 0;
            }
            let request = Request::StoppedCaching { event, open };
            self.control_start(ShardId::VOLUMES, request, Purpose::StoppedCaching { event }, None);
        }
    }

    pub(crate) fn stopped_caching(&mut self, event: u64, result: Result<Response, MetadataError>) {
        let Caching::Stopping(stop) = self.session.caching else { return };
        if stop.event != event || !stop.telling {
            // Asked again meanwhile: the answer to that follows.
            return;
        }
        if result.is_err() {
            self.session.caching = Caching::Stopping(Stop { telling: false, ..stop });
            return self.told();
        }
        self.session.caching = Caching::Off;
        self.session.off_since = self.now;
        self.read_anew();
        self.seek_anew();
        for file in self.files.values_mut().filter(|f| f.is_open()) {
            file.recorded = true;
        }
        if stop.start {
            self.start_caching();
        }
        self.told();
        self.touched.extend(self.files.keys().copied());
    }

    pub(crate) fn unmount(&mut self, id: CallId) {
        self.session.leaving.push(id);
        self.session.state = State::Leaving;
        self.touched.extend(self.files.keys().copied());
    }

    pub(crate) fn detached(&mut self) {
        for id in std::mem::take(&mut self.session.leaving) {
            self.complete(id, Ok(Reply::Done));
        }
        self.session_over("unmounted".into());
    }

    /// The session is over: whatever waits fails, whatever is dirty is lost.
    pub(crate) fn session_over(&mut self, reason: String) {
        if matches!(self.session.state, State::Over { .. }) {
            return;
        }
        let lost_bytes = self.files.values().map(|f| f.unsafe_bytes()).sum();
        let lost = self.lost_files();
        let unmounted = self.session.detaching;
        if self.session.detaching {
            // Our own end may be told as an event before the answer to `Detach` is here. Nothing was left to flush or to publish then.
            for id in std::mem::take(&mut self.session.leaving) {
                self.complete(id, Ok(Reply::Done));
            }
        }
        self.session.state = State::Over { reason: reason.clone() };
        self.session.caching = Caching::Off;
        self.session.span += 1;
        let error = ClientError::SessionOver { reason: reason.clone() };
        if self.config.block_when_over {
            for id in std::mem::take(&mut self.session.leaving) {
                self.complete(id, Err(error.clone()));
            }
        } else {
            self.complete_all(&error);
        }
        self.control.clear();
        self.data.clear();
        self.names.clear();
        self.pages.clear();
        self.files.clear();
        self.handles.clear();
        self.touched.clear();
        self.locks = Locks::default();
        self.removing.clear();
        self.changing_names.clear();
        self.names_held.clear();
        self.opening.clear();
        self.buffer.clear();
        self.reads.clear();
        self.seeks.clear();
        self.accesses.clear();
        self.session.waiting.clear();
        self.session.after_telling.clear();
        self.notify(Notice::SessionOver { reason, unmounted, lost_bytes, lost });
    }
}
