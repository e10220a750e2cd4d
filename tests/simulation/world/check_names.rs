//! Requests to the metadata service, judged: committed entries are replayed on the model, every answer is compared, and the order
//! of the entries must be one that real time allows.

use super::Sim;
use super::names::{First, Names};
use super::record::{MutationRecord, QueryRecord};
use holdfast_metadata_core::inspect::{VolumesEntry, volumes_entry};
use holdfast_sim::check::{Place, order_respects_real_time};
use holdfast_sim::{History, WorldTime};
use holdfast_types::{FileName, InodeId, Sequence, SessionId, Timestamp};
use holdfast_wire::namespace::{Attributes, FileKind, NamespaceError, Outcome, Query};
use std::collections::BTreeMap;

/// What an inode looks like from outside, but for what buffered writes may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) kind: FileKind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
}

/// Versions, oldest first, each with the index from which it holds.
type Versions<T> = Vec<(u64, T)>;

/// Versions of everything that has a name, by the index from which they hold.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    pub(super) entries: BTreeMap<(InodeId, FileName), Versions<Option<InodeId>>>,
    pub(super) looks: BTreeMap<InodeId, Versions<Option<Look>>>,
    /// Names of a directory with what they name.
    pub(super) listings: BTreeMap<InodeId, Versions<Vec<(FileName, InodeId)>>>,
    pub(super) names: Names,
}

impl Timeline {
    fn follow(&mut self, index: u64) {
        for inode in std::mem::take(&mut self.names.touched) {
            let found = self.names.inodes.get(&inode);
            let look = found.map(|found| Look {
                kind: found.kind,
                mode: found.mode,
                uid: found.uid,
                gid: found.gid,
                links: found.links,
            });
            let versions = self.looks.entry(inode).or_default();
            if versions.last().map(|(_, last)| last) != Some(&look) {
                versions.push((index, look));
            }
            let listing: Vec<(FileName, InodeId)> = found
                .map(|f| f.entries.iter().map(|(name, (to, _))| (name.clone(), *to)).collect())
                .unwrap_or_default();
            let before =
                self.listings.get(&inode).and_then(|all| all.last()).map(|(_, last)| last.clone()).unwrap_or_default();
            if before == listing {
                continue;
            }
            let (old, new): (BTreeMap<_, _>, BTreeMap<_, _>) =
                (before.into_iter().collect(), listing.iter().cloned().collect());
            for name in old.keys().chain(new.keys()) {
                if old.get(name) != new.get(name) {
                    self.entries.entry((inode, name.clone())).or_default().push((index, new.get(name).copied()));
                }
            }
            self.listings.entry(inode).or_default().push((index, listing));
        }
    }
}

/// Attributes without times, which the model does not know.
fn timeless(mut attributes: Attributes) -> Attributes {
    let never = Timestamp::default();
    (attributes.atime, attributes.mtime, attributes.ctime, attributes.btime) = (never, never, never, never);
    attributes
}

fn without_times(outcome: &Outcome) -> Outcome {
    match outcome.clone() {
        Outcome::Entry { attributes, lease } => Outcome::Entry { attributes: timeless(attributes), lease },
        Outcome::Attributes { attributes, lease } => Outcome::Attributes { attributes: timeless(attributes), lease },
        Outcome::Created { attributes, new, inherited, lease } => {
            Outcome::Created { attributes: timeless(attributes), new, inherited, lease }
        }
        Outcome::Removed { attributes, orphan } => Outcome::Removed { attributes: timeless(attributes), orphan },
        Outcome::Renamed { moved, replaced, orphan } => {
            Outcome::Renamed { moved: timeless(moved), replaced: replaced.map(timeless), orphan }
        }
        Outcome::Directory { mut entries, end, parent, lease } => {
            for entry in &mut entries {
                entry.attributes = entry.attributes.take().map(timeless);
            }
            Outcome::Directory { entries, end, parent, lease }
        }
        // Totals are sums that the core's own invariants check.
        Outcome::Usage(_) | Outcome::Done => Outcome::Done,
        Outcome::Conflict(conflict) => {
            Outcome::Locked { in_the_way: conflict.map(|held| held.session), replaced: false }
        }
        other @ (Outcome::Bytes(_) | Outcome::Names(_) | Outcome::Locked { .. } | Outcome::OpenElsewhere { .. }) => {
            other
        }
    }
}

fn same(model: &Result<Outcome, NamespaceError>, answer: &Result<Outcome, NamespaceError>) -> bool {
    model == &answer.as_ref().map(without_times).map_err(|error| *error)
}

