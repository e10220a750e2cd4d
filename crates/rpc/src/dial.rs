//! Reaching a peer: the four ways to get a byte stream to it.

use crate::error::ConnectError;
use crate::identity::{Expect, Identity, PeerIdentity};
use crate::stream::{Address, Stream, Transport};
use quinn::crypto::rustls::QuicClientConfig;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// rustls reads 4 KiB at a time; this makes one system call of many such reads.
pub(crate) const TLS_READ_BYTES: usize = 128 << 10;
/// rustls takes this much clear text before it wants to write records.
pub(crate) const TLS_WRITE_BYTES: usize = 256 << 10;

/// Connects to one address.
pub(crate) async fn dial(
    identity: &Identity,
    transport: Transport,
    address: &Address,
    expected: Expect,
    endpoint: Option<&quinn::Endpoint>,
) -> Result<Stream, ConnectError> {
    match (transport, address) {
        (Transport::Plain, Address::Unix(path)) => {
            let stream = UnixStream::connect(path).await.map_err(|e| broken(address, e))?;
            unix(stream, address.to_string()).map_err(|e| broken(address, e))
        }
        (_, Address::Unix(_)) => {
            Err(ConnectError::Address { address: address.to_string(), reason: "a socket file needs transport plain" })
        }
        (Transport::Plain, Address::Network(name)) => {
            plain(TcpStream::connect(name).await.map_err(|e| broken(address, e))?, name.clone())
                .map_err(|e| broken(address, e))
        }
        (Transport::Tls, Address::Network(name)) => {
            let tcp = TcpStream::connect(name).await.map_err(|e| broken(address, e))?;
            tls(identity, tcp, name, expected).await
        }
        (Transport::Quic, Address::Network(name)) => {
            let endpoint = endpoint.expect("a peer over QUIC has an endpoint");
            quic(identity, endpoint, name, expected).await
        }
    }
}

fn broken(address: &Address, source: io::Error) -> ConnectError {
    ConnectError::Io { address: address.to_string(), source }
}

pub(crate) fn plain(stream: TcpStream, remote: String) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    Ok(Stream {
        read: Box::new(read),
        write: Box::new(write),
        proven: None,
        covered: false,
        remote,
        quic: None,
        direct: None,
    })
}

/// Takes a socket file's connection, if the other end runs as our user or as root.
pub(crate) fn unix(stream: UnixStream, remote: String) -> io::Result<Stream> {
    let theirs = stream.peer_cred()?.uid();
    let ours = rustix::process::geteuid().as_raw();
    if theirs != ours && theirs != 0 && ours != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it runs as user {theirs}, we as {ours}")));
    }
    let (read, write) = stream.into_split();
    Ok(Stream {
        read: Box::new(read),
        write: Box::new(write),
        proven: None,
        covered: false,
        remote,
        quic: None,
        direct: None,
    })
}

async fn tls(identity: &Identity, tcp: TcpStream, remote: &str, expected: Expect) -> Result<Stream, ConnectError> {
    let failed = |error: io::Error| match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(reason) => ConnectError::Tls { address: remote.into(), reason: reason.to_string() },
        None => ConnectError::Io { address: remote.into(), source: error },
    };
    tcp.set_nodelay(true).map_err(failed)?;
    let connector = TlsConnector::from(identity.tls()?.client.clone());
    let name = expected.server_name(identity.cluster());
    let mut stream = connector.connect(name, BufReader::with_capacity(TLS_READ_BYTES, tcp)).await.map_err(failed)?;
    let session = stream.get_mut().1;
    session.set_buffer_limit(Some(TLS_WRITE_BYTES));
    let proven = proven(session.peer_certificates(), identity, remote)?;
    let (read, write) = tokio::io::split(stream);
    let remote = remote.into();
    Ok(Stream {
        read: Box::new(read),
        write: Box::new(write),
        proven: Some(proven),
        covered: true,
        remote,
        quic: None,
        direct: None,
    })
}

