//! A cluster of separate processes, with the command line a user has.
//!
//! Servers are named `metadata-1` ..., `storage-1` ...; mounts `mount-1` .... Everything lives in one folder that is
//! removed at the end; when a test fails, the end of each log is printed first.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::command::{holdfast, holdfast_with_faults, must, quote, run};
use crate::janitor::Janitor;
use crate::mount::Mount;
use crate::namespaces::Network;
use crate::power::PowerDomain;
use crate::process::Process;

const START_LIMIT: Duration = Duration::from_secs(60);
const SCRUB_LIMIT: Duration = Duration::from_secs(300);

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Metadata servers.
    pub metadata: u32,
    /// Storage nodes.
    pub storage: u32,
    /// Copies of each chunk.
    pub replicas: u32,
    /// Each server, and the mounts together, on a host (network namespace) of its own. `client` is that of the mounts, `client-2` another for
    /// some of them, `admin` the administrator's.
    pub namespaces: bool,
    /// Each server's folder on a disk whose power can be cut.
    pub power_loss: bool,
    /// Storage nodes skip every sync: the control run of a power cut, which must lose data. Metadata servers do not, so that the
    /// cluster comes back and what is lost can be seen.
    pub skip_sync: bool,
    /// Servers with a small disk of their own, and its bytes.
    pub small_disks: Option<(Vec<String>, u64)>,
    /// A storage disk away for longer is given up, as `init` takes it; its default if not given.
    pub out_after: Option<&'static str>,
    /// Servers are built for faults on demand, see [`Cluster::fail`]. Nothing fails at first.
    pub faults: bool,
    /// Disks of each storage node; they are numbered from 1.
    pub disks: u32,
    /// Where its folder is made; the temporary folder if not given.
    pub folder: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            metadata: 3,
            storage: 3,
            replicas: 3,
            namespaces: false,
            power_loss: false,
            skip_sync: false,
            small_disks: None,
            out_after: None,
            faults: false,
            disks: 1,
            folder: None,
        }
    }
}

/// A cluster of processes.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    servers: Vec<Process>,
    mounts: Vec<Mount>,
    network: Option<Network>,
    power: Option<PowerDomain>,
    // Last: fields are dropped in order, and this one cleans up.
    janitor: Janitor,
}

