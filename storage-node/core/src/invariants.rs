//! What must hold: within one core after every step ([`check`]), and between the members of a group ([`replicas_equal`]).
//!
//! For simulators and tests; the first costs time in proportion to all that is open.

use crate::group::member::Member;
use crate::group::primary::Primary;
use crate::group::{Group, Role};
use crate::node::StorageCore;
use holdfast_types::{ChunkKey, Epoch, GroupId, MemberId, OpNumber};
use std::collections::BTreeMap;

/// Asserts what must hold within one core between two steps.
///
/// # Panics
/// When it does not: a mistake of ours.
pub fn check(core: &StorageCore) {
    let mut bytes = 0;
    for (id, group) in &core.groups {
        bytes += check_group(core, *id, group);
    }
    assert_eq!(core.book.bytes, bytes, "bytes of open changes are counted");
    assert!(core.acknowledged() <= core.map_version(), "no map is acknowledged before it is there");
}

fn check_group(core: &StorageCore, id: GroupId, group: &Group) -> usize {
    let base = &group.base;
    assert!(base.settled.epoch <= base.view.epoch, "{id}: settled {} in {}", base.settled, base.view.epoch);
    match &group.role {
        Role::Outside | Role::Failed => 0,
        Role::Member(member) => {
            assert!(base.view.has(base.me) && base.view.primary != base.me, "{id}: not a member of its view");
            check_member(id, member);
            0
        }
        Role::Primary(primary) => {
            assert!(base.view.in_sync.contains(&base.me) && base.view.primary == base.me, "{id}: not its primary");
            assert!(core.book.active.contains(&id) || primary.is_serving(), "{id}: would sleep while reconciling");
            check_primary(id, group, primary)
        }
    }
}

fn check_member(id: GroupId, member: &Member) {
    assert!(member.in_order(), "{id}: the stream is out of order");
}

fn check_primary(id: GroupId, group: &Group, primary: &Primary) -> usize {
    let base = &group.base;
    let window: usize = primary.ops.values().map(|op| op.change.bytes()).sum();
    assert_eq!(primary.window_bytes, window, "{id}: the window is counted");
    assert_eq!(primary.held, primary.holds(), "{id}: a chunk is held exactly while it is copied");
    if primary.is_serving() {
        assert!(primary.ops.keys().all(|count| *count > primary.committed), "{id}: committed and still open");
        assert!(primary.committed < primary.next_count, "{id}: committed without a number");
        assert!(base.settled <= base.number(primary.committed), "{id}: settled beyond committed");
        let streams = base.view.in_sync.iter().filter(|m| **m != base.me).all(|m| primary.streams.contains_key(m));
        assert!(streams, "{id}: a member in sync has no stream");
        let none = primary.promoting.keys().all(|m| primary.streams.contains_key(m));
        assert!(none, "{id}: a member being promoted has no stream");
    }
    window + primary.waiting_bytes()
}

/// What a core says of one group, for checkers of a whole cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Which group.
    pub group: GroupId,
    /// This member.
    pub member: MemberId,
    /// The epoch that it is in.
    pub epoch: Epoch,
    /// It is the primary and serves.
    pub serving: bool,
    /// What it knows to be settled.
    pub settled: OpNumber,
}

/// All groups of a core that are in a view.
pub fn observe(core: &StorageCore) -> Vec<Observed> {
    let listed = core.groups.iter().filter(|(_, group)| matches!(group.role, Role::Member(_) | Role::Primary(_)));
    let observed = listed.map(|(id, group)| Observed {
        group: *id,
        member: group.base.me,
        epoch: group.base.view.epoch,
        serving: matches!(&group.role, Role::Primary(primary) if primary.is_serving()),
        settled: group.base.settled,
    });
    observed.collect()
}

/// At most one member serves a group in one epoch.
///
/// # Errors
/// Names the two that do.
pub fn one_primary<'a>(cores: impl Iterator<Item = &'a StorageCore>) -> Result<(), String> {
    let mut serving: BTreeMap<(GroupId, Epoch), MemberId> = BTreeMap::new();
    for (id, group) in cores.flat_map(|core| &core.groups) {
        let Role::Primary(primary) = &group.role else { continue };
        let (epoch, member) = (group.base.view.epoch, group.base.me);
        if primary.is_serving()
            && let Some(other) = serving.insert((*id, epoch), member)
        {
            return Err(format!("{id} is served in {epoch} by {other} and {member}"));
        }
    }
    Ok(())
}

/// The members hold the same chunks with the same bytes. Give what each durably holds, empty chunks left out, when nothing is open.
///
/// # Errors
/// Names the first difference.
pub fn replicas_equal(group: GroupId, held: Vec<(MemberId, BTreeMap<ChunkKey, Vec<u8>>)>) -> Result<(), String> {
    let mut members = held.into_iter();
    let Some((first, want)) = members.next() else { return Ok(()) };
    for (member, have) in members {
        for chunk in want.keys().chain(have.keys()) {
            let (a, b) = (want.get(chunk), have.get(chunk));
            if a != b {
                let length = |content: Option<&Vec<u8>>| content.map_or(0, Vec::len);
                return Err(format!(
                    "{group} {chunk}: {first} has {} bytes, {member} {}, and they differ",
                    length(a),
                    length(b)
                ));
            }
        }
    }
    Ok(())
}
