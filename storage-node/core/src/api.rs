//! What goes into the core and what comes out: the whole of its contact with the world.

use crate::local::{LocalCommand, LocalError, LocalOutcome, Ticket};
use bytes::Bytes;
use holdfast_types::limits;
use holdfast_types::{DiskId, GroupId, Incarnation, Instant, MapVersion, NodeId, SessionId};
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest};
use holdfast_wire::group::{GroupMessage, ScrubResult};
use holdfast_wire::map::MapUpdate;
use holdfast_wire::metadata::{MetadataError, Request, Response};
use std::ops::AddAssign;
use std::time::Duration;

/// What a core is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Its disks, in the lives they have now.
    pub disks: Vec<(DiskId, Incarnation)>,
    /// For jitter.
    pub seed: u64,
    /// Deliberate bugs, for tests of the tests. `Mutations::default()` has none.
    pub mutations: Mutations,
    /// Bounds.
    pub limits: Limits,
    /// What was kept of [`Effect::ScrubNoted`] before the start.
    pub scrubbed: Vec<Scrubbed>,
}

/// When a group was last scrubbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    /// The disk that it is on.
    pub disk: DiskId,
    /// Which group.
    pub group: GroupId,
    /// How long ago.
    pub age: Duration,
    /// What was found; none: it never was, and is due as if that had been its last time.
    pub result: Option<ScrubResult>,
}

/// Deliberate bugs that a simulator must find. Never set outside tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mutations {
    /// A backup acknowledges what it has received but not made durable.
    pub acknowledge_before_durable: bool,
    /// A backup takes operations of an epoch that is over.
    pub old_epoch_accepted: bool,
    /// A disk serves, and is spoken to, as a member in whatever life.
    pub other_incarnation_accepted: bool,
    /// A primary that asked for a promotion does not wait for that member until the map lists it.
    pub promotion_not_counted: bool,
    /// A new primary counts on from its own settled number, and counts are compared without their epoch.
    pub counts_reused: bool,
    /// What a scrub finds, or a read, counts as put right when another member has it, and stays as it is.
    pub repair_dropped: bool,
    /// Changes of a chunk are numbered while a copy of it is taken, so that old bytes come after new ones.
    pub copy_not_held: bool,
    /// A copy of a chunk is taken while this disk's own changes of it are under way: old bytes land on newer ones.
    pub copy_too_early: bool,
    /// Changes are not sent to a member that is being caught up, and count as if they had been.
    pub syncing_forgotten: bool,
    /// What was deleted while a member was away stays there.
    pub deleted_kept: bool,
    /// A member's promotion is asked for as soon as it has joined the stream.
    pub promoted_early: bool,
}

/// What has happened in a core's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reconciliations that this node, as primary, has ended.
    pub reconciliations: u64,
    /// Copies that these sent to members in sync, because what they had differed.
    pub reconciled_copies: u64,
    /// Members being caught up that went, or were dropped, before they had everything.
    pub resyncs_interrupted: u64,
    /// Promotions asked for.
    pub promotions: u64,
    /// Changes numbered while the outcome of a promotion was not known.
    pub changes_while_promoting: u64,
    /// Chunks deleted on a member because it had missed that.
    pub deletions_caught_up: u64,
    /// Messages in a group's name that were meant for another epoch, or another life of a disk, and were not taken.
    pub strange_messages: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.reconciliations += other.reconciliations;
        self.reconciled_copies += other.reconciled_copies;
        self.resyncs_interrupted += other.resyncs_interrupted;
        self.promotions += other.promotions;
        self.changes_while_promoting += other.changes_while_promoting;
        self.deletions_caught_up += other.deletions_caught_up;
        self.strange_messages += other.strange_messages;
    }
}

