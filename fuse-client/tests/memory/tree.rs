//! Inodes, names and bytes.

use bytes::Bytes;
use holdfast_client::{Call, ClientError, Data, HandleId, OpenMode, Reply, Seek, ZeroMode};
use holdfast_types::{FileName, Generation, InodeId, Timestamp};
use holdfast_wire::acl;
use holdfast_wire::namespace::{
    Attributes, DirectoryEntry, FileKind, NamespaceError as E, NewNode, RenameMode, SetAttributes, SetTime,
    VolumeUsage, XattrMode,
};
use std::collections::BTreeMap;
use std::time::SystemTime;

const PAGE: u64 = 4096;

struct Node {
    attributes: Attributes,
    pages: BTreeMap<u64, Box<[u8]>>,
    target: Bytes,
    xattrs: BTreeMap<Bytes, Bytes>,
    opens: u32,
}

pub struct Tree {
    nodes: BTreeMap<InodeId, Node>,
    entries: BTreeMap<(InodeId, FileName), (InodeId, u64)>,
    handles: BTreeMap<HandleId, (InodeId, OpenMode)>,
    next: u64,
    locks: super::locks::Locks,
}

type Served = Result<Reply, ClientError>;

fn refuse<T>(error: E) -> Result<T, ClientError> {
    Err(ClientError::Namespace(error))
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

impl Tree {
    pub fn new() -> Self {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            entries: BTreeMap::new(),
            handles: BTreeMap::new(),
            next: 100,
            locks: Default::default(),
        };
        tree.add(InodeId::ROOT, FileKind::Directory, 0o755, (0, 0), InodeId::ROOT);
        tree
    }

    pub fn locks(&self) -> &super::locks::Locks {
        &self.locks
    }

    pub fn open_handles(&self) -> usize {
        self.handles.len()
    }

    fn add(&mut self, inode: InodeId, kind: FileKind, mode: u16, (uid, gid): (u32, u32), parent: InodeId) {
        let now = now();
        let attributes = Attributes {
            inode,
            kind,
            mode,
            links: if kind == FileKind::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            size: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            generation: Generation(1),
            cuts: 0,
            sparse: false,
            trim_from: None,
            size_bound: 0,
            parent: if kind == FileKind::Directory { parent } else { InodeId(0) },
        };
        let node = Node { attributes, pages: BTreeMap::new(), target: Bytes::new(), xattrs: BTreeMap::new(), opens: 0 };
        self.nodes.insert(inode, node);
    }

    fn node(&mut self, inode: InodeId) -> Result<&mut Node, ClientError> {
        self.nodes.get_mut(&inode).ok_or(ClientError::Namespace(E::Stale))
    }

    fn attributes(&mut self, inode: InodeId) -> Served {
        Ok(Reply::Attributes(self.node(inode)?.attributes.clone()))
    }

    fn entry(&self, parent: InodeId, name: &FileName) -> Result<InodeId, ClientError> {
        self.entries.get(&(parent, name.clone())).map(|(inode, _)| *inode).ok_or(ClientError::Namespace(E::NotFound))
    }

    fn put_entry(&mut self, parent: InodeId, name: FileName, inode: InodeId) {
        self.next += 1;
        let cookie = self.next;
        self.entries.insert((parent, name), (inode, cookie));
        self.touch(parent, 1);
    }

    fn take_entry(&mut self, parent: InodeId, name: &FileName) {
        self.entries.remove(&(parent, name.clone()));
        self.touch(parent, -1);
    }

    fn touch(&mut self, directory: InodeId, entries: i64) {
        if let Some(node) = self.nodes.get_mut(&directory) {
            node.attributes.size = node.attributes.size.checked_add_signed(entries).expect("as many as were added");
            (node.attributes.mtime, node.attributes.ctime) = (now(), now());
        }
    }

    /// A name less; the node goes when nothing holds it.
    fn unlinked(&mut self, inode: InodeId) -> Option<Box<Attributes>> {
        let node = self.nodes.get_mut(&inode)?;
        node.attributes.links -= 1;
        node.attributes.ctime = now();
        let gone = node.attributes.links == 0 && node.opens == 0;
        gone.then(|| self.nodes.remove(&inode)).flatten().map(|node| Box::new(node.attributes))
    }

    /// A directory goes; `parent` counted it.
    fn directory_gone(&mut self, inode: InodeId, parent: InodeId) -> Option<Box<Attributes>> {
        let gone = self.nodes.remove(&inode).map(|node| Box::new(Attributes { links: 0, ..node.attributes }));
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.attributes.links -= 1;
        }
        gone
    }

    fn is_empty(&self, directory: InodeId) -> bool {
        !self.entries.keys().any(|(parent, _)| *parent == directory)
    }

    // tidy: long because it is one table, a few lines for each call
    pub fn serve(&mut self, call: Call) -> Served {
        match call {
            Call::Mount | Call::Unmount | Call::SyncAll | Call::Flush { .. } => Ok(Reply::Done),
            Call::Lookup { parent, name } => self.entry(parent, &name).and_then(|inode| self.attributes(inode)),
            Call::GetAttributes { inode } => self.attributes(inode),
            Call::SetAttributes { inode, set } => self.set_attributes(inode, &set),
            Call::Create { parent, name, node, mode, umask, uid, gid, exclusive, open } => {
                assert!(exclusive, "the adapter always creates exclusively");
                self.create(parent, name, node, mode & !umask, (uid, gid), open)
            }
            Call::CreateUnnamed { mode, umask, uid, gid, open, .. } => {
                self.next += 1;
                let inode = InodeId(self.next);
                self.add(inode, FileKind::File, mode & !umask, (uid, gid), InodeId(0));
                self.node(inode)?.attributes.links = 0;
                let handle = self.open(inode, open)?;
                let attributes = self.node(inode)?.attributes.clone();
                Ok(Reply::Created { attributes, new: true, handle: Some(handle) })
            }
            // Without what a list means for modes: the real service does that.
            Call::SetAcl { inode, default, value, .. } => {
                let name = Bytes::from_static(acl::attribute(default));
                let xattrs = &mut self.node(inode)?.xattrs;
                match value {
                    Some(value) => drop(xattrs.insert(name, value)),
                    None => drop(xattrs.remove(&name).ok_or(E::NoAttribute)?),
                }
                Ok(Reply::Done)
            }
            Call::Link { inode, parent, name } => {
                if self.entry(parent, &name).is_ok() {
                    return refuse(E::Exists);
                }
                let node = self.node(inode)?;
                node.attributes.links += 1;
                node.attributes.ctime = now();
                self.put_entry(parent, name, inode);
                self.attributes(inode)
            }
            Call::Unlink { parent, name } => {
                let inode = self.entry(parent, &name)?;
                if self.node(inode)?.attributes.kind == FileKind::Directory {
                    return refuse(E::IsDirectory);
                }
                self.take_entry(parent, &name);
                Ok(Reply::Removed(self.unlinked(inode)))
            }
            Call::RemoveDirectory { parent, name } => {
                let inode = self.entry(parent, &name)?;
                if self.node(inode)?.attributes.kind != FileKind::Directory {
                    return refuse(E::NotDirectory);
                }
                if !self.is_empty(inode) {
                    return refuse(E::NotEmpty);
                }
                self.take_entry(parent, &name);
                Ok(Reply::Removed(self.directory_gone(inode, parent)))
            }
            Call::Rename { from_parent, from_name, to_parent, to_name, mode } => {
                self.rename((from_parent, from_name), (to_parent, to_name), mode)
            }
            Call::ReadLink { inode } => Ok(Reply::Bytes(self.node(inode)?.target.clone())),
            Call::Open { inode, mode } => {
                let handle = self.open(inode, mode)?;
                let attributes = self.node(inode)?.attributes.clone();
                Ok(Reply::Opened { handle, attributes, keep_cache: true })
            }
            Call::Release { handle } => self.release(handle),
            Call::Read { .. } | Call::Write { .. } | Call::Zero { .. } | Call::Seek { .. } => self.data(call),
            Call::Fsync { inode, .. } => self.node(inode).map(|_| Reply::Done),
            Call::ReadDirectory { inode, after, limit, plus } => self.list(inode, after, limit, plus),
            Call::GetXattr { .. } | Call::ListXattrs { .. } | Call::SetXattr { .. } | Call::RemoveXattr { .. } => {
                self.xattr(call)
            }
            Call::SetLock { inode, lock, .. } => Ok(Reply::Locked { granted: self.locks.set(inode, &lock) }),
            Call::TestLock { inode, lock } => Ok(Reply::Conflict(self.locks.conflict(inode, &lock))),
            Call::StatVolume => Ok(Reply::Usage(VolumeUsage {
                bytes_used: 1 << 20,
                inodes_used: self.nodes.len() as u64,
                bytes_max: 1 << 40,
                bytes_free: (1 << 40) - (1 << 20),
                bytes_available: 1 << 39,
                inodes_max: 1 << 20,
            })),
        }
    }

    fn create(
        &mut self,
        parent: InodeId,
        name: FileName,
        new: NewNode,
        mode: u16,
        mut owner: (u32, u32),
        open: Option<OpenMode>,
    ) -> Served {
        if self.entry(parent, &name).is_ok() {
            return refuse(E::Exists);
        }
        let (kind, rdev) = match new {
            NewNode::File => (FileKind::File, 0),
            NewNode::Directory => (FileKind::Directory, 0),
            NewNode::Symlink(_) => (FileKind::Symlink, 0),
            NewNode::Fifo => (FileKind::Fifo, 0),
            NewNode::Socket => (FileKind::Socket, 0),
            NewNode::CharDevice(number) => (FileKind::CharDevice, number),
            NewNode::BlockDevice(number) => (FileKind::BlockDevice, number),
        };
        let directory = self.node(parent)?;
        let mut mode = mode;
        if directory.attributes.mode & 0o2000 != 0 {
            owner.1 = directory.attributes.gid;
            mode |= if kind == FileKind::Directory { 0o2000 } else { 0 };
        }
        if kind == FileKind::Directory {
            directory.attributes.links += 1;
        }
        self.next += 1;
        let inode = InodeId(self.next);
        self.add(inode, kind, mode, owner, parent);
        let node = self.node(inode)?;
        node.attributes.rdev = rdev;
        if let NewNode::Symlink(target) = new {
            node.attributes.size = target.len() as u64;
            node.target = target;
        }
        self.put_entry(parent, name, inode);
        let handle = open.map(|mode| self.open(inode, mode)).transpose()?;
        Ok(Reply::Created { attributes: self.node(inode)?.attributes.clone(), new: true, handle })
    }

    fn open(&mut self, inode: InodeId, mode: OpenMode) -> Result<HandleId, ClientError> {
        self.node(inode)?.opens += 1;
        self.next += 1;
        self.handles.insert(HandleId(self.next), (inode, mode));
        Ok(HandleId(self.next))
    }

    fn release(&mut self, handle: HandleId) -> Served {
        let Some((inode, _)) = self.handles.remove(&handle) else { return Err(ClientError::BadHandle) };
        let node = self.node(inode)?;
        node.opens -= 1;
        if node.opens == 0 && node.attributes.links == 0 {
            self.nodes.remove(&inode);
        }
        Ok(Reply::Done)
    }

    fn rename(&mut self, from: (InodeId, FileName), to: (InodeId, FileName), mode: RenameMode) -> Served {
        let moved = self.entry(from.0, &from.1)?;
        let target = self.entry(to.0, &to.1).ok();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return refuse(E::Exists),
            (RenameMode::Exchange, None) => return refuse(E::NotFound),
            (RenameMode::Exchange, Some(other)) => {
                self.entries.get_mut(&from).expect("found before").0 = other;
                self.entries.get_mut(&to).expect("found before").0 = moved;
                return Ok(Reply::Removed(None));
            }
            (RenameMode::Replace | RenameMode::NoReplace, _) => {}
        }
        if target == Some(moved) {
            return Ok(Reply::Removed(None));
        }
        let is_directory = self.node(moved)?.attributes.kind == FileKind::Directory;
        let mut gone = None;
        if let Some(target) = target {
            let target_is_directory = self.node(target)?.attributes.kind == FileKind::Directory;
            match (is_directory, target_is_directory) {
                (true, false) => return refuse(E::NotDirectory),
                (false, true) => return refuse(E::IsDirectory),
                (true, true) if !self.is_empty(target) => return refuse(E::NotEmpty),
                _ => {}
            }
            self.take_entry(to.0, &to.1);
            gone = if target_is_directory { self.directory_gone(target, to.0) } else { self.unlinked(target) };
        }
        self.take_entry(from.0, &from.1);
        self.node(moved)?.attributes.ctime = now();
        if is_directory {
            self.node(from.0)?.attributes.links -= 1;
            self.node(to.0)?.attributes.links += 1;
            self.node(moved)?.attributes.parent = to.0;
        }
        self.put_entry(to.0, to.1, moved);
        Ok(Reply::Removed(gone))
    }

    fn set_attributes(&mut self, inode: InodeId, set: &SetAttributes) -> Served {
        let node = self.node(inode)?;
        let now = now();
        let time = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        if let Some(size) = set.size {
            node.cut(size);
            node.attributes.size = size;
            node.attributes.mtime = now;
        }
        if set.clear_set_ids {
            node.clear_set_ids();
        }
        let a = &mut node.attributes;
        a.mode = set.mode.unwrap_or(a.mode);
        a.uid = set.uid.unwrap_or(a.uid);
        a.gid = set.gid.unwrap_or(a.gid);
        a.atime = set.atime.map_or(a.atime, time);
        a.mtime = set.mtime.map_or(a.mtime, time);
        a.ctime = now;
        self.attributes(inode)
    }

    fn data(&mut self, call: Call) -> Served {
        let handle = match &call {
            Call::Read { handle, .. }
            | Call::Write { handle, .. }
            | Call::Zero { handle, .. }
            | Call::Seek { handle, .. } => *handle,
            _ => return Err(ClientError::BadHandle),
        };
        let (inode, mode) = *self.handles.get(&handle).ok_or(ClientError::BadHandle)?;
        let node = self.node(inode)?;
        match call {
            Call::Read { offset, length, .. } => Ok(Reply::Data(node.read(offset, length))),
            Call::Seek { offset, seek, .. } => Ok(Reply::Position(node.seek(offset, seek))),
            Call::Write { offset, data, clear_set_ids, .. } => {
                let offset = if mode.append { node.attributes.size } else { offset };
                node.write(offset, &data);
                if clear_set_ids {
                    node.clear_set_ids();
                }
                Ok(Reply::Written { offset, length: data.len() as u32 })
            }
            Call::Zero { offset, length, mode, .. } => {
                let size = node.attributes.size;
                let end = if mode == ZeroMode::Extend { offset + length } else { size.min(offset + length) };
                node.write(offset, &vec![0; end.saturating_sub(offset) as usize]);
                Ok(Reply::Done)
            }
            _ => Err(ClientError::BadHandle),
        }
    }

    fn list(&mut self, inode: InodeId, after: u64, limit: u32, plus: bool) -> Served {
        let parent = self.node(inode)?.attributes.parent;
        let mut entries: Vec<DirectoryEntry> = self
            .entries
            .iter()
            .filter(|((directory, _), (_, cookie))| *directory == inode && *cookie > after)
            .map(|((_, name), (inode, cookie))| {
                let attributes = &self.nodes[inode].attributes;
                DirectoryEntry {
                    name: name.clone(),
                    inode: *inode,
                    kind: attributes.kind,
                    cookie: *cookie,
                    attributes: plus.then(|| attributes.clone()),
                }
            })
            .collect();
        entries.sort_by_key(|entry| entry.cookie);
        let end = entries.len() <= limit as usize;
        entries.truncate(limit as usize);
        Ok(Reply::Directory { entries, end, parent })
    }

    fn xattr(&mut self, call: Call) -> Served {
        match call {
            Call::GetXattr { inode, name } => self
                .node(inode)?
                .xattrs
                .get(&name)
                .cloned()
                .map(Reply::Bytes)
                .ok_or(ClientError::Namespace(E::NoAttribute)),
            Call::ListXattrs { inode } => Ok(Reply::Names(self.node(inode)?.xattrs.keys().cloned().collect())),
            Call::SetXattr { inode, name, value, mode } => {
                let xattrs = &mut self.node(inode)?.xattrs;
                match (mode, xattrs.contains_key(&name)) {
                    (XattrMode::Create, true) => return refuse(E::Exists),
                    (XattrMode::Replace, false) => return refuse(E::NoAttribute),
                    _ => xattrs.insert(name, value),
                };
                Ok(Reply::Done)
            }
            Call::RemoveXattr { inode, name } => match self.node(inode)?.xattrs.remove(&name) {
                Some(_) => Ok(Reply::Done),
                None => refuse(E::NoAttribute),
            },
            _ => Err(ClientError::BadHandle),
        }
    }
}

