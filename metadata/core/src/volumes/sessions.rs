//! Sessions of a volume: who may cache, who is told what, and what becomes of those that end.

use super::answers::live;
use super::{generations, rows};
use crate::error::{Applied, Fail, ensure};
use crate::machine::Context;
use crate::ops::{Op, settle_bounds};
use crate::tables::answer;
use crate::tables::entry::COOKIE_FIRST;
use crate::tables::inode::{self, InodeRow};
use crate::tables::lock;
use crate::tables::mark;
use crate::tables::session::{self, EndedFloorRow, EndedRow, Phase, SessionRow, Told};
use crate::tables::volume::{self, VolumeRow};
use crate::tables::{Key, number_at};
use crate::txn::Txn;
use holdfast_types::{Generation, InodeId, SessionId, Timestamp, VolumeId};
use holdfast_wire::metadata::{ClientRecord, MetadataError, Response};
use holdfast_wire::namespace::{FileKind, VolumeRecord};

/// Sessions that are over and still known one by one; older ones are known by the floor.
const ENDED_KEPT: usize = 1024;

/// Attached and ending sessions of a volume.
pub(super) fn others(txn: &Txn<'_>, volume: VolumeId, but: SessionId) -> Applied<Vec<(SessionId, SessionRow)>> {
    let all = rows::<SessionRow>(txn, Key::of(session::SESSION).done(), usize::MAX)?;
    let of_volume = all.into_iter().map(|(key, row)| (SessionId(number_at(&key, 0)), row));
    Ok(of_volume.filter(|(id, row)| row.volume == volume && *id != but).collect())
}

pub(super) fn attach(
    txn: &mut Txn<'_>,
    context: &Context<'_>,
    session: SessionId,
    record: &VolumeRecord,
    client: &ClientRecord,
    read_only: bool,
) -> Applied<Response> {
    if let Some(row) = txn.get::<SessionRow>(&session::key(session))? {
        live(txn, session)?;
        return attached(txn, context, session, &row);
    }
    let floor: EndedFloorRow = txn.get(&session::ended_floor())?.unwrap_or_default();
    let ended: Option<EndedRow> = txn.get(&session::ended(session))?;
    if ended.is_some() || session <= floor.floor {
        let reason = ended.map_or_else(|| "over for long".into(), |row| row.reason);
        return Err(Fail::Unkept(MetadataError::SessionEnded { reason }));
    }
    if txn.get_raw(&volume::dropped(record.id))?.is_some() {
        return Err(Fail::Unkept(MetadataError::NoVolume { name: record.name.clone() }));
    }
    generations::admits(txn, record.id, client)?;
    let others = others(txn, record.id, session)?;
    if let Some(by) = others.iter().filter_map(|(_, row)| superseding(&row.client, client)).max() {
        return Err(Fail::Unkept(MetadataError::Superseded { by }));
    }
    let in_the_way =
        |row: &SessionRow| row.caching || row.phase != Phase::Attached || superseding(client, &row.client).is_some();
    if others.iter().any(|(_, row)| in_the_way(row)) {
        return Err(Fail::Wait);
    }
    if txn.get_raw(&volume::key(record.id))?.is_none() {
        make_root(txn, record, context.stamp);
    }
    let row = SessionRow {
        volume: record.id,
        client: client.clone(),
        read_only,
        phase: Phase::Attached,
        caching: others.is_empty(),
        event: 0,
        told: Told::Nothing,
        parked: None,
    };
    txn.put(session::key(session), &row);
    if !client.instance.is_empty() {
        generations::raise(txn, context, record.id, &client.instance, client.instance_generation)?;
    }
    attached(txn, context, session, &row)
}

/// The generation of `newer` if it takes the place of `older`: another life of the same instance.
pub(crate) fn superseding(newer: &ClientRecord, older: &ClientRecord) -> Option<holdfast_types::InstanceGeneration> {
    let same = !newer.instance.is_empty() && newer.instance == older.instance;
    (same && newer.instance_generation > older.instance_generation).then_some(newer.instance_generation)
}

