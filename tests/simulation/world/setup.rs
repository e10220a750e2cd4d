//! What kind of world a seed is: its hostility, its clients' habits, and the deliberate bug that is planted in it, if any.

use holdfast_metadata_core::api as metadata;
use holdfast_storage_core::api as storage;
use holdfast_storage_server::chunk_store;
use holdfast_types::prng::Prng;
use std::time::Duration;

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A metadata server's log says that it is durable and is not.
    SkipLogFsync,
    /// See `metadata::Mutations::vote_not_persisted`.
    VoteNotPersisted,
    /// See `metadata::Mutations::answer_before_commit`.
    AnswerBeforeCommit,
    /// See `metadata::Mutations::read_index_skipped`.
    ReadIndexSkipped,
    /// See `metadata::Mutations::answer_forgotten`.
    AnswerForgotten,
    /// See `metadata::Mutations::answers_purged_early`.
    AnswersPurgedEarly,
    /// See `storage::Mutations::acknowledge_before_durable`.
    AcknowledgeBeforeDurable,
    /// See `storage::Mutations::old_epoch_accepted`.
    OldEpochAccepted,
    /// See `chunk_store::Mutations::overwrite_before_durable`.
    OverwriteBeforeDurable,
    /// See `storage::Mutations::other_incarnation_accepted`, and that of metadata.
    OtherIncarnationAccepted,
    /// See `storage::Mutations::promotion_not_counted`.
    PromotionNotCounted,
    /// See `storage::Mutations::counts_reused`.
    CountsReused,
    /// See `storage::Mutations::repair_dropped`.
    RepairDropped,
    /// See `storage::Mutations::syncing_forgotten`.
    SyncingForgotten,
    /// See `storage::Mutations::deleted_kept`.
    DeletedResurrected,
    /// See `storage::Mutations::promoted_early`.
    PromotedEarly,
    /// See `metadata::Mutations::syncing_leads`.
    ReconciledFromWrongMember,
    /// See `metadata::Mutations::pause_believed`.
    PauseBelieved,
    /// See `metadata::Mutations::given_before_fence`.
    GivenBeforeFence,
}

impl Mutation {
    /// All of them, with the names that `--mutation` takes.
    pub const ALL: [(Self, &'static str); 19] = [
        (Self::SkipLogFsync, "skip-log-fsync"),
        (Self::VoteNotPersisted, "vote-not-persisted"),
        (Self::AnswerBeforeCommit, "answer-before-commit"),
        (Self::ReadIndexSkipped, "read-index-skipped"),
        (Self::AnswerForgotten, "answer-forgotten"),
        (Self::AnswersPurgedEarly, "answers-purged-early"),
        (Self::AcknowledgeBeforeDurable, "acknowledge-before-durable"),
        (Self::OldEpochAccepted, "old-epoch-accepted"),
        (Self::OverwriteBeforeDurable, "overwrite-before-durable"),
        (Self::OtherIncarnationAccepted, "other-incarnation-accepted"),
        (Self::PromotionNotCounted, "promotion-not-counted"),
        (Self::CountsReused, "counts-reused"),
        (Self::RepairDropped, "repair-dropped"),
        (Self::SyncingForgotten, "syncing-forgotten"),
        (Self::DeletedResurrected, "deleted-resurrected"),
        (Self::PromotedEarly, "promoted-early"),
        (Self::ReconciledFromWrongMember, "reconciled-from-wrong-member"),
        (Self::PauseBelieved, "pause-believed"),
        (Self::GivenBeforeFence, "given-before-fence"),
    ];

    /// The one with a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(mutation, _)| *mutation)
    }

    /// A seed, within those that are run, at which it was found when this was written. To be set anew where a run shows that looking takes
    /// long: it only decides where to look first.
    pub fn found_at(self) -> u64 {
        match self {
            Self::OldEpochAccepted => 101,
            Self::AcknowledgeBeforeDurable => 84,
            Self::RepairDropped => 35,
            _ => 1,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(mutation, _)| *mutation == self).map_or("", |(_, name)| name)
    }

    pub(super) fn metadata(planted: Option<Self>) -> metadata::Mutations {
        let is = |mutation| planted == Some(mutation);
        metadata::Mutations {
            answer_before_commit: is(Self::AnswerBeforeCommit),
            vote_not_persisted: is(Self::VoteNotPersisted),
            read_index_skipped: is(Self::ReadIndexSkipped),
            answer_forgotten: is(Self::AnswerForgotten),
            answers_purged_early: is(Self::AnswersPurgedEarly),
            other_incarnation_accepted: is(Self::OtherIncarnationAccepted),
            syncing_leads: is(Self::ReconciledFromWrongMember),
            pause_believed: is(Self::PauseBelieved),
            given_before_fence: is(Self::GivenBeforeFence),
        }
    }

