//! Chaos: faults in an order that a seed gives, on a cluster of processes with disks and hosts of their own, while workers on two mounts
//! check what they see. At the end nothing acknowledged is missing, replicas are the same, and fsck finds nothing.
//!
//! Faults stay within what is promised: at most one server of each kind is lost at a time, or all of them at once and for a while; blocks go
//! bad on one disk alone, and are scrubbed before the next fault (a damaged block is a copy less of it).

mod work;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use holdfast_types::prng::Prng;
use rustix::process::Signal;

use crate::command::{quote, shell};
use crate::{Cluster, Options};
use work::Work;

const LIMIT: Duration = Duration::from_secs(60);
/// Longest pause of a server that is stopped, frozen or unplugged: below the time after which sessions end.
const AWAY_MS: (u64, u64) = (200, 7_000);
const METADATA: u64 = 3;
const STORAGE: u64 = 4;
const BLOCK: u64 = 4096;

/// What can go wrong, how often, and what it is called.
const FAULTS: [(Fault, u64); 13] = [
    (Fault::Kill, 4),
    (Fault::Freeze, 3),
    (Fault::Stop, 2),
    (Fault::Unplug, 3),
    (Fault::Flap, 1),
    (Fault::Mute, 2),
    (Fault::Deafen, 2),
    (Fault::SplitStorage, 2),
    (Fault::KillMost, 2),
    (Fault::HostPower, 2),
    (Fault::AllPower, 1),
    (Fault::FullDisk, 2),
    (Fault::FlipBits, 2),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// `kill -9` of a server, and it is started again.
    Kill,
    /// `SIGSTOP`, then `SIGCONT`.
    Freeze,
    /// `SIGTERM`, and it is started again.
    Stop,
    /// A host's cable is pulled: of a server, or of the clients.
    Unplug,
    /// The same, in and out many times.
    Flap,
    /// A host hears everybody and is heard by nobody.
    Mute,
    /// A host is heard by everybody and hears nobody.
    Deafen,
    /// Half of the storage nodes do not hear the other half.
    SplitStorage,
    /// Two of three metadata servers, or two of four storage nodes, are killed together.
    KillMost,
    /// One server's host loses power.
    HostPower,
    /// All hosts lose power at one moment, the clients' too.
    AllPower,
    /// A storage node's disk is full for a while.
    FullDisk,
    /// Bits of a storage node's data change.
    FlipBits,
}

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct Chaos {
    /// The order of faults.
    pub seed: u64,
    /// For how long.
    pub time: Duration,
}

/// What was done.
#[derive(Debug)]
pub struct Report {
    /// Faults by their names.
    pub injected: BTreeMap<String, u64>,
    /// Steps of workers.
    pub steps: Vec<(&'static str, u64)>,
    /// Steps refused because a disk was full.
    pub refused: u64,
    /// Blocks in which a bit was changed.
    pub flipped: u64,
}

struct Run {
    cluster: Cluster,
    work: Work,
    prng: Prng,
    /// The node whose disk loses bits.
    rotten: String,
    flipped: u64,
}

impl Chaos {
    /// Runs it. Says each fault as it comes.
    ///
    /// # Errors
    /// When anything was not as it should be, with all that was found; the seed gives the same faults again, not the same moments.
    pub fn run(&self) -> Result<Report> {
        let mut prng = Prng::new(self.seed).fork(0xc4a0);
        let options = Options { storage: STORAGE as u32, namespaces: true, power_loss: true, ..Options::default() };
        let mut cluster = Cluster::start(&options)?;
        let mounts = [cluster.mount()?, cluster.mount()?];
        let paths = mounts.map(|mount| cluster.mounted(mount).path().to_path_buf());
        let work = Work::start([&paths[0], &paths[1]], self.seed)?;
        work.wait_for_progress()?;
        let rotten = format!("storage-{}", prng.between(1, STORAGE));
        let mut run = Run { cluster, work, prng, rotten, flipped: 0 };
        let (begun, mut injected) = (Instant::now(), BTreeMap::new());
        while begun.elapsed() < self.time {
            let fault = run.draw();
            *injected.entry(format!("{fault:?}")).or_default() += 1;
            let said = run.inject(fault).with_context(|| format!("{fault:?}, seed {}", self.seed))?;
            println!("{:>5.0} s {fault:?} {said}", begun.elapsed().as_secs_f64());
            run.work.wait_for_progress().with_context(|| format!("after {fault:?}, seed {}", self.seed))?;
        }
        let flipped = run.flipped;
        let (steps, refused) = run.end().with_context(|| format!("seed {}", self.seed))?;
        Ok(Report { injected, steps, refused, flipped })
    }
}

impl Run {
    fn draw(&mut self) -> Fault {
        let mut left = self.prng.below(FAULTS.iter().map(|(_, weight)| weight).sum());
        for (fault, weight) in FAULTS {
            if left < weight {
                return fault;
            }
            left -= weight;
        }
        Fault::Kill
    }

