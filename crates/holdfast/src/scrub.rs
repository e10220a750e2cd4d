//! `holdfast admin scrub`: when each group was last read whole, what was found, and how far it is now.

use crate::fsck;
use anyhow::Result;
use holdfast_client::Cluster;
use holdfast_types::{GroupId, NodeId};
use holdfast_wire::admin::{AdminAnswer, AdminRequest, GroupScrub};
use holdfast_wire::group::ScrubResult;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long one node may take for an answer.
const NODE_PATIENCE: Duration = Duration::from_secs(5);
/// How often nodes are asked how far they are, and how often that is said.
const ASK_EVERY: Duration = Duration::from_millis(500);
const SAY_EVERY: Duration = Duration::from_secs(2);
/// Questions in a row that a node may leave unanswered while it is waited for.
const SILENT_MAX: u32 = 60;

/// The report; the JSON shape is in docs/operations.md and only grows.
#[derive(Default, Serialize)]
struct Report {
    /// Every group was scrubbed at least once, and whatever was found is repaired.
    clean: bool,
    groups: Vec<Group>,
    /// Storage nodes that did not answer, and groups that have no primary that does.
    not_asked: Vec<String>,
    total: ScrubResult,
}

#[derive(Serialize)]
struct Group {
    group: u32,
    /// The node that is its primary.
    node: u64,
    /// Seconds since the last scrub ended; null: never.
    ended_ago_seconds: Option<u64>,
    #[serde(flatten)]
    result: ScrubResult,
    running: bool,
    /// Seconds until the next one; 0: it waits for its turn.
    due_in_seconds: u64,
}

/// Shows how it stands; with `now` has everything scrubbed first, and waits for that. Exit status 0: all is well; 1: something found is
/// not repaired; 2: somebody could not be asked.
pub(super) async fn run(cluster: &Cluster, json: bool, now: bool) -> Result<ExitCode> {
    let begun = Instant::now();
    if now {
        ask(cluster, &AdminRequest::ScrubNow).await?;
        wait(cluster, begun).await?;
    }
    let (scrubs, silent, groups) = ask(cluster, &AdminRequest::ScrubStatus).await?;
    let report = Report::of(scrubs, silent, groups);
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.picture();
    }
    let wrong = report.groups.iter().any(|group| !group.result.is_clean());
    Ok(ExitCode::from(if wrong { 1 } else { u8::from(!report.not_asked.is_empty()) * 2 }))
}

type Scrubs = BTreeMap<GroupId, (NodeId, GroupScrub)>;

/// What every node says of the groups that it leads; who did not answer; how many groups there are.
async fn ask(cluster: &Cluster, request: &AdminRequest) -> Result<(Scrubs, Vec<String>, usize)> {
    let map = fsck::map(cluster).await?;
    let (mut scrubs, mut silent) = (Scrubs::new(), Vec::new());
    for (node, record) in &map.nodes {
        match cluster.ask_storage(*node, &record.address, request.clone(), NODE_PATIENCE).await {
            Some(AdminAnswer::Scrubs(found)) => {
                // Two nodes may believe to lead a group for a moment; the map knows better.
                let leads = |scrub: &GroupScrub| map.view(scrub.group).is_some_and(|view| view.primary.node == *node);
                scrubs.extend(found.into_iter().filter(leads).map(|scrub| (scrub.group, (*node, scrub))));
            }
            Some(AdminAnswer::Refused(reason)) => silent.push(format!("storage node {}: {reason}", node.0)),
            Some(other) => silent.push(format!("storage node {} answered something else: {other:?}", node.0)),
            None => silent.push(format!("storage node {} at {} does not answer", node.0, record.address)),
        }
    }
    Ok((scrubs, silent, map.views.len()))
}

