//! One sample of each message, with a different number in each field so that exchanged fields are noticed.
// tidy: long because there is one of each message

// tidy: long because it is a list: a sample of every message.

use bytes::Bytes;
use holdfast_types::{
    ChunkIndex, ChunkKey, ClusterId, DiskId, Epoch, FileName, Generation, GroupId, Incarnation, InodeId,
    InstanceGeneration, LogIndex, MapVersion, MemberId, NodeId, OpCount, OpNumber, Sequence, ServerId, SessionId,
    ShardId, SnapshotNumber, Term, Timestamp, VolumeId,
};
use holdfast_wire::admin::{
    AdminAnswer, AdminRequest, ChunkFacts, ClusterStatus, DiskStatus, GroupScrub, HeldByNode, HeldGroup, HeldTable,
    InodeFacts, RebuildStatus, ServerPlace, ServerRecord, ServerStatus, SessionState, SessionStatus, ShardStatus,
    SlowIn, Slowness, StoragePlace, StorageStatus, TableCheck, WholeFile,
};
use holdfast_wire::chunk::{ByteRange, ChunkAnswer, ChunkOp, ChunkRequest, Refusal};
use holdfast_wire::group::{
    CheckedChunk, ChunkDigest, Contender, CopyRun, Difference, GroupBody, GroupChange, GroupMessage, KeyRange, Origin,
    ScrubResult,
};
use holdfast_wire::lock::{HeldLock, Lock, LockKind, LockSpace};
use holdfast_wire::map::{ClusterMap, DiskRecord, MapDelta, MapUpdate, NodeRecord, SessionGrant, View};
use holdfast_wire::metadata::{
    Answer, ClientRecord, DiskState, Envelope, Event, Heartbeat, MetadataError, Request, Response,
};
use holdfast_wire::namespace::{
    AccessTime, Attributes, DirectoryEntry, FileKind, Labels, Lease, Limits, Mutation, NamespaceError, NewNode,
    Outcome, Query, RenameMode, SetAttributes, SetTime, VolumeFacts, VolumeRecord, VolumeUsage, XattrMode,
};
use holdfast_wire::open::{Access, OpenPolicy, OpenRule};
use holdfast_wire::peer::{PeerMessage, PoolSpace, SnapshotPart};

type Named<T> = Vec<(&'static str, T)>;

fn name(text: &str) -> FileName {
    FileName::new(text.as_bytes()).expect("a name")
}

fn member(node: u64) -> MemberId {
    MemberId { node: NodeId(node), disk: DiskId(2), incarnation: Incarnation(3) }
}

fn chunk() -> ChunkKey {
    ChunkKey {
        volume: VolumeId(4),
        inode: InodeId(500),
        generation: Generation(6),
        index: ChunkIndex(7),
        born: SnapshotNumber(0),
    }
}

fn number() -> OpNumber {
    OpNumber { epoch: Epoch(8), count: OpCount(900) }
}

fn view() -> View {
    View { epoch: Epoch(9), primary: member(1), in_sync: vec![member(1), member(2)], syncing: vec![member(3)] }
}

fn client() -> ClientRecord {
    ClientRecord {
        host: "host".into(),
        pid: 77,
        mount_point: "/mnt".into(),
        instance: "db-0".into(),
        instance_generation: InstanceGeneration(3),
    }
}

fn volume() -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(4),
        name: "main".into(),
        groups: 256,
        placement_version: 1,
        snapshot: SnapshotNumber(0),
        origin: Some((VolumeId(2), SnapshotNumber(5))),
        bytes_max: Some(1 << 40),
        inodes_max: None,
        open: policy(),
        limits_version: 3,
        shard: ShardId(1),
    }
}

fn attributes() -> Attributes {
    Attributes {
        inode: InodeId(500),
        kind: FileKind::File,
        mode: 0o4755,
        links: 2,
        uid: 1000,
        gid: 1001,
        rdev: 0,
        size: 123_456,
        atime: Timestamp { seconds: -1, nanos: 1 },
        mtime: Timestamp { seconds: 2, nanos: 2 },
        ctime: Timestamp { seconds: 3, nanos: 3 },
        btime: Timestamp { seconds: 4, nanos: 4 },
        generation: Generation(6),
        cuts: 5,
        sparse: true,
        trim_from: Some(4096),
        size_bound: 64 << 20,
        parent: InodeId(0),
    }
}

