//! Bytes from the kernel → [`Request`].
//!
//! The kernel is trusted not to be hostile, yet nothing here panics or reads past the request: a short or odd request is
//! [`Malformed`] and answered `EIO`, so that one surprise does not end the mount. Requests recorded from a kernel are the unit tests;
//! `tests/fuzz` cuts, flips and replaces their bytes.
//!
//! Fields are taken one after the other in the header's order, as decision 0004 says why: no structure is laid over the bytes.

use super::abi::{self, op, set};
use super::protocol::{Caller, NewAttributes, Operation, Request, timestamp};
use bytes::Bytes;
use holdfast_types::InodeId;
use holdfast_wire::lock::{Lock, LockKind, LockSpace};
use holdfast_wire::namespace::SetTime;

/// A request that is shorter than its kind wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {unique} (opcode {opcode}) of {length} bytes is too short")]
pub struct Malformed {
    /// Number of the request, if it could be read; else 0.
    pub unique: u64,
    /// What it asked.
    pub opcode: u32,
    /// Its bytes.
    pub length: usize,
}

/// The fixed part before every request.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// What is asked.
    pub opcode: u32,
    /// Number of the request.
    pub unique: u64,
    /// Which inode.
    pub inode: InodeId,
    /// Who asks.
    pub caller: Caller,
}

/// A place in the request's bytes; every read moves it.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.take(8)?.try_into().ok()?))
    }

    /// Bytes up to a zero, which is skipped.
    fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let name = self.take(end)?;
        self.take(1)?;
        Some(name)
    }
}

/// Reads the header.
pub fn header(bytes: &[u8]) -> Option<Header> {
    let mut cursor = Cursor(bytes);
    let _length = cursor.u32()?;
    let opcode = cursor.u32()?;
    let unique = cursor.u64()?;
    let inode = InodeId(cursor.u64()?);
    let caller = Caller { uid: cursor.u32()?, gid: cursor.u32()?, pid: cursor.u32()? };
    let _extensions = cursor.u32()?;
    Some(Header { opcode, unique, inode, caller })
}

/// What an INIT request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// Protocol of the kernel.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Read-ahead that the kernel suggests, in bytes.
    pub readahead: u32,
    /// What the kernel offers.
    pub offered: u64,
}

/// Reads the body of an INIT request.
pub fn init(bytes: &[u8]) -> Option<Init> {
    let mut cursor = Cursor(bytes.get(abi::IN_HEADER_BYTES..)?);
    let (major, minor) = (cursor.u32()?, cursor.u32()?);
    let (readahead, low) = (cursor.u32()?, cursor.u32()?);
    let high = if u64::from(low) & abi::init::INIT_EXT != 0 { cursor.u32()? } else { 0 };
    Some(Init { major, minor, readahead, offered: u64::from(high) << 32 | u64::from(low) })
}

/// Reads a whole request. `payload` turns a write's data into bytes that outlive the buffer; `long_xattrs`: `SETXATTR_EXT` is
/// negotiated.
///
/// # Errors
/// [`Malformed`] when it is too short for what it asks.
pub fn request<'a>(
    bytes: &'a [u8],
    long_xattrs: bool,
    payload: &mut dyn FnMut(&[u8]) -> Bytes,
) -> Result<Request<'a>, Malformed> {
    let header = header(bytes).ok_or(Malformed { unique: 0, opcode: 0, length: bytes.len() })?;
    let mut body = Cursor(&bytes[abi::IN_HEADER_BYTES..]);
    let operation = match header.opcode {
        op::SETXATTR => set_xattr(&mut body, long_xattrs),
        opcode => operation(opcode, &mut body, payload),
    };
    let (unique, opcode, length) = (header.unique, header.opcode, bytes.len());
    let operation = operation.ok_or(Malformed { unique, opcode, length })?;
    Ok(Request { unique: header.unique, inode: header.inode, caller: header.caller, operation })
}