    /// A metadata server or a storage node.
    fn server(&mut self) -> String {
        if self.prng.chance(1, 2) { self.metadata() } else { self.storage() }
    }

    fn metadata(&mut self) -> String {
        format!("metadata-{}", self.prng.between(1, METADATA))
    }

    fn storage(&mut self) -> String {
        format!("storage-{}", self.prng.between(1, STORAGE))
    }

    fn pause(&mut self, (least, most): (u64, u64)) -> Duration {
        let pause = Duration::from_millis(self.prng.between(least, most));
        std::thread::sleep(pause);
        pause
    }

    /// Does it, and undoes it.
    fn inject(&mut self, fault: Fault) -> Result<String> {
        let weakens = matches!(
            fault,
            Fault::KillMost
                | Fault::HostPower
                | Fault::AllPower
                | Fault::SplitStorage
                | Fault::FullDisk
                | Fault::FlipBits
        );
        // One of the milder ones may come while the last one's traces are still there.
        if weakens || self.prng.chance(1, 2) {
            self.cluster.wait_healthy(LIMIT)?;
        }
        match fault {
            Fault::Kill => {
                let name = self.server();
                self.cluster.server(&name)?.kill()?;
                let away = self.pause((0, AWAY_MS.1));
                self.cluster.restart(&name)?;
                Ok(format!("{name} for {away:?}"))
            }
            Fault::Freeze => {
                let name = self.server();
                self.cluster.server(&name)?.suspend()?;
                let away = self.pause(AWAY_MS);
                self.cluster.server(&name)?.signal(Signal::CONT)?;
                Ok(format!("{name} for {away:?}"))
            }
            Fault::Stop => {
                let name = self.server();
                let status = self.cluster.server(&name)?.terminate(LIMIT)?;
                ensure!(status.success(), "{name} ended with {status} when it was asked to");
                let away = self.pause(AWAY_MS);
                self.cluster.restart(&name)?;
                Ok(format!("{name} for {away:?}"))
            }
            Fault::Unplug | Fault::Flap | Fault::Mute | Fault::Deafen => self.cut(fault),
            Fault::SplitStorage => self.split_storage(),
            Fault::KillMost => self.kill_most(),
            Fault::HostPower => {
                let name = self.server();
                self.cluster.cut_power_of(&name)?;
                let away = self.pause((0, AWAY_MS.1));
                self.cluster.restore_power_of(&name)?;
                Ok(format!("{name} for {away:?}"))
            }
            Fault::AllPower => {
                self.work.power_off(true);
                self.cluster.cut_power()?;
                let away = self.pause((0, 2_000));
                let begun = Instant::now();
                self.cluster.restore_power()?;
                self.work.power_off(false);
                Ok(format!("for {away:?}; all serve {:.1} s later", begun.elapsed().as_secs_f64()))
            }
            Fault::FullDisk => self.fill_disk(),
            Fault::FlipBits => self.flip_bits(),
        }
    }

    fn cut(&mut self, fault: Fault) -> Result<String> {
        let host = if self.prng.chance(1, 4) { "client".to_string() } else { self.server() };
        let network = self.cluster.network().context("hosts of their own")?.clone();
        match fault {
            Fault::Flap => {
                for _ in 0..10 {
                    network.plug(&host, false)?;
                    self.pause((50, 400));
                    network.plug(&host, true)?;
                    self.pause((50, 400));
                }
                return Ok(format!("{host}, ten times"));
            }
            Fault::Mute => network.drop_on(&host, "output", "")?,
            Fault::Deafen => network.drop_on(&host, "input", "")?,
            _ => network.plug(&host, false)?,
        }
        let away = self.pause(AWAY_MS);
        match fault {
            Fault::Mute | Fault::Deafen => network.drop_nothing_on(&host)?,
            _ => network.plug(&host, true)?,
        }
        Ok(format!("{host} for {away:?}"))
    }

    fn split_storage(&mut self) -> Result<String> {
        let mut nodes: Vec<String> = (1..=STORAGE).map(|n| format!("storage-{n}")).collect();
        self.prng.shuffle(&mut nodes);
        let network = self.cluster.network().context("hosts of their own")?.clone();
        let (half, others) = nodes.split_at(nodes.len() / 2);
        network.part(half, others)?;
        let away = self.pause(AWAY_MS);
        for name in half {
            network.drop_nothing_on(name)?;
        }
        Ok(format!("{} from the others for {away:?}", half.join(" and ")))
    }

