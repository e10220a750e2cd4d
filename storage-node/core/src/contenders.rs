//! The last contended change of each session on a chunk.
//!
//! A session that shares a file has one change of a chunk under way at a time. When its answer is lost and the view changes, the new
//! primary finds here whether it was made: made again it would undo what others wrote since. The list is part of the chunk: it is
//! written in the same record as the bytes and travels with every copy.
//!
//! * No session is listed twice. Bounded by `CONTENDERS_MAX`: the session whose last change is oldest is forgotten.

use holdfast_types::limits::CONTENDERS_MAX;
use holdfast_types::{Sequence, SessionId};
use holdfast_wire::group::Origin;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contenders(Vec<(SessionId, Sequence)>);

/// What a chunk knows of a contended change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    Yes,
    /// It was not.
    No,
    /// It may have been; the chunk has forgotten.
    Unknown,
}

impl Contenders {
    /// From what was stored or sent; none when it is too long or names a session twice.
    pub fn from_list(list: Vec<(SessionId, Sequence)>) -> Option<Self> {
        let mut sessions: Vec<SessionId> = list.iter().map(|(session, _)| *session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        (list.len() <= CONTENDERS_MAX && sessions.len() == list.len()).then_some(Self(list))
    }

    /// Sessions and sequences, the one that changed the chunk last at the end.
    pub fn list(&self) -> &[(SessionId, Sequence)] {
        &self.0
    }

    /// Nobody contended so far.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A change is made. Noting one again, with all that followed it, leaves the same list.
    pub fn note(&mut self, origin: Origin) {
        if !origin.contended {
            return;
        }
        let mut sequence = origin.sequence;
        if let Some(at) = self.0.iter().position(|(session, _)| *session == origin.session) {
            sequence = sequence.max(self.0.remove(at).1);
        }
        if self.0.len() == CONTENDERS_MAX {
            self.0.remove(0);
        }
        self.0.push((origin.session, sequence));
    }

    /// Whether a change was made.
    pub fn made(&self, session: SessionId, sequence: Sequence) -> Made {
        match self.0.iter().find(|(known, _)| *known == session) {
            Some((_, last)) if *last >= sequence => Made::Yes,
            Some(_) => Made::No,
            None if self.0.len() == CONTENDERS_MAX => Made::Unknown,
            None => Made::No,
        }
    }

    /// Bytes to be summed with the chunk's block sums.
    pub fn summed(&self) -> impl Iterator<Item = u8> + '_ {
        self.0
            .iter()
            .flat_map(|(session, sequence)| session.0.to_le_bytes().into_iter().chain(sequence.0.to_le_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(session: u64, sequence: u64) -> Origin {
        Origin { session: SessionId(session), sequence: Sequence(sequence), contended: true }
    }

    #[test]
    fn a_chunk_knows_the_last_change_of_each_session() {
        let mut contenders = Contenders::default();
        contenders.note(origin(1, 5));
        contenders.note(origin(2, 1));
        contenders.note(Origin { contended: false, ..origin(3, 1) });
        contenders.note(origin(1, 7));
        assert_eq!(contenders.list(), [(SessionId(2), Sequence(1)), (SessionId(1), Sequence(7))]);
        assert_eq!(contenders.made(SessionId(1), Sequence(5)), Made::Yes);
        assert_eq!(contenders.made(SessionId(1), Sequence(8)), Made::No);
        assert_eq!(contenders.made(SessionId(3), Sequence(1)), Made::No);
    }

    #[test]
    fn noting_again_what_came_last_changes_nothing() {
        let mut contenders = Contenders::default();
        let all = [origin(1, 5), origin(2, 1), origin(3, 9), origin(1, 6)];
        all.iter().for_each(|origin| contenders.note(*origin));
        let once = contenders.clone();
        all[1..].iter().for_each(|origin| contenders.note(*origin));
        assert_eq!(contenders, once);
    }

    #[test]
    fn a_full_list_forgets_the_oldest_and_says_that_it_does_not_know() {
        let mut contenders = Contenders::default();
        (0..=CONTENDERS_MAX as u64).for_each(|session| contenders.note(origin(session + 1, 1)));
        assert_eq!(contenders.list().len(), CONTENDERS_MAX);
        assert_eq!(contenders.made(SessionId(1), Sequence(1)), Made::Unknown);
        assert_eq!(contenders.made(SessionId(2), Sequence(1)), Made::Yes);
    }

    #[test]
    fn a_list_that_names_a_session_twice_or_is_too_long_is_refused() {
        let entry = |session| (SessionId(session), Sequence(1));
        assert_eq!(Contenders::from_list(vec![entry(1), entry(2), entry(1)]), None);
        assert_eq!(Contenders::from_list((0..=CONTENDERS_MAX as u64).map(entry).collect()), None);
        assert!(Contenders::from_list(vec![entry(1), entry(2)]).is_some());
    }
}
