//! Volumes are made, found, changed and deleted.

use crate::book::Book;
use crate::cluster::{Cluster, PAGE, Refusal};
use crate::error::VolumeError;
use crate::nodes;
use crate::spec::{Capacity, VolumeSpec, volume_name};
use crate::turns::{Turn, Turns};
use holdfast_wire::admin::{SessionStatus, StoragePlace};
use holdfast_wire::namespace::{Limits, VolumeFacts};
use holdfast_wire::open::OpenPolicy;
use std::collections::BTreeMap;

/// The volumes of a cluster. Cheap to clone; clones take turns at the same volume.
#[derive(Clone, Debug)]
pub struct Volumes<C> {
    cluster: C,
    turns: Turns,
}

/// What is on record about a volume beyond what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Managed {
    /// Who manages it; none: an administrator made it.
    pub driver: Option<String>,
    /// Its name for whoever wanted it.
    pub name: String,
    /// What it was asked for.
    pub parameters: BTreeMap<String, String>,
    /// The node on which it goes with what it was made for.
    pub ephemeral_on: Option<String>,
}

/// How the cluster is, for whoever uses a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Something is wrong that applications notice.
    pub abnormal: bool,
    /// What.
    pub message: String,
}

impl<C: Cluster> Volumes<C> {
    /// The volumes of a cluster.
    pub fn new(cluster: C) -> Self {
        Self { cluster, turns: Turns::default() }
    }

    /// The cluster.
    pub fn cluster(&self) -> &C {
        &self.cluster
    }

    pub(crate) async fn turn(&self, name: &str) -> Result<Turn, VolumeError> {
        self.turns.take(name).await
    }

    /// A volume by its name in the cluster, also if it is being deleted.
    pub(crate) async fn find(&self, name: &str) -> Result<Option<VolumeFacts>, VolumeError> {
        self.cluster.describe(name).await.map_err(|refusal| refusal.about(name))
    }

    /// A volume by its name in the cluster.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`], also for one that is being deleted.
    pub async fn get(&self, name: &str) -> Result<VolumeFacts, VolumeError> {
        // Those in which nodes are noted down are nobody's to use.
        let usable = |facts: &VolumeFacts| !Book::of(facts).is_deleting() && !nodes::is_ours(&facts.record.name);
        let found = self.find(name).await?.filter(usable);
        found.ok_or_else(|| VolumeError::NoVolume { name: name.into() })
    }

    /// What is on record about a volume.
    ///
    /// # Errors
    /// [`VolumeError::Broken`] when its labels cannot be read.
    pub fn managed(&self, facts: &VolumeFacts) -> Result<Managed, VolumeError> {
        let book = Book::of(facts);
        Ok(Managed {
            driver: book.driver().map(str::to_owned),
            name: book.asked().to_owned(),
            parameters: book.parameters()?,
            ephemeral_on: book.ephemeral_on().map(str::to_owned),
        })
    }

    /// Changes labels, if they are still those that were seen; whether they were.
    pub(crate) async fn relabel(&self, seen: &VolumeFacts, book: Book) -> Result<bool, VolumeError> {
        let (name, version) = (&seen.record.name, seen.labels_version);
        match self.cluster.label(name, version, book.into_labels()).await {
            // It is gone: whoever looks again sees that.
            Err(Refusal::NoVolume) => Ok(false),
            done => done.map_err(|refusal| refusal.about(name)),
        }
    }

    /// Makes a volume, or finds the one that was made for the same.
    ///
    /// # Errors
    /// [`VolumeError::Different`] if there is one of that name that is something else, [`VolumeError::Invalid`].
    pub async fn create(&self, spec: &VolumeSpec) -> Result<VolumeFacts, VolumeError> {
        let name = volume_name(&spec.name)?;
        let _turn = self.turn(&name).await?;
        loop {
            match self.find(&name).await? {
                None => {
                    let labels = Book::new(&name, spec).into_labels();
                    match self.cluster.create(&name, spec.limits(), spec.open, labels).await {
                        // By whom, we see when we look.
                        Ok(()) | Err(Refusal::Exists) => {}
                        Err(refusal) => return Err(refusal.about(&name)),
                    }
                }
                // Somebody wanted it gone, and was cut off.
                Some(facts) if Book::of(&facts).is_deleting() => self.delete_marked(&facts).await?,
                Some(facts) => {
                    return match self.difference(&facts, spec)? {
                        None => Ok(facts),
                        Some(difference) => Err(VolumeError::Different { name: spec.name.clone(), difference }),
                    };
                }
            }
        }
    }

