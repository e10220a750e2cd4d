//! [`Volumes`] in earnest: the cluster's volumes, and mounts that are processes of this host.
//!
//! A host that uses a volume is *attached* to it on the cluster's record, with a generation that rises. To a volume for a single writer
//! one host is attached at a time: who attaches another one takes the right from the former, and has what is left of it there fenced,
//! before anything is mounted.

use crate::options::{Access, Wanted};
use crate::volumes::{Created, Failure, Usage, Used, User, Volume, Volumes};
use holdfast_mounts::{Mounted, TYPE};
use holdfast_volume::{
    Attachment, Capacity, Cluster, MountHow, Mounts, VolumeError, VolumeFacts, VolumeSpec, volume_name,
};
use holdfast_wire::admin::{SessionState, SessionStatus};
use holdfast_wire::open::OpenPolicy;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Who manages the volumes that we make.
const DRIVER: &str = "docker";
/// Names of what is kept with a volume; as the options are called.
const ACCESS: &str = "access";
const READ_ONLY: &str = "read-only";
/// Others that attach a volume at the same time are outdone so often. Each time somebody got it, who loses it again.
const TAKEOVERS_MAX: usize = 8;
/// How long the record of an attachment that is over may take. It is for tidiness: whoever wants the volume takes it over.
const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// The volumes of a cluster, mounted below a directory of this host.
#[derive(Clone, Debug)]
pub struct ClusterVolumes<C> {
    volumes: holdfast_volume::Volumes<C>,
    mounts: Mounts<C>,
    /// What this host is called on record. No other host may be called so.
    node: String,
    /// Where it mounts: a directory for each volume.
    directory: PathBuf,
}

impl<C: Cluster> ClusterVolumes<C> {
    /// Volumes of `cluster`, mounted below `directory` by `program` (which is `holdfast`) with the description of the cluster in `file`.
    pub fn new(cluster: C, program: PathBuf, file: PathBuf, node: String, directory: PathBuf) -> Self {
        let volumes = holdfast_volume::Volumes::new(cluster);
        let mounts = Mounts::new(volumes.clone(), program, file);
        // As the kernel's table has it.
        let directory = holdfast_mounts::absolute(&directory).unwrap_or(directory);
        Self { volumes, mounts, node, directory }
    }

    fn point(&self, name: &str) -> Result<PathBuf, VolumeError> {
        Ok(self.directory.join(volume_name(name)?))
    }

