use super::*;

fn head() -> Head {
    Head {
        cluster: ClusterId(7),
        created: Timestamp { seconds: 1_700_000_000, nanos: 5 },
        release: "0.1.0".into(),
        rows_format: 6,
        server: ServerId(2),
        confirmed: true,
        at: [(LogIndex(9), Term(2)), (LogIndex(90), Term(3))],
    }
}

fn row(key: &[u8], bytes: usize) -> Row {
    (Bytes::copy_from_slice(key), vec![key[0]; bytes].into())
}

/// Rows of both shards.
fn rows() -> [Vec<Row>; 2] {
    [vec![row(b"a", 3), row(b"ab", 0)], vec![row(b"A", 1), row(b"b", 40), row(b"c", 7)]]
}

/// A backup of some rows, and where each record of it begins; the last is where it ends.
fn written(rows: &[Vec<Row>; 2]) -> (Vec<u8>, Vec<usize>) {
    let mut writer = Writer::begin(Vec::new(), &head()).expect("begins");
    let mut starts = vec![0, 12, writer.out.len()];
    for (shard, rows) in [0, 1].into_iter().zip(rows) {
        // One by one, so that there are several records.
        for row in rows {
            writer.rows(ShardId(shard), std::slice::from_ref(row)).expect("written");
            starts.push(writer.out.len());
        }
    }
    let (bytes, totals) = writer.finish().expect("ends");
    assert_eq!(totals.bytes, bytes.len() as u64);
    starts.push(bytes.len());
    (bytes, starts)
}

fn read(bytes: &[u8]) -> Result<(Head, [Vec<Row>; 2]), BackupError> {
    let (mut reader, head) = Reader::open(bytes)?;
    let mut found = [Vec::new(), Vec::new()];
    while let Some((shard, rows)) = reader.next_rows()? {
        found[shard.0 as usize].extend(rows);
    }
    assert_eq!(reader.totals().bytes, bytes.len() as u64);
    assert_eq!(reader.totals().rows, found.each_ref().map(|rows| rows.len() as u64));
    Ok((head, found))
}

#[test]
fn what_was_written_is_read() {
    let (bytes, _) = written(&rows());
    assert_eq!(read(&bytes).expect("whole"), (head(), rows()));
    // More than a record takes, and a row that is longer than one.
    let many = [vec![row(b"a", 2 << 20)], (0..200u8).map(|n| row(&[n + 1], 20_000)).collect()];
    let mut writer = Writer::begin(Vec::new(), &head()).expect("begins");
    for (shard, rows) in [0, 1].into_iter().zip(&many) {
        writer.rows(ShardId(shard), rows).expect("written");
    }
    let (bytes, totals) = writer.finish().expect("ends");
    assert_eq!(totals.rows, [1, 200]);
    assert_eq!(read(&bytes).expect("whole").1, many);
    let (bytes, _) = written(&[Vec::new(), Vec::new()]);
    assert_eq!(read(&bytes).expect("whole").1, [Vec::new(), Vec::new()]);
}

#[test]
fn a_backup_that_was_cut_off_anywhere_is_refused_as_such() {
    let (bytes, starts) = written(&rows());
    for end in 0..bytes.len() {
        let refused = read(&bytes[..end]).expect_err("not all of it");
        match refused {
            BackupError::NoBackup => assert!(end < 8, "at {end}"),
            BackupError::CutOff { at } => assert_eq!(at, end as u64, "it says where"),
            other => panic!("cut off at {end}: {other}"),
        }
    }
    // Records that are missing from the middle, or come twice, are noticed too.
    for pair in starts[2..].windows(2) {
        let gap = [&bytes[..pair[0]], &bytes[pair[1]..]].concat();
        assert!(read(&gap).is_err(), "without the record at {}", pair[0]);
        let twice = [&bytes[..pair[1]], &bytes[pair[0]..]].concat();
        assert!(read(&twice).is_err(), "with the record at {} twice", pair[0]);
    }
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(matches!(read(&longer), Err(BackupError::Damaged { .. })));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (bytes, _) = written(&rows());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_record_exchanged_for_one_of_another_backup_is_noticed_though_it_is_whole() {
    let (bytes, starts) = written(&rows());
    let mut others = rows();
    others[1][1].1 = vec![9; 40].into();
    let (other, same) = written(&others);
    assert_eq!(starts, same);
    let exchanged = [&bytes[..starts[5]], &other[starts[5]..starts[6]], &bytes[starts[6]..]].concat();
    assert!(matches!(read(&exchanged), Err(BackupError::Damaged { at, .. }) if at == starts[starts.len() - 2] as u64));
}

#[test]
fn other_files_and_later_formats_are_called_by_their_name() {
    let (mut bytes, _) = written(&rows());
    assert!(matches!(read(b"#!/bin/sh\nexit 0\n"), Err(BackupError::NoBackup)));
    assert!(matches!(read(b""), Err(BackupError::NoBackup)));
    bytes[8] = 2;
    assert!(matches!(read(&bytes), Err(BackupError::Format(2))));
}

#[test]
fn rows_out_of_order_are_refused() {
    let mut mixed = rows();
    mixed[1].swap(0, 1);
    assert!(matches!(read(&written(&mixed).0), Err(BackupError::Damaged { .. })));
    let mut twice = rows();
    twice[0].push(row(b"ab", 0));
    assert!(matches!(read(&written(&twice).0), Err(BackupError::Damaged { .. })));
}
