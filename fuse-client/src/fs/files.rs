//! Open files: open, create, read, write, close, allocate.

use super::names::permissions;
use super::{FileSystem, Volume, name_of, unexpected};
use crate::device::{Answer, Caller, Entry, OpenHints, Reply};
use crate::errno;
use crate::handles::ForWrite;
use bytes::Bytes;
use holdfast_client::{Call, ClientError, Durability, HandleId, OpenMode, Reply as Answered, Seek, ZeroMode};
use holdfast_types::InodeId;
use holdfast_types::limits::FILE_BYTES_MAX;
use holdfast_wire::namespace::{FileKind, NamespaceError, NewNode, SetAttributes, SetTime};
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;

/// `open(2)`: writes go to the end.
pub(super) const O_APPEND: u32 = libc::O_APPEND.cast_unsigned();
const O_EXCL: u32 = libc::O_EXCL.cast_unsigned();
const O_SYNC: u32 = libc::O_SYNC.cast_unsigned();
const O_DSYNC: u32 = libc::O_DSYNC.cast_unsigned();

/// What a write request says, its handle apart.
pub(super) struct Write {
    pub inode: InodeId,
    pub offset: u64,
    pub data: Bytes,
    pub clear_set_ids: bool,
}

fn open_mode(flags: u32) -> OpenMode {
    // O_SYNC contains the bit of O_DSYNC.
    let durable = match flags & O_SYNC {
        O_SYNC => Durability::Full,
        O_DSYNC => Durability::Data,
        _ => Durability::Buffered,
    };
    let write = flags & libc::O_ACCMODE.cast_unsigned() != libc::O_RDONLY.cast_unsigned();
    OpenMode { write, append: flags & O_APPEND != 0, durable }
}

/// Whether a file that is opened so may be mapped shared and writable.
fn may_map(flags: u32) -> bool {
    flags & libc::O_ACCMODE.cast_unsigned() == libc::O_RDWR.cast_unsigned()
}

impl<V: Volume> FileSystem<V> {
    pub(super) fn open(self: &Arc<Self>, reply: Reply, inode: InodeId, flags: u32) {
        let mode = open_mode(flags);
        self.ask(reply, Call::Open { inode, mode }, move |fs, reply, answered| match answered {
            Answered::Opened { handle, keep_cache, .. } => fs.answer_opened(reply, inode, handle, flags, keep_cache),
            _ => unexpected(reply),
        });
    }

    fn answer_opened(&self, reply: Reply, inode: InodeId, handle: HandleId, flags: u32, keep: bool) {
        let pass = self.pass();
        let hints = self.hints(&pass, inode, keep);
        let number = self.handles.opened(handle, inode, open_mode(flags), may_map(flags));
        reply.finish(Ok(Answer::Opened(number, hints)));
    }

    /// As above, of a file that was just made.
    fn answer_created(&self, reply: Reply, pass: &super::Pass<'_>, entry: Entry, handle: HandleId, flags: u32) {
        let inode = entry.attributes.inode;
        let hints = self.hints(pass, inode, false);
        let number = self.handles.opened(handle, inode, open_mode(flags), may_map(flags));
        reply.finish(Ok(Answer::Created(entry, number, hints)));
    }

    /// How the kernel is to treat a file's pages. While caching, those of this stretch of caching are still right; else they are
    /// bypassed.
    fn hints(&self, pass: &super::Pass<'_>, inode: InodeId, keep: bool) -> OpenHints {
        if pass.valid.is_zero() {
            return OpenHints { direct: true, keep_pages: false };
        }
        let same_stretch = self.known.opened_cached(inode, pass.gate.stretch);
        OpenHints { direct: false, keep_pages: keep && same_stretch }
    }

    /// `open(2)` of a name that the kernel looked up and did not find.
    pub(super) fn create(
        self: &Arc<Self>,
        reply: Reply,
        caller: Caller,
        parent: InodeId,
        name: &[u8],
        (mode, umask): (u32, u32),
        flags: u32,
    ) {
        let Some((name, reply)) = name_of(name, reply) else { return };
        let open = open_mode(flags);
        let call = Call::Create {
            parent,
            name: name.clone(),
            node: NewNode::File,
            mode: permissions(mode),
            umask: permissions(umask),
            uid: caller.uid,
            gid: caller.gid,
            // Always: the kernel has not checked the permissions of a file made by somebody else meanwhile. It is told to look again.
            exclusive: true,
            open: Some(open),
        };
        self.ask_all(reply, call, move |fs, reply, result| match result {
            Ok(Answered::Created { attributes, handle: Some(handle), .. }) if attributes.kind == FileKind::File => {
                let pass = fs.pass();
                let entry = fs.entry(&pass, parent, name.as_bytes(), attributes);
                fs.answer_created(reply, &pass, entry, handle, flags);
            }
            Ok(_) => unexpected(reply),
            Err(ClientError::Namespace(NamespaceError::Exists)) if flags & O_EXCL == 0 => reply.error(Errno::STALE),
            Err(error) => reply.error(errno::of_client(&error)),
        });
    }

