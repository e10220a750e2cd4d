//! The FUSE adapter: a volume of the cluster as a mounted file system.
//!
//! Layers, each knowing only the one below: `device` the kernel protocol, no decisions → `fs` operations in plain Rust, testable
//! without FUSE → `holdfast_client` the cluster as one object. A callback answers from memory on the spot or enqueues; it never
//! blocks.
//!
//! `run` a mount from beginning to end · `config` · `options` the text after `-o` · `mount` · `device/` · `fs/` · `inodes` what the
//! kernel knows · `handles` open files · `attrs` · `invalidate` making the kernel forget · `memfd` the
//! write buffer's memory · `errno` the one table · `sync` locks.
//!
//! Not here yet: survival of a crash of this process.

pub mod attrs;
mod config;
pub mod device;
pub mod errno;
pub mod fs;
mod handles;
mod inodes;
mod invalidate;
mod lost;
mod memfd;
pub mod mount;
pub mod options;
mod run;
mod sync;

pub use config::Config;
pub use invalidate::Invalidator;
pub use lost::OnLost;
pub use mount::{MountError, repair};
pub use options::{OptionError, Options, Quarantine};
pub use run::{Error, FLUSH_DEADLINE, Mounted, run};