fn attached(txn: &Txn<'_>, context: &Context<'_>, session: SessionId, row: &SessionRow) -> Applied<Response> {
    let root: Option<InodeRow> = txn.get(&inode::key(row.volume, InodeId::ROOT))?;
    let root = root.ok_or_else(|| Fail::Broken(format!("{} has no root", row.volume)))?;
    // What was told and not yet answered is not history.
    let pending = row.caching && row.told == Told::Stop;
    Ok(Response::Attached {
        root: root.attributes(InodeId::ROOT, session),
        caching: row.caching,
        now: context.stamp,
        event: if pending { row.event - 1 } else { row.event },
    })
}

fn make_root(txn: &mut Txn<'_>, record: &VolumeRecord, stamp: Timestamp) {
    let root = InodeRow {
        kind: FileKind::Directory,
        mode: 0o755,
        links: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        atime: stamp,
        mtime: stamp,
        ctime: stamp,
        btime: stamp,
        generation: Generation(1),
        parent: InodeId::ROOT,
        cookie_next: COOKIE_FIRST,
        trim: None,
        bounds: Vec::new(),
        late: Vec::new(),
        stale_bound: 0,
        cuts: 0,
        sparse: false,
    };
    txn.put(inode::key(record.id, InodeId::ROOT), &root);
    let inode_next = InodeId::ROOT.next();
    let row = VolumeRow {
        record: record.clone(),
        inode_next,
        bytes_used: 0,
        inodes_used: 1,
        bytes_granted: 0,
        generation_floor: Generation(0),
    };
    txn.put(volume::key(record.id), &row);
}

pub(super) fn recall(txn: &mut Txn<'_>, session: SessionId) -> Applied<Response> {
    let mut row = live(txn, session)?;
    if row.caching && row.told != Told::Stop {
        row.told = Told::Stop;
        row.event += 1;
        txn.put(session::key(session), &row);
    }
    Ok(Response::Done)
}

pub(super) fn stopped_caching(
    txn: &mut Txn<'_>,
    context: &Context<'_>,
    (session, event): (SessionId, u64),
    open: &[InodeId],
) -> Applied<Response> {
    let mut row = live(txn, session)?;
    if !row.caching || row.told != Told::Stop || event != row.event {
        return Ok(Response::Done);
    }
    row.caching = false;
    txn.put(session::key(session), &row);
    for inode in open {
        if txn.get_raw(&inode::key(row.volume, *inode))?.is_some() {
            let mut op = Op { txn, volume: row.volume, session, caching: false, stamp: context.stamp };
            op.add_opener(*inode);
        }
    }
    Ok(Response::Done)
}

pub(super) fn start_caching(txn: &mut Txn<'_>, session: SessionId) -> Applied<Response> {
    let mut row = live(txn, session)?;
    if row.caching || !others(txn, row.volume, session)?.is_empty() {
        return Ok(Response::Done);
    }
    row.caching = true;
    row.told = Told::Start;
    row.event += 1;
    txn.put(session::key(session), &row);
    // From now on the session itself says what is open when it removes a name. What is recorded stays until it says that it has
    // closed it: an unlink that it sent before it heard of this does not name what it knows to be recorded.
    Ok(Response::Done)
}

pub(super) fn end(txn: &mut Txn<'_>, sessions: &[(SessionId, String)]) -> Applied<Response> {
    for (session, reason) in sessions {
        match txn.get::<SessionRow>(&session::key(*session))? {
            Some(mut row) => {
                if row.phase == Phase::Attached {
                    row.phase = Phase::Ending { reason: reason.clone() };
                    txn.put(session::key(*session), &row);
                }
            }
            None => {
                let floor: EndedFloorRow = txn.get(&session::ended_floor())?.unwrap_or_default();
                if *session > floor.floor && txn.get_raw(&session::ended(*session))?.is_none() {
                    txn.put(session::ended(*session), &EndedRow { reason: reason.clone() });
                    forget_oldest(txn)?;
                }
            }
        }
    }
    Ok(Response::Done)
}

