use super::*;
use crate::DirectoryDisk;
use crate::directory::Syncing;
use crate::memory::{Loss, MemoryDisk};
use holdfast_types::prng::Prng;

mod crash;
mod damage;

/// Small enough that a few records fill it: three or four per segment.
fn small() -> JournalConfig {
    JournalConfig { name: "log".to_owned(), id: 7, segment_bytes: 8192, segments_min: 2, segments_max: 4 }
}

type Records = Vec<(Position, Vec<u8>)>;

fn open(disk: &MemoryDisk) -> Result<(Journal<MemoryDisk>, Records), JournalError> {
    let mut records = Records::new();
    let journal = Journal::open(disk.clone(), &small(), |position, bytes| {
        records.push((position, bytes.to_vec()));
        Ok(())
    })?;
    Ok((journal, records))
}

#[test]
fn what_was_synced_is_replayed_in_order_and_can_be_read_back() {
    let disk = MemoryDisk::new(1);
    let (mut journal, records) = open(&disk).unwrap();
    assert!(records.is_empty());
    let first = journal.append(&[b"one ", b"record"]).unwrap();
    let second = journal.append(&[]).unwrap();
    assert_eq!(journal.read(first).unwrap(), b"one record", "before it is written");
    assert_eq!(journal.durable(), first, "nothing is durable yet");
    assert_eq!(journal.sync().unwrap(), journal.end());
    assert_eq!(journal.read(first).unwrap(), b"one record", "from disk");
    assert!(journal.read(Position(first.0 + 8)).is_err());
    let (journal, records) = open(&disk.restart(Loss::Power)).unwrap();
    assert_eq!(records, [(first, b"one record".to_vec()), (second, vec![])]);
    assert_eq!(journal.head(), first);
}

#[test]
fn many_appends_cost_one_write_and_one_sync() {
    let disk = MemoryDisk::new(1);
    let (mut journal, _) = open(&disk).unwrap();
    journal.append(&[b"begins the segment"]).unwrap();
    journal.sync().unwrap();
    let before = disk.counters();
    for n in 0..50u8 {
        journal.append(&[&[n]]).unwrap();
    }
    journal.sync().unwrap();
    journal.sync().expect("nothing to do");
    let after = disk.counters();
    assert_eq!((after.operations - before.operations, after.syncs - before.syncs), (2, 1));
}

#[test]
fn a_full_journal_goes_on_after_a_release_and_space_is_bounded() {
    let disk = MemoryDisk::new(1);
    let (mut journal, _) = open(&disk).unwrap();
    let record = [5u8; 2000];
    let mut positions = Vec::new();
    let full = loop {
        match journal.append(&[&record]) {
            Ok(position) => positions.push(position),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, JournalError::Full(Usage { used_bytes: 32768, capacity_bytes: 32768 })), "{full}");
    assert_eq!(positions.len(), 8);
    journal.sync().expect("a full journal still syncs");
    for round in 0..100 {
        journal.release_below(positions[2]);
        positions.drain(..2);
        positions.push(journal.append(&[&record]).unwrap());
        positions.push(journal.append(&[&record]).unwrap_or_else(|error| panic!("round {round}: {error}")));
        journal.sync().unwrap();
        assert_eq!(journal.usage().used_bytes, 32768);
    }
    assert_eq!(disk.list().unwrap().len(), 5, "four segments and the superblock, used again and again");
    let (journal, records) = open(&disk.restart(Loss::Power)).unwrap();
    let replayed: Vec<Position> = records.iter().map(|(position, _)| *position).collect();
    assert!(replayed.ends_with(&positions), "{replayed:?} has {positions:?}");
    assert!(journal.end() > *positions.last().unwrap());
}

