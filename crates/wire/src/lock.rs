//! Advisory locks as messages see them, and what two locks mean to each other.
//!
//! There are two spaces that do not see each other, as on Linux: byte ranges (`fcntl`, by process, and open-file-description
//! locks), and whole files (`flock`, by open file). An owner is named by its session and a number that its kernel chose.

use holdfast_types::SessionId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Which locks see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockSpace {
    /// `fcntl(2)`: byte ranges.
    Range,
    /// `flock(2)`: whole files.
    Whole,
}

/// What a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// Exclusive ones.
    Shared,
    /// All others.
    Exclusive,
}

/// A lock that is asked for, tested for, or (with no kind) given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lock {
    /// Among which.
    pub space: LockSpace,
    /// Whose, within its session.
    pub owner: u64,
    /// The process, for `F_GETLK` on the same host.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// Last byte; `i64::MAX` means: to the end, wherever that will be.
    pub end: u64,
    /// `None`: unlock.
    pub kind: Option<LockKind>,
}

impl Lock {
    /// As it is held once it is granted; nothing for one that is given back.
    pub fn held_by(&self, session: SessionId) -> Option<HeldLock> {
        let Self { owner, pid, start, end, .. } = *self;
        self.kind.map(|kind| HeldLock { session, owner, pid, start, end, kind })
    }
}

/// A lock that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldLock {
    /// Whose.
    pub session: SessionId,
    /// Whose within it.
    pub owner: u64,
    /// The process, on the session's host.
    pub pid: u32,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// What it excludes.
    pub kind: LockKind,
}

impl HeldLock {
    /// Whether there is a byte that both are about.
    pub fn overlaps(&self, asked: &Lock) -> bool {
        self.start <= asked.end && asked.start <= self.end
    }

    /// Whether another owner's request has to wait for this lock.
    pub fn excludes(&self, asked: &Lock) -> bool {
        self.overlaps(asked)
            && asked.kind.is_some_and(|kind| self.kind == LockKind::Exclusive || kind == LockKind::Exclusive)
    }
}

/// What an owner's ranges become when it sets (or gives back) another: `own` are those that overlap or touch it, in any order; what
/// it covers is replaced, what sticks out stays, and touching ranges of one kind become one.
pub fn replaced(own: &[HeldLock], session: SessionId, lock: &Lock) -> Vec<HeldLock> {
    let mut after = Vec::with_capacity(own.len() + 2);
    let mut new = lock.held_by(session);
    for held in own {
        let touches = held.start <= lock.end.saturating_add(1) && lock.start <= held.end.saturating_add(1);
        if let Some(new) = new.as_mut().filter(|new| touches && new.kind == held.kind) {
            new.start = new.start.min(held.start);
            new.end = new.end.max(held.end);
            continue;
        }
        if held.start < lock.start {
            after.push(HeldLock { end: held.end.min(lock.start - 1), ..*held });
        }
        if held.end > lock.end {
            after.push(HeldLock { start: held.start.max(lock.end + 1), ..*held });
        }
    }
    after.extend(new);
    after.sort_unstable_by_key(|held| held.start);
    after
}

