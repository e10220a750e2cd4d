//! Who works while things fail: writers, readers, renamers, removers and lockers on two mounts, each of which checks what it sees against
//! what was acknowledged before it looked.
//!
//! * What a step was told is durable is noted before the next one begins, so whoever reads a note and then the file must find at least that.
//! * A step that failed may have been made or not. It is made again, with the same bytes.
//! * Nothing may fail but where the plan says so: while power is off, and for want of space.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use holdfast_types::prng::Prng;
use rustix::fs::{FlockOperation, fcntl_lock};

use crate::load::{BLOCK_BYTES, block, describe, read_block};

const BLOCKS: usize = 64;
/// A third of the files is removed when so many newer ones are there.
const KEPT: u64 = 50;
/// How long one step may take when nothing fails any more.
const STEP_LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// Nobody who tries goes so long without being refused, if there is no room.
const CALM: Duration = Duration::from_secs(3);
/// Readers leave the processors to others between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// What all know.
#[derive(Debug)]
struct Truth {
    stop: AtomicBool,
    /// Rises when power goes and when it is back: odd while it is off.
    power: AtomicU64,
    /// A disk is full, or was.
    full: AtomicBool,
    refused: AtomicU64,
    wrong: Mutex<Vec<String>>,
    append: AtomicU64,
    /// Number of the write, and one; 0: none.
    blocks: Vec<AtomicU64>,
    written: AtomicU64,
    files: AtomicU64,
    removed: AtomicU64,
    current: AtomicU64,
    renamed: AtomicU64,
    counted: AtomicU64,
    /// Increments of which nobody knows whether they were made.
    uncertain: AtomicU64,
}

