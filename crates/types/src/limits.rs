//! Every bound, in one place; bounds that must agree are compared at compile time.

use crate::size::{KIB, MIB};
use std::time::Duration;

/// A chunk: the slice of a file that one group holds, in bytes. Large enough that a stream costs few messages.
pub const CHUNK_BYTES: u64 = 4 * MIB;
/// A block: the grain of checksums, in bytes. The page size of the kernels we serve.
pub const BLOCK_BYTES: u64 = 4 * KIB;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u64 = CHUNK_BYTES / BLOCK_BYTES;
/// Largest write or read in one data request, in bytes.
pub const DATA_REQUEST_BYTES_MAX: u64 = CHUNK_BYTES;
/// Largest message part of a frame, in bytes (the payload is apart).
pub const MESSAGE_BYTES_MAX: u64 = 16 * MIB;
/// Largest payload part of a frame, in bytes.
pub const PAYLOAD_BYTES_MAX: u64 = CHUNK_BYTES;
/// Fixed header of a frame, in bytes.
pub const FRAME_HEADER_BYTES: u64 = 96;

/// Longest file name, in bytes (POSIX NAME_MAX).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest path and symbolic link target, in bytes (Linux PATH_MAX, with its final zero).
pub const PATH_BYTES_MAX: usize = 4096;
/// Largest extended attribute value, in bytes (Linux XATTR_SIZE_MAX).
pub const XATTR_VALUE_BYTES_MAX: usize = 64 * KIB as usize;
/// Longest extended attribute name, in bytes (Linux XATTR_NAME_MAX).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Most hard links of a file.
pub const LINKS_MAX: u32 = 1 << 31;
/// Locks that one session may hold on one file; more are refused with `ENOLCK`. By eye: a database locks a few, a test some thousands.
pub const LOCKS_PER_FILE_MAX: u32 = 65_536;
/// Largest file, in bytes.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Longest volume name, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 128;

/// Answers kept for one session until it says that it has them; then back-pressure.
pub const ANSWERS_PER_SESSION_MAX: usize = 4096;
/// Changed chunks that a group remembers, so that a short absence copies only those.
pub const GROUP_CHANGES_MAX: usize = 65_536;
/// Replicas of a group at the most.
pub const REPLICAS_MAX: usize = 7;
/// Groups of a pool: at the least and at the most; always a power of two.
pub const GROUPS_MIN: u32 = 1;
/// See [`GROUPS_MIN`].
pub const GROUPS_MAX: u32 = 65_536;

/// A session silent for longer may lose what it holds to somebody who wants it.
pub const SESSION_TTL: Duration = Duration::from_secs(10);
/// How often a session renews: a third of its TTL.
pub const SESSION_RENEWAL: Duration = Duration::from_millis(3_333);
/// Clocks of two hosts may drift apart by this much within one TTL.
pub const DRIFT_MARGIN: Duration = Duration::from_millis(500);
/// How long un-flushed data stays in the client.
pub const WRITEBACK_DELAY: Duration = Duration::from_secs(1);

/// Sessions of which a chunk remembers the last contended change: with more, a change whose answer was lost in a change of views cannot
/// be told from one that was never made, and fails. By eye: 2 KiB in a chunk's row.
pub const CONTENDERS_MAX: usize = 128;

/// Raft leader's heartbeat.
pub const RAFT_HEARTBEAT: Duration = Duration::from_millis(100);
/// Shortest wait for a leader's word before standing for election; the longest is twice this.
pub const RAFT_ELECTION_MIN: Duration = Duration::from_millis(500);

/// Storage nodes' heartbeat.
pub const NODE_HEARTBEAT: Duration = Duration::from_millis(500);
/// A node silent for longer, in the leader's own ticks, is taken out of its views: five heartbeats, so that writers of a host that froze
/// wait less than three seconds.
pub const NODE_TTL: Duration = Duration::from_millis(2500);
/// How long a primary waits for a member before it asks for it to be taken out.
pub const MEMBER_PATIENCE: Duration = Duration::from_secs(2);
/// A disk that is away for longer is given up, if nothing else is configured: what it held is made again on others.
pub const OUT_AFTER: Duration = Duration::from_secs(600);
/// How long a group with no member of its last view waits for the others after a power loss.
pub const REFORM_PATIENCE: Duration = Duration::from_secs(3);

const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(
    FRAME_HEADER_BYTES + MESSAGE_BYTES_MAX + PAYLOAD_BYTES_MAX <= u32::MAX as u64,
    "frame length travels as u32"
);
const _: () = assert!(SESSION_RENEWAL.as_millis() * 3 <= SESSION_TTL.as_millis());
const _: () = assert!(NODE_HEARTBEAT.as_millis() * 4 <= NODE_TTL.as_millis(), "a node may lose a few heartbeats");