/// Whether a wait would close a circle of owners who wait for each other: whether those in its way (`in_the_way`) wait, by any of
/// their own waits (`waits_of`), directly or not, for its owner.
///
/// # Errors
/// What `in_the_way` says.
pub fn closes_circle<W: Copy, O: Copy + Ord, E>(
    wait: W,
    owner: O,
    mut in_the_way: impl FnMut(&W) -> Result<Vec<O>, E>,
    waits_of: impl Fn(O) -> Vec<W>,
) -> Result<bool, E> {
    let mut seen = BTreeSet::new();
    let mut waits = vec![wait];
    while let Some(next) = waits.pop() {
        for other in in_the_way(&next)? {
            if other == owner {
                return Ok(true);
            }
            if seen.insert(other) {
                waits.extend(waits_of(other));
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use LockKind::{Exclusive, Shared};

    const SESSION: SessionId = SessionId(1);
    const END: u64 = i64::MAX as u64;

    fn held(start: u64, end: u64, kind: LockKind) -> HeldLock {
        HeldLock { session: SESSION, owner: 7, pid: 1, start, end, kind }
    }

    fn lock(start: u64, end: u64, kind: Option<LockKind>) -> Lock {
        Lock { space: LockSpace::Range, owner: 7, pid: 1, start, end, kind }
    }

    #[test]
    fn ranges_split_merge_and_go() {
        let cases: &[(&[HeldLock], Lock, &[HeldLock])] = &[
            (&[], lock(0, 9, Some(Shared)), &[held(0, 9, Shared)]),
            (&[held(0, 9, Shared)], lock(10, 19, Some(Shared)), &[held(0, 19, Shared)]),
            (&[held(0, 9, Shared)], lock(10, 19, Some(Exclusive)), &[held(0, 9, Shared), held(10, 19, Exclusive)]),
            (&[held(0, END, Exclusive)], lock(5, 5, None), &[held(0, 4, Exclusive), held(6, END, Exclusive)]),
            (
                &[held(0, 9, Shared)],
                lock(3, 5, Some(Exclusive)),
                &[held(0, 2, Shared), held(3, 5, Exclusive), held(6, 9, Shared)],
            ),
            (&[held(0, 3, Shared), held(6, 9, Shared)], lock(2, 7, Some(Shared)), &[held(0, 9, Shared)]),
            (&[held(0, 3, Shared), held(6, 9, Exclusive)], lock(0, END, None), &[]),
            (&[held(0, 4, Exclusive)], lock(0, 4, Some(Shared)), &[held(0, 4, Shared)]),
        ];
        for (own, asked, expected) in cases {
            assert_eq!(replaced(own, SESSION, asked), *expected, "{own:?} and {asked:?}");
        }
    }

    /// Byte by byte, whatever the order of requests, an owner holds what it asked for last.
    #[test]
    fn every_byte_is_held_as_it_was_asked_for_last() {
        let mut random = holdfast_types::prng::Prng::new(5);
        let mut bytes: [Option<LockKind>; 32] = [None; 32];
        let mut own: Vec<HeldLock> = Vec::new();
        for _ in 0..2000 {
            let start = random.below(32);
            let end = start + random.below(32 - start);
            let kind = [None, Some(Shared), Some(Exclusive)][random.below(3) as usize];
            own = replaced(&own, SESSION, &lock(start, end, kind));
            bytes[start as usize..=end as usize].fill(kind);
            let mut seen = [None; 32];
            for held in &own {
                for byte in held.start..=held.end {
                    assert_eq!(seen[byte as usize].replace(held.kind), None, "held twice");
                }
            }
            assert_eq!(seen, bytes);
            assert!(
                own.windows(2).all(|pair| pair[0].end + 1 < pair[1].start || pair[0].kind != pair[1].kind),
                "touching ranges of one kind are one: {own:?}"
            );
        }
    }

    #[test]
    fn a_circle_is_found_however_long_it_is() {
        // Who waits for whom: 1 -> 2 -> 3 -> 4, and 3 -> 5.
        let waits = [(1, 2), (2, 3), (3, 4), (3, 5)];
        let of = |owner: u8| waits.iter().copied().filter(move |(waiter, _)| *waiter == owner).collect::<Vec<_>>();
        let circle = |wait: (u8, u8)| closes_circle(wait, wait.0, |wait| Ok::<_, ()>(vec![wait.1]), of);
        assert_eq!(
            (circle((4, 1)), circle((5, 2)), circle((4, 6)), circle((6, 1))),
            (Ok(true), Ok(true), Ok(false), Ok(false))
        );
        assert_eq!(closes_circle((4, 1), 4, |_| Err("unreadable"), of), Err("unreadable"));
    }

    #[test]
    fn only_two_shared_locks_go_together() {
        assert!(!held(0, 9, Shared).excludes(&lock(0, 9, Some(Shared))));
        assert!(held(0, 9, Shared).excludes(&lock(9, 9, Some(Exclusive))));
        assert!(held(0, 9, Exclusive).excludes(&lock(9, END, Some(Shared))));
        assert!(!held(0, 9, Exclusive).excludes(&lock(10, END, Some(Exclusive))));
        assert!(!held(0, 9, Exclusive).excludes(&lock(0, 9, None)));
    }
}
