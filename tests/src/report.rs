//! What a test says to the runner (`cargo xtask test`): that it cannot run, or a figure worth showing.

use std::io::Write;
use std::path::Path;

/// Says that test `name` cannot run here, and why. The caller returns right after; the runner counts it as skipped, and
/// fails unless `tests/skips.toml` lists it.
pub fn skip(name: &str, reason: &str) {
    // Not `println!`, which the test runner keeps to itself when a test passes.
    let _ = writeln!(std::io::stdout(), "SKIP {name}: {reason}");
}

/// Shows a figure on the build server's page: a stall, a rate, a count.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stdout(), "NOTE {text}");
}

/// Whether this machine can mount FUSE file systems and has the programs named; otherwise `name` is skipped.
pub fn can_mount(name: &str, programs: &[&str]) -> bool {
    if !Path::new("/dev/fuse").exists() {
        skip(name, "there is no /dev/fuse");
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        skip(name, "only root may mount with allow_other, use loop devices and stop other users' processes");
        return false;
    }
    if let Err(error) = crate::command::holdfast() {
        skip(name, &format!("{error}"));
        return false;
    }
    for program in programs {
        if crate::command::find(program).is_none() {
            skip(name, &format!("{program} is not installed"));
            return false;
        }
    }
    true
}

/// The same for tests that make servers fail on purpose.
pub fn can_inject_faults(name: &str, programs: &[&str]) -> bool {
    match crate::command::holdfast_with_faults() {
        Ok(_) => can_mount(name, programs),
        Err(error) => {
            skip(name, &format!("{error}"));
            false
        }
    }
}

/// Whether the long variants were asked for (`cargo xtask test --long`).
pub fn long() -> bool {
    std::env::var_os("HOLDFAST_TEST_LONG").is_some()
}