impl Sim {
    /// Replays what was committed and compares every answer.
    pub(super) fn check_names(&mut self) -> Result<Timeline, String> {
        let mut queries: Vec<&QueryRecord> = self.record.queries.iter().filter(|q| q.returned.is_some()).collect();
        let applied = |query: &&QueryRecord| query.returned.as_ref().map_or(0, |(_, applied, _)| *applied);
        queries.sort_by_key(applied);
        self.stats.queries += queries.len() as u64;
        for query in queries.iter().filter(|query| matches!(query.query, Query::AwaitLock { .. })) {
            match query.returned {
                Some((.., Ok(_))) => self.stats.lock_waits += 1,
                Some((.., Err(NamespaceError::Deadlock))) => self.stats.lock_circles += 1,
                _ => {}
            }
        }
        let awaited = queries.iter().filter(|query| matches!(query.query, Query::AwaitOpen { .. }));
        self.stats.open_waits += awaited.filter(|query| matches!(query.returned, Some((.., Ok(_))))).count() as u64;
        let mut queries = queries.into_iter().peekable();
        let mut timeline = Timeline::default();
        let mut last = 0;
        for (index, committed) in &self.truth[1].entries {
            if *index != last + 1 {
                return Err(format!("entry {} of shard 1 was applied by nobody who had it", last + 1));
            }
            last = *index;
            let entry = volumes_entry(&committed.entry.data).ok_or("an entry that is none of ours")?;
            timeline.names.apply(*index, &entry);
            if let VolumesEntry::Mutate { session, sequence, .. } = entry {
                self.check_asked(*index, (session, sequence), committed.at)?;
            }
            timeline.follow(*index);
            while let Some(query) = queries.next_if(|query| applied(query) <= *index) {
                compare_query(&timeline.names, query, *index)?;
            }
        }
        if let Some(query) = queries.next() {
            return Err(format!("{query:?} was answered from an entry that nobody applied"));
        }
        let refused = |(_, result): &&First| matches!(result, Ok(Outcome::OpenElsewhere { .. }));
        self.stats.opens_refused += timeline.names.first.values().filter(refused).count() as u64;
        for (key, record) in &self.record.mutations {
            compare_mutation(&timeline.names, *key, record)?;
        }
        self.check_order(&timeline.names)?;
        Ok(timeline)
    }

    /// Nothing is committed that no client asked for, or before it did.
    fn check_asked(&self, index: u64, key: (SessionId, Sequence), at: WorldTime) -> Result<(), String> {
        match self.record.mutations.get(&key) {
            Some(record) if record.invoked_at <= at => Ok(()),
            Some(_) => Err(format!("{} {} was applied at {index} before it was asked for", key.0, key.1)),
            None => Err(format!("{} {} was applied at {index} and never asked for", key.0, key.1)),
        }
    }

    /// Mutations and reads took effect in an order that real time allows.
    fn check_order(&self, names: &Names) -> Result<(), String> {
        let mut moments: Vec<(u64, Moment)> = Vec::new();
        for (key, record) in &self.record.mutations {
            let Some((order, index, _)) = &record.returned else { continue };
            let is_change = names.first.get(key).is_some_and(|(first, _)| first == index);
            let place = if is_change { Place::Change(*index) } else { Place::Read(*index) };
            let call = || Called { text: format!("{} {} {:?}", key.0, key.1, record.mutation), place };
            moments.push((record.invoked, Moment::Invoked(*order, call())));
            moments.push((*order, Moment::Returned));
        }
        for query in &self.record.queries {
            let Some((order, index, _)) = &query.returned else { continue };
            let text = format!("{} {:?}", query.session, query.query);
            moments.push((query.invoked, Moment::Invoked(*order, Called { text, place: Place::Read(*index) })));
            moments.push((*order, Moment::Returned));
        }
        moments.sort_by_key(|(order, _)| *order);
        let mut history: History<Called, ()> = History::new();
        let mut open = BTreeMap::new();
        for (order, moment) in moments {
            match moment {
                Moment::Invoked(returns, call) => {
                    open.insert(returns, history.invoke(WorldTime(order), 0, call));
                }
                Moment::Returned => {
                    let call = open.remove(&order).expect("it was invoked before");
                    history.returned(WorldTime(order), call, ());
                }
            }
        }
        order_respects_real_time(&history, |call, ()| Some(call.place)).map_err(|error| format!("{error:?}"))
    }
}

enum Moment {
    /// With the order of its return.
    Invoked(u64, Called),
    Returned,
}

#[derive(Debug)]
struct Called {
    #[expect(dead_code, reason = "read by people, when an error shows it")]
    text: String,
    place: Place,
}

fn compare_query(names: &Names, query: &QueryRecord, index: u64) -> Result<(), String> {
    let Some((_, applied, answer)) = &query.returned else { return Ok(()) };
    if let Query::AwaitTrim { .. } = query.query
        && names.query(query.session, &query.query).is_ok_and(|outcome| trimming(&outcome))
    {
        return Err(format!("{:?} was answered at {applied} while it should wait", query.query));
    }
    if let Query::AwaitOpen { inode, access, .. } = &query.query
        && *answer == Err(NamespaceError::Busy)
    {
        // Whether its holders live is in the leader's memory only.
        if names.may_open(query.session, *inode, *access) {
            return Err(format!("{:?} was refused at {applied} while nobody was in the way", query.query));
        }
        return Ok(());
    }
    if let Query::AwaitLock { inode, lock } = &query.query {
        let free = !names.is_locked_against(query.session, *inode, lock);
        let refused = *answer == Err(NamespaceError::Deadlock);
        if free == refused && !matches!(answer, Err(NamespaceError::Stale)) {
            return Err(format!("{:?} was answered {answer:?} at {applied}; free: {free}", query.query));
        }
        if refused {
            // Who else waits is in the leader's memory only.
            return Ok(());
        }
    }
    let model = names.query(query.session, &query.query);
    if same(&model, answer) {
        return Ok(());
    }
    Err(format!(
        "{} {:?} at {applied} (model at {index}): answer {answer:?}, model {model:?}",
        query.session, query.query
    ))
}

fn trimming(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Attributes { attributes, .. } if attributes.trim_from.is_some())
}

fn compare_mutation(names: &Names, key: (SessionId, Sequence), record: &MutationRecord) -> Result<(), String> {
    let Some((_, applied, answer)) = &record.returned else { return Ok(()) };
    match names.first.get(&key) {
        Some((index, model)) if index == applied && same(model, answer) => Ok(()),
        first => {
            Err(format!("{} {} {:?}: answer {answer:?} at {applied}, model {first:?}", key.0, key.1, record.mutation))
        }
    }
}
