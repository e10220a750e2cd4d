//! What processes count, and how it is named: one registry per process part, read by `/metrics`.
//!
//! Each crate that counts has one file `metrics.rs` that registers everything with its meaning and unit. Names begin with
//! `holdfast_`, then the part, then what is counted, then the unit; [`offences`] holds them to that.

pub use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
pub use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
pub use prometheus_client::registry::{Registry, Unit};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Upper bounds of latency buckets, in seconds: from what memory answers to what a user complains about, by factors of about 2.
const BUCKETS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0,
];

/// One label and its value.
type Which = [(&'static str, &'static str); 1];

/// How long each of some operations (or stages, or anything that has a name) took, and how many failed.
///
/// Observing costs a look-up of the name among a few dozen and some atomic additions.
#[derive(Debug)]
pub struct Times {
    operations: BTreeMap<&'static str, (Histogram, Counter)>,
}

impl Times {
    /// Registers `NAME_seconds{label}` and `NAME_failures_total{label}`, with a row for each of `names` from the start.
    pub fn register(
        registry: &mut Registry,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        names: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let took: Family<Which, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let failed: Family<Which, Counter> = Family::default();
        registry.register_with_unit(name, help, Unit::Seconds, took.clone());
        registry.register(format!("{name}_failures"), format!("{help}, those that failed"), failed.clone());
        let row = |name| {
            let which = [(label, name)];
            (name, (took.get_or_create(&which).clone(), failed.get_or_create(&which).clone()))
        };
        Self { operations: names.into_iter().map(row).collect() }
    }

    /// One operation is over. A name that was not registered is not counted.
    pub fn observe(&self, name: &str, took: Duration, failed: bool) {
        let Some((histogram, failures)) = self.operations.get(name) else { return };
        histogram.observe(took.as_secs_f64());
        if failed {
            failures.inc();
        }
    }
}

/// Registers when this part of the process was started: now, in seconds since 1970.
pub fn start_time(registry: &mut Registry, name: &'static str, help: &'static str) {
    let start = Gauge::<i64>::default();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    start.set(i64::try_from(now.as_secs()).unwrap_or(0));
    registry.register_with_unit(name, help, Unit::Seconds, start);
}

/// All that a registry holds, as Prometheus reads it.
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    text
}

/// What is wrong with the names of a registry: the same twice, no meaning, another prefix. For tests.
pub fn offences(registry: &Registry, prefix: &str) -> Vec<String> {
    let text = text(registry);
    let (mut seen, mut offences) = (BTreeSet::new(), Vec::new());
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap_or((line, ""));
        if !seen.insert(name) {
            offences.push(format!("{name} is there twice"));
        }
        if !name.starts_with(prefix) {
            offences.push(format!("{name} does not begin with {prefix}"));
        }
        if help.trim_end_matches('.').len() < 10 {
            offences.push(format!("{name} has no meaning"));
        }
    }
    if seen.is_empty() {
        offences.push("nothing is registered".into());
    }
    offences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_name_with_their_times() {
        let mut registry = Registry::default();
        let times = Times::register(
            &mut registry,
            "holdfast_test_request",
            "Requests of a test",
            "operation",
            ["read", "write"],
        );
        times.observe("write", Duration::from_millis(3), true);
        times.observe("write", Duration::from_millis(300), false);
        times.observe("unknown", Duration::from_millis(300), false);
        let text = text(&registry);
        for line in [
            "# UNIT holdfast_test_request_seconds seconds",
            "holdfast_test_request_seconds_count{operation=\"write\"} 2",
            "holdfast_test_request_seconds_bucket{le=\"0.005\",operation=\"write\"} 1",
            "holdfast_test_request_seconds_count{operation=\"read\"} 0",
            "holdfast_test_request_failures_total{operation=\"write\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
        assert_eq!(offences(&registry, "holdfast_test_"), Vec::<String>::new());
        assert!(!text.contains("unknown"));
    }

    #[test]
    fn a_name_that_is_there_twice_or_says_nothing_is_an_offence() {
        let mut registry = Registry::default();
        registry.register("holdfast_test_a", "A thing that is counted", Counter::<u64>::default());
        registry.register("holdfast_test_a", "A thing that is counted", Counter::<u64>::default());
        registry.register("other_b", "", Gauge::<i64>::default());
        let offences = offences(&registry, "holdfast_test_");
        assert_eq!(offences.len(), 3, "{offences:?}");
        assert_eq!(super::offences(&Registry::default(), "x").len(), 1);
    }
}
