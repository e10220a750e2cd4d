//! `holdfast metadata`, `storage`, `csi` and `docker-plugin`: one server in the foreground.

use crate::cli::{self, Csi, CsiRole};
use crate::{admin, signals};
use anyhow::{Context, Result};
use holdfast_client::ClusterFile;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

/// How the line `ready` ends: where telemetry is read, if anywhere.
pub fn telemetry_field(telemetry: Option<SocketAddr>) -> String {
    telemetry.map_or(String::new(), |address| format!(" telemetry={address}"))
}

/// Says on stdout that a server serves. Scripts wait for this line.
fn say_ready(role: &str, id: u64, address: &str, telemetry: Option<SocketAddr>) {
    println!("ready role={role} id={id} address={address}{}", telemetry_field(telemetry));
    // Nobody reading it any more is no reason to stop.
    let _ = std::io::stdout().flush();
}

/// Runs a metadata server.
pub async fn metadata(path: &Path) -> Result<ExitCode> {
    let config = holdfast_metadata_server::config::Config::read(path)?;
    let (_stop, stopped) = signals::shutdown()?;
    let id = config.id;
    holdfast_metadata_server::run(config, stopped, move |at| say_ready("metadata", id, &at.address, at.telemetry))
        .await?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a storage node.
pub async fn storage(path: &Path) -> Result<ExitCode> {
    let config = holdfast_storage_server::config::Config::read(path)?;
    let (_stop, stopped) = signals::shutdown()?;
    let id = config.id;
    holdfast_storage_server::run(config, stopped, move |at| say_ready("storage", id, &at.address, at.telemetry))
        .await?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a Docker volume plugin.
pub async fn docker_plugin(plugin: cli::DockerPlugin) -> Result<ExitCode> {
    let cli::DockerPlugin { cluster: path, socket, state_dir, mount_dir, node_id, telemetry } = plugin;
    let mut cluster = ClusterFile::load(&path)?;
    admin::prefer_admin_certificate(&mut cluster);
    // Mounts are processes that may have another working directory.
    let cluster_file = std::path::absolute(&path)?;
    let program = std::env::current_exe().context("cannot tell where this program is, which mounts")?;
    let config = holdfast_docker_plugin::Config {
        cluster,
        cluster_file,
        socket,
        state_dir,
        mount_dir,
        node_id,
        telemetry,
        program,
    };
    let (_stop, stopped) = signals::shutdown()?;
    let ready = |socket: &Path, telemetry: Option<SocketAddr>| {
        println!("ready role=docker-plugin socket={}{}", socket.display(), telemetry_field(telemetry));
        // Nobody reading it any more is no reason to stop.
        let _ = std::io::stdout().flush();
    };
    holdfast_docker_plugin::run(config, stopped, ready).await?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a CSI driver.
pub async fn csi(csi: &Csi) -> Result<ExitCode> {
    use holdfast_csi_driver::{Config, Ready, Role};
    let role = match csi.role {
        CsiRole::Controller => Role::Controller,
        CsiRole::Node => Role::Node,
        CsiRole::All => Role::All,
    };
    let mut config = Config::new(role, &csi.endpoint, &csi.cluster, csi.node_id.clone())?;
    // It decides who may mount; mounts have a certificate of their own.
    admin::prefer_admin_certificate(&mut config.cluster);
    config.name.clone_from(&csi.driver_name);
    config.telemetry.clone_from(&csi.telemetry);
    let (_stop, stopped) = signals::shutdown()?;
    let ready = |at: &Ready| {
        println!("ready role=csi endpoint=unix://{}{}", at.socket.display(), telemetry_field(at.telemetry));
        // Nobody reading it any more is no reason to stop.
        let _ = std::io::stdout().flush();
    };
    holdfast_csi_driver::run(config, stopped, ready).await?;
    Ok(ExitCode::SUCCESS)
}
