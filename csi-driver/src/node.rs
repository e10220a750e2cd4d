//! The node: what this host may mount is mounted, once for all who use it here, and made to appear where each wants it.

use crate::controller::{DRIVER, GENERATION, INSTANCE, condition};
use crate::group;
use crate::metrics::Metrics;
use crate::params::{self, Wanted};
use crate::proto::node_server::Node;
use crate::proto::node_service_capability::rpc::Type as RpcType;
use crate::proto::node_service_capability::{Rpc, Type};
use crate::proto::volume_usage::Unit;
use crate::proto::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, VolumeUsage,
};
use crate::run::Readiness;
use crate::status::{finish, status, status_of_path};
use holdfast_volume::{
    Access, Attachment, Capacity, Cluster, Condition, MountHow, Mounts, VolumeError, VolumeFacts, VolumeSpec, Volumes,
    volume_name,
};
use std::collections::HashMap;
use std::path::Path;
use tonic::{Request, Response, Status, async_trait};

/// The service.
#[derive(Clone)]
pub(crate) struct NodeService<C> {
    pub(crate) volumes: Volumes<C>,
    pub(crate) mounts: Mounts<C>,
    pub(crate) node: String,
    /// The cluster's id.
    pub(crate) cluster: String,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
}

/// Bytes or inodes in the interface's numbers: available, in all, used.
fn usage((available, total, used): (u64, u64, u64), unit: Unit) -> VolumeUsage {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    VolumeUsage { available: number(available), total: number(total), used: number(used), unit: unit.into() }
}

impl<C: Cluster> NodeService<C> {
    /// The volume, and this node's right to mount it as it is asked for.
    async fn granted(
        &self,
        name: &str,
        context: &HashMap<String, String>,
        wanted: &Wanted,
        at: &Path,
    ) -> Result<(VolumeFacts, Attachment), Status> {
        let facts = self.volumes.get(name).await.map_err(status)?;
        let attached = self.volumes.attachment(name, &self.node).await.map_err(status)?;
        let not =
            |more: String| Err(status(VolumeError::NotAttached { name: name.into(), node: self.node.clone(), more }));
        // A call that was late by a whole publication.
        let (instance, generation) = (context.get(INSTANCE), context.get(GENERATION));
        let same = instance.is_none_or(|given| *given == attached.instance)
            && generation.is_none_or(|given| *given == attached.generation.to_string());
        if !same {
            let of = |word: Option<&String>| word.cloned().unwrap_or_default();
            return not(format!(
                " as {} generation {} any more, but as {} generation {}",
                of(instance),
                of(generation),
                attached.instance,
                attached.generation
            ));
        }
        if !attached.access.covers(wanted.access) {
            if self.mounts.find(name, at).await.is_ok() {
                let what = format!("volume {name:?} is there as {}, not {}", attached.access, wanted.access);
                return Err(status(VolumeError::Occupied { point: at.into(), what }));
            }
            return not(format!(" as {}, but as {}", wanted.access, attached.access));
        }
        Ok((facts, attached))
    }

