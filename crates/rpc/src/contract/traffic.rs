//! Requests, answers and their sizes.

use super::{ABANDON, ECHO, HOLD, LONG, Way, World, contract, echo, text, until, who};
use crate::{CastError, PeerOptions, Refusal, Role, RpcError, ServerOptions};
use bytes::Bytes;
use holdfast_types::limits::{MESSAGE_BYTES_MAX, PAYLOAD_BYTES_MAX};
use holdfast_types::prng::Prng;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

contract!(
    an_answer_comes_back_and_the_server_knows_who_asked,
    the_largest_frame_travels_whole,
    sizes_around_every_boundary_travel_whole,
    many_requests_are_in_flight_on_several_lanes,
    callbacks_run_once_per_call,
    what_nobody_answers_is_said_to_be_abandoned,
    what_is_too_large_is_refused_before_it_is_sent,
    more_than_fits_waits_for_room,
    reading_pauses_while_a_server_is_flooded,
    a_server_calls_back_over_the_link,
);

async fn an_answer_comes_back_and_the_server_knows_who_asked(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let answer = peer.call(ECHO, text("hello"), text("payload"), LONG).await.expect("answered");
    assert_eq!((answer.message, answer.payload), (text("hello"), text("payload")));
    let (from, message) = world.recorder.see(|seen| seen.requests[0].clone());
    assert_eq!((from, message), (who(Role::Client, 9), text("hello")));
    assert_eq!(peer.connected_to(), Some(who(Role::Storage, 4)));
}

fn random(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    Prng::new(seed).fill(&mut bytes);
    bytes.into()
}

async fn the_largest_frame_travels_whole(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let (message, payload) = (random(1, MESSAGE_BYTES_MAX as usize), random(2, PAYLOAD_BYTES_MAX as usize));
    let answer = peer.call(ECHO, message.clone(), payload.clone(), LONG).await.expect("answered");
    assert!(answer.message == message && answer.payload == payload);
}

async fn sizes_around_every_boundary_travel_whole(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    for size in [0usize, 1, 4096, 8 << 10, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20] {
        for (m, p) in [(size, 0), (size + 1, 7), (7, size), (size, size + 1), (3, size.saturating_sub(97))] {
            let (message, payload) = (random(m as u64, m), random(p as u64 + 1, p));
            let answer = peer.call(ECHO, message.clone(), payload.clone(), LONG).await.expect("answered");
            assert!(answer.message == message && answer.payload == payload, "{m} + {p}");
        }
    }
}

