//! Hosts with a Docker engine each, on one machine: an engine, a plugin and their containers in namespaces of their own.
//!
//! * A host has its own network (that of [`Network`]), mounts, name and processes: its end is the end of everything in it, containers
//!   included, as when a machine loses power.
//! * Files are everybody's, so that engines are talked to from outside, over a socket in their folder. A host's own are `/run`, where
//!   engines look for plugins, `/var/lib` and `/var/log`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::command::{Said, find, holdfast, must, quote, run, shell};
use crate::process::Process;

/// What the suite needs besides what mounts need.
pub const PROGRAMS: [&str; 4] = ["dockerd", "docker", "busybox", "nsenter"];
/// The image that every engine has: busybox and nothing else.
pub const IMAGE: &str = "small";
/// Programs of busybox that the image has.
const APPLETS: [&str; 8] = ["sh", "cat", "ls", "sleep", "sync", "echo", "touch", "true"];
/// An engine's start on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// One command of Docker's. Longer than the engine waits for a plugin.
const COMMAND_LIMIT: Duration = Duration::from_secs(130);

/// A host with an engine.
#[derive(Debug)]
pub struct DockerHost {
    folder: PathBuf,
    /// First in its namespaces, and the last.
    keeper: Process,
    engine: Process,
    plugin: Process,
}

