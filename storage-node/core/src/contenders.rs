//! The last contended change of each session on a chunk.
//!
//! A session that shares a file has one change of a chunk under way at a time. When its answer is lost and the view changes, the new
//! primary finds here whether it was made: made again it would undo what others wrote since. The list is part of the chunk: it is
//! written in the same record as the bytes and travels with every copy.
//!
//!
//! It also tells whether a change was made before or after the chunk was last cut: whoever truncates a file does not wait for what other
//! sessions have under way, and these want to know on which side of the cut their bytes ended up.
//!
//! * No session is listed twice. Bounded by `CONTENDERS_MAX`: the session whose last change is oldest is forgotten.

use holdfast_types::limits::CONTENDERS_MAX;
use holdfast_types::{Sequence, SessionId};
use holdfast_wire::group::{Contender, Origin};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contenders(Vec<Contender>);

/// What a chunk knows of a contended change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It was made, and the chunk was not cut since.
    Stands,
    /// It was made, and the chunk was cut since.
    Cut,
    /// It was not made.
    No,
    /// It may have been; the chunk has forgotten.
    Unknown,
}

impl Contenders {
    /// From what was stored or sent; none when it is too long or names a session twice.
    pub fn from_list(list: Vec<Contender>) -> Option<Self> {
        let mut sessions: Vec<SessionId> = list.iter().map(|contender| contender.session).collect();
        sessions.sort_unstable();
        sessions.dedup();
        (list.len() <= CONTENDERS_MAX && sessions.len() == list.len()).then_some(Self(list))
    }

    /// The one that changed the chunk last at the end.
    pub fn list(&self) -> &[Contender] {
        &self.0
    }

    /// Nobody contended so far.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A change is made. Noting one again, with all that followed it and the cuts between, leaves the same list and the same answers.
    pub fn note(&mut self, origin: Origin) {
        if !origin.contended {
            return;
        }
        let mut contender = Contender { session: origin.session, last: origin.sequence, cut: Sequence(0) };
        if let Some(at) = self.0.iter().position(|known| known.session == origin.session) {
            let known = self.0.remove(at);
            let before = Sequence(origin.sequence.0.saturating_sub(1));
            contender = Contender { last: known.last.max(origin.sequence), cut: known.cut.min(before), ..known };
        }
        if self.0.len() == CONTENDERS_MAX {
            self.0.remove(0);
        }
        self.0.push(contender);
    }

    /// The chunk is cut.
    pub fn cut(&mut self) {
        for contender in &mut self.0 {
            contender.cut = contender.last;
        }
    }

    /// Whether a change was made.
    pub fn made(&self, session: SessionId, sequence: Sequence) -> Made {
        match self.0.iter().find(|known| known.session == session) {
            Some(known) if known.last < sequence => Made::No,
            Some(known) if known.cut < sequence => Made::Stands,
            Some(_) => Made::Cut,
            None if self.0.len() == CONTENDERS_MAX => Made::Unknown,
            None => Made::No,
        }
    }

    /// Bytes to be summed with the chunk's block sums. Not what was cut: among members that were given the same changes, some of them
    /// twice, it may differ in sequences that nobody used. A cut that one member lacks shows in its bytes.
    pub fn summed(&self) -> impl Iterator<Item = u8> + '_ {
        let words = |known: &Contender| [known.session.0, known.last.0];
        self.0.iter().flat_map(words).flat_map(u64::to_le_bytes)
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
        let entry = |session, last| Contender { session: SessionId(session), last: Sequence(last), cut: Sequence(0) };
        assert_eq!(contenders.list(), [entry(2, 1), entry(1, 7)]);
        assert_eq!(contenders.made(SessionId(1), Sequence(5)), Made::Stands);
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
    fn a_cut_that_is_made_again_with_all_that_followed_it_spares_what_followed_it() {
        let mut contenders = Contenders::default();
        contenders.note(origin(1, 5));
        for _ in 0..2 {
            contenders.cut();
            contenders.note(origin(1, 6));
        }
        assert_eq!(contenders.made(SessionId(1), Sequence(5)), Made::Cut);
        assert_eq!(contenders.made(SessionId(1), Sequence(6)), Made::Stands);
    }

    #[test]
    fn a_change_made_before_a_cut_does_not_stand() {
        let mut contenders = Contenders::default();
        contenders.note(origin(1, 5));
        contenders.cut();
        contenders.note(origin(2, 3));
        contenders.note(origin(1, 6));
        assert_eq!(contenders.made(SessionId(1), Sequence(5)), Made::Cut);
        assert_eq!(contenders.made(SessionId(1), Sequence(6)), Made::Stands);
        assert_eq!(contenders.made(SessionId(2), Sequence(3)), Made::Stands);
    }

    #[test]
    fn a_full_list_forgets_the_oldest_and_says_that_it_does_not_know() {
        let mut contenders = Contenders::default();
        (0..=CONTENDERS_MAX as u64).for_each(|session| contenders.note(origin(session + 1, 1)));
        assert_eq!(contenders.list().len(), CONTENDERS_MAX);
        assert_eq!(contenders.made(SessionId(1), Sequence(1)), Made::Unknown);
        assert_eq!(contenders.made(SessionId(2), Sequence(1)), Made::Stands);
    }

    #[test]
    fn a_list_that_names_a_session_twice_or_is_too_long_is_refused() {
        let entry = |session| Contender { session: SessionId(session), last: Sequence(1), cut: Sequence(0) };
        assert_eq!(Contenders::from_list(vec![entry(1), entry(2), entry(1)]), None);
        assert_eq!(Contenders::from_list((0..=CONTENDERS_MAX as u64).map(entry).collect()), None);
        assert!(Contenders::from_list(vec![entry(1), entry(2)]).is_some());
    }
}
