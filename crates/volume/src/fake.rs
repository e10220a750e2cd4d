//! A cluster in memory, for tests of this crate and of the plugins: its rules are those of the metadata service, and it can be cut off at
//! any request, before or after it has taken effect.

use crate::cluster::{Cluster, Refusal};
use holdfast_types::{ClusterId, InstanceGeneration, MapVersion, SessionId, ShardId, SnapshotNumber, VolumeId};
use holdfast_wire::admin::{ClusterStatus, RebuildStatus, SessionState, SessionStatus};
use holdfast_wire::namespace::{LABELS_BYTES_MAX, Labels, Limits, VolumeFacts, VolumeRecord};
use holdfast_wire::open::OpenPolicy;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a caller is cut off: what it asks from then on is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Requests that are still answered.
    pub after: u32,
    /// The one after those takes effect, and the answer is lost.
    pub takes_effect: bool,
}

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<String, VolumeFacts>,
    newest: u64,
    sessions: Vec<SessionStatus>,
    least: BTreeMap<(VolumeId, String), u64>,
    groups_waiting: u32,
    asked: u32,
    cut: Option<Cut>,
}

/// The cluster. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct FakeCluster(Arc<Mutex<State>>);

impl FakeCluster {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever asks is cut off there, counted from now; `None`: not any more. Returns how many requests came since the last call.
    pub fn cut(&self, cut: Option<Cut>) -> u32 {
        let mut state = self.state();
        state.cut = cut;
        std::mem::take(&mut state.asked)
    }

    /// Groups that wait for copies.
    pub fn set_waiting(&self, groups: u32) {
        self.state().groups_waiting = groups;
    }

    /// Mounts a volume as a mount process would.
    ///
    /// # Errors
    /// When there is no such volume, or a greater generation of the instance was let in or asked for before.
    pub fn open(&self, volume: &str, instance: &str, generation: u64) -> Result<SessionId, String> {
        let mut state = self.state();
        let volume = state.volumes.get(volume).ok_or("no such volume")?.record.id;
        state.raise(volume, instance, generation)?;
        state.newest += 1;
        let id = SessionId(state.newest);
        state.sessions.push(SessionStatus {
            id,
            volume,
            host: "host".into(),
            pid: std::process::id(),
            mount_point: "/mnt".into(),
            instance: instance.into(),
            instance_generation: InstanceGeneration(generation),
            state: SessionState::Attached { caching: true },
        });
        Ok(id)
    }

    /// Whether a session may still change something.
    pub fn is_open(&self, session: SessionId) -> bool {
        self.state().sessions.iter().any(|known| known.id == session)
    }

    /// A mount is unmounted.
    pub fn close(&self, session: SessionId) {
        self.state().sessions.retain(|known| known.id != session);
    }

    /// All volumes there are, whatever they are for.
    pub fn names(&self) -> Vec<String> {
        self.state().volumes.keys().cloned().collect()
    }

    async fn ask<T>(&self, act: impl FnOnce(&mut State) -> Result<T, Refusal>) -> Result<T, Refusal> {
        // Others get a turn between any two requests, as they would.
        tokio::task::yield_now().await;
        let mut state = self.state();
        state.asked += 1;
        let asked = state.asked;
        let lost = Err(Refusal::Unavailable("cut off".into()));
        match state.cut {
            Some(Cut { after, takes_effect }) if asked > after => {
                if takes_effect && asked == after + 1 {
                    drop(act(&mut state));
                }
                lost
            }
            _ => act(&mut state),
        }
    }
}

impl State {
    fn raise(&mut self, volume: VolumeId, instance: &str, generation: u64) -> Result<(), String> {
        let least = self.least.entry((volume, instance.to_owned())).or_default();
        if generation < *least {
            return Err(format!("superseded by generation {least}"));
        }
        *least = generation;
        self.sessions.retain(|session| {
            let same = session.volume == volume && session.instance == instance;
            !same || session.instance_generation.0 >= generation
        });
        Ok(())
    }

    fn volume(&mut self, name: &str) -> Result<&mut VolumeFacts, Refusal> {
        self.volumes.get_mut(name).ok_or(Refusal::NoVolume)
    }
}

