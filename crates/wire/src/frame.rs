//! Frames: a fixed header, a message, then raw payload bytes that are never copied to be encoded. Pure.
//!
//! ```text
//!        0               4       6       8               (all numbers little-endian, no padding)
//!      0 │ magic "HFRM"  │version│ kind  │   read first: a stranger is known before anything else is believed
//!      8 │method │ flags │message length │   lengths, in bytes; the payload's is at 80
//!     16 │ cluster id                    │   two clusters never mix,
//!     24 │                        (u128) │
//!     32 │ sender id                     │   nor two peers
//!     40 │ request id                    │   names the request on its connection; 0 for kinds that are not answered
//!     48 │ deadline, µs left             │   counted from when the frame was sent; 0 is "none"
//!     56 │ trace id                      │   all zero: not traced
//!     64 │                        (u128) │
//!     72 │ span id                       │
//!     80 │payload length │ message crc   │   sums last: the header's own covers all before it
//!     88 │ payload crc   │ header crc    │
//!     96 │ message … │ payload …
//! ```
//!
//! Invariants:
//! * No length is believed before the header's own sum was checked, and none is above [`limits::MESSAGE_BYTES_MAX`] or
//!   [`limits::PAYLOAD_BYTES_MAX`], so a reader never allocates more than that.
//! * A message is always summed. A payload is summed unless [`Flags::PAYLOAD_UNSUMMED`] says that something else covers it: the
//!   tag of a TLS record, in which the frame travelled, or block checksums in the message.
//! * The first eight bytes keep their meaning in every version, so an unknown version is refused by its number.

use holdfast_types::{ClusterId, checksum::crc32, limits};
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[cfg(test)]
mod tests;

/// The header's length, in bytes.
pub const HEADER_BYTES: usize = limits::FRAME_HEADER_BYTES as usize;
/// The version this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"HFRM";

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FrameKind {
    /// First frame of either side: who speaks (`method` is the role, `sender` the id). No message, no payload.
    Hello = 1,
    /// Wants a [`FrameKind::Response`] or a [`FrameKind::Failure`] with its request id.
    Request = 2,
    /// The answer to a request.
    Response = 3,
    /// The transport's word about a request that gets no answer: `method` is the reason.
    Failure = 4,
    /// Wants no answer.
    OneWay = 5,
    /// The caller of `request` gave up.
    Cancel = 6,
    /// Nothing to say, but alive.
    Alive = 7,
}

impl FrameKind {
    const fn from_u16(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Hello),
            2 => Some(Self::Request),
            3 => Some(Self::Response),
            4 => Some(Self::Failure),
            5 => Some(Self::OneWay),
            6 => Some(Self::Cancel),
            7 => Some(Self::Alive),
            _ => None,
        }
    }
}

/// Bits that change how a frame is read. A reader refuses bits that it does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// No bit.
    pub const NONE: Self = Self(0);
    /// The payload's sum is not set: see the module's invariants.
    pub const PAYLOAD_UNSUMMED: Self = Self(1);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The trace that a request belongs to, from the application's system call to the last disk. All zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The whole trace.
    pub trace: u128,
    /// The span that sent the frame.
    pub span: u64,
}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Which message it holds; the meaning is the layer's above, see [`crate::kind::Kind`].
    pub method: u16,
    /// How to read it.
    pub flags: Flags,
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// The sender's id within its role.
    pub sender: u64,
    /// The request's name on its connection; 0 for kinds that are not answered.
    pub request: u64,
    /// Microseconds left to answer when the frame was sent; 0 is "no deadline".
    pub deadline_us: u64,
    /// Trace it belongs to.
    pub trace: TraceContext,
    /// Bytes of the message.
    pub message_length: u32,
    /// Bytes of the payload.
    pub payload_length: u32,
    /// CRC-32 of the message.
    pub message_sum: u32,
    /// CRC-32 of the payload, or 0 with [`Flags::PAYLOAD_UNSUMMED`].
    pub payload_sum: u32,
}

/// Why bytes are not a frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol at all.
    #[error("not a Holdfast frame: it begins with {0:02x?}")]
    Magic([u8; 4]),
    /// A protocol version of another release.
    #[error("protocol version {theirs} is unknown here; this build speaks version {PROTOCOL_VERSION}")]
    Version {
        /// What the frame names.
        theirs: u16,
    },
    /// The header was damaged.
    #[error("frame header is damaged: sum {found:08x}, expected {expected:08x}")]
    HeaderSum {
        /// The sum computed.
        found: u32,
        /// The sum carried.
        expected: u32,
    },
    /// A kind of frame that this build does not know.
    #[error("unknown frame kind {0}")]
    Kind(u16),
    /// A flag that this build does not know.
    #[error("unknown frame flags {0:#06x}")]
    Flags(u16),
    /// A message longer than allowed.
    #[error("message of {0} bytes is longer than {max}", max = limits::MESSAGE_BYTES_MAX)]
    MessageTooLong(u64),
    /// A payload longer than allowed.
    #[error("payload of {0} bytes is longer than {max}", max = limits::PAYLOAD_BYTES_MAX)]
    PayloadTooLong(u64),
    /// The message was damaged, or has another length than announced.
    #[error("message is damaged")]
    MessageSum,
    /// The payload was damaged, or has another length than announced.
    #[error("payload is damaged")]
    PayloadSum,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    method: U16,
    flags: U16,
    message_length: U32,
    cluster: U128,
    sender: U64,
    request: U64,
    deadline_us: U64,
    trace: U128,
    span: U64,
    payload_length: U32,
    message_sum: U32,
    payload_sum: U32,
    header_sum: U32,
}

