//! What must be true of a shard's table at any moment: the checker that simulation and tests run.
//!
//! * Namespace: every entry's inode exists and is of the entry's kind, both tables of entries say the same, link counts and
//!   sizes of directories are right, nothing but an orphan with openers is unreachable, totals are sums, bounds and trims are
//!   known from both sides, no session that is over holds anything, locks go together and are counted,
//!   access lists and modes say the same.
//! * Cluster: views are valid and as many as they should be, every member is on a disk that its group keeps, no node that is gone keeps
//!   anything, sessions are not newer than the newest.

use crate::cluster::views::is_valid;
use crate::command::home;
use crate::error::{Applied, Fail};
use crate::replica::describe;
use crate::tables::cluster as cluster_rows;
use crate::tables::entry::{self, CookieRow, EntryRow};
use crate::tables::inode::{self, InodeRow};
use crate::tables::lock::{self, LockRow, LocksRow};
use crate::tables::purge::{self, TrimRow};
use crate::tables::session::{self, Phase, SessionRow};
use crate::tables::volume::{self, DroppedRow, VolumeRow};
use crate::tables::{Row, mark, number_at};
use crate::txn::decode;
use holdfast_store::{KeyRange, View};
use holdfast_types::{InodeId, NodeId, SessionId, ShardId, VolumeId};
use holdfast_wire::acl::{ACCESS, Acl, DEFAULT};
use holdfast_wire::admin::StoragePlace;
use holdfast_wire::lock::{HeldLock, LockKind};
use holdfast_wire::namespace::FileKind;
use std::collections::{BTreeMap, BTreeSet};

/// Checks a shard's table, or a snapshot of it, and tells what is wrong; empty if nothing is. Reads all of it.
///
/// # Errors
/// A text, if a row cannot be read at all.
pub fn check(shard: ShardId, view: &dyn View) -> Result<Vec<String>, String> {
    let found = if shard == ShardId::CLUSTER { check_cluster(view) } else { check_volumes(view) };
    found.map_err(|fail: Fail| describe(&fail))
}

fn all<R: Row>(view: &dyn View, table: u8) -> Applied<Vec<(Vec<u8>, R)>> {
    let mut rows = Vec::new();
    for pair in view.range(KeyRange::prefix(vec![table])) {
        let (key, value) = pair?;
        rows.push((key.to_vec(), decode(&key, &value)?));
    }
    Ok(rows)
}

fn keys(view: &dyn View, table: u8) -> Applied<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    for pair in view.range(KeyRange::prefix(vec![table])) {
        keys.push(pair?.0.to_vec());
    }
    Ok(keys)
}

fn check_cluster(view: &dyn View) -> Applied<Vec<String>> {
    let mut wrong = Vec::new();
    let settings: Vec<(_, cluster_rows::SettingsRow)> = all(view, cluster_rows::SETTINGS)?;
    let settings = settings.first().map(|(_, row)| *row).unwrap_or_default();
    let nodes: Vec<(_, cluster_rows::NodeRow)> = all(view, cluster_rows::NODE)?;
    let gone: Vec<NodeId> =
        nodes.iter().filter(|(_, row)| row.place == StoragePlace::Gone).map(|(_, row)| row.record.id).collect();
    let groups: Vec<(_, cluster_rows::GroupRow)> = all(view, cluster_rows::GROUP)?;
    if groups.len() != settings.groups as usize {
        wrong.push(format!("{} groups instead of {}", groups.len(), settings.groups));
    }
    for (key, row) in &groups {
        let group = number_at(key, 0);
        if !is_valid(&row.view) {
            wrong.push(format!("group {group}: invalid view {:?}", row.view));
        }
        let kept = row.kept();
        let strange = row.view.members().find(|member| !kept.contains(&home(*member)));
        if let Some(member) = strange {
            wrong.push(format!("group {group}: {member} is a member, and the group is kept on {kept:?}"));
        }
        let mut nodes: Vec<_> = row.homes.iter().map(|place| place.0).collect();
        nodes.sort_unstable();
        nodes.dedup();
        if nodes.len() != row.homes.len() || row.homes.iter().any(|place| row.leaving.contains(place)) {
            wrong.push(format!("group {group}: homes {:?}, leaving {:?}", row.homes, row.leaving));
        }
        if let Some(node) = kept.iter().map(|place| place.0).find(|node| gone.contains(node)) {
            wrong.push(format!("group {group}: it is kept on {node}, which is gone"));
        }
        if row.changed > settings.version {
            wrong.push(format!("group {group}: changed at {} after the map's {}", row.changed, settings.version));
        }
    }
    let live: Vec<(_, cluster_rows::LiveRow)> = all(view, cluster_rows::LIVE)?;
    for (key, row) in &live {
        let session = SessionId(number_at(key, 0));
        if session > settings.session_newest || row.opened > settings.version {
            wrong.push(format!("session {session} is newer than the newest"));
        }
    }
    Ok(wrong)
}