    /// In what a volume is not what is asked for.
    fn difference(&self, facts: &VolumeFacts, spec: &VolumeSpec) -> Result<Option<String>, VolumeError> {
        let managed = self.managed(facts)?;
        let by = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "an administrator".into());
        let wanted_by = Some(spec.driver.clone());
        if managed.driver != wanted_by {
            return Ok(Some(format!("was made by {}, not by {}", by(&managed.driver), spec.driver)));
        }
        if managed.name != spec.name {
            return Ok(Some(format!("was made for {:?}", managed.name)));
        }
        if managed.parameters != spec.parameters {
            let (has, wanted) = (&managed.parameters, &spec.parameters);
            return Ok(Some(format!("was made with the parameters {has:?}, not {wanted:?}")));
        }
        if managed.ephemeral_on != spec.ephemeral_on {
            return Ok(Some("lives as long as something else".into()));
        }
        let bytes = facts.record.bytes_max;
        if !spec.capacity.admits(bytes) {
            let has = bytes.map_or_else(|| "has no limit of its size".into(), |bytes| format!("has {bytes} bytes"));
            let Capacity { required, limit } = spec.capacity;
            return Ok(Some(format!("{has}, where {required} are required and the limit is {limit} (0: none)")));
        }
        Ok(None)
    }

    /// Deletes a volume and all that is in it. One that is not there is as it should be.
    ///
    /// # Errors
    /// [`VolumeError::InUse`] while it is attached or mounted.
    pub async fn delete(&self, name: &str) -> Result<(), VolumeError> {
        let _turn = self.turn(name).await?;
        loop {
            let found = self.find(name).await?.filter(|facts| !nodes::is_ours(&facts.record.name));
            let Some(facts) = found else { return Ok(()) };
            let mut book = Book::of(&facts);
            if book.is_deleting() {
                return self.delete_marked(&facts).await;
            }
            let attached = book.attachments()?;
            if let Some(attached) = attached.iter().find(|attached| attached.ends_at.is_none()) {
                let by = format!("it is attached to node {:?}; detach it there first", attached.node);
                return Err(VolumeError::InUse { name: name.into(), by });
            }
            if !attached.is_empty() {
                self.detach_all(name, |attached| attached.ends_at.is_some()).await?;
                continue;
            }
            // From here on nobody attaches it.
            book.set_deleting(true);
            self.relabel(&facts, book).await?;
        }
    }

    /// Finishes a deletion that was cut off, if there is one of that name.
    ///
    /// # Errors
    /// As [`Volumes::delete`].
    pub async fn finish_delete(&self, name: &str) -> Result<(), VolumeError> {
        let _turn = self.turn(name).await?;
        match self.find(name).await? {
            Some(facts) if Book::of(&facts).is_deleting() => self.delete_marked(&facts).await,
            _ => Ok(()),
        }
    }

    /// Deletes what is on record as to be deleted; if it is mounted, takes that back.
    async fn delete_marked(&self, facts: &VolumeFacts) -> Result<(), VolumeError> {
        let name = &facts.record.name;
        match self.cluster.delete(name).await {
            Ok(()) | Err(Refusal::NoVolume) => Ok(()),
            Err(refusal @ Refusal::Busy { .. }) => {
                let mut book = Book::of(facts);
                book.set_deleting(false);
                self.relabel(facts, book).await?;
                Err(refusal.about(name))
            }
            Err(refusal) => Err(refusal.about(name)),
        }
    }

    /// Makes a volume at least as large as required, at once and while it is in use; it never gets smaller. Returns its size; none: as the
    /// pool allows.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`], [`VolumeError::OutOfRange`] if it is larger than the limit already.
    pub async fn expand(&self, name: &str, capacity: Capacity) -> Result<Option<u64>, VolumeError> {
        let _turn = self.turn(name).await?;
        let limits = self.get(name).await?.record.limits();
        if capacity.admits(limits.bytes) {
            return Ok(limits.bytes);
        }
        match limits.bytes {
            Some(bytes) if bytes < capacity.required => {
                let larger = Limits { bytes: Some(capacity.required), ..limits };
                self.cluster.limit(name, larger).await.map_err(|refusal| refusal.about(name))?;
                Ok(larger.bytes)
            }
            other => {
                let has = other.map_or_else(|| "no limit".into(), |bytes| format!("{bytes} bytes"));
                let reason = format!("volume {name:?} has {has}, more than {}; it never gets smaller", capacity.limit);
                Err(VolumeError::OutOfRange { reason })
            }
        }
    }

    /// Sets the limits of a volume, from what they are.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`].
    pub async fn set_limits(&self, name: &str, change: impl FnOnce(Limits) -> Limits) -> Result<Limits, VolumeError> {
        let _turn = self.turn(name).await?;
        let before = self.get(name).await?.record.limits();
        let after = change(before);
        if after != before {
            self.cluster.limit(name, after).await.map_err(|refusal| refusal.about(name))?;
        }
        Ok(after)
    }

    /// Sets how the files of a volume are opened that do not say so themselves, from what was said before.
    ///
    /// # Errors
    /// [`VolumeError::NoVolume`].
    pub async fn set_open(&self, name: &str, change: impl FnOnce(OpenPolicy) -> OpenPolicy) -> Result<(), VolumeError> {
        let _turn = self.turn(name).await?;
        let before = self.get(name).await?.record.open;
        let after = change(before);
        if after != before {
            self.cluster.set_open(name, after).await.map_err(|refusal| refusal.about(name))?;
        }
        Ok(())
    }

    /// Volumes in the order of their names, after one; at the most `count` (0: all). The second value is the name to go on after, if
    /// there are more. Those that are being deleted, and those of our own, are not among them.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn list(&self, after: &str, count: usize) -> Result<(Vec<VolumeFacts>, Option<String>), VolumeError> {
        let mut found: Vec<VolumeFacts> = Vec::new();
        let mut after = after.to_owned();
        loop {
            let page = self.cluster.describe_after(&after, PAGE).await.map_err(|refusal| refusal.about(&after))?;
            let Some(last) = page.last() else { return Ok((found, None)) };
            last.record.name.clone_into(&mut after);
            for facts in page {
                if Book::of(&facts).is_deleting() || nodes::is_ours(&facts.record.name) {
                    continue;
                }
                if count > 0 && found.len() == count {
                    let last = found.last().map(|facts| facts.record.name.clone());
                    return Ok((found, last));
                }
                found.push(facts);
            }
        }
    }

    /// Bytes that new volumes could still hold: what is free on the disks in use, divided by the number of copies.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn available_bytes(&self) -> Result<u64, VolumeError> {
        let status = self.cluster.status().await.map_err(|refusal| refusal.about(""))?;
        let used = status.storage.iter().filter(|node| node.alive && node.place == StoragePlace::In);
        let disks = used.flat_map(|node| &node.disks).filter(|disk| !disk.failed);
        Ok(disks.map(|disk| disk.free).sum::<u64>() / u64::from(status.replicas.max(1)))
    }

    /// How the cluster is.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn condition(&self) -> Result<Condition, VolumeError> {
        let status = self.cluster.status().await.map_err(|refusal| refusal.about(""))?;
        let (all, degraded, waiting) = (status.groups_total, status.groups_degraded, status.groups_waiting);
        let message = if waiting > 0 {
            format!("{waiting} of {all} groups have too few copies: writes to them wait until a storage node is back")
        } else if degraded > 0 {
            format!("usable; {degraded} of {all} groups have fewer copies than they should, which is being put right")
        } else {
            "all data has all its copies".into()
        };
        Ok(Condition { abnormal: waiting > 0, message })
    }

    /// The mounts of a volume.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn sessions(&self, facts: &VolumeFacts) -> Result<Vec<SessionStatus>, VolumeError> {
        let status = self.cluster.status().await.map_err(|refusal| refusal.about(&facts.record.name))?;
        Ok(status.sessions.into_iter().filter(|session| session.volume == facts.record.id).collect())
    }
}

#[cfg(test)]
mod tests;
