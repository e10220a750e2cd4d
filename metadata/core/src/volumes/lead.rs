//! What shard 1's leader does beside applying: requests, reads, and what becomes of each.
//!
//! Everything here is in memory and begins afresh with every leader; what must survive is in the log.

use super::answers::live;
use super::locks::LockWaits;
use super::purge::Cleaner;
use super::waiting::{Superseded, Waiting};
use crate::command::{Command, VolumesCommand};
use crate::core::{Asker, MetadataCore, Waiter};
use crate::error::{Applied, Fail};
use crate::replica::{Event, Outcome, Token, describe};
use crate::tables::session::EndedFloorRow;
use crate::tables::volume::{self, VolumeRow};
use crate::txn::Txn;
use holdfast_store::Batch;
use holdfast_types::limits::NAME_BYTES_MAX;
use holdfast_types::{InodeId, Sequence, SessionId, ShardId, VolumeId};
use holdfast_wire::metadata::{Envelope, MetadataError, Request, Response};
use holdfast_wire::namespace::{Mutation, Outcome as Output, Query};
use holdfast_wire::peer::PoolSpace;
use std::collections::{BTreeMap, BTreeSet};

const SHARD: ShardId = ShardId::VOLUMES;

/// What a proposed command is for.
#[derive(Debug)]
enum Purpose {
    /// A mutation: all who asked for it are in `mutations`.
    Mutation { session: SessionId, sequence: Sequence, again: Option<Box<VolumesCommand>> },
    /// Its answer goes to somebody.
    Answer(Asker),
    /// An attach, which may have to wait again.
    Attach(SessionId),
    /// A generation was raised.
    Raise(Waiter, Superseded),
    /// The end of a session that asked for it.
    Detach(Waiter, SessionId),
    /// A parked session is heard again, and renews.
    Revive(Waiter, SessionId, u64, bool),
    /// Of the leader's own making.
    Own(Work),
}

/// Commands of the leader's own, of which one of a kind is in flight at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Work {
    Recall(SessionId),
    Start(SessionId),
    End,
    EndStep(SessionId),
    Park,
    Cleaned,
    Drop(holdfast_types::VolumeId),
    Limit(holdfast_types::VolumeId),
    Room,
}

/// What a read is for.
#[derive(Debug)]
pub(super) enum ReadFor {
    Query(Waiter, SessionId, Query),
    Renewal { waiter: Waiter, session: SessionId, seen: u64, wait: bool },
    Inspection(Waiter, Vec<(VolumeId, InodeId)>),
}

/// A mutation that waits until bytes of a file are gone.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) session: SessionId,
    pub(super) sequence: Sequence,
    pub(super) command: VolumesCommand,
}

/// The leader's memory.
#[derive(Debug, Default)]
pub(crate) struct VolumesLead {
    purposes: BTreeMap<Token, Purpose>,
    reads: BTreeMap<Token, ReadFor>,
    /// Who waits for a mutation's answer; a retry joins.
    pub(super) mutations: BTreeMap<(SessionId, Sequence), Vec<Waiter>>,
    pub(super) held: Vec<Held>,
    pub(super) held_reads: Vec<(Waiter, SessionId, InodeId)>,
    /// Who waits for a lock.
    /// Versions of limits that are known to hold here.
    limits: BTreeMap<VolumeId, u64>,
    pub(super) lock_waits: LockWaits,
    /// Whose locks somebody was refused for, and when last, in ticks.
    pub(super) locks_wanted: BTreeMap<SessionId, u64>,
    in_flight: BTreeSet<Work>,
    /// Since when this server leads, in ticks; `None` while it does not.
    pub(super) since: Option<u64>,
    pub(super) waiting: Waiting,
    pub(super) cleaner: Cleaner,
}

impl VolumesLead {
    /// Whether a command of a kind is on its way.
    pub(super) fn is_busy(&self, work: Work) -> bool {
        self.in_flight.contains(&work)
    }
}

