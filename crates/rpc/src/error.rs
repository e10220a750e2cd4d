//! What can go wrong, and the answer to "may the request have been executed?".

use crate::identity::{Expect, PeerIdentity};
use holdfast_types::ClusterId;
use holdfast_wire::frame::FrameError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a certificate, key or identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A PEM file holds something else than it should.
    #[error("{what} is not usable PEM: {reason}")]
    Pem {
        /// Which part of the identity.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The certificate names nobody of a cluster.
    #[error("the certificate names no role and id of a Holdfast cluster")]
    Nameless,
    /// The authority would not accept the certificate: it has expired, is not valid yet, or is another's.
    #[error(
        "the certificate {path} would be refused by everybody who trusts {authority}: {reason}. Check this host's clock, then have \
         the cluster's authority issue a new one"
    )]
    Refused {
        /// The certificate.
        path: std::path::PathBuf,
        /// The authority's.
        authority: std::path::PathBuf,
        /// Why.
        reason: String,
    },
    /// TLS does not accept the key or certificates.
    #[error("TLS refuses the identity: {0}")]
    Tls(#[from] rustls::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address leads nowhere, or the connection broke while it was set up.
    #[error("{address}: {source}")]
    Io {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// QUIC found nobody, or somebody who would not talk.
    #[error("{address}: {reason}")]
    Quic {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// The other side does not prove what it must: another cluster's authority, another role or id, or it refuses us.
    #[error("{address}: identity not accepted: {reason}")]
    Tls {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// Somebody else than expected answers there.
    #[error("{address}: expected {expected}, found {found}")]
    Stranger {
        /// Where.
        address: String,
        /// Who was expected.
        expected: Expect,
        /// Who answers.
        found: PeerIdentity,
    },
    /// A process of another cluster.
    #[error("it belongs to cluster {theirs}, we belong to {ours}")]
    Cluster {
        /// Its cluster.
        theirs: ClusterId,
        /// Our cluster.
        ours: ClusterId,
    },
    /// What it says contradicts what its certificate proves, or it says something else first.
    #[error("its first frame is not an honest hello: {0}")]
    Hello(&'static str),
    /// Not our protocol, or another version of it.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Nothing came of it in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// Our own identity is of no use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The address and the transport do not fit together.
    #[error("{address}: {reason}")]
    Address {
        /// Where.
        address: String,
        /// Why.
        reason: &'static str,
    },
}

impl ConnectError {
    /// Whether the host answered that nobody listens there. A host that is gone, or out of reach, says nothing.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }
}

/// A refusal by the other side's transport, as it travels. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    /// The request was dropped without an answer; it may have been executed.
    Abandoned = 1,
    /// The deadline had passed on arrival. Not executed.
    Late = 2,
    /// Too much work is waiting. Not executed.
    Busy = 3,
    /// The server is on its way out. Not executed.
    Closing = 4,
    /// Nobody handles such requests there. Not executed.
    Unhandled = 5,
    /// A reason that this build does not know.
    Other = 6,
}

impl Refusal {
    pub(crate) const fn from_u16(number: u16) -> Self {
        match number {
            1 => Self::Abandoned,
            2 => Self::Late,
            3 => Self::Busy,
            4 => Self::Closing,
            5 => Self::Unhandled,
            _ => Self::Other,
        }
    }
}

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RpcError {
    /// The peer cannot be reached. Never sent.
    #[error("{peer} cannot be reached: {source}")]
    Unreachable {
        /// Whom we called.
        peer: Arc<str>,
        /// Why.
        source: Arc<ConnectError>,
    },
    /// The connection ended. Sent or not.
    #[error("connection to {peer} closed: {reason}")]
    Closed {
        /// Whom we called.
        peer: Arc<str>,
        /// Whether the request was on its way.
        sent: bool,
        /// Why.
        reason: Arc<str>,
    },
    /// No answer in time. Sent or not.
    #[error("no answer from {peer} within {waited:?}")]
    Deadline {
        /// Whom we called.
        peer: Arc<str>,
        /// Whether the request was on its way.
        sent: bool,
        /// The time it had.
        waited: Duration,
    },
    /// Too many requests are under way already. Never sent.
    #[error("too much is waiting for {peer}")]
    Full {
        /// Whom we called.
        peer: Arc<str>,
    },
    /// Our own mistake: larger than a frame may be. Never sent.
    #[error(transparent)]
    TooLarge(FrameError),
    /// The other side's transport says no.
    #[error("{peer} refused: {refusal:?}")]
    Refused {
        /// Whom we called.
        peer: Arc<str>,
        /// Why.
        refusal: Refusal,
    },
}

impl RpcError {
    /// Whether the request may have been executed: false means it certainly was not.
    pub const fn may_have_executed(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Full { .. } | Self::TooLarge(_) => false,
            Self::Closed { sent, .. } | Self::Deadline { sent, .. } => *sent,
            Self::Refused { refusal, .. } => match refusal {
                Refusal::Abandoned | Refusal::Other => true,
                Refusal::Late | Refusal::Busy | Refusal::Closing | Refusal::Unhandled => false,
            },
        }
    }

    /// Whether there is no connection now: another server is the better try.
    pub const fn is_connection_closed(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Closed { .. } => true,
            Self::Refused { refusal, .. } => matches!(refusal, Refusal::Closing),
            Self::Deadline { .. } | Self::Full { .. } | Self::TooLarge(_) => false,
        }
    }
}

/// Why a one-way message was dropped on the spot.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CastError {
    /// There is no connection.
    #[error("not connected")]
    NotConnected,
    /// The queue has no room.
    #[error("queue is full")]
    Full,
    /// Larger than a frame may be.
    #[error(transparent)]
    TooLarge(#[from] FrameError),
}
