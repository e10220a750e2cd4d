//! `cargo xtask test`: suites in order, seconds per suite, one closing line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::libtest::Counts;
use crate::step::Step;
use crate::suites::{Context, SUITES, Suite};

/// The build server ends a run after 90 minutes without a word; we end it ourselves before, with the counts so far.
const RUN_SECONDS_MAX: u64 = 85 * 60;

/// What `cargo xtask test` was asked for.
#[derive(Debug, Default)]
pub struct Options {
    /// Suites to run; empty means all.
    pub only: Vec<String>,
    /// Long variants.
    pub long: bool,
}

/// Runs the suites and prints the table. Returns whether everything held and every skip is listed.
///
/// # Errors
/// When a suite's name is unknown, or files of the run cannot be written.
pub fn run(root: &Path, target: &Path, options: &Options) -> Result<bool> {
    if let Some(unknown) = options.only.iter().find(|name| !SUITES.iter().any(|suite| suite.name == name.as_str())) {
        let known: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        bail!("no suite {unknown:?}; there are {}", known.join(", "));
    }
    let suites: Vec<&Suite> = SUITES
        .iter()
        .filter(|suite| options.only.is_empty() || options.only.iter().any(|name| name == suite.name))
        .collect();
    let context = Context { target, long: options.long };
    let started = Instant::now();
    let mut times = Times::load(target);
    let mut rows: Vec<(&str, u64, Counts)> = Vec::new();

    for (position, suite) in suites.iter().enumerate() {
        let expected: u64 = suites[position..].iter().map(|suite| times.of(suite)).sum();
        println!(
            "[{}/{}] {}: about {} s; the whole run ends about {} UTC",
            position + 1,
            suites.len(),
            suite.name,
            times.of(suite),
            clock_after(expected)
        );
        let suite_started = Instant::now();
        // A long run is somebody's who waits for it: only its suites have bounds.
        let most = if context.long { u64::MAX } else { RUN_SECONDS_MAX };
        let left = Duration::from_secs(most).saturating_sub(started.elapsed());
        let counts = run_suite(suite, &context, left);
        let seconds = suite_started.elapsed().as_secs();
        println!(
            "    {} passed, {} failed, {} skipped in {seconds} s",
            counts.passed,
            counts.failed,
            counts.skipped.len()
        );
        if counts.failed == 0 {
            times.note(suite, seconds);
        }
        let broken_build = suite.name == "build" && counts.failed > 0;
        rows.push((suite.name, seconds, counts));
        if broken_build {
            println!("    the build is broken: the other suites cannot run");
            break;
        }
    }
    times.save(target)?;
    let allowed = listed_skips(root)?;
    Ok(report(&rows, &allowed, started.elapsed().as_secs()))
}

fn run_suite(suite: &Suite, context: &Context<'_>, left: Duration) -> Counts {
    let mut total = Counts::default();
    let seconds_max = if context.long { suite.seconds_max * crate::suites::LONGER } else { suite.seconds_max };
    let deadline = Instant::now() + left.min(Duration::from_secs(seconds_max));
    let logs = context.target.join("test-logs");
    let steps = std::fs::create_dir_all(&logs).map_err(Into::into).and_then(|()| (suite.steps)(context));
    let steps = match steps {
        Ok(steps) => steps,
        Err(error) => {
            println!("    {error:#}");
            return Counts { failed: 1, failures: vec![suite.name.to_string()], ..total };
        }
    };
    let run_step = |number: usize, step: &Step| {
        let log = logs.join(format!("{}-{}-{}.log", suite.name, number + 1, step.name.replace(' ', "-")));
        let step_started = Instant::now();
        let left = deadline.saturating_duration_since(Instant::now());
        let counts = step.run(&log, left).unwrap_or_else(|error| {
            println!("    {error:#}");
            Counts { failed: 1, failures: vec![step.name.clone()], ..Counts::default() }
        });
        if steps.len() > 1 && step.unavailable.is_none() {
            println!(
                "    {}: {} passed, {} failed, {} s",
                step.name,
                counts.passed,
                counts.failed,
                step_started.elapsed().as_secs()
            );
        }
        if counts.failed > 0 {
            println!("    whole output: {}", log.display());
        }
        counts
    };
    let numbered: Vec<(usize, &Step)> = steps.iter().enumerate().collect();
    for at_once in numbered.chunk_by(|_, (_, next)| next.beside) {
        std::thread::scope(|scope| {
            let run_step = &run_step;
            let running: Vec<_> =
                at_once.iter().map(|(number, step)| scope.spawn(move || run_step(*number, step))).collect();
            for counts in running {
                total.add(&counts.join().expect("a step's failure is a count"));
            }
        });
    }
    total
}

