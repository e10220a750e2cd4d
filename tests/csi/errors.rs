//! Every error condition of every call, with the code that the interface has for it; and that none of them left anything behind.

use crate::orchestrator::{MIB, OnNode, capability, code, create, delete, gone, made, publish, unpublish};
use crate::world::{Driver, world};
use holdfast_csi_driver::proto::volume_capability::access_mode::Mode;
use holdfast_csi_driver::proto::volume_capability::{AccessMode, AccessType, BlockVolume};
use holdfast_csi_driver::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerGetVolumeRequest, ControllerModifyVolumeRequest,
    ControllerPublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, ListVolumesRequest,
    NodeExpandVolumeRequest, NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, Topology, TopologyRequirement,
    ValidateVolumeCapabilitiesRequest, VolumeCapability, VolumeContentSource,
};
use tonic::Code::{
    self, Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Ok as Good, OutOfRange,
    ResourceExhausted, Unimplemented,
};

fn block() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume::default())),
        ..capability(Mode::SingleNodeWriter)
    }
}

fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange { required_bytes, limit_bytes })
}

fn words(key: &str, value: &str) -> std::collections::HashMap<String, String> {
    [(key.to_owned(), value.to_owned())].into()
}

async fn create_says(a: &mut Driver, wanted: Code, request: CreateVolumeRequest) {
    let shown = format!("{request:?}");
    assert_eq!(code(a.controller.create_volume(request).await), wanted, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_be_is_refused() {
    let Some(world) = world("a_volume_that_cannot_be_is_refused") else { return };
    let mut a = world.connect("a");
    let good = || create("errors", 8 * MIB);
    let unknown = VolumeCapability { access_mode: Some(AccessMode { mode: 0 }), ..capability(Mode::SingleNodeWriter) };
    let elsewhere = Topology { segments: words("topology.holdfast.io/cluster", "another") };
    let bad = [
        (InvalidArgument, CreateVolumeRequest { name: String::new(), ..good() }),
        (InvalidArgument, CreateVolumeRequest { name: "x".repeat(129), ..good() }),
        (InvalidArgument, CreateVolumeRequest { name: "a\u{7}b".into(), ..good() }),
        (InvalidArgument, CreateVolumeRequest { volume_capabilities: vec![], ..good() }),
        (InvalidArgument, CreateVolumeRequest { volume_capabilities: vec![block()], ..good() }),
        (InvalidArgument, CreateVolumeRequest { volume_capabilities: vec![unknown], ..good() }),
        (InvalidArgument, CreateVolumeRequest { volume_capabilities: vec![VolumeCapability::default()], ..good() }),
        (InvalidArgument, CreateVolumeRequest { parameters: words("inodse", "7"), ..good() }),
        (InvalidArgument, CreateVolumeRequest { mutable_parameters: words("inodes", "few"), ..good() }),
        (
            InvalidArgument,
            CreateVolumeRequest { volume_content_source: Some(VolumeContentSource::default()), ..good() },
        ),
        (OutOfRange, CreateVolumeRequest { capacity_range: range(-1, 0), ..good() }),
        (OutOfRange, CreateVolumeRequest { capacity_range: range(2, 1), ..good() }),
        (OutOfRange, CreateVolumeRequest { capacity_range: range(i64::MAX, 0), ..good() }),
        (
            ResourceExhausted,
            CreateVolumeRequest {
                accessibility_requirements: Some(TopologyRequirement { requisite: vec![elsewhere], preferred: vec![] }),
                ..good()
            },
        ),
    ];
    for (wanted, request) in bad {
        create_says(&mut a, wanted, request).await;
    }
    let long = "n".repeat(128);
    for odd in [long.as_str(), "..", "-x", "a b,c=d", "\u{4e2d}\u{6587}/\u{e4}", "%2F", "main2"] {
        let volume = made(&mut a, odd).await;
        assert_eq!(code(a.controller.create_volume(create(odd, 64 * MIB)).await), Good);
        gone(&mut a, &volume.volume_id).await;
    }
    let id = made(&mut a, "errors").await.volume_id;
    create_says(&mut a, AlreadyExists, create("errors", 128 * MIB)).await;
    create_says(&mut a, AlreadyExists, CreateVolumeRequest { capacity_range: range(0, MIB), ..good() }).await;
    create_says(&mut a, AlreadyExists, CreateVolumeRequest { parameters: words("inodes", "7"), ..good() }).await;
    create_says(&mut a, AlreadyExists, create("main", 0)).await;
    create_says(&mut a, Good, CreateVolumeRequest { capacity_range: range(MIB, 64 * MIB), ..good() }).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_cannot_be_is_refused() {
    let Some(world) = world("a_publication_that_cannot_be_is_refused") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "errors").await.volume_id;
    let c = &mut a.controller;
    assert_eq!(code(c.delete_volume(delete("")).await), InvalidArgument);
    assert_eq!(code(c.delete_volume(delete("no-such-volume")).await), Good);

    let mode = Mode::SingleNodeWriter;
    let without = |request| ControllerPublishVolumeRequest { volume_capability: None, ..request };
    let blocks = |request| ControllerPublishVolumeRequest { volume_capability: Some(block()), ..request };
    for (wanted, request) in [
        (InvalidArgument, publish("", "a", mode)),
        (InvalidArgument, publish(&id, "", mode)),
        (InvalidArgument, without(publish(&id, "a", mode))),
        (InvalidArgument, blocks(publish(&id, "a", mode))),
        (NotFound, publish("no-such-volume", "a", mode)),
        (NotFound, publish(&id, "no-such-node", mode)),
        (Good, publish(&id, "a", mode)),
        (AlreadyExists, publish(&id, "a", Mode::MultiNodeMultiWriter)),
        (AlreadyExists, ControllerPublishVolumeRequest { readonly: true, ..publish(&id, "a", mode) }),
        (FailedPrecondition, publish(&id, "b", mode)),
        (FailedPrecondition, publish(&id, "b", Mode::MultiNodeMultiWriter)),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(code(c.controller_publish_volume(request).await), wanted, "{shown}");
    }
    assert_eq!(code(c.delete_volume(delete(&id)).await), FailedPrecondition);
    assert_eq!(code(c.controller_unpublish_volume(unpublish("", "a")).await), InvalidArgument);
    for (volume, node) in [("no-such-volume", "a"), (&id, "no-such-node"), (&id, "b"), (&id, ""), (&id, "a")] {
        assert_eq!(code(c.controller_unpublish_volume(unpublish(volume, node)).await), Good, "{volume} {node}");
    }
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_says_what_is_wrong_with_a_question_or_a_change() {
    let Some(world) = world("the_controller_says_what_is_wrong_with_a_question_or_a_change") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "errors").await.volume_id;
    let (c, mode) = (&mut a.controller, Mode::SingleNodeWriter);
    let validate = |volume: &str, capabilities: Vec<VolumeCapability>| ValidateVolumeCapabilitiesRequest {
        volume_id: volume.into(),
        volume_capabilities: capabilities,
        ..Default::default()
    };
    let some = || vec![capability(mode)];
    for (wanted, request) in [
        (InvalidArgument, validate("", some())),
        (InvalidArgument, validate(&id, vec![])),
        (NotFound, validate("no-such-volume", some())),
    ] {
        assert_eq!(code(c.validate_volume_capabilities(request).await), wanted);
    }
    let refused =
        c.validate_volume_capabilities(validate(&id, vec![capability(mode), block()])).await.expect("an answer");
    assert!(refused.get_ref().confirmed.is_none() && refused.get_ref().message.contains("block"), "{refused:?}");

    let list = |max_entries, token: &str| ListVolumesRequest { max_entries, starting_token: token.into() };
    assert_eq!(code(c.list_volumes(list(0, "no-such-token")).await), Aborted);
    assert_eq!(code(c.list_volumes(list(-1, "")).await), InvalidArgument);
    let get = |volume: &str| ControllerGetVolumeRequest { volume_id: volume.into() };
    assert_eq!(code(c.controller_get_volume(get("")).await), InvalidArgument);
    assert_eq!(code(c.controller_get_volume(get("no-such-volume")).await), NotFound);

    let expand = |volume: &str, range| ControllerExpandVolumeRequest {
        volume_id: volume.into(),
        capacity_range: range,
        ..Default::default()
    };
    for (wanted, request) in [
        (InvalidArgument, expand("", range(MIB, 0))),
        (InvalidArgument, expand(&id, None)),
        (NotFound, expand("no-such-volume", range(MIB, 0))),
        (OutOfRange, expand(&id, range(2, 1))),
        (OutOfRange, expand(&id, range(MIB, MIB))),
        (OutOfRange, expand(&id, range(i64::MAX, 0))),
        (Good, expand(&id, range(MIB, 0))),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(code(c.controller_expand_volume(request).await), wanted, "{shown}");
    }
    let modify = |volume: &str, mutable_parameters| ControllerModifyVolumeRequest {
        volume_id: volume.into(),
        mutable_parameters,
        ..Default::default()
    };
    for (wanted, request) in [
        (InvalidArgument, modify("", words("inodes", "7"))),
        (InvalidArgument, modify(&id, Default::default())),
        (InvalidArgument, modify(&id, words("colour", "red"))),
        (NotFound, modify("no-such-volume", words("inodes", "7"))),
        (Good, modify(&id, words("inodes", "none"))),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(code(c.controller_modify_volume(request).await), wanted, "{shown}");
    }
    assert_eq!(code(c.create_snapshot(CreateSnapshotRequest::default()).await), Unimplemented);
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_staged_or_published_is_refused() {
    let Some(world) = world("what_cannot_be_staged_or_published_is_refused") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "errors").await.volume_id;
    let mode = Mode::SingleNodeWriter;
    let mut on_a = OnNode::new(&world, &id, "a", mode);
    assert_eq!(code(a.node.node_stage_volume(on_a.stage()).await), FailedPrecondition, "it is not attached");
    let attached = a.controller.controller_publish_volume(publish(&id, "a", mode)).await.expect("attached");
    on_a.context = attached.into_inner().publish_context;

    let stage = || on_a.stage();
    let mut old = on_a.context.clone();
    old.insert("generation".into(), "0".into());
    for (wanted, request) in [
        (InvalidArgument, NodeStageVolumeRequest { volume_id: String::new(), ..stage() }),
        (InvalidArgument, NodeStageVolumeRequest { staging_target_path: String::new(), ..stage() }),
        (InvalidArgument, NodeStageVolumeRequest { staging_target_path: "here".into(), ..stage() }),
        (InvalidArgument, NodeStageVolumeRequest { volume_capability: None, ..stage() }),
        (InvalidArgument, NodeStageVolumeRequest { volume_capability: Some(block()), ..stage() }),
        (NotFound, NodeStageVolumeRequest { volume_id: "no-such-volume".into(), ..stage() }),
        (FailedPrecondition, NodeStageVolumeRequest { publish_context: old, ..stage() }),
        (
            FailedPrecondition,
            NodeStageVolumeRequest { volume_capability: Some(capability(Mode::MultiNodeMultiWriter)), ..stage() },
        ),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(code(a.node.node_stage_volume(request).await), wanted, "{shown}");
    }
    let show = || on_a.publish(false);
    assert_eq!(code(a.node.node_publish_volume(show()).await), FailedPrecondition, "it is not staged");
    a.node.node_stage_volume(stage()).await.expect("staged");
    for (wanted, request) in [
        (InvalidArgument, NodePublishVolumeRequest { volume_id: String::new(), ..show() }),
        (InvalidArgument, NodePublishVolumeRequest { target_path: String::new(), ..show() }),
        (InvalidArgument, NodePublishVolumeRequest { volume_capability: None, ..show() }),
        (InvalidArgument, NodePublishVolumeRequest { volume_capability: Some(block()), ..show() }),
        (NotFound, NodePublishVolumeRequest { volume_id: "no-such-volume".into(), ..show() }),
        (FailedPrecondition, NodePublishVolumeRequest { staging_target_path: String::new(), ..show() }),
        (Good, show()),
        (AlreadyExists, NodePublishVolumeRequest { readonly: true, ..show() }),
        (
            AlreadyExists,
            NodePublishVolumeRequest { volume_capability: Some(capability(Mode::MultiNodeMultiWriter)), ..show() },
        ),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(code(a.node.node_publish_volume(request).await), wanted, "{shown}");
    }
    // Another volume at a place that is taken.
    let other = made(&mut a, "errors-too").await.volume_id;
    a.controller.controller_publish_volume(publish(&other, "a", mode)).await.expect("attached");
    let there = NodeStageVolumeRequest { volume_id: other.clone(), publish_context: Default::default(), ..stage() };
    assert_eq!(code(a.node.node_stage_volume(there).await), AlreadyExists);
    // It is not there, which is as it should be; and what is there stays.
    let there = NodeUnstageVolumeRequest { volume_id: other.clone(), ..on_a.unstage() };
    assert_eq!(code(a.node.node_unstage_volume(there).await), Good);
    let there = NodeUnpublishVolumeRequest { volume_id: other.clone(), ..on_a.unpublish() };
    assert_eq!(code(a.node.node_unpublish_volume(there).await), Good);
    std::fs::write(on_a.target.join("x"), "x").expect("written");
    a.controller.controller_unpublish_volume(unpublish(&other, "a")).await.expect("detached");
    gone(&mut a, &other).await;
    on_a.down(&mut a).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_says_what_is_wrong_with_a_path() {
    let Some(world) = world("the_node_says_what_is_wrong_with_a_path") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "errors").await.volume_id;
    let mut on_a = OnNode::new(&world, &id, "a", Mode::SingleNodeWriter);
    on_a.up(&mut a).await;
    let at = |volume: &str, path: &str| (volume.to_owned(), path.to_owned());
    let target = on_a.target.to_string_lossy().into_owned();
    let paths = [
        (InvalidArgument, at("", &target)),
        (InvalidArgument, at(&id, "")),
        (NotFound, at(&id, "/no/such/path")),
        (NotFound, at("no-such-volume", &target)),
        (NotFound, at(&id, "/tmp")),
        (Good, at(&id, &target)),
    ];
    for (wanted, (volume_id, volume_path)) in paths {
        let shown = format!("{volume_id} {volume_path}");
        let stats = NodeGetVolumeStatsRequest {
            volume_id: volume_id.clone(),
            volume_path: volume_path.clone(),
            ..Default::default()
        };
        assert_eq!(code(a.node.node_get_volume_stats(stats).await), wanted, "{shown}");
        let expand = NodeExpandVolumeRequest { volume_id, volume_path, ..Default::default() };
        assert_eq!(code(a.node.node_expand_volume(expand).await), wanted, "{shown}");
    }
    let beyond = NodeExpandVolumeRequest {
        volume_id: id.clone(),
        volume_path: target,
        capacity_range: range(1 << 40, 0),
        ..Default::default()
    };
    assert_eq!(code(a.node.node_expand_volume(beyond).await), OutOfRange);

    for (volume_id, target_path) in [("", "/x"), ("v", ""), ("v", "x")] {
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.into(), target_path: target_path.into() };
        assert_eq!(code(a.node.node_unpublish_volume(request).await), InvalidArgument);
        let request = NodeUnstageVolumeRequest { volume_id: volume_id.into(), staging_target_path: target_path.into() };
        assert_eq!(code(a.node.node_unstage_volume(request).await), InvalidArgument);
    }
    let nowhere = OnNode { target: world.place("a", "nowhere"), staging: world.place("a", "nowhere"), ..on_a.clone() };
    a.node.node_unpublish_volume(nowhere.unpublish()).await.expect("as it should be");
    a.node.node_unstage_volume(nowhere.unstage()).await.expect("as it should be");
    on_a.down(&mut a).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}
