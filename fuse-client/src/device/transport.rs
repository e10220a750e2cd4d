//! How messages travel between the kernel and us: `/dev/fuse` ([`super::Channel`]), a socket in tests, FUSE-over-io_uring one day.
//!
//! The last one fits: a queue of ring entries is a [`Transport`], `receive` waits for the next entry that carries a request, and `send` gives back
//! the entry whose request it answers, which it knows by the number in the header.

use super::encode::{self, Encoded};
use super::protocol::Answer;
use super::reply::Sink;
use rustix::io::Errno;
use std::fmt::Debug;
use std::io::IoSlice;

/// One way to the kernel and back. An answer goes back by the transport that its request came by.
pub trait Transport: Debug + Send + Sync + Sized + 'static {
    /// Waits for the next request and returns its length; `None` when the mount is gone.
    ///
    /// # Errors
    /// What is not an interruption nor the end.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno>;

    /// Sends one message, which lies in pieces, the header first. Never blocks.
    ///
    /// # Errors
    /// `ENOENT` when the request was aborted meanwhile, and what else the transport may say.
    fn send(&self, pieces: &[IoSlice<'_>]) -> Result<(), Errno>;

    /// A second way to the same mount, so that two threads do not contend.
    ///
    /// # Errors
    /// What the transport says.
    fn duplicate(&self) -> Result<Self, Errno>;

    /// Sends one message: header, body, and data from where it lies.
    ///
    /// # Errors
    /// As [`Transport::send`].
    fn send_message(&self, unique: u64, error: i32, body: &[u8], data: &[bytes::Bytes]) -> Result<(), Errno> {
        let data_bytes: usize = data.iter().map(bytes::Bytes::len).sum();
        let header = encode::header(unique, error, body.len() + data_bytes);
        let (header, body) = (IoSlice::new(&header), IoSlice::new(body));
        if data.is_empty() {
            return self.send(&[header, body]);
        }
        let joined;
        let mut pieces = vec![header, body];
        if data.len() <= PIECES_MAX {
            pieces.extend(data.iter().map(|piece| IoSlice::new(piece)));
        } else {
            joined = data.concat();
            pieces.push(IoSlice::new(&joined));
        }
        self.send(&pieces)
    }
}

/// Pieces of data sent without being joined; the kernel takes 1024 (`IOV_MAX`) with header and body.
const PIECES_MAX: usize = 512;

impl<T: Transport> Sink for T {
    fn send(&self, unique: u64, result: Result<Answer, Errno>) {
        let (error, Encoded { body, data }) = match result {
            Ok(answer) => (0, encode::answer(answer)),
            Err(errno) => (-errno.raw_os_error(), Encoded::default()),
        };
        match self.send_message(unique, error, &body, &data) {
            Ok(()) => {}
            // The caller was killed, or the mount is gone: nobody waits.
            Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(errno) => {
                tracing::error!(unique, %errno, bytes = body.len(), "kernel refused an answer");
                // An answer that the kernel finds malformed leaves its request waiting: end that at least.
                let _ = self.send_message(unique, -Errno::IO.raw_os_error(), &[], &[]);
            }
        }
    }
}
