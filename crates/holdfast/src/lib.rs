//! The `holdfast` binary: a subcommand per role, the same code in each case.
//!
//! A library, so that it can be built a second time for tests that need faults on demand (`holdfast-faults`, feature `faults`).

mod admin;
mod allocator;
mod backup;
mod cli;
mod fsck;
mod helper;
mod layout;
mod mount;
mod role;
mod scrub;
mod sessions;
mod signals;
mod storage;
mod up;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command};
use std::ffi::OsString;
use std::process::ExitCode;

/// What the program does, from its arguments to its exit status.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let done = if helper::is_called(&arguments) { helper::run(arguments) } else { run(Cli::parse(), &arguments) };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("holdfast: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The whole chain of causes; a cause that its effect names already is not said twice.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.trim_end();
        if text.is_empty() {
            text.push_str(cause);
        } else if !text.ends_with(cause) {
            text.push_str(": ");
            text.push_str(cause);
        }
    }
    text
}

#[cfg(feature = "faults")]
static FAULT_PLAN: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

fn run(cli: Cli, arguments: &[OsString]) -> Result<ExitCode> {
    #[cfg(feature = "faults")]
    if let Some(plan) = cli.fault_plan {
        FAULT_PLAN.get_or_init(|| plan);
    }
    match cli.command {
        Command::Up(up) => runtime("up")?.block_on(up::run(up)),
        Command::Init(init) => init_cluster(&init),
        Command::Metadata(server) => {
            allocator::be_frugal(arguments);
            runtime("metadata")?.block_on(role::metadata(&server.config))
        }
        Command::Storage(server) => runtime("storage")?.block_on(role::storage(&server.config)),
        Command::Mount(mount) if mount.background => mount::background(&mount, true),
        Command::Mount(mount) => runtime("mount")?.block_on(mount::foreground(mount)),
        Command::DockerPlugin(plugin) => runtime("docker-plugin")?.block_on(role::docker_plugin(plugin)),
        Command::Csi(csi) => runtime("csi")?.block_on(role::csi(&csi)),
        Command::Admin(admin) => runtime("admin")?.block_on(admin::run(admin)),
    }
}

fn runtime(role: &'static str) -> Result<tokio::runtime::Runtime> {
    holdfast_telemetry::init(role)?;
    #[cfg(feature = "faults")]
    if let Some(plan) = FAULT_PLAN.get() {
        holdfast_faults::follow(plan.clone())?;
    }
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn init_cluster(init: &cli::Init) -> Result<ExitCode> {
    let plan =
        layout::Plan { sizes: &init.sizes, groups: init.groups, out_after: init.out_after, hosts: &init.addresses };
    layout::create(&init.directory, &plan)?;
    if let Some(warning) = plan.warning() {
        eprintln!("holdfast: {warning}");
    }
    println!("{}", std::path::absolute(init.directory.join(layout::CLUSTER_FILE))?.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_are_said_once() {
        let inner = || anyhow::anyhow!("no such file");
        assert_eq!(in_one_line(&inner().context("cannot read x")), "cannot read x: no such file");
        assert_eq!(in_one_line(&inner().context("cannot read x: no such file")), "cannot read x: no such file");
        let deep: Result<()> = Err(inner()).context("b: no such file").context("a");
        assert_eq!(in_one_line(&deep.expect_err("made")), "a: b: no such file");
    }
}
