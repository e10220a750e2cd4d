//! One client core, one service, and a network between them that loses, delays and reorders by seed.

use super::fake::Service;
use crate::{
    Call, CallId, ChunkReply, ClientCore, ClientError, Config, Effect, Failure, HandleId, Input, Notice, OpenMode,
    Reply, Ticket,
};
use bytes::Bytes;
use holdfast_types::prng::Prng;
use holdfast_types::{FileName, InodeId, Instant, Sequence, ServerId};
use holdfast_wire::chunk::ChunkOp;
use holdfast_wire::metadata::{Answer, ClientRecord, Envelope, Request};
use holdfast_wire::namespace::{Attributes, NewNode, Query};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

enum Event {
    /// A request reaches the metadata service.
    Metadata(Ticket, ServerId, Box<Envelope>, Instant),
    Chunk(Ticket, crate::ChunkCall, Instant),
    MetadataAnswer(Ticket, Result<Answer, Failure>),
    ChunkAnswer(Ticket, Result<ChunkReply, Failure>),
}

/// Whether it is a request of this ticket that the service may hold for as long as another owner likes.
fn is_held(event: &Event, ticket: Ticket) -> bool {
    let Event::Metadata(of, _, envelope, _) = event else { return false };
    *of == ticket && matches!(envelope.request, Request::Query(Query::AwaitLock { .. } | Query::AwaitOpen { .. }))
}

pub struct World {
    pub core: ClientCore,
    pub service: Service,
    pub now: Instant,
    prng: Prng,
    events: BTreeMap<(Instant, u64), Event>,
    event_next: u64,
    timer: Option<Instant>,
    call_next: u64,
    /// Percent of messages lost, each way.
    pub loss: u64,
    /// Nothing arrives at all.
    pub cut: bool,
    /// Answers to reads, of data and of metadata, stay on their way until `release_reads`.
    pub hold_reads: bool,
    held: Vec<Event>,
    /// A metadata server that does not answer any more, not even that it does not lead.
    pub dead: Option<ServerId>,
    pub completed: BTreeMap<CallId, Result<Reply, ClientError>>,
    pub notices: Vec<Notice>,
    /// What is under way to storage: file, first byte, end.
    writing: BTreeMap<Sequence, (InodeId, u64, u64)>,
    outstanding: BTreeMap<Ticket, Sequence>,
    /// Requests dropped or sent again.
    pub forgotten: u64,
    pub sent_metadata: u64,
    pub sent_chunks: u64,
    pub trace: Vec<String>,
    answered: BTreeSet<Ticket>,
    /// Largest number of bytes that storage had to take at once.
    pub in_flight_max: u64,
}

pub fn config() -> Config {
    Config::new("main", ClientRecord::default(), vec![ServerId(1), ServerId(2), ServerId(3)], 99)
}

