//! Reads, writes and syncs of one call, all in flight at once through an io_uring. The one module of this crate with unsafe code.
//!
//! ```text
//! run(operations) ──push──▶ in flight ──completion──▶ settled ──▶ handed back, one by one ── none left ──▶ returns
//!                              ▲                        │
//!                              └──── the rest of it ────┘ short
//! ```
//!
//! Why it is sound. The kernel reads and writes memory that an entry points at until it has posted that entry's completion, so:
//! * *A buffer outlives its operation.* [`Ring::run`] owns the operations (a read owns its buffer, a write borrows for longer than the
//!   call) and hands one back only after its completion. It neither returns nor unwinds while the kernel has any: [`Flight`] waits in
//!   its `drop`, before its operations are dropped, also when the caller's callback panics.
//! * *Nothing is cancelled and no wait has a limit*, so there is no completion that could come later than we think.
//! * *A wait that fails for good ends the process*: to go on would leave the kernel with memory that is about to be freed.
//! * *An entry that the kernel has not taken is never submitted later*: a ring that refuses one is dropped, entry and all.
//! * *Completions are never lost*: at most [`ENTRIES`] are in flight and the completion queue holds twice as many.
//! * *A child gets neither*: the descriptor closes at `exec`, the rings' pages are not given to a fork.
//! * *One thread at a time*: a ring is owned by the call that uses it.
//!
//! What it promises to callers: a transfer that ends short is continued, one that the ring cannot do without waiting is done by a plain call, a
//! sync is given to the kernel once and its error handed back. A sync never rides on a write that may end short: it is an operation of
//! its own, submitted after the write's full length was seen.

#![allow(unsafe_code)]

use crate::io_backend::Refusal;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Operations in flight at the most. By eye: deeper than disks go.
const ENTRIES: u32 = 64;
/// Bytes of one transfer at the most; the rest follows as after a short one. A system call's own limit is just below 2 GiB. Small in tests, so
/// that they meet short transfers all the time.
const TRANSFER_BYTES_MAX: usize = if cfg!(test) { 64 << 10 } else { 1 << 30 };
/// `io_uring_enter` is to wait (`IORING_ENTER_GETEVENTS`).
const GET_EVENTS: u32 = 1;

/// What is to be done with a file.
pub(crate) enum Transfer<'a> {
    /// Fill the buffer.
    Read(Vec<u8>),
    /// Write all of it.
    Write(&'a [u8]),
    /// `fdatasync`.
    Sync,
}

/// One operation.
pub(crate) struct Operation<'a> {
    pub file: &'a File,
    pub offset: u64,
    pub transfer: Transfer<'a>,
    /// Bytes of it that are done.
    done: usize,
}

/// A ring that nobody uses: the kernel has nothing of it.
pub(crate) struct Ring(IoUring);

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

/// Operations on their way.
struct Flight<'r, 'a> {
    ring: &'r mut IoUring,
    /// Handed back ones are gone. Their places, and the memory they point at, do not move meanwhile.
    operations: Vec<Option<Operation<'a>>>,
    /// To be given to the ring.
    waiting: VecDeque<usize>,
    /// Entries pushed whose completion was not taken.
    pushed: usize,
}

impl<'a> Operation<'a> {
    pub(crate) fn new(file: &'a File, offset: u64, transfer: Transfer<'a>) -> Self {
        Self { file, offset, transfer, done: 0 }
    }

    fn bytes(&self) -> usize {
        match &self.transfer {
            Transfer::Read(buffer) => buffer.len(),
            Transfer::Write(bytes) => bytes.len(),
            Transfer::Sync => 0,
        }
    }