impl MetadataCore {
    pub(crate) fn volumes_request(&mut self, waiter: Waiter, envelope: Envelope) {
        let Envelope { session, sequence, answered_below, term, request, .. } = envelope;
        if let Request::InspectInodes { inodes } = request {
            return self.volumes_read(ReadFor::Inspection(waiter, inodes));
        }
        if let Request::EndSession { session } = request {
            return self.end_session(waiter.asker, session);
        }
        if let Request::RaiseGeneration { volume, instance, generation } = request {
            return self.raise_generation(waiter, Superseded { volume, instance, generation });
        }
        if session == SessionId::NONE || session == SessionId::SERVICE {
            let reason = "a request to a volume needs a session".into();
            return self.refuse(waiter.asker, SHARD, MetadataError::Invalid { reason });
        }
        self.heard_session(session);
        match request {
            Request::Mutate(mutation) => {
                let command = VolumesCommand::Mutate { session, sequence, answered_below, term, mutation };
                self.mutate(waiter, (session, sequence), command);
            }
            Request::Query(query) => self.volumes_read(ReadFor::Query(waiter, session, query)),
            Request::Renew { seen, wait } => {
                let parked = self.volumes.machine.sessions().get(&session).is_some_and(|row| row.parked.is_some());
                if parked {
                    let command = VolumesCommand::Park { sessions: vec![(session, false)] };
                    self.propose_volumes(Purpose::Revive(waiter, session, seen, wait), command);
                } else {
                    self.volumes_read(ReadFor::Renewal { waiter, session, seen, wait });
                }
            }
            Request::Attach { volume, client, read_only } => {
                self.attach_request(waiter, session, VolumesCommand::Attach { session, volume, client, read_only });
            }
            Request::StoppedCaching { event, open } => {
                let command = VolumesCommand::StoppedCaching { session, event, open };
                self.propose_volumes(Purpose::Answer(waiter.asker), command);
            }
            Request::Detach => {
                let command = VolumesCommand::End { sessions: vec![(session, "detached".into())] };
                self.propose_volumes(Purpose::Detach(waiter, session), command);
            }
            Request::OpenSession { .. }
            | Request::EndSession { .. }
            | Request::RaiseGeneration { .. }
            | Request::LabelVolume { .. }
            | Request::DescribeVolume { .. }
            | Request::DescribeVolumes { .. }
            | Request::FenceSession { .. }
            | Request::GetMap { .. }
            | Request::Heartbeat(_)
            | Request::Promote { .. }
            | Request::Evict { .. }
            | Request::ReportGone { .. }
            | Request::LeaveViews { .. }
            | Request::LeadVolumes { .. }
            | Request::ServerArrived { .. }
            | Request::AddServer { .. }
            | Request::RemoveServer { .. }
            | Request::PlaceStorage { .. }
            | Request::CreateVolume { .. }
            | Request::LimitVolume { .. }
            | Request::DeleteVolume { .. }
            | Request::ListVolumes
            | Request::Status
            | Request::InspectInodes { .. } => unreachable!("answered before, or not given to shard 1"),
        }
    }

    /// An administrator's fence holds for names as well as for bytes once this is applied, whenever shard 0 is heard of here.
    fn end_session(&mut self, asker: Asker, session: SessionId) {
        if session > self.cluster.machine.settings.session_newest {
            // A later session must not be over before it begins.
            let reason = format!("session {session} is not known here yet; ask again");
            return self.refuse(asker, SHARD, MetadataError::Unavailable { reason });
        }
        let command = VolumesCommand::End { sessions: vec![(session, "fenced by an administrator".into())] };
        self.propose_volumes(Purpose::Answer(asker), command);
    }

    fn raise_generation(&mut self, waiter: Waiter, by: Superseded) {
        if by.instance.is_empty() || by.instance.len() > NAME_BYTES_MAX {
            let reason = format!("an instance has a name of 1 to {NAME_BYTES_MAX} bytes");
            return self.refuse(waiter.asker, SHARD, MetadataError::Invalid { reason });
        }
        let Superseded { volume, instance, generation } = by.clone();
        let command = VolumesCommand::RaiseGeneration { volume, instance, generation };
        self.propose_volumes(Purpose::Raise(waiter, by), command);
    }

    fn mutate(&mut self, waiter: Waiter, (session, sequence): (SessionId, Sequence), command: VolumesCommand) {
        if sequence.0 == 0 {
            let reason = "a mutation needs a sequence".into();
            return self.refuse(waiter.asker, SHARD, MetadataError::Invalid { reason });
        }
        let waiters = self.volumes_lead.mutations.entry((session, sequence)).or_default();
        waiters.push(waiter);
        if waiters.len() > 1 {
            self.counters.requests_joined += 1;
            return;
        }
        let may_wait = matches!(command, VolumesCommand::Mutate { mutation: Mutation::Reserve { .. }, .. });
        if self.config.mutations.answer_before_commit {
            self.answer_too_early((session, sequence), &command);
        }
        let again = may_wait.then(|| Box::new(command.clone()));
        self.propose_volumes(Purpose::Mutation { session, sequence, again }, command);
    }

