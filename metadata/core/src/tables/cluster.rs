//! Shard 0's rows: settings, nodes, groups, live sessions, volumes.

use super::{Key, Row};
use holdfast_types::{DiskId, GroupId, MapVersion, NodeId, ServerId, SessionId, Term, VolumeId};
use holdfast_wire::admin::{ServerPlace, StoragePlace};
use holdfast_wire::map::{NodeRecord, SessionGrant, View};
use holdfast_wire::metadata::ClientRecord;
use holdfast_wire::namespace::{Labels, VolumeRecord};
use serde::{Deserialize, Serialize};

/// What there is one of.
pub(crate) const SETTINGS: u8 = 0x20;
/// Storage nodes.
pub(crate) const NODE: u8 = 0x21;
/// Groups.
pub(crate) const GROUP: u8 = 0x22;
/// Live sessions.
pub(crate) const LIVE: u8 = 0x23;
/// Volumes.
pub(crate) const VOLUME: u8 = 0x24;
/// Metadata servers.
pub(crate) const SERVER: u8 = 0x25;

/// What there is one of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SettingsRow {
    /// Version of the map.
    pub(crate) version: MapVersion,
    pub(crate) feature_level: u32,
    pub(crate) replicas: u32,
    pub(crate) min_in_sync: u32,
    /// 0 until the pool is formed.
    pub(crate) groups: u32,
    /// The greatest session id given.
    pub(crate) session_newest: SessionId,
    /// The greatest volume id given.
    pub(crate) volume_newest: VolumeId,
    /// The newest term in which somebody leads the volumes and removes chunks.
    pub(crate) service_term: Term,
}

impl Row for SettingsRow {}

/// A storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    pub(crate) record: NodeRecord,
    /// Whether it is to be used. The row of one that is gone stays: its id is not given again.
    pub(crate) place: StoragePlace,
}

impl Row for NodeRow {}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRow {
    pub(crate) view: View,
    /// The map version that made the view.
    pub(crate) changed: MapVersion,
    /// Disks that the group is placed on: one that returns becomes a member again. The first is the preferred primary.
    pub(crate) homes: Vec<(NodeId, DiskId)>,
    /// Disks that it was placed on before, whose copies count until every home is in sync.
    pub(crate) leaving: Vec<(NodeId, DiskId)>,
}

impl GroupRow {
    /// Every disk whose copy is not to be removed.
    pub(crate) fn kept(&self) -> Vec<(NodeId, DiskId)> {
        self.homes.iter().chain(&self.leaving).copied().collect()
    }
}

impl Row for GroupRow {}

/// A live session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LiveRow {
    pub(crate) grant: SessionGrant,
    pub(crate) client: ClientRecord,
    /// Drawn by the client: a repetition of its request finds this session.
    pub(crate) nonce: u128,
    /// The map version that opened it.
    pub(crate) opened: MapVersion,
}

impl Row for LiveRow {}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeEntryRow {
    pub(crate) record: VolumeRecord,
    /// Its name is free again, and what it held is being removed.
    pub(crate) deleting: bool,
    /// How often the labels were changed.
    pub(crate) labels_version: u64,
    /// What whoever manages volumes has noted down.
    pub(crate) labels: Labels,
}

impl Row for VolumeEntryRow {}

/// A metadata server, once and for ever: an id is never given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerRow {
    /// `HOST:PORT` of its control transport.
    pub(crate) address: String,
    /// The life of its log, drawn when that was made; 0 until it is heard for the first time.
    pub(crate) life: u64,
    pub(crate) place: ServerPlace,
}

impl Row for ServerRow {}

/// Key of the settings.
pub(crate) fn settings() -> Vec<u8> {
    vec![SETTINGS]
}

/// Key of a node.
pub(crate) fn node(node: NodeId) -> Vec<u8> {
    Key::of(NODE).number(node.0).done()
}

/// Key of a group.
pub(crate) fn group(group: GroupId) -> Vec<u8> {
    Key::of(GROUP).number(u64::from(group.0)).done()
}

/// Key of a session.
pub(crate) fn live(session: SessionId) -> Vec<u8> {
    Key::of(LIVE).number(session.0).done()
}

/// Key of a volume.
pub(crate) fn volume(volume: VolumeId) -> Vec<u8> {
    Key::of(VOLUME).number(volume.0).done()
}

/// Key of a metadata server.
pub(crate) fn server(server: ServerId) -> Vec<u8> {
    Key::of(SERVER).number(server.0).done()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{Epoch, Incarnation, MemberId};

    #[test]
    fn round_trip() {
        let member = MemberId { node: NodeId(1), disk: DiskId(0), incarnation: Incarnation(4) };
        let view = View { epoch: Epoch(1), primary: member, in_sync: vec![member], syncing: vec![] };
        super::super::assert_round_trip(GroupRow {
            view,
            changed: MapVersion(5),
            homes: vec![(NodeId(1), DiskId(0))],
            leaving: vec![(NodeId(2), DiskId(0))],
        });
        super::super::assert_round_trip(SettingsRow { groups: 8, ..SettingsRow::default() });
        let record = NodeRecord { id: NodeId(1), address: "a:1".into(), labels: vec![], disks: vec![], alive: true };
        super::super::assert_round_trip(NodeRow {
            record,
            place: StoragePlace::Leaving { successor: Some(NodeId(4)) },
        });
        let grant = SessionGrant { volume: VolumeId(1), read_only: false };
        let client = ClientRecord::default();
        super::super::assert_round_trip(LiveRow { grant, client, nonce: 7, opened: MapVersion(2) });
        let record = super::super::volume::example_record();
        let labels = [("owner".to_owned(), "csi".to_owned())].into();
        super::super::assert_round_trip(VolumeEntryRow { record, deleting: false, labels_version: 3, labels });
        let place = ServerPlace::Joining { replaces: Some(ServerId(1)) };
        super::super::assert_round_trip(ServerRow { address: "a:1".into(), life: 9, place });
    }
}
