//! Implicit locks: programs that know nothing of each other are kept from opening one file on two hosts, by open(2) itself.

use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_tests::{Cluster, Options, Told, can_mount, note, until};
use rustix::fs::XattrFlags;

const LIMIT: Duration = Duration::from_secs(60);

/// Opens, reads, writes and closes one file as it is told.
const PROGRAM: &str = "
import errno, mmap, os, sys
flags = {'r': os.O_RDONLY, 'w': os.O_RDWR, 't': os.O_RDWR | os.O_TRUNC}
held, maps = [], []
for line in sys.stdin:
    word, _, rest = line.strip().partition(' ')
    try:
        said = 'ok'
        if word == 'open': held.append(os.open(sys.argv[1], flags[rest]))
        elif word == 'close': os.close(held.pop())
        elif word == 'write': os.pwrite(held[-1], rest.encode(), 0); os.fsync(held[-1])
        elif word == 'read': said = os.pread(held[-1], 100, 0).decode()
        elif word == 'map': maps.append(mmap.mmap(held[-1], 0)); os.close(held.pop())
        elif word == 'unmap': maps.pop().close()
        elif word == 'truncate': os.truncate(sys.argv[1], int(rest))
    except OSError as e:
        said = errno.errorcode[e.errno]
    print(said, flush=True)
";

/// Sets an attribute, as `setfattr` does.
fn set(at: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(at, name, value.as_bytes(), XattrFlags::empty()).expect("set");
}

fn get(at: &Path, name: &str) -> String {
    let mut value = [0; 100];
    let length = rustix::fs::getxattr(at, name, &mut value).expect("there is one");
    String::from_utf8(value[..length].to_vec()).expect("text")
}

/// Asks until the answer is another than `EBUSY`: a close is told to the cluster after it has returned.
fn until_free(program: &mut Told, line: &str) -> String {
    until("the file is closed elsewhere", LIMIT, || match program.ask(line).as_str() {
        "EBUSY" => anyhow::bail!("EBUSY"),
        other => Ok(other.to_owned()),
    })
    .expect("closed")
}

