//! The controller: volumes are made, and nodes are given the right to mount them.

use crate::metrics::Metrics;
use crate::params::{self, Unsupported};
use crate::proto::controller_server::Controller;
use crate::proto::controller_service_capability::rpc::Type as RpcType;
use crate::proto::controller_service_capability::{Rpc, Type};
use crate::proto::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
    ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse, Volume, VolumeCondition, controller_get_volume_response, list_volumes_response,
    validate_volume_capabilities_response,
};
use crate::status::{finish, status};
use holdfast_volume::OpenPolicy;
use holdfast_volume::{Attachment, BYTES_MAX, Cluster, Condition, Limits, VolumeFacts, VolumeSpec, Volumes};
use std::collections::HashMap;
use tonic::{Request, Response, Status, async_trait};

/// Who manages the volumes that are made here.
pub(crate) const DRIVER: &str = "csi";
/// Before the name to go on after, in the token of a list.
const TOKEN: &str = "after:";
/// In what a publication tells the node: the instance that its mounts say they are.
pub(crate) const INSTANCE: &str = "instance";
/// The generation of it.
pub(crate) const GENERATION: &str = "generation";

/// The service.
#[derive(Clone)]
pub(crate) struct ControllerService<C> {
    pub(crate) volumes: Volumes<C>,
    /// The cluster's id.
    pub(crate) cluster: String,
    pub(crate) metrics: Metrics,
}

/// A size in the interface's number; none: not known, as the pool allows.
fn size(bytes: Option<u64>) -> i64 {
    bytes.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
}

pub(crate) fn condition(of: &Condition) -> VolumeCondition {
    VolumeCondition { abnormal: of.abnormal, message: of.message.clone() }
}

/// What the node is told of a publication.
pub(crate) fn publish_context(attachment: &Attachment) -> HashMap<String, String> {
    [
        (INSTANCE.to_owned(), attachment.instance.clone()),
        (GENERATION.to_owned(), attachment.generation.to_string()),
        ("access".to_owned(), attachment.access.to_string()),
        ("readOnly".to_owned(), attachment.read_only.to_string()),
    ]
    .into()
}

impl<C: Cluster> ControllerService<C> {
    fn volume(&self, facts: &VolumeFacts) -> Volume {
        Volume {
            capacity_bytes: size(facts.record.bytes_max),
            volume_id: facts.record.name.clone(),
            volume_context: HashMap::new(),
            content_source: None,
            accessible_topology: vec![params::topology(&self.cluster)],
        }
    }

    fn published_on(&self, facts: &VolumeFacts) -> Result<Vec<String>, Status> {
        let attachments = self.volumes.attachments(facts).map_err(status)?;
        Ok(attachments.into_iter().map(|attachment| attachment.node).collect())
    }

    async fn create(self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        let name = params::name(&request.name)?;
        params::capabilities(&request.volume_capabilities)?
            .map_err(|Unsupported(reason)| Status::invalid_argument(reason))?;
        let parameters = params::parameters(&request.parameters)?;
        let mutable = params::parameters(&request.mutable_parameters)?;
        if request.volume_content_source.is_some() {
            return Err(Status::invalid_argument("volumes are not made from snapshots or other volumes yet"));
        }
        let capacity = params::capacity(request.capacity_range.as_ref()).map_err(status)?;
        if !params::reaches(request.accessibility_requirements.as_ref(), &self.cluster) {
            let reason = format!("a volume of this cluster is reached where {} is {}", params::TOPOLOGY, self.cluster);
            return Err(Status::resource_exhausted(reason));
        }
        let spec = VolumeSpec {
            name: name.into(),
            driver: DRIVER.into(),
            capacity,
            inodes: mutable.inodes.or(parameters.inodes).flatten(),
            open: mutable.opened(parameters.opened(OpenPolicy::default())),
            parameters: parameters.written,
            ephemeral_on: None,
        };
        let facts = self.volumes.create(&spec).await.map_err(status)?;
        Ok(CreateVolumeResponse { volume: Some(self.volume(&facts)) })
    }

