//! A cluster and a host in memory, for tests of what is in front of them.

use super::{Created, Failure, Usage, Used, User, Volume, Volumes};
use crate::options::{Access, Wanted};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Semaphore;

/// Copies that this cluster keeps.
pub(crate) const REPLICAS: u32 = 3;

#[derive(Debug, Default)]
pub(crate) struct State {
    pub volumes: BTreeMap<String, Volume>,
    /// On this host.
    pub mounted: BTreeSet<String>,
    /// By containers that run.
    pub in_use: BTreeSet<String>,
    /// Who else has it.
    pub others: BTreeMap<String, Vec<User>>,
    /// Fails with this text, until taken out: by the name of the call.
    pub failing: BTreeMap<&'static str, &'static str>,
    /// Mounts that wait to be let through.
    pub waiting: usize,
    /// What was done, in order.
    pub done: Vec<String>,
}

/// Shared with the test that looks into it.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
    /// A mount takes one; none there: it waits.
    pub mounts_let_through: Arc<Semaphore>,
}

impl Memory {
    pub fn new() -> Self {
        Self { state: Arc::default(), mounts_let_through: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    fn call(&self, call: &'static str, name: &str) -> Result<MutexGuard<'_, State>, Failure> {
        let mut state = self.state();
        if let Some(reason) = state.failing.get(call) {
            return Err((*reason).into());
        }
        state.done.push(format!("{call} {name}"));
        Ok(state)
    }

    fn at(name: &str) -> PathBuf {
        PathBuf::from("/memory").join(name)
    }
}

impl Volumes for Memory {
    async fn replicas(&self) -> Result<u32, Failure> {
        Ok(REPLICAS)
    }

    async fn find(&self, name: &str) -> Result<Option<Volume>, Failure> {
        Ok(self.call("find", name)?.volumes.get(name).cloned())
    }

    async fn list(&self) -> Result<Vec<Volume>, Failure> {
        Ok(self.call("list", "")?.volumes.values().cloned().collect())
    }

    async fn create(&self, name: &str, wanted: &Wanted) -> Result<Created, Failure> {
        let volume = Volume {
            name: name.into(),
            size_bytes: wanted.size_bytes,
            access: wanted.access.unwrap_or(Access::Shared),
            read_only: wanted.read_only.unwrap_or(false),
            open: wanted.open.unwrap_or_default(),
        };
        let mut state = self.call("create", name)?;
        if state.volumes.contains_key(name) {
            return Ok(Created::Exists);
        }
        state.volumes.insert(name.into(), volume);
        Ok(Created::New)
    }

    async fn delete(&self, name: &str) -> Result<(), Failure> {
        self.call("delete", name)?.volumes.remove(name);
        Ok(())
    }

    async fn usage(&self, name: &str) -> Result<Usage, Failure> {
        let state = self.call("usage", name)?;
        let here = || User { host: "here".into(), mount_point: format!("/memory/{name}"), generation: 0, alive: true };
        let mut users = state.others.get(name).cloned().unwrap_or_default();
        let is_here = state.mounted.contains(name);
        users.extend(is_here.then(here));
        Ok(Usage { used: is_here.then_some(Used { bytes: 4096, inodes: 2 }), users })
    }

    async fn mount(&self, volume: &Volume) -> Result<PathBuf, Failure> {
        self.state().waiting += 1;
        self.mounts_let_through.acquire().await.expect("open").forget();
        self.state().waiting -= 1;
        self.call("mount", &volume.name)?.mounted.insert(volume.name.clone());
        Ok(Self::at(&volume.name))
    }

    async fn unmount(&self, name: &str) -> Result<(), Failure> {
        let mut state = self.state();
        // What is not mounted is no deed.
        if !state.mounted.contains(name) {
            return Ok(());
        }
        if let Some(reason) = state.failing.get("unmount") {
            return Err((*reason).into());
        }
        state.done.push(format!("unmount {name}"));
        state.mounted.remove(name);
        Ok(())
    }

    async fn is_in_use(&self, name: &str) -> Result<bool, Failure> {
        Ok(self.state().in_use.contains(name))
    }

    fn mounted_at(&self, name: &str) -> Option<PathBuf> {
        self.state().mounted.contains(name).then(|| Self::at(name))
    }

    fn mounted(&self) -> Vec<String> {
        self.state().mounted.iter().cloned().collect()
    }
}