    /// The deliberate bug: what the answer will probably be.
    fn answer_too_early(&mut self, key: (SessionId, Sequence), command: &VolumesCommand) {
        if let Some(output) = self.volumes.foresee(&Command::Volumes(command.clone()), &mut self.counters) {
            for waiter in self.volumes_lead.mutations.get(&key).cloned().unwrap_or_default() {
                self.answer(waiter.asker, SHARD, Some(output.at), output.result.clone());
            }
        }
    }

    pub(super) fn volumes_read(&mut self, read: ReadFor) {
        let token = self.token();
        self.volumes_lead.reads.insert(token, read);
        self.volumes.read(token);
    }

    fn propose_volumes(&mut self, purpose: Purpose, command: VolumesCommand) {
        let token = self.token();
        self.volumes_lead.purposes.insert(token, purpose);
        self.volumes.propose(token, Command::Volumes(command));
    }

    /// Proposes something of the leader's own, unless one of the kind is on its way.
    pub(crate) fn propose_own(&mut self, work: Work, command: VolumesCommand) {
        if self.volumes_lead.in_flight.insert(work) {
            self.propose_volumes(Purpose::Own(work), command);
        }
    }

    pub(super) fn propose_attach(&mut self, session: SessionId, command: VolumesCommand) {
        self.propose_volumes(Purpose::Attach(session), command);
    }

    /// Proposes a mutation that had to wait.
    pub(super) fn propose_held(&mut self, held: Held) {
        let Held { session, sequence, command } = held;
        let again = Some(Box::new(command.clone()));
        self.propose_volumes(Purpose::Mutation { session, sequence, again }, command);
    }

    /// Looks again whether bytes of a file are gone.
    pub(super) fn read_held(&mut self, waiter: Waiter, session: SessionId, inode: InodeId) {
        self.volumes_read(ReadFor::Query(waiter, session, Query::AwaitTrim { inode }));
    }

    pub(crate) fn volumes_event(&mut self, event: Event) {
        match event {
            Event::Proposed(token, outcome) => {
                if let Some(purpose) = self.volumes_lead.purposes.remove(&token) {
                    self.volumes_proposed(purpose, outcome);
                }
            }
            Event::Read(token, leads) => {
                if let Some(read) = self.volumes_lead.reads.remove(&token) {
                    self.volumes_read_ready(read, leads);
                }
            }
            Event::Leading => {
                self.volumes_lead.since = Some(self.ticks);
                self.volumes_lead.waiting.begin();
                self.volumes_lead.cleaner.begin();
            }
            Event::Deposed => self.volumes_deposed(),
            Event::Changed => {
                let changed = self.volumes.machine.take_changed();
                self.volumes_lead.cleaner.found_new |= changed.queues;
                self.volumes_lead.cleaner.look |= changed.queues;
                self.wake_lock_waits(changed.locks);
                if changed.sessions {
                    self.volumes_lead.waiting.look = true;
                    self.tell_sessions();
                }
            }
        }
    }