    /// Describes what is left of it to the kernel. The entry points into the operation's memory.
    fn entry(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let (from, offset) = (self.done, self.offset + self.done as u64);
        match &mut self.transfer {
            Transfer::Read(buffer) => {
                let left = &mut buffer[from..];
                let length = left.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Read::new(fd, left.as_mut_ptr(), length).offset(offset).build()
            }
            Transfer::Write(bytes) => {
                let left = &bytes[from..];
                let length = left.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Write::new(fd, left.as_ptr(), length).offset(offset).build()
            }
            Transfer::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    /// What the kernel's answer means; none: there is more to do.
    fn settle(&mut self, answer: i32) -> Option<io::Result<()>> {
        if answer < 0 {
            let error = io::Error::from_raw_os_error(-answer);
            let again = matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
            // A sync that failed has failed, whatever it says.
            return Some(if again && !matches!(self.transfer, Transfer::Sync) { self.finish() } else { Err(error) });
        }
        self.done += answer as usize;
        assert!(self.done <= self.bytes(), "the kernel moved more than it was asked to");
        match &self.transfer {
            Transfer::Sync => Some(Ok(())),
            _ if self.done == self.bytes() => Some(Ok(())),
            Transfer::Read(_) if answer == 0 => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            Transfer::Write(_) if answer == 0 => Some(Err(io::ErrorKind::WriteZero.into())),
            Transfer::Read(_) | Transfer::Write(_) => None,
        }
    }

    /// Does what is left by plain calls.
    fn finish(&mut self) -> io::Result<()> {
        let (from, offset) = (self.done, self.offset + self.done as u64);
        match &mut self.transfer {
            Transfer::Read(buffer) => self.file.read_exact_at(&mut buffer[from..], offset),
            Transfer::Write(bytes) => self.file.write_all_at(&bytes[from..], offset),
            Transfer::Sync => self.file.sync_data(),
        }
    }
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        // Without interrupting us while we compute; kernels before 5.19 do not know that wish.
        match IoUring::builder().dontfork().setup_coop_taskrun().build(ENTRIES) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                IoUring::builder().dontfork().build(ENTRIES).map(Self)
            }
            made => made.map(Self),
        }
    }

    /// Whether rings can be made here, know what we need, and really work: a filter may allow one call of three.
    pub(crate) fn probe() -> Result<(), Refusal> {
        let mut ring = Self::new().map_err(Refusal::Setup)?.0;
        let mut known = Probe::new();
        ring.submitter().register_probe(&mut known).map_err(Refusal::Setup)?;
        let needed = [("READ", opcode::Read::CODE), ("WRITE", opcode::Write::CODE), ("FSYNC", opcode::Fsync::CODE)];
        if let Some((name, _)) = needed.into_iter().find(|(_, code)| !known.is_supported(*code)) {
            return Err(Refusal::Missing(name));
        }
        // SAFETY: an entry without memory.
        unsafe { ring.submission().push(&opcode::Nop::new().build()) }.expect("a new ring has room");
        ring.submit_and_wait(1).map_err(Refusal::Setup)?;
        let answered = ring.completion().next().is_some_and(|completion| completion.result() >= 0);
        if answered { Ok(()) } else { Err(Refusal::Missing("NOP")) }
    }

    /// Carries operations out, as many at a time as the ring holds, in any order; `done` is given each with its place among them as it
    /// ends. Returns the ring, unless it refused to work: then plain calls have done the rest.
    pub(crate) fn run<'a>(
        mut self,
        operations: Vec<Operation<'a>>,
        done: &mut dyn FnMut(usize, Operation<'a>, io::Result<()>),
    ) -> Option<Self> {
        let waiting = (0..operations.len()).collect();
        let operations = operations.into_iter().map(Some).collect();
        let mut flight = Flight { ring: &mut self.0, operations, waiting, pushed: 0 };
        let works = flight.run(done);
        drop(flight);
        works.then_some(self)
    }
}

impl<'a> Flight<'_, 'a> {
    fn run(&mut self, done: &mut dyn FnMut(usize, Operation<'a>, io::Result<()>)) -> bool {
        loop {
            self.push();
            if self.pushed == 0 {
                return true;
            }
            if !self.wait() {
                break;
            }
            while let Some((index, answer)) = self.next_completion() {
                let operation = self.operations[index].as_mut().expect("in flight, so not handed back");
                match operation.settle(answer) {
                    None => self.waiting.push_back(index),
                    Some(result) => {
                        let operation = self.operations[index].take().expect("just seen");
                        done(index, operation, result);
                    }
                }
            }
        }
        // The kernel has nothing and takes nothing more.
        for index in 0..self.operations.len() {
            if let Some(mut operation) = self.operations[index].take() {
                let result = operation.finish();
                done(index, operation, result);
            }
        }
        false
    }

    fn push(&mut self) {
        while self.pushed < ENTRIES as usize {
            let Some(index) = self.waiting.pop_front() else { return };
            let operation = self.operations[index].as_mut().expect("waiting, so not handed back");
            let entry = operation.entry().user_data(index as u64);
            // SAFETY: the entry points into `operations[index]`, which stays as it is until its completion was taken; see the module.
            unsafe { self.ring.submission().push(&entry) }.expect("no more are pushed than there is room");
            self.pushed += 1;
        }
    }

    fn next_completion(&mut self) -> Option<(usize, i32)> {
        let completion = self.ring.completion().next()?;
        self.pushed -= 1;
        Some((completion.user_data() as usize, completion.result()))
    }

    /// Entries that the kernel has.
    fn taken(&mut self) -> usize {
        self.pushed - self.ring.submission().len()
    }

    /// Submits what was pushed and waits for a completion. False: the ring refuses, and the kernel has nothing of it.
    fn wait(&mut self) -> bool {
        match self.ring.submit_and_wait(1) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            // Short of memory, most likely: what the kernel has will end, and make room.
            Err(_) if self.taken() > 0 => {
                self.wait_for_taken();
                true
            }
            Err(_) => false,
        }
    }

    /// Waits until one of the entries that the kernel has is completed, and submits nothing.
    fn wait_for_taken(&mut self) {
        while self.ring.completion().is_empty() {
            // SAFETY: submits no entry and passes no argument.
            let waited = unsafe { self.ring.submitter().enter::<()>(0, 1, GET_EVENTS, None) };
            match waited {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    eprintln!(
                        "io_uring_enter: {error}: cannot wait for what the kernel does with our memory; aborting"
                    );
                    std::process::abort();
                }
                _ => {}
            }
        }
    }
}

