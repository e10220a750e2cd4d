//! What goes into the core and what comes out.

use crate::call::{Call, CallId, Reply};
use crate::error::ClientError;
use crate::lost::LostFile;
use crate::payload::{ChunkCall, ChunkReply};
use holdfast_types::{Instant, ServerId};
use holdfast_wire::metadata::{Answer, Envelope};

/// Names one message that was sent; its answer, or its failure, comes back with it. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happened.
#[allow(
    clippy::large_enum_variant,
    reason = "an input is made once and stepped at once; a box for each answer would cost more"
)]
#[derive(Debug)]
pub enum Input {
    /// Somebody calls. Until `Complete` the id must not be used again.
    Call {
        /// Its name.
        id: CallId,
        /// What is asked.
        call: Call,
    },
    /// The caller gives up. If the call is not completed yet it is, with `Interrupted`; what has a number goes on by itself.
    Cancel {
        /// Which call.
        id: CallId,
    },
    /// Answer to `SendMetadata`, or why there is none.
    MetadataAnswer {
        /// Which message.
        ticket: Ticket,
        /// The answer.
        result: Result<Answer, Failure>,
    },
    /// Answer to `SendChunk`, or why there is none.
    ChunkAnswer {
        /// Which message.
        ticket: Ticket,
        /// The answer, its bytes already checked against their sums.
        result: Result<ChunkReply, Failure>,
    },
    /// Time has passed: at least once when the time of `SetTimer` is reached.
    Tick,
    /// The kernel (or whoever caches above) holds nothing any more, as `Notice::StopCaching` with this event asked.
    Invalidated {
        /// Of which notice.
        event: u64,
    },
}

/// Why a message has no answer. Its request may or may not take effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or it broke.
    Unreachable,
    /// The deadline passed.
    TimedOut,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Send a request to a metadata server. Exactly one `MetadataAnswer` is expected, at the deadline at the latest.
    SendMetadata {
        /// Name of the message.
        ticket: Ticket,
        /// To whom.
        server: ServerId,
        /// The message.
        envelope: Envelope,
        /// When to give up, on the clock of `step`.
        deadline: Instant,
    },
    /// Send a request to a storage node. Exactly one `ChunkAnswer` is expected, at the deadline at the latest.
    SendChunk {
        /// Name of the message.
        ticket: Ticket,
        /// To whom and what; sums are computed by [`ChunkCall::seal`], outside of the core.
        call: ChunkCall,
        /// When to give up, on the clock of `step`.
        deadline: Instant,
    },
    /// The answer to this message does not matter any more: it may be cancelled. No answer is expected; one is ignored.
    Forget {
        /// Which message.
        ticket: Ticket,
    },
    /// A call is answered.
    Complete {
        /// Which.
        id: CallId,
        /// Its answer.
        result: Result<Reply, ClientError>,
    },
    /// Something that concerns the mount as a whole.
    Notify(Notice),
    /// Give a `Tick` at this time; replaces the one before.
    SetTimer {
        /// When.
        at: Instant,
    },
}

/// Something that concerns the mount as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Another host wants the volume. From now on nothing may be cached above ([`crate::ClientCore::cache_ttl`] is zero): invalidate
    /// names, attributes and pages, write back dirty mapped pages, then say `Invalidated` with this event.
    /// The same event may be announced once only; calls go on meanwhile.
    StopCaching {
        /// To be repeated in `Invalidated`.
        event: u64,
    },
    /// The session is alone again: answers may be cached.
    StartCaching,
    /// The session is over, for ever. All calls fail from now on.
    SessionOver {
        /// Why, for the log.
        reason: String,
        /// It was ended from here, by unmounting.
        unmounted: bool,
        /// Bytes that were written, not yet durable, and are lost. 0 after a clean unmount.
        lost_bytes: u64,
        /// What of that is at hand, by file.
        lost: Vec<LostFile>,
    },
    /// The cluster does not answer, or does again: for the log.
    Reachable {
        /// Which of the two.
        reachable: bool,
        /// What is missing.
        detail: String,
    },
    /// Buffered bytes of a file could not be stored and are lost; the file's next write, fsync or close reports it.
    WriteLost {
        /// The file.
        inode: holdfast_types::InodeId,
        /// Why.
        error: ClientError,
    },
}