async fn many_requests_are_in_flight_on_several_lanes(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer_with(PeerOptions { lanes: 3, ..PeerOptions::default() });
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64u64 {
        let peer = peer.clone();
        tasks.spawn(async move {
            for round in 0..40u64 {
                let payload = random(n * 1000 + round, (n * 331 + round * 977) as usize % 30_000);
                let message = text(&format!("{n} {round}"));
                let answer = peer.call(ECHO, message.clone(), payload.clone(), LONG).await.expect("answered");
                assert!(answer.message == message && answer.payload == payload);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("answers belong to their requests");
    }
    assert_eq!(world.recorder.see(|seen| seen.connected.len()), 3, "each lane has its connection");
}

async fn callbacks_run_once_per_call(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let (right, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for n in 0..500 {
        let (right, all, message) = (right.clone(), all.clone(), text(&n.to_string()));
        peer.call_then(ECHO, message.clone(), Bytes::new(), LONG, move |answer| {
            right.fetch_add(usize::from(answer.is_ok_and(|a| a.message == message)), Ordering::SeqCst);
            all.fetch_add(1, Ordering::SeqCst);
        });
    }
    until("all callbacks have run", || all.load(Ordering::SeqCst) == 500).await;
    assert_eq!(right.load(Ordering::SeqCst), 500);
}

async fn what_nobody_answers_is_said_to_be_abandoned(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let error = peer.call(ABANDON, text("a"), Bytes::new(), LONG).await.expect_err("no answer");
    assert!(matches!(error, RpcError::Refused { refusal: Refusal::Abandoned, .. }), "{error}");
    assert!(error.may_have_executed());
    let error = peer.call(99, text("b"), Bytes::new(), LONG).await.expect_err("no such kind");
    assert!(matches!(error, RpcError::Refused { refusal: Refusal::Unhandled, .. }), "{error}");
    assert!(!error.may_have_executed());
    echo(&peer, "c").await.expect("the connection is none the worse");
}

async fn what_is_too_large_is_refused_before_it_is_sent(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let payload = Bytes::from(vec![0; PAYLOAD_BYTES_MAX as usize + 1]);
    let error = peer.call(ECHO, Bytes::new(), payload.clone(), LONG).await.expect_err("too large");
    assert!(matches!(error, RpcError::TooLarge(_)) && !error.may_have_executed(), "{error}");
    assert!(matches!(peer.cast(ECHO, Bytes::new(), payload), Err(CastError::TooLarge(_))));
    assert_eq!(world.recorder.see(|seen| seen.connected.len()), 0, "nothing was worth a connection");
}

/// Room for one largest frame, so that 24 MiB of calls cannot be under way at once.
async fn more_than_fits_waits_for_room(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer_with(PeerOptions { bytes_max: 0, ..PeerOptions::default() });
    let chunk = Bytes::from(vec![1; 4 << 20]);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (peer, chunk) = (peer.clone(), chunk.clone());
        tasks.spawn(async move { peer.call(HOLD, Bytes::new(), chunk, LONG).await });
    }
    let held = || world.recorder.see(|seen| seen.held.len());
    until("the first calls arrive", || held() >= 4).await;
    let (sender, receiver) = std::sync::mpsc::channel();
    peer.call_then(HOLD, Bytes::new(), chunk, LONG, move |answer| drop(sender.send(answer)));
    let error = receiver.recv().expect("at once").expect_err("no room");
    assert!(matches!(error, RpcError::Full { .. }) && !error.may_have_executed(), "{error}");
    let mut answered = 0;
    while answered < 6 {
        until("a call waits for an answer", || held() > 0).await;
        assert!(held() <= 4, "{} calls of 4 MiB are under way", held());
        answered += 1;
        let (_, respond) = world.recorder.see(|seen| seen.held.remove(0));
        respond.send(Bytes::new(), Bytes::new());
    }
    while let Some(answer) = tasks.join_next().await {
        answer.expect("joined").expect("answered in the end");
    }
}

async fn reading_pauses_while_a_server_is_flooded(way: Way) {
    let bytes_max = 2 << 20;
    let options = ServerOptions { bytes_max, idle_timeout: Duration::from_secs(1), ..ServerOptions::default() };
    let world = World::start_with(way, ServerOptions { heartbeat: Duration::from_millis(200), ..options }).await;
    let peer = world.peer();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let peer = peer.clone();
        let chunk = Bytes::from(vec![1; 1 << 20]);
        tasks.spawn(async move { peer.call(HOLD, Bytes::new(), chunk, LONG).await });
    }
    let held = || world.recorder.see(|seen| seen.held.len());
    until("the server has what it may hold", || held() >= 4).await;
    // Longer than the server's idle timeout: a pause of its own is not the other end's silence.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(held() <= 5, "{} MiB are held", held());
    let mut answered = 0;
    while answered < 40 {
        until("more is read", || held() > 0).await;
        let (_, respond) = world.recorder.see(|seen| seen.held.remove(0));
        respond.send(Bytes::new(), Bytes::new());
        answered += 1;
    }
    while let Some(answer) = tasks.join_next().await {
        answer.expect("joined").expect("answered in the end");
    }
}

async fn a_server_calls_back_over_the_link(way: Way) {
    let world = World::start(way).await;
    let ours = Arc::new(super::Recorder::default());
    let peer = world.peer_with(PeerOptions { handler: Some(ours.clone()), ..PeerOptions::default() });
    echo(&peer, "hello").await.expect("answered");
    let (from, link) = world.recorder.see(|seen| seen.connected[0].clone());
    assert_eq!((from, link.peer()), (who(Role::Client, 9), who(Role::Client, 9)));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    link.call_then(ECHO, text("and you?"), Bytes::new(), LONG, move |answer| drop(sender.send(answer)));
    let answer = receiver.await.expect("called back").expect("answered");
    assert_eq!(answer.message, text("and you?"));
    assert_eq!(ours.see(|seen| seen.requests[0].0), who(Role::Storage, 4));
    link.cast(0, text("by the way"), Bytes::new()).expect("queued");
    until("the client hears it", || ours.see(|seen| seen.one_ways.len()) == 1).await;
}