    async fn publish(self, request: ControllerPublishVolumeRequest) -> Result<ControllerPublishVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let node = params::required("node_id", &request.node_id)?;
        let wanted = params::wanted(request.volume_capability.as_ref())?;
        let attached = self.volumes.attach(name, node, wanted.access, request.readonly).await.map_err(status)?;
        Ok(ControllerPublishVolumeResponse { publish_context: publish_context(&attached) })
    }

    async fn validate(
        self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let supported = params::capabilities(&request.volume_capabilities)?;
        let facts = self.volumes.get(name).await.map_err(status)?;
        let refused = |message: String| Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message });
        if let Err(Unsupported(reason)) = supported {
            return refused(reason);
        }
        for given in [&request.parameters, &request.mutable_parameters] {
            if let Err(wrong) = params::parameters(given) {
                return refused(wrong.message().into());
            }
        }
        let has = self.volumes.managed(&facts).map_err(status)?.parameters;
        if !request.parameters.is_empty() && params::parameters(&request.parameters)?.written != has {
            return refused(format!("the volume was made with the parameters {has:?}"));
        }
        Ok(ValidateVolumeCapabilitiesResponse {
            confirmed: Some(validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        })
    }

    async fn list(self, request: ListVolumesRequest) -> Result<ListVolumesResponse, Status> {
        let Ok(count) = usize::try_from(request.max_entries) else {
            return Err(Status::invalid_argument(format!("max_entries is {}", request.max_entries)));
        };
        let after = match request.starting_token.as_str() {
            "" => "",
            token => token.strip_prefix(TOKEN).ok_or_else(|| {
                Status::aborted(format!("starting_token {token:?} is none of ours; begin again without one"))
            })?,
        };
        let (found, next) = self.volumes.list(after, count).await.map_err(status)?;
        let now = self.volumes.condition().await.map_err(status)?;
        let entry = |facts: &VolumeFacts| {
            Ok(list_volumes_response::Entry {
                volume: Some(self.volume(facts)),
                status: Some(list_volumes_response::VolumeStatus {
                    published_node_ids: self.published_on(facts)?,
                    volume_condition: Some(condition(&now)),
                }),
            })
        };
        Ok(ListVolumesResponse {
            entries: found.iter().map(entry).collect::<Result<_, Status>>()?,
            next_token: next.map_or_else(String::new, |name| format!("{TOKEN}{name}")),
        })
    }

    async fn get(self, request: ControllerGetVolumeRequest) -> Result<ControllerGetVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let facts = self.volumes.get(name).await.map_err(status)?;
        let now = self.volumes.condition().await.map_err(status)?;
        Ok(ControllerGetVolumeResponse {
            volume: Some(self.volume(&facts)),
            status: Some(controller_get_volume_response::VolumeStatus {
                published_node_ids: self.published_on(&facts)?,
                volume_condition: Some(condition(&now)),
            }),
        })
    }

    async fn capacity(self, request: GetCapacityRequest) -> Result<GetCapacityResponse, Status> {
        params::parameters(&request.parameters)?;
        let supported = match request.volume_capabilities.as_slice() {
            [] => true,
            some => params::capabilities(some)?.is_ok(),
        };
        let here = params::reaches_from(request.accessible_topology.as_ref(), &self.cluster);
        let available = if supported && here { self.volumes.available_bytes().await.map_err(status)? } else { 0 };
        Ok(GetCapacityResponse {
            available_capacity: size(Some(available)),
            // Sizes are limits and not reservations: a volume may be larger than what is free.
            maximum_volume_size: Some(size(Some(BYTES_MAX))),
            minimum_volume_size: Some(1),
        })
    }

    async fn expand(self, request: ControllerExpandVolumeRequest) -> Result<ControllerExpandVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        let Some(range) = &request.capacity_range else {
            return Err(Status::invalid_argument("capacity_range is missing"));
        };
        if let Some(capability) = &request.volume_capability {
            params::wanted(Some(capability))?;
        }
        let capacity = params::capacity(Some(range)).map_err(status)?;
        let now = self.volumes.expand(name, capacity).await.map_err(status)?;
        // One without a limit is as large as anybody wants.
        let capacity_bytes = size(Some(now.unwrap_or(capacity.required)));
        Ok(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: false })
    }

    async fn modify(self, request: ControllerModifyVolumeRequest) -> Result<ControllerModifyVolumeResponse, Status> {
        let name = params::required("volume_id", &request.volume_id)?;
        if request.mutable_parameters.is_empty() {
            return Err(Status::invalid_argument("mutable_parameters are missing"));
        }
        let wanted = params::parameters(&request.mutable_parameters)?;
        let change = |before: Limits| Limits { inodes: wanted.inodes.unwrap_or(before.inodes), ..before };
        self.volumes.set_limits(name, change).await.map_err(status)?;
        self.volumes.set_open(name, |before| wanted.opened(before)).await.map_err(status)?;
        Ok(ControllerModifyVolumeResponse {})
    }
}

