//! What a plan may say, and how it is followed while a process runs.

use crate::install;
use holdfast_config::{Checked, ConfigError, Nonsense, Span, nonsense};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the file is looked at. By eye: soon enough for a test, and nothing to the machine.
const LOOK: Duration = Duration::from_millis(25);

/// A plan. An empty one makes nothing fail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Plan {
    /// Decides which operations are hit where something fails now and then.
    pub seed: u64,
    /// Disks.
    pub disk: DiskFaults,
    /// The clock by which the process counts leases and silence.
    pub clock: ClockFaults,
    /// Connections, whoever made them.
    pub connection: ConnectionFaults,
}

/// What disks do. Delays are those of the disk: what goes to the page cache is not delayed, and with a delay or an error of reads nothing is
/// found there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DiskFaults {
    /// Which disks, by the `id` of their configuration; all if none is named. Metadata servers' disks have none.
    pub ids: Vec<u32>,
    /// Each read takes so much longer.
    pub read_delay: Option<Span>,
    /// Each write to the disk takes so much longer.
    pub write_delay: Option<Span>,
    /// Each sync takes so much longer.
    pub sync_delay: Option<Span>,
    /// This part of the reads fails (0 to 1), with EIO.
    pub read_error: f64,
    /// This part of the writes fails (0 to 1), with EIO.
    pub write_error: f64,
    /// This part of the syncs fails (0 to 1), with EIO.
    pub sync_error: f64,
}

/// What the clock does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ClockFaults {
    /// Seconds that it counts in a second.
    pub rate: f64,
}

impl Default for ClockFaults {
    fn default() -> Self {
        Self { rate: 1.0 }
    }
}

/// What connections do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ConnectionFaults {
    /// Whatever arrives does so much later.
    pub delay: Option<Span>,
    /// This part of what arrives (0 to 1) ends its connection instead.
    pub drop: f64,
}

impl Plan {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming file, line, key and reason.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        holdfast_config::read(path)
    }
}

impl Checked for Plan {
    fn validate(&self) -> Result<(), Nonsense> {
        for (key, part) in [
            ("read-error", self.disk.read_error),
            ("write-error", self.disk.write_error),
            ("sync-error", self.disk.sync_error),
            ("drop", self.connection.drop),
        ] {
            if !(0.0..=1.0).contains(&part) {
                return nonsense(key, format!("{part} is no part of a whole: between 0 (never) and 1 (always)"));
            }
        }
        if !(0.001..=1000.0).contains(&self.clock.rate) {
            return nonsense("rate", format!("{} is no rate: between 0.001 and 1000, and 1 is right", self.clock.rate));
        }
        Ok(())
    }
}

/// Puts the plan of a file in force, and each that the file holds later. One that cannot be read or understood changes nothing, and the log says so.
///
/// # Errors
/// [`ConfigError`]: the first one cannot be read or makes no sense. Nothing is followed then.
///
/// # Panics
/// When the system has no thread to give.
pub fn follow(path: PathBuf) -> Result<(), ConfigError> {
    let plan = Plan::read(&path)?;
    let mut last = std::fs::read_to_string(&path).ok();
    tracing::warn!(?plan, "THIS PROCESS FAILS ON PURPOSE: a fault plan is in force");
    install(plan);
    let watch = move || {
        loop {
            std::thread::sleep(LOOK);
            let text = std::fs::read_to_string(&path).ok();
            if text == last {
                continue;
            }
            let plan = text.as_deref().map(|text| holdfast_config::parse::<Plan>(text, &path));
            match plan {
                Some(Ok(plan)) => {
                    tracing::warn!(?plan, "another fault plan is in force");
                    install(plan);
                }
                Some(Err(error)) => tracing::error!(%error, "the fault plan stays as it was"),
                None => tracing::error!(path = %path.display(), "the fault plan is gone, and stays as it was"),
            }
            last = text;
        }
    };
    std::thread::Builder::new().name("fault-plan".into()).spawn(watch).expect("a thread for the fault plan");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Plan, String> {
        holdfast_config::parse(text, Path::new("plan.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_plan_says_what_fails_and_an_empty_one_nothing() {
        assert_eq!(parse(""), Ok(Plan::default()));
        let text = "seed = 7\n[disk]\nids = [1]\nread-delay = \"100 ms\"\nsync-error = 0.5\n[clock]\nrate = 0.5\n\
                    [connection]\ndelay = \"20 ms\"\ndrop = 0.01\n";
        let plan = parse(text).expect("a plan");
        assert_eq!((plan.seed, plan.disk.ids.as_slice(), plan.disk.sync_error), (7, &[1][..], 0.5));
        assert_eq!(plan.disk.read_delay, Some(Span(Duration::from_millis(100))));
        assert_eq!((plan.clock.rate, plan.connection.drop), (0.5, 0.01));
        assert_eq!(parse(&toml::to_string(&plan).expect("encodes")), Ok(plan));
    }

    #[test]
    fn what_it_does_not_know_is_refused_by_name() {
        for (text, said) in [
            ("dsk = 1", "plan.toml:1: unknown key \"dsk\"; did you mean \"disk\"?"),
            ("[disk]\nread-dely = \"1 ms\"", "plan.toml:2: unknown key \"read-dely\"; did you mean \"read-delay\"?"),
            ("[disk]\nread-error = 2.0", "plan.toml:2: read-error: 2 is no part of a whole"),
            ("[clock]\nrate = 0.0", "plan.toml:2: rate: 0 is no rate"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(said), "{error}");
        }
    }
}