    async fn stage(self, request: NodeStageVolumeRequest) -> Result<NodeStageVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let staging = params::path("staging_target_path", &request.staging_target_path)?;
        let wanted = params::wanted(request.volume_capability.as_ref())?;
        let _turn = self.mounts.turn(name).await.map_err(status)?;
        let (facts, attached) = self.granted(name, &request.publish_context, &wanted, staging).await?;
        self.mount(&facts, &attached, staging, false, wanted).await?;
        Ok(NodeStageVolumeResponse {})
    }

    async fn mount(
        &self,
        facts: &VolumeFacts,
        attached: &Attachment,
        at: &Path,
        read_only: bool,
        wanted: Wanted,
    ) -> Result<(), Status> {
        let how = MountHow { read_only, options: wanted.options };
        self.mounts.mount(facts, attached, at, &how).await.map_err(status)?;
        let Some(group) = wanted.group.filter(|_| !read_only && !attached.read_only) else { return Ok(()) };
        let root = at.to_path_buf();
        let given = tokio::task::spawn_blocking(move || group::give(&root, group)).await;
        // Not an error that is final: the volume is mounted by now, and whoever gave up would leave it so.
        let failed = |reason: String| Status::unavailable(format!("files cannot be given to group {group}: {reason}"));
        given.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    async fn unstage(self, request: NodeUnstageVolumeRequest) -> Result<NodeUnstageVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let staging = params::path("staging_target_path", &request.staging_target_path)?;
        let _turn = self.mounts.turn(name).await.map_err(status)?;
        self.mounts.unmount(name, staging).await.map_err(status)?;
        Ok(NodeUnstageVolumeResponse {})
    }

    async fn publish(self, request: NodePublishVolumeRequest) -> Result<NodePublishVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let target = params::path("target_path", &request.target_path)?;
        let wanted = params::wanted(request.volume_capability.as_ref())?;
        let ephemeral = params::ephemeral(&request.volume_context)?;
        let _turn = self.mounts.turn(name).await.map_err(status)?;
        if let Some(capacity) = ephemeral {
            self.publish_ephemeral(name, target, capacity, wanted, request.readonly).await?;
            return Ok(NodePublishVolumeResponse {});
        }
        if request.staging_target_path.is_empty() {
            return Err(Status::failed_precondition("staging_target_path is missing: stage the volume first"));
        }
        let staging = params::path("staging_target_path", &request.staging_target_path)?;
        let (facts, attached) = self.granted(name, &request.publish_context, &wanted, target).await?;
        self.mounts.find(name, staging).await.map_err(status)?;
        let alone = attached.access.is_single_place();
        // One whose process was killed is made anew: whoever bound it before is bound to what is gone.
        self.mount(&facts, &attached, staging, false, wanted).await?;
        if alone && let Some(other) = self.mounts.binds(name, staging).await.iter().find(|other| other.point != target)
        {
            let by = format!("it is published on {}, and may be at one place only", other.point.display());
            return Err(status(VolumeError::InUse { name: name.into(), by }));
        }
        self.mounts.bind(name, staging, target, request.readonly).await.map_err(status)?;
        Ok(NodePublishVolumeResponse {})
    }

    /// A volume of its own for what is at this place: made, attached and mounted here.
    async fn publish_ephemeral(
        &self,
        id: &str,
        target: &Path,
        capacity: Capacity,
        wanted: Wanted,
        read_only: bool,
    ) -> Result<(), Status> {
        let spec = VolumeSpec {
            name: id.into(),
            driver: DRIVER.into(),
            capacity,
            ephemeral_on: Some(self.node.clone()),
            ..VolumeSpec::default()
        };
        let facts = self.volumes.create(&spec).await.map_err(status)?;
        let access = Access::SingleNodeWriter;
        let attached = self.volumes.attach(&facts.record.name, &self.node, access, false).await.map_err(status)?;
        self.mount(&facts, &attached, target, read_only, wanted).await
    }

    async fn unpublish(self, request: NodeUnpublishVolumeRequest) -> Result<NodeUnpublishVolumeResponse, Status> {
        let id = params::required("volume_id", &request.volume_id)?;
        let target = params::path("target_path", &request.target_path)?;
        let _turn = self.mounts.turn(id).await.map_err(status)?;
        // One that was made here goes with this; its name was made of the id.
        let name = volume_name(id).map_err(status)?;
        if self.is_ephemeral_here(&name).await? {
            self.mounts.unmount(&name, target).await.map_err(status)?;
            self.volumes.detach(&name, None).await.map_err(status)?;
            self.volumes.delete(&name).await.map_err(status)?;
        }
        self.mounts.unbind(id, target).await.map_err(status)?;
        Ok(NodeUnpublishVolumeResponse {})
    }

    async fn is_ephemeral_here(&self, name: &str) -> Result<bool, Status> {
        match self.volumes.get(name).await {
            Ok(facts) => {
                let managed = self.volumes.managed(&facts).map_err(status)?;
                Ok(managed.ephemeral_on.as_ref() == Some(&self.node))
            }
            // A deletion that was cut off is finished by the next who looks for it.
            Err(VolumeError::NoVolume { .. }) => {
                self.volumes.finish_delete(name).await.map_err(status)?;
                Ok(false)
            }
            Err(error) => Err(status(error)),
        }
    }

    async fn stats(self, request: NodeGetVolumeStatsRequest) -> Result<NodeGetVolumeStatsResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let at = Path::new(params::required("volume_path", &request.volume_path)?);
        // What is mounted is known without the cluster, which may be what is not well.
        self.mounts.find(name, at).await.map_err(status_of_path)?;
        let (usage, now) = match self.mounts.usage(at).await {
            Ok(found) => {
                let usage = vec![usage(found.bytes, Unit::Bytes), usage(found.inodes, Unit::Inodes)];
                (usage, Condition { abnormal: false, message: "mounted, and answers".into() })
            }
            Err(error) => (Vec::new(), Condition { abnormal: true, message: error.to_string() }),
        };
        Ok(NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition(&now)) })
    }

    async fn expand(self, request: NodeExpandVolumeRequest) -> Result<NodeExpandVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let at = Path::new(params::required("volume_path", &request.volume_path)?);
        if let Some(capability) = &request.volume_capability {
            params::wanted(Some(capability))?;
        }
        let capacity = params::capacity(request.capacity_range.as_ref()).map_err(status)?;
        let facts = self.volumes.get(name).await.map_err(status)?;
        self.mounts.find(name, at).await.map_err(status_of_path)?;
        // The limit is the cluster's; mounts learn of it by themselves.
        let has = facts.record.bytes_max;
        if !capacity.admits(has) {
            let has = has.map_or_else(|| "no limit".into(), |bytes| format!("{bytes} bytes"));
            let reason = format!("volume {name:?} has {has}; the controller expands it (ControllerExpandVolume)");
            return Err(Status::out_of_range(reason));
        }
        let bytes = has.unwrap_or(capacity.required);
        Ok(NodeExpandVolumeResponse { capacity_bytes: i64::try_from(bytes).unwrap_or(i64::MAX) })
    }
}

#[async_trait]
impl<C: Cluster> Node for NodeService<C> {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        finish(&self.metrics, "NodeStageVolume", self.clone().stage(request.into_inner())).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        finish(&self.metrics, "NodeUnstageVolume", self.clone().unstage(request.into_inner())).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        finish(&self.metrics, "NodePublishVolume", self.clone().publish(request.into_inner())).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        finish(&self.metrics, "NodeUnpublishVolume", self.clone().unpublish(request.into_inner())).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        finish(&self.metrics, "NodeGetVolumeStats", self.clone().stats(request.into_inner())).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        finish(&self.metrics, "NodeExpandVolume", self.clone().expand(request.into_inner())).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let kinds = [
            RpcType::StageUnstageVolume,
            RpcType::GetVolumeStats,
            RpcType::ExpandVolume,
            RpcType::VolumeCondition,
            RpcType::SingleNodeMultiWriter,
            RpcType::VolumeMountGroup,
        ];
        let capability = |kind: RpcType| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        let capabilities = kinds.into_iter().map(capability).collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        // Whoever knows the id may publish to it.
        self.readiness.registered().await?;
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(params::topology(&self.cluster)),
        }))
    }
}
