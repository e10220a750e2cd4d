//! Decoders of everything an outsider can send, fed with damaged bytes: an error or a message, never a panic, never an endless loop.
//!
//! * The seeds are the golden messages of `tests/compat`, cut, flipped, spliced and stretched by a seeded generator.
//! * `corpus.txt` holds what was once interesting, one case a line (`decoder hexadecimal`); it is replayed first. A failure prints its line.
//! * What decodes must come back from its own encoding: two readings of one message would be two messages.
//! * The kernel is no outsider, but its requests are decoded by the process that every file of a mount hangs on: those recorded for
//!   `fuse-client` are damaged in the same way, and random bytes are put behind every opcode.
//!
//! `HOLDFAST_TEST_LONG=1` runs a hundred times as many cases; `HOLDFAST_SEED=N` others.

use bytes::Bytes;
use holdfast_client::ClusterFile;
use holdfast_fuse_client::device::{Operation, abi, decode as fuse_decode};
use holdfast_tests::command::repository;
use holdfast_tests::report::long;
use holdfast_types::prng::Prng;
use holdfast_wire::admin::{AdminAnswer, AdminRequest};
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest};
use holdfast_wire::codec;
use holdfast_wire::frame::{HEADER_BYTES, Header};
use holdfast_wire::group::GroupMessage;
use holdfast_wire::metadata::{Answer, Envelope};
use holdfast_wire::peer::PeerMessage;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Damaged messages made of each golden one.
const CASES: u64 = 300;

/// Decodes bytes as one kind of message. Returns whether they were one.
type Decoder = fn(&[u8]) -> bool;

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(read) = codec::decode::<T>(bytes) else { return false };
    let again: T = codec::decode(&codec::encode(&read)).expect("what was read can be written and read");
    assert_eq!(read, again, "two readings of one message");
    true
}

fn header(bytes: &[u8]) -> bool {
    let Some(first) = bytes.first_chunk::<HEADER_BYTES>() else { return false };
    Header::decode(first).is_ok_and(|header| {
        assert_eq!(&header.encode(), first, "two readings of one header");
        true
    })
}

fn cluster_file(bytes: &[u8]) -> bool {
    ClusterFile::parse(&String::from_utf8_lossy(bytes), Path::new("cluster.toml")).is_ok()
}

fn metadata_config(bytes: &[u8]) -> bool {
    type Config = holdfast_metadata_server::config::Config;
    holdfast_config::parse::<Config>(&String::from_utf8_lossy(bytes), Path::new("config.toml")).is_ok()
}

fn storage_config(bytes: &[u8]) -> bool {
    type Config = holdfast_storage_server::config::Config;
    holdfast_config::parse::<Config>(&String::from_utf8_lossy(bytes), Path::new("config.toml")).is_ok()
}

/// A request of the kernel; `long`: with the longer form of SETXATTR, as both sides may agree.
fn fuse_request(bytes: &[u8], long: bool) -> bool {
    let mut kept = 0;
    let mut keep = |data: &[u8]| {
        kept += data.len();
        Bytes::copy_from_slice(data)
    };
    let Ok(request) = fuse_decode::request(bytes, long, &mut keep) else { return false };
    // Nothing is larger than what it was read from, whatever length a field claims.
    let taken = match &request.operation {
        Operation::Write { data, .. } => data.len(),
        Operation::SetXattr { name, value, .. } => name.len() + value.len(),
        Operation::BatchForget(forgotten) => forgotten.len() * 16,
        Operation::Rename { name, to_name, .. } => name.len() + to_name.len(),
        Operation::Symlink { name, target } => name.len() + target.len(),
        Operation::Lookup { name } => name.len(),
        _ => 0,
    };
    assert!(kept.max(taken) <= bytes.len() - abi::IN_HEADER_BYTES, "{request:?} of {} bytes", bytes.len());
    true
}

fn fuse_short(bytes: &[u8]) -> bool {
    fuse_request(bytes, false)
}

fn fuse_long(bytes: &[u8]) -> bool {
    fuse_request(bytes, true)
}

fn fuse_init(bytes: &[u8]) -> bool {
    fuse_decode::header(bytes).is_some() && fuse_decode::init(bytes).is_some()
}

/// By the beginning of a golden message's name.
const DECODERS: &[(&str, Decoder)] = &[
    ("envelope.", message::<Envelope>),
    ("answer.", message::<Answer>),
    ("chunk-request.", message::<ChunkRequest>),
    ("chunk-answer.", message::<ChunkAnswer>),
    ("group.", message::<GroupMessage>),
    ("peer.", message::<PeerMessage>),
    ("admin.request", message::<AdminRequest>),
    ("admin.", message::<AdminAnswer>),
    ("fuse.init", fuse_init),
    ("fuse.long", fuse_long),
    ("fuse.", fuse_short),
    ("header", header),
    ("cluster-file", cluster_file),
    ("metadata-config", metadata_config),
    ("storage-config", storage_config),
];

fn decoder(name: &str) -> Decoder {
    DECODERS.iter().find(|(prefix, _)| name.starts_with(prefix)).unwrap_or_else(|| panic!("no decoder for {name}")).1
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hexadecimal")).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lines `name hexadecimal` of a file.
fn lines(path: &str) -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string(repository().join(path)).expect("it is committed");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(name, bytes)| (name.to_owned(), from_hex(bytes))).collect()
}