fn lease() -> Option<Lease> {
    Some(Lease { exclusive: true, term: Term(5), map_min: MapVersion(60), snapshot: SnapshotNumber(0) })
}

fn node() -> NodeRecord {
    NodeRecord {
        id: NodeId(1),
        address: "10.0.0.1:5000".into(),
        labels: vec![("rack".into(), "r1".into())],
        disks: vec![DiskRecord { id: DiskId(2), incarnation: Incarnation(3), capacity: 1 << 40 }],
        alive: true,
    }
}

fn map() -> ClusterMap {
    let grant = SessionGrant { volume: VolumeId(4), read_only: false };
    ClusterMap {
        version: MapVersion(60),
        feature_level: 1,
        replicas: 3,
        min_in_sync: 2,
        nodes: [(NodeId(1), node())].into(),
        views: vec![view(), view()],
        homes: vec![vec![(NodeId(1), DiskId(2))], vec![]],
        sessions: [(SessionId(10), grant)].into(),
        session_newest: SessionId(11),
        service_term: Term(4),
        servers: [(ServerId(1), "10.0.0.1:4101".to_owned())].into(),
    }
}

fn lock() -> Lock {
    let kind = Some(LockKind::Exclusive);
    Lock { space: LockSpace::Range, owner: 77, pid: 88, start: 0, end: i64::MAX as u64, kind }
}

fn held_lock() -> HeldLock {
    HeldLock { session: SessionId(10), owner: 77, pid: 88, start: 1, end: 2, kind: LockKind::Shared }
}

fn delta() -> MapDelta {
    MapDelta {
        from: MapVersion(59),
        to: MapVersion(60),
        nodes: vec![node()],
        nodes_removed: vec![NodeId(9)],
        views: vec![(GroupId(1), view())],
        homes: vec![(GroupId(1), vec![(NodeId(1), DiskId(2)), (NodeId(2), DiskId(2))])],
        sessions_opened: vec![(SessionId(10), SessionGrant { volume: VolumeId(4), read_only: true })],
        sessions_ended: vec![SessionId(9)],
        session_newest: SessionId(11),
        service_term: Term(4),
    }
}

pub fn envelope(request: Request) -> Envelope {
    Envelope {
        shard: ShardId(1),
        session: SessionId(10),
        sequence: Sequence(20),
        answered_below: Sequence(19),
        term: Term(5),
        request,
    }
}

pub fn answer(result: Result<Response, MetadataError>) -> Answer {
    Answer { term: Term(5), applied: LogIndex(1000), result }
}

pub fn requests() -> Named<Request> {
    let mut all = cluster_requests();
    all.extend(queries().into_iter().map(|(name, query)| (name, Request::Query(query))));
    all.extend(mutations().into_iter().map(|(name, mutation)| (name, Request::Mutate(mutation))));
    all.push(("inspect-inodes", Request::InspectInodes { inodes: vec![(VolumeId(4), InodeId(5))] }));
    all
}

