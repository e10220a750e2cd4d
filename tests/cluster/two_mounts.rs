//! Two mounts of one volume see one file system: after a call returns on one, a later call on the other sees its effect.
//!
//! A checker does random operations, each on a mount drawn by lot, and compares every answer with a model in memory.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use holdfast_tests::{Cluster, Options, can_mount, note};

/// A small generator, so that a failure can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What the folder must hold.
type Model = BTreeMap<String, Vec<u8>>;

const FILE_BYTES_MAX: usize = 200_000;

/// One random operation on the mount `at`, compared with the model.
fn step(at: &Path, model: &mut Model, dice: &mut Dice) -> String {
    let name = format!("f{}", dice.roll(6));
    let path = at.join(&name);
    let known = model.get(&name).cloned();
    match dice.roll(10) {
        0 => {
            let made = OpenOptions::new().write(true).create_new(true).open(&path).map(drop);
            assert_eq!(made.is_ok(), known.is_none(), "create {name}: {made:?}");
            model.entry(name.clone()).or_default();
            format!("create {name}")
        }
        1 | 2 => write_somewhere(&path, &name, known, model, dice),
        3 => {
            let Some(mut bytes) = known else { return format!("no append to {name}") };
            let more = vec![dice.roll(256) as u8; dice.roll(5_000) as usize + 1];
            OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(&more)).expect("append");
            bytes.extend_from_slice(&more);
            model.insert(name.clone(), bytes);
            format!("append {} to {name}", more.len())
        }
        4 => {
            let Some(mut bytes) = known else { return format!("no truncate of {name}") };
            let length = dice.roll(FILE_BYTES_MAX as u64) as usize;
            OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(length as u64)).expect("truncate");
            bytes.resize(length, 0);
            model.insert(name.clone(), bytes);
            format!("truncate {name} to {length}")
        }
        5 => {
            let gone = std::fs::remove_file(&path);
            assert_eq!(gone.is_ok(), model.remove(&name).is_some(), "unlink {name}: {gone:?}");
            format!("unlink {name}")
        }
        6 => {
            let to = format!("f{}", dice.roll(6));
            let moved = std::fs::rename(&path, at.join(&to));
            assert_eq!(moved.is_ok(), known.is_some(), "rename {name} to {to}: {moved:?}");
            if let Some(bytes) = model.remove(&name) {
                model.insert(to.clone(), bytes);
            }
            format!("rename {name} to {to}")
        }
        7 => {
            let mut listed: Vec<String> = std::fs::read_dir(at)
                .expect("list")
                .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
                .collect();
            listed.sort();
            assert_eq!(listed, model.keys().cloned().collect::<Vec<_>>(), "list");
            "list".to_string()
        }
        8 => {
            let length = std::fs::metadata(&path).map(|meta| meta.len() as usize).ok();
            assert_eq!(length, known.map(|bytes| bytes.len()), "stat {name}");
            format!("stat {name}")
        }
        _ => {
            match (std::fs::read(&path), known) {
                (Ok(got), Some(bytes)) => assert!(got == bytes, "read {name}: {}", difference(&got, &bytes)),
                (Err(error), None) if error.kind() == ErrorKind::NotFound => {}
                (got, known) => {
                    panic!("read {name}: {:?} but the model has {:?}", got.map(|b| b.len()), known.map(|b| b.len()))
                }
            }
            format!("read {name}")
        }
    }
}

fn write_somewhere(path: &Path, name: &str, known: Option<Vec<u8>>, model: &mut Model, dice: &mut Dice) -> String {
    let Some(mut bytes) = known else { return format!("no write to {name}") };
    let offset = dice.roll(FILE_BYTES_MAX as u64 / 2) as usize;
    let content = vec![dice.roll(256) as u8; dice.roll(60_000) as usize + 1];
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.write_all_at(&content, offset as u64))
        .expect("write");
    if bytes.len() < offset + content.len() {
        bytes.resize(offset + content.len(), 0);
    }
    bytes[offset..offset + content.len()].copy_from_slice(&content);
    model.insert(name.to_string(), bytes);
    format!("write {} at {offset} of {name}", content.len())
}

fn difference(got: &[u8], want: &[u8]) -> String {
    let at = got.iter().zip(want).position(|(a, b)| a != b);
    format!("{} bytes instead of {}, first difference at {at:?}", got.len(), want.len())
}

