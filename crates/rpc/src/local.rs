//! The short way to a server on this host: a Unix socket beside its port, in the clear once both ends have proved who they are.
//!
//! ```text
//! dialler                                         server
//!    │ connect to a name made of cluster, role, id and port
//!    │◀──────────── TLS 1.3, both certificates ─────────▶│
//!    │◀──────────── one byte: let in ────────────────────│
//!    │◀═══════════ frames, in the clear ════════════════▶│
//! ```
//!
//! Who talks is proved as over the network; what is said afterwards travels through the kernel's memory, where nobody can read or
//! change it, so encrypting it would protect nothing and cost more than all the rest.
//!
//! * The name is abstract: it belongs to a network namespace, so it reaches exactly as far as loopback does, and goes with its process.
//! * Anybody may take the name. He cannot prove to be the server, and the dialler takes the network.
//! * The server speaks the last word of the handshake, and the dialler the first word after it: no byte is read on the wrong side of
//!   the change. The server sends no session tickets, which could arrive after it.

use crate::dial::proven;
use crate::error::ConnectError;
use crate::identity::{Identity, PeerIdentity};
use crate::stream::Stream;
use holdfast_types::ClusterId;
use socket2::SockRef;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What a server says when it has judged a certificate.
const LET_IN: u8 = 1;
/// Bytes that may be on their way: a large request in few pieces. The kernel may grant less.
const BUFFER_BYTES: usize = 1 << 20;

/// Where a server with this port listens: an abstract name, which a zero byte begins.
fn name(cluster: ClusterId, server: PeerIdentity, port: u16) -> String {
    format!("\0holdfast-{cluster}-{server}-{port}")
}

/// Listens beside a port. `None`, and the network alone, when another process has the name.
pub(crate) fn listen(identity: &Identity, port: u16) -> Option<UnixListener> {
    let name = name(identity.cluster(), identity.me(), port);
    UnixListener::bind(OsStr::from_bytes(name.as_bytes()))
        .inspect_err(|error| tracing::warn!(port, %error, "no socket for callers on this host; they take the network"))
        .ok()
}

/// Connects to a server if it is on this host.
pub(crate) async fn dial(identity: &Identity, server: PeerIdentity, port: u16) -> Result<Stream, ConnectError> {
    let name = name(identity.cluster(), server, port);
    let broken = |source| ConnectError::Io { address: shown(server), source };
    let socket = UnixStream::connect(OsStr::from_bytes(name.as_bytes())).await.map_err(broken)?;
    let connector = TlsConnector::from(identity.tls()?.local_client.clone());
    let expected = crate::Expect::Exactly(server).server_name(identity.cluster());
    let mut tls = connector.connect(expected, socket).await.map_err(broken)?;
    if tls.read_u8().await.map_err(broken)? != LET_IN {
        return Err(ConnectError::Hello("the socket on this host speaks something else"));
    }
    let (socket, session) = tls.into_inner();
    let proven = proven(session.peer_certificates(), identity, &shown(server))?;
    stream(socket, proven, shown(server)).map_err(broken)
}

/// Takes somebody who knocked, if he proves to be of our cluster.
pub(crate) async fn admit(identity: &Identity, socket: UnixStream) -> Result<Stream, ConnectError> {
    let broken = |source| ConnectError::Io { address: "local".into(), source };
    let acceptor = TlsAcceptor::from(identity.tls()?.local_server.clone());
    let mut tls = acceptor
        .accept(socket)
        .await
        .map_err(|error| ConnectError::Tls { address: "local".into(), reason: error.to_string() })?;
    let proven = proven(tls.get_ref().1.peer_certificates(), identity, "local")?;
    tls.write_u8(LET_IN).await.map_err(broken)?;
    tls.flush().await.map_err(broken)?;
    stream(tls.into_inner().0, proven, "local".into()).map_err(broken)
}

fn shown(server: PeerIdentity) -> String {
    format!("{server} on this host")
}

fn stream(socket: UnixStream, proven: PeerIdentity, remote: String) -> io::Result<Stream> {
    // Smaller buffers cost more system calls and nothing else.
    let _ = SockRef::from(&socket).set_send_buffer_size(BUFFER_BYTES);
    let socket = Arc::new(socket);
    let (read, write) = (Box::new(Half(socket.clone())), Box::new(Half(socket.clone())));
    // Bytes in the kernel's memory are as safe as those in ours: no sum of ours is needed on the way.
    Ok(Stream { read, write, proven: Some(proven), covered: true, remote, quic: None, direct: Some(Direct(socket)) })
}

/// One direction of a socket. (tokio's own halves cannot be shared with [`Direct`].)
struct Half(Arc<UnixStream>);

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            // Not into initialized memory: filling it with zeros first would cost as much as reading.
            match self.0.try_read_buf(buffer) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

/// The way to a socket for whoever has a small frame to send while nobody else is sending: on his own thread, which saves waking
/// the connection's task for it.
#[derive(Debug)]
pub(crate) struct Direct(Arc<UnixStream>);

impl Direct {
    /// Sends what the socket takes without waiting; returns how many bytes that was.
    pub fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.0.try_write_vectored(slices) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            done => done,
        }
    }
}
