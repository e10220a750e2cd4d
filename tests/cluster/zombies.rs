//! Zombies: a host that was given up still runs a process with a file open. Whatever it does when it wakes, nothing of it reaches what its
//! successor uses.

use holdfast_tests::mount::Mount;
use holdfast_tests::{Cluster, Options, can_mount, note, until};
use rustix::process::Signal;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;
/// What a server or a cable takes to be noticed, and then some.
const STUCK: Duration = Duration::from_millis(500);
/// A call that has not returned after so long waits.
const WAITS: Duration = Duration::from_secs(2);

/// How the first host is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    /// Its mount's process is stopped.
    Stopped,
    /// It reaches no metadata server.
    NoMetadata,
    /// It reaches no storage node.
    NoStorage,
    /// It reaches nobody.
    Alone,
}

/// Why the second host gets what the first one held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takeover {
    /// The first one was silent for too long.
    Silence,
    /// Somebody says so.
    Fence,
    /// The second one is a later life of the same container.
    Generation,
}

/// A block that says who wrote it, and as which.
fn block(who: u8, number: u64) -> Vec<u8> {
    let mut block = vec![who; BLOCK];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

fn number_of(block: &[u8]) -> u64 {
    u64::from_le_bytes(block[..8].try_into().expect("eight bytes"))
}

/// The process that does not know that it was replaced: it writes one numbered block after the other to a file that it keeps open, until it is
/// told that it cannot. Not a thread of ours: whatever we start closes what we have open, and closing waits for the mount.
const WRITER: &str = r#"
import errno, os, struct, sys
path, blocks, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
number = 0
try:
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    while True:
        number += 1
        os.pwrite(file, struct.pack("<Q", number) + b"A" * (size - 8), number % blocks * size)
        os.fdatasync(file)
        print(number, flush=True)
except OSError as error:
    print("error", errno.errorcode[error.errno], flush=True)
    os._exit(0)
"#;

struct Writer {
    /// How many it was told are durable.
    acknowledged: Arc<AtomicU64>,
    process: Child,
    /// Gives the name of the error that ended it.
    ended: mpsc::Receiver<String>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", WRITER]).arg(path).args([BLOCKS.to_string(), BLOCK.to_string()]);
        let mut process = command.stdout(Stdio::piped()).spawn().expect("python3 runs");
        let said = BufReader::new(process.stdout.take().expect("piped"));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&acknowledged);
        let (say, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let mut last = "nothing: it has gone".to_owned();
            for line in said.lines().map_while(Result::ok) {
                match line.strip_prefix("error ") {
                    Some(error) => last = error.to_owned(),
                    None => counter.store(line.parse().expect("a number"), Ordering::SeqCst),
                }
            }
            let _ = say.send(last);
        });
        Self { acknowledged, process, ended }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits for its end; what ended it.
    fn end(mut self) -> String {
        let error = self.ended.recv_timeout(LIMIT);
        if error.is_err() {
            self.process.kill().expect("killed");
        }
        self.process.wait().expect("it ends");
        error.expect("it is told that it cannot go on")
    }
}

/// The log of a mount says something soon.
fn wait_for_word(mount: &mut Mount, word: &str) -> anyhow::Result<()> {
    until(word, LIMIT, || {
        let log = mount.process().log_tail();
        if log.contains(word) { Ok(()) } else { anyhow::bail!("its log does not say so: {log}") }
    })
}

/// What is in the file, block by block.
fn blocks(path: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.chunks(BLOCK).map(<[u8]>::to_vec).collect())
}

struct Scene {
    cluster: Cluster,
    metadata: String,
    storage: String,
    generation: u64,
}

impl Scene {
    fn addresses(cluster: &Cluster, kind: &str) -> String {
        let network = cluster.network().expect("hosts of their own");
        let all: Vec<String> = (1..=3).map(|n| network.address(&format!("{kind}-{n}")).expect("an address")).collect();
        all.join(", ")
    }

    fn new() -> Self {
        let cluster = Cluster::start(&Options { namespaces: true, ..Options::default() }).expect("healthy");
        let (metadata, storage) = (Self::addresses(&cluster, "metadata"), Self::addresses(&cluster, "storage"));
        Self { cluster, metadata, storage, generation: 0 }
    }

    fn mount(&mut self, host: &str, instance: bool) -> usize {
        self.generation += 1;
        let mut options = format!("quarantine={}", self.cluster.folder().join("quarantine").display());
        if instance {
            options += &format!(",instance=db,generation={}", self.generation);
        }
        self.cluster.mount_on(host, &options).expect("mounted")
    }

    fn take_away(&mut self, mount: usize, away: Away) {
        let cut = match away {
            Away::Stopped => return self.cluster.mounted(mount).process().suspend().expect("stopped"),
            Away::NoMetadata => self.metadata.clone(),
            Away::NoStorage => self.storage.clone(),
            Away::Alone => format!("{}, {}", self.metadata, self.storage),
        };
        let network = self.cluster.network().expect("hosts of their own");
        network.drop_on("client", "output", &format!("ip daddr {{ {cut} }}")).expect("cut");
        network.drop_on("client", "input", &format!("ip saddr {{ {cut} }}")).expect("cut");
    }

