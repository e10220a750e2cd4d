//! Sessions as the leader sees them in time: who is silent, who waits for whom, who is told what.
//!
//! The volume-grain rule of caching:
//! ```text
//! second session attaches: holder told to stop ──it answers──▶ attached, nobody caches
//!                              └──silent for TTL and margin──▶ ending ──fenced──▶ attached
//! one session is left:     told to start (committed before it is told)
//! the others are parked:   after five minutes of it they are ending: whoever is left wants to cache
//! ```
//! * A holder that renews is never fenced, however long it takes.
//! * A new leader starts every timer afresh.
//! * A silent session that nobody waits for is parked: it loses nothing until somebody does, or a day has passed.

use super::generations;
use super::lead::Work;
use super::sessions::superseding;
use crate::api::ticks;
use crate::command::VolumesCommand;
use crate::core::{MetadataCore, Waiter};
use crate::error::Fail;
use crate::replica::Outcome;
use crate::tables::session::{Phase, SessionRow, Told};
use crate::txn::Txn;
use holdfast_store::Batch;
use holdfast_types::limits::{DRIFT_MARGIN, SESSION_TTL};
use holdfast_types::{InstanceGeneration, SessionId, ShardId, VolumeId};
use holdfast_wire::metadata::{ClientRecord, Event, MetadataError, Response};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SHARD: ShardId = ShardId::VOLUMES;
/// A session silent for longer is over even if nobody wants what it holds.
const PARKED_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Whoever is the only one heard on a volume for so long wants it for itself. Longer than a network is cut by an accident that somebody
/// is there to mend: nobody else has replaced those who are silent.
const ALONE_TICKS: u64 = ticks(Duration::from_secs(5 * 60));
/// A session that was opened but not attached for this long is over.
const UNATTACHED_TICKS_MAX: u64 = ticks(Duration::from_secs(60));
/// How often such sessions are looked for.
const LOOK_TICKS: u64 = 20;

/// Somebody waits to be attached.
#[derive(Debug)]
struct Attaching {
    waiter: Waiter,
    command: VolumesCommand,
    volume: VolumeId,
    client: ClientRecord,
    proposed: bool,
}

/// Sessions that somebody wants to be over: those of an instance with a lesser generation.
#[derive(Clone, Debug)]
pub(super) struct Superseded {
    pub(super) volume: VolumeId,
    pub(super) instance: String,
    pub(super) generation: InstanceGeneration,
}

impl Superseded {
    /// Whether it has such a session in mind.
    fn is(&self, row: &SessionRow) -> bool {
        row.volume == self.volume && generations::is_lesser(&row.client, &self.instance, self.generation)
    }
}

/// A renewal that waits for an event.
#[derive(Debug)]
struct Renewing {
    waiter: Waiter,
    session: SessionId,
    seen: u64,
}

/// The leader's memory of sessions.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Something has happened that sessions may depend on.
    pub(super) look: bool,
    /// When a session was last heard, in ticks.
    pub(super) heard: BTreeMap<SessionId, u64>,
    attaching: BTreeMap<SessionId, Attaching>,
    detaching: Vec<(Waiter, SessionId)>,
    /// Who waits until sessions of lesser generations are fenced.
    raising: Vec<(Waiter, Superseded)>,
    renewing: Vec<Renewing>,
    /// Sessions that every storage node refuses by now.
    fenced: BTreeSet<SessionId>,
    /// Sessions known to shard 0 and not attached here, and since when.
    unattached: BTreeMap<SessionId, u64>,
    /// Volumes all of whose sessions but one are silent, and since when.
    alone: BTreeMap<VolumeId, u64>,
    to_end: BTreeMap<SessionId, String>,
    /// As above, but for nothing else than their silence: a word from one of them, and it stays.
    to_end_silent: BTreeMap<SessionId, String>,
    to_park: Vec<(SessionId, bool)>,
}

impl Waiting {
    /// A leadership begins: every timer starts afresh.
    pub(super) fn begin(&mut self) {
        self.heard.clear();
        self.alone.clear();
        self.look = true;
    }

    /// All who wait for an answer.
    pub(super) fn waiters(&self) -> impl Iterator<Item = Waiter> + '_ {
        let attaching =
            self.attaching.values().filter(|attaching| !attaching.proposed).map(|attaching| attaching.waiter);
        let detaching = self.detaching.iter().map(|(waiter, _)| *waiter);
        let raising = self.raising.iter().map(|(waiter, _)| *waiter);
        attaching.chain(detaching).chain(raising).chain(self.renewing.iter().map(|renewing| renewing.waiter))
    }
}

