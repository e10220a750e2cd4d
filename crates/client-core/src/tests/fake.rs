//! A metadata service and storage in one struct: correct, simple, and strict about what the client must not do.

// tidy: long because it is one service: what each request is answered with, in one place

use bytes::Bytes;
use holdfast_types::limits::{BLOCK_BYTES, CHUNK_BYTES};
use holdfast_types::{
    ChunkIndex, ChunkKey, DiskId, Epoch, FileName, Generation, GroupId, Incarnation, InodeId, LogIndex, MapVersion,
    MemberId, NodeId, OpNumber, Sequence, ServerId, SessionId, ShardId, SnapshotNumber, Term, Timestamp, VolumeId,
};
use holdfast_wire::chunk::{ByteRange, ChunkAnswer, ChunkOp, ChunkRequest, Refusal};
use holdfast_wire::lock::Lock;
use holdfast_wire::map::{ClusterMap, MapUpdate, NodeRecord, View};
use holdfast_wire::metadata::{Answer, Envelope, Event, MetadataError, Request, Response};
use holdfast_wire::namespace::{
    Attributes, DirectoryEntry, FileKind, Mutation, NamespaceError, NewNode, Outcome, Query, SetTime, VolumeRecord,
};
use holdfast_wire::open::{Access, OpenPolicy};
use std::collections::{BTreeMap, BTreeSet};

pub const GROUPS: u32 = 8;
pub const SESSION: SessionId = SessionId(7);

/// An inode.
pub struct Row {
    pub attributes: Attributes,
    pub bound: u64,
    pub opener: bool,
    pub orphan: bool,
}

pub struct Service {
    pub index: u64,
    pub leader: ServerId,
    pub inodes: BTreeMap<InodeId, Row>,
    pub entries: BTreeMap<(InodeId, FileName), (InodeId, u64)>,
    pub xattrs: BTreeMap<(InodeId, Bytes), Bytes>,
    inode_next: u64,
    answers: BTreeMap<Sequence, Answer>,
    floor: Sequence,
    pub caching: bool,
    pub events: Vec<(u64, Event)>,
    pub stopped: Option<Vec<(InodeId, Access)>>,
    pub detached: bool,
    pub chunks: BTreeMap<ChunkKey, Vec<u8>>,
    pub map: ClusterMap,
    data_seen: BTreeSet<Sequence>,
    /// A group that serves nothing.
    pub stuck: Option<GroupId>,
    /// The newest floor that each group was told.
    pub floors: BTreeMap<GroupId, Sequence>,
    pub full: bool,
    /// Reads answered with a wrong byte.
    pub damaged: u32,
    pub now: Timestamp,
    /// Requests executed, by kind.
    pub queries: u64,
    pub mutations: u64,
    /// Those that set access times.
    pub access_times: u64,
    /// Another session holds a lock that excludes every other.
    pub locked_elsewhere: bool,
    /// Another session has this open and may not share it; and it lives.
    pub open_elsewhere: Option<InodeId>,
    pub holder_lives: bool,
    /// What was opened and closed half, in this order.
    pub opens: Vec<(InodeId, Access)>,
    /// How long those who waited for a file had waited before, in milliseconds.
    pub open_waits: Vec<u32>,
    /// What was granted and given back, in order.
    pub locks: Vec<Lock>,
    /// How often somebody who waits for a lock was looked at.
    pub lock_waits: u64,
}

impl Service {
    pub fn new() -> Self {
        let mut service = Self {
            index: 10,
            leader: ServerId(1),
            inodes: BTreeMap::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            inode_next: 1,
            answers: BTreeMap::new(),
            floor: Sequence(0),
            caching: true,
            events: Vec::new(),
            stopped: None,
            detached: false,
            chunks: BTreeMap::new(),
            map: ClusterMap::default(),
            data_seen: BTreeSet::new(),
            stuck: None,
            floors: BTreeMap::new(),
            full: false,
            damaged: 0,
            now: Timestamp { seconds: 1000, nanos: 0 },
            queries: 0,
            mutations: 0,
            access_times: 0,
            locked_elsewhere: false,
            open_elsewhere: None,
            holder_lives: false,
            opens: Vec::new(),
            open_waits: Vec::new(),
            locks: Vec::new(),
            lock_waits: 0,
        };
        service.make(FileKind::Directory, InodeId(1));
        service.publish_map(1);
        service
    }

