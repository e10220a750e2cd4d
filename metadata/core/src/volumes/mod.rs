//! Shard 1: the volumes' namespaces and the sessions attached to them.
//!
//! Invariants:
//! * At most one session of a volume caches, and none does while another one is attached, but for one that was told to stop.
//! * What an ending session held is given to nobody before every storage node refuses it.
//! * No session is let in with a lesser generation than one of the same instance that was let in before, attached or not.
//! * A mutation of one `(session, sequence)` takes effect once; its first answer is kept until the session has it.

pub(crate) mod answers;
pub(crate) mod deletion;
mod generations;
pub(crate) mod lead;
mod locks;
pub(crate) mod purge;
pub(crate) mod sessions;
pub(crate) mod waiting;

use crate::command::{Command, Trimmed, VolumesCommand};
use crate::error::{Applied, Fail};
use crate::machine::{Context, Machine, Output};
use crate::room;
use crate::tables::inode::{self, InodeRow};
use crate::tables::lock;
use crate::tables::mark;
use crate::tables::purge::{self as queue, TrimRow};
use crate::tables::session::{self, SessionRow};
use crate::tables::volume::{self, DroppedRow, VolumeRow};
use crate::tables::{Row, number_at};
use crate::txn::{Txn, decode};
use holdfast_store::{Batch, KeyRange, View};
use holdfast_types::{Generation, InodeId, SessionId, VolumeId};
use holdfast_wire::metadata::{MetadataError, Response};
use holdfast_wire::namespace::Limits;
use std::collections::{BTreeMap, BTreeSet};

/// The machine. Its state is the table; a few rows are held decoded for the leader's many looks at them.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    sessions: BTreeMap<SessionId, SessionRow>,
    dropped: BTreeMap<VolumeId, DroppedRow>,
    short_of_room: bool,
    changed: Changed,
}

/// What has changed since the leader last looked.
#[derive(Debug, Default)]
pub(crate) struct Changed {
    /// Sessions.
    pub(crate) sessions: bool,
    /// What is to be removed.
    pub(crate) queues: bool,
    /// Where locks were set or given back.
    pub(crate) locks: BTreeSet<lock::Place>,
}

impl Volumes {
    /// What has changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> Changed {
        std::mem::take(&mut self.changed)
    }

    /// Sessions that are attached or ending.
    pub(crate) fn sessions(&self) -> &BTreeMap<SessionId, SessionRow> {
        &self.sessions
    }

    /// Volumes that were deleted.
    pub(crate) fn dropped(&self) -> &BTreeMap<VolumeId, DroppedRow> {
        &self.dropped
    }

    /// Whether what grows is refused for want of room on the servers' disks.
    pub(crate) fn is_short_of_room(&self) -> bool {
        self.short_of_room
    }

    fn follow_row(&mut self, key: &[u8], value: Option<&bytes::Bytes>) -> Applied<()> {
        self.changed.sessions |= key[0] == session::SESSION;
        if key[0] == lock::LOCK {
            self.changed.locks.insert(lock::place(key));
        }
        self.changed.queues |= matches!(key[0], queue::PURGE | queue::TRIM | volume::DROPPED);
        match (key[0], value) {
            (session::SESSION, Some(value)) => {
                self.sessions.insert(SessionId(number_at(key, 0)), decode(key, value)?);
            }
            (session::SESSION, None) => {
                self.sessions.remove(&SessionId(number_at(key, 0)));
            }
            (volume::DROPPED, Some(value)) => {
                self.dropped.insert(VolumeId(number_at(key, 0)), decode(key, value)?);
            }
            (mark::SHORT_OF_ROOM, value) => self.short_of_room = value.is_some(),
            _ => {}
        }
        Ok(())
    }
}

impl Machine for Volumes {
    fn load(view: &dyn View) -> Applied<Self> {
        let mut machine = Self::default();
        for table in [session::SESSION, volume::DROPPED, mark::SHORT_OF_ROOM] {
            for pair in view.range(KeyRange::prefix(vec![table])) {
                let (key, value) = pair?;
                machine.follow_row(&key, Some(&value))?;
            }
        }
        Ok(machine)
    }

