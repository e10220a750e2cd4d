//! Advisory locks over two hosts' mounts: what they exclude, who waits, and when they end. And signals, while the cluster does not
//! answer.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_tests::{Cluster, Options, Told, can_mount, until};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(60);

/// Locks as it is told.
const PROGRAM: &str = "
import errno, fcntl, os, struct, sys
f = open(sys.argv[1], 'r+')
names = {'x': fcntl.LOCK_EX, 's': fcntl.LOCK_SH, 'u': fcntl.LOCK_UN}
for line in sys.stdin:
    how, kind, start, length = line.split()
    flags = names[kind[0]] | (fcntl.LOCK_NB if kind in 'xs' else 0)
    try:
        if how == 'flock': fcntl.flock(f, flags)
        else: fcntl.lockf(f, flags, int(length), int(start))
        said = 'ok'
    except OSError as e:
        said = errno.errorcode[e.errno]
    print(said, flush=True)
";

#[test]
fn locks_exclude_the_processes_of_other_hosts_and_end_with_their_holders() {
    if !can_mount("locks_exclude_the_processes_of_other_hosts_and_end_with_their_holders", &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("cluster");
    let (first, second) = (cluster.mount().expect("mount"), cluster.mount().expect("mount"));
    let paths = [first, second].map(|number| cluster.mounted(number).path().join("f"));
    std::fs::write(&paths[0], "x").expect("writes");
    let (mut a, mut b) = (Told::new(PROGRAM, &paths[0]), Told::new(PROGRAM, &paths[1]));
    assert_eq!(a.ask("lockf x 0 10"), "ok");
    assert_eq!(b.ask("lockf s 5 1"), "EAGAIN");
    assert_eq!(b.ask("lockf x 10 0"), "ok");
    assert_eq!(b.ask("flock x 0 0"), "ok", "flock and fcntl do not see each other");
    assert_eq!(a.ask("flock s 0 0"), "EAGAIN");
    // A circle over two hosts: whoever closes it is refused, and gives way to the other.
    b.begin("lockf x! 0 10");
    a.begin("lockf s! 20 5");
    let refused = |asked: &mut Told| asked.answers.try_recv().map_err(anyhow::Error::from);
    let (said, other) = until("a circle is found", LIMIT, || {
        refused(&mut a).map(|said| (said, 'b')).or_else(|_| refused(&mut b).map(|said| (said, 'a')))
    })
    .expect("found");
    assert_eq!(said, "EDEADLOCK", "as Python names EDEADLK");
    let (gives, gets) = if other == 'b' { (&mut a, &mut b) } else { (&mut b, &mut a) };
    assert_eq!(gives.ask("lockf u 0 0"), "ok");
    assert_eq!(gets.answer(), "ok", "the one that waited has it now");
    assert_eq!(gets.ask("lockf u 0 0"), "ok");
    assert_eq!(b.ask("lockf x 0 10"), "ok");
    // A holder that is killed: its locks end with it.
    a.begin("lockf x! 0 0");
    kill_process(Pid::from_child(&b.child), Signal::KILL).expect("kills");
    assert_eq!(a.answer(), "ok");
    // The kernel tells of the last close without waiting for an answer, so this one may have to be waited for.
    assert_eq!(a.ask("flock x! 0 0"), "ok");
    // A whole host that dies: as soon as its session is over.
    let mut c = Told::new(PROGRAM, &paths[1]);
    c.begin("lockf x! 3 1");
    let process = cluster.mounted(first).process().pid().and_then(Pid::from_raw).expect("runs");
    kill_process(process, Signal::KILL).expect("kills");
    assert_eq!(c.answer(), "ok");
}

/// The servers are stopped: every process that waits for them ends with Ctrl-C and `kill -9`, and the mount goes when it is told to.
/// Alone, a host grants locks itself; whoever comes later finds them, and those who wait for them wait on.
#[test]
fn locks_that_were_taken_alone_exclude_a_host_that_comes_later() {
    if !can_mount("locks_that_were_taken_alone_exclude_a_host_that_comes_later", &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("cluster");
    let first = cluster.mount().expect("mount");
    let file = cluster.mounted(first).path().join("f");
    std::fs::write(&file, "x").expect("writes");
    let (mut a, mut b) = (Told::new(PROGRAM, &file), Told::new(PROGRAM, &file));
    for _ in 0..100 {
        assert_eq!(a.ask("lockf x 0 0"), "ok");
        assert_eq!(b.ask("lockf s 0 0"), "EAGAIN");
        assert_eq!(a.ask("lockf u 0 0"), "ok");
    }
    assert_eq!(a.ask("lockf x 0 10"), "ok");
    assert_eq!(b.ask("lockf x 20 5"), "ok");
    assert_eq!(b.ask("flock x 0 0"), "ok");
    b.begin("lockf x! 5 1");
    let second = cluster.mount().expect("admitted");
    let mut c = Told::new(PROGRAM, &cluster.mounted(second).path().join("f"));
    for asked in ["lockf s 9 1", "lockf x 0 0", "lockf s 24 1", "flock s 0 0"] {
        assert_eq!(c.ask(asked), "EAGAIN", "{asked}");
    }
    assert_eq!(c.ask("lockf x 10 10"), "ok");
    assert_eq!(a.ask("lockf u 0 0"), "ok");
    assert_eq!(b.answer(), "ok", "it waited while another host came");
    assert_eq!(c.ask("lockf s 0 1"), "ok");
    // Alone again, what the other host left is gone, and what is here still holds.
    drop(c);
    cluster.mounted(second).unmount().expect("unmounts");
    assert_eq!(a.ask("lockf x! 0 5"), "ok");
    assert_eq!(a.ask("lockf s 5 1"), "EAGAIN");
    assert_eq!(a.ask("lockf x 10 10"), "ok");
    drop((a, b));
    cluster.mounted(first).unmount().expect("unmounts");
}

/// Whether the kernel has the call of a [`caller`]. A signal that comes before is handled before, and the call then waits for ever, as it
/// would on any file system.
fn is_in_its_call(child: &Child) -> anyhow::Result<()> {
    // By number (proc(5)): pread64, pwrite64, fcntl, flock, fsync, openat. Before, it reads what it waits for from its input.
    const CALLS: [libc::c_long; 6] =
        [libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_fcntl, libc::SYS_flock, libc::SYS_fsync, libc::SYS_openat];
    let said = std::fs::read_to_string(format!("/proc/{}/syscall", child.id()))?;
    let number = said.split_whitespace().next().and_then(|number| number.parse().ok());
    anyhow::ensure!(number.is_some_and(|number| CALLS.contains(&number)), "it is in {said}");
    Ok(())
}

/// What waits for the cluster ends so soon after Ctrl-C and `kill -9`, beyond what any program takes to end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// A call that waits on a local disk: for somebody at the other end of a pipe.
const IDLE: &str = "ready(); os.open('pipe', os.O_RDONLY)";

/// A process that says that it is ready, and makes a call when it is told to.
fn caller(at: &Path, before: &str, call: &str) -> Child {
    let script = format!(
        "import fcntl, os, signal, sys\n{before}\n\
         def ready():\n    print('ready', flush=True); sys.stdin.readline()\n{call}\nprint('done', flush=True)"
    );
    // A shell that starts the tests in the background has them, and so their children, ignore Ctrl-C.
    let mut child = Command::new("env")
        .args(["--default-signal=INT,QUIT", "python3", "-I", "-c", &script])
        .current_dir(at)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python runs");
    let mut said = [0; 6];
    child.stdout.as_mut().expect("piped").read_exact(&mut said).expect("says so");
    child
}

/// How long a process takes to end after a signal.
fn end(mut child: Child, call: &str, signal: Signal) -> Duration {
    let begun = Instant::now();
    kill_process(Pid::from_child(&child), signal).expect("signals");
    while child.try_wait().expect("waits").is_none() {
        if begun.elapsed() > LIMIT {
            let look = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", child.id())).unwrap_or_default();
            panic!("{call} after {signal:?}\n{}\n{}\n{}", look("stack"), look("syscall"), look("status"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

#[test]
fn a_cluster_that_is_stopped_holds_no_process_and_no_mount() {
    if !can_mount("a_cluster_that_is_stopped_holds_no_process_and_no_mount", &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("cluster");
    let mounts = [cluster.mount().expect("mount"), cluster.mount().expect("mount")];
    let paths = mounts.map(|number| cluster.mounted(number).path().to_path_buf());
    std::fs::write(paths[0].join("f"), vec![b'x'; 1 << 20]).expect("writes");
    let mut holder = Told::new(PROGRAM, &paths[0].join("f"));
    assert_eq!(holder.ask("lockf x 0 0"), "ok");
    let calls = [
        "read = os.open('f', os.O_RDONLY); ready(); os.pread(read, 4096, 0)",
        "ready(); os.open('f', os.O_RDONLY)",
        "ready(); os.open('new', os.O_CREAT | os.O_RDWR)",
        "f = os.open('f', os.O_RDWR); ready(); os.pwrite(f, b'y', 0); os.fsync(f)",
        "f = open('f', 'r+'); ready(); fcntl.lockf(f, fcntl.LOCK_EX)",
        "f = open('f', 'r+'); ready(); fcntl.flock(f, fcntl.LOCK_EX)",
    ];
    let variants =
        [("", Signal::INT), ("signal.signal(signal.SIGINT, signal.SIG_DFL)", Signal::INT), ("", Signal::KILL)];
    let mut waiting = Vec::new();
    for call in calls {
        for (before, signal) in variants {
            let child = caller(&paths[1], before, call);
            waiting.push((child, call, before, signal));
        }
    }
    for server in cluster.servers() {
        server.suspend().expect("stops");
    }
    for (child, ..) in &mut waiting {
        writeln!(child.stdin.as_mut().expect("piped"), "go").expect("reads");
    }
    for (child, call, ..) in &waiting {
        until(call, LIMIT, || is_in_its_call(child)).expect("makes its call");
    }
    let pipe = cluster.folder().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a pipe");
    let mut late = Vec::new();
    for (mut child, call, before, signal) in waiting {
        if let Some(status) = child.try_wait().expect("waits") {
            let mut said = String::new();
            child.stdout.take().expect("piped").read_to_string(&mut said).expect("reads");
            panic!("{call} does not wait: {status}, it said {said:?}");
        }
        // The same program waiting for nothing of ours shows what this machine, busy as it is, takes to end one.
        let mut other = caller(cluster.folder(), before, IDLE);
        writeln!(other.stdin.as_mut().expect("piped"), "go").expect("reads");
        until("a call that is not ours", LIMIT, || is_in_its_call(&other)).expect("makes its call");
        let took = [other, child].map(|child| end(child, call, signal));
        if took[1].saturating_sub(took[0]) > ENDS_WITHIN {
            late.push(format!("{call} after {signal:?}: {:?}, and {:?} elsewhere", took[1], took[0]));
        }
    }
    assert!(late.is_empty(), "{late:#?}");
    drop(holder);
    // The mounts go, one politely, one by force; the processes behind them end or are ended.
    for (path, lazy) in paths.iter().zip([false, true]) {
        let mut umount = Command::new("umount");
        umount.args(lazy.then_some("-l")).arg(path);
        let mut child = umount.spawn().expect("runs");
        until("umount returns", LIMIT, || anyhow::Context::context(child.try_wait()?, "it waits")).expect("ends");
        let table = std::fs::read_to_string("/proc/mounts").expect("reads");
        assert!(!table.contains(&format!(" {} ", path.display())), "still mounted");
    }
    for number in mounts {
        cluster.mounted(number).process().kill().expect("killed");
    }
    for server in cluster.servers() {
        server.signal(Signal::CONT).expect("goes on");
    }
}
