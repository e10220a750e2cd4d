//! tar, rsync and fio: trees and bytes that must come out as they went in.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use holdfast_tests::command::{quote, shell};
use holdfast_tests::note;

use crate::{LIMIT, folder, local_folder};

/// A tree with what trees have: many small files, large ones, holes, links of both kinds, modes, attributes.
fn grow_tree(at: &Path) {
    for folder in 0..20 {
        let inside = at.join(format!("folder-{folder:02}/inner"));
        std::fs::create_dir_all(&inside).expect("folders");
        for file in 0..40_usize {
            let bytes: Vec<u8> = (0..file * 211 + folder).map(|n| (n * 31 + file) as u8).collect();
            let path = inside.join(format!("file-{file:02}"));
            std::fs::write(&path, bytes).expect("a file");
            let mode = [0o644, 0o600, 0o755, 0o444][file % 4];
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        }
        symlink(format!("../folder-{folder:02}/inner/file-07"), at.join(format!("link-{folder:02}"))).expect("a link");
    }
    std::fs::hard_link(at.join("folder-00/inner/file-03"), at.join("second-name")).expect("a hard link");
    symlink("nowhere/at/all", at.join("dangling")).expect("a link to nothing");
    let large: Vec<u8> = (0..9_000_001_u64).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(at.join("large"), large).expect("a file over several chunks");
    let sparse = std::fs::File::create(at.join("sparse")).expect("a file");
    sparse.set_len(20_000_000).expect("a hole");
    std::fs::write(at.join("name with spaces and ü"), "odd").expect("an odd name");
    // Times long past, with a fraction: a time that was not kept cannot look right by chance.
    shell(
        &format!(
            "cd {}; setfattr -n user.colour -v blue large; setfattr -n user.empty folder-01
             find . -depth -exec touch -h -d '2024-05-06 07:08:09.123456789 UTC' {{}} +",
            quote(at)
        ),
        LIMIT,
    )
    .expect("attributes and times");
}

/// Everything a tree says about itself, in one line each: names, modes, owners, sizes, times, link targets, contents.
fn description(at: &Path) -> String {
    shell(
        &format!(
            "cd {}; find . -mindepth 1 -printf '%p %y %m %U:%G %T@ %n %l\\n' | sed -E 's/^(\\S+ d .*) [0-9]+ $/\\1/' | LC_ALL=C sort
             find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum",
            quote(at)
        ),
        LIMIT,
    )
    .expect("described")
}

#[test]
fn a_tree_goes_through_tar_in_and_out_unchanged() {
    let Some(at) = folder("a_tree_goes_through_tar_in_and_out_unchanged", &["tar", "setfattr"]) else { return };
    let local = local_folder();
    let source = local.path().join("source");
    grow_tree(&source);
    let before = description(&source);
    let (from, on) = (quote(&source), quote(&at));
    shell(
        &format!("cd {on}; mkdir out; tar --xattrs -C {from} -cf tree.tar .; tar --xattrs -xpf tree.tar -C out"),
        LIMIT,
    )
    .expect("in");
    let inside = description(&at.join("out"));
    assert!(inside == before, "the tree on the mount differs:\n{}", differing(&before, &inside));
    let back = local.path().join("back");
    shell(
        &format!("mkdir {back}; tar --xattrs -C {on}/out -cf - . | tar --xattrs -xpf - -C {back}", back = quote(&back)),
        LIMIT,
    )
    .expect("out");
    let outside = description(&back);
    assert!(outside == before, "the tree that came back differs:\n{}", differing(&before, &outside));
}

fn differing(before: &str, after: &str) -> String {
    let old: std::collections::BTreeSet<&str> = before.lines().collect();
    let new: std::collections::BTreeSet<&str> = after.lines().collect();
    let lines = old
        .difference(&new)
        .map(|line| format!("- {line}"))
        .chain(new.difference(&old).map(|line| format!("+ {line}")));
    lines.take(20).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_second_rsync_finds_nothing_to_copy() {
    let Some(at) = folder("a_second_rsync_finds_nothing_to_copy", &["rsync", "setfattr"]) else { return };
    let local = local_folder();
    let source = local.path().join("source");
    grow_tree(&source);
    let (from, to) = (quote(&source), quote(at.join("copy")));
    shell(&format!("rsync -aHAX {from}/ {to}/"), LIMIT).expect("copied");
    let second = shell(&format!("rsync -aHAX --itemize-changes --stats {from}/ {to}/"), LIMIT).expect("compared");
    assert!(second.contains("Number of regular files transferred: 0"), "{second}");
    let items: Vec<&str> = second.lines().take_while(|line| !line.is_empty()).collect();
    assert!(items.is_empty(), "the second run changed something: {items:#?}");
    let third =
        shell(&format!("rsync -aHAX --checksum --dry-run --itemize-changes {from}/ {to}/"), LIMIT).expect("summed");
    assert_eq!(third, "", "contents differ");
    let (before, after) = (description(&source), description(&at.join("copy")));
    assert!(after == before, "the copy differs:\n{}", differing(&before, &after));
}

#[test]
fn fio_reads_back_what_it_wrote() {
    let Some(at) = folder("fio_reads_back_what_it_wrote", &["fio"]) else { return };
    let common = format!(
        "--directory={} --size=48m --verify=crc32c --verify_fatal=1 --do_verify=1 --ioengine=psync --group_reporting --minimal --randrepeat=1 --verify_state_save=0",
        quote(&at)
    );
    for (name, options) in [
        ("buffered", "--rw=randwrite --bsrange=4k-256k --fsync=64"),
        ("direct", "--rw=randwrite --bs=4k --direct=1 --io_size=16m"),
        ("unaligned", "--rw=randwrite --bsrange=512-70000 --bs_unaligned --io_size=16m"),
        ("sequential", "--rw=write --bs=1m --numjobs=2 --end_fsync=1"),
        ("mapped", "--rw=randwrite --bs=4k --ioengine=mmap --io_size=8m"),
    ] {
        shell(&format!("fio --name={name} {common} {options}"), LIMIT)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        note(&format!("fio {name}: every block verified"));
    }
}
