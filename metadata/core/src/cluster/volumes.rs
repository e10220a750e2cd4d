//! Volumes as shard 0 has them: names, limits, and the labels that whoever manages volumes puts on them.

use super::Cluster;
use crate::error::{Applied, Fail};
use crate::tables::cluster::{self as rows, VolumeEntryRow};
use crate::txn::Txn;
use holdfast_types::limits::VOLUME_NAME_BYTES_MAX;
use holdfast_types::{ShardId, SnapshotNumber};
use holdfast_wire::metadata::{MetadataError, Response};
use holdfast_wire::namespace::{
    LABEL_NAME_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_BYTES_MAX, Labels, Limits, VolumeFacts, VolumeRecord,
};
use holdfast_wire::open::{OPEN_WAIT_MAX, OpenPolicy};

/// Version of the placement function `GroupId::of`.
const PLACEMENT_VERSION: u32 = 1;
/// Volumes in one answer, at the most.
const DESCRIBED_MAX: usize = 1000;
/// Bytes of labels in one answer, about: a message has a limit, and so has the time that encoding it may take.
const DESCRIBED_BYTES: usize = 256 * 1024;

impl Cluster {
    /// Volumes whose limits or policy were changed.
    pub(crate) fn limited(&self) -> impl Iterator<Item = &VolumeRecord> {
        self.volumes.values().filter(|row| !row.deleting && row.record.limits_version > 0).map(|row| &row.record)
    }

    /// The volume of a name that is in use.
    pub(crate) fn volume_named(&self, name: &str) -> Option<&VolumeRecord> {
        self.named(name).map(|row| &row.record)
    }

    fn named(&self, name: &str) -> Option<&VolumeEntryRow> {
        self.volumes.values().find(|row| !row.deleting && row.record.name == name)
    }

    /// The same, to be changed; refused if there is none.
    fn named_mut(&mut self, name: &str) -> Applied<&mut VolumeEntryRow> {
        let named = self.volumes.values_mut().find(|row| !row.deleting && row.record.name == name);
        named.ok_or_else(|| Fail::Refused(MetadataError::NoVolume { name: name.into() }))
    }

    /// A volume in use, by its name.
    pub(crate) fn described(&self, name: &str) -> Option<VolumeFacts> {
        self.named(name).map(facts)
    }

    /// Volumes in use whose names come after one, in order: at least one if there is one.
    pub(crate) fn described_after(&self, after: &str, limit: u32) -> Vec<VolumeFacts> {
        let mut rows: Vec<&VolumeEntryRow> =
            self.volumes.values().filter(|row| !row.deleting && row.record.name.as_str() > after).collect();
        rows.sort_unstable_by(|a, b| a.record.name.cmp(&b.record.name));
        let mut bytes = 0;
        rows.into_iter()
            .take((limit as usize).clamp(1, DESCRIBED_MAX))
            .take_while(|row| {
                let fits = bytes < DESCRIBED_BYTES;
                bytes += size(&row.labels);
                fits
            })
            .map(facts)
            .collect()
    }

    pub(super) fn create_volume(
        &mut self,
        txn: &mut Txn<'_>,
        name: &str,
        (limits, open): (Limits, OpenPolicy),
        labels: &Labels,
    ) -> Applied<Response> {
        if name.is_empty() || name.len() > VOLUME_NAME_BYTES_MAX || name.contains(['/', '\0']) {
            let reason = format!("a volume's name has 1 to {VOLUME_NAME_BYTES_MAX} bytes, no '/' and no NUL");
            return Err(Fail::Refused(MetadataError::Invalid { reason }));
        }
        labels_are_sound(labels)?;
        wait_is_sound(open)?;
        if self.settings.groups == 0 {
            let reason = "the pool is not formed yet: too few storage nodes have registered".into();
            return Err(Fail::Unkept(MetadataError::Unavailable { reason }));
        }
        if self.volume_named(name).is_some() {
            return Err(Fail::Refused(MetadataError::VolumeExists { name: name.into() }));
        }
        let id = self.settings.volume_newest.next();
        let record = VolumeRecord {
            id,
            name: name.into(),
            groups: self.settings.groups,
            placement_version: PLACEMENT_VERSION,
            snapshot: SnapshotNumber(0),
            origin: None,
            bytes_max: limits.bytes,
            inodes_max: limits.inodes,
            open,
            limits_version: 0,
            shard: ShardId::VOLUMES,
        };
        self.settings.volume_newest = id;
        txn.put(rows::settings(), &self.settings);
        let row = VolumeEntryRow { record: record.clone(), deleting: false, labels_version: 0, labels: labels.clone() };
        txn.put(rows::volume(id), &row);
        self.volumes.insert(id, row);
        Ok(Response::Volume(record))
    }

