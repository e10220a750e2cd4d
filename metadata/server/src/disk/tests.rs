//! First starts, later ones, and what must not be taken for either.

use super::*;
use crate::config::Server;
use holdfast_metadata_core::{HardState, LogEntry, LogPosition, LogRecord};
use holdfast_types::{LogIndex, Term};

pub(crate) fn config(data: &Path) -> Config {
    let server = |id| Server { id, address: format!("127.0.0.1:{}", 4000 + id) };
    Config {
        cluster: "ff".into(),
        id: 2,
        address: "127.0.0.1:4002".into(),
        data: data.to_path_buf(),
        authority: "ca.pem".into(),
        certificate: "cert.pem".into(),
        key: "key.pem".into(),
        replicas: 3,
        groups: 8,
        storage_expected: 3,
        out_after: holdfast_config::Span(std::time::Duration::from_secs(600)),
        cache: holdfast_config::Size(1 << 20),
        telemetry_address: "off".into(),
        slow_operation: holdfast_config::Span(std::time::Duration::from_secs(1)),
        test_skip_sync: false,
        servers: (1..=3).map(server).collect(),
    }
}

fn used(config: &Config) -> Birth {
    let (birth, [mut cluster, _volumes]) = open(config).expect("opens");
    let at = LogPosition { index: LogIndex(1), term: Term(3) };
    let entries = vec![LogEntry { at, kind: 0, data: bytes::Bytes::from_static(b"x") }];
    let hard_state = HardState { term: Term(3), vote: ServerId(2), commit: LogIndex(0) };
    cluster.log.append(&[LogRecord::HardState(hard_state), LogRecord::Entries(entries)]).expect("appends");
    cluster.log.sync().expect("synced");
    birth
}

#[test]
fn a_server_starts_for_the_first_time_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    assert!(matches!(open(&config), Err(DiskError::Lost { id: 2, .. })), "nobody has allowed it");
    prepare(&config.data, Start::Form).expect("prepared");
    let birth = used(&config);
    assert_eq!(birth.founders, [1, 2, 3].map(ServerId));
    assert!(!config.data.join(START).exists());
    let (again, [cluster, _volumes]) = open(&config).expect("opens");
    assert_eq!((again, cluster.recovered.hard_state.vote), (birth, ServerId(2)));
}

#[test]
fn a_directory_that_was_wiped_is_not_a_new_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    prepare(&config.data, Start::Form).expect("prepared");
    used(&config);
    std::fs::remove_dir_all(&config.data).expect("wiped");
    let Err(refused) = open(&config).map(drop) else { panic!("it votes again") };
    assert!(refused.to_string().contains("admin metadata replace 2"), "{refused}");
}

#[test]
fn a_log_that_is_lost_or_exchanged_is_noticed() {
    for shard in [0, 1] {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(&folder.path().join("data"));
        prepare(&config.data, Start::Form).expect("prepared");
        used(&config);
        let log = config.data.join(format!("shard-{shard}")).join("log");
        std::fs::remove_dir_all(&log).expect("lost");
        let refused = open(&config).map(drop);
        assert!(matches!(&refused, Err(DiskError::LogLost { shard: s, .. }) if s.0 == shard), "{refused:?}");
        // It does not come to look right by trying again.
        assert!(matches!(open(&config).map(drop), Err(DiskError::LogLost { .. })));
    }
}

#[test]
fn a_first_start_that_was_cut_short_is_made_again_and_a_log_in_use_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    prepare(&config.data, Start::Join).expect("prepared");
    let first = open(&config).expect("opens").0;
    assert!(first.founders.is_empty(), "one that joins knows nobody");
    std::fs::remove_file(config.data.join("IDENTITY")).expect("as if it was never written");
    prepare(&config.data, Start::Join).expect("prepared");
    let second = used(&config);
    assert_ne!(first.life, second.life);
    std::fs::remove_file(config.data.join("IDENTITY")).expect("lost");
    prepare(&config.data, Start::Join).expect("somebody tries to help");
    assert!(matches!(open(&config).map(drop), Err(DiskError::Halfway { .. })));
}

#[test]
fn a_directory_of_another_format_is_refused_with_both_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    prepare(&config.data, Start::Form).expect("prepared");
    used(&config);
    let identity = config.data.join("IDENTITY");
    let found = std::fs::read_to_string(&identity).expect("read");
    for (other, wanted) in [(FORMAT - 1, "before the first release"), (FORMAT + 1, "newer release")] {
        let text = found.replacen(&format!("format {FORMAT} "), &format!("format {other} "), 1);
        std::fs::write(&identity, text).expect("written");
        let Err(refused) = open(&config).map(drop) else { panic!("format {other} is taken for {FORMAT}") };
        let said = refused.to_string();
        assert!(said.contains(wanted) && said.contains(&format!("format {other}")), "{said}");
    }
    std::fs::write(&identity, found).expect("written");
    open(&config).map(drop).expect("opens");
}