#[test]
fn everything_can_be_released_again_and_again() {
    let disk = MemoryDisk::new(1);
    let (mut journal, _) = open(&disk).unwrap();
    for n in 0..50u8 {
        journal.append(&[&vec![n; 4064]]).expect("a record may fill a segment");
        journal.sync().unwrap();
        journal.release_below(journal.end());
        assert!(journal.usage().used_bytes <= 8192);
    }
    assert!(matches!(journal.append(&[&[0; 4065]]), Err(JournalError::TooLong { bytes: 4065, bytes_max: 4064 })));
    let (mut journal, records) = open(&disk.restart(Loss::Power)).unwrap();
    assert!(records.len() <= 1, "the head is durable at every new segment");
    let position = journal.append(&[b"x"]).unwrap();
    journal.sync().unwrap();
    assert_eq!(open(&disk.restart(Loss::Power)).unwrap().1.last(), Some(&(position, b"x".to_vec())));
}

#[test]
fn a_full_disk_refuses_one_record_and_nothing_else() {
    let disk = MemoryDisk::new(1);
    let (mut journal, _) = open(&disk).unwrap();
    disk.set_capacity(Some(2 * 8192 + 8192));
    let mut count = 0;
    let error = loop {
        match journal.append(&[&[1; 2000]]) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, JournalError::NoSpace(_)) && count == 4, "{error} after {count}");
    journal.sync().unwrap();
    disk.set_capacity(None);
    journal.append(&[&[2; 2000]]).expect("goes on when there is room");
    journal.sync().unwrap();
    assert_eq!(open(&disk.restart(Loss::Power)).unwrap().1.len(), 5);
}

#[test]
fn a_failed_sync_ends_the_journal_and_what_a_restart_replays_is_durable() {
    for nth in 1..=12 {
        let disk = MemoryDisk::new(nth);
        let (mut journal, _) = open(&disk).unwrap();
        disk.fail_sync(nth);
        let mut failed = false;
        for n in 0..20u8 {
            let result = journal.append(&[&[n; 900]]).and_then(|_| journal.sync());
            assert!(!failed || matches!(result, Err(JournalError::Poisoned)));
            failed |= result.is_err();
        }
        assert!(failed && journal.poisoned());
        // The process dies, the page cache lives: what is replayed now must be there after a power loss as well.
        let disk = disk.restart(Loss::Process);
        let (mut journal, replayed) = open(&disk).unwrap();
        journal.append(&[b"next"]).unwrap();
        journal.sync().unwrap();
        let (_, later) = open(&disk.restart(Loss::Power)).unwrap();
        assert_eq!(later[..replayed.len()], replayed, "failed sync {nth}");
        assert_eq!(later.len(), replayed.len() + 1, "failed sync {nth}");
    }
}

#[test]
fn what_an_opening_replays_is_durable_without_another_append() {
    for seed in 0..40 {
        let disk = MemoryDisk::new(seed);
        let (mut journal, _) = open(&disk).unwrap();
        journal.append(&[b"first"]).unwrap();
        journal.sync().unwrap();
        journal.append(&[b"second"]).unwrap();
        // Either the process dies between write and sync, or the sync fails and cleans the page without writing it.
        if seed % 2 == 0 {
            journal.write_behind().unwrap();
        } else {
            disk.fail_sync(1);
            journal.sync().unwrap_err();
        }
        let disk = disk.restart(Loss::Process);
        let (_, replayed) = open(&disk).unwrap();
        assert_eq!(replayed.len(), 2, "the page cache still has it");
        assert_eq!(open(&disk.restart(Loss::Power)).unwrap().1, replayed, "seed {seed}");
    }
}

#[test]
fn a_refused_record_stops_the_opening_and_changes_nothing() {
    let disk = MemoryDisk::new(1);
    let (mut journal, _) = open(&disk).unwrap();
    let position = journal.append(&[b"x"]).unwrap();
    journal.sync().unwrap();
    let before = disk.contents();
    let disk = disk.restart(Loss::Process);
    let result = Journal::open(disk.clone(), &small(), |_, _| Err("not mine".into()));
    assert!(matches!(result, Err(JournalError::Replay { position: at, .. }) if at == position));
    assert_eq!(disk.contents(), before);
}

