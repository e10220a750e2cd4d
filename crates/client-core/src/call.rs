//! What a file system asks of the cluster, and what it gets: the whole file-system object as values.
//!
//! The kernel (or whoever calls) has checked permissions; the core does not. Every call but [`Call::Mount`] waits until the session
//! is attached. Answers of namespace mutations are durable on a majority of metadata servers when they are given.

use bytes::{Bytes, BytesMut};
use holdfast_types::{FileName, InodeId, SessionId};
use holdfast_wire::lock::{HeldLock, Lock};
use holdfast_wire::namespace::{
    Attributes, DirectoryEntry, NewNode, RenameMode, SetAttributes, VolumeRecord, VolumeUsage, XattrMode,
};
use holdfast_wire::open::Access;

/// Names a call, chosen by the caller; unique among the calls not yet completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Names an open file of this client. Never reused within a client's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandleId(pub u64);

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// `O_WRONLY` or `O_RDWR`: it counts for who else may have the file open (see [`holdfast_wire::open`]).
    pub write: bool,
    /// `O_APPEND`: every write goes to the end as it is when the write is made.
    pub append: bool,
    /// `O_SYNC` or `O_DSYNC`: every write is durable before it is answered.
    pub durable: Durability,
}

impl OpenMode {
    /// What the file is opened for.
    pub fn access(&self) -> Access {
        if self.write { Access::Write } else { Access::Read }
    }
}

/// What must be durable before a write is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Nothing: within the write-back delay it will be.
    #[default]
    Buffered,
    /// The bytes and a size that covers them (`O_DSYNC`).
    Data,
    /// Those and the times (`O_SYNC`).
    Full,
}

/// What `fallocate(2)` is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// The range reads as zeros; the size stays (`PUNCH_HOLE`, `ZERO_RANGE|KEEP_SIZE`).
    KeepSize,
    /// The range reads as zeros; the size grows to its end if it was less (`ZERO_RANGE`).
    Extend,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The first byte that is in no hole (`SEEK_DATA`).
    Data,
    /// The first hole; the end of the file is one (`SEEK_HOLE`).
    Hole,
}