/// Runs `count` operations, each on one of `mounts` drawn by lot.
fn play(mounts: &[PathBuf], model: &mut Model, seed: u64, count: u32) {
    let mut dice = Dice(seed);
    let mut history: Vec<String> = Vec::new();
    for _ in 0..count {
        let which = dice.roll(mounts.len() as u64) as usize;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| step(&mounts[which], model, &mut dice)));
        match outcome {
            Ok(said) => history.push(format!("mount {which}: {said}")),
            Err(panic) => {
                println!(
                    "seed {seed}, mount {which}, operation {}; before it:\n  {}",
                    history.len(),
                    history[history.len().saturating_sub(30)..].join("\n  ")
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Two mounts of the volume.
fn mounts(cluster: &mut Cluster) -> [PathBuf; 2] {
    [(); 2].map(|()| {
        let number = cluster.mount().expect("mounted");
        cluster.mounted(number).path().to_path_buf()
    })
}

#[test]
fn two_mounts_see_one_file_system() {
    if !can_mount("two_mounts_see_one_file_system", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let first = cluster.mount().expect("mounted");
    let at = cluster.mounted(first).path().join("shared");
    std::fs::create_dir(&at).expect("made");
    let mut model = Model::new();
    // Alone, the first mount caches without limit; nothing is synced when the second one comes.
    play(std::slice::from_ref(&at), &mut model, 11, 400);
    let cached = File::create(at.join("f0")).and_then(|mut file| file.write_all(&[3; 100_000]));
    cached.expect("written into the cache");
    model.insert("f0".to_string(), vec![3; 100_000]);

    let second = cluster.mount().expect("admitted once the first has flushed");
    let other = cluster.mounted(second).path().join("shared");
    let both = [at.clone(), other.clone()];
    assert!(std::fs::read(other.join("f0")).expect("seen at once") == vec![3; 100_000], "what the first had cached");
    let count = if holdfast_tests::report::long() { 20_000 } else { 1_500 };
    play(&both, &mut model, 12, count);

    // One is left again: it may cache again, and has everything.
    cluster.mounted(second).unmount().expect("unmounted");
    play(std::slice::from_ref(&at), &mut model, 13, 400);
    cluster.mounted(second).restart().expect("mounted again");
    play(&both, &mut model, 14, count / 3);
    note(&format!("two mounts: {} operations on both agreed with the model", count + count / 3));
}

#[test]
fn appends_from_two_mounts_never_overwrite_each_other() {
    if !can_mount("appends_from_two_mounts_never_overwrite_each_other", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mounts = mounts(&mut cluster);
    const LINES: usize = 200;
    let writers: Vec<_> = mounts
        .iter()
        .enumerate()
        .map(|(who, mount)| {
            let path = mount.join("log");
            std::thread::spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(path).expect("opened");
                for line in 0..LINES {
                    // One call per line: what `writeln!` writes in pieces may be mixed by anybody.
                    file.write_all(format!("writer {who} line {line:04}\n").as_bytes()).expect("appended");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("wrote everything");
    }
    for mount in &mounts {
        let text = std::fs::read_to_string(mount.join("log")).expect("readable");
        for who in 0..2 {
            let own: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("writer {who} "))).collect();
            let want: Vec<String> = (0..LINES).map(|line| format!("writer {who} line {line:04}")).collect();
            assert_eq!(own, want, "through {}", mount.display());
        }
        assert_eq!(text.lines().count(), 2 * LINES);
    }
}

#[test]
fn mapped_pages_are_coherent_through_msync_and_a_new_mapping() {
    if !can_mount("two_mounts::mapped_pages_are_coherent_through_msync_and_a_new_mapping", &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mounts = mounts(&mut cluster).map(|mount| mount.join("f"));
    std::fs::write(&mounts[0], vec![b'.'; 3 * 4096]).expect("written");
    // Both have every page mapped before either writes; what an old mapping shows of the other's pages is nobody's promise.
    let script = "
import mmap, os, sys
paths = sys.argv[1:3]
def new(path):
    fd = os.open(path, os.O_RDWR)
    try: return mmap.mmap(fd, 3 * 4096)
    finally: os.close(fd)
old = [new(path) for path in paths]
assert all(mapped[at] == ord('.') for mapped in old for at in (0, 4096, 8192))
for round in range(20):
    for me, text in ((0, b'first'), (1, b'second')):
        said = text + b' %d' % round
        mine = new(paths[me])
        mine[me * 4096 : me * 4096 + len(said)] = said
        mine.flush()
        theirs = new(paths[1 - me])
        assert theirs[me * 4096 : me * 4096 + len(said)] == said, (round, me, theirs[me * 4096 : me * 4096 + 20])
        with open(paths[1 - me], 'rb') as file:
            assert file.read()[me * 4096 :].startswith(said), 'read(2) sees it as well'
assert new(paths[0])[8192:] == b'.' * 4096
";
    let mut command = std::process::Command::new("python3");
    let output = command.args(["-I", "-c", script]).args(&mounts).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn watches_tell_of_changes_through_their_own_mount_only() {
    use rustix::fs::inotify;
    if !can_mount("two_mounts::watches_tell_of_changes_through_their_own_mount_only", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mounts = mounts(&mut cluster);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).expect("a watch");
    inotify::add_watch(&watch, &mounts[1], inotify::WatchFlags::CREATE).expect("watches");
    File::create(mounts[0].join("elsewhere")).expect("made");
    assert!(mounts[1].join("elsewhere").exists(), "it is there at once");
    File::create(mounts[1].join("here")).expect("made");
    // Events come in order, so this is the first there was.
    let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let event = events.next().expect("an event");
    assert_eq!(event.file_name().map(|name| name.to_bytes()), Some(&b"here"[..]));
}

#[test]
fn a_flock_of_a_directory_holds_on_its_host_only() {
    use rustix::fs::{FlockOperation, flock};
    if !can_mount("two_mounts::a_flock_of_a_directory_holds_on_its_host_only", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("a healthy cluster");
    let mounts = mounts(&mut cluster);
    std::fs::create_dir(mounts[0].join("d")).expect("made");
    let open = |host: usize| File::open(mounts[host].join("d")).expect("opened");
    let (holder, here, elsewhere) = (open(0), open(0), open(1));
    flock(&holder, FlockOperation::LockExclusive).expect("locked");
    assert_eq!(flock(&here, FlockOperation::NonBlockingLockExclusive), Err(rustix::io::Errno::AGAIN));
    flock(&elsewhere, FlockOperation::NonBlockingLockExclusive).expect("the other host does not know");
}
