//! Encoding of control messages: one version byte, then postcard (<https://postcard.jamesmunns.com/wire-format>).

use bytes::Bytes;
use holdfast_types::limits::MESSAGE_BYTES_MAX;
use serde::{Serialize, de::DeserializeOwned};

/// Message version written by this build.
pub const VERSION: u8 = 1;

/// Why bytes are not the message that was expected.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A peer of another release.
    #[error("message version {found} is not known here (this build speaks {VERSION})")]
    Version {
        /// What the first byte says.
        found: u8,
    },
    /// Too long to be one of ours.
    #[error("message of {bytes} bytes exceeds the limit of {MESSAGE_BYTES_MAX}")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// Not decodable, or with bytes left over.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Encodes a message.
///
/// # Panics
/// Never for our own message types: they hold no map with unknown length and no unsized sequence.
pub fn encode<T: Serialize + ?Sized>(message: &T) -> Bytes {
    let mut buffer = Vec::with_capacity(128);
    buffer.push(VERSION);
    let buffer = postcard::to_extend(message, buffer).expect("our message types always encode");
    Bytes::from(buffer)
}

/// Decodes a message and demands that nothing is left over.
///
/// # Errors
/// [`CodecError`]; never panics, whatever the bytes are, and allocates at most in proportion to their length.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() as u64 > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLong { bytes: bytes.len() });
    }
    let (&version, rest) = bytes.split_first().ok_or_else(|| CodecError::Malformed("empty".into()))?;
    if version != VERSION {
        return Err(CodecError::Version { found: version });
    }
    let (message, left) = postcard::take_from_bytes(rest).map_err(|e| CodecError::Malformed(e.to_string()))?;
    if !left.is_empty() {
        return Err(CodecError::Malformed(format!("{} bytes left over", left.len())));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_another_version_or_with_a_tail_is_refused() {
        let good = encode(&(7u32, "x"));
        assert_eq!(decode::<(u32, String)>(&good).unwrap(), (7, "x".to_owned()));
        let mut other = good.to_vec();
        other[0] = 9;
        assert!(matches!(decode::<(u32, String)>(&other), Err(CodecError::Version { found: 9 })));
        let mut longer = good.to_vec();
        longer.push(0);
        assert!(matches!(decode::<(u32, String)>(&longer), Err(CodecError::Malformed(_))));
    }
}
