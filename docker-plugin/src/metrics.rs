//! What a plugin counts: every name with its unit and meaning.

use holdfast_telemetry::metrics::{self, Registry, Times};
use std::time::Duration;

/// The calls of the engine, as its protocol names them.
pub const CALLS: [&str; 8] = ["Create", "Remove", "Mount", "Path", "Unmount", "Get", "List", "Capabilities"];

/// Everything a plugin counts.
#[derive(Debug)]
pub struct Metrics {
    calls: Times,
}

impl Metrics {
    /// Registers everything.
    pub fn register(registry: &mut Registry) -> Self {
        metrics::start_time(registry, "holdfast_docker_start_time", "When this plugin was started, since 1970");
        let help = "From the engine's call to its answer";
        Self { calls: Times::register(registry, "holdfast_docker_call", help, "call", CALLS) }
    }

    pub(crate) fn call(&self, name: &str, took: Duration, failed: bool) {
        if let Some(known) = CALLS.into_iter().find(|known| *known == name) {
            self.calls.observe(known, took, failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_ours_and_has_a_meaning() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.call("Mount", Duration::from_millis(3), true);
        metrics.call("Explode", Duration::from_millis(3), true);
        assert_eq!(metrics::offences(&registry, "holdfast_docker_"), Vec::<String>::new());
        let text = metrics::text(&registry);
        assert!(text.contains("holdfast_docker_call_failures_total{call=\"Mount\"} 1"), "{text}");
        assert!(!text.contains("Explode"), "{text}");
    }
}