    /// A map in which node `primary` leads every group.
    pub fn publish_map(&mut self, primary: u64) {
        let version = MapVersion(self.map.version.0 + 1);
        let member = |node| MemberId { node: NodeId(node), disk: DiskId(1), incarnation: Incarnation(1) };
        let view = View {
            epoch: Epoch(version.0),
            primary: member(primary),
            in_sync: vec![member(1), member(2)],
            syncing: Vec::new(),
        };
        let node = |id| NodeRecord {
            id: NodeId(id),
            address: format!("node-{id}:1"),
            labels: Vec::new(),
            disks: Vec::new(),
            alive: true,
        };
        self.map.version = version;
        self.map.nodes = (1..=2).map(|id| (NodeId(id), node(id))).collect();
        self.map.views = vec![view; GROUPS as usize];
    }

    fn make(&mut self, kind: FileKind, parent: InodeId) -> InodeId {
        let inode = InodeId(self.inode_next);
        self.inode_next += 1;
        let attributes = Attributes {
            inode,
            kind,
            mode: 0o755,
            links: if kind == FileKind::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            atime: self.now,
            mtime: self.now,
            ctime: self.now,
            btime: self.now,
            generation: Generation(1),
            cuts: 0,
            sparse: false,
            trim_from: None,
            size_bound: 0,
            parent: if kind == FileKind::Directory { parent } else { InodeId(0) },
        };
        self.inodes.insert(inode, Row { attributes, bound: 0, opener: false, orphan: false });
        inode
    }

    /// Whether the session has it on record as open.
    pub fn is_opener(&self, inode: InodeId) -> bool {
        self.inodes.get(&inode).is_some_and(|row| row.opener)
    }

    pub fn attributes(&self, inode: InodeId) -> Result<Attributes, NamespaceError> {
        let row = self.inodes.get(&inode).ok_or(NamespaceError::Stale)?;
        Ok(Attributes { size_bound: row.bound, ..row.attributes.clone() })
    }

    /// What a reader elsewhere would see of a file: published size, stored bytes.
    pub fn content(&self, inode: InodeId) -> Vec<u8> {
        let attributes = &self.inodes[&inode].attributes;
        let mut bytes = vec![0; attributes.size as usize];
        for (key, chunk) in &self.chunks {
            if key.inode == inode && key.generation == attributes.generation {
                let start = (key.index.0 * CHUNK_BYTES) as usize;
                let take = chunk.len().min(bytes.len().saturating_sub(start));
                bytes[start.min(attributes.size as usize)..][..take].copy_from_slice(&chunk[..take]);
            }
        }
        bytes
    }

    /// Another host appends to a small file, which it may only while we have no room beyond the end.
    pub fn append(&mut self, inode: InodeId, data: &[u8]) {
        let mut content = self.content(inode);
        content.extend_from_slice(data);
        let row = self.inodes.get_mut(&inode).expect("there");
        assert_eq!(row.bound, 0, "somebody may be writing there");
        row.attributes.size = content.len() as u64;
        let key = ChunkKey {
            volume: VolumeId(3),
            inode,
            generation: row.attributes.generation,
            index: holdfast_types::ChunkIndex(0),
            born: SnapshotNumber(0),
        };
        self.chunks.insert(key, content);
    }

    // ---- metadata ----

    /// Answers a request; `None`: it is held until the deadline.
    pub fn metadata(&mut self, server: ServerId, envelope: &Envelope) -> Option<Answer> {
        let answer = |index, result| Some(Answer { term: Term(1), applied: LogIndex(index), result });
        if server != self.leader {
            return answer(0, Err(MetadataError::NotLeader { hint: Some(self.leader) }));
        }
        if envelope.shard == ShardId::VOLUMES {
            assert_eq!(envelope.session, SESSION, "requests to the volumes are a session's");
        }
        let Request::Mutate(mutation) = &envelope.request else {
            assert_eq!(envelope.sequence, Sequence(0), "only mutations have a sequence");
            let result = self.plain(&envelope.request)?;
            return answer(self.index, result);
        };
        assert!(envelope.sequence > Sequence(0) && envelope.answered_below <= envelope.sequence);
        self.floor = self.floor.max(envelope.answered_below);
        let floor = self.floor;
        self.answers.retain(|sequence, _| *sequence >= floor);
        if envelope.sequence < self.floor {
            return answer(self.index, Err(MetadataError::StaleSequence));
        }
        if let Some(old) = self.answers.get(&envelope.sequence) {
            return Some(old.clone());
        }
        self.index += 1;
        self.now.nanos += 1000;
        self.mutations += 1;
        let result = self.mutate(mutation).map(Response::Outcome).map_err(MetadataError::from);
        let answer = Answer { term: Term(1), applied: LogIndex(self.index), result };
        self.answers.insert(envelope.sequence, answer.clone());
        assert!(self.answers.len() <= 4096, "the client confirms what it has");
        Some(answer)
    }