/// All of shard 1 that is compared.
struct Namespace {
    inodes: BTreeMap<(VolumeId, InodeId), InodeRow>,
    entries: Vec<(VolumeId, InodeId, Vec<u8>, EntryRow)>,
    sessions: BTreeMap<SessionId, SessionRow>,
    openers: BTreeSet<(VolumeId, InodeId, SessionId)>,
    wrong: Vec<String>,
}

fn check_volumes(view: &dyn View) -> Applied<Vec<String>> {
    let dropped: BTreeSet<VolumeId> =
        all::<DroppedRow>(view, volume::DROPPED)?.into_iter().map(|(key, _)| VolumeId(number_at(&key, 0))).collect();
    let kept = |key: &[u8]| !dropped.contains(&VolumeId(number_at(key, 0)));
    let inodes = all::<InodeRow>(view, inode::INODE)?
        .into_iter()
        .filter(|(key, _)| kept(key))
        .map(|(key, row)| ((VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1))), row))
        .collect();
    let entries = all::<EntryRow>(view, entry::ENTRY)?
        .into_iter()
        .filter(|(key, _)| kept(key))
        .map(|(key, row)| {
            let name = entry::name_in_key(&key).to_vec();
            (VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1)), name, row)
        })
        .collect();
    let sessions = all::<SessionRow>(view, session::SESSION)?
        .into_iter()
        .map(|(key, row)| (SessionId(number_at(&key, 0)), row))
        .collect();
    let openers = keys(view, mark::OPENER)?
        .iter()
        .filter(|key| kept(key))
        .map(|key| (VolumeId(number_at(key, 0)), InodeId(number_at(key, 1)), SessionId(number_at(key, 2))))
        .collect();
    let mut all_of_it = Namespace { inodes, entries, sessions, openers, wrong: Vec::new() };
    all_of_it.check_cookies(view, &kept)?;
    all_of_it.check_links();
    all_of_it.check_reachable(view)?;
    all_of_it.check_lengths(view, &kept)?;
    all_of_it.check_totals(view)?;
    all_of_it.check_sessions(view)?;
    all_of_it.check_locks(view, &kept)?;
    all_of_it.check_acls(view, &kept)?;
    Ok(all_of_it.wrong)
}

