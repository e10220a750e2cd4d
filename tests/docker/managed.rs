//! The plugin as one that the engine runs itself, made by `deploy/docker/plugin/build.sh`.

use crate::{can_run, cluster, host};
use holdfast_tests::command::{holdfast, quote, repository, shell};
use std::time::Duration;

#[test]
fn the_engine_runs_the_plugin_itself() {
    if !can_run("docker::managed::the_engine_runs_the_plugin_itself") {
        return;
    }
    let cluster = cluster();
    let mut host = host(&cluster, "client");
    host.stop_plugin().expect("ends");
    let (directory, state) = (cluster.folder().join("managed"), cluster.folder().join("managed-state"));
    std::fs::create_dir_all(&state).expect("made");
    let script = repository().join("deploy/docker/plugin/build.sh");
    let binary = holdfast().expect("built");
    shell(&format!("{} {} {}", quote(script), quote(binary), quote(&directory)), Duration::from_secs(60))
        .expect("made");
    host.docker(&["plugin", "create", "managed", &directory.to_string_lossy()]).expect("created");
    let source = |name: &str, path: &std::path::Path| format!("{name}.source={}", path.display());
    let config = cluster.file().parent().expect("a folder").to_path_buf();
    host.docker(&["plugin", "set", "managed", &source("cluster", &config), &source("state", &state)]).expect("set");
    host.docker(&["plugin", "enable", "managed"]).expect("enabled");
    let run = |line: &str| {
        let words = ["run", "--rm", "--network=none", "--volume-driver=managed", "--volume", "db:/data"];
        host.docker(&[&words[..], &[holdfast_tests::docker::IMAGE, "/bin/sh", "-c", line]].concat())
    };
    host.docker(&["volume", "create", "--driver", "managed", "--opt", "access=single-writer", "db"]).expect("created");
    run("echo kept > /data/file").expect("written");
    assert_eq!(run("cat /data/file").expect("read"), "kept");
    assert!(cluster.admin(&["volume", "list"]).expect("listed").contains("db"), "it is the cluster's");
    assert_eq!(host.mounted().expect("a host"), Vec::<String>::new(), "unmounted after the last container");
    host.docker(&["volume", "rm", "db"]).expect("removed");
    host.docker(&["plugin", "disable", "managed"]).expect("disabled");
    host.docker(&["plugin", "rm", "managed"]).expect("removed");
}