/// Bounds of one core. The defaults are by eye.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Unsettled operations of a group.
    pub window_ops: usize,
    /// Their bytes, per group.
    pub window_bytes: usize,
    /// Requests of a group that wait to be admitted.
    pub waiting_requests: usize,
    /// Bytes of all waiting requests and unsettled operations of the node; beyond it changes are refused.
    pub node_bytes: usize,
    /// Items held back behind a gap, per group.
    pub held_items: usize,
    /// Groups that catch up a syncing member at the same time.
    pub resyncs: usize,
    /// Chunks being copied to one member at the same time.
    pub copies: usize,
    /// Bytes on their way to one member beyond which no further copy starts.
    pub copy_bytes: usize,
    /// Bytes on their way to one syncing member beyond which it is dropped and starts again.
    pub syncing_bytes: usize,
    /// Longest wait of a request before it is told why.
    pub request_wait: Duration,
    /// A member silent for so long while something waits for it is to leave the view.
    pub member_patience: Duration,
    /// Unanswered messages are sent again after this.
    pub resend: Duration,
    /// Requests to the metadata service are repeated after this.
    pub ask_again: Duration,
    /// A primary alone in its view stops when its last heartbeat that was answered was sent longer ago.
    pub leader_ttl: Duration,
    /// Every group is scrubbed so often.
    pub scrub_every: Duration,
    /// Bytes per second that a disk is read at the most for scrubs.
    pub scrub_rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_ops: 512,
            window_bytes: 32 << 20,
            waiting_requests: 1024,
            node_bytes: 512 << 20,
            held_items: 512,
            resyncs: 8,
            copies: 8,
            copy_bytes: 4 << 20,
            syncing_bytes: 64 << 20,
            request_wait: Duration::from_secs(3),
            member_patience: limits::MEMBER_PATIENCE,
            resend: Duration::from_millis(300),
            ask_again: Duration::from_secs(1),
            leader_ttl: limits::NODE_TTL,
            scrub_every: Duration::from_secs(7 * 86_400),
            scrub_rate: 16 << 20,
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed. Wanted about every 50 ms.
    Tick,
    /// A map, or what changed in it, from a *confirmed* leader. Older ones are ignored.
    Map(MapUpdate),
    /// A client asks. Every id gets exactly one [`Effect::Answer`], unless it is cancelled first or its operation's fate stays open for ever.
    Request {
        /// Names the request; drawn by the shell, never reused.
        id: u64,
        /// What is asked.
        request: ChunkRequest,
        /// Bytes of a write.
        payload: Bytes,
        /// When the client gives up.
        deadline: Instant,
    },
    /// The client no longer waits. What has a number goes on.
    Cancelled {
        /// Which request.
        id: u64,
    },
    /// A message from another storage node (authenticated as `from`).
    Peer {
        /// Who sent it.
        from: NodeId,
        /// The message.
        message: GroupMessage,
        /// Its payload.
        payload: Bytes,
    },
    /// A stream to the node is open: what is sent from now on arrives in order or is lost with the connection.
    PeerConnected {
        /// Which node.
        node: NodeId,
    },
    /// The stream to a node is gone, with what was under way.
    PeerLost {
        /// Which node.
        node: NodeId,
    },
    /// Nobody listens where the node was: its process has ended. Said after each attempt at a stream that finds it so.
    PeerRefused {
        /// Which node.
        node: NodeId,
    },
    /// A command given by [`Effect::Local`] is done.
    LocalDone {
        /// Which.
        ticket: Ticket,
        /// How it went.
        result: Result<LocalOutcome, LocalError>,
    },
    /// The answer to [`Effect::AskView`], or why there is none. The shell need not repeat: the core does.
    ViewAnswer {
        /// Which question.
        token: u64,
        /// `Response::View`, or a failure.
        result: Result<Response, MetadataError>,
    },
    /// The leader answered a heartbeat.
    LeaderHeard {
        /// When that heartbeat was *sent*.
        sent_at: Instant,
    },
    /// Every group that this node is primary of is to be scrubbed, one after the other, beginning now.
    ScrubNow,
    /// A disk's space, whenever it crosses the mark.
    Space {
        /// Which disk.
        disk: DiskId,
        /// Nearly full: refuse what grows.
        low: bool,
    },
}

/// What is to be done, started in this order.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A command for a disk's store. `Apply`s of one group stay in this order.
    Local {
        /// Which disk.
        disk: DiskId,
        /// Comes back in [`Input::LocalDone`].
        ticket: Ticket,
        /// What to do.
        command: LocalCommand,
    },
    /// A message to another node, in order with those before; dropped if there is no connection (then one is opened, and
    /// [`Input::PeerConnected`] said).
    SendPeer {
        /// To whom.
        to: NodeId,
        /// The message.
        message: GroupMessage,
        /// Its payload.
        payload: Bytes,
    },
    /// The answer to a request.
    Answer {
        /// Which.
        id: u64,
        /// The answer.
        answer: ChunkAnswer,
        /// Bytes of a read.
        payload: Bytes,
    },
    /// A request for the metadata leader (`Promote`, `Evict` or `ReportGone`); the answer comes back as [`Input::ViewAnswer`].
    AskView {
        /// Names the question.
        token: u64,
        /// What is asked.
        request: Request,
    },
    /// Get the map (`GetMap { have: core.map_version() }`) from a confirmed leader; it comes back as [`Input::Map`].
    FetchMap {
        /// It is known that there is such a version.
        at_least: MapVersion,
    },
    /// Every operation of sessions ended by this map or an older one, that this node sequenced, is settled or handed to a newer view.
    /// Heartbeats carry the greatest one told.
    Acknowledged(MapVersion),
    /// Keep this, and give it to the next life of the core: see [`Config::scrubbed`]. Not urgent.
    ScrubNoted(Scrubbed),
    /// The session is over: drop its connections.
    SessionEnded(SessionId),
    /// The disk failed and must leave its views: heartbeats say so.
    DiskFailed {
        /// Which disk.
        disk: DiskId,
    },
}
