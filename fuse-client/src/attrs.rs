//! Attributes as `stat(2)` shows them.
//!
//! The kernel checks permissions with what is said here (`default_permissions`), so kind, mode, owner and group must be right.

use holdfast_wire::namespace::{Attributes, FileKind};

/// `st_blksize`: what programs take as the best size of a read or write. Each costs a FUSE request of 30-45 us, because the
/// kernel's write-back cache is off, and C's and Python's buffered files use exactly this size; 64 KiB make that cost small
/// beside the copy and still waste little on a file read at random. (`statfs` counts in 4 KiB blocks all the same.)
pub const BLOCK_SIZE_SHOWN: u32 = 64 * 1024;

/// Block size that `statfs(2)` counts in.
pub const BLOCK_SIZE_COUNTED: u64 = 4096;

/// `st_blocks`: 512-byte units. How much of a file is holes only the storage nodes know. One block less than its size takes says that
/// it may have some: cp(1) and tar(1) look for holes only then. Never none: that would say that there is nothing to read.
pub fn blocks(attributes: &Attributes) -> u64 {
    match attributes.kind {
        FileKind::File | FileKind::Symlink => {
            let all = attributes.size.div_ceil(512);
            let block = BLOCK_SIZE_COUNTED / 512;
            if attributes.sparse && all > block { (all - block).max(block) } else { all }
        }
        FileKind::Directory | FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => 0,
    }
}

/// The kind's bits of `st_mode`.
pub const fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

/// `st_mode`: kind and permissions.
pub fn mode(attributes: &Attributes) -> u32 {
    kind_bits(attributes.kind) | u32::from(attributes.mode & 0o7777)
}