impl MetadataCore {
    /// A session has said something: it lives.
    pub(super) fn heard_session(&mut self, session: SessionId) {
        self.volumes_lead.waiting.heard.insert(session, self.ticks);
        self.volumes_lead.waiting.to_end_silent.remove(&session);
        self.heard_of_opener(session);
    }

    /// Whether a session has said something to this leader within its TTL.
    fn is_heard_lately(&self, session: SessionId) -> bool {
        let heard = self.volumes_lead.waiting.heard.get(&session);
        heard.is_some_and(|heard| self.ticks < heard + ticks(SESSION_TTL))
    }

    /// Whether a session was silent for so long that its lease has run out by any clock.
    fn is_session_silent(&self, session: SessionId, row: &SessionRow) -> bool {
        let since = self.volumes_lead.since.unwrap_or(self.ticks);
        let heard = self.volumes_lead.waiting.heard.get(&session).map_or(since, |heard| (*heard).max(since));
        // One that is parked and has said something since is on its way back.
        let parked = row.parked.is_some() && !self.is_heard_lately(session);
        parked || self.ticks - heard > ticks(SESSION_TTL) + ticks(DRIFT_MARGIN)
    }

    pub(super) fn attach_request(&mut self, waiter: Waiter, session: SessionId, command: VolumesCommand) {
        let VolumesCommand::Attach { volume, client, .. } = &command else { return };
        let (volume, client) = (volume.id, client.clone());
        let attaching = Attaching { waiter, volume, client, proposed: false, command };
        self.volumes_lead.waiting.look = true;
        if let Some(before) = self.volumes_lead.waiting.attaching.insert(session, attaching) {
            let reason = "the session has asked again".into();
            self.refuse(before.waiter.asker, SHARD, MetadataError::Unavailable { reason });
        }
    }

    pub(super) fn attach_proposed(&mut self, session: SessionId, outcome: Outcome) {
        let Some(attaching) = self.volumes_lead.waiting.attaching.get_mut(&session) else { return };
        let asker = attaching.waiter.asker;
        match outcome {
            Outcome::Applied(output) => {
                self.volumes_lead.waiting.attaching.remove(&session);
                self.answer(asker, SHARD, Some(output.at), output.result);
            }
            Outcome::Wait => {
                attaching.proposed = false;
                self.volumes_lead.waiting.look = true;
            }
            Outcome::Lost => {
                self.volumes_lead.waiting.attaching.remove(&session);
                let reason = "leadership was lost before the session was attached".into();
                self.refuse(asker, SHARD, MetadataError::Unavailable { reason });
            }
        }
    }

    pub(super) fn detach_applied(&mut self, waiter: Waiter, session: SessionId) {
        self.volumes_lead.waiting.detaching.push((waiter, session));
    }

    /// No lesser generation is let in any more; those that were have still to be fenced.
    pub(super) fn raise_applied(&mut self, waiter: Waiter, by: Superseded) {
        self.volumes_lead.waiting.raising.push((waiter, by));
        self.tell_sessions();
    }

    /// A confirmed renewal: its events now, or when there is one.
    pub(super) fn renewal(&mut self, waiter: Waiter, session: SessionId, seen: u64, wait: bool) {
        if let Err(error) = self.session_state(session) {
            return self.refuse(waiter.asker, SHARD, error);
        }
        let Some(row) = self.volumes.machine.sessions().get(&session) else { return };
        let hold = wait && !self.is_sign_wanted(session);
        if hold && events_after(row, seen).is_empty() && !waiter.is_due(self.now) {
            self.volumes_lead.waiting.renewing.push(Renewing { waiter, session, seen });
        } else {
            self.answer_renewal(&Renewing { waiter, session, seen });
        }
    }

    fn answer_renewal(&mut self, renewing: &Renewing) {
        let asker = renewing.waiter.asker;
        if let Err(error) = self.session_state(renewing.session) {
            return self.refuse(asker, SHARD, error);
        }
        let Some(row) = self.volumes.machine.sessions().get(&renewing.session) else { return };
        let events = events_after(row, renewing.seen);
        let caching = row.caching && row.told != Told::Stop;
        let response = Response::Renewed { events, caching, now: self.stamp() };
        self.answer(asker, SHARD, None, Ok(response));
    }

    /// Sessions are to show that they live: their renewals that wait are answered, and they renew.
    pub(super) fn ask_for_a_sign(&mut self, sessions: &[SessionId]) {
        let (asked, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volumes_lead.waiting.renewing)
            .into_iter()
            .partition(|renewing| sessions.contains(&renewing.session));
        self.volumes_lead.waiting.renewing = kept;
        asked.iter().for_each(|renewing| self.answer_renewal(renewing));
    }

