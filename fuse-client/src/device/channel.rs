//! One descriptor of `/dev/fuse`: requests in, answers out.

use super::transport::Transport;
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

    /// The descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Channel {
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
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

    fn send(&self, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        rustix::io::writev(&self.0, pieces).map(drop)
    }

    /// A descriptor with a queue of its own for requests being served.
    fn duplicate(&self) -> Result<Self, Errno> {
        let new = Self::open()?;
        clone_ioctl::connect(new.0.as_fd(), self.0.as_fd())?;
        Ok(new)
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
