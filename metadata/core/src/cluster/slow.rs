//! Disks and nodes that are slower than their peers: who they are, and what that means for the views.
//!
//! ```text
//! leads:   may ──slower for LEAD_AFTER──▶ must not        may ◀──fast for the probation── must not
//! member:  in  ──slower for OUT_AFTER───▶ out             in  ◀──fast for the probation── out
//! ```
//! * Slow is who takes several times as long as the peers do, the disks of other nodes: a pool that is slow as a whole has nobody to go to.
//! * Reads go to primaries only, so whoever leads decides how fast they are; a change waits for every member in sync, so who is slow to make
//!   it durable is taken out of the view. Slow reads take nobody out.
//! * Nobody is taken out of a view that needs it ([`MetadataCore::slow_to_leave`]), nor of any while too many nodes are out already.
//! * A disk that is being caught up is slow for that, and nobody waits for it: to take it out would begin the catching up again, for ever.
//! * All of it is the leader's memory, counted in its own ticks: a mistake costs a copy's catching up, never what was acknowledged.

use super::nodes::Standing;
use super::placement::Place;
use super::views::next_view;
use crate::api::ticks;
use crate::command::{ViewStep, home};
use crate::core::MetadataCore;
use crate::tables::cluster::GroupRow;
use holdfast_types::{MemberId, NodeId};
use holdfast_wire::admin::{SlowIn, Slowness};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Slow takes so many times as long as the peers, or fast at the most; and at the least so long, in microseconds: below, a difference of
/// any factor hurts nobody. By eye: what waits for a rotating disk is between the two.
const SLOW_TIMES: u32 = 3;
const SLOW_US_MIN: u32 = 40_000;
const FAST_TIMES: u32 = 2;
const FAST_US_MIN: u32 = 20_000;
/// For how long a disk is slow before others lead its groups: four heartbeats, which a spike does not last.
const LEAD_AFTER: u64 = ticks(Duration::from_secs(2));
/// And before it is taken out of views, which costs its groups a copy until it is back.
const OUT_AFTER: u64 = ticks(Duration::from_secs(5));
/// For how long it must be fast before it is used as before; longer each time it is slow again, and not for ever.
const PROBATION: u64 = ticks(Duration::from_secs(10));
const PROBATION_MAX: u64 = ticks(Duration::from_secs(40));
/// A disk that was fast for so long is as good as one that never was slow.
const FORGIVEN: u64 = ticks(Duration::from_secs(600));
/// One in so many nodes may have disks that are out for being slow; one always may.
const OUT_ONE_IN: usize = 4;

/// A reading beside those of the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Fast,
    Between,
    Slow,
}

/// A judgement that takes its time.
#[derive(Clone, Copy, Debug, Default)]
struct Judgement {
    slow: bool,
    /// Since when the readings contradict it, in ticks.
    since: Option<u64>,
}

impl Judgement {
    fn on_probation(&self) -> bool {
        self.slow && self.since.is_some()
    }

    /// Takes a reading. Says whether the judgement has changed.
    fn hear(&mut self, now: u64, level: Level, patience: u64, probation: u64) -> bool {
        let (against, length) = if self.slow { (Level::Fast, probation) } else { (Level::Slow, patience) };
        if level != against {
            self.since = None;
            return false;
        }
        let since = *self.since.get_or_insert(now);
        let changed = now >= since + length;
        if changed {
            *self = Self { slow: !self.slow, since: None };
        }
        changed
    }
}

/// What is known of a disk.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Whether it must not lead.
    lead: Judgement,
    /// Whether it should be out.
    out: Judgement,
    probation: u64,
    /// The probation was made longer since it was last found slow.
    prolonged: bool,
    /// When it was last slow.
    last: u64,
    /// In what it was slowest beside its peers, when it last was.
    worst: Slowness,
    /// Changes wait for it just now.
    writes: Level,
}

/// The leader's memory of them.
#[derive(Debug, Default)]
pub(super) struct Slow {
    cases: BTreeMap<Place, Case>,
    /// Disks that are out, as far as that many may be.
    out: BTreeSet<Place>,
    /// Times a disk was found slow, and times one was taken out.
    found: u64,
    taken_out: u64,
}

/// What a disk says of its speed: reads, changes, answers to its node.
type Readings = [Option<u32>; 3];
const KINDS: [SlowIn; 3] = [SlowIn::Reads, SlowIn::Writes, SlowIn::Answers];

