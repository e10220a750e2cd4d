//! Where a peer is and how to talk to it: what all transports have in common once they are connected.

use crate::error::ConnectError;
use crate::identity::PeerIdentity;
use crate::local::Direct;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use tokio::io::{AsyncRead, AsyncWrite};

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// QUIC over UDP, mutual TLS 1.3: for control, where many small messages share datagrams.
    Quic,
    /// TCP with mutual TLS 1.3: for data, at half of QUIC's price per byte.
    Tls,
    /// Clear text over TCP, or over a Unix socket on one host. Over TCP nobody proves who he is: for trusted networks, and said
    /// out loud in the log. Over a Unix socket the kernel vouches that both ends run as one user.
    Plain,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
            Self::Plain => "plain",
        })
    }
}

/// Where a peer listens: `host:port` (resolved anew at every attempt) or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A host's name or number, and a port.
    Network(String),
    /// A socket file on this host; [`Transport::Plain`] only.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = ConnectError;

    fn from_str(text: &str) -> Result<Self, ConnectError> {
        let bad = |reason| Err(ConnectError::Address { address: text.into(), reason });
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                bad("a socket file is named by its whole path")
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self::Network(text.into())),
            _ => bad("expected host:port or unix:/path"),
        }
    }
}

impl From<std::net::SocketAddr> for Address {
    fn from(address: std::net::SocketAddr) -> Self {
        Self::Network(address.to_string())
    }
}

impl Address {
    /// The port, where there is one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Network(text) => text.rsplit_once(':')?.1.parse().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(text) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connected, not yet introduced pair of byte streams.
pub(crate) struct Stream {
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
    /// Who the other end is, where a certificate proves it.
    pub proven: Option<PeerIdentity>,
    /// Whether the transport itself notices damaged bytes (TLS records carry a tag), so that payloads need no sum of ours.
    pub covered: bool,
    /// The other end's address, for logs.
    pub remote: String,
    /// Keeps a QUIC connection open.
    pub quic: Option<quinn::Connection>,
    /// A way past `write` for small frames.
    pub direct: Option<Direct>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_or_a_socket_file() {
        for good in ["127.0.0.1:80", "[::1]:80", "node-1.storage.svc:7000", "unix:/run/holdfast/data"] {
            assert_eq!(good.parse::<Address>().expect(good).to_string(), good);
        }
        for bad in ["", "host", ":80", "host:", "host:99999", "unix:relative"] {
            assert!(bad.parse::<Address>().is_err(), "{bad:?}");
        }
    }
}
