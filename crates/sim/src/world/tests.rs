use super::*;
use crate::check::{Register, RegisterInput, RegisterOutput, Verdict, linearizable};
use crate::faults::{FaultBudget, Nemesis};
use crate::history::{CallId, History};
use crate::latency::Latency;
use std::collections::BTreeMap;

type Plain = World<u32, u32>;

const MS: Duration = Duration::from_millis(1);

fn at(ms: u64) -> WorldTime {
    WorldTime(ms * 1_000_000)
}

/// A world of two actors whose links take exactly 10 ms.
fn two() -> (Plain, Actor, Actor) {
    let mut world = Plain::new(1);
    let steady = LinkConfig { latency: Latency::exactly(10 * MS), ..LinkConfig::default() };
    world.network().set_default(steady);
    let (a, b) = (world.add_actor(Clock::exact()), world.add_actor(Clock::exact()));
    (world, a, b)
}

/// Everything until a moment, as short text: `m7` a message, `l7` a local event, `b` broken, each with its actor.
fn run(world: &mut Plain, until: WorldTime) -> Vec<String> {
    std::iter::from_fn(|| world.next(until))
        .map(|event| match event {
            Event::Message { to, message, .. } => format!("{to} m{message}"),
            Event::Local { actor, payload } => format!("{actor} l{payload}"),
            Event::Broken { actor, peer } => format!("{actor} b{peer}"),
            Event::Fault(fault) => format!("{fault:?}"),
        })
        .collect()
}

#[test]
fn time_rules_and_then_the_order_of_making() {
    let (mut world, a, b) = two();
    world.after(a, 5 * MS, 1);
    world.after(b, 3 * MS, 2);
    world.after(a, 5 * MS, 3);
    world.send(a, a, 4);
    assert_eq!(run(&mut world, at(4)), ["a0 m4", "a1 l2"]);
    assert_eq!(world.now(), at(4));
    assert_eq!(run(&mut world, at(5)), ["a0 l1", "a0 l3"]);
}

#[test]
fn timers_follow_the_clock_that_set_them() {
    let mut world = Plain::new(1);
    let fast = world.add_actor(Clock::new(500_000, Duration::ZERO));
    let slow = world.add_actor(Clock::new(-500_000, Duration::ZERO));
    for actor in [slow, fast] {
        world.at_local(actor, Instant(3_000_000), 0);
    }
    assert_eq!(run(&mut world, at(2)), ["a0 l0"]);
    assert_eq!(world.local_now(fast), Instant(3_000_000));
    assert_eq!(run(&mut world, at(6)), ["a1 l0"]);
}

#[test]
fn a_crash_ends_timers_and_messages_and_the_peer_learns_of_it() {
    let (mut world, a, b) = two();
    world.after(b, 20 * MS, 1);
    world.send(a, b, 2);
    world.crash(b);
    world.crash(b);
    world.restart(b);
    assert_eq!((world.life(b), world.is_running(b)), (1, true));
    world.after(b, 30 * MS, 3);
    world.send(a, b, 4);
    assert_eq!(
        run(&mut world, at(1000)).into_iter().filter(|e| !e.contains('b')).collect::<Vec<_>>(),
        ["a1 m4", "a1 l3"]
    );
    world.crash(b);
    world.send(a, b, 5);
    assert_eq!(run(&mut world, at(2000)), ["a0 ba1"], "told once, although both the crash and the message broke it");
}

#[test]
fn what_a_crashed_sender_had_under_way_arrives_as_a_whole_or_not_at_all() {
    let mut seen = BTreeSet::new();
    for seed in 0..20 {
        let mut world = Plain::new(seed);
        let (a, b) = (world.add_actor(Clock::exact()), world.add_actor(Clock::exact()));
        (1..=3).for_each(|n| world.send(a, b, n));
        world.crash(a);
        seen.insert(run(&mut world, at(1000)).into_iter().filter(|e| e.contains('m')).collect::<Vec<_>>());
    }
    let all = ["a1 m1", "a1 m2", "a1 m3"].map(str::to_owned).to_vec();
    assert_eq!(seen, [vec![], all].into());
}

#[test]
fn a_stopped_actor_gets_everything_late_in_order_even_across_a_partition() {
    let (mut world, a, b) = two();
    world.stop(b);
    world.send(a, b, 1);
    world.after(b, 15 * MS, 2);
    world.send(a, b, 3);
    assert!(run(&mut world, at(50)).is_empty() && !world.is_running(b));
    world.network().part(&[a], &[b]);
    world.go_on(b);
    assert_eq!(run(&mut world, at(60)), ["a1 m1", "a1 m3", "a1 l2"]);
    assert_eq!(world.now(), at(60));
}

#[test]
fn a_block_goes_one_way_and_takes_what_is_under_way() {
    let (mut world, a, b) = two();
    world.send(a, b, 1);
    world.apply(&Fault::Block { from: a, to: b });
    world.send(a, b, 2);
    world.send(b, a, 3);
    let events = run(&mut world, at(1000));
    assert!(events.contains(&"a0 m3".to_owned()) && !events.iter().any(|e| e.starts_with("a1 m")), "{events:?}");
    assert!(events.contains(&"a0 ba1".to_owned()) && events.contains(&"a1 ba0".to_owned()), "both ends are told");
    world.apply(&Fault::Unblock { from: a, to: b });
    world.send(a, b, 4);
    assert_eq!(run(&mut world, at(2000)), ["a1 m4"]);
    world.send(a, b, 5);
    world.apply(&Fault::Block { from: a, to: b });
    world.apply(&Fault::Unblock { from: a, to: b });
    world.send(a, b, 6);
    assert_eq!(run(&mut world, at(3000)), ["a1 m6"], "however short the block, it took what was under way");
}

