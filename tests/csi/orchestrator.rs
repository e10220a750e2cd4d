//! What an orchestrator asks: requests as its parts make them, in the order they do.

use crate::world::{Driver, World};
use holdfast_csi_driver::proto::volume_capability::access_mode::Mode;
use holdfast_csi_driver::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use holdfast_csi_driver::proto::{
    CapacityRange, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Volume, VolumeCapability,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tonic::{Code, Response, Status};

pub const MIB: i64 = 1 << 20;

/// The code of an answer.
pub fn code<T>(answer: Result<Response<T>, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

pub fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

pub fn create(name: &str, bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..CreateVolumeRequest::default()
    }
}

pub fn delete(volume: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest { volume_id: volume.into(), ..DeleteVolumeRequest::default() }
}

pub fn publish(volume: &str, node: &str, mode: Mode) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume.into(),
        node_id: node.into(),
        volume_capability: Some(capability(mode)),
        ..ControllerPublishVolumeRequest::default()
    }
}

pub fn unpublish(volume: &str, node: &str) -> ControllerUnpublishVolumeRequest {
    ControllerUnpublishVolumeRequest { volume_id: volume.into(), node_id: node.into(), ..Default::default() }
}

fn word(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A volume on a node, as a kubelet has it.
#[derive(Clone, Debug)]
pub struct OnNode {
    pub volume: String,
    pub node: String,
    pub mode: Mode,
    pub context: HashMap<String, String>,
    pub staging: PathBuf,
    pub target: PathBuf,
}

impl OnNode {
    pub fn new(world: &World, volume: &str, node: &str, mode: Mode) -> Self {
        let staging = world.place(node, &format!("{volume}.staging"));
        std::fs::create_dir_all(&staging).expect("the orchestrator makes it");
        Self {
            volume: volume.into(),
            node: node.into(),
            mode,
            context: HashMap::new(),
            staging,
            target: world.place(node, &format!("{volume}.target")),
        }
    }

    pub fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.volume.clone(),
            publish_context: self.context.clone(),
            staging_target_path: word(&self.staging),
            volume_capability: Some(capability(self.mode)),
            ..NodeStageVolumeRequest::default()
        }
    }

    pub fn publish(&self, readonly: bool) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.volume.clone(),
            publish_context: self.context.clone(),
            staging_target_path: word(&self.staging),
            target_path: word(&self.target),
            volume_capability: Some(capability(self.mode)),
            readonly,
            ..NodePublishVolumeRequest::default()
        }
    }

    pub fn unpublish(&self) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest { volume_id: self.volume.clone(), target_path: word(&self.target) }
    }

    pub fn unstage(&self) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest { volume_id: self.volume.clone(), staging_target_path: word(&self.staging) }
    }

    /// Everything until a pod can use it.
    pub async fn up(&mut self, driver: &mut Driver) {
        let request = publish(&self.volume, &self.node, self.mode);
        let answer = driver.controller.controller_publish_volume(request).await.expect("attached");
        self.context = answer.into_inner().publish_context;
        driver.node.node_stage_volume(self.stage()).await.expect("staged");
        driver.node.node_publish_volume(self.publish(false)).await.expect("published");
    }

    /// Everything until nothing is left on the node.
    pub async fn down(&self, driver: &mut Driver) {
        driver.node.node_unpublish_volume(self.unpublish()).await.expect("unpublished");
        driver.node.node_unstage_volume(self.unstage()).await.expect("unstaged");
        let request = unpublish(&self.volume, &self.node);
        driver.controller.controller_unpublish_volume(request).await.expect("detached");
        // The orchestrator made it.
        let _ = std::fs::remove_dir(&self.staging);
    }
}

/// Makes a volume.
pub async fn made(driver: &mut Driver, name: &str) -> Volume {
    let answer = driver.controller.create_volume(create(name, 64 * MIB)).await.expect("made");
    answer.into_inner().volume.expect("a volume")
}

/// And deletes it.
pub async fn gone(driver: &mut Driver, volume: &str) {
    driver.controller.delete_volume(delete(volume)).await.expect("deleted");
}
