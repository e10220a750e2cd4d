//! `holdfast up`: the one-process cluster survives kill -9, stops cleanly, and guards its folder.

use std::process::Command;
use std::time::Duration;

use holdfast_tests::load::Load;
use holdfast_tests::{Up, can_mount, note};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn up_killed_and_started_again_has_everything_synced_and_repairs_its_dead_mount() {
    if !can_mount("up_killed_and_started_again_has_everything_synced_and_repairs_its_dead_mount", &[]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    let mount = up.mount().to_path_buf();
    let load = Load::start(&mount, "load").expect("starts");
    load.wait_for(500).expect("acknowledged");
    up.process().kill().expect("killed");
    let report = load.stop();
    assert!(std::fs::read_dir(&mount).is_err(), "kill -9 leaves a dead mount");
    up.restart().expect("starts on the same folder, dead mount and all");
    assert_eq!(report.missing(), Vec::<String>::new());
    note(&format!("up killed with -9: {} acknowledged writes all there", report.acknowledged()));
}

#[test]
fn up_stops_cleanly_on_sigterm_and_keeps_even_what_was_not_synced() {
    if !can_mount("up_stops_cleanly_on_sigterm_and_keeps_even_what_was_not_synced", &[]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    let file = up.mount().join("not-synced");
    std::fs::write(&file, vec![5; 3_000_000]).expect("written");
    let status = up.process().terminate(LIMIT).expect("ends by itself");
    assert!(status.success(), "{status}");
    let mounts = std::fs::read_to_string("/proc/mounts").expect("readable");
    assert!(!mounts.contains(&*up.mount().to_string_lossy()), "it leaves its mount behind");
    up.restart().expect("starts again");
    assert!(std::fs::read(&file).expect("there") == vec![5; 3_000_000], "what was written before a clean stop changed");
}

#[test]
fn up_on_a_folder_in_use_says_so() {
    if !can_mount("up_on_a_folder_in_use_says_so", &[]) {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    let mut second = Command::new(holdfast_tests::command::holdfast().expect("checked before"));
    second.arg("up").arg("--data").arg(up.folder().join("data")).arg("--mount").arg(up.folder().join("other"));
    let said = holdfast_tests::command::run(&mut second, LIMIT).expect("it ends by itself");
    let text = said.stdout + &said.stderr;
    assert!(!said.success && text.contains("in use"), "{text}");
    std::fs::write(up.mount().join("still-works"), "yes").expect("the first one is not disturbed");
}

#[test]
fn one_server_of_each_kind_works_and_says_that_it_is_not_redundant() {
    if !can_mount("one_server_of_each_kind_works_and_says_that_it_is_not_redundant", &[]) {
        return;
    }
    let mut up = Up::start(&["--metadata", "1", "--storage", "1", "--replicas", "1"]).expect("up is ready");
    let file = up.mount().join("alone");
    std::fs::write(&file, "hello").expect("written");
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "hello");
    let log = up.process().log_tail().to_lowercase();
    assert!(log.contains("not redundant"), "{log}");
}
