use super::*;
use crate::attach::Access;
use crate::fake::{Cut, FakeCluster};

fn spec(name: &str) -> VolumeSpec {
    let capacity = Capacity { required: 100, limit: 0 };
    VolumeSpec { name: name.into(), driver: "test".into(), capacity, ..VolumeSpec::default() }
}

async fn world() -> (FakeCluster, Volumes<FakeCluster>) {
    let cluster = FakeCluster::default();
    let volumes = Volumes::new(cluster.clone());
    volumes.register_node("a").await.expect("written down");
    (cluster, volumes)
}

#[tokio::test]
async fn the_same_again_is_the_same_volume_and_something_else_is_refused() {
    let (cluster, volumes) = world().await;
    let made = volumes.create(&spec("a/b")).await.expect("made");
    assert_eq!((made.record.name.as_str(), made.record.bytes_max), ("a%2Fb", Some(100)));
    assert_eq!(volumes.create(&spec("a/b")).await.expect("the same").record, made.record);
    let different = [
        VolumeSpec { capacity: Capacity { required: 101, limit: 0 }, ..spec("a/b") },
        VolumeSpec { capacity: Capacity { required: 0, limit: 99 }, ..spec("a/b") },
        VolumeSpec { driver: "other".into(), ..spec("a/b") },
        VolumeSpec { parameters: [("x".into(), "y".into())].into(), ..spec("a/b") },
        VolumeSpec { ephemeral_on: Some("a".into()), ..spec("a/b") },
        // Its name in the cluster is the same only by accident, or by an administrator's hand.
        VolumeSpec { name: "made-by-hand".into(), ..spec("") },
    ];
    cluster.create("made-by-hand", Limits::default(), Default::default(), Default::default()).await.expect("made");
    for spec in different {
        let refused = volumes.create(&spec).await;
        assert!(matches!(refused, Err(VolumeError::Different { .. })), "{spec:?}: {refused:?}");
    }
    let enough = VolumeSpec { capacity: Capacity { required: 50, limit: 100 }, ..spec("a/b") };
    assert_eq!(volumes.create(&enough).await.expect("it will do").record, made.record);
    volumes.delete("a%2Fb").await.expect("deleted");
    volumes.delete("a%2Fb").await.expect("the same again");
    assert!(matches!(volumes.get("a%2Fb").await, Err(VolumeError::NoVolume { .. })));
}

#[tokio::test]
async fn a_volume_in_use_is_not_deleted_and_stays_usable() {
    let (cluster, volumes) = world().await;
    volumes.create(&spec("v")).await.expect("made");
    volumes.attach("v", "a", Access::SingleNodeWriter, false).await.expect("attached");
    let refused = volumes.delete("v").await;
    assert!(matches!(refused, Err(VolumeError::InUse { .. })), "{refused:?}");
    volumes.detach("v", Some("a")).await.expect("detached");
    let by_hand = cluster.open("v", "", 0).expect("mounted by somebody");
    let refused = volumes.delete("v").await;
    assert!(matches!(refused, Err(VolumeError::InUse { .. })), "{refused:?}");
    volumes.attach("v", "a", Access::SingleNodeWriter, false).await.expect("it is not half deleted");
    volumes.detach("v", None).await.expect("detached");
    cluster.close(by_hand);
    volumes.delete("v").await.expect("deleted");
}

#[tokio::test]
async fn a_call_that_was_cut_off_anywhere_is_finished_by_the_next_try() {
    let ways: [(&str, bool); 2] = [("create", true), ("delete", false)];
    for (what, present) in ways {
        for after in 0..6 {
            for takes_effect in [false, true] {
                let (cluster, volumes) = world().await;
                if !present {
                    volumes.create(&spec("v")).await.expect("made");
                }
                let act = async |volumes: &Volumes<FakeCluster>| match what {
                    "create" => volumes.create(&spec("v")).await.map(drop),
                    _ => volumes.delete("v").await,
                };
                cluster.cut(Some(Cut { after, takes_effect }));
                let first = act(&volumes).await;
                assert!(matches!(first, Ok(()) | Err(VolumeError::Unavailable { .. })), "{first:?}");
                cluster.cut(None);
                act(&Volumes::new(cluster.clone())).await.expect("the next try does it");
                assert_eq!(volumes.get("v").await.is_ok(), present, "{what} cut after {after}");
                volumes.delete("v").await.expect("deleted");
                assert_eq!(cluster.names(), [".nodes-1"], "nothing is left over");
            }
        }
    }
}

