//! Measures each transport on this machine: `cargo run --release -p holdfast-rpc --example measure [SECONDS]`.
//!
//! Client and server share one process and its two threads, so rates are of both ends together.

use bytes::Bytes;
use holdfast_rpc::ca::Authority;
use holdfast_rpc::{
    Address, Handler, Identity, Incoming, Peer, PeerIdentity, PeerOptions, Responder, Role, Server, ServerOptions,
    Transport,
};
use holdfast_types::ClusterId;
use std::sync::Arc;
use std::time::{Duration, Instant};

const READ: u16 = 1;
const WRITE: u16 = 2;

struct Storage {
    block: Bytes,
}

impl Handler for Storage {
    fn handle(&self, _: &PeerIdentity, request: Incoming, respond: Responder) {
        let length = match request.kind {
            READ => std::str::from_utf8(&request.message).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
            _ => 0,
        };
        respond.send(Bytes::from_static(b"an answer of a few words"), self.block.slice(..length));
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let authority = Authority::create(ClusterId(1)).expect("keys");
    let identity = |role, id| -> Identity {
        authority.issue(PeerIdentity { role, id }).and_then(|issued| issued.identity()).expect("an identity")
    };
    let (server, client) = (identity(Role::Storage, 1), identity(Role::Client, 1));
    let directory = std::env::temp_dir().join(format!("holdfast-measure-{}", std::process::id()));
    let unix = format!("unix:{}", directory.display());
    println!(
        "{:8} {:>14} {:>14} {:>14} {:>14} {:>14}",
        "", "4K rd c=1", "4K rd c=16", "4K wr c=16", "1M rd c=8", "1M wr c=8"
    );
    for (name, transport, address, lanes) in [
        ("plain", Transport::Plain, "127.0.0.1:0", 2),
        ("tls", Transport::Tls, "127.0.0.1:0", 2),
        ("unix", Transport::Plain, unix.as_str(), 2),
        ("quic", Transport::Quic, "127.0.0.1:0", 1),
    ] {
        let handler = Arc::new(Storage { block: Bytes::from(vec![7; 1 << 20]) });
        let address: Address = address.parse().expect("an address");
        let options = ServerOptions::default();
        let bound = Server::bind(transport, &address, server.clone(), handler, options).await.expect("bound");
        let options = PeerOptions { lanes, ..PeerOptions::default() };
        let peer =
            Peer::new(client.clone(), transport, vec![bound.local_address().clone()], Some(server.me()), options);
        print!("{name:8}");
        for (kind, size, width) in
            [(READ, 4096, 1), (READ, 4096, 16), (WRITE, 4096, 16), (READ, 1 << 20, 8), (WRITE, 1 << 20, 8)]
        {
            let (rate, cpu) = measure(&peer, kind, size, width, Duration::from_secs(seconds)).await;
            if size > 4096 {
                print!(" {:>7.0} MB/s {cpu:3.1}", rate * size as f64 / 1e6);
            } else {
                print!(" {rate:>7.0}/s {cpu:4.1}us");
            }
        }
        println!();
        peer.close().await;
        bound.shutdown(Duration::from_secs(1)).await;
    }
}

/// Operations per second; microseconds of CPU per small operation, or seconds per GiB.
async fn measure(peer: &Peer, kind: u16, size: usize, width: usize, time: Duration) -> (f64, f64) {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..width {
        let peer = peer.clone();
        let payload = if kind == WRITE { Bytes::from(vec![3; size]) } else { Bytes::new() };
        let message = Bytes::from(size.to_string());
        tasks.spawn(async move {
            let mut count = 0u64;
            while began.elapsed() < time {
                let answer = peer.call(kind, message.clone(), payload.clone(), Duration::from_secs(10)).await;
                assert_eq!(answer.expect("answered").payload.len(), if kind == READ { size } else { 0 });
                count += 1;
            }
            count
        });
    }
    let count = tasks.join_all().await.into_iter().sum::<u64>() as f64;
    let cpu = cpu_seconds() - cpu;
    let per = if size > 4096 { cpu / (count * size as f64 / f64::from(1 << 30)) } else { cpu * 1e6 / count };
    (count / began.elapsed().as_secs_f64(), per)
}

fn cpu_seconds() -> f64 {
    // Fields 14 and 15, in ticks of 10 ms; the command name before them has no spaces here.
    let text = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let ticks = |n: usize| text.split(' ').nth(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(13) + ticks(14)) / 100.0
}
