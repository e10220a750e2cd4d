//! mount(8) with our helpers, without touching the machine's `/sbin`: in a mount namespace of its own, links to the binary under test
//! lie over it.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::command::holdfast;

/// Names under which mount(8) calls the binary.
pub const HELPERS: [&str; 2] = ["mount.holdfast", "mount.fuse.holdfast"];

/// A command that runs `program` where mount(8) finds our helpers. `folder` is the test's own; arguments are the caller's to add.
///
/// # Errors
/// When the links cannot be made, or there is no binary.
pub fn with_mount_helpers(folder: &Path, program: &Path) -> Result<Command> {
    let links = folder.join("sbin");
    std::fs::create_dir_all(&links)?;
    for name in HELPERS {
        match std::os::unix::fs::symlink(holdfast()?, links.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
    }
    let script = "mount -t overlay -o lowerdir=\"$1\":/usr/sbin overlay /usr/sbin; shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-euc", script, "-"]).arg(&links).arg(program);
    Ok(command)
}
