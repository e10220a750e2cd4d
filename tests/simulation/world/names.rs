//! An independent model of a volume's namespace: what POSIX and the messages' documentation say, in the simplest way.
//!
//! It shares no code with `metadata/core`, and keeps everything in maps. Times are not modelled.
// tidy: long because it is one independent model of the namespace, to be read beside the core's operations

use bytes::Bytes;
use holdfast_metadata_core::inspect::VolumesEntry;
use holdfast_types::limits::BLOCK_BYTES;
use holdfast_types::{FileName, Generation, InodeId, Sequence, SessionId, Timestamp};
use holdfast_wire::lock::{Lock, LockKind, LockSpace};
use holdfast_wire::namespace::{
    Attributes, DirectoryEntry, FileKind, Mutation, NamespaceError, NewNode, Outcome, Query, RenameMode, SetAttributes,
    XattrMode,
};
use holdfast_wire::open::{Access, OPEN_XATTR, OpenRule};
use std::collections::{BTreeMap, BTreeSet};

/// How far a session may write into a file that it has just created.
const BOUND_FIRST: u64 = 4 << 20;
/// Position of a directory's first entry.
const COOKIE_FIRST: u64 = 3;

pub(super) type Result<T> = std::result::Result<T, NamespaceError>;

/// An inode.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: FileKind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) generation: u64,
    pub(super) parent: InodeId,
    pub(super) entries: BTreeMap<FileName, (InodeId, u64)>,
    cookie_next: u64,
    target: Bytes,
    pub(super) xattrs: BTreeMap<Bytes, Bytes>,
    openers: BTreeMap<SessionId, Access>,
    /// Who may have it open at the same time, and what is made in it; nothing: anybody.
    open: Option<OpenRule>,
    bounds: BTreeMap<SessionId, u64>,
    /// How far sessions may still write that had a bound taken from them.
    late: BTreeMap<SessionId, u64>,
    /// How far sessions that are over may have written.
    stale_bound: u64,
    cuts: u64,
    sparse: bool,
    trim: Option<(u64, u64)>,
    locks: Vec<Held>,
}

/// A lock: among which, whose, from where to where, and what it excludes.
type Held = (LockSpace, (SessionId, u64), (u64, u64), LockKind);

impl Inode {
    fn new(kind: FileKind, mode: u16, uid: u32, gid: u32) -> Self {
        Self {
            kind,
            mode,
            uid,
            gid,
            links: if kind == FileKind::Directory { 2 } else { 1 },
            size: 0,
            generation: 1,
            parent: InodeId(0),
            entries: BTreeMap::new(),
            cookie_next: COOKIE_FIRST,
            target: Bytes::new(),
            xattrs: BTreeMap::new(),
            openers: BTreeMap::new(),
            open: None,
            bounds: BTreeMap::new(),
            late: BTreeMap::new(),
            stale_bound: 0,
            cuts: 0,
            sparse: false,
            trim: None,
            locks: Vec::new(),
        }
    }

    fn opened(&mut self, session: SessionId, access: Access) {
        let held = self.openers.entry(session).or_insert(access);
        *held = (*held).max(access);
    }

    /// Who is in the way of opening it.
    fn holder(&self, session: SessionId, access: Access) -> Option<SessionId> {
        let rule = self.open.filter(|_| self.kind == FileKind::File)?;
        let excludes = |(other, held): &(&SessionId, &Access)| **other != session && rule.excludes(**held, access);
        self.openers.iter().find(excludes).map(|(other, _)| *other)
    }

    fn locked_against(&self, owner: (SessionId, u64), lock: &Lock) -> Option<Held> {
        let excludes = |(space, whose, (start, end), kind): &&Held| {
            let together = *kind == LockKind::Shared && lock.kind == Some(LockKind::Shared);
            *space == lock.space && *whose != owner && !together && *start <= lock.end && lock.start <= *end
        };
        self.locks.iter().filter(excludes).min_by_key(|held| held.1).copied().filter(|_| lock.kind.is_some())
    }

