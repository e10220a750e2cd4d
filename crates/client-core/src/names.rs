//! Names and attributes kept in memory, each with the log index at which it was true.
//!
//! Answers arrive in any order, so what is kept is ordered by index and not by arrival:
//! * A whole value at index `s` replaces one only if nothing newer than `s` is known of it.
//! * A change at index `m` (an entry of ours changed the directory) applies to a value whose `base` is below `m`.
//! * What was dropped while something newer was known raises `floor`: answers below it are not kept for what is not here. What is here knows
//!   what it has seen, whatever else was dropped meanwhile.
//!
//! The size is bounded: the least recently used inode goes first, with everything known of it.

use bytes::Bytes;
use holdfast_types::{FileName, InodeId, LogIndex, Timestamp};
use holdfast_wire::acl::{ACCESS, Acl};
use holdfast_wire::namespace::{AccessTime, Attributes, DirectoryEntry, FileKind};
use std::collections::BTreeMap;

/// Attributes and since when they are right.
struct Known {
    value: Attributes,
    /// Index of the whole value.
    base: LogIndex,
    /// Index of the newest change to it that is known.
    newest: LogIndex,
}

/// One name of a directory.
struct Entry {
    /// `None`: there is no such name.
    inode: Option<(InodeId, FileKind)>,
    /// Its position, if it was listed.
    cookie: Option<u64>,
    at: LogIndex,
}

/// What is known of a directory's entries.
#[derive(Default)]
struct Directory {
    entries: BTreeMap<FileName, Entry>,
    by_cookie: BTreeMap<u64, FileName>,
    present: usize,
    /// A name that is not in `entries` does not exist.
    complete: bool,
    /// A listing from the start has come this far without a gap.
    listed_to: Option<u64>,
}

/// Extended attributes of an inode: each name with its value, or with its absence.
#[derive(Default)]
struct Xattrs {
    values: BTreeMap<Bytes, (LogIndex, Option<Bytes>)>,
    /// A name that is not in `values` does not exist.
    complete: bool,
}

#[derive(Default)]
struct Node {
    /// The cache's floor when this was made.
    floor: LogIndex,
    attributes: Option<Known>,
    /// Attributes below this are history.
    attributes_floor: LogIndex,
    directory: Option<Directory>,
    target: Option<Bytes>,
    xattrs: Xattrs,
    /// Opened since caching started: pages kept above since then are right.
    opened: bool,
    used: u64,
}

impl Node {
    fn weight(&self) -> usize {
        1 + self.directory.as_ref().map_or(0, |d| d.entries.len()) + 2 * self.xattrs.values.len()
    }

    fn newest(&self) -> LogIndex {
        let known = self.attributes.as_ref().map_or(LogIndex(0), |k| k.newest);
        let entries = self.directory.iter().flat_map(|d| d.entries.values()).map(|e| e.at).max();
        let xattrs = self.xattrs.values.values().map(|(at, _)| *at).max();
        known.max(self.attributes_floor).max(entries.unwrap_or_default()).max(xattrs.unwrap_or_default())
    }
}

/// What the cache says about a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Unknown,
    Absent,
    Present(InodeId),
}

/// How an entry's coming or going changes its directory.
#[derive(Clone, Copy)]
pub(crate) struct ParentChange {
    /// Entries more (or fewer).
    pub entries: i64,
    /// Sub-directories more (or fewer).
    pub directories: i64,
    /// When.
    pub stamp: Timestamp,
}

/// The metadata cache of a mount.
pub(crate) struct Names {
    nodes: BTreeMap<InodeId, Node>,
    by_use: BTreeMap<u64, InodeId>,
    clock: u64,
    weight: usize,
    limit: usize,
    floor: LogIndex,
}

impl Names {
    pub fn new(limit: usize) -> Self {
        Self {
            nodes: BTreeMap::new(),
            by_use: BTreeMap::new(),
            clock: 0,
            weight: 0,
            limit: limit.max(16),
            floor: LogIndex(0),
        }
    }