    pub(super) fn label_volume(
        &mut self,
        txn: &mut Txn<'_>,
        name: &str,
        version: u64,
        labels: &Labels,
    ) -> Applied<Response> {
        labels_are_sound(labels)?;
        let row = self.named_mut(name)?;
        if row.labels_version == version {
            row.labels_version += 1;
            row.labels = labels.clone();
            txn.put(rows::volume(row.record.id), row);
        }
        Ok(Response::VolumeFacts(vec![facts(row)]))
    }

    pub(super) fn set_open_policy(&mut self, txn: &mut Txn<'_>, name: &str, open: OpenPolicy) -> Applied<Response> {
        wait_is_sound(open)?;
        let row = self.named_mut(name)?;
        if row.record.open != open {
            row.record.open = open;
            row.record.limits_version += 1;
            txn.put(rows::volume(row.record.id), row);
        }
        Ok(Response::Volume(row.record.clone()))
    }

    pub(super) fn limit_volume(&mut self, txn: &mut Txn<'_>, name: &str, limits: Limits) -> Applied<Response> {
        let row = self.named_mut(name)?;
        if row.record.limits() != limits {
            row.record.bytes_max = limits.bytes;
            row.record.inodes_max = limits.inodes;
            row.record.limits_version += 1;
            txn.put(rows::volume(row.record.id), row);
        }
        Ok(Response::Volume(row.record.clone()))
    }

    pub(super) fn delete_volume(&mut self, txn: &mut Txn<'_>, name: &str) -> Applied<Response> {
        let Some(id) = self.volume_named(name).map(|record| record.id) else {
            return Err(Fail::Refused(MetadataError::NoVolume { name: name.into() }));
        };
        let sessions = self.live.values().filter(|row| row.grant.volume == id).count() as u32;
        if sessions > 0 {
            return Err(Fail::Refused(MetadataError::Busy { name: name.into(), sessions }));
        }
        if let Some(row) = self.volumes.get_mut(&id) {
            row.deleting = true;
            txn.put(rows::volume(id), row);
        }
        Ok(Response::Done)
    }
}

fn facts(row: &VolumeEntryRow) -> VolumeFacts {
    VolumeFacts { record: row.record.clone(), labels_version: row.labels_version, labels: row.labels.clone() }
}

fn size(labels: &Labels) -> usize {
    labels.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn wait_is_sound(open: OpenPolicy) -> Applied<()> {
    if open.wait > OPEN_WAIT_MAX {
        let reason = format!("an open waits for up to {OPEN_WAIT_MAX} seconds, not {}", open.wait);
        return Err(Fail::Refused(MetadataError::Invalid { reason }));
    }
    Ok(())
}

fn labels_are_sound(labels: &Labels) -> Applied<()> {
    let refuse = |reason: String| Err(Fail::Refused(MetadataError::Invalid { reason }));
    if let Some(name) = labels.keys().find(|name| name.is_empty() || name.len() > LABEL_NAME_BYTES_MAX) {
        return refuse(format!(
            "the label {name:?} has a name of {} bytes; 1 to {LABEL_NAME_BYTES_MAX} are possible",
            name.len()
        ));
    }
    if let Some((name, value)) = labels.iter().find(|(_, value)| value.len() > LABEL_VALUE_BYTES_MAX) {
        return refuse(format!("the label {name:?} has {} bytes; {LABEL_VALUE_BYTES_MAX} are possible", value.len()));
    }
    if size(labels) > LABELS_BYTES_MAX {
        return refuse(format!("the labels have {} bytes; {LABELS_BYTES_MAX} are possible in all", size(labels)));
    }
    Ok(())
}
