//! The life of a volume, each call made twice: an orchestrator that did not hear an answer asks again.

use crate::orchestrator::{MIB, OnNode, capability, code, create, delete, gone, made, publish, unpublish};
use crate::world::world;
use holdfast_csi_driver::proto::volume_capability::access_mode::Mode;
use holdfast_csi_driver::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerModifyVolumeRequest,
    GetCapacityRequest, GetPluginInfoRequest, ListVolumesRequest, NodeExpandVolumeRequest, NodeGetInfoRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, ProbeRequest, Topology, ValidateVolumeCapabilitiesRequest,
};
use rustix::process::{Pid, Signal, kill_process};
use std::io::Write;
use tonic::Code;

// tidy: long because it is one life, from its beginning to its end
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_from_its_creation_to_its_deletion_and_moves_with_its_data() {
    let Some(world) = world("a_volume_lives_from_its_creation_to_its_deletion_and_moves_with_its_data") else { return };
    let (mut a, mut b) = (world.connect("a"), world.connect("b"));
    let first = a.controller.create_volume(create("life/1", 64 * MIB)).await.expect("made").into_inner();
    let again = b.controller.create_volume(create("life/1", 64 * MIB)).await.expect("the same again").into_inner();
    assert_eq!(first, again);
    let volume = first.volume.expect("a volume");
    assert_eq!(volume.capacity_bytes, 64 * MIB);
    let id = volume.volume_id.as_str();

    let mut on_a = OnNode::new(&world, id, "a", Mode::SingleNodeWriter);
    on_a.up(&mut a).await;
    on_a.up(&mut a).await;
    let generation: u64 = on_a.context["generation"].parse().expect("a number");
    let mut file = std::fs::File::create(on_a.target.join("file")).expect("made");
    file.write_all(b"written on a").expect("written");
    // What is in the mount's buffer is not used yet.
    file.sync_all().expect("synced");
    drop(file);

    // It grows while it is in use.
    let larger = Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 });
    for _ in 0..2 {
        let request =
            ControllerExpandVolumeRequest { volume_id: id.into(), capacity_range: larger, ..Default::default() };
        let expanded = a.controller.controller_expand_volume(request).await.expect("expanded").into_inner();
        assert_eq!((expanded.capacity_bytes, expanded.node_expansion_required), (128 * MIB, false));
    }
    let request = NodeExpandVolumeRequest {
        volume_id: id.into(),
        volume_path: on_a.target.to_string_lossy().into_owned(),
        capacity_range: larger,
        ..Default::default()
    };
    let expanded = a.node.node_expand_volume(request).await.expect("expanded").into_inner();
    assert_eq!(expanded.capacity_bytes, 128 * MIB);
    let inodes = |n: &str| ControllerModifyVolumeRequest {
        volume_id: id.into(),
        mutable_parameters: [("inodes".to_owned(), n.to_owned())].into(),
        ..Default::default()
    };
    a.controller.controller_modify_volume(inodes("1000")).await.expect("modified");
    holdfast_tests::until("the new limits in statfs", crate::world::LIMIT, || {
        let shown = rustix::fs::statvfs(&on_a.target)?;
        let (bytes, files) = (shown.f_blocks * shown.f_frsize, shown.f_files);
        anyhow::ensure!(bytes == 128 * MIB as u64 && files == 1000, "{bytes} bytes, {files} inodes");
        Ok(())
    })
    .expect("limits change while it is mounted");
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id.into(),
        volume_path: on_a.target.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let stats = a.node.node_get_volume_stats(stats).await.expect("measured").into_inner();
    assert!(stats.usage.len() == 2 && stats.usage[0].total == 128 * MIB && stats.usage[0].used > 0, "{stats:?}");
    assert!(!stats.volume_condition.expect("a condition").abnormal);
    let get = ControllerGetVolumeRequest { volume_id: id.into() };
    let got = a.controller.controller_get_volume(get).await.expect("there").into_inner().status.expect("a status");
    assert_eq!(got.published_node_ids, ["a"]);
    assert!(!got.volume_condition.expect("a condition").abnormal);

    // It moves: not while it is here, and then with all that was written.
    assert_eq!(
        code(b.controller.controller_publish_volume(publish(id, "b", Mode::SingleNodeWriter)).await),
        Code::FailedPrecondition
    );
    assert_eq!(code(a.controller.delete_volume(delete(id)).await), Code::FailedPrecondition);
    // Nobody synced this; the mount had a megabyte to send when it was unstaged.
    std::fs::write(on_a.target.join("late"), vec![7; MIB as usize]).expect("written");
    on_a.down(&mut a).await;
    on_a.down(&mut a).await;
    assert!(!on_a.target.exists());
    let mut on_b = OnNode::new(&world, id, "b", Mode::SingleNodeWriter);
    on_b.up(&mut b).await;
    assert!(on_b.context["generation"].parse::<u64>().expect("a number") > generation);
    assert_eq!(std::fs::read_to_string(on_b.target.join("file")).expect("there"), "written on a");
    assert_eq!(std::fs::read(on_b.target.join("late")).expect("there"), vec![7; MIB as usize]);
    on_b.down(&mut b).await;
    gone(&mut a, id).await;
    gone(&mut b, id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_says_who_it_is_and_lists_what_there_is() {
    let Some(world) = world("a_driver_says_who_it_is_and_lists_what_there_is") else { return };
    let mut a = world.connect("a");
    let info = a.identity.get_plugin_info(GetPluginInfoRequest {}).await.expect("told").into_inner();
    assert_eq!(info.name, "csi.holdfast.io");
    assert!(!info.vendor_version.is_empty());
    assert_eq!(a.identity.probe(ProbeRequest {}).await.expect("told").into_inner().ready, Some(true));
    let node = a.node.node_get_info(NodeGetInfoRequest {}).await.expect("told").into_inner();
    assert_eq!(node.node_id, "a");
    let here = node.accessible_topology.expect("a topology");
    let ask = |topology| GetCapacityRequest { accessible_topology: topology, ..Default::default() };
    let available = a.controller.get_capacity(ask(Some(here))).await.expect("told").into_inner();
    assert!(available.available_capacity > 0);
    let elsewhere = Topology { segments: [("topology.holdfast.io/cluster".to_owned(), "another".to_owned())].into() };
    assert_eq!(a.controller.get_capacity(ask(Some(elsewhere))).await.expect("told").into_inner().available_capacity, 0);

    let names: Vec<String> = (0..5).map(|n| format!("list-{n}")).collect();
    for name in &names {
        made(&mut a, name).await;
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = ListVolumesRequest { max_entries: 2, starting_token: token };
        let page = a.controller.list_volumes(request).await.expect("listed").into_inner();
        assert!(page.entries.len() <= 2);
        seen.extend(page.entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id));
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    // One that an administrator made is there as well, and what is the driver's own is not.
    let expected: Vec<&str> = names.iter().map(String::as_str).chain(["main"]).collect();
    assert_eq!(seen, expected);
    let validate = |mode| ValidateVolumeCapabilitiesRequest {
        volume_id: "list-0".into(),
        volume_capabilities: vec![capability(mode)],
        ..Default::default()
    };
    let request = validate(Mode::MultiNodeMultiWriter);
    let valid = a.controller.validate_volume_capabilities(request).await.expect("looked at").into_inner();
    assert!(valid.confirmed.is_some(), "{}", valid.message);
    for name in &names {
        gone(&mut a, name).await;
    }
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_dies_is_seen_and_made_anew() {
    let Some(world) = world("a_mount_that_dies_is_seen_and_made_anew") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "dies").await.volume_id;
    let mut on_a = OnNode::new(&world, &id, "a", Mode::SingleNodeWriter);
    on_a.up(&mut a).await;
    let mut file = std::fs::File::create(on_a.target.join("file")).expect("made");
    file.write_all(b"durable").expect("written");
    file.sync_all().expect("synced");
    drop(file);
    let pid = Pid::from_raw(world.pid_of_mount(&on_a.staging)).expect("a process");
    kill_process(pid, Signal::KILL).expect("killed");
    let stats = || NodeGetVolumeStatsRequest {
        volume_id: on_a.volume.clone(),
        volume_path: on_a.target.to_string_lossy().into_owned(),
        ..Default::default()
    };
    let answer = a.node.node_get_volume_stats(stats()).await.expect("an answer").into_inner();
    assert!(answer.volume_condition.expect("a condition").abnormal);
    // The orchestrator asks again for what it had.
    a.node.node_stage_volume(on_a.stage()).await.expect("staged anew");
    a.node.node_publish_volume(on_a.publish(false)).await.expect("published anew");
    assert_eq!(std::fs::read_to_string(on_a.target.join("file")).expect("there"), "durable");
    let answer = a.node.node_get_volume_stats(stats()).await.expect("an answer").into_inner();
    assert!(!answer.volume_condition.expect("a condition").abnormal);
    on_a.down(&mut a).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_volume_comes_and_goes_with_its_pod() {
    let Some(world) = world("an_ephemeral_volume_comes_and_goes_with_its_pod") else { return };
    let mut a = world.connect("a");
    let mut pod = OnNode::new(&world, "csi-0123456789abcdef", "a", Mode::SingleNodeWriter);
    std::fs::remove_dir(&pod.staging).expect("it needs none");
    pod.staging = std::path::PathBuf::new();
    let request = || NodePublishVolumeRequest {
        volume_context: [("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned()), ("size".into(), "8Mi".into())]
            .into(),
        ..pod.publish(false)
    };
    for _ in 0..2 {
        a.node.node_publish_volume(request()).await.expect("published");
    }
    std::fs::write(pod.target.join("scratch"), "x").expect("written");
    let shown = rustix::fs::statvfs(&pod.target).expect("shown");
    assert_eq!(shown.f_blocks * shown.f_frsize, 8 * MIB as u64);
    for _ in 0..2 {
        a.node.node_unpublish_volume(pod.unpublish()).await.expect("unpublished");
    }
    assert!(!pod.target.exists());
    a.controller.controller_unpublish_volume(unpublish(&pod.volume, "a")).await.expect("as it should be");
    world.assert_nothing_left(&[]);
}
