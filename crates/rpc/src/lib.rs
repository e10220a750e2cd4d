//! Connections between Holdfast's processes: requests with deadlines, cancellation and payloads that are not copied, one-way
//! messages in order, mutual identity, back-pressure, reconnection.
//!
//! One API over several transports ([`Transport`]): quinn for control, TCP with TLS 1.3 for data, and clear text where the
//! operator says that the network is trusted. A [`Server`] gives what arrives to a [`Handler`]; a [`Peer`] calls one. Either end
//! may call the other over a connection that exists ([`Link`]), which is how a server reaches a client that nobody can dial.
//!
//! Invariants:
//! * A request is answered once: by an answer, by a refusal, or by an error that says whether it may have been executed
//!   ([`RpcError::may_have_executed`]).
//! * Frames of one connection are delivered in the order in which they were sent. Reconnection never repeats one.
//! * Nothing waits without a bound: every call has a deadline, every queue a size, every silent connection an end.
//! * Nothing but a Hello is read from a stranger.

mod buffers;
pub mod ca;
mod connection;
#[cfg(test)]
mod contract;
mod dial;
mod error;
mod handler;
mod identity;
mod lane;
mod listen;
mod local;
mod peer;
mod reader;
pub mod retry;
mod server;
mod shared;
mod stream;
mod table;
mod tls;
mod writer;

pub use error::{CastError, IdentityError, Refusal};
pub use error::{ConnectError, RpcError};
pub use handler::{Handler, Incoming, Link, Responder, Response};
pub use holdfast_wire::frame::TraceContext;
pub use identity::{Expect, Identity, PeerIdentity, Role};
pub use peer::{Peer, PeerOptions, Request};
pub use server::{Server, ServerOptions};
pub use stream::{Address, Transport};
