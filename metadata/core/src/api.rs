//! What goes into the core and what comes out: configuration, recovered state, inputs, effects.
//!
//! The shell's duties, in one place:
//! * Start effects in the order they come. `Persist` effects of one shard are made durable in that order, and answered in
//!   that order by [`Input::Persisted`]; several may be in flight, and one sync may serve many of them.
//! * A [`Input::Tick`] every [`TICK`]; ticks that were missed (a stopped process) are *not* made up for, so that silence is
//!   never counted while the inbox was not read. Drain the inbox before a tick.
//! * Every request gets exactly one [`Effect::Answer`], unless it was cancelled before. Peers' messages may be lost.

use bytes::Bytes;
use holdfast_store::Table;
use holdfast_types::{ClusterId, GroupId, Instant, LogIndex, MemberId, NodeId, ServerId, ShardId, Term, Timestamp};
use holdfast_wire::chunk::{ChunkAnswer, ChunkRequest};
use holdfast_wire::metadata::{Answer, Envelope};
use holdfast_wire::peer::PeerMessage;
use std::sync::Arc;
use std::time::Duration;

/// Time between two ticks.
pub const TICK: Duration = Duration::from_millis(50);

/// Ticks that cover a duration, rounded up.
pub const fn ticks(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(TICK.as_millis()) as u64
}

/// How a server is set up. The same on all servers but for `id` and `seed`.
#[derive(Clone, Debug)]
pub struct Config {
    /// This server.
    pub id: ServerId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Who votes in every shard as long as a table does not say otherwise: the servers that the cluster was made with, this one among
    /// them. Empty for a server that joins: the leader's snapshot tells it.
    pub voters: Vec<ServerId>,
    /// The same with their addresses (`HOST:PORT`), for the record of shard 0. Empty: nothing is put on record.
    pub servers: Vec<(ServerId, String)>,
    /// Life of this server's log: a number drawn when it was made. 0: not told, and nobody's is checked.
    pub life: u64,
    /// Seed of election jitter. Different on each server.
    pub seed: u64,
    /// Copies that a group should have (1 to 7).
    pub replicas: u32,
    /// Groups of the pool, a power of two.
    pub groups: u32,
    /// Storage nodes to wait for before the pool is formed.
    pub storage_expected: u32,
    /// A disk that has been away for so long is given up: what it held is made again on others.
    pub out_after: Duration,
    /// Name of the volume that is made when the pool forms.
    pub first_volume: String,
    /// Feature level of this build; activated when the pool forms.
    pub feature_level: u32,
    /// Bounds that tests and simulation make small.
    pub limits: Limits,
    /// Deliberate bugs. Test only; all false otherwise.
    pub mutations: Mutations,
}

impl Config {
    /// A configuration with the usual bounds and no deliberate bugs.
    pub fn new(id: ServerId, cluster: ClusterId, voters: Vec<ServerId>, seed: u64) -> Self {
        Self {
            id,
            cluster,
            voters,
            servers: Vec::new(),
            life: 0,
            seed,
            replicas: 3,
            groups: 256,
            storage_expected: 3,
            out_after: holdfast_types::limits::OUT_AFTER,
            first_volume: "main".into(),
            feature_level: 1,
            limits: Limits::default(),
            mutations: Mutations::default(),
        }
    }
}

/// Bounds of a server's own making.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Applied entries after which the tables are persisted, so that the log can be cut.
    pub persist_tables_after: u64,
    /// Bytes of log after which the same happens.
    pub persist_tables_after_bytes: u64,
    /// Entries kept in the log below a persisted table, for followers that are a little behind.
    pub log_kept: u64,
    /// Bytes of log kept likewise; the smaller bound counts.
    pub log_kept_bytes: u64,
    /// Rows' bytes in one part of a snapshot.
    pub snapshot_part_bytes: usize,
    /// Parts of a snapshot in flight to one server.
    pub snapshot_parts_in_flight: u32,
    /// Purge and trim requests to storage nodes in flight.
    pub chunk_requests_in_flight: usize,
    /// Requests waiting for a place in the log; more are told to come back.
    pub proposals_waiting: usize,
    /// Deltas of the map kept in memory for those a little behind.
    pub map_deltas: usize,
    /// Rows that one command of a background job touches.
    pub rows_per_command: usize,
    /// Groups that a storage node takes in at a time, and that it is the source of.
    pub moves_per_node: u32,
}

