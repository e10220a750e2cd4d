//! Power loss of everything at once: what was synced is there afterwards; with syncs skipped it is not, or this test
//! would prove nothing.

use holdfast_tests::command::shell;
use holdfast_tests::load::Load;
use holdfast_tests::{Cluster, Options, can_mount, note};
use std::time::Duration;

fn options() -> Options {
    Options { power_loss: true, ..Options::default() }
}

#[test]
fn what_was_synced_survives_power_loss_of_everything_at_once() {
    let name = "what_was_synced_survives_power_loss_of_everything_at_once";
    if !can_mount(name, &["mkfs.ext4", "losetup", "python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&options()).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let mut reports = Vec::new();
    let cuts = if holdfast_tests::report::long() { 20 } else { 2 };
    for cut in 1..=cuts {
        let load = Load::start(&at, &format!("load-{cut}")).expect("starts");
        load.wait_for(500 + 137 * cut).expect("acknowledged");
        cluster.cut_power().expect("cut");
        reports.push(load.stop());
        cluster.restore_power().expect("comes back");
        for (number, report) in reports.iter().enumerate() {
            let missing = report.missing();
            assert!(
                missing.is_empty(),
                "cut {cut}, load {}: lost after an acknowledged sync: {missing:#?}",
                number + 1
            );
        }
        note(&format!(
            "power cut {cut} of {cuts}: {} acknowledged writes all there",
            reports[reports.len() - 1].acknowledged()
        ));
    }
}

/// The control: the same run with every fdatasync of the storage nodes made a no-op. The metadata service keeps its word, so the
/// cluster comes back, and acknowledged bytes are missing.
#[test]
fn a_power_cut_with_syncs_skipped_loses_data() {
    let name = "a_power_cut_with_syncs_skipped_loses_data";
    if !can_mount(name, &["mkfs.ext4", "losetup", "python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options { skip_sync: true, ..options() }).expect("a healthy cluster");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    // What the nodes made when they began is on their disks; what comes from now on is not.
    shell("sync", Duration::from_secs(60)).expect("synced");
    let load = Load::start(&at, "load").expect("starts");
    load.wait_for(600).expect("acknowledged");
    cluster.cut_power().expect("cut");
    let report = load.stop();
    cluster.restore_power().expect("comes back");
    let missing = report.missing();
    assert!(!missing.is_empty(), "nothing was lost although nothing was synced: the power cut does not test syncs");
    note(&format!("control run without syncs lost data, as it must: {} findings, first {}", missing.len(), missing[0]));
}
