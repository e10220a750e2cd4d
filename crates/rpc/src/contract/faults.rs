//! Time that runs out, callers that give up, servers that go.

use super::{ECHO, HOLD, LONG, Way, World, contract, echo, server_identity, text, until};
use crate::{CastError, Peer, PeerOptions, Refusal, RpcError, ServerOptions};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

contract!(
    a_deadline_ends_the_wait_and_reaches_the_server,
    the_server_learns_how_much_time_is_left,
    a_dropped_call_is_cancelled_at_the_server,
    calls_under_way_fail_when_the_server_dies_and_later_ones_reach_its_successor,
    a_killed_servers_successor_ends_the_wait,
    an_absent_server_is_reported_as_never_reached,
    a_shutdown_lets_answers_out_and_refuses_new_work,
    everybody_is_told_when_a_peer_goes,
    a_closed_peer_fails_at_once,
    a_panicking_handler_costs_its_connection_and_no_other,
    silence_ends_a_connection_and_heartbeats_prevent_it,
);

async fn a_deadline_ends_the_wait_and_reaches_the_server(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    echo(&peer, "connect").await.expect("answered");
    let error = peer.call(HOLD, text("x"), Bytes::new(), Duration::from_millis(50)).await.expect_err("never answered");
    assert!(matches!(error, RpcError::Deadline { sent: true, .. }) && error.may_have_executed(), "{error}");
    assert!(!error.is_connection_closed());
    until("the server knows", || world.recorder.see(|seen| seen.held[0].1.cancelled())).await;
    // An answer that comes too late disturbs nothing.
    let (_, respond) = world.recorder.see(|seen| seen.held.remove(0));
    respond.send(text("late"), Bytes::new());
    echo(&peer, "still here").await.expect("answered");
}

async fn the_server_learns_how_much_time_is_left(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let deadline = Duration::from_secs(20);
    let called = Instant::now();
    peer.call_then(HOLD, text("x"), Bytes::new(), deadline, |_| {});
    until("it has arrived", || world.recorder.see(|seen| !seen.held.is_empty())).await;
    let theirs = world.recorder.see(|seen| seen.held[0].0.deadline);
    assert!(theirs > called + deadline / 2 && theirs <= Instant::now() + deadline);
}

async fn a_dropped_call_is_cancelled_at_the_server(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    {
        let call = peer.call(HOLD, text("x"), Bytes::new(), LONG);
        tokio::pin!(call);
        let arrived = until("it has arrived", || world.recorder.see(|seen| !seen.held.is_empty()));
        tokio::select! {
            _ = &mut call => panic!("nobody answers"),
            () = arrived => {}
        }
        assert!(!world.recorder.see(|seen| seen.held[0].1.cancelled()));
    }
    until("the server knows", || world.recorder.see(|seen| seen.held[0].1.cancelled())).await;
    echo(&peer, "still here").await.expect("answered");
}

async fn calls_under_way_fail_when_the_server_dies_and_later_ones_reach_its_successor(way: Way) {
    let mut world = World::start(way).await;
    let address = world.address();
    let peer = world.peer();
    let waiting = tokio::spawn({
        let peer = peer.clone();
        async move { peer.call(HOLD, text("x"), Bytes::new(), LONG).await }
    });
    until("it has arrived", || world.recorder.see(|seen| !seen.held.is_empty())).await;
    world.stop().await;
    let error = waiting.await.expect("joined").expect_err("the server is gone");
    assert!(matches!(error, RpcError::Closed { sent: true, .. }), "{error}");
    assert!(error.may_have_executed() && error.is_connection_closed());
    until("nobody waits at the server", || world.recorder.see(|seen| seen.held[0].1.cancelled())).await;

    world.serve(&address, server_identity(), ServerOptions::default()).await;
    let answer = loop {
        match echo(&peer, "you again").await {
            Ok(answer) => break answer,
            Err(error) => assert!(!error.may_have_executed(), "{error}"),
        }
    };
    assert_eq!(answer.message, text("you again"));
}

/// A runtime that is torn down says goodbye to nobody, like a killed process; for TCP the kernel does it.
async fn a_killed_servers_successor_ends_the_wait(way: Way) {
    let mut world = World::start(way).await;
    let address = world.address();
    world.stop().await;
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let bind = {
        let (address, recorder) = (address.clone(), world.recorder.clone());
        let bind = async move {
            let options = ServerOptions::default();
            crate::Server::bind(way.transport(), &address, server_identity(), recorder, options).await
        };
        doomed.spawn(bind)
    };
    let server = bind.await.expect("joined").expect("bound");
    // Only the reset can be in time.
    let patient = PeerOptions { idle_timeout: 2 * LONG, ..PeerOptions::default() };
    let addresses = vec![address.clone()];
    let peer = Peer::new(super::client_identity(), way.transport(), addresses, Some(server_identity().me()), patient);
    let waiting = tokio::spawn({
        let peer = peer.clone();
        async move { peer.call(HOLD, text("x"), Bytes::new(), 2 * LONG).await }
    });
    until("it has arrived", || world.recorder.see(|seen| !seen.held.is_empty())).await;
    tokio::task::spawn_blocking(move || doomed.shutdown_timeout(LONG)).await.expect("killed");
    drop(server);
    world.serve(&address, server_identity(), ServerOptions::default()).await;
    let error = waiting.await.expect("joined").expect_err("the one who knew is gone");
    assert!(matches!(error, RpcError::Closed { sent: true, .. }), "{error}");
    assert!(!error.to_string().contains("timed out"), "QUIC's own idle timeout has noticed, and no reset: {error}");
    echo(&peer, "you again").await.expect("answered");
}

