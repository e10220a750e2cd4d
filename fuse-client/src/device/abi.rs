//! Numbers of the kernel's FUSE protocol (`include/uapi/linux/fuse.h`), version 7.
//!
//! The protocol is in the host's byte order: both ends are on one machine.

/// Major version we speak.
pub const MAJOR: u32 = 7;
/// Minor version we say we speak.
pub const MINOR: u32 = 40;
/// Oldest minor version we accept (Linux 5.4).
pub const MINOR_LEAST: u32 = 31;
/// From this minor version on the kernel forgets all names at once when told `INC_EPOCH` (Linux 6.16).
pub const MINOR_EPOCH: u32 = 44;

/// Bytes before every request.
pub const IN_HEADER_BYTES: usize = 40;
/// Bytes before every answer.
pub const OUT_HEADER_BYTES: usize = 16;
/// Bytes of a write request before its data, headers included.
pub const WRITE_HEADER_BYTES: usize = IN_HEADER_BYTES + 40;

macro_rules! numbers {
    ($type:ty: $($name:ident = $value:expr),+ $(,)?) => { $(#[allow(missing_docs)] pub const $name: $type = $value;)+ };
}

/// What is asked.
pub mod op {
    numbers!(u32:
        LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9, UNLINK = 10,
        RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17, RELEASE = 18, FSYNC = 20,
        SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25, INIT = 26, OPENDIR = 27,
        READDIR = 28, RELEASEDIR = 29, FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33, ACCESS = 34, CREATE = 35, INTERRUPT = 36,
        BMAP = 37, DESTROY = 38, IOCTL = 39, POLL = 40, NOTIFY_REPLY = 41, BATCH_FORGET = 42, FALLOCATE = 43, READDIRPLUS = 44,
        RENAME2 = 45, LSEEK = 46, COPY_FILE_RANGE = 47, SETUPMAPPING = 48, REMOVEMAPPING = 49, SYNCFS = 50, TMPFILE = 51,
        STATX = 52, COPY_FILE_RANGE_64 = 53, CUSE_INIT = 4096,
    );

    /// The greatest number of Linux 6.18 (FUSE 7.45), but for `CUSE_INIT`.
    pub const GREATEST: u32 = COPY_FILE_RANGE_64;

    /// What the kernel may ask, or could, and we do not do: answered `ENOSYS`. The reasons are in the module's parent.
    pub const UNSERVED: [u32; 9] =
        [BMAP, IOCTL, POLL, NOTIFY_REPLY, COPY_FILE_RANGE, SETUPMAPPING, REMOVEMAPPING, COPY_FILE_RANGE_64, CUSE_INIT];
}

/// What may be negotiated.
pub mod init {
    numbers!(u64:
        ASYNC_READ = 1, POSIX_LOCKS = 1 << 1, BIG_WRITES = 1 << 5, DONT_MASK = 1 << 6, FLOCK_LOCKS = 1 << 10, AUTO_INVAL_DATA = 1 << 12,
        DO_READDIRPLUS = 1 << 13, READDIRPLUS_AUTO = 1 << 14, ASYNC_DIO = 1 << 15, PARALLEL_DIROPS = 1 << 18,
        POSIX_ACL = 1 << 20,
        MAX_PAGES = 1 << 22, CACHE_SYMLINKS = 1 << 23, HANDLE_KILLPRIV_V2 = 1 << 28, SETXATTR_EXT = 1 << 29, INIT_EXT = 1 << 30,
        HAS_EXPIRE_ONLY = 1 << 35, DIRECT_IO_ALLOW_MMAP = 1 << 36,
    );
}

/// Which attributes a SETATTR carries.
pub mod set {
    numbers!(u32:
        MODE = 1, UID = 1 << 1, GID = 1 << 2, SIZE = 1 << 3, ATIME = 1 << 4, MTIME = 1 << 5, HANDLE = 1 << 6,
        ATIME_NOW = 1 << 7, MTIME_NOW = 1 << 8, KILL_SET_IDS = 1 << 11,
    );
}

/// GETATTR: through a handle.
pub const GETATTR_HANDLE: u32 = 1;
/// WRITE: from the page cache (a mapping), not from `write(2)`.
pub const WRITE_FROM_CACHE: u32 = 1;
/// WRITE: set-id bits are to be cleared.
pub const WRITE_KILL_SET_IDS: u32 = 1 << 2;
/// SETXATTR of an access list: the caller may not keep the set-group-id bit.
pub const SETXATTR_KILL_SET_GROUP_ID: u32 = 1;
/// GETLK, SETLK, SETLKW: a lock of `flock(2)`, not of `fcntl(2)`.
pub const LOCK_IS_FLOCK: u32 = 1;
/// FSYNC, FSYNCDIR: data only.
pub const FSYNC_DATA_ONLY: u32 = 1;

/// Answer to OPEN: bypass the page cache.
pub const FOPEN_DIRECT_IO: u32 = 1;
/// Answer to OPEN: cached pages are still right.
pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// Answer to OPEN: direct writes that do not extend the file may run in parallel.
pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// Notification: an inode's attributes and pages.
pub const NOTIFY_INVAL_INODE: i32 = 2;
/// Notification: a name.
pub const NOTIFY_INVAL_ENTRY: i32 = 3;
/// Notification: every name.
pub const NOTIFY_INC_EPOCH: i32 = 8;
/// INVAL_ENTRY: only let the name's timeout pass.
pub const EXPIRE_ONLY: u32 = 1;
