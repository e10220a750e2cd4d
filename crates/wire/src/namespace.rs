//! Files and directories as messages see them: attributes, and the operations on a volume's namespace.
//!
//! Every mutation is exactly-once by `(session, sequence)`; every answer carries the index at which it holds.

// tidy: long because it is a list: every operation on a namespace, each field said

use crate::lock::{HeldLock, Lock};
use bytes::Bytes;
use holdfast_types::{FileName, Generation, InodeId, SessionId, Timestamp, VolumeId};
use serde::{Deserialize, Serialize};

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Bytes.
    File,
    /// Entries.
    Directory,
    /// A path.
    Symlink,
    /// A pipe by name.
    Fifo,
    /// A Unix socket by name.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// Attributes of an inode, as `stat(2)` shows them, and what the client needs beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Which inode.
    pub inode: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u16,
    /// Hard links; of a directory 2 and one more for each sub-directory. 0: unlinked while open.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Bytes; of a symlink the length of its target, of a directory its number of entries.
    pub size: u64,
    /// Last read, as far as it is kept.
    pub atime: Timestamp,
    /// Last change of the data.
    pub mtime: Timestamp,
    /// Last change of data or attributes. Never goes back.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Which content: rises when the file is truncated to zero. Part of the chunk key.
    pub generation: Generation,
    /// While set, bytes at or above it are being removed: they read as zeros, and nobody may write there (see `AwaitTrim`).
    pub trim_from: Option<u64>,
    /// How far the asking session may write before it must ask for more (`Reserve`). 0: not at all beyond `size`.
    pub size_bound: u64,
    /// Parent, of a directory (for `..`); the directory itself for the root; 0 for anything else.
    pub parent: InodeId,
    /// How often a file was truncated to less than its size: while this stays, no byte below the size has gone.
    pub cuts: u64,
    /// A file may have holes: it was made longer without being written, or bytes of it were made zeros. Programs that copy look for holes
    /// only where fewer blocks are counted than the size takes. False once it is cut to nothing.
    pub sparse: bool,
}

/// What to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// An empty file.
    File,
    /// An empty directory.
    Directory,
    /// A symlink to this path (1 to 4095 bytes, no NUL).
    Symlink(Bytes),
    /// A pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device of this number.
    CharDevice(u32),
    /// A block device of this number.
    BlockDevice(u32),
}

/// How a time is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// To the time of the operation, which the leader chooses.
    Now,
    /// To this time.
    At(Timestamp),
}

/// What to change of an inode's attributes; `None` leaves it alone.
///
/// As `chown(2)` and `truncate(2)` want it, the *caller* (client) says in `clear_set_ids` that set-user-id and set-group-id bits
/// are to be cleared (set-group-id only if group-executable); the service does it in the same command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttributes {
    /// New permission bits (07777).
    pub mode: Option<u16>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size: 0 starts a new generation; less than before sets `trim_from`; more leaves a hole.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// Clear set-id bits.
    pub clear_set_ids: bool,
}

/// Permission bits without set-user-id, and without set-group-id if that means execution: what is left after a write or a change of
/// owner (Linux: `notify_change`).
pub fn without_set_ids(mode: u16) -> u16 {
    let set_group_id = if mode & 0o0010 != 0 { 0o2000 } else { 0 };
    mode & !(0o4000 | set_group_id)
}

/// Flags of `renameat2(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace what is at the target.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
}

/// Flags of `setxattr(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Create or replace.
    Set,
    /// `XATTR_CREATE`.
    Create,
    /// `XATTR_REPLACE`.
    Replace,
}

/// Read operations on a namespace; answered from a linearizable read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Query {
    /// One entry. Answer: `Entry`.
    Lookup {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: FileName,
    },
    /// Attributes. Answer: `Attributes`.
    GetAttributes {
        /// Of which inode.
        inode: InodeId,
    },
    /// Entries after a position, in stable order. Answer: `Directory`.
    ReadDirectory {
        /// Directory.
        inode: InodeId,
        /// Position after which to go on: 0 for the start, else the `cookie` of an entry seen before.
        after: u64,
        /// Entries wanted at the most (1 to 10,000).
        limit: u32,
        /// With the attributes of each (`readdirplus`).
        plus: bool,
    },
    /// Target of a symlink. Answer: `Bytes`.
    ReadLink {
        /// The symlink.
        inode: InodeId,
    },
    /// Value of an extended attribute. Answer: `Bytes`.
    GetXattr {
        /// Of which inode.
        inode: InodeId,
        /// Which attribute.
        name: Bytes,
    },
    /// Names of extended attributes. Answer: `Names`.
    ListXattrs {
        /// Of which inode.
        inode: InodeId,
    },
    /// Totals of the volume, for `statfs(2)`. Answer: `VolumeUsage`.
    StatVolume,
    /// Waits until `trim_from` of an inode is clear. Answer: `Attributes`.
    AwaitTrim {
        /// Of which inode.
        inode: InodeId,
    },
    /// A lock of another owner that is in the way of this one. Answer: `Conflict`.
    TestLock {
        /// On which inode.
        inode: InodeId,
        /// Which lock.
        lock: Lock,
    },
    /// Waits until nothing is in the way of a lock: a good moment to ask for it, and no more. Answer: `Done`, or `Deadlock`.
    AwaitLock {
        /// On which inode.
        inode: InodeId,
        /// Which lock.
        lock: Lock,
    },
}