    /// The answer to a wait that cannot be held any longer.
    pub fn ask_again(&self, request: &Request) -> Answer {
        let reason = "another owner still holds the lock".into();
        let result = match request {
            Request::Query(Query::AwaitOpen { .. }) => Ok(Response::Outcome(Outcome::Done)),
            _ => Err(MetadataError::Unavailable { reason }),
        };
        Answer { term: Term(1), applied: LogIndex(self.index), result }
    }

    fn plain(&mut self, request: &Request) -> Option<Result<Response, MetadataError>> {
        let volume = VolumeRecord {
            id: VolumeId(3),
            name: "main".into(),
            groups: GROUPS,
            placement_version: 1,
            snapshot: SnapshotNumber(0),
            origin: None,
            bytes_max: None,
            inodes_max: None,
            open: OpenPolicy::default(),
            limits_version: 0,
            shard: ShardId::VOLUMES,
        };
        Some(Ok(match request {
            Request::OpenSession { volume: name, .. } if name != "main" => {
                return Some(Err(MetadataError::NoVolume { name: name.clone() }));
            }
            Request::OpenSession { .. } => Response::SessionOpened { session: SESSION, volume, map_min: MapVersion(1) },
            Request::GetMap { have, wait } => {
                if *have < self.map.version {
                    Response::Map(MapUpdate::Full(Box::new(self.map.clone())))
                } else if *wait {
                    return None;
                } else {
                    Response::Map(MapUpdate::Unchanged)
                }
            }
            Request::Attach { .. } => Response::Attached {
                root: self.attributes(InodeId::ROOT).expect("the root"),
                caching: self.caching,
                now: self.now,
                event: 0,
            },
            Request::Renew { seen, wait } => {
                let events: Vec<_> = self.events.iter().filter(|(number, _)| number > seen).cloned().collect();
                if *wait && events.is_empty() {
                    return None;
                }
                Response::Renewed { events, caching: self.caching, now: self.now }
            }
            Request::StoppedCaching { event, open } => {
                if self.events.last().is_some_and(|(number, e)| number == event && *e == Event::StopCaching) {
                    self.caching = false;
                    self.stopped = Some(open.clone());
                    for (inode, _) in open {
                        self.inodes.get_mut(inode).expect("open inodes exist").opener = true;
                    }
                }
                Response::Done
            }
            Request::Detach => {
                self.detached = true;
                Response::Done
            }
            Request::Query(Query::AwaitLock { .. }) => {
                self.lock_waits += 1;
                if self.locked_elsewhere {
                    return None;
                }
                Response::Outcome(Outcome::Done)
            }
            Request::Query(Query::AwaitOpen { inode, waited_ms, .. }) => {
                self.open_waits.push(*waited_ms);
                if self.open_elsewhere == Some(*inode) {
                    return if self.holder_lives { Some(Err(NamespaceError::Busy.into())) } else { None };
                }
                Response::Outcome(Outcome::Done)
            }
            Request::Query(query) => {
                self.queries += 1;
                return Some(self.query(query).map(Response::Outcome).map_err(MetadataError::from));
            }
            other => panic!("a client does not ask {other:?}"),
        }))
    }

    fn query(&self, query: &Query) -> Result<Outcome, NamespaceError> {
        match query {
            Query::Lookup { parent, name } => {
                let (inode, _) = self.entries.get(&(*parent, name.clone())).ok_or(NamespaceError::NotFound)?;
                Ok(Outcome::Entry { attributes: self.attributes(*inode)?, lease: None })
            }
            Query::GetAttributes { inode } | Query::AwaitTrim { inode } => {
                Ok(Outcome::Attributes { attributes: self.attributes(*inode)?, lease: None })
            }
            Query::ReadDirectory { inode, after, limit, plus } => {
                let mut entries: Vec<DirectoryEntry> = self
                    .entries
                    .iter()
                    .filter(|((parent, _), (_, cookie))| parent == inode && cookie > after)
                    .map(|((_, name), (inode, cookie))| DirectoryEntry {
                        name: name.clone(),
                        inode: *inode,
                        kind: self.inodes[inode].attributes.kind,
                        cookie: *cookie,
                        attributes: plus.then(|| self.attributes(*inode).expect("named")),
                    })
                    .collect();
                entries.sort_by_key(|e| e.cookie);
                let end = entries.len() <= *limit as usize;
                entries.truncate(*limit as usize);
                let parent = self.inodes[inode].attributes.parent;
                Ok(Outcome::Directory { entries, end, parent, lease: None })
            }
            Query::GetXattr { inode, name } => self
                .xattrs
                .get(&(*inode, name.clone()))
                .map(|v| Outcome::Bytes(v.clone()))
                .ok_or(NamespaceError::NoAttribute),
            other => panic!("not asked in these tests: {other:?}"),
        }
    }