    fn volumes_proposed(&mut self, purpose: Purpose, outcome: Outcome) {
        match (purpose, outcome) {
            (Purpose::Mutation { session, sequence, .. }, Outcome::Applied(output)) => {
                if let Ok(Response::Outcome(Output::Locked { in_the_way: Some(holder), .. })) = &output.result
                    && *holder != session
                {
                    self.volumes_lead.locks_wanted.insert(*holder, self.ticks);
                }
                for waiter in self.volumes_lead.mutations.remove(&(session, sequence)).unwrap_or_default() {
                    self.answer(waiter.asker, SHARD, Some(output.at), output.result.clone());
                }
                // It may have given back what another waits for.
                self.volumes_lead.cleaner.look |= !self.volumes_lead.held.is_empty();
            }
            (Purpose::Mutation { session, sequence, again: Some(command) }, Outcome::Wait) => {
                self.volumes_lead.held.push(Held { session, sequence, command: *command });
            }
            (Purpose::Mutation { session, sequence, .. }, Outcome::Lost | Outcome::Wait) => {
                for waiter in self.volumes_lead.mutations.remove(&(session, sequence)).unwrap_or_default() {
                    self.refuse(waiter.asker, SHARD, lost());
                }
            }
            (Purpose::Answer(asker), Outcome::Applied(output)) => {
                self.answer(asker, SHARD, Some(output.at), output.result);
            }
            (Purpose::Answer(asker), Outcome::Lost | Outcome::Wait) => self.refuse(asker, SHARD, lost()),
            (Purpose::Attach(session), outcome) => self.attach_proposed(session, outcome),
            (Purpose::Detach(waiter, session), Outcome::Applied(_)) => self.detach_applied(waiter, session),
            (Purpose::Raise(waiter, by), Outcome::Applied(_)) => self.raise_applied(waiter, by),
            (Purpose::Revive(waiter, session, seen, wait), Outcome::Applied(_)) => {
                self.volumes_read(ReadFor::Renewal { waiter, session, seen, wait });
            }
            (
                Purpose::Detach(waiter, _) | Purpose::Revive(waiter, ..) | Purpose::Raise(waiter, _),
                Outcome::Lost | Outcome::Wait,
            ) => {
                self.refuse(waiter.asker, SHARD, lost());
            }
            (Purpose::Own(work), _) => {
                self.volumes_lead.in_flight.remove(&work);
                self.volumes_lead.waiting.look = true;
                self.volumes_lead.cleaner.look = true;
                self.volumes_lead.cleaner.found_new |= work == Work::Cleaned;
            }
        }
    }

    fn volumes_read_ready(&mut self, read: ReadFor, leads: bool) {
        let (waiter, session) = match &read {
            ReadFor::Query(waiter, session, _) | ReadFor::Renewal { waiter, session, .. } => (*waiter, *session),
            ReadFor::Inspection(waiter, _) => (*waiter, SessionId::NONE),
        };
        if !leads {
            let hint = self.volumes.leader();
            return self.refuse(waiter.asker, SHARD, MetadataError::NotLeader { hint });
        }
        match read {
            ReadFor::Query(_, _, query) => match self.query(session, &query) {
                Ok(response) => self.answer(waiter.asker, SHARD, None, Ok(response)),
                Err(Fail::Refused(error) | Fail::Unkept(error)) => self.refuse(waiter.asker, SHARD, error),
                Err(Fail::Wait) => match query {
                    Query::AwaitTrim { inode } => self.volumes_lead.held_reads.push((waiter, session, inode)),
                    Query::AwaitLock { inode, lock } => self.await_lock(waiter, session, inode, lock),
                    _ => unreachable!("no other query waits"),
                },
                Err(fail @ Fail::Broken(_)) => {
                    let reason = describe(&fail);
                    self.volumes.halt(self.volumes.applied_index(), reason.clone());
                    self.refuse(waiter.asker, SHARD, MetadataError::Unavailable { reason });
                }
            },
            ReadFor::Renewal { seen, wait, .. } => self.renewal(waiter, session, seen, wait),
            ReadFor::Inspection(_, inodes) => {
                let result = crate::fsck::inodes(&**self.volumes.table(), &inodes);
                let result = result.map(Response::Inodes).map_err(|reason| MetadataError::Unavailable { reason });
                self.answer(waiter.asker, SHARD, None, result);
            }
        }
    }

    fn query(&self, session: SessionId, query: &Query) -> Applied<Response> {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        let row = live(&txn, session)?;
        let pool = if *query == Query::StatVolume { self.pool_space() } else { PoolSpace::default() };
        Ok(Response::Outcome(crate::ops::query(&txn, row.volume, session, query, pool)?))
    }

    /// Whether a session is live, as applied here.
    pub(super) fn session_state(&self, session: SessionId) -> Result<(), MetadataError> {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        match live(&txn, session) {
            Ok(_) => Ok(()),
            Err(Fail::Refused(error) | Fail::Unkept(error)) => Err(error),
            Err(fail) => Err(MetadataError::Unavailable { reason: describe(&fail) }),
        }
    }

