//! Runs seeds: `cargo xtask sim --seeds N --from S [--mutations] [--mutation NAME] [--threads 2]`.
//!
//! `--notes` marks the lines of the verdict for the test run, which shows such lines and keeps the others in its log.

#[path = "world/mod.rs"]
mod world;

use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use world::{Failure, Mutation, Outcome, Totals, run};

/// Seeds within which every deliberate bug must be found.
const CAUGHT_WITHIN: u64 = 200;

/// Lines of the trace's end that are shown unasked.
const TAIL_LINES: usize = 30;

struct Options {
    seeds: u64,
    from: u64,
    threads: usize,
    mutations: bool,
    mutation: Option<Mutation>,
    /// Entries of the trace that are kept, and shown.
    trace: usize,
    keep_going: bool,
    notes: bool,
}

impl Options {
    /// Prints the lines of a verdict.
    fn say(&self, text: &str) {
        let mark = if self.notes { "NOTE " } else { "" };
        text.lines().for_each(|line| println!("{mark}{line}"));
        let _ = std::io::stdout().flush();
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        seeds: 100,
        from: 1,
        threads: 2,
        mutations: false,
        mutation: None,
        trace: 0,
        keep_going: false,
        notes: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
        match word.as_str() {
            "--seeds" => options.seeds = number(value()?)?,
            "--from" => options.from = number(value()?)?,
            "--threads" => options.threads = number(value()?)?.max(1) as usize,
            "--mutations" => options.mutations = true,
            "--mutation" => {
                let name = value()?;
                options.mutation = Some(Mutation::named(&name).ok_or_else(|| format!("no mutation {name:?}"))?);
            }
            "--trace" => options.trace = number(value()?)? as usize,
            "--keep-going" => options.keep_going = true,
            "--notes" => options.notes = true,
            other => return Err(format!("sim does not know {other:?}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("sim: {error}");
            return ExitCode::FAILURE;
        }
    };
    let good = if options.mutations { mutations(&options) } else { seeds(&options) };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay_command(seed: u64, mutation: Option<Mutation>) -> String {
    let planted = mutation.map(|mutation| format!(" --mutation {}", mutation.name())).unwrap_or_default();
    format!("cargo xtask sim --seeds 1 --from {seed} --threads 1 --trace 2000{planted}")
}

/// Runs seeds on several threads until one fails or all are done. Calls `done` for each, one at a time.
fn run_all(
    options: &Options,
    (from, count): (u64, u64),
    mutation: Option<Mutation>,
    mut done: impl FnMut(u64, &Result<Outcome, Failure>) -> bool + Send,
) {
    let (next, stop) = (AtomicU64::new(from), AtomicBool::new(false));
    let done = Mutex::new(&mut done);
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        return;
                    }
                    let result = run(seed, mutation, options.trace);
                    let mut done = done.lock().expect("nobody panics with it");
                    if !stop.load(Ordering::Relaxed) && !done(seed, &result) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn seeds(options: &Options) -> bool {
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut failures: VecDeque<(u64, Failure)> = VecDeque::new();
    let mut said = Instant::now();
    run_all(options, (options.from, options.seeds), options.mutation, |seed, result| {
        match result {
            Ok(outcome) => {
                totals.add(&outcome.totals);
                if options.trace > 0 {
                    println!("seed {seed}: trace {:016x}", outcome.trace);
                }
            }
            Err(failure) => {
                println!("seed {seed} FAILED: {}", failure.reason);
                failures.push_back((seed, failure.clone()));
                if !options.keep_going {
                    return false;
                }
            }
        }
        if said.elapsed() > Duration::from_secs(5) {
            said = Instant::now();
            let done = totals.seeds + failures.len() as u64;
            let left = started.elapsed().mul_f64(options.seeds.saturating_sub(done) as f64 / done.max(1) as f64);
            println!("{done} of {} seeds, {} failed, about {} s left", options.seeds, failures.len(), left.as_secs());
            let _ = std::io::stdout().flush();
        }
        true
    });
    let seconds = started.elapsed().as_secs_f64() * options.threads as f64 / totals.seeds.max(1) as f64;
    options.say(&format!("{totals}{seconds:>12.2}  seconds per seed and thread"));
    if let Some((seed, failure)) = failures.front() {
        let tail = if options.trace > 0 {
            failure.tail.clone()
        } else {
            run(*seed, options.mutation, TAIL_LINES * 10).err().unwrap_or_else(|| failure.clone()).tail
        };
        let lines: Vec<&str> = tail.lines().collect();
        let from = if options.trace > 0 { 0 } else { lines.len().saturating_sub(TAIL_LINES) };
        println!("{}", lines[from..].join("\n"));
        println!("seed {seed} FAILED: {}\nreplay: {}", failure.reason, replay_command(*seed, options.mutation));
        return false;
    }
    let missing = totals.missing();
    if options.seeds >= 50 && !missing.is_empty() {
        println!("never happened: {}", missing.join(", "));
        return false;
    }
    true
}

/// Plants each bug until it is found.
fn mutations(options: &Options) -> bool {
    let mut all = true;
    for (mutation, name) in Mutation::ALL {
        let started = Instant::now();
        let mut found: Option<(u64, String)> = None;
        // Which seed finds a bug moves with every change of the code; until then the one of the last time is as good as any.
        let last_time = (mutation.found_at(), options.threads as u64);
        for range in [last_time, (options.from, CAUGHT_WITHIN)] {
            if found.is_none() {
                run_all(options, range, Some(mutation), |seed, result| match result {
                    Ok(_) => true,
                    Err(failure) => {
                        found = Some((seed, failure.reason.clone()));
                        false
                    }
                });
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        match found {
            Some((seed, reason)) => {
                let reason: String = reason.lines().next().unwrap_or_default().chars().take(160).collect();
                options.say(&format!("caught  {name:<28} seed {seed:<4} {seconds:>6.1} s  {reason}"));
            }
            None => {
                all = false;
                options.say(&format!("MISSED  {name:<28} {CAUGHT_WITHIN} seeds {seconds:>6.1} s"));
            }
        }
    }
    all
}
