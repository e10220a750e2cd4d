//! What the tests use besides Rust, and how it gets here.
//!
//! As root on Debian, what is missing is installed; elsewhere it is named in one line to paste, and the tests that need
//! it say that they cannot run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// `(a program that shows the package is there, Debian package)`.
const PROGRAMS: &[(&str, &str)] = &[
    ("fusermount3", "fuse3"),
    ("fio", "fio"),
    ("git", "git"),
    ("rsync", "rsync"),
    ("sqlite3", "sqlite3"),
    ("/usr/lib/postgresql/*/bin/initdb", "postgresql"),
    ("getfattr", "attr"),
    ("getfacl", "acl"),
    ("mkfs.ext4", "e2fsprogs"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("python3", "python3"),
    ("losetup", "mount"),
    ("nsenter", "util-linux"),
    ("dockerd", "docker.io"),
    ("busybox", "busybox-static"),
];

/// Installs what is missing, or says how.
///
/// # Errors
/// When an installation was tried and failed.
pub fn packages() -> Result<()> {
    let missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get update && apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() || !present("apt-get") {
        println!("Missing: {}. Paste this, as root on Debian 12:\n    {line}", missing.join(", "));
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    let status = Command::new("sh")
        .args(["-c", &line])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("the installation failed; by hand: {line}");
    }
    Ok(())
}

/// Whether `program` is on the path (the usual system folders included), or a file when it begins with `/`; one `*` may
/// stand for one folder.
pub fn present(program: &str) -> bool {
    if let Some((before, after)) = program.split_once('*') {
        let Ok(folders) = std::fs::read_dir(before) else { return false };
        return folders.flatten().any(|folder| folder.path().join(after.trim_start_matches('/')).exists());
    }
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .any(|folder| Path::new(folder).join(program).is_file())
}

/// Where cargo-installed tools live; kept between runs in the target folder.
pub fn tools(target: &Path) -> PathBuf {
    target.join("tools")
}

/// Builds `krate` at exactly `version` unless it is there already. Returns its program.
///
/// # Errors
/// When cargo cannot build it.
pub fn cargo_tool(target: &Path, krate: &str, version: &str) -> Result<PathBuf> {
    let root = tools(target);
    let program = root.join("bin").join(krate);
    // Cargo's own record of what it installed there.
    let installed = std::fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    if program.exists() && installed.contains(&format!("\"{krate} {version} ")) {
        return Ok(program);
    }
    println!("installing {krate} {version} into {}", root.display());
    let status = Command::new("cargo")
        .args(["install", "--locked", "--quiet", "--force", "--version", version, "--root"])
        .arg(&root)
        .arg(krate)
        // One folder for all tools, so that what they share is compiled once.
        .env("CARGO_TARGET_DIR", target.join("tools-build"))
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo install")?;
    if !status.success() {
        bail!("cargo install {krate} --version {version} failed");
    }
    Ok(program)
}