    /// `open(2)` with `O_TMPFILE`.
    pub(super) fn create_unnamed(
        self: &Arc<Self>,
        reply: Reply,
        caller: Caller,
        parent: InodeId,
        (mode, umask): (u32, u32),
        flags: u32,
    ) {
        let open = open_mode(flags);
        let (mode, umask, uid, gid) = (permissions(mode), permissions(umask), caller.uid, caller.gid);
        let call = Call::CreateUnnamed { parent, mode, umask, uid, gid, open };
        self.ask(reply, call, move |fs, reply, answered| match answered {
            Answered::Created { attributes, handle: Some(handle), .. } => {
                let pass = fs.pass();
                fs.known.looked_up(&attributes, pass.valid);
                let entry = Entry { attributes, name_valid: Duration::ZERO, attributes_valid: pass.valid };
                fs.answer_created(reply, &pass, entry, handle, flags);
            }
            _ => unexpected(reply),
        });
    }

    pub(super) fn read(self: &Arc<Self>, reply: Reply, handle: u64, offset: u64, size: u32) {
        let call = Call::Read { handle: HandleId(handle), offset, length: size };
        self.ask(reply, call, |_, reply, answered| match answered {
            Answered::Data(data) => reply.finish(Ok(Answer::Data(data.pieces))),
            _ => unexpected(reply),
        });
    }

