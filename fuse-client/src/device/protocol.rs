//! What the kernel asks and what it may be answered, as plain values: no bytes, no descriptors.
//!
//! The file system (`fs`) speaks only these types, so it can be tested without FUSE and served by another transport later.
//! Invariants:
//! * Names are raw bytes without the final zero; whether they are acceptable names is for the file system to say.
//! * Every operation but `Forget`, `BatchForget`, `Interrupt` gets exactly one answer.

use bytes::Bytes;
use holdfast_types::{InodeId, Timestamp};
use holdfast_wire::lock::{HeldLock, Lock};
use holdfast_wire::namespace::{Attributes, FileKind, SetTime, VolumeUsage};
use std::time::Duration;

/// On whose behalf the kernel asks. Zero for what the kernel does by itself (write-back of mapped pages).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Thread id, in the namespace of the mount's owner; 0 if it has none there.
    pub pid: u32,
}

/// A request of the kernel.
#[derive(Debug)]
pub struct Request<'a> {
    /// Number of the request; the answer names it.
    pub unique: u64,
    /// What it is about (the directory, for operations on a name).
    pub inode: InodeId,
    /// Who asks.
    pub caller: Caller,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// New attributes that `chmod`, `chown`, `utimensat` and `truncate` ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewAttributes {
    /// Mode; bits above 07777 carry the kind and are ignored.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Handle, when asked through an open file (`ftruncate`).
    pub handle: Option<u64>,
    /// The caller has no privilege to keep set-id bits over a change of size.
    pub kill_set_ids: bool,
}

/// What is asked. Flags are those of the system calls (`O_*`, `RENAME_*`, `XATTR_*`, `FALLOC_FL_*`).
#[derive(Debug)]
#[allow(missing_docs)] // fields repeat the system call's own words
pub enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    Forget {
        count: u64,
    },
    BatchForget(Vec<(InodeId, u64)>),
    GetAttributes {
        handle: Option<u64>,
    },
    SetAttributes(NewAttributes),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MakeNode {
        name: &'a [u8],
        mode: u32,
        umask: u32,
        rdev: u32,
    },
    MakeDirectory {
        name: &'a [u8],
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RemoveDirectory {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        to_parent: InodeId,
        to_name: &'a [u8],
        flags: u32,
    },
    Link {
        inode: InodeId,
        name: &'a [u8],
    },
    /// Without `O_TRUNC`: the truncation follows as a `SetAttributes`.
    Open {
        flags: u32,
    },
    Create {
        name: &'a [u8],
        mode: u32,
        umask: u32,
        flags: u32,
    },
    /// `O_TMPFILE`
    CreateUnnamed {
        mode: u32,
        umask: u32,
        flags: u32,
    },
    /// `statx(2)`, when it wants more than `stat(2)`.
    GetAllAttributes,
    Read {
        handle: u64,
        offset: u64,
        size: u32,
        flags: u32,
    },
    Write {
        handle: u64,
        offset: u64,
        data: Bytes,
        flags: u32,
        from_cache: bool,
        kill_set_ids: bool,
    },
    StatFs,
    /// `syncfs(2)`, where the kernel passes it on.
    SyncAll,
    Release {
        handle: u64,
    },
    /// `close(2)` of one descriptor; the owner's byte-range locks on the file end with it.
    Flush {
        handle: u64,
        owner: u64,
    },
    TestLock {
        lock: Lock,
    },
    SetLock {
        handle: u64,
        lock: Lock,
        wait: bool,
    },
    Fsync {
        handle: u64,
        data_only: bool,
    },
    SetXattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: u32,
        /// Of an access list: the caller may not keep the set-group-id bit.
        clear_set_group_id: bool,
    },
    GetXattr {
        name: &'a [u8],
        size: u32,
    },
    ListXattrs {
        size: u32,
    },
    RemoveXattr {
        name: &'a [u8],
    },
    OpenDirectory {
        flags: u32,
    },
    ReadDirectory {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    ReleaseDirectory {
        handle: u64,
    },
    FsyncDirectory {
        handle: u64,
        data_only: bool,
    },
    Access {
        mask: u32,
    },
    Allocate {
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    },
    Seek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    /// The request with this number was interrupted by a signal. Handled by the device.
    Interrupt {
        unique: u64,
    },
    /// The file system is gone. Handled by the device.
    Destroy,
    /// Something we do not do: answered `ENOSYS`, after which the kernel does without.
    Unknown(u32),
}

/// A name's answer: what it names and for how long the kernel may believe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Attributes of what is named.
    pub attributes: Attributes,
    /// How long the name may be taken to mean this inode.
    pub name_valid: Duration,
    /// How long the attributes may be used.
    pub attributes_valid: Duration,
}

/// How an opened file is to be treated by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHints {
    /// Reads and writes bypass the page cache (mappings are still allowed).
    pub direct: bool,
    /// Pages cached before this open are still right.
    pub keep_pages: bool,
}

/// An answer to an operation; errors are errno values beside it.
#[derive(Debug)]
pub enum Answer {
    /// Nothing to say.
    Done,
    /// A name was found or made.
    Entry(Entry),
    /// The name does not exist, and the kernel may believe so for this long.
    Absent(Duration),
    /// Attributes and how long they may be used.
    Attributes(Attributes, Duration),
    /// The same with the time of birth.
    AllAttributes(Attributes, Duration),
    /// File content in pieces, a symlink's target, an xattr's value, a list of names.
    Data(Vec<Bytes>),
    /// Opened.
    Opened(u64, OpenHints),
    /// Created and opened.
    Created(Entry, u64, OpenHints),
    /// Bytes written.
    Written(u32),
    /// Totals.
    Usage(VolumeUsage),
    /// Size of an extended attribute or of the list of names.
    XattrSize(u32),
    /// Entries of a directory.
    Directory(super::DirectoryBuffer),
    /// Position found.
    Offset(u64),
    /// A lock that is in the way, if one is; its process, if that is one of this host's.
    Lock(Option<HeldLock>),
}

/// One entry to be added to a [`super::DirectoryBuffer`].
#[derive(Debug)]
pub struct Listed<'a> {
    /// Its name; `.` and `..` too.
    pub name: &'a [u8],
    /// What it names.
    pub inode: InodeId,
    /// What that is.
    pub kind: FileKind,
    /// Position after it.
    pub cookie: u64,
    /// In a listing with attributes: what a lookup of the name would have answered; `None` leaves the kernel to look it up.
    pub entry: Option<&'a Entry>,
}

/// A time as the kernel sends it.
pub fn timestamp(seconds: u64, nanos: u32) -> Timestamp {
    // The field is unsigned in the protocol's header and carries a signed number.
    Timestamp { seconds: seconds.cast_signed(), nanos: nanos.min(999_999_999) }
}
