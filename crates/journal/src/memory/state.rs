//! The whole of a simulated disk: names, files, counters and the faults that are due.

use super::content::{Content, Fate, PAGE_BYTES};
use super::{Counters, Loss};
use crate::disk::Space;
use holdfast_types::prng::Prng;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};

/// Chance, one in so many writes, that the kernel writes a dirty page back by itself.
const WRITE_BACK_ONE_IN: u64 = 16;
/// What an unlimited disk says it has, in bytes.
const UNLIMITED_BYTES: u64 = 1 << 50;

/// A change of names that no directory sync has covered yet.
#[derive(Clone, Debug)]
enum Change {
    Create(String, u64),
    Remove(String),
    Rename(String, String),
}

#[derive(Debug)]
pub(super) struct State {
    names: BTreeMap<String, u64>,
    names_durable: BTreeMap<String, u64>,
    changes: Vec<Change>,
    files: BTreeMap<u64, File>,
    next_key: u64,
    life: u64,
    down: bool,
    counters: Counters,
    crash_at_operation: Option<u64>,
    crash_at_sync: Option<u64>,
    fail_sync: Option<u64>,
    lying: bool,
    capacity_bytes: Option<u64>,
    pages: u64,
    prng: Prng,
}

#[derive(Debug, Default)]
struct File {
    content: Content,
    handles: u32,
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("no file {name}"))
}

fn down() -> io::Error {
    io::Error::other("the simulated disk is down")
}

