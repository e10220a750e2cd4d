//! What a user sees of a configuration that is wrong.

use super::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sample {
    address: String,
    cache: Size,
    slow_operation: Span,
    #[serde(default)]
    disks: Vec<Disk>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    path: String,
}

impl Checked for Sample {
    fn validate(&self) -> Result<(), Nonsense> {
        if self.disks.is_empty() {
            return nonsense("disks", "at least one is needed");
        }
        if self.cache.0 == 0 { nonsense("cache", "must be above 0") } else { Ok(()) }
    }
}

const GOOD: &str = "address = \"a:1\"\ncache = \"64 MiB\"\nslow-operation = \"250 ms\"\n\n[[disks]]\npath = \"d\"\n";

fn error(text: &str) -> String {
    parse::<Sample>(text, Path::new("/etc/x.toml")).expect_err("it is wrong").to_string()
}

#[test]
fn what_is_written_is_read() {
    let sample: Sample = parse(GOOD, Path::new("x")).expect("good");
    assert_eq!((sample.cache, sample.slow_operation.0), (Size(64 << 20), Duration::from_millis(250)));
    assert_eq!(toml::to_string(&sample).expect("encodes"), GOOD);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    let text = GOOD.replace("cache", "cahce");
    assert_eq!(error(&text), "/etc/x.toml:2: unknown key \"cahce\"; did you mean \"cache\"?");
    let text = GOOD.replace("path", "pfad");
    assert_eq!(error(&text), "/etc/x.toml:6: unknown key \"pfad\"; did you mean \"path\"?");
    let text = GOOD.replace("slow-operation", "slow");
    assert_eq!(error(&text), "/etc/x.toml:3: unknown key \"slow\"; did you mean \"slow-operation\"?");
    let text = GOOD.replace("address = \"a:1\"\n", "");
    assert!(error(&text).ends_with("the key \"address\" is missing"), "{}", error(&text));
}

#[test]
fn a_value_without_its_unit_or_with_a_wrong_one_is_refused_with_an_example() {
    for wrong in ["64", "\"64\"", "\"64 MB\"", "\"MiB\"", "\"-1 MiB\"", "\"99999999999 TiB\"", "\"1.5 GiB\""] {
        let error = error(&GOOD.replace("\"64 MiB\"", wrong));
        assert!(error.starts_with("/etc/x.toml:2: ") && error.contains("for instance \"64 MiB\""), "{error}");
    }
    let error = error(&GOOD.replace("\"250 ms\"", "\"250\""));
    assert!(error.starts_with("/etc/x.toml:3: ") && error.contains("ms, s, min, h"), "{error}");
}

#[test]
fn nonsense_is_named_with_its_line_and_key() {
    assert_eq!(error(&GOOD.replace("64 MiB", "0 B")), "/etc/x.toml:2: cache: must be above 0");
    let none = GOOD.split("\n[[").next().expect("a beginning");
    assert_eq!(error(none), "/etc/x.toml:1: disks: at least one is needed");
    assert!(error("address = ").starts_with("/etc/x.toml:1: "), "{}", error("address = "));
}

#[test]
fn sizes_and_durations_are_shown_in_the_greatest_whole_unit() {
    let size = |bytes: u64| Size(bytes).to_string();
    assert_eq!(
        (size(0), size(1 << 30), size(1536), size(1 << 41)),
        ("0 B".into(), "1 GiB".into(), "1536 B".into(), "2 TiB".into())
    );
    let span = |millis| Span(Duration::from_millis(millis)).to_string();
    assert_eq!(
        (span(0), span(90_000), span(3_600_000), span(7)),
        ("0 ms".into(), "90 s".into(), "1 h".into(), "7 ms".into())
    );
}