impl Cluster {
    /// Makes a cluster, starts its servers and waits until it says that it is healthy.
    ///
    /// # Errors
    /// When the binary is missing, or a server does not become ready; the end of its log is in the error.
    pub fn start(options: &Options) -> Result<Self> {
        let mut cluster = Self::prepare(options)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Makes a cluster and starts nothing.
    ///
    /// # Errors
    /// When the binary is missing, or a disk or network cannot be made.
    pub fn prepare(options: &Options) -> Result<Self> {
        let janitor = Janitor::start()?;
        let folder = temporary_folder("cluster", options.folder.as_deref(), &janitor)?;
        let names: Vec<String> = (1..=options.metadata)
            .map(|n| format!("metadata-{n}"))
            .chain((1..=options.storage).map(|n| format!("storage-{n}")))
            .collect();
        let mut cluster = Self { folder, servers: Vec::new(), mounts: Vec::new(), network: None, power: None, janitor };
        if options.namespaces {
            let mut hosts = names.clone();
            hosts.extend(["client", "client-2", "admin"].map(str::to_string));
            cluster.network = Some(Network::create(&hosts, &cluster.janitor)?);
        }
        cluster.init(options)?;
        if let Some((of, bytes)) = &options.small_disks {
            let mut domain = PowerDomain::with_disks_of(&cluster.folder, *bytes, &cluster.janitor);
            for name in of {
                domain.add(&cluster.folder.join("cluster").join(name))?;
            }
            cluster.power = Some(domain);
        }
        if options.power_loss {
            let mut domain = PowerDomain::new(&cluster.folder, &cluster.janitor);
            for name in &names {
                domain.add(&cluster.folder.join("cluster").join(name))?;
            }
            cluster.power = Some(domain);
        }
        for name in &names {
            let kind = name.split('-').next().unwrap_or(name);
            let config = cluster.folder.join("cluster").join(name).join("config.toml");
            cluster.configure(name, &config, options)?;
            let mut command = cluster.words_before(name)?;
            let binary = if options.faults { holdfast_with_faults()? } else { holdfast()? };
            command.push(binary.to_string_lossy().into_owned());
            command.extend([kind, "--config"].map(str::to_string));
            command.push(config.to_string_lossy().into_owned());
            if options.faults {
                cluster.fail(name, "")?;
                command.push("--fault-plan".to_string());
                command.push(cluster.fault_plan(name).to_string_lossy().into_owned());
            }
            cluster.servers.push(Process::new(name, command, &cluster.log(name), &cluster.janitor));
        }
        Ok(cluster)
    }

    fn init(&self, options: &Options) -> Result<()> {
        let mut command = Command::new(holdfast()?);
        command.arg("init").arg(self.folder.join("cluster"));
        for (key, value) in
            [("--metadata", options.metadata), ("--storage", options.storage), ("--replicas", options.replicas)]
        {
            command.arg(key).arg(value.to_string());
        }
        if let Some(span) = options.out_after {
            command.args(["--out-after", span]);
        }
        if let Some(network) = &self.network {
            for n in 1..=options.metadata {
                command.arg("--address").arg(network.address(&format!("metadata-{n}"))?);
            }
        }
        must(&mut command, START_LIMIT)?;
        Ok(())
    }

    /// Changes what a test needs different in a server's configuration.
    fn configure(&self, name: &str, config: &Path, options: &Options) -> Result<()> {
        let skip_sync = options.skip_sync && name.starts_with("storage-");
        let disks = if name.starts_with("storage-") { options.disks } else { 1 };
        let more_disks = 2..=disks;
        if !skip_sync && self.network.is_none() && more_disks.is_empty() {
            return Ok(());
        }
        let mut table: toml::Table = std::fs::read_to_string(config)?.parse().context("a server's configuration")?;
        if skip_sync {
            table.insert("test-skip-sync".to_string(), toml::Value::Boolean(true));
        }
        for number in more_disks {
            let disks =
                table.get_mut("disks").and_then(toml::Value::as_array_mut).context("a storage node has disks")?;
            let disk = toml::Table::from_iter([
                ("id".to_string(), toml::Value::Integer(number.into())),
                ("path".to_string(), toml::Value::String(format!("disk-{number}"))),
            ]);
            disks.push(disk.into());
        }
        if let Some(network) = &self.network {
            // `init` spreads each kind of server over the addresses in turn; here every server has a host of its own.
            let old = table.get("address").and_then(toml::Value::as_str).context("a server has an address")?;
            let port = old.rsplit_once(':').context("an address has a port")?.1;
            let new = format!("{}:{port}", network.address(name)?);
            table.insert("address".to_string(), toml::Value::String(new));
        }
        let file = std::fs::File::create(config)?;
        std::io::Write::write_all(&mut &file, toml::to_string(&table)?.as_bytes())?;
        file.sync_all()?;
        Ok(())
    }

    fn fault_plan(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-faults.toml"))
    }

    /// From now on, and until the next plan, a server fails as this one says (`crates/faults`); an empty one ends that. It is in force a
    /// moment after this returns.
    ///
    /// # Errors
    /// When the plan cannot be written.
    pub fn fail(&self, name: &str, plan: &str) -> Result<()> {
        // In one step: half a plan is another one.
        let new = self.folder.join(format!("{name}-faults.new"));
        std::fs::write(&new, plan)?;
        Ok(std::fs::rename(new, self.fault_plan(name))?)
    }

    fn words_before(&self, host: &str) -> Result<Vec<String>> {
        self.network.as_ref().map_or(Ok(Vec::new()), |network| network.on(host))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    /// The file that mounts and `admin` take.
    pub fn file(&self) -> PathBuf {
        self.folder.join("cluster/cluster.toml")
    }

    /// The folder of everything, on a file system that no power cut touches.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The hosts, when each server has its own.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Who cleans up after it: promises of what is built on top of it are kept first.
    pub fn janitor(&self) -> &Janitor {
        &self.janitor
    }

    /// Starts every server that does not run, waits for each to be ready and for the cluster to be healthy.
    ///
    /// # Errors
    /// When one does not become ready, or the cluster not healthy.
    pub fn start_all(&mut self) -> Result<()> {
        let mut started = Vec::new();
        for server in &mut self.servers {
            if !server.is_running() {
                server.kill()?;
                server.start()?;
                started.push(server);
            }
        }
        for server in started {
            server.wait_ready(START_LIMIT)?;
        }
        self.wait_healthy(START_LIMIT)
    }

    /// All servers.
    pub fn servers(&mut self) -> &mut [Process] {
        &mut self.servers
    }

    /// A server by its name.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn server(&mut self, name: &str) -> Result<&mut Process> {
        self.servers.iter_mut().find(|server| server.name() == name).with_context(|| format!("no server {name}"))
    }

    /// Starts a server that was killed, and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        let server = self.server(name)?;
        server.kill()?;
        server.start()?;
        server.wait_ready(START_LIMIT)?;
        Ok(())
    }