/// Files in one `SetAccessTimes`. By eye: few messages for many files, each of them soon done.
pub const ACCESS_TIMES_MAX: usize = 256;

/// When a file was last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessTime {
    /// Which file.
    pub inode: InodeId,
    /// When.
    pub atime: Timestamp,
    /// Its time of the last change, as the reader knew it.
    pub ctime: Timestamp,
}

/// Changes of a namespace. Exactly once by `(session, sequence)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Mutation {
    /// Creates an inode and its entry. Answer: `Created`.
    Create {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: FileName,
        /// What.
        node: NewNode,
        /// Permission bits as asked for.
        mode: u16,
        /// Bits that are taken from them, unless the directory has a default access list: then that says what is granted.
        umask: u16,
        /// Owner.
        uid: u32,
        /// Group; a set-group-id directory overrides it (and a new sub-directory inherits the bit).
        gid: u32,
        /// `O_EXCL` and everything but `open(O_CREAT)`: an existing entry is `Exists`. Otherwise an existing entry is returned.
        exclusive: bool,
        /// The session opens the new (or existing) file: it is recorded as an opener, as by `Open`, if it does not cache.
        open: bool,
    },
    /// One more name for an inode that is not a directory. Answer: `Attributes` of the inode.
    Link {
        /// Which inode.
        inode: InodeId,
        /// Directory of the new name.
        parent: InodeId,
        /// The new name.
        name: FileName,
    },
    /// Removes an entry that is not a directory. Answer: `Removed`.
    Unlink {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: FileName,
        /// The inode that the client believes it removes, if that is open on this session: then it stays as an orphan with this opener.
        open: Option<InodeId>,
    },
    /// Removes an empty directory. Answer: `Removed`.
    RemoveDirectory {
        /// Directory it is in.
        parent: InodeId,
        /// Its name.
        name: FileName,
    },
    /// Renames. Answer: `Renamed`.
    Rename {
        /// Old directory.
        from_parent: InodeId,
        /// Old name.
        from_name: FileName,
        /// New directory.
        to_parent: InodeId,
        /// New name.
        to_name: FileName,
        /// What to do with an existing target.
        mode: RenameMode,
        /// As in `Unlink`, of the target that is replaced.
        open: Option<InodeId>,
    },
    /// Changes attributes, truncates. Answer: `Attributes`.
    SetAttributes {
        /// Of which inode.
        inode: InodeId,
        /// What to change.
        set: SetAttributes,
    },
    /// Asks to be allowed to write up to `bound` bytes (recorded as this session's bound). Waits while bytes of an ended
    /// session beyond `size`, or of a truncation, are still being removed. Answer: `Attributes`.
    Reserve {
        /// Which inode.
        inode: InodeId,
        /// Which content it means to write; another one is `Stale`.
        generation: Generation,
        /// End of what it means to write, at the most. Less is granted where the volume's limit is near.
        bound: u64,
        /// End of what it has to write; if the limit does not allow that much, the answer is `Quota`.
        least: u64,
    },
    /// Publishes that data up to `size` is durable: `size` becomes at least this. Answer: `Attributes`.
    Publish {
        /// Which inode.
        inode: InodeId,
        /// Which content; if a truncation has started another one in between, the size is left alone.
        generation: Generation,
        /// End of the durable bytes.
        size: u64,
        /// Time of the last write.
        mtime: Timestamp,
        /// The session gives its bound back: it has no un-flushed write beyond `size`.
        release: bool,
        /// Clear set-id bits (a write by somebody without privilege).
        clear_set_ids: bool,
        /// What was written leaves a hole.
        sparse: bool,
    },
    /// Files were read. A time counts only if it is later than the file's, and nobody has changed the file since the reader last heard
    /// of it: who sets a time by hand is not overruled by a read from before. Answer: `Done`.
    SetAccessTimes {
        /// At most [`ACCESS_TIMES_MAX`].
        times: Vec<AccessTime>,
    },
    /// Records the session as an opener, so that an unlink elsewhere keeps the inode. Needed only while not caching. Answer: `Attributes`.
    Open {
        /// Which inode.
        inode: InodeId,
    },
    /// The session's last handle is closed: forget the opener; an orphan without openers is purged. Answer: `Done`.
    Close {
        /// Which inode.
        inode: InodeId,
    },
    /// Sets an extended attribute. Answer: `Done`.
    SetXattr {
        /// Of which inode.
        inode: InodeId,
        /// Which attribute (1 to 255 bytes, no NUL).
        name: Bytes,
        /// Value (at most 64 KiB).
        value: Bytes,
        /// Whether it must, or must not, exist.
        mode: XattrMode,
    },
    /// Removes an extended attribute. Answer: `Done`.
    RemoveXattr {
        /// Of which inode.
        inode: InodeId,
        /// Which attribute.
        name: Bytes,
    },
    /// Creates a file without a name (`O_TMPFILE`) that the session has open: an orphan, which `Link` may give a name. Answer: `Created`.
    CreateUnnamed {
        /// Directory whose set-group-id bit and default list count.
        parent: InodeId,
        /// Permission bits as asked for.
        mode: u16,
        /// As in `Create`.
        umask: u16,
        /// Owner.
        uid: u32,
        /// Group, as in `Create`.
        gid: u32,
    },
    /// Sets an access control list, or removes it; mode and access list follow each other. Answer: `Attributes`.
    SetAcl {
        /// Of which inode.
        inode: InodeId,
        /// A directory's default list, not the access list.
        default: bool,
        /// The bytes of Linux's attribute.
        value: Option<Bytes>,
        /// The caller may not keep the set-group-id bit.
        clear_set_group_id: bool,
    },
    /// Sets a lock, changes one, or gives one back. Never waits. A whole-file lock that cannot be changed is lost, as on Linux.
    /// Answer: `Locked`.
    SetLock {
        /// On which inode.
        inode: InodeId,
        /// Which lock.
        lock: Lock,
    },
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: FileName,
    /// What it names.
    pub inode: InodeId,
    /// What that is.
    pub kind: FileKind,
    /// Position: ask for what comes after it. Stable while the entry lives; 1 and 2 are `.` and `..`, so it is 3 at the least.
    pub cookie: u64,
    /// Its attributes, if asked for.
    pub attributes: Option<Attributes>,
}

