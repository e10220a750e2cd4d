//! The `holdfast` binary: a subcommand per role, the same code in each case.

mod admin;
mod cli;
mod layout;
mod mount;
mod role;
mod signals;
mod up;

use anyhow::Result;
use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // `{:#}` shows the whole chain of causes on one line.
            eprintln!("holdfast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Up(up) => runtime("up")?.block_on(up::run(up)),
        Command::Init(init) => init_cluster(&init),
        Command::Metadata(server) => runtime("metadata")?.block_on(role::metadata(&server.config)),
        Command::Storage(server) => runtime("storage")?.block_on(role::storage(&server.config)),
        Command::Mount(mount) if mount.background => mount::background(&mount),
        Command::Mount(mount) => runtime("mount")?.block_on(mount::foreground(mount)),
        Command::Admin(admin) => runtime("admin")?.block_on(admin::run(admin)),
    }
}

fn runtime(role: &'static str) -> Result<tokio::runtime::Runtime> {
    holdfast_telemetry::init(role)?;
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn init_cluster(init: &cli::Init) -> Result<ExitCode> {
    let plan = layout::Plan { sizes: &init.sizes, groups: init.groups, hosts: &init.addresses };
    layout::create(&init.directory, &plan)?;
    if let Some(warning) = plan.warning() {
        eprintln!("holdfast: {warning}");
    }
    println!("{}", std::path::absolute(init.directory.join(layout::CLUSTER_FILE))?.display());
    Ok(ExitCode::SUCCESS)
}