    /// What there was within the range goes, and what is asked for comes.
    fn set_lock(&mut self, owner: (SessionId, u64), lock: &Lock) -> Outcome {
        let in_the_way = self.locked_against(owner, lock).map(|(_, (session, _), ..)| session);
        let conflict = in_the_way.is_some();
        let mine = |held: &Held| (held.0, held.1) == (lock.space, owner);
        let replaced = self.locks.iter().any(|held| mine(held) && held.2.0 <= lock.end && lock.start <= held.2.1);
        if !conflict || lock.space == LockSpace::Whole {
            for held in std::mem::take(&mut self.locks) {
                let (start, end) = held.2;
                if !mine(&held) || end < lock.start || start > lock.end {
                    self.locks.push(held);
                    continue;
                }
                if start < lock.start {
                    self.locks.push((held.0, held.1, (start, lock.start - 1), held.3));
                }
                if end > lock.end {
                    self.locks.push((held.0, held.1, (lock.end + 1, end), held.3));
                }
            }
        }
        if let Some(kind) = lock.kind.filter(|_| !conflict) {
            self.locks.push((lock.space, owner, (lock.start, lock.end), kind));
        }
        // Those of one kind that touch are one.
        self.locks.sort_unstable_by_key(|held| (held.0, held.1, held.2));
        self.locks.dedup_by(|next, held| {
            let touch = next.2.0 <= held.2.1.saturating_add(1);
            let one = touch && (held.0, held.1, held.3) == (next.0, next.1, next.3);
            if one {
                held.2.1 = next.2.1;
            }
            one
        });
        Outcome::Locked { in_the_way, replaced }
    }

    fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    /// Where bytes may have been written at the most.
    fn end(&self) -> u64 {
        let bound = self.bounds.values().chain(self.late.values()).copied().max().unwrap_or(0);
        self.size.max(bound).max(self.stale_bound).max(self.trim.map_or(0, |(_, to)| to))
    }

    fn trim_from(&mut self, from: u64, to: u64) {
        self.trim = Some((self.trim.map_or(from, |(earlier, _)| earlier.min(from)), to));
        self.stale_bound = 0;
        for (session, bound) in std::mem::take(&mut self.bounds) {
            let late = self.late.entry(session).or_default();
            *late = bound.max(*late);
        }
    }

    /// How far a session may have written, which it will not do again.
    fn unbind(&mut self, session: SessionId) -> Option<u64> {
        self.bounds.remove(&session).max(self.late.remove(&session))
    }

    /// Whether somebody may write beyond the size.
    fn may_grow(&self) -> bool {
        self.bounds.values().any(|bound| *bound > self.size)
    }

    /// When nobody may write beyond the size any more, what was written there goes.
    fn settle(&mut self) {
        if self.stale_bound > 0 && !self.may_grow() {
            let stale = std::mem::take(&mut self.stale_bound);
            if stale > self.size {
                self.trim_from(self.size, stale.max(self.end()));
            }
        }
    }
}

/// A session attached to the volume.
#[derive(Clone, Debug, Default)]
struct Session {
    caching: bool,
    told_to_stop: bool,
    event: u64,
    ending: bool,
    read_only: bool,
}

/// What a mutation came to, the first time.
pub(super) type First = (u64, Result<Outcome>);

/// The namespace after some entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) inodes: BTreeMap<InodeId, Inode>,
    next: u64,
    sessions: BTreeMap<SessionId, Session>,
    ended: BTreeSet<SessionId>,
    floors: BTreeMap<SessionId, Sequence>,
    /// How many answers of an ending session are gone already, since one step takes a bounded number.
    answers_gone: BTreeMap<SessionId, usize>,
    /// Never forgotten: a mutation takes effect once.
    pub(super) first: BTreeMap<(SessionId, Sequence), First>,
    /// Inodes that the last entry may have changed.
    pub(super) touched: BTreeSet<InodeId>,
}

impl Names {
    /// Follows a committed entry.
    pub(super) fn apply(&mut self, index: u64, entry: &VolumesEntry) {
        self.touched.clear();
        match entry {
            VolumesEntry::Mutate { session, sequence, answered_below, mutation } => {
                self.mutate(index, (*session, *sequence, *answered_below), mutation);
            }
            VolumesEntry::Attach { session, read_only } => self.attach(*session, *read_only),
            VolumesEntry::Recall { session } => {
                if let Some(row) = self.live(*session).filter(|row| row.caching && !row.told_to_stop) {
                    row.told_to_stop = true;
                    row.event += 1;
                }
            }
            VolumesEntry::StoppedCaching { session, event, open } => {
                let answers = |row: &&mut Session| row.caching && row.told_to_stop && row.event == *event;
                if let Some(row) = self.live(*session).filter(answers) {
                    (row.caching, row.told_to_stop) = (false, false);
                    for (inode, access) in open {
                        if let Some(inode) = self.inodes.get_mut(inode) {
                            inode.opened(*session, *access);
                        }
                    }
                }
            }
            VolumesEntry::StartCaching { session } => self.start_caching(*session),
            VolumesEntry::End { sessions } => {
                for session in sessions {
                    match self.sessions.get_mut(session) {
                        Some(row) => row.ending = true,
                        None => drop(self.ended.insert(*session)),
                    }
                }
            }
            VolumesEntry::EndStep { session, rows } => self.end_step(*session, *rows as usize),
            VolumesEntry::Trimmed(ranges) => {
                for (inode, generation, from, to) in ranges {
                    if let Some(file) = self.inodes.get_mut(inode)
                        && (file.generation, file.trim) == (generation.0, Some((*from, *to)))
                    {
                        file.trim = None;
                        self.touched.insert(*inode);
                    }
                }
            }
            VolumesEntry::Other => {}
        }
    }