/// Until every group was scrubbed from its beginning to its end; says how far it is.
async fn wait(cluster: &Cluster, begun: Instant) -> Result<()> {
    let (mut said, mut silent_for) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let (scrubs, _, groups) = ask(cluster, &AdminRequest::ScrubStatus).await?;
        let elapsed = begun.elapsed().as_secs();
        let ended = |scrub: &GroupScrub| {
            scrub.running.is_none() && scrub.due > 0 && scrub.last.is_some_and(|(ago, _)| ago <= elapsed)
        };
        let done: Vec<_> = scrubs.values().filter(|(_, scrub)| ended(scrub)).collect();
        let counted = done.iter().filter_map(|(_, scrub)| scrub.last.map(|(_, result)| result));
        let under_way = scrubs.values().filter_map(|(_, scrub)| scrub.running);
        let total = counted.chain(under_way).fold(ScrubResult::default(), sum);
        if said.elapsed() > SAY_EVERY || done.len() == groups {
            said = Instant::now();
            eprintln!(
                "scrub: {} of {groups} groups, {} MiB read, {} bad blocks, {} repaired",
                done.len(),
                total.bytes >> 20,
                total.bad,
                total.repaired
            );
        }
        silent_for = if scrubs.len() == groups { 0 } else { silent_for + 1 };
        if done.len() == groups || silent_for > SILENT_MAX {
            return Ok(());
        }
    }
}

fn sum(a: ScrubResult, b: ScrubResult) -> ScrubResult {
    ScrubResult {
        chunks: a.chunks + b.chunks,
        bytes: a.bytes + b.bytes,
        bad: a.bad + b.bad,
        repaired: a.repaired + b.repaired,
        different: a.different + b.different,
        equalized: a.equalized + b.equalized,
    }
}

impl Report {
    fn of(scrubs: Scrubs, silent: Vec<String>, groups: usize) -> Self {
        let mut report = Self { not_asked: silent, ..Self::default() };
        for group in (0..groups as u32).map(GroupId).filter(|group| !scrubs.contains_key(group)) {
            report.not_asked.push(format!("group {}: no primary answers", group.0));
        }
        for (group, (node, scrub)) in scrubs {
            let result = scrub.last.map(|(_, result)| result).unwrap_or_default();
            report.total = sum(report.total, result);
            report.groups.push(Group {
                group: group.0,
                node: node.0,
                ended_ago_seconds: scrub.last.map(|(ago, _)| ago),
                result,
                running: scrub.running.is_some(),
                due_in_seconds: scrub.due,
            });
        }
        let well = |group: &Group| group.ended_ago_seconds.is_some() && group.result.is_clean();
        report.clean = report.not_asked.is_empty() && report.groups.iter().all(well);
        report
    }

    fn picture(&self) {
        for group in &self.groups {
            let ScrubResult { chunks, bytes, bad, repaired, different, equalized } = group.result;
            let when = group.ended_ago_seconds.map_or("never".into(), |ago| format!("{} ago", span(ago)));
            let next = if group.running { "now".into() } else { format!("in {}", span(group.due_in_seconds)) };
            println!(
                "group {}: last {when}, next {next}; {chunks} chunks, {} MiB, {bad} bad blocks, {repaired} repaired, \
                 {different} differences, {equalized} settled",
                group.group,
                bytes >> 20
            );
        }
        self.not_asked.iter().for_each(|what| println!("not asked: {what}"));
        let never = self.groups.iter().filter(|group| group.ended_ago_seconds.is_none()).count();
        let left = self.groups.iter().filter(|group| !group.result.is_clean()).count();
        println!(
            "{} groups, {never} never scrubbed yet, {left} with something left to repair; {} bad blocks found, {} repaired",
            self.groups.len(),
            self.total.bad,
            self.total.repaired
        );
    }
}

/// Seconds in the unit that a person would use.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_and_who_did_not_answer_is_said() {
        let result = ScrubResult { bad: 3, repaired: 2, ..ScrubResult::default() };
        let scrub = |group, last| {
            (GroupId(group), (NodeId(1), GroupScrub { group: GroupId(group), last, running: None, due: 5 }))
        };
        let report = Report::of([scrub(0, Some((9, result))), scrub(1, None)].into(), Vec::new(), 3);
        assert_eq!(report.not_asked, ["group 2: no primary answers"]);
        assert_eq!((report.total.bad, report.clean, report.groups.len()), (3, false, 2));
        let well = Report::of([scrub(0, Some((9, ScrubResult::default())))].into(), Vec::new(), 1);
        assert!(well.clean);
        assert!(!Report::of([scrub(0, None)].into(), Vec::new(), 1).clean, "never scrubbed");
        assert_eq!([span(3), span(200), span(8000), span(604_800)], ["3 s", "3 min", "2 h", "7 days"]);
    }
}
