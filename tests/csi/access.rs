//! Access modes: who may have a volume at the same time as whom, and what each may do with it.

use crate::orchestrator::{OnNode, capability, code, gone, made, publish, unpublish};
use crate::world::world;
use holdfast_csi_driver::proto::volume_capability::access_mode::Mode;
use holdfast_csi_driver::proto::volume_capability::{AccessType, MountVolume};
use holdfast_csi_driver::proto::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::fs::{FileExt, MetadataExt};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_volume_is_one_on_all_nodes_and_leaves_one_without_the_others_noticing() {
    let name = "a_shared_volume_is_one_on_all_nodes_and_leaves_one_without_the_others_noticing";
    let Some(world) = world(name) else { return };
    let (mut a, mut b) = (world.connect("a"), world.connect("b"));
    let id = made(&mut a, "shared").await.volume_id;
    let mut on_a = OnNode::new(&world, &id, "a", Mode::MultiNodeMultiWriter);
    let mut on_b = OnNode::new(&world, &id, "b", Mode::MultiNodeMultiWriter);
    on_a.up(&mut a).await;
    on_b.up(&mut b).await;
    std::fs::write(on_a.target.join("x"), "from a").expect("written");
    assert_eq!(std::fs::read_to_string(on_b.target.join("x")).expect("seen"), "from a");
    let held = std::fs::File::create(on_b.target.join("held")).expect("made");
    on_a.down(&mut a).await;
    held.write_all_at(b"still here", 0).expect("written");
    held.sync_all().expect("synced");
    drop(held);
    on_b.down(&mut b).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_only_cannot_be_changed() {
    let Some(world) = world("what_is_read_only_cannot_be_changed") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "ro").await.volume_id;
    let mut on_a = OnNode::new(&world, &id, "a", Mode::SingleNodeMultiWriter);
    on_a.up(&mut a).await;
    std::fs::write(on_a.target.join("x"), "x").expect("written");
    // One pod of several, read only.
    let reader = OnNode { target: world.place("a", "ro.reader"), ..on_a.clone() };
    for _ in 0..2 {
        a.node.node_publish_volume(reader.publish(true)).await.expect("published");
    }
    assert_eq!(code(a.node.node_publish_volume(reader.publish(false)).await), Code::AlreadyExists);
    let refused = std::fs::write(reader.target.join("x"), "y").map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(libc::EROFS)));
    std::fs::write(on_a.target.join("x"), "z").expect("the other still writes");
    assert_eq!(std::fs::read_to_string(reader.target.join("x")).expect("read"), "z");
    assert_eq!(code(a.node.node_unstage_volume(on_a.unstage()).await), Code::FailedPrecondition, "it is published");
    a.node.node_unpublish_volume(reader.unpublish()).await.expect("unpublished");
    on_a.down(&mut a).await;
    // All of it.
    let mut everywhere = OnNode::new(&world, &id, "a", Mode::MultiNodeReaderOnly);
    everywhere.up(&mut a).await;
    let refused = std::fs::write(everywhere.target.join("x"), "y").map_err(|error| error.raw_os_error());
    assert_eq!(refused, Err(Some(libc::EROFS)));
    everywhere.down(&mut a).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_one_writer_is_at_one_place_and_one_of_several_at_several() {
    let name = "a_volume_of_one_writer_is_at_one_place_and_one_of_several_at_several";
    let Some(world) = world(name) else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "pods").await.volume_id;
    for (mode, second) in [
        (Mode::SingleNodeWriter, Code::FailedPrecondition),
        (Mode::SingleNodeSingleWriter, Code::FailedPrecondition),
        (Mode::SingleNodeMultiWriter, Code::Ok),
        (Mode::MultiNodeMultiWriter, Code::Ok),
    ] {
        let mut first = OnNode::new(&world, &id, "a", mode);
        first.up(&mut a).await;
        let other = OnNode { target: world.place("a", "pods.other"), ..first.clone() };
        assert_eq!(code(a.node.node_publish_volume(other.publish(false)).await), second, "{mode:?}");
        a.node.node_unpublish_volume(other.unpublish()).await.expect("unpublished");
        first.down(&mut a).await;
    }
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_options_and_the_group_of_files_are_heeded() {
    let Some(world) = world("mount_options_and_the_group_of_files_are_heeded") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "options").await.volume_id;
    let mut on_a = OnNode::new(&world, &id, "a", Mode::SingleNodeWriter);
    let answer = a.controller.controller_publish_volume(publish(&id, "a", on_a.mode)).await.expect("attached");
    on_a.context = answer.into_inner().publish_context;
    let with = |flags: &[&str], group: &str| {
        let mut capability = capability(Mode::SingleNodeWriter);
        capability.access_type = Some(AccessType::Mount(MountVolume {
            mount_flags: flags.iter().map(ToString::to_string).collect(),
            volume_mount_group: group.into(),
            ..MountVolume::default()
        }));
        Some(capability)
    };
    for wrong in ["noexek", "instance=x", "generation=9"] {
        let request = NodeStageVolumeRequest { volume_capability: with(&[wrong], ""), ..on_a.stage() };
        assert_eq!(code(a.node.node_stage_volume(request).await), Code::InvalidArgument, "{wrong}");
    }
    let capability = with(&["noexec", "noatime"], "4242");
    let request = NodeStageVolumeRequest { volume_capability: capability.clone(), ..on_a.stage() };
    a.node.node_stage_volume(request).await.expect("staged");
    let request = NodePublishVolumeRequest { volume_capability: capability, ..on_a.publish(false) };
    a.node.node_publish_volume(request).await.expect("published");
    let flags = rustix::fs::statvfs(&on_a.target).expect("shown").f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC), "{flags:?}");
    std::fs::write(on_a.target.join("x"), "x").expect("written");
    let (root, file) = (on_a.target.metadata().expect("there"), on_a.target.join("x").metadata().expect("there"));
    assert_eq!((root.gid(), root.mode() & 0o2070, file.gid()), (4242, 0o2070, 4242));
    on_a.down(&mut a).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_given_up_changes_nothing_when_it_wakes() {
    let Some(world) = world("a_node_that_was_given_up_changes_nothing_when_it_wakes") else { return };
    let (mut a, mut b) = (world.connect("a"), world.connect("b"));
    let id = made(&mut a, "zombie").await.volume_id;
    let mut on_a = OnNode::new(&world, &id, "a", Mode::SingleNodeWriter);
    on_a.up(&mut a).await;
    let path = on_a.target.join("file");
    let held = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).expect("made");
    held.write_all_at(b"aaaa", 0).expect("written");
    held.sync_all().expect("synced");
    let pid = Pid::from_raw(world.pid_of_mount(&on_a.staging)).expect("a process");
    kill_process(pid, Signal::STOP).expect("stopped");
    // The orchestrator gives the node up: nothing is unpublished or unstaged there.
    b.controller.controller_unpublish_volume(unpublish(&id, "a")).await.expect("detached, and fenced");
    let mut on_b = OnNode::new(&world, &id, "b", Mode::SingleNodeWriter);
    on_b.up(&mut b).await;
    std::fs::write(on_b.target.join("file"), "bbbb").expect("the successor writes");
    kill_process(pid, Signal::CONT).expect("goes on");
    let late = held.write_all_at(b"zzzz", 0).and_then(|()| held.sync_all());
    assert_eq!(late.map_err(|error| error.raw_os_error()), Err(Some(libc::EIO)));
    drop(held);
    // Nor does it get in again with what it was told.
    assert_eq!(code(a.node.node_stage_volume(on_a.stage()).await), Code::FailedPrecondition);
    // The node is tidied up, and that harms nobody.
    a.node.node_unpublish_volume(on_a.unpublish()).await.expect("unpublished");
    a.node.node_unstage_volume(on_a.unstage()).await.expect("unstaged");
    std::fs::remove_dir(&on_a.staging).expect("empty");
    on_b.down(&mut b).await;
    let mut back = OnNode::new(&world, &id, "a", Mode::SingleNodeWriter);
    back.up(&mut a).await;
    assert_eq!(std::fs::read_to_string(back.target.join("file")).expect("read"), "bbbb");
    back.down(&mut a).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}
