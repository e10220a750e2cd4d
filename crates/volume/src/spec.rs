//! What volume is wanted.

use crate::error::VolumeError;
use holdfast_types::limits::VOLUME_NAME_BYTES_MAX;
use holdfast_wire::namespace::Limits;
use holdfast_wire::open::OpenPolicy;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The greatest size that a volume may be given, in bytes: 1 EiB. Beyond what any pool holds; a mistake in a unit is found by it.
pub const BYTES_MAX: u64 = 1 << 60;

/// A range of sizes, of which any will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// At least so many bytes; 0: any.
    pub required: u64,
    /// At most so many bytes; 0: any.
    pub limit: u64,
}

impl Capacity {
    /// A range, as orchestrators write it.
    ///
    /// # Errors
    /// [`VolumeError::OutOfRange`] if there is nothing in it.
    pub fn new(required: i64, limit: i64) -> Result<Self, VolumeError> {
        let out = |reason: String| Err(VolumeError::OutOfRange { reason });
        let (Ok(required), Ok(limit)) = (u64::try_from(required), u64::try_from(limit)) else {
            return out(format!("sizes are not negative, as {required} or {limit} bytes would be"));
        };
        if limit > 0 && required > limit {
            return out(format!("{required} bytes are required, and {limit} are the limit: nothing is both"));
        }
        if required > BYTES_MAX {
            return out(format!("a volume may have {BYTES_MAX} bytes at the most, and {required} are required"));
        }
        Ok(Self { required, limit })
    }

    /// Of these, the size that a new volume gets. None: as the pool allows.
    pub fn chosen(self) -> Option<u64> {
        match self {
            Self { required: 0, limit: 0 } => None,
            Self { required: 0, limit } => Some(limit.min(BYTES_MAX)),
            Self { required, .. } => Some(required),
        }
    }

    /// Whether a volume of this size (none: as the pool allows) will do.
    pub fn admits(self, bytes: Option<u64>) -> bool {
        match bytes {
            // What has no limit has room for everything, and is too large for whoever set one.
            None => self.limit == 0,
            Some(bytes) => bytes >= self.required && (self.limit == 0 || bytes <= self.limit),
        }
    }
}

/// A volume that somebody wants to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name for whoever wants it; [`volume_name`] is its name in the cluster. Of the same name there is one.
    pub name: String,
    /// Who manages it: `csi`, `docker`. One that another manages is not touched.
    pub driver: String,
    /// How large.
    pub capacity: Capacity,
    /// Inodes at the most.
    pub inodes: Option<u64>,
    /// How its files are opened, where they do not say so themselves.
    pub open: OpenPolicy,
    /// What was asked for beyond that, in the orchestrator's words: the same again is the same volume.
    pub parameters: BTreeMap<String, String>,
    /// It goes when what it was made for on this node goes.
    pub ephemeral_on: Option<String>,
}

impl VolumeSpec {
    /// Its limits when it is new.
    pub fn limits(&self) -> Limits {
        Limits { bytes: self.capacity.chosen(), inodes: self.inodes }
    }
}

/// The name in the cluster of a volume that an orchestrator calls `asked`: the same, where that is plain; else with `%XX` for what is not,
/// or, where that is too long, a digest. Two names never get the same.
///
/// # Errors
/// [`VolumeError::Invalid`] without a name.
pub fn volume_name(asked: &str) -> Result<String, VolumeError> {
    if asked.is_empty() {
        return Err(VolumeError::Invalid { reason: "a volume must have a name".into() });
    }
    let mut name = String::with_capacity(asked.len());
    for (at, byte) in asked.bytes().enumerate() {
        // Not in front: `-` looks like an option on a command line, `.` is for names of our own.
        let plain = byte.is_ascii_alphanumeric() || byte == b'_' || (at > 0 && matches!(byte, b'-' | b'.'));
        if plain {
            name.push(char::from(byte));
        } else {
            write!(name, "%{byte:02X}").expect("a string takes everything");
        }
    }
    if name.len() > VOLUME_NAME_BYTES_MAX {
        // `%%` is in no name of the other kind.
        name = format!("%%{}", blake3::hash(asked.as_bytes()).to_hex());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn plain_names_stay_and_no_two_names_become_one() {
        assert_eq!(volume_name("pvc-0a1B_2.c").expect("plain"), "pvc-0a1B_2.c");
        assert_eq!(volume_name("x".repeat(128).as_str()).expect("plain"), "x".repeat(128));
        let long = "/".repeat(128);
        let names = ["a/b", "a%2Fb", "-a", ".a", "a b", "%", "%%", "ä", &long, &format!("{long}/"), "a,b", "a\0b"];
        let mapped: BTreeSet<String> = names.iter().map(|name| volume_name(name).expect("a name")).collect();
        assert_eq!(mapped.len(), names.len(), "{mapped:?}");
        for name in &mapped {
            assert!(name.len() <= VOLUME_NAME_BYTES_MAX && !name.contains(['/', '\0', ' ', ',']), "{name}");
            assert!(!name.starts_with(['-', '.']), "{name}");
        }
        assert!(matches!(volume_name(""), Err(VolumeError::Invalid { .. })));
    }

    #[test]
    fn a_size_is_chosen_from_its_range_and_others_are_held_against_it() {
        let range = |required, limit| Capacity::new(required, limit);
        for (required, limit) in [(-1, 0), (0, -1), (2, 1), (i64::MAX, 0)] {
            assert!(matches!(range(required, limit), Err(VolumeError::OutOfRange { .. })), "{required} {limit}");
        }
        let table = [
            ((0, 0), None, vec![None, Some(1)], vec![]),
            ((10, 0), Some(10), vec![None, Some(10), Some(11)], vec![Some(9)]),
            ((0, 10), Some(10), vec![Some(1), Some(10)], vec![None, Some(11)]),
            ((5, 10), Some(5), vec![Some(5), Some(10)], vec![None, Some(4), Some(11)]),
        ];
        for ((required, limit), chosen, good, bad) in table {
            let range = range(required, limit).expect("a range");
            assert_eq!(range.chosen(), chosen);
            assert!(good.into_iter().all(|bytes| range.admits(bytes)), "{range:?}");
            assert!(!bad.into_iter().any(|bytes| range.admits(bytes)), "{range:?}");
        }
    }
}