fn operation<'a>(opcode: u32, body: &mut Cursor<'a>, payload: &mut dyn FnMut(&[u8]) -> Bytes) -> Option<Operation<'a>> {
    Some(match opcode {
        op::LOOKUP => Operation::Lookup { name: body.name()? },
        op::FORGET => Operation::Forget { count: body.u64()? },
        op::BATCH_FORGET => batch_forget(body)?,
        op::GETATTR => {
            let (flags, _, handle) = (body.u32()?, body.u32()?, body.u64()?);
            Operation::GetAttributes { handle: (flags & abi::GETATTR_HANDLE != 0).then_some(handle) }
        }
        op::SETATTR => Operation::SetAttributes(new_attributes(body)?),
        op::READLINK => Operation::ReadLink,
        op::SYMLINK => Operation::Symlink { name: body.name()?, target: body.name()? },
        op::MKNOD => {
            let (mode, rdev, umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
            Operation::MakeNode { name: body.name()?, mode, umask, rdev }
        }
        op::MKDIR => {
            let (mode, umask) = (body.u32()?, body.u32()?);
            Operation::MakeDirectory { name: body.name()?, mode, umask }
        }
        op::UNLINK => Operation::Unlink { name: body.name()? },
        op::RMDIR => Operation::RemoveDirectory { name: body.name()? },
        op::RENAME | op::RENAME2 => rename(opcode, body)?,
        op::LINK => Operation::Link { inode: InodeId(body.u64()?), name: body.name()? },
        op::STATFS => Operation::StatFs,
        op::SYNCFS => Operation::SyncAll,
        op::DESTROY => Operation::Destroy,
        op::ACCESS => Operation::Access { mask: body.u32()? },
        op::INTERRUPT => Operation::Interrupt { unique: body.u64()? },
        op::GETXATTR => {
            let (size, _) = (body.u32()?, body.u32()?);
            Operation::GetXattr { name: body.name()?, size }
        }
        op::LISTXATTR => Operation::ListXattrs { size: body.u32()? },
        op::REMOVEXATTR => Operation::RemoveXattr { name: body.name()? },
        _ => return file_operation(opcode, body, payload),
    })
}

/// Operations on open files and directories.
fn file_operation<'a>(
    opcode: u32,
    body: &mut Cursor<'a>,
    payload: &mut dyn FnMut(&[u8]) -> Bytes,
) -> Option<Operation<'a>> {
    Some(match opcode {
        op::OPEN => {
            let (flags, _how) = (body.u32()?, body.u32()?);
            Operation::Open { flags }
        }
        op::CREATE => {
            let (flags, mode, umask, _how) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
            Operation::Create { name: body.name()?, mode, umask, flags }
        }
        op::TMPFILE => {
            let (flags, mode, umask, _how) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
            Operation::CreateUnnamed { mode, umask, flags }
        }
        op::STATX => {
            let (_how, _, _handle, _flags, _mask) = (body.u32()?, body.u32()?, body.u64()?, body.u32()?, body.u32()?);
            Operation::GetAllAttributes
        }
        op::READ | op::READDIR | op::READDIRPLUS => {
            let (handle, offset, size, _) = (body.u64()?, body.u64()?, body.u32()?, body.u32()?);
            let (_owner, flags) = (body.u64()?, body.u32()?);
            match opcode {
                op::READ => Operation::Read { handle, offset, size, flags },
                _ => Operation::ReadDirectory { handle, offset, size, plus: opcode == op::READDIRPLUS },
            }
        }
        op::WRITE => {
            let (handle, offset, size, how) = (body.u64()?, body.u64()?, body.u32()?, body.u32()?);
            let (_owner, flags, _) = (body.u64()?, body.u32()?, body.u32()?);
            let data = payload(body.take(size as usize)?);
            let from_cache = how & abi::WRITE_FROM_CACHE != 0;
            let kill_set_ids = how & abi::WRITE_KILL_SET_IDS != 0;
            Operation::Write { handle, offset, data, flags, from_cache, kill_set_ids }
        }
        op::RELEASE => Operation::Release { handle: body.u64()? },
        op::RELEASEDIR => Operation::ReleaseDirectory { handle: body.u64()? },
        op::FLUSH => {
            let (handle, _, owner) = (body.u64()?, body.u64()?, body.u64()?);
            Operation::Flush { handle, owner }
        }
        op::GETLK | op::SETLK | op::SETLKW => lock(opcode, body)?,
        op::FSYNC | op::FSYNCDIR => {
            let (handle, how) = (body.u64()?, body.u32()?);
            let data_only = how & abi::FSYNC_DATA_ONLY != 0;
            match opcode {
                op::FSYNC => Operation::Fsync { handle, data_only },
                _ => Operation::FsyncDirectory { handle, data_only },
            }
        }
        op::OPENDIR => Operation::OpenDirectory { flags: body.u32()? },
        op::FALLOCATE => {
            let (handle, offset, length) = (body.u64()?, body.u64()?, body.u64()?);
            Operation::Allocate { handle, offset, length, mode: body.u32()? }
        }
        op::LSEEK => Operation::Seek { handle: body.u64()?, offset: body.u64()?, whence: body.u32()? },
        other => Operation::Unknown(other),
    })
}

