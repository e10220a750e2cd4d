//! What arrives in order, and what need not.

use super::{ECHO, HOLD, LONG, Recorder, Way, World, contract, echo, text, until};
use crate::{CastError, PeerOptions};
use bytes::Bytes;
use std::sync::{Arc, Mutex};

contract!(
    requests_of_a_lane_arrive_in_order,
    answers_come_in_any_order,
    one_way_messages_arrive_in_order,
    one_way_messages_are_dropped_when_the_queue_is_full,
);

async fn requests_of_a_lane_arrive_in_order(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer_with(PeerOptions { lanes: 2, ..PeerOptions::default() });
    for n in 0..1_000usize {
        let payload = Bytes::from(vec![0; n * 37 % 20_000]);
        let request = crate::Request {
            kind: HOLD,
            message: text(&n.to_string()),
            payload,
            deadline: LONG,
            trace: crate::TraceContext::default(),
            lane: Some(1),
        };
        peer.request_then(request, |_| {});
    }
    until("all have arrived", || world.recorder.see(|seen| seen.requests.len()) == 1_000).await;
    let order = world.recorder.see(|seen| seen.requests.iter().map(|(_, m)| m.clone()).collect::<Vec<_>>());
    assert_eq!(order, (0..1_000).map(|n| text(&n.to_string())).collect::<Vec<_>>());
}

async fn answers_come_in_any_order(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer();
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 0..10 {
        let order = order.clone();
        peer.call_then(HOLD, text(&n.to_string()), Bytes::new(), LONG, move |answer| {
            order.lock().expect("sane").push(answer.expect("answered").message);
        });
    }
    until("all are held", || world.recorder.see(|seen| seen.held.len()) == 10).await;
    let held = world.recorder.see(|seen| std::mem::take(&mut seen.held));
    // From a thread of no runtime, the last first.
    let answer =
        move || held.into_iter().rev().for_each(|(request, respond)| respond.send(request.message, Bytes::new()));
    std::thread::spawn(answer).join().expect("answered");
    until("all are answered", || order.lock().expect("sane").len() == 10).await;
    let expected: Vec<_> = (0..10).rev().map(|n| text(&n.to_string())).collect();
    assert_eq!(*order.lock().expect("sane"), expected);
}

async fn one_way_messages_arrive_in_order(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer_with(PeerOptions { lanes: 2, ..PeerOptions::default() });
    for n in 0..2_000usize {
        peer.cast(0, text(&n.to_string()), Bytes::from(vec![0; n * 41 % 30_000])).expect("queued");
        if n % 100 == 0 {
            echo(&peer, "in between").await.expect("answered");
        }
    }
    let count = |recorder: &Recorder| recorder.see(|seen| seen.one_ways.len());
    until("all have arrived", || count(&world.recorder) == 2_000).await;
    let order = world.recorder.see(|seen| seen.one_ways.clone());
    assert_eq!(order, (0..2_000).map(|n| text(&n.to_string())).collect::<Vec<_>>());
    assert_eq!(peer.dropped_casts(), 0);
}

async fn one_way_messages_are_dropped_when_the_queue_is_full(way: Way) {
    let world = World::start(way).await;
    let peer = world.peer_with(PeerOptions { bytes_max: 1 << 20, ..PeerOptions::default() });
    let chunk = Bytes::from(vec![0; 256 << 10]);
    let mut dropped = 0;
    // No await: on this thread nothing is taken from the queue of a peer that is only being dialled.
    for _ in 0..1_000 {
        match peer.cast(ECHO, Bytes::new(), chunk.clone()) {
            Ok(()) => {}
            Err(CastError::Full) => dropped += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(dropped > 0, "250 MiB do not fit into one");
    assert_eq!(peer.dropped_casts(), dropped);
    echo(&peer, "after them").await.expect("answered");
    let arrived = world.recorder.see(|seen| seen.one_ways.len()) as u64;
    assert_eq!(arrived, 1_000 - dropped, "what was queued has arrived before what followed");
}
