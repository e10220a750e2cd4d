//! Clusters of real processes on a real mount: what happens when parts of them die.
//!
//! Run by `cargo xtask test --only cluster`, one test at a time; as root, since power cuts need loop devices.

mod backup;
mod bad_input;
mod chaos;
mod fsck;
mod full_disk;
mod large_directory;
mod limits;
mod locks;
mod membership;
mod memory;
mod mount_ends;
mod network_loss;
mod opens;
mod partitions;
mod power_loss;
mod process_loss;
mod rebuild;
mod scrub;
mod slow;
mod start_order;
mod telemetry;
mod two_mounts;
mod up;
mod zombies;