fn cluster_requests() -> Named<Request> {
    let disk = DiskState {
        id: DiskId(2),
        incarnation: Incarnation(3),
        capacity: 100,
        free: 50,
        reserve: 5,
        oldest_operation_ms: 7,
        failed: false,
        read_us: Some(180),
        write_us: None,
    };
    let heartbeat = Heartbeat {
        node: NodeId(1),
        address: "10.0.0.1:5000".into(),
        labels: vec![("zone".into(), "z".into())],
        pid: 78,
        disks: vec![disk],
        acknowledged: MapVersion(58),
        leaving: false,
        round_trip_us: Some(900),
    };
    let (group, epoch) = (GroupId(1), Epoch(9));
    vec![
        (
            "open-session",
            Request::OpenSession { volume: "main".into(), client: client(), read_only: false, nonce: 1 << 100 },
        ),
        ("fence-session", Request::FenceSession { session: SessionId(9) }),
        ("end-session", Request::EndSession { session: SessionId(9) }),
        ("get-map", Request::GetMap { have: MapVersion(58), wait: true }),
        ("heartbeat", Request::Heartbeat(heartbeat)),
        ("promote", Request::Promote { group, epoch, member: member(3) }),
        (
            "report-gone",
            Request::ReportGone { node: NodeId(2), lives: vec![(DiskId(1), Incarnation(9))], reporter: NodeId(1) },
        ),
        ("evict", Request::Evict { group, epoch, member: member(3), reporter: member(1), silent: vec![member(2)] }),
        ("lead-volumes", Request::LeadVolumes { term: Term(4) }),
        ("server-arrived", Request::ServerArrived { server: ServerId(4), place: ServerPlace::Leaving }),
        (
            "add-server",
            Request::AddServer { server: ServerId(4), address: "10.0.0.4:4101".into(), replaces: Some(ServerId(2)) },
        ),
        ("remove-server", Request::RemoveServer { server: ServerId(2) }),
        (
            "place-storage",
            Request::PlaceStorage { node: NodeId(2), place: StoragePlace::Leaving { successor: Some(NodeId(5)) } },
        ),
        ("leave-views", Request::LeaveViews { node: NodeId(1) }),
        (
            "create-volume",
            Request::CreateVolume { name: "v".into(), limits: Limits::default(), open: policy(), labels: labels() },
        ),
        ("set-open-policy", Request::SetOpenPolicy { name: "v".into(), open: policy() }),
        ("label-volume", Request::LabelVolume { name: "v".into(), version: 3, labels: labels() }),
        ("describe-volume", Request::DescribeVolume { name: "v".into() }),
        ("describe-volumes", Request::DescribeVolumes { after: "v".into(), limit: 100 }),
        (
            "raise-generation",
            Request::RaiseGeneration {
                volume: VolumeId(3),
                instance: "db-0".into(),
                generation: InstanceGeneration(7),
            },
        ),
        (
            "limit-volume",
            Request::LimitVolume { name: "v".into(), limits: Limits { bytes: Some(1 << 30), inodes: Some(9) } },
        ),
        ("delete-volume", Request::DeleteVolume { name: "v".into() }),
        ("list-volumes", Request::ListVolumes),
        ("status", Request::Status),
        ("attach", Request::Attach { volume: volume(), client: client(), read_only: true }),
        ("detach", Request::Detach),
        ("renew", Request::Renew { seen: 4, wait: true }),
        ("stopped-caching", Request::StoppedCaching { event: 4, open: vec![(InodeId(500), Access::Write)] }),
    ]
}

fn queries() -> Named<Query> {
    let inode = InodeId(500);
    vec![
        ("lookup", Query::Lookup { parent: InodeId(1), name: name("a") }),
        ("get-attributes", Query::GetAttributes { inode }),
        ("read-directory", Query::ReadDirectory { inode, after: 3, limit: 100, plus: true }),
        ("read-link", Query::ReadLink { inode }),
        ("get-xattr", Query::GetXattr { inode, name: Bytes::from_static(b"user.a") }),
        ("list-xattrs", Query::ListXattrs { inode }),
        ("stat-volume", Query::StatVolume),
        ("await-trim", Query::AwaitTrim { inode }),
        ("await-open", Query::AwaitOpen { inode, access: Access::Read, waited_ms: 300 }),
        ("test-lock", Query::TestLock { inode, lock: lock() }),
        ("await-lock", Query::AwaitLock { inode, lock: Lock { space: LockSpace::Whole, ..lock() } }),
    ]
}

fn policy() -> OpenPolicy {
    OpenPolicy { rule: OpenRule::SingleWriter, wait: 30 }
}

fn labels() -> Labels {
    [("owner".to_owned(), "csi".to_owned())].into()
}

fn create(node: NewNode) -> Mutation {
    Mutation::Create {
        parent: InodeId(1),
        name: name("a"),
        node,
        mode: 0o644,
        umask: 0o22,
        uid: 1000,
        gid: 1001,
        exclusive: true,
        open: Some(Access::Write),
    }
}