/// Requests recorded from a kernel: pairs of lines, bytes and what they say, which begins with `long ` if SETXATTR was in its longer form.
fn recorded() -> Vec<(String, Vec<u8>)> {
    let path = "fuse-client/src/device/testdata/requests.txt";
    let text = std::fs::read_to_string(repository().join(path)).expect("it is committed");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let pairs = lines.chunks_exact(2);
    pairs
        .map(|pair| {
            let said = pair[1].split([' ', '(']).next().unwrap_or_default();
            let decoder = match said {
                "Init" => "fuse.init",
                "long" => "fuse.long",
                _ => "fuse.short",
            };
            (decoder.to_owned(), from_hex(pair[0]))
        })
        .collect()
}

/// The golden messages, texts of configurations, requests of a kernel.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = lines("tests/compat/fixtures/0.1.0.txt");
    seeds.extend(recorded());
    let mut header = Header::new(holdfast_wire::frame::FrameKind::Request, holdfast_types::ClusterId(7), 9);
    header.describe(b"message", b"payload", false).expect("short");
    seeds.push(("header".into(), header.encode().to_vec()));
    let tls = "[tls]\nauthority = \"a\"\ncertificate = \"c\"\nkey = \"k\"\n[[metadata]]\nid = 1\naddress = \"h:1\"\n";
    seeds.push(("cluster-file".into(), format!("cluster = \"7\"\n{tls}").into_bytes()));
    let server = "cluster = \"00000000000000000000000000000007\"\nid = 1\naddress = \"h:1\"\ncache = \"64 MiB\"\n\
                  slow-operation = \"1 s\"\nauthority = \"a\"\ncertificate = \"c\"\nkey = \"k\"\n";
    let metadata =
        "data = \"d\"\nreplicas = 1\ngroups = 8\nstorage-expected = 1\n[[servers]]\nid = 1\naddress = \"h:1\"\n";
    seeds.push(("metadata-config".into(), format!("{server}{metadata}").into_bytes()));
    let storage = "[[disks]]\nid = 1\npath = \"d\"\n[[metadata]]\nid = 1\naddress = \"h:1\"\n";
    seeds.push(("storage-config".into(), format!("{server}{storage}").into_bytes()));
    seeds
}

/// One way of damaging bytes after the other.
fn damage(bytes: &mut Vec<u8>, other: &[u8], prng: &mut Prng) {
    for _ in 0..prng.between(1, 4) {
        let at = prng.below(bytes.len() as u64 + 1) as usize;
        match prng.below(7) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << prng.below(8),
            2 if at < bytes.len() => bytes[at] = prng.below(256) as u8,
            // A length, or a number, that is as large as it can be.
            3 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01])),
            4 => drop(bytes.splice(at..at, (0..prng.below(9)).map(|_| 0x80).collect::<Vec<_>>())),
            5 => {
                let from = prng.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => bytes.extend((0..prng.below(40)).map(|_| prng.below(256) as u8)),
        }
    }
}

/// Decodes; a panic is reported with the line that replays it.
fn decode(name: &str, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| decoder(name)(bytes)))
        .unwrap_or_else(|_| panic!("add this line to tests/fuzz/corpus.txt:\n{name} {}", to_hex(bytes)))
}

fn seed() -> u64 {
    std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

#[test]
fn what_was_once_interesting_is_decoded_or_refused() {
    let corpus = lines("tests/fuzz/corpus.txt");
    assert!(corpus.len() > 5, "the corpus is there");
    for (name, bytes) in corpus {
        decode(&name, &bytes);
    }
}

#[test]
fn damaged_messages_are_decoded_or_refused() {
    let seeds = seeds();
    for (name, bytes) in &seeds {
        assert!(decode(name, bytes), "{name} is not read as it is");
    }
    for (prefix, _) in DECODERS {
        assert!(seeds.iter().any(|(name, _)| name.starts_with(prefix)), "no seed for {prefix}");
    }
    let seed = seed();
    let mut prng = Prng::new(seed);
    let (mut read, mut refused) = (0u64, 0u64);
    for _ in 0..if long() { 100 * CASES } else { CASES } {
        for (name, golden) in &seeds {
            let mut bytes = golden.clone();
            let (_, other) = prng.pick(&seeds);
            damage(&mut bytes, other, &mut prng);
            if decode(name, &bytes) { read += 1 } else { refused += 1 }
        }
    }
    println!("seed {seed}: {read} read, {refused} refused");
    assert!(read > 100 && refused > 100, "the generator makes both: {read} and {refused}");
}

#[test]
fn random_bytes_behind_any_opcode_of_the_kernel_are_decoded_or_refused() {
    let seed = seed();
    let mut prng = Prng::new(seed);
    let (mut read, mut refused) = (0u64, 0u64);
    for _ in 0..if long() { 100 * CASES } else { CASES } {
        for opcode in (0..=abi::op::GREATEST + 2).chain([abi::op::CUSE_INIT, u32::MAX]) {
            let mut bytes: Vec<u8> = (0..abi::IN_HEADER_BYTES).map(|_| prng.below(256) as u8).collect();
            bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
            // Small numbers as well as any: a length that fits is read further than one that does not.
            let greatest = *prng.pick(&[1, 4, 32, 256]);
            bytes.extend((0..prng.below(200)).map(|_| prng.below(greatest) as u8));
            for name in ["fuse.short", "fuse.long", "fuse.init"] {
                if decode(name, &bytes) { read += 1 } else { refused += 1 }
            }
        }
    }
    println!("seed {seed}: {read} read, {refused} refused");
    assert!(read > 1000 && refused > 1000, "the generator makes both: {read} and {refused}");
}