#[tokio::test]
async fn a_deletion_that_was_cut_off_makes_way_for_a_new_volume_of_that_name() {
    let (cluster, volumes) = world().await;
    let old = volumes.create(&spec("v")).await.expect("made");
    // A look, the mark; then nothing more.
    cluster.cut(Some(Cut { after: 2, takes_effect: false }));
    volumes.delete("v").await.expect_err("cut off");
    cluster.cut(None);
    assert!(matches!(volumes.get("v").await, Err(VolumeError::NoVolume { .. })), "it is as good as gone");
    let refused = volumes.attach("v", "a", Access::SingleNodeWriter, false).await;
    assert!(matches!(refused, Err(VolumeError::NoVolume { .. })), "{refused:?}");
    let other = VolumeSpec { capacity: Capacity { required: 7, limit: 7 }, ..spec("v") };
    let new = volumes.create(&other).await.expect("made");
    assert!(new.record.id != old.record.id && new.record.bytes_max == Some(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_who_create_and_delete_at_once_all_get_what_they_asked_for() {
    let (cluster, volumes) = world().await;
    for round in 0..20 {
        let name = format!("v{round}");
        let many: Vec<_> = (0..8)
            .map(|_| (Volumes::new(cluster.clone()), spec(&name)))
            .map(|(volumes, spec)| tokio::spawn(async move { volumes.create(&spec).await.expect("made").record.id }))
            .collect();
        let mut ids = Vec::new();
        for one in many {
            ids.push(one.await.expect("no panic"));
        }
        assert!(ids.iter().all(|id| *id == ids[0]), "one volume: {ids:?}");
        let many: Vec<_> = (0..8)
            .map(|_| (Volumes::new(cluster.clone()), name.clone()))
            .map(|(volumes, name)| tokio::spawn(async move { volumes.delete(&name).await.expect("deleted") }))
            .collect();
        for one in many {
            one.await.expect("no panic");
        }
        assert!(matches!(volumes.get(&name).await, Err(VolumeError::NoVolume { .. })));
    }
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    let (_, volumes) = world().await;
    volumes.create(&spec("v")).await.expect("made");
    let to = |required, limit| Capacity { required, limit };
    assert_eq!(volumes.expand("v", to(200, 0)).await.expect("larger"), Some(200));
    assert_eq!(volumes.expand("v", to(200, 300)).await.expect("the same"), Some(200));
    assert_eq!(volumes.expand("v", to(50, 0)).await.expect("large enough"), Some(200));
    let refused = volumes.expand("v", to(50, 100)).await;
    assert!(matches!(refused, Err(VolumeError::OutOfRange { .. })), "{refused:?}");
    let unknown = volumes.expand("w", to(50, 0)).await;
    assert!(matches!(unknown, Err(VolumeError::NoVolume { .. })), "{unknown:?}");
    let limits = volumes.set_limits("v", |limits| Limits { inodes: Some(9), ..limits }).await.expect("set");
    assert_eq!(limits, Limits { bytes: Some(200), inodes: Some(9) });
    assert_eq!(volumes.get("v").await.expect("there").record.limits(), limits);
}

#[tokio::test]
async fn a_list_comes_in_pages_and_each_volume_once() {
    let (_, volumes) = world().await;
    for n in 0..7 {
        volumes.create(&spec(&format!("v{n}"))).await.expect("made");
    }
    for size in 1..9 {
        let (mut names, mut after) = (Vec::new(), String::new());
        loop {
            let (page, next) = volumes.list(&after, size).await.expect("listed");
            assert!(page.len() <= size);
            names.extend(page.into_iter().map(|facts| facts.record.name));
            match next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(names, (0..7).map(|n| format!("v{n}")).collect::<Vec<_>>(), "pages of {size}");
    }
    let (all, next) = volumes.list("", 0).await.expect("listed");
    assert!(all.len() == 7 && next.is_none());
    let exactly = volumes.list("", 7).await.expect("listed");
    assert!(exactly.1.is_none(), "there is no empty page at the end");
}

#[tokio::test]
async fn writes_that_wait_are_an_abnormal_condition() {
    let (cluster, volumes) = world().await;
    assert!(!volumes.condition().await.expect("asked").abnormal);
    cluster.set_waiting(2);
    let condition = volumes.condition().await.expect("asked");
    assert!(condition.abnormal && condition.message.contains("2 of 8"), "{condition:?}");
}

#[tokio::test]
async fn where_nodes_are_noted_down_is_nobodys_volume() {
    let cluster = FakeCluster::default();
    let volumes = Volumes::new(cluster.clone());
    volumes.register_node("a").await.expect("noted down");
    volumes.delete(".nodes-1").await.expect("there is no such volume, as far as anybody is concerned");
    assert!(matches!(volumes.get(".nodes-1").await, Err(VolumeError::NoVolume { .. })));
    assert!(cluster.describe(".nodes-1").await.expect("answered").is_some(), "every node would be unknown");
}
