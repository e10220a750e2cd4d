//! Work on a mount that remembers what was acknowledged, so that it can be looked for after a disaster.
//!
//! Three kinds of writers, each a thread of this process (which no fault touches):
//! * *append*: 4 KiB at the end of a file, then `fdatasync`;
//! * *overwrite*: a block somewhere in a small file, then `fdatasync`; a torn or lost block shows by its content;
//! * *create*: a new file, `fsync`, renamed into place, `fsync` of the folder.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::Cluster;
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

pub(crate) const BLOCK_BYTES: usize = 4096;
/// Blocks of the file that is overwritten: few, so that each is written often.
const OVERWRITTEN_BLOCKS: u64 = 64;

/// The content of the write number `number` of `writer`: a header, then bytes that follow from it.
pub(crate) fn block(writer: &str, number: u64) -> Vec<u8> {
    let mut state = writer.bytes().fold(number.wrapping_add(0x9E37_79B9_7F4A_7C15), |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    }) | 1;
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    bytes.extend_from_slice(&number.to_le_bytes());
    while bytes.len() < BLOCK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Writers at work.
#[derive(Debug)]
pub struct Load {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Acknowledged>>,
}

/// What one writer was told is durable.
#[derive(Debug)]
pub struct Acknowledged {
    writer: &'static str,
    /// For *append* and *create*: writes 0 up to this number. For *overwrite*: unused.
    count: u64,
    /// For *overwrite*: the last acknowledged write of each block.
    last: Vec<Option<u64>>,
    /// Why it stopped, if not because it was told to.
    error: Option<io::Error>,
}

impl Load {
    /// Starts one writer of each kind in a new folder `name` on the mount.
    ///
    /// # Errors
    /// When the folder or the first files cannot be made.
    pub fn start(mount: &Path, name: &str) -> Result<Self> {
        let folder = mount.join(name);
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::create_dir(folder.join("create"))?;
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut load = Self { folder, stop, acknowledged, writers: Vec::new() };
        let append = load.new_file("append")?;
        load.spawn("append", move |said, _| {
            append
                .write_all_at(&block("append", said.count), said.count * BLOCK_BYTES as u64)
                .and_then(|()| append.sync_data())
        });
        let overwrite = load.new_file("overwrite")?;
        load.spawn("overwrite", move |said, number| {
            let at = number.wrapping_mul(2_654_435_761) % OVERWRITTEN_BLOCKS;
            overwrite.write_all_at(&block("overwrite", number), at * BLOCK_BYTES as u64)?;
            overwrite.sync_data()?;
            said.last[usize::try_from(at).unwrap_or(0)] = Some(number);
            Ok(())
        });
        let into = load.folder.join("create");
        load.spawn("create", move |_, number| {
            let temporary = into.join("new");
            let file = File::create(&temporary)?;
            file.write_all_at(&block("create", number), 0)?;
            file.sync_all()?;
            std::fs::rename(&temporary, into.join(number.to_string()))?;
            File::open(&into)?.sync_all()
        });
        // The names themselves, before anything counts.
        for folder in [&load.folder, mount] {
            File::open(folder)?.sync_all()?;
        }
        Ok(load)
    }

    fn new_file(&self, name: &str) -> Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).open(self.folder.join(name))?;
        file.sync_all()?;
        Ok(file)
    }

    fn spawn(
        &mut self,
        writer: &'static str,
        mut write: impl FnMut(&mut Acknowledged, u64) -> io::Result<()> + Send + 'static,
    ) {
        let (stop, acknowledged) = (self.stop.clone(), self.acknowledged.clone());
        self.writers.push(std::thread::spawn(move || {
            let mut said = Acknowledged {
                writer,
                count: 0,
                last: vec![None; usize::try_from(OVERWRITTEN_BLOCKS).unwrap_or(0)],
                error: None,
            };
            while !stop.load(Ordering::Relaxed) {
                let number = said.count;
                if let Err(error) = write(&mut said, number) {
                    said.error = Some(error);
                    break;
                }
                said.count += 1;
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            said
        }));
    }

    /// Waits until `count` more writes were acknowledged.
    ///
    /// # Errors
    /// When that takes more than a minute.
    pub fn wait_for(&self, count: u64) -> Result<()> {
        let goal = self.acknowledged.load(Ordering::Relaxed) + count;
        crate::until(&format!("{count} more acknowledged writes"), Duration::from_secs(60), || {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { bail!("{now} of {goal}") }
        })
    }

    /// Tells the writers to stop (or finds that the disaster stopped them), and returns what they know.
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let writers = self
            .writers
            .into_iter()
            .map(|writer| writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        Report { folder: self.folder, writers: writers.collect() }
    }
}

/// What all writers of a [`Load`] were told is durable.
#[derive(Debug)]
pub struct Report {
    folder: PathBuf,
    writers: Vec<Acknowledged>,
}

