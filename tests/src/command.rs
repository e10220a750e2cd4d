//! Finding and running other programs, with a limit on how long they may take.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The `holdfast` binary under test: `$HOLDFAST_BIN`, or the one built beside this test program.
///
/// # Errors
/// When there is none.
pub fn holdfast() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HOLDFAST_BIN") {
        return Ok(path.into());
    }
    let here = std::env::current_exe()?;
    // target/release/deps/test-hash, or target/release/program
    let beside = here.ancestors().skip(1).take(2).map(|folder| folder.join("holdfast")).find(|path| path.is_file());
    beside.context("the holdfast binary is not built (cargo build --release -p holdfast)")
}

/// The binary under test with faults on demand: `$HOLDFAST_FAULTS_BIN`, or the one beside [`holdfast`].
///
/// # Errors
/// When there is none.
pub fn holdfast_with_faults() -> Result<PathBuf> {
    let path = match std::env::var_os("HOLDFAST_FAULTS_BIN") {
        Some(path) => path.into(),
        None => holdfast()?.with_file_name("holdfast-faults"),
    };
    if path.is_file() {
        return Ok(path);
    }
    bail!("{} is not built (cargo build --release -p holdfast --features faults --bin holdfast-faults)", path.display())
}

/// The repository this test belongs to.
pub fn repository() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or(package.clone(), Path::to_path_buf)
}

/// Where `program` is, looking at the system's folders too and at every PostgreSQL version.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = path.split(':').map(PathBuf::from).collect();
    folders.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        // Debian's own come first: a wrapper of the same name elsewhere on the path may not run as another user.
        folders.splice(0..0, versions.flatten().map(|version| version.path().join("bin")));
    }
    folders.into_iter().map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// What a finished program said.
#[derive(Debug)]
pub struct Said {
    /// Exit status 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `program` to its end.
///
/// # Errors
/// When it cannot be started or has not ended after `limit` (it and what it started are then killed).
pub fn run(program: &mut Command, limit: Duration) -> Result<Said> {
    let shown = format!("{program:?}");
    // Files, not pipes: a full pipe would stop the program, and a daemon it leaves behind would keep a pipe open.
    let mut stdout = tempfile::tempfile()?;
    let mut stderr = tempfile::tempfile()?;
    let mut child = program
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > limit {
            if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            // Not waited for: inside a hung file system it may never end.
            bail!(
                "{shown} did not end within {} s; it said: {}{}",
                limit.as_secs(),
                read(&mut stdout)?,
                read(&mut stderr)?
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok(Said { success: status.success(), stdout: read(&mut stdout)?, stderr: read(&mut stderr)? })
}

fn read(file: &mut std::fs::File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a program that must succeed. Returns its standard output.
///
/// # Errors
/// With everything it said when it fails or takes longer than `limit`.
pub fn must(program: &mut Command, limit: Duration) -> Result<String> {
    let shown = format!("{program:?}");
    let said = run(program, limit)?;
    if !said.success {
        bail!("{shown} failed:\n{}{}", said.stdout, said.stderr);
    }
    Ok(said.stdout)
}

/// Runs a line of bash that must succeed (with `-e -o pipefail`). Returns its standard output.
///
/// # Errors
/// As [`must`].
pub fn shell(line: &str, limit: Duration) -> Result<String> {
    must(Command::new("bash").args(["-e", "-o", "pipefail", "-c", line]).env("PATH", system_path()), limit)
}

/// The path with the folders that hold mkfs, ip and losetup, which an ordinary shell may lack.
pub fn system_path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// `text` as one word of a shell line.
pub fn quote(text: impl AsRef<Path>) -> String {
    format!("'{}'", text.as_ref().to_string_lossy().replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_too_long_is_ended_and_named() {
        let error = run(Command::new("sleep").arg("30"), Duration::from_millis(50)).expect_err("it sleeps longer");
        assert!(error.to_string().contains("sleep"), "{error}");
    }

    #[test]
    fn a_failing_line_reports_what_it_said() {
        let error = shell("echo before; false; echo after", Duration::from_secs(10)).expect_err("false fails");
        assert!(error.to_string().contains("before") && !error.to_string().contains("after\n"), "{error}");
    }

    #[test]
    fn a_quoted_word_survives_the_shell() {
        let odd = "it's $HOME `x` \"y\"";
        let said = shell(&format!("printf %s {}", quote(odd)), Duration::from_secs(10)).expect("printf works");
        assert_eq!(said, odd);
    }
}
