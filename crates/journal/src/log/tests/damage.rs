//! Rot below what was durable is named; it never makes the log shorter in silence.

use super::*;

/// A log of several segments, closed in order: name of the file and offset of every record.
fn written(segments: u64) -> (MemoryDisk, Vec<(Position, String, u64)>) {
    let disk = MemoryDisk::new(5);
    let (mut journal, _) = open(&disk).unwrap();
    let mut places = Vec::new();
    while journal.end().0 < (segments - 1) * 4096 + 3000 {
        let position = journal.append(&[&[9; 700]]).unwrap();
        journal.sync().unwrap();
        let (file, offset) = journal.segments.place_of(position.0);
        places.push((position, file, offset));
    }
    drop(journal);
    (disk.restart(Loss::Process), places)
}

#[test]
fn a_rotten_record_with_durable_ones_after_it_is_named() {
    let (_, places) = written(3);
    assert!(places.len() > 12);
    for (index, (position, file, offset)) in places.iter().enumerate() {
        for within in [0, 5, 9, 17, 25, 32, 700] {
            let (disk, _) = written(3);
            disk.flip_bit(file, offset + within).unwrap();
            let result = open(&disk);
            if index + 1 == places.len() {
                // Nothing later bears witness: indistinguishable from a torn write, and documented as such.
                assert_eq!(result.unwrap().1.len(), index);
                continue;
            }
            match result {
                Err(JournalError::Damaged { position: at, file: named, .. }) => {
                    assert_eq!((at, &named), (*position, file), "byte {within}");
                }
                other => panic!("record {index}, byte {within}: {other:?}"),
            }
        }
    }
}

#[test]
fn the_last_record_is_witnessed_by_the_superblock_of_the_next_opening() {
    let (disk, places) = written(2);
    drop(open(&disk).unwrap());
    let (position, file, offset) = places.last().unwrap();
    disk.flip_bit(file, offset + 40).unwrap();
    assert!(matches!(open(&disk), Err(JournalError::Damaged { position: at, .. }) if at == *position));
}

#[test]
fn a_rotten_or_missing_header_of_a_live_segment_is_named() {
    let (_, places) = written(3);
    let mut files: Vec<String> = places.into_iter().map(|(_, file, _)| file).collect();
    files.dedup();
    assert_eq!(files.len(), 3);
    for file in &files {
        let (disk, _) = written(3);
        disk.flip_bit(file, 33).unwrap();
        assert!(matches!(open(&disk), Err(JournalError::Damaged { .. })), "{file} rotten");
    }
    for file in &files[..2] {
        let (disk, _) = written(3);
        disk.remove(file).unwrap();
        assert!(matches!(open(&disk), Err(JournalError::Damaged { .. })), "{file} missing");
    }
}

#[test]
fn one_rotten_superblock_is_survived_and_two_are_named() {
    let (disk, places) = written(2);
    drop(open(&disk).unwrap()); // Now both copies are there.
    disk.flip_bit("log.super", 20).unwrap();
    let disk = disk.restart(Loss::Process);
    assert_eq!(open(&disk).unwrap().1.len(), places.len());
    disk.flip_bit("log.super", 20).unwrap();
    disk.flip_bit("log.super", 4096 + 20).unwrap();
    assert!(matches!(open(&disk), Err(JournalError::Damaged { .. })));
    let (disk, _) = written(2);
    disk.remove("log.super").unwrap();
    assert!(matches!(open(&disk), Err(JournalError::Damaged { .. })), "a lost superblock is not an empty log");
}

#[test]
fn an_unreadable_sector_is_an_error_and_not_an_end() {
    let (disk, places) = written(2);
    disk.fail_reads(&places[1].1, places[1].2).unwrap();
    assert!(matches!(open(&disk), Err(JournalError::Io { doing: "read", .. })));
}