async fn an_absent_server_is_reported_as_never_reached(way: Way) {
    let mut world = World::start(way).await;
    let short = PeerOptions { connect_timeout: Duration::from_millis(300), ..PeerOptions::default() };
    let peer = world.peer_with(short);
    world.stop().await;
    for _ in 0..3 {
        let error = echo(&peer, "anybody?").await.expect_err("nobody");
        assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
        assert!(!error.may_have_executed() && error.is_connection_closed());
    }
    peer.cast(ECHO, text("into the void"), Bytes::new()).expect("queued for the next attempt");
    until("it is counted", || peer.dropped_casts() == 1).await;
}

async fn a_shutdown_lets_answers_out_and_refuses_new_work(way: Way) {
    let mut world = World::start(way).await;
    let peer = world.peer();
    let waiting = tokio::spawn({
        let peer = peer.clone();
        async move { peer.call(HOLD, text("x"), Bytes::new(), LONG).await }
    });
    until("it has arrived", || world.recorder.see(|seen| !seen.held.is_empty())).await;
    let stopping = tokio::spawn(world.server.take().expect("serving").shutdown(LONG));
    let refused = async {
        loop {
            match echo(&peer, "more").await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(error) => break error,
            }
        }
    };
    let error = refused.await;
    assert!(matches!(error, RpcError::Refused { refusal: Refusal::Closing, .. }), "{error}");
    assert!(!error.may_have_executed() && error.is_connection_closed());
    let (_, respond) = world.recorder.see(|seen| seen.held.remove(0));
    respond.send(text("in time"), Bytes::from(vec![5; 3 << 20]));
    let answer = waiting.await.expect("joined").expect("answered");
    assert_eq!((answer.message, answer.payload.len()), (text("in time"), 3 << 20));
    stopping.await.expect("all tasks have ended");
    assert_eq!(world.recorder.see(|seen| seen.disconnected), 1);
}

async fn everybody_is_told_when_a_peer_goes(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    echo(&peer, "hello").await.expect("answered");
    peer.call_then(HOLD, text("x"), Bytes::new(), LONG, |_| {});
    until("it has arrived", || world.recorder.see(|seen| !seen.held.is_empty())).await;
    drop(peer);
    until("the server is told", || world.recorder.see(|seen| seen.disconnected) == 1).await;
    let (cancelled, open) = world.recorder.see(|seen| (seen.held[0].1.cancelled(), seen.connected[0].1.is_open()));
    assert!(cancelled && !open);
}

async fn a_closed_peer_fails_at_once(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let failed = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let failed = failed.clone();
        peer.call_then(HOLD, text("x"), Bytes::new(), LONG, move |answer| {
            failed.fetch_add(usize::from(answer.is_err()), Ordering::SeqCst);
        });
    }
    until("they have arrived", || world.recorder.see(|seen| seen.held.len()) == 10).await;
    peer.close().await;
    assert_eq!(failed.load(Ordering::SeqCst), 10);
    let error = echo(&peer, "too late").await.expect_err("closed");
    assert!(matches!(error, RpcError::Closed { sent: false, .. }), "{error}");
    assert!(matches!(peer.cast(ECHO, Bytes::new(), Bytes::new()), Err(CastError::NotConnected)));
}

/// Panics when told to.
struct Fragile;

impl crate::Handler for Fragile {
    fn handle(&self, _: &crate::PeerIdentity, request: crate::Incoming, respond: crate::Responder) {
        assert!(request.message != text("panic"), "as the test wants it");
        respond.send(request.message, Bytes::new());
    }
}

async fn a_panicking_handler_costs_its_connection_and_no_other(way: Way) {
    let world = World::start(way).await;
    let address = world.any_address_of("fragile");
    let options = ServerOptions::default();
    let server = crate::Server::bind(way.transport(), &address, server_identity(), Arc::new(Fragile), options).await;
    let server = server.expect("bound");
    let peer = || {
        let addresses = vec![server.local_address().clone()];
        let expected = Some(server_identity().me());
        Peer::new(super::client_identity(), way.transport(), addresses, expected, PeerOptions::default())
    };
    let (one, other) = (peer(), peer());
    echo(&other, "fine").await.expect("answered");
    let error = echo(&one, "panic").await.expect_err("no answer");
    assert!(error.may_have_executed(), "{error}");
    let link = other.link().expect("connected").id();
    echo(&other, "fine").await.expect("answered");
    assert_eq!(other.link().expect("connected").id(), link, "over the same connection");
    echo(&one, "fine again").await.expect("answered over a new one");
    server.shutdown(LONG).await;
}

async fn silence_ends_a_connection_and_heartbeats_prevent_it(way: Way) {
    let idle_timeout = Duration::from_millis(400);
    let heartbeat = Duration::from_millis(80);
    let world = World::start_with(way, ServerOptions { idle_timeout, heartbeat, ..ServerOptions::default() }).await;
    let lively = world.peer_with(PeerOptions { heartbeat, idle_timeout, ..PeerOptions::default() });
    // Says nothing on its own within the server's patience.
    let quiet = world.peer_with(PeerOptions { heartbeat: LONG, ..PeerOptions::default() });
    echo(&lively, "a").await.expect("answered");
    echo(&quiet, "b").await.expect("answered");
    let first = lively.link().expect("connected").id();
    until("the quiet one is dropped", || world.recorder.see(|seen| seen.disconnected) == 1).await;
    tokio::time::sleep(2 * idle_timeout).await;
    assert_eq!(lively.link().expect("still connected").id(), first);
    assert_eq!(world.recorder.see(|seen| seen.disconnected), 1);
}
