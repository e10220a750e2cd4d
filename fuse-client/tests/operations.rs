//! The file system's operations without FUSE: requests in, answers out, a volume in memory below.

mod memory;

use holdfast_client::{Call, Reply as Answered};
use holdfast_fuse_client::device::{
    Answer, Caller, Entry, KernelCache, NewAttributes, OpenHints, Operation, Reply, Request, Service, Sink,
};
use holdfast_fuse_client::fs::{FileSystem, Server, Shared};
use holdfast_types::{InodeId, Timestamp};
use holdfast_wire::namespace::{FileKind, SetTime};
use memory::{Memory, Pace};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(10);
const ROOT: InodeId = InodeId::ROOT;

/// Answers, by request.
struct Answers(Mutex<mpsc::Sender<(u64, Result<Answer, Errno>)>>);

impl Sink for Answers {
    fn send(&self, unique: u64, result: Result<Answer, Errno>) {
        let _ = self.0.lock().expect("no panic").send((unique, result));
    }
}

/// A file system, and who asks it.
struct Asker {
    volume: Memory,
    fs: Shared<Memory>,
    server: Server<Memory>,
    sink: Arc<Answers>,
    answers: mpsc::Receiver<(u64, Result<Answer, Errno>)>,
    next: u64,
    uid: u32,
}

impl Asker {
    fn new(pace: Pace, ttl: Duration) -> Self {
        let volume = Memory::new(pace, ttl);
        let fs = FileSystem::new(volume.clone());
        let (sender, answers) = mpsc::channel();
        let server = Server(fs.clone());
        Self { volume, fs, server, sink: Arc::new(Answers(Mutex::new(sender))), answers, next: 2, uid: 10 }
    }

    /// Asks without waiting for the answer.
    fn begin(&mut self, inode: InodeId, pid: u32, operation: Operation<'_>) -> u64 {
        self.next += 2;
        let caller = Caller { uid: self.uid, gid: 20, pid };
        let reply = Reply::new(self.next, pid, self.sink.clone());
        self.server.serve(Request { unique: self.next, inode, caller, operation }, reply);
        self.next
    }

    fn answer(&self) -> (u64, Result<Answer, Errno>) {
        self.answers.recv_timeout(Duration::from_secs(30)).expect("an answer")
    }

    fn ask(&mut self, inode: InodeId, operation: Operation<'_>) -> Result<Answer, Errno> {
        let unique = self.begin(inode, 0, operation);
        let (answered, result) = self.answer();
        assert_eq!(answered, unique);
        result
    }