    /// `lseek(2)` for data or a hole. (The kernel does the other kinds.) Bytes that were written through a mapping and have not been
    /// handed to us yet are no holes: the kernel is made to hand them over first, by a thread that serves no request.
    pub(super) fn seek(self: &Arc<Self>, reply: Reply, inode: InodeId, handle: u64, offset: u64, whence: u32) {
        let seek = match whence.cast_signed() {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::INVAL),
        };
        let call = Call::Seek { handle: HandleId(handle), offset, seek };
        let then = |fs: &Arc<Self>, reply: Reply| {
            fs.ask(reply, call, |_, reply, answered| match answered {
                Answered::Position(Some(at)) => reply.finish(Ok(Answer::Offset(at))),
                Answered::Position(None) => reply.error(Errno::NXIO),
                _ => unexpected(reply),
            });
        };
        if !self.handles.may_be_mapped(inode) {
            return then(self, reply);
        }
        let fs = self.clone();
        let hand_over = move || {
            if let Some(kernel) = fs.kernel.get() {
                kernel.forget_inode(inode);
            }
            then(&fs, reply);
        };
        // Without a thread the request is dropped, and answered with an error by that.
        if let Err(error) = std::thread::Builder::new().name("seek".into()).spawn(hand_over) {
            tracing::warn!(%error, "no thread to look for holes of a mapped file");
        }
    }

    pub(super) fn write(self: &Arc<Self>, reply: Reply, number: u64, append: bool, write: Write) {
        if !append && write.offset.saturating_add(write.data.len() as u64) > FILE_BYTES_MAX {
            return reply.error(Errno::FBIG);
        }
        match self.handles.for_write(number, append) {
            ForWrite::Ready(handle) => self.write_through(reply, handle, write),
            ForWrite::Unknown => reply.error(Errno::BADF),
            ForWrite::Open(inode, mode) => self.ask(reply, Call::Open { inode, mode }, move |fs, reply, answered| {
                let Answered::Opened { handle: made, .. } = answered else { return unexpected(reply) };
                let (usable, surplus) = fs.handles.set_other(number, made);
                if let Some(surplus) = surplus {
                    fs.release_handle(surplus);
                }
                match usable {
                    Some(handle) => fs.write_through(reply, handle, write),
                    None => reply.error(Errno::BADF),
                }
            }),
        }
    }

    fn write_through(self: &Arc<Self>, reply: Reply, handle: HandleId, write: Write) {
        let Write { inode, offset, data, clear_set_ids } = write;
        let call = Call::Write { handle, offset, data, clear_set_ids };
        self.ask(reply, call, move |fs, reply, answered| {
            let Answered::Written { length, .. } = answered else { return unexpected(reply) };
            if clear_set_ids {
                fs.set_ids_cleared(inode);
            }
            reply.finish(Ok(Answer::Written(length)));
        });
    }

    pub(super) fn flush(self: &Arc<Self>, reply: Reply, inode: InodeId, handle: u64, owner: u64) {
        let flush = Call::Flush { handle: HandleId(handle) };
        match self.lockers.closed(inode, owner) {
            None => self.ask_done(reply, flush),
            Some(lock) => self.unlock_then(reply, inode, lock, flush),
        }
    }

    pub(super) fn release(self: &Arc<Self>, reply: Reply, inode: InodeId, number: u64) {
        self.unlock_released(inode, number);
        for handle in self.handles.closed(number) {
            self.release_handle(handle);
        }
        reply.done();
    }

    fn release_handle(&self, handle: HandleId) {
        self.volume.call(
            Call::Release { handle },
            Box::new(|result| {
                if let Err(error) = result {
                    tracing::debug!(%error, "release failed");
                }
            }),
        );
    }

    /// `fallocate(2)`. Space is not reserved ahead; what can be done right is growing the file and zeroing a range.
    pub(super) fn allocate(
        self: &Arc<Self>,
        reply: Reply,
        caller: Caller,
        (inode, handle): (InodeId, u64),
        range: (u64, u64),
        mode: u32,
    ) {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE.cast_unsigned();
        const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE.cast_unsigned() | KEEP_SIZE;
        const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE.cast_unsigned();
        const ZERO_KEEP: u32 = ZERO_RANGE | KEEP_SIZE;
        let (offset, length) = range;
        let Some(end) = offset.checked_add(length).filter(|end| *end <= FILE_BYTES_MAX && length > 0) else {
            return reply.error(Errno::FBIG);
        };
        let handle = HandleId(handle);
        let (call, grow_to) = match mode {
            // Space is not reserved, so nothing is left to do where the size stays but to say when.
            KEEP_SIZE => (None, None),
            0 => (None, Some(end)),
            PUNCH_HOLE | ZERO_KEEP => (Some(Call::Zero { handle, offset, length, mode: ZeroMode::KeepSize }), None),
            ZERO_RANGE => (Some(Call::Zero { handle, offset, length, mode: ZeroMode::Extend }), None),
            _ => return reply.error(Errno::OPNOTSUPP),
        };
        let then = move |fs: &Arc<Self>, reply: Reply| match (call, grow_to) {
            (Some(call), _) => fs.ask_done(reply, call),
            (None, Some(end)) => fs.grow(reply, inode, handle, end),
            (None, None) => fs.touch(reply, inode),
        };
        if caller.uid == 0 { then(self, reply) } else { self.clear_set_ids_then(reply, inode, then) }
    }

    /// A change by somebody without privilege takes set-id bits, and for `fallocate` the kernel leaves that to us.
    fn clear_set_ids_then(
        self: &Arc<Self>,
        reply: Reply,
        inode: InodeId,
        then: impl FnOnce(&Arc<Self>, Reply) + Send + 'static,
    ) {
        const SET_IDS: u16 = 0o6000;
        self.ask(reply, Call::GetAttributes { inode }, move |fs, reply, answered| match answered {
            Answered::Attributes(attributes) if attributes.mode & SET_IDS == 0 => then(fs, reply),
            Answered::Attributes(_) => {
                let set = SetAttributes { clear_set_ids: true, ..SetAttributes::default() };
                fs.ask(reply, Call::SetAttributes { inode, set }, move |fs, reply, _| {
                    fs.set_ids_cleared(inode);
                    then(fs, reply);
                });
            }
            _ => unexpected(reply),
        });
    }

    /// A change that changes no byte is one all the same: its time is the file's, as on every local file system.
    fn touch(self: &Arc<Self>, reply: Reply, inode: InodeId) {
        let set = SetAttributes { mtime: Some(SetTime::Now), ..SetAttributes::default() };
        self.ask_done(reply, Call::SetAttributes { inode, set });
    }

    /// Makes a file at least `end` bytes long. Not by setting its size, which would cut what another host appends meanwhile: its
    /// last byte is made to read as zero, if the file does not reach that far.
    fn grow(self: &Arc<Self>, reply: Reply, inode: InodeId, handle: HandleId, end: u64) {
        self.ask(reply, Call::GetAttributes { inode }, move |fs, reply, answered| match answered {
            Answered::Attributes(attributes) if attributes.size >= end => fs.touch(reply, inode),
            Answered::Attributes(_) => {
                fs.ask_done(reply, Call::Zero { handle, offset: end - 1, length: 1, mode: ZeroMode::Extend });
            }
            _ => unexpected(reply),
        });
    }
}