    pub(super) fn storage(planted: Option<Self>) -> storage::Mutations {
        let is = |mutation| planted == Some(mutation);
        storage::Mutations {
            acknowledge_before_durable: is(Self::AcknowledgeBeforeDurable),
            old_epoch_accepted: is(Self::OldEpochAccepted),
            other_incarnation_accepted: is(Self::OtherIncarnationAccepted),
            promotion_not_counted: is(Self::PromotionNotCounted),
            counts_reused: is(Self::CountsReused),
            repair_dropped: is(Self::RepairDropped),
            // A chunk that changes at the very moment in which its copy is taken is rare here; the core's own worlds plant these two.
            copy_not_held: false,
            copy_too_early: false,
            syncing_forgotten: is(Self::SyncingForgotten),
            deleted_kept: is(Self::DeletedResurrected),
            promoted_early: is(Self::PromotedEarly),
        }
    }

    pub(super) fn store(planted: Option<Self>) -> chunk_store::Mutations {
        let is = |mutation| planted == Some(mutation);
        chunk_store::Mutations {
            overwrite_before_durable: is(Self::OverwriteBeforeDurable),
            // A block that is written between its check and its repair is rare here; the store's own tests plant it.
            ..chunk_store::Mutations::default()
        }
    }
}

/// The direction in which a world is hostile. Chosen by the seed, so that each gets its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// A little of everything.
    Mixed,
    /// Metadata leaders are isolated, stopped and cut off by turns.
    Leaders,
    /// Whoever just voted, or followed, loses power at once.
    Votes,
    /// Storage nodes die and come back, one soon after the other.
    Members,
    /// Storage nodes lose power within a heartbeat.
    Reboots,
    /// The whole cluster loses power, again and again.
    PowerCuts,
    /// Answers are lost, requests are not.
    LostAnswers,
    /// Storage primaries are cut off from the metadata servers, from the others, or stopped.
    Zombies,
    /// Storage nodes join, are emptied, stay away for so long that they are given up, or go for good.
    Rebuild,
    /// Disks and nodes are slow, for long enough to be found out, while others fail.
    Slow,
}

impl Flavour {
    const ALL: [Self; 10] = [
        Self::Mixed,
        Self::Leaders,
        Self::Votes,
        Self::Members,
        Self::Reboots,
        Self::PowerCuts,
        Self::LostAnswers,
        Self::Zombies,
        Self::Rebuild,
        Self::Slow,
    ];
}

/// A world's parameters.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) flavour: Flavour,
    pub(super) planted: Option<Mutation>,
    /// Calls after which clients begin nothing new.
    pub(super) calls: u32,
    /// How long faults go on.
    pub(super) hostile: Duration,
    pub(super) groups: u32,
    /// Storage nodes; one of five comes later.
    pub(super) nodes: u64,
    /// A node away for longer is given up.
    pub(super) out_after: Duration,
    /// One node's disk loses bits. In the other worlds copies in sync never differ at rest: whatever a scrub finds there is an alarm.
    pub(super) rots: bool,
    pub(super) metadata_limits: metadata::Limits,
    pub(super) storage_limits: storage::Limits,
    /// Calls that a client has under way.
    pub(super) slots: usize,
    /// One in so many calls ends with the client unmounting, or dying.
    pub(super) leave_one_in: u64,
    /// Longest pause between two mounts of a client, in milliseconds.
    pub(super) away_ms_max: u64,
    /// Mean pause between two calls of a slot, in milliseconds.
    pub(super) think_ms: u64,
}

impl Setup {
    pub(super) fn of(seed: u64, planted: Option<Mutation>) -> Self {
        let mut prng = Prng::new(seed).fork(0x5e70);
        let flavour = Flavour::ALL[(seed % Flavour::ALL.len() as u64) as usize];
        let metadata_limits = metadata::Limits {
            persist_tables_after: prng.between(10, 200),
            persist_tables_after_bytes: 1 << 20,
            log_kept: prng.between(4, 60),
            log_kept_bytes: 1 << 20,
            snapshot_part_bytes: prng.between(500, 8000) as usize,
            snapshot_parts_in_flight: prng.between(1, 4) as u32,
            map_deltas: prng.between(2, 32) as usize,
            rows_per_command: 64,
            moves_per_node: prng.fork(7).between(1, 8) as u32,
            ..metadata::Limits::default()
        };
        let storage_limits = storage::Limits {
            window_ops: prng.between(4, 64) as usize,
            held_items: prng.between(4, 64) as usize,
            resyncs: prng.between(1, 8) as usize,
            copies: prng.between(1, 8) as usize,
            scrub_every: Duration::from_secs(prng.between(4, 20)),
            scrub_rate: 1 << 30,
            ..storage::Limits::default()
        };
        let (slots, hostile) = (prng.between(2, 5), prng.between(30, 50));
        // A tenth and more are about locks, which storage nodes never hear of.
        let calls = 2_500;
        let rebuilds = flavour == Flavour::Rebuild;
        Self {
            flavour,
            planted,
            calls,
            hostile: Duration::from_secs(hostile),
            groups: 8,
            nodes: if rebuilds { 5 } else { 4 },
            out_after: Duration::from_secs(if rebuilds { prng.fork(8).between(2, 8) } else { 600 }),
            rots: (seed / Flavour::ALL.len() as u64).is_multiple_of(2),
            metadata_limits,
            storage_limits,
            slots: slots as usize,
            leave_one_in: prng.between(60, 300),
            away_ms_max: prng.between(100, 8_000),
            think_ms: hostile * 1000 * 3 * slots / u64::from(calls) / 2,
        }
    }
}
