//! A client: the real core and what `crates/client` does around it. What it does is up to its script.

use super::net::Body;
use super::script::Script;
use super::{Local, Sim, VOLUME};
use holdfast_client_core::{Call, CallId, ChunkReply, ClientCore, Config, Effect, Failure, Input, Notice, Ticket};
use holdfast_sim::{Actor, Latency};
use holdfast_types::prng::mix;
use holdfast_types::size::KIB;
use holdfast_types::{Instant, Sequence, ServerId, SessionId};
use holdfast_wire::chunk::ChunkRequest;
use holdfast_wire::metadata::{Answer, ClientRecord, Request};
use std::collections::BTreeMap;
use std::time::Duration;

/// A client, and its present mount if it has one.
pub(super) struct Client {
    pub(super) actor: Actor,
    pub(super) mount: Option<Mount>,
    pub(super) script: Script,
    pub(super) mounts: u64,
}

/// One life of a client core.
pub(super) struct Mount {
    pub(super) core: ClientCore,
    /// Which one, among all mounts of the run.
    pub(super) number: usize,
    /// Messages without an answer yet, by name of the call.
    asked: BTreeMap<u64, Asked>,
    tickets: BTreeMap<Ticket, u64>,
    timer: Option<Instant>,
    call_next: u64,
    /// Calls of the script under way: their records, and the slot that waits.
    pub(super) calls: BTreeMap<CallId, (usize, usize)>,
}

impl Mount {
    /// Name of the next call.
    pub(super) fn next_call(&self) -> u64 {
        self.call_next
    }
}

struct Asked {
    ticket: Ticket,
    to: Actor,
    what: What,
}

enum What {
    Mutation(SessionId, Sequence),
    Query(usize),
    Other,
    Chunk(Box<ChunkRequest>),
}

impl Sim {
    /// A client begins a mount.
    pub(super) fn mount(&mut self, at: usize) {
        let actor = self.clients[at].actor;
        let now = self.world.local_now(actor);
        self.clients[at].mounts += 1;
        let nonce = u128::from(mix(self.seed ^ mix(at as u64 ^ (self.clients[at].mounts << 8))));
        let mut servers: Vec<ServerId> = (1..=3).map(ServerId).collect();
        self.prng.shuffle(&mut servers);
        let record = ClientRecord { host: format!("host-{at}"), ..ClientRecord::default() };
        let config = Config {
            write_buffer_bytes: 256 * KIB,
            read_cache_bytes: 256 * KIB,
            metadata_cache_entries: 32,
            flush_bytes_in_flight: 128 * KIB,
            flush_requests_in_flight: 16,
            mutations_in_flight: 16,
            read_ahead_bytes: 64 * KIB,
            request_bytes: 64 * KIB,
            ..Config::new(VOLUME, record, servers, nonce)
        };
        let core = ClientCore::new(config, now, self.prng.next_u64());
        let number = self.record.mounts.len();
        self.record.mounts.push(Default::default());
        self.clients[at].mount = Some(Mount {
            core,
            number,
            asked: BTreeMap::new(),
            tickets: BTreeMap::new(),
            timer: None,
            call_next: 1,
            calls: BTreeMap::new(),
        });
        self.call(at, super::script::LIFE, Call::Mount);
    }

    /// A client dies; nothing is flushed.
    pub(super) fn crash_client(&mut self, at: usize) {
        if let Some(mount) = self.clients[at].mount.take() {
            self.record.mounts[mount.number].over = true;
        }
    }

    /// Somebody calls.
    pub(super) fn call(&mut self, at: usize, slot: usize, call: Call) {
        let (order, now, seen) = (self.record.order(), self.world.now(), self.record.seen);
        let Some(mount) = &mut self.clients[at].mount else { return };
        let id = CallId(mount.call_next);
        mount.call_next += 1;
        mount.calls.insert(id, (self.record.calls.len(), slot));
        self.record.calls.push(super::record::CallRecord {
            client: at,
            mount: mount.number,
            call: call.clone(),
            invoked: order,
            invoked_at: now,
            seen,
            returned: None,
        });
        self.client_input(at, Input::Call { id, call });
    }

