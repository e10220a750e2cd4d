//! A disk behind the trait of disks that is late, or fails, as the plan in force says.

use crate::current;
use crate::plan::{DiskFaults, Plan};
use holdfast_config::Span;
use holdfast_journal::disk::{Disk, DiskFile, Read, Space, Write};
use holdfast_types::prng::mix;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What an operation does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    /// To the page cache: it may fail, and takes no time.
    Cached,
    Write,
    Sync,
}

/// Which disk, and how many operations it has had.
#[derive(Debug)]
struct Place {
    id: Option<u32>,
    operations: AtomicU64,
}

impl Place {
    /// What the plan says of this disk.
    fn faults(&self) -> Option<Arc<Plan>> {
        let plan = current();
        let named = plan.disk.ids.is_empty() || self.id.is_some_and(|id| plan.disk.ids.contains(&id));
        named.then_some(plan)
    }

    /// One operation, which may do several things to the disk: the delay of each, and then perhaps an error.
    fn meet(&self, kinds: &[Kind]) -> io::Result<()> {
        let Some(plan) = self.faults() else { return Ok(()) };
        for kind in kinds {
            if let Some(Span(delay)) = delay(&plan.disk, *kind) {
                std::thread::sleep(delay);
            }
            self.fail(&plan, *kind)?;
        }
        Ok(())
    }

    fn fail(&self, plan: &Plan, kind: Kind) -> io::Result<()> {
        let part = match kind {
            Kind::Read => plan.disk.read_error,
            Kind::Cached | Kind::Write => plan.disk.write_error,
            Kind::Sync => plan.disk.sync_error,
        };
        if part <= 0.0 {
            return Ok(());
        }
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        let drawn = (mix(plan.seed ^ mix(number)) >> 11) as f64 / (1u64 << 53) as f64;
        if drawn < part { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }

    /// Whether what is in memory is not to be found there.
    fn forgets(&self) -> bool {
        self.faults().is_some_and(|plan| plan.disk.read_delay.is_some() || plan.disk.read_error > 0.0)
    }
}

fn delay(faults: &DiskFaults, kind: Kind) -> Option<Span> {
    match kind {
        Kind::Read => faults.read_delay,
        Kind::Write => faults.write_delay,
        Kind::Sync => faults.sync_delay,
        Kind::Cached => None,
    }
}

/// A disk that fails on purpose.
#[derive(Clone, Debug)]
pub struct FaultyDisk<D> {
    inner: D,
    place: Arc<Place>,
}

/// A file of one.
#[derive(Debug)]
pub struct FaultyFile<F> {
    inner: F,
    place: Arc<Place>,
}

impl<D> FaultyDisk<D> {
    /// A disk that does what `inner` does, unless the plan says otherwise. `id`: what plans call it.
    pub fn new(inner: D, id: Option<u32>) -> Self {
        Self { inner, place: Arc::new(Place { id, operations: AtomicU64::new(0) }) }
    }

    fn file<F>(&self, inner: F) -> FaultyFile<F> {
        FaultyFile { inner, place: Arc::clone(&self.place) }
    }
}

impl<D: Disk> Disk for FaultyDisk<D> {
    type File = FaultyFile<D::File>;

    fn open(&self, name: &str) -> io::Result<Self::File> {
        self.inner.open(name).map(|file| self.file(file))
    }

    fn create(&self, name: &str) -> io::Result<Self::File> {
        self.place.meet(&[Kind::Cached])?;
        self.inner.create(name).map(|file| self.file(file))
    }

    fn exists(&self, name: &str) -> io::Result<bool> {
        self.inner.exists(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.place.meet(&[Kind::Cached])?;
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.place.meet(&[Kind::Cached])?;
        self.inner.rename(from, to)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.place.meet(&[Kind::Sync])?;
        self.inner.sync_directory()
    }

    fn space(&self) -> io::Result<Space> {
        self.inner.space()
    }

    fn reads_at_once(&self) -> usize {
        self.inner.reads_at_once()
    }

    fn read_many(&self, reads: Vec<Read<'_, Self::File>>, done: &mut dyn FnMut(usize, io::Result<Vec<u8>>)) {
        // They are late together, as they are under way together.
        let plan = self.place.faults();
        if let Some(Span(delay)) = plan.as_ref().and_then(|plan| plan.disk.read_delay) {
            std::thread::sleep(delay);
        }
        let inner = |Read { file, offset, buffer }| Read { file: &(file as &Self::File).inner, offset, buffer };
        self.inner.read_many(reads.into_iter().map(inner).collect(), &mut |index, result| {
            let fault = plan.as_ref().map_or(Ok(()), |plan| self.place.fail(plan, Kind::Read));
            done(index, fault.and(result));
        });
    }

    fn write_many_past_cache(&self, writes: &[Write<'_, Self::File>]) -> io::Result<()> {
        self.place.meet(&[Kind::Write])?;
        let mut inner = Vec::with_capacity(writes.len());
        for Write { file, offset, bytes } in writes {
            inner.push(Write { file: &file.inner, offset: *offset, bytes });
        }
        self.inner.write_many_past_cache(&inner)
    }

    fn sync_many(&self, files: &[&Self::File]) -> io::Result<()> {
        self.place.meet(&[Kind::Sync])?;
        let files: Vec<&D::File> = files.iter().map(|file| &file.inner).collect();
        self.inner.sync_many(&files)
    }
}

impl<F: DiskFile> DiskFile for FaultyFile<F> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.place.meet(&[Kind::Read])?;
        self.inner.read_at(buffer, offset)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        if self.place.forgets() { Ok(false) } else { self.inner.read_cached_at(buffer, offset) }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.place.meet(&[Kind::Cached])?;
        self.inner.write_at(bytes, offset)
    }