/// Prints the table and the closing line. Returns whether the run may count as green.
fn report(rows: &[(&str, u64, Counts)], allowed: &BTreeSet<String>, seconds: u64) -> bool {
    let mut total = Counts::default();
    println!("\n{:<14} {:>8} {:>8} {:>8} {:>8}", "suite", "seconds", "passed", "failed", "skipped");
    for (name, seconds, counts) in rows {
        println!("{name:<14} {seconds:>8} {:>8} {:>8} {:>8}", counts.passed, counts.failed, counts.skipped.len());
        total.add(counts);
    }
    println!("{:<14} {seconds:>8}", "all");
    for skip in &total.skipped {
        let listed =
            if allowed.contains(&skip.name) { "" } else { " - NOT LISTED in tests/skips.toml, so the run fails" };
        println!("skipped {}: {}{listed}", skip.name, skip.reason);
    }
    for name in &total.failures {
        println!("FAILED {name}");
    }
    let (line, green) = closing(&total, allowed);
    println!("{line}");
    green
}

/// The closing line, and whether the run may count as green. A skip nobody allowed is a failure in the line too, so that
/// the line and the exit status agree.
fn closing(total: &Counts, allowed: &BTreeSet<String>) -> (String, bool) {
    let unlisted = total.skipped.iter().filter(|skip| !allowed.contains(&skip.name)).count() as u64;
    let failed = total.failed + unlisted;
    let skipped = total.skipped.len() as u64 - unlisted;
    (format!("{} passed, {failed} failed, {skipped} skipped", total.passed), failed == 0 && total.passed > 0)
}

#[derive(Deserialize)]
struct SkipFile {
    #[serde(default)]
    skip: Vec<SkipRow>,
}

#[derive(Deserialize)]
struct SkipRow {
    name: String,
    reason: String,
}

fn listed_skips(root: &Path) -> Result<BTreeSet<String>> {
    let path = root.join("tests/skips.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: SkipFile = toml::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))?;
    Ok(file.skip.into_iter().filter(|row| !row.reason.trim().is_empty()).map(|row| row.name).collect())
}

/// Seconds each suite took when it last passed here.
struct Times(BTreeMap<String, u64>);

impl Times {
    fn load(target: &Path) -> Self {
        let text = std::fs::read_to_string(target.join("xtask-seconds.json")).unwrap_or_default();
        Self(serde_json::from_str(&text).unwrap_or_default())
    }

    fn of(&self, suite: &Suite) -> u64 {
        self.0.get(suite.name).copied().unwrap_or(suite.seconds_expected)
    }

    fn note(&mut self, suite: &Suite, seconds: u64) {
        self.0.insert(suite.name.to_string(), seconds);
    }

    fn save(&self, target: &Path) -> Result<()> {
        std::fs::write(target.join("xtask-seconds.json"), serde_json::to_string_pretty(&self.0)?)?;
        Ok(())
    }
}

/// Hours and minutes, UTC, `seconds` from now.
fn clock_after(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let minutes = (now + seconds) / 60;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtest::Skip;

    #[test]
    fn only_a_listed_skip_leaves_the_run_green() {
        let allowed = BTreeSet::from(["a".to_string()]);
        let skip = |name: &str| Skip { name: name.to_string(), reason: "no moon".to_string() };
        let total = |skipped| Counts { passed: 3, skipped, ..Counts::default() };
        assert_eq!(closing(&total(vec![skip("a")]), &allowed), ("3 passed, 0 failed, 1 skipped".to_string(), true));
        assert_eq!(
            closing(&total(vec![skip("a"), skip("b")]), &allowed),
            ("3 passed, 1 failed, 1 skipped".to_string(), false)
        );
        assert!(!closing(&Counts::default(), &allowed).1, "a run of nothing is not green");
        assert!(!closing(&Counts { failed: 1, passed: 9, ..Counts::default() }, &allowed).1);
    }
}
