//! Bad input (promise P10): a clear error each, nothing lost, nothing down.

use holdfast_tests::command::{holdfast, must, run, shell};
use holdfast_tests::{Cluster, Options, can_mount};
use holdfast_types::prng::Prng;
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

fn single() -> Options {
    Options { metadata: 1, storage: 1, replicas: 1, ..Options::default() }
}

fn config(cluster: &Cluster, name: &str) -> (PathBuf, toml::Table) {
    let path = cluster.folder().join("cluster").join(name).join("config.toml");
    let table = std::fs::read_to_string(&path).expect("read").parse().expect("TOML");
    (path, table)
}

/// Starts a server that is expected to refuse, and returns the last line that it says.
fn refusal(kind: &str, config: &Path) -> String {
    let mut command = Command::new(holdfast().expect("built"));
    let said = run(command.arg(kind).arg("--config").arg(config), LIMIT).expect("it ends by itself");
    assert!(!said.success, "{kind} started: {}", said.stdout);
    assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
    said.stderr.lines().rfind(|line| line.starts_with("holdfast: ")).unwrap_or(&said.stderr).to_owned()
}

/// Random bytes, and beginnings of TLS and HTTP that go on as garbage.
fn garbage(prng: &mut Prng) -> Vec<u8> {
    let mut bytes = match prng.below(4) {
        0 => b"GET / HTTP/1.1\r\n".to_vec(),
        1 => vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03],
        2 => vec![0xc0, 0x00, 0x00, 0x00, 0x01, 0x08],
        _ => Vec::new(),
    };
    bytes.extend((0..prng.between(1, 1400)).map(|_| prng.below(256) as u8));
    bytes
}

#[test]
fn random_bytes_on_every_port_disturb_nobody() {
    let mut cluster = Cluster::start(&Options { storage: 1, replicas: 1, ..Options::default() }).expect("healthy");
    let pids: Vec<_> = cluster.servers().iter().map(|server| server.pid()).collect();
    let mut prng = Prng::new(7);
    for name in ["metadata-1", "metadata-2", "metadata-3", "storage-1"] {
        let (_, table) = config(&cluster, name);
        let address = table["address"].as_str().expect("an address").to_owned();
        let telemetry = table["telemetry-address"].as_str().expect("an address").to_owned();
        for round in 0..100 {
            let bytes = garbage(&mut prng);
            let tcp = if round % 2 == 0 || name.starts_with("metadata") { &telemetry } else { &address };
            let mut stream = TcpStream::connect(tcp).expect("it listens");
            stream.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
            // It may hang up in the middle: that is an answer, too.
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0; 512]);
            if name.starts_with("metadata") {
                let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
                socket.send_to(&bytes, &address).expect("sent");
            }
        }
    }
    cluster.wait_healthy(LIMIT).expect("still healthy");
    let after: Vec<_> = cluster.servers().iter().map(|server| server.pid()).collect();
    assert_eq!(pids, after, "a server was started anew");
    assert!(cluster.servers().iter_mut().all(|server| server.is_running()), "a server is down");
    assert!(!cluster.log_tails().contains("panicked"), "{}", cluster.log_tails());
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_by_file_line_and_key() {
    let cluster = Cluster::start(&single()).expect("healthy");
    let (path, _) = config(&cluster, "storage-1");
    let text = std::fs::read_to_string(&path).expect("read");
    let other = path.with_file_name("other.toml");
    for (change, wanted) in [
        (text.replace("cache = ", "chache = "), "unknown key \"chache\"; did you mean \"cache\"?"),
        (text.replace("\"32 MiB\"", "32"), "for instance \"64 MiB\""),
        (text.replace("id = 1\naddress = \"127", "id = 0\naddress = \"127"), "id: 0 is nobody"),
        (text.replace("authority = ", "# authority = "), "the key \"authority\" is missing"),
    ] {
        assert_ne!(change, text, "{wanted}: the file is not what this test expects");
        std::fs::write(&other, change).expect("written");
        let said = refusal("storage", &other);
        assert!(said.contains("other.toml:") && said.contains(wanted), "{said}");
    }
}