impl Report {
    /// Writes acknowledged by all writers together.
    pub fn acknowledged(&self) -> u64 {
        self.writers.iter().map(|writer| writer.count).sum()
    }

    /// Errors that stopped writers, in words.
    pub fn errors(&self) -> Vec<String> {
        self.writers
            .iter()
            .filter_map(|writer| Some(format!("{}: {}", writer.writer, writer.error.as_ref()?)))
            .collect()
    }

    /// Reads everything acknowledged back. Returns what is missing or different, in words, at most ten of each kind.
    pub fn missing(&self) -> Vec<String> {
        let mut bad = Vec::new();
        for writer in &self.writers {
            let before = bad.len();
            let found = match writer.writer {
                "append" => self.check_append(writer, &mut bad),
                "overwrite" => self.check_overwrite(writer, &mut bad),
                _ => self.check_create(writer, &mut bad),
            };
            if let Err(error) = found {
                bad.push(format!("{}: cannot be read: {error}", writer.writer));
            }
            let more = (bad.len() - before).saturating_sub(10);
            bad.truncate(before + 10);
            if more > 0 {
                bad.push(format!("{}: and {more} more", writer.writer));
            }
        }
        bad
    }

    fn check_append(&self, writer: &Acknowledged, bad: &mut Vec<String>) -> io::Result<()> {
        let file = File::open(self.folder.join("append"))?;
        for number in 0..writer.count {
            let got = read_block(&file, number)?;
            if got != block("append", number) {
                bad.push(format!("append {number}: {}", describe(&got)));
            }
        }
        Ok(())
    }

    fn check_overwrite(&self, writer: &Acknowledged, bad: &mut Vec<String>) -> io::Result<()> {
        let file = File::open(self.folder.join("overwrite"))?;
        for (at, last) in writer.last.iter().enumerate() {
            let Some(last) = *last else { continue };
            let got = read_block(&file, at as u64)?;
            // The one write in flight at the end may or may not be there, whole.
            let whole = |number| got == block("overwrite", number);
            if !whole(last) && !whole(writer.count) {
                bad.push(format!("overwrite of block {at} by {last}: {}", describe(&got)));
            }
        }
        Ok(())
    }

    fn check_create(&self, writer: &Acknowledged, bad: &mut Vec<String>) -> io::Result<()> {
        for number in 0..writer.count {
            match std::fs::read(self.folder.join("create").join(number.to_string())) {
                Ok(got) if got == block("create", number) => {}
                Ok(got) => bad.push(format!("create {number}: {}", describe(&got))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => bad.push(format!("create {number}: missing")),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

pub(crate) fn read_block(file: &File, number: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BLOCK_BYTES];
    let mut filled = 0;
    while filled < BLOCK_BYTES {
        let n = file.read_at(&mut bytes[filled..], number * BLOCK_BYTES as u64 + filled as u64)?;
        if n == 0 {
            break;
        }
        filled += n;
    }
    bytes.truncate(filled);
    Ok(bytes)
}

pub(crate) fn describe(bytes: &[u8]) -> String {
    match bytes {
        [] => "nothing there".to_string(),
        bytes if bytes.iter().all(|byte| *byte == 0) => format!("{} zeros", bytes.len()),
        bytes => format!("{} other bytes beginning {:02x?}", bytes.len(), &bytes[..bytes.len().min(8)]),
    }
}

/// A run of `benches/failover.py`.
#[derive(Debug)]
pub struct Failover<'a> {
    /// The file system.
    pub mount: &'a Path,
    /// A folder on a file system that stays up.
    pub work: &'a Path,
    /// The fault, a line of shell; 5 s after the start.
    pub fault: String,
    /// Seconds from the start to the call of `heal`.
    pub heal_after_s: u32,
    /// Seconds from the start to the end.
    pub duration_s: u32,
}

impl Failover<'_> {
    /// Runs it; `heal` is called in this process. Returns its JSON.
    ///
    /// # Errors
    /// When acknowledged data is missing, a writer hangs, or any call of the application failed.
    pub fn run(&self, label: &str, heal: impl FnOnce() -> Result<()>) -> Result<Value> {
        let (asked, done, json) =
            (self.work.join("heal-asked"), self.work.join("heal-done"), self.work.join("failover.json"));
        for stale in [&asked, &done, &json] {
            let _ = std::fs::remove_file(stale);
        }
        let quoted = crate::command::quote;
        let mut command = Command::new("python3");
        command.arg(crate::command::repository().join("benches/failover.py")).arg(self.mount);
        command.args(["--label", label, "--fault", &self.fault]);
        command.args(["--heal-after", &self.heal_after_s.to_string(), "--duration", &self.duration_s.to_string()]);
        command.arg("--heal").arg(format!(
            "touch {}; until [ -e {} ]; do sleep 0.1; done",
            quoted(&asked),
            quoted(&done)
        ));
        command.arg("--json").arg(&json);
        let limit = Duration::from_secs(u64::from(self.duration_s) + 150);
        let runs = std::thread::spawn(move || crate::command::run(&mut command, limit));
        let healed = crate::until("the moment to heal", limit, || {
            if asked.exists() || runs.is_finished() { Ok(()) } else { bail!("not yet") }
        })
        .and_then(|()| heal());
        std::fs::write(&done, "")?;
        let said = runs.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        healed?;
        if !said.success {
            bail!("acknowledged data is missing, a writer hangs or calls failed:\n{}{}", said.stdout, said.stderr);
        }
        let result: Value = serde_json::from_str(&std::fs::read_to_string(&json)?)?;
        let writers = result["writers"].as_object().context("writers in the result")?;
        for (name, writer) in writers {
            let stall = &writer["longest_stall_ms"];
            let acks = &writer["acks"];
            crate::note(&format!("{label}: {name}: {acks} acknowledged, longest stall {stall} ms"));
            if writer["acks_after_fault"].as_u64().unwrap_or(0) == 0 {
                bail!("nothing was acknowledged after the fault:\n{}", said.stdout);
            }
        }
        Ok(result)
    }
}

/// What happens to a server, and is undone later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`; it is started again.
    Kill,
    /// `SIGSTOP`, as of a host that froze; it wakes.
    Freeze,
    /// A planned stop; it is started again.
    Stop,
}

impl Fault {
    fn signal(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Freeze => "STOP",
            Self::Stop => "TERM",
        }
    }