    pub(super) fn client_input(&mut self, at: usize, input: Input) {
        let actor = self.clients[at].actor;
        self.note(actor, &input);
        let now = self.world.local_now(actor);
        let Some(mount) = &mut self.clients[at].mount else { return };
        let mut effects = std::mem::take(&mut self.room.client);
        mount.core.step(now, input, &mut effects);
        if let Some(session) = mount.core.session() {
            self.record.mounts[mount.number].session = Some(session);
        }
        for effect in effects.drain(..) {
            self.note_effect(actor, &effect);
            self.client_effect(at, effect);
        }
        self.room.client = effects;
    }

    fn client_effect(&mut self, at: usize, effect: Effect) {
        let actor = self.clients[at].actor;
        let now = self.world.local_now(actor);
        let Some(mount) = &mut self.clients[at].mount else { return };
        match effect {
            Effect::SendMetadata { ticket, server, envelope, deadline } => {
                let to = self.servers[server.0 as usize - 1].actor;
                let what = match self.metadata_asked(&envelope.request, envelope.session, envelope.sequence) {
                    Ok(what) => what,
                    Err(reason) => return self.fail(reason),
                };
                let call = self.enter(at, Asked { ticket, to, what });
                let patience = deadline.since(now);
                self.send(actor, to, Body::Ask { call, envelope: Box::new(envelope), patience });
                self.after_local(actor, patience, Local::CallTimeout { call });
            }
            Effect::SendChunk { ticket, call, deadline } => {
                let to = self.nodes[call.node.0 as usize - 1].actor;
                let (request, pieces) = call.seal();
                let payload = holdfast_client_core::Data { pieces }.into_bytes();
                let request = Box::new(request);
                let name = self.enter(at, Asked { ticket, to, what: What::Chunk(request.clone()) });
                let patience = deadline.since(now);
                self.changing(to, &request, payload.len());
                self.send(actor, to, Body::Chunk { call: name, request, payload, patience });
                self.after_local(actor, patience, Local::CallTimeout { call: name });
            }
            Effect::Forget { ticket } => {
                if let Some(call) = mount.tickets.remove(&ticket)
                    && let Some(asked) = mount.asked.remove(&call)
                {
                    self.send(actor, asked.to, Body::Cancel { call });
                }
            }
            Effect::Complete { id, result } => {
                if let Some((record, slot)) = mount.calls.remove(&id) {
                    let number = mount.number;
                    let (order, at_time, newest) = (self.record.order(), self.world.now(), self.truth[1].newest());
                    self.record.calls[record].returned =
                        Some(super::record::Returned { order, at: at_time, newest, result });
                    self.completed(at, number, record, slot);
                }
            }
            Effect::Notify(notice) => self.noticed(at, notice),
            Effect::SetTimer { at: due } => {
                mount.timer = Some(due);
                self.world.at_local(actor, due, Local::ClientTimer { due });
            }
        }
    }

    /// Notes a request before it leaves.
    fn metadata_asked(&mut self, request: &Request, session: SessionId, sequence: Sequence) -> Result<What, String> {
        let now = self.world.now();
        Ok(match request {
            Request::Mutate(mutation) => {
                self.record.asked(now, (session, sequence), mutation)?;
                What::Mutation(session, sequence)
            }
            Request::Query(query) => {
                let invoked = self.record.order();
                let query = query.clone();
                self.record.queries.push(super::record::QueryRecord { session, query, invoked, returned: None });
                What::Query(self.record.queries.len() - 1)
            }
            _ => What::Other,
        })
    }

    fn enter(&mut self, at: usize, asked: Asked) -> u64 {
        let call = self.next_call();
        if let Some(mount) = &mut self.clients[at].mount {
            mount.tickets.insert(asked.ticket, call);
            mount.asked.insert(call, asked);
        }
        call
    }

