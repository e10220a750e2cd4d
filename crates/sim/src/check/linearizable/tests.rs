use super::*;
use crate::check::register::{Register, RegisterInput, RegisterOutput};
use crate::clock::WorldTime;
use holdfast_types::prng::Prng;

type Registers = History<RegisterInput<u32>, RegisterOutput<u32>>;

/// Reads a drawing: one line per client; `w1` or `r1` begins at its column and ends at the next `.`; a call that never
/// ends has no `.`. `r-` reads nothing.
fn history(drawing: &[&str]) -> Registers {
    let mut history = History::new();
    let mut open = vec![None; drawing.len()];
    for column in 0..drawing.iter().map(|line| line.len()).max().unwrap_or(0) {
        for (client, line) in drawing.iter().enumerate() {
            let (Some(letter), digit) = (line.as_bytes().get(column), line.as_bytes().get(column + 1)) else {
                continue;
            };
            let value = digit.and_then(|digit| (*digit as char).to_digit(10));
            let now = WorldTime(column as u64);
            match letter {
                b'w' => {
                    let input = RegisterInput::Write(value.expect("a value"));
                    open[client] = Some((history.invoke(now, client as u32, input), RegisterOutput::Done));
                }
                b'r' => {
                    let call = history.invoke(now, client as u32, RegisterInput::Read);
                    open[client] = Some((call, RegisterOutput::Value(value)));
                }
                b'.' => {
                    let (call, output) = open[client].take().expect("a call is open");
                    history.returned(now, call, output);
                }
                _ => {}
            }
        }
    }
    history
}

fn verdict(drawing: &[&str]) -> Verdict {
    linearizable(&Register::default(), &history(drawing))
}

#[test]
fn textbook_histories_are_judged_as_the_textbook_does() {
    let fine: &[&[&str]] = &[
        &[""],
        &["w1 . r1 . w2 . r2 ."],
        &["w1    .", "  r- ."],
        &["w1    .", "  r1 ."],
        &["w1        .", "  r- . r1 ."],
        &["w1     .", "w2     .", "         r1 ."],
        &["w1     .", "w2     .", "         r2 ."],
        // Never answered: it may have happened late …
        &["w1", "   r- .  r1 ."],
        // … or never.
        &["w1", "   r- .  r- ."],
        &["w1", "w2", "   r- . r2 . r1 ."],
        &["w1 . w2       .", "     r1 . r2 ."],
    ];
    for drawing in fine {
        assert_eq!(verdict(drawing), Verdict::Linearizable, "{drawing:?}");
    }
    let wrong: &[&[&str]] = &[
        &["w1 . r- ."],
        &["r1 ."],
        &["w1 . w2 . r1 ."],
        // Seen, then gone: no order has the first read after the write and the second before it.
        &["w1           .", "  r1 . r- ."],
        &["w1     .", "w2     .", "         r1 .  r2 ."],
        &["w1", "   r1 .  r- ."],
        &["w1", "w2", "   r2 . r1 . r2 ."],
        &["w1 . w2       .", "     r2 . r1 ."],
    ];
    for drawing in wrong {
        assert!(matches!(verdict(drawing), Verdict::Violation(_)), "{drawing:?}");
    }
}

#[test]
fn a_violation_names_the_call_that_fits_nowhere() {
    let Verdict::Violation(text) = verdict(&["w1 . w2 . r1 ."]) else { panic!("is a violation") };
    assert!(text.contains("2 of 3 answered calls") && text.contains("Read -> Value(Some(1))"), "{text}");
}

/// Every order of the calls that real time allows, tried one after the other.
fn brute_force(history: &Registers) -> bool {
    fn go(model: &Register<u32>, state: Option<u32>, history: &Registers, placed: &mut Vec<usize>) -> bool {
        let calls = history.calls();
        if (0..calls.len()).all(|at| placed.contains(&at) || calls[at].returned.is_none()) {
            return true;
        }
        (0..calls.len()).any(|at| {
            let returned_before = |other: usize| {
                let end = calls[other].returned.as_ref().map_or(u64::MAX, |answer| answer.order);
                !placed.contains(&other) && end < calls[at].invoked
            };
            if placed.contains(&at) || (0..calls.len()).any(returned_before) {
                return false;
            }
            let output = calls[at].returned.as_ref().map(|answer| &answer.output);
            let Some(after) = model.step(&state, &calls[at].input, output) else { return false };
            placed.push(at);
            let found = go(model, after, history, placed);
            placed.pop();
            found
        })
    }
    go(&Register::default(), None, history, &mut Vec::new())
}