    fn live(&mut self, session: SessionId) -> Option<&mut Session> {
        self.sessions.get_mut(&session).filter(|row| !row.ending)
    }

    /// One that comes while another session caches, or is not taken apart yet, waits and comes again.
    fn attach(&mut self, session: SessionId, read_only: bool) {
        if self.sessions.contains_key(&session) || self.ended.contains(&session) {
            return;
        }
        if self.sessions.values().any(|other| other.caching || other.ending) {
            return;
        }
        if self.inodes.is_empty() {
            let mut root = Inode::new(FileKind::Directory, 0o755, 0, 0);
            root.parent = InodeId::ROOT;
            self.inodes.insert(InodeId::ROOT, root);
            self.next = InodeId::ROOT.0 + 1;
            self.touched.insert(InodeId::ROOT);
        }
        let caching = self.sessions.is_empty();
        self.sessions.insert(session, Session { caching, read_only, ..Session::default() });
    }

    fn start_caching(&mut self, session: SessionId) {
        let alone = self.sessions.len() == 1;
        let Some(row) = self.live(session).filter(|row| alone && !row.caching) else { return };
        row.caching = true;
        row.told_to_stop = false;
        row.event += 1;
    }

    /// What an ended session held goes: its locks first, what it has open, then its bounds, in the order of inodes.
    fn end_step(&mut self, session: SessionId, rows: usize) {
        if !self.sessions.contains_key(&session) {
            return;
        }
        let mut left = rows.max(1);
        let ids: Vec<InodeId> = self.inodes.keys().copied().collect();
        for inode in self.inodes.values_mut() {
            // They are in the order of their keys.
            inode.locks.retain(|held| {
                let goes = left > 0 && held.1.0 == session;
                left -= usize::from(goes);
                !goes
            });
        }
        for id in &ids {
            if left > 0 && self.inodes.get(id).is_some_and(|inode| inode.openers.contains_key(&session)) {
                self.close(*id, session);
                left -= 1;
            }
        }
        for id in &ids {
            if left > 0
                && let Some(inode) = self.inodes.get_mut(id)
                && let Some(bound) = inode.unbind(session)
            {
                inode.stale_bound = inode.stale_bound.max(bound);
                inode.settle();
                self.touched.insert(*id);
                left -= 1;
            }
        }
        let floor = self.floors.get(&session).copied().unwrap_or_default();
        let answers = self.first.keys().filter(|(of, sequence)| *of == session && *sequence >= floor).count();
        let gone = self.answers_gone.entry(session).or_default();
        let taken = left.min(answers - *gone);
        *gone += taken;
        if left > taken {
            self.answers_gone.remove(&session);
            self.sessions.remove(&session);
            self.ended.insert(session);
        }
    }

    fn mutate(
        &mut self,
        index: u64,
        (session, sequence, answered_below): (SessionId, Sequence, Sequence),
        mutation: &Mutation,
    ) {
        let Some(row) = self.live(session) else { return };
        let (read_only, caching) = (row.read_only, row.caching);
        let floor = self.floors.get(&session).copied().unwrap_or_default().max(answered_below);
        if sequence < floor {
            return;
        }
        if self.first.contains_key(&(session, sequence)) {
            self.floors.insert(session, floor);
            return;
        }
        let waits = |file: &Inode| {
            let elsewhere = file.bounds.iter().any(|(holder, bound)| *holder != session && *bound > file.size);
            file.trim.is_some() || !caching && elsewhere
        };
        if let Mutation::Reserve { inode, generation, .. } = mutation
            && self.inodes.get(inode).is_some_and(|file| file.generation == generation.0 && waits(file))
        {
            // It waits, and comes again.
            return;
        }
        let result = if read_only { Err(NamespaceError::ReadOnly) } else { self.change(session, caching, mutation) };
        self.floors.insert(session, floor);
        self.first.insert((session, sequence), (index, result));
    }

