//! How the C library keeps memory that was given back. It reads that from its environment, once, when a process starts; so a process that
//! wants it otherwise starts itself again, under the same number.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// One arena, and nothing kept above 128 KiB (mallopt(3)). Tables come and go in pieces of all sizes; by default the C library keeps as
/// much again as is in use, and more the longer a server runs: measured in docs/operations.md.
const FRUGAL: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_THRESHOLD_", "131072")];

/// Says that it was done.
const DONE: &str = "HOLDFAST_STARTED_AGAIN";

/// Makes this process a frugal one; what its environment says already stays. Returns if it is one, or cannot be made one, which costs
/// memory and nothing else. To be called before anything is open.
pub fn be_frugal(arguments: &[OsString]) {
    // Where a binary has privileges of its own, the C library takes its settings out of the environment again: once must be enough.
    if std::env::var_os(DONE).is_some() {
        return;
    }
    let missing: Vec<_> = FRUGAL.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
    if missing.is_empty() || !cfg!(target_env = "gnu") {
        return;
    }
    // By its path, so that it keeps its name; a binary that was replaced meanwhile has none, and would be another one.
    let Ok(path) = std::env::current_exe() else { return };
    let path = if path.exists() { path } else { "/proc/self/exe".into() };
    let Some((name, rest)) = arguments.split_first() else { return };
    let error = Command::new(path).arg0(name).args(rest).envs(missing).env(DONE, "1").exec();
    eprintln!("holdfast: goes on with the C library's own ways of keeping memory: {error}");
}
