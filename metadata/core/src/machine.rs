//! What a shard's state machine is to the replica that feeds it.

use crate::api::{Counters, Mutations};
use crate::command::Command;
use crate::error::Applied;
use crate::txn::Txn;
use holdfast_store::{Batch, View};
use holdfast_types::{LogIndex, Term, Timestamp};
use holdfast_wire::metadata::{MetadataError, Response};

/// What a command is applied with.
pub(crate) struct Context<'c> {
    /// Where the command stands in the log.
    pub(crate) index: LogIndex,
    /// Term it was proposed in.
    pub(crate) term: Term,
    /// "Now".
    pub(crate) stamp: Timestamp,
    pub(crate) mutations: Mutations,
    pub(crate) counters: &'c mut Counters,
}

/// A command's answer.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// Where it holds: the command's own place, or where its first copy was applied.
    pub(crate) at: LogIndex,
    pub(crate) result: Result<Response, MetadataError>,
}

impl Output {
    pub(crate) fn done(at: LogIndex, response: Response) -> Self {
        Self { at, result: Ok(response) }
    }
}

/// A shard's state machine: a function of its log.
pub(crate) trait Machine: Sized {
    /// From a table, at start and after a snapshot was installed.
    fn load(view: &dyn View) -> Applied<Self>;

    /// Applies a command. What `txn` holds afterwards is kept only on success.
    fn apply(&mut self, txn: &mut Txn<'_>, context: &mut Context<'_>, command: &Command) -> Applied<Output>;

    /// Follows changes that are about to be committed, to keep what it holds in memory like the table.
    fn follow(&mut self, batch: &Batch) -> Applied<()>;
}
