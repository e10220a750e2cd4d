//! Frames into a byte stream: whatever is queued goes out in as few writes as possible; large bodies are not copied.

use crate::shared::Shared;
use crate::table::Out;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// A body up to this size is copied next to its header: cheaper than one more slice in the system call.
const COPIED_BODY_BYTES: usize = 8 << 10;
/// Slices in one write.
const SLICES: usize = 64;

pub(crate) struct Writer<W> {
    io: W,
    covered: bool,
    scratch: BytesMut,
    segments: VecDeque<Bytes>,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    pub fn new(io: W, covered: bool) -> Self {
        Self { io, covered, scratch: BytesMut::new(), segments: VecDeque::new() }
    }

    /// Sends what `shared` has until it has no more to say; then says so to the other end.
    pub async fn run(&mut self, shared: &Shared) -> io::Result<()> {
        let (mut rest, mut batch) = (Bytes::new(), Vec::new());
        while shared.take(&mut rest, &mut batch).await {
            if !rest.is_empty() {
                self.segments.push_back(std::mem::take(&mut rest));
            }
            for out in batch.drain(..) {
                self.encode(out)?;
            }
            self.write(|| shared.touch_write()).await?;
        }
        self.io.shutdown().await
    }

    /// Adds a frame to what [`Self::write`] sends.
    pub fn encode(&mut self, mut out: Out) -> io::Result<()> {
        // Lengths were checked where the frame was queued.
        out.header.describe(&out.message, &out.payload, self.covered).map_err(io::Error::other)?;
        self.scratch.extend_from_slice(&out.header.encode());
        for body in [out.message, out.payload] {
            if body.len() <= COPIED_BODY_BYTES {
                self.scratch.extend_from_slice(&body);
            } else {
                self.segments.push_back(self.scratch.split().freeze());
                self.segments.push_back(body);
            }
        }
        Ok(())
    }

    /// Sends what was encoded; `progress` is called whenever the transport took some.
    pub async fn write(&mut self, progress: impl Fn()) -> io::Result<()> {
        if !self.scratch.is_empty() {
            self.segments.push_back(self.scratch.split().freeze());
        }
        while !self.segments.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.segments.len().min(SLICES);
            for (slice, segment) in slices.iter_mut().zip(&self.segments) {
                *slice = IoSlice::new(segment);
            }
            let written = self.io.write_vectored(&slices[..count]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            progress();
            self.advance(written);
        }
        self.io.flush().await
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.segments.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.segments.pop_front();
        }
    }
}
