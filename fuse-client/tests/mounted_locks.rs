//! Locks and signals as the kernel passes them on, on a volume in memory that is really mounted.
//!
//! Needs root and /dev/fuse; where they are missing the tests are skipped.

mod memory;

use holdfast_fuse_client::fs::{FileSystem, Shared};
use holdfast_fuse_client::{Mounted, Options};
use memory::{Memory, Pace};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A mounted volume, swept as a real one is.
struct Here {
    directory: tempfile::TempDir,
    volume: Memory,
    _fs: Shared<Memory>,
    mounted: Option<Mounted>,
    stop: Arc<AtomicBool>,
}

impl Here {
    fn new(name: &str) -> Option<Self> {
        if !memory::can_mount(name) {
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let volume = Memory::new(Pace::AtOnce, Duration::ZERO);
        let fs = FileSystem::new(volume.clone());
        let mounted = Mounted::start(directory.path(), "test", &Options::default(), fs.clone()).expect("mounts");
        let stop = Arc::new(AtomicBool::new(false));
        let (swept, stopped) = (fs.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                swept.sweep_interrupted();
                // As often as a real mount does.
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Some(Self { directory, volume, _fs: fs, mounted: Some(mounted), stop })
    }

    /// A Python program with some helpers, in the mounted directory.
    fn python(&self, script: &str) -> Command {
        let helpers = "
import fcntl, os, signal, struct, subprocess, sys, time, errno
def ofd(fd, kind, start=0, length=0, wait=False):
    fcntl.fcntl(fd, 38 if wait else 37, struct.pack('hhqqi4x', kind, 0, start, length, 0))
def lock(fd, kind, start, length):
    fcntl.lockf(fd, kind, length, start)
def test(fd, kind, start=0, length=0, cmd=fcntl.F_GETLK):
    return struct.unpack('hhqqi4x', fcntl.fcntl(fd, cmd, struct.pack('hhqqi4x', kind, 0, start, length, 0)))
def refused(f, *a):
    try: f(*a)
    except OSError as e: return e.errno in (errno.EAGAIN, errno.EACCES)
    return False
def child(f):
    pid = os.fork()
    if pid == 0:
        ok = False
        try: ok = f()
        finally: os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0, 'the child says no'
X, S, U, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB
";
        // A shell that starts the tests in the background has them, and so their children, ignore Ctrl-C.
        let mut command = Command::new("env");
        // Isolated, or it would look for modules in the mounted directory.
        command
            .args(["--default-signal=INT,QUIT", "python3", "-I", "-c", &format!("{helpers}{script}")])
            .current_dir(self.directory.path());
        command
    }

    fn run(&self, script: &str) {
        let output = self.python(script).output().expect("python runs");
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.volume.set_pace(Pace::AtOnce);
        self.volume.release();
        let mounted = self.mounted.take().expect("once");
        if mounted.mount().unmount().is_err() {
            mounted.mount().unmount_by_force().expect("unmounts by force");
        }
        mounted.join();
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn byte_ranges_exclude_other_processes_and_end_with_any_close() {
    let Some(here) = Here::new("mounted_locks::byte_ranges_exclude_other_processes_and_end_with_any_close") else {
        return;
    };
    here.run(
        "
f = open('f', 'w+')
lock(f, X|NB, 5, 10)
lock(f, X|NB, 0, 5)
def other():
    g = open('f', 'r+')
    assert refused(lock, g, X|NB, 14, 1) and refused(lock, g, S|NB, 0, 0)
    assert test(g, fcntl.F_WRLCK, 0, 100) == (fcntl.F_WRLCK, 0, 0, 15, os.getppid()), test(g, fcntl.F_WRLCK)
    lock(g, X|NB, 15, 1)
    return True
child(other)
lock(f, U, 6, 4)
assert test(f, fcntl.F_WRLCK) == (fcntl.F_UNLCK, 0, 0, 0, 0), test(f, fcntl.F_WRLCK)
def middle():
    g = open('f', 'r+')
    lock(g, X|NB, 6, 4)
    assert refused(lock, g, X|NB, 5, 1) and refused(lock, g, X|NB, 10, 1)
    return True
child(middle)
open('f').close()
child(lambda: fcntl.lockf(open('f', 'r+'), X|NB) is None)
",
    );
    wait_for("all locks to end", || here.volume.locks() == 0);
}

#[test]
fn flock_and_fcntl_do_not_see_each_other() {
    let Some(here) = Here::new("mounted_locks::flock_and_fcntl_do_not_see_each_other") else { return };
    here.run(
        "
f, g = open('f', 'w+'), open('f', 'r+')
fcntl.flock(f, X|NB)
assert refused(fcntl.flock, g, S|NB)
child(lambda: fcntl.lockf(open('f', 'r+'), X|NB) is None)
fcntl.flock(f, S|NB)
fcntl.flock(g, S|NB)
assert refused(fcntl.flock, f, X|NB)
# A change that fails gives up what there was, as Linux does it.
fcntl.flock(g, X|NB)
g.close()
deadline = time.time() + 20
while refused(fcntl.flock, f, X|NB):
    assert time.time() < deadline
# A duplicate of the descriptor is the same open file.
h = os.dup(f.fileno()); f.close()
assert refused(fcntl.flock, open('f'), S|NB)
fcntl.flock(h, U)
fcntl.flock(open('f'), X|NB)
",
    );
    wait_for("all locks to end", || here.volume.locks() == 0);
}

#[test]
fn locks_of_an_open_file_end_with_its_last_descriptor_and_not_before() {
    let Some(here) = Here::new("mounted_locks::locks_of_an_open_file_end_with_its_last_descriptor_and_not_before")
    else {
        return;
    };
    here.run(
        "
f, g = open('f', 'w+'), open('f', 'r+')
ofd(f, fcntl.F_WRLCK, 0, 10)
assert refused(ofd, g, fcntl.F_WRLCK, 5, 1)
ofd(g, fcntl.F_WRLCK, 10, 1)
assert refused(lock, f, X|NB, 0, 5)
open('f').close()
assert refused(ofd, g, fcntl.F_RDLCK, 0, 1), 'closing another descriptor ends nothing'
h = os.dup(f.fileno()); f.close()
assert refused(ofd, g, fcntl.F_RDLCK, 0, 1)
os.close(h)
deadline = time.time() + 20
while refused(ofd, g, fcntl.F_WRLCK, 0, 10):
    assert time.time() < deadline
",
    );
    wait_for("all locks to end", || here.volume.locks() == 0);
}

#[test]
fn whoever_waits_gets_the_lock_when_it_is_given_back() {
    let Some(here) = Here::new("mounted_locks::whoever_waits_gets_the_lock_when_it_is_given_back") else { return };
    here.run(
        "
f = open('f', 'w+')
for take in (fcntl.lockf, fcntl.flock):
    take(f, X)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        g = open('f', 'r+')
        os.write(w, b'.')
        take(g, X)
        os.write(w, b'!')
        os._exit(0)
    assert os.read(r, 1) == b'.'
    time.sleep(0.2)
    take(f, U)
    assert os.read(r, 1) == b'!'
    os.waitpid(pid, 0)
",
    );
}

/// Starts a program that says when it is about to wait.
fn started(here: &Here, script: &str) -> Child {
    let mut child = here.python(script).stdout(Stdio::piped()).spawn().expect("python runs");
    let mut said = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut said).expect("says so");
    assert_eq!(&said, b"ready\n");
    child
}

/// Starts a program that says when it is about to wait for the volume, and waits until it does.
fn blocked(here: &Here, script: &str) -> Child {
    let child = started(here, script);
    wait_for("the call to wait", || here.volume.held() > 0);
    child
}

/// How long a program takes to end after a signal.
fn end(mut child: Child, signal: rustix::process::Signal) -> Duration {
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a number");
    let begun = Instant::now();
    rustix::process::kill_process(pid, signal).expect("signals");
    while child.try_wait().expect("waits").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{signal:?} does not end it");
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

/// What waits for the cluster ends so soon after Ctrl-C and `kill -9`, beyond what the same program takes that waits for something else:
/// that is this machine's affair, busy as it is.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// A program that waits for something else than the volume.
fn idle(here: &Here, before: &str) -> Child {
    let child = started(here, &format!("{before}\nr, w = os.pipe(); print('ready', flush=True); os.read(r, 1)"));
    wait_for("it to wait", || {
        let said = std::fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap_or_default();
        said.starts_with(&format!("{} ", libc::SYS_read))
    });
    child
}

/// The volume answers nothing; each program is blocked in another call. Those that handle Ctrl-C end as those that do not.
#[test]
fn a_blocked_process_ends_soon_after_ctrl_c_and_kill() {
    use rustix::process::Signal;
    let Some(here) = Here::new("mounted_locks::a_blocked_process_ends_soon_after_ctrl_c_and_kill") else {
        return;
    };
    here.run("open('f', 'w').write('x' * 100); os.mkdir('d')");
    let default = "signal.signal(signal.SIGINT, signal.SIG_DFL)";
    let calls = [
        "f = open('f'); print('ready', flush=True); os.read(f.fileno(), 10)",
        "f = open('f', 'r+'); print('ready', flush=True); os.write(f.fileno(), b'y')",
        "f = open('f', 'r+'); print('ready', flush=True); os.fsync(f.fileno())",
        "print('ready', flush=True); os.open('f', os.O_RDWR | os.O_TRUNC)",
        "print('ready', flush=True); os.open('new', os.O_CREAT | os.O_RDWR)",
        "print('ready', flush=True); os.listdir('d')",
        "f = open('f', 'r+'); print('ready', flush=True); fcntl.lockf(f, X)",
        "f = open('f', 'r+'); print('ready', flush=True); fcntl.flock(f, X)",
    ];
    here.volume.set_pace(Pace::HeldButNames);
    for call in calls {
        for (handled, signal) in [(true, Signal::INT), (false, Signal::INT), (false, Signal::KILL)] {
            let before = if handled { "" } else { default };
            let elsewhere = end(idle(&here, before), signal);
            let took = end(blocked(&here, &format!("{before}\n{call}")), signal);
            let late = took.saturating_sub(elsewhere);
            assert!(late <= ENDS_WITHIN, "{call} after {signal:?}: {took:?}, and {elsewhere:?} elsewhere");
        }
    }
}

#[test]
fn an_alarm_ends_a_wait_for_a_lock_and_nothing_else() {
    let Some(here) = Here::new("mounted_locks::an_alarm_ends_a_wait_for_a_lock_and_nothing_else") else { return };
    here.run(
        "
f = open('f', 'w+'); fcntl.lockf(f, X)
def other():
    class Rang(Exception): pass
    def rang(*_): raise Rang
    signal.signal(signal.SIGALRM, rang)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    begun = time.time()
    try: fcntl.lockf(open('f', 'r+'), X)
    except Rang: return time.time() - begun < 5
child(other)
",
    );
    here.volume.set_pace(Pace::HeldButNames);
    let script = "signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.2)
print('ready', flush=True); os.mkdir('d')";
    let mut child = blocked(&here, script);
    std::thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait().expect("waits").is_none(), "a timer does not end a mkdir");
    here.volume.set_pace(Pace::AtOnce);
    here.volume.release();
    assert!(child.wait().expect("waits").success());
}
