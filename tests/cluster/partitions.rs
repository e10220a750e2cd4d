//! Networks that are cut in two, in one direction, or again and again, between hosts of real processes: the smaller side says nothing that
//! the other could contradict (promise P6), and when the network is whole nothing that was acknowledged is missing and all copies agree.

use holdfast_tests::load::Load;
use holdfast_tests::namespaces::Network;
use holdfast_tests::{Cluster, Options, can_mount, note};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
/// Places of a file in that many groups, so that some have any given node for their primary.
const PLACES: u64 = 24;
const CHUNK: u64 = 4 << 20;
/// How long those who are cut off are watched once the others have gone on.
const WATCHED: Duration = Duration::from_millis(1500);

/// Two hosts with a mount each, of which the second is cut off together with a server.
struct Hosts {
    near: PathBuf,
    far: PathBuf,
    near_load: Load,
    far_load: Load,
}

fn open(at: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(at).expect("opened")
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> JoinHandle<io::Result<T>> {
    std::thread::spawn(work)
}

fn place(number: u64) -> u64 {
    number * CHUNK
}

fn write(file: &File, number: u64, letter: u8) -> io::Result<()> {
    file.write_all_at(&[letter; BLOCK], place(number)).and_then(|()| file.sync_data())
}

/// The letter of which a place is full.
fn read(file: &File, number: u64) -> io::Result<u8> {
    let mut bytes = [0; BLOCK];
    file.read_exact_at(&mut bytes, place(number))?;
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "torn: {bytes:?}");
    Ok(bytes[0])
}

impl Hosts {
    /// Cuts `server` and the second mount's host from everybody else. Both sides change the same places and claim the same name: the larger
    /// one is answered, the smaller one neither answered nor shown what was before, until the network is whole.
    fn cut_off(&self, network: &Network, server: &str) {
        let shared = format!("shared-{server}");
        let (near, far) = (open(&self.near.join(&shared)), open(&self.far.join(&shared)));
        for number in 0..PLACES {
            write(&near, number, b'-').expect("nothing is cut");
            assert_eq!(read(&far, number).expect("read"), b'-');
        }
        let side = [server.to_string(), "client-2".to_string()];
        let others: Vec<String> = network.hosts().iter().filter(|host| !side.contains(host)).cloned().collect();
        network.part(&side, &others).expect("cut");
        let begun = Instant::now();
        let name = format!("claim-{server}");
        let claim = self.far.join(&name);
        let claim = spawn(move || File::create_new(claim));
        let change = |number: u64| {
            let far = far.try_clone().expect("one more");
            spawn(move || write(&far, number, b'b'))
        };
        let changes: Vec<_> = (0..PLACES).map(change).collect();
        // The larger side goes on.
        File::create_new(self.near.join(&name)).expect("its name").sync_all().expect("synced");
        for number in 0..PLACES {
            write(&near, number, b'a').expect("its bytes");
        }
        self.near_load.wait_for(20).expect("it goes on");
        let went_on = begun.elapsed();
        let look = |number: u64| {
            let far = far.try_clone().expect("one more");
            spawn(move || read(&far, number))
        };
        let looks: Vec<_> = (0..PLACES).map(look).collect();
        std::thread::sleep(WATCHED);
        assert!(!claim.is_finished(), "{server}: those who are cut off made a name");
        assert!(!changes.iter().any(JoinHandle::is_finished), "{server}: those who are cut off were told of a change");
        assert!(!looks.iter().any(JoinHandle::is_finished), "{server}: those who are cut off read what may be old");
        side.iter().for_each(|host| network.drop_nothing_on(host).expect("whole again"));
        let healed = Instant::now();

        let claimed = claim.join().expect("answered").expect_err("the name is taken");
        assert_eq!(claimed.kind(), ErrorKind::AlreadyExists, "{claimed}");
        changes.into_iter().for_each(|change| change.join().expect("answered").expect("made late"));
        for (number, look) in (0..).zip(looks) {
            let seen = look.join().expect("answered").expect("read late");
            assert!(b"ab".contains(&seen), "{server}: place {number} is {seen} after it was changed");
            // Whichever of the two changes came last, all see the same.
            let (near, far) = (read(&near, number).expect("read"), read(&far, number).expect("read"));
            assert!(near == far && b"ab".contains(&near), "{server}: place {number} is {near} here and {far} there");
        }
        self.far_load.wait_for(20).expect("all go on");
        let late = healed.elapsed().as_secs_f64();
        note(&format!(
            "{server} cut off: the others went on within {:.1} s, and it {late:.1} s after",
            went_on.as_secs_f64()
        ));
    }

