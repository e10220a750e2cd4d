//! The repository's tasks, run as `cargo xtask NAME`: no task runner has to be installed first.

mod bench;
mod libtest;
mod needs;
mod run;
mod step;
mod suites;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
cargo xtask check                       fmt, clippy, tidy, deny, doc tests: what the build server runs first
cargo xtask test [--only SUITE,...] [--long]
                                        everything: installs or names what it needs, counts every test
cargo xtask posix [--long]              the POSIX suite alone
cargo xtask sim --seeds N --from S      the simulator (its other switches are passed on: --mutations, ...)
cargo xtask cluster [--metadata 3] [--storage 3] [--replicas 3] [--namespaces] [--power-loss]
                                        a cluster of separate processes to break by hand, removed at Ctrl-C
cargo xtask failover [--runs 5] [--only WORD] [--json FILE]
                                        what writers see when a server is killed, frozen, stopped: medians of new clusters
cargo xtask chaos [--minutes 10] [--seed S]
                                        faults at random while workers check themselves; then fsck, scrub, and everything acknowledged
cargo xtask bench [--quick] [--label NAME]
                                        fsbench on a mount and on the local disk beside it; kept in benches/baselines/";

fn main() -> ExitCode {
    match task() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line says. Returns whether it went well.
fn task() -> Result<bool> {
    let root = root()?;
    std::env::set_current_dir(&root)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match name.as_str() {
        "check" if rest.is_empty() => {
            run::run(&root, &target, &run::Options { only: vec!["check".into()], long: false })
        }
        "posix" => test(&root, &target, &[vec!["--only".into(), "posix".into()], rest].concat()),
        "test" => test(&root, &target, &rest),
        "sim" => pass_on(&sim_command(), &rest),
        "cluster" => on_processes("cluster", &rest),
        "failover" => on_processes("failover", &rest),
        "chaos" => on_processes("chaos", &rest),
        "bench" => bench::run(&root, &target, &rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(true)
        }
        "check" => bail!("check takes no {:?}\n{USAGE}", rest.join(" ")),
        other => bail!("no task {other:?}\n{USAGE}"),
    }
}

fn test(root: &Path, target: &Path, arguments: &[String]) -> Result<bool> {
    let mut options = run::Options::default();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--only" => {
                let names = words.next().context("--only needs names of suites")?;
                options.only.extend(names.split(',').map(str::to_string));
            }
            "--long" => options.long = true,
            other => bail!("test does not know {other:?}\n{USAGE}"),
        }
    }
    needs::packages()?;
    run::run(root, target, &options)
}

/// Becomes a program of the test crate that starts clusters of processes.
fn on_processes(program: &str, arguments: &[String]) -> Result<bool> {
    needs::packages()?;
    let built = Command::new("cargo").args(["build", "--release", "--package", "holdfast"]).status()?;
    if !built.success() {
        return Ok(false);
    }
    pass_on(&words(&format!("cargo run --release --quiet --package holdfast-tests --bin {program} --")), arguments)
}

/// The command that runs the simulator, ready for its arguments.
pub fn sim_command() -> Vec<String> {
    words("cargo run --release --quiet --package holdfast-tests --bin sim --")
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_string).collect()
}

/// Becomes `command`, so that Ctrl-C reaches it and the shell waits for its cleaning. Returns only with an error.
fn pass_on(command: &[String], arguments: &[String]) -> Result<bool> {
    use std::os::unix::process::CommandExt;
    let error = Command::new(&command[0]).args(&command[1..]).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", command.join(" ")))
}

/// The repository's folder: the one that holds this package.
fn root() -> Result<PathBuf> {
    let here =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    Ok(here.parent().context("xtask has no parent folder")?.to_path_buf())
}
