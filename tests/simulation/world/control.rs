//! A storage node's questions to shard 0's leader: heartbeats, maps, views. Mirrors `control`, `heartbeat` and `shell` of
//! `storage-node/server`.

use super::net::Body;
use super::node::DISK;
use super::{Local, Sim};
use holdfast_sim::Actor;
use holdfast_storage_core::Input;
use holdfast_types::limits::{NODE_HEARTBEAT, NODE_TTL};
use holdfast_types::{Instant, LogIndex, Sequence, SessionId, ShardId, Term};
use holdfast_wire::metadata::{Answer, DiskState, Envelope, Heartbeat, MetadataError, Request, Response};
use std::collections::BTreeMap;
use std::time::Duration;

const ASK_DEADLINE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(1);
const MAP_WAIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
const MAP_PAUSE: Duration = Duration::from_millis(100);
const BEATS_UNDER_WAY_MAX: usize = 4;

/// What a question is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Heartbeat { sent_at: Instant },
    Fetch,
    Follow,
    View { token: u64 },
}

struct Question {
    purpose: Purpose,
    request: Request,
    end: Instant,
    patience: Duration,
    server: usize,
    attempt: u64,
    /// Name of the message under way.
    call: Option<u64>,
}

/// All questions of a node's life.
pub(super) struct Control {
    questions: BTreeMap<u64, Question>,
    next: u64,
    leader: usize,
}

impl Control {
    pub(super) fn new(leader: usize) -> Self {
        Self { questions: BTreeMap::new(), next: 1, leader }
    }

    fn count(&self, is: impl Fn(&Purpose) -> bool) -> usize {
        self.questions.values().filter(|question| is(&question.purpose)).count()
    }
}

impl Sim {
    fn ask(&mut self, at: usize, purpose: Purpose, request: Request, (deadline, patience): (Duration, Duration)) {
        let now = self.world.local_now(self.nodes[at].actor);
        let Some(life) = &mut self.nodes[at].life else { return };
        let control = &mut life.control;
        let id = control.next;
        control.next += 1;
        let end = now + deadline;
        let question = Question { purpose, request, end, patience, server: control.leader, attempt: 0, call: None };
        control.questions.insert(id, question);
        self.ask_once(at, id);
    }

    /// Sends a question to the server whose turn it is.
    pub(super) fn ask_once(&mut self, at: usize, id: u64) {
        let actor = self.nodes[at].actor;
        let now = self.world.local_now(actor);
        let call = self.next_call();
        let Some(life) = &mut self.nodes[at].life else { return };
        let Some(question) = life.control.questions.get_mut(&id) else { return };
        let left = question.end.since(now);
        if left.is_zero() {
            let reason = "no metadata server answered".into();
            return self.answered(at, id, Err(MetadataError::Unavailable { reason }));
        }
        question.attempt += 1;
        question.call = Some(call);
        let patience = left.min(question.patience);
        let envelope = Box::new(Envelope {
            shard: ShardId::CLUSTER,
            session: SessionId::NONE,
            sequence: Sequence(0),
            answered_below: Sequence(0),
            term: Term(0),
            request: question.request.clone(),
        });
        let (attempt, to) = (question.attempt, self.servers[question.server].actor);
        self.send(actor, to, Body::Ask { call, envelope, patience });
        self.after_local(actor, patience, Local::AskPatience { id, attempt });
    }

    pub(super) fn ask_patience(&mut self, at: usize, id: u64, attempt: u64) {
        let Some(life) = &mut self.nodes[at].life else { return };
        if life.control.questions.get(&id).is_some_and(|q| q.attempt == attempt && q.call.is_some()) {
            self.ask_next(at, id, None);
        }
    }

    /// No answer, or none that helps: the server hinted at, or the next one after a pause.
    fn ask_next(&mut self, at: usize, id: u64, hint: Option<usize>) {
        let actor = self.nodes[at].actor;
        let Some(life) = &mut self.nodes[at].life else { return };
        let Some(question) = life.control.questions.get_mut(&id) else { return };
        question.call = None;
        match hint.filter(|hint| *hint != question.server) {
            Some(hint) => {
                question.server = hint;
                self.ask_once(at, id);
            }
            None => {
                question.server = (question.server + 1) % 3;
                self.after_local(actor, PAUSE, Local::AskAgain { id });
            }
        }
    }

