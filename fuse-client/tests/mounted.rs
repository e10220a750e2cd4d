//! A volume in memory, really mounted: what the kernel and real programs make of the adapter.
//!
//! Needs root and /dev/fuse; where they are missing the tests are skipped.

mod memory;

use holdfast_client::Call;
use holdfast_fuse_client::fs::{FileSystem, Shared};
use holdfast_fuse_client::{Invalidator, Mounted, Options, repair};
use holdfast_types::InodeId;
use holdfast_wire::namespace::SetAttributes;
use memory::{Memory, Pace};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Long enough that no timeout passes during a test.
const LONG: Duration = Duration::from_secs(10);

/// A mounted volume, unmounted at the end, also of a test that fails.
struct Here {
    directory: tempfile::TempDir,
    volume: Memory,
    fs: Shared<Memory>,
    mounted: Option<Mounted>,
}

impl Here {
    fn new(name: &str, pace: Pace, ttl: Duration) -> Option<Self> {
        if !memory::can_mount(name) {
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let volume = Memory::new(pace, ttl);
        let fs = FileSystem::new(volume.clone());
        let mounted = Mounted::start(directory.path(), "test", &Options::default(), fs.clone()).expect("mounts");
        Some(Self { directory, volume, fs, mounted: Some(mounted) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn shell(&self, script: &str) -> String {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.directory.path())
            .output()
            .expect("bash runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Stops caching as the client asks for it.
    fn stop_caching(&self) {
        self.volume.set_ttl(Duration::ZERO);
        let invalidator = Invalidator::new(self.mounted.as_ref().expect("mounted").notifier()).expect("threads");
        let (inodes, names) = self.fs.stop_caching();
        invalidator.run(inodes, names);
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        let Some(mounted) = self.mounted.take() else { return };
        self.volume.set_pace(Pace::AtOnce);
        self.volume.release();
        if mounted.mount().unmount().is_err() {
            mounted.mount().unmount_by_force().expect("unmounts by force");
        }
        mounted.join();
    }
}

/// Runs a test on a mount that caches and answers at once, and on one that does neither.
fn everywhere(name: &str, test: impl Fn(&Here)) {
    for (pace, ttl) in [(Pace::AtOnce, LONG), (Pace::Later, Duration::ZERO)] {
        if let Some(here) = Here::new(name, pace, ttl) {
            test(&here);
        }
    }
}

#[test]
fn mount_shows_its_type_and_volume() {
    let Some(here) = Here::new("mounted::mount_shows_its_type_and_volume", Pace::AtOnce, LONG) else { return };
    let line = here.shell("grep \"$PWD \" /proc/mounts");
    assert!(line.starts_with("holdfast:test "), "{line}");
    assert!(line.contains(" fuse.holdfast rw,nosuid,nodev,"), "{line}");
    assert!(line.contains("default_permissions,allow_other"), "{line}");
}

#[test]
fn files_directories_and_links_behave_as_on_a_local_disk() {
    everywhere("mounted::files_directories_and_links_behave_as_on_a_local_disk", |here| {
        let text = here.shell(
            "mkdir -p a/b; echo one > a/b/f; ln a/b/f a/g; ln -s ../g a/b/s; cat a/b/s
             mv a/g a/h; cat a/h; stat -c '%h %F %s' a/h; stat -c '%h' a
             mkfifo p; mknod c c 1 3; stat -c '%F %t,%T' c; rm a/b/s a/b/f; rmdir a/b; ls -A a; rm -r a p c; ls -A",
        );
        assert_eq!(text, "one\none\n2 regular file 4\n3\ncharacter special file 1,3\nh\n");
    });
}

#[test]
fn rename_flags_are_obeyed() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    everywhere("mounted::rename_flags_are_obeyed", |here| {
        fs::write(here.path("a"), "a").unwrap();
        fs::write(here.path("b"), "b").unwrap();
        let rename = |flags| renameat_with(CWD, here.path("a"), CWD, here.path("b"), flags);
        assert_eq!(rename(RenameFlags::NOREPLACE), Err(rustix::io::Errno::EXIST));
        assert_eq!(rename(RenameFlags::EXCHANGE), Ok(()));
        assert_eq!(fs::read_to_string(here.path("a")).unwrap(), "b");
        assert_eq!(rename(RenameFlags::WHITEOUT), Err(rustix::io::Errno::INVAL));
        assert_eq!(rename(RenameFlags::empty()), Ok(()));
        assert_eq!(fs::read_to_string(here.path("b")).unwrap(), "b");
        assert!(!here.path("a").exists());
    });
}

#[test]
fn a_file_unlinked_while_open_stays_readable_until_closed() {
    everywhere("mounted::a_file_unlinked_while_open_stays_readable_until_closed", |here| {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(here.path("f")).unwrap();
        file.write_all(b"still here").unwrap();
        fs::remove_file(here.path("f")).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
        file.set_len(3).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3);
    });
}

#[test]
fn appends_go_to_the_end_and_mapped_pages_to_their_place() {
    everywhere("mounted::appends_go_to_the_end_and_mapped_pages_to_their_place", |here| {
        let path = here.path("f");
        fs::write(&path, vec![b'.'; 8192]).unwrap();
        // The only writable handle of the file appends; the mapping's pages are written through it, at their own positions.
        let script = format!(
            "import mmap,os\nf=os.open({path:?},os.O_RDWR|os.O_APPEND)\nm=mmap.mmap(f,8192)\nm[0:3]=b'map'\nm.flush()\n\
             os.write(f,b'end')\nm[4096:4099]=b'two'\nm.flush()\n"
        );
        let output = Command::new("python3").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let content = fs::read(&path).unwrap();
        assert_eq!(content.len(), 8195);
        assert_eq!((&content[..4], &content[4096..4100], &content[8192..]), (&b"map."[..], &b"two."[..], &b"end"[..]));
    });
}

#[test]
fn two_appenders_never_overwrite_each_other() {
    everywhere("mounted::two_appenders_never_overwrite_each_other", |here| {
        let open = || OpenOptions::new().append(true).create(true).open(here.path("log")).unwrap();
        let threads: Vec<_> = (0..4u8)
            .map(|n| {
                let mut file = open();
                std::thread::spawn(move || (0..200).for_each(|_| file.write_all(&[b'a' + n; 10]).unwrap()))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let log = fs::read(here.path("log")).unwrap();
        assert_eq!(log.len(), 8000);
        assert!(log.chunks(10).all(|chunk| chunk.iter().all(|byte| *byte == chunk[0])));
    });
}

#[test]
fn sparse_files_truncation_and_large_offsets_work() {
    everywhere("mounted::sparse_files_truncation_and_large_offsets_work", |here| {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(here.path("f")).unwrap();
        file.write_all_at(b"far", 5 << 40).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (5 << 40) + 3);
        let mut hole = [1; 100];
        file.read_exact_at(&mut hole, 1 << 40).unwrap();
        assert_eq!(hole, [0; 100]);
        file.set_len(10).unwrap();
        file.set_len(20).unwrap();
        assert_eq!(fs::read(here.path("f")).unwrap(), [0; 20]);
        assert!(file.write_all_at(b"x", i64::MAX as u64).is_err());
        here.shell("echo long content > t; : > t; test ! -s t; fallocate -l 5000 t; stat -c %s t | grep -qx 5000");
    });
}

#[test]
fn times_before_1970_and_the_extremes_survive() {
    everywhere("mounted::times_before_1970_and_the_extremes_survive", |here| {
        let text = here.shell(
            "touch f; touch -d '1950-01-01 00:00:00.5 UTC' f; stat -c '%y' f | cut -c1-21; TZ=UTC stat -c %Y f
             touch -d @-9223372036854775808 f; touch -d @-1.25 f; stat -c %.Y f; touch -a f; test $(stat -c %X f) -gt 1000000000",
        );
        assert!(text.ends_with("-631151999\n-1.250000000\n") || text.ends_with("-631152000\n-1.250000000\n"), "{text}");
        assert!(text.contains(":00.5"), "{text}");
        // The mount still serves after the extremes: fuser 0.18 would not.
        here.shell("for n in 1 2 3; do touch -d @-9223372036854775808 f; done; ls -l f > /dev/null");
    });
}

#[test]
fn set_id_bits_go_when_somebody_without_privilege_writes_or_the_owner_changes() {
    everywhere("mounted::set_id_bits_go_when_somebody_without_privilege_writes_or_the_owner_changes", |here| {
        let text = here.shell(
            "echo x > f; chmod 6777 f; echo more >> f; stat -c %a f
             setpriv --reuid 65534 --regid 65534 --clear-groups bash -c 'echo more >> f'; stat -c %a f
             chmod 6777 f; setpriv --reuid 65534 --regid 65534 --clear-groups truncate -s 1 f; stat -c %a f
             chmod 6777 f; chown 1:1 f; stat -c %a f; chmod 2767 f; chown 2 f; stat -c %a f
             mkdir d; chmod 6777 d; chown 1:1 d; stat -c %a d",
        );
        assert_eq!(text, "6777\n777\n777\n777\n2767\n6777\n");
    });
}

#[test]
fn permissions_are_checked_for_other_users() {
    everywhere("mounted::permissions_are_checked_for_other_users", |here| {
        here.shell(
            "chmod 755 .; echo secret > f; chmod 600 f; mkdir d; chmod 777 d
             as() { setpriv --reuid 65534 --regid 65534 --clear-groups bash -c \"$1\"; }
             ! as 'cat f' 2> /dev/null; ! as 'echo x > new' 2> /dev/null; as 'umask 027; echo mine > d/m; mkdir d/s'
             test \"$(stat -c '%u:%g %a' d/m d/s)\" = $'65534:65534 640\\n65534:65534 750'
             chmod 1777 d; echo root > d/r; ! as 'rm d/r' 2> /dev/null; as 'rm d/m'",
        );
    });
}

#[test]
fn extended_attributes_have_sizes_flags_and_names() {
    use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
    use rustix::io::Errno;
    everywhere("mounted::extended_attributes_have_sizes_flags_and_names", |here| {
        let path = here.path("f");
        fs::write(&path, "x").unwrap();
        let set = |name: &str, value: &[u8], flags| setxattr(&path, name, value, flags);
        assert_eq!(set("user.a", b"value", XattrFlags::REPLACE), Err(Errno::NODATA));
        assert_eq!(set("user.a", b"value", XattrFlags::CREATE), Ok(()));
        assert_eq!(set("user.a", b"value", XattrFlags::CREATE), Err(Errno::EXIST));
        assert_eq!(set("user.empty", b"", XattrFlags::empty()), Ok(()));
        assert_eq!(set("trusted.big", &[7; 65536], XattrFlags::empty()), Ok(()));
        let mut buffer = [0u8; 16];
        assert_eq!(getxattr(&path, "user.a", &mut buffer[..]), Ok(5));
        assert_eq!(&buffer[..5], b"value");
        assert_eq!(getxattr(&path, "user.a", &mut buffer[..4]), Err(Errno::RANGE));
        assert_eq!(getxattr(&path, "user.empty", &mut buffer[..]), Ok(0));
        assert_eq!(getxattr(&path, "trusted.big", &mut vec![0u8; 70_000][..]), Ok(65536));
        here.shell("python3 -c \"import os; assert os.getxattr('f', 'trusted.big') == bytes([7]) * 65536\"");
        assert_eq!(getxattr(&path, "user.none", &mut buffer[..]), Err(Errno::NODATA));
        assert_eq!(getxattr(&path, "system.posix_acl_access", &mut buffer[..]), Err(Errno::NODATA));
        assert_eq!(set("system.other", b"x", XattrFlags::empty()), Err(Errno::OPNOTSUPP));
        let mut names = [0u8; 100];
        let length = listxattr(&path, &mut names[..]).unwrap();
        assert_eq!(&names[..length], b"trusted.big\0user.a\0user.empty\0");
        assert_eq!(removexattr(&path, "user.a"), Ok(()));
        assert_eq!(removexattr(&path, "user.a"), Err(Errno::NODATA));
    });
}

#[test]
fn a_file_without_a_name_may_be_given_one_and_births_are_shown() {
    everywhere("mounted::a_file_without_a_name_may_be_given_one_and_births_are_shown", |here| {
        here.shell(
            "python3 -I - <<'end'
import os
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o640)
assert os.fstat(fd).st_nlink == 0 and os.listdir('.') == []
os.write(fd, b'unnamed')
root = os.open('/', os.O_RDONLY)
os.link(f'/proc/self/fd/{fd}', 'named', src_dir_fd=root, follow_symlinks=True)
assert os.fstat(fd).st_nlink == 1 and open('named').read() == 'unnamed'
fd = os.open('.', os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
try: os.link(f'/proc/self/fd/{fd}', 'never', src_dir_fd=root, follow_symlinks=True)
except FileNotFoundError: pass
else: raise SystemExit('O_EXCL forbids it')
end
             birth=$(stat -c %W named); test $birth -gt 1000000000; touch -d @5 named; test $(stat -c %W named) = $birth
             touch -d '1901-02-03 04:05:06.75 UTC' named; test $(stat -c %.Y named) = -2174586893.250000000; rm named",
        );
    });
}

#[test]
fn a_large_directory_lists_completely_while_it_shrinks() {
    everywhere("mounted::a_large_directory_lists_completely_while_it_shrinks", |here| {
        let directory = here.path("d");
        fs::create_dir(&directory).unwrap();
        for n in 0..3000 {
            File::create(directory.join(format!("a rather long name, so that few fit into one request {n}"))).unwrap();
        }
        let mut seen = 0;
        for entry in fs::read_dir(&directory).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
            seen += 1;
        }
        assert_eq!(seen, 3000);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        let dots = here.shell("ls -a d | head -2; stat -c %i d/.. .");
        let lines: Vec<_> = dots.lines().collect();
        assert_eq!((lines[0], lines[1], lines[2]), (".", "..", lines[3]));
        fs::remove_dir(directory).unwrap();
    });
}

#[test]
fn direct_and_synchronous_files_read_what_they_wrote() {
    everywhere("mounted::direct_and_synchronous_files_read_what_they_wrote", |here| {
        here.shell(
            "dd if=/dev/urandom of=r bs=1M count=8 status=none
             dd if=r of=d bs=1M oflag=direct status=none; cmp r d; dd if=d of=e bs=4096 iflag=direct status=none; cmp r e
             dd if=r of=o bs=12345 oflag=direct status=none; cmp r o
             dd if=r of=s bs=64k oflag=sync status=none; dd if=r of=t bs=64k oflag=dsync conv=fsync status=none; cmp r s; cmp r t
             sync -d r; sync .",
        );
    });
}

#[test]
fn real_programs_work() {
    everywhere("mounted::real_programs_work", |here| {
        here.shell(
            "mkdir w; cd w; git init -q .; git config user.email a@b; git config user.name n
             for n in $(seq 50); do echo $n > f$n; done; git add .; git commit -qm one; git mv f1 g1; git commit -qm two
             git fsync 2> /dev/null || true; git fsck --strict 2> /dev/null; test \"$(git log --oneline | wc -l)\" = 2
             cd ..; tar cf w.tar w; mkdir x; tar xf w.tar -C x; diff -r w x/w; cp -a w y; diff -r w y; rm -r x y w w.tar",
        );
        if Path::new("/usr/bin/fio").exists() {
            let run = |engine: &str| {
                here.shell(&format!(
                    "fio --name=v --filename=v --size=8M --bs=4k-64k --rw=randrw --verify=crc32c --ioengine={engine} \
                     --iodepth=8 --fsync=50 --output=/dev/null"
                ));
            };
            ["psync", "mmap", "libaio"].into_iter().for_each(run);
        }
    });
}

#[test]
fn what_is_cached_costs_no_call_and_what_is_not_sees_other_hosts() {
    let Some(here) =
        Here::new("mounted::what_is_cached_costs_no_call_and_what_is_not_sees_other_hosts", Pace::AtOnce, LONG)
    else {
        return;
    };
    fs::write(here.path("f"), "one").unwrap();
    let _ = here.path("absent").metadata();
    let _ = fs::read(here.path("f")).unwrap();
    let inode = InodeId(here.path("f").metadata().unwrap().ino());
    here.volume.take_calls();
    for _ in 0..10 {
        assert_eq!(here.path("f").metadata().unwrap().len(), 3);
        assert!(here.path("absent").metadata().is_err());
    }
    assert_eq!(here.volume.take_calls(), Vec::<&str>::new(), "names, absent names and attributes are the kernel's");
    assert_eq!(fs::read(here.path("f")).unwrap(), b"one");
    assert!(!here.volume.take_calls().contains(&"read"), "pages are kept across an open");

    let old = File::open(here.path("f")).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(old.read_at(&mut buffer, 0).unwrap(), 3);
    here.stop_caching();
    elsewhere_writes(&here.volume, inode, b"two!");
    assert_eq!(here.path("f").metadata().unwrap().len(), 4);
    assert_eq!(fs::read(here.path("f")).unwrap(), b"two!", "a file opened now reads past the page cache");
    assert_eq!(old.read_at(&mut buffer, 0).unwrap(), 4, "a file opened before is checked again");
    assert_eq!(&buffer[..4], b"two!");
    elsewhere_writes(&here.volume, inode, b"gone");
    assert_eq!(old.read_at(&mut buffer, 0).unwrap(), 4);
    assert_eq!(&buffer[..4], b"gone", "and again, though its length is the same");

    here.volume.set_ttl(LONG);
    here.fs.start_caching();
    assert_eq!(fs::read(here.path("f")).unwrap(), b"gone");
    here.volume.take_calls();
    assert_eq!(fs::read(here.path("f")).unwrap(), b"gone");
    assert!(!here.volume.take_calls().contains(&"read"), "cached again");
}

fn elsewhere_writes(volume: &Memory, inode: InodeId, bytes: &'static [u8]) {
    let mode = holdfast_client::OpenMode::default();
    let Ok(holdfast_client::Reply::Opened { handle, .. }) = volume.elsewhere(Call::Open { inode, mode }) else {
        panic!("opens")
    };
    let data = bytes::Bytes::from_static(bytes);
    volume.elsewhere(Call::Write { handle, offset: 0, data, clear_set_ids: false }).expect("writes");
    volume.elsewhere(Call::Release { handle }).expect("closes");
}

#[test]
fn dirty_mapped_pages_are_written_before_caching_stops() {
    let Some(here) = Here::new("mounted::dirty_mapped_pages_are_written_before_caching_stops", Pace::AtOnce, LONG)
    else {
        return;
    };
    let path = here.path("f");
    fs::write(&path, vec![b'.'; 4096]).unwrap();
    let script = format!(
        "import mmap,os,sys\nf=os.open({path:?},os.O_RDWR)\nm=mmap.mmap(f,4096)\nm[0:5]=b'dirty'\nprint('ok',flush=True)\nsys.stdin.read()\n"
    );
    let mut child = Command::new("python3")
        .args(["-c", &script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    let inode = InodeId(path.metadata().unwrap().ino());
    let read = |volume: &Memory| {
        let Ok(holdfast_client::Reply::Opened { handle, .. }) =
            volume.elsewhere(Call::Open { inode, mode: holdfast_client::OpenMode::default() })
        else {
            panic!("opens")
        };
        let Ok(holdfast_client::Reply::Data(data)) = volume.elsewhere(Call::Read { handle, offset: 0, length: 5 })
        else {
            panic!("reads")
        };
        volume.elsewhere(Call::Release { handle }).expect("closes");
        data.into_bytes()
    };
    assert_eq!(read(&here.volume), ".....", "the page is the kernel's alone");
    here.stop_caching();
    assert_eq!(read(&here.volume), "dirty");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_was_written_through_a_mapping_is_no_hole() {
    everywhere("mounted::what_was_written_through_a_mapping_is_no_hole", |here| {
        let path = here.path("f");
        let script = format!(
            "import mmap,os,errno\n\
             f=os.open({path:?},os.O_RDWR|os.O_CREAT)\n\
             os.ftruncate(f,1<<20)\n\
             os.pwrite(f,b'x',40960)\n\
             assert os.lseek(f,0,os.SEEK_DATA)==40960\n\
             assert os.lseek(f,40961,os.SEEK_HOLE)==45056\n\
             m=mmap.mmap(f,1<<20)\n\
             m[8192:8195]=b'new'\n\
             g=os.open({path:?},os.O_RDONLY)\n\
             assert os.lseek(g,0,os.SEEK_DATA)==8192,'the mapping is forgotten'\n\
             assert os.lseek(g,0,os.SEEK_HOLE)==0\n\
             assert os.lseek(g,8192,os.SEEK_HOLE)==12288\n\
             assert m[8192:8195]==b'new'\n\
             try: os.lseek(g,45056,os.SEEK_DATA)\n\
             except OSError as e: assert e.errno==errno.ENXIO\n\
             else: assert False\n"
        );
        let status = Command::new("python3").args(["-c", &script]).status().unwrap();
        assert!(status.success());
    });
}

#[test]
fn every_handle_is_released() {
    everywhere("mounted::every_handle_is_released", |here| {
        here.shell(
            "for n in $(seq 100); do echo $n >> f; cat f > /dev/null; done; ! true > /dev/null/x 2> /dev/null || true",
        );
        wait_for("handles to be released", || here.volume.open_handles() == 0);
        assert_eq!(here.fs.counts().1, 0);
    });
}

#[test]
fn a_process_that_waits_for_the_cluster_can_be_killed() {
    let Some(here) =
        Here::new("mounted::a_process_that_waits_for_the_cluster_can_be_killed", Pace::AtOnce, Duration::ZERO)
    else {
        return;
    };
    here.volume.set_pace(Pace::Held);
    // A shell that starts the tests in the background has them, and so their children, ignore this signal.
    let mut child = Command::new("env").args(["--default-signal=INT", "mkdir"]).arg(here.path("d")).spawn().unwrap();
    wait_for("mkdir to wait", || here.volume.held() > 0);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child.id() as i32).unwrap(),
        rustix::process::Signal::INT,
    )
    .unwrap();
    wait_for("mkdir to die", || {
        here.fs.sweep_interrupted();
        child.try_wait().unwrap().is_some()
    });
}

#[test]
fn a_dead_mount_is_found_and_taken_away_and_a_live_one_is_left_alone() {
    let Some(mut here) =
        Here::new("mounted::a_dead_mount_is_found_and_taken_away_and_a_live_one_is_left_alone", Pace::AtOnce, LONG)
    else {
        return;
    };
    let point = here.directory.path().to_path_buf();
    assert!(repair(&point).is_err(), "it lives");
    assert!(here.path("").read_dir().is_ok());
    // What a killed process leaves: the connection is gone, the mount is not.
    let held = File::open(&point).unwrap();
    let mounted = here.mounted.take().unwrap();
    let _ = rustix::mount::unmount(&point, rustix::mount::UnmountFlags::FORCE);
    mounted.join();
    assert_eq!(fs::metadata(&point).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    assert_eq!(repair(&point).expect("repairs"), 1);
    assert!(fs::metadata(&point).unwrap().permissions().mode() & 0o777 != 0);
    assert_eq!(repair(&point).expect("nothing to do"), 0);
    assert_eq!(repair(&point.join("not/there")).expect("nothing there"), 0);
    assert_eq!(repair(Path::new("/proc")).expect("not ours"), 0);
    drop(held);
}

#[test]
fn an_ordinary_user_mounts_through_fusermount() {
    // The test runs as root; the helper is exercised by a child that is not: this test again, told so by a mount point.
    if let Some(point) = std::env::var_os("HOLDFAST_TEST_POINT") {
        return mount_as_user(Path::new(&point));
    }
    let Some(here) = Here::new("mounted::an_ordinary_user_mounts_through_fusermount", Pace::AtOnce, LONG) else {
        return;
    };
    // That user can open nothing of ours, so the child's program is a copy.
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).unwrap();
    let program = here.directory.path().with_extension("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    // In a mount namespace of its own, with a /dev/fuse that everybody may open, as distributions have it.
    let script = "mknod -m 666 $2.fuse c 10 229; mount --bind $2.fuse /dev/fuse; rm $2.fuse
        exec setpriv --reuid 65534 --regid 65534 --clear-groups $1 an_ordinary_user_mounts_through_fusermount --exact --nocapture";
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-euc", script, "-"])
        .args([&program, directory.path()])
        .env("HOLDFAST_TEST_POINT", directory.path())
        .output()
        .unwrap();
    fs::remove_file(program).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("mounted as a user"), "{text}");
}

/// The part of the test above that an ordinary user does.
fn mount_as_user(point: &Path) {
    let volume = Memory::new(Pace::AtOnce, LONG);
    let set = SetAttributes { uid: Some(65534), ..SetAttributes::default() };
    volume.elsewhere(Call::SetAttributes { inode: InodeId::ROOT, set }).expect("the root becomes the user's");
    let fs = FileSystem::new(volume);
    let mounted = Mounted::start(point, "a,b", &Options::default(), fs).expect("mounts");
    fs::write(point.join("f"), "x").expect("writes");
    symlink("f", point.join("s")).expect("links");
    assert_eq!(fs::metadata(point.join("s")).unwrap().uid(), 65534);
    let table = fs::read_to_string("/proc/mounts").unwrap();
    assert!(table.contains("holdfast:a,b ") && table.contains("fuse.holdfast"), "{table}");
    let sync = File::options().custom_flags(libc::O_SYNC).append(true).open(point.join("f"));
    sync.and_then(|mut file| file.write_all(b"y")).expect("appends");
    mounted.mount().unmount().expect("unmounts");
    mounted.join();
    println!("mounted as a user");
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