    fn bring_back(&mut self, mount: usize, away: Away) {
        match away {
            Away::Stopped => self.cluster.mounted(mount).process().signal(Signal::CONT).expect("goes on"),
            _ => self.cluster.network().expect("hosts").drop_nothing_on("client").expect("whole again"),
        }
    }

    fn play(&mut self, away: Away, takeover: Takeover) {
        let what = format!("{away:?}, {takeover:?}");
        let by_generation = takeover == Takeover::Generation;
        let first = self.mount("client", by_generation);
        let zombies = self.cluster.mounted(first).path().join("held");
        let writer = Writer::start(&zombies);
        until("it writes", LIMIT, || {
            let count = writer.acknowledged();
            if count > 2 * BLOCKS { Ok(()) } else { anyhow::bail!("{count} blocks") }
        })
        .expect("it writes");
        self.take_away(first, away);
        std::thread::sleep(STUCK);
        let before = writer.acknowledged();
        let begun = Instant::now();
        if takeover == Takeover::Fence {
            let sessions = self.cluster.admin(&["sessions", "--json", "--volume", "main"]).expect("listed");
            let sessions: serde_json::Value = serde_json::from_str(&sessions).expect("JSON");
            let [only] = sessions.as_array().expect("a list").as_slice() else { panic!("{what}: {sessions}") };
            self.cluster.admin(&["fence", &only["id"].to_string()]).expect("fenced");
        }
        let second = self.mount("client-2", by_generation);
        let path = self.cluster.mounted(second).path().join("held");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("the successor opens it");
        note(&format!("{what}: taken over after {:.0} ms", begun.elapsed().as_secs_f64() * 1e3));
        // From here on, not a byte of the first one's.
        let inherited = blocks(&path).expect("the successor reads");
        let newest = inherited.iter().map(|block| number_of(block)).max().expect("blocks");
        assert!(newest >= before, "{what}: {before} blocks were acknowledged, and {newest} is the newest");
        let later = writer.acknowledged();
        assert!(newest >= later, "{what}: {later} blocks were acknowledged, and {newest} is the newest");
        for (at, found) in inherited.iter().enumerate() {
            let number = number_of(found);
            assert!(*found == block(b'A', number) && number % BLOCKS == at as u64, "{what}: block {at} is torn");
        }
        for number in 0..BLOCKS {
            file.write_all_at(&block(b'B', number), number * BLOCK as u64).expect("the successor writes");
        }
        file.sync_all().expect("the successor syncs");
        drop(file);
        if away == Away::Stopped && takeover == Takeover::Silence {
            // Its lease has run out: another process of that host waits or fails, and is not shown what was.
            look_is_not_stale(&what, &zombies);
        }
        self.bring_back(first, away);
        assert_eq!(writer.end(), "EIO", "{what}");
        wait_for_word(self.cluster.mounted(first), "session is over").expect(&what);
        let opened = std::fs::File::open(&zombies).map(drop).map_err(|error| error.raw_os_error());
        assert_eq!(opened, Err(Some(libc::EIO)), "{what}: the first mount is of no use any more");
        // Not what the successor's mount remembers: what is stored.
        self.cluster.mounted(second).unmount().expect("unmounts");
        self.cluster.mounted(second).restart().expect("mounted again");
        let last = blocks(&path).expect("the successor reads");
        for (at, found) in last.iter().enumerate() {
            assert!(*found == block(b'B', at as u64), "{what}: block {at} is not the successor's any more");
        }
        assert_eq!(last.len() as u64, BLOCKS, "{what}");
        self.cluster.mounted(second).unmount().expect("unmounts");
        self.cluster.mounted(first).kill().expect("gone");
    }
}

