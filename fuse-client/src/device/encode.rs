//! [`Answer`] → bytes for the kernel.
//!
//! Structures are written field by field in the header's order, in the host's byte order.

use super::abi::{self, OUT_HEADER_BYTES};
use super::protocol::{Answer, Entry, Listed, OpenHints};
use crate::attrs;
use bytes::Bytes;
use holdfast_wire::lock::LockKind;
use holdfast_wire::namespace::{Attributes, VolumeUsage};
use std::time::Duration;

/// Bytes being put together.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn attributes(&mut self, a: &Attributes) {
        self.u64(a.inode.0).u64(a.size).u64(attrs::blocks(a));
        for time in [a.atime, a.mtime, a.ctime] {
            self.u64(time.seconds.cast_unsigned());
        }
        for time in [a.atime, a.mtime, a.ctime] {
            self.u32(time.nanos);
        }
        self.u32(attrs::mode(a)).u32(a.links).u32(a.uid).u32(a.gid).u32(a.rdev);
        self.u32(attrs::BLOCK_SIZE_SHOWN).u32(0);
    }

    /// The kernel's `struct fuse_statx`.
    fn all_attributes(&mut self, a: &Attributes) {
        const MASK: u32 = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
        self.u32(MASK).u32(attrs::BLOCK_SIZE_SHOWN).u64(0);
        self.u32(a.links).u32(a.uid).u32(a.gid);
        // Mode and a spare field of 16 bits each, in memory order.
        self.0.extend_from_slice(&(attrs::mode(a) as u16).to_ne_bytes());
        self.0.extend_from_slice(&[0; 2]);
        self.u64(a.inode.0).u64(a.size).u64(attrs::blocks(a)).u64(0);
        for time in [a.atime, a.btime, a.ctime, a.mtime] {
            self.u64(time.seconds.cast_unsigned()).u32(time.nanos).u32(0);
        }
        // Major and minor number, as the kernel packs them into 32 bits.
        self.u32(a.rdev >> 8 & 0xfff).u32(a.rdev & 0xff | a.rdev >> 12 & 0xfff00).u32(0).u32(0);
        for _ in 0..14 {
            self.u64(0);
        }
    }

    fn entry(&mut self, entry: &Entry) {
        self.u64(entry.attributes.inode.0).u64(0);
        self.u64(entry.name_valid.as_secs()).u64(entry.attributes_valid.as_secs());
        self.u32(entry.name_valid.subsec_nanos()).u32(entry.attributes_valid.subsec_nanos());
        self.attributes(&entry.attributes);
    }

    /// An entry without a node: "does not exist" as an answer, "not looked up" in a listing.
    fn no_entry(&mut self, valid: Duration) {
        self.u64(0).u64(0).u64(valid.as_secs()).u64(0).u32(valid.subsec_nanos()).u32(0);
        self.0.resize(self.0.len() + ATTRIBUTES_BYTES, 0);
    }

    fn opened(&mut self, handle: u64, mode: OpenHints) {
        let mut flags = 0;
        if mode.direct {
            flags |= abi::FOPEN_DIRECT_IO | abi::FOPEN_PARALLEL_DIRECT_WRITES;
        }
        if mode.keep_pages {
            flags |= abi::FOPEN_KEEP_CACHE;
        }
        self.u64(handle).u32(flags).u32(0);
    }

    fn usage(&mut self, usage: &VolumeUsage) {
        let blocks = |bytes: u64| bytes / attrs::BLOCK_SIZE_COUNTED;
        self.u64(blocks(usage.bytes_max)).u64(blocks(usage.bytes_free)).u64(blocks(usage.bytes_available));
        self.u64(usage.inodes_max).u64(usage.inodes_max.saturating_sub(usage.inodes_used));
        let block = attrs::BLOCK_SIZE_COUNTED as u32;
        self.u32(block).u32(holdfast_types::limits::NAME_BYTES_MAX as u32).u32(block).u32(0);
        for _ in 0..6 {
            self.u32(0);
        }
    }
}

/// Bytes of an inode's attributes.
const ATTRIBUTES_BYTES: usize = 88;
/// Bytes of an entry: six times and numbers, then attributes.
const ENTRY_BYTES: usize = 40 + ATTRIBUTES_BYTES;
/// Bytes of a directory entry before its name.
const DIRENT_BYTES: usize = 24;

/// An encoded answer: the fixed part, and data that is sent from where it lies.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Body without the header.
    pub body: Vec<u8>,
    /// Further bytes, sent after the body without being copied.
    pub data: Vec<Bytes>,
}