    // tidy: long because it is one table, a few lines for each mutation
    fn mutate(&mut self, mutation: &Mutation) -> Result<Outcome, NamespaceError> {
        let attributes = |attributes| Ok(Outcome::Attributes { attributes, lease: None });
        match mutation {
            Mutation::SetLock { lock, .. } => {
                let in_the_way = (self.locked_elsewhere && lock.kind.is_some()).then_some(SessionId(99));
                let replaced = self.locks.last().is_some_and(|last| last.kind.is_some());
                if in_the_way.is_none() {
                    self.locks.push(*lock);
                }
                Ok(Outcome::Locked { in_the_way, replaced })
            }
            Mutation::Create { parent, name, node, exclusive, open, .. } => {
                if let Some((inode, _)) = self.entries.get(&(*parent, name.clone())).copied() {
                    if *exclusive {
                        return Err(NamespaceError::Exists);
                    }
                    self.inodes.get_mut(&inode).expect("named").opener |= open.is_some() && !self.caching;
                    return Ok(Outcome::Created {
                        attributes: self.attributes(inode)?,
                        new: false,
                        inherited: false,
                        lease: None,
                    });
                }
                let kind = if *node == NewNode::Directory { FileKind::Directory } else { FileKind::File };
                let inode = self.make(kind, *parent);
                if open.is_some() {
                    let row = self.inodes.get_mut(&inode).expect("just made");
                    row.bound = 64 << 20;
                    row.opener = !self.caching;
                }
                self.entries.insert((*parent, name.clone()), (inode, self.index));
                self.change_directory(*parent, 1);
                Ok(Outcome::Created { attributes: self.attributes(inode)?, new: true, inherited: false, lease: None })
            }
            Mutation::Unlink { parent, name, open } => {
                let (inode, _) = self.entries.remove(&(*parent, name.clone())).ok_or(NamespaceError::NotFound)?;
                self.change_directory(*parent, -1);
                let (removed, orphan) = self.lose(inode, *open == Some(inode));
                Ok(Outcome::Removed { attributes: removed, orphan })
            }
            Mutation::Rename { from_parent, from_name, to_parent, to_name, open, .. } => {
                let moved = self.entries.remove(&(*from_parent, from_name.clone())).ok_or(NamespaceError::NotFound)?;
                let old = self.entries.insert((*to_parent, to_name.clone()), moved);
                self.change_directory(*from_parent, -1);
                self.change_directory(*to_parent, if old.is_some() { 0 } else { 1 });
                self.inodes.get_mut(&moved.0).expect("named").attributes.ctime = self.now;
                let lost = old.map(|(inode, _)| self.lose(inode, *open == Some(inode)));
                let (replaced, orphan) = lost.map_or((None, false), |(a, orphan)| (Some(a), orphan));
                Ok(Outcome::Renamed { moved: self.attributes(moved.0)?, replaced, orphan })
            }
            Mutation::SetAttributes { inode, set } => {
                let now = self.now;
                let row = self.inodes.get_mut(inode).ok_or(NamespaceError::Stale)?;
                if let Some(size) = set.size {
                    let end = row.attributes.size.max(row.bound);
                    if size == 0 && end > 0 {
                        row.attributes.generation = row.attributes.generation.next();
                    } else if size < end && !(size >= row.attributes.size && row.bound == 0) {
                        row.bound = 0;
                        cut(&mut self.chunks, *inode, row.attributes.generation, size);
                    }
                    let grows = size.div_ceil(BLOCK_BYTES) > row.attributes.size.div_ceil(BLOCK_BYTES);
                    row.attributes.sparse = size > 0 && (row.attributes.sparse || grows);
                    row.attributes.size = size;
                    row.attributes.mtime = now;
                }
                let time = |set: SetTime| match set {
                    SetTime::Now => now,
                    SetTime::At(at) => at,
                };
                row.attributes.mtime = set.mtime.map_or(row.attributes.mtime, time);
                row.attributes.atime = set.atime.map_or(row.attributes.atime, time);
                row.attributes.mode = set.mode.unwrap_or(row.attributes.mode);
                row.attributes.ctime = now;
                attributes(self.attributes(*inode)?)
            }
            Mutation::Reserve { inode, generation, bound, .. } => {
                let row = self.inodes.get_mut(inode).ok_or(NamespaceError::Stale)?;
                if row.attributes.generation != *generation {
                    return Err(NamespaceError::Stale);
                }
                row.bound = row.bound.max(*bound);
                attributes(self.attributes(*inode)?)
            }
            Mutation::Publish { inode, generation, size, mtime, release, sparse, clear_set_ids } => {
                let row = self.inodes.get_mut(inode).ok_or(NamespaceError::Stale)?;
                if row.attributes.generation == *generation {
                    if *size > row.attributes.size && row.bound < *size {
                        return Err(NamespaceError::Stale);
                    }
                    row.attributes.size = row.attributes.size.max(*size);
                    row.attributes.mtime = *mtime;
                    row.attributes.sparse |= sparse;
                    row.attributes.mode &= !(0o6000 * u16::from(*clear_set_ids));
                    row.bound = if *release { 0 } else { row.bound };
                }
                attributes(self.attributes(*inode)?)
            }
            Mutation::SetAccessTimes { times } => {
                self.access_times += 1;
                for time in times {
                    if let Some(row) = self.inodes.get_mut(&time.inode)
                        && row.attributes.ctime == time.ctime
                    {
                        row.attributes.atime = row.attributes.atime.max(time.atime);
                    }
                }
                Ok(Outcome::Done)
            }
            Mutation::Open { inode, .. } if self.open_elsewhere == Some(*inode) => {
                Ok(Outcome::OpenElsewhere { inode: *inode, holder: SessionId(99) })
            }
            Mutation::Open { inode, access } => {
                self.opens.push((*inode, *access));
                self.inodes.get_mut(inode).ok_or(NamespaceError::Stale)?.opener = true;
                attributes(self.attributes(*inode)?)
            }
            Mutation::Close { inode, keep_reading: true } => {
                self.opens.push((*inode, Access::Read));
                Ok(Outcome::Done)
            }
            Mutation::Close { inode, .. } => {
                if let Some(row) = self.inodes.get_mut(inode) {
                    row.opener = false;
                    if row.orphan {
                        self.inodes.remove(inode);
                    }
                }
                Ok(Outcome::Done)
            }
            Mutation::SetXattr { inode, name, value, .. } => {
                self.xattrs.insert((*inode, name.clone()), value.clone());
                Ok(Outcome::Done)
            }
            other => panic!("not asked in these tests: {other:?}"),
        }
    }

