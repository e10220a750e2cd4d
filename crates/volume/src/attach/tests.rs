use super::*;
use crate::fake::{Cut, FakeCluster};
use crate::spec::VolumeSpec;

/// A cluster with the nodes `a`, `b` and `c`, and the volume `v`.
async fn world() -> (FakeCluster, Volumes<FakeCluster>) {
    let cluster = FakeCluster::default();
    let volumes = Volumes::new(cluster.clone());
    for node in ["a", "b", "c"] {
        volumes.register_node(node).await.expect("written down");
    }
    let spec = VolumeSpec { name: "v".into(), driver: "test".into(), ..VolumeSpec::default() };
    volumes.create(&spec).await.expect("made");
    (cluster, volumes)
}

use Access::{
    MultiNodeMultiWriter as Rwx, MultiNodeReader as Rox, MultiNodeSingleWriter as OneWriter,
    SingleNodeSingleWriter as Rwop, SingleNodeWriter as Rwo,
};

#[tokio::test]
async fn a_volume_for_one_node_moves_with_a_greater_generation_and_the_zombie_is_fenced() {
    let (cluster, volumes) = world().await;
    let first = volumes.attach("v", "a", Rwo, false).await.expect("attached");
    assert_eq!(volumes.attach("v", "a", Rwo, false).await.expect("the same again"), first);
    let zombie = cluster.open("v", &first.instance, first.generation).expect("mounted");
    let elsewhere = volumes.attach("v", "b", Rwo, false).await;
    assert!(matches!(elsewhere, Err(VolumeError::AttachedElsewhere { ref node, .. }) if node == "a"), "{elsewhere:?}");
    assert!(cluster.is_open(zombie), "asking harms nobody");
    volumes.detach("v", Some("b")).await.expect("not attached there is as it should be");
    assert!(cluster.is_open(zombie), "and harms nobody either");
    volumes.detach("v", Some("a")).await.expect("detached");
    assert!(!cluster.is_open(zombie));
    let late = cluster.open("v", &first.instance, first.generation);
    assert!(late.is_err(), "nor does it come in again: {late:?}");
    volumes.detach("v", Some("a")).await.expect("the same again");
    let second = volumes.attach("v", "b", Rwo, false).await.expect("attached");
    assert!(second.generation > first.generation && second.instance == first.instance);
    cluster.open("v", &second.instance, second.generation).expect("the successor mounts");
}

#[tokio::test]
async fn a_shared_volume_loses_one_node_and_the_others_notice_nothing() {
    let (cluster, volumes) = world().await;
    let a = volumes.attach("v", "a", Rwx, false).await.expect("attached");
    let b = volumes.attach("v", "b", Rwx, false).await.expect("attached");
    let at_a = cluster.open("v", &a.instance, a.generation).expect("mounted");
    let at_b = cluster.open("v", &b.instance, b.generation).expect("mounted");
    volumes.detach("v", Some("a")).await.expect("detached");
    assert!(!cluster.is_open(at_a) && cluster.is_open(at_b));
    let again = volumes.attach("v", "a", Rwx, false).await.expect("attached");
    assert!(again.generation > a.generation);
    cluster.open("v", &again.instance, again.generation).expect("mounted");
    assert!(cluster.is_open(at_b));
    volumes.detach("v", None).await.expect("from all");
    assert!(!cluster.is_open(at_b));
    assert!(volumes.attachments(&volumes.get("v").await.expect("there")).expect("read").is_empty());
}