#[test]
fn streams_keep_order_and_datagrams_do_anything() {
    let order = |datagram, repeat_ppm| {
        let mut world = Plain::new(9);
        world.network().set_default(LinkConfig { datagram, repeat_ppm, loss_ppm: 0, ..LinkConfig::default() });
        let (a, b) = (world.add_actor(Clock::exact()), world.add_actor(Clock::exact()));
        (0..100).for_each(|n| world.send(a, b, n));
        run(&mut world, at(1000))
    };
    let sorted: Vec<String> = (0..100).map(|n| format!("a1 m{n}")).collect();
    assert_eq!(order(false, 500_000), sorted);
    let wild = order(true, 500_000);
    assert!(wild.len() > 120 && wild[..100] != sorted, "{} arrived", wild.len());
}

#[test]
fn a_lossy_stream_loses_runs_and_says_so() {
    let mut world = Plain::new(9);
    world.network().set_default(LinkConfig { loss_ppm: 100_000, ..LinkConfig::default() });
    let (a, b) = (world.add_actor(Clock::exact()), world.add_actor(Clock::exact()));
    (0..100).for_each(|n| world.send(a, b, n));
    let events = run(&mut world, at(1000));
    let broken = events.iter().filter(|e| e.contains('b')).count();
    assert!(events.len() - broken < 95 && broken >= 2, "{events:?}");
}

/// A toy service: one server holds a register and a write takes effect when its message arrives; or, wrongly, when asked
/// to, is answered from a copy that lags behind.
struct Toy {
    value: Option<u32>,
    stale: Option<u32>,
    wrong: bool,
    history: History<RegisterInput<u32>, RegisterOutput<u32>>,
    open: BTreeMap<u32, CallId>,
}

#[derive(Clone, Debug)]
enum Talk {
    Ask(u32, RegisterInput<u32>),
    Answer(u32, RegisterOutput<u32>),
}

/// A client's timer that begins a call; any other is the deadline of the call with that number.
const NEXT: u32 = u32::MAX;

/// Runs the toy under faults; the verdict and the trace.
fn toy(seed: u64, wrong: bool) -> (Verdict, u64, usize) {
    let mut world: World<Talk, u32> = World::new(seed);
    let actors: Vec<Actor> = (0..4).map(|n| world.add_actor(Clock::new(n * 100, Duration::ZERO))).collect();
    let server = actors[0];
    let budget = FaultBudget { cuts_max: 10, slow_max: 10, crashes_max: 5, drifts_max: 3, ..FaultBudget::none() };
    Nemesis::new(world.prng(1), &actors[1..], &actors, budget).unleash(&mut world, at(20_000));
    let mut toy = Toy { value: None, stale: None, wrong, history: History::new(), open: BTreeMap::new() };
    let mut prng = world.prng(2);
    for client in &actors[1..] {
        world.after(*client, MS, NEXT);
    }
    while let Some(event) = world.next(at(40_000)) {
        match event {
            Event::Message { from, message: Talk::Ask(number, input), .. } => {
                let model = Register { initial: None };
                let output = match input {
                    RegisterInput::Read if toy.wrong && from.0 == 1 => RegisterOutput::Value(toy.stale),
                    RegisterInput::Read => RegisterOutput::Value(toy.value),
                    _ => RegisterOutput::Done,
                };
                toy.stale = toy.value;
                toy.value = crate::check::Model::step(&model, &toy.value, &input, None).expect("always allowed");
                world.send(server, from, Talk::Answer(number, output));
            }
            Event::Message { to, message: Talk::Answer(number, output), .. } => {
                if let Some(call) = toy.open.remove(&number) {
                    toy.history.returned(world.now(), call, output);
                    world.after(to, Duration::from_millis(prng.below(50)), NEXT);
                }
            }
            // The call was answered in time.
            Event::Local { payload, .. } if payload != NEXT && !toy.open.contains_key(&payload) => {}
            // A client's next call; what it still waits for is given up, its outcome unknown.
            Event::Local { actor, payload } => {
                toy.open.remove(&payload);
                let number = toy.history.calls().len() as u32;
                let input = if prng.chance(1, 2) { RegisterInput::Read } else { RegisterInput::Write(number) };
                toy.open.insert(number, toy.history.invoke(world.now(), actor.0, input.clone()));
                world.send(actor, server, Talk::Ask(number, input));
                world.after(actor, Duration::from_secs(2), number);
            }
            Event::Broken { .. } => {}
            Event::Fault(fault) => {
                world.apply(&fault);
                if let Fault::Restart(actor) = fault {
                    world.after(actor, MS, NEXT);
                }
            }
        }
    }
    (linearizable(&Register::default(), &toy.history), world.trace().hash(), toy.history.completed())
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_gives_another() {
    for seed in 0..5 {
        assert_eq!(toy(seed, false), toy(seed, false), "seed {seed}");
    }
    assert_ne!(toy(0, false).1, toy(1, false).1);
}

#[test]
fn a_correct_service_passes_under_faults_and_a_wrong_one_is_caught() {
    for seed in 0..10 {
        let (verdict, _, completed) = toy(seed, false);
        assert_eq!(verdict, Verdict::Linearizable, "seed {seed}");
        assert!(completed > 100, "seed {seed}: only {completed} calls");
        assert!(matches!(toy(seed, true).0, Verdict::Violation(_)), "seed {seed}");
    }
}