    /// Renewals that wait are answered as soon as there is something to tell.
    pub(super) fn tell_sessions(&mut self) {
        let sessions = self.volumes.machine.sessions();
        let nothing = |renewing: &Renewing| {
            sessions
                .get(&renewing.session)
                .is_some_and(|row| row.phase == Phase::Attached && events_after(row, renewing.seen).is_empty())
        };
        let (kept, due): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.volumes_lead.waiting.renewing).into_iter().partition(nothing);
        self.volumes_lead.waiting.renewing = kept;
        due.iter().for_each(|renewing| self.answer_renewal(renewing));
        let (kept, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volumes_lead.waiting.detaching)
            .into_iter()
            .partition(|(_, session)| self.volumes.machine.sessions().contains_key(session));
        self.volumes_lead.waiting.detaching = kept;
        for (waiter, _) in done {
            self.answer(waiter.asker, SHARD, None, Ok(Response::Done));
        }
        let (kept, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volumes_lead.waiting.raising)
            .into_iter()
            .partition(|(_, by)| self.volumes.machine.sessions().values().any(|row| by.is(row)));
        self.volumes_lead.waiting.raising = kept;
        for (waiter, _) in done {
            self.answer(waiter.asker, SHARD, None, Ok(Response::Done));
        }
    }

    pub(super) fn tick_waiting(&mut self) {
        let now = self.now;
        let (due, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volumes_lead.waiting.renewing)
            .into_iter()
            .partition(|renewing| renewing.waiter.is_due(now));
        self.volumes_lead.waiting.renewing = kept;
        due.iter().for_each(|renewing| self.answer_renewal(renewing));
        let (due, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.volumes_lead.waiting.detaching).into_iter().partition(|(w, _)| w.is_due(now));
        self.volumes_lead.waiting.detaching = kept;
        for (waiter, _) in due {
            // Its end is committed: every later leader sees to the rest.
            self.answer(waiter.asker, SHARD, None, Ok(Response::Done));
        }
        let (due, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.volumes_lead.waiting.raising).into_iter().partition(|(w, _)| w.is_due(now));
        self.volumes_lead.waiting.raising = kept;
        for (waiter, _) in due {
            let reason = "sessions of lesser generations are over, but not every storage node knows it yet".into();
            self.refuse(waiter.asker, SHARD, MetadataError::Unavailable { reason });
        }
        let late: Vec<SessionId> = self
            .volumes_lead
            .waiting
            .attaching
            .iter()
            .filter(|(_, attaching)| {
                !attaching.proposed && (attaching.waiter.is_due(now) || !self.is_open(attaching.waiter.asker))
            })
            .map(|(session, _)| *session)
            .collect();
        for session in late {
            if let Some(attaching) = self.volumes_lead.waiting.attaching.remove(&session) {
                let reason = "another session of the volume has not stopped caching yet".into();
                self.refuse(attaching.waiter.asker, SHARD, MetadataError::Unavailable { reason });
            }
        }
        if self.ticks.is_multiple_of(LOOK_TICKS) && self.volumes.is_ready_to_lead() {
            self.look_at_silence();
            self.look_at_shard_0();
        }
    }

    /// Parks who is silent, and ends who was for a day.
    fn look_at_silence(&mut self) {
        let stamp = self.stamp().as_nanos();
        let over =
            |row: &SessionRow| row.parked.is_some_and(|since| stamp - since.as_nanos() > PARKED_MAX.as_nanos() as i128);
        let live = || self.volumes.machine.sessions().iter().filter(|(_, row)| row.phase == Phase::Attached);
        let parked: Vec<_> = live()
            .filter(|(session, row)| row.parked.is_none() && self.is_session_silent(**session, row))
            .map(|(session, _)| (*session, true))
            .collect();
        let ended: Vec<_> =
            live().filter(|(_, row)| over(row)).map(|(session, _)| (*session, "silent for a day".to_owned())).collect();
        let holders = self.holders_wanted();
        let rows = self.volumes.machine.sessions();
        let is_silent = |session: &SessionId| {
            let row = rows.get(session).filter(|row| row.phase == Phase::Attached);
            row.is_some_and(|row| self.is_session_silent(*session, row))
        };
        let wanted = [
            (self.at_ends_of_files(), "silent while another session wanted the end of a file"),
            (holders, "silent while another session wanted a lock of its"),
            (self.openers_wanted(), "silent while another session wanted to open a file that it has open"),
        ];
        let in_the_way: Vec<_> = wanted
            .into_iter()
            .flat_map(|(sessions, reason)| sessions.into_iter().map(move |session| (session, reason.to_owned())))
            .filter(|(session, _)| is_silent(session))
            .collect();
        self.volumes_lead.waiting.heard.retain(|session, _| rows.contains_key(session));
        self.volumes_lead.waiting.to_park = parked;
        self.volumes_lead.waiting.to_end_silent.extend(ended.into_iter().chain(in_the_way));
    }

    /// Shard 0 has changed here. Whoever was fenced by an administrator is over at once: somebody waits for it.
    pub(crate) fn sessions_changed(&mut self) {
        if self.volumes.is_ready_to_lead() {
            self.look_at_shard_0();
        }
    }

    /// Sessions that shard 0 knows and this shard does not, and the other way round. What is applied here of shard 0 may be
    /// old, but a session that is over stays over.
    fn look_at_shard_0(&mut self) {
        let cluster = &self.cluster.machine;
        let rows = self.volumes.machine.sessions();
        let over =
            |session: &SessionId| *session <= cluster.settings.session_newest && !cluster.live.contains_key(session);
        let fenced: Vec<_> = rows
            .iter()
            .filter(|(session, row)| row.phase == Phase::Attached && over(session))
            .map(|(session, _)| (*session, "fenced by an administrator".to_owned()))
            .collect();
        let unattached: Vec<SessionId> =
            cluster.live.keys().filter(|session| !rows.contains_key(session)).copied().collect();
        let now = self.ticks;
        let since = std::mem::take(&mut self.volumes_lead.waiting.unattached);
        for session in unattached {
            let seen = since.get(&session).copied().unwrap_or(now);
            self.volumes_lead.waiting.unattached.insert(session, seen);
            if self.is_ended(session) {
                self.forward_fence(session);
            } else if now > seen + UNATTACHED_TICKS_MAX && !self.volumes_lead.waiting.attaching.contains_key(&session) {
                self.volumes_lead.waiting.to_end.insert(session, "opened but never attached".into());
            }
        }
        self.volumes_lead.waiting.look |= !fenced.is_empty();
        self.volumes_lead.waiting.to_end.extend(fenced);
    }

    /// Moves attaching, recalling, ending on as far as it goes now.
    pub(super) fn drive_sessions(&mut self) {
        if !std::mem::take(&mut self.volumes_lead.waiting.look) {
            return;
        }
        self.drive_lists();
        if self.volumes.machine.sessions().is_empty() && self.volumes_lead.waiting.attaching.is_empty() {
            return;
        }
        let mut volumes: BTreeMap<VolumeId, Vec<(SessionId, SessionRow)>> = BTreeMap::new();
        for (session, row) in self.volumes.machine.sessions() {
            volumes.entry(row.volume).or_default().push((*session, row.clone()));
        }
        self.volumes_lead.waiting.alone.retain(|volume, _| volumes.contains_key(volume));
        let wanted: BTreeSet<VolumeId> =
            self.volumes_lead.waiting.attaching.values().map(|attaching| attaching.volume).collect();
        for (volume, rows) in &volumes {
            if let [(session, row)] = rows.as_slice()
                && row.phase == Phase::Attached
                && !row.caching
                && !wanted.contains(volume)
            {
                self.propose_own(Work::Start(*session), VolumesCommand::StartCaching { session: *session });
            }
            for (session, _) in rows.iter().filter(|(_, row)| matches!(row.phase, Phase::Ending { .. })) {
                self.drive_ending(*session);
            }
            self.end_parked(*volume, rows);
        }
        let waiting: Vec<SessionId> = self.volumes_lead.waiting.attaching.keys().copied().collect();
        for session in waiting {
            self.drive_attaching(session, &volumes);
        }
        self.drive_lists();
    }

    /// Where all but one are silent for long, that one wants to cache: it does not wait a day for those who may never come back.
    fn end_parked(&mut self, volume: VolumeId, rows: &[(SessionId, SessionRow)]) {
        let (parked, heard): (Vec<_>, Vec<_>) =
            rows.iter().filter(|(_, row)| row.phase == Phase::Attached).partition(|(_, row)| row.parked.is_some());
        let alone = matches!(heard.as_slice(), [(session, row)] if !self.is_session_silent(*session, row));
        if !alone || parked.is_empty() {
            self.volumes_lead.waiting.alone.remove(&volume);
            return;
        }
        let since = *self.volumes_lead.waiting.alone.entry(volume).or_insert(self.ticks);
        if self.ticks < since + ALONE_TICKS {
            return;
        }
        let reason = || "silent for minutes while another session wanted to cache the volume".to_owned();
        let over: Vec<_> = parked
            .iter()
            .filter(|(session, _)| !self.is_heard_lately(*session))
            .map(|(session, _)| (*session, reason()))
            .collect();
        self.volumes_lead.waiting.to_end_silent.extend(over);
    }

    fn drive_lists(&mut self) {
        if !self.volumes_lead.is_busy(Work::End) {
            let waiting = &mut self.volumes_lead.waiting;
            let mut ending = std::mem::take(&mut waiting.to_end);
            ending.append(&mut waiting.to_end_silent);
            if !ending.is_empty() {
                self.propose_own(Work::End, VolumesCommand::End { sessions: ending.into_iter().collect() });
            }
        }
        if !self.volumes_lead.waiting.to_park.is_empty() && !self.volumes_lead.is_busy(Work::Park) {
            let sessions = std::mem::take(&mut self.volumes_lead.waiting.to_park);
            self.propose_own(Work::Park, VolumesCommand::Park { sessions });
        }
    }

    /// An ending session is fenced, and then gives back what it held.
    fn drive_ending(&mut self, session: SessionId) {
        if self.volumes_lead.waiting.fenced.contains(&session) {
            let rows = self.config.limits.rows_per_command as u32;
            self.propose_own(Work::EndStep(session), VolumesCommand::EndStep { session, rows });
        } else {
            self.forward_fence(session);
        }
    }

    /// Shard 0 says that a session is over everywhere.
    pub(crate) fn session_fenced(&mut self, session: SessionId) {
        let waiting = &mut self.volumes_lead.waiting;
        waiting.fenced.insert(session);
        waiting.look = true;
        // Of those not here any more nothing needs to be remembered.
        let rows = self.volumes.machine.sessions();
        waiting.fenced.retain(|session| rows.contains_key(session));
    }

    /// Lets a session in, or sees to those that are in its way.
    fn drive_attaching(&mut self, session: SessionId, volumes: &BTreeMap<VolumeId, Vec<(SessionId, SessionRow)>>) {
        let Some(attaching) = self.volumes_lead.waiting.attaching.get(&session) else { return };
        if attaching.proposed {
            return;
        }
        let none = Vec::new();
        let others = volumes.get(&attaching.volume).unwrap_or(&none);
        let is_attached = others.iter().any(|(other, _)| *other == session);
        let client = attaching.client.clone();
        let mut clear = true;
        // One whose instance lives on in a greater generation takes nothing from anybody: `apply` refuses it.
        let is_superseded = self.is_superseded(attaching.volume, &client);
        for (other, row) in others.iter().filter(|(other, _)| *other != session && !is_attached && !is_superseded) {
            match &row.phase {
                Phase::Ending { .. } => clear = false,
                Phase::Attached => clear &= self.make_way(*other, row, &client),
            }
        }
        if clear && let Some(attaching) = self.volumes_lead.waiting.attaching.get_mut(&session) {
            attaching.proposed = true;
            let command = attaching.command.clone();
            self.propose_attach(session, command);
        }
    }

    fn is_superseded(&self, volume: VolumeId, client: &ClientRecord) -> bool {
        let nothing = Batch::new();
        let txn = Txn::new(&**self.volumes.table(), self.volumes.hot(), &nothing);
        matches!(generations::admits(&txn, volume, client), Err(Fail::Unkept(_)))
    }

    /// Asks a session that is in the way of another to stop caching, or ends it. Returns whether it is not in the way.
    fn make_way(&mut self, session: SessionId, row: &SessionRow, newcomer: &ClientRecord) -> bool {
        if superseding(&row.client, newcomer).is_some() {
            // The newcomer is the one to go; `apply` says so.
            return true;
        }
        if let Some(by) = superseding(newcomer, &row.client) {
            self.volumes_lead.waiting.to_end.insert(session, format!("superseded by generation {by}"));
            return false;
        }
        if !row.caching {
            return true;
        }
        if self.is_session_silent(session, row) {
            let reason = "silent while another session wanted the volume".into();
            self.volumes_lead.waiting.to_end_silent.insert(session, reason);
        } else if row.told != Told::Stop {
            self.propose_own(Work::Recall(session), VolumesCommand::Recall { session });
        }
        false
    }
}

/// What a session has not seen. Only the last event counts: it says what to do now.
fn events_after(row: &SessionRow, seen: u64) -> Vec<(u64, Event)> {
    let event = match row.told {
        Told::Nothing => return Vec::new(),
        Told::Stop => Event::StopCaching,
        Told::Start => Event::StartCaching,
    };
    if row.event > seen { vec![(row.event, event)] } else { Vec::new() }
}