/// Reads the file where the zombie's mount is, with the zombie stopped.
fn look_is_not_stale(what: &str, path: &Path) {
    let (said, says) = mpsc::channel();
    let path = path.to_path_buf();
    // It may wait for as long as the mount is stopped.
    std::thread::spawn(move || {
        let _ = said.send(std::fs::metadata(&path).and_then(|_| blocks(&path)));
    });
    match says.recv_timeout(WAITS) {
        Err(mpsc::RecvTimeoutError::Timeout) | Ok(Err(_)) => {}
        Ok(Ok(found)) => {
            let old = found.iter().filter(|block| block[BLOCK - 1] != b'B').count();
            assert_eq!(old, 0, "{what}: shown {old} blocks of before");
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

#[test]
fn a_zombie_can_do_no_harm() {
    if !can_mount("a_zombie_can_do_no_harm", &["ip", "nsenter", "nft", "python3"]) {
        return;
    }
    let mut scene = Scene::new();
    for away in [Away::Stopped, Away::NoMetadata, Away::NoStorage, Away::Alone] {
        scene.play(away, Takeover::Fence);
        scene.play(away, Takeover::Generation);
    }
    // Whoever reaches the metadata servers is not silent: it is waited for until somebody says otherwise.
    for away in [Away::Stopped, Away::NoMetadata, Away::Alone] {
        scene.play(away, Takeover::Silence);
    }
    scene.cluster.wait_healthy(LIMIT).expect("healthy");
    scene.cluster.scrub().expect("replicas agree");
    assert!(scene.cluster.admin(&["fsck"]).expect("clean").contains("clean"));
    assert!(!scene.cluster.log_tails().contains("panicked"), "{}", scene.cluster.log_tails());
}

/// Writes what is not sent for a while, says so, and holds on to the file.
const HOLDER: &str = r#"
import os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.pwrite(file, bytes(i // 100 % 251 for i in range(200_000)), 10_000)
print("written", flush=True)
time.sleep(600)
"#;

/// Looks at a file until that fails.
const LOOKER: &str = r#"
import os, sys, time
print("looks", flush=True)
while True:
    os.stat(sys.argv[1])
    time.sleep(0.05)
"#;

fn python(program: &str, path: &Path) -> Child {
    let mut command = Command::new("python3");
    let mut child = command.args(["-c", program]).arg(path).stdout(Stdio::piped()).spawn().expect("python3 runs");
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut said).expect("it says something");
    assert!(!said.is_empty(), "it ended");
    child
}

fn fence_all(cluster: &Cluster) {
    let said = cluster.admin(&["fence", "--volume", "main"]).expect("fenced");
    assert!(said.contains("neither bytes nor names"), "{said}");
}

/// What ended a process that is to end soon.
fn ended(what: &str, child: &mut Child) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    until(what, LIMIT, || child.try_wait()?.ok_or_else(|| anyhow::anyhow!("it runs"))).expect(what).signal()
}

#[test]
fn what_a_fenced_mount_had_not_sent_is_kept_and_whoever_has_files_open_is_stopped_as_asked_for() {
    let name = "what_a_fenced_mount_had_not_sent_is_kept_and_whoever_has_files_open_is_stopped_as_asked_for";
    if !can_mount(name, &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("healthy");
    let quarantine = cluster.folder().join("quarantine");
    let options = format!("writeback_delay=120,quarantine={}", quarantine.display());

    let mount = cluster.mount_on("client", &format!("{options},on_lost=kill")).expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    std::fs::create_dir(at.join("db")).expect("made");
    let mut holder = python(HOLDER, &at.join("db/wal"));
    fence_all(&cluster);
    assert_eq!(ended("the holder is killed", &mut holder), Some(libc::SIGKILL));
    let kept = until("the bytes are kept", LIMIT, || {
        let folders: Vec<_> =
            std::fs::read_dir(&quarantine)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        let done = folders.into_iter().find(|folder| folder.extension().is_none());
        done.ok_or_else(|| anyhow::anyhow!("no folder"))
    });
    let kept = kept.expect("kept");
    let about = std::fs::read_to_string(kept.join("ABOUT.txt")).expect("read");
    assert!(about.contains("db/wal (") && about.contains("fenced by an administrator"), "{about}");
    let file = std::fs::read_dir(&kept).expect("listed").map(|entry| entry.expect("read").path());
    let file = file.into_iter().find(|path| path.to_string_lossy().ends_with("-db_wal")).expect("a copy");
    let expected: Vec<u8> = (0..10_000).map(|_| 0).chain((0..200_000).map(|i| (i / 100 % 251) as u8)).collect();
    assert!(std::fs::read(&file).expect("read") == expected, "other bytes are kept than were written");
    wait_for_word(cluster.mounted(mount), "1 processes with open files were killed").expect("said");
    wait_for_word(cluster.mounted(mount), &format!("kept in {}", kept.display())).expect("said");
    let opened = std::fs::File::open(at.join("db/wal")).map(drop).map_err(|error| error.raw_os_error());
    assert_eq!(opened, Err(Some(libc::EIO)));
    // The fence holds for names, and once more is no mistake.
    cluster.admin(&["fence", "1"]).expect("over already");
    cluster.mounted(mount).kill().expect("gone");

    let mount = cluster.mount_on("client", &format!("{options},on_lost=block")).expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    std::fs::write(at.join("f"), b"x").expect("written");
    let mut looker = python(LOOKER, &at.join("f"));
    fence_all(&cluster);
    std::thread::sleep(WAITS);
    assert!(looker.try_wait().expect("asked").is_none(), "it was told an error");
    looker.kill().expect("killed");
    assert_eq!(ended("what waits can be killed", &mut looker), Some(libc::SIGKILL));
    cluster.mounted(mount).kill().expect("gone");
}
