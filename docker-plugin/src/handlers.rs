//! What each call of the engine does.
//!
//! * Calls for one volume follow each other; calls for different volumes do not wait for each other.
//! * Every call may be repeated, by an engine that was restarted or did not hear the answer, and then does nothing more.
//! * A Mount counts once its volume is mounted, and its Unmount stops counting before the volume is unmounted: whenever this process
//!   ends, no mount is left uncounted that [`Plugin::reconcile`] would not take away, and none that is counted is taken away.
//! * A Mount whose caller has given up is not counted: nobody would take it back.

use crate::engine::Engine;
use crate::metrics::Metrics;
use crate::options::{OptionError, Wanted};
use crate::requests::{Requests, RequestsError};
use crate::status::Status;
use crate::volumes::{Created, Failure, User, Volume, Volumes};
use holdfast_config::Size;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::Mutex as AsyncMutex;

/// Why a call of the engine fails; a user of Docker reads it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The request names no volume, or no request.
    #[error("the request has no {0}; the engine is expected to send one")]
    Missing(&'static str),
    /// There is no such volume.
    #[error("no volume {0:?}; `docker volume create --driver holdfast {0}` makes one")]
    NoVolume(String),
    /// It exists and is another.
    #[error(
        "volume {name:?} exists with {option}={present}, not {wanted}; leave the option out to use it as it is, or choose another name"
    )]
    Differs {
        /// Which volume.
        name: String,
        /// Which option.
        option: &'static str,
        /// What it is.
        present: String,
        /// What was asked for.
        wanted: String,
    },
    /// Not as many copies as the cluster keeps.
    #[error(
        "option replicas: the cluster keeps {present} copies of everything, not {wanted}; leave it out, or say replicas={present}"
    )]
    Replicas {
        /// What the cluster has.
        present: u32,
        /// What was asked for.
        wanted: u32,
    },
    /// Containers of this host use it.
    #[error("volume {name:?} is in use by {count} containers of this host; remove them first")]
    InUseHere {
        /// Which volume.
        name: String,
        /// How many.
        count: usize,
    },
    /// It is mounted elsewhere.
    #[error(
        "volume {name:?} is in use: {by}; end that first, or by force with `holdfast admin fence --volume {name}` if that host is lost"
    )]
    InUse {
        /// Which volume.
        name: String,
        /// By whom.
        by: String,
    },
    /// What is counted cannot be kept.
    #[error(transparent)]
    Requests(#[from] RequestsError),
    /// The caller did not wait for the answer.
    #[error("volume {0:?}: the engine gave up before it was mounted")]
    GivenUp(String),
    /// The cluster or this host cannot do it.
    #[error("{what}: {source}")]
    Failed {
        /// What was tried.
        what: String,
        /// Why not.
        source: Failure,
    },
}

/// The cause in front of which it is said what was tried.
fn failed(what: impl Into<String>) -> impl FnOnce(Failure) -> CallError {
    let what = what.into();
    move |source| CallError::Failed { what, source }
}

/// Whether somebody waits for the answer to a call.
pub trait Caller: Send + Sync {
    /// Nobody does any more.
    fn has_gone(&self) -> bool;

    /// The engine that asks, if it can be seen.
    fn engine(&self) -> Option<Engine>;
}

/// A volume and where it is mounted here, if it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The volume.
    pub volume: Volume,
    /// Where.
    pub mount_point: Option<PathBuf>,
}

/// What serves the engine's calls.
#[derive(Debug)]
pub struct Plugin<V> {
    volumes: V,
    /// Changed by one at a time, on a thread that may wait for the disk.
    requests: Arc<Mutex<Requests>>,
    /// One for each volume that somebody works on.
    locks: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
    metrics: Metrics,
}

impl<V: Volumes> Plugin<V> {
    /// Serves these volumes.
    pub fn new(volumes: V, requests: Requests, metrics: Metrics) -> Self {
        Self { volumes, requests: Arc::new(Mutex::new(requests)), locks: Mutex::default(), metrics }
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The turn of a volume.
    fn lock_of(&self, name: &str) -> Arc<AsyncMutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(AsyncMutex::new(()));
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }

    fn count(&self, name: &str) -> usize {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).count(name)
    }

    /// Changes what is counted, and waits for the disk elsewhere.
    async fn keep<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Requests) -> Result<T, RequestsError> + Send + 'static,
    ) -> Result<T, CallError> {
        let requests = Arc::clone(&self.requests);
        let changed = move || change(&mut requests.lock().unwrap_or_else(PoisonError::into_inner));
        match tokio::task::spawn_blocking(changed).await {
            Ok(result) => Ok(result?),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Open requests, without those that nobody will take back: an engine that is killed forgets them. While the engine that made one
    /// runs, it may be starting the container; once it has ended, a container that still runs is seen by what it has mounted.
    async fn count_that_matters(&self, name: &str) -> Result<usize, CallError> {
        let count = self.count(name);
        let left_behind = || self.requests.lock().unwrap_or_else(PoisonError::into_inner).are_left_behind(name);
        if count == 0 || !left_behind() {
            return Ok(count);
        }
        let in_use = self.volumes.is_in_use(name).await;
        if in_use.map_err(failed(format!("cannot see which containers use volume {name:?}")))? {
            return Ok(count);
        }
        tracing::info!(
            volume = name,
            requests = count,
            "forgotten by an engine that has ended, and no container has it"
        );
        let volume = name.to_owned();
        self.keep(move |requests| requests.forget(&volume)).await?;
        Ok(0)
    }

    async fn find(&self, name: &str) -> Result<Volume, CallError> {
        if name.is_empty() {
            return Err(CallError::Missing("Name"));
        }
        let found = self.volumes.find(name).await.map_err(failed(format!("cannot look for volume {name:?}")))?;
        found.ok_or_else(|| CallError::NoVolume(name.to_owned()))
    }

    /// Makes a volume, or takes the one that is there if it is as wanted.
    ///
    /// # Errors
    /// When an option is wrong, it exists and is another, or the cluster refuses.
    pub async fn create(&self, name: &str, options: &BTreeMap<String, String>) -> Result<(), CallError> {
        let wanted = Wanted::parse(options)?;
        if let Some(copies) = wanted.replicas {
            let present = self.volumes.replicas().await.map_err(failed("cannot ask for the cluster's replicas"))?;
            if copies != present {
                return Err(CallError::Replicas { present, wanted: copies });
            }
        }
        let lock = self.lock_of(name);
        let _turn = lock.lock().await;
        match self.find(name).await {
            Ok(present) => return as_wanted(&present, &wanted),
            Err(CallError::NoVolume(_)) => {}
            Err(error) => return Err(error),
        }
        match self.volumes.create(name, &wanted).await.map_err(failed(format!("cannot create volume {name:?}")))? {
            Created::New => {
                tracing::info!(volume = name, ?wanted, "volume created");
                Ok(())
            }
            // By another host in this moment.
            Created::Exists => as_wanted(&self.find(name).await?, &wanted),
        }
    }

    /// Deletes a volume. Done if there is none: the engine asks again when it did not hear the first answer.
    ///
    /// # Errors
    /// When it is in use here or elsewhere, or the cluster refuses.
    pub async fn remove(&self, name: &str) -> Result<(), CallError> {
        let lock = self.lock_of(name);
        let _turn = lock.lock().await;
        match self.find(name).await {
            Ok(_) => {}
            Err(CallError::NoVolume(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let count = self.count_that_matters(name).await?;
        if count > 0 {
            return Err(CallError::InUseHere { name: name.into(), count });
        }
        // One that nobody here counts any more may be left of an unmount that failed.
        self.volumes.unmount(name).await.map_err(failed(format!("cannot unmount volume {name:?}")))?;
        let usage = self.volumes.usage(name).await.map_err(failed(format!("cannot ask who uses volume {name:?}")))?;
        if !usage.users.is_empty() {
            let by: Vec<String> = usage.users.iter().map(shown).collect();
            return Err(CallError::InUse { name: name.into(), by: by.join(", ") });
        }
        self.volumes.delete(name).await.map_err(failed(format!("cannot delete volume {name:?}")))?;
        tracing::info!(volume = name, "volume deleted");
        Ok(())
    }

    /// Has a volume mounted for a request, and says where.
    ///
    /// # Errors
    /// When there is no such volume, it cannot be mounted, or the caller has gone: then the request is not open.
    pub async fn mount(&self, name: &str, id: &str, caller: &impl Caller) -> Result<PathBuf, CallError> {
        if id.is_empty() {
            return Err(CallError::Missing("ID"));
        }
        let lock = self.lock_of(name);
        let _turn = lock.lock().await;
        let volume = self.find(name).await?;
        let mounted = self.volumes.mount(&volume).await.map_err(failed(format!("cannot mount volume {name:?}")));
        let kept = match mounted {
            Ok(_) if caller.has_gone() => Err(CallError::GivenUp(name.into())),
            Ok(at) => {
                let (volume, id, by) = (name.to_owned(), id.to_owned(), caller.engine());
                self.keep(move |requests| requests.add(&volume, &id, by)).await.map(|()| at)
            }
            Err(error) => Err(error),
        };
        if kept.is_err()
            && self.count(name) == 0
            && let Err(error) = self.volumes.unmount(name).await
        {
            // The next start of the plugin, or the next unmount, tries again.
            tracing::warn!(volume = name, error, "a mount that nobody uses could not be taken away");
        }
        kept
    }

    /// Where a volume is mounted on this host, if it is.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.volumes.mounted_at(name)
    }

    /// A request is over; the last one's end unmounts the volume. Done if it was not open.
    ///
    /// # Errors
    /// When the volume cannot be unmounted; the request is over all the same, and asking again tries again.
    pub async fn unmount(&self, name: &str, id: &str) -> Result<(), CallError> {
        if name.is_empty() {
            return Err(CallError::Missing("Name"));
        }
        let lock = self.lock_of(name);
        let _turn = lock.lock().await;
        let (volume, id) = (name.to_owned(), id.to_owned());
        let left = self.keep(move |requests| requests.remove(&volume, &id)).await?;
        if left == 0 || self.count_that_matters(name).await? == 0 {
            self.volumes.unmount(name).await.map_err(failed(format!("cannot unmount volume {name:?}")))?;
        }
        Ok(())
    }

    /// A volume with its status.
    ///
    /// # Errors
    /// When there is no such volume, or the cluster does not answer.
    pub async fn get(&self, name: &str) -> Result<(Placed, Status), CallError> {
        let volume = self.find(name).await?;
        let usage = self.volumes.usage(name).await.map_err(failed(format!("cannot ask for the usage of {name:?}")))?;
        let status = Status::new(&volume, usage, self.count(name));
        Ok((self.placed(volume), status))
    }

    /// All volumes of the cluster.
    ///
    /// # Errors
    /// When the cluster does not answer.
    pub async fn list(&self) -> Result<Vec<Placed>, CallError> {
        let volumes = self.volumes.list().await.map_err(failed("cannot list volumes"))?;
        Ok(volumes.into_iter().map(|volume| self.placed(volume)).collect())
    }

    fn placed(&self, volume: Volume) -> Placed {
        let mount_point = self.volumes.mounted_at(&volume.name);
        Placed { volume, mount_point }
    }

    /// Takes away what is mounted and not counted, after a plugin that was killed between the two. What is counted and not mounted, or
    /// dead, is mounted again when the next container asks for it.
    pub async fn reconcile(&self) {
        for name in self.volumes.mounted() {
            let lock = self.lock_of(&name);
            let _turn = lock.lock().await;
            let count = self.count_that_matters(&name).await.unwrap_or_else(|error| {
                tracing::warn!(volume = name, %error, "what is counted stays");
                1
            });
            if count > 0 {
                tracing::info!(volume = name, containers = count, "found mounted");
            } else if let Err(error) = self.volumes.unmount(&name).await {
                tracing::warn!(volume = name, error, "a mount that nobody uses could not be taken away");
            } else {
                tracing::info!(volume = name, "a mount that nobody uses was taken away");
            }
        }
    }
}

fn shown(user: &User) -> String {
    let state = if user.alive { "" } else { ", which is silent" };
    format!("mounted on host {} at {}{state}", user.host, user.mount_point)
}

/// Whether a volume that exists is what was asked for. What was not said is as it is.
fn as_wanted(present: &Volume, wanted: &Wanted) -> Result<(), CallError> {
    let name = || present.name.clone();
    let size = |bytes: Option<u64>| bytes.map_or("no limit".into(), |bytes| Size(bytes).to_string());
    if let Some(bytes) = wanted.size_bytes.filter(|bytes| present.size_bytes != Some(*bytes)) {
        let (present, wanted) = (size(present.size_bytes), size(Some(bytes)));
        return Err(CallError::Differs { name: name(), option: "size", present, wanted });
    }
    if let Some(access) = wanted.access.filter(|access| present.access != *access) {
        let (present, wanted) = (present.access.to_string(), access.to_string());
        return Err(CallError::Differs { name: name(), option: "access", present, wanted });
    }
    if let Some(flag) = wanted.read_only.filter(|flag| present.read_only != *flag) {
        let (present, wanted) = (present.read_only.to_string(), flag.to_string());
        return Err(CallError::Differs { name: name(), option: "read-only", present, wanted });
    }
    if let Some(rule) = wanted.open.filter(|rule| present.open != *rule) {
        let (present, wanted) = (present.open.to_string(), rule.to_string());
        return Err(CallError::Differs { name: name(), option: "open", present, wanted });
    }
    Ok(())
}