    async fn facts(&self, name: &str) -> Result<Option<VolumeFacts>, VolumeError> {
        match self.volumes.get(&volume_name(name)?).await {
            Ok(facts) => Ok(Some(facts)),
            Err(VolumeError::NoVolume { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn facts_of(&self, name: &str) -> Result<VolumeFacts, VolumeError> {
        self.facts(name).await?.ok_or_else(|| VolumeError::NoVolume { name: name.into() })
    }

    /// A volume as containers see it. `None`: another driver manages it.
    fn volume(&self, facts: &VolumeFacts) -> Result<Option<Volume>, Failure> {
        let managed = self.volumes.managed(facts)?;
        if managed.driver.as_deref().is_some_and(|driver| driver != DRIVER) {
            return Ok(None);
        }
        let kept = |name: &str| managed.parameters.get(name).map(String::as_str);
        let access = match kept(ACCESS) {
            // An administrator made it.
            None => Access::Shared,
            Some(text) => Access::parse(text).ok_or_else(|| {
                format!("volume {:?} has access={text:?}, which this version does not know", managed.name)
            })?,
        };
        let (size_bytes, open) = (facts.record.bytes_max, facts.record.open.rule);
        let read_only = kept(READ_ONLY) == Some("true");
        Ok(Some(Volume { name: managed.name, size_bytes, access, read_only, open }))
    }

    /// The right of this host to mount a volume.
    async fn attach(&self, volume: &Volume) -> Result<Attachment, VolumeError> {
        use holdfast_volume::Access as Grain;
        let name = volume_name(&volume.name)?;
        let grain = match volume.access {
            Access::Shared => Grain::MultiNodeMultiWriter,
            Access::SingleWriter => Grain::SingleNodeMultiWriter,
        };
        for _ in 0..TAKEOVERS_MAX {
            match self.volumes.attach(&name, &self.node, grain, volume.read_only).await {
                Err(VolumeError::NoNode { .. }) => self.volumes.register_node(&self.node).await?,
                Err(VolumeError::AttachedElsewhere { node, .. }) if volume.access == Access::SingleWriter => {
                    tracing::info!(volume = volume.name, from = node, "taken over, and what is left there is fenced");
                    self.volumes.detach(&name, Some(&node)).await?;
                }
                done => return done,
            }
        }
        let what = format!("the start of other containers with volume {:?}, on several hosts", volume.name);
        Err(VolumeError::Pending { what })
    }
}

impl<C: Cluster + Sync> Volumes for ClusterVolumes<C> {
    async fn replicas(&self) -> Result<u32, Failure> {
        Ok(self.volumes.cluster().status().await?.replicas)
    }

    async fn find(&self, name: &str) -> Result<Option<Volume>, Failure> {
        let Some(facts) = self.facts(name).await? else { return Ok(None) };
        match self.volume(&facts)? {
            Some(volume) => Ok(Some(volume)),
            None => Err("another orchestrator manages it; only that one knows who may mount it".into()),
        }
    }

    async fn list(&self) -> Result<Vec<Volume>, Failure> {
        let (all, _) = self.volumes.list("", 0).await?;
        all.iter().filter_map(|facts| self.volume(facts).transpose()).collect()
    }

    async fn create(&self, name: &str, wanted: &Wanted) -> Result<Created, Failure> {
        let access = wanted.access.unwrap_or_default();
        let parameters = [(ACCESS, access.to_string()), (READ_ONLY, wanted.read_only.unwrap_or(false).to_string())];
        let bytes = wanted.size_bytes.unwrap_or(0);
        let spec = VolumeSpec {
            name: name.into(),
            driver: DRIVER.into(),
            capacity: Capacity { required: bytes, limit: bytes },
            open: OpenPolicy { rule: wanted.open.unwrap_or_default(), ..OpenPolicy::default() },
            parameters: parameters
                .map(|(name, value)| (name.to_owned(), value))
                .into_iter()
                .collect::<BTreeMap<_, _>>(),
            ..VolumeSpec::default()
        };
        match self.volumes.create(&spec).await {
            Ok(_) => Ok(Created::New),
            Err(VolumeError::Different { .. }) => Ok(Created::Exists),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete(&self, name: &str) -> Result<(), Failure> {
        let name = volume_name(name)?;
        // Hosts that were lost are still on record.
        self.volumes.detach(&name, None).await?;
        Ok(self.volumes.delete(&name).await?)
    }

    async fn usage(&self, name: &str) -> Result<Usage, Failure> {
        let facts = self.facts_of(name).await?;
        let open = |session: &SessionStatus| !matches!(session.state, SessionState::Ending { .. });
        let user = |session: SessionStatus| User {
            alive: !matches!(session.state, SessionState::Silent { .. }),
            host: session.host,
            mount_point: session.mount_point,
            generation: session.instance_generation.0,
        };
        let users = self.volumes.sessions(&facts).await?.into_iter().filter(open).map(user).collect();
        let used = match self.mounted_at(name) {
            None => None,
            Some(at) => match self.mounts.usage(&at).await {
                Ok(usage) => Some(Used { bytes: usage.bytes.2, inodes: usage.inodes.2 }),
                Err(error) => {
                    tracing::warn!(volume = name, %error, "cannot ask how full it is");
                    None
                }
            },
        };
        Ok(Usage { used, users })
    }

    async fn mount(&self, volume: &Volume) -> Result<PathBuf, Failure> {
        let point = self.point(&volume.name)?;
        let facts = self.facts_of(&volume.name).await?;
        let attachment = self.attach(volume).await?;
        let how = MountHow { read_only: volume.read_only, options: Vec::new() };
        self.mounts.mount(&facts, &attachment, &point, &how).await?;
        Ok(point)
    }

    async fn unmount(&self, name: &str) -> Result<(), Failure> {
        let point = self.point(name)?;
        // The directory is there as long as it may be mounted, or is being mounted.
        if self.mounted_at(name).is_none() && !point.exists() {
            return Ok(());
        }
        let known = volume_name(name)?;
        self.mounts.unmount(&known, &point).await?;
        let detached = self.volumes.detach(&known, Some(&self.node));
        match tokio::time::timeout(DETACH_PATIENCE, detached).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(volume = name, %error, "this host stays on record as its holder"),
            Err(_) => tracing::warn!(volume = name, "this host stays on record as its holder: the cluster is slow"),
        }
        if let Err(error) = std::fs::remove_dir(&point) {
            tracing::debug!(volume = name, %error, "its directory stays");
        }
        Ok(())
    }

    async fn is_in_use(&self, name: &str) -> Result<bool, Failure> {
        let Some(there) = self.mounted_at(name).and_then(|point| holdfast_mounts::mounted_at(&point)) else {
            return Ok(false);
        };
        Ok(tokio::task::spawn_blocking(move || is_elsewhere(&there)).await??)
    }

    fn mounted_at(&self, name: &str) -> Option<PathBuf> {
        let point = self.point(name).ok()?;
        let source = holdfast_mounts::source_of(&volume_name(name).ok()?);
        holdfast_mounts::mounted_at(&point).filter(|there| there.kind == TYPE && there.source == source)?;
        Some(point)
    }

    fn mounted(&self) -> Vec<String> {
        let ours = |point: &Path| point.parent() == Some(&self.directory);
        let there = holdfast_mounts::mounted().into_iter().filter(|there| there.kind == TYPE && ours(&there.point));
        // A name that is not as Docker's are stands there in our way of writing; no request is open for one.
        let mut names: Vec<String> =
            there.filter_map(|there| there.source.strip_prefix("holdfast:").map(str::to_owned)).collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Whether any process of this host sees the mount anywhere but at its own place, as a container's do. (Services with mounts of their
/// own see a copy at the same place; that one goes when ours goes.)
fn is_elsewhere(mount: &Mounted) -> std::io::Result<bool> {
    let of_mount = |line: &str| {
        let mut fields = line.split(' ');
        fields.nth(2) == Some(&mount.device) && fields.nth(1).is_some_and(|point| Path::new(point) != mount.point)
    };
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // One that has ended meanwhile uses nothing.
        let Ok(table) = std::fs::read_to_string(Path::new("/proc").join(name).join("mountinfo")) else { continue };
        if table.lines().any(of_mount) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
