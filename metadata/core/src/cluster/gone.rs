//! Storage nodes whose process has ended. Others find nobody listening where it was and say so, long before its silence would.
//!
//! * A process that hangs, or a host that is lost, refuses nobody: those are told by silence.
//! * Taking a node out of its views can always be done, so a mistake costs a resync and nothing else. Two nodes must agree all the same, or
//!   one and the silence of a heartbeat, so that a single node that is mistaken takes nobody out.
//! * What is asked of time alone (a primary without peers, see `first_unsettled`) goes by silence, never by this.

use crate::api::ticks;
use crate::core::MetadataCore;
use holdfast_types::limits::NODE_HEARTBEAT;
use holdfast_types::{DiskId, Incarnation, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Heartbeats come this often, and a little late.
const HEARTBEAT_TICKS: u64 = ticks(NODE_HEARTBEAT) + 2;

/// A disk and its life.
type Life = (DiskId, Incarnation);

/// What is known of one.
#[derive(Debug, Default)]
struct Report {
    lives: Vec<Life>,
    reporters: BTreeSet<NodeId>,
    /// Since when it is believed, in ticks.
    since: Option<u64>,
}

/// For how long a node that was taken for gone and was not is judged by silence alone.
const MISTAKEN_TICKS: u64 = ticks(Duration::from_secs(60));

/// The leader's memory of them.
#[derive(Debug, Default)]
pub(super) struct Gone {
    reports: BTreeMap<NodeId, Report>,
    /// Nodes that live and refuse their peers (a firewall, a wrong address): in these lives, and since when that is known. What is
    /// reported of them must not take them in and out of their views for ever.
    mistaken: BTreeMap<NodeId, (Vec<Life>, u64)>,
}

impl Gone {
    /// Whether a node's process is believed to have ended.
    pub(super) fn has(&self, node: NodeId) -> bool {
        self.reports.get(&node).is_some_and(|report| report.since.is_some())
    }

    /// A node is heard. True: what it says was on its way when its process ended. Otherwise it lives, and all reports of it are void.
    pub(super) fn is_late_word(&mut self, node: NodeId, lives: impl Iterator<Item = Life>, now: u64) -> bool {
        let Some(report) = self.reports.get(&node) else { return false };
        let same = lives.eq(report.lives.iter().copied());
        if same && report.since.is_some_and(|since| now < since + HEARTBEAT_TICKS) {
            return true;
        }
        if let Some(report) = self.reports.remove(&node)
            && same
            && report.since.is_some()
        {
            self.mistaken.insert(node, (report.lives, now));
        }
        false
    }
}

impl MetadataCore {
    /// A node says that nobody listens where another was, which it knew with disks in these lives.
    pub(super) fn report_gone(&mut self, node: NodeId, lives: &[Life], reporter: NodeId) {
        let known = self.cluster.machine.nodes.get(&node);
        let same = known.is_some_and(|row| row.record.lives().eq(lives.iter().copied()));
        let from = self.cluster.machine.nodes.get(&reporter).is_some_and(|row| row.record.alive);
        // A reporter that knows of another life is of another time, and one that is gone itself says nothing.
        if !same || !from || reporter == node || self.cluster_lead.gone.has(reporter) {
            return;
        }
        let silent = self.silent_for(node) > HEARTBEAT_TICKS;
        let now = self.ticks;
        let mistaken = self.cluster_lead.gone.mistaken.get(&node);
        if mistaken.is_some_and(|(of, since)| of == lives && now < since + MISTAKEN_TICKS) {
            return;
        }
        let report = self.cluster_lead.gone.reports.entry(node).or_default();
        if report.lives != lives {
            *report = Report { lives: lives.to_vec(), ..Report::default() };
        }
        report.reporters.insert(reporter);
        if report.since.is_none() && (report.reporters.len() > 1 || silent) {
            report.since = Some(now);
            self.cluster_lead.dirty = true;
        }
    }
}