    fn entry(&mut self, parent: InodeId, operation: Operation<'_>) -> Entry {
        match self.ask(parent, operation) {
            Ok(Answer::Entry(entry) | Answer::Created(entry, ..)) => entry,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, name: &[u8], flags: i32) -> (InodeId, u64, OpenHints) {
        let flags = flags.cast_unsigned();
        match self.ask(ROOT, Operation::Create { name, mode: 0o100644, umask: 0, flags }) {
            Ok(Answer::Created(entry, handle, hints)) => (entry.attributes.inode, handle, hints),
            other => panic!("{other:?}"),
        }
    }
}

/// On a volume that answers at once and may be cached, and on one that answers later and may not.
fn everywhere(test: impl Fn(Asker, Duration)) {
    for (pace, ttl) in [(Pace::AtOnce, LONG), (Pace::Later, Duration::ZERO)] {
        test(Asker::new(pace, ttl), ttl);
    }
}

#[test]
fn a_name_is_found_with_its_timeouts_or_absent_with_one() {
    everywhere(|mut asker, ttl| {
        let made = asker.entry(ROOT, Operation::MakeDirectory { name: b"d", mode: 0o40751, umask: 0 });
        assert_eq!((made.attributes.kind, made.attributes.mode), (FileKind::Directory, 0o751));
        assert_eq!((made.attributes.uid, made.attributes.gid), (10, 20));
        let found = asker.entry(ROOT, Operation::Lookup { name: b"d" });
        assert_eq!((found.attributes.inode, found.name_valid), (made.attributes.inode, ttl));
        match asker.ask(ROOT, Operation::Lookup { name: b"absent" }) {
            Ok(Answer::Absent(valid)) => assert_eq!((valid, ttl), (LONG, LONG)),
            Err(errno) => assert_eq!((errno, ttl), (Errno::NOENT, Duration::ZERO)),
            other => panic!("{other:?}"),
        }
        assert_eq!(asker.ask(ROOT, Operation::Lookup { name: &[b'n'; 256] }).unwrap_err(), Errno::NAMETOOLONG);
        assert_eq!(asker.ask(ROOT, Operation::RemoveDirectory { name: b"absent" }).unwrap_err(), Errno::NOENT);
    });
}

#[test]
fn a_file_that_appeared_meanwhile_is_looked_at_again_before_it_is_opened() {
    everywhere(|mut asker, _| {
        asker.create(b"f", 0);
        let create =
            |flags: i32| Operation::Create { name: b"f", mode: 0o100666, umask: 0, flags: flags.cast_unsigned() };
        assert_eq!(asker.ask(ROOT, create(libc::O_CREAT)).unwrap_err(), Errno::STALE);
        assert_eq!(asker.ask(ROOT, create(libc::O_CREAT | libc::O_EXCL)).unwrap_err(), Errno::EXIST);
    });
}

#[test]
fn a_file_is_cached_or_bypassed_as_the_volume_allows() {
    everywhere(|mut asker, ttl| {
        let (inode, _, hints) = asker.create(b"f", libc::O_RDWR);
        assert_eq!(hints, OpenHints { direct: ttl.is_zero(), keep_pages: false });
        let open = |asker: &mut Asker| match asker.ask(inode, Operation::Open { flags: 0 }) {
            Ok(Answer::Opened(_, hints)) => hints,
            other => panic!("{other:?}"),
        };
        let caching = !ttl.is_zero();
        assert_eq!(open(&mut asker), OpenHints { direct: !caching, keep_pages: caching });
        asker.fs.stop_caching();
        assert_eq!(open(&mut asker), OpenHints { direct: true, keep_pages: false });
        asker.fs.start_caching();
        assert_eq!(open(&mut asker), OpenHints { direct: !caching, keep_pages: false }, "others may have written");
        assert_eq!(open(&mut asker), OpenHints { direct: !caching, keep_pages: caching });
    });
}

#[test]
fn nothing_is_answered_with_a_timeout_after_caching_stopped() {
    let mut asker = Asker::new(Pace::AtOnce, LONG);
    asker.entry(ROOT, Operation::MakeDirectory { name: b"d", mode: 0o40755, umask: 0 });
    let (f, _, _) = asker.create(b"f", libc::O_RDWR);
    let _ = asker.ask(ROOT, Operation::Lookup { name: b"absent" });
    // The kernel's entry moves with its timeout.
    let moved = asker.ask(ROOT, Operation::Rename { name: b"f", to_parent: ROOT, to_name: b"moved", flags: 0 });
    assert!(matches!(moved, Ok(Answer::Done)), "{moved:?}");
    // Asked before, answered after: the answer was taken from the volume while caching was allowed.
    asker.volume.set_pace(Pace::Held);
    asker.begin(ROOT, 0, Operation::Lookup { name: b"d" });
    let (inodes, mut names) = asker.fs.stop_caching();
    names.sort();
    let names: Vec<_> = names.iter().map(|(parent, name)| (*parent, &**name)).collect();
    assert_eq!(names, [(ROOT, &b"absent"[..]), (ROOT, b"d"), (ROOT, b"f"), (ROOT, b"moved")]);
    assert!(inodes.contains(&f) && inodes.len() == 2, "{inodes:?}");
    asker.volume.release();
    match asker.answer().1 {
        Ok(Answer::Entry(entry)) => {
            assert_eq!((entry.name_valid, entry.attributes_valid), (Duration::ZERO, Duration::ZERO))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn appending_is_by_the_writes_own_flag_and_mapped_pages_never_append() {
    everywhere(|mut asker, _| {
        let append = libc::O_WRONLY | libc::O_APPEND;
        let (inode, handle, _) = asker.create(b"f", append);
        let mut write = |offset, data: &'static [u8], flags: i32, from_cache| {
            let data = bytes::Bytes::from_static(data);
            let flags = flags.cast_unsigned();
            let write = Operation::Write { handle, offset, data, flags, from_cache, kill_set_ids: false };
            assert!(matches!(asker.ask(inode, write), Ok(Answer::Written(_))));
        };
        write(0, b"one", append, false);
        write(0, b"two", append, false);
        write(1, b"X", append, true);
        write(2, b"Y", libc::O_WRONLY, false);
        let Ok(Answer::Data(pieces)) = asker.ask(inode, Operation::Read { handle, offset: 0, size: 99, flags: 0 })
        else {
            panic!("reads")
        };
        assert_eq!(pieces.concat(), b"oXYtwo");
        assert_eq!(asker.volume.open_handles(), 2);
        assert!(matches!(asker.ask(inode, Operation::Release { handle }), Ok(Answer::Done)));
        assert_eq!(asker.volume.open_handles(), 0, "the second handle too");
        let gone = Operation::Write {
            handle,
            offset: 0,
            data: bytes::Bytes::new(),
            flags: 0,
            from_cache: false,
            kill_set_ids: false,
        };
        assert_eq!(asker.ask(inode, gone).unwrap_err(), Errno::BADF);
    });
}

#[test]
fn set_id_bits_are_cleared_by_a_change_of_owner_but_of_directories() {
    everywhere(|mut asker, _| {
        let (file, ..) = asker.create(b"f", 0);
        let directory =
            asker.entry(ROOT, Operation::MakeDirectory { name: b"d", mode: 0o40755, umask: 0 }).attributes.inode;
        for (inode, after) in [(file, 0o777), (directory, 0o6777)] {
            let mode = NewAttributes { mode: Some(0o6777), ..NewAttributes::default() };
            assert!(asker.ask(inode, Operation::SetAttributes(mode)).is_ok());
            let owner = NewAttributes { uid: Some(1), ..NewAttributes::default() };
            let Ok(Answer::Attributes(attributes, _)) = asker.ask(inode, Operation::SetAttributes(owner)) else {
                panic!("changes")
            };
            assert_eq!((attributes.mode, attributes.uid, attributes.gid), (after, 1, 20));
        }
    });
}

#[test]
fn the_kernel_is_told_when_a_write_took_set_id_bits() {
    struct Kernel(mpsc::Sender<InodeId>);
    impl KernelCache for Kernel {
        fn forget_inode(&self, _: InodeId) {}
        fn forget_attributes(&self, inode: InodeId) {
            let _ = self.0.send(inode);
        }
        fn forget_name(&self, _: InodeId, _: &[u8]) {}
        fn forget_all_names(&self) -> bool {
            false
        }
    }
    let mut asker = Asker::new(Pace::AtOnce, LONG);
    let (told, heard) = mpsc::channel();
    asker.fs.set_kernel(Kernel(told));
    let (inode, handle, _) = asker.create(b"f", libc::O_RDWR);
    let write = |kill_set_ids| Operation::Write {
        handle,
        offset: 0,
        data: bytes::Bytes::from_static(b"x"),
        flags: 0,
        from_cache: false,
        kill_set_ids,
    };
    asker.ask(inode, write(true)).expect("writes");
    assert_eq!(heard.try_iter().count(), 0, "there was nothing to take");
    let mode = NewAttributes { mode: Some(0o4755), ..NewAttributes::default() };
    asker.ask(inode, Operation::SetAttributes(mode)).expect("changes");
    asker.ask(inode, write(false)).expect("writes");
    assert_eq!(heard.try_iter().count(), 0, "the writer may keep them");
    asker.ask(inode, write(true)).expect("writes");
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [inode]);
}

#[test]
fn a_change_of_nothing_is_the_owners_and_read_only_for_others() {
    everywhere(|mut asker, _| {
        let (inode, ..) = asker.create(b"f", 0);
        let nothing = NewAttributes { kill_set_ids: true, ..NewAttributes::default() };
        asker.volume.take_calls();
        assert!(matches!(asker.ask(inode, Operation::SetAttributes(nothing)), Ok(Answer::Attributes(..))));
        assert_eq!(asker.volume.take_calls(), ["get-attributes", "set-attributes"], "its time of change moves");
        asker.uid = 11;
        assert!(matches!(asker.ask(inode, Operation::SetAttributes(nothing)), Ok(Answer::Attributes(..))));
        assert_eq!(asker.volume.take_calls(), ["get-attributes"]);
        asker.uid = 10;
        let at = Timestamp { seconds: i64::MIN, nanos: 1 };
        let times =
            NewAttributes { atime: Some(SetTime::At(at)), mtime: Some(SetTime::Now), ..NewAttributes::default() };
        let Ok(Answer::Attributes(attributes, _)) = asker.ask(inode, Operation::SetAttributes(times)) else {
            panic!("changes")
        };
        assert_eq!(attributes.atime, at);
        let huge = NewAttributes { size: Some(u64::MAX), ..NewAttributes::default() };
        assert_eq!(asker.ask(inode, Operation::SetAttributes(huge)).unwrap_err(), Errno::FBIG);
    });
}

#[test]
fn only_what_can_be_done_right_is_allocated() {
    everywhere(|mut asker, _| {
        let (inode, handle, _) = asker.create(b"f", libc::O_RDWR);
        let data = bytes::Bytes::from_static(&[7; 100]);
        let write = Operation::Write { handle, offset: 0, data, flags: 0, from_cache: false, kill_set_ids: false };
        asker.ask(inode, write).expect("writes");
        let mut allocate = |offset, length, mode: i32| {
            let mode = mode.cast_unsigned();
            asker.ask(inode, Operation::Allocate { handle, offset, length, mode }).map(drop)
        };
        assert_eq!(allocate(0, 50, 0), Ok(()));
        assert_eq!(allocate(0, 1000, libc::FALLOC_FL_KEEP_SIZE), Ok(()), "nothing is reserved, and nothing grows");
        assert_eq!(allocate(0, 1, libc::FALLOC_FL_INSERT_RANGE), Err(Errno::OPNOTSUPP));
        assert_eq!(allocate(0, 1, libc::FALLOC_FL_COLLAPSE_RANGE), Err(Errno::OPNOTSUPP));
        assert_eq!(allocate(u64::MAX, 1, 0), Err(Errno::FBIG));
        assert_eq!(allocate(10, 10, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE), Ok(()));
        assert_eq!(allocate(90, 20, libc::FALLOC_FL_ZERO_RANGE), Ok(()));
        assert_eq!(allocate(0, 200, 0), Ok(()));
        let Ok(Answer::Data(pieces)) = asker.ask(inode, Operation::Read { handle, offset: 0, size: 999, flags: 0 })
        else {
            panic!("reads")
        };
        let content = pieces.concat();
        let expected: Vec<u8> = (0..200).map(|at| if (10..20).contains(&at) || at >= 90 { 0 } else { 7 }).collect();
        assert_eq!(content, expected);
    });
}

#[test]
fn a_forgotten_inode_and_a_listed_one_balance() {
    everywhere(|mut asker, _| {
        for name in [&b"a"[..], b"b", b"c"] {
            asker.create(name, 0);
        }
        let before = asker.fs.counts().0;
        assert_eq!(before, 4);
        let list = Operation::ReadDirectory { handle: 0, offset: 0, size: 4096, plus: true };
        assert!(matches!(asker.ask(ROOT, list), Ok(Answer::Directory(buffer)) if !buffer.is_empty()));
        // Room for the dots and one entry: the others, though read, are not counted as looked up.
        let list = Operation::ReadDirectory { handle: 0, offset: 0, size: 3 * 160, plus: true };
        assert!(matches!(asker.ask(ROOT, list), Ok(Answer::Directory(_))));
        let Ok(Answered::Directory { entries, .. }) =
            asker.volume.elsewhere(Call::ReadDirectory { inode: ROOT, after: 0, limit: 9, plus: false })
        else {
            panic!("lists")
        };
        let counts = [3, 2, 2];
        let forgotten = entries.iter().zip(counts).map(|(entry, count)| (entry.inode, count)).collect();
        asker.begin(ROOT, 0, Operation::BatchForget(forgotten));
        assert_eq!(asker.fs.counts().0, 1, "the root alone");
    });
}

#[test]
fn a_call_given_up_answers_interrupted_once() {
    let mut asker = Asker::new(Pace::Held, LONG);
    let gone = u32::MAX - 3; // no such process: as good as killed
    let unique = asker.begin(ROOT, gone, Operation::Lookup { name: b"d" });
    assert!(asker.answers.try_recv().is_err());
    asker.begin(ROOT, 0, Operation::Interrupt { unique });
    assert!(matches!(asker.answer(), (answered, Err(Errno::INTR)) if answered == unique));
    let unique = asker.begin(ROOT, std::process::id(), Operation::Lookup { name: b"d" });
    asker.begin(ROOT, 0, Operation::Interrupt { unique });
    asker.fs.sweep_interrupted();
    assert!(asker.answers.try_recv().is_err(), "a signal that does not kill is waited out");
    asker.volume.release();
    assert!(matches!(asker.answer(), (answered, Err(Errno::NOENT) | Ok(Answer::Absent(_))) if answered == unique));
    assert!(asker.answers.try_recv().is_err());
}

#[test]
fn a_sync_of_the_whole_file_system_reaches_the_write_buffer() {
    everywhere(|mut asker, _| {
        let (inode, ..) = asker.create(b"f", libc::O_RDWR);
        asker.volume.take_calls();
        assert!(matches!(asker.ask(ROOT, Operation::SyncAll), Ok(Answer::Done)));
        assert!(matches!(asker.ask(inode, Operation::Fsync { handle: 0, data_only: false }), Ok(Answer::Done)));
        assert_eq!(asker.volume.take_calls(), ["sync-all", "fsync"]);
    });
}

#[test]
fn a_request_whose_end_panics_is_answered_and_forgotten() {
    // A sink that panics as a faulty answer would, once.
    struct Faulty(Arc<Answers>, AtomicBool);
    impl Sink for Faulty {
        fn send(&self, unique: u64, result: Result<Answer, Errno>) {
            assert!(self.1.swap(true, Ordering::SeqCst), "a panic on purpose");
            self.0.send(unique, result);
        }
    }
    let mut asker = Asker::new(Pace::Held, LONG);
    let faulty = Arc::new(Faulty(asker.sink.clone(), AtomicBool::new(false)));
    let request = Request { unique: 7, inode: ROOT, caller: Caller::default(), operation: Operation::StatFs };
    asker.server.serve(request, Reply::new(7, 0, faulty));
    let volume = asker.volume.clone();
    std::thread::spawn(move || volume.release()).join().expect_err("it panics");
    assert_eq!(asker.fs.waiting_count(), 0, "nothing is kept for it");
    asker.volume.set_pace(Pace::AtOnce);
    assert!(matches!(asker.ask(ROOT, Operation::StatFs), Ok(Answer::Usage(_))));
}