/// What the peers of each node take, of each kind.
struct Peers<'a> {
    all: &'a BTreeMap<Place, Readings>,
    usual: BTreeMap<NodeId, [Option<u32>; 3]>,
}

impl<'a> Peers<'a> {
    fn of(all: &'a BTreeMap<Place, Readings>) -> Self {
        let sorted = [0, 1, 2].map(|kind| {
            let mut readings: Vec<(u32, NodeId)> =
                all.iter().filter_map(|(place, readings)| Some((readings[kind]?, place.0))).collect();
            readings.sort_unstable();
            readings
        });
        let mut usual = BTreeMap::new();
        for node in all.keys().map(|place| place.0) {
            usual.entry(node).or_insert_with(|| {
                [0, 1, 2].map(|kind: usize| {
                    let others = || sorted[kind].iter().filter(|(_, of)| *of != node);
                    // Of two in the middle the faster one: half of the peers may be slow as well.
                    others().nth(others().count().saturating_sub(1) / 2).map(|(takes, _)| *takes)
                })
            });
        }
        Self { all, usual }
    }

    /// A reading beside those of disks on other nodes. `None`: nothing to compare.
    fn level(&self, kind: usize, place: Place) -> Option<Level> {
        let (takes, usual) = (self.all[&place][kind]?, self.usual[&place.0][kind]?);
        Some(if takes > usual.saturating_mul(SLOW_TIMES).max(SLOW_US_MIN) {
            Level::Slow
        } else if takes < usual.saturating_mul(FAST_TIMES).max(FAST_US_MIN) {
            Level::Fast
        } else {
            Level::Between
        })
    }

    /// The slowest of some kinds; in between when nothing is known.
    fn worst_level(&self, kinds: &[usize], place: Place) -> Level {
        kinds.iter().filter_map(|kind| self.level(*kind, place)).max().unwrap_or(Level::Between)
    }

    /// In what a disk is slowest beside its peers.
    fn slowest(&self, place: Place) -> Slowness {
        let of =
            |kind: usize| (self.all[&place][kind].unwrap_or_default(), self.usual[&place.0][kind].unwrap_or_default());
        let ratio = |kind: &usize| (self.level(*kind, place), of(*kind).0 / of(*kind).1.max(1));
        let kind = (0..KINDS.len()).max_by_key(ratio).unwrap_or_default();
        let (takes_us, peers_us) = of(kind);
        Slowness { what: KINDS[kind], takes_us, peers_us, out: false, on_probation: false }
    }
}

impl Slow {
    /// Compares what disks say of their speed: those that are heard. `syncing` are being caught up. Says whether anything follows from it.
    fn judge(&mut self, now: u64, all: &BTreeMap<Place, Readings>, syncing: &BTreeSet<Place>, nodes: usize) -> bool {
        let forgiven = |case: &Case| !case.lead.slow && !case.out.slow && now >= case.last + FORGIVEN;
        self.cases.retain(|_, case| !forgiven(case));
        let peers = Peers::of(all);
        let mut changed = false;
        for place in all.keys().copied() {
            let (leads, writes) = (peers.worst_level(&[0, 1, 2], place), peers.worst_level(&[1, 2], place));
            if leads < Level::Slow && !self.cases.contains_key(&place) {
                continue;
            }
            let case = self.cases.entry(place).or_insert_with(|| Case {
                lead: Judgement::default(),
                out: Judgement::default(),
                probation: PROBATION,
                prolonged: false,
                last: now,
                worst: peers.slowest(place),
                writes,
            });
            case.writes = writes;
            if leads == Level::Slow {
                (case.last, case.worst) = (now, peers.slowest(place));
            }
            let lead_changed = case.lead.hear(now, leads, LEAD_AFTER, case.probation);
            let excused = !case.out.slow && syncing.contains(&place);
            let for_out = if excused { writes.min(Level::Between) } else { writes };
            let out_changed = case.out.hear(now, for_out, OUT_AFTER, case.probation);
            self.found += u64::from(lead_changed && case.lead.slow);
            changed |= lead_changed || out_changed;
            let given_back = (lead_changed && !case.lead.slow) || (out_changed && !case.out.slow);
            if (lead_changed && case.lead.slow) || (out_changed && case.out.slow) {
                case.prolonged = false;
            } else if given_back && !std::mem::replace(&mut case.prolonged, true) {
                case.probation = (case.probation * 2).min(PROBATION_MAX);
            }
        }
        changed | self.choose_out(all, nodes)
    }