#[test]
fn a_file_is_open_on_one_host_or_has_one_writer_as_its_directory_says() {
    if !can_mount("a_file_is_open_on_one_host_or_has_one_writer_as_its_directory_says", &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("cluster");
    let (first, second) = (cluster.mount().expect("mount"), cluster.mount().expect("mount"));
    let at = [first, second].map(|number| cluster.mounted(number).path().to_path_buf());
    for rule in ["exclusive", "single-writer"] {
        let folder = at[0].join(rule);
        std::fs::create_dir(&folder).expect("made");
        set(&folder, "holdfast.open", rule);
        let paths = at.clone().map(|at| at.join(rule).join("below/f"));
        std::fs::create_dir(folder.join("below")).expect("made");
        std::fs::write(&paths[0], "first").expect("written");
        assert_eq!(get(&paths[1], "holdfast.open"), rule, "inherited, and seen everywhere");
        let (mut a, mut b) = (Told::new(PROGRAM, &paths[0]), Told::new(PROGRAM, &paths[1]));
        assert_eq!(a.ask("open w"), "ok");
        let mut beside = Told::new(PROGRAM, &paths[0]);
        assert_eq!(beside.ask("open w"), "ok", "programs of one host share");
        assert_eq!(beside.ask("close"), "ok");
        let begun = Instant::now();
        for how in ["open w", "open t", "truncate 0"] {
            assert_eq!(b.ask(how), "EBUSY", "{rule}: {how}");
        }
        note(&format!("{rule}: three refusals took {} ms", begun.elapsed().as_millis()));
        match rule {
            "exclusive" => assert_eq!(b.ask("open r"), "EBUSY"),
            _ => {
                assert_eq!((b.ask("open r"), b.ask("read")), ("ok".into(), "first".into()));
                assert_eq!(a.ask("write other"), "ok");
                assert_eq!((b.ask("read"), b.ask("close")), ("other".into(), "ok".into()));
            }
        }
        // Names are not the file: others may give it another one, and take its place.
        std::fs::rename(&paths[1], paths[1].with_file_name("g")).expect("renamed elsewhere");
        std::fs::write(&paths[1], "second").expect("another file");
        assert_eq!(a.ask("read"), if rule == "exclusive" { "first" } else { "other" });
        std::fs::rename(paths[1].with_file_name("g"), &paths[1]).expect("renamed back");
        // The writer goes on as a reader.
        assert_eq!((a.ask("open r"), a.ask("read").is_empty()), ("ok".into(), false));
        drop(beside);
        let mut a_reader = Told::new(PROGRAM, &paths[0]);
        assert_eq!(a_reader.ask("open r"), "ok");
        drop(a);
        if rule == "single-writer" {
            assert_eq!(until_free(&mut b, "open w"), "ok");
            assert_eq!(b.ask("close"), "ok");
        } else {
            assert_eq!(b.ask("open w"), "EBUSY", "one reader is left");
        }
        // A program that is killed closes what it had open.
        drop(a_reader);
        assert_eq!(until_free(&mut b, "open w"), "ok");
        assert_eq!(b.ask("close"), "ok");
        // A mapping keeps its file open after the close.
        let mut mapper = Told::new(PROGRAM, &paths[0]);
        assert_eq!((until_free(&mut mapper, "open w"), mapper.ask("map")), ("ok".into(), "ok".into()));
        assert_eq!(b.ask("open w"), "EBUSY", "it is mapped");
        assert_eq!((mapper.ask("unmap"), until_free(&mut b, "open w")), ("ok".into(), "ok".into()));
    }
    for number in [first, second] {
        cluster.mounted(number).unmount().expect("unmounts");
    }
}

#[test]
fn an_open_waits_as_long_as_it_may_and_a_silent_host_loses_the_file() {
    if !can_mount("an_open_waits_as_long_as_it_may_and_a_silent_host_loses_the_file", &["python3"]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("cluster");
    cluster.admin(&["volume", "open", "main", "--open", "exclusive"]).expect("set");
    let (first, second) = (cluster.mount().expect("mount"), cluster.mount().expect("mount"));
    let paths = [first, second].map(|number| cluster.mounted(number).path().join("f"));
    std::fs::write(&paths[0], "").expect("written");
    until("the policy is known", LIMIT, || {
        let rule = get(&paths[0], "holdfast.open");
        anyhow::ensure!(rule == "exclusive", "{rule}");
        Ok(())
    })
    .expect("known");
    let (mut a, mut b) = (Told::new(PROGRAM, &paths[0]), Told::new(PROGRAM, &paths[1]));
    assert_eq!((a.ask("open w"), a.ask("write first")), ("ok".into(), "ok".into()));
    set(&paths[0], "holdfast.open_wait", "50");
    b.begin("open w");
    assert!(b.answers.recv_timeout(Duration::from_secs(4)).is_err(), "it waits");
    assert_eq!(a.ask("close"), "ok");
    assert_eq!((b.answer(), b.ask("read"), b.ask("close")), ("ok".into(), "first".into(), "ok".into()));
    set(&paths[0], "holdfast.open_wait", "0");
    assert_eq!(until_free(&mut a, "open w"), "ok");
    assert_eq!(b.ask("open w"), "EBUSY", "its holder lives");
    // A host that says nothing any more is a zombie.
    cluster.mounted(first).process().suspend().expect("stopped");
    let begun = Instant::now();
    b.begin("open w");
    assert_eq!(b.answer(), "ok", "its holder is fenced");
    note(&format!(
        "an exclusive file was taken over from a host that was stopped in {} ms",
        begun.elapsed().as_millis()
    ));
    assert_eq!((b.ask("read"), b.ask("write second")), ("first".into(), "ok".into()));
    cluster.mounted(first).process().signal(rustix::process::Signal::CONT).expect("goes on");
    let said = a.ask("write zombie");
    assert!(["EIO", "ESTALE"].contains(&said.as_str()), "{said}");
    assert_eq!(b.ask("read"), "second");
    assert_eq!(b.ask("close"), "ok");
    drop(a);
    cluster.mounted(second).unmount().expect("unmounts");
    let third = cluster.mount().expect("mount");
    assert_eq!(std::fs::read_to_string(cluster.mounted(third).path().join("f")).expect("read"), "second");
    cluster.mounted(third).unmount().expect("unmounts");
}