    fn change_directory(&mut self, inode: InodeId, by: i64) {
        let directory = &mut self.inodes.get_mut(&inode).expect("a directory").attributes;
        directory.size = directory.size.saturating_add_signed(by);
        (directory.mtime, directory.ctime) = (self.now, self.now);
    }

    fn lose(&mut self, inode: InodeId, open: bool) -> (Attributes, bool) {
        let row = self.inodes.get_mut(&inode).expect("named");
        row.attributes.links = 0;
        row.attributes.ctime = self.now;
        row.opener |= open;
        row.orphan = row.opener;
        let (attributes, orphan) = (row.attributes.clone(), row.orphan);
        if !orphan {
            self.inodes.remove(&inode);
        }
        (attributes, orphan)
    }

    // ---- storage ----

    pub fn chunk(&mut self, node: NodeId, request: &ChunkRequest, payload: &[u8]) -> (ChunkAnswer, Bytes) {
        let view = &self.map.views[request.group.0 as usize];
        if request.epoch != view.epoch {
            let refusal = Refusal::WrongEpoch { asked: request.epoch, current: view.epoch, version: self.map.version };
            return (ChunkAnswer::Refused(refusal), Bytes::new());
        }
        let is_read = matches!(request.op, ChunkOp::Read { .. });
        if view.primary.node != node && !(is_read && self.damaged > 0) {
            return (ChunkAnswer::Refused(Refusal::NotPrimary), Bytes::new());
        }
        if request.op.is_change() {
            assert!(request.sequence > Sequence(0) && request.floor <= request.sequence);
            let floor = request.floor;
            self.data_seen.retain(|sequence| *sequence >= floor);
        }
        let floor = self.floors.entry(request.group).or_default();
        *floor = request.floor.max(*floor);
        if self.stuck == Some(request.group) {
            return (ChunkAnswer::Refused(Refusal::NotServing { reason: "stuck".into() }), Bytes::new());
        }
        let done = ChunkAnswer::Done { number: OpNumber::default() };
        match &request.op {
            ChunkOp::Write { chunk, offset, sums } => {
                assert_eq!(*sums, holdfast_types::checksum::piece_sums(*offset, payload), "sums fit the bytes");
                if self.full {
                    return (ChunkAnswer::Refused(Refusal::NoSpace), Bytes::new());
                }
                self.check_bound(chunk, u64::from(*offset) + payload.len() as u64);
                let bytes = self.chunks.entry(*chunk).or_default();
                let end = *offset as usize + payload.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset as usize..end].copy_from_slice(payload);
                (done, Bytes::new())
            }
            ChunkOp::Zero { chunk, offset, length } => {
                if let Some(bytes) = self.chunks.get_mut(chunk) {
                    let end = bytes.len().min((*offset + *length) as usize);
                    bytes[(*offset as usize).min(end)..end].fill(0);
                }
                (done, Bytes::new())
            }
            ChunkOp::Read { chunk, offset, length } => {
                let empty = Vec::new();
                let bytes = self.chunks.get(chunk).unwrap_or(&empty);
                let (start, end) = (*offset as usize, (*offset + *length) as usize);
                let end = end.min(bytes.len());
                let mut data = bytes[start.min(end)..end].to_vec();
                let sums = holdfast_types::checksum::piece_sums(*offset, &data);
                if self.damaged > 0 && !data.is_empty() {
                    self.damaged -= 1;
                    data[0] ^= 1;
                }
                (ChunkAnswer::Data { sums }, data.into())
            }
            ChunkOp::Allocated { inode, generation, from, upto, .. } => {
                (self.allocated(request.group, (*inode, *generation), *from..=*upto), Bytes::new())
            }
            // Cuts are made at once here, so what was made before is gone, and what came after them stands.
            ChunkOp::Made { chunk, .. } => (
                ChunkAnswer::Made { stands: self.chunks.get(chunk).is_some_and(|bytes| !bytes.is_empty()) },
                Bytes::new(),
            ),
            other => panic!("a client does not ask {other:?}"),
        }
    }

    /// Where a file has blocks that are not zeros, in chunks of one group.
    fn allocated(
        &self,
        group: GroupId,
        (inode, generation): (InodeId, Generation),
        indices: std::ops::RangeInclusive<ChunkIndex>,
    ) -> ChunkAnswer {
        let of = |key: &ChunkKey| {
            (key.inode, key.generation) == (inode, generation)
                && indices.contains(&key.index)
                && GroupId::of(key.volume, key.inode, key.index, GROUPS) == group
        };
        let mut ranges = Vec::new();
        for (count, (key, bytes)) in self.chunks.iter().filter(|(key, _)| of(key)).enumerate() {
            // Short answers, so that there are second ones.
            if count == 2 {
                return ChunkAnswer::Allocated { ranges, through: ChunkIndex(key.index.0 - 1) };
            }
            let block = |(n, block): (usize, &[u8])| {
                let start = key.index.0 * CHUNK_BYTES + n as u64 * BLOCK_BYTES;
                let range = ByteRange { start, end: start + block.len() as u64 };
                block.iter().any(|byte| *byte != 0).then_some(range)
            };
            ranges.extend(bytes.chunks(BLOCK_BYTES as usize).enumerate().filter_map(block));
        }
        ChunkAnswer::Allocated { ranges, through: ChunkIndex(u64::MAX) }
    }

    /// Nobody writes beyond what was granted.
    fn check_bound(&self, chunk: &ChunkKey, end: u64) {
        if let Some(row) = self.inodes.get(&chunk.inode)
            && row.attributes.generation == chunk.generation
        {
            let end = chunk.index.0 * CHUNK_BYTES + end;
            assert!(end <= row.attributes.size.max(row.bound), "{chunk}: a write to {end} without a bound");
        }
    }
}

/// Removes the bytes of a file at or above `size`.
fn cut(chunks: &mut BTreeMap<ChunkKey, Vec<u8>>, inode: InodeId, generation: Generation, size: u64) {
    for (key, bytes) in chunks.iter_mut().filter(|(key, _)| key.inode == inode && key.generation == generation) {
        let keep = size.saturating_sub(key.index.0 * CHUNK_BYTES) as usize;
        bytes.truncate(keep);
    }
}
