//! Who holds each group when a backup is restored: by the backup, by the newest map of a storage node, and by what the disks say.
//!
//! ```text
//! newest map that a storage node has ──▶ its view counts                     everybody in sync there is
//! nobody has a newer one, and no disk has a change of a later epoch ──▶ the backup's view counts
//! a disk has one of a later epoch ──▶ the copy that was changed last, alone   the others are compared with it, and caught up
//! ```
//! * A change goes to every member in sync of its epoch. So where no disk has a change of a later epoch than a view's, the members of that
//!   view hold whatever any later view acknowledged: nothing.
//! * That a copy was in sync once, and that it has the last change, does not make it whole: it may have left, come back, and be on its way to
//!   be caught up, and whoever is caught up is given current changes as well. It is *proven* where the changes are of the very next epoch, and
//!   the disk is in the life in which it was in sync: no single change of a view takes a member out and back in. Any other is *unknown*.
//! * No copy is given up for it: every disk that has something of a group that has changed is on the list of those that keep it.

use super::leap::Leap;
use crate::cluster::placement::Place;
use crate::command::home;
use crate::tables::cluster::GroupRow;
use holdfast_types::{Epoch, GroupId, MemberId, NodeId, OpNumber};
use holdfast_wire::admin::HeldByNode;
use holdfast_wire::map::{ClusterMap, View};
use std::collections::BTreeMap;

/// What is known of the groups.
pub(super) struct Known<'a> {
    /// The newest map, if it is newer than the backup.
    pub(super) newest: Option<&'a ClusterMap>,
    /// Disks that have something of a group, and the number of the last change that each was given.
    pub(super) holders: BTreeMap<GroupId, Vec<(MemberId, OpNumber)>>,
    pub(super) leap: Leap,
    pub(super) replicas: usize,
}

/// A group as it goes on.
pub(super) struct Regrouped {
    pub(super) row: GroupRow,
    /// It goes on with one copy.
    pub(super) compared: bool,
    /// And it is not known whether that copy is whole.
    pub(super) unknown: bool,
}

/// Who has something of each group, by what the nodes say.
pub(super) fn holders(held: &BTreeMap<NodeId, HeldByNode>) -> BTreeMap<GroupId, Vec<(MemberId, OpNumber)>> {
    let mut holders: BTreeMap<GroupId, Vec<_>> = BTreeMap::new();
    for held in held.values().flat_map(|held| &held.groups) {
        holders.entry(held.group).or_default().push((held.member, held.last));
    }
    holders
}

impl Known<'_> {
    /// A group as it goes on; `None` if epochs leap no further.
    pub(super) fn regroup(&self, group: GroupId, before: &GroupRow) -> Option<Regrouped> {
        let number = group.0 as usize;
        let newest = self.newest.and_then(|map| Some((map.views.get(number)?, map.homes.get(number)?)));
        let (view, kept) = match newest {
            Some((view, kept)) if view.epoch >= before.view.epoch => (view.clone(), kept.clone()),
            Some(_) | None => (before.view.clone(), before.kept()),
        };
        let none = Vec::new();
        let holders = self.holders.get(&group).unwrap_or(&none);
        let written = holders.iter().map(|(_, last)| last.epoch).max().unwrap_or_default();
        let epoch = Epoch(self.leap.epoch(view.epoch.max(written).0)?);
        let (homes, mut leaving) = self.homes(before, &view, kept);
        let compared = written > view.epoch;
        let (mut next, mut unknown) = (View { epoch, ..view.clone() }, false);
        if compared {
            let was_in_sync = |member: MemberId| view.in_sync.iter().any(|other| home(*other) == home(member));
            let proven = |member: MemberId| written == view.epoch.next() && view.in_sync.contains(&member);
            let latest = holders.iter().map(|(_, last)| *last).max()?;
            // Of several that were changed last, the one of which most is known.
            let of_last = holders.iter().filter(|(_, last)| *last == latest).map(|(member, _)| *member);
            let only = &of_last.max_by_key(|member| (proven(*member), was_in_sync(*member)))?;
            unknown = !proven(*only);
            next = View { epoch, primary: *only, in_sync: vec![*only], syncing: Vec::new() };
            leaving.extend(holders.iter().map(|(member, _)| home(*member)));
        }
        leaving.extend(next.members().map(home));
        leaving.retain(|place| !homes.contains(place));
        leaving.sort_unstable();
        leaving.dedup();
        let row = GroupRow { view: next, homes, leaving, ..before.clone() };
        Some(Regrouped { row, compared, unknown })
    }

    /// Where a group is at home, and which other disks keep it. Maps name both in one list.
    fn homes(&self, before: &GroupRow, view: &View, kept: Vec<Place>) -> (Vec<Place>, Vec<Place>) {
        let same = |places: &[Place]| {
            let mut sorted = places.to_vec();
            sorted.sort_unstable();
            sorted
        };
        if same(&kept) == same(&before.kept()) {
            return (before.homes.clone(), before.leaving.clone());
        }
        // Those in sync first, their primary before the others: it is preferred from then on.
        let in_sync = |place: &Place| view.in_sync.iter().any(|member| home(*member) == *place);
        let mut ordered = kept;
        ordered.sort_by_key(|place| (*place != home(view.primary), !in_sync(place)));
        let (mut homes, mut leaving) = (Vec::<Place>::new(), Vec::new());
        for place in ordered {
            if homes.len() < self.replicas && homes.iter().all(|other| other.0 != place.0) {
                homes.push(place);
            } else {
                leaving.push(place);
            }
        }
        (homes, leaving)
    }
}
