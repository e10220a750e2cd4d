//! Where groups live, in the log: homes move, and old ones count until every new one holds all.
//!
//! ```text
//! group:  at home ──rehome──▶ moving: the new disk is caught up, the old one stays ──every home in sync──▶ at home
//! node:   In ◀──▶ Draining ──▶ Leaving ──nothing is left on it──▶ Gone            In ──▶ Leaving
//! ```
//! * Every member of a view is on a disk that the row keeps, as a home or as one that is left.
//! * A disk is dropped from the row only when every home is in sync and nobody else is a member: only then may it remove its copy.
//! * A node that is gone holds nothing, and its id is not given again.

use super::Cluster;
use super::map::Change;
use super::placement::moves::Placed;
use crate::command::{Move, ViewStep, home};
use crate::error::{Applied, Fail};
use crate::machine::Context;
use crate::tables::cluster::{self as rows, GroupRow, NodeRow};
use crate::txn::Txn;
use holdfast_types::{GroupId, NodeId};
use holdfast_wire::admin::StoragePlace;
use holdfast_wire::metadata::{MetadataError, Response};

impl GroupRow {
    /// As placement sees it.
    pub(super) fn placed(&self) -> Placed<'_> {
        Placed { homes: &self.homes, leaving: &self.leaving, view: &self.view }
    }

    /// Whether every home holds all.
    pub(super) fn is_at_home(&self) -> bool {
        self.placed().is_at_home()
    }

    /// Forgets old homes when they are not needed any more. Says whether it has.
    pub(super) fn settle(&mut self) -> bool {
        let done = !self.leaving.is_empty()
            && self.is_at_home()
            && self.view.members().all(|member| self.homes.contains(&home(member)));
        if done {
            self.leaving.clear();
        }
        done
    }

    /// Steps without those that would add a disk which the group has left.
    pub(super) fn sound(&self, steps: &[ViewStep]) -> Vec<ViewStep> {
        let kept = |step: &&ViewStep| match step {
            ViewStep::Add { member } => self.homes.contains(&home(*member)) || self.leaving.contains(&home(*member)),
            ViewStep::Remove { .. } | ViewStep::Promote { .. } | ViewStep::Lead { .. } | ViewStep::Reform { .. } => {
                true
            }
        };
        steps.iter().filter(kept).cloned().collect()
    }
}

impl Cluster {
    /// Storage nodes that are not gone.
    pub(crate) fn present(&self) -> impl Iterator<Item = (&NodeId, &NodeRow)> {
        self.nodes.iter().filter(|(_, row)| row.place != StoragePlace::Gone)
    }

    /// Whether a node has left for good.
    pub(super) fn is_gone(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|row| row.place == StoragePlace::Gone)
    }

    /// Whether a group is kept on a node.
    pub(super) fn is_used(&self, node: NodeId) -> bool {
        self.groups.iter().any(|row| {
            row.homes.iter().chain(&row.leaving).any(|place| place.0 == node)
                || row.view.members().any(|member| member.node == node)
        })
    }

    /// Moves homes, as far as that is still right.
    pub(super) fn rehome(&mut self, txn: &mut Txn<'_>, context: &mut Context<'_>, moves: &[Move]) -> Response {
        let mut change = Change::default();
        for Move { group, from, to } in moves {
            let used = self.nodes.get(&to.0).is_some_and(|node| {
                node.place == StoragePlace::In && node.record.disks.iter().any(|disk| disk.id == to.1)
            });
            let Some(row) = self.groups.get_mut(group.0 as usize) else { continue };
            if !used || !row.placed().may_move(*from, *to) {
                continue;
            }
            let at = row.homes.iter().position(|place| place == from).expect("a home moves");
            row.homes[at] = *to;
            row.leaving.retain(|place| place != to);
            row.leaving.push(*from);
            row.settle();
            txn.put(rows::group(*group), row);
            change.homes.push((*group, row.kept()));
            context.counters.rehomed += 1;
        }
        if !change.homes.is_empty() {
            self.publish(txn, context, change);
        }
        Response::Done
    }

    /// What is to become of a storage node.
    pub(super) fn place_storage(&mut self, txn: &mut Txn<'_>, node: NodeId, place: StoragePlace) -> Applied<Response> {
        let invalid = |reason: String| Err(Fail::Refused(MetadataError::Invalid { reason }));
        let Some(row) = self.nodes.get(&node) else { return invalid(format!("there is no storage node {node}")) };
        if row.place == place || (row.place == StoragePlace::Gone && place != StoragePlace::In) {
            return Ok(Response::Done);
        }
        if row.place == StoragePlace::Gone {
            return invalid(format!("storage node {node} is gone for good; a new one needs an id that was never used"));
        }
        if matches!(row.place, StoragePlace::Leaving { .. }) && place == StoragePlace::Draining {
            return invalid(format!("storage node {node} is being removed, which empties it as well"));
        }
        // Nodes that are away hold nothing for anybody; but one that is away itself may go though others are, too.
        let there = |other: &NodeRow| other.record.alive || !row.record.alive;
        let in_use =
            |(id, other): &(&NodeId, &NodeRow)| **id != node && other.place == StoragePlace::In && there(other);
        let others = self.nodes.iter().filter(in_use).count();
        let successor = match place {
            StoragePlace::In => return Ok(self.put_place(txn, node, place)),
            StoragePlace::Gone => return invalid("a storage node is gone when nothing is left on it".into()),
            StoragePlace::Draining => None,
            StoragePlace::Leaving { successor } => successor,
        };
        if successor == Some(node)
            || successor.and_then(|id| self.nodes.get(&id)).is_some_and(|row| row.place != StoragePlace::In)
        {
            return invalid("the one that is to take its place is not a storage node in use".into());
        }
        let needed = self.settings.replicas as usize;
        if others + usize::from(successor.is_some_and(|id| !self.nodes.contains_key(&id))) < needed {
            return invalid(format!(
                "{others} storage nodes would be left for {needed} copies of everything: add one first"
            ));
        }
        Ok(self.put_place(txn, node, place))
    }

    fn put_place(&mut self, txn: &mut Txn<'_>, node: NodeId, place: StoragePlace) -> Response {
        if let Some(row) = self.nodes.get_mut(&node) {
            row.place = place;
            txn.put(rows::node(node), row);
        }
        Response::Done
    }

    /// A node that was to leave is gone, if nothing is left on it.
    pub(super) fn bury(&mut self, txn: &mut Txn<'_>, node: NodeId, change: &mut Change) {
        let leaves = self.nodes.get(&node).is_some_and(|row| matches!(row.place, StoragePlace::Leaving { .. }));
        if leaves && !self.is_used(node) {
            self.put_place(txn, node, StoragePlace::Gone);
            change.nodes_removed.push(node);
        }
    }

    /// A group's new view is in its row: whether that lets go of old homes.
    pub(super) fn settled(row: &mut GroupRow, group: GroupId, change: &mut Change) {
        if row.settle() {
            change.homes.push((group, row.kept()));
        }
    }
}
