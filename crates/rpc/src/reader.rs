//! Frames out of a byte stream. A large body is read straight into one buffer of its own; small ones share a buffer.

use crate::buffers::Buffer;
use bytes::{BufMut, Bytes, BytesMut};
use holdfast_wire::frame::{FrameError, HEADER_BYTES, Header};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes asked for at a time while frames are small.
const BUFFER_BYTES: usize = 64 << 10;
/// A body larger than this gets its own buffer.
const SHARED_BODY_BYTES: usize = 16 << 10;

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("closed by the other side")]
    End,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
}

pub(crate) struct Reader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// The next header; `progress` is called for whatever arrives.
    pub async fn header(&mut self, progress: impl Fn()) -> Result<Header, ReadError> {
        if let Err(error) = self.fill(HEADER_BYTES, progress).await {
            // Between two frames an end is an end; within one it is a cut.
            return Err(match error {
                ReadError::End if !self.buffer.is_empty() => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                other => other,
            });
        }
        let bytes = self.buffer.split_to(HEADER_BYTES);
        Ok(Header::decode(bytes[..].try_into().expect("split at its length"))?)
    }

    /// The bodies that belong to a header, checked.
    pub async fn bodies(&mut self, header: &Header, progress: impl Fn()) -> Result<(Bytes, Bytes), ReadError> {
        let message = self.body(header.message_length as usize, &progress).await.map_err(cut)?;
        let payload = self.body(header.payload_length as usize, &progress).await.map_err(cut)?;
        header.check(&message, &payload)?;
        Ok((message, payload))
    }

    async fn body(&mut self, length: usize, progress: &impl Fn()) -> Result<Bytes, ReadError> {
        if length <= SHARED_BODY_BYTES || length <= self.buffer.len() {
            self.fill(length, progress).await?;
            return Ok(self.buffer.split_to(length).freeze());
        }
        let mut body = Buffer::new(length);
        body.rest().extend_from_slice(&self.buffer);
        self.buffer.clear();
        while body.len() < length {
            let rest = length - body.len();
            if self.io.read_buf(&mut body.rest().limit(rest)).await? == 0 {
                return Err(ReadError::End);
            }
            progress();
        }
        Ok(body.freeze())
    }

    async fn fill(&mut self, length: usize, progress: impl Fn()) -> Result<(), ReadError> {
        while self.buffer.len() < length {
            if self.buffer.capacity() - self.buffer.len() < length.max(BUFFER_BYTES / 4) {
                self.buffer.reserve(BUFFER_BYTES);
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Err(ReadError::End);
            }
            progress();
        }
        Ok(())
    }
}

/// An end within a frame.
fn cut(error: ReadError) -> ReadError {
    match error {
        ReadError::End => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
        other => other,
    }
}