/// Totals of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUsage {
    /// Sum of the files' sizes rounded up to blocks, in bytes.
    pub bytes_used: u64,
    /// Inodes in use.
    pub inodes_used: u64,
    /// Bytes that the volume may use at the most: its quota, or what the pool holds after replication.
    pub bytes_max: u64,
    /// What of them is free: what its quota leaves, or what is free in the pool, whatever took the rest.
    pub bytes_free: u64,
    /// What can be written now: no more than `bytes_free`, and no more than the pool has room for.
    pub bytes_available: u64,
    /// Inodes at the most.
    pub inodes_max: u64,
}

/// A right to cache what an answer holds. Always absent today: the grain is the volume until leases exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Exclusive rather than shared.
    pub exclusive: bool,
    /// Term of the leader that granted it.
    pub term: holdfast_types::Term,
    /// Map version it was granted under.
    pub map_min: holdfast_types::MapVersion,
    /// Snapshot number it was granted under.
    pub snapshot: holdfast_types::SnapshotNumber,
}

/// Results of queries and mutations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to say.
    Done,
    /// An entry was found.
    Entry {
        /// What it names.
        attributes: Attributes,
        /// Right to cache.
        lease: Option<Lease>,
    },
    /// Attributes as they are after the operation.
    Attributes {
        /// The attributes.
        attributes: Attributes,
        /// Right to cache.
        lease: Option<Lease>,
    },
    /// Created, or found by a non-exclusive create.
    Created {
        /// Of the inode.
        attributes: Attributes,
        /// False: it was there before.
        new: bool,
        /// It was made with access lists of its directory's: what its extended attributes are is not known to whoever made it.
        inherited: bool,
        /// Right to cache.
        lease: Option<Lease>,
    },
    /// Removed.
    Removed {
        /// The inode that lost a name, as it is now; `links` 0 means that it is gone or an orphan.
        attributes: Attributes,
        /// Kept because somebody has it open.
        orphan: bool,
    },
    /// Renamed.
    Renamed {
        /// The inode that moved.
        moved: Attributes,
        /// What was replaced (or exchanged), as it is now.
        replaced: Option<Attributes>,
        /// The replaced inode is kept because somebody has it open.
        orphan: bool,
    },
    /// Entries.
    Directory {
        /// In order.
        entries: Vec<DirectoryEntry>,
        /// Nothing comes after the last one.
        end: bool,
        /// The directory's own parent, for `..`.
        parent: InodeId,
        /// Right to cache.
        lease: Option<Lease>,
    },
    /// A symlink's target or an attribute's value.
    Bytes(Bytes),
    /// Names.
    Names(Vec<Bytes>),
    /// Totals.
    Usage(VolumeUsage),
    /// A lock was asked for, or given back.
    Locked {
        /// It was not granted: a lock of this session is in the way.
        in_the_way: Option<SessionId>,
        /// The owner had locks there before: giving back what was granted now would take more than that.
        replaced: bool,
    },
    /// Who is in the way of a lock, if anybody is.
    Conflict(Option<HeldLock>),
}

