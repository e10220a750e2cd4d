//! Volumes of Docker's containers, with the real engine: an engine and a plugin on each of two hosts, before a cluster of processes.

mod life;
mod managed;
mod zombie;

use holdfast_tests::docker::{DockerHost, PROGRAMS};
use holdfast_tests::{Cluster, Options, can_mount};

/// Small, and whole: servers on hosts of their own, and everything kept twice.
fn cluster() -> Cluster {
    Cluster::start(&Options { metadata: 1, storage: 2, replicas: 2, namespaces: true, ..Options::default() })
        .expect("a healthy cluster")
}

/// An engine with its plugin, on a host of the cluster's network.
fn host(cluster: &Cluster, name: &str) -> DockerHost {
    DockerHost::start(cluster, name).expect("an engine and a plugin")
}

fn can_run(name: &str) -> bool {
    can_mount(name, &PROGRAMS)
}
