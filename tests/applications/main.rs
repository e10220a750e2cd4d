//! Applications people use, on the mount of `holdfast up`, each with its own check of its own data.
//!
//! Run by `cargo xtask test --only applications`; all tests share one `up`, each works in a folder of its own.

mod archive;
mod databases;
mod git;

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use holdfast_tests::{Up, can_mount};

/// Longest any one command of a test may take.
pub const LIMIT: Duration = Duration::from_secs(180);

static UP: OnceLock<Result<Mutex<Up>, String>> = OnceLock::new();

/// A new folder named after the test `name` on the shared mount; nothing when `name` has to be skipped.
pub fn folder(name: &str, programs: &[&str]) -> Option<PathBuf> {
    if !can_mount(name, programs) {
        return None;
    }
    // The test process owns it; its janitor takes it away when the process ends.
    let up = UP.get_or_init(|| Up::start(&[]).map(Mutex::new).map_err(|error| format!("{error:#}")));
    let up = up.as_ref().unwrap_or_else(|error| panic!("{error}"));
    let mut up = up.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(up.process().is_running(), "up died during an earlier test\n{}", up.process().log_tail());
    let folder = up.mount().join(name);
    std::fs::create_dir(&folder).expect("a folder for this test");
    Some(folder)
}

/// A new folder on the local disk, removed when dropped, that other users may read.
pub fn local_folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("opened to others");
    folder
}