    /// Who of those that should be out is: whoever is already first, then in their order, for some nodes at a time. Those that are not heard
    /// are out of the views in any case and keep nobody else in.
    fn choose_out(&mut self, heard: &BTreeMap<Place, Readings>, nodes: usize) -> bool {
        let slow = |place: &Place| heard.contains_key(place) && self.cases.get(place).is_some_and(|case| case.out.slow);
        let mut out: BTreeSet<Place> = self.out.iter().copied().filter(slow).collect();
        let mut of: BTreeSet<NodeId> = out.iter().map(|place| place.0).collect();
        for place in self.cases.keys() {
            if slow(place) && (of.contains(&place.0) || of.len() < (nodes / OUT_ONE_IN).max(1)) {
                of.insert(place.0);
                self.taken_out += u64::from(out.insert(*place) && !self.out.contains(place));
            }
        }
        let changed = out != self.out;
        self.out = out;
        changed
    }

    fn forget_but(&mut self, known: impl Fn(&Place) -> bool) {
        self.cases.retain(|place, _| known(place));
        self.out.retain(known);
    }
}

impl MetadataCore {
    /// Looks who is slow. To be called from time to time.
    pub(super) fn judge_slowness(&mut self) {
        let mut all: BTreeMap<Place, Readings> = BTreeMap::new();
        let present = self.cluster.machine.present().map(|(node, _)| *node);
        for node in present.filter(|node| !self.is_silent(*node)) {
            let Some(heard) = self.cluster_lead.heard.get(&node) else { continue };
            for disk in heard.disks.iter().filter(|disk| !disk.failed) {
                all.insert((node, disk.id), [disk.read_us, disk.write_us, heard.round_trip_us]);
            }
        }
        let machine = &self.cluster.machine;
        let nodes = machine.present().count();
        let syncing = machine.groups.iter().flat_map(|row| &row.view.syncing);
        let syncing: BTreeSet<Place> = syncing.map(|member| home(*member)).collect();
        let slow = &mut self.cluster_lead.slow;
        slow.forget_but(|place| {
            machine.nodes.get(&place.0).is_some_and(|row| row.record.disks.iter().any(|disk| disk.id == place.1))
        });
        let before = (slow.found, slow.taken_out);
        self.cluster_lead.dirty |= slow.judge(self.ticks, &all, &syncing, nodes);
        self.counters.disks_slow += slow.found - before.0;
        self.counters.disks_slow_out += slow.taken_out - before.1;
    }

    /// Whether others should lead a disk's groups.
    pub(super) fn is_slow(&self, place: Place) -> bool {
        self.cluster_lead.slow.cases.get(&place).is_some_and(|case| case.lead.slow || case.out.slow)
    }

    /// Whether a disk is out of the views that can spare it.
    pub(super) fn is_out_for_slowness(&self, place: Place) -> bool {
        self.cluster_lead.slow.out.contains(&place)
    }

    /// For status.
    pub(super) fn slowness(&self, place: Place) -> Option<Slowness> {
        let case = self.cluster_lead.slow.cases.get(&place).filter(|case| case.lead.slow || case.out.slow)?;
        let on_probation = case.lead.on_probation() || case.out.on_probation();
        Some(Slowness { out: self.is_out_for_slowness(place), on_probation, ..case.worst })
    }

    /// Members in sync that a group is left with, and stand like this.
    fn left(&self, row: &GroupRow, but: &[ViewStep], stand: &[Standing]) -> Vec<MemberId> {
        let goes = |member: &MemberId| but.contains(&ViewStep::Remove { member: *member });
        let there = row.view.in_sync.iter().filter(|member| !goes(member));
        there.copied().filter(|member| stand.contains(&self.standing(*member))).collect()
    }