    fn change(&mut self, session: SessionId, caching: bool, mutation: &Mutation) -> Result<Outcome> {
        match mutation {
            Mutation::Create { parent, name, node, mode, umask, uid, gid, exclusive, open } => {
                let inode = Self::made(node, *mode & !*umask, *uid, *gid);
                self.create((session, caching), (*parent, name), inode, *exclusive, *open)
            }
            Mutation::Link { inode, parent, name } => self.link(session, *inode, *parent, name),
            Mutation::Unlink { parent, name, open } => self.unlink(session, *parent, name, *open),
            Mutation::RemoveDirectory { parent, name } => self.remove_directory(session, *parent, name),
            Mutation::Rename { from_parent, from_name, to_parent, to_name, mode, open } => {
                self.rename(session, (*from_parent, from_name), (*to_parent, to_name), *mode, *open)
            }
            Mutation::SetAttributes { inode, set } => {
                self.may_truncate(session, caching, *inode, set)?;
                self.set_attributes(session, *inode, set)
            }
            Mutation::Reserve { inode, generation, bound, .. } => {
                let file = self.file(*inode)?;
                if file.generation != generation.0 {
                    return Err(NamespaceError::Stale);
                }
                let held = file.bounds.entry(session).or_default();
                *held = (*held).max(*bound);
                self.answer(session, *inode)
            }
            Mutation::Publish { inode, generation, size, release, clear_set_ids, sparse, .. } => {
                self.publish(session, *inode, generation.0, (*size, *release, *clear_set_ids, *sparse))
            }
            // Times are not compared.
            Mutation::SetAccessTimes { .. } => Ok(Outcome::Done),
            Mutation::Open { inode, access } => self.open(session, caching, *inode, *access),
            Mutation::Close { inode, keep_reading } => {
                match self.inodes.get_mut(inode).and_then(|found| found.openers.get_mut(&session)) {
                    Some(access) if *keep_reading => *access = Access::Read,
                    _ => self.close(*inode, session),
                }
                Ok(Outcome::Done)
            }
            Mutation::SetXattr { inode, name, value, mode } if name == OPEN_XATTR => {
                self.set_rule(*inode, value, *mode)
            }
            Mutation::SetXattr { inode, name, value, mode } => {
                let xattrs = &mut self.inode(*inode)?.xattrs;
                match (mode, xattrs.contains_key(name)) {
                    (XattrMode::Create, true) => return Err(NamespaceError::Exists),
                    (XattrMode::Replace, false) => return Err(NamespaceError::NoAttribute),
                    _ => {}
                }
                xattrs.insert(name.clone(), value.clone());
                Ok(Outcome::Done)
            }
            Mutation::RemoveXattr { inode, name } => match self.inode(*inode)?.xattrs.remove(name) {
                Some(_) => Ok(Outcome::Done),
                None => Err(NamespaceError::NoAttribute),
            },
            Mutation::CreateUnnamed { .. } | Mutation::SetAcl { .. } => {
                unreachable!("scripts make no unnamed files and no access lists")
            }
            Mutation::SetLock { inode, lock } => match self.inode(*inode)? {
                file if file.kind == FileKind::File => Ok(file.set_lock((session, lock.owner), lock)),
                _ => Err(NamespaceError::Invalid),
            },
        }
    }

    // ---- parts ----

    fn inode(&mut self, inode: InodeId) -> Result<&mut Inode> {
        self.touched.insert(inode);
        self.inodes.get_mut(&inode).ok_or(NamespaceError::Stale)
    }

    fn file(&mut self, inode: InodeId) -> Result<&mut Inode> {
        let found = self.inode(inode)?;
        match found.kind {
            FileKind::File => Ok(found),
            FileKind::Directory => Err(NamespaceError::IsDirectory),
            _ => Err(NamespaceError::Invalid),
        }
    }

    /// A directory that names can be made in and removed from.
    fn directory(&mut self, inode: InodeId) -> Result<&mut Inode> {
        let found = self.inode(inode)?;
        if !found.is_directory() {
            return Err(NamespaceError::NotDirectory);
        }
        if found.links == 0 { Err(NamespaceError::NotFound) } else { Ok(found) }
    }

    fn entry(&self, parent: InodeId, name: &FileName) -> Option<InodeId> {
        self.inodes.get(&parent)?.entries.get(name).map(|(inode, _)| *inode)
    }

    fn is_directory(&self, inode: InodeId) -> bool {
        self.inodes.get(&inode).is_some_and(Inode::is_directory)
    }

