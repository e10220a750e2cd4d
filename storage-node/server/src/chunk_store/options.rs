//! How a store is laid out. What is chosen when a disk is made may differ from what later openings say, except as noted.

use holdfast_journal::Space;
use holdfast_types::Incarnation;
use holdfast_types::size::{GIB, KIB, MIB};
use std::time::Duration;

/// Sizes and bounds of a store, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Writes up to this length travel through the journal; larger ones go to fresh extents. 256 KiB by the design: there
    /// the second copy costs about what the second sync does.
    pub inline_bytes_max: usize,
    /// A segment of the journal. An existing journal keeps what it was made with.
    pub segment_bytes: u64,
    /// Segments, all made when the disk is: a journal that cannot grow cannot fail for want of space.
    pub segments: u32,
    /// An extent file at the most.
    pub file_bytes: u64,
    /// By how much an extent file grows at a time.
    pub step_bytes: u64,
    /// Kept free on the file system: the index grows too, and deletes must always work.
    pub reserve_bytes: u64,
    /// Below so much free space the store counts as nearly full.
    pub low_bytes: u64,
    /// Records of one batch, approximately, before it is made durable.
    pub batch_bytes_max: usize,
    /// The life after which those of a disk that is made now begin. Less than any of a disk that was made before: one that was wiped must never
    /// pass for what it was, nor for a later life of it.
    pub life_before: Incarnation,
    /// Deliberate bugs, for tests of the tests.
    pub mutations: Mutations,
}

/// Deliberate bugs that tests must find. Never set outside tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mutations {
    /// Bytes in place are overwritten before their record is durable.
    pub overwrite_before_durable: bool,
    /// A damaged block is replaced by whatever comes, also when it was written anew meanwhile.
    pub mend_unchecked: bool,
}

/// Lives of a disk for each second between its making and that of one in its place. By eye: nothing starts more often.
const LIVES_PER_SECOND: u64 = 16;
/// Seconds that are counted down from; about the year 4147.
const SECONDS_MAX: u64 = 1 << 36;
/// The beginning of 2026, in seconds since 1970. No disk was made before; a clock that says so lost its battery.
const FIRST_MADE: u64 = 1_767_225_600;
/// No disk begins its lives above.
pub(super) const LIFE_BEFORE_MAX: Incarnation = Incarnation((SECONDS_MAX - FIRST_MADE) * LIVES_PER_SECOND);

impl StoreOptions {
    /// For a disk that is made so long after 1970, if it is one that is made.
    #[must_use]
    pub fn made(self, since_1970: Duration) -> Self {
        let left = SECONDS_MAX.saturating_sub(since_1970.as_secs());
        Self { life_before: Incarnation(left * LIVES_PER_SECOND), ..self }
    }

    /// For a disk of that size. By eye: small disks get small steps, so that a test on a loop device has room to work.
    pub fn for_disk(space: Space) -> Self {
        let share = |part: u64, least: u64, most: u64| (space.total / part).clamp(least, most).next_power_of_two();
        let segment_bytes = share(512, MIB, 16 * MIB);
        Self {
            inline_bytes_max: 256 * KIB as usize,
            segment_bytes,
            segments: 8,
            file_bytes: share(16, 64 * MIB, 256 * MIB),
            step_bytes: share(256, 4 * MIB, 16 * MIB),
            reserve_bytes: (space.total / 50).min(256 * MIB),
            low_bytes: (space.total / 20).max(GIB.min(space.total / 10)),
            batch_bytes_max: (segment_bytes / 2) as usize,
            life_before: Incarnation(0),
            mutations: Mutations::default(),
        }
    }

    /// Tiny, so that a short simulation fills segments, files and disks.
    pub fn for_simulation() -> Self {
        Self {
            inline_bytes_max: 32 * KIB as usize,
            segment_bytes: 256 * KIB,
            segments: 6,
            file_bytes: 16 * MIB,
            step_bytes: 4 * MIB,
            reserve_bytes: 0,
            low_bytes: 0,
            batch_bytes_max: 128 * KIB as usize,
            life_before: Incarnation(0),
            mutations: Mutations::default(),
        }
    }
}
