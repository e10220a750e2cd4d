//! What kind of request is answered by which shard, and to whom.

use crate::api::Caller;
use holdfast_types::ShardId;
use holdfast_wire::metadata::Request;

/// The shard that answers a request.
pub(crate) fn shard_of(request: &Request) -> ShardId {
    match request {
        Request::OpenSession { .. }
        | Request::FenceSession { .. }
        | Request::GetMap { .. }
        | Request::Heartbeat(_)
        | Request::Promote { .. }
        | Request::Evict { .. }
        | Request::ReportGone { .. }
        | Request::LeaveViews { .. }
        | Request::LeadVolumes { .. }
        | Request::ServerArrived { .. }
        | Request::AddServer { .. }
        | Request::RemoveServer { .. }
        | Request::PlaceStorage { .. }
        | Request::CreateVolume { .. }
        | Request::LabelVolume { .. }
        | Request::SetOpenPolicy { .. }
        | Request::DescribeVolume { .. }
        | Request::DescribeVolumes { .. }
        | Request::LimitVolume { .. }
        | Request::DeleteVolume { .. }
        | Request::ListVolumes
        | Request::Status => ShardId::CLUSTER,
        Request::Attach { .. }
        | Request::EndSession { .. }
        | Request::RaiseGeneration { .. }
        | Request::Detach
        | Request::Renew { .. }
        | Request::StoppedCaching { .. }
        | Request::Query(_)
        | Request::Mutate(_)
        | Request::InspectInodes { .. } => ShardId::VOLUMES,
    }
}

/// What a certificate allows. Which volumes a client may use, and who may make them, comes with credentials.
pub(crate) fn is_allowed(from: Caller, request: &Request) -> bool {
    match request {
        Request::GetMap { .. } | Request::Status | Request::ListVolumes => true,
        Request::Heartbeat(heartbeat) => from == Caller::Storage(heartbeat.node),
        Request::Promote { .. } => matches!(from, Caller::Storage(_)),
        Request::Evict { reporter, .. } => from == Caller::Storage(reporter.node),
        Request::ReportGone { reporter, .. } => from == Caller::Storage(*reporter),
        Request::LeaveViews { node } => from == Caller::Storage(*node) || from == Caller::Admin,
        Request::FenceSession { .. } => matches!(from, Caller::Server(_) | Caller::Admin),
        Request::InspectInodes { .. } | Request::EndSession { .. } | Request::RaiseGeneration { .. } => {
            from == Caller::Admin
        }
        Request::AddServer { .. }
        | Request::RemoveServer { .. }
        | Request::PlaceStorage { .. }
        | Request::LabelVolume { .. }
        | Request::SetOpenPolicy { .. }
        | Request::DescribeVolume { .. }
        | Request::DescribeVolumes { .. }
        | Request::LimitVolume { .. } => from == Caller::Admin,
        Request::LeadVolumes { .. } | Request::ServerArrived { .. } => matches!(from, Caller::Server(_)),
        Request::CreateVolume { .. } | Request::DeleteVolume { .. } => matches!(from, Caller::Client | Caller::Admin),
        Request::OpenSession { .. }
        | Request::Attach { .. }
        | Request::Detach
        | Request::Renew { .. }
        | Request::StoppedCaching { .. }
        | Request::Query(_)
        | Request::Mutate(_) => matches!(from, Caller::Client | Caller::Admin),
    }
}