    pub(super) fn control_answered(&mut self, at: usize, call: u64, answer: Answer) {
        let Some(life) = &mut self.nodes[at].life else { return };
        let found = life.control.questions.iter().find(|(_, question)| question.call == Some(call));
        let Some((id, server)) = found.map(|(id, question)| (*id, question.server)) else { return };
        match answer.result {
            Err(MetadataError::NotLeader { hint }) => {
                self.ask_next(at, id, hint.map(|server| server.0 as usize - 1));
            }
            result => {
                let LogIndex(_) = answer.applied;
                life.control.leader = server;
                self.answered(at, id, result);
            }
        }
    }

    pub(super) fn control_broken(&mut self, at: usize, peer: Actor) {
        let Some(server) = self.server_of(peer) else { return };
        let Some(life) = &mut self.nodes[at].life else { return };
        let waiting = life.control.questions.iter().filter(|(_, q)| q.server == server && q.call.is_some());
        let waiting: Vec<u64> = waiting.map(|(id, _)| *id).collect();
        for id in waiting {
            self.ask_next(at, id, None);
        }
    }

    fn answered(&mut self, at: usize, id: u64, result: Result<Response, MetadataError>) {
        let actor = self.nodes[at].actor;
        let Some(life) = &mut self.nodes[at].life else { return };
        let Some(question) = life.control.questions.remove(&id) else { return };
        match question.purpose {
            Purpose::Heartbeat { sent_at } => {
                if let Ok(Response::Heard { version, .. }) = result {
                    let behind = version > life.core.map_version();
                    life.gauges.heard(self.world.local_now(actor), sent_at);
                    self.node_input(at, Input::LeaderHeard { sent_at });
                    if behind {
                        self.fetch_map(at);
                    }
                }
            }
            Purpose::Fetch => self.take_map(at, result),
            Purpose::Follow => {
                self.take_map(at, result);
                self.after_local(actor, MAP_PAUSE, Local::FollowMap);
            }
            Purpose::View { token } => self.node_input(at, Input::ViewAnswer { token, result }),
        }
    }

    fn take_map(&mut self, at: usize, result: Result<Response, MetadataError>) {
        if let Ok(Response::Map(update)) = result {
            self.node_input(at, Input::Map(update));
        }
    }

    pub(super) fn ask_view(&mut self, at: usize, token: u64, request: Request) {
        self.ask(at, Purpose::View { token }, request, (ASK_DEADLINE, PATIENCE));
    }

    pub(super) fn fetch_map(&mut self, at: usize) {
        let Some(life) = &self.nodes[at].life else { return };
        if life.control.count(|purpose| *purpose == Purpose::Fetch) == 0 {
            let have = life.core.map_version();
            self.ask(at, Purpose::Fetch, Request::GetMap { have, wait: false }, (ASK_DEADLINE, PATIENCE));
        }
    }

    pub(super) fn follow_map(&mut self, at: usize) {
        let Some(life) = &self.nodes[at].life else { return };
        let have = life.core.map_version();
        self.ask(at, Purpose::Follow, Request::GetMap { have, wait: true }, (MAP_WAIT, MAP_WAIT));
    }

    /// Says that the node lives, now and from time to time.
    pub(super) fn beat(&mut self, at: usize) {
        self.beat_once(at);
        self.after_local(self.nodes[at].actor, NODE_HEARTBEAT, Local::Beat);
    }

    pub(super) fn beat_once(&mut self, at: usize) {
        let (node, sent_at) = (self.nodes[at].id, self.world.local_now(self.nodes[at].actor));
        let Some(life) = &mut self.nodes[at].life else { return };
        if life.control.count(|purpose| matches!(purpose, Purpose::Heartbeat { .. })) >= BEATS_UNDER_WAY_MAX {
            return;
        }
        let (oldest_operation_ms, [read_us, write_us, round_trip_us]) = life.gauges.said(sent_at);
        let disk = DiskState {
            id: DISK,
            incarnation: life.incarnation,
            capacity: 1 << 40,
            free: 1 << 39,
            reserve: 1 << 30,
            oldest_operation_ms,
            failed: life.failed,
            read_us,
            write_us,
        };
        let heartbeat = Heartbeat {
            node,
            address: format!("{node}:1"),
            labels: Vec::new(),
            pid: node.0 as u32,
            disks: vec![disk],
            acknowledged: life.acknowledged,
            leaving: false,
            round_trip_us,
        };
        let purpose = Purpose::Heartbeat { sent_at };
        self.ask(at, purpose, Request::Heartbeat(heartbeat), (NODE_TTL, PATIENCE));
    }
}
