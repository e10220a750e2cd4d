//! One cluster for all tests, and a driver for each of two nodes, `a` and `b`, both on this host.

use holdfast_csi_driver::proto::controller_client::ControllerClient;
use holdfast_csi_driver::proto::identity_client::IdentityClient;
use holdfast_csi_driver::proto::node_client::NodeClient;
use holdfast_tests::command::{holdfast, quote};
use holdfast_tests::process::Process;
use holdfast_tests::{Cluster, Janitor, Options, can_mount, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// No call takes longer, whatever goes wrong.
pub const LIMIT: Duration = Duration::from_secs(90);

/// The cluster and its drivers.
pub struct World {
    pub cluster: Cluster,
    drivers: BTreeMap<&'static str, Process>,
    folder: PathBuf,
}

static WORLD: OnceLock<Mutex<World>> = OnceLock::new();

/// Says at the end of a test that failed what the servers and drivers said.
pub struct Turn(MutexGuard<'static, World>);

impl std::ops::Deref for Turn {
    type Target = World;
    fn deref(&self) -> &World {
        &self.0
    }
}

impl std::ops::DerefMut for Turn {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.0.cluster.log_tails());
            for driver in self.0.drivers.values() {
                println!("{}", driver.log_tail());
            }
        }
    }
}

/// The world, if this machine can mount; else `test` is skipped. Both drivers run.
pub fn world(test: &str) -> Option<Turn> {
    if !can_mount(test, &[]) {
        return None;
    }
    let world = WORLD.get_or_init(|| Mutex::new(World::start()));
    let mut turn = Turn(world.lock().unwrap_or_else(PoisonError::into_inner));
    for node in ["a", "b"] {
        if !turn.driver(node).is_running() {
            turn.kill(node);
            turn.start_driver(node);
        }
    }
    Some(turn)
}

impl World {
    fn start() -> Self {
        let options = Options { metadata: 1, storage: 2, replicas: 2, ..Options::default() };
        let cluster = Cluster::start(&options).expect("a healthy cluster");
        let janitor = Janitor::start().expect("bash");
        let folder = cluster.folder().join("orchestrator");
        std::fs::create_dir_all(&folder).expect("made");
        // Whatever a test that fails leaves mounted. By force first: who looks at it meanwhile would wait for a cluster that is gone. In a shell of
        // its own: the janitor's variables are its own.
        let mounted = format!("findmnt -rno TARGET | grep -F {} | tac", quote(&folder));
        let clean = format!("({mounted} | while read -r at; do umount -f \"$at\"; umount -l \"$at\"; done)");
        janitor.promise(&clean).expect("promised");
        let driver = |node: &'static str| {
            let (binary, cluster_file) = (holdfast().expect("built"), cluster.file());
            let endpoint = format!("unix://{}", folder.join(format!("{node}.sock")).display());
            let words = [
                &*binary.to_string_lossy(),
                "csi",
                "--cluster",
                &*cluster_file.to_string_lossy(),
                "--endpoint",
                &endpoint,
                "--node-id",
                node,
                "--telemetry",
                "off",
            ];
            let log = cluster.folder().join(format!("csi-{node}.log"));
            (node, Process::new(&format!("csi-{node}"), words.map(str::to_owned).to_vec(), &log, &janitor))
        };
        let drivers = BTreeMap::from([driver("a"), driver("b")]);
        Self { cluster, drivers, folder }
    }

    pub fn driver(&mut self, node: &str) -> &mut Process {
        self.drivers.get_mut(node).expect("a driver of that node")
    }

    pub fn start_driver(&mut self, node: &str) {
        self.driver(node).start().expect("started");
        self.driver(node).wait_ready(LIMIT).expect("ready");
    }

    /// `kill -9`
    pub fn kill(&mut self, node: &str) {
        self.driver(node).kill().expect("killed");
    }

    fn socket(&self, node: &str) -> PathBuf {
        self.folder.join(format!("{node}.sock"))
    }

    /// A connection to the driver of a node, which finds it again after it was started anew.
    pub fn connect(&self, node: &str) -> Driver {
        let endpoint = Endpoint::from_shared(format!("unix:{}", self.socket(node).display())).expect("an address");
        let channel = endpoint.timeout(LIMIT).connect_lazy();
        Driver {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
        }
    }

    /// A place of a node's: where it stages, or has a pod's volume.
    pub fn place(&self, node: &str, name: &str) -> PathBuf {
        let parent = self.folder.join(node);
        std::fs::create_dir_all(&parent).expect("made");
        parent.join(name)
    }

    /// The mounts of the cluster, as it sees them.
    pub fn sessions(&self) -> Vec<Value> {
        let (answer, _) = self.cluster.admin_json(&["sessions", "--json"], LIMIT).expect("asked");
        answer.as_array().expect("a list").clone()
    }

    /// The process behind the mount at a place.
    pub fn pid_of_mount(&self, at: &Path) -> i32 {
        let at = at.to_string_lossy();
        let sessions = self.sessions();
        let here = sessions.iter().rev().find(|session| session["mount_point"].as_str() == Some(&*at));
        let pid = here.unwrap_or_else(|| panic!("nothing is mounted on {at}: {sessions:?}"))["pid"].as_i64();
        i32::try_from(pid.expect("a number")).expect("a process id")
    }

    /// Nothing is left of what the drivers did: no volume, mount, directory, process or session.
    pub fn assert_nothing_left(&self, but: &[&str]) {
        let volumes = self.cluster.admin(&["volume", "list"]).expect("listed");
        let left: Vec<&str> =
            volumes.lines().filter(|name| !["main", ".nodes-1"].contains(name) && !but.contains(name)).collect();
        assert!(left.is_empty(), "volumes: {left:?}");
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("read");
        let prefix = self.folder.to_string_lossy();
        let mounts: Vec<&str> = table.lines().filter(|line| line.contains(&*prefix)).collect();
        assert!(mounts.is_empty(), "mounts: {mounts:?}");
        let ended = until("no sessions", LIMIT, || {
            let sessions = self.sessions();
            if sessions.is_empty() { Ok(()) } else { anyhow::bail!("{sessions:?}") }
        });
        ended.expect("every session is closed");
        let rows = std::fs::read_dir("/run/holdfast").into_iter().flatten().flatten();
        let names = rows.map(|row| row.file_name().to_string_lossy().into_owned());
        let aside: Vec<String> = names.filter(|name| name.starts_with("read-only-")).collect();
        assert!(aside.is_empty(), "{aside:?}");
    }
}

/// The three services of a driver.
#[derive(Clone)]
pub struct Driver {
    pub identity: IdentityClient<Channel>,
    pub controller: ControllerClient<Channel>,
    pub node: NodeClient<Channel>,
}
