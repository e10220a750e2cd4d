//! Sessions attached to a volume, and those that are over.

use super::{Key, Row};
use holdfast_types::{InstanceGeneration, SessionId, Timestamp, VolumeId};
use holdfast_wire::metadata::ClientRecord;
use serde::{Deserialize, Serialize};

/// Attached sessions.
pub(crate) const SESSION: u8 = 0x0d;
/// Sessions that are over.
pub(crate) const ENDED: u8 = 0x10;
/// Sessions at or below the floor that are not attached are over, too.
pub(crate) const ENDED_FLOOR: u8 = 0x11;

/// The least generation of an instance that is let in.
pub(crate) const GENERATION: u8 = 0x15;

/// Life of a session in this shard.
///
/// ```text
/// (none) ──Attach──▶ Attached ──End──▶ Ending ──fenced, EndStep…──▶ (EndedRow)
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Alive.
    Attached,
    /// Over for everybody, but storage nodes may not know it yet: what it held is given to nobody.
    Ending {
        /// Why, for its user.
        reason: String,
    },
}

/// The last thing a session was told to act upon. Older ones need not be kept: the last one says what to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    /// Nothing yet.
    Nothing,
    /// Stop caching; not answered while `caching` is set.
    Stop,
    /// Start caching.
    Start,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRow {
    pub(crate) volume: VolumeId,
    pub(crate) client: ClientRecord,
    pub(crate) read_only: bool,
    pub(crate) phase: Phase,
    /// It may cache: it is alone, or has been told to stop and has not answered.
    pub(crate) caching: bool,
    /// Number of the last event.
    pub(crate) event: u64,
    /// What the last event was.
    pub(crate) told: Told,
    /// Since when it counts as silent, if it does: it loses nothing until somebody wants what it holds, or a day has passed.
    pub(crate) parked: Option<Timestamp>,
}

impl Row for SessionRow {}

/// A session that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedRow {
    pub(crate) reason: String,
}

impl Row for EndedRow {}

/// See [`ENDED_FLOOR`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndedFloorRow {
    pub(crate) floor: SessionId,
}

impl Row for EndedFloorRow {}

/// The least generation of an instance that is let in: the greatest that was ever let in or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GenerationRow {
    pub(crate) least: InstanceGeneration,
    /// When it was last raised.
    pub(crate) raised: Timestamp,
}

impl Row for GenerationRow {}

/// Key of an instance's generation.
pub(crate) fn generation(volume: VolumeId, instance: &str) -> Vec<u8> {
    Key::of(GENERATION).number(volume.0).name(instance.as_bytes()).done()
}

/// All instances of a volume.
pub(crate) fn generations(volume: VolumeId) -> Vec<u8> {
    Key::of(GENERATION).number(volume.0).done()
}

/// Key of a session.
pub(crate) fn key(session: SessionId) -> Vec<u8> {
    Key::of(SESSION).number(session.0).done()
}

/// Key of one that is over.
pub(crate) fn ended(session: SessionId) -> Vec<u8> {
    Key::of(ENDED).number(session.0).done()
}

/// Key of the floor.
pub(crate) fn ended_floor() -> Vec<u8> {
    vec![ENDED_FLOOR]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        super::super::assert_round_trip(SessionRow {
            volume: VolumeId(1),
            client: ClientRecord { host: "h".into(), ..ClientRecord::default() },
            read_only: false,
            phase: Phase::Ending { reason: "silent".into() },
            caching: true,
            event: 4,
            told: Told::Stop,
            parked: Some(Timestamp::default()),
        });
        super::super::assert_round_trip(EndedRow { reason: "silent".into() });
        let least = InstanceGeneration(7);
        super::super::assert_round_trip(GenerationRow { least, raised: Timestamp::default() });
        super::super::assert_round_trip(EndedFloorRow { floor: SessionId(8) });
    }
}
