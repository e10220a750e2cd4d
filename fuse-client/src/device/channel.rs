//! One descriptor of `/dev/fuse`: requests in, answers out.

use super::encode::{self, Encoded};
use super::protocol::Answer;
use super::reply::Sink;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::IoSlice;

/// A descriptor that is, or can be, connected to a mount.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// Takes a descriptor that is mounted already.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Opens the device, not yet connected to anything.
    ///
    /// # Errors
    /// As `open(2)`: the module is not loaded, or we may not.
    pub fn open() -> Result<Self, Errno> {
        rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// A second descriptor of the same mount with a queue of its own for requests being served, so that two threads do not contend.
    ///
    /// # Errors
    /// As `open(2)` and `ioctl(2)`.
    pub fn duplicate(&self) -> Result<Self, Errno> {
        let new = Self::open()?;
        clone_ioctl::connect(new.0.as_fd(), self.0.as_fd())?;
        Ok(new)
    }

    /// The descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for the next request and returns its length; `None` when the mount is gone.
    ///
    /// # Errors
    /// What is not an interruption nor the end.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        loop {
            match rustix::io::read(&self.0, &mut *buffer) {
                Ok(length) => return Ok(Some(length)),
                // ENOENT: the request was interrupted before it was read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Sends one message: header, body, and data from where it lies.
    ///
    /// # Errors
    /// As `writev(2)`; `ENOENT` when the request was aborted meanwhile.
    pub fn send_message(&self, unique: u64, error: i32, body: &[u8], data: &[bytes::Bytes]) -> Result<(), Errno> {
        let data_bytes: usize = data.iter().map(bytes::Bytes::len).sum();
        let header = encode::header(unique, error, body.len() + data_bytes);
        if data.is_empty() {
            return rustix::io::writev(&self.0, &[IoSlice::new(&header), IoSlice::new(body)]).map(drop);
        }
        let joined;
        let mut slices = vec![IoSlice::new(&header), IoSlice::new(body)];
        if data.len() <= PIECES_MAX {
            slices.extend(data.iter().map(|piece| IoSlice::new(piece)));
        } else {
            joined = data.concat();
            slices.push(IoSlice::new(&joined));
        }
        rustix::io::writev(&self.0, &slices).map(drop)
    }
}

/// Pieces of data sent without being joined; the kernel takes 1024 (`IOV_MAX`) with header and body.
const PIECES_MAX: usize = 512;

impl Sink for Channel {
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

/// The one `ioctl` we need.
#[allow(unsafe_code)]
mod clone_ioctl {
    use rustix::fd::{AsRawFd, BorrowedFd};
    use rustix::io::Errno;
    use rustix::ioctl::{Setter, ioctl, opcode};

    /// `FUSE_DEV_IOC_CLONE`: connects `new` to the mount of `mounted`.
    pub fn connect(new: BorrowedFd<'_>, mounted: BorrowedFd<'_>) -> Result<(), Errno> {
        const CLONE: rustix::ioctl::Opcode = opcode::read::<u32>(229, 0);
        let descriptor = u32::try_from(mounted.as_raw_fd()).map_err(|_| Errno::BADF)?;
        // SAFETY: this opcode reads a u32 from the pointer it is given and writes nothing, whatever its direction bits say;
        // `Setter` passes a pointer to a u32 that lives through the call. On a descriptor that is not /dev/fuse it fails.
        unsafe { ioctl(new, Setter::<CLONE, u32>::new(descriptor)) }
    }
}
