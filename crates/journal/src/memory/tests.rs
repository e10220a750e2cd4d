use super::*;

const PAGE: usize = 4096;

fn read(file: &MemoryFile, offset: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    file.read_at(&mut out, offset).expect("reads");
    out
}

/// Runs one seed per power loss and collects what was left of `build`'s file "a" (None: no such name).
fn outcomes(build: impl Fn(&MemoryDisk)) -> std::collections::BTreeSet<Option<Vec<u8>>> {
    (0..200)
        .map(|seed| {
            let disk = MemoryDisk::new(seed);
            build(&disk);
            let disk = disk.restart(Loss::Power);
            disk.contents().into_iter().find(|(name, _)| name == "a").map(|(_, bytes)| bytes)
        })
        .collect()
}

#[test]
fn what_was_synced_with_its_name_survives_every_power_loss() {
    let left = outcomes(|disk| {
        let file = disk.create("a").unwrap();
        file.write_at(&[7; 2 * PAGE], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_directory().unwrap();
    });
    assert_eq!(left, [Some(vec![7; 2 * PAGE])].into());
}

#[test]
fn what_was_not_synced_is_lost_kept_or_torn_and_a_name_may_go_too() {
    let left = outcomes(|disk| {
        let file = disk.create("a").unwrap();
        file.write_at(&[1; PAGE], 0).unwrap();
        file.sync_data().unwrap();
        file.write_at(&[2; PAGE], 0).unwrap();
    });
    assert!(left.contains(&None), "the name was never synced");
    assert!(left.contains(&Some(vec![1; PAGE])) && left.contains(&Some(vec![2; PAGE])));
    let torn = |bytes: &Vec<u8>| bytes.contains(&1) && bytes.contains(&2);
    assert!(left.iter().flatten().any(torn), "some sector is torn under some seed");
}

#[test]
fn a_version_between_two_writes_can_be_the_one_that_survives() {
    let left = outcomes(|disk| {
        let file = disk.create("a").unwrap();
        disk.sync_directory().unwrap();
        file.allocate(PAGE as u64).unwrap();
        file.sync_data().unwrap();
        for version in 1..=9 {
            file.write_at(&[version; PAGE], 0).unwrap();
        }
    });
    assert!(left.iter().flatten().any(|bytes| (1..=8).contains(&bytes[0])), "{} outcomes", left.len());
}

#[test]
fn a_failed_sync_never_becomes_a_success_by_trying_again() {
    let disk = MemoryDisk::new(0);
    let file = disk.create("a").unwrap();
    disk.sync_directory().unwrap();
    file.allocate(PAGE as u64).unwrap();
    file.sync_data().unwrap();
    disk.set_lying(true); // No write-back by luck.
    file.write_at(b"new", 0).unwrap();
    disk.set_lying(false);
    disk.fail_sync(1);
    assert!(file.sync_data().is_err());
    file.sync_data().expect("the second claims success, as kernels do");
    assert_eq!(read(&file, 0, 3), b"new");
    let disk = disk.restart(Loss::Power);
    assert_eq!(read(&disk.open("a").unwrap(), 0, 3), [0; 3]);
}

#[test]
fn a_lying_disk_loses_what_it_synced() {
    let left = outcomes(|disk| {
        let file = disk.create("a").unwrap();
        disk.sync_directory().unwrap();
        disk.set_lying(true);
        file.write_at(&[1; PAGE], 0).unwrap();
        file.sync_data().unwrap();
    });
    assert!(left.contains(&Some(vec![])));
}

#[test]
fn a_crash_point_hits_its_call_and_ends_every_handle() {
    let disk = MemoryDisk::new(3);
    let file = disk.create("a").unwrap();
    disk.crash_at_operation(2);
    file.write_at(b"x", 0).unwrap();
    assert!(file.write_at(b"y", 1).is_err());
    assert!(disk.crashed() && disk.exists("a").is_err() && file.bytes_len().is_err());
    let again = disk.restart(Loss::Power);
    assert!(again.list().is_ok() && disk.list().is_err(), "only the new life works");
    assert!(file.bytes_len().is_err());
}

#[test]
fn the_death_of_the_process_loses_nothing() {
    let disk = MemoryDisk::new(3);
    disk.create("a").unwrap().write_at(b"x", 5000).unwrap();
    let disk = disk.restart(Loss::Process);
    let file = disk.open("a").unwrap();
    assert_eq!((file.bytes_len().unwrap(), read(&file, 4999, 2)), (5001, vec![0, b'x']));
}

#[test]
fn a_full_disk_refuses_and_holes_give_space_back() {
    let disk = MemoryDisk::new(0);
    disk.set_capacity(Some(2 * PAGE as u64));
    let file = disk.create("a").unwrap();
    file.allocate(2 * PAGE as u64).unwrap();
    assert_eq!(file.write_at(b"x", 2 * PAGE as u64).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.space().unwrap().available, 0);
    file.punch_hole(0, PAGE as u64).unwrap();
    file.write_at(b"x", 2 * PAGE as u64).unwrap();
}

#[test]
fn a_cut_file_reads_zeros_when_extended_again_even_after_power_loss() {
    let left = outcomes(|disk| {
        let file = disk.create("a").unwrap();
        disk.sync_directory().unwrap();
        file.write_at(&[9; PAGE], 0).unwrap();
        file.sync_data().unwrap();
        file.set_len(10).unwrap();
        file.set_len(20).unwrap();
        file.sync_data().unwrap();
    });
    assert_eq!(left, [Some([[9; 10], [0; 10]].concat())].into());
}

#[test]
fn damage_is_seen_at_once_and_an_unreadable_page_heals_when_written() {
    let disk = MemoryDisk::new(0);
    let file = disk.create("a").unwrap();
    file.write_at(&[4; 8], 0).unwrap();
    disk.flip_bit("a", 3).unwrap();
    assert_eq!(read(&file, 2, 3), [4, 5, 4]);
    disk.fail_reads("a", 0).unwrap();
    assert!(file.read_at(&mut [0], 0).is_err());
    file.write_at(&[1], 0).unwrap();
    assert_eq!(read(&file, 0, 1), [1]);
}

#[test]
fn renames_are_atomic_and_durable_only_after_the_directory_sync() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let disk = MemoryDisk::new(seed);
        for (name, byte) in [("a", 1), ("b", 2)] {
            let file = disk.create(name).unwrap();
            file.write_at(&[byte], 0).unwrap();
            file.sync_data().unwrap();
        }
        disk.sync_directory().unwrap();
        disk.rename("b", "a").unwrap();
        assert_eq!(disk.contents(), [("a".to_owned(), vec![2])]);
        seen.insert(disk.restart(Loss::Power).contents());
    }
    let old = vec![("a".to_owned(), vec![1]), ("b".to_owned(), vec![2])];
    assert_eq!(seen, [old, vec![("a".to_owned(), vec![2])]].into());
}