const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);
/// Bytes covered by the header's own sum.
const SUMMED_BYTES: usize = HEADER_BYTES - size_of::<u32>();

impl Header {
    /// A header of a kind, with nothing in it.
    pub const fn new(kind: FrameKind, cluster: ClusterId, sender: u64) -> Self {
        Self {
            kind,
            method: 0,
            flags: Flags::NONE,
            cluster,
            sender,
            request: 0,
            deadline_us: 0,
            trace: TraceContext { trace: 0, span: 0 },
            message_length: 0,
            payload_length: 0,
            message_sum: 0,
            payload_sum: 0,
        }
    }

    /// Sets lengths and sums for a message and a payload; `covered` says that the payload needs no sum of the frame.
    ///
    /// # Errors
    /// [`FrameError::MessageTooLong`], [`FrameError::PayloadTooLong`].
    pub fn describe(&mut self, message: &[u8], payload: &[u8], covered: bool) -> Result<(), FrameError> {
        check_lengths(message.len() as u64, payload.len() as u64)?;
        // The limits fit into 32 bits: checked at compile time in `limits`.
        self.message_length = message.len() as u32;
        self.payload_length = payload.len() as u32;
        self.message_sum = crc32(message);
        (self.flags, self.payload_sum) =
            if covered { (Flags::PAYLOAD_UNSUMMED, 0) } else { (Flags::NONE, crc32(payload)) };
        Ok(())
    }

    /// The bytes of this header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = Raw {
            magic: MAGIC,
            version: PROTOCOL_VERSION.into(),
            kind: (self.kind as u16).into(),
            method: self.method.into(),
            flags: self.flags.0.into(),
            message_length: self.message_length.into(),
            cluster: self.cluster.0.into(),
            sender: self.sender.into(),
            request: self.request.into(),
            deadline_us: self.deadline_us.into(),
            trace: self.trace.trace.into(),
            span: self.trace.span.into(),
            payload_length: self.payload_length.into(),
            message_sum: self.message_sum.into(),
            payload_sum: self.payload_sum.into(),
            header_sum: U32::ZERO,
        };
        raw.header_sum = crc32(&raw.as_bytes()[..SUMMED_BYTES]).into();
        zerocopy::transmute!(raw)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// Every [`FrameError`] but those about the bodies; the lengths of a header that is returned are within the limits.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let raw: &Raw = zerocopy::transmute_ref!(bytes);
        if raw.magic != MAGIC {
            return Err(FrameError::Magic(raw.magic));
        }
        if raw.version.get() != PROTOCOL_VERSION {
            return Err(FrameError::Version { theirs: raw.version.get() });
        }
        let (found, expected) = (crc32(&bytes[..SUMMED_BYTES]), raw.header_sum.get());
        if found != expected {
            return Err(FrameError::HeaderSum { found, expected });
        }
        let kind = FrameKind::from_u16(raw.kind.get()).ok_or(FrameError::Kind(raw.kind.get()))?;
        let flags = raw.flags.get();
        if flags & !Flags::PAYLOAD_UNSUMMED.0 != 0 {
            return Err(FrameError::Flags(flags));
        }
        let header = Self {
            kind,
            method: raw.method.get(),
            flags: Flags(flags),
            cluster: ClusterId(raw.cluster.get()),
            sender: raw.sender.get(),
            request: raw.request.get(),
            deadline_us: raw.deadline_us.get(),
            trace: TraceContext { trace: raw.trace.get(), span: raw.span.get() },
            message_length: raw.message_length.get(),
            payload_length: raw.payload_length.get(),
            message_sum: raw.message_sum.get(),
            payload_sum: raw.payload_sum.get(),
        };
        check_lengths(header.message_length.into(), header.payload_length.into())?;
        Ok(header)
    }

    /// Checks the bodies that came with this header.
    ///
    /// # Errors
    /// [`FrameError::MessageSum`], [`FrameError::PayloadSum`].
    pub fn check(&self, message: &[u8], payload: &[u8]) -> Result<(), FrameError> {
        if message.len() != self.message_length as usize || crc32(message) != self.message_sum {
            return Err(FrameError::MessageSum);
        }
        if payload.len() != self.payload_length as usize {
            return Err(FrameError::PayloadSum);
        }
        if !self.flags.has(Flags::PAYLOAD_UNSUMMED) && crc32(payload) != self.payload_sum {
            return Err(FrameError::PayloadSum);
        }
        Ok(())
    }
}

fn check_lengths(message: u64, payload: u64) -> Result<(), FrameError> {
    if message > limits::MESSAGE_BYTES_MAX {
        return Err(FrameError::MessageTooLong(message));
    }
    if payload > limits::PAYLOAD_BYTES_MAX {
        return Err(FrameError::PayloadTooLong(payload));
    }
    Ok(())
}
