//! What differs from a local file system, by decision or because the kernel leaves no choice: the rows of `docs/posix.md`. A test that fails
//! here because the difference is gone is good news, and the row goes with it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use holdfast_tests::command::{holdfast, must, run};
use holdfast_tests::{Up, can_mount, until};
use rustix::io::Errno;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program in a folder, and returns what it prints.
fn python(at: &Path, script: &str) -> String {
    let mut command = Command::new("python3");
    command.args(["-I", "-c", script]).current_dir(at);
    let said = run(&mut command, LIMIT).expect("ends");
    assert!(said.success, "{script}\n{}{}", said.stdout, said.stderr);
    said.stdout.trim().to_owned()
}

#[test]
fn a_write_by_a_stranger_to_the_group_leaves_a_bit_that_means_nothing() {
    let name = "differences::a_write_by_a_stranger_to_the_group_leaves_a_bit_that_means_nothing";
    if !can_mount(name, &["setpriv"]) {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    let file = up.mount().join("f");
    let write = |mode: u32, user: &[&str]| {
        fs::write(&file, "x").expect("writes");
        chown(&file, Some(1000), Some(1000)).expect("given away");
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("set");
        let mut command = Command::new("setpriv");
        command.args(user).args(["bash", "-c", "echo more >> \"$0\""]).arg(&file);
        must(&mut command, LIMIT).expect("writes");
        file.metadata().expect("stat").mode() & 0o7777
    };
    let stranger = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let member = ["--reuid", "65534", "--regid", "65534", "--groups", "1000"];
    assert_eq!(write(0o2666, &stranger), 0o2666, "a local disk says 666");
    assert_eq!(write(0o2666, &member), 0o2666, "as on a local disk");
    assert_eq!(
        write(0o6777, &stranger),
        0o777,
        "as on a local disk: where the group may execute it, the bit means something"
    );
    assert_eq!(write(0o6777, &member), 0o777, "as on a local disk");
}

#[test]
fn calls_of_one_file_system_each_are_refused() {
    if !can_mount("differences::calls_of_one_file_system_each_are_refused", &["python3", "mkswap", "lsattr", "chattr"])
    {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    fs::write(up.mount().join("f"), vec![0; 1 << 20]).expect("writes");
    fs::write(up.mount().join("g"), vec![1; 1 << 20]).expect("writes");
    let said = python(
        up.mount(),
        "
import ctypes, errno, fcntl, os, subprocess
f = os.open('f', os.O_RDWR)
def refused(number, argument):
    try: fcntl.ioctl(f, number, argument)
    except OSError as error: return errno.errorcode[error.errno]
    return 'done'
print('FS_IOC_GETFLAGS', refused(0x80086601, bytes(8)))
print('FS_IOC_FIEMAP', refused(0xC020660B, bytes(8) + b'\\xff' * 8 + bytes(16)))
# The kernel answers it by itself: no block is where this byte lies.
assert fcntl.ioctl(f, 1, bytes(4)) == bytes(4)
print('FICLONE', refused(0x40049409, os.open('g', os.O_RDONLY)))
os.chmod('f', 0o600)
subprocess.run(['mkswap', 'f'], check=True, capture_output=True)
libc = ctypes.CDLL(None, use_errno=True)
print('swapon', 'done' if libc.swapon(b'f', 0) == 0 and libc.swapoff(b'f') == 0 else errno.errorcode[ctypes.get_errno()])",
    );
    for line in said.lines() {
        let (call, answer) = line.split_once(' ').expect("two words");
        assert!(["ENOTTY", "ENOTSUP", "EOPNOTSUPP", "EINVAL"].contains(&answer), "{call}: {answer}\n{said}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
    for program in ["lsattr", "chattr +i"] {
        let mut command = Command::new("bash");
        let said =
            run(command.args(["-c", &format!("{program} f 2>&1")]).current_dir(up.mount()), LIMIT).expect("ends");
        assert!(!said.success || said.stdout.contains("while reading flags"), "{program}: {}", said.stdout);
    }
    fs::write(up.mount().join("f"), "it can still be changed").expect("writes");
}

#[test]
fn a_file_handle_is_good_as_long_as_the_kernel_knows_the_file() {
    if !can_mount("differences::a_file_handle_is_good_as_long_as_the_kernel_knows_the_file", &["python3"]) {
        return;
    }
    let mut up = Up::start(&[]).expect("up is ready");
    fs::write(up.mount().join("f"), "found").expect("writes");
    let helpers = "
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('kind', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
def name(path):
    handle, mount = Handle(128), ctypes.c_int()
    assert libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount), 0) == 0, ctypes.get_errno()
    return handle.kind, bytes(handle.data[:handle.bytes])
def open_by(kind, data):
    handle = Handle(len(data), kind); handle.data[:len(data)] = data
    fd = libc.open_by_handle_at(os.open('.', os.O_RDONLY), ctypes.byref(handle), os.O_RDONLY)
    return errno.errorcode[ctypes.get_errno()] if fd < 0 else os.read(fd, 100).decode()
";
    let named =
        python(up.mount(), &format!("{helpers}kind, data = name(b'f')\nprint(kind, data.hex(), open_by(kind, data))"));
    let words: Vec<&str> = named.split(' ').collect();
    assert_eq!(words[2], "found", "{named}");
    // A kernel that has forgotten all: another mount.
    up.process().terminate(LIMIT).expect("ends");
    up.restart().expect("starts again");
    let again = format!("{helpers}print(open_by({}, bytes.fromhex('{}')))", words[0], words[1]);
    assert_eq!(python(up.mount(), &again), "ESTALE", "a local disk finds it");
    assert_eq!(fs::read_to_string(up.mount().join("f")).expect("reads"), "found");
    assert_eq!(python(up.mount(), &again), "found", "now it knows it again");
}

#[test]
fn holes_count_in_the_limit_of_a_volume() {
    if !can_mount("differences::holes_count_in_the_limit_of_a_volume", &[]) {
        return;
    }
    let up = Up::start(&[]).expect("up is ready");
    let mut limit = Command::new(holdfast().expect("built"));
    limit.arg("admin").arg("--cluster").arg(up.folder().join("data/cluster.toml"));
    must(limit.args(["volume", "limit", "main", "--bytes", "64 MiB"]), LIMIT).expect("set");
    until("the limit to hold", LIMIT, || {
        let shown = rustix::fs::statvfs(up.mount())?;
        anyhow::ensure!(shown.f_blocks * shown.f_frsize == 64 << 20, "{} blocks", shown.f_blocks);
        Ok(())
    })
    .expect("in time");
    let errno = |result: io::Result<()>| result.err().and_then(|error| Errno::from_io_error(&error));
    let file = File::create(up.mount().join("f")).expect("made");
    file.set_len(60 << 20).expect("a hole, and it fits");
    assert_eq!(errno(file.set_len(70 << 20)), Some(Errno::DQUOT), "a local disk counts blocks");
    let second = File::create(up.mount().join("g")).expect("made");
    let written = second.write_all_at(&vec![1; 8 << 20], 0).and_then(|()| second.sync_all());
    assert_eq!(errno(written), Some(Errno::DQUOT), "the hole takes the room");
    file.set_len(0).expect("given back");
    let third = File::create(up.mount().join("h")).expect("made");
    third.write_all_at(&vec![1; 8 << 20], 0).and_then(|()| third.sync_all()).expect("there is room");
}