    fn undo(self, cluster: &mut Cluster, victim: &str) -> Result<()> {
        match self {
            Self::Freeze => return cluster.server(victim)?.signal(Signal::CONT),
            Self::Stop => drop(cluster.server(victim)?.wait_ended(WHOLE_AGAIN)?),
            Self::Kill => {}
        }
        cluster.restart(victim)
    }
}

/// Until a server that was stopped has ended, and until a cluster is whole again.
const WHOLE_AGAIN: Duration = Duration::from_secs(60);

/// What `failover.py` says of a fault of one server of a cluster, which is whole again and not mounted any more.
///
/// `times`: seconds from the start of the writers to the end of the fault, and to their end. `during` looks at the cluster just before
/// the fault ends.
///
/// # Errors
/// As [`Failover::run`]; when `during` finds something, or the cluster is not whole again.
pub fn fail_over(
    label: &str,
    cluster: &mut Cluster,
    (victim, fault): (&str, Fault),
    (heal_after_s, duration_s): (u32, u32),
    during: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<Value> {
    let mount = cluster.mount()?;
    let at = cluster.mounted(mount).path().to_path_buf();
    let pid = cluster.server(victim)?.pid().context("it runs")?;
    let work = cluster.folder().to_path_buf();
    let line = format!("kill -{} {pid}", fault.signal());
    let run = Failover { mount: &at, work: &work, fault: line, heal_after_s, duration_s };
    let result = run.run(label, || {
        during(cluster)?;
        fault.undo(cluster, victim)
    })?;
    cluster.wait_healthy(WHOLE_AGAIN)?;
    cluster.mounted(mount).unmount()?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_acknowledged_is_found_and_any_change_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let load = Load::start(folder.path(), "load").expect("starts");
        load.wait_for(200).expect("writes are acknowledged");
        let report = load.stop();
        assert!(report.acknowledged() >= 200 && report.errors().is_empty(), "{report:?}");
        assert_eq!(report.missing(), Vec::<String>::new());

        let at = folder.path().join("load");
        let append = OpenOptions::new().write(true).open(at.join("append")).expect("opens");
        append.write_all_at(b"x", 5000).expect("one byte changed");
        let overwrite = OpenOptions::new().write(true).open(at.join("overwrite")).expect("opens");
        overwrite.write_all_at(&[0; 100], 100).expect("torn");
        std::fs::remove_file(at.join("create/0")).expect("removed");
        let missing = report.missing().join("\n");
        for word in ["append 1:", "overwrite of block 0", "create 0: missing"] {
            assert!(missing.contains(word), "{word} not in {missing}");
        }
    }

    #[test]
    fn failover_reports_a_run_on_the_local_disk() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let run = Failover {
            mount: folder.path(),
            work: folder.path(),
            fault: "true".into(),
            heal_after_s: 6,
            duration_s: 7,
        };
        let mut healed = false;
        let result = run.run("local disk", || {
            healed = true;
            Ok(())
        });
        let result = result.expect("nothing is lost on a local disk");
        assert!(healed && result["writers"]["append"]["acks"].as_u64() > Some(0), "{result}");
    }
}