fn mutations() -> Named<Mutation> {
    let (inode, parent, generation) = (InodeId(500), InodeId(1), Generation(6));
    let set = SetAttributes {
        mode: Some(0o600),
        uid: Some(1),
        gid: Some(2),
        size: Some(3),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(Timestamp { seconds: -5, nanos: 6 })),
        clear_set_ids: true,
    };
    let rename = |mode| Mutation::Rename {
        from_parent: InodeId(1),
        from_name: name("a"),
        to_parent: InodeId(2),
        to_name: name("b"),
        mode,
        open: Some(InodeId(501)),
    };
    let xattr =
        |mode| Mutation::SetXattr { inode, name: Bytes::from_static(b"user.a"), value: Bytes::from_static(b"v"), mode };
    vec![
        ("create-file", create(NewNode::File)),
        ("create-directory", create(NewNode::Directory)),
        ("create-symlink", create(NewNode::Symlink(Bytes::from_static(b"../t")))),
        ("create-fifo", create(NewNode::Fifo)),
        ("create-socket", create(NewNode::Socket)),
        ("create-char", create(NewNode::CharDevice(0x105))),
        ("create-block", create(NewNode::BlockDevice(0x801))),
        ("link", Mutation::Link { inode, parent, name: name("l") }),
        ("unlink", Mutation::Unlink { parent, name: name("a"), open: Some(inode) }),
        ("remove-directory", Mutation::RemoveDirectory { parent, name: name("d") }),
        ("rename", rename(RenameMode::Replace)),
        ("rename-noreplace", rename(RenameMode::NoReplace)),
        ("rename-exchange", rename(RenameMode::Exchange)),
        ("set-attributes", Mutation::SetAttributes { inode, set }),
        ("reserve", Mutation::Reserve { inode, generation, bound: 1 << 30, least: 1 << 20 }),
        (
            "set-access-times",
            Mutation::SetAccessTimes {
                times: vec![AccessTime {
                    inode: InodeId(7),
                    atime: Timestamp { seconds: 8, nanos: 9 },
                    ctime: Timestamp::default(),
                }],
            },
        ),
        (
            "publish",
            Mutation::Publish {
                inode,
                generation,
                size: 4096,
                mtime: Timestamp { seconds: 1, nanos: 2 },
                release: true,
                clear_set_ids: false,
                sparse: true,
            },
        ),
        ("open", Mutation::Open { inode, access: Access::Read }),
        ("close", Mutation::Close { inode, keep_reading: true }),
        ("set-xattr", xattr(XattrMode::Set)),
        ("set-xattr-create", xattr(XattrMode::Create)),
        ("set-xattr-replace", xattr(XattrMode::Replace)),
        ("remove-xattr", Mutation::RemoveXattr { inode, name: Bytes::from_static(b"user.a") }),
        ("create-unnamed", Mutation::CreateUnnamed { parent, mode: 0o600, umask: 0o77, uid: 1000, gid: 1001 }),
        (
            "set-acl",
            Mutation::SetAcl {
                inode,
                default: false,
                value: Some(Bytes::from_static(b"list")),
                clear_set_group_id: true,
            },
        ),
        ("remove-acl", Mutation::SetAcl { inode, default: true, value: None, clear_set_group_id: false }),
        ("set-lock", Mutation::SetLock { inode, lock: lock() }),
        ("unlock", Mutation::SetLock { inode, lock: Lock { kind: None, ..lock() } }),
    ]
}

pub fn results() -> Named<Result<Response, MetadataError>> {
    let mut all: Named<Result<Response, MetadataError>> =
        responses().into_iter().map(|(name, response)| (name, Ok(response))).collect();
    all.extend(outcomes().into_iter().map(|(name, outcome)| (name, Ok(Response::Outcome(outcome)))));
    all.extend(errors().into_iter().map(|(name, error)| (name, Err(error))));
    all
}

fn responses() -> Named<Response> {
    let now = Timestamp { seconds: 1_700_000_000, nanos: 5 };
    let facts = InodeFacts {
        content: Some((Generation(3), 4096)),
        purging: vec![Generation(2)],
        volume_gone: false,
        whole: 4095,
    };
    let events = vec![(1, Event::StopCaching), (2, Event::StartCaching), (3, Event::Ended { reason: "fenced".into() })];
    vec![
        ("done", Response::Done),
        ("inodes", Response::Inodes(vec![facts])),
        (
            "session-opened",
            Response::SessionOpened { session: SessionId(10), volume: volume(), map_min: MapVersion(60) },
        ),
        ("fenced", Response::Fenced { version: MapVersion(61) }),
        ("map-unchanged", Response::Map(MapUpdate::Unchanged)),
        ("map-full", Response::Map(MapUpdate::Full(Box::new(map())))),
        ("map-delta", Response::Map(MapUpdate::Delta(Box::new(delta())))),
        ("heard", Response::Heard { version: MapVersion(60), now }),
        ("view", Response::View { group: GroupId(1), view: view(), version: MapVersion(60) }),
        ("volume", Response::Volume(volume())),
        ("volumes", Response::Volumes(vec![volume()])),
        (
            "volume-facts",
            Response::VolumeFacts(vec![VolumeFacts { record: volume(), labels_version: 3, labels: labels() }]),
        ),
        ("status", Response::Status(Box::new(cluster_status()))),
        ("attached", Response::Attached { root: attributes(), caching: true, now, event: 2 }),
        ("renewed", Response::Renewed { events, caching: false, now }),
    ]
}