impl Drop for Flight<'_, '_> {
    fn drop(&mut self) {
        // Only after a panic of the callback is there anything. What was not submitted dies with the ring, which `run` drops then.
        while self.taken() > 0 {
            self.wait_for_taken();
            while self.next_completion().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io_backend::tests::under_a_filter;
    use rustix::io::Errno;
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(bytes, 0).expect("written");
        file
    }

    fn answer(errno: Errno) -> i32 {
        -errno.raw_os_error()
    }

    fn kind(settled: Option<io::Result<()>>) -> Option<io::ErrorKind> {
        settled.and_then(|result| result.err().map(|error| error.kind()))
    }

    #[test]
    fn a_transfer_that_ends_short_goes_on_where_it_ended() {
        let file = file_of(b"0123456789");
        let mut read = Operation::new(&file, 1, Transfer::Read(vec![0; 9]));
        assert!(read.settle(4).is_none() && read.done == 4, "more to do");
        // What is left is done by a plain call, from there on.
        assert!(read.settle(answer(Errno::AGAIN)).expect("ended").is_ok());
        let Transfer::Read(buffer) = &read.transfer else { unreachable!() };
        assert_eq!(*buffer, [&[0; 4][..], b"56789"].concat());
        let mut write = Operation::new(&file, 2, Transfer::Write(b"abcd"));
        assert!(write.settle(1).is_none());
        assert!(write.settle(answer(Errno::INTR)).expect("ended").is_ok());
        let mut found = [0; 10];
        file.read_exact_at(&mut found, 0).expect("read");
        assert_eq!(&found, b"012bcd6789");
    }

    #[test]
    fn an_answer_of_nothing_is_an_end_and_never_success() {
        let file = file_of(b"");
        let settled = Operation::new(&file, 0, Transfer::Read(vec![0; 9])).settle(0);
        assert_eq!(kind(settled), Some(io::ErrorKind::UnexpectedEof));
        let settled = Operation::new(&file, 0, Transfer::Write(b"x")).settle(0);
        assert_eq!(kind(settled), Some(io::ErrorKind::WriteZero));
        let settled = Operation::new(&file, 0, Transfer::Write(b"x")).settle(answer(Errno::NOSPC));
        assert_eq!(kind(settled), Some(io::ErrorKind::StorageFull));
    }

    #[test]
    fn a_sync_that_failed_is_not_tried_again_whatever_it_says() {
        let file = file_of(b"");
        for errno in [Errno::IO, Errno::INTR, Errno::AGAIN, Errno::NOSPC] {
            let settled = Operation::new(&file, 0, Transfer::Sync).settle(answer(errno));
            assert_eq!(settled.expect("ended").expect_err("failed").raw_os_error(), Some(errno.raw_os_error()));
        }
    }

    /// A pipe with nothing in it keeps its read in flight for as long as the test wants.
    #[test]
    fn a_panic_of_the_callback_waits_for_what_the_kernel_still_has() {
        let Ok(ring) = Ring::new() else { return };
        let file = file_of(b"x");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let reader = File::from(OwnedFd::from(reader));
        let (panics, told) = channel();
        let written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let written = &written;
            scope.spawn(move || {
                told.recv().expect("told");
                written.store(true, Ordering::SeqCst);
                writer.write_all(b"y").expect("written");
            });
            let read = |file| Operation::new(file, 0, Transfer::Read(vec![0]));
            let run = AssertUnwindSafe(|| {
                ring.run(vec![read(&reader), read(&file)], &mut |index, _, _| {
                    assert_eq!(index, 1, "the pipe has nothing yet");
                    panics.send(()).expect("heard");
                    panic!("on purpose");
                })
            });
            assert!(catch_unwind(run).is_err());
            assert!(
                written.load(Ordering::SeqCst),
                "the buffer of the pipe's read was given up while the kernel had it"
            );
        });
    }

    #[test]
    fn a_ring_that_refuses_leaves_the_work_to_plain_calls_and_is_gone() {
        let file = file_of(b"0123456789");
        let Ok(ring) = Ring::new() else { return };
        let mut found = Vec::new();
        under_a_filter(&[libc::SYS_io_uring_enter], Errno::NOMEM, || {
            let reads = (0..10).map(|n| Operation::new(&file, n, Transfer::Read(vec![0]))).collect();
            let kept = ring.run(reads, &mut |index, operation, result| {
                result.expect("read all the same");
                let Transfer::Read(buffer) = operation.transfer else { unreachable!() };
                found.push((index, buffer[0]));
            });
            assert!(kept.is_none(), "it is not used again");
        });
        assert_eq!(found, (0..10).map(|n| (n, b'0' + n as u8)).collect::<Vec<_>>());
    }
}
