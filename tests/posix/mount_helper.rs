//! `mount -t holdfast`, `/etc/fstab`, remounting, and the examples for systemd: mounts as mount(8) makes them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast_tests::command::{holdfast, repository, run};
use holdfast_tests::helpers::{HELPERS, with_mount_helpers};
use holdfast_tests::{Cluster, Options, can_mount};

const LIMIT: Duration = Duration::from_secs(120);

/// A cluster without a mount of its own.
fn cluster() -> Cluster {
    Cluster::start(&Options { metadata: 1, storage: 1, replicas: 1, ..Options::default() }).expect("cluster")
}

/// Runs a script where mount(8) finds our helpers; `$c` is the cluster's description, `$m` a folder to mount on, `$f` one for files.
fn with_helpers(cluster: &Cluster, script: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let point = folder.path().join("point");
    std::fs::create_dir(&point).expect("a folder to mount on");
    let mut command = with_mount_helpers(folder.path(), Path::new("bash")).expect("links");
    // Whatever happens, the mount goes, and with it the process behind it.
    let whole = format!("trap 'umount -l \"$m\" 2> /dev/null || true' EXIT; {script}");
    command.args(["-euxo", "pipefail", "-c", &whole]);
    command.env("c", cluster.file()).env("m", &point).env("f", folder.path()).env("XDG_STATE_HOME", folder.path());
    let said = run(&mut command, LIMIT).expect("ends");
    assert!(said.success, "{script}\n{}{}", said.stdout, said.stderr);
    said.stdout
}

#[test]
fn mount_knows_the_type_and_a_remount_changes_what_may_be_written() {
    if !can_mount("mount_knows_the_type_and_a_remount_changes_what_may_be_written", &["unshare"]) {
        return;
    }
    let text = with_helpers(
        &cluster(),
        "mount -t holdfast holdfast:main $m -o cluster=$c,cache=32M,noatime
         grep \" $m fuse.holdfast rw,nosuid,nodev\" /proc/mounts > /dev/null
         echo one > $m/f; exec 7>> $m/g; exec 7>&-
         mount -o remount,ro $m
         grep \" $m fuse.holdfast ro,nosuid,nodev\" /proc/mounts > /dev/null
         ! touch $m/new 2> $f/said; grep 'Read-only file system' $f/said > /dev/null
         ! (echo no > $m/f) 2> /dev/null; cat $m/f
         mount -o remount,rw,noexec $m
         grep \" $m fuse.holdfast rw,nosuid,nodev,noexec\" /proc/mounts > /dev/null
         echo two >> $m/f; cat $m/f; umount $m
         mount -i -t tmpfs none $m; ! $f/sbin/mount.holdfast main $m -o remount,ro 2> $f/said; umount $m
         grep 'no Holdfast volume is mounted' $f/said > /dev/null",
    );
    assert_eq!(text, "one\none\ntwo\n");
}

#[test]
fn a_line_of_fstab_mounts_a_volume_once() {
    if !can_mount("a_line_of_fstab_mounts_a_volume_once", &["unshare"]) {
        return;
    }
    let text = with_helpers(
        &cluster(),
        "echo \"holdfast:main $m holdfast cluster=$c,_netdev,x-systemd.automount,soft=60 0 0\" > $f/fstab
         mount --fstab $f/fstab $m; echo kept > $m/f
         mount --fstab $f/fstab --all
         test $(grep -c \" $m \" /proc/mounts) = 1
         mount --fstab $f/fstab -o remount,ro $m; ! touch $m/new 2> /dev/null
         umount $m; mount --fstab $f/fstab --all; cat $m/f; umount -l $m",
    );
    assert_eq!(text, "kept\n");
}

#[test]
fn what_is_wrong_with_a_mount_is_said_with_its_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let helper = folder.path().join(HELPERS[0]);
    std::os::unix::fs::symlink(holdfast().expect("binary"), &helper).expect("a link");
    let refused = |arguments: &[&str]| {
        let mut command = Command::new(&helper);
        command.args(arguments).env_remove("HOLDFAST_CLUSTER");
        let said = run(&mut command, LIMIT).expect("ends");
        assert!(!said.success, "{arguments:?} succeeds");
        said.stderr
    };
    assert!(refused(&["main", "/mnt", "-o", "sotf=3"]).contains("did you mean \"soft=SECONDS\""));
    let absent = refused(&["main", "/mnt", "-o", "cluster=/absent/c.toml"]);
    assert!(absent.contains("/absent/c.toml") && absent.contains("cluster=FILE"), "{absent}");
    assert!(refused(&["main", "/mnt", "-N", "/proc/1/ns/mnt"]).contains("nsenter"));
    let checked = run(Command::new(&helper).args(["main", "/mnt", "-sf", "-o", "rw,odd"]), LIMIT).expect("ends");
    assert!(checked.success, "{}", checked.stderr);
}

/// The examples are what the binary takes: each option of the mount, each subcommand of a service.
#[test]
fn the_examples_for_systemd_are_accepted() {
    let folder = repository().join("deploy/systemd");
    let mut seen = 0;
    for file in std::fs::read_dir(&folder).expect("there are examples") {
        let path = file.expect("readable").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or("");
        let mut command = Command::new(holdfast().expect("binary"));
        if path.extension().is_some_and(|kind| kind == "mount") {
            let name = value("Where").trim_start_matches('/').replace('/', "-") + ".mount";
            assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(&*name), "systemd wants this name");
            assert_eq!(value("Type"), "holdfast");
            command.args([value("What"), value("Where"), "-f", "-o", value("Options")]);
            let said = run(&mut command, LIMIT).expect("ends");
            assert!(said.success, "{}: {}", path.display(), said.stderr);
        } else {
            let line = value("ExecStart").strip_prefix("/usr/bin/holdfast ").expect("our binary").to_owned();
            command.args(line.split(' '));
            let said = run(&mut command, LIMIT).expect("ends");
            // It is understood, and then there is no such file here.
            assert!(!said.success && said.stderr.contains(".toml"), "{}: {}", path.display(), said.stderr);
            assert!(!said.stderr.contains("Usage"), "{}: {}", path.display(), said.stderr);
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
}
