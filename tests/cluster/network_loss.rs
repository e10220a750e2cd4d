//! Hosts with cables: every server in a network namespace of its own, and what an application sees when one is unplugged.

use holdfast_tests::load::Failover;
use holdfast_tests::{Cluster, Options, can_mount};

#[test]
fn an_unplugged_metadata_follower_is_not_noticed() {
    let name = "an_unplugged_metadata_follower_is_not_noticed";
    if !can_mount(name, &["ip", "nsenter", "python3"]) {
        return;
    }
    let options = Options { namespaces: true, ..Options::default() };
    let mut cluster = Cluster::start(&options).expect("a healthy cluster of hosts");
    let mount = cluster.mount().expect("mounted across the network");
    let at = cluster.mounted(mount).path().to_path_buf();
    let leader = cluster.leader().expect("somebody leads");
    let victim = (1..=3).map(|n| format!("metadata-{n}")).find(|name| *name != leader).expect("two follow");
    let network = cluster.network().expect("it was asked for");
    let fault = network.plug_command(&victim, false).expect("a known host");
    let run = Failover { mount: &at, work: cluster.folder(), fault, heal_after_s: 12, duration_s: 20 };
    run.run(name, || network.plug(&victim, true)).expect("no error, no loss, no hang");
    cluster.wait_healthy(std::time::Duration::from_secs(60)).expect("whole again");
}
