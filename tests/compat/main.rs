//! Compatibility: the bytes of every release are read by every later one, and written the same.
//!
//! `fixtures/RELEASE.txt` holds one line per message: its name and its bytes in hexadecimal. A line that exists is never changed; a new message
//! adds one (`HOLDFAST_WRITE_FIXTURES=1 cargo test -p holdfast-tests --test compat` appends what is missing).

mod samples;

use holdfast_wire::codec;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::path::PathBuf;

/// The release whose bytes this build writes.
const RELEASE: &str = "0.1.0";

struct Fixtures {
    path: PathBuf,
    known: BTreeMap<String, String>,
    missing: Vec<String>,
    seen: usize,
}

impl Fixtures {
    fn load() -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("compat/fixtures/{RELEASE}.txt"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let known = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, bytes)| (name.to_owned(), bytes.to_owned()))
            .collect();
        Self { path, known, missing: Vec::new(), seen: 0 }
    }

    /// The kept bytes decode to `value`, and `value` encodes to the kept bytes.
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, value: &T) {
        let bytes = codec::encode(value);
        let mut text = String::new();
        for byte in bytes.iter() {
            write!(text, "{byte:02x}").expect("a string takes everything");
        }
        self.seen += 1;
        let Some(kept) = self.known.get(name) else {
            self.missing.push(format!("{name} {text}"));
            return;
        };
        let old: Vec<u8> = (0..kept.len() / 2)
            .map(|i| u8::from_str_radix(&kept[2 * i..2 * i + 2], 16).expect("hexadecimal digits"))
            .collect();
        let read: T = codec::decode(&old).unwrap_or_else(|error| panic!("{name} of {RELEASE} is not read: {error}"));
        assert_eq!(&read, value, "{name} of {RELEASE} means something else now");
        assert_eq!(kept, &text, "{name} is written differently than in {RELEASE}: raise its version");
    }

    fn finish(self) {
        if !self.missing.is_empty() && std::env::var_os("HOLDFAST_WRITE_FIXTURES").is_some() {
            let mut text = std::fs::read_to_string(&self.path).unwrap_or_default();
            for line in &self.missing {
                writeln!(text, "{line}").expect("a string takes everything");
            }
            std::fs::write(&self.path, text).expect("fixtures are written");
            return;
        }
        let names: Vec<&str> = self.missing.iter().filter_map(|line| line.split(' ').next()).collect();
        assert!(names.is_empty(), "no fixture for {names:?}; see the top of this file");
        assert_eq!(self.seen, self.known.len(), "a fixture has no sample any more: old bytes must stay readable");
    }
}

#[test]
fn messages_of_every_release_are_read_and_written_the_same() {
    let mut fixtures = Fixtures::load();
    for (name, request) in samples::requests() {
        fixtures.check(&format!("envelope.{name}"), &samples::envelope(request));
    }
    for (name, result) in samples::results() {
        fixtures.check(&format!("answer.{name}"), &samples::answer(result));
    }
    for (name, op) in samples::chunk_ops() {
        fixtures.check(&format!("chunk-request.{name}"), &samples::chunk_request(op));
    }
    for (name, answer) in samples::chunk_answers() {
        fixtures.check(&format!("chunk-answer.{name}"), &answer);
    }
    for (name, body) in samples::group_bodies() {
        fixtures.check(&format!("group.{name}"), &samples::group_message(body));
    }
    for (name, message) in samples::peer_messages() {
        fixtures.check(&format!("peer.{name}"), &message);
    }
    for (name, request) in samples::admin_requests() {
        fixtures.check(&format!("admin.{name}"), &request);
    }
    for (name, answer) in samples::admin_answers() {
        fixtures.check(&format!("admin.{name}"), &answer);
    }
    fixtures.finish();
}
