//! The log that both servers write, and the disk it is written on.
//!
//! * [`log`]: preallocated, recycled segments of summed records; group commit; recovery.
//! * [`disk`]: one directory of files as a trait, so that a simulated disk can take its place.
//! * [`directory`]: the real one; [`io_backend`]: whether it uses io_uring, and why not.
//! * [`memory`]: the simulated one: it keeps "seen" and "durable" apart and can lose power at any call.
//!
//! Everything is synchronous: whoever must not wait calls from a thread of its own.

#[cfg(test)]
mod contract;
pub mod directory;
pub mod disk;
pub mod io_backend;
pub mod log;
pub mod memory;
mod uring;

pub use directory::{DirectoryDisk, Syncing};
pub use disk::{Disk, DiskFile, Space};
pub use io_backend::{IoBackend, IoChoice, IoUnavailable};
pub use log::{Journal, JournalConfig, JournalError, Position, ReplayError, Usage};
pub use memory::MemoryDisk;