fn check(labels: &Labels) -> Result<(), Refusal> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    let long = labels.keys().any(|key| key.is_empty() || key.len() > 63);
    if bytes > LABELS_BYTES_MAX || long { Err(Refusal::Invalid("labels are too long".into())) } else { Ok(()) }
}

impl Cluster for FakeCluster {
    async fn create(&self, name: &str, limits: Limits, open: OpenPolicy, labels: Labels) -> Result<(), Refusal> {
        self.ask(|state| {
            check(&labels)?;
            if name.is_empty() || name.len() > 128 || name.contains(['/', '\0']) {
                return Err(Refusal::Invalid("a volume's name has 1 to 128 bytes".into()));
            }
            if state.volumes.contains_key(name) {
                return Err(Refusal::Exists);
            }
            state.newest += 1;
            let record = VolumeRecord {
                id: VolumeId(state.newest),
                name: name.into(),
                groups: 1,
                placement_version: 1,
                snapshot: SnapshotNumber(0),
                origin: None,
                bytes_max: limits.bytes,
                inodes_max: limits.inodes,
                open,
                limits_version: 0,
                shard: ShardId::VOLUMES,
            };
            state.volumes.insert(name.into(), VolumeFacts { record, labels_version: 0, labels });
            Ok(())
        })
        .await
    }

    async fn describe(&self, name: &str) -> Result<Option<VolumeFacts>, Refusal> {
        self.ask(|state| Ok(state.volumes.get(name).cloned())).await
    }

    async fn describe_after(&self, after: &str, limit: u32) -> Result<Vec<VolumeFacts>, Refusal> {
        let later = (std::ops::Bound::Excluded(after.to_owned()), std::ops::Bound::Unbounded);
        self.ask(|state| Ok(state.volumes.range(later).take(limit as usize).map(|(_, facts)| facts.clone()).collect()))
            .await
    }

    async fn label(&self, name: &str, version: u64, labels: Labels) -> Result<bool, Refusal> {
        self.ask(|state| {
            check(&labels)?;
            let facts = state.volume(name)?;
            if facts.labels_version != version {
                return Ok(false);
            }
            facts.labels_version += 1;
            facts.labels = labels;
            Ok(true)
        })
        .await
    }

    async fn set_open(&self, name: &str, open: OpenPolicy) -> Result<(), Refusal> {
        self.ask(|state| {
            state.volume(name)?.record.open = open;
            Ok(())
        })
        .await
    }

    async fn limit(&self, name: &str, limits: Limits) -> Result<(), Refusal> {
        self.ask(|state| {
            let facts = state.volume(name)?;
            facts.record.bytes_max = limits.bytes;
            facts.record.inodes_max = limits.inodes;
            Ok(())
        })
        .await
    }

    async fn delete(&self, name: &str) -> Result<(), Refusal> {
        self.ask(|state| {
            let id = state.volume(name)?.record.id;
            let sessions = state.sessions.iter().filter(|session| session.volume == id).count() as u32;
            if sessions > 0 {
                return Err(Refusal::Busy { sessions });
            }
            state.volumes.remove(name);
            Ok(())
        })
        .await
    }

    async fn raise_generation(&self, volume: VolumeId, instance: &str, generation: u64) -> Result<(), Refusal> {
        self.ask(|state| {
            // A lesser one than there was is as good as done.
            let _ = state.raise(volume, instance, generation);
            Ok(())
        })
        .await
    }

    async fn status(&self) -> Result<ClusterStatus, Refusal> {
        self.ask(|state| {
            Ok(ClusterStatus {
                cluster: ClusterId(255),
                version: MapVersion(1),
                replicas: 3,
                groups_total: 8,
                groups_degraded: state.groups_waiting,
                groups_waiting: state.groups_waiting,
                degraded: Vec::new(),
                metadata: Vec::new(),
                storage: Vec::new(),
                storage_gone: Vec::new(),
                rebuild: RebuildStatus::default(),
                sessions: state.sessions.clone(),
            })
        })
        .await
    }
}