    fn go_on(&self, what: &str) {
        self.near_load.wait_for(20).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        self.far_load.wait_for(20).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    }
}

#[test]
fn a_cut_network_makes_nobody_say_what_others_contradict() {
    let name = "a_cut_network_makes_nobody_say_what_others_contradict";
    if !can_mount(name, &["ip", "nft", "nsenter"]) {
        return;
    }
    let options = Options { storage: 4, namespaces: true, ..Options::default() };
    let mut cluster = Cluster::start(&options).expect("a healthy cluster of hosts");
    let mounts = [cluster.mount().expect("mounted"), cluster.mount_on("client-2", "").expect("mounted elsewhere")];
    let [near, far] = mounts.map(|mount| cluster.mounted(mount).path().to_path_buf());
    let near_load = Load::start(&near, "near").expect("starts");
    let far_load = Load::start(&far, "far").expect("starts");
    let hosts = Hosts { near, far, near_load, far_load };
    hosts.go_on("nothing is cut");
    let network = cluster.network().expect("it was asked for").clone();
    let leader = |cluster: &Cluster| cluster.leader_of(1).expect("somebody leads");

    hosts.cut_off(&network, &leader(&cluster));
    cluster.wait_healthy(LIMIT).expect("whole again");
    hosts.cut_off(&network, "storage-2");
    cluster.wait_healthy(LIMIT).expect("whole again");

    // One-way: a leader that hears all and is heard by nobody, and a storage node that nobody can reach.
    let muted = leader(&cluster);
    network.drop_on(&muted, "output", "").expect("muted");
    hosts.go_on("a leader that is not heard");
    network.drop_nothing_on(&muted).expect("heard again");
    network.drop_on("storage-3", "input", "").expect("deafened");
    hosts.go_on("a storage node that does not hear");
    network.drop_nothing_on("storage-3").expect("it hears again");
    cluster.wait_healthy(LIMIT).expect("whole again");

    // Cables with a loose contact.
    let flapping = [leader(&cluster), "storage-1".to_string()];
    for _ in 0..8 {
        for pause in [250, 350] {
            flapping.iter().for_each(|host| network.plug(host, pause > 300).expect("known"));
            std::thread::sleep(Duration::from_millis(pause));
        }
    }
    hosts.go_on("links that came and went");
    cluster.wait_healthy(LIMIT).expect("whole again");

    // Half of the storage nodes do not hear the other half, and everybody else hears all of them.
    halves(&hosts, &network);

    cluster.wait_healthy(LIMIT).expect("whole again");
    let Hosts { near_load, far_load, .. } = hosts;
    for report in [near_load.stop(), far_load.stop()] {
        assert_eq!((report.errors(), report.missing()), (Vec::new(), Vec::new()));
    }
    cluster.scrub().expect("copies agree");
    cluster.admin(&["fsck"]).expect("clean");
    mounts.into_iter().for_each(|mount| cluster.mounted(mount).unmount().expect("unmounts"));
}

fn halves(hosts: &Hosts, network: &Network) {
    let nodes = [1, 2, 3, 4].map(|n| format!("storage-{n}"));
    network.part(&nodes[..2], &nodes[2..]).expect("parted");
    hosts.go_on("storage nodes in two halves");
    nodes[..2].iter().for_each(|host| network.drop_nothing_on(host).expect("whole again"));
    hosts.go_on("one pool again");
}
