//! `cargo xtask bench`: the same benchmark on a mount of ours and on the local disk, in one session.
//!
//! Numbers from different days or machines are not compared; a pair from one session may be.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::needs;

/// Runs fsbench on the local disk and on a mount, and keeps both results and the table.
///
/// # Errors
/// When the cluster does not start or the benchmark does not run to its end.
pub fn run(root: &Path, target: &Path, arguments: &[String]) -> Result<bool> {
    let mut quick = false;
    let mut label = "up".to_string();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--quick" => quick = true,
            "--label" => label = words.next().context("--label needs a name")?.clone(),
            other => bail!("bench does not know {other:?}"),
        }
    }
    needs::packages()?;
    for build in [["--package", "holdfast"].as_slice(), &["--package", "holdfast-tests", "--bin", "with-mount"]] {
        if !Command::new("cargo").args(["build", "--release"]).args(build).status()?.success() {
            return Ok(false);
        }
    }
    let kept = root.join("benches/baselines");
    std::fs::create_dir_all(&kept)?;
    let work = target.join("bench");
    std::fs::create_dir_all(&work)?;
    let local = kept.join(format!("{label}-local-disk.json"));
    let ours = kept.join(format!("{label}-holdfast.json"));
    let script = root.join("benches/fsbench.py");
    let (script, quick) = (script.to_string_lossy(), if quick { "--quick" } else { "" });
    println!("the local disk first, then a mount beside it");
    shell(&format!("python3 '{script}' '{}' {quick} --json '{}'", work.display(), local.display()))?;
    let inner = format!("python3 '{script}' \"$HOLDFAST_MOUNT\" {quick} --json '{}'", ours.display());
    let program = target.join("release/with-mount");
    let status = Command::new(program).arg("--data-under").arg(&work).arg("--").args(["sh", "-c", &inner]).status()?;
    if !status.success() {
        bail!("the benchmark did not run to its end on the mount");
    }
    let table = Command::new("python3").arg(&*script).arg("--compare").arg(&local).arg(&ours).output()?;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    println!("{table}");
    let commit = Command::new("git").args(["describe", "--always", "--dirty"]).output()?;
    let commit = String::from_utf8_lossy(&commit.stdout).trim().to_string();
    let page = format!(
        "# Baseline `{label}`\n\n`cargo xtask bench --label {label}` at commit {commit}. The machine is described in the JSON files.\n\n```\n{table}```\n"
    );
    std::fs::write(kept.join(format!("{label}.md")), page)?;
    Ok(true)
}

fn shell(line: &str) -> Result<()> {
    if !Command::new("sh").args(["-c", line]).status()?.success() {
        bail!("failed: {line}");
    }
    Ok(())
}
