//! Messages between actors, and the connections they travel on.
//!
//! Metadata servers speak to each other in datagrams. Everything else travels on streams: what arrives on one has no gap, and a
//! stream that has lost a message carries nothing any more.

use bytes::Bytes;
use holdfast_sim::Actor;
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest};
use holdfast_wire::group::GroupMessage;
use holdfast_wire::metadata::{Answer, Envelope};
use holdfast_wire::peer::PeerMessage;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is said.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "moved a few times; boxes for the frequent small ones would cost more")]
pub(super) enum Body {
    /// Metadata server to metadata server.
    Peer(PeerMessage),
    /// A request to a metadata server.
    Ask { call: u64, envelope: Box<Envelope>, patience: Duration },
    /// Its answer.
    Answer { call: u64, answer: Box<Answer> },
    /// A request to a storage node.
    Chunk { call: u64, request: Box<ChunkRequest>, payload: Bytes, patience: Duration },
    /// Its answer.
    ChunkDone { call: u64, answer: ChunkAnswer, payload: Bytes },
    /// The caller gave up.
    Cancel { call: u64 },
    /// Storage node to storage node.
    Group { message: Box<GroupMessage>, payload: Bytes },
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Connection and position; none for a datagram.
    pub(super) place: Option<(u64, u64)>,
    pub(super) body: Body,
}

/// What a receiver makes of a message's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one of its connection.
    Next,
    /// Of a connection that is over.
    Late,
    /// One before it was lost: the connection is over.
    Gap(u64),
}

/// Both ends of all streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    connection_next: u64,
    outgoing: BTreeMap<(Actor, Actor), (u64, u64)>,
    incoming: BTreeMap<(Actor, Actor), (u64, u64)>,
}

/// Position of a connection that carries nothing any more.
const OVER: u64 = u64::MAX;

impl Streams {
    /// The place of the next message; opens a connection if there is none.
    pub(super) fn place(&mut self, from: Actor, to: Actor) -> (u64, u64) {
        let (connection, position) = self.outgoing.entry((from, to)).or_insert_with(|| {
            self.connection_next += 1;
            (self.connection_next, 0)
        });
        *position += 1;
        (*connection, *position - 1)
    }

    /// Judges a message that has arrived.
    pub(super) fn arrive(&mut self, from: Actor, to: Actor, (connection, position): (u64, u64)) -> Arrival {
        let (current, expected) = self.incoming.entry((from, to)).or_default();
        if connection > *current {
            (*current, *expected) = (connection, 0);
        }
        if connection < *current || *expected == OVER {
            return Arrival::Late;
        }
        if position != *expected {
            *expected = OVER;
            return Arrival::Gap(connection);
        }
        *expected += 1;
        Arrival::Next
    }

    /// The sender's connection is over; the next message opens another.
    pub(super) fn close(&mut self, from: Actor, to: Actor) {
        self.outgoing.remove(&(from, to));
    }

    /// Whether a sender still uses a connection.
    pub(super) fn is_open(&self, from: Actor, to: Actor, connection: u64) -> bool {
        self.outgoing.get(&(from, to)).is_some_and(|(open, _)| *open == connection)
    }

    /// An actor lost its memory.
    pub(super) fn forget(&mut self, actor: Actor) {
        self.outgoing.retain(|(from, _), _| *from != actor);
        // Its next life must not take what was meant for this one.
        for ((_, to), (_, expected)) in &mut self.incoming {
            if *to == actor {
                *expected = OVER;
            }
        }
    }
}