/// A later issue's.
fn no_snapshots<T>() -> Result<T, Status> {
    Err(Status::unimplemented("there are no snapshots yet"))
}

#[async_trait]
impl<C: Cluster> Controller for ControllerService<C> {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        finish(&self.metrics, "CreateVolume", self.clone().create(request.into_inner())).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        finish(&self.metrics, "DeleteVolume", async move {
            let name = params::required("volume_id", &request.volume_id)?;
            this.volumes.delete(name).await.map_err(status)?;
            Ok(DeleteVolumeResponse {})
        })
        .await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        finish(&self.metrics, "ControllerPublishVolume", self.clone().publish(request.into_inner())).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        let (this, request) = (self.clone(), request.into_inner());
        finish(&self.metrics, "ControllerUnpublishVolume", async move {
            let name = params::required("volume_id", &request.volume_id)?;
            let node = Some(request.node_id.as_str()).filter(|node| !node.is_empty());
            this.volumes.detach(name, node).await.map_err(status)?;
            Ok(ControllerUnpublishVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        finish(&self.metrics, "ValidateVolumeCapabilities", self.clone().validate(request.into_inner())).await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        finish(&self.metrics, "ListVolumes", self.clone().list(request.into_inner())).await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        finish(&self.metrics, "GetCapacity", self.clone().capacity(request.into_inner())).await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let kinds = [
            RpcType::CreateDeleteVolume,
            RpcType::PublishUnpublishVolume,
            RpcType::ListVolumes,
            RpcType::GetCapacity,
            RpcType::PublishReadonly,
            RpcType::ExpandVolume,
            RpcType::ListVolumesPublishedNodes,
            RpcType::VolumeCondition,
            RpcType::GetVolume,
            RpcType::SingleNodeMultiWriter,
            RpcType::ModifyVolume,
        ];
        let capability =
            |kind: RpcType| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        let capabilities = kinds.into_iter().map(capability).collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        finish(&self.metrics, "ControllerExpandVolume", self.clone().expand(request.into_inner())).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        finish(&self.metrics, "ControllerGetVolume", self.clone().get(request.into_inner())).await
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        finish(&self.metrics, "ControllerModifyVolume", self.clone().modify(request.into_inner())).await
    }

    async fn create_snapshot(
        &self,
        _: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        no_snapshots()
    }

    async fn delete_snapshot(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        no_snapshots()
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        no_snapshots()
    }

    async fn get_snapshot(&self, _: Request<GetSnapshotRequest>) -> Result<Response<GetSnapshotResponse>, Status> {
        no_snapshots()
    }
}
