//! File names: any bytes but `/` and NUL, 1 to 255 of them, not `.` or `..`.

use crate::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A name within a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct FileName(Box<[u8]>);

/// Why bytes are not a file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Longer than 255 bytes.
    #[error("a name may have {NAME_BYTES_MAX} bytes, this one has {0}")]
    TooLong(usize),
    /// Empty, `.`, `..`, or with a `/` or NUL byte.
    #[error("a name is not empty, not '.' or '..', and has no '/' or NUL byte")]
    Invalid,
}

impl FileName {
    /// Checks and takes bytes as a name.
    ///
    /// # Errors
    /// [`NameError`] when they are not one.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if bytes.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(bytes.len()));
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(NameError::Invalid);
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl TryFrom<Vec<u8>> for FileName {
    type Error = NameError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, NameError> {
        Self::new(&bytes)
    }
}

impl From<FileName> for Vec<u8> {
    fn from(name: FileName) -> Self {
        name.0.into_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_any_bytes_but_slash_and_nul() {
        assert!(FileName::new(&[0xff; 255]).is_ok());
        assert_eq!(FileName::new(&[b'a'; 256]), Err(NameError::TooLong(256)));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(FileName::new(bad), Err(NameError::Invalid));
        }
    }
}