    /// Members that a group does better without, because they are slow or hang, as long as enough others serve for its writes.
    pub(super) fn slow_to_leave(&self, row: &GroupRow, steps: &[ViewStep]) -> Vec<ViewStep> {
        let needed = self.cluster.machine.settings.min_in_sync as usize;
        let mut serving = self.left(row, steps, &[Standing::Serves]);
        let mut leave = Vec::new();
        let hangs = |member: &MemberId| self.standing(*member) == Standing::Hangs;
        // Those that hang first: the slow ones serve.
        let slow = |member: &MemberId| !hangs(member) && self.is_out_for_slowness(home(*member));
        let members = || row.view.members();
        for member in members().filter(hangs).chain(members().filter(slow)) {
            let others = serving.iter().filter(|other| **other != member).count();
            if others >= needed {
                serving.retain(|other| *other != member);
                leave.push(ViewStep::Remove { member });
            }
        }
        leave
    }

    /// Whether a disk is too slow to be caught up for a group that has enough members without it. That goes by its last word, too; with a
    /// new leader, who has nothing to compare it with yet, by that alone.
    pub(super) fn is_better_without(&self, row: &GroupRow, steps: &[ViewStep], place: Place) -> bool {
        let case = self.cluster_lead.slow.cases.get(&place);
        let new = self.cluster_lead.since.is_some_and(|since| self.ticks < since + LEAD_AFTER);
        let said = || {
            let heard = self.cluster_lead.heard.get(&place.0)?;
            let disk = heard.disks.iter().find(|disk| disk.id == place.1)?;
            disk.write_us.max(heard.round_trip_us)
        };
        let late = self.is_out_for_slowness(place)
            || case.is_some_and(|case| case.writes == Level::Slow)
            || (new && said().is_some_and(|us| us > SLOW_US_MIN));
        // Whoever is not heard yet by a new leader was there a moment ago.
        let there = [Standing::Serves, Standing::Unknown];
        late && self.left(row, steps, &there).len() >= self.cluster.machine.settings.min_in_sync as usize
    }

