//! Calls that come at the same time, and drivers that are killed in the middle of each: the next try ends as if nothing had happened, and
//! nothing is left over.

use crate::orchestrator::{MIB, OnNode, code, create, delete, gone, made, publish, unpublish};
use crate::world::{Driver, LIMIT, World, world};
use holdfast_csi_driver::proto::volume_capability::access_mode::Mode;
use holdfast_tests::note;
use std::time::Duration;
use tonic::{Code, Status};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_many_times_at_once_is_done_once() {
    let Some(world) = world("the_same_call_many_times_at_once_is_done_once") else { return };
    let (a, b) = (world.connect("a"), world.connect("b"));
    let all = |call: &'static str, on_a: &OnNode| {
        let tasks = (0..8).map(|n| {
            let (mut driver, on_a) = (if n % 2 == 0 { a.clone() } else { b.clone() }, on_a.clone());
            let mut node = a.clone();
            tokio::spawn(async move {
                let volume = on_a.volume.as_str();
                match call {
                    "create" => driver.controller.create_volume(create(volume, MIB)).await.map(drop),
                    "attach" => {
                        driver.controller.controller_publish_volume(publish(volume, "a", on_a.mode)).await.map(drop)
                    }
                    "stage" => node.node.node_stage_volume(on_a.stage()).await.map(drop),
                    "publish" => node.node.node_publish_volume(on_a.publish(false)).await.map(drop),
                    "unpublish" => node.node.node_unpublish_volume(on_a.unpublish()).await.map(drop),
                    "unstage" => node.node.node_unstage_volume(on_a.unstage()).await.map(drop),
                    "detach" => driver.controller.controller_unpublish_volume(unpublish(volume, "a")).await.map(drop),
                    _ => driver.controller.delete_volume(delete(volume)).await.map(drop),
                }
            })
        });
        tasks.collect::<Vec<_>>()
    };
    let on_a = OnNode::new(&world, "at-once", "a", Mode::SingleNodeWriter);
    for call in ["create", "attach", "stage", "publish", "unpublish", "unstage", "detach", "delete"] {
        for one in all(call, &on_a) {
            one.await.expect("no panic").unwrap_or_else(|status| panic!("{call}: {status}"));
        }
        if call == "stage" {
            let sessions = world.sessions();
            assert_eq!(sessions.len(), 1, "one mount: {sessions:?}");
        }
    }
    std::fs::remove_dir(&on_a.staging).expect("empty");
    world.assert_nothing_left(&[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_attachers_that_want_a_volume_on_two_nodes_do_not_both_get_it() {
    let Some(world) = world("two_attachers_that_want_a_volume_on_two_nodes_do_not_both_get_it") else { return };
    let (mut a, mut b) = (world.connect("a"), world.connect("b"));
    let id = made(&mut a, "race").await.volume_id;
    for _ in 0..10 {
        let to_a = a.controller.controller_publish_volume(publish(&id, "a", Mode::SingleNodeWriter));
        let to_b = b.controller.controller_publish_volume(publish(&id, "b", Mode::SingleNodeWriter));
        let (to_a, to_b) = tokio::join!(to_a, to_b);
        let (to_a, to_b) = (code(to_a), code(to_b));
        assert!(
            matches!((to_a, to_b), (Code::Ok, Code::FailedPrecondition) | (Code::FailedPrecondition, Code::Ok)),
            "{to_a:?} {to_b:?}"
        );
        a.controller.controller_unpublish_volume(unpublish(&id, "")).await.expect("detached");
    }
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}

/// The calls of a life, in their order.
const CALLS: [&str; 8] = ["create", "attach", "stage", "publish", "unpublish", "unstage", "detach", "delete"];

async fn call(driver: &mut Driver, what: &str, on_a: &mut OnNode) -> Result<(), Status> {
    let volume = on_a.volume.clone();
    match what {
        "create" => driver.controller.create_volume(create(&volume, MIB)).await.map(drop),
        "attach" => {
            let request = publish(&volume, "a", on_a.mode);
            let answer = driver.controller.controller_publish_volume(request).await?;
            on_a.context = answer.into_inner().publish_context;
            Ok(())
        }
        "stage" => driver.node.node_stage_volume(on_a.stage()).await.map(drop),
        "publish" => driver.node.node_publish_volume(on_a.publish(true)).await.map(drop),
        "unpublish" => driver.node.node_unpublish_volume(on_a.unpublish()).await.map(drop),
        "unstage" => driver.node.node_unstage_volume(on_a.unstage()).await.map(drop),
        "detach" => driver.controller.controller_unpublish_volume(unpublish(&volume, "a")).await.map(drop),
        _ => driver.controller.delete_volume(delete(&volume)).await.map(drop),
    }
}

/// Makes a call, kills the driver so long after it was sent, starts it again and makes the call to its end.
async fn cut(world: &mut World, what: &'static str, on_a: &mut OnNode, after: Duration) {
    let (mut driver, mut cut_off) = (world.connect("a"), on_a.clone());
    let cut_off = tokio::spawn(async move { call(&mut driver, what, &mut cut_off).await });
    tokio::time::sleep(after).await;
    world.kill("a");
    // It may have been faster.
    let _ = cut_off.await.expect("no panic");
    world.start_driver("a");
    let done = tokio::time::timeout(LIMIT, call(&mut world.connect("a"), what, on_a)).await;
    done.expect("it ends").unwrap_or_else(|status| panic!("{what}, cut off after {after:?}: {status}"));
}

/// The clocks of a call that takes a few milliseconds, and of one that starts a process.
const MOMENTS_MS: [u64; 4] = [1, 4, 15, 60];

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_killed_in_the_middle_of_any_call_takes_it_up_again() {
    let Some(mut world) = world("a_driver_that_is_killed_in_the_middle_of_any_call_takes_it_up_again") else { return };
    let begun = std::time::Instant::now();
    for (round, milliseconds) in MOMENTS_MS.into_iter().enumerate() {
        let mut on_a = OnNode::new(&world, &format!("cut-{round}"), "a", Mode::SingleNodeWriter);
        for what in CALLS {
            cut(&mut world, what, &mut on_a, Duration::from_millis(milliseconds)).await;
            match what {
                "publish" => {
                    let refused = std::fs::write(on_a.target.join("x"), "x").map_err(|error| error.raw_os_error());
                    assert_eq!(refused, Err(Some(libc::EROFS)), "read only from the first moment");
                    std::fs::write(on_a.staging.join("x"), "x").expect("written");
                }
                "unpublish" => assert!(!on_a.target.exists()),
                _ => {}
            }
        }
        std::fs::remove_dir(&on_a.staging).expect("empty");
        world.assert_nothing_left(&[]);
    }
    note(&format!("{} kills in {:.0} s", CALLS.len() * MOMENTS_MS.len(), begun.elapsed().as_secs_f64()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_restarted_disturbs_no_mount() {
    let Some(mut world) = world("a_driver_that_is_restarted_disturbs_no_mount") else { return };
    let mut a = world.connect("a");
    let id = made(&mut a, "stays").await.volume_id;
    let mut on_a = OnNode::new(&world, &id, "a", Mode::SingleNodeWriter);
    on_a.up(&mut a).await;
    let file = std::fs::File::create(on_a.target.join("held")).expect("made");
    let pid = world.pid_of_mount(&on_a.staging);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent").trim().to_owned();
    assert_ne!(Some(parent), world.driver("a").pid().map(|pid| pid.to_string()), "the mount is not the driver's child");
    for gently in [true, false] {
        if gently {
            assert!(world.driver("a").terminate(LIMIT).expect("ends by itself").success());
        } else {
            world.kill("a");
        }
        std::io::Write::write_all(&mut &file, b"while nobody drives").expect("written");
        file.sync_all().expect("synced");
        world.start_driver("a");
    }
    drop(file);
    on_a.up(&mut a).await;
    assert_eq!(world.pid_of_mount(&on_a.staging), pid, "the same mount as before");
    on_a.down(&mut a).await;
    gone(&mut a, &id).await;
    world.assert_nothing_left(&[]);
}