impl Namespace {
    /// Entries by position are the entries by name.
    fn check_cookies(&mut self, view: &dyn View, kept: &dyn Fn(&[u8]) -> bool) -> Applied<()> {
        let mut by_cookie = BTreeMap::new();
        for (key, row) in all::<CookieRow>(view, entry::COOKIE)? {
            if kept(&key) {
                by_cookie.insert((VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1)), number_at(&key, 2)), row);
            }
        }
        for (volume, parent, name, row) in &self.entries {
            let found = by_cookie.remove(&(*volume, *parent, row.cookie));
            let same = found.is_some_and(|other| {
                other.name.as_bytes() == name.as_slice() && (other.inode, other.kind) == (row.inode, row.kind)
            });
            if !same {
                self.wrong.push(format!(
                    "{volume}/{parent}: \"{}\" has no like at {}",
                    name.escape_ascii(),
                    row.cookie
                ));
            }
        }
        for (volume, parent, cookie) in by_cookie.keys() {
            self.wrong.push(format!("{volume}/{parent}: position {cookie} has no name"));
        }
        Ok(())
    }

    /// Link counts and sizes of directories are what entries say.
    fn check_links(&mut self) {
        let mut links: BTreeMap<(VolumeId, InodeId), u32> = BTreeMap::new();
        let mut sizes: BTreeMap<(VolumeId, InodeId), u64> = BTreeMap::new();
        for (volume, parent, name, row) in &self.entries {
            *sizes.entry((*volume, *parent)).or_default() += 1;
            let name = name.escape_ascii();
            let Some(inode) = self.inodes.get(&(*volume, row.inode)) else {
                self.wrong.push(format!("{volume}/{parent}: \"{name}\" names {}, which is missing", row.inode));
                continue;
            };
            if inode.kind != row.kind {
                self.wrong.push(format!("{volume}/{parent}: \"{name}\" is another kind than {}", row.inode));
            }
            if inode.kind == FileKind::Directory {
                *links.entry((*volume, *parent)).or_default() += 1;
                *links.entry((*volume, row.inode)).or_default() += 2;
                if inode.parent != *parent {
                    self.wrong.push(format!("{volume}: {} does not know its parent {parent}", row.inode));
                }
            } else {
                *links.entry((*volume, row.inode)).or_default() += 1;
            }
            if self.inodes.get(&(*volume, *parent)).is_none_or(|row| row.kind != FileKind::Directory) {
                self.wrong.push(format!("{volume}: \"{name}\" is in {parent}, which is no directory"));
            }
        }
        for ((volume, number), row) in &self.inodes {
            let of_root = if *number == InodeId::ROOT { 2 } else { 0 };
            let counted = links.get(&(*volume, *number)).copied().unwrap_or(0) + of_root;
            if counted != row.links {
                self.wrong.push(format!("{volume}/{number}: {} links, {counted} found", row.links));
            }
            let entries = sizes.get(&(*volume, *number)).copied().unwrap_or(0);
            if row.kind == FileKind::Directory && entries != row.size {
                self.wrong.push(format!("{volume}/{number}: {} entries, {entries} found", row.size));
            }
        }
    }

    /// What has no name is an orphan that somebody has open; directories hang on the root.
    fn check_reachable(&mut self, view: &dyn View) -> Applied<()> {
        let orphans: BTreeSet<_> = keys(view, mark::ORPHAN)?
            .iter()
            .map(|key| (VolumeId(number_at(key, 0)), InodeId(number_at(key, 1))))
            .collect();
        for ((volume, number), row) in &self.inodes {
            let is_orphan = orphans.contains(&(*volume, *number));
            let first = (*volume, *number, SessionId(0));
            let opened = self.openers.range(first..).next().is_some_and(|(v, i, _)| (v, i) == (volume, number));
            if is_orphan != (row.links == 0) || (is_orphan && !opened) {
                self.wrong.push(format!("{volume}/{number}: links {}, orphan {is_orphan}, open {opened}", row.links));
            }
            let (mut at, mut steps) = (*number, 0);
            while row.kind == FileKind::Directory && row.links > 0 && at != InodeId::ROOT {
                at = self.inodes.get(&(*volume, at)).map_or(InodeId::ROOT, |row| row.parent);
                steps += 1;
                if steps > self.inodes.len() {
                    self.wrong.push(format!("{volume}/{number}: does not hang on the root"));
                    break;
                }
            }
        }
        for (volume, number) in orphans.iter().filter(|orphan| !self.inodes.contains_key(*orphan)) {
            // A dropped volume's rows go in any order.
            if self.inodes.contains_key(&(*volume, InodeId::ROOT)) {
                self.wrong.push(format!("{volume}/{number}: an orphan that does not exist"));
            }
        }
        Ok(())
    }

    /// Bounds and trims are known from both sides.
    fn check_lengths(&mut self, view: &dyn View, kept: &dyn Fn(&[u8]) -> bool) -> Applied<()> {
        let mut holders: BTreeSet<_> = keys(view, mark::BOUND)?
            .iter()
            .map(|key| (SessionId(number_at(key, 0)), VolumeId(number_at(key, 1)), InodeId(number_at(key, 2))))
            .collect();
        let mut trims = BTreeMap::new();
        for (key, row) in all::<TrimRow>(view, purge::TRIM)?.into_iter().filter(|(key, _)| kept(key)) {
            trims.insert(purge::trim_of(&key), row);
        }
        for ((volume, number), row) in &self.inodes {
            for session in row.bound_sessions() {
                if !holders.remove(&(session, *volume, *number)) {
                    self.wrong.push(format!("{volume}/{number}: the bound of {session} is not known by session"));
                }
            }
            let trim = trims.remove(&(*volume, *number)).map(|trim| (trim.generation, trim.from, trim.to));
            if trim != row.trim.map(|(from, to)| (row.generation, from, to)) {
                self.wrong.push(format!("{volume}/{number}: trim {:?}, queued {trim:?}", row.trim));
            }
            if row.stale_bound > row.size && row.bounds.iter().all(|(_, bound)| *bound <= row.size) {
                self.wrong.push(format!("{volume}/{number}: a stale bound that nobody sees to"));
            }
        }
        self.wrong
            .extend(holders.iter().map(|(s, v, i)| format!("{v}/{i}: {s} holds a bound the inode does not know")));
        self.wrong.extend(trims.keys().map(|(v, i)| format!("{v}/{i}: a trim the inode does not know")));
        Ok(())
    }

    /// A volume's totals are sums.
    fn check_totals(&mut self, view: &dyn View) -> Applied<()> {
        for (key, row) in all::<VolumeRow>(view, volume::VOLUME)? {
            let id = VolumeId(number_at(&key, 0));
            let mine = || self.inodes.iter().filter(|((volume, _), _)| *volume == id);
            let charges = || mine().map(|(_, row)| row.charges());
            let found = (
                charges().map(|charges| u128::from(charges.bytes)).sum::<u128>(),
                charges().map(|charges| u128::from(charges.granted)).sum::<u128>(),
                mine().count() as u64,
            );
            let totals = (row.bytes_used, row.bytes_granted, row.inodes_used);
            if found != totals && mine().next().is_some() {
                self.wrong.push(format!("{id}: bytes, bytes granted and inodes {totals:?}, found {found:?}"));
            }
            if mine().any(|((_, inode), _)| *inode >= row.inode_next) {
                self.wrong.push(format!("{id}: an inode at or above the next one {}", row.inode_next));
            }
        }
        Ok(())
    }

    /// Access lists say more than modes, and the same.
    fn check_acls(&mut self, view: &dyn View, kept: &dyn Fn(&[u8]) -> bool) -> Applied<()> {
        for pair in view.range(KeyRange::prefix(vec![mark::XATTR])) {
            let (key, value) = pair?;
            let name = mark::xattr_name(&key);
            if !kept(&key) || (name != ACCESS && name != DEFAULT) {
                continue;
            }
            let (volume, inode) = (VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1)));
            let Some(row) = self.inodes.get(&(volume, inode)) else { continue };
            let list = Acl::parse(&value);
            let agrees = |acl: &Acl| match name == ACCESS {
                true => !acl.is_minimal() && acl.mode() == row.mode & 0o777,
                false => row.kind == FileKind::Directory,
            };
            if !list.as_ref().is_some_and(agrees) {
                self.wrong.push(format!("{volume}/{inode}: mode {:o} and list {list:?}", row.mode));
            }
        }
        Ok(())
    }

    /// Locks of different owners go together, one owner's do not overlap, and each session counts its own.
    fn check_locks(&mut self, view: &dyn View, kept: &dyn Fn(&[u8]) -> bool) -> Applied<()> {
        let mut counted: BTreeMap<_, u32> = BTreeMap::new();
        for (key, row) in all::<LocksRow>(view, lock::LOCK_BY_SESSION)? {
            counted.insert((SessionId(number_at(&key, 0)), mark::volume_and_inode(&key)), row.count);
        }
        let mut by_place: BTreeMap<_, Vec<HeldLock>> = BTreeMap::new();
        for (key, row) in all::<LockRow>(view, lock::LOCK)?.into_iter().filter(|(key, _)| kept(key)) {
            let (volume, inode) = (VolumeId(number_at(&key, 0)), InodeId(number_at(&key, 1)));
            let held = lock::held(&key, &row);
            let count = counted.entry((held.session, (volume, inode))).or_default();
            *count = count.wrapping_sub(1);
            if self.inodes.get(&(volume, inode)).is_none_or(|row| row.kind != FileKind::File) {
                self.wrong.push(format!("{volume}/{inode}: locked, and no file"));
            }
            if !self.sessions.contains_key(&held.session) {
                self.wrong.push(format!("{volume}/{inode}: locked by {}, which is over", held.session));
            }
            by_place.entry((volume, inode, number_at(&key, 2))).or_default().push(held);
        }
        for (place, mut locks) in by_place {
            locks.sort_by_key(|held| held.start);
            for (index, one) in locks.iter().enumerate() {
                for other in locks[index + 1..].iter().take_while(|other| other.start <= one.end) {
                    let same = (one.session, one.owner) == (other.session, other.owner);
                    if same || one.kind == LockKind::Exclusive || other.kind == LockKind::Exclusive {
                        self.wrong.push(format!("{place:?}: {one:?} and {other:?} are both held"));
                    }
                }
            }
        }
        for ((session, place), off) in counted.into_iter().filter(|(_, count)| *count != 0) {
            self.wrong.push(format!("{place:?}: {session} counts its locks wrongly, by {off}"));
        }
        Ok(())
    }

    /// At most one session of a volume caches, and openers are of sessions that are not over.
    fn check_sessions(&mut self, view: &dyn View) -> Applied<()> {
        let mut caching: BTreeMap<VolumeId, u32> = BTreeMap::new();
        for row in self.sessions.values().filter(|row| row.caching && row.phase == Phase::Attached) {
            *caching.entry(row.volume).or_default() += 1;
        }
        for (volume, _) in caching.iter().filter(|(_, count)| **count > 1) {
            self.wrong.push(format!("{volume}: more than one session caches"));
        }
        for (volume, inode, session) in &self.openers {
            if !self.sessions.contains_key(session) {
                self.wrong.push(format!("{volume}/{inode}: open on {session}, which is over"));
            }
        }
        let by_session: BTreeSet<_> = keys(view, mark::OPENER_BY_SESSION)?
            .iter()
            .map(|key| (VolumeId(number_at(key, 1)), InodeId(number_at(key, 2)), SessionId(number_at(key, 0))))
            .collect();
        for odd in by_session.symmetric_difference(&self.openers) {
            self.wrong.push(format!("opener {odd:?} is known from one side only"));
        }
        Ok(())
    }
}