    fn apply(&mut self, txn: &mut Txn<'_>, context: &mut Context<'_>, command: &Command) -> Applied<Output> {
        let Command::Volumes(command) = command else {
            return Err(Fail::Broken("a command of shard 0 in the log of shard 1".into()));
        };
        let at = context.index;
        let response = match command {
            VolumesCommand::Mutate { session, sequence, answered_below, term, mutation } => {
                if term.0 != 0 && *term != context.term {
                    let reason = format!("leases were checked in {term}, this is {}", context.term);
                    return Err(Fail::Unkept(MetadataError::Unavailable { reason }));
                }
                return answers::mutate(txn, context, (*session, *sequence, *answered_below), mutation);
            }
            VolumesCommand::Attach { session, volume, client, read_only } => {
                sessions::attach(txn, context, *session, volume, client, *read_only)?
            }
            VolumesCommand::Recall { session } => sessions::recall(txn, *session)?,
            VolumesCommand::StoppedCaching { session, event, open } => {
                sessions::stopped_caching(txn, context, (*session, *event), open)?
            }
            VolumesCommand::StartCaching { session } => sessions::start_caching(txn, *session)?,
            VolumesCommand::End { sessions } => sessions::end(txn, sessions)?,
            VolumesCommand::EndStep { session, rows } => sessions::end_step(txn, context, *session, *rows as usize)?,
            VolumesCommand::RaiseGeneration { volume, instance, generation } => {
                generations::raise_and_end(txn, context, *volume, instance, *generation)?
            }
            VolumesCommand::Park { sessions } => sessions::park(txn, context, sessions)?,
            VolumesCommand::Limit { volume, version, limits } => limit(txn, *volume, *version, *limits)?,
            VolumesCommand::Room { short: true } => {
                txn.put_raw(room::key(), bytes::Bytes::new());
                Response::Done
            }
            VolumesCommand::Room { short: false } => {
                txn.remove(room::key());
                Response::Done
            }
            VolumesCommand::Cleaned { purged, trimmed } => cleaned(txn, purged, trimmed)?,
            VolumesCommand::DropVolume { volume } => deletion::drop_volume(txn, *volume)?,
            VolumesCommand::DropStep { volume, rows } => deletion::drop_step(txn, *volume, *rows as usize)?,
            VolumesCommand::Dropped { volume } => deletion::dropped(txn, *volume)?,
        };
        Ok(Output::done(at, response))
    }

    fn follow(&mut self, batch: &Batch) -> Applied<()> {
        batch.iter().try_for_each(|(key, value)| self.follow_row(key, value))
    }
}

/// A volume's limits are these from now on, unless newer ones are known.
fn limit(txn: &mut Txn<'_>, id: VolumeId, version: u64, limits: Limits) -> Applied<Response> {
    let row: Option<VolumeRow> = txn.get(&volume::key(id))?;
    if let Some(mut row) = row.filter(|row| row.record.limits_version < version) {
        row.record.bytes_max = limits.bytes;
        row.record.inodes_max = limits.inodes;
        row.record.limits_version = version;
        txn.put(volume::key(id), &row);
    }
    Ok(Response::Done)
}

/// Chunks are gone: purges leave the queue, and trims that are still the same end.
fn cleaned(txn: &mut Txn<'_>, purged: &[(VolumeId, InodeId, Generation)], trimmed: &[Trimmed]) -> Applied<Response> {
    for (volume, inode, generation) in purged {
        txn.remove(queue::purge(*volume, *inode, *generation));
    }
    for done in trimmed {
        let key = queue::trim(done.volume, done.inode);
        let row: Option<TrimRow> = txn.get(&key)?;
        if row != Some(TrimRow { generation: done.generation, from: done.from, to: done.to }) {
            continue;
        }
        txn.remove(key);
        let key = inode::key(done.volume, done.inode);
        let row: Option<InodeRow> = txn.get(&key)?;
        let mut row =
            row.ok_or_else(|| Fail::Broken(format!("{}: {} is trimmed but missing", done.volume, done.inode)))?;
        row.trim = None;
        txn.put(key, &row);
    }
    Ok(Response::Done)
}

/// All rows of a type under a prefix, with their keys.
pub(crate) fn rows<R: Row>(txn: &Txn<'_>, prefix: Vec<u8>, limit: usize) -> Applied<Vec<(Vec<u8>, R)>> {
    let pairs = txn.prefix(prefix, limit)?;
    pairs.into_iter().map(|(key, value)| Ok((key.to_vec(), decode(&key, &value)?))).collect()
}