#[test]
fn a_directory_or_certificate_of_another_is_refused_by_name() {
    let mut cluster = Cluster::start(&single()).expect("healthy");
    for name in ["metadata-1", "storage-1"] {
        cluster.server(name).expect("there").terminate(LIMIT).expect("stopped");
    }
    let other = cluster.folder().join("other");
    let mut init = Command::new(holdfast().expect("built"));
    let sizes = ["--metadata", "1", "--storage", "1", "--replicas", "1"];
    must(init.arg("init").arg(&other).args(sizes), LIMIT).expect("another cluster");
    for kind in ["metadata", "storage"] {
        let name = format!("{kind}-1");
        let (path, mut table) = config(&cluster, &name);
        let (config_file, data) = (path.with_file_name("other.toml"), path.with_file_name("data"));
        let foreign = other.join(&name);
        // The other cluster's server on this one's data.
        let foreign_config = std::fs::read_to_string(foreign.join("config.toml")).expect("read");
        let data_word = data.to_string_lossy();
        let on_ours = foreign_config.replace("\"data\"", &format!("{data_word:?}"));
        std::fs::write(foreign.join("other.toml"), on_ours).expect("written");
        let said = refusal(kind, &foreign.join("other.toml"));
        assert!(said.contains("cluster") && said.contains(&*data_word), "{said}");
        // The other cluster's certificate for this one's server.
        for file in ["certificate", "key", "authority"] {
            let own = table[file].as_str().expect("a path").to_owned();
            let theirs = foreign.join(own).to_string_lossy().into_owned();
            table.insert(file.into(), toml::Value::String(theirs));
        }
        std::fs::write(&config_file, toml::to_string(&table).expect("encodes")).expect("written");
        let said = refusal(kind, &config_file);
        assert!(said.contains("the certificate is") && said.contains(&format!("{kind}-1")), "{said}");
    }
    // Nothing was changed by any of that.
    cluster.start_all().expect("it goes on");
}

#[test]
fn a_directory_of_a_future_format_is_refused_with_both_numbers() {
    let mut cluster = Cluster::start(&single()).expect("healthy");
    for name in ["metadata-1", "storage-1"] {
        cluster.server(name).expect("there").terminate(LIMIT).expect("stopped");
    }
    let folder = cluster.folder().join("cluster");
    let identity = folder.join("metadata-1/data/IDENTITY");
    let before = std::fs::read_to_string(&identity).expect("read");
    let rest = before.strip_prefix("format ").and_then(|rest| rest.split_once(' ')).expect("it says its format").1;
    std::fs::write(&identity, format!("format 9 {rest}")).expect("written");
    let said = refusal("metadata", &folder.join("metadata-1/config.toml"));
    assert!(said.contains("format 9") && said.contains("newer release"), "{said}");
    std::fs::write(&identity, before).expect("written");

    let identity = folder.join("storage-1/data/identity");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&identity).expect("opened");
    file.write_all_at(&9u16.to_le_bytes(), 8).expect("written");
    let said = refusal("storage", &folder.join("storage-1/config.toml"));
    assert!(said.contains("format 9"), "{said}");
    file.write_all_at(&1u16.to_le_bytes(), 8).expect("written");
    cluster.start_all().expect("it goes on");
}

/// Files of a stopped server, one of each kind, with what the kind is called.
fn kinds(data: &Path) -> Vec<(String, PathBuf)> {
    let mut found = std::collections::BTreeMap::new();
    let mut folders = vec![data.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("listed").flatten() {
            let (path, meta) = (entry.path(), entry.metadata().expect("looked at"));
            if meta.is_dir() {
                folders.push(path);
            } else if meta.len() > 0 {
                let within = path.strip_prefix(data).expect("below").to_string_lossy().into_owned();
                let kind: String = within.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect();
                found.insert(kind.replace("##", "#").replace("##", "#"), path);
            }
        }
    }
    found.into_iter().collect()
}

