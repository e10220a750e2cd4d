//! Does the order that a service claims to have applied calls in respect real time?
//!
//! Cheap, for histories of any length. With a replay of the calls through a model in that same order (the caller's
//! part) it proves linearizability without a search.

use crate::history::History;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Where a call took effect, by its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// It is the change with this index; no other is.
    Change(u64),
    /// It read the state just after the change with this index.
    Read(u64),
}

impl Place {
    fn index(self) -> u64 {
        match self {
            Self::Change(index) | Self::Read(index) => index,
        }
    }
}

/// How real time was contradicted. The texts show the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderError {
    /// The later call began after the earlier had returned, and took effect before it.
    WentBack {
        /// Returned first.
        earlier: String,
        /// Began after that.
        later: String,
    },
    /// Two calls claim to be the same change.
    SameChange {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
}

/// Checks all calls whose answer has a place (errors may have none).
///
/// # Errors
/// [`OrderError`], of the first call in the order of returns that contradicts an earlier one.
pub fn order_respects_real_time<I: Debug, O: Debug>(
    history: &History<I, O>,
    place: impl Fn(&I, &O) -> Option<Place>,
) -> Result<(), OrderError> {
    // All invocations and returns in order: (order, call, place of the return).
    let mut moments: Vec<(u64, usize, Option<Place>)> = Vec::new();
    let mut changes: BTreeMap<u64, usize> = BTreeMap::new();
    let calls = history.calls();
    for (at, call) in calls.iter().enumerate() {
        let Some(answer) = &call.returned else { continue };
        let Some(place) = place(&call.input, &answer.output) else { continue };
        if let Place::Change(index) = place
            && let Some(first) = changes.insert(index, at)
        {
            return Err(OrderError::SameChange { first: calls[first].to_string(), second: call.to_string() });
        }
        moments.push((call.invoked, at, None));
        moments.push((answer.order, at, Some(place)));
    }
    moments.sort_by_key(|(order, ..)| *order);
    // The furthest place among returned calls, and for each running call what that was when it began.
    let mut furthest: Option<(u64, usize)> = None;
    let mut floors: BTreeMap<usize, Option<(u64, usize)>> = BTreeMap::new();
    for (_, at, place) in moments {
        let Some(place) = place else {
            floors.insert(at, furthest);
            continue;
        };
        if let Some((floor, earlier)) = floors.remove(&at).flatten() {
            let behind = match place {
                Place::Change(index) => index <= floor,
                Place::Read(index) => index < floor,
            };
            if behind {
                return Err(OrderError::WentBack { earlier: calls[earlier].to_string(), later: calls[at].to_string() });
            }
        }
        if furthest.is_none_or(|(index, _)| place.index() > index) {
            furthest = Some((place.index(), at));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WorldTime;

    /// Calls given as (invoked at, returned at, place), with all moments different.
    fn judge(calls: &[(u64, u64, Place)]) -> Result<(), OrderError> {
        let mut history = History::new();
        let mut ids = vec![None; calls.len()];
        for moment in 0..100 {
            for (at, (invoked, returned, place)) in calls.iter().enumerate() {
                if *invoked == moment {
                    ids[at] = Some(history.invoke(WorldTime(moment), at as u32, ()));
                } else if *returned == moment {
                    history.returned(WorldTime(moment), ids[at].expect("invoked before"), *place);
                }
            }
        }
        order_respects_real_time(&history, |(), place| Some(*place))
    }

    #[test]
    fn overlapping_calls_may_take_effect_in_either_order_and_others_may_not() {
        use Place::{Change, Read};
        assert_eq!(judge(&[(1, 4, Change(2)), (2, 3, Change(1))]), Ok(()), "they overlap");
        assert!(matches!(judge(&[(1, 2, Change(2)), (3, 4, Change(1))]), Err(OrderError::WentBack { .. })));
        assert_eq!(judge(&[(1, 2, Change(2)), (3, 4, Read(2))]), Ok(()), "a read of that very change");
        assert!(matches!(judge(&[(1, 2, Change(2)), (3, 4, Read(1))]), Err(OrderError::WentBack { .. })), "stale");
        assert!(matches!(judge(&[(1, 2, Read(5)), (3, 4, Read(4))]), Err(OrderError::WentBack { .. })), "reads too");
        assert!(
            matches!(judge(&[(1, 2, Read(5)), (3, 4, Change(5))]), Err(OrderError::WentBack { .. })),
            "seen before"
        );
        assert!(matches!(judge(&[(1, 4, Change(1)), (2, 3, Change(1))]), Err(OrderError::SameChange { .. })));
        assert_eq!(judge(&[(1, 6, Change(1)), (2, 3, Read(0)), (4, 5, Read(1))]), Ok(()));
    }
}
