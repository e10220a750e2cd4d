//! Before a cluster in memory, which can be cut off at any request. What is mounted is a session that the test opens.

use super::*;
use holdfast_volume::fake::{Cut, FakeCluster};
use holdfast_wire::open::OpenRule;

fn host(cluster: &FakeCluster, node: &str) -> ClusterVolumes<FakeCluster> {
    let nowhere = || PathBuf::from("/nonexistent");
    ClusterVolumes::new(cluster.clone(), nowhere(), nowhere(), node.into(), nowhere())
}

async fn made(host: &ClusterVolumes<FakeCluster>, access: Access) -> Volume {
    let wanted = Wanted { access: Some(access), ..Wanted::default() };
    assert_eq!(host.create("db", &wanted).await.expect("answered"), Created::New);
    host.find("db").await.expect("answered").expect("there")
}

#[tokio::test]
async fn what_is_asked_for_is_kept_and_another_of_that_name_is_not_taken_for_it() {
    let cluster = FakeCluster::default();
    let host = host(&cluster, "a");
    let wanted = Wanted {
        size_bytes: Some(1 << 30),
        replicas: None,
        access: Some(Access::SingleWriter),
        read_only: Some(true),
        open: Some(OpenRule::Exclusive),
    };
    assert_eq!(host.create("db", &wanted).await.expect("answered"), Created::New);
    // The answer was lost, or another host was quicker.
    assert_eq!(host.create("db", &wanted).await.expect("answered"), Created::New);
    assert_eq!(host.create("db", &Wanted::default()).await.expect("answered"), Created::Exists);
    let volume = Volume {
        name: "db".into(),
        size_bytes: Some(1 << 30),
        access: Access::SingleWriter,
        read_only: true,
        open: OpenRule::Exclusive,
    };
    assert_eq!(host.find("db").await.expect("answered"), Some(volume.clone()));
    assert_eq!(host.list().await.expect("answered"), [volume]);
    host.delete("db").await.expect("deleted");
    host.delete("db").await.expect("as it should be");
    assert_eq!(host.find("db").await.expect("answered"), None);
}

#[tokio::test]
async fn an_administrators_volume_is_shared_and_that_of_another_orchestrator_is_not_ours() {
    let cluster = FakeCluster::default();
    let host = host(&cluster, "a");
    cluster.create("made", Default::default(), Default::default(), Default::default()).await.expect("created");
    let others = VolumeSpec { name: "pvc".into(), driver: "csi".into(), ..VolumeSpec::default() };
    holdfast_volume::Volumes::new(cluster.clone()).create(&others).await.expect("created");
    let made = Volume {
        name: "made".into(),
        size_bytes: None,
        access: Access::Shared,
        read_only: false,
        open: OpenRule::Shared,
    };
    assert_eq!(host.list().await.expect("answered"), [made]);
    let error = host.find("pvc").await.expect_err("not ours").to_string();
    assert!(error.contains("another orchestrator"), "{error}");
}

#[tokio::test]
async fn a_single_writers_volume_goes_from_host_to_host_and_the_former_is_fenced_each_time() {
    let cluster = FakeCluster::default();
    let (a, b) = (host(&cluster, "a"), host(&cluster, "b"));
    let volume = made(&a, Access::SingleWriter).await;
    let mut former = None;
    for (turn, host) in [&a, &b, &a].into_iter().enumerate() {
        let attachment = host.attach(&volume).await.expect("attached");
        assert!(former.is_none_or(|session| !cluster.is_open(session)), "turn {turn}: the former host still writes");
        let again = host.attach(&volume).await.expect("attached");
        assert_eq!(again, attachment, "containers on one host share it");
        former = Some(cluster.open("db", &attachment.instance, attachment.generation).expect("let in"));
    }
}

#[tokio::test]
async fn a_shared_volume_is_many_hosts_at_once() {
    let cluster = FakeCluster::default();
    let (a, b) = (host(&cluster, "a"), host(&cluster, "b"));
    let volume = made(&a, Access::Shared).await;
    let mut sessions = Vec::new();
    for host in [&a, &b] {
        let attachment = host.attach(&volume).await.expect("attached");
        sessions.push(cluster.open("db", &attachment.instance, attachment.generation).expect("let in"));
    }
    assert!(sessions.iter().all(|session| cluster.is_open(*session)));
}

#[tokio::test]
async fn a_takeover_that_is_cut_off_at_any_request_is_finished_by_the_next() {
    for takes_effect in [false, true] {
        for after in 0.. {
            let cluster = FakeCluster::default();
            let (a, b) = (host(&cluster, "a"), host(&cluster, "b"));
            let volume = made(&a, Access::SingleWriter).await;
            let first = a.attach(&volume).await.expect("attached");
            let former = cluster.open("db", &first.instance, first.generation).expect("let in");
            cluster.cut(Some(Cut { after, takes_effect }));
            let cut_off = b.attach(&volume).await;
            cluster.cut(None);
            let whole = cut_off.is_ok();
            let attachment = b.attach(&volume).await.expect("attached");
            assert!(attachment.generation > first.generation && !cluster.is_open(former), "cut after {after}");
            cluster.open("db", &attachment.instance, attachment.generation).expect("let in");
            assert!(cluster.open("db", &first.instance, first.generation).is_err(), "cut after {after}");
            if whole {
                assert!(after > 5, "a takeover has several steps, this one {after}");
                break;
            }
        }
    }
}