/// Counts a fault down; true when it is due now.
fn due(countdown: &mut Option<u64>) -> bool {
    match countdown {
        Some(1) => {
            *countdown = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl State {
    pub(super) fn new(prng: Prng) -> Self {
        Self {
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            changes: Vec::new(),
            files: BTreeMap::new(),
            next_key: 0,
            life: 0,
            down: false,
            counters: Counters::default(),
            crash_at_operation: None,
            crash_at_sync: None,
            fail_sync: None,
            lying: false,
            capacity_bytes: None,
            pages: 0,
            prng,
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) fn is_down(&self) -> bool {
        self.down
    }

    pub(super) fn crash_at_operation(&mut self, nth: u64) {
        assert!(nth > 0, "the next operation is number 1");
        self.crash_at_operation = Some(nth);
    }

    pub(super) fn crash_at_sync(&mut self, nth: u64) {
        assert!(nth > 0, "the next sync is number 1");
        self.crash_at_sync = Some(nth);
    }

    pub(super) fn fail_sync(&mut self, nth: u64) {
        assert!(nth > 0, "the next sync is number 1");
        self.fail_sync = Some(nth);
    }

    pub(super) fn set_capacity(&mut self, bytes: Option<u64>) {
        self.capacity_bytes = bytes;
    }

    pub(super) fn set_lying(&mut self, lying: bool) {
        self.lying = lying;
    }

    /// Refuses handles of an earlier life and everything while down.
    fn check(&self, life: u64) -> io::Result<()> {
        if self.down || life != self.life { Err(down()) } else { Ok(()) }
    }

    /// Counts a changing call. True: the power fails within it, after its effect was seen and before it returns.
    fn begin(&mut self, life: u64) -> io::Result<bool> {
        self.check(life)?;
        self.counters.operations += 1;
        Ok(due(&mut self.crash_at_operation))
    }

    fn finish(&mut self, crash: bool) -> io::Result<()> {
        self.down |= crash;
        if crash { Err(down()) } else { Ok(()) }
    }

    fn file(&mut self, key: u64) -> &mut File {
        self.files.get_mut(&key).expect("an open handle keeps its file")
    }

    fn take_space(&self, pages: u64) -> io::Result<()> {
        match self.capacity_bytes {
            Some(capacity) if pages > 0 && (self.pages + pages) * PAGE_BYTES > capacity => {
                Err(io::Error::new(ErrorKind::StorageFull, "the simulated disk is full"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn space(&self, life: u64) -> io::Result<Space> {
        self.check(life)?;
        let total = self.capacity_bytes.unwrap_or(UNLIMITED_BYTES);
        Ok(Space { total, available: total.saturating_sub(self.pages * PAGE_BYTES) })
    }

    // Names.

    pub(super) fn open(&mut self, life: u64, name: &str) -> io::Result<u64> {
        self.check(life)?;
        let key = *self.names.get(name).ok_or_else(|| not_found(name))?;
        self.file(key).handles += 1;
        Ok(key)
    }

    pub(super) fn create(&mut self, life: u64, name: &str) -> io::Result<u64> {
        let crash = self.begin(life)?;
        if self.names.contains_key(name) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        let key = self.next_key;
        self.next_key += 1;
        self.files.insert(key, File { content: Content::default(), handles: 1 });
        self.names.insert(name.to_owned(), key);
        self.changes.push(Change::Create(name.to_owned(), key));
        self.finish(crash).inspect_err(|_| self.files.get_mut(&key).expect("just made").handles = 0)?;
        Ok(key)
    }

    pub(super) fn exists(&self, life: u64, name: &str) -> io::Result<bool> {
        self.check(life)?;
        Ok(self.names.contains_key(name))
    }

    pub(super) fn list(&self, life: u64) -> io::Result<Vec<String>> {
        self.check(life)?;
        Ok(self.names.keys().cloned().collect())
    }

    pub(super) fn remove(&mut self, life: u64, name: &str) -> io::Result<()> {
        let crash = self.begin(life)?;
        self.names.remove(name).ok_or_else(|| not_found(name))?;
        self.changes.push(Change::Remove(name.to_owned()));
        self.finish(crash)
    }

    pub(super) fn rename(&mut self, life: u64, from: &str, to: &str) -> io::Result<()> {
        let crash = self.begin(life)?;
        let key = self.names.remove(from).ok_or_else(|| not_found(from))?;
        self.names.insert(to.to_owned(), key);
        self.changes.push(Change::Rename(from.to_owned(), to.to_owned()));
        self.finish(crash)
    }

    pub(super) fn sync_directory(&mut self, life: u64) -> io::Result<()> {
        let crash = self.begin(life)? | due(&mut self.crash_at_sync);
        self.counters.syncs += 1;
        if !crash && !self.lying {
            self.changes.clear();
            self.names_durable = self.names.clone();
            self.collect();
        }
        self.finish(crash)
    }

    /// Forgets files that no name, durable or seen, and no handle refers to.
    fn collect(&mut self) {
        let State { files, names, names_durable, .. } = self;
        let named: std::collections::BTreeSet<u64> = names.values().chain(names_durable.values()).copied().collect();
        files.retain(|key, file| file.handles > 0 || named.contains(key));
        self.count_pages();
    }

    fn count_pages(&mut self) {
        self.pages = self.files.values().map(|file| file.content.pages()).sum();
    }

    // Bytes.

    pub(super) fn close(&mut self, life: u64, key: u64) {
        if life == self.life
            && let Some(file) = self.files.get_mut(&key)
        {
            file.handles = file.handles.saturating_sub(1);
        }
    }

    pub(super) fn read(&mut self, life: u64, key: u64, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check(life)?;
        let content = &self.file(key).content;
        if offset.saturating_add(buffer.len() as u64) > content.len() {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "read beyond the end of the file"));
        }
        if !content.readable(offset, buffer.len() as u64) {
            return Err(rustix::io::Errno::IO.into());
        }
        content.read(buffer, offset);
        Ok(())
    }

    pub(super) fn write(&mut self, life: u64, key: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let crash = self.begin(life)?;
        let missing = self.file(key).content.pages_missing(offset, bytes.len() as u64);
        self.take_space(missing)?;
        self.pages += missing;
        self.counters.bytes_written += bytes.len() as u64;
        self.file(key).content.write(bytes, offset);
        if !self.lying && self.prng.chance(1, WRITE_BACK_ONE_IN) {
            let State { files, prng, .. } = self;
            if let Some(file) = files.get_mut(&key) {
                file.content.write_back_one(prng);
            }
        }
        self.finish(crash)
    }

    pub(super) fn sync_file(&mut self, life: u64, key: u64) -> io::Result<()> {
        let crash = self.begin(life)? | due(&mut self.crash_at_sync);
        self.counters.syncs += 1;
        let fail = due(&mut self.fail_sync);
        let lying = self.lying;
        let content = &mut self.file(key).content;
        if fail {
            content.fail_sync();
        } else if !crash && !lying {
            content.sync();
        }
        self.finish(crash)?;
        if fail { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }

    pub(super) fn bytes_len(&mut self, life: u64, key: u64) -> io::Result<u64> {
        self.check(life)?;
        Ok(self.file(key).content.len())
    }

    pub(super) fn set_len(&mut self, life: u64, key: u64, bytes: u64) -> io::Result<()> {
        let crash = self.begin(life)?;
        self.file(key).content.set_len(bytes);
        self.count_pages();
        self.finish(crash)
    }

    pub(super) fn allocate(&mut self, life: u64, key: u64, bytes: u64) -> io::Result<()> {
        let crash = self.begin(life)?;
        let missing = self.file(key).content.pages_missing(0, bytes);
        self.take_space(missing)?;
        self.pages += missing;
        self.file(key).content.allocate(bytes);
        self.finish(crash)
    }

    pub(super) fn punch_hole(&mut self, life: u64, key: u64, offset: u64, length: u64) -> io::Result<()> {
        let crash = self.begin(life)?;
        let content = &mut self.file(key).content;
        let length = length.min(content.len().saturating_sub(offset));
        content.zero(offset, length);
        self.count_pages();
        self.finish(crash)
    }

    // Faults.

    fn named(&mut self, name: &str) -> io::Result<&mut Content> {
        let key = *self.names.get(name).ok_or_else(|| not_found(name))?;
        Ok(&mut self.file(key).content)
    }

    pub(super) fn flip_bit(&mut self, name: &str, offset: u64) -> io::Result<()> {
        let content = self.named(name)?;
        if offset >= content.len() {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "no byte there to damage"));
        }
        content.flip_bit(offset);
        Ok(())
    }

    pub(super) fn fail_reads(&mut self, name: &str, offset: u64) -> io::Result<()> {
        self.named(name)?.make_unreadable(offset);
        Ok(())
    }

    pub(super) fn contents(&self) -> Vec<(String, Vec<u8>)> {
        self.names.iter().map(|(name, key)| (name.clone(), self.files[key].content.bytes())).collect()
    }

    pub(super) fn restart(&mut self, loss: Loss) -> u64 {
        if self.down || loss == Loss::Power {
            self.lose_power();
        }
        self.life += 1;
        self.down = false;
        (self.crash_at_operation, self.crash_at_sync, self.fail_sync) = (None, None, None);
        for file in self.files.values_mut() {
            file.handles = 0;
        }
        self.collect();
        self.life
    }

    fn lose_power(&mut self) {
        let fate = match self.prng.below(4) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            _ => Fate::Each,
        };
        let State { files, prng, .. } = self;
        for file in files.values_mut() {
            file.content.lose_power(fate, prng);
        }
        let changes = std::mem::take(&mut self.changes);
        let prefix = match fate {
            Fate::Lost => 0,
            Fate::Kept => changes.len(),
            Fate::Each => self.prng.below(changes.len() as u64 + 1) as usize,
        };
        // Journaling file systems keep a prefix; POSIX promises not even that.
        let any_subset = matches!(fate, Fate::Each) && self.prng.chance(1, 2);
        for (at, change) in changes.into_iter().enumerate() {
            if if any_subset { self.prng.chance(1, 2) } else { at < prefix } {
                apply(&mut self.names_durable, change);
            }
        }
        self.names = self.names_durable.clone();
    }
}

/// Applies one surviving change; one that builds on a lost one has no effect.
fn apply(names: &mut BTreeMap<String, u64>, change: Change) {
    match change {
        Change::Create(name, key) => {
            names.insert(name, key);
        }
        Change::Remove(name) => {
            names.remove(&name);
        }
        Change::Rename(from, to) => {
            if let Some(key) = names.remove(&from) {
                names.insert(to, key);
            }
        }
    }
}