/// A random history of a register that answers at random; some of them happen to be linearizable.
fn random_history(prng: &mut Prng) -> Registers {
    let mut history = History::new();
    let mut open: Vec<_> = vec![None; 3];
    for moment in 0..prng.between(4, 14) {
        let client = prng.below(3) as usize;
        match open[client].take() {
            None => {
                let value = prng.below(2) as u32;
                let (input, output) = match prng.below(4) {
                    0 => (RegisterInput::Write(value), RegisterOutput::Done),
                    1 => {
                        let expected = prng.chance(1, 2).then_some(1 - value);
                        let set = RegisterOutput::Set(prng.chance(1, 2));
                        (RegisterInput::CompareAndSet { expected, new: value }, set)
                    }
                    _ => (RegisterInput::Read, RegisterOutput::Value(prng.chance(2, 3).then_some(value))),
                };
                open[client] = Some((history.invoke(WorldTime(moment), client as u32, input), output));
            }
            Some((call, output)) => history.returned(WorldTime(moment), call, output),
        }
    }
    history
}

#[test]
fn the_search_agrees_with_trying_every_order() {
    let mut prng = Prng::new(11);
    let mut fine = 0;
    for round in 0..3000 {
        let history = random_history(&mut prng);
        let expected = brute_force(&history);
        fine += u32::from(expected);
        let verdict = linearizable(&Register::default(), &history);
        assert_eq!(verdict == Verdict::Linearizable, expected, "round {round}: {:#?}", history.calls());
    }
    assert!((300..2700).contains(&fine), "{fine} of 3000 were linearizable: the test proves little");
}

#[test]
fn which_of_two_unanswered_calls_happened_is_left_open() {
    use RegisterInput::{CompareAndSet, Read, Write};
    let mut history = Registers::new();
    let mut now = 0;
    history.invoke(WorldTime(0), 8, Write(1));
    history.invoke(WorldTime(0), 9, CompareAndSet { expected: None, new: 1 });
    let mut call = |input, output| {
        now += 1;
        let call = history.invoke(WorldTime(now), 0, input);
        history.returned(WorldTime(now), call, output);
    };
    call(Read, RegisterOutput::Value(Some(1)));
    call(Write(2), RegisterOutput::Done);
    // Only the plain write can have done this; so the first 1 was the other's.
    call(Read, RegisterOutput::Value(Some(1)));
    assert_eq!(linearizable(&Register::default(), &history), Verdict::Linearizable);
}

#[test]
fn keys_are_judged_apart_and_a_long_history_is_quick() {
    struct Keyed;
    impl Model for Keyed {
        type Input = (u32, RegisterInput<u32>);
        type Output = RegisterOutput<u32>;
        type State = Option<u32>;
        fn initial(&self) -> Option<u32> {
            None
        }
        fn step(&self, state: &Option<u32>, input: &Self::Input, output: Option<&Self::Output>) -> Option<Option<u32>> {
            Register::default().step(state, &input.1, output)
        }
    }
    let run = |last: u32| {
        let mut history = History::new();
        for n in 0..2000 {
            for key in 0..3 {
                // Two overlapping calls each, one of which never returns now and then.
                let write = history.invoke(WorldTime(n), 0, (key, RegisterInput::Write(n as u32)));
                let read = history.invoke(WorldTime(n), 1, (key, RegisterInput::Read));
                history.returned(WorldTime(n), write, RegisterOutput::Done);
                if n % 7 != 0 {
                    history.returned(WorldTime(n), read, RegisterOutput::Value(Some(n as u32)));
                }
            }
        }
        let read = history.invoke(WorldTime(9999), 0, (1, RegisterInput::Read));
        history.returned(WorldTime(9999), read, RegisterOutput::Value(Some(last)));
        linearizable_by_key(&Keyed, &history, |(key, _)| *key)
    };
    assert_eq!(run(1999), Verdict::Linearizable);
    assert!(matches!(run(1998), Verdict::Violation(text) if text.starts_with("1: ")));
}

#[test]
fn a_search_that_gives_up_says_so() {
    let mut history = Registers::new();
    let calls: Vec<_> = (0..12).map(|n| history.invoke(WorldTime(0), n, RegisterInput::Write(n))).collect();
    for call in calls {
        history.returned(WorldTime(1), call, RegisterOutput::Done);
    }
    let read = history.invoke(WorldTime(2), 0, RegisterInput::Read);
    history.returned(WorldTime(3), read, RegisterOutput::Value(Some(99)));
    let calls: Vec<_> = history.calls().iter().collect();
    assert!(matches!(search(&Register::default(), &calls, 1000), Verdict::Undecided { .. }));
}
