//! What clients asked and were told, on two levels: calls of applications, and requests to the metadata service.

use holdfast_client_core::{Call, ClientError, HandleId, Reply};
use holdfast_sim::WorldTime;
use holdfast_types::{InodeId, Sequence, SessionId};
use holdfast_wire::metadata::{Answer, MetadataError, Response};
use holdfast_wire::namespace::{Mutation, NamespaceError, Outcome, Query};
use std::collections::BTreeMap;

/// A call of an application.
#[derive(Clone, Debug)]
pub(super) struct CallRecord {
    pub(super) client: usize,
    /// Which mount of the client.
    pub(super) mount: usize,
    pub(super) call: Call,
    /// Place among all calls and returns.
    pub(super) invoked: u64,
    pub(super) invoked_at: WorldTime,
    /// Index of shard 1 that some client had seen the effect of by then.
    pub(super) seen: u64,
    pub(super) returned: Option<Returned>,
}

/// Its end.
#[derive(Clone, Debug)]
pub(super) struct Returned {
    pub(super) order: u64,
    pub(super) at: WorldTime,
    /// The last index of shard 1 that had been applied anywhere.
    pub(super) newest: u64,
    pub(super) result: Result<Reply, ClientError>,
}

/// One mount by one client.
#[derive(Clone, Debug, Default)]
pub(super) struct MountRecord {
    pub(super) session: Option<SessionId>,
    /// Everything was flushed before it ended.
    pub(super) clean: bool,
    pub(super) over: bool,
}

/// A mutation, by session and sequence.
#[derive(Clone, Debug)]
pub(super) struct MutationRecord {
    pub(super) mutation: Mutation,
    pub(super) invoked: u64,
    pub(super) invoked_at: WorldTime,
    /// Order of the first answer, the index that it names, and what it says.
    pub(super) returned: Option<(u64, u64, Result<Outcome, NamespaceError>)>,
}

/// A read.
#[derive(Clone, Debug)]
pub(super) struct QueryRecord {
    pub(super) session: SessionId,
    pub(super) query: Query,
    pub(super) invoked: u64,
    pub(super) returned: Option<(u64, u64, Result<Outcome, NamespaceError>)>,
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Record {
    order: u64,
    pub(super) calls: Vec<CallRecord>,
    pub(super) mounts: Vec<MountRecord>,
    pub(super) mutations: BTreeMap<(SessionId, Sequence), MutationRecord>,
    pub(super) queries: Vec<QueryRecord>,
    /// What handles name, by mount.
    pub(super) handles: BTreeMap<(usize, HandleId), InodeId>,
    /// The greatest index of shard 1 that an answer has told a client of.
    pub(super) seen: u64,
}

impl Record {
    pub(super) fn order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    /// A client's mutation leaves, perhaps not for the first time.
    pub(super) fn asked(
        &mut self,
        now: WorldTime,
        key: (SessionId, Sequence),
        mutation: &Mutation,
    ) -> Result<(), String> {
        let invoked = self.order();
        let record = self.mutations.entry(key).or_insert_with(|| MutationRecord {
            mutation: mutation.clone(),
            invoked,
            invoked_at: now,
            returned: None,
        });
        if record.mutation != *mutation {
            return Err(format!("{} {} was sent as {:?}, then as {mutation:?}", key.0, key.1, record.mutation));
        }
        Ok(())
    }

    /// A final answer to a mutation reached its client.
    pub(super) fn mutated(&mut self, key: (SessionId, Sequence), answer: &Answer) -> Result<(), String> {
        let Some(result) = outcome(answer) else { return Ok(()) };
        self.seen = self.seen.max(answer.applied.0);
        let order = self.order();
        let Some(record) = self.mutations.get_mut(&key) else { return Err(format!("{key:?} was never sent")) };
        match &record.returned {
            None => record.returned = Some((order, answer.applied.0, result)),
            Some((_, index, first)) if *index == answer.applied.0 && *first == result => {}
            Some((_, index, first)) => {
                return Err(format!(
                    "{} {}: first answer {first:?} at {index}, another one {result:?} at {}",
                    key.0, key.1, answer.applied
                ));
            }
        }
        Ok(())
    }

    /// A final answer to a query reached its client.
    pub(super) fn queried(&mut self, query: usize, answer: &Answer) {
        if let Some(result) = outcome(answer) {
            self.seen = self.seen.max(answer.applied.0);
            let order = self.order();
            self.queries[query].returned = Some((order, answer.applied.0, result));
        }
    }
}

/// What an answer says of the namespace, if it says anything.
fn outcome(answer: &Answer) -> Option<Result<Outcome, NamespaceError>> {
    match &answer.result {
        Ok(Response::Outcome(outcome)) => Some(Ok(outcome.clone())),
        Err(MetadataError::Namespace(error)) => Some(Err(*error)),
        Ok(_) | Err(_) => None,
    }
}
