//! What every test that crosses a crate needs: real processes of the `holdfast` binary, real mounts, power cuts.
//!
//! * Whatever a test sets up is removed when the test ends, fails, is interrupted or is killed: each command that undoes
//!   something is handed to a [`Janitor`] process *before* the thing is done, and the janitor outlives us.
//! * A test that cannot run says so with [`skip`] and is counted; it never passes in silence.
//! * Nothing waits for time to pass when it can wait for a condition ([`until`]).

pub mod chaos;
pub mod cluster;
pub mod command;
pub mod docker;
pub mod helpers;
pub mod janitor;
pub mod load;
pub mod mount;
pub mod namespaces;
pub mod power;
pub mod process;
pub mod report;
pub mod told;
pub mod up;

pub use cluster::{Cluster, Options};
pub use janitor::Janitor;
pub use report::{can_inject_faults, can_mount, note, skip};
pub use told::Told;
pub use up::Up;

use std::time::{Duration, Instant};

/// Asks `condition` again and again until it gives a value, for at most `limit`.
///
/// # Errors
/// Names `what` and the last refusal when the time is over.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(10);
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() > limit => {
                return Err(error.context(format!("waited {} s for {what}", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
