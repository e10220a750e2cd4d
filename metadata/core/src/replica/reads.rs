//! Linearizable reads: a round of ReadIndex is shared by all reads that wait when it begins.
//!
//! ```text
//! waiting ──round begins──▶ asked ──quorum──▶ at index ──applied──▶ served
//!    ▲                        │ not answered in time: raft drops rounds in silence
//!    └────────────────────────┘
//! ```
//! * A read joins only a round that begins after it arrived.
//! * No round begins before the leader has committed in its term.

use super::{Event, Replica, Token};
use crate::api::Counters;
use crate::machine::Machine;
use raft::ReadState;
use std::collections::BTreeMap;

/// Rounds in flight; reads that arrive meanwhile share the next.
const ROUNDS_MAX: usize = 2;
/// Ticks after which a round is taken for lost.
const ROUND_TICKS_MAX: u64 = 6;

struct Round {
    asked: u64,
    tokens: Vec<Token>,
}

/// Reads on their way.
#[derive(Default)]
pub(super) struct Reads {
    waiting: Vec<Token>,
    rounds: BTreeMap<u64, Round>,
    next: u64,
    confirmed: BTreeMap<u64, Vec<Token>>,
}

impl Reads {
    /// Rounds that were not answered begin anew.
    pub(super) fn ask_again(&mut self, now: u64) {
        let Self { waiting, rounds, .. } = self;
        rounds.retain(|_, round| {
            let keep = now < round.asked + ROUND_TICKS_MAX;
            if !keep {
                waiting.append(&mut round.tokens);
            }
            keep
        });
    }

    /// This server does not lead (any more).
    pub(super) fn lose(&mut self, events: &mut Vec<Event>) {
        let Self { waiting, rounds, confirmed, .. } = self;
        let rounds = std::mem::take(rounds).into_values().flat_map(|round| round.tokens);
        let confirmed = std::mem::take(confirmed).into_values().flatten();
        events.extend(waiting.drain(..).chain(rounds).chain(confirmed).map(|token| Event::Read(token, false)));
    }
}

impl<M: Machine> Replica<M> {
    /// Asks for a linearizable read; an event says when.
    pub(crate) fn read(&mut self, token: Token) {
        self.reads.waiting.push(token);
    }

    /// Begins a round if reads wait.
    pub(super) fn ask_reads(&mut self, events: &mut Vec<Event>, counters: &mut Counters) {
        if self.reads.waiting.is_empty() {
            return;
        }
        if !self.is_leader() {
            return self.reads.lose(events);
        }
        if self.config.mutations.read_index_skipped {
            events.extend(self.reads.waiting.drain(..).map(|token| Event::Read(token, true)));
            return;
        }
        if self.reads.rounds.len() >= ROUNDS_MAX || !self.node.raft.commit_to_current_term() {
            return;
        }
        self.reads.next += 1;
        let tokens = std::mem::take(&mut self.reads.waiting);
        self.reads.rounds.insert(self.reads.next, Round { asked: self.ticks, tokens });
        counters.read_rounds += 1;
        self.node.read_index(self.reads.next.to_be_bytes().to_vec());
    }

    /// A quorum has confirmed this server's leadership, since the round began.
    pub(super) fn reads_confirmed(&mut self, states: Vec<ReadState>) {
        for state in states {
            let Ok(number) = <[u8; 8]>::try_from(state.request_ctx.as_slice()) else { continue };
            if let Some(round) = self.reads.rounds.remove(&u64::from_be_bytes(number)) {
                self.reads.confirmed.entry(state.index).or_default().extend(round.tokens);
            }
        }
    }

    /// Lets go those whose index is applied.
    pub(super) fn serve_reads(&mut self, events: &mut Vec<Event>, counters: &mut Counters) {
        while let Some(first) = self.reads.confirmed.first_entry() {
            if *first.key() > self.applied.index.0 {
                return;
            }
            for token in first.remove() {
                counters.reads += 1;
                events.push(Event::Read(token, true));
            }
        }
    }
}
