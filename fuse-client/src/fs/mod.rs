//! The file system's operations in plain Rust: what a request means in calls to the volume, and what its answer may promise.
//!
//! Testable without FUSE: requests and answers are values (`device::protocol`), the volume is a trait ([`Volume`]).
//!
//! Invariants:
//! * No operation waits. It is answered from memory before `serve` returns, or by the completion of a call.
//! * An answer with a timeout is recorded (`inodes`), read against the *gate* and sent in one go: [`FileSystem::stop_caching`] closes
//!   the gate for all, so no answer with a timeout is sent after the invalidation began.
//! * While the volume may not be cached, timeouts are zero and files are opened for direct I/O.
//! * A call that waits can be given up by a signal: at once if the caller is being killed or waits for a lock, soon if it is asked to
//!   end, else after [`INTERRUPT_PATIENCE`], for a program that only has a timer running does not expect `EINTR` from `mkdir`.
//!
//! Known limits, on purpose: what the kernel reads from its own cache sets no `atime`; a file mapped shared on
//! two hosts at once is coherent only through `msync` and a new mapping, pages already mapped being the documented exception.

mod attributes;
mod directories;
mod files;
mod locks;
mod names;
mod volume;
mod waiting;

pub use volume::{Done, Volume};
pub use waiting::INTERRUPT_PATIENCE;

use crate::device::{Answer, Entry, KernelCache, NewAttributes, Operation, Reply, Request, Service};
use crate::errno;
use crate::handles::Handles;
use crate::inodes::{Known, Name};
use crate::sync::{read, write};
use holdfast_client::{Call, ClientError, Reply as Answered};
use holdfast_types::{FileName, InodeId};
use holdfast_wire::acl::{ACCESS, DEFAULT};
use holdfast_wire::namespace::Attributes;
use locks::Lockers;
use rustix::io::Errno;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard};
use std::time::Duration;
use waiting::{Patience, Waiting};

/// Longest timeout given to the kernel, however long the lease: bounds what a stopped daemon can leave behind.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// Whether the kernel may cache.
#[derive(Clone, Copy, Debug)]
struct Gate {
    open: bool,
    /// Rises whenever the gate closes: pages cached in an earlier stretch are not trusted again.
    stretch: u64,
}

/// The file system of one mounted volume.
pub struct FileSystem<V> {
    volume: V,
    known: Known,
    handles: Handles,
    waiting: Waiting,
    lockers: Lockers,
    gate: RwLock<Gate>,
    kernel: OnceLock<Box<dyn KernelCache>>,
}

/// A file system behind the reference count that its completions need.
pub type Shared<V> = Arc<FileSystem<V>>;

/// The gate held open while an answer is built and sent, and how long that answer may be believed.
struct Pass<'a> {
    gate: RwLockReadGuard<'a, Gate>,
    valid: Duration,
}

impl<V: Volume> FileSystem<V> {
    /// The file system of a volume.
    pub fn new(volume: V) -> Shared<V> {
        Arc::new(Self {
            volume,
            known: Known::default(),
            handles: Handles::default(),
            waiting: Waiting::default(),
            lockers: Lockers::default(),
            gate: RwLock::new(Gate { open: true, stretch: 1 }),
            kernel: OnceLock::new(),
        })
    }

    /// The volume.
    pub fn volume(&self) -> &V {
        &self.volume
    }

    /// Says which kernel is served, once it is known; without one (in tests) nothing has to be forgotten.
    pub fn set_kernel(&self, kernel: impl KernelCache) {
        if self.kernel.set(Box::new(kernel)).is_err() {
            tracing::error!("a file system serves one mount");
        }
    }

    /// Closes the gate: answers carry timeout 0 from now on. Returns what the kernel may still believe, to be invalidated.
    pub fn stop_caching(&self) -> (Vec<InodeId>, Vec<Name>) {
        let mut gate = write(&self.gate);
        gate.open = false;
        gate.stretch += 1;
        self.known.take_cached()
    }

    /// Opens the gate.
    pub fn start_caching(&self) {
        write(&self.gate).open = true;
    }

    /// Gives up waiting calls whose callers are being killed or asked to end, or were interrupted long ago, and calls that must not
    /// take long. To be called a few times a second.
    pub fn sweep_interrupted(&self) {
        for call in self.waiting.overdue() {
            self.volume.cancel(call);
        }
    }

    /// Inodes that the kernel knows, and open files: for metrics.
    pub fn counts(&self) -> (usize, usize) {
        (self.known.inode_count(), self.handles.count())
    }

    /// Requests that wait for a call.
    pub fn waiting_count(&self) -> usize {
        self.waiting.count()
    }

    /// Starts a call for a request. An error answers the request; success is handed to `then`, which may ask further.
    fn ask(
        self: &Arc<Self>,
        reply: Reply,
        call: Call,
        then: impl FnOnce(&Arc<Self>, Reply, Answered) + Send + 'static,
    ) {
        self.ask_within(reply, call, Patience::Long, then);
    }