    /// Whether a session is known to be over.
    pub(super) fn is_ended(&self, session: SessionId) -> bool {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        let floor: Option<EndedFloorRow> = txn.get(&crate::tables::session::ended_floor()).unwrap_or_default();
        let below =
            floor.is_some_and(|row| session <= row.floor) && !self.volumes.machine.sessions().contains_key(&session);
        below || txn.get_raw(&crate::tables::session::ended(session)).is_ok_and(|row| row.is_some())
    }

    fn volumes_deposed(&mut self) {
        let hint = self.volumes.leader();
        let lead = std::mem::take(&mut self.volumes_lead);
        let held =
            lead.held.iter().filter_map(|held| lead.mutations.get(&(held.session, held.sequence))).flatten().copied();
        let locks = lead.lock_waits.all().map(|wait| wait.waiter);
        let reads = lead.held_reads.iter().map(|(waiter, ..)| *waiter).chain(locks);
        let waiters: Vec<Waiter> = held.chain(reads).chain(lead.waiting.waiters()).collect();
        for waiter in waiters {
            self.refuse(waiter.asker, SHARD, MetadataError::NotLeader { hint });
        }
        // Commands and reads on their way are told one by one.
        let held: BTreeSet<_> = lead.held.iter().map(|held| (held.session, held.sequence)).collect();
        self.volumes_lead.mutations = lead.mutations.into_iter().filter(|(key, _)| !held.contains(key)).collect();
        self.volumes_lead.purposes = lead.purposes;
        self.volumes_lead.reads = lead.reads;
        self.forget_forwards();
    }

    pub(crate) fn tick_volumes(&mut self) {
        if self.volumes_lead.since.is_none() {
            return;
        }
        self.tick_held();
        self.tick_lock_waits();
        self.tick_limits();
        self.tick_waiting();
        self.volumes_lead.cleaner.look = true;
        self.volumes_lead.cleaner.ticked = true;
        self.volumes_lead.waiting.look = true;
    }

    /// Limits are set in the cluster's shard, which every server has: what is new there is made so here.
    fn tick_limits(&mut self) {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        let mut newer = Vec::new();
        for record in self.cluster.machine.limited() {
            let known = self.volumes_lead.limits.get(&record.id).copied();
            if known == Some(record.limits_version) {
                continue;
            }
            // A table that cannot be read is found out by whoever reads it next.
            let row: Option<VolumeRow> = txn.get(&volume::key(record.id)).unwrap_or_default();
            // One that nobody has attached to yet gets its limits with its root.
            let Some(row) = row else { continue };
            newer.push((record.clone(), row.record.limits_version >= record.limits_version));
        }
        for (record, done) in newer {
            if done {
                self.volumes_lead.limits.insert(record.id, record.limits_version);
            } else {
                let (volume, version, limits) = (record.id, record.limits_version, record.limits());
                self.propose_own(Work::Limit(volume), VolumesCommand::Limit { volume, version, limits });
            }
        }
    }

    /// Those who wait for bytes to go or for their turn, and must be answered.
    fn tick_held(&mut self) {
        let now = self.now;
        let (due, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.volumes_lead.held_reads).into_iter().partition(|(waiter, ..)| waiter.is_due(now));
        self.volumes_lead.held_reads = kept;
        let mut refused: Vec<Waiter> = due.into_iter().map(|(waiter, ..)| waiter).collect();
        let lead = &mut self.volumes_lead;
        let mutations = &mut lead.mutations;
        lead.held.retain(|held| {
            let key = (held.session, held.sequence);
            let Some(waiters) = mutations.get_mut(&key) else { return false };
            refused.extend(waiters.extract_if(.., |waiter| waiter.is_due(now)));
            if waiters.is_empty() {
                mutations.remove(&key);
                return false;
            }
            true
        });
        for waiter in refused {
            let reason =
                "bytes that were cut off are still being removed, or another session writes at the end of the file"
                    .into();
            self.refuse(waiter.asker, SHARD, MetadataError::Unavailable { reason });
        }
    }

    /// Acts on what has changed: sessions, what is to be removed.
    pub(crate) fn drive_volumes(&mut self) {
        if self.volumes_lead.since.is_none() || !self.volumes.is_ready_to_lead() {
            return;
        }
        self.drive_sessions();
        self.drive_cleaning();
    }
}

fn lost() -> MetadataError {
    MetadataError::Unavailable { reason: "leadership was lost before the command was applied".into() }
}