impl Default for Limits {
    fn default() -> Self {
        // Chosen by eye: a persist every few seconds under load, a log of tens of megabytes, a minute of absence without snapshot.
        Self {
            persist_tables_after: 50_000,
            persist_tables_after_bytes: 32 << 20,
            log_kept: 50_000,
            log_kept_bytes: 32 << 20,
            snapshot_part_bytes: holdfast_wire::peer::SNAPSHOT_PART_BYTES_MAX,
            snapshot_parts_in_flight: 4,
            chunk_requests_in_flight: 64,
            proposals_waiting: 10_000,
            map_deltas: 256,
            rows_per_command: 512,
            moves_per_node: 8,
        }
    }
}

/// Deliberate bugs that the simulator must find. **Test only**: nothing else may set one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mutations {
    /// A mutation is answered when it is proposed, not when it is committed and applied.
    pub answer_before_commit: bool,
    /// A `Persist` effect leaves the hard state (term, vote) out.
    pub vote_not_persisted: bool,
    /// Reads are answered from what this server has applied, without asking a quorum.
    pub read_index_skipped: bool,
    /// The first answer of a mutation is not kept, so a retry is executed again.
    pub answer_forgotten: bool,
    /// Answers are dropped although the session has not said that it has them.
    pub answers_purged_early: bool,
    /// A disk that comes back in another incarnation stays the member it was.
    pub other_incarnation_accepted: bool,
    /// When a primary goes, a member that is still being caught up takes its place, so that all others are made like that one.
    pub syncing_leads: bool,
    /// Silence is counted by the leader's clock, which goes on while it is stopped itself.
    pub pause_believed: bool,
    /// What a session that is over had open is free for others before storage nodes refuse it.
    pub given_before_fence: bool,
}

/// What must survive of raft's state beside the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Present term.
    pub term: Term,
    /// Voted for in that term; 0: nobody.
    pub vote: ServerId,
    /// Known to be committed.
    pub commit: LogIndex,
}

/// An entry's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition {
    /// Index; 0 is before the first entry.
    pub index: LogIndex,
    /// Term of the entry there.
    pub term: Term,
}

/// An entry as it is kept in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Where.
    pub at: LogPosition,
    /// Kind of entry as raft numbers it: 0 is a command (or empty), others are changes of membership.
    pub kind: u8,
    /// An encoded `Proposal`; empty for the entry that begins a term.
    pub data: Bytes,
}

/// One thing to write to a shard's log, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// The log begins anew behind this place: what was in it, below and above, is forgotten (a snapshot was installed).
    Restart {
        /// What the table holds.
        base: LogPosition,
    },
    /// Entries, consecutive. The first follows the log's last, or replaces it and everything from there on.
    Entries(Vec<LogEntry>),
    /// The newest hard state.
    HardState(HardState),
}

/// What a shard's log and table held when the server started.
pub struct RecoveredShard {
    /// The newest hard state in the log. Default when there is none.
    pub hard_state: HardState,
    /// What `CutLog` or `Restart` last named; default for a log that was never cut.
    pub base: LogPosition,
    /// Every entry after `base`, consecutive.
    pub entries: Vec<LogEntry>,
    /// The table.
    pub table: Arc<dyn Table>,
}

/// What a server held when it started.
pub struct Recovered {
    /// Shard 0.
    pub cluster: RecoveredShard,
    /// Shard 1.
    pub volumes: RecoveredShard,
}

/// Why a core does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// Log and table do not fit together: one of them was lost, or belongs to somebody else.
    #[error("{shard}: {reason}")]
    Damaged {
        /// Which.
        shard: ShardId,
        /// What does not fit.
        reason: String,
    },
    /// The table cannot be read.
    #[error("table")]
    Store(#[from] holdfast_store::StoreError),
    /// The raft crate refuses.
    #[error("raft")]
    Raft(#[from] raft::Error),
}

/// Who asks, as its certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// A mount.
    Client,
    /// A storage node.
    Storage(NodeId),
    /// A metadata server.
    Server(ServerId),
    /// An administrator.
    Admin,
}

/// Why a chunk request has no answer. It may or may not have been executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkFailure {
    /// For the log.
    pub reason: String,
}

