use super::{LogStore, RecoveredLog};
use bytes::Bytes;
use holdfast_journal::memory::Loss;
use holdfast_journal::{JournalConfig, MemoryDisk};
use holdfast_metadata_core::{HardState, LogEntry, LogPosition, LogRecord};
use holdfast_types::prng::Prng;
use holdfast_types::{LogIndex, ServerId, Term};

fn config() -> JournalConfig {
    JournalConfig { segment_bytes: 64 << 10, segments_min: 2, segments_max: 8, ..JournalConfig::new("log", 7) }
}

fn at(index: u64, term: u64) -> LogPosition {
    LogPosition { index: LogIndex(index), term: Term(term) }
}

fn entry(index: u64, term: u64) -> LogEntry {
    LogEntry { at: at(index, term), kind: 0, data: Bytes::from(format!("{term}/{index}").repeat(20)) }
}

/// The log as raft understands it, to compare with.
#[derive(Clone, Default)]
struct Model(RecoveredLog);

impl Model {
    fn append(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Restart { base } => {
                self.0.base = *base;
                self.0.entries.clear();
            }
            LogRecord::HardState(state) => self.0.hard_state = *state,
            LogRecord::Entries(entries) => {
                let first = entries[0].at.index;
                self.0.entries.retain(|entry| entry.at.index < first);
                self.0.entries.extend(entries.iter().cloned());
            }
        }
    }

    fn last(&self) -> u64 {
        self.0.entries.last().map_or(self.0.base.index.0, |entry| entry.at.index.0)
    }
}

fn random_record(prng: &mut Prng, model: &Model) -> LogRecord {
    let last = model.last();
    let term = model.0.hard_state.term.0 + prng.below(2);
    match prng.below(20) {
        0 => LogRecord::Restart { base: at(last + prng.below(50), term) },
        1..=4 => {
            LogRecord::HardState(HardState { term: Term(term), vote: ServerId(prng.below(4)), commit: LogIndex(last) })
        }
        _ => {
            let back = prng.below(4).min(last - model.0.base.index.0);
            let from = last + 1 - back;
            LogRecord::Entries((from..from + 1 + prng.below(10)).map(|index| entry(index, term)).collect())
        }
    }
}

#[test]
fn a_log_reopened_is_the_log_as_written_and_its_space_is_used_again() {
    let mut prng = Prng::new(3);
    let disk = MemoryDisk::new(1);
    let (mut log, found) = LogStore::open(disk.clone(), &config()).expect("opens");
    assert_eq!(found, RecoveredLog::default());
    let mut model = Model::default();
    for round in 0..3_000 {
        let record = random_record(&mut prng, &model);
        model.append(&record);
        log.append(std::slice::from_ref(&record)).expect("room, since the log is cut all the time");
        if round % 7 == 0 && model.last() > model.0.base.index.0 + 20 {
            let keep = model.last() - 20;
            let base = model.0.entries.iter().find(|entry| entry.at.index.0 == keep).expect("consecutive").at;
            model.0.base = base;
            model.0.entries.retain(|entry| entry.at.index > base.index);
            log.cut(base).expect("cut");
        }
        log.sync().expect("sync");
        if round % 50 == 0 {
            drop(log);
            let (again, found) = LogStore::open(disk.clone(), &config()).expect("reopens");
            assert_eq!(found, model.0, "round {round}");
            log = again;
        }
    }
}

#[test]
fn what_was_synced_survives_power_loss() {
    for seed in 0..200 {
        let mut prng = Prng::new(seed);
        let disk = MemoryDisk::new(seed);
        let (mut log, _) = LogStore::open(disk.clone(), &config()).expect("opens");
        let mut model = Model::default();
        let mut synced = model.clone();
        for _ in 0..prng.between(1, 60) {
            let record = random_record(&mut prng, &model);
            // A restart or a replaced suffix that was not synced may or may not be there: compare prefixes only without them.
            let LogRecord::Entries(entries) = &record else { continue };
            if entries[0].at.index.0 != model.last() + 1 {
                continue;
            }
            model.append(&record);
            log.append(std::slice::from_ref(&record)).expect("room");
            if prng.chance(1, 3) {
                log.sync().expect("sync");
                synced = model.clone();
            }
        }
        drop(log);
        let (_, found) = LogStore::open(disk.restart(Loss::Power), &config()).expect("recovers");
        assert!(found.entries.len() >= synced.0.entries.len(), "seed {seed}: synced entries are gone");
        assert_eq!(found.entries, model.0.entries[..found.entries.len()], "seed {seed}");
    }
}
