//! Implicit locks: who may have a file open at the same time, on which hosts.
//!
//! The rule is a property of the file, taken from its directory when it is made, or of its whole volume. It is enforced by `open(2)`, so
//! that programs which know nothing of it are kept apart all the same. Processes of one session (one mount on one host) share.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Extended attribute that holds a file's or directory's [`OpenRule`].
pub const OPEN_XATTR: &[u8] = b"holdfast.open";
/// Extended attribute that holds for how many seconds an `open(2)` waits for a session that lives.
pub const OPEN_WAIT_XATTR: &[u8] = b"holdfast.open_wait";
/// What names of attributes that are not stored as such begin with. They are not listed: nobody copies them by accident.
pub const XATTR_PREFIX: &[u8] = b"holdfast.";

/// Longest wait, in seconds: an hour.
pub const OPEN_WAIT_MAX: u16 = 3600;

/// What a session opens a file for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Access {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY`, `O_RDWR`.
    Write,
}

/// Who may have a file open at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpenRule {
    /// Anybody.
    #[default]
    Shared,
    /// One session for writing; any for reading.
    SingleWriter,
    /// One session.
    Exclusive,
}

impl OpenRule {
    /// All of them, as they are written.
    pub const NAMES: [&str; 3] = ["shared", "single-writer", "exclusive"];

    /// Whether a session that has the file open for `held` is in the way of another that wants it for `wanted`.
    pub fn excludes(self, held: Access, wanted: Access) -> bool {
        match self {
            Self::Shared => false,
            Self::SingleWriter => (held, wanted) == (Access::Write, Access::Write),
            Self::Exclusive => true,
        }
    }
}

impl fmt::Display for OpenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::SingleWriter => "single-writer",
            Self::Exclusive => "exclusive",
        })
    }
}

impl FromStr for OpenRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "shared" => Ok(Self::Shared),
            "single-writer" => Ok(Self::SingleWriter),
            "exclusive" => Ok(Self::Exclusive),
            _ => Err(format!("{text:?} is not one of {}", Self::NAMES.join(", "))),
        }
    }
}

/// How files are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPolicy {
    /// Who may have one open at the same time.
    pub rule: OpenRule,
    /// Seconds that an `open(2)` waits for a session that lives and has it open, before it fails with `EBUSY`. 0: not at all. One that
    /// does not live is waited for in any case until it is fenced, and then the file is open.
    pub wait: u16,
}

impl OpenPolicy {
    /// The value of one of the attributes; `None` if it is another one.
    pub fn attribute(&self, name: &[u8]) -> Option<String> {
        match name {
            OPEN_XATTR => Some(self.rule.to_string()),
            OPEN_WAIT_XATTR => Some(self.wait.to_string()),
            _ => None,
        }
    }

    /// Takes the value of one of the attributes. A line feed at its end, as `echo` leaves, is no part of it.
    ///
    /// # Errors
    /// It is another attribute, or no such value.
    pub fn set_attribute(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(value).map_err(|error| error.to_string())?.trim_end_matches('\n');
        match name {
            OPEN_XATTR => self.rule = text.parse()?,
            OPEN_WAIT_XATTR => {
                let wait: u16 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
                if wait > OPEN_WAIT_MAX {
                    return Err(format!("{wait} is more than {OPEN_WAIT_MAX} seconds"));
                }
                self.wait = wait;
            }
            _ => return Err("there is no such attribute".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_in_whose_way() {
        use Access::{Read, Write};
        let all = [(Read, Read), (Read, Write), (Write, Read), (Write, Write)];
        let excluded = |rule: OpenRule| all.map(|(held, wanted)| rule.excludes(held, wanted));
        assert_eq!(excluded(OpenRule::Shared), [false; 4]);
        assert_eq!(excluded(OpenRule::SingleWriter), [false, false, false, true]);
        assert_eq!(excluded(OpenRule::Exclusive), [true; 4]);
    }

    #[test]
    fn values_of_attributes_come_back_as_they_were_and_others_are_refused() {
        for name in OpenRule::NAMES {
            let mut policy = OpenPolicy::default();
            policy.set_attribute(OPEN_XATTR, format!("{name}\n").as_bytes()).unwrap();
            policy.set_attribute(OPEN_WAIT_XATTR, b"17").unwrap();
            assert_eq!(policy.attribute(OPEN_XATTR).unwrap(), name);
            assert_eq!(policy.attribute(OPEN_WAIT_XATTR).unwrap(), "17");
        }
        let mut policy = OpenPolicy::default();
        for (name, value) in [
            (OPEN_XATTR, &b"exclusiv"[..]),
            (OPEN_XATTR, b""),
            (OPEN_WAIT_XATTR, b"3601"),
            (OPEN_WAIT_XATTR, b"-1"),
            (OPEN_WAIT_XATTR, b"\xff"),
            (b"holdfast.opne", b"shared"),
        ] {
            assert!(policy.set_attribute(name, value).is_err(), "{value:?}");
        }
        assert_eq!((policy, policy.attribute(b"user.a")), (OpenPolicy::default(), None));
    }
}
