//! Being reached: sockets that peers dial, one kind per transport.

use crate::dial::{TLS_READ_BYTES, TLS_WRITE_BYTES, plain, proven, quic_socket, quic_stream, transport_config, unix};
use crate::error::ConnectError;
use crate::identity::Identity;
use crate::local;
use crate::stream::{Address, Stream, Transport};
use quinn::{AsyncUdpSocket, Runtime};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

/// How long a closing QUIC endpoint waits for its peers to have heard of it.
const CLOSE_PATIENCE: Duration = Duration::from_millis(300);
/// Milliseconds to wait for a port of QUIC to become free; it has never taken more than a few.
const FREE_WAITS: u32 = 1000;

/// A listening socket.
pub(crate) enum Listener {
    Tls(TcpListener),
    Plain(TcpListener),
    Unix(UnixListener),
    /// The endpoint, and its socket as long as any task of quinn still holds it.
    Quic(quinn::Endpoint, Weak<dyn AsyncUdpSocket>),
}

/// Somebody who knocked; nothing is known about him yet.
pub(crate) enum Knock {
    Tls(TcpStream, SocketAddr),
    Plain(TcpStream, SocketAddr),
    Unix(UnixStream),
    /// At the socket beside a port.
    Local(UnixStream),
    Quic(Box<quinn::Incoming>),
}

impl Listener {
    /// Listens; the address returned has the port that was chosen where 0 was asked for.
    pub async fn bind(
        identity: &Identity,
        transport: Transport,
        address: &Address,
    ) -> Result<(Self, Address), ConnectError> {
        let broken = |source| ConnectError::Io { address: address.to_string(), source };
        let name = match (transport, address) {
            (Transport::Plain, Address::Unix(path)) => {
                remove_stale(path).await.map_err(broken)?;
                let listener = UnixListener::bind(path).map_err(broken)?;
                return Ok((Self::Unix(listener), address.clone()));
            }
            (_, Address::Unix(_)) => {
                let reason = "a socket file needs transport plain";
                return Err(ConnectError::Address { address: address.to_string(), reason });
            }
            (_, Address::Network(name)) => name,
        };
        if transport == Transport::Quic {
            let at = tokio::net::lookup_host(name).await.map_err(broken)?.next();
            let at = at.ok_or_else(|| broken(io::ErrorKind::NotFound.into()))?;
            let mut config = quinn::ServerConfig::with_crypto(identity.tls()?.quic_server.clone());
            config.transport_config(transport_config());
            let socket = quic_socket(at).map_err(broken)?;
            let runtime = Arc::new(quinn::TokioRuntime);
            let socket = runtime.wrap_udp_socket(socket).map_err(broken)?;
            let held = Arc::downgrade(&socket);
            let defaults = identity.tls()?.quic_endpoint();
            let endpoint = quinn::Endpoint::new_with_abstract_socket(defaults, Some(config), socket, runtime);
            let endpoint = endpoint.map_err(broken)?;
            let local = endpoint.local_addr().map_err(broken)?.into();
            return Ok((Self::Quic(endpoint, held), local));
        }
        let listener = TcpListener::bind(name).await.map_err(broken)?;
        let local = listener.local_addr().map_err(broken)?;
        if transport == Transport::Plain {
            warn_plain(local);
            return Ok((Self::Plain(listener), local.into()));
        }
        identity.tls()?;
        Ok((Self::Tls(listener), local.into()))
    }

    /// Waits for the next who knocks; `None` when nobody can any more.
    pub async fn accept(&self) -> io::Result<Option<Knock>> {
        Ok(Some(match self {
            Self::Tls(listener) => listener.accept().await.map(|(stream, from)| Knock::Tls(stream, from))?,
            Self::Plain(listener) => listener.accept().await.map(|(stream, from)| Knock::Plain(stream, from))?,
            Self::Unix(listener) => Knock::Unix(listener.accept().await?.0),
            Self::Quic(endpoint, _) => {
                return Ok(endpoint.accept().await.map(|incoming| Knock::Quic(Box::new(incoming))));
            }
        }))
    }

    /// Frees the port.
    pub async fn close(self) {
        match self {
            Self::Quic(endpoint, held) => {
                endpoint.close(0u32.into(), b"");
                // Peers that have gone too never confirm the end; the protocol would wait for them three probe timeouts long.
                let _ = tokio::time::timeout(CLOSE_PATIENCE, endpoint.wait_idle()).await;
                drop(endpoint);
                // quinn's own task lets the socket go a moment later, and tells nobody.
                for _ in 0..FREE_WAITS {
                    if held.strong_count() == 0 {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Self::Unix(listener) => {
                let path = listener.local_addr().ok().and_then(|at| at.as_pathname().map(Path::to_owned));
                drop(listener);
                // A file left behind is removed at the next start.
                let _ = path.map(std::fs::remove_file);
            }
            Self::Tls(_) | Self::Plain(_) => {}
        }
    }
}

fn warn_plain(local: SocketAddr) {
    if local.ip().is_loopback() {
        tracing::warn!(address = %local, "serving in clear text, peers prove nothing; reachable from this host alone");
    } else {
        tracing::warn!(
            address = %local,
            "SERVING IN CLEAR TEXT, PEERS PROVE NOTHING: whoever reaches this port can read and change everything"
        );
    }
}

/// Removes a socket file that nobody listens on any more.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) if UnixStream::connect(path).await.is_ok() => Err(io::ErrorKind::AddrInUse.into()),
        Ok(_) => std::fs::remove_file(path),
    }
}

impl Knock {
    /// Who claims to be there, for logs.
    pub fn remote(&self) -> String {
        match self {
            Self::Tls(_, from) | Self::Plain(_, from) => from.to_string(),
            Self::Unix(_) => "unix".into(),
            Self::Local(_) => "local".into(),
            Self::Quic(incoming) => incoming.remote_address().to_string(),
        }
    }

    /// Lets him in as far as the hello.
    pub async fn admit(self, identity: &Identity) -> Result<Stream, ConnectError> {
        let remote = self.remote();
        let broken = |source| ConnectError::Io { address: remote.clone(), source };
        match self {
            Self::Plain(stream, _) => plain(stream, remote.clone()).map_err(broken),
            Self::Unix(stream) => unix(stream, remote.clone()).map_err(broken),
            Self::Local(stream) => local::admit(identity, stream).await,
            Self::Tls(tcp, _) => {
                tcp.set_nodelay(true).map_err(broken)?;
                let acceptor = TlsAcceptor::from(identity.tls()?.server.clone());
                let buffered = BufReader::with_capacity(TLS_READ_BYTES, tcp);
                let mut stream = acceptor
                    .accept(buffered)
                    .await
                    .map_err(|e| ConnectError::Tls { address: remote.clone(), reason: e.to_string() })?;
                let session = stream.get_mut().1;
                session.set_buffer_limit(Some(TLS_WRITE_BYTES));
                let proven = proven(session.peer_certificates(), identity, &remote)?;
                let (read, write) = tokio::io::split(stream);
                let (read, write) = (Box::new(read), Box::new(write));
                Ok(Stream { read, write, proven: Some(proven), covered: true, remote, quic: None, direct: None })
            }
            Self::Quic(incoming) => {
                let failed =
                    |e: quinn::ConnectionError| ConnectError::Quic { address: remote.clone(), reason: e.to_string() };
                let connection = (*incoming).await.map_err(failed)?;
                let streams = connection.accept_bi().await.map_err(failed)?;
                quic_stream(identity, connection, streams, remote)
            }
        }
    }
}