pub fn name(text: &str) -> FileName {
    FileName::new(text.as_bytes()).expect("a name")
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, config(), Service::new())
    }

    pub fn with(seed: u64, config: Config, service: Service) -> Self {
        let now = Instant(1_000_000_000);
        Self {
            core: ClientCore::new(config, now, seed),
            service,
            now,
            prng: Prng::new(seed).fork(1),
            events: BTreeMap::new(),
            event_next: 0,
            timer: None,
            call_next: 1,
            loss: 0,
            cut: false,
            hold_reads: false,
            held: Vec::new(),
            dead: None,
            completed: BTreeMap::new(),
            notices: Vec::new(),
            writing: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            forgotten: 0,
            sent_metadata: 0,
            sent_chunks: 0,
            trace: Vec::new(),
            answered: BTreeSet::new(),
            in_flight_max: 0,
        }
    }

    pub fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.core.step(self.now, input, &mut effects);
        for effect in effects {
            self.trace.push(format!("{:?} {effect:?}", self.now).chars().take(200).collect());
            match effect {
                Effect::SendMetadata { ticket, server, envelope, deadline } => {
                    self.sent_metadata += 1;
                    self.post(Event::Metadata(ticket, server, Box::new(envelope), deadline));
                }
                Effect::SendChunk { ticket, call, deadline } => {
                    self.sent_chunks += 1;
                    self.note_write(ticket, &call);
                    self.post(Event::Chunk(ticket, call, deadline));
                }
                Effect::Forget { ticket } => {
                    self.forgotten += 1;
                    // The client hangs up on what the service may hold for long.
                    self.events.retain(|_, event| !is_held(event, ticket));
                }
                Effect::Complete { id, result } => {
                    let old = self.completed.insert(id, result);
                    assert!(old.is_none(), "{id:?} completed twice");
                }
                Effect::Notify(notice) => self.notices.push(notice),
                Effect::SetTimer { at } => self.timer = Some(at),
            }
        }
    }

    /// Checks that no two changes of a file that overlap are under way.
    fn note_write(&mut self, ticket: Ticket, call: &crate::ChunkCall) {
        let request = call.request();
        let (chunk, offset, length) = match &request.op {
            ChunkOp::Write { chunk, offset, .. } => {
                let (_, pieces) = call.clone().seal();
                (*chunk, *offset, pieces.iter().map(Bytes::len).sum::<usize>() as u64)
            }
            ChunkOp::Zero { chunk, offset, length } => (*chunk, *offset, u64::from(*length)),
            _ => return,
        };
        let start = chunk.index.0 * holdfast_types::limits::CHUNK_BYTES + u64::from(offset);
        let range = (chunk.inode, start, start + length);
        for (sequence, (inode, from, to)) in &self.writing {
            let overlap = *inode == range.0 && *from < range.2 && range.1 < *to;
            assert!(*sequence == request.sequence || !overlap, "overlapping writes {range:?} and {from}..{to}");
        }
        self.writing.insert(request.sequence, range);
        self.outstanding.insert(ticket, request.sequence);
        self.in_flight_max = self.in_flight_max.max(self.writing.values().map(|(_, from, to)| to - from).sum());
    }

    fn post(&mut self, event: Event) {
        let delay = Duration::from_micros(self.prng.between(100, if self.loss > 0 { 20_000 } else { 400 }));
        self.post_at(self.now + delay, event);
    }

    fn post_at(&mut self, at: Instant, event: Event) {
        self.event_next += 1;
        self.events.insert((at, self.event_next), event);
    }

    /// What was held arrives, before anything else does.
    pub fn release_reads(&mut self) {
        self.hold_reads = false;
        for event in std::mem::take(&mut self.held) {
            self.arrive(event);
        }
    }

    fn lost(&mut self) -> bool {
        self.cut || (self.loss > 0 && self.prng.chance(self.loss, 100))
    }

    /// One thing happens: a message arrives, or time reaches the timer.
    pub fn happen(&mut self) {
        let event_at = self.events.keys().next().map(|(at, _)| *at);
        match (event_at, self.timer) {
            (Some(event_at), timer) if timer.is_none_or(|timer| event_at <= timer) => {
                self.now = self.now.max(event_at);
                let (_, event) = self.events.pop_first().expect("just seen");
                self.arrive(event);
            }
            (_, Some(at)) => {
                self.now = self.now.max(at);
                self.timer = None;
                self.step(Input::Tick);
            }
            _ => panic!("nothing will ever happen again"),
        }
    }

    fn arrive(&mut self, event: Event) {
        match event {
            Event::Metadata(ticket, server, envelope, deadline) => {
                if self.lost() || self.dead == Some(server) {
                    return self.post_at(deadline, Event::MetadataAnswer(ticket, Err(Failure::TimedOut)));
                }
                let answer = self.service.metadata(server, &envelope);
                // A duplicate now and then: the network may repeat, the service must not.
                if self.loss > 0 && self.prng.chance(1, 10) {
                    self.service.metadata(server, &envelope);
                }
                match answer {
                    Some(answer) if self.hold_reads && matches!(envelope.request, Request::Query(_)) => {
                        self.held.push(Event::MetadataAnswer(ticket, Ok(answer)));
                    }
                    Some(answer) if !self.lost() => self.post(Event::MetadataAnswer(ticket, Ok(answer))),
                    Some(_) => self.post_at(deadline, Event::MetadataAnswer(ticket, Err(Failure::TimedOut))),
                    None => {
                        // Held; looked at again a little later, and answered near the deadline.
                        let again = self.now + Duration::from_millis(50);
                        if again + Duration::from_millis(100) < deadline {
                            self.post_at(again, Event::Metadata(ticket, server, envelope, deadline));
                        } else {
                            let mut envelope = envelope;
                            match &mut envelope.request {
                                Request::Renew { wait, .. } | Request::GetMap { wait, .. } => *wait = false,
                                _ => {}
                            }
                            let held = Event::Metadata(ticket, server, envelope.clone(), deadline);
                            let answer = self.service.metadata(server, &envelope).unwrap_or_else(|| {
                                assert!(is_held(&held, ticket), "not held: {:?}", envelope.request);
                                self.service.ask_again(&envelope.request)
                            });
                            self.post(Event::MetadataAnswer(ticket, Ok(answer)));
                        }
                    }
                }
            }
            Event::Chunk(ticket, call, deadline) => {
                if self.lost() {
                    return self.post_at(deadline, Event::ChunkAnswer(ticket, Err(Failure::TimedOut)));
                }
                let node = call.node;
                let (request, pieces) = call.seal();
                let (answer, data) = self.service.chunk(node, &request, &pieces.concat());
                if self.lost() {
                    return self.post_at(deadline, Event::ChunkAnswer(ticket, Err(Failure::TimedOut)));
                }
                let reply = ChunkReply::check(&request, answer, data);
                let event = Event::ChunkAnswer(ticket, Ok(reply));
                if self.hold_reads && matches!(request.op, ChunkOp::Read { .. }) {
                    self.held.push(event);
                } else {
                    self.post(event);
                }
            }
            Event::MetadataAnswer(ticket, result) => {
                if self.answered.insert(ticket) {
                    self.step(Input::MetadataAnswer { ticket, result });
                }
            }
            Event::ChunkAnswer(ticket, result) => {
                let done =
                    result.as_ref().is_ok_and(|r| matches!(r.answer, holdfast_wire::chunk::ChunkAnswer::Done { .. }));
                if let Some(sequence) = self.outstanding.remove(&ticket)
                    && (done || self.service.full)
                {
                    self.writing.remove(&sequence);
                }
                if self.answered.insert(ticket) {
                    self.step(Input::ChunkAnswer { ticket, result });
                }
            }
        }
    }

    // ---- calls ----

    pub fn start(&mut self, call: Call) -> CallId {
        let id = CallId(self.call_next);
        self.call_next += 1;
        self.step(Input::Call { id, call });
        id
    }

    pub fn wait(&mut self, id: CallId) -> Result<Reply, ClientError> {
        let started = self.now;
        while !self.completed.contains_key(&id) {
            self.happen();
            assert!(self.now.since(started) < Duration::from_secs(600), "{id:?} is never answered");
        }
        self.completed.remove(&id).expect("just seen")
    }

    pub fn ask(&mut self, call: Call) -> Result<Reply, ClientError> {
        let id = self.start(call);
        self.wait(id)
    }

    /// The answer, which must be given on the spot.
    pub fn at_once(&mut self, call: Call) -> Result<Reply, ClientError> {
        let id = self.start(call);
        self.completed.remove(&id).expect("answered from memory")
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.events.keys().next().is_some_and(|(at, _)| *at <= until) || self.timer.is_some_and(|at| at <= until)
        {
            self.happen();
        }
        self.now = until;
        self.step(Input::Tick);
    }

    pub fn run_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let started = self.now;
        while !condition(self) {
            self.happen();
            assert!(self.now.since(started) < Duration::from_secs(600), "{what} never happens");
        }
    }

    pub fn mount(&mut self) {
        assert!(matches!(self.ask(Call::Mount), Ok(Reply::Mounted { .. })));
    }

    pub fn create(&mut self, text: &str) -> (InodeId, HandleId) {
        let call = Call::Create {
            parent: InodeId::ROOT,
            name: name(text),
            node: NewNode::File,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            exclusive: false,
            open: Some(OpenMode { write: true, ..OpenMode::default() }),
        };
        match self.ask(call) {
            Ok(Reply::Created { attributes, handle: Some(handle), .. }) => (attributes.inode, handle),
            other => panic!("create: {other:?}"),
        }
    }

    pub fn write(&mut self, handle: HandleId, offset: u64, data: impl Into<Bytes>) -> Result<Reply, ClientError> {
        self.ask(Call::Write { handle, offset, data: data.into(), clear_set_ids: false })
    }

    pub fn read(&mut self, handle: HandleId, offset: u64, length: u32) -> Result<Vec<u8>, ClientError> {
        match self.ask(Call::Read { handle, offset, length })? {
            Reply::Data(data) => Ok(data.into_bytes().to_vec()),
            other => panic!("read: {other:?}"),
        }
    }

    pub fn stat(&mut self, inode: InodeId) -> Attributes {
        match self.ask(Call::GetAttributes { inode }) {
            Ok(Reply::Attributes(attributes)) => attributes,
            other => panic!("stat: {other:?}"),
        }
    }
}
