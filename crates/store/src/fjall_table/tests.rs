use super::*;

fn batch(key: &[u8], value: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(key.to_vec(), value.to_vec());
    batch
}

#[test]
fn a_second_opener_is_told_that_the_table_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let table = FjallTable::open(directory.path(), FjallConfig::default()).unwrap();
    let second = FjallTable::open(directory.path(), FjallConfig::default());
    assert!(matches!(second, Err(StoreError::InUse)), "{second:?}");
    drop(table);
    FjallTable::open(directory.path(), FjallConfig::default()).expect("free again");
}

#[test]
fn a_table_that_lost_its_pointer_is_damaged_and_not_empty() {
    let directory = tempfile::tempdir().unwrap();
    let open = || FjallTable::open(directory.path(), FjallConfig::default());
    open().unwrap().commit(batch(b"k", b"v")).unwrap();
    fs::remove_file(directory.path().join(CURRENT)).unwrap();
    assert!(matches!(open(), Err(StoreError::Damaged(_))));
    fs::write(directory.path().join(CURRENT), "2\n").unwrap();
    assert!(matches!(open(), Err(StoreError::Damaged(_))));
    fs::write(directory.path().join(CURRENT), "1\n").unwrap();
    assert_eq!(open().unwrap().get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn contents_left_over_from_a_crash_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let open = || FjallTable::open(directory.path(), FjallConfig::default()).unwrap();
    let table = open();
    table.commit(batch(b"k", b"v")).unwrap();
    let replacement = table.replace().unwrap();
    assert_eq!(content_numbers(directory.path()).unwrap(), [1, 2]);
    drop((replacement, table));
    assert_eq!(content_numbers(directory.path()).unwrap(), [1], "given up");
    // What a process leaves that died while a replacement streamed in.
    fs::create_dir(content_path(directory.path(), 9)).unwrap();
    let table = open();
    assert_eq!(content_numbers(directory.path()).unwrap(), [1]);
    assert!(table.get(b"k").unwrap().is_some());
    table.replace().unwrap().finish().unwrap();
    assert_eq!(content_numbers(directory.path()).unwrap().len(), 1, "the replaced content is gone");
}