    fn answer(&self, session: SessionId, inode: InodeId) -> Result<Outcome> {
        let attributes = self.attributes(session, inode).ok_or(NamespaceError::Stale)?;
        Ok(Outcome::Attributes { attributes, lease: None })
    }

    /// Attributes without times.
    pub(super) fn attributes(&self, session: SessionId, inode: InodeId) -> Option<Attributes> {
        let found = self.inodes.get(&inode)?;
        Some(describe(session, inode, found))
    }

    fn add_name(&mut self, parent: InodeId, name: &FileName, inode: InodeId) {
        let subdirectory = self.is_directory(inode);
        let directory = self.inodes.get_mut(&parent).expect("checked before");
        directory.entries.insert(name.clone(), (inode, directory.cookie_next));
        directory.cookie_next += 1;
        directory.links += u32::from(subdirectory);
        self.touched.insert(parent);
    }

    fn drop_name(&mut self, parent: InodeId, name: &FileName) {
        let Some((inode, _)) = self.inodes.get_mut(&parent).and_then(|d| d.entries.remove(name)) else { return };
        let subdirectory = self.is_directory(inode);
        self.inodes.get_mut(&parent).expect("it had the name").links -= u32::from(subdirectory);
        self.touched.insert(parent);
    }

    /// An inode loses a name. Returns its last attributes, and whether it stays without a name.
    fn lose(&mut self, session: SessionId, inode: InodeId, open_here: bool) -> (Attributes, bool) {
        self.touched.insert(inode);
        let found = self.inodes.get_mut(&inode).expect("it had a name");
        found.links = if found.is_directory() { 0 } else { found.links - 1 };
        if found.links == 0 && open_here {
            found.opened(session, Access::Read);
        }
        let orphan = found.links == 0 && !found.openers.is_empty();
        let attributes = describe(session, inode, found);
        if found.links == 0 && !orphan {
            self.inodes.remove(&inode);
        }
        (attributes, orphan)
    }

    fn close(&mut self, inode: InodeId, session: SessionId) {
        self.touched.insert(inode);
        if let Some(found) = self.inodes.get_mut(&inode) {
            found.openers.remove(&session);
            if found.links == 0 && found.openers.is_empty() {
                self.inodes.remove(&inode);
            }
        }
    }

    // ---- who may open ----

    fn open(&mut self, session: SessionId, caching: bool, inode: InodeId, access: Access) -> Result<Outcome> {
        let found = self.inode(inode)?;
        if let Some(holder) = found.holder(session, access).filter(|_| !caching) {
            return Ok(Outcome::OpenElsewhere { inode, holder });
        }
        found.opened(session, access);
        self.answer(session, inode)
    }

    fn set_rule(&mut self, inode: InodeId, value: &Bytes, mode: XattrMode) -> Result<Outcome> {
        let found = self.inode(inode)?;
        match (mode, found.open.is_some()) {
            (XattrMode::Create, true) => return Err(NamespaceError::Exists),
            (XattrMode::Replace, false) => return Err(NamespaceError::NoAttribute),
            _ => {}
        }
        let rule = std::str::from_utf8(value).expect("scripts write rules").parse();
        found.open = Some(rule.expect("scripts write rules"));
        Ok(Outcome::Done)
    }

    /// A truncation by name is a write.
    fn may_truncate(&mut self, session: SessionId, caching: bool, inode: InodeId, set: &SetAttributes) -> Result<()> {
        let found = self.inode(inode)?;
        let writes = caching || found.openers.get(&session) == Some(&Access::Write);
        let busy = set.size.is_some() && !writes && found.holder(session, Access::Write).is_some();
        if busy { Err(NamespaceError::Busy) } else { Ok(()) }
    }

    // ---- operations ----

    fn made(node: &NewNode, mode: u16, uid: u32, gid: u32) -> Inode {
        match node {
            NewNode::File => Inode::new(FileKind::File, mode, uid, gid),
            NewNode::Directory => Inode::new(FileKind::Directory, mode, uid, gid),
            NewNode::Symlink(target) => {
                let mut inode = Inode::new(FileKind::Symlink, 0o777, uid, gid);
                (inode.size, inode.target) = (target.len() as u64, target.clone());
                inode
            }
            NewNode::Fifo => Inode::new(FileKind::Fifo, mode, uid, gid),
            NewNode::Socket => Inode::new(FileKind::Socket, mode, uid, gid),
            NewNode::CharDevice(_) | NewNode::BlockDevice(_) => unreachable!("scripts make no devices"),
        }
    }

