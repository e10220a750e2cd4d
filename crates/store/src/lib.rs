//! The ordered table under the metadata service's rows and the storage node's chunk index.
//!
//! * [`table`]: the trait. Cores call it synchronously; it is the one place where a core reads what it does not hold.
//! * [`memory`]: in memory, for simulation, with power losses from a seed. Pure.
//! * [`fjall_table`]: on disk, through fjall 3 (feature `fjall`, for servers: with it the crate is not pure).
//!
//! Durability is the log's work, not the table's: a commit is atomic and ordered but not durable, and after a crash the
//! table holds *a prefix of its commits*, at least up to the last `persist`. Whoever commits its log position together
//! with its rows finds out where to replay from.

#[cfg(test)]
mod contract;
#[cfg(feature = "fjall")]
pub mod fjall_table;
pub mod memory;
pub mod table;

#[cfg(feature = "fjall")]
pub use fjall_table::{FjallConfig, FjallTable};
pub use memory::MemoryTable;
pub use table::{Batch, KeyRange, Pair, Pairs, Replacement, StoreError, Table, View};