#[test]
fn a_flipped_byte_in_any_kind_of_file_is_survived_or_named() {
    if !can_mount("a_flipped_byte_in_any_kind_of_file_is_survived_or_named", &[]) {
        return;
    }
    let mut cluster = Cluster::start(&Options::default()).expect("healthy");
    let mount = cluster.mount().expect("mounted");
    let at = cluster.mounted(mount).path().to_path_buf();
    let content = |n: u8| vec![n; 30_000 + usize::from(n)];
    for n in 0..40 {
        std::fs::write(at.join(format!("f{n}")), content(n)).expect("written");
    }
    shell("sync", LIMIT).expect("synced");
    for name in ["metadata-2", "storage-2"] {
        let data = cluster.folder().join("cluster").join(name).join("data");
        let data_text = data.display().to_string();
        let copy_text = data.with_file_name("data-before").display().to_string();
        cluster.server(name).expect("there").terminate(Duration::from_secs(60)).expect("stopped");
        let mut done = std::collections::BTreeSet::new();
        // Listed anew each time: a server that serves makes and removes files.
        while let Some((kind, path)) = kinds(&data).into_iter().find(|(kind, _)| !done.contains(kind)) {
            done.insert(kind.clone());
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("opened");
            let length = file.metadata().expect("looked at").len();
            // Where there is something: files are preallocated.
            let mut bytes = vec![0; length.min(1 << 20) as usize];
            file.read_exact_at(&mut bytes, 0).expect("read");
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let place = (used / 2) as u64;
            let flipped = [bytes[place as usize] ^ 0x10];
            // Who refuses may have changed other files by then: a table cuts its journal where it finds damage.
            shell(&format!("cp -a --sparse=always {data_text} {copy_text}"), LIMIT).expect("copied");
            file.write_all_at(&flipped, place).expect("damaged");
            let server = cluster.server(name).expect("there");
            server.start().expect("started");
            let started = server.wait_ready(Duration::from_secs(20)).is_ok();
            let log = server.log_tail();
            // Of this start alone.
            let log = log.rsplit("--- ").next().unwrap_or(&log);
            assert!(!log.contains("panicked"), "{name} {kind}: {log}");
            let named = log.lines().any(|line| line.trim_start().starts_with("holdfast: ") || line.contains("ERROR"));
            assert!(started || named, "{name} {kind} at {place}: it neither serves nor says why:\n{log}");
            println!(
                "{name} {kind} at {place} of {length}: {}",
                if started { "serves" } else { "refuses, with a reason" }
            );
            for n in 0..40 {
                assert!(
                    std::fs::read(at.join(format!("f{n}"))).is_ok_and(|read| read == content(n)),
                    "{name} {kind}: f{n}"
                );
            }
            cluster.server(name).expect("there").kill().expect("killed");
            // One that served has dealt with it, and may have written there since.
            let line = if started {
                format!("rm -rf {copy_text}")
            } else {
                format!("rm -rf {data_text} && mv {copy_text} {data_text}")
            };
            shell(&line, LIMIT).expect("put back as it was");
        }
        cluster.restart(name).expect("mended, it starts");
        cluster.wait_healthy(Duration::from_secs(60)).expect("whole again");
    }
    cluster.mounted(mount).unmount().expect("unmounts");
}

#[test]
fn without_a_fuse_device_the_error_names_the_remedy() {
    if !can_mount("without_a_fuse_device_the_error_names_the_remedy", &["unshare"]) {
        return;
    }
    let cluster = Cluster::start(&single()).expect("healthy");
    let at = cluster.folder().join("mnt");
    std::fs::create_dir(&at).expect("made");
    let line = format!(
        "unshare --mount --propagation private bash -c 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec {} mount --cluster {} main {}'",
        holdfast().expect("built").display(),
        cluster.file().display(),
        at.display()
    );
    let hidden = format!("{line} 2>&1 || true");
    let said = shell(&hidden, LIMIT).expect("it ends");
    assert!(said.contains("/dev/fuse") && said.contains("modprobe fuse") && said.contains("--device"), "{said}");
}