    fn create(
        &mut self,
        (session, caching): (SessionId, bool),
        (parent, name): (InodeId, &FileName),
        mut inode: Inode,
        exclusive: bool,
        open: Option<Access>,
    ) -> Result<Outcome> {
        let inherited = self.directory(parent)?.open;
        if let Some(there) = self.entry(parent, name) {
            if exclusive {
                return Err(NamespaceError::Exists);
            }
            let found = self.inode(there)?;
            if let Some(access) = open.filter(|_| found.kind == FileKind::File && !caching) {
                if let Some(holder) = found.holder(session, access) {
                    return Ok(Outcome::OpenElsewhere { inode: there, holder });
                }
                found.opened(session, access);
            }
            let attributes = describe(session, there, found);
            return Ok(Outcome::Created { attributes, new: false, inherited: false, lease: None });
        }
        let id = InodeId(self.next);
        self.next += 1;
        inode.open = inherited;
        if let Some(access) = open.filter(|_| inode.kind == FileKind::File) {
            inode.bounds.insert(session, BOUND_FIRST);
            if !caching {
                inode.opened(session, access);
            }
        }
        if inode.is_directory() {
            inode.parent = parent;
        }
        let attributes = describe(session, id, &inode);
        self.inodes.insert(id, inode);
        self.touched.insert(id);
        self.add_name(parent, name, id);
        Ok(Outcome::Created { attributes, new: true, inherited: false, lease: None })
    }

    fn link(&mut self, session: SessionId, inode: InodeId, parent: InodeId, name: &FileName) -> Result<Outcome> {
        self.directory(parent)?;
        let found = self.inode(inode)?;
        if found.is_directory() {
            return Err(NamespaceError::NotPermitted);
        }
        if found.links == 0 {
            return Err(NamespaceError::NotFound);
        }
        if self.entry(parent, name).is_some() {
            return Err(NamespaceError::Exists);
        }
        self.inode(inode)?.links += 1;
        self.add_name(parent, name, inode);
        self.answer(session, inode)
    }

    fn unlink(
        &mut self,
        session: SessionId,
        parent: InodeId,
        name: &FileName,
        open: Option<InodeId>,
    ) -> Result<Outcome> {
        self.directory(parent)?;
        let inode = self.entry(parent, name).ok_or(NamespaceError::NotFound)?;
        if self.is_directory(inode) {
            return Err(NamespaceError::IsDirectory);
        }
        self.drop_name(parent, name);
        let (attributes, orphan) = self.lose(session, inode, open == Some(inode));
        Ok(Outcome::Removed { attributes, orphan })
    }

    fn remove_directory(&mut self, session: SessionId, parent: InodeId, name: &FileName) -> Result<Outcome> {
        self.directory(parent)?;
        let inode = self.entry(parent, name).ok_or(NamespaceError::NotFound)?;
        if !self.is_directory(inode) {
            return Err(NamespaceError::NotDirectory);
        }
        if !self.inode(inode)?.entries.is_empty() {
            return Err(NamespaceError::NotEmpty);
        }
        self.drop_name(parent, name);
        let (attributes, orphan) = self.lose(session, inode, false);
        Ok(Outcome::Removed { attributes, orphan })
    }

    /// Whether `inode` lies in `directory`, or is it.
    fn is_below(&self, mut inode: InodeId, directory: InodeId) -> bool {
        loop {
            if inode == directory {
                return true;
            }
            match self.inodes.get(&inode) {
                Some(found) if inode != InodeId::ROOT => inode = found.parent,
                _ => return false,
            }
        }
    }

