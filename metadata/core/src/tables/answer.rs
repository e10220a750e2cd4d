//! First answers of mutations, kept until the session says that it has them.

use super::{Key, Row};
use holdfast_types::{LogIndex, Sequence, SessionId};
use holdfast_wire::namespace::{NamespaceError, Outcome};
use serde::{Deserialize, Serialize};

/// Answers.
pub(crate) const ANSWER: u8 = 0x0e;
/// What is kept of each session.
pub(crate) const ANSWERS: u8 = 0x0f;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnswerRow {
    /// Where the mutation was applied.
    pub(crate) applied: LogIndex,
    pub(crate) result: Result<Outcome, NamespaceError>,
}

impl Row for AnswerRow {}

/// A session's answers in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnswersRow {
    /// Sequences below are answered for ever.
    pub(crate) floor: Sequence,
    /// Answers kept.
    pub(crate) count: u32,
}

impl Default for AnswersRow {
    fn default() -> Self {
        Self { floor: Sequence(1), count: 0 }
    }
}

impl Row for AnswersRow {}

/// Key of an answer.
pub(crate) fn key(session: SessionId, sequence: Sequence) -> Vec<u8> {
    Key::of(ANSWER).number(session.0).number(sequence.0).done()
}

/// All answers of a session.
pub(crate) fn of(session: SessionId) -> Vec<u8> {
    Key::of(ANSWER).number(session.0).done()
}

/// Key of what is kept of a session.
pub(crate) fn answers(session: SessionId) -> Vec<u8> {
    Key::of(ANSWERS).number(session.0).done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        super::super::assert_round_trip(AnswerRow { applied: LogIndex(3), result: Err(NamespaceError::Exists) });
        super::super::assert_round_trip(AnswerRow { applied: LogIndex(3), result: Ok(Outcome::Done) });
        super::super::assert_round_trip(AnswersRow { floor: Sequence(9), count: 2 });
    }
}