fn outcomes() -> Named<Outcome> {
    let entry = DirectoryEntry {
        name: name("a"),
        inode: InodeId(500),
        kind: FileKind::Symlink,
        cookie: 3,
        attributes: Some(attributes()),
    };
    let usage =
        VolumeUsage { bytes_used: 1, inodes_used: 2, bytes_max: 3, bytes_free: 5, bytes_available: 6, inodes_max: 4 };
    vec![
        ("outcome-done", Outcome::Done),
        ("outcome-entry", Outcome::Entry { attributes: attributes(), lease: lease() }),
        ("outcome-attributes", Outcome::Attributes { attributes: attributes(), lease: None }),
        ("outcome-created", Outcome::Created { attributes: attributes(), new: true, inherited: true, lease: lease() }),
        ("outcome-removed", Outcome::Removed { attributes: attributes(), orphan: true }),
        ("outcome-renamed", Outcome::Renamed { moved: attributes(), replaced: Some(attributes()), orphan: false }),
        (
            "outcome-directory",
            Outcome::Directory { entries: vec![entry], end: true, parent: InodeId(1), lease: lease() },
        ),
        ("outcome-bytes", Outcome::Bytes(Bytes::from_static(b"target"))),
        ("outcome-names", Outcome::Names(vec![Bytes::from_static(b"user.a")])),
        ("outcome-usage", Outcome::Usage(usage)),
        ("outcome-locked", Outcome::Locked { in_the_way: Some(SessionId(10)), replaced: true }),
        ("outcome-conflict", Outcome::Conflict(Some(held_lock()))),
        ("open-elsewhere", Outcome::OpenElsewhere { inode: InodeId(500), holder: SessionId(9) }),
    ]
}

fn errors() -> Named<MetadataError> {
    let text = || "why".to_owned();
    vec![
        ("not-leader", MetadataError::NotLeader { hint: Some(ServerId(2)) }),
        ("unavailable", MetadataError::Unavailable { reason: text() }),
        ("stale-sequence", MetadataError::StaleSequence),
        ("backpressure", MetadataError::Backpressure),
        ("session-ended", MetadataError::SessionEnded { reason: text() }),
        ("superseded", MetadataError::Superseded { by: InstanceGeneration(4) }),
        ("no-volume", MetadataError::NoVolume { name: text() }),
        ("volume-exists", MetadataError::VolumeExists { name: text() }),
        ("invalid", MetadataError::Invalid { reason: text() }),
        ("busy", MetadataError::Busy { name: text(), sessions: 2 }),
        ("forbidden", MetadataError::Forbidden),
        ("not-found", NamespaceError::NotFound.into()),
        ("exists", NamespaceError::Exists.into()),
        ("not-directory", NamespaceError::NotDirectory.into()),
        ("is-directory", NamespaceError::IsDirectory.into()),
        ("not-empty", NamespaceError::NotEmpty.into()),
        ("namespace-invalid", NamespaceError::Invalid.into()),
        ("not-permitted", NamespaceError::NotPermitted.into()),
        ("too-many-links", NamespaceError::TooManyLinks.into()),
        ("too-large", NamespaceError::TooLarge.into()),
        ("no-attribute", NamespaceError::NoAttribute.into()),
        ("no-space", NamespaceError::NoSpace.into()),
        ("quota", NamespaceError::Quota.into()),
        ("name-too-long", NamespaceError::NameTooLong.into()),
        ("read-only", NamespaceError::ReadOnly.into()),
        ("stale", NamespaceError::Stale.into()),
        ("deadlock", NamespaceError::Deadlock.into()),
        ("too-many-locks", NamespaceError::TooManyLocks.into()),
        ("busy-elsewhere", NamespaceError::Busy.into()),
    ]
}

pub fn chunk_request(op: ChunkOp) -> ChunkRequest {
    ChunkRequest {
        session: SessionId(10),
        sequence: Sequence(20),
        floor: Sequence(18),
        map_min: MapVersion(60),
        term: Term(5),
        snapshot: SnapshotNumber(0),
        group: GroupId(1),
        epoch: Epoch(9),
        contended: false,
        repeated: false,
        op,
    }
}