#[tokio::test]
async fn what_excludes_what() {
    // (on node a, on node b, they may be at once)
    let table = [
        ((Rwx, false), (Rwx, false), true),
        ((Rox, false), (Rox, false), true),
        ((Rwx, false), (Rox, false), true),
        ((Rwo, false), (Rwx, false), false),
        ((Rwx, false), (Rwo, false), false),
        ((Rwop, false), (Rwop, false), false),
        ((OneWriter, false), (OneWriter, false), false),
        ((OneWriter, false), (OneWriter, true), true),
        ((OneWriter, true), (OneWriter, false), true),
        ((OneWriter, false), (Rwx, false), false),
    ];
    for ((first, first_ro), (second, second_ro), together) in table {
        let (_, volumes) = world().await;
        let attached = volumes.attach("v", "a", first, first_ro).await.expect("attached");
        assert_eq!(attached.read_only, first_ro || first.is_read_only());
        let other = volumes.attach("v", "b", second, second_ro).await;
        assert_eq!(other.is_ok(), together, "{first} {first_ro} beside {second} {second_ro}: {other:?}");
        if !together {
            assert!(matches!(other, Err(VolumeError::AttachedElsewhere { .. })), "{other:?}");
        }
        let otherwise = volumes.attach("v", "a", first, !first_ro).await;
        let same = first.is_read_only();
        assert_eq!(otherwise.is_ok(), same, "{first}: {otherwise:?}");
        if !same {
            assert!(matches!(otherwise, Err(VolumeError::AttachedOtherwise { .. })), "{otherwise:?}");
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (_, volumes) = world().await;
    let unknown = volumes.attach("w", "a", Rwo, false).await;
    assert!(matches!(unknown, Err(VolumeError::NoVolume { .. })), "{unknown:?}");
    let unknown = volumes.attach("v", "x", Rwo, false).await;
    assert!(matches!(unknown, Err(VolumeError::NoNode { .. })), "{unknown:?}");
    let unknown = volumes.attachment("v", "a").await;
    assert!(matches!(unknown, Err(VolumeError::NotAttached { .. })), "{unknown:?}");
    volumes.detach("w", Some("a")).await.expect("as it should be");
    volumes.detach("v", Some("x")).await.expect("as it should be");
}

/// Does something, cut off at each request in turn, both before it took effect and after; then again to its end, by another life of the
/// plugin.
async fn cut_everywhere<F: Future<Output = ()>>(
    act: impl Fn(Volumes<FakeCluster>) -> F,
    prepare: impl AsyncFn(&FakeCluster, &Volumes<FakeCluster>),
    check: impl AsyncFn(&FakeCluster, &Volumes<FakeCluster>),
) {
    let (cluster, volumes) = world().await;
    prepare(&cluster, &volumes).await;
    cluster.cut(None);
    act(volumes.clone()).await;
    let requests = cluster.cut(None);
    check(&cluster, &volumes).await;
    assert!(requests > 2, "it asks for more than a look");
    for after in 0..requests {
        for takes_effect in [false, true] {
            let (cluster, volumes) = world().await;
            prepare(&cluster, &volumes).await;
            cluster.cut(Some(Cut { after, takes_effect }));
            act(volumes).await;
            cluster.cut(None);
            let next_life = Volumes::new(cluster.clone());
            act(next_life.clone()).await;
            check(&cluster, &next_life).await;
        }
    }
}

#[tokio::test]
async fn an_attachment_that_was_cut_off_anywhere_is_finished_by_the_next_try() {
    let prepare = async |cluster: &FakeCluster, volumes: &Volumes<FakeCluster>| {
        // An earlier one whose end was cut off before its zombie was fenced.
        let zombie = volumes.attach("v", "a", Rwo, false).await.expect("attached");
        cluster.open("v", &zombie.instance, zombie.generation).expect("mounted");
        cluster.cut(Some(Cut { after: 2, takes_effect: false }));
        volumes.detach("v", Some("a")).await.expect_err("cut off");
    };
    let check = async |cluster: &FakeCluster, volumes: &Volumes<FakeCluster>| {
        let facts = volumes.get("v").await.expect("there");
        let book = Book::of(&facts);
        let [only] = book.attachments().expect("read").try_into().expect("one attachment");
        let only: Attachment = only;
        assert_eq!((only.node.as_str(), only.ends_at), ("b", None));
        assert!(volumes.sessions(&facts).await.expect("asked").is_empty(), "the zombie is fenced");
        cluster.open("v", &only.instance, only.generation).expect("the successor mounts");
    };
    let act = |volumes: Volumes<FakeCluster>| async move {
        let _ = volumes.attach("v", "b", Rwo, false).await;
    };
    cut_everywhere(act, prepare, check).await;
}

#[tokio::test]
async fn an_attachment_fences_what_no_record_tells_of_also_if_it_was_cut_off() {
    let prepare = async |cluster: &FakeCluster, volumes: &Volumes<FakeCluster>| {
        // As after a backup of the record was restored, or by an administrator's hand.
        let forgotten = volumes.attach("v", "a", Rwo, false).await.expect("attached");
        cluster.open("v", &forgotten.instance, forgotten.generation).expect("mounted");
        let facts = volumes.get("v").await.expect("there");
        let mut book = Book::of(&facts);
        book.remove("a");
        assert!(volumes.relabel(&facts, book).await.expect("asked"), "struck");
    };
    let check = async |_: &FakeCluster, volumes: &Volumes<FakeCluster>| {
        let facts = volumes.get("v").await.expect("there");
        assert!(volumes.sessions(&facts).await.expect("asked").is_empty(), "fenced");
    };
    let act = |volumes: Volumes<FakeCluster>| async move {
        let _ = volumes.attach("v", "b", Rwo, false).await;
    };
    cut_everywhere(act, prepare, check).await;
}

#[tokio::test]
async fn an_end_that_was_cut_off_anywhere_is_finished_by_the_next_try_and_nothing_is_left() {
    for access in [Rwo, Rwx] {
        let prepare = async |cluster: &FakeCluster, volumes: &Volumes<FakeCluster>| {
            let attached = volumes.attach("v", "a", access, false).await.expect("attached");
            cluster.open("v", &attached.instance, attached.generation).expect("mounted");
        };
        let check = async |_: &FakeCluster, volumes: &Volumes<FakeCluster>| {
            let facts = volumes.get("v").await.expect("there");
            assert!(Book::of(&facts).attachments().expect("read").is_empty());
            assert!(volumes.sessions(&facts).await.expect("asked").is_empty(), "fenced");
        };
        let act = |volumes: Volumes<FakeCluster>| async move {
            let _ = volumes.detach("v", Some("a")).await;
        };
        cut_everywhere(act, prepare, check).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_drivers_that_attach_at_once_one_wins_and_the_others_are_told() {
    let (cluster, volumes) = world().await;
    for _ in 0..50 {
        let tries: Vec<_> = ["a", "b", "c", "a", "b", "c"]
            .into_iter()
            .map(|node| {
                // Drivers of their own: only the compare-and-set is between them.
                let volumes = Volumes::new(cluster.clone());
                tokio::spawn(async move { (node, volumes.attach("v", node, Rwo, false).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for one in tries {
            match one.await.expect("no panic") {
                (_, Ok(attachment)) => winners.push(attachment),
                (_, Err(VolumeError::AttachedElsewhere { .. })) => {}
                (node, Err(error)) => panic!("{node}: {error}"),
            }
        }
        let first = winners.first().expect("one wins").clone();
        assert!(winners.iter().all(|winner| *winner == first), "{winners:?}");
        let now = volumes.attachments(&volumes.get("v").await.expect("there")).expect("read");
        assert_eq!(now, [first]);
        volumes.detach("v", None).await.expect("detached");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_nodes_that_attach_and_detach_a_shared_volume_at_once_do_not_get_in_each_others_way() {
    let (cluster, volumes) = world().await;
    let many: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|node| {
            let volumes = Volumes::new(cluster.clone());
            tokio::spawn(async move {
                let mut newest = 0;
                for _ in 0..30 {
                    let attached = volumes.attach("v", node, Rwx, false).await.expect("attached");
                    assert!(attached.generation > newest, "generations rise");
                    newest = attached.generation;
                    volumes.detach("v", Some(node)).await.expect("detached");
                }
            })
        })
        .collect();
    for one in many {
        one.await.expect("no panic");
    }
    assert!(Book::of(&volumes.get("v").await.expect("there")).attachments().expect("read").is_empty());
}

#[tokio::test]
async fn a_volume_on_more_nodes_than_its_labels_hold_says_so() {
    let (_, volumes) = world().await;
    let mut attached = 0;
    let refused = loop {
        let node = format!("node-{attached:03}.a-zone.a-region.example.org");
        volumes.register_node(&node).await.expect("written down");
        match volumes.attach("v", &node, Rwx, false).await {
            Ok(_) => attached += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, VolumeError::TooMany { nodes, .. } if nodes == attached && nodes >= 50), "{refused}");
    volumes.detach("v", None).await.expect("all of them can be ended");
}

#[test]
fn what_is_attached_may_be_asked_for_narrower_and_not_wider() {
    use Access::{MultiNodeMultiWriter, MultiNodeReader, SingleNodeMultiWriter, SingleNodeReader, SingleNodeWriter};
    for (attached, wanted, covers) in [
        (MultiNodeMultiWriter, SingleNodeWriter, true),
        (MultiNodeMultiWriter, SingleNodeMultiWriter, true),
        (MultiNodeMultiWriter, MultiNodeReader, false),
        (MultiNodeReader, SingleNodeReader, true),
        (MultiNodeReader, SingleNodeWriter, false),
        (SingleNodeWriter, MultiNodeMultiWriter, false),
        (SingleNodeWriter, SingleNodeMultiWriter, false),
        (SingleNodeWriter, SingleNodeWriter, true),
    ] {
        assert_eq!(attached.covers(wanted), covers, "{attached}, {wanted}");
    }
}
