//! What a mount counts: every name with its unit and meaning, and which calls and messages were slow.

use holdfast_client_core::{Call, ClientError};
use holdfast_telemetry::metrics::{self, Gauge, Registry, Times};
use holdfast_telemetry::slow::SlowLog;
use std::time::{Duration, Instant};
use strum::VariantNames;

/// To whom messages go.
const PEERS: &[&str] = &["metadata", "storage"];

/// Everything a mount counts.
#[derive(Debug)]
pub struct Metrics {
    calls: Times,
    messages: Times,
    waiting: Gauge,
    slow: SlowLog,
}

/// A call that was begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    name: &'static str,
    at: Instant,
}

impl Metrics {
    /// Registers everything; calls and messages that take `slow` or longer are logged.
    pub fn register(registry: &mut Registry, slow: Duration) -> Self {
        let waiting = Gauge::default();
        registry.register("holdfast_client_calls_waiting", "Calls begun and not answered yet", waiting.clone());
        metrics::start_time(registry, "holdfast_client_start_time", "When this mount was started, since 1970");
        Self {
            calls: Times::register(
                registry,
                "holdfast_client_operation",
                "From the file system's call to its answer, what lay in memory included",
                "operation",
                Call::VARIANTS.iter().copied(),
            ),
            messages: Times::register(
                registry,
                "holdfast_client_message",
                "From a message to a server to its answer, or to giving up",
                "peer",
                PEERS.iter().copied(),
            ),
            waiting,
            slow: SlowLog::new(slow),
        }
    }

    /// Counts, but shows nobody: for tools and tests.
    pub fn unseen() -> Self {
        Self::register(&mut Registry::default(), Duration::MAX)
    }

    pub(crate) fn begun(&self, call: &Call) -> Begun {
        self.waiting.inc();
        Begun { name: call.into(), at: Instant::now() }
    }

    pub(crate) fn ended(&self, begun: Begun, error: Option<&ClientError>) {
        let took = begun.at.elapsed();
        self.waiting.dec();
        self.calls.observe(begun.name, took, error.is_some());
        if begun.name == "mount" {
            return;
        }
        if let Some(suppressed) = self.slow.wants(took) {
            let error = error.map(tracing::field::display);
            tracing::warn!(operation = begun.name, total_ms = took.as_millis() as u64, error, suppressed, "slow call");
        }
    }

    /// A message was answered, or not. Those that a server holds on purpose are not `told` of.
    pub(crate) fn message(
        &self,
        peer: &'static str,
        (to, name): (u64, &'static str),
        begun: Instant,
        failed: bool,
        told: bool,
    ) {
        let took = begun.elapsed();
        self.messages.observe(peer, took, failed);
        if told && let Some(suppressed) = self.slow.wants(took) {
            tracing::warn!(
                peer,
                to,
                message = name,
                total_ms = took.as_millis() as u64,
                failed,
                suppressed,
                "slow message: the time went to the network, or to that server, whose own log says where"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_telemetry::metrics::{offences, text};
    use holdfast_types::InodeId;

    #[test]
    fn names_are_unique_and_calls_are_counted() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, Duration::from_secs(1));
        assert_eq!(offences(&registry, "holdfast_client_"), Vec::<String>::new());
        let begun = metrics.begun(&Call::GetAttributes { inode: InodeId::ROOT });
        metrics.ended(begun, Some(&ClientError::TimedOut));
        metrics.message("storage", (2, "read"), Instant::now(), true, true);
        let text = text(&registry);
        for line in [
            "holdfast_client_operation_seconds_count{operation=\"get_attributes\"} 1",
            "holdfast_client_operation_failures_total{operation=\"get_attributes\"} 1",
            "holdfast_client_message_failures_total{peer=\"storage\"} 1",
            "holdfast_client_calls_waiting 0",
        ] {
            assert!(text.lines().any(|other| other == line), "no {line} in\n{text}");
        }
    }
}
