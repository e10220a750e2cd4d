//! Negotiation and the serving threads.

use super::abi::{self, init};
use super::encode::InitAnswer;
use super::protocol::{Operation, Request};
use super::reply::Reply;
use super::transport::Transport;
use super::{Channel, Service, decode, encode};
use bytes::Bytes;
use rustix::io::Errno;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Largest write and read of one request, in bytes; larger ones cost more memory and gain nothing measurable.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that the kernel may have in the background: enough for a stream's read-ahead and some asynchronous direct I/O.
const BACKGROUND_MAX: u16 = 64;
/// Serving threads: two keep two busy applications apart, and an inline answer never waits for another.
const THREADS: usize = 2;

/// What we want of the kernel, each for a reason:
/// * several reads and directory operations at once, large requests, attributes with listings;
/// * `AUTO_INVAL_DATA`: a `read` of cached pages re-checks the file once its attributes have expired;
/// * `CACHE_SYMLINKS` is safe: a symlink's target never changes, and inode numbers are never reused;
/// * `HANDLE_KILLPRIV_V2`: we clear set-id bits as Linux does, so the kernel need not ask before each write;
/// * `POSIX_LOCKS`, `FLOCK_LOCKS`: locks exclude other hosts, too;
/// * `POSIX_ACL`: the kernel checks by access control lists; `DONT_MASK` with it, for the mask does not count where a directory has a
///   default list, and `SETXATTR_EXT`, which tells that a change of a list takes the set-group-id bit;
/// * `DIRECT_IO_ALLOW_MMAP`: files opened while another host has the volume bypass the page cache and can be mapped all the same.
///
/// Not wanted: `ATOMIC_O_TRUNC` (with it, `O_RDONLY|O_TRUNC` of a running program truncates it and only then fails with `ETXTBSY`; without
/// it, a truncating open is one more request, and its truncation tells the new mode); the write-back cache (with it, the kernel ignores size changes made elsewhere), `EXPORT_SUPPORT`, `CREATE_SUPP_GROUP` (the
/// kernel clears the set-group-id bit of what is created by itself).
const WANTED: u64 = init::ASYNC_READ
    | init::POSIX_LOCKS
    | init::POSIX_ACL
    | init::DONT_MASK
    | init::SETXATTR_EXT
    | init::FLOCK_LOCKS
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::HANDLE_KILLPRIV_V2
    | init::INIT_EXT
    | init::HAS_EXPIRE_ONLY
    | init::DIRECT_IO_ALLOW_MMAP;

/// What both sides agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Protocol of the kernel.
    pub minor: u32,
    /// What both do.
    pub flags: u64,
}

