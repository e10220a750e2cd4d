//! Exactly once: a retry gets the first answer.
//!
//! * The first answer of a sequence is kept until the session says that it has everything below some sequence above it.
//! * A sequence below that floor is refused: it was answered, and its caller is gone.
//! * A session that confirms nothing is held back before its answers grow without bound.

use crate::error::{Applied, Fail};
use crate::machine::{Context, Output};
use crate::ops::Op;
use crate::tables::answer::{self, AnswerRow, AnswersRow};
use crate::tables::session::{self, EndedRow, Phase, SessionRow};
use crate::txn::Txn;
use holdfast_store::KeyRange;
use holdfast_types::limits::ANSWERS_PER_SESSION_MAX;
use holdfast_types::{Sequence, SessionId};
use holdfast_wire::metadata::{MetadataError, Response};
use holdfast_wire::namespace::{Mutation, NamespaceError};

/// A live session's row.
///
/// # Errors
/// `SessionEnded` for any other.
pub(crate) fn live(txn: &Txn<'_>, session: SessionId) -> Applied<SessionRow> {
    let row: Option<SessionRow> = txn.get(&session::key(session))?;
    match row {
        Some(row) => match row.phase {
            Phase::Attached => Ok(row),
            Phase::Ending { reason } => Err(Fail::Unkept(MetadataError::SessionEnded { reason })),
        },
        None => Err(Fail::Unkept(MetadataError::SessionEnded { reason: ended_reason(txn, session)? })),
    }
}

fn ended_reason(txn: &Txn<'_>, session: SessionId) -> Applied<String> {
    let row: Option<EndedRow> = txn.get(&session::ended(session))?;
    Ok(row.map_or_else(|| format!("session {session} is not attached"), |row| row.reason))
}

/// Applies a mutation, or finds its first answer.
pub(crate) fn mutate(
    txn: &mut Txn<'_>,
    context: &mut Context<'_>,
    (session, sequence, answered_below): (SessionId, Sequence, Sequence),
    mutation: &Mutation,
) -> Applied<Output> {
    let row = live(txn, session)?;
    let mut kept: AnswersRow = txn.get(&answer::answers(session))?.unwrap_or_default();
    forget(txn, session, &mut kept, answered_below)?;
    if sequence < kept.floor {
        return Err(Fail::Unkept(MetadataError::StaleSequence));
    }
    let key = answer::key(session, sequence);
    if let Some(first) = txn.get::<AnswerRow>(&key)? {
        context.counters.answers_repeated += 1;
        txn.put(answer::answers(session), &kept);
        return Ok(output(first));
    }
    if kept.count as usize >= ANSWERS_PER_SESSION_MAX {
        return Err(Fail::Unkept(MetadataError::Backpressure));
    }
    let before = txn.mark();
    // What a read-only session may do leaves no trace in what others read.
    let harmless = matches!(mutation, Mutation::Open { .. } | Mutation::Close { .. } | Mutation::SetLock { .. });
    let result = if row.read_only && !harmless {
        Err(NamespaceError::ReadOnly)
    } else {
        let volume = row.volume;
        let mut op = Op { txn, volume, session, caching: row.caching, stamp: context.stamp };
        match op.mutate(mutation) {
            Ok(outcome) => Ok(outcome),
            Err(Fail::Refused(MetadataError::Namespace(error))) => {
                txn.rollback(before);
                Err(error)
            }
            Err(other) => return Err(other),
        }
    };
    let first = AnswerRow { applied: context.index, result };
    if context.mutations.answers_purged_early {
        purge_early(txn, session, &mut kept, sequence)?;
    }
    if !context.mutations.answer_forgotten {
        kept.count += 1;
        txn.put(key, &first);
    }
    txn.put(answer::answers(session), &kept);
    Ok(output(first))
}

fn output(first: AnswerRow) -> Output {
    Output { at: first.applied, result: first.result.map(Response::Outcome).map_err(MetadataError::Namespace) }
}

/// Drops the answers that the session has.
fn forget(txn: &mut Txn<'_>, session: SessionId, kept: &mut AnswersRow, below: Sequence) -> Applied<()> {
    if below <= kept.floor {
        return Ok(());
    }
    let range = KeyRange::between(answer::key(session, kept.floor), answer::key(session, below));
    for (key, _) in txn.range(range, usize::MAX)? {
        txn.remove(key.to_vec());
        kept.count -= 1;
    }
    kept.floor = below;
    Ok(())
}

/// The deliberate bug: answers go although nobody said that he has them.
fn purge_early(txn: &mut Txn<'_>, session: SessionId, kept: &mut AnswersRow, below: Sequence) -> Applied<()> {
    let range = KeyRange::between(answer::key(session, kept.floor), answer::key(session, below));
    for (key, _) in txn.range(range, usize::MAX)? {
        txn.remove(key.to_vec());
        kept.count -= 1;
    }
    Ok(())
}