    fn kill_most(&mut self) -> Result<String> {
        let (kind, of) = if self.prng.chance(1, 2) { ("metadata", METADATA) } else { ("storage", STORAGE) };
        let first = self.prng.between(1, of);
        let victims = [first, first % of + 1].map(|n| format!("{kind}-{n}"));
        for name in &victims {
            self.cluster.server(name)?.kill()?;
        }
        let away = self.pause((0, 4_000));
        self.cluster.start_all()?;
        Ok(format!("{} for {away:?}", victims.join(" and ")))
    }

    fn fill_disk(&mut self) -> Result<String> {
        let name = self.storage();
        let folder = self.cluster.folder().join("cluster").join(&name);
        let ballast = quote(folder.join("chaos-ballast"));
        self.work.may_be_full(true);
        shell(
            &format!("fallocate -l $(( $(df --output=avail -B1 {} | tail -n 1) - 65536 )) {ballast}", quote(&folder)),
            LIMIT,
        )?;
        let full = self.pause((2_000, AWAY_MS.1));
        shell(&format!("rm {ballast}"), LIMIT)?;
        self.cluster.wait_healthy(LIMIT)?;
        // Errors of buffered bytes that did not fit are told with the next sync, and then no more.
        self.work.wait_for_room()?;
        Ok(format!("{name} for {full:?}"))
    }

    fn flip_bits(&mut self) -> Result<String> {
        let data = self.cluster.folder().join("cluster").join(&self.rotten).join("data");
        let wanted = self.prng.between(1, 20);
        let flipped = flip(&data, wanted, &mut self.prng)?;
        self.flipped += flipped;
        self.cluster.scrub()?;
        Ok(format!("in {flipped} blocks of {}", self.rotten))
    }

    /// The last look at everything.
    fn end(mut self) -> Result<(Vec<(&'static str, u64)>, u64)> {
        self.cluster.wait_healthy(LIMIT)?;
        let done = self.work.stop();
        let fresh = self.cluster.mount()?;
        let mut found = done.findings(self.cluster.mounted(fresh).path());
        if let Err(error) = self.cluster.scrub() {
            found.push(format!("replicas: {error:#}"));
        }
        if let Err(error) = self.cluster.admin(&["fsck"]) {
            found.push(format!("fsck: {error:#}"));
        }
        if !found.is_empty() {
            bail!("{} findings:\n{}\n{}", found.len(), found.join("\n"), self.cluster.log_tails());
        }
        let refused = done.refused();
        Ok((done.steps, refused))
    }
}

/// Changes a bit in each of some blocks that hold something. Returns in how many.
fn flip(data: &Path, wanted: u64, prng: &mut Prng) -> Result<u64> {
    let mut extents = Vec::new();
    for entry in std::fs::read_dir(data).with_context(|| data.display().to_string())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("extent-") {
            extents.push((entry.path(), entry.metadata()?.len() / BLOCK));
        }
    }
    extents.sort();
    let blocks: u64 = extents.iter().map(|(_, blocks)| blocks).sum();
    let mut flipped = 0;
    for _ in 0..wanted * 50 {
        if flipped == wanted || blocks == 0 {
            break;
        }
        let mut at = prng.below(blocks);
        let Some((path, _)) = extents.iter().find(|(_, blocks)| {
            let here = at < *blocks;
            at -= if here { 0 } else { *blocks };
            here
        }) else {
            break;
        };
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut bytes = [0; BLOCK as usize];
        file.read_exact_at(&mut bytes, at * BLOCK)?;
        if bytes.iter().all(|byte| *byte == 0) {
            continue; // Nobody would miss it.
        }
        let (byte, bit) = (prng.below(BLOCK), prng.below(8));
        file.write_all_at(&[bytes[byte as usize] ^ (1 << bit)], at * BLOCK + byte)?;
        flipped += 1;
    }
    Ok(flipped)
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let faults: Vec<String> = self.injected.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let steps: Vec<String> = self.steps.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let (total, flipped, refused) = (self.injected.values().sum::<u64>(), self.flipped, self.refused);
        writeln!(f, "{total} faults: {}", faults.join(", "))?;
        writeln!(f, "{flipped} blocks damaged, {refused} steps refused while a disk was full")?;
        write!(f, "steps: {}", steps.join(", "))
    }
}