    fn write_past_cache_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.place.meet(&[Kind::Write])?;
        self.inner.write_past_cache_at(bytes, offset)
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // One request to the disk, and either delay is one of it.
        let late = self.place.faults().and_then(|plan| plan.disk.write_delay.max(plan.disk.sync_delay));
        if let Some(Span(delay)) = late {
            std::thread::sleep(delay);
        }
        if let Some(plan) = self.place.faults() {
            self.place.fail(&plan, Kind::Write)?;
            self.place.fail(&plan, Kind::Sync)?;
        }
        self.inner.write_durable_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.place.meet(&[Kind::Sync])?;
        self.inner.sync_data()
    }

    fn bytes_len(&self) -> io::Result<u64> {
        self.inner.bytes_len()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.place.meet(&[Kind::Cached])?;
        self.inner.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.place.meet(&[Kind::Cached])?;
        self.inner.allocate(bytes)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.place.meet(&[Kind::Cached])?;
        self.inner.punch_hole(offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install;
    use holdfast_journal::MemoryDisk;
    use std::time::{Duration, Instant};

    /// One test, since a plan is the whole process's.
    #[test]
    fn a_disk_does_what_the_plan_says_and_nothing_else() {
        let (disk, other) =
            (FaultyDisk::new(MemoryDisk::new(1), Some(1)), FaultyDisk::new(MemoryDisk::new(1), Some(2)));
        let (file, spared) = (disk.create("a").expect("created"), other.create("a").expect("created"));
        let plan = |text: &str| {
            let plan = format!("[disk]\nids = [1]\n{text}");
            install(holdfast_config::parse(&plan, std::path::Path::new("p")).expect("a plan"));
        };
        let mut buffer = [0; 4];
        file.write_durable_at(b"abcd", 0).expect("nothing fails");
        plan("write-error = 1.0");
        assert_eq!(file.write_durable_at(b"xxxx", 0).expect_err("fails").raw_os_error(), Some(5));
        assert!(file.write_at(b"xxxx", 0).is_err() && file.sync_data().is_ok());
        spared.write_durable_at(b"abcd", 0).expect("another disk");
        plan("sync-error = 1.0");
        assert!(file.write_at(b"efgh", 0).is_ok() && file.sync_data().is_err() && disk.sync_directory().is_err());
        assert!(disk.sync_many(&[&file]).is_err() && file.write_durable_at(b"xxxx", 0).is_err());
        plan("read-error = 1.0");
        assert!(file.read_at(&mut buffer, 0).is_err());
        assert!(!file.read_cached_at(&mut buffer, 0).expect("left to the read proper"));
        let mut ended = Vec::new();
        disk.read_many(vec![Read { file: &file, offset: 0, buffer: vec![0; 4] }], &mut |_, read| ended.push(read));
        assert!(matches!(ended.as_slice(), [Err(_)]));
        plan("read-error = 0.5");
        let failed = (0..1000).filter(|_| file.read_at(&mut buffer, 0).is_err()).count();
        assert!((400..600).contains(&failed), "{failed} of 1000");
        plan("read-delay = \"40 ms\"\nwrite-delay = \"20 ms\"\nsync-delay = \"30 ms\"");
        let took = |work: &dyn Fn()| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        };
        let at_least = |ms: u64, work: &dyn Fn()| assert!(took(work) >= Duration::from_millis(ms));
        at_least(40, &|| file.read_at(&mut [0; 4], 0).expect("late"));
        at_least(30, &|| file.write_durable_at(b"abcd", 0).expect("late"));
        at_least(20, &|| file.write_past_cache_at(b"abcd", 0).expect("late"));
        at_least(30, &|| disk.sync_many(&[&file, &file]).expect("late"));
        plan("");
        assert!(file.read_at(&mut buffer, 0).is_ok());
        assert_eq!(&buffer, b"abcd");
    }
}