    /// Forgets everything; what is older than this is not taken up again.
    pub fn clear_to(&mut self, at: LogIndex) {
        let floor = self.floor.max(at);
        self.clear();
        self.floor = floor;
    }

    /// Forgets everything. Answers that are under way must not be put in afterwards.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.by_use.clear();
        self.weight = 0;
        self.floor = LogIndex(0);
    }

    // ---- reading ----

    fn used(&mut self, inode: InodeId) -> Option<&mut Node> {
        let node = self.nodes.get_mut(&inode)?;
        self.by_use.remove(&node.used);
        self.clock += 1;
        node.used = self.clock;
        self.by_use.insert(self.clock, inode);
        Some(node)
    }

    /// Attributes, if known.
    pub fn attributes(&mut self, inode: InodeId) -> Option<&Attributes> {
        self.used(inode)?.attributes.as_ref().map(|known| &known.value)
    }

    /// Attributes and the index at which they are right, if known.
    pub fn attributes_at(&mut self, inode: InodeId) -> Option<(Attributes, LogIndex)> {
        self.used(inode)?.attributes.as_ref().map(|known| (known.value.clone(), known.newest))
    }

    /// What a name means.
    pub fn entry(&mut self, parent: InodeId, name: &FileName) -> Found {
        let Some(directory) = self.used(parent).and_then(|n| n.directory.as_ref()) else { return Found::Unknown };
        match directory.entries.get(name) {
            Some(Entry { inode: Some((inode, _)), .. }) => Found::Present(*inode),
            Some(Entry { inode: None, .. }) => Found::Absent,
            None if directory.complete => Found::Absent,
            None => Found::Unknown,
        }
    }

    /// A part of a listing, and whether it is the last; attributes of each entry if they are wanted. `None`: not all is known.
    pub fn list(
        &mut self,
        inode: InodeId,
        after: u64,
        limit: usize,
        plus: bool,
    ) -> Option<(Vec<DirectoryEntry>, bool)> {
        let node = self.used(inode)?;
        let directory = node.directory.as_ref().filter(|d| d.complete && d.by_cookie.len() == d.present)?;
        let mut entries: Vec<DirectoryEntry> = directory
            .by_cookie
            .range(after.saturating_add(1)..)
            .take(limit + 1)
            .filter_map(|(cookie, name)| {
                let (inode, kind) = directory.entries.get(name)?.inode?;
                Some(DirectoryEntry { name: name.clone(), inode, kind, cookie: *cookie, attributes: None })
            })
            .collect();
        let end = entries.len() <= limit;
        entries.truncate(limit);
        if plus {
            for entry in &mut entries {
                entry.attributes = Some(self.nodes.get(&entry.inode)?.attributes.as_ref()?.value.clone());
            }
        }
        Some((entries, end))
    }

    /// All names that are known to be there: directory, name, inode.
    pub fn entries(&self) -> impl Iterator<Item = (InodeId, &FileName, InodeId)> {
        self.nodes.iter().flat_map(|(parent, node)| {
            let entries = node.directory.iter().flat_map(|directory| &directory.entries);
            entries.filter_map(|(name, entry)| Some((*parent, name, entry.inode?.0)))
        })
    }

    /// Target of a symlink.
    pub fn target(&mut self, inode: InodeId) -> Option<Bytes> {
        self.used(inode)?.target.clone()
    }

    /// An extended attribute: `Some(None)` when it is known that there is none.
    pub fn xattr(&mut self, inode: InodeId, name: &Bytes) -> Option<Option<Bytes>> {
        let xattrs = &self.used(inode)?.xattrs;
        match xattrs.values.get(name) {
            Some((_, value)) => Some(value.clone()),
            None if xattrs.complete => Some(None),
            None => None,
        }
    }

    /// All names of extended attributes.
    pub fn xattr_names(&mut self, inode: InodeId) -> Option<Vec<Bytes>> {
        let xattrs = &self.used(inode)?.xattrs;
        let present = xattrs.values.iter().filter(|(_, (_, value))| value.is_some()).map(|(name, _)| name.clone());
        xattrs.complete.then(|| present.collect())
    }

    /// The inode is opened; whether it was before, since caching started.
    pub fn open(&mut self, inode: InodeId) -> bool {
        self.used(inode).is_some_and(|node| std::mem::replace(&mut node.opened, true))
    }

    // ---- learning ----

    fn change(&mut self, inode: InodeId, change: impl FnOnce(&mut Node)) {
        let known = self.nodes.contains_key(&inode);
        let floor = self.floor;
        let node = self.nodes.entry(inode).or_insert_with(|| Node { floor, ..Node::default() });
        let before = if known { node.weight() } else { 0 };
        change(node);
        let weight = node.weight();
        self.weight = self.weight + weight - before;
        self.used(inode);
        if weight > self.limit / 2 {
            // A directory too large to be kept; the next lookup asks.
            self.drop_node(inode);
        }
        while self.weight > self.limit {
            let (_, oldest) = self.by_use.pop_first().expect("weight comes from nodes");
            self.drop_node(oldest);
        }
    }

    /// As `change`, for what is right at `at`: not below what was dropped.
    fn learn(&mut self, inode: InodeId, at: LogIndex, change: impl FnOnce(&mut Node)) {
        if at >= self.floor_of(inode) {
            self.change(inode, change);
        }
    }

    /// Below this nothing is known of what else happened to an inode.
    fn floor_of(&self, inode: InodeId) -> LogIndex {
        self.nodes.get(&inode).map_or(self.floor, |node| node.floor)
    }

    fn drop_node(&mut self, inode: InodeId) {
        if let Some(node) = self.nodes.remove(&inode) {
            self.by_use.remove(&node.used);
            self.weight -= node.weight();
            self.floor = self.floor.max(node.newest());
        }
    }

    /// Attributes as a whole, right at `at`.
    pub fn put_attributes(&mut self, value: &Attributes, at: LogIndex) {
        self.learn(value.inode, at, |node| {
            if node.attributes.as_ref().map_or(node.attributes_floor, |k| k.newest) <= at {
                node.attributes = Some(Known { value: value.clone(), base: at, newest: at });
            } else if node.attributes.as_ref().is_some_and(|k| k.base < at) {
                // Newer than the whole, older than a change made to it: neither is the truth.
                let newest = node.attributes.take().map_or(at, |k| k.newest);
                node.attributes_floor = newest;
            }
        });
    }

    /// An inode changed at `at` in a way that only the service knows.
    pub fn forget_attributes(&mut self, inode: InodeId, at: LogIndex) {
        if self.nodes.contains_key(&inode) {
            self.change(inode, |node| {
                let newest = node.attributes.take().map_or(at, |k| k.newest);
                node.attributes_floor = node.attributes_floor.max(newest).max(at);
            });
        }
    }

    /// An entry came or went at `at`: its directory's attributes follow.
    pub fn change_parent(&mut self, parent: InodeId, by: ParentChange, at: LogIndex) {
        if let Some(known) = self.nodes.get_mut(&parent).and_then(|n| n.attributes.as_mut()) {
            if known.base < at {
                let value = &mut known.value;
                value.size = value.size.saturating_add_signed(by.entries);
                value.links = value.links.saturating_add_signed(by.directories as i32);
                value.mtime = value.mtime.max(by.stamp);
                value.ctime = value.ctime.max(by.stamp);
                known.newest = known.newest.max(at);
            }
        } else if let Some(node) = self.nodes.get_mut(&parent) {
            node.attributes_floor = node.attributes_floor.max(at);
        }
    }

    /// The service was told at `at` that a file was read.
    pub fn accessed(&mut self, time: &AccessTime, at: LogIndex) {
        if let Some(known) = self.nodes.get_mut(&time.inode).and_then(|n| n.attributes.as_mut()) {
            if known.base < at && known.value.ctime == time.ctime {
                known.value.atime = known.value.atime.max(time.atime);
                known.newest = known.newest.max(at);
            }
        } else if let Some(node) = self.nodes.get_mut(&time.inode) {
            node.attributes_floor = node.attributes_floor.max(at);
        }
    }

    /// What a name means at `at`; its attributes are put apart.
    pub fn put_entry(&mut self, parent: InodeId, name: &FileName, inode: Option<(InodeId, FileKind)>, at: LogIndex) {
        self.learn(parent, at, |node| node.directory.get_or_insert_default().put(name, inode, None, at));
    }

    /// A part of a listing that was asked for with `after`, right at `at`.
    pub fn put_listing(&mut self, inode: InodeId, after: u64, entries: &[DirectoryEntry], end: bool, at: LogIndex) {
        if at < self.floor_of(inode) || entries.len() > self.limit / 4 {
            return;
        }
        for entry in entries {
            if let Some(attributes) = &entry.attributes {
                self.put_attributes(attributes, at);
            }
        }
        self.change(inode, |node| {
            let directory = node.directory.get_or_insert_default();
            for entry in entries {
                directory.put(&entry.name, Some((entry.inode, entry.kind)), Some(entry.cookie), at);
            }
            if after == 0 || directory.listed_to == Some(after) {
                directory.listed_to = entries.last().map_or(Some(after), |e| Some(e.cookie));
                if end {
                    directory.complete = true;
                    directory.listed_to = None;
                }
            }
        });
    }

    /// An inode that was just made at `at`: a directory has no entries, nothing has extended attributes.
    ///
    /// `plain`: but for an inode that was made with access lists.
    pub fn put_new(&mut self, attributes: &Attributes, target: Option<&Bytes>, plain: bool, at: LogIndex) {
        self.put_attributes(attributes, at);
        self.learn(attributes.inode, at, |node| {
            node.xattrs.complete = plain;
            node.target = target.cloned();
            if attributes.kind == FileKind::Directory {
                node.directory.get_or_insert_default().complete = true;
            }
        });
    }

    /// Target of a symlink: it never changes.
    pub fn put_target(&mut self, inode: InodeId, target: &Bytes) {
        self.change(inode, |node| node.target = Some(target.clone()));
    }

    /// An extended attribute, or that there is none, at `at`.
    pub fn put_xattr(&mut self, inode: InodeId, name: &Bytes, value: Option<Bytes>, at: LogIndex) {
        self.learn(inode, at, |node| {
            let kept = node.xattrs.values.entry(name.clone()).or_default();
            if kept.0 <= at {
                *kept = (at, value);
            }
        });
    }

    /// After a change of the mode at `at` the access list, if there is one, is another: as the service changes it.
    pub fn follow_mode(&mut self, inode: InodeId, mode: u16, at: LogIndex) {
        let Some(node) = self.nodes.get_mut(&inode) else { return };
        if let Some((known_at, Some(value))) = node.xattrs.values.get_mut(ACCESS)
            && *known_at < at
            && let Some(acl) = Acl::parse(value)
        {
            (*known_at, *value) = (at, acl.with_mode(mode).bytes());
        }
    }

    /// An inode is gone.
    pub fn remove(&mut self, inode: InodeId) {
        self.drop_node(inode);
    }
}

impl Directory {
    fn put(&mut self, name: &FileName, inode: Option<(InodeId, FileKind)>, cookie: Option<u64>, at: LogIndex) {
        if let Some(old) = self.entries.get_mut(name) {
            if old.at > at {
                return;
            }
            if old.inode == inode {
                old.at = at;
                if old.cookie.is_none() && inode.is_some() {
                    old.cookie = cookie;
                    self.by_cookie.extend(cookie.map(|c| (c, name.clone())));
                }
                return;
            }
            if old.inode.is_some() {
                self.present -= 1;
            }
            if let Some(cookie) = old.cookie.take() {
                self.by_cookie.remove(&cookie);
            }
        }
        self.present += usize::from(inode.is_some());
        let cookie = cookie.filter(|_| inode.is_some());
        self.by_cookie.extend(cookie.map(|c| (c, name.clone())));
        self.entries.insert(name.clone(), Entry { inode, cookie, at });
    }
}

#[cfg(test)]
mod tests;
