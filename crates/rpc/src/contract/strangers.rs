//! Those who do not belong: other clusters, other authorities, other protocols, liars.

use super::{CLUSTER, LONG, Way, World, client_identity, contract, echo, identity, text, who};
use crate::ca::Authority;
use crate::{Address, ConnectError, Expect, Identity, Peer, PeerOptions, Role, RpcError};
use bytes::Bytes;
use holdfast_types::ClusterId;
use holdfast_types::prng::Prng;
use holdfast_wire::frame::{FrameKind, Header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

contract!(
    another_cluster_is_refused,
    another_authority_is_refused_with_a_clear_error,
    another_server_than_expected_is_refused,
    an_expired_certificate_is_refused_and_named,
    garbage_on_the_port_disturbs_nobody,
    a_broken_frame_costs_its_connection_alone,
);

async fn refusal(peer: &Peer) -> std::sync::Arc<ConnectError> {
    match echo(peer, "let me in").await.expect_err("refused") {
        RpcError::Unreachable { source, .. } => source,
        other => panic!("{other}"),
    }
}

fn stranger(world: &World, identity: Identity, expected: Expect) -> Peer {
    Peer::new(identity, world.way.transport(), vec![world.address()], expected, PeerOptions::default())
}

fn proves(way: Way) -> bool {
    match way {
        Way::Quic | Way::Tls | Way::Local => true,
        Way::Plain | Way::Unix => false,
    }
}

async fn another_cluster_is_refused(way: Way) {
    let world = World::start(way).await;
    let neighbour = world.peer();
    echo(&neighbour, "hello").await.expect("answered");
    // The same authority's key, so that the cluster's name alone makes the difference.
    let authority = &super::AUTHORITY;
    let other = Authority::open(ClusterId(78), authority.certificate().into(), &authority.key()).expect("opened");
    let me = who(Role::Client, 9);
    let lost = if proves(way) {
        other.issue(me).expect("issued").identity().expect("usable")
    } else {
        Identity::unproven(ClusterId(78), me)
    };
    let error = refusal(&stranger(&world, lost, Expect::Anyone)).await;
    if proves(way) {
        assert!(matches!(&*error, ConnectError::Tls { .. }), "{error}");
    } else {
        let clusters = (ClusterId(77), ClusterId(78));
        assert!(matches!(&*error, ConnectError::Cluster { theirs, ours } if (*theirs, *ours) == clusters), "{error}");
    }
    assert_eq!(world.recorder.see(|seen| seen.requests.len()), 1, "only the neighbour was served");
}

async fn another_authority_is_refused_with_a_clear_error(way: Way) {
    if !proves(way) {
        return;
    }
    let world = World::start(way).await;
    let forger = Authority::create(CLUSTER).expect("keys");
    let forged = forger.issue(who(Role::Client, 9)).expect("issued");
    // Trusts its own authority: it is the client that refuses.
    let error = refusal(&stranger(&world, forged.identity().expect("usable"), Expect::Anyone)).await;
    assert!(matches!(&*error, ConnectError::Tls { .. }), "{error}");
    // Trusts ours, but shows a certificate that ours did not sign: it is the server that refuses.
    let mixed = Identity::from_pem(&forged.certificate, &forged.key, super::AUTHORITY.certificate()).expect("usable");
    let error = refusal(&stranger(&world, mixed, Expect::Anyone)).await;
    assert!(matches!(&*error, ConnectError::Tls { .. }), "{error}");
    assert!(world.recorder.see(|seen| seen.connected.is_empty()));
}

async fn another_server_than_expected_is_refused(way: Way) {
    let world = World::start(way).await;
    for wrong in [Expect::Exactly(who(Role::Storage, 5)), Expect::Role(Role::Metadata)] {
        let error = refusal(&stranger(&world, client_identity(), wrong)).await;
        let clear = matches!(&*error, ConnectError::Tls { .. } | ConnectError::Stranger { .. });
        assert!(clear, "{error}");
    }
    for right in [Expect::Exactly(who(Role::Storage, 4)), Expect::Role(Role::Storage), Expect::Anyone] {
        echo(&stranger(&world, client_identity(), right), "hello").await.expect("answered");
    }
}

async fn an_expired_certificate_is_refused_and_named(way: Way) {
    if !proves(way) {
        return;
    }
    let world = World::start(way).await;
    let expired = super::AUTHORITY.issue_expired(who(Role::Client, 9)).expect("issued");
    let error = refusal(&stranger(&world, expired.identity().expect("usable"), Expect::Anyone)).await;
    let text = error.to_string().to_lowercase();
    assert!(matches!(&*error, ConnectError::Tls { .. }) && text.contains("expired"), "{error}");
    assert!(world.recorder.see(|seen| seen.connected.is_empty()), "it was served");
}

async fn garbage_on_the_port_disturbs_nobody(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    echo(&peer, "before").await.expect("answered");
    let link = peer.link().expect("connected").id();
    let mut prng = Prng::new(5);
    for round in 0..20 {
        let mut bytes = vec![0; prng.between(1, 3000) as usize];
        prng.fill(&mut bytes);
        if round % 3 == 0 {
            bytes[..1].copy_from_slice(&[0x16]);
        }
        knock(&world.address(), way, &bytes).await;
    }
    echo(&peer, "after").await.expect("answered");
    assert_eq!(peer.link().expect("connected").id(), link, "over the same connection");
    assert_eq!(world.recorder.see(|seen| seen.connected.len()), 1);
}

/// Throws bytes at a port and waits until the server has had enough.
async fn knock(address: &Address, way: Way, bytes: &[u8]) {
    match (way, address) {
        (Way::Quic, Address::Network(name)) => {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let packet = &bytes[..bytes.len().min(1400)];
            socket.send_to(packet, name).await.expect("sent");
        }
        (_, Address::Network(name)) => {
            throw(tokio::net::TcpStream::connect(name).await.expect("connected"), bytes).await
        }
        (_, Address::Unix(path)) => throw(tokio::net::UnixStream::connect(path).await.expect("connected"), bytes).await,
    }
}

async fn throw(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) {
    // The server may close before it has read all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
}

/// A member of the cluster whose bytes are damaged on the way; only where no TLS would notice first.
async fn a_broken_frame_costs_its_connection_alone(way: Way) {
    if proves(way) {
        return;
    }
    let world = World::start(way).await;
    let peer = world.peer();
    echo(&peer, "before").await.expect("answered");
    let mut hello = Header::new(FrameKind::Hello, CLUSTER, 9);
    hello.method = Role::Client as u16;
    let mut request = Header::new(FrameKind::Request, CLUSTER, 9);
    (request.method, request.request) = (1, 1);
    request.describe(b"message", b"payload", false).expect("short");
    let whole = [&hello.encode()[..], &request.encode(), b"message", b"payload"].concat();
    let mut prng = Prng::new(6);
    for round in 0..60 {
        let mut bytes = whole.clone();
        match round % 3 {
            0 => bytes.truncate(prng.below(whole.len() as u64) as usize),
            1 => {
                let at = prng.below(whole.len() as u64) as usize;
                bytes[at] ^= 1 << prng.below(8);
            }
            _ => {
                let (from, to) = (prng.below(200) as usize, prng.below(200) as usize);
                bytes.copy_within(from.min(to)..from.max(to), 0);
            }
        }
        if bytes != whole {
            knock(&world.address(), way, &bytes).await;
        }
    }
    echo(&peer, "after").await.expect("answered");
    let served = world.recorder.see(|seen| seen.requests.iter().map(|(_, m)| m.clone()).collect::<Vec<_>>());
    assert_eq!(served, [text("before"), text("after")], "no damaged request was served");
    // The same bytes, undamaged, are: the test would notice a server that refuses everything.
    knock(&world.address(), way, &whole).await;
    super::until("it is served", || world.recorder.see(|seen| seen.requests.len()) == 3).await;
    // Whole frames in the name of another sender or cluster than the hello's.
    let mut other = request;
    other.sender = 10;
    let mut elsewhere = request;
    elsewhere.cluster = ClusterId(5);
    for lie in [other, elsewhere] {
        let lying = [&hello.encode()[..], &lie.encode(), b"message", b"payload"].concat();
        knock(&world.address(), way, &lying).await;
    }
    peer.call(1, text("end"), Bytes::new(), LONG).await.expect("answered");
    let served = world.recorder.see(|seen| seen.requests.len());
    assert_eq!(served, 4, "nothing was served in another's name");
}

#[test]
fn a_certificate_cannot_claim_another_id_in_its_hello() {
    super::run(async {
        let world = World::start(Way::Tls).await;
        let liar = identity(Role::Client, 9).claiming(who(Role::Admin, 1));
        let error = refusal(&stranger(&world, liar, Expect::Anyone)).await;
        assert!(matches!(&*error, ConnectError::Io { .. }), "{error}");
        assert!(world.recorder.see(|seen| seen.connected.is_empty()));
    });
}

/// The server of a world, at an address where nobody listens: reached, if at all, by the socket beside its port.
fn elsewhere(world: &World, local: bool) -> Peer {
    let port = world.server.as_ref().expect("serving").local_port().expect("a port");
    let address = format!("127.0.0.2:{port}").parse().expect("an address");
    let options = PeerOptions { local, ..PeerOptions::default() };
    let expected = Expect::Exactly(super::server_identity().me());
    Peer::new(client_identity(), world.way.transport(), vec![address], expected, options)
}

#[test]
fn a_server_on_this_host_is_reached_without_the_network() {
    super::run(async {
        let mut world = World::start(Way::Local).await;
        refusal(&elsewhere(&world, false)).await;
        let peer = elsewhere(&world, true);
        echo(&peer, "hello").await.expect("answered");
        assert_eq!(peer.link().expect("connected").peer(), super::server_identity().me());
        let from = world.recorder.see(|seen| seen.requests[0].0);
        assert_eq!(from, client_identity().me(), "proved as over the network");
        world.stop().await;
        refusal(&peer).await;
    });
}

#[test]
fn on_this_host_too_nobody_is_let_in_without_a_certificate_of_the_cluster() {
    super::run(async {
        let world = World::start(Way::Local).await;
        let forger = Authority::create(CLUSTER).expect("keys");
        let forged = forger.issue(who(Role::Client, 9)).expect("issued");
        let mixed = Identity::from_pem(&forged.certificate, &forged.key, super::AUTHORITY.certificate());
        let options = PeerOptions { local: true, ..PeerOptions::default() };
        let expected = Expect::Exactly(super::server_identity().me());
        let transport = world.way.transport();
        let stranger = Peer::new(mixed.expect("usable"), transport, vec![world.address()], expected, options);
        refusal(&stranger).await;
        let liar = identity(Role::Client, 9).claiming(who(Role::Admin, 1));
        let options = PeerOptions { local: true, ..PeerOptions::default() };
        refusal(&Peer::new(liar, transport, vec![world.address()], expected, options)).await;
        assert!(world.recorder.see(|seen| seen.connected.is_empty()));
    });
}

#[test]
fn whoever_takes_a_servers_name_on_this_host_is_passed_by() {
    super::run(async {
        // Its own socket is not asked for, so the name is free for somebody else.
        let world = World::start(Way::Tls).await;
        let port = world.server.as_ref().expect("serving").local_port().expect("a port");
        let name = format!("\0holdfast-{CLUSTER}-{}-{port}", super::server_identity().me());
        let squatter = tokio::net::UnixListener::bind(name).expect("the name is free");
        for answer in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
            let options = PeerOptions { local: true, ..PeerOptions::default() };
            let expected = Expect::Exactly(super::server_identity().me());
            let peer = Peer::new(client_identity(), world.way.transport(), vec![world.address()], expected, options);
            let call = tokio::spawn(async move { echo(&peer, "hello").await });
            let (mut stream, _) = squatter.accept().await.expect("somebody knocks");
            stream.write_all(answer).await.expect("sent");
            call.await.expect("no panic").expect("answered, over the network");
        }
        assert_eq!(world.recorder.see(|seen| seen.requests.len()), 2);
    });
}