#[test]
fn another_journal_and_a_later_format_are_refused_by_name() {
    let disk = MemoryDisk::new(1);
    open(&disk).unwrap().0.append(&[b"x"]).unwrap();
    let other = JournalConfig { id: 8, ..small() };
    let result = Journal::open(disk.clone(), &other, |_, _| Ok(()));
    assert!(matches!(result, Err(JournalError::Foreign { found: 7, expected: 8, .. })));
    let second = JournalConfig { name: "second".to_owned(), id: 8, ..small() };
    Journal::open(disk.clone(), &second, |_, _| Ok(())).expect("several journals share a disk");
    let file = disk.open("log.super").unwrap();
    let mut block = vec![0; 72];
    file.read_at(&mut block, 4096).unwrap();
    block[12] = 9;
    let sum = crc32fast::hash(&block[12..]).to_le_bytes();
    block[8..12].copy_from_slice(&sum);
    file.write_at(&block, 4096).unwrap();
    assert!(matches!(open(&disk), Err(JournalError::UnknownFormat { format: 9, .. })));
}

#[test]
fn a_real_directory_holds_a_journal_and_one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || DirectoryDisk::open(directory.path(), Syncing::Real);
    let mut positions = Vec::new();
    for round in 0..20u8 {
        let mut replayed = Vec::new();
        let mut journal = Journal::open(disk().unwrap(), &small(), |position, bytes| {
            assert_eq!(bytes.len(), 1000);
            replayed.push(position);
            Ok(())
        })
        .unwrap();
        assert_eq!(replayed, positions, "a durable release is for ever");
        assert_eq!(disk().unwrap_err().kind(), std::io::ErrorKind::ResourceBusy);
        positions.push(journal.append(&[&[round; 1000]]).unwrap());
        journal.sync().unwrap();
        if positions.len() > 5 {
            positions.drain(..3);
            journal.release_below(positions[0]);
            journal.sync_head().unwrap();
        }
    }
}

/// Frozen: a change of this text is a change of the format and needs a new version.
const FORMAT_1: &str = include_str!("testdata/format-1.txt");

#[test]
fn the_bytes_of_format_1_are_frozen() {
    let disk = MemoryDisk::new(1);
    let (mut journal, _) = open(&disk).unwrap();
    journal.append(&[b"hello, ", b"log"]).unwrap();
    journal.sync().unwrap();
    journal.append(&[&[0xab; 4]]).unwrap();
    journal.sync().unwrap();
    let mut text = String::new();
    for (name, bytes) in disk.contents() {
        for (number, line) in bytes.chunks(16).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0)) {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            text += &format!("{name} {:04x} {}\n", number * 16, hex.join(" "));
        }
    }
    assert_eq!(text, FORMAT_1, "written now:\n{text}");
}

#[test]
fn a_journal_of_format_1_can_be_opened() {
    let disk = MemoryDisk::new(1);
    let file = disk.create("log.000001").unwrap();
    file.set_len(8192).unwrap();
    let files = [file, disk.create("log.super").unwrap()];
    for line in FORMAT_1.lines() {
        let mut words = line.split(' ');
        let file = if words.next() == Some("log.super") { &files[1] } else { &files[0] };
        let offset = u64::from_str_radix(words.next().unwrap(), 16).unwrap();
        let bytes: Vec<u8> = words.map(|word| u8::from_str_radix(word, 16).unwrap()).collect();
        file.write_at(&bytes, offset).unwrap();
    }
    let (mut journal, records) = open(&disk).unwrap();
    assert_eq!(records, [(Position(0), b"hello, log".to_vec()), (Position(48), vec![0xab; 4])]);
    assert_eq!(journal.append(&[b"more"]).unwrap(), Position(88));
}