    /// As `ask`, for a call that is given up sooner than others.
    fn ask_within(
        self: &Arc<Self>,
        reply: Reply,
        call: Call,
        patience: Patience,
        then: impl FnOnce(&Arc<Self>, Reply, Answered) + Send + 'static,
    ) {
        self.ask_patiently(reply, call, patience, |fs, reply, result| match result {
            Ok(answered) => then(fs, reply, answered),
            Err(error) => reply.error(errno::of_client(&error)),
        });
    }

    /// As `ask`, errors included.
    fn ask_all(
        self: &Arc<Self>,
        reply: Reply,
        call: Call,
        then: impl FnOnce(&Arc<Self>, Reply, Result<Answered, ClientError>) + Send + 'static,
    ) {
        self.ask_patiently(reply, call, Patience::Long, then);
    }

    /// As `ask_all`, for a call that is given up sooner than others.
    fn ask_patiently(
        self: &Arc<Self>,
        reply: Reply,
        call: Call,
        patience: Patience,
        then: impl FnOnce(&Arc<Self>, Reply, Result<Answered, ClientError>) + Send + 'static,
    ) {
        let unique = reply.unique();
        let killed = self.waiting.begin(unique, reply.pid(), patience);
        // A call that follows belongs to the same request: a signal that came is not forgotten in between. A panic ends it, too.
        let ended = Ended { fs: self.clone(), unique };
        let id = self.volume.call(call, Box::new(move |result| then(&ended.fs, reply, result)));
        self.waiting.started(unique, id);
        if killed {
            self.volume.cancel(id);
        }
    }

    /// A call whose answer has no value.
    fn ask_done(self: &Arc<Self>, reply: Reply, call: Call) {
        self.ask(reply, call, |_, reply, _| reply.done());
    }

    fn pass(&self) -> Pass<'_> {
        let gate = read(&self.gate);
        let valid = if gate.open { self.volume.cache_ttl().min(TIMEOUT_MAX) } else { Duration::ZERO };
        Pass { gate, valid }
    }

    /// An answer that names an inode; recorded, not yet sent.
    fn entry(&self, pass: &Pass<'_>, parent: InodeId, name: &[u8], attributes: Attributes) -> Entry {
        self.known.looked_up(&attributes, pass.valid);
        let name_valid = if self.known.told_name(parent, name, pass.valid) { pass.valid } else { Duration::ZERO };
        Entry { attributes, name_valid, attributes_valid: pass.valid }
    }

    fn answer_entry(&self, reply: Reply, parent: InodeId, name: &FileName, attributes: Attributes) {
        let pass = self.pass();
        let entry = self.entry(&pass, parent, name.as_bytes(), attributes);
        reply.finish(Ok(Answer::Entry(entry)));
    }

    fn answer_attributes(&self, reply: Reply, attributes: Attributes) {
        let pass = self.pass();
        self.known.told_attributes(&attributes, pass.valid);
        reply.finish(Ok(Answer::Attributes(attributes, pass.valid)));
    }

    /// A write took the set-id bits, which its answer does not tell: the kernel is to ask again.
    fn set_ids_cleared(&self, inode: InodeId) {
        if self.known.set_ids_cleared(inode)
            && let Some(kernel) = self.kernel.get()
        {
            kernel.forget_attributes(inode);
        }
    }

    fn interrupted(&self, unique: u64) {
        if let Some(call) = self.waiting.interrupted(unique) {
            self.volume.cancel(call);
        }
    }
}

/// Says that a request does not wait for a call any more, when it is dropped.
struct Ended<V: Volume> {
    fs: Shared<V>,
    unique: u64,
}

impl<V: Volume> Drop for Ended<V> {
    fn drop(&mut self) {
        self.fs.waiting.end(self.unique);
    }
}

/// What the kernel asked cannot be put into a call.
fn unexpected(reply: Reply) {
    tracing::error!(unique = reply.unique(), "the client answered with something else than was asked");
    reply.error(Errno::IO);
}

/// A name from the kernel; answers the request if it is none.
fn name_of(bytes: &[u8], reply: Reply) -> Option<(FileName, Reply)> {
    match FileName::new(bytes) {
        Ok(name) => Some((name, reply)),
        Err(error) => {
            reply.error(errno::of_name(error));
            None
        }
    }
}

/// Serves a file system behind its reference count.
pub struct Server<V>(pub Shared<V>);