impl DockerHost {
    /// Starts a host of this name of the cluster's network, its plugin and its engine, and gives the engine the image.
    ///
    /// # Errors
    /// When a namespace cannot be made, or something does not start; the end of its log is in the error.
    pub fn start(cluster: &Cluster, name: &str) -> Result<Self> {
        let janitor = cluster.janitor();
        let folder = cluster.folder().join(format!("docker-{name}"));
        std::fs::create_dir_all(&folder)?;
        let network = cluster.network().context("the cluster has hosts")?;
        let log = |what: &str| folder.join(format!("{what}.log"));
        // What mounts log and keep is the host's own, too. Bash reaps whoever loses its parent.
        let script = "hostname \"$1\"; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mkdir -p /run/docker/plugins
            for kept in lib log; do mkdir -p \"$2/$kept\"; mount --bind \"$2/$kept\" /var/$kept; done
            echo ready \"host=$1\"; while true; do sleep 1000 & wait $!; done";
        let mut words = network.on(name)?;
        words.extend(
            ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned),
        );
        words.extend(["bash", "-euc", script, "-", name, &folder.to_string_lossy()].map(str::to_owned));
        let mut keeper = Process::new(&format!("{name}-host"), words, &log("host"), janitor);
        keeper.start()?;
        keeper.wait_ready(START_LIMIT)?;
        let inside = |command: Vec<String>| -> Result<Vec<String>> {
            let mut words = vec!["nsenter".to_owned(), "--target".to_owned(), child_of(&keeper)?.to_string()];
            words.extend(["--mount", "--uts", "--pid", "--net", "--"].map(str::to_owned));
            words.extend(command);
            Ok(words)
        };
        let plugin = inside(Self::plugin_command(cluster, &folder)?)?;
        let engine = inside(Self::engine_command(&folder)?)?;
        let plugin = Process::new(&format!("{name}-plugin"), plugin, &log("plugin"), janitor);
        let engine = Process::new(&format!("{name}-engine"), engine, &log("engine"), janitor);
        let mut host = Self { folder, keeper, engine, plugin };
        host.start_plugin()?;
        host.start_engine()?;
        host.import()?;
        Ok(host)
    }

    fn plugin_command(cluster: &Cluster, folder: &Path) -> Result<Vec<String>> {
        let mut words = vec![holdfast()?.to_string_lossy().into_owned(), "docker-plugin".to_owned()];
        for (key, value) in [("--cluster", cluster.file()), ("--state-dir", folder.join("state"))] {
            words.extend([key.to_owned(), value.to_string_lossy().into_owned()]);
        }
        Ok(words)
    }

    fn engine_command(folder: &Path) -> Result<Vec<String>> {
        let mut words = vec![find("dockerd").context("dockerd")?.to_string_lossy().into_owned()];
        for word in ["--iptables=false", "--ip-masq=false", "--bridge=none", "--storage-driver=vfs"] {
            words.push(word.to_owned());
        }
        // No systemd is in these namespaces.
        words.push("--exec-opt=native.cgroupdriver=cgroupfs".to_owned());
        for (key, value) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "engine.pid")] {
            words.extend([key.to_owned(), folder.join(value).to_string_lossy().into_owned()]);
        }
        words.push(format!("--host=unix://{}", folder.join("engine.sock").display()));
        // What the machine's own engine is told is not for this one.
        let config = folder.join("engine.json");
        std::fs::write(&config, "{}")?;
        words.push(format!("--config-file={}", config.display()));
        Ok(words)
    }

    /// Starts the plugin, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_plugin(&mut self) -> Result<String> {
        self.plugin.start()?;
        self.plugin.wait_ready(START_LIMIT)
    }

    /// `kill -9` of the plugin, while whatever it does is under way.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_plugin(&mut self) -> Result<()> {
        end(&mut self.plugin, Signal::KILL)
    }

    /// Stops the plugin as its host's shutdown would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_plugin(&mut self) -> Result<()> {
        end(&mut self.plugin, Signal::TERM)
    }

    /// Starts the engine, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_engine(&mut self) -> Result<()> {
        self.engine.start()?;
        crate::until("the engine to answer", START_LIMIT, || {
            ensure!(self.engine.is_running(), "the engine ended\n{}", self.engine.log_tail());
            let said = self.try_docker(&["version"])?;
            if said.success { Ok(()) } else { bail!("{}", said.stderr) }
        })
    }

    /// Stops the engine, and with it its containers.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_engine(&mut self) -> Result<()> {
        end(&mut self.engine, Signal::TERM)
    }

    /// `kill -9` of the engine. Its containers go on until it is started again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_engine(&mut self) -> Result<()> {
        end(&mut self.engine, Signal::KILL)
    }

    fn import(&self) -> Result<()> {
        let busybox = find("busybox").context("busybox")?;
        let (tree, bin) = (self.folder.join("tree"), self.folder.join("tree/bin"));
        std::fs::create_dir_all(&bin)?;
        std::fs::copy(busybox, bin.join("busybox"))?;
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", bin.join(applet))?;
        }
        let archive = self.folder.join("image.tar");
        shell(&format!("tar -C {} -cf {} .", quote(&tree), quote(&archive)), START_LIMIT)?;
        self.docker(&["import", &archive.to_string_lossy(), IMAGE])?;
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new(find("docker").context("docker")?);
        command.arg("--host").arg(format!("unix://{}", self.folder.join("engine.sock").display()));
        // Whoever runs the tests may have logged in somewhere.
        command.args(words).env("DOCKER_CONFIG", &self.folder).env_remove("DOCKER_HOST").env_remove("DOCKER_CONTEXT");
        Ok(command)
    }

    /// Runs `docker` with these words; returns what it says.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn docker(&self, words: &[&str]) -> Result<String> {
        Ok(must(&mut self.command(words)?, COMMAND_LIMIT)?.trim().to_owned())
    }

    /// Runs `docker` with these words, which may fail.
    ///
    /// # Errors
    /// When it does not end.
    pub fn try_docker(&self, words: &[&str]) -> Result<Said> {
        run(&mut self.command(words)?, COMMAND_LIMIT)
    }

    /// Makes a volume with options.
    ///
    /// # Errors
    /// When the engine or the plugin refuse.
    pub fn create_volume(&self, name: &str, options: &[&str]) -> Result<String> {
        let mut words = vec!["volume", "create", "--driver", "holdfast"];
        words.extend(options.iter().flat_map(|option| ["--opt", *option]));
        words.push(name);
        self.docker(&words)
    }

    /// Starts a container that has a volume at `/data`, and runs a line of shell in it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_container(&self, name: &str, volume: &str, line: &str) -> Result<String> {
        let mount = format!("{volume}:/data");
        let words =
            ["run", "--detach", "--stop-timeout=1", "--network=none", "--volume-driver=holdfast", "--name", name];
        self.docker(&[&words[..], &["--volume", &mount, IMAGE, "/bin/sh", "-c", line]].concat())
    }

    /// Runs a line of shell in a container of its own that has a volume at `/data`, to its end; returns what it says.
    ///
    /// # Errors
    /// When it fails.
    pub fn run_container(&self, volume: &str, line: &str) -> Result<String> {
        let mount = format!("{volume}:/data");
        let words = ["run", "--rm", "--network=none", "--volume-driver=holdfast", "--volume", &mount, IMAGE];
        self.docker(&[&words[..], &["/bin/sh", "-c", line]].concat())
    }

    /// What `docker volume inspect` shows of a volume.
    ///
    /// # Errors
    /// When there is none.
    pub fn inspect_volume(&self, name: &str) -> Result<Value> {
        let shown: Value = serde_json::from_str(&self.docker(&["volume", "inspect", name])?)?;
        Ok(shown[0].clone())
    }

    /// `kill -9` of a process of this host, by its number there.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_process(&self, pid: i64) -> Result<()> {
        let target = child_of(&self.keeper)?;
        shell(&format!("nsenter --target {target} --mount --pid -- kill -9 {pid}"), START_LIMIT)?;
        Ok(())
    }

    /// Volumes of ours that are mounted on this host, as the kernel shows them.
    ///
    /// # Errors
    /// When the host is gone.
    pub fn mounted(&self) -> Result<Vec<String>> {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", child_of(&self.keeper)?))?;
        let of = |line: &str| line.split_once(" - fuse.holdfast holdfast:").map(|(_, rest)| rest.to_owned());
        let first = |rest: String| rest.split(' ').next().map(str::to_owned);
        Ok(table.lines().filter_map(of).filter_map(first).collect())
    }

    /// The ends of its logs, those of its mounts included.
    pub fn log_tails(&self) -> String {
        let of_mounts = shell(&format!("tail -n 20 {}/log/holdfast/*.log || true", quote(&self.folder)), START_LIMIT);
        [self.plugin.log_tail(), self.engine.log_tail(), of_mounts.unwrap_or_default()].join("\n")
    }
}

impl Drop for DockerHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log_tails());
        }
        // Everything in its namespaces goes with it; the janitor's way is the same, and later.
        let _ = self.keeper.kill();
        let _ = (self.engine.wait_ended(START_LIMIT), self.plugin.wait_ended(START_LIMIT));
    }
}

/// The one child of a process: `unshare` and `nsenter` fork to enter a namespace of processes, and only wait then.
fn child_of(process: &Process) -> Result<i32> {
    let pid = process.pid().with_context(|| format!("{} does not run", process.name()))?;
    crate::until("its child", START_LIMIT, || {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(children.split_whitespace().next().with_context(|| format!("{} has no child", process.name()))?.parse()?)
    })
}

/// Signals what a process waits for, and waits until both have ended.
fn end(process: &mut Process, signal: Signal) -> Result<()> {
    let child = child_of(process)?;
    kill_process(Pid::from_raw(child).context("a process id")?, signal)?;
    process.wait_ended(START_LIMIT)?;
    Ok(())
}