/// Gives back some of what a fenced session held; the last step forgets the session.
pub(super) fn end_step(
    txn: &mut Txn<'_>,
    context: &mut Context<'_>,
    session: SessionId,
    limit: usize,
) -> Applied<Response> {
    let Some(row) = txn.get::<SessionRow>(&session::key(session))? else { return Ok(Response::Done) };
    let Phase::Ending { reason } = row.phase else {
        return Err(Fail::Broken(format!("session {session} is taken apart but lives")));
    };
    let mut left = limit.max(1);
    // Locks before openers: a file that goes with its last opener has none left.
    while left > 0 {
        let Some((key, _)) = txn.prefix(lock::all_by_session(session), 1)?.into_iter().next() else { break };
        let (volume, inode) = mark::volume_and_inode(&key);
        let mut op = Op { txn, volume, session, caching: false, stamp: context.stamp };
        let dropped = op.drop_locks(inode, left)?;
        ensure!(dropped > 0, "{volume}: {session} counts locks on {inode} and holds none");
        left -= dropped;
    }
    for (key, _) in txn.prefix(mark::opened_by(session), left)? {
        let (volume, inode) = mark::volume_and_inode(&key);
        Op { txn, volume, session, caching: false, stamp: context.stamp }.close(inode)?;
        left -= 1;
    }
    for (key, _) in txn.prefix(mark::bounds_of(session), left)? {
        let (volume, inode) = mark::volume_and_inode(&key);
        make_stale(txn, context, (volume, inode), session)?;
        left -= 1;
    }
    for (key, _) in txn.prefix(answer::of(session), left)? {
        txn.remove(key.to_vec());
        left -= 1;
    }
    if left > 0 {
        txn.remove(session::key(session));
        txn.remove(answer::answers(session));
        txn.put(session::ended(session), &EndedRow { reason });
        forget_oldest(txn)?;
    }
    Ok(Response::Done)
}

/// A session's bound becomes one that nobody holds.
fn make_stale(
    txn: &mut Txn<'_>,
    context: &Context<'_>,
    (volume, inode): (VolumeId, InodeId),
    session: SessionId,
) -> Applied<()> {
    txn.remove(mark::bound(session, volume, inode));
    let row: Option<InodeRow> = txn.get(&inode::key(volume, inode))?;
    let mut row = row.ok_or_else(|| Fail::Broken(format!("{volume}: {inode} is bound but missing")))?;
    let before = row.charges();
    let bound = row.unbind(session);
    ensure!(bound > 0, "{volume}: {inode} does not know the bound of {session}");
    row.stale_bound = row.stale_bound.max(bound);
    let mut op = Op { txn, volume, session, caching: false, stamp: context.stamp };
    settle_bounds(&mut op, inode, &mut row);
    op.charge(before, row.charges(), 0)?;
    op.put_inode(inode, &row);
    Ok(())
}

/// Keeps the table of ended sessions small.
fn forget_oldest(txn: &mut Txn<'_>) -> Applied<()> {
    let ended = txn.prefix(Key::of(session::ENDED).done(), ENDED_KEPT + 2)?;
    if ended.len() > ENDED_KEPT {
        let (key, _) = &ended[0];
        // A restored backup has put it far above the sessions that it ended.
        let before: EndedFloorRow = txn.get(&session::ended_floor())?.unwrap_or_default();
        let floor = before.floor.max(SessionId(number_at(key, 0)));
        txn.put(session::ended_floor(), &EndedFloorRow { floor });
        txn.remove(key.to_vec());
    }
    Ok(())
}

pub(super) fn park(txn: &mut Txn<'_>, context: &Context<'_>, sessions: &[(SessionId, bool)]) -> Applied<Response> {
    for (session, silent) in sessions {
        let Some(mut row) = txn.get::<SessionRow>(&session::key(*session))? else { continue };
        if row.parked.is_some() != *silent {
            row.parked = silent.then_some(context.stamp);
            txn.put(session::key(*session), &row);
        }
    }
    Ok(Response::Done)
}
