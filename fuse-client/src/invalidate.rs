//! Telling the kernel to forget what it caches, when another host wants the volume.
//!
//! Invariants:
//! * It is done by threads that serve no request: forgetting an inode may wait for its pages (a read that we have yet to answer),
//!   forgetting a name for its directory's lock (a mutation that we have yet to answer).
//! * [`Invalidator::run`] returns when the kernel believes nothing of what it was given, with one exception: if no name was
//!   forgotten for [`NAME_PATIENCE`], a directory's lock is held by a mutation of our own. Two hosts that change each other's
//!   directories would wait for each other for ever, so all names are expired at once, which takes no lock (Linux 6.16); where the
//!   kernel cannot, the wait goes on: the mutation in front will be answered, for the service never queues it behind a recall.

use crate::device::KernelCache;
use crate::inodes::Name;
use crate::sync::lock;
use holdfast_types::InodeId;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// How long no name may be forgotten before a lock is suspected.
const NAME_PATIENCE: Duration = Duration::from_millis(20);
/// Threads. More than one, so that one that waits does not hold up the rest.
const THREADS: usize = 4;

enum Job {
    Inode(InodeId),
    Name(Name),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(Job, Arc<Batch>)>,
    closed: bool,
}

/// Jobs that belong together.
struct Batch {
    left: Mutex<usize>,
    changed: Condvar,
}

struct Work {
    queue: Mutex<Queue>,
    arrived: Condvar,
    kernel: Box<dyn KernelCache>,
}

/// The threads. They end when this is dropped, each after the job at hand.
pub struct Invalidator(Arc<Work>);

impl Invalidator {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(kernel: impl KernelCache) -> std::io::Result<Self> {
        let work = Arc::new(Work { queue: Mutex::default(), arrived: Condvar::new(), kernel: Box::new(kernel) });
        let invalidator = Self(work.clone());
        for index in 0..THREADS {
            let work = work.clone();
            std::thread::Builder::new().name(format!("inval-{index}")).spawn(move || work_on(&work))?;
        }
        Ok(invalidator)
    }

    /// Makes the kernel forget these inodes' attributes and pages (dirty mapped ones are written first) and these names. Blocks.
    pub fn run(&self, inodes: Vec<InodeId>, names: Vec<Name>) {
        let names = self.submit(names.into_iter().map(Job::Name));
        let inodes = self.submit(inodes.into_iter().map(Job::Inode));
        if names.stalls(NAME_PATIENCE) {
            if self.0.kernel.forget_all_names() {
                tracing::debug!("a directory is locked: all names were expired at once");
            } else {
                names.wait();
            }
        }
        inodes.wait();
    }

    fn submit(&self, jobs: impl ExactSizeIterator<Item = Job>) -> Arc<Batch> {
        let batch = Arc::new(Batch { left: Mutex::new(jobs.len()), changed: Condvar::new() });
        let mut queue = lock(&self.0.queue);
        queue.jobs.extend(jobs.map(|job| (job, batch.clone())));
        drop(queue);
        self.0.arrived.notify_all();
        batch
    }
}

impl Drop for Invalidator {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.arrived.notify_all();
    }
}

impl Batch {
    fn finished_one(&self) {
        *lock(&self.left) -= 1;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let left = lock(&self.left);
        drop(self.changed.wait_while(left, |left| *left > 0).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until all is done; true if for `patience` nothing was.
    fn stalls(&self, patience: Duration) -> bool {
        let mut left = lock(&self.left);
        while *left > 0 {
            let before = *left;
            let (now, timeout) = self
                .changed
                .wait_timeout_while(left, patience, |left| *left == before)
                .unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() && *now == before {
                return true;
            }
            left = now;
        }
        false
    }
}

fn work_on(work: &Work) {
    loop {
        let mut queue = lock(&work.queue);
        let (job, batch) = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.closed {
                return;
            }
            queue = work.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        };
        drop(queue);
        match job {
            Job::Inode(inode) => work.kernel.forget_inode(inode),
            Job::Name((parent, name)) => work.kernel.forget_name(parent, &name),
        }
        batch.finished_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Kernel {
        forgotten: mpsc::Sender<String>,
        /// Names in this directory wait until something arrives here.
        locked: (InodeId, Mutex<mpsc::Receiver<()>>),
        epoch: bool,
    }

    impl KernelCache for Kernel {
        fn forget_inode(&self, inode: InodeId) {
            let _ = self.forgotten.send(format!("{inode}"));
        }

        fn forget_attributes(&self, inode: InodeId) {
            let _ = self.forgotten.send(format!("attributes of {inode}"));
        }

        fn forget_name(&self, parent: InodeId, name: &[u8]) {
            if parent == self.locked.0 {
                let _ = lock(&self.locked.1).recv();
            }
            let _ = self.forgotten.send(format!("{parent}/{}", name.escape_ascii()));
        }

        fn forget_all_names(&self) -> bool {
            let _ = self.forgotten.send("all".into());
            self.epoch
        }
    }

    fn kernel(epoch: bool) -> (Invalidator, mpsc::Receiver<String>, mpsc::Sender<()>) {
        let (forgotten, seen) = mpsc::channel();
        let (unlock, locked) = mpsc::channel();
        let kernel = Kernel { forgotten, locked: (InodeId(5), Mutex::new(locked)), epoch };
        (Invalidator::new(kernel).expect("threads start"), seen, unlock)
    }

    #[test]
    fn everything_is_forgotten_when_run_returns() {
        let (invalidator, seen, _unlock) = kernel(true);
        let inodes: Vec<_> = (10..200).map(InodeId).collect();
        let names = (0..100u8).map(|n| (InodeId::ROOT, Box::from([n + 128].as_slice()))).collect();
        invalidator.run(inodes, names);
        assert_eq!(seen.try_iter().count(), 290);
    }

    #[test]
    fn a_locked_directory_does_not_hold_up_the_answer() {
        let (invalidator, seen, unlock) = kernel(true);
        invalidator.run(vec![InodeId(7)], vec![(InodeId(5), Box::from(*b"x")), (InodeId::ROOT, Box::from(*b"y"))]);
        let mut all: Vec<String> = seen.try_iter().collect();
        all.sort();
        assert_eq!(all, ["all", "ino1/y", "ino7"]);
        unlock.send(()).expect("a thread waits");
        assert_eq!(seen.recv().expect("it goes on"), "ino5/x");
    }

    #[test]
    fn a_kernel_without_epochs_is_waited_for() {
        let (invalidator, seen, unlock) = kernel(false);
        let waits = std::thread::spawn(move || invalidator.run(vec![], vec![(InodeId(5), Box::from(*b"x"))]));
        assert_eq!(seen.recv().expect("it is tried"), "all");
        assert!(!waits.is_finished());
        unlock.send(()).expect("a thread waits");
        waits.join().expect("returns");
        assert_eq!(seen.recv().expect("forgotten"), "ino5/x");
    }
}