fn set_xattr<'a>(body: &mut Cursor<'a>, long: bool) -> Option<Operation<'a>> {
    let (size, flags) = (body.u32()?, body.u32()?);
    let how = if long { (body.u32()?, body.u32()?).0 } else { 0 };
    let clear_set_group_id = how & abi::SETXATTR_KILL_SET_GROUP_ID != 0;
    Some(Operation::SetXattr { name: body.name()?, value: body.take(size as usize)?, flags, clear_set_group_id })
}

fn lock<'a>(opcode: u32, body: &mut Cursor<'a>) -> Option<Operation<'a>> {
    let (handle, owner) = (body.u64()?, body.u64()?);
    let (start, end, kind, pid) = (body.u64()?, body.u64()?, body.u32()?, body.u32()?);
    let space = if body.u32()? & abi::LOCK_IS_FLOCK != 0 { LockSpace::Whole } else { LockSpace::Range };
    let kind = match i32::try_from(kind).ok()? {
        libc::F_RDLCK => Some(LockKind::Shared),
        libc::F_WRLCK => Some(LockKind::Exclusive),
        libc::F_UNLCK => None,
        _ => return None,
    };
    let lock = Lock { space, owner, pid, start, end, kind };
    Some(match opcode {
        op::GETLK => Operation::TestLock { lock },
        _ => Operation::SetLock { handle, lock, wait: opcode == op::SETLKW },
    })
}

fn batch_forget<'a>(body: &mut Cursor<'a>) -> Option<Operation<'a>> {
    let (count, _) = (body.u32()?, body.u32()?);
    let mut forgotten = Vec::with_capacity(count.min(4096) as usize);
    for _ in 0..count {
        forgotten.push((InodeId(body.u64()?), body.u64()?));
    }
    Some(Operation::BatchForget(forgotten))
}

fn rename<'a>(opcode: u32, body: &mut Cursor<'a>) -> Option<Operation<'a>> {
    let to_parent = InodeId(body.u64()?);
    let flags = if opcode == op::RENAME2 { (body.u32()?, body.u32()?).0 } else { 0 };
    Some(Operation::Rename { name: body.name()?, to_parent, to_name: body.name()?, flags })
}

fn new_attributes(body: &mut Cursor<'_>) -> Option<NewAttributes> {
    let (valid, _) = (body.u32()?, body.u32()?);
    let (handle, size, _owner) = (body.u64()?, body.u64()?, body.u64()?);
    let (atime, mtime, _ctime) = (body.u64()?, body.u64()?, body.u64()?);
    let (atime_nanos, mtime_nanos, _ctime_nanos) = (body.u32()?, body.u32()?, body.u32()?);
    let (mode, _, uid, gid) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let time = |present: u32, now: u32, seconds: u64, nanos: u32| {
        has(present).then(|| if has(now) { SetTime::Now } else { SetTime::At(timestamp(seconds, nanos)) })
    };
    Some(NewAttributes {
        mode: has(set::MODE).then_some(mode),
        uid: has(set::UID).then_some(uid),
        gid: has(set::GID).then_some(gid),
        size: has(set::SIZE).then_some(size),
        atime: time(set::ATIME, set::ATIME_NOW, atime, atime_nanos),
        mtime: time(set::MTIME, set::MTIME_NOW, mtime, mtime_nanos),
        handle: has(set::HANDLE).then_some(handle),
        kill_set_ids: has(set::KILL_SET_IDS),
    })
}