impl Node {
    fn clear_set_ids(&mut self) {
        let mode = &mut self.attributes.mode;
        *mode &= !0o4000;
        if *mode & 0o010 != 0 {
            *mode &= !0o2000;
        }
    }

    fn cut(&mut self, size: u64) {
        self.pages.split_off(&size.div_ceil(PAGE));
        if let Some(last) = self.pages.get_mut(&(size / PAGE)) {
            last[(size % PAGE) as usize..].fill(0);
        }
    }

    fn seek(&self, offset: u64, seek: Seek) -> Option<u64> {
        let end = self.attributes.size;
        if offset >= end {
            return None;
        }
        match seek {
            Seek::Data => {
                let page = self.pages.range(offset / PAGE..).next().map(|(page, _)| (page * PAGE).max(offset));
                page.filter(|at| *at < end)
            }
            Seek::Hole => {
                let hole = (offset / PAGE..).find(|page| !self.pages.contains_key(page));
                hole.map(|page| (page * PAGE).max(offset).min(end))
            }
        }
    }

    fn read(&self, offset: u64, length: u32) -> Data {
        let end = self.attributes.size.min(offset.saturating_add(u64::from(length)));
        let mut pieces = Vec::new();
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let take = ((end - at) as usize).min(PAGE as usize - within);
            pieces.push(match self.pages.get(&page) {
                Some(bytes) => Bytes::copy_from_slice(&bytes[within..within + take]),
                None => Bytes::from(vec![0; take]),
            });
            at += take as u64;
        }
        Data { pieces }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let take = rest.len().min(PAGE as usize - within);
            let bytes = self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
            bytes[within..within + take].copy_from_slice(&rest[..take]);
            (at, rest) = (at + take as u64, &rest[take..]);
        }
        self.attributes.size = self.attributes.size.max(at);
        (self.attributes.mtime, self.attributes.ctime) = (now(), now());
    }
}