/// What happens to a server.
#[derive(Clone, Debug)]
pub enum Input {
    /// [`TICK`] has passed since the last one.
    Tick {
        /// Civil time now. Moments between two ticks are interpolated by `now`.
        wall: Timestamp,
    },
    /// A request arrived.
    Request {
        /// Names it among all unanswered ones of this server.
        request: u64,
        /// Who asks.
        from: Caller,
        /// What.
        envelope: Envelope,
        /// An answer after this moment is of no use. Long polls are answered a little before.
        deadline: Instant,
    },
    /// Its caller gave up: no answer is wanted. What it asked for may still happen.
    Cancelled {
        /// As in `Request`.
        request: u64,
    },
    /// Another metadata server says something.
    Peer {
        /// Who, as its certificate says.
        from: ServerId,
        /// What.
        message: PeerMessage,
    },
    /// This server is about to stop: others are to lead what it leads, as soon as they can.
    Leave,
    /// The room on this server's disk crossed the mark.
    Room {
        /// There is little.
        low: bool,
    },
    /// The records of a `Persist` effect, and of all before it, are durable.
    Persisted {
        /// Which shard's.
        shard: ShardId,
        /// Which effect.
        ticket: u64,
    },
    /// A log or a table can not be written any more. The shard halts.
    PersistFailed {
        /// Which shard's.
        shard: ShardId,
        /// Why.
        reason: String,
    },
    /// A `PersistTables` effect is done.
    TablesPersisted {
        /// Which shard's.
        shard: ShardId,
        /// As in the effect.
        applied: LogIndex,
    },
    /// A `Chunk` effect is done.
    ChunkDone {
        /// Which.
        job: u64,
        /// The answer.
        result: Result<ChunkAnswer, ChunkFailure>,
    },
}

/// What the core wants done.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append to the shard's log, then say [`Input::Persisted`].
    Persist {
        /// Which shard.
        shard: ShardId,
        /// Rises by one with each, per shard.
        ticket: u64,
        /// What to write; may be empty (then say `Persisted` in its turn).
        records: Vec<LogRecord>,
        /// It must be durable before it is confirmed. False: confirm when written (only the commit index has changed).
        must_sync: bool,
    },
    /// Send to another metadata server; may be lost.
    Send {
        /// To whom.
        to: ServerId,
        /// What.
        message: PeerMessage,
    },
    /// Answer a request.
    Answer {
        /// Which.
        request: u64,
        /// The answer.
        answer: Answer,
    },
    /// Call `persist` on the shard's table (in a worker), then say [`Input::TablesPersisted`].
    PersistTables {
        /// Which shard's.
        shard: ShardId,
        /// Applied index that is covered.
        applied: LogIndex,
    },
    /// Entries up to `base` are not needed any more. Whatever stays behind is told as `base` at the next start.
    /// Durable at leisure, but together with `base`.
    CutLog {
        /// Which shard's.
        shard: ShardId,
        /// The last entry to go.
        base: LogPosition,
    },
    /// Ask a storage node (session `SERVICE`), then say [`Input::ChunkDone`]. No payload.
    Chunk {
        /// Names it.
        job: u64,
        /// Which group.
        group: GroupId,
        /// Its primary.
        member: MemberId,
        /// `HOST:PORT` of that node.
        address: String,
        /// What.
        request: ChunkRequest,
    },
    /// Where the metadata servers are, from now on: connections to others are of no use.
    Servers {
        /// All of them, this one included, with `HOST:PORT`.
        servers: Vec<(ServerId, String)>,
        /// Those that have left: only to be told so, should they speak.
        gone: Vec<(ServerId, String)>,
    },
    /// This server is none of the cluster any more: it must end, and say why.
    Stop {
        /// Why.
        reason: String,
    },
    /// A shard has stopped applying, for good: our own mistake at this index, or a broken disk. It votes and serves no more.
    Halt {
        /// Which.
        shard: ShardId,
        /// The entry that could not be applied.
        index: LogIndex,
        /// Why.
        reason: String,
    },
}

/// What has happened so far on this server, for metrics and for the simulator's demand that nothing stays untested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times this server became leader of a shard.
    pub elections_won: u64,
    /// Times it stopped leading.
    pub leaderships_lost: u64,
    /// Of those, with a proposal not yet applied.
    pub leaderships_lost_in_flight: u64,
    /// Commands proposed here.
    pub proposals: u64,
    /// Entries applied.
    pub applied: u64,
    /// Mutations answered from the table of answers (counted on every server).
    pub answers_repeated: u64,
    /// Requests that joined one already in flight.
    pub requests_joined: u64,
    /// Reads answered after a round of ReadIndex.
    pub reads: u64,
    /// Rounds of ReadIndex.
    pub read_rounds: u64,
    /// Snapshots sent to the end.
    pub snapshots_sent: u64,
    /// Snapshots installed.
    pub snapshots_installed: u64,
    /// Log entries of our own replaced by a leader's.
    pub suffixes_cut: u64,
    /// Logs cut from below.
    pub logs_cut: u64,
    /// Views changed (counted on every server).
    pub view_changes: u64,
    /// Homes of groups moved (counted on every server).
    pub rehomed: u64,
    /// Sessions fenced (counted on every server).
    pub fences: u64,
    /// Purge and trim requests sent.
    pub chunk_requests: u64,
    /// Disks found slower than their peers by this server while it led.
    pub disks_slow: u64,
    /// Of those, times one was taken out of its views.
    pub disks_slow_out: u64,
}
