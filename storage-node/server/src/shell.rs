//! Starts what the core asks for. Decides nothing and waits for nothing.

use crate::control::Control;
use crate::disk::{Disk, Vitals};
use crate::map_file::MapFile;
use crate::metrics::Journeys;
use crate::owner::Owner;
use crate::peers::Peers;
use crate::scrub_file::ScrubFile;
use crate::service::Requests;
use holdfast_storage_core::local::LocalError;
use holdfast_storage_core::{Effect, Input, Scrubbed};
use holdfast_types::{DiskId, Incarnation, MapVersion, MemberId, NodeId};
use holdfast_wire::group::ScrubResult;
use holdfast_wire::map::{ClusterMap, MapUpdate};
use holdfast_wire::metadata::{MetadataError, Request, Response};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// How long a question of the core to the leader may take; the core repeats it.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// How long one metadata server may take for it.
const ASK_PATIENCE: Duration = Duration::from_secs(1);

/// What heartbeats say, and what they wait for.
pub(crate) struct Standing {
    /// The core's map.
    pub map_version: AtomicU64,
    /// The greatest map version whose ended sessions are dealt with.
    pub acknowledged: AtomicU64,
    /// Disks: their lives, and how they are.
    pub disks: Vec<(DiskId, Incarnation, Arc<Vitals>)>,
    /// Stopping on purpose.
    pub leaving: AtomicBool,
    /// Something changed that the leader should hear at once.
    pub news: Notify,
    /// Views that hold one of our disks and somebody else in sync: those that we can leave.
    pub shared_views: watch::Sender<usize>,
}

/// All ways out of the core.
pub(crate) struct Shell {
    pub node: NodeId,
    pub disks: BTreeMap<DiskId, Disk>,
    pub peers: Peers,
    pub requests: Arc<Requests>,
    pub control: Arc<Control>,
    pub standing: Arc<Standing>,
    pub owner: Weak<Owner>,
    pub runtime: tokio::runtime::Handle,
    /// A question for the map is under way.
    pub fetching: Arc<AtomicBool>,
    pub map_file: Arc<MapFile>,
    pub journeys: Journeys,
    pub scrubs: Arc<ScrubFile>,
}

impl Shell {
    /// The version of the map that was last told.
    pub fn map_version(&self) -> MapVersion {
        MapVersion(self.standing.map_version.load(Ordering::Relaxed))
    }

    /// The core has another map.
    pub fn map_changed(&mut self, map: &ClusterMap) {
        self.standing.map_version.store(map.version.0, Ordering::Relaxed);
        self.peers.learn(map);
        self.map_file.take(map);
        let node = self.node;
        let member = |&(disk, incarnation, _): &(DiskId, Incarnation, _)| MemberId { node, disk, incarnation };
        let members: Vec<MemberId> = self.standing.disks.iter().map(member).collect();
        let shared = map.views.iter().filter(|view| {
            members.iter().any(|member| view.has(*member)) && view.in_sync.iter().any(|other| other.node != node)
        });
        let shared = shared.count();
        self.standing.shared_views.send_if_modified(|count| std::mem::replace(count, shared) != shared);
    }

    /// Starts one effect.
    pub fn start(&mut self, effect: Effect) {
        match effect {
            Effect::Local { disk, ticket, command } => {
                self.journeys.given(ticket, &command);
                match self.disks.get(&disk) {
                    Some(disk) => disk.start(ticket, command),
                    None => self.tell(Input::LocalDone { ticket, result: Err(LocalError::Failed) }),
                }
            }
            Effect::SendPeer { to, message, payload } => self.peers.send(to, &message, payload),
            Effect::Answer { id, answer, payload } => {
                let arrived = self.requests.answer(id, &answer, payload);
                self.journeys.answered(id, &answer, arrived);
            }
            Effect::AskView { token, request } => self.ask(token, request),
            Effect::FetchMap { .. } => {
                fetch_map(&self.control, &self.standing, &self.owner, &self.fetching, &self.runtime)
            }
            Effect::Acknowledged(version) => {
                self.standing.acknowledged.fetch_max(version.0, Ordering::Relaxed);
                self.standing.news.notify_one();
            }
            Effect::ScrubNoted(noted) => {
                self.scrubs.note(&noted);
                if let Some(result) = noted.result {
                    self.journeys.scrubbed(&result);
                    say_scrubbed(&noted, &result);
                }
            }
            Effect::SessionEnded(session) => self.requests.end_session(session),
            Effect::DiskFailed { disk } => {
                if let Some(disk) = self.disks.get(&disk) {
                    disk.vitals.failed.store(true, Ordering::Relaxed);
                }
                self.standing.news.notify_one();
            }
        }
    }

    fn tell(&self, input: Input) {
        if let Some(owner) = self.owner.upgrade() {
            owner.submit([input]);
        }
    }

    fn ask(&self, token: u64, request: Request) {
        let (control, owner) = (Arc::clone(&self.control), Weak::clone(&self.owner));
        self.runtime.spawn(async move {
            let result = control.ask(request, ASK_DEADLINE, ASK_PATIENCE).await;
            if let Some(owner) = owner.upgrade() {
                owner.submit([Input::ViewAnswer { token, result }]);
            }
        });
    }

    /// Lets go of everything, so that threads and tasks can end.
    pub fn close(&mut self) {
        self.disks.clear();
        self.peers.close();
    }
}

/// A line for each scrub that has ended, on every node that has the group in sync.
fn say_scrubbed(noted: &Scrubbed, result: &ScrubResult) {
    let (group, disk) = (noted.group.0, noted.disk.0);
    let ScrubResult { chunks, bytes, bad, repaired, different, equalized } = *result;
    if result.is_clean() {
        tracing::info!(group, disk, chunks, bytes, bad, repaired, different, equalized, "scrub ended");
    } else {
        let advice = "scrub ended, and not all is well: see admin scrub and docs/operations.md";
        tracing::error!(group, disk, chunks, bytes, bad, repaired, different, equalized, "{advice}");
    }
}

/// Reads the map at once, unless that is being done already.
pub(crate) fn fetch_map(
    control: &Arc<Control>,
    standing: &Arc<Standing>,
    owner: &Weak<Owner>,
    fetching: &Arc<AtomicBool>,
    runtime: &tokio::runtime::Handle,
) {
    if fetching.swap(true, Ordering::AcqRel) {
        return;
    }
    let (control, standing) = (Arc::clone(control), Arc::clone(standing));
    let (owner, fetching) = (Weak::clone(owner), Arc::clone(fetching));
    runtime.spawn(async move {
        let have = MapVersion(standing.map_version.load(Ordering::Relaxed));
        let result = control.ask(Request::GetMap { have, wait: false }, ASK_DEADLINE, ASK_PATIENCE).await;
        fetching.store(false, Ordering::Release);
        take_map(&control, &owner, result);
    });
}

/// Gives a map to the core. Says whether there was one.
pub(crate) fn take_map(control: &Control, owner: &Weak<Owner>, result: Result<Response, MetadataError>) -> bool {
    match (result, owner.upgrade()) {
        (Ok(Response::Map(update)), Some(owner)) => {
            if let MapUpdate::Full(map) = &update {
                control.learn(&map.servers);
            }
            owner.submit([Input::Map(update)]);
            true
        }
        (Ok(other), _) => {
            tracing::warn!(?other, "the leader answered something else than a map");
            false
        }
        (Err(error), _) => {
            tracing::debug!(%error, "no map");
            false
        }
    }
}