pub fn chunk_ops() -> Named<ChunkOp> {
    let (volume, inode, generation) = (VolumeId(4), InodeId(500), Generation(6));
    let from = ChunkIndex(7);
    vec![
        ("write", ChunkOp::Write { chunk: chunk(), offset: 4095, sums: vec![1, 0xffff_ffff] }),
        ("zero", ChunkOp::Zero { chunk: chunk(), offset: 1, length: 2 }),
        ("cut", ChunkOp::Cut { chunk: chunk(), length: 3 }),
        ("delete", ChunkOp::Delete { volume, inode, generation, from }),
        ("delete-volume", ChunkOp::DeleteVolume { volume }),
        ("read", ChunkOp::Read { chunk: chunk(), offset: 4, length: 5 }),
        ("made", ChunkOp::Made { chunk: chunk(), sequence: Sequence(42) }),
        ("highest", ChunkOp::Highest { volume, inode, generation, from }),
        ("allocated", ChunkOp::Allocated { volume, inode, generation, from, upto: ChunkIndex(9) }),
    ]
}

pub fn chunk_answers() -> Named<ChunkAnswer> {
    let refused = ChunkAnswer::Refused;
    let ranges = vec![ByteRange { start: 7 << 22, end: (7 << 22) + 8 }];
    let allocated = ChunkAnswer::Allocated { ranges, through: ChunkIndex(u64::MAX) };
    vec![
        ("done", ChunkAnswer::Done { number: number() }),
        ("data", ChunkAnswer::Data { sums: vec![5] }),
        ("made", ChunkAnswer::Made { stands: true }),
        ("highest", ChunkAnswer::Highest { found: Some((ChunkIndex(7), 8)) }),
        ("allocated", allocated),
        ("wrong-epoch", refused(Refusal::WrongEpoch { asked: Epoch(8), current: Epoch(9), version: MapVersion(60) })),
        ("not-primary", refused(Refusal::NotPrimary)),
        ("old-map", refused(Refusal::OldMap { have: MapVersion(59) })),
        ("session-ended", refused(Refusal::SessionEnded)),
        ("stale-sequence", refused(Refusal::StaleSequence)),
        ("forbidden", refused(Refusal::Forbidden)),
        ("damaged", refused(Refusal::Damaged)),
        ("malformed", refused(Refusal::Malformed)),
        ("no-space", refused(Refusal::NoSpace)),
        ("bad-block", refused(Refusal::BadBlock)),
        ("not-serving", refused(Refusal::NotServing { reason: "why".into() })),
        ("io", refused(Refusal::Io)),
    ]
}

pub fn group_message(body: GroupBody) -> GroupMessage {
    GroupMessage {
        group: GroupId(1),
        epoch: Epoch(9),
        from: member(1),
        to: member(2),
        map: MapVersion(60),
        settled: number(),
        body,
    }
}

pub fn group_bodies() -> Named<GroupBody> {
    let (stream, id) = (30, 31);
    let range = KeyRange::chunk(chunk());
    let digest = ChunkDigest { chunk: chunk(), length: 32, digest: 33 };
    let difference = Difference { chunk: chunk(), length: 34, sums: vec![35], contenders: vec![contender()] };
    let (length, digest_of, hash) = (42, 43, [44; 32]);
    let checked = CheckedChunk { chunk: chunk(), length, digest: digest_of, hash, bad: 45, left: 46, bytes: 47 };
    let mut all = vec![
        ("here", GroupBody::Here),
        ("stale", GroupBody::Stale),
        ("idle", GroupBody::Idle { stream, position: 2 }),
        ("persisted", GroupBody::Persisted { stream, durable: 1, received: 2, gap: true, low: false, stuck: true }),
        ("query", GroupBody::Query { stream }),
        ("report", GroupBody::Report { stream, last: number(), settled: number(), changed: vec![range] }),
        ("compare", GroupBody::Compare { stream, id, range, chunks: vec![digest] }),
        ("differences", GroupBody::Differences { stream, id, through: chunk(), chunks: vec![difference] }),
        ("confirm", GroupBody::Confirm { round: 36 }),
        ("confirmed", GroupBody::Confirmed { round: 37 }),
        ("fetch", GroupBody::Fetch { id, chunk: chunk(), blocks: vec![41] }),
        ("fetched", GroupBody::Fetched { id, chunk: chunk(), blocks: vec![41] }),
        ("scrub-check", GroupBody::Check { id, range }),
        ("scrub-checked", GroupBody::Checked { id, through: chunk(), chunks: vec![checked] }),
        ("scrubbed", GroupBody::Scrubbed(scrub_result())),
    ];
    let operation = |change| GroupBody::Operation {
        stream,
        position: 1,
        number: number(),
        origin: Origin { session: SessionId(10), sequence: Sequence(20), contended: true },
        change,
    };
    all.extend(group_changes().into_iter().map(|(name, change)| (name, operation(change))));
    all
}