/// Encodes an answer's body.
pub fn answer(answer: Answer) -> Encoded {
    let mut w = Writer::default();
    let mut data = Vec::new();
    match answer {
        Answer::Done => {}
        Answer::Entry(entry) => w.entry(&entry),
        Answer::Absent(valid) => w.no_entry(valid),
        Answer::Attributes(attributes, valid) => {
            w.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0);
            w.attributes(&attributes);
        }
        Answer::AllAttributes(attributes, valid) => {
            w.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0).u64(0).u64(0);
            w.all_attributes(&attributes);
        }
        Answer::Data(pieces) => data = pieces,
        Answer::Opened(handle, mode) => w.opened(handle, mode),
        Answer::Created(entry, handle, mode) => {
            w.entry(&entry);
            w.opened(handle, mode);
        }
        Answer::Written(size) | Answer::XattrSize(size) => {
            w.u32(size).u32(0);
        }
        Answer::Usage(usage) => w.usage(&usage),
        Answer::Directory(buffer) => w.0 = buffer.bytes.0,
        Answer::Offset(offset) => {
            w.u64(offset);
        }
        Answer::Lock(conflict) => {
            let (start, end, pid) = conflict.map_or((0, 0, 0), |held| (held.start, held.end, held.pid));
            let kind = conflict.map_or(libc::F_UNLCK, |held| match held.kind {
                LockKind::Shared => libc::F_RDLCK,
                LockKind::Exclusive => libc::F_WRLCK,
            });
            w.u64(start).u64(end).u32(kind.cast_unsigned()).u32(pid);
        }
    }
    Encoded { body: w.0, data }
}

/// The header of an answer or, with `unique` 0, of a notification.
pub fn header(unique: u64, error: i32, body_bytes: usize) -> [u8; OUT_HEADER_BYTES] {
    let mut bytes = [0; OUT_HEADER_BYTES];
    let length = u32::try_from(OUT_HEADER_BYTES + body_bytes).expect("an answer is bounded by the request's size");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..8].copy_from_slice(&error.to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

/// What an answer to INIT says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitAnswer {
    /// What both sides do, from what the kernel offered.
    pub flags: u64,
    /// Largest read-ahead, in bytes.
    pub readahead: u32,
    /// Largest write, in bytes.
    pub write: u32,
    /// Requests that the kernel may have in the background (read-ahead, asynchronous direct I/O).
    pub background: u16,
}

/// Encodes the answer to INIT.
pub fn init(answer: &InitAnswer) -> Vec<u8> {
    let mut w = Writer::default();
    w.u32(abi::MAJOR).u32(abi::MINOR).u32(answer.readahead).u32(answer.flags as u32);
    w.0.extend_from_slice(&answer.background.to_ne_bytes());
    w.0.extend_from_slice(&(answer.background / 4 * 3).to_ne_bytes());
    let pages = u16::try_from(answer.write.div_ceil(4096)).unwrap_or(u16::MAX);
    w.u32(answer.write).u32(1);
    w.0.extend_from_slice(&pages.to_ne_bytes());
    w.0.extend_from_slice(&0u16.to_ne_bytes());
    w.u32((answer.flags >> 32) as u32);
    for _ in 0..7 {
        w.u32(0);
    }
    w.0
}

/// Entries of a directory, as many as fit the room that the kernel gave.
#[derive(Debug)]
pub struct DirectoryBuffer {
    bytes: Writer,
    size_max: usize,
    plus: bool,
}

impl DirectoryBuffer {
    /// An empty one for at most `size_max` bytes; `plus`: with attributes.
    pub fn new(size_max: u32, plus: bool) -> Self {
        let size_max = size_max as usize;
        Self { bytes: Writer(Vec::with_capacity(size_max.min(1 << 16))), size_max, plus }
    }

    /// With attributes?
    pub fn is_plus(&self) -> bool {
        self.plus
    }

    /// Entries that fit at the most, if their names are short: what is worth asking for.
    pub fn capacity(&self) -> u32 {
        let each = DIRENT_BYTES + 8 + if self.plus { ENTRY_BYTES } else { 0 };
        u32::try_from(self.size_max.saturating_sub(self.bytes.0.len()) / each).unwrap_or(u32::MAX).max(1)
    }

    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.0.is_empty()
    }

    /// Adds an entry; false, and nothing added, if it does not fit.
    pub fn add(&mut self, listed: &Listed<'_>) -> bool {
        let start = if self.plus { ENTRY_BYTES } else { 0 };
        let length = (start + DIRENT_BYTES + listed.name.len()).next_multiple_of(8);
        if self.bytes.0.len() + length > self.size_max {
            return false;
        }
        let end = self.bytes.0.len() + length;
        if self.plus {
            match listed.entry {
                Some(entry) => self.bytes.entry(entry),
                None => self.bytes.no_entry(Duration::ZERO),
            }
        }
        let name_length = u32::try_from(listed.name.len()).expect("a name has at most 255 bytes");
        let kind = attrs::kind_bits(listed.kind) >> 12;
        self.bytes.u64(listed.inode.0).u64(listed.cookie).u32(name_length).u32(kind);
        self.bytes.0.extend_from_slice(listed.name);
        self.bytes.0.resize(end, 0);
        true
    }
}

/// A notification's body: forget an inode's attributes and, from `offset` on, its pages (-1: only attributes).
pub fn inval_inode(inode: u64, offset: i64) -> Vec<u8> {
    let mut w = Writer::default();
    w.u64(inode).u64(offset.cast_unsigned()).u64(0);
    w.0
}

/// A notification's body: forget a name, or only let its timeout pass.
pub fn inval_entry(parent: u64, name: &[u8], expire_only: bool) -> Vec<u8> {
    let mut w = Writer::default();
    w.u64(parent).u32(name.len() as u32).u32(if expire_only { abi::EXPIRE_ONLY } else { 0 });
    w.0.extend_from_slice(name);
    w.0.push(0);
    w.0
}