    fn noticed(&mut self, at: usize, notice: Notice) {
        let actor = self.clients[at].actor;
        match notice {
            Notice::StopCaching { event } => {
                self.stats.recalls += 1;
                let delay = Latency::between(Duration::from_millis(1), Duration::from_millis(50));
                self.world.after(actor, delay.sample(&mut self.prng), Local::Invalidated { event });
            }
            Notice::SessionOver { lost_bytes, .. } => {
                if let Some(mount) = &self.clients[at].mount {
                    let record = &mut self.record.mounts[mount.number];
                    record.over = true;
                    self.stats.lost_bytes += lost_bytes;
                    self.world.after(actor, Duration::ZERO, Local::MountOver { number: mount.number });
                }
            }
            Notice::WriteLost { inode, error } => self.fail(format!("writes of {inode} were lost: {error}")),
            Notice::StartCaching | Notice::Reachable { .. } => {}
        }
    }

    pub(super) fn client_timer(&mut self, at: usize, due: Instant) {
        let actor = self.clients[at].actor;
        if self.world.local_now(actor) < due {
            // The clock has changed its rate since the timer was set.
            return self.world.at_local(actor, due, Local::ClientTimer { due });
        }
        let Some(mount) = &mut self.clients[at].mount else { return };
        if mount.timer == Some(due) {
            mount.timer = None;
            self.client_input(at, Input::Tick);
        }
    }

    pub(super) fn client_message(&mut self, at: usize, body: Body) {
        match body {
            Body::Answer { call, answer } => self.metadata_answered(at, call, *answer),
            Body::ChunkDone { call, answer, payload } => {
                let Some(asked) = self.leave(at, call) else { return };
                let What::Chunk(request) = &asked.what else { return };
                let reply = ChunkReply::check(request, answer, payload);
                self.client_input(at, Input::ChunkAnswer { ticket: asked.ticket, result: Ok(reply) });
            }
            Body::Peer(_) | Body::Ask { .. } | Body::Chunk { .. } | Body::Cancel { .. } | Body::Group { .. } => {
                unreachable!("nobody says that to a client")
            }
        }
    }

    fn leave(&mut self, at: usize, call: u64) -> Option<Asked> {
        let mount = self.clients[at].mount.as_mut()?;
        let asked = mount.asked.remove(&call)?;
        mount.tickets.remove(&asked.ticket);
        Some(asked)
    }

    fn metadata_answered(&mut self, at: usize, call: u64, answer: Answer) {
        let Some(asked) = self.leave(at, call) else { return };
        let noted = match asked.what {
            What::Mutation(session, sequence) => self.record.mutated((session, sequence), &answer),
            What::Query(query) => {
                self.record.queried(query, &answer);
                Ok(())
            }
            What::Other | What::Chunk(_) => Ok(()),
        };
        if let Err(reason) = noted {
            return self.fail(reason);
        }
        self.client_input(at, Input::MetadataAnswer { ticket: asked.ticket, result: Ok(answer) });
    }

    pub(super) fn client_unanswered(&mut self, at: usize, call: u64, failure: Failure) {
        let Some(asked) = self.leave(at, call) else { return };
        let ticket = asked.ticket;
        let input = match asked.what {
            What::Chunk(_) => Input::ChunkAnswer { ticket, result: Err(failure) },
            What::Mutation(..) | What::Query(_) | What::Other => Input::MetadataAnswer { ticket, result: Err(failure) },
        };
        self.client_input(at, input);
    }

    pub(super) fn client_broken(&mut self, at: usize, peer: Actor) {
        let Some(mount) = &self.clients[at].mount else { return };
        let lost: Vec<u64> = mount.asked.iter().filter(|(_, asked)| asked.to == peer).map(|(call, _)| *call).collect();
        for call in lost {
            self.client_unanswered(at, call, Failure::Unreachable);
        }
    }
}