impl<V: Volume> Service for Server<V> {
    fn serve(&self, request: Request<'_>, reply: Reply) {
        let fs = &self.0;
        let (inode, caller) = (request.inode, request.caller);
        match request.operation {
            Operation::Forget { count } => {
                fs.known.forgotten(inode, count);
                reply.unneeded();
            }
            Operation::BatchForget(forgotten) => {
                for (inode, count) in forgotten {
                    fs.known.forgotten(inode, count);
                }
                reply.unneeded();
            }
            Operation::Interrupt { unique } => {
                fs.interrupted(unique);
                reply.unneeded();
            }
            Operation::Lookup { name } => fs.lookup(reply, inode, name),
            Operation::Symlink { name, target } => fs.symlink(reply, caller, inode, name, target),
            Operation::MakeNode { name, mode, umask, rdev } => {
                fs.make_node(reply, caller, inode, name, (mode, umask), rdev);
            }
            Operation::MakeDirectory { name, mode, umask } => {
                fs.make_directory(reply, caller, inode, name, (mode, umask));
            }
            Operation::Link { inode: existing, name } => fs.link(reply, existing, inode, name),
            Operation::Unlink { name } => fs.unlink(reply, inode, name),
            Operation::RemoveDirectory { name } => fs.remove_directory(reply, inode, name),
            Operation::Rename { name, to_parent, to_name, flags } => {
                fs.rename(reply, (inode, name), (to_parent, to_name), flags);
            }
            Operation::ReadLink => fs.read_link(reply, inode),
            Operation::GetAttributes { .. } => fs.get_attributes(reply, inode),
            Operation::SetAttributes(new) => fs.set_attributes(reply, caller, inode, &new),
            Operation::StatFs => fs.stat_volume(reply),
            Operation::SyncAll => fs.ask_done(reply, Call::SyncAll),
            Operation::SetXattr { name, value, flags, clear_set_group_id } => match acl_of(name) {
                Some(default) => fs.set_acl(reply, inode, default, Some(value), clear_set_group_id),
                None => fs.set_xattr(reply, inode, name, value, flags),
            },
            Operation::GetXattr { name, size } => fs.get_xattr(reply, inode, name, size),
            Operation::ListXattrs { size } => fs.list_xattrs(reply, inode, size),
            Operation::RemoveXattr { name } => match acl_of(name) {
                Some(default) => fs.set_acl(reply, inode, default, None, false),
                None => fs.remove_xattr(reply, inode, name),
            },
            Operation::Open { flags } => fs.open(reply, inode, flags),
            Operation::Create { name, mode, umask, flags } => {
                fs.create(reply, caller, inode, name, (mode, umask), flags);
            }
            Operation::CreateUnnamed { mode, umask, flags } => {
                fs.create_unnamed(reply, caller, inode, (mode, umask), flags);
            }
            Operation::GetAllAttributes => fs.get_all_attributes(reply, inode),
            Operation::Read { handle, offset, size, .. } => fs.read(reply, handle, offset, size),
            Operation::Write { handle, offset, data, flags, from_cache, kill_set_ids } => {
                let append = flags & files::O_APPEND != 0 && !from_cache;
                let write = files::Write { inode, offset, data, clear_set_ids: kill_set_ids && !from_cache };
                fs.write(reply, handle, append, write);
            }
            Operation::Flush { handle, owner } => fs.flush(reply, inode, handle, owner),
            Operation::Release { handle } => fs.release(reply, inode, handle),
            Operation::TestLock { lock } => fs.test_lock(reply, inode, lock),
            Operation::SetLock { handle, lock, wait } => fs.set_lock(reply, inode, handle, lock, wait),
            Operation::Fsync { data_only, .. } | Operation::FsyncDirectory { data_only, .. } => {
                fs.ask_done(reply, Call::Fsync { inode, data_only });
            }
            Operation::Seek { handle, offset, whence } => fs.seek(reply, inode, handle, offset, whence),
            Operation::Allocate { handle, offset, length, mode } => {
                fs.allocate(reply, caller, (inode, handle), (offset, length), mode);
            }
            Operation::OpenDirectory { .. } => fs.open_directory(reply),
            Operation::ReadDirectory { offset, size, plus, .. } => fs.read_directory(reply, inode, offset, size, plus),
            Operation::ReleaseDirectory { .. } | Operation::Destroy => reply.done(),
            // The kernel checks permissions itself, and does without what we do not offer.
            Operation::Access { .. } | Operation::Unknown(_) => reply.error(Errno::NOSYS),
        }
    }
}

/// Whether an attribute is an access control list, and if so, whether it is a default one.
fn acl_of(name: &[u8]) -> Option<bool> {
    if name == ACCESS { Some(false) } else { (name == DEFAULT).then_some(true) }
}

/// True if nothing is to be changed.
fn is_empty(new: &NewAttributes) -> bool {
    let NewAttributes { mode, uid, gid, size, atime, mtime, handle: _, kill_set_ids: _ } = new;
    mode.is_none() && uid.is_none() && gid.is_none() && size.is_none() && atime.is_none() && mtime.is_none()
}
