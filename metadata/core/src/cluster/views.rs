//! How one view becomes the next.
//!
//! * `in_sync` is never emptied, and only a promotion, or the return of all who were in it, adds to it.
//! * The epoch rises with every change.
//! * No disk is in a view twice, whatever its lives.

use crate::command::{ViewStep, home};
use holdfast_types::{DiskId, MemberId, NodeId};
use holdfast_wire::map::View;

/// The view after some steps; `None` if they change nothing. `homes` says which member is preferred as the next primary.
pub(crate) fn next_view(view: &View, steps: &[ViewStep], homes: &[(NodeId, DiskId)]) -> Option<View> {
    let mut next = view.clone();
    for step in steps {
        match step {
            ViewStep::Remove { member } => remove(&mut next, *member),
            ViewStep::Add { member } => add(&mut next, *member),
            ViewStep::Promote { member } => promote(&mut next, *member),
            ViewStep::Lead { member } if next.in_sync.contains(member) => next.primary = *member,
            ViewStep::Lead { .. } => {}
            ViewStep::Reform { members } => reform(&mut next, members),
        }
    }
    if !next.in_sync.contains(&next.primary) {
        next.primary = preferred(&next.in_sync, homes);
    }
    next.in_sync.sort_unstable();
    next.syncing.sort_unstable();
    if next == *view {
        return None;
    }
    next.epoch = view.epoch.next();
    Some(next)
}

/// The member whose disk comes first among the homes.
fn preferred(in_sync: &[MemberId], homes: &[(NodeId, DiskId)]) -> MemberId {
    let at_home = homes.iter().find_map(|place| in_sync.iter().find(|member| home(**member) == *place));
    *at_home.unwrap_or(&in_sync[0])
}

fn remove(view: &mut View, member: MemberId) {
    view.syncing.retain(|other| *other != member);
    if view.in_sync.len() > 1 {
        view.in_sync.retain(|other| *other != member);
    }
}

fn add(view: &mut View, member: MemberId) {
    if !view.members().any(|other| home(other) == home(member)) {
        view.syncing.push(member);
    }
}

fn promote(view: &mut View, member: MemberId) {
    if let Some(at) = view.syncing.iter().position(|other| *other == member) {
        view.in_sync.push(view.syncing.remove(at));
    }
}

/// Later lives take the places of the disks that were in sync. All members in sync must be of an earlier life of their disk.
fn reform(view: &mut View, members: &[MemberId]) {
    let later = |old: &MemberId| {
        members.iter().find(|new| home(**new) == home(*old) && new.incarnation > old.incarnation).copied()
    };
    let came_back: Vec<MemberId> = view.in_sync.iter().filter_map(later).collect();
    if came_back.is_empty() {
        return;
    }
    let primary = later(&view.primary);
    view.syncing.retain(|other| !came_back.iter().any(|new| home(*new) == home(*other)));
    view.in_sync = came_back;
    view.primary = primary.unwrap_or(view.in_sync[0]);
}

/// The deliberate bug: when the primary goes, a member that is still being caught up takes its place.
pub(crate) fn lead_by_syncing(view: &View, steps: &mut Vec<ViewStep>) {
    let goes = |member: MemberId| steps.contains(&ViewStep::Remove { member });
    let heir = view.syncing.iter().copied().find(|member| !goes(*member));
    if let Some(member) = heir.filter(|_| goes(view.primary)) {
        steps.extend([ViewStep::Promote { member }, ViewStep::Lead { member }]);
    }
}

/// Whether a view is as every view must be.
pub(crate) fn is_valid(view: &View) -> bool {
    let mut homes: Vec<_> = view.members().map(home).collect();
    let members = homes.len();
    homes.sort_unstable();
    homes.dedup();
    !view.in_sync.is_empty()
        && view.in_sync.contains(&view.primary)
        && homes.len() == members
        && view.in_sync.is_sorted()
        && view.syncing.is_sorted()
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{Epoch, Incarnation};

    fn member(node: u64, incarnation: u64) -> MemberId {
        MemberId { node: NodeId(node), disk: DiskId(0), incarnation: Incarnation(incarnation) }
    }

    fn view() -> View {
        let in_sync = vec![member(1, 1), member(2, 1), member(3, 1)];
        View { epoch: Epoch(4), primary: member(2, 1), in_sync, syncing: vec![] }
    }

    const HOMES: [(NodeId, DiskId); 3] = [(NodeId(3), DiskId(0)), (NodeId(1), DiskId(0)), (NodeId(2), DiskId(0))];

    #[test]
    fn the_last_member_in_sync_stays() {
        let gone: Vec<ViewStep> = [1, 2, 3].map(|node| ViewStep::Remove { member: member(node, 1) }).to_vec();
        let next = next_view(&view(), &gone, &HOMES).unwrap();
        assert_eq!((next.in_sync.as_slice(), next.primary, next.epoch), (&[member(3, 1)][..], member(3, 1), Epoch(5)));
        assert_eq!(next_view(&next, &gone, &HOMES), None);
        assert!(is_valid(&next));
    }

    #[test]
    fn a_member_returns_through_syncing_only() {
        let steps = [ViewStep::Remove { member: member(2, 1) }, ViewStep::Add { member: member(2, 2) }];
        let next = next_view(&view(), &steps, &HOMES).unwrap();
        assert_eq!((next.syncing.as_slice(), next.primary), (&[member(2, 2)][..], member(3, 1)));
        let promoted = next_view(&next, &[ViewStep::Promote { member: member(2, 2) }], &HOMES).unwrap();
        assert_eq!(promoted.in_sync, [member(1, 1), member(2, 2), member(3, 1)]);
        assert_eq!(next_view(&view(), &[ViewStep::Promote { member: member(4, 1) }], &HOMES), None);
        assert_eq!(
            next_view(&next, &[ViewStep::Add { member: member(2, 3) }], &HOMES),
            None,
            "a disk is in a view once"
        );
    }

    #[test]
    fn only_a_member_in_sync_is_made_primary() {
        let lead = |node, life| next_view(&view(), &[ViewStep::Lead { member: member(node, life) }], &HOMES);
        let next = lead(3, 1).unwrap();
        assert_eq!((next.primary, next.in_sync, next.epoch), (member(3, 1), view().in_sync, Epoch(5)));
        assert_eq!((lead(2, 1), lead(3, 2), lead(4, 1)), (None, None, None));
        let syncing = View { syncing: vec![member(4, 1)], ..view() };
        assert_eq!(next_view(&syncing, &[ViewStep::Lead { member: member(4, 1) }], &HOMES), None);
    }

    #[test]
    fn after_a_power_loss_the_disks_that_were_in_sync_go_on() {
        let steps = [ViewStep::Reform { members: vec![member(1, 2), member(2, 2), member(9, 9)] }];
        let next = next_view(&view(), &steps, &HOMES).unwrap();
        assert_eq!((next.in_sync, next.primary), (vec![member(1, 2), member(2, 2)], member(2, 2)));
        assert_eq!(next_view(&view(), &[ViewStep::Reform { members: vec![member(1, 1)] }], &HOMES), None);
    }
}