impl Negotiated {
    /// Whether both do this.
    pub fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// Copies data to where they live as long as they are referred to.
pub type Keep = Arc<dyn Fn(&[u8]) -> Bytes + Send + Sync>;

/// Why serving cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel speaks another protocol.
    #[error("kernel speaks FUSE {major}.{minor}; {}.{} or newer is needed (Linux 5.4)", abi::MAJOR, abi::MINOR_LEAST)]
    Protocol {
        /// Its version.
        major: u32,
        /// Its version.
        minor: u32,
    },
    /// The kernel's first request is not INIT, or the mount vanished before it.
    #[error("mount ended before the kernel said hello")]
    NoInit,
    /// A call to the device failed.
    #[error("/dev/fuse: {0}")]
    Device(#[from] Errno),
    /// A thread could not be started.
    #[error("cannot start a serving thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// A mount that is being served.
#[derive(Debug)]
pub struct Session<T = Channel> {
    threads: Vec<JoinHandle<()>>,
    channel: Arc<T>,
    negotiated: Negotiated,
}

impl<T: Transport> Session<T> {
    /// Negotiates with the kernel over a freshly mounted transport. Requests wait until [`Session::serve`].
    ///
    /// # Errors
    /// [`SessionError`] when there is no agreement.
    pub fn negotiate(channel: T) -> Result<Self, SessionError> {
        let mut buffer = vec![0; buffer_bytes()];
        let length = channel.receive(&mut buffer)?.ok_or(SessionError::NoInit)?;
        let bytes = &buffer[..length];
        let header =
            decode::header(bytes).filter(|header| header.opcode == abi::op::INIT).ok_or(SessionError::NoInit)?;
        let asked = decode::init(bytes).ok_or(SessionError::NoInit)?;
        if asked.major != abi::MAJOR || asked.minor < abi::MINOR_LEAST {
            let _ = channel.send_message(header.unique, -Errno::PROTO.raw_os_error(), &[], &[]);
            return Err(SessionError::Protocol { major: asked.major, minor: asked.minor });
        }
        let negotiated = Negotiated { minor: asked.minor, flags: asked.offered & WANTED };
        let answer = InitAnswer {
            flags: negotiated.flags,
            readahead: asked.readahead.max(REQUEST_BYTES_MAX),
            write: REQUEST_BYTES_MAX,
            background: BACKGROUND_MAX,
        };
        channel.send_message(header.unique, 0, &encode::init(&answer), &[])?;
        tracing::debug!(
            minor = asked.minor,
            flags = format_args!("{:#x}", negotiated.flags),
            "negotiated with the kernel"
        );
        Ok(Self { threads: Vec::new(), channel: Arc::new(channel), negotiated })
    }

    /// What was agreed.
    pub fn negotiated(&self) -> Negotiated {
        self.negotiated
    }

    /// The first way to the kernel, for notifications.
    pub fn channel(&self) -> Arc<T> {
        self.channel.clone()
    }

    /// Starts the threads that serve requests until the mount is gone. `keep` copies a write's data to where they outlive the request.
    /// `ended` is called once by each thread when it ends.
    ///
    /// # Errors
    /// [`SessionError`] when a thread cannot be started.
    pub fn serve(
        &mut self,
        service: Arc<dyn Service>,
        keep: Keep,
        ended: impl Fn() + Clone + Send + 'static,
    ) -> Result<(), SessionError> {
        for index in 0..THREADS {
            let channel = match index {
                0 => self.channel.clone(),
                _ => Arc::new(self.channel.duplicate()?),
            };
            let (service, keep, ended) = (service.clone(), keep.clone(), ended.clone());
            let negotiated = self.negotiated;
            let thread = std::thread::Builder::new()
                .name(format!("fuse-{index}"))
                .spawn(move || {
                    serve(&channel, negotiated, &*service, &keep);
                    ended();
                })
                .map_err(SessionError::Thread)?;
            self.threads.push(thread);
        }
        Ok(())
    }

    /// Waits until the serving threads have ended, which they do when the mount is gone.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a serving thread panicked");
            }
        }
    }
}

fn buffer_bytes() -> usize {
    // The kernel wants room for the headers beside the largest write.
    REQUEST_BYTES_MAX as usize + 4096
}

/// One serving thread.
fn serve<T: Transport>(channel: &Arc<T>, negotiated: Negotiated, service: &dyn Service, keep: &Keep) {
    let long_xattrs = negotiated.has(init::SETXATTR_EXT);
    let mut buffer = vec![0; buffer_bytes()];
    loop {
        match channel.receive(&mut buffer) {
            Ok(Some(length)) => serve_one(channel, service, keep, (&buffer[..length], long_xattrs)),
            Ok(None) => return,
            Err(errno) => {
                tracing::error!(%errno, "cannot read requests from the kernel");
                return;
            }
        }
    }
}

fn serve_one<T: Transport>(channel: &Arc<T>, service: &dyn Service, keep: &Keep, (bytes, long_xattrs): (&[u8], bool)) {
    let Some(header) = decode::header(bytes) else {
        return tracing::error!(length = bytes.len(), "request without a header");
    };
    let reply = Reply::new(header.unique, header.caller.pid, channel.clone());
    let serve = || match decode::request(bytes, long_xattrs, &mut |data| keep(data)) {
        Err(malformed) => {
            tracing::error!(%malformed, "malformed request");
            reply.error(Errno::IO);
        }
        Ok(Request { operation: Operation::Destroy, .. }) => reply.done(),
        Ok(Request { operation: Operation::Unknown(opcode), .. }) => {
            tracing::debug!(opcode, "operation not offered");
            reply.error(Errno::NOSYS);
        }
        Ok(request) => service.serve(request, reply),
    };
    // A panic drops the reply, which answers EIO. The service is shared by threads and guards its state with locks; one that was
    // poisoned by the panic is entered all the same (see `sync`), for its data are counters and tables, valid at every step.
    if catch_unwind(AssertUnwindSafe(serve)).is_err() {
        tracing::error!(unique = header.unique, opcode = header.opcode, "a request panicked and was answered EIO");
    }
}

#[cfg(test)]
mod tests;