/// Why a step is not done.
enum Trouble {
    Failed(io::Error),
    Wrong(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

type Step = Result<(), Trouble>;
type StepOf = Box<dyn FnMut(&Truth, &mut Prng) -> Step + Send>;
/// Opens what a worker needs, anew after power was off.
type Opening = Box<dyn FnMut() -> io::Result<StepOf> + Send>;

/// Workers at work.
#[derive(Debug)]
pub struct Work {
    truth: Arc<Truth>,
    workers: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    name: &'static str,
    steps: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// What they did, and what was not as it should be.
#[derive(Debug)]
pub struct Done {
    truth: Arc<Truth>,
    /// Steps of each.
    pub steps: Vec<(&'static str, u64)>,
}

fn wrong(text: String) -> Step {
    Err(Trouble::Wrong(text))
}

fn seen(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::SeqCst)
}

fn note(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::SeqCst);
}

impl Work {
    /// Starts all of them in a new folder, on two mounts of the same volume.
    ///
    /// # Errors
    /// When the folder or the first files cannot be made.
    pub fn start(mounts: [&Path; 2], seed: u64) -> Result<Self> {
        let [here, there] = mounts.map(|mount| mount.join("chaos"));
        std::fs::create_dir(&here).with_context(|| format!("cannot make {}", here.display()))?;
        std::fs::create_dir(here.join("files"))?;
        for (name, content) in
            [("append", Vec::new()), ("overwrite", Vec::new()), ("counter", 0u64.to_le_bytes().into())]
        {
            std::fs::write(here.join(name), content)?;
            File::open(here.join(name))?.sync_all()?;
        }
        std::fs::write(here.join("current"), block("current", 0))?;
        File::open(here.join("current"))?.sync_all()?;
        File::open(&here)?.sync_all()?;
        File::open(mounts[0])?.sync_all()?;
        let zero = || AtomicU64::new(0);
        let truth = Truth {
            stop: AtomicBool::new(false),
            power: zero(),
            full: AtomicBool::new(false),
            refused: zero(),
            wrong: Mutex::new(Vec::new()),
            append: zero(),
            blocks: (0..BLOCKS).map(|_| zero()).collect(),
            written: zero(),
            files: zero(),
            removed: zero(),
            current: zero(),
            renamed: zero(),
            counted: zero(),
            uncertain: zero(),
        };
        let mut work = Self { truth: Arc::new(truth), workers: Vec::new() };
        let all: [(&'static str, Duration, Opening); 11] = [
            ("append", Duration::ZERO, append(here.join("append"))),
            ("append read elsewhere", LOOK, read_appended(there.join("append"))),
            ("overwrite", Duration::ZERO, overwrite(here.join("overwrite"))),
            ("overwrite read elsewhere", LOOK, read_overwritten(there.join("overwrite"))),
            ("create", Duration::ZERO, create(there.join("files"))),
            ("remove", Duration::ZERO, remove(here.join("files"))),
            ("files read elsewhere", LOOK, read_files(here.join("files"))),
            ("rename over", Duration::ZERO, rename_over(there.clone())),
            ("renamed read elsewhere", LOOK, read_renamed(here.join("current"))),
            ("lock and count", Duration::ZERO, count(here.join("counter"))),
            ("lock and count elsewhere", Duration::ZERO, count(there.join("counter"))),
        ];
        for (number, (name, pause, opening)) in (0..).zip(all) {
            work.spawn(name, pause, opening, Prng::new(seed).fork(number));
        }
        Ok(work)
    }

    fn spawn(&mut self, name: &'static str, pause: Duration, mut opening: Opening, mut prng: Prng) {
        let (truth, steps) = (Arc::clone(&self.truth), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&steps);
        let thread = std::thread::spawn(move || {
            let mut step: Option<StepOf> = None;
            while !truth.stop.load(Ordering::SeqCst) {
                let power = seen(&truth.power);
                if power % 2 == 1 {
                    step = None;
                    std::thread::sleep(PAUSE);
                    continue;
                }
                let Some(ready) = &mut step else {
                    match opening() {
                        Ok(opened) => step = Some(opened),
                        Err(error) if power == seen(&truth.power) => return truth.say(format!("{name}: {error}")),
                        Err(_) => {}
                    }
                    continue;
                };
                let result = ready(&truth, &mut prng);
                // What was seen while power went proves nothing, and nothing was acknowledged.
                let went = power != seen(&truth.power);
                match result {
                    Ok(()) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(pause);
                    }
                    Err(_) if went => step = None,
                    Err(Trouble::Failed(error)) => {
                        let full = error.kind() == io::ErrorKind::StorageFull && truth.full.load(Ordering::SeqCst);
                        if !full {
                            return truth.say(format!("{name}: {error}"));
                        }
                        truth.refused.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(PAUSE);
                    }
                    Err(Trouble::Wrong(text)) => return truth.say(format!("{name}: {text}")),
                }
            }
        });
        self.workers.push(Worker { name, steps, thread });
    }

    /// Power goes (`true`), or is back and mounts are there again.
    pub fn power_off(&self, off: bool) {
        let before = self.truth.power.fetch_add(1, Ordering::SeqCst);
        assert_eq!(before.is_multiple_of(2), off, "power goes and comes in turn");
    }

    /// For want of space steps may be refused from now on, or may not be.
    pub fn may_be_full(&self, full: bool) {
        self.truth.full.store(full, Ordering::SeqCst);
    }

    /// Waits until no step is refused any more.
    ///
    /// # Errors
    /// When some still are.
    pub fn wait_for_room(&self) -> Result<()> {
        let (mut refused, mut since) = (seen(&self.truth.refused), Instant::now());
        crate::until("an end of refusals", STEP_LIMIT, || {
            let now = seen(&self.truth.refused);
            if now != refused {
                (refused, since) = (now, Instant::now());
            }
            if since.elapsed() < CALM { bail!("{refused} steps were refused") } else { Ok(()) }
        })?;
        self.may_be_full(false);
        Ok(())
    }

    /// Waits until each of them has done something new.
    ///
    /// # Errors
    /// When one does not go on, or found something wrong.
    pub fn wait_for_progress(&self) -> Result<()> {
        let before: Vec<u64> = self.workers.iter().map(|worker| seen(&worker.steps)).collect();
        crate::until("every worker to go on", STEP_LIMIT, || {
            let standing = self.workers.iter().zip(&before).find(|(worker, before)| seen(&worker.steps) == **before);
            match standing {
                Some((worker, before)) if !self.is_wrong() => bail!("{}: no step after {before}", worker.name),
                Some(_) | None => Ok(()),
            }
        })?;
        let found = self.truth.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_empty() { Ok(()) } else { bail!("{}", found.join("\n")) }
    }

    fn is_wrong(&self) -> bool {
        !self.truth.wrong.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Tells all to stop.
    pub fn stop(self) -> Done {
        self.truth.stop.store(true, Ordering::SeqCst);
        let mut steps = Vec::new();
        for worker in self.workers {
            if worker.thread.join().is_err() {
                self.truth.say(format!("{}: panicked", worker.name));
            }
            steps.push((worker.name, seen(&worker.steps)));
        }
        Done { truth: self.truth, steps }
    }
}

impl Done {
    /// Steps refused for want of space.
    pub fn refused(&self) -> u64 {
        seen(&self.truth.refused)
    }

    /// Looks for everything that was acknowledged, on a mount that has seen nothing of it, and says what is not as it should be; what was
    /// found on the way, too.
    pub fn findings(&self, mount: &Path) -> Vec<String> {
        let (truth, folder) = (&*self.truth, mount.join("chaos"));
        let mut found = self.truth.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut check = |name: &str, step: Step| match step {
            Ok(()) => {}
            Err(Trouble::Failed(error)) => found.push(format!("at the end, {name}: {error}")),
            Err(Trouble::Wrong(text)) => found.push(format!("at the end, {name}: {text}")),
        };
        check(
            "append",
            (|| {
                let file = File::open(folder.join("append"))?;
                (0..seen(&truth.append)).try_for_each(|number| appended(&file, number))
            })(),
        );
        check(
            "overwrite",
            (|| {
                let file = File::open(folder.join("overwrite"))?;
                (0..BLOCKS).try_for_each(|at| overwritten(truth, &file, at))
            })(),
        );
        check("files", (0..seen(&truth.files)).try_for_each(|number| file(truth, &folder.join("files"), number)));
        check("current", renamed(truth, &folder.join("current")));
        check(
            "counter",
            (|| {
                let file = OpenOptions::new().read(true).write(true).open(folder.join("counter"))?;
                counted(truth, &file).map(drop)
            })(),
        );
        found
    }
}

impl Truth {
    fn say(&self, text: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

fn open_to_write(at: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(at)
}

fn append(at: PathBuf) -> Opening {
    Box::new(move || {
        let file = open_to_write(&at)?;
        Ok(Box::new(move |truth, _| {
            let number = seen(&truth.append);
            file.write_all_at(&block("append", number), number * BLOCK_BYTES as u64)?;
            file.sync_data()?;
            note(&truth.append, number + 1);
            Ok(())
        }))
    })
}

fn appended(file: &File, number: u64) -> Step {
    let got = read_block(file, number)?;
    if got == block("append", number) { Ok(()) } else { wrong(format!("block {number}: {}", describe(&got))) }
}

fn read_appended(at: PathBuf) -> Opening {
    Box::new(move || {
        let file = File::open(&at)?;
        Ok(Box::new(move |truth, prng| {
            let acknowledged = seen(&truth.append);
            if acknowledged == 0 {
                return Ok(());
            }
            appended(&file, acknowledged - 1)?;
            appended(&file, prng.below(acknowledged))
        }))
    })
}

fn overwrite(at: PathBuf) -> Opening {
    Box::new(move || {
        let file = open_to_write(&at)?;
        Ok(Box::new(move |truth, prng| {
            // Numbers are never used again: what failed may be there.
            let number = truth.written.fetch_add(1, Ordering::SeqCst);
            let at = prng.below(BLOCKS as u64);
            file.write_all_at(&block("overwrite", number), at * BLOCK_BYTES as u64)?;
            file.sync_data()?;
            note(&truth.blocks[at as usize], number + 1);
            Ok(())
        }))
    })
}

fn overwritten(truth: &Truth, file: &File, at: usize) -> Step {
    let acknowledged = seen(&truth.blocks[at]);
    let got = read_block(file, at as u64)?;
    let written = seen(&truth.written);
    if acknowledged == 0 {
        return Ok(());
    }
    let Some(number) = got.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return wrong(format!("block {at}: {}", describe(&got)));
    };
    if number >= written || number + 1 < acknowledged || got != block("overwrite", number) {
        let was = acknowledged - 1;
        return wrong(format!("block {at}, write {was} was acknowledged and {written} begun: {}", describe(&got)));
    }
    Ok(())
}

fn read_overwritten(at: PathBuf) -> Opening {
    Box::new(move || {
        let file = File::open(&at)?;
        Ok(Box::new(move |truth, prng| overwritten(truth, &file, prng.below(BLOCKS as u64) as usize)))
    })
}

fn create(folder: PathBuf) -> Opening {
    Box::new(move || {
        let folder = folder.clone();
        Ok(Box::new(move |truth, _| {
            let number = seen(&truth.files);
            let temporary = folder.join("new");
            let file = File::create(&temporary)?;
            file.write_all_at(&block("file", number), 0)?;
            file.sync_all()?;
            std::fs::rename(&temporary, folder.join(number.to_string()))?;
            File::open(&folder)?.sync_all()?;
            note(&truth.files, number + 1);
            Ok(())
        }))
    })
}

/// Whether a file goes when it is old.
fn goes(number: u64) -> bool {
    number.is_multiple_of(3)
}

fn remove(folder: PathBuf) -> Opening {
    // The number of the last one that was begun, and one.
    let begun = Arc::new(AtomicU64::new(0));
    Box::new(move || {
        let (folder, begun) = (folder.clone(), Arc::clone(&begun));
        Ok(Box::new(move |truth, _| {
            let number = seen(&truth.removed);
            if number + KEPT >= seen(&truth.files) {
                std::thread::sleep(PAUSE);
                return Ok(());
            }
            if goes(number) {
                let power = seen(&truth.power);
                let again = begun.swap(number + 1, Ordering::SeqCst) == number + 1;
                match std::fs::remove_file(folder.join(number.to_string())) {
                    // It was begun before, and failed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && again => {}
                    other => other?,
                }
                File::open(&folder)?.sync_all()?;
                if power != seen(&truth.power) {
                    return Err(io::Error::other("power went").into());
                }
            }
            note(&truth.removed, number + 1);
            Ok(())
        }))
    })
}

/// A file that was made is there, or was removed, or is being removed just now.
fn file(truth: &Truth, folder: &Path, number: u64) -> Step {
    let gone_before = seen(&truth.removed) > number && goes(number);
    let got = std::fs::read(folder.join(number.to_string()));
    let going = goes(number) && number <= seen(&truth.removed);
    match got {
        Ok(_) if gone_before => wrong(format!("file {number} was removed and is there")),
        Ok(got) if got == block("file", number) => Ok(()),
        Ok(got) => wrong(format!("file {number}: {}", describe(&got))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && going => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => wrong(format!("file {number} is missing")),
        Err(error) => Err(error.into()),
    }
}

fn read_files(folder: PathBuf) -> Opening {
    Box::new(move || {
        let folder = folder.clone();
        Ok(Box::new(move |truth, prng| {
            let made = seen(&truth.files);
            if made == 0 { Ok(()) } else { file(truth, &folder, prng.below(made)) }
        }))
    })
}

fn rename_over(folder: PathBuf) -> Opening {
    Box::new(move || {
        let folder = folder.clone();
        Ok(Box::new(move |truth, _| {
            let number = truth.renamed.fetch_add(1, Ordering::SeqCst) + 1;
            let temporary = folder.join("next");
            let file = File::create(&temporary)?;
            file.write_all_at(&block("current", number), 0)?;
            file.sync_all()?;
            std::fs::rename(&temporary, folder.join("current"))?;
            File::open(&folder)?.sync_all()?;
            note(&truth.current, number);
            Ok(())
        }))
    })
}

fn renamed(truth: &Truth, at: &Path) -> Step {
    let acknowledged = seen(&truth.current);
    let got = std::fs::read(at)?;
    let begun = seen(&truth.renamed);
    let number = got.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
    if (acknowledged..=begun).contains(&number) && got == block("current", number) {
        return Ok(());
    }
    wrong(format!("{acknowledged} was acknowledged, {begun} begun, found {}", describe(&got)))
}

fn read_renamed(at: PathBuf) -> Opening {
    Box::new(move || {
        let at = at.clone();
        Ok(Box::new(move |truth, _| renamed(truth, &at)))
    })
}

/// What the counter says, which whoever asks holds the lock of.
fn counted(truth: &Truth, file: &File) -> Result<u64, Trouble> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0)?;
    let (value, known) = (u64::from_le_bytes(bytes), seen(&truth.counted));
    if (known..=known + seen(&truth.uncertain)).contains(&value) {
        return Ok(value);
    }
    Err(Trouble::Wrong(format!("it says {value}; {known} were counted, and {} may have been", seen(&truth.uncertain))))
}

fn count(at: PathBuf) -> Opening {
    Box::new(move || {
        let file = open_to_write(&at)?;
        Ok(Box::new(move |truth, _| {
            fcntl_lock(&file, FlockOperation::LockExclusive).map_err(io::Error::from)?;
            let value = counted(truth, &file)?;
            truth.uncertain.fetch_add(1, Ordering::SeqCst);
            file.write_all_at(&(value + 1).to_le_bytes(), 0)?;
            file.sync_data()?;
            // Whatever was uncertain before is not any more: it was read.
            note(&truth.counted, value + 1);
            note(&truth.uncertain, 0);
            fcntl_lock(&file, FlockOperation::Unlock).map_err(io::Error::from)?;
            std::thread::sleep(Duration::from_millis(2));
            Ok(())
        }))
    })
}