    fn rename(
        &mut self,
        session: SessionId,
        from: (InodeId, &FileName),
        to: (InodeId, &FileName),
        mode: RenameMode,
        open: Option<InodeId>,
    ) -> Result<Outcome> {
        self.directory(from.0)?;
        self.directory(to.0)?;
        let moving = self.entry(from.0, from.1).ok_or(NamespaceError::NotFound)?;
        let there = self.entry(to.0, to.1);
        let is_directory = self.is_directory(moving);
        if is_directory && self.is_below(to.0, moving) {
            return Err(NamespaceError::Invalid);
        }
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => return Err(NamespaceError::Exists),
            (RenameMode::Exchange, None) => return Err(NamespaceError::NotFound),
            (_, Some(there)) if there == moving => {
                let moved = self.attributes(session, moving).ok_or(NamespaceError::Stale)?;
                return Ok(Outcome::Renamed { moved, replaced: None, orphan: false });
            }
            (RenameMode::Exchange, Some(there)) => return self.exchange(session, (from, moving), (to, there)),
            (RenameMode::Replace | RenameMode::NoReplace, _) => {}
        }
        let mut replaced = None;
        let mut cookie = None;
        if let Some(there) = there {
            match (is_directory, self.is_directory(there)) {
                (true, false) => return Err(NamespaceError::NotDirectory),
                (false, true) => return Err(NamespaceError::IsDirectory),
                (true, true) if !self.inode(there)?.entries.is_empty() => return Err(NamespaceError::NotEmpty),
                _ => {}
            }
            cookie = self.inodes[&to.0].entries.get(to.1).map(|(_, cookie)| *cookie);
            self.drop_name(to.0, to.1);
            replaced = Some(self.lose(session, there, open == Some(there)));
        }
        self.drop_name(from.0, from.1);
        let next = self.inodes[&to.0].cookie_next;
        self.add_name(to.0, to.1, moving);
        if let Some(cookie) = cookie {
            // The name keeps its position.
            let directory = self.inodes.get_mut(&to.0).expect("checked before");
            directory.cookie_next = next;
            directory.entries.insert(to.1.clone(), (moving, cookie));
        }
        if is_directory {
            self.inode(moving)?.parent = to.0;
        }
        self.touched.insert(moving);
        let moved = self.attributes(session, moving).ok_or(NamespaceError::Stale)?;
        let (replaced, orphan) = replaced.map_or((None, false), |(attributes, orphan)| (Some(attributes), orphan));
        Ok(Outcome::Renamed { moved, replaced, orphan })
    }

    fn exchange(
        &mut self,
        session: SessionId,
        (from, moving): ((InodeId, &FileName), InodeId),
        (to, there): ((InodeId, &FileName), InodeId),
    ) -> Result<Outcome> {
        if self.is_directory(there) && self.is_below(from.0, there) {
            return Err(NamespaceError::Invalid);
        }
        for (place, inode, other) in [(to, moving, there), (from, there, moving)] {
            let (comes, goes) = (self.is_directory(inode), self.is_directory(other));
            let directory = self.directory(place.0)?;
            if let Some(entry) = directory.entries.get_mut(place.1) {
                entry.0 = inode;
            }
            directory.links = directory.links + u32::from(comes) - u32::from(goes);
            if comes {
                self.inode(inode)?.parent = place.0;
            }
            self.touched.insert(inode);
        }
        let moved = self.attributes(session, moving).ok_or(NamespaceError::Stale)?;
        let replaced = self.attributes(session, there);
        Ok(Outcome::Renamed { moved, replaced, orphan: false })
    }

    fn set_attributes(&mut self, session: SessionId, inode: InodeId, set: &SetAttributes) -> Result<Outcome> {
        if let Some(size) = set.size {
            let file = self.file(inode)?;
            let end = file.end();
            if size == 0 && end > 0 {
                file.generation += 1;
                file.trim = None;
                file.stale_bound = 0;
                file.bounds.retain(|holder, _| *holder == session);
                file.late.clear();
            } else if size < end && !(size >= file.size && file.bounds.is_empty() && file.late.is_empty()) {
                let from = if file.stale_bound > file.size && !file.may_grow() { file.size.min(size) } else { size };
                file.unbind(session);
                file.trim_from(from, end);
            }
            file.cuts += u64::from(size < file.size);
            file.sparse = size > 0 && (file.sparse || size.div_ceil(BLOCK_BYTES) > file.size.div_ceil(BLOCK_BYTES));
            file.size = size;
        }
        let found = self.inode(inode)?;
        if set.clear_set_ids && !found.is_directory() {
            found.mode = without_set_ids(found.mode);
        }
        found.mode = set.mode.unwrap_or(found.mode);
        found.uid = set.uid.unwrap_or(found.uid);
        found.gid = set.gid.unwrap_or(found.gid);
        self.answer(session, inode)
    }

    fn publish(
        &mut self,
        session: SessionId,
        inode: InodeId,
        generation: u64,
        (size, release, clear_set_ids, sparse): (u64, bool, bool, bool),
    ) -> Result<Outcome> {
        let file = self.file(inode)?;
        if file.generation == generation {
            if size > file.size {
                if file.bounds.get(&session).copied().unwrap_or(0) < size {
                    return Err(NamespaceError::Stale);
                }
                file.size = size;
            }
            file.sparse |= sparse;
            if release {
                file.unbind(session);
            }
            file.settle();
        }
        if clear_set_ids {
            file.mode = without_set_ids(file.mode);
        }
        self.answer(session, inode)
    }

    /// Whether another owner holds what excludes a lock.
    pub(super) fn is_locked_against(&self, session: SessionId, inode: InodeId, lock: &Lock) -> bool {
        self.inodes.get(&inode).is_some_and(|inode| inode.locked_against((session, lock.owner), lock).is_some())
    }

    /// Whether nobody is in the way of opening a file.
    pub(super) fn may_open(&self, session: SessionId, inode: InodeId, access: Access) -> bool {
        self.inodes.get(&inode).is_none_or(|found| found.holder(session, access).is_none())
    }

    /// What a read answers in this state.
    pub(super) fn query(&self, session: SessionId, query: &Query) -> Result<Outcome> {
        let find = |inode: &InodeId| self.inodes.get(inode).ok_or(NamespaceError::Stale);
        match query {
            Query::Lookup { parent, name } => {
                if !find(parent)?.is_directory() {
                    return Err(NamespaceError::NotDirectory);
                }
                let inode = self.entry(*parent, name).ok_or(NamespaceError::NotFound)?;
                let attributes = self.attributes(session, inode).ok_or(NamespaceError::Stale)?;
                Ok(Outcome::Entry { attributes, lease: None })
            }
            Query::GetAttributes { inode } | Query::AwaitTrim { inode } => self.answer(session, *inode),
            // Which of several locks is shown is not modelled, only whether there is one.
            Query::TestLock { inode, lock } => {
                let conflict = find(inode)?.locked_against((session, lock.owner), lock);
                Ok(Outcome::Locked { in_the_way: conflict.map(|(_, (session, _), ..)| session), replaced: false })
            }
            // Whether somebody is in the way is looked at by the checker: it may be told to ask again in any case.
            Query::AwaitOpen { inode, .. } => find(inode).map(|_| Outcome::Done),
            Query::AwaitLock { inode, .. } => find(inode).map(|_| Outcome::Done),
            Query::ReadDirectory { inode, after, limit, plus } => {
                let directory = find(inode)?;
                if !directory.is_directory() {
                    return Err(NamespaceError::NotDirectory);
                }
                let mut entries: Vec<DirectoryEntry> = directory
                    .entries
                    .iter()
                    .filter(|(_, (_, cookie))| cookie > after)
                    .map(|(name, (inode, cookie))| DirectoryEntry {
                        name: name.clone(),
                        inode: *inode,
                        kind: self.inodes[inode].kind,
                        cookie: *cookie,
                        attributes: plus.then(|| describe(session, *inode, &self.inodes[inode])),
                    })
                    .collect();
                entries.sort_by_key(|entry| entry.cookie);
                let end = entries.len() <= *limit as usize;
                entries.truncate(*limit as usize);
                Ok(Outcome::Directory { entries, end, parent: directory.parent, lease: None })
            }
            Query::ReadLink { inode } => match find(inode)? {
                found if found.kind == FileKind::Symlink => Ok(Outcome::Bytes(found.target.clone())),
                _ => Err(NamespaceError::Invalid),
            },
            Query::GetXattr { inode, name } if name == OPEN_XATTR => {
                let rule = find(inode)?.open.unwrap_or_default();
                match self.inodes[inode].kind {
                    FileKind::File | FileKind::Directory => Ok(Outcome::Bytes(rule.to_string().into())),
                    _ => Err(NamespaceError::NoAttribute),
                }
            }
            Query::GetXattr { inode, name } => {
                find(inode)?.xattrs.get(name).cloned().map(Outcome::Bytes).ok_or(NamespaceError::NoAttribute)
            }
            Query::ListXattrs { inode } => Ok(Outcome::Names(find(inode)?.xattrs.keys().cloned().collect())),
            Query::StatVolume => Ok(Outcome::Done),
        }
    }
}

fn without_set_ids(mode: u16) -> u16 {
    let mode = mode & !0o4000;
    if mode & 0o0010 == 0 { mode } else { mode & !0o2000 }
}

fn describe(session: SessionId, inode: InodeId, found: &Inode) -> Attributes {
    let never = Timestamp::default();
    Attributes {
        inode,
        kind: found.kind,
        mode: found.mode,
        links: found.links,
        uid: found.uid,
        gid: found.gid,
        rdev: 0,
        size: if found.is_directory() { found.entries.len() as u64 } else { found.size },
        atime: never,
        mtime: never,
        ctime: never,
        btime: never,
        generation: Generation(found.generation),
        trim_from: found.trim.map(|(from, _)| from),
        size_bound: found.bounds.get(&session).copied().unwrap_or(0),
        parent: if found.is_directory() { found.parent } else { InodeId(0) },
        cuts: found.cuts,
        sparse: found.sparse,
    }
}