    /// Runs `holdfast admin` with these words; returns what it says.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn admin(&self, words: &[&str]) -> Result<String> {
        must(&mut self.admin_command(words)?, Duration::from_secs(90))
    }

    /// Runs `holdfast admin` with these words, of which one is `--json`; returns what it answers, and whether its exit status says that all
    /// is well.
    ///
    /// # Errors
    /// When it does not end in time, or what it says is no JSON.
    pub fn admin_json(&self, words: &[&str], limit: Duration) -> Result<(Value, bool)> {
        let said = run(&mut self.admin_command(words)?, limit)?;
        let answer = serde_json::from_str(&said.stdout)
            .with_context(|| format!("admin {} said {}{}", words.join(" "), said.stdout, said.stderr))?;
        Ok((answer, said.success))
    }

    fn admin_command(&self, words: &[&str]) -> Result<Command> {
        let mut all = self.words_before("admin")?;
        all.push(holdfast()?.to_string_lossy().into_owned());
        let mut command = Command::new(&all[0]);
        command.args(&all[1..]).args(["admin", "--cluster"]).arg(self.file()).args(words);
        Ok(command)
    }

    /// Starts one more server of the cluster's folder, and waits until it is ready. It is one of the servers from then on.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_more(&mut self, name: &str, config: &str) -> Result<()> {
        let kind = name.split('-').next().unwrap_or(name);
        let config = self.folder.join("cluster").join(name).join(config);
        let binary = holdfast()?;
        let words = [binary.to_string_lossy(), kind.into(), "--config".into(), config.to_string_lossy()];
        let command = words.iter().map(ToString::to_string).collect();
        self.servers.retain(|server| server.name() != name);
        self.servers.push(Process::new(name, command, &self.log(name), &self.janitor));
        let server = self.server(name)?;
        server.start()?;
        server.wait_ready(START_LIMIT)?;
        Ok(())
    }

    /// A server that was killed is none of the cluster any more.
    pub fn forget(&mut self, name: &str) {
        self.servers.retain(|server| server.name() != name);
    }

    /// What `holdfast admin status --json` answers.
    ///
    /// # Errors
    /// When the command fails to answer within 10 s. An unhealthy cluster is an answer.
    pub fn status(&self) -> Result<Value> {
        Ok(self.admin_json(&["status", "--json"], Duration::from_secs(10))?.0)
    }

    /// Waits until the cluster says that it is healthy.
    ///
    /// # Errors
    /// With its own reasons when it is not, `limit` later.
    pub fn wait_healthy(&self, limit: Duration) -> Result<()> {
        crate::until("a healthy cluster", limit, || {
            let status = self.status()?;
            if status["healthy"] == Value::Bool(true) { Ok(()) } else { bail!("not healthy: {status}") }
        })
    }

    /// The name of the metadata server that leads the cluster's shard, which decides views.
    ///
    /// # Errors
    /// When none says so for 30 s.
    pub fn leader(&self) -> Result<String> {
        self.leader_of(0)
    }

    /// The name of the metadata server that leads a shard: 0 is the cluster's, 1 has the names.
    ///
    /// # Errors
    /// When none says so for 30 s.
    pub fn leader_of(&self, shard: u64) -> Result<String> {
        crate::until("a leader", Duration::from_secs(30), || {
            let status = self.status()?;
            let servers = status["metadata"].as_array().context("no list of metadata servers")?;
            let leads = |server: &&Value| server["leads"].as_array().is_some_and(|led| led.contains(&shard.into()));
            let leader = servers.iter().find(leads).with_context(|| format!("nobody leads: {status}"))?;
            let pid = leader["pid"].as_i64();
            let ours = self.servers.iter().find(|server| pid.is_some() && server.pid().map(i64::from) == pid);
            Ok(ours.with_context(|| format!("the leader {leader} is none of our processes"))?.name().to_string())
        })
    }

    /// Mounts volume `main` as `mount-N`, in a folder of its own. Returns its number, from 0.
    ///
    /// # Errors
    /// When the mount does not become ready.
    pub fn mount(&mut self) -> Result<usize> {
        let number = self.prepare_mount()?;
        self.mounts[number].restart()?;
        Ok(number)
    }

    /// The same on another host, with mount options.
    ///
    /// # Errors
    /// When there is no such host, or the mount does not become ready.
    pub fn mount_on(&mut self, host: &str, options: &str) -> Result<usize> {
        let number = self.prepare_mount_on(host, options)?;
        self.mounts[number].restart()?;
        Ok(number)
    }

    /// [`Cluster::mount`] without starting it.
    ///
    /// # Errors
    /// When its folder cannot be made.
    pub fn prepare_mount(&mut self) -> Result<usize> {
        self.prepare_mount_on("client", "")
    }

    fn prepare_mount_on(&mut self, host: &str, options: &str) -> Result<usize> {
        let number = self.mounts.len();
        let name = format!("mount-{}", number + 1);
        let (at, log) = (self.folder.join(&name), self.log(&name));
        let before = self.words_before(host)?;
        let mut mount = Mount::prepare(before, &self.file(), "main", &at, &log, &self.janitor)?;
        if !options.is_empty() {
            mount.process().add_words(&["-o", options]);
        }
        self.mounts.push(mount);
        Ok(number)
    }

    /// A mount by its number.
    pub fn mounted(&mut self, number: usize) -> &mut Mount {
        &mut self.mounts[number]
    }

    /// The power of every server's disk and of every machine, the clients' too, fails at one moment. Nothing runs after.
    ///
    /// # Errors
    /// When the cluster was not made with `power_loss`, or the kernel refuses.
    pub fn cut_power(&mut self) -> Result<()> {
        let domain = self.power.as_ref().context("this cluster's power cannot be cut")?;
        let armed = domain.arm(None)?;
        armed.cut()?;
        for server in &mut self.servers {
            server.kill()?;
        }
        for mount in &mut self.mounts {
            mount.kill()?;
        }
        Ok(())
    }

    /// The power is back: disks are mounted, servers started, and mounts too.
    ///
    /// # Errors
    /// When a disk, a server or a mount does not come back.
    pub fn restore_power(&mut self) -> Result<()> {
        self.power.as_ref().context("this cluster's power cannot be cut")?.restore(None)?;
        self.start_all()?;
        for mount in &mut self.mounts {
            mount.restart()?;
        }
        Ok(())
    }

    /// One server's host loses power: what it had not synced is gone, and its process with it.
    ///
    /// # Errors
    /// As [`Cluster::cut_power`].
    pub fn cut_power_of(&mut self, name: &str) -> Result<()> {
        let at = self.folder.join("cluster").join(name);
        self.power.as_ref().context("this cluster's power cannot be cut")?.arm(Some(&at))?.cut()?;
        self.server(name)?.kill()
    }

    /// The power of that host is back, and its server is started.
    ///
    /// # Errors
    /// When its disk or the server does not come back.
    pub fn restore_power_of(&mut self, name: &str) -> Result<()> {
        let at = self.folder.join("cluster").join(name);
        self.power.as_ref().context("this cluster's power cannot be cut")?.restore(Some(&at))?;
        self.restart(name)
    }

    /// Has every group scrubbed now, and waits for that.
    ///
    /// # Errors
    /// When members differed, or not every damaged block could be put right; with what the command said.
    pub fn scrub(&self) -> Result<()> {
        let (answer, _) = self.admin_json(&["scrub", "--now", "--json"], SCRUB_LIMIT)?;
        let whole = answer["clean"] == true && answer["not_asked"] == serde_json::json!([]);
        if whole && answer["total"]["different"] == 0 { Ok(()) } else { bail!("{answer}") }
    }

    /// The last lines of every log.
    pub fn log_tails(&mut self) -> String {
        let servers = self.servers.iter().map(Process::log_tail);
        let mounts = self.mounts.iter_mut().map(|mount| mount.process().log_tail());
        servers.chain(mounts).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log_tails());
        }
    }
}

/// A folder that other users may pass through, removed at the end; made in `under`, or in the temporary folder.
///
/// # Errors
/// When it cannot be made.
pub fn temporary_folder(name: &str, under: Option<&Path>, janitor: &Janitor) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let under = under.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let folder = tempfile::Builder::new().prefix(&format!("holdfast-test-{name}-")).tempdir_in(under)?.keep();
    janitor.promise(&format!("rm -rf --one-file-system {}", quote(&folder)))?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}
