//! The kernel protocol, and no decisions.
//!
//! `abi` numbers · `protocol` requests and answers as values · `decode`, `encode` bytes · `channel` one descriptor of `/dev/fuse` ·
//! `session` negotiation and the serving threads · `notify` what we tell the kernel unasked · `reply` the duty to answer.
//!
//! This is our own reader of the descriptor, not fuser's loop, because with `fuser` 0.18
//! * a time of `i64::MIN` seconds panics in its decoder, outside of any guard of ours: two `utimensat` calls of any user end both
//!   serving threads, and the mount hangs;
//! * `HANDLE_KILLPRIV_V2` cannot be used, and without it the kernel asks for `security.capability` before *every* `write(2)`,
//!   which doubles the requests of a stream of small writes;
//! * `FUSE_INTERRUPT` is answered `ENOSYS`, so that nothing waiting for the cluster can be killed;
//! * the size of a directory request and the open flags are not passed on, expire-only and epoch notifications do not exist.
//!
//! The transport can still change: the file system sees only [`Service`], [`protocol`] and [`Reply`].
//!
//! Invariants:
//! * An answer goes out through the descriptor that its request came in by: the kernel looks for it only there.
//! * A serving thread never waits for anything but the next request. A panic while serving is caught and costs that request `EIO`.

pub mod abi;
mod channel;
pub mod decode;
pub mod encode;
mod notify;
pub mod protocol;
mod reply;
mod session;
#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use encode::DirectoryBuffer;
pub use notify::{KernelCache, Notifier};
pub use protocol::{Answer, Caller, Entry, Listed, NewAttributes, OpenHints, Operation, Request};
pub use reply::{Reply, Sink};
pub use session::{Keep, Negotiated, REQUEST_BYTES_MAX, Session, SessionError};

/// What serves the kernel's requests.
pub trait Service: Send + Sync + 'static {
    /// Serves one request: answers at once from memory, or later from another thread. Never blocks.
    fn serve(&self, request: Request<'_>, reply: Reply);
}