/// Why the namespace refuses; each has one errno, chosen in `fuse-client/src/errno.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NamespaceError {
    /// ENOENT
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST
    #[error("file exists")]
    Exists,
    /// ENOTDIR
    #[error("not a directory")]
    NotDirectory,
    /// EISDIR
    #[error("is a directory")]
    IsDirectory,
    /// ENOTEMPTY
    #[error("directory not empty")]
    NotEmpty,
    /// EINVAL: a directory moved into itself, a wrong kind of inode, a bad argument.
    #[error("invalid argument")]
    Invalid,
    /// EPERM: a hard link to a directory.
    #[error("operation not permitted")]
    NotPermitted,
    /// EMLINK
    #[error("too many links")]
    TooManyLinks,
    /// EFBIG
    #[error("file too large")]
    TooLarge,
    /// ENODATA: no such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// ENOSPC
    #[error("no space left")]
    NoSpace,
    /// EDQUOT
    #[error("quota exceeded")]
    Quota,
    /// ENAMETOOLONG
    #[error("name too long")]
    NameTooLong,
    /// EROFS: the session is read-only.
    #[error("read-only session")]
    ReadOnly,
    /// ESTALE: the inode is gone, or its content was replaced.
    #[error("stale inode or content")]
    Stale,
    /// EDEADLK: to wait for this lock would be to wait for oneself.
    #[error("locks would wait for each other for ever")]
    Deadlock,
    /// ENOLCK
    #[error("too many locks")]
    TooManyLocks,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Its id, never reused.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Number of groups its chunks are spread over, fixed at creation.
    pub groups: u32,
    /// Version of the placement function.
    pub placement_version: u32,
    /// Present snapshot number.
    pub snapshot: holdfast_types::SnapshotNumber,
    /// Volume and snapshot it was cloned from, if any.
    pub origin: Option<(VolumeId, holdfast_types::SnapshotNumber)>,
    /// Bytes it may use at the most; `None`: as the pool allows.
    pub bytes_max: Option<u64>,
    /// Inodes at the most.
    pub inodes_max: Option<u64>,
    /// How often the two were changed.
    pub limits_version: u64,
    /// Shard of its namespace.
    pub shard: holdfast_types::ShardId,
}

/// What whoever manages volumes has noted down on one: names and values, which the service keeps and does not interpret. Names have 1 to 63
/// bytes, values up to [`LABEL_VALUE_BYTES_MAX`], both together up to [`LABELS_BYTES_MAX`].
pub type Labels = std::collections::BTreeMap<String, String>;

/// Bytes of a label's name, at the most: as in Kubernetes.
pub const LABEL_NAME_BYTES_MAX: usize = 63;
/// Bytes of a label's value, at the most.
pub const LABEL_VALUE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of all labels of a volume, at the most: every metadata server has them in memory.
pub const LABELS_BYTES_MAX: usize = 16 * 1024;

/// A volume as whoever manages volumes sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFacts {
    /// The volume.
    pub record: VolumeRecord,
    /// How often its labels were changed.
    pub labels_version: u64,
    /// Its labels.
    pub labels: Labels,
}

/// What a volume may hold at the most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes: the sum of the files' sizes, rounded up to blocks, and of what may be written beyond them. `None`: as the pool allows.
    pub bytes: Option<u64>,
    /// Inodes. `None`: any number.
    pub inodes: Option<u64>,
}

impl VolumeRecord {
    /// Its limits.
    pub fn limits(&self) -> Limits {
        Limits { bytes: self.bytes_max, inodes: self.inodes_max }
    }
}

/// How a session is attached to its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which session.
    pub session: SessionId,
    /// It may cache names, attributes and data: it is alone.
    pub caching: bool,
}
