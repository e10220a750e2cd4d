//! What the driver counts.

use holdfast_telemetry::metrics::{Registry, Times, start_time};
use std::sync::Arc;
use std::time::Duration;

/// Calls that do something; those that only say what there is are not counted.
const CALLS: [&str; 16] = [
    "CreateVolume",
    "DeleteVolume",
    "ControllerPublishVolume",
    "ControllerUnpublishVolume",
    "ValidateVolumeCapabilities",
    "ListVolumes",
    "GetCapacity",
    "ControllerExpandVolume",
    "ControllerGetVolume",
    "ControllerModifyVolume",
    "NodeStageVolume",
    "NodeUnstageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeGetVolumeStats",
    "NodeExpandVolume",
];

/// The metrics of one process.
#[derive(Clone)]
pub(crate) struct Metrics {
    calls: Arc<Times>,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        start_time(registry, "holdfast_csi_start_time", "When the driver was started, since 1970");
        let help = "Calls of an orchestrator, from when they came to when they were done";
        Self { calls: Arc::new(Times::register(registry, "holdfast_csi_call", help, "call", CALLS)) }
    }

    /// A call is done.
    pub(crate) fn done(&self, call: &str, took: Duration, failed: bool) {
        self.calls.observe(call, took, failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_telemetry::metrics::{offences, text};

    #[test]
    fn every_metric_has_a_meaning_and_every_call_a_row() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        assert_eq!(offences(&registry, "holdfast_csi_"), Vec::<String>::new());
        metrics.done("NodeStageVolume", Duration::from_millis(20), true);
        let text = text(&registry);
        assert!(text.contains("holdfast_csi_call_failures_total{call=\"NodeStageVolume\"} 1"), "{text}");
    }
}