/// One operation.
#[derive(Clone, Debug, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Call {
    /// Waits until the session is attached. Reply: `Mounted`.
    Mount,
    /// An entry. Reply: `Attributes`; `.` and `..` are the caller's business. Error: `NotFound`, which may be cached likewise.
    Lookup {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: FileName,
    },
    /// Attributes, with the size and times of writes that are still buffered. Reply: `Attributes`.
    GetAttributes {
        /// Of which inode.
        inode: InodeId,
    },
    /// Changes attributes; `size` truncates or extends. Reply: `Attributes`.
    SetAttributes {
        /// Of which inode.
        inode: InodeId,
        /// What to change.
        set: SetAttributes,
    },
    /// Creates an inode of any kind and its name. Reply: `Created`.
    Create {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: FileName,
        /// What.
        node: NewNode,
        /// Permission bits as asked for.
        mode: u16,
        /// Bits that are taken from them, unless the directory has a default access list.
        umask: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// An existing entry is an error (everything but `open(O_CREAT)` without `O_EXCL`).
        exclusive: bool,
        /// Open the file too.
        open: Option<OpenMode>,
    },
    /// Creates a file without a name and opens it (`O_TMPFILE`); `Link` may give it one. Reply: `Created`.
    CreateUnnamed {
        /// Directory whose set-group-id bit and default access list count.
        parent: InodeId,
        /// Permission bits as asked for.
        mode: u16,
        /// As in `Create`.
        umask: u16,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// How it is opened.
        open: OpenMode,
    },
    /// One more name. Reply: `Attributes` of the inode.
    Link {
        /// Which inode.
        inode: InodeId,
        /// Directory of the new name.
        parent: InodeId,
        /// The new name.
        name: FileName,
    },
    /// Removes a name that is not a directory's. An inode open here stays usable. Reply: `Done`.
    Unlink {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: FileName,
    },
    /// Removes an empty directory. Reply: `Done`.
    RemoveDirectory {
        /// Directory it is in.
        parent: InodeId,
        /// Its name.
        name: FileName,
    },
    /// Renames. A replaced inode that is open here stays usable. Reply: `Done`.
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
    },
    /// Target of a symlink. Reply: `Bytes`.
    ReadLink {
        /// The symlink.
        inode: InodeId,
    },
    /// Opens a file. Truncation (`O_TRUNC`) is a `SetAttributes` of its own. Waits for whoever has it open elsewhere and may not at the
    /// same time, if they do not live, or as long as the file's policy says; else the error is `Busy`. Reply: `Opened`.
    Open {
        /// Which file.
        inode: InodeId,
        /// How.
        mode: OpenMode,
    },
    /// The last descriptor of a handle is closed. Buffered bytes are not flushed by it. Reply: `Done`, on the spot.
    Release {
        /// The handle; not usable afterwards.
        handle: HandleId,
    },
    /// `close(2)` of one descriptor: reports, once, an error that was found since. Does not flush. Reply: `Done`.
    Flush {
        /// The handle.
        handle: HandleId,
    },
    /// Reads. Reply: `Data`, shorter than asked only at the end of the file.
    Read {
        /// The handle.
        handle: HandleId,
        /// First byte.
        offset: u64,
        /// Bytes wanted.
        length: u32,
    },
    /// Writes all the bytes, at `offset` or (`OpenMode::append`) at the end. The bytes are kept, not copied, when they are large.
    /// Reply: `Written`. While caching it is answered from memory unless the buffer is full or the handle is durable; else it is
    /// durable and its size published.
    Write {
        /// The handle.
        handle: HandleId,
        /// First byte; ignored with `append`.
        offset: u64,
        /// The bytes.
        data: Bytes,
        /// The writer lacks the privilege to keep set-id bits.
        clear_set_ids: bool,
    },
    /// Makes every byte that was written to the file before durable, and publishes its size (and, unless `data_only`, its times).
    /// On a directory it has nothing to do. Reply: `Done`.
    Fsync {
        /// The inode.
        inode: InodeId,
        /// `fdatasync(2)`.
        data_only: bool,
    },
    /// As `Fsync`, of every file. Reply: `Done`.
    SyncAll,
    /// Makes a range read as zeros. Reply: `Done`.
    Zero {
        /// The handle.
        handle: HandleId,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// What becomes of the size.
        mode: ZeroMode,
    },
    /// The first byte of data, or the first hole, at or after a position. A hole is one of whole blocks that were never written, or were
    /// made to read as zeros. Reply: `Position`.
    Seek {
        /// The handle.
        handle: HandleId,
        /// Where to begin.
        offset: u64,
        /// What to look for.
        seek: Seek,
    },
    /// Entries after a position. Reply: `Directory`.
    ReadDirectory {
        /// Directory.
        inode: InodeId,
        /// 0, or the `cookie` of an entry seen before. `.` and `..` (cookies 1 and 2) are the caller's business: pass 0 for them.
        after: u64,
        /// Entries wanted at the most.
        limit: u32,
        /// With attributes.
        plus: bool,
    },
    /// Value of an extended attribute. Reply: `Bytes`.
    GetXattr {
        /// Of which inode.
        inode: InodeId,
        /// Which.
        name: Bytes,
    },
    /// Names of extended attributes. Reply: `Names`.
    ListXattrs {
        /// Of which inode.
        inode: InodeId,
    },
    /// Sets an extended attribute. Reply: `Done`.
    SetXattr {
        /// Of which inode.
        inode: InodeId,
        /// Which.
        name: Bytes,
        /// Value.
        value: Bytes,
        /// Whether it must, or must not, exist.
        mode: XattrMode,
    },
    /// Removes an extended attribute. Reply: `Done`.
    RemoveXattr {
        /// Of which inode.
        inode: InodeId,
        /// Which.
        name: Bytes,
    },
    /// Sets an access control list, or removes it. Reply: `Done`.
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
    /// Sets, changes or gives back an advisory lock. Reply: `Locked`.
    SetLock {
        /// On which file.
        inode: InodeId,
        /// Which lock.
        lock: Lock,
        /// Do not answer before it is granted. (Error: `Deadlock`, if that could never be.)
        wait: bool,
    },
    /// Who is in the way of a lock. Reply: `Conflict`.
    TestLock {
        /// On which file.
        inode: InodeId,
        /// Which lock.
        lock: Lock,
    },
    /// Totals, for `statfs(2)`. Reply: `Usage`.
    StatVolume,
    /// Flushes everything, then ends the session. Later calls fail with `SessionOver`. Reply: `Done`.
    Unmount,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing to say.
    Done,
    /// The session is attached.
    Mounted {
        /// The volume.
        volume: VolumeRecord,
        /// The session.
        session: SessionId,
        /// The root.
        root: Attributes,
    },
    /// Attributes.
    Attributes(Attributes),
    /// A name was removed or moved. What lost its last name by that and is not kept, as it was last: nobody can ask for it again, but a
    /// kernel may still hold it (a directory somebody is in, a pipe that is open).
    Removed(Option<Box<Attributes>>),
    /// Created, or found by a call that is not exclusive.
    Created {
        /// Its attributes.
        attributes: Attributes,
        /// False: it was there before.
        new: bool,
        /// Handle, if opening was asked for and it is a file.
        handle: Option<HandleId>,
    },
    /// Opened.
    Opened {
        /// The handle.
        handle: HandleId,
        /// Attributes at that time.
        attributes: Attributes,
        /// Pages that a kernel kept from before are still right.
        keep_cache: bool,
    },
    /// Bytes of a file.
    Data(Data),
    /// All were written.
    Written {
        /// Where the first byte went.
        offset: u64,
        /// How many.
        length: u32,
    },
    /// What was looked for is here; none: the position is at or beyond the end, or no data follows (ENXIO).
    Position(Option<u64>),
    /// Entries.
    Directory {
        /// In order of their cookies.
        entries: Vec<DirectoryEntry>,
        /// Nothing comes after the last one.
        end: bool,
        /// The directory's own parent, for `..`.
        parent: InodeId,
    },
    /// A target or a value.
    Bytes(Bytes),
    /// Names.
    Names(Vec<Bytes>),
    /// Totals.
    Usage(VolumeUsage),
    /// Whether a lock was granted; false: another owner's is in the way.
    Locked {
        /// It was.
        granted: bool,
    },
    /// A lock that is in the way.
    Conflict(Option<HeldLock>),
}

/// Bytes that were read, in consecutive pieces as they lay in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data {
    /// The pieces, in order.
    pub pieces: Vec<Bytes>,
}

impl Data {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.iter().all(Bytes::is_empty)
    }

    /// The bytes in one run: copies only when there is more than one piece.
    pub fn into_bytes(self) -> Bytes {
        if self.pieces.len() <= 1 {
            return self.pieces.into_iter().next().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(self.len());
        for piece in &self.pieces {
            whole.extend_from_slice(piece);
        }
        whole.freeze()
    }
}
