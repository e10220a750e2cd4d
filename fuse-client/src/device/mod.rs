//! The kernel protocol, and no decisions.
//!
//! `abi` numbers · `protocol` requests and answers as values · `decode`, `encode` bytes · `transport` how they travel · `channel` one
//! descriptor of `/dev/fuse` · `session` negotiation and the serving threads · `notify` what we tell the kernel unasked · `reply` the duty to answer.
//!
//! This is our own reader of the descriptor, not fuser's loop, because with `fuser` 0.18
//! * a time of `i64::MIN` seconds panics in its decoder, outside of any guard of ours: two `utimensat` calls of any user end both
//!   serving threads, and the mount hangs;
//! * `HANDLE_KILLPRIV_V2` cannot be used, and without it the kernel asks for `security.capability` before *every* `write(2)`,
//!   which doubles the requests of a stream of small writes;
//! * `FUSE_INTERRUPT` is answered `ENOSYS`, so that nothing waiting for the cluster can be killed;
//! * the size of a directory request and the open flags are not passed on, expire-only and epoch notifications do not exist.
//!
//! Of the operations of Linux 6.18 (FUSE 7.45) all are decoded and served but these (`abi::op::UNSERVED`), which are answered `ENOSYS`:
//!
//! | opcode | why not, and what a program sees |
//! | --- | --- |
//! | `COPY_FILE_RANGE`, `COPY_FILE_RANGE_64` | A copy goes through the client in any case, since chunks of two files lie in different groups. After the first refusal the kernel copies by itself (`splice`), through its page cache; `copy_file_range(2)` works |
//! | `IOCTL` | `chattr`, `lsattr`, `FIEMAP`, `FICLONE` and other calls of one file system each: `ENOTTY` or `EOPNOTSUPP`, as on any that lacks them |
//! | `POLL` | Files are always ready, which the kernel says by itself |
//! | `BMAP` | Sent for block devices (`fuseblk`) only: `FIBMAP` says 0, and swap files are refused |
//! | `NOTIFY_REPLY` | Answers a request of ours (`NOTIFY_RETRIEVE`) that we do not make |
//! | `SETUPMAPPING`, `REMOVEMAPPING` | Shared memory with a virtual machine (virtiofs) only |
//! | `CUSE_INIT` | Character devices only |
//!
//! `ACCESS` is decoded and answered `ENOSYS` by the file system: with `default_permissions` the kernel decides, and never sends it. `SYNCFS` is
//! served although Linux sends it to virtiofs (and fuseblk) only, so that `syncfs(2)` flushes our write buffer on the day that it does;
//! until then, what `sync(2)` leaves in it follows within `writeback_delay`.
//!
//! What carries the bytes is behind [`Transport`]; the file system sees only [`Service`], [`protocol`] and [`Reply`].
//!
//! Invariants:
//! * An answer goes out through the transport that its request came in by: the kernel looks for it only there.
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
mod transport;

pub use channel::Channel;
pub use encode::DirectoryBuffer;
pub use notify::{KernelCache, Notifier};
pub use protocol::{Answer, Caller, Entry, Listed, NewAttributes, OpenHints, Operation, Request};
pub use reply::{Reply, Sink};
pub use session::{Keep, Negotiated, REQUEST_BYTES_MAX, Session, SessionError};
pub use transport::Transport;

/// What serves the kernel's requests.
pub trait Service: Send + Sync + 'static {
    /// Serves one request: answers at once from memory, or later from another thread. Never blocks.
    fn serve(&self, request: Request<'_>, reply: Reply);
}