/// What the other end's certificate says, which TLS has found to be signed by our cluster's authority.
pub(crate) fn proven(
    chain: Option<&[rustls::pki_types::CertificateDer<'static>]>,
    identity: &Identity,
    remote: &str,
) -> Result<PeerIdentity, ConnectError> {
    let no = |reason: &str| ConnectError::Tls { address: remote.into(), reason: reason.into() };
    let certificate = chain.and_then(<[_]>::first).ok_or_else(|| no("it shows no certificate"))?;
    let (peer, cluster) =
        PeerIdentity::from_certificate(certificate).ok_or_else(|| no("its certificate names no role and id"))?;
    if cluster != identity.cluster() {
        return Err(ConnectError::Cluster { theirs: cluster, ours: identity.cluster() });
    }
    Ok(peer)
}

async fn quic(
    identity: &Identity,
    endpoint: &quinn::Endpoint,
    remote: &str,
    expected: Expect,
) -> Result<Stream, ConnectError> {
    let failed = |reason: String| ConnectError::Quic { address: remote.into(), reason };
    let address = resolve(endpoint, remote).await.map_err(|e| failed(e.to_string()))?;
    let config: Arc<QuicClientConfig> = identity.tls()?.quic_client.clone();
    let mut config = quinn::ClientConfig::new(config);
    config.transport_config(transport_config());
    let name = expected.server_name(identity.cluster());
    let connecting = endpoint.connect_with(config, address, &name.to_str()).map_err(|e| failed(e.to_string()))?;
    let connection = connecting.await.map_err(|error| quic_refused(remote.into(), &error))?;
    let streams = connection.open_bi().await.map_err(|error| quic_refused(remote.into(), &error))?;
    quic_stream(identity, connection, streams, remote.into())
}

/// Tells a refused identity from other failures: TLS alerts travel as codes of their own.
pub(crate) fn quic_refused(address: String, error: &quinn::ConnectionError) -> ConnectError {
    let code = match error {
        quinn::ConnectionError::TransportError(ours) => ours.code.into(),
        quinn::ConnectionError::ConnectionClosed(theirs) => theirs.error_code.into(),
        _ => 0u64,
    };
    let reason = error.to_string();
    if (0x100..0x200).contains(&code) {
        ConnectError::Tls { address, reason }
    } else {
        ConnectError::Quic { address, reason }
    }
}

/// Wraps the one stream that a QUIC connection of ours has.
pub(crate) fn quic_stream(
    identity: &Identity,
    connection: quinn::Connection,
    (write, read): (quinn::SendStream, quinn::RecvStream),
    remote: String,
) -> Result<Stream, ConnectError> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
    let proven = proven(chain.as_deref().map(Vec::as_slice), identity, &remote)?;
    Ok(Stream {
        read: Box::new(read),
        write: Box::new(write),
        proven: Some(proven),
        covered: true,
        remote,
        quic: Some(connection),
        direct: None,
    })
}

/// An address of the family that our socket speaks; a socket of IPv6 speaks both.
async fn resolve(endpoint: &quinn::Endpoint, remote: &str) -> io::Result<SocketAddr> {
    let v6 = endpoint.local_addr()?.is_ipv6();
    let found = tokio::net::lookup_host(remote).await?.find(|address| v6 || address.is_ipv4());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no usable address"))
}

/// A socket for outgoing QUIC connections.
pub(crate) fn quic_endpoint() -> io::Result<quinn::Endpoint> {
    let socket =
        quic_socket((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| quic_socket((Ipv4Addr::UNSPECIFIED, 0).into()))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)
}

/// Bytes of a UDP socket's buffers: what a burst may hold while we are busy. The kernel may grant less.
const UDP_BUFFER_BYTES: usize = 8 << 20;

pub(crate) fn quic_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Smaller buffers cost retransmissions and nothing else.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// One stream per connection, large windows, quick to notice a dead peer.
pub(crate) fn transport_config() -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    // quinn sends ten segments at once; ten larger ones exceed 64 KiB and are lost without an error.
    mtu.upper_bound(6000);
    let idle = Duration::from_secs(5).try_into().expect("five seconds fit into a QUIC timeout");
    config
        .mtu_discovery_config(Some(mtu))
        .max_concurrent_bidi_streams(1u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window((16u32 << 20).into())
        .receive_window((32u32 << 20).into())
        .send_window(32 << 20)
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .max_idle_timeout(Some(idle));
    Arc::new(config)
}
