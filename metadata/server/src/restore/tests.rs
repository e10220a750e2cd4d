use super::*;
use crate::backup::Writer;
use crate::disk::{Start, prepare};
use bytes::Bytes;
use holdfast_types::{LogIndex, Term, Timestamp};

fn config(data: &Path) -> Config {
    Config { cluster: format!("{:032x}", 7), ..crate::disk::tests::config(data) }
}

/// A backup of a cluster that has no pool yet, and a row that this release does not know.
fn backup(folder: &Path, cluster: u128) -> PathBuf {
    let head = Head {
        cluster: ClusterId(cluster),
        created: Timestamp { seconds: 1_700_000_000, nanos: 0 },
        release: "0.1.0".into(),
        rows_format: FORMAT,
        server: ServerId(1),
        confirmed: true,
        at: [(LogIndex(9), Term(2)), (LogIndex(90), Term(3))],
    };
    // Version, index, term, stamp.
    let applied = |index: u8, term: u8| (Bytes::from_static(&[0]), Bytes::from(vec![1, index, term, 0, 0]));
    let odd = (Bytes::from_static(b"\xf0odd"), Bytes::from_static(b"kept as it is"));
    let mut writer = Writer::begin(Vec::new(), &head).expect("begins");
    writer.rows(ShardId::CLUSTER, &[applied(9, 2)]).expect("written");
    writer.rows(ShardId::VOLUMES, &[applied(90, 3), odd]).expect("written");
    let path = folder.join("backup");
    std::fs::write(&path, writer.finish().expect("ends").0).expect("written");
    path
}

fn restored(config: &Config, from: &Path) -> Result<Outcome, RestoreError> {
    let (head, survey, totals) = survey(from, &mut |_| {})?;
    assert_eq!(totals.rows, [1, 2]);
    restore(config, (from, &head), survey, |_| {}, &mut |_| {})
}

#[test]
fn a_backup_becomes_a_directory_that_a_server_goes_on_from() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    let from = backup(folder.path(), 7);
    prepare(&config.data, Start::Form).expect("as init leaves it");
    restored(&config, &from).expect("restored");
    assert!(!config.data.join(START).exists() && !config.data.join(RESTORING).exists());
    let (birth, shards) = disk::open(&config).expect("opens");
    assert_eq!(birth.founders, [ServerId(2)]);
    for (shard, before) in shards.iter().zip([9, 90]) {
        let at = holdfast_metadata_core::inspect::applied(&*shard.table).expect("readable");
        assert!(at.index.0 > before + (1 << 32) && at.term.0 > 3 + (1 << 12), "{at:?}");
        assert_eq!((shard.recovered.base, shard.recovered.hard_state.commit), (at, at.index));
        assert_eq!((shard.recovered.hard_state.term, shard.recovered.hard_state.vote), (at.term, ServerId(0)));
        assert!(shard.recovered.entries.is_empty());
    }
    let odd = shards[1].table.get(b"\xf0odd").expect("readable");
    assert_eq!(odd.as_deref(), Some(&b"kept as it is"[..]));
}

#[test]
fn a_directory_that_holds_anything_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    let from = backup(folder.path(), 7);
    restored(&config, &from).expect("into nothing");
    let again = restored(&config, &from);
    assert!(matches!(&again, Err(RestoreError::NotEmpty { .. })), "{again:?}");
    disk::open(&config).map(drop).expect("as it was");
    let other = Config { data: folder.path().join("other"), ..config };
    std::fs::create_dir_all(other.data.join("photos")).expect("somebody's");
    let refused = restored(&other, &from).expect_err("somebody's").to_string();
    assert!(refused.contains("photos") && !other.data.join(RESTORING).exists(), "{refused}");
}

#[test]
fn a_restoration_that_was_cut_short_is_begun_anew_and_nobody_starts_from_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    let from = backup(folder.path(), 7);
    // At each of its steps: what is there is more and more of a server's directory.
    restored(&config, &from).expect("restored");
    for left in [&["IDENTITY", "shard-1", "shard-0"][..], &["IDENTITY", "shard-1"], &["IDENTITY"], &[]] {
        std::fs::write(config.data.join(RESTORING), "").expect("written");
        for name in left {
            let path = config.data.join(name);
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
        let refused = disk::open(&config).map(drop).expect_err("half of it").to_string();
        assert!(refused.contains("restore again") || refused.contains("Restore again"), "{refused}");
        restored(&config, &from).expect("begun anew");
        disk::open(&config).map(drop).expect("whole");
    }
}

#[test]
fn what_is_not_this_clusters_or_not_whole_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder.path().join("data"));
    let refused = restored(&config, &backup(folder.path(), 8)).expect_err("another's").to_string();
    assert!(refused.contains(&format!("{:032x}", 8)) && refused.contains(&format!("{:032x}", 7)), "{refused}");
    let from = backup(folder.path(), 7);
    let bytes = std::fs::read(&from).expect("read");
    for cut in [bytes.len() - 1, bytes.len() / 2, 20] {
        std::fs::write(&from, &bytes[..cut]).expect("cut");
        let refused = restored(&config, &from).expect_err("not all of it").to_string();
        assert!(refused.contains("cut off"), "{refused}");
    }
    std::fs::remove_file(&from).expect("gone");
    assert!(restored(&config, &from).expect_err("gone").to_string().contains("backup"));
    assert!(!config.data.exists());
}