    /// Hands the primary's role over, if a disk that is slow or hangs would have it after some steps and a fast one could.
    pub(super) fn lead_elsewhere(&self, row: &GroupRow, steps: &[ViewStep]) -> Option<ViewStep> {
        let next = next_view(&row.view, steps, &row.homes);
        let next = next.as_ref().unwrap_or(&row.view);
        if !self.is_slow(home(next.primary)) && self.standing(next.primary) != Standing::Hangs {
            return None;
        }
        let fits = |member: &&MemberId| {
            next.in_sync.contains(member)
                && !self.is_slow(home(**member))
                && self.standing(**member) == Standing::Serves
                && self.cluster_lead.heard.get(&member.node).is_some_and(|heard| !heard.leaving)
        };
        let rank = |member: &&MemberId| row.homes.iter().position(|place| *place == home(**member));
        let best = next.in_sync.iter().filter(fits).min_by_key(|member| rank(member).unwrap_or(usize::MAX))?;
        Some(ViewStep::Lead { member: *best })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::DiskId;

    /// Readings of changes, in milliseconds, by node.
    fn world(of: &[(u64, u32)]) -> BTreeMap<Place, Readings> {
        of.iter().map(|(node, ms)| ((NodeId(*node), DiskId(0)), [Some(200), Some(ms * 1000), Some(900)])).collect()
    }

    fn at(node: u64) -> Place {
        (NodeId(node), DiskId(0))
    }

    #[test]
    fn slow_is_who_is_slower_than_the_others_by_far() {
        let told = |of: &[(u64, u32)], node| Peers::of(&world(of)).worst_level(&[1], at(node));
        assert_eq!(told(&[(1, 5), (2, 300), (3, 4)], 2), Level::Slow);
        assert_eq!(told(&[(1, 5), (2, 300), (3, 4)], 1), Level::Fast);
        assert_eq!(told(&[(1, 200), (2, 300), (3, 250)], 2), Level::Fast, "all are slow: nobody is");
        assert_eq!(told(&[(1, 90), (2, 250), (3, 100)], 2), Level::Between);
        assert_eq!(told(&[(1, 1), (2, 30), (3, 1)], 2), Level::Between, "thirty times as much, which hurts nobody");
        assert_eq!(told(&[(1, 300), (2, 300), (3, 4)], 2), Level::Slow, "half of the others are, too");
        assert_eq!(told(&[(2, 300)], 2), Level::Between, "beside nobody");
    }

    /// Judges every half second; returns when the first disk was out and back, in seconds.
    fn seconds_out(slow: &mut Slow, start: u64, slow_for_s: u64) -> (Option<u64>, Option<u64>) {
        let (mut out, mut back) = (None, None);
        for half in 0..400 {
            let ms = if half < slow_for_s * 2 { 300 } else { 3 };
            let now = start + half * ticks(Duration::from_millis(500));
            slow.judge(now, &world(&[(1, ms), (2, 3), (3, 4)]), &BTreeSet::new(), 3);
            match (slow.out.contains(&at(1)), out) {
                (true, None) => out = Some(half / 2),
                (false, Some(_)) if back.is_none() => back = Some(half / 2),
                _ => {}
            }
        }
        (out, back)
    }

    #[test]
    fn a_spike_moves_nothing_and_whoever_comes_and_goes_stays_away_for_longer() {
        let mut slow = Slow::default();
        assert_eq!(seconds_out(&mut slow, 0, 4), (None, None));
        assert_eq!((slow.found, slow.taken_out), (1, 0), "slow for long enough to be led by others");
        let later = |n: u64| n * ticks(Duration::from_secs(300));
        assert_eq!(seconds_out(&mut slow, later(1), 30), (Some(5), Some(50)), "the lead that it got back counts, too");
        assert_eq!(seconds_out(&mut slow, later(2), 30), (Some(5), Some(70)));
        assert_eq!(seconds_out(&mut slow, later(3), 30), (Some(5), Some(70)), "and not for ever");
        assert_eq!(seconds_out(&mut slow, later(9), 30), (Some(5), Some(40)), "forgiven");
    }

    #[test]
    fn only_some_nodes_are_out_at_a_time() {
        let mut slow = Slow::default();
        let judge = |slow: &mut Slow, from: u64, of: &[(u64, u32)]| {
            for half in 0..20 {
                slow.judge(from + half * ticks(Duration::from_millis(500)), &world(of), &BTreeSet::new(), of.len());
            }
        };
        let mut of: Vec<(u64, u32)> = (1..=9).map(|node| (node, 3)).collect();
        (of[3].1, of[5].1, of[7].1) = (300, 300, 300);
        judge(&mut slow, 0, &of);
        assert_eq!(slow.out, BTreeSet::from([at(4), at(6)]));
        // One that is fast again makes room for the next.
        of[3].1 = 3;
        judge(&mut slow, 1000, &of);
        judge(&mut slow, 2000, &of);
        assert_eq!(slow.out, BTreeSet::from([at(6), at(8)]));
        // One that is not heard any more does as well.
        of[3].1 = 300;
        of.remove(7);
        judge(&mut slow, 3000, &of);
        assert_eq!(slow.out, BTreeSet::from([at(4), at(6)]));
    }

    #[test]
    fn a_disk_that_is_slow_because_it_is_caught_up_is_not_taken_out_for_it() {
        let (mut slow, of) = (Slow::default(), world(&[(1, 300), (2, 3), (3, 4)]));
        let mut judge = |from: u64, syncing: &BTreeSet<Place>| {
            for half in 0..20 {
                slow.judge((from + half) * ticks(Duration::from_millis(500)), &of, syncing, 3);
            }
            slow.out.contains(&at(1))
        };
        assert!(!judge(0, &BTreeSet::from([at(1)])));
        assert!(judge(20, &BTreeSet::new()), "slow as a member in sync");
        assert!(judge(40, &BTreeSet::from([at(1)])), "caught up because somebody needs it, it is as slow as before");
    }

    #[test]
    fn whoever_reads_slowly_now_and_then_waits_longer_for_its_lead_each_time() {
        let (mut slow, mut half) = (Slow::default(), 0);
        let mut seconds_led_by_others = || {
            let mut halves = 0;
            for n in 0..200 {
                let read_us = if n < 10 { 300_000 } else { 200 };
                let mut of = world(&[(1, 3), (2, 3), (3, 4)]);
                of.insert(at(1), [Some(read_us), Some(3_000), Some(900)]);
                slow.judge(half * ticks(Duration::from_millis(500)), &of, &BTreeSet::new(), 3);
                halves += u64::from(slow.cases.get(&at(1)).is_some_and(|case| case.lead.slow));
                half += 1;
            }
            halves / 2
        };
        assert_eq!([(); 4].map(|()| seconds_led_by_others()), [13, 23, 43, 43]);
    }
}