fn scrub_result() -> ScrubResult {
    ScrubResult { chunks: 48, bytes: 49, bad: 50, repaired: 51, different: 52, equalized: 53 }
}

fn contender() -> Contender {
    Contender { session: SessionId(38), last: Sequence(40), cut: Sequence(39) }
}

fn group_changes() -> Named<GroupChange> {
    let (volume, inode, generation) = (VolumeId(4), InodeId(500), Generation(6));
    vec![
        ("operation-write", GroupChange::Write { chunk: chunk(), offset: 1, sums: vec![2] }),
        ("operation-zero", GroupChange::Zero { chunk: chunk(), offset: 1, length: 2 }),
        ("operation-cut", GroupChange::Cut { chunk: chunk(), length: 3 }),
        ("operation-delete", GroupChange::Delete { volume, inode, generation, from: ChunkIndex(7) }),
        ("operation-delete-chunk", GroupChange::DeleteChunk { chunk: chunk() }),
        (
            "operation-copy",
            GroupChange::Copy {
                chunk: chunk(),
                length: 8192,
                runs: vec![CopyRun { offset: 4096, length: 4096, sums: vec![7] }],
                contenders: vec![contender()],
            },
        ),
        ("operation-delete-volume", GroupChange::DeleteVolume { volume }),
        ("operation-mark", GroupChange::Mark),
    ]
}

pub fn peer_messages() -> Named<PeerMessage> {
    let part = SnapshotPart {
        shard: ShardId(1),
        transfer: 40,
        term: Term(5),
        index: LogIndex(1000),
        index_term: Term(4),
        part: 2,
        rows: vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))],
        last: true,
    };
    vec![
        (
            "raft",
            PeerMessage::Raft { shard: ShardId(1), from_life: 7, to_life: 8, bytes: Bytes::from_static(b"\x08\x01") },
        ),
        ("stranger", PeerMessage::Stranger { life: 7 }),
        (
            "forward",
            PeerMessage::Forward { id: 41, envelope: envelope(Request::FenceSession { session: SessionId(9) }) },
        ),
        (
            "forwarded",
            PeerMessage::Forwarded { id: 41, answer: answer(Ok(Response::Fenced { version: MapVersion(61) })) },
        ),
        ("snapshot", PeerMessage::Snapshot(part)),
        ("snapshot-seen", PeerMessage::SnapshotSeen { shard: ShardId(1), transfer: 40, next: 3, done: false }),
        ("little-room", PeerMessage::LittleRoom),
        ("space", PeerMessage::Space(PoolSpace { total: 1 << 40, free: 2, available: 1 })),
    ]
}

pub fn admin_answers() -> Named<AdminAnswer> {
    let shard = ShardStatus { leader: Some(ServerId(1)), term: Term(5), applied: LogIndex(6), last: LogIndex(7) };
    let server = ServerStatus { id: ServerId(1), pid: 79, shards: vec![shard], halted: Some("at @9".into()) };
    let check = TableCheck {
        check: 2,
        inodes: (3, 4),
        entries: 5,
        findings: vec!["wrong".into()],
        findings_total: 6,
        done: true,
        failed: Some("why".into()),
    };
    let chunk = ChunkFacts { chunk: chunk(), length: 4096, digest: 7, damaged: true };
    let result = scrub_result();
    let scrub = GroupScrub { group: GroupId(4), last: Some((8, result)), running: Some(result), due: 9 };
    let member = MemberId { node: NodeId(1), disk: DiskId(2), incarnation: Incarnation(3) };
    let file = WholeFile { volume: VolumeId(1), inode: InodeId(2), generation: Generation(3), size: 4 };
    let group = HeldGroup { group: GroupId(4), member, last: OpNumber { epoch: Epoch(5), count: OpCount(6) } };
    vec![
        ("server", AdminAnswer::Server(server)),
        ("refused", AdminAnswer::Refused("why".into())),
        ("check", AdminAnswer::Check(check)),
        ("chunks", AdminAnswer::Chunks(vec![chunk])),
        ("scrubs", AdminAnswer::Scrubs(vec![scrub])),
        ("held", AdminAnswer::Held(HeldTable { backup: 1, index: LogIndex(2), term: Term(3), bytes: 4 })),
        ("behind", AdminAnswer::Behind { applied: LogIndex(5) }),
        ("rows", AdminAnswer::Rows { rows: vec![(Bytes::from_static(b"key"), Bytes::new())], last: true }),
        ("files", AdminAnswer::Files { files: vec![file], next: Some((VolumeId(1), InodeId(2))) }),
        ("node", AdminAnswer::Node(Box::new(HeldByNode { map: map(), groups: vec![group] }))),
    ]
}

pub fn admin_requests() -> Named<AdminRequest> {
    let member = MemberId { node: NodeId(1), disk: DiskId(2), incarnation: Incarnation(3) };
    let range = KeyRange::chunk(chunk());
    let list = AdminRequest::ListChunks { member, group: GroupId(4), range, limit: 5, verify: true };
    vec![
        ("request", AdminRequest::ServerStatus),
        ("request-check-begin", AdminRequest::CheckBegin),
        ("request-check-poll", AdminRequest::CheckPoll { check: 2 }),
        ("request-list-chunks", list),
        ("request-scrub-status", AdminRequest::ScrubStatus),
        ("request-scrub-now", AdminRequest::ScrubNow),
        ("request-backup-begin", AdminRequest::BackupBegin { at_least: LogIndex(6) }),
        ("request-backup-join", AdminRequest::BackupJoin { backup: 1, at_least: LogIndex(6) }),
        (
            "request-backup-rows",
            AdminRequest::BackupRows { backup: 1, shard: ShardId(1), after: Bytes::from_static(b"key") },
        ),
        ("request-backup-end", AdminRequest::BackupEnd { backup: 1 }),
        ("request-list-files", AdminRequest::ListFiles { after: (VolumeId(1), InodeId(2)), limit: 3 }),
        ("request-held-map", AdminRequest::HeldMap),
    ]
}

fn cluster_status() -> ClusterStatus {
    let (takes_us, peers_us) = (300_000, 4_000);
    let slow = Some(Slowness { what: SlowIn::Writes, takes_us, peers_us, out: true, on_probation: false });
    let disk = DiskStatus { id: DiskId(2), incarnation: Incarnation(3), capacity: 4, free: 5, failed: true, slow };
    let storage = StorageStatus {
        id: NodeId(1),
        address: "10.0.0.1:5000".into(),
        pid: 80,
        alive: true,
        primary_of: 1,
        in_sync_of: 2,
        syncing_of: 3,
        place: StoragePlace::Draining,
        home_of: 4,
        leaving_of: 5,
        given_up: true,
        labels: vec![("rack".into(), "r1".into())],
        disks: vec![disk],
    };
    let session = SessionStatus {
        id: SessionId(10),
        volume: VolumeId(4),
        host: "host".into(),
        pid: 81,
        mount_point: "/mnt".into(),
        instance: "db-0".into(),
        instance_generation: InstanceGeneration(3),
        state: SessionState::Attached { caching: true },
    };
    let silent = SessionStatus { state: SessionState::Silent { since: Timestamp::from_nanos(9) }, ..session.clone() };
    let ending = SessionStatus { state: SessionState::Ending { reason: "fenced".into() }, ..session.clone() };
    let attaching = SessionStatus { state: SessionState::Attaching, ..session.clone() };
    ClusterStatus {
        cluster: ClusterId(1 << 120),
        version: MapVersion(60),
        replicas: 3,
        groups_total: 256,
        groups_degraded: 2,
        groups_waiting: 1,
        degraded: vec![GroupId(7)],
        metadata: [
            ServerPlace::Voter,
            ServerPlace::Joining { replaces: Some(ServerId(1)) },
            ServerPlace::Leaving,
            ServerPlace::Gone,
        ]
        .into_iter()
        .zip(1..)
        .map(|(place, id)| ServerRecord { id: ServerId(id), address: "10.0.0.1:4101".into(), place })
        .collect(),
        storage: vec![storage],
        storage_gone: vec![NodeId(9)],
        rebuild: RebuildStatus { lost: 1, draining: 2, moving: 3, under_way: 4, bytes_left: 5, seconds_left: Some(6) },
        sessions: vec![session, silent, ending, attaching],
    }
}
